//! Tests of a device that always has work and takes half a second for each step: its end does not
//! wait for all of its work.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::driver::Driver;
use super::host::{Ends, Host, XVDA};
use crate::bus::session::{Context, Origin, Session};
use crate::bus::{DevicePath, Keys};
use crate::config::ServiceSettings;
use crate::device::{DeviceId, DeviceMemory, Fault, QueueContext, VirtioDevice};
use crate::dma::budget::DaemonBudget;
use crate::domain::ByGrants;
use crate::guest::Guest;
use crate::stats::DeviceStats;
use xen::{DomId, Xen};

/// Much longer than an iteration's limit; 64 of them exceed libxl's timeout.
const STEP: Duration = Duration::from_millis(500);

struct Sluggish;

impl<M: DeviceMemory> VirtioDevice<M> for Sluggish {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn kind(&self) -> &'static str {
        "sluggish"
    }

    fn features(&self) -> u64 {
        0
    }

    fn longest_request(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        // Simulates slow storage.
        thread::sleep(STEP);
        queues.reschedule(index);
        Ok(())
    }
}

/// Serves a guest's disk with a sluggish device, in a class that the server does not scan.
fn serve(host: &Host, guest: u16) -> (Ends, Arc<EventFd>, JoinHandle<()>) {
    let ends = host.add("sluggish", guest, XVDA, &[]);
    let path = DevicePath { class: "sluggish".to_owned(), guest: DomId(guest), number: XVDA };
    let xen = host.hypervisor.clone();
    let keys = Keys::open(xen.store().unwrap(), path.clone()).unwrap();
    let context = Context {
        path,
        guest: Guest::new(Arc::new(DaemonBudget::of_this_process())),
        service: ServiceSettings::default(),
        stats: Arc::new(DeviceStats::default()),
    };
    let stop = Arc::new(EventFd::new().unwrap());
    let session =
        Session::new(ByGrants(xen), keys, Some(Box::new(Sluggish)), context, Arc::clone(&stop));
    let thread = thread::spawn(move || session.run(Origin::New).outcome.unwrap());
    (ends, stop, thread)
}

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
    let (ends, _stop, thread) = serve(&host, 1);
    let mut driver = keep_busy(&host, &ends);
    host.remove(&ends);
    thread.join().unwrap();
    driver.release();
    host.finish();
}

#[test]
fn busy_device_ends_with_the_daemon() {
    let host = Host::start();
    let (ends, stop, thread) = serve(&host, 1);
    let mut driver = keep_busy(&host, &ends);
    stop.write(1).unwrap();
    host.wait_state(&ends, "6");
    thread.join().unwrap();
    driver.release();
    host.finish();
}
