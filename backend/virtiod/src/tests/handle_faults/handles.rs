//! Handles to the simulated hypervisor with injected faults.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use protocol::grant::GrantRef;

use super::plan::{Call, Counts, Failure, Lasting, Plan};
use xen::{
    Access, CopyDirection, CopyError, CopySegment, DomId, EventChannels, EventError, Fired,
    GrantTable, LocalPort, MapError, RemotePort, StoreError, Xen, XenStore,
};
use xen_sim::{Hypervisor, SimEvents, SimGrants, SimStore};

/// The planned fault, and the calls so far.
#[derive(Clone)]
pub(super) struct Faults(Arc<Mutex<State>>);

struct State {
    plan: Option<Plan>,
    counts: Counts,
    struck: bool,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts a call; returns its failure if one is planned.
    fn failure(&self, call: Call) -> Option<Failure> {
        let mut state = self.state();
        let before = state.counts.add(call);
        let plan = state.plan.filter(|plan| plan.call == call)?;
        let strikes = match plan.lasting {
            Lasting::Once => before == plan.nth,
            Lasting::ForEver => before >= plan.nth,
        };
        state.struck |= strikes;
        strikes.then_some(plan.failure)
    }

    fn check_store(
        &self,
        call: Call,
        operation: &'static str,
        path: &str,
    ) -> Result<(), StoreError> {
        let Some(failure) = self.failure(call) else { return Ok(()) };
        let path = path.to_owned();
        Err(match failure {
            Failure::Store(errno) => {
                StoreError::Refused { operation, path, errno: errno.to_owned() }
            }
            Failure::StoreSpeaksNonsense => StoreError::Protocol("nonsense, by a test"),
            other => StoreError::Connection { operation, path, source: error(other) },
        })
    }

    fn check_event(
        &self,
        call: Call,
        operation: &'static str,
        port: u32,
    ) -> Result<(), EventError> {
        match self.failure(call) {
            Some(failure) => Err(EventError { operation, port, source: error(failure) }),
            None => Ok(()),
        }
    }

    fn check_open(&self, call: Call) -> io::Result<()> {
        self.failure(call).map_or(Ok(()), |failure| Err(error(failure)))
    }

    /// Whether a call has failed that the log must report. A failed copy does not count: the daemon
    /// then maps the buffers, and a failed map is reported.
    pub(super) fn needs_sentence(&self) -> bool {
        let state = self.state();
        state.struck && state.plan.is_some_and(|plan| plan.call != Call::Copy)
    }

    pub(super) fn counts(&self) -> Counts {
        self.state().counts.clone()
    }
}

fn error(failure: Failure) -> io::Error {
    match failure {
        Failure::Errno(errno) => io::Error::from_raw_os_error(errno),
        _ => io::ErrorKind::UnexpectedEof.into(),
    }
}

/// Opens the faulty handles.
#[derive(Clone)]
pub(super) struct FaultyHandles {
    hypervisor: Hypervisor,
    pub(super) faults: Faults,
}

impl FaultyHandles {
    pub(super) fn new(hypervisor: Hypervisor, plan: Option<Plan>) -> Self {
        let state = State { plan, counts: Counts::default(), struck: false };
        Self { hypervisor, faults: Faults(Arc::new(Mutex::new(state))) }
    }
}

impl Xen for FaultyHandles {
    type Grants = Faulty<SimGrants>;
    type Events = Faulty<SimEvents>;
    type Store = Faulty<SimStore>;

    fn grants(&self, guest: DomId) -> io::Result<Faulty<SimGrants>> {
        self.faults.check_open(Call::OpenGrants)?;
        Ok(Faulty { handle: self.hypervisor.grants(guest)?, faults: self.faults.clone() })
    }

    fn events(&self, guest: DomId) -> io::Result<Faulty<SimEvents>> {
        self.faults.check_open(Call::OpenEvents)?;
        Ok(Faulty { handle: self.hypervisor.events(guest)?, faults: self.faults.clone() })
    }

    fn store(&self) -> Result<Faulty<SimStore>, StoreError> {
        self.faults.check_store(Call::OpenStore, "open", "the simulated XenStore")?;
        Ok(Faulty { handle: self.hypervisor.store()?, faults: self.faults.clone() })
    }
}

/// A faulty handle.
pub(super) struct Faulty<D> {
    handle: D,
    faults: Faults,
}

impl<D: AsFd> AsFd for Faulty<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl<G: GrantTable> GrantTable for Faulty<G> {
    type Pages = G::Pages;

    fn map(&self, references: &[GrantRef], access: Access) -> Result<G::Pages, MapError> {
        let count = references.len();
        match self.faults.failure(Call::Map) {
            None => self.handle.map(references, access),
            Some(Failure::Refused(_)) => {
                let first = references.first().copied().unwrap_or(GrantRef(0));
                let source = io::Error::from_raw_os_error(libc::EINVAL);
                Err(MapError::Refused { first, count, access, source })
            }
            Some(failure) => Err(MapError::NoRoom { count, source: error(failure) }),
        }
    }

    fn copy(
        &self,
        direction: CopyDirection,
        segments: &[CopySegment<'_>],
    ) -> Result<(), CopyError> {
        match self.faults.failure(Call::Copy) {
            None => self.handle.copy(direction, segments),
            Some(Failure::Refused(status)) => {
                let reference = segments.first().map_or(GrantRef(0), |segment| segment.reference);
                Err(CopyError::Refused { reference, status })
            }
            Some(failure) => Err(CopyError::Failed(error(failure))),
        }
    }
}

impl<E: EventChannels> EventChannels for Faulty<E> {
    fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError> {
        self.faults.check_event(Call::Bind, "bind", port.0)?;
        self.handle.bind(port)
    }

    fn unbind(&mut self, port: LocalPort) {
        self.handle.unbind(port);
    }

    fn notify(&mut self, port: LocalPort) -> Result<(), EventError> {
        self.faults.check_event(Call::Notify, "notify", port.0)?;
        self.handle.notify(port)
    }

    fn pending(&mut self) -> Result<Option<LocalPort>, EventError> {
        self.faults.check_event(Call::Pending, "read", 0)?;
        self.handle.pending()
    }

    fn unmask(&mut self, port: LocalPort) -> Result<(), EventError> {
        self.faults.check_event(Call::Unmask, "unmask", port.0)?;
        self.handle.unmask(port)
    }
}

impl<S: XenStore> XenStore for Faulty<S> {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        self.faults.check_store(Call::Read, "read", path)?;
        self.handle.read(path)
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        self.faults.check_store(Call::List, "list", path)?;
        self.handle.list(path)
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        self.faults.check_store(Call::Write, "write", path)?;
        self.handle.write(path, value)
    }

    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError> {
        self.faults.check_store(Call::WriteBeside, "write", path)?;
        self.handle.write_beside(existing, path, value)
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        self.faults.check_store(Call::Remove, "remove", path)?;
        self.handle.remove(path)
    }

    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.faults.check_store(Call::Watch, "watch", path)?;
        self.handle.watch(path)
    }

    fn take_fired(&mut self) -> Result<Fired, StoreError> {
        self.faults.check_store(Call::TakeEvents, "read", "the simulated XenStore")?;
        self.handle.take_fired()
    }
}
