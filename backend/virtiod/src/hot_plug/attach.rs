//! Attaches a device to a guest that runs.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xen::{DomId, StoreError, ToolstackStore, XenStore};

use super::device::{Class, DeviceId, Disk, Wanted};
use super::domain_record::{DomainRecord, DomainRecordError};
use super::guest::{Guest, GuestError};
use super::list::numbers;
use super::nodes::{DOM0, Nodes, libxl_class};
use super::vdev::Vdev;
use super::wait::{Waited, wait};
use crate::Causes;
use crate::excerpt::one_line;

/// Maximum time for which the daemon's answer is awaited: as long as xl waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The class of libxl's other disks.
const VBD: &str = "vbd";
/// Number of disks that QEMU emulates.
const EMULATED: u32 = 4;
/// Number of devices of one class that a guest has at most.
const MOST_DEVICES: u32 = 1024;

/// A device that cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The guest, or the backend's domain.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// libxl's record of the domain.
    #[error(transparent)]
    Record(#[from] DomainRecordError),
    /// XenStore.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target cannot be looked at.
    #[error("cannot use the target {path:?}")]
    Target {
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The target is no file and no block device.
    #[error("the target {0:?} is neither a file nor a block device")]
    Kind(PathBuf),
    /// The guest has disks of libxl's other class.
    #[error(
        "{0} has disks, or a CD-ROM, without specification=virtio, beside which libxl would lose \
         all of its disks at the next reboot or save: use `xl block-attach`, or give all of its \
         disks specification=virtio"
    )]
    OtherDisks(DomId),
    /// QEMU emulates the disk as well.
    #[error(
        "QEMU gives {0} to an HVM guest as an IDE disk too, so that the target would have two \
         users; use xvde or later"
    )]
    Emulated(Vdev),
    /// The name belongs to a device that differs.
    #[error("{0} is attached already, and differs; detach it first, or choose another vdev=")]
    Taken(DeviceId),
    /// No name is left.
    #[error("the guest has {MOST_DEVICES} devices of this class already")]
    TooMany,
    /// The daemon refuses the device.
    #[error("xen-virtiod refuses the device: {0}")]
    Refused(String),
    /// The guest ended meanwhile.
    #[error("{0} is being destroyed, restarted or migrated; try again when that has ended")]
    Gone(DomId),
    /// The command was stopped.
    #[error("stopped; nothing was attached")]
    Stopped,
    /// The daemon does not answer.
    #[error(
        "no xen-virtiod has answered in {0} within 10 s: is it running there? (systemctl \
         status xen-virtiod)"
    )]
    NoAnswer(DomId),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The guest has the device now.
    Now(DeviceId),
    /// It had it before.
    Before(DeviceId),
}

/// Attaches a device, in libxl's record too, and waits until the daemon serves it, or until `stop`
/// is readable. If the guest has the same disk already, or a disk of this name with this target,
/// nothing changes.
///
/// # Errors
/// [`AttachError`]; nothing was changed then, unless XenStore failed meanwhile.
pub fn attach<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    stop: BorrowedFd<'_>,
    guest: &str,
    wanted: &Wanted,
    backend: Option<&str>,
) -> Result<Attached, AttachError> {
    let guest = Guest::find(store, guest)?;
    let backend = Backend::find(store, backend)?;
    if let Wanted::Disk(disk) = wanted {
        check_target(disk, backend.id)?;
    }
    // libxl removes what a domain has without this lock, so each step looks at the domain.
    let mut record = DomainRecord::open(records, &guest)?;
    let (device, is_new) = store.transact(|store| -> Result<_, AttachError> {
        check_guest(store, &guest, wanted.class())?;
        let (device, is_new) = choose(store, guest.id, wanted, backend.id)?;
        if is_new {
            let nodes = Nodes::of(guest.id, device, backend.id);
            nodes.create(store, guest.id, device.number, backend.id, wanted)?;
        }
        Ok((device, is_new))
    })?;
    let nodes = Nodes::of(guest.id, device, backend.id);
    let mut outcome = await_answer(store, &nodes, stop, backend.id);
    // An attach that was interrupted has left no entry.
    if outcome.is_ok() && !record.has(device) {
        let entry = wanted.entry(device.number, backend.name.as_deref());
        outcome = record.add(device, entry).map_err(AttachError::from);
    }
    let outcome = outcome.and_then(|()| match guest.is_there(store)? {
        true => Ok(()),
        false => Err(AttachError::Gone(guest.id)),
    });
    match (outcome, is_new) {
        (Ok(()), true) => Ok(Attached::Now(device)),
        (Ok(()), false) => Ok(Attached::Before(device)),
        (Err(error), false) => Err(error),
        (Err(error), true) => {
            let undone = record.remove(device).map_err(AttachError::from);
            let undone = undone.and(nodes.remove(store).map_err(AttachError::from));
            if let Err(error) = undone {
                tracing::error!("cannot undo the attach: {}", Causes(&error));
            }
            Err(error)
        }
    }
}

/// The domain that serves a device.
struct Backend {
    id: DomId,
    /// Its name in libxl's record; Dom0 needs none.
    name: Option<String>,
}

impl Backend {
    fn find(store: &mut impl XenStore, named: Option<&str>) -> Result<Self, GuestError> {
        match named {
            None | Some("0" | "Domain-0" | "dom0") => Ok(Self { id: DOM0, name: None }),
            Some(named) => {
                Guest::find(store, named).map(|it| Self { id: it.id, name: Some(it.name) })
            }
        }
    }
}

fn check_target(disk: &Disk, backend: DomId) -> Result<(), AttachError> {
    // The file of another domain is not here.
    if backend != DOM0 {
        return Ok(());
    }
    let path = &disk.target;
    let facts = fs::metadata(path);
    let facts = facts.map_err(|source| AttachError::Target { path: path.clone(), source })?;
    let kind = facts.file_type();
    let is_usable = kind.is_file() || kind.is_block_device();
    is_usable.then_some(()).ok_or_else(|| AttachError::Kind(path.clone()))
}

/// Whether the guest is there, and may have a device of the class.
fn check_guest(store: &mut impl XenStore, guest: &Guest, class: Class) -> Result<(), AttachError> {
    if !guest.is_there(store)? {
        return Err(AttachError::Gone(guest.id));
    }
    if class == Class::Disk && !store.list(&libxl_class(guest.id, VBD))?.is_empty() {
        return Err(AttachError::OtherDisks(guest.id));
    }
    Ok(())
}

/// The device to attach, and whether it is new. A disk that the guest has already is the same if
/// all that libxl notes of it is.
fn choose(
    store: &mut impl XenStore,
    guest: DomId,
    wanted: &Wanted,
    backend: DomId,
) -> Result<(DeviceId, bool), AttachError> {
    let class = wanted.class();
    let taken = numbers(store, guest, class)?;
    let Wanted::Disk(disk) = wanted else {
        let free = (0..MOST_DEVICES).find(|number| !taken.contains(number));
        return Ok((DeviceId { class, number: free.ok_or(AttachError::TooMany)? }, true));
    };
    let like = |store: &mut _, number| is_like(store, guest, number, disk, backend);
    // QEMU emulates the first disks of an HVM guest too.
    let is_hvm = store.read(&format!("/libxl/{}/type", guest.0))?.as_deref() == Some("hvm");
    let first = if is_hvm { EMULATED } else { 0 };
    if let Some(vdev) = disk.vdev {
        let device = DeviceId { class, number: vdev.number() };
        if (0..first).filter_map(Vdev::nth).any(|emulated| emulated == vdev) {
            return Err(AttachError::Emulated(vdev));
        }
        return match taken.contains(&device.number) {
            false => Ok((device, true)),
            true if like(store, device.number)? => Ok((device, false)),
            true => Err(AttachError::Taken(device)),
        };
    }
    for number in &taken {
        if like(store, *number)? {
            return Ok((DeviceId { class, number: *number }, false));
        }
    }
    let names = (first..MOST_DEVICES).filter_map(Vdev::nth);
    let free = names.map(Vdev::number).find(|number| !taken.contains(number));
    Ok((DeviceId { class, number: free.ok_or(AttachError::TooMany)? }, true))
}

/// Whether a disk that the guest has is the one to attach.
fn is_like(
    store: &mut impl XenStore,
    guest: DomId,
    number: u32,
    disk: &Disk,
    backend: DomId,
) -> Result<bool, StoreError> {
    let nodes = Nodes::of(guest, DeviceId { class: Class::Disk, number }, backend);
    let mut has = |directory: &str, key: &str, wanted: Option<&str>| {
        let value = store.read(&format!("{directory}/{key}"))?;
        Ok::<_, StoreError>(value.as_deref() == wanted)
    };
    let flag = |is| if is { Some("1") } else { Some("0") };
    let target = disk.target.to_str();
    Ok(has(&nodes.libxl, "backend", Some(&nodes.backend))?
        && has(&nodes.libxl, "params", target)?
        && has(&nodes.libxl, "mode", Some(if disk.writes { "w" } else { "r" }))?
        && has(&nodes.libxl, "discard-enable", flag(disk.discards && disk.writes))?
        && has(&nodes.libxl, "direct-io-safe", disk.direct.then_some("1"))?
        && has(&nodes.frontend, "trusted", flag(disk.trusted.unwrap_or(backend == DOM0)))?)
}

/// Waits until the daemon offers the device, or refuses it: it removes the state then.
fn await_answer<S: XenStore>(
    store: &mut S,
    nodes: &Nodes,
    stop: BorrowedFd<'_>,
    backend: DomId,
) -> Result<(), AttachError> {
    let state = format!("{}/state", nodes.backend);
    store.watch(&nodes.backend)?;
    let answered = wait(store, Some(stop), ANSWER_LIMIT, |store| {
        let state = store.read(&state)?;
        Ok(Some(state).filter(|state| state.as_deref() != Some("1")))
    })?;
    match answered {
        Waited::Found(Some(_)) => Ok(()),
        Waited::Found(None) => {
            let reason = store.read(&format!("{}/error", nodes.backend))?;
            // Another domain may have written it.
            let reason = reason.map_or("its log has the reason".to_owned(), |it| one_line(&it));
            Err(AttachError::Refused(reason))
        }
        Waited::TimedOut => Err(AttachError::NoAnswer(backend)),
        Waited::Stopped => Err(AttachError::Stopped),
    }
}
