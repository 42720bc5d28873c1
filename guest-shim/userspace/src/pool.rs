//! Which pages of a pool are in use.

use protocol::grant::GrantRef;

/// Pages with their references, in rising order.
#[derive(Debug)]
pub(crate) struct PagePool {
    references: Vec<GrantRef>,
    used: Vec<bool>,
}

/// Pages that follow one another in the pool, and whose references do [3.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolRun {
    /// The first page's position in the pool.
    pub(crate) first: usize,
    /// How many pages.
    pub(crate) count: usize,
    /// The first page's reference.
    pub(crate) reference: GrantRef,
}

impl PagePool {
    /// A pool of which nothing is in use.
    pub(crate) fn new(references: &[GrantRef]) -> Self {
        Self { references: references.to_vec(), used: vec![false; references.len()] }
    }

    /// Takes `count` pages; `None` where there are no such pages in a row.
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

    /// Gives pages back, by the first one's reference.
    pub(crate) fn give_back(&mut self, reference: GrantRef, count: usize) {
        if let Some(first) = self.position(reference) {
            self.mark(PoolRun { first, count, reference }, false);
        }
    }

    /// The position of the page with a reference.
    pub(crate) fn position(&self, reference: GrantRef) -> Option<usize> {
        self.references.iter().position(|known| *known == reference)
    }

    fn mark(&mut self, run: PoolRun, used: bool) {
        self.used.iter_mut().skip(run.first).take(run.count).for_each(|page| *page = used);
    }
}

/// The first of references that follow one another.
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
    fn spec_3_3_pages_of_a_run_have_consecutive_references() {
        let mut pool = pool(&[8, 10, 11, 12, 20]);
        assert_eq!(pool.take(2), Some(PoolRun { first: 1, count: 2, reference: GrantRef(10) }));
        assert_eq!(pool.take(2), None, "8, 12 and 20 are not in a row");
        assert_eq!(pool.take(1).unwrap().reference, GrantRef(8));
        pool.give_back(GrantRef(10), 2);
        assert_eq!(pool.take(3), Some(PoolRun { first: 1, count: 3, reference: GrantRef(10) }));
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let mut pool = pool(&[1, 2]);
        assert_eq!((pool.take(0), pool.take(3)), (None, None));
        pool.give_back(GrantRef(99), 1);
        assert!(pool.take(2).is_some() && pool.take(1).is_none());
    }
}
