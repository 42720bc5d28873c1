//! Runs a program on the host, keeps its output in a log, and names the log if the program fails.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The number of lines at the end of a log that an error quotes.
const QUOTED_LINES: usize = 15;

/// Runs `command` to its end and appends its output to the file `log`; `what` names it in errors.
pub(crate) fn run(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    run_watched(command, what, log, |_| ())
}

/// Runs `command` like [`run`], and passes each line of standard error to `watch` as it arrives.
pub(crate) fn run_watched(
    command: &mut Command,
    what: &str,
    log: &Path,
    watch: impl Fn(&str),
) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write the log {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line.unwrap_or_default();
            writeln!(file, "{line}")?;
            watch(&line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{what} failed: {status}. {}", quote(log));
    }
    Ok(())
}

/// Runs `command` and returns its standard output; an error quotes its standard error.
pub(crate) fn output(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{what} failed: {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the last lines of `log`, after a line that names it.
pub(crate) fn quote(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(QUOTED_LINES)..);
    format!("The log {} ends with:\n{}", log.display(), tail.unwrap_or_default().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn failed_program_error_names_the_log_and_quotes_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = run(&mut shell("echo out; echo wrong >&2; exit 3"), "the thing", &log)
            .unwrap_err()
            .to_string();
        for part in ["the thing", "exit status: 3", "out", "wrong"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(error.contains(&log.display().to_string()), "{error}");
    }

    #[test]
    fn missing_program_error_names_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            run(&mut Command::new("/no/such/program"), "the thing", &dir.path().join("log"))
                .unwrap_err()
                .to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn output_returns_standard_output() {
        assert_eq!(output(&mut shell("echo hello"), "echo").unwrap(), "hello\n");
    }
}
