//! Tests of a device that always has work and takes half a second for each step: its end does not
//! wait for all of its work.

use std::time::Duration;

use super::bare_device::{BareSession, Storage, serve};
use super::driver::Driver;
use super::host::{Ends, Host};
use crate::bus::Ending;

/// Much longer than an iteration's limit; 64 of them exceed libxl's timeout.
const STEP: Duration = Duration::from_millis(500);

/// A driver that keeps the device busy.
fn keep_busy(host: &Host, ends: &Ends) -> Driver {
    let mut driver = host.connect(ends);
    driver.start();
    driver.ring().0.doorbell.notify();
    driver
}

#[test]
fn busy_device_ends_within_libxls_timeout() {
    let host = Host::start();
    let BareSession { ends, thread, .. } = serve(&host, &Storage::sound(), Some(STEP));
    let mut driver = keep_busy(&host, &ends);
    host.remove(&ends);
    thread.join().unwrap();
    driver.release();
    host.finish();
}

#[test]
fn busy_device_ends_with_the_daemon() {
    let host = Host::start();
    let BareSession { ends, stop, thread } = serve(&host, &Storage::sound(), Some(STEP));
    let mut driver = keep_busy(&host, &ends);
    stop.give(Ending::End).unwrap();
    host.wait_state(&ends, "6");
    thread.join().unwrap();
    driver.release();
    host.finish();
}
