//! What a disk is stored in, whatever its format.

mod qcow2;
mod raw;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::target::{AccessMode, Caching};
use crate::device::{Gather, Scatter, Source};

/// Block sizes that an image would like requests to have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Smallest unit that can be addressed; 512 or a power of two above.
    pub logical: u32,
    /// Smallest unit that is written without being read first; a multiple of the logical.
    pub physical: u32,
}

/// An open image. Ranges that it is given are inside the size it told.
pub trait Image: Send {
    /// Bytes.
    fn size(&self) -> u64;

    /// Preferred sizes.
    fn block_size(&self) -> BlockSize;

    /// Fills the buffers from `offset` on.
    ///
    /// # Errors
    /// The storage's.
    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()>;

    /// Writes the buffers from `offset` on.
    ///
    /// # Errors
    /// The storage's.
    fn write(&mut self, offset: u64, from: &Gather<'_>) -> io::Result<()>;

    /// Makes what was written last.
    ///
    /// # Errors
    /// The storage's.
    fn flush(&mut self) -> io::Result<()>;

    /// Gives the storage of a range back; what it then reads as is not defined.
    ///
    /// # Errors
    /// The storage's.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeros; `unmap`: its storage may be given back.
    ///
    /// # Errors
    /// The storage's.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;

    /// A file that has the image's bytes at the same offsets, if there is one: for transfers that are done together.
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

/// Opens an image: qcow2 if the file's name ends in `.qcow2`, raw otherwise. Never by its content,
/// which the guest writes: a raw disk must not become another format because the guest made it look
/// so.
///
/// # Errors
/// The storage's, or the format's.
pub(super) fn open(path: &Path, mode: AccessMode, caching: Caching) -> io::Result<Box<dyn Image>> {
    if path.extension().is_some_and(|extension| extension == "qcow2") {
        if caching == Caching::Direct {
            tracing::info!("direct-io-safe changes nothing for a qcow2 image");
        }
        return Ok(Box::new(qcow2::Qcow2Image::open(path, mode)?));
    }
    Ok(Box::new(raw::RawImage::open(path, mode, caching)?))
}
