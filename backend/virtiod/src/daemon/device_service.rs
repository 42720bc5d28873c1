//! The supervisor's end of a device in its guest's process: does what the device asks for, if that
//! is the device's own.
//!
//! A thread of its own serves each device, so that none waits for another's XenStore.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tracing::Level;
use uring::waiting::wait_by_poll;

use super::image_service::{Answer, ImageService, KeptClaims};
use super::interface_service::InterfaceService;
use super::own_keys::{OwnKeys, Permit};
use super::runner::{SharedHost, StartError};
use super::socket_service::{KeptSockets, SocketService};
use super::terminal_service::KeptTerminals;
use crate::Causes;
use crate::bus::keys::Remover;
use crate::bus::{DevicePath, Keys};
use crate::config::ConfigFile;
use crate::device::AwaitedFd;
use crate::excerpt::{excerpt, one_line};
use crate::process::device_thread::OpenedHook;
use crate::process::message::{RecordRequest, Reply, Request, StoreRequest};
use crate::process::message_socket::{MessageError, MessageSocket};
use crate::record::Records;
use crate::setup::{self, DeviceError};
use crate::stats::DeviceStats;
use crate::tap::network::{Attachment, InterfaceRequest, NetworkError};
use crate::tap::script::ScriptError;
use crate::wakeup::WakeUp;
use xen::{StoreError, Xen, XenStore};

/// The key in which Xen's scripts say why they failed.
const HOTPLUG_ERROR: &str = "hotplug-error";

/// A device in its guest's process.
pub(super) struct ServedDevice {
    /// The supervisor's end of its socket.
    pub(super) socket: MessageSocket,
    /// Tells it of changes in XenStore.
    pub(super) fired: WakeUp,
    pub(super) path: DevicePath,
    pub(super) config: ConfigFile,
    pub(super) stats: Arc<DeviceStats>,
    /// Called when it was opened.
    pub(super) opened: OpenedHook,
    /// What the supervisor does for all devices.
    pub(super) host: HostServices,
    /// Its process.
    pub(super) process: Arc<dyn HangUp>,
}

/// What the supervisor has for the devices of all guests.
#[derive(Clone)]
pub(super) struct HostServices {
    /// What the whole daemon has of the host.
    pub(super) shared: SharedHost,
    /// What earlier processes had claimed.
    pub(super) kept: KeptClaims,
    /// The terminals of consoles.
    pub(super) terminals: KeptTerminals,
    /// The sockets that devices listen on.
    pub(super) sockets: KeptSockets,
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
    interface: InterfaceService,
    sockets: SocketService,
}

impl<X: Xen> DeviceService<X> {
    /// Starts the service of a device, which ends with the other end of its socket.
    ///
    /// # Errors
    /// [`StartError::Thread`].
    pub(super) fn start(xen: X, device: ServedDevice) -> Result<(), StartError> {
        let name = format!("{}-{}", device.path.guest.0, device.path.number);
        let own = OwnKeys::new(&device.path);
        let HostServices { shared, kept, sockets, .. } = &device.host;
        let images = ImageService::new(&device.path, kept.clone(), shared.sizes.clone());
        let sockets = SocketService::new(&device.path, sockets.clone());
        let interface = InterfaceService::new(Arc::clone(&shared.network), shared.scripts.clone());
        let mut service = Self { xen, device, keys: None, own, images, interface, sockets };
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
            service.interface.end();
        };
        thread::Builder::new().name(name).spawn(body).map(drop).map_err(StartError::Thread)
    }

    fn serve(&mut self) -> Result<(), ServiceError> {
        loop {
            if self.wait()? {
                let socket = &self.device.socket;
                let Some((request, _)) = socket.receive::<Request>()? else { return Ok(()) };
                let (reply, files) = self.answer(request);
                if self.interface.is_abandoned() {
                    return Ok(());
                }
                // An image belongs to the other process alone from then on: see `IoMark`.
                let copies: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                self.device.socket.send(&reply, &copies)?;
            }
            self.interface.pass_changes_on();
            // An event that arrived with an answer no longer makes the descriptor readable.
            self.pass_events_on();
        }
    }

    /// Waits for a request, or for an event of XenStore's; returns whether there is a request.
    fn wait(&self) -> io::Result<bool> {
        let mut fds = vec![AwaitedFd::readable(self.device.socket.as_fd())];
        let store = self.keys.iter().map(Keys::store_ref);
        fds.extend(store.map(|store| AwaitedFd::readable(store.as_fd())));
        fds.extend(self.interface.changes().map(AwaitedFd::readable));
        wait_by_poll(&mut fds, Duration::MAX)?;
        Ok(fds.first().is_some_and(|fd| fd.is_ready))
    }

    /// Tells the device of events. One that cannot be taken is told of too: the device's next
    /// request fails.
    fn pass_events_on(&mut self) {
        let Some(keys) = &mut self.keys else { return };
        match keys.store().take_events() {
            Ok(false) => return,
            Ok(true) => {}
            Err(_) => self.keys = None,
        }
        self.device.fired.send();
    }

    fn answer(&mut self, request: Request) -> Answer {
        let ServedDevice { path, config, stats, opened, .. } = &self.device;
        match (request, &mut self.keys) {
            (Request::OpenEvents, _) => descriptor(self.xen.events_for_process(path.guest)),
            (Request::Record(request), _) => self.answer_about_record(request),
            (Request::LinkState, _) => (self.interface.state(), Vec::new()),
            (Request::Connect { port }, _) => descriptor(self.sockets.connect(port).map(Some)),
            (Request::AttachInterface, Some(keys)) => {
                let attached = attach(&mut self.interface, &mut self.own, keys, path, config);
                attached.unwrap_or_else(|error| failed(&error))
            }
            (Request::Listen { path: socket }, Some(keys)) => {
                match setup::sockets_of(keys, path, config) {
                    Ok(own) => {
                        let answer = self.sockets.listen(&own, &socket);
                        if answer.0 == Reply::Done {
                            self.own.note_opened(&socket);
                        }
                        answer
                    }
                    Err(error) => failed(&error),
                }
            }
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

    fn open_terminal(&mut self) -> Answer {
        match self.device.host.terminals.open(&self.device.path) {
            Ok((path, ends)) => {
                self.own.note_opened(&path);
                (Reply::Terminal { path }, ends.into())
            }
            Err(error) => failed(&error),
        }
    }

    fn answer_about_record(&self, request: RecordRequest) -> Answer {
        let name = self.device.path.record_name();
        let Some(records) = &self.device.host.shared.records else {
            return match request {
                RecordRequest::Create => (Reply::Forbidden, Vec::new()),
                RecordRequest::Open => (Reply::Answer(false), Vec::new()),
                RecordRequest::Remove => (Reply::Done, Vec::new()),
            };
        };
        match request {
            RecordRequest::Create => descriptor(records.create_file(&name).map(Some)),
            RecordRequest::Open => match records.open_file(&name) {
                Ok(Some(file)) => (Reply::Answer(true), vec![file.into()]),
                Ok(None) => (Reply::Answer(false), Vec::new()),
                Err(error) => failed(&error),
            },
            RecordRequest::Remove => match records.remove(&name) {
                Ok(()) => (Reply::Done, Vec::new()),
                Err(error) => failed(&error),
            },
        }
    }

    fn open_store(&mut self) -> Reply {
        let ServedDevice { path, config, .. } = &self.device;
        let opened = self.xen.store().and_then(|store| Keys::open(store, path.clone()));
        reply(opened.map(|mut keys| {
            // From now on: a script of this device's may run for another service.
            if path.class != setup::DISKS
                && !matches!(
                    setup::interface_of(&mut keys, path, config),
                    Ok(InterfaceRequest { attachment: Attachment::Bridge { .. }, .. })
                )
            {
                self.own.fix_for_script(&[]);
            }
            self.own.set_frontend(keys.frontend_path().to_owned());
            self.keys = Some(keys);
            None
        }))
    }
}

/// Attaches the interface of a network device.
fn attach<S: XenStore>(
    interface: &mut InterfaceService,
    own: &mut OwnKeys,
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
) -> Result<Answer, DeviceError> {
    let request = setup::interface_of(keys, path, config)?;
    let variables = match &request.attachment {
        Attachment::Bridge { .. } => Vec::new(),
        Attachment::Script(script) => {
            keys.withdraw(HOTPLUG_ERROR)?;
            let published = setup::publish_for_script(keys, path, config, script)?;
            own.fix_for_script(&published);
            published
        }
    };
    let name = request.name.to_string();
    let attached = interface.attach(path, request, variables);
    if let Ok((Reply::Attached { bridge, .. }, _)) = &attached {
        own.set_interface(name, bridge.clone());
    }
    attached.map_err(|error| match error {
        NetworkError::Script(ScriptError::Failed { script, status, .. }) => {
            // Its own words, which none but it writes.
            let said = keys.backend(HOTPLUG_ERROR).unwrap_or_default();
            let said = said.map(|text| one_line(&excerpt(&text)));
            NetworkError::Script(ScriptError::Failed { script, status, said }).into()
        }
        error => error.into(),
    })
}

/// A service that cannot go on.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("cannot wait for the device")]
    System(#[from] io::Error),
}

/// The answer to a request that failed.
pub(super) fn failed(error: &(dyn Error + 'static)) -> Answer {
    (Reply::failed(error), Vec::new())
}

/// The answer with a descriptor, if there is one.
pub(super) fn descriptor<T: Into<OwnedFd>, E: Error + 'static>(
    opened: Result<Option<T>, E>,
) -> Answer {
    match opened {
        Ok(opened) => (Reply::Done, opened.into_iter().map(Into::into).collect()),
        Err(error) => failed(&error),
    }
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
