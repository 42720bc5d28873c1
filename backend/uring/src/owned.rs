//! Vectors of memory that an operation owns a share of, so that the memory outlives the operation
//! whatever its submitter does meanwhile.

use std::marker::PhantomData;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::iovec::{lengthen, skip};

/// Maximum number of pieces: the kernel's limit for one call (`UIO_MAXIOV`).
pub const MOST_PIECES: usize = 1024;

/// A list of pieces of memory, which an [`OwnedVector`] takes over. Adjacent pieces are merged.
pub struct PieceList<'a> {
    vectors: Vec<libc::iovec>,
    length: usize,
    memory: PhantomData<VolatileSlice<'a>>,
}

impl<'a> PieceList<'a> {
    fn new() -> Self {
        Self { vectors: Vec::new(), length: 0, memory: PhantomData }
    }

    /// Appends a piece; returns `false` if the list is full.
    pub fn push(&mut self, piece: &VolatileSlice<'a>) -> bool {
        let (start, length) = (piece.ptr_guard_mut().as_ptr(), piece.len());
        if !lengthen(self.vectors.last_mut(), start, length) {
            if self.vectors.len() == MOST_PIECES {
                return false;
            }
            self.vectors.push(libc::iovec { iov_base: start.cast(), iov_len: length });
        }
        self.length += length;
        true
    }
}

/// An ordered list of pieces of memory, with a share of the value that keeps the memory reachable.
#[derive(Clone)]
pub struct OwnedVector {
    vectors: Vec<libc::iovec>,
    length: usize,
    owner: Arc<dyn Send + Sync>,
}

// SAFETY: the pointers point into memory that the owner keeps reachable, and the owner is Send and
// Sync: it may be used and dropped in any thread. All access through the pointers is the kernel's,
// or volatile.
unsafe impl Send for OwnedVector {}
// SAFETY: as for Send; shared references only read the list itself.
unsafe impl Sync for OwnedVector {}

impl OwnedVector {
    /// Makes a list of pieces that `fill` borrows from `owner`.
    ///
    /// The pieces stay valid as long as a share of `owner` exists: whatever was borrowed from a
    /// shared reference is valid while the value is shared, and the list's own share prevents
    /// exclusive access to it.
    ///
    /// # Errors
    /// The error of `fill`.
    pub fn new<H, E>(
        owner: &Arc<H>,
        fill: impl for<'a> FnOnce(&'a H, &mut PieceList<'a>) -> Result<(), E>,
    ) -> Result<Self, E>
    where
        H: Send + Sync + 'static,
    {
        let mut pieces = PieceList::new();
        fill(owner, &mut pieces)?;
        let PieceList { vectors, length, .. } = pieces;
        let owner: Arc<H> = Arc::clone(owner);
        Ok(Self { vectors, length, owner })
    }

    /// A list without pieces.
    pub fn empty() -> Self {
        Self { vectors: Vec::new(), length: 0, owner: Arc::new(()) }
    }

    /// Total length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The pieces as the kernel expects them.
    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        &self.vectors
    }

    /// Each piece as a list of its own.
    pub(crate) fn pieces(&self) -> Vec<Self> {
        let piece = |vector: &libc::iovec| Self {
            vectors: vec![*vector],
            length: vector.iov_len,
            owner: Arc::clone(&self.owner),
        };
        self.vectors.iter().map(piece).collect()
    }

    /// The same memory in lists of `longest` bytes, and a last one of at most as many.
    pub(crate) fn parts(self, longest: usize) -> Vec<Self> {
        let longest = longest.max(1);
        if self.length <= longest {
            return vec![self];
        }
        let without_pieces =
            || Self { vectors: Vec::new(), length: 0, owner: Arc::clone(&self.owner) };
        let (mut parts, mut part) = (Vec::new(), without_pieces());
        for piece in &self.vectors {
            let mut rest = *piece;
            while rest.iov_len > 0 {
                if part.length == longest {
                    parts.push(std::mem::replace(&mut part, without_pieces()));
                }
                let iov_len = rest.iov_len.min(longest - part.length);
                part.vectors.push(libc::iovec { iov_len, ..rest });
                part.length += iov_len;
                rest.iov_base = rest.iov_base.wrapping_byte_add(iov_len);
                rest.iov_len -= iov_len;
            }
        }
        parts.push(part);
        parts
    }

    /// Removes `count` bytes from the front.
    pub(crate) fn skip(&mut self, count: usize) {
        self.length -= count.min(self.length);
        let empty = skip(&mut self.vectors, count);
        self.vectors.drain(..empty);
    }

    /// The pieces.
    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.vectors.iter().map(|vector| {
            // SAFETY: range and lifetime: the vector is one slice that `push` took, or several
            // adjacent ones, which the owner keeps reachable while `self` has a share of it.
            // Aliasing: accesses are volatile, as they are through the original slices.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    /// Copies the first `count` bytes to the first ones of `other`; fewer if either is shorter.
    pub(crate) fn copy_to(&self, other: &Self, count: usize) {
        let (mut from, mut to) = (self.slices(), other.slices());
        let (mut here, mut there) = (from.next(), to.next());
        let mut left = count;
        while let (Some(source), Some(target)) = (here, there) {
            let now = source.len().min(target.len()).min(left);
            let (Ok(piece), Ok(room)) = (source.subslice(0, now), target.subslice(0, now)) else {
                return;
            };
            piece.copy_to_volatile_slice(room);
            left -= now;
            if left == 0 {
                return;
            }
            let rest = |slice: VolatileSlice<'_>| slice.len() > now;
            here = if rest(source) { source.offset(now).ok() } else { from.next() };
            there = if rest(target) { target.offset(now).ok() } else { to.next() };
        }
    }

    /// Fills all pieces with zeros.
    pub fn zero(&self) {
        for slice in self.slices() {
            let mut at = 0;
            while let Some(part) = slice.len().checked_sub(at).filter(|left| *left > 0) {
                let count = part.min(ZEROS.len());
                let Ok(part) = slice.subslice(at, count) else { break };
                part.copy_from(ZEROS.get(..count).unwrap_or(&ZEROS));
                at += count;
            }
        }
    }
}

static ZEROS: [u8; 4096] = [0; 4096];

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Box<[u8; 16]>);

    fn vector(owner: &Arc<Bytes>, ranges: &[(usize, usize)]) -> OwnedVector {
        let fill = |bytes: &Bytes, pieces: &mut PieceList<'_>| {
            for (start, length) in ranges {
                // SAFETY: the range is inside the box, which the owner keeps.
                let slice =
                    unsafe { VolatileSlice::new(bytes.0.as_ptr().add(*start).cast_mut(), *length) };
                assert!(pieces.push(&slice));
            }
            Ok::<(), ()>(())
        };
        OwnedVector::new(owner, fill).unwrap()
    }

    #[test]
    fn adjacent_pieces_are_one_vector_and_a_share_of_theowner_stays() {
        let owner = Arc::new(Bytes(Box::new([7; 16])));
        let mut pieces = vector(&owner, &[(0, 4), (4, 4), (12, 2)]);
        assert_eq!((pieces.length(), pieces.vectors().len()), (10, 2));
        assert_eq!(Arc::strong_count(&owner), 2);
        pieces.skip(9);
        assert_eq!((pieces.length(), pieces.vectors().len()), (1, 1));
        assert_eq!(pieces.vectors()[0].iov_base as usize, owner.0.as_ptr() as usize + 13);
        pieces.zero();
        assert_eq!(owner.0[11..], [7, 7, 0, 7, 7]);
        pieces.skip(1);
        assert_eq!((pieces.length(), pieces.vectors().len()), (0, 0));
        drop(pieces);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn bytes_are_copied_across_the_ends_of_pieces() {
        let from = Arc::new(Bytes(Box::new(std::array::from_fn(|at| at as u8))));
        for (count, expected) in [
            (9, [0, 0, 1, 2, 0, 5, 6, 7, 8, 9, 0, 10, 0, 0, 0, 0]),
            (4, [0, 0, 1, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (100, [0, 0, 1, 2, 0, 5, 6, 7, 8, 9, 0, 10, 11, 0, 0, 0]),
            (0, [0; 16]),
        ] {
            let to = Arc::new(Bytes(Box::new([0; 16])));
            let target = vector(&to, &[(1, 3), (5, 5), (11, 2)]);
            vector(&from, &[(0, 3), (5, 7)]).copy_to(&target, count);
            assert_eq!(*to.0, expected, "{count}");
        }
    }

    #[test]
    fn parts_are_the_same_bytes_in_order() {
        let owner = Arc::new(Bytes(Box::new([0; 16])));
        let start = owner.0.as_ptr() as usize;
        let parts = |longest| {
            let parts = vector(&owner, &[(0, 5), (8, 1), (10, 4)]).parts(longest);
            assert!(parts.iter().all(|part| part.length() <= longest.max(1)));
            let pieces = |part: &OwnedVector| -> Vec<_> {
                let piece = |v: &libc::iovec| (v.iov_base as usize - start, v.iov_len);
                part.vectors().iter().map(piece).collect()
            };
            parts.iter().map(pieces).collect::<Vec<_>>()
        };
        assert_eq!(parts(10), [[(0, 5), (8, 1), (10, 4)]]);
        assert_eq!(parts(4), [vec![(0, 4)], vec![(4, 1), (8, 1), (10, 2)], vec![(12, 2)]]);
        assert_eq!(parts(5), [vec![(0, 5)], vec![(8, 1), (10, 4)]]);
        assert_eq!(parts(0).len(), 10);
    }
}
