//! Tests of a queue reset (virtio 1.3 section 2.6.1): the queue's buffers belong to the driver
//! again, on every device; the device's other queues continue, and so does this one once it is set
//! up again.

use std::io::Write;

use protocol::message::{Request, Response};
use protocol::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, F_RING_RESET, FEATURES_OK,
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::block::{OK, header, request};
use super::driver::{Driver, Shared};
use super::host::{Host, TestDisk, numbered_disk};
use super::vsock::guest::{Packet, RESET, Setting};
use super::{console, network};
use xen::{Access, DomId};

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
/// The content of a buffer that the device has not written.
const UNTOUCHED: u8 = 0xee;

/// Adds buffers to a queue and notifies its doorbell.
fn post(driver: &mut Driver, queue: u32, count: usize) -> Vec<Shared> {
    driver.use_queue(queue as usize);
    let buffers = (0..count).map(|_| driver.share(&[UNTOUCHED; 2000], Access::ReadWrite));
    let buffers: Vec<_> = buffers.collect();
    for buffer in &buffers {
        driver.submit(&[buffer.writable()]);
    }
    buffers
}

/// Checks that the device has not written to these buffers, which it must have forgotten. They stay
/// granted until here, so that a device that did not forget them would have written.
fn untouched(host: &Host, driver: &mut Driver, buffers: &[Shared]) {
    host.wait_until_idle(driver);
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, 0);
    for buffer in buffers {
        assert!(driver.unshare(buffer).iter().all(|byte| *byte == UNTOUCHED));
    }
}

/// Returns the bytes that the device wrote to the first of the queue's buffers.
fn first_used(driver: &mut Driver, queue: u32, buffers: &[Shared]) -> Vec<u8> {
    driver.use_queue(queue as usize);
    let (_, written) = driver.wait_used();
    let bytes = driver.unshare(&buffers[0]);
    buffers[1..].iter().for_each(|buffer| drop(driver.unshare(buffer)));
    bytes[..written as usize].to_vec()
}

#[test]
fn spec_6_7_network_device_forgets_the_buffers_of_a_reset_queue() {
    let host = Host::start();
    let (ends, mut driver, cable) = network::add(&host, 1);
    driver.start_with(2);
    let buffers = post(&mut driver, RECEIVE, 8);
    // The device takes all buffers with the first packet.
    assert!(cable.send(0, &network::packet(60, 1)));
    driver.wait_used();
    let (first, kept) = buffers.split_first().unwrap();
    driver.unshare(first);
    driver.reset_queue(RECEIVE);
    for seed in 2..7 {
        assert!(cable.send(0, &network::packet(60, seed)));
    }
    untouched(&host, &mut driver, kept);
    // The other direction continues.
    driver.use_queue(TRANSMIT as usize);
    let sent = network::packet(100, 9);
    let buffer = driver.share(&sent, Access::ReadOnly);
    driver.submit(&[buffer.readable()]);
    driver.wait_used();
    driver.unshare(&buffer);
    assert_eq!(cable.next(), (0, sent));

    // Packets that arrived meanwhile wait for buffers.
    driver.renew_ring(RECEIVE);
    for seed in 2..7 {
        let buffers = post(&mut driver, RECEIVE, 1);
        let received = first_used(&mut driver, RECEIVE, &buffers);
        assert_eq!(received[12..], network::packet(60, seed)[12..]);
    }
    assert_eq!(host.stat(DomId(1)).stats.dropped.to_guest, 0);
    driver.reset_queue(TRANSMIT);
    driver.renew_ring(TRANSMIT);
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_6_7_console_forgets_the_buffers_of_a_reset_queue() {
    let (host, ends, mut driver) = console::console();
    let mut terminal = console::terminal(&host, &ends);
    let buffers = post(&mut driver, RECEIVE, 2);
    terminal.write_all(b"one").unwrap();
    driver.use_queue(RECEIVE as usize);
    assert_eq!(driver.wait_used().1, 3);
    let (first, kept) = buffers.split_first().unwrap();
    driver.unshare(first);
    driver.reset_queue(RECEIVE);
    terminal.write_all(b"two").unwrap();
    untouched(&host, &mut driver, kept);
    driver.renew_ring(RECEIVE);
    let buffers = post(&mut driver, RECEIVE, 1);
    assert_eq!(first_used(&mut driver, RECEIVE, &buffers), b"two");
    console::end(host, &ends, driver);
}

#[test]
fn spec_6_7_socket_device_forgets_the_buffers_of_a_reset_queue() {
    let mut setting = Setting::new();
    let buffers = post(&mut setting.driver, RECEIVE, 2);
    setting.driver.reset_queue(RECEIVE);
    // The device answers with a reset of the named connection.
    setting.send(&Packet::data(99, b""));
    untouched(&setting.host, &mut setting.driver, &buffers);
    setting.driver.renew_ring(RECEIVE);
    assert_eq!(setting.expect(RESET).host, 99);
    setting.end();
}

#[test]
fn spec_6_7_entropy_device_forgets_requests_that_wait_for_the_rate() {
    let host = Host::start();
    host.configure("[domain.web1.virtio.0.rng]\nrate = \"8KiB/s\"");
    host.hypervisor.store_write("/local/domain/1/name", "web1");
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device4")]);
    let mut driver = host.connect(&ends);
    driver.start();
    // More than was saved up: later requests wait in the ring until the timer fires.
    let buffer = driver.share(&[0; 3 * 4096], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    driver.wait_used();
    driver.unshare(&buffer);
    let buffers = post(&mut driver, 0, 2);
    host.wait_until_idle(&mut driver);
    driver.reset_queue(0);
    driver.renew_ring(0);
    let others = post(&mut driver, 0, 1);
    assert_eq!(first_used(&mut driver, 0, &others).len(), 2000);
    untouched(&host, &mut driver, &buffers);
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_6_7_disk_serves_no_request_of_a_reset_queue() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    assert_ne!(disk.driver.offered() & 1 << F_RING_RESET, 0);
    disk.driver.start_with(2);
    for queue in [0, 1, 0] {
        disk.driver.use_queue(queue);
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
        // In the ring at the reset, unless it was served before.
        let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
        let input = disk.driver.share(&[UNTOUCHED; 512], Access::ReadWrite);
        let status = disk.driver.share(&[0xff], Access::ReadWrite);
        let chain = [head.readable(), input.writable(), status.writable()];
        let (ring, guest) = disk.driver.ring();
        ring.add(guest, &chain);
        disk.driver.reset_queue(queue as u32);
        let before = disk.driver.peek(&input);
        disk.wait_until_idle();
        assert_eq!(disk.driver.unshare(&input), before);
        disk.driver.unshare(&head);
        disk.driver.unshare(&status);
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1 + 3, "the other queue's rings");
        disk.driver.renew_ring(queue as u32);
    }
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 6, &[], 512), (OK, vec![6; 512]));
}

#[test]
fn spec_6_7_reset_queue_may_use_events_in_band() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    disk.driver.reset_queue(0);
    disk.driver.renew_silent_ring(0);
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    disk.driver.submit(&[head.readable(), input.writable(), status.writable()]);
    disk.driver.send_avail(0);
    assert_eq!((disk.driver.wait_used_event(), disk.driver.wait_used()), (0, (0, 513)));
    for shared in [head, input, status] {
        disk.driver.unshare(&shared);
    }
    // A nonexistent queue, in every message that names one.
    disk.driver.ask(Request::ResetVqueue { index: u32::MAX }, |answer| {
        assert_eq!(answer, Response::ResetVqueue);
    });
}

#[test]
fn spec_6_7_no_notification_for_buffers_used_before_the_reset() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    // The driver wants a notification for every used buffer.
    let features = disk.driver.offered() & !(1 << VIRTIO_RING_F_EVENT_IDX);
    disk.driver.negotiate(features);
    (0..4).for_each(|index| disk.driver.add_silent_ring(index));
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    let chain = [head.readable(), input.writable(), status.writable()];
    // The page has four slots for messages to the driver, which takes none: the fifth event waits.
    let before = disk.driver.sent_by_device();
    for (queue, served) in [0, 1, 2, 3, 0].into_iter().zip(1..) {
        disk.driver.use_queue(queue);
        disk.driver.submit(&chain);
        disk.driver.send_avail(queue as u32);
        disk.host.wait_requests_read(served.into());
        disk.driver.wait_sent_by_device(before.wrapping_add(served.min(4)));
    }
    // An event for which the driver made room may precede the device's look at the request.
    disk.driver.reset_queue_before_events(0);
    disk.driver.renew_silent_ring(0);
    for shared in [head, input, status] {
        disk.driver.unshare(&shared);
    }
    // All events arrive before or with the responses to these.
    assert_eq!(disk.driver.used_events(), [0, 1, 2, 3]);
}
