//! Raw images: a file or block device with the disk's bytes as they are.

mod ranges;

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use protocol::grant::PAGE_SIZE;

use self::ranges::{Medium, Ranges};
use super::{BlockSize, Image, Storage, format};
use crate::device::blk::SECTOR_SIZE;
use crate::device::blk::claim::{ClaimError, Durability, QueueLimits};
use crate::device::blk::disk_file::{DirectFile, DiskFile};
use crate::device::blk::files::DiskFiles;
use crate::device::blk::target::{AccessMode, Caching, Discard, TargetOptions};
use crate::device::{Gather, Scatter, WriteMode};

/// An open raw image.
pub(super) struct RawImage {
    file: Arc<File>,
    /// The same file, opened for direct I/O where that is configured and supported.
    direct: Option<DirectFile>,
    /// Size of the file; the disk ends with the sector that contains its last byte.
    bytes: u64,
    block_size: BlockSize,
    ranges: Ranges,
    can_discard: bool,
    granularity: u64,
    /// A block device without a cache of its own, past the page cache.
    is_write_through: bool,
    /// Whether data was written that no write made durable, though it had to be.
    is_unsynced: bool,
}

impl RawImage {
    pub(super) fn open(options: &TargetOptions, files: &DiskFiles) -> io::Result<Self> {
        let file = files.target().file().map_err(io::Error::other)?;
        let bytes = (&*file).seek(SeekFrom::End(0))?;
        let metadata = file.metadata()?;
        let limits = files.target().queue_limits();
        let device = metadata.file_type().is_block_device().then_some(&limits);
        let block_size = device.map_or_else(|| file_block_size(&metadata), device_block_size);
        let granularity = device.and_then(|device| device.discard_granularity);
        let direct = match options.caching {
            Caching::PageCache | Caching::WriteThrough => None,
            Caching::Direct => direct_file(files.target().open_direct(), &options.path, &limits)?,
        };
        if direct.is_some() {
            read_nothing_ahead(&file);
        }
        let medium = match device.map(|device| device.write_zeroes_max_bytes) {
            None => Medium::File,
            Some(None | Some(0)) => Medium::Device,
            Some(Some(_)) => Medium::ZeroingDevice,
        };
        // As for writes: what should bypass the page cache must not stay in it alone.
        let write_mode = if direct.is_some() { WriteMode::Through } else { WriteMode::Back };
        let mut ranges = Ranges::of(medium, write_mode);
        let can_discard = options.mode == AccessMode::ReadWrite
            && options.discard == Discard::Allowed
            && ranges.try_discard(&file, bytes);
        if options.format.is_none() {
            warn_of_another_format(options, &file);
        }
        warn_of_odd_size(options, bytes);
        let granularity = granularity.unwrap_or(0).max(block_size.physical.into());
        let is_write_through =
            direct.is_some() && device.is_some_and(|device| device.is_write_through);
        Ok(Self {
            file,
            direct,
            bytes,
            block_size,
            ranges,
            can_discard,
            granularity,
            is_write_through,
            is_unsynced: false,
        })
    }

    /// Runs a transfer with direct I/O where that is configured, and through the page cache if
    /// these buffers or this range are not aligned as the storage requires. The kernel keeps both
    /// views coherent.
    fn transfer(&self, transfer: impl Fn(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
        match self.direct.as_ref().map(|direct| transfer(direct.file.as_fd())) {
            Some(Err(error))
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EFAULT)) => {}
            Some(outcome) => return outcome,
            None => {}
        }
        transfer(self.file.as_fd())
    }

    /// Reads a range whose last sector is partly behind the end of the file; bytes behind the end
    /// are zeros, unless a write added them meanwhile.
    fn read_to_end(&self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        let mut bytes = vec![0; into.length()];
        let mut count = 0;
        while let Some(rest) = bytes.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if offset + (count as u64) < self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.copy_from(&bytes);
        Ok(())
    }
}

/// Warns if a target is served raw although it seems to have another format.
fn warn_of_another_format(options: &TargetOptions, file: &File) {
    let Some(seems) = format::seems_to_be(file) else { return };
    let path = &options.path;
    tracing::warn!(
        "{path:?} is served raw, since its name does not end in .qcow2, but it begins as a \
         {seems} image does. If it is one, {}; if it is a disk of a guest that wrote this itself, \
         format = \"raw\" there ends this warning",
        match seems {
            "qcow2" =>
                "name its format in the configuration file: [domain.NAME.disk.VDEV] format = \
                 \"qcow2\"",
            _ =>
                "convert it: qemu-img convert -O raw FILE NEW; or name it in the configuration \
                 file",
        }
    );
}

/// Warns if the last sector of the file is incomplete.
fn warn_of_odd_size(options: &TargetOptions, bytes: u64) {
    let odd = bytes % SECTOR_SIZE;
    if odd != 0 {
        tracing::warn!(
            "{:?} has {odd} bytes beyond its last whole sector: the disk has a sector for them, \
             filled up with zeros",
            options.path
        );
    }
}

/// The file that was opened for direct I/O; `None` if its file system has none.
fn direct_file(
    opened: Result<File, ClaimError>,
    path: &Path,
    limits: &QueueLimits,
) -> io::Result<Option<DirectFile>> {
    match opened {
        Ok(file) => {
            Ok(Some(DirectFile { file: Arc::new(file), longest: longest_transfer(limits) }))
        }
        Err(ClaimError::Open(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(
                %error,
                "direct-io-safe or cache = \"none\" has no effect: the file system of {path:?} has \
                 no direct I/O"
            );
            Ok(None)
        }
        // The disk must not stay in the page cache because a descriptor was missing for a moment.
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Keeps the kernel from reading pages of the page cache that no request asks for: on a block
/// device, a write past the cache that is under way does not remove what is read meanwhile.
fn read_nothing_ahead(file: &File) {
    if let Err(error) = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM) {
        tracing::warn!(%error, "cannot turn off reading ahead");
    }
}

/// Length in bytes of the longest transfer, of pages that are apart, that the kernel does not
/// divide for this device. io_uring submits longer ones from a thread of the kernel, since the
/// caller could have to wait.
fn longest_transfer(limits: &QueueLimits) -> usize {
    let limit = |count: Option<u64>, unit: u64| {
        // No transfer keeps to a limit of 0.
        count.filter(|count| *count > 0).map(|count| count.saturating_mul(unit))
    };
    let least = [limit(limits.max_sectors_kb, 1024), limit(limits.max_segments, PAGE_SIZE)];
    let least = least.into_iter().flatten().min();
    least.map_or(usize::MAX, |least| whole_blocks(least, device_block_size(limits)))
}

/// `limit` bytes, or less so that parts of an aligned transfer are aligned: to the physical block,
/// as the kernel divides, if the limit permits that, and to the logical block in any case.
fn whole_blocks(limit: u64, BlockSize { logical, physical }: BlockSize) -> usize {
    // All are powers of two.
    let [physical, logical] = [physical, logical].map(|block| u64::from(block).max(PAGE_SIZE));
    let unit = if physical <= limit { physical } else { logical };
    usize::try_from((limit - limit % unit).max(unit)).unwrap_or(usize::MAX)
}

/// A file is addressed by sector; the file system's block is the unit of writes.
fn file_block_size(metadata: &fs::Metadata) -> BlockSize {
    let logical = SECTOR_SIZE as u32;
    let physical = u32::try_from(metadata.blksize()).unwrap_or(logical);
    let fits = physical.is_power_of_two() && (logical..=65536).contains(&physical);
    BlockSize { logical, physical: if fits { physical } else { logical } }
}

fn device_block_size(limits: &QueueLimits) -> BlockSize {
    let size = |size: Option<u64>| {
        let size = size.and_then(|size| u32::try_from(size).ok());
        size.filter(|size| size.is_power_of_two())
    };
    let logical = size(limits.logical_block_size).unwrap_or(SECTOR_SIZE as u32);
    let physical = size(limits.physical_block_size).unwrap_or(logical).max(logical);
    BlockSize { logical, physical }
}

impl Image for RawImage {
    fn size(&self) -> u64 {
        self.bytes.next_multiple_of(SECTOR_SIZE)
    }

    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        let end = offset.saturating_add(into.length() as u64);
        if end > self.bytes && end <= self.size() {
            return self.read_to_end(offset, into);
        }
        self.transfer(|file| into.read(file, offset))
    }

    fn write(&mut self, offset: u64, from: &Gather<'_>, mode: WriteMode) -> io::Result<()> {
        // What bypasses the page cache, for whichever reason, must not stay in it alone.
        let is_cached = |file: BorrowedFd<'_>| file.as_raw_fd() == self.file.as_raw_fd();
        let past_cache = |file: BorrowedFd<'_>| match self.direct.is_some() && is_cached(file) {
            true => WriteMode::Through,
            false => mode,
        };
        match self.transfer(|file| from.write(file, offset, past_cache(file))) {
            // The file system does not support RWF_DSYNC.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.transfer(|file| from.write(file, offset, WriteMode::Back))?;
                self.is_unsynced = true;
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn take_unsynced(&mut self) -> bool {
        // Both are asked.
        std::mem::take(&mut self.is_unsynced) | self.ranges.take_unsynced()
    }

    fn can_discard(&self) -> bool {
        self.can_discard
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.ranges.discard(&self.file, offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, storage: Storage) -> io::Result<u64> {
        self.ranges.write_zeroes(&self.file, offset, length, storage)
    }

    fn granularity(&self) -> u64 {
        self.granularity
    }

    fn file(&self, durability: &Arc<Durability>) -> Option<DiskFile> {
        let file = DiskFile::new(&self.file, self.direct.as_ref(), self.bytes, durability);
        // Without it, all transfers go through the image.
        file.ok()
    }

    fn has_cache(&self) -> bool {
        !self.is_write_through
    }

    fn sized_file(&self) -> Option<(Arc<File>, u64)> {
        Some((Arc::clone(&self.file), self.bytes))
    }

    fn refresh(&mut self) -> io::Result<bool> {
        let bytes = (&*self.file).seek(SeekFrom::End(0))?;
        Ok(std::mem::replace(&mut self.bytes, bytes) != bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_a_file_system_without_direct_io_is_served_through_the_page_cache() {
        let opened = |errno| {
            let error = ClaimError::Open(io::Error::from_raw_os_error(errno));
            let file = direct_file(Err(error), Path::new("/image"), &QueueLimits::default());
            file.map(|file| file.is_some()).map_err(|error| error.to_string())
        };
        assert_eq!(opened(libc::EINVAL), Ok(false));
        for errno in [libc::EMFILE, libc::ENOMEM, libc::EIO] {
            assert!(opened(errno).is_err(), "{errno}");
        }
    }

    #[test]
    fn unaligned_direct_io_falls_back_to_the_page_cache() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let options = TargetOptions::for_test(path.path());
        let files = DiskFiles::claim_here(&options).unwrap();
        let mut image = RawImage::open(&options, &files).unwrap();
        let file = Arc::new(path.reopen().unwrap());
        let direct = file.as_raw_fd();
        image.direct = Some(DirectFile { file, longest: usize::MAX });
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

    #[test]
    fn parts_of_a_transfer_are_whole_blocks() {
        let longest =
            |limit: u64, logical, physical| whole_blocks(limit, BlockSize { logical, physical });
        assert_eq!(longest(255 * 512, 512, 512), 31 * 4096);
        assert_eq!(longest(127 * 4096, 16384, 16384), 31 * 16384);
        assert_eq!(longest(127 * 4096, 512, 65536), 7 * 65536);
        // A limit below the block: of the physical one, and of the logical one.
        assert_eq!(longest(5 * 4096, 512, 65536), 5 * 4096);
        assert_eq!(longest(4096, 65536, 65536), 65536);
        assert_eq!(longest(1, 512, 512), 4096);
        assert!(longest(u64::MAX, 512, 512) > usize::MAX - 4096);
    }
}
