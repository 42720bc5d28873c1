//! Errors of targets.

use std::io;
use std::path::PathBuf;

use super::AccessMode;
use crate::device::Fault;
use crate::device::blk::claim::{ClaimError, Owner};

impl TargetError {
    /// Whether the target may be in use by the device itself, in an earlier process.
    pub(crate) fn may_be_own(&self) -> bool {
        matches!(self, Self::Claim(error) if error.may_be_own())
    }

    /// Whether operations of the device itself on its target have not ended.
    pub(crate) fn is_unfinished(&self) -> bool {
        matches!(self, Self::Claim(error) if error.is_unfinished())
    }
}

/// An error of a target, or of a request to it.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The target cannot be opened.
    #[error("cannot open disk target {path:?} {mode}", mode = match .mode {
        AccessMode::ReadOnly => "for reading",
        AccessMode::ReadWrite => "for reading and writing",
    })]
    Open {
        /// The target.
        path: PathBuf,
        /// The requested access.
        mode: AccessMode,
        /// The error of the kernel, or of the image format.
        source: io::Error,
    },
    /// Its path is relative, so that its meaning depends on the reader.
    #[error(
        "disk target {path:?} is a relative path, which xl and this daemon would look for in \
         different directories: give an absolute path, target=/..."
    )]
    Relative {
        /// The target.
        path: PathBuf,
    },
    /// Another device, or another program, uses it.
    #[error(transparent)]
    Claim(ClaimError),
    /// It cannot be shared by force, since two writers would corrupt it.
    #[error(
        "disk target {path:?} cannot be shared by force: two writers destroy a qcow2 image; \
         force-share is for raw targets, and for disks with access=r"
    )]
    Unshareable {
        /// The target.
        path: PathBuf,
    },
    /// It is too small to be a disk.
    #[error("disk target {path:?} holds {bytes} bytes, less than one block of {block}")]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Its logical block size in bytes.
        block: u32,
    },
    /// A request is outside the disk, is not in whole sectors, or is too long.
    #[error(
        "{bytes} bytes at sector {sector} are outside the disk, are not whole sectors, or are more \
         than a request may have"
    )]
    Range {
        /// The first sector of the request.
        sector: u64,
        /// The length of the request in bytes.
        bytes: u64,
    },
    /// A request has an unsupported type.
    #[error("unsupported request type")]
    Unsupported,
    /// A write to a read-only disk.
    #[error("write to a read-only disk")]
    ReadOnly,
    /// The same guest uses the disk in another domain.
    #[error("the guest uses the disk in another domain: {0}")]
    Elsewhere(Owner),
    /// An earlier sync failed, and written data may be lost.
    #[error(
        "disk target: earlier writes may be lost, since a sync failed; flushes and write-through \
         writes fail until all devices that use the disk are gone"
    )]
    Lost,
    /// The disk's thread cannot be started.
    #[error("cannot start the disk's thread")]
    Worker(#[source] io::Error),
    /// A sync failed.
    #[error("disk target: cannot sync")]
    Sync(#[source] io::Error),
    /// The image failed.
    #[error("disk target: cannot access the image")]
    Io(#[from] io::Error),
    /// The guest's buffers cannot be used.
    #[error(transparent)]
    Guest(#[from] Fault),
}
