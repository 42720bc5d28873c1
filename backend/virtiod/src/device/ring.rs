//! A queue's ring, whose areas were resolved when the queue was enabled.
//!
//! `virtio-queue` keeps the ring's state and accesses it through [`RingMemory`], where a look-up is
//! a comparison and an addition.

use std::iter::FusedIterator;
use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions, VolatileSlice,
};

/// The bytes of a ring's areas.
#[derive(Clone, Copy, Debug)]
pub struct RingAreas<'a> {
    /// The descriptor table.
    pub descriptors: VolatileSlice<'a>,
    /// The driver area: the available ring.
    pub driver: VolatileSlice<'a>,
    /// The device area: the used ring.
    pub device: VolatileSlice<'a>,
}

/// The ring of an enabled queue.
pub struct Ring<'a> {
    queue: &'a mut Queue,
    memory: RingMemory<'a>,
}

impl<'a> Ring<'a> {
    /// The ring with this state, whose addresses are those of `areas`.
    pub fn new(queue: &'a mut Queue, areas: RingAreas<'a>) -> Self {
        let memory = RingMemory {
            driver: MappedArea { start: queue.avail_ring(), bytes: areas.driver },
            device: MappedArea { start: queue.used_ring(), bytes: areas.device },
            descriptors: areas.descriptors,
        };
        Self { queue, memory }
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The descriptor table.
    pub(super) fn descriptors(&self) -> VolatileSlice<'a> {
        self.memory.descriptors
    }

    /// Takes the chains that the driver has made available, one with each step; returns the indices
    /// of their first descriptors.
    ///
    /// # Errors
    /// The driver's index is impossible.
    pub(super) fn heads(&mut self) -> Result<impl Iterator<Item = u16>, Error> {
        Ok(self.queue.iter(&self.memory)?.map(|chain| chain.head_index()))
    }

    /// Whether the driver has made chains available that were not taken.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn has_requests(&self) -> Result<bool, Error> {
        let available = self.queue.avail_idx(&self.memory, Ordering::Acquire)?;
        Ok(available.0 != self.queue.next_avail())
    }

    /// Returns a chain to the driver, with the number of bytes written into its buffers.
    ///
    /// # Errors
    /// The chain has no valid index.
    pub(super) fn add_used(&mut self, head: u16, written: u32) -> Result<(), Error> {
        self.queue.add_used(&self.memory, head, written)
    }

    /// Whether the driver wants to be notified of the chains that were returned since the last
    /// call.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn needs_notification(&mut self) -> Result<bool, Error> {
        self.queue.needs_notification(&self.memory)
    }

    /// Asks the driver for a doorbell with the next chain; returns whether chains are available
    /// already, for which no doorbell will ring.
    ///
    /// # Errors
    /// The ring cannot be read or written.
    pub fn enable_notification(&mut self) -> Result<bool, Error> {
        self.queue.enable_notification(&self.memory)
    }
}

/// A part of the ring that the device accesses through addresses.
#[derive(Clone, Copy)]
struct MappedArea<'a> {
    /// Guest address of the first byte.
    start: u64,
    bytes: VolatileSlice<'a>,
}

impl<'a> MappedArea<'a> {
    /// Returns `count` bytes at `address`, if the area contains all of them.
    fn find(self, address: GuestAddress, count: usize) -> Option<VolatileSlice<'a>> {
        let offset = usize::try_from(address.0.wrapping_sub(self.start)).ok()?;
        self.bytes.subslice(offset, count).ok()
    }
}

/// The memory of one ring. `virtio-queue` finds the driver area and the device area in it; chains
/// are followed without it (`chain.rs`).
struct RingMemory<'a> {
    driver: MappedArea<'a>,
    device: MappedArea<'a>,
    descriptors: VolatileSlice<'a>,
}

impl<'a> RingMemory<'a> {
    fn find(
        &self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<VolatileSlice<'a>, GuestMemoryError> {
        let driver = if access.has_write() { None } else { self.driver.find(address, count) };
        let found = driver.or_else(|| self.device.find(address, count));
        found.ok_or(GuestMemoryError::InvalidGuestAddress(address))
    }
}

impl GuestMemory for RingMemory<'_> {
    /// Never used: a device reaches only granted memory, never the guest's physical memory.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.find(address, count, access).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        Ok(OneSlice::new(self.find(address, count, access)?))
    }
}

/// Iterates over the one slice of a range, or over none if the range is empty.
#[derive(Default)]
pub struct OneSlice<'a>(Option<VolatileSlice<'a>>);

impl<'a> OneSlice<'a> {
    /// The slice of a range, whose bytes are all at consecutive addresses.
    pub fn new(slice: VolatileSlice<'a>) -> Self {
        Self(Some(slice).filter(|slice| !slice.is_empty()))
    }
}

impl<'a> Iterator for OneSlice<'a> {
    type Item = Result<VolatileSlice<'a>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl FusedIterator for OneSlice<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for OneSlice<'a> {}
