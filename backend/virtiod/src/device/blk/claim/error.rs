//! Reasons for which a file cannot be had.

use std::io;
use std::path::PathBuf;

use super::lock::Conflict;
use super::usage::Owner;
use crate::device::blk::target::AccessMode;

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another device of this daemon has it.
    #[error(
        "disk target {path:?} is in use: {owner}{how}; only what nobody writes can be shared",
        how = match .access {
            AccessMode::ReadOnly => "",
            AccessMode::ReadWrite => " and may write it",
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: Owner,
        /// Whether the owner may write it.
        access: AccessMode,
    },
    /// Another program has it.
    #[error(
        "disk target {path:?} is in use by another program: {conflict}; this lists the programs \
         that have it open: fuser -v {path:?}"
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// The conflict, as QEMU words it.
        conflict: Conflict,
    },
    /// The kernel has it, or another program has it for itself.
    #[error(
        "disk target {path:?} is in use: it is mounted, or part of a volume, an array or swap, or \
         another program has it for itself; these show what has it: lsblk {path:?}; fuser -v \
         {path:?}"
    )]
    Busy {
        /// The block device.
        path: PathBuf,
    },
    /// A loop device makes it a block device, which may be mounted.
    #[error(
        "disk target {path:?} is in use: it is behind /dev/{device}; once that is not mounted any \
         more, this ends it: losetup -d /dev/{device}"
    )]
    LoopDevice {
        /// The file.
        path: PathBuf,
        /// The loop device's name.
        device: String,
    },
    /// The name is another file's now.
    #[error(
        "disk target {path:?} was replaced by another file while it was being opened; try again"
    )]
    Replaced {
        /// The name.
        path: PathBuf,
    },
    /// It is neither file nor block device.
    #[error("disk target {path:?} is neither a file nor a block device")]
    Kind {
        /// The target.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] io::Error),
}
