//! A disk on scripted storage, and the one ring of its driver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFd;
use protocol::grant::GrantRef;
use protocol::pool::PoolPage;
use tempfile::NamedTempFile;
use uring::engine::Method;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::Bytes;

use super::super::request::Range;
use super::super::target::Target;
use super::super::{Block, BlockOptions, DiskUse};
use super::Scripted;
use crate::device::{BatchSummary, QueueContext, RequestPool, VirtioDevice};
use crate::dma::DmaMemory;
use crate::dma::budget::GuestBudget;
use crate::dma::grants::GrantPlatform;
use crate::stats::DeviceStats;
use crate::tests::one_ring::OneRing;
use uring::waiting::wait_for;
use xen::{Access, DomId, Xen};
use xen_sim::{Guest, GuestPage, Hypervisor, SimGrants};

pub(super) type Memory = DmaMemory<GrantPlatform<SimGrants>>;

/// Number of entries of the ring.
const ENTRIES: u16 = 64;
/// Number of pages: descriptors, available and used ring, headers and ranges, status bytes, data.
const PAGES: usize = 5 + DATA_PAGES;
const DATA_PAGES: usize = 1024;
/// Bytes for a header and its ranges.
const HEADER: u64 = 64;

/// A disk, and the one ring of its driver.
pub(super) struct Driver {
    pub(super) guest: Guest,
    pub(super) pages: Vec<GuestPage>,
    base: u64,
    pub(super) memory: Memory,
    pub(super) disk: Block,
    ring: OneRing,
    spare: RequestPool,
    pub(super) requests: u16,
    descriptors: u16,
    /// Whether the data pages are the pool.
    has_pool: bool,
    pub(super) hypervisor: Hypervisor,
    /// The file that the target claims.
    pub(super) target_file: NamedTempFile,
}

impl Driver {
    pub(super) fn new(image: &Scripted) -> Self {
        Self::with_features(image, 1 << VIRTIO_BLK_F_FLUSH)
    }

    /// A driver that negotiated these features.
    pub(super) fn with_features(image: &Scripted, features: u64) -> Self {
        Self::with_method(image, features, Method::Ring)
    }

    /// As [`Driver::with_features`], with an engine of this kind.
    pub(super) fn with_method(image: &Scripted, features: u64, method: Method) -> Self {
        Self::with_target(image.target(|_| {}), features, method)
    }

    /// As [`Driver::with_method`], with this target and its file.
    pub(super) fn with_target(
        target: (NamedTempFile, Target),
        features: u64,
        method: Method,
    ) -> Self {
        Self::with_options(target, BlockOptions::named("xvda"), features, method)
    }

    /// As [`Driver::with_target`], with these options of the disk.
    pub(super) fn with_options(
        (target_file, target): (NamedTempFile, Target),
        options: BlockOptions,
        features: u64,
        method: Method,
    ) -> Self {
        let hypervisor = Hypervisor::default();
        let mut guest = hypervisor.guest(1, PAGES);
        let stats = Arc::new(DeviceStats::default());
        let grants = GrantPlatform::new(hypervisor.grants(DomId(1)).unwrap());
        let memory = DmaMemory::new(grants, Arc::clone(&stats), GuestBudget::alone());
        let pages: Vec<_> = (0..PAGES).map(|_| guest.allocate()).collect();
        let first = guest.grant(&pages, Access::ReadWrite);
        let base = guest.address(pages[0], first);
        let area = |page: u64| base + page * 4096;
        let ring = OneRing::new(&memory, ENTRIES, [area(0), area(1), area(2)]);
        let mut disk = Block::with_method(target, options, stats, method).unwrap();
        VirtioDevice::<Memory>::start(&mut disk, features).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while disk.disk_use == DiskUse::Starting {
            assert!(Instant::now() < end, "waited 30 s for the worker to start the disk");
            disk.collect();
            std::thread::yield_now();
        }
        let spare = RequestPool::default();
        let (requests, descriptors) = (0, 0);
        Self {
            guest,
            pages,
            base,
            memory,
            disk,
            ring,
            spare,
            requests,
            descriptors,
            has_pool: false,
            hypervisor,
            target_file,
        }
    }

    /// Adds a request to the ring. `ranges`: the ranges behind its header; `data`: the bytes of
    /// data, and whether the device writes them.
    pub(super) fn add(&mut self, kind: u32, ranges: &[Range], data: Option<(u32, Access)>) {
        self.add_at(kind, 0, 0, ranges, data);
    }

    /// As [`Driver::add`], with a sector, and the data from this data page on.
    pub(super) fn add_at(
        &mut self,
        kind: u32,
        sector: u64,
        page: u64,
        ranges: &[Range],
        data: Option<(u32, Access)>,
    ) {
        let number = u64::from(self.requests);
        let at = number * HEADER;
        let headers = self.guest.slice(self.pages[3], 0, 4096);
        headers.write_obj(kind, at as usize).unwrap();
        headers.write_obj(sector, at as usize + 8).unwrap();
        for (range, position) in ranges.iter().zip((at as usize + 16..).step_by(16)) {
            headers.write_obj(range.sector, position).unwrap();
            headers.write_obj(range.sectors, position + 8).unwrap();
            headers.write_obj(range.flags, position + 12).unwrap();
        }
        self.guest.slice(self.pages[4], number as usize, 1).write_obj(0xffu8, 0).unwrap();
        let data_start = match self.has_pool {
            true => PoolPage(page as u32).address(0),
            false => self.base + (5 + page) * 4096,
        };
        let head = self.descriptors;
        let out = 16 + 16 * ranges.len() as u32;
        self.descriptor(self.base + 3 * 4096 + at, out, 1);
        if let Some((length, access)) = data {
            let write = if access == Access::ReadWrite { 2 } else { 0 };
            self.descriptor(data_start, length, 1 | write);
        }
        self.descriptor(self.base + 4 * 4096 + number, 1, 2);
        let available = self.guest.slice(self.pages[1], 0, 4096);
        available.write_obj(head, 4 + 2 * usize::from(self.requests)).unwrap();
        self.requests += 1;
        available.write_obj(self.requests, 2).unwrap();
    }

    /// Overwrites the header of a request.
    pub(super) fn change_header(&self, number: u16, kind: u32, sector: u64) {
        let (headers, at) = (self.guest.slice(self.pages[3], 0, 4096), usize::from(number));
        headers.write_obj(kind, at * HEADER as usize).unwrap();
        headers.write_obj(sector, at * HEADER as usize + 8).unwrap();
    }

    fn descriptor(&mut self, address: u64, length: u32, flags: u16) {
        let entry = self.guest.slice(self.pages[0], usize::from(self.descriptors) * 16, 16);
        self.descriptors += 1;
        entry.write_obj(address, 0).unwrap();
        entry.write_obj(length, 8).unwrap();
        entry.write_obj(flags, 12).unwrap();
        entry.write_obj(self.descriptors, 14).unwrap();
    }

    pub(super) fn serve(&mut self) -> BatchSummary {
        let mut queues =
            QueueContext::new(&mut self.ring, &mut self.memory, &mut self.spare, u64::MAX);
        self.disk.process(0, &mut queues).unwrap();
        queues.finish()
    }

    /// Waits for a source of the device or its deadline, as the bus does, and lets it handle that.
    pub(super) fn handle(&mut self) -> BatchSummary {
        let sources = VirtioDevice::<Memory>::sources(&self.disk);
        let fds = sources.iter().map(|source| PollFd::new(source.fd, source.events));
        let limit = Duration::from_secs(30);
        let left = |at: Instant| at.saturating_duration_since(Instant::now()).min(limit);
        let limit = VirtioDevice::<Memory>::deadline(&self.disk).map_or(limit, left);
        wait_for(&mut fds.collect::<Vec<_>>(), limit).unwrap();
        self.handle_now()
    }

    /// Lets the device handle its sources.
    pub(super) fn handle_now(&mut self) -> BatchSummary {
        let mut queues =
            QueueContext::new(&mut self.ring, &mut self.memory, &mut self.spare, u64::MAX);
        self.disk.handle_sources(&mut queues).unwrap();
        queues.finish()
    }

    /// Serves until all requests are answered; returns the number of answers of each call.
    pub(super) fn serve_all(&mut self) -> Vec<u32> {
        let mut counts = Vec::new();
        while {
            let touched = self.serve();
            counts.push(touched.count);
            !touched.rescheduled.is_empty()
        } {}
        while self.disk.in_flight.len() > 0 || !self.disk.ended.is_empty() {
            assert!(counts.len() < 10_000, "it never ends");
            counts.push(self.handle().count);
        }
        counts
    }

    pub(super) fn status(&self, number: u16) -> u8 {
        self.guest.slice(self.pages[4], number.into(), 1).read_obj(0).unwrap()
    }

    pub(super) fn statuses(&self) -> Vec<u8> {
        (0..self.requests).map(|number| self.status(number)).collect()
    }

    /// Shares all data pages as the pool: from now on, data has addresses in it.
    pub(super) fn share_data(&mut self) {
        let first = self.guest.grant(&self.pages[5..], Access::ReadWrite);
        for chunk in 0..DATA_PAGES as u32 / 64 {
            let reference = GrantRef(first.0 + chunk * 64);
            self.memory.share(PoolPage(chunk * 64), 64, reference).unwrap();
        }
        self.has_pool = true;
    }

    /// The bytes of a data page.
    pub(super) fn data(&self, page: usize) -> Vec<u8> {
        let mut data = vec![0; 4096];
        self.guest.slice(self.pages[5 + page], 0, 4096).copy_to(&mut data);
        data
    }

    /// Fills a data page.
    pub(super) fn fill(&self, page: usize, value: u8) {
        self.guest.slice(self.pages[5 + page], 0, 4096).copy_from(&[value; 4096]);
    }
}
