//! The entropy device (virtio 1.3 section 5.4).

use protocol::message::{Request, Response};
use protocol::status::DEVICE_NEEDS_RESET;

use super::driver::Driver;
use super::host::{Ends, Host};
use crate::xen::{Access, DomId};

fn add(host: &Host) -> Ends {
    host.add("virtio", 1, 0, &[("type", "virtio,device4")])
}

/// One request for `length` bytes; all of it must be used.
fn random(driver: &mut Driver, length: usize) -> Vec<u8> {
    let room = driver.share(&vec![0; length], Access::ReadWrite);
    let head = driver.submit(&[room.writable()]);
    assert_eq!(driver.wait_used(), (head, length as u32));
    driver.unshare(&room)
}

#[test]
fn buffers_are_filled_with_bytes_that_differ() {
    let host = Host::start();
    let ends = add(&host);
    let mut driver = host.connect(&ends);
    let info = driver.ask(Request::GetDeviceInfo, |answer| match answer {
        Response::GetDeviceInfo(info) => info,
        other => panic!("{other:?}"),
    });
    assert_eq!((info.device_id, info.config_size, info.max_virtqueues), (4, 0, 1));
    driver.start();
    let (first, second) = (random(&mut driver, 4096), random(&mut driver, 4096));
    assert_ne!(first, second);
    for bytes in [first, second] {
        // 64 zeros in a row do not happen by chance: every part was written.
        assert!(bytes.chunks(64).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
    }
    let stat = host.stat(DomId(1)).stats;
    assert_eq!((stat.state.kind.as_str(), stat.requests.read, stat.bytes.read), ("rng", 2, 8192));
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn a_request_of_several_buffers_is_filled_whole_and_nothing_beside_it() {
    let host = Host::start();
    let ends = add(&host);
    let mut driver = host.connect(&ends);
    driver.start();
    let rooms: Vec<_> = (0..3).map(|_| driver.share(&[0; 2 * 4096], Access::ReadWrite)).collect();
    let mut chain: Vec<_> = rooms.iter().map(|room| room.writable()).collect();
    chain[1].length = 100;
    let head = driver.submit(&chain);
    assert_eq!(driver.wait_used(), (head, 8192 + 100 + 8192));
    let bytes: Vec<_> = rooms.iter().map(|room| driver.unshare(room)).collect();
    assert!(bytes[1][..100].iter().any(|byte| *byte != 0));
    assert!(bytes[1][100..].iter().all(|byte| *byte == 0), "beside the buffer");
    assert!(bytes[2][8128..].iter().any(|byte| *byte != 0), "to its end");
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn a_huge_request_is_answered_with_a_part() {
    let host = Host::start();
    let ends = add(&host);
    let mut driver = host.connect(&ends);
    driver.start();
    let room = driver.share(&vec![0; 20 * 4096], Access::ReadWrite);
    let head = driver.submit(&[room.writable()]);
    assert_eq!(driver.wait_used(), (head, 64 << 10));
    assert!(driver.unshare(&room)[64 << 10..].iter().all(|byte| *byte == 0));
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn a_readable_buffer_is_a_fault_and_a_reset_heals_it() {
    let host = Host::start();
    let ends = add(&host);
    let mut driver = host.connect(&ends);
    driver.start();
    let (question, room) =
        (driver.share(&[1; 16], Access::ReadOnly), driver.share(&[0; 16], Access::ReadWrite));
    driver.submit(&[question.readable(), room.writable()]);
    assert_ne!(driver.wait_config_event() & DEVICE_NEEDS_RESET, 0);
    let why = host.stat(DomId(1)).stats.state.needs_reset.unwrap();
    assert!(why.contains("device-readable"), "{why}");
    assert_eq!(driver.unshare(&room), [0; 16], "no byte was moved");
    driver.unshare(&question);
    assert_eq!(driver.set_status(0), 0);
    driver.free_rings();
    driver.start();
    random(&mut driver, 64);
    driver.close();
    host.remove(&ends);
    host.finish();
}
