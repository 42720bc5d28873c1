//! The block device (virtio 1.3 section 5.2).
//!
//! Requests are taken from a ring by batches and answered in the order in which storage answers
//! them. The device's thread transfers by itself only what cannot wait for storage. The engine
//! transfers the other data whose place in a file is known, and a worker does everything else: a
//! thread of the disk that may wait, with others beside it for what changes no metadata.

mod answer;
mod batch;
mod claim;
mod config;
mod disk_file;
mod facts;
mod files;
mod image;
mod in_flight;
mod latency;
mod pause;
mod progress;
mod request;
#[cfg(any(test, feature = "sample-images"))]
#[allow(clippy::indexing_slicing, clippy::panic, reason = "test code: a panic fails the test")]
pub mod sample;
mod size_watch;
mod submit;
mod sync;
mod target;
#[cfg(test)]
mod tests;
mod throttle;
mod worker;
mod zeroes;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use tracing::Level;
use uring::engine::{Engine, Landed, Method};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::batch::CachedReads;
pub use self::claim::{
    Claim, ClaimError, Claimed, Durability, FileId, Handover, Images, LocalImages, Owner,
    QueueLimits, Sharing, TargetClaims, claim_backing_for_process, claim_target_for_process,
};
use self::facts::DiskFacts;
pub use self::image::{ImageFormat, backing_of, no_backing};
pub use self::in_flight::InFlightLimits;
use self::in_flight::{Carrier, Ended, InFlightTable};
use self::latency::LatencyMeter;
use self::pause::Pause;
pub use self::pause::{ErrorPolicy, PauseSwitch};
use self::request::BlockCommand;
pub use self::request::{SECTOR_SIZE, SERIAL_SIZE};
use self::size_watch::SizeCheck;
pub use self::size_watch::{SizeListener, SizeSignal, SizeWatch, SizeWatcher};
use self::submit::Ticket;
use self::sync::Syncs;
pub use self::target::{
    AccessMode, Caching, Discard, LogicalBlockSize, Target, TargetError, TargetOptions,
};
use self::throttle::Delays;
pub use self::throttle::{DiskRates, RateLimits, Throttle};
use self::worker::{Job, Report, Reports, Worker};
pub use self::zeroes::DetectZeroes;
#[cfg(any(test, feature = "sample-images"))]
pub use self::{
    sample::qcow2_samples,
    target::exercise::{Exercised, exercise_qcow2},
};
use super::{
    AwaitedFd, BATCH, DeviceId, DeviceMemory, Fault, QueueContext, QueueSet, Source, VirtioDevice,
    WorkSource, WriteMode, probes,
};
use crate::Causes;
use crate::record::LossMark;
use crate::stats::{DeviceStats, PartUse, StorageUse};
use uring::waiting::wait_for;

/// Maximum number of queues that a device offers; the driver uses one per CPU, at most these.
pub const QUEUES: u16 = 4;
/// Number of entries of each queue.
const QUEUE_SIZE: u16 = 512;
/// Bytes of a request's status.
const STATUS_SIZE: u32 = 1;
/// The time after which the device offers the kernel again what that did not take.
const COMMIT_RETRY: Duration = Duration::from_millis(1);

/// The time for which a reset waits for storage before it is left for later.
const SHORT_WAIT: Duration = Duration::from_millis(20);
/// Maximum milliseconds between two looks at what storage does not let go.
const LET_GO_LOOK: u16 = 60_000;

/// Number of sources that a part of a device may have.
const MOST_SOURCES: usize = 5;

/// Whether a driver uses the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskUse {
    /// None does.
    Idle,
    /// One does, and the worker takes the disk for it.
    Starting,
    /// One does.
    Used,
    /// It is gone, and requests of it are in flight.
    Draining,
    /// Nothing of it is in flight, and the worker gives the disk up.
    Stopping,
}

/// A part of a device.
enum PartRole {
    /// The device itself, which takes the disk and gives it up. The other parts that use the disk
    /// have a share of this.
    First(Arc<()>),
    /// Another part, with its share while it uses the disk.
    Further { first: Weak<()>, uses: Option<Arc<()>> },
}

/// What the parts of a device have in common.
#[derive(Clone)]
struct Common {
    /// The format of the image.
    format: ImageFormat,
    serial: [u8; SERIAL_SIZE],
    /// Limits of what all parts have in flight.
    limits: InFlightLimits,
    queues: u16,
    method: Method,
    /// Limits of the rate of all parts.
    throttle: Arc<Throttle>,
    detect_zeroes: DetectZeroes,
    stats: Arc<DeviceStats>,
}

/// Options of a block device beside those of its target.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Its identity, of which the driver reads the first 20 bytes.
    pub serial: String,
    /// Limits of what is in flight.
    pub limits: InFlightLimits,
    /// Limits of its rate.
    pub throttle: Arc<Throttle>,
    /// Number of queues that it offers, 1 to [`QUEUES`].
    pub queues: u16,
    /// What it does when its storage fails.
    pub on_error: ErrorPolicy,
    /// What it does with data that is zeros.
    pub detect_zeroes: DetectZeroes,
}

impl BlockOptions {
    /// Those of a disk of this name, without limits of its rate.
    pub fn named(serial: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            limits: InFlightLimits::default(),
            throttle: Arc::default(),
            queues: QUEUES,
            on_error: ErrorPolicy::default(),
            detect_zeroes: DetectZeroes::default(),
        }
    }
}

/// A block device, or a part of it for some queues.
pub struct Block {
    common: Common,
    facts: DiskFacts,
    config: [u8; config::SIZE],
    config_changed: bool,
    driver_features: u64,
    disk_use: DiskUse,
    role: PartRole,
    worker: Worker,
    engine: Engine<Ticket>,
    /// What the engine returns, reused from call to call.
    landed: Vec<Landed<Ticket>>,
    /// Requests that are being answered, with the numbers of bytes written.
    done: Vec<(u16, u32)>,
    in_flight: InFlightTable,
    /// For `stat`. The worker refers to the use of the image too.
    part_use: Arc<PartUse>,
    /// Requests that have ended and are not answered yet.
    ended: Vec<Ended>,
    syncs: Syncs,
    cached_reads: CachedReads,
    /// Requests of this part that wait for the limits of the rate.
    delays: Delays,
    /// What the headers said of the requests that are begun now, if those were taken earlier.
    known: VecDeque<Result<BlockCommand, Fault>>,
    pause: Pause,
    /// Whether requests were ever held back by limits, or may be by a pause. Most disks have
    /// neither.
    may_hold_back: bool,
    latency: LatencyMeter,
    /// Queues in which requests wait until fewer are in flight.
    blocked: QueueSet,
    /// For each queue, the fault of the request behind those that were taken.
    faults: [Option<Fault>; QUEUES as usize],
    /// When the kernel is offered again what it did not take.
    commit_at: Option<Instant>,
    size_watch: Option<SizeWatch>,
    size_check: SizeCheck,
    /// Whether the end of the worker, which its descriptor tells for ever, is noted.
    is_end_noted: bool,
}

impl Block {
    /// A disk on `target`.
    ///
    /// # Errors
    /// [`TargetError::Worker`].
    pub fn new(
        target: Target,
        options: BlockOptions,
        stats: Arc<DeviceStats>,
    ) -> Result<Self, TargetError> {
        Self::with_method(target, options, stats, Method::Ring)
    }

    /// As [`Block::new`], with an engine of this kind.
    fn with_method(
        target: Target,
        options: BlockOptions,
        stats: Arc<DeviceStats>,
        method: Method,
    ) -> Result<Self, TargetError> {
        let switch = Arc::new(PauseSwitch::default());
        stats.set_pause(&switch);
        let pause = Pause::new(options.on_error, switch);
        let name = target.path().display().to_string();
        let storage = Arc::new(StorageUse::new(name, options.limits.requests));
        stats.set_storage(&storage);
        let (facts, format) = (target.facts(), target.format());
        let mut serial = [0; SERIAL_SIZE];
        serial.iter_mut().zip(options.serial.bytes()).for_each(|(to, from)| *to = from);
        let worker = Worker::start(target, Arc::clone(&storage)).map_err(TargetError::Worker)?;
        let BlockOptions { limits, throttle, queues, detect_zeroes, .. } = options;
        let common =
            Common { format, serial, limits, queues, method, throttle, detect_zeroes, stats };
        let role = PartRole::First(Arc::new(()));
        Ok(Self::of_parts(common, facts, pause, StorageUse::add_part(&storage), worker, role))
    }

    fn of_parts(
        common: Common,
        facts: DiskFacts,
        pause: Pause,
        part_use: Arc<PartUse>,
        worker: Worker,
        role: PartRole,
    ) -> Self {
        Self {
            config: config::bytes(&facts, common.queues, QUEUE_SIZE),
            size_watch: None,
            size_check: SizeCheck::default(),
            is_end_noted: false,
            facts,
            config_changed: false,
            driver_features: 0,
            disk_use: DiskUse::Idle,
            role,
            worker,
            engine: Engine::new(common.method),
            landed: Vec::new(),
            done: Vec::new(),
            in_flight: InFlightTable::new(common.limits, Arc::clone(&part_use)),
            part_use,
            ended: Vec::new(),
            syncs: Syncs::default(),
            cached_reads: CachedReads::default(),
            delays: Delays::default(),
            known: VecDeque::new(),
            may_hold_back: pause.is_possible(),
            pause,
            latency: LatencyMeter::default(),
            blocked: QueueSet::default(),
            faults: [const { None }; QUEUES as usize],
            commit_at: None,
            common,
        }
    }

    /// Another part of the device, unless the worker transfers all data of the image anyway.
    fn further_part(&self) -> Option<Self> {
        let PartRole::First(first) = &self.role else { return None };
        let ImageFormat::Raw = self.common.format else { return None };
        let role = PartRole::Further { first: Arc::downgrade(first), uses: None };
        // One part serves all queues if no descriptor is left.
        let worker = self.worker.share().ok()?;
        let part_use = StorageUse::add_part(self.part_use.storage());
        let (common, facts) = (self.common.clone(), self.facts.clone());
        Some(Self::of_parts(common, facts, self.pause.share(), part_use, worker, role))
    }

    /// Takes the disk for a driver.
    fn take_disk(&mut self, mode: WriteMode) {
        self.part_use.storage().begin_use();
        match &mut self.role {
            PartRole::First(_) => {
                self.disk_use = DiskUse::Starting;
                self.worker.add(Job::Start(mode));
            }
            PartRole::Further { first, uses } => {
                self.disk_use = DiskUse::Used;
                *uses = first.upgrade();
            }
        }
    }

    /// Gives the disk up: nothing of this part's is in flight.
    fn give_up_disk(&mut self) {
        match &mut self.role {
            PartRole::First(users) if Arc::strong_count(users) > 1 => return,
            PartRole::First(_) => {
                self.disk_use = DiskUse::Stopping;
                self.worker.add(Job::Stop);
            }
            PartRole::Further { uses, .. } => {
                self.disk_use = DiskUse::Idle;
                *uses = None;
            }
        }
        self.engine.unregister();
    }

    /// Has the device learn of changes of its target's size.
    pub fn watch_size(&mut self, watcher: &dyn SizeWatcher) {
        let Some((file, bytes)) = &self.facts.sized_file else { return };
        match watcher.watch(file.as_fd(), *bytes, &self.common.stats) {
            Ok(watch) => self.size_watch = Some(watch),
            Err(error) => tracing::warn!(
                "the disk notices a change of its size only while it is used: {}",
                Causes(&error)
            ),
        }
    }

    /// Takes what the engine and the worker have done, and the news of another size: whatever the
    /// device's sources tell. Everything that waits for these calls this, or it would wait no more.
    fn collect(&mut self) {
        if self.size_watch.as_ref().is_some_and(SizeWatch::take) {
            self.worker.add(Job::Refresh);
        }
        let mut landed = std::mem::take(&mut self.landed);
        self.engine.take(&mut landed);
        landed.drain(..).for_each(|landed| self.land(landed));
        self.landed = landed;
        if self.worker.has_reports() {
            self.take_reports();
        }
        self.begin_sync();
        self.commit();
    }

    /// Takes what the worker has done.
    fn take_reports(&mut self) {
        let Reports { list, facts } = self.worker.take();
        if let Some(facts) = facts {
            self.facts = facts;
            if !matches!(self.disk_use, DiskUse::Starting | DiskUse::Used) {
                self.forget_files();
            }
        }
        list.into_iter().for_each(|report| self.take_report(report));
    }

    /// Leaves further requests to the worker.
    fn forget_files(&mut self) {
        (self.facts.file, self.facts.sync_file, self.facts.in_place) = (None, None, None);
    }

    /// Begins the operations that were submitted.
    fn commit(&mut self) {
        let begun = self.engine.commit();
        if let Err(error) = &begun {
            self.common.stats.log.line(
                Level::WARN,
                format_args!("cannot begin to access storage; tried again: {}", Causes(error)),
            );
        }
        let is_done = begun.is_ok() && self.engine.is_committed();
        self.commit_at = (!is_done).then(|| Instant::now() + COMMIT_RETRY);
    }

    fn take_report(&mut self, report: Report) {
        match report {
            Report::Started(outcome) => {
                if self.disk_use == DiskUse::Starting {
                    self.disk_use = DiskUse::Used;
                }
                self.warn_of(outcome, "disk not usable, requests will fail");
            }
            Report::Stopped(outcome) => {
                self.disk_use = DiskUse::Idle;
                self.warn_of(outcome, "cannot write cached data to the disk");
            }
            Report::Unwritten(error) => {
                self.warn_of(Err(error), "cannot write cached data to the disk");
            }
            Report::Refreshed(Ok(false)) => {}
            Report::Refreshed(Ok(true)) => self.note_size(),
            Report::Refreshed(Err(error)) => {
                self.warn_of(Err(error), "cannot read the size of the disk");
            }
            Report::Done(job, outcome) => self.end_request(job.slot, outcome, job.data),
        }
    }

    fn warn_of(&self, outcome: Result<(), TargetError>, what: &str) {
        if let Err(error) = outcome {
            self.common.stats.log.line(Level::WARN, format_args!("{what}: {}", Causes(&error)));
        }
    }

    /// Shows a new size in the configuration space.
    fn note_size(&mut self) {
        self.config = config::bytes(&self.facts, self.common.queues, QUEUE_SIZE);
        self.config_changed = true;
        let sectors = self.facts.sectors;
        let line = format_args!("disk resized: it has {sectors} sectors now");
        self.common.stats.log.line(Level::INFO, line);
    }

    /// Notes that a request has ended.
    fn end_request(&mut self, slot: usize, outcome: Result<(), TargetError>, data: Vec<u8>) {
        if let Some(entry) = self.in_flight.remove(slot) {
            probes::request_done(entry.queue, entry.request.head);
            self.ended.push(Ended { entry, outcome, data });
        }
    }

    /// Forgets the requests of a queue, or of all: they are awaited, but not answered.
    fn forget(&mut self, queue: Option<usize>) {
        self.delays.forget(queue);
        self.pause.forget(queue);
        self.in_flight.forget(queue);
        for slot in self.worker.cancel(queue) {
            self.in_flight.remove(slot);
        }
        self.ended.retain(|ended| queue.is_some_and(|queue| queue != ended.entry.queue));
    }

    /// Waits for the worker and for what is in flight, at most for [`SHORT_WAIT`]: most resets are
    /// complete when they are answered.
    fn wait_shortly(&mut self, is_over: impl Fn(&mut Self) -> bool) {
        let end = Instant::now() + SHORT_WAIT;
        while !is_over(self) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let engine = self.engine.completions();
            let fds = [Some(self.worker.as_fd()), engine].into_iter().flatten();
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // The next look shows what happened.
            let _ = wait_for(&mut fds, left);
        }
    }

    /// Gives the disk up, once nothing of its driver is in flight. Returns whether that takes
    /// longer.
    fn drains(&mut self) -> bool {
        self.collect();
        self.ended.clear();
        self.is_end_noted = self.worker.has_ended();
        if self.is_end_noted {
            self.in_flight.remove_all(|entry| matches!(entry.carrier, Carrier::Worker));
        }
        if self.disk_use == DiskUse::Draining && self.in_flight.len() == 0 {
            self.give_up_disk();
        }
        if self.disk_use == DiskUse::Stopping && self.is_end_noted {
            self.disk_use = DiskUse::Idle;
        }
        let drains = matches!(self.disk_use, DiskUse::Draining | DiskUse::Stopping);
        self.part_use.set_waiting(drains);
        drains
    }

    /// Whether requests of a queue are in flight, after its reset.
    fn drains_queue(&mut self, index: usize) -> bool {
        self.collect();
        // Nobody waits for these, and the device need not run for them.
        self.ended.retain(|ended| ended.entry.is_wanted);
        self.part_use.set_waiting(self.in_flight.has_unwanted());
        self.in_flight.of_queue(index) > 0
    }

    /// Number of requests that may be taken from a ring now; none while the disk is paused, or
    /// before the failed ones were begun again. At most half of the limit wait for their rate: so
    /// requests in the other direction go on, up to that many.
    fn room(&self) -> usize {
        let room = self.in_flight.room();
        if !self.may_hold_back {
            return room;
        }
        if self.pause.is_paused() || self.pause.len() > 0 {
            return 0;
        }
        let delayed = self.delays.len();
        let may_delay = (self.in_flight.limit() / 2).max(1).saturating_sub(delayed);
        match delayed {
            0 => room,
            _ => room.saturating_sub(delayed).min(may_delay),
        }
    }

    /// Begins requests that were held back, if they may go on.
    #[cold]
    fn begin_held_back<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        if self.pause.may_go_on() {
            let failed = self.pause.take();
            self.begin_all(failed, queues)?;
        }
        if self.delays.len() > 0 && !self.pause.is_paused() {
            self.begin_delayed(queues)?;
        }
        Ok(())
    }

    /// Lets queues go on that waited until fewer requests are in flight.
    fn unblock<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) {
        if !self.blocked.is_empty() && self.room() > 0 {
            self.blocked.take().iter().for_each(|index| queues.reschedule(index));
        }
    }

    /// Notes the fault of the request behind those that were taken from a queue.
    fn set_fault(&mut self, queue: usize, fault: Option<Fault>) {
        if let Some(slot) = self.faults.get_mut(queue) {
            *slot = fault;
        }
    }

    /// The fault of a queue whose requests before it are all answered.
    fn due_fault(&mut self, queue: usize) -> Result<(), Fault> {
        let slot = self.faults.get_mut(queue).filter(|fault| fault.is_some());
        let Some(slot) = slot else { return Ok(()) };
        if self.in_flight.of_queue(queue) > 0
            || self.delays.has_of(queue)
            || self.pause.has_of(queue)
        {
            return Ok(());
        }
        slot.take().map_or(Ok(()), Err)
    }
}

impl Drop for Block {
    /// Waits until storage has let go of everything, which may take for ever: what it holds stays
    /// reachable, and the image claimed. The bus drops a device that [`VirtioDevice::is_draining`]
    /// where nobody waits for it. The wait is in the thread that submitted, since the kernel lets
    /// that thread not end before either.
    fn drop(&mut self) {
        self.part_use.set_waiting(true);
        if self.engine.in_flight() > 0 {
            self.common.stats.log_storage_wait();
        }
        self.in_flight.forget(None);
        while self.engine.in_flight() > 0 {
            self.engine.wait(LET_GO_LOOK);
            self.collect();
            self.ended.clear();
        }
        self.engine.unregister();
        // The locks end when the worker closes the files, unless somebody else has them.
        self.forget_files();
        self.facts.sized_file = None;
        if matches!(self.role, PartRole::First(_)) {
            self.worker.end();
        }
    }
}

impl<M: DeviceMemory> VirtioDevice<M> for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn kind(&self) -> &'static str {
        "blk"
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | u64::from(self.facts.has_cache && !self.facts.writes_through) << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        let by_target = match (self.facts.access, self.facts.can_discard) {
            (AccessMode::ReadOnly, _) => 1 << VIRTIO_BLK_F_RO,
            (AccessMode::ReadWrite, false) => 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            (AccessMode::ReadWrite, true) => {
                1 << VIRTIO_BLK_F_WRITE_ZEROES | 1 << VIRTIO_BLK_F_DISCARD
            }
        };
        always | by_target
    }

    /// Includes flushes, even if nothing needs them, and discards, even if the target cannot
    /// discard: they succeed and do nothing.
    fn accepted_features(&self) -> u64 {
        let offered = VirtioDevice::<M>::features(self) | 1 << VIRTIO_BLK_F_FLUSH;
        match self.facts.access {
            AccessMode::ReadOnly => offered,
            AccessMode::ReadWrite => offered | 1 << VIRTIO_BLK_F_DISCARD,
        }
    }

    fn longest_request(&self) -> u64 {
        request::LONGEST
    }

    fn queue_sizes(&self) -> &[u16] {
        let all = &[QUEUE_SIZE; QUEUES as usize];
        all.get(..usize::from(self.common.queues)).unwrap_or(all)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// Without flushes, every write must be durable when it completes (virtio 1.3 section 5.2.6.2).
    fn start(&mut self, features: u64) -> Result<(), Fault> {
        self.driver_features = features;
        // Each driver's device has to fail.
        self.is_end_noted = false;
        let flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let may_cache = flushes && !self.facts.writes_through;
        let mode = if may_cache { WriteMode::Back } else { WriteMode::Through };
        self.take_disk(mode);
        // Until then, the worker serves all requests.
        self.wait_shortly(|disk| {
            disk.collect();
            disk.disk_use != DiskUse::Starting
        });
        Ok(())
    }

    fn can_be_taken_over(&self) -> bool {
        self.facts.can_be_taken_over
    }

    fn outlives_its_domain(&self) -> bool {
        self.facts.outlives_its_domain
    }

    fn keep_losses(&mut self, mark: LossMark) {
        self.facts.durability.keep_in(mark);
    }

    fn reset(&mut self) {
        self.engine.stop_polling();
        self.forget(None);
        self.blocked = QueueSet::default();
        self.faults = [const { None }; QUEUES as usize];
        self.driver_features = 0;
        self.forget_files();
        if matches!(self.disk_use, DiskUse::Starting | DiskUse::Used) {
            self.disk_use = DiskUse::Draining;
        }
        self.wait_shortly(|disk| !disk.drains());
    }

    fn part(&mut self) -> Option<Box<dyn VirtioDevice<M>>> {
        Some(Box::new(self.further_part()?))
    }

    fn set_shares(&mut self, parts: usize) {
        self.in_flight.set_limits(self.common.limits.shared_by(parts));
    }

    fn is_draining(&mut self) -> bool {
        self.drains()
    }

    fn forget_regions(&mut self) {
        self.engine.unregister();
    }

    fn reset_queue(&mut self, index: usize) {
        self.forget(Some(index));
        self.blocked.remove(index);
        self.set_fault(index, None);
        self.wait_shortly(|disk| !disk.drains_queue(index));
    }

    fn is_queue_draining(&mut self, index: usize) -> bool {
        self.drains_queue(index)
    }

    fn work_source(&self) -> WorkSource {
        WorkSource::Driver
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        if self.faults.get(index).is_some_and(Option::is_some) {
            return self.due_fault(index);
        }
        // For changes that no watch reports, as on some network file systems.
        if self.facts.sized_file.is_some() && self.size_check.is_due() {
            self.worker.add(Job::Refresh);
        }
        // A driver that knows the disk's new size uses it at once.
        if self.worker.has_reports() {
            self.collect();
        }
        let room = self.room();
        if room == 0 {
            self.blocked.insert(index);
            return Ok(());
        }
        let (requests, fault) = queues.fetch(index, room.min(BATCH));
        self.set_fault(index, fault);
        if requests.is_empty() {
            queues.recycle(requests);
            queues.mark_idle(index);
        } else {
            let requests = match self.may_hold_back || self.common.throttle.is_limited() {
                false => requests,
                true => self.admit(index, requests, queues)?,
            };
            self.begin(index, requests, queues)?;
            // Some storage answers at once.
            if self.engine.has_completions() {
                self.collect();
            }
            if !self.ended.is_empty() {
                self.answer_ended(queues)?;
                self.unblock(queues);
            }
            queues.reschedule_or_idle(index);
        }
        self.due_fault(index)
    }

    fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        self.engine.wait_for(fds, limit)
    }

    fn forget_descriptors(&mut self) {
        self.engine.stop_polling();
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let mut sources = Vec::with_capacity(MOST_SOURCES);
        if !self.is_end_noted {
            sources.push(Source::readable(self.worker.as_fd()));
        }
        if let Some(engine) = self.engine.completions() {
            sources.push(Source::readable(engine));
        }
        if let Some(size_watch) = &self.size_watch {
            sources.push(size_watch.source());
        }
        if self.may_hold_back {
            // A timer that nobody watches stays ready.
            let delays = self.delays.source().filter(|_| !self.pause.is_paused());
            sources.extend(delays.into_iter().chain(self.pause.source()));
        }
        sources
    }

    /// At once, if a reset, or a look at a queue, has made work that no source tells of.
    fn deadline(&self) -> Option<Instant> {
        let may_go_on = !self.blocked.is_empty() && self.room() > 0;
        let is_due = !self.ended.is_empty() || may_go_on || self.may_begin_delayed();
        if is_due { Some(Instant::now()) } else { self.commit_at }
    }

    /// Answers the requests that have ended.
    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        self.collect();
        self.answer_ended(queues)?;
        if self.may_hold_back {
            self.begin_held_back(queues)?;
        }
        self.unblock(queues);
        self.is_end_noted = self.worker.has_ended();
        if self.is_end_noted {
            return Err(Fault::Internal("the disk's thread has ended"));
        }
        (0..usize::from(QUEUES)).try_for_each(|index| self.due_fault(index))
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.len() as u32
    }

    fn has_completions(&self) -> bool {
        self.engine.has_completions() || self.worker.has_reports()
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }
}
