//! Serving the queues: who is served when, and what the driver is told of it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use protocol::message::Event;
use protocol::status::{DEVICE_NEEDS_RESET, DRIVER_OK};
use tracing::Level;
use virtio_queue::{Queue, QueueT};

use super::Transport;
use crate::bus::virtqueue::Virtqueue;
use crate::device::{BatchSummary, Fault, QueueContext, Rings, Source, VirtioDevice};
use crate::dma::{AccessPlatform, DmaMemory};
use crate::stats::DeviceStats;
use xen::{EventChannels, LocalPort};

/// What to tell the driver, in band, after queues were served.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// QueueContext without a doorbell in which buffers were used.
    pub used: Vec<u32>,
    /// The status or the configuration changed: EVENT_CONFIG.
    pub announce: bool,
}

impl Effects {
    /// Adds what came of something else.
    fn add(&mut self, other: Self) {
        self.used.extend(other.used);
        self.announce |= other.announce;
    }
}

/// An event of the driver's that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Meaningless {
    /// The device has fewer queues.
    #[error("EVENT_AVAIL of queue {0}, which is not there")]
    NoSuchQueue(u32),
    /// A device's, not a driver's.
    #[error("an event that only a device sends")]
    OfADevice,
}

/// Requests that the driver was not told of yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCompletions {
    /// How many.
    pub requests: u32,
    /// Their lengths together.
    pub bytes: u64,
}

/// Signals between two of which the time is taken: to ask for it may cost as much.
const UNTIMED: u32 = 32;

/// What signals take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Signals {
    untimed: u32,
    took: Option<Duration>,
}

impl Signals {
    /// Sends a signal, and takes the time now and then.
    fn send<R>(&mut self, signal: impl FnOnce() -> R) -> R {
        if self.untimed > 0 {
            self.untimed -= 1;
            return signal();
        }
        let start = Instant::now();
        let sent = signal();
        (self.took, self.untimed) = (Some(start.elapsed()), UNTIMED);
        sent
    }
}

impl Rings for [Virtqueue] {
    fn ring(&mut self, index: usize) -> Option<&mut Queue> {
        self.get_mut(index)?.ring()
    }
}

/// As a sized value behind `dyn Rings`.
struct All<'a>(&'a mut [Virtqueue]);

impl Rings for All<'_> {
    fn ring(&mut self, index: usize) -> Option<&mut Queue> {
        self.0.ring(index)
    }
}

type Work<'a, P> = &'a mut dyn FnMut(
    &mut dyn VirtioDevice<DmaMemory<P>>,
    &mut QueueContext<'_, DmaMemory<P>>,
) -> Result<(), Fault>;

impl<P: AccessPlatform> Transport<P> {
    /// Serves what an event of the driver's asks for.
    ///
    /// # Errors
    /// [`Meaningless`]; nothing was done.
    pub fn hear(
        &mut self,
        event: Event<'_>,
        events: &mut impl EventChannels,
    ) -> Result<Effects, Meaningless> {
        match event {
            Event::Avail { index, .. } if index as usize >= self.queues.len() => {
                Err(Meaningless::NoSuchQueue(index))
            }
            Event::Avail { index, .. } => Ok(self.serve(index as usize, events)),
            Event::Config { .. } | Event::Used { .. } => Err(Meaningless::OfADevice),
        }
    }

    /// Whether a queue has this doorbell.
    pub fn has_doorbell(&self, port: LocalPort) -> bool {
        self.queues.iter().any(|queue| queue.doorbell() == Some(port))
    }

    /// Serves the queue whose doorbell rang.
    pub fn ring(&mut self, port: LocalPort, events: &mut impl EventChannels) -> Effects {
        let index = self.queues.iter().position(|queue| queue.doorbell() == Some(port));
        let Some(index) = index else { return Effects::default() };
        // Before more is given back: then the driver may have found by itself what it was not told of.
        if self.deferred.remove(index) {
            self.unannounced.insert(index);
            let mut served = self.announce(events);
            served.add(self.serve(index, events));
            return served;
        }
        self.serve(index, events)
    }

    /// Whether a queue wants another turn.
    pub fn is_waiting(&self) -> bool {
        self.is_running() && !self.waiting.is_empty()
    }

    /// Gives every queue that wants it another turn.
    pub fn serve_waiting(&mut self, events: &mut impl EventChannels) -> Effects {
        // A device may ask for a queue that was reset since, or was never enabled.
        let waiting = self.waiting.take().within(self.enabled());
        self.work(events, &mut |device, queues| {
            waiting.iter().try_for_each(|index| device.serve(index, queues))
        })
    }

    /// Whether the driver has put something into a queue in which nothing was left. That queue then wants
    /// another turn.
    pub fn look(&mut self) -> bool {
        for index in self.empty.iter() {
            let ring = self.queues.get_mut(index).and_then(Virtqueue::ring);
            // What is wrong with a ring is found when it is served.
            let news = ring.is_some_and(|ring| {
                let available = ring.avail_idx(&self.memory, Ordering::Acquire);
                available.map_or(true, |available| available.0 != ring.next_avail())
            });
            if news {
                self.empty.remove(index);
                self.waiting.insert(index);
            }
        }
        self.is_waiting()
    }

    /// Whether there are queues in which nothing was left, and whose doorbells are not asked for yet.
    pub fn has_empty(&self) -> bool {
        self.is_running() && !self.empty.is_empty()
    }

    /// Whether requests were taken or given back since [`Transport::take_progress`].
    pub fn has_progressed(&self) -> bool {
        self.progressed
    }

    /// As [`Transport::has_progressed`], and begins anew.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// What a signal took, if that is known anew.
    pub fn take_signal_time(&mut self) -> Option<Duration> {
        self.signals.took.take()
    }

    /// Requests that were given back and of which the driver was not told yet.
    pub fn held(&self) -> PendingCompletions {
        self.held
    }

    /// Tells the driver of what was given back, where it wants to hear of it.
    pub fn announce(&mut self, events: &mut impl EventChannels) -> Effects {
        let mut served = Effects::default();
        self.held = PendingCompletions::default();
        for index in self.unannounced.take().iter() {
            let Some(ring) = self.queues.get_mut(index).and_then(Virtqueue::ring) else {
                continue;
            };
            match ring.needs_notification(&self.memory) {
                Ok(true) => self.tell_used(index, events, &mut served),
                Ok(false) => {}
                Err(error) => {
                    self.fail(Some(index), &error.into());
                    served.announce = true;
                }
            }
        }
        served
    }

    /// Whether there is something that the driver is told of later.
    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// A turn begins, in which nothing happened if it is `idle`. Tells the driver of what was put off long enough.
    pub fn begin_turn(&mut self, idle: bool, events: &mut impl EventChannels) -> Effects {
        self.unannounced.extend(self.deferred.pass(idle));
        self.announce(events)
    }

    /// Whether the thread may look for the driver's next request, and nothing else, for a while.
    pub fn serves_driver_alone(&self) -> bool {
        self.device.serves_driver_alone()
    }

    /// Asks for the doorbells of the queues in which nothing is left. What came before that was asked
    /// wants another turn.
    pub fn settle(&mut self) -> Effects {
        let mut served = Effects::default();
        for index in self.empty.take().iter() {
            let Some(ring) = self.queues.get_mut(index).and_then(Virtqueue::ring) else {
                continue;
            };
            match ring.enable_notification(&self.memory) {
                Ok(true) => self.waiting.insert(index),
                Ok(false) => {}
                Err(error) => {
                    self.fail(Some(index), &error.into());
                    served.announce = true;
                }
            }
        }
        served
    }

    /// What the device waits for besides the driver.
    pub fn sources(&self) -> Vec<Source<'_>> {
        if self.is_running() { self.device.sources() } else { Vec::new() }
    }

    /// When the device is to be woken though no source of its is ready.
    pub fn deadline(&self) -> Option<Instant> {
        if self.is_running() { self.device.deadline() } else { None }
    }

    /// Has the device look at its sources.
    pub fn wake(&mut self, events: &mut impl EventChannels) -> Effects {
        self.work(events, &mut |device, queues| device.wake(queues))
    }

    fn serve(&mut self, index: usize, events: &mut impl EventChannels) -> Effects {
        if !self.is_enabled(index) {
            return Effects::default();
        }
        self.work(events, &mut |device, queues| device.serve(index, queues))
    }

    /// Whether the driver is ready and the device well.
    fn is_running(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & DEVICE_NEEDS_RESET == 0
    }

    /// Has the device do some work, and tells the driver what came of it.
    fn work(&mut self, events: &mut impl EventChannels, work: Work<'_, P>) -> Effects {
        let mut served = Effects::default();
        if !self.is_running() {
            return served;
        }
        let mut rings = All(&mut self.queues);
        let longest = self.device.longest_request();
        let mut queues = QueueContext::new(&mut rings, &mut self.memory, &mut self.spare, longest);
        let outcome = work(self.device.as_mut(), &mut queues);
        let latest = queues.latest();
        let touched = queues.finish();
        self.progressed |= touched.count > 0 || !touched.again.is_empty();
        self.waiting.extend(touched.again);
        self.empty = self.empty.without(touched.again);
        self.empty.extend(touched.empty.without(touched.again));
        self.note_used(&touched);
        if outcome.is_err() || !self.device.serves_driver_alone() {
            served = self.announce(events);
        }
        if let Err(fault) = outcome {
            self.fail(latest, &fault);
            served.announce = true;
        }
        served.announce |= self.take_config_change();
        served
    }

    /// Notes what is to be announced, now or later.
    fn note_used(&mut self, touched: &BatchSummary) {
        let patient = !touched.used.is_empty()
            && touched.used.iter().all(|index| self.device.can_tell_later(index));
        if patient && self.deferred.add(touched) {
            return;
        }
        self.unannounced.extend(touched.used);
        self.held.requests += touched.count;
        self.held.bytes += touched.bytes;
    }

    /// Tells the driver of used buffers: by the doorbell, or later in band.
    fn tell_used(&mut self, index: usize, events: &mut impl EventChannels, served: &mut Effects) {
        let Some(port) = self.queues.get(index).and_then(Virtqueue::doorbell) else {
            served.used.push(index as u32);
            return;
        };
        DeviceStats::count(&self.stats.events_sent);
        if let Err(error) = self.signals.send(|| events.notify(port)) {
            self.warn(format_args!("cannot ring the doorbell of queue {index}: {error}"));
        }
    }

    /// Sets DEVICE_NEEDS_RESET and says why [6.5]: once, since nothing is served from then on. `queue`:
    /// the one that was being served.
    pub(super) fn fail(&mut self, queue: Option<usize>, fault: &Fault) {
        let why = match queue {
            Some(index) => format!("queue {index}: {fault}"),
            None => fault.to_string(),
        };
        self.stats.log.line(Level::WARN, format_args!("device needs reset: {why}"));
        self.status |= DEVICE_NEEDS_RESET;
        self.stats.update(|state| state.needs_reset = Some(why));
    }
}
