//! Failed devices and the times of their next attempts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Delays after consecutive failures.
const WAITS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// The time of the next attempt for each failed key, until it is taken. A key is kept until the
/// caller drops it, so that one that keeps failing is tried ever more rarely.
#[derive(Debug)]
pub(super) struct Retries<K>(BTreeMap<K, (Backoff, Option<Instant>)>);

impl<K> Default for Retries<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Retries<K> {
    /// Notes a failure of `key`.
    pub(super) fn note(&mut self, key: &K, now: Instant) {
        let (backoff, due) = self.0.entry(key.clone()).or_insert((WAITS, None));
        *due = Some(now + backoff.take());
    }

    /// Whether `key` may be tried now.
    pub(super) fn is_due(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_none_or(|(_, due)| due.is_none_or(|due| due <= now))
    }

    /// Takes the keys whose next attempt has become due, each once: no event tells of that.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<K> {
        let due = |due: &mut Option<Instant>| due.take_if(|due| *due <= now).is_some();
        let keys = self.0.iter_mut().filter_map(|(key, (_, at))| due(at).then_some(key));
        keys.cloned().collect()
    }

    /// Time until the next key becomes due; [`Duration::MAX`] if none will.
    pub(super) fn until_next(&self, now: Instant) -> Duration {
        let due = self.0.values().filter_map(|(_, due)| *due).min();
        due.map_or(Duration::MAX, |due| due.saturating_duration_since(now))
    }

    /// Drops a key.
    pub(super) fn drop(&mut self, key: &K) {
        self.0.remove(key);
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
            assert_eq!(retries.take_due(now), [""; 0]);
            now += retries.until_next(now);
            assert!(retries.is_due(&"disk", now));
            assert_eq!(retries.take_due(now), ["disk"]);
            assert_eq!(retries.take_due(now), [""; 0], "once");
            assert_eq!(retries.until_next(now), Duration::MAX);
            assert!(retries.is_due(&"disk", now));
        }
        retries.drop(&"disk");
        retries.note(&"disk", now);
        assert_eq!(retries.until_next(now).as_secs(), 1);
    }
}
