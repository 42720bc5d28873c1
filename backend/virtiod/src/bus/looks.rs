//! Time, counted in looks at the rings.
//!
//! Asking the kernel for the time is a system call where there is no clock that a process can read, as in
//! most domains of Xen's. Between two looks at a ring that would take longer than the looks do. How long a
//! look takes is measured now and then instead.

use std::time::{Duration, Instant};

/// Looks that are measured together.
const MEASURED: u32 = 32;
/// Waits between two measurements.
const RARELY: u32 = 64;

/// How long a look takes.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    each: Duration,
    until_measured: u32,
}

impl Default for Looks {
    fn default() -> Self {
        Self { each: Duration::from_micros(1), until_measured: 0 }
    }
}

impl Looks {
    /// How many take that long.
    pub fn within(self, time: Duration) -> u32 {
        let looks = time.as_nanos() / self.each.as_nanos().max(1);
        u32::try_from(looks).unwrap_or(u32::MAX)
    }

    /// How long so many take.
    pub fn time(self, looks: u32) -> Duration {
        self.each.saturating_mul(looks)
    }

    /// Measures looks if it is time to. `look` says whether something was seen, which ends it.
    pub fn measure(&mut self, mut look: impl FnMut() -> bool) -> bool {
        if self.until_measured > 0 {
            self.until_measured -= 1;
            return false;
        }
        let start = Instant::now();
        if (0..MEASURED).any(|_| look()) {
            return true;
        }
        (self.each, self.until_measured) = (start.elapsed() / MEASURED, RARELY);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_looks_and_looks_are_time() {
        let looks = Looks { each: Duration::from_micros(2), until_measured: 0 };
        assert_eq!(looks.within(looks.time(50)), 50);
        assert_eq!(looks.time(50), Duration::from_micros(100));
        let stopped = Looks { each: Duration::ZERO, until_measured: 0 };
        assert_eq!(stopped.within(Duration::from_nanos(7)), 7);
    }

    #[test]
    fn looks_are_measured_rarely_and_not_when_something_was_seen() {
        let mut looks = Looks::default();
        let mut count = 0;
        assert!(looks.measure(|| true));
        assert!(!looks.measure(|| {
            count += 1;
            false
        }));
        assert_eq!(count, MEASURED);
        assert!((0..RARELY).all(|_| !looks.measure(|| panic!("too soon"))));
        assert!(looks.measure(|| true));
    }
}
