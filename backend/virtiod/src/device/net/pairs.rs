//! How many queue pairs a network device has.

use serde::{Deserialize, Deserializer, de};

/// Most queue pairs of a device. A device's thread serves all of them, so they spare guests with
/// several processors locks and interrupts, and add nothing here.
const MOST: u16 = 8;

/// A number of queue pairs that can be offered: 1 to 8, and 1 unless something else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairs(u16);

/// A number of pairs that cannot be offered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a number of queue pairs, 1 to {MOST}")]
pub struct NotPairs(i64);

impl QueuePairs {
    /// How many.
    pub fn count(self) -> u16 {
        self.0
    }
}

impl Default for QueuePairs {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<i64> for QueuePairs {
    type Error = NotPairs;

    fn try_from(count: i64) -> Result<Self, NotPairs> {
        let fits = u16::try_from(count).ok().filter(|count| (1..=MOST).contains(count));
        fits.map(Self).ok_or(NotPairs(count))
    }
}

impl<'de> Deserialize<'de> for QueuePairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(i64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
