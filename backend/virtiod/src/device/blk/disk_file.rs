//! A file with a target's data: what the device transfers without its worker.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use nix::sys::stat::major;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};

use super::claim::Durability;
use crate::device::{Gather, Scatter, WriteMode};

/// The major number of the kernel's RAM disks (brd).
const RAM_DISK: u64 = 1;
/// The type of ramfs, which has no constant elsewhere.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// Whether the storage behind a file can make a caller wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// It is memory: the device transfers by itself.
    Memory,
    /// It can: only what the page cache has is transferred at once.
    Slow,
    /// It can, and there is no page cache in between.
    Direct,
}

impl Store {
    /// The store of a file, opened without direct I/O.
    ///
    /// # Errors
    /// The kernel's.
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_memory = if metadata.file_type().is_block_device() {
            major(metadata.rdev()) == RAM_DISK
        } else {
            let kind = fstatfs(file)?.filesystem_type();
            kind == TMPFS_MAGIC || kind == FsType(RAMFS_MAGIC.into())
        };
        Ok(if is_memory { Self::Memory } else { Self::Slow })
    }
}

/// A file that was opened for direct I/O.
#[derive(Clone, Debug)]
pub(super) struct DirectFile {
    pub(super) file: Arc<File>,
    /// Length in bytes of the longest transfer that the kernel passes on to the storage as one.
    pub(super) longest: usize,
}

/// A file with a target's data.
#[derive(Clone, Debug)]
pub(super) struct DiskFile {
    /// The file, with the page cache.
    pub(super) cached: Arc<File>,
    /// The same file, opened for direct I/O where that is configured and supported.
    pub(super) direct: Option<DirectFile>,
    /// The size of a raw target's file; the disk ends with the sector that contains its last byte.
    pub(super) bytes: u64,
    pub(super) store: Store,
    pub(super) durability: Arc<Durability>,
}

impl DiskFile {
    /// # Errors
    /// The kernel's.
    pub(super) fn new(
        cached: &Arc<File>,
        direct: Option<&DirectFile>,
        bytes: u64,
        durability: &Arc<Durability>,
    ) -> io::Result<Self> {
        let store = if direct.is_some() { Store::Direct } else { Store::of(cached)? };
        Ok(Self {
            cached: Arc::clone(cached),
            direct: direct.cloned(),
            bytes,
            store,
            durability: Arc::clone(durability),
        })
    }

    /// The file for transfers that may wait.
    pub(super) fn waiting(&self) -> &Arc<File> {
        self.direct.as_ref().map_or(&self.cached, |direct| &direct.file)
    }

    /// Whether all that is written is handed to a block device before it is answered. A file system
    /// keeps in memory for a while where a file's blocks are, also for direct I/O.
    pub(super) fn is_past_cache(&self) -> bool {
        let facts = self.cached.metadata();
        self.direct.is_some() && facts.is_ok_and(|facts| facts.file_type().is_block_device())
    }

    /// Whether `file` is the one for direct I/O.
    pub(super) fn is_direct(&self, file: &Arc<File>) -> bool {
        self.direct.as_ref().is_some_and(|direct| Arc::ptr_eq(&direct.file, file))
    }

    /// Length in bytes of the longest transfer that need not be divided.
    pub(super) fn longest(&self) -> usize {
        self.direct.as_ref().map_or(usize::MAX, |direct| direct.longest)
    }

    /// Reads at once; only for [`Store::Memory`].
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read(&self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        into.read(self.cached.as_fd(), offset)
    }

    /// Reads what the page cache has; returns whether that was all.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::Unsupported`] if the file system cannot tell.
    pub(super) fn read_cached(&self, offset: u64, into: &Scatter<'_>) -> io::Result<bool> {
        into.read_cached(self.cached.as_fd(), offset)
    }

    /// Writes at once; only for [`Store::Memory`].
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn write(&self, offset: u64, from: &Gather<'_>, mode: WriteMode) -> io::Result<()> {
        from.write(self.cached.as_fd(), offset, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_memory_is_known_from_others() {
        let memory = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(Store::of(&memory).unwrap(), Store::Memory);
        // The kernel's own file system is none for data: its files can make a caller wait.
        let other = File::open("/proc/self/stat").unwrap();
        assert_eq!(Store::of(&other).unwrap(), Store::Slow);
    }
}
