//! The process itself: starts and stops devices as the supervisor says, until that is gone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::device_thread::{self, Ended, NewDevice, Surroundings};
use super::images::SupervisedImages;
use super::link::DeviceLink;
use super::message::{Command, Event, Request};
use super::message_socket::{MessageError, MessageSocket};
use super::size_watches::SizeWatches;
use super::store::Supervised;
use super::terminals::SupervisedTerminals;
use crate::Causes;
use crate::bus::{DevicePath, Ending, StopSignal};
use crate::config::ConfigFile;
use crate::dma::budget::DaemonBudget;
use crate::dma::shared_count::SharedCount;
use crate::domain::Domain;
use crate::guest::Guest;
use crate::record::RecordDirectory;
use crate::setup::Host;
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
    /// The supervisor's socket fails.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What the devices of the process have in common.
pub struct Common {
    /// The configuration.
    pub config: ConfigFile,
    /// Where the records of devices are; `None` if all end with this process.
    pub records: Option<RecordDirectory>,
    /// The host's network interfaces.
    pub network: Arc<dyn Network>,
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
    sizes: SizeWatches,
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
    let sizes = SizeWatches::new(Arc::clone(&woken));
    let Some(guest) = begin(&control)? else { return Ok(()) };
    let (ending, ended) = mpsc::channel();
    let process = Process {
        xen,
        control,
        common,
        guest,
        sizes,
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
fn begin(control: &MessageSocket) -> Result<Option<Guest>, ProcessError> {
    let Some((command, table)) = control.receive::<Command>()? else { return Ok(None) };
    let (Command::Begin { slot }, Some(table)) = (command, table.into_iter().next()) else {
        let why = io::ErrorKind::InvalidData.into();
        return Err(ProcessError::System("understand the first command", why));
    };
    let pages = SharedCount::open(table, slot);
    let pages = pages.map_err(|error| ProcessError::System("count mapped pages", error))?;
    Ok(Some(Guest::new(Arc::new(DaemonBudget::of_all_processes(pages)))))
}

impl<X: Domain> Process<X> {
    fn serve(mut self) -> Result<(), ProcessError> {
        let sizes = self.sizes.clone();
        loop {
            self.reap()?;
            if self.is_finishing && self.running.is_empty() && self.draining.is_empty() {
                return Ok(());
            }
            let fds = [self.control.as_fd(), self.woken.as_fd()];
            let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds: Vec<_> = fds.into_iter().chain(sizes.fds()).map(entry).collect();
            // Nothing tells of the end of a thread that waits for storage.
            let again = if self.draining.is_empty() { Duration::MAX } else { DRAIN_INTERVAL };
            wait_for(&mut fds, sizes.until_next(Instant::now()).min(again))
                .map_err(|error| ProcessError::System("wait for events", error))?;
            let has_command = fds.first().and_then(PollFd::any).unwrap_or(false);
            sizes.handle(Instant::now());
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
            Command::Start { path, found, fault, config } => {
                let guest = self.guest.clone();
                let device = NewDevice { path: path.clone(), found, guest, fault };
                if let Err(error) = self.start(device, config, descriptors) {
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
        config: Option<String>,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let mut descriptors = descriptors.into_iter();
        let (Some(socket), Some(fired)) = (descriptors.next(), descriptors.next()) else {
            // The kernel drops those for which the process has no number left.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
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
        let (file, records) = (&self.common.config, self.common.records.clone());
        let config = config.map_or_else(|| file.clone(), |text| file.with_text(&text));
        let host = Host {
            network: Arc::clone(&self.common.network),
            sizes: Arc::new(self.sizes.clone()),
            images: Arc::new(SupervisedImages::new(Arc::clone(&link))),
            terminals: Arc::new(SupervisedTerminals::new(Arc::clone(&link))),
        };
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
