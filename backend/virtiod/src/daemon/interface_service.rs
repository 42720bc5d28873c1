//! The interface of a network device in its guest's process: attaches it to the host's network, or
//! has a script do that, and tells of changes of its link.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uring::waiting::wait_by_poll;

use super::image_service::Answer;
use super::interface_script::InterfaceScript;
use super::scripts::{Scripts, Turn};
use crate::bus::DevicePath;
use crate::device::AwaitedFd;
use crate::device::net::interface::LinkState;
use crate::process::message::Reply;
use crate::tap::name::InterfaceName;
use crate::tap::network::{
    Attachment, Exported, InterfaceRequest, LinkMonitor, Network, NetworkError,
};
use crate::tap::script::ScriptError;
use crate::wakeup::WakeUp;

/// Maximum time for which an interface is awaited to go, when the process that had it is gone or
/// has given it up. One that stays is for another process.
const GONE_LIMIT: Duration = Duration::from_secs(5);

/// The interface of one device.
pub(super) struct InterfaceService {
    network: Arc<dyn Network>,
    attached: Option<Attached>,
    name: Option<InterfaceName>,
    /// The turn of this service, if a script attached the interface.
    turn: Option<Turn>,
    scripts: Scripts,
    /// Whether a script was killed since the daemon ends: the device waits for the next one.
    is_abandoned: bool,
}

struct Attached {
    link: Box<dyn LinkMonitor>,
    state: LinkState,
    /// Tells the device that the link may have changed.
    changed: WakeUp,
}

impl InterfaceService {
    /// Without an interface.
    pub(super) fn new(network: Arc<dyn Network>, scripts: Scripts) -> Self {
        Self { network, attached: None, name: None, turn: None, scripts, is_abandoned: false }
    }

    /// Attaches the interface of the device at `path`, or has its script do it, with these
    /// variables.
    ///
    /// # Errors
    /// [`NetworkError`], also for a second one.
    pub(super) fn attach(
        &mut self,
        path: &DevicePath,
        request: InterfaceRequest,
        variables: Vec<(&'static str, String)>,
    ) -> Result<Answer, NetworkError> {
        if self.attached.is_some() {
            let why = format!("{path} has its interface already");
            return Err(NetworkError::Supervisor(why));
        }
        let name = request.name.clone();
        let failed = |source| NetworkError::SetUp { name: name.clone(), source };
        let script = match &request.attachment {
            Attachment::Bridge { .. } => None,
            Attachment::Script(script) => Some(script.path.clone()),
        };
        let exported = self.network.attach_for_process(request)?;
        let Exported { mut queues, mut mtu, bridge, mut link, is_left } = exported;
        let device = path.record_name();
        // One that was left may have had a script by an earlier configuration.
        if script.is_some() || self.scripts.concern(&device) {
            self.turn = Some(self.scripts.begin(name.as_str(), &device));
        }
        if let (Some(script), Some(turn)) = (script, &self.turn) {
            let script = InterfaceScript::new(script, &name, path, variables);
            let ran = self.scripts.attach(turn, &script, is_left);
            self.is_abandoned = matches!(ran, Err(ScriptError::Stopped { .. }));
            ran?;
            mtu = self.network.mtu_of(&name, &device).map_err(failed)?.unwrap_or(mtu);
        }
        let (changed, theirs) = WakeUp::pair().map_err(failed)?;
        let state = link.take_change().map_err(failed)?.unwrap_or(LinkState::Down);
        queues.push(theirs);
        self.attached = Some(Attached { link, state, changed });
        self.name = Some(name);
        let bridge = bridge.as_ref().map(InterfaceName::to_string);
        Ok((Reply::Attached { mtu, bridge }, queues))
    }

    /// Whether the device is to wait for the next daemon.
    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned
    }

    /// Has the script take back what it did, if the interface is gone.
    pub(super) fn end(&mut self) {
        let (Some(turn), Some(name)) = (self.turn.take(), self.name.take()) else { return };
        if self.is_gone(&turn, &name) {
            self.scripts.take_back_as(&turn);
        }
        self.scripts.end(&turn);
    }

    /// Waits until the interface is gone, or is another service's.
    fn is_gone(&mut self, turn: &Turn, name: &InterfaceName) -> bool {
        let end = Instant::now() + GONE_LIMIT;
        while self.scripts.has(turn) {
            match self.network.mtu_of(name, turn.device()) {
                Ok(None) => return true,
                Ok(Some(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot look for {name}");
                    return false;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let Some(attached) = self.attached.as_mut().filter(|_| !left.is_zero()) else { break };
            let mut fds = [AwaitedFd::readable(attached.link.changes())];
            let waited = wait_by_poll(&mut fds, left);
            if waited.and_then(|()| attached.link.take_change()).is_err() {
                // It cannot tell any more.
                self.attached = None;
            }
        }
        false
    }

    /// A descriptor that is readable when the link may have changed.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.attached.as_ref().map(|attached| attached.link.changes())
    }

    /// Tells the device of a change of the link.
    pub(super) fn pass_changes_on(&mut self) {
        let Some(attached) = &mut self.attached else { return };
        let state = match attached.link.take_change() {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(%error, "cannot follow the link of an interface any more");
                self.attached = None;
                return;
            }
        };
        if let Some(state) = state.filter(|state| *state != attached.state) {
            attached.state = state;
            attached.changed.send();
        }
    }

    /// Whether the link is up.
    pub(super) fn state(&self) -> Reply {
        let attached = self.attached.as_ref();
        attached.map_or(Reply::Forbidden, |attached| Reply::Answer(attached.state == LinkState::Up))
    }
}
