//! The files that store a disk.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::claim::{
    Claim, ClaimError, Durability, FileId, Handover, IMAGES, ImageRegistry, Owner, Sharing, Usage,
};
use super::target::{AccessMode, TargetOptions};

/// A disk's files, claimed until this is dropped: its target, the target's backing files, and the
/// files behind loop devices.
pub(super) struct DiskFiles {
    registry: &'static ImageRegistry,
    owner: Owner,
    sharing: Sharing,
    target: Claim,
    others: Vec<Claim>,
}

impl DiskFiles {
    /// Claims a target, and the file behind it if it is a loop device.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn claim(options: &TargetOptions) -> Result<Self, ClaimError> {
        let (registry, owner) = (&*IMAGES, options.owner.clone());
        let usage = Usage { access: options.mode, sharing: options.sharing };
        let target = registry.claim(&options.path, usage, &owner)?;
        let others = registry.claim_behind(&target, usage, &owner)?.into_iter().collect();
        Ok(Self { registry, owner, sharing: options.sharing, target, others })
    }

    /// Whether another process can tell when this one's operations on the files have ended.
    pub(super) fn are_marked(&self) -> bool {
        self.target.is_marked() && self.others.iter().all(Claim::is_marked)
    }

    /// The claim of the target.
    pub(super) fn target(&self) -> &Claim {
        &self.target
    }

    /// Opens an image's backing file for reading. It stays claimed.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn open_backing(&mut self, path: &Path) -> Result<Arc<File>, ClaimError> {
        let id = FileId::of(path)?;
        if let Some(known) = self.others.iter().find(|claim| claim.id() == id) {
            return known.file();
        }
        let usage = Usage { access: AccessMode::ReadOnly, sharing: self.sharing };
        let claim = self.registry.claim(path, usage, &self.owner)?;
        let file = claim.file();
        self.others.push(claim);
        file
    }

    /// The durability of what devices wrote to the target.
    pub(super) fn durability(&self) -> &Arc<Durability> {
        self.target.durability()
    }

    /// Notes that a driver uses the disk: see [`Claim::activate`].
    ///
    /// # Errors
    /// As for [`Claim::activate`].
    pub(super) fn activate(&self) -> Result<Handover, Owner> {
        self.target.activate()
    }

    /// Notes that no driver uses the disk any more.
    pub(super) fn deactivate(&self) {
        self.target.deactivate();
    }
}
