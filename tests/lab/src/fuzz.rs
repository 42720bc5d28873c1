//! The fuzz targets of `tests/fuzz`, built with what libFuzzer needs to see where an input leads.
//!
//! The coverage is an option of the stable compiler's, passed on to LLVM; libFuzzer itself comes in
//! C++ with the crate `libfuzzer-sys`. So all that is needed beside Rust is a C++ compiler.

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

/// Named so that build scripts and macros, which are the host's too, are built without.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Has LLVM count every edge, and tell libFuzzer what is compared with what.
const COVERAGE: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares";

/// Bytes of the stack of each thread: an eighth of what the daemon's have.
const SMALL_STACK: &str = "262144";

/// What looks after memory while a target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sanitizer {
    /// Nothing.
    None,
    /// AddressSanitizer. The compiler calls it unstable, and has to be told that it may be used.
    Address,
}

/// The targets, built.
pub(crate) struct Fuzzer {
    program: PathBuf,
    sanitizer: Sanitizer,
    /// What is kept.
    corpus: PathBuf,
    /// What was found so far, and what crashed.
    found: PathBuf,
    crashes: PathBuf,
    logs: PathBuf,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// So many executions, and nothing wrong.
    Clean {
        /// How many.
        executions: u64,
    },
    /// Something is wrong: what libFuzzer said.
    Crashed(String),
}

/// The targets' names: the folders of the corpus, of which each target has one.
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
    /// Builds them.
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

    /// libFuzzer with a target. What it writes goes into a directory of its own.
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
            // Devices need a few steps to get anywhere, so that long inputs are tried from the
            // beginning.
            .args(["-len_control=0", "-max_len=1024"]);
        // What recurses as deep as a file says is found soon. AddressSanitizer itself needs much of
        // a stack.
        if self.sanitizer == Sanitizer::None {
            command.env("RUST_MIN_STACK", SMALL_STACK);
        }
        Ok(command)
    }

    /// Looks for something wrong as long as `time`. With a seed it tries the same inputs each time,
    /// but for those that other threads have a part in.
    pub(crate) fn run(&self, target: &str, time: Duration, seed: Option<u32>) -> Result<Outcome> {
        let mut command = self.libfuzzer(target)?;
        command.arg(format!("-max_total_time={}", time.as_secs()));
        // libFuzzer writes to the first directory what it finds, and reads all of them.
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

    /// For what is found by a run that is to be like every other.
    fn empty_directory(&self, target: &str) -> Result<PathBuf> {
        let directory = self.found.with_file_name("once").join(target);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(directory)
    }

    /// Tries inputs once more.
    pub(crate) fn try_again(&self, target: &str, files: &[PathBuf]) -> Result<Outcome> {
        let mut command = self.libfuzzer(target)?;
        command.args(files);
        self.watch(&mut command, target)
    }

    /// Takes from what was found what leads to code that the corpus does not reach, as few inputs
    /// as will do.
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

/// How many there were, as libFuzzer says at the end.
fn executions(said: &str) -> u64 {
    let number =
        |line: &str| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok();
    let counted = said.lines().rev().find_map(number);
    // Of files that are tried again it says one by one that it ran them.
    counted
        .unwrap_or_else(|| said.lines().filter(|line| line.starts_with("Executed ")).count() as u64)
}

/// What a target said that panicked, which is far above the end of the log.
fn complaint(said: &str) -> String {
    let mut lines = said.lines().skip_while(|line| !line.contains(" panicked at "));
    lines.by_ref().take(3).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_those_that_libfuzzer_counts() {
        let said = "#66395\tDONE   cov: 116\nstat::number_of_executed_units: 66395\nstat::x: 1\n";
        assert_eq!(executions(said), 66395);
        assert_eq!(executions("Running: a\nExecuted a in 3 ms\nExecuted b in 1 ms\n"), 2);
        assert_eq!(executions(""), 0);
    }

    #[test]
    fn a_panic_is_quoted() {
        let said = "INFO: seed\nthread '<unnamed>' (1) panicked at src/page.rs:7:5:\nassertion failed\nback\nx\n";
        assert!(
            complaint(said)
                .starts_with("thread '<unnamed>' (1) panicked at src/page.rs:7:5:\nassert")
        );
        assert_eq!(complaint("INFO: seed\n"), "");
    }
}
