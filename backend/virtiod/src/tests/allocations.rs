//! Allocations while a disk serves requests, on the simulated hypervisor: none after the first
//! batch, if the buffers are in pages that stay mapped.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::blk::{Block, BlockOptions, Target, TargetOptions};
use crate::device::{QueueContext, RequestPool, VirtioDevice};
use crate::dma::DmaMemory;
use crate::dma::budget::GuestBudget;
use crate::dma::grants::GrantPlatform;
use crate::stats::DeviceStats;
use crate::tests::one_ring::OneRing;
use protocol::pool::PoolPage;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_IN};
use vm_memory::Bytes;
use xen::{Access, DomId, Xen};
use xen_sim::{Guest, GuestPage, Hypervisor, SimGrants};

/// Requests in a batch, and entries of the ring: each request has three buffers.
const REQUESTS: u16 = 32;
const ENTRIES: u16 = 128;
const DATA: u32 = 4096;

/// The pages: two for descriptors, one for each of the other areas, and in the pool one for headers
/// and status bytes, and one of data for each request.
const AVAILABLE: usize = 2;
const USED: usize = 3;
const HEADERS: usize = 4;
const DATA_PAGES: usize = 5;

type Memory = DmaMemory<GrantPlatform<SimGrants>>;

struct Bench {
    guest: Guest,
    memory: Memory,
    disk: Block,
    ring: OneRing,
    spare: RequestPool,
    pages: Vec<GuestPage>,
    available: u16,
    _file: tempfile::NamedTempFile,
}

impl Bench {
    fn new() -> Self {
        let hypervisor = Hypervisor::default();
        let mut guest = hypervisor.guest(1, DATA_PAGES + usize::from(REQUESTS));
        let stats = Arc::new(DeviceStats::default());
        let grants = GrantPlatform::new(hypervisor.grants(DomId(1)).unwrap());
        let mut memory = DmaMemory::new(grants, Arc::clone(&stats), GuestBudget::alone());
        let pages: Vec<_> =
            (0..DATA_PAGES + usize::from(REQUESTS)).map(|_| guest.allocate()).collect();
        let reference = guest.grant(&pages[..HEADERS], Access::ReadWrite);
        let area = |page: usize| guest.address(pages[0], reference) + page as u64 * 4096;
        let ring = OneRing::new(&memory, ENTRIES, [area(0), area(AVAILABLE), area(USED)]);
        let pooled = guest.grant(&pages[HEADERS..], Access::ReadWrite);
        memory.share(PoolPage(0), (pages.len() - HEADERS) as u32, pooled).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 1 << 20]).unwrap();
        let target = Target::open(TargetOptions::for_test(file.path())).unwrap();
        let mut disk = Block::new(target, BlockOptions::named("xvda"), stats).unwrap();
        let features = 1 << VIRTIO_BLK_F_FLUSH;
        VirtioDevice::<Memory>::start(&mut disk, features).unwrap();
        let spare = RequestPool::default();
        let mut bench = Self { guest, memory, disk, ring, spare, pages, available: 0, _file: file };
        bench.write_requests();
        bench
    }

    /// Writes reads of a page each, as chains of a header, data and a status byte.
    fn write_requests(&mut self) {
        for request in 0..REQUESTS {
            let header = u64::from(request) * 32;
            let page = self.guest.slice(self.pages[HEADERS], header as usize, 16);
            page.write_obj(VIRTIO_BLK_T_IN, 0).unwrap();
            page.write_obj(u64::from(request) * 8, 8).unwrap();
            let headers = PoolPage(0).address(0);
            let data = PoolPage((DATA_PAGES - HEADERS) as u32 + u32::from(request)).address(0);
            self.descriptor(request * 3, headers + header, 16, 1);
            self.descriptor(request * 3 + 1, data, DATA, 3);
            self.descriptor(request * 3 + 2, headers + header + 16, 1, 2);
        }
        for entry in 0..ENTRIES {
            let ring = self.guest.slice(self.pages[AVAILABLE], 0, 4096);
            ring.write_obj(entry % REQUESTS * 3, 4 + 2 * usize::from(entry)).unwrap();
        }
    }

    /// Writes an entry of the table; every one but a chain's last links to the next.
    fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16) {
        let at = usize::from(index) * 16;
        let entry = self.guest.slice(self.pages[at / 4096], at % 4096, 16);
        entry.write_obj(address, 0).unwrap();
        entry.write_obj(length, 8).unwrap();
        entry.write_obj(flags, 12).unwrap();
        entry.write_obj(if flags & 1 == 1 { index + 1 } else { 0 }, 14).unwrap();
    }

    /// Makes the disk serve all requests once more.
    fn serve(&mut self) {
        self.available = self.available.wrapping_add(REQUESTS);
        let ring = self.guest.slice(self.pages[AVAILABLE], 0, 4096);
        ring.store(self.available, 2, Ordering::Release).unwrap();
        let mut queues =
            QueueContext::new(&mut self.ring, &mut self.memory, &mut self.spare, u64::MAX);
        self.disk.process(0, &mut queues).unwrap();
        assert_eq!(queues.finish().count, u32::from(REQUESTS));
    }
}

#[test]
fn batch_of_reads_allocates_nothing() {
    let mut bench = Bench::new();
    let first = allocation_counter::measure(|| bench.serve());
    assert!(first.count_total > 0, "the first batch allocates, and allocations are counted");
    let allocations = allocation_counter::measure(|| bench.serve());
    let data = bench.guest.slice(bench.pages[DATA_PAGES + 31], 0, 4096);
    assert_eq!(data.read_obj::<u8>(4095).unwrap(), 7, "the requests were served");
    assert_eq!(allocations.count_total, 0, "of {REQUESTS} requests");
}
