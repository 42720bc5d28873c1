//! Disk images, whatever their format.

mod format;
mod qcow2;
mod raw;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

pub use self::format::ImageFormat;
pub use self::qcow2::{backing_of, beside, no_backing};
use super::claim::Durability;
use super::disk_file::DiskFile;
use super::files::DiskFiles;
use super::progress::{Deadline, Progress};
use super::target::{AccessMode, TargetOptions};
use crate::device::{Gather, Scatter, WriteMode};

/// Preferred block sizes of an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Smallest addressable unit: 512, or a larger power of two.
    pub logical: u32,
    /// Smallest unit that is written without being read first; a multiple of `logical`.
    pub physical: u32,
}

/// Whether a zeroed range keeps its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The range stays allocated: a preallocated disk stays preallocated.
    Keep,
    /// The storage may be deallocated.
    GiveBack,
}

/// A transfer that lies in one piece of a file, until this is dropped.
pub struct Located {
    pub(super) file: Arc<DiskFile>,
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// The image that keeps it there, and the number of the transfer.
    image: Arc<dyn InPlace>,
    user: u64,
}

impl Located {
    /// `user`: the number that [`InPlace::leave`] gets.
    pub(super) fn new(
        file: Arc<DiskFile>,
        offset: u64,
        image: Arc<dyn InPlace>,
        user: u64,
    ) -> Self {
        Self { file, offset, image, user }
    }
}

impl Drop for Located {
    fn drop(&mut self) {
        self.image.leave(self.user);
    }
}

/// Transfers of an image beside its worker, by several threads at once.
pub trait InPlace: fmt::Debug + Send + Sync {
    /// Reads into the buffer from `offset` on; returns whether it did. If not, the worker has to
    /// read.
    ///
    /// # Errors
    /// The error of the storage.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<bool>;

    /// Writes the buffer from `offset` on, if that changes no metadata; returns whether it did. If
    /// not, the worker has to write.
    ///
    /// # Errors
    /// The error of the storage.
    fn write(&self, offset: u64, from: &mut [u8], mode: WriteMode) -> io::Result<bool>;

    /// Finds the file with the bytes of a range, without waiting for storage; `None` if that is not
    /// known, or if the transfer is not one piece of one file.
    fn locate(self: Arc<Self>, range: Range<u64>, access: AccessMode) -> Option<Located>;

    /// Notes the end of a transfer that was located.
    fn leave(&self, user: u64);
}

/// An open image. Callers pass only ranges inside [`Image::size`].
pub trait Image: Send {
    /// Size in bytes, a multiple of the sector size.
    fn size(&self) -> u64;

    /// Preferred block sizes.
    fn block_size(&self) -> BlockSize;

    /// Reads into the buffers from `offset` on.
    ///
    /// # Errors
    /// The error of the storage.
    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()>;

    /// Does a part of the work that must precede the first write, as the check of the image.
    ///
    /// # Errors
    /// The reason for which the image must not be written.
    fn prepare_to_write(&mut self, deadline: &Deadline) -> io::Result<Progress> {
        let _ = deadline;
        Ok(Progress::Done)
    }

    /// Writes the buffers to the image from `offset` on.
    ///
    /// # Errors
    /// The error of the storage.
    fn write(&mut self, offset: u64, from: &Gather<'_>, mode: WriteMode) -> io::Result<()>;

    /// Writes the pending metadata without which the file is not consistent, if there is any: this
    /// program may be killed at any time. After an error the caller may try again.
    ///
    /// # Errors
    /// The error of the storage.
    fn finish_batch(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes all cached data and metadata to the file, so that whoever opens the file finds it.
    /// After an error the caller may try again.
    ///
    /// # Errors
    /// The error of the storage.
    fn write_back(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Makes the data that was written back durable. After an error that data may be lost, whatever
    /// a later call returns: the kernel does not keep it for another attempt.
    ///
    /// # Errors
    /// The error of the storage.
    fn sync(&mut self) -> io::Result<()>;

    /// Whether a sync has to follow, since something was written that no flush of the guest's may
    /// make durable; only the first call says so.
    fn take_unsynced(&mut self) -> bool {
        false
    }

    /// Whether a discard deallocates storage, as far as an attempt shows.
    fn can_discard(&self) -> bool;

    /// Deallocates the storage of a range, whose contents are undefined afterwards. It is no error
    /// if the storage does not support this.
    ///
    /// # Errors
    /// The error of the storage.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Zeroes a range, or only its beginning where zeros have to be written, which takes time.
    /// Returns the number of zeroed bytes.
    ///
    /// # Errors
    /// The error of the storage.
    fn write_zeroes(&mut self, offset: u64, length: u64, storage: Storage) -> io::Result<u64>;

    /// Alignment in bytes at which a range is best divided.
    fn granularity(&self) -> u64;

    /// A file that has the image's bytes at the same offsets, if there is one, for transfers
    /// without the image. `durability`: that of the file.
    fn file(&self, durability: &Arc<Durability>) -> Option<DiskFile> {
        let _ = durability;
        None
    }

    /// Access to the image for other threads, if it permits that.
    fn in_place(&self) -> Option<Arc<dyn InPlace>> {
        None
    }

    /// The file whose sync makes durable what [`Image::finish_batch`] has written and what was
    /// written in place. `durability`: that of the file.
    fn sync_file(&self, durability: &Arc<Durability>) -> Option<DiskFile> {
        let _ = durability;
        None
    }

    /// Whether written data may be lost with the host's power until it is flushed.
    fn has_cache(&self) -> bool {
        true
    }

    /// The file or block device whose size is the disk's, with its bytes as they are known; `None`
    /// if the image itself says its size.
    fn sized_file(&self) -> Option<(Arc<File>, u64)> {
        None
    }

    /// Reads the size of the file again; returns whether it changed, also within the last sector.
    ///
    /// # Errors
    /// The error of the storage.
    fn refresh(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// Opens the image in a claimed file, in the configured format or else the one that the file's name
/// indicates.
///
/// # Errors
/// The error of the storage, or the reason for which the format's driver refuses the image.
pub(super) fn open(options: &TargetOptions, files: &mut DiskFiles) -> io::Result<Box<dyn Image>> {
    match options.format() {
        ImageFormat::Qcow2 => Ok(Box::new(qcow2::Qcow2Image::open(options, files)?)),
        ImageFormat::Raw => Ok(Box::new(raw::RawImage::open(options, files)?)),
    }
}
