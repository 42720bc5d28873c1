//! The identity of files, independent of their names.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::ClaimError;
use crate::device::blk::target::AccessMode;

/// The identity of a file or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileId {
    /// A file.
    File {
        /// The device of its file system.
        device: u64,
        /// Its inode number.
        inode: u64,
    },
    /// A block device: its device number.
    Device(u64),
}

impl FileId {
    /// Identifies the file or block device with this name.
    ///
    /// # Errors
    /// [`ClaimError::Open`], [`ClaimError::Kind`].
    pub fn of(path: &Path) -> Result<Self, ClaimError> {
        // Check the type before opening: to open a FIFO would wait for its other end, and to open
        // some devices has effects.
        Self::from_metadata(&path.metadata()?)
            .ok_or_else(|| ClaimError::Kind { path: path.to_owned() })
    }

    /// Identifies an open file.
    ///
    /// # Errors
    /// [`ClaimError::Open`], also if it is neither a file nor a block device.
    pub fn of_file(file: &File) -> Result<Self, ClaimError> {
        let id = Self::from_metadata(&file.metadata()?);
        id.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput).into())
    }

    fn from_metadata(metadata: &Metadata) -> Option<Self> {
        if metadata.is_file() {
            return Some(Self::File { device: metadata.dev(), inode: metadata.ino() });
        }
        metadata.file_type().is_block_device().then(|| Self::Device(metadata.rdev()))
    }
}

/// Opens a file, and checks that it is still the file that was identified.
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
