//! State that bounds the driver's work for a device which changes its configuration without end.

/// How long the generation may differ at every check before the driver gives the device up, in
/// milliseconds: as long as one answer may take (SPEC 7.24, 7.27).
pub const CHANGING_LIMIT: u64 = 10_000;

/// Whether the driver can still get a consistent copy of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Continue: the generation is the same as before, or has not differed for too long yet.
    Continue,
    /// Give the device up: the generation differed at every check for [`CHANGING_LIMIT`].
    GiveUp,
}

/// The generations that the driver has seen. The driver checks the generation before and after it
/// reads, and reads again while they differ [6.6].
///
/// The initial value is all zeros, so that C can zero it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Generations {
    last: u32,
    /// 1 while every check finds another generation than the one before.
    changing: u32,
    /// The time of the first such check, in milliseconds.
    since: u64,
}

impl Generations {
    /// Records the generation that a check found. `now` is in milliseconds, from a monotonic clock.
    pub fn observe(&mut self, generation: u32, now: u64) -> Reading {
        if generation == self.last {
            self.changing = 0;
            return Reading::Continue;
        }
        self.last = generation;
        if self.changing == 0 {
            (self.changing, self.since) = (1, now);
        }
        let lasted = now.saturating_sub(self.since);
        if lasted < CHANGING_LIMIT { Reading::Continue } else { Reading::GiveUp }
    }
}

/// The content of the device's latest EVENT_CONFIG.
///
/// The initial value is all zeros, so that C can zero it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Announced {
    /// 1 after the first EVENT_CONFIG.
    any: u32,
    status: u32,
    generation: u32,
}

impl Announced {
    /// Records an EVENT_CONFIG; returns whether its status or generation differs from the one
    /// before. The driver handles a repeated event as well, but counts its interrupt as spurious.
    pub fn is_news(&mut self, status: u32, generation: u32) -> bool {
        let before = *self;
        *self = Self { any: 1, status, generation };
        before.any == 0 || (before.status, before.generation) != (status, generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_6_6_constant_generation_may_be_checked_without_limit() {
        let mut seen = Generations::default();
        for now in (0..100 * CHANGING_LIMIT).step_by(1000) {
            assert_eq!(seen.observe(5, now), Reading::Continue);
        }
    }

    #[test]
    fn spec_6_6_generation_that_differs_at_every_check_is_given_up_after_the_limit() {
        let mut seen = Generations::default();
        let mut look = |generation, now| seen.observe(generation, now);
        for now in 0..CHANGING_LIMIT {
            assert_eq!(look(now as u32 + 1, 7 + now), Reading::Continue, "after {now} ms");
        }
        assert_eq!(look(77_777, 7 + CHANGING_LIMIT), Reading::GiveUp);
    }

    #[test]
    fn spec_6_6_alternating_generation_is_given_up() {
        let mut seen = Generations::default();
        assert_eq!(seen.observe(1, 0), Reading::Continue);
        assert_eq!(seen.observe(2, CHANGING_LIMIT / 2), Reading::Continue);
        assert_eq!(seen.observe(1, CHANGING_LIMIT), Reading::GiveUp);
    }

    /// A read of the configuration ends when two checks find the same generation.
    #[test]
    fn spec_6_6_changes_between_complete_reads_do_not_add_up() {
        let mut seen = Generations::default();
        for change in 1..1000 {
            let now = u64::from(change) * CHANGING_LIMIT;
            assert_eq!(seen.observe(change, now), Reading::Continue);
            assert_eq!(seen.observe(change, now + 1), Reading::Continue);
        }
    }

    #[test]
    fn repeated_config_event_is_no_news() {
        let mut announced = Announced::default();
        assert!(announced.is_news(0, 0), "the first event is news");
        assert!(!announced.is_news(0, 0));
        assert!(announced.is_news(0, 1));
        assert!(announced.is_news(64, 1));
        assert!(!announced.is_news(64, 1));
    }
}
