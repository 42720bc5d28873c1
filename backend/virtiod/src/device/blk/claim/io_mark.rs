//! The mark of a device on the files that it transfers data with: it stays until the last
//! operation on them has ended, whatever becomes of the process.
//!
//! A process that dies does not take its direct I/O with it: with io_uring it is gone at once, and
//! storage reads and writes its memory until it is done. Each operation holds the open file
//! description, and so the locks of that. A device has a lock on a byte of its own, far beyond any
//! data, on each description; when no other description has one, nothing of the device is under
//! way any more.

use std::fs::File;
use std::io;
use std::sync::LazyLock;

use nix::fcntl::{FcntlArg, fcntl};
use sha2::{Digest, Sha256};

use super::lock::{is_locked_elsewhere, one_byte};
use super::usage::Owner;

/// The first of the bytes, as many as fit behind it.
const FIRST: i64 = 1 << 62;
/// Identifies this domain until it boots again: network file systems have locks of other hosts too.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

static THIS_BOOT: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string(BOOT_ID).unwrap_or_default());

/// A device's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IoMark(i64);

impl IoMark {
    pub(super) fn of(owner: &Owner) -> Self {
        Self::in_boot(&THIS_BOOT, owner)
    }

    fn in_boot(boot: &str, owner: &Owner) -> Self {
        let Owner { domain, number, .. } = owner;
        let digest = Sha256::digest(format!("{boot} {domain} {number}"));
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(FIRST | i64::from_le_bytes(bytes) & (FIRST - 1))
    }

    /// Marks an open file.
    ///
    /// # Errors
    /// The file system has no locks.
    pub(super) fn set(self, file: &File) -> io::Result<()> {
        fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, self.0)))?;
        Ok(())
    }

    /// Removes the mark from a file with which the device transfers nothing any more.
    pub(super) fn clear(self, file: &File) {
        if let Err(error) = fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_UNLCK, self.0))) {
            tracing::warn!(%error, "cannot remove a device's mark from its image");
        }
    }

    /// Whether another open description of the file has the mark. None has where the file system
    /// has no locks.
    pub(super) fn is_elsewhere(self, file: &File) -> bool {
        is_locked_elsewhere(file, self.0).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    fn mark(domain: u16, number: u32) -> IoMark {
        IoMark::of(&Owner { domain, number, vdev: "xvda".to_owned(), uuid: None })
    }

    #[test]
    fn mark_is_seen_by_others_while_any_copy_of_the_file_is_open() {
        let file = NamedTempFile::new().unwrap();
        let (used, other) = (file.reopen().unwrap(), file.reopen().unwrap());
        let mark = mark(u16::MAX, u32::MAX);
        assert!(!mark.is_elsewhere(&other));
        mark.set(&used).unwrap();
        assert!(mark.is_elsewhere(&other) && !mark.is_elsewhere(&used));
        // An operation under way holds the file as a copy of its descriptor does.
        let copy = used.try_clone().unwrap();
        drop(used);
        assert!(mark.is_elsewhere(&other));
        drop(copy);
        assert!(!mark.is_elsewhere(&other));
    }

    #[test]
    fn marks_of_devices_differ() {
        let file = NamedTempFile::new().unwrap();
        let (used, other) = (file.reopen().unwrap(), file.reopen().unwrap());
        mark(1, 51712).set(&used).unwrap();
        for (domain, number) in [(1, 51713), (2, 51712), (0, 51712)] {
            assert!(!mark(domain, number).is_elsewhere(&other), "{domain} {number}");
        }
        let owner = Owner { domain: 1, number: 51712, vdev: "xvda".to_owned(), uuid: None };
        assert!(!IoMark::in_boot("another host", &owner).is_elsewhere(&other));
        assert!(IoMark::in_boot(&THIS_BOOT, &owner).is_elsewhere(&other));
        mark(1, 51713).set(&used).unwrap();
        mark(1, 51712).clear(&used);
        assert!(!mark(1, 51712).is_elsewhere(&other) && mark(1, 51713).is_elsewhere(&other));
    }
}
