//! `cargo lab test [FILTER]`: runs all checks that are fast enough to run before a commit.
//! `cargo lab soak`: runs the same checks for longer, and the slow scenarios.

mod compilers;
mod lints;
mod packages;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use self::compilers::{Bench, COMPILERS, Compiler, Tried};
use self::packages::RELEASES;
use crate::boot::Init;
use crate::cargo_test::Sum;
use crate::command;
use crate::debian::{Arch, Suite};
use crate::dirs::Dirs;
use crate::e2e;
use crate::fetch::Programs;
use crate::fuzz::{self, Fuzzer, Sanitizer};
use crate::host;
use crate::lab::{self, Lab};
use crate::lint::Project;
use crate::progress::Progress;
use crate::scenario::{self, OnArm, Scenario};
use crate::stress::{self, Stress};
use crate::summary::Summary;

/// A check that consists of one call of cargo.
struct Check {
    name: &'static str,
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

/// The feature for the program that packages alone use.
const DOCUMENTS: &str = "command-line/documents";

const CHECKS: &[Check] = &[
    Check { name: "fmt", arguments: &["fmt", "--all", "--check"], variables: &[] },
    Check {
        name: "clippy",
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            DOCUMENTS,
            "--",
            "-D",
            "warnings",
        ],
        variables: &[],
    },
    Check {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps", "--document-private-items"],
        variables: &[("RUSTDOCFLAGS", "-D warnings")],
    },
];

/// The name of the unit tests' check.
const UNIT: &str = "unit";

/// The variable with which the daemon's tests serve devices as in processes of their guests.
const IN_PROCESSES: &str = "DEVICES_IN_PROCESSES";

/// A check by a program of the daemon's benchmarks, in a release build.
struct Benchmark {
    name: &'static str,
    /// Begins the line of its output that has the result.
    result: &'static str,
}

/// Counts the daemon's instructions for a request, and compares them with their limits.
const INSTRUCTIONS: Benchmark =
    Benchmark { name: "instructions", result: "instructions for a request: " };

/// Kills the process of a disk at chosen instructions; its argument is the number of deaths.
const KILLS: Benchmark = Benchmark { name: "kills", result: "kills: " };

/// Begins the line of a benchmark's output that says why it did nothing.
const SKIPPED: &str = "skipped: ";

/// The seed of the fuzz targets. It is fixed, so that runs before and after a change try the same
/// inputs, and a failure is not blamed on an unrelated change.
const FUZZ_SEED: u32 = 1;

/// The extent of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Checks that are fast enough to run before a commit.
    Test,
    /// All checks, including the slow scenarios.
    Soak,
}

impl Extent {
    /// Returns the time for which each fuzz target runs.
    fn fuzz_time(self) -> Duration {
        Duration::from_secs(match self {
            Extent::Test => 4,
            Extent::Soak => 60,
        })
    }

    /// Returns whether a check is left to a later run; `soak` says that only the soak runs it.
    fn leaves(self, soak: bool) -> bool {
        soak && self == Extent::Test
    }

    /// Returns the number of times that the process of a disk is killed. After those of
    /// [`Extent::Soak`] each instruction of a request's life was hit.
    fn kills(self) -> &'static str {
        match self {
            Extent::Test => "1000",
            Extent::Soak => "30000",
        }
    }
}

/// The load on the machine, and the number of runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Busyness {
    /// The seed of the delays, for a run under stress; see [`Stress::start`].
    pub(crate) stress: Option<u64>,
    /// The number of runs of the unit tests and of each scenario.
    pub(crate) runs: u32,
}

/// Runs the checks whose name contains `filter`, and prints the summary. Returns the exit status: 0
/// if no check failed.
pub(crate) fn test(arch: Arch, filter: &str, extent: Extent, busyness: Busyness) -> Result<i32> {
    if arch == Arch::Aarch64 {
        return test_on_arm(filter, extent, busyness);
    }
    let progress = Progress::new();
    let dirs = Dirs::find()?;
    let logs = dirs.fresh_logs("checks")?;
    let mut summary = Summary::default();
    for check in CHECKS.iter().filter(|check| check.name.contains(filter)) {
        let Check { name, arguments, variables } = check;
        let cargo = || cargo(&dirs, name, arguments, variables, &logs, &progress);
        match progress.minutes().part(check.name, cargo) {
            Ok(()) => summary.pass(check.name, 1),
            Err(error) => summary.fail(check.name, &format!("{error:#}")),
        }
    }
    let project = Project { dirs: &dirs, logs: &logs, progress: &progress };
    lints::run(filter, &project, &mut summary);
    let mut left = Vec::new();
    let stress = busyness.stress.map(Stress::start);
    for run in (0..busyness.runs).filter(|_| UNIT.contains(filter)) {
        let delays = stress.as_ref().map(|stress| stress.seed(run));
        let unit = || unit(&dirs, delays, &logs, &progress, &mut summary);
        progress.minutes().part(UNIT, unit);
    }
    let benchmarks = [(INSTRUCTIONS, None), (KILLS, Some(extent.kills()))];
    for (benchmark, argument) in benchmarks {
        if stress.is_none() && benchmark.name.contains(filter) {
            let run = || benchmark.run(argument, &dirs, &logs, &progress, &mut summary);
            progress.minutes().part(benchmark.name, run);
        }
    }
    if stress.is_none() {
        let fuzz = || short_fuzz(&dirs, filter, extent.fuzz_time(), &logs, &progress, &mut summary);
        progress.minutes().part("fuzz", fuzz)?;
        let bench = Bench { dirs: &dirs, logs: &logs, progress: &progress };
        left.extend(packages(filter, extent, &bench, &mut summary));
        left.extend(compilers(filter, extent, &bench, &mut summary));
    }
    let times = if stress.is_some() { stress::LIMIT_FACTOR } else { 1 };
    let (slow, scenarios): (Vec<_>, Vec<_>) = scenario::all(&dirs.tests().join("scenarios"))?
        .into_iter()
        .filter(|scenario| name(scenario).contains(filter))
        .partition(|scenario| extent.leaves(scenario.soak));
    let scenarios: Vec<Scenario> = scenarios
        .into_iter()
        // Measurements mean nothing while other programs use the processors.
        .filter(|scenario| stress.is_none() || !scenario.measures)
        .map(|scenario| scenario.with_limit_factor(times))
        .collect();
    for _ in (0..busyness.runs).filter(|_| !scenarios.is_empty()) {
        end_to_end(arch, scenarios.clone(), &progress, &mut summary);
    }
    left.extend(slow.iter().map(name));
    if !left.is_empty() {
        println!("not run; `cargo lab soak` runs them: {}", left.join(", "));
    }
    if summary.empty() && left.is_empty() {
        summary.fail(filter, "no check has this in its name: see `cargo lab test --help`");
    } else if summary.empty() {
        summary.fail(filter, "only `cargo lab soak` runs what has this in its name");
    }
    println!("{}\n{summary}", progress.minutes());
    Ok(i32::from(!summary.good()))
}

fn name(scenario: &Scenario) -> String {
    format!("e2e/{scenario}")
}

/// As [`test()`], for the scenarios on Arm: all other checks do not depend on the machine.
fn test_on_arm(filter: &str, extent: Extent, busyness: Busyness) -> Result<i32> {
    let progress = Progress::new();
    let mut summary = Summary::default();
    let OnArm { scenarios, skipped } = scenario::on_arm(&Dirs::find()?.tests().join("scenarios"))?;
    for (name, why) in skipped.iter().filter(|(name, _)| format!("e2e/{name}").contains(filter)) {
        summary.skip(&format!("e2e/{name}: {why}"));
    }
    let named = scenarios.into_iter().filter(|scenario| name(scenario).contains(filter));
    let (left, run): (Vec<_>, Vec<_>) = named.partition(|scenario| extent.leaves(scenario.soak));
    for _ in (0..busyness.runs).filter(|_| !run.is_empty()) {
        end_to_end(Arch::Aarch64, run.clone(), &progress, &mut summary);
    }
    if summary.empty() {
        summary.fail(filter, "no scenario on Arm has this in its name");
    }
    if !left.is_empty() {
        let left: Vec<_> = left.iter().map(name).collect();
        println!("not run; `cargo lab --arch aarch64 soak` runs them: {}", left.join(", "));
    }
    println!("{}\n{summary}", progress.minutes());
    Ok(i32::from(!summary.good()))
}

/// Runs each fuzz target whose check has `filter` in its name, for `time`.
fn short_fuzz(
    dirs: &Dirs,
    filter: &str,
    time: Duration,
    logs: &Path,
    progress: &Progress,
    summary: &mut Summary,
) -> Result<()> {
    let mut targets = fuzz::targets(dirs)?;
    targets.retain(|target| format!("fuzz/{target}").contains(filter));
    if targets.is_empty() {
        return Ok(());
    }
    let fuzzer = match Fuzzer::build(dirs, Sanitizer::None, logs, progress) {
        Ok(fuzzer) => fuzzer,
        Err(error) => {
            summary.fail("fuzz", &format!("{error:#}"));
            return Ok(());
        }
    };
    let step = progress.step("fuzz");
    for target in &targets {
        step.at(target);
        super::fuzz::report(summary, target, fuzzer.run(target, time, Some(FUZZ_SEED))?);
    }
    step.done();
    Ok(())
}

/// Runs the unit tests. `delays` is the seed of the simulated hypervisor's random delays, if any.
fn unit(dirs: &Dirs, delays: Option<u64>, logs: &Path, progress: &Progress, summary: &mut Summary) {
    // All calls of cargo append to the log, which must not have the results of an earlier run.
    let _ = fs::remove_file(logs.join("unit.log"));
    let all = ["test", "--workspace", "--features", DOCUMENTS, "--no-fail-fast"];
    // Tests that must not run in parallel are marked as ignored; the second call runs them.
    let alone = [&all[..], &["--", "--ignored", "--test-threads=1"]].concat();
    let seed = delays.map(|seed| seed.to_string());
    let variables: Vec<_> = seed.iter().map(|seed| (stress::DELAYS, seed.as_str())).collect();
    // The daemon's tests once more, with devices served as in processes of their guests.
    let daemon = ["test", "-p", "xen-virtiod", "--lib", "--no-fail-fast", "tests::"];
    let in_processes: Vec<_> = variables.iter().copied().chain([(IN_PROCESSES, "1")]).collect();
    let ran = cargo(dirs, UNIT, &all, &variables, logs, progress)
        .and(cargo(dirs, UNIT, &alone, &variables, logs, progress))
        .and(cargo(dirs, UNIT, &daemon, &in_processes, logs, progress));
    let output = fs::read(logs.join("unit.log")).unwrap_or_default();
    let sum = Sum::of(&String::from_utf8_lossy(&output));
    let passed = sum.passed.len();
    if passed > 0 {
        summary.pass(&format!("{UNIT}: {passed} tests"), passed);
    }
    for name in &sum.skipped {
        summary.skip(&format!("{UNIT}/{name}"));
    }
    for name in &sum.failed {
        let log = logs.join("unit.log");
        summary.fail(&format!("{UNIT}/{name}"), &format!("see {}", log.display()));
    }
    if let Err(error) = ran
        && sum.failed.is_empty()
    {
        summary.fail(UNIT, &format!("{error:#}"));
    }
}

impl Benchmark {
    /// Runs the program, with this argument.
    fn run(
        &self,
        argument: Option<&str>,
        dirs: &Dirs,
        logs: &Path,
        progress: &Progress,
        summary: &mut Summary,
    ) {
        let Self { name, result } = *self;
        let arguments = ["bench", "-p", "xen-virtiod", "--bench", name].into_iter();
        let arguments: Vec<_> =
            arguments.chain(argument.into_iter().flat_map(|argument| ["--", argument])).collect();
        let ran = cargo(dirs, name, &arguments, &[], logs, progress);
        let output = fs::read(logs.join(format!("{name}.log"))).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let line = |prefix| output.lines().find_map(|line| line.strip_prefix(prefix));
        match (ran, line(result), line(SKIPPED)) {
            (Ok(()), Some(result), _) => summary.pass(&format!("{name}: {result}"), 1),
            (Ok(()), None, Some(why)) => summary.skip(&format!("{name}: {why}")),
            (Ok(()), None, None) => summary.fail(name, "it printed no result"),
            (Err(error), ..) => summary.fail(name, &format!("{error:#}")),
        }
    }
}

/// Runs the checks of packages whose names contain `filter`; returns those that are left to the
/// soak.
fn packages(filter: &str, extent: Extent, bench: &Bench, summary: &mut Summary) -> Vec<String> {
    let named = RELEASES.iter().filter(|release| release.name.contains(filter));
    let (left, run): (Vec<_>, Vec<_>) = named.partition(|release| extent.leaves(release.soak));
    for release in run {
        let check = |bench: &Bench| release.check(bench, extent == Extent::Soak);
        tried(release.name, bench, check, summary);
    }
    left.iter().map(|release| release.name.to_owned()).collect()
}

/// Runs the compiler checks whose names contain `filter`; returns those that are left to the soak.
fn compilers(filter: &str, extent: Extent, bench: &Bench, summary: &mut Summary) -> Vec<String> {
    let named = COMPILERS.iter().filter(|compiler| compiler.name.contains(filter));
    let (left, run): (Vec<_>, Vec<_>) = named.partition(|compiler| extent.leaves(compiler.soak));
    for Compiler { name, check, .. } in run {
        tried(name, bench, check, summary);
    }
    left.iter().map(|compiler| compiler.name.to_owned()).collect()
}

/// Runs a check that may have to be skipped.
fn tried(
    name: &str,
    bench: &Bench,
    check: impl FnOnce(&Bench) -> Result<Tried>,
    summary: &mut Summary,
) {
    let check = || lab::lock(bench.dirs, bench.progress).and_then(|_lock| check(bench));
    match bench.progress.minutes().part(name, check) {
        Ok(Tried::By(what)) => summary.pass(&format!("{name}: {what}"), 1),
        Ok(Tried::Not(why)) => summary.skip(&format!("{name}: {why}")),
        Err(error) => summary.fail(name, &format!("{error:#}")),
    }
}

fn end_to_end(
    arch: Arch,
    mut scenarios: Vec<Scenario>,
    progress: &Progress,
    summary: &mut Summary,
) {
    let lab = match Lab::prepare(arch, "test", &other_kernels(&scenarios), progress) {
        Ok(lab) => lab,
        Err(error) => {
            for scenario in &scenarios {
                summary.fail(&name(scenario), &format!("not run: {error:#}"));
            }
            return;
        }
    };
    scenarios.retain(|scenario| match lab.lacks(scenario.kernel) {
        None => true,
        Some(why) => {
            summary.fail(&name(scenario), &format!("not run: {why}"));
            false
        }
    });
    scenarios.retain(|scenario| {
        let can_boot = scenario.machine.init() == Init::Lab || host::is_root();
        if !can_boot {
            summary.skip(&format!("{}: only root can build Debian packages", name(scenario)));
        }
        can_boot
    });
    if scenarios.is_empty() {
        return;
    }
    let files = match files(&lab, &scenarios, progress) {
        Ok(files) => files,
        Err(error) => return summary.fail("e2e", &format!("not run: {error:#}")),
    };
    e2e::run(&lab, &scenarios, &files, progress, |outcome| {
        let name = name(&outcome.scenario);
        match outcome.failure {
            None => summary.pass(&format!("{name} ({:.0} s)", outcome.time.as_secs_f32()), 1),
            Some(why) => summary.fail(&name, &why),
        }
    });
}

/// Returns the files that `scenarios` need in `/lab/files`.
fn files(lab: &Lab, scenarios: &[Scenario], progress: &Progress) -> Result<Vec<PathBuf>> {
    let needed: BTreeSet<Programs> = scenarios.iter().filter_map(|one| one.programs).collect();
    let (tools, cache) = (&lab.fetched().tools, &lab.dirs().cache);
    needed.into_iter().map(|set| set.fetch(tools, cache, lab.logs(), progress)).collect()
}

/// Returns the releases of the kernels that `scenarios` need beside the default one.
fn other_kernels(scenarios: &[Scenario]) -> Vec<Suite> {
    let named = |suite| scenarios.iter().any(|scenario| scenario.kernel == suite);
    Suite::ALL.into_iter().filter(|&suite| suite != Suite::LAB && named(suite)).collect()
}

/// Runs cargo in the workspace, with `variables` in its environment, and appends its output to the
/// log `name`.
fn cargo(
    dirs: &Dirs,
    name: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
    logs: &Path,
    progress: &Progress,
) -> Result<()> {
    let step = progress.step(name);
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(arguments).current_dir(&dirs.project);
    cargo.envs(variables.iter().copied());
    let log = logs.join(format!("{name}.log"));
    command::run(&mut cargo, &format!("cargo {}", arguments.join(" ")), &log)
        .with_context(|| format!("the check {name} failed"))?;
    step.done();
    Ok(())
}
