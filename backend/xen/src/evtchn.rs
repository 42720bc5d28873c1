//! `/dev/xen/evtchn`: event channels to one other domain.
//!
//! A read returns the pending ports and masks them; a write of a port unmasks it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use xen_sys::evtchn::{self as sys, BindInterdomain, BindUnboundPort, DEVICE, Port, RestrictDomid};

use super::{DomId, EventChannels, EventError, LocalPort, RemotePort};
use crate::Causes;
use crate::device_file;

/// Size of a port number in bytes.
const PORT_SIZE: usize = 4;
/// Maximum number of ports that one read returns.
const PORTS: usize = 32;

/// The handle to event channels with one guest.
#[derive(Debug)]
pub struct Evtchn {
    file: File,
    guest: DomId,
    /// Ports that were read and that `pending` has not returned yet.
    read: VecDeque<LocalPort>,
    /// The latest read returned all pending ports.
    drained: bool,
}

impl Evtchn {
    /// Opens the handle and restricts it to `guest`.
    pub fn open(guest: DomId) -> io::Result<Self> {
        let file = device_file::open(DEVICE, "xen-evtchn", libc::O_NONBLOCK)?;
        // The kernel cannot restrict a handle to domain 0, which is usually the peer of a driver.
        if guest.0 != 0 {
            let request = RestrictDomid { domid: guest.0 };
            // SAFETY: the ioctl reads one RestrictDomid, which lives past the call.
            unsafe { sys::restrict_domid(file.as_raw_fd(), &request) }?;
        }
        Ok(Self::of(file, guest))
    }

    /// The handle that another process opened for `guest`, and sent.
    pub fn of_descriptor(descriptor: OwnedFd, guest: DomId) -> Self {
        Self::of(File::from(descriptor), guest)
    }

    fn of(file: File, guest: DomId) -> Self {
        Self { file, guest, read: VecDeque::with_capacity(PORTS), drained: false }
    }

    /// The handle's descriptor, for [`Evtchn::of_descriptor`] in another process.
    pub fn into_descriptor(self) -> OwnedFd {
        self.file.into()
    }
}

impl Evtchn {
    /// Reads pending ports, at most [`PORTS`]. Fewer mean that no other port is pending.
    fn read_ports(&mut self) -> io::Result<()> {
        let mut bytes = [0; PORTS * PORT_SIZE];
        let length = match self.file.read(&mut bytes) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let ports = bytes.get(..length).unwrap_or(&[]).chunks_exact(PORT_SIZE);
        let ports = ports.filter_map(|port| Some(u32::from_ne_bytes(port.try_into().ok()?)));
        self.read.extend(ports.map(LocalPort));
        self.drained = length < bytes.len();
        Ok(())
    }

    /// Allocates a port for the other domain to bind, which uses the same number for it.
    ///
    /// # Errors
    /// [`EventError`] if this domain has no port left.
    pub fn allocate(&mut self) -> Result<LocalPort, EventError> {
        let request = BindUnboundPort { remote_domain: self.guest.0.into() };
        // SAFETY: the ioctl reads one BindUnboundPort, which lives past the call.
        let local = unsafe { sys::bind_unbound_port(self.file.as_raw_fd(), &request) };
        let local = local.map_err(|errno| failed("allocate", 0, errno))?;
        u32::try_from(local).map(LocalPort).map_err(|e| failed("allocate", 0, io::Error::other(e)))
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn failed(operation: &'static str, port: u32, source: impl Into<io::Error>) -> EventError {
    EventError { operation, port, source: source.into() }
}

impl EventChannels for Evtchn {
    fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError> {
        let request = BindInterdomain { remote_domain: self.guest.0.into(), remote_port: port.0 };
        // SAFETY: the ioctl reads one BindInterdomain, which lives past the call.
        let local = unsafe { sys::bind_interdomain(self.file.as_raw_fd(), &request) };
        let local = local.map_err(|errno| failed("bind", port.0, errno))?;
        u32::try_from(local).map(LocalPort).map_err(|e| failed("bind", port.0, io::Error::other(e)))
    }

    fn unbind(&mut self, port: LocalPort) {
        // SAFETY: the ioctl reads one Port, which lives past the call.
        let done = unsafe { sys::unbind(self.file.as_raw_fd(), &Port { port: port.0 }) };
        if let Err(error) = done {
            tracing::warn!("{}", Causes(&error));
        }
        self.read.retain(|read| *read != port);
    }

    fn notify(&mut self, port: LocalPort) -> Result<(), EventError> {
        // SAFETY: the ioctl reads one Port, which lives past the call.
        let done = unsafe { sys::notify(self.file.as_raw_fd(), &Port { port: port.0 }) };
        done.map(drop).map_err(|errno| failed("notify", port.0, errno))
    }

    fn pending(&mut self) -> Result<Option<LocalPort>, EventError> {
        if self.read.is_empty() && !std::mem::take(&mut self.drained) {
            self.read_ports().map_err(|error| failed("read", 0, error))?;
        }
        Ok(self.read.pop_front())
    }

    fn unmask(&mut self, port: LocalPort) -> Result<(), EventError> {
        let written = self.file.write_all(&port.0.to_ne_bytes());
        written.map_err(|error| failed("unmask", port.0, error))
    }
}
