//! Which references of a map that failed the hypervisor refuses.
//!
//! For every status of Xen's, gntdev says EINVAL. Copying a byte out of each page tells more: it has a
//! status for each reference, and takes none of the room that a map takes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use protocol::grant::GrantRef;

use crate::DomId;

/// `GNTCOPY_source_gref`: the source is a grant, the destination is ours.
const SOURCE_IS_GRANT: u16 = 1;
/// `GNTST_okay`.
const OKAY: i16 = 0;

/// `struct gntdev_grant_copy_segment` from a grant to our memory.
#[repr(C)]
struct RawSegment {
    reference: u32,
    offset: u16,
    domid: u16,
    to: *mut u8,
    length: u16,
    flags: u16,
    status: i16,
}

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
struct RawCopy {
    count: u32,
    segments: *mut RawSegment,
}

mod ioctl {
    use super::RawCopy;

    nix::ioctl_write_ptr_bad!(
        copy,
        nix::request_code_none!(b'G', 8) | (size_of::<RawCopy>() as u64) << 16,
        RawCopy
    );
}

/// The first of `references` that cannot be read, if one cannot.
///
/// # Errors
/// The hypervisor could not be asked.
pub(super) fn first(
    file: &File,
    guest: DomId,
    references: &[GrantRef],
) -> io::Result<Option<GrantRef>> {
    let mut bytes = vec![0u8; references.len()];
    let segment = |(reference, to): (&GrantRef, &mut u8)| RawSegment {
        reference: reference.0,
        offset: 0,
        domid: guest.0,
        to: std::ptr::from_mut(to),
        length: 1,
        flags: SOURCE_IS_GRANT,
        // Not okay until the kernel says so.
        status: OKAY - 1,
    };
    let mut segments: Vec<_> = references.iter().zip(&mut bytes).map(segment).collect();
    let count = u32::try_from(segments.len()).map_err(io::Error::other)?;
    let request = RawCopy { count, segments: segments.as_mut_ptr() };
    // SAFETY: range: the ioctl reads one RawCopy and `count` segments, as many as the Vec holds, and
    // writes each one's status and the one byte that `to` points at, an element of `bytes`.
    // Lifetime: request, segments and bytes live past the call. Aliasing: all three are ours alone,
    // and `bytes` is not touched between taking the pointers and the call.
    unsafe { ioctl::copy(file.as_raw_fd(), &request) }?;
    let refused = segments.iter().find(|segment| segment.status != OKAY);
    Ok(refused.map(|segment| GrantRef(segment.reference)))
}
