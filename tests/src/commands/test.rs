//! `cargo lab test [FILTER]`: everything there is to check.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo_test::Sum;
use crate::command;
use crate::debian::Suite;
use crate::dirs::Dirs;
use crate::e2e;
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::{self, Scenario};
use crate::tally::Tally;

/// A check that is one call of cargo.
struct Check {
    name: &'static str,
    arguments: &'static [&'static str],
}

const CHECKS: &[Check] = &[
    Check { name: "fmt", arguments: &["fmt", "--all", "--check"] },
    Check {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    },
];

/// The name of the unit tests' check.
const UNIT: &str = "unit";

/// Runs the checks whose name contains `filter`.
pub(crate) fn test(filter: &str) -> Result<i32> {
    let progress = Progress::new();
    let dirs = Dirs::find()?;
    let logs = dirs.fresh_logs("checks")?;
    let mut tally = Tally::default();
    for check in CHECKS.iter().filter(|check| check.name.contains(filter)) {
        match cargo(&dirs, check.name, check.arguments, &logs, &progress) {
            Ok(()) => tally.pass(check.name, 1),
            Err(error) => tally.fail(check.name, &format!("{error:#}")),
        }
    }
    if UNIT.contains(filter) {
        unit(&dirs, &logs, &progress, &mut tally);
    }
    let scenarios: Vec<Scenario> = scenario::all(&dirs.tests().join("scenarios"))?
        .into_iter()
        .filter(|scenario| name(scenario).contains(filter))
        .collect();
    if !scenarios.is_empty() {
        end_to_end(scenarios, &progress, &mut tally);
    }
    if tally.empty() {
        tally.fail(filter, "no check has this in its name: see `cargo lab test --help`");
    }
    println!("{tally}");
    Ok(i32::from(!tally.good()))
}

fn name(scenario: &Scenario) -> String {
    format!("e2e/{scenario}")
}

fn unit(dirs: &Dirs, logs: &Path, progress: &Progress, tally: &mut Tally) {
    let arguments = ["test", "--workspace", "--no-fail-fast"];
    let ran = cargo(dirs, UNIT, &arguments, logs, progress);
    let output = fs::read(logs.join("unit.log")).unwrap_or_default();
    let sum = Sum::of(&String::from_utf8_lossy(&output));
    let passed = sum.passed.len();
    if passed > 0 {
        tally.pass(&format!("{UNIT}: {passed} tests"), passed);
    }
    for name in &sum.skipped {
        tally.skip(&format!("{UNIT}/{name}"));
    }
    for name in &sum.failed {
        let log = logs.join("unit.log");
        tally.fail(&format!("{UNIT}/{name}"), &format!("see {}", log.display()));
    }
    if let Err(error) = ran {
        if sum.failed.is_empty() {
            tally.fail(UNIT, &format!("{error:#}"));
        }
    }
}

fn end_to_end(mut scenarios: Vec<Scenario>, progress: &Progress, tally: &mut Tally) {
    let lab = match Lab::prepare("test", &other_kernels(&scenarios), progress) {
        Ok(lab) => lab,
        Err(error) => {
            for scenario in &scenarios {
                tally.fail(&name(scenario), &format!("not run: {error:#}"));
            }
            return;
        }
    };
    scenarios.retain(|scenario| match lab.lacks(scenario.kernel) {
        None => true,
        Some(why) => {
            tally.fail(&name(scenario), &format!("not run: {why}"));
            false
        }
    });
    if scenarios.is_empty() {
        return;
    }
    e2e::run(&lab, &scenarios, &[], progress, |outcome| {
        let name = name(&outcome.scenario);
        match outcome.failure {
            None => tally.pass(&format!("{name} ({:.0} s)", outcome.time.as_secs_f32()), 1),
            Some(why) => tally.fail(&name, &why),
        }
    });
}

/// The kernels that `scenarios` name beside the usual one.
fn other_kernels(scenarios: &[Scenario]) -> Vec<Suite> {
    let named = |suite| scenarios.iter().any(|scenario| scenario.kernel == suite);
    Suite::ALL.into_iter().filter(|&suite| suite != Suite::LAB && named(suite)).collect()
}

/// Runs cargo in the workspace, its output going to the log that `name` names.
fn cargo(
    dirs: &Dirs,
    name: &str,
    arguments: &[&str],
    logs: &Path,
    progress: &Progress,
) -> Result<()> {
    let step = progress.step(name);
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(arguments).current_dir(&dirs.project);
    let log = logs.join(format!("{name}.log"));
    command::run(&mut cargo, &format!("cargo {}", arguments.join(" ")), &log)
        .with_context(|| format!("the check {name} failed"))?;
    step.done();
    Ok(())
}
