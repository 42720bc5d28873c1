//! The interface through which a network device exchanges packets with the host.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::device::{Gather, Source};

/// Bytes of `struct virtio_net_hdr` in front of every frame (virtio 1.3 section 5.1.6), with
/// `num_buffers`, as every device of version 1 has it.
pub const HEADER_SIZE: usize = 12;
/// Maximum number of bytes of a packet: header, Ethernet header, and 64 KiB that are segmented
/// later.
pub const MAX_PACKET: usize = HEADER_SIZE + 14 + (64 << 10);

/// Work on received packets that the guest can do in place of their sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// To complete partial checksums.
    Checksum,
    /// To take TCP over IPv4 in segments of up to 64 KiB.
    Tso4,
    /// To take TCP over IPv6 in segments of up to 64 KiB.
    Tso6,
    /// To take such segments with explicit congestion notification.
    TsoEcn,
}

/// The state of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// The link carries no packets.
    Down,
    /// The link carries packets.
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

/// The host's end of a guest's network device. It transfers whole packets, each with a header of
/// [`HEADER_SIZE`] bytes in front.
pub trait Interface: Send {
    /// Maximum payload in bytes of a frame that is not segmented.
    fn mtu(&self) -> u16;

    /// Distributes packets for the guest over the first `count` queue pairs from now on. With 0,
    /// such packets are dropped and none waits.
    ///
    /// # Errors
    /// The kernel's.
    fn use_pairs(&mut self, count: usize) -> io::Result<()>;

    /// Sets the offloads: packets may need no other work of the guest than this.
    ///
    /// # Errors
    /// The kernel's.
    fn set_offloads(&mut self, offloads: &[Offload]) -> io::Result<()>;

    /// Receives the next packet for the guest and returns its length, or `None` if there is none.
    /// The caller sets `num_buffers` in the header.
    ///
    /// # Errors
    /// The kernel's; the interface cannot be used any more.
    fn receive(&mut self, pair: usize, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends a packet of the guest.
    ///
    /// # Errors
    /// The packet is lost: the interface has no capacity, the link is down, or the kernel refuses
    /// the packet.
    fn send(&mut self, pair: usize, packet: &Gather<'_>) -> io::Result<()>;

    /// Has the interface, with its name and as its bridge's port, outlive this process, or not.
    ///
    /// # Errors
    /// The kernel's.
    fn keep(&mut self, is_kept: bool) -> io::Result<()> {
        let _ = is_kept;
        Ok(())
    }

    /// A non-blocking file whose messages are packets, if the interface has one: for packets that
    /// are transferred together.
    fn messages(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        let _ = pair;
        None
    }

    /// Whether the kernel may receive packets of these files before they are asked for.
    fn arrives_unasked(&self) -> bool {
        true
    }

    /// A source that becomes ready when a packet for the guest arrives.
    fn packets(&self, pair: usize) -> Option<Source<'_>>;

    /// A source that becomes ready when the link may have changed.
    fn link_changes(&self) -> Source<'_>;

    /// Returns the link's state; `None` if it cannot have changed since the previous call.
    ///
    /// # Errors
    /// The kernel's.
    fn take_link_change(&mut self) -> io::Result<Option<LinkState>>;
}
