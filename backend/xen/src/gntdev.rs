//! `/dev/xen/gntdev`: maps pages that a guest granted to this domain.
//!
//! A map is two steps: an ioctl notes the references and gives
//! an index, and an mmap at that index makes the one hypercall that maps them all, or none.

mod copy;
mod refused;

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use protocol::grant::{GrantRef, PAGE_SIZE};

use xen_sys::gntdev::{self as sys, DEVICE, MapGrantRef, UnmapGrantRef};

use super::{Access, CopyDirection, CopyError, CopySegment, DomId, GrantTable, MapError};
use crate::mapped::MappedRange;

/// The handle to one guest's grants.
#[derive(Debug)]
pub struct Gntdev {
    file: Arc<File>,
    guest: DomId,
}

impl Gntdev {
    /// Opens the handle.
    pub fn open(guest: DomId) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
            let hint = "is this a Xen domain, and is the module xen-gntdev loaded?";
            io::Error::new(error.kind(), format!("cannot open {DEVICE}: {error} ({hint})"))
        })?;
        Ok(Self { file: Arc::new(file), guest })
    }

    /// Notes `references` with the kernel; gives the index under which mmap finds them.
    fn reserve(&self, references: &[GrantRef]) -> Result<u64, MapError> {
        let no_room = |source| MapError::NoRoom { count: references.len(), source };
        let count = u32::try_from(references.len()).map_err(|e| no_room(io::Error::other(e)))?;
        // One MapGrantRef holds the header and the first reference; a Vec of 8-byte records behind
        // an 16-byte header keeps the layout: 16 bytes of header are two records.
        let record = |domid, reference| sys::IoctlGrantRef { domid, reference };
        let mut request = vec![record(count, 0), record(0, 0)];
        let domid = u32::from(self.guest.0);
        request.extend(references.iter().map(|reference| record(domid, reference.0)));
        // SAFETY: range: the ioctl reads and writes 16 bytes of header and reads `count` records of
        // 8 bytes; the Vec holds 2 + count records. Alignment: the kernel copies bytes. Aliasing
        // and lifetime: the Vec is ours alone and lives past the call.
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

/// Ends what `reserve` noted.
fn forget(file: &File, index: u64, pages: usize) -> io::Result<()> {
    let request = UnmapGrantRef { index, count: pages as u32, pad: 0 };
    // SAFETY: the ioctl reads one UnmapGrantRef, which lives past the call.
    unsafe { sys::unmap_grant_ref(file.as_raw_fd(), &request) }?;
    Ok(())
}

impl Gntdev {
    /// Maps, or says what the kernel said.
    fn try_map(&self, references: &[GrantRef], access: Access) -> Result<GntdevPages, TryError> {
        let count = references.len();
        let bytes = count.checked_mul(PAGE_SIZE as usize).and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or(nix::Error::EINVAL).map_err(TryError::Map)?;
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let index = self.reserve(references)?;
        // SAFETY: no address is asked for, so no other mapping is touched; the kernel checks the
        // length against what was reserved under this index.
        let mapped = unsafe {
            mmap(None, bytes, protection, MapFlags::MAP_SHARED, &*self.file, index as libc::off_t)
        };
        match mapped {
            Ok(address) => {
                // SAFETY: mmap gave `bytes` bytes, page aligned, with this protection. They stay
                // mapped until GntdevPages is dropped, which owns the range. Nothing else refers to
                // them.
                let range = unsafe { MappedRange::new(address.cast(), bytes.get(), access) };
                Ok(GntdevPages { range, file: Arc::clone(&self.file), index })
            }
            Err(errno) => {
                if let Err(error) = forget(&self.file, index, count) {
                    tracing::error!(%error, "gntdev keeps {count} reference(s) that failed to map");
                }
                Err(TryError::Map(errno))
            }
        }
    }

    /// Whether a map failed by the guest's doing or for want of room here: the kernel says EINVAL
    /// for both.
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
            // All can be read. If they can be mapped for that, it is writing that is refused.
            Ok(None) => match self.try_map(references, Access::ReadOnly) {
                Ok(_) => refused(first, count),
                Err(_) => no_room(NoTracking.into()),
            },
            Err(error) => {
                tracing::debug!(%error, "the hypervisor does not say why it refuses to map");
                refused(first, count)
            }
        }
    }
}

/// Why the kernel did not map.
enum TryError {
    Reserve(MapError),
    Map(nix::Error),
}

impl From<MapError> for TryError {
    fn from(error: MapError) -> Self {
        Self::Reserve(error)
    }
}

/// Xen counts what a domain has mapped in a table of its own.
#[derive(Debug, thiserror::Error)]
#[error("its map tracking is full; Xen's option gnttab_max_maptrack_frames makes it larger")]
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

    fn copy(&self, way: CopyDirection, segments: &[CopySegment<'_>]) -> Result<(), CopyError> {
        copy::copy(&self.file, self.guest, way, segments)
    }
}

/// Pages mapped through gntdev.
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
        // SAFETY: exactly the range that `map` got from mmap; whatever borrows it borrows self,
        // which is being dropped, so nothing does.
        if let Err(error) = unsafe { munmap(address.cast(), length) } {
            tracing::error!(%error, "cannot unmap {length} granted bytes");
            return;
        }
        if let Err(error) = forget(&self.file, self.index, length / PAGE_SIZE as usize) {
            tracing::error!(%error, "gntdev keeps the references of {length} unmapped bytes");
        }
    }
}
