//! The images of disks as a guest's process has them: the supervisor claims and opens the files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::link::{DeviceLink, too_many_files};
use super::message::{ImageRequest, Reply, Request};
use crate::device::blk::{
    ClaimError, Claimed, Durability, FileId, Handover, Images, Owner, QueueLimits, TargetClaims,
    TargetOptions, no_backing,
};

/// Claims by the supervisor, for one disk.
pub struct SupervisedImages {
    link: Arc<DeviceLink>,
}

impl SupervisedImages {
    /// Claims by `link`.
    pub fn new(link: Arc<DeviceLink>) -> Self {
        Self { link }
    }

    fn claim(&self, request: &ImageRequest) -> Result<Box<dyn Claimed>, ClaimError> {
        match ask(&self.link, request)? {
            (Reply::Claimed { claim, is_marked, limits }, Some(file)) => {
                let file = File::from(file);
                let id = FileId::of_file(&file)?;
                let (link, durability) = (Arc::clone(&self.link), Arc::default());
                let file = Some(Arc::new(file));
                Ok(Box::new(SupervisedClaim {
                    link,
                    claim,
                    id,
                    is_marked,
                    limits,
                    file,
                    durability,
                }))
            }
            (Reply::Claimed { claim, .. }, None) => {
                let _ = ask(&self.link, &ImageRequest::Release { claim });
                Err(too_many_files().into())
            }
            (reply, _) => Err(unexpected(&reply)),
        }
    }
}

/// Asks the supervisor for something about a file.
fn ask(link: &DeviceLink, request: &ImageRequest) -> Result<(Reply, Option<OwnedFd>), ClaimError> {
    match link.ask(&Request::Image(request.clone())).map_err(io::Error::other)? {
        (Reply::ClaimFailed(failure), _) => Err(failure.into()),
        (reply, files) => Ok((reply, files.into_iter().next())),
    }
}

fn unexpected(reply: &Reply) -> ClaimError {
    io::Error::other(format!("the supervisor answers {reply:?}")).into()
}

impl Images for SupervisedImages {
    fn claim_target(&self, options: &TargetOptions) -> Result<TargetClaims, ClaimError> {
        let TargetOptions { path, mode, sharing, .. } = options;
        let (path, access, sharing) = (path.clone(), *mode, *sharing);
        let target = self.claim(&ImageRequest::ClaimTarget { path, access, sharing })?;
        // The supervisor claims the file behind a loop device with it.
        Ok(TargetClaims { target, behind: None })
    }

    fn claim_backing(
        &self,
        _: &TargetOptions,
        path: &Path,
    ) -> Result<Box<dyn Claimed>, ClaimError> {
        self.claim(&ImageRequest::ClaimBacking { path: path.to_owned() })
    }

    fn find_backing(&self, image: &Path, name: &str) -> io::Result<PathBuf> {
        let request = Request::Image(ImageRequest::FindBacking { image: image.to_owned() });
        match self.link.ask(&request).map_err(io::Error::other)? {
            (Reply::Found(path), _) => Ok(path),
            (Reply::Forbidden, _) => Err(no_backing(image, name)),
            (reply, _) => Err(reply.into_error()),
        }
    }

    fn identify(&self, path: &Path) -> Result<FileId, ClaimError> {
        match ask(&self.link, &ImageRequest::Identify { path: path.to_owned() })? {
            (Reply::Identity(id), _) => Ok(id),
            (reply, _) => Err(unexpected(&reply)),
        }
    }
}

/// A file that the supervisor claimed.
struct SupervisedClaim {
    link: Arc<DeviceLink>,
    claim: u64,
    id: FileId,
    is_marked: bool,
    limits: QueueLimits,
    /// Until this is dropped.
    file: Option<Arc<File>>,
    durability: Arc<Durability>,
}

impl Claimed for SupervisedClaim {
    fn id(&self) -> FileId {
        self.id
    }

    fn file(&self) -> Result<Arc<File>, ClaimError> {
        self.file.clone().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
    }

    fn open_direct(&self) -> Result<File, ClaimError> {
        match ask(&self.link, &ImageRequest::OpenDirect { claim: self.claim })? {
            (Reply::Done, Some(file)) => Ok(File::from(file)),
            (Reply::Done, None) => Err(too_many_files().into()),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    fn queue_limits(&self) -> QueueLimits {
        self.limits
    }

    fn is_marked(&self) -> bool {
        self.is_marked
    }

    /// Without the supervisor, there may be one.
    fn has_other_writer(&self) -> bool {
        let asked = ask(&self.link, &ImageRequest::HasOtherWriter { claim: self.claim });
        !matches!(asked, Ok((Reply::Answer(false), _)))
    }

    fn durability(&self) -> &Arc<Durability> {
        &self.durability
    }

    fn activate(&self) -> Result<Handover, Owner> {
        match ask(&self.link, &ImageRequest::Activate { claim: self.claim }) {
            Ok((Reply::Activated(activated), _)) => activated,
            // Without the supervisor, the process ends.
            _ => Ok(Handover::FromOther),
        }
    }

    fn deactivate(&self) {
        let _ = ask(&self.link, &ImageRequest::Deactivate { claim: self.claim });
    }
}

impl Drop for SupervisedClaim {
    fn drop(&mut self) {
        // Closed first: who claims a block device next may open it exclusively.
        self.file = None;
        let _ = ask(&self.link, &ImageRequest::Release { claim: self.claim });
    }
}
