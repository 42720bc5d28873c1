//! What stands in the message page, when it is not what it should be.

use std::sync::atomic::Ordering;

use protocol::message::{Message, Request, Response};
use protocol::page::{Direction, Producer};

use super::driver::Driver;
use super::host::{Host, XVDA, numbered_disk};
use crate::xen::DomId;

/// Puts bytes into the queue to the device behind the back of the driver's own transport. Only for
/// messages that get no answer and are the first in the page.
fn inject(driver: &Driver, messages: &[&[u8]]) -> Producer {
    let mut producer = Producer::new(Direction::DriverToDevice);
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
    // A good one behind them is answered.
    let mut good = [0; 64];
    let size = Message::request(9, Request::GetDeviceStatus).encode(&mut good).unwrap();
    while producer.push(driver.guest.words(driver.page), &good[..size]).is_err() {
        driver.port.wait("room in the message page");
    }
    driver.port.notify();
    let answered = || driver.guest.words(driver.page)[0x80 / 4].load(Ordering::Acquire) == 1;
    while !answered() {
        driver.port.wait("the answer to the good message");
    }
    let messages = host.stat(DomId(1)).stats.messages;
    assert_eq!((messages.received, messages.malformed), (5, 4));
    host.remove(&ends);
    driver.release();
    host.finish();
}

#[test]
fn spec_4_4_an_impossible_index_ends_the_connection_with_the_reason() {
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
fn a_storm_of_signals_and_messages_neither_hangs_nor_grows_the_device() {
    let (host, disk) = (Host::start(), numbered_disk(1));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    for _ in 0..10_000 {
        driver.port.notify();
    }
    for number in 0..1000 {
        let echoed = driver.ask(Request::Ping(number), |answer| match answer {
            Response::Ping(number) => number,
            other => panic!("{other:?}"),
        });
        assert_eq!(echoed, number);
    }
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_5_5_what_does_not_fit_a_message_is_answered_with_less() {
    let (host, disk) = (Host::start(), numbered_disk(1));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    let mut config = |offset, size| {
        driver.ask(Request::GetConfig { offset, size }, |answer| match answer {
            Response::GetConfig(config) => config.data.to_vec(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(config(0, 8), 1u64.to_le_bytes(), "capacity in sectors");
    assert_eq!(config(0, 60).len(), 60);
    assert_eq!(config(0, 61), [0; 0], "beyond the end");
    assert_eq!(config(u32::MAX, u32::MAX), [0; 0]);
    driver.close();
    host.remove(&ends);
    host.finish();
}
