//! Long operations, which are done in parts: between two of them the bus looks at everything else.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Whether an operation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All of it.
    Done,
    /// Not all of it: it is to be gone on with.
    Unfinished,
}

/// Until when the bus can wait. The time runs from the first time that it is asked for: most
/// requests are done without that, and to ask the clock may cost as much as they do.
#[derive(Debug)]
pub struct Deadline {
    time: Duration,
    end: Cell<Option<Instant>>,
}

impl Deadline {
    /// So long from the first time that it is asked for.
    pub fn after(time: Duration) -> Self {
        Self { time, end: Cell::new(None) }
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        let now = Instant::now();
        let end = self.end.get().unwrap_or_else(|| now + self.time);
        self.end.set(Some(end));
        now >= end
    }
}

/// How much of a range to do at once: as much as takes about a fixed time, learned from what the
/// parts before took.
#[derive(Clone, Copy, Debug)]
pub struct PartSize(u64);

impl PartSize {
    const FIRST: u64 = 4 << 20;
    const LEAST: u64 = 1 << 20;
    const MOST: u64 = 1 << 30;
    /// What a part should take: at least, lest what each call takes anyway is most of it, and at
    /// most.
    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_millis(50);

    /// Where a part of the range from `start` to `end` ends: at a multiple of `granularity`, if it
    /// is not the last.
    pub fn end(self, start: u64, end: u64, granularity: u64) -> u64 {
        let granularity = granularity.max(1);
        let wanted = start.saturating_add(self.0);
        let aligned = wanted - wanted % granularity;
        let least = (start - start % granularity).saturating_add(granularity);
        aligned.max(least).min(end)
    }

    /// Learns from what a part took.
    pub fn learn(&mut self, took: Duration) {
        self.0 = if took > Self::LONG {
            (self.0 / 2).max(Self::LEAST)
        } else if took < Self::SHORT {
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
    fn time_runs_when_it_is_asked_for() {
        assert!(Deadline::after(Duration::ZERO).is_over());
        let deadline = Deadline::after(Duration::from_millis(1));
        assert!(!deadline.is_over());
        while !deadline.is_over() {}
        assert!(deadline.is_over());
    }

    #[test]
    fn parts_grow_while_they_are_quick_and_shrink_while_they_are_slow() {
        let mut size = PartSize::default();
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::FIRST);
        (0..100).for_each(|_| size.learn(Duration::ZERO));
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::MOST);
        (0..100).for_each(|_| size.learn(Duration::from_secs(1)));
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::LEAST);
        size.learn(PartSize::LONG);
        assert_eq!(size.end(0, u64::MAX, 512), PartSize::LEAST);
    }

    #[test]
    fn parts_end_at_multiples_of_the_granularity_or_of_the_range() {
        let size = PartSize(1 << 20);
        assert_eq!(size.end(512, 10 << 20, 65536), 1 << 20);
        assert_eq!(size.end(1 << 20, 10 << 20, 65536), 2 << 20);
        assert_eq!(size.end(9 << 20, (9 << 20) + 512, 65536), (9 << 20) + 512);
        // One that is larger than the part, and not a power of two.
        assert_eq!(size.end(512, 1 << 40, 3 << 20), 3 << 20);
        assert_eq!(size.end(3 << 20, 1 << 40, 3 << 20), 6 << 20);
        assert_eq!(size.end(0, 4096, 0), 4096);
    }
}
