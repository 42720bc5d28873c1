//! The host's own tools: what is missing is installed, or named in a line to paste.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::progress::Progress;

/// A program the lab calls, and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "unshare", package: "util-linux" },
    Tool { program: "setpriv", package: "util-linux" },
];

/// What builds C++.
const CPP_COMPILER: &[Tool] = &[Tool { program: "c++", package: "g++" }];

/// Whether the lab runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Makes sure that every tool is there: installs what is not when run as root.
pub(crate) fn ensure_tools(progress: &Progress, log: &Path) -> Result<()> {
    ensure(TOOLS, progress, log)
}

/// As [`ensure_tools`], of what builds C++.
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
        bail!("the lab needs tools this machine lacks; paste this line:\n    sudo {line}");
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
    fn each_missing_package_is_named_once() {
        assert_eq!(missing_packages(TOOLS, |_| false), ["mmdebstrap", "util-linux"]);
        assert_eq!(missing_packages(TOOLS, |program| program == "mmdebstrap"), ["util-linux"]);
        assert!(missing_packages(TOOLS, |_| true).is_empty());
    }
}
