//! `/dev/xen/gntalloc` (Linux `include/uapi/xen/gntalloc.h`): allocates pages and grants them to
//! another domain. The process maps a page by its offset in the device.

use crate::ioctl_number;

/// Path of the grant allocation device.
pub const DEVICE: &str = "/dev/xen/gntalloc";
/// `GNTALLOC_FLAG_WRITABLE`: the other domain may write to the pages.
pub const FLAG_WRITABLE: u16 = 1;

/// `struct ioctl_gntalloc_alloc_gref`. Its last field is the first of `count` references.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AllocGref {
    /// In: the domain to grant the pages to.
    pub domid: u16,
    /// In: [`FLAG_WRITABLE`] or 0.
    pub flags: u16,
    /// In: number of pages.
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
    /// Number of pages.
    pub count: u32,
}

nix::ioctl_readwrite_bad!(
    /// `IOCTL_GNTALLOC_ALLOC_GREF`: the memory behind the pointer must be large enough for `count`
    /// references.
    alloc_gref,
    ioctl_number(b'G', 5, size_of::<AllocGref>()),
    AllocGref
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTALLOC_DEALLOC_GREF`: ends the grants of consecutive pages.
    dealloc_gref,
    ioctl_number(b'G', 6, size_of::<DeallocGref>()),
    DeallocGref
);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn structures_match_the_kernel_abi() {
        assert_eq!((size_of::<AllocGref>(), size_of::<DeallocGref>()), (24, 16));
        assert_eq!((offset_of!(AllocGref, index), offset_of!(AllocGref, gref_ids)), (8, 16));
        assert_eq!(offset_of!(DeallocGref, count), 8);
    }
}
