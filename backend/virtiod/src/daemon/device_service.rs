//! The supervisor's end of a device in its guest's process: does what the device asks for, if that
//! is the device's own.
//!
//! A thread of its own serves each device, so that none waits for another's XenStore.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use protocol::binding::backend_key;
use tracing::Level;
use uring::waiting::wait_by_poll;

use super::image_service::{Answer, ImageService, KeptClaims};
use super::runner::StartError;
use super::terminal_service::KeptTerminals;
use crate::Causes;
use crate::bus::keys::Remover;
use crate::bus::{DevicePath, Keys};
use crate::config::{ConfigFile, MAX_PORTS};
use crate::device::AwaitedFd;
use crate::process::device_thread::OpenedHook;
use crate::process::message::{Reply, Request, StoreRequest};
use crate::process::message_socket::{MessageError, MessageSocket};
use crate::stats::DeviceStats;
use xen::{StoreError, Xen, XenStore};

/// Keys of a backend's directory that its device may write, besides those of its ports.
const WRITABLE: [&str; 11] = [
    backend_key::REVISION,
    backend_key::MAX_MESSAGE_SIZE,
    backend_key::TRANSPORT_FEATURES,
    backend_key::BUS_FEATURES,
    "state",
    "error",
    "tty",
    "tap",
    "mac",
    "bridge",
    "cid",
];

/// A device in its guest's process.
pub(super) struct ServedDevice {
    /// The supervisor's end of its socket.
    pub(super) socket: MessageSocket,
    /// Tells it of changes in XenStore.
    pub(super) fired: EventFd,
    pub(super) path: DevicePath,
    pub(super) config: ConfigFile,
    pub(super) stats: Arc<DeviceStats>,
    /// Called when it was opened.
    pub(super) opened: OpenedHook,
    /// What earlier processes had claimed.
    pub(super) kept: KeptClaims,
    /// The terminals of consoles.
    pub(super) terminals: KeptTerminals,
    /// Its process.
    pub(super) process: Arc<dyn HangUp>,
}

/// A process whose devices the supervisor can give up.
pub(super) trait HangUp: Send + Sync {
    /// Ends the process, and with it all of its devices.
    fn hang_up(&self);
}

/// Gives a process up when its service ends before it does, also in a panic: the process would wait
/// for answers for ever.
struct GivenUp(Option<Arc<dyn HangUp>>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.hang_up();
        }
    }
}

/// What the supervisor does for one device.
pub(super) struct DeviceService<X: Xen> {
    xen: X,
    device: ServedDevice,
    keys: Option<Keys<X::Store>>,
    own: OwnKeys,
    images: ImageService,
}

impl<X: Xen> DeviceService<X> {
    /// Starts the service of a device, which ends with the other end of its socket.
    ///
    /// # Errors
    /// [`StartError::Thread`].
    pub(super) fn start(xen: X, device: ServedDevice) -> Result<(), StartError> {
        let name = format!("{}-{}", device.path.guest.0, device.path.number);
        let own = OwnKeys::new(&device.path);
        let images = ImageService::new(&device.path, device.kept.clone());
        let mut service = Self { xen, device, keys: None, own, images };
        let body = move || {
            let mut given_up = GivenUp(Some(Arc::clone(&service.device.process)));
            match service.serve() {
                Ok(()) => given_up.0 = None,
                Err(error) => {
                    let path = &service.device.path;
                    tracing::warn!(%path, "the device's process is given up: {}", Causes(&error));
                }
            }
            service.images.leave();
        };
        thread::Builder::new().name(name).spawn(body).map(drop).map_err(StartError::Thread)
    }

    fn serve(&mut self) -> Result<(), ServiceError> {
        loop {
            if self.wait()? {
                let socket = &self.device.socket;
                let Some((request, _)) = socket.receive::<Request>()? else { return Ok(()) };
                let (reply, files) = self.answer(request);
                // An image belongs to the other process alone from then on: see `IoMark`.
                let copies: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                self.device.socket.send(&reply, &copies)?;
            }
            // An event that arrived with an answer no longer makes the descriptor readable.
            self.pass_events_on()?;
        }
    }

    /// Waits for a request, or for an event of XenStore's; returns whether there is a request.
    fn wait(&self) -> io::Result<bool> {
        let mut fds = vec![AwaitedFd::readable(self.device.socket.as_fd())];
        let store = self.keys.iter().map(Keys::store_ref);
        fds.extend(store.map(|store| AwaitedFd::readable(store.as_fd())));
        wait_by_poll(&mut fds, Duration::MAX)?;
        Ok(fds.first().is_some_and(|fd| fd.is_ready))
    }

    /// Tells the device of events. One that cannot be taken is told of too: the device's next
    /// request fails.
    fn pass_events_on(&mut self) -> io::Result<()> {
        let Some(keys) = &mut self.keys else { return Ok(()) };
        match keys.store().take_events() {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(_) => self.keys = None,
        }
        self.device.fired.write(1)?;
        Ok(())
    }

    fn answer(&mut self, request: Request) -> Answer {
        let ServedDevice { path, config, stats, opened, .. } = &self.device;
        match (request, &mut self.keys) {
            (Request::Opened(snapshot), _) => {
                stats.set_remote(*snapshot);
                opened(path, stats);
                (Reply::Done, Vec::new())
            }
            (Request::OpenTerminal, _) => self.open_terminal(),
            (Request::OpenStore, _) => (self.open_store(), Vec::new()),
            (Request::Image(request), keys) => self.images.answer(request, keys.as_mut(), config),
            (_, None) => (lost("it was lost".to_owned()), Vec::new()),
            (Request::Store(request), Some(keys)) => match self.own.permit(&request) {
                Permit::Directory => (remove_directory(keys), Vec::new()),
                Permit::Yes => (reply(in_store(keys.store(), request)), Vec::new()),
                Permit::Nothing => (Reply::Value(None), Vec::new()),
                Permit::No => {
                    let line = format_args!("refused to the device's process: {request:?}");
                    stats.log.line(Level::WARN, line);
                    (Reply::Forbidden, Vec::new())
                }
            },
        }
    }

    fn open_terminal(&self) -> Answer {
        match self.device.terminals.open(&self.device.path) {
            Ok((path, ends)) => (Reply::Terminal { path }, ends.into()),
            Err(error) => {
                (Reply::TerminalFailed { reason: Causes(&error).to_string() }, Vec::new())
            }
        }
    }

    fn open_store(&mut self) -> Reply {
        let path = &self.device.path;
        let opened = self.xen.store().and_then(|store| Keys::open(store, path.clone()));
        reply(opened.map(|keys| {
            self.own.set_frontend(keys.frontend_path().to_owned());
            self.keys = Some(keys);
            None
        }))
    }
}

/// A service that cannot go on.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("cannot wait for the device, or wake it up")]
    System(#[from] io::Error),
}

/// Removes the directory of a device in a driver domain, where no toolstack does that, if the
/// toolstack asks for it [2.10].
fn remove_directory<S: XenStore>(keys: &mut Keys<S>) -> Reply {
    match keys.remover() {
        Ok(Remover::Backend) => reply(keys.remove().map(|()| None)),
        Ok(Remover::Toolstack) => Reply::Forbidden,
        Err(error) => reply(Err(error)),
    }
}

fn in_store(
    store: &mut impl XenStore,
    request: StoreRequest,
) -> Result<Option<Option<String>>, StoreError> {
    match request {
        StoreRequest::Read { path } => return store.read(&path).map(Some),
        StoreRequest::Write { path, value } => store.write(&path, &value),
        StoreRequest::WriteBeside { existing, path, value } => {
            store.write_beside(&existing, &path, &value)
        }
        StoreRequest::Remove { path } => store.remove(&path),
        // The supervisor has the device's watches itself.
        StoreRequest::Watch { .. } => Ok(()),
    }?;
    Ok(None)
}

fn reply(outcome: Result<Option<Option<String>>, StoreError>) -> Reply {
    match outcome {
        Ok(Some(value)) => Reply::Value(value),
        Ok(None) => Reply::Done,
        Err(error) if error.is_lost() => lost(Causes(&error).to_string()),
        Err(error) => Reply::StoreFailed { is_lost: false, reason: Causes(&error).to_string() },
    }
}

fn lost(reason: String) -> Reply {
    Reply::StoreFailed { is_lost: true, reason }
}

/// Whether a device may do something in XenStore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permit {
    Yes,
    /// It finds nothing there.
    Nothing,
    /// It removes its directory, if that is the backend's to do.
    Directory,
    No,
}

/// The keys of one device.
struct OwnKeys {
    backend: String,
    guest: String,
    /// Its directory in the guest's; `None` if the toolstack named another.
    frontend: Option<String>,
}

impl OwnKeys {
    fn new(path: &DevicePath) -> Self {
        let guest = format!("/local/domain/{}/", path.guest.0);
        Self { backend: path.to_string(), guest, frontend: None }
    }

    fn set_frontend(&mut self, frontend: String) {
        let device = frontend.strip_prefix(&self.guest);
        let is_plain = device.is_some_and(|device| device.starts_with("device/"));
        self.frontend = is_plain.then_some(frontend);
    }

    /// Whether the device may do that.
    fn permit(&self, request: &StoreRequest) -> Permit {
        let is_permitted = match request {
            StoreRequest::Read { path } | StoreRequest::Watch { path } => {
                // As XenStore answers to who may not read a node.
                return if self.may_read(path) { Permit::Yes } else { Permit::Nothing };
            }
            StoreRequest::Write { path, .. } => self.may_write(path),
            StoreRequest::WriteBeside { existing, path, .. } => {
                self.own_key(existing).is_some() && self.may_write(path)
            }
            StoreRequest::Remove { path } if *path == self.backend => return Permit::Directory,
            StoreRequest::Remove { path } => {
                ["state", "error"].map(Some).contains(&self.own_key(path))
            }
        };
        if is_permitted { Permit::Yes } else { Permit::No }
    }

    /// The key of the backend's directory at a path.
    fn own_key<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&self.backend)?.strip_prefix('/').filter(|key| is_plain(key))
    }

    fn may_read(&self, path: &str) -> bool {
        let frontend = self.frontend.as_deref();
        let in_frontend = frontend.and_then(|frontend| path.strip_prefix(frontend));
        let in_frontend = in_frontend.and_then(|key| key.strip_prefix('/'));
        let in_guest = path.strip_prefix(&self.guest);
        let of_guest = |key: &str| {
            let device = frontend.and_then(|frontend| frontend.strip_prefix(&self.guest));
            let error = device.map(|device| format!("error/{device}/error"));
            ["name", "vm"].contains(&key) || error.as_deref() == Some(key)
        };
        path == "domid"
            || self.own_key(path).is_some()
            || in_frontend.is_some_and(is_plain)
            || in_guest.is_some_and(of_guest)
    }

    fn may_write(&self, path: &str) -> bool {
        self.own_key(path)
            .is_some_and(|key| WRITABLE.contains(&key) || key == "socket" || is_port(key))
    }
}

/// Whether a key is one of a console's port: `port/N/name` or `port/N/socket`.
fn is_port(key: &str) -> bool {
    let mut names = key.split('/');
    let (Some("port"), Some(number), Some("name" | "socket"), None) =
        (names.next(), names.next(), names.next(), names.next())
    else {
        return false;
    };
    number.parse().is_ok_and(|port: usize| (1..=MAX_PORTS).contains(&port))
}

/// Whether a key is one, and no way to another directory: XenStore knows no `..`, but who reads
/// the log may.
fn is_plain(key: &str) -> bool {
    !key.is_empty() && !key.split('/').any(|name| name.is_empty() || name.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::DomId;

    fn keys() -> OwnKeys {
        let class = "virtio_disk".to_owned();
        let mut keys = OwnKeys::new(&DevicePath { class, guest: DomId(7), number: 1 });
        keys.set_frontend("/local/domain/7/device/virtio_disk/1".to_owned());
        keys
    }

    fn read(path: &str) -> StoreRequest {
        StoreRequest::Read { path: path.to_owned() }
    }

    fn may(keys: &OwnKeys, request: &StoreRequest) -> bool {
        keys.permit(request) == Permit::Yes
    }

    fn write(path: &str) -> StoreRequest {
        StoreRequest::Write { path: path.to_owned(), value: String::new() }
    }

    #[test]
    fn device_reads_its_own_keys_and_its_guests_name_only() {
        let own = [
            "domid",
            "backend/virtio_disk/7/1/params",
            "/local/domain/7/device/virtio_disk/1/state",
            "/local/domain/7/name",
            "/local/domain/7/vm",
            "/local/domain/7/error/device/virtio_disk/1/error",
        ];
        let others = [
            "",
            "backend",
            "backend/virtio_disk/7/1",
            "backend/virtio_disk/7/10/params",
            "backend/virtio_disk/7/1/../2/params",
            "backend/virtio_disk/7/2/params",
            "backend/virtio_disk/8/1/params",
            "/local/domain/7/device/virtio_disk/1",
            "/local/domain/7/device/virtio_disk/10/state",
            "/local/domain/7/device/vif/0/state",
            "/local/domain/7/console/port",
            "/local/domain/70/name",
            "/local/domain/0/backend/virtio_disk/7/1/params",
            "/vm",
        ];
        let keys = keys();
        own.iter().for_each(|path| assert!(may(&keys, &read(path)), "{path}"));
        others.iter().for_each(|path| assert!(!may(&keys, &read(path)), "{path}"));
    }

    #[test]
    fn device_writes_no_key_of_the_toolstacks() {
        let keys = keys();
        let own = |key: &str| format!("backend/virtio_disk/7/1/{key}");
        for key in ["state", "error", "virtio-msg-revision", "tty", "port/1/socket", "socket"] {
            assert!(may(&keys, &write(&own(key))), "{key}");
        }
        let more = ["port/16/name", "port/0/name", "port/1/name/x", "port/1/x", "port"];
        let toolstacks = ["params", "mode", "frontend", "online", "frontend-id", "type", "dev"];
        for key in toolstacks.into_iter().chain(more) {
            let (existing, value) = (own("state"), String::new());
            let beside = StoreRequest::WriteBeside { existing, path: own(key), value };
            assert!(!may(&keys, &write(&own(key))) && !may(&keys, &beside), "{key}");
            assert!(!may(&keys, &StoreRequest::Remove { path: own(key) }), "{key}");
        }
        let frontend = "/local/domain/7/device/virtio_disk/1/state";
        assert!(!may(&keys, &write(frontend)));
        assert!(may(&keys, &StoreRequest::Remove { path: own("state") }));
        let directory = StoreRequest::Remove { path: "backend/virtio_disk/7/1".to_owned() };
        assert_eq!(keys.permit(&directory), Permit::Directory);
        assert!(!may(&keys, &StoreRequest::Remove { path: "backend/virtio_disk/7".to_owned() }));
    }

    #[test]
    fn frontend_that_is_no_device_of_the_guest_is_not_read() {
        for frontend in ["/local/domain/8/device/virtio_disk/1", "/local/domain/7", "/vm", ""] {
            let mut keys = keys();
            keys.set_frontend(frontend.to_owned());
            assert!(!may(&keys, &read(&format!("{frontend}/state"))), "{frontend}");
        }
    }
}
