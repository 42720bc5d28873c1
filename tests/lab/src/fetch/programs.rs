//! Programs for Dom0 and guests beside those of their systems. With their libraries they are too
//! large for an initrd, so the lab puts each set on a disk image, which a guest or Dom0 mounts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Contents, Platform, Recipe, Tools};
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::{Progress, Step};

/// A set of programs that are fetched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Programs {
    /// What measures, fio and iperf3, dmsetup, with which Dom0 makes slow stores, and kexec.
    Bench,
    /// bpftrace, which is large: it has a compiler.
    Tracing,
}

const BENCH: Recipe<'static> = Recipe {
    name: "bench",
    suite: Suite::LAB,
    platform: Platform::HOST,
    packages: &[&["dmsetup", "e2fsprogs", "fio", "iperf3", "kexec-tools"]],
    contents: Contents::Files,
    revision: "4",
    finish: |dir, root, step, log| Programs::Bench.finish(dir, root, step, log),
};

const TRACING: Recipe<'static> = Recipe {
    name: "tracing",
    packages: &[&["bpftrace", "e2fsprogs"]],
    revision: "1",
    finish: |dir, root, step, log| Programs::Tracing.finish(dir, root, step, log),
    ..BENCH
};

/// The one library that is in a directory below that of libraries.
const APART: (&str, &str) = ("ceph", "libceph-common.so.2");

impl Programs {
    /// The set that has a program, by its name.
    pub(crate) fn with(program: &str) -> Option<Self> {
        [Self::Bench, Self::Tracing]
            .into_iter()
            .find(|set| set.paths().iter().any(|path| path.rsplit('/').next() == Some(program)))
    }

    fn paths(self) -> &'static [&'static str] {
        match self {
            Self::Bench => &["usr/bin/fio", "usr/bin/iperf3", "usr/sbin/dmsetup", "usr/sbin/kexec"],
            Self::Tracing => &["usr/bin/bpftrace"],
        }
    }

    /// The name of the image's file, and its size in bytes: more than that of the programs and
    /// their libraries.
    fn image(self) -> (&'static str, u64) {
        match self {
            Self::Bench => ("programs.img", 128 << 20),
            Self::Tracing => ("tracing.img", 256 << 20),
        }
    }

    /// Fetches the programs, and returns an image of a file system with `bin` and `lib`.
    pub(crate) fn fetch(
        self,
        tools: &Tools,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<PathBuf> {
        let recipe = match self {
            Self::Bench => BENCH,
            Self::Tracing => TRACING,
        };
        let recipe = Recipe { platform: Platform::of(tools), ..recipe };
        let (image, _) = self.image();
        Ok(recipe.entry(cache, logs, progress)?.join(image))
    }

    fn finish(self, dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
        step.at("taking the programs and their libraries");
        let libraries = root.file(root.arch().libraries());
        let (directory, library) = APART;
        let apart = libraries.join(directory).join(library);
        if apart.exists() {
            fs::rename(apart, libraries.join(library))?;
        }
        let programs = dir.join("programs");
        for directory in ["bin", "lib"] {
            fs::create_dir_all(programs.join(directory))?;
        }
        for program in self.paths() {
            let file = root.file(program);
            fs::copy(&file, programs.join("bin").join(file.file_name().unwrap_or_default()))?;
            let libraries = root.libraries(&file)?;
            ensure!(!libraries.is_empty(), "the loader lists no libraries of {program}");
            for library in libraries {
                let name = library.file_name().unwrap_or_default();
                fs::copy(&library, programs.join("lib").join(name))?;
            }
        }
        let (image, size) = self.image();
        root.make_ext4(&programs, &dir.join(image), size, log)?;
        fs::remove_dir_all(&programs)?;
        Ok(fs::remove_dir_all(root.path())?)
    }
}
