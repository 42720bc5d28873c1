//! Errors of claims.

use std::io;
use std::path::PathBuf;

use super::lock::Conflict;
use super::usage::Owner;
use crate::device::blk::target::AccessMode;

impl ClaimError {
    /// Whether the reason may be the device itself, in an earlier process or a moment ago.
    pub(crate) fn may_be_own(&self) -> bool {
        match self {
            Self::Unfinished { .. } | Self::Busy { .. } | Self::Locked { .. } => true,
            Self::Supervisor { may_be_own, .. } => *may_be_own,
            _ => false,
        }
    }

    /// Whether operations of the device itself on the file have not ended.
    pub(crate) fn is_unfinished(&self) -> bool {
        matches!(self, Self::Unfinished { .. } | Self::Supervisor { is_unfinished: true, .. })
    }
}

/// The reason for which a device cannot claim a file.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another device of this daemon uses the file.
    #[error(
        "disk target {path:?} is in use: {owner}{how}; only a file that nobody writes can be shared",
        how = match .access {
            AccessMode::ReadOnly => "",
            AccessMode::ReadWrite => " and may write it",
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// The device that uses it.
        owner: Owner,
        /// Whether the owner may write it.
        access: AccessMode,
    },
    /// An operation of an earlier process on the file has not ended.
    #[error(
        "disk target {path:?} is in use by the device itself: storage has not ended what an earlier \
         xen-virtiod began"
    )]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// Another program has locked the file.
    #[error(
        "disk target {path:?} is in use by another program: {conflict}; to list the programs \
         that have it open, run: fuser -v {path:?}"
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// The conflict, as QEMU words it.
        conflict: Conflict,
    },
    /// The kernel, or another program, has opened the block device exclusively.
    #[error(
        "disk target {path:?} is in use: it is mounted, or part of a volume, an array or swap, or \
         another program has opened it exclusively; to see which, run: lsblk {path:?}; fuser -v \
         {path:?}"
    )]
    Busy {
        /// The block device.
        path: PathBuf,
    },
    /// A loop device uses the file as a block device, which may be mounted.
    #[error(
        "disk target {path:?} is in use: it is behind /dev/{device}; unmount that, then run: \
         losetup -d /dev/{device}"
    )]
    LoopDevice {
        /// The file.
        path: PathBuf,
        /// The loop device's name.
        device: String,
    },
    /// The path names another file now.
    #[error(
        "disk target {path:?} was replaced by another file while it was being opened; try again"
    )]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// The path names neither a file nor a block device.
    #[error("disk target {path:?} is neither a file nor a block device")]
    Kind {
        /// The target.
        path: PathBuf,
    },
    /// The supervisor refuses the file.
    #[error("{reason}")]
    Supervisor {
        /// Its reason.
        reason: String,
        /// As [`ClaimError::may_be_own`] there.
        may_be_own: bool,
        /// As [`ClaimError::is_unfinished`] there.
        is_unfinished: bool,
    },
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] io::Error),
}
