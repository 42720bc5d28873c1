//! The driver's side of the pool.

use protocol::grant::GrantRef;
use protocol::message::{Request, Response, ShareOutcome, UnshareOutcome};
use protocol::pool::PoolPage;

use super::Driver;
use xen::Access;
use xen_sim::GuestPage;

/// Pages shared for the pool.
#[derive(Clone)]
pub(in crate::tests) struct Pooled {
    pub(in crate::tests) first: PoolPage,
    pub(in crate::tests) pages: Vec<GuestPage>,
    reference: GrantRef,
}

impl Driver {
    /// Sends SHARE_PAGES; returns its outcome.
    pub(in crate::tests) fn ask_share(
        &mut self,
        first: PoolPage,
        count: u32,
        reference: GrantRef,
    ) -> ShareOutcome {
        let request = Request::SharePages { first, count, reference };
        self.ask(request, |answer| match answer {
            Response::SharePages { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        })
    }

    /// Sends UNSHARE_PAGES; returns its outcome.
    pub(in crate::tests) fn ask_unshare(&mut self, first: PoolPage, count: u32) -> UnshareOutcome {
        self.ask(Request::UnsharePages { first, count }, |answer| match answer {
            Response::UnsharePages { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        })
    }

    /// Grants pages and sends SHARE_PAGES for them. The grants end with the driver's own.
    pub(in crate::tests) fn try_share_pool(
        &mut self,
        first: PoolPage,
        count: u32,
        access: Access,
    ) -> (Pooled, ShareOutcome) {
        let pages: Vec<_> = (0..count).map(|_| self.guest.allocate()).collect();
        let reference = self.guest.grant(&pages, access);
        let pooled = Pooled { first, pages, reference };
        self.pool.push(pooled.clone());
        let outcome = self.ask_share(first, count, reference);
        (pooled, outcome)
    }

    /// Adds pages to the pool.
    pub(in crate::tests) fn share_pool(&mut self, first: PoolPage, count: u32) -> Pooled {
        let (pooled, outcome) = self.try_share_pool(first, count, Access::ReadWrite);
        assert_eq!(outcome, ShareOutcome::Shared);
        pooled
    }

    /// Ends the grants of the pages that were shared last, which must not be mapped any more.
    pub(in crate::tests) fn free_newest(&mut self) {
        let pooled = self.pool.pop().unwrap();
        self.guest.revoke(pooled.reference, pooled.pages.len());
    }

    /// Ends the grants of the pool, which must not be mapped any more.
    pub(in crate::tests) fn free_pool(&mut self) {
        for pooled in std::mem::take(&mut self.pool) {
            self.guest.revoke(pooled.reference, pooled.pages.len());
        }
    }
}
