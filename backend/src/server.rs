//! Watches XenStore for devices and runs one session, in a thread of its own, for each.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::bus::session::Session;
use crate::bus::{DevicePath, Keys, keys};
use crate::config::ConfigFile;
use crate::host::network::Network;
use crate::registry::Registry;
use crate::stats::DeviceStats;
use crate::toolstack::{self, CLASSES, DeviceError};
use crate::xen::{DomId, StoreError, Xen, XenStore};

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// XenStore cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel refuses something a daemon needs.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// Why a device's thread could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("no file descriptor for one more device: {0}")]
    Descriptor(#[source] io::Error),
    #[error("no thread for one more device: {0}")]
    Thread(#[source] io::Error),
}

/// A device's thread.
struct Running {
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
    stats: Arc<DeviceStats>,
}

/// A device's thread ended.
struct Ended {
    path: DevicePath,
    /// Why the device was not served at all, if it was not and the toolstack was not told.
    refusal: Option<StoreError>,
}

/// All devices of this domain.
pub struct Server<X: Xen> {
    xen: X,
    store: X::Store,
    registry: Arc<Registry>,
    config: ConfigFile,
    network: Arc<dyn Network>,
    running: BTreeMap<DevicePath, Running>,
    ended: Receiver<Ended>,
    ending: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl<X: Xen> Server<X> {
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
        for class in CLASSES {
            store.watch(&format!("backend/{class}"))?;
        }
        let (ending, ended) = mpsc::channel();
        let woken = event_fd().map_err(|error| ServerError::System("make an eventfd", error))?;
        let (woken, running) = (Arc::new(woken), BTreeMap::new());
        Ok(Self { xen, store, registry, config, network, running, ended, ending, woken })
    }

    /// Serves until `stop` becomes readable, then ends every session.
    ///
    /// # Errors
    /// [`ServerError`]; the sessions are ended all the same.
    pub fn run(mut self, stop: impl AsFd) -> Result<(), ServerError> {
        let outcome = self.serve(stop);
        for (path, running) in std::mem::take(&mut self.running) {
            if let Err(error) = running.stop.write(1) {
                tracing::error!(%path, %error, "cannot stop the device");
                continue;
            }
            // A panic is logged there; nobody is left to be told.
            let _ = join(&path, running.thread);
        }
        outcome
    }

    fn serve(&mut self, stop: impl AsFd) -> Result<(), ServerError> {
        loop {
            self.reap();
            self.look()?;
            // Something may have changed since it was looked at: looked at again before any wait.
            if !self.store.take_events()? && self.wait(&stop)? {
                return Ok(());
            }
        }
    }

    /// Waits for XenStore or for a session's end; `true` when the daemon is to stop.
    fn wait(&self, stop: &impl AsFd) -> Result<bool, ServerError> {
        let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [entry(stop.as_fd()), entry(self.store.as_fd()), entry(self.woken.as_fd())];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(ServerError::System("wait for events", errno.into())),
        }
        Ok(fds.first().and_then(PollFd::any).unwrap_or(false))
    }

    /// Joins the threads of sessions that ended.
    fn reap(&mut self) {
        // Emptied first: a session that ends from now on makes it readable again.
        if let Err(error) = self.woken.read() {
            if error != nix::Error::EAGAIN {
                tracing::warn!(%error, "cannot read the wake-up counter");
            }
        }
        while let Ok(Ended { path, refusal }) = self.ended.try_recv() {
            if let Some(Running { stop, thread, stats }) = self.running.remove(&path) {
                if join(&path, thread).is_err() {
                    self.bury(&path);
                }
                drop(stop);
                if let Some(error) = refusal {
                    self.refuse(&path, &stats, &error);
                }
            }
            self.registry.end(&path);
        }
    }

    /// Refuses a device that did not come so far as to refuse itself. That may be for want of file
    /// descriptors, so its own connection to XenStore cannot be what tells the toolstack.
    fn refuse(&mut self, path: &DevicePath, stats: &DeviceStats, error: &dyn Error) {
        tracing::error!(%path, "device refused: {error}");
        stats.fail(error);
        if let Err(error) = keys::refuse(&mut self.store, path, &error.to_string()) {
            tracing::error!(%path, %error, "the toolstack could not be told");
        }
    }

    /// Closes a device whose thread panicked: its frontend must not wait for ever. What the thread
    /// had mapped was unmapped while it unwound.
    fn bury(&mut self, path: &DevicePath) {
        let told = self.store.write(&path.key("error"), "xen-virtiod failed; its log says where");
        if let Err(error) = told.and_then(|()| self.store.write(&path.key("state"), "6")) {
            tracing::error!(%path, %error, "the guest could not be told");
        }
    }

    /// Starts a session for every device that waits for one.
    fn look(&mut self) -> Result<(), ServerError> {
        for class in CLASSES {
            for guest in self.store.list(&format!("backend/{class}"))? {
                for number in self.store.list(&format!("backend/{class}/{guest}"))? {
                    let (Ok(guest), Ok(number)) = (guest.parse(), number.parse()) else {
                        continue;
                    };
                    let path = DevicePath { class: class.to_owned(), guest: DomId(guest), number };
                    self.consider(path)?;
                }
            }
        }
        Ok(())
    }

    fn consider(&mut self, path: DevicePath) -> Result<(), ServerError> {
        if self.running.contains_key(&path) {
            return Ok(());
        }
        let state = self.store.read(&path.key("state"))?;
        match state.as_deref() {
            // 2: offered by a daemon before this one, and nobody has connected since.
            Some("1" | "2") => {
                self.start(path);
                Ok(())
            }
            // 3 to 5: connected to a daemon that is gone. Its frontend must not wait for ever.
            Some("3" | "4" | "5") => {
                tracing::warn!(%path, "device of an earlier daemon closed; its guest has lost it");
                Ok(self.store.write(&path.key("state"), "6")?)
            }
            _ => Ok(()),
        }
    }

    /// Starts the thread of a device. Where there is no room for one more, that device is refused.
    fn start(&mut self, path: DevicePath) {
        let stats = self.registry.begin(&path);
        match self.spawn(&path, &stats) {
            Ok(running) => drop(self.running.insert(path, running)),
            Err(error) => {
                self.refuse(&path, &stats, &error);
                self.registry.end(&path);
            }
        }
    }

    fn spawn(&self, path: &DevicePath, stats: &Arc<DeviceStats>) -> Result<Running, StartError> {
        let stop = Arc::new(event_fd().map_err(StartError::Descriptor)?);
        let (xen, place, config) = (self.xen.clone(), path.clone(), self.config.clone());
        let network = Arc::clone(&self.network);
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(stats));
        let (ending, woken) = (self.ending.clone(), Arc::clone(&self.woken));
        let body = move || {
            // Dropped last, and in a panic too: tells the server that the thread ends.
            let mut farewell = Farewell { path: place.clone(), refusal: None, ending, woken };
            let span = tracing::info_span!("device", guest = place.guest.0, name = place.name());
            let ran =
                span.in_scope(|| run_device(xen, place, stopped, &config, &*network, &counted));
            farewell.refusal = ran.err();
        };
        let name = format!("{}-{}", path.guest.0, path.number);
        let thread = thread::Builder::new().name(name).spawn(body).map_err(StartError::Thread)?;
        Ok(Running { stop, thread, stats: Arc::clone(stats) })
    }
}

/// The whole life of a device's thread. What goes wrong in it is this device's alone.
///
/// # Errors
/// XenStore cannot be reached: the device was not served, and the toolstack was not told.
fn run_device<X: Xen>(
    xen: X,
    path: DevicePath,
    stop: Arc<EventFd>,
    config: &ConfigFile,
    network: &dyn Network,
    stats: &Arc<DeviceStats>,
) -> Result<(), StoreError> {
    let mut keys = Keys::open(xen.store()?, path.clone())?;
    match toolstack::open(&mut keys, &path, config, network, stats) {
        Ok(device) => {
            stats.update(|state| {
                (state.kind, state.state) = (device.kind().to_owned(), "starting".to_owned());
            });
            // A file that is wrong is complained of where a device cannot do without it.
            let service = config.load().ok().flatten().unwrap_or_default().service();
            let session = Session::new(xen, path, keys, device, service, stop, Arc::clone(stats));
            if let Err(error) = session.run() {
                tracing::error!(%error, "device lost");
            }
        }
        Err(error) => refuse(&mut keys, &error, stats),
    }
    Ok(())
}

fn refuse<S: XenStore>(keys: &mut Keys<S>, error: &DeviceError, stats: &DeviceStats) {
    tracing::error!("device refused: {error}");
    stats.fail(error);
    if let Err(error) = keys.refuse(&error.to_string()) {
        tracing::error!(%error, "the toolstack could not be told");
    }
}

/// Tells the server that a thread ends, however it ends.
struct Farewell {
    path: DevicePath,
    refusal: Option<StoreError>,
    ending: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // Either fails only when the server is gone, and then nobody waits for it.
        let ended = Ended { path: self.path.clone(), refusal: self.refusal.take() };
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
