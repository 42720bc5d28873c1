//! What the driver keeps of a device's configuration, so that a device which changes it without end
//! does not keep the driver busy without end.

/// How long the generation may differ at every look before the device is given up, in milliseconds:
/// as long as one answer may take (SPEC section 7).
pub const CHANGING_LIMIT: u64 = 10_000;

/// Whether a reading of the configuration can ever end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The generation stands still, or may do so soon.
    GoOn,
    /// It differed at every look for [`CHANGING_LIMIT`]: no reading will be consistent.
    GiveUp,
}

/// The generations that the driver saw. It looks before it reads and after, and reads again while
/// they differ [6.6].
///
/// All zeros is how it begins.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Generations {
    last: u32,
    /// 1 while every look found another generation than the one before.
    changing: u32,
    /// When that began, in milliseconds.
    since: u64,
}

impl Generations {
    /// Takes note of a look at the generation. `now` is in milliseconds, of a clock that does not
    /// go back.
    pub fn look(&mut self, generation: u32, now: u64) -> Reading {
        if generation == self.last {
            self.changing = 0;
            return Reading::GoOn;
        }
        self.last = generation;
        if self.changing == 0 {
            (self.changing, self.since) = (1, now);
        }
        let lasted = now.saturating_sub(self.since);
        if lasted < CHANGING_LIMIT { Reading::GoOn } else { Reading::GiveUp }
    }
}

/// What the device's latest EVENT_CONFIG told.
///
/// All zeros is how it begins.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Announced {
    /// 1 once there was one.
    any: u32,
    status: u32,
    generation: u32,
}

impl Announced {
    /// Takes note of an EVENT_CONFIG: whether it tells something that the one before did not. One
    /// that does not is dealt with all the same, but its interrupt came for nothing.
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
    fn spec_6_6_a_generation_that_stands_still_is_read_as_often_as_one_likes() {
        let mut seen = Generations::default();
        for now in (0..100 * CHANGING_LIMIT).step_by(1000) {
            assert_eq!(seen.look(5, now), Reading::GoOn);
        }
    }

    #[test]
    fn spec_6_6_a_generation_that_changes_at_every_look_is_given_up_in_time() {
        let mut seen = Generations::default();
        let mut look = |generation, now| seen.look(generation, now);
        for now in 0..CHANGING_LIMIT {
            assert_eq!(look(now as u32 + 1, 7 + now), Reading::GoOn, "after {now} ms");
        }
        assert_eq!(look(77_777, 7 + CHANGING_LIMIT), Reading::GiveUp);
    }

    #[test]
    fn spec_6_6_a_generation_that_goes_to_and_fro_is_given_up_too() {
        let mut seen = Generations::default();
        assert_eq!(seen.look(1, 0), Reading::GoOn);
        assert_eq!(seen.look(2, CHANGING_LIMIT / 2), Reading::GoOn);
        assert_eq!(seen.look(1, CHANGING_LIMIT), Reading::GiveUp);
    }

    /// A reading ends with two looks that find the same.
    #[test]
    fn spec_6_6_changes_that_are_read_one_by_one_never_add_up() {
        let mut seen = Generations::default();
        for change in 1..1000 {
            let now = u64::from(change) * CHANGING_LIMIT;
            assert_eq!(seen.look(change, now), Reading::GoOn);
            assert_eq!(seen.look(change, now + 1), Reading::GoOn);
        }
    }

    #[test]
    fn an_event_that_repeats_the_one_before_is_no_news() {
        let mut announced = Announced::default();
        assert!(announced.is_news(0, 0), "the first, whatever it tells");
        assert!(!announced.is_news(0, 0));
        assert!(announced.is_news(0, 1));
        assert!(announced.is_news(64, 1));
        assert!(!announced.is_news(64, 1));
    }
}
