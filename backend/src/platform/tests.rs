//! `PlatformMemory` over grants, alone: permissions, when things are mapped, when not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::{GrantAddress, GrantRef};
use protocol::pool::PoolPage;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::{AccessFault, PlatformMemory, Reach, ShareError};
use crate::grant::Grants;
use crate::stats::DeviceStats;
use crate::xen::sim::{Guest, Hypervisor, SimGrants};
use crate::xen::{Access, DomId, Xen};

struct Bench {
    hypervisor: Hypervisor,
    guest: Guest,
    memory: PlatformMemory<Grants<SimGrants>>,
    stats: Arc<DeviceStats>,
}

fn bench() -> Bench {
    let (hypervisor, stats) = (Hypervisor::default(), Arc::new(DeviceStats::default()));
    let guest = hypervisor.guest(1, 16);
    let memory =
        PlatformMemory::new(Grants::new(hypervisor.grants(DomId(1)).unwrap()), Arc::clone(&stats));
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
fn spec_3_13_the_pool_takes_no_page_of_the_toolstacks() {
    let mut bench = bench();
    let refused = bench.memory.share(PoolPage(0), 1, GrantRef(1));
    assert!(matches!(refused, Err(ShareError::Toolstack(GrantRef(1)))), "{refused:?}");
}

#[test]
fn nothing_is_mapped_before_it_is_asked_for_and_nothing_after_release() {
    let mut bench = bench();
    let first = bench.grant(2, Access::ReadWrite);
    assert_eq!(bench.mapped(), 0);
    bench.memory.write_obj(0x1122_3344u32, at(first, 4094)).unwrap();
    assert_eq!(bench.mapped(), 2, "a buffer over a page's end needs both pages");
    assert_eq!(bench.memory.read_obj::<u32>(at(first, 4094)).unwrap(), 0x1122_3344);
    assert_eq!(bench.mapped(), 2, "what is mapped is found again");
    assert_eq!(bench.stats.grants_mapped.load(Ordering::Relaxed), 2);
    bench.memory.release();
    assert_eq!((bench.mapped(), bench.stats.grants_mapped.load(Ordering::Relaxed)), (0, 0));
    bench.guest.revoke(first, 2);
    bench.hypervisor.assert_clean();
}

#[test]
fn a_read_only_grant_can_be_read_and_not_written() {
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

#[test]
fn a_batch_is_two_mappings_whatever_its_buffers() {
    let mut bench = bench();
    let (read, write) = (bench.grant(3, Access::ReadOnly), bench.grant(3, Access::ReadWrite));
    let wanted: Vec<_> = (0..3)
        .flat_map(|page| {
            let reach = |first: GrantRef, access| Reach {
                address: at(GrantRef(first.0 + page), 0).0,
                length: 4096,
                access,
            };
            [reach(read, Access::ReadOnly), reach(write, Access::ReadWrite)]
        })
        .collect();
    bench.memory.prepare(wanted.iter().copied()).unwrap();
    assert_eq!((bench.mapped(), bench.hypervisor.map_calls()), (6, 2));
    for reach in wanted {
        bench.memory.read_obj::<u8>(GuestAddress(reach.address)).unwrap();
    }
    assert_eq!(bench.hypervisor.map_calls(), 2, "nothing was mapped again");
}

#[test]
fn a_batch_with_one_bad_buffer_leaves_the_good_ones_reachable() {
    let mut bench = bench();
    let first = bench.grant(1, Access::ReadOnly);
    let reach =
        |address: GuestAddress| Reach { address: address.0, length: 64, access: Access::ReadOnly };
    bench.memory.prepare([reach(at(first, 0)), reach(at(GrantRef(999), 0))].into_iter()).unwrap();
    assert_eq!(bench.mapped(), 0, "one bad element refuses its mapping");
    assert!(bench.memory.read_obj::<u8>(at(first, 0)).is_ok());
    assert!(bench.memory.read_obj::<u8>(at(GrantRef(999), 0)).is_err());
}

#[test]
fn pins_survive_release_and_fail_whole() {
    let mut bench = bench();
    let first = bench.grant(2, Access::ReadWrite);
    let reach = |reference: u32| Reach {
        address: at(GrantRef(reference), 0).0,
        length: 16,
        access: Access::ReadWrite,
    };
    let pin = bench.memory.pin(&[reach(first.0), reach(first.0 + 1)]).unwrap();
    bench.memory.release();
    assert_eq!(bench.mapped(), 2);
    assert!(bench.memory.pin(&[reach(first.0), reach(999)]).is_err());
    assert_eq!(bench.mapped(), 2, "nothing of a pin that failed is left");
    bench.memory.unpin(pin);
    assert_eq!((bench.mapped(), bench.stats.grants_mapped.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn ranges_that_are_too_long_are_refused_before_the_hypervisor_is_asked() {
    let mut bench = bench();
    let first = bench.grant(1, Access::ReadOnly);
    let long = (super::memory::MAX_RANGE_PAGES as usize + 1) * 4096;
    assert!(!bench.memory.check_range(at(first, 0), long, Permissions::Read));
    assert!(bench.memory.last_fault().unwrap().contains("more than"));
    assert_eq!(bench.hypervisor.map_calls(), 0);
    assert!(bench.memory.check_range(GuestAddress(0), 0, Permissions::Read), "no bytes, no page");
}
