//! Compares a run with the baseline report by their ratios, because rates depend on the day.

use std::fmt;

use super::report::{Comparison, Report, Server};
use super::work;

/// A relative change of a ratio up to this, in either direction, counts as scatter.
const NOISE: f64 = 0.1;

/// A ratio in the baseline report (`then`) and in the run (`now`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    what: String,
    then: f64,
    now: f64,
}

impl Difference {
    /// Returns whether the ratio decreased.
    pub(crate) fn is_worse(&self) -> bool {
        self.now < self.then
    }

    /// Returns whether the change exceeds the scatter of measurements.
    pub(crate) fn is_noticeable(&self) -> bool {
        (self.now / self.then - 1.0).abs() > NOISE
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, then, now } = self;
        let percent = (now / then - 1.0) * 100.0;
        write!(f, "{what}: {now:.2} times theirs, {then:.2} before ({percent:+.0} %)")
    }
}

/// Compares the ratios that both reports have, in the order of `now`.
pub(crate) fn differences(then: &Report, now: &Report) -> Vec<Difference> {
    let others = |comparison: &Comparison| -> Vec<Difference> {
        let before = then.comparisons.iter().find(|before| before.task == comparison.task);
        let servers = comparison.servers.iter().filter(|server| !server.is_ours());
        let difference = |server: &Server| {
            let before = before?.servers.iter().find(|before| before.name == server.name)?;
            let what = describe(comparison, server);
            Some(Difference { what, then: before.ratio?, now: server.ratio? })
        };
        servers.filter_map(difference).collect()
    };
    now.comparisons.iter().flat_map(others).collect()
}

fn describe(comparison: &Comparison, server: &Server) -> String {
    let task = &comparison.task;
    let work = work::find(&task.work).map_or(task.work.as_str(), |work| work.name);
    let (guest, target) = (task.guest.to_uppercase(), work::target_name(&task.target));
    format!("{guest}, {target}, {work}, {}", work::server_name(&server.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{report, sample};

    fn of(ours: f64) -> Report {
        let samples =
            [sample("randread-4k-qd1", "ours", ours), sample("randread-4k-qd1", "ide", 10.0)];
        report(&samples)
    }

    #[test]
    fn smaller_ratio_is_worse() {
        let found = differences(&of(40.0), &of(20.0));
        assert_eq!(found.len(), 1);
        assert!(found[0].is_worse() && found[0].is_noticeable());
        assert_eq!(
            found[0].to_string(),
            "PVH, a RAM disk, 4 KiB random read, depth 1, QEMU's IDE: 2.00 times theirs, 4.00 before (-50 %)"
        );
    }

    #[test]
    fn small_changes_and_new_works_are_no_differences() {
        assert!(!differences(&of(40.0), &of(41.0))[0].is_noticeable());
        assert!(differences(&Report::default(), &of(40.0)).is_empty());
    }
}
