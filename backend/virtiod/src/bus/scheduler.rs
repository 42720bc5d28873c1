//! Which queue is processed next, when to poll, when to notify the driver, when to sleep.
//!
//! A pure state machine: it knows sets of queues and time, no ring, no event channel and no device.
//! The transport reports what happened ([`Scheduler::doorbell`], [`Scheduler::completed`],
//! [`Scheduler::polled`]) and carries out the [`Step`] that [`Scheduler::next`] names.
//!
//! An iteration of a device's thread takes these steps: notifications whose delay is over; the
//! device's own sources; queues, batch by batch, until none is left or the time is over; polls of
//! the empty rings; the notifications that were held back for more; doorbells enabled again; sleep.

mod brake;
mod busy_poll;
pub mod clock;
mod coalescing;
mod delayed;
mod poll_clock;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use self::brake::{Brake, IterationProgress};
use self::busy_poll::{Awaited, BusyPoll};
use self::clock::{Clock, TickDeadline};
use self::coalescing::Coalescing;
use self::delayed::Delayed;
use self::poll_clock::{MEASURED, PollClock};
use crate::config::PollTime;
use crate::device::{BATCH_BYTES, BatchSummary, QueueSet, WorkSource};

/// How long queues are processed before XenStore, the end of the daemon and the device's own
/// sources get their turn.
const QUEUE_BUDGET: Duration = Duration::from_millis(20);
/// Longest delay of a delayed notification while nothing else happens.
const DELAY: Duration = Duration::from_millis(1);

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the device handle its sources.
    HandleSources,
    /// Process a batch of each of these queues.
    Process(QueueSet),
    /// Poll the rings of these queues, and the device's completions, up to so many times, until
    /// something is found.
    Poll {
        /// The queues.
        queues: QueueSet,
        /// The number of polls, at least 1.
        polls: u32,
    },
    /// Notify the driver of used buffers in these queues, where it wants to be notified.
    Notify(QueueSet),
    /// Enable the doorbells of these queues.
    EnableDoorbells(QueueSet),
    /// The iteration is over.
    Sleep,
}

/// The reasons why a device's thread woke up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// Events are pending.
    pub events: bool,
    /// One of the device's own sources is ready.
    pub sources: bool,
    /// The device's own deadline has passed.
    pub deadline: bool,
}

/// The result of polling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Queues that have requests.
    pub requests: QueueSet,
    /// The device's storage completed requests.
    pub completions: bool,
}

impl Found {
    /// Whether anything was found.
    pub fn is_any(self) -> bool {
        self.completions || !self.requests.is_empty()
    }
}

/// Used buffers that the driver was not notified of yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PendingCompletions {
    requests: u32,
    /// Their lengths together.
    bytes: u64,
}

impl PendingCompletions {
    /// These and those of a batch.
    fn plus(self, batch: &BatchSummary) -> Self {
        Self { requests: self.requests + batch.count, bytes: self.bytes + batch.bytes }
    }
}

/// When the driver is notified of a batch's used buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyWhen {
    /// At once.
    Now,
    /// With those of further batches.
    Coalesced,
    /// With those of further batches, or when nothing else happens for a while.
    Delayed,
}

/// How far an iteration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Queues are processed while any has requests.
    Process,
    /// The empty rings are polled while notifications are held back; `window` is the whole time to
    /// poll.
    PollHolding { window: u32 },
    /// They are polled for the rest of the window. After `unprompted` polls, it was notified.
    PollOn { window: u32, polled: u32, unprompted: u32 },
    /// [`MEASURED`] more polls are measured.
    Measure { start: Instant },
    /// Nothing is processed any more.
    Finish,
}

/// The state of one device's queues between the driver's doorbells and the notifications to it, and
/// what was learnt of the driver.
#[derive(Debug)]
pub struct Scheduler {
    work_source: WorkSource,
    /// Queues to be processed.
    ready: QueueSet,
    /// Queues found empty whose doorbell is not enabled yet.
    empty: QueueSet,
    /// Queues whose doorbell was enabled and has not rung.
    armed: QueueSet,
    /// Queues with used buffers that the driver was not notified of.
    unnotified: QueueSet,
    pending: PendingCompletions,
    delayed: Delayed,
    /// The driver is notified of `unnotified` before anything else is done.
    notify_now: bool,
    sources: bool,
    phase: Phase,
    /// Queues were processed since the time was read last.
    processed: bool,
    end: TickDeadline,
    coalescing: Coalescing,
    busy_poll: BusyPoll,
    poll_clock: PollClock,
    /// When the rings were last found empty, for the doorbell that comes next.
    empty_since: Option<Instant>,
    /// The time from there to a doorbell of which it is not known yet whether it brought a request.
    doorbell_after: Option<Duration>,
    /// The time for which the rings were polled before that.
    polled_in_vain: Duration,
    /// The time of these polls, and from there to a source of which it is not known yet whether it
    /// brought completions.
    source_after: Option<(Duration, Duration)>,
    /// Requests that the storage works on.
    in_flight: u32,
    awaited: Awaited,
    /// What was awaited when the thread slept last.
    slept_for: Awaited,
    /// The thread has slept until storage completed requests: the driver may wait for them with
    /// nothing else to do.
    driver_waits: bool,
    /// In this iteration, requests were taken or given back.
    worked: bool,
    /// In this iteration, a source was ready or a message was answered.
    attended: bool,
    /// In this iteration, the driver sent events.
    events: bool,
    brake: Brake,
}

impl Scheduler {
    /// For a device that was just reset. `poll`: how long an empty ring may be polled.
    pub fn new(work_source: WorkSource, poll: PollTime) -> Self {
        Self {
            work_source,
            ready: QueueSet::default(),
            empty: QueueSet::default(),
            armed: QueueSet::default(),
            unnotified: QueueSet::default(),
            pending: PendingCompletions::default(),
            delayed: Delayed::default(),
            notify_now: false,
            sources: false,
            phase: Phase::Finish,
            processed: false,
            end: TickDeadline::default(),
            coalescing: Coalescing::default(),
            busy_poll: BusyPoll::new(poll),
            poll_clock: PollClock::default(),
            empty_since: None,
            doorbell_after: None,
            polled_in_vain: Duration::ZERO,
            source_after: None,
            in_flight: 0,
            awaited: Awaited::Request,
            slept_for: Awaited::Request,
            driver_waits: false,
            worked: false,
            attended: false,
            events: false,
            brake: Brake::default(),
        }
    }

    /// The thread woke up.
    pub fn begin_iteration(&mut self, woken: Woken, clock: &impl Clock) {
        let idle = !woken.events && !woken.sources;
        self.unnotified.extend(self.delayed.iterate(idle));
        self.notify_now = true;
        self.sources = woken.sources || woken.deadline;
        self.driver_waits = woken.sources && self.in_flight > 0;
        self.slept_for = self.awaited;
        let slept = self.slept(self.driver_waits || woken.sources && self.has_peer(), clock);
        self.source_after = slept.map(|slept| (self.polled_in_vain, slept));
        (self.worked, self.attended, self.events) = (false, woken.sources, false);
        (self.phase, self.processed) = (Phase::Process, false);
        self.end = TickDeadline::within(QUEUE_BUDGET, clock);
    }

    /// The driver sent events; `doorbells`: some of them doorbells.
    pub fn woken_by_events(&mut self, doorbells: bool, clock: &impl Clock) {
        self.events = true;
        self.doorbell_after = self.slept(doorbells, clock);
    }

    /// The time since the rings were last found empty, if `woken` ended it.
    fn slept(&mut self, woken: bool, clock: &impl Clock) -> Option<Duration> {
        let since = self.empty_since.take_if(|_| woken)?;
        Some(clock.now().saturating_duration_since(since))
    }

    /// A message of the driver's was answered.
    pub fn answered(&mut self) {
        self.attended = true;
    }

    /// These queues may hold requests that no doorbell told of.
    pub fn make_ready(&mut self, queues: QueueSet) {
        self.ready.extend(queues);
        self.empty = self.empty.without(queues);
        self.armed = self.armed.without(queues);
    }

    /// The doorbell of a queue rang. A notification that was delayed is due before more buffers are
    /// used: till then the driver may have found the used ones by itself.
    pub fn doorbell(&mut self, queue: usize) {
        if self.delayed.remove(queue) {
            self.unnotified.insert(queue);
            self.notify_now = true;
        }
        self.make_ready(QueueSet::of(queue));
    }

    /// The device worked on its queues, which came to `batch`; now the storage works on
    /// `in_flight` requests.
    pub fn completed(&mut self, batch: &BatchSummary, when: NotifyWhen, in_flight: u32) {
        let taken = in_flight.saturating_add(batch.count) > self.in_flight;
        // Nothing of the driver's is left that could complete.
        let was_last = self.in_flight > 0 && in_flight == 0 && batch.count > 0;
        self.in_flight = in_flight;
        self.worked |= taken || batch.count > 0 || !batch.rescheduled.is_empty();
        if batch.count > 0 {
            self.awaited = match when {
                // Nobody waits for these but the peer.
                NotifyWhen::Delayed if self.has_peer() => Awaited::Completion,
                _ => Awaited::Request,
            };
            self.judge_source();
        } else if taken && self.unnotified.is_empty() {
            self.awaited = Awaited::Completion;
        }
        self.make_ready(batch.rescheduled);
        self.empty.extend(batch.empty.without(self.ready));
        if when == NotifyWhen::Delayed && self.delayed.add(batch) {
            return;
        }
        self.unnotified.extend(batch.used);
        self.pending = self.pending.plus(batch);
        let is_awaited = batch.count > 0 && std::mem::take(&mut self.driver_waits);
        self.notify_now |= is_awaited || was_last || when != NotifyWhen::Coalesced;
    }

    /// The rings and the completions were polled `polls` times, and this was found.
    pub fn polled(&mut self, polls: u32, found: Found, clock: &impl Clock) {
        self.make_ready(found.requests);
        self.sources |= found.completions;
        self.phase = match self.phase {
            Phase::PollHolding { .. } if found.is_any() => self.found_after(polls, 0, found),
            Phase::PollHolding { window } => self.end_hold(window, polls),
            Phase::PollOn { polled, unprompted, .. } if found.is_any() => {
                self.found_after(polled.saturating_add(polls), unprompted, found)
            }
            Phase::PollOn { window, polled, unprompted } => {
                Phase::PollOn { window, polled: polled.saturating_add(polls), unprompted }
            }
            Phase::Measure { .. } if found.is_any() => Phase::Process,
            Phase::Measure { start } => {
                self.poll_clock.measured(clock.now().saturating_duration_since(start));
                self.fall_asleep(clock);
                Phase::Finish
            }
            Phase::Process | Phase::Finish => self.phase,
        };
    }

    /// The last of so many polls found something. The driver's pace is the time from its last
    /// notification to a request: it could not know of the completions that were held back before.
    /// A completion is the storage's pace.
    fn found_after(&mut self, polls: u32, unprompted: u32, found: Found) -> Phase {
        let vain = polls.saturating_sub(1);
        if !found.requests.is_empty() {
            self.coalescing.found(self.poll_clock.time_of(vain.saturating_sub(unprompted)));
        }
        let after = self.poll_clock.time_of(vain);
        self.busy_poll.polled(after);
        let found = if found.completions { Awaited::Completion } else { Awaited::Request };
        self.busy_poll.found(self.habit_of(found, self.awaited), after);
        Phase::Process
    }

    /// Whether the device is between the driver and a peer: either may be the next to act.
    fn has_peer(&self) -> bool {
        self.work_source == WorkSource::DriverAndPeer
    }

    /// Whose habit is to be learnt from what happened while something was awaited. Where there is
    /// a peer, what happens next depends on who acted last: habits are those of the time after the
    /// driver's packets, and of the time after the peer's.
    fn habit_of(&self, happened: Awaited, awaited: Awaited) -> Awaited {
        if self.has_peer() { awaited } else { happened }
    }

    /// Nothing came while notifications were held back.
    fn end_hold(&mut self, window: u32, polled: u32) -> Phase {
        if self.pending.requests == 0 {
            return Phase::PollOn { window, polled, unprompted: 0 };
        }
        if window > 0 {
            self.coalescing.failed(self.pending.requests);
        }
        self.notify_now = true;
        Phase::PollOn { window, polled, unprompted: polled }
    }

    /// Nothing came in the whole window. Called when the driver has been notified of all used
    /// buffers: the time of a notification is neither a poll's nor the driver's.
    fn end_window(&mut self, window: u32, clock: &impl Clock) -> Option<Step> {
        let has_window = !self.window().is_zero();
        self.polled_in_vain = self.poll_clock.time_of(window);
        self.busy_poll.polled(self.polled_in_vain);
        if has_window && self.poll_clock.is_due() {
            self.phase = Phase::Measure { start: clock.now() };
            return Some(Step::Poll { queues: self.polled_queues(), polls: MEASURED });
        }
        self.fall_asleep(clock);
        None
    }

    fn fall_asleep(&mut self, clock: &impl Clock) {
        if self.polls() {
            self.empty_since = Some(clock.now());
        }
    }

    fn polls(&self) -> bool {
        self.work_source != WorkSource::Both && self.busy_poll.is_enabled()
    }

    /// Whether the cost of the next notification is to be measured.
    pub fn measures_notification(&mut self) -> bool {
        self.busy_poll.is_due()
    }

    /// A notification took `time`.
    pub fn notified(&mut self, time: Duration) {
        self.busy_poll.notified(time);
    }

    /// The next step.
    pub fn next(&mut self, clock: &impl Clock) -> Step {
        if std::mem::take(&mut self.notify_now) && !self.unnotified.is_empty() {
            return self.notify();
        }
        if std::mem::take(&mut self.sources) {
            // As for queues: completions that are found again and again end with the budget.
            self.processed = true;
            return Step::HandleSources;
        }
        if self.phase != Phase::Finish {
            if let Some(step) = self.next_work(clock) {
                return step;
            }
            self.phase = Phase::Finish;
        }
        if !self.unnotified.is_empty() {
            return self.notify();
        }
        // Also while another queue is ready: it may stay so for ever.
        if !self.empty.is_empty() {
            self.armed.extend(self.empty);
            return Step::EnableDoorbells(self.empty.take());
        }
        self.judge_doorbell();
        Step::Sleep
    }

    /// The next step before the iteration finishes.
    fn next_work(&mut self, clock: &impl Clock) -> Option<Step> {
        if self.is_notification_due() {
            return Some(self.notify());
        }
        if std::mem::take(&mut self.processed) && self.end.has_passed(clock) {
            return None;
        }
        if !self.ready.is_empty() {
            self.phase = Phase::Process;
            // Whatever the device does: steps that repeat themselves end with the budget.
            self.processed = true;
            return Some(Step::Process(self.ready.take()));
        }
        self.judge_doorbell();
        // A driver whose requests completed adds others, also to queues with enabled doorbells.
        let polls = !self.empty.is_empty() || self.worked && !self.polled_queues().is_empty();
        if polls { self.poll(clock) } else { None }
    }

    fn is_notification_due(&mut self) -> bool {
        let many = self.pending.requests > 0 && self.coalescing.is_due(self.pending.requests);
        if many {
            self.coalescing.succeeded();
        }
        many || self.pending.bytes >= BATCH_BYTES
    }

    fn notify(&mut self) -> Step {
        self.pending = PendingCompletions::default();
        self.delayed.driver_looks();
        Step::Notify(self.unnotified.take())
    }

    fn poll(&mut self, clock: &impl Clock) -> Option<Step> {
        let polls = match self.phase {
            Phase::PollOn { window, polled, .. } if polled > window => {
                return self.end_window(window, clock);
            }
            Phase::PollOn { window, polled, .. } => window.saturating_add(1).saturating_sub(polled),
            Phase::Process | Phase::PollHolding { .. } | Phase::Measure { .. } | Phase::Finish => {
                let window = self.poll_clock.polls_within(self.window());
                let hold = self.poll_clock.polls_within(self.coalescing.hold_time()).min(window);
                self.phase = Phase::PollHolding { window };
                hold.saturating_add(1)
            }
        };
        Some(Step::Poll { queues: self.polled_queues(), polls })
    }

    /// How long to poll. While the driver waits for the storage, more requests come at its own
    /// pace or not at all.
    fn window(&self) -> Duration {
        let requests = self.busy_poll.window(Awaited::Request);
        match self.awaited {
            _ if !self.polls() => Duration::ZERO,
            awaited if self.has_peer() => self.busy_poll.window(awaited),
            Awaited::Request => requests,
            Awaited::Completion => {
                let completions = self.busy_poll.window(Awaited::Completion);
                completions.max(requests.min(self.coalescing.hold_time()))
            }
        }
    }

    /// The queues to poll: nobody waits for doorbells meanwhile, so those with enabled ones too.
    fn polled_queues(&self) -> QueueSet {
        let mut queues = self.empty;
        if self.work_source != WorkSource::Both {
            queues.extend(self.armed);
        }
        queues
    }

    /// Learns from a doorbell whether polling for what follows it is worth its time.
    fn judge_doorbell(&mut self) {
        if let Some(after) = self.doorbell_after.take() {
            match self.worked {
                true => {
                    let habit = self.habit_of(Awaited::Request, self.slept_for);
                    self.busy_poll.woken(habit, self.polled_in_vain, after);
                }
                false => self.busy_poll.empty_doorbell(),
            }
        }
    }

    /// Learns from completions whether polling for them is worth its time.
    fn judge_source(&mut self) {
        if let Some((polled, after)) = self.source_after.take() {
            let habit = self.habit_of(Awaited::Completion, self.slept_for);
            self.busy_poll.woken(habit, polled, after);
        }
    }

    /// The iteration is over: whether ports whose events were dealt with may be unmasked. If not,
    /// the thread wakes up for it later.
    pub fn may_unmask(&mut self, clock: &impl Clock) -> bool {
        let progress = match (self.worked || self.attended, self.events) {
            (true, _) => IterationProgress::Some,
            (false, true) => IterationProgress::InVain,
            (false, false) => IterationProgress::None,
        };
        self.brake.may_unmask(progress, clock)
    }

    /// How long the thread may sleep unless something happens; `None` for ever.
    pub fn longest_sleep(&self, clock: &impl Clock) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let delayed = (!self.delayed.is_empty()).then_some(DELAY);
        [delayed, self.brake.until_unmask(clock)].into_iter().flatten().min()
    }

    /// Forgets a queue that was reset.
    pub fn remove(&mut self, queue: usize) {
        let all = [&mut self.ready, &mut self.empty, &mut self.armed, &mut self.unnotified];
        for queues in all {
            queues.remove(queue);
        }
        self.delayed.remove(queue);
    }

    /// The device needs a reset: no queue is processed any more. The driver is still notified of
    /// buffers used before.
    pub fn stop(&mut self) {
        (self.ready, self.empty) = (QueueSet::default(), QueueSet::default());
        (self.armed, self.in_flight) = (QueueSet::default(), 0);
    }

    /// Forgets all queues of a device that was reset, but not the habits of its driver.
    pub fn reset(&mut self) {
        self.stop();
        self.unnotified.take();
        self.delayed.take();
        self.pending = PendingCompletions::default();
    }
}
