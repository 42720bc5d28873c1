//! What a device shows of its disk, and checks requests against.

use std::fs::File;
use std::sync::Arc;

use super::claim::Durability;
use super::disk_file::DiskFile;
use super::image::{BlockSize, InPlace};
use super::request::MAX_DATA;
use super::target::{AccessMode, Discard, TargetError};
use super::{SECTOR_SIZE, WriteMode};

/// What is known of a disk without access to it. The worker renews it.
#[derive(Clone, Debug)]
pub(super) struct DiskFacts {
    /// Size in sectors of 512 bytes; a whole number of logical blocks.
    pub(super) sectors: u64,
    pub(super) block_size: BlockSize,
    /// Alignment in sectors at which a discard is best divided.
    pub(super) discard_alignment: u32,
    /// Whether the guest may write.
    pub(super) access: AccessMode,
    /// Whether the guest may deallocate storage.
    pub(super) discard: Discard,
    /// Whether a discard deallocates storage, as far as an attempt showed.
    pub(super) can_discard: bool,
    /// Whether written data may be lost with the host's power until it is flushed.
    pub(super) has_cache: bool,
    /// The file or block device whose size is the disk's, with its bytes as they are known.
    pub(super) sized_file: Option<(Arc<File>, u64)>,
    /// The file of a raw target that the driver uses.
    pub(super) file: Option<Arc<DiskFile>>,
    /// The file whose sync makes durable what the worker has reported as written.
    pub(super) sync_file: Option<Arc<DiskFile>>,
    /// The durability of what devices wrote to the target.
    pub(super) durability: Arc<Durability>,
    /// Whether another process can go on with the disk.
    pub(super) can_be_taken_over: bool,
    /// Whether what was written is in the storage, and not in the page cache of a domain that may
    /// end.
    pub(super) outlives_its_domain: bool,
    /// The image, if others than its worker may transfer data of it.
    pub(super) in_place: Option<Arc<dyn InPlace>>,
    /// Whether a write is durable when it is answered, although a driver could flush.
    pub(super) writes_through: bool,
    /// When writes have to be durable.
    pub(super) write_mode: WriteMode,
}

/// A part of a disk, checked to be inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Offset of its first byte.
    pub(super) offset: u64,
    /// Length in bytes, at least a sector.
    pub(super) bytes: u64,
}

impl Extent {
    /// The extent of `bytes` from `sector` on, if they are whole sectors inside the disk.
    ///
    /// # Errors
    /// [`TargetError::Range`].
    pub(super) fn new(sector: u64, bytes: u64, disk_sectors: u64) -> Result<Self, TargetError> {
        let end = sector.checked_add(bytes / SECTOR_SIZE);
        let inside = end.is_some_and(|end| end <= disk_sectors);
        if !inside || bytes == 0 || !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(TargetError::Range { sector, bytes });
        }
        Ok(Self { offset: sector * SECTOR_SIZE, bytes })
    }

    /// As [`Extent::new`], for the data of a request.
    ///
    /// # Errors
    /// [`TargetError::Range`], also for more data than a request may have.
    pub(super) fn of_data(sector: u64, bytes: u64, disk_sectors: u64) -> Result<Self, TargetError> {
        if bytes > MAX_DATA {
            return Err(TargetError::Range { sector, bytes });
        }
        Self::new(sector, bytes, disk_sectors)
    }
}

impl DiskFacts {
    /// Checks that the guest may write.
    ///
    /// # Errors
    /// [`TargetError::ReadOnly`].
    pub(super) fn check_writable(&self) -> Result<(), TargetError> {
        match self.access {
            AccessMode::ReadOnly => Err(TargetError::ReadOnly),
            AccessMode::ReadWrite => Ok(()),
        }
    }
}
