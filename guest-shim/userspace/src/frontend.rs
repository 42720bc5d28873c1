//! The frontend's states in XenStore (SPEC section 2), and the connection that comes of them.

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

/// How long the backend may take for its next state.
const STATE_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no connection to a device.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// XenStore's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such device.
    #[error("there is no {0} in XenStore: see `xenstore-ls device`")]
    Missing(String),
    /// What the backend offers.
    #[error("the backend offers what this driver does not know: {0:?}")]
    Negotiation(NegotiationError),
    /// The backend did not do its part.
    #[error(
        "waited {limit} s for the backend at {path} to be in state {wanted:?}; it is {state:?}"
    )]
    Backend {
        /// Its directory.
        path: String,
        /// The state waited for.
        wanted: XenbusState,
        /// The state it is in.
        state: XenbusState,
        /// Seconds waited.
        limit: u64,
    },
    /// The message page or the pool could not be granted.
    #[error("cannot grant pages")]
    GrantHal(#[source] io::Error),
    /// The event channels' device.
    #[error(transparent)]
    Door(#[from] io::Error),
    /// An event channel.
    #[error(transparent)]
    Event(#[from] EventError),
    /// XenStore cannot be waited for.
    #[error("cannot wait for XenStore")]
    Poll(#[from] nix::Error),
}

/// One device's frontend, connected.
pub struct Frontend {
    store: XenStoreConnection,
    path: String,
    backend: String,
    backend_id: DomId,
    messages: MessageChannel,
}

impl Frontend {
    /// Connects the device at `path`, relative to this domain's directory:
    /// `device/virtio_disk/51712`. No other driver may have it.
    ///
    /// # Errors
    /// [`FrontendError`]; nothing is granted then.
    pub fn open(path: &str) -> Result<Self, FrontendError> {
        let mut store = XenStoreConnection::open()?;
        let key = |key: &str| format!("{path}/{key}");
        let missing = || FrontendError::Missing(path.to_owned());
        let backend = store.read(&key("backend"))?.ok_or_else(missing)?;
        let backend_id = number(&mut store, &key("backend-id"))?.ok_or_else(missing)?;
        let backend_id = DomId(u16::try_from(backend_id).map_err(|_| missing())?);
        store.watch(&format!("{backend}/state"))?;
        // As new, whatever driver was there before [2.9].
        store.write(&key("state"), &state_number(XenbusState::Initialising))?;
        wait_state(&mut store, &backend, XenbusState::InitWait)?;
        let negotiated = negotiated(&mut store, &backend)?;
        let features = transport_features(&mut store, &backend)?;

        let page = Gntalloc::new(backend_id)
            .share(1, Access::ReadWrite)
            .map_err(FrontendError::GrantHal)?;
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

    /// The domain that serves the device: the one that pages are to be granted to.
    pub fn backend(&self) -> DomId {
        self.backend_id
    }

    /// Asks the device, and gives what `take` makes of its answer.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn ask<R>(
        &mut self,
        request: Request<'_>,
        take: impl FnOnce(Response<'_>) -> Option<R>,
    ) -> Result<R, MessageError> {
        self.messages.ask(request, take)
    }

    /// Tells the device that a queue has available buffers.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn ring(&mut self, queue: u16) -> Result<(), MessageError> {
        self.messages.ring(queue)
    }

    /// The messages, for doorbells and events.
    pub(crate) fn messages(&mut self) -> &mut MessageChannel {
        &mut self.messages
    }

    fn write_state(&mut self, state: XenbusState) -> Result<(), StoreError> {
        self.store.write(&format!("{}/state", self.path), &state_number(state))
    }

    /// Has the backend let go of everything [2.7].
    fn close(&mut self) -> Result<(), FrontendError> {
        self.write_state(XenbusState::Closing)?;
        wait_state(&mut self.store, &self.backend, XenbusState::Closed)?;
        Ok(self.write_state(XenbusState::Closed)?)
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        // The grants end all the same: the kernel keeps what the backend has not let go of.
        if let Err(error) = self.close() {
            tracing::warn!(
                path = self.path,
                "the device was not closed in order: {}",
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

/// What the backend offers, checked [2.3].
fn negotiated(store: &mut XenStoreConnection, backend: &str) -> Result<Negotiated, FrontendError> {
    let mut read = |key: &str| {
        // A key that is missing is a revision, size or feature that cannot be.
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

/// Waits until the backend is in a state.
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
        // What changed while it was looked at is looked at again before any wait.
        if !store.take_events()? {
            wait(store, left)?;
        }
    }
}
