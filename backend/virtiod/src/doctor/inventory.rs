//! The virtio devices of guests, as XenStore has them.

use std::io;
use std::path::PathBuf;

use xen::{Causes, StoreError, XenStore};

/// Maximum number of devices that are read.
const MOST_DEVICES: usize = 4096;

/// XenStore cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoreFailure {
    /// This user may not.
    NotPermitted,
    /// There is no device for it.
    NoDevice,
    /// xenstored gives no answer, or a wrong one.
    Failed(String),
}

impl From<StoreError> for StoreFailure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Connection { operation: "open", source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Self::NotPermitted,
                io::ErrorKind::NotFound => Self::NoDevice,
                _ => Self::Failed(Causes(&error).to_string()),
            },
            _ => Self::Failed(Causes(&error).to_string()),
        }
    }
}

/// A type of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Disk,
    Network,
    Other,
}

/// A device that this domain serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServedDevice {
    /// The guest's domain id.
    pub(super) guest: u16,
    pub(super) kind: Kind,
    /// A disk's target.
    pub(super) target: Option<PathBuf>,
}

/// A guest that libxl made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LibxlGuest {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) uuid: String,
    /// Names of its virtio disks, such as `xvda`.
    pub(super) virtio_disks: Vec<String>,
    /// Names of its disks of any other kind.
    pub(super) other_disks: Vec<String>,
    /// Number of its other virtio devices.
    pub(super) other_devices: usize,
    /// The domain that serves each of its virtio devices.
    pub(super) backends: Vec<u16>,
}

/// The part of XenStore that matters here, as far as this domain may see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    /// This domain's id.
    pub(super) own: Option<u16>,
    pub(super) served: Vec<ServedDevice>,
    /// The guests of libxl, which a driver domain does not see.
    pub(super) guests: Vec<LibxlGuest>,
}

impl Inventory {
    /// Reads it. A device that comes or goes meanwhile may be missing.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn read(store: &mut impl XenStore) -> Result<Self, StoreError> {
        let own = store.read("domid")?.and_then(|id| id.parse().ok());
        let mut inventory = Self { own, ..Self::default() };
        for class in ["virtio_disk", "virtio"] {
            let top = format!("backend/{class}");
            for guest in numbers(store, &top)? {
                let Ok(id) = u16::try_from(guest) else { continue };
                for number in numbers(store, &format!("{top}/{guest}"))? {
                    if inventory.served.len() >= MOST_DEVICES {
                        return Ok(inventory);
                    }
                    let path = format!("{top}/{guest}/{number}");
                    inventory.served.push(served(store, class, &path, id)?);
                }
            }
        }
        for id in numbers(store, "/libxl")?.into_iter().take(MOST_DEVICES) {
            let Ok(id) = u16::try_from(id) else { continue };
            inventory.guests.push(libxl_guest(store, id)?);
        }
        Ok(inventory)
    }

    /// Whether other domains serve devices, and this one none.
    pub(super) fn is_served_elsewhere(&self) -> bool {
        let mut backends = self.guests.iter().flat_map(|guest| &guest.backends);
        self.served.is_empty() && backends.any(|backend| Some(*backend) != self.own)
    }

    /// Number of devices of a kind that this domain serves.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.served.iter().filter(|it| it.kind == kind).count()
    }
}

fn served(
    store: &mut impl XenStore,
    class: &str,
    path: &str,
    guest: u16,
) -> Result<ServedDevice, StoreError> {
    if class == "virtio_disk" {
        let target = store.read(&format!("{path}/params"))?;
        let target = target.filter(|target| target.starts_with('/')).map(PathBuf::from);
        return Ok(ServedDevice { guest, kind: Kind::Disk, target });
    }
    let is_network = store.read(&format!("{path}/type"))?.as_deref() == Some("virtio,device1");
    let kind = if is_network { Kind::Network } else { Kind::Other };
    Ok(ServedDevice { guest, kind, target: None })
}

fn libxl_guest(store: &mut impl XenStore, id: u16) -> Result<LibxlGuest, StoreError> {
    let name = store.read(&format!("/local/domain/{id}/name"))?.unwrap_or_default();
    let vm = store.read(&format!("/local/domain/{id}/vm"))?.unwrap_or_default();
    let uuid = vm.strip_prefix("/vm/").unwrap_or_default().to_owned();
    let top = format!("/libxl/{id}/device");
    Ok(LibxlGuest {
        id,
        name,
        uuid,
        virtio_disks: disks(store, &format!("{top}/virtio_disk"))?,
        other_disks: disks(store, &format!("{top}/vbd"))?,
        other_devices: numbers(store, &format!("{top}/virtio"))?.len(),
        backends: backends(store, &top)?,
    })
}

/// The domains that serve the devices in a guest's directory of libxl's.
fn backends(store: &mut impl XenStore, top: &str) -> Result<Vec<u16>, StoreError> {
    let mut found = Vec::new();
    for class in ["virtio_disk", "virtio"] {
        for number in numbers(store, &format!("{top}/{class}"))? {
            let path = store.read(&format!("{top}/{class}/{number}/backend"))?.unwrap_or_default();
            let id = path.strip_prefix("/local/domain/").and_then(|rest| rest.split('/').next());
            found.extend(id.and_then(|id| id.parse::<u16>().ok()));
        }
    }
    Ok(found)
}

/// The names of the disks in a directory of libxl's.
fn disks(store: &mut impl XenStore, top: &str) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for number in numbers(store, top)? {
        let name = store.read(&format!("{top}/{number}/dev"))?;
        names.push(name.unwrap_or_else(|| number.to_string()));
    }
    Ok(names)
}

/// The children of a node that are numbers, in order.
fn numbers(store: &mut impl XenStore, path: &str) -> Result<Vec<u32>, StoreError> {
    let names = store.list(path)?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.truncate(MOST_DEVICES);
    Ok(numbers)
}
