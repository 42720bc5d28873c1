//! The driver of a device in a simulated guest: its requests, its ring and the pages that it
//! grants.

use std::sync::atomic::Ordering;

use protocol::grant::{GrantRef, PAGE_SIZE};
use protocol::pool::PoolPage;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vm_memory::{Bytes, VolatileSlice};
use xen::Access;
use xen_sim::{Guest, GuestPage, GuestPort, Hypervisor};

/// The domain id of the guest.
pub(crate) const GUEST: u16 = 1;

/// Requests that may be in the ring, each in a slot of its own.
pub(crate) const SLOTS: u16 = 32;
/// Entries of the ring.
pub(crate) const ENTRIES: u16 = 128;

/// The granted pages: one for each area of the ring.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 1;
const USED: usize = 2;
/// The first chunk of the pool has tables, headers and status bytes, the second has data.
const TABLES: usize = 3;
const HEADERS: usize = 4;
const DATA: usize = 5;
const PAGES: usize = DATA + SLOTS as usize;
/// Number of the first page of the second chunk.
const DATA_CHUNK: u32 = 64;

const TABLE: u64 = 48;
const HEADER: u64 = 32;
const STATUS: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Pages that are a chunk of the pool.
#[derive(Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) first: PoolPage,
    pub(crate) count: u32,
    pub(crate) reference: GrantRef,
}

/// The driver.
pub(crate) struct Driver {
    guest: Guest,
    pages: Vec<GuestPage>,
    /// The addresses of the ring's areas: descriptors, driver area, device area.
    pub(crate) areas: [u64; 3],
    /// The pool.
    pub(crate) chunks: [Chunk; 2],
    /// The index of the available ring.
    pub(crate) available: u16,
}

impl Driver {
    /// A driver that has granted all its pages.
    pub(crate) fn new(hypervisor: &Hypervisor) -> Self {
        let mut guest = hypervisor.guest(GUEST, PAGES);
        let pages: Vec<_> = (0..PAGES).map(|_| guest.allocate()).collect();
        let areas = [DESCRIPTORS, AVAILABLE, USED].map(|page| {
            let reference = guest.grant(&[pages[page]], Access::ReadWrite);
            guest.address(pages[page], reference)
        });
        let chunks = [(0, TABLES, DATA), (DATA_CHUNK, DATA, PAGES)].map(|(first, from, to)| {
            let reference = guest.grant(&pages[from..to], Access::ReadWrite);
            Chunk { first: PoolPage(first), count: (to - from) as u32, reference }
        });
        Self { guest, pages, areas, chunks, available: 0 }
    }

    /// Allocates an event channel.
    pub(crate) fn port(&self) -> GuestPort {
        self.guest.port()
    }

    fn slice(&self, page: usize, offset: u64, length: usize) -> VolatileSlice<'_> {
        self.guest.slice(self.pages[page], offset as usize, length)
    }

    fn page(&self, page: usize) -> VolatileSlice<'_> {
        self.slice(page, 0, PAGE_SIZE as usize)
    }

    /// Writes a request of type `command` into a slot, and the descriptor of its table. Without
    /// data it has two descriptors.
    pub(crate) fn write_request(&self, slot: u16, command: u32, sector: u64, bytes: u32) {
        let at = u64::from(slot);
        let header = self.slice(HEADERS, at * HEADER, STATUS as usize);
        header.write_obj(command, 0).unwrap();
        header.write_obj(sector, 8).unwrap();
        let small = |page: usize, offset| PoolPage((page - TABLES) as u32).address(offset);
        let data = PoolPage(DATA_CHUNK + u32::from(slot)).address(0);
        let table = self.slice(TABLES, at * TABLE, TABLE as usize);
        let (header, direction) =
            (small(HEADERS, at * HEADER), if command == VIRTIO_BLK_T_IN { WRITE } else { 0 });
        let all = [
            (header, STATUS as u32, NEXT),
            (data, bytes, NEXT | direction),
            (header + STATUS, 1, WRITE),
        ];
        let used = all.into_iter().filter(|(_, length, _)| *length > 0);
        let count = (0..).zip(used).map(|(index, entry)| descriptor(&table, index, entry)).count();
        let table = (small(TABLES, at * TABLE), 16 * count as u32, INDIRECT);
        descriptor(&self.page(DESCRIPTORS), slot, table);
    }

    /// Writes the descriptor of a slot: its page for data, which the device fills.
    #[allow(dead_code, reason = "not every program has such requests")]
    pub(crate) fn write_buffer(&self, slot: u16) {
        let data = PoolPage(DATA_CHUNK + u32::from(slot)).address(0);
        descriptor(&self.page(DESCRIPTORS), slot, (data, PAGE_SIZE as u32, WRITE));
    }

    /// The page for the data of the request in a slot.
    pub(crate) fn data(&self, slot: u16) -> VolatileSlice<'_> {
        self.page(DATA + usize::from(slot))
    }

    /// The status byte of the request in a slot.
    pub(crate) fn status(&self, slot: u16) -> VolatileSlice<'_> {
        self.slice(HEADERS, u64::from(slot) * HEADER + STATUS, 1)
    }

    /// Makes the requests in these slots available, and requests a notification of the last.
    pub(crate) fn make_available(&mut self, slots: impl Iterator<Item = u16>) {
        let (ring, mut available) = (self.page(AVAILABLE), self.available);
        for slot in slots {
            ring.write_obj(slot, 4 + 2 * usize::from(available % ENTRIES)).unwrap();
            available = available.wrapping_add(1);
        }
        ring.write_obj(available.wrapping_sub(1), 4 + 2 * usize::from(ENTRIES)).unwrap();
        ring.store(available, 2, Ordering::Release).unwrap();
        self.available = available;
    }

    /// Whether requests are not answered.
    pub(crate) fn waits(&self) -> bool {
        // A device that gives a chain back twice comes to an index beyond.
        (1..=SLOTS).contains(&self.available.wrapping_sub(self.used()))
    }

    /// The used ring.
    pub(crate) fn used_ring(&self) -> VolatileSlice<'_> {
        self.page(USED)
    }

    /// The index of the used ring.
    pub(crate) fn used(&self) -> u16 {
        self.used_ring().load(2, Ordering::Acquire).unwrap()
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
