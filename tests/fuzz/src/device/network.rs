//! A network for the device: a pair of sockets stands for the cable of its interface.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::eventfd::{EfdFlags, EventFd};
use xen_virtiod::device::net::LinkState;
use xen_virtiod::device::net::interface::{Interface, Offload};
use xen_virtiod::device::{Gather, Source, WriteMode};
use xen_virtiod::tap::network::{Attached, InterfaceRequest, Network, NetworkError};

/// The device's end of the cable.
pub(super) struct Cable(UnixDatagram);

impl Cable {
    /// Creates the network; also returns the far end of the cable.
    pub(super) fn new() -> (Self, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        (Self(near), far)
    }
}

impl Network for Cable {
    fn attach(&self, _request: InterfaceRequest) -> Result<Attached, NetworkError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let link = EventFd::from_value_and_flags(1, flags).unwrap();
        let plug = Plug { packets: self.0.try_clone().unwrap(), link };
        Ok(Attached { interface: Box::new(plug), bridge: None })
    }

    fn remove_left(&self, _devices: &BTreeSet<String>) -> io::Result<()> {
        Ok(())
    }
}

/// The interface at the device's end of the cable.
struct Plug {
    packets: UnixDatagram,
    link: EventFd,
}

impl Interface for Plug {
    fn mtu(&self) -> u16 {
        1500
    }

    fn use_pairs(&mut self, _count: usize) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&mut self, _offloads: &[Offload]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _pair: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.packets.recv(into).ok())
    }

    fn send(&mut self, _pair: usize, packet: &Gather<'_>) -> io::Result<()> {
        packet.write(self.packets.as_fd(), 0, WriteMode::Back)
    }

    fn messages(&self, _pair: usize) -> Option<BorrowedFd<'_>> {
        Some(self.packets.as_fd())
    }

    fn packets(&self, _pair: usize) -> Option<Source<'_>> {
        Some(Source::readable(self.packets.as_fd()))
    }

    fn link_changes(&self) -> Source<'_> {
        Source::readable(self.link.as_fd())
    }

    fn take_link_change(&mut self) -> io::Result<Option<LinkState>> {
        Ok(self.link.read().is_ok().then_some(LinkState::Up))
    }
}
