//! The number of queue pairs of a network device.

use serde::{Deserialize, Deserializer, de};

/// Maximum number of queue pairs of a device. One thread serves all of them: several pairs save
/// guests with several processors locks and interrupts, but add no parallelism in the backend.
const MOST: u16 = 8;

/// A number of queue pairs that a device can offer: 1 to 8. The default is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairs(u16);

/// A number of queue pairs that a device cannot offer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a number of queue pairs, 1 to {MOST}")]
pub struct NotPairs(i64);

impl QueuePairs {
    /// The number of pairs.
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
