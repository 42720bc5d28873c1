//! Test support: uses an image as a guest would, for images that may be malformed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::super::claim::{Owner, Sharing};
use super::super::image::{ImageFormat, Storage};
use super::super::progress::{Deadline, Progress};
use super::{AccessMode, Caching, Discard, Target, TargetError, TargetOptions};
use crate::Causes;
use crate::device::{Gather, Scatter, WriteMode};

/// Stack size in bytes of the thread that uses the image: small, so that endless or deep recursion
/// overflows it soon.
const STACK: usize = 256 << 10;
/// Number of operations on an image.
const OPERATIONS: usize = 24;
/// Maximum bytes of an operation.
const MOST_BYTES: u64 = 80 << 10;

/// The outcome for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exercised {
    /// The target refused the image at opening.
    Refused,
    /// The image was read and written.
    Used,
}

/// Opens a qcow2 image as a disk's target, reads and writes it at random locations, and opens it
/// again.
///
/// # Panics
/// If the daemon's code panics, if written data is not read again, or if a sound image is no longer
/// sound. A stack overflow aborts the process.
///
/// # Errors
/// The kernel's, if it creates no file or thread.
pub fn exercise_qcow2(image: &[u8]) -> io::Result<Exercised> {
    let (image, seed) =
        (image.to_vec(), image.iter().fold(1, |sum, byte| mix(sum ^ u64::from(*byte))));
    let body = move || exercise(&image, seed);
    let outcome = thread::Builder::new().stack_size(STACK).spawn(body)?.join();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn exercise(image: &[u8], seed: u64) -> io::Result<Exercised> {
    let file = fs::File::from(memfd_create("image", MFdFlags::MFD_CLOEXEC)?);
    io::Write::write_all(&mut &file, image)?;
    let options = TargetOptions {
        path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
        mode: AccessMode::ReadWrite,
        caching: Caching::PageCache,
        discard: Discard::Allowed,
        format: Some(ImageFormat::Qcow2),
        logical_block: None,
        sharing: Sharing::Safe,
        owner: Owner { domain: 1, number: 51712, vdev: "xvda".to_owned(), uuid: None },
    };
    let Ok(target) = Target::open(options.clone()) else { return Ok(Exercised::Refused) };
    let mut written = Written::default();
    let mut random = Random(seed);
    let mut use_of = Use { target, written: &mut written };
    for _ in 0..OPERATIONS {
        use_of.operate(&mut random);
    }
    // After a failed flush the file may hold anything.
    let flushed = use_of.target.flush().is_ok();
    drop(use_of);
    if flushed {
        let target = Target::open(options).map_err(|error| Causes(&error).to_string());
        let target = target.unwrap_or_else(|error| panic!("the sound image is damaged: {error}"));
        Use { target, written: &mut written }.compare_all();
    }
    Ok(Exercised::Used)
}

/// The value that was written to each sector; `None` if a discard or an error leaves it undefined.
type Written = BTreeMap<u64, Option<u8>>;

struct Use<'w> {
    target: Target,
    written: &'w mut Written,
}

impl Use<'_> {
    fn operate(&mut self, random: &mut Random) {
        let sectors = self.target.sectors();
        let sector = random.below(sectors);
        let count = 1 + random.below((MOST_BYTES / 512).min(sectors - sector));
        let value = random.below(255) as u8 + 1;
        match random.below(8) {
            0..=3 => self.write(sector, count, value),
            4 => self.change(sector, count, Some(0), |target, offset, bytes| {
                zero(target, offset, bytes, Storage::Keep)
            }),
            5 => self.change(sector, count, Some(0), |target, offset, bytes| {
                zero(target, offset, bytes, Storage::GiveBack)
            }),
            6 => self.change(sector, count, None, |target, offset, bytes| {
                target.image.discard(offset, bytes)
            }),
            _ => drop(self.target.flush()),
        }
        self.compare(sector, count);
    }

    fn write(&mut self, sector: u64, count: u64, value: u8) {
        self.change(sector, count, Some(value), |target, offset, bytes| {
            let mut data = vec![value; bytes as usize];
            target.image.write(offset, &Gather::of(&mut data), WriteMode::Back)
        });
    }

    /// Changes a range; `value`: the byte that it reads as afterwards.
    fn change(
        &mut self,
        sector: u64,
        count: u64,
        value: Option<u8>,
        change: impl FnOnce(&mut Target, u64, u64) -> io::Result<()>,
    ) {
        let prepared = self.prepare().is_ok();
        let changed = prepared && change(&mut self.target, sector * 512, count * 512).is_ok();
        for sector in sector..sector + count {
            self.written.insert(sector, value.filter(|_| changed));
        }
    }

    fn prepare(&mut self) -> Result<(), TargetError> {
        let later = || Deadline::after(Duration::from_secs(60));
        while self.target.prepare_to_write(&later())? == Progress::Unfinished {}
        Ok(())
    }

    fn compare(&mut self, sector: u64, count: u64) {
        let mut data = vec![0xee; (count * 512) as usize];
        if self.target.image.read(sector * 512, &Scatter::of(&mut data)).is_err() {
            return;
        }
        for (bytes, sector) in data.chunks(512).zip(sector..) {
            if let Some(Some(value)) = self.written.get(&sector) {
                assert!(*bytes == [*value; 512], "sector {sector} is not {value}: {bytes:?}");
            }
        }
    }

    fn compare_all(&mut self) {
        let mut next = 0;
        while let Some(sector) = self.written.range(next..).next().map(|(sector, _)| *sector) {
            let count = (self.target.sectors() - sector).min(MOST_BYTES / 512);
            self.compare(sector, count);
            next = sector + count;
        }
    }
}

fn zero(target: &mut Target, mut offset: u64, length: u64, storage: Storage) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        offset += target.image.write_zeroes(offset, end - offset, storage)?;
    }
    Ok(())
}

/// Pseudo-random numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % limit.max(1)
    }
}

fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
