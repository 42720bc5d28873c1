//! Reasons for which a target cannot be used.

use std::io;
use std::path::PathBuf;

use super::AccessMode;
use crate::device::Fault;
use crate::device::blk::claim::{ClaimError, Owner};

/// Why a target cannot be used, or a request on it fails.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It cannot be opened.
    #[error("cannot open disk target {path:?} {mode}: {source}", mode = match .mode {
        AccessMode::ReadOnly => "for reading",
        AccessMode::ReadWrite => "for reading and writing",
    })]
    Open {
        /// The target.
        path: PathBuf,
        /// How it was opened.
        mode: AccessMode,
        /// What the kernel, or the image format, said.
        source: io::Error,
    },
    /// Its name depends on who reads it.
    #[error(
        "disk target {path:?} is a relative path, which xl and this daemon would look for in \
         different directories: give target=/... from the root on"
    )]
    Relative {
        /// The target.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error(transparent)]
    Claim(ClaimError),
    /// Two programs would corrupt it.
    #[error(
        "disk target {path:?} cannot be shared by force: two that write one qcow2 image destroy \
         it; force-share is for raw targets, and for disks with access=r"
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
        /// Its size.
        bytes: u64,
        /// Its logical block size.
        block: u32,
    },
    /// The request lies outside the disk, is not in whole sectors, or is too long.
    #[error("{bytes} bytes at sector {sector} are not whole sectors of the disk")]
    Range {
        /// First sector.
        sector: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The request is of a type that is not supported.
    #[error("unsupported request type")]
    Unsupported,
    /// A write to a read-only disk.
    #[error("write to a read-only disk")]
    ReadOnly,
    /// The same guest uses it in another domain.
    #[error("the guest uses the disk in another domain: {0}")]
    Elsewhere(Owner),
    /// An earlier sync failed.
    #[error(
        "disk target: what was written earlier may be lost, since making it last failed; so it \
         stays until all devices that have the disk are gone"
    )]
    Lost,
    /// A sync failed.
    #[error("disk target: cannot make what was written last: {0}")]
    Sync(#[source] io::Error),
    /// The image's own error.
    #[error("disk target: {0}")]
    Io(#[from] io::Error),
    /// The guest's buffers.
    #[error(transparent)]
    Guest(#[from] Fault),
}
