//! The files of a disk in its guest's process: claims and opens what the toolstack named for it,
//! and the backing files beside that.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::Causes;
use crate::bus::{DevicePath, Keys};
use crate::config::ConfigFile;
use crate::device::blk::{
    AccessMode, Claim, ClaimError, Claimed, FileId, Sharing, TargetOptions,
    claim_backing_for_process, claim_target_for_process,
};
use crate::process::message::{ClaimFailure, ImageRequest, Reply};
use crate::setup::disk::target_options;
use xen::XenStore;

/// Maximum number of files that a disk may claim: a target and its chain of backing files.
const MOST_CLAIMS: usize = 32;

/// The images of disks whose process died: nobody else gets them before the next process does.
#[derive(Clone, Default)]
pub(super) struct KeptClaims(Arc<Mutex<BTreeMap<DevicePath, Vec<Claim>>>>);

impl KeptClaims {
    pub(super) fn keep(&self, path: &DevicePath, claims: Vec<Claim>) {
        if !claims.is_empty() {
            self.lock().insert(path.clone(), claims);
        }
    }

    pub(super) fn drop(&self, path: &DevicePath) {
        let kept = self.lock().remove(path);
        // Closes files, without the lock.
        drop(kept);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DevicePath, Vec<Claim>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The claims of one disk.
pub(super) struct ImageService {
    path: DevicePath,
    kept: KeptClaims,
    /// The options of the claimed target.
    options: Option<TargetOptions>,
    /// For each claim, the file and the one behind a loop device.
    claims: BTreeMap<u64, Vec<Claim>>,
    last: u64,
}

/// An answer, and the files that come with it.
pub(super) type Answer = (Reply, Vec<OwnedFd>);

impl ImageService {
    /// The claims of the disk at `path`, of which an earlier process may have left some.
    pub(super) fn new(path: &DevicePath, kept: KeptClaims) -> Self {
        Self { path: path.clone(), kept, options: None, claims: BTreeMap::new(), last: 0 }
    }

    /// Does what the disk asks for.
    pub(super) fn answer<S: XenStore>(
        &mut self,
        request: ImageRequest,
        keys: &mut Keys<S>,
        config: &ConfigFile,
    ) -> Answer {
        match request {
            ImageRequest::ClaimTarget { path: target, access, sharing } => {
                let asked = (target.as_path(), access, sharing);
                match target_options(keys, &self.path, config) {
                    Ok(options) if is_same(&options, asked) => self.claim_target(options),
                    Ok(_) => refused("the disk's configuration has changed; try again"),
                    Err(error) => refused(&Causes(&error).to_string()),
                }
            }
            ImageRequest::Identify { path } => match self.may_be_backing(&path) {
                true => (identity(FileId::of(&path)), Vec::new()),
                false => (Reply::Forbidden, Vec::new()),
            },
            ImageRequest::ClaimBacking { path } => self.claim_backing(&path),
            ImageRequest::OpenDirect { claim } => self.with_claim(claim, |claim| {
                let opened = claim.open_direct();
                opened.map_or_else(failed, |file| (Reply::Done, vec![file.into()]))
            }),
            ImageRequest::HasOtherWriter { claim } => self
                .with_claim(claim, |claim| (Reply::Answer(claim.has_other_writer()), Vec::new())),
            ImageRequest::Activate { claim } => {
                self.with_claim(claim, |claim| (Reply::Activated(claim.activate()), Vec::new()))
            }
            ImageRequest::Deactivate { claim } => self.with_claim(claim, |claim| {
                claim.deactivate();
                (Reply::Done, Vec::new())
            }),
            ImageRequest::Release { claim } => match self.claims.remove(&claim) {
                Some(_) => (Reply::Done, Vec::new()),
                None => (Reply::Forbidden, Vec::new()),
            },
        }
    }

    /// Keeps what the disk has not given up, once its process is gone.
    pub(super) fn leave(self) {
        self.kept.keep(&self.path, self.claims.into_values().flatten().collect());
    }

    fn claim_target(&mut self, options: TargetOptions) -> Answer {
        if self.claims.len() >= MOST_CLAIMS {
            return (Reply::Forbidden, Vec::new());
        }
        self.kept.drop(&self.path);
        match claim_target_for_process(&options) {
            Ok((claims, file)) => {
                self.options = Some(options);
                self.claimed(claims, file)
            }
            // The service of the earlier process has not heard of its end yet.
            Err(ClaimError::InUse { path, owner, .. }) if owner == options.owner => {
                failed(ClaimError::Unfinished { path })
            }
            Err(error) => failed(error),
        }
    }

    fn claim_backing(&mut self, path: &Path) -> Answer {
        let options = self.options.as_ref().filter(|_| self.may_be_backing(path));
        let Some(options) = options.filter(|_| self.claims.len() < MOST_CLAIMS) else {
            return (Reply::Forbidden, Vec::new());
        };
        match claim_backing_for_process(options, path) {
            Ok((claim, file)) => self.claimed(vec![claim], file),
            Err(error) => failed(error),
        }
    }

    fn claimed(&mut self, claims: Vec<Claim>, file: File) -> Answer {
        self.last += 1;
        let is_marked = claims.first().is_some_and(|claim| claim.is_marked());
        self.claims.insert(self.last, claims);
        (Reply::Claimed { claim: self.last, is_marked }, vec![file.into()])
    }

    /// Whether a path names a file in the directory of the claimed target.
    fn may_be_backing(&self, path: &Path) -> bool {
        let directory = self.options.as_ref().and_then(|options| options.path.parent());
        directory.is_some() && path.parent() == directory && path.file_name().is_some()
    }

    fn with_claim(&self, number: u64, answer: impl FnOnce(&Claim) -> Answer) -> Answer {
        let claim = self.claims.get(&number).and_then(|claims| claims.first());
        claim.map_or((Reply::Forbidden, Vec::new()), answer)
    }
}

/// Whether the disk asks for what the toolstack's keys and the configuration say.
fn is_same(options: &TargetOptions, asked: (&Path, AccessMode, Sharing)) -> bool {
    (options.path.as_path(), options.mode, options.sharing) == asked
}

fn identity(id: Result<FileId, ClaimError>) -> Reply {
    id.map_or_else(|error| Reply::ClaimFailed(error.into()), Reply::Identity)
}

fn failed(error: ClaimError) -> Answer {
    (Reply::ClaimFailed(error.into()), Vec::new())
}

fn refused(reason: &str) -> Answer {
    let reason = reason.to_owned();
    let failure = ClaimFailure::Refused { reason, may_be_own: false, is_unfinished: false };
    (Reply::ClaimFailed(failure), Vec::new())
}
