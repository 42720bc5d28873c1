//! Limits of the rate of disks.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::RateLimit;
use crate::device::blk::{DiskRates, RateLimits};

/// The longest time for which an idle disk may accumulate credit.
const LONGEST_BURST: Duration = Duration::from_secs(60);

/// Limits of a disk, of a group of a guest's disks, or of all disks without others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitSettings {
    rate: Option<RateLimit>,
    read_rate: Option<RateLimit>,
    write_rate: Option<RateLimit>,
    iops: Option<IopsLimit>,
    read_iops: Option<IopsLimit>,
    write_iops: Option<IopsLimit>,
    burst: Option<Burst>,
}

impl LimitSettings {
    /// These settings, and the others' for keys that are not set.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            rate: self.rate.or(other.rate),
            read_rate: self.read_rate.or(other.read_rate),
            write_rate: self.write_rate.or(other.write_rate),
            iops: self.iops.or(other.iops),
            read_iops: self.read_iops.or(other.read_iops),
            write_iops: self.write_iops.or(other.write_iops),
            burst: self.burst.or(other.burst),
        }
    }

    /// The limits.
    pub fn rates(&self) -> DiskRates {
        let limits = |rate: Option<RateLimit>, iops: Option<IopsLimit>| RateLimits {
            rate: rate.and_then(RateLimit::rate),
            iops: iops.and_then(|IopsLimit(iops)| iops),
        };
        DiskRates {
            all: limits(self.rate, self.iops),
            reads: limits(self.read_rate, self.read_iops),
            writes: limits(self.write_rate, self.write_iops),
            burst: self.burst.map_or(DiskRates::BURST, |Burst(time)| time),
        }
    }
}

/// Requests in a second; `None`: any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IopsLimit(Option<NonZeroU64>);

impl<'de> Deserialize<'de> for IopsLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(i64),
            Word(String),
        }
        let wrong = "a number of requests in a second, at least 1, or \"unlimited\" is expected";
        match Form::deserialize(deserializer).map_err(|_| D::Error::custom(wrong))? {
            Form::Word(word) if word == "unlimited" => Ok(Self(None)),
            Form::Number(number) => {
                let number = u64::try_from(number).ok().and_then(NonZeroU64::new);
                number.map(|number| Self(Some(number))).ok_or_else(|| D::Error::custom(wrong))
            }
            Form::Word(_) => Err(D::Error::custom(wrong)),
        }
    }
}

/// A time for which credit accumulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Burst(Duration);

impl Burst {
    fn parse(text: &str) -> Option<Self> {
        let (number, unit): (_, fn(u64) -> Duration) = match text.strip_suffix("ms") {
            Some(number) => (number, Duration::from_millis),
            None => (text.strip_suffix('s')?, Duration::from_secs),
        };
        let number = number.trim_end();
        // parse() alone would accept a sign.
        let plain = number.bytes().all(|digit| digit.is_ascii_digit());
        let time = unit(number.parse().ok().filter(|_| plain)?);
        (time <= LONGEST_BURST).then_some(Self(time))
    }
}

impl<'de> Deserialize<'de> for Burst {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{text:?} is not a time, as in \"100ms\" or \"2s\", at most \"60s\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_needs_a_unit_and_has_a_limit() {
        let parse = |text| Burst::parse(text).map(|Burst(time)| time.as_millis());
        assert_eq!(["0ms", "100 ms", "60s"].map(parse), [Some(0), Some(100), Some(60_000)]);
        for wrong in ["", "1", "s", "ms", "-1s", "+1s", "61s", "1us", "18446744073709551616s"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
