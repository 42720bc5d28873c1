//! Detaches a device from a guest that runs.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use protocol::binding::{backend_key, frontend_key};
use xen::{DomId, StoreError, ToolstackStore, XenStore};

use super::device::DeviceId;
use super::domain_record::{DomainRecord, DomainRecordError};
use super::guest::{Guest, GuestError};
use super::nodes::Nodes;
use super::wait::{Waited, wait};

/// Maximum time for which the daemon's end of the device is awaited: it takes at most 5 s.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// The interval in which a guest that uses the device is asked again: it does not say when it has
/// let go.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A device that stays.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// libxl's record of the domain.
    #[error(transparent)]
    Record(#[from] DomainRecordError),
    /// XenStore.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The guest uses it.
    #[error(
        "the guest uses {0}: unmount it there, or stop its swap, LVM or RAID, or take it away with \
         --force, which is like pulling out a disk"
    )]
    InUse(DeviceId),
    /// The guest does not answer.
    #[error(
        "the guest has not let go of {0}: it is paused or busy, or its virtio_msg_xen is not \
         loaded or older than this command; --force takes the device away"
    )]
    Unanswered(DeviceId),
    /// The guest ended meanwhile.
    #[error("{0} is being destroyed, restarted or migrated; try again when that has ended")]
    Gone(DomId),
    /// The command was stopped.
    #[error(
        "stopped; the guest keeps the device unless it had let go of it: see `xen-virtiod list`"
    )]
    Stopped,
    /// The daemon does not end the device.
    #[error(
        "the guest has let go, but xen-virtiod in {0} does not answer: start it there and try \
         again, or, with --force, take the device out of XenStore without it"
    )]
    NoAnswer(DomId),
}

/// Time for which a guest that was asked in the last moment may still let go.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How a device is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Once the guest has let go, which it may take this long for.
    Ask(Duration),
    /// At once.
    Force,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The guest has lost the device.
    Now,
    /// It had no such device.
    Before,
}

/// Detaches a device, also from libxl's record, unless `stop` is readable meanwhile.
///
/// # Errors
/// [`DetachError`]. Unless the guest did not let go, to try again finishes what has begun.
pub fn detach<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    stop: BorrowedFd<'_>,
    guest: &str,
    device: DeviceId,
    manner: Manner,
) -> Result<Detached, DetachError> {
    let guest = Guest::find(store, guest)?;
    if let Manner::Ask(limit) = manner
        && let Some((nodes, _)) = Nodes::find(store, guest.id, device)?
    {
        ask(store, &nodes, device, stop, limit)?;
    }
    let mut record = DomainRecord::open(records, &guest)?;
    // Others may have changed everything before the lock was taken.
    let begun = store.transact(|store| begin(store, &guest, device, manner))?;
    let Some((nodes, backend)) = begun else {
        // A detach that was interrupted has left the entry.
        record.remove(device)?;
        return Ok(Detached::Before);
    };
    let state = format!("{}/state", nodes.backend);
    store.watch(&nodes.backend)?;
    let closed = wait(store, Some(stop), CLOSE_LIMIT, |store| {
        let state = store.read(&state)?;
        Ok(matches!(state.as_deref(), None | Some("6")).then_some(()))
    })?;
    match closed {
        Waited::Found(()) => {}
        Waited::Stopped => return Err(DetachError::Stopped),
        Waited::TimedOut if manner == Manner::Force => {}
        Waited::TimedOut => return Err(DetachError::NoAnswer(backend)),
    }
    record.remove(device)?;
    // A guest that changes its directory all the time lets no transaction end.
    store.transact(|store| nodes.remove(store)).or_else(|_| nodes.remove(store))?;
    Ok(Detached::Now)
}

/// Has the daemon end the device as libxl does: it closes it once more if it is closed. `None` if
/// there is no such device.
fn begin<S: ToolstackStore>(
    store: &mut S,
    guest: &Guest,
    device: DeviceId,
    manner: Manner,
) -> Result<Option<(Nodes, DomId)>, DetachError> {
    if !guest.is_there(store)? {
        return Err(DetachError::Gone(guest.id));
    }
    let Some((nodes, backend)) = Nodes::find(store, guest.id, device)? else { return Ok(None) };
    if manner != Manner::Force && !is_free(store, &nodes)? {
        return Err(DetachError::Unanswered(device));
    }
    let state = format!("{}/state", nodes.backend);
    if store.read(&state)?.is_some() {
        store.write(&format!("{}/online", nodes.backend), "0")?;
        store.write(&state, "5")?;
    }
    Ok(Some((nodes, backend)))
}

/// Whether the guest has no driver on the device. In state 1 it may have one, which waits for a
/// connection after a restore [2.12].
fn is_free(store: &mut impl XenStore, nodes: &Nodes) -> Result<bool, StoreError> {
    let state = store.read(&format!("{}/state", nodes.frontend))?;
    Ok(matches!(state.as_deref(), None | Some("6")))
}

/// Asks the guest to let go of the device, and waits until it has.
fn ask<S: XenStore>(
    store: &mut S,
    nodes: &Nodes,
    device: DeviceId,
    stop: BorrowedFd<'_>,
    limit: Duration,
) -> Result<(), DetachError> {
    let end = Instant::now() + limit;
    let question = format!("{}/{}", nodes.backend, backend_key::DETACH);
    let answer = format!("{}/{}", nodes.frontend, frontend_key::DETACH);
    let state = format!("{}/state", nodes.backend);
    let mut is_used = false;
    store.watch(&nodes.frontend)?;
    let mut free = |store: &mut S, limit| {
        wait(store, Some(stop), limit, |store| {
            is_used |= store.read(&answer)?.as_deref() == Some(frontend_key::DETACH_IN_USE);
            Ok(is_free(store, nodes)?.then_some(()))
        })
    };
    loop {
        store.remove(&answer)?;
        store.write_beside(&state, &question, backend_key::DETACH_ASKED)?;
        let left = end.saturating_duration_since(Instant::now());
        let waited = free(store, ASK_AGAIN.min(left))?;
        if waited == Waited::TimedOut && Instant::now() < end {
            continue;
        }
        if waited == Waited::Found(()) {
            return Ok(());
        }
        store.remove(&question)?;
        if waited == Waited::TimedOut && free(store, LAST_MOMENT)? == Waited::Found(()) {
            return Ok(());
        }
        store.remove(&answer)?;
        return Err(match waited {
            Waited::Stopped => DetachError::Stopped,
            _ if is_used => DetachError::InUse(device),
            _ => DetachError::Unanswered(device),
        });
    }
}
