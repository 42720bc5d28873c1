//! A request: one descriptor chain, copied out of the ring and checked.
//!
//! [`Readable`] and [`Writable`] bytes are different types: the device cannot write bytes that the
//! driver gave for reading, whatever access the mapping behind them allows.

use std::fmt;
use std::io;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemoryError, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use super::chain::Endless;
use super::{Buffer, BufferDirection, DeviceMemory, Fault, HeldBuffers};

/// Bytes that the driver wrote for the device.
pub struct Readable<'a>(pub(super) VolatileSlice<'a>);

/// Bytes that the device may write for the driver.
pub struct Writable<'a>(pub(super) VolatileSlice<'a>);

impl Writable<'_> {
    /// Copies `bytes` into the buffer: all of them, or as many as fit.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        self.0.copy_from(bytes);
    }

    /// Fills the buffer from a file, at its cursor.
    ///
    /// # Errors
    /// The file's; [`io::ErrorKind::UnexpectedEof`] if the file ends before the buffer is full.
    pub fn read_from(&mut self, file: &mut impl ReadVolatile) -> io::Result<()> {
        file.read_exact_volatile(&mut self.0).map_err(io_error)
    }
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// Maximum bytes of a buffer that are made reachable and accessed as one.
const MOST_PART: u64 = 1 << 20;

/// A buffer, or a part of it.
#[derive(Clone, Copy, Debug)]
struct Part {
    descriptor: usize,
    buffer: Buffer,
}

/// Buffers of one direction, in order, as a stream of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffers<'r> {
    head: u16,
    parts: &'r [Part],
    /// Bytes of the first part that were split off.
    skip: u64,
    length: u64,
}

impl<'r> Buffers<'r> {
    /// Number of bytes of all parts together.
    pub fn length(self) -> u64 {
        self.length
    }

    /// Splits the first `count` bytes off. Returns `None`, and changes nothing, if there are fewer.
    pub fn split_front(&mut self, count: u64) -> Option<Self> {
        let length = self.length.checked_sub(count)?;
        let front = Self { length: count, ..*self };
        let mut skip = self.skip + count;
        while let Some((first, rest)) = self.parts.split_first() {
            let whole = u64::from(first.buffer.length);
            if skip < whole {
                break;
            }
            skip -= whole;
            self.parts = rest;
        }
        (self.skip, self.length) = (skip, length);
        Some(front)
    }

    /// The number of pages that the bytes touch; a page counts once for each buffer in it.
    pub fn pages(self) -> u64 {
        self.parts().map(|part| part.buffer.pages()).sum()
    }

    /// The parts, without the bytes that were split off. Long buffers are several parts: where
    /// nothing can be mapped, each part is copied.
    fn parts(self) -> impl Iterator<Item = Part> + use<'r> {
        let (mut parts, mut skip, mut left) = (self.parts, self.skip, self.length);
        std::iter::from_fn(move || {
            let (first, rest) = parts.split_first()?;
            let whole = u64::from(first.buffer.length);
            let count = left.min(whole.saturating_sub(skip)).min(MOST_PART);
            let address = GuestAddress(first.buffer.address.0.wrapping_add(skip));
            (skip, left) = (skip + count, left - count);
            if skip >= whole {
                (parts, skip) = (rest, 0);
            }
            let buffer = Buffer { address, length: count as u32, ..first.buffer };
            (count > 0).then_some(Part { buffer, ..*first })
        })
    }

    /// Copies the bytes into `bytes`, which has their length.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    pub fn copy_to<M: DeviceMemory>(self, memory: &M, bytes: &mut [u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        for part in self.parts() {
            let count = rest.len().min(part.buffer.length as usize);
            let (now, later) = rest.split_at_mut(count);
            self.resolve(memory, part, Permissions::Read)?.copy_to(now);
            rest = later;
        }
        memory.copied(self.length());
        Ok(())
    }

    /// Copies `bytes` into the buffers: all of them, or as many as fit. Returns their number.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    pub fn copy_from<M: DeviceMemory>(self, memory: &M, bytes: &[u8]) -> Result<u32, Fault> {
        let mut rest = bytes;
        for part in self.parts() {
            let (now, later) = rest.split_at(rest.len().min(part.buffer.length as usize));
            self.resolve(memory, part, Permissions::Write)?.copy_from(now);
            rest = later;
        }
        memory.copied((bytes.len() - rest.len()) as u64);
        Ok((bytes.len() - rest.len()) as u32)
    }

    /// The buffers, for reading; an item is an error if its buffer cannot be reached.
    pub fn readable<'a, M: DeviceMemory>(
        self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<Readable<'a>, Fault>> + use<'a, 'r, M> {
        self.parts().map(move |part| self.resolve(memory, part, Permissions::Read).map(Readable))
    }

    /// The buffers, for writing; an item is an error if its buffer cannot be reached.
    pub fn writable<'a, M: DeviceMemory>(
        self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<Writable<'a>, Fault>> + use<'a, 'r, M> {
        self.parts().map(move |part| self.resolve(memory, part, Permissions::Write).map(Writable))
    }

    /// The buffers themselves, without the bytes that were split off.
    pub fn buffers(self) -> impl Iterator<Item = Buffer> + use<'r> {
        self.parts().map(|part| part.buffer)
    }

    /// Calls `each` with the bytes of each buffer among held ones.
    ///
    /// # Errors
    /// [`Fault::Memory`], if a buffer was not made reachable; the error of `each`.
    pub fn for_each_held<'a, E: From<Fault>>(
        self,
        held: &'a dyn HeldBuffers,
        mut each: impl FnMut(VolatileSlice<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.parts().try_for_each(|Part { descriptor, buffer }| {
            let fault = |source| Fault::Memory { head: self.head, descriptor, source };
            each(held.slice(buffer).map_err(fault)?)
        })
    }

    fn resolve<'a, M: DeviceMemory>(
        self,
        memory: &'a M,
        part: Part,
        access: Permissions,
    ) -> Result<VolatileSlice<'a>, Fault> {
        let fault = |source| Fault::Memory { head: self.head, descriptor: part.descriptor, source };
        let mut slices = memory
            .get_slices(part.buffer.address, part.buffer.length as usize, access)
            .map_err(fault)?;
        let slice = slices.next().unwrap_or(Err(GuestMemoryError::HostAddressNotAvailable));
        slice.map_err(fault)
    }
}

/// A request of the driver: a descriptor chain that was copied and checked.
#[derive(Clone, Debug, Default)]
pub struct VirtioRequest {
    /// Index of its first descriptor, which identifies the request in the used ring.
    pub head: u16,
    /// The device-readable parts, then the device-writable ones.
    parts: Vec<Part>,
    /// Number of device-readable parts.
    readable: usize,
    readable_length: u64,
    writable_length: u64,
    /// The number of pages that the buffers touch; a page counts once for each buffer in it.
    pages: u64,
}

impl VirtioRequest {
    /// Copies a chain into this request and checks it.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a chain that does not end, is longer than 4 GiB, has an empty buffer, a
    /// readable buffer behind a writable one (virtio 1.3 section 2.7.4.2), or more buffers than the
    /// `queue_size` that a driver must keep to (section 2.7.5.3.1).
    pub(super) fn collect(
        &mut self,
        head: u16,
        queue_size: u16,
        chain: impl Iterator<Item = Result<Descriptor, Endless>>,
    ) -> Result<(), Fault> {
        let malformed =
            |reason: &dyn fmt::Display| Fault::Chain { head, reason: reason.to_string() };
        let endless = |why: &dyn fmt::Display| {
            malformed(&format_args!("it cannot be followed to its end: {why}"))
        };
        self.parts.clear();
        *self = Self { head, parts: std::mem::take(&mut self.parts), ..Self::default() };
        for descriptor in chain {
            let buffer = buffer_of(descriptor.map_err(|why| endless(&why))?);
            let position = self.parts.len();
            if position >= usize::from(queue_size) {
                let many = format_args!("more than the queue's {queue_size} descriptors");
                return Err(malformed(&many));
            }
            self.push(Part { descriptor: position, buffer }).map_err(|why| malformed(&why))?;
        }
        if self.length() > u64::from(u32::MAX) {
            return Err(endless(&"it has more than 4 GiB"));
        }
        Ok(())
    }

    /// Adds a buffer, or returns the reason for which it is malformed.
    fn push(&mut self, part: Part) -> Result<(), &'static str> {
        let Buffer { length, direction, .. } = part.buffer;
        if length == 0 {
            return Err("a buffer has no bytes");
        }
        match direction {
            BufferDirection::Writable => self.writable_length += u64::from(length),
            BufferDirection::Readable if self.writable_length == 0 => {
                self.readable += 1;
                self.readable_length += u64::from(length);
            }
            BufferDirection::Readable => {
                return Err("a device-readable buffer behind a device-writable one");
            }
        }
        self.pages += part.buffer.pages();
        self.parts.push(part);
        Ok(())
    }

    /// The device-readable buffers: the driver's data.
    pub fn readable(&self) -> Buffers<'_> {
        let parts = self.parts.get(..self.readable).unwrap_or(&[]);
        Buffers { head: self.head, parts, skip: 0, length: self.readable_length }
    }

    /// The device-writable buffers, for the answer.
    pub fn writable(&self) -> Buffers<'_> {
        let parts = self.parts.get(self.readable..).unwrap_or(&[]);
        Buffers { head: self.head, parts, skip: 0, length: self.writable_length }
    }

    /// Number of bytes of all buffers, in both directions.
    pub fn length(&self) -> u64 {
        self.readable_length + self.writable_length
    }

    /// The number of pages that its buffers touch; a page counts once for each buffer in it.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of its buffers.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// Number of descriptors that its allocation can hold.
    pub(super) fn capacity(&self) -> usize {
        self.parts.capacity()
    }

    /// Limits the device-writable bytes to the first `length`.
    pub fn truncate_writable(&mut self, length: u64) {
        self.writable_length = self.writable_length.min(length);
    }

    /// Its buffers as the descriptors describe them, without the first `written` device-writable
    /// bytes.
    pub fn buffers(&self, written: u64) -> impl Iterator<Item = Buffer> {
        let mut writable = self.writable();
        writable.split_front(written);
        self.readable().parts().chain(writable.parts()).map(|part| part.buffer)
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
