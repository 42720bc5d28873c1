//! Transfers by the engine: out of order, joined, on storage that hangs or fails.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::PollFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use protocol::pool::PoolPage;
use uring::engine::{Landed, Method};
use uring::operation::{Operation, Work};
use uring::owned::OwnedVector;
use uring::waiting::wait_for;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::super::disk_file::{DirectFile, DiskFile, Store};
use super::super::in_flight::{InFlightLimits, InFlightTable};
use super::super::request::BlockCommand;
use super::super::size_watch::{SizeSignal, SizeWatch};
use super::super::submit::Ticket;
use super::super::target::{Target, TargetOptions};
use super::super::worker::Job;
use super::Scripted;
use super::driver::{Driver, Memory};
use crate::device::{VirtioDevice, WriteMode};
use crate::dma::UnshareError;
use xen::Access;

const READ: Option<(u32, Access)> = Some((4096, Access::ReadWrite));
const WRITE: Option<(u32, Access)> = Some((4096, Access::ReadOnly));
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
/// The status of a request that is not answered.
const OPEN: u8 = 0xff;

/// A disk on this file.
pub(super) fn image(cached: File, direct: Option<File>, store: Store) -> Scripted {
    let file = DiskFile {
        cached: Arc::new(cached),
        direct: direct.map(|file| DirectFile { file: Arc::new(file), longest: usize::MAX }),
        bytes: super::SIZE,
        store,
        durability: Arc::default(),
    };
    Scripted::new(|script| script.file = Some(file))
}

/// A disk whose transfers hang until something is written into the pipe: the read end of a pipe
/// answers as storage does that hangs. `None` if the kernel refuses io_uring: threads cannot read a
/// pipe at an offset.
fn hung() -> Option<(Driver, PipeWriter)> {
    let (image, writer) = hung_image()?;
    // In this order: a test that fails drops the writer first, and the disk waits for no answer.
    Some((Driver::new(&image), writer))
}

/// The disk of [`hung`].
fn hung_image() -> Option<(Scripted, PipeWriter)> {
    if !Method::Ring.is_available() {
        println!("skipped: the kernel refuses io_uring");
        return None;
    }
    let (pipe, writer) = io::pipe().unwrap();
    let direct = File::from(OwnedFd::from(pipe));
    Some((image(tempfile::tempfile().unwrap(), Some(direct), Store::Direct), writer))
}

/// Serves what needs no answer of storage.
fn serve(driver: &mut Driver) {
    while !driver.serve().rescheduled.is_empty() {}
}

/// Handles the device's sources until `is_done`.
fn handle_until(driver: &mut Driver, is_done: impl Fn(&Driver) -> bool) {
    while !is_done(driver) {
        driver.handle();
    }
}

fn is_draining(driver: &mut Driver) -> bool {
    VirtioDevice::<Memory>::is_draining(&mut driver.disk)
}

/// Whether a source of the device is ready.
fn is_ready(driver: &Driver) -> bool {
    let sources = VirtioDevice::<Memory>::sources(&driver.disk);
    let fds = sources.iter().map(|source| PollFd::new(source.fd, source.events));
    let mut fds: Vec<_> = fds.collect();
    wait_for(&mut fds, Duration::ZERO).unwrap();
    fds.iter().any(|fd| fd.any().unwrap())
}

/// Waits for the end of a reset.
fn end_reset(driver: &mut Driver) {
    let end = Instant::now() + Duration::from_secs(30);
    while is_draining(driver) {
        assert!(Instant::now() < end, "the reset does not end");
        std::thread::yield_now();
    }
}

/// The number of requests in flight, and whether something waits for storage, as `stat` shows them.
fn shown(driver: &Driver) -> (u64, bool) {
    let storage = driver.disk.common.stats.storage().unwrap().snapshot();
    assert_eq!(storage.oldest_ms.is_some(), storage.in_flight > 0);
    (storage.in_flight, storage.waiting)
}

#[test]
fn a_transfer_that_hangs_holds_up_no_other_request() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    driver.add_at(VIRTIO_BLK_T_FLUSH, 0, 0, &[], None);
    driver.add_at(VIRTIO_BLK_T_GET_ID, 0, 1, &[], Some((20, Access::ReadWrite)));
    serve(&mut driver);
    handle_until(&mut driver, |driver| driver.status(1) != OPEN);
    assert_eq!(driver.statuses(), [OPEN, 0, 0]);
    answer.write_all(&[7; 4096]).unwrap();
    handle_until(&mut driver, |driver| driver.status(0) != OPEN);
    assert_eq!((driver.statuses(), driver.data(0)), (vec![0; 3], vec![7; 4096]));
}

#[test]
fn a_reset_ends_when_storage_has_let_go_of_the_buffers() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    assert_eq!(shown(&driver), (1, false));
    VirtioDevice::<Memory>::reset(&mut driver.disk);
    assert!(is_draining(&mut driver) && is_draining(&mut driver));
    assert_eq!(shown(&driver), (1, true));
    answer.write_all(&[7; 4096]).unwrap();
    end_reset(&mut driver);
    assert_eq!((driver.statuses(), driver.disk.in_flight.len()), (vec![OPEN], 0));
    assert_eq!(shown(&driver), (0, false));
    // Another driver may start.
    VirtioDevice::<Memory>::start(&mut driver.disk, 1 << VIRTIO_BLK_F_FLUSH).unwrap();
    driver.add_at(VIRTIO_BLK_T_FLUSH, 0, 0, &[], None);
    serve(&mut driver);
    handle_until(&mut driver, |driver| driver.status(1) != OPEN);
    assert_eq!(driver.status(1), 0);
}

#[test]
fn nothing_wakes_a_device_that_waits_for_storage_again_and_again() {
    // After the reset of the device, and of its only queue; the worker goes on, or has panicked.
    for (of_queue, panics) in [(false, false), (true, false), (false, true)] {
        let Some((image, answer)) = hung_image() else { return };
        // The writer is dropped first, and the disk waits for no answer.
        let (mut driver, _answer) = (Driver::new(&image), answer);
        let signal = Arc::new(SizeSignal::new().unwrap());
        driver.disk.size_watch = Some(SizeWatch::new(Arc::clone(&signal), ()));
        image.0.lock().unwrap().panics = panics;
        driver.add(VIRTIO_BLK_T_IN, &[], READ);
        serve(&mut driver);
        match of_queue {
            true => VirtioDevice::<Memory>::reset_queue(&mut driver.disk, 0),
            false => VirtioDevice::<Memory>::reset(&mut driver.disk),
        }
        signal.set().unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        let drains = |driver: &mut Driver| match of_queue {
            true => VirtioDevice::<Memory>::is_queue_draining(&mut driver.disk, 0),
            false => is_draining(driver),
        };
        while {
            assert!(drains(&mut driver), "storage has not let go");
            is_ready(&driver) || panics && !driver.disk.worker.has_ended()
        } {
            assert!(Instant::now() < end, "waited 30 s for the sources to be handled");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_queue_that_was_reset_leaves_no_work() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    VirtioDevice::<Memory>::reset_queue(&mut driver.disk, 0);
    answer.write_all(&[7; 4096]).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while driver.disk.drains_queue(0) {
        assert!(Instant::now() < end, "waited 30 s for the reset of the queue");
        std::thread::yield_now();
    }
    assert_eq!(VirtioDevice::<Memory>::deadline(&driver.disk), None);
}

#[test]
fn requests_are_judged_by_the_facts_that_the_worker_has_reported() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(super::SIZE).unwrap();
    let mut driver = Driver::new(&image(file, None, Store::Slow));
    driver.disk.facts.sectors = 0;
    driver.disk.worker.add(Job::Start(WriteMode::Back));
    let end = Instant::now() + Duration::from_secs(30);
    while !driver.disk.worker.has_reports() {
        assert!(Instant::now() < end, "waited 30 s for the worker's report");
        std::thread::yield_now();
    }
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    driver.serve_all();
    assert_eq!(driver.statuses(), [0]);
}

#[test]
fn a_queue_is_reset_when_storage_has_let_go_of_its_buffers() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    VirtioDevice::<Memory>::reset_queue(&mut driver.disk, 0);
    let drains = |driver: &Driver, index| driver.disk.in_flight.of_queue(index) > 0;
    assert!(drains(&driver, 0) && !drains(&driver, 1));
    assert_eq!(shown(&driver), (1, true));
    answer.write_all(&[7; 4096]).unwrap();
    handle_until(&mut driver, |driver| !drains(driver, 0));
    assert!(!driver.disk.drains_queue(0));
    assert_eq!(shown(&driver), (0, false));
    assert_eq!(driver.statuses(), [OPEN], "the driver owns the request again");
}

#[test]
fn the_image_of_a_device_that_ended_is_claimed_until_storage_lets_go() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    let Driver { disk, target_file, hypervisor, memory, .. } = driver;
    let stats = Arc::clone(&disk.common.stats);
    // The end of the device waits for storage, in a thread of its own.
    let dropping = std::thread::spawn(move || drop((disk, memory)));
    let open = || {
        let mut options = TargetOptions::for_test(target_file.path());
        options.owner.domain = 2;
        Target::open(options)
    };
    assert!(open().is_err(), "the image is free though storage may still write it");
    assert!(hypervisor.mapped_pages(xen::DomId(1)) > 0 || hypervisor.map_calls() == 0);
    assert!(!dropping.is_finished());
    let end = Instant::now() + Duration::from_secs(30);
    let storage = || stats.storage().unwrap().snapshot();
    while !storage().waiting {
        assert!(Instant::now() < end, "the device that ended is not shown to wait");
        std::thread::yield_now();
    }
    let shown = (storage().image, storage().in_flight);
    assert_eq!(shown, (target_file.path().display().to_string(), 1));
    answer.write_all(&[7; 4096]).unwrap();
    dropping.join().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while open().is_err() {
        assert!(Instant::now() < end, "the image stays claimed");
        std::thread::sleep(Duration::from_millis(5));
    }
    while stats.storage().is_some() {
        assert!(Instant::now() < end, "the image is free, and shown as used");
        std::thread::yield_now();
    }
}

#[test]
fn no_more_is_taken_from_the_ring_than_may_be_in_flight() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.disk.in_flight =
        InFlightTable::new(InFlightLimits { requests: 2, bytes: 1 << 20 }, Arc::default());
    // Not adjacent, so that they are not joined.
    (0..5).for_each(|page| driver.add_at(VIRTIO_BLK_T_IN, page * 100, page, &[], READ));
    serve(&mut driver);
    assert_eq!(driver.disk.in_flight.len(), 2);
    for _ in 0..5 {
        answer.write_all(&[7; 4096]).unwrap();
        let answered = |driver: &Driver| driver.statuses().iter().filter(|it| **it == 0).count();
        let before = answered(&driver);
        handle_until(&mut driver, |driver| answered(driver) > before);
        serve(&mut driver);
        assert!(driver.disk.in_flight.len() <= 2);
    }
    assert_eq!(driver.statuses(), [0; 5]);
}

/// A file in memory that cannot grow beyond its `length` bytes.
fn sealed(length: u64) -> File {
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
    let file = File::from(memfd_create("disk", flags).unwrap());
    file.set_len(length).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    file
}

#[test]
fn adjacent_writes_are_joined_and_fail_each_by_itself() {
    for method in [Method::Ring, Method::Threads] {
        let file = sealed(3 * 4096);
        let image = image(file.try_clone().unwrap(), None, Store::Slow);
        let mut driver = Driver::with_method(&image, 1 << VIRTIO_BLK_F_FLUSH, method);
        for page in 0..4u8 {
            driver.fill(page.into(), page + 1);
            let sector = u64::from(page) * 8;
            driver.add_at(VIRTIO_BLK_T_OUT, sector, page.into(), &[], WRITE);
        }
        driver.serve_all();
        assert_eq!(driver.statuses(), [0, 0, 0, IO_ERROR], "{method:?}");
        for page in 0..3u8 {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, u64::from(page) * 4096).unwrap();
            assert_eq!(bytes, [page + 1; 4096], "{method:?}");
        }
    }
}

#[test]
fn reads_fill_their_own_buffers_whether_cached_or_not() {
    for (method, store) in [
        (Method::Ring, Store::Slow),
        (Method::Ring, Store::Direct),
        (Method::Threads, Store::Direct),
        (Method::Ring, Store::Memory),
    ] {
        let file = tempfile::tempfile().unwrap();
        let direct = (store == Store::Direct).then(|| file.try_clone().unwrap());
        (0..8u8).for_each(|page| {
            file.write_all_at(&[page + 1; 4096], u64::from(page) * 4096).unwrap();
        });
        let image = image(file, direct, store);
        let mut driver = Driver::with_method(&image, 1 << VIRTIO_BLK_F_FLUSH, method);
        // Some adjacent, some not, and one longer than others.
        for (page, sector) in [(0, 0), (1, 8), (2, 16), (3, 40), (4, 32)] {
            driver.add_at(VIRTIO_BLK_T_IN, sector, page, &[], READ);
        }
        driver.add_at(VIRTIO_BLK_T_IN, 48, 5, &[], Some((8192, Access::ReadWrite)));
        driver.serve_all();
        assert_eq!(driver.statuses(), [0; 6], "{method:?} {store:?}");
        let pages: Vec<_> = (0..7).map(|page| driver.data(page)[4095]).collect();
        assert_eq!(pages, [1, 2, 3, 6, 5, 7, 8], "{method:?} {store:?}");
    }
}

#[test]
fn a_sync_that_fails_fails_all_flushes_from_then_on() {
    for method in [Method::Ring, Method::Threads] {
        // The kernel refuses to sync a pipe.
        let (pipe, _writer) = io::pipe().unwrap();
        let image = image(File::from(OwnedFd::from(pipe)), None, Store::Slow);
        let mut driver = Driver::with_method(&image, 1 << VIRTIO_BLK_F_FLUSH, method);
        (0..2).for_each(|_| driver.add_at(VIRTIO_BLK_T_FLUSH, 0, 0, &[], None));
        driver.serve_all();
        driver.add_at(VIRTIO_BLK_T_FLUSH, 0, 0, &[], None);
        driver.serve_all();
        assert_eq!(driver.statuses(), [IO_ERROR; 3], "{method:?}");
        let lost = image.0.lock().unwrap().file.as_ref().unwrap().durability.is_lost();
        assert!(lost, "{method:?}");
    }
}

#[test]
fn direct_transfers_use_the_pool_as_the_kernel_registered_it() {
    let file = tempfile::tempfile().unwrap();
    let direct = file.try_clone().unwrap();
    let pages = 128;
    (0..pages).for_each(|page| {
        file.write_all_at(&[page as u8 + 1; 4096], page * 4096).unwrap();
    });
    let image = image(file.try_clone().unwrap(), Some(direct), Store::Direct);
    let mut driver = Driver::new(&image);
    driver.share_data();
    // One within a chunk of 64 pages, and one of a page that ends a chunk and one that begins one.
    driver.add_at(VIRTIO_BLK_T_IN, 0, 0, &[], Some((32 << 12, Access::ReadWrite)));
    driver.add_at(VIRTIO_BLK_T_IN, 63 * 8, 63, &[], READ);
    driver.add_at(VIRTIO_BLK_T_IN, 64 * 8, 64, &[], READ);
    driver.serve_all();
    let read: Vec<_> = [0, 31, 63, 64].into_iter().map(|page| driver.data(page)[7]).collect();
    assert_eq!((driver.statuses(), read), (vec![0; 3], vec![1, 32, 64, 65]));
    driver.fill(70, 0x77);
    driver.add_at(VIRTIO_BLK_T_OUT, 0, 70, &[], WRITE);
    driver.serve_all();
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0x77; 4096]);
    // Nothing of the pool stays mapped after a reset.
    VirtioDevice::<Memory>::reset(&mut driver.disk);
    end_reset(&mut driver);
    driver.memory.unshare_all();
    let left = driver.hypervisor.mapped_pages(xen::DomId(1));
    assert!(left < 64, "{left} pages stay mapped");
}

/// Asks for the first 64 pages of the pool, as the transport does.
fn unshare(driver: &mut Driver) -> Result<(), UnshareError> {
    VirtioDevice::<Memory>::forget_regions(&mut driver.disk);
    driver.memory.unshare(PoolPage(0), 64)
}

#[test]
fn spec_5_11_registered_pages_are_given_back_between_requests() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[5; 128 << 12], 0).unwrap();
    let image = image(file.try_clone().unwrap(), Some(file), Store::Direct);
    let mut driver = Driver::new(&image);
    driver.share_data();
    let mapped = |driver: &Driver| driver.hypervisor.mapped_pages(xen::DomId(1));
    let before = mapped(&driver);
    driver.add_at(VIRTIO_BLK_T_IN, 0, 0, &[], READ);
    driver.add_at(VIRTIO_BLK_T_IN, 0, 64, &[], READ);
    driver.serve_all();
    assert_eq!(unshare(&mut driver), Ok(()));
    assert_eq!(mapped(&driver), before - 64);
    // The rest of the pool is registered anew.
    driver.add_at(VIRTIO_BLK_T_IN, 0, 65, &[], READ);
    driver.serve_all();
    assert_eq!((driver.statuses(), driver.data(65)[7]), (vec![0; 3], 5));
}

#[test]
fn spec_5_11_pages_are_refused_while_storage_uses_the_pool() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.share_data();
    driver.add_at(VIRTIO_BLK_T_IN, 0, 70, &[], READ);
    serve(&mut driver);
    assert_eq!(unshare(&mut driver), Err(UnshareError::InUse));
    answer.write_all(&[7; 4096]).unwrap();
    handle_until(&mut driver, |driver| driver.status(0) != OPEN);
    assert_eq!((driver.statuses(), driver.data(70)[7]), (vec![0], 7));
    assert_eq!(unshare(&mut driver), Ok(()));
}

/// A disk by direct I/O whose longest transfer is three pages, with reads of 16 pages, of 2, and of
/// the next 2.
fn divided(direct: File) -> Driver {
    let image = image(tempfile::tempfile().unwrap(), Some(direct), Store::Direct);
    if let Some(DiskFile { direct: Some(direct), .. }) = &mut image.0.lock().unwrap().file {
        direct.longest = 3 << 12;
    }
    let mut driver = Driver::new(&image);
    for (page, count) in [(0, 16), (16, 2), (18, 2)] {
        let data = Some((count << 12, Access::ReadWrite));
        driver.add_at(VIRTIO_BLK_T_IN, page * 8, page, &[], data);
    }
    driver
}

#[test]
fn a_direct_transfer_is_divided_where_the_kernel_would() {
    let file = tempfile::tempfile().unwrap();
    (0..20).for_each(|page| file.write_all_at(&[page as u8 + 1; 4096], page * 4096).unwrap());
    let mut driver = divided(file);
    driver.serve_all();
    let read: Vec<_> = (0..20).map(|page| driver.data(page)[4095]).collect();
    assert_eq!((driver.statuses(), read), (vec![0; 3], (1..=20).collect()));

    if !Method::Ring.is_available() {
        println!("skipped: the kernel refuses io_uring");
        return;
    }
    let (pipe, writer) = io::pipe().unwrap();
    // The writer is dropped first, and the disk waits for no answer.
    let (mut driver, _writer) = (divided(File::from(OwnedFd::from(pipe))), writer);
    serve(&mut driver);
    let parts = |slot| driver.disk.in_flight.get(slot).map(|entry| entry.operations);
    assert_eq!([0, 1, 2].map(parts), [6, 1, 1].map(Some), "joined, the last two are longer");
}

#[test]
fn a_part_that_storage_gives_up_is_not_repeated_with_the_whole_transfer() {
    if !Method::Ring.is_available() {
        println!("skipped: the kernel refuses io_uring");
        return;
    }
    // An error that is final, and one that other buffers or the page cache may avoid.
    for (errno, repeated, status) in [(libc::EIO, 0, IO_ERROR), (libc::EINVAL, 1, OPEN)] {
        let (pipe, writer) = io::pipe().unwrap();
        let (mut driver, _writer) = (divided(File::from(OwnedFd::from(pipe))), writer);
        serve(&mut driver);
        let submitted = driver.disk.engine.in_flight();
        for part in 0..6 {
            let failed = part == 2 || (part == 4 && errno == libc::EIO);
            end_part(&mut driver, 0, (part * 3) << 12, failed.then_some(errno));
        }
        assert_eq!(driver.disk.engine.in_flight() - submitted, repeated);
        driver.handle_now();
        assert_eq!(driver.statuses(), [status, OPEN, OPEN]);
    }
}

/// The part of a transfer that is at this offset ends, with this error or well.
fn end_part(driver: &mut Driver, slot: usize, offset: u64, errno: Option<i32>) {
    let file = Arc::clone(driver.disk.in_flight.get(slot).unwrap().file().unwrap());
    let vector = OwnedVector::empty();
    let operation = Operation::new(Arc::clone(file.waiting()), Work::Read { offset }, vector);
    let outcome = errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
    driver.disk.land(Landed { token: Ticket::Transfer(slot), outcome, operation });
}

#[test]
fn no_request_of_a_divided_transfer_succeeds_that_cannot_be_repeated() {
    for is_wanted in [true, false] {
        let Some((mut driver, _answer)) = hung() else { return };
        driver.share_data();
        // Joined, and two operations, since they are in two chunks of the pool.
        driver.add_at(VIRTIO_BLK_T_IN, 0, 48, &[], Some((16 << 12, Access::ReadWrite)));
        driver.add_at(VIRTIO_BLK_T_IN, 16 * 8, 64, &[], Some((16 << 12, Access::ReadWrite)));
        serve(&mut driver);
        let first = driver.disk.in_flight.get(0).unwrap();
        assert_eq!((first.operations, first.next), (2, Some(1)));
        match is_wanted {
            // No operation can be made of it.
            true => driver.disk.in_flight.get_mut(0).unwrap().command = BlockCommand::Flush,
            false => driver.disk.in_flight.forget(Some(0)),
        }
        end_part(&mut driver, 0, 0, Some(libc::EINVAL));
        end_part(&mut driver, 0, 16 << 12, None);
        let failed: Vec<_> = driver.disk.ended.iter().map(|it| it.outcome.is_err()).collect();
        assert_eq!(failed, [true, true], "wanted: {is_wanted}");
    }
}

#[test]
fn a_part_of_a_divided_transfer_that_fails_fails_the_request() {
    // Two chunks of the pool are two operations, the second of them beyond the file's end.
    let file = sealed(64 << 12);
    let direct = file.try_clone().unwrap();
    let image = image(file, Some(direct), Store::Direct);
    let mut driver = Driver::new(&image);
    driver.share_data();
    driver.add_at(VIRTIO_BLK_T_OUT, 0, 0, &[], Some((16 << 12, Access::ReadOnly)));
    driver.add_at(VIRTIO_BLK_T_OUT, 32 * 8, 48, &[], Some((16 << 12, Access::ReadOnly)));
    // Adjacent to the request before it, and in the next chunk.
    driver.add_at(VIRTIO_BLK_T_OUT, 48 * 8, 64, &[], Some((32 << 12, Access::ReadOnly)));
    driver.serve_all();
    assert_eq!(driver.statuses(), [0, 0, IO_ERROR]);
}

#[test]
fn a_reset_of_one_queue_leaves_no_request_of_another_unanswered() {
    let Some((mut driver, mut answer)) = hung() else { return };
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    let due = |driver: &Driver| VirtioDevice::<Memory>::deadline(&driver.disk).is_some();
    assert!(!due(&driver));
    answer.write_all(&[7; 4096]).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    // The reset takes the completion, after which no source is ready.
    while !due(&driver) {
        assert!(Instant::now() < end, "nothing tells of the request that has ended");
        VirtioDevice::<Memory>::reset_queue(&mut driver.disk, 1);
    }
    driver.handle_now();
    assert_eq!((driver.statuses(), due(&driver)), (vec![0], false));
}

#[test]
fn an_answered_request_is_unmapped_though_another_of_its_batch_is_in_flight() {
    let Some((mut driver, mut answer)) = hung() else { return };
    let pages = 600;
    driver.add_at(VIRTIO_BLK_T_IN, 0, 0, &[], Some((pages << 12, Access::ReadWrite)));
    driver.add_at(VIRTIO_BLK_T_GET_ID, 0, 700, &[], Some((20, Access::ReadWrite)));
    // More than is copied together, so all of the batch is mapped.
    let before = driver.hypervisor.mapped_pages(xen::DomId(1));
    serve(&mut driver);
    assert_eq!(driver.statuses(), [OPEN, 0]);
    let mapped = driver.hypervisor.mapped_pages(xen::DomId(1)) - before;
    assert_eq!(mapped, pages as usize + 2, "the read's header, data and status");
    // The pipe takes less at a time.
    let writing = std::thread::spawn(move || {
        (0..pages).for_each(|_| answer.write_all(&[7; 4096]).unwrap());
    });
    handle_until(&mut driver, |driver| driver.status(0) != OPEN);
    writing.join().unwrap();
    assert_eq!(driver.hypervisor.mapped_pages(xen::DomId(1)), before);
}

#[test]
fn a_reset_ends_though_the_worker_has_panicked() {
    let image = Scripted::new(|script| script.panics = true);
    let mut driver = Driver::new(&image);
    driver.add(VIRTIO_BLK_T_IN, &[], READ);
    serve(&mut driver);
    VirtioDevice::<Memory>::reset(&mut driver.disk);
    end_reset(&mut driver);
}
