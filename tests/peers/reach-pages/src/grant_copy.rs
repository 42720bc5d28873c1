//! Copies by the hypervisor, out of pages that a guest granted.
//!
//! ABI: Linux `include/uapi/xen/gntdev.h`.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use doors::DomId;
use protocol::grant::{GrantRef, PAGE_SIZE};

const DEVICE: &str = "/dev/xen/gntdev";
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

nix::ioctl_write_ptr_bad!(
    copy,
    nix::request_code_none!(b'G', 8) | (size_of::<RawCopy>() as u64) << 16,
    RawCopy
);

/// The open device.
pub(crate) struct GrantCopy {
    file: File,
    guest: DomId,
}

impl GrantCopy {
    pub(crate) fn open(guest: DomId) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Self { file: file.with_context(|| format!("cannot open {DEVICE}"))?, guest })
    }

    /// Copies whole pages, one after the other, into `bytes`.
    pub(crate) fn read(&self, references: &[GrantRef], bytes: &mut [u8]) -> Result<()> {
        ensure!(bytes.len() == references.len() * PAGE_SIZE as usize, "not the room of the pages");
        let pages = bytes.chunks_exact_mut(PAGE_SIZE as usize);
        let segment = |(reference, page): (&GrantRef, &mut [u8])| RawSegment {
            reference: reference.0,
            offset: 0,
            domid: self.guest.0,
            to: page.as_mut_ptr(),
            length: PAGE_SIZE as u16,
            flags: SOURCE_IS_GRANT,
            // Not okay until the kernel says so.
            status: OKAY - 1,
        };
        let mut segments: Vec<_> = references.iter().zip(pages).map(segment).collect();
        let request =
            RawCopy { count: u32::try_from(segments.len())?, segments: segments.as_mut_ptr() };
        // SAFETY: range: the ioctl reads one RawCopy and `count` segments, as many as the Vec holds, and
        // writes each one's status and the page that `to` points at, a page of `bytes` that no other
        // segment has. Lifetime: request, segments and bytes live past the call. Aliasing: all three are
        // ours alone, and `bytes` is not touched between taking the pointers and the call.
        unsafe { copy(self.file.as_raw_fd(), &request) }?;
        let refused = segments.iter().find(|segment| segment.status != OKAY);
        let refused = refused.map(|segment| (segment.reference, segment.status));
        ensure!(refused.is_none(), "Xen does not copy: (reference, status) {refused:?}");
        Ok(())
    }
}
