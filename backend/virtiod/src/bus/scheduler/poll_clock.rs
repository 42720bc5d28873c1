//! Time, counted in polls of the rings.
//!
//! Reading the time between two polls would take longer than the polls do (`clock.rs`). How long
//! one poll takes is measured now and then instead.

use std::time::Duration;

use super::busy_poll::nanoseconds;

/// Polls that are measured together.
pub(super) const MEASURED: u32 = 32;
/// Windows that ended in vain between two measurements.
const RARELY: u32 = 64;
/// The shortest time of a poll. It reads memory that another processor writes; a clock that says
/// less does not move as often as polls are made.
const LEAST: Duration = Duration::from_nanos(10);

/// How long a poll takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PollClock {
    each: Duration,
    is_measured: bool,
    until_measured: u32,
}

impl Default for PollClock {
    fn default() -> Self {
        Self { each: Duration::from_micros(1), is_measured: false, until_measured: 0 }
    }
}

impl PollClock {
    /// The number of polls that take `time`.
    pub(super) fn polls_within(self, time: Duration) -> u32 {
        let polls = nanoseconds(time) / nanoseconds(self.each).max(1);
        u32::try_from(polls).unwrap_or(u32::MAX)
    }

    /// The time that so many polls take.
    pub(super) fn time_of(self, polls: u32) -> Duration {
        self.each.saturating_mul(polls)
    }

    /// Whether [`MEASURED`] polls are to be measured now. Asked after each window that ended in
    /// vain, also if no poll fits into it: perhaps one takes less than it did.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.until_measured == 0;
        self.until_measured = self.until_measured.saturating_sub(1);
        due
    }

    /// [`MEASURED`] polls, none of which found anything, took `time`, in which something else may
    /// have run: a poll takes at most twice what it took before.
    pub(super) fn measured(&mut self, time: Duration) {
        let each = (time / MEASURED).max(LEAST);
        self.each = if self.is_measured { each.min(self.each * 2) } else { each };
        (self.is_measured, self.until_measured) = (true, RARELY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_polls_and_polls_are_time() {
        let mut clock = PollClock::default();
        clock.measured(Duration::from_micros(2) * MEASURED);
        assert_eq!(clock.polls_within(clock.time_of(50)), 50);
        assert_eq!(clock.time_of(50), Duration::from_micros(100));
    }

    #[test]
    fn polls_are_measured_rarely_and_again_at_once_where_that_was_cut_short() {
        let mut clock = PollClock::default();
        assert!(clock.is_due() && clock.is_due());
        clock.measured(Duration::from_micros(64));
        assert_eq!(clock.time_of(1), Duration::from_micros(2));
        assert!((0..RARELY).all(|_| !clock.is_due()));
        assert!(clock.is_due());
    }

    #[test]
    fn neither_a_lost_processor_nor_a_coarse_clock_makes_a_poll_what_it_is_not() {
        let mut clock = PollClock::default();
        clock.measured(Duration::from_micros(1) * MEASURED);
        clock.measured(Duration::from_millis(10));
        assert_eq!(clock.time_of(1), Duration::from_micros(2));
        clock.measured(Duration::ZERO);
        assert_eq!(clock.polls_within(Duration::from_micros(200)), 20_000);
        clock.measured(Duration::from_micros(1) * MEASURED);
        assert_eq!(clock.time_of(1), LEAST * 2);
    }
}
