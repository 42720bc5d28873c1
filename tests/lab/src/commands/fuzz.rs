//! `cargo lab fuzz [TARGET]`: runs the fuzz targets.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::dirs::Dirs;
use crate::fuzz::{self, Fuzzer, Outcome, Sanitizer};
use crate::progress::Progress;
use crate::summary::Summary;

/// Whether a run adds new inputs to the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// New inputs stay in `target/lab/fuzz`.
    No,
    /// Inputs that reach new code are added to `tests/fuzz/corpus`.
    Yes,
}

/// Runs the target `name`, or all targets one after another, each for `time`; with `files`, runs
/// the target once on each of them instead. Returns the exit status: 0 if no input failed.
pub(crate) fn fuzz(
    name: Option<&str>,
    files: &[PathBuf],
    time: Duration,
    sanitizer: Sanitizer,
    keep: Keep,
) -> Result<i32> {
    let (progress, dirs) = (Progress::new(), Dirs::find()?);
    let mut targets = fuzz::targets(&dirs)?;
    let known = targets.join(", ");
    targets.retain(|target| name.is_none_or(|name| target == name));
    ensure!(
        !targets.is_empty(),
        "unknown target {}: targets are {known}",
        name.unwrap_or_default()
    );
    let fuzzer = Fuzzer::build(&dirs, sanitizer, &dirs.fresh_logs("fuzz")?, &progress)?;
    let mut summary = Summary::default();
    for target in &targets {
        let step = progress.step(&format!("fuzz {target}"));
        let outcome = match files {
            [] => fuzzer.run(target, time, None)?,
            files => fuzzer.try_again(target, files)?,
        };
        step.done();
        report(&mut summary, target, outcome);
        if keep == Keep::Yes {
            fuzzer.keep(target)?;
        }
    }
    println!("{summary}");
    Ok(i32::from(!summary.good()))
}

/// Counts the result of a target.
pub(crate) fn report(summary: &mut Summary, target: &str, outcome: Outcome) {
    match outcome {
        Outcome::Clean { executions } => {
            summary.pass(&format!("fuzz/{target}: {executions} executions"), 1);
        }
        Outcome::Crashed(why) => summary.fail(&format!("fuzz/{target}"), &why),
    }
}
