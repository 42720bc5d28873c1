//! `virtio_msg_xen.ko`, built in the guest's root against the headers of the guest's kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::debian::root::{self, Root};
use crate::dirs::Dirs;
use crate::progress::Progress;
use crate::store;

/// Directories of the root that the build mounts over: the project, read-only, and the output.
pub(crate) const MOUNT_POINTS: &[&str] = &["project", "out"];

/// Run in mounts of its own. Arguments: the root, the project, the output, the kernel's release.
const BUILD: &str = r#"set -e
mount --bind "$2" "$1/project"
mount -o remount,bind,ro "$1/project"
mount --bind "$3" "$1/out"
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
PATH=/usr/sbin:/usr/bin exec chroot "$1" \
    make -C /project/guest-shim/linux KDIR="/usr/src/linux-headers-$4" OUT=/out module"#;

/// Builds the module if its sources or the root changed since the last time.
pub(super) fn build(
    dirs: &Dirs,
    root: &Root,
    logs: &Path,
    progress: &Progress,
) -> Result<Option<PathBuf>> {
    let sources = dirs.project.join("guest-shim");
    let makefile = sources.join("linux/Makefile");
    if !makefile.exists() {
        progress.line(&format!("no guest module: {} is missing", makefile.display()));
        return Ok(None);
    }
    let out = dirs.lab.join("module");
    fs::create_dir_all(&out)?;
    let module = out.join("virtio_msg_xen.ko");
    let stamp = out.join("built-from");
    let key = key_of(&sources, root)?;
    if module.exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == key) {
        return Ok(Some(module));
    }
    let step = progress.step("build virtio_msg_xen.ko");
    make(dirs, root, &out, &logs.join("build-module.log"))?;
    ensure!(module.exists(), "make built no {}", module.display());
    fs::write(&stamp, key)?;
    step.done();
    Ok(Some(module))
}

fn make(dirs: &Dirs, root: &Root, out: &Path, log: &Path) -> Result<()> {
    let mut build = root::as_root("sh");
    build
        .args(["-c", BUILD, "build-module"])
        .arg(root.path())
        .arg(&dirs.project)
        .arg(out)
        .arg(root.kernel_release()?);
    command::run(&mut build, "building virtio_msg_xen.ko", log)
}

/// A hash of every source file and of the root it is built in.
fn key_of(sources: &Path, root: &Root) -> Result<String> {
    let mut parts = vec![root.path().display().to_string()];
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
    fn the_key_follows_contents_and_names_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at("/r".into());
        let file = dir.path().join("a");
        fs::write(&file, "1").unwrap();
        let first = key_of(dir.path(), &root).unwrap();
        fs::write(&file, "2").unwrap();
        let second = key_of(dir.path(), &root).unwrap();
        fs::rename(&file, dir.path().join("b")).unwrap();
        let third = key_of(dir.path(), &root).unwrap();
        assert!(first != second && second != third);
    }
}
