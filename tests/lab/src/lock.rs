//! One process at a time: locks that end with their holder.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

/// How long to wait for whoever holds a lock.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Takes the lock `path`, calling `busy` first if somebody else has it.
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

/// Waits in a thread of its own, so that the wait can have a limit.
fn wait(file: File, path: &Path) -> Result<Flock<File>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(Flock::lock(file, FlockArg::LockExclusive)));
    receive
        .recv_timeout(LIMIT)
        .map_err(|_| {
            anyhow!(
                "waited {} min for the lock {}: see who holds it with `fuser`",
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
    fn the_second_taker_is_told_and_gets_the_lock_when_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = take(&path, || panic!("nobody holds it")).unwrap();
        let mut told = false;
        let second = take(&path, || {
            told = true;
            drop(first);
        });
        assert!(second.is_ok() && told);
    }
}
