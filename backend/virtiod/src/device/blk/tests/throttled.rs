//! Tests of a disk whose rate is limited.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::disk_file::Store;
use super::super::request::Range;
use super::driver::{Driver, Memory};
use super::engine::image;
use super::{Call, SIZE, Scripted};
use crate::device::VirtioDevice;
use crate::device::blk::{DiskRates, InFlightLimits, RateLimits};
use crate::tests::gate::Gate;
use xen::Access;

/// The status of a request that is not answered.
const UNANSWERED: u8 = 0xff;
const OK: u8 = VIRTIO_BLK_S_OK as u8;

/// Limits of writes, without credit.
fn writes(rate: Option<&str>, iops: u64) -> DiskRates {
    let rate = rate.map(|rate| rate.parse().unwrap());
    let writes = RateLimits { iops: NonZeroU64::new(iops), rate };
    DiskRates { writes, burst: Duration::ZERO, ..DiskRates::default() }
}

/// Limits that allow one write in ten minutes.
fn slow() -> DiskRates {
    writes(Some("1B/s"), 1)
}

fn write(driver: &mut Driver, sector: u64) {
    driver.add_at(VIRTIO_BLK_T_OUT, sector, 0, &[], Some((512, Access::ReadOnly)));
}

/// The offsets of the image's writes.
fn written(image: &Scripted) -> Vec<u64> {
    let offset = |call: Call| match call {
        Call::Write(offset, _) => Some(offset),
        _ => None,
    };
    image.take_calls().into_iter().filter_map(offset).collect()
}

#[test]
fn reads_and_flushes_go_on_while_writes_wait() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(slow());
    write(&mut driver, 0);
    write(&mut driver, 8);
    write(&mut driver, 16);
    driver.add(VIRTIO_BLK_T_IN, &[], Some((512, Access::ReadWrite)));
    driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK, UNANSWERED, UNANSWERED, OK, OK]);
    assert_eq!(driver.disk.delays.len(), 2);
}

#[test]
fn delayed_requests_are_carried_out_in_order() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(writes(None, 1000));
    let sectors: Vec<u64> = (0..20).map(|number| number * 8).collect();
    sectors.iter().for_each(|sector| write(&mut driver, *sector));
    driver.serve_all();
    while driver.disk.delays.len() > 0 || driver.disk.in_flight.len() > 0 {
        driver.handle();
    }
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK; 20]);
    let offsets: Vec<_> = sectors.iter().map(|sector| sector * 512).collect();
    assert_eq!(written(&image), offsets);
}

#[test]
fn limits_that_go_free_the_requests_that_wait() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(slow());
    (0..4).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    assert_eq!(driver.disk.delays.len(), 3);
    driver.disk.common.throttle.set(DiskRates::default());
    driver.handle_now();
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK; 4]);
}

#[test]
fn requests_that_are_answered_at_once_leave_none_waiting() {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(SIZE).unwrap();
    let mut driver = Driver::new(&image(file, None, Store::Memory));
    driver.disk.common.throttle.set(slow());
    (0..8).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    assert_eq!(driver.disk.delays.len(), 7);
    // Two at a time: nothing is in flight afterwards that would tell.
    let limits = InFlightLimits { requests: 2, ..InFlightLimits::default() };
    driver.disk.in_flight.set_limits(limits);
    driver.disk.common.throttle.set(DiskRates::default());
    driver.handle_now();
    assert_eq!((driver.disk.delays.len(), driver.disk.in_flight.len()), (0, 0));
    assert_eq!(driver.statuses(), [OK; 8]);
}

#[test]
fn requests_that_wait_for_room_begin_whoever_answers_the_others() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(slow());
    (0..4).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    let limits = InFlightLimits { requests: 2, ..InFlightLimits::default() };
    driver.disk.in_flight.set_limits(limits);
    driver.disk.common.throttle.set(DiskRates::default());
    driver.handle_now();
    assert_eq!((driver.disk.delays.len(), driver.disk.in_flight.len()), (1, 2));
    assert_eq!(VirtioDevice::<Memory>::deadline(&driver.disk), None);
    // As a look at a queue does that finds the others answered.
    let end = Instant::now() + Duration::from_secs(30);
    while driver.disk.in_flight.len() > 0 {
        assert!(Instant::now() < end, "waited 30 s for the worker");
        driver.disk.collect();
    }
    driver.disk.ended.clear();
    assert!(VirtioDevice::<Memory>::deadline(&driver.disk).is_some());
    driver.handle_now();
    assert_eq!(driver.disk.delays.len(), 0);
}

#[test]
fn reset_forgets_requests_that_wait() {
    let image = Scripted::default();
    let mut driver = Driver::with_features(&image, 1 << VIRTIO_BLK_F_FLUSH);
    driver.disk.common.throttle.set(slow());
    (0..4).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    assert_eq!(driver.disk.delays.len(), 3);
    VirtioDevice::<Memory>::reset_queue(&mut driver.disk, 0);
    assert_eq!(driver.disk.delays.len(), 0);
    assert_eq!(written(&image), [0]);
}

#[test]
fn requests_that_wait_leave_room_for_others() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(slow());
    let limits = |requests| InFlightLimits { requests, ..InFlightLimits::default() };
    driver.disk.in_flight.set_limits(limits(4));
    (0..6).for_each(|number| write(&mut driver, number * 8));
    driver.serve();
    assert_eq!(driver.disk.room(), 0, "{} wait", driver.disk.delays.len());
    driver.disk.in_flight.set_limits(limits(400));
    assert!(driver.disk.room() > 0);
}

#[test]
fn reads_and_writes_take_turns_under_a_limit_of_both() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    let all = RateLimits { iops: NonZeroU64::new(200), rate: None };
    let rates = DiskRates { all, burst: Duration::ZERO, ..DiskRates::default() };
    driver.disk.common.throttle.set(rates);
    for number in 0..6 {
        driver.add_at(VIRTIO_BLK_T_IN, number * 8, 0, &[], Some((512, Access::ReadWrite)));
    }
    (0..3).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    while driver.disk.delays.len() > 0 || driver.disk.in_flight.len() > 0 {
        driver.handle();
    }
    driver.serve_all();
    let kinds: Vec<_> = image
        .take_calls()
        .iter()
        .filter_map(|call| match call {
            Call::Read(_) => Some('r'),
            Call::Write(..) => Some('w'),
            _ => None,
        })
        .collect();
    let kinds: String = kinds.into_iter().collect();
    // The first one does not wait.
    assert_eq!(kinds, "rrwrwrwrr");
}

/// A guest could call a read a write while it waits, which costs nothing then.
#[test]
fn header_of_a_request_that_waits_is_not_read_again() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(slow());
    write(&mut driver, 0);
    write(&mut driver, 8);
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK, UNANSWERED]);
    driver.change_header(1, VIRTIO_BLK_T_IN, 800);
    driver.disk.common.throttle.set(DiskRates::default());
    driver.handle_now();
    driver.serve_all();
    assert_eq!(written(&image), [0, 8 * 512]);
}

/// Storage may have to write the zeroes.
#[test]
fn zeroes_count_as_data_and_discards_do_not() {
    let range = Range { sector: 0, sectors: 1 << 11, flags: 0 };
    for (kind, is_last) in [(VIRTIO_BLK_T_WRITE_ZEROES, true), (VIRTIO_BLK_T_DISCARD, false)] {
        let mut driver = Driver::new(&Scripted::default());
        let write_rate = RateLimits { rate: "1MiB/s".parse().ok(), iops: None };
        let burst = Duration::ZERO;
        driver.disk.common.throttle.set(DiskRates {
            writes: write_rate,
            burst,
            ..DiskRates::default()
        });
        driver.add(kind, &[Range { sectors: 1 << 21, ..range }], None);
        write(&mut driver, 0);
        driver.serve_all();
        assert_eq!(driver.status(1) == UNANSWERED, is_last, "{kind}");
    }
}

#[test]
fn requests_that_waited_keep_the_limit_of_those_in_flight() {
    let gate = Arc::new(Gate::default());
    gate.close();
    let image = Scripted::new(|script| script.gate = Some(Arc::clone(&gate)));
    let mut driver = Driver::new(&image);
    driver.disk.common.throttle.set(slow());
    (0..6).for_each(|number| write(&mut driver, number * 8));
    driver.serve();
    assert_eq!(driver.disk.delays.len(), 5);
    let limits = InFlightLimits { requests: 3, ..InFlightLimits::default() };
    driver.disk.in_flight.set_limits(limits);
    driver.disk.common.throttle.set(DiskRates::default());
    driver.handle_now();
    assert_eq!((driver.disk.in_flight.len(), driver.disk.delays.len()), (3, 3));
    gate.open();
    while driver.disk.delays.len() > 0 || driver.disk.in_flight.len() > 0 {
        driver.handle();
    }
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK; 6]);
}
