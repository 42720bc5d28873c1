//! Whose an image is, and how it is used.

use std::fmt;

use super::lock::{LockState, Permission, Permissions};
use crate::device::blk::target::AccessMode;

/// A device that has an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The guest's domain.
    pub domain: u16,
    /// The disk's name in the guest's configuration, as `xvda`.
    pub vdev: String,
    /// The guest's UUID, if it is known. A guest that migrates within this host is two domains for
    /// a while.
    pub vm: Option<String>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} uses it for {}", self.domain, self.vdev)
    }
}

impl Owner {
    /// Whether it is the same guest in another domain.
    pub(super) fn is_same_guest(&self, other: &Self) -> bool {
        self.vm.is_some() && self.vm == other.vm && self.domain != other.domain
    }
}

/// Whether others may use an image at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Readers may, while nobody writes.
    #[default]
    Safe,
    /// `force-share` in the configuration file: anybody may; whoever asks for it sees to it that it
    /// goes well.
    Forced,
}

/// How a device uses a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Whether it is written.
    pub access: AccessMode,
    /// Whether others may use it too.
    pub sharing: Sharing,
}

impl Usage {
    pub(super) fn writes(self) -> bool {
        self.access == AccessMode::ReadWrite
    }

    pub(super) fn locks(self) -> LockState {
        let reads = Permissions::of(&[Permission::ConsistentRead]);
        let writes = Permissions::of(&[Permission::Write, Permission::Resize]);
        LockState {
            used: if self.writes() { reads.with(writes) } else { reads },
            refused: match self.sharing {
                Sharing::Safe => writes,
                Sharing::Forced => Permissions::default(),
            },
        }
    }
}
