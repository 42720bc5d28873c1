//! What stands in XenStore for one device.

use std::fmt;

use protocol::binding::{
    RECOMMENDED_MESSAGE_SIZE, REVISION, TRANSPORT_FEATURES, XenbusState, backend_key, frontend_key,
};
use protocol::grant::{GrantRef, TOOLSTACK_REFERENCES};

use super::state::Toolstack;
use crate::Causes;
use crate::excerpt::{Quote, excerpt};
use xen::{DomId, RemotePort, StoreError, XenStore};

/// Characters of a UUID.
const UUID_LENGTH: usize = 36;

/// A device's place: `backend/CLASS/DOMID/DEVID`, relative to the daemon's own domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePath {
    /// Device class as the toolstack names it: `virtio_disk` or `virtio`.
    pub class: String,
    /// The guest.
    pub guest: DomId,
    /// The device's number in its class.
    pub number: u32,
}

impl DevicePath {
    /// Its name without the guest, as `stat` shows it: `virtio_disk/51712`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.class, self.number)
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

/// What a frontend says to be connected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendKeys {
    /// The message page.
    pub page: GrantRef,
    /// Its event channel.
    pub port: RemotePort,
}

/// Why a frontend's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// XenStore's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The message page is none that a driver can have granted [3.13].
    #[error("the frontend's message page is {0}, which is the toolstack's")]
    Toolstack(GrantRef),
    /// Transport features that were not offered [2.11].
    #[error("the frontend takes transport features {0:#x}, and is offered {TRANSPORT_FEATURES:#x}")]
    TransportFeatures(u32),
    /// A key is missing.
    #[error("the frontend has not written {0}")]
    Missing(&'static str),
    /// A key is not a number.
    #[error("the frontend's {key} is {value}, not a number")]
    NotANumber {
        /// The key's name.
        key: &'static str,
        /// The frontend's value.
        value: Quote,
    },
}

/// The number of the domain that the toolstack runs in, as libxl has it.
const TOOLSTACK_DOMAIN: &str = "0";

/// Who removes a backend's directory [2.10].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remover {
    /// The toolstack: the backend is in its domain.
    Toolstack,
    /// The backend: it is in a driver domain, of which the toolstack expects that.
    Backend,
}

/// Paths of which somebody is told when something changes at or below them.
#[derive(Clone, Debug)]
pub struct Watches(pub Vec<String>);

impl Watches {
    /// Has `store` tell of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set<S: XenStore>(&self, store: &mut S) -> Result<(), StoreError> {
        self.0.iter().try_for_each(|path| store.watch(path))
    }
}

/// The keys of one device, on both sides.
pub struct Keys<S> {
    store: S,
    backend: DevicePath,
    frontend: String,
}

impl<S: XenStore> Keys<S> {
    /// Keys of the device at `backend`, whose frontend's directory the toolstack noted there.
    /// Watches both sides.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(mut store: S, backend: DevicePath) -> Result<Self, StoreError> {
        let frontend = store.read(&backend.key("frontend"))?.unwrap_or_default();
        let mut keys = Self { store, backend, frontend };
        keys.watches().set(&mut keys.store)?;
        Ok(keys)
    }

    /// What tells of changes, for a connection of its own.
    pub fn watches(&self) -> Watches {
        let backend = ["state", "online"].map(|key| self.backend.key(key));
        let frontend = format!("{}/state", self.frontend);
        Watches(backend.into_iter().chain([frontend]).collect())
    }

    /// Goes on over another connection, which has the watches, in place of one that is lost.
    pub fn reconnect(&mut self, store: S) {
        self.store = store;
    }

    /// The connection, to be polled and asked for events.
    pub fn store(&mut self) -> &mut S {
        &mut self.store
    }

    /// The connection, for its file descriptor.
    pub fn store_ref(&self) -> &S {
        &self.store
    }

    /// One of the backend's keys, written by the toolstack.
    pub fn backend(&mut self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.read(&self.backend.key(key))
    }

    /// The guest's name; `None` where this domain may not read it, as in a driver domain.
    pub fn guest_name(&mut self) -> Result<Option<String>, StoreError> {
        self.guest_key("name")
    }

    /// The guest's UUID as text, which stays the same when the guest reboots; `None` as for the
    /// name.
    pub fn guest_uuid(&mut self) -> Result<Option<String>, StoreError> {
        // "/vm/UUID", with more behind it where the guest was there before.
        let vm = self.guest_key("vm")?;
        let uuid = vm.as_deref().and_then(|path| path.strip_prefix("/vm/")?.get(..UUID_LENGTH));
        Ok(uuid.map(str::to_owned))
    }

    /// Why the frontend gave up, in the guest's words, made fit for a log. `None` if it says
    /// nothing, or as for the name.
    pub fn frontend_error(&mut self) -> Result<Option<Quote>, StoreError> {
        let home = format!("/local/domain/{}/", self.backend.guest.0);
        let Some(device) = self.frontend.strip_prefix(&home) else { return Ok(None) };
        Ok(self.guest_key(&format!("error/{device}/error"))?.map(|text| Quote::of(&text)))
    }

    fn guest_key(&mut self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.read(&format!("/local/domain/{}/{key}", self.backend.guest.0))
    }

    /// Whose the backend's directory is to remove when the device is gone.
    pub fn remover(&mut self) -> Result<Remover, StoreError> {
        // The toolstack writes it for every domain, its own included.
        let own = self.store.read("domid")?;
        Ok(match own.as_deref().map(str::trim) {
            None | Some(TOOLSTACK_DOMAIN) => Remover::Toolstack,
            Some(_) => Remover::Backend,
        })
    }

    /// Removes the backend's directory, if the toolstack still wants the device gone.
    pub fn remove(&mut self) -> Result<(), StoreError> {
        match self.toolstack(XenbusState::Closed)? {
            Toolstack::Leaving => self.store.remove(&self.backend.to_string()),
            Toolstack::Online | Toolstack::Gone => Ok(()),
        }
    }

    /// The frontend's state; [`XenbusState::Unknown`] when it is gone or no number.
    pub fn frontend_state(&mut self) -> Result<XenbusState, StoreError> {
        let state = self.store.read(&format!("{}/state", self.frontend))?;
        let number = state.and_then(|text| text.trim().parse().ok());
        Ok(XenbusState::from_number(number.unwrap_or(0)))
    }

    /// What the toolstack wants. `own` is the state that this backend wrote last: a 5 that it did
    /// not write is the toolstack's.
    pub fn toolstack(&mut self, own: XenbusState) -> Result<Toolstack, StoreError> {
        let Some(state) = self.backend("state")? else {
            return Ok(Toolstack::Gone);
        };
        let asked = state.trim() == "5" && own != XenbusState::Closing;
        let offline = self.backend("online")?.is_some_and(|online| online.trim() == "0");
        Ok(if asked || offline { Toolstack::Leaving } else { Toolstack::Online })
    }

    /// Writes the negotiation keys, with these bus features [2.3]. What an earlier connection ended
    /// with counts no more.
    pub fn offer(&mut self, bus_features: u32) -> Result<(), StoreError> {
        self.store.remove(&self.backend.key("error"))?;
        let size = RECOMMENDED_MESSAGE_SIZE.to_string();
        self.write(backend_key::REVISION, &REVISION.to_string())?;
        self.write(backend_key::MAX_MESSAGE_SIZE, &size)?;
        self.write(backend_key::TRANSPORT_FEATURES, &TRANSPORT_FEATURES.to_string())?;
        self.write(backend_key::BUS_FEATURES, &bus_features.to_string())
    }

    /// Reads what the frontend wrote before state 3 [2.4].
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

    fn frontend_number(&mut self, key: &'static str) -> Result<u32, KeyError> {
        self.frontend_number_if_there(key)?.ok_or(KeyError::Missing(key))
    }

    /// The number in a key that the frontend need not write.
    fn frontend_number_if_there(&mut self, key: &'static str) -> Result<Option<u32>, KeyError> {
        let Some(value) = self.store.read(&format!("{}/{key}", self.frontend))? else {
            return Ok(None);
        };
        let number = value.trim().parse();
        number.map(Some).map_err(|_| KeyError::NotANumber { key, value: Quote::of(&value) })
    }

    /// Writes the backend's state, unless the toolstack took the directory away meanwhile: writing
    /// would bring it back.
    pub fn set_state(&mut self, state: XenbusState) -> Result<(), StoreError> {
        set_state(&mut self.store, &self.backend, state)
    }

    /// Writes why the device cannot be served [2.6].
    pub fn set_error(&mut self, text: &str) -> Result<(), StoreError> {
        set_error(&mut self.store, &self.backend, text)
    }

    /// Writes one of the backend's keys, for people and tools to read. One that XenStore does not
    /// take costs them that, and the guest nothing.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is lost.
    pub fn publish(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        match self.write(key, value) {
            Err(error) if !error.is_lost() => {
                tracing::warn!("{value} is not published: {}", Causes(&error));
                Ok(())
            }
            written => written,
        }
    }

    /// Refuses the device: a toolstack that waits for state 2 fails at once [2.6].
    pub fn refuse(&mut self, text: &str) -> Result<(), StoreError> {
        refuse(&mut self.store, &self.backend, text)
    }

    fn write(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        self.store.write(&self.backend.key(key), value)
    }
}

/// Refuses the device at `path` over a connection that is not its own [2.6].
///
/// # Errors
/// [`StoreError`].
pub fn refuse(store: &mut impl XenStore, path: &DevicePath, text: &str) -> Result<(), StoreError> {
    // Without its reason the refusal still spares the toolstack a wait.
    let said = set_error(store, path, text);
    store.remove(&path.key("state"))?;
    said
}

/// Writes why the device at `path` cannot be served, unless its directory is gone [2.6].
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
