//! The wait for a file descriptor.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until `source` is readable, a signal arrives or `limit` is over. It does not report which;
/// the caller checks all its conditions again.
///
/// # Errors
/// The error of `poll`, other than EINTR.
pub(crate) fn wait(source: &impl AsFd, limit: Duration) -> Result<(), nix::Error> {
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
