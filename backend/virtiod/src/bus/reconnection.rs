//! A connection to XenStore in place of one that is lost, made in a thread of its own: until
//! xenstored answers, which may be never, the guest's requests are served.

use std::io;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use super::keys::Watches;
use crate::Causes;
use xen::{StoreError, Xen};

/// How long to do other things before it is looked whether the connection is made.
pub const LOOK: Duration = Duration::from_millis(20);

/// What came of it.
pub enum Reconnected<S> {
    /// A connection with its watches.
    Yes(S),
    /// XenStore is still lost, or there is no thread to connect in.
    No,
    /// There is no time any more: the daemon ends.
    Ended,
}

/// Makes a connection that has `watches`. `meanwhile` does other things for about [`LOOK`], again
/// and again, and says whether to go on.
///
/// # Errors
/// Those of `meanwhile`.
pub fn reconnect<X: Xen, E>(
    xen: X,
    watches: Watches,
    mut meanwhile: impl FnMut() -> Result<bool, E>,
) -> Result<Reconnected<X::Store>, E> {
    let making = match begin(xen, watches) {
        Ok(making) => making,
        Err(error) => {
            tracing::debug!(%error, "no thread to connect to XenStore in");
            return Ok(Reconnected::No);
        }
    };
    loop {
        match making.try_recv() {
            Ok(Ok(store)) => {
                tracing::info!("connected to XenStore again");
                return Ok(Reconnected::Yes(store));
            }
            Ok(Err(error)) => {
                tracing::debug!("XenStore is still lost: {}", Causes(&error));
                return Ok(Reconnected::No);
            }
            // It panicked, which is logged.
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
        // Nobody waits for it if the device has ended.
        drop(made.send(store));
    };
    thread::Builder::new().name("reconnect".to_owned()).spawn(make)?;
    Ok(making)
}
