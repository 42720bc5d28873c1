//! Tests of transfers beside the thread that changes an image.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;

use super::killed::{copy, open_path};
use super::shared::DataFile;
use super::*;
use crate::device::blk::request::{BlockCommand, Range as SectorRange, RangeChange, Task};
use crate::device::blk::target::Target;
use crate::device::blk::worker::{Job, Report, RequestJob, Worker};
use crate::tests::gate::Gate;

/// Maximum time of each wait here.
const LIMIT: Duration = Duration::from_secs(30);

/// Storage with a gate before these bytes of the file.
#[derive(Debug)]
struct Gated {
    file: fs::File,
    range: Range<u64>,
    gate: Arc<Gate>,
}

impl Gated {
    fn pass(&self, offset: u64, length: usize) {
        if offset < self.range.end && self.range.start < offset + length as u64 {
            self.gate.pass();
        }
    }
}

impl DataFile for Gated {
    fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.pass(offset, into.len());
        DataFile::read(&self.file, into, offset)
    }

    fn write(&self, from: &mut [u8], offset: u64, mode: WriteMode) -> io::Result<()> {
        self.pass(offset, from.len());
        DataFile::write(&self.file, from, offset, mode)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
}

/// An image with 4 allocated clusters, whose storage of the first hangs.
fn gated() -> (Opened, Arc<Gate>) {
    let mut opened = open(&ImageBytes::new(Shape { data: 4, ..Shape::default() }));
    let gate = Arc::new(Gate::default());
    let file = fs::OpenOptions::new().read(true).write(true).open(&opened.path).unwrap();
    let first = position::DATA * CLUSTER;
    let storage = Gated { file, range: first..first + CLUSTER, gate: Arc::clone(&gate) };
    opened.image.replace_file(Arc::new(storage));
    gate.close();
    (opened, gate)
}

fn in_place(image: &Qcow2Image) -> Arc<dyn InPlace> {
    image.in_place().unwrap()
}

fn read(image: &dyn InPlace, offset: u64) -> [u8; 512] {
    let mut bytes = [0xee; 512];
    assert!(image.read(offset, &mut bytes).unwrap(), "left to the worker");
    bytes
}

fn write(image: &dyn InPlace, offset: u64, value: u8) -> bool {
    image.write(offset, &mut [value; 512], WriteMode::Back).unwrap()
}

/// Whether the device itself may access a sector.
fn is_located(image: &Arc<dyn InPlace>, offset: u64, access: AccessMode) -> bool {
    Arc::clone(image).locate(offset..offset + 512, access).is_some()
}

/// Runs `work` in a thread and returns its result; fails the test if that takes 30 s.
fn within_limit<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("waited 30 s for {what}"))
}

#[test]
fn transfer_that_hangs_holds_up_no_other_cluster() {
    let (opened, gate) = gated();
    let access = in_place(&opened.image);
    let hung = Arc::clone(&access);
    let hung = thread::spawn(move || read(&*hung, 0));
    gate.wait_for(1);
    let Opened { mut image, _directory, _files, .. } = opened;
    within_limit("requests of other clusters", move || {
        assert_eq!(read(&*access, CLUSTER), [2; 512]);
        assert!(write(&*access, 2 * CLUSTER, 9));
        assert_eq!(read(&*access, 2 * CLUSTER), [9; 512]);
        // Of clusters without storage too.
        assert!(!write(&*access, 9 * CLUSTER, 8));
        image.write(9 * CLUSTER, &Gather::of(&mut [8; 512]), WriteMode::Back).unwrap();
        image.discard(3 * CLUSTER, CLUSTER).unwrap();
        image.write_zeroes(CLUSTER, CLUSTER, Storage::GiveBack).unwrap();
        image.finish_batch().unwrap();
        assert_eq!(read(&*access, 9 * CLUSTER), [8; 512]);
        for zeros in [CLUSTER, 3 * CLUSTER] {
            assert_eq!(read(&*access, zeros), [0; 512]);
        }
    });
    gate.open();
    assert_eq!(hung.join().unwrap(), [1; 512]);
}

#[test]
fn allocation_that_hangs_holds_up_no_allocated_cluster() {
    let opened = open(&ImageBytes::new(Shape { data: 4, ..Shape::default() }));
    let (access, shared) = (in_place(&opened.image), Arc::clone(&opened.image.shared));
    assert_eq!(read(&*access, CLUSTER), [2; 512]);
    let (mut image, gate) = (opened.image, Arc::new(Gate::default()));
    gate.close();
    let hung = Arc::clone(&gate);
    // The library holds the lock of the table while it writes the data of a new cluster.
    let hung = thread::spawn(move || {
        let held = shared.image();
        let mapping = held.prepare_data_mapping(8 * CLUSTER, CLUSTER, true).unwrap();
        hung.pass();
        held.commit_data_mapping(mapping).unwrap();
    });
    gate.wait_for(1);
    let allocating = thread::spawn(move || {
        image.write(9 * CLUSTER, &Gather::of(&mut [8; 512]), WriteMode::Back).unwrap();
        image.finish_batch().unwrap();
        image
    });
    within_limit("requests of allocated clusters", {
        let access = Arc::clone(&access);
        move || {
            assert!(write(&*access, 2 * CLUSTER, 9));
            assert_eq!(read(&*access, 2 * CLUSTER), [9; 512]);
            // The other places of the table were looked up with the first.
            assert_eq!(read(&*access, 3 * CLUSTER), [4; 512]);
        }
    });
    gate.open();
    hung.join().unwrap();
    let image = allocating.join().unwrap();
    assert_eq!(read(&*access, 9 * CLUSTER), [8; 512]);
    drop(image);
}

#[test]
fn clusters_are_given_back_after_transfers_to_them_have_ended() {
    let (opened, gate) = gated();
    let access = in_place(&opened.image);
    let hung = Arc::clone(&access);
    let hung = thread::spawn(move || write(&*hung, 512, 7));
    gate.wait_for(1);
    let Opened { mut image, path, _directory, _files } = opened;
    let (sender, discarded) = mpsc::channel();
    let shared = Arc::clone(&image.shared);
    let discarding = thread::spawn(move || {
        image.discard(0, CLUSTER).unwrap();
        // Another cluster takes the storage.
        image.write(9 * CLUSTER, &Gather::of(&mut [8; CLUSTER as usize]), WriteMode::Back).unwrap();
        image.finish_batch().unwrap();
        sender.send(()).unwrap();
        image
    });
    shared.wait_for_change(LIMIT);
    // It would take less.
    let early = discarded.recv_timeout(Duration::from_millis(200));
    assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
    // Meanwhile the others are in use, and what is about this one waits for the worker.
    assert!(!access.read(4096, &mut [0; 512]).unwrap() && !write(&*access, 4096, 1));
    assert_eq!(read(&*access, CLUSTER), [2; 512]);
    gate.open();
    assert!(hung.join().unwrap());
    drop(discarding.join().unwrap());
    let mut bytes = [0; 1024];
    assert!(access.read(9 * CLUSTER, &mut bytes).unwrap());
    assert_eq!(bytes, [8; 1024], "the write that hung came later");
    assert!(fs::metadata(path).is_ok());
}

#[test]
fn data_written_in_place_persists_when_the_program_is_killed() {
    let mut opened = open(&ImageBytes::new(Shape::default()));
    let access = in_place(&opened.image);
    assert!(write(&*access, CLUSTER, 9));
    opened.write(5 * CLUSTER, &[7; 512]);
    // The entry of the new cluster is in memory alone.
    assert_eq!(read(&*access, 5 * CLUSTER), [7; 512]);
    assert!(!write(&*access, 5 * CLUSTER + 512, 8), "a kill would lose it");
    assert!(is_located(&access, 5 * CLUSTER, AccessMode::ReadOnly));
    assert!(!is_located(&access, 5 * CLUSTER, AccessMode::ReadWrite));
    opened.image.finish_batch().unwrap();
    assert!(is_located(&access, 5 * CLUSTER, AccessMode::ReadWrite));
    assert!(write(&*access, 5 * CLUSTER + 512, 8));
    let (_directory, path) = copy(&opened.path);
    let (image, _files) = open_path(&path).unwrap();
    let access = in_place(&image);
    for (offset, value) in [(CLUSTER, 9), (5 * CLUSTER, 7), (5 * CLUSTER + 512, 8)] {
        assert_eq!(read(&*access, offset), [value; 512]);
    }
}

#[test]
fn image_is_not_written_in_place_before_it_is_found_sound() {
    let mut opened = open_within(&ImageBytes::new(Shape::default()), Duration::ZERO);
    let access = in_place(&opened.image);
    assert_eq!(read(&*access, 0), [1; 512]);
    assert!(!write(&*access, 0, 9));
    assert!(!is_located(&access, 0, AccessMode::ReadWrite));
    while opened.prepare().unwrap() == Progress::Unfinished {}
    assert!(write(&*access, 0, 9));
}

#[test]
fn compressed_and_shared_clusters_are_read_and_not_written_in_place() {
    use crate::device::blk::sample::{compressed, snapshotted};
    for bytes in [compressed(), snapshotted()] {
        let mut opened = open(&bytes);
        let access = in_place(&opened.image);
        let size = opened.image.size();
        let mut whole = vec![0xee; size as usize];
        assert!(access.read(0, &mut whole).unwrap());
        assert!(whole == opened.read(0, size as usize));
        let mut worker_writes = 0;
        for offset in (0..size).step_by(4096) {
            read(&*access, offset);
            let may_be = opened.image.is_in_place(offset..offset + 512).unwrap();
            let is_located = is_located(&access, offset, AccessMode::ReadWrite);
            let is_written = write(&*access, offset, 5);
            assert_eq!((is_located, is_written), (may_be, may_be), "at {offset}");
            worker_writes += usize::from(!is_written);
        }
        assert!(worker_writes > 0);
    }
}

#[test]
fn unwritten_data_is_read_in_place_from_the_backing_files() {
    let mut bytes = ImageBytes::new(Shape { version: 3, ..Shape::default() });
    bytes.set_backing("base.raw", Some("raw"));
    let mut opened = open(&bytes);
    let access = in_place(&opened.image);
    assert_eq!(read(&*access, 4 * CLUSTER), [0x5a; 512]);
    assert!(!write(&*access, 4 * CLUSTER, 1));
    assert_eq!(read(&*access, 17 * CLUSTER), [0; 512], "behind the end of the backing file");
    opened.write(4 * CLUSTER, &[1; 512]);
    assert_eq!(read(&*access, 4 * CLUSTER), [1; 512]);
    assert_eq!(read(&*access, 4 * CLUSTER + 512), [0x5a; 512]);
}

#[test]
fn what_is_behind_the_end_of_the_file_is_not_located() {
    let mut opened = open(&ImageBytes::new(Shape::default()));
    let file = fs::OpenOptions::new().write(true).open(&opened.path).unwrap();
    file.set_len((position::DATA + 2) * CLUSTER - 8192).unwrap();
    let access = in_place(&opened.image);
    let (inside, behind) = (2 * CLUSTER - 8192 - 512, 2 * CLUSTER - 8192);
    assert_eq!((read(&*access, inside), read(&*access, behind)), ([2; 512], [0; 512]));
    assert!(is_located(&access, inside, AccessMode::ReadWrite));
    assert!(!is_located(&access, behind, AccessMode::ReadOnly));
    // The library has to know how the file grows.
    assert!(!write(&*access, behind, 9));
    opened.write(behind, &[9; 512]);
    assert_eq!(read(&*access, behind), [9; 512]);
}

#[test]
fn clusters_stay_while_the_device_transfers() {
    let opened = open(&ImageBytes::new(Shape::default()));
    let access = in_place(&opened.image);
    read(&*access, 0);
    let located = Arc::clone(&access).locate(0..4096, AccessMode::ReadOnly).unwrap();
    let Opened { mut image, _directory, _files, .. } = opened;
    let shared = Arc::clone(&image.shared);
    let discarding = thread::spawn(move || {
        image.discard(0, CLUSTER).unwrap();
        image
    });
    shared.wait_for_change(LIMIT);
    assert!(!is_located(&access, 0, AccessMode::ReadOnly), "no further transfers");
    assert!(is_located(&access, CLUSTER, AccessMode::ReadOnly));
    assert!(!discarding.is_finished());
    drop(located);
    drop(discarding.join().unwrap());
    assert!(!is_located(&access, 0, AccessMode::ReadOnly));
    assert_eq!(read(&*access, 0), [0; 512]);
}

/// Pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// The value of each sector; `None` after a discard.
type Model = BTreeMap<u64, Option<u8>>;

/// A driver that keeps many requests in flight, of different sectors, and knows their results.
struct Load {
    worker: Worker,
    model: Model,
    /// By slot: the sectors of a request in flight, and the value that they get; `None` in the
    /// value for reads.
    in_flight: BTreeMap<usize, (Range<u64>, Option<Option<u8>>)>,
    next_slot: usize,
}

impl Load {
    fn add(&mut self, random: &mut Random, sectors: u64) {
        let start = random.below(sectors);
        let range = start..(start + 1 + random.below(200)).min(sectors);
        let mut used = self.in_flight.values();
        if used.any(|(used, _)| used.start < range.end && range.start < used.end) {
            return;
        }
        let bytes = ((range.end - range.start) * 512) as usize;
        let value = 1 + random.below(255) as u8;
        let sector = range.start;
        let change = |change, flags| {
            let sectors = (range.end - range.start) as u32;
            let ranges = Box::new([SectorRange { sector, sectors, flags }].into());
            BlockCommand::Change { change, ranges }
        };
        let (command, data, result) = match random.below(10) {
            0..=3 => (BlockCommand::Write { sector }, vec![value; bytes], Some(Some(value))),
            4 => (change(RangeChange::WriteZeroes, 0), Vec::new(), Some(Some(0))),
            5 => (change(RangeChange::WriteZeroes, 1), Vec::new(), Some(Some(0))),
            6 => (change(RangeChange::Discard, 0), Vec::new(), Some(None)),
            _ => (BlockCommand::Read { sector }, vec![0xee; bytes], None),
        };
        let (slot, task) = (self.next_slot, Task { command, done: 0 });
        self.next_slot += 1;
        self.in_flight.insert(slot, (range, result));
        let part = self.worker.part();
        self.worker.add(Job::Request(RequestJob { part, slot, queue: 0, task, data }));
    }

    fn take(&mut self) {
        for report in self.worker.take().list {
            let Report::Done(job, outcome) = report else { continue };
            outcome.unwrap();
            let (range, result) = self.in_flight.remove(&job.slot).unwrap();
            match result {
                Some(value) => self.model.extend(range.map(|sector| (sector, value))),
                None => self.compare(range, &job.data),
            }
        }
    }

    fn compare(&self, range: Range<u64>, data: &[u8]) {
        for (sector, bytes) in range.zip(data.chunks(512)) {
            if let Some(Some(value)) = self.model.get(&sector) {
                assert!(*bytes == [*value; 512], "sector {sector} is not {value}: {}", bytes[0]);
            }
        }
    }

    fn finish(&mut self) {
        let end = std::time::Instant::now() + LIMIT;
        while !self.in_flight.is_empty() {
            assert!(std::time::Instant::now() < end, "waited 30 s for {:?}", self.in_flight);
            self.take();
            thread::yield_now();
        }
    }
}

#[test]
fn concurrent_requests_leave_the_data_and_a_sound_image() {
    for (number, (name, _directory, path)) in (1..).zip(killed::images()) {
        let target = Target::open(TargetOptions::for_test(&path)).unwrap();
        let sectors = target.sectors().min(64 << 11);
        let worker = Worker::start(target, Arc::default()).unwrap();
        worker.add(Job::Start(WriteMode::Back));
        let mut load =
            Load { worker, model: Model::new(), in_flight: BTreeMap::new(), next_slot: 0 };
        let mut random = Random(number);
        while load.next_slot < 1500 {
            load.add(&mut random, sectors);
            while load.in_flight.len() >= 24 {
                load.take();
                thread::yield_now();
            }
            load.take();
        }
        load.finish();
        load.worker.add(Job::Stop);
        load.worker.end();
        let (image, _files) = open_path(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(matches!(image.soundness, Soundness::Sound), "{name}");
        let access = in_place(&image);
        for sector in load.model.keys() {
            load.compare(*sector..sector + 1, &read(&*access, sector * 512));
        }
    }
}
