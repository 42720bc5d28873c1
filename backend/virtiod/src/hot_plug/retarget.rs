//! Gives a disk of a guest that runs another target, such as an overlay after a snapshot. The guest
//! sees a pause.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::binding::{F_MOVABLE, backend_key};
use xen::{DomId, StoreError, ToolstackStore, XenStore};

use super::device::DeviceId;
use super::domain_record::{DomainRecord, DomainRecordError};
use super::guest::{Guest, GuestError};
use super::nodes::{DOM0, Nodes};
use super::wait::{Waited, wait};
use crate::Causes;
use crate::excerpt::one_line;

/// Maximum time for which the daemon's answer is awaited: it waits up to 5 s for storage.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// What the key `error` says until the daemon removes it, or says why it cannot go on.
const UNANSWERED: &str = "xen-virtiod has not opened the new target yet";
/// The first bytes of a qcow2 image, and where its size is.
const QCOW2: [u8; 4] = *b"QFI\xfb";
const QCOW2_SIZE: usize = 24;
/// Size of a logical block of a file.
const FILE_BLOCK: u32 = 512;

/// A disk that keeps its target.
#[derive(Debug, thiserror::Error)]
pub enum RetargetError {
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// libxl's record of the domain.
    #[error(transparent)]
    Record(#[from] DomainRecordError),
    /// XenStore.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The guest has no such disk.
    #[error("{0} has no disk {1}; see `xen-virtiod list`")]
    NoDisk(DomId, DeviceId),
    /// A target cannot be looked at.
    #[error("cannot use the target {path:?}")]
    Target {
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The disk would shrink.
    #[error("the target {path:?} has {now} bytes, and the disk {before}: a disk must not shrink")]
    Smaller {
        /// The new target.
        path: PathBuf,
        /// Its size.
        now: u64,
        /// The size of the present one.
        before: u64,
    },
    /// The logical blocks would grow.
    #[error("the target {path:?} has blocks of {now} bytes, and the disk of {before}")]
    Block {
        /// The new target.
        path: PathBuf,
        /// Its logical block size.
        now: u32,
        /// That of the present one.
        before: u32,
    },
    /// The daemon cannot serve the new target.
    #[error("xen-virtiod refuses the target, and goes on with the earlier one: {0}")]
    Refused(String),
    /// The command was stopped.
    #[error("stopped; the disk goes on with the earlier target")]
    Stopped,
    /// The daemon does not answer.
    #[error("no xen-virtiod has answered in {0} within 20 s: is it running there?")]
    NoAnswer(DomId),
    /// The daemon has begun, and has not ended.
    #[error(
        "xen-virtiod in {0} has let go of the earlier target and not opened the new one yet; it \
         goes on trying, and the guest waits: see its log"
    )]
    Unfinished(DomId),
    /// The guest's driver does not use the disk now.
    #[error("{0} is not connected: its target can be changed while the guest uses it")]
    NotConnected(DeviceId),
    /// The guest may wait for the disk's next backend.
    #[error(
        "{0} outlives its driver domain, since it bypasses the page cache there, and its guest may \
         count on that: give the guest the target at its next start"
    )]
    Movable(DeviceId),
    /// The guest ended meanwhile.
    #[error("{0} is being destroyed, restarted or migrated; try again when that has ended")]
    Gone(DomId),
}

/// Has a disk go on with another target, also in libxl's record, and waits until it does.
///
/// # Errors
/// [`RetargetError`]; the disk goes on with the earlier target then, except after
/// [`RetargetError::Unfinished`].
pub fn retarget<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    stop: BorrowedFd<'_>,
    guest: &str,
    device: DeviceId,
    target: &Path,
) -> Result<(), RetargetError> {
    let guest = Guest::find(store, guest)?;
    let no_disk = || RetargetError::NoDisk(guest.id, device);
    let mut record = DomainRecord::open(records, &guest)?;
    let (nodes, backend) = Nodes::find(store, guest.id, device)?.ok_or_else(no_disk)?;
    let before = store.read(&format!("{}/params", nodes.libxl))?.ok_or_else(no_disk)?;
    if backend == DOM0 {
        check(target, Path::new(&before))?;
    }
    let target = target.display().to_string();
    // First: it may fail, and the guest writes to the new target once it has it.
    record.retarget(device, &target)?;
    store.watch(&nodes.backend)?;
    let mut switching = Switching { store, nodes: &nodes, guest: &guest, backend, device };
    let outcome = switching.to(&target, &before, Some(stop));
    if matches!(outcome, Ok(()) | Err(RetargetError::Unfinished(_))) {
        return outcome;
    }
    if let Err(error) = record.retarget(device, &before) {
        tracing::error!("libxl's record has the new target: {}", Causes(&error));
    }
    if matches!(outcome, Err(RetargetError::Refused(_))) {
        // The new target was never written.
        switching.to(&before, &target, None)?;
    }
    outcome
}

/// A disk whose target is changed.
struct Switching<'s, S> {
    store: &'s mut S,
    nodes: &'s Nodes,
    guest: &'s Guest,
    backend: DomId,
    device: DeviceId,
}

impl<S: ToolstackStore> Switching<'_, S> {
    /// Writes the target, and waits until the daemon has taken the disk over with it. If the daemon
    /// does not begin, writes the earlier one.
    fn to(
        &mut self,
        target: &str,
        before: &str,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<(), RetargetError> {
        let (nodes, guest, device) = (self.nodes, self.guest, self.device);
        let error = format!("{}/error", nodes.backend);
        let question = format!("{}/{}", nodes.backend, backend_key::RETARGET);
        self.store.transact(|store| -> Result<(), RetargetError> {
            if !guest.is_there(store)? {
                return Err(RetargetError::Gone(guest.id));
            }
            if store.read(&format!("{}/state", nodes.backend))?.as_deref() != Some("4") {
                return Err(RetargetError::NotConnected(device));
            }
            let features =
                store.read(&format!("{}/{}", nodes.backend, backend_key::BUS_FEATURES))?;
            let features = features.and_then(|text| text.trim().parse::<u32>().ok());
            if features.is_some_and(|features| features & F_MOVABLE != 0) {
                return Err(RetargetError::Movable(device));
            }
            write_target(store, nodes, target)?;
            store.write(&error, UNANSWERED)?;
            Ok(store.write(&question, backend_key::RETARGET_ASKED)?)
        })?;
        let answered = wait(self.store, stop, ANSWER_LIMIT, |store| {
            let said = store.read(&error)?;
            Ok(Some(said).filter(|said| said.as_deref() != Some(UNANSWERED)))
        })?;
        let failed = match answered {
            Waited::Found(None) if guest.is_there(self.store)? => return Ok(()),
            Waited::Found(None) => return Err(RetargetError::Gone(guest.id)),
            // Another domain may have written it.
            Waited::Found(Some(why)) => return Err(RetargetError::Refused(one_line(&why))),
            Waited::TimedOut => RetargetError::NoAnswer(self.backend),
            Waited::Stopped => RetargetError::Stopped,
        };
        // The daemon removes the question when it begins.
        let is_withdrawn = self.store.transact(|store| -> Result<bool, StoreError> {
            if store.read(&question)?.is_none() {
                return Ok(false);
            }
            write_target(store, nodes, before)?;
            store.remove(&question)?;
            store.remove(&error)?;
            Ok(true)
        })?;
        Err(if is_withdrawn { failed } else { RetargetError::Unfinished(self.backend) })
    }
}

fn write_target(store: &mut impl XenStore, nodes: &Nodes, target: &str) -> Result<(), StoreError> {
    for directory in [&nodes.backend, &nodes.libxl] {
        store.write(&format!("{directory}/params"), target)?;
    }
    Ok(())
}

/// Whether the disk may have the target: the guest's driver reads the block size once, and its file
/// systems need all that there was.
fn check(target: &Path, before: &Path) -> Result<(), RetargetError> {
    let look = |path: &Path| {
        shape(path).map_err(|source| RetargetError::Target { path: path.to_owned(), source })
    };
    let ((now, block), (size, blocks)) = (look(target)?, look(before)?);
    let path = target.to_owned();
    if now < size {
        return Err(RetargetError::Smaller { path, now, before: size });
    }
    if block > blocks {
        return Err(RetargetError::Block { path, now: block, before: blocks });
    }
    Ok(())
}

/// The size of a disk in bytes, and that of its logical blocks.
fn shape(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let facts = file.metadata()?;
    let mut head = [0; QCOW2_SIZE + 8];
    let is_image = facts.is_file() && path.extension().is_some_and(|name| name == "qcow2");
    if is_image && file.read_exact(&mut head).is_ok() && head.starts_with(&QCOW2) {
        let size = head.last_chunk().map_or(0, |size| u64::from_be_bytes(*size));
        return Ok((size, FILE_BLOCK));
    }
    let size = file.seek(SeekFrom::End(0))?;
    if !facts.file_type().is_block_device() {
        return Ok((size, FILE_BLOCK));
    }
    let id = facts.rdev();
    let (major, minor) = (nix::sys::stat::major(id), nix::sys::stat::minor(id));
    let queue = format!("/sys/dev/block/{major}:{minor}/queue/logical_block_size");
    let block = fs::read_to_string(queue).ok().and_then(|text| text.trim().parse().ok());
    Ok((size, block.unwrap_or(FILE_BLOCK)))
}
