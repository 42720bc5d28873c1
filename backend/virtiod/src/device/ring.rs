//! A queue's ring, whose areas were resolved when the queue was enabled.
//!
//! `virtio-queue` reads the driver's index and requests doorbells, through [`RingMemory`], where a
//! look-up is a comparison and an addition. The elements of the rings are accessed here:
//! `virtio-queue` would look each of them up, and publish each used one by itself.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use super::Fault;
use crate::record::QueueRecord;
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
    /// Chains that an earlier process took and did not give back; they are taken first.
    unfinished: VecDeque<u16>,
    /// Where another process finds what is taken.
    record: Option<QueueRecord>,
}

impl RingState {
    /// The state of a ring that was just set up as `queue` is. What is taken from it is noted in
    /// `record`. A new ring is empty; one that a device in another domain had goes on where its
    /// used ring ends [2.16].
    ///
    /// # Errors
    /// The used ring is shorter than the ring's size, which the set-up prevents.
    pub fn new(
        mut queue: Queue,
        mut record: Option<QueueRecord>,
        areas: RingAreas<'_>,
    ) -> Result<Self, VolatileMemoryError> {
        let used = Wrapping(u16::from_le(areas.device.load(INDEX, Ordering::Acquire)?));
        record.iter_mut().for_each(|record| record.begin(used));
        queue.set_next_avail(used.0);
        Ok(Self { queue, used, asked: used, unfinished: VecDeque::new(), record })
    }

    /// The state of a ring that an earlier process served, which noted in `record` what it took.
    ///
    /// # Errors
    /// [`TakeOverError`].
    pub fn take_over(
        mut queue: Queue,
        mut record: QueueRecord,
        areas: RingAreas<'_>,
    ) -> Result<Self, TakeOverError> {
        let size = usize::from(queue.size());
        let used = Wrapping(u16::from_le(areas.device.load(INDEX, Ordering::Acquire)?));
        let given_back = used - record.used();
        if usize::from(given_back.0) > size {
            return Err(TakeOverError::Used { ring: used.0, record: record.used().0 });
        }
        let elements = areas.device.get_array_ref::<u64>(HEADER, size)?;
        let slot = |index: Wrapping<u16>| usize::from(index.0) & (size - 1);
        let last = (0..given_back.0).map(|back| used - Wrapping(back) - Wrapping(1));
        record.give_back(last.map(|index| u64::from_le(elements.load(slot(index))) as u16), used);
        let taken = record.taken();
        let next = used + Wrapping(taken.len() as u16);
        let heads = areas.driver.get_array_ref::<u16>(HEADER, size)?;
        let head = |index| u16::from_le(heads.load(slot(index)));
        let latest = (1..=queue.size()).map(|back| head(next - Wrapping(back)));
        let unfinished = in_order(taken, latest);
        queue.set_next_avail(next.0);
        Ok(Self { queue, used, asked: used, unfinished, record: Some(record) })
    }
}

/// Sorts heads as the driver made them available: `latest` has those of the ring, the last one
/// first. Others are older, so they come first.
fn in_order(mut taken: Vec<u16>, latest: impl Iterator<Item = u16>) -> VecDeque<u16> {
    let mut sorted = VecDeque::new();
    for head in latest {
        if let Some(position) = taken.iter().position(|taken| *taken == head) {
            sorted.push_front(taken.remove(position));
        }
    }
    taken.into_iter().chain(sorted).collect()
}

/// A ring that cannot be taken over from an earlier process.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The driver or somebody else wrote the used ring.
    #[error("the used ring's index is {ring}, and the device had come to {record}")]
    Used {
        /// The index in the ring.
        ring: u16,
        /// The index in the record.
        record: u16,
    },
    /// The ring is shorter than its size, which the set-up prevents.
    #[error("cannot access the ring")]
    Bytes(#[from] VolatileMemoryError),
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
        let RingState { queue, unfinished, record, .. } = &mut *self.state;
        let available = queue.avail_idx(&self.memory, Ordering::Acquire)?;
        let (size, mut next) = (queue.size(), Wrapping(queue.next_avail()));
        if (available - next).0 > size {
            return Err(Error::InvalidAvailRingIndex.into());
        }
        let size = usize::from(size);
        let heads = self.memory.driver.bytes.get_array_ref::<u16>(HEADER, size)?;
        Ok(std::iter::from_fn(move || {
            if !unfinished.is_empty() {
                return unfinished.pop_front();
            }
            if next == available {
                return None;
            }
            // The size is a power of two.
            let head = u16::from_le(heads.ref_at(usize::from(next.0) & (size - 1)).load());
            record.iter_mut().for_each(|record| record.take(head));
            next += 1;
            queue.set_next_avail(next.0);
            Some(head)
        }))
    }

    /// Whether the driver has made chains available that were not taken.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn has_requests(&self) -> Result<bool, Error> {
        let RingState { queue, unfinished, .. } = &*self.state;
        let available = queue.avail_idx(&self.memory, Ordering::Acquire)?;
        Ok(!unfinished.is_empty() || available.0 != queue.next_avail())
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
        device.store(self.state.used.0.to_le(), INDEX, Ordering::Release)?;
        let RingState { used, record, .. } = &mut *self.state;
        let heads = done.iter().map(|(head, _)| *head);
        record.iter_mut().for_each(|record| record.give_back(heads.clone(), *used));
        Ok(())
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
        let RingState { queue, used, asked, .. } = &mut *self.state;
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
        let is_more = self.state.queue.enable_notification(&self.memory)?;
        Ok(is_more || !self.state.unfinished.is_empty())
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
    use crate::record::Record;

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

    fn new(event_idx: bool, record: Option<QueueRecord>, memory: &GuestMemoryMmap) -> RingState {
        RingState::new(queue(event_idx), record, areas(memory)).unwrap()
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
            let mut queue = queue(event_idx);
            let mut state = new(event_idx, None, &ours);
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
        let (mut queue, mut state) = (queue(false), new(false, None, &memory));
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

    /// A driver that adds chains of one descriptor each, in an order of its own.
    struct Chains {
        free: Vec<u16>,
        available: u16,
        seen: u16,
    }

    impl Chains {
        fn add(&mut self, memory: &GuestMemoryMmap, choice: usize) -> Option<u16> {
            let head =
                (!self.free.is_empty()).then(|| self.free.swap_remove(choice % self.free.len()))?;
            let slot = u64::from(self.available % SIZE);
            memory.write_obj(head, GuestAddress(DRIVER + 4 + 2 * slot)).unwrap();
            self.available = self.available.wrapping_add(1);
            memory.store(self.available, GuestAddress(DRIVER + 2), Ordering::Relaxed).unwrap();
            Some(head)
        }

        /// Takes the chains that the device gave back.
        fn take_used(&mut self, memory: &GuestMemoryMmap) {
            let used: u16 = memory.load(GuestAddress(DEVICE + 2), Ordering::Relaxed).unwrap();
            while self.seen != used {
                let slot = u64::from(self.seen % SIZE);
                let head: u32 = memory.read_obj(GuestAddress(DEVICE + 4 + 8 * slot)).unwrap();
                assert!(!self.free.contains(&(head as u16)), "chain {head} was given back twice");
                self.free.push(head as u16);
                self.seen = self.seen.wrapping_add(1);
            }
        }
    }

    fn record() -> (tempfile::NamedTempFile, Record) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let record = Record::create(file.reopen().unwrap(), &[SIZE]).unwrap();
        (file, record)
    }

    /// Processes die with chains taken, given back, and given back without a word of it in the
    /// record, over more than the range of an index.
    #[test]
    fn chains_of_a_dead_process_are_taken_again_in_order_and_none_twice() {
        let (memory, (_file, record)) = (memory(), record());
        let mut driver = Chains { free: (0..SIZE).collect(), available: 0, seen: 0 };
        let mut state = new(true, record.queue(0), &memory);
        let (mut here, mut waiting) = (VecDeque::new(), VecDeque::new());
        let mut dead = [0; 2];
        for step in 0..60_000usize {
            driver.take_used(&memory);
            (0..step % 4).for_each(|_| waiting.extend(driver.add(&memory, step / 3)));
            let mut ring = Ring::new(&mut state, areas(&memory));
            for head in ring.heads().unwrap().take(step % 5) {
                assert_eq!(waiting.pop_front(), Some(head), "step {step}");
                here.push_back(head);
            }
            let count = (step / 7) % (here.len() + 1);
            // Not in the order in which they were taken.
            let done: Vec<_> = (0..count).map(|at| here.remove(at % here.len()).unwrap()).collect();
            let done: Vec<_> = done.into_iter().map(|head| (head, 512)).collect();
            let dies = step % 11 < 2;
            if dies && step % 2 == 0 {
                // It dies when the driver can see the chains, and before the record has them.
                state.record = None;
            }
            Ring::new(&mut state, areas(&memory)).give_back(&done).unwrap();
            if dies {
                dead[step % 2] += usize::from(!done.is_empty());
                let not_taken_again = state.unfinished.len();
                here.extend(waiting.drain(..not_taken_again));
                let record = record.queue(0).unwrap();
                state = RingState::take_over(queue(true), record, areas(&memory)).unwrap();
                // What was here is first, as the driver made it available.
                let order: Vec<_> = state.unfinished.iter().copied().collect();
                let mut sorted: Vec<_> = here.iter().copied().collect();
                sorted.sort_unstable();
                let mut found = order.clone();
                found.sort_unstable();
                assert_eq!(found, sorted, "step {step}");
                waiting = order.into_iter().chain(waiting).collect();
                here.clear();
            }
        }
        assert!(dead.iter().all(|dead| *dead > 1000), "{dead:?}");
    }

    #[test]
    fn chains_are_taken_again_as_the_driver_made_them_available() {
        let sorted = |taken: &[u16], available: &[u16]| {
            let sorted = in_order(taken.to_vec(), available.iter().rev().copied());
            sorted.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(sorted(&[1, 2, 3], &[3, 0, 1, 2]), [3, 1, 2]);
        assert_eq!(sorted(&[1, 2, 3], &[5, 3, 0, 1]), [2, 3, 1], "2 is not there: it is older");
        assert_eq!(sorted(&[4], &[4, 4, 4]), [4]);
        assert_eq!(sorted(&[1, 2], &[1, 2, 1]), [2, 1], "1 was used, and made available again");
        assert_eq!(sorted(&[], &[1, 2]), [0; 0]);
    }

    #[test]
    fn used_ring_that_somebody_wrote_is_not_taken_over() {
        let (memory, (_file, record)) = (memory(), record());
        let index = GuestAddress(DEVICE + 2);
        for (used, is_good) in [(SIZE, true), (2 * SIZE + 1, false), (0, false)] {
            memory.store(used, index, Ordering::Relaxed).unwrap();
            let record = record.queue(0).unwrap();
            let taken = RingState::take_over(queue(true), record, areas(&memory));
            assert_eq!(taken.is_ok(), is_good, "{used}: {:?}", taken.err());
        }
    }

    #[test]
    fn spec_2_16_queue_goes_on_where_its_used_ring_ends() {
        let memory = memory();
        let write = |address: u64, value: u16| {
            memory.write_obj(value.to_le(), GuestAddress(address)).unwrap()
        };
        // Of 65534 requests the last two come after the used ring, over the end of the index.
        write(DEVICE + 2, 0xfffd);
        write(DRIVER + 2, 0xffff);
        for index in 0xfffd..0xffffu64 {
            write(DRIVER + 4 + 2 * (index % u64::from(SIZE)), (index % 8) as u16);
        }
        let mut state = new(true, None, &memory);
        let mut ring = Ring::new(&mut state, areas(&memory));
        assert_eq!(ring.heads().unwrap().collect::<Vec<_>>(), [5, 6]);
        ring.give_back(&[(5, 0)]).unwrap();
        assert_eq!(memory.read_obj::<u16>(GuestAddress(DEVICE + 2)).unwrap(), 0xfffe);
    }

    #[test]
    fn only_the_rings_own_bytes_are_found() {
        let memory = memory();
        let mut state = new(true, None, &memory);
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
