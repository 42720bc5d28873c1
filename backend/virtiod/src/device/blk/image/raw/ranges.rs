//! Deallocation and zeroing of a raw target's storage. Not every storage supports every method, and
//! some refuse one only when it is tried: the next method follows a refused one, and the last is to
//! write zeros.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use uring::block_device;

use super::super::Storage;
use crate::device::WriteMode;

/// The kind of a raw target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// A file.
    File,
    /// A block device without a write-zeroes command: the kernel writes zeros to it.
    Device,
    /// A block device with a write-zeroes command.
    ZeroingDevice,
}

/// A method to change a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum ChangeMethod {
    /// FALLOC_FL_PUNCH_HOLE: the range reads as zeros, its storage is deallocated. For a block
    /// device, this is its own write-zeroes command, or fails.
    PunchHole,
    /// FALLOC_FL_ZERO_RANGE: the range reads as zeros, its storage stays.
    ZeroRange,
    /// BLKDISCARD: the contents of the range are undefined afterwards.
    Discard,
    /// BLKZEROOUT: the range reads as zeros, its storage stays.
    ZeroOut,
    /// Plain writes of zeros.
    Write,
}

/// The kind of a method's refusal.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// This storage never supports the method.
    Always,
    /// The method does not work at present, or not for this range.
    Now,
}

/// Maximum number of zero bytes that one call writes.
const MOST_WRITTEN: u64 = 1 << 20;
/// The zeros for one write.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Changes ranges of a file or block device.
#[derive(Debug)]
pub(super) struct Ranges {
    medium: Medium,
    /// Whether written zeros may stay in the page cache.
    write_mode: WriteMode,
    /// Whether zeros were written that must not.
    is_unsynced: bool,
    /// The methods that are not tried any more, as bits.
    refused: u8,
}

impl Ranges {
    /// A state in which no method was refused yet.
    pub(super) fn of(medium: Medium, write_mode: WriteMode) -> Self {
        Self { medium, write_mode, is_unsynced: false, refused: 0 }
    }

    /// Whether storage can be deallocated. Tries it where no data is lost: behind the end of a file
    /// of `size` bytes, or with no bytes of a device, which refuses that for another reason.
    pub(super) fn try_discard(&mut self, file: &File, size: u64) -> bool {
        let (offset, length) = match self.medium {
            Medium::File => (size.next_multiple_of(65536), 65536),
            Medium::Device | Medium::ZeroingDevice => (0, 0),
        };
        let way = self.discard_way();
        let refusal = apply(way, file, offset, length).err().as_ref().and_then(refusal);
        if refusal == Some(Refusal::Always) {
            self.refuse(way);
        }
        !self.is_refused(way)
    }

    /// Deallocates storage, if the storage supports that.
    ///
    /// # Errors
    /// The error of the storage.
    pub(super) fn discard(&mut self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let done = self.try_in_turn(&[self.discard_way()], file, offset, length);
        done.map(drop)
    }

    /// Zeroes a range, or as much of it as one call writes. Returns the number of zeroed bytes.
    ///
    /// # Errors
    /// The error of the storage.
    pub(super) fn write_zeroes(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        storage: Storage,
    ) -> io::Result<u64> {
        use ChangeMethod::{PunchHole, Write, ZeroOut, ZeroRange};
        let ways: &[ChangeMethod] = match (self.medium, storage) {
            (Medium::File, Storage::GiveBack) => &[PunchHole, ZeroRange, Write],
            (Medium::File, Storage::Keep) => &[ZeroRange, Write],
            (_, Storage::GiveBack) => &[PunchHole, ZeroOut, Write],
            (_, Storage::Keep) => &[ZeroOut, Write],
        };
        match self.try_in_turn(ways, file, offset, length)? {
            ChangeResult::Done(bytes) => Ok(bytes),
            ChangeResult::Refused => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether zeros are in the page cache that must not stay there, since the last call.
    pub(super) fn take_unsynced(&mut self) -> bool {
        std::mem::take(&mut self.is_unsynced)
    }

    fn discard_way(&self) -> ChangeMethod {
        match self.medium {
            Medium::File => ChangeMethod::PunchHole,
            Medium::Device | Medium::ZeroingDevice => ChangeMethod::Discard,
        }
    }

    fn try_in_turn(
        &mut self,
        ways: &[ChangeMethod],
        file: &File,
        offset: u64,
        length: u64,
    ) -> io::Result<ChangeResult> {
        for way in ways {
            if self.is_refused(*way) {
                continue;
            }
            let length = self.length_at_once(*way, length);
            match apply(*way, file, offset, length) {
                Ok(()) => {
                    self.is_unsynced |=
                        *way == ChangeMethod::Write && self.write_mode == WriteMode::Through;
                    return Ok(ChangeResult::Done(length));
                }
                // No other method is left.
                Err(error) if *way == ChangeMethod::Write => return Err(error),
                Err(error) if self.is_final(*way, &error) => return Err(error),
                Err(error) => match refusal(&error) {
                    Some(Refusal::Always) => self.refuse(*way),
                    Some(Refusal::Now) => {}
                    None => return Err(error),
                },
            }
        }
        Ok(ChangeResult::Refused)
    }

    /// Number of bytes to change at once: a part, if zeros are written.
    fn length_at_once(&self, way: ChangeMethod, length: u64) -> u64 {
        match (way, self.medium) {
            (ChangeMethod::Write, _) | (ChangeMethod::ZeroOut, Medium::Device) => {
                length.min(MOST_WRITTEN)
            }
            _ => length,
        }
    }

    /// Whether an error is the storage's although another method is left: zeros in the page cache
    /// of a full device would find no space later, when nobody waits for them. A discard needs no
    /// space.
    fn is_final(&self, way: ChangeMethod, error: &io::Error) -> bool {
        let is_full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        self.medium != Medium::File && way != ChangeMethod::Discard && is_full
    }

    fn is_refused(&self, way: ChangeMethod) -> bool {
        self.refused & 1 << way as u8 != 0
    }

    fn refuse(&mut self, way: ChangeMethod) {
        self.refused |= 1 << way as u8;
    }
}

/// The outcome of several methods.
#[derive(Debug, PartialEq, Eq)]
enum ChangeResult {
    /// This number of bytes was changed.
    Done(u64),
    Refused,
}

/// The refusal that an error means; `None` if it is an error of the storage.
fn refusal(error: &io::Error) -> Option<Refusal> {
    match error.raw_os_error()? {
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV | libc::ENXIO => {
            Some(Refusal::Always)
        }
        libc::EINVAL
        | libc::ENOSPC
        | libc::EDQUOT
        | libc::EPERM
        | libc::EACCES
        | libc::EBUSY
        | libc::ETXTBSY
        | libc::EFBIG
        // The device's driver has just noticed that the device cannot do it.
        | libc::EREMOTEIO => Some(Refusal::Now),
        _ => None,
    }
}

fn apply(way: ChangeMethod, file: &File, offset: u64, length: u64) -> io::Result<()> {
    match way {
        ChangeMethod::PunchHole => {
            change(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, length)
        }
        ChangeMethod::ZeroRange => {
            change(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, length)
        }
        ChangeMethod::Discard => block_device::discard(file.as_fd(), offset, length),
        ChangeMethod::ZeroOut => block_device::zero_out(file.as_fd(), offset, length),
        ChangeMethod::Write => write_zeros(file, offset, length),
    }
}

/// Changes a range with fallocate(), without changing the file's size.
fn change(file: &File, how: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    loop {
        match fallocate(file, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Err(nix::Error::EINTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

fn write_zeros(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let (mut at, mut left) = (offset, length);
    while left > 0 {
        let count = left.min(ZEROS.len() as u64);
        file.write_all_at(ZEROS.get(..count as usize).unwrap_or(&ZEROS), at)?;
        (at, left) = (at + count, left - count);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use tempfile::NamedTempFile;

    use super::*;

    const SIZE: usize = 1 << 20;

    fn full() -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![0xaa; SIZE]).unwrap();
        file.as_file().sync_all().unwrap();
        file
    }

    fn opened(file: &NamedTempFile) -> File {
        fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap()
    }

    /// Zeroes the middle of a file with these methods refused; returns the bytes of storage that
    /// are left.
    fn zero_middle(storage: Storage, refused: &[ChangeMethod]) -> u64 {
        let file = full();
        let mut ranges = Ranges::of(Medium::File, WriteMode::Back);
        refused.iter().for_each(|way| ranges.refuse(*way));
        let start = 65536 + 512;
        let zeroed = ranges.write_zeroes(&opened(&file), start, 524_288, storage).unwrap();
        assert_eq!(zeroed, 524_288);
        let bytes = fs::read(file.path()).unwrap();
        let (start, end) = (start as usize, start as usize + 524_288);
        assert!(bytes[start..end].iter().all(|byte| *byte == 0));
        assert!(bytes[..start].iter().chain(&bytes[end..]).all(|byte| *byte == 0xaa));
        assert_eq!(bytes.len(), SIZE);
        file.as_file().sync_all().unwrap();
        file.as_file().metadata().unwrap().blocks() * 512
    }

    #[test]
    fn write_zeroes_keeps_storage_with_every_method() {
        for refused in [
            &[][..],
            &[ChangeMethod::ZeroRange],
            &[ChangeMethod::ZeroRange, ChangeMethod::PunchHole],
        ] {
            assert!(zero_middle(Storage::Keep, refused) >= SIZE as u64, "{refused:?}");
        }
    }

    #[test]
    fn written_zeros_need_a_sync_where_others_bypass_the_page_cache() {
        for (mode, method, needs_sync) in [
            (WriteMode::Through, ChangeMethod::ZeroRange, true),
            (WriteMode::Through, ChangeMethod::Discard, false),
            (WriteMode::Back, ChangeMethod::ZeroRange, false),
        ] {
            let file = full();
            let mut ranges = Ranges::of(Medium::File, mode);
            ranges.refuse(method);
            ranges.write_zeroes(&opened(&file), 4096, 4096, Storage::Keep).unwrap();
            // Some file systems, such as tmpfs, cannot zero a range.
            let wrote = ranges.is_refused(ChangeMethod::ZeroRange);
            let needs_sync = needs_sync || (wrote && mode == WriteMode::Through);
            assert_eq!(ranges.take_unsynced(), needs_sync, "{mode:?} without {method:?}");
            assert!(!ranges.take_unsynced(), "once");
        }
    }

    #[test]
    fn write_zeroes_deallocates_storage_where_supported() {
        assert!(zero_middle(Storage::GiveBack, &[]) < SIZE as u64);
        for refused in
            [&[ChangeMethod::PunchHole][..], &[ChangeMethod::PunchHole, ChangeMethod::ZeroRange]]
        {
            assert!(zero_middle(Storage::GiveBack, refused) >= SIZE as u64, "{refused:?}");
        }
    }

    #[test]
    fn refused_discard_succeeds_and_is_not_tried_again() {
        let file = full();
        // A file is no block device, so every kernel refuses this.
        let mut ranges = Ranges::of(Medium::Device, WriteMode::Back);
        assert!(!ranges.try_discard(&opened(&file), SIZE as u64));
        ranges.discard(&opened(&file), 0, 4096).unwrap();
        assert!(ranges.is_refused(ChangeMethod::Discard));
        assert!(fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0xaa));
        // Zeroing still works.
        ranges.refuse(ChangeMethod::PunchHole);
        ranges.write_zeroes(&opened(&file), 0, 4096, Storage::GiveBack).unwrap();
        assert_eq!(fs::read(file.path()).unwrap()[..4097], [&[0; 4096][..], &[0xaa]].concat());
    }

    #[test]
    fn one_call_writes_a_limited_number_of_zeros() {
        let file = full();
        file.as_file().set_len(3 << 20).unwrap();
        let mut ranges = Ranges::of(Medium::File, WriteMode::Back);
        let zero = |ranges: &mut Ranges| {
            ranges.write_zeroes(&opened(&file), 4096, 2 << 20, Storage::Keep).unwrap()
        };
        ranges.refuse(ChangeMethod::ZeroRange);
        assert_eq!(zero(&mut ranges), MOST_WRITTEN);
        let at_once = |medium| {
            Ranges::of(medium, WriteMode::Back).length_at_once(ChangeMethod::ZeroOut, 2 << 20)
        };
        assert_eq!(at_once(Medium::Device), MOST_WRITTEN);
        assert_eq!(at_once(Medium::ZeroingDevice), 2 << 20);
    }

    #[test]
    fn full_device_is_no_reason_for_another_method() {
        let is_final = |medium, errno| {
            let ranges = Ranges::of(medium, WriteMode::Back);
            ranges.is_final(ChangeMethod::ZeroOut, &io::Error::from_raw_os_error(errno))
        };
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            assert!(is_final(Medium::Device, errno) && is_final(Medium::ZeroingDevice, errno));
            assert!(!is_final(Medium::File, errno));
        }
        assert!(!is_final(Medium::Device, libc::EINVAL));
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let device = Ranges::of(Medium::Device, WriteMode::Back);
        assert!(!device.is_final(ChangeMethod::Discard, &full));
    }

    #[test]
    fn trial_discard_changes_nothing() {
        let file = full();
        let before = file.as_file().metadata().unwrap().blocks();
        Ranges::of(Medium::File, WriteMode::Back).try_discard(&opened(&file), SIZE as u64);
        assert_eq!(file.as_file().metadata().unwrap().blocks(), before);
        assert!(fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0xaa));
        assert_eq!(file.as_file().metadata().unwrap().len(), SIZE as u64);
    }

    #[test]
    fn storage_errors_are_not_refusals() {
        let of = |errno| refusal(&io::Error::from_raw_os_error(errno));
        for errno in [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOTTY] {
            assert_eq!(of(errno), Some(Refusal::Always), "{errno}");
        }
        for errno in [libc::EINVAL, libc::ENOSPC, libc::EPERM, libc::EBUSY, libc::EREMOTEIO] {
            assert_eq!(of(errno), Some(Refusal::Now), "{errno}");
        }
        for errno in [libc::EIO, libc::EBADF, libc::EROFS, libc::ENODATA] {
            assert_eq!(of(errno), None, "{errno}");
        }
    }
}
