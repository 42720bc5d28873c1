//! What the project wants to reach: the least ratio of ours to theirs, by work.

use super::report::Report;
use super::sample::Task;
use super::work;

/// Servers that are held against together: the fastest of them counts.
struct Bar {
    servers: &'static [&'static str],
    /// What a work's key begins with, or ends with.
    works: Part,
    least: f64,
}

enum Part {
    Any,
    Begins(&'static str),
    Contains(&'static str),
}

const EMULATED: &[&str] = &["ide", "ahci", "nvme"];

/// Of those that apply to a task, the highest counts.
const BARS: &[Bar] = &[
    Bar { servers: &["blkback"], works: Part::Any, least: 1.0 },
    Bar { servers: &["blkback"], works: Part::Contains("-4k-qd32"), least: 1.3 },
    Bar { servers: EMULATED, works: Part::Contains("-4k"), least: 5.0 },
    Bar { servers: EMULATED, works: Part::Contains("-1m"), least: 10.0 },
    Bar { servers: &["per-access"], works: Part::Contains("-4k-qd32"), least: 5.0 },
    Bar { servers: &["netback"], works: Part::Any, least: 1.0 },
    Bar { servers: &["e1000"], works: Part::Begins("tcp"), least: 5.0 },
];

impl Part {
    fn has(&self, key: &str) -> bool {
        match self {
            Part::Any => true,
            Part::Begins(part) => key.starts_with(part),
            Part::Contains(part) => key.contains(part),
        }
    }
}

/// The least ratio that is wanted at a task beside a server.
pub(crate) fn least(task: &Task, server: &str) -> Option<f64> {
    BARS.iter()
        .filter(|bar| bar.servers.contains(&server) && bar.works.has(&task.work))
        .map(|bar| bar.least)
        .max_by(f64::total_cmp)
}

/// What was not reached, a line each.
pub(crate) fn missed(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for comparison in &report.comparisons {
        let task = &comparison.task;
        for server in &comparison.servers {
            let (Some(ratio), Some(least)) = (server.ratio, least(task, &server.name)) else {
                continue;
            };
            if ratio < least {
                let name = work::find(&task.work).map_or(task.work.as_str(), |work| work.name);
                lines.push(format!(
                    "{}, {}, {name}: {ratio:.2} times {}, wanted {least}",
                    task.guest.to_uppercase(),
                    task.target,
                    work::server_name(&server.name)
                ));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::comparisons;
    use crate::bench::report::tests::{sample, task};

    #[test]
    fn the_highest_bar_that_applies_counts() {
        assert_eq!(least(&task("randread-4k-qd32"), "blkback"), Some(1.3));
        assert_eq!(least(&task("read-1m-qd4"), "blkback"), Some(1.0));
        assert_eq!(least(&task("read-1m-qd4"), "nvme"), Some(10.0));
        assert_eq!(least(&task("read-1m-qd4"), "qdisk"), None);
        assert_eq!(least(&task("tcp-in"), "e1000"), Some(5.0));
    }

    #[test]
    fn what_is_below_its_bar_is_named() {
        let samples = [
            sample("randread-4k-qd32", "ours", 12.0),
            sample("randread-4k-qd32", "blkback", 10.0),
            sample("randread-4k-qd1", "ours", 12.0),
            sample("randread-4k-qd1", "blkback", 10.0),
        ];
        let report = Report { machine: Vec::new(), comparisons: comparisons(&samples) };
        assert_eq!(
            missed(&report),
            ["PVH, ram, 4 KiB random read, depth 32: 1.20 times xen-blkback, wanted 1.3"]
        );
    }
}
