//! Copies by the hypervisor between granted pages and memory of this process.
//!
//! Each segment of a copy has a status of its own. A copy takes no mapping slot and no map tracking
//! entry.

use std::fs::File;
use std::os::fd::AsRawFd;

use protocol::grant::PAGE_SIZE;

use xen_sys::gntdev::{
    COPY_DEST_GREF, COPY_SOURCE_GREF, CopyPointer, Foreign, GrantCopy, IoctlCopySegment,
    STATUS_OKAY, grant_copy,
};

use crate::{CopyDirection, CopyError, CopySegment, DomId};

/// Copies all segments with one call.
///
/// # Errors
/// [`CopyError`]; then some segments may have been copied.
pub(super) fn copy(
    file: &File,
    guest: DomId,
    direction: CopyDirection,
    segments: &[CopySegment<'_>],
) -> Result<(), CopyError> {
    let mut raw = segments
        .iter()
        .map(|segment| raw_segment(guest, direction, segment))
        .collect::<Result<Vec<_>, _>>()?;
    let count = u32::try_from(raw.len()).map_err(|_| CopyError::Beyond)?;
    let request = GrantCopy { count, segments: raw.as_mut_ptr() };
    // SAFETY: range: the ioctl reads one GrantCopy and `count` segments, as many as the Vec holds,
    // and writes each one's status; of this process's memory it reads or writes the bytes of each
    // `here`, a slice that lives past the call. Lifetime: request and segments live past the call,
    // too. Aliasing: this function owns both; the slices are volatile, so nobody makes references
    // to their bytes.
    unsafe { grant_copy(file.as_raw_fd(), &request) }
        .map_err(|errno| CopyError::Failed(errno.into()))?;
    let refused = segments.iter().zip(&raw).find(|(_, raw)| raw.status != STATUS_OKAY);
    match refused {
        Some((segment, raw)) => {
            Err(CopyError::Refused { reference: segment.reference, status: raw.status })
        }
        None => Ok(()),
    }
}

fn raw_segment(
    guest: DomId,
    direction: CopyDirection,
    segment: &CopySegment<'_>,
) -> Result<IoctlCopySegment, CopyError> {
    let end = usize::from(segment.offset) + segment.here.len();
    let length = u16::try_from(segment.here.len()).ok().filter(|_| end <= PAGE_SIZE as usize);
    let length = length.ok_or(CopyError::Beyond)?;
    let foreign = CopyPointer {
        foreign: Foreign { reference: segment.reference.0, offset: segment.offset, domid: guest.0 },
    };
    let here = CopyPointer { virt: segment.here.ptr_guard_mut().as_ptr() };
    let (source, dest, flags) = match direction {
        CopyDirection::FromGuest => (foreign, here, COPY_SOURCE_GREF),
        CopyDirection::ToGuest => (here, foreign, COPY_DEST_GREF),
    };
    // Not okay until the kernel writes the status.
    Ok(IoctlCopySegment { source, dest, len: length, flags, status: STATUS_OKAY - 1 })
}
