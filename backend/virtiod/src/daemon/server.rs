//! Watches XenStore for devices and runs a session for each in a thread of its own.
//!
//! No error of XenStore's ends the daemon. It retries a device that cannot be started, and a lost
//! connection to xenstored, after growing delays; running sessions continue.

mod changes;
mod retries;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;
use protocol::binding::XenbusState;
use tracing::Level;

use self::changes::{Change, changes};
use self::retries::Retries;
use super::same_address::warn_of_same_address;
use crate::Causes;
use crate::backoff::Backoff;
use crate::bus::keys::KeyError;
use crate::bus::reconnection::{CHECK_INTERVAL, Reconnected, reconnect};
use crate::bus::session::{self, BoxedDevice, Context, Session, SessionEnd};
use crate::bus::{DevicePath, Keys, StopSignal, Toolstack, Watches, keys};
use crate::config::ConfigFile;
use crate::daemon::registry::Registry;
use crate::daemon::size_watches::SizeWatches;
use crate::device::AwaitedFd;
use crate::dma::budget::DaemonBudget;
use crate::domain::Domain;
use crate::guest::{Guest, Guests};
use crate::record::{Record, RecordDirectory, RecordError};
use crate::setup::{self, CLASSES, DeviceError, Host};
use crate::stats::DeviceStats;
use crate::tap::network::Network;
use uring::waiting::{wait_by_poll, wait_for};
use xen::{DomId, Fired, StoreError, XenStore};

/// Time that devices have to end with the daemon, before it ends without them.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Maximum time for which a device's thread waits for files that the device had in an earlier
/// process, and the delays between its looks; after that, the server tries again.
const FILES_LIMIT: Duration = Duration::from_secs(5);
const FILES_RETRY: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
/// Delays before the next scan after XenStore failed.
const STORE_RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// An error that ends the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// XenStore cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel refuses an operation that the daemon needs.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// A device's thread that could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot open a file descriptor for another device")]
    Descriptor(#[source] io::Error),
    #[error("cannot start a thread for another device")]
    Thread(#[source] io::Error),
}

/// The state in which a device was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The device is new, or a backend offered it and no frontend connected.
    New,
    /// Its connection has ended: the frontend may start again [2.9].
    Closed,
    /// It is connected to an earlier process, which may have left a record.
    Left,
}

/// The running thread of a device.
struct Running {
    origin: Origin,
    stop: Arc<StopSignal>,
    thread: JoinHandle<()>,
    stats: Arc<DeviceStats>,
}

/// The message that a device's thread has ended.
struct Ended {
    path: DevicePath,
    outcome: ThreadOutcome,
    /// Whether the thread ends by itself, once storage lets it: nobody may wait for it.
    is_detached: bool,
}

/// A device to start.
struct NewDevice {
    path: DevicePath,
    origin: Origin,
    guest: Guest,
}

/// The outcome of a device's thread.
#[derive(Debug)]
enum ThreadOutcome {
    /// The device has ended, or the thread refused it.
    Over,
    /// The device cannot be served now, but may be later.
    Failed,
    /// The device was not served, and the thread could not report that to the toolstack.
    Unreported(StoreError),
}

/// All devices of this domain.
pub struct Server<X: Domain> {
    xen: X,
    store: X::Store,
    registry: Arc<Registry>,
    config: ConfigFile,
    records: Option<RecordDirectory>,
    host: Host,
    sizes: SizeWatches,
    guests: Guests,
    running: BTreeMap<DevicePath, Running>,
    /// Devices whose threads failed or could not be started.
    failed: Retries<DevicePath>,
    /// Devices that XenStore had when they were visited last; a running one is not visited.
    known: BTreeSet<DevicePath>,
    /// Devices whose thread has ended and that were not visited since.
    over: Vec<DevicePath>,
    store_retry: Backoff,
    ended: Receiver<Ended>,
    ending: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl<X: Domain> Server<X> {
    /// Connects to XenStore and watches the directories in which devices appear.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn new(
        xen: X,
        registry: Arc<Registry>,
        config: ConfigFile,
        records: Option<RecordDirectory>,
        network: Arc<dyn Network>,
    ) -> Result<Self, ServerError> {
        let mut store = xen.store()?;
        watches().set(&mut store)?;
        let (ending, ended) = mpsc::channel();
        let woken = event_fd().map_err(|error| ServerError::System("make an eventfd", error))?;
        let woken = Arc::new(woken);
        let sizes = SizeWatches::new(Arc::clone(&woken));
        let sizes = sizes.map_err(|error| ServerError::System("watch files", error))?;
        let host = Host { network, sizes: Arc::new(sizes.clone()) };
        Ok(Self {
            xen,
            store,
            registry,
            config,
            records,
            host,
            sizes,
            guests: Guests::new(DaemonBudget::of_this_process()),
            running: BTreeMap::new(),
            failed: Retries::default(),
            known: BTreeSet::new(),
            over: Vec::new(),
            store_retry: STORE_RETRY,
            ended,
            ending,
            woken,
        })
    }

    /// Serves until `stop` is given, then ends every session as that says; after an error of its
    /// own it leaves the devices.
    ///
    /// # Errors
    /// [`ServerError`]; the sessions end in any case.
    pub fn run(mut self, stop: &StopSignal) -> Result<(), ServerError> {
        let outcome = self.serve(stop);
        let ending = stop.ending();
        let running = std::mem::take(&mut self.running);
        // All threads are notified before the first is joined: they end in parallel.
        let stopping = running.into_iter().filter_map(|(path, running)| {
            let reported = running.stop.give(ending);
            reported
                .inspect_err(
                    |error| tracing::error!(%path, "cannot stop the device: {}", Causes(error)),
                )
                .is_ok()
                .then_some((path, running.thread))
        });
        self.join_all(stopping.collect());
        outcome
    }

    /// Waits for threads that were told to stop, but not for those that storage holds up.
    fn join_all(&self, mut stopping: BTreeMap<DevicePath, JoinHandle<()>>) {
        let end = Instant::now() + STOP_LIMIT;
        while !stopping.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(Ended { path, is_detached, .. }) = self.ended.recv_timeout(left) else {
                tracing::error!(devices = stopping.len(), "not all devices ended in time");
                return;
            };
            if let Some(thread) = stopping.remove(&path).filter(|_| !is_detached) {
                // `join` logs a panic, and no device is left to refuse.
                let _ = join(&path, thread);
            }
        }
    }

    fn serve(&mut self, stop: &StopSignal) -> Result<(), ServerError> {
        let mut changed = Fired::Anywhere;
        loop {
            self.reap();
            // XenStore may have changed meanwhile: that is handled before any wait.
            let handled = self.handle(&changed).and_then(|()| self.store.take_fired());
            let stopped = match handled {
                Ok(Fired::Nowhere) => {
                    self.store_retry.reset();
                    changed = Fired::Nowhere;
                    let limit = self.failed.until_next(Instant::now());
                    self.wait(stop, Some(self.store.as_fd()), limit)?
                }
                Ok(fired) => {
                    changed = fired;
                    false
                }
                Err(error) => {
                    changed = Fired::Anywhere;
                    self.recover(stop, &error)?
                }
            };
            if stopped {
                return Ok(());
            }
        }
    }

    /// Starts the devices that wait for it where XenStore changed, those whose thread ended, and
    /// those whose next attempt is due.
    ///
    /// # Errors
    /// The first [`StoreError`]; the others are handled anyway, unless the connection is lost.
    fn handle(&mut self, fired: &Fired) -> Result<(), StoreError> {
        if *fired == Fired::Anywhere {
            // The scan finds the changes behind these events.
            self.store.take_fired()?;
        }
        let ended = std::mem::take(&mut self.over).into_iter();
        let due = self.failed.take_due(Instant::now());
        let mut changes = changes(fired);
        changes.extend(ended.chain(due).map(Change::Device));
        let mut outcome = Ok(());
        for change in changes {
            let handled = match change {
                Change::Everywhere => self.scan(),
                Change::Guest(class, guest) => self.scan_guest(class, guest),
                Change::Device(path) => self.visit(path),
            };
            keep_first(&mut outcome, handled)?;
        }
        outcome
    }

    /// Recovers from a XenStore error: waits, then replaces the connection if it is lost. Returns
    /// `true` if the daemon is to stop.
    fn recover(&mut self, stop: &StopSignal, error: &StoreError) -> Result<bool, ServerError> {
        let wait = self.store_retry.take();
        tracing::warn!("{}; tried again in {wait:?}", Causes(&error));
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.wait(stop, None, left)? {
                return Ok(true);
            }
            self.reap();
            if left.is_zero() {
                break;
            }
        }
        if error.is_lost() { self.reconnect(stop) } else { Ok(false) }
    }

    /// Tries to replace the connection to XenStore. Returns `true` if the daemon is to stop.
    fn reconnect(&mut self, stop: &StopSignal) -> Result<bool, ServerError> {
        let xen = self.xen.clone();
        let meanwhile = || {
            let stopped = self.wait(stop, None, CHECK_INTERVAL)?;
            self.reap();
            Ok::<_, ServerError>(!stopped)
        };
        match reconnect(xen, watches(), meanwhile)? {
            Reconnected::Yes(store) => self.store = store,
            Reconnected::No => {}
            Reconnected::Ended => return Ok(true),
        }
        Ok(false)
    }

    /// Waits for a session's end, for a change of a disk's size, which it handles, or for an event
    /// of `store` if given, for at most `limit`. Returns `true` if the daemon is to stop.
    fn wait(
        &self,
        stop: &StopSignal,
        store: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<bool, ServerError> {
        let fds = [Some(stop.as_fd()), Some(self.woken.as_fd()), store];
        let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<_> =
            fds.into_iter().flatten().chain(self.sizes.fds()).map(entry).collect();
        let waited = wait_for(&mut fds, limit.min(self.sizes.until_next(Instant::now())));
        waited.map_err(|error| ServerError::System("wait for events", error))?;
        self.sizes.handle(Instant::now());
        Ok(fds.first().and_then(PollFd::any).unwrap_or(false))
    }

    /// Joins the threads of sessions that ended.
    fn reap(&mut self) {
        // Reset first: a session that ends from now on makes the counter readable again.
        if let Err(error) = self.woken.read()
            && error != nix::Error::EAGAIN
        {
            tracing::warn!(%error, "cannot read the wake-up counter");
        }
        while let Ok(Ended { path, outcome, is_detached }) = self.ended.try_recv() {
            if let Some(Running { origin, stop, thread, stats }) = self.running.remove(&path) {
                let joined = if is_detached { Ok(()) } else { join(&path, thread) };
                drop(stop);
                match (joined, outcome) {
                    (Err(_), _) => self.close_after_panic(&path),
                    (Ok(()), ThreadOutcome::Over) => {}
                    (Ok(()), ThreadOutcome::Failed) => self.failed.note(&path, Instant::now()),
                    (Ok(()), ThreadOutcome::Unreported(error)) => {
                        self.refuse(&path, origin, &stats, &error);
                    }
                }
            }
            self.registry.end(&path);
            self.over.push(path);
        }
    }

    /// Refuses a device whose thread could not be started or could not refuse it. The cause may be
    /// a lack of file descriptors, so this uses the server's own connection to XenStore. A device
    /// that a guest had before keeps its state, by which the next scan finds it again.
    fn refuse(
        &mut self,
        path: &DevicePath,
        origin: Origin,
        stats: &DeviceStats,
        error: &dyn Error,
    ) {
        self.failed.note(path, Instant::now());
        stats.log.line(Level::ERROR, format_args!("{path}: device refused: {}", Causes(&error)));
        stats.fail(error);
        let reason = Causes(&error).to_string();
        let reported = match origin {
            Origin::New => keys::refuse(&mut self.store, path, &reason),
            Origin::Closed | Origin::Left => keys::set_error(&mut self.store, path, &reason),
        };
        if let Err(error) = reported {
            let unreported =
                format_args!("{path}: cannot report to the toolstack: {}", Causes(&error));
            stats.log.line(Level::ERROR, unreported);
        }
    }

    /// Closes a device whose thread panicked, so that its frontend does not wait for ever. The
    /// unwinding has unmapped the guest's pages.
    fn close_after_panic(&mut self, path: &DevicePath) {
        self.failed.note(path, Instant::now());
        let said = keys::set_error(&mut self.store, path, "xen-virtiod panicked; see its log");
        let closed = keys::set_state(&mut self.store, path, XenbusState::Closed);
        if let Err(error) = said.and(closed) {
            tracing::error!(%path, "cannot report the panic to the guest: {}", Causes(&error));
        }
    }

    /// Starts a session for every device that waits for one, and forgets those that are gone.
    ///
    /// # Errors
    /// The first [`StoreError`]; the scan visits all devices anyway, unless the connection is lost.
    fn scan(&mut self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for class in CLASSES {
            let names = self.store.list(&format!("backend/{class}"))?;
            let guests: BTreeSet<_> = numbers(&names).map(DomId).collect();
            let is_gone = |path: &DevicePath| path.class == class && !guests.contains(&path.guest);
            self.forget_all(is_gone);
            for guest in guests {
                let scanned = self.scan_guest(class, guest);
                keep_first(&mut outcome, scanned)?;
            }
        }
        if outcome.is_ok() {
            self.forget_records();
        }
        outcome
    }

    /// Removes the records of devices that XenStore no longer has: their guests are gone.
    fn forget_records(&self) {
        let Some(records) = &self.records else { return };
        let there: BTreeSet<_> = self.known.iter().map(DevicePath::record_name).collect();
        let names = records.names().unwrap_or_default();
        for name in names.iter().filter(|name| !there.contains(*name)) {
            if let Err(error) = records.remove(name) {
                tracing::warn!("cannot remove the record {name} of a device that is gone: {error}");
            }
        }
    }

    /// As [`Server::scan`], for the devices of one class and guest.
    fn scan_guest(&mut self, class: &str, guest: DomId) -> Result<(), StoreError> {
        let names = self.store.list(&format!("backend/{class}/{}", guest.0))?;
        let there: BTreeSet<_> = numbers(&names).collect();
        let is_gone = |path: &DevicePath| !there.contains(&path.number);
        self.forget_all(|path| path.class == class && path.guest == guest && is_gone(path));
        let mut outcome = Ok(());
        for number in there {
            let visited = self.visit(DevicePath { class: class.to_owned(), guest, number });
            keep_first(&mut outcome, visited)?;
        }
        outcome
    }

    fn forget_all(&mut self, is_gone: impl Fn(&DevicePath) -> bool) {
        let gone: Vec<_> = self.known.iter().filter(|path| is_gone(path)).cloned().collect();
        gone.iter().for_each(|path| self.forget(path));
    }

    /// Forgets a device that XenStore no longer has, and its guest if it was the last one. A
    /// running one is forgotten when its thread has ended.
    fn forget(&mut self, path: &DevicePath) {
        self.known.remove(path);
        if self.running.contains_key(path) {
            return;
        }
        self.failed.drop(path);
        let guest = path.guest;
        let has_devices = CLASSES.into_iter().any(|class| {
            let path = |number| DevicePath { class: class.to_owned(), guest, number };
            let all = path(0)..=path(u32::MAX);
            let known = self.known.range(all.clone()).next().is_some();
            known || self.running.range(all).next().is_some()
        });
        if !has_devices {
            self.guests.drop(guest);
        }
    }

    /// Starts a session for a device if it waits for one.
    fn visit(&mut self, path: DevicePath) -> Result<(), StoreError> {
        if self.running.contains_key(&path) {
            return Ok(());
        }
        let state = self.store.read(&path.key("state"))?;
        if state.is_none() {
            self.forget(&path);
            return Ok(());
        }
        self.known.insert(path.clone());
        // A toolstack that removes a device waits for it.
        let is_removed = state.as_deref() == Some("5");
        if !is_removed && !self.failed.is_due(&path, Instant::now()) {
            return Ok(());
        }
        match state.as_deref() {
            // 2: an earlier daemon offered the device, and no frontend has connected since.
            Some("1" | "2") => self.start(path, Origin::New),
            Some("4") => self.start(path, Origin::Left),
            // An earlier daemon began to close it, or the toolstack removes it.
            Some("3" | "5") => self.start(path, Origin::Closed),
            // Closed, but not removed: its frontend may start again [2.9].
            Some("6") if self.store.read(&path.key("online"))?.as_deref() == Some("1") => {
                self.start(path, Origin::Closed);
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts the thread of a device. Refuses the device if that fails.
    fn start(&mut self, path: DevicePath, origin: Origin) {
        let guest = self.guests.get(path.guest);
        let stats = self.registry.begin(&path, Arc::clone(&guest.log));
        match self.spawn(&path, origin, guest, &stats) {
            Ok(running) => drop(self.running.insert(path, running)),
            Err(error) => {
                self.refuse(&path, origin, &stats, &error);
                self.registry.end(&path);
            }
        }
    }

    fn spawn(
        &self,
        path: &DevicePath,
        origin: Origin,
        guest: Guest,
        stats: &Arc<DeviceStats>,
    ) -> Result<Running, StartError> {
        let stop = Arc::new(StopSignal::new().map_err(StartError::Descriptor)?);
        let (xen, place, config) = (self.xen.clone(), path.clone(), self.config.clone());
        let (host, registry) = (self.host.clone(), Arc::clone(&self.registry));
        let records = self.records.clone();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(stats));
        let (ending, woken) = (self.ending.clone(), Arc::clone(&self.woken));
        let body = move || {
            // Dropped last, also in a panic: notifies the server that the thread ends.
            let mut exit_guard = ExitGuard {
                path: place.clone(),
                outcome: ThreadOutcome::Over,
                is_detached: false,
                ending,
                woken,
            };
            let span = tracing::info_span!("device", guest = place.guest.0, name = place.name());
            let ran = span.in_scope(|| {
                let place = NewDevice { path: place, origin, guest };
                let surroundings = Surroundings { config, records, host, registry };
                run_device(xen, place, stopped, &surroundings, &counted)
            });
            let (outcome, draining) =
                ran.unwrap_or_else(|error| (ThreadOutcome::Unreported(error), Vec::new()));
            (exit_guard.outcome, exit_guard.is_detached) = (outcome, !draining.is_empty());
            drop(exit_guard);
            // Waits for storage, and so does the kernel at the end of the thread.
            drop(draining);
        };
        let name = format!("{}-{}", path.guest.0, path.number);
        let thread = thread::Builder::new().name(name).spawn(body).map_err(StartError::Thread)?;
        Ok(Running { origin, stop, thread, stats: Arc::clone(stats) })
    }
}

/// Keeps the first error of several steps. Returns one that lost the connection at once.
fn keep_first(
    outcome: &mut Result<(), StoreError>,
    step: Result<(), StoreError>,
) -> Result<(), StoreError> {
    match step {
        Err(error) if error.is_lost() => return Err(error),
        step if outcome.is_ok() => *outcome = step,
        _ => {}
    }
    Ok(())
}

/// The names that are numbers, as those of guests and devices are.
fn numbers<N: FromStr>(names: &[String]) -> impl Iterator<Item = N> {
    names.iter().filter_map(|name| name.parse().ok())
}

/// The watches on the directories in which devices appear.
fn watches() -> Watches {
    Watches(CLASSES.iter().map(|class| format!("backend/{class}")).collect())
}

/// What the thread of a device needs of the daemon.
struct Surroundings {
    config: ConfigFile,
    records: Option<RecordDirectory>,
    host: Host,
    registry: Arc<Registry>,
}

/// The body of a device's thread. Its errors affect this device only.
///
/// # Errors
/// XenStore cannot be reached: the device was not served, and the toolstack has no report.
fn run_device<X: Domain>(
    xen: X,
    NewDevice { path, origin, guest }: NewDevice,
    stop: Arc<StopSignal>,
    Surroundings { config, records, host, registry }: &Surroundings,
    stats: &Arc<DeviceStats>,
) -> Result<(ThreadOutcome, Vec<BoxedDevice<X>>), StoreError> {
    let mut keys = Keys::open(xen.store()?, path.clone())?;
    // An earlier daemon may have written a 5 itself.
    let written = match origin {
        Origin::New | Origin::Left => XenbusState::Initialising,
        Origin::Closed => XenbusState::Closing,
    };
    let origin = match origin {
        Origin::New => session::Origin::New,
        Origin::Closed => session::Origin::Closed,
        Origin::Left => left(&mut keys, &path, records.as_ref(), stats)?,
    };
    // A device that the toolstack removes is not opened.
    let device = match keys.toolstack(written)? {
        Toolstack::Online => match open::<X>(&mut keys, &path, config, host, stats, &origin, &stop)
        {
            Ok(device) => Some(device),
            Err(error) => return Ok((refuse(&mut keys, &origin, &error, stats)?, Vec::new())),
        },
        Toolstack::Remove | Toolstack::Gone => None,
    };
    warn_of_same_address(registry, &path, stats);
    stats.update(|state| {
        state.kind = device.as_ref().map_or("", |device| device.kind()).to_owned();
        state.state = "starting".to_owned();
    });
    // A file error is reported where a device's own settings are read.
    let service = config.load().ok().flatten().unwrap_or_default().service();
    let records = records.clone();
    let context = Context { path, guest, service, records, stats: Arc::clone(stats) };
    let session = Session::new(xen, keys, device, context, stop);
    let SessionEnd { outcome, draining } = session.run(origin);
    if let Err(error) = outcome {
        tracing::error!("device lost: {}", Causes(&error));
    }
    Ok((ThreadOutcome::Over, draining))
}

/// Opens a device, and waits shortly for files that it had in an earlier process.
fn open<X: Domain>(
    keys: &mut Keys<X::Store>,
    path: &DevicePath,
    config: &ConfigFile,
    host: &Host,
    stats: &Arc<DeviceStats>,
    origin: &session::Origin,
    stop: &StopSignal,
) -> Result<BoxedDevice<X>, DeviceError> {
    let (end, mut waits) = (Instant::now() + FILES_LIMIT, FILES_RETRY);
    loop {
        let error = match setup::open(keys, path, config, host, stats) {
            Err(DeviceError::Target(error)) => error,
            other => return other,
        };
        let is_left = matches!(origin, session::Origin::Left(..));
        let may_pass = error.is_unfinished() || is_left && error.may_be_own();
        if !may_pass {
            return Err(error.into());
        }
        let mut fds = [AwaitedFd::readable(stop.as_fd())];
        let waited = wait_by_poll(&mut fds, waits.take());
        let is_stopped = waited.is_err() || fds.iter().any(|fd| fd.is_ready);
        if is_stopped || Instant::now() >= end {
            return Err(error.into());
        }
    }
}

/// How to go on with a device that an earlier process left.
fn left<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    records: Option<&RecordDirectory>,
    stats: &DeviceStats,
) -> Result<session::Origin, StoreError> {
    let record = records.map_or(Ok(None), |records| records.open(&path.record_name()));
    let setup = |record: Record| Ok::<_, RecordError>((record.setup()?.connection, record));
    let why = match record.and_then(|record| record.map(setup).transpose()) {
        Ok(Some((before, record))) => match keys.connection_id() {
            Ok(now) if now == before => return Ok(session::Origin::Left(Box::new(record), now)),
            Ok(_) => "its record is of another connection".to_owned(),
            Err(KeyError::Store(error)) => return Err(error),
            Err(error) => Causes(&error).to_string(),
        },
        Ok(None) => "there is no record of it".to_owned(),
        Err(error) => Causes(&error).to_string(),
    };
    let line = format!("device of an earlier process closed, its guest may rebind it: {why}");
    stats.log.line(Level::WARN, format_args!("{line}"));
    keys.set_error(&line)?;
    Ok(session::Origin::Closed)
}

/// Refuses a device that cannot be opened. A device that a guest had before is closed instead, or
/// waits if it can be taken over, and is retried: its resources may return, and no toolstack waits
/// for it.
fn refuse<S: XenStore>(
    keys: &mut Keys<S>,
    origin: &session::Origin,
    error: &DeviceError,
    stats: &DeviceStats,
) -> Result<ThreadOutcome, StoreError> {
    stats.log.line(Level::ERROR, format_args!("device refused: {}", Causes(error)));
    stats.fail(error);
    match origin {
        session::Origin::New => {
            keys.refuse(&Causes(error).to_string())?;
            Ok(ThreadOutcome::Over)
        }
        session::Origin::Closed => {
            let said = keys.set_error(&Causes(error).to_string());
            keys.set_state(XenbusState::Closed)?;
            said?;
            Ok(ThreadOutcome::Failed)
        }
        // Its guest waits, as it does for a disk that hangs.
        session::Origin::Left(..) => {
            keys.set_error(&Causes(error).to_string())?;
            Ok(ThreadOutcome::Failed)
        }
    }
}

/// Notifies the server that a thread ends, however it ends.
struct ExitGuard {
    path: DevicePath,
    outcome: ThreadOutcome,
    is_detached: bool,
    ending: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        // Both fail only if the server is gone; then nobody waits.
        let outcome = std::mem::replace(&mut self.outcome, ThreadOutcome::Over);
        let (path, is_detached) = (self.path.clone(), self.is_detached);
        let ended = Ended { path, outcome, is_detached };
        let reported = self.ending.send(ended).is_ok();
        if reported && self.woken.write(1).is_err() {
            tracing::error!(path = %self.path, "cannot wake up the server");
        }
    }
}

/// Joins a thread that is ending; returns an error if it panicked.
fn join(path: &DevicePath, thread: JoinHandle<()>) -> thread::Result<()> {
    thread.join().inspect_err(|_| {
        tracing::error!(%path, "the device's thread panicked; its guest has lost the device");
    })
}

fn event_fd() -> io::Result<EventFd> {
    use nix::sys::eventfd::EfdFlags;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(EventFd::from_value_and_flags(0, flags)?)
}
