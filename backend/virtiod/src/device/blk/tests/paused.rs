//! Tests of a disk that pauses when its storage fails.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use nix::libc::{EIO, ENOSPC};
use uring::engine::Method;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT,
};

use super::driver::{Driver, Memory};
use super::{Call, Scripted, failure};
use crate::device::VirtioDevice;
use crate::device::blk::disk_file::{DiskFile, Store};
use crate::device::blk::{BlockOptions, DiskRates, ErrorPolicy, RateLimits};
use xen::Access;

const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const FAILED: u8 = VIRTIO_BLK_S_IOERR as u8;
/// The statuses of a request that the device has not seen, and of one that it has.
const UNANSWERED: [u8; 2] = [0xff; 2];

fn driver(image: &Scripted, on_error: ErrorPolicy) -> Driver {
    let options = BlockOptions { on_error, ..BlockOptions::named("xvda") };
    Driver::with_options(image.target(|_| {}), options, FLUSH, Method::Ring)
}

fn write(driver: &mut Driver, sector: u64) {
    driver.add_at(VIRTIO_BLK_T_OUT, sector, 0, &[], Some((512, Access::ReadOnly)));
}

/// An image whose next writes have these outcomes; later ones succeed.
fn failing(outcomes: &[i32]) -> Scripted {
    let outcomes = outcomes.iter().map(|errno| if *errno == 0 { Ok(()) } else { failure(*errno) });
    Scripted::new(|script| script.writes = outcomes.collect())
}

fn resume(driver: &mut Driver) {
    assert!(driver.disk.pause.switch().resume());
    driver.handle();
    driver.serve_all();
}

#[test]
fn full_storage_pauses_the_disk_and_failed_writes_are_done_again() {
    let image = failing(&[0, ENOSPC, ENOSPC]);
    let mut driver = driver(&image, ErrorPolicy::PauseIfFull);
    (0..3).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK, 0xff, 0xff]);
    let reason = driver.disk.pause.switch().reason().unwrap();
    assert!(reason.contains("No space left"), "{reason}");
    // Nothing more is taken.
    write(&mut driver, 24);
    driver.serve_all();
    assert_eq!(driver.status(3), 0xff);
    resume(&mut driver);
    assert_eq!(driver.statuses(), [OK; 4]);
    assert_eq!(driver.disk.pause.switch().reason(), None);
    let writes = image.take_calls().into_iter().filter(|call| matches!(call, Call::Write(..)));
    assert_eq!(writes.count(), 6);
}

#[test]
fn storage_that_fails_again_pauses_again() {
    let image = failing(&[EIO, EIO]);
    let mut driver = driver(&image, ErrorPolicy::Pause);
    write(&mut driver, 0);
    driver.serve_all();
    resume(&mut driver);
    assert_eq!(driver.statuses(), UNANSWERED[..1]);
    resume(&mut driver);
    assert_eq!(driver.statuses(), [OK]);
}

#[test]
fn errors_that_the_policy_does_not_name_are_reported() {
    for (errno, policy) in [(EIO, ErrorPolicy::PauseIfFull), (ENOSPC, ErrorPolicy::Report)] {
        let mut driver = driver(&failing(&[errno]), policy);
        write(&mut driver, 0);
        driver.serve_all();
        assert_eq!(driver.statuses(), [FAILED]);
    }
    // A request that is wrong is no matter of the storage.
    let mut driver = driver(&Scripted::default(), ErrorPolicy::Pause);
    write(&mut driver, u64::MAX / 512);
    driver.serve_all();
    assert_eq!(driver.statuses(), [FAILED]);
}

#[test]
fn failed_flush_is_reported() {
    let image = Scripted::new(|script| script.syncs = [failure(ENOSPC)].into());
    let mut driver = driver(&image, ErrorPolicy::Pause);
    write(&mut driver, 0);
    driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK, FAILED]);
}

#[test]
fn write_that_fails_at_once_pauses_too() {
    // Opened for reading alone.
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = DiskFile {
        cached: Arc::new(File::open(file.path()).unwrap()),
        direct: None,
        bytes: super::SIZE,
        store: Store::Memory,
        durability: Arc::default(),
    };
    let image = Scripted::new(|script| script.file = Some(file));
    let mut driver = driver(&image, ErrorPolicy::Pause);
    write(&mut driver, 0);
    write(&mut driver, 8);
    driver.serve_all();
    assert_eq!(driver.statuses(), UNANSWERED);
    resume(&mut driver);
    assert_eq!(driver.statuses(), UNANSWERED, "it fails still");
}

#[test]
fn reset_forgets_failed_requests_and_ends_the_pause() {
    let mut driver = driver(&failing(&[ENOSPC]), ErrorPolicy::Pause);
    write(&mut driver, 0);
    driver.serve_all();
    assert!(driver.disk.pause.has_of(0));
    VirtioDevice::<Memory>::reset(&mut driver.disk);
    assert!(!driver.disk.pause.has_of(0));
    assert_eq!(driver.disk.pause.switch().reason(), None);
}

/// A source that stays ready takes a processor.
#[test]
fn paused_disk_watches_no_timer_of_its_limits() {
    let image = failing(&[ENOSPC]);
    let mut driver = driver(&image, ErrorPolicy::Pause);
    // One in ten minutes.
    let writes = RateLimits { rate: "1B/s".parse().ok(), iops: None };
    driver.disk.common.throttle.set(DiskRates {
        writes,
        burst: Duration::ZERO,
        ..DiskRates::default()
    });
    (0..3).for_each(|number| write(&mut driver, number * 8));
    driver.serve_all();
    assert_eq!(driver.disk.delays.len(), 2);
    let sources = |driver: &Driver| VirtioDevice::<Memory>::sources(&driver.disk).len();
    let paused = sources(&driver);
    driver.disk.pause.switch().resume();
    assert_eq!(sources(&driver), paused + 1);
    driver.disk.common.throttle.set(DiskRates::default());
    driver.handle_now();
    driver.serve_all();
    assert_eq!(driver.statuses(), [OK; 3]);
    assert_eq!(sources(&driver), paused - 1, "nothing waits");
}
