//! Benchmarks of the daemon's work for every request, on the simulated hypervisor: it takes
//! descriptor chains from a ring, and finds and maps the pages behind their addresses. A mapping is
//! a system call here as it is on Xen; these figures do not include the hypervisor's part.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use criterion::Criterion;
use protocol::grant::GrantRef;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use xen::{Access, DomId, Xen};
use xen_sim::{Guest, GuestPage, Hypervisor, SimGrants};
use xen_virtiod::dma::budget::GuestBudget;
use xen_virtiod::dma::grants::GrantPlatform;
use xen_virtiod::dma::{DmaMemory, DmaRange};
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
    let (_, pinned) = setup.granted(64);
    if setup.memory.map_ring(&[range(pinned, 64 << 12)]).is_err() {
        return;
    }
    criterion.bench_function("find 4 KiB among what is mapped", |bencher| {
        let address = GuestAddress(pinned + (40 << 12));
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

/// Sets up a ring of 32 chains of three buffers each, as a block driver makes them, without
/// indirect descriptors.
fn ring(setup: &mut Setup) -> Option<(Queue, GuestPage)> {
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
    setup.memory.map_ring(&areas).ok()?;
    let mut queue = Queue::new(RING).ok()?;
    queue.try_set_desc_table_address(GuestAddress(descriptors.1)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(available.1)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(used.1)).ok()?;
    queue.set_ready(true);
    Some((queue, available.0))
}

fn queue(criterion: &mut Criterion) {
    let Some(mut setup) = Setup::new() else { return };
    // A disk has four queues.
    let rings: Option<Vec<_>> = (0..4).map(|_| ring(&mut setup)).collect();
    let Some((mut queue, available)) = rings.and_then(|mut rings| rings.pop()) else { return };
    criterion.bench_function("take and give back a batch of 32 chains", |bencher| {
        let mut index = 0u16;
        bencher.iter(|| {
            index = index.wrapping_add(CHAINS);
            let ring = setup.guest.slice(available, 0, 4096);
            let published = ring.store(index, 2, Ordering::Release).is_ok();
            let heads: Vec<_> = match queue.iter(&setup.memory) {
                Ok(chains) => chains.map(|chain| (chain.head_index(), chain.count())).collect(),
                Err(_) => Vec::new(),
            };
            let given =
                heads.iter().filter(|(head, _)| queue.add_used(&setup.memory, *head, 1).is_ok());
            (published, given.count())
        });
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    memory(&mut criterion);
    queue(&mut criterion);
    criterion.final_summary();
}
