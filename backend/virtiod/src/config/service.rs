//! Settings that apply to every device of any type.

use protocol::pool::MAX_POOL_PAGES;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::{PollTime, ThreadLimit};

/// The poll time and the number of a device's threads, and the limit of its driver's pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Maximum time that the device's thread polls idle queues.
    pub poll: PollTime,
    /// Maximum number of pages that its driver may share.
    pub pool: PoolLimit,
    /// Maximum number of threads that process the device's queues.
    pub threads: ThreadLimit,
}

/// Maximum number of pages of one device's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimit(u32);

impl PoolLimit {
    /// The limit in pages.
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
