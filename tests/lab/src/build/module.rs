//! Builds `virtio_msg_xen.ko`: its Rust core once, in the guests' root, and its C files for each
//! kernel, in that kernel's root and against its headers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::debian::inside::{Access, Inside};
use crate::debian::root::Root;
use crate::dirs::Dirs;
use crate::fetch::Kernel;
use crate::progress::Progress;
use crate::store;

/// Directories in the root on which the build mounts the project, read-only, and the output.
pub(crate) const MOUNT_POINTS: &[&str] = &["project", "out", "crates", "target"];

/// Has the root of the tools build a module against the headers in a guest's root of another
/// architecture, which is mounted on `/target`: with the same files, but programs that run here.
const ENTER_CROSS: &str = "cp -r /target/usr/src/linux-headers-*-arm64 /usr/src/; ";

/// Arguments of make for another architecture.
const CROSS: &str = "MACHINE=aarch64 ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-";

/// Builds the core in `root` if its sources or the root changed since the last build.
pub(crate) fn build_core(dirs: &Dirs, root: &Root, logs: &Path, progress: &Progress) -> Result<()> {
    once(dirs, &[root], &[&output(dirs)?.join("shim_core.o")], || {
        let step = progress.step("build the core of virtio_msg_xen");
        make(dirs, root, &["OUT=/out", "core"], &logs.join("build-module-core.log"))?;
        step.done();
        Ok(())
    })
}

/// The modules for one kernel.
pub(super) struct Modules {
    /// The one that users install.
    pub(super) production: PathBuf,
    /// The one for tests, which misbehaves as its parameter `debug` says.
    pub(super) test: PathBuf,
}

/// Builds the module for `kernel` with the core from `core_root`, if the sources or a root changed
/// since the last build.
///
/// # Errors
/// The build fails, or the compiler, objtool or modpost prints a warning.
pub(super) fn build(
    dirs: &Dirs,
    core_root: &Root,
    kernel: &Kernel,
    logs: &Path,
    progress: &Progress,
) -> Result<Modules> {
    let (name, root) = (kernel.name(), kernel.build_root());
    let out = output(dirs)?.join(name);
    let modules = Modules {
        production: out.join("virtio_msg_xen.ko"),
        test: out.join("test/virtio_msg_xen.ko"),
    };
    once(dirs, &[core_root, root], &[&modules.production, &modules.test], || {
        let release = root.kernel_release()?;
        let step = progress.step(&format!("build virtio_msg_xen.ko for {release}"));
        let log = logs.join(format!("build-module-{name}.log"));
        let arguments = [
            &format!("KDIR=/usr/src/linux-headers-{release}"),
            &format!("OUT=/out/{name}"),
            "CORE=/out/shim_core.o",
            "module",
            "test-module",
        ];
        make(dirs, root, &arguments, &log)?;
        if let Some(warning) = warning(&fs::read_to_string(&log)?) {
            fs::remove_dir_all(&out)?; // make would not compile, and so not warn, a second time
            bail!("building virtio_msg_xen.ko for {release} printed a warning: {warning}");
        }
        step.done();
        Ok(())
    })?;
    Ok(modules)
}

/// Returns the directory of the build's output, and creates it.
fn output(dirs: &Dirs) -> Result<PathBuf> {
    let out = dirs.lab.join("module");
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    Ok(out)
}

/// Calls `make` to build `products`, unless all exist and neither the sources nor `roots` have
/// changed since the last build.
fn once(
    dirs: &Dirs,
    roots: &[&Root],
    products: &[&Path],
    make: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stamp = products.first().context("nothing to build")?.with_extension("built-from");
    let key = key_of(&dirs.project.join("guest-shim"), roots)?;
    let helpers = roots.iter().filter_map(|root| root.helper());
    let helpers: Vec<_> = helpers.map(|root| root.path().display().to_string()).collect();
    let key = match helpers.is_empty() {
        true => key,
        false => {
            let cross = [key.as_str(), ENTER_CROSS, CROSS].into_iter();
            store::key(cross.chain(helpers.iter().map(String::as_str)))
        }
    };
    let exist = products.iter().all(|product| product.exists());
    if exist && fs::read_to_string(&stamp).is_ok_and(|built| built == key) {
        return Ok(());
    }
    make()?;
    for product in products {
        ensure!(product.exists(), "make succeeded, but did not build {}", product.display());
    }
    Ok(fs::write(&stamp, key)?)
}

fn make(dirs: &Dirs, root: &Root, arguments: &[&str], log: &Path) -> Result<()> {
    let make = format!("make -C /project/guest-shim/linux {}", arguments.join(" "));
    let (project, out) = (&dirs.project, output(dirs)?);
    let with_sources = |inside: Inside<'_>, script: &str| {
        let inside = inside.mount(Access::Read, project, "project");
        inside.mount(Access::Write, &out, "out").shell(script)
    };
    let mut make = match root.helper() {
        None => with_sources(Inside::new(root), &make),
        Some(tools) => {
            let inside = Inside::copy_of(&tools).mount(Access::Read, root.path(), "target");
            with_sources(inside, &format!("{ENTER_CROSS}{make} {CROSS}"))
        }
    };
    command::run(&mut make, "building virtio_msg_xen", log)
}

/// Returns the first warning about a file in a build's log. It ignores kbuild's own warnings, which
/// name no file: kbuild prints one if the compiler is newer than the kernel.
fn warning(log: &str) -> Option<&str> {
    log.lines().find(|line| line.contains(": warning: ") || line.contains("WARNING: "))
}

/// Returns a hash of all source files and of the roots in which they are built.
fn key_of(sources: &Path, roots: &[&Root]) -> Result<String> {
    let mut parts: Vec<_> = roots.iter().map(|root| root.path().display().to_string()).collect();
    add_files(sources, &mut parts)?;
    Ok(store::key(parts.iter().map(String::as_str)))
}

fn add_files(dir: &Path, parts: &mut Vec<String>) -> Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for path in entries.into_iter().map(|entry| entry.path()) {
        if path.is_dir() {
            add_files(&path, parts)?;
        } else {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            parts.push(path.display().to_string());
            parts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_about_files_are_found_and_kbuilds_own_ignored() {
        assert_eq!(warning("  CC [M]  dma.o\nwarning: the compiler differs\n"), None);
        for line in [
            "dma.c:3:1: warning: unused variable",
            "dma.o: warning: objtool: f+0x1: no return",
            "WARNING: modpost: missing MODULE_LICENSE()",
        ] {
            assert_eq!(warning(&format!("  CC [M]  dma.o\n{line}\n")), Some(line));
        }
    }

    fn linux() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-shim/linux")
    }

    #[test]
    fn module_and_workspace_have_the_same_version() {
        let version = format!("\"{}\"", env!("CARGO_PKG_VERSION"));
        for (file, line) in [("dkms.conf", "PACKAGE_VERSION={}"), ("main.c", "MODULE_VERSION({});")]
        {
            let line = line.replace("{}", &version);
            let text = fs::read_to_string(linux().join(file)).unwrap();
            assert!(text.lines().any(|found| found == line), "{file} has no line {line}");
        }
    }

    /// `text` without its comments.
    fn code(text: &str) -> String {
        let mut parts = text.split("/*");
        let first = parts.next().unwrap_or_default().to_string();
        parts.fold(first, |code, part| code + part.split_once("*/").map_or("", |(_, after)| after))
    }

    /// The functions and variables of the module that `line` names.
    fn names(line: &str) -> impl Iterator<Item = &str> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        line.match_indices("xvm_").filter_map(move |(start, _)| {
            let name = line[start..].split(|c| !word(c)).next()?;
            let begins = !line[..start].ends_with(word);
            (begins && line[start + name.len()..].starts_with(['(', ';', '[', ',', ')']))
                .then_some(name)
        })
    }

    #[test]
    fn a_c_file_uses_only_files_that_the_header_declares_above_it() {
        let header = fs::read_to_string(linux().join("virtio_msg_xen.h")).unwrap();
        let mut sections: Vec<(String, Vec<&str>)> = Vec::new();
        for line in header.lines() {
            let title = line.strip_prefix("/* ").and_then(|rest| rest.split_once(".c"));
            if let Some((file, _)) = title {
                sections.push((format!("{file}.c"), Vec::new()));
            } else if let Some((_, declared)) = sections.last_mut() {
                declared.extend(names(line));
            }
        }
        for (layer, (file, declared)) in sections.iter().enumerate() {
            assert!(!declared.is_empty(), "{file} declares nothing");
            let text = code(&fs::read_to_string(linux().join(file)).unwrap());
            for (upper, later) in &sections[layer + 1..] {
                for name in later {
                    let used = text.lines().any(|line| names(line).any(|used| used == *name));
                    assert!(!used, "{file} uses {name} of {upper}, a layer above");
                }
            }
        }
        let files = fs::read_dir(linux()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|end| end == "c")).count();
        assert_eq!(files, sections.len() + 1, "all files but main.c are in the header");
    }

    /// Runs a script of the module on the file system at `root`.
    fn run(script: &str, arguments: &[&str], root: &Path) {
        let mut script = std::process::Command::new(linux().join(script));
        assert!(script.args(arguments).env("DESTDIR", root).status().unwrap().success());
    }

    #[test]
    fn initrd_hooks_stay_until_no_kernel_has_the_module() {
        let root = tempfile::tempdir().unwrap();
        let module = |release: &str| {
            root.path().join(format!("lib/modules/{release}/updates/virtio_msg_xen.ko"))
        };
        let hooks = [
            "etc/initramfs-tools/hooks/virtio_msg_xen",
            "usr/lib/dracut/modules.d/90virtio-msg-xen",
        ]
        .map(|hook| root.path().join(hook));
        for release in ["6.1.0", "6.12.0"] {
            fs::create_dir_all(module(release).parent().unwrap()).unwrap();
            fs::write(module(release), "").unwrap();
            run("initrd/hooks", &["install", release], root.path());
        }
        assert!(hooks.iter().all(|hook| hook.exists()));
        fs::remove_file(module("6.1.0")).unwrap();
        run("initrd/hooks", &["remove", "6.1.0"], root.path());
        assert!(hooks.iter().all(|hook| hook.exists()), "another kernel has the module");
        run("uninstall", &[], root.path());
        assert!(!module("6.12.0").exists());
        assert!(!hooks.iter().any(|hook| hook.exists()));
        run("uninstall", &[], root.path());
    }

    #[test]
    fn key_depends_on_contents_and_names_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let roots = [&Root::at("/r".into())];
        let file = dir.path().join("a");
        fs::write(&file, "1").unwrap();
        let first = key_of(dir.path(), &roots).unwrap();
        fs::write(&file, "2").unwrap();
        let second = key_of(dir.path(), &roots).unwrap();
        fs::rename(&file, dir.path().join("b")).unwrap();
        let third = key_of(dir.path(), &roots).unwrap();
        assert!(first != second && second != third);
    }
}
