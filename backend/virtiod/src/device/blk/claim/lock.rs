//! Locks on an image file by which programs keep out of each other's way: QEMU's, which its tools
//! respect too.
//!
//! Bytes of the file stand for permissions: that of number n is *used* by whoever has a read lock
//! on byte 100 + n, and *refused* to others by whoever has one on byte 200 + n (QEMU,
//! `block/file-posix.c`). No byte is read or written for it, and the file may be shorter. The locks
//! belong to the open file (F_OFD_SETLK): they end with its last descriptor, and for the same
//! reason the kernel names no process that holds one.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};

/// Byte of the first permission's use.
const USED: i64 = 100;
/// Byte of the first permission's refusal.
const REFUSED: i64 = 200;

/// A way to use an image. Numbers and names are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Permission {
    /// Reads it, and relies on what it reads.
    ConsistentRead = 0,
    /// Writes it.
    Write = 1,
    /// Writes what stands there already.
    WriteUnchanged = 2,
    /// Changes its size.
    Resize = 3,
}

impl Permission {
    const ALL: [Self; 4] = [Self::ConsistentRead, Self::Write, Self::WriteUnchanged, Self::Resize];

    fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::WriteUnchanged => "write unchanged",
            Self::Resize => "resize",
        }
    }
}

/// Some permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Permissions(u8);

impl Permissions {
    pub(super) fn of(permissions: &[Permission]) -> Self {
        Self(permissions.iter().fold(0, |set, permission| set | 1 << *permission as u8))
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.0 & 1 << *permission as u8 != 0)
    }
}

/// The ways in which a program uses an image, and those that it denies to others meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LockState {
    pub(super) used: Permissions,
    pub(super) refused: Permissions,
}

/// Why an image is not locked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    /// Somebody else has it; in QEMU's words.
    #[error(transparent)]
    Held(Conflict),
    /// The file system cannot.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A permission that somebody else refuses, or uses although it is refused here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another program does not let others do this.
    #[error("Failed to get {:?} lock", .0.name())]
    Refused(Permission),
    /// Another program does this.
    #[error("Failed to get shared {:?} lock", .0.name())]
    Used(Permission),
}

/// An open file, with the locks that it has.
#[derive(Debug)]
pub(super) struct LockedFile {
    file: Arc<File>,
    held: LockState,
}

impl LockedFile {
    /// A file without locks.
    pub(super) fn new(file: File) -> Self {
        Self { file: Arc::new(file), held: LockState::default() }
    }

    /// The file. Its locks last as long as it is open anywhere.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Holds these locks and no others.
    ///
    /// # Errors
    /// [`LockError`]; it holds what it held before.
    pub(super) fn change(&mut self, wanted: LockState) -> Result<(), LockError> {
        let before = self.held;
        // Set before they are looked for: of two programs that do so at a time, one sees the other
        // at least.
        let outcome = self.set(wanted).and_then(|()| self.look_for_conflict(wanted));
        self.release_all_but(if outcome.is_ok() { wanted } else { before });
        outcome
    }

    fn set(&mut self, wanted: LockState) -> Result<(), LockError> {
        for permission in wanted.used.without(self.held.used).iter() {
            let set = self.lock(libc::F_RDLCK, USED, permission)?;
            set.then_some(()).ok_or(LockError::Held(Conflict::Refused(permission)))?;
            self.held.used = self.held.used.with(Permissions::of(&[permission]));
        }
        for permission in wanted.refused.without(self.held.refused).iter() {
            let set = self.lock(libc::F_RDLCK, REFUSED, permission)?;
            set.then_some(()).ok_or(LockError::Held(Conflict::Used(permission)))?;
            self.held.refused = self.held.refused.with(Permissions::of(&[permission]));
        }
        Ok(())
    }

    fn look_for_conflict(&self, wanted: LockState) -> Result<(), LockError> {
        for permission in wanted.used.iter() {
            if self.is_locked_elsewhere(REFUSED, permission)? {
                return Err(LockError::Held(Conflict::Refused(permission)));
            }
        }
        for permission in wanted.refused.iter() {
            if self.is_locked_elsewhere(USED, permission)? {
                return Err(LockError::Held(Conflict::Used(permission)));
            }
        }
        Ok(())
    }

    fn release_all_but(&mut self, kept: LockState) {
        for (base, surplus) in [
            (USED, self.held.used.without(kept.used)),
            (REFUSED, self.held.refused.without(kept.refused)),
        ] {
            for permission in surplus.iter() {
                if let Err(error) = self.lock(libc::F_UNLCK, base, permission) {
                    tracing::warn!(%error, "a lock on an image stays until the image is closed");
                }
            }
        }
        self.held = kept;
    }

    /// Sets or ends the lock on one byte; `false` if somebody else's is in its way.
    fn lock(&self, kind: libc::c_int, base: i64, permission: Permission) -> io::Result<bool> {
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&byte(kind, base, permission))) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn is_locked_elsewhere(&self, base: i64, permission: Permission) -> io::Result<bool> {
        let mut found = byte(libc::F_WRLCK, base, permission);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut found))?;
        Ok(i32::from(found.l_type) != libc::F_UNLCK)
    }
}

fn byte(kind: libc::c_int, base: i64, permission: Permission) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: base + permission as i64,
        l_len: 1,
        // As the kernel wants it of locks of an open file.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::Permission::{ConsistentRead, Resize, Write};
    use super::*;

    fn writer() -> LockState {
        LockState {
            used: Permissions::of(&[ConsistentRead, Write]),
            refused: Permissions::of(&[Write, Resize]),
        }
    }

    fn reader() -> LockState {
        LockState { used: Permissions::of(&[ConsistentRead]), ..writer() }
    }

    fn locked(file: &NamedTempFile, state: LockState) -> Result<LockedFile, LockError> {
        let mut locked = LockedFile::new(file.reopen().unwrap());
        locked.change(state)?;
        Ok(locked)
    }

    fn conflict(outcome: Result<LockedFile, LockError>) -> String {
        match outcome {
            Err(LockError::Held(conflict)) => conflict.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// The bytes of the file that somebody has locked.
    fn bytes_locked(file: &NamedTempFile) -> Vec<i64> {
        let other = LockedFile::new(file.reopen().unwrap());
        let bytes = [USED, REFUSED].into_iter().flat_map(|base| {
            let held = Permission::ALL.into_iter();
            held.map(move |permission| (base, permission))
        });
        let held = bytes
            .filter(|(base, permission)| other.is_locked_elsewhere(*base, *permission).unwrap());
        held.map(|(base, permission)| base + permission as i64).collect()
    }

    #[test]
    fn the_locked_bytes_are_qemus_and_end_with_the_file() {
        let file = NamedTempFile::new().unwrap();
        let mut held = locked(&file, writer()).unwrap();
        assert_eq!(bytes_locked(&file), [100, 101, 201, 203]);
        held.change(reader()).unwrap();
        assert_eq!(bytes_locked(&file), [100, 201, 203]);
        drop(held);
        assert_eq!(bytes_locked(&file), [0; 0]);
    }

    #[test]
    fn a_writer_is_alone_and_readers_are_not() {
        let file = NamedTempFile::new().unwrap();
        let first = locked(&file, reader()).unwrap();
        let second = locked(&file, reader()).unwrap();
        assert_eq!(conflict(locked(&file, writer())), "Failed to get \"write\" lock");
        drop((first, second));
        let _writer = locked(&file, writer()).unwrap();
        assert_eq!(conflict(locked(&file, writer())), "Failed to get \"write\" lock");
        assert_eq!(conflict(locked(&file, reader())), "Failed to get shared \"write\" lock");
    }

    #[test]
    fn a_change_that_fails_leaves_what_was_held() {
        let file = NamedTempFile::new().unwrap();
        let mut first = locked(&file, reader()).unwrap();
        let second = locked(&file, reader()).unwrap();
        assert!(first.change(writer()).is_err());
        drop(second);
        assert_eq!(bytes_locked(&file), [100, 201, 203]);
    }
}
