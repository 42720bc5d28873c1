//! Tests of devices in processes of their guests, which die, hang and lie.

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use protocol::status::DEVICE_NEEDS_RESET;
use tempfile::{NamedTempFile, TempDir};
use uring::waiting::wait_by_poll;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, request};
use super::console;
use super::driver::Driver;
use super::fake_network::FakeNetwork;
use super::host::{Ends, Host, Processes, XVDA, numbered_disk};
use super::qcow2::{create, image};
use crate::bus::DevicePath;
use crate::config::ConfigFile;
use crate::daemon::descriptor_store::{NoStore, StoredDescriptors};
use crate::daemon::guest_processes::GuestProcesses;
use crate::daemon::launch::{Launch, Launched};
use crate::daemon::registry::Registry;
use crate::daemon::runner::{EndReports, Runner, SharedHost};
use crate::device::AwaitedFd;
use crate::device::blk::{AccessMode, Sharing};
use crate::device::net::interface::LinkState;
use crate::dma::budget::DaemonBudget;
use crate::domain::ByGrants;
use crate::guest::Guest;
use crate::process::device_thread::{Ended, Found, NewDevice, Outcome};
use crate::process::message::{
    ClaimFailure, Command, Event, ImageRequest, RecordRequest, Reply, Request, StoreRequest,
};
use crate::process::message_socket::MessageSocket;
use crate::record::RecordDirectory;
use crate::stats::DeviceStats;
use xen::DomId;
use xen_sim::Hypervisor;

fn read(driver: &mut Driver, sector: u8) {
    let expected = (OK, vec![sector; 512]);
    assert_eq!(request(driver, VIRTIO_BLK_T_IN, sector.into(), &[], 512), expected);
}

/// A guest with a disk that a process serves.
fn disk() -> (Host, Processes, Ends, Driver, NamedTempFile) {
    let ((host, processes), file) = (Host::start_in_processes(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    (host, processes, ends, driver, file)
}

/// Waits until the guest has had so many processes.
fn wait_for(processes: &Processes, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while processes.count() < count {
        assert!(Instant::now() < end, "waited 20 s for process {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn end(host: Host, ends: &Ends, driver: Driver) {
    driver.close();
    host.remove(ends);
    host.finish();
}

#[test]
fn disk_goes_on_when_its_process_dies() {
    let (host, processes, ends, mut driver, _file) = disk();
    for life in 1..4 {
        read(&mut driver, 2);
        processes.kill();
        wait_for(&processes, life + 1);
        read(&mut driver, 3);
        let written = vec![life as u8; 512];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 4, &written, 0).0, OK);
    }
    let state = host.hypervisor.store_read(&format!("{}/state", ends.backend));
    assert_eq!(state.as_deref(), Some("4"));
    end(host, &ends, driver);
}

#[test]
fn image_of_a_dead_process_is_kept_for_the_next() {
    let (host, processes, ends, mut driver, file) = disk();
    read(&mut driver, 2);
    processes.refuse(true);
    processes.kill();
    // The first process cannot be replaced, and another guest's process neither.
    let other = host.add_disk(2, XVDA, file.path(), "w");
    host.hypervisor.store_wait(&format!("{}/state", other.backend), None);
    assert!(host.error(&other).unwrap().contains("cannot start the device"));
    host.hypervisor.store_remove(&other.backend);
    processes.refuse(false);
    let third = host.add_disk(3, XVDA, file.path(), "w");
    host.hypervisor.store_wait(&format!("{}/state", third.backend), None);
    let error = host.error(&third).unwrap();
    assert!(error.contains("domain 1 uses it for xvda and may write it"), "{error}");
    host.hypervisor.store_remove(&third.backend);
    read(&mut driver, 3);
    end(host, &ends, driver);
}

#[test]
fn device_whose_process_dies_again_and_again_needs_a_reset() {
    let (host, processes, ends, mut driver, _file) = disk();
    for life in 1..6 {
        read(&mut driver, 2);
        processes.kill();
        wait_for(&processes, life + 1);
        // Its session has begun: otherwise it would not have been its death.
        driver.wait_config_event();
    }
    assert_ne!(driver.status() & DEVICE_NEEDS_RESET, 0);
    let stats = host.stat(DomId(1)).stats;
    let reason = stats.state.needs_reset.unwrap();
    assert!(reason.contains("died 5 times"), "{reason}");
    // After a reset the driver may try again.
    driver.reset_device();
    driver.free_rings();
    driver.start();
    read(&mut driver, 2);
    end(host, &ends, driver);
}

#[test]
fn end_of_the_daemon_ends_devices_that_wait_for_a_process() {
    let (mut host, processes, ends, mut driver, _file) = disk();
    read(&mut driver, 2);
    processes.refuse(true);
    processes.kill();
    let error = format!("{}/error", ends.backend);
    let end = Instant::now() + Duration::from_secs(10);
    while host.hypervisor.store_read(&error).is_none() {
        assert!(Instant::now() < end, "waited 10 s for the reason of the refusal");
        std::thread::sleep(Duration::from_millis(1));
    }
    host.end_daemon();
    let state = host.hypervisor.store_read(&format!("{}/state", ends.backend));
    assert_eq!(state.as_deref(), Some("6"));
    assert_eq!(std::fs::read_dir(host.records()).unwrap().count(), 0, "records are left");
    driver.release();
}

#[test]
fn devices_of_other_guests_have_other_processes() {
    let (host, processes, ends, mut driver, _file) = disk();
    let file = numbered_disk(8);
    let other_ends = host.add_disk(2, XVDA, file.path(), "r");
    let mut other = host.connect(&other_ends);
    other.start();
    assert_eq!(processes.count(), 2);
    let before = host.stat(DomId(1)).stats.counts.events_received;
    processes.kill();
    wait_for(&processes, 3);
    read(&mut other, 3);
    read(&mut driver, 2);
    assert!(host.stat(DomId(1)).stats.counts.events_received > before, "it was not replaced");
    other.close();
    host.remove(&other_ends);
    end(host, &ends, driver);
}

#[test]
fn next_process_serves_a_device_as_it_was_set_up() {
    let ((host, processes), file) = (Host::start_in_processes(), numbered_disk(8));
    host.configure("[default.disk]\nformat = \"raw\"");
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    // A change is for devices from then on, and an error too.
    for (life, text) in (1..).zip(["[default.disk]\nformat = \"qcow2\"", "a typo"]) {
        host.configure(text);
        processes.kill();
        wait_for(&processes, life + 1);
        read(&mut driver, 2);
    }
    end(host, &ends, driver);
}

#[test]
fn console_keeps_its_terminal_when_its_process_dies() {
    let (host, processes) = Host::start_in_processes();
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device3")]);
    let mut driver = host.connect(&ends);
    driver.start_with(2);
    let mut terminal = console::terminal(&host, &ends);
    let tty = || host.hypervisor.store_read(&format!("{}/tty", ends.backend));
    let before = tty();
    for life in 1..4 {
        console::print(&mut driver, b"still here");
        assert_eq!(console::read(&mut terminal, 10), b"still here");
        processes.kill();
        wait_for(&processes, life + 1);
        driver.status();
    }
    assert_eq!(tty(), before);
    console::print(&mut driver, b"and now");
    assert_eq!(console::read(&mut terminal, 7), b"and now");
    // Its end closes the terminal.
    driver.close();
    host.remove(&ends);
    assert!(terminal.read(&mut [0]).is_err());
    host.finish();
}

#[test]
fn terminal_and_sockets_outlive_the_daemon_where_something_stores_them() {
    let directory = TempDir::new().unwrap();
    let (mut host, processes) = Host::start_in_processes();
    host.configure(&format!(
        "[domain.own.virtio.0.console]\nports = [\"a\"]\ndirectory = {:?}\n",
        directory.path()
    ));
    host.hypervisor.store_write("/local/domain/1/name", "own");
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device3")]);
    let mut driver = host.connect(&ends);
    driver.start_with(6);
    let tty = host.hypervisor.store_read(&format!("{}/tty", ends.backend)).unwrap();
    let socket = host.hypervisor.store_read(&format!("{}/port/1/socket", ends.backend)).unwrap();
    assert_eq!(processes.stored_names().len(), 3, "{:?}", processes.stored_names());
    host.leave();
    // Programs connect while no daemon runs.
    let _program = UnixStream::connect(&socket).unwrap();
    host.serve_again();
    wait_for(&processes, 2);
    driver.status();
    let path = format!("{}/tty", ends.backend);
    assert_eq!(host.hypervisor.store_read(&path).as_ref(), Some(&tty), "the same terminal");
    end(host, &ends, driver);
    assert_eq!(processes.stored_names(), [""; 0], "nothing is kept of a device that is gone");
    assert!(!Path::new(&socket).exists());
}

/// A process that the test plays.
struct Liar {
    processes: GuestProcesses<ByGrants<Hypervisor>>,
    launched: mpsc::Receiver<MessageSocket>,
    ended: mpsc::Receiver<Ended>,
    ends: EndReports,
    registry: Arc<Registry>,
    hypervisor: Hypervisor,
    network: FakeNetwork,
    config: NamedTempFile,
    /// The tables of pages of all processes.
    tables: Vec<OwnedFd>,
    /// The process's socket, if it has several devices.
    control: Option<MessageSocket>,
    _records: TempDir,
}

struct Channel(mpsc::Sender<MessageSocket>);

impl Launch for Channel {
    fn launch(&self, _: DomId, control: OwnedFd) -> io::Result<Box<dyn Launched>> {
        self.0.send(MessageSocket::of(control)).unwrap();
        Ok(Box::new(Nothing))
    }
}

struct Nothing;

impl Launched for Nothing {
    fn wait(&mut self) -> String {
        "it was none".to_owned()
    }
}

/// The path of the disk of guest 1.
fn path() -> DevicePath {
    DevicePath { class: "virtio_disk".to_owned(), guest: DomId(1), number: XVDA }
}

impl Liar {
    fn new() -> Self {
        let (sender, launched) = mpsc::channel();
        let hypervisor = Hypervisor::default();
        let registry = Arc::new(Registry::default());
        let (xen, launch) = (ByGrants(hypervisor.clone()), Box::new(Channel(sender)));
        let file = NamedTempFile::new().unwrap();
        let config = ConfigFile::new(Some(file.path().to_owned()));
        let all = Arc::clone(&registry);
        let (records, network) = (TempDir::new().unwrap(), FakeNetwork::default());
        let kept = RecordDirectory::new(records.path()).unwrap();
        let shared = SharedHost::new(Some(kept), Arc::new(network.clone())).unwrap();
        let stored = StoredDescriptors::new(Arc::new(NoStore), Vec::new());
        let processes = GuestProcesses::new(xen, launch, config, all, shared, stored).unwrap();
        let (sender, ended) = mpsc::channel();
        let ends = EndReports::new(sender, Arc::new(EventFd::new().unwrap()));
        Self {
            processes,
            launched,
            ended,
            ends,
            registry,
            hypervisor,
            network,
            config: file,
            tables: Vec::new(),
            control: None,
            _records: records,
        }
    }

    /// Starts the disk; returns what the process has then: both sockets.
    fn start(&mut self) -> (MessageSocket, MessageSocket) {
        self.start_at(&path())
    }

    /// As [`Liar::start`], for another device.
    fn start_at(&mut self, path: &DevicePath) -> (MessageSocket, MessageSocket) {
        let stats = self.registry.begin(path, Arc::default());
        let guest = Guest::new(Arc::new(DaemonBudget::of_this_process()));
        let device = NewDevice { path: path.clone(), found: Found::New, guest, fault: None };
        self.processes.start(device, &stats, &self.ends).unwrap();
        let control = self.launched.try_recv().unwrap();
        let (begin, mut table) = control.receive::<Command>().unwrap().unwrap();
        let user = 1_879_048_192 + u32::from(path.guest.0);
        let is_its = matches!(begin, Command::Begin { user: its, .. } if its == user);
        assert!(is_its && table.len() == 1, "{begin:?} {table:?}");
        self.tables.append(&mut table);
        let (start, mut files) = control.receive::<Command>().unwrap().unwrap();
        let (path, fault, config_error) = (path.clone(), None, None);
        let expected = Command::Start { path, found: Found::New, fault, config_error };
        assert_eq!((start, files.len()), (expected, 3));
        (control, MessageSocket::of(files.remove(0)))
    }
}

impl Liar {
    /// Starts another device of the same process; returns its socket.
    fn start_another(&mut self, path: &DevicePath) -> MessageSocket {
        if let Some(control) = &self.control {
            let stats = self.registry.begin(path, Arc::default());
            let guest = Guest::new(Arc::new(DaemonBudget::of_this_process()));
            let device = NewDevice { path: path.clone(), found: Found::New, guest, fault: None };
            self.processes.start(device, &stats, &self.ends).unwrap();
            let (_, mut files) = control.receive::<Command>().unwrap().unwrap();
            return MessageSocket::of(files.remove(0));
        }
        let (control, device) = self.start_at(path);
        self.control = Some(control);
        device
    }

    /// Writes the configuration file.
    fn configure(&self, text: &str) {
        std::fs::write(self.config.path(), text).unwrap();
    }
}

fn ask(device: &MessageSocket, request: Request) -> Reply {
    device.send(&request, &[]).unwrap();
    device.receive::<Reply>().unwrap().unwrap().0
}

#[test]
fn process_gets_its_own_keys_and_its_own_image_only() {
    let (mut liar, disk) = (Liar::new(), numbered_disk(8));
    let backend = |key: &str| format!("/local/domain/0/backend/virtio_disk/1/{XVDA}/{key}");
    let own = disk.path().to_str().unwrap();
    let other = numbered_disk(8);
    for (key, value) in [("params", own), ("mode", "r"), ("state", "1"), ("dev", "xvda")] {
        liar.hypervisor.store_write(&backend(key), value);
    }
    liar.hypervisor.store_write("/local/domain/2/name", "another");
    let (_control, device) = liar.start();
    let store = |request| Request::Store(request);
    let read = |path: &str| store(StoreRequest::Read { path: path.to_owned() });
    assert!(matches!(ask(&device, read("domid")), Reply::StoreFailed { is_lost: true, .. }));
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    let params = format!("backend/virtio_disk/1/{XVDA}/params");
    assert_eq!(ask(&device, read(&params)), Reply::Value(Some(own.to_owned())));
    assert_eq!(ask(&device, read("/local/domain/2/name")), Reply::Value(None));
    let write = StoreRequest::Write { path: params, value: other.path().display().to_string() };
    assert_eq!(ask(&device, store(write)), Reply::Forbidden);
    assert_eq!(liar.hypervisor.store_read(&backend("params")).as_deref(), Some(own));

    let image = |request| Request::Image(request);
    let beside = disk.path().with_file_name("beside");
    let backing = || ImageRequest::ClaimBacking { path: beside.clone() };
    assert_eq!(ask(&device, image(backing())), Reply::Forbidden, "there is no target yet");
    let target = |path: &Path, access| {
        let (path, sharing) = (path.to_owned(), Sharing::Safe);
        image(ImageRequest::ClaimTarget { path, access, sharing })
    };
    for request in
        [target(other.path(), AccessMode::ReadOnly), target(disk.path(), AccessMode::ReadWrite)]
    {
        let Reply::ClaimFailed(ClaimFailure::Refused { reason, .. }) = ask(&device, request) else {
            panic!("another image was claimed");
        };
        assert!(reason.contains("configuration has changed"), "{reason}");
    }
    let claimed = ask(&device, target(disk.path(), AccessMode::ReadOnly));
    assert!(matches!(claimed, Reply::Claimed { claim: 1, is_marked: true, .. }), "{claimed:?}");
    for path in ["/etc/passwd".into(), beside.join("../../etc/passwd"), "beside".into()] {
        assert_eq!(ask(&device, image(ImageRequest::ClaimBacking { path })), Reply::Forbidden);
    }
    assert_eq!(ask(&device, image(backing())), Reply::Forbidden, "a raw image has none");
    let release = |claim| image(ImageRequest::Release { claim });
    assert_eq!(ask(&device, release(2)), Reply::Forbidden);
    assert_eq!(ask(&device, release(1)), Reply::Done);
    assert_eq!(ask(&device, release(1)), Reply::Forbidden);
}

#[test]
fn process_does_not_choose_the_backing_file_of_the_next() {
    let mut liar = Liar::new();
    let (directory, target) = image(Some(("own.img", "raw")));
    std::fs::write(directory.path().join("any.img"), [7; 512]).unwrap();
    // A guest that had it as a raw disk made it look like an image.
    create(&directory.path().join("own.img"), Some(("any.img", "raw")));
    let backend = |key: &str| format!("/local/domain/0/backend/virtio_disk/1/{XVDA}/{key}");
    for (key, value) in [("params", target.to_str().unwrap()), ("mode", "w"), ("state", "1")] {
        liar.hypervisor.store_write(&backend(key), value);
    }
    let image = |request| Request::Image(request);
    let claim = |path: &Path| {
        let (path, sharing) = (path.to_owned(), Sharing::Safe);
        image(ImageRequest::ClaimTarget { path, access: AccessMode::ReadWrite, sharing })
    };
    let find = |path: &Path| image(ImageRequest::FindBacking { image: path.to_owned() });
    let own = || Reply::Found(directory.path().join("own.img"));
    let claim_backing = |device: &MessageSocket, name: &str| {
        let path = directory.path().join(name);
        ask(device, image(ImageRequest::ClaimBacking { path }))
    };
    let (control, device) = liar.start();
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    assert!(matches!(ask(&device, claim(&target)), Reply::Claimed { claim: 1, .. }));
    assert_eq!(ask(&device, find(&target)), own());
    assert_eq!(claim_backing(&device, "any.img"), Reply::Forbidden);
    // It writes another name of the same length, and dies.
    let mut bytes = std::fs::read(&target).unwrap();
    let at = bytes.windows(7).position(|name| name == b"own.img").unwrap();
    bytes[at..at + 7].copy_from_slice(b"any.img");
    std::fs::write(&target, bytes).unwrap();
    drop((control, device));
    liar.ended.recv_timeout(Duration::from_secs(10)).expect("the end of the disk");

    let claim_soon = |device: &MessageSocket, path: &Path| {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let claimed = ask(device, claim(path));
            if matches!(claimed, Reply::Claimed { .. }) {
                break;
            }
            assert!(Instant::now() < end, "waited 10 s for the image: {claimed:?}");
        }
    };
    let (control, device) = liar.start();
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    claim_soon(&device, &target);
    assert_eq!(ask(&device, find(&target)), own());
    assert_eq!(claim_backing(&device, "any.img"), Reply::Forbidden);
    assert!(matches!(claim_backing(&device, "own.img"), Reply::Claimed { .. }));
    drop((control, device));
    liar.ended.recv_timeout(Duration::from_secs(10)).expect("the end of the disk");

    // The toolstack gives the disk an overlay of that image.
    let overlay = directory.path().join("overlay.qcow2");
    create(&overlay, Some(("disk.qcow2", "qcow2")));
    liar.hypervisor.store_write(&backend("params"), overlay.to_str().unwrap());
    let (_control, device) = liar.start();
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    claim_soon(&device, &overlay);
    assert_eq!(ask(&device, find(&overlay)), Reply::Found(target.clone()));
    assert_eq!(ask(&device, find(&target)), own());
    assert_eq!(claim_backing(&device, "any.img"), Reply::Forbidden);
    for name in ["disk.qcow2", "own.img"] {
        assert!(matches!(claim_backing(&device, name), Reply::Claimed { .. }), "{name}");
    }
}

#[test]
fn image_that_a_process_has_open_all_the_same_stays_claimed() {
    let (mut liar, disk) = (Liar::new(), numbered_disk(8));
    let target = disk.path();
    for guest in [1, 2] {
        let backend = format!("/local/domain/0/backend/virtio_disk/{guest}/{XVDA}");
        for (key, value) in [("params", target.to_str().unwrap()), ("mode", "w"), ("state", "1")] {
            liar.hypervisor.store_write(&format!("{backend}/{key}"), value);
        }
    }
    let image = |request| Request::Image(request);
    let claim = || {
        let (path, sharing) = (target.to_owned(), Sharing::Safe);
        image(ImageRequest::ClaimTarget { path, access: AccessMode::ReadWrite, sharing })
    };
    let (control, device) = liar.start();
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    device.send(&claim(), &[]).unwrap();
    let (claimed, file) = device.receive::<Reply>().unwrap().unwrap();
    assert!(matches!(claimed, Reply::Claimed { claim: 1, .. }), "{claimed:?}");
    assert_eq!(ask(&device, image(ImageRequest::Release { claim: 1 })), Reply::Done);
    let (_other_control, other) = liar.start_at(&DevicePath { guest: DomId(2), ..path() });
    assert_eq!(ask(&other, Request::OpenStore), Reply::Done);
    let refused = ask(&other, claim());
    assert!(matches!(refused, Reply::ClaimFailed(_)), "{refused:?}");
    drop((file, device, control));
    liar.processes.forget_device(&path());
    let end = Instant::now() + Duration::from_secs(10);
    while !matches!(ask(&other, claim()), Reply::Claimed { .. }) {
        assert!(Instant::now() < end, "waited 10 s for the image");
    }
}

#[test]
fn service_of_a_device_ends_with_what_its_process_reports() {
    let mut liar = Liar::new();
    let (control, device) = liar.start();
    let ended = Ended { path: path(), outcome: Outcome::Over, is_detached: false };
    let stats = Box::new(DeviceStats::default().snapshot());
    control.send(&Event::Ended { ended: ended.clone(), stats }, &[]).unwrap();
    assert_eq!(liar.ended.recv_timeout(Duration::from_secs(10)), Ok(ended));
    assert!(device.receive::<Reply>().unwrap().is_none(), "its socket is closed");
}

#[test]
fn process_that_cannot_start_says_why() {
    let mut liar = Liar::new();
    let (control, _device) = liar.start();
    control.send(&Event::CannotStart { reason: "no root".to_owned() }, &[]).unwrap();
    drop(control);
    let ended = liar.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(ended.outcome, Outcome::Unreported("no root".to_owned()));
}

#[test]
fn process_that_changes_its_table_of_pages_harms_no_other() {
    let mut liar = Liar::new();
    let (control, _device) = liar.start();
    let table = liar.tables.pop().unwrap();
    rustix::fs::fcntl_setfl(&table, rustix::fs::OFlags::APPEND).unwrap();
    drop(control);
    liar.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    // It takes the same slot.
    let (_control, _device) = liar.start();
}

#[test]
fn process_gets_sockets_interfaces_and_records_of_its_device_only() {
    let mut liar = Liar::new();
    let sockets = TempDir::new().unwrap();
    let socket = sockets.path().join("vsock");
    liar.configure(&format!("[domain.own.virtio.1.vsock]\npath = {socket:?}\n"));
    liar.hypervisor.store_write("/local/domain/1/name", "own");
    for (number, kind) in [(0, "virtio,device1"), (1, "virtio,device13")] {
        let backend = format!("/local/domain/0/backend/virtio/1/{number}");
        liar.hypervisor.store_write(&format!("{backend}/type"), kind);
    }
    let [net, vsock] = [0, 1]
        .map(|number| DevicePath { class: "virtio".to_owned(), guest: DomId(1), number })
        .map(|path| liar.start_another(&path));
    for device in [&net, &vsock] {
        assert_eq!(ask(device, Request::OpenStore), Reply::Done);
    }

    let listen = |path: &Path| Request::Listen { path: path.to_owned() };
    assert_eq!(ask(&net, listen(&socket)), Reply::Forbidden, "another device's");
    assert_eq!(ask(&vsock, listen(&sockets.path().join("another"))), Reply::Forbidden);
    let connect = |device, port| ask(device, Request::Connect { port });
    assert!(matches!(connect(&net, 7), Reply::Failed { .. }));
    assert_eq!(ask(&vsock, listen(&socket)), Reply::Done);
    assert!(matches!(connect(&vsock, 7), Reply::Failed { number: Some(libc::ENOENT), .. }));
    let _program = UnixListener::bind(sockets.path().join("vsock_7")).unwrap();
    assert_eq!(connect(&vsock, 7), Reply::Done);

    assert!(matches!(ask(&vsock, Request::AttachInterface), Reply::Failed { .. }));
    assert_eq!(ask(&vsock, Request::LinkState), Reply::Forbidden);
    net.send(&Request::AttachInterface, &[]).unwrap();
    let (attached, files) = net.receive::<Reply>().unwrap().unwrap();
    let bridge = Some("xenbr0".to_owned());
    assert_eq!((attached, files.len()), (Reply::Attached { mtu: 1500, bridge }, 2));
    assert_eq!(ask(&net, Request::LinkState), Reply::Answer(true));
    for (key, own, other) in [("bridge", "xenbr0", "xenbr1"), ("tap", "virtio1.0", "virtio1.1")] {
        for (value, reply) in [(own, Reply::Done), (other, Reply::Forbidden)] {
            let (path, value) = (format!("backend/virtio/1/0/{key}"), value.to_owned());
            let write = StoreRequest::Write { path, value };
            assert_eq!(ask(&net, Request::Store(write)), reply, "{key}");
        }
    }
    let name = liar.network.names().remove(0);
    liar.network.link(&name).set_link(LinkState::Down);
    let mut changed = [AwaitedFd::readable(files[1].as_fd())];
    wait_by_poll(&mut changed, Duration::from_secs(10)).unwrap();
    assert!(changed[0].is_ready, "waited 10 s for news of the link");
    assert_eq!(ask(&net, Request::LinkState), Reply::Answer(false));

    let record = |request| Request::Record(request);
    assert_eq!(ask(&net, record(RecordRequest::Open)), Reply::Answer(false));
    assert_eq!(ask(&net, record(RecordRequest::Create)), Reply::Done);
    assert_eq!(ask(&net, record(RecordRequest::Open)), Reply::Answer(true));
    assert_eq!(ask(&vsock, record(RecordRequest::Open)), Reply::Answer(false), "another's");
    assert_eq!(ask(&net, record(RecordRequest::Remove)), Reply::Done);
    assert_eq!(ask(&net, record(RecordRequest::Open)), Reply::Answer(false));
}

/// A script that notes each of its runs in a file beside it, and exits with this status; if it is
/// to fail, when there is a file `go`.
fn script(status: i32) -> (TempDir, String) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("vif-test");
    let text = format!(
        "#!/bin/sh\necho $* $vif $XENBUS_PATH $mac $bridge $ip $netdev >>{}\n\
         [ {status} = 0 ] || until [ -e {} ]; do sleep 0.01; done\nexit {status}\n",
        directory.path().join("runs").display(),
        directory.path().join("go").display(),
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let path = path.display().to_string();
    (directory, path)
}

/// Waits until a script has noted so many runs.
fn wait_for_runs(script: &TempDir, count: usize) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let runs = std::fs::read_to_string(script.path().join("runs")).unwrap_or_default();
        if runs.lines().count() >= count && runs.ends_with('\n') {
            return runs.lines().map(str::to_owned).collect();
        }
        assert!(Instant::now() < end, "waited 10 s for run {count} of a script: {runs}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A guest's network device with a script, which its process may open.
fn with_script(path: &str) -> (Liar, DevicePath) {
    let liar = Liar::new();
    liar.configure(&format!(
        "[domain.own.virtio.0.net]\nscript = {path:?}\nbridge = \"ovs.7\"\ngateway = \"up\"\n\
         mac = \"00:16:3e:00:00:05\"\nlock-addresses = [\"192.0.2.5\", \"2001:db8::5\"]\n",
    ));
    liar.hypervisor.store_write("/local/domain/1/name", "own");
    liar.hypervisor.store_write("/local/domain/0/backend/virtio/1/0/type", "virtio,device1");
    (liar, DevicePath { class: "virtio".to_owned(), guest: DomId(1), number: 0 })
}

#[test]
fn script_attaches_an_interface_and_takes_it_back_when_the_interface_is_gone() {
    let (runs, path) = script(0);
    let (mut liar, device) = with_script(&path);
    for life in 0..2 {
        let (control, socket) = liar.start_at(&device);
        assert_eq!(ask(&socket, Request::OpenStore), Reply::Done);
        let attached = Reply::Attached { mtu: 1500, bridge: None };
        assert_eq!(ask(&socket, Request::AttachInterface), attached, "life {life}");
        if life == 1 {
            assert!(liar.network.pull_out("virtio1.0"));
        }
        drop((control, socket));
        liar.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    }
    let rest = "type_if=vif virtio1.0 backend/virtio/1/0 00:16:3e:00:00:05 ovs.7 192.0.2.5 \
                2001:db8::5 up";
    let expected = [format!("online {rest}"), format!("offline {rest}")];
    assert_eq!(wait_for_runs(&runs, 2), expected, "the second process found it attached");
    // The process may not choose what the script reads.
    let (_control, socket) = liar.start_at(&device);
    assert_eq!(ask(&socket, Request::OpenStore), Reply::Done);
    assert_eq!(ask(&socket, Request::AttachInterface), Reply::Attached { mtu: 1500, bridge: None });
    for (key, value) in [("bridge", "ovs.8"), ("mac", "00:16:3e:00:00:06"), ("ip", "192.0.2.6")] {
        let path = format!("backend/virtio/1/0/{key}");
        let write = StoreRequest::Write { path, value: value.to_owned() };
        assert_eq!(ask(&socket, Request::Store(write)), Reply::Forbidden, "{key}");
    }
    let again = ask(&socket, Request::AttachInterface);
    assert!(matches!(again, Reply::Failed { .. }), "a second interface: {again:?}");
    let published = |key| {
        let key = format!("/local/domain/0/backend/virtio/1/0/{key}");
        liar.hypervisor.store_read(&key)
    };
    assert_eq!(published("script"), Some(path));
    assert_eq!(published("bridge").as_deref(), Some("ovs.7"));
    assert_eq!(published("ip").as_deref(), Some("192.0.2.5 2001:db8::5"));
    assert_eq!(published("mac").as_deref(), Some("00:16:3e:00:00:05"));
    assert_eq!(published("netdev"), None);
}

#[test]
fn device_whose_script_fails_has_the_scripts_words() {
    let (runs, path) = script(3);
    let (mut liar, device) = with_script(&path);
    let said = "/local/domain/0/backend/virtio/1/0/hotplug-error";
    liar.hypervisor.store_write(said, "an earlier script's");
    let (_control, socket) = liar.start_at(&device);
    assert_eq!(ask(&socket, Request::OpenStore), Reply::Done);
    socket.send(&Request::AttachInterface, &[]).unwrap();
    wait_for_runs(&runs, 1);
    assert_eq!(liar.hypervisor.store_read(said), None);
    liar.hypervisor.store_write(said, "no\nswitch");
    std::fs::write(runs.path().join("go"), "").unwrap();
    let Some((Reply::Failed { reason, .. }, _)) = socket.receive::<Reply>().unwrap() else {
        panic!("it was attached");
    };
    let expected = format!("the script {path} failed, exit status: 3: no\\nswitch");
    assert_eq!(reason, expected);
    let actions = wait_for_runs(&runs, 2);
    assert!(actions[0].starts_with("online ") && actions[1].starts_with("offline "), "{actions:?}");

    std::fs::remove_file(&path).unwrap();
    assert!(liar.network.pull_out("virtio1.0"));
    let Reply::Failed { reason, .. } = ask(&socket, Request::AttachInterface) else {
        panic!("it was attached");
    };
    assert!(reason.starts_with(&format!("cannot start the script {path}: No such")), "{reason}");
}

#[test]
fn process_that_speaks_another_language_is_given_up() {
    for on_control in [true, false] {
        let mut liar = Liar::new();
        let (control, device) = liar.start();
        // Of devices that it does not have, it may say what it likes.
        let other = DevicePath { number: 1, ..path() };
        let ended = Ended { path: other.clone(), outcome: Outcome::Over, is_detached: false };
        let stats = Box::new(DeviceStats::default().snapshot());
        control.send(&Event::Ended { ended, stats: stats.clone() }, &[]).unwrap();
        control.send(&Event::Stats { path: other, stats: Some(stats) }, &[]).unwrap();
        let socket = if on_control { &control } else { &device };
        socket.send(&"rm -rf /", &[]).unwrap();
        let limit = Duration::from_secs(10);
        let ended = liar.ended.recv_timeout(limit).expect("the end of the disk in 10 s");
        let expected = Ended { path: path(), outcome: Outcome::Died, is_detached: false };
        assert_eq!(ended, expected);
        assert!(control.receive::<Command>().unwrap().is_none(), "it is told to end");
    }
}

#[test]
fn process_that_does_not_answer_is_waited_for_once() {
    let mut liar = Liar::new();
    let (_control, device) = liar.start();
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    assert_eq!(liar.registry.report().devices.len(), 1);
    // The next reports ask it no more: its socket would be full some day.
    for _ in 0..10_000 {
        liar.registry.report();
    }
}

#[test]
fn process_gets_the_backing_file_that_its_image_names_only() {
    let (directory, target) = image(Some(("base", "raw")));
    let directory = directory.path().canonicalize().unwrap();
    for name in ["base", "another"] {
        std::fs::write(directory.join(name), [0; 512]).unwrap();
    }
    let mut liar = Liar::new();
    let backend = |key: &str| format!("/local/domain/0/backend/virtio_disk/1/{XVDA}/{key}");
    let path = target.to_str().unwrap();
    for (key, value) in [("params", path), ("mode", "r"), ("state", "1"), ("dev", "xvda")] {
        liar.hypervisor.store_write(&backend(key), value);
    }
    let (_control, device) = liar.start();
    assert_eq!(ask(&device, Request::OpenStore), Reply::Done);
    let (access, sharing) = (AccessMode::ReadOnly, Sharing::Safe);
    let claim = ImageRequest::ClaimTarget { path: target, access, sharing };
    assert!(matches!(ask(&device, Request::Image(claim)), Reply::Claimed { claim: 1, .. }));
    let backing = |name: &str| {
        let path = directory.join(name);
        [ImageRequest::Identify { path: path.clone() }, ImageRequest::ClaimBacking { path }]
    };
    for request in backing("another") {
        assert_eq!(ask(&device, Request::Image(request)), Reply::Forbidden);
    }
    let [identify, claim] = backing("base");
    assert!(matches!(ask(&device, Request::Image(identify)), Reply::Identity(_)));
    assert!(matches!(ask(&device, Request::Image(claim)), Reply::Claimed { claim: 2, .. }));
}
