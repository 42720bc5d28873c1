//! `/dev/xen/gntdev` (Linux `include/uapi/xen/gntdev.h`): maps pages that other domains granted,
//! and copies to and from them.

use crate::ioctl_number;

/// Path of the grant device.
pub const DEVICE: &str = "/dev/xen/gntdev";

/// `struct ioctl_gntdev_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoctlGrantRef {
    /// The domain that granted the page.
    pub domid: u32,
    /// The grant reference in that domain's table.
    pub reference: u32,
}

/// `struct ioctl_gntdev_map_grant_ref`. Its last field is the first of `count` references.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MapGrantRef {
    /// In: number of references.
    pub count: u32,
    /// Padding.
    pub pad: u32,
    /// Out: the offset to pass to mmap.
    pub index: u64,
    /// In: the references, a variable-length array.
    pub refs: [IoctlGrantRef; 1],
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnmapGrantRef {
    /// The index that the kernel returned in [`MapGrantRef`].
    pub index: u64,
    /// Number of references.
    pub count: u32,
    /// Padding.
    pub pad: u32,
}

/// `GNTCOPY_source_gref`: the source is a grant, the destination is memory of this process.
pub const COPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`: the destination is a grant, the source is memory of this process.
pub const COPY_DEST_GREF: u16 = 2;
/// `GNTST_okay` (Xen `public/grant_table.h`).
pub const STATUS_OKAY: i16 = 0;

/// The `foreign` of the unions of `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// The grant reference in the domain's table.
    pub reference: u32,
    /// Offset in the page, in bytes.
    pub offset: u16,
    /// The domain that granted the page.
    pub domid: u16,
}

/// The unions of `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union CopyPointer {
    /// Memory of this process.
    pub virt: *mut u8,
    /// A granted page.
    pub foreign: Foreign,
}

/// `struct gntdev_grant_copy_segment`.
#[repr(C)]
pub struct IoctlCopySegment {
    /// Where the kernel copies from.
    pub source: CopyPointer,
    /// Where the kernel copies to.
    pub dest: CopyPointer,
    /// Length in bytes; a segment must not cross the end of the granted page.
    pub len: u16,
    /// [`COPY_SOURCE_GREF`] or [`COPY_DEST_GREF`].
    pub flags: u16,
    /// Out: `GNTST_…`.
    pub status: i16,
}

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
pub struct GrantCopy {
    /// Number of segments.
    pub count: u32,
    /// Array of `count` segments.
    pub segments: *mut IoctlCopySegment,
}

/// The number of [`map_grant_ref`].
pub const MAP_GRANT_REF: u64 = ioctl_number(b'G', 0, size_of::<MapGrantRef>());
/// The number of [`unmap_grant_ref`].
pub const UNMAP_GRANT_REF: u64 = ioctl_number(b'G', 1, size_of::<UnmapGrantRef>());
/// The number of [`grant_copy`].
pub const GRANT_COPY: u64 = ioctl_number(b'G', 8, size_of::<GrantCopy>());

nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTDEV_MAP_GRANT_REF`: registers references for an mmap; writes `index`.
    map_grant_ref,
    MAP_GRANT_REF,
    MapGrantRef
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTDEV_UNMAP_GRANT_REF`: drops references after munmap.
    unmap_grant_ref,
    UNMAP_GRANT_REF,
    UnmapGrantRef
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTDEV_GRANT_COPY`: writes each segment's `status`.
    grant_copy,
    GRANT_COPY,
    GrantCopy
);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn structures_match_the_kernel_abi() {
        assert_eq!((size_of::<MapGrantRef>(), size_of::<UnmapGrantRef>()), (24, 16));
        assert_eq!((offset_of!(MapGrantRef, index), offset_of!(MapGrantRef, refs)), (8, 16));
        let copies =
            (size_of::<CopyPointer>(), size_of::<IoctlCopySegment>(), size_of::<GrantCopy>());
        assert_eq!(copies, (8, 24, 16));
        assert_eq!(
            (offset_of!(IoctlCopySegment, len), offset_of!(IoctlCopySegment, status)),
            (16, 20)
        );
        assert_eq!(offset_of!(GrantCopy, segments), 8);
    }
}
