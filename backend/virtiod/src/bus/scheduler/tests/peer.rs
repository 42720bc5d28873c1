//! A device between the driver and a peer, which answers the driver's packets.

use super::*;

/// The longest time to poll.
const LIMIT: Duration = Duration::from_millis(1);
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The driver sends a packet.
    Driver,
    /// The peer answers it.
    Peer,
}

/// A driver and a peer that wait for each other's packets.
struct RoundTrips {
    setting: Setting,
    /// How soon each reacts.
    driver: Duration,
    peer: Duration,
    turn: Turn,
    at: Duration,
    sleeps: u32,
    polled: Duration,
}

impl RoundTrips {
    fn new(driver: Duration, peer: Duration) -> Self {
        let setting = Setting::new(WorkSource::DriverAndPeer, PollTime::Fixed(LIMIT));
        let (turn, at, polled) = (Turn::Driver, driver, Duration::ZERO);
        Self { setting, driver, peer, turn, at, sleeps: 0, polled }
    }

    fn now(&self) -> Duration {
        self.setting.clock.tick().unwrap()
    }

    fn takes_turn(&mut self, turn: Turn) {
        let reaction = if turn == Turn::Driver { self.driver } else { self.peer };
        (self.turn, self.at) = (turn, self.now() + reaction);
    }

    /// Carries out so many round trips; returns how often the thread slept.
    fn run(&mut self, trips: u32) -> u32 {
        (self.sleeps, self.polled) = (0, Duration::ZERO);
        for turn in [Turn::Peer, Turn::Driver].into_iter().cycle().take(2 * trips as usize) {
            while self.turn != turn {
                self.step();
            }
        }
        self.sleeps
    }

    fn step(&mut self) {
        match self.setting.next() {
            Step::Poll { queues, polls } => self.poll(queues, polls),
            Step::Process(queues) => self.process(queues),
            Step::HandleSources => self.deliver(),
            Step::Notify(_) | Step::EnableDoorbells(_) => {}
            Step::Sleep => self.sleep(),
        }
    }

    /// The driver's packet is sent, if it is there.
    fn process(&mut self, queues: QueueSet) {
        assert_eq!(queues, QueueSet::of(TRANSMIT));
        if self.turn == Turn::Peer || self.now() < self.at {
            return self.setting.complete(emptied(queues));
        }
        self.takes_turn(Turn::Peer);
        let sent = used(TRANSMIT, 1, 64);
        self.setting.scheduler.completed(&sent, NotifyWhen::Delayed, 0);
    }

    /// The peer's packet is delivered, if it is there.
    fn deliver(&mut self) {
        if self.turn == Turn::Driver || self.now() < self.at {
            return self.setting.complete(BatchSummary::default());
        }
        self.takes_turn(Turn::Driver);
        let received = BatchSummary { rescheduled: QueueSet::default(), ..used(RECEIVE, 1, 64) };
        self.setting.scheduler.completed(&received, NotifyWhen::Now, 0);
    }

    fn poll(&mut self, queues: QueueSet, polls: u32) {
        assert_eq!(queues, QueueSet::of(TRANSMIT));
        let until = self.at.saturating_sub(self.now()).as_micros() as u32 + 1;
        let (passed, found) = if until > polls {
            (polls, Found::default())
        } else if self.turn == Turn::Driver {
            (until, requests(queues))
        } else {
            (until, Found { completions: true, ..Found::default() })
        };
        let passed_time = Duration::from_micros(passed.into());
        self.polled += passed_time;
        self.setting.clock.pass(passed_time);
        self.setting.scheduler.polled(passed, found, &self.setting.clock);
    }

    fn sleep(&mut self) {
        self.sleeps += 1;
        // A delayed notification may end the sleep.
        let most = self.setting.scheduler.longest_sleep(&self.setting.clock);
        let left = self.at.saturating_sub(self.now());
        self.setting.clock.pass(most.map_or(left, |most| most.min(left)));
        assert!(self.setting.scheduler.may_unmask(&self.setting.clock));
        if self.now() < self.at {
            return self.setting.begin(Woken::default());
        }
        match self.turn {
            Turn::Driver => self.setting.ring(&[TRANSMIT]),
            Turn::Peer => self.setting.begin(Woken { sources: true, ..Woken::default() }),
        }
    }
}

#[test]
fn round_trips_need_no_sleep_whoever_is_slower() {
    for (driver, peer) in [(100, 20), (20, 100), (50, 50), (5, 200), (200, 5)] {
        let micros = Duration::from_micros;
        let mut trips = RoundTrips::new(micros(driver), micros(peer));
        trips.run(100);
        let sleeps = trips.run(1000);
        assert!(sleeps < 50, "{driver} and {peer} µs: {sleeps} sleeps in 1000 round trips");
    }
}

#[test]
fn peer_that_is_far_away_is_not_polled_for() {
    let mut trips = RoundTrips::new(Duration::from_micros(50), 20 * LIMIT);
    trips.run(100);
    let before = trips.now();
    trips.run(1000);
    let (polled, all) = (trips.polled, trips.now() - before);
    assert!(polled < all / 50, "{polled:?} of {all:?}");
}
