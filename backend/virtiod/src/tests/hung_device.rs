//! Tests of a device whose storage keeps the driver's buffers until it is told to let go: resets
//! and the end of the device are not complete before, and yet hold nobody up for ever.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::message::{Request, Response};
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, F_RING_RESET, FEATURES_OK};

use super::host::{Ends, Host, XVDA};
use crate::bus::session::{Context, Origin, Session, SessionEnd};
use crate::bus::{DevicePath, Keys};
use crate::config::ServiceSettings;
use crate::device::{DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice};
use crate::dma::budget::DaemonBudget;
use crate::domain::ByGrants;
use crate::guest::Guest;
use crate::stats::DeviceStats;
use xen::{DomId, Xen};

/// Storage that holds the driver's buffers.
struct Storage {
    holds: AtomicBool,
    /// Readable once storage has let go.
    news: EventFd,
}

impl Storage {
    fn new() -> Arc<Self> {
        let news = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Arc::new(Self { holds: AtomicBool::new(true), news })
    }

    fn let_go(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.news.write(1).unwrap();
    }

    fn holds(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }
}

/// A device that hangs once a driver started it.
struct Hung {
    storage: Arc<Storage>,
    is_started: bool,
}

impl<M: DeviceMemory> VirtioDevice<M> for Hung {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn kind(&self) -> &'static str {
        "hung"
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

    fn start(&mut self, _: u64) -> Result<(), Fault> {
        self.is_started = true;
        Ok(())
    }

    fn is_draining(&mut self) -> bool {
        self.is_started &= self.storage.holds();
        self.is_started
    }

    fn is_queue_draining(&mut self, _: usize) -> bool {
        self.is_started && self.storage.holds()
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        queues.mark_idle(index);
        Ok(())
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.storage.news.as_fd())]
    }

    fn handle_sources(&mut self, _: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        // Another source may have been ready.
        let _ = self.storage.news.read();
        Ok(())
    }
}

/// Serves a guest's disk with a hung device, in a class that the server does not scan. The thread
/// returns whether storage held the device when the session had ended.
fn serve(host: &Host, storage: &Arc<Storage>) -> (Ends, JoinHandle<bool>) {
    let ends = host.add("hung", 1, XVDA, &[]);
    let path = DevicePath { class: "hung".to_owned(), guest: DomId(1), number: XVDA };
    let xen = host.hypervisor.clone();
    let keys = Keys::open(xen.store().unwrap(), path.clone()).unwrap();
    let context = Context {
        path,
        guest: Guest::new(Arc::new(DaemonBudget::of_this_process())),
        service: ServiceSettings::default(),
        stats: Arc::new(DeviceStats::default()),
    };
    let device = Box::new(Hung { storage: Arc::clone(storage), is_started: false });
    let stop = Arc::new(EventFd::new().unwrap());
    let session = Session::new(ByGrants(xen), keys, Some(device), context, stop);
    let body = move || {
        let SessionEnd { outcome, draining } = session.run(Origin::New);
        outcome.unwrap();
        draining.is_some()
    };
    (ends, thread::spawn(body))
}

#[test]
fn spec_6_4_reset_answers_with_another_status_until_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::new());
    let (ends, thread) = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start();
    let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(driver.set_status(0), status);
    // Nothing can be begun anew.
    assert_eq!((driver.set_status(ACKNOWLEDGE), driver.set_status(0)), (status, status));
    driver.free_rings();
    storage.let_go();
    driver.until("the reset is complete", |driver| driver.status() == 0);
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_7_queue_reset_is_answered_when_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::new());
    let (ends, thread) = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    let features = driver.offered() | 1 << F_RING_RESET;
    driver.start_accepting(features, 1);
    let release = Arc::clone(&storage);
    let releasing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        release.let_go();
    });
    let answered = driver.ask(Request::ResetVqueue { index: 0 }, |answer| {
        assert_eq!(answer, Response::ResetVqueue);
        storage.holds()
    });
    assert!(!answered, "the queue's buffers are still in use");
    releasing.join().unwrap();
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_2_7_toolstacks_end_does_not_wait_for_storage_for_ever() {
    let (host, storage) = (Host::start(), Storage::new());
    let (ends, thread) = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start();
    // Waits for state 6 as libxl does, with its limit.
    host.remove(&ends);
    assert!(thread.join().unwrap(), "the device was dropped where its storage is waited for");
    assert!(storage.holds());
    driver.release();
    host.finish();
}

#[test]
fn spec_2_7_device_is_not_offered_again_before_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::new());
    let (ends, thread) = serve(&host, &storage);
    let mut driver = host.connect(&ends);
    driver.start();
    driver.write_state("5");
    host.wait_state(&ends, "6");
    driver.release();
    driver.write_state("1");
    let state = || host.hypervisor.store_read(&format!("{}/state", ends.backend));
    // An offer would follow at once.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(state().as_deref(), Some("6"));
    storage.let_go();
    host.wait_state(&ends, "2");
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}
