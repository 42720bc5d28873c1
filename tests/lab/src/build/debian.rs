//! Builds the project as a user does on Debian: by README's command, inside a root with the
//! packages that README names.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::debian::inside::{Access, Inside};
use crate::debian::root::Root;
use crate::dirs::Dirs;
use crate::fetch;
use crate::progress::Progress;
use crate::readme::Dom0Commands;
use crate::store;

/// Cargo's configuration inside the root: cargo takes crates from `/crates`, not from the network.
const CARGO_CONFIG: &str = "[net]\noffline = true\n\
                            [source.crates-io]\nreplace-with = \"crates\"\n\
                            [source.crates]\ndirectory = \"/crates\"\n";

/// A root that can build the project.
pub(crate) struct DebianBuild<'a> {
    dirs: &'a Dirs,
    logs: &'a Path,
    commands: Dom0Commands,
    root: Root,
    crates: PathBuf,
}

impl<'a> DebianBuild<'a> {
    /// Fetches the root, and the sources of the crates that Cargo.lock names.
    pub(crate) fn prepare(dirs: &'a Dirs, logs: &'a Path, progress: &Progress) -> Result<Self> {
        let commands = Dom0Commands::read(&dirs.project)?;
        let root = fetch::rust_root(&commands.packages, &dirs.cache, logs, progress)?;
        let crates = crates(dirs, logs)?;
        for directory in [target(dirs), cargo_home(dirs)] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        fs::write(cargo_home(dirs).join("config.toml"), CARGO_CONFIG)?;
        Ok(DebianBuild { dirs, logs, commands, root, crates })
    }

    /// Returns the version line of the root's compiler.
    pub(crate) fn compiler(&self) -> Result<String> {
        let mut rustc = self.inside().shell("rustc --version");
        Ok(command::output(&mut rustc, "asking Debian's rustc for its version")?.trim().to_owned())
    }

    /// Builds the daemon by README's command, and returns its path.
    pub(crate) fn daemon(&self, progress: &Progress) -> Result<PathBuf> {
        let step = progress.step("build xen-virtiod on Debian, by README's command");
        self.run("daemon", &self.commands.build)?;
        step.done();
        Ok(target(self.dirs).join("release/xen-virtiod"))
    }

    /// Returns README's commands that install the built daemon.
    pub(crate) fn install_commands(&self) -> &[String] {
        &self.commands.install
    }

    /// Builds the lab, and runs `cargo lab help`.
    pub(crate) fn lab(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("build the lab on Debian");
        self.run("lab", "cargo lab help")?;
        step.done();
        Ok(())
    }

    /// Returns the output of a built program for `--version`.
    pub(crate) fn version_of(&self, program: &Path) -> Result<String> {
        let inside = Path::new("/project/target").join(program.strip_prefix(target(self.dirs))?);
        let mut shell = self.inside().shell(&format!("{} --version", inside.display()));
        let what = format!("asking {} for its version", program.display());
        Ok(command::output(&mut shell, &what)?.trim().to_owned())
    }

    fn run(&self, what: &str, script: &str) -> Result<()> {
        let log = self.logs.join(format!("debian-{what}.log"));
        let mut shell = self.inside().shell(&format!("cd /project\n{script}"));
        command::run(&mut shell, &format!("`{script}` on Debian"), &log)
    }

    fn inside(&self) -> Inside<'_> {
        Inside::new(&self.root)
            .mount(Access::Read, &self.dirs.project, "project")
            .mount(Access::Write, &target(self.dirs), "project/target")
            .mount(Access::Read, &self.crates, "crates")
            .mount(Access::Write, &cargo_home(self.dirs), "root/.cargo")
    }
}

fn target(dirs: &Dirs) -> PathBuf {
    dirs.lab.join("debian/target")
}

fn cargo_home(dirs: &Dirs) -> PathBuf {
    dirs.lab.join("debian/cargo")
}

/// Copies the sources of all crates that Cargo.lock names to a directory on the host.
fn crates(dirs: &Dirs, logs: &Path) -> Result<PathBuf> {
    let lock = dirs.project.join("Cargo.lock");
    let locked =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    store::entry(&dirs.lab, "crates", &store::key([locked.as_str()]), |directory| {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["vendor", "--locked"]).arg(directory).current_dir(&dirs.project);
        command::run(&mut cargo, "copying the crates", &logs.join("debian-crates.log"))
    })
}
