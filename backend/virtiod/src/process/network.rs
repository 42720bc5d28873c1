//! The interface of a network device as a guest's process has it: the supervisor attaches it to
//! the host's network and monitors its link.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::link::{DeviceLink, too_many_files};
use super::message::{Reply, Request};
use crate::device::net::interface::LinkState;
use crate::tap::network::{
    Attached, InterfaceRequest, LinkMonitor, Network, NetworkError, TapInterface,
};
use crate::wakeup::take_wake_ups;

/// The interface of one device, by the supervisor, which knows the device's configuration.
pub struct SupervisedNetwork {
    link: Arc<DeviceLink>,
}

impl SupervisedNetwork {
    /// An interface by `link`.
    pub fn new(link: Arc<DeviceLink>) -> Self {
        Self { link }
    }
}

fn failed(error: impl ToString) -> NetworkError {
    NetworkError::Supervisor(error.to_string())
}

impl Network for SupervisedNetwork {
    fn attach(&self, request: InterfaceRequest) -> Result<Attached, NetworkError> {
        let (reply, files) = self.link.ask(&Request::AttachInterface).map_err(failed)?;
        let (mtu, bridge) = match reply {
            Reply::Attached { mtu, bridge } => (mtu, bridge),
            Reply::Failed { reason, .. } => return Err(NetworkError::Supervisor(reason)),
            reply => return Err(failed(reply.into_error())),
        };
        let mut queues = files;
        let changes = queues.pop().filter(|_| queues.len() == usize::from(request.pairs.count()));
        let changes = changes.ok_or_else(|| failed(too_many_files()))?;
        let link = SupervisedLink { link: Arc::clone(&self.link), changes, is_known: false };
        let interface = Box::new(TapInterface::of(queues, mtu, link));
        Ok(Attached { interface, bridge: bridge.map(|name| name.parse()).transpose()? })
    }

    fn remove_left(&self, _: &BTreeSet<String>) -> io::Result<()> {
        Ok(())
    }
}

/// The link of an interface, by the supervisor.
struct SupervisedLink {
    link: Arc<DeviceLink>,
    /// Readable when the supervisor tells that the link may have changed.
    changes: OwnedFd,
    /// Whether the state was asked for once.
    is_known: bool,
}

impl LinkMonitor for SupervisedLink {
    fn changes(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    fn take_change(&mut self) -> io::Result<Option<LinkState>> {
        if !take_wake_ups(&self.changes)? && self.is_known {
            return Ok(None);
        }
        match self.link.ask(&Request::LinkState).map_err(io::Error::other)? {
            (Reply::Answer(is_up), _) => {
                self.is_known = true;
                Ok(Some(if is_up { LinkState::Up } else { LinkState::Down }))
            }
            (reply, _) => Err(reply.into_error()),
        }
    }
}
