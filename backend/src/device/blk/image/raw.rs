//! A raw file or block device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::{BlockSize, Image};
use crate::device::blk::SECTOR_SIZE;
use crate::device::blk::target::{AccessMode, Caching};
use crate::device::{Gather, Scatter, Source};

/// How often the size is looked up: the kernel tells of a file's growth as of any write, and of a block
/// device's not at all.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// An open raw image.
pub(super) struct RawImage {
    file: File,
    /// The same past the page cache, where that is wanted and possible.
    direct: Option<File>,
    size: u64,
    block_size: BlockSize,
    timer: TimerFd,
}

impl RawImage {
    pub(super) fn open(path: &Path, mode: AccessMode, caching: Caching) -> io::Result<Self> {
        let write = mode == AccessMode::ReadWrite;
        let mut file = OpenOptions::new().read(true).write(write).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let block_size =
            if is_device { device_block_size(metadata.rdev()) } else { file_block_size(&metadata) };
        let direct = match caching {
            Caching::PageCache => None,
            Caching::Direct => open_direct(path, write),
        };
        Ok(Self { file, direct, size, block_size, timer: timer()? })
    }

    /// Moves bytes past the page cache where that is wanted, and through it if these cannot be moved so: buffers or a
    /// range that do not lie as the storage needs. The kernel keeps the two alike.
    fn transfer(&self, transfer: impl Fn(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
        match self.direct.as_ref().map(|direct| transfer(direct.as_fd())) {
            Some(Err(error))
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EFAULT)) => {}
            Some(outcome) => return outcome,
            None => {}
        }
        transfer(self.file.as_fd())
    }
}

fn open_direct(path: &Path, write: bool) -> Option<File> {
    let mut options = OpenOptions::new();
    let direct = options.read(true).write(write).custom_flags(libc::O_DIRECT).open(path);
    direct
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "direct-io-safe changes nothing: the file system of {path:?} knows no direct I/O"
            );
        })
        .ok()
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
        self.transfer(|file| into.fill(file, offset))
    }

    fn write(&mut self, offset: u64, from: &Gather<'_>) -> io::Result<()> {
        self.transfer(|file| from.store(file, offset))
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
        Some(self.direct.as_ref().unwrap_or(&self.file).as_fd())
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_cannot_go_past_the_page_cache_goes_through_it_and_other_errors_stay() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let mut image =
            RawImage::open(path.path(), AccessMode::ReadWrite, Caching::PageCache).unwrap();
        image.direct = Some(path.reopen().unwrap());
        let direct = image.direct.as_ref().unwrap().as_raw_fd();
        let tried = |errno| {
            let tried = RefCell::new(Vec::new());
            let outcome = image.transfer(|file| {
                let is_direct = file.as_raw_fd() == direct;
                tried.borrow_mut().push(is_direct);
                if is_direct { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
            });
            (outcome.map_err(|error| error.raw_os_error().unwrap()), tried.into_inner())
        };
        assert_eq!(tried(libc::EINVAL), (Ok(()), vec![true, false]));
        assert_eq!(tried(libc::EFAULT), (Ok(()), vec![true, false]));
        assert_eq!(tried(libc::EIO), (Err(libc::EIO), vec![true]));
    }
}
