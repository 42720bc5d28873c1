//! Watches with a time that the test sets, on files of the host.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EfdFlags;
use tempfile::NamedTempFile;

use super::*;
use uring::waiting::wait_for;

const SIZE: u64 = 4096;

struct Bench {
    watches: SizeWatches,
    file: NamedTempFile,
    stats: Arc<DeviceStats>,
    watch: Option<SizeWatch>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE).unwrap();
        let flags = EfdFlags::EFD_NONBLOCK;
        let watches = SizeWatches::new(Arc::new(EventFd::from_flags(flags).unwrap()));
        let (stats, now) = (Arc::default(), Instant::now());
        let mut bench = Self { watches, file, stats, watch: None, now };
        bench.watch = Some(bench.watch(SIZE));
        bench
    }

    /// Watches the file for another disk.
    fn watch(&self, bytes: u64) -> SizeWatch {
        let watch = self.begin_watch(bytes);
        self.handle();
        watch
    }

    /// As [`Bench::watch`], before the supervisor notices.
    fn begin_watch(&self, bytes: u64) -> SizeWatch {
        self.watches.watch(self.file.as_file().as_fd(), bytes, &self.stats).unwrap()
    }

    /// The supervisor handles what has happened, while the file system does not answer.
    fn handle_hung(&self) -> thread::JoinHandle<()> {
        let (watches, now) = (self.watches.clone(), self.now);
        let gate = &self.watches.0.files.gate;
        gate.close();
        let handling = thread::spawn(move || watches.handle(now));
        gate.wait_for(1);
        handling
    }

    fn handle(&self) {
        self.watches.handle(self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.handle();
    }

    /// Whether the kernel would wake up the supervisor.
    fn is_woken(&self) -> bool {
        let mut fds: Vec<_> =
            self.watches.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        wait_for(&mut fds, Duration::ZERO).unwrap();
        fds.iter().any(|fd| fd.any().unwrap())
    }

    /// Whether the supervisor waits for events only.
    fn is_idle(&self) -> bool {
        self.watches.until_next(self.now) == Duration::MAX
    }

    /// Whether the disk was told, since the last call.
    fn is_told(&self) -> bool {
        is_told(self.watch.as_ref().unwrap())
    }

    fn grow(&self) {
        let bytes = self.file.as_file().metadata().unwrap().len();
        self.file.as_file().set_len(bytes + SIZE).unwrap();
    }

    /// The guest writes, and its device counts it.
    fn guest_writes(&mut self) {
        self.file.as_file_mut().write_all(b"guest").unwrap();
        DeviceStats::count(&self.stats.writes);
    }
}

/// Does something in a thread; fails the test if that takes 10 s.
fn within_10_s(what: &str, act: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        act();
        done.send(())
    });
    assert!(is_done.recv_timeout(Duration::from_secs(10)).is_ok(), "waited 10 s for {what}");
}

fn is_told(watch: &SizeWatch) -> bool {
    let mut fds = [PollFd::new(watch.source().fd, PollFlags::POLLIN)];
    wait_for(&mut fds, Duration::ZERO).unwrap();
    let told = fds[0].any().unwrap();
    watch.take();
    told
}

#[test]
fn idle_disk_learns_of_its_growth_by_an_event_and_causes_no_wake_up() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        assert!(bench.is_idle() && !bench.is_woken());
        bench.grow();
        assert!(bench.is_woken());
        bench.handle();
        assert!(bench.is_told());
        // After the interval the file is watched again.
        assert_eq!(bench.watches.until_next(bench.now), INTERVAL);
        bench.pass(INTERVAL);
        bench.handle();
        assert!(!bench.is_told());
    }
}

#[test]
fn writes_of_the_guest_wake_the_supervisor_once_an_interval() {
    let mut bench = Bench::new();
    bench.guest_writes();
    assert!(bench.is_woken());
    bench.handle();
    for _ in 0..3 {
        bench.handle();
        (0..10).for_each(|_| bench.guest_writes());
        assert!(!bench.is_woken());
        assert_eq!(bench.watches.until_next(bench.now), INTERVAL);
        bench.pass(INTERVAL);
        assert!(!bench.is_told());
    }
    // The disk grows while its guest writes: the next interval tells of it.
    bench.guest_writes();
    bench.grow();
    assert!(!bench.is_woken());
    bench.pass(INTERVAL);
    assert!(bench.is_told());
    // The guest is quiet for an interval.
    bench.pass(INTERVAL);
    assert!(bench.is_idle() && !bench.is_told());
}

#[test]
fn growth_before_the_file_is_watched_is_not_lost() {
    let mut bench = Bench::new();
    assert!(is_told(&bench.watch(SIZE - 512)));
    assert!(!is_told(&bench.watch(SIZE)));
    bench.guest_writes();
    bench.handle();
    bench.pass(INTERVAL);
    bench.grow();
    bench.pass(INTERVAL);
    assert!(bench.is_told());
}

#[test]
fn deleted_file_is_still_watched() {
    let bench = Bench::new();
    std::fs::remove_file(bench.file.path()).unwrap();
    bench.handle();
    bench.grow();
    assert!(bench.is_woken());
    bench.handle();
    assert!(bench.is_told());
}

#[test]
fn disks_on_one_file_are_told_each_until_they_end() {
    let mut bench = Bench::new();
    let other = bench.watch(SIZE);
    bench.grow();
    bench.handle();
    assert!(bench.is_told() && is_told(&other));
    bench.pass(INTERVAL);
    drop(other);
    bench.handle();
    bench.grow();
    bench.handle();
    assert!(bench.is_told());
    bench.pass(INTERVAL);
    bench.watch = None;
    bench.handle();
    bench.grow();
    assert!(bench.is_idle() && !bench.is_woken());
    assert!(bench.watches.0.lock().all.is_empty());
}

#[test]
fn file_that_the_kernel_does_not_report_is_compared_once_an_interval() {
    let mut bench = Bench::new();
    bench.watches.0.lock().all.values_mut().for_each(|disk| disk.reports = Reports::Never);
    bench.handle();
    for _ in 0..3 {
        bench.grow();
        assert_eq!(bench.watches.until_next(bench.now), INTERVAL);
        bench.pass(INTERVAL);
        assert!(bench.is_told());
    }
}

#[test]
fn file_system_that_does_not_answer_holds_up_no_other_disk() {
    let mut bench = Bench::new();
    let hung = bench.begin_watch(SIZE);
    let handling = bench.handle_hung();
    let (watches, first, now) = (bench.watches.clone(), bench.watch.take(), bench.now);
    let (file, stats) = (bench.file.reopen().unwrap(), Arc::clone(&bench.stats));
    within_10_s("disks to begin and to end", move || {
        watches.until_next(now);
        drop(first);
        watches.watch(file.as_fd(), SIZE, &stats).unwrap();
        drop(hung);
    });
    bench.watches.0.files.gate.open();
    handling.join().unwrap();
}

#[test]
fn disk_that_ends_while_its_file_system_does_not_answer_leaves_no_watch() {
    let mut bench = Bench::new();
    bench.watch = None;
    let hung = bench.begin_watch(SIZE);
    let handling = bench.handle_hung();
    within_10_s("a disk to end", || drop(hung));
    bench.watches.0.files.gate.open();
    handling.join().unwrap();
    bench.handle();
    bench.grow();
    assert!(bench.is_idle() && !bench.is_woken());
}
