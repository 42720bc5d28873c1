//! What a network device needs of the host: a place where packets go and come from.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::device::{Gather, Source};

/// Bytes of `struct virtio_net_hdr` in front of every frame (virtio 1.3 section 5.1.6), with
/// `num_buffers`, as every device of version 1 has it.
pub const HEADER_SIZE: usize = 12;
/// Most bytes of a packet: header, Ethernet header, and 64 KiB that are segmented later.
pub const MAX_PACKET: usize = HEADER_SIZE + 14 + (64 << 10);

/// What the guest can take over from whoever sends to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums that are not filled in.
    Checksum,
    /// TCP over IPv4 in segments of up to 64 KiB.
    Tso4,
    /// TCP over IPv6 likewise.
    Tso6,
    /// Such segments with explicit congestion notification.
    TsoEcn,
}

/// Whether the cable is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It is not.
    Down,
    /// It is.
    Up,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Up => "up",
        })
    }
}

/// The host's end of a guest's network device: packets pass it whole, a header of [`HEADER_SIZE`]
/// bytes in front of each.
pub trait Interface: Send {
    /// Largest payload of a frame that is not segmented.
    fn mtu(&self) -> u16;

    /// Gives packets for the guest to the first `count` pairs of queues from now on; with none,
    /// such packets are lost and none waits.
    ///
    /// # Errors
    /// The kernel's.
    fn use_pairs(&mut self, count: usize) -> io::Result<()>;

    /// Hands over packets with nothing left to be done beside this.
    ///
    /// # Errors
    /// The kernel's.
    fn set_offloads(&mut self, offloads: &[Offload]) -> io::Result<()>;

    /// Takes the next packet for the guest; its length, or `None` if none is there. The header's
    /// `num_buffers` is left to the caller.
    ///
    /// # Errors
    /// The interface cannot be used any more.
    fn receive(&mut self, pair: usize, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends one of the guest's.
    ///
    /// # Errors
    /// It is lost: there is no room, the link is down, or the kernel does not like the packet.
    fn send(&mut self, pair: usize, packet: &Gather<'_>) -> io::Result<()>;

    /// A file that never waits and of which each message is a packet, if there is one: for packets
    /// that are moved together.
    fn messages(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        let _ = pair;
        None
    }

    /// Becomes ready when a packet for the guest is there.
    fn packets(&self, pair: usize) -> Option<Source<'_>>;

    /// Becomes ready when the link may have changed.
    fn link_changes(&self) -> Source<'_>;

    /// The link's state; `None` if it cannot have changed since this was asked last.
    ///
    /// # Errors
    /// The kernel's.
    fn take_link_change(&mut self) -> io::Result<Option<LinkState>>;
}
