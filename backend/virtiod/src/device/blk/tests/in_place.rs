//! Transfers in place, beside a worker or a storage that hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use uring::engine::Method;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::disk_file::{DiskFile, Store};
use super::super::image::{InPlace, Located};
use super::super::request::Range as SectorRange;
use super::super::sample::{ImageBytes, Shape};
use super::super::target::AccessMode;
use super::driver::{Driver, Memory};
use super::*;
use crate::device::VirtioDevice;
use crate::tests::gate::Gate;
use crate::tests::qcow2::store;
use xen::Access;

const READ: Option<(u32, Access)> = Some((4096, Access::ReadWrite));
const WRITE: Option<(u32, Access)> = Some((4096, Access::ReadOnly));
/// The status of a request that is not answered.
const OPEN: u8 = 0xff;
/// The first byte and the first sector that have no storage.
const UNALLOCATED: u64 = 1 << 30;
const UNALLOCATED_SECTOR: u64 = UNALLOCATED / 512;

/// A part of the disk: its bytes, and the file with them, from an offset on.
type Part = (Range<u64>, Arc<DiskFile>, u64);

/// What the image permits beside its worker: all that is allocated, with a gate in between.
#[derive(Debug, Default)]
struct Beside {
    gate: Gate,
    /// The bytes whose storage hangs while the gate is closed.
    hung: Range<u64>,
    reads: Mutex<Vec<u64>>,
    panics: bool,
    /// What the device may transfer itself, and the number of such transfers in flight.
    located: Mutex<Vec<Part>>,
    users: AtomicUsize,
}

impl InPlace for Beside {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<bool> {
        assert!(!self.panics, "the image's driver panics");
        self.reads.lock().unwrap().push(offset);
        if self.hung.contains(&offset) {
            self.gate.pass();
        }
        into.fill(5);
        Ok(true)
    }

    fn write(&self, offset: u64, _: &mut [u8], _: WriteMode) -> io::Result<bool> {
        if self.hung.contains(&offset) {
            self.gate.pass();
        }
        Ok(offset < UNALLOCATED)
    }

    fn locate(self: Arc<Self>, range: Range<u64>, access: AccessMode) -> Option<Located> {
        let parts = self.located.lock().unwrap();
        let (part, file, offset) =
            parts.iter().find(|(part, ..)| part.start <= range.start && range.end <= part.end)?;
        let _ = access;
        let offset = offset + range.start - part.start;
        self.users.fetch_add(1, Ordering::Relaxed);
        let file = Arc::clone(file);
        drop(parts);
        Some(Located::new(file, offset, self, 0))
    }

    fn leave(&self, _: u64) {
        self.users.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A disk on an image that others than its worker may use, and whose file can be synced.
fn disk(beside: Beside) -> (Scripted, Arc<Beside>, Driver) {
    let beside = Arc::new(beside);
    let image = Scripted::new(|script| {
        script.in_place = Some(Arc::clone(&beside) as Arc<dyn InPlace>);
        script.sync_file = Some(DiskFile {
            cached: Arc::new(tempfile::tempfile().unwrap()),
            direct: None,
            bytes: 0,
            store: Store::Slow,
            durability: Arc::default(),
        });
    });
    let driver = Driver::with_method(&image, 1 << VIRTIO_BLK_F_FLUSH, Method::Threads);
    (image, beside, driver)
}

fn serve(driver: &mut Driver) {
    while !driver.serve().rescheduled.is_empty() {}
}

/// Handles the device's sources until `is_done`; fails the test after about 30 s.
fn handle_until(driver: &mut Driver, is_done: impl Fn(&Driver) -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !is_done(driver) {
        let statuses = driver.statuses();
        assert!(std::time::Instant::now() < end, "waited 30 s for requests: {statuses:?}");
        driver.handle();
    }
}

#[test]
fn a_worker_that_hangs_holds_up_neither_transfers_nor_flushes() {
    let (image, _, mut driver) = disk(Beside::default());
    let gate = Arc::new(Gate::default());
    gate.close();
    image.0.lock().unwrap().gate = Some(Arc::clone(&gate));
    driver.add_at(VIRTIO_BLK_T_OUT, UNALLOCATED_SECTOR, 0, &[], WRITE);
    serve(&mut driver);
    gate.wait_for(1);
    driver.add_at(VIRTIO_BLK_T_IN, 8, 1, &[], READ);
    driver.add_at(VIRTIO_BLK_T_OUT, 16, 2, &[], WRITE);
    driver.add_at(VIRTIO_BLK_T_IN, UNALLOCATED_SECTOR + 8, 3, &[], READ);
    driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
    serve(&mut driver);
    handle_until(&mut driver, |driver| driver.statuses()[1..] == [0; 4]);
    assert_eq!((driver.status(0), driver.data(1)), (OPEN, vec![5; 4096]));
    gate.open();
    driver.serve_all();
    assert_eq!(driver.statuses(), [0; 5]);
    assert_eq!(image.take_calls(), [Call::Write(UNALLOCATED, WriteMode::Back)]);
}

#[test]
fn a_transfer_that_hangs_holds_up_no_other_request() {
    let (image, beside, mut driver) = disk(Beside { hung: 0..4096, ..Beside::default() });
    beside.gate.close();
    driver.add_at(VIRTIO_BLK_T_IN, 0, 0, &[], READ);
    driver.add_at(VIRTIO_BLK_T_OUT, 0, 1, &[], WRITE);
    serve(&mut driver);
    beside.gate.wait_for(2);
    driver.add_at(VIRTIO_BLK_T_OUT, UNALLOCATED_SECTOR, 2, &[], WRITE);
    driver.add_at(VIRTIO_BLK_T_IN, 8, 3, &[], READ);
    driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
    serve(&mut driver);
    handle_until(&mut driver, |driver| driver.statuses()[2..] == [0; 3]);
    assert_eq!(driver.statuses()[..2], [OPEN; 2]);
    beside.gate.open();
    driver.serve_all();
    assert_eq!(driver.statuses(), [0; 5]);
    assert_eq!(image.take_calls(), [Call::Write(UNALLOCATED, WriteMode::Back)]);
}

#[test]
fn a_reset_waits_for_transfers_that_have_begun_and_drops_the_others() {
    let reset_device = |disk: &mut Block| VirtioDevice::<Memory>::reset(disk);
    let reset_queue = |disk: &mut Block| VirtioDevice::<Memory>::reset_queue(disk, 0);
    for reset in [reset_device as fn(&mut Block), reset_queue] {
        let (_, beside, mut driver) = disk(Beside { hung: 0..1 << 20, ..Beside::default() });
        beside.gate.close();
        (0..20).for_each(|page| driver.add_at(VIRTIO_BLK_T_IN, page * 8, page, &[], READ));
        serve(&mut driver);
        beside.gate.wait_for(8);
        reset(&mut driver.disk);
        assert_eq!(driver.disk.in_flight.len(), 8, "a part of the threads waits");
        beside.gate.open();
        let is_over = |driver: &mut Driver| {
            !VirtioDevice::<Memory>::is_draining(&mut driver.disk)
                && driver.disk.in_flight.of_queue(0) == 0
        };
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while !is_over(&mut driver) {
            assert!(std::time::Instant::now() < end, "waited 30 s for the end of the reset");
            driver.disk.collect();
            std::thread::yield_now();
        }
        assert_eq!(driver.statuses(), [OPEN; 20]);
        assert_eq!(beside.reads.lock().unwrap().len(), 8);
    }
}

#[test]
fn a_flush_is_left_to_the_worker_after_it_failed_to_write_metadata() {
    let (image, _, mut driver) = disk(Beside::default());
    image.0.lock().unwrap().finishes = [failure(libc::EIO)].into();
    driver.add_at(VIRTIO_BLK_T_OUT, UNALLOCATED_SECTOR, 0, &[], WRITE);
    driver.serve_all();
    image.take_calls();
    image.0.lock().unwrap().write_backs = [failure(libc::EIO)].into();
    driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
    driver.serve_all();
    assert_eq!(driver.statuses(), [0, VIRTIO_BLK_S_IOERR as u8]);
    assert_eq!(image.take_calls(), [Call::WriteBack]);
    // The batch of the flush was finished: the file has everything now.
    driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
    driver.serve_all();
    assert_eq!((driver.status(2), image.take_calls()), (0, vec![]));
}

#[test]
fn a_disk_fails_when_a_transfer_panics() {
    let (_, _, mut driver) = disk(Beside { panics: true, ..Beside::default() });
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !driver.disk.worker.has_ended() {
        assert!(std::time::Instant::now() < end, "waited 30 s for the end of the worker");
        std::thread::yield_now();
    }
}

#[test]
fn read_only_disk_refuses_writes_in_place() {
    let beside = Arc::new(Beside::default());
    let image = Scripted::new(|script| script.in_place = Some(beside));
    let (_file, mut target) = image.target(|options| {
        options.mode = super::super::AccessMode::ReadOnly;
    });
    target.start(WriteMode::Back).unwrap();
    let in_place = target.in_place().unwrap();
    let command = super::super::request::BlockCommand::Write { sector: 0 };
    let mut task = super::super::request::Task { command, done: 0 };
    let outcome = in_place.execute(&mut task, &mut [0; 512]);
    assert!(matches!(outcome, Err(super::super::TargetError::ReadOnly)), "{outcome:?}");
}

/// Transfers of 4 KiB on a disk of which two parts are in two files, where one would follow the
/// other.
fn transfer_in_two_files(kind: u32, access: Access, method: Method) -> (Driver, [File; 2]) {
    let files = [1, 2].map(|value: u8| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[value; 1 << 17], 0).unwrap();
        file
    });
    let disk_file = |file: &File| {
        let file = Arc::new(file.try_clone().unwrap());
        Arc::new(DiskFile::new(&file, None, u64::MAX, &Arc::default()).unwrap())
    };
    let beside = Arc::new(Beside { panics: true, ..Beside::default() });
    *beside.located.lock().unwrap() = vec![
        (0..8192, disk_file(&files[0]), 65536),
        (8192..16384, disk_file(&files[1]), 65536 + 8192),
    ];
    let image =
        Scripted::new(|script| script.in_place = Some(Arc::clone(&beside) as Arc<dyn InPlace>));
    let mut driver = Driver::with_method(&image, 1 << VIRTIO_BLK_F_FLUSH, method);
    for page in 0..4 {
        driver.fill(page as usize, 7 + page as u8);
        driver.add_at(kind, page * 8, page, &[], Some((4096, access)));
    }
    driver.serve_all();
    assert_eq!(driver.statuses(), [0; 4]);
    assert_eq!(image.take_calls(), []);
    assert_eq!(beside.users.load(Ordering::Relaxed), 0, "transfers that have not ended");
    (driver, files)
}

#[test]
fn transfers_whose_place_is_known_go_to_their_file() {
    for method in [Method::Ring, Method::Threads] {
        let (driver, _) = transfer_in_two_files(VIRTIO_BLK_T_IN, Access::ReadWrite, method);
        for (page, value) in [1, 1, 2, 2].into_iter().enumerate() {
            assert_eq!(driver.data(page), [value; 4096], "page {page}, {method:?}");
        }
        let (_, files) = transfer_in_two_files(VIRTIO_BLK_T_OUT, Access::ReadOnly, method);
        for (file, start, values) in [(0, 65536, [7, 8]), (1, 65536 + 8192, [9, 10])] {
            let mut bytes = vec![0; 1 << 17];
            files[file].read_exact_at(&mut bytes, 0).unwrap();
            let (before, rest) = bytes.split_at(start);
            let (written, behind) = rest.split_at(8192);
            let expected = values.map(|value| [value; 4096]).concat();
            assert!(written == expected, "file {file}, {method:?}");
            assert!(before.iter().chain(behind).all(|byte| *byte == file as u8 + 1));
        }
    }
}

/// The number of pages that each of the requests below has.
const PAGES_EACH: u64 = 16;

/// Opens the image as a disk, writes and reads it with requests that are all in flight, and
/// compares what it reads with `model`, the value of each page of 4 KiB.
fn use_disk(
    image: &Path,
    model: &mut BTreeMap<u64, Option<u8>>,
    random: &mut dyn FnMut(u64) -> u64,
) {
    let target = Target::open(TargetOptions::for_test(image)).unwrap();
    let pages = target.sectors() / 8;
    let mut driver = Driver::with_target(
        (NamedTempFile::new().unwrap(), target),
        1 << VIRTIO_BLK_F_FLUSH,
        Method::Ring,
    );
    // From now on, the places of most of it are known.
    driver.add(VIRTIO_BLK_T_IN, &[], Some(((pages * 4096) as u32, Access::ReadWrite)));
    driver.serve_all();
    let mut used = BTreeSet::new();
    let mut reads = Vec::new();
    for slot in 0..16 {
        let (first, count) = (random(pages), 1 + random(PAGES_EACH));
        let range = first..(first + count).min(pages);
        let at = slot * PAGES_EACH;
        let (value, bytes) = (1 + random(255) as u8, (range.end - range.start) as u32 * 4096);
        if !range.clone().all(|page| used.insert(page)) {
            continue;
        }
        let ranges = [SectorRange {
            sector: range.start * 8,
            sectors: bytes / 512,
            flags: random(2) as u32,
        }];
        match random(8) {
            0..=2 => {
                (0..PAGES_EACH).for_each(|page| driver.fill((at + page) as usize, value));
                let data = Some((bytes, Access::ReadOnly));
                driver.add_at(VIRTIO_BLK_T_OUT, range.start * 8, at, &[], data);
                model.extend(range.map(|page| (page, Some(value))));
            }
            3 => {
                driver.add(VIRTIO_BLK_T_WRITE_ZEROES, &ranges, None);
                model.extend(range.map(|page| (page, Some(0))));
            }
            4 => {
                let range_of = [SectorRange { flags: 0, ..ranges[0] }];
                driver.add(VIRTIO_BLK_T_DISCARD, &range_of, None);
                model.extend(range.map(|page| (page, None)));
            }
            _ => {
                let data = Some((bytes, Access::ReadWrite));
                driver.add_at(VIRTIO_BLK_T_IN, range.start * 8, at, &[], data);
                reads.push((range, at));
            }
        }
        if random(3) == 0 {
            serve(&mut driver);
        }
        if random(4) == 0 {
            driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
        }
    }
    driver.serve_all();
    assert!(driver.statuses().iter().all(|status| *status == 0), "{:?}", driver.statuses());
    for (range, at) in reads {
        for (page, in_memory) in range.zip(at..) {
            let Some(Some(value)) = model.get(&page) else { continue };
            assert!(driver.data(in_memory as usize) == [*value; 4096], "page {page}, not {value}");
        }
    }
}

#[test]
fn a_qcow2_disk_keeps_its_data_under_concurrent_requests() {
    let mut number = 99u64;
    let mut random = |limit: u64| {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (number >> 33) % limit
    };
    let bits = [(9, 32 << 10), (12, 1 << 20), (16, 4 << 20)];
    for (cluster_bits, size) in bits {
        let shape = Shape { cluster_bits, size, data: 3, ..Shape::default() };
        let (_directory, path) = store(&ImageBytes::new(shape));
        let mut model = BTreeMap::new();
        for _ in 0..20 {
            // Each opens the image again, which checks it.
            use_disk(&path, &mut model, &mut random);
        }
    }
}
