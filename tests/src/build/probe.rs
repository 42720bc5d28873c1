//! `probe`, the scenarios' program for guests: linked statically, as guests have no libraries.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::dirs::Dirs;
use crate::progress::Progress;

/// Named although it is the host's own: flags for it then spare build scripts and macros, which
/// cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program; gives its path.
pub(super) fn build(dirs: &Dirs, logs: &Path, progress: &Progress) -> Result<PathBuf> {
    let step = progress.step("build probe");
    let target = dirs.project.join("target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--release", "--package", "probe", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(&dirs.project);
    command::run(&mut cargo, "building probe", &logs.join("build-probe.log"))?;
    step.done();
    Ok(target.join(TARGET).join("release/probe"))
}
