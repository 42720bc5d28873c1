//! The report as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::counts::Idle;
use super::latency::Latency;
use super::pair::{Paired, Verdict};
use super::report::{Comparison, Report, Server};
use super::threshold;
use super::work::{self, Unit};

/// The introduction: how the bench measures, and the meaning of the columns. The recorded report
/// `tests/bench/report.md` has the same text.
const HOW: &str = "\
Made by `cargo lab bench`. Each line's servers were measured in the same guest and the same boot, one at a time \
and in turns, in every other round in reverse order, after a pass that is discarded. Medians and quartiles are over \
the rounds; more is better. \"ours / theirs\" is the median of the ratios within each round: above 1, xen-virtiod is \
faster. The interval contains the true median with a probability of at least 95 %, whatever the distribution; \
\"faster\" and \"slower\" say that it excludes 1, and fewer than 6 rounds have no interval. \"wanted\" is this \
project's own goal. The percentiles are medians over the rounds of the latency that fio reports for the more frequent \
direction, without fsync; a round takes 0.8 s, so p99.9 of less than a thousand requests is that of the slowest one. \
[notes.md](notes.md) says what is known of the ratios below 1, and [report.svg](report.svg) shows all ratios.";

/// The introduction of the counts.
const COUNTED: &str = "\
For each request, over many requests less those over few, so that a program's start does not count: the processor \
time of Dom0 and of the guest by Xen (`xl list`), and context switches in Dom0. For xen-virtiod also the context \
switches of its threads, its own counters (`xen-virtiod stat --json`), and its system calls, by strace in a run of its \
own. `xl list` has tenths of a second, and is read four times, so that a time for each of N requests may be wrong by \
200000 / N µs. A request of a stream is a MiB, and one of packets is a packet.";

/// Formats the whole report.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_machine(&mut text, report);
    let mut section = None;
    for comparison in &report.comparisons {
        let task = &comparison.task;
        let here = (task.guest.as_str(), task.target.as_str());
        if section.replace(here) != Some(here) {
            let _ = write_heading(&mut text, here, report);
        }
        let _ = write_comparison(&mut text, comparison);
    }
    let _ = write_counts(&mut text, report);
    let _ = write_idle(&mut text, report);
    let missed = threshold::missed(report);
    if !missed.is_empty() {
        text.push_str("\n## What is not reached yet\n\n");
        missed.iter().for_each(|line| text.push_str(&format!("* {line}\n")));
    }
    text
}

fn write_machine(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(text, "# How fast xen-virtiod is, beside others\n\n{HOW}\n")?;
    report.machine.iter().try_for_each(|(what, which)| writeln!(text, "* {what}: {which}"))
}

fn write_heading(text: &mut String, here: (&str, &str), report: &Report) -> std::fmt::Result {
    let (guest, target) = here;
    writeln!(text, "\n## {}, {}\n", guest.to_uppercase(), work::target_name(target))?;
    let of_section = |other: &&Comparison| (&*other.task.guest, &*other.task.target) == here;
    let here: Vec<_> = report.comparisons.iter().filter(of_section).collect();
    let versions: BTreeSet<_> = here.iter().filter_map(|c| c.version.as_deref()).collect();
    if !versions.is_empty() {
        let versions: Vec<_> = versions.into_iter().collect();
        writeln!(text, "The version of {}.\n", versions.join("; "))?;
    }
    if let Some(most) = here.iter().filter_map(|c| c.other_work).max_by(f64::total_cmp) {
        writeln!(text, "Other programs took {:.0} % of the host's time at most.\n", most * 100.0)?;
    }
    writeln!(
        text,
        "| work | served by | median | quartiles | rounds | ms: p50, p99, p99.9 | ours / theirs | \
         interval | wanted |"
    )?;
    writeln!(text, "|---|---|---:|---:|---:|---:|---:|---|---:|")
}

fn write_comparison(text: &mut String, comparison: &Comparison) -> std::fmt::Result {
    let work = work::find(&comparison.task.work);
    let name = work.map_or(comparison.task.work.as_str(), |work| work.name);
    let unit = work.map_or(Unit::Count, |work| work.unit);
    comparison.servers.iter().enumerate().try_for_each(|(number, server)| {
        let Server { name: by, rate, ratio, paired, latency } = server;
        writeln!(
            text,
            "| {} | {} | {} | {} to {} | {} | {} | {} | {} | {} |",
            if number == 0 { name } else { "" },
            work::server_name(by),
            unit.show(rate.median),
            unit.show(rate.low),
            unit.show(rate.high),
            rate.rounds,
            latency.as_ref().map(milliseconds).unwrap_or_default(),
            ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            paired.as_ref().map(interval).unwrap_or_default(),
            threshold::least(&comparison.task, by)
                .map(|least| least.to_string())
                .unwrap_or_default()
        )
    })
}

fn milliseconds(latency: &Latency) -> String {
    let Latency { p50, p99, p999 } = latency;
    [p50, p99, p999].map(|micros| format!("{:.1}", micros / 1000.0)).join(", ")
}

/// Formats the interval of a ratio, and whether it excludes 1.
fn interval(paired: &Paired) -> String {
    let Paired { low, high, .. } = paired;
    match paired.verdict() {
        Verdict::Unknown => String::new(),
        Verdict::Faster => format!("{low:.2} to {high:.2}, faster"),
        Verdict::Slower => format!("{low:.2} to {high:.2}, slower"),
        Verdict::Same => format!("{low:.2} to {high:.2}"),
    }
}

/// Writes the table of counts: a row for each guest and work, a column for each counter.
fn write_counts(text: &mut String, report: &Report) -> std::fmt::Result {
    let columns: BTreeSet<_> =
        report.counts.iter().flat_map(|counts| counts.per_request.keys()).collect();
    if columns.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n## What a request costs\n\n{COUNTED}\n")?;
    let heading: String = columns.iter().map(|name| format!(" {name} |")).collect();
    writeln!(text, "| guest | work | served by | requests |{heading}")?;
    writeln!(text, "|---|---|---|---:|{}", "---:|".repeat(columns.len()))?;
    report.counts.iter().try_for_each(|counts| {
        let name = work::find(&counts.work).map_or(counts.work.as_str(), |work| work.name);
        let cell = |column: &&String| match counts.per_request.get(*column) {
            Some(value) if *value >= 100.0 => format!(" {value:.0} |"),
            Some(value) => format!(" {value:.2} |"),
            None => " |".to_owned(),
        };
        let cells: String = columns.iter().map(cell).collect();
        let (guest, by) = (counts.guest.to_uppercase(), work::server_name(&counts.server));
        writeln!(text, "| {guest} | {name} | {by} | {} |{cells}", counts.requests)
    })
}

fn write_idle(text: &mut String, report: &Report) -> std::fmt::Result {
    if !report.idle.is_empty() {
        writeln!(text, "\n## Without a request\n")?;
    }
    report.idle.iter().try_for_each(|idle| {
        let Idle { guest, seconds, switches } = idle;
        let guest = guest.to_uppercase();
        writeln!(
            text,
            "* {guest}: xen-virtiod's threads made {switches} context switches in {seconds} s after load"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{report, task};
    use crate::bench::sample::Sample;

    #[test]
    fn row_has_server_rate_and_ratio() {
        let mib = f64::from(1 << 20);
        let sample = |server: &str, round, rate| {
            let (task, server) = (task("read-1m-qd4"), server.to_owned());
            let latency = Some(Latency { p50: 1500.0, p99: 4000.0, p999: 9990.0 });
            Sample { task, server, round, rate: rate * mib, latency }
        };
        let rounds = 1..=6;
        let samples: Vec<_> = rounds
            .flat_map(|round| [sample("ours", round, 300.0), sample("blkback", round, 200.0)])
            .collect();
        let mut report = report(&samples);
        report.machine = vec![("Xen".into(), "4.20".into())];
        report.comparisons[0].other_work = Some(0.034);
        report.comparisons[0].version = Some("2026-11-28, a905e8f".into());
        report.idle = vec![Idle { guest: "pvh".into(), seconds: 10, switches: 5 }];
        let text = text(&report);
        for part in [
            "* Xen: 4.20\n",
            "* PVH: xen-virtiod's threads made 5 context switches in 10 s after load\n",
            "## PVH, a RAM disk\n\nThe version of 2026-11-28, a905e8f.\n\nOther programs took 3 % of the host's time at most.\n",
            "| 1 MiB sequential read, depth 4 | xen-virtiod | 300 MiB/s |",
            "|  | xen-blkback | 200 MiB/s | 200 MiB/s to 200 MiB/s | 6 | 1.5, 4.0, 10.0 | 1.50 | 1.50 to 1.50, faster | 1 |",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
