//! A device that is never done, and takes half a second for each step: its end does not wait for
//! it.

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

/// Long beside what an iteration may take; 64 of them are longer than libxl waits.
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
        // It plays a store that takes its time.
        thread::sleep(STEP);
        queues.reschedule(index);
        Ok(())
    }
}

/// Serves a guest's disk with a sluggish device, in a class that the server does not look at.
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
    let thread = thread::spawn(move || session.run(Origin::New).unwrap());
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
fn a_busy_device_sees_the_toolstacks_end_within_the_time_that_libxl_waits() {
    let host = Host::start();
    let (ends, _stop, thread) = serve(&host, 1);
    let mut driver = keep_busy(&host, &ends);
    host.remove(&ends);
    thread.join().unwrap();
    driver.release();
    host.finish();
}

#[test]
fn a_busy_device_sees_that_the_daemon_ends() {
    let host = Host::start();
    let (ends, stop, thread) = serve(&host, 1);
    let mut driver = keep_busy(&host, &ends);
    stop.write(1).unwrap();
    host.wait_state(&ends, "6");
    thread.join().unwrap();
    driver.release();
    host.finish();
}
