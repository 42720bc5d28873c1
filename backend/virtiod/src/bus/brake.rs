//! Events that bring nothing to do.
//!
//! An event costs this domain a wake-up, many times what it costs the guest to send it. A port is opened
//! for the next event when this one has been dealt with, so that events that bring work are as many as
//! the work; those that bring none are taken ever more rarely (XSA-332). A driver makes a few of them by
//! itself: its doorbell may come when its request was found already.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use xen::LocalPort;

/// Iterations in vain that are not held against the guest.
const FREE: u32 = 16;
/// How long ports stay closed after these.
const WAITS: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(64));

/// What an iteration brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A request, a message, or something from this side.
    Some,
    /// Nothing.
    None,
}

/// Ports that are kept closed.
#[derive(Debug)]
pub(super) struct Brake {
    /// Iterations in vain, one after another.
    vain: u32,
    waits: Backoff,
    held: Vec<LocalPort>,
    until: Option<Instant>,
}

impl Default for Brake {
    fn default() -> Self {
        Self { vain: 0, waits: WAITS, held: Vec::new(), until: None }
    }
}

impl Brake {
    /// An iteration has dealt with events on `ports`. Leaves there those that may be opened now, and adds
    /// those that were kept closed until now. The time is asked for only where it matters.
    pub(super) fn pass(
        &mut self,
        ports: &mut Vec<LocalPort>,
        progress: Progress,
        now: impl Fn() -> Instant,
    ) {
        match progress {
            Progress::Some => {
                (self.vain, self.waits) = (0, WAITS);
                self.until = None;
            }
            Progress::None if !ports.is_empty() => {
                self.vain = self.vain.saturating_add(1);
                if self.vain > FREE {
                    self.held.append(ports);
                    self.until.get_or_insert_with(|| now() + self.waits.take());
                }
            }
            Progress::None => {}
        }
        if self.until.is_none_or(|until| until <= now()) {
            self.until = None;
            ports.append(&mut self.held);
        }
    }

    /// How long until ports are opened that are kept closed; `None` if there are none.
    pub(super) fn until_open(&self, now: impl Fn() -> Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOORBELL: LocalPort = LocalPort(3);
    const OTHER: LocalPort = LocalPort(4);

    /// The ports that are opened after an iteration with events on `ports`.
    fn pass(brake: &mut Brake, ports: &[LocalPort], progress: Progress, now: Instant) -> Vec<u32> {
        let mut ports = ports.to_vec();
        brake.pass(&mut ports, progress, || now);
        ports.iter().map(|port| port.0).collect()
    }

    #[test]
    fn events_in_vain_are_taken_ever_more_rarely_and_work_ends_that() {
        let (mut brake, mut now) = (Brake::default(), Instant::now());
        for _ in 0..FREE {
            assert_eq!(pass(&mut brake, &[DOORBELL], Progress::None, now), [3]);
        }
        for wait in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(pass(&mut brake, &[DOORBELL], Progress::None, now), [0; 0]);
            let left = brake.until_open(|| now).unwrap();
            assert_eq!(left.as_millis(), wait);
            now += left;
            assert_eq!(pass(&mut brake, &[], Progress::None, now), [3]);
            assert_eq!(brake.until_open(|| now), None);
        }
        assert_eq!(pass(&mut brake, &[DOORBELL], Progress::None, now), [0; 0]);
        assert_eq!(pass(&mut brake, &[OTHER], Progress::Some, now), [4, 3]);
        assert_eq!(pass(&mut brake, &[DOORBELL], Progress::None, now), [3]);
    }

    #[test]
    fn iterations_without_events_are_nobodys_fault() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        (0..100).for_each(|_| assert!(pass(&mut brake, &[], Progress::None, now).is_empty()));
        assert_eq!(pass(&mut brake, &[DOORBELL], Progress::None, now), [3]);
    }
}
