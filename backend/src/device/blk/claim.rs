//! Who has which image: a guest's disk must not be written by anybody else meanwhile.
//!
//! A file is claimed before it is used. Among the devices of this daemon the registry says whose a
//! file is, and can name the owner; other programs are kept off by QEMU's [locks](lock), block
//! devices by exclusive opening as well, which a mount respects. Neither stops a
//! [loop device](loop_device) over the file, so the registry looks for one.

mod lock;
mod loop_device;

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

pub use self::lock::Conflict;
use self::lock::{LockError, LockState, LockedFile, Permission, Permissions};
use super::target::AccessMode;

/// The images that devices of this process have.
pub(super) static IMAGES: LazyLock<ImageRegistry> =
    LazyLock::new(|| ImageRegistry::new(loop_device::SYSFS.into()));

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
    fn is_same_guest(&self, other: &Self) -> bool {
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
    fn writes(self) -> bool {
        self.access == AccessMode::ReadWrite
    }

    fn locks(self) -> LockState {
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

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another device of this daemon has it.
    #[error(
        "disk target {path:?} is in use: {owner}{how}; only what nobody writes can be shared",
        how = match .access {
            AccessMode::ReadOnly => "",
            AccessMode::ReadWrite => " and may write it",
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: Owner,
        /// Whether the owner may write it.
        access: AccessMode,
    },
    /// Another program has it.
    #[error(
        "disk target {path:?} is in use by another program: {conflict}; this lists the programs \
         that have it open: fuser -v {path:?}"
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// The conflict, as QEMU words it.
        conflict: Conflict,
    },
    /// The kernel has it, or another program has it for itself.
    #[error(
        "disk target {path:?} is in use: it is mounted, or part of a volume, an array or swap, or \
         another program has it for itself; these show what has it: lsblk {path:?}; fuser -v \
         {path:?}"
    )]
    Busy {
        /// The block device.
        path: PathBuf,
    },
    /// A loop device makes it a block device, which may be mounted.
    #[error(
        "disk target {path:?} is in use: it is behind /dev/{device}; once that is not mounted any \
         more, this ends it: losetup -d /dev/{device}"
    )]
    LoopDevice {
        /// The file.
        path: PathBuf,
        /// The loop device's name.
        device: String,
    },
    /// The name is another file's now.
    #[error(
        "disk target {path:?} was replaced by another file while it was being opened; try again"
    )]
    Replaced {
        /// The name.
        path: PathBuf,
    },
    /// It is neither file nor block device.
    #[error("disk target {path:?} is neither a file nor a block device")]
    Kind {
        /// The target.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] io::Error),
}

/// A file or block device, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FileId {
    /// A file, by its file system and number there.
    File { device: u64, inode: u64 },
    /// A block device, by its number.
    Device(u64),
}

impl FileId {
    /// Identifies the file or block device with this name.
    ///
    /// # Errors
    /// [`ClaimError::Open`], [`ClaimError::Kind`].
    pub(super) fn of(path: &Path) -> Result<Self, ClaimError> {
        // Looked at before it is opened: opening a FIFO would wait for its other end, and some
        // devices do something.
        Self::from_metadata(&path.metadata()?)
            .ok_or_else(|| ClaimError::Kind { path: path.to_owned() })
    }

    fn from_metadata(metadata: &Metadata) -> Option<Self> {
        if metadata.is_file() {
            return Some(Self::File { device: metadata.dev(), inode: metadata.ino() });
        }
        metadata.file_type().is_block_device().then(|| Self::Device(metadata.rdev()))
    }
}

/// Which files are whose.
pub(super) struct ImageRegistry {
    sysfs: PathBuf,
    entries: Mutex<HashMap<FileId, Weak<Mutex<Entry>>>>,
}

/// One file that devices have.
#[derive(Default)]
struct Entry {
    opened: Option<Opened>,
    users: Vec<User>,
    next_id: u64,
    /// Who could write it last.
    latest: Option<u64>,
}

/// The file, as it was opened first.
struct Opened {
    locked: LockedFile,
    access: AccessMode,
}

/// A device that has the file.
#[derive(Clone)]
struct User {
    id: u64,
    owner: Owner,
    usage: Usage,
    /// The loop device by way of which it is used, if it is.
    through: Option<String>,
    state: UserState,
}

/// Whether a driver uses the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UserState {
    Idle,
    Active,
}

/// Who could write a file since it was used last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handover {
    /// Nobody else.
    None,
    /// Another of its users.
    FromOther,
}

impl User {
    /// Whether both may have the file.
    fn goes_with(&self, other: &Self) -> bool {
        let reads = !self.usage.writes() && !other.usage.writes();
        let forced = self.is_forced() && other.is_forced();
        let one_device = self.through.is_some() && self.through == other.through;
        reads || forced || one_device || self.owner.is_same_guest(&other.owner)
    }

    /// Whether both may use the file at a time.
    fn may_be_active_with(&self, other: &Self) -> bool {
        let handed_over = self.owner.is_same_guest(&other.owner);
        !handed_over || !self.usage.writes() && !other.usage.writes() || self.is_forced()
    }

    fn is_forced(&self) -> bool {
        self.usage.sharing == Sharing::Forced
    }
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
        self.claim_file(path, usage, owner, None)
    }

    /// Claims what is behind `device` too, if that is a loop device.
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
        let Some(behind) = loop_device::behind(&self.sysfs, number) else { return Ok(None) };
        self.claim_file(&behind.file, usage, owner, Some(behind.device)).map(Some)
    }

    fn claim_file(
        &self,
        path: &Path,
        usage: Usage,
        owner: &Owner,
        through: Option<String>,
    ) -> Result<Claim, ClaimError> {
        let id = FileId::of(path)?;
        let entry = self.entry(id);
        let mut own = lock(&entry);
        let owner = owner.clone();
        let user = User { id: own.next_id, owner, usage, through, state: UserState::Idle };
        own.check_users(path, &user)?;
        own.open(path, id, usage)?;
        if usage.sharing == Sharing::Safe {
            self.check_loop_devices(path, id, &user)?;
        }
        own.lock_for(path, &user)?;
        own.next_id += 1;
        let id_of_user = user.id;
        own.users.push(user);
        drop(own);
        Ok(Claim { path: path.to_owned(), file: id, entry, user: id_of_user })
    }

    /// The entry of a file; no other is waited for meanwhile, whatever its storage does.
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
        let devices = loop_device::over(&self.sysfs, id)?;
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

impl Entry {
    fn check_users(&self, path: &Path, user: &User) -> Result<(), ClaimError> {
        match self.users.iter().find(|other| !user.goes_with(other)) {
            Some(other) => Err(ClaimError::InUse {
                path: path.to_owned(),
                owner: other.owner.clone(),
                access: other.usage.access,
            }),
            None => Ok(()),
        }
    }

    /// Opens the file, unless it is open.
    fn open(&mut self, path: &Path, id: FileId, usage: Usage) -> Result<(), ClaimError> {
        if self.opened.is_some() && !self.users.is_empty() {
            return Ok(());
        }
        // Left by somebody who is just about to close it.
        self.opened = None;
        let exclusive = match (id, usage.sharing) {
            (FileId::Device(_), Sharing::Safe) => libc::O_EXCL,
            _ => 0,
        };
        let file = open(path, id, usage.access, exclusive).map_err(|error| match error {
            ClaimError::Open(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                ClaimError::Busy { path: path.to_owned() }
            }
            other => other,
        })?;
        self.opened = Some(Opened { locked: LockedFile::new(file), access: usage.access });
        Ok(())
    }

    /// Sets the locks for all users and one more.
    fn lock_for(&mut self, path: &Path, user: &User) -> Result<(), ClaimError> {
        match self.set_locks(Some(user)) {
            Ok(()) => Ok(()),
            Err(LockError::Held(conflict)) if user.is_forced() => {
                tracing::warn!("{path:?} is shared by force with another program: {conflict}");
                Ok(())
            }
            Err(LockError::Held(conflict)) => {
                Err(ClaimError::Locked { path: path.to_owned(), conflict })
            }
            Err(LockError::System(error)) => {
                tracing::warn!(
                    %error,
                    "{path:?} cannot be locked, so that no other program is kept from using it"
                );
                Ok(())
            }
        }
    }

    fn set_locks(&mut self, one_more: Option<&User>) -> Result<(), LockError> {
        let none = LockState::default();
        let all = self.users.iter().chain(one_more).fold(none, |sum, user| {
            let one = user.usage.locks();
            LockState { used: sum.used.with(one.used), refused: sum.refused.with(one.refused) }
        });
        self.opened.as_mut().map_or(Ok(()), |opened| opened.locked.change(all))
    }

    fn activate(&mut self, id: u64) -> Result<Handover, Owner> {
        let Some(user) = self.users.iter().find(|user| user.id == id).cloned() else {
            return Ok(Handover::None);
        };
        let in_the_way = |other: &&User| {
            other.id != id && other.state == UserState::Active && !user.may_be_active_with(other)
        };
        if let Some(other) = self.users.iter().find(in_the_way) {
            return Err(other.owner.clone());
        }
        self.set_state(id, UserState::Active);
        let by_other = self.latest.is_some_and(|latest| latest != id);
        if user.usage.writes() {
            self.latest = Some(id);
        }
        Ok(if by_other { Handover::FromOther } else { Handover::None })
    }

    fn set_state(&mut self, id: u64, state: UserState) {
        let own = self.users.iter_mut().find(|user| user.id == id);
        own.into_iter().for_each(|user| user.state = state);
    }
}

/// Opens a file that is to be the one that was looked at.
fn open(path: &Path, id: FileId, access: AccessMode, flags: i32) -> Result<File, ClaimError> {
    let write = access == AccessMode::ReadWrite;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(write).custom_flags(flags).open(path)?;
    if FileId::from_metadata(&file.metadata()?) != Some(id) {
        return Err(ClaimError::Replaced { path: path.to_owned() });
    }
    Ok(file)
}

/// A poisoned lock still holds what is known.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A file that a device has, until this is dropped.
pub(super) struct Claim {
    path: PathBuf,
    file: FileId,
    entry: Arc<Mutex<Entry>>,
    user: u64,
}

impl Claim {
    /// Which file it is.
    pub(super) fn id(&self) -> FileId {
        self.file
    }

    /// The file, open for what it was claimed for.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn file(&self) -> Result<Arc<File>, ClaimError> {
        let entry = lock(&self.entry);
        let access =
            entry.users.iter().find(|user| user.id == self.user).map(|user| user.usage.access);
        let access = access.unwrap_or(AccessMode::ReadOnly);
        match &entry.opened {
            // Of a block device, the one that has it exclusively: the kernel lets others discard
            // nothing.
            Some(opened) if opened.access == access => Ok(opened.locked.file()),
            _ => open(&self.path, self.file, access, 0).map(Arc::new),
        }
    }

    /// The same file past the page cache.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn open_direct(&self, access: AccessMode) -> Result<File, ClaimError> {
        open(&self.path, self.file, access, libc::O_DIRECT)
    }

    /// Notes that a driver uses the disk. Of a guest that is two domains for a while, one may.
    ///
    /// # Errors
    /// The other domain's device, while it is used.
    pub(super) fn activate(&self) -> Result<Handover, Owner> {
        lock(&self.entry).activate(self.user)
    }

    /// Notes that no driver uses the disk any more.
    pub(super) fn deactivate(&self) {
        lock(&self.entry).set_state(self.user, UserState::Idle);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut entry = lock(&self.entry);
        entry.users.retain(|user| user.id != self.user);
        // Of the last one the file is closed, which ends all locks.
        if !entry.users.is_empty()
            && let Err(error) = entry.set_locks(None)
        {
            tracing::warn!(%error, "the locks on {:?} stay as they were", self.path);
        }
    }
}

#[cfg(test)]
mod tests;
