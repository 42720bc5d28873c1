//! One daemon a domain: a second one would take the devices of the first for those of one that is
//! gone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file that is locked, whatever the daemon's options.
pub const LOCK: &str = "/run/xen-virtiod.lock";

/// Why this process may not be the daemon.
#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    /// Another is.
    #[error("another xen-virtiod serves this domain (it has {0:?} locked); stop it first")]
    Taken(PathBuf),
    /// It cannot be told.
    #[error(
        "cannot lock {path:?}, which keeps a second daemon from taking the first one's devices"
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// That no other daemon serves this domain, as long as it is not dropped. The file stays: whoever
/// finds it locked or not learns from the lock.
#[derive(Debug)]
pub struct Sole(#[expect(dead_code, reason = "its lock ends with it")] File);

impl Sole {
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
    fn a_second_daemon_is_told_so_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Sole::take(&path).unwrap();
        let error = Sole::take(&path).unwrap_err();
        assert!(error.to_string().contains("another xen-virtiod serves this domain"), "{error}");
        drop(first);
        assert!(Sole::take(&path).is_ok());
    }

    #[test]
    fn a_lock_that_cannot_be_had_is_an_error() {
        let missing = Path::new("/nonexistent/lock");
        assert!(matches!(Sole::take(missing), Err(SoleError::Lock { .. })));
    }
}
