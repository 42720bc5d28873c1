//! Limits to what a device transfers in a second.

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use super::Source;

/// The time for which an idle device accumulates credit, if nothing else is set.
const BURST: Duration = Duration::from_secs(1);
/// Maximum time until a limit is looked at again for a transfer that waits: it may have changed.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Suffixes of a rate. A suffix precedes those that it ends with.
const UNITS: &[(&str, u64)] = &[
    ("KiB/s", 1 << 10),
    ("MiB/s", 1 << 20),
    ("GiB/s", 1 << 30),
    ("kB/s", 1_000),
    ("MB/s", 1_000_000),
    ("GB/s", 1_000_000_000),
    ("B/s", 1),
];

/// A rate in bytes per second, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate(NonZeroU64);

/// The given text is not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rate: a whole number above 0 with B/s, kB/s, KiB/s, MB/s, MiB/s, GB/s or \
         GiB/s behind it, as in \"64KiB/s\""
)]
pub struct NotARate(String);

impl Rate {
    /// Bytes in a second.
    pub fn bytes(self) -> NonZeroU64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let split = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
        let parsed = split.and_then(|(number, bytes)| {
            let number = number.trim_end();
            // parse() alone would accept a sign.
            let plain = number.bytes().all(|digit| digit.is_ascii_digit());
            let number: u64 = number.parse().ok().filter(|_| plain)?;
            NonZeroU64::new(number.checked_mul(*bytes)?)
        });
        parsed.map(Self).ok_or_else(|| NotARate(text.to_owned()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B/s", self.0)
    }
}

/// A token bucket. One instant represents its contents: when all transferred units are paid for. A
/// debt is allowed, so that the device serves a request larger than the bucket and waits
/// afterwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBucket {
    /// Units in a second, such as bytes.
    rate: NonZeroU64,
    /// The time for which an idle device accumulates credit.
    burst: Duration,
    paid: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub(super) fn new(rate: NonZeroU64, burst: Duration, now: Instant) -> Self {
        Self { rate, burst, paid: now.checked_sub(burst).unwrap_or(now) }
    }

    /// Takes units out.
    pub(super) fn spend(&mut self, units: u64, now: Instant) {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let paid = self.paid.max(earliest);
        self.paid = paid.checked_add(self.time(units)).unwrap_or(paid);
    }

    /// The time that so many units take.
    fn time(&self, units: u64) -> Duration {
        let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(self.rate.get());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// The time until the next transfer is allowed; `None` if it is allowed now.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.paid.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

/// A rate limit that may change while a device keeps it; 0 is none. It orders nothing: a device
/// that reads an earlier value keeps it for one transfer more.
#[derive(Debug, Default)]
pub struct SharedRate(AtomicU64);

impl SharedRate {
    /// This limit, or none.
    pub fn new(rate: Option<Rate>) -> Self {
        let shared = Self::default();
        shared.set(rate);
        shared
    }

    /// Replaces the limit.
    pub fn set(&self, rate: Option<Rate>) {
        self.0.store(rate.map_or(0, |rate| rate.bytes().get()), Ordering::Relaxed);
    }

    /// The limit.
    #[cfg(test)]
    pub(crate) fn rate(&self) -> Option<Rate> {
        self.bytes().map(Rate)
    }

    fn bytes(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.0.load(Ordering::Relaxed))
    }
}

/// Limits a device to a rate without sleeping: a timer becomes ready when the next transfer is
/// allowed, or when the limit is to be looked at again.
#[derive(Debug, Default)]
pub struct Limiter {
    rate: Arc<SharedRate>,
    /// None without a limit.
    bucket: Option<TokenBucket>,
    /// Made for the first wait.
    timer: Option<TimerFd>,
    /// Whether the timer is set.
    is_waiting: bool,
}

impl Limiter {
    /// A limiter that allows one second's bytes at once.
    pub fn new(rate: Arc<SharedRate>) -> Self {
        Self { rate, ..Self::default() }
    }

    /// Whether a transfer is allowed now. If not, the source becomes ready later.
    ///
    /// # Errors
    /// The kernel's, if there is no timer, or it cannot be set.
    pub fn is_open(&mut self) -> nix::Result<bool> {
        let rate = self.rate.bytes();
        if self.bucket.map(|bucket| bucket.rate) != rate {
            self.bucket = rate.map(|rate| TokenBucket::new(rate, BURST, Instant::now()));
        }
        let Some(left) = self.bucket.and_then(|bucket| bucket.wait(Instant::now())) else {
            // Disarm the timer, so that it does not stay ready.
            if std::mem::take(&mut self.is_waiting) {
                self.timer.as_ref().map_or(Ok(()), TimerFd::unset)?;
            }
            return Ok(true);
        };
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
                none.insert(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?)
            }
        };
        self.is_waiting = true;
        let wait = TimeSpec::from_duration(left.min(LONGEST_SLEEP));
        timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?;
        Ok(false)
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.bucket.is_some()
    }

    /// Whether the next transfer waits for the timer.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Counts transferred bytes.
    pub fn spend(&mut self, bytes: u64) {
        self.bucket.iter_mut().for_each(|bucket| bucket.spend(bytes, Instant::now()));
    }

    /// The timer, which tells when to ask again, while the next transfer waits for it.
    pub fn source(&self) -> Option<Source<'_>> {
        let timer = self.timer.as_ref().filter(|_| self.is_waiting);
        timer.map(|timer| Source::readable(timer.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn rate_is_a_number_with_a_unit() {
        for (text, bytes) in [
            ("1B/s", 1),
            ("64KiB/s", 65536),
            ("64 KiB/s", 65536),
            ("2kB/s", 2000),
            ("3MiB/s", 3 << 20),
            ("3MB/s", 3_000_000),
            ("1GiB/s", 1 << 30),
            ("1GB/s", 1_000_000_000),
        ] {
            assert_eq!(rate(text).0.get(), bytes, "{text}");
        }
        for text in ["", "64", "0B/s", "B/s", "+1B/s", "-1B/s", "1.5MiB/s", "1KiB", "1 /s", "x"] {
            assert_eq!(text.parse::<Rate>(), Err(NotARate(text.to_owned())), "{text}");
        }
        assert!("18446744073709551615KiB/s".parse::<Rate>().is_err(), "more than 64 bits");
    }

    #[test]
    fn token_bucket_allows_one_second_at_once_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate("1000B/s").0, BURST, start);
        bucket.spend(1000, start);
        assert_eq!(bucket.wait(start), None);
        bucket.spend(500, start);
        assert_eq!(bucket.wait(start), Some(Duration::from_millis(500)));
        let later = start + Duration::from_millis(500);
        assert_eq!(bucket.wait(later), None);
        bucket.spend(100, later);
        assert_eq!(bucket.wait(later), Some(Duration::from_millis(100)));
    }

    #[test]
    fn token_bucket_accumulates_at_most_one_second() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate("1000B/s").0, BURST, start);
        bucket.spend(10, start);
        let later = start + Duration::from_secs(3600);
        bucket.spend(1000, later);
        assert_eq!(bucket.wait(later), None);
        bucket.spend(1, later);
        assert_eq!(bucket.wait(later), Some(Duration::from_millis(1)));
    }

    /// The readiness of the limiter's timer within so many milliseconds.
    fn is_ready(limiter: &Limiter, milliseconds: u16) -> bool {
        use nix::poll::{PollFd, poll};
        let source = limiter.source().unwrap();
        poll(&mut [PollFd::new(source.fd, source.events)], milliseconds).unwrap() == 1
    }

    #[test]
    fn limiter_timer_is_ready_when_limiter_opens() {
        let mut limiter = Limiter::new(Arc::new(SharedRate::new(Some(rate("1000B/s")))));
        assert!(limiter.is_open().unwrap());
        limiter.spend(1050);
        // On a slow machine the limiter may be open already.
        while !limiter.is_open().unwrap() {
            assert!(is_ready(&limiter, 10_000), "waited 10 s for the timer");
        }
        assert!(limiter.source().is_none(), "a source though nothing waits");
        // An hour's bytes are counted at once, without waiting.
        limiter.spend(3_600_000);
        assert!(!limiter.is_open().unwrap());
        // The limit may change meanwhile.
        assert!(is_ready(&limiter, 10_000), "waited 10 s for a look at the limit");
    }

    #[test]
    fn other_limits_apply_at_the_next_transfer() {
        let shared = Arc::new(SharedRate::default());
        let mut limiter = Limiter::new(Arc::clone(&shared));
        limiter.spend(u64::MAX);
        assert!(limiter.is_open().unwrap() && !limiter.is_limited());
        shared.set(Some(rate("1B/s")));
        assert!(limiter.is_open().unwrap() && limiter.is_limited());
        limiter.spend(3600);
        assert!(!limiter.is_open().unwrap());
        shared.set(None);
        assert!(limiter.is_open().unwrap() && !limiter.is_waiting());
    }
}
