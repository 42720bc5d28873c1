//! A guest with a disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};
use protocol::grant::PAGE_SIZE;
use protocol::message::{
    BindOutcome, FeatureBlocks, Request, Response, ShareOutcome, VqueueFlags, VqueueUpdate,
};
use protocol::page::SLOT_SIZE;
use protocol::pool::PoolPage;
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vm_memory::{Bytes, VolatileSlice};
use xen::{Access, DomId, EventChannels, EventError, LocalPort, RemotePort, Xen};
use xen_sim::{Guest, GuestPage, Hypervisor, SimGrants};

use xen_virtiod::bus::scheduler::clock::Clock;
use xen_virtiod::bus::scheduler::{Step, Woken};
use xen_virtiod::bus::transport::{Effects, Transport};
use xen_virtiod::config::{PollTime, ServiceSettings, ThreadLimit};
use xen_virtiod::device::blk::{
    AccessMode, Block, Caching, Discard, ImageFormat, InFlightLimits, Owner, Sharing, Target,
    TargetOptions,
};
use xen_virtiod::dma::DmaMemory;
use xen_virtiod::dma::budget::GuestBudget;
use xen_virtiod::dma::grants::GrantPlatform;
use xen_virtiod::stats::DeviceStats;

/// A folder in memory.
const IN_MEMORY: &str = "/dev/shm";

/// Requests in a batch.
pub(super) const BATCH: u16 = 32;
/// Entries of the ring.
const ENTRIES: u16 = 128;

/// The granted pages: one for each area of the ring.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 1;
const USED: usize = 2;
/// The first chunk of the pool has tables, headers and status bytes, the second has data.
const TABLES: usize = 3;
const HEADERS: usize = 4;
const DATA: usize = 5;
const PAGES: usize = DATA + BATCH as usize;
/// Number of the first page of the second chunk.
const DATA_CHUNK: u32 = 64;

const TABLE: u64 = 48;
const HEADER: u64 = 32;
const STATUS: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const DOORBELL: u32 = 7;

const BY_EVENTS: Woken = Woken { events: true, sources: false, deadline: false };
const BY_SOURCES: Woken = Woken { events: false, sources: true, deadline: false };

/// What the disk is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// A file in memory: no request waits for it.
    Memory,
    /// A file that is read by direct I/O.
    Slow,
}

/// Event channels that only count notifications.
struct Events {
    notified: usize,
    file: File,
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl EventChannels for Events {
    fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError> {
        Ok(LocalPort(port.0))
    }

    fn unbind(&mut self, _: LocalPort) {}

    fn notify(&mut self, _: LocalPort) -> Result<(), EventError> {
        self.notified += 1;
        Ok(())
    }

    fn pending(&mut self) -> Result<Option<LocalPort>, EventError> {
        Ok(None)
    }

    fn unmask(&mut self, _: LocalPort) -> Result<(), EventError> {
        Ok(())
    }
}

/// A clock that stands still.
struct StoppedClock(Instant);

impl Clock for StoppedClock {
    fn now(&self) -> Instant {
        self.0
    }

    fn tick(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

/// A guest that reads pages from a disk.
pub(super) struct Disk {
    guest: Guest,
    pages: Vec<GuestPage>,
    transport: Transport<GrantPlatform<SimGrants>, Events>,
    events: Events,
    clock: StoppedClock,
    available: u16,
    notified: usize,
    _file: tempfile::NamedTempFile,
}

impl Disk {
    /// Starts the device, and writes [`BATCH`] requests.
    pub(super) fn start(store: Store) -> Self {
        let (hypervisor, stats) = (Hypervisor::default(), Arc::new(DeviceStats::default()));
        let mut guest = hypervisor.guest(1, PAGES);
        let mut file = match store {
            Store::Memory => tempfile::NamedTempFile::new_in(IN_MEMORY).unwrap(),
            Store::Slow => tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        };
        (0..BATCH).for_each(|number| file.write_all(&[number as u8; 4096]).unwrap());
        let target = Target::open(options(file.path(), store)).unwrap();
        let limits = InFlightLimits::default();
        let device = Block::new(target, "xvda", limits, Arc::clone(&stats)).unwrap();
        let platform = GrantPlatform::new(hypervisor.grants(DomId(1)).unwrap());
        let memory = DmaMemory::new(platform, Arc::clone(&stats), GuestBudget::alone());
        let pages = (0..PAGES).map(|_| guest.allocate()).collect();
        let (poll, threads) = (PollTime::NEVER, ThreadLimit::ONE);
        let service = ServiceSettings { poll, threads, ..ServiceSettings::default() };
        let none = Arc::new(|| Err(io::ErrorKind::Unsupported.into()));
        let transport = Transport::new(Box::new(device), memory, &service, SLOT_SIZE, none, stats);
        let events = Events { notified: 0, file: File::open("/dev/null").unwrap() };
        let clock = StoppedClock(Instant::now());
        let (available, notified) = (0, 0);
        let mut disk =
            Self { guest, pages, transport, events, clock, available, notified, _file: file };
        disk.negotiate();
        (0..BATCH).for_each(|number| disk.write_request(number));
        disk
    }

    fn ask<R>(&mut self, request: Request<'_>, take: impl FnOnce(Response<'_>) -> R) -> R {
        let mut scratch = [0; SLOT_SIZE];
        take(self.transport.answer(request, &mut self.events, &mut scratch).response)
    }

    /// Accepts all features, and sets up a queue and the pool.
    fn negotiate(&mut self) {
        let offered = self.ask(Request::GetDeviceFeatures { first: 0, count: 2 }, |answer| {
            let Response::GetDeviceFeatures(blocks) = answer else { panic!("{answer:?}") };
            blocks.low_bits()
        });
        let features = offered.to_le_bytes();
        self.ask(Request::SetDriverFeatures(FeatureBlocks::new(0, &features)), |_| ());
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let [descriptor, driver, device] =
            [DESCRIPTORS, AVAILABLE, USED].map(|page| self.grant(page));
        let update = VqueueUpdate {
            index: 0,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: ENTRIES.into(),
            reserved: 0,
            descriptor,
            driver,
            device,
        };
        self.ask(Request::SetVqueue(update), |_| ());
        let bound = |answer: Response<'_>| match answer {
            Response::BindQueue { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        };
        let bound = self.ask(Request::BindQueue { index: 0, port: DOORBELL }, bound);
        assert_eq!(bound, BindOutcome::Bound);
        self.share(0, TABLES, DATA);
        self.share(DATA_CHUNK, DATA, PAGES);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn set_status(&mut self, status: u32) {
        let now = self.ask(Request::SetDeviceStatus(status), |answer| match answer {
            Response::SetDeviceStatus(status) => status,
            other => panic!("{other:?}"),
        });
        assert_eq!(now, status);
    }

    /// Grants a page; returns its address.
    fn grant(&mut self, page: usize) -> u64 {
        let page = self.pages[page];
        let reference = self.guest.grant(&[page], Access::ReadWrite);
        self.guest.address(page, reference)
    }

    /// Shares pages as a chunk of the pool.
    fn share(&mut self, number: u32, from: usize, to: usize) {
        let reference = self.guest.grant(&self.pages[from..to], Access::ReadWrite);
        let (first, count) = (PoolPage(number), (to - from) as u32);
        let shared = self.ask(Request::SharePages { first, count, reference }, |answer| {
            let Response::SharePages { outcome, .. } = answer else { panic!("{answer:?}") };
            outcome
        });
        assert_eq!(shared, ShareOutcome::Shared);
    }

    fn slice(&self, page: usize, offset: u64, length: usize) -> VolatileSlice<'_> {
        self.guest.slice(self.pages[page], offset as usize, length)
    }

    /// Writes the read of a page, and the descriptor of its table.
    fn write_request(&self, number: u16) {
        let at = u64::from(number);
        let header = self.slice(HEADERS, at * HEADER, STATUS as usize);
        header.write_obj(VIRTIO_BLK_T_IN, 0).unwrap();
        header.write_obj(at * (PAGE_SIZE / 512), 8).unwrap();
        let small = |page: usize, offset| PoolPage((page - TABLES) as u32).address(offset);
        let data = PoolPage(DATA_CHUNK + u32::from(number)).address(0);
        let table = self.slice(TABLES, at * TABLE, TABLE as usize);
        let header = small(HEADERS, at * HEADER);
        descriptor(&table, 0, (header, STATUS as u32, NEXT));
        descriptor(&table, 1, (data, PAGE_SIZE as u32, NEXT | WRITE));
        descriptor(&table, 2, (header + STATUS, 1, WRITE));
        let ring = self.slice(DESCRIPTORS, 0, PAGE_SIZE as usize);
        descriptor(&ring, number, (small(TABLES, at * TABLE), TABLE as u32, INDIRECT));
    }

    /// Makes the first `count` requests available, and requests a notification of the last.
    pub(super) fn submit(&mut self, count: u16) {
        let ring = self.slice(AVAILABLE, 0, PAGE_SIZE as usize);
        for number in 0..count {
            let slot = self.available.wrapping_add(number) % ENTRIES;
            ring.write_obj(number, 4 + 2 * usize::from(slot)).unwrap();
            self.slice(HEADERS, u64::from(number) * HEADER + STATUS, 1)
                .write_obj(0xffu8, 0)
                .unwrap();
            self.slice(DATA + usize::from(number), 0, 4096).write_obj(0xffu8, 4095).unwrap();
        }
        let available = self.available.wrapping_add(count);
        ring.write_obj(available.wrapping_sub(1), 4 + 2 * usize::from(ENTRIES)).unwrap();
        ring.store(available, 2, Ordering::Release).unwrap();
        self.available = available;
    }

    /// Does what a device's thread does after a doorbell until it sleeps.
    pub(super) fn serve(&mut self) {
        self.transport.scheduler().begin_iteration(BY_EVENTS, &self.clock);
        self.transport.first_group().handle_doorbell(LocalPort(DOORBELL));
        self.transport.scheduler().woken_by_events(true, &self.clock);
        self.iterate();
    }

    /// Waits until the requests are answered. The first ones wait until the disk's own thread has
    /// started the disk.
    pub(super) fn wait(&mut self) {
        while self.used() != self.available {
            self.wait_for_sources();
            self.serve_sources();
        }
    }

    /// Waits until the device has something to do without the driver. Returns `false` if all
    /// requests were answered before.
    pub(super) fn wait_for_sources(&mut self) -> bool {
        if self.used() == self.available {
            return false;
        }
        let sources = self.transport.sources();
        let mut fds: Vec<_> =
            sources.iter().map(|source| PollFd::new(source.fd, source.events)).collect();
        poll(&mut fds, PollTimeout::NONE).unwrap();
        true
    }

    /// Does what a device's thread does after a completion until it sleeps.
    pub(super) fn serve_sources(&mut self) {
        self.transport.scheduler().begin_iteration(BY_SOURCES, &self.clock);
        self.iterate();
    }

    fn iterate(&mut self) {
        loop {
            let step = self.transport.scheduler().next(&self.clock);
            if step == Step::Sleep {
                break;
            }
            let effects = self.transport.carry_out(step, &mut self.events, &self.clock);
            assert_eq!(effects, Effects::default());
        }
        assert!(self.transport.scheduler().may_unmask(&self.clock));
        assert_eq!(self.transport.longest_sleep(&self.clock), None);
    }

    /// The index of the used ring.
    fn used(&self) -> u16 {
        self.slice(USED, 0, PAGE_SIZE as usize).load(2, Ordering::Acquire).unwrap()
    }

    /// Checks that the requests were answered, with one notification.
    pub(super) fn check(&mut self) {
        assert_eq!(self.used(), self.available);
        let status = self.slice(HEADERS, STATUS, 1).read_obj::<u8>(0).unwrap();
        let data = self.slice(DATA, 0, PAGE_SIZE as usize).read_obj::<u8>(4095).unwrap();
        assert_eq!((status, data), (0, 0));
        assert_eq!(self.events.notified, self.notified + 1);
        self.notified = self.events.notified;
    }
}

/// Writes entry `index` of a descriptor table; the next one follows it.
fn descriptor(table: &VolatileSlice<'_>, index: u16, (address, length, flags): (u64, u32, u16)) {
    let entry = table.offset(usize::from(index) * 16).unwrap();
    entry.write_obj(address, 0).unwrap();
    entry.write_obj(length, 8).unwrap();
    entry.write_obj(flags, 12).unwrap();
    entry.write_obj(if flags & NEXT == 0 { 0 } else { index + 1 }, 14).unwrap();
}

fn options(path: &Path, store: Store) -> TargetOptions {
    let caching = if store == Store::Memory { Caching::PageCache } else { Caching::Direct };
    TargetOptions {
        path: path.to_owned(),
        mode: AccessMode::ReadWrite,
        caching,
        discard: Discard::Allowed,
        format: Some(ImageFormat::Raw),
        sharing: Sharing::Safe,
        owner: Owner { domain: 1, number: 51712, vdev: "xvda".to_owned(), uuid: None },
    }
}
