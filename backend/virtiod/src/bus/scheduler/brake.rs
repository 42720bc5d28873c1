//! Doorbells that bring no work.
//!
//! An event costs this domain a wake-up, many times what sending it costs the guest. A port is
//! unmasked for the next event when this one has been dealt with, so events that bring work are as
//! many as the work; ports whose events bring none stay masked ever longer (XSA-332). A few such
//! events are normal: a doorbell may come for a request that polling has found already.

use std::time::{Duration, Instant};

use super::clock::Clock;
use crate::backoff::Backoff;

/// Iterations in vain that are not held against the guest.
const FREE: u32 = 16;
/// How long ports stay masked after these.
const WAITS: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(64));

/// What an iteration brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IterationProgress {
    /// A request, a message, or something from this side.
    Some,
    /// No work, though the guest sent events.
    InVain,
    /// No work, and no event.
    None,
}

/// When ports are unmasked.
#[derive(Debug)]
pub(super) struct Brake {
    /// Iterations in vain, one after another.
    vain: u32,
    waits: Backoff,
    until: Option<Instant>,
}

impl Default for Brake {
    fn default() -> Self {
        Self { vain: 0, waits: WAITS, until: None }
    }
}

impl Brake {
    /// An iteration is over. Whether all ports whose events were dealt with may be unmasked now;
    /// else the thread wakes up for it later. Reads the time only where it matters.
    pub(super) fn may_unmask(&mut self, progress: IterationProgress, clock: &impl Clock) -> bool {
        match progress {
            IterationProgress::Some => {
                (self.vain, self.waits) = (0, WAITS);
                self.until = None;
            }
            IterationProgress::InVain => {
                self.vain = self.vain.saturating_add(1);
                if self.vain > FREE {
                    self.until.get_or_insert_with(|| clock.now() + self.waits.take());
                }
            }
            IterationProgress::None => {}
        }
        let open = self.until.is_none_or(|until| until <= clock.now());
        if open {
            self.until = None;
        }
        open
    }

    /// How long until masked ports may be unmasked; `None` if none is kept masked.
    pub(super) fn until_unmask(&self, clock: &impl Clock) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::fake::FakeClock;
    use super::*;

    #[test]
    fn events_in_vain_are_taken_ever_more_rarely_and_work_ends_that() {
        let (mut brake, clock) = (Brake::default(), FakeClock::default());
        for _ in 0..FREE {
            assert!(brake.may_unmask(IterationProgress::InVain, &clock));
        }
        for wait in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert!(!brake.may_unmask(IterationProgress::InVain, &clock));
            let left = brake.until_unmask(&clock).unwrap();
            assert_eq!(left.as_millis(), wait);
            assert!(!brake.may_unmask(IterationProgress::None, &clock), "before its time");
            clock.pass(left);
            assert!(brake.may_unmask(IterationProgress::None, &clock));
            assert_eq!(brake.until_unmask(&clock), None);
        }
        assert!(!brake.may_unmask(IterationProgress::InVain, &clock));
        assert!(brake.may_unmask(IterationProgress::Some, &clock));
        assert!(brake.may_unmask(IterationProgress::InVain, &clock));
    }

    #[test]
    fn iterations_without_events_are_nobodys_fault_and_cost_no_system_call() {
        let (mut brake, clock) = (Brake::default(), FakeClock::default());
        (0..100).for_each(|_| assert!(brake.may_unmask(IterationProgress::None, &clock)));
        assert!(brake.may_unmask(IterationProgress::InVain, &clock));
        assert_eq!(clock.reads.get(), 0);
    }
}
