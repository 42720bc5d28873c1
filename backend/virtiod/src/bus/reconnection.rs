//! A connection to XenStore in place of one that is lost, made in a thread of its own: until xenstored answers,
//! which may be never, the guest's requests are served.

use std::io;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use super::keys::Watches;
use xen::{StoreError, Xen, XenStore};

/// How often to look whether it is made.
pub const LOOK: Duration = Duration::from_millis(20);

/// A connection that is being made.
pub struct Reconnection<S>(Receiver<Result<S, StoreError>>);

impl<S: XenStore> Reconnection<S> {
    /// Begins to make one that has `watches`.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn begin<X: Xen<Store = S>>(xen: X, watches: Watches) -> io::Result<Self> {
        let (made, making) = mpsc::channel();
        let make = move || {
            let store = xen.store().and_then(|mut store| watches.set(&mut store).map(|()| store));
            // Nobody waits for it if the device has ended.
            drop(made.send(store));
        };
        thread::Builder::new().name("reconnect".to_owned()).spawn(make)?;
        Ok(Self(making))
    }

    /// What came of it; `None` while it is being made.
    pub fn outcome(&self) -> Option<Result<S, StoreError>> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                Some(Err(StoreError::Protocol("the thread that connects has ended")))
            }
        }
    }
}
