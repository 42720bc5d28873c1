//! `/dev/xen/gntdev` (Linux `include/uapi/xen/gntdev.h`): maps and copies pages that other domains
//! granted.

use crate::ioctl_number;

/// The device.
pub const DEVICE: &str = "/dev/xen/gntdev";

/// `struct ioctl_gntdev_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoctlGrantRef {
    /// The domain that granted the page.
    pub domid: u32,
    /// The reference.
    pub reference: u32,
}

/// `struct ioctl_gntdev_map_grant_ref`. The references follow from the last field on, `count` of
/// them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MapGrantRef {
    /// In: references.
    pub count: u32,
    /// Nothing.
    pub pad: u32,
    /// Out: what mmap is given as the offset.
    pub index: u64,
    /// In: the references, a variable-length array.
    pub refs: [IoctlGrantRef; 1],
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnmapGrantRef {
    /// What [`MapGrantRef`] gave.
    pub index: u64,
    /// References.
    pub count: u32,
    /// Nothing.
    pub pad: u32,
}

/// `GNTCOPY_source_gref`: the source is a grant, the destination is ours.
pub const COPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`: the destination is a grant, the source is ours.
pub const COPY_DEST_GREF: u16 = 2;
/// `GNTST_okay` (Xen `public/grant_table.h`).
pub const STATUS_OKAY: i16 = 0;

/// The `foreign` of the unions of `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// The reference.
    pub reference: u32,
    /// Bytes from the page's start.
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
    /// From where.
    pub source: CopyPointer,
    /// To where.
    pub dest: CopyPointer,
    /// Bytes, at most up to the end of the granted page.
    pub len: u16,
    /// [`COPY_SOURCE_GREF`], [`COPY_DEST_GREF`].
    pub flags: u16,
    /// Out: `GNTST_…`.
    pub status: i16,
}

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
pub struct GrantCopy {
    /// Segments.
    pub count: u32,
    /// Where they are.
    pub segments: *mut IoctlCopySegment,
}

nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTDEV_MAP_GRANT_REF`: notes references; writes `index`.
    map_grant_ref,
    ioctl_number(b'G', 0, size_of::<MapGrantRef>()),
    MapGrantRef
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTDEV_UNMAP_GRANT_REF`.
    unmap_grant_ref,
    ioctl_number(b'G', 1, size_of::<UnmapGrantRef>()),
    UnmapGrantRef
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_GNTDEV_GRANT_COPY`: writes each segment's `status`.
    grant_copy,
    ioctl_number(b'G', 8, size_of::<GrantCopy>()),
    GrantCopy
);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
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
