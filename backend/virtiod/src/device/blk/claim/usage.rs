//! The owner of an image, and its usage.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::lock::{LockState, Permission, Permissions};
use crate::device::blk::target::{AccessMode, TargetOptions};

/// A device that owns an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The guest's domain.
    pub domain: u16,
    /// The device's number in its class.
    pub number: u32,
    /// The disk's name in the guest's configuration, as `xvda`.
    pub vdev: String,
    /// The guest's UUID, if it is known. While a guest migrates within this host, it is two
    /// domains.
    pub uuid: Option<String>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} uses it for {}", self.domain, self.vdev)
    }
}

impl Owner {
    /// Whether both are the same guest in different domains.
    pub(super) fn is_same_guest(&self, other: &Self) -> bool {
        self.uuid.is_some() && self.uuid == other.uuid && self.domain != other.domain
    }
}

/// Whether others may use an image at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Readers may, while there is no writer.
    #[default]
    Safe,
    /// `force-share` in the configuration file: anybody may. The administrator who sets it ensures
    /// that this does no harm.
    Forced,
}

/// The usage of a file by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Whether the device writes it.
    pub access: AccessMode,
    /// Whether others may use it too.
    pub sharing: Sharing,
}

impl Usage {
    /// The usage of a disk's target.
    pub(super) fn of_target(options: &TargetOptions) -> Self {
        Self { access: options.mode, sharing: options.sharing }
    }

    /// The usage of a target's backing file, which is only read.
    pub(super) fn of_backing(options: &TargetOptions) -> Self {
        Self { access: AccessMode::ReadOnly, sharing: options.sharing }
    }

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
