//! Tests of a disk on scripted storage, which fails, is slow, or is not sound.

mod driver;
mod durability;
mod engine;
mod features;
mod in_place;
mod parts;
mod paused;
mod throttled;
mod zeroes;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::Block;
use super::claim::Durability;
use super::disk_file::DiskFile;
use super::image::{BlockSize, Image, InPlace, Storage};
use super::progress::{Deadline, Progress};
use super::target::{Target, TargetOptions};
use crate::device::{Gather, Scatter, WriteMode};
use crate::tests::gate::Gate;

/// Size in bytes of every disk here: 64 GiB, of which nothing is stored.
const SIZE: u64 = 64 << 30;

/// A call to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Read(u64),
    Write(u64, WriteMode),
    WriteBack,
    Sync,
    Discard(u64, u64),
    WriteZeroes(u64, u64, Storage),
}

/// The script of an image.
#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    /// The results of the next calls of each kind; later calls succeed.
    writes: VecDeque<io::Result<()>>,
    write_backs: VecDeque<io::Result<()>>,
    syncs: VecDeque<io::Result<()>>,
    finishes: VecDeque<io::Result<()>>,
    preparations: VecDeque<io::Result<Progress>>,
    /// Number of calls of `finish_batch`.
    settled: usize,
    /// The time that each call takes.
    time: Duration,
    /// Maximum bytes that one call zeroes.
    most_zeros: Option<u64>,
    /// Whether reads, of data and of the size, panic.
    panics: bool,
    /// Whether discards are refused.
    no_discard: bool,
    /// Whether written data is durable at once.
    no_cache: bool,
    /// Whether a sync has to follow writes and zeroing.
    is_unsynced: bool,
    /// The file for transfers without the image.
    file: Option<DiskFile>,
    /// What others than the worker may use, and the file that makes it durable.
    in_place: Option<Arc<dyn InPlace>>,
    sync_file: Option<DiskFile>,
    /// Where writes wait.
    gate: Option<Arc<Gate>>,
}

/// An image that follows its script.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn new(change: impl FnOnce(&mut Script)) -> Self {
        let image = Self::default();
        change(&mut image.0.lock().unwrap());
        image
    }

    /// A target with this image, and the file that the target claims.
    fn target(&self, change: impl FnOnce(&mut TargetOptions)) -> (NamedTempFile, Target) {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let mut options = TargetOptions::for_test(file.path());
        change(&mut options);
        let target = Target::open(options).unwrap().with_image(Box::new(self.clone()));
        (file, target)
    }

    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    fn note<T>(
        &mut self,
        call: Call,
        outcome: impl FnOnce(&mut Script) -> Option<io::Result<T>>,
        good: T,
    ) -> io::Result<T> {
        let mut script = self.0.lock().unwrap();
        script.calls.push(call);
        let outcome = outcome(&mut script).unwrap_or(Ok(good));
        let time = script.time;
        drop(script);
        std::thread::sleep(time);
        outcome
    }
}

impl Image for Scripted {
    fn size(&self) -> u64 {
        SIZE
    }

    fn block_size(&self) -> BlockSize {
        BlockSize { logical: 512, physical: 4096 }
    }

    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        assert!(!self.0.lock().unwrap().panics, "the image's driver panics");
        into.copy_from(&vec![7; into.length()]);
        self.note(Call::Read(offset), |_| None, ())
    }

    fn prepare_to_write(&mut self, _: &Deadline) -> io::Result<Progress> {
        self.0.lock().unwrap().preparations.pop_front().unwrap_or(Ok(Progress::Done))
    }

    fn write(&mut self, offset: u64, _: &Gather<'_>, mode: WriteMode) -> io::Result<()> {
        let gate = self.0.lock().unwrap().gate.clone();
        gate.iter().for_each(|gate| gate.pass());
        self.note(Call::Write(offset, mode), |script| script.writes.pop_front(), ())
    }

    fn finish_batch(&mut self) -> io::Result<()> {
        let mut script = self.0.lock().unwrap();
        script.settled += 1;
        script.finishes.pop_front().unwrap_or(Ok(()))
    }

    fn write_back(&mut self) -> io::Result<()> {
        self.note(Call::WriteBack, |script| script.write_backs.pop_front(), ())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.note(Call::Sync, |script| script.syncs.pop_front(), ())
    }

    fn file(&self, _: &Arc<Durability>) -> Option<DiskFile> {
        self.0.lock().unwrap().file.clone()
    }

    fn in_place(&self) -> Option<Arc<dyn InPlace>> {
        self.0.lock().unwrap().in_place.clone()
    }

    fn sync_file(&self, _: &Arc<Durability>) -> Option<DiskFile> {
        self.0.lock().unwrap().sync_file.clone()
    }

    fn take_unsynced(&mut self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap().is_unsynced)
    }

    fn has_cache(&self) -> bool {
        !self.0.lock().unwrap().no_cache
    }

    fn can_discard(&self) -> bool {
        !self.0.lock().unwrap().no_discard
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.note(Call::Discard(offset, length), |_| None, ())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, storage: Storage) -> io::Result<u64> {
        let most = self.0.lock().unwrap().most_zeros.unwrap_or(length);
        self.note(Call::WriteZeroes(offset, length, storage), |_| None, length.min(most))
    }

    fn granularity(&self) -> u64 {
        4096
    }

    fn refresh(&mut self) -> io::Result<bool> {
        assert!(!self.0.lock().unwrap().panics, "the image's driver panics");
        Ok(false)
    }
}

fn failure(errno: i32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(errno))
}

/// A deadline far in the future.
fn later() -> Deadline {
    Deadline::after(Duration::from_secs(3600))
}

/// A deadline that is over.
fn over() -> Deadline {
    Deadline::after(Duration::ZERO)
}
