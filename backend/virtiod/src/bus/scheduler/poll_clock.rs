//! Time, counted in polls of the rings.
//!
//! Reading the time between two polls would take longer than the polls do (`clock.rs`). How long
//! one poll takes is measured now and then instead.

use std::time::Duration;

/// Polls that are measured together.
pub(super) const MEASURED: u32 = 32;
/// Full windows between two measurements.
const RARELY: u32 = 64;

/// How long a poll takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PollClock {
    each: Duration,
    until_measured: u32,
}

impl Default for PollClock {
    fn default() -> Self {
        Self { each: Duration::from_micros(1), until_measured: 0 }
    }
}

impl PollClock {
    /// The number of polls that take `time`.
    pub(super) fn polls_within(self, time: Duration) -> u32 {
        let polls = time.as_nanos() / self.each.as_nanos().max(1);
        u32::try_from(polls).unwrap_or(u32::MAX)
    }

    /// The time that so many polls take.
    pub(super) fn time_of(self, polls: u32) -> Duration {
        self.each.saturating_mul(polls)
    }

    /// Whether [`MEASURED`] polls are to be measured now. Asked after each full window.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.until_measured == 0;
        self.until_measured = self.until_measured.saturating_sub(1);
        due
    }

    /// [`MEASURED`] polls, none of which found anything, took `time`.
    pub(super) fn measured(&mut self, time: Duration) {
        (self.each, self.until_measured) = (time / MEASURED, RARELY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_polls_and_polls_are_time() {
        let clock = PollClock { each: Duration::from_micros(2), until_measured: 0 };
        assert_eq!(clock.polls_within(clock.time_of(50)), 50);
        assert_eq!(clock.time_of(50), Duration::from_micros(100));
        let stopped = PollClock { each: Duration::ZERO, until_measured: 0 };
        assert_eq!(stopped.polls_within(Duration::from_nanos(7)), 7);
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
}
