//! Locks between processes. The kernel releases them when the holder ends.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

/// The maximum time to wait for a lock.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Takes the lock `path`. If another process holds it, calls `busy` and waits.
///
/// # Errors
/// The file cannot be opened, or the holder keeps the lock for longer than [`LIMIT`].
pub(crate) fn take(path: &Path, busy: impl FnOnce()) -> Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open the lock {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, _)) => {
            busy();
            wait(file, path)
        }
    }
}

/// Waits for the lock in a thread, because `flock` itself has no time limit.
fn wait(file: File, path: &Path) -> Result<Flock<File>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(Flock::lock(file, FlockArg::LockExclusive)));
    receive
        .recv_timeout(LIMIT)
        .map_err(|_| {
            anyhow!(
                "waited {} min for the lock {1}: `fuser -v {1}` shows which process holds it",
                LIMIT.as_secs() / 60,
                path.display()
            )
        })?
        .map_err(|(_, error)| anyhow!("cannot lock {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_taker_is_notified_and_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = take(&path, || panic!("nobody holds it")).unwrap();
        let mut notified = false;
        let second = take(&path, || {
            notified = true;
            drop(first);
        });
        assert!(second.is_ok() && notified);
    }
}
