//! Rate-limits the log lines that a guest can cause.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::excerpt::excerpt;

/// Maximum number of lines in a burst.
const BURST: u32 = 20;
/// Time after which the bucket gains a line.
const REFILL: Duration = Duration::from_secs(5);

/// A token bucket of lines, one for all devices of a guest: a misbehaving guest does not fill a
/// disk, even if its devices are removed and created in a loop.
#[derive(Debug)]
pub struct GuestLog(Mutex<LineBucket>);

#[derive(Debug)]
struct LineBucket {
    left: u32,
    since: Instant,
    dropped: u64,
}

impl Default for GuestLog {
    fn default() -> Self {
        Self(Mutex::new(LineBucket { left: BURST, since: Instant::now(), dropped: 0 }))
    }
}

impl GuestLog {
    /// Logs a line, truncated, at ERROR, WARN or INFO, unless the bucket is empty.
    pub fn line(&self, level: Level, what: fmt::Arguments<'_>) {
        let mut bucket = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(dropped) = bucket.take(Instant::now()) else {
            return;
        };
        drop(bucket);
        if dropped > 0 {
            tracing::warn!("{dropped} line(s) about this guest were suppressed");
        }
        let what = excerpt(&what.to_string());
        match level {
            Level::ERROR => tracing::error!("{what}"),
            Level::WARN => tracing::warn!("{what}"),
            _ => tracing::info!("{what}"),
        }
    }
}

impl LineBucket {
    /// Takes a line if the bucket is not empty; returns the number of lines refused since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let periods = now.duration_since(self.since).as_secs() / REFILL.as_secs();
        if periods > 0 {
            let refill = u32::try_from(periods).unwrap_or(BURST);
            self.left = self.left.saturating_add(refill).min(BURST);
            self.since = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.dropped += 1;
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excess_lines_are_suppressed_and_counted() {
        let start = Instant::now();
        let mut bucket = LineBucket { left: BURST, since: start, dropped: 0 };
        let taken = (0..1000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(taken, BURST as usize);
        assert_eq!(bucket.take(start + REFILL), Some(1000 - u64::from(BURST)));
        assert_eq!(bucket.take(start + REFILL), None);
    }
}
