//! Processes the queues of the first group, and takes what the threads of the others tell.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use protocol::message::Event;
use protocol::status::{DEVICE_NEEDS_RESET, DRIVER_OK};
use tracing::Level;

use super::Transport;
use crate::Causes;
use crate::bus::queue_group::{QueueGroup, StepResult};
use crate::bus::scheduler::clock::Clock;
use crate::bus::scheduler::{Scheduler, Step};
use crate::device::{AwaitedFd, Fault, Source};
use crate::dma::AccessPlatform;
use xen::{EventChannels, EventError};

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

impl<P: AccessPlatform, E: EventChannels> Transport<P, E> {
    /// The group of the queues that the device's own thread processes.
    pub fn first_group(&mut self) -> &mut QueueGroup<P> {
        &mut self.groups.first
    }

    /// The scheduler of the first group, which chooses its next step.
    pub fn scheduler(&mut self) -> &mut Scheduler {
        &mut self.groups.first.scheduler
    }

    /// The longest time that the thread may sleep without an event; `None` for ever.
    pub fn longest_sleep(&self, clock: &impl Clock) -> Option<Duration> {
        let deadline = self.deadline().map(|at| at.saturating_duration_since(clock.now()));
        [deadline, self.groups.first.scheduler.longest_sleep(clock)].into_iter().flatten().min()
    }

    /// Handles an event from the driver, as [`Transport::answer`] a request.
    ///
    /// # Errors
    /// [`Meaningless`]; the event had no effect.
    pub fn handle_event(&mut self, event: Event<'_>) -> Result<(), Meaningless> {
        match event {
            Event::Avail { index, .. } => {
                let group = self.groups.of_queue(index as usize);
                group.ok_or(Meaningless::NoSuchQueue(index))?.available(index as usize);
                Ok(())
            }
            Event::Config { .. } | Event::Used { .. } => Err(Meaningless::OfADevice),
        }
    }

    /// Carries out a step of the first group's scheduler; returns the events to send.
    pub fn carry_out(&mut self, step: Step, events: &mut E, clock: &impl Clock) -> Effects {
        let result = self.groups.first.carry_out(step, events, clock);
        self.note(result)
    }

    /// The event for a change of the configuration since the last call. Whatever the device does
    /// may find one. A driver that is not ready reads all of it.
    pub fn take_config_event(&mut self) -> Effects {
        let is_ready = self.status & DRIVER_OK != 0 && !self.is_draining;
        let config = is_ready && self.take_config_change();
        Effects { config, used: Vec::new() }
    }

    /// Takes what the threads of other groups have told; returns the events to send.
    ///
    /// # Errors
    /// [`EventError`]: the event channels of a group fail.
    pub fn take_news(&mut self) -> Result<Effects, EventError> {
        let mut effects = Effects::default();
        for news in self.groups.take_news() {
            news.error.map_or(Ok(()), Err)?;
            self.note_all(news.results, &mut effects);
        }
        Ok(effects)
    }

    /// Notes the results of groups' steps; adds the events to send.
    fn note_all(&mut self, results: Vec<StepResult>, effects: &mut Effects) {
        for result in results {
            let Effects { used, config } = self.note(result);
            effects.used.extend(used);
            effects.config |= config;
        }
    }

    /// Notes the result of a group's step.
    fn note(&mut self, StepResult { used, fault }: StepResult) -> Effects {
        let config = fault.is_some();
        fault.into_iter().for_each(|why| self.set_needs_reset(why));
        Effects { used, config }
    }

    /// Handles the sources that no group's scheduler handles, and lets groups go on that could not;
    /// returns the events to send.
    pub fn handle_sources(&mut self, events: &mut E, clock: &impl Clock) -> Effects {
        let mut effects = Effects::default();
        let results = self.groups.handle_sources(events, clock);
        self.note_all(results, &mut effects);
        self.resume();
        effects
    }

    /// The event sources of the device besides the driver, as long as the device handles them.
    pub fn sources(&self) -> Vec<Source<'_>> {
        self.groups.sources()
    }

    /// Waits until one of `fds` is ready, for at most `limit`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        self.groups.first.wait(fds, limit)
    }

    /// Forgets what was learnt of descriptors to wait for: some may be other files now.
    pub fn forget_descriptors(&mut self) {
        self.groups.first.device.forget_descriptors();
    }

    /// Readable when [`Transport::take_news`] has news; `None` if there is one group.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.groups.signal()
    }

    /// The time at which the device must run even if none of its sources is ready.
    pub fn deadline(&self) -> Option<Instant> {
        self.groups.deadline()
    }

    /// Whether DRIVER_OK is set and DEVICE_NEEDS_RESET is not, and no reset is under way.
    pub(super) fn is_running(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & DEVICE_NEEDS_RESET == 0 && !self.is_draining
    }

    /// Has the device need a reset after a fault that belongs to no queue.
    pub(super) fn fail(&mut self, fault: &Fault) {
        self.set_needs_reset(Causes(fault).to_string());
    }

    /// Sets DEVICE_NEEDS_RESET and logs the reason [6.5]: once, since nothing is processed from
    /// then on.
    pub(super) fn set_needs_reset(&mut self, why: String) {
        self.groups.stop();
        if self.status & DEVICE_NEEDS_RESET != 0 {
            return;
        }
        self.stats.log.line(Level::WARN, format_args!("device needs reset: {why}"));
        self.status |= DEVICE_NEEDS_RESET;
        self.stats.update(|state| state.needs_reset = Some(why));
    }
}
