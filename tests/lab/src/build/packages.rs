//! Builds the Debian packages in a root of their release, and tries them in a clean system.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::debian::Suite;
use crate::debian::inside::{Access, Inside};
use crate::debian::root::Root;
use crate::dirs::Dirs;
use crate::fetch;
use crate::progress::Progress;
use crate::store;

/// Cargo's configuration inside the root: cargo takes crates from `/crates`, not from the network.
pub(super) const CARGO_CONFIG: &str = "[net]\noffline = true\n\
                            [source.crates-io]\nreplace-with = \"crates\"\n\
                            [source.crates]\ndirectory = \"/crates\"\n";

/// Copies the sources to `/packages/source` and builds the packages beside it. Their only sources
/// are those that git knows. The compiler's products stay in `/project/target` for the next build.
const BUILD: &str = "rm -rf /packages/source
mkdir /packages/source
cd /project
tar -cf - -T /packages/files | tar -C /packages/source -xf -
cd /packages/source
cp -r packages/debian debian
. /etc/os-release
sed -i \"1s/)/~deb$VERSION_ID)/\" debian/changelog
export SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -STimestamp)
export CARGO_HOME=/root/.cargo CARGO_TARGET_DIR=/project/target
dpkg-buildpackage -d -b -us -uc
cd ..
rm -r source";

/// Runs lintian; tags of any severity are errors. The names of the releases in the changelog and of
/// the maintainer are no concern of packages that are in no archive.
const LINT: &str = "lintian --allow-root --fail-on error,warning,info --display-info \
                    --suppress-tags initial-upload-closes-no-bugs,no-homepage-field \
                    /packages/*.changes";

/// A root that builds the packages of a release.
pub(crate) struct PackagesBuild<'a> {
    dirs: &'a Dirs,
    logs: &'a Path,
    suite: Suite,
    root: Root,
    crates: PathBuf,
}

impl<'a> PackagesBuild<'a> {
    /// Fetches the root, and the sources of the crates that Cargo.lock names.
    pub(crate) fn prepare(
        suite: Suite,
        dirs: &'a Dirs,
        logs: &'a Path,
        progress: &Progress,
    ) -> Result<Self> {
        let root = fetch::build_root(suite, &build_depends(dirs)?, &dirs.cache, logs, progress)?;
        let crates = crates(dirs, logs)?;
        let build = PackagesBuild { dirs, logs, suite, root, crates };
        for directory in [build.packages(), build.target(), build.cargo_home()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        fs::write(build.cargo_home().join("config.toml"), CARGO_CONFIG)?;
        Ok(build)
    }

    /// Returns the directory of the packages.
    pub(crate) fn packages(&self) -> PathBuf {
        self.dirs.lab.join("packages").join(self.suite.name())
    }

    /// Returns the version line of the root's compiler.
    pub(crate) fn compiler(&self) -> Result<String> {
        let mut rustc = self.inside().shell("rustc --version");
        Ok(command::output(&mut rustc, "asking Debian's rustc for its version")?.trim().to_owned())
    }

    /// Builds the packages, unless those of the same sources are there, and returns their paths.
    pub(crate) fn build(&self, progress: &Progress) -> Result<Vec<PathBuf>> {
        let sources = self.sources()?;
        let stamp = self.packages().join("built-from");
        let key = self.key(&sources)?;
        if fs::read_to_string(&stamp).is_ok_and(|built| built == key) {
            return self.built();
        }
        let step = progress.step(&format!("build the packages for Debian's {}", self.suite));
        for old in fs::read_dir(self.packages())? {
            let old = old?.path();
            if old.is_file() {
                fs::remove_file(&old)
                    .with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        fs::write(self.packages().join("files"), sources.join("\n"))?;
        self.run("build", BUILD)?;
        let built = self.built()?;
        fs::write(&stamp, key)?;
        step.done();
        Ok(built)
    }

    /// Removes all that was built, so that the next build compiles everything.
    pub(crate) fn forget(&self) -> Result<()> {
        for directory in [self.packages(), self.target()] {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
            fs::create_dir_all(&directory)?;
        }
        Ok(())
    }

    /// Runs lintian over the packages.
    pub(crate) fn lint(&self) -> Result<()> {
        self.run("lintian", LINT)
    }

    /// Builds the lab, and runs `cargo lab help`.
    pub(crate) fn lab(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("build the lab on Debian");
        self.run("lab", "cd /project; cargo lab help")?;
        step.done();
        Ok(())
    }

    /// Runs a script in a clean system of the release, with the project's root as directory.
    pub(crate) fn try_in_system(
        &self,
        what: &str,
        script: &str,
        progress: &Progress,
    ) -> Result<()> {
        let system = fetch::system_root(self.suite, &self.dirs.cache, self.logs, progress)?;
        let step = progress.step(&format!("{what} the packages for Debian's {}", self.suite));
        let mut shell = Inside::copy_of(&system)
            .mount(Access::Read, &self.dirs.project, "project")
            .mount(Access::Read, &self.packages(), "packages")
            .shell(&format!("cd /project\n{script}"));
        let log = self.log(what);
        command::run(&mut shell, &format!("{what} the packages"), &log)?;
        step.done();
        Ok(())
    }

    /// The packages' files in the order of their names.
    fn built(&self) -> Result<Vec<PathBuf>> {
        let mut files = fs::read_dir(self.packages())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        files.retain(|file| file.extension().is_some_and(|end| end == "deb"));
        files.sort();
        ensure!(!files.is_empty(), "no package is in {}", self.packages().display());
        Ok(files)
    }

    /// The files of the project that git knows, or would.
    fn sources(&self) -> Result<Vec<String>> {
        let mut list = Command::new("git");
        list.args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(&self.dirs.project);
        let listed = command::output(&mut list, "listing the project's files")?;
        let exists = |name: &&str| self.dirs.project.join(name).is_file();
        Ok(listed.lines().filter(exists).map(str::to_owned).collect())
    }

    fn key(&self, sources: &[String]) -> Result<String> {
        let part = ["backend/", "guest-shim/", "packages/", "xen-configs/", "Cargo"];
        let mut parts = vec![self.root.path().display().to_string(), BUILD.to_owned()];
        for name in sources.iter().filter(|name| part.iter().any(|part| name.starts_with(part))) {
            let path = self.dirs.project.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
            parts.push(name.clone());
            parts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(store::key(parts.iter().map(String::as_str)))
    }

    fn run(&self, what: &str, script: &str) -> Result<()> {
        let mut shell = self.inside().shell(script);
        command::run(&mut shell, &format!("{what} on Debian"), &self.log(what))
    }

    fn log(&self, what: &str) -> PathBuf {
        self.logs.join(format!("packages-{}-{what}.log", self.suite))
    }

    fn inside(&self) -> Inside<'_> {
        Inside::new(&self.root)
            .mount(Access::Read, &self.dirs.project, "project")
            .mount(Access::Write, &self.target(), "project/target")
            .mount(Access::Write, &self.packages(), "packages")
            .mount(Access::Read, &self.crates, "crates")
            .mount(Access::Write, &self.cargo_home(), "root/.cargo")
    }

    fn target(&self) -> PathBuf {
        self.dirs.lab.join("debian").join(self.suite.name())
    }

    fn cargo_home(&self) -> PathBuf {
        self.dirs.lab.join("debian/cargo")
    }
}

/// Returns the packages that `debian/control` needs to build.
fn build_depends(dirs: &Dirs) -> Result<Vec<String>> {
    let path = dirs.project.join("packages/debian/control");
    let control =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    depends_of(&control).with_context(|| format!("no Build-Depends in {}", path.display()))
}

/// Returns the names in the field Build-Depends, which is one line.
fn depends_of(control: &str) -> Option<Vec<String>> {
    let line = control.lines().find_map(|line| line.strip_prefix("Build-Depends: "))?;
    let name = |depends: &str| depends.split_whitespace().next().map(str::to_owned);
    let names = line.split(',').map(name).collect::<Option<Vec<_>>>()?;
    // A virtual package of debhelper's.
    Some(names.into_iter().map(|name| name.replace("debhelper-compat", "debhelper")).collect())
}

/// Copies the sources of all crates that Cargo.lock names to a directory on the host.
pub(super) fn crates(dirs: &Dirs, logs: &Path) -> Result<PathBuf> {
    let lock = dirs.project.join("Cargo.lock");
    let locked =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    store::entry(&dirs.lab, "crates", &store::key([locked.as_str()]), |directory| {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["vendor", "--locked"]).arg(directory).current_dir(&dirs.project);
        command::run(&mut cargo, "copying the crates", &logs.join("debian-crates.log"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_depends_are_names_without_versions() {
        let control = "Source: a\nBuild-Depends: one (>= 1.2), debhelper-compat (= 13), three\n";
        assert_eq!(depends_of(control).unwrap(), ["one", "debhelper", "three"]);
        assert!(depends_of("Source: a\n").is_none());
    }

    #[test]
    fn packages_dkms_and_crates_have_one_version() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let version = env!("CARGO_PKG_VERSION");
        for (file, line) in [
            ("packages/debian/changelog", format!("virtio-msg-xen ({version}) ")),
            ("guest-shim/linux/dkms.conf", format!("PACKAGE_VERSION=\"{version}\"")),
            ("packages/fedora/xen-virtiod.spec", format!("Version:        {version}\n")),
            ("packages/alpine/APKBUILD", format!("pkgver={version}\n")),
            ("packages/nix/default.nix", format!("version = \"{version}\";")),
        ] {
            let text = fs::read_to_string(project.join(file)).unwrap();
            assert!(text.contains(&line), "{file} has not {line}");
        }
    }
}
