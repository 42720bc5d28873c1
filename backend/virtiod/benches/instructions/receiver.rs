//! A guest that receives packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use vm_memory::Bytes;
use xen::RemotePort;
use xen_sim::Hypervisor;
use xen_virtiod::device::net::interface::{Interface, LinkState, Offload};
use xen_virtiod::device::net::{MacAddress, Net, NetLimits, QueuePairs};
use xen_virtiod::device::{Gather, Source};
use xen_virtiod::stats::DeviceStats;

use crate::events::Events;
use crate::simulated::device::Device;
use crate::simulated::guest::{Driver, SLOTS};

/// Packets in a batch.
pub(super) const BATCH: u16 = SLOTS;

/// A packet of 64 bytes, behind its header.
const PACKET: [u8; 76] = [7; 76];

/// An interface whose packets are messages of a socket, and nothing else.
struct Cable {
    packets: OwnedFd,
    link: OwnedFd,
}

impl Interface for Cable {
    fn mtu(&self) -> u16 {
        1500
    }

    fn use_pairs(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&mut self, _: &[Offload]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(recv(&self.packets, into, RecvFlags::empty()).ok().map(|(length, _)| length))
    }

    fn send(&mut self, _: usize, _: &Gather<'_>) -> io::Result<()> {
        Ok(())
    }

    fn messages(&self, _: usize) -> Option<BorrowedFd<'_>> {
        Some(self.packets.as_fd())
    }

    fn packets(&self, _: usize) -> Option<Source<'_>> {
        Some(Source::readable(self.packets.as_fd()))
    }

    fn link_changes(&self) -> Source<'_> {
        Source::readable(self.link.as_fd())
    }

    fn take_link_change(&mut self) -> io::Result<Option<LinkState>> {
        Ok(None)
    }
}

/// The guest, with its network device.
pub(super) struct Receiver {
    driver: Driver,
    net: Device<Events>,
    peer: OwnedFd,
    _link: OwnedFd,
}

impl Receiver {
    /// Starts the device.
    pub(super) fn start() -> Self {
        let pair = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
        };
        let ((packets, peer), (link, _link)) = (pair(), pair());
        let stats = Arc::new(DeviceStats::default());
        let mac = MacAddress::random().unwrap();
        let limits = NetLimits::default();
        let interface = Box::new(Cable { packets, link });
        let net = Net::new(interface, mac, QueuePairs::default(), limits, Arc::clone(&stats));
        let hypervisor = Hypervisor::default();
        let driver = Driver::new(&hypervisor);
        let mut net = Device::new(Box::new(net), &hypervisor, Events::new(), stats);
        let doorbell: RemotePort = driver.port().port;
        net.negotiate(&driver, doorbell, 0);
        (0..BATCH).for_each(|slot| driver.write_buffer(slot));
        Self { driver, net, peer, _link }
    }

    /// Makes buffers available, and sends as many packets.
    pub(super) fn send(&mut self, count: u16) {
        self.driver.make_available(0..count);
        for _ in 0..count {
            send(&self.peer, &PACKET, SendFlags::empty()).unwrap();
        }
    }

    /// Does what a device's thread does after packets have arrived until it sleeps.
    pub(super) fn serve(&mut self) {
        self.net.serve_sources();
    }

    /// Checks that all packets were delivered.
    pub(super) fn check(&self) {
        assert_eq!(self.driver.used(), self.driver.available);
        assert_eq!(self.driver.data(0).read_obj::<u8>(70).unwrap(), 7);
    }
}
