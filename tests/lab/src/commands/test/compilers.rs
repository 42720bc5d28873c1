//! The compilers that the project says it suits, each with what it is said to compile.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, DebianBuild};
use crate::command;
use crate::debian::inside::Inside;
use crate::dirs::Dirs;
use crate::fetch::Guest;
use crate::progress::Progress;

/// What a check needs.
pub(super) struct Bench<'a> {
    /// Where the project is.
    pub(super) dirs: &'a Dirs,
    /// Where the logs go.
    pub(super) logs: &'a Path,
    /// Where the user sees what takes long.
    pub(super) progress: &'a Progress,
}

/// How a check went that did not fail.
pub(super) enum Tried {
    /// By this compiler.
    By(String),
    /// Not, for this reason.
    Not(String),
}

/// A compiler, and what it must compile.
pub(super) struct Compiler {
    /// What the check is called.
    pub(super) name: &'static str,
    /// Tries it.
    pub(super) check: fn(&Bench) -> Result<Tried>,
}

/// All of them.
pub(super) const COMPILERS: [Compiler; 3] = [
    Compiler { name: "compiler/declared", check: declared },
    Compiler { name: "compiler/debian", check: debian },
    Compiler { name: "compiler/debian-guest", check: debian_guest },
];

/// `rust-version` of the workspace: the compiler at hand, which all else is checked by, or one of
/// rustup's.
fn declared(bench: &Bench) -> Result<Tried> {
    let declared = declared_in(&bench.dirs.project.join("Cargo.toml"))?;
    let at_hand = command::output(Command::new("rustc").arg("--version"), "asking for a version")?;
    if at_hand.parse::<RustVersion>()? == declared {
        return Ok(Tried::By(format!("{}, as all else here", at_hand.trim())));
    }
    let Some(toolchain) = rustups(declared) else {
        let why = format!("there is no Rust {declared}: `rustup toolchain install {declared}`");
        // Where changes are judged, what is declared is tried.
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

/// The name of a toolchain of rustup's with this version.
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

/// Debian 13's, from the packages that README names for Dom0: the daemon by README's command, and
/// the lab.
fn debian(bench: &Bench) -> Result<Tried> {
    let build = DebianBuild::prepare(bench.dirs, bench.logs, bench.progress)?;
    let said = build.version_of(&build.daemon(bench.progress)?)?;
    let expected = concat!("xen-virtiod ", env!("CARGO_PKG_VERSION"));
    ensure!(said == expected, "xen-virtiod --version says {said:?}, not {expected:?}");
    build.lab(bench.progress)?;
    Ok(Tried::By(build.compiler()?))
}

/// Debian 13's plain one, which a guest's module is built by: it is what the module's crates
/// declare.
fn debian_guest(bench: &Bench) -> Result<Tried> {
    let Bench { dirs, logs, progress } = bench;
    let guest = Guest::fetch(&dirs.cache, logs, progress)?;
    let root = guest.kernel().build_root();
    let mut rustc = Inside::new(root).shell("rustc --version");
    let compiler = command::output(&mut rustc, "asking the guest's rustc for its version")?;
    for manifest in ["guest-shim/core/Cargo.toml", "guest-shim/protocol/Cargo.toml"] {
        let declared = declared_in(&dirs.project.join(manifest))?;
        ensure!(
            compiler.parse::<RustVersion>()? == declared,
            "{manifest} declares {declared}, and Debian 13 has {}",
            compiler.trim()
        );
    }
    build::module_core(dirs, root, logs, progress)?;
    Ok(Tried::By(compiler.trim().to_owned()))
}

/// A version of Rust, as precise as a manifest gives it.
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

    /// Of `1.85`, `1.85.1` or `rustc 1.85.1 (4eb161250 2025-03-15)`.
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

/// What a manifest declares as `rust-version`.
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
    fn a_version_is_read_from_manifests_and_from_what_rustc_says() {
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
    fn every_crate_declares_a_version_that_is_tried() {
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
