//! Benchmarks of the daemon's work for every request, on the simulated hypervisor: it takes
//! descriptor chains from a ring, and finds and maps the pages behind their addresses. A mapping is
//! a system call here as it is on Xen; these figures do not include the hypervisor's part.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use criterion::Criterion;
use protocol::grant::GrantRef;
use protocol::pool::PoolPage;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use xen::{Access, DomId, GrantTable, Xen};
use xen_sim::{Guest, GuestPage, Hypervisor, SimGrants};
use xen_virtiod::device::{QueueContext, RequestPool, Ring, RingAreas, RingState, Rings};
use xen_virtiod::dma::budget::GuestBudget;
use xen_virtiod::dma::grants::GrantPlatform;
use xen_virtiod::dma::{DmaMemory, DmaRange, RingMapping};
use xen_virtiod::stats::DeviceStats;

type Memory = DmaMemory<GrantPlatform<SimGrants>>;

/// Number of chains in the ring: the requests of a batch.
const CHAINS: u16 = 32;
const RING: u16 = 128;

/// A guest, and the daemon's view of its memory.
struct Setup {
    guest: Guest,
    memory: Memory,
}

impl Setup {
    fn new() -> Option<Self> {
        let hypervisor = Hypervisor::default();
        let guest = hypervisor.guest(1, 256);
        let grants = GrantPlatform::new(hypervisor.grants(DomId(1)).ok()?);
        let memory = DmaMemory::new(grants, Arc::new(DeviceStats::default()), GuestBudget::alone());
        Some(Self { guest, memory })
    }

    fn granted(&mut self, count: usize) -> (GuestPage, u64) {
        let pages: Vec<_> = (0..count).map(|_| self.guest.allocate()).collect();
        let first: GrantRef = self.guest.grant(&pages, Access::ReadWrite);
        let page = pages.first().copied().unwrap_or(GuestPage(0));
        (page, self.guest.address(page, first))
    }
}

fn range(address: u64, length: u64) -> DmaRange {
    DmaRange { address, length, access: Access::ReadWrite }
}

fn memory(criterion: &mut Criterion) {
    let Some(mut setup) = Setup::new() else { return };
    let pages: Vec<_> = (0..64).map(|_| setup.guest.allocate()).collect();
    let pooled = setup.guest.grant(&pages, Access::ReadWrite);
    if setup.memory.share(PoolPage(0), 64, pooled).is_err() {
        return;
    }
    criterion.bench_function("find 4 KiB in the pool", |bencher| {
        let address = GuestAddress(PoolPage(40).address(0));
        bencher.iter(|| setup.memory.check_range(address, 4096, Permissions::ReadWrite));
    });
    let buffers: Vec<_> = (0..CHAINS).map(|_| range(setup.granted(1).1, 4096)).collect();
    criterion.bench_function("copy a batch of 32 pages and write it back", |bencher| {
        bencher.iter(|| {
            setup.memory.prepare(buffers.iter().copied());
            let written = setup.memory.write_back().is_ok();
            setup.memory.release();
            written
        });
    });
}

/// A queue's state, and its mapped ring.
struct OneRing(RingState, RingMapping<<SimGrants as GrantTable>::Pages>);

impl Rings for OneRing {
    fn ring(&mut self, _: usize) -> Option<Ring<'_>> {
        let [descriptors, driver, device] = self.1.areas()?;
        Some(Ring::new(&mut self.0, RingAreas { descriptors, driver, device }))
    }
}

/// Sets up a ring of 32 chains of three buffers each, as a block driver makes them, without
/// indirect descriptors.
fn ring(setup: &mut Setup) -> Option<(OneRing, GuestPage)> {
    let [descriptors, available, used] = [(); 3].map(|()| setup.granted(1));
    for index in 0..CHAINS * 3 {
        let entry = setup.guest.slice(descriptors.0, usize::from(index) * 16, 16);
        let last = index % 3 == 2;
        entry.write_obj(descriptors.1, 0).ok()?;
        entry.write_obj(16u32, 8).ok()?;
        entry.write_obj(u16::from(!last), 12).ok()?;
        entry.write_obj(if last { 0 } else { index + 1 }, 14).ok()?;
    }
    let heads = setup.guest.slice(available.0, 0, 4096);
    for entry in 0..RING {
        heads.write_obj(entry % CHAINS * 3, 4 + 2 * usize::from(entry)).ok()?;
    }
    let areas = [descriptors.1, available.1, used.1].map(|address| range(address, 4096));
    let mapping = setup.memory.map_ring(areas).ok()?;
    let mut queue = Queue::new(RING).ok()?;
    queue.try_set_desc_table_address(GuestAddress(descriptors.1)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(available.1)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(used.1)).ok()?;
    queue.set_ready(true);
    let [descriptors, driver, device] = mapping.areas()?;
    let state = RingState::new(queue, None, RingAreas { descriptors, driver, device }).ok()?;
    Some((OneRing(state, mapping), available.0))
}

fn queue(criterion: &mut Criterion) {
    let Some(mut setup) = Setup::new() else { return };
    let Some((mut ring, available)) = ring(&mut setup) else { return };
    let Setup { guest, mut memory } = setup;
    let mut requests = RequestPool::default();
    criterion.bench_function("take and give back a batch of 32 chains", |bencher| {
        let mut index = 0u16;
        bencher.iter(|| {
            index = index.wrapping_add(CHAINS);
            let published = guest.slice(available, 0, 4096).store(index, 2, Ordering::Release);
            let mut queues = QueueContext::new(&mut ring, &mut memory, &mut requests, u64::MAX);
            let (chains, _) = queues.fetch(0, usize::from(CHAINS));
            let done: Vec<_> = chains.iter().map(|chain| (chain.head, 1)).collect();
            queues.recycle(chains);
            (published.is_ok(), queues.give_back(0, &done).is_ok())
        });
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    memory(&mut criterion);
    queue(&mut criterion);
    criterion.final_summary();
}
