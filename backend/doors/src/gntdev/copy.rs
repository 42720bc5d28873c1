//! Copies by the hypervisor, between granted pages and our memory.
//!
//! A copy has a status for each part of it, and takes none of the room that a map takes.

use std::fs::File;
use std::os::fd::AsRawFd;

use protocol::grant::PAGE_SIZE;

use crate::{CopyError, CopySegment, CopyWay, DomId};

/// `GNTCOPY_source_gref`: the source is a grant, the destination is ours.
const SOURCE_IS_GRANT: u16 = 1;
/// `GNTCOPY_dest_gref`: the destination is a grant, the source is ours.
const DESTINATION_IS_GRANT: u16 = 2;
/// `GNTST_okay`.
const OKAY: i16 = 0;

/// The `foreign` of `struct gntdev_grant_copy_segment`'s unions.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawForeign {
    reference: u32,
    offset: u16,
    domid: u16,
}

/// The unions themselves.
#[repr(C)]
#[derive(Clone, Copy)]
union RawPlace {
    here: *mut u8,
    foreign: RawForeign,
}

/// `struct gntdev_grant_copy_segment`.
#[repr(C)]
struct RawSegment {
    source: RawPlace,
    destination: RawPlace,
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

/// Copies all segments by one call.
///
/// # Errors
/// [`CopyError`]; some may have been copied.
pub(super) fn copy(
    file: &File,
    guest: DomId,
    way: CopyWay,
    segments: &[CopySegment<'_>],
) -> Result<(), CopyError> {
    let mut raw = segments
        .iter()
        .map(|segment| raw_segment(guest, way, segment))
        .collect::<Result<Vec<_>, _>>()?;
    let count = u32::try_from(raw.len()).map_err(|_| CopyError::Beyond)?;
    let request = RawCopy { count, segments: raw.as_mut_ptr() };
    // SAFETY: range: the ioctl reads one RawCopy and `count` segments, as many as the Vec holds, and
    // writes each one's status; of our memory it reads or writes the bytes of each `here`, a slice that
    // lives past the call. Lifetime: request and segments do, too. Aliasing: both are ours alone; to the
    // slices no references are made, since they are volatile.
    unsafe { ioctl::copy(file.as_raw_fd(), &request) }
        .map_err(|errno| CopyError::Failed(errno.into()))?;
    let refused = segments.iter().zip(&raw).find(|(_, raw)| raw.status != OKAY);
    match refused {
        Some((segment, raw)) => {
            Err(CopyError::Refused { reference: segment.reference, status: raw.status })
        }
        None => Ok(()),
    }
}

fn raw_segment(
    guest: DomId,
    way: CopyWay,
    segment: &CopySegment<'_>,
) -> Result<RawSegment, CopyError> {
    let end = usize::from(segment.offset) + segment.here.len();
    let length = u16::try_from(segment.here.len()).ok().filter(|_| end <= PAGE_SIZE as usize);
    let length = length.ok_or(CopyError::Beyond)?;
    let foreign = RawPlace {
        foreign: RawForeign {
            reference: segment.reference.0,
            offset: segment.offset,
            domid: guest.0,
        },
    };
    let here = RawPlace { here: segment.here.ptr_guard_mut().as_ptr() };
    let (source, destination, flags) = match way {
        CopyWay::FromGuest => (foreign, here, SOURCE_IS_GRANT),
        CopyWay::ToGuest => (here, foreign, DESTINATION_IS_GRANT),
    };
    // Not okay until the kernel says so.
    Ok(RawSegment { source, destination, length, flags, status: OKAY - 1 })
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(
            (size_of::<RawPlace>(), size_of::<RawSegment>(), size_of::<RawCopy>()),
            (8, 24, 16)
        );
        assert_eq!(offset_of!(RawSegment, length), 16);
        assert_eq!(offset_of!(RawSegment, status), 20);
    }
}
