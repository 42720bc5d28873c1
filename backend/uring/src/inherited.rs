//! Descriptors that a process was started with, as systemd passes them.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, fcntl};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// Whether they were taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the first `count` descriptors behind standard error, once.
///
/// # Errors
/// They were taken before, or one of them is not open.
pub fn inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    // Relaxed: it orders nothing else.
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let count = i32::try_from(count).map_err(io::Error::other)?;
    (FIRST..FIRST.saturating_add(count))
        .map(|number| {
            // SAFETY: the caller says that the process was started with these descriptors, and
            // they are taken once, so nothing else owns them. One that is not open is dropped by
            // nobody: the check below forgets it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            match fcntl(&descriptor, FcntlArg::F_GETFD) {
                Ok(_) => Ok(descriptor),
                Err(errno) => {
                    std::mem::forget(descriptor);
                    Err(errno.into())
                }
            }
        })
        .collect()
}
