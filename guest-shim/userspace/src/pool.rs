//! The allocator of pages in a pool.

use protocol::grant::GrantRef;

/// The pages of a pool, in the order of their references, each in use or free.
#[derive(Debug)]
pub(crate) struct PagePool {
    references: Vec<GrantRef>,
    used: Vec<bool>,
}

/// Consecutive pages of the pool that have consecutive references [3.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolRun {
    /// The first page's position in the pool.
    pub(crate) first: usize,
    /// Number of pages.
    pub(crate) count: usize,
    /// The first page's reference.
    pub(crate) reference: GrantRef,
}

impl PagePool {
    /// Creates a pool whose pages are all free.
    pub(crate) fn new(references: &[GrantRef]) -> Self {
        Self { references: references.to_vec(), used: vec![false; references.len()] }
    }

    /// Takes `count` pages; `None` if the pool has no run of that many free pages.
    pub(crate) fn take(&mut self, count: usize) -> Option<PoolRun> {
        if count == 0 {
            return None;
        }
        let references = self.references.windows(count).zip(self.used.windows(count)).enumerate();
        let (first, reference) = references
            .filter(|(_, (_, used))| used.iter().all(|used| !used))
            .find_map(|(first, (references, _))| consecutive(references).map(|of| (first, of)))?;
        let run = PoolRun { first, count, reference };
        self.mark(run, true);
        Some(run)
    }

    /// Returns `count` pages to the pool, from the page with this reference on.
    pub(crate) fn give_back(&mut self, reference: GrantRef, count: usize) {
        if let Some(first) = self.position(reference) {
            self.mark(PoolRun { first, count, reference }, false);
        }
    }

    /// The position of the page with this reference in the pool.
    pub(crate) fn position(&self, reference: GrantRef) -> Option<usize> {
        self.references.iter().position(|known| *known == reference)
    }

    fn mark(&mut self, run: PoolRun, used: bool) {
        self.used.iter_mut().skip(run.first).take(run.count).for_each(|page| *page = used);
    }
}

/// The first of these references if they are consecutive.
fn consecutive(references: &[GrantRef]) -> Option<GrantRef> {
    let first = *references.first()?;
    let mut expected = (first.0..).map(GrantRef);
    references.iter().all(|reference| expected.next() == Some(*reference)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(references: &[u32]) -> PagePool {
        PagePool::new(&references.iter().copied().map(GrantRef).collect::<Vec<_>>())
    }

    #[test]
    fn spec_3_3_run_has_consecutive_references() {
        let mut pool = pool(&[8, 10, 11, 12, 20]);
        assert_eq!(pool.take(2), Some(PoolRun { first: 1, count: 2, reference: GrantRef(10) }));
        assert_eq!(pool.take(2), None, "8, 12 and 20 are not in a row");
        assert_eq!(pool.take(1).unwrap().reference, GrantRef(8));
        pool.give_back(GrantRef(10), 2);
        assert_eq!(pool.take(3), Some(PoolRun { first: 1, count: 3, reference: GrantRef(10) }));
    }

    #[test]
    fn impossible_runs_are_not_taken() {
        let mut pool = pool(&[1, 2]);
        assert_eq!((pool.take(0), pool.take(3)), (None, None));
        pool.give_back(GrantRef(99), 1);
        assert!(pool.take(2).is_some() && pool.take(1).is_none());
    }
}
