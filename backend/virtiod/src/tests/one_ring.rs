//! The only ring of a device that a test drives without a transport.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use xen::{Access, GrantTable};
use xen_sim::SimGrants;

use crate::device::{Ring, RingAreas, RingState, Rings};
use crate::dma::grants::GrantPlatform;
use crate::dma::{DmaMemory, DmaRange, RingMapping};

pub(crate) struct OneRing {
    state: RingState,
    mapping: RingMapping<<SimGrants as GrantTable>::Pages>,
}

impl OneRing {
    /// Maps a ring of `entries` whose areas begin at these addresses.
    pub(crate) fn new(
        memory: &DmaMemory<GrantPlatform<SimGrants>>,
        entries: u16,
        [descriptors, driver, device]: [u64; 3],
    ) -> Self {
        let size = u64::from(entries);
        let area = |address, length| DmaRange { address, length, access: Access::ReadWrite };
        let areas =
            [area(descriptors, 16 * size), area(driver, 6 + 2 * size), area(device, 6 + 8 * size)];
        let mapping = memory.map_ring(areas).unwrap();
        let mut queue = Queue::new(entries).unwrap();
        queue.try_set_desc_table_address(GuestAddress(descriptors)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(driver)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(device)).unwrap();
        queue.set_ready(true);
        let [descriptors, driver, device] = mapping.areas().unwrap();
        let areas = RingAreas { descriptors, driver, device };
        Self { state: RingState::new(queue, None, areas).unwrap(), mapping }
    }
}

impl Rings for OneRing {
    fn ring(&mut self, index: usize) -> Option<Ring<'_>> {
        let [descriptors, driver, device] = self.mapping.areas()?;
        let areas = RingAreas { descriptors, driver, device };
        (index == 0).then(|| Ring::new(&mut self.state, areas))
    }
}
