//! A device's directories in XenStore.

use xen::{DomId, StoreError, ToolstackStore, XenStore};

use super::device::{DeviceId, Wanted};

/// Dom0: where libxl runs.
pub(super) const DOM0: DomId = DomId(0);
/// Maximum number of directories above a device that are removed once they are empty: the guest's
/// and the class's.
const PARENTS: usize = 2;

/// The directories of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nodes {
    /// The frontend's, which the guest may write.
    pub(super) frontend: String,
    /// The backend's, which its domain may write.
    pub(super) backend: String,
    /// libxl's own, which nobody else may write.
    pub(super) libxl: String,
}

/// The directory of libxl's entries of a class.
pub(super) fn libxl_class(guest: DomId, class: &str) -> String {
    format!("/libxl/{}/device/{class}", guest.0)
}

impl Nodes {
    pub(super) fn of(guest: DomId, device: DeviceId, backend: DomId) -> Self {
        let DeviceId { class, number } = device;
        let (class, guest, backend) = (class.directory(), guest.0, backend.0);
        Self {
            frontend: format!("/local/domain/{guest}/device/{class}/{number}"),
            backend: format!("/local/domain/{backend}/backend/{class}/{guest}/{number}"),
            libxl: format!("{}/{number}", libxl_class(DomId(guest), class)),
        }
    }

    /// The directories of a device that is there, by libxl's own; `None` if it is not.
    pub(super) fn find(
        store: &mut impl XenStore,
        guest: DomId,
        device: DeviceId,
    ) -> Result<Option<(Self, DomId)>, StoreError> {
        let libxl = Self::of(guest, device, DOM0).libxl;
        let Some(path) = store.read(&format!("{libxl}/backend"))? else { return Ok(None) };
        let id = path.strip_prefix("/local/domain/").and_then(|rest| rest.split('/').next());
        let backend = id.and_then(|id| id.parse().ok()).map(DomId);
        let found = backend.map(|backend| (Self::of(guest, device, backend), backend));
        Ok(found.filter(|(nodes, _)| nodes.backend == path))
    }

    /// Writes all three, as libxl does.
    pub(super) fn create(
        &self,
        store: &mut impl ToolstackStore,
        guest: DomId,
        number: u32,
        backend: DomId,
        wanted: &Wanted,
    ) -> Result<(), StoreError> {
        let common = [("frontend-id", guest.0.to_string()), ("online", "1".to_owned())];
        // Last: from then on the device is there.
        let state = [("state", "1".to_owned())];
        let description = common.into_iter().chain(wanted.backend_keys(number));
        let description: Vec<_> = description.chain(state.clone()).collect();
        // What an earlier device has left.
        for path in [&self.frontend, &self.backend, &self.libxl] {
            store.remove(path)?;
        }
        store.create(&self.frontend, guest, backend)?;
        let own = [("backend", self.backend.clone()), ("backend-id", backend.0.to_string())];
        let more = wanted.frontend_keys(number, backend == DOM0).into_iter().chain(state);
        let own = own.into_iter().chain(more);
        write_all(store, &self.frontend, own)?;
        store.create(&self.backend, backend, guest)?;
        store.write(&format!("{}/frontend", self.backend), &self.frontend)?;
        write_all(store, &self.backend, description.iter().cloned())?;
        store.write(&format!("{}/frontend", self.libxl), &self.frontend)?;
        store.write(&format!("{}/backend", self.libxl), &self.backend)?;
        write_all(store, &self.libxl, description)
    }

    /// Removes all three, and what is empty above them.
    pub(super) fn remove(&self, store: &mut impl XenStore) -> Result<(), StoreError> {
        for path in [&self.frontend, &self.libxl, &self.backend] {
            remove_with_parents(store, path)?;
        }
        Ok(())
    }
}

fn write_all<'k>(
    store: &mut impl XenStore,
    directory: &str,
    keys: impl IntoIterator<Item = (&'k str, String)>,
) -> Result<(), StoreError> {
    keys.into_iter().try_for_each(|(key, value)| store.write(&format!("{directory}/{key}"), &value))
}

fn remove_with_parents(store: &mut impl XenStore, path: &str) -> Result<(), StoreError> {
    store.remove(path)?;
    let mut above = path;
    for _ in 0..PARENTS {
        let Some((parent, _)) = above.rsplit_once('/') else { break };
        if !store.list(parent)?.is_empty() {
            break;
        }
        store.remove(parent)?;
        above = parent;
    }
    Ok(())
}
