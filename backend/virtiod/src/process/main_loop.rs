//! The process itself: starts and stops devices as the supervisor says, until that is gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::confinement::ConfinementError;
use super::device_thread::{self, Ended, NewDevice, Surroundings};
use super::images::SupervisedImages;
use super::link::{DeviceLink, too_many_files};
use super::message::{Command, Event, Request};
use super::message_socket::{MessageError, MessageSocket};
use super::network::SupervisedNetwork;
use super::records::SupervisedRecords;
use super::sizes::{SizeEvents, SupervisedSizes};
use super::sockets::SupervisedSockets;
use super::store::Supervised;
use super::terminals::SupervisedTerminals;
use crate::Causes;
use crate::bus::{DevicePath, Ending, StopSignal};
use crate::config::ConfigFile;
use crate::dma::budget::DaemonBudget;
use crate::dma::shared_count::SharedCount;
use crate::domain::Domain;
use crate::guest::Guest;
use crate::record::RecordVersion;
use crate::setup::Host;
use crate::setup::rates::GuestRates;
use crate::stats::DeviceStats;
use crate::tap::network::Network;
use uring::waiting::wait_for;

/// Interval at which the process looks whether storage has let go of devices that ended.
const DRAIN_INTERVAL: Duration = Duration::from_millis(500);

/// An error that ends the process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The kernel refuses an operation that the process needs.
    #[error("the process of a guest cannot {0}")]
    System(&'static str, #[source] io::Error),
    /// The process keeps rights that it must not have.
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    /// The supervisor's socket fails.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What the devices of the process have in common.
pub struct Common {
    /// The path of the configuration file, for messages: the supervisor reads the file.
    pub config: ConfigFile,
    /// Gives up the rights that no device needs, as this user.
    pub confine: fn(u32) -> Result<(), ConfinementError>,
    /// The network in place of the supervisor's, for tests whose interfaces are in this process.
    pub network: Option<Arc<dyn Network>>,
    /// The version of new records.
    pub records: RecordVersion,
}

/// A running device.
struct Running {
    link: Arc<DeviceLink>,
    stop: Arc<StopSignal>,
    thread: JoinHandle<()>,
    stats: Arc<DeviceStats>,
}

/// The devices of one guest.
struct Process<X> {
    xen: X,
    control: MessageSocket,
    common: Common,
    /// What the guest's devices share.
    guest: Guest,
    sizes: SizeEvents,
    rates: Arc<GuestRates>,
    running: BTreeMap<DevicePath, Running>,
    /// Devices that ended, while their storage has not let go of them. A later one may have the
    /// same path.
    draining: Vec<(DevicePath, JoinHandle<()>, Arc<DeviceStats>)>,
    /// No further device comes.
    is_finishing: bool,
    ending: Sender<Ended>,
    ended: Receiver<Ended>,
    woken: Arc<EventFd>,
}

/// Serves devices as the supervisor at the other end of `control` says, until it is gone. Then
/// devices may still run: the process has to exit.
///
/// # Errors
/// [`ProcessError`].
pub fn run<X: Domain>(xen: X, control: MessageSocket, common: Common) -> Result<(), ProcessError> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let woken = EventFd::from_value_and_flags(0, flags);
    let woken = woken.map_err(|error| ProcessError::System("make an eventfd", error.into()))?;
    let woken = Arc::new(woken);
    let sizes = SizeEvents::new(Arc::clone(&woken));
    let Some((guest, user)) = begin(&control)? else { return Ok(()) };
    if let Err(error) = (common.confine)(user) {
        control.send(&Event::CannotStart { reason: Causes(&error).to_string() }, &[])?;
        return Err(error.into());
    }
    let (ending, ended) = mpsc::channel();
    let process = Process {
        xen,
        control,
        common,
        guest,
        sizes,
        rates: Arc::default(),
        running: BTreeMap::new(),
        draining: Vec::new(),
        is_finishing: false,
        ending,
        ended,
        woken,
    };
    process.serve()
}

/// Takes the first command; `None` if the supervisor is gone.
fn begin(control: &MessageSocket) -> Result<Option<(Guest, u32)>, ProcessError> {
    let Some((command, table)) = control.receive::<Command>()? else { return Ok(None) };
    let (Command::Begin { slot, user }, Some(table)) = (command, table.into_iter().next()) else {
        let why = io::ErrorKind::InvalidData.into();
        return Err(ProcessError::System("understand the first command", why));
    };
    let pages = SharedCount::open(table, slot);
    let pages = pages.map_err(|error| ProcessError::System("count mapped pages", error))?;
    Ok(Some((Guest::new(Arc::new(DaemonBudget::of_all_processes(pages))), user)))
}

impl<X: Domain> Process<X> {
    fn serve(mut self) -> Result<(), ProcessError> {
        loop {
            self.reap()?;
            if self.is_finishing && self.running.is_empty() && self.draining.is_empty() {
                return Ok(());
            }
            let fds = [self.control.as_fd(), self.woken.as_fd()];
            let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let sizes = self.sizes.all();
            let sized = sizes.iter().map(|watched| watched.as_fd());
            let mut fds: Vec<_> = fds.into_iter().chain(sized).map(entry).collect();
            // Nothing tells of the end of a thread that waits for storage.
            let again = if self.draining.is_empty() { Duration::MAX } else { DRAIN_INTERVAL };
            wait_for(&mut fds, again)
                .map_err(|error| ProcessError::System("wait for events", error))?;
            let has_command = fds.first().and_then(PollFd::any).unwrap_or(false);
            sizes.iter().for_each(|watched| watched.handle());
            if !has_command {
                continue;
            }
            match self.control.receive::<Command>()? {
                Some((command, descriptors)) => self.obey(command, descriptors)?,
                None => {
                    self.leave_all();
                    return Ok(());
                }
            }
        }
    }

    fn obey(&mut self, command: Command, descriptors: Vec<OwnedFd>) -> Result<(), ProcessError> {
        match command {
            Command::Begin { .. } => {
                let why = io::ErrorKind::InvalidData.into();
                return Err(ProcessError::System("begin again", why));
            }
            Command::Start { path, found, fault, config_error } => {
                let guest = self.guest.clone();
                let device = NewDevice { path: path.clone(), found, guest, fault };
                if let Err(error) = self.start(device, config_error, descriptors) {
                    tracing::error!(%path, "cannot start the device: {}", Causes(&error));
                    let outcome = device_thread::Outcome::Unreported(Causes(&error).to_string());
                    let ended = Ended { path, outcome, is_detached: false };
                    self.report(ended, &DeviceStats::default())?;
                }
            }
            Command::Stop { path, ending } => {
                // It may have ended meanwhile.
                if let Some(running) = self.running.get(&path) {
                    let given = running.stop.give(ending);
                    given.map_err(|error| ProcessError::System("stop a device", error))?;
                }
            }
            Command::Limit { path, rates } => {
                let stats = self.running.get(&path).map(|running| Arc::clone(&running.stats));
                self.rates.replace(path, rates, stats.as_deref());
            }
            Command::Resume { path } => {
                let running = self.running.get(&path);
                running.map(|running| running.stats.resume());
            }
            Command::Finish => self.is_finishing = true,
            Command::Report { path } => {
                let running = self.running.get(&path).map(|running| &running.stats);
                let draining = || {
                    let found = self.draining.iter().find(|(draining, ..)| *draining == path);
                    found.map(|(_, _, stats)| stats)
                };
                let stats = running.or_else(draining);
                let stats = stats.map(|stats| Box::new(stats.snapshot()));
                self.control.send(&Event::Stats { path, stats }, &[])?;
            }
        }
        Ok(())
    }

    fn start(
        &mut self,
        device: NewDevice,
        config_error: Option<String>,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let Ok([socket, fired, config]) = <[OwnedFd; 3]>::try_from(descriptors) else {
            return Err(too_many_files());
        };
        let config = match config_error {
            None => self.common.config.with_text(&read_all(config)?),
            Some(error) => self.common.config.with_error(error),
        };
        let link = Arc::new(DeviceLink::new(MessageSocket::of(socket)));
        let path = device.path.clone();
        let stats = Arc::new(DeviceStats::new(Arc::clone(&device.guest.log)));
        let stop = Arc::new(StopSignal::new()?);
        let opened_by = Arc::clone(&link);
        let opened = Arc::new(move |_: &DevicePath, stats: &DeviceStats| {
            // Without the supervisor the process ends.
            let _ = opened_by.ask(&Request::Opened(Box::new(stats.snapshot())));
        });
        let host = self.host(&link);
        let records = SupervisedRecords::new(Arc::clone(&link), self.common.records);
        let records = Some(Arc::new(records) as _);
        let surroundings = Surroundings { config, records, host, opened };
        let xen = Supervised::new(self.xen.clone(), Arc::clone(&link), fired);
        let (ending, woken) = (self.ending.clone(), Arc::clone(&self.woken));
        let report = move |ended| {
            if ending.send(ended).is_ok() && woken.write(1).is_err() {
                tracing::error!("cannot report the end of a device");
            }
        };
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&stats));
        let thread = device_thread::spawn(xen, device, stopped, surroundings, counted, report)?;
        self.running.insert(path, Running { link, stop, thread, stats });
        Ok(())
    }

    /// What a device uses of the host.
    fn host(&self, link: &Arc<DeviceLink>) -> Host {
        let network = self.common.network.clone();
        let network = network.unwrap_or_else(|| Arc::new(SupervisedNetwork::new(Arc::clone(link))));
        Host {
            network,
            sizes: Arc::new(SupervisedSizes::new(Arc::clone(link), self.sizes.clone())),
            images: Arc::new(SupervisedImages::new(Arc::clone(link))),
            terminals: Arc::new(SupervisedTerminals::new(Arc::clone(link))),
            sockets: Arc::new(SupervisedSockets::new(Arc::clone(link))),
            rates: Arc::clone(&self.rates),
        }
    }

    /// Reports devices that have ended.
    fn reap(&mut self) -> Result<(), ProcessError> {
        // Reset first: what ends from now on makes the counter readable again.
        let _ = self.woken.read();
        while let Ok(ended) = self.ended.try_recv() {
            let Some(Running { thread, stats, .. }) = self.running.remove(&ended.path) else {
                continue;
            };
            if ended.is_detached {
                self.draining.push((ended.path.clone(), thread, Arc::clone(&stats)));
            } else {
                // The thread has reported a panic.
                let _ = thread.join();
            }
            self.report(ended, &stats)?;
        }
        self.draining.retain(|(_, thread, _)| !thread.is_finished());
        Ok(())
    }

    fn report(&self, ended: Ended, stats: &DeviceStats) -> Result<(), ProcessError> {
        let stats = Box::new(stats.snapshot());
        Ok(self.control.send(&Event::Ended { ended, stats }, &[])?)
    }

    /// Leaves all devices to the next process. Without the supervisor they can do nothing else.
    fn leave_all(self) {
        for running in self.running.values() {
            running.link.cut();
            let _ = running.stop.give(Ending::Leave);
        }
    }
}

/// Reads a file from its beginning.
fn read_all(file: OwnedFd) -> io::Result<String> {
    let file = File::from(file);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}
