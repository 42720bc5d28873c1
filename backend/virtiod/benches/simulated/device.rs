//! A device that one thread serves to the driver of a simulated guest, without the daemon.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};
use protocol::message::{
    BindOutcome, FeatureBlocks, Request, Response, ShareOutcome, VqueueFlags, VqueueUpdate,
};
use protocol::page::SLOT_SIZE;
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use xen::{DomId, EventChannels, RemotePort, Xen};
use xen_sim::{Hypervisor, SimGrants};
use xen_virtiod::bus::scheduler::clock::Clock;
use xen_virtiod::bus::scheduler::{Step, Woken};
use xen_virtiod::bus::transport::{Effects, Transport};
use xen_virtiod::config::{PollTime, ServiceSettings, ThreadLimit};
use xen_virtiod::device::VirtioDevice;
use xen_virtiod::device::blk::{
    AccessMode, Block, BlockOptions, Caching, Discard, ImageFormat, Owner, Sharing, Target,
    TargetOptions,
};
use xen_virtiod::dma::DmaMemory;
use xen_virtiod::dma::budget::GuestBudget;
use xen_virtiod::dma::grants::GrantPlatform;
use xen_virtiod::stats::DeviceStats;

use crate::simulated::guest::{Chunk, Driver, ENTRIES, GUEST};

/// A folder in memory.
pub(crate) const IN_MEMORY: &str = "/dev/shm";
/// Maximum time until storage, or a disk's own thread, has done something.
const STORAGE_LIMIT: u16 = 10_000;

const BY_SOURCES: Woken = Woken { events: false, sources: true, deadline: false };

/// A clock that stands still.
pub(crate) struct StoppedClock(Instant);

impl Clock for StoppedClock {
    fn now(&self) -> Instant {
        self.0
    }

    fn tick(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

/// The transport of a device.
pub(crate) type SimTransport<E> = Transport<GrantPlatform<SimGrants>, E>;

/// The memory of the guest.
pub(crate) type SimMemory = DmaMemory<GrantPlatform<SimGrants>>;

/// A device.
pub(crate) struct Device<E> {
    pub(crate) transport: SimTransport<E>,
    pub(crate) events: E,
    pub(crate) clock: StoppedClock,
}

impl<E: EventChannels> Device<E> {
    /// A disk, whose image is at `path`.
    pub(crate) fn disk(path: &Path, caching: Caching, hypervisor: &Hypervisor, events: E) -> Self {
        let stats = Arc::new(DeviceStats::default());
        let target = Target::open(options(path, caching)).unwrap();
        let block = Block::new(target, BlockOptions::named("xvda"), Arc::clone(&stats)).unwrap();
        Self::new(Box::new(block), hypervisor, events, stats)
    }

    /// A device, which counts in `stats`.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice<SimMemory>>,
        hypervisor: &Hypervisor,
        events: E,
        stats: Arc<DeviceStats>,
    ) -> Self {
        let platform = GrantPlatform::new(hypervisor.grants(DomId(GUEST)).unwrap());
        let memory = DmaMemory::new(platform, Arc::clone(&stats), GuestBudget::alone());
        let (poll, threads) = (PollTime::NEVER, ThreadLimit::ONE);
        let service = ServiceSettings { poll, threads, ..ServiceSettings::default() };
        let none = Arc::new(|| Err(io::ErrorKind::Unsupported.into()));
        let transport = Transport::new(device, memory, &service, SLOT_SIZE, none, stats);
        Self { transport, events, clock: StoppedClock(Instant::now()) }
    }

    fn ask<R>(&mut self, request: Request<'_>, take: impl FnOnce(Response<'_>) -> R) -> R {
        let mut scratch = [0; SLOT_SIZE];
        take(self.transport.answer(request, &mut self.events, &mut scratch).response)
    }

    /// Accepts all features but these, and sets up a queue and the pool.
    pub(crate) fn negotiate(&mut self, driver: &Driver, doorbell: RemotePort, refused: u64) {
        let offered = self.ask(Request::GetDeviceFeatures { first: 0, count: 2 }, |answer| {
            let Response::GetDeviceFeatures(blocks) = answer else { panic!("{answer:?}") };
            blocks.low_bits()
        });
        let features = (offered & !refused).to_le_bytes();
        self.ask(Request::SetDriverFeatures(FeatureBlocks::new(0, &features)), |_| ());
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let [descriptor, driver_area, device] = driver.areas;
        let update = VqueueUpdate {
            index: 0,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: ENTRIES.into(),
            reserved: 0,
            descriptor,
            driver: driver_area,
            device,
        };
        self.ask(Request::SetVqueue(update), |_| ());
        let bound = |answer: Response<'_>| match answer {
            Response::BindQueue { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        };
        let bound = self.ask(Request::BindQueue { index: 0, port: doorbell.0 }, bound);
        assert_eq!(bound, BindOutcome::Bound);
        driver.chunks.into_iter().for_each(|chunk| self.share(chunk));
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn set_status(&mut self, status: u32) {
        let now = self.ask(Request::SetDeviceStatus(status), |answer| match answer {
            Response::SetDeviceStatus(status) => status,
            other => panic!("{other:?}"),
        });
        assert_eq!(now, status);
    }

    /// Adds a chunk to the pool.
    fn share(&mut self, Chunk { first, count, reference }: Chunk) {
        let shared = self.ask(Request::SharePages { first, count, reference }, |answer| {
            let Response::SharePages { outcome, .. } = answer else { panic!("{answer:?}") };
            outcome
        });
        assert_eq!(shared, ShareOutcome::Shared);
    }

    /// Waits until the requests are answered. The first ones wait until the disk's own thread has
    /// started the disk.
    pub(crate) fn wait(&mut self, driver: &Driver) {
        while driver.waits() {
            self.wait_for_sources(driver);
            self.serve_sources();
        }
    }

    /// Waits until the device has something to do without the driver. Returns `false` if all
    /// requests were answered before.
    pub(crate) fn wait_for_sources(&mut self, driver: &Driver) -> bool {
        if !driver.waits() {
            return false;
        }
        let sources = self.transport.sources();
        let mut fds: Vec<_> =
            sources.iter().map(|source| PollFd::new(source.fd, source.events)).collect();
        let ready = poll(&mut fds, PollTimeout::from(STORAGE_LIMIT)).unwrap();
        assert!(ready > 0, "no answer of storage in 10 s, and a request is not answered");
        true
    }

    /// Does what a device's thread does after a completion until it sleeps.
    pub(crate) fn serve_sources(&mut self) {
        self.transport.scheduler().begin_iteration(BY_SOURCES, &self.clock);
        self.iterate();
    }

    /// Carries out the scheduler's steps until it sleeps.
    pub(crate) fn iterate(&mut self) {
        loop {
            let step = self.transport.scheduler().next(&self.clock);
            if step == Step::Sleep {
                break;
            }
            let effects = self.transport.carry_out(step, &mut self.events, &self.clock);
            assert_eq!(effects, Effects::default(), "the device needs a reset");
        }
        assert!(self.transport.scheduler().may_unmask(&self.clock));
        assert_eq!(self.transport.longest_sleep(&self.clock), None);
    }
}

fn options(path: &Path, caching: Caching) -> TargetOptions {
    TargetOptions {
        path: path.to_owned(),
        mode: AccessMode::ReadWrite,
        caching,
        discard: Discard::Allowed,
        format: Some(ImageFormat::Raw),
        logical_block: None,
        sharing: Sharing::Safe,
        owner: Owner { domain: GUEST, number: 51712, vdev: "xvda".to_owned(), uuid: None },
    }
}
