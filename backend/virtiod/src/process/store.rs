//! XenStore as a guest's process has it: the keys of its own devices, which the supervisor reads
//! and writes for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::link::DeviceLink;
use super::message::{Reply, Request, StoreRequest};
use crate::domain::Domain;
use crate::wakeup::take_wake_ups;
use xen::{DomId, Fired, StoreError, Xen, XenStore};

/// Where the keys are, for errors.
const SUPERVISOR: &str = "the supervisor";

/// The handles to Xen of one device in its guest's process.
#[derive(Clone)]
pub struct Supervised<X> {
    xen: X,
    link: Arc<DeviceLink>,
    /// Readable when the supervisor tells that something has changed in XenStore.
    fired: Arc<OwnedFd>,
}

impl<X> Supervised<X> {
    /// The handles `xen`, with XenStore by `link`.
    pub fn new(xen: X, link: Arc<DeviceLink>, fired: OwnedFd) -> Self {
        Self { xen, link, fired: Arc::new(fired) }
    }
}

impl<X: Xen> Xen for Supervised<X> {
    type Grants = X::Grants;
    type Events = X::Events;
    type Store = SupervisedStore;

    fn grants(&self, guest: DomId) -> io::Result<X::Grants> {
        self.xen.grants(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<X::Events> {
        match self.link.ask(&Request::OpenEvents).map_err(io::Error::other)? {
            (Reply::Done, files) => self.xen.events_of(guest, files.into_iter().next()),
            (reply, _) => Err(reply.into_error()),
        }
    }

    fn store(&self) -> Result<SupervisedStore, StoreError> {
        let (link, fired) = (Arc::clone(&self.link), Arc::clone(&self.fired));
        let store = SupervisedStore { link, fired };
        store.send("connect to", SUPERVISOR, &Request::OpenStore)?;
        Ok(store)
    }
}

impl<X: Domain> Domain for Supervised<X> {
    type Platform = X::Platform;

    fn platform(&self, guest: DomId) -> io::Result<X::Platform> {
        self.xen.platform(guest)
    }
}

/// A device's keys in XenStore, by the supervisor.
pub struct SupervisedStore {
    link: Arc<DeviceLink>,
    fired: Arc<OwnedFd>,
}

impl SupervisedStore {
    fn ask(
        &self,
        operation: &'static str,
        path: &str,
        request: &StoreRequest,
    ) -> Result<Option<String>, StoreError> {
        self.send(operation, path, &Request::Store(request.clone()))
    }

    fn send(
        &self,
        operation: &'static str,
        path: &str,
        request: &Request,
    ) -> Result<Option<String>, StoreError> {
        let lost = |source| StoreError::Connection { operation, path: path.to_owned(), source };
        let refused = |errno| StoreError::Refused { operation, path: path.to_owned(), errno };
        match self.link.ask(request).map(|(reply, _)| reply) {
            Ok(Reply::Done) => Ok(None),
            Ok(Reply::Value(value)) => Ok(value),
            Ok(Reply::Forbidden) => Err(refused("EPERM".to_owned())),
            Ok(Reply::StoreFailed { is_lost: true, reason }) => Err(lost(io::Error::other(reason))),
            Ok(Reply::StoreFailed { reason, .. }) => Err(refused(reason)),
            Ok(_) => Err(StoreError::Protocol("the supervisor answers another question")),
            Err(error) => Err(lost(io::Error::other(error))),
        }
    }
}

impl AsFd for SupervisedStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fired.as_fd()
    }
}

impl XenStore for SupervisedStore {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        self.ask("read", path, &StoreRequest::Read { path: path.to_owned() })
    }

    /// A device has no directory to list.
    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        let errno = "EPERM".to_owned();
        Err(StoreError::Refused { operation: "list", path: path.to_owned(), errno })
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        let request = StoreRequest::Write { path: path.to_owned(), value: value.to_owned() };
        self.ask("write", path, &request).map(drop)
    }

    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError> {
        let (existing, value) = (existing.to_owned(), value.to_owned());
        let request = StoreRequest::WriteBeside { existing, path: path.to_owned(), value };
        self.ask("write", path, &request).map(drop)
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        self.ask("remove", path, &StoreRequest::Remove { path: path.to_owned() }).map(drop)
    }

    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.ask("watch", path, &StoreRequest::Watch { path: path.to_owned() }).map(drop)
    }

    /// The supervisor takes the paths; the device checks everything that it depends on.
    fn take_fired(&mut self) -> Result<Fired, StoreError> {
        match take_wake_ups(&*self.fired) {
            Ok(true) => Ok(Fired::Anywhere),
            Ok(false) => Ok(Fired::Nowhere),
            Err(source) => Err(StoreError::Connection {
                operation: "wait for events of",
                path: SUPERVISOR.to_owned(),
                source,
            }),
        }
    }
}
