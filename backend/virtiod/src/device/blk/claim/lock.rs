//! QEMU's locks on image files, which keep programs from using an image together. QEMU's tools
//! respect them too.
//!
//! Bytes of the file represent permissions: a program that *uses* permission n has a read lock on
//! byte 100 + n, and one that *refuses* it to others has a read lock on byte 200 + n (QEMU,
//! `block/file-posix.c`). The locks read and write no byte, and the file may be shorter. They
//! belong to the open file description (F_OFD_SETLK): they end with its last descriptor, and for
//! the same reason the kernel names no process that holds one.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};

/// Byte that represents the use of the first permission.
const USED: i64 = 100;
/// Byte that represents the refusal of the first permission.
const REFUSED: i64 = 200;

/// A permission to use an image. Numbers and names are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Permission {
    /// To read it, and to rely on consistent data.
    ConsistentRead = 0,
    /// To write it.
    Write = 1,
    /// To write the data that it has already.
    WriteUnchanged = 2,
    /// To change its size.
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

/// A set of permissions.
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

/// The permissions that a program uses, and those that it denies to others meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LockState {
    pub(super) used: Permissions,
    pub(super) refused: Permissions,
}

/// The reason for which an image is not locked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    /// Another program holds a conflicting lock; in QEMU's words.
    #[error(transparent)]
    HeldLock(Conflict),
    /// The file system does not support the lock.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A permission that another program refuses, or uses although it is refused here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another program refuses this permission.
    #[error("Failed to get {:?} lock", .0.name())]
    Refused(Permission),
    /// Another program uses this permission.
    #[error("Failed to get shared {:?} lock", .0.name())]
    Used(Permission),
}

/// An open file and the locks that it holds.
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

    /// The file. Its locks last while any clone of it is open.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Changes the held locks to `wanted`.
    ///
    /// # Errors
    /// [`LockError`]; then the file holds the same locks as before.
    pub(super) fn change(&mut self, wanted: LockState) -> Result<(), LockError> {
        let before = self.held;
        // Set locks before the search for conflicts: of two programs that do so at a time, at least
        // one sees the other.
        let outcome = self.set(wanted).and_then(|()| self.look_for_conflict(wanted));
        self.release_all_but(if outcome.is_ok() { wanted } else { before });
        outcome
    }

    /// Releases all locks, unless somebody else still uses the file.
    fn release(&mut self) {
        if Arc::get_mut(&mut self.file).is_some() {
            self.release_all_but(LockState::default());
        }
    }

    fn set(&mut self, wanted: LockState) -> Result<(), LockError> {
        for permission in wanted.used.without(self.held.used).iter() {
            let set = self.lock(libc::F_RDLCK, USED, permission)?;
            set.then_some(()).ok_or(LockError::HeldLock(Conflict::Refused(permission)))?;
            self.held.used = self.held.used.with(Permissions::of(&[permission]));
        }
        for permission in wanted.refused.without(self.held.refused).iter() {
            let set = self.lock(libc::F_RDLCK, REFUSED, permission)?;
            set.then_some(()).ok_or(LockError::HeldLock(Conflict::Used(permission)))?;
            self.held.refused = self.held.refused.with(Permissions::of(&[permission]));
        }
        Ok(())
    }

    fn look_for_conflict(&self, wanted: LockState) -> Result<(), LockError> {
        for permission in wanted.used.iter() {
            if self.is_locked_elsewhere(REFUSED, permission)? {
                return Err(LockError::HeldLock(Conflict::Refused(permission)));
            }
        }
        for permission in wanted.refused.iter() {
            if self.is_locked_elsewhere(USED, permission)? {
                return Err(LockError::HeldLock(Conflict::Used(permission)));
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
                    tracing::warn!(%error, "cannot release a lock on an image before it is closed");
                }
            }
        }
        self.held = kept;
    }

    /// Sets or releases the lock on one byte; returns `false` if another program's lock conflicts.
    fn lock(&self, kind: libc::c_int, base: i64, permission: Permission) -> io::Result<bool> {
        let byte = one_byte(kind, base + permission as i64);
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn is_locked_elsewhere(&self, base: i64, permission: Permission) -> io::Result<bool> {
        is_locked_elsewhere(&self.file, base + permission as i64)
    }
}

impl Drop for LockedFile {
    /// The end of the descriptor is not enough: a program that this one starts just now has a copy
    /// of it for a moment.
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether another open description of the file has a lock on the byte.
///
/// # Errors
/// The file system has no locks.
pub(super) fn is_locked_elsewhere(file: &File, at: i64) -> io::Result<bool> {
    let mut found = one_byte(libc::F_WRLCK, at);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

/// A lock on one byte.
pub(super) fn one_byte(kind: libc::c_int, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        // The kernel requires 0 for locks of an open file description.
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
            Err(LockError::HeldLock(conflict)) => conflict.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// The bytes of the file that are locked.
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
    fn locked_bytes_are_qemus_and_end_with_the_file() {
        let file = NamedTempFile::new().unwrap();
        let mut held = locked(&file, writer()).unwrap();
        assert_eq!(bytes_locked(&file), [100, 101, 201, 203]);
        held.change(reader()).unwrap();
        assert_eq!(bytes_locked(&file), [100, 201, 203]);
        drop(held);
        assert_eq!(bytes_locked(&file), [0; 0]);
    }

    #[test]
    fn locks_end_with_the_last_user_though_a_starting_program_has_the_descriptor() {
        let file = NamedTempFile::new().unwrap();
        let held = locked(&file, writer()).unwrap();
        let copy = held.file().try_clone().unwrap();
        let user = held.file();
        drop(held);
        assert_eq!(bytes_locked(&file), [100, 101, 201, 203], "storage may still use it");
        drop((user, copy));
        assert_eq!(bytes_locked(&file), [0; 0]);
        let held = locked(&file, writer()).unwrap();
        let copy = held.file().try_clone().unwrap();
        drop(held);
        assert_eq!(bytes_locked(&file), [0; 0]);
        drop(copy);
    }

    #[test]
    fn writers_exclude_others_and_readers_share() {
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
    fn failed_change_keeps_the_held_locks() {
        let file = NamedTempFile::new().unwrap();
        let mut first = locked(&file, reader()).unwrap();
        let second = locked(&file, reader()).unwrap();
        assert!(first.change(writer()).is_err());
        drop(second);
        assert_eq!(bytes_locked(&file), [100, 201, 203]);
    }
}
