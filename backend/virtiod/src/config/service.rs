//! What holds for every device, of whatever type.

use protocol::pool::MAX_POOL_PAGES;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::PollTime;

/// How a device is served, and what its driver may have of this domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceSettings {
    /// How long the device's thread may look at idle queues.
    pub poll: PollTime,
    /// Pages that its driver may share.
    pub pool: PoolLimit,
}

/// The most pages of one device's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimit(u32);

impl PoolLimit {
    /// Pages.
    pub fn pages(self) -> u32 {
        self.0
    }
}

impl Default for PoolLimit {
    fn default() -> Self {
        Self(MAX_POOL_PAGES)
    }
}

impl<'de> Deserialize<'de> for PoolLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pages = u32::deserialize(deserializer)?;
        if pages > MAX_POOL_PAGES {
            return Err(D::Error::custom(format_args!(
                "{pages} is not a number of pages of a pool, 0 to {MAX_POOL_PAGES}"
            )));
        }
        Ok(Self(pages))
    }
}
