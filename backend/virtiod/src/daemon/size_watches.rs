//! Notices that the files and block devices of disks change their sizes, without a wake-up while
//! nothing happens.
//!
//! The kernel reports the change of a block device's size by an event, and that of a file like any
//! write to it, so also the writes of the disk's own guest. A file is therefore watched until the
//! first write, and again when the guest has written nothing for [`INTERVAL`]; meanwhile its size
//! is compared once each interval. This also holds for what the kernel has no events for.

#[cfg(test)]
mod tests;
mod uevents;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::stat::{major, minor};
use rustix::fs::{AtFlags, StatxFlags, statx};

use self::uevents::Uevents;
use crate::device::blk::{SECTOR_SIZE, SizeSignal, SizeWatch, SizeWatcher};
use crate::stats::DeviceStats;

/// Interval at which the size of a file is compared while its guest writes.
const INTERVAL: Duration = Duration::from_secs(2);

/// The kernel reports this file's next change only.
const NEXT_CHANGE: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_ONESHOT);

/// The watches on the disks' sizes. Devices' threads add and drop them; the supervisor waits for
/// the kernel's events and handles them.
#[derive(Clone)]
pub struct SizeWatches(Arc<Shared>);

struct Shared {
    inotify: Inotify,
    /// Opened for the first block device.
    uevents: OnceLock<Uevents>,
    disks: Mutex<Disks>,
    /// Wakes the supervisor up: it has to wait for something else.
    waker: Arc<EventFd>,
}

#[derive(Default)]
struct Disks {
    all: BTreeMap<u64, Disk>,
    last: u64,
    /// When sizes are compared next.
    next: Option<Instant>,
}

/// A watched disk.
struct Disk {
    size: SizeOf,
    reports: Reports,
    /// The size that the device was told of.
    bytes: u64,
    changed: Arc<SizeSignal>,
    stats: Arc<DeviceStats>,
    /// The guest's writes when they were counted last.
    writes: u64,
}

/// The place where a size is read. It holds no lock on the file, nor keeps it from being locked.
enum SizeOf {
    /// A descriptor opened with `O_PATH`.
    File(File),
    /// The attribute in sysfs.
    Device(PathBuf),
}

/// The way in which the kernel reports a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reports {
    /// By inotify; `None` until the next interval.
    Inotify(Option<WatchDescriptor>),
    /// By an event about devices.
    Uevent,
    /// Not at all.
    Never,
}

impl SizeOf {
    /// Opens the place for the size of a file, and whether the kernel reports changes by events.
    fn open(file: BorrowedFd<'_>) -> io::Result<(Self, bool)> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() {
            return Ok((Self::File(file), true));
        }
        let number = metadata.rdev();
        let number = format!("{}:{}", major(number), minor(number));
        let device = Path::new("/sys/dev/block").join(number);
        let is_partition = device.join("partition").exists();
        Ok((Self::Device(device.join("size")), !is_partition))
    }

    fn bytes(&self) -> io::Result<u64> {
        match self {
            // What the kernel knows: a network file system's server may not answer, and other
            // devices wait for this.
            Self::File(file) => {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
                Ok(statx(file, "", flags, StatxFlags::SIZE)?.stx_size)
            }
            Self::Device(attribute) => {
                let sectors: u64 =
                    fs::read_to_string(attribute)?.trim().parse().map_err(io::Error::other)?;
                Ok(sectors.saturating_mul(SECTOR_SIZE))
            }
        }
    }
}

impl Disk {
    fn needs_interval(&self) -> bool {
        matches!(self.reports, Reports::Inotify(None) | Reports::Never)
    }

    /// Tells the device if its size is another. The device reads the size again, also after errors.
    fn compare(&mut self) {
        let bytes = self.size.bytes();
        if bytes.as_ref().ok() == Some(&self.bytes) {
            return;
        }
        self.bytes = bytes.unwrap_or(self.bytes);
        if let Err(error) = self.changed.set() {
            tracing::warn!(%error, "cannot tell a disk that its size changed");
        }
    }

    /// Whether the guest has written since the last call.
    fn has_written(&mut self) -> bool {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let writes = read(&self.stats.writes).wrapping_add(read(&self.stats.discards));
        std::mem::replace(&mut self.writes, writes) != writes
    }

    /// Has the kernel report the next change of a file, and compares its size, since it may have
    /// changed before.
    fn arm(&mut self, inotify: &Inotify) {
        if let (SizeOf::File(file), Reports::Inotify(watch)) = (&self.size, &mut self.reports) {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            // Without a watch, as beyond the limit of a user's, the size is compared each interval.
            *watch = inotify.add_watch(path.as_str(), NEXT_CHANGE).ok();
        }
        self.compare();
    }
}

impl SizeWatches {
    /// No disk is watched yet. `waker` wakes up the supervisor, to call [`SizeWatches::handle`].
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new(waker: Arc<EventFd>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let (uevents, disks) = (OnceLock::new(), Mutex::default());
        Ok(Self(Arc::new(Shared { inotify, uevents, disks, waker })))
    }

    /// The descriptors to wait for.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let uevents = self.0.uevents.get().map(Uevents::fd);
        std::iter::once(self.0.inotify.as_fd()).chain(uevents)
    }

    /// How long to wait at most: [`Duration::MAX`] while no guest writes to its disk.
    pub fn until_next(&self, now: Instant) -> Duration {
        let next = self.0.lock().next;
        next.map_or(Duration::MAX, |next| next.saturating_duration_since(now))
    }

    /// Handles what has happened.
    pub fn handle(&self, now: Instant) {
        let modified = self.0.take_modified();
        let devices = self.0.uevents.get().is_some_and(Uevents::take_changes);
        let mut disks = self.0.lock();
        let is_over = disks.next.take_if(|next| *next <= now).is_some();
        for disk in disks.all.values_mut() {
            let reports = disk.reports;
            match reports {
                Reports::Inotify(Some(watch)) if modified.contains(&watch) => {
                    disk.reports = Reports::Inotify(None);
                    disk.has_written();
                    disk.compare();
                }
                Reports::Inotify(None) if is_over && !disk.has_written() => {
                    disk.arm(&self.0.inotify);
                }
                Reports::Inotify(None) | Reports::Never if is_over => disk.compare(),
                Reports::Uevent if devices => disk.compare(),
                Reports::Inotify(_) | Reports::Never | Reports::Uevent => {}
            }
        }
        if disks.next.is_none() && disks.all.values().any(Disk::needs_interval) {
            disks.next = Some(now + INTERVAL);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Disks> {
        // A panic elsewhere may poison the lock; the disks are consistent after every step.
        self.disks.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the watches of files that were modified.
    fn take_modified(&self) -> BTreeSet<WatchDescriptor> {
        match self.inotify.read_events() {
            Ok(events)
                if events.iter().any(|it| it.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) =>
            {
                let disks = self.lock();
                let watch = |disk: &Disk| match disk.reports {
                    Reports::Inotify(watch) => watch,
                    Reports::Uevent | Reports::Never => None,
                };
                disks.all.values().filter_map(watch).collect()
            }
            Ok(events) => events.into_iter().map(|event| event.wd).collect(),
            Err(Errno::EAGAIN) => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel's events about files");
                BTreeSet::new()
            }
        }
    }

    /// Whether events about block devices are received.
    fn has_uevents(&self) -> bool {
        if self.uevents.get().is_some() {
            return true;
        }
        match Uevents::open() {
            // Another thread may have been faster.
            Ok(opened) => drop(self.uevents.set(opened)),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no events about block devices: their sizes are compared every {INTERVAL:?}"
                );
            }
        }
        self.uevents.get().is_some()
    }

    fn drop_disk(&self, number: u64) {
        let mut disks = self.lock();
        let Some(Disk { reports, .. }) = disks.all.remove(&number) else { return };
        let is_shared = disks.all.values().any(|disk| disk.reports == reports);
        if let Reports::Inotify(Some(watch)) = reports
            && !is_shared
        {
            // Fails if the file was just modified, or deleted: then the watch has ended.
            let _ = self.inotify.rm_watch(watch);
        }
    }
}

impl SizeWatcher for SizeWatches {
    fn watch(
        &self,
        file: BorrowedFd<'_>,
        bytes: u64,
        stats: &Arc<DeviceStats>,
    ) -> io::Result<SizeWatch> {
        let (size, has_events) = SizeOf::open(file)?;
        let reports = match size {
            _ if !has_events => Reports::Never,
            SizeOf::File(_) => Reports::Inotify(None),
            SizeOf::Device(_) if self.0.has_uevents() => Reports::Uevent,
            SizeOf::Device(_) => Reports::Never,
        };
        let changed = Arc::new(SizeSignal::new()?);
        let stats = Arc::clone(stats);
        let mut disk =
            Disk { size, reports, bytes, changed: Arc::clone(&changed), stats, writes: 0 };
        disk.has_written();
        let mut disks = self.0.lock();
        disk.arm(&self.0.inotify);
        disks.last += 1;
        let number = disks.last;
        disks.all.insert(number, disk);
        drop(disks);
        // The supervisor waits for the interval, or for events about devices, from now on.
        self.0.waker.write(1)?;
        Ok(SizeWatch::new(changed, Watched { watches: self.clone(), number }))
    }
}

/// Ends the watch of a disk.
struct Watched {
    watches: SizeWatches,
    number: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watches.0.drop_disk(self.number);
    }
}
