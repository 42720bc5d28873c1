//! Tests of refusals by XenStore and of its loss: no device ends, nothing is retried without delay,
//! and the daemon continues.

use std::path::Path;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::bare_device::{BareSession, Storage, serve_over};
use super::block::{OK, request};
use super::driver::Driver;
use super::flaky_store::FlakyXen;
use super::host::{Ends, Host, XVDA, numbered_disk};
use crate::config::ThreadLimit;
use crate::domain::ByGrants;
use xen::DomId;

fn start() -> (FlakyXen, Host) {
    let xen = FlakyXen::default();
    (xen.clone(), Host::start_with(xen.hypervisor.clone(), ByGrants(xen)))
}

/// A frontend that writes these keys and state 3.
fn offer(host: &Host, ends: &Ends, page: &str, port: &str) {
    for (key, value) in [("message-page-ref", page), ("event-channel", port), ("state", "3")] {
        host.hypervisor.store_write(&format!("{}/{key}", ends.frontend), value);
    }
}

fn reads_a_sector(driver: &mut Driver) {
    assert_eq!(request(driver, VIRTIO_BLK_T_IN, 3, &[], 512), (OK, vec![3; 512]));
}

/// The frontend starts again with valid keys.
fn connects_again(host: &Host, ends: &Ends) -> Driver {
    host.hypervisor.store_write(&format!("{}/state", ends.frontend), "1");
    let mut driver = host.connect(ends);
    driver.start();
    reads_a_sector(&mut driver);
    driver
}

#[test]
fn garbage_in_a_key_ends_the_connection_with_a_short_reason() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    for (page, port) in [("x".repeat(2048), "1".to_owned()), ("9".to_owned(), "ä\n".repeat(1000))]
    {
        let ends = host.add_disk(1, XVDA, disk.path(), "r");
        host.wait_state(&ends, "2");
        offer(&host, &ends, &page, &port);
        host.wait_state(&ends, "6");
        let error = host.error(&ends).unwrap();
        assert!(error.contains("not a number") && error.len() <= 1024, "{error}");
        assert!(!error.contains('\n'), "{error}");
        connects_again(&host, &ends).close();
        host.remove(&ends);
    }
    host.finish();
}

#[test]
fn refused_write_of_the_reason_is_ignored() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    host.wait_state(&ends, "2");
    xen.refuse("/error", "ENOSPC", usize::MAX);
    offer(&host, &ends, "nonsense", "1");
    host.wait_state(&ends, "6");
    assert_eq!((host.error(&ends), xen.refusals()), (None, 1));
    xen.refuse("/error", "ENOSPC", 0);
    connects_again(&host, &ends).close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn refused_state_is_written_later() {
    for (errno, state) in [("ENOSPC", "2"), ("EQUOTA", "4"), ("EACCES", "6")] {
        let ((xen, host), disk) = (start(), numbered_disk(8));
        let ends = host.add_disk(1, XVDA, disk.path(), "r");
        if state == "2" {
            xen.refuse("/state", errno, 2);
        }
        host.wait_state(&ends, "2");
        if state == "4" {
            xen.refuse("/state", errno, 2);
        }
        let mut driver = host.connect(&ends);
        driver.start();
        reads_a_sector(&mut driver);
        if state == "6" {
            xen.refuse("/state", errno, 2);
        }
        driver.close();
        host.remove(&ends);
        assert_eq!(xen.refusals(), 2, "state {state}");
        host.finish();
    }
}

#[test]
fn storage_that_lets_go_is_noticed_while_xenstore_refuses_a_state() {
    let ((xen, host), storage) = (start(), Storage::hung());
    let BareSession { ends, thread, .. } =
        serve_over(&host, xen.clone(), &storage, ThreadLimit::ONE, &[16]);
    let mut driver = host.connect(&ends);
    driver.start();
    xen.refuse("/state", "ENOSPC", usize::MAX);
    driver.write_state("5");
    xen.wait_refusals(1);
    storage.let_go();
    storage.wait_drained();
    xen.refuse("/state", "ENOSPC", 0);
    host.wait_state(&ends, "6");
    driver.release();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn refused_offer_is_retried_ever_more_rarely() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    xen.refuse("virtio-msg-max-size", "ENOSPC", usize::MAX);
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    xen.wait_refusals(2);
    host.remove(&ends);
    // The session waits between attempts and does not restart: few attempts happen before its end.
    let refusals = xen.refusals();
    assert!((1..=10).contains(&refusals), "{refusals}");
    host.finish();
}

#[test]
fn failed_refusal_is_retried_after_a_delay() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    xen.refuse("1/51712/state", "EQUOTA", 2);
    let refused = host.add_disk(1, XVDA, Path::new("/nonexistent"), "r");
    let ends = host.add_disk(2, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    reads_a_sector(&mut driver);
    // The device's own thread and the server try at once; then the server retries after a delay.
    host.hypervisor.store_wait(&format!("{}/state", refused.backend), None);
    assert_eq!(xen.refusals(), 2);
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn panicked_device_that_cannot_be_closed_is_retried() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    xen.refuse("/state", "ENOSPC", 1);
    host.hypervisor.store_trap(&format!("{}/online", ends.backend));
    driver.write_state("5");
    // Retried a second later, since its state is still 4.
    host.wait_state(&ends, "6");
    assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 0);
    driver.release();
    connects_again(&host, &ends).close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn devices_continue_without_xenstore_and_follow_it_after_reconnection() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    xen.lose();
    let before = xen.connections();
    // A change of state, so that the daemon notices the loss.
    driver.write_state("4");
    let new = host.add_disk(2, XVDA, disk.path(), "r");
    for _ in 0..100 {
        reads_a_sector(&mut driver);
    }
    assert_eq!(xen.connections(), before);
    xen.restore();
    let mut other = host.connect(&new);
    other.start();
    reads_a_sector(&mut other);
    reads_a_sector(&mut driver);
    for (driver, ends) in [(driver, &ends), (other, &new)] {
        driver.close();
        host.remove(ends);
    }
    host.finish();
}

#[test]
fn devices_continue_while_xenstored_hangs() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    xen.hang();
    driver.write_state("4");
    for _ in 0..100 {
        reads_a_sector(&mut driver);
    }
    xen.restore();
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn device_of_an_earlier_daemon_keeps_its_state_without_connections() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    xen.refuse_connections();
    let ends = host.add_disk_in_state(1, XVDA, disk.path(), "4");
    let said = host.hypervisor.store_watch(&format!("{}/error", ends.backend));
    assert!(
        said.wait_for(Duration::from_secs(10), |value| value.is_some()),
        "no error was written"
    );
    let state = host.hypervisor.store_read(&format!("{}/state", ends.backend));
    assert_eq!(state.as_deref(), Some("4"), "the next scan finds it by this state");
    xen.restore();
    connects_again(&host, &ends).close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn reconnecting_frontend_is_offered_its_device_ever_more_rarely() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let state = format!("{}/state", ends.frontend);
    host.wait_state(&ends, "2");
    let begun = Instant::now();
    for _ in 0..7 {
        host.hypervisor.store_write(&state, "5");
        host.wait_state(&ends, "6");
        host.hypervisor.store_write(&state, "1");
        host.wait_state(&ends, "2");
    }
    // 10 ms, 20 ms, and so on: the sum of the delays is the minimum.
    let least = Duration::from_millis((0..7).map(|round| 10 << round).sum());
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    host.remove(&ends);
    host.finish();
}

#[test]
fn daemon_stops_at_once_without_xenstore() {
    let ((xen, host), disk) = (start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    xen.lose();
    driver.write_state("4");
    reads_a_sector(&mut driver);
    let hypervisor = host.hypervisor.clone();
    host.finish_with_guests();
    assert_eq!(hypervisor.mapped_pages(DomId(1)), 0);
    driver.release();
}

#[test]
fn spec_2_9_guest_rebinds_its_driver_after_a_restart_of_the_daemon() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    let hypervisor = host.hypervisor.clone();
    host.finish_with_guests();
    assert_eq!(hypervisor.store_read(&format!("{}/state", ends.backend)).as_deref(), Some("6"));
    driver.release();

    let host = Host::start_on(hypervisor);
    connects_again(&host, &ends).close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_2_9_guest_rebinds_its_driver_after_a_kill_of_the_daemon() {
    for left in ["3", "4", "5"] {
        // The state that a killed daemon left, with its target missing at first.
        let (host, disk) = (Host::start(), numbered_disk(8));
        let missing = disk.path().with_extension("later");
        let ends = host.add_disk_in_state(1, XVDA, &missing, left);
        host.wait_state(&ends, "6");
        assert!(host.error(&ends).unwrap().contains("No such file"));
        std::fs::rename(disk.path(), &missing).unwrap();
        connects_again(&host, &ends).close();
        host.remove(&ends);
        std::fs::rename(&missing, disk.path()).unwrap();
        host.finish();
    }
}

#[test]
fn ended_device_is_not_started_again() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    host.wait_state(&ends, "2");
    host.hypervisor.store_write(&format!("{}/online", ends.backend), "0");
    host.wait_state(&ends, "6");
    let other = host.add_disk(2, XVDA, disk.path(), "r");
    host.wait_state(&other, "2");
    let devices = host.devices(DomId(1));
    assert_eq!(devices, 1, "started again");
    host.remove(&other);
    host.finish();
}
