//! Tests of devices whose queues several threads process.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use protocol::message::{Request, Response, UnshareOutcome};
use protocol::pool::PoolPage;
use protocol::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, F_RING_RESET, FEATURES_OK,
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::bare_device::{BareSession, Mishap, Storage, serve_by, serve_over};
use super::block::{OK, header, request};
use super::driver::Driver;
use super::flaky_store::FlakyXen;
use super::host::{Host, TestDisk, numbered_disk};
use crate::config::ThreadLimit;
use crate::domain::ByGrants;
use xen::Access;

const TWO: ThreadLimit = ThreadLimit::Fixed(NonZero::new(2).unwrap());

const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// A bare device with four queues, which two threads process.
fn serve(host: &Host, storage: &Arc<Storage>) -> BareSession {
    serve_by(host, storage, None, TWO, &[16; 4])
}

/// Rings the doorbell of a queue.
fn ring(driver: &mut Driver, queue: usize) {
    driver.use_queue(queue);
    driver.ring().0.doorbell.notify();
}

/// Waits until the device needs a reset.
fn wait_broken(driver: &mut Driver) {
    driver.until("the device to need a reset", |driver| driver.status() & DEVICE_NEEDS_RESET != 0);
}

#[test]
fn queues_are_divided_between_threads_and_stay_with_them() {
    let (host, storage) = (Host::start(), Storage::sound());
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    for _ in 0..2 {
        driver.start_with(4);
        driver.until("all queues to be processed", |_| storage.threads().len() == 4);
        let threads = storage.threads();
        assert_eq!((threads[&0], threads[&1]), (threads[&2], threads[&3]));
        assert_ne!(threads[&0], threads[&1]);
        // Messages in between change nothing of that.
        for queue in 0..4 {
            ring(&mut driver, queue);
            driver.ask(Request::GetVqueue { index: queue as u32 }, |_| ());
        }
        assert_eq!(storage.threads(), threads);
        assert_eq!(driver.set_status(0), 0);
        driver.free_rings();
    }
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_4_reset_waits_for_the_storage_of_all_threads() {
    let (host, storage) = (Host::start(), Storage::hung_for(1));
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start_with(4);
    assert_eq!(driver.set_status(0), RUNNING);
    driver.free_rings();
    storage.let_go();
    driver.until("the reset is complete", |driver| driver.status() == 0);
    driver.start_with(2);
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_7_reset_of_another_threads_queue_is_answered_when_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::hung_for(1));
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    let features = driver.offered() | 1 << F_RING_RESET;
    driver.start_accepting(features, 4);
    let release = Arc::clone(&storage);
    let releasing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        release.let_go();
    });
    let held = driver.ask(Request::ResetVqueue { index: 3 }, |answer| {
        assert_eq!(answer, Response::ResetVqueue);
        storage.holds()
    });
    assert!(!held, "the queue's buffers are still in use");
    releasing.join().unwrap();
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

/// Resets queue 1 of a driver that uses these queues, while storage holds buffers of it.
fn reset_queue_1(queues: u32, let_go: impl FnOnce(&mut Driver, &Storage)) {
    let (host, storage) = (Host::start(), Storage::hung_for(1));
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    let features = driver.offered() | 1 << F_RING_RESET;
    driver.start_accepting(features, queues);
    driver.until("all queues to be processed", |_| storage.threads().len() == queues as usize);
    driver.send_silently(Request::ResetVqueue { index: 1 });
    driver.port.notify();
    // Once for the message, and once at the end of the iteration.
    storage.wait_asked(2);
    let_go(&mut driver, &storage);
    driver.wait_answer("the reset of queue 1", |answer| assert_eq!(answer, Response::ResetVqueue));
    assert!(!storage.holds());
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_7_reset_of_a_threads_only_queue_is_answered_when_storage_lets_go() {
    reset_queue_1(2, |_, storage| storage.let_go());
}

#[test]
fn spec_6_7_reset_is_answered_if_the_processing_of_another_queue_finds_that_storage_let_go() {
    reset_queue_1(4, |driver, storage| {
        storage.plan(3, Mishap::LetGo);
        ring(driver, 3);
    });
}

#[test]
fn sources_of_a_part_whose_queues_were_reset_are_handled() {
    let (host, storage) = (Host::start(), Storage::sound());
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    let features = driver.offered() | 1 << F_RING_RESET;
    driver.start_accepting(features, 2);
    driver.ask(Request::ResetVqueue { index: 1 }, |_| ());
    storage.let_go();
    driver.until("the second part to handle its source", |_| storage.is_handled(1));
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn parts_share_the_limits_with_those_whose_queues_are_enabled_later() {
    let (host, storage) = (Host::start(), Storage::sound());
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start_with(1);
    assert_eq!(storage.shares(), [1, 1]);
    driver.add_silent_ring(1);
    driver.until("the queue to be processed", |_| storage.threads().len() == 2);
    assert_eq!(storage.shares(), [2, 2]);
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn thread_without_a_descriptor_waits_for_one() {
    let xen = FlakyXen::default();
    let host = Host::start_with(xen.hypervisor.clone(), ByGrants(xen.clone()));
    let storage = Storage::sound();
    let BareSession { ends, thread, .. } = serve_over(&host, xen.clone(), &storage, TWO, &[16; 4]);
    let mut driver = host.connect(&ends);
    let features = driver.offered();
    driver.negotiate(features);
    (0..2).for_each(|index| driver.add_silent_ring(index));
    xen.lack_events(true);
    assert_eq!(driver.set_status(RUNNING), RUNNING);
    // At the start, and once more.
    xen.wait_refusals(2);
    xen.lack_events(false);
    let end = Instant::now() + Duration::from_secs(10);
    while storage.threads().len() < 2 {
        assert!(Instant::now() < end, "waited 10 s for the second queue to be processed");
        thread::yield_now();
    }
    assert_eq!(driver.status(), RUNNING);
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_4_reset_unmaps_the_pool_of_a_thread_that_panicked() {
    let (host, storage) = (Host::start(), Storage::sound());
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start_with(4);
    driver.share_pool(PoolPage(0), 2);
    storage.plan(3, Mishap::Panic);
    ring(&mut driver, 3);
    wait_broken(&mut driver);
    driver.reset_device();
    assert_eq!(host.hypervisor.mapped_pages(ends.guest), 1, "the message page");
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_5_panic_stops_the_device_before_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::hung_for(1));
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start_with(4);
    driver.until("all queues to be processed", |_| storage.threads().len() == 4);
    storage.plan(3, Mishap::Panic);
    ring(&mut driver, 3);
    wait_broken(&mut driver);
    storage.let_go();
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_5_panic_while_a_message_calls_the_thread_back_stops_the_device() {
    let (host, storage) = (Host::start(), Storage::sound());
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start_with(4);
    driver.until("all queues to be processed", |_| storage.threads().len() == 4);
    storage.plan(3, Mishap::LatePanic);
    ring(&mut driver, 3);
    driver.until("the panic to be under way", |_| storage.has_begun_mishap());
    driver.ask(Request::GetVqueue { index: 3 }, |_| ());
    wait_broken(&mut driver);
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_2_7_toolstacks_end_waits_for_the_storage_of_no_thread_for_ever() {
    let (host, storage) = (Host::start(), Storage::hung_for(1));
    let BareSession { ends, thread, .. } = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start_with(4);
    host.remove(&ends);
    assert!(thread.join().unwrap(), "the device was dropped where its storage is waited for");
    driver.release();
    host.finish();
}

#[test]
fn spec_6_5_fault_in_one_thread_stops_the_device_until_it_is_reset() {
    for mishap in [Mishap::Fault, Mishap::Panic] {
        let (host, storage) = (Host::start(), Storage::sound());
        let BareSession { ends, thread, .. } = serve(&host, &storage);
        let mut driver = host.connect(&ends);
        driver.start_with(4);
        driver.until("all queues to be processed", |_| storage.threads().len() == 4);
        storage.plan(3, mishap);
        ring(&mut driver, 3);
        wait_broken(&mut driver);
        driver.reset_device();
        driver.free_rings();
        driver.start_with(4);
        storage.plan(3, Mishap::Fault);
        ring(&mut driver, 3);
        // The queue is processed again.
        wait_broken(&mut driver);
        driver.close();
        host.remove(&ends);
        thread.join().unwrap();
        host.finish();
    }
}

/// A disk whose queues two threads process.
fn disk() -> TestDisk {
    let file = numbered_disk(64);
    TestDisk::connect_configured(file, "w", "[default]\nthreads = 2")
}

#[test]
fn a_part_without_queues_wakes_nobody() {
    let mut disk = disk();
    for sectors in [128, 256] {
        disk.driver.start();
        // The worker tells all parts of the new size.
        disk.file.as_file().set_len(sectors * 512).unwrap();
        disk.driver.wait_config_event();
        let sleeps = |disk: &TestDisk| disk.host.stat(disk.ends.guest).stats.counts.sleeps;
        let before = sleeps(&disk);
        for _ in 0..100 {
            disk.driver.status();
        }
        // One for each message, and some in between.
        let taken = sleeps(&disk) - before;
        assert!(taken <= 220, "{taken} sleeps");
        assert_eq!(disk.driver.set_status(0), 0);
        disk.driver.free_rings();
    }
}

#[test]
fn a_queue_that_is_enabled_late_gets_its_thread() {
    let mut disk = disk();
    let features = disk.driver.offered() | 1 << F_RING_RESET;
    disk.driver.start_accepting(features, 2);
    for index in [1, 0, 1] {
        disk.driver.reset_queue(index);
        disk.driver.renew_ring(index);
        for queue in 0..2 {
            disk.driver.use_queue(queue);
            let (status, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, 5, &[], 512);
            assert_eq!((status, read), (OK, vec![5; 512]));
        }
    }
}

#[test]
fn all_queues_of_a_disk_read_and_write_and_flush() {
    let mut disk = disk();
    disk.driver.start_with(4);
    for round in 0..16u64 {
        disk.driver.use_queue(round as usize % 4);
        let (status, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, round, &[], 512);
        assert_eq!((status, read), (OK, vec![round as u8; 512]));
        request(&mut disk.driver, VIRTIO_BLK_T_OUT, round, &[0xaa; 512], 0);
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
        // Another thread sees what this one wrote.
        disk.driver.use_queue((round as usize + 1) % 4);
        let (status, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, round, &[], 512);
        assert_eq!((status, read), (OK, vec![0xaa; 512]));
    }
}

#[test]
fn spec_5_3_queues_without_doorbells_are_served_by_messages() {
    let mut disk = disk();
    // The driver wants a notification for every used buffer.
    let features = disk.driver.offered() & !(1 << VIRTIO_RING_F_EVENT_IDX);
    disk.driver.negotiate(features);
    (0..4).for_each(|index| disk.driver.add_silent_ring(index));
    disk.driver.set_status(RUNNING);
    for index in [3, 1, 0, 2, 1] {
        disk.driver.use_queue(index as usize);
        let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, index.into()), Access::ReadOnly);
        let input = disk.driver.share(&[0; 512], Access::ReadWrite);
        let status = disk.driver.share(&[0xff], Access::ReadWrite);
        disk.driver.submit(&[head.readable(), input.writable(), status.writable()]);
        disk.driver.send_avail(index);
        assert_eq!(disk.driver.wait_used_event(), index);
        disk.driver.wait_used();
        assert_eq!(disk.driver.unshare(&input), [index as u8; 512]);
        disk.driver.unshare(&head);
        assert_eq!(disk.driver.unshare(&status), [OK]);
    }
}

#[test]
fn pages_that_are_shared_while_threads_run_reach_all_of_them() {
    let mut disk = disk();
    disk.driver.start_with(4);
    for chunk in 0..3 {
        let pooled = disk.driver.share_pool(PoolPage(64 * chunk), 64);
        for queue in 0..4 {
            disk.driver.use_queue(queue);
            let (status, read) = super::pool::read_sector(&mut disk.driver, &pooled, queue as u64);
            assert_eq!((status, read), (OK, vec![queue as u8; 512]), "queue {queue}");
        }
    }
    assert_eq!(disk.driver.set_status(0), 0);
    assert_eq!(disk.host.hypervisor.mapped_pages(disk.ends.guest), 1);
    disk.driver.free_rings();
}

#[test]
fn messages_that_halt_a_thread_lose_none_of_its_requests() {
    let mut disk = disk();
    disk.driver.start_with(4);
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    let chain = [head.readable(), input.writable(), status.writable()];
    for round in 0..200 {
        let queue = round % 4;
        disk.driver.use_queue(queue);
        disk.driver.submit(&chain);
        // Its thread is called back before, while or after it processes the queue.
        disk.driver.ask(Request::GetVqueue { index: queue as u32 }, |_| ());
        disk.driver.wait_used();
    }
    for shared in [head, input, status] {
        disk.driver.unshare(&shared);
    }
}

#[test]
fn spec_5_11_pages_that_are_unshared_while_threads_run_are_mapped_for_none() {
    let mut disk = disk();
    disk.driver.start_with(4);
    let kept = disk.driver.share_pool(PoolPage(0), 64);
    let mapped = |disk: &TestDisk| disk.host.hypervisor.mapped_pages(disk.ends.guest);
    let before = mapped(&disk);
    for _ in 0..3 {
        let pooled = disk.driver.share_pool(PoolPage(64), 64);
        for queue in 0..4 {
            disk.driver.use_queue(queue);
            super::pool::read_sector(&mut disk.driver, &pooled, queue as u64);
        }
        assert_eq!(disk.driver.ask_unshare(PoolPage(64), 64), UnshareOutcome::Unshared);
        disk.driver.free_newest();
        assert_eq!(mapped(&disk), before);
        for queue in 0..4 {
            disk.driver.use_queue(queue);
            let read = super::pool::read_sector(&mut disk.driver, &kept, queue as u64);
            assert_eq!(read, (OK, vec![queue as u8; 512]));
        }
    }
}
