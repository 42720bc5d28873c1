//! Failed devices and the times of their next attempts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// The time of the next attempt for each failed key, until it is taken. A key is kept until the
/// caller drops it, so that one that keeps failing is tried ever more rarely.
#[derive(Debug)]
pub(super) struct Retries<K> {
    /// The delays after consecutive failures.
    waits: Backoff,
    all: BTreeMap<K, Failed>,
}

/// The failures of a key.
#[derive(Debug)]
struct Failed {
    count: u32,
    backoff: Backoff,
    /// When the next attempt is due, until it is taken.
    due: Option<Instant>,
}

impl<K: Ord + Clone> Retries<K> {
    /// No failures; after each, the next of these delays follows.
    pub(super) fn new(waits: Backoff) -> Self {
        Self { waits, all: BTreeMap::new() }
    }

    /// Notes a failure of `key`.
    pub(super) fn note(&mut self, key: &K, now: Instant) {
        let new = Failed { count: 0, backoff: self.waits, due: None };
        let failed = self.all.entry(key.clone()).or_insert(new);
        failed.count = failed.count.saturating_add(1);
        failed.due = Some(now + failed.backoff.take());
    }

    /// Whether `key` may be tried now.
    pub(super) fn is_due(&self, key: &K, now: Instant) -> bool {
        self.all.get(key).is_none_or(|failed| failed.due.is_none_or(|due| due <= now))
    }

    /// Whether `key` has failed at least so often.
    pub(super) fn is_excessive(&self, key: &K, most: u32) -> bool {
        self.all.get(key).is_some_and(|failed| failed.count >= most)
    }

    /// Takes the keys whose next attempt has become due, each once: no event tells of that.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<K> {
        let due = |due: &mut Option<Instant>| due.take_if(|due| *due <= now).is_some();
        let failed = self.all.iter_mut();
        let keys = failed.filter_map(|(key, failed)| due(&mut failed.due).then_some(key));
        keys.cloned().collect()
    }

    /// Time until the next key becomes due; [`Duration::MAX`] if none will.
    pub(super) fn until_next(&self, now: Instant) -> Duration {
        let due = self.all.values().filter_map(|failed| failed.due).min();
        due.map_or(Duration::MAX, |due| due.saturating_duration_since(now))
    }

    /// Drops a key.
    pub(super) fn drop(&mut self, key: &K) {
        self.all.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

    #[test]
    fn repeated_failures_delay_the_next_attempt_until_dropped() {
        let (mut retries, mut now, mut count) = (Retries::new(WAITS), Instant::now(), 0);
        assert!(retries.is_due(&"disk", now));
        assert_eq!(retries.until_next(now), Duration::MAX);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            retries.note(&"disk", now);
            assert!(!retries.is_due(&"disk", now));
            assert!(retries.is_due(&"other", now));
            assert_eq!(retries.until_next(now).as_secs(), wait);
            assert_eq!(retries.take_due(now), [""; 0]);
            now += retries.until_next(now);
            assert!(retries.is_due(&"disk", now));
            assert_eq!(retries.take_due(now), ["disk"]);
            assert_eq!(retries.take_due(now), [""; 0], "once");
            count += 1;
            assert!(retries.is_excessive(&"disk", count) && !retries.is_excessive(&"other", 1));
            assert!(!retries.is_excessive(&"disk", count + 1));
            assert_eq!(retries.until_next(now), Duration::MAX);
            assert!(retries.is_due(&"disk", now));
        }
        retries.drop(&"disk");
        retries.note(&"disk", now);
        assert_eq!(retries.until_next(now).as_secs(), 1);
    }
}
