//! `cargo lab bench [FILTER…]`: measures xen-virtiod and other backends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bench::block::{self, Extent, Order};
use crate::bench::counts::Counts;
use crate::bench::report::{self, Report};
use crate::bench::sample::Sample;
use crate::bench::{chart, counts, difference, figure, machine, markdown, net};
use crate::dirs::Dirs;
use crate::e2e::{self, Outcome};
use crate::fetch::BenchPrograms;
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::{self, Scenario};

/// Modules of the guests' kernel that drive the other backends' devices.
const MODULES: &[&str] =
    &["xen-blkfront", "xen-netfront", "xen-gntalloc", "ata_piix", "ahci", "sd_mod"];

/// The name of the report's files, without extension.
const REPORT: &str = "report";

/// Whether a run updates the baseline report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The run writes only to `target/lab/bench`.
    No,
    /// The run also replaces the results in `tests/bench` that it measured again.
    Yes,
}

/// Runs the measurements whose name contains one of `filters`, or all if there are none, and writes
/// the report. Returns the exit status: 0 if no measurement failed.
pub(crate) fn bench(filters: &[String], extent: Extent, record: Record) -> Result<i32> {
    let progress = Progress::new();
    let home = Dirs::find()?.tests().join("bench");
    let mut scenarios = scenario::all(&home.join("scenarios"))?;
    scenarios.retain(|scenario| {
        let name = scenario.to_string();
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });
    ensure!(
        !scenarios.is_empty(),
        "no measurement matches {filters:?}: measurements are GUEST/FOLDER of {}",
        home.join("scenarios").display()
    );
    let last = last(&home)?;
    let lab = Lab::prepare("bench", &[], &progress)?;
    let files = files(&lab, &scenarios, extent, &progress)?;
    let mut run =
        BenchOptions { machine: machine::host(&lab.fetched().tools)?, ..BenchOptions::default() };
    e2e::run(&lab, &scenarios, &files, &progress, |outcome| run.take(&outcome));
    let comparisons = report::comparisons(&run.samples);
    let report = Report { machine: run.machine, comparisons, counts: run.counts };
    write(&report, &lab.dirs().lab.join("bench"))?;
    print!("{}", markdown::text(&report));
    if let Some(last) = &last {
        print_differences(last, &report);
    }
    for failure in &run.failures {
        println!("FAILED  {failure}");
    }
    if record == Record::Yes {
        write(&last.unwrap_or_default().renewed_by(&report), &home)?;
    }
    Ok(i32::from(!run.failures.is_empty()))
}

/// The results of a run.
#[derive(Default)]
struct BenchOptions {
    machine: Vec<(String, String)>,
    samples: Vec<Sample>,
    counts: Vec<Counts>,
    failures: Vec<String>,
}

impl BenchOptions {
    fn take(&mut self, outcome: &Outcome) {
        machine::add(&mut self.machine, &outcome.results);
        if let Err(error) = self.try_take(outcome) {
            self.failures.push(format!("{}: {error:#}", outcome.scenario));
        }
    }

    fn try_take(&mut self, outcome: &Outcome) -> Result<()> {
        if let Some(failure) = &outcome.failure {
            bail!("{failure}");
        }
        let (samples, counts) = (read_samples(outcome)?, read_counts(outcome)?);
        ensure!(!samples.is_empty() || !counts.is_empty(), "the scenario left no figures");
        self.samples.extend(samples);
        self.counts.extend(counts);
        Ok(())
    }
}

/// Reads the baseline report in the directory `home`, if there is one.
fn last(home: &Path) -> Result<Option<Report>> {
    let file = home.join(REPORT).with_extension("json");
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&file)?;
    let report = serde_json::from_str(&text);
    report.map(Some).with_context(|| format!("cannot parse the report {}", file.display()))
}

fn print_differences(last: &Report, report: &Report) {
    let differences = difference::differences(last, report);
    let (moved, same): (Vec<_>, Vec<_>) =
        differences.iter().partition(|difference| difference.is_noticeable());
    println!("\nCompared with the baseline report, {} ratios are about the same.", same.len());
    for difference in moved {
        println!("{}  {difference}", if difference.is_worse() { "WORSE " } else { "better" });
    }
}

/// Makes the files for `/lab/files`: programs, modules, the guests' jobs and Dom0's kernel.
fn files(
    lab: &Lab,
    scenarios: &[Scenario],
    extent: Extent,
    progress: &Progress,
) -> Result<Vec<PathBuf>> {
    let programs = BenchPrograms::fetch(&lab.dirs().cache, lab.logs(), progress)?;
    let directory = lab.dirs().lab.join("bench-files");
    let jobs = directory.join("jobs");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&jobs).with_context(|| format!("cannot create {}", jobs.display()))?;
    let modules = directory.join("modules.cpio");
    fs::write(&modules, lab.fetched().guest.kernel().further_modules(MODULES)?)?;
    for guest in scenarios.iter().map(|scenario| scenario.guest).chain([block::DOM0]) {
        write_jobs(&jobs.join(guest), guest, extent)?;
    }
    if extent == Extent::Quick {
        fs::write(jobs.join("quick"), "")?;
    }
    // The guests' default kernel has no drivers for some emulated cards; Dom0's kernel has.
    let dom0_kernel = lab.fetched().dom0.kernel();
    Ok(vec![programs.image(), modules, jobs, dom0_kernel])
}

/// Writes a guest's jobs: `forward.fio` and `backward.fio`; `rounds`, a line for each round with
/// the name of its job file; and the works for other tools.
fn write_jobs(directory: &Path, guest: &str, extent: Extent) -> Result<()> {
    fs::create_dir_all(directory)?;
    let orders = [("forward", Order::Forward), ("backward", Order::Backward)];
    for (name, order) in orders {
        fs::write(directory.join(format!("{name}.fio")), block::round(guest, extent, order))?;
    }
    let order_of_each = orders.iter().cycle().take(extent.rounds());
    let rounds: String = order_of_each.map(|(name, _)| format!("{name}\n")).collect();
    fs::write(directory.join("rounds"), rounds)?;
    fs::write(directory.join("counts"), counts::list())?;
    fs::write(directory.join("few"), block::few(extent))?;
    Ok(fs::write(directory.join("net"), net::list(extent))?)
}

/// Reads a scenario's samples: a file for each round of fio, and one for each other figure.
fn read_samples(outcome: &Outcome) -> Result<Vec<Sample>> {
    let guest = outcome.scenario.guest;
    let mut samples = Vec::new();
    for (name, text) in read_all(&outcome.results.join("rounds"))? {
        let found = block::samples(guest, &text);
        samples.extend(found.with_context(|| format!("in the round {name}"))?);
    }
    for (name, text) in read_all(&outcome.results.join("figures"))? {
        let found = figure::read(guest, &name, &text);
        samples.push(found.with_context(|| format!("in the figure {name}"))?);
    }
    Ok(samples)
}

/// Reads a scenario's counts: for each work three files, `WORK.before`, `.after` and `.calls`.
fn read_counts(outcome: &Outcome) -> Result<Vec<Counts>> {
    let files = read_all(&outcome.results.join("counts"))?;
    let text = |name: String| {
        let file = files.iter().find(|(known, _)| *known == name);
        file.map(|(_, text)| text.as_str())
            .with_context(|| format!("the scenario left no file counts/{name}"))
    };
    let works = files.iter().filter_map(|(name, _)| name.strip_suffix(".before"));
    works
        .map(|work| {
            let file = |kind| text(format!("{work}.{kind}"));
            let (before, after, calls) = (file("before")?, file("after")?, file("calls")?);
            counts::counts(outcome.scenario.guest, work, before, after, calls)
        })
        .collect()
}

/// Reads the files in a directory, sorted by name; none if the directory does not exist.
fn read_all(directory: &Path) -> Result<Vec<(String, String)>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut files = fs::read_dir(directory)?
        .map(|entry| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, fs::read_to_string(entry.path())?))
        })
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Writes the report to the directory, as JSON, SVG and Markdown.
fn write(report: &Report, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    let write = |kind: &str, text: String| {
        let file = directory.join(REPORT).with_extension(kind);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    write("json", serde_json::to_string_pretty(report)? + "\n")?;
    write("svg", chart::svg(report))?;
    write("md", markdown::text(report))
}
