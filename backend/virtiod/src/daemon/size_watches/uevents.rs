//! The kernel's events about devices.
//!
//! A block device whose size changes sends an event `change`: disks and loop devices with
//! `RESIZE=1`, the device mapper without. A partition that `BLKPG_RESIZE_PARTITION` resizes sends
//! none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};

/// The multicast group of the kernel's own events; udev's are in another.
const KERNEL: u32 = 1;
/// Maximum number of events that one call reads; others keep the socket readable.
const EVENT_BUDGET: usize = 64;
/// The begin of an event about a device that changed.
const CHANGE: &[u8] = b"change@";

/// A socket that receives them.
pub(super) struct Uevents(Socket);

impl Uevents {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL))?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// A descriptor that is readable after an event.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes pending events; returns whether a device may have changed. The caller reads the sizes
    /// that it depends on, so piled-up or lost events cost one read.
    pub(super) fn take_changes(&self) -> bool {
        let mut changed = false;
        for _ in 0..EVENT_BUDGET {
            // The kernel truncates the event.
            let mut begin = [0; CHANGE.len()];
            match self.0.recv(&mut begin.as_mut_slice(), 0) {
                Ok(_) => changed |= begin == CHANGE,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
                // The kernel dropped some.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the kernel's events about devices");
                    return true;
                }
            }
        }
        changed
    }
}
