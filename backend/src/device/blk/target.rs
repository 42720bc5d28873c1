//! A disk's target: an image, with the checks that every request must pass.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::SECTOR_SIZE;
use super::image::{self, BlockSize, Image};
use super::request::{MAX_DATA, Operation};
use crate::device::{Buffers, DeviceMemory, Fault, Gather, Moved, Scatter, Source, TransferBatch};

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// `access=r` in the guest's configuration.
    ReadOnly,
    /// `access=rw`.
    ReadWrite,
}

/// How a raw target's bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Through this domain's page cache: what was read once is read from memory.
    PageCache,
    /// `direct-io-safe` in the guest's configuration: past it, where the storage can. The guest has a page cache of
    /// its own, and this domain little memory.
    Direct,
}

/// Why a target cannot be used, or a request on it fails.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It cannot be opened.
    #[error("cannot open disk target {path:?} {mode}: {source}", mode = match .mode {
        AccessMode::ReadOnly => "for reading",
        AccessMode::ReadWrite => "for reading and writing",
    })]
    Open {
        /// The target.
        path: PathBuf,
        /// How it was opened.
        mode: AccessMode,
        /// What the kernel, or the image format, said.
        source: io::Error,
    },
    /// It is neither file nor block device.
    #[error("disk target {path:?} is neither a file nor a block device")]
    Kind {
        /// The target.
        path: PathBuf,
    },
    /// It is too small to be a disk.
    #[error("disk target {path:?} holds {bytes} bytes, less than one block of {block}")]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Its logical block size.
        block: u32,
    },
    /// The request lies outside the disk, is not in whole sectors, or is too long.
    #[error("{bytes} bytes at sector {sector} are not whole sectors of the disk")]
    Range {
        /// First sector.
        sector: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The request is of a type that is not supported.
    #[error("unsupported request type")]
    Unsupported,
    /// A write to a read-only disk.
    #[error("write to a read-only disk")]
    ReadOnly,
    /// The image's own error.
    #[error("disk target: {0}")]
    Io(#[from] io::Error),
    /// The guest's buffers.
    #[error(transparent)]
    Guest(#[from] Fault),
}

/// An open target.
pub struct Target {
    image: Box<dyn Image>,
    mode: AccessMode,
}

/// A part of a disk, checked to be inside.
#[derive(Clone, Copy)]
struct Extent {
    offset: u64,
    bytes: u64,
}

impl Target {
    /// Opens a file or a block device.
    ///
    /// # Errors
    /// [`TargetError`] names the path and what is wrong with it.
    pub fn open(path: &Path, mode: AccessMode, caching: Caching) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Open { path: path.to_owned(), mode, source };
        // Looked at before it is opened: opening a FIFO would wait for its other end.
        let kind = path.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(TargetError::Kind { path: path.to_owned() });
        }
        let image = image::open(path, mode, caching).map_err(failed)?;
        let target = Self { image, mode };
        let (bytes, block) = (target.image.size(), target.block_size().logical);
        if bytes < u64::from(block) {
            return Err(TargetError::TooSmall { path: path.to_owned(), bytes, block });
        }
        Ok(target)
    }

    /// Whether the guest may write.
    pub fn mode(&self) -> AccessMode {
        self.mode
    }

    /// Its size in sectors of 512 bytes, in whole logical blocks.
    pub fn sectors(&self) -> u64 {
        let block = u64::from(self.block_size().logical);
        self.image.size() / block * block / SECTOR_SIZE
    }

    /// Preferred sizes.
    pub fn block_size(&self) -> BlockSize {
        self.image.block_size()
    }

    /// What becomes ready when the size may have changed.
    pub fn size_source(&self) -> Option<Source<'_>> {
        self.image.size_source()
    }

    /// Looks the size up again; whether it changed.
    ///
    /// # Errors
    /// [`TargetError::Io`].
    pub fn refresh(&mut self) -> Result<bool, TargetError> {
        Ok(self.image.refresh()?)
    }

    /// Whether transfers can be done together.
    pub(super) fn has_file(&self) -> bool {
        self.image.file().is_some()
    }

    /// Adds what a read or write moves to a batch. Other operations are not for a batch, nor are buffers in too many
    /// pieces: these are left out.
    ///
    /// # Errors
    /// As of [`Target::read`] and [`Target::write`], but for the image's own.
    pub(super) fn add<'m, M: DeviceMemory>(
        &self,
        number: usize,
        operation: &Operation<'_>,
        memory: &'m M,
        batch: &mut TransferBatch<'_, 'm>,
    ) -> Result<(), TargetError> {
        match operation {
            Operation::Read { sector, data } => {
                let (extent, mut into) = (self.data_extent(*sector, *data)?, Scatter::default());
                for buffer in data.writable(memory) {
                    if into.push(buffer?).is_err() {
                        return Ok(());
                    }
                }
                batch.fill(number, extent.offset, &into);
            }
            Operation::Write { sector, data } => {
                self.check_writable()?;
                let (extent, mut from) = (self.data_extent(*sector, *data)?, Gather::default());
                for buffer in data.readable(memory) {
                    if from.push(buffer?).is_err() {
                        return Ok(());
                    }
                }
                batch.store(number, extent.offset, &from);
            }
            _ => {}
        }
        Ok(())
    }

    /// Does a batch, as far as it can.
    pub(super) fn run(&self, batch: TransferBatch<'_, '_>) -> Moved {
        self.image.file().map(|file| batch.run(file)).unwrap_or_default()
    }

    /// Reads from `sector` on into the guest's buffers.
    pub(super) fn read<M: DeviceMemory>(
        &mut self,
        sector: u64,
        data: Buffers<'_>,
        memory: &M,
    ) -> Result<(), TargetError> {
        let mut offset = self.data_extent(sector, data)?.offset;
        let mut scatter = Scatter::default();
        for buffer in data.writable(memory) {
            if let Err(buffer) = scatter.push(buffer?) {
                self.image.read(offset, &scatter)?;
                offset += scatter.length() as u64;
                scatter = Scatter::default();
                // There is room in what is empty.
                drop(scatter.push(buffer));
            }
        }
        Ok(self.image.read(offset, &scatter)?)
    }

    /// Writes the guest's buffers from `sector` on.
    pub(super) fn write<M: DeviceMemory>(
        &mut self,
        sector: u64,
        data: Buffers<'_>,
        memory: &M,
    ) -> Result<(), TargetError> {
        self.check_writable()?;
        let mut offset = self.data_extent(sector, data)?.offset;
        // A request that is malformed in its last buffer changes nothing of the disk.
        data.readable(memory).try_for_each(|buffer| buffer.map(drop))?;
        let mut gather = Gather::default();
        for buffer in data.readable(memory) {
            if let Err(buffer) = gather.push(buffer?) {
                self.image.write(offset, &gather)?;
                offset += gather.length() as u64;
                gather = Gather::default();
                // There is room in what is empty.
                drop(gather.push(buffer));
            }
        }
        Ok(self.image.write(offset, &gather)?)
    }

    /// Makes what was written last.
    pub(super) fn flush(&mut self) -> Result<(), TargetError> {
        Ok(self.image.flush()?)
    }

    /// Gives the storage of a range back.
    pub(super) fn discard(&mut self, sector: u64, sectors: u32) -> Result<(), TargetError> {
        self.check_writable()?;
        let extent = self.extent(sector, u64::from(sectors) * SECTOR_SIZE)?;
        Ok(self.image.discard(extent.offset, extent.bytes)?)
    }

    /// Makes a range read as zeros.
    pub(super) fn write_zeroes(
        &mut self,
        sector: u64,
        sectors: u32,
        unmap: bool,
    ) -> Result<(), TargetError> {
        self.check_writable()?;
        let extent = self.extent(sector, u64::from(sectors) * SECTOR_SIZE)?;
        Ok(self.image.write_zeroes(extent.offset, extent.bytes, unmap)?)
    }

    fn check_writable(&self) -> Result<(), TargetError> {
        match self.mode {
            AccessMode::ReadOnly => Err(TargetError::ReadOnly),
            AccessMode::ReadWrite => Ok(()),
        }
    }

    fn data_extent(&self, sector: u64, data: Buffers<'_>) -> Result<Extent, TargetError> {
        let bytes = data.length();
        if bytes > MAX_DATA {
            return Err(TargetError::Range { sector, bytes });
        }
        self.extent(sector, bytes)
    }

    /// `bytes` from `sector` on, if they are whole sectors of the disk.
    fn extent(&self, sector: u64, bytes: u64) -> Result<Extent, TargetError> {
        let end = sector.checked_add(bytes / SECTOR_SIZE);
        let inside = end.is_some_and(|end| end <= self.sectors());
        if !inside || bytes == 0 || !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(TargetError::Range { sector, bytes });
        }
        Ok(Extent { offset: sector * SECTOR_SIZE, bytes })
    }
}
