//! The programs that measure: fio and iperf3. They are in no ordinary guest's initrd, being large with
//! their libraries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Recipe;
use crate::cpio::Cpio;
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::{Progress, Step};

const RECIPE: Recipe<'static> = Recipe {
    name: "bench",
    suite: Suite::LAB,
    packages: &[&["fio", "iperf3"]],
    revision: "1",
    finish,
};

const PROGRAMS: [&str; 2] = ["fio", "iperf3"];

/// Of the libraries, the one that lies in a directory of its own.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const APART: (&str, &str) = ("ceph", "libceph-common.so.2");

/// The fetched programs.
pub(crate) struct BenchPrograms {
    entry: PathBuf,
}

impl BenchPrograms {
    /// Fetches them.
    pub(crate) fn fetch(cache: &Path, logs: &Path, progress: &Progress) -> Result<BenchPrograms> {
        let entry = RECIPE.entry(cache, logs, progress)?;
        Ok(BenchPrograms { entry })
    }

    /// Archives, one a program, with the program and its libraries: for the initrd of a guest that
    /// the loader is in, or to be unpacked in Dom0.
    pub(crate) fn archives(&self) -> impl Iterator<Item = PathBuf> {
        PROGRAMS.into_iter().map(|program| self.entry.join(format!("{program}.cpio")))
    }
}

fn finish(dir: &Path, root: Root, step: &Step, _log: &Path) -> Result<()> {
    step.at("taking the programs and their libraries");
    let libraries = root.file(LIBRARIES);
    let (directory, library) = APART;
    fs::rename(libraries.join(directory).join(library), libraries.join(library))?;
    for program in PROGRAMS {
        let mut cpio = Cpio::default();
        let file = root.file(&format!("usr/bin/{program}"));
        cpio.copy(&format!("bin/{program}"), &file)?;
        root.add_libraries(&mut cpio, &file)?;
        fs::write(dir.join(format!("{program}.cpio")), cpio.finish())?;
    }
    Ok(fs::remove_dir_all(root.path())?)
}
