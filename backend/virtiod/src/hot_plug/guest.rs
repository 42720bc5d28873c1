//! Guests, by name, domain id or UUID.

use xen::{DomId, StoreError, XenStore};

/// Length of a UUID as text.
const UUID_LENGTH: usize = 36;

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its domain id.
    pub id: DomId,
    /// Its name.
    pub name: String,
    /// Its UUID, as text of 36 characters.
    pub uuid: String,
    /// Whether libxl made it.
    pub by_libxl: bool,
}

/// A domain that cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is none.
    #[error("no domain has the name, id or UUID {0:?}; see `xl list`")]
    Unknown(String),
    /// Several have the name.
    #[error("several domains have the name {0:?}; use the domain id, which `xl list` shows")]
    Ambiguous(String),
    /// XenStore's entry is not as libxl writes it.
    #[error("{0} has no UUID in XenStore: no toolstack made it, so that nothing can be attached")]
    NoUuid(DomId),
    /// XenStore cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Guest {
    /// Finds the domain with this id, or with this name or UUID.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn find(store: &mut impl XenStore, named: &str) -> Result<Self, GuestError> {
        let ids = store.list("/local/domain")?;
        if ids.iter().any(|id| id == named) {
            let id = named.parse().map_err(|_| GuestError::Unknown(named.to_owned()))?;
            return Self::of(store, DomId(id));
        }
        let mut found = None;
        for id in ids.iter().filter_map(|id| id.parse().ok()) {
            let key = if is_uuid(named) { "vm" } else { "name" };
            let value = store.read(&format!("/local/domain/{id}/{key}"))?;
            if value.as_deref().map(|value| value.strip_prefix("/vm/").unwrap_or(value))
                != Some(named)
            {
                continue;
            }
            if found.replace(DomId(id)).is_some() {
                return Err(GuestError::Ambiguous(named.to_owned()));
            }
        }
        Self::of(store, found.ok_or_else(|| GuestError::Unknown(named.to_owned()))?)
    }

    fn of(store: &mut impl XenStore, id: DomId) -> Result<Self, GuestError> {
        let name = store.read(&format!("/local/domain/{}/name", id.0))?.unwrap_or_default();
        let vm = store.read(&format!("/local/domain/{}/vm", id.0))?.unwrap_or_default();
        let uuid = vm.strip_prefix("/vm/").filter(|uuid| is_uuid(uuid));
        let uuid = uuid.ok_or(GuestError::NoUuid(id))?.to_owned();
        let by_libxl = store.read(&format!("/libxl/{}/type", id.0))?.is_some();
        Ok(Self { id, name, uuid, by_libxl })
    }

    /// Whether it is still there, and is no later domain with its id.
    pub(super) fn is_there(&self, store: &mut impl XenStore) -> Result<bool, StoreError> {
        let vm = store.read(&format!("/local/domain/{}/vm", self.id.0))?;
        Ok(vm.as_deref().and_then(|vm| vm.strip_prefix("/vm/")) == Some(&self.uuid))
    }
}

/// Whether the text has the form of a UUID, so that it may be a part of a file's name.
fn is_uuid(text: &str) -> bool {
    text.len() == UUID_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}
