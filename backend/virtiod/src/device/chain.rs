//! Follows a descriptor chain (virtio 1.3 section 2.7.5). Each descriptor is copied once, from a
//! table whose bytes were resolved before.

use std::fmt;

use super::{Buffer, BufferDirection};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileMemory, VolatileSlice,
};

const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

const END: &str = "it cannot be followed to its end";

/// The rule that a chain breaks.
#[derive(Debug)]
pub(super) enum Malformed {
    /// A descriptor is outside its table.
    Index(u16),
    /// The descriptors of an indirect table refer to another table.
    Nested,
    /// An indirect table of no or too many descriptors, or of a part of one.
    TableLength(u32),
    /// An indirect table that cannot be reached.
    Table(GuestMemoryError),
    /// More descriptors than the queue has entries, perhaps in a loop.
    Longer,
    /// A buffer without bytes.
    Empty,
    /// A device-readable buffer behind a device-writable one.
    Order,
    /// More than 4 GiB.
    Bytes,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{END}: descriptor {index} is outside its table"),
            Self::Nested => write!(f, "{END}: an indirect table refers to another one"),
            Self::TableLength(length) => write!(f, "{END}: an indirect table has {length} bytes"),
            Self::Table(error) => write!(f, "{END}: {error}"),
            Self::Longer => f.write_str("more descriptors than the queue has entries"),
            Self::Empty => f.write_str("a buffer has no bytes"),
            Self::Order => f.write_str("a device-readable buffer behind a device-writable one"),
            Self::Bytes => f.write_str("more than 4 GiB"),
        }
    }
}

/// Calls `each` with the buffers of the chain that begins with descriptor `head` of the ring's
/// table, in order. It may have as many as the table (virtio 1.3 section 2.7.5.3.1).
///
/// # Errors
/// [`Malformed`], the error of `each` included; then `each` was called with a part of them.
#[inline]
pub(super) fn follow<M: GuestMemory<Bitmap = ()>>(
    head: u16,
    ring: VolatileSlice<'_>,
    memory: &M,
    mut each: impl FnMut(Buffer) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut left = ring.len() / DESCRIPTOR_SIZE;
    let Some(indirect) = walk(ring, head, &mut left, &mut each)? else { return Ok(()) };
    let table = indirect_table(indirect, memory)?;
    let nested = walk(table, 0, &mut left, &mut each)?;
    nested.map_or(Ok(()), |_| Err(Malformed::Nested))
}

/// Follows the descriptors of one table, at most `left`. Returns the descriptor of an indirect
/// table if the chain goes on there.
#[inline]
fn walk(
    table: VolatileSlice<'_>,
    mut index: u16,
    left: &mut usize,
    each: &mut impl FnMut(Buffer) -> Result<(), Malformed>,
) -> Result<Option<Descriptor>, Malformed> {
    loop {
        let entry = table.get_ref::<Descriptor>(usize::from(index) * DESCRIPTOR_SIZE);
        let descriptor = entry.map_err(|_| Malformed::Index(index))?.load();
        if descriptor.refers_to_indirect_table() {
            return Ok(Some(descriptor));
        }
        *left = left.checked_sub(1).ok_or(Malformed::Longer)?;
        each(buffer_of(descriptor))?;
        if !descriptor.has_next() {
            return Ok(None);
        }
        index = descriptor.next();
    }
}

/// The indirect table of `descriptor`.
#[inline]
fn indirect_table<M: GuestMemory<Bitmap = ()>>(
    descriptor: Descriptor,
    memory: &M,
) -> Result<VolatileSlice<'_>, Malformed> {
    let length = descriptor.len();
    let count = length as usize / DESCRIPTOR_SIZE;
    let whole = (length as usize).is_multiple_of(DESCRIPTOR_SIZE);
    if count == 0 || count > usize::from(u16::MAX) || !whole {
        return Err(Malformed::TableLength(length));
    }
    resolve(memory, descriptor.addr(), length).map_err(Malformed::Table)
}

fn buffer_of(descriptor: Descriptor) -> Buffer {
    let direction = if descriptor.is_write_only() {
        BufferDirection::Writable
    } else {
        BufferDirection::Readable
    };
    Buffer { address: descriptor.addr(), length: descriptor.len(), direction }
}

fn resolve<M: GuestMemory<Bitmap = ()>>(
    memory: &M,
    address: GuestAddress,
    length: u32,
) -> Result<VolatileSlice<'_>, GuestMemoryError> {
    let mut slices = memory.get_slices(address, length as usize, Permissions::Read)?;
    slices.next().unwrap_or(Err(GuestMemoryError::HostAddressNotAvailable))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use virtio_queue::{Queue, QueueOwnedT, QueueT};
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    const SIZE: u16 = 8;
    const TABLE: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const INDIRECT: u64 = 0x4000;
    const END: u64 = 0x10000;

    /// Numbers of a fixed sequence.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % limit
        }

        /// Flags and fields that are mostly valid.
        fn descriptor(&mut self, size: u64) -> Descriptor {
            let next = self.below(size + 1) as u16;
            match self.below(8) {
                0 => Descriptor::new(self.below(END), 16, 0, next),
                1..3 => self.indirect(),
                other => Descriptor::new(other, 4096, 1 | (self.below(2) << 1) as u16, next),
            }
        }

        /// A descriptor of an indirect table.
        fn indirect(&mut self) -> Descriptor {
            let address = if self.below(8) == 0 { END } else { INDIRECT };
            let length = match self.below(8) {
                0 => 0,
                1 => 40,
                2 => 1 << 20,
                _ => 16 * (1 + self.below(SIZE.into())),
            };
            Descriptor::new(address, length as u32, 4 | self.below(2) as u16, 0)
        }
    }

    /// What `virtio-queue` finds: the buffers of a chain that ends.
    fn expected(memory: &GuestMemoryMmap, head: u16) -> Option<Vec<Buffer>> {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        memory.write_obj(head, GuestAddress(AVAILABLE + 4)).unwrap();
        memory.store(1u16, GuestAddress(AVAILABLE + 2), Ordering::Relaxed).unwrap();
        let chain: Vec<_> = queue.iter(memory).unwrap().next().unwrap().collect();
        let ends = chain.last().is_some_and(|last| !last.has_next());
        ends.then(|| chain.into_iter().map(buffer_of).collect())
    }

    /// The buffers of a chain that ends.
    fn found(memory: &GuestMemoryMmap, head: u16) -> Option<Vec<Buffer>> {
        let length = u32::from(SIZE) * DESCRIPTOR_SIZE as u32;
        let table = resolve(memory, GuestAddress(TABLE), length).unwrap();
        let mut buffers = Vec::new();
        let each = |buffer| {
            buffers.push(buffer);
            Ok(())
        };
        let followed = follow(head, table, memory, each);
        assert!(buffers.len() <= usize::from(SIZE));
        followed.ok().map(|()| buffers)
    }

    #[test]
    fn chains_are_followed_as_by_virtio_queue() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
        let (mut numbers, mut ended, mut long) = (Numbers(7), 0, 0);
        for round in 0..20_000 {
            for (table, index) in [TABLE, INDIRECT].iter().flat_map(|t| (0..SIZE).map(|i| (*t, i)))
            {
                let at = GuestAddress(table + 16 * u64::from(index));
                memory.write_obj(numbers.descriptor(SIZE.into()), at).unwrap();
            }
            let head = numbers.below(u64::from(SIZE) + 1) as u16;
            let expected = expected(&memory, head);
            let count = expected.as_ref().map_or(0, Vec::len);
            ended += u32::from(count > 0);
            long += u32::from(count >= 4);
            assert_eq!(found(&memory, head), expected, "round {round}, head {head}");
        }
        assert!(ended > 2000 && long > 100, "{ended} chains end, {long} of them are long");
    }

    /// `virtio-queue` counts the descriptors of an indirect table by themselves.
    #[test]
    fn indirect_descriptors_count_with_those_before() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
        let at = |table, index| GuestAddress(table + 16 * u64::from(index));
        for index in 0..SIZE - 1 {
            let link = Descriptor::new(0, 16, 1, index + 1);
            memory.write_obj(link, at(TABLE, index)).unwrap();
        }
        memory.write_obj(Descriptor::new(INDIRECT, 32, 4, 0), at(TABLE, SIZE - 1)).unwrap();
        memory.write_obj(Descriptor::new(0, 16, 0, 0), at(INDIRECT, 0)).unwrap();
        assert_eq!(found(&memory, 0).map(|buffers| buffers.len()), Some(SIZE.into()));
        memory.write_obj(Descriptor::new(0, 16, 1, 1), at(INDIRECT, 0)).unwrap();
        memory.write_obj(Descriptor::new(0, 16, 0, 0), at(INDIRECT, 1)).unwrap();
        assert_eq!(found(&memory, 0), None);
        assert_eq!(found(&memory, 1).map(|buffers| buffers.len()), Some(SIZE.into()));
    }

    #[test]
    fn reasons_are_told() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
        let table = resolve(&memory, GuestAddress(TABLE), 128).unwrap();
        let reason = |first: Descriptor| {
            memory.write_obj(first, GuestAddress(TABLE)).unwrap();
            memory.write_obj(first, GuestAddress(INDIRECT)).unwrap();
            let reason = follow(0, table, &memory, |_| Ok(())).unwrap_err().to_string();
            reason.strip_prefix("it cannot be followed to its end: ").unwrap_or(&reason).to_owned()
        };
        let link = |flags, next| Descriptor::new(0, 16, flags, next);
        let indirect = |address, length| Descriptor::new(address, length, 4, 0);
        assert_eq!(reason(link(1, 8)), "descriptor 8 is outside its table");
        assert_eq!(reason(link(1, 0)), "more descriptors than the queue has entries");
        assert_eq!(reason(indirect(INDIRECT, 16)), "an indirect table refers to another one");
        assert_eq!(reason(indirect(INDIRECT, 17)), "an indirect table has 17 bytes");
        assert!(
            reason(indirect(END, 16)).contains("guest address"),
            "{}",
            reason(indirect(END, 16))
        );
    }
}
