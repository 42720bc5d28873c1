//! The options of a target.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::blk::claim::{Owner, Sharing};
use crate::device::blk::image::ImageFormat;

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessMode {
    /// `access=r` in the guest's configuration.
    ReadOnly,
    /// `access=rw`.
    ReadWrite,
}

/// The caching of a raw target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Through this domain's page cache: a repeated read is served from memory.
    PageCache,
    /// `direct-io-safe` in the guest's configuration: direct I/O, where the storage supports it.
    /// The guest has a page cache of its own, and this domain has little memory.
    Direct,
    /// Through this domain's page cache, but a write is answered when it is in the storage.
    WriteThrough,
}

/// Whether a guest may deallocate storage: `discard` in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The device does not offer discard, and write-zeroes keeps the storage allocated.
    Refused,
    /// Discard and write-zeroes punch holes.
    Allowed,
}

/// The unit of addresses that a guest sees: 512, 1024, 2048 or 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct LogicalBlockSize(u32);

/// A number of bytes that no block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a logical block size: 512, 1024, 2048 or 4096")]
pub struct NoBlockSize(i64);

impl LogicalBlockSize {
    /// Number of bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl TryFrom<i64> for LogicalBlockSize {
    type Error = NoBlockSize;

    fn try_from(bytes: i64) -> Result<Self, NoBlockSize> {
        let is_known = |bytes: &u32| bytes.is_power_of_two() && (512..=4096).contains(bytes);
        u32::try_from(bytes).ok().filter(is_known).map(Self).ok_or(NoBlockSize(bytes))
    }
}

/// A target, and the options to open it with.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// The absolute path of a file or block device.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub mode: AccessMode,
    /// The caching of a raw target; other formats ignore it.
    pub caching: Caching,
    /// Whether the guest may deallocate storage.
    pub discard: Discard,
    /// Its format; if `None`, its name decides.
    pub format: Option<ImageFormat>,
    /// The unit of addresses that the guest sees; if `None`, that of the storage.
    pub logical_block: Option<LogicalBlockSize>,
    /// Whether others may use the target at the same time.
    pub sharing: Sharing,
    /// The device that the target belongs to.
    pub owner: Owner,
}

impl TargetOptions {
    /// The configured format, or else the one that the target's name indicates.
    pub fn format(&self) -> ImageFormat {
        self.format.unwrap_or_else(|| ImageFormat::by_name(&self.path))
    }

    #[cfg(test)]
    pub(crate) fn for_test(path: &std::path::Path) -> Self {
        Self {
            path: path.to_owned(),
            mode: AccessMode::ReadWrite,
            caching: Caching::PageCache,
            discard: Discard::Allowed,
            format: None,
            logical_block: None,
            sharing: Sharing::Safe,
            owner: Owner { domain: 1, number: 51712, vdev: "xvda".to_owned(), uuid: None },
        }
    }
}
