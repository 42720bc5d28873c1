//! Limits of the requests that a disk has in flight.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Maximum number of requests: as many as the queues of a disk have entries [SPEC 7.20].
const MOST_REQUESTS: usize = 2048;
/// Suffixes of a size in bytes.
const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
/// The smallest and the largest number of bytes.
const BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;

/// A number of requests, 1 to 2048.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimit(usize);

impl RequestLimit {
    /// The number of requests.
    pub fn requests(self) -> usize {
        self.0
    }
}

impl<'de> Deserialize<'de> for RequestLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let limit = usize::try_from(number).ok().filter(|it| (1..=MOST_REQUESTS).contains(it));
        limit.map(Self).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{number} is not a number of requests in flight, 1 to {MOST_REQUESTS}"
            ))
        })
    }
}

/// A number of bytes, 64 KiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteLimit(u64);

impl ByteLimit {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) =
            UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))?;
        let number = number.trim_end();
        // parse() alone would accept a sign.
        let number: u64 =
            number.parse().ok().filter(|_| number.bytes().all(|digit| digit.is_ascii_digit()))?;
        number.checked_mul(*unit).filter(|bytes| BYTES.contains(bytes)).map(Self)
    }
}

impl<'de> Deserialize<'de> for ByteLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{text:?} is not a size of the data in flight: a whole number with KiB, MiB or \
                 GiB, \"64KiB\" to \"1GiB\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_need_a_unit_and_have_limits() {
        let parse = |text| ByteLimit::parse(text).map(ByteLimit::bytes);
        let sizes = ["64KiB", "16 MiB", "1GiB"].map(parse);
        assert_eq!(sizes, [Some(64 << 10), Some(16 << 20), Some(1 << 30)]);
        for wrong in ["", "MiB", "1048576", "1MB", "+1MiB", "63KiB", "2GiB", "17179869185GiB"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
