//! Builds and runs the fuzz targets of `tests/fuzz`, with the coverage that libFuzzer needs.
//!
//! The stable compiler passes the coverage options to LLVM; the crate `libfuzzer-sys` brings
//! libFuzzer as C++ source. So a build needs a C++ compiler beside Rust, and nothing else.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::dirs::Dirs;
use crate::host;
use crate::progress::Progress;

/// The target triple. Cargo applies `RUSTFLAGS` to build scripts and macros unless a target is
/// named, even if it is the host's own.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Makes LLVM count every edge, and report the operands of comparisons to libFuzzer.
const COVERAGE: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares";

/// The stack of each thread in bytes: an eighth of the daemon's.
const SMALL_STACK: &str = "262144";

/// The sanitizer that checks memory accesses while a target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sanitizer {
    /// No sanitizer.
    None,
    /// AddressSanitizer. It is unstable in rustc, so the build sets `RUSTC_BOOTSTRAP`.
    Address,
}

/// The built targets.
pub(crate) struct Fuzzer {
    program: PathBuf,
    sanitizer: Sanitizer,
    /// The corpus in the repository.
    corpus: PathBuf,
    /// Inputs that earlier runs found, and inputs that crashed a target.
    found: PathBuf,
    crashes: PathBuf,
    logs: PathBuf,
}

/// The result of a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No input failed.
    Clean {
        /// The number of inputs that libFuzzer executed.
        executions: u64,
    },
    /// An input failed; holds libFuzzer's output.
    Crashed(String),
}

/// Returns the targets' names, sorted. Each target has a folder of that name in the corpus.
pub(crate) fn targets(dirs: &Dirs) -> Result<Vec<String>> {
    let corpus = dirs.tests().join("fuzz/corpus");
    let entries = fs::read_dir(&corpus)
        .with_context(|| format!("cannot list the corpus in {}", corpus.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

impl Fuzzer {
    /// Builds the targets; installs a C++ compiler if it is missing and the lab runs as root.
    pub(crate) fn build(
        dirs: &Dirs,
        sanitizer: Sanitizer,
        logs: &Path,
        progress: &Progress,
    ) -> Result<Fuzzer> {
        host::ensure_cpp_compiler(progress, &logs.join("install.log"))?;
        let step = progress.step("build the fuzz targets");
        let (flags, target) = match sanitizer {
            Sanitizer::None => (COVERAGE.to_owned(), dirs.project.join("target")),
            Sanitizer::Address => {
                (format!("{COVERAGE} -Zsanitizer=address"), dirs.lab.join("address-sanitizer"))
            }
        };
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo
            .args(["build", "--package", "fuzz", "--bin", "fuzz", "--features", "libfuzzer"])
            .args(["--profile", "fuzz", "--target", TRIPLE, "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", flags)
            .current_dir(&dirs.project);
        if sanitizer == Sanitizer::Address {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        command::run(&mut cargo, "building the fuzz targets", &logs.join("build-fuzz.log"))?;
        step.done();
        let fuzz = dirs.lab.join("fuzz");
        Ok(Fuzzer {
            program: target.join(TRIPLE).join("fuzz/fuzz"),
            sanitizer,
            corpus: dirs.tests().join("fuzz/corpus"),
            found: fuzz.join("found"),
            crashes: fuzz.join("crashes"),
            logs: logs.to_path_buf(),
        })
    }

    /// Returns a command that runs libFuzzer on `target`, and creates its output directories.
    fn libfuzzer(&self, target: &str) -> Result<Command> {
        for directory in [self.found.join(target), self.crashes.clone()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let mut command = Command::new(&self.program);
        command
            .env("FUZZ_TARGET", target)
            .arg(format!("-artifact_prefix={}/{target}-", self.crashes.display()))
            .args(["-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1"])
            // Short inputs do not take a device far enough, so libFuzzer tries long ones at once.
            .args(["-len_control=0", "-max_len=1024"]);
        // A small stack soon reveals a recursion whose depth the input decides. AddressSanitizer
        // itself needs a large one.
        if self.sanitizer == Sanitizer::None {
            command.env("RUST_MIN_STACK", SMALL_STACK);
        }
        Ok(command)
    }

    /// Fuzzes `target` for `time`.
    ///
    /// Runs with the same seed try the same inputs, except where the target's other threads affect
    /// the coverage.
    pub(crate) fn run(&self, target: &str, time: Duration, seed: Option<u32>) -> Result<Outcome> {
        let mut command = self.libfuzzer(target)?;
        command.arg(format!("-max_total_time={}", time.as_secs()));
        // libFuzzer writes new inputs to the first directory, and reads all directories.
        let found = match seed {
            None => self.found.join(target),
            Some(seed) => {
                command.arg(format!("-seed={seed}"));
                self.empty_directory(target)?
            }
        };
        command.args([found, self.corpus.join(target)]);
        self.watch(&mut command, target)
    }

    /// Returns an empty directory for the new inputs of a reproducible run.
    fn empty_directory(&self, target: &str) -> Result<PathBuf> {
        let directory = self.found.with_file_name("once").join(target);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(directory)
    }

    /// Runs `target` once on each of `files`.
    pub(crate) fn try_again(&self, target: &str, files: &[PathBuf]) -> Result<Outcome> {
        let mut command = self.libfuzzer(target)?;
        command.args(files);
        self.watch(&mut command, target)
    }

    /// Adds to the corpus a minimal set of the found inputs that reach code which it does not.
    pub(crate) fn keep(&self, target: &str) -> Result<()> {
        let mut command = self.libfuzzer(target)?;
        command.arg("-set_cover_merge=1").args([self.corpus.join(target), self.found.join(target)]);
        let log = self.logs.join(format!("keep-{target}.log"));
        command::run(&mut command, &format!("adding to the corpus of {target}"), &log)
    }

    fn watch(&self, command: &mut Command, target: &str) -> Result<Outcome> {
        let log = self.logs.join(format!("{target}.log"));
        let ran = command::run(command, &format!("the fuzz target {target}"), &log);
        let said = fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        match ran {
            Ok(()) => Ok(Outcome::Clean { executions: executions(&said) }),
            Err(error) => Ok(Outcome::Crashed(format!("{}{error:#}", complaint(&said)))),
        }
    }
}

/// Returns the number of executions that libFuzzer reports at the end of its output.
fn executions(said: &str) -> u64 {
    let number =
        |line: &str| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok();
    let counted = said.lines().rev().find_map(number);
    // For single files libFuzzer prints one line each instead of a count.
    counted
        .unwrap_or_else(|| said.lines().filter(|line| line.starts_with("Executed ")).count() as u64)
}

/// Returns the lines of a target's panic message, which are far above the end of the log.
fn complaint(said: &str) -> String {
    let mut lines = said.lines().skip_while(|line| !line.contains(" panicked at "));
    lines.by_ref().take(3).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_read_from_libfuzzers_output() {
        let said = "#66395\tDONE   cov: 116\nstat::number_of_executed_units: 66395\nstat::x: 1\n";
        assert_eq!(executions(said), 66395);
        assert_eq!(executions("Running: a\nExecuted a in 3 ms\nExecuted b in 1 ms\n"), 2);
        assert_eq!(executions(""), 0);
    }

    #[test]
    fn panic_is_quoted() {
        let said = "INFO: seed\nthread '<unnamed>' (1) panicked at src/page.rs:7:5:\nassertion failed\nback\nx\n";
        assert!(
            complaint(said)
                .starts_with("thread '<unnamed>' (1) panicked at src/page.rs:7:5:\nassert")
        );
        assert_eq!(complaint("INFO: seed\n"), "");
    }
}
