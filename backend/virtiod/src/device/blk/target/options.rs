//! A target, and how to open it.

use std::path::PathBuf;

use crate::device::blk::claim::{Owner, Sharing};
use crate::device::blk::image::ImageFormat;

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// `access=r` in the guest's configuration.
    ReadOnly,
    /// `access=rw`.
    ReadWrite,
}

/// How a raw target's bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Through this domain's page cache: what was read once is read from memory.
    PageCache,
    /// `direct-io-safe` in the guest's configuration: past it, where the storage can. The guest has
    /// a page cache of its own, and this domain little memory.
    Direct,
}

/// Whether a guest may give storage back: `discard` in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Discard is not offered, and zeros are written.
    Refused,
    /// Discard and write-zeroes punch holes.
    Allowed,
}

/// A target, and how to open it.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// A file or block device, by its absolute path.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub mode: AccessMode,
    /// How a raw target's bytes are moved.
    pub caching: Caching,
    /// Whether the guest may give storage back.
    pub discard: Discard,
    /// Its format; `None`: its name says it.
    pub format: Option<ImageFormat>,
    /// Whether others may use it at the same time.
    pub sharing: Sharing,
    /// Whose it is.
    pub owner: Owner,
}

impl TargetOptions {
    /// The target's format.
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
            sharing: Sharing::Safe,
            owner: Owner { domain: 1, vdev: "xvda".to_owned(), vm: None },
        }
    }
}
