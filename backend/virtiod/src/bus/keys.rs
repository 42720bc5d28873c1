//! The XenStore keys of one device.

use std::fmt;

use protocol::binding::{
    RECOMMENDED_MESSAGE_SIZE, REVISION, TRANSPORT_FEATURES, XenbusState, backend_key, frontend_key,
};
use protocol::grant::{GrantRef, TOOLSTACK_REFERENCES};
use serde::{Deserialize, Serialize};

use super::state::Toolstack;
use crate::Causes;
use crate::excerpt::{Quote, excerpt};
use crate::record::ConnectionId;
use xen::{DomId, RemotePort, StoreError, XenStore};

/// What xl adds to the name of a guest until its migration to this host has succeeded.
const MIGRATED: &str = "--incoming";
/// Length of a UUID as text.
const UUID_LENGTH: usize = 36;

/// A device's path in XenStore: `backend/CLASS/DOMID/DEVID`, relative to the daemon's own domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DevicePath {
    /// Device class, as the toolstack names it: `virtio_disk` or `virtio`.
    pub class: String,
    /// The guest that the device belongs to.
    #[serde(with = "domain_id")]
    pub guest: DomId,
    /// The device's number in its class.
    pub number: u32,
}

/// A domain id as a number.
mod domain_id {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use xen::DomId;

    pub(super) fn serialize<S: Serializer>(id: &DomId, to: S) -> Result<S::Ok, S::Error> {
        id.0.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DomId, D::Error> {
        u16::deserialize(from).map(DomId)
    }
}

impl DevicePath {
    /// The class and number, as `stat` shows them: `virtio_disk/51712`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.class, self.number)
    }

    /// The name of the device's record.
    pub fn record_name(&self) -> String {
        format!("{}-{}-{}", self.class, self.guest.0, self.number)
    }

    /// The path of one of the backend's keys.
    pub fn key(&self, key: &str) -> String {
        format!("{self}/{key}")
    }
}

impl fmt::Display for DevicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend/{}/{}/{}", self.class, self.guest.0, self.number)
    }
}

/// The keys that a frontend writes before it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendKeys {
    /// Grant of the message page.
    pub page: GrantRef,
    /// The message page's event channel.
    pub port: RemotePort,
}

/// Keys of a frontend that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A XenStore operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The message page has a reference that belongs to the toolstack [3.13].
    #[error("the frontend's message page is {0}, which belongs to the toolstack")]
    Toolstack(GrantRef),
    /// The frontend accepts transport features that the backend did not offer [2.11].
    #[error("the frontend accepts transport features {0:#x}; offered are {TRANSPORT_FEATURES:#x}")]
    TransportFeatures(u32),
    /// The frontend has not written a required key.
    #[error("the frontend has not written {0}")]
    Missing(&'static str),
    /// A key of the frontend's is not a number.
    #[error("the frontend's {key} is {value}, not a number")]
    NotANumber {
        /// The key's name.
        key: &'static str,
        /// The frontend's value.
        value: Quote,
    },
}

/// The id of the toolstack's domain, as libxl defines it.
const TOOLSTACK_DOMAIN: &str = "0";

/// The side that removes a backend's directory [2.10].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remover {
    /// The toolstack, if the backend is in its domain.
    Toolstack,
    /// The backend, if it is in a driver domain: the toolstack expects that.
    Backend,
}

/// Paths to watch for changes at or below them.
#[derive(Clone, Debug)]
pub struct Watches(pub Vec<String>);

impl Watches {
    /// Registers the watches with `store`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set<S: XenStore>(&self, store: &mut S) -> Result<(), StoreError> {
        self.0.iter().try_for_each(|path| store.watch(path))
    }
}

/// The keys of one device, of backend and frontend.
pub struct Keys<S> {
    store: S,
    backend: DevicePath,
    frontend: String,
}

impl<S: XenStore> Keys<S> {
    /// Opens the keys of the device at `backend`, which contains the path of the frontend's
    /// directory. Watches both sides.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(mut store: S, backend: DevicePath) -> Result<Self, StoreError> {
        let frontend = store.read(&backend.key("frontend"))?.unwrap_or_default();
        let mut keys = Self { store, backend, frontend };
        keys.watches().set(&mut keys.store)?;
        Ok(keys)
    }

    /// The path of the frontend's directory, as the toolstack wrote it; empty without one.
    pub fn frontend_path(&self) -> &str {
        &self.frontend
    }

    /// The device's watches, for a new connection.
    pub fn watches(&self) -> Watches {
        let backend = ["state", "online"].map(|key| self.backend.key(key));
        let frontend = format!("{}/state", self.frontend);
        Watches(backend.into_iter().chain([frontend]).collect())
    }

    /// Replaces a lost connection with `store`, which has the watches.
    pub fn reconnect(&mut self, store: S) {
        self.store = store;
    }

    /// The connection, to take events.
    pub fn store(&mut self) -> &mut S {
        &mut self.store
    }

    /// The connection, to poll its descriptor.
    pub fn store_ref(&self) -> &S {
        &self.store
    }

    /// Reads one of the backend's keys, which the toolstack writes.
    pub fn backend(&mut self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.read(&self.backend.key(key))
    }

    /// Reads the guest's name; `None` if this domain may not read it, as in a driver domain. While
    /// a guest is migrated to this host, xl calls it by another name.
    pub fn guest_name(&mut self) -> Result<Option<String>, StoreError> {
        guest_name(&mut self.store, self.backend.guest)
    }

    /// Reads the guest's UUID as text, which stays the same across reboots; `None` if this domain
    /// may not read it.
    pub fn guest_uuid(&mut self) -> Result<Option<String>, StoreError> {
        // "/vm/UUID", with a suffix if the guest rebooted.
        let vm = self.guest_key("vm")?;
        let uuid = vm.as_deref().and_then(|path| path.strip_prefix("/vm/")?.get(..UUID_LENGTH));
        Ok(uuid.map(str::to_owned))
    }

    /// Reads the frontend's reason for giving up, quoted for a log. `None` if the frontend wrote
    /// none or this domain may not read it.
    pub fn frontend_error(&mut self) -> Result<Option<Quote>, StoreError> {
        let home = format!("/local/domain/{}/", self.backend.guest.0);
        let Some(device) = self.frontend.strip_prefix(&home) else { return Ok(None) };
        Ok(self.guest_key(&format!("error/{device}/error"))?.map(|text| Quote::of(&text)))
    }

    fn guest_key(&mut self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.read(&format!("/local/domain/{}/{key}", self.backend.guest.0))
    }

    /// Determines the side that removes the backend's directory.
    pub fn remover(&mut self) -> Result<Remover, StoreError> {
        // The toolstack writes this key for every domain, its own included.
        let own = self.store.read("domid")?;
        Ok(match own.as_deref().map(str::trim) {
            None | Some(TOOLSTACK_DOMAIN) => Remover::Toolstack,
            Some(_) => Remover::Backend,
        })
    }

    /// Removes the backend's directory, if the toolstack still requests the removal.
    pub fn remove(&mut self) -> Result<(), StoreError> {
        match self.toolstack(XenbusState::Closed)? {
            Toolstack::Remove => self.store.remove(&self.backend.to_string()),
            Toolstack::Online | Toolstack::Gone => Ok(()),
        }
    }

    /// Reads the frontend's state; [`XenbusState::Unknown`] if it is missing or not a number.
    pub fn frontend_state(&mut self) -> Result<XenbusState, StoreError> {
        let state = self.store.read(&format!("{}/state", self.frontend))?;
        let number = state.and_then(|text| text.trim().parse().ok());
        Ok(XenbusState::from_number(number.unwrap_or(0)))
    }

    /// Reads the toolstack's request. `own` is the state that this backend wrote last: if the
    /// backend did not write a 5, the toolstack did.
    pub fn toolstack(&mut self, own: XenbusState) -> Result<Toolstack, StoreError> {
        let Some(state) = self.backend("state")? else {
            return Ok(Toolstack::Gone);
        };
        let asked = state.trim() == "5" && own != XenbusState::Closing;
        let offline = self.backend("online")?.is_some_and(|online| online.trim() == "0");
        Ok(if asked || offline { Toolstack::Remove } else { Toolstack::Online })
    }

    /// Writes the negotiation keys, with these bus features [2.3], and removes the error of an
    /// earlier connection.
    pub fn offer(&mut self, bus_features: u32) -> Result<(), StoreError> {
        self.clear_error()?;
        let size = RECOMMENDED_MESSAGE_SIZE.to_string();
        self.write(backend_key::REVISION, &REVISION.to_string())?;
        self.write(backend_key::MAX_MESSAGE_SIZE, &size)?;
        self.write(backend_key::TRANSPORT_FEATURES, &TRANSPORT_FEATURES.to_string())?;
        self.write(backend_key::BUS_FEATURES, &bus_features.to_string())
    }

    /// Reads the keys that the frontend wrote before state 3 [2.4].
    pub fn frontend(&mut self) -> Result<FrontendKeys, KeyError> {
        let page = GrantRef(self.frontend_number(frontend_key::MESSAGE_PAGE)?);
        if page.0 < TOOLSTACK_REFERENCES {
            return Err(KeyError::Toolstack(page));
        }
        let port = self.frontend_number(frontend_key::EVENT_CHANNEL)?;
        let taken = self.frontend_number_if_there(frontend_key::TRANSPORT_FEATURES)?.unwrap_or(0);
        if taken & !TRANSPORT_FEATURES != 0 {
            return Err(KeyError::TransportFeatures(taken));
        }
        Ok(FrontendKeys { page, port: RemotePort(port) })
    }

    /// What distinguishes the connection of the present frontend keys from others.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn connection_id(&mut self) -> Result<ConnectionId, KeyError> {
        let FrontendKeys { page, port } = self.frontend()?;
        let vm = self.guest_key("vm")?;
        Ok(ConnectionId { vm, frontend: self.frontend.clone(), page: page.0, port: port.0 })
    }

    fn frontend_number(&mut self, key: &'static str) -> Result<u32, KeyError> {
        self.frontend_number_if_there(key)?.ok_or(KeyError::Missing(key))
    }

    /// Reads the number in a key that the frontend may omit.
    fn frontend_number_if_there(&mut self, key: &'static str) -> Result<Option<u32>, KeyError> {
        let Some(value) = self.store.read(&format!("{}/{key}", self.frontend))? else {
            return Ok(None);
        };
        let number = value.trim().parse();
        number.map(Some).map_err(|_| KeyError::NotANumber { key, value: Quote::of(&value) })
    }

    /// Writes the backend's state, unless the toolstack has removed the directory: a write would
    /// recreate it.
    pub fn set_state(&mut self, state: XenbusState) -> Result<(), StoreError> {
        set_state(&mut self.store, &self.backend, state)
    }

    /// Writes the reason why the device cannot be served [2.6].
    pub fn set_error(&mut self, text: &str) -> Result<(), StoreError> {
        set_error(&mut self.store, &self.backend, text)
    }

    /// Removes the reason of a failure that has passed.
    pub fn clear_error(&mut self) -> Result<(), StoreError> {
        self.store.remove(&self.backend.key("error"))
    }

    /// Writes one of the backend's keys for people and tools to read. If XenStore refuses it, the
    /// key is missing, and the device works.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is lost.
    pub fn publish(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        match self.write(key, value) {
            Err(error) if !error.is_lost() => {
                tracing::warn!("cannot publish {key} {value}: {}", Causes(&error));
                Ok(())
            }
            written => written,
        }
    }

    /// Removes one of the keys that [`Keys::publish`] writes, if it is there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn withdraw(&mut self, key: &str) -> Result<(), StoreError> {
        match self.backend(key)? {
            Some(_) => self.store.remove(&self.backend.key(key)),
            None => Ok(()),
        }
    }

    /// Refuses the device: a toolstack that waits for state 2 then fails at once [2.6].
    pub fn refuse(&mut self, text: &str) -> Result<(), StoreError> {
        refuse(&mut self.store, &self.backend, text)
    }

    fn write(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        self.store.write(&self.backend.key(key), value)
    }
}

/// Reads a guest's name, as [`Keys::guest_name`] does.
///
/// # Errors
/// [`StoreError`].
pub fn guest_name(store: &mut impl XenStore, guest: DomId) -> Result<Option<String>, StoreError> {
    let name = store.read(&format!("/local/domain/{}/name", guest.0))?;
    Ok(name.map(|name| name.strip_suffix(MIGRATED).unwrap_or(&name).to_owned()))
}

/// Refuses the device at `path` over another session's connection [2.6].
///
/// # Errors
/// [`StoreError`].
pub fn refuse(store: &mut impl XenStore, path: &DevicePath, text: &str) -> Result<(), StoreError> {
    // Even without a reason, the refusal ends the toolstack's wait.
    let said = set_error(store, path, text);
    store.remove(&path.key("state"))?;
    said
}

/// Writes the reason why the device at `path` cannot be served, unless its directory is gone [2.6].
///
/// # Errors
/// [`StoreError`].
pub fn set_error(
    store: &mut impl XenStore,
    path: &DevicePath,
    text: &str,
) -> Result<(), StoreError> {
    store.write_beside(&path.key("state"), &path.key("error"), &excerpt(text))
}

/// Writes the state of the device at `path`, unless its directory is gone.
///
/// # Errors
/// [`StoreError`].
pub fn set_state(
    store: &mut impl XenStore,
    path: &DevicePath,
    state: XenbusState,
) -> Result<(), StoreError> {
    let key = path.key("state");
    store.write_beside(&key, &key, &(state as u32).to_string())
}
