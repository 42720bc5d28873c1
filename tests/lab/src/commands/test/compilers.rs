//! Checks of the compilers that the project supports, each with the crates that it must compile.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, PackagesBuild};
use crate::command;
use crate::debian::Suite;
use crate::debian::inside::Inside;
use crate::dirs::Dirs;
use crate::fetch::Guest;
use crate::progress::Progress;

/// The context of a check.
pub(super) struct Bench<'a> {
    /// The lab's directories.
    pub(super) dirs: &'a Dirs,
    /// The directory for logs.
    pub(super) logs: &'a Path,
    /// The display of long steps.
    pub(super) progress: &'a Progress,
}

/// The result of a check that did not fail.
pub(super) enum Tried {
    /// This compiler passed.
    By(String),
    /// The check was skipped for this reason.
    Not(String),
}

/// A compiler, and the check that it must pass.
pub(super) struct Compiler {
    /// The name of the check.
    pub(super) name: &'static str,
    /// Whether only `cargo lab soak` checks it.
    pub(super) soak: bool,
    /// The check.
    pub(super) check: fn(&Bench) -> Result<Tried>,
}

/// All compilers.
pub(super) const COMPILERS: [Compiler; 3] = [
    Compiler { name: "compiler/declared", soak: false, check: declared },
    // The check packages/trixie builds all but the lab by this one.
    Compiler { name: "compiler/debian", soak: true, check: debian },
    Compiler { name: "compiler/debian-guest", soak: false, check: debian_guest },
];

/// Checks the `rust-version` of the workspace with a toolchain of rustup's. If the current compiler
/// has that version, the other checks already prove that it works.
fn declared(bench: &Bench) -> Result<Tried> {
    let declared = declared_in(&bench.dirs.project.join("Cargo.toml"))?;
    let current =
        command::output(Command::new("rustc").arg("--version"), "asking rustc for its version")?;
    if current.parse::<RustVersion>()? == declared {
        return Ok(Tried::By(format!("{}, as in all other checks", current.trim())));
    }
    let Some(toolchain) = rustups(declared) else {
        let why =
            format!("Rust {declared} is not installed: run `rustup toolchain install {declared}`");
        // The continuous integration must not skip the check.
        ensure!(env::var_os("CI").is_none(), "{why}");
        return Ok(Tried::Not(why));
    };
    let mut cargo = Command::new("rustup");
    cargo
        .args(["run", &toolchain, "cargo", "check", "--workspace", "--all-targets", "--target-dir"])
        .arg(bench.dirs.lab.join("declared"))
        .env_remove("CARGO")
        .current_dir(&bench.dirs.project);
    let log = bench.logs.join("compiler-declared.log");
    command::run(&mut cargo, &format!("cargo check by {toolchain}"), &log)?;
    Ok(Tried::By(toolchain))
}

/// Returns the name of rustup's toolchain with this version, if there is one.
fn rustups(version: RustVersion) -> Option<String> {
    let mut list = Command::new("rustup");
    let toolchains =
        command::output(list.args(["toolchain", "list"]), "listing toolchains").ok()?;
    let names = toolchains.lines().filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).find(|name| {
        let number = name.split_once('-').map_or(name.as_str(), |(number, _)| number);
        number.parse::<RustVersion>().is_ok_and(|found| found == version)
    })
}

/// Checks Debian 13's compiler, which README names: it must build the packages, and the lab.
fn debian(bench: &Bench) -> Result<Tried> {
    let build = PackagesBuild::prepare(Suite::LAB, bench.dirs, bench.logs, bench.progress)?;
    build.build(bench.progress)?;
    build.lab(bench.progress)?;
    Ok(Tried::By(build.compiler()?))
}

/// Checks Debian 13's default compiler, which builds a guest's module: the module's crates must
/// declare its version, and it must build the module's core.
fn debian_guest(bench: &Bench) -> Result<Tried> {
    let Bench { dirs, logs, progress } = bench;
    let guest = Guest::fetch_native(&dirs.cache, logs, progress)?;
    let root = guest.kernel().build_root();
    let mut rustc = Inside::new(root).shell("rustc --version");
    let compiler = command::output(&mut rustc, "asking the guest's rustc for its version")?;
    for manifest in ["guest-shim/core/Cargo.toml", "guest-shim/protocol/Cargo.toml"] {
        let declared = declared_in(&dirs.project.join(manifest))?;
        ensure!(
            compiler.parse::<RustVersion>()? == declared,
            "{manifest} declares Rust {declared}, but Debian 13 has {}",
            compiler.trim()
        );
    }
    build::module_core(dirs, root, logs, progress)?;
    Ok(Tried::By(compiler.trim().to_owned()))
}

/// A version of Rust, as precise as in a manifest: without the patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RustVersion {
    major: u32,
    minor: u32,
}

impl fmt::Display for RustVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for RustVersion {
    type Err = anyhow::Error;

    /// Parses `1.85`, `1.85.1` or `rustc 1.85.1 (4eb161250 2025-03-15)`.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim().strip_prefix("rustc ").unwrap_or(text.trim());
        let number = number.split_whitespace().next().unwrap_or_default();
        let parts: Vec<_> = number.split('.').map(str::parse::<u32>).collect();
        match parts.as_slice() {
            [Ok(major), Ok(minor)] | [Ok(major), Ok(minor), Ok(_)] => {
                Ok(RustVersion { major: *major, minor: *minor })
            }
            _ => bail!("{text:?} is no version of Rust"),
        }
    }
}

/// Returns the `rust-version` that a manifest declares.
fn declared_in(manifest: &Path) -> Result<RustVersion> {
    let text = fs::read_to_string(manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
        .with_context(|| format!("{} declares no rust-version", manifest.display()))?
        .parse()
        .with_context(|| format!("in {}", manifest.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_parsed_from_manifests_and_rustc() {
        for text in
            ["1.85", "1.85.1", "rustc 1.85.1 (4eb161250 2025-03-15) (built from a tarball)\n"]
        {
            let version: RustVersion = text.parse().unwrap();
            assert_eq!(version, RustVersion { major: 1, minor: 85 });
        }
        for text in ["", "rustc", "1", "1.x", "nightly", "1.2.3.4"] {
            assert!(text.parse::<RustVersion>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn crates_declare_a_checked_version() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for manifest in
            ["Cargo.toml", "guest-shim/core/Cargo.toml", "guest-shim/protocol/Cargo.toml"]
        {
            declared_in(&project.join(manifest)).unwrap();
        }
        let workspace = fs::read_to_string(project.join("Cargo.toml")).unwrap();
        let members =
            workspace.lines().filter_map(|line| line.strip_prefix("    \"")?.strip_suffix("\","));
        for member in
            members.filter(|member| !matches!(*member, "guest-shim/core" | "guest-shim/protocol"))
        {
            let manifest = fs::read_to_string(project.join(member).join("Cargo.toml")).unwrap();
            assert!(manifest.contains("\nrust-version.workspace = true\n"), "{member}");
        }
    }
}
