//! Memory that another domain can change at any moment, with volatile and atomic access only.

use std::ptr::NonNull;

use protocol::grant::PAGE_SIZE;
use protocol::page::PageWords;
use vm_memory::VolatileSlice;

use super::Access;

/// Mapped pages of another domain at consecutive addresses.
///
/// The range does not own the mapping. The handle that made it keeps it inside the value whose drop
/// unmaps the pages, and lends it out from there, so no borrow of the range outlives the mapping.
#[derive(Debug)]
pub struct MappedRange {
    address: NonNull<u8>,
    length: usize,
    access: Access,
}

// SAFETY: the range does not depend on the thread that mapped it; every access through it is
// volatile or atomic, as the other domain's CPUs require anyway.
unsafe impl Send for MappedRange {}
// SAFETY: as for Send: several threads may access the bytes at the same time, as the other domain's
// CPUs do.
unsafe impl Sync for MappedRange {}

impl MappedRange {
    /// Describes mapped memory.
    ///
    /// # Safety
    /// `length` bytes, a multiple of the page size, from the page-aligned `address` on must stay
    /// mapped with `access` until the returned value is dropped, and nobody may make a Rust
    /// reference to them elsewhere. Alignment and size do not matter if nobody calls
    /// [`MappedRange::page_words`].
    pub unsafe fn new(address: NonNull<u8>, length: usize, access: Access) -> Self {
        Self { address, length, access }
    }

    /// The access that the mapping permits.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Length of the range in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Address of the first byte.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Returns `length` bytes from `offset` on, or `None` if the range does not contain all of
    /// them.
    pub fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: range: the check above ensures offset + length <= self.length, so the pointer
        // stays inside the mapping and does not overflow. Lifetime: the slice borrows self, which
        // is inside the value that unmaps. Aliasing: `new`'s caller made no reference to these
        // bytes; a volatile slice makes none either.
        Some(unsafe { VolatileSlice::new(self.address.as_ptr().add(offset), length) })
    }

    /// Returns the first page as the message page, or `None` if the mapping is read-only or shorter
    /// than a page.
    pub fn page_words(&self) -> Option<&PageWords> {
        if self.access != Access::ReadWrite || self.length < PAGE_SIZE as usize {
            return None;
        }
        // SAFETY: range: PageWords is one page, 4096 bytes, and the check above ensures that the
        // mapping has at least one. Alignment: the mapping is page aligned, which exceeds a word's.
        // Aliasing: other threads and the other domain may change atomics at any time. Lifetime:
        // the reference borrows self.
        Some(unsafe { self.address.cast::<PageWords>().as_ref() })
    }
}
