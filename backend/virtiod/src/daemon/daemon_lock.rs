//! A lock for one daemon in a domain: a second one would treat the first one's devices as those of
//! a dead daemon.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Path of the lock file, independent of the daemon's options.
pub const LOCK: &str = "/run/xen-virtiod.lock";

/// A lock that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    /// Another daemon holds the lock.
    #[error("another xen-virtiod serves this domain (it locks {0:?}); stop it first")]
    Taken(PathBuf),
    /// The lock file cannot be opened or locked.
    #[error(
        "cannot lock {path:?}, which keeps a second daemon from taking the first one's devices"
    )]
    Lock {
        /// The lock file's path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The lock: no other daemon serves this domain until this is dropped. The file itself stays; only
/// its lock counts.
#[derive(Debug)]
pub struct DaemonLock(#[expect(dead_code, reason = "its lock ends with it")] File);

impl DaemonLock {
    /// Locks the file at `path`.
    ///
    /// # Errors
    /// [`SoleError`].
    pub fn take(path: &Path) -> Result<Self, SoleError> {
        let failed = |source| SoleError::Lock { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(SoleError::Taken(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_daemon_is_refused_while_the_first_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = DaemonLock::take(&path).unwrap();
        let error = DaemonLock::take(&path).unwrap_err();
        assert!(error.to_string().contains("another xen-virtiod serves this domain"), "{error}");
        drop(first);
        assert!(DaemonLock::take(&path).is_ok());
    }

    #[test]
    fn missing_directory_of_the_lock_is_an_error() {
        let missing = Path::new("/nonexistent/lock");
        assert!(matches!(DaemonLock::take(missing), Err(SoleError::Lock { .. })));
    }
}
