//! Notices that the files and block devices of disks change their sizes, without a wake-up while
//! nothing happens.
//!
//! The kernel reports the change of a block device's size by an event, and that of a file like any
//! write to it, so also the writes of the disk's own guest. A file is therefore watched until the
//! first write, and again when the guest has written nothing for [`INTERVAL`]; meanwhile its size
//! is compared once each interval. This also holds for what the kernel has no events for.
//!
//! A file system may keep a caller waiting, and all disks share the watches. So no lock is held
//! while a file is asked for something, and files of which somebody else than the kernel knows are
//! not asked: [`file_system`].

mod file_events;
mod file_system;
#[cfg(test)]
mod tests;
mod uevents;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use nix::sys::inotify::WatchDescriptor;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::fstatfs;
use rustix::fs::{AtFlags, StatxFlags, statx};

use self::file_events::{FileEvents, Written};
use self::file_system::Knowledge;
use self::uevents::Uevents;
use crate::device::blk::{SECTOR_SIZE, SizeListener, SizeSignal, SizeWatch, SizeWatcher};
use crate::stats::DeviceStats;

/// Interval at which the size of a file is compared while its guest writes.
const INTERVAL: Duration = Duration::from_secs(2);

/// The watches on the disks' sizes. Devices' threads add and drop them; the main thread of their
/// process waits for the kernel's events and handles them.
#[derive(Clone)]
pub struct SizeWatches(Arc<Shared>);

struct Shared {
    /// Used in [`SizeWatches::handle`] only: no event is taken for a watch that no disk has yet.
    files: FileEvents,
    /// Opened for the first block device.
    uevents: OnceLock<Uevents>,
    disks: Mutex<Disks>,
    /// Wakes the main thread up: there is something for [`SizeWatches::handle`].
    waker: Arc<EventFd>,
}

#[derive(Default)]
struct Disks {
    all: BTreeMap<u64, Disk>,
    last: u64,
    /// When sizes are compared next.
    next: Option<Instant>,
    /// Watches that disks had which are gone.
    left: Vec<WatchDescriptor>,
}

/// A watched disk.
struct Disk {
    size: Arc<SizeOf>,
    reports: Reports,
    /// Whether its size was not compared yet.
    is_new: bool,
    /// The size that the device was told of.
    bytes: u64,
    changed: Arc<dyn SizeListener>,
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

/// What has happened since the last call of [`SizeWatches::handle`].
struct Happened {
    written: Written,
    /// A block device may have changed.
    devices: bool,
    /// The interval is over.
    interval: bool,
}

/// What the main thread does about the size of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    /// It compares the size.
    Compare,
    /// It has the kernel report the next write, and compares the size, since it may have changed
    /// before.
    Watch,
}

impl SizeOf {
    /// Opens the place for the size of a file, with the way in which the kernel may report changes.
    fn open(file: BorrowedFd<'_>) -> io::Result<(Self, Reports)> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = opened.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(Self::of_device(metadata.rdev()));
        }
        let kind = fstatfs(file)?.filesystem_type();
        let reports = match Knowledge::of(kind) {
            Knowledge::Kernel => Reports::Inotify(None),
            Knowledge::Remembered => Reports::Never,
            Knowledge::Unknown => {
                let why = format!("its file system, of type {:#x}, may have to ask for it", kind.0);
                return Err(io::Error::other(why));
            }
        };
        Ok((Self::File(opened), reports))
    }

    fn of_device(number: u64) -> (Self, Reports) {
        let number = format!("{}:{}", major(number), minor(number));
        let device = Path::new("/sys/dev/block").join(number);
        let is_partition = device.join("partition").exists();
        let reports = if is_partition { Reports::Never } else { Reports::Uevent };
        (Self::Device(device.join("size")), reports)
    }

    fn bytes(&self) -> io::Result<u64> {
        match self {
            // What the kernel knows: a network file system's server may not answer.
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
        !self.is_new && matches!(self.reports, Reports::Inotify(None) | Reports::Never)
    }

    /// What is to be done about it now, if anything.
    fn take_check(&mut self, happened: &Happened) -> Option<Check> {
        let is_new = std::mem::take(&mut self.is_new);
        let reports = self.reports;
        match reports {
            Reports::Inotify(Some(watch)) if happened.written.contains(watch) => {
                self.reports = Reports::Inotify(None);
                self.has_written();
                Some(Check::Compare)
            }
            Reports::Inotify(None) if is_new || happened.interval && !self.has_written() => {
                Some(Check::Watch)
            }
            Reports::Inotify(None) | Reports::Never if is_new || happened.interval => {
                Some(Check::Compare)
            }
            Reports::Uevent if is_new || happened.devices => Some(Check::Compare),
            Reports::Inotify(_) | Reports::Never | Reports::Uevent => None,
        }
    }

    /// Tells the device if its size is another. The device reads the size again, also after errors.
    fn compare(&mut self, bytes: io::Result<u64>) {
        if bytes.as_ref().ok() == Some(&self.bytes) {
            return;
        }
        self.bytes = bytes.unwrap_or(self.bytes);
        if let Err(error) = self.changed.notify() {
            tracing::warn!(%error, "cannot tell a disk that its size changed");
        }
    }

    /// Whether the guest has written since the last call.
    fn has_written(&mut self) -> bool {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let writes = read(&self.stats.writes).wrapping_add(read(&self.stats.discards));
        std::mem::replace(&mut self.writes, writes) != writes
    }
}

impl Disks {
    fn take_checks(&mut self, happened: &Happened) -> Vec<(u64, Arc<SizeOf>, Check)> {
        let check = |(number, disk): (&u64, &mut Disk)| {
            let check = disk.take_check(happened)?;
            Some((*number, Arc::clone(&disk.size), check))
        };
        self.all.iter_mut().filter_map(check).collect()
    }

    /// Takes the watches that no disk has any more; two disks on one file share one.
    fn take_left(&mut self) -> Vec<WatchDescriptor> {
        let mut left = std::mem::take(&mut self.left);
        let is_used = |watch| {
            let reports = Reports::Inotify(Some(watch));
            self.all.values().any(|disk| disk.reports == reports)
        };
        left.retain(|watch| !is_used(*watch));
        left
    }
}

impl SizeWatches {
    /// No disk is watched yet. `waker` wakes up the thread that calls [`SizeWatches::handle`].
    pub fn new(waker: Arc<EventFd>) -> Self {
        let files = FileEvents::default();
        let (uevents, disks) = (OnceLock::new(), Mutex::default());
        Self(Arc::new(Shared { files, uevents, disks, waker }))
    }

    /// What wakes up the thread that calls [`SizeWatches::handle`].
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.0.waker)
    }

    /// The descriptors to wait for.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let uevents = self.0.uevents.get().map(Uevents::fd);
        self.0.files.fd().into_iter().chain(uevents)
    }

    /// How long to wait at most: [`Duration::MAX`] while no guest writes to its disk.
    pub fn until_next(&self, now: Instant) -> Duration {
        let next = self.0.lock().next;
        next.map_or(Duration::MAX, |next| next.saturating_duration_since(now))
    }

    /// Handles what has happened. One thread calls this, the main one.
    pub fn handle(&self, now: Instant) {
        let shared = &*self.0;
        let left = shared.lock().take_left();
        left.into_iter().for_each(|watch| shared.files.forget(watch));
        let written = shared.files.take();
        let devices = shared.uevents.get().is_some_and(Uevents::take_changes);
        let checks = {
            let mut disks = shared.lock();
            let interval = disks.next.take_if(|next| *next <= now).is_some();
            disks.take_checks(&Happened { written, devices, interval })
        };
        checks.into_iter().for_each(|(number, size, check)| shared.check(number, &size, check));
        let mut disks = shared.lock();
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

    /// Checks a disk, which may end meanwhile: nobody waits for its file system.
    fn check(&self, number: u64, size: &SizeOf, check: Check) {
        let watch = match (check, size) {
            // Without a watch, as beyond the limit of a user's, the size is compared each interval.
            (Check::Watch, SizeOf::File(file)) => self.files.watch(file).ok(),
            _ => None,
        };
        let bytes = size.bytes();
        let mut disks = self.lock();
        match disks.all.get_mut(&number) {
            Some(disk) => {
                if check == Check::Watch {
                    disk.reports = Reports::Inotify(watch);
                }
                disk.compare(bytes);
            }
            None => disks.left.extend(watch),
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
        let disk = disks.all.remove(&number);
        if let Some(Disk { reports: Reports::Inotify(watch), .. }) = &disk {
            disks.left.extend(*watch);
        }
        drop(disks);
        // Without it, the watch ends at the next occasion.
        let _ = self.waker.write(1);
    }
}

impl SizeWatches {
    /// As [`SizeWatcher::watch`], for this listener, until the result is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch_for(
        &self,
        file: BorrowedFd<'_>,
        bytes: u64,
        stats: &Arc<DeviceStats>,
        changed: Arc<dyn SizeListener>,
    ) -> io::Result<Watched> {
        let (size, reports) = SizeOf::open(file)?;
        let reports = match reports {
            Reports::Uevent if !self.0.has_uevents() => Reports::Never,
            reports => reports,
        };
        let mut disk = Disk {
            size: Arc::new(size),
            reports,
            is_new: true,
            bytes,
            changed,
            stats: Arc::clone(stats),
            writes: 0,
        };
        disk.has_written();
        let mut disks = self.0.lock();
        disks.last += 1;
        let number = disks.last;
        disks.all.insert(number, disk);
        drop(disks);
        let watched = Watched { watches: self.clone(), number };
        self.0.waker.write(1)?;
        Ok(watched)
    }
}

impl SizeWatcher for SizeWatches {
    fn watch(
        &self,
        file: BorrowedFd<'_>,
        bytes: u64,
        stats: &Arc<DeviceStats>,
    ) -> io::Result<SizeWatch> {
        let changed = Arc::new(SizeSignal::new()?);
        let watched = self.watch_for(file, bytes, stats, Arc::clone(&changed) as _)?;
        Ok(SizeWatch::new(changed, watched))
    }
}

/// The watch of a disk, which ends when this is dropped.
pub struct Watched {
    watches: SizeWatches,
    number: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watches.0.drop_disk(self.number);
    }
}
