//! Tests of events without work.

use std::time::Instant;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::block::{OK, request};
use super::host::{Host, TestDisk, numbered_disk};
use xen::DomId;

/// Number of the device thread's sleeps, each ended by an event or by a time limit.
fn waits(host: &Host) -> u64 {
    host.stat(DomId(1)).stats.counts.sleeps
}

#[test]
fn doorbells_without_requests_are_handled_ever_more_rarely() {
    let mut disk = TestDisk::start(numbered_disk(8), "r");
    // The scheduler has learnt that polling for this driver pays off.
    for _ in 0..100 {
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 3, &[], 512), (OK, vec![3; 512]));
    }
    let (before, start) = (waits(&disk.host), Instant::now());
    for _ in 0..1_000_000 {
        disk.driver.ring().0.doorbell.notify();
    }
    // Each sleep but the first few lasts 64 ms, and a doorbell follows the end of each.
    let most = 100 + start.elapsed().as_millis() as u64 / 16;
    let taken = waits(&disk.host) - before;
    assert!(taken <= most, "{taken} waits, {most} at most");
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 4, &[], 512), (OK, vec![4; 512]));
}
