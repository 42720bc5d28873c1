//! Maximum number of threads that process the queues of one device.

use std::num::NonZero;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Maximum number of threads of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadLimit {
    /// As many as this domain has processors.
    #[default]
    Processors,
    /// This number.
    Fixed(NonZero<u32>),
}

impl ThreadLimit {
    /// One thread.
    pub const ONE: Self = Self::Fixed(NonZero::<u32>::MIN);

    /// The largest number that the configuration file may name: no device has more queues that
    /// threads could share.
    const MOST: u32 = 64;

    /// The limit now.
    pub fn count(self) -> usize {
        match self {
            Self::Fixed(count) => count.get() as usize,
            // Not known: as if there were one. The standard library's way reads files, which a
            // guest's process has none of.
            Self::Processors => sched_getaffinity(Pid::from_raw(0)).map_or(1, |set| {
                (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count().max(1)
            }),
        }
    }
}

impl<'de> Deserialize<'de> for ThreadLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = u32::deserialize(deserializer)?;
        let fixed = NonZero::new(count).filter(|count| count.get() <= Self::MOST);
        fixed.map(Self::Fixed).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{count} is not a number of threads of a device, 1 to {}",
                Self::MOST
            ))
        })
    }
}
