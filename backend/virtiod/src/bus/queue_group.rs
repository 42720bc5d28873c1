//! A queue group: the queues that one thread processes, and the part of the device that serves
//! them. Carries out the steps of their scheduler.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Level;
use uring::waiting::wait_by_poll;

use super::scheduler::clock::Clock;
use super::scheduler::{Found, NotifyWhen, Scheduler, Step};
use super::virtqueue::Virtqueue;
use crate::Causes;
use crate::config::PollTime;
use crate::device::{
    AwaitedFd, BatchSummary, Fault, QueueContext, QueueSet, RequestPool, Ring, Rings, Source,
    VirtioDevice, WorkSource,
};
use crate::dma::{AccessPlatform, DmaMemory};
use crate::stats::DeviceStats;
use xen::{EventChannels, LocalPort};

/// Number of polls for a peer after which another thread may have the processor.
const POLLS_TO_YIELD: u32 = 64;

/// What a group does with its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing: the driver is not ready, or the device needs a reset.
    Stopped,
    /// It processes them.
    Running,
    /// Nothing: the driver reset the device, and storage or the host may still use buffers [6.4].
    Draining,
}

/// The result of a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StepResult {
    /// Queues without a doorbell that have new used buffers.
    pub used: Vec<u32>,
    /// The fault after which the device needs a reset.
    pub fault: Option<String>,
}

impl StepResult {
    /// Adds the result of the next step.
    pub fn add(&mut self, next: Self) {
        self.used.extend(next.used);
        self.fault = self.fault.take().or(next.fault);
    }
}

/// The rings of all queues.
struct AllRings<'a, P: AccessPlatform>(&'a mut [Virtqueue<P>]);

impl<P: AccessPlatform> Rings for AllRings<'_, P> {
    fn ring(&mut self, index: usize) -> Option<Ring<'_>> {
        self.0.get_mut(index)?.ring()
    }
}

type Work<'a, P> = &'a mut dyn FnMut(
    &mut dyn VirtioDevice<DmaMemory<P>>,
    &mut QueueContext<'_, DmaMemory<P>>,
) -> Result<(), Fault>;

/// Queues with a device, or a part of it, and all that their thread needs.
pub struct QueueGroup<P: AccessPlatform> {
    /// The device, or the part of it.
    pub device: Box<dyn VirtioDevice<DmaMemory<P>>>,
    /// The guest's memory.
    pub memory: DmaMemory<P>,
    /// All queues of the device, by number; those of other groups are never set up here.
    pub queues: Vec<Virtqueue<P>>,
    /// Chooses the next step.
    pub scheduler: Scheduler,
    request_pool: RequestPool,
    activity: Activity,
    /// Queues that were reset, and whose buffers the device may still use [6.7].
    resets: QueueSet,
    poll: PollTime,
    stats: Arc<DeviceStats>,
}

impl<P: AccessPlatform> QueueGroup<P> {
    /// A group without queues that are set up. `poll` bounds the time that an empty ring is polled.
    pub fn new(
        device: Box<dyn VirtioDevice<DmaMemory<P>>>,
        memory: DmaMemory<P>,
        poll: PollTime,
        stats: Arc<DeviceStats>,
    ) -> Self {
        debug_assert!(device.queue_sizes().len() <= QueueSet::LIMIT);
        Self {
            queues: device.queue_sizes().iter().map(|size| Virtqueue::new(*size)).collect(),
            scheduler: Scheduler::new(device.work_source(), poll),
            device,
            memory,
            request_pool: RequestPool::default(),
            activity: Activity::Stopped,
            resets: QueueSet::default(),
            poll,
            stats,
        }
    }

    /// A group with another part of the device, over the same memory.
    pub fn beside(&self, part: Box<dyn VirtioDevice<DmaMemory<P>>>) -> Self {
        Self::new(part, self.memory.beside(), self.poll, Arc::clone(&self.stats))
    }

    /// Starts to process the enabled queues, with the requests that are already in them [6.1].
    pub fn run(&mut self) {
        self.activity = Activity::Running;
        self.scheduler.make_ready(self.enabled());
    }

    /// As [`QueueGroup::run`], for a queue that was enabled while the driver is ready.
    pub fn run_queue(&mut self, index: usize) {
        self.activity = Activity::Running;
        self.scheduler.make_ready(QueueSet::of(index));
    }

    /// Stops all processing: the device needs a reset.
    pub fn stop(&mut self) {
        self.activity = Activity::Stopped;
        self.scheduler.stop();
    }

    /// Resets all queues and the device; returns the doorbells, for the caller to close.
    pub fn reset(&mut self) -> Vec<LocalPort> {
        let doorbells = self.queues.iter_mut().filter_map(Virtqueue::reset).collect();
        self.device.reset();
        self.scheduler.reset();
        self.activity = Activity::Draining;
        self.resets = QueueSet::default();
        doorbells
    }

    /// Resets queue `index`; returns its doorbell, for the caller to close.
    pub fn reset_queue(&mut self, index: usize) -> Option<LocalPort> {
        let doorbell = self.queues.get_mut(index).and_then(Virtqueue::reset);
        self.device.reset_queue(index);
        self.scheduler.remove(index);
        self.resets.insert(index);
        doorbell
    }

    /// Notes which resets of queues have ended; returns whether any has. The group's sources tell
    /// when that may be so, whatever it does with its queues.
    pub fn note_ended_resets(&mut self) -> bool {
        let resets = self.resets;
        for index in resets.iter().filter(|index| !self.device.is_queue_draining(*index)) {
            self.resets.remove(index);
        }
        self.resets != resets
    }

    /// Whether the device still uses buffers after a reset. If not, unmaps the pool.
    pub fn is_draining(&mut self) -> bool {
        if self.activity == Activity::Draining && !self.device.is_draining() {
            self.memory.unshare_all();
            self.activity = Activity::Stopped;
        }
        self.activity == Activity::Draining
    }

    /// The statistics of the device.
    pub fn stats(&self) -> &DeviceStats {
        &self.stats
    }

    /// What the group does with its queues.
    pub fn activity(&self) -> Activity {
        self.activity
    }

    fn is_running(&self) -> bool {
        self.activity == Activity::Running
    }

    /// The longest time that the thread may sleep without an event; `None` for ever.
    pub fn longest_sleep(&self, clock: &impl Clock) -> Option<Duration> {
        let deadline = self.deadline().map(|at| at.saturating_duration_since(clock.now()));
        [deadline, self.scheduler.longest_sleep(clock)].into_iter().flatten().min()
    }

    /// The event sources of the device besides the driver, as long as the device handles them.
    pub fn sources(&self) -> Vec<Source<'_>> {
        match self.activity {
            Activity::Running | Activity::Draining => self.device.sources(),
            Activity::Stopped if !self.resets.is_empty() => self.device.sources(),
            Activity::Stopped => Vec::new(),
        }
    }

    /// The time at which the device must run even if none of its sources is ready.
    pub fn deadline(&self) -> Option<Instant> {
        match self.activity {
            Activity::Running | Activity::Draining => self.device.deadline(),
            Activity::Stopped => None,
        }
    }

    /// Waits until one of `fds` is ready, for at most `limit`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        DeviceStats::count(&self.stats.sleeps);
        match self.activity {
            Activity::Running => self.device.wait(fds, limit),
            Activity::Stopped | Activity::Draining => wait_by_poll(fds, limit),
        }
    }

    /// The set of enabled queues.
    pub fn enabled(&self) -> QueueSet {
        let numbers = self.queues.iter().enumerate().filter(|(_, queue)| queue.is_enabled());
        numbers.map(|(index, _)| index).collect()
    }

    /// Whether queue `index` exists and is enabled.
    pub fn is_enabled(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(Virtqueue::is_enabled)
    }

    /// Whether a queue has the doorbell `port`.
    pub fn has_doorbell(&self, port: LocalPort) -> bool {
        self.queues.iter().any(|queue| queue.doorbell() == Some(port))
    }

    /// Handles an event of the doorbell `port`.
    pub fn handle_doorbell(&mut self, port: LocalPort) {
        let index = self.queues.iter().position(|queue| queue.doorbell() == Some(port));
        if let Some(index) = index {
            self.available(index);
        }
    }

    /// The driver says that queue `index` has requests.
    pub fn available(&mut self, index: usize) {
        if self.is_running() && self.is_enabled(index) {
            self.scheduler.doorbell(index);
        }
    }

    /// Carries out a step of the scheduler.
    pub fn carry_out(
        &mut self,
        step: Step,
        events: &mut impl EventChannels,
        clock: &impl Clock,
    ) -> StepResult {
        match step {
            Step::HandleSources => self.work(&mut |device, queues| device.handle_sources(queues)),
            Step::Process(queues) => {
                // A device may have rescheduled a queue that was reset since, or was never enabled.
                let queues = queues.within(self.enabled());
                self.work(&mut |device, context| {
                    queues.iter().try_for_each(|index| device.process(index, context))
                })
            }
            Step::Poll { queues, polls } => {
                self.poll(queues, polls, clock);
                StepResult::default()
            }
            Step::Notify(queues) => self.notify_driver(queues, events, clock),
            Step::EnableDoorbells(queues) => self.enable_doorbells(queues),
            Step::Sleep => StepResult::default(),
        }
    }

    fn poll(&mut self, queues: QueueSet, polls: u32, clock: &impl Clock) {
        let mut polled = 0;
        let mut found = Found::default();
        // The peer may be a program that waits for this processor.
        let yields = self.device.work_source() == WorkSource::DriverAndPeer;
        while polled < polls && !found.is_any() {
            if yields && polled % POLLS_TO_YIELD == POLLS_TO_YIELD - 1 {
                std::thread::yield_now();
            } else if polled > 0 {
                std::hint::spin_loop();
            }
            polled += 1;
            let completions = self.is_running() && self.device.has_completions();
            found = Found { requests: self.with_requests(queues), completions };
        }
        self.scheduler.polled(polled, found, clock);
    }

    /// The subset of `queues` to whose rings the driver has added requests.
    fn with_requests(&mut self, queues: QueueSet) -> QueueSet {
        let mut found = QueueSet::default();
        for index in queues.iter() {
            let ring = self.queues.get_mut(index).and_then(Virtqueue::ring);
            // A ring that cannot be read counts as well: its processing reports the error.
            if ring.is_some_and(|ring| ring.has_requests().unwrap_or(true)) {
                found.insert(index);
            }
        }
        found
    }

    /// Notifies the driver of used buffers in these queues, unless it suppresses notifications.
    fn notify_driver(
        &mut self,
        queues: QueueSet,
        events: &mut impl EventChannels,
        clock: &impl Clock,
    ) -> StepResult {
        let mut result = StepResult::default();
        for index in queues.iter() {
            let Some(queue) = self.queues.get_mut(index) else { continue };
            let doorbell = queue.doorbell();
            let Some(mut ring) = queue.ring() else { continue };
            match (ring.needs_notification(), doorbell) {
                (Ok(true), Some(port)) => self.notify(index, port, events, clock),
                (Ok(true), None) => result.used.push(index as u32),
                (Ok(false), _) => {}
                (Err(error), _) => result.fault = Some(self.fail(Some(index), &error.into())),
            }
        }
        result
    }

    fn notify(
        &mut self,
        index: usize,
        port: LocalPort,
        events: &mut impl EventChannels,
        clock: &impl Clock,
    ) {
        DeviceStats::count(&self.stats.events_sent);
        let start = self.scheduler.measures_notification().then(|| clock.now());
        if let Err(error) = events.notify(port) {
            self.stats.log.line(
                Level::WARN,
                format_args!("cannot notify the driver of queue {index}: {}", Causes(&error)),
            );
        }
        if let Some(start) = start {
            self.scheduler.notified(clock.now().saturating_duration_since(start));
        }
    }

    /// Enables the doorbells of empty queues. If the driver added a request before that, the queue
    /// is processed again.
    fn enable_doorbells(&mut self, queues: QueueSet) -> StepResult {
        let mut result = StepResult::default();
        for index in queues.iter() {
            let Some(mut ring) = self.queues.get_mut(index).and_then(Virtqueue::ring) else {
                continue;
            };
            match ring.enable_notification() {
                Ok(true) => self.scheduler.make_ready(QueueSet::of(index)),
                Ok(false) => {}
                Err(error) => result.fault = Some(self.fail(Some(index), &error.into())),
            }
        }
        result
    }

    /// Runs `work` on the device and reports the batch to the scheduler.
    fn work(&mut self, work: Work<'_, P>) -> StepResult {
        let mut result = StepResult::default();
        if !self.is_running() {
            return result;
        }
        let mut rings = AllRings(&mut self.queues);
        let longest = self.device.longest_request();
        let mut queues =
            QueueContext::new(&mut rings, &mut self.memory, &mut self.request_pool, longest);
        let outcome = work(self.device.as_mut(), &mut queues);
        let latest = queues.latest();
        let batch = queues.finish();
        let when = if outcome.is_err() { NotifyWhen::Now } else { self.notify_when(&batch) };
        self.scheduler.completed(&batch, when, self.device.in_flight());
        if let Err(fault) = outcome {
            result.fault = Some(self.fail(latest, &fault));
        }
        result
    }

    fn notify_when(&self, batch: &BatchSummary) -> NotifyWhen {
        let can_delay = |index| self.device.can_delay_notification(index);
        if !batch.used.is_empty() && batch.used.iter().all(can_delay) {
            return NotifyWhen::Delayed;
        }
        match self.device.work_source() {
            WorkSource::Driver => NotifyWhen::Coalesced,
            WorkSource::DriverAndPeer | WorkSource::Both => NotifyWhen::Now,
        }
    }

    /// Stops all processing after a fault; returns its words. `queue` is the queue that was being
    /// processed.
    fn fail(&mut self, queue: Option<usize>, fault: &Fault) -> String {
        self.stop();
        match queue {
            Some(index) => format!("queue {index}: {}", Causes(fault)),
            None => Causes(fault).to_string(),
        }
    }
}
