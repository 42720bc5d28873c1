//! What the driver is told of later, since nothing seems to wait for it: a few short packets that were sent.
//!
//! An interrupt for each costs a guest more than the packet. Mostly it finds them by itself before it would be told:
//! a network driver looks at what was sent when a packet came.

use super::service::PendingCompletions;
use crate::device::{BatchSummary, QueueSet};

/// Most requests that the driver is told of later.
const REQUESTS: u32 = 4;
/// Most bytes of these: more may be what a sender waits for.
const BYTES: u64 = 4096;
/// Most turns until it is told.
const TURNS: u32 = 16;

/// QueueContext in which requests were given back that the driver is told of later.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    queues: QueueSet,
    held: PendingCompletions,
    turns: u32,
}

impl Deferred {
    /// Puts off what was given back in a turn; `false` if it is too much for that.
    pub(super) fn add(&mut self, touched: &BatchSummary) -> bool {
        let requests = self.held.requests + touched.count;
        let bytes = self.held.bytes + touched.bytes;
        let few = requests <= REQUESTS && bytes <= BYTES;
        if few {
            self.queues.extend(touched.used);
            self.held = PendingCompletions { requests, bytes };
        }
        few
    }

    /// Whether there are any.
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

    /// Takes all of them out.
    pub(super) fn take(&mut self) -> QueueSet {
        std::mem::take(self).queues
    }

    /// Another turn begins; takes all of them out if it was put off long enough, or if nothing else happened.
    pub(super) fn pass(&mut self, idle: bool) -> QueueSet {
        self.turns += u32::from(!self.is_empty());
        if idle || self.turns > TURNS { self.take() } else { QueueSet::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(queue: usize, count: u32, bytes: u64) -> BatchSummary {
        let mut used = QueueSet::default();
        used.insert(queue);
        BatchSummary { used, count, bytes, ..BatchSummary::default() }
    }

    #[test]
    fn a_few_short_ones_are_put_off_and_no_more() {
        let mut deferred = Deferred::default();
        assert!((0..REQUESTS).all(|_| deferred.add(&touched(1, 1, 64))));
        assert!(!deferred.add(&touched(1, 1, 64)));
        assert!(deferred.remove(1) && deferred.is_empty() && !deferred.remove(1));
        assert!(!deferred.add(&touched(1, 1, BYTES + 1)));
        assert!(deferred.add(&touched(1, 1, BYTES)));
    }

    #[test]
    fn they_wait_for_an_idle_moment_or_so_many_turns() {
        let mut deferred = Deferred::default();
        // Turns without any do not count.
        assert!((0..2 * TURNS).all(|_| deferred.pass(false).is_empty()));
        deferred.add(&touched(3, 1, 64));
        assert!(deferred.pass(false).is_empty());
        assert_eq!(deferred.pass(true).iter().collect::<Vec<_>>(), [3]);
        deferred.add(&touched(3, 1, 64));
        assert!((0..TURNS).all(|_| deferred.pass(false).is_empty()));
        assert!(!deferred.pass(false).is_empty() && deferred.is_empty());
    }
}
