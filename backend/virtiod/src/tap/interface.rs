//! TAP interfaces: an Ethernet interface in the kernel, and one file descriptor for each queue
//! here, which packets are read from and written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::{self, c_int, c_uint};

use super::ioctl::{self, IfReq};
use super::name::InterfaceName;
use crate::device::Gather;
use crate::device::net::QueuePairs;
use crate::device::net::interface::{HEADER_SIZE, Offload};

const DEVICE: &str = "/dev/net/tun";

/// Ethernet frames, preceded only by a `virtio_net_hdr`, in several queues.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// A TAP interface. The kernel removes it when this is dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Tap {
    queues: Vec<File>,
    /// Number of attached queues, from the first on: those that the kernel puts packets into.
    used: usize,
}

impl Tap {
    /// Creates an interface with all queues detached, or joins one that an earlier process left.
    /// If it is to be created and the name exists, this fails.
    pub(super) fn open(name: &InterfaceName, pairs: QueuePairs, is_left: bool) -> io::Result<Self> {
        let mut tap = Self { queues: Vec::new(), used: 0 };
        for queue in 0..pairs.count() {
            // The first creates the interface; the others join it.
            let exclusive = if queue == 0 && !is_left { libc::IFF_TUN_EXCL } else { 0 };
            tap.queues.push(open_queue(name, FLAGS | exclusive)?);
            tap.used += 1;
        }
        tap.use_queues(0)?;
        Ok(tap)
    }

    /// The interface with these queues, all detached.
    pub(super) fn of(queues: Vec<OwnedFd>) -> Self {
        Self { queues: queues.into_iter().map(File::from).collect(), used: 0 }
    }

    /// The descriptors of the queues, for [`Tap::of`] in another process.
    pub(super) fn into_queues(self) -> Vec<OwnedFd> {
        self.queues.into_iter().map(OwnedFd::from).collect()
    }

    /// Attaches the first `count` queues and detaches the others. The kernel drops packets in
    /// detached queues.
    pub(super) fn use_queues(&mut self, count: usize) -> io::Result<()> {
        while self.used > count {
            self.set_queue(self.used - 1, libc::IFF_DETACH_QUEUE)?;
            self.used -= 1;
        }
        while self.used < count {
            self.set_queue(self.used, libc::IFF_ATTACH_QUEUE)?;
            self.used += 1;
        }
        Ok(())
    }

    fn set_queue(&self, queue: usize, flag: c_int) -> io::Result<()> {
        ioctl::set_queue(self.queue(queue)?.as_fd(), &IfReq::new("", flag))
    }

    /// Has the interface outlive this, or not.
    pub(super) fn keep(&self, is_kept: bool) -> io::Result<()> {
        ioctl::set_persistent(self.queue(0)?.as_fd(), is_kept)
    }

    /// Lets the kernel pass packets that still need these offloads, and no others.
    pub(super) fn set_offloads(&self, offloads: &[Offload]) -> io::Result<()> {
        let flags = offloads.iter().fold(0, |flags: c_uint, offload| flags | flag(*offload));
        ioctl::set_offload(self.queue(0)?.as_fd(), flags as c_int)
    }

    /// Reads the next packet into `into`; returns its length, or `None` if no packet has arrived.
    pub(super) fn receive(&self, queue: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.queue(queue)?.read(into) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a packet.
    pub(super) fn send(&self, queue: usize, packet: &Gather<'_>) -> io::Result<()> {
        // One write is one packet, whole or not at all.
        packet.send(self.queue(queue)?.as_fd())
    }

    /// A descriptor that is readable while a packet is waiting.
    pub(super) fn packets(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(queue).map(AsFd::as_fd)
    }

    fn queue(&self, queue: usize) -> io::Result<&File> {
        self.queues.get(queue).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn flag(offload: Offload) -> c_uint {
    match offload {
        Offload::Checksum => libc::TUN_F_CSUM,
        Offload::Tso4 => libc::TUN_F_TSO4,
        Offload::Tso6 => libc::TUN_F_TSO6,
        Offload::TsoEcn => libc::TUN_F_TSO_ECN,
    }
}

fn open_queue(name: &InterfaceName, flags: c_int) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    let fd = file.as_fd();
    ioctl::set_interface(fd, IfReq::new(name.as_str(), flags))?;
    ioctl::set_header_size(fd, HEADER_SIZE as c_int)?;
    ioctl::set_little_endian(fd)?;
    Ok(file)
}
