//! Tests of devices in processes of their guests, which die, hang and lie.

use std::time::{Duration, Instant};

use protocol::status::DEVICE_NEEDS_RESET;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, request};
use super::driver::Driver;
use super::host::{Ends, Host, Processes, XVDA, numbered_disk};
use xen::DomId;

fn read(driver: &mut Driver, sector: u8) {
    let expected = (OK, vec![sector; 512]);
    assert_eq!(request(driver, VIRTIO_BLK_T_IN, sector.into(), &[], 512), expected);
}

/// A guest with a disk that a process serves.
fn disk() -> (Host, Processes, Ends, Driver, NamedTempFile) {
    let ((host, processes), file) = (Host::start_in_processes(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    (host, processes, ends, driver, file)
}

/// Waits until the guest has had so many processes.
fn wait_for(processes: &Processes, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while processes.count() < count {
        assert!(Instant::now() < end, "waited 20 s for process {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn end(host: Host, ends: &Ends, driver: Driver) {
    driver.close();
    host.remove(ends);
    host.finish();
}

#[test]
fn disk_goes_on_when_its_process_dies() {
    let (host, processes, ends, mut driver, _file) = disk();
    for life in 1..4 {
        read(&mut driver, 2);
        processes.kill();
        wait_for(&processes, life + 1);
        read(&mut driver, 3);
        let written = vec![life as u8; 512];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 4, &written, 0).0, OK);
    }
    let state = host.hypervisor.store_read(&format!("{}/state", ends.backend));
    assert_eq!(state.as_deref(), Some("4"));
    end(host, &ends, driver);
}

#[test]
fn image_of_a_dead_process_is_kept_for_the_next() {
    let (host, processes, ends, mut driver, file) = disk();
    read(&mut driver, 2);
    processes.refuse(true);
    processes.kill();
    // The first process cannot be replaced, and another guest's process neither.
    let other = host.add_disk(2, XVDA, file.path(), "w");
    host.hypervisor.store_wait(&format!("{}/state", other.backend), None);
    assert!(host.error(&other).unwrap().contains("cannot start the device"));
    host.hypervisor.store_remove(&other.backend);
    processes.refuse(false);
    let third = host.add_disk(3, XVDA, file.path(), "w");
    host.hypervisor.store_wait(&format!("{}/state", third.backend), None);
    let error = host.error(&third).unwrap();
    assert!(error.contains("domain 1 uses it for xvda and may write it"), "{error}");
    host.hypervisor.store_remove(&third.backend);
    read(&mut driver, 3);
    end(host, &ends, driver);
}

#[test]
fn device_whose_process_dies_again_and_again_needs_a_reset() {
    let (host, processes, ends, mut driver, _file) = disk();
    for life in 1..6 {
        read(&mut driver, 2);
        processes.kill();
        wait_for(&processes, life + 1);
        // Its session has begun: otherwise it would not have been its death.
        driver.wait_config_event();
    }
    assert_ne!(driver.status() & DEVICE_NEEDS_RESET, 0);
    let stats = host.stat(DomId(1)).stats;
    let reason = stats.state.needs_reset.unwrap();
    assert!(reason.contains("died 5 times"), "{reason}");
    // After a reset the driver may try again.
    driver.reset_device();
    driver.free_rings();
    driver.start();
    read(&mut driver, 2);
    end(host, &ends, driver);
}

#[test]
fn devices_of_other_guests_have_other_processes() {
    let (host, processes, ends, mut driver, _file) = disk();
    let file = numbered_disk(8);
    let other_ends = host.add_disk(2, XVDA, file.path(), "r");
    let mut other = host.connect(&other_ends);
    other.start();
    assert_eq!(processes.count(), 2);
    let before = host.stat(DomId(1)).stats.counts.events_received;
    processes.kill();
    wait_for(&processes, 3);
    read(&mut other, 3);
    read(&mut driver, 2);
    assert!(host.stat(DomId(1)).stats.counts.events_received > before, "it was not replaced");
    other.close();
    host.remove(&other_ends);
    end(host, &ends, driver);
}
