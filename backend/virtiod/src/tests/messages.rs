//! Tests of valid and invalid content of the message page.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use protocol::message::{BindOutcome, ConfigData, FeatureBlocks, Message, Request, Response};
use protocol::page::{Producer, QueueDirection};
use protocol::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use virtio_bindings::virtio_config::{VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_NOTIFICATION_DATA};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::block::{OK, header, request};
use super::driver::Driver;
use super::host::{Host, TestDisk, TestGuest, XVDA, numbered_disk};
use xen::{Access, DomId};

/// Writes bytes to the queue to the device, bypassing the driver's own transport. Only for messages
/// without a response that are the first in the page.
fn inject(driver: &Driver, messages: &[&[u8]]) -> Producer {
    let mut producer = Producer::new(QueueDirection::DriverToDevice);
    for message in messages {
        producer.push(driver.guest.words(driver.page), message).unwrap();
    }
    driver.port.notify();
    producer
}

#[test]
fn spec_5_3_malformed_messages_are_dropped_and_counted() {
    let (host, disk) = (Host::start(), numbered_disk(1));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    let mut producer = inject(
        &driver,
        &[
            &[0, 2, 0, 0, 1, 0, 7, 0],
            &[0, 0x3f, 0, 0, 1, 0, 8, 0],
            &[0, 8, 0, 0, 1, 0, 8, 0],
            &[1, 2, 0, 0, 1, 0, 8, 0],
        ],
    );
    // A valid message after them gets a response.
    let mut good = [0; 64];
    let size = Message::request(9, Request::GetDeviceStatus).encode(&mut good).unwrap();
    while producer.push(driver.guest.words(driver.page), &good[..size]).is_err() {
        driver.port.wait("a free slot in the message page");
    }
    driver.port.notify();
    let answered = || driver.guest.words(driver.page)[0x80 / 4].load(Ordering::Acquire) == 1;
    while !answered() {
        driver.port.wait("the response to the valid message");
    }
    let messages = host.stat(DomId(1)).stats.messages;
    assert_eq!((messages.received, messages.malformed), (5, 4));
    host.remove(&ends);
    driver.release();
    host.finish();
}

#[test]
fn spec_4_4_impossible_index_ends_the_connection_with_a_reason() {
    let (host, disk) = (Host::start(), numbered_disk(1));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.guest.words(driver.page)[0].store(99, Ordering::Release);
    driver.port.notify();
    host.wait_state(&ends, "6");
    assert!(host.error(&ends).unwrap().contains("99"), "{:?}", host.error(&ends));
    assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 0);
    driver.release();
    host.remove(&ends);
    host.finish();
}

#[test]
fn event_storm_neither_hangs_nor_grows_the_device() {
    let mut disk = TestDisk::connect(numbered_disk(1), "w");
    for _ in 0..10_000 {
        disk.driver.port.notify();
    }
    for number in 0..1000 {
        let echoed = disk.driver.ask(Request::Ping(number), |answer| match answer {
            Response::Ping(number) => number,
            other => panic!("{other:?}"),
        });
        assert_eq!(echoed, number);
    }
}

#[test]
fn message_is_answered_while_a_queue_is_served() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    let header = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    // The driver notifies the doorbell only.
    disk.driver.send_silently(Request::Ping(7));
    disk.driver.submit(&[header.readable(), input.writable(), status.writable()]);
    let number =
        disk.driver.wait_answer("the response to a message without a notification", |answer| {
            match answer {
                Response::Ping(number) => number,
                other => panic!("{other:?}"),
            }
        });
    assert_eq!(number, 7);
    assert_eq!(disk.driver.wait_used(), (0, 513));
    for shared in [header, input, status] {
        disk.driver.unshare(&shared);
    }
}

#[test]
fn spec_5_5_too_long_configuration_read_is_answered_with_less() {
    let mut disk = TestDisk::connect(numbered_disk(1), "w");
    let mut config = |offset, size| {
        disk.driver.ask(Request::GetConfig { offset, size }, |answer| match answer {
            Response::GetConfig(config) => config.data.to_vec(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(config(0, 8), 1u64.to_le_bytes(), "capacity in sectors");
    assert_eq!(config(0, 60).len(), 60);
    assert_eq!(config(0, 61), [0; 0], "beyond the end");
    assert_eq!(config(u32::MAX, u32::MAX), [0; 0]);
}

#[test]
fn spec_5_6_queue_without_a_doorbell_uses_events_in_band() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    let offered = disk.driver.offered();
    disk.driver.negotiate(offered);
    disk.driver.add_silent_ring(0);
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(disk.driver.set_status(ready), ready);
    assert_eq!(disk.driver.bind_doorbell(0), BindOutcome::Refused, "too late after DRIVER_OK");

    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    disk.driver.submit(&[head.readable(), input.writable(), status.writable()]);
    disk.driver.send_avail(0);
    assert_eq!(disk.driver.wait_used_event(), 0);
    assert_eq!(disk.driver.wait_used(), (0, 513));
    assert_eq!(disk.driver.unshare(&input), [3; 512]);
    disk.driver.unshare(&head);
    disk.driver.unshare(&status);
}

#[test]
fn spec_6_1_nothing_is_served_before_driver_ok() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    let offered = disk.driver.offered();
    disk.driver.negotiate(offered);
    disk.driver.add_ring(0);
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    disk.driver.submit(&[head.readable(), input.writable(), status.writable()]);
    disk.driver.status();
    disk.driver.status();
    let (ring, guest) = disk.driver.ring();
    assert_eq!(ring.used_index(guest), 0);

    // SET_DRIVER_FEATURES after FEATURES_OK is ignored, so this clears no feature.
    let none = FeatureBlocks::new(0, &[0; 8]);
    disk.driver.ask(Request::SetDriverFeatures(none), |_| ());
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(disk.driver.set_status(ready), ready);
    // Then the queue is served without a further message.
    assert_eq!(disk.driver.wait_used(), (0, 513));
    for shared in [head, input, status] {
        disk.driver.unshare(&shared);
    }
}

#[test]
fn spec_5_3_event_for_a_nonexistent_queue_is_dropped_and_counted() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    for index in [4, 63, 64, 255] {
        disk.driver.send_avail(index);
        disk.driver.status();
    }
    let malformed = |disk: &TestDisk| disk.host.stat(DomId(1)).stats.messages.malformed;
    assert_eq!(malformed(&disk), 4);
    // A disabled queue has nothing to serve.
    disk.driver.send_avail(3);
    disk.driver.status();
    assert_eq!(malformed(&disk), 4);
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
}

#[test]
fn spec_5_10_merged_notifications_cover_all_buffers() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    let chain = [head.readable(), input.writable(), status.writable()];
    // Five requests and one notification; no request and several notifications.
    let (ring, guest) = disk.driver.ring();
    let heads: Vec<_> = (0..5).map(|_| ring.add(guest, &chain)).collect();
    ring.doorbell.notify();
    heads.into_iter().for_each(|head| assert_eq!(disk.driver.wait_used(), (head, 513)));
    (0..5).for_each(|_| disk.driver.ring().0.doorbell.notify());
    assert_eq!(disk.driver.status() & DEVICE_NEEDS_RESET, 0);
    for shared in [head, input, status] {
        disk.driver.unshare(&shared);
    }
}

#[test]
fn spec_5_9_ping_is_answered_with_its_number() {
    let mut disk = TestDisk::connect(numbered_disk(1), "w");
    for number in [0, 7, u32::MAX] {
        disk.driver.ask(Request::Ping(number), |answer| assert_eq!(answer, Response::Ping(number)));
    }
}

#[test]
fn spec_6_6_read_only_configuration_is_not_written() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    for generation in [0, 1] {
        let config = ConfigData { generation, offset: 0, data: &[0xff; 8] };
        let accepted = disk.driver.ask(Request::SetConfig(config), |answer| match answer {
            Response::SetConfig(config) => config.data.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(accepted, 0);
    }
    disk.driver.ask(Request::GetConfig { offset: 0, size: 8 }, |answer| match answer {
        Response::GetConfig(config) => assert_eq!(config.data, 8u64.to_le_bytes()),
        other => panic!("{other:?}"),
    });
}

#[test]
fn spec_5_7_notification_data_is_not_offered() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    let bits = 1 << VIRTIO_F_NOTIFICATION_DATA | 1 << VIRTIO_F_NOTIF_CONFIG_DATA;
    assert_eq!(disk.driver.offered() & bits, 0);
}

/// The response waits for a slot, and EVENT_AVAIL behind the request with it. The driver signals
/// once, when it has freed slots: the device must send the response and read EVENT_AVAIL then. An
/// entropy device has no timer that would wake it up later.
#[test]
fn spec_4_5_event_behind_a_waiting_response_is_handled() {
    let entropy = [("type", "virtio,device4")];
    let mut guest = TestGuest::connect(|host| host.add("virtio", 1, 0, &entropy));
    let offered = guest.driver.offered() & !(1 << VIRTIO_RING_F_EVENT_IDX);
    guest.driver.negotiate(offered);
    guest.driver.add_silent_ring(0);
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(guest.driver.set_status(ready), ready);
    let buffer = guest.driver.share(&[0; 64], Access::ReadWrite);
    // Four EVENT_USED, which the driver does not take yet, fill the queue to the driver.
    for _ in 0..4 {
        let sent = guest.driver.sent_by_device();
        guest.driver.submit(&[buffer.writable()]);
        guest.driver.send_avail(0);
        guest.driver.wait_sent_by_device(sent.wrapping_add(1));
    }
    let taken = |guest: &TestGuest| guest.host.stat(DomId(1)).stats.messages.received;
    let before = taken(&guest);
    guest.driver.send_silently(Request::GetDeviceStatus);
    guest.driver.port.notify();
    while taken(&guest) == before {
        thread::yield_now();
    }
    guest.driver.submit(&[buffer.writable()]);
    let events = |guest: &TestGuest| guest.host.stat(DomId(1)).stats.counts;
    let before = events(&guest);
    guest.driver.send_avail(0);
    // The device has seen the event, and left the message in the page.
    let seen = |guest: &TestGuest| {
        let now = events(guest);
        now.events_received > before.events_received && now.sleeps > before.sleeps
    };
    while !seen(&guest) {
        thread::yield_now();
    }
    guest.driver.wait_answer("the response that waited", |_| ());
    let (ring, memory) = guest.driver.ring();
    let end = Instant::now() + Duration::from_secs(10);
    while ring.used_index(memory) != 5 {
        let used = ring.used_index(memory);
        assert!(Instant::now() < end, "{used} of 5 requests were served");
        thread::yield_now();
    }
    guest.driver.unshare(&buffer);
}
