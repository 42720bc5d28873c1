//! Memory of ours that stands for a guest's while the hypervisor copies between the two.

use std::ptr::{self, NonNull};

use crate::Access;
use crate::mapped::MappedRange;

/// Bytes, zeroed at first, that are looked at as those of a guest are.
#[derive(Debug)]
pub struct Staging(MappedRange);

impl Staging {
    /// So many bytes.
    pub fn new(length: usize) -> Self {
        let bytes = Box::leak(vec![0u8; length].into_boxed_slice());
        let address = NonNull::from(bytes).cast();
        // SAFETY: the bytes stay where they are until `drop`, which the range does not outlive, for
        // it is inside; the one reference to them was given up for the pointer. Of alignment
        // nothing is asked but by `page_words`, and the range is lent out for slices alone.
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
        // SAFETY: they were a box of that length, leaked by `new` and by nothing else; what borrows
        // the range borrows self, so nothing does.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_and_stay_as_they_are_written() {
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
