//! What the kernel says of a block device's queue.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};

use super::plain::is_plain;
use serde::{Deserialize, Serialize};

/// Limits and properties of the block device that a file is, or that its file system is on; for a
/// partition, of its disk. What the kernel does not say is `None`. Source: Linux
/// `Documentation/ABI/stable/sysfs-block`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueLimits {
    /// Unit of addresses, in bytes.
    pub logical_block_size: Option<u64>,
    /// Unit of the medium, in bytes.
    pub physical_block_size: Option<u64>,
    /// Unit of discards, in bytes.
    pub discard_granularity: Option<u64>,
    /// Maximum number of bytes that one command can zero.
    pub write_zeroes_max_bytes: Option<u64>,
    /// Maximum length of a transfer that the kernel does not divide, in KiB.
    pub max_sectors_kb: Option<u64>,
    /// Maximum number of separate pages of such a transfer.
    pub max_segments: Option<u64>,
    /// Whether written data is durable at once.
    pub is_write_through: bool,
    /// Whether nothing of what it answered is in this domain's memory alone.
    pub is_plain: bool,
}

impl QueueLimits {
    /// The limits for `file`.
    ///
    /// # Errors
    /// The kernel does not say what the file is.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        Ok(Self::of_device(if is_device { metadata.rdev() } else { metadata.dev() }))
    }

    fn of_device(device: u64) -> Self {
        let number = |name| attribute(device, name)?.parse().ok();
        Self {
            logical_block_size: number("logical_block_size"),
            physical_block_size: number("physical_block_size"),
            discard_granularity: number("discard_granularity"),
            write_zeroes_max_bytes: number("write_zeroes_max_bytes"),
            max_sectors_kb: number("max_sectors_kb"),
            max_segments: number("max_segments"),
            is_write_through: attribute(device, "write_cache").as_deref() == Some("write through"),
            is_plain: is_plain(device),
        }
    }
}

fn attribute(device: u64, name: &str) -> Option<String> {
    let (major, minor) = (major(device), minor(device));
    let read =
        |queue: &str| fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}"));
    let text = read("queue").or_else(|_| read("../queue")).ok()?;
    Some(text.trim().to_owned())
}
