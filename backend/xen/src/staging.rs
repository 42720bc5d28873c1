//! Memory of this process that the hypervisor copies to or from a guest's pages.

use std::ptr::{self, NonNull};

use crate::Access;
use crate::mapped::MappedRange;

/// Zeroed bytes with the same volatile access as a guest's memory.
#[derive(Debug)]
pub struct Staging(MappedRange);

impl Staging {
    /// Allocates `length` zeroed bytes.
    pub fn new(length: usize) -> Self {
        let bytes = Box::leak(vec![0u8; length].into_boxed_slice());
        let address = NonNull::from(bytes).cast();
        // SAFETY: range and lifetime: the leaked box stays at its address until `drop`, and the
        // range, which is inside, does not outlive it. Aliasing: the only reference to the bytes
        // became the pointer. Alignment: only `page_words` needs one, and callers use the range for
        // slices alone.
        Self(unsafe { MappedRange::new(address, length, Access::ReadWrite) })
    }
}

impl AsRef<MappedRange> for Staging {
    fn as_ref(&self) -> &MappedRange {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let bytes = ptr::slice_from_raw_parts_mut(self.0.address().as_ptr(), self.0.length());
        // SAFETY: `new` leaked a box of this address and length, and nobody else frees it. Every
        // borrow of the range borrows self, which is being dropped, so none exists.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_is_zeroed_and_keeps_writes() {
        let staging = Staging::new(5000);
        let slice = staging.as_ref().slice(4990, 10).unwrap();
        let mut bytes = [1u8; 10];
        slice.copy_to(&mut bytes);
        assert_eq!(bytes, [0; 10]);
        slice.copy_from(&[7u8; 10]);
        slice.copy_to(&mut bytes);
        assert_eq!(bytes, [7; 10]);
        assert!(staging.as_ref().slice(4991, 10).is_none());
    }
}
