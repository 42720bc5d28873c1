//! The host's tools: the lab installs missing ones as root, or else prints the command to do so.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::progress::Progress;

/// A program that the lab runs, and the Debian package that contains it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "unshare", package: "util-linux" },
    Tool { program: "setpriv", package: "util-linux" },
];

/// The compiler for libFuzzer.
const CPP_COMPILER: &[Tool] = &[Tool { program: "c++", package: "g++" }];

/// Returns whether the lab runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Checks that every tool is installed, and installs missing ones when run as root.
///
/// # Errors
/// A tool is missing and the lab does not run as root, or the installation fails.
pub(crate) fn ensure_tools(progress: &Progress, log: &Path) -> Result<()> {
    ensure(TOOLS, progress, log)
}

/// Does the same as [`ensure_tools`] for the C++ compiler.
pub(crate) fn ensure_cpp_compiler(progress: &Progress, log: &Path) -> Result<()> {
    ensure(CPP_COMPILER, progress, log)
}

fn ensure(tools: &[Tool], progress: &Progress, log: &Path) -> Result<()> {
    let path = env::var("PATH").unwrap_or_default();
    let missing = missing_packages(tools, |program| {
        env::split_paths(&path).any(|dir| dir.join(program).is_file())
    });
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !is_root() {
        bail!("the lab needs tools that are not installed; run:\n    sudo {line}");
    }
    let step = progress.step(&format!("install {}", missing.join(" ")));
    if install(&line, log).is_err() {
        step.at("refreshing apt's lists first");
        install(&format!("apt-get update && {line}"), log)
            .with_context(|| format!("install {} yourself", missing.join(" ")))?;
    }
    step.done();
    Ok(())
}

fn install(line: &str, log: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("DEBIAN_FRONTEND", "noninteractive");
    command::run(&mut shell, line, log)
}

fn missing_packages(tools: &[Tool], found: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        tools.iter().filter(|tool| !found(tool.program)).map(|tool| tool.package).collect();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_packages_are_listed_once() {
        assert_eq!(missing_packages(TOOLS, |_| false), ["mmdebstrap", "util-linux"]);
        assert_eq!(missing_packages(TOOLS, |program| program == "mmdebstrap"), ["util-linux"]);
        assert!(missing_packages(TOOLS, |_| true).is_empty());
    }
}
