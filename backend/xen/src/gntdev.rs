//! `/dev/xen/gntdev`: maps pages that a guest granted to this domain.
//!
//! A map has two steps: an ioctl registers the references and returns an index, and an mmap at that
//! index makes the hypercall that maps all of them or none.

mod copy;
mod refused;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use protocol::grant::{GrantRef, PAGE_SIZE};

use xen_sys::gntdev::{self as sys, DEVICE, MapGrantRef, UnmapGrantRef};

use super::{Access, CopyDirection, CopyError, CopySegment, DomId, GrantTable, MapError};
use crate::device_file;
use crate::mapped::MappedRange;

/// The handle to one guest's grants. A clone is the same handle.
#[derive(Clone, Debug)]
pub struct Gntdev {
    file: Arc<File>,
    guest: DomId,
    may_be_pinned: bool,
}

/// The kind of domain that this process runs in.
const GUEST_TYPE: &str = "/sys/hypervisor/guest_type";

/// Whether Linux unmaps grants well whose pages something holds when their process has died. In a
/// PV domain it does not: it changes page tables that are gone (`use_ptemod` in
/// `drivers/xen/gntdev.c`).
fn may_be_pinned() -> bool {
    std::fs::read_to_string(GUEST_TYPE).is_ok_and(|kind| kind.trim() != "PV")
}

impl Gntdev {
    /// Opens the handle to the grants of `guest`.
    pub fn open(guest: DomId) -> io::Result<Self> {
        let file = device_file::open(DEVICE, "xen-gntdev", 0)?;
        Ok(Self { file: Arc::new(file), guest, may_be_pinned: may_be_pinned() })
    }

    /// Registers `references` with the kernel; returns the index to pass to mmap.
    fn reserve(&self, references: &[GrantRef]) -> Result<u64, MapError> {
        let no_room = |source| MapError::NoRoom { count: references.len(), source };
        let count = u32::try_from(references.len()).map_err(|e| no_room(io::Error::other(e)))?;
        // A Vec of 8-byte records has the layout of the request: the 16-byte header takes two
        // records.
        let record = |domid, reference| sys::IoctlGrantRef { domid, reference };
        let mut request = vec![record(count, 0), record(0, 0)];
        let domid = u32::from(self.guest.0);
        request.extend(references.iter().map(|reference| record(domid, reference.0)));
        // SAFETY: range: the ioctl reads and writes 16 bytes of header and reads `count` records of
        // 8 bytes; the Vec holds 2 + count records. Alignment: the kernel copies bytes. Aliasing
        // and lifetime: this function owns the Vec, which lives past the call.
        let done = unsafe {
            sys::map_grant_ref(
                self.file.as_raw_fd(),
                request.as_mut_ptr().cast::<MapGrantRef>().cast_const(),
            )
        };
        done.map_err(|errno| no_room(errno.into()))?;
        let [_, index, ..] = request.as_slice() else {
            return Err(no_room(io::ErrorKind::InvalidData.into()));
        };
        Ok(u64::from(index.domid) | u64::from(index.reference) << 32)
    }
}

/// Drops the references that `reserve` registered under `index`.
fn forget(file: &File, index: u64, pages: usize) -> io::Result<()> {
    let request = UnmapGrantRef { index, count: pages as u32, pad: 0 };
    // SAFETY: the ioctl reads one UnmapGrantRef, which lives past the call.
    unsafe { sys::unmap_grant_ref(file.as_raw_fd(), &request) }?;
    Ok(())
}

impl Gntdev {
    /// Maps the references, or returns the kernel's error unexplained.
    fn try_map(&self, references: &[GrantRef], access: Access) -> Result<GntdevPages, TryError> {
        let count = references.len();
        let bytes = count.checked_mul(PAGE_SIZE as usize).and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or(nix::Error::EINVAL).map_err(TryError::Map)?;
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let index = self.reserve(references)?;
        // SAFETY: the call requests no address, so it replaces no other mapping; the kernel checks
        // the length against the references registered under this index.
        let mapped = unsafe {
            mmap(None, bytes, protection, MapFlags::MAP_SHARED, &*self.file, index as libc::off_t)
        };
        match mapped {
            Ok(address) => {
                // SAFETY: mmap returned `bytes` bytes, page aligned, with this protection. They
                // stay mapped until GntdevPages, which owns the range, is dropped. Nothing else
                // refers to them.
                let range = unsafe { MappedRange::new(address.cast(), bytes.get(), access) };
                Ok(GntdevPages { range, file: Arc::clone(&self.file), index })
            }
            Err(errno) => {
                if let Err(error) = forget(&self.file, index, count) {
                    tracing::error!(%error, "gntdev keeps {count} reference(s) of a failed map");
                }
                Err(TryError::Map(errno))
            }
        }
    }

    /// Determines whether the guest's grant or a limit of this domain made a map fail: the kernel
    /// returns EINVAL for both.
    fn explain(&self, references: &[GrantRef], access: Access, errno: nix::Error) -> MapError {
        let (first, count) = (references.first().copied().unwrap_or(GrantRef(0)), references.len());
        let no_room = |source| MapError::NoRoom { count, source };
        let refused =
            |first, count| MapError::Refused { first, count, access, source: errno.into() };
        if matches!(errno, nix::Error::ENOMEM | nix::Error::EAGAIN | nix::Error::ENOSPC) {
            return no_room(errno.into());
        }
        match refused::first(&self.file, self.guest, references) {
            Ok(Some(reference)) => refused(reference, 1),
            Ok(None) if access == Access::ReadOnly => no_room(NoTracking.into()),
            // All pages can be read. If a read-only map works, the grants refuse writing.
            Ok(None) => match self.try_map(references, Access::ReadOnly) {
                Ok(_) => refused(first, count),
                Err(_) => no_room(NoTracking.into()),
            },
            Err(error) => {
                tracing::debug!(%error, "cannot find the reference that the hypervisor refused");
                refused(first, count)
            }
        }
    }
}

/// The step of a map that failed.
enum TryError {
    Reserve(MapError),
    Map(nix::Error),
}

impl From<MapError> for TryError {
    fn from(error: MapError) -> Self {
        Self::Reserve(error)
    }
}

/// Xen counts a domain's mappings in its map tracking table; the table is full.
#[derive(Debug, thiserror::Error)]
#[error("map tracking of this domain is full; raise Xen's option gnttab_max_maptrack_frames")]
struct NoTracking;

impl From<NoTracking> for io::Error {
    fn from(error: NoTracking) -> Self {
        Self::new(io::ErrorKind::OutOfMemory, error)
    }
}

impl GrantTable for Gntdev {
    type Pages = GntdevPages;

    fn map(&self, references: &[GrantRef], access: Access) -> Result<GntdevPages, MapError> {
        self.try_map(references, access).map_err(|error| match error {
            TryError::Reserve(error) => error,
            TryError::Map(errno) => self.explain(references, access, errno),
        })
    }

    fn may_be_pinned(&self) -> bool {
        self.may_be_pinned
    }

    fn copy(
        &self,
        direction: CopyDirection,
        segments: &[CopySegment<'_>],
    ) -> Result<(), CopyError> {
        copy::copy(&self.file, self.guest, direction, segments)
    }
}

/// Pages mapped through gntdev. Dropping this unmaps them.
#[derive(Debug)]
pub struct GntdevPages {
    range: MappedRange,
    file: Arc<File>,
    index: u64,
}

impl AsRef<MappedRange> for GntdevPages {
    fn as_ref(&self) -> &MappedRange {
        &self.range
    }
}

impl Drop for GntdevPages {
    fn drop(&mut self) {
        let (address, length): (NonNull<u8>, usize) = (self.range.address(), self.range.length());
        // SAFETY: exactly the range that mmap returned. Every borrow of it borrows self, which is
        // being dropped, so none exists.
        if let Err(error) = unsafe { munmap(address.cast(), length) } {
            tracing::error!(%error, "cannot unmap {length} granted bytes");
            return;
        }
        if let Err(error) = forget(&self.file, self.index, length / PAGE_SIZE as usize) {
            tracing::error!(%error, "gntdev keeps the references of {length} unmapped bytes");
        }
    }
}
