//! Access to a guest's memory by frame numbers: vm-memory's foreign mapping.
//!
//! vm-memory gets the hypervisor's result for each frame, but does not check it; the first access
//! to a refused page then ends the process with SIGBUS. So this module asks the hypervisor about
//! each frame first.

use std::io;

use foreign_map::Privcmd;
use protocol::grant::PAGE_SIZE;
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::PageNumber;

use crate::region::{Mechanism, RegionPages, Regions, refused};

/// The memory of one guest, as far as the hypervisor allows this domain to map it.
pub(crate) struct Foreign {
    guest: DomId,
    regions: Regions,
    privcmd: Privcmd,
}

impl Foreign {
    pub(crate) fn open(guest: DomId) -> io::Result<Self> {
        let regions = Regions::open(guest, Mechanism::Foreign)?;
        let privcmd = Privcmd::open().map_err(|error| io::Error::other(format!("{error:#}")))?;
        Ok(Self { guest, regions, privcmd })
    }

    /// Maps consecutive frames.
    ///
    /// # Errors
    /// [`MapError::Refused`] if the hypervisor refuses a frame; else as [`Regions::map`].
    pub(crate) fn map(
        &self,
        frames: &[PageNumber],
        access: Access,
    ) -> Result<RegionPages, MapError> {
        let asked = frames.iter().try_for_each(|frame| self.ask(*frame));
        asked.map_err(|source| refused(frames, access, source))?;
        self.regions.map(frames, access)
    }

    /// Copies one page.
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

    /// Asks the hypervisor whether this domain may map a frame.
    fn ask(&self, frame: PageNumber) -> io::Result<()> {
        match self.privcmd.read_page(self.guest.0, frame.0) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!("{error:#}");
                Err(io::Error::other(format!("{error:#}")))
            }
        }
    }
}
