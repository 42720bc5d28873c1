//! Files by what they are, not by their names.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::error::ClaimError;
use crate::device::blk::target::AccessMode;

/// A file or block device, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::device::blk) enum FileId {
    /// A file, by its file system and number there.
    File { device: u64, inode: u64 },
    /// A block device, by its number.
    Device(u64),
}

impl FileId {
    /// Identifies the file or block device with this name.
    ///
    /// # Errors
    /// [`ClaimError::Open`], [`ClaimError::Kind`].
    pub(in crate::device::blk) fn of(path: &Path) -> Result<Self, ClaimError> {
        // Looked at before it is opened: opening a FIFO would wait for its other end, and some
        // devices do something.
        Self::from_metadata(&path.metadata()?)
            .ok_or_else(|| ClaimError::Kind { path: path.to_owned() })
    }

    fn from_metadata(metadata: &Metadata) -> Option<Self> {
        if metadata.is_file() {
            return Some(Self::File { device: metadata.dev(), inode: metadata.ino() });
        }
        metadata.file_type().is_block_device().then(|| Self::Device(metadata.rdev()))
    }
}

/// Opens a file that is to be the one that was looked at.
pub(super) fn open(
    path: &Path,
    id: FileId,
    access: AccessMode,
    flags: i32,
) -> Result<File, ClaimError> {
    let write = access == AccessMode::ReadWrite;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(write).custom_flags(flags).open(path)?;
    if FileId::from_metadata(&file.metadata()?) != Some(id) {
        return Err(ClaimError::Replaced { path: path.to_owned() });
    }
    Ok(file)
}
