//! How long an idle queue is looked at before the thread sleeps.
//!
//! A signal costs the guest a hypercall and this side a wake-up, several times what a small request takes.
//! A driver that is about to put the next request into its ring is therefore waited for by looking at the
//! ring. How long is learnt, as KVM does for halting processors: the window grows while the driver's
//! signals come soon after the thread fell asleep, and is gone once they do not.

use std::time::Duration;

/// The first window.
const FIRST: Duration = Duration::from_micros(20);

/// What was learnt of a driver.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    most: Duration,
    window: Duration,
}

impl Patience {
    /// Nothing is known yet. `most`: the longest window; none for a thread that always sleeps.
    pub fn new(most: Duration) -> Self {
        Self { most, window: Duration::ZERO }
    }

    /// Whether the thread ever looks.
    pub fn is_ever(self) -> bool {
        !self.most.is_zero()
    }

    /// How long to look.
    pub fn window(self) -> Duration {
        self.window
    }

    /// The driver's signal came that long after the rings were last found empty.
    pub fn woken(&mut self, after: Duration) {
        self.window = if after > self.most {
            Duration::ZERO
        } else {
            (self.window * 2).max(FIRST).min(self.most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(50);
    const MOST: Duration = Duration::from_micros(100);

    #[test]
    fn the_window_grows_while_signals_come_soon_and_is_gone_when_they_do_not() {
        let mut patience = Patience::new(MOST);
        assert_eq!(patience.window(), Duration::ZERO);
        patience.woken(SOON);
        assert_eq!(patience.window(), FIRST);
        (0..10).for_each(|_| patience.woken(SOON));
        assert_eq!(patience.window(), MOST);
        patience.woken(2 * MOST);
        assert_eq!(patience.window(), Duration::ZERO);
    }

    #[test]
    fn without_a_window_a_thread_always_sleeps() {
        let mut patience = Patience::new(Duration::ZERO);
        patience.woken(Duration::ZERO);
        assert_eq!(patience.window(), Duration::ZERO);
    }
}
