//! The set of queues with a delayed in-band event, and the size of queues.

/// Queues with a number below this fit into a set. The transport cannot delay the in-band events of
/// others.
pub const MAX_QUEUES: u32 = 256;

/// The maximum number of entries with which the driver sets a queue up (SPEC 7.5).
pub const MAX_ENTRIES: u32 = 1024;

/// The number of entries with which the driver sets a queue up if the device allows `max_size`: a
/// power of two, as a split ring requires, or 0 if the queue does not exist.
pub const fn ring_size(max_size: u32) -> u32 {
    let most = if max_size < MAX_ENTRIES { max_size } else { MAX_ENTRIES };
    match most.checked_ilog2() {
        Some(exponent) => 1 << exponent,
        None => 0,
    }
}

const WORDS: usize = MAX_QUEUES as usize / 64;

/// A set of queue numbers below [`MAX_QUEUES`].
#[derive(Debug)]
pub(super) struct PendingQueues([u64; WORDS]);

impl PendingQueues {
    pub(super) const EMPTY: Self = Self([0; WORDS]);

    /// Adds a queue number; returns `false` if it is not below [`MAX_QUEUES`].
    pub(super) fn insert(&mut self, index: u32) -> bool {
        self.word(index).is_some_and(|word| {
            *word |= 1 << (index % 64);
            true
        })
    }

    pub(super) fn remove(&mut self, index: u32) {
        if let Some(word) = self.word(index) {
            *word &= !(1 << (index % 64));
        }
    }

    /// The lowest number in the set.
    pub(super) fn first(&self) -> Option<u32> {
        self.0
            .iter()
            .zip((0..).step_by(64))
            .find_map(|(word, base)| (*word != 0).then(|| base + word.trailing_zeros()))
    }

    fn word(&mut self, index: u32) -> Option<&mut u64> {
        self.0.get_mut((index / 64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_7_ring_size_is_a_power_of_two() {
        let sizes = [0, 1, 2, 3, 255, 256, 1023, 1025, u32::MAX].map(ring_size);
        assert_eq!(sizes, [0, 1, 2, 2, 128, 256, 512, 1024, 1024]);
    }

    #[test]
    fn first_returns_the_lowest_number() {
        let mut set = PendingQueues::EMPTY;
        assert_eq!(set.first(), None);
        for index in [255, 64, 0, 63] {
            assert!(set.insert(index));
        }
        assert!(!set.insert(MAX_QUEUES));
        for index in [0, 63, 64, 255] {
            assert_eq!(set.first(), Some(index));
            set.remove(index);
        }
        assert_eq!(set.first(), None);
    }
}
