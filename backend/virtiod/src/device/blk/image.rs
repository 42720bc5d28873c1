//! What a disk is stored in, whatever its format.

mod format;
mod qcow2;
mod raw;

use std::io;
use std::os::fd::BorrowedFd;

pub use self::format::ImageFormat;
use super::files::DiskFiles;
use super::progress::{Deadline, Progress};
use super::target::TargetOptions;
use crate::device::{Gather, Scatter, Source, WriteMode};

/// Block sizes that an image would like requests to have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Smallest unit that can be addressed; 512 or a power of two above.
    pub logical: u32,
    /// Smallest unit that is written without being read first; a multiple of the logical.
    pub physical: u32,
}

/// Whether what is zeroed or discarded keeps its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// It stays as large as it is: a disk whose storage was set aside for it keeps that.
    Keep,
    /// It may be given back.
    GiveBack,
}

/// An open image. Ranges that it is given are inside the size it told.
pub trait Image: Send {
    /// Bytes, in whole sectors.
    fn size(&self) -> u64;

    /// Preferred sizes.
    fn block_size(&self) -> BlockSize;

    /// Fills the buffers from `offset` on.
    ///
    /// # Errors
    /// The storage's.
    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()>;

    /// Does a part of what must be done before the image is written first.
    ///
    /// # Errors
    /// Why it must not be written.
    fn prepare_to_write(&mut self, deadline: &Deadline) -> io::Result<Progress> {
        let _ = deadline;
        Ok(Progress::Done)
    }

    /// Writes the buffers from `offset` on.
    ///
    /// # Errors
    /// The storage's.
    fn write(&mut self, offset: u64, from: &Gather<'_>, mode: WriteMode) -> io::Result<()>;

    /// Writes to its file what changes left in memory without which the file is not sound, if there
    /// is any: this program may be killed. It may work when it is tried again.
    ///
    /// # Errors
    /// The storage's.
    fn finish_batch(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes to its file what is kept in memory, so that whoever opens the file finds it. It may
    /// work when it is tried again.
    ///
    /// # Errors
    /// The storage's.
    fn write_back(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Makes what was written back last. What was not made to last by a call that failed may be
    /// lost, whatever a later call says: the kernel does not keep it to try again.
    ///
    /// # Errors
    /// The storage's.
    fn sync(&mut self) -> io::Result<()>;

    /// Whether a discard gives storage back, as far as a try shows.
    fn can_discard(&self) -> bool;

    /// Gives the storage of a range back; what it then reads as is not defined. Storage that does
    /// not take it is no error.
    ///
    /// # Errors
    /// The storage's.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeros, or the beginning of it, where zeros have to be written: that
    /// takes time. Gives the bytes that are zeroed.
    ///
    /// # Errors
    /// The storage's.
    fn write_zeroes(&mut self, offset: u64, length: u64, storage: Storage) -> io::Result<u64>;

    /// Bytes at multiples of which a range is best divided.
    fn granularity(&self) -> u64;

    /// A file that has the image's bytes at the same offsets, if there is one: for transfers that
    /// are done together.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What becomes ready when the size may have changed.
    fn size_source(&self) -> Option<Source<'_>> {
        None
    }

    /// Looks the size up again; whether it changed.
    ///
    /// # Errors
    /// The storage's.
    fn refresh(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// Opens the image in a file that was claimed, of the format that was named or else that its name
/// says.
///
/// # Errors
/// The storage's, or the format's.
pub(super) fn open(options: &TargetOptions, files: &mut DiskFiles) -> io::Result<Box<dyn Image>> {
    match options.format() {
        ImageFormat::Qcow2 => Ok(Box::new(qcow2::Qcow2Image::open(options, files)?)),
        ImageFormat::Raw => Ok(Box::new(raw::RawImage::open(options, files)?)),
    }
}
