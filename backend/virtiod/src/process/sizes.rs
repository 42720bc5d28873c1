//! The sizes of disks as a guest's process has them: the supervisor watches the files.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::sys::eventfd::EventFd;

use super::link::DeviceLink;
use super::message::{ImageRequest, Request};
use crate::device::blk::{FileId, SizeSignal, SizeWatch, SizeWatcher};
use crate::stats::DeviceStats;
use crate::wakeup::take_wake_ups;

/// The watches of all disks of a process. Its main thread waits for them and tells the disks, which
/// look at memory only.
#[derive(Clone)]
pub struct SizeEvents(Arc<Shared>);

struct Shared {
    watches: Mutex<Watches>,
    /// Wakes the main thread up: there is another watch.
    waker: Arc<EventFd>,
}

#[derive(Default)]
struct Watches {
    all: BTreeMap<u64, Arc<Watched>>,
    last: u64,
}

/// A disk's watch.
pub struct Watched {
    /// Readable when the supervisor tells that the size may have changed.
    changed: OwnedFd,
    signal: Arc<SizeSignal>,
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }
}

impl Watched {
    /// Tells the disk if its size may have changed.
    pub fn handle(&self) {
        if matches!(take_wake_ups(&self.changed), Ok(true))
            && let Err(error) = self.signal.set()
        {
            tracing::warn!(%error, "cannot tell a disk that its size changed");
        }
    }
}

impl SizeEvents {
    /// No disk is watched yet. `waker` wakes up the thread that waits for [`SizeEvents::all`].
    pub fn new(waker: Arc<EventFd>) -> Self {
        Self(Arc::new(Shared { watches: Mutex::default(), waker }))
    }

    /// The watches to wait for.
    pub fn all(&self) -> Vec<Arc<Watched>> {
        self.lock().all.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Watches> {
        self.0.watches.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, changed: OwnedFd) -> io::Result<SizeWatch> {
        let signal = Arc::new(SizeSignal::new()?);
        let watched = Watched { changed, signal: Arc::clone(&signal) };
        let mut watches = self.lock();
        watches.last += 1;
        let number = watches.last;
        watches.all.insert(number, Arc::new(watched));
        drop(watches);
        let watch = SizeWatch::new(signal, End { events: self.clone(), number });
        self.0.waker.write(1)?;
        Ok(watch)
    }
}

/// Ends a disk's watch.
struct End {
    events: SizeEvents,
    number: u64,
}

impl Drop for End {
    fn drop(&mut self) {
        self.events.lock().all.remove(&self.number);
    }
}

/// Watches the size of one disk, by the supervisor.
pub struct SupervisedSizes {
    link: Arc<DeviceLink>,
    events: SizeEvents,
}

impl SupervisedSizes {
    /// Watches by `link`, among the process's `events`.
    pub fn new(link: Arc<DeviceLink>, events: SizeEvents) -> Self {
        Self { link, events }
    }
}

impl SizeWatcher for SupervisedSizes {
    fn watch(
        &self,
        file: BorrowedFd<'_>,
        bytes: u64,
        _: &Arc<DeviceStats>,
    ) -> io::Result<SizeWatch> {
        let file = FileId::of_file(&file.try_clone_to_owned()?.into()).map_err(io::Error::other)?;
        let request = Request::Image(ImageRequest::WatchSize { file, bytes });
        self.events.add(self.link.ask_for_file(&request)?)
    }
}
