//! Runs a program of the host, keeps what it printed, and says where that is when it fails.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many of a failed program's last lines its error quotes.
const QUOTED_LINES: usize = 15;

/// Runs `command` to its end, its output going to the file `log`; `what` names it in errors.
pub(crate) fn run(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    run_watched(command, what, log, |_| ())
}

/// As [`run`]; each line of standard error is also given to `watch` as it comes.
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
        bail!("{what}: {status}. {}", quote(log));
    }
    Ok(())
}

/// Runs `command` and gives what it printed on standard output.
pub(crate) fn output(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last lines of `log`, introduced by its name.
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
    fn a_failure_names_the_log_and_quotes_its_end() {
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
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            run(&mut Command::new("/no/such/program"), "the thing", &dir.path().join("log"))
                .unwrap_err()
                .to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn the_output_of_a_program_is_given() {
        assert_eq!(output(&mut shell("echo hello"), "echo").unwrap(), "hello\n");
    }
}
