//! Simulated event channels between guests and Dom0.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Hypervisor;
use super::delays::pause;
use xen::{DomId, EventChannels, EventError, LocalPort, RemotePort};

pub(super) fn event_fd() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// Waits until the counter is not 0, for at most `limit`, or until a signal interrupts the thread.
pub(super) fn wait_readable(counter: &EventFd, limit: Duration) {
    let mut fds = [PollFd::new(counter.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(limit).unwrap()) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => panic!("cannot wait: {error}"),
    }
}

/// Dom0's end of a bound channel.
struct LocalEnd {
    port: LocalPort,
    handle: Arc<EventFd>,
    pending: bool,
    masked: bool,
}

/// A channel that a guest allocated for Dom0.
struct Channel {
    guest: DomId,
    port: RemotePort,
    to_guest: Arc<EventFd>,
    local: Option<LocalEnd>,
}

/// The channels of all guests.
#[derive(Default)]
pub(super) struct Channels {
    all: Vec<Channel>,
    last_local: u32,
}

impl Channels {
    pub(super) fn bound(&self) -> usize {
        self.all.iter().filter(|channel| channel.local.is_some()).count()
    }

    fn local(&mut self, port: LocalPort) -> Option<(&Arc<EventFd>, &mut LocalEnd)> {
        self.all.iter_mut().find_map(|channel| {
            let end = channel.local.as_mut().filter(|end| end.port == port)?;
            Some((&channel.to_guest, end))
        })
    }
}

/// A guest's end of a channel.
pub struct GuestPort {
    hypervisor: Hypervisor,
    guest: DomId,
    /// The port's number in the guest.
    pub port: RemotePort,
    signalled: Arc<EventFd>,
}

impl GuestPort {
    pub(super) fn new(hypervisor: Hypervisor, guest: DomId) -> Self {
        let signalled = Arc::new(event_fd().unwrap());
        let port = {
            let channels = &mut hypervisor.world().channels.all;
            let port = RemotePort(channels.len() as u32 + 1);
            let to_guest = Arc::clone(&signalled);
            channels.push(Channel { guest, port, to_guest, local: None });
            port
        };
        Self { hypervisor, guest, port, signalled }
    }

    /// Sends an event to Dom0.
    pub fn notify(&self) {
        let mut world = self.hypervisor.world();
        let mine =
            |channel: &&mut Channel| (channel.guest, channel.port) == (self.guest, self.port);
        let channel = world.channels.all.iter_mut().find(mine);
        if let Some(end) = channel.and_then(|channel| channel.local.as_mut()) {
            end.pending = true;
            if !end.masked {
                end.handle.write(1).unwrap();
            }
        }
    }

    /// Waits for an event; fails the test after ten seconds with `what` in the message.
    pub fn wait(&self, what: &str) {
        assert!(self.wait_for(Duration::from_secs(10)), "no event in 10 s: {what}");
    }

    /// Waits for an event for at most `limit`; returns whether one arrived.
    pub fn wait_for(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            wait_readable(&self.signalled, left);
            if self.signalled.read().is_ok() {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}

/// The handle to event channels with one guest.
pub struct SimEvents {
    hypervisor: Hypervisor,
    guest: DomId,
    handle: Arc<EventFd>,
    ports: Vec<LocalPort>,
}

impl SimEvents {
    pub(super) fn new(hypervisor: Hypervisor, guest: DomId) -> io::Result<Self> {
        Ok(Self { hypervisor, guest, handle: Arc::new(event_fd()?), ports: Vec::new() })
    }
}

fn no_such_port(operation: &'static str, port: u32) -> EventError {
    EventError { operation, port, source: io::ErrorKind::NotFound.into() }
}

impl AsFd for SimEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl EventChannels for SimEvents {
    fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError> {
        pause();
        let mut world = self.hypervisor.world();
        let (ports, channels) = (world.limits.ports, &mut world.channels);
        if channels.bound() >= ports {
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(EventError { operation: "bind", port: port.0, source });
        }
        channels.last_local += 1;
        let local = LocalPort(channels.last_local);
        let unbound = |channel: &&mut Channel| {
            (channel.guest, channel.port) == (self.guest, port) && channel.local.is_none()
        };
        let channel = channels.all.iter_mut().find(unbound);
        let channel = channel.ok_or_else(|| no_such_port("bind", port.0))?;
        // As in Xen: a port becomes pending when it is bound.
        let handle = Arc::clone(&self.handle);
        handle.write(1).unwrap();
        channel.local = Some(LocalEnd { port: local, handle, pending: true, masked: false });
        self.ports.push(local);
        Ok(local)
    }

    fn unbind(&mut self, port: LocalPort) {
        pause();
        self.ports.retain(|bound| *bound != port);
        for channel in &mut self.hypervisor.world().channels.all {
            channel.local.take_if(|end| end.port == port);
        }
    }

    fn notify(&mut self, port: LocalPort) -> Result<(), EventError> {
        pause();
        let mut world = self.hypervisor.world();
        let (to_guest, _) =
            world.channels.local(port).ok_or_else(|| no_such_port("notify", port.0))?;
        to_guest.write(1).unwrap();
        Ok(())
    }

    fn pending(&mut self) -> Result<Option<LocalPort>, EventError> {
        pause();
        let channels = &mut self.hypervisor.world().channels;
        for port in &self.ports {
            let Some((_, end)) = channels.local(*port) else {
                continue;
            };
            if end.pending && !end.masked {
                (end.pending, end.masked) = (false, true);
                return Ok(Some(*port));
            }
        }
        // No port is pending and unmasked, so the counter can be reset: `unmask` sets it again.
        let _ = self.handle.read();
        Ok(None)
    }

    fn unmask(&mut self, port: LocalPort) -> Result<(), EventError> {
        pause();
        let mut world = self.hypervisor.world();
        let (_, end) = world.channels.local(port).ok_or_else(|| no_such_port("unmask", port.0))?;
        end.masked = false;
        if end.pending {
            end.handle.write(1).unwrap();
        }
        Ok(())
    }
}

impl Drop for SimEvents {
    fn drop(&mut self) {
        for port in std::mem::take(&mut self.ports) {
            self.unbind(port);
        }
    }
}
