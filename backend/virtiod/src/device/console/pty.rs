//! A pseudo-terminal: the daemon has its one side, a person's terminal program opens the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd;
use rustix::termios::tcgetwinsize;

use crate::device::Source;

/// A window's size in characters; zeros if it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A pseudo-terminal that moves bytes as they are.
#[derive(Debug)]
pub struct Pty {
    ours: PtyMaster,
    path: PathBuf,
    /// Kept open: with nobody on the other side, the kernel would report a hang-up without end.
    _theirs: File,
}

impl Pty {
    /// A new one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let ours = posix_openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = PathBuf::from(ptsname_r(&ours)?);
        let no_control = OFlag::O_NOCTTY.bits();
        let theirs =
            OpenOptions::new().read(true).write(true).custom_flags(no_control).open(&path)?;
        // No echo, or the guest would read what it prints; no line editing: that is the guest's.
        let mut settings = tcgetattr(&theirs)?;
        cfmakeraw(&mut settings);
        tcsetattr(&theirs, SetArg::TCSANOW, &settings)?;
        Ok(Self { ours, path, _theirs: theirs })
    }

    /// What a terminal program opens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size that the other side was given: by a terminal program, or by `stty`.
    pub(super) fn size(&self) -> io::Result<Size> {
        let size = tcgetwinsize(&self.ours)?;
        Ok(Size { columns: size.ws_col, rows: size.ws_row })
    }

    /// Takes what was typed, as far as it fits; `None` if nothing was.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        unless_it_would_wait(unistd::read(&self.ours, into))
    }

    /// Prints, as far as there is capacity; `None` if there is none.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        unless_it_would_wait(unistd::write(&self.ours, bytes))
    }

    /// Becomes ready for what is asked.
    pub(super) fn source(&self, events: PollFlags) -> Source<'_> {
        Source { fd: self.ours.as_fd(), events }
    }
}

fn unless_it_would_wait(outcome: nix::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        // No byte moved is no progress.
        Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(errno) => Err(errno.into()),
    }
}
