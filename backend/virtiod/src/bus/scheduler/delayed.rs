//! Notifications that are delayed because nothing seems to wait for them: of a few short packets
//! that were sent.
//!
//! An interrupt for each costs a guest more than the packet. Mostly the driver finds the used
//! buffers by itself before the delay is over: a network driver looks at sent packets when one is
//! received.

use super::PendingCompletions;
use crate::device::{BatchSummary, QueueSet};

/// Most used buffers whose notification is delayed.
const REQUESTS: u32 = 4;
/// Most bytes of these: a sender may wait for more.
const BYTES: u64 = 4096;
/// Most iterations until the driver is notified, and most notifications of other queues: at each of
/// them the driver may look.
const ITERATIONS: u32 = 16;

/// Queues whose notification is delayed.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    queues: QueueSet,
    pending: PendingCompletions,
    iterations: u32,
}

impl Delayed {
    /// Delays the notification of a batch; `false` if it is too much for that.
    pub(super) fn add(&mut self, batch: &BatchSummary) -> bool {
        let pending = self.pending.plus(batch);
        let few = pending.requests <= REQUESTS && pending.bytes <= BYTES;
        if few {
            self.queues.extend(batch.used);
            self.pending = pending;
        }
        few
    }

    /// Whether no notification is delayed.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Takes a queue out; whether it was there.
    pub(super) fn remove(&mut self, index: usize) -> bool {
        let had = self.queues.remove(index);
        if self.queues.is_empty() {
            *self = Self::default();
        }
        had
    }

    /// The driver is notified of other queues: most find all used buffers then. Those of the
    /// delayed queues so far do not count any more towards the most.
    pub(super) fn driver_looks(&mut self) {
        if !self.is_empty() && self.iterations < ITERATIONS {
            self.iterations += 1;
            self.pending = PendingCompletions::default();
        }
    }

    /// Takes all queues out.
    pub(super) fn take(&mut self) -> QueueSet {
        std::mem::take(self).queues
    }

    /// Another iteration begins. Takes all queues out if they were delayed long enough, or if the
    /// thread woke up for nothing else.
    pub(super) fn iterate(&mut self, idle: bool) -> QueueSet {
        self.iterations += u32::from(!self.is_empty());
        if idle || self.iterations > ITERATIONS { self.take() } else { QueueSet::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(queue: usize, count: u32, bytes: u64) -> BatchSummary {
        let mut used = QueueSet::default();
        used.insert(queue);
        BatchSummary { used, count, bytes, ..BatchSummary::default() }
    }

    #[test]
    fn a_few_short_ones_are_delayed_and_no_more() {
        let mut delayed = Delayed::default();
        assert!((0..REQUESTS).all(|_| delayed.add(&batch(1, 1, 64))));
        assert!(!delayed.add(&batch(1, 1, 64)));
        assert!(delayed.remove(1) && delayed.is_empty() && !delayed.remove(1));
        assert!(!delayed.add(&batch(1, 1, BYTES + 1)));
        assert!(delayed.add(&batch(1, 1, BYTES)));
    }

    #[test]
    fn driver_that_is_notified_of_others_looks_at_them_too() {
        let mut delayed = Delayed::default();
        let added = (0..1000).take_while(|_| {
            delayed.driver_looks();
            delayed.add(&batch(1, 1, 64))
        });
        // Not for ever: a driver may not look.
        assert_eq!(added.count() as u32, 1 + ITERATIONS + REQUESTS - 1);
    }

    #[test]
    fn they_wait_for_an_idle_moment_or_so_many_iterations() {
        let mut delayed = Delayed::default();
        // Iterations without any do not count.
        assert!((0..2 * ITERATIONS).all(|_| delayed.iterate(false).is_empty()));
        delayed.add(&batch(3, 1, 64));
        assert!(delayed.iterate(false).is_empty());
        assert_eq!(delayed.iterate(true).iter().collect::<Vec<_>>(), [3]);
        delayed.add(&batch(3, 1, 64));
        assert!((0..ITERATIONS).all(|_| delayed.iterate(false).is_empty()));
        assert!(!delayed.iterate(false).is_empty() && delayed.is_empty());
    }
}
