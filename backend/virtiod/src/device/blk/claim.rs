//! Claims of image files: nobody else may write a disk while a guest uses it.
//!
//! A device claims a file before it uses it. The registry knows which device of this daemon owns a
//! file, and can name the owner. QEMU's [locks](mod@lock) keep other programs away, and block
//! devices are opened exclusively as well, which a mount respects. Neither stops a [loop
//! device](loop_device) over the file, so the registry searches for one.

mod durability;
mod entry;
mod error;
mod file_id;
mod io_mark;
mod lock;
mod loop_device;
mod plain;
mod queue_limits;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

pub use self::durability::Durability;
pub(super) use self::durability::SyncStart;
pub use self::entry::Handover;
use self::entry::{Entry, Holder, User, UserState};
pub use self::error::ClaimError;
pub use self::file_id::FileId;
use self::file_id::open;
use self::io_mark::IoMark;
pub use self::queue_limits::QueueLimits;
pub use self::usage::{Owner, Sharing, Usage};
use super::image::beside;
use super::target::{AccessMode, TargetOptions};

/// The images that devices of this daemon use.
static IMAGES: LazyLock<ImageRegistry> =
    LazyLock::new(|| ImageRegistry::new(loop_device::SYSFS.into()));

/// Claims files for disks.
pub trait Images: Send + Sync {
    /// Claims a target and, if that is a loop device, the file behind it.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn claim_target(&self, options: &TargetOptions) -> Result<TargetClaims, ClaimError>;

    /// Claims a backing file of this target, for reading.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn claim_backing(
        &self,
        options: &TargetOptions,
        path: &Path,
    ) -> Result<Box<dyn Claimed>, ClaimError>;

    /// The path of the backing file that the image at `image` names `name`: it is in the image's
    /// own directory.
    ///
    /// # Errors
    /// The file is elsewhere, or missing.
    fn find_backing(&self, image: &Path, name: &str) -> io::Result<PathBuf>;

    /// Identifies a backing file of this target.
    ///
    /// # Errors
    /// As for [`FileId::of`].
    fn identify(&self, path: &Path) -> Result<FileId, ClaimError>;
}

/// The claims of a target.
pub struct TargetClaims {
    /// That of the target itself.
    pub target: Box<dyn Claimed>,
    /// That of the file behind a loop device.
    pub behind: Option<Box<dyn Claimed>>,
}

/// A file that belongs to a device until this is dropped.
pub trait Claimed: Send + Sync {
    /// The identity of the file.
    fn id(&self) -> FileId;

    /// The file, open with the access that was claimed.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn file(&self) -> Result<Arc<File>, ClaimError>;

    /// Opens the same file for direct I/O, past the page cache.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn open_direct(&self) -> Result<File, ClaimError>;

    /// The limits of the block device that the file is or is on.
    fn queue_limits(&self) -> QueueLimits;

    /// Whether another process can tell when this one's operations on the file have ended.
    fn is_marked(&self) -> bool;

    /// Whether another device that may write the file has it.
    fn has_other_writer(&self) -> bool;

    /// The durability of what devices of this process wrote to the file.
    fn durability(&self) -> &Arc<Durability>;

    /// Notes that a driver uses the disk. If a guest is two domains for a while, only one may.
    ///
    /// # Errors
    /// The owner of the other domain's device, while a driver uses that.
    fn activate(&self) -> Result<Handover, Owner>;

    /// Notes that no driver uses the disk any more.
    fn deactivate(&self);
}

/// Claims for devices of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalImages;

impl Images for LocalImages {
    fn claim_target(&self, options: &TargetOptions) -> Result<TargetClaims, ClaimError> {
        let usage = Usage::of_target(options);
        let target = IMAGES.claim(&options.path, usage, &options.owner)?;
        let behind = IMAGES.claim_behind(&target, usage, &options.owner)?;
        let behind = behind.map(|claim| Box::new(claim) as _);
        Ok(TargetClaims { target: Box::new(target), behind })
    }

    fn claim_backing(
        &self,
        options: &TargetOptions,
        path: &Path,
    ) -> Result<Box<dyn Claimed>, ClaimError> {
        let usage = Usage::of_backing(options);
        Ok(Box::new(IMAGES.claim(path, usage, &options.owner)?))
    }

    fn find_backing(&self, image: &Path, name: &str) -> io::Result<PathBuf> {
        beside(image, name)
    }

    fn identify(&self, path: &Path) -> Result<FileId, ClaimError> {
        FileId::of(path)
    }
}

/// Claims a target for a disk in another process; returns the claims, and the target's file for
/// that process.
///
/// # Errors
/// [`ClaimError`].
pub fn claim_target_for_process(options: &TargetOptions) -> Result<(Vec<Claim>, File), ClaimError> {
    let usage = Usage::of_target(options);
    let (target, file) = IMAGES.claim_for_process(&options.path, usage, &options.owner)?;
    let behind = IMAGES.claim_behind(&target, usage, &options.owner)?;
    Ok(([target].into_iter().chain(behind).collect(), file))
}

/// As [`claim_target_for_process`], for a backing file of the target.
///
/// # Errors
/// [`ClaimError`].
pub fn claim_backing_for_process(
    options: &TargetOptions,
    path: &Path,
) -> Result<(Claim, File), ClaimError> {
    let usage = Usage::of_backing(options);
    IMAGES.claim_for_process(path, usage, &options.owner)
}

/// The registry of files and their users.
pub(super) struct ImageRegistry {
    sysfs: PathBuf,
    entries: Mutex<HashMap<FileId, Weak<Mutex<Entry>>>>,
}

impl ImageRegistry {
    fn new(sysfs: PathBuf) -> Self {
        Self { sysfs, entries: Mutex::default() }
    }

    /// Claims the file at `path` for `owner`.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn claim(
        &self,
        path: &Path,
        usage: Usage,
        owner: &Owner,
    ) -> Result<Claim, ClaimError> {
        let claimed = self.claim_file(path, usage, owner, None, Holder::ThisProcess);
        claimed.map(|(claim, _)| claim)
    }

    /// As [`ImageRegistry::claim`], for a device in another process; returns the file for that,
    /// which this process must not keep: it belongs to the other one's operations.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn claim_for_process(
        &self,
        path: &Path,
        usage: Usage,
        owner: &Owner,
    ) -> Result<(Claim, File), ClaimError> {
        let (claim, file) = self.claim_file(path, usage, owner, None, Holder::OtherProcess)?;
        let file = file.ok_or_else(|| ClaimError::Replaced { path: path.to_owned() })?;
        Ok((claim, file))
    }

    /// Claims the file behind `device` too, if that is a loop device.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn claim_behind(
        &self,
        device: &Claim,
        usage: Usage,
        owner: &Owner,
    ) -> Result<Option<Claim>, ClaimError> {
        let FileId::Device(number) = device.file else { return Ok(None) };
        let Some(backing) = loop_device::backing_file(&self.sysfs, number) else { return Ok(None) };
        let through = Some(backing.device);
        let claimed = self.claim_file(&backing.file, usage, owner, through, Holder::ThisProcess)?;
        Ok(Some(claimed.0))
    }

    fn claim_file(
        &self,
        path: &Path,
        usage: Usage,
        owner: &Owner,
        through: Option<String>,
        holder: Holder,
    ) -> Result<(Claim, Option<File>), ClaimError> {
        let id = FileId::of(path)?;
        let entry = self.entry(id);
        let mut locked = lock(&entry);
        let user = locked.new_user(owner, usage, through);
        locked.check_users(path, &user)?;
        if usage.sharing == Sharing::Safe {
            self.check_loop_devices(path, id, &user)?;
        }
        let (user, file) = locked.add(path, id, user, holder)?;
        let durability = locked.durability();
        drop(locked);
        let (path, access, mark) = (path.to_owned(), usage.access, IoMark::of(owner));
        Ok((Claim { path, file: id, access, entry, durability, user, mark }, file))
    }

    /// The entry of a file. Each file has a lock of its own, so that a claim does not wait for the
    /// storage of another file.
    fn entry(&self, id: FileId) -> Arc<Mutex<Entry>> {
        let mut entries = lock(&self.entries);
        entries.retain(|_, entry| entry.strong_count() > 0);
        let known = entries.get(&id).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let entry = Arc::new(Mutex::default());
            entries.insert(id, Arc::downgrade(&entry));
            entry
        })
    }

    fn check_loop_devices(&self, path: &Path, id: FileId, user: &User) -> Result<(), ClaimError> {
        let devices = loop_device::loop_devices_of(&self.sysfs, id)?;
        let harmless = |device: &loop_device::LoopDevice| {
            user.through.as_ref() == Some(&device.name) || device.read_only && !user.usage.writes()
        };
        match devices.into_iter().find(|device| !harmless(device)) {
            Some(found) => {
                Err(ClaimError::LoopDevice { path: path.to_owned(), device: found.name })
            }
            None => Ok(()),
        }
    }
}

/// Locks a mutex. The data of a poisoned one is still valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A file of this daemon's that belongs to a device until this is dropped.
pub struct Claim {
    path: PathBuf,
    file: FileId,
    access: AccessMode,
    entry: Arc<Mutex<Entry>>,
    durability: Arc<Durability>,
    user: u64,
    mark: IoMark,
}

impl Claim {
    /// Whether no operation of the device, in whatever process, on the file is under way.
    pub fn is_finished(&self) -> bool {
        lock(&self.entry).is_finished(self.user)
    }

    /// Opens the file once more. It is marked where the first one is.
    fn open(&self, flags: i32) -> Result<File, ClaimError> {
        let file = open(&self.path, self.file, self.access, flags)?;
        if self.is_marked() {
            self.mark.set(&file)?;
        }
        Ok(file)
    }
}

impl Claimed for Claim {
    fn id(&self) -> FileId {
        self.file
    }

    fn file(&self) -> Result<Arc<File>, ClaimError> {
        // For a block device, the file that was opened exclusively: the kernel does not let others
        // discard.
        let opened = lock(&self.entry).file(self.access);
        match opened {
            Some(file) => Ok(file),
            None => self.open(0).map(Arc::new),
        }
    }

    fn open_direct(&self) -> Result<File, ClaimError> {
        self.open(libc::O_DIRECT)
    }

    fn queue_limits(&self) -> QueueLimits {
        self.file().ok().and_then(|file| QueueLimits::of(&file).ok()).unwrap_or_default()
    }

    fn is_marked(&self) -> bool {
        lock(&self.entry).is_marked(self.user)
    }

    fn has_other_writer(&self) -> bool {
        lock(&self.entry).has_other_writer(self.user)
    }

    fn durability(&self) -> &Arc<Durability> {
        &self.durability
    }

    fn activate(&self) -> Result<Handover, Owner> {
        lock(&self.entry).activate(self.user)
    }

    fn deactivate(&self) {
        lock(&self.entry).set_state(self.user, UserState::Idle);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.entry).remove(&self.path, self.user);
    }
}
