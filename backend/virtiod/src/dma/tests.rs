//! Tests of `DmaMemory` over grants without a device: permissions, mappings and copies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::{GrantAddress, GrantRef};
use protocol::pool::PoolPage;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::{AccessFault, DmaMemory, DmaRange, ShareError, UnshareError};
use crate::dma::budget::{DaemonBudget, GuestBudget, Purpose};
use crate::dma::grants::GrantPlatform;
use crate::stats::DeviceStats;
use xen::{Access, DomId, Xen};
use xen_sim::{Guest, Hypervisor, SimGrants};

struct Bench {
    hypervisor: Hypervisor,
    guest: Guest,
    memory: DmaMemory<GrantPlatform<SimGrants>>,
    stats: Arc<DeviceStats>,
}

fn bench() -> Bench {
    bench_of(16)
}

/// A bench whose guest has `pages` pages.
fn bench_of(pages: usize) -> Bench {
    let (hypervisor, stats) = (Hypervisor::default(), Arc::new(DeviceStats::default()));
    let guest = hypervisor.guest(1, pages);
    let memory = DmaMemory::new(
        GrantPlatform::new(hypervisor.grants(DomId(1)).unwrap()),
        Arc::clone(&stats),
        GuestBudget::alone(),
    );
    Bench { hypervisor, guest, memory, stats }
}

impl Bench {
    fn grant(&mut self, pages: usize, access: Access) -> GrantRef {
        let pages: Vec<_> = (0..pages).map(|_| self.guest.allocate()).collect();
        self.guest.grant(&pages, access)
    }

    fn mapped(&self) -> usize {
        self.hypervisor.mapped_pages(DomId(1))
    }
}

fn at(reference: GrantRef, offset: u64) -> GuestAddress {
    GuestAddress(GrantAddress::new(reference, offset).encode())
}

#[test]
fn spec_3_13_pool_refuses_the_toolstacks_pages() {
    let mut bench = bench();
    let refused = bench.memory.share(PoolPage(0), 1, GrantRef(1));
    assert!(matches!(refused, Err(ShareError::Toolstack(GrantRef(1)))), "{refused:?}");
}

#[test]
fn pages_are_mapped_on_demand_until_release() {
    let mut bench = bench();
    let first = bench.grant(2, Access::ReadWrite);
    assert_eq!(bench.mapped(), 0);
    bench.memory.write_obj(0x1122_3344u32, at(first, 4094)).unwrap();
    assert_eq!(bench.mapped(), 2, "a buffer over a page's end needs both pages");
    assert_eq!(bench.memory.read_obj::<u32>(at(first, 4094)).unwrap(), 0x1122_3344);
    assert_eq!(bench.mapped(), 2, "the second access finds the mapping");
    assert_eq!(bench.stats.grants_mapped.load(Ordering::Relaxed), 2);
    bench.memory.release();
    assert_eq!((bench.mapped(), bench.stats.grants_mapped.load(Ordering::Relaxed)), (0, 0));
    bench.guest.revoke(first, 2);
    bench.hypervisor.assert_clean();
}

#[test]
fn held_copies_are_written_back_request_by_request() {
    let mut bench = bench();
    let (first, second) = (bench.guest.allocate(), bench.guest.allocate());
    let [one, two] = [first, second].map(|page| bench.guest.grant(&[page], Access::ReadWrite));
    let whole = |reference| DmaRange {
        address: at(reference, 0).0,
        length: 4096,
        access: Access::ReadWrite,
    };
    // The last bytes of the page, as a status byte behind data.
    let end = |reference| DmaRange { address: at(reference, 4000).0, length: 96, ..whole(one) };
    bench.memory.prepare([whole(one), whole(two)].into_iter());
    let held = bench.memory.hold();
    bench.memory.write_back().unwrap();
    bench.memory.release();
    for range in [whole(one), whole(two)] {
        held.resolve(range).unwrap().write_obj(0x77u8, 4095).unwrap();
    }
    let now = |page| bench.guest.slice(page, 0, 4096).read_obj::<u8>(4095).unwrap();
    held.write_back([end(one)].into_iter()).unwrap();
    assert_eq!([now(first), now(second)], [0x77, 0], "the second request is not done yet");
    held.write_back([whole(two)].into_iter()).unwrap();
    assert_eq!([now(first), now(second)], [0x77, 0x77]);
    assert!(held.resolve(DmaRange { address: at(one, 4000).0, length: 97, ..whole(one) }).is_err());
}

#[test]
fn held_pool_pages_and_mappings_stay_mapped_until_the_operation_ends() {
    let mut bench = bench();
    let pool = bench.grant(2, Access::ReadWrite);
    bench.memory.share(PoolPage(0), 2, pool).unwrap();
    let address = PoolPage(1).address(8);
    let pooled = DmaRange { address, length: 8, access: Access::ReadWrite };
    let mapped = bench.grant(1, Access::ReadWrite);
    bench.memory.write_obj(7u8, at(mapped, 0)).unwrap();
    let held = bench.memory.hold();
    bench.memory.release();
    bench.memory.unshare_all();
    assert_eq!(bench.mapped(), 3);
    assert!(held.resolve(pooled).is_ok());
    assert!(bench.memory.read_obj::<u8>(GuestAddress(address)).is_err(), "the pool has ended");
    drop(held);
    assert_eq!(bench.mapped(), 0);
}

#[test]
fn spec_5_11_held_pool_is_not_unshared() {
    let mut bench = bench();
    for page in [0, 2] {
        let pool = bench.grant(2, Access::ReadWrite);
        bench.memory.share(PoolPage(page), 2, pool).unwrap();
    }
    let held = bench.memory.hold();
    assert_eq!(bench.memory.unshare(PoolPage(0), 2), Err(UnshareError::InUse));
    assert_eq!(bench.mapped(), 4);
    drop(held);
    assert_eq!(bench.memory.unshare(PoolPage(0), 2), Ok(()));
    assert_eq!(bench.mapped(), 2);
}

#[test]
fn spec_5_11_pages_unshared_in_any_order_leave_the_others_reachable() {
    let mut bench = bench();
    let chunks = [0, 9, 3, 5].map(|page| {
        let pool = bench.grant(2, Access::ReadWrite);
        bench.memory.share(PoolPage(page), 2, pool).unwrap();
        let address = GuestAddress(PoolPage(page + 1).address(8));
        bench.memory.write_obj(page, address).unwrap();
        (page, address)
    });
    let is_there = |bench: &Bench, (page, address): (u32, GuestAddress)| {
        bench.memory.read_obj::<u32>(address).is_ok_and(|found| found == page)
    };
    for unshared in [0, 3, 1, 2] {
        assert!(is_there(&bench, chunks[unshared]));
        assert_eq!(bench.memory.unshare(PoolPage(chunks[unshared].0), 2), Ok(()));
        assert!(!is_there(&bench, chunks[unshared]));
        let shared = bench.mapped() / 2;
        assert_eq!(chunks.iter().filter(|chunk| is_there(&bench, **chunk)).count(), shared);
    }
    assert_eq!((bench.mapped(), bench.stats.pool_pages.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn pools_of_all_guests_leave_capacity_for_rings() {
    let daemon = Arc::new(DaemonBudget::of_this_process());
    let mut bench = bench_of(16);
    let guest = || Arc::new(GuestBudget::new(Arc::clone(&daemon)));
    let mut chunks = Vec::new();
    while let Ok(chunk) = guest().reserve(64, Purpose::SharedPool) {
        chunks.push(chunk);
    }
    let platform = GrantPlatform::new(bench.hypervisor.grants(DomId(1)).unwrap());
    bench.memory = DmaMemory::new(platform, Arc::clone(&bench.stats), guest());
    let pool = bench.grant(2, Access::ReadWrite);
    let refused = bench.memory.share(PoolPage(0), 2, pool);
    assert!(matches!(refused, Err(ShareError::Budget(_))), "{refused:?}");
    let first = bench.grant(3, Access::ReadWrite);
    let ring = bench.memory.map_ring(ring_areas(at(first, 0).0, 16));
    assert!(ring.is_ok(), "{:?}", bench.memory.last_fault());
    assert_eq!(bench.mapped(), 3);
}

#[test]
fn read_only_grant_permits_reads_only() {
    let mut bench = bench();
    let first = bench.grant(1, Access::ReadOnly);
    assert_eq!(bench.memory.read_obj::<u64>(at(first, 0)).unwrap(), 0);
    let error = bench.memory.write_obj(1u64, at(first, 0)).unwrap_err();
    assert!(matches!(AccessFault::of(&error), Some(AccessFault::Map { .. })), "{error}");
    assert!(!AccessFault::of(&error).unwrap().is_shortage());
    assert!(bench.memory.check_range(at(first, 0), 8, Permissions::Read));
    assert!(!bench.memory.check_range(at(first, 0), 8, Permissions::ReadWrite));
    assert!(bench.memory.last_fault().unwrap().contains("ReadWrite"));
}

/// Ranges of one page each, over `pages` pages from each reference.
fn page_by_page(pages: u32, firsts: [(GrantRef, Access); 2]) -> Vec<DmaRange> {
    let range = |page: u32, (first, access): (GrantRef, Access)| DmaRange {
        address: at(GrantRef(first.0 + page), 0).0,
        length: 4096,
        access,
    };
    (0..pages).flat_map(|page| firsts.map(|first| range(page, first))).collect()
}

#[test]
fn batch_is_copied_once_each_way_without_mappings() {
    let mut bench = bench();
    let (source, target) = (bench.guest.allocate(), bench.guest.allocate());
    bench.guest.slice(source, 0, 4096).write_obj(0x55u8, 4095).unwrap();
    let read = bench.guest.grant(&[source], Access::ReadOnly);
    let write = bench.guest.grant(&[target], Access::ReadWrite);
    let wanted = page_by_page(1, [(read, Access::ReadOnly), (write, Access::ReadWrite)]);
    bench.memory.prepare(wanted.into_iter());
    assert_eq!(bench.memory.read_obj::<u8>(at(read, 4095)).unwrap(), 0x55);
    bench.memory.write_obj(0x77u8, at(write, 1)).unwrap();
    let now = |bench: &Bench| bench.guest.slice(target, 0, 4096).read_obj::<u8>(1).unwrap();
    assert_eq!(now(&bench), 0, "written bytes reach the guest with write_back");
    bench.memory.write_back().unwrap();
    bench.memory.release();
    assert_eq!(now(&bench), 0x77);
    assert_eq!((bench.mapped(), bench.hypervisor.map_calls()), (0, 0));
    let copies = [&bench.stats.copies, &bench.stats.copies_pages];
    assert_eq!(copies.map(|count| count.load(Ordering::Relaxed)), [2, 2]);
}

#[test]
fn write_back_to_a_read_only_grant_names_the_fault() {
    let mut bench = bench();
    let first = bench.grant(1, Access::ReadOnly);
    let range = DmaRange { address: at(first, 8).0, length: 8, access: Access::ReadWrite };
    bench.memory.prepare([range].into_iter());
    bench.memory.write_obj(1u64, at(first, 8)).unwrap();
    let fault = bench.memory.write_back().unwrap_err();
    assert!(matches!(fault, AccessFault::Map { .. }) && !fault.is_shortage(), "{fault}");
    assert!(fault.to_string().contains(&first.to_string()) || bench.memory.last_fault().is_some());
}

#[test]
fn batch_too_large_for_a_copy_takes_two_mappings() {
    let mut bench = bench_of(600);
    let (read, write) = (bench.grant(300, Access::ReadOnly), bench.grant(300, Access::ReadWrite));
    let wanted = page_by_page(300, [(read, Access::ReadOnly), (write, Access::ReadWrite)]);
    bench.memory.prepare(wanted.iter().copied());
    assert_eq!((bench.mapped(), bench.hypervisor.map_calls()), (600, 2));
    for reach in wanted {
        bench.memory.read_obj::<u8>(GuestAddress(reach.address)).unwrap();
    }
    assert_eq!(bench.hypervisor.map_calls(), 2, "no access maps again");
}

#[test]
fn batch_with_one_bad_buffer_leaves_the_others_reachable() {
    let mut bench = bench();
    let first = bench.grant(1, Access::ReadOnly);
    let range = |address: GuestAddress| DmaRange {
        address: address.0,
        length: 64,
        access: Access::ReadOnly,
    };
    bench.memory.prepare([range(at(first, 0)), range(at(GrantRef(999), 0))].into_iter());
    assert_eq!(bench.mapped(), 0, "one bad element fails the whole map");
    assert!(bench.memory.read_obj::<u8>(at(first, 0)).is_ok());
    assert!(bench.memory.read_obj::<u8>(at(GrantRef(999), 0)).is_err());
}

/// The areas of a ring from `address` on, one at the start of each page, of `length` bytes.
fn ring_areas(address: u64, length: u64) -> [DmaRange; 3] {
    let area = |page: u64, access| DmaRange { address: address + (page << 12), length, access };
    [area(0, Access::ReadOnly), area(1, Access::ReadOnly), area(2, Access::ReadWrite)]
}

#[test]
fn ring_survives_release_and_is_mapped_whole_or_not_at_all() {
    let mut bench = bench();
    let first = bench.grant(3, Access::ReadWrite);
    let areas = ring_areas(at(first, 0).0, 16);
    let ring = bench.memory.map_ring(areas).unwrap();
    bench.memory.release();
    assert_eq!(bench.mapped(), 3);
    let mut bad = areas;
    bad[2].address = at(GrantRef(999), 0).0;
    assert!(bench.memory.map_ring(bad).is_err());
    assert_eq!(bench.mapped(), 3, "a failed ring leaves no mapping");
    drop(ring);
    assert_eq!((bench.mapped(), bench.stats.grants_mapped.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn ring_areas_are_their_bytes_alone_and_of_use_for_nothing_else() {
    let mut bench = bench();
    let pages: Vec<_> = (0..4).map(|_| bench.guest.allocate()).collect();
    let first = bench.guest.grant(&pages, Access::ReadWrite);
    let areas = ring_areas(at(first, 4000).0, 200);
    let ring = bench.memory.map_ring(areas).unwrap();
    assert_eq!(bench.mapped(), 6, "each area spans two pages");
    for (area, page) in ring.areas().unwrap().iter().zip(1u8..) {
        assert_eq!(area.len(), 200);
        bench.guest.slice(pages[usize::from(page)], 103, 1).write_obj(page, 0).unwrap();
        assert_eq!(area.read_obj::<u8>(199).unwrap(), page);
    }
    assert!(bench.memory.check_range(at(first, 4000), 200, Permissions::Read));
    assert_eq!(bench.mapped(), 8, "a buffer in a ring's pages is mapped by itself");
    bench.memory.release();
    drop(ring);
    assert_eq!(bench.mapped(), 0);
}

#[test]
fn too_long_ranges_are_refused_without_a_map_call() {
    let mut bench = bench();
    let first = bench.grant(1, Access::ReadOnly);
    let long = (super::mapper::MAX_RANGE_PAGES as usize + 1) * 4096;
    assert!(!bench.memory.check_range(at(first, 0), long, Permissions::Read));
    assert!(bench.memory.last_fault().unwrap().contains("more than"));
    assert_eq!(bench.hypervisor.map_calls(), 0);
    assert!(
        bench.memory.check_range(GuestAddress(0), 0, Permissions::Read),
        "an empty range needs no page"
    );
}
