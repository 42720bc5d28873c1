//! The files that store a disk.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claim::{
    ClaimError, Claimed, Durability, FileId, Handover, Images, Owner, TargetClaims,
};
use super::target::TargetOptions;

/// A disk's files, claimed until this is dropped: its target, the target's backing files, and the
/// files behind loop devices.
pub(super) struct DiskFiles {
    images: Arc<dyn Images>,
    options: TargetOptions,
    target: Box<dyn Claimed>,
    others: Vec<Box<dyn Claimed>>,
}

impl DiskFiles {
    /// Claims a target, and the file behind it if it is a loop device.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn claim(
        options: &TargetOptions,
        images: &Arc<dyn Images>,
    ) -> Result<Self, ClaimError> {
        let TargetClaims { target, behind } = images.claim_target(options)?;
        let (images, others) = (Arc::clone(images), behind.into_iter().collect());
        Ok(Self { images, options: options.clone(), target, others })
    }

    /// Whether another process can tell when this one's operations on the files have ended.
    pub(super) fn are_marked(&self) -> bool {
        self.target.is_marked() && self.others.iter().all(|claim| claim.is_marked())
    }

    /// The claim of the target.
    pub(super) fn target(&self) -> &dyn Claimed {
        &*self.target
    }

    /// The path of the backing file that `image` names `name`.
    ///
    /// # Errors
    /// As for [`Images::find_backing`].
    pub(super) fn find_backing(&self, image: &Path, name: &str) -> io::Result<PathBuf> {
        self.images.find_backing(image, name)
    }

    /// Identifies a backing file.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn identify(&self, path: &Path) -> Result<FileId, ClaimError> {
        self.images.identify(path)
    }

    /// Opens an image's backing file for reading. It stays claimed.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn open_backing(&mut self, path: &Path) -> Result<Arc<File>, ClaimError> {
        let id = self.identify(path)?;
        if let Some(known) = self.others.iter().find(|claim| claim.id() == id) {
            return known.file();
        }
        let claim = self.images.claim_backing(&self.options, path)?;
        let file = claim.file();
        self.others.push(claim);
        file
    }

    /// The durability of what devices wrote to the target.
    pub(super) fn durability(&self) -> &Arc<Durability> {
        self.target.durability()
    }

    /// Notes that a driver uses the disk: see [`Claimed::activate`].
    ///
    /// # Errors
    /// As for [`Claimed::activate`].
    pub(super) fn activate(&self) -> Result<Handover, Owner> {
        self.target.activate()
    }

    /// Notes that no driver uses the disk any more.
    pub(super) fn deactivate(&self) {
        self.target.deactivate();
    }
}

#[cfg(test)]
impl DiskFiles {
    /// Claims a target for a disk of this process.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn claim_here(options: &TargetOptions) -> Result<Self, ClaimError> {
        Self::claim(options, &(Arc::new(super::claim::LocalImages) as Arc<dyn Images>))
    }
}
