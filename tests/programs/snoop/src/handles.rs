//! Xen handles that search every page which their user maps or copies.

use std::io;
use std::sync::Arc;

use protocol::grant::{GrantRef, PAGE_SIZE};
use xen::mapped::MappedRange;
use xen::{
    Access, CopyDirection, CopyError, CopySegment, DomId, GrantTable, MapError, StoreError, Xen,
};

use crate::search::Search;

/// Handles that forward to `X` and search its mappings.
#[derive(Clone)]
pub(crate) struct Snoop<X> {
    xen: X,
    search: Arc<Search>,
}

impl<X: Xen> Snoop<X> {
    pub(crate) fn new(xen: X, search: Arc<Search>) -> Self {
        Self { xen, search }
    }
}

impl<X: Xen> Xen for Snoop<X> {
    type Grants = SnoopGrants<X::Grants>;
    type Events = X::Events;
    type Store = X::Store;

    fn grants(&self, guest: DomId) -> io::Result<Self::Grants> {
        Ok(SnoopGrants { grants: self.xen.grants(guest)?, search: Arc::clone(&self.search) })
    }

    fn events(&self, guest: DomId) -> io::Result<X::Events> {
        self.xen.events(guest)
    }

    fn store(&self) -> Result<X::Store, StoreError> {
        self.xen.store()
    }
}

/// The grants of one guest.
pub(crate) struct SnoopGrants<G> {
    grants: G,
    search: Arc<Search>,
}

impl<G: GrantTable> GrantTable for SnoopGrants<G> {
    type Pages = SnoopPages<G::Pages>;

    fn map(&self, references: &[GrantRef], access: Access) -> Result<Self::Pages, MapError> {
        let pages = self.grants.map(references, access)?;
        let pages = SnoopPages { pages, count: references.len(), search: Arc::clone(&self.search) };
        pages.search_pages();
        Ok(pages)
    }

    /// Maps and searches each page as a whole before the copy: a backend that may copy a page may
    /// also map it.
    fn copy(
        &self,
        direction: CopyDirection,
        segments: &[CopySegment<'_>],
    ) -> Result<(), CopyError> {
        for segment in segments {
            // A page that cannot be mapped cannot be searched; the copy reports the error.
            drop(self.map(&[segment.reference], Access::ReadOnly));
        }
        self.grants.copy(direction, segments)
    }
}

/// Mapped pages, which are searched after they are mapped and again before they are unmapped.
pub(crate) struct SnoopPages<P: AsRef<MappedRange>> {
    pages: P,
    count: usize,
    search: Arc<Search>,
}

impl<P: AsRef<MappedRange>> SnoopPages<P> {
    /// Searches all bytes of every page, also those outside of the driver's buffer.
    fn search_pages(&self) {
        let mut bytes = vec![0; self.count * PAGE_SIZE as usize];
        if let Some(mapped) = self.pages.as_ref().slice(0, bytes.len()) {
            mapped.copy_to(bytes.as_mut_slice());
            self.search.search_pages(&bytes);
        }
    }
}

impl<P: AsRef<MappedRange>> AsRef<MappedRange> for SnoopPages<P> {
    fn as_ref(&self) -> &MappedRange {
        self.pages.as_ref()
    }
}

impl<P: AsRef<MappedRange>> Drop for SnoopPages<P> {
    fn drop(&mut self) {
        self.search_pages();
    }
}
