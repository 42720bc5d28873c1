//! Compiles programs: by this host's cargo, as a user does, or for another architecture by
//! Debian's, in the root of the tools.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::packages::{CARGO_CONFIG, crates};
use crate::command;
use crate::debian::Arch;
use crate::debian::inside::{Access, Inside};
use crate::debian::root::Root;
use crate::dirs::Dirs;
use crate::fetch::Fetched;

/// What `cargo build` needs to know of the root of the tools, where the root of a guest is mounted
/// on `/target`: the standard library, the linkers, one of them for build scripts, and where crates
/// are.
const ENTER_CROSS: &str = "ln -s /target/usr/lib/rustlib/$TARGET /usr/lib/rustlib/
export CARGO_HOME=/out/home CARGO_TARGET_DIR=/out
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=gcc
cd /project";

/// The linking of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linking {
    /// With the libraries of the system that it runs on.
    Dynamic,
    /// Without any, and without symbols.
    Static,
}

impl Linking {
    fn flags(self) -> &'static str {
        match self {
            Linking::Dynamic => "",
            Linking::Static => "-C target-feature=+crt-static -C strip=symbols",
        }
    }
}

/// A compiler, and where its logs go.
pub(crate) struct Compiler<'a> {
    dirs: &'a Dirs,
    logs: &'a Path,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Host,
    Cross { arch: Arch, tools: &'a Root, guest: &'a Root },
}

impl<'a> Compiler<'a> {
    /// This host's cargo.
    pub(crate) fn host(dirs: &'a Dirs, logs: &'a Path) -> Self {
        Self { dirs, logs, kind: Kind::Host }
    }

    /// The one for the architecture of what was fetched.
    pub(crate) fn for_fetched(fetched: &'a Fetched, dirs: &'a Dirs, logs: &'a Path) -> Self {
        let (arch, tools) = (fetched.tools.arch(), fetched.tools.root());
        let guest = fetched.guest.kernel().build_root();
        let kind = match arch {
            Arch::X86_64 => Kind::Host,
            Arch::Aarch64 => Kind::Cross { arch, tools, guest },
        };
        Self { dirs, logs, kind }
    }

    /// Builds `packages` in release mode, and returns the directory of the programs; `what` names
    /// the log.
    pub(super) fn build(&self, what: &str, packages: &[&str], linking: Linking) -> Result<PathBuf> {
        let log = self.logs.join(format!("build-{what}.log"));
        let (mut command, built) = match self.kind {
            Kind::Host => self.by_host(packages, linking),
            Kind::Cross { arch, tools, guest } => {
                self.by_tools(arch, tools, guest, packages, linking)?
            }
        };
        command::run(&mut command, &format!("building {what}"), &log)?;
        Ok(built.join("release"))
    }

    fn by_host(&self, packages: &[&str], linking: Linking) -> (Command, PathBuf) {
        let mut built = self.dirs.project.join("target");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--release", "--target-dir"]).arg(&built);
        cargo.current_dir(&self.dirs.project);
        for package in packages {
            cargo.args(["--package", package]);
        }
        if linking == Linking::Static {
            // Cargo applies `RUSTFLAGS` to build scripts and macros, which cannot be static, unless
            // a target is named, even if it is the host's own.
            let target = Arch::X86_64.target();
            cargo.args(["--target", target]).env("RUSTFLAGS", linking.flags());
            built.push(target);
        }
        (cargo, built)
    }

    fn by_tools(
        &self,
        arch: Arch,
        tools: &Root,
        guest: &Root,
        packages: &[&str],
        linking: Linking,
    ) -> Result<(Command, PathBuf)> {
        let built = self.dirs.lab.join("cargo");
        let home = built.join("home");
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        fs::write(home.join("config.toml"), CARGO_CONFIG)?;
        let target = arch.target();
        let packages: String =
            packages.iter().map(|package| format!(" --package {package}")).collect();
        let script = format!(
            "export TARGET={target} RUSTFLAGS='{}'\n{ENTER_CROSS}\n\
             cargo build --release --locked --target {target}{packages}",
            linking.flags()
        );
        let command = Inside::copy_of(tools)
            .mount(Access::Read, &self.dirs.project, "project")
            .mount(Access::Read, &crates(self.dirs, self.logs)?, "crates")
            .mount(Access::Read, guest.path(), "target")
            .mount(Access::Write, &built, "out")
            .shell(&script);
        Ok((command, built.join(target)))
    }
}
