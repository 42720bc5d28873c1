//! Roots for Debian packages: one that builds them, and a clean system that installs them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Contents, Platform, Recipe};
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::Progress;

/// Builds any package, and checks it.
const PACKAGING: &[&str] = &["build-essential", "lintian"];

/// A guest of Debian's, with the headers for modules: the packages are installed into it.
const SYSTEM: &[&str] = &[
    "dkms",
    "e2fsprogs",
    "initramfs-tools",
    "linux-headers-cloud-amd64",
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
];

/// What a guest needs that puts its root on other storage, or makes its initrd by dracut.
const STORAGE_TOOLS: &[&str] =
    &["btrfs-progs", "cryptsetup-initramfs", "dracut-core", "fdisk", "lvm2", "xfsprogs"];

/// Keeps the packages of another kernel in the system, for a guest that installs it: without
/// compression, which takes minutes where a processor is emulated.
const OTHER_KERNEL: &str = r#"set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir -p "$1/var/cache/lab-kernel"
cd "$1/var/cache/lab-kernel"
other=$(apt-cache pkgnames linux-headers-6 | sed -n 's/^linux-headers-\(.*\)-cloud-amd64$/\1/p' |
    while read -r release; do [ -e "$1/boot/vmlinuz-$release-cloud-amd64" ] || echo "$release"; done |
    sort -V | tail -n 1)
apt-get download "linux-image-$other-cloud-amd64" "linux-headers-$other-cloud-amd64" \
    "linux-headers-$other-common" "linux-kbuild-$other"
for package in *.deb; do
    dpkg-deb --raw-extract "$package" unpacked
    dpkg-deb -Znone --build unpacked "$package" >/dev/null
    rm -r unpacked
done"#;

/// Directories in the roots on which the lab mounts others, or which a build needs.
const DIRECTORIES: [&str; 5] = ["project", "crates", "packages", "out", "root/.cargo"];

/// Fetches a root that builds the packages: `build_depends` and what checks them.
pub(crate) fn build_root(
    suite: Suite,
    build_depends: &[String],
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Root> {
    let build_depends: Vec<&str> = build_depends.iter().map(String::as_str).collect();
    let name = format!("build-{suite}");
    system(&name, suite, &[&build_depends, PACKAGING], None, (cache, logs, progress))
}

/// Fetches a clean system that installs the packages.
pub(crate) fn system_root(
    suite: Suite,
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Root> {
    system(&format!("system-{suite}"), suite, &[SYSTEM], None, (cache, logs, progress))
}

/// Fetches a system as [`system_root`], with tools for storage, and with the packages of another
/// kernel in `/var/cache/lab-kernel`.
pub(crate) fn storage_root(
    suite: Suite,
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Root> {
    let packages = [SYSTEM, STORAGE_TOOLS];
    let finally = Some(OTHER_KERNEL);
    system(&format!("storage-{suite}"), suite, &packages, finally, (cache, logs, progress))
}

fn system(
    name: &str,
    suite: Suite,
    packages: &[&[&str]],
    finally: Option<&'static str>,
    (cache, logs, progress): (&Path, &Path, &Progress),
) -> Result<Root> {
    let recipe = Recipe {
        name,
        suite,
        platform: Platform::HOST,
        packages,
        contents: Contents::System { finally },
        revision: "1",
        finish: |_, root, _, _| directories(&root),
    };
    Ok(Root::at(recipe.entry(cache, logs, progress)?.join("root")))
}

fn directories(root: &Root) -> Result<()> {
    DIRECTORIES.map(|name| root.file(name)).iter().try_for_each(|directory| {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))
    })
}
