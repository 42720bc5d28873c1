//! `/dev/xen/gntalloc` (Linux `include/uapi/xen/gntalloc.h`): pages of this process that another
//! domain is granted. A page is mapped by its offset in the device.

use crate::ioctl_number;

/// The device.
pub const DEVICE: &str = "/dev/xen/gntalloc";
/// `GNTALLOC_FLAG_WRITABLE`.
pub const FLAG_WRITABLE: u16 = 1;

/// `struct ioctl_gntalloc_alloc_gref`. The references follow from the last field on, `count` of
/// them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AllocGref {
    /// In: the domain that is granted the pages.
    pub domid: u16,
    /// In: [`FLAG_WRITABLE`].
    pub flags: u16,
    /// In: pages.
    pub count: u32,
    /// Out: the first page's offset in the device.
    pub index: u64,
    /// Out: the references, a variable-length array.
    pub gref_ids: [u32; 1],
}

/// `struct ioctl_gntalloc_dealloc_gref`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeallocGref {
    /// The first page's offset in the device.
    pub index: u64,
    /// Pages.
    pub count: u32,
}

nix::ioctl_readwrite_bad!(
    /// `IOCTL_GNTALLOC_ALLOC_GREF`: the memory behind the pointer must have room for `count`
    /// references.
    alloc_gref,
    ioctl_number(b'G', 5, size_of::<AllocGref>()),
    AllocGref
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTALLOC_DEALLOC_GREF`.
    dealloc_gref,
    ioctl_number(b'G', 6, size_of::<DeallocGref>()),
    DeallocGref
);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!((size_of::<AllocGref>(), size_of::<DeallocGref>()), (24, 16));
        assert_eq!((offset_of!(AllocGref, index), offset_of!(AllocGref, gref_ids)), (8, 16));
        assert_eq!(offset_of!(DeallocGref, count), 8);
    }
}
