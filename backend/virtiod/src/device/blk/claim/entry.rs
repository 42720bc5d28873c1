//! The state of one claimed file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::durability::Durability;
use super::error::ClaimError;
use super::file_id::{FileId, open};
use super::io_mark::IoMark;
use super::lock::{LockError, LockState, LockedFile};
use super::usage::{Owner, Sharing, Usage};
use crate::device::blk::target::AccessMode;

/// A file that devices of this daemon use.
#[derive(Default)]
pub(super) struct Entry {
    opened: Option<Opened>,
    users: Vec<User>,
    next_id: u64,
    /// The user that could write the file last.
    latest: Option<u64>,
    durability: Arc<Durability>,
}

/// The file, as the first user opened it.
struct Opened {
    locked: LockedFile,
    access: AccessMode,
}

/// A device that uses the file.
#[derive(Clone)]
pub(super) struct User {
    id: u64,
    owner: Owner,
    pub(super) usage: Usage,
    /// The loop device through which it uses the file, if it does.
    pub(super) through: Option<String>,
    state: UserState,
    /// Whether the file has its mark.
    is_marked: bool,
}

/// The process that transfers data with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// This one, by the file that has the locks.
    ThisProcess,
    /// Another one, by a file of its own: the locks stay if it dies, and its mark ends with its
    /// last operation.
    OtherProcess,
}

/// Whether a driver uses the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum UserState {
    Idle,
    Active,
}

/// Whether another user could write a file since this one used it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handover {
    /// No other user could.
    None,
    /// Another user of the file could.
    FromOther,
}

impl User {
    /// Whether both may claim the file.
    fn goes_with(&self, other: &Self) -> bool {
        let reads = !self.usage.writes() && !other.usage.writes();
        let forced = self.is_forced() && other.is_forced();
        let one_device = self.through.is_some() && self.through == other.through;
        reads || forced || one_device || self.owner.is_same_guest(&other.owner)
    }

    /// Whether drivers may use both devices at the same time.
    fn may_be_active_with(&self, other: &Self) -> bool {
        let handed_over = self.owner.is_same_guest(&other.owner);
        !handed_over || !self.usage.writes() && !other.usage.writes() || self.is_forced()
    }

    fn is_forced(&self) -> bool {
        self.usage.sharing == Sharing::Forced
    }
}

impl Entry {
    /// Prepares a user, which [`Entry::add`] adds.
    pub(super) fn new_user(&self, owner: &Owner, usage: Usage, through: Option<String>) -> User {
        let (id, owner) = (self.next_id, owner.clone());
        User { id, owner, usage, through, state: UserState::Idle, is_marked: false }
    }

    /// Adds a device that may claim the file beside all others; returns the number that identifies
    /// it, and the file for another process.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(super) fn add(
        &mut self,
        path: &Path,
        id: FileId,
        user: User,
        holder: Holder,
    ) -> Result<(u64, Option<File>), ClaimError> {
        let exclusive = match (id, user.usage.sharing) {
            (FileId::Device(_), Sharing::Safe) => libc::O_EXCL,
            _ => 0,
        };
        // Discards need the file that has a block device for itself, so that of a writer's process.
        let writes_elsewhere = holder == Holder::OtherProcess && user.usage.writes();
        let own = if writes_elsewhere { 0 } else { exclusive };
        let is_first = self.users.is_empty();
        self.open(path, id, user.usage, own)?;
        self.look_for_unfinished(path, &user)?;
        self.lock_for(path, &user)?;
        let file = match holder {
            Holder::ThisProcess => None,
            // Of several, the kernel lets one have a block device for itself.
            Holder::OtherProcess => {
                let flags = if is_first && user.usage.writes() { exclusive } else { 0 };
                Some(open_free(path, id, user.usage, flags)?)
            }
        };
        let opened = self.opened.as_ref().map(|opened| opened.locked.file());
        let is_marked = match (&file, opened) {
            (Some(file), _) => mark(path, &user, file),
            (None, Some(file)) => mark(path, &user, &file),
            (None, None) => false,
        };
        let number = user.id;
        self.next_id += 1;
        self.users.push(User { is_marked, ..user });
        Ok((number, file))
    }

    /// Checks that no operation of an earlier process of this device is under way.
    fn look_for_unfinished(&self, path: &Path, user: &User) -> Result<(), ClaimError> {
        let opened = self.opened.as_ref().map(|opened| opened.locked.file());
        match opened.is_some_and(|file| IoMark::of(&user.owner).is_elsewhere(&file)) {
            true => Err(ClaimError::Unfinished { path: path.to_owned() }),
            false => Ok(()),
        }
    }

    /// Whether no operation of user `id` in another process is under way.
    pub(super) fn is_finished(&self, id: u64) -> bool {
        let user = self.users.iter().find(|user| user.id == id);
        let opened = self.opened.as_ref().map(|opened| opened.locked.file());
        user.zip(opened).is_none_or(|(user, file)| !IoMark::of(&user.owner).is_elsewhere(&file))
    }

    /// Whether the file is marked as one of user `id`.
    pub(super) fn is_marked(&self, id: u64) -> bool {
        self.users.iter().any(|user| user.id == id && user.is_marked)
    }

    /// Removes a device. With the last one the entry ends, and with that its locks.
    pub(super) fn remove(&mut self, path: &Path, id: u64) {
        let removed = self.users.iter().find(|user| user.id == id);
        if let (Some(user), Some(opened)) = (removed, &self.opened)
            && user.is_marked
        {
            IoMark::of(&user.owner).clear(&opened.locked.file());
        }
        self.users.retain(|user| user.id != id);
        if self.users.is_empty() {
            return;
        }
        if let Err(error) = self.set_locks(None) {
            tracing::warn!(%error, "cannot change the locks on {path:?}: they stay as they were");
        }
    }

    /// The file, if it is open with this access.
    pub(super) fn file(&self, access: AccessMode) -> Option<Arc<File>> {
        let opened = self.opened.as_ref().filter(|opened| opened.access == access)?;
        Some(opened.locked.file())
    }

    /// The durability of written data, shared by all users of the file, since the kernel reports a
    /// failed sync only once.
    pub(super) fn durability(&self) -> Arc<Durability> {
        Arc::clone(&self.durability)
    }

    /// Whether a device other than user `id` may write the file.
    pub(super) fn has_other_writer(&self, id: u64) -> bool {
        self.users.iter().any(|user| user.id != id && user.usage.writes())
    }

    /// Checks that a device may claim the file beside its users.
    ///
    /// # Errors
    /// [`ClaimError::InUse`].
    pub(super) fn check_users(&self, path: &Path, user: &User) -> Result<(), ClaimError> {
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
    fn open(
        &mut self,
        path: &Path,
        id: FileId,
        usage: Usage,
        flags: i32,
    ) -> Result<(), ClaimError> {
        if self.opened.is_some() && !self.users.is_empty() {
            return Ok(());
        }
        // A remainder of a user that is about to close the file.
        self.opened = None;
        self.durability = Arc::default();
        let file = open_free(path, id, usage, flags)?;
        self.opened = Some(Opened { locked: LockedFile::new(file), access: usage.access });
        Ok(())
    }

    /// Sets the locks for all users and one more.
    fn lock_for(&mut self, path: &Path, user: &User) -> Result<(), ClaimError> {
        match self.set_locks(Some(user)) {
            Ok(()) => Ok(()),
            Err(LockError::HeldLock(conflict)) if user.is_forced() => {
                tracing::warn!("{path:?} is shared by force with another program: {conflict}");
                Ok(())
            }
            Err(LockError::HeldLock(conflict)) => {
                Err(ClaimError::Locked { path: path.to_owned(), conflict })
            }
            Err(LockError::System(error)) => {
                tracing::warn!(
                    %error,
                    "{path:?} cannot be locked: other programs may use it at the same time"
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

    /// Notes that the driver of user `id` uses the disk.
    ///
    /// # Errors
    /// The owner of the device whose driver uses the disk in the guest's other domain.
    pub(super) fn activate(&mut self, id: u64) -> Result<Handover, Owner> {
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

    pub(super) fn set_state(&mut self, id: u64, state: UserState) {
        let own = self.users.iter_mut().find(|user| user.id == id);
        own.into_iter().for_each(|user| user.state = state);
    }
}

/// Opens a file which the kernel, or another program, must not have opened exclusively.
fn open_free(path: &Path, id: FileId, usage: Usage, flags: i32) -> Result<File, ClaimError> {
    open(path, id, usage.access, flags).map_err(|error| match error {
        ClaimError::Open(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            ClaimError::Busy { path: path.to_owned() }
        }
        other => other,
    })
}

/// Marks a file as one with which the device transfers data; returns whether it is marked.
fn mark(path: &Path, user: &User, file: &File) -> bool {
    let marked = IoMark::of(&user.owner).set(file);
    let failed = |error: &std::io::Error| {
        tracing::warn!(%error, "{path:?} cannot be locked: its device ends with this process");
    };
    marked.inspect_err(failed).is_ok()
}
