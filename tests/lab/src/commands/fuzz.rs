//! `cargo lab fuzz [TARGET]`: looks for what is not dealt with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::dirs::Dirs;
use crate::fuzz::{self, Fuzzer, Outcome, Sanitizer};
use crate::progress::Progress;
use crate::tally::Tally;

/// Whether what a run found becomes part of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It stays in `target/lab/fuzz`.
    No,
    /// What leads to code not reached before is added to `tests/fuzz/corpus`.
    Yes,
}

/// Runs a target, or all of them one after another, each as long as `time`; or tries `files` once
/// more.
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
    ensure!(!targets.is_empty(), "there is no such target; there are: {known}");
    let fuzzer = Fuzzer::build(&dirs, sanitizer, &dirs.fresh_logs("fuzz")?, &progress)?;
    let mut tally = Tally::default();
    for target in &targets {
        let step = progress.step(&format!("fuzz {target}"));
        let outcome = match files {
            [] => fuzzer.run(target, time, None)?,
            files => fuzzer.try_again(target, files)?,
        };
        step.done();
        report(&mut tally, target, outcome);
        if keep == Keep::Yes {
            fuzzer.keep(target)?;
        }
    }
    println!("{tally}");
    Ok(i32::from(!tally.good()))
}

/// Counts what came of a target.
pub(crate) fn report(tally: &mut Tally, target: &str, outcome: Outcome) {
    match outcome {
        Outcome::Clean { executions } => {
            tally.pass(&format!("fuzz/{target}: {executions} executions"), 1);
        }
        Outcome::Crashed(why) => tally.fail(&format!("fuzz/{target}"), &why),
    }
}
