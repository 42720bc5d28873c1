//! The driver's side of a split ring (virtio 1.3 section 2.7), which can also write invalid data.

use std::sync::atomic::Ordering;

use protocol::grant::GrantRef;
use vm_memory::Bytes;

use xen::Access;
use xen_sim::{Guest, GuestPage, GuestPort};

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) writable: bool,
}

/// One granted page of a ring.
pub(super) struct RingArea {
    pub(super) page: GuestPage,
    pub(super) first: GrantRef,
    address: u64,
}

impl RingArea {
    fn new(guest: &mut Guest, access: Access) -> Self {
        let page = guest.allocate();
        let first = guest.grant(&[page], access);
        Self { page, first, address: guest.address(page, first) }
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

pub(super) struct Ring {
    pub(super) descriptors: RingArea,
    pub(super) available: RingArea,
    pub(super) used: RingArea,
    pub(super) doorbell: GuestPort,
    pub(super) size: u16,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

impl Ring {
    /// Default number of entries.
    pub(super) const SIZE: u16 = 16;

    /// Returns a ring of `size` entries, at most 128: each area is a page.
    pub(super) fn new(guest: &mut Guest, size: u16) -> Self {
        Self {
            size,
            // Areas that the device only reads are granted read-only [3.4].
            descriptors: RingArea::new(guest, Access::ReadOnly),
            available: RingArea::new(guest, Access::ReadOnly),
            used: RingArea::new(guest, Access::ReadWrite),
            doorbell: guest.port(),
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// Writes a chain and makes it available; returns its head.
    pub(super) fn add(&mut self, guest: &Guest, chain: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        for (position, descriptor) in chain.iter().enumerate() {
            let index = (head + position as u16) % self.size;
            let next = (position + 1 < chain.len()).then_some((index + 1) % self.size);
            let flags = u16::from(next.is_some()) | u16::from(descriptor.writable) << 1;
            self.write(guest, index, *descriptor, flags, next.unwrap_or(0));
        }
        self.next_descriptor = (head + chain.len() as u16) % self.size;
        self.offer(guest, head);
        head
    }

    /// Writes one descriptor with any flags.
    pub(super) fn write(
        &self,
        guest: &Guest,
        index: u16,
        descriptor: Descriptor,
        flags: u16,
        next: u16,
    ) {
        let entry = guest.slice(self.descriptors.page, usize::from(index) * 16, 16);
        entry.write_obj(descriptor.address, 0).unwrap();
        entry.write_obj(descriptor.length, 8).unwrap();
        entry.write_obj(flags, 12).unwrap();
        entry.write_obj(next, 14).unwrap();
    }

    /// Makes any head available.
    pub(super) fn offer(&mut self, guest: &Guest, head: u16) {
        let ring = guest.slice(self.available.page, 0, 4096);
        let slot = 4 + 2 * usize::from(self.next_available % self.size);
        ring.write_obj(head, slot).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available(guest, self.next_available);
    }

    /// Publishes any available index.
    pub(super) fn set_available(&self, guest: &Guest, index: u16) {
        // Release pairs with the device's Acquire of the index.
        guest.slice(self.available.page, 0, 4096).store(index, 2, Ordering::Release).unwrap();
    }

    pub(super) fn wait_used(&mut self, guest: &Guest) -> (u16, u32) {
        let ring = guest.slice(self.used.page, 0, 4096);
        // Acquire pairs with the device's Release of the index.
        while ring.load::<u16>(2, Ordering::Acquire).unwrap() == self.next_used {
            // Event index: request a notification for the next element.
            let event = guest.slice(self.available.page, 0, 4096);
            event.write_obj(self.next_used, 4 + 2 * usize::from(self.size)).unwrap();
            std::sync::atomic::fence(Ordering::SeqCst);
            if ring.load::<u16>(2, Ordering::Acquire).unwrap() == self.next_used {
                self.doorbell.wait("a used buffer");
            }
        }
        let slot = 4 + 8 * usize::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        (ring.read_obj::<u32>(slot).unwrap() as u16, ring.read_obj(slot + 4).unwrap())
    }

    /// Whether the device requests a notification for the next chain: the event index equals its
    /// position.
    pub(super) fn doorbell_is_asked_for(&self, guest: &Guest) -> bool {
        let event = 4 + 8 * usize::from(self.size);
        let ring = guest.slice(self.used.page, 0, 4096);
        ring.load::<u16>(event, Ordering::Acquire).unwrap() == self.next_available
    }

    /// The used index, read without waiting.
    pub(super) fn used_index(&self, guest: &Guest) -> u16 {
        guest.slice(self.used.page, 0, 4096).load(2, Ordering::Acquire).unwrap()
    }
}
