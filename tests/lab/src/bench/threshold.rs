//! Thresholds: the minimum ratio of our rate to another server's, and the maximum cost of a
//! request.

use super::counts::{Counts, DOM0_TIME};
use super::pair::{Paired, Verdict};
use super::report::Report;
use super::sample::Task;
use super::stores::OURS;
use super::work;

/// A threshold: the minimum ratio to each of `servers` at the works whose keys match.
struct Threshold {
    servers: &'static [&'static str],
    /// The works, by a part of their keys.
    works: Part,
    least: f64,
}

enum Part {
    Any,
    Begins(&'static str),
    Contains(&'static str),
}

const EMULATED: &[&str] = &["ide", "ahci", "nvme"];

/// The thresholds. If several apply to a task, the highest counts.
const THRESHOLDS: &[Threshold] = &[
    Threshold { servers: &["blkback"], works: Part::Any, least: 1.0 },
    Threshold { servers: &["blkback"], works: Part::Contains("-4k-qd32"), least: 1.3 },
    Threshold { servers: &["blkback-tuned", "blkback-netback"], works: Part::Any, least: 1.0 },
    Threshold { servers: EMULATED, works: Part::Contains("-4k"), least: 5.0 },
    Threshold { servers: EMULATED, works: Part::Contains("-1m"), least: 10.0 },
    Threshold { servers: &["per-access"], works: Part::Contains("-4k-qd32"), least: 5.0 },
    Threshold { servers: &["netback"], works: Part::Any, least: 1.0 },
    Threshold { servers: &["e1000"], works: Part::Begins("tcp"), least: 5.0 },
    Threshold { servers: &["e1000"], works: Part::Begins("udp"), least: 1.0 },
];

/// The maximum of each counter for a 4 KiB request at depth 32: mappings, each of which takes at
/// least two hypercalls, to map and to unmap; copies by the hypervisor; notifications to the
/// driver.
const MOST: &[(&str, f64)] = &[("maps", 0.025), ("copies", 0.05), ("events_sent", 0.2)];
const MOST_FOR: Part = Part::Contains("-4k-qd32");

impl Part {
    fn has(&self, key: &str) -> bool {
        match self {
            Part::Any => true,
            Part::Begins(part) => key.starts_with(part),
            Part::Contains(part) => key.contains(part),
        }
    }
}

/// Returns the threshold for a task and a server, if there is one.
pub(crate) fn least(task: &Task, server: &str) -> Option<f64> {
    THRESHOLDS
        .iter()
        .filter(|threshold| threshold.servers.contains(&server) && threshold.works.has(&task.work))
        .map(|threshold| threshold.least)
        .max_by(f64::total_cmp)
}

/// Returns a line for each result that misses its threshold.
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
                let known = server.paired.filter(|paired| paired.verdict() != Verdict::Unknown);
                let interval = known
                    .map(|Paired { low, high, .. }| format!(" ({low:.2} to {high:.2})"))
                    .unwrap_or_default();
                lines.push(format!(
                    "{}, {}, {name}: {ratio:.2}{interval} times {}, wanted {least}",
                    task.guest.to_uppercase(),
                    work::target_name(&task.target),
                    work::server_name(&server.name)
                ));
            }
        }
    }
    lines.extend(report.counts.iter().flat_map(too_costly));
    lines.extend(report.counts.iter().filter_map(|counts| too_much_time(counts, &report.counts)));
    lines
}

/// Returns a line if a request costs Dom0 more processor time with xen-virtiod than with the server
/// of Xen's own.
fn too_much_time(ours: &Counts, all: &[Counts]) -> Option<String> {
    let theirs = all.iter().find(|theirs| {
        theirs.server != OURS && (&theirs.guest, &theirs.work) == (&ours.guest, &ours.work)
    })?;
    let time = |counts: &Counts| counts.per_request.get(DOM0_TIME).copied();
    let (most, time) = (time(theirs)?, time(ours)?);
    let name = work::find(&ours.work).map_or(ours.work.as_str(), |work| work.name);
    (ours.server == OURS && time > most).then(|| {
        let guest = ours.guest.to_uppercase();
        let by = work::server_name(&theirs.server);
        format!(
            "{guest}, {name}: {time:.0} {DOM0_TIME} a request, wanted {most:.0} at most, {by}'s"
        )
    })
}

/// Returns a line for each counter that exceeds its maximum.
fn too_costly(counts: &Counts) -> Vec<String> {
    let name = work::find(&counts.work).map_or(counts.work.as_str(), |work| work.name);
    let guest = counts.guest.to_uppercase();
    let thresholds = MOST.iter().filter(|_| MOST_FOR.has(&counts.work));
    let above = thresholds.filter_map(|(counter, most)| {
        let count = counts.per_request.get(*counter).filter(|count| *count > most)?;
        Some(format!("{guest}, {name}: {count:.3} {counter} a request, wanted {most} at most"))
    });
    above.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::report::tests::{report, sample, task};

    #[test]
    fn highest_matching_threshold_counts() {
        assert_eq!(least(&task("randread-4k-qd32"), "blkback"), Some(1.3));
        assert_eq!(least(&task("read-1m-qd4"), "blkback"), Some(1.0));
        assert_eq!(least(&task("read-1m-qd4"), "nvme"), Some(10.0));
        assert_eq!(least(&task("read-1m-qd4"), "qdisk"), None);
        assert_eq!(least(&task("tcp-in"), "e1000"), Some(5.0));
        assert_eq!(least(&task("udp-64-in"), "e1000"), Some(1.0));
    }

    #[test]
    fn ratio_below_its_threshold_is_listed() {
        let samples = [
            sample("randread-4k-qd32", "ours", 12.0),
            sample("randread-4k-qd32", "blkback", 10.0),
            sample("randread-4k-qd1", "ours", 12.0),
            sample("randread-4k-qd1", "blkback", 10.0),
        ];
        let report = report(&samples);
        assert_eq!(
            missed(&report),
            ["PVH, a RAM disk, 4 KiB random read, depth 32: 1.20 times xen-blkback, wanted 1.3"]
        );
    }

    fn of(server: &str, work: &str, per_request: BTreeMap<String, f64>) -> Counts {
        let (guest, work, server) = ("pv".to_owned(), work.to_owned(), server.to_owned());
        Counts { guest, work, server, requests: 100, per_request }
    }

    #[test]
    fn more_processor_time_than_blkbacks_is_listed() {
        let time = |micros| [(DOM0_TIME.to_owned(), micros)].into();
        let counts = vec![
            of("ours", "randread-4k-qd32", time(300.0)),
            of("blkback", "randread-4k-qd32", time(200.0)),
            of("ours", "randwrite-4k-qd32", time(100.0)),
            of("blkback", "randwrite-4k-qd32", time(200.0)),
        ];
        let expected = "PV, 4 KiB random read, depth 32: 300 Dom0 µs a request, wanted 200 at most, xen-blkback's";
        assert_eq!(missed(&Report { counts, ..Report::default() }), [expected]);
    }

    #[test]
    fn counter_above_its_maximum_is_listed() {
        let costs = |maps| [("maps".to_owned(), maps), ("events_sent".to_owned(), 0.2)].into();
        let counts = ["randread-4k-qd32", "read-1m-qd4"].map(|work| of("ours", work, costs(1.0)));
        let counts = counts.to_vec();
        let report = Report { counts, ..Report::default() };
        assert_eq!(
            missed(&report),
            ["PV, 4 KiB random read, depth 32: 1.000 maps a request, wanted 0.025 at most"]
        );
    }
}
