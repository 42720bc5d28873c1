//! A root: a directory with the files of some Debian packages and of their dependencies.
//!
//! The lab unpacks the packages and does not run their scripts: that is fast, needs no privilege
//! and is enough for most purposes. [`SETUP`] replaces the scripts' work as far as the lab needs
//! it. A system in which packages are to be installed needs its scripts, and root:
//! [`Contents::System`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Arch, Suite, linked, mirror};
use crate::command;
use crate::cpio::Cpio;
use crate::host;
use crate::progress::Step;

/// A shell script that makes the links of a merged /usr. mmdebstrap runs it in the empty root,
/// before it unpacks packages.
pub(crate) const SETUP: &str = r#"mkdir -p "$1/usr/bin" "$1/usr/sbin" "$1/usr/lib" "$1/usr/lib64"
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$1/$dir"; done
ln -s mawk "$1/usr/bin/awk""#;

/// Directories that the lab does not need.
const PRUNED: &[&str] = &["usr/share/doc", "usr/share/locale", "usr/share/man"];

/// The extent of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// The files of the packages and of their dependencies; no script of a package ran.
    Files,
    /// A minimal Debian system with the packages. The script of mmdebstrap's, if any, runs at the
    /// end, with the root as its argument.
    System { finally: Option<&'static str> },
}

/// A root in the cache.
pub(crate) struct Root {
    path: PathBuf,
    arch: Arch,
    /// The root of this host's architecture whose programs work on this one, if its own cannot.
    helper: Option<PathBuf>,
}

impl Root {
    /// Returns the existing root at `path`, of this host's architecture.
    pub(crate) fn at(path: PathBuf) -> Root {
        Root { path, arch: Arch::default(), helper: None }
    }

    /// Returns the existing root at `path`; `helper` is a root of this host's architecture, unless
    /// this one is.
    pub(crate) fn of(path: PathBuf, arch: Arch, helper: Option<&Path>) -> Root {
        Root { path, arch, helper: helper.map(Path::to_owned) }
    }

    /// Fetches `packages` of `suite` into this root, which does not exist yet.
    ///
    /// # Errors
    /// Also if a whole system is to be installed, and the lab does not run as root.
    pub(crate) fn fetch(
        self,
        suite: Suite,
        packages: &[&str],
        contents: Contents,
        step: &Step,
        log: &Path,
    ) -> Result<Root> {
        let path = self.path();
        let mut mmdebstrap = as_root("mmdebstrap");
        match contents {
            Contents::Files => mmdebstrap
                .arg("--variant=extract")
                .arg("--skip=chroot/mount,output/dev") // no program runs in the root or needs devices
                .env("TAR_OPTIONS", "--no-same-owner") // the user namespace has no user but root
                .arg(format!("--setup-hook={SETUP}")),
            Contents::System { finally } => {
                ensure!(host::is_root(), "only root can install packages with their scripts");
                let finally = finally.map(|script| format!("--customize-hook={script}"));
                mmdebstrap.arg("--variant=minbase").args(finally)
            }
        };
        mmdebstrap
            .args(["--mode=root", "--format=directory"])
            .arg(format!("--architectures={}", self.arch.debian()))
            .arg(format!("--include={}", packages.join(",")))
            .args(mirror::proxy_options())
            .args(mirror::suite_options(suite))
            .arg(suite.name())
            .arg(path)
            .args(mirror::sources(suite));
        let what = format!("fetching Debian packages into {}", path.display());
        command::run_watched(&mut mmdebstrap, &what, log, |line| {
            if let Some(at) = line.strip_prefix("I: ") {
                step.at(at);
            }
        })?;
        self.prune(PRUNED)?;
        Ok(self)
    }

    /// Returns the root's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the root's architecture.
    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    /// Returns the root whose programs work on this one, if its own cannot run here.
    pub(crate) fn helper(&self) -> Option<Root> {
        self.helper.clone().map(Root::at)
    }

    /// Returns the path of the root's file `name`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns a command that runs the root's program `name`, or its helper's, on this host with
    /// that root's libraries.
    pub(crate) fn program(&self, name: &str) -> Command {
        if let Some(helper) = self.helper() {
            return helper.program(name);
        }
        let mut command = self.loader();
        command.arg(self.file(name));
        command
    }

    /// Adds the root's libraries that `program` needs to an initrd. `program` belongs to the root,
    /// or was built for this or an older distribution.
    pub(crate) fn add_libraries(&self, cpio: &mut Cpio, program: &Path) -> Result<()> {
        for library in self.libraries(program)? {
            let name = library.file_name().unwrap_or_default().to_string_lossy();
            cpio.copy(&format!("lib/{name}"), &library)?;
        }
        Ok(())
    }

    /// Adds the root's dynamic loader to an initrd.
    pub(crate) fn add_loader(&self, cpio: &mut Cpio) -> Result<()> {
        let loader = self.arch.loader();
        cpio.copy(loader, &self.file(loader))
    }

    /// Returns the paths of the root's libraries with which `program` is linked.
    pub(crate) fn libraries(&self, program: &Path) -> Result<Vec<PathBuf>> {
        if self.helper.is_some() {
            return linked::libraries(program, &self.file(self.arch.libraries()));
        }
        let mut list = self.loader();
        list.arg("--list").arg(program);
        let what = format!("listing the libraries of {}", program.display());
        Ok(listed(&command::output(&mut list, &what)?).into_iter().map(PathBuf::from).collect())
    }

    /// Returns a command that loads a program with the root's libraries.
    fn loader(&self) -> Command {
        let mut command = Command::new(self.file(self.arch.loader()));
        command.arg("--library-path").arg(self.file(self.arch.libraries()));
        command
    }

    /// Decompresses the file `name` with `applet` of the root's static busybox.
    pub(crate) fn unpacked(&self, applet: &str, name: &Path) -> Result<Vec<u8>> {
        let native = self.helper.as_ref().unwrap_or(&self.path);
        let mut busybox = Command::new(native.join("usr/bin/busybox"));
        unpacked(busybox.args([applet, "-c"]), applet, name)
    }

    /// Decompresses the file `name` with the root's `program`, which has the options of zstd's.
    pub(crate) fn unpacked_by(&self, program: &str, name: &Path) -> Result<Vec<u8>> {
        let mut command = self.program(&format!("usr/bin/{program}"));
        unpacked(command.arg("-dqc"), program, name)
    }

    /// Returns the release of the root's only kernel, as `uname -r` prints it.
    pub(crate) fn kernel_release(&self) -> Result<String> {
        let modules = self.file("usr/lib/modules");
        let entry = fs::read_dir(&modules)?
            .next()
            .with_context(|| format!("there is no kernel in {}", modules.display()))??;
        Ok(entry.file_name().to_string_lossy().into_owned())
    }

    /// Returns the path of the root's kernel: in /boot or, in releases after Debian 13, beside its
    /// modules.
    pub(crate) fn kernel_image(&self) -> Result<PathBuf> {
        let release = self.kernel_release()?;
        let paths =
            [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
        paths
            .iter()
            .map(|path| self.file(path))
            .find(|image| image.exists())
            .with_context(|| format!("the root has no kernel: looked for {}", paths.join(", ")))
    }

    /// Removes the directories `names`, if they exist.
    pub(crate) fn prune(&self, names: &[&str]) -> Result<()> {
        for dir in names.iter().map(|name| self.file(name)) {
            if dir.exists() {
                fs::remove_dir_all(&dir)
                    .with_context(|| format!("cannot remove {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Makes `image`, an ext4 file system of `size` bytes with the files of the directory
    /// `contents`. The root must have e2fsprogs.
    pub(crate) fn make_ext4(
        &self,
        contents: &Path,
        image: &Path,
        size: u64,
        log: &Path,
    ) -> Result<()> {
        File::create(image)?.set_len(size)?;
        let mke2fs = self.program("usr/sbin/mke2fs");
        let mut as_root = as_root("env");
        as_root
            .arg("MKE2FS_CONFIG=/dev/null")
            .arg(mke2fs.get_program())
            .args(mke2fs.get_args())
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(contents)
            .arg(image);
        command::run(&mut as_root, &format!("making {}", image.display()), log)
    }
}

/// Returns a command that runs `program` as root or, for other users, as root of a user namespace.
///
/// Files in archives and images that it makes belong to root. It has a mount namespace of its own,
/// and the kernel ends it with the thread that starts it.
pub(crate) fn as_root(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !host::is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--", "setpriv", "--pdeathsig", "TERM", "--", program]);
    command
}

/// Runs `command`, which decompresses the file `name` with `program`, and returns what it prints.
fn unpacked(command: &mut Command, program: &str, name: &Path) -> Result<Vec<u8>> {
    let output = command.arg(name).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} cannot unpack {}: {}",
        name.display(),
        errors.trim()
    );
    Ok(output.stdout)
}

/// Returns the paths in lines such as `libc.so.6 => /root/lib/libc.so.6 (0x1234)`, except that of
/// the loader, which initrds have by [`Root::add_loader`].
fn listed(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.split_once(" => ")?.1.split(" (").next())
        .filter(|path| !path.contains("/ld-linux"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_list() {
        let listing = "\tlinux-vdso.so.1 (0x1)\n\
                       \tlibc.so.6 => /r/lib/libc.so.6 (0x2)\n\
                       \t/lib64/ld-linux-x86-64.so.2 => /r/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(listed(listing), ["/r/lib/libc.so.6"]);
    }
}
