//! Names another backend to the devices of a driver domain that has ended and is there again, with
//! another domain id [2.16].
//!
//! libxl keeps a copy of all that it wrote for a backend, so that the directory of the next one can
//! be made although nothing is left of the earlier one.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use protocol::binding::frontend_key;
use xen::{DomId, StoreError, ToolstackStore, XenStore};

use super::device::{Class, DeviceId};
use super::domain_record::{DomainRecord, DomainRecordError};
use super::guest::{Guest, GuestError};
use super::list::{guests, numbers};
use super::nodes::{DOM0, Nodes};
use super::wait::wait_for_event;
use crate::Causes;

/// Fires when a domain is made known to XenStore.
const DOMAIN_BEGINS: &str = "@introduceDomain";
/// How long a watch waits at most; then it looks all the same. After a failure, a guest may wait.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Devices that cannot be given another backend.
#[derive(Debug, thiserror::Error)]
pub enum ReattachError {
    /// The driver domain.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// XenStore.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody can wait for Dom0.
    #[error("{0:?} is no driver domain: what Dom0 serves ends with the host")]
    Dom0(String),
    /// Some devices have another backend, and others not.
    #[error("some devices have no other backend; the lines above say why")]
    Some,
}

/// A device that has another backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reattached {
    /// The guest's name.
    pub guest: String,
    /// The device.
    pub device: DeviceId,
    /// The name of the backend's domain.
    pub backend: String,
    /// Whether the guest says that it waits for it. Otherwise its module has given the device up,
    /// and takes it again when its driver is bound anew or the guest reboots.
    pub is_awaited: bool,
}

/// Gives another backend to each device of a guest whose backend was in the domain of this name,
/// and calls `report` for it.
///
/// # Errors
/// [`ReattachError`].
pub fn reattach<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    domain: &str,
    report: impl FnMut(Reattached),
) -> Result<(), ReattachError> {
    let backend = Guest::find(store, domain)?;
    if backend.id == DOM0 {
        return Err(ReattachError::Dom0(domain.to_owned()));
    }
    match reattach_orphans(store, records, Some(&backend), report)? {
        true => Ok(()),
        false => Err(ReattachError::Some),
    }
}

/// Does the same for each domain that begins, until `stop` is readable.
///
/// # Errors
/// [`ReattachError`]: XenStore cannot be read.
pub fn follow<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    stop: BorrowedFd<'_>,
    mut report: impl FnMut(Reattached),
) -> Result<(), ReattachError> {
    store.watch(DOMAIN_BEGINS)?;
    loop {
        let is_whole = reattach_orphans(store, records, None, &mut report)?;
        if !wait_for_event(store, Some(stop), if is_whole { LOOK } else { LOOK_AGAIN })? {
            return Ok(());
        }
    }
}

/// Looks at all devices once; returns whether none failed.
fn reattach_orphans<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    only: Option<&Guest>,
    mut report: impl FnMut(Reattached),
) -> Result<bool, ReattachError> {
    let mut is_whole = true;
    for id in guests(store)? {
        for device in orphans(store, id)? {
            match reattach_one(store, records, id, device, only) {
                Ok(Some(done)) => report(done),
                Ok(None) => {}
                Err(error) => {
                    is_whole = false;
                    tracing::error!("{device} of {id} has no other backend: {}", Causes(&error));
                }
            }
        }
    }
    Ok(is_whole)
}

/// The devices of a guest whose backend's domain is gone.
fn orphans(store: &mut impl XenStore, guest: DomId) -> Result<Vec<DeviceId>, StoreError> {
    let mut found = Vec::new();
    for class in Class::ALL {
        for number in numbers(store, guest, class)? {
            let device = DeviceId { class, number };
            let Some((_, backend)) = Nodes::find(store, guest, device)? else { continue };
            if backend != DOM0 && !exists(store, backend)? {
                found.push(device);
            }
        }
    }
    Ok(found)
}

fn exists(store: &mut impl XenStore, domain: DomId) -> Result<bool, StoreError> {
    Ok(store.read(&format!("/local/domain/{}/name", domain.0))?.is_some())
}

/// A device that keeps its backend.
#[derive(Debug, thiserror::Error)]
enum OneError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Record(#[from] DomainRecordError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives a device its next backend: in the domain that libxl's record names, if there is one, and
/// it is `only`.
fn reattach_one<S: ToolstackStore>(
    store: &mut S,
    records: &Path,
    guest: DomId,
    device: DeviceId,
    only: Option<&Guest>,
) -> Result<Option<Reattached>, OneError> {
    let guest = Guest::find(store, &guest.0.to_string())?;
    let record = DomainRecord::open(records, &guest)?;
    let Some(name) = record.backend_of(device) else { return Ok(None) };
    if only.is_some_and(|only| only.name != name) {
        return Ok(None);
    }
    let backend = match Guest::find(store, name) {
        Ok(backend) => backend.id,
        // It is not there yet.
        Err(GuestError::Unknown(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let is_awaited = store.transact(|store| move_device(store, &guest, device, backend))?;
    let (guest, backend) = (guest.name, name.to_owned());
    Ok(is_awaited.map(|is_awaited| Reattached { guest, device, backend, is_awaited }))
}

/// Keys of libxl's copy that differ in the backend's directory.
const OWN_KEYS: [&str; 3] = ["frontend", "backend", "state"];

/// Makes the next backend's directory, and points the frontend there. Returns whether the guest
/// waits; `None` if the guest is gone, or has another backend already.
fn move_device(
    store: &mut impl ToolstackStore,
    guest: &Guest,
    device: DeviceId,
    backend: DomId,
) -> Result<Option<bool>, StoreError> {
    let Some((before, earlier)) = Nodes::find(store, guest.id, device)? else { return Ok(None) };
    if !guest.is_there(store)? || earlier == backend || exists(store, earlier)? {
        return Ok(None);
    }
    let awaited = format!("{}/{}", before.frontend, frontend_key::BACKEND_AWAITED);
    let is_awaited = store.read(&awaited)?.is_some();
    let nodes = Nodes::of(guest.id, device, backend);
    let kept = store.list(&nodes.libxl)?;
    store.remove(&nodes.backend)?;
    store.create(&nodes.backend, backend, guest.id)?;
    store.write(&format!("{}/frontend", nodes.backend), &nodes.frontend)?;
    for key in kept.iter().filter(|key| !OWN_KEYS.contains(&key.as_str())) {
        if let Some(value) = store.read(&format!("{}/{key}", nodes.libxl))? {
            store.write(&format!("{}/{key}", nodes.backend), &value)?;
        }
    }
    // Closed: unlike a device that no guest has had before, the daemon tries to open it until it
    // can [2.9]. The domain may still be booting.
    store.write(&format!("{}/state", nodes.backend), "6")?;
    store.write(&format!("{}/backend", nodes.libxl), &nodes.backend)?;
    // The next domain reads what the guest has written for the earlier one.
    for key in store.list(&nodes.frontend)? {
        store.share(&format!("{}/{key}", nodes.frontend), guest.id, backend)?;
    }
    store.share(&nodes.frontend, guest.id, backend)?;
    // A frontend that had begun with a backend which has ended as well: xenbus takes state 1 with
    // another backend for another device.
    let state = format!("{}/state", nodes.frontend);
    if store.read(&state)?.as_deref() == Some("1") {
        store.write(&state, "4")?;
    }
    store.write(&format!("{}/backend-id", nodes.frontend), &backend.0.to_string())?;
    store.write(&format!("{}/backend", nodes.frontend), &nodes.backend)?;
    Ok(Some(is_awaited))
}
