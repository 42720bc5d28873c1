//! The kernel's events about files that somebody writes to.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

#[cfg(test)]
use crate::tests::gate::Gate;

/// The kernel reports this file's next change only.
const NEXT_CHANGE: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_ONESHOT);

/// Watched files to which somebody wrote.
pub(super) enum Written {
    These(BTreeSet<WatchDescriptor>),
    /// The kernel dropped events.
    AllPerhaps,
}

impl Written {
    pub(super) fn contains(&self, watch: WatchDescriptor) -> bool {
        match self {
            Self::These(watches) => watches.contains(&watch),
            Self::AllPerhaps => true,
        }
    }
}

/// Watches on files.
#[derive(Default)]
pub(super) struct FileEvents {
    /// Opened for the first file: a user may have as few as 128 of them.
    inotify: OnceLock<Inotify>,
    /// Where a call about a file waits for its file system.
    #[cfg(test)]
    pub(super) gate: Gate,
}

impl FileEvents {
    /// A descriptor that is readable after an event; `None` before the first watch.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.get().map(AsFd::as_fd)
    }

    /// Opens what reports the events, if it is not open.
    fn opened(&self) -> io::Result<&Inotify> {
        if let Some(inotify) = self.inotify.get() {
            return Ok(inotify);
        }
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(self.inotify.get_or_init(|| inotify))
    }

    /// Has the kernel report the next write to a file. It asks the file system for permission,
    /// which may take as long as storage does.
    ///
    /// # Errors
    /// The kernel's, as beyond the limit of a user's watches.
    pub(super) fn watch(&self, file: &File) -> io::Result<WatchDescriptor> {
        #[cfg(test)]
        self.gate.pass();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(self.opened()?.add_watch(path.as_str(), NEXT_CHANGE)?)
    }

    /// Ends a watch.
    pub(super) fn forget(&self, watch: WatchDescriptor) {
        // Fails if the file was just written to, or deleted: then the watch has ended.
        let _ = self.inotify.get().map(|inotify| inotify.rm_watch(watch));
    }

    /// Takes the pending events.
    pub(super) fn take(&self) -> Written {
        let Some(inotify) = self.inotify.get() else { return Written::These(BTreeSet::new()) };
        let events = inotify.read_events().unwrap_or_else(|error| {
            if error != Errno::EAGAIN {
                tracing::warn!(%error, "cannot read the kernel's events about files");
            }
            Vec::new()
        });
        match events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) {
            true => Written::AllPerhaps,
            false => Written::These(events.into_iter().map(|event| event.wd).collect()),
        }
    }
}
