//! Limits to what a device transfers in a second.

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use super::Source;

/// The time for which an idle device accumulates credit, if nothing else is set.
const BURST: Duration = Duration::from_secs(1);
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

/// Limits a device to a rate without sleeping: a timer becomes ready when the next transfer is
/// allowed.
#[derive(Debug)]
pub struct Limiter {
    bucket: TokenBucket,
    timer: TimerFd,
    /// Whether the timer is set.
    is_waiting: bool,
}

impl Limiter {
    /// A limiter that allows one second's bytes at once.
    ///
    /// # Errors
    /// The kernel's, if it creates no timer.
    pub fn new(rate: Rate) -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self {
            bucket: TokenBucket::new(rate.bytes(), BURST, Instant::now()),
            timer,
            is_waiting: false,
        })
    }

    /// Whether a transfer is allowed now. If not, the source becomes ready when it is.
    ///
    /// # Errors
    /// The kernel's, if the timer cannot be set.
    pub fn is_open(&mut self) -> nix::Result<bool> {
        let Some(left) = self.bucket.wait(Instant::now()) else {
            // Disarm the timer, so that it does not stay ready.
            if std::mem::take(&mut self.is_waiting) {
                self.timer.unset()?;
            }
            return Ok(true);
        };
        self.is_waiting = true;
        let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
        self.timer.set(expiration, TimerSetTimeFlags::empty())?;
        Ok(false)
    }

    /// Whether the next transfer waits for the timer.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Counts transferred bytes.
    pub fn spend(&mut self, bytes: u64) {
        self.bucket.spend(bytes, Instant::now());
    }

    /// The timer, which is ready when the next transfer is allowed.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.timer.as_fd())
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

    #[test]
    fn limiter_timer_is_ready_when_limiter_opens() {
        use nix::poll::{PollFd, poll};
        let mut limiter = Limiter::new(rate("1000B/s")).unwrap();
        assert!(limiter.is_open().unwrap());
        limiter.spend(1050);
        // On a slow machine the limiter may be open already.
        while !limiter.is_open().unwrap() {
            let source = limiter.source();
            let mut fds = [PollFd::new(source.fd, source.events)];
            assert_eq!(poll(&mut fds, 10_000u16).unwrap(), 1, "waited 10 s for the timer");
        }
        let source = limiter.source();
        assert_eq!(poll(&mut [PollFd::new(source.fd, source.events)], 0u8).unwrap(), 0);
        // An hour's bytes are counted at once, without waiting.
        limiter.spend(3_600_000);
        assert!(!limiter.is_open().unwrap());
    }
}
