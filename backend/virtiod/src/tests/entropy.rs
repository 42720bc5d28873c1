//! Tests of the entropy device (virtio 1.3 section 5.4).

use std::time::{Duration, Instant};

use protocol::message::{Request, Response};
use protocol::status::DEVICE_NEEDS_RESET;

use super::driver::Driver;
use super::host::{Ends, Host, TestGuest};
use xen::{Access, DomId};

fn add(host: &Host) -> Ends {
    host.add("virtio", 1, 0, &[("type", "virtio,device4")])
}

/// Requests `length` bytes, all of which the device must fill.
pub(super) fn random(driver: &mut Driver, length: usize) -> Vec<u8> {
    let buffer = driver.share(&vec![0; length], Access::ReadWrite);
    let head = driver.submit(&[buffer.writable()]);
    assert_eq!(driver.wait_used(), (head, length as u32));
    driver.unshare(&buffer)
}

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut guest = TestGuest::connect(add);
    let info = guest.driver.ask(Request::GetDeviceInfo, |answer| match answer {
        Response::GetDeviceInfo(info) => info,
        other => panic!("{other:?}"),
    });
    assert_eq!((info.device_id, info.config_size, info.max_virtqueues), (4, 0, 1));
    guest.driver.start();
    let (first, second) = (random(&mut guest.driver, 4096), random(&mut guest.driver, 4096));
    assert_ne!(first, second);
    for bytes in [first, second] {
        // 64 random zeros in a row do not happen: the device wrote every part.
        assert!(bytes.chunks(64).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
    }
    let stat = guest.host.stat(DomId(1)).stats;
    assert_eq!((stat.state.kind.as_str(), stat.requests.read, stat.bytes.read), ("rng", 2, 8192));
}

#[test]
fn request_of_several_buffers_is_filled_exactly() {
    let mut guest = TestGuest::connect(add);
    guest.driver.start();
    let buffers: Vec<_> =
        (0..3).map(|_| guest.driver.share(&[0; 2 * 4096], Access::ReadWrite)).collect();
    let mut chain: Vec<_> = buffers.iter().map(|buffer| buffer.writable()).collect();
    chain[1].length = 100;
    let head = guest.driver.submit(&chain);
    assert_eq!(guest.driver.wait_used(), (head, 8192 + 100 + 8192));
    let bytes: Vec<_> = buffers.iter().map(|buffer| guest.driver.unshare(buffer)).collect();
    assert!(bytes[1][..100].iter().any(|byte| *byte != 0));
    assert!(bytes[1][100..].iter().all(|byte| *byte == 0), "beside the buffer");
    assert!(bytes[2][8128..].iter().any(|byte| *byte != 0), "to its end");
}

#[test]
fn huge_request_is_filled_in_part() {
    let mut guest = TestGuest::connect(add);
    guest.driver.start();
    let buffer = guest.driver.share(&vec![0; 20 * 4096], Access::ReadWrite);
    let head = guest.driver.submit(&[buffer.writable()]);
    assert_eq!(guest.driver.wait_used(), (head, 64 << 10));
    assert!(guest.driver.unshare(&buffer)[64 << 10..].iter().all(|byte| *byte == 0));
}

#[test]
fn readable_buffer_is_a_fault_until_reset() {
    let mut guest = TestGuest::connect(add);
    guest.driver.start();
    let (question, buffer) = (
        guest.driver.share(&[1; 16], Access::ReadOnly),
        guest.driver.share(&[0; 16], Access::ReadWrite),
    );
    guest.driver.submit(&[question.readable(), buffer.writable()]);
    assert_ne!(guest.driver.wait_config_event() & DEVICE_NEEDS_RESET, 0);
    let why = guest.host.stat(DomId(1)).stats.state.needs_reset.unwrap();
    assert!(why.contains("device-readable"), "{why}");
    assert_eq!(guest.driver.unshare(&buffer), [0; 16], "no byte was written");
    guest.driver.unshare(&question);
    guest.driver.reset_device();
    guest.driver.free_rings();
    guest.driver.start();
    random(&mut guest.driver, 64);
}

/// The configuration of the device of a guest named web1.
fn rate(rate: &str) -> String {
    format!("[domain.web1.virtio.0.rng]\nrate = {rate:?}")
}

/// A host with a guest named web1, and its device with this rate limit.
fn limited(to: &str) -> (Host, Ends) {
    let host = Host::start();
    host.configure(&rate(to));
    host.hypervisor.store_write("/local/domain/1/name", "web1");
    let ends = add(&host);
    (host, ends)
}

#[test]
fn rate_limit_keeps_requests_in_the_ring_until_the_timer_fires() {
    let (host, ends) = limited("8KiB/s");
    let mut driver = host.connect(&ends);
    driver.start();
    let start = Instant::now();
    // The first takes half a second more than was saved up, and so does each other one.
    let buffers = [3, 1, 1].map(|pages| driver.share(&vec![0; pages * 4096], Access::ReadWrite));
    for buffer in &buffers {
        driver.submit(&[buffer.writable()]);
    }
    driver.wait_used();
    // Messages and doorbells in between do not bypass the limit.
    for _ in 0..20 {
        driver.status();
        driver.ring().0.doorbell.notify();
    }
    driver.wait_used();
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    driver.wait_used();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(buffers.iter().all(|buffer| driver.unshare(buffer).iter().any(|byte| *byte != 0)));
    assert_eq!(host.stat(DomId(1)).stats.state.details["limits"], "8192 B/s");
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn reset_drops_waiting_requests_and_keeps_the_rate() {
    // The first request's excess takes an hour; the test does not wait for it.
    let (host, ends) = limited("1B/s");
    let mut driver = host.connect(&ends);
    driver.start();
    random(&mut driver, 4096);
    for _ in 0..2 {
        let buffer = driver.share(&[0; 4096], Access::ReadWrite);
        driver.submit(&[buffer.writable()]);
        driver.until("the rate to delay the device", |_| host.stat(DomId(1)).stats.waits > 0);
        driver.reset_device();
        assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 1, "the message page");
        assert_eq!(driver.unshare(&buffer), [0; 4096], "dropped, not answered");
        driver.free_rings();
        driver.start();
    }
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn rate_applies_to_the_named_domain_and_device_only() {
    let host = Host::start();
    host.configure(&rate("8KiB/s"));
    for (guest, name, number) in [(1, "web2", 0), (2, "web1", 1)] {
        host.hypervisor.store_write(&format!("/local/domain/{guest}/name"), name);
        let ends = host.add("virtio", guest, number, &[("type", "virtio,device4")]);
        let mut driver = host.connect(&ends);
        driver.start();
        (0..10).for_each(|_| drop(random(&mut driver, 4 * 4096)));
        let stat = host.stat(DomId(guest)).stats;
        assert_eq!((stat.waits, stat.state.details["limits"].as_str()), (0, "unlimited"));
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}

#[test]
fn default_applies_if_the_guests_name_is_unreadable() {
    let host = Host::start();
    host.configure(&format!("{}\n[default.rng]\nrate = \"16KiB/s\"", rate("8KiB/s")));
    host.hypervisor.store_deny("/local/domain/1/name");
    let ends = add(&host);
    let mut driver = host.connect(&ends);
    driver.start();
    let start = Instant::now();
    (0..3).for_each(|_| drop(random(&mut driver, 3 * 4096)));
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn invalid_configuration_refuses_the_device_and_names_the_key() {
    let host = Host::start();
    host.configure("[default.rng]\nrate = \"much\"");
    let ends = add(&host);
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    let error = host.error(&ends).unwrap();
    assert!(error.contains(":2: default.rng.rate: \"much\" is not a rate"), "{error}");
    host.hypervisor.store_remove(&ends.backend);
    host.configure("");
    let ends = add(&host);
    host.wait_state(&ends, "2");
    host.remove(&ends);
    host.finish();
}
