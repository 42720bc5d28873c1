//! Memory that the kernel has looked up once and keeps: transfers from and to it by direct I/O need
//! no look-up of each page, which is dear for mapped grants.
//!
//! Linux refuses that for mapped grants before 6.5, and then each transfer looks its pages up.

use std::collections::BTreeMap;

use io_uring::IoUring;

use crate::owned::OwnedVector;

/// Maximum number of registered regions.
const MOST_REGIONS: u16 = 256;
/// Maximum number of operations that a transfer is divided into, so that each is in one region.
const MOST_PARTS: usize = 16;

/// Whether the kernel registers memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Support {
    #[default]
    Untried,
    Given,
    Refused,
}

/// The regions that are registered with one ring.
#[derive(Default)]
pub(crate) struct Registered {
    support: Support,
    /// Length and index of each region, by its address.
    regions: BTreeMap<usize, (usize, u16)>,
    /// The regions by index, each with a share of its owner.
    owners: Vec<OwnedVector>,
}

impl Registered {
    /// Whether another region may be registered.
    pub(crate) fn has_room(&self) -> bool {
        self.support != Support::Refused && self.owners.len() < usize::from(MOST_REGIONS)
    }

    /// The index of the region that contains all bytes of a piece.
    pub(crate) fn index_of(&self, piece: &libc::iovec) -> Option<u16> {
        let start = piece.iov_base as usize;
        let (region, (length, index)) = self.regions.range(..=start).next_back()?;
        let skipped = start - region;
        (skipped < *length && piece.iov_len <= length - skipped).then_some(*index)
    }

    /// Registers a region, which is one piece. A refusal is final.
    pub(crate) fn add(&mut self, ring: &IoUring, region: OwnedVector) {
        let [piece] = *region.vectors() else { return };
        if !self.has_room() || self.index_of(&piece).is_some() {
            return;
        }
        let submitter = ring.submitter();
        if self.support == Support::Untried {
            let table = submitter.register_buffers_sparse(MOST_REGIONS.into());
            self.support = if table.is_ok() { Support::Given } else { Support::Refused };
        }
        let index = self.owners.len() as u16;
        // SAFETY: range and lifetime: the piece is memory that the region's owner keeps reachable,
        // and `owners` keeps a share of it until the kernel has forgotten the region. Aliasing: the
        // kernel only notes the pages; operations on them are in `Operation`.
        let added = self.support == Support::Given
            && unsafe { submitter.register_buffers_update(index.into(), &[piece], None) }.is_ok();
        if !added {
            tracing::debug!("the kernel registers no mapped grants; each transfer looks them up");
            self.support = Support::Refused;
            return;
        }
        if self.owners.is_empty() {
            tracing::debug!("the kernel registers mapped grants");
        }
        self.regions.insert(piece.iov_base as usize, (piece.iov_len, index));
        self.owners.push(region);
    }

    /// Divides a vector so that each part is one piece in one region; returns the vector itself if
    /// that needs too many parts or a piece is not registered.
    pub(crate) fn divide(&self, vector: OwnedVector) -> Vec<OwnedVector> {
        let pieces = vector.vectors();
        let is_registered = |piece| self.index_of(piece).is_some();
        if pieces.len() > 1 && pieces.len() <= MOST_PARTS && pieces.iter().all(is_registered) {
            return vector.pieces();
        }
        vec![vector]
    }

    /// Has the kernel forget all regions. No operation is in flight.
    pub(crate) fn clear(&mut self, ring: &IoUring) {
        if self.owners.is_empty() {
            return;
        }
        if let Err(error) = ring.submitter().unregister_buffers() {
            // The kernel may still hold the pages: so does this.
            tracing::warn!(%error, "cannot unregister memory; it stays mapped");
            std::mem::forget(std::mem::take(&mut self.owners));
        }
        *self = Self { support: self.next_support(), ..Self::default() };
    }

    fn next_support(&self) -> Support {
        match self.support {
            Support::Refused => Support::Refused,
            // The table is gone too.
            Support::Untried | Support::Given => Support::Untried,
        }
    }
}
