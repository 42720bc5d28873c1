//! The files of a disk in its guest's process: claims and opens what the toolstack named for it,
//! and the backing files beside that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::device_service;
use super::size_watches::{SizeWatches, Watched};
use crate::Causes;
use crate::bus::{DevicePath, Keys};
use crate::config::ConfigFile;
use crate::device::blk::{
    AccessMode, Claim, ClaimError, Claimed, FileId, ImageFormat, QueueLimits, Sharing,
    SizeListener, TargetOptions, backing_of, claim_backing_for_process, claim_target_for_process,
};
use crate::process::message::{ClaimFailure, ImageRequest, Reply};
use crate::setup::disk::target_options;
use crate::wakeup::WakeUp;
use xen::XenStore;

/// Maximum number of files that a disk may claim: a target and its chain of backing files.
const MOST_CLAIMS: usize = 32;

/// Interval at which the files of dead processes are looked at.
const RELEASE_INTERVAL: Duration = Duration::from_millis(500);

/// The images of disks whose process died: nobody else gets them before the next process does, or
/// before storage has ended what the dead one began.
#[derive(Clone, Default)]
pub(super) struct KeptClaims(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    claims: BTreeMap<DevicePath, Vec<Claim>>,
    /// Disks of which a next process is expected.
    expected: BTreeSet<DevicePath>,
    /// What is known of the images of disks, by the names of the disks' records, as it was when
    /// they were claimed first: a process, which may write the header of its image, does not choose
    /// other files.
    chains: BTreeMap<String, Backings>,
    /// Whether a thread looks for what can be released.
    is_watched: bool,
}

/// For each image of a chain that has a backing file, that file.
type Chain = BTreeMap<PathBuf, PathBuf>;

/// For each image, its backing file and the format of that; `None` if it has none.
type Backings = BTreeMap<PathBuf, Option<(PathBuf, ImageFormat)>>;

impl KeptClaims {
    /// Expects a next process of the disk from now on, should one die.
    pub(super) fn expect(&self, path: &DevicePath) {
        self.lock().expected.insert(path.clone());
    }

    /// Expects none any more.
    pub(super) fn forget(&self, path: &DevicePath) {
        self.lock().expected.remove(path);
        let released = self.take_released();
        if !released.is_empty() {
            // To close a file may take as long as its storage does.
            let _ = thread::Builder::new().name("release".to_owned()).spawn(|| drop(released));
        }
    }

    /// Keeps claims until nothing is under way on their files, and no next process of the disk is
    /// expected.
    fn keep(&self, path: &DevicePath, claims: Vec<Claim>) {
        if claims.is_empty() {
            return;
        }
        let mut kept = self.lock();
        kept.claims.entry(path.clone()).or_default().extend(claims);
        if std::mem::replace(&mut kept.is_watched, true) {
            return;
        }
        drop(kept);
        let watched = self.clone();
        let watch = move || while watched.release_more() {};
        if thread::Builder::new().name("release".to_owned()).spawn(watch).is_err() {
            // The next claim of any disk releases them.
            self.lock().is_watched = false;
        }
    }

    /// Releases what nobody needs after a while; returns whether something is left.
    fn release_more(&self) -> bool {
        thread::sleep(RELEASE_INTERVAL);
        drop(self.take_released());
        let mut kept = self.lock();
        kept.is_watched = !kept.claims.is_empty();
        kept.is_watched
    }

    /// Releases the claims of a disk whose next process is here, and others that nobody needs.
    /// Returns `false`, and keeps the disk's, while storage works for an earlier process.
    fn release_for(&self, path: &DevicePath) -> bool {
        drop(self.take_released());
        let mut kept = self.lock();
        let claims = kept.claims.get(path);
        if claims.is_some_and(|claims| !claims.iter().all(Claim::is_finished)) {
            return false;
        }
        let released = kept.claims.remove(path);
        drop(kept);
        // Closes files, without the lock.
        drop(released);
        true
    }

    /// Takes the claims of disks of which nothing is under way any more and no process is expected.
    fn take_released(&self) -> Vec<Claim> {
        let mut kept = self.lock();
        let Kept { claims, expected, .. } = &mut *kept;
        let mut released = Vec::new();
        claims.retain(|path, claims| {
            let is_over = !expected.contains(path) && claims.iter().all(Claim::is_finished);
            if is_over {
                released.append(claims);
            }
            !is_over
        });
        released
    }

    /// The chain of a disk's target. What is known of an image stays, also under another target.
    fn settle_chain(&self, disk: &DevicePath, target: (&Path, ImageFormat), file: &File) -> Chain {
        let known = self.lock().chains.get(&disk.record_name()).cloned().unwrap_or_default();
        // Reads files, without the lock.
        let (chain, found) = chain_of(target, file, known);
        let mut kept = self.lock();
        let known = kept.chains.entry(disk.record_name()).or_default();
        for (image, backing) in found {
            known.entry(image).or_insert(backing);
        }
        chain
    }

    /// Forgets the chains of all disks but these, by the names of their records.
    pub(super) fn retain_chains(&self, devices: &BTreeSet<String>) {
        self.lock().chains.retain(|device, _| devices.contains(device));
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The claims of one disk.
pub(super) struct ImageService {
    path: DevicePath,
    kept: KeptClaims,
    sizes: SizeWatches,
    /// The watches on the sizes of claimed files.
    watches: BTreeMap<u64, Watched>,
    /// The options of the claimed target.
    options: Option<TargetOptions>,
    /// The target's backing files.
    chain: Chain,
    /// For each claim, the file and the one behind a loop device.
    claims: BTreeMap<u64, Vec<Claim>>,
    last: u64,
}

/// An answer, and the files that come with it.
pub(super) type Answer = (Reply, Vec<OwnedFd>);

impl ImageService {
    /// The claims of the disk at `path`, of which an earlier process may have left some.
    pub(super) fn new(path: &DevicePath, kept: KeptClaims, sizes: SizeWatches) -> Self {
        Self {
            path: path.clone(),
            kept,
            sizes,
            watches: BTreeMap::new(),
            options: None,
            chain: Chain::new(),
            claims: BTreeMap::new(),
            last: 0,
        }
    }

    /// Does what the disk asks for.
    pub(super) fn answer<S: XenStore>(
        &mut self,
        request: ImageRequest,
        keys: Option<&mut Keys<S>>,
        config: &ConfigFile,
    ) -> Answer {
        match request {
            ImageRequest::ClaimTarget { path: target, access, sharing } => {
                let asked = (target.as_path(), access, sharing);
                let Some(keys) = keys else { return refused("XenStore cannot be reached") };
                match target_options(keys, &self.path, config) {
                    Ok(options) if is_same(&options, asked) => self.claim_target(options),
                    Ok(_) => refused("the disk's configuration has changed; try again"),
                    Err(error) => refused(&Causes(&error).to_string()),
                }
            }
            ImageRequest::FindBacking { image } => match self.chain.get(&image) {
                Some(found) => (Reply::Found(found.clone()), Vec::new()),
                None => (Reply::Forbidden, Vec::new()),
            },
            ImageRequest::Identify { path } => match self.is_backing(&path) {
                true => (identity(FileId::of(&path)), Vec::new()),
                false => (Reply::Forbidden, Vec::new()),
            },
            ImageRequest::ClaimBacking { path } => self.claim_backing(&path),
            ImageRequest::OpenDirect { claim } => self.with_claim(claim, |claim| {
                let opened = claim.open_direct();
                opened.map_or_else(failed, |file| (Reply::Done, vec![file.into()]))
            }),
            ImageRequest::WatchSize { file, bytes } => self.watch_size(file, bytes),
            ImageRequest::HasOtherWriter { claim } => self
                .with_claim(claim, |claim| (Reply::Answer(claim.has_other_writer()), Vec::new())),
            ImageRequest::Activate { claim } => {
                self.with_claim(claim, |claim| (Reply::Activated(claim.activate()), Vec::new()))
            }
            ImageRequest::Deactivate { claim } => self.with_claim(claim, |claim| {
                claim.deactivate();
                (Reply::Done, Vec::new())
            }),
            ImageRequest::Release { claim } => {
                self.watches.remove(&claim);
                match self.claims.remove(&claim) {
                    Some(claims) => {
                        self.release(claims);
                        (Reply::Done, Vec::new())
                    }
                    None => (Reply::Forbidden, Vec::new()),
                }
            }
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
        if !self.kept.release_for(&self.path) {
            return failed(ClaimError::Unfinished { path: options.path });
        }
        match claim_target_for_process(&options) {
            Ok((claims, file)) => {
                let target = (&*options.path, options.format());
                self.chain = self.kept.settle_chain(&self.path, target, &file);
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
        let options = self.options.as_ref().filter(|_| self.is_backing(path));
        let Some(options) = options.filter(|_| self.claims.len() < MOST_CLAIMS) else {
            return (Reply::Forbidden, Vec::new());
        };
        match claim_backing_for_process(options, path) {
            Ok((claim, file)) => self.claimed(vec![claim], file),
            Err(error) => failed(error),
        }
    }

    fn is_backing(&self, path: &Path) -> bool {
        self.chain.values().any(|backing| backing == path)
    }

    /// Releases files that the disk has given up, or keeps them while its process has them open all
    /// the same.
    fn release(&self, claims: Vec<Claim>) {
        if !claims.iter().all(Claim::is_finished) {
            self.kept.keep(&self.path, claims);
        }
    }

    fn claimed(&mut self, claims: Vec<Claim>, file: File) -> Answer {
        let limits = QueueLimits::of(&file).unwrap_or_default();
        self.last += 1;
        let is_marked = claims.first().is_some_and(|claim| claim.is_marked());
        self.claims.insert(self.last, claims);
        (Reply::Claimed { claim: self.last, is_marked, limits }, vec![file.into()])
    }

    /// Watches the size of a claimed file until the claim is released. The guest's own writes are
    /// not known here: while it writes, the file is watched again each interval.
    fn watch_size(&mut self, file: FileId, bytes: u64) -> Answer {
        let mut claims =
            self.claims.iter().filter_map(|(number, all)| Some((number, all.first()?)));
        let Some((number, claim)) = claims.find(|(_, claim)| claim.id() == file) else {
            return (Reply::Forbidden, Vec::new());
        };
        let watch = || -> io::Result<_> {
            let file = claim.file().map_err(io::Error::other)?;
            let (listener, theirs) = WakeUp::pair()?;
            let (stats, listener) = (Arc::default(), Arc::new(listener));
            let watched = self.sizes.watch_for(file.as_fd(), bytes, &stats, listener)?;
            Ok((watched, theirs))
        };
        match watch() {
            Ok((watched, theirs)) => {
                self.watches.insert(*number, watched);
                (Reply::Done, vec![theirs])
            }
            Err(error) => device_service::failed(&error),
        }
    }

    fn with_claim(&self, number: u64, answer: impl FnOnce(&Claim) -> Answer) -> Answer {
        let claim = self.claims.get(&number).and_then(|claims| claims.first());
        claim.map_or((Reply::Forbidden, Vec::new()), answer)
    }
}

impl SizeListener for WakeUp {
    fn notify(&self) -> io::Result<()> {
        self.send();
        Ok(())
    }
}

/// The chain of backing files that begins with a target, as far as the headers can be read and name
/// files, and what is found of its images beside what is known. The disk says why one is refused.
fn chain_of(target: (&Path, ImageFormat), file: &File, known: Backings) -> (Chain, Backings) {
    let (path, format) = target;
    let (mut chain, mut all) = (Chain::new(), known);
    let of = |file: Option<&File>, image: &Path, format| match (file, format) {
        // The guest wrote all of a raw image.
        (None, _) | (_, ImageFormat::Raw) => None,
        (Some(file), ImageFormat::Qcow2) => backing_of(file, image).ok().flatten(),
    };
    let mut image = path.to_owned();
    let mut next = all.entry(image.clone()).or_insert_with(|| of(Some(file), path, format)).clone();
    while let Some((backing, format)) = next.take().filter(|_| chain.len() < MOST_CLAIMS) {
        if chain.insert(image, backing.clone()).is_some() {
            break;
        }
        let of_image = || of(File::open(&backing).ok().as_ref(), &backing, format);
        next = all.entry(backing.clone()).or_insert_with(of_image).clone();
        image = backing;
    }
    (chain, all)
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
