//! What runs devices for the server: threads of this process, or processes of their guests.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::reload::{Reloaded, Reloads};
use super::scripts::Scripts;
use super::size_watches::SizeWatches;
use crate::bus::{DevicePath, Ending, StopSignal};
use crate::domain::Domain;
use crate::process::device_thread::{self, Ended, NewDevice, Surroundings};
use crate::record::RecordDirectory;
use crate::stats::DeviceStats;
use crate::tap::network::Network;
use xen::DomId;

/// A device that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No descriptor is left.
    #[error("cannot open a file descriptor for another device")]
    Descriptor(#[source] io::Error),
    /// No thread is left.
    #[error("cannot start a thread for another device")]
    Thread(#[source] io::Error),
    /// The guest's process cannot be started, or does not take the device.
    #[error("cannot start the device in a process of its guest")]
    Process(#[source] io::Error),
}

/// What the daemon has of the host, for the devices of all guests.
#[derive(Clone)]
pub struct SharedHost {
    /// Where the records of devices are; `None` if all end with their processes.
    pub records: Option<RecordDirectory>,
    /// The host's network interfaces.
    pub network: Arc<dyn Network>,
    /// The sizes of files and block devices.
    pub sizes: SizeWatches,
    /// Requests to reload the configuration file.
    pub reloads: Arc<Reloads>,
    /// The scripts that attach interfaces.
    pub scripts: Scripts,
}

impl SharedHost {
    /// With these records and interfaces.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(records: Option<RecordDirectory>, network: Arc<dyn Network>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let waker = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let reloads = Arc::new(Reloads::new(Arc::clone(&waker)));
        let notes = records.as_ref().map(|records| records.path_of_all().to_owned());
        let scripts = notes.map_or_else(Scripts::default, Scripts::with_notes);
        Ok(Self { records, network, sizes: SizeWatches::new(waker), reloads, scripts })
    }
}

/// Starts devices.
pub trait Runner: Send {
    /// Starts a device, whose end is reported to `ends`.
    ///
    /// # Errors
    /// [`StartError`].
    fn start(
        &mut self,
        device: NewDevice,
        stats: &Arc<DeviceStats>,
        ends: &EndReports,
    ) -> Result<Box<dyn Runs>, StartError>;

    /// Applies a changed configuration file to running devices.
    fn reload(&mut self) -> Reloaded;

    /// Forgets a device, which is gone.
    fn forget_device(&mut self, path: &DevicePath);

    /// Forgets all devices but these, by the names of their records.
    fn forget_others(&mut self, devices: &BTreeSet<String>);

    /// Forgets a guest, which has no device any more.
    fn forget(&mut self, guest: DomId);
}

/// A device that was started.
pub trait Runs: Send {
    /// Ends it, as `ending` says.
    ///
    /// # Errors
    /// The kernel's.
    fn stop(&self, ending: Ending) -> io::Result<()>;

    /// Waits for the rest of it, after its end was reported as one to wait for.
    fn join(self: Box<Self>);
}

/// Passes reports of devices' ends to the server.
#[derive(Clone, Debug)]
pub struct EndReports {
    sender: Sender<Ended>,
    woken: Arc<EventFd>,
}

impl EndReports {
    /// Reports are sent by `sender`, and `woken` is increased for each.
    pub fn new(sender: Sender<Ended>, woken: Arc<EventFd>) -> Self {
        Self { sender, woken }
    }

    /// Reports an end.
    pub fn report(&self, ended: Ended) {
        let path = ended.path.clone();
        // Both fail only if the server is gone; then nobody waits.
        let reported = self.sender.send(ended).is_ok();
        if reported && self.woken.write(1).is_err() {
            tracing::error!(%path, "cannot wake up the server");
        }
    }
}

/// Runs devices in threads of this process.
#[derive(Debug)]
pub struct Threads<X> {
    xen: X,
    surroundings: Surroundings,
}

impl<X: Domain> Threads<X> {
    /// Threads with these handles to Xen.
    pub fn new(xen: X, surroundings: Surroundings) -> Self {
        Self { xen, surroundings }
    }
}

struct RunningThread {
    stop: Arc<StopSignal>,
    thread: JoinHandle<()>,
}

impl<X: Domain> Runner for Threads<X> {
    fn start(
        &mut self,
        device: NewDevice,
        stats: &Arc<DeviceStats>,
        ends: &EndReports,
    ) -> Result<Box<dyn Runs>, StartError> {
        let stop = Arc::new(StopSignal::new().map_err(StartError::Descriptor)?);
        let (xen, surroundings) = (self.xen.clone(), self.surroundings.clone());
        let (stopped, stats, ends) = (Arc::clone(&stop), Arc::clone(stats), ends.clone());
        let report = move |ended| ends.report(ended);
        let thread = device_thread::spawn(xen, device, stopped, surroundings, stats, report);
        Ok(Box::new(RunningThread { stop, thread: thread.map_err(StartError::Thread)? }))
    }

    /// The next devices read the file.
    fn reload(&mut self) -> Reloaded {
        Ok(Vec::new())
    }

    fn forget_device(&mut self, _: &DevicePath) {}

    fn forget_others(&mut self, _: &BTreeSet<String>) {}

    fn forget(&mut self, _: DomId) {}
}

impl Runs for RunningThread {
    fn stop(&self, ending: Ending) -> io::Result<()> {
        self.stop.give(ending)
    }

    fn join(self: Box<Self>) {
        // The thread has reported a panic.
        let _ = self.thread.join();
    }
}
