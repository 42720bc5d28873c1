//! Memory that another domain can change at any moment, and the only ways to look at it.

use std::ptr::NonNull;

use protocol::grant::PAGE_SIZE;
use protocol::page::PageWords;
use vm_memory::VolatileSlice;

use super::Access;

/// Whole mapped pages of another domain, contiguous here.
///
/// It owns nothing: the handle that made it keeps it inside the value whose drop unmaps the pages,
/// and lends it out from there, so what is borrowed from it cannot outlive the mapping.
#[derive(Debug)]
pub struct MappedRange {
    address: NonNull<u8>,
    length: usize,
    access: Access,
}

// SAFETY: the range is not tied to the thread that mapped it; every access through it is volatile
// or atomic, as the other domain's CPUs already demand.
unsafe impl Send for MappedRange {}

impl MappedRange {
    /// # Safety
    /// From `address`, page aligned, `length` bytes, a multiple of the page size, must stay mapped
    /// with `access` until the returned value is dropped, and no Rust reference to them may be made
    /// elsewhere. Neither alignment nor size matter where [`MappedRange::page_words`] is not
    /// called.
    pub unsafe fn new(address: NonNull<u8>, length: usize, access: Access) -> Self {
        Self { address, length, access }
    }

    /// What the mapping allows.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Bytes mapped.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Where it is mapped.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// `length` bytes from `offset`, or `None` if they are not all inside.
    pub fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: range: offset + length <= self.length was checked, so the pointer stays inside
        // the mapping and does not overflow. Lifetime: the slice borrows self, which is inside the
        // value that unmaps. Aliasing: `new`'s caller made no reference to these bytes; a volatile
        // slice makes none either.
        Some(unsafe { VolatileSlice::new(self.address.as_ptr().add(offset), length) })
    }

    /// The first page as the message page, or `None` if the mapping is read-only.
    pub fn page_words(&self) -> Option<&PageWords> {
        if self.access != Access::ReadWrite || self.length < PAGE_SIZE as usize {
            return None;
        }
        // SAFETY: range: a page, 4096 bytes, is the size of PageWords, and the mapping has at least
        // one, checked above. Alignment: page aligned, more than a word needs. Aliasing: atomics
        // may be changed by others, here or in the other domain, at any time. Lifetime: borrows
        // self.
        Some(unsafe { self.address.cast::<PageWords>().as_ref() })
    }
}
