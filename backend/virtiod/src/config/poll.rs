//! Maximum time that a device's thread polls its driver's queues before it sleeps.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Maximum time that a thread polls idle queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollTime {
    /// A time learnt from the measured cost of a notification.
    #[default]
    Learnt,
    /// A fixed time, as in `"200us"` or `"1ms"`.
    Fixed(Duration),
}

impl PollTime {
    /// No polling.
    pub const NEVER: Self = Self::Fixed(Duration::ZERO);

    const LONGEST: Duration = Duration::from_millis(10);

    fn parse(text: &str) -> Option<Self> {
        if text == "never" {
            return Some(Self::NEVER);
        }
        let (number, unit): (_, fn(u64) -> Duration) = match text.strip_suffix("us") {
            Some(number) => (number, Duration::from_micros),
            None => (text.strip_suffix("ms")?, Duration::from_millis),
        };
        let time = unit(number.trim_end().parse().ok()?);
        (time <= Self::LONGEST).then_some(Self::Fixed(time))
    }
}

impl<'de> Deserialize<'de> for PollTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{text:?} is not a poll time, as in \"200us\" or \"1ms\", at most \"10ms\", or \
                 \"never\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_time_needs_a_unit_and_has_a_limit() {
        let fixed = |time| match time {
            PollTime::Fixed(time) => Some(time.as_micros()),
            PollTime::Learnt => None,
        };
        let parse = |text| PollTime::parse(text).and_then(fixed);
        assert_eq!(
            (parse("200us"), parse("1 ms"), parse("never")),
            (Some(200), Some(1000), Some(0))
        );
        for wrong in ["", "1", "us", "-1us", "11ms", "18446744073709551615us", "1s"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
