//! The interface of a network device in its guest's process: attaches it to the host's network, and
//! tells of changes of its link.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::device_service::failed;
use super::image_service::Answer;
use crate::device::net::interface::LinkState;
use crate::process::message::Reply;
use crate::tap::name::InterfaceName;
use crate::tap::network::{Exported, InterfaceRequest, LinkMonitor, Network};
use crate::wakeup::WakeUp;

/// The interface of one device.
pub(super) struct InterfaceService {
    network: Arc<dyn Network>,
    attached: Option<Attached>,
}

struct Attached {
    link: Box<dyn LinkMonitor>,
    state: LinkState,
    /// Tells the device that the link may have changed.
    changed: WakeUp,
}

impl InterfaceService {
    /// Without an interface.
    pub(super) fn new(network: Arc<dyn Network>) -> Self {
        Self { network, attached: None }
    }

    /// Attaches the interface.
    pub(super) fn attach(&mut self, request: InterfaceRequest) -> Answer {
        let Exported { mut queues, mtu, bridge, mut link } =
            match self.network.attach_for_process(request) {
                Ok(exported) => exported,
                Err(error) => return failed(&error),
            };
        let mut begin = || -> io::Result<_> {
            Ok((WakeUp::pair()?, link.take_change()?.unwrap_or(LinkState::Down)))
        };
        let ((changed, theirs), state) = match begin() {
            Ok(begun) => begun,
            Err(error) => return failed(&error),
        };
        queues.push(theirs);
        self.attached = Some(Attached { link, state, changed });
        let bridge = bridge.as_ref().map(InterfaceName::to_string);
        (Reply::Attached { mtu, bridge }, queues)
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
