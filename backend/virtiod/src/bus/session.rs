//! The thread of one device: follows the states of SPEC section 2 and waits for events between
//! them.
//!
//! A failed write to XenStore does not end a device. The session writes the state later, repeats a
//! refused step after a growing delay, and replaces a lost connection to xenstored; meanwhile it
//! serves the guest's requests.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::binding::{F_MOVABLE, XenbusState};
use protocol::grant::GrantRef;
use tracing::Level;
use uring::waiting::wait_by_poll;

pub use super::connection::BoxedDevice;
use super::connection::{Connection, ConnectionError, OpenError};
use super::keeper::remove_record;
use super::keys::{DevicePath, FrontendKeys, KeyError, Keys, Remover};
use super::pending_states::PendingStates;
use super::reconnection::{CHECK_INTERVAL, Reconnected, reconnect};
use super::scheduler::Woken;
use super::state::{self, Action, State};
use super::stop::{Ending, StopSignal};
use crate::Causes;
use crate::backoff::Backoff;
use crate::config::ServiceSettings;
use crate::device::{AwaitedFd, Source};
use crate::dma::AccessPlatform;
use crate::domain::Domain;
use crate::excerpt::excerpt;
use crate::guest::Guest;
use crate::record::{ConnectionId, Record, Records};
use crate::stats::DeviceStats;
use xen::{RemotePort, StoreError, XenStore};

/// Time that state 6 remains visible before the backend removes its directory [2.10].
const STATE_6_STANDS: Duration = Duration::from_secs(1);
/// Maximum time for which a device that ends waits for its storage [7.34]; tests do not wait as
/// long.
const DRAIN_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// Delays after XenStore refused an operation or the connection was lost.
const STORE_RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// Delays before the backend offers the device again to a frontend whose connection failed.
const OFFER_RETRY: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(10));
/// Maximum time for which a session waits for what an earlier process of its device holds, and the
/// delays between its attempts.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
const TAKE_OVER_RETRY: Backoff =
    Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
/// A connection that lasted this long resets the delay of the next offer.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// An error that ends a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A wait failed.
    #[error("cannot wait for events")]
    Poll(#[source] io::Error),
}

/// An error that ends a session's step.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// XenStore failed: the session repeats the step later.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The session has failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepOutcome {
    /// Another step follows.
    Next,
    /// The session has ended.
    Over,
}

/// The state in which a session begins.
#[derive(Debug)]
pub enum Origin {
    /// The device is new, or a backend offered it and no frontend connected.
    New,
    /// The connection with an earlier daemon has ended: the frontend may start again [2.9].
    Closed,
    /// An earlier process left the connection, with this record of it.
    Left(Box<Record>, ConnectionId),
}

/// The end of a session.
pub struct SessionEnd<X: Domain> {
    /// The error that ended it, if one did. The guest's pages that storage does not hold are
    /// unmapped in any case.
    pub outcome: Result<(), SessionError>,
    /// The device and parts of it, if storage still holds pages of the guest's. To drop them waits
    /// for storage.
    pub draining: Vec<BoxedDevice<X>>,
}

/// The surroundings of a device.
#[derive(Clone, Debug)]
pub struct Context {
    /// The device's path in XenStore.
    pub path: DevicePath,
    /// State that all devices of the guest share.
    pub guest: Guest,
    /// The settings for polling and the pool.
    pub service: ServiceSettings,
    /// Where the records of devices are; `None` if all end with this process.
    pub records: Option<Arc<dyn Records>>,
    /// Why a device that an earlier process left must not go on without a reset.
    pub fault: Option<String>,
    /// The device's statistics.
    pub stats: Arc<DeviceStats>,
}

/// The phase of a device, with the device or its connection.
enum Phase<X: Domain> {
    Idle(BoxedDevice<X>),
    Offered(BoxedDevice<X>),
    Connected { connection: Box<Connection<X>>, since: Instant },
    Closed(BoxedDevice<X>),
    Ended,
}

impl<X: Domain> Phase<X> {
    fn state(&self) -> State {
        match self {
            Self::Idle(_) => State::Idle,
            Self::Offered(_) => State::Offered,
            Self::Connected { .. } => State::Connected,
            Self::Closed(_) => State::Closed,
            Self::Ended => State::Ended,
        }
    }

    fn connection(&self) -> Option<&Connection<X>> {
        match self {
            Self::Connected { connection, .. } => Some(connection),
            _ => None,
        }
    }

    /// The device, unless it is connected.
    fn device(&self) -> Option<&BoxedDevice<X>> {
        match self {
            Self::Idle(device) | Self::Offered(device) | Self::Closed(device) => Some(device),
            Self::Connected { .. } | Self::Ended => None,
        }
    }

    /// The time after which a draining device is to be asked again.
    fn retry_within(&self) -> Duration {
        let at = self.device().and_then(|device| device.deadline());
        at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    fn device_mut(&mut self) -> Option<&mut BoxedDevice<X>> {
        match self {
            Self::Idle(device) | Self::Offered(device) | Self::Closed(device) => Some(device),
            Self::Connected { .. } | Self::Ended => None,
        }
    }

    /// Passes the device on to the phase `next`. Closes a connection first, and adds parts of the
    /// device that still use buffers to `draining`.
    fn passed_to(
        self,
        next: fn(BoxedDevice<X>) -> Self,
        draining: &mut Vec<BoxedDevice<X>>,
    ) -> Self {
        match self {
            Self::Idle(device) | Self::Offered(device) | Self::Closed(device) => next(device),
            Self::Connected { connection, .. } => {
                let closed = connection.close();
                draining.extend(closed.draining);
                next(closed.device)
            }
            Self::Ended => Self::Ended,
        }
    }
}

/// The life of one device.
pub struct Session<X: Domain> {
    xen: X,
    keys: Keys<X::Store>,
    context: Context,
    stop: Arc<StopSignal>,
    stats: Arc<DeviceStats>,
    phase: Phase<X>,
    pending_states: PendingStates,
    /// Whether the device may still use buffers of a driver that is gone.
    is_draining: bool,
    /// Parts of the device that are draining, and at the end the device itself.
    draining: Vec<BoxedDevice<X>>,
    /// The delays between offers, and the end of the current delay.
    offers: Backoff,
    offer_at: Option<Instant>,
}

impl<X: Domain> Session<X> {
    /// Returns a session for `device`, which is `None` if the toolstack already requested its
    /// removal. The session ends as `stop` says when that is given.
    pub fn new(
        xen: X,
        keys: Keys<X::Store>,
        device: Option<BoxedDevice<X>>,
        context: Context,
        stop: Arc<StopSignal>,
    ) -> Self {
        Self {
            xen,
            keys,
            stats: Arc::clone(&context.stats),
            context,
            stop,
            phase: device.map_or(Phase::Ended, Phase::Idle),
            pending_states: PendingStates::default(),
            is_draining: false,
            draining: Vec::new(),
            offers: OFFER_RETRY,
            offer_at: None,
        }
    }

    /// Runs until the toolstack removes the device, or the daemon ends. Returns the device too, if
    /// its storage does not let go: to drop it takes as long.
    pub fn run(mut self, origin: Origin) -> SessionEnd<X> {
        match origin {
            Origin::New => {}
            Origin::Closed => self.note_closed(),
            Origin::Left(record, id) => self.take_over(*record, id),
        }
        let outcome = self.follow();
        // The guest's pages are unmapped before the thread ends, even after an error.
        self.drop_connection();
        self.stats.update(|state| state.state = "closed".to_owned());
        self.end_phase();
        SessionEnd { outcome, draining: self.draining }
    }

    fn follow(&mut self) -> Result<(), SessionError> {
        let mut retries = STORE_RETRY;
        loop {
            match self.step() {
                Ok(StepOutcome::Next) => retries.reset(),
                Ok(StepOutcome::Over) => return Ok(()),
                Err(StepError::Session(error)) => return Err(error),
                Err(StepError::Store(error)) => {
                    if !self.recover(&error, retries.take())? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads the states in XenStore and takes the next action of the state table.
    fn step(&mut self) -> Result<StepOutcome, StepError> {
        self.write_states()?;
        let frontend = self.keys.frontend_state()?;
        let toolstack = self.keys.toolstack(self.pending_states.written())?;
        match state::next(self.phase.state(), frontend, toolstack) {
            Action::Offer if self.offer_at.is_none() && !self.is_draining => self.offer()?,
            Action::Wait | Action::Offer => return self.wait(),
            Action::Connect => self.connect()?,
            Action::Close => self.close(),
            Action::Abandon => self.abandon()?,
            Action::End => return self.remove(),
            Action::Leave => return Ok(StepOutcome::Over),
        }
        Ok(StepOutcome::Next)
    }

    /// Recovers from a XenStore error: serves the guest for `wait`, then replaces the connection if
    /// it is lost. Returns `false` if the daemon ends.
    fn recover(&mut self, error: &StoreError, wait: Duration) -> Result<bool, SessionError> {
        self.stats
            .log
            .line(Level::WARN, format_args!("{}; tried again in {wait:?}", Causes(error)));
        if !self.serve_until(Instant::now() + wait)? {
            self.stop();
            return Ok(false);
        }
        if error.is_lost() { self.reconnect() } else { Ok(true) }
    }

    /// Tries to replace the connection to XenStore and serves the guest meanwhile. Returns `false`
    /// if the daemon ends.
    fn reconnect(&mut self) -> Result<bool, SessionError> {
        let (xen, watches) = (self.xen.clone(), self.keys.watches());
        match reconnect(xen, watches, || self.serve_until(Instant::now() + CHECK_INTERVAL))? {
            Reconnected::Yes(store) => {
                self.keys.reconnect(store);
                if let Phase::Connected { connection, .. } = &mut self.phase {
                    connection.forget_descriptors();
                }
            }
            Reconnected::No => {}
            Reconnected::Ended => {
                self.stop();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a backend in another domain can go on with the device [2.16]: the toolstack's own
    /// domain ends with the host.
    fn is_movable(&mut self) -> Result<bool, StoreError> {
        let device = self.phase.device();
        let outlives = device.is_some_and(|device| device.outlives_its_domain());
        Ok(outlives && self.keys.remover()? == Remover::Backend)
    }

    fn offer(&mut self) -> Result<(), StoreError> {
        let movable = if self.is_movable()? { F_MOVABLE } else { 0 };
        self.keys.offer(X::Platform::BUS_FEATURES | movable)?;
        self.stats.update(|state| state.state = "waiting".to_owned());
        self.pass_to(Phase::Offered);
        self.add(XenbusState::InitWait);
        Ok(())
    }

    /// Adds a state, which the next step writes.
    fn add(&mut self, written: XenbusState) {
        tracing::debug!(state = ?self.phase.state(), "state {}", written as u32);
        self.pending_states.add(written);
    }

    /// Takes the phase out; the caller must set another one at once.
    fn take_phase(&mut self) -> Phase<X> {
        std::mem::replace(&mut self.phase, Phase::Ended)
    }

    fn pass_to(&mut self, next: fn(BoxedDevice<X>) -> Phase<X>) {
        self.phase = self.take_phase().passed_to(next, &mut self.draining);
    }

    /// Writes the pending states.
    fn write_states(&mut self) -> Result<(), StoreError> {
        while let Some(state) = self.pending_states.next() {
            self.keys.set_state(state)?;
            self.pending_states.done(state);
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        let keys = self.keys.frontend();
        let keys = keys.and_then(|keys| Ok((keys, self.keys.connection_id()?)));
        let (keys, id) = match keys {
            Ok(keys) => keys,
            Err(KeyError::Store(error)) => return Err(error),
            Err(error) => {
                self.give_up(&error.into());
                return Ok(());
            }
        };
        let device = match self.take_phase() {
            Phase::Offered(device) => device,
            other => {
                self.phase = other;
                return Ok(());
            }
        };
        self.stats.update(|state| state.needs_reset = None);
        match Connection::open(&self.xen, &self.context, keys, device) {
            Ok(mut connection) => {
                connection.keep(&self.context, id);
                self.connected(connection, "connected");
                self.add(XenbusState::Connected);
            }
            Err(OpenError { error, device }) => {
                self.phase = Phase::Offered(device);
                self.give_up(&error);
            }
        }
        Ok(())
    }

    fn connected(&mut self, connection: Connection<X>, how: &str) {
        self.stats.update(|state| {
            state.state = "connected".to_owned();
            state.error = None;
        });
        self.stats.log.line(Level::INFO, format_args!("{how}"));
        let connection = Box::new(connection);
        self.phase = Phase::Connected { connection, since: Instant::now() };
    }

    /// Goes on with the connection that an earlier process left. XenStore shows it as connected all
    /// the time.
    fn take_over(&mut self, record: Record, id: ConnectionId) {
        self.pending_states = PendingStates::after(XenbusState::Connected);
        let device = match self.take_phase() {
            Phase::Idle(device) => device,
            other => {
                self.phase = other;
                return;
            }
        };
        let program = record.program().ok().flatten();
        match self.try_take_over(record, &id, device) {
            Ok(connection) => {
                let of = program.map_or_else(String::new, |program| format!(" of {program}"));
                self.connected(connection, &format!("taken over from an earlier process{of}"));
                // It may be of an attempt that failed. Without XenStore, the next state fails too.
                let _ = self.keys.clear_error();
            }
            // The next process tries again.
            Err(OpenError { error, .. }) if error.may_pass() && self.is_to_leave() => {}
            Err(OpenError { error, device }) => {
                self.phase = Phase::Closed(device);
                self.add(XenbusState::Closing);
                self.give_up(&error);
                if let Some(records) = &self.context.records {
                    remove_record(&**records, &self.context.path.record_name(), &self.stats);
                }
            }
        }
    }

    /// Whether the daemon leaves its devices.
    fn is_to_leave(&self) -> bool {
        let mut fds = [AwaitedFd::readable(self.stop.as_fd())];
        let waited = wait_by_poll(&mut fds, Duration::ZERO);
        let is_given = waited.is_ok() && fds.iter().any(|fd| fd.is_ready);
        is_given && self.stop.ending() == Ending::Leave
    }

    /// Takes a connection over. For a while it waits for what the earlier process holds.
    fn try_take_over(
        &self,
        record: Record,
        id: &ConnectionId,
        mut device: BoxedDevice<X>,
    ) -> Result<Connection<X>, OpenError<X>> {
        let keys = FrontendKeys { page: GrantRef(id.page), port: RemotePort(id.port) };
        let (end, mut waits) = (Instant::now() + TAKE_OVER_LIMIT, TAKE_OVER_RETRY);
        loop {
            let left = (record.share(), id.clone());
            let failed = match Connection::take_over(&self.xen, &self.context, keys, device, left) {
                Err(failed) if failed.error.may_pass() && Instant::now() < end => failed,
                outcome => return outcome,
            };
            let mut fds = [AwaitedFd::readable(self.stop.as_fd())];
            let waited = wait_by_poll(&mut fds, waits.take());
            if waited.is_err() || fds.iter().any(|fd| fd.is_ready) {
                return Err(failed);
            }
            device = failed.device;
        }
    }

    /// Ends a failed connection; the frontend may start again after a delay.
    fn give_up(&mut self, error: &ConnectionError) {
        let shown = Causes(error).to_string();
        self.stats.log.line(Level::WARN, format_args!("connection ended: {shown}"));
        self.write_reason(&shown);
        self.delay_offer();
        self.begin_closing();
        self.stats.fail(error);
        self.pass_to(Phase::Closed);
        self.add(XenbusState::Closed);
    }

    /// Delays the next offer, each time longer, unless the connection lasted for
    /// [`GOOD_CONNECTION`]. A frontend that reconnects costs this domain and xenstored more than
    /// its own.
    fn delay_offer(&mut self) {
        match self.phase {
            Phase::Connected { since, .. } if since.elapsed() >= GOOD_CONNECTION => {
                self.offers.reset();
            }
            _ => {}
        }
        self.offer_at = Some(Instant::now() + self.offers.take());
    }

    /// Writes the reason of the failure to the key `error`, for people. If XenStore refuses it, the
    /// log has it anyway.
    fn write_reason(&mut self, error: &str) {
        if let Err(error) = self.keys.set_error(error) {
            let what = format_args!("cannot write the key error: {}", Causes(&error));
            self.stats.log.line(Level::WARN, what);
        }
    }

    /// Closes the device for a frontend that could not connect. xenbus drivers write their reason
    /// into XenStore.
    fn abandon(&mut self) -> Result<(), StoreError> {
        let reason = self.keys.frontend_error()?;
        let reason = reason.map_or_else(|| "it gives no reason".to_owned(), |it| it.to_string());
        let error = format!("the guest cannot connect: {reason}");
        self.stats.log.line(Level::WARN, format_args!("{error}"));
        self.stats.update(|state| state.error = Some(excerpt(&error)));
        self.close();
        Ok(())
    }

    /// Ends the connection, if any; the frontend may start again [2.9] after a delay.
    fn close(&mut self) {
        self.delay_offer();
        self.begin_closing();
        self.note_closed();
    }

    /// Ends the session as the daemon asks.
    fn stop(&mut self) {
        match self.stop.ending() {
            Ending::End => self.end(),
            Ending::Leave => self.leave(),
        }
    }

    /// Leaves the device to another process. XenStore stays as it is, unless no process could go on
    /// with the connection.
    fn leave(&mut self) {
        if self.phase.connection().is_some_and(|connection| !connection.can_be_taken_over()) {
            return self.end();
        }
        self.phase = match self.take_phase() {
            Phase::Connected { connection, .. } => {
                let left = connection.leave();
                self.draining.extend(left.draining);
                self.stats.log.line(Level::INFO, format_args!("left to the next process"));
                Phase::Closed(left.device)
            }
            other => other,
        };
        self.drain();
        self.end_phase();
    }

    /// Ends the device for good. The device releases its host resources, such as an interface's
    /// name, before the toolstack sees the state and may start another device. If XenStore refuses
    /// the state, the session ends anyway.
    fn end(&mut self) {
        self.begin_closing();
        self.end_phase();
        self.note_closed();
        if let Err(error) = self.write_states() {
            let what = format_args!("cannot write state 6: {}", Causes(&error));
            self.stats.log.line(Level::WARN, what);
        }
    }

    /// Drops the device, unless that would wait for storage.
    fn end_phase(&mut self) {
        match self.take_phase() {
            Phase::Idle(device) | Phase::Offered(device) | Phase::Closed(device)
                if self.is_draining =>
            {
                self.draining.push(device);
            }
            ended => drop(ended),
        }
    }

    fn begin_closing(&mut self) {
        if self.drop_connection() {
            self.add(XenbusState::Closing);
            self.stats.log.line(Level::INFO, format_args!("disconnected"));
            self.drain();
        }
    }

    /// Waits until the device uses no buffer of its driver any more, up to [`DRAIN_LIMIT`]: the
    /// toolstack gives up after 10 s, and storage may never answer [2.7].
    fn drain(&mut self) {
        let end = Instant::now() + DRAIN_LIMIT;
        while self.note_draining() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.stats.log_storage_wait();
            }
            let left = left.min(self.phase.retry_within());
            let mut fds = Vec::new();
            self.add_draining(&mut fds);
            // The next look shows what happened.
            let _ = wait_by_poll(&mut fds, left);
        }
    }

    /// Adds what tells of a device that is draining.
    fn add_draining(&self, fds: &mut Vec<AwaitedFd>) {
        for device in self.draining.iter().chain(self.phase.device()) {
            fds.extend(device.sources().iter().map(Source::awaited));
        }
    }

    /// Looks whether the device still uses buffers of a driver that is gone.
    fn note_draining(&mut self) -> bool {
        self.draining.retain_mut(|part| part.is_draining());
        let is_draining = self.phase.device_mut().is_some_and(|device| device.is_draining());
        self.is_draining = is_draining || !self.draining.is_empty();
        self.is_draining
    }

    fn note_closed(&mut self) {
        self.stats.update(|state| state.state = "closed".to_owned());
        self.pass_to(Phase::Closed);
        self.add(XenbusState::Closed);
    }

    /// Ends a device that the toolstack removes. In a driver domain, removes its directory as well
    /// [2.10].
    fn remove(&mut self) -> Result<StepOutcome, StepError> {
        self.begin_closing();
        self.end_phase();
        self.note_closed();
        self.write_states()?;
        if self.keys.remover()? == Remover::Backend {
            // A toolstack that finds the directory gone before it has read state 6 reports that the
            // device failed, and nothing notifies the backend of its read.
            let mut fds = [AwaitedFd::readable(self.stop.as_fd())];
            wait_by_poll(&mut fds, STATE_6_STANDS).map_err(SessionError::Poll)?;
            self.keys.remove()?;
        }
        Ok(StepOutcome::Over)
    }

    /// Closes the connection, which unmaps the guest's pages; returns whether there was one.
    fn drop_connection(&mut self) -> bool {
        let connected = self.phase.connection().is_some();
        if connected {
            self.pass_to(Phase::Closed);
        }
        connected
    }

    /// Handles the connection's events until something changes in XenStore. The caller then reads
    /// the states: these reads are too expensive for every doorbell.
    fn wait(&mut self) -> Result<StepOutcome, StepError> {
        // An event that arrived with an earlier answer no longer makes the descriptor readable.
        let mut changed = self.keys.store().take_events()?;
        loop {
            let woken = self.poll(changed, StoreWatch::Yes)?;
            if woken.stop {
                self.stop();
                return Ok(StepOutcome::Over);
            }
            if !self.iterate(&woken) {
                return Ok(StepOutcome::Next);
            }
            changed = changed || woken.store && self.keys.store().take_events()?;
            let was_draining = self.is_draining;
            if changed || self.may_offer_again() || was_draining && !self.note_draining() {
                return Ok(StepOutcome::Next);
            }
        }
    }

    /// Handles the connection's events only, until `end`; returns `false` if the daemon ends.
    fn serve_until(&mut self, end: Instant) -> Result<bool, SessionError> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let woken = self.poll_within(left, StoreWatch::No)?;
            if woken.stop {
                return Ok(false);
            }
            self.iterate(&woken);
            if self.is_draining {
                self.note_draining();
            }
            if left.is_zero() {
                return Ok(true);
            }
        }
    }

    /// Runs an iteration of the connection, if any; returns `false` if it ended the connection.
    fn iterate(&mut self, woken: &Wakeup) -> bool {
        let Phase::Connected { connection, .. } = &mut self.phase else { return true };
        let news = if woken.news { connection.take_news() } else { Ok(()) };
        match news.and_then(|()| connection.iterate(woken.connection)) {
            Ok(()) => true,
            Err(error) => {
                self.give_up(&error);
                false
            }
        }
    }

    /// Whether the delay of the next offer has just ended.
    fn may_offer_again(&mut self) -> bool {
        self.offer_at.take_if(|at| *at <= Instant::now()).is_some()
    }

    fn poll(&mut self, at_once: bool, watch: StoreWatch) -> Result<Wakeup, SessionError> {
        let until_offer = self.offer_at.map(|at| at.saturating_duration_since(Instant::now()));
        let limit = if at_once { Duration::ZERO } else { until_offer.unwrap_or(Duration::MAX) };
        self.poll_within(limit, watch)
    }

    fn poll_within(&mut self, limit: Duration, watch: StoreWatch) -> Result<Wakeup, SessionError> {
        let mut fds = vec![AwaitedFd::readable(self.stop.as_fd())];
        let connection = self.phase.connection();
        let news = connection.and_then(Connection::news);
        if let Some(connection) = connection {
            fds.push(AwaitedFd::readable(connection.as_fd()));
            fds.extend(news.map(AwaitedFd::readable));
            fds.extend(connection.sources().iter().map(Source::awaited));
        }
        if self.is_draining {
            self.add_draining(&mut fds);
        }
        let ours = fds.len();
        if watch == StoreWatch::Yes {
            fds.push(AwaitedFd::readable(self.keys.store_ref().as_fd()));
        }
        let (has_connection, has_news) = (connection.is_some(), news.is_some());
        self.wait_for(&mut fds, limit).map_err(SessionError::Poll)?;
        let mut ready = fds.iter().map(|fd| fd.is_ready);
        let mut next_if = |is_there: bool| is_there && ready.next().unwrap_or(false);
        let (stop, events, news) = (next_if(true), next_if(has_connection), next_if(has_news));
        let others = ours.saturating_sub(1 + usize::from(has_connection) + usize::from(has_news));
        let sources = ready.by_ref().take(others).filter(|ready| *ready).count() > 0;
        let store = ready.next().unwrap_or(false);
        let connection = Woken { events, sources, deadline: false };
        Ok(Wakeup { stop, store, news, connection })
    }

    fn wait_for(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        let limit = if self.is_draining { limit.min(self.phase.retry_within()) } else { limit };
        match &mut self.phase {
            Phase::Connected { connection, .. } => connection.wait(fds, limit),
            _ => {
                DeviceStats::count(&self.stats.sleeps);
                wait_by_poll(fds, limit)
            }
        }
    }
}

/// Whether an event of XenStore's ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreWatch {
    Yes,
    No,
}

/// The events that ended a wait.
struct Wakeup {
    stop: bool,
    store: bool,
    /// Another thread of the device's has told something.
    news: bool,
    connection: Woken,
}
