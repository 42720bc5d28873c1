//! Runs scenarios, all scenarios of one machine kind in one boot.

use std::collections::VecDeque;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::boot::{Event, Machine, MachineKind};
use crate::build::{Payload, StorageTools};
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::{self, Scenario};

/// The result of one scenario.
pub(crate) struct Outcome {
    /// The scenario.
    pub(crate) scenario: Scenario,
    /// The reason if the scenario failed.
    pub(crate) failure: Option<String>,
    /// The time from start to end, measured in Dom0.
    pub(crate) time: Duration,
    /// The directory with the scenario's output, the guests' consoles, and the daemon's log and
    /// counters.
    pub(crate) results: PathBuf,
}

/// Runs `scenarios`, machine by machine, with `files` in `/lab/files`, and passes each outcome to
/// `report` as soon as it is known.
///
/// If a machine fails, its remaining scenarios are reported as failed.
pub(crate) fn run(
    lab: &Lab,
    scenarios: &[Scenario],
    files: &[PathBuf],
    progress: &Progress,
    mut report: impl FnMut(Outcome),
) {
    for kind in MachineKind::ALL {
        let of_kind = scenarios.iter().filter(|scenario| scenario.machine == kind);
        let of_kind: VecDeque<_> = of_kind.cloned().collect();
        if !of_kind.is_empty() {
            run_on(lab, kind, of_kind, files, progress, &mut report);
        }
    }
}

/// Runs `waiting` on one machine of the kind `kind`.
fn run_on(
    lab: &Lab,
    kind: MachineKind,
    mut waiting: VecDeque<Scenario>,
    files: &[PathBuf],
    progress: &Progress,
    report: &mut impl FnMut(Outcome),
) {
    let part = format!("scenarios on the machine {kind}");
    let ran = progress
        .minutes()
        .part(&part, || run_waiting(lab, kind, &mut waiting, files, progress, report));
    let mut failure = ran.err().map(|error| format!("{error:#}"));
    for scenario in waiting {
        let why = failure.replace("not run: the machine failed in an earlier scenario".to_owned());
        report(Outcome {
            results: lab.logs().join(scenario.to_string()),
            scenario,
            failure: why,
            time: Duration::ZERO,
        });
    }
}

/// Runs `waiting` like [`run_on`] until the machine fails, and removes each scenario that ran.
fn run_waiting(
    lab: &Lab,
    kind: MachineKind,
    waiting: &mut VecDeque<Scenario>,
    files: &[PathBuf],
    progress: &Progress,
    report: &mut impl FnMut(Outcome),
) -> Result<()> {
    let is_soak = waiting.iter().any(|scenario| scenario.soak);
    let guest_tools = if is_soak { StorageTools::Many } else { StorageTools::Few };
    let payload = Payload { job: scenario::job(waiting.make_contiguous()), files, guest_tools };
    let machine = lab.boot(kind, &payload, false, progress)?;
    while let Some(scenario) = waiting.front().cloned() {
        let step = progress.step(&scenario.to_string());
        let outcome = run_one(&machine, scenario, lab.logs())?;
        if outcome.failure.is_none() {
            step.done();
        } else {
            drop(step);
        }
        waiting.pop_front();
        report(outcome);
    }
    match machine.next("the end of all scenarios", Duration::from_secs(30))? {
        Event::Exit { .. } => machine.wait_off(),
        other => bail!("expected the end of all scenarios, but Dom0 reported {other:?}"),
    }
}

fn run_one(machine: &Machine, scenario: Scenario, logs: &Path) -> Result<Outcome> {
    let name = scenario.to_string();
    let what = format!("the end of the scenario {name}");
    let begun = machine.next(&what, scenario.total_limit())?;
    let ended = machine.next(&what, scenario.total_limit())?;
    match (begun, ended) {
        (
            Event::Begin { name: begun },
            Event::End { name: ended, status, time, results: archive },
        ) if begun == name && ended == name => {
            let results = logs.join(&name);
            unpack(&archive, &results)?;
            let failure = (status != 0).then(|| output(&results));
            Ok(Outcome { scenario, failure, time, results })
        }
        other => bail!("expected {what}, but Dom0 reported {other:?}"),
    }
}

fn unpack(archive: &[u8], dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    tar::Archive::new(Cursor::new(archive))
        .unpack(dir)
        .with_context(|| format!("cannot unpack a scenario's results into {}", dir.display()))
}

/// Returns a failed scenario's output, and names the directory with the rest of its results.
fn output(results: &Path) -> String {
    let text = fs::read(results.join("output")).unwrap_or_default();
    format!(
        "{}\nConsoles, the daemon's log and its counters: {}",
        String::from_utf8_lossy(&text).trim_end(),
        results.display()
    )
}
