//! What a disk is stored in: a raw file or a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::SECTOR_SIZE;
use crate::device::{Buffers, DeviceMemory, Fault};

/// Most data one request may carry; what is longer is an I/O error (SPEC section 7).
const MAX_REQUEST_BYTES: u64 = 16 << 20;

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// `access=r` in the guest's configuration.
    ReadOnly,
    /// `access=rw`.
    ReadWrite,
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
        /// What the kernel said.
        source: io::Error,
    },
    /// It is neither file nor block device.
    #[error("disk target {path:?} is neither a file nor a block device")]
    Kind {
        /// The target.
        path: PathBuf,
    },
    /// It is too small to be a disk.
    #[error("disk target {path:?} holds {bytes} bytes, less than one sector of 512")]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size.
        bytes: u64,
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
    /// The file's own error.
    #[error("disk target: {0}")]
    Io(#[from] io::Error),
    /// The guest's buffers.
    #[error(transparent)]
    Guest(#[from] Fault),
}

/// An open target.
#[derive(Debug)]
pub struct Target {
    file: File,
    mode: AccessMode,
    sectors: u64,
}

impl Target {
    /// Opens a raw file or a block device.
    ///
    /// # Errors
    /// [`TargetError`] names the path and what is wrong with it.
    pub fn open(path: &Path, mode: AccessMode) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Open { path: path.to_owned(), mode, source };
        // Looked at before it is opened: opening a FIFO would wait for its other end.
        let kind = path.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(TargetError::Kind { path: path.to_owned() });
        }
        let write = mode == AccessMode::ReadWrite;
        let mut file = OpenOptions::new().read(true).write(write).open(path).map_err(failed)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let sectors = bytes / SECTOR_SIZE;
        if sectors == 0 {
            return Err(TargetError::TooSmall { path: path.to_owned(), bytes });
        }
        Ok(Self { file, mode, sectors })
    }

    /// Whether the guest may write.
    pub fn mode(&self) -> AccessMode {
        self.mode
    }

    /// Its size in sectors of 512 bytes; what does not fill one is left out.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Reads from `sector` on into the guest's buffers.
    pub(super) fn read<M: DeviceMemory>(
        &mut self,
        sector: u64,
        data: &Buffers,
        memory: &M,
    ) -> Result<(), TargetError> {
        self.seek(sector, data.length())?;
        for bytes in data.writable(memory) {
            bytes?.read_from(&mut self.file)?;
        }
        Ok(())
    }

    /// Writes the guest's buffers from `sector` on.
    pub(super) fn write<M: DeviceMemory>(
        &mut self,
        sector: u64,
        data: &Buffers,
        memory: &M,
    ) -> Result<(), TargetError> {
        if self.mode == AccessMode::ReadOnly {
            return Err(TargetError::ReadOnly);
        }
        self.seek(sector, data.length())?;
        for bytes in data.readable(memory) {
            bytes?.write_to(&mut self.file)?;
        }
        Ok(())
    }

    /// Makes what was written last.
    pub(super) fn flush(&mut self) -> Result<(), TargetError> {
        Ok(self.file.sync_data()?)
    }

    /// Puts the cursor at `sector`, if `bytes` from there on are whole sectors of the disk.
    fn seek(&mut self, sector: u64, bytes: u64) -> Result<(), TargetError> {
        let end = sector.checked_add(bytes / SECTOR_SIZE);
        let inside = end.is_some_and(|end| end <= self.sectors);
        if !inside || bytes % SECTOR_SIZE != 0 || bytes > MAX_REQUEST_BYTES {
            return Err(TargetError::Range { sector, bytes });
        }
        self.file.seek(SeekFrom::Start(sector * SECTOR_SIZE))?;
        Ok(())
    }
}
