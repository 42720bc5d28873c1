//! The processes of guests: starts one for each guest, passes devices to it, and reports the
//! devices' ends, also if the process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::descriptor_store::StoredDescriptors;
use super::device_service::{DeviceService, HangUp, HostServices, ServedDevice};
use super::image_service::KeptClaims;
use super::launch::Launch;
use super::registry::Registry;
use super::reload::{self, Reloaded, Replaced};
use super::runner::{EndReports, Runner, Runs, SharedHost, StartError};
use super::same_address::same_address_hook;
use super::server::ServerError;
use super::socket_service::KeptSockets;
use super::terminal_service::KeptTerminals;
use super::user_range::UserRange;
use crate::Causes;
use crate::bus::{DevicePath, Ending};
use crate::config::ConfigFile;
use crate::dma::shared_count::{CountSlot, CountTable};
use crate::process::device_thread::{Ended, Found, NewDevice, OpenedHook, Outcome};
use crate::process::message::{self, Event};
use crate::process::message_socket::MessageSocket;
use crate::setup::rates::DeviceRates;
use crate::stats::{DeviceStats, Fetched, RemoteStats};
use crate::wakeup::WakeUp;
use xen::{DomId, Xen};

/// Maximum time for which a process is awaited to read a command, or to report statistics.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Maximum time that a process takes to end when its guest is gone.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// Runs devices in processes of their guests.
pub struct GuestProcesses<X> {
    xen: X,
    launch: Box<dyn Launch>,
    config: ConfigFile,
    /// The configuration with which each device was set up.
    configs: BTreeMap<DevicePath, ConfigFile>,
    /// The limits of disks that were set since.
    replaced: Replaced,
    opened: OpenedHook,
    all: BTreeMap<DomId, Arc<GuestProcess>>,
    host: HostServices,
    pages: CountTable,
    users: UserRange,
}

/// The process of one guest.
struct GuestProcess {
    control: MessageSocket,
    devices: Mutex<Devices>,
    /// Signalled when statistics arrive, and when the process is gone.
    reported: Condvar,
    /// Locked by the one who waits for statistics.
    asking: Mutex<()>,
    /// Whether the process did not report in time the last time: nobody waits for it again.
    is_silent: AtomicBool,
}

#[derive(Default)]
struct Devices {
    running: BTreeMap<DevicePath, Arc<DeviceStats>>,
    /// The supervisor's ends of their sockets. To shut one down ends the device's service.
    services: BTreeMap<DevicePath, MessageSocket>,
    /// Whether storage may hold up the end of the process.
    is_held: bool,
    /// Why the process serves nothing, if it says so.
    failure: Option<String>,
    /// The statistics that arrived and were not taken yet, for who waits for them.
    reports: BTreeMap<DevicePath, Option<Fetched>>,
    /// Where the ends of its devices are reported.
    ends: Option<EndReports>,
    is_gone: bool,
}

impl<X: Xen> GuestProcesses<X> {
    /// Processes that `launch` starts, for devices in `registry`, with what they share of the host,
    /// and what an earlier daemon has stored.
    ///
    /// # Errors
    /// The kernel has no memory for what they count together.
    pub fn new(
        xen: X,
        launch: Box<dyn Launch>,
        config: ConfigFile,
        registry: Arc<Registry>,
        shared: SharedHost,
        mut stored: StoredDescriptors,
    ) -> Result<Self, ServerError> {
        let pages = CountTable::new();
        let pages = pages.map_err(|error| ServerError::System("count mapped pages", error))?;
        let opened = same_address_hook(registry);
        let terminals = KeptTerminals::restore(&mut stored);
        let sockets = KeptSockets::restore(&mut stored);
        stored.forget_rest();
        let kept = KeptClaims::default();
        let host = HostServices { shared, kept, terminals, sockets };
        let (all, configs) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            xen,
            launch,
            config,
            configs,
            replaced: Replaced::new(),
            opened,
            all,
            host,
            pages,
            users: UserRange::of_host(),
        })
    }

    /// The configuration of a device: as it is now, or as it was when a device was set up that goes
    /// on.
    fn config_of(&mut self, path: &DevicePath, found: Found) -> ConfigFile {
        let known = self.configs.get(path).filter(|_| found == Found::Left);
        if let Some(known) = known {
            return known.clone();
        }
        // The device says why a file cannot be read.
        let failed = |error| self.config.with_error(Causes(&error).to_string());
        let now = self.config.as_it_is().unwrap_or_else(failed);
        self.configs.insert(path.clone(), now.clone());
        now
    }

    /// Forgets the limits that a reload has set for a device.
    fn forget_limits(&mut self, path: &DevicePath) {
        if self.replaced.remove(path).is_some()
            && let Some(process) = self.all.get(&path.guest)
        {
            process.limit(path, None);
        }
    }

    /// The guest's process, started if there is none.
    fn of(&mut self, guest: DomId) -> io::Result<Arc<GuestProcess>> {
        if let Some(process) = self.all.get(&guest).filter(|process| !process.is_gone()) {
            return Ok(Arc::clone(process));
        }
        let user = self.users.of(guest);
        let process = GuestProcess::start(&*self.launch, guest, user, self.pages.take_slot()?)?;
        self.all.insert(guest, Arc::clone(&process));
        Ok(process)
    }
}

impl<X: Xen> Runner for GuestProcesses<X> {
    fn start(
        &mut self,
        device: NewDevice,
        stats: &Arc<DeviceStats>,
        ends: &EndReports,
    ) -> Result<Box<dyn Runs>, StartError> {
        let NewDevice { path, found, fault, .. } = device;
        let process = self.of(path.guest).map_err(StartError::Process)?;
        let config = self.config_of(&path, found);
        let config_error = config.text().err().map(str::to_owned);
        let text = sealed(config.text().unwrap_or_default()).map_err(StartError::Descriptor)?;
        let (ours, theirs) = MessageSocket::pair().map_err(StartError::Descriptor)?;
        ours.limit_send(ANSWER_LIMIT).map_err(StartError::Descriptor)?;
        let (fired, theirs_fired) = WakeUp::pair().map_err(StartError::Descriptor)?;
        let served = ServedDevice {
            socket: ours,
            fired,
            path: path.clone(),
            config: config.clone(),
            stats: Arc::clone(stats),
            opened: Arc::clone(&self.opened),
            host: self.host.clone(),
            process: Arc::clone(&process) as _,
        };
        let service = served.socket.share().map_err(StartError::Descriptor)?;
        DeviceService::start(self.xen.clone(), served)?;
        process.add(&path, stats, ends, service);
        self.host.kept.expect(&path);
        if found != Found::Left {
            // It has the file's limits of now.
            self.forget_limits(&path);
        }
        if let Some(rates) = self.replaced.get(&path) {
            process.limit(&path, Some(*rates));
        }
        let command = message::Command::Start { path: path.clone(), found, fault, config_error };
        let sent =
            process.control.send(&command, &[theirs.as_fd(), theirs_fired.as_fd(), text.as_fd()]);
        if let Err(error) = sent {
            process.lock().running.remove(&path);
            // One that does not take commands serves nobody.
            process.hang_up();
            return Err(StartError::Process(io::Error::other(error)));
        }
        let source = ProcessStats { process: Arc::clone(&process), path: path.clone() };
        stats.set_source(Some(Arc::new(source)));
        Ok(Box::new(RunningRemote { process, path }))
    }

    fn reload(&mut self) -> Reloaded {
        let causes = |error: &dyn std::error::Error| Causes(error).to_string();
        let now = self.config.load().map_err(|error| causes(&error))?;
        let had_one = |config: &ConfigFile| config.text().is_ok_and(|text| !text.is_empty());
        let has_settings = !self.replaced.is_empty() || self.configs.values().any(had_one);
        if now.is_none() && has_settings {
            let path = self.config.path().display();
            return Err(format!("{path} is missing; if it is to have no settings, make it empty"));
        }
        let now = now.unwrap_or_default();
        let mut changes = Vec::new();
        let mut store = self.xen.store().map_err(|error| causes(&error))?;
        for (path, config) in &self.configs {
            let Ok(before) = config.load() else { continue };
            let before = (&before.unwrap_or_default(), self.replaced.get(path).copied());
            match reload::change(&mut store, path, before, &now) {
                Ok((change, rates)) => {
                    if let Some(rates) = rates {
                        self.replaced.insert(path.clone(), rates);
                        let process = self.all.get(&path.guest);
                        process.into_iter().for_each(|process| process.limit(path, Some(rates)));
                    }
                    changes.extend(change);
                }
                Err(error) => changes.push(reload::kept(path, causes(&error))),
            }
        }
        Ok(changes)
    }

    fn forget_device(&mut self, path: &DevicePath) {
        self.forget_limits(path);
        self.host.kept.forget(path);
        self.configs.remove(path);
        self.host.terminals.close(path);
        self.host.sockets.close(path);
        self.host.shared.scripts.take_back_of(path.record_name());
    }

    fn forget_others(&mut self, devices: &BTreeSet<String>) {
        self.host.kept.retain_chains(devices);
        self.host.terminals.retain(devices);
        self.host.sockets.retain(devices);
        self.host.shared.scripts.take_back_others(devices);
    }

    fn forget(&mut self, guest: DomId) {
        let Some(process) = self.all.remove(&guest) else { return };
        if process.control.send(&message::Command::Finish, &[]).is_err() {
            return process.hang_up();
        }
        let waited = Arc::clone(&process);
        let wait = move || waited.wait_for_exit();
        let thread = thread::Builder::new().name(format!("finish-{}", guest.0)).spawn(wait);
        if thread.is_err() {
            process.hang_up();
        }
    }
}

/// A file in memory with this text, which nobody changes.
fn sealed(text: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("configuration", flags)?);
    file.write_all_at(text.as_bytes(), 0)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

impl GuestProcess {
    fn start(
        launch: &dyn Launch,
        guest: DomId,
        user: u32,
        pages: CountSlot,
    ) -> io::Result<Arc<Self>> {
        let (control, theirs) = MessageSocket::pair()?;
        control.limit_send(ANSWER_LIMIT)?;
        let begin = message::Command::Begin { slot: pages.index(), user };
        control.send(&begin, &[pages.open_table()?.as_fd()]).map_err(io::Error::other)?;
        let mut launched = launch.launch(guest, theirs.into_descriptor())?;
        let process = Arc::new(Self {
            control,
            devices: Mutex::default(),
            reported: Condvar::new(),
            asking: Mutex::new(()),
            is_silent: AtomicBool::new(false),
        });
        let read = Arc::clone(&process);
        let body = move || {
            read.read_events();
            read.hang_up();
            let how = launched.wait();
            // Its mappings are gone with it.
            drop(pages);
            read.note_gone();
            tracing::info!("the process of {guest} has ended: {how}");
        };
        thread::Builder::new().name(format!("guest-{}", guest.0)).spawn(body)?;
        Ok(process)
    }

    fn lock(&self) -> MutexGuard<'_, Devices> {
        // The lists are consistent after every step.
        self.devices.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_gone(&self) -> bool {
        self.lock().is_gone
    }

    fn add(
        &self,
        path: &DevicePath,
        stats: &Arc<DeviceStats>,
        ends: &EndReports,
        service: MessageSocket,
    ) {
        let mut devices = self.lock();
        devices.running.insert(path.clone(), Arc::clone(stats));
        devices.services.insert(path.clone(), service);
        devices.ends = Some(ends.clone());
    }

    /// Replaces the limits of a device's rate.
    fn limit(&self, path: &DevicePath, rates: Option<DeviceRates>) {
        let command = message::Command::Limit { path: path.clone(), rates };
        if let Err(error) = self.control.send(&command, &[]) {
            tracing::warn!(%path, "cannot set the limits of the device: {}", Causes(&error));
            // One that does not take commands serves nobody.
            self.hang_up();
        }
    }

    /// Handles what the process reports, until it is gone or breaks the rules.
    fn read_events(&self) {
        loop {
            match self.control.receive::<Event>() {
                Ok(Some((event, _))) => self.handle(event),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("the process of a guest is given up: {}", Causes(&error));
                    return self.hang_up();
                }
            }
        }
    }

    fn handle(&self, event: Event) {
        let mut devices = self.lock();
        match event {
            Event::Ended { ended, stats: snapshot } => {
                // Reports of devices that it does not have are of no interest.
                let Some(stats) = devices.running.remove(&ended.path) else { return };
                // A device that storage holds up gives its image up later.
                devices.is_held |= ended.is_detached;
                if !ended.is_detached
                    && let Some(service) = devices.services.remove(&ended.path)
                {
                    service.shut_down();
                }
                stats.set_remote(*snapshot);
                if !stats.holds_storage() {
                    stats.set_source(None);
                }
                devices.ends.iter().for_each(|ends| ends.report(ended.clone()));
            }
            Event::CannotStart { reason } => devices.failure = Some(reason),
            Event::Stats { path, stats } => {
                // Only for who waits for it.
                if let Some(report) = devices.reports.get_mut(&path) {
                    *report = Some(stats.map_or(Fetched::Gone, Fetched::Latest));
                    self.reported.notify_all();
                }
            }
        }
    }

    /// Asks the process for statistics, and waits for them, but not for long.
    fn ask_for_stats(&self, path: &DevicePath) -> Fetched {
        let _asking = self.asking.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut devices = self.lock();
        if devices.is_gone {
            return Fetched::Gone;
        }
        if self.is_silent.load(Ordering::Relaxed) {
            return Fetched::Silent;
        }
        devices.reports.insert(path.clone(), None);
        let sent = self.control.send(&message::Command::Report { path: path.clone() }, &[]);
        let end = Instant::now() + ANSWER_LIMIT;
        let mut report = None;
        while sent.is_ok() && !devices.is_gone {
            report = devices.reports.get_mut(path).and_then(Option::take);
            let left = end.saturating_duration_since(Instant::now());
            if report.is_some() {
                break;
            }
            if left.is_zero() {
                self.is_silent.store(true, Ordering::Relaxed);
                break;
            }
            let waited = self.reported.wait_timeout(devices, left);
            devices = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        devices.reports.remove(path);
        report.unwrap_or(Fetched::Silent)
    }

    /// Waits for a process that was told to end, but not for long, unless storage holds it up.
    fn wait_for_exit(&self) {
        let waits = |devices: &mut Devices| !devices.is_gone && !devices.is_held;
        let waited = self.reported.wait_timeout_while(self.lock(), FINISH_LIMIT, waits);
        let (devices, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(devices);
        if waited.timed_out() {
            self.hang_up();
        }
    }

    /// Reports that all devices of the process have ended with it.
    fn note_gone(&self) {
        let mut devices = self.lock();
        devices.is_gone = true;
        let running = std::mem::take(&mut devices.running);
        std::mem::take(&mut devices.services).values().for_each(MessageSocket::shut_down);
        let failed = devices.failure.take().map(Outcome::Unreported);
        for (path, stats) in running {
            stats.note_process_gone();
            let outcome = failed.clone().unwrap_or(Outcome::Died);
            let ended = Ended { path, outcome, is_detached: false };
            devices.ends.iter().for_each(|ends| ends.report(ended.clone()));
        }
        self.reported.notify_all();
    }
}

impl HangUp for GuestProcess {
    fn hang_up(&self) {
        // It sees the end of the conversation, and exits.
        self.control.shut_down();
    }
}

/// The statistics of a device in its guest's process.
struct ProcessStats {
    process: Arc<GuestProcess>,
    path: DevicePath,
}

impl RemoteStats for ProcessStats {
    fn resume(&self) -> bool {
        let command = message::Command::Resume { path: self.path.clone() };
        let sent = self.process.control.send(&command, &[]);
        sent.inspect_err(|_| self.process.hang_up()).is_ok()
    }

    fn fetch(&self) -> Fetched {
        self.process.ask_for_stats(&self.path)
    }
}

/// A device that runs in its guest's process.
struct RunningRemote {
    process: Arc<GuestProcess>,
    path: DevicePath,
}

impl Runs for RunningRemote {
    fn stop(&self, ending: Ending) -> io::Result<()> {
        let command = message::Command::Stop { path: self.path.clone(), ending };
        // One that does not take it is given up, which ends its devices.
        self.process.control.send(&command, &[]).or_else(|error| {
            tracing::warn!(path = %self.path, "{}", Causes(&error));
            self.process.hang_up();
            Ok(())
        })
    }

    fn join(self: Box<Self>) {}
}
