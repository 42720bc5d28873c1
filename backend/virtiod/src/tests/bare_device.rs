//! A device without a purpose, served by a session of its own: it takes its time, or its storage
//! holds the driver's buffers.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use uring::waiting::wait_by_poll;

use super::host::{Ends, Host, XVDA};
use crate::bus::session::{Context, Origin, Session, SessionEnd};
use crate::bus::{DevicePath, Keys, StopSignal};
use crate::config::{ServiceSettings, ThreadLimit};
use crate::device::{AwaitedFd, DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice};
use crate::dma::budget::DaemonBudget;
use crate::domain::ByGrants;
use crate::guest::Guest;
use crate::stats::DeviceStats;
use xen::{DomId, Xen};

/// The storage of a device.
pub(super) struct Storage {
    holds: AtomicBool,
    /// The only part of the device that it holds buffers of; without one, of all.
    part: Option<usize>,
    /// For each part, readable once storage has let go.
    news: Mutex<Vec<Arc<EventFd>>>,
    /// The threads that processed the queues last.
    threads: Mutex<BTreeMap<usize, ThreadId>>,
    /// Whether a part has noticed that storage let go after a reset.
    drained: AtomicBool,
    /// How often parts were asked whether a queue is draining.
    asked: AtomicU32,
    /// Whether the part that is asked next finds another configuration.
    changes: AtomicBool,
    /// How many parts share the limits, as each was told last.
    shares: Mutex<BTreeMap<usize, usize>>,
    /// What becomes of the next processing of a queue.
    mishap: Mutex<Option<(usize, Mishap)>>,
}

/// What may become of a device's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    Fault,
    Panic,
    /// As [`Mishap::Panic`], so late that a message finds the thread still at it.
    LatePanic,
    /// Storage has let go, which the processing finds out before a source tells.
    LetGo,
}

impl Storage {
    /// Storage that holds the driver's buffers from the start of the device on.
    pub(super) fn hung() -> Arc<Self> {
        Self::new(true, None)
    }

    /// As [`Storage::hung`], but it holds buffers of one part of the device only.
    pub(super) fn hung_for(part: usize) -> Arc<Self> {
        Self::new(true, Some(part))
    }

    /// Storage that never holds them.
    pub(super) fn sound() -> Arc<Self> {
        Self::new(false, None)
    }

    fn new(holds: bool, part: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            holds: AtomicBool::new(holds),
            part,
            news: Mutex::default(),
            threads: Mutex::default(),
            drained: AtomicBool::default(),
            asked: AtomicU32::default(),
            changes: AtomicBool::default(),
            shares: Mutex::default(),
            mishap: Mutex::default(),
        })
    }

    pub(super) fn let_go(&self) {
        self.holds.store(false, Ordering::SeqCst);
        for (part, news) in self.news.lock().unwrap().iter().enumerate() {
            if self.part.is_none_or(|held| held == part) {
                news.write(1).unwrap();
            }
        }
    }

    /// The threads that processed the queues last, by queue.
    pub(super) fn threads(&self) -> BTreeMap<usize, ThreadId> {
        self.threads.lock().unwrap().clone()
    }

    /// How many parts share the limits, as each part was told last.
    pub(super) fn shares(&self) -> Vec<usize> {
        self.shares.lock().unwrap().values().copied().collect()
    }

    /// Waits until a part has noticed that storage let go after a reset.
    pub(super) fn wait_drained(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while !self.drained.load(Ordering::SeqCst) {
            assert!(Instant::now() < end, "waited 10 s for the device to notice its storage");
            thread::yield_now();
        }
    }

    /// Waits until parts were asked so often whether a queue is draining.
    pub(super) fn wait_asked(&self, count: u32) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.asked.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < end, "waited 10 s for {count} question(s) about a queue");
            thread::yield_now();
        }
    }

    /// Has a part find another configuration when it is asked whether a queue is draining.
    pub(super) fn plan_change(&self) {
        self.changes.store(true, Ordering::SeqCst);
    }

    /// Whether a part has handled what its source told.
    pub(super) fn is_handled(&self, part: usize) -> bool {
        let news = Arc::clone(&self.news.lock().unwrap()[part]);
        let mut fds = [AwaitedFd::readable(news.as_fd())];
        wait_by_poll(&mut fds, Duration::ZERO).unwrap();
        !fds[0].is_ready
    }

    /// Has the next processing of a queue fail.
    pub(super) fn plan(&self, queue: usize, mishap: Mishap) {
        *self.mishap.lock().unwrap() = Some((queue, mishap));
    }

    /// Whether the planned processing has begun.
    pub(super) fn has_begun_mishap(&self) -> bool {
        self.mishap.lock().unwrap().is_none()
    }

    pub(super) fn holds(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }
}

struct BareDevice {
    storage: Arc<Storage>,
    part: usize,
    news: Arc<EventFd>,
    is_started: bool,
    is_changed: bool,
    /// The time that each step takes, of a device that always has another one.
    step: Option<Duration>,
    queues: &'static [u16],
    /// Whether its end waits until storage lets go.
    waits_at_end: bool,
}

impl Drop for BareDevice {
    fn drop(&mut self) {
        while self.waits_at_end && self.is_held() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl BareDevice {
    /// Another part of the device, or the first one.
    fn new(storage: &Arc<Storage>, step: Option<Duration>, queues: &'static [u16]) -> Self {
        let news = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let mut all = storage.news.lock().unwrap();
        all.push(Arc::clone(&news));
        let (part, storage) = (all.len() - 1, Arc::clone(storage));
        let (is_started, is_changed, waits_at_end) = (false, false, false);
        Self { storage, part, news, is_started, is_changed, step, queues, waits_at_end }
    }

    fn is_held(&self) -> bool {
        self.storage.holds() && self.storage.part.is_none_or(|part| part == self.part)
    }
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
        self.queues
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn part(&mut self) -> Option<Box<dyn VirtioDevice<M>>> {
        Some(Box::new(Self::new(&self.storage, self.step, self.queues)))
    }

    fn start(&mut self, _: u64) -> Result<(), Fault> {
        self.is_started = true;
        Ok(())
    }

    fn set_shares(&mut self, parts: usize) {
        self.storage.shares.lock().unwrap().insert(self.part, parts);
    }

    fn is_draining(&mut self) -> bool {
        if self.is_started && !self.is_held() {
            self.is_started = false;
            self.storage.drained.store(true, Ordering::SeqCst);
        }
        self.is_started
    }

    fn is_queue_draining(&mut self, _: usize) -> bool {
        self.storage.asked.fetch_add(1, Ordering::SeqCst);
        self.is_changed |= self.storage.changes.swap(false, Ordering::SeqCst);
        self.is_started && self.is_held()
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        self.storage.threads.lock().unwrap().insert(index, thread::current().id());
        let mishap = self.storage.mishap.lock().unwrap().take_if(|(queue, _)| *queue == index);
        match mishap {
            Some((_, Mishap::Fault)) => return Err(Fault::Internal("a test's")),
            Some((_, Mishap::Panic)) => {
                self.waits_at_end = true;
                panic!("a test's")
            }
            Some((_, Mishap::LatePanic)) => {
                // The thread is called back meanwhile, which nothing tells of.
                thread::sleep(Duration::from_millis(200));
                panic!("a test's")
            }
            Some((_, Mishap::LetGo)) => self.storage.holds.store(false, Ordering::SeqCst),
            None => {}
        }
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

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.news.as_fd())]
    }

    fn handle_sources(&mut self, _: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        // Another source may have been ready.
        let _ = self.news.read();
        Ok(())
    }
}

/// A device that is served.
pub(super) struct BareSession {
    pub(super) ends: Ends,
    /// Written to for the end of the daemon.
    pub(super) stop: Arc<StopSignal>,
    /// Returns whether storage held the device when the session had ended.
    pub(super) thread: JoinHandle<bool>,
}

/// Serves the first guest's disk with a bare device, in a class that the server does not scan.
pub(super) fn serve(host: &Host, storage: &Arc<Storage>, step: Option<Duration>) -> BareSession {
    serve_by(host, storage, step, ThreadLimit::ONE, &[16])
}

/// As [`serve`], with several queues and so many threads.
pub(super) fn serve_by(
    host: &Host,
    storage: &Arc<Storage>,
    step: Option<Duration>,
    threads: ThreadLimit,
    queues: &'static [u16],
) -> BareSession {
    serve_in(host, host.hypervisor.clone(), BareDevice::new(storage, step, queues), threads)
}

/// As [`serve_by`], over these handles to Xen.
pub(super) fn serve_over(
    host: &Host,
    xen: impl Xen,
    storage: &Arc<Storage>,
    threads: ThreadLimit,
    queues: &'static [u16],
) -> BareSession {
    serve_in(host, xen, BareDevice::new(storage, None, queues), threads)
}

fn serve_in(host: &Host, xen: impl Xen, device: BareDevice, threads: ThreadLimit) -> BareSession {
    let ends = host.add("bare", 1, XVDA, &[]);
    let path = DevicePath { class: "bare".to_owned(), guest: DomId(1), number: XVDA };
    let keys = Keys::open(xen.store().unwrap(), path.clone()).unwrap();
    let context = Context {
        path,
        guest: Guest::new(Arc::new(DaemonBudget::of_this_process())),
        service: ServiceSettings { threads, ..ServiceSettings::default() },
        records: None,
        fault: None,
        stats: Arc::new(DeviceStats::default()),
    };
    let stop = Arc::new(StopSignal::new().unwrap());
    let session =
        Session::new(ByGrants(xen), keys, Some(Box::new(device)), context, Arc::clone(&stop));
    let thread = thread::spawn(move || {
        let SessionEnd { outcome, draining } = session.run(Origin::New);
        outcome.unwrap();
        !draining.is_empty()
    });
    BareSession { ends, stop, thread }
}
