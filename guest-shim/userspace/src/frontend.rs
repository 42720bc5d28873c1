//! The frontend's states in XenStore, and its connection to the backend (SPEC section 2).

use std::io;
use std::time::{Duration, Instant};

use protocol::binding::{
    Negotiated, NegotiationError, XenbusState, backend_key, frontend_key, negotiate,
    taken_transport_features,
};
use protocol::message::{Request, Response};
use xen::Causes;
use xen::{Access, DomId, EventError, Evtchn, Gntalloc, StoreError, XenStore, XenStoreConnection};

use crate::messages::{MessageChannel, MessageError};
use crate::wait::wait;

/// How long the frontend waits for the backend's next state.
const STATE_LIMIT: Duration = Duration::from_secs(10);

/// The reason why the frontend could not connect a device, or close the connection.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// A XenStore request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// XenStore has no such device, or its directory lacks a valid backend.
    #[error("XenStore has no device {0}; list the devices with `xenstore-ls device`")]
    Missing(String),
    /// The driver does not support the backend's offer [2.3].
    #[error("the driver does not support the backend's offer: {0:?}")]
    Negotiation(NegotiationError),
    /// The backend did not enter the next state in time.
    #[error(
        "backend {path} did not enter state {wanted:?} within {limit} s, its state is {state:?}; \
         check the backend's log"
    )]
    Backend {
        /// The backend's directory in XenStore.
        path: String,
        /// The expected state.
        wanted: XenbusState,
        /// The current state.
        state: XenbusState,
        /// The time limit in seconds.
        limit: u64,
    },
    /// The kernel did not grant the message page.
    #[error("cannot grant the message page; check access to /dev/xen/gntalloc")]
    Grants(#[source] io::Error),
    /// `/dev/xen/evtchn` cannot be opened.
    #[error(transparent)]
    Handle(#[from] io::Error),
    /// An operation on an event channel failed.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The wait for a XenStore event failed.
    #[error("cannot wait for a XenStore event")]
    Poll(#[from] nix::Error),
}

/// The connected frontend of one device.
pub struct Frontend {
    store: XenStoreConnection,
    path: String,
    backend: String,
    backend_id: DomId,
    messages: MessageChannel,
}

impl Frontend {
    /// Connects the device at `path`, which is relative to this domain's directory, for example
    /// `device/virtio_disk/51712`. No other driver may use the device.
    ///
    /// # Errors
    /// [`FrontendError`]; the frontend ends its grants then.
    pub fn open(path: &str) -> Result<Self, FrontendError> {
        let mut store = XenStoreConnection::open()?;
        let key = |key: &str| format!("{path}/{key}");
        let missing = || FrontendError::Missing(path.to_owned());
        let backend = store.read(&key("backend"))?.ok_or_else(missing)?;
        let backend_id = number(&mut store, &key("backend-id"))?.ok_or_else(missing)?;
        let backend_id = DomId(u16::try_from(backend_id).map_err(|_| missing())?);
        store.watch(&format!("{backend}/state"))?;
        // Start again, in whatever state an earlier driver left the frontend [2.9].
        store.write(&key("state"), &state_number(XenbusState::Initialising))?;
        wait_state(&mut store, &backend, XenbusState::InitWait)?;
        let negotiated = negotiated(&mut store, &backend)?;
        let features = transport_features(&mut store, &backend)?;

        let page =
            Gntalloc::new(backend_id).share(1, Access::ReadWrite).map_err(FrontendError::Grants)?;
        let mut events = Evtchn::open(backend_id)?;
        let port = events.allocate()?;
        let reference = page.references().first().map_or(0, |reference| reference.0);
        for (name, number) in [
            (frontend_key::MESSAGE_PAGE, reference),
            (frontend_key::EVENT_CHANNEL, port.0),
            (frontend_key::TRANSPORT_FEATURES, features),
        ] {
            store.write(&key(name), &number.to_string())?;
        }
        store.write(&key("state"), &state_number(XenbusState::Initialised))?;
        let messages = MessageChannel::new(page, events, port, negotiated);
        let mut frontend = Self { store, path: path.to_owned(), backend, backend_id, messages };
        wait_state(&mut frontend.store, &frontend.backend, XenbusState::Connected)?;
        frontend.write_state(XenbusState::Connected)?;
        Ok(frontend)
    }

    /// The backend's domain, to which the driver grants pages.
    pub fn backend(&self) -> DomId {
        self.backend_id
    }

    /// Sends a request, waits for the answer, and returns the result of `take` for it.
    ///
    /// # Errors
    /// [`MessageError`]; [`MessageError::Mismatch`] if `take` returns `None`.
    pub fn ask<R>(
        &mut self,
        request: Request<'_>,
        take: impl FnOnce(Response<'_>) -> Option<R>,
    ) -> Result<R, MessageError> {
        self.messages.ask(request, take)
    }

    /// Notifies the device that a queue has available buffers, through its doorbell or in band.
    ///
    /// # Errors
    /// [`MessageError`] if the driver cannot send the notification.
    pub fn ring(&mut self, queue: u16) -> Result<(), MessageError> {
        self.messages.ring(queue)
    }

    /// The message channel, for doorbells and events.
    pub(crate) fn messages(&mut self) -> &mut MessageChannel {
        &mut self.messages
    }

    fn write_state(&mut self, state: XenbusState) -> Result<(), StoreError> {
        self.store.write(&format!("{}/state", self.path), &state_number(state))
    }

    /// Closes the connection and waits until the backend holds nothing of this domain's [2.7].
    fn close(&mut self) -> Result<(), FrontendError> {
        self.write_state(XenbusState::Closing)?;
        wait_state(&mut self.store, &self.backend, XenbusState::Closed)?;
        Ok(self.write_state(XenbusState::Closed)?)
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        // The grants end in any case: the kernel keeps those pages that the backend still maps.
        if let Err(error) = self.close() {
            tracing::warn!(
                path = self.path,
                "device: close failed, grants end without the backend's consent: {}",
                Causes(&error)
            );
        }
    }
}

fn state_number(state: XenbusState) -> String {
    (state as u32).to_string()
}

fn number(store: &mut XenStoreConnection, key: &str) -> Result<Option<u32>, StoreError> {
    Ok(store.read(key)?.and_then(|text| text.trim().parse().ok()))
}

/// Reads and checks the backend's offer [2.3].
fn negotiated(store: &mut XenStoreConnection, backend: &str) -> Result<Negotiated, FrontendError> {
    let mut read = |key: &str| {
        // 0 stands for a missing key: an invalid revision or size, or no features.
        Ok::<_, StoreError>(number(store, &format!("{backend}/{key}"))?.unwrap_or(0))
    };
    let (revision, size) = (read(backend_key::REVISION)?, read(backend_key::MAX_MESSAGE_SIZE)?);
    let features = read(backend_key::BUS_FEATURES)?;
    negotiate(revision, size, features).map_err(FrontendError::Negotiation)
}

/// The transport features that this frontend takes [2.11].
fn transport_features(store: &mut XenStoreConnection, backend: &str) -> Result<u32, StoreError> {
    let offered = number(store, &format!("{backend}/{}", backend_key::TRANSPORT_FEATURES))?;
    Ok(taken_transport_features(offered.unwrap_or(0)))
}

/// Waits up to [`STATE_LIMIT`] until the backend is in state `wanted`.
fn wait_state(
    store: &mut XenStoreConnection,
    backend: &str,
    wanted: XenbusState,
) -> Result<(), FrontendError> {
    let end = Instant::now() + STATE_LIMIT;
    loop {
        let state = number(store, &format!("{backend}/state"))?.unwrap_or(0);
        let state = XenbusState::from_number(state);
        if state == wanted {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (path, limit) = (backend.to_owned(), STATE_LIMIT.as_secs());
            return Err(FrontendError::Backend { path, wanted, state, limit });
        }
        // Read the state again, without a wait, if it may have changed since it was read.
        if !store.take_events()? {
            wait(store, left)?;
        }
    }
}
