//! Dom0: the daemon's server in a thread, a toolstack, and the programs on the host that use the
//! device.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use libc::{O_NOCTTY, O_NONBLOCK};
use tempfile::TempDir;
use xen::DomId;
use xen_sim::Hypervisor;
use xen_virtiod::bus::{Ending, StopSignal};
use xen_virtiod::config::ConfigFile;
use xen_virtiod::daemon::registry::Registry;
use xen_virtiod::daemon::runner::SharedHost;
use xen_virtiod::daemon::server::{Server, ServerError};
use xen_virtiod::domain::ByGrants;

use super::Kind;
use super::network::Cable;

/// The guest's domain ID.
pub(super) const GUEST: u16 = 1;
/// How long the daemon may take to close a device, and to stop.
const LIMIT: Duration = Duration::from_secs(10);
/// Size of the disk in bytes.
const DISK: usize = 64 << 10;

/// Number of panics in all threads. The daemon survives a panic in a device's thread, but a target
/// must report it.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The files of this process, which all runs share.
struct Files {
    directory: TempDir,
}

impl Files {
    fn get() -> &'static Self {
        static FILES: OnceLock<Files> = OnceLock::new();
        FILES.get_or_init(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                PANICS.fetch_add(1, Ordering::Relaxed);
                report(panic);
            }));
            let files = Files { directory: TempDir::new().unwrap() };
            fs::write(files.path("disk"), vec![0x5a; DISK]).unwrap();
            files
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration for a device of this kind.
    fn configure(&self, kind: Kind) -> ConfigFile {
        let section = match kind {
            Kind::Socket => format!("vsock]\npath = {:?}", self.path("guest")),
            Kind::Console => {
                let directory = self.directory.path();
                format!("console]\nports = [\"agent\", \"log\"]\ndirectory = {directory:?}")
            }
            Kind::Block | Kind::Image | Kind::Network | Kind::Entropy => "rng]".to_owned(),
        };
        let text = match kind {
            Kind::Block | Kind::Image | Kind::Network => String::new(),
            _ => format!("[domain.web1.virtio.0.{section}\n"),
        };
        // Poll for a short time only, so that more inputs run.
        fs::write(self.path("config"), format!("[default]\npoll = \"50us\"\n{text}")).unwrap();
        ConfigFile::new(Some(self.path("config")))
    }
}

/// A program on the host that uses the device.
#[derive(Debug)]
enum Program {
    Packets(UnixDatagram),
    Terminal(File),
    Stream(UnixStream),
}

/// The daemon and its environment.
pub(super) struct Setting {
    pub(super) kind: Kind,
    pub(super) hypervisor: Hypervisor,
    pub(super) backend: String,
    pub(super) frontend: String,
    programs: Vec<Program>,
    listener: Option<UnixListener>,
    stop: Arc<StopSignal>,
    ended: Receiver<Result<(), ServerError>>,
    panics: usize,
}

impl Setting {
    /// Starts the daemon with one device, which the toolstack has just added. `image` is the
    /// content of a disk's qcow2 image.
    pub(super) fn start(kind: Kind, image: Option<&[u8]>) -> Self {
        let files = Files::get();
        if let Some(image) = image {
            fs::write(files.path("disk.qcow2"), image).unwrap();
        }
        let panics = PANICS.load(Ordering::Relaxed);
        let hypervisor = Hypervisor::default();
        let (cable, far) = Cable::new();
        let registry = Arc::new(Registry::default());
        let config = files.configure(kind);
        let shared = SharedHost::new(None, Arc::new(cable)).expect("a descriptor");
        let server = Server::new(ByGrants(hypervisor.clone()), registry, config, shared);
        let server = server.expect("the daemon starts");
        let stop = Arc::new(StopSignal::new().unwrap());
        let (stopped, (end, ended)) = (Arc::clone(&stop), mpsc::channel());
        thread::spawn(move || drop(end.send(server.run(&stopped))));
        let is_disk = matches!(kind, Kind::Block | Kind::Image);
        let class = if is_disk { "virtio_disk" } else { "virtio" };
        let setting = Self {
            kind,
            hypervisor,
            backend: format!("/local/domain/0/backend/{class}/{GUEST}/0"),
            frontend: format!("/local/domain/{GUEST}/device/{class}/0"),
            programs: vec![Program::Packets(far)],
            listener: None,
            stop,
            ended,
            panics,
        };
        setting.add_device();
        setting
    }

    fn add_device(&self) {
        let write = |path: String, value: &str| self.hypervisor.store_write(&path, value);
        let backend = |key: &str| format!("{}/{key}", self.backend);
        write(format!("/local/domain/{GUEST}/name"), "web1");
        write(format!("{}/state", self.frontend), "1");
        write(backend("frontend"), &self.frontend);
        write(backend("online"), "1");
        let number = match self.kind {
            Kind::Block | Kind::Image => {
                let name = if self.kind == Kind::Image { "disk.qcow2" } else { "disk" };
                let disk = Files::get().path(name);
                write(backend("params"), disk.to_str().unwrap());
                write(backend("mode"), "w");
                write(backend("discard-enable"), "1");
                write(backend("device-type"), "disk");
                write(backend("dev"), "xvda");
                return write(backend("state"), "1");
            }
            Kind::Network => "1",
            Kind::Console => "3",
            Kind::Entropy => "4",
            Kind::Socket => "13",
        };
        write(backend("type"), &format!("virtio,device{number}"));
        write(backend("state"), "1");
    }

    /// Waits up to `limit` until the backend's state is one of `states`; returns whether it is.
    pub(super) fn wait_state(&self, limit: Duration, states: &[Option<&str>]) -> bool {
        let state = self.hypervisor.store_watch(&format!("{}/state", self.backend));
        state.wait_for(limit, |value| states.contains(&value))
    }

    /// Another program on the host connects to the device.
    pub(super) fn come(&mut self) {
        if self.programs.len() > 8 {
            return;
        }
        let files = Files::get();
        let stream = |name: &str| UnixStream::connect(files.path(name)).ok().map(Program::Stream);
        let program = match self.kind {
            Kind::Console if self.programs.len().is_multiple_of(2) => stream("web1-0-agent.sock"),
            Kind::Console => self.open_terminal(),
            Kind::Socket if self.listener.is_none() => {
                let _ = fs::remove_file(files.path("guest_52"));
                self.listener = UnixListener::bind(files.path("guest_52")).ok();
                self.listener.iter().for_each(|of| of.set_nonblocking(true).unwrap());
                None
            }
            Kind::Socket => match self.listener.as_ref().map(UnixListener::accept) {
                Some(Ok((accepted, _))) => Some(Program::Stream(accepted)),
                _ => stream("guest"),
            },
            Kind::Block | Kind::Image | Kind::Network | Kind::Entropy => None,
        };
        if let Some(Program::Stream(stream)) = &program {
            stream.set_nonblocking(true).unwrap();
        }
        self.programs.extend(program);
    }

    fn open_terminal(&self) -> Option<Program> {
        let path = self.hypervisor.store_read(&format!("{}/tty", self.backend))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(O_NOCTTY | O_NONBLOCK);
        options.open(path).ok().map(Program::Terminal)
    }

    /// A program writes `bytes`, or reads if they are empty.
    pub(super) fn say(&mut self, which: u8, bytes: &[u8]) {
        let number = usize::from(which) % self.programs.len();
        let mut buffer = [0; 4096];
        // Either may fail: the device decides whether it takes or has data.
        let _ = match (&mut self.programs[number], bytes.is_empty()) {
            (Program::Packets(far), false) => far.send(bytes),
            (Program::Packets(far), true) => far.recv(&mut buffer),
            (Program::Terminal(terminal), false) => terminal.write(bytes),
            (Program::Terminal(terminal), true) => terminal.read(&mut buffer),
            (Program::Stream(stream), false) => stream.write(bytes),
            (Program::Stream(stream), true) => stream.read(&mut buffer),
        };
    }

    /// A program disconnects.
    pub(super) fn go(&mut self, which: u8) {
        // Program 0, the far end of the cable, stays.
        if self.programs.len() > 1 {
            let number = 1 + usize::from(which) % (self.programs.len() - 1);
            drop(self.programs.swap_remove(number));
        }
    }

    /// The toolstack removes the device, as `xl destroy` does.
    pub(super) fn destroy(&self) {
        self.hypervisor.store_write(&format!("{}/online", self.backend), "0");
        if self.hypervisor.store_read(&format!("{}/state", self.backend)).is_some() {
            self.hypervisor.store_write(&format!("{}/state", self.backend), "5");
        }
        assert!(self.wait_state(LIMIT, &[None, Some("6")]), "waited 10 s for state 6");
        let guest = DomId(GUEST);
        assert_eq!(self.hypervisor.mapped_pages(guest), 0, "pages stay mapped");
        self.hypervisor.store_remove(&self.frontend);
        self.hypervisor.store_remove(&self.backend);
    }

    /// Stops the daemon. Panics if the daemon leaves mappings or bindings, or if a thread panicked.
    pub(super) fn end(self) {
        self.stop.give(Ending::End).unwrap();
        let ended = self.ended.recv_timeout(LIMIT).expect("waited 10 s for the daemon to stop");
        ended.expect("the daemon ended by itself");
        self.hypervisor.assert_clean();
        assert_eq!(PANICS.load(Ordering::Relaxed), self.panics, "a thread panicked");
    }
}
