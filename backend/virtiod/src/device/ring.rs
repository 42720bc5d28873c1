//! A queue's ring, whose areas were resolved when the queue was enabled.
//!
//! `virtio-queue` reads the driver's index and requests doorbells, through [`RingMemory`], where a
//! look-up is a comparison and an addition. The elements of the rings are accessed here:
//! `virtio-queue` would look each of them up, and publish each used one by itself.

use std::iter::FusedIterator;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use super::Fault;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions,
    VolatileMemory, VolatileMemoryError, VolatileSlice,
};

/// Bytes of the header of the driver area and of the device area: flags and index.
const HEADER: usize = 4;
/// Offset of the index in them.
const INDEX: usize = 2;

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

/// The device's state of a ring.
#[derive(Debug)]
pub struct RingState {
    queue: Queue,
    /// The index of the used ring: the number of elements written, modulo 2^16.
    used: Wrapping<u16>,
    /// The index when the device last asked whether the driver wants a notification.
    asked: Wrapping<u16>,
}

impl RingState {
    /// The state of a ring that was just set up as `queue` is.
    pub fn new(queue: Queue) -> Self {
        Self { queue, used: Wrapping(0), asked: Wrapping(0) }
    }
}

/// The ring of an enabled queue.
pub struct Ring<'a> {
    state: &'a mut RingState,
    memory: RingMemory<'a>,
}

impl<'a> Ring<'a> {
    /// The ring with this state, whose addresses are those of `areas`.
    pub fn new(state: &'a mut RingState, areas: RingAreas<'a>) -> Self {
        let memory = RingMemory {
            driver: MappedArea { start: state.queue.avail_ring(), bytes: areas.driver },
            device: MappedArea { start: state.queue.used_ring(), bytes: areas.device },
            descriptors: areas.descriptors,
        };
        Self { state, memory }
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.state.queue.size()
    }

    /// The descriptor table.
    pub(super) fn descriptors(&self) -> VolatileSlice<'a> {
        self.memory.descriptors
    }

    /// Takes the chains that the driver has made available, one with each step; returns the indices
    /// of their first descriptors.
    ///
    /// # Errors
    /// [`Fault::Ring`]: the driver's index is impossible. [`Fault::RingBytes`] as for
    /// [`Ring::give_back`].
    pub(super) fn heads(&mut self) -> Result<impl Iterator<Item = u16>, Fault> {
        let queue = &mut self.state.queue;
        let available = queue.avail_idx(&self.memory, Ordering::Acquire)?;
        let (size, mut next) = (queue.size(), Wrapping(queue.next_avail()));
        if (available - next).0 > size {
            return Err(Error::InvalidAvailRingIndex.into());
        }
        let size = usize::from(size);
        let heads = self.memory.driver.bytes.get_array_ref::<u16>(HEADER, size)?;
        Ok(std::iter::from_fn(move || {
            if next == available {
                return None;
            }
            // The size is a power of two.
            let head = heads.ref_at(usize::from(next.0) & (size - 1)).load();
            next += 1;
            queue.set_next_avail(next.0);
            Some(u16::from_le(head))
        }))
    }

    /// Whether the driver has made chains available that were not taken.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn has_requests(&self) -> Result<bool, Error> {
        let queue = &self.state.queue;
        let available = queue.avail_idx(&self.memory, Ordering::Acquire)?;
        Ok(available.0 != queue.next_avail())
    }

    /// Returns chains to the driver, each with the number of bytes written into its buffers.
    ///
    /// # Errors
    /// The used ring is shorter than the ring's size, which the set-up prevents.
    pub(super) fn give_back(&mut self, done: &[(u16, u32)]) -> Result<(), VolatileMemoryError> {
        let (size, device) = (usize::from(self.size()), self.memory.device.bytes);
        let elements = device.get_array_ref::<u64>(HEADER, size)?;
        for (head, written) in done {
            // The size is a power of two.
            let slot = usize::from(self.state.used.0) & (size - 1);
            // `struct virtq_used_elem`: the head, then the number of bytes.
            let element = u64::from(*head) | u64::from(*written) << 32;
            elements.ref_at(slot).store(element.to_le());
            self.state.used += 1;
        }
        // Release pairs with the driver's read barrier: it sees the elements with the index.
        device.store(self.state.used.0.to_le(), INDEX, Ordering::Release)
    }

    /// Whether the driver wants to be notified of the chains that were returned since the last
    /// call.
    ///
    /// # Errors
    /// The driver area is shorter than the ring's size, which the set-up prevents.
    pub fn needs_notification(&mut self) -> Result<bool, VolatileMemoryError> {
        // The driver sets `used_event` and then reads the index, and the device the other way
        // round: without a full barrier on each side, neither might see the other's.
        fence(Ordering::SeqCst);
        let RingState { queue, used, asked } = &mut *self.state;
        if !queue.event_idx_enabled() {
            return Ok(true);
        }
        let event = HEADER + 2 * usize::from(queue.size());
        let event: u16 = self.memory.driver.bytes.load(event, Ordering::Relaxed)?;
        let before = std::mem::replace(asked, *used);
        // Virtio 1.3 section 2.7.10: the event is one of the indices since `before`.
        Ok(*used - Wrapping(u16::from_le(event)) - Wrapping(1) < *used - before)
    }

    /// Asks the driver for a doorbell with the next chain; returns whether chains are available
    /// already, for which no doorbell will ring.
    ///
    /// # Errors
    /// The ring cannot be read or written.
    pub fn enable_notification(&mut self) -> Result<bool, Error> {
        self.state.queue.enable_notification(&self.memory)
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

/// The driver area and the device area of a ring, as `virtio-queue` accesses them. Chains are
/// followed by `chain.rs`.
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

#[cfg(test)]
mod tests {
    use virtio_queue::QueueOwnedT;

    use super::*;

    const SIZE: u16 = 8;
    const DRIVER: u64 = 0x100;
    const DEVICE: u64 = 0x200;
    const BYTES: usize = 0x400;

    fn queue(event_idx: bool) -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(DRIVER)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(DEVICE)).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).unwrap()
    }

    fn areas(memory: &GuestMemoryMmap) -> RingAreas<'_> {
        let slice = |start, length| {
            let mut slices =
                memory.get_slices(GuestAddress(start), length, Permissions::ReadWrite).unwrap();
            slices.next().unwrap().unwrap()
        };
        let size = usize::from(SIZE);
        RingAreas {
            descriptors: slice(0, 16 * size),
            driver: slice(DRIVER, 6 + 2 * size),
            device: slice(DEVICE, 6 + 8 * size),
        }
    }

    fn all_bytes(memory: &GuestMemoryMmap) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// Returns chains in batches, with all possible events of the driver, over more than the range
    /// of an index.
    #[test]
    fn used_ring_and_notifications_are_those_of_virtio_queue() {
        for event_idx in [false, true] {
            let (theirs, ours) = (memory(), memory());
            let (mut queue, mut state) = (queue(event_idx), RingState::new(queue(event_idx)));
            let mut notified = 0;
            for step in 0..30_000u32 {
                let batch: Vec<_> =
                    (0..step % 7).map(|at| ((step + at) as u16 % SIZE, step)).collect();
                let event = queue.next_used().wrapping_add(step as u16 % 5).wrapping_sub(2);
                for memory in [&theirs, &ours] {
                    memory.write_obj(event, GuestAddress(DRIVER + 4 + 16)).unwrap();
                }
                for (head, written) in &batch {
                    queue.add_used(&theirs, *head, *written).unwrap();
                }
                let mut ring = Ring::new(&mut state, areas(&ours));
                ring.give_back(&batch).unwrap();
                assert_eq!(all_bytes(&ours), all_bytes(&theirs), "step {step}");
                if step % 3 > 0 {
                    let notify = queue.needs_notification(&theirs).unwrap();
                    assert_eq!(ring.needs_notification().unwrap(), notify, "step {step}");
                    notified += u32::from(notify);
                }
            }
            assert!(notified > 5000, "{notified}");
            assert_eq!(notified < 20_000, event_idx, "{notified}");
        }
    }

    /// Takes all of the available chains or a part of them, over more than the range of an index.
    #[test]
    fn heads_are_those_of_virtio_queue() {
        let memory = memory();
        let (mut queue, mut state) = (queue(false), RingState::new(queue(false)));
        let (mut available, mut impossible) = (0u16, 0);
        for step in 0..30_000u16 {
            available = available.wrapping_add(step % 7);
            memory.write_obj(step, GuestAddress(DRIVER + 4 + 2 * u64::from(step % SIZE))).unwrap();
            memory.store(available, GuestAddress(DRIVER + 2), Ordering::Relaxed).unwrap();
            let most = usize::from(step % 11);
            let expected: Option<Vec<_>> = queue
                .iter(&memory)
                .map(|chains| chains.take(most).map(|chain| chain.head_index()).collect())
                .ok();
            let mut ring = Ring::new(&mut state, areas(&memory));
            let heads = ring.heads().map(|heads| heads.take(most).collect()).ok();
            assert_eq!(heads, expected, "step {step}");
            assert_eq!(state.queue.next_avail(), queue.next_avail(), "step {step}");
            if expected.is_none() {
                impossible += 1;
                available = queue.next_avail();
            }
        }
        assert!((100..20_000).contains(&impossible), "{impossible}");
    }

    #[test]
    fn only_the_rings_own_bytes_are_found() {
        let (memory, mut state) = (memory(), RingState::new(queue(true)));
        let ring = Ring::new(&mut state, areas(&memory));
        let found =
            |address, count, access| ring.memory.check_range(GuestAddress(address), count, access);
        let (driver, device) = (6 + 2 * usize::from(SIZE), 6 + 8 * usize::from(SIZE));
        assert!(found(DRIVER, driver, Permissions::Read));
        assert!(!found(DRIVER, driver + 1, Permissions::Read), "beyond the end");
        assert!(!found(DRIVER - 1, 2, Permissions::Read), "before the start");
        assert!(!found(DRIVER, 2, Permissions::Write), "the device only reads it");
        assert!(found(DEVICE, device, Permissions::ReadWrite));
        assert!(!found(DEVICE, device + 1, Permissions::ReadWrite));
        assert!(!found(u64::MAX, 2, Permissions::Read), "beyond the last address");
        assert!(!found(0, 16, Permissions::Read), "descriptors are not found by address");
    }
}
