//! A pseudo-terminal: the daemon has one end, a terminal program opens the other.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd;
use rustix::pty::ptsname;
use rustix::termios::tcgetwinsize;

use crate::device::Source;

/// A window's size in characters; zeros if the size is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Number of characters in a row.
    pub columns: u16,
    /// Number of rows.
    pub rows: u16,
}

/// A pseudo-terminal in raw mode: it transfers bytes unchanged.
#[derive(Debug)]
pub struct Pty {
    ours: OwnedFd,
    path: PathBuf,
    /// Kept open: while nobody has the other end open, the kernel reports a hang-up at every poll.
    theirs: OwnedFd,
}

/// Opens pseudo-terminals for consoles.
pub trait Terminals: Send + Sync {
    /// A new terminal, or the one that the device had in an earlier process.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&self) -> io::Result<Pty>;
}

/// Terminals of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalTerminals;

impl Terminals for LocalTerminals {
    fn open(&self) -> io::Result<Pty> {
        Pty::open()
    }
}

impl Pty {
    /// Creates a pseudo-terminal.
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
        // No echo, or the guest would read its own output. Line editing is left to the guest.
        let mut settings = tcgetattr(&theirs)?;
        cfmakeraw(&mut settings);
        tcsetattr(&theirs, SetArg::TCSANOW, &settings)?;
        Ok(Self { ours: ours.into(), path, theirs: theirs.into() })
    }

    /// The pseudo-terminal at `path`, whose ends another process has opened.
    pub fn of([ours, theirs]: [OwnedFd; 2], path: PathBuf) -> Self {
        Self { ours, path, theirs }
    }

    /// As [`Pty::of`], with the path that the kernel says.
    ///
    /// # Errors
    /// The kernel's, if the first is no end of a terminal.
    pub fn of_ends(ends: [OwnedFd; 2]) -> io::Result<Self> {
        let [ours, _] = &ends;
        let path = ptsname(ours, Vec::new())?.into_string().map_err(io::Error::other)?;
        Ok(Self::of(ends, path.into()))
    }

    /// Both ends, for another process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn ends(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.ours.try_clone()?, self.theirs.try_clone()?])
    }

    /// Makes our end non-blocking again, whatever an earlier process did to it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reset(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.ours, true)?)
    }

    /// The path of the device that a terminal program opens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size that a terminal program, or `stty`, set at the other end.
    pub(super) fn size(&self) -> io::Result<Size> {
        let size = tcgetwinsize(&self.ours)?;
        Ok(Size { columns: size.ws_col, rows: size.ws_row })
    }

    /// Reads typed bytes, as many as fit; `None` if there are none.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        unless_it_would_wait(unistd::read(&self.ours, into))
    }

    /// Writes bytes, as many as the terminal has capacity for; `None` if it has none.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        unless_it_would_wait(unistd::write(&self.ours, bytes))
    }

    /// A source that becomes ready for these events.
    pub(super) fn source(&self, events: PollFlags) -> Source<'_> {
        Source { fd: self.ours.as_fd(), events }
    }
}

fn unless_it_would_wait(outcome: nix::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        // A transfer of no bytes is no progress.
        Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(errno) => Err(errno.into()),
    }
}
