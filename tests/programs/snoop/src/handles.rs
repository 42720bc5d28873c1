//! The handles to Xen, with somebody looking over the shoulder of whoever uses them.

use std::io;
use std::sync::Arc;

use protocol::grant::{GrantRef, PAGE_SIZE};
use xen::mapped::MappedRange;
use xen::{
    Access, CopyDirection, CopyError, CopySegment, DomId, GrantTable, MapError, StoreError, Xen,
};

use crate::search::Search;

/// Another's handles, whose mappings are searched.
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

/// One guest's grants.
pub(crate) struct SnoopGrants<G> {
    grants: G,
    search: Arc<Search>,
}

impl<G: GrantTable> GrantTable for SnoopGrants<G> {
    type Pages = SnoopPages<G::Pages>;

    fn map(&self, references: &[GrantRef], access: Access) -> Result<Self::Pages, MapError> {
        let pages = self.grants.map(references, access)?;
        let pages = SnoopPages { pages, count: references.len(), search: Arc::clone(&self.search) };
        pages.look();
        Ok(pages)
    }

    /// What may be copied may be mapped as well, and is looked at whole.
    fn copy(&self, way: CopyDirection, segments: &[CopySegment<'_>]) -> Result<(), CopyError> {
        for segment in segments {
            // What cannot be mapped cannot be looked at.
            drop(self.map(&[segment.reference], Access::ReadOnly));
        }
        self.grants.copy(way, segments)
    }
}

/// Mapped pages: searched when they are mapped, and again before they are unmapped.
pub(crate) struct SnoopPages<P: AsRef<MappedRange>> {
    pages: P,
    count: usize,
    search: Arc<Search>,
}

impl<P: AsRef<MappedRange>> SnoopPages<P> {
    /// Looks at all of every page, whatever part of it was meant for the device.
    fn look(&self) {
        let mut bytes = vec![0; self.count * PAGE_SIZE as usize];
        if let Some(mapped) = self.pages.as_ref().slice(0, bytes.len()) {
            mapped.copy_to(bytes.as_mut_slice());
            self.search.look(&bytes);
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
        self.look();
    }
}
