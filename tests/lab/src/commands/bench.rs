//! `cargo lab bench [FILTER…]`: measures xen-virtiod and other backends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bench::busyness::{Busyness, MOST_OTHER_WORK};
use crate::bench::counts::{Counts, Idle};
use crate::bench::jobs::{self, Pass};
use crate::bench::report::{self, Report};
use crate::bench::sample::Sample;
use crate::bench::selection::{Extent, Selection};
use crate::bench::stores::{self, STORES};
use crate::bench::{block, chart, counts, difference, figure, machine, markdown, net, work};
use crate::debian::Arch;
use crate::dirs::Dirs;
use crate::e2e::{self, Outcome};
use crate::fetch::{Kernel, Programs};
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::{self, Scenario};

/// Modules of the guests' kernel that drive the other backends' devices.
const MODULES: &[&str] =
    &["xen-blkfront", "xen-netfront", "xen-netback", "xen-gntalloc", "ata_piix", "ahci", "sd_mod"];

/// Modules that the guests' default kernel has built in or lacks.
const CARD_MODULES: &[&str] =
    &["crc32c_generic", "ext4", "xen-blkfront", "xen-netfront", "e1000", "8139cp"];

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

/// Runs the measurements whose name contains one of `filters`, or all if there are none, as far as
/// `selection` includes them, and writes the report. Returns the exit status: 0 if no measurement
/// failed.
pub(crate) fn bench(filters: &[String], selection: &Selection, record: Record) -> Result<i32> {
    check(selection)?;
    let progress = Progress::new();
    let home = Dirs::find()?.tests().join("bench");
    let mut scenarios = scenario::all(&home.join("scenarios"))?;
    let left_out = left_out(&scenarios, filters, selection);
    scenarios.retain(|scenario| selection.has_measurement(&scenario.to_string(), filters));
    ensure!(
        !scenarios.is_empty(),
        "no measurement matches {filters:?}: measurements are GUEST/FOLDER of {}",
        home.join("scenarios").display()
    );
    let last = last(&home)?;
    // Files may change while it runs.
    let version = machine::version(&Dirs::find()?.project);
    let lab = Lab::prepare(Arch::default(), "bench", &[], &progress)?;
    let files = files(&lab, &scenarios, selection, &progress)?;
    let mut run =
        BenchOptions { machine: machine::host(&lab.fetched().tools)?, ..BenchOptions::default() };
    let before = Busyness::now()?;
    e2e::run(&lab, &scenarios, &files, &progress, |outcome| run.take(&outcome));
    let other_work = Busyness::now()?.others_since(&before);
    let mut comparisons = report::comparisons(&run.samples);
    for comparison in &mut comparisons {
        comparison.other_work = Some(other_work);
        comparison.version.clone_from(&version);
    }
    let report = Report { machine: run.machine, comparisons, counts: run.counts, idle: run.idle };
    write(&report, &lab.dirs().lab.join("bench"))?;
    print!("{}", markdown::text(&report));
    if let Some(last) = &last {
        print_differences(last, &report);
    }
    if selection.extent == Extent::Quick {
        println!("\n{left_out}");
    }
    for failure in &run.failures {
        println!("FAILED  {failure}");
    }
    if record == Record::Yes {
        ensure!(
            other_work <= MOST_OTHER_WORK,
            "not recorded: other programs took {:.1} % of the host's time, and {:.0} % disturb a \
             measurement; repeat it on a quiet machine",
            other_work * 100.0,
            MOST_OTHER_WORK * 100.0
        );
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
    idle: Vec<Idle>,
    failures: Vec<String>,
}

impl BenchOptions {
    fn take(&mut self, outcome: &Outcome) {
        let scenario = &outcome.scenario;
        machine::add(&mut self.machine, scenario.machine, &scenario.to_string(), &outcome.results);
        if let Err(error) = self.try_take(outcome) {
            self.failures.push(format!("{}: {error:#}", outcome.scenario));
        }
    }

    fn try_take(&mut self, outcome: &Outcome) -> Result<()> {
        if let Some(failure) = &outcome.failure {
            bail!("{failure}");
        }
        let files = counts::Files::new(read_all(&outcome.results.join("counts"))?);
        let guest = outcome.scenario.guest;
        let (samples, counts) = (read_samples(outcome)?, files.counts(guest)?);
        ensure!(!samples.is_empty() || !counts.is_empty(), "the scenario left no figures");
        self.samples.extend(samples);
        self.counts.extend(counts);
        self.idle.extend(files.idle(guest)?);
        Ok(())
    }
}

/// Names the measurements, the works and the stores that a quick run leaves out.
fn left_out(scenarios: &[Scenario], filters: &[String], selection: &Selection) -> String {
    let names = scenarios.iter().map(ToString::to_string);
    let measurements = names.filter(|name| !selection.has_measurement(name, filters));
    let works = work::all().filter(|work| !selection.has(work)).map(|work| work.key);
    let stores = STORES.iter().filter(|store| !selection.has_store(store)).map(|store| store.key);
    format!(
        "Left out: the measurements {}; the works {}; the stores {}.",
        measurements.collect::<Vec<_>>().join(", "),
        works.collect::<Vec<_>>().join(", "),
        stores.collect::<Vec<_>>().join(", ")
    )
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
    selection: &Selection,
    progress: &Progress,
) -> Result<Vec<PathBuf>> {
    let tools = &lab.fetched().tools;
    let programs = Programs::Bench.fetch(tools, &lab.dirs().cache, lab.logs(), progress)?;
    let directory = lab.dirs().lab.join("bench-files");
    let jobs = directory.join("jobs");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&jobs).with_context(|| format!("cannot create {}", jobs.display()))?;
    let modules = directory.join("modules.cpio");
    fs::write(&modules, lab.fetched().guest.kernel().further_modules(MODULES)?)?;
    for scenario in scenarios {
        write_jobs(&jobs.join(scenario.guest), selection)?;
        write_disks(&jobs.join(scenario.guest), scenario, selection)?;
    }
    if selection.has(&block::SHELL) {
        fs::write(jobs.join("shell"), "")?;
    }
    let mut files = vec![programs, modules, jobs];
    if scenarios.iter().any(|scenario| scenario.guest == "hvm" && scenario.name == "bench-net") {
        files.push(cards(lab, &directory.join("cards"), progress)?);
    }
    Ok(files)
}

/// Makes what a guest with emulated cards boots, in `directory`, and returns that: the guests'
/// default kernel has no drivers for these cards.
fn cards(lab: &Lab, directory: &Path, progress: &Progress) -> Result<PathBuf> {
    let kernel = Kernel::with_drivers(&lab.dirs().cache, lab.logs(), progress)?;
    let guest = lab.guest_files(&kernel, progress)?;
    fs::create_dir_all(directory)?;
    fs::copy(&guest.kernel, directory.join("vmlinuz"))?;
    fs::copy(&guest.initrd, directory.join("initrd"))?;
    fs::write(directory.join("modules.cpio"), kernel.further_modules(CARD_MODULES)?)?;
    Ok(directory.to_owned())
}

/// Writes a guest's jobs for all scenarios: `passes`, a line with number and name for each pass;
/// `more`, the same for further passes of close comparisons; and the works for other tools than
/// fio's job files.
fn write_jobs(directory: &Path, selection: &Selection) -> Result<()> {
    fs::create_dir_all(directory)?;
    let rounds = [Pass::Forward, Pass::Backward].into_iter().cycle();
    let mut passes = [Pass::WarmUp].into_iter().chain(rounds).enumerate();
    let mut lines = |number: usize| -> String {
        let passes = passes.by_ref().take(number);
        passes.map(|(round, pass)| format!("{round} {}\n", pass.name())).collect()
    };
    fs::write(directory.join("passes"), lines(1 + selection.rounds()))?;
    fs::write(directory.join("more"), lines(selection.more_rounds()))?;
    fs::write(directory.join("counts"), counts::list())?;
    fs::write(directory.join("few"), jobs::few(selection))?;
    Ok(fs::write(directory.join("net"), net::list(selection))?)
}

/// Writes what depends on a scenario's disks, in a directory of its name: `disks`, a line for each
/// disk with its server and its store, and fio's job file for each pass.
fn write_disks(directory: &Path, scenario: &Scenario, selection: &Selection) -> Result<()> {
    let directory = directory.join(&scenario.name);
    fs::create_dir_all(&directory)?;
    let has = |key: &str| stores::find(key).is_some_and(|store| selection.has_store(store));
    let disks = stores::disks(&scenario.name, scenario.guest);
    let disks: Vec<_> = disks.iter().copied().filter(|(_, store)| has(store)).collect();
    let lines: String = disks.iter().map(|(server, store)| format!("{server} {store}\n")).collect();
    fs::write(directory.join("disks"), lines)?;
    for pass in Pass::ALL {
        let file = directory.join(pass.name()).with_extension("fio");
        fs::write(file, jobs::pass(&disks, selection, pass))?;
    }
    Ok(())
}

/// Checks that the selection's stores exist and that its works do.
fn check(selection: &Selection) -> Result<()> {
    for key in &selection.stores {
        ensure!(
            stores::find(key).is_some(),
            "no store is called {key}: stores are {}",
            STORES.iter().map(|store| store.key).collect::<Vec<_>>().join(", ")
        );
    }
    for part in &selection.works {
        ensure!(
            work::all().any(|work| work.key.contains(part.as_str())),
            "no work's key contains {part}: keys are {}",
            work::all().map(|work| work.key).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

/// Reads a scenario's samples: a file for each round of fio, and one for each other figure.
fn read_samples(outcome: &Outcome) -> Result<Vec<Sample>> {
    let guest = outcome.scenario.guest;
    let mut samples = Vec::new();
    for (name, text) in read_all(&outcome.results.join("rounds"))? {
        let round =
            name.strip_suffix(".json").and_then(|stem| stem.split('-').next()?.parse().ok());
        let round = round.with_context(|| format!("the file name rounds/{name} has no number"))?;
        let found = block::samples(guest, round, &text);
        samples.extend(found.with_context(|| format!("in the round {name}"))?);
    }
    for (name, text) in read_all(&outcome.results.join("figures"))? {
        let found = figure::read(guest, &name, &text);
        samples.push(found.with_context(|| format!("in the figure {name}"))?);
    }
    // Round 0 is the pass that warms up.
    samples.retain(|sample: &Sample| sample.round > 0);
    Ok(samples)
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
