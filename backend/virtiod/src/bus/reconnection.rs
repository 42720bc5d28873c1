//! Replaces a lost connection to XenStore. A thread of its own connects: until xenstored answers,
//! which may be never, the device's thread serves the guest's requests.

use std::io;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use super::keys::Watches;
use crate::Causes;
use xen::{StoreError, Xen};

/// Interval at which the caller checks whether the thread has connected.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The result of [`reconnect`].
pub enum Reconnected<S> {
    /// A new connection with its watches.
    Yes(S),
    /// XenStore is still unreachable, or the thread could not be started.
    No,
    /// The daemon ends.
    Ended,
}

/// Makes a connection with `watches`. Calls `meanwhile` until it is made; each call does other work
/// for about [`CHECK_INTERVAL`] and returns whether to continue.
///
/// # Errors
/// The errors of `meanwhile`.
pub fn reconnect<X: Xen, E>(
    xen: X,
    watches: Watches,
    mut meanwhile: impl FnMut() -> Result<bool, E>,
) -> Result<Reconnected<X::Store>, E> {
    let making = match begin(xen, watches) {
        Ok(making) => making,
        Err(error) => {
            tracing::debug!(%error, "cannot start a thread to reconnect to XenStore");
            return Ok(Reconnected::No);
        }
    };
    loop {
        match making.try_recv() {
            Ok(Ok(store)) => {
                tracing::info!("reconnected to XenStore");
                return Ok(Reconnected::Yes(store));
            }
            Ok(Err(error)) => {
                tracing::debug!("cannot reconnect to XenStore: {}", Causes(&error));
                return Ok(Reconnected::No);
            }
            // The thread panicked, and the panic hook has logged it.
            Err(TryRecvError::Disconnected) => return Ok(Reconnected::No),
            Err(TryRecvError::Empty) => {}
        }
        if !meanwhile()? {
            return Ok(Reconnected::Ended);
        }
    }
}

fn begin<X: Xen>(xen: X, watches: Watches) -> io::Result<Receiver<Result<X::Store, StoreError>>> {
    let (made, making) = mpsc::channel();
    let make = move || {
        let store = xen.store().and_then(|mut store| watches.set(&mut store).map(|()| store));
        // If the device has ended, nobody receives it.
        drop(made.send(store));
    };
    thread::Builder::new().name("reconnect".to_owned()).spawn(make)?;
    Ok(making)
}
