//! A guest's memory by its frames: vm-memory's foreign mapping.
//!
//! vm-memory has the hypervisor's answer for each frame, and does not look at it: the first access
//! to a page that was refused then ends the process (SIGBUS). So the hypervisor is asked for each
//! frame before.

use std::io;

use foreign_map::Privcmd;
use protocol::grant::PAGE_SIZE;
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::PageNumber;

use crate::region::{Mechanism, RegionPages, Regions, refused};

/// All of one guest's memory, as far as the hypervisor lets this domain map it.
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

    /// Maps frames that follow one another.
    ///
    /// # Errors
    /// As [`Regions::map`].
    pub(crate) fn map(
        &self,
        frames: &[PageNumber],
        access: Access,
    ) -> Result<RegionPages, MapError> {
        let asked = frames.iter().try_for_each(|frame| self.ask(*frame));
        asked.map_err(|source| refused(frames, access, source))?;
        self.regions.map(frames, access)
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
}
