//! Sets of a device's queues.

/// A set of queue numbers. No device has more than 64 queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSet(u64);

impl QueueSet {
    /// Maximum number of queues of a device.
    pub const LIMIT: usize = u64::BITS as usize;

    fn bit(index: usize) -> u64 {
        debug_assert!(index < Self::LIMIT);
        u32::try_from(index).ok().and_then(|index| 1u64.checked_shl(index)).unwrap_or(0)
    }

    /// The set that contains only queue `index`.
    pub fn of(index: usize) -> Self {
        Self(Self::bit(index))
    }

    /// Adds queue `index`.
    pub fn insert(&mut self, index: usize) {
        self.0 |= Self::bit(index);
    }

    /// Removes queue `index`; returns whether the set contained it.
    pub fn remove(&mut self, index: usize) -> bool {
        let before = self.0;
        self.0 &= !Self::bit(index);
        self.0 != before
    }

    /// Adds all queues of another set.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// The queues of this set that are not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The queues that are in both sets.
    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set contains no queue.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the set and leaves an empty one.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// The queue numbers in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let lowest = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(lowest)
        })
    }
}

impl FromIterator<usize> for QueueSet {
    fn from_iter<I: IntoIterator<Item = usize>>(queues: I) -> Self {
        let mut set = Self::default();
        queues.into_iter().for_each(|index| set.insert(index));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_set_yields_each_queue_once_in_order() {
        let mut set = QueueSet::default();
        [63, 0, 5, 0].into_iter().for_each(|index| set.insert(index));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(set.remove(5) && !set.remove(5));
        let mut other = QueueSet::default();
        other.insert(63);
        assert_eq!(set.without(other).iter().collect::<Vec<_>>(), [0]);
        assert_eq!(set.within(other).iter().collect::<Vec<_>>(), [63]);
        other.extend(set.take());
        assert!(set.is_empty());
        assert_eq!(other.iter().collect::<Vec<_>>(), [0, 63]);
    }
}
