//! Watches XenStore for devices and runs one session, in a thread of its own, for each.
//!
//! Nothing that XenStore refuses ends the daemon. A device that cannot be started is tried again
//! after waits that grow, and so is a connection to xenstored that was lost; devices that are
//! served go on.

mod retries;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;
use protocol::binding::XenbusState;
use tracing::Level;

use self::retries::Retries;
use super::same_address::warn_of_same_address;
use crate::Causes;
use crate::backoff::Backoff;
use crate::bus::reconnection::{LOOK, Reconnected, reconnect};
use crate::bus::session::{Context, Origin, Session};
use crate::bus::{DevicePath, Keys, Toolstack, Watches, keys};
use crate::config::ConfigFile;
use crate::daemon::registry::Registry;
use crate::dma::budget::DaemonBudget;
use crate::domain::Domain;
use crate::guest::{Guest, Guests};
use crate::setup::{self, CLASSES, DeviceError};
use crate::stats::DeviceStats;
use crate::tap::network::Network;
use crate::timeout::wait_for;
use xen::{DomId, StoreError, XenStore};

/// Waits before XenStore is looked at again after it failed.
const STORE_RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// Why the daemon cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// XenStore cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel refuses something a daemon needs.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// Why a device's thread could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("no file descriptor for one more device")]
    Descriptor(#[source] io::Error),
    #[error("no thread for one more device")]
    Thread(#[source] io::Error),
}

/// A device's thread.
struct Running {
    origin: Origin,
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
    stats: Arc<DeviceStats>,
}

/// A device's thread ended.
struct Ended {
    path: DevicePath,
    outcome: ThreadOutcome,
}

/// Where a device is, and whose.
struct NewDevice {
    path: DevicePath,
    origin: Origin,
    guest: Guest,
}

/// What a device's thread came to.
#[derive(Debug)]
enum ThreadOutcome {
    /// The device has ended, or was refused.
    Over,
    /// It cannot be served now, and may be later.
    Failed,
    /// It was not served, and the toolstack was not told.
    Untold(StoreError),
}

/// All devices of this domain.
pub struct Server<X: Domain> {
    xen: X,
    store: X::Store,
    registry: Arc<Registry>,
    config: ConfigFile,
    network: Arc<dyn Network>,
    guests: Guests,
    running: BTreeMap<DevicePath, Running>,
    /// Devices whose threads failed or could not be started.
    failed: Retries<DevicePath>,
    store_retry: Backoff,
    ended: Receiver<Ended>,
    ending: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl<X: Domain> Server<X> {
    /// Connects to XenStore and watches the directories that devices appear in.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn new(
        xen: X,
        registry: Arc<Registry>,
        config: ConfigFile,
        network: Arc<dyn Network>,
    ) -> Result<Self, ServerError> {
        let mut store = xen.store()?;
        watches().set(&mut store)?;
        let (ending, ended) = mpsc::channel();
        let woken = event_fd().map_err(|error| ServerError::System("make an eventfd", error))?;
        Ok(Self {
            xen,
            store,
            registry,
            config,
            network,
            guests: Guests::new(DaemonBudget::of_this_process()),
            running: BTreeMap::new(),
            failed: Retries::default(),
            store_retry: STORE_RETRY,
            ended,
            ending,
            woken: Arc::new(woken),
        })
    }

    /// Serves until `stop` becomes readable, then ends every session.
    ///
    /// # Errors
    /// [`ServerError`]; the sessions are ended all the same.
    pub fn run(mut self, stop: impl AsFd) -> Result<(), ServerError> {
        let outcome = self.serve(stop);
        let running = std::mem::take(&mut self.running);
        // All are told before any is waited for: they end side by side.
        let stopping = running.into_iter().filter_map(|(path, running)| {
            let told = running.stop.write(1);
            told.inspect_err(
                |error| tracing::error!(%path, "cannot stop the device: {}", Causes(error)),
            )
            .is_ok()
            .then_some((path, running.thread))
        });
        for (path, thread) in stopping.collect::<Vec<_>>() {
            // A panic is logged there; nobody is left to be told.
            let _ = join(&path, thread);
        }
        outcome
    }

    fn serve(&mut self, stop: impl AsFd) -> Result<(), ServerError> {
        loop {
            self.reap();
            // Something may have changed since it was looked at: looked at again before any wait.
            let looked = self.scan().and_then(|()| self.store.take_events());
            let stopped = match looked {
                Ok(true) => false,
                Ok(false) => {
                    self.store_retry.reset();
                    let limit = self.failed.until_next(Instant::now());
                    self.wait(&stop, Some(self.store.as_fd()), limit)?
                }
                Err(error) => self.recover(&stop, &error)?,
            };
            if stopped {
                return Ok(());
            }
        }
    }

    /// After XenStore did not do what it was asked: waits, and makes a new connection in place of
    /// one that is lost. `true` when the daemon is to stop.
    fn recover(&mut self, stop: &impl AsFd, error: &StoreError) -> Result<bool, ServerError> {
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

    /// Makes a new connection to XenStore, if that can be. `true` when the daemon is to stop.
    fn reconnect(&mut self, stop: &impl AsFd) -> Result<bool, ServerError> {
        let xen = self.xen.clone();
        let meanwhile = || {
            let stopped = self.wait(stop, None, LOOK)?;
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

    /// Waits for a session's end, or for XenStore if it is given, no longer than `limit`; `true`
    /// when the daemon is to stop.
    fn wait(
        &self,
        stop: &impl AsFd,
        store: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<bool, ServerError> {
        let fds = [Some(stop.as_fd()), Some(self.woken.as_fd()), store];
        let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<_> = fds.into_iter().flatten().map(entry).collect();
        let waited = wait_for(&mut fds, limit);
        waited.map_err(|errno| ServerError::System("wait for events", errno.into()))?;
        Ok(fds.first().and_then(PollFd::any).unwrap_or(false))
    }

    /// Joins the threads of sessions that ended.
    fn reap(&mut self) {
        // Emptied first: a session that ends from now on makes it readable again.
        if let Err(error) = self.woken.read()
            && error != nix::Error::EAGAIN
        {
            tracing::warn!(%error, "cannot read the wake-up counter");
        }
        while let Ok(Ended { path, outcome }) = self.ended.try_recv() {
            if let Some(Running { origin, stop, thread, stats }) = self.running.remove(&path) {
                let joined = join(&path, thread);
                drop(stop);
                match (joined, outcome) {
                    (Err(_), _) => self.close_after_panic(&path),
                    (Ok(()), ThreadOutcome::Over) => {}
                    (Ok(()), ThreadOutcome::Failed) => self.failed.note(&path, Instant::now()),
                    (Ok(()), ThreadOutcome::Untold(error)) => {
                        self.refuse(&path, origin, &stats, &error);
                    }
                }
            }
            self.registry.end(&path);
        }
    }

    /// Refuses a device that did not come so far as to refuse itself. That may be for want of file
    /// descriptors, so its own connection to XenStore cannot be what tells the toolstack. One that
    /// a guest had before keeps its state, by which it is found again.
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
        let told = match origin {
            Origin::New => keys::refuse(&mut self.store, path, &reason),
            Origin::Left => keys::set_error(&mut self.store, path, &reason),
        };
        if let Err(error) = told {
            let untold =
                format_args!("{path}: the toolstack could not be told: {}", Causes(&error));
            stats.log.line(Level::ERROR, untold);
        }
    }

    /// Closes a device whose thread panicked: its frontend must not wait for ever. What the thread
    /// had mapped was unmapped while it unwound.
    fn close_after_panic(&mut self, path: &DevicePath) {
        self.failed.note(path, Instant::now());
        let said = keys::set_error(&mut self.store, path, "xen-virtiod failed; its log says where");
        let closed = keys::set_state(&mut self.store, path, XenbusState::Closed);
        if let Err(error) = said.and(closed) {
            tracing::error!(%path, "the guest could not be told: {}", Causes(&error));
        }
    }

    /// Starts a session for every device that waits for one.
    ///
    /// # Errors
    /// The first [`StoreError`]; all others were looked at, unless the connection is lost.
    fn scan(&mut self) -> Result<(), StoreError> {
        let (mut there, mut outcome) = (BTreeSet::new(), Ok(()));
        for class in CLASSES {
            for guest in self.store.list(&format!("backend/{class}"))? {
                for number in self.store.list(&format!("backend/{class}/{guest}"))? {
                    let (Ok(guest), Ok(number)) = (guest.parse(), number.parse()) else {
                        continue;
                    };
                    let path = DevicePath { class: class.to_owned(), guest: DomId(guest), number };
                    there.insert(path.clone());
                    match self.start_if_waiting(path) {
                        Err(error) if error.is_lost() => return Err(error),
                        considered => outcome = outcome.and(considered),
                    }
                }
            }
        }
        self.failed.keep(|path| there.contains(path));
        let devices = there.iter().chain(self.running.keys());
        let guests: BTreeSet<_> = devices.map(|path| path.guest).collect();
        self.guests.keep(|id| guests.contains(&id));
        outcome
    }

    fn start_if_waiting(&mut self, path: DevicePath) -> Result<(), StoreError> {
        if self.running.contains_key(&path) || !self.failed.is_due(&path, Instant::now()) {
            return Ok(());
        }
        let state = self.store.read(&path.key("state"))?;
        match state.as_deref() {
            // 2: offered by a daemon before this one, and nobody has connected since.
            Some("1" | "2") => self.start(path, Origin::New),
            // Connected to a daemon that is gone. Its frontend must not wait for ever.
            Some("3" | "4" | "5") => {
                tracing::warn!(%path, "device of an earlier daemon closed; its guest may bind it anew");
                self.start(path, Origin::Left);
            }
            // Closed, and not ended: its frontend may start again [2.9].
            Some("6") if self.store.read(&path.key("online"))?.as_deref() == Some("1") => {
                self.start(path, Origin::Left);
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts the thread of a device. Where there is no room for one more, that device is refused.
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
        let stop = Arc::new(event_fd().map_err(StartError::Descriptor)?);
        let (xen, place, config) = (self.xen.clone(), path.clone(), self.config.clone());
        let (network, registry) = (Arc::clone(&self.network), Arc::clone(&self.registry));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(stats));
        let (ending, woken) = (self.ending.clone(), Arc::clone(&self.woken));
        let body = move || {
            // Dropped last, and in a panic too: tells the server that the thread ends.
            let mut farewell =
                ExitGuard { path: place.clone(), outcome: ThreadOutcome::Over, ending, woken };
            let span = tracing::info_span!("device", guest = place.guest.0, name = place.name());
            let ran = span.in_scope(|| {
                let place = NewDevice { path: place, origin, guest };
                run_device(xen, place, stopped, &config, &*network, &registry, &counted)
            });
            farewell.outcome = ran.unwrap_or_else(ThreadOutcome::Untold);
        };
        let name = format!("{}-{}", path.guest.0, path.number);
        let thread = thread::Builder::new().name(name).spawn(body).map_err(StartError::Thread)?;
        Ok(Running { origin, stop, thread, stats: Arc::clone(stats) })
    }
}

/// The directories in which devices appear.
fn watches() -> Watches {
    Watches(CLASSES.iter().map(|class| format!("backend/{class}")).collect())
}

/// The whole life of a device's thread. What goes wrong in it is this device's alone.
///
/// # Errors
/// XenStore cannot be reached: the device was not served, and the toolstack was not told.
fn run_device<X: Domain>(
    xen: X,
    NewDevice { path, origin, guest }: NewDevice,
    stop: Arc<EventFd>,
    config: &ConfigFile,
    network: &dyn Network,
    registry: &Registry,
    stats: &Arc<DeviceStats>,
) -> Result<ThreadOutcome, StoreError> {
    let mut keys = Keys::open(xen.store()?, path.clone())?;
    // A 5 may be an earlier daemon's own.
    let written = match origin {
        Origin::New => XenbusState::Initialising,
        Origin::Left => XenbusState::Closing,
    };
    // What the toolstack wants gone is ended, not opened.
    let device = match keys.toolstack(written)? {
        Toolstack::Online => match setup::open(&mut keys, &path, config, network, stats) {
            Ok(device) => Some(device),
            Err(error) => return refuse(&mut keys, origin, &error, stats),
        },
        Toolstack::Leaving | Toolstack::Gone => None,
    };
    warn_of_same_address(registry, &path, stats);
    stats.update(|state| {
        state.kind = device.as_ref().map_or("", |device| device.kind()).to_owned();
        state.state = "starting".to_owned();
    });
    // A file that is wrong is complained of where a device cannot do without it.
    let service = config.load().ok().flatten().unwrap_or_default().service();
    let context = Context { path, guest, service, stats: Arc::clone(stats) };
    let session = Session::new(xen, keys, device, context, stop);
    if let Err(error) = session.run(origin) {
        tracing::error!("device lost: {}", Causes(&error));
    }
    Ok(ThreadOutcome::Over)
}

/// Refuses a device that cannot be opened. One that a guest had before is closed instead, and tried
/// again: it may be there later, and the toolstack waits for nothing.
fn refuse<S: XenStore>(
    keys: &mut Keys<S>,
    origin: Origin,
    error: &DeviceError,
    stats: &DeviceStats,
) -> Result<ThreadOutcome, StoreError> {
    stats.log.line(Level::ERROR, format_args!("device refused: {}", Causes(error)));
    stats.fail(error);
    match origin {
        Origin::New => {
            keys.refuse(&Causes(error).to_string())?;
            Ok(ThreadOutcome::Over)
        }
        Origin::Left => {
            let said = keys.set_error(&Causes(error).to_string());
            keys.set_state(XenbusState::Closed)?;
            said?;
            Ok(ThreadOutcome::Failed)
        }
    }
}

/// Tells the server that a thread ends, however it ends.
struct ExitGuard {
    path: DevicePath,
    outcome: ThreadOutcome,
    ending: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        // Either fails only when the server is gone, and then nobody waits for it.
        let outcome = std::mem::replace(&mut self.outcome, ThreadOutcome::Over);
        let ended = Ended { path: self.path.clone(), outcome };
        let told = self.ending.send(ended).is_ok();
        if told && self.woken.write(1).is_err() {
            tracing::error!(path = %self.path, "the server was not woken");
        }
    }
}

/// Waits for a thread that is ending; an error if it panicked.
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
