//! A request: one descriptor chain, copied out of the ring and checked.
//!
//! [`Readable`] and [`Writable`] bytes are different types: the device cannot write bytes that the
//! driver gave for reading, whatever access the mapping behind them allows.

use std::io;

use vm_memory::{
    GuestAddress, GuestMemoryError, ReadVolatile, VolatileMemory, VolatileMemoryError,
    VolatileSlice,
};

use super::chain::{Malformed, follow};
use super::{Buffer, BufferDirection, DeviceMemory, Fault, HeldBuffers};

/// Bytes that the driver wrote for the device.
pub struct Readable<'a>(pub(super) VolatileSlice<'a>);

/// Bytes that the device may write for the driver.
pub struct Writable<'a>(pub(super) VolatileSlice<'a>);

impl Readable<'_> {
    /// Whether all bytes are zero. Ends soon after the first one that is not.
    pub fn is_zero(&self) -> bool {
        let mut bytes = [0; 512];
        (0..self.0.len()).step_by(bytes.len()).all(|at| {
            let Ok(rest) = self.0.offset(at) else { return false };
            let part = bytes.get_mut(..rest.len().min(512)).unwrap_or_default();
            rest.copy_to(part);
            part.iter().all(|byte| *byte == 0)
        })
    }
}

impl Writable<'_> {
    /// Copies `bytes` into the buffer: all of them, or as many as fit.
    #[inline]
    pub fn copy_from(&mut self, bytes: &[u8]) {
        match (bytes, self.0.get_ref::<u8>(0)) {
            // Such as a status.
            ([byte], Ok(first)) => first.store(*byte),
            _ => self.0.copy_from(bytes),
        }
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
const MOST_PART: u32 = 1 << 20;

/// A buffer, or a part of it, and its position in the chain.
#[derive(Clone, Copy, Debug)]
struct Part {
    descriptor: u16,
    buffer: Buffer,
}

/// Buffers of one direction, in order, as a stream of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffers<'r> {
    head: u16,
    /// Position of the first buffer in the chain.
    first: u16,
    buffers: &'r [Buffer],
    /// Bytes of the first buffer that were split off: not all of them.
    skip: u32,
    length: u32,
}

impl<'r> Buffers<'r> {
    /// Number of bytes of all buffers together.
    pub fn length(self) -> u64 {
        self.length.into()
    }

    /// Splits the first `count` bytes off. Returns `None`, and changes nothing, if there are fewer.
    #[inline]
    pub fn split_front(&mut self, count: u64) -> Option<Self> {
        let count = u32::try_from(count).ok().filter(|count| *count <= self.length)?;
        let front = Self { length: count, ..*self };
        let mut left = count;
        while let Some((first, rest)) = self.buffers.split_first() {
            let whole = first.length - self.skip;
            if left < whole {
                break;
            }
            left -= whole;
            (self.first, self.buffers, self.skip) = (self.first.wrapping_add(1), rest, 0);
        }
        self.skip += left;
        self.length -= count;
        Some(front)
    }

    /// The number of pages that the bytes touch; a page counts once for each buffer in it.
    pub fn pages(self) -> u64 {
        self.parts().map(|part| part.buffer.pages()).sum()
    }

    /// The first part, and the bytes behind it. Long buffers are several parts: where nothing can
    /// be mapped, each part is copied.
    #[inline]
    fn split_part(mut self) -> Option<(Part, Self)> {
        if self.length == 0 {
            return None;
        }
        let (first, rest) = self.buffers.split_first()?;
        let whole = first.length - self.skip;
        let length = self.length.min(whole).min(MOST_PART);
        let address = GuestAddress(first.address.0.wrapping_add(self.skip.into()));
        let part = Part { descriptor: self.first, buffer: Buffer { address, length, ..*first } };
        self.length -= length;
        if length < whole {
            self.skip += length;
        } else {
            (self.first, self.buffers, self.skip) = (self.first.wrapping_add(1), rest, 0);
        }
        Some((part, self))
    }

    /// The parts, without the bytes that were split off.
    #[inline]
    fn parts(mut self) -> impl Iterator<Item = Part> + use<'r> {
        std::iter::from_fn(move || {
            let (part, rest) = self.split_part()?;
            self = rest;
            Some(part)
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

    /// Copies a header of 16 bytes, which is all of them.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    #[inline]
    pub fn header<M: DeviceMemory>(self, memory: &M) -> Result<[u8; 16], Fault> {
        let mut bytes = [0; 16];
        if let Some((part, _)) = self.split_part().filter(|(part, _)| part.buffer.length == 16) {
            let slice = self.resolve(memory, part, BufferDirection::Readable)?;
            if let Ok(header) = slice.get_ref::<u128>(0) {
                memory.copied(16);
                return Ok(header.load().to_ne_bytes());
            }
        }
        self.copy_to(memory, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies `bytes` into the buffers: all of them, or as many as fit. Returns their number. Does
    /// not reach for the buffers behind them.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    pub fn copy_from<M: DeviceMemory>(self, memory: &M, bytes: &[u8]) -> Result<u32, Fault> {
        let mut rest = bytes;
        for part in self.parts() {
            if rest.is_empty() {
                break;
            }
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

    /// The first part, for writing; `None` if there are no bytes.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    #[inline]
    pub fn first_writable<M: DeviceMemory>(
        self,
        memory: &M,
    ) -> Result<Option<Writable<'_>>, Fault> {
        let Some((part, _)) = self.split_part() else { return Ok(None) };
        Ok(Some(Writable(self.resolve(memory, part, BufferDirection::Writable)?)))
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
            each(held.slice(buffer).map_err(|source| self.fault(descriptor, source))?)
        })
    }

    #[inline]
    fn resolve<M: DeviceMemory>(
        self,
        memory: &M,
        Part { descriptor, buffer }: Part,
        direction: BufferDirection,
    ) -> Result<VolatileSlice<'_>, Fault> {
        let slice = memory.slice(Buffer { direction, ..buffer });
        slice.map_err(|source| self.fault(descriptor, source))
    }

    #[cold]
    fn fault(self, descriptor: u16, source: GuestMemoryError) -> Fault {
        Fault::Memory { head: self.head, descriptor: descriptor.into(), source }
    }
}

/// A request of the driver: a descriptor chain that was copied and checked.
#[derive(Clone, Debug, Default)]
pub struct VirtioRequest {
    /// Index of its first descriptor, which identifies the request in the used ring.
    pub head: u16,
    /// The device-readable buffers, then the device-writable ones.
    buffers: Vec<Buffer>,
    totals: Totals,
}

/// What is known of the buffers of a request together.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// Number of device-readable buffers.
    readable: u16,
    readable_length: u32,
    /// Length of all buffers.
    length: u32,
    /// Number of buffers in memory that the driver did not share for good.
    unshared: u32,
    /// The number of pages that these touch; a page counts once for each buffer in it.
    pages: u32,
}

impl Totals {
    /// Checks the next buffer of a chain, and counts it.
    #[inline]
    fn add(&mut self, buffer: Buffer, is_shared: bool) -> Result<(), Malformed> {
        if buffer.length == 0 {
            return Err(Malformed::Empty);
        }
        let before = self.length;
        self.length = before.checked_add(buffer.length).ok_or(Malformed::Bytes)?;
        if buffer.direction == BufferDirection::Readable {
            if before != self.readable_length {
                return Err(Malformed::Order);
            }
            self.readable += 1;
            self.readable_length = self.length;
        }
        if !is_shared {
            self.unshared += 1;
            // A chain of up to 4 GiB and 2^15 buffers has fewer than 2^21 pages.
            self.pages = self.pages.wrapping_add(buffer.pages() as u32);
        }
        Ok(())
    }
}

impl VirtioRequest {
    /// Copies a chain and checks it. Replaces the request, whose allocation is reused.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a chain that does not end, is longer than 4 GiB, has an empty buffer, a
    /// readable buffer behind a writable one (virtio 1.3 section 2.7.4.2), or more buffers than the
    /// queue has entries (section 2.7.5.3.1). Then the request has a part of the chain.
    #[inline(never)]
    pub(super) fn collect<M: DeviceMemory>(
        &mut self,
        head: u16,
        table: VolatileSlice<'_>,
        memory: &M,
    ) -> Result<(), Fault> {
        let mut totals = Totals::default();
        self.buffers.clear();
        let each = |buffer| {
            totals.add(buffer, memory.is_shared(buffer))?;
            self.buffers.push(buffer);
            Ok(())
        };
        follow(head, table, memory, each).map_err(|why| malformed(head, &why))?;
        (self.head, self.totals) = (head, totals);
        Ok(())
    }

    /// The device-readable buffers: the driver's data.
    pub fn readable(&self) -> Buffers<'_> {
        let Totals { readable, readable_length: length, .. } = self.totals;
        let buffers = self.buffers.get(..readable.into()).unwrap_or(&[]);
        Buffers { head: self.head, first: 0, buffers, skip: 0, length }
    }

    /// The device-writable buffers, for the answer.
    pub fn writable(&self) -> Buffers<'_> {
        let Totals { readable: first, readable_length, length, .. } = self.totals;
        let buffers = self.buffers.get(first.into()..).unwrap_or(&[]);
        Buffers { head: self.head, first, buffers, skip: 0, length: length - readable_length }
    }

    /// The device-writable bytes before the last one, and the last one: a device's data and its
    /// status. `None` if there are no device-writable bytes.
    #[inline]
    pub fn split_writable(&self) -> Option<(Buffers<'_>, Buffers<'_>)> {
        let all = self.writable();
        let length = all.length.checked_sub(1)?;
        let (last, before) = all.buffers.split_last()?;
        let first = all.first.wrapping_add(before.len() as u16);
        let (buffers, skip) = (std::slice::from_ref(last), last.length - 1);
        Some((Buffers { length, ..all }, Buffers { first, buffers, skip, length: 1, ..all }))
    }

    /// Number of bytes of all buffers, in both directions.
    pub fn length(&self) -> u64 {
        self.totals.length.into()
    }

    /// The number of pages that its buffers touch and the driver did not share for good; a page
    /// counts once for each buffer in it.
    pub fn pages(&self) -> u64 {
        self.totals.pages.into()
    }

    /// Number of its buffers.
    pub fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Number of its buffers in memory that the driver shared for good, before it is truncated.
    pub(super) fn shared(&self) -> u64 {
        (self.buffers.len() as u64).saturating_sub(self.totals.unshared.into())
    }

    /// Frees the allocation if it has room for more than so many buffers.
    pub(super) fn limit_capacity(&mut self, most: usize) {
        if self.buffers.capacity() > most {
            self.buffers = Vec::new();
        }
    }

    /// Makes room for so many more buffers.
    #[cfg(test)]
    pub(super) fn reserve(&mut self, buffers: usize) {
        self.buffers.reserve_exact(buffers);
    }

    /// Number of buffers that it has room for.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buffers.capacity()
    }

    /// Limits the device-writable bytes to the first `length`.
    pub fn truncate_writable(&mut self, length: u64) {
        let mut rest = self.writable();
        if rest.split_front(length).is_some() {
            let (skip, cut) = (rest.skip, rest.length);
            let whole = self.buffers.len() - rest.buffers.len();
            self.buffers.truncate(whole + usize::from(skip > 0));
            // `split_writable` takes the last buffer's last byte.
            if let Some(last) = self.buffers.last_mut().filter(|_| skip > 0) {
                last.length = skip;
            }
            self.totals.length -= cut;
        }
    }

    /// Its buffers.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer> {
        self.readable().buffers().chain(self.writable().buffers())
    }
}

#[cold]
fn malformed(head: u16, why: &Malformed) -> Fault {
    Fault::Chain { head, reason: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of a fixed sequence.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % limit
        }

        /// A request of up to five buffers in each direction, each of up to three bytes.
        fn request(&mut self) -> VirtioRequest {
            let mut request = VirtioRequest::default();
            for direction in [BufferDirection::Readable, BufferDirection::Writable] {
                for _ in 0..self.below(6) {
                    let address = GuestAddress(self.below(1 << 20) * 16);
                    let length = 1 + self.below(3) as u32;
                    let buffer = Buffer { address, length, direction };
                    request.totals.add(buffer, false).unwrap();
                    request.buffers.push(buffer);
                }
            }
            request
        }
    }

    /// The position in the chain and the address of each byte.
    fn bytes(buffers: Buffers<'_>) -> Vec<(u16, u64)> {
        let of_part = |Part { descriptor, buffer }: Part| {
            (0..buffer.length).map(move |at| (descriptor, buffer.address.0 + u64::from(at)))
        };
        let bytes: Vec<_> = buffers.parts().flat_map(of_part).collect();
        assert_eq!(bytes.len() as u64, buffers.length());
        bytes
    }

    /// As [`bytes`], of the request's list.
    fn listed(request: &VirtioRequest, direction: BufferDirection) -> Vec<(u16, u64)> {
        let numbered = (0..).zip(&request.buffers);
        let of_buffer = |(number, buffer): (u16, &Buffer)| {
            let start = buffer.address.0;
            (start..start + u64::from(buffer.length)).map(move |address| (number, address))
        };
        numbered.filter(|(_, buffer)| buffer.direction == direction).flat_map(of_buffer).collect()
    }

    #[test]
    fn splits_are_those_of_a_stream_of_bytes() {
        let mut numbers = Numbers(3);
        for _ in 0..20_000 {
            let mut request = numbers.request();
            let (readable, mut writable) = (
                listed(&request, BufferDirection::Readable),
                listed(&request, BufferDirection::Writable),
            );
            if numbers.below(2) == 0 {
                let length = numbers.below(16);
                request.truncate_writable(length);
                writable.truncate(length as usize);
            }
            assert_eq!(bytes(request.readable()), readable);
            assert_eq!(bytes(request.writable()), writable);
            assert_eq!(request.length() as usize, readable.len() + writable.len());
            match request.split_writable() {
                Some((before, last)) => {
                    let (first, rest) = writable.split_at(writable.len() - 1);
                    assert_eq!((bytes(before), bytes(last)), (first.to_vec(), rest.to_vec()));
                    split_at_random(before, &mut numbers);
                }
                None => assert_eq!(writable, []),
            }
            split_at_random(request.readable(), &mut numbers);
        }
    }

    fn split_at_random(whole: Buffers<'_>, numbers: &mut Numbers) {
        let (all, count) = (bytes(whole), numbers.below(18));
        let mut rest = whole;
        match rest.split_front(count) {
            Some(front) => {
                let (first, later) = all.split_at(count as usize);
                assert_eq!((bytes(front), bytes(rest)), (first.to_vec(), later.to_vec()));
            }
            None => assert!(count > whole.length() && bytes(rest) == all),
        }
    }
}
