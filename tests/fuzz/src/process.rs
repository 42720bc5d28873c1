//! The supervisor, against a hostile process of a guest.
//!
//! Each line of an input is a message: `c` and its text go to the supervisor by the control socket,
//! `d` and its text by the device's.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use tempfile::{NamedTempFile, TempDir};
use xen::DomId;
use xen_sim::Hypervisor;
use xen_virtiod::bus::DevicePath;
use xen_virtiod::config::ConfigFile;
use xen_virtiod::daemon::descriptor_store::{NoStore, StoredDescriptors};
use xen_virtiod::daemon::guest_processes::GuestProcesses;
use xen_virtiod::daemon::launch::{Launch, Launched};
use xen_virtiod::daemon::registry::Registry;
use xen_virtiod::daemon::runner::{EndReports, Runner, SharedHost};
use xen_virtiod::dma::budget::DaemonBudget;
use xen_virtiod::domain::ByGrants;
use xen_virtiod::guest::Guest;
use xen_virtiod::process::device_thread::{Found, NewDevice};
use xen_virtiod::process::message::Command;
use xen_virtiod::process::message_socket::MessageSocket;
use xen_virtiod::record::RecordDirectory;
use xen_virtiod::tap::network::{Attached, Exported, InterfaceRequest, Network, NetworkError};

/// Maximum number of messages of an input.
const MESSAGES: usize = 32;
/// Time in which the supervisor answers.
const LIMIT: Duration = Duration::from_secs(10);

const BACKEND: &str = "/local/domain/0/backend/virtio_disk/1/7";

/// Passes the process's end of its socket on.
struct Played(mpsc::Sender<OwnedFd>);

impl Launch for Played {
    fn launch(&self, _: DomId, control: OwnedFd) -> io::Result<Box<dyn Launched>> {
        self.0.send(control).unwrap();
        Ok(Box::new(Nothing))
    }
}

struct Nothing;

impl Launched for Nothing {
    fn wait(&mut self) -> String {
        "played".to_owned()
    }
}

/// A host without interfaces: a disk gets none.
struct NoNetwork;

impl Network for NoNetwork {
    fn attach(&self, request: InterfaceRequest) -> Result<Attached, NetworkError> {
        panic!("a disk gets {}", request.name);
    }

    fn attach_for_process(&self, request: InterfaceRequest) -> Result<Exported, NetworkError> {
        panic!("a disk gets {}", request.name);
    }

    fn remove_left(&self, _: &BTreeSet<String>) -> io::Result<()> {
        Ok(())
    }
}

/// The keys that the process must not change, and their values.
fn keys(target: &str) -> [(String, String); 6] {
    let own = |key: &str, value: &str| (format!("{BACKEND}/{key}"), value.to_owned());
    let frontend = "/local/domain/1/device/virtio_disk/7";
    [
        own("params", target),
        own("mode", "r"),
        own("dev", "xvda"),
        own("frontend", frontend),
        (format!("{frontend}/state"), "1".to_owned()),
        ("/local/domain/2/name".to_owned(), "another".to_owned()),
    ]
}

pub(crate) fn run(bytes: &[u8]) {
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("image");
    std::fs::write(&target, [0; 4096]).unwrap();
    let hypervisor = Hypervisor::default();
    let keys = keys(target.to_str().unwrap());
    keys.iter().for_each(|(key, value)| hypervisor.store_write(key, value));
    hypervisor.store_write(&format!("{BACKEND}/state"), "1");

    let (sender, launched) = mpsc::channel();
    let file = NamedTempFile::new().unwrap();
    let config = ConfigFile::new(Some(file.path().to_owned()));
    let registry = Arc::new(Registry::default());
    let (xen, launch) = (ByGrants(hypervisor.clone()), Box::new(Played(sender)));
    let records = RecordDirectory::new(&directory.path().join("records")).unwrap();
    let shared = SharedHost::new(Some(records), Arc::new(NoNetwork)).unwrap();
    let all = Arc::clone(&registry);
    let stored = StoredDescriptors::new(Arc::new(NoStore), Vec::new());
    let mut processes = GuestProcesses::new(xen, launch, config, all, shared, stored).unwrap();
    let (sender, ended) = mpsc::channel();
    let ends = EndReports::new(sender, Arc::new(EventFd::new().unwrap()));
    let path = DevicePath { class: "virtio_disk".to_owned(), guest: DomId(1), number: 7 };
    let guest = Guest::new(Arc::new(DaemonBudget::of_this_process()));
    let stats = registry.begin(&path, Arc::clone(&guest.log));
    let device = NewDevice { path, found: Found::New, guest, fault: None };
    processes.start(device, &stats, &ends).unwrap();

    let control = MessageSocket::of(launched.try_recv().unwrap());
    let (_, begin) = control.receive::<Command>().unwrap().unwrap();
    let (_, mut start) = control.receive::<Command>().unwrap().unwrap();
    assert_eq!((begin.len(), start.len()), (1, 3));
    let device = UnixDatagram::from(start.swap_remove(0));
    let control = UnixDatagram::from(control.into_descriptor());
    device.set_read_timeout(Some(LIMIT)).unwrap();
    play(bytes, &control, &device);
    // The image's file and the other descriptors are closed with the process.
    drop((control, device, start, begin));
    ended.recv_timeout(LIMIT).expect("the end of the device");
    for (key, value) in &keys {
        assert_eq!(hypervisor.store_read(key).as_ref(), Some(value), "{key}");
    }
    registry.report();
}

/// Sends the messages, and takes the answer to each of the device's, until the supervisor hangs up.
fn play(bytes: &[u8], control: &UnixDatagram, device: &UnixDatagram) {
    for line in bytes.split(|byte| *byte == b'\n').take(MESSAGES) {
        let Some((socket, text)) = line.split_first().filter(|(_, text)| !text.is_empty()) else {
            continue;
        };
        if *socket == b'c' {
            if control.send(text).is_err() {
                return;
            }
            continue;
        }
        if device.send(text).is_err() {
            return;
        }
        let answered = device.recv(&mut [0; 1]).expect("an answer in time");
        if answered == 0 {
            return;
        }
    }
}
