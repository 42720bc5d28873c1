//! Follows a descriptor chain (virtio 1.3 section 2.7.5). Each descriptor is copied once, from a
//! table whose bytes were resolved before.

use std::fmt;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileMemory, VolatileSlice,
};

const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

/// The reason for which a chain does not end.
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
}

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "descriptor {index} is outside its table"),
            Self::Loop => write!(f, "it loops"),
            Self::Nested => write!(f, "an indirect table refers to another one"),
            Self::TableLength(length) => write!(f, "an indirect table has {length} bytes"),
            Self::Table(error) => write!(f, "{error}"),
        }
    }
}

/// A chain that is followed.
pub(super) struct Chain<'a, M> {
    memory: &'a M,
    table: VolatileSlice<'a>,
    is_indirect: bool,
    /// Index of the next descriptor; `None` behind the last one.
    next: Option<u16>,
    /// Number of descriptors that may follow: at most those of the table.
    left: usize,
}

impl<'a, M: GuestMemory<Bitmap = ()>> Chain<'a, M> {
    /// The chain that begins with descriptor `head` of the ring's table.
    pub(super) fn new(head: u16, table: VolatileSlice<'a>, memory: &'a M) -> Self {
        let left = table.len() / DESCRIPTOR_SIZE;
        Self { memory, table, is_indirect: false, next: Some(head), left }
    }

    fn follow(&mut self, index: u16) -> Result<Descriptor, Endless> {
        let descriptor = self.load(index)?;
        if !descriptor.refers_to_indirect_table() {
            self.next = descriptor.has_next().then(|| descriptor.next());
            return Ok(descriptor);
        }
        if self.is_indirect {
            return Err(Endless::Nested);
        }
        self.enter(descriptor)?;
        self.follow(0)
    }

    fn load(&mut self, index: u16) -> Result<Descriptor, Endless> {
        self.left = self.left.checked_sub(1).ok_or(Endless::Loop)?;
        let descriptor = self.table.get_ref(usize::from(index) * DESCRIPTOR_SIZE);
        Ok(descriptor.map_err(|_| Endless::Index(index))?.load())
    }

    /// Goes on in the indirect table of `descriptor`.
    fn enter(&mut self, descriptor: Descriptor) -> Result<(), Endless> {
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

fn resolve<M: GuestMemory<Bitmap = ()>>(
    memory: &M,
    address: GuestAddress,
    length: u32,
) -> Result<VolatileSlice<'_>, GuestMemoryError> {
    let mut slices = memory.get_slices(address, length as usize, Permissions::Read)?;
    slices.next().unwrap_or(Err(GuestMemoryError::HostAddressNotAvailable))
}

impl<M: GuestMemory<Bitmap = ()>> Iterator for Chain<'_, M> {
    type Item = Result<Descriptor, Endless>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next.take()?;
        Some(self.follow(index))
    }
}
