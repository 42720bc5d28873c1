//! A request: one descriptor chain, copied out of the ring and checked.
//!
//! [`Readable`] and [`Writable`] bytes are different types: the device cannot write bytes that the
//! driver gave for reading, whatever access the mapping behind them allows.

use std::fmt;
use std::io;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::chain::Chain;
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

/// A buffer, or a part of it, and its position in the chain.
#[derive(Clone, Copy, Debug)]
struct Part {
    descriptor: usize,
    buffer: Buffer,
}

/// Buffers of one direction, in order, as a stream of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffers<'r> {
    head: u16,
    /// Position of the first buffer in the chain.
    first: usize,
    buffers: &'r [Buffer],
    /// Bytes of the first buffer that were split off: not all of them.
    skip: u64,
    length: u64,
}

impl<'r> Buffers<'r> {
    /// Number of bytes of all buffers together.
    pub fn length(self) -> u64 {
        self.length
    }

    /// Splits the first `count` bytes off. Returns `None`, and changes nothing, if there are fewer.
    pub fn split_front(&mut self, count: u64) -> Option<Self> {
        let length = self.length.checked_sub(count)?;
        let front = Self { length: count, ..*self };
        let mut skip = self.skip + count;
        while let Some((first, rest)) = self.buffers.split_first() {
            let whole = u64::from(first.length);
            if skip < whole {
                break;
            }
            skip -= whole;
            (self.first, self.buffers) = (self.first + 1, rest);
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
        let (mut buffers, mut skip, mut left) = (self.buffers, self.skip, self.length);
        std::iter::from_fn(move || {
            let (first, rest) = buffers.split_first()?;
            let descriptor = self.first + (self.buffers.len() - buffers.len());
            let whole = u64::from(first.length).saturating_sub(skip);
            let count = left.min(whole).min(MOST_PART);
            let address = GuestAddress(first.address.0.wrapping_add(skip));
            left -= count;
            (buffers, skip) = if count == whole { (rest, 0) } else { (buffers, skip + count) };
            let buffer = Buffer { address, length: count as u32, ..*first };
            (count > 0).then_some(Part { descriptor, buffer })
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
            self.resolve(memory, part, BufferDirection::Readable)?.copy_to(now);
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
            self.resolve(memory, part, BufferDirection::Writable)?.copy_from(now);
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
        self.parts()
            .map(move |part| self.resolve(memory, part, BufferDirection::Readable).map(Readable))
    }

    /// The buffers, for writing; an item is an error if its buffer cannot be reached.
    pub fn writable<'a, M: DeviceMemory>(
        self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<Writable<'a>, Fault>> + use<'a, 'r, M> {
        self.parts()
            .map(move |part| self.resolve(memory, part, BufferDirection::Writable).map(Writable))
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

    fn resolve<M: DeviceMemory>(
        self,
        memory: &M,
        Part { descriptor, buffer }: Part,
        direction: BufferDirection,
    ) -> Result<VolatileSlice<'_>, Fault> {
        let slice = memory.slice(Buffer { direction, ..buffer });
        slice.map_err(|source| Fault::Memory { head: self.head, descriptor, source })
    }
}

/// The reason for which a chain is malformed that has more bytes than a driver may add (virtio 1.3
/// section 2.7.5.2).
const TOO_LONG: &str = "more than 4 GiB";

/// A request of the driver: a descriptor chain that was copied and checked.
#[derive(Clone, Debug, Default)]
pub struct VirtioRequest {
    /// Index of its first descriptor, which identifies the request in the used ring.
    pub head: u16,
    /// Number of device-readable buffers.
    readable: u16,
    /// The device-readable buffers, then the device-writable ones.
    buffers: Vec<Buffer>,
    readable_length: u32,
    writable_length: u32,
    /// The number of pages that the buffers touch; a page counts once for each buffer in it.
    pages: u32,
    /// Number of buffers in memory that the driver shared for good.
    shared: u32,
}

impl VirtioRequest {
    /// Copies a chain into this request and checks it.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a chain that does not end, is longer than 4 GiB, has an empty buffer, a
    /// readable buffer behind a writable one (virtio 1.3 section 2.7.4.2), or more buffers than the
    /// `queue_size` that a driver must keep to (section 2.7.5.3.1).
    pub(super) fn collect<M: DeviceMemory>(
        &mut self,
        head: u16,
        queue_size: u16,
        chain: Chain<'_, M>,
    ) -> Result<(), Fault> {
        let malformed =
            |reason: &dyn fmt::Display| Fault::Chain { head, reason: reason.to_string() };
        let endless = |why: &dyn fmt::Display| {
            malformed(&format_args!("it cannot be followed to its end: {why}"))
        };
        self.buffers.clear();
        *self = Self { head, buffers: std::mem::take(&mut self.buffers), ..Self::default() };
        let memory = chain.memory();
        for descriptor in chain {
            let buffer = buffer_of(descriptor.map_err(|why| endless(&why))?);
            if self.buffers.len() >= usize::from(queue_size) {
                let many = format_args!("more than the queue's {queue_size} descriptors");
                return Err(malformed(&many));
            }
            self.push(buffer).map_err(|why| malformed(&why))?;
            self.shared += u32::from(memory.is_shared(buffer));
        }
        if self.readable_length.checked_add(self.writable_length).is_none() {
            return Err(endless(&TOO_LONG));
        }
        Ok(())
    }

    /// Adds a buffer, or returns the reason for which it is malformed.
    fn push(&mut self, buffer: Buffer) -> Result<(), &'static str> {
        let Buffer { length, direction, .. } = buffer;
        if length == 0 {
            return Err("a buffer has no bytes");
        }
        let total = match direction {
            BufferDirection::Writable => &mut self.writable_length,
            BufferDirection::Readable if self.writable_length == 0 => {
                self.readable += 1;
                &mut self.readable_length
            }
            BufferDirection::Readable => {
                return Err("a device-readable buffer behind a device-writable one");
            }
        };
        *total = total.checked_add(length).ok_or(TOO_LONG)?;
        // At most two more than the bytes need, for each of at most 2^15 buffers.
        self.pages += buffer.pages() as u32;
        self.buffers.push(buffer);
        Ok(())
    }

    /// The device-readable buffers: the driver's data.
    pub fn readable(&self) -> Buffers<'_> {
        let buffers = self.buffers.get(..self.readable.into()).unwrap_or(&[]);
        let length = self.readable_length.into();
        Buffers { head: self.head, first: 0, buffers, skip: 0, length }
    }

    /// The device-writable buffers, for the answer.
    pub fn writable(&self) -> Buffers<'_> {
        let first = self.readable.into();
        let buffers = self.buffers.get(first..).unwrap_or(&[]);
        Buffers { head: self.head, first, buffers, skip: 0, length: self.writable_length.into() }
    }

    /// Number of bytes of all buffers, in both directions.
    pub fn length(&self) -> u64 {
        u64::from(self.readable_length) + u64::from(self.writable_length)
    }

    /// The number of pages that its buffers touch; a page counts once for each buffer in it.
    pub fn pages(&self) -> u64 {
        self.pages.into()
    }

    /// Number of its buffers.
    pub fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Number of its buffers in memory that the driver shared for good.
    pub(super) fn shared(&self) -> usize {
        self.shared as usize
    }

    /// Number of descriptors that its allocation can hold.
    pub(super) fn capacity(&self) -> usize {
        self.buffers.capacity()
    }

    /// Limits the device-writable bytes to the first `length`.
    pub fn truncate_writable(&mut self, length: u64) {
        self.writable_length = u64::from(self.writable_length).min(length) as u32;
    }

    /// Its buffers.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer> {
        self.readable().buffers().chain(self.writable().buffers())
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
