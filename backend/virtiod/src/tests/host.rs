//! Dom0: the server in a thread, and a toolstack that writes the keys that xl writes.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempDir};

use super::driver::Driver;
use super::fake_network::{FakeLink, FakeNetwork};
use crate::bus::{Ending, StopSignal};
use crate::config::ConfigFile;
use crate::daemon::descriptor_store::{DescriptorStore, StoredDescriptors};
use crate::daemon::guest_processes::GuestProcesses;
use crate::daemon::launch::{Launch, Launched};
use crate::daemon::registry::{RegisteredDevice, Registry};
use crate::daemon::reload::{Reloaded, Reloads};
use crate::daemon::runner::SharedHost;
use crate::daemon::server::{Server, ServerError};
use crate::domain::{ByGrants, Domain};
use crate::process::confinement::ConfinementError;
use crate::process::confinement::system_calls::restrict_system_calls;
use crate::process::main_loop::{self, Common};
use crate::process::message_socket::MessageSocket;
use crate::record::{RecordDirectory, RecordVersion};
use uring::rings;
use xen::DomId;
use xen_sim::{Hypervisor, Watch};

/// xl's number for xvda.
pub(super) const XVDA: u32 = 51712;
/// Number of pages of a test guest.
const GUEST_PAGES: usize = 1024;

/// If this variable is set, devices are served as in processes of their guests. These are threads,
/// since the simulated hypervisor is in this process.
const IN_PROCESSES: &str = "DEVICES_IN_PROCESSES";

/// Number of io_uring instances of all processes of a test.
const TEST_RINGS: usize = 64;

/// Whether devices are served as in processes of their guests.
pub(super) fn in_processes() -> bool {
    std::env::var_os(IN_PROCESSES).is_some()
}

/// Starts guests' processes as threads.
struct InThread<X> {
    domain: X,
    config: ConfigFile,
    network: Arc<FakeNetwork>,
    processes: Processes,
}

/// The processes of guests.
#[derive(Clone, Default)]
pub(super) struct Processes(Arc<Mutex<ProcessList>>);

#[derive(Default)]
struct ProcessList {
    /// Copies of their ends of the sockets to the supervisor.
    sockets: Vec<OwnedFd>,
    /// No other one starts.
    are_refused: bool,
    /// What the daemon stored, by name.
    stored: Vec<(String, OwnedFd)>,
}

impl DescriptorStore for Processes {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        let copy = descriptor.try_clone_to_owned().unwrap();
        self.0.lock().unwrap().stored.push((name.to_owned(), copy));
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap().stored.retain(|(known, _)| known != name);
    }
}

impl Processes {
    /// Number of processes that were started.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().sockets.len()
    }

    /// What the next daemon finds.
    fn stored(&self) -> StoredDescriptors {
        let copy = |(name, fd): &(String, OwnedFd)| (name.clone(), fd.try_clone().unwrap());
        let left = self.0.lock().unwrap().stored.iter().map(copy).collect();
        StoredDescriptors::new(Arc::new(self.clone()), left)
    }

    /// Names of what the daemon stored.
    pub(super) fn stored_names(&self) -> Vec<String> {
        self.0.lock().unwrap().stored.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Ends the latest process as its death does: the supervisor finds the socket closed.
    pub(super) fn kill(&self) {
        let processes = self.0.lock().unwrap();
        let latest = processes.sockets.last().unwrap();
        rustix::net::shutdown(latest, rustix::net::Shutdown::Both).unwrap();
    }

    /// Lets no further process start, or lets them start again.
    pub(super) fn refuse(&self, are_refused: bool) {
        self.0.lock().unwrap().are_refused = are_refused;
    }
}

impl<X: Domain> Launch for InThread<X> {
    fn launch(&self, _: DomId, control: OwnedFd) -> io::Result<Box<dyn Launched>> {
        let common = Common {
            config: self.config.clone(),
            confine: restrict_thread,
            network: Some(Arc::clone(&self.network) as _),
            records: RecordVersion::Newest,
        };
        let mut processes = self.processes.0.lock().unwrap();
        if processes.are_refused {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        processes.sockets.push(control.try_clone()?);
        drop(processes);
        let domain = self.domain.clone();
        let socket = MessageSocket::of(control);
        // One that cannot be served dies.
        let thread = thread::spawn(move || drop(main_loop::run(domain, socket, common)));
        Ok(Box::new(ProcessThread(Some(thread))))
    }
}

/// Restricts the system calls of a thread that is to be a process, and of the threads that it
/// starts. The kernel kills the test at a call that is not in the list.
fn restrict_thread(_: u32) -> Result<(), ConfinementError> {
    static STOCK: Once = Once::new();
    STOCK.call_once(|| drop(rings::stock(TEST_RINGS)));
    nix::sys::prctl::set_no_new_privs().expect("no new privileges");
    restrict_system_calls()?;
    Ok(())
}

struct ProcessThread(Option<JoinHandle<()>>);

impl Launched for ProcessThread {
    fn wait(&mut self) -> String {
        let joined = self.0.take().map(JoinHandle::join);
        format!("{joined:?}")
    }
}

pub(super) struct Host {
    pub(super) hypervisor: Hypervisor,
    pub(super) network: FakeNetwork,
    registry: Arc<Registry>,
    config: NamedTempFile,
    records: TempDir,
    stop: Arc<StopSignal>,
    reloads: Option<Arc<Reloads>>,
    server: Option<JoinHandle<Result<(), ServerError>>>,
    /// The processes of guests, if devices are served by such.
    pub(super) processes: Option<Processes>,
}

/// The XenStore directories of a device's backend and frontend.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) guest: DomId,
    pub(super) backend: String,
    pub(super) frontend: String,
}

impl Host {
    pub(super) fn start() -> Self {
        Self::start_on(Hypervisor::default())
    }

    /// Starts on a hypervisor whose XenStore has content.
    pub(super) fn start_on(hypervisor: Hypervisor) -> Self {
        Self::start_with(hypervisor.clone(), ByGrants(hypervisor))
    }

    /// Starts the server with the handles `domain` to a hypervisor.
    pub(super) fn start_with(hypervisor: Hypervisor, domain: impl Domain) -> Self {
        let mut host = Self {
            hypervisor,
            network: FakeNetwork::default(),
            registry: Arc::default(),
            config: NamedTempFile::new().unwrap(),
            records: TempDir::new().unwrap(),
            stop: Arc::new(StopSignal::new().unwrap()),
            reloads: None,
            server: None,
            processes: in_processes().then(Processes::default),
        };
        host.serve(domain);
        host
    }

    /// Starts with devices in processes of their guests.
    pub(super) fn start_in_processes() -> (Self, Processes) {
        let (mut host, processes) = (Self::start(), Processes::default());
        host.leave();
        host.processes = Some(processes.clone());
        host.serve_again();
        (host, processes)
    }

    /// Starts the server.
    fn serve(&mut self, domain: impl Domain) {
        self.registry = Arc::default();
        self.stop = Arc::new(StopSignal::new().unwrap());
        let file = ConfigFile::optional(self.config.path());
        let cables = Arc::new(self.network.clone());
        let records = RecordDirectory::new(self.records.path()).unwrap();
        let shared = SharedHost::new(Some(records), Arc::clone(&cables) as _).unwrap();
        self.reloads = Some(Arc::clone(&shared.reloads));
        let (registry, stop) = (Arc::clone(&self.registry), Arc::clone(&self.stop));
        let server = if let Some(processes) = &self.processes {
            let launch = InThread {
                domain: domain.clone(),
                config: file.clone(),
                network: cables,
                processes: processes.clone(),
            };
            let (launch, all) = (Box::new(launch), Arc::clone(&registry));
            let (host, stored) = (shared.clone(), processes.stored());
            let processes =
                GuestProcesses::new(domain.clone(), launch, file, all, host, stored).unwrap();
            Server::with_runner(domain, registry, shared, Box::new(processes)).unwrap()
        } else {
            Server::new(domain, registry, file, shared).unwrap()
        };
        self.server = Some(thread::spawn(move || server.run(&stop)));
    }

    /// Starts another server after [`Host::leave`].
    pub(super) fn serve_again(&mut self) {
        self.serve(ByGrants(self.hypervisor.clone()));
    }

    /// Waits until the guest's device is being set up.
    pub(super) fn wait_for_starting(&self, guest: DomId) {
        let end = Instant::now() + Duration::from_secs(10);
        let is_there = |device: &RegisteredDevice| {
            device.domid == guest.0 && device.stats.state.state == "starting"
        };
        while !self.registry.report().devices.iter().any(is_there) {
            assert!(Instant::now() < end, "waited 10 s for the device to be set up");
            thread::yield_now();
        }
    }

    /// The directory of the devices' records.
    pub(super) fn records(&self) -> &Path {
        self.records.path()
    }

    /// Stops the server as SIGTERM does: devices wait for the next one.
    pub(super) fn leave(&mut self) {
        self.stop_with(Ending::Leave);
    }

    /// Ends the server and all devices, as `xen-virtiod end` does.
    pub(super) fn end_daemon(&mut self) {
        self.stop_with(Ending::End);
    }

    /// Has the server reload the configuration file.
    pub(super) fn reload(&self) -> Reloaded {
        self.reloads.as_ref().unwrap().ask()
    }

    /// Writes the configuration file, which is empty at first.
    pub(super) fn configure(&self, text: &str) {
        std::fs::write(self.config.path(), text).unwrap();
    }

    /// Removes the configuration file.
    pub(super) fn remove_configuration(&self) {
        std::fs::remove_file(self.config.path()).unwrap();
    }

    /// Adds the keys of a read-only disk that an earlier daemon left in `state`.
    pub(super) fn add_disk_in_state(
        &self,
        guest: u16,
        number: u32,
        target: &Path,
        state: &str,
    ) -> Ends {
        let keys = [("params", target.to_str().unwrap()), ("mode", "r"), ("device-type", "disk")];
        self.add_in_state("virtio_disk", guest, number, &keys, state)
    }

    /// Adds a disk as xl does.
    pub(super) fn add_disk(&self, guest: u16, number: u32, target: &Path, mode: &str) -> Ends {
        let params = target.to_str().unwrap();
        let keys = [
            ("params", params),
            ("mode", mode),
            ("device-type", "disk"),
            ("dev", "xvda"),
            ("discard-enable", "1"),
        ];
        self.add("virtio_disk", guest, number, &keys)
    }

    pub(super) fn add(&self, class: &str, guest: u16, number: u32, keys: &[(&str, &str)]) -> Ends {
        self.add_in_state(class, guest, number, keys, "1")
    }

    fn add_in_state(
        &self,
        class: &str,
        guest: u16,
        number: u32,
        keys: &[(&str, &str)],
        state: &str,
    ) -> Ends {
        let ends = Ends {
            guest: DomId(guest),
            backend: format!("/local/domain/0/backend/{class}/{guest}/{number}"),
            frontend: format!("/local/domain/{guest}/device/{class}/{number}"),
        };
        let write = |path: &str, value: &str| self.hypervisor.store_write(path, value);
        write(&format!("{}/backend", ends.frontend), &ends.backend);
        write(&format!("{}/state", ends.frontend), "1");
        write(&format!("{}/frontend", ends.backend), &ends.frontend);
        write(&format!("{}/online", ends.backend), "1");
        for (key, value) in keys {
            write(&format!("{}/{key}", ends.backend), value);
        }
        write(&format!("{}/state", ends.backend), state);
        ends
    }

    /// Watches the backend's state.
    pub(super) fn watch_state(&self, guest: u16, number: u32) -> Watch {
        let path = format!("/local/domain/0/backend/virtio_disk/{guest}/{number}/state");
        self.hypervisor.store_watch(&path)
    }

    /// Removes a device as `xl destroy` does, and waits for the backend as xl does.
    pub(super) fn remove(&self, ends: &Ends) {
        let key = |name| format!("{}/{name}", ends.backend);
        let (online, state) = (key("online"), key("state"));
        self.hypervisor.store_write_all([(&*online, "0"), (&*state, "5")]);
        self.wait_state(ends, "6");
        self.hypervisor.store_remove(&ends.frontend);
        self.hypervisor.store_remove(&ends.backend);
    }

    pub(super) fn wait_state(&self, ends: &Ends, state: &str) {
        self.hypervisor.store_wait(&format!("{}/state", ends.backend), Some(state));
    }

    pub(super) fn error(&self, ends: &Ends) -> Option<String> {
        self.hypervisor.store_read(&format!("{}/error", ends.backend))
    }

    /// Creates a guest and connects its driver to the device.
    pub(super) fn connect(&self, ends: &Ends) -> Driver {
        let guest = self.hypervisor.guest(ends.guest.0, GUEST_PAGES);
        Driver::connect(self.hypervisor.clone(), ends.clone(), guest)
    }

    /// Connects another driver of the same guest, with grant references of its own.
    pub(super) fn connect_beside(&self, ends: &Ends) -> Driver {
        let mut guest = self.hypervisor.guest(ends.guest.0, GUEST_PAGES);
        guest.skip_references(10_000);
        Driver::connect(self.hypervisor.clone(), ends.clone(), guest)
    }

    /// The statistics of a guest's first device.
    pub(super) fn stat(&self, guest: DomId) -> RegisteredDevice {
        let devices = self.registry.report().devices;
        devices.into_iter().find(|device| device.domid == guest.0).unwrap()
    }

    /// Number of present and removed devices of a guest.
    pub(super) fn devices(&self, guest: DomId) -> usize {
        let devices = self.registry.report().devices;
        devices.iter().filter(|device| device.domid == guest.0).count()
    }

    /// Waits until the first guest's first device has served `count` read requests, though it
    /// cannot notify its driver.
    pub(super) fn wait_requests_read(&self, count: u64) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.stat(DomId(1)).stats.requests.read < count {
            assert!(Instant::now() < end, "waited 10 s for {count} request(s) to be served");
            thread::yield_now();
        }
    }

    /// Waits until the guest's first device has handled all pending events: its driver's and those
    /// of its own sources.
    pub(super) fn wait_until_idle(&self, driver: &mut Driver) {
        let guest = driver.ends.guest;
        let waits = || self.stat(guest).stats.counts.sleeps;
        // The first iteration may have begun before; the second one handles the remaining events.
        let enough = waits() + 2;
        while waits() < enough {
            driver.status();
        }
    }

    /// Stops the server; fails the test if anything was left behind.
    pub(super) fn finish(mut self) {
        self.stop();
        self.hypervisor.assert_clean();
    }

    /// Stops the server; fails the test if it still holds a guest's pages or ports.
    pub(super) fn finish_with_guests(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.stop_with(Ending::End);
    }

    fn stop_with(&mut self, ending: Ending) {
        self.stop.give(ending).unwrap();
        let server = self.server.take().expect("it is stopped once");
        server.join().unwrap().unwrap();
        for device in self.registry.report().devices {
            assert_eq!(device.stats.grants_mapped, 0, "{}", device.device);
        }
    }
}

/// A guest with one device. Dropping it closes the driver, removes the device as xl does, stops the
/// daemon, and fails the test if the daemon leaves anything behind.
pub(super) struct TestGuest {
    pub(super) driver: Driver,
    pub(super) host: Host,
    pub(super) ends: Ends,
}

impl TestGuest {
    /// Starts a daemon, adds the device of domain 1 with `add`, and connects a driver.
    pub(super) fn connect(add: impl FnOnce(&Host) -> Ends) -> Self {
        let host = Host::start();
        let ends = add(&host);
        let driver = host.connect(&ends);
        Self { driver, host, ends }
    }

    /// As [`Host::wait_until_idle`].
    pub(super) fn wait_until_idle(&mut self) {
        self.host.wait_until_idle(&mut self.driver);
    }
}

impl Drop for TestGuest {
    fn drop(&mut self) {
        // The panic of a failed test is its only message.
        if thread::panicking() {
            return;
        }
        self.driver.disconnect();
        self.host.remove(&self.ends);
        // The name is free for another device before the toolstack reads state 6.
        assert_eq!(self.host.network.names(), [""; 0], "interfaces left");
        self.host.stop();
        self.host.hypervisor.assert_clean();
    }
}

/// A guest with one disk.
pub(super) struct TestDisk {
    guest: TestGuest,
    pub(super) file: NamedTempFile,
}

impl TestDisk {
    /// A connected disk on `file`, with mode "r" or "w".
    pub(super) fn connect(file: NamedTempFile, mode: &str) -> Self {
        let guest = TestGuest::connect(|host| host.add_disk(1, XVDA, file.path(), mode));
        Self { guest, file }
    }

    /// As [`TestDisk::connect`], with this configuration file.
    pub(super) fn connect_configured(file: NamedTempFile, mode: &str, config: &str) -> Self {
        let guest = TestGuest::connect(|host| {
            host.configure(config);
            host.add_disk(1, XVDA, file.path(), mode)
        });
        Self { guest, file }
    }

    /// As [`TestDisk::connect`], with a driver that is ready.
    pub(super) fn start(file: NamedTempFile, mode: &str) -> Self {
        let mut disk = Self::connect(file, mode);
        disk.driver.start();
        disk
    }
}

impl Deref for TestDisk {
    type Target = TestGuest;

    fn deref(&self) -> &TestGuest {
        &self.guest
    }
}

impl DerefMut for TestDisk {
    fn deref_mut(&mut self) -> &mut TestGuest {
        &mut self.guest
    }
}

/// A guest with one network interface, and the other end of its cable.
pub(super) struct TestNet {
    guest: TestGuest,
    pub(super) link: Arc<FakeLink>,
}

/// How packets reach a network device.
#[derive(Clone, Copy, Debug)]
pub(super) enum PacketWay {
    /// The device asks a simulated interface for each.
    Each,
    /// It asks for several messages of a file at once, as before Linux 6.7.
    Batch,
    /// The kernel receives messages of a file into the device's buffers by itself.
    Inbox,
}

impl TestNet {
    /// A connected network device for each way in which packets reach it; a test's output says
    /// which failed.
    pub(super) fn each_way() -> impl Iterator<Item = Self> {
        [PacketWay::Each, PacketWay::Batch, PacketWay::Inbox].into_iter().map(|way| {
            println!("packets by {way:?}");
            let net = Self::connect();
            match way {
                PacketWay::Each => {}
                PacketWay::Batch => {
                    net.link.have_asked();
                    net.link.use_messages();
                }
                PacketWay::Inbox => net.link.use_messages(),
            }
            net
        })
    }

    /// A connected network device.
    pub(super) fn connect() -> Self {
        let add = |host: &Host| host.add("virtio", 1, 0, &[("type", "virtio,device1")]);
        let guest = TestGuest::connect(add);
        let link = guest.host.network.link("virtio1.0");
        Self { guest, link }
    }
}

impl Deref for TestNet {
    type Target = TestGuest;

    fn deref(&self) -> &TestGuest {
        &self.guest
    }
}

impl DerefMut for TestNet {
    fn deref_mut(&mut self) -> &mut TestGuest {
        &mut self.guest
    }
}

/// Creates a disk image of `sectors` sectors, each filled with its own number.
pub(super) fn numbered_disk(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..sectors).flat_map(|sector| [sector as u8; 512]).collect();
    std::fs::write(file.path(), bytes).unwrap();
    file
}
