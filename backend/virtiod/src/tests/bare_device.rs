//! A device without a purpose, served by a session of its own: it takes its time, or its storage
//! holds the driver's buffers.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

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

/// The storage of a device.
pub(super) struct Storage {
    holds: AtomicBool,
    /// Readable once storage has let go.
    news: EventFd,
}

impl Storage {
    /// Storage that holds the driver's buffers from the start of the device on.
    pub(super) fn hung() -> Arc<Self> {
        Self::new(true)
    }

    /// Storage that never holds them.
    pub(super) fn sound() -> Arc<Self> {
        Self::new(false)
    }

    fn new(holds: bool) -> Arc<Self> {
        let news = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Arc::new(Self { holds: AtomicBool::new(holds), news })
    }

    pub(super) fn let_go(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.news.write(1).unwrap();
    }

    pub(super) fn holds(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }
}

struct BareDevice {
    storage: Arc<Storage>,
    is_started: bool,
    /// The time that each step takes, of a device that always has another one.
    step: Option<Duration>,
}

impl<M: DeviceMemory> VirtioDevice<M> for BareDevice {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn kind(&self) -> &'static str {
        "bare"
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
        match self.step {
            Some(step) => {
                // Simulates slow storage.
                thread::sleep(step);
                queues.reschedule(index);
            }
            None => queues.mark_idle(index),
        }
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

/// A device that is served.
pub(super) struct BareSession {
    pub(super) ends: Ends,
    /// Written to for the end of the daemon.
    pub(super) stop: Arc<EventFd>,
    /// Returns whether storage held the device when the session had ended.
    pub(super) thread: JoinHandle<bool>,
}

/// Serves the first guest's disk with a bare device, in a class that the server does not scan.
pub(super) fn serve(host: &Host, storage: &Arc<Storage>, step: Option<Duration>) -> BareSession {
    let ends = host.add("bare", 1, XVDA, &[]);
    let path = DevicePath { class: "bare".to_owned(), guest: DomId(1), number: XVDA };
    let xen = host.hypervisor.clone();
    let keys = Keys::open(xen.store().unwrap(), path.clone()).unwrap();
    let context = Context {
        path,
        guest: Guest::new(Arc::new(DaemonBudget::of_this_process())),
        service: ServiceSettings::default(),
        stats: Arc::new(DeviceStats::default()),
    };
    let device = BareDevice { storage: Arc::clone(storage), is_started: false, step };
    let stop = Arc::new(EventFd::new().unwrap());
    let session =
        Session::new(ByGrants(xen), keys, Some(Box::new(device)), context, Arc::clone(&stop));
    let thread = thread::spawn(move || {
        let SessionEnd { outcome, draining } = session.run(Origin::New);
        outcome.unwrap();
        !draining.is_empty()
    });
    BareSession { ends, stop, thread }
}
