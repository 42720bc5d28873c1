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

/// The reason for which a chain is not followed to its end.
#[derive(Debug)]
pub(super) enum Endless {
    /// A descriptor is outside its table.
    Index(u16),
    /// More descriptors are linked than the table has.
    Loop,
    /// The descriptors of an indirect table refer to another table.
    Nested,
    /// An indirect table of no or too many descriptors, or of a part of one.
    TableLength(u32),
    /// An indirect table that cannot be reached.
    Table(GuestMemoryError),
    /// More descriptors than the queue has entries.
    Longer(u16),
}

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Longer(size) => write!(f, "more than the queue's {size} descriptors"),
            Self::Index(index) => write!(f, "{END}: descriptor {index} is outside its table"),
            Self::Loop => write!(f, "{END}: it loops"),
            Self::Nested => write!(f, "{END}: an indirect table refers to another one"),
            Self::TableLength(length) => write!(f, "{END}: an indirect table has {length} bytes"),
            Self::Table(error) => write!(f, "{END}: {error}"),
        }
    }
}

/// A descriptor chain.
pub(super) struct Chain<'a, M> {
    memory: &'a M,
    table: VolatileSlice<'a>,
    is_indirect: bool,
    head: u16,
    /// Number of descriptors that may follow: at most those of the table.
    left: usize,
}

impl<'a, M: GuestMemory<Bitmap = ()>> Chain<'a, M> {
    /// The chain that begins with descriptor `head` of the ring's table.
    pub(super) fn new(head: u16, table: VolatileSlice<'a>, memory: &'a M) -> Self {
        let left = table.len() / DESCRIPTOR_SIZE;
        Self { memory, table, is_indirect: false, head, left }
    }

    /// Adds the chain's buffers to a list, which may have `most`.
    ///
    /// # Errors
    /// [`Endless`]; then the list has a part of them.
    #[inline]
    pub(super) fn follow(mut self, list: &mut Vec<Buffer>, most: u16) -> Result<(), Endless> {
        let mut index = self.head;
        loop {
            let Some(descriptor) = self.load(index) else {
                return Err(if self.left == 0 { Endless::Loop } else { Endless::Index(index) });
            };
            if descriptor.refers_to_indirect_table() {
                self.enter(descriptor)?;
                index = 0;
                continue;
            }
            if list.len() >= usize::from(most) {
                return Err(Endless::Longer(most));
            }
            list.push(buffer_of(descriptor));
            if !descriptor.has_next() {
                return Ok(());
            }
            self.left -= 1;
            index = descriptor.next();
        }
    }

    fn load(&self, index: u16) -> Option<Descriptor> {
        let descriptor = self.table.get_ref(usize::from(index) * DESCRIPTOR_SIZE).ok()?;
        (self.left > 0).then(|| descriptor.load())
    }

    /// Goes on in the indirect table of `descriptor`.
    fn enter(&mut self, descriptor: Descriptor) -> Result<(), Endless> {
        if self.is_indirect {
            return Err(Endless::Nested);
        }
        let length = descriptor.len();
        let count = length as usize / DESCRIPTOR_SIZE;
        let whole = (length as usize).is_multiple_of(DESCRIPTOR_SIZE);
        if count == 0 || count > usize::from(u16::MAX) || !whole {
            return Err(Endless::TableLength(length));
        }
        self.table = resolve(self.memory, descriptor.addr(), length).map_err(Endless::Table)?;
        (self.is_indirect, self.left) = (true, count);
        Ok(())
    }
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

    /// What `virtio-queue` finds: the buffers, and whether the chain ends.
    fn expected(memory: &GuestMemoryMmap, head: u16) -> (Vec<Buffer>, bool) {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        memory.write_obj(head, GuestAddress(AVAILABLE + 4)).unwrap();
        memory.store(1u16, GuestAddress(AVAILABLE + 2), Ordering::Relaxed).unwrap();
        let chain: Vec<_> = queue.iter(memory).unwrap().next().unwrap().collect();
        let ends = chain.last().is_some_and(|last| !last.has_next());
        (chain.into_iter().map(buffer_of).collect(), ends)
    }

    fn found(memory: &GuestMemoryMmap, head: u16) -> (Vec<Buffer>, bool) {
        let length = u32::from(SIZE) * DESCRIPTOR_SIZE as u32;
        let table = resolve(memory, GuestAddress(TABLE), length).unwrap();
        let mut buffers = Vec::new();
        let ends = Chain::new(head, table, memory).follow(&mut buffers, u16::MAX).is_ok();
        (buffers, ends)
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
            ended += u32::from(expected.1);
            long += u32::from(expected.1 && expected.0.len() >= 4);
            assert_eq!(found(&memory, head), expected, "round {round}, head {head}");
        }
        assert!(ended > 2000 && long > 100, "{ended} chains end, {long} of them are long");
    }

    #[test]
    fn reasons_are_told() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
        let table = resolve(&memory, GuestAddress(TABLE), 128).unwrap();
        let reason = |first: Descriptor| {
            memory.write_obj(first, GuestAddress(TABLE)).unwrap();
            memory.write_obj(first, GuestAddress(INDIRECT)).unwrap();
            let chain = Chain::new(0, table, &memory);
            let reason = chain.follow(&mut Vec::new(), SIZE - 1).unwrap_err().to_string();
            reason.strip_prefix("it cannot be followed to its end: ").unwrap_or(&reason).to_owned()
        };
        let link = |flags, next| Descriptor::new(0, 16, flags, next);
        let indirect = |address, length| Descriptor::new(address, length, 4, 0);
        assert_eq!(reason(link(1, 8)), "descriptor 8 is outside its table");
        assert_eq!(reason(link(1, 0)), "more than the queue's 7 descriptors");
        assert_eq!(reason(indirect(INDIRECT, 16)), "an indirect table refers to another one");
        assert_eq!(reason(indirect(INDIRECT, 17)), "an indirect table has 17 bytes");
        assert!(
            reason(indirect(END, 16)).contains("guest address"),
            "{}",
            reason(indirect(END, 16))
        );
    }
}
