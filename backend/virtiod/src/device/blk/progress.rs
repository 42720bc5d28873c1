//! Long operations, which the device does in parts: the bus handles everything else between them.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The progress of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All of it is done.
    Done,
    /// A part is left; the caller continues later.
    Unfinished,
}

/// The time for which the bus can wait. It starts at the first check: most requests are done
/// without a check, and to read the clock may cost as much as the request.
#[derive(Debug)]
pub struct Deadline {
    time: Duration,
    end: Cell<Option<Instant>>,
}

impl Deadline {
    /// A deadline that is over this time after the first check.
    pub fn after(time: Duration) -> Self {
        Self { time, end: Cell::new(None) }
    }

    /// Checks whether the time is over.
    pub fn is_over(&self) -> bool {
        let now = Instant::now();
        let end = self.end.get().unwrap_or_else(|| now + self.time);
        self.end.set(Some(end));
        now >= end
    }
}

/// The size of the parts of a long operation: as much as takes about a fixed time, learned from the
/// duration of earlier parts.
#[derive(Clone, Copy, Debug)]
pub struct PartSize(u64);

impl PartSize {
    const FIRST: u64 = 4 << 20;
    const LEAST: u64 = 1 << 20;
    const MOST: u64 = 1 << 30;
    /// The duration of a part: at least `SHORT`, so that the fixed cost of a call does not
    /// dominate, and at most `LONG`.
    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_millis(50);

    /// The end of a part of the range from `start` to `end`: a multiple of `granularity`, except at
    /// the end of the range.
    pub fn end(self, start: u64, end: u64, granularity: u64) -> u64 {
        let granularity = granularity.max(1);
        let wanted = start.saturating_add(self.0);
        let aligned = wanted - wanted % granularity;
        let least = (start - start % granularity).saturating_add(granularity);
        aligned.max(least).min(end)
    }

    /// Adapts the size to the duration of a part that ends at `at` of a range that ends at `end`.
    /// The last part may be small, and then does not tell how long a whole one takes.
    pub fn learn(&mut self, at: u64, end: u64, took: Duration) {
        self.0 = if took > Self::LONG {
            (self.0 / 2).max(Self::LEAST)
        } else if took < Self::SHORT && at < end {
            (self.0 * 2).min(Self::MOST)
        } else {
            self.0
        };
    }
}

impl Default for PartSize {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_starts_at_the_first_check() {
        assert!(Deadline::after(Duration::ZERO).is_over());
        let deadline = Deadline::after(Duration::from_millis(1));
        assert!(!deadline.is_over());
        while !deadline.is_over() {}
        assert!(deadline.is_over());
    }

    #[test]
    fn part_size_grows_when_fast_and_shrinks_when_slow() {
        let mut size = PartSize::default();
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::FIRST);
        (0..100).for_each(|_| size.learn(4096, 4096, Duration::ZERO));
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::FIRST);
        (0..100).for_each(|_| size.learn(0, u64::MAX, Duration::ZERO));
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::MOST);
        (0..100).for_each(|_| size.learn(4096, 4096, Duration::from_secs(1)));
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::LEAST);
        size.learn(0, u64::MAX, PartSize::LONG);
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::LEAST);
    }

    #[test]
    fn parts_end_at_the_granularity_or_the_end_of_the_range() {
        let size = PartSize(1 << 20);
        assert_eq!(size.end(512, 10 << 20, 65536), 1 << 20);
        assert_eq!(size.end(1 << 20, 10 << 20, 65536), 2 << 20);
        assert_eq!(size.end(9 << 20, (9 << 20) + 512, 65536), (9 << 20) + 512);
        // A granularity larger than the part, and not a power of two.
        assert_eq!(size.end(512, 1 << 40, 3 << 20), 3 << 20);
        assert_eq!(size.end(3 << 20, 1 << 40, 3 << 20), 6 << 20);
        assert_eq!(size.end(0, 4096, 0), 4096);
    }
}
