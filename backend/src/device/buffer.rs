//! A request: one descriptor chain, copied out of the ring and checked.
//!
//! [`Readable`] and [`Writable`] bytes are different types: what the driver gave for reading cannot
//! be written here, whatever the mapping behind it would allow.

use std::collections::VecDeque;
use std::io;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemoryError, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice,
    WriteVolatile,
};

use super::{Buffer, DeviceMemory, Direction, Fault};

/// Bytes that the driver wrote for the device.
pub struct Readable<'a>(VolatileSlice<'a>);

impl Readable<'_> {
    /// Bytes.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Copies the bytes out; `bytes` has the buffer's length.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        self.0.copy_to(bytes);
    }

    /// Writes the bytes to a file, at its cursor.
    ///
    /// # Errors
    /// The file's.
    pub fn write_to(&self, file: &mut impl WriteVolatile) -> io::Result<()> {
        file.write_all_volatile(&self.0).map_err(io_error)
    }
}

/// Bytes that the device may write for the driver.
pub struct Writable<'a>(VolatileSlice<'a>);

impl Writable<'_> {
    /// Bytes.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Copies bytes in, as many as there are or fit.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        self.0.copy_from(bytes);
    }

    /// Fills the buffer from a file, at its cursor.
    ///
    /// # Errors
    /// The file's; the file may end early, which is [`io::ErrorKind::UnexpectedEof`].
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

/// Buffers of one direction, in order, as a stream of bytes.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    head: u16,
    parts: VecDeque<Part>,
}

/// A buffer, or what is left of it.
#[derive(Clone, Copy, Debug)]
struct Part {
    descriptor: usize,
    buffer: Buffer,
}

impl Buffers {
    /// Bytes in all.
    pub fn length(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.buffer.length)).sum()
    }

    /// Keeps the first `length` bytes, if there are more.
    pub fn truncate(&mut self, length: u64) {
        let mut left = length;
        self.parts.retain_mut(|part| {
            part.buffer.length = left.min(u64::from(part.buffer.length)) as u32;
            left -= u64::from(part.buffer.length);
            part.buffer.length > 0
        });
    }

    /// Takes `count` bytes off the front; `None`, and nothing taken, if there are fewer.
    pub fn split_front(&mut self, count: u64) -> Option<Self> {
        if count > self.length() {
            return None;
        }
        let mut front = Self { head: self.head, parts: VecDeque::new() };
        let mut left = count;
        while let Some(mut part) = self.parts.pop_front() {
            let taken = left.min(u64::from(part.buffer.length)) as u32;
            left -= u64::from(taken);
            let mut first = part;
            first.buffer.length = taken;
            front.parts.extend((taken > 0).then_some(first));
            part.buffer.length -= taken;
            if part.buffer.length > 0 {
                part.buffer.address =
                    GuestAddress(part.buffer.address.0.wrapping_add(taken.into()));
                self.parts.push_front(part);
                break;
            }
        }
        Some(front)
    }

    /// Copies the bytes out; `bytes` has their length.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    pub fn copy_to<M: DeviceMemory>(&self, memory: &M, bytes: &mut [u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        for part in &self.parts {
            let count = rest.len().min(part.buffer.length as usize);
            let (now, later) = rest.split_at_mut(count);
            Readable(self.reach(memory, part, Permissions::Read)?).copy_to(now);
            rest = later;
        }
        memory.copied(self.length());
        Ok(())
    }

    /// Copies bytes in, as many as there are or fit; gives their number.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    pub fn copy_from<M: DeviceMemory>(&self, memory: &M, bytes: &[u8]) -> Result<u32, Fault> {
        let mut rest = bytes;
        for part in &self.parts {
            let (now, later) = rest.split_at(rest.len().min(part.buffer.length as usize));
            Writable(self.reach(memory, part, Permissions::Write)?).copy_from(now);
            rest = later;
        }
        memory.copied((bytes.len() - rest.len()) as u64);
        Ok((bytes.len() - rest.len()) as u32)
    }

    /// The bytes, for reading.
    pub fn readable<'a, M: DeviceMemory>(
        &'a self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<Readable<'a>, Fault>> {
        self.parts.iter().map(|part| self.reach(memory, part, Permissions::Read).map(Readable))
    }

    /// The bytes, for writing.
    pub fn writable<'a, M: DeviceMemory>(
        &'a self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<Writable<'a>, Fault>> {
        self.parts.iter().map(|part| self.reach(memory, part, Permissions::Write).map(Writable))
    }

    fn reach<'a, M: DeviceMemory>(
        &self,
        memory: &'a M,
        part: &Part,
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

/// One request of the driver's.
#[derive(Clone, Debug)]
pub struct Request {
    /// Index of its first descriptor, which names it in the used ring.
    pub head: u16,
    /// What the driver says.
    pub readable: Buffers,
    /// Where the answer goes.
    pub writable: Buffers,
}

impl Request {
    /// Copies and checks a chain.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a chain that does not end, is empty, has an empty buffer, or a readable
    /// buffer behind a writable one (virtio 1.3 section 2.7.4.2). `why` tells why the chain's iterator
    /// may have ended early.
    pub fn collect(
        head: u16,
        chain: impl Iterator<Item = Descriptor>,
        why: impl FnOnce() -> Option<String>,
    ) -> Result<Self, Fault> {
        let malformed = |reason: &str| Fault::Chain { head, reason: reason.to_owned() };
        let empty = || Buffers { head, parts: VecDeque::new() };
        let mut request = Self { head, readable: empty(), writable: empty() };
        let mut goes_on = true;
        for (position, descriptor) in chain.enumerate() {
            goes_on = descriptor.has_next();
            let part = Part { descriptor: position, buffer: buffer_of(descriptor) };
            if part.buffer.length == 0 {
                return Err(malformed("a buffer of no bytes"));
            }
            match part.buffer.direction {
                Direction::Writable => request.writable.parts.push_back(part),
                Direction::Readable if request.writable.parts.is_empty() => {
                    request.readable.parts.push_back(part);
                }
                Direction::Readable => {
                    return Err(malformed("a device-readable buffer behind a device-writable one"));
                }
            }
        }
        if goes_on {
            let why = why().unwrap_or_else(|| "a bad index, a loop or a bad indirect table".into());
            return Err(malformed(&format!("it cannot be followed to its end: {why}")));
        }
        Ok(request)
    }

    /// Its buffers, as its descriptors gave them.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer> {
        self.readable.parts.iter().chain(&self.writable.parts).map(|part| part.buffer)
    }
}

fn buffer_of(descriptor: Descriptor) -> Buffer {
    let direction =
        if descriptor.is_write_only() { Direction::Writable } else { Direction::Readable };
    Buffer { address: descriptor.addr(), length: descriptor.len(), direction }
}
