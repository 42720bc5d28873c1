//! Random numbers that a seed repeats.

/// A generator: splitmix64.
#[derive(Clone)]
pub(super) struct Random(u64);

impl Random {
    /// The generator of the case with this number.
    pub(super) fn new(seed: u64, case: u64) -> Self {
        let mut first = Self(seed);
        Self(first.next().wrapping_add(case))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Whether an event of the probability 1 to `parts` occurs.
    pub(super) fn one_of(&mut self, parts: usize) -> bool {
        self.below(parts) == 0
    }

    /// One of these, of which there is at least one.
    pub(super) fn choose<'c, T>(&mut self, all: &'c [T]) -> &'c T {
        &all[self.below(all.len())]
    }
}
