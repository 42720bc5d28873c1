//! Watches XenStore for devices and has a session run for each, by a [`Runner`].
//!
//! No error of XenStore's ends the daemon. It retries a device that cannot be started, and a lost
//! connection to xenstored, after growing delays; running sessions continue.

mod changes;
mod retries;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;
use protocol::binding::XenbusState;
use protocol::binding::backend_key::{RETARGET, RETARGET_ASKED};
use tracing::Level;

use self::changes::{Change, changes};
use self::retries::Retries;
use super::reload::Reloads;
use super::runner::{EndReports, Runner, Runs, SharedHost, Threads};
use super::same_address::same_address_hook;
use super::scripts::Scripts;
use super::size_watches::SizeWatches;
use crate::Causes;
use crate::backoff::Backoff;
use crate::bus::reconnection::{CHECK_INTERVAL, Reconnected, reconnect};
use crate::bus::{DevicePath, Ending, StopSignal, Watches, keys};
use crate::config::ConfigFile;
use crate::daemon::registry::Registry;
use crate::device::blk::LocalImages;
use crate::device::console::LocalTerminals;
use crate::dma::budget::DaemonBudget;
use crate::domain::Domain;
use crate::guest::Guests;
use crate::listener::LocalSockets;
use crate::process::device_thread::{Ended, Found, NewDevice, Outcome, Surroundings};
use crate::record::{RecordDirectory, Records};
use crate::setup::{CLASSES, Host};
use crate::stats::DeviceStats;
use crate::tap::network::Network;
use uring::waiting::wait_for;
use xen::{DomId, Fired, StoreError, XenStore};

/// Time that devices have to end with the daemon, before it ends without them.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Delays before the next scan after XenStore failed.
const STORE_RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// Delays after consecutive failures of a device.
const FAILURE_WAITS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Delays after consecutive deaths of the process that served a device.
const DEATH_WAITS: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(10));
/// Consecutive deaths after which a device needs a reset: its driver's requests may be the reason.
const MOST_DEATHS: u32 = 5;
/// A process that served this long before it died did not die of what it found.
const LONG_LIFE: Duration = Duration::from_secs(2);
/// Time within which a device that ends has hardly been served.
const SHORT_LIFE: Duration = Duration::from_millis(20);

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

/// A running device.
struct Running {
    found: Found,
    runs: Box<dyn Runs>,
    stats: Arc<DeviceStats>,
    since: Instant,
}

/// All devices of this domain.
pub struct Server<X: Domain> {
    xen: X,
    store: X::Store,
    registry: Arc<Registry>,
    records: Option<RecordDirectory>,
    network: Arc<dyn Network>,
    scripts: Scripts,
    reloads: Arc<Reloads>,
    runner: Box<dyn Runner>,
    /// Watches the sizes of disks.
    sizes: SizeWatches,
    guests: Guests,
    running: BTreeMap<DevicePath, Running>,
    /// Devices whose threads failed or could not be started.
    failed: Retries<DevicePath>,
    /// Devices whose process died.
    died: Retries<DevicePath>,
    /// Devices that XenStore had when they were visited last; a running one is not visited.
    known: BTreeSet<DevicePath>,
    /// Devices whose thread has ended and that were not visited since.
    over: Vec<DevicePath>,
    /// Devices whose sessions leave them for a new target.
    retargeted: BTreeSet<DevicePath>,
    /// Whether all devices of XenStore's are known.
    is_scanned: bool,
    store_retry: Backoff,
    ended: Receiver<Ended>,
    ends: EndReports,
    woken: Arc<EventFd>,
}

impl<X: Domain> Server<X> {
    /// Connects to XenStore and watches the directories in which devices appear. Devices run in
    /// threads of this process.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn new(
        xen: X,
        registry: Arc<Registry>,
        config: ConfigFile,
        shared: SharedHost,
    ) -> Result<Self, ServerError> {
        let host = Host {
            network: Arc::clone(&shared.network),
            sizes: Arc::new(shared.sizes.clone()),
            images: Arc::new(LocalImages),
            terminals: Arc::new(LocalTerminals),
            sockets: Arc::new(LocalSockets),
            rates: Arc::default(),
        };
        let opened = same_address_hook(Arc::clone(&registry));
        let records = shared.records.clone().map(|records| Arc::new(records) as _);
        let surroundings = Surroundings { config, records, host, opened };
        let runner = Box::new(Threads::new(xen.clone(), surroundings));
        Self::with_runner(xen, registry, shared, runner)
    }

    /// As [`Server::new`], with devices that `runner` runs.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn with_runner(
        xen: X,
        registry: Arc<Registry>,
        SharedHost { records, network, sizes, reloads, scripts }: SharedHost,
        runner: Box<dyn Runner>,
    ) -> Result<Self, ServerError> {
        let woken = sizes.waker();
        let mut store = xen.store()?;
        watches().set(&mut store)?;
        let (sender, ended) = mpsc::channel();
        Ok(Self {
            xen,
            store,
            registry,
            records,
            network,
            scripts,
            reloads,
            runner,
            sizes,
            guests: Guests::new(DaemonBudget::of_this_process()),
            running: BTreeMap::new(),
            failed: Retries::new(FAILURE_WAITS),
            died: Retries::new(DEATH_WAITS),
            known: BTreeSet::new(),
            over: Vec::new(),
            retargeted: BTreeSet::new(),
            is_scanned: false,
            store_retry: STORE_RETRY,
            ended,
            ends: EndReports::new(sender, Arc::clone(&woken)),
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
        // No device waits for a script any more.
        self.scripts.stop();
        let running = std::mem::take(&mut self.running);
        // All are notified before the first is awaited: they end in parallel.
        let stopping = running.into_iter().filter_map(|(path, running)| {
            let reported = running.runs.stop(ending);
            reported
                .inspect_err(
                    |error| tracing::error!(%path, "cannot stop the device: {}", Causes(error)),
                )
                .is_ok()
                .then_some((path, running.runs))
        });
        self.join_all(stopping.collect());
        if ending == Ending::End {
            self.end_waiting();
        }
        outcome
    }

    /// Ends devices that wait for a process: their last one died, or they could not be opened.
    fn end_waiting(&mut self) {
        for path in std::mem::take(&mut self.known) {
            if !self.is_connected(&path) {
                continue;
            }
            if let Err(error) = keys::set_state(&mut self.store, &path, XenbusState::Closed) {
                tracing::error!(%path, "cannot end the device: {}", Causes(&error));
            }
        }
        // None is known any more.
        self.forget_left();
    }

    /// Waits for devices that were told to stop, but not for those that storage holds up.
    fn join_all(&self, mut stopping: BTreeMap<DevicePath, Box<dyn Runs>>) {
        let end = Instant::now() + STOP_LIMIT;
        while !stopping.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(Ended { path, outcome, is_detached }) = self.ended.recv_timeout(left) else {
                tracing::error!(devices = stopping.len(), "not all devices ended in time");
                return;
            };
            log_end(&path, &outcome);
            if let Some(runs) = stopping.remove(&path).filter(|_| !is_detached) {
                runs.join();
            }
        }
    }

    fn serve(&mut self, stop: &StopSignal) -> Result<(), ServerError> {
        let mut changed = Fired::Anywhere;
        loop {
            self.reap();
            self.reload();
            // XenStore may have changed meanwhile: that is handled before any wait.
            let handled = self.handle(&changed).and_then(|()| self.store.take_fired());
            let stopped = match handled {
                Ok(Fired::Nowhere) => {
                    self.store_retry.reset();
                    changed = Fired::Nowhere;
                    let now = Instant::now();
                    let limit = self.failed.until_next(now).min(self.died.until_next(now));
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
        let mut due = self.failed.take_due(Instant::now());
        due.append(&mut self.died.take_due(Instant::now()));
        let mut changes = changes(fired);
        changes.extend(ended.chain(due).map(Change::Device));
        let mut outcome = Ok(());
        for change in changes {
            let handled = match change {
                Change::Everywhere => self.scan(),
                Change::Guest(class, guest) => self.scan_guest(class, guest),
                Change::Device(path) => self.visit(path),
                Change::Target(path) => self.retarget(path),
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

    /// Reloads the configuration file for those who ask for it.
    fn reload(&mut self) {
        let waiting = self.reloads.take();
        if waiting.is_empty() {
            return;
        }
        let reloaded = self.runner.reload();
        match &reloaded {
            Ok(changes) if changes.is_empty() => {
                tracing::info!("configuration reloaded: no change")
            }
            Ok(changes) => {
                changes
                    .iter()
                    .for_each(|change| tracing::info!("configuration reloaded: {change}"));
            }
            Err(error) => tracing::error!("configuration not reloaded: {error}"),
        }
        // One who has waited too long is gone.
        waiting.iter().for_each(|asker| drop(asker.send(reloaded.clone())));
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
            log_end(&path, &outcome);
            let has_died = outcome == Outcome::Died;
            if let Some(Running { found, runs, stats, since }) = self.running.remove(&path) {
                if !is_detached {
                    runs.join();
                }
                if !has_died {
                    self.runner.forget_device(&path);
                }
                let is_retargeted = self.retargeted.remove(&path);
                match outcome {
                    // It is to go on with its new target.
                    Outcome::Over if is_retargeted => {}
                    // It says that it has ended, and XenStore shows that it has not.
                    Outcome::Over if self.is_connected(&path) => {
                        self.failed.note(&path, Instant::now());
                    }
                    // One that ends at once, again and again, is started more and more rarely.
                    Outcome::Over if since.elapsed() < SHORT_LIFE => {
                        self.failed.note(&path, Instant::now());
                    }
                    Outcome::Over => {}
                    Outcome::Panicked => self.close_after_panic(&path),
                    Outcome::Died => self.note_death(&path, since),
                    Outcome::Failed => self.failed.note(&path, Instant::now()),
                    Outcome::Unreported(reason) => self.refuse(&path, found, &stats, &reason),
                }
            }
            match has_died {
                true => self.registry.forget(&path),
                false => self.registry.end(&path),
            }
            self.over.push(path);
        }
    }

    /// Whether XenStore shows a device as connected.
    fn is_connected(&mut self, path: &DevicePath) -> bool {
        let state = self.store.read(&path.key("state")).unwrap_or_else(|error| {
            tracing::warn!(%path, "cannot look whether the device has ended: {}", Causes(&error));
            None
        });
        state.as_deref() == Some("4")
    }

    /// Notes that the process died which served a device since then.
    fn note_death(&mut self, path: &DevicePath, since: Instant) {
        if since.elapsed() >= LONG_LIFE {
            self.died.drop(path);
        }
        self.died.note(path, Instant::now());
    }

    /// Refuses a device whose thread could not be started or could not refuse it. The cause may be
    /// a lack of file descriptors, so this uses the server's own connection to XenStore. A device
    /// that a guest had before keeps its state, by which the next scan finds it again.
    fn refuse(&mut self, path: &DevicePath, found: Found, stats: &DeviceStats, reason: &str) {
        self.failed.note(path, Instant::now());
        stats.log.line(Level::ERROR, format_args!("{path}: device refused: {reason}"));
        stats.fail_because(reason);
        let reported = match found {
            Found::New => keys::refuse(&mut self.store, path, reason),
            Found::Closed | Found::Left => keys::set_error(&mut self.store, path, reason),
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
            self.is_scanned = true;
            self.forget_left();
        }
        outcome
    }

    /// Removes the records and interfaces of devices that XenStore no longer has: their guests are
    /// gone.
    fn forget_left(&mut self) {
        let there: BTreeSet<_> = self.known.iter().map(DevicePath::record_name).collect();
        if let Err(error) = self.network.remove_left(&there) {
            tracing::warn!("cannot remove interfaces that were left: {}", Causes(&error));
        }
        self.runner.forget_others(&there);
        let Some(records) = &self.records else { return };
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
        self.died.drop(path);
        self.runner.forget_device(path);
        if self.is_scanned {
            self.forget_left();
        }
        let guest = path.guest;
        let has_devices = CLASSES.into_iter().any(|class| {
            let path = |number| DevicePath { class: class.to_owned(), guest, number };
            let all = path(0)..=path(u32::MAX);
            let known = self.known.range(all.clone()).next().is_some();
            known || self.running.range(all).next().is_some()
        });
        if !has_devices {
            self.guests.drop(guest);
            self.runner.forget(guest);
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
        let now = Instant::now();
        let is_due = self.failed.is_due(&path, now) && self.died.is_due(&path, now);
        if !is_removed && !is_due {
            return Ok(());
        }
        match state.as_deref() {
            // 2: an earlier daemon offered the device, and no frontend has connected since.
            Some("1" | "2") => self.start(path, Found::New),
            Some("4") => self.start(path, Found::Left),
            // An earlier daemon began to close it, or the toolstack removes it.
            Some("3" | "5") => self.start(path, Found::Closed),
            // Closed, but not removed: its frontend may start again [2.9].
            Some("6") if self.store.read(&path.key("online"))?.as_deref() == Some("1") => {
                self.start(path, Found::Closed);
            }
            _ => {}
        }
        Ok(())
    }

    /// Has a device go on with the target that its keys name now, if the toolstack asks for that:
    /// its session leaves it, and the next one takes it over.
    fn retarget(&mut self, path: DevicePath) -> Result<(), StoreError> {
        let key = path.key(RETARGET);
        if self.store.read(&key)?.as_deref() != Some(RETARGET_ASKED) {
            return self.visit(path);
        }
        self.store.remove(&key)?;
        // Nothing that failed with the earlier target counts.
        self.failed.drop(&path);
        let Some(running) = self.running.get(&path) else { return self.visit(path) };
        match running.runs.stop(Ending::Leave) {
            Ok(()) => {
                self.retargeted.insert(path);
            }
            Err(error) => tracing::error!(%path, "cannot stop the device: {}", Causes(&error)),
        }
        Ok(())
    }

    /// Notes the guest's name for `stat`. A device is served without it.
    fn note_guest_name(&mut self, path: &DevicePath, stats: &DeviceStats) {
        match keys::guest_name(&mut self.store, path.guest) {
            Ok(name) => name.iter().for_each(|name| stats.set_guest(name)),
            Err(error) => {
                tracing::warn!(%path, "`stat` lacks the guest's name: {}", Causes(&error));
            }
        }
    }

    /// Starts a device. Refuses it if that fails.
    fn start(&mut self, path: DevicePath, found: Found) {
        let guest = self.guests.get(path.guest);
        let stats = self.registry.begin(&path, Arc::clone(&guest.log));
        self.note_guest_name(&path, &stats);
        let fault = self.died.is_excessive(&path, MOST_DEATHS).then(|| {
            format!("the process that serves it died {MOST_DEATHS} times; see xen-virtiod's log")
        });
        let device = NewDevice { path: path.clone(), found, guest, fault };
        match self.runner.start(device, &stats, &self.ends) {
            Ok(runs) => {
                let since = Instant::now();
                self.running.insert(path, Running { found, runs, stats, since });
            }
            Err(error) => {
                self.refuse(&path, found, &stats, &Causes(&error).to_string());
                self.registry.end(&path);
            }
        }
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

/// Logs an end that nobody asked for.
fn log_end(path: &DevicePath, outcome: &Outcome) {
    match outcome {
        Outcome::Panicked => {
            tracing::error!(%path, "the device's thread panicked; its guest has lost the device");
        }
        Outcome::Died => tracing::warn!(%path, "the process of the device's guest died"),
        _ => {}
    }
}
