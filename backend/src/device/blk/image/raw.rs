//! A raw file or block device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::{BlockSize, Image};
use crate::device::blk::SECTOR_SIZE;
use crate::device::blk::target::AccessMode;
use crate::device::{Gather, Scatter, Source};

/// How often the size is looked up: the kernel tells of a file's growth as of any write, and of a block
/// device's not at all.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// An open raw image.
pub(super) struct RawImage {
    file: File,
    size: u64,
    block_size: BlockSize,
    timer: TimerFd,
}

impl RawImage {
    pub(super) fn open(path: &Path, mode: AccessMode) -> io::Result<Self> {
        let write = mode == AccessMode::ReadWrite;
        let mut file = OpenOptions::new().read(true).write(write).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let block_size =
            if is_device { device_block_size(metadata.rdev()) } else { file_block_size(&metadata) };
        Ok(Self { file, size, block_size, timer: timer()? })
    }
}

fn timer() -> io::Result<TimerFd> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    timer.set(Expiration::Interval(LOOK_EVERY.into()), TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// A file can be addressed by sector; what it is written in is the file system's block.
fn file_block_size(metadata: &fs::Metadata) -> BlockSize {
    let logical = SECTOR_SIZE as u32;
    let physical = u32::try_from(metadata.blksize()).unwrap_or(logical);
    let fits = physical.is_power_of_two() && (logical..=65536).contains(&physical);
    BlockSize { logical, physical: if fits { physical } else { logical } }
}

/// As the kernel tells of the device's queue; of a partition, its disk's.
fn device_block_size(device: u64) -> BlockSize {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let attribute = |name: &str| {
        let read = |queue: &str| {
            fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}"))
        };
        let text = read("queue").or_else(|_| read("../queue")).ok()?;
        text.trim().parse::<u32>().ok().filter(|size| size.is_power_of_two())
    };
    let logical = attribute("logical_block_size").unwrap_or(SECTOR_SIZE as u32);
    let physical = attribute("physical_block_size").unwrap_or(logical).max(logical);
    BlockSize { logical, physical }
}

impl Image for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        into.fill(self.file.as_fd(), offset)
    }

    fn write(&mut self, offset: u64, from: &Gather<'_>) -> io::Result<()> {
        from.store(self.file.as_fd(), offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.punch(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if !unmap {
            match self.punch(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, length) {
                // Not every file system can; a hole reads as zeros too.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                outcome => return outcome,
            }
        }
        self.discard(offset, length)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn size_source(&self) -> Option<Source<'_>> {
        Some(Source::readable(self.timer.as_fd()))
    }

    fn refresh(&mut self) -> io::Result<bool> {
        match self.timer.wait() {
            Ok(()) => {}
            // Another of the device's sources was ready.
            Err(nix::Error::EAGAIN) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        let size = self.file.seek(SeekFrom::End(0))?;
        Ok(std::mem::replace(&mut self.size, size) != size)
    }
}

impl RawImage {
    /// Within the file's size, which stays as it is.
    fn punch(&mut self, how: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = (i64::try_from(offset), i64::try_from(length));
        let (Ok(offset), Ok(length)) = (offset, length) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok(fallocate(&self.file, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length)?)
    }
}
