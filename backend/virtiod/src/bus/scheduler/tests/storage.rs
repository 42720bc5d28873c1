//! A device whose storage works while the thread does something else.

use super::*;

/// How soon the driver adds a request after it is notified of another.
const REACTION: Duration = Duration::from_micros(10);

/// The longest time to poll.
const LIMIT: Duration = Duration::from_millis(1);

/// A driver with one request in flight, whose storage takes `latency`.
struct OneRequest {
    setting: Setting,
    latency: Duration,
    /// How soon the driver adds a request after it is notified of another.
    reaction: Duration,
    /// What happens next, and when.
    next: (Awaited, Duration),
    /// Polls, and times that the thread slept, while that was awaited.
    polls: u32,
    sleeps: u32,
}

impl OneRequest {
    fn new(latency: Duration) -> Self {
        let setting = Setting::new(WorkSource::Driver, PollTime::Fixed(LIMIT));
        let (reaction, next) = (REACTION, (Awaited::Request, REACTION));
        Self { setting, latency, reaction, next, polls: 0, sleeps: 0 }
    }

    fn now(&self) -> Duration {
        self.setting.clock.tick().unwrap()
    }

    /// Carries out so many requests, each of which is a request and a completion.
    fn run(&mut self, requests: u32) {
        for _ in 0..2 * requests {
            self.await_next();
        }
    }

    fn await_next(&mut self) {
        let (what, _) = self.next;
        while self.next.0 == what {
            match self.setting.next() {
                Step::Poll { queues, polls } => self.poll(queues, polls),
                Step::Process(queues) => self.process(queues),
                Step::HandleSources => self.handle_sources(),
                Step::Notify(_) => self.next.1 = self.now() + self.reaction,
                Step::EnableDoorbells(_) => {}
                Step::Sleep => self.sleep(),
            }
        }
    }

    fn poll(&mut self, queues: QueueSet, polls: u32) {
        assert_eq!(queues, QueueSet::of(0), "of which the doorbell may be enabled");
        let (what, at) = self.next;
        let until = at.saturating_sub(self.now()).as_micros() as u32 + 1;
        let found = Found {
            requests: if what == Awaited::Request { queues } else { QueueSet::default() },
            completions: what == Awaited::Completion,
        };
        let (polled, found) =
            if until <= polls { (until, found) } else { (polls, Found::default()) };
        self.polls += polled;
        self.setting.clock.pass(Duration::from_micros(polled.into()));
        self.setting.scheduler.polled(polled, found, &self.setting.clock);
    }

    /// The storage takes what the queue has.
    fn process(&mut self, queues: QueueSet) {
        let taken = self.next.0 == Awaited::Request && self.next.1 <= self.now();
        if taken {
            self.next = (Awaited::Completion, self.now() + self.latency);
        }
        let in_flight = u32::from(self.next.0 == Awaited::Completion);
        self.setting.scheduler.completed(&emptied(queues), NotifyWhen::Coalesced, in_flight);
    }

    fn handle_sources(&mut self) {
        // The driver does not know of it before it is notified.
        self.next = (Awaited::Request, self.now() + Duration::from_secs(60));
        let batch = BatchSummary { rescheduled: QueueSet::default(), ..used(0, 1, 512) };
        self.setting.scheduler.completed(&batch, NotifyWhen::Coalesced, 0);
    }

    fn sleep(&mut self) {
        assert!(self.setting.scheduler.may_unmask(&self.setting.clock));
        self.sleeps += 1;
        let (what, at) = self.next;
        self.setting.clock.pass(at.checked_sub(self.now()).expect("it was not polled for"));
        match what {
            Awaited::Request => self.setting.ring(&[0]),
            Awaited::Completion => {
                self.setting.begin(Woken { sources: true, ..Woken::default() });
            }
        }
    }
}

#[test]
fn completions_that_come_soon_are_polled_for() {
    // Later than requests, and sooner than each may be polled for all the time.
    let mut driver = OneRequest::new(LIMIT / 8);
    driver.run(100);
    driver.sleeps = 0;
    driver.run(100);
    // The end of an iteration.
    assert!(driver.sleeps <= 1, "{}", driver.sleeps);
}

#[test]
fn polls_that_would_end_too_early_are_saved_for_others() {
    // Together they take almost twice what they earn. Either alone is less than two earn.
    let mut driver = OneRequest::new(LIMIT / 4);
    driver.reaction = LIMIT / 5;
    driver.run(100);
    (driver.polls, driver.sleeps) = (0, 0);
    driver.run(100);
    assert!(driver.sleeps < 110, "{}", driver.sleeps);
    let found = (200 - driver.sleeps) * LIMIT.as_micros() as u32 / 5;
    assert!(driver.polls < found * 3 / 2, "{} polls, {} sleeps", driver.polls, driver.sleeps);
}

#[test]
fn storage_that_takes_longer_than_the_window_is_not_polled_for() {
    for latency in [LIMIT + REACTION, 4 * LIMIT] {
        let mut driver = OneRequest::new(latency);
        driver.run(300);
        (driver.polls, driver.sleeps) = (0, 0);
        driver.run(100);
        // For a completion it sleeps, for the request after it not.
        assert!((100..110).contains(&driver.sleeps), "{latency:?}: {}", driver.sleeps);
        // For each: the hold time, and the driver's reaction.
        assert!(driver.polls < 100 * 70, "{latency:?}: {}", driver.polls);
    }
}

#[test]
fn gap_between_requests_is_the_drivers_and_not_the_storages() {
    for latency in [LIMIT / 16, 4 * LIMIT] {
        let mut driver = OneRequest::new(latency);
        driver.run(300);
        let hold = driver.setting.scheduler.coalescing.hold_time();
        assert!(hold <= REACTION * 4 + Duration::from_micros(4), "{latency:?}: {hold:?}");
    }
}

#[test]
fn hold_that_fails_does_not_make_the_next_longer() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    (0..8).for_each(|_| {
        setting.scheduler.busy_poll.woken(Awaited::Request, Duration::ZERO, REACTION)
    });
    let hold = setting.scheduler.coalescing.hold_time();
    setting.ring(&[0]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
    setting.complete(used(0, 1, 512));
    assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
    setting.complete(emptied(QueueSet::of(0)));
    let polls = hold.as_micros() as u32 + 1;
    assert_eq!(setting.next(), Step::Poll { queues: QueueSet::of(0), polls });
    setting.poll_in_vain(polls);
    assert_eq!(setting.next(), Step::Notify(QueueSet::of(0)));
    assert!(matches!(setting.next(), Step::Poll { .. }));
    // The gap was a quarter of the hold time, and is it again.
    setting.scheduler.polled(polls / 4 + 1, requests(QueueSet::of(0)), &setting.clock);
    assert_eq!(setting.scheduler.coalescing.hold_time(), hold);
}

#[test]
fn all_queues_are_polled_though_only_one_rang() {
    let mut setting = Setting::new(WorkSource::Driver, POLL);
    setting.ring(&[0, 1]);
    setting.run_to_sleep();
    setting.ring(&[1]);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(1)));
    setting.complete(emptied(QueueSet::of(1)));
    let Step::Poll { queues, .. } = setting.next() else { panic!("it is not polled") };
    assert_eq!(queues.iter().collect::<Vec<_>>(), [0, 1]);
    setting.scheduler.polled(1, requests(QueueSet::of(0)), &setting.clock);
    assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
}

#[test]
fn a_driver_that_waited_for_storage_is_notified_before_anything_is_polled() {
    let mut setting = Setting::new(WorkSource::Driver, PollTime::Fixed(LIMIT));
    setting.learn_to_poll();
    let mut held = 0;
    for _ in 0..300 {
        setting.ring(&[0]);
        assert_eq!(setting.next(), Step::Process(QueueSet::of(0)));
        setting.scheduler.completed(&emptied(QueueSet::of(0)), NotifyWhen::Coalesced, 4);
        setting.run_to_sleep();
        setting.clock.pass(4 * LIMIT);
        setting.begin(Woken { sources: true, ..Woken::default() });
        assert_eq!(setting.next(), Step::HandleSources);
        let batch = BatchSummary { rescheduled: QueueSet::default(), ..used(0, 1, 512) };
        setting.scheduler.completed(&batch, NotifyWhen::Coalesced, 3);
        assert_eq!(setting.next(), Step::Notify(QueueSet::of(0)));
        setting.scheduler.completed(&batch, NotifyWhen::Coalesced, 2);
        let steps = setting.run_to_sleep();
        held += u32::from(matches!(steps[0], Step::Poll { .. }));
        // Behind the last one, nothing can complete.
        setting.begin(Woken { sources: true, ..Woken::default() });
        assert_eq!(setting.next(), Step::HandleSources);
        setting.scheduler.driver_waits = false;
        setting.scheduler.completed(&batch, NotifyWhen::Coalesced, 0);
        assert_eq!(setting.next(), Step::Notify(QueueSet::of(0)));
        setting.run_to_sleep();
    }
    assert!(held > 0, "those in between are held back, as before");
}
