//! A guest's memory by its frames: vm-memory's foreign mapping.
//!
//! vm-memory has the hypervisor's answer for each frame, and does not look at it: the first access to a
//! page that was refused then ends the process (SIGBUS). So the hypervisor is asked for each frame before.

use std::fs::{File, OpenOptions};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use backend::platform::PageNumber;
use backend::xen::mapped::MappedRange;
use backend::xen::{Access, DomId, MapError};
use foreign_map::Privcmd;
use nix::sys::mman::ProtFlags;
use protocol::grant::{GrantRef, PAGE_SIZE};
use vm_memory_with_xen::{FileOffset, GuestAddress, MmapRange, MmapRegion, MmapXenFlags};

const DEVICE: &str = "/dev/xen/privcmd";

/// All of one guest's memory, as far as the hypervisor lets this domain map it.
pub(crate) struct Foreign {
    guest: DomId,
    file: Arc<File>,
    privcmd: Privcmd,
}

impl Foreign {
    pub(crate) fn open(guest: DomId) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot open {DEVICE}: {error}"))
        })?;
        let privcmd = Privcmd::open().map_err(|error| io::Error::other(format!("{error:#}")))?;
        Ok(Self { guest, file: Arc::new(file), privcmd })
    }

    /// Maps frames that follow one another, the only ones that vm-memory maps together.
    ///
    /// # Errors
    /// [`MapError::Refused`], also for frames that do not follow one another.
    pub(crate) fn map(
        &self,
        frames: &[PageNumber],
        access: Access,
    ) -> Result<ForeignPages, MapError> {
        self.try_map(frames, access).map_err(|source| refused(frames, access, source))
    }

    /// A copy of one page.
    ///
    /// # Errors
    /// As [`Foreign::map`].
    pub(crate) fn read_page(&self, frame: PageNumber) -> Result<Vec<u8>, MapError> {
        let pages = self.map(&[frame], Access::ReadOnly)?;
        let mut page = vec![0; PAGE_SIZE as usize];
        if let Some(mapped) = pages.as_ref().slice(0, page.len()) {
            mapped.copy_to(page.as_mut_slice());
        }
        Ok(page)
    }

    fn try_map(&self, frames: &[PageNumber], access: Access) -> io::Result<ForeignPages> {
        let [first, ..] = frames else { return Err(io::ErrorKind::InvalidInput.into()) };
        if !(first.0..).zip(frames).all(|(expected, frame)| expected == frame.0) {
            return Err(io::Error::other("frames that do not follow one another"));
        }
        for frame in frames {
            self.ask(*frame)?;
        }
        let region = self.region(*first, frames.len(), access).map_err(io::Error::other)?;
        let address = NonNull::new(region.as_ptr()).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: vm-memory mapped that many whole pages there, page aligned and with that access, and
        // unmaps them when the region is dropped, which lies beside the range in ForeignPages. Nothing
        // else refers to them.
        let range = unsafe { MappedRange::new(address, region.size(), access) };
        Ok(ForeignPages { range, _region: region })
    }

    /// Has the hypervisor say whether this domain may map a frame.
    fn ask(&self, frame: PageNumber) -> io::Result<()> {
        match self.privcmd.read_page(self.guest.0, frame.0) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!("{error:#}");
                Err(io::Error::other(format!("{error:#}")))
            }
        }
    }

    fn region(
        &self,
        first: PageNumber,
        count: usize,
        access: Access,
    ) -> Result<MmapRegion, impl std::error::Error + Send + Sync + 'static> {
        let file = FileOffset::from_arc(Arc::clone(&self.file), 0);
        let mut range = MmapRange::new(
            count * PAGE_SIZE as usize,
            Some(file),
            GuestAddress(first.0 * PAGE_SIZE),
            MmapXenFlags::FOREIGN.bits(),
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

/// Frames are named as if they were grants, for want of another word: the source says what they are.
pub(crate) fn refused(frames: &[PageNumber], access: Access, source: io::Error) -> MapError {
    let first = GrantRef(frames.first().map_or(0, |frame| frame.0 as u32));
    MapError::Refused { first, count: frames.len(), access, source }
}

/// Frames that are mapped.
pub(crate) struct ForeignPages {
    range: MappedRange,
    /// Unmaps them.
    _region: MmapRegion,
}

impl AsRef<MappedRange> for ForeignPages {
    fn as_ref(&self) -> &MappedRange {
        &self.range
    }
}
