//! Wakes another process up, which may do anything with its end: the sender neither waits nor
//! fails.
//!
//! An eventfd would be one open file for both: the other process could have a write to it wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

/// The sender's end.
#[derive(Debug)]
pub struct WakeUp(OwnedFd);

impl WakeUp {
    /// Both ends: the second is readable once this has been sent.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self(ours), theirs))
    }

    /// Wakes the other end up, if it is not awake.
    pub fn send(&self) {
        // If the socket is full, the other end has not read what woke it up; if it is closed,
        // nobody waits.
        let _ = send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Whether the other end was woken up since the last call.
///
/// # Errors
/// The kernel's.
pub fn take_wake_ups(end: impl AsFd) -> io::Result<bool> {
    match rustix::io::read(end, &mut [0; 64]) {
        Ok(count) => Ok(count > 0),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_does_not_wait_for_an_end_that_reads_nothing_or_is_closed() {
        let (wake_up, end) = WakeUp::pair().unwrap();
        assert!(!take_wake_ups(&end).unwrap());
        // What a hostile end may do: it waits in its own calls only.
        rustix::io::ioctl_fionbio(&end, false).unwrap();
        (0..1_000_000).for_each(|_| wake_up.send());
        assert!(take_wake_ups(&end).unwrap());
        drop(end);
        wake_up.send();
    }
}
