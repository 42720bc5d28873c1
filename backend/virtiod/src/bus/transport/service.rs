//! Processes the queues: carries out the scheduler's steps.

use std::time::{Duration, Instant};

use protocol::message::Event;
use protocol::status::{DEVICE_NEEDS_RESET, DRIVER_OK};
use tracing::Level;

use super::Transport;
use crate::Causes;
use crate::bus::scheduler::clock::Clock;
use crate::bus::scheduler::{Found, NotifyWhen, Scheduler, Step};
use crate::bus::virtqueue::Virtqueue;
use crate::device::{
    BatchSummary, Fault, QueueContext, QueueSet, Ring, Rings, Source, VirtioDevice, WorkSource,
};
use crate::dma::{AccessPlatform, DmaMemory};
use crate::stats::DeviceStats;
use xen::{EventChannels, LocalPort};

/// Events to send to the driver on the message page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Queues without a doorbell that have new used buffers: EVENT_USED.
    pub used: Vec<u32>,
    /// The status or the configuration changed: EVENT_CONFIG.
    pub config: bool,
}

/// An invalid event from the driver.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Meaningless {
    /// The device does not have the queue.
    #[error("EVENT_AVAIL for queue {0}, which does not exist")]
    NoSuchQueue(u32),
    /// Only a device sends such an event.
    #[error("an event that only a device sends")]
    OfADevice,
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

impl<P: AccessPlatform> Transport<P> {
    /// The scheduler, which chooses the next step.
    pub fn scheduler(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    /// The longest time that the thread may sleep without an event; `None` for ever.
    pub fn longest_sleep(&self, clock: &impl Clock) -> Option<Duration> {
        let deadline = self.deadline().map(|at| at.saturating_duration_since(clock.now()));
        [deadline, self.scheduler.longest_sleep(clock)].into_iter().flatten().min()
    }

    /// Handles an event from the driver.
    ///
    /// # Errors
    /// [`Meaningless`]; the event had no effect.
    pub fn handle_event(&mut self, event: Event<'_>) -> Result<(), Meaningless> {
        match event {
            Event::Avail { index, .. } if index as usize >= self.queues.len() => {
                Err(Meaningless::NoSuchQueue(index))
            }
            Event::Avail { index, .. } => {
                self.available(index as usize);
                Ok(())
            }
            Event::Config { .. } | Event::Used { .. } => Err(Meaningless::OfADevice),
        }
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

    fn available(&mut self, index: usize) {
        if self.is_running() && self.is_enabled(index) {
            self.scheduler.doorbell(index);
        }
    }

    /// Carries out a step of the scheduler; returns the events to send.
    pub fn carry_out(
        &mut self,
        step: Step,
        events: &mut impl EventChannels,
        clock: &impl Clock,
    ) -> Effects {
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
                Effects::default()
            }
            Step::Notify(queues) => self.notify_driver(queues, events, clock),
            Step::EnableDoorbells(queues) => self.enable_doorbells(queues),
            Step::Sleep => Effects::default(),
        }
    }

    fn poll(&mut self, queues: QueueSet, polls: u32, clock: &impl Clock) {
        let mut polled = 0;
        let mut found = Found::default();
        while polled < polls && !found.is_any() {
            if polled > 0 {
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
    ) -> Effects {
        let mut effects = Effects::default();
        for index in queues.iter() {
            let Some(queue) = self.queues.get_mut(index) else { continue };
            let doorbell = queue.doorbell();
            let Some(mut ring) = queue.ring() else { continue };
            match (ring.needs_notification(), doorbell) {
                (Ok(true), Some(port)) => self.notify(index, port, events, clock),
                (Ok(true), None) => effects.used.push(index as u32),
                (Ok(false), _) => {}
                (Err(error), _) => {
                    self.fail(Some(index), &error.into());
                    effects.config = true;
                }
            }
        }
        effects
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
            self.warn(format_args!(
                "cannot notify the driver of queue {index}: {}",
                Causes(&error)
            ));
        }
        if let Some(start) = start {
            self.scheduler.notified(clock.now().saturating_duration_since(start));
        }
    }

    /// Enables the doorbells of empty queues. If the driver added a request before that, the queue
    /// is processed again.
    fn enable_doorbells(&mut self, queues: QueueSet) -> Effects {
        let mut effects = Effects::default();
        for index in queues.iter() {
            let Some(mut ring) = self.queues.get_mut(index).and_then(Virtqueue::ring) else {
                continue;
            };
            match ring.enable_notification() {
                Ok(true) => self.scheduler.make_ready(QueueSet::of(index)),
                Ok(false) => {}
                Err(error) => {
                    self.fail(Some(index), &error.into());
                    effects.config = true;
                }
            }
        }
        effects
    }

    /// The event sources of the device besides the driver, as long as the device handles them.
    pub fn sources(&self) -> Vec<Source<'_>> {
        if self.is_running() || self.is_draining { self.all_sources() } else { Vec::new() }
    }

    /// As [`Transport::sources`], in whatever state the device is.
    pub fn all_sources(&self) -> Vec<Source<'_>> {
        self.device.sources()
    }

    /// The time at which the device must run even if none of its sources is ready.
    pub fn deadline(&self) -> Option<Instant> {
        if self.is_running() || self.is_draining { self.device.deadline() } else { None }
    }

    /// Whether DRIVER_OK is set and DEVICE_NEEDS_RESET is not, and no reset is under way.
    pub(super) fn is_running(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & DEVICE_NEEDS_RESET == 0 && !self.is_draining
    }

    /// Runs `work` on the device and reports the batch to the scheduler.
    fn work(&mut self, work: Work<'_, P>) -> Effects {
        let mut effects = Effects::default();
        if !self.is_running() {
            return effects;
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
            self.fail(latest, &fault);
            effects.config = true;
        }
        effects.config |= self.take_config_change();
        effects
    }

    fn notify_when(&self, batch: &BatchSummary) -> NotifyWhen {
        let can_delay = |index| self.device.can_delay_notification(index);
        if !batch.used.is_empty() && batch.used.iter().all(can_delay) {
            return NotifyWhen::Delayed;
        }
        match self.device.work_source() {
            WorkSource::Driver => NotifyWhen::Coalesced,
            WorkSource::Both => NotifyWhen::Now,
        }
    }

    /// Sets DEVICE_NEEDS_RESET and logs the reason [6.5]: once, since nothing is processed from
    /// then on. `queue` is the queue that was being processed.
    pub(super) fn fail(&mut self, queue: Option<usize>, fault: &Fault) {
        let why = match queue {
            Some(index) => format!("queue {index}: {}", Causes(fault)),
            None => Causes(fault).to_string(),
        };
        self.stats.log.line(Level::WARN, format_args!("device needs reset: {why}"));
        self.status |= DEVICE_NEEDS_RESET;
        self.scheduler.stop();
        self.stats.update(|state| state.needs_reset = Some(why));
    }
}
