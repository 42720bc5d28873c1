//! How long an empty ring is polled before the thread sleeps.
//!
//! A doorbell costs the guest a hypercall and this domain a wake-up, several times what a small
//! request costs. So the daemon polls the ring for a driver that is about to add another request.
//! How long is learnt, as KVM learns it for halting processors: the window grows while doorbells
//! come soon after the thread fell asleep, and closes once they do not.
//!
//! Polling must not cost more than it saves. Unless the configuration sets a limit, the limit is
//! what a number of notifications cost here: little on hardware, much where the processor is
//! emulated. And each request earns only a part of the limit: a driver whose requests are far
//! apart, though near enough to be waited for each time, would otherwise keep this domain polling
//! all the time for hardly any work.
//!
//! Nor may polling be in the way of what it waits for: where the guest, or a thread of the kernel's
//! that works for storage, has no processor but the one on which the thread polls.
//!
//! A device between the driver and a peer, such as the other end of a network, has two windows: one
//! for whatever comes after a packet of the driver's, and one for what comes after the peer's.
//!
//! A device whose storage works while the thread does something else has two too: one for the
//! driver's next request, and one for the storage's next completion, which is learnt alike. Storage
//! that takes longer than the limit is never polled for.

use std::time::Duration;

use crate::config::PollTime;

/// The first window.
const FIRST: Duration = Duration::from_micros(20);
/// The limit, in costs of a notification.
const NOTIFICATIONS: u32 = 128;
/// The limit lies between these, whatever a notification costs.
const LEAST: Duration = Duration::from_micros(200);
const MOST: Duration = Duration::from_millis(10);
/// A request earns one of so many parts of the limit.
const EARNS: u32 = 8;
/// Polls for less than one of so many parts of the limit are in nobody's way.
const SHORT: u32 = 64;
/// Most times that polls are left out after they were in the way.
const RAREST: u32 = 256;
/// Notifications between two whose cost is measured: measuring may cost as much as they do.
const UNMEASURED: u32 = 32;

/// The next thing to happen that the thread polls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// A request of the driver's; what follows a packet of a peer's, where there is one.
    Request,
    /// A completion of the storage's: the driver was notified of all others. What follows a packet
    /// to a peer, where there is one.
    Completion,
}

/// What was learnt of when one of them happens.
#[derive(Clone, Copy, Debug, Default)]
struct Habit {
    /// The longest time to poll for it.
    window: Duration,
    /// The time from the begin of polling until it happens, a moving average, in nanoseconds.
    pace: u64,
    /// The time that it takes while the thread sleeps and did not poll before, in nanoseconds, a
    /// moving average of times up to the limit; 0 if that is not known.
    asleep: u64,
    /// Number of times before it is polled for again.
    left_out: u32,
    /// That number after the next polls that turn out to be in its way.
    penalty: u32,
}

impl Habit {
    fn happened(&mut self, after: Duration) {
        self.pace = average(self.pace, after);
    }

    /// The time that it usually takes while the thread sleeps. `least`: what is not long in any
    /// case.
    fn usual(&self, least: Duration) -> u64 {
        self.asleep.max(nanoseconds(least))
    }

    /// It needs the processor on which the thread polls: the next polls are left out.
    fn polls_were_in_the_way(&mut self) {
        self.window = Duration::ZERO;
        self.left_out = self.penalty;
        self.penalty = (self.penalty * 2).clamp(1, RAREST);
    }

    /// It was found after the thread had polled for so long. If that is much longer than it takes
    /// while the thread sleeps, Xen took the processor away for it.
    fn judge_find(&mut self, polled: Duration, least: Duration) {
        if nanoseconds(polled) > 2 * self.usual(least) {
            self.polls_were_in_the_way();
        } else if !polled.is_zero() {
            // Found by the first poll, it happened before, and else while the thread polled.
            self.penalty = self.penalty.saturating_sub(1);
        }
    }

    /// The thread polled in vain for so long, and it happened when the thread had been `asleep`. If
    /// it came as soon as usual then, it had waited for the processor. Else it paused, which says
    /// nothing of the next time; but it is not worth as long a window.
    fn judge_vain(&mut self, polled: Duration, asleep: Duration, least: Duration) {
        let usual = self.usual(least);
        if nanoseconds(polled) <= 2 * usual {
            return;
        }
        if nanoseconds(asleep) <= 2 * usual {
            self.polls_were_in_the_way();
        } else {
            self.window = Duration::ZERO;
        }
    }

    /// The thread was woken up after it had slept so long, without polls before.
    fn happened_asleep(&mut self, asleep: Duration) {
        self.asleep = match self.asleep {
            0 => nanoseconds(asleep),
            before => average(before, asleep),
        };
    }

    /// Lets the window grow if it would have been worth its time to poll for longer.
    fn grow(&mut self, is_worth: bool, limit: Duration) {
        if self.left_out > 0 {
            self.left_out -= 1;
        } else {
            let longer = (self.window * 2).max(FIRST).min(limit);
            self.window = if is_worth { longer } else { Duration::ZERO };
        }
    }
}

/// A moving average, in nanoseconds.
fn average(before: u64, now: Duration) -> u64 {
    before - before / 8 + nanoseconds(now) / 8
}

/// The nanoseconds of a time, as far as 64 bits hold them: other numbers are slow to divide.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The habits of a driver and of its storage, as they were learnt.
#[derive(Clone, Copy, Debug)]
pub(super) struct BusyPoll {
    limit: PollTime,
    /// The cost of a notification.
    notification: Duration,
    /// Notifications before the next measurement.
    unmeasured: u32,
    requests: Habit,
    completions: Habit,
    /// Time that requests earned and polling has not spent, at most the limit.
    earned: Duration,
}

impl BusyPoll {
    /// Nothing is known yet.
    pub(super) fn new(limit: PollTime) -> Self {
        let new = Self {
            limit,
            notification: Duration::ZERO,
            unmeasured: 0,
            requests: Habit::default(),
            completions: Habit::default(),
            earned: Duration::ZERO,
        };
        Self { earned: new.limit(), ..new }
    }

    /// Whether the thread ever polls.
    pub(super) fn is_enabled(self) -> bool {
        !self.limit().is_zero()
    }

    /// How long to poll. Not at all if what was earned would be spent before it usually happens:
    /// nothing would be left for any other time either.
    pub(super) fn window(&self, awaited: Awaited) -> Duration {
        let earned = self.earned;
        let Habit { window, pace, .. } = match awaited {
            Awaited::Request => self.requests,
            Awaited::Completion => self.completions,
        };
        if pace + pace / 8 > nanoseconds(earned) { Duration::ZERO } else { window.min(earned) }
    }

    fn habit(&mut self, awaited: Awaited) -> &mut Habit {
        match awaited {
            Awaited::Request => &mut self.requests,
            Awaited::Completion => &mut self.completions,
        }
    }

    /// The thread polled for so long.
    pub(super) fn polled(&mut self, time: Duration) {
        self.earned = self.earned.saturating_sub(time);
    }

    /// What was polled for was found.
    #[inline(never)]
    pub(super) fn found(&mut self, awaited: Awaited, after: Duration) {
        let least = self.limit() / SHORT;
        let habit = self.habit(awaited);
        habit.happened(after);
        habit.judge_find(after, least);
        self.earn();
    }

    fn earn(&mut self) {
        self.earned = (self.earned + self.limit() / EARNS).min(self.limit());
    }

    /// The longest time to poll.
    pub(super) fn limit(self) -> Duration {
        match self.limit {
            PollTime::Fixed(limit) => limit,
            PollTime::Learnt => (self.notification * NOTIFICATIONS).clamp(LEAST, MOST),
        }
    }

    /// Whether the cost of the next notification is to be measured.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.unmeasured == 0;
        self.unmeasured = if due { UNMEASURED } else { self.unmeasured - 1 };
        due
    }

    /// A notification took `time`, in which something else may have run: the cost is the least of
    /// late.
    pub(super) fn notified(&mut self, time: Duration) {
        let before = self.notification;
        let rising = before + before / 16;
        self.notification = if before.is_zero() { time } else { time.min(rising) };
    }

    /// A doorbell brought nothing: polling for what may follow it is worth less.
    pub(super) fn empty_doorbell(&mut self) {
        self.requests.window /= 2;
    }

    /// The thread was woken up when it had been `asleep` for so long, after it had `polled`. A
    /// driver that is slower than the limit after that is not polled for, nor is storage that takes
    /// longer than the limit in all.
    pub(super) fn woken(&mut self, by: Awaited, polled: Duration, asleep: Duration) {
        self.earn();
        let (limit, whole) = (self.limit(), polled + asleep);
        let after = if by == Awaited::Request { asleep } else { whole };
        let habit = self.habit(by);
        habit.happened(whole.min(limit));
        // A pause says nothing of how soon it happens otherwise.
        if polled < FIRST && asleep <= limit {
            habit.happened_asleep(asleep);
        }
        habit.judge_vain(polled, asleep, limit / SHORT);
        habit.grow(after <= limit, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(50);
    const LIMIT: Duration = Duration::from_micros(100);

    #[test]
    fn the_window_grows_while_doorbells_come_soon_and_closes_when_they_do_not() {
        let mut poll = BusyPoll::new(PollTime::Fixed(LIMIT));
        assert_eq!(poll.window(Awaited::Request), Duration::ZERO);
        poll.woken(Awaited::Request, Duration::ZERO, SOON);
        assert_eq!(poll.window(Awaited::Request), FIRST);
        (0..10).for_each(|_| poll.woken(Awaited::Request, Duration::ZERO, SOON));
        assert_eq!(poll.window(Awaited::Request), LIMIT);
        poll.woken(Awaited::Request, Duration::ZERO, 2 * LIMIT);
        assert_eq!(poll.window(Awaited::Request), Duration::ZERO);
    }

    #[test]
    fn storage_has_a_window_of_its_own() {
        let mut poll = BusyPoll::new(PollTime::Fixed(LIMIT));
        (0..10).for_each(|_| poll.woken(Awaited::Request, Duration::ZERO, SOON));
        (0..10).for_each(|_| poll.woken(Awaited::Completion, Duration::ZERO, 2 * LIMIT));
        assert_eq!(poll.window(Awaited::Request), LIMIT);
        assert_eq!(poll.window(Awaited::Completion), Duration::ZERO);
        (0..10).for_each(|_| poll.woken(Awaited::Completion, Duration::ZERO, SOON));
        poll.empty_doorbell();
        assert_eq!(poll.window(Awaited::Request), LIMIT / 2);
        assert_eq!(poll.window(Awaited::Completion), LIMIT);
    }

    #[test]
    fn doorbells_that_bring_nothing_shrink_the_window() {
        let mut poll = BusyPoll::new(PollTime::Fixed(LIMIT));
        (0..10).for_each(|_| poll.woken(Awaited::Request, Duration::ZERO, SOON));
        (0..40).for_each(|_| poll.empty_doorbell());
        assert_eq!(poll.window(Awaited::Request), Duration::ZERO);
    }

    #[test]
    fn requests_far_apart_are_not_polled_for_all_the_time() {
        for (gap, share) in [(LIMIT / EARNS / 2, 1.0), (LIMIT / 2, 0.3), (LIMIT * 9 / 10, 0.2)] {
            let mut poll = BusyPoll::new(PollTime::Fixed(LIMIT));
            (0..10).for_each(|_| poll.woken(Awaited::Request, Duration::ZERO, SOON));
            let mut polled = Duration::ZERO;
            for _ in 0..1000 {
                let window = poll.window(Awaited::Request).min(gap);
                poll.polled(window);
                polled += window;
                if window == gap {
                    poll.found(Awaited::Request, gap)
                } else {
                    poll.woken(Awaited::Request, Duration::ZERO, gap)
                }
            }
            let part = polled.as_secs_f64() / (gap * 1000).as_secs_f64();
            assert!(part <= share && (share < 1.0 || part == share), "{gap:?}: {part}");
        }
    }

    /// The guest and this domain have one processor: Xen gives it to the guest when the thread
    /// sleeps, or has polled for long. Returns for how long it polled in rounds 1000 to 4000.
    fn drive_on_one_processor(poll: &mut BusyPoll, by: Awaited, pauses: &[u32]) -> Duration {
        let (slice, mut polled) = (SOON * 20, Duration::ZERO);
        for round in 0..4000 {
            if pauses.contains(&round) {
                poll.woken(by, Duration::ZERO, Duration::from_secs(10));
            }
            let window = poll.window(by).min(slice);
            poll.polled(window);
            if round >= 1000 {
                polled += window;
            }
            if window == slice {
                poll.found(by, window);
            } else {
                poll.woken(by, window, SOON);
            }
        }
        polled
    }

    #[test]
    fn what_needs_the_processor_is_seldom_polled_for() {
        for by in [Awaited::Request, Awaited::Completion] {
            // It pauses at the beginning, and while it is known.
            for pauses in [&[][..], &[0, 1000], &[0, 1, 2, 1000, 1001, 2000]] {
                for limit in [SOON * 100, SOON * 200] {
                    let mut poll = BusyPoll::new(PollTime::Fixed(limit));
                    let polled = drive_on_one_processor(&mut poll, by, pauses);
                    let what = format!("{by:?} {pauses:?} {limit:?}");
                    assert!(polled < SOON * 3000 / 8, "{what}: {polled:?}");
                }
            }
        }
    }

    #[test]
    fn a_driver_that_gets_a_processor_of_its_own_is_polled_for_again() {
        let (reaction, limit) = (SOON, SOON * 100);
        let mut poll = BusyPoll::new(PollTime::Fixed(limit));
        drive_on_one_processor(&mut poll, Awaited::Request, &[]);
        let mut sleeps = 0;
        for round in 0..2000 {
            let window = poll.window(Awaited::Request).min(reaction);
            poll.polled(window);
            if window == reaction {
                poll.found(Awaited::Request, reaction);
            } else {
                sleeps += u32::from(round >= 1000);
                poll.woken(Awaited::Request, window, reaction - window);
            }
        }
        assert!(sleeps < 100, "{sleeps}");
    }

    /// A driver pauses after each `count` requests with a gap in between. Returns how often the
    /// thread slept for one of the last 5000.
    fn drive_with_pauses(poll: &mut BusyPoll, count: u32, gap: Duration) -> u32 {
        let mut sleeps = 0;
        for round in 0..20_000 {
            let is_pause = round % (count + 1) == count;
            let gap = if is_pause { Duration::from_millis(1) } else { gap };
            let window = poll.window(Awaited::Request).min(gap);
            poll.polled(window);
            if window == gap {
                poll.found(Awaited::Request, gap);
            } else {
                sleeps += u32::from(round >= 15_000);
                poll.woken(Awaited::Request, window, gap - window);
            }
        }
        sleeps
    }

    #[test]
    fn polls_are_not_taken_to_be_in_the_way_of_a_driver_that_pauses() {
        for (count, gap) in [(99, 3), (99, 10), (4, 10)] {
            for limit in [SOON * 4, SOON * 20, SOON * 100] {
                for was_in_the_way in [false, true] {
                    let mut poll = BusyPoll::new(PollTime::Fixed(limit));
                    if was_in_the_way {
                        drive_on_one_processor(&mut poll, Awaited::Request, &[]);
                    }
                    let sleeps = drive_with_pauses(&mut poll, count, Duration::from_micros(gap));
                    let pauses = 5000 / (count + 1);
                    let what = format!("{count} {gap} us {limit:?} {was_in_the_way}");
                    assert!(sleeps <= 2 * pauses, "{what}: {sleeps} sleeps, {pauses} pauses");
                }
            }
        }
    }

    #[test]
    fn without_a_window_the_thread_always_sleeps() {
        let mut poll = BusyPoll::new(PollTime::NEVER);
        poll.woken(Awaited::Request, Duration::ZERO, Duration::ZERO);
        assert_eq!((poll.window(Awaited::Request), poll.is_enabled()), (Duration::ZERO, false));
    }

    #[test]
    fn the_limit_follows_the_cost_of_a_notification_and_not_what_ran_between() {
        let mut poll = BusyPoll::new(PollTime::Learnt);
        assert_eq!(poll.limit(), LEAST);
        poll.notified(SOON);
        assert_eq!(poll.limit(), SOON * NOTIFICATIONS);
        poll.notified(Duration::from_secs(1));
        assert!(poll.limit() < SOON * (NOTIFICATIONS + NOTIFICATIONS / 10));
        poll.notified(Duration::from_nanos(1));
        assert_eq!(poll.limit(), LEAST);
        (0..1000).for_each(|_| poll.notified(Duration::from_secs(1)));
        assert_eq!(poll.limit(), LEAST, "a nanosecond's sixteenth is none");
    }
}
