//! The programs that measure, fio and iperf3, dmsetup, with which Dom0 makes slow stores, and
//! kexec. With their libraries they are too large for an initrd, so the lab puts them on a disk
//! image, which a guest or Dom0 mounts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Contents, Platform, Recipe, Tools};
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::{Progress, Step};

const RECIPE: Recipe<'static> = Recipe {
    name: "bench",
    suite: Suite::LAB,
    platform: Platform::HOST,
    packages: &[&["dmsetup", "e2fsprogs", "fio", "iperf3", "kexec-tools"]],
    contents: Contents::Files,
    revision: "4",
    finish,
};

const PROGRAMS: [&str; 4] = ["usr/bin/fio", "usr/bin/iperf3", "usr/sbin/dmsetup", "usr/sbin/kexec"];

/// The one library that is in a directory below that of libraries.
const APART: (&str, &str) = ("ceph", "libceph-common.so.2");

/// The size of the image in bytes: twice that of the programs and their libraries.
const IMAGE_SIZE: u64 = 128 << 20;

/// The fetched programs.
pub(crate) struct BenchPrograms {
    entry: PathBuf,
}

impl BenchPrograms {
    /// Fetches the programs and makes the image.
    pub(crate) fn fetch(
        tools: &Tools,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<BenchPrograms> {
        let recipe = Recipe { platform: Platform::of(tools), ..RECIPE };
        let entry = recipe.entry(cache, logs, progress)?;
        Ok(BenchPrograms { entry })
    }

    /// Returns the image: a file system with `bin` and `lib`.
    pub(crate) fn image(&self) -> PathBuf {
        self.entry.join("programs.img")
    }
}

fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    step.at("taking the programs and their libraries");
    let libraries = root.file(root.arch().libraries());
    let (directory, library) = APART;
    fs::rename(libraries.join(directory).join(library), libraries.join(library))?;
    let programs = dir.join("programs");
    for directory in ["bin", "lib"] {
        fs::create_dir_all(programs.join(directory))?;
    }
    for program in PROGRAMS {
        let file = root.file(program);
        fs::copy(&file, programs.join("bin").join(file.file_name().unwrap_or_default()))?;
        let libraries = root.libraries(&file)?;
        ensure!(!libraries.is_empty(), "the loader lists no libraries of {program}");
        for library in libraries {
            let name = library.file_name().unwrap_or_default();
            fs::copy(&library, programs.join("lib").join(name))?;
        }
    }
    root.make_ext4(&programs, &dir.join("programs.img"), IMAGE_SIZE, log)?;
    fs::remove_dir_all(&programs)?;
    Ok(fs::remove_dir_all(root.path())?)
}
