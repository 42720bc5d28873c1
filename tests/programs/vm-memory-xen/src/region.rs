//! Pages of a guest that vm-memory maps.

use std::fs::{File, OpenOptions};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::ProtFlags;
use protocol::grant::{GrantRef, PAGE_SIZE};
use vm_memory_with_xen::{FileOffset, GuestAddress, MmapRange, MmapRegion, MmapXenFlags};
use xen::mapped::MappedRange;
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::PageNumber;

/// The mechanism with which vm-memory maps pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mechanism {
    /// By frame numbers, through `/dev/xen/privcmd`.
    Foreign,
    /// By grant references, through `/dev/xen/gntdev`.
    Grant,
}

/// The handle through which vm-memory maps one guest's pages.
pub(crate) struct Regions {
    guest: DomId,
    file: Arc<File>,
    mechanism: Mechanism,
}

impl Regions {
    pub(crate) fn open(guest: DomId, mechanism: Mechanism) -> io::Result<Self> {
        let device = match mechanism {
            Mechanism::Foreign => "/dev/xen/privcmd",
            Mechanism::Grant => "/dev/xen/gntdev",
        };
        let file = OpenOptions::new().read(true).write(true).open(device).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot open {device}: {error}"))
        })?;
        Ok(Self { guest, file: Arc::new(file), mechanism })
    }

    /// Maps consecutive pages; vm-memory can map no others together.
    ///
    /// # Errors
    /// [`MapError::Refused`], also for pages that are not consecutive.
    pub(crate) fn map(
        &self,
        pages: &[PageNumber],
        access: Access,
    ) -> Result<RegionPages, MapError> {
        self.try_map(pages, access).map_err(|source| refused(pages, access, source))
    }

    fn try_map(&self, pages: &[PageNumber], access: Access) -> io::Result<RegionPages> {
        let [first, ..] = pages else { return Err(io::ErrorKind::InvalidInput.into()) };
        if !(first.0..).zip(pages).all(|(expected, page)| expected == page.0) {
            return Err(io::Error::other("the pages are not consecutive"));
        }
        let region = self.region(*first, pages.len(), access).map_err(io::Error::other)?;
        let address = NonNull::new(region.as_ptr()).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: range, alignment and access: vm-memory mapped that many whole pages at the page
        // aligned address, with that access. Lifetime: it unmaps them when the region is dropped,
        // which RegionPages owns together with the range. Aliasing: nothing else in this process
        // refers to them.
        let range = unsafe { MappedRange::new(address, region.size(), access) };
        Ok(RegionPages { range, _region: region })
    }

    fn region(
        &self,
        first: PageNumber,
        count: usize,
        access: Access,
    ) -> Result<MmapRegion, impl std::error::Error + Send + Sync + 'static> {
        let flags = match self.mechanism {
            Mechanism::Foreign => MmapXenFlags::FOREIGN,
            Mechanism::Grant => MmapXenFlags::GRANT,
        };
        let mut range = MmapRange::new(
            count * PAGE_SIZE as usize,
            Some(FileOffset::from_arc(Arc::clone(&self.file), 0)),
            GuestAddress(first.0 * PAGE_SIZE),
            flags.bits(),
            self.guest.0.into(),
        );
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        range.set_prot(protection.bits());
        MmapRegion::from_range(range)
    }
}

/// Creates the error for pages that cannot be mapped. [`MapError`] has no field for frame numbers,
/// so that they are in the field for references; the source names them.
pub(crate) fn refused(pages: &[PageNumber], access: Access, source: io::Error) -> MapError {
    let first = GrantRef(pages.first().map_or(0, |page| page.0 as u32));
    MapError::Refused { first, count: pages.len(), access, source }
}

/// Mapped pages.
pub(crate) struct RegionPages {
    range: MappedRange,
    /// Its drop unmaps the pages.
    _region: MmapRegion,
}

impl AsRef<MappedRange> for RegionPages {
    fn as_ref(&self) -> &MappedRange {
        &self.range
    }
}
