//! The scheduler with a clock that a test sets, and a driver that is played.

mod peer;
mod storage;

use super::clock::fake::FakeClock;
use super::*;

const POLL: PollTime = PollTime::Fixed(Duration::from_micros(100));

struct Setting {
    scheduler: Scheduler,
    clock: FakeClock,
    /// The time for which something else runs while polls are measured next.
    lost: Duration,
}

impl Setting {
    fn new(work_source: WorkSource, poll: PollTime) -> Self {
        let mut setting = Self::unmeasured(work_source, poll);
        setting.scheduler.poll_clock.measured(Duration::from_micros(1) * MEASURED);
        setting
    }

    /// As [`Setting::new`], before polls are measured.
    fn unmeasured(work_source: WorkSource, poll: PollTime) -> Self {
        let scheduler = Scheduler::new(work_source, poll);
        Self { scheduler, clock: FakeClock::default(), lost: Duration::ZERO }
    }

    fn begin(&mut self, woken: Woken) {
        self.scheduler.begin_iteration(woken, &self.clock);
    }

    /// An iteration begins with doorbells of these queues.
    fn ring(&mut self, queues: &[usize]) {
        self.begin(Woken { events: true, ..Woken::default() });
        queues.iter().for_each(|queue| self.scheduler.doorbell(*queue));
        self.scheduler.woken_by_events(true, &self.clock);
    }

    fn next(&mut self) -> Step {
        self.scheduler.next(&self.clock)
    }

    fn complete(&mut self, batch: BatchSummary) {
        self.scheduler.completed(&batch, NotifyWhen::Coalesced, 0);
    }

    fn poll_in_vain(&mut self, polls: u32) {
        self.clock.pass(Duration::from_micros(polls.into()));
        if matches!(self.scheduler.phase, Phase::Measure { .. }) {
            self.clock.pass(std::mem::take(&mut self.lost));
        }
        self.scheduler.polled(polls, Found::default(), &self.clock);
    }

    /// Steps until the thread sleeps, in which every ring stays empty.
    fn run_to_sleep(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        loop {
            let step = self.next();
            steps.push(step);
            match step {
                Step::Poll { polls, .. } => self.poll_in_vain(polls),
                Step::Process(queues) => self.complete(emptied(queues)),
                Step::Sleep => return steps,
                // A hypercall, which takes its time.
                Step::Notify(_) => self.clock.pass(Duration::from_micros(300)),
                Step::HandleSources | Step::EnableDoorbells(_) => {}
            }
            assert!(steps.len() < 20, "{steps:?}");
        }
    }

    /// Doorbells that come soon and bring a request each, until the window is open.
    fn learn_to_poll(&mut self) {
        for _ in 0..8 {
            self.ring(&[0]);
            assert_eq!(self.next(), Step::Process(QueueSet::of(0)));
            self.complete(used(0, 1, 512));
            self.run_to_sleep();
            assert!(self.scheduler.may_unmask(&self.clock));
            self.clock.pass(Duration::from_micros(60));
        }
        self.earn();
    }

    /// Requests that are found at once: they earn the whole limit, and more are expected soon.
    fn earn(&mut self) {
        let at_once = Duration::ZERO;
        (0..8).for_each(|_| self.scheduler.busy_poll.found(Awaited::Request, at_once));
    }
}

/// A batch with `count` used buffers, after which the queue is processed again.
fn used(queue: usize, count: u32, bytes: u64) -> BatchSummary {
    let queue = QueueSet::of(queue);
    BatchSummary { used: queue, count, bytes, rescheduled: queue, empty: QueueSet::default() }
}

/// Requests that polling found.
fn requests(queues: QueueSet) -> Found {
    Found { requests: queues, completions: false }
}

/// Queues in which nothing was found.
fn emptied(queues: QueueSet) -> BatchSummary {
    BatchSummary { empty: queues, ..BatchSummary::default() }
}

#[test]
fn a_queue_is_processed_until_it_is_empty_and_its_doorbell_enabled_last() {
    let mut setting = Setting::new(WorkSource::Both, POLL);
    setting.ring(&[1]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
    setting.scheduler.completed(&used(1, 3, 100), NotifyWhen::Now, 0);
    assert_eq!(setting.next(), Step::Notify(QueueSet::of(1)));
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
    setting.complete(emptied(QueueSet::of(1)));
    // One poll, since a request may have come meanwhile.
    assert_eq!(setting.next(), Step::Poll { queues: QueueSet::of(1), polls: 1 });
    setting.poll_in_vain(1);
    assert_eq!(setting.next(), Step::EnableDoorbells(QueueSet::of(1)));
    assert_eq!(setting.next(), Step::Sleep);
    assert_eq!(setting.scheduler.longest_sleep(&setting.clock), None);
}

#[test]
fn a_request_that_came_before_the_doorbell_was_enabled_keeps_the_thread_awake() {
    let mut setting = Setting::new(WorkSource::Both, POLL);
    setting.ring(&[1]);
    setting.run_to_sleep();
    setting.scheduler.make_ready(QueueSet::of(1));
    assert_eq!(setting.next(), Step::Sleep, "the iteration is over");
    assert_eq!(setting.scheduler.longest_sleep(&setting.clock), Some(Duration::ZERO));
    setting.begin(Woken::default());
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
}

#[test]
fn a_busy_queue_leaves_off_when_its_budget_is_spent() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.ring(&[0]);
    let mut batches = 0;
    loop {
        match setting.next() {
            Step::Process(queues) => {
                assert_eq!(queues, QueueSet::of(0));
                batches += 1;
                setting.clock.pass(Duration::from_millis(1));
                setting.complete(used(0, 1, 512));
            }
            Step::Notify(_) => {}
            Step::Sleep => break,
            step => panic!("{step:?}"),
        }
    }
    assert_eq!(batches, QUEUE_BUDGET.as_millis());
    assert_eq!(setting.scheduler.longest_sleep(&setting.clock), Some(Duration::ZERO));
}

#[test]
fn sources_come_before_queues_and_a_deadline_is_one() {
    for ready in [
        Woken { events: true, sources: true, deadline: false },
        Woken { events: true, sources: false, deadline: true },
    ] {
        let mut setting = Setting::new(WorkSource::Both, POLL);
        setting.begin(ready);
        setting.scheduler.doorbell(0);
        assert_eq!(setting.next(), Step::HandleSources);
        assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
    }
}

#[test]
fn a_driver_with_one_request_is_notified_when_the_hold_time_is_over_and_polled_for_the_rest() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.learn_to_poll();
    // An attempt to coalesce, after those that were not tried.
    let mut steps = Vec::new();
    for _ in 0..300 {
        setting.ring(&[0]);
        assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
        setting.complete(used(0, 1, 512));
        setting.earn();
        steps = setting.run_to_sleep();
        setting.clock.pass(Duration::from_micros(10));
        if matches!(steps[1], Step::Poll { .. }) {
            break;
        }
    }
    let Step::Poll { polls: hold, .. } = steps[1] else { panic!("{steps:?}") };
    assert_eq!(steps[2], Step::Notify(QueueSet::of(0)));
    let Step::Poll { polls: rest, .. } = steps[3] else { panic!("{steps:?}") };
    assert_eq!(hold + rest, 101, "the window, and the first poll");
    assert_eq!(steps[4..], [Step::EnableDoorbells(QueueSet::of(0)), Step::Sleep]);
}

#[test]
fn a_request_found_by_polling_is_processed_without_a_doorbell() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.learn_to_poll();
    setting.ring(&[0]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
    setting.complete(emptied(QueueSet::of(0)));
    assert!(matches!(setting.next(), Step::Poll { .. }));
    setting.scheduler.polled(3, requests(QueueSet::of(0)), &setting.clock);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
}

#[test]
fn doorbells_that_come_late_or_bring_nothing_end_polling() {
    for (after, work) in [(Duration::from_millis(1), true), (Duration::from_micros(10), false)] {
        let mut setting = Setting::new(WorkSource::Driver, POLL);
        setting.learn_to_poll();
        assert!(!setting.scheduler.busy_poll.window(Awaited::Request).is_zero());
        for _ in 0..40 {
            setting.clock.pass(after);
            setting.ring(&[0]);
            assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
            let batch = if work { used(0, 1, 512) } else { emptied(QueueSet::of(0)) };
            setting.complete(batch);
            setting.run_to_sleep();
        }
        assert!(setting.scheduler.busy_poll.window(Awaited::Request).is_zero());
    }
}

#[test]
fn the_time_is_read_once_a_sleep_and_not_between_polls() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.learn_to_poll();
    setting.ring(&[0]);
    let before = setting.clock.reads.get();
    setting.run_to_sleep();
    assert_eq!(setting.clock.reads.get() - before, 1);
}

#[test]
fn polls_are_measured_now_and_then() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.learn_to_poll();
    let measured = Step::Poll { queues: QueueSet::of(0), polls: MEASURED };
    let mut iterations = 0;
    loop {
        setting.ring(&[0]);
        assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
        setting.complete(used(0, 1, 512));
        if setting.run_to_sleep().contains(&measured) {
            break;
        }
        setting.clock.pass(Duration::from_micros(10));
        setting.earn();
        iterations += 1;
        assert!(iterations < 100);
    }
    assert!(iterations > 40, "{iterations}");
    assert_eq!(setting.scheduler.poll_clock.time_of(1), Duration::from_micros(1));
}

#[test]
fn polls_come_back_after_something_else_ran_while_they_were_measured() {
    let lost = Duration::from_millis(10);
    let mut setting = Setting { lost, ..Setting::unmeasured(WorkSource::Driver, POLL) };
    setting.learn_to_poll();
    assert_eq!(setting.lost, Duration::ZERO, "nothing was measured");
    let polls = |step: &Step| if let Step::Poll { polls, .. } = step { *polls } else { 0 };
    let is_back = (0..200).any(|_| {
        setting.ring(&[0]);
        assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
        setting.complete(used(0, 1, 512));
        setting.earn();
        let steps = setting.run_to_sleep();
        setting.clock.pass(Duration::from_micros(10));
        // The whole window, and the first poll.
        steps.iter().map(polls).sum::<u32>() == 101
    });
    assert!(is_back, "it sleeps without polls");
}

#[test]
fn many_bytes_are_notified_of_at_once() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.ring(&[0]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
    setting.complete(used(0, 1, BATCH_BYTES));
    assert_eq!(setting.next(), Step::Notify(QueueSet::of(0)));
}

#[test]
fn a_delayed_notification_waits_for_an_idle_moment() {
    let mut setting = Setting::new(WorkSource::Both, POLL);
    setting.ring(&[1]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
    setting.scheduler.completed(&used(1, 1, 64), NotifyWhen::Delayed, 0);
    let steps = setting.run_to_sleep();
    assert!(!steps.contains(&Step::Notify(QueueSet::of(1))), "{steps:?}");
    assert_eq!(setting.scheduler.longest_sleep(&setting.clock), Some(DELAY));
    setting.begin(Woken::default());
    assert_eq!(setting.next(), Step::Notify(QueueSet::of(1)));
    assert_eq!(setting.next(), Step::Sleep);
    assert_eq!(setting.scheduler.longest_sleep(&setting.clock), None);
}

#[test]
fn a_doorbell_brings_a_delayed_notification_before_more_is_used() {
    let mut setting = Setting::new(WorkSource::Both, POLL);
    setting.ring(&[1]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
    setting.scheduler.completed(&used(1, 1, 64), NotifyWhen::Delayed, 0);
    setting.run_to_sleep();
    setting.ring(&[1]);
    assert_eq!(setting.next(), Step::Notify(QueueSet::of(1)));
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
}

#[test]
fn a_queue_that_was_reset_takes_no_step_any_more() {
    let mut setting = Setting::new(WorkSource::Both, POLL);
    setting.ring(&[0, 1]);
    setting.scheduler.completed(&used(0, 1, 64), NotifyWhen::Delayed, 0);
    setting.scheduler.completed(&used(1, 1, 64), NotifyWhen::Coalesced, 0);
    [0, 1].into_iter().for_each(|queue| setting.scheduler.remove(queue));
    assert_eq!(setting.next(), Step::Sleep);
    setting.begin(Woken::default());
    assert_eq!(setting.next(), Step::Sleep);
}

#[test]
fn a_device_that_needs_a_reset_notifies_of_what_was_used_and_does_nothing_else() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.ring(&[0, 1]);
    assert_eq!(setting.next(), Step::Process([0, 1].into_iter().collect()));
    setting.scheduler.completed(&used(0, 1, 64), NotifyWhen::Now, 0);
    setting.scheduler.stop();
    assert_eq!(setting.next(), Step::Notify(QueueSet::of(0)));
    assert_eq!(setting.next(), Step::Sleep);
    assert_eq!(setting.scheduler.longest_sleep(&setting.clock), None);
}

#[test]
fn events_that_bring_nothing_keep_ports_masked_ever_longer() {
    let mut setting = Setting::new(WorkSource::Driver, PollTime::NEVER);
    let mut masked = 0;
    for _ in 0..20 {
        setting.ring(&[]);
        setting.run_to_sleep();
        if !setting.scheduler.may_unmask(&setting.clock) {
            masked += 1;
            let sleep = setting.scheduler.longest_sleep(&setting.clock).unwrap();
            setting.clock.pass(sleep);
        }
    }
    assert_eq!(masked, 2, "the 17th and the 19th, which came when the wait of the first was over");
}

#[test]
fn queue_that_is_never_empty_hides_no_other() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.ring(&[0, 1]);
    assert_eq!(setting.next(), Step::Process([0, 1].into_iter().collect()));
    setting.complete(BatchSummary { empty: QueueSet::of(1), ..used(0, 1, 512) });
    loop {
        match setting.next() {
            Step::Process(queues) => {
                assert_eq!(queues, QueueSet::of(0));
                setting.clock.pass(Duration::from_millis(1));
                setting.complete(used(0, 1, 512));
            }
            Step::EnableDoorbells(queues) => return assert_eq!(queues, QueueSet::of(1)),
            Step::Sleep => panic!("nobody polls queue 1, and its doorbell is not enabled"),
            Step::Poll { .. } | Step::Notify(_) | Step::HandleSources => {}
        }
    }
}

/// Whatever a driver and a device do, an iteration ends, and no queue is forgotten: it is ready, or
/// its doorbell is enabled.
#[test]
fn every_iteration_ends_and_no_queue_is_forgotten() {
    for seed in 0..200_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % limit
        };
        let source = [WorkSource::Driver, WorkSource::Both][draw(2) as usize];
        let mut setting = Setting::new(source, POLL);
        let mut enabled = QueueSet::default();
        for _ in 0..50 {
            match draw(3) {
                0 => setting.begin(Woken { sources: true, ..Woken::default() }),
                _ => setting.ring(&[draw(3) as usize]),
            }
            enabled = enabled.without(setting.scheduler.ready);
            for step in 0.. {
                assert!(step < 1000);
                setting.clock.pass(Duration::from_micros(draw(500)));
                match setting.next() {
                    Step::Process(queues) => {
                        let rescheduled =
                            queues.iter().filter(|_| draw(2) == 0).collect::<QueueSet>();
                        let used =
                            rescheduled.iter().filter(|_| draw(2) == 0).collect::<QueueSet>();
                        let empty = queues.without(rescheduled);
                        let count = u32::from(!used.is_empty());
                        let bytes = count.into();
                        let batch = BatchSummary { used, count, bytes, rescheduled, empty };
                        let when = [NotifyWhen::Now, NotifyWhen::Coalesced, NotifyWhen::Delayed];
                        let when = when[draw(3) as usize];
                        setting.scheduler.completed(&batch, when, draw(3) as u32);
                    }
                    Step::Poll { queues, polls } => {
                        assert!(polls > 0 && !queues.is_empty());
                        let found = queues.iter().filter(|_| draw(4) == 0).collect();
                        let found = Found { requests: found, completions: draw(4) == 0 };
                        setting.scheduler.polled(polls, found, &setting.clock);
                    }
                    Step::EnableDoorbells(queues) => enabled.extend(queues),
                    Step::Notify(queues) => assert!(!queues.is_empty()),
                    Step::HandleSources => {
                        let used = (0..3).filter(|_| draw(2) == 0).collect::<QueueSet>();
                        let (count, empty) = (used.iter().count() as u32, QueueSet::default());
                        let batch = BatchSummary { used, count, ..emptied(empty) };
                        setting.scheduler.completed(&batch, NotifyWhen::Coalesced, 0);
                    }
                    Step::Sleep => break,
                }
            }
            let known = [setting.scheduler.ready, setting.scheduler.empty];
            assert!(setting.scheduler.unnotified.is_empty());
            let awake = setting.scheduler.longest_sleep(&setting.clock) == Some(Duration::ZERO);
            assert!(awake || known.iter().all(|queues| queues.is_empty()), "seed {seed}");
        }
    }
}
