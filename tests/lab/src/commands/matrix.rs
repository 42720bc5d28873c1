//! `cargo lab matrix [FILTER]`: runs the experiments with types of virtio host on Xen.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::debian::Arch;
use crate::dirs::Dirs;
use crate::e2e::{self, Outcome};
use crate::lab::Lab;
use crate::matrix::{self, MatrixResult};
use crate::progress::Progress;
use crate::scenario;

/// The file among a scenario's results that has its rows of the matrix.
const CELLS: &str = "results";

/// Runs the scenarios whose name contains `filter`, prints their results, and compares them with
/// the README's table. Rows of the README without a result count only if there is no filter.
/// Returns the exit status: 0 if no scenario failed and no result differs.
pub(crate) fn matrix(filter: &str) -> Result<i32> {
    let progress = Progress::new();
    let dirs = Dirs::find()?;
    let readme = fs::read_to_string(dirs.tests().join("matrix/README.md"))?;
    let expected =
        matrix::table(&readme).context("cannot parse the table in tests/matrix/README.md")?;
    let mut run = Experiment::default();
    if filter.is_empty() {
        run.results = simulated(&dirs, &progress)?;
    }
    let mut scenarios = scenario::matrix(&dirs.tests())?;
    scenarios.retain(|scenario| scenario.to_string().contains(filter));
    ensure!(!scenarios.is_empty(), "no scenario of the matrix has `{filter}` in its name");
    let lab = Lab::prepare(Arch::default(), "matrix", &[], &progress)?;
    e2e::run(&lab, &scenarios, &[], &progress, |outcome| run.take(&outcome));
    run.results.sort_by_key(MatrixResult::row);
    run.show(&dirs, &expected, filter.is_empty())
}

/// Runs the tests of platforms that only the simulated hypervisor has.
fn simulated(dirs: &Dirs, progress: &Progress) -> Result<Vec<MatrixResult>> {
    let logs = dirs.fresh_logs("matrix-simulated")?;
    let log = logs.join("test.log");
    let step = progress.step("platforms on the simulated hypervisor");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["test", "--package", matrix::PACKAGE, "--lib", matrix::TESTS])
        .current_dir(&dirs.project);
    // A failed test gives a result that differs from the README.
    match command::run(&mut cargo, "testing the platforms", &log) {
        Ok(()) => step.done(),
        Err(_) => drop(step),
    }
    Ok(matrix::simulated(&String::from_utf8_lossy(&fs::read(&log)?)))
}

/// The results of a run.
#[derive(Default)]
struct Experiment {
    results: Vec<MatrixResult>,
    failures: Vec<String>,
}

impl Experiment {
    fn take(&mut self, outcome: &Outcome) {
        let mut fail = |why: &str| self.failures.push(format!("{}: {why}", outcome.scenario));
        if let Some(why) = &outcome.failure {
            fail(why);
        }
        match read_cells(&outcome.results) {
            Ok(results) => self.results.extend(results),
            Err(error) => fail(&format!("{error:#}")),
        }
    }

    /// Prints the results, failures and differences, and writes the table. Returns the exit status:
    /// 0 if there are no failures and no differences from `expected`.
    fn show(&self, dirs: &Dirs, expected: &[MatrixResult], whole: bool) -> Result<i32> {
        println!("\n{}", matrix::plain(&self.results));
        let file = dirs.lab.join("matrix.md");
        fs::write(&file, matrix::markdown(&self.results, true))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let mut differences = matrix::differences(&self.results, expected);
        differences.retain(|difference| whole || !difference.is_missing());
        for failure in &self.failures {
            println!("FAILED  {failure}");
        }
        for difference in &differences {
            println!("DIFFERS {difference}");
        }
        println!("{} results; table with evidence: {}", self.results.len(), file.display());
        let good = self.failures.is_empty() && differences.is_empty();
        if good {
            println!("All results are as tests/matrix/README.md expects.");
        }
        Ok(i32::from(!good))
    }
}

/// Reads a scenario's results of the matrix; none if the file does not exist.
fn read_cells(results: &Path) -> Result<Vec<MatrixResult>> {
    let file = results.join(CELLS);
    match file.exists() {
        true => MatrixResult::read_all(&fs::read_to_string(&file)?),
        false => Ok(Vec::new()),
    }
}
