//! Failed devices and the times of their next attempts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Delays after consecutive failures.
const WAITS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// The time of the next attempt for each failed key. A key is kept until the caller drops it, so
/// that one that keeps failing is tried ever more rarely.
#[derive(Debug)]
pub(super) struct Retries<K>(BTreeMap<K, (Backoff, Instant)>);

impl<K> Default for Retries<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Retries<K> {
    /// Notes a failure of `key`.
    pub(super) fn note(&mut self, key: &K, now: Instant) {
        let (backoff, due) = self.0.entry(key.clone()).or_insert((WAITS, now));
        *due = now + backoff.take();
    }

    /// Whether `key` may be tried now.
    pub(super) fn is_due(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_none_or(|(_, due)| *due <= now)
    }

    /// Time until the next key becomes due; [`Duration::MAX`] if none will.
    pub(super) fn until_next(&self, now: Instant) -> Duration {
        let due = self.0.values().map(|(_, due)| *due).filter(|due| *due > now).min();
        due.map_or(Duration::MAX, |due| due - now)
    }

    /// Drops the keys for which `there` returns `false`.
    pub(super) fn keep(&mut self, there: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_delay_the_next_attempt_until_dropped() {
        let (mut retries, mut now) = (Retries::default(), Instant::now());
        assert!(retries.is_due(&"disk", now));
        assert_eq!(retries.until_next(now), Duration::MAX);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            retries.note(&"disk", now);
            assert!(!retries.is_due(&"disk", now));
            assert!(retries.is_due(&"other", now));
            assert_eq!(retries.until_next(now).as_secs(), wait);
            now += retries.until_next(now);
            assert!(retries.is_due(&"disk", now));
        }
        retries.keep(|key| *key != "disk");
        retries.note(&"disk", now);
        assert_eq!(retries.until_next(now).as_secs(), 1);
    }
}
