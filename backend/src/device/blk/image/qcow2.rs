//! A qcow2 image, by the imago library.

mod chain;

use std::io;
use std::path::Path;

use imago::FormatAccess;
use imago::file::File;

use super::{BlockSize, Image};
use crate::device::blk::SECTOR_SIZE;
use crate::device::blk::target::AccessMode;
use crate::device::{Gather, Scatter};

/// An open qcow2 image, with the images that it is based on.
pub(super) struct Qcow2Image {
    image: FormatAccess<File>,
    /// Holds a request's data on its way: the library takes slices, which a guest's memory is not.
    buffer: Vec<u8>,
}

impl Qcow2Image {
    pub(super) fn open(path: &Path, mode: AccessMode) -> io::Result<Self> {
        let image = FormatAccess::new(chain::open(path, mode == AccessMode::ReadWrite)?);
        Ok(Self { image, buffer: Vec::new() })
    }

    fn buffer(&mut self, length: usize) {
        self.buffer.clear();
        self.buffer.resize(length, 0);
    }
}

impl Image for Qcow2Image {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn block_size(&self) -> BlockSize {
        BlockSize { logical: SECTOR_SIZE as u32, physical: 4096 }
    }

    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        self.buffer(into.length());
        self.image.read(self.buffer.as_mut_slice(), offset)?;
        into.copy_from(&self.buffer);
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &Gather<'_>) -> io::Result<()> {
        self.buffer(from.length());
        from.copy_to(&mut self.buffer);
        self.image.write(self.buffer.as_slice(), offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.image.discard_to_any(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            self.image.discard_to_zero(offset, length)
        } else {
            self.image.write_zeroes(offset, length)
        }
    }
}
