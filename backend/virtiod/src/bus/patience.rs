//! How long an idle queue is looked at before the thread sleeps.
//!
//! A signal costs the guest a hypercall and this side a wake-up, several times what a small request takes.
//! A driver that is about to put the next request into its ring is therefore waited for by looking at the
//! ring. How long is learnt, as KVM does for halting processors: the window grows while the driver's
//! signals come soon after the thread fell asleep, and is gone once they do not.
//!
//! To look is not worth more than what it saves. So unless somebody set a limit, that is a number of signals,
//! by what one takes here: little on hardware, much where the processor is emulated. And what comes earns only a
//! part of that: a driver whose requests are far between, though near enough to be waited for each time, would
//! have this domain look without a pause for hardly any work of its own.

use std::time::Duration;

use crate::config::PollTime;

/// The first window.
const FIRST: Duration = Duration::from_micros(20);
/// The signals whose time is worth looking for.
const SIGNALS: u32 = 128;
/// The limit is in between these, whatever a signal takes.
const LEAST: Duration = Duration::from_micros(200);
const MOST: Duration = Duration::from_millis(10);

/// What comes earns one of so many parts of the limit to be looked for what follows.
const EARNS: u32 = 8;

/// What was learnt of a driver.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    limit: PollTime,
    /// What a signal takes.
    signal: Duration,
    window: Duration,
    /// What was earned and not spent on looking, at most the limit.
    earned: Duration,
}

impl Patience {
    /// Nothing is known yet.
    pub fn new(limit: PollTime) -> Self {
        let patience =
            Self { limit, signal: Duration::ZERO, window: Duration::ZERO, earned: Duration::ZERO };
        Self { earned: patience.limit(), ..patience }
    }

    /// Whether the thread ever looks.
    pub fn is_ever(self) -> bool {
        !self.limit().is_zero()
    }

    /// How long to look.
    pub fn window(self) -> Duration {
        self.window.min(self.earned)
    }

    /// So long was looked.
    pub fn looked(&mut self, time: Duration) {
        self.earned = self.earned.saturating_sub(time);
    }

    /// A request came, by a signal or seen by looking.
    pub fn came(&mut self) {
        self.earned = (self.earned + self.limit() / EARNS).min(self.limit());
    }

    /// The longest time to look.
    pub fn limit(self) -> Duration {
        match self.limit {
            PollTime::Fixed(limit) => limit,
            PollTime::Learnt => (self.signal * SIGNALS).clamp(LEAST, MOST),
        }
    }

    /// A signal took that long, or longer for something that came between: what it takes is the least of late.
    pub fn signalled(&mut self, took: Duration) {
        let before = self.signal;
        let rising = before + before / 16;
        self.signal = if before.is_zero() { took } else { took.min(rising) };
    }

    /// The driver's signal brought nothing: to look for what may follow it is worth less.
    pub fn in_vain(&mut self) {
        self.window /= 2;
    }

    /// The driver's signal, which brought a request, came that long after the rings were last found empty.
    pub fn woken(&mut self, after: Duration) {
        self.came();
        self.window = if after > self.limit() {
            Duration::ZERO
        } else {
            (self.window * 2).max(FIRST).min(self.limit())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(50);
    const LIMIT: Duration = Duration::from_micros(100);

    #[test]
    fn the_window_grows_while_signals_come_soon_and_is_gone_when_they_do_not() {
        let mut patience = Patience::new(PollTime::Fixed(LIMIT));
        assert_eq!(patience.window(), Duration::ZERO);
        patience.woken(SOON);
        assert_eq!(patience.window(), FIRST);
        (0..10).for_each(|_| patience.woken(SOON));
        assert_eq!(patience.window(), LIMIT);
        patience.woken(2 * LIMIT);
        assert_eq!(patience.window(), Duration::ZERO);
    }

    #[test]
    fn signals_that_bring_nothing_shrink_the_window() {
        let mut patience = Patience::new(PollTime::Fixed(LIMIT));
        (0..10).for_each(|_| patience.woken(SOON));
        (0..40).for_each(|_| patience.in_vain());
        assert_eq!(patience.window(), Duration::ZERO);
    }

    #[test]
    fn requests_far_between_are_not_looked_for_all_the_time() {
        for (gap, share) in [(LIMIT / EARNS / 2, 1.0), (LIMIT / 2, 0.3), (LIMIT * 9 / 10, 0.2)] {
            let mut patience = Patience::new(PollTime::Fixed(LIMIT));
            (0..10).for_each(|_| patience.woken(SOON));
            let mut looked = Duration::ZERO;
            for _ in 0..1000 {
                let window = patience.window().min(gap);
                patience.looked(window);
                looked += window;
                if window == gap { patience.came() } else { patience.woken(gap) }
            }
            let looks = looked.as_secs_f64() / (gap * 1000).as_secs_f64();
            assert!(looks <= share && (share < 1.0 || looks == share), "{gap:?}: {looks}");
        }
    }

    #[test]
    fn without_a_window_a_thread_always_sleeps() {
        let mut patience = Patience::new(PollTime::NEVER);
        patience.woken(Duration::ZERO);
        assert_eq!((patience.window(), patience.is_ever()), (Duration::ZERO, false));
    }

    #[test]
    fn the_limit_follows_what_a_signal_takes_and_not_what_came_between() {
        let mut patience = Patience::new(PollTime::Learnt);
        assert_eq!(patience.limit(), LEAST);
        patience.signalled(SOON);
        assert_eq!(patience.limit(), SOON * SIGNALS);
        patience.signalled(Duration::from_secs(1));
        assert!(patience.limit() < SOON * (SIGNALS + SIGNALS / 10));
        patience.signalled(Duration::from_nanos(1));
        assert_eq!(patience.limit(), LEAST);
        (0..1000).for_each(|_| patience.signalled(Duration::from_secs(1)));
        assert_eq!(patience.limit(), LEAST, "a nanosecond's sixteenth is none");
    }
}
