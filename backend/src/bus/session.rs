//! One device's thread: follows the states of SPEC section 2, and between them waits for events.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use protocol::binding::XenbusState;
use tracing::Level;

use super::connection::{Connection, ConnectionError, Device, Ready};
use super::keys::{DevicePath, Keys, Remover};
use super::state::{self, Stage, Step};
use crate::config::ServiceSettings;
use crate::platform::Platform;
use crate::stats::DeviceStats;
use crate::xen::{StoreError, Xen, XenStore};

/// How long state 6 stands before the backend removes its directory [2.10], in milliseconds.
const STATE_6_STANDS: u16 = 1000;

/// What ends a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// XenStore cannot be reached: nothing more can be done for this device.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel cannot be waited for.
    #[error("cannot wait for events: {0}")]
    Poll(#[source] nix::Error),
}

/// One device's life.
pub struct Session<X: Xen> {
    xen: X,
    path: DevicePath,
    keys: Keys<X::Store>,
    service: ServiceSettings,
    stop: Arc<EventFd>,
    stats: Arc<DeviceStats>,
    stage: Stage,
    own_state: XenbusState,
    /// Between connections; a connection has it meanwhile.
    device: Option<Device<X>>,
    connection: Option<Connection<X>>,
}

impl<X: Xen> Session<X> {
    /// A session for the device at `path`, served as `service` says. `stop` becoming
    /// readable ends it.
    pub fn new(
        xen: X,
        path: DevicePath,
        keys: Keys<X::Store>,
        device: Device<X>,
        service: ServiceSettings,
        stop: Arc<EventFd>,
        stats: Arc<DeviceStats>,
    ) -> Self {
        Self {
            xen,
            path,
            keys,
            service,
            stop,
            stats,
            stage: Stage::Idle,
            own_state: XenbusState::Initialising,
            device: Some(device),
            connection: None,
        }
    }

    /// Runs until the toolstack removes the device, or the daemon ends.
    ///
    /// # Errors
    /// [`SessionError`]; the guest's pages are unmapped in any case.
    pub fn run(mut self) -> Result<(), SessionError> {
        let outcome = self.follow();
        // Whatever went wrong, what is the guest's is given back before the thread ends.
        self.disconnect();
        self.stats.update(|state| state.state = "closed".to_owned());
        outcome
    }

    fn follow(&mut self) -> Result<(), SessionError> {
        loop {
            let frontend = self.keys.frontend_state()?;
            let toolstack = self.keys.toolstack(self.own_state)?;
            match state::next(self.stage, frontend, toolstack) {
                Step::Wait => {
                    if !self.wait()? {
                        return self.end();
                    }
                }
                Step::Offer => self.offer()?,
                Step::Connect => self.connect()?,
                Step::Close => self.close()?,
                Step::Abandon => self.abandon()?,
                Step::End => return self.remove(),
            }
        }
    }

    fn offer(&mut self) -> Result<(), SessionError> {
        self.keys.offer(X::Platform::BUS_FEATURES)?;
        self.stats.update(|state| state.state = "waiting".to_owned());
        self.enter(Stage::Offered, XenbusState::InitWait)
    }

    fn enter(&mut self, stage: Stage, state: XenbusState) -> Result<(), SessionError> {
        tracing::debug!(?stage, "state {}", state as u32);
        (self.stage, self.own_state) = (stage, state);
        Ok(self.keys.set_state(state)?)
    }

    fn connect(&mut self) -> Result<(), SessionError> {
        match self.open_connection() {
            Ok(()) => {
                self.stats.update(|state| {
                    state.state = "connected".to_owned();
                    (state.needs_reset, state.error) = (None, None);
                });
                self.stats.log.line(Level::INFO, format_args!("connected"));
                self.enter(Stage::Connected, XenbusState::Connected)
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn open_connection(&mut self) -> Result<(), ConnectionError> {
        let keys = self.keys.frontend()?;
        let (guest, stats) = (self.path.guest, Arc::clone(&self.stats));
        let device = &mut self.device;
        self.connection = Connection::open(&self.xen, guest, keys, device, self.service, stats)?;
        Ok(())
    }

    /// Ends a connection that cannot go on; the frontend may start again.
    fn give_up(&mut self, error: &ConnectionError) -> Result<(), SessionError> {
        self.stats.log.line(Level::WARN, format_args!("connection ended: {error}"));
        self.keys.set_error(&error.to_string())?;
        self.leave()?;
        self.stats.fail(error);
        self.enter(Stage::Closed, XenbusState::Closed)
    }

    /// Lets a frontend go that could not connect. xenbus drivers write their reason into XenStore.
    fn abandon(&mut self) -> Result<(), SessionError> {
        let reason = self.keys.frontend_error()?;
        let reason = reason.as_deref().unwrap_or("it does not say why");
        self.stats.log.line(Level::WARN, format_args!("the guest cannot connect: {reason}"));
        let error = format!("the guest cannot connect: {reason}");
        self.stats.update(|state| state.error = Some(error));
        self.close()
    }

    /// Ends the connection, if there is one; the frontend may start again [2.9].
    fn close(&mut self) -> Result<(), SessionError> {
        self.leave()?;
        self.closed()
    }

    /// As [`Session::close`], for good. What the device holds of the host, such as an interface's name,
    /// is free for another device before the toolstack hears of it.
    fn end(&mut self) -> Result<(), SessionError> {
        self.leave()?;
        self.device = None;
        self.closed()
    }

    fn leave(&mut self) -> Result<(), SessionError> {
        if self.disconnect() {
            self.enter(self.stage, XenbusState::Closing)?;
            self.stats.log.line(Level::INFO, format_args!("disconnected"));
        }
        Ok(())
    }

    fn closed(&mut self) -> Result<(), SessionError> {
        self.stats.update(|state| state.state = "closed".to_owned());
        self.enter(Stage::Closed, XenbusState::Closed)
    }

    /// Ends a device that the toolstack wants gone, and removes its directory where that is the
    /// backend's to do [2.10].
    fn remove(&mut self) -> Result<(), SessionError> {
        self.end()?;
        if self.keys.remover()? == Remover::Toolstack {
            return Ok(());
        }
        // A toolstack that finds the directory gone before it has read state 6 says that the device
        // failed, and nothing tells when it has read it.
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, STATE_6_STANDS) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(self.keys.remove()?),
            Err(errno) => Err(SessionError::Poll(errno)),
        }
    }

    /// Gives back everything of the guest's; whether there was anything.
    fn disconnect(&mut self) -> bool {
        let Some(connection) = self.connection.take() else {
            return false;
        };
        self.device = Some(connection.close());
        true
    }

    /// Deals with the connection's events until something changed in XenStore, which the caller looks
    /// up: each look is questions to XenStore, too many to ask at every doorbell. `false` when the
    /// daemon ends.
    fn wait(&mut self) -> Result<bool, SessionError> {
        // An event that came with an answer to the questions before is not on the descriptor.
        let mut changed = self.keys.store().take_events()?;
        loop {
            let woken = self.poll(changed).map_err(SessionError::Poll)?;
            if woken.stop {
                return Ok(false);
            }
            if let Some(connection) = &mut self.connection {
                if let Err(error) = connection.turn(woken.connection) {
                    self.give_up(&error)?;
                    return Ok(true);
                }
            }
            changed = changed || woken.store && self.keys.store().take_events()?;
            if changed {
                return Ok(true);
            }
        }
    }

    fn poll(&self, at_once: bool) -> Result<Woken, nix::Error> {
        let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![entry(self.stop.as_fd()), entry(self.keys.store_ref().as_fd())];
        if let Some(connection) = &self.connection {
            fds.push(entry(connection.as_fd()));
            let sources = connection.sources();
            fds.extend(sources.iter().map(|source| PollFd::new(source.fd, source.events)));
        }
        let idle = self.connection.as_ref().and_then(Connection::idle_time);
        let idle = if at_once { Some(Duration::ZERO) } else { idle };
        let timeout = idle.map_or(PollTimeout::NONE, |time| {
            PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)
        });
        DeviceStats::count(&self.stats.sleeps);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let mut next = || ready.next().unwrap_or(false);
        let (stop, store, events) = (next(), next(), next());
        let connection = Ready { events, sources: ready.any(|ready| ready) };
        Ok(Woken { stop, store, connection })
    }
}

/// What a wait ended with.
struct Woken {
    stop: bool,
    store: bool,
    connection: Ready,
}
