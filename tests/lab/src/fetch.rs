//! Fetches Debian packages, and keeps everything made of them in the user's cache.

mod bench;
mod bzimage;
mod dom0;
mod guest;
mod kernel;
mod lint;
mod modules;
mod packaging;
mod tools;

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::debian::Suite;
use crate::debian::root::{self, Contents, Root};
use crate::progress::{Progress, Step};
use crate::store;

pub(crate) use bench::BenchPrograms;
pub(crate) use dom0::Dom0;
pub(crate) use guest::Guest;
pub(crate) use kernel::Kernel;
pub(crate) use lint::root as lint_root;
pub(crate) use packaging::{build_root, storage_root, system_root};
pub(crate) use tools::Tools;

/// Everything that the lab fetches.
pub(crate) struct Fetched {
    /// QEMU.
    pub(crate) tools: Tools,
    /// The hypervisor and the system of Dom0.
    pub(crate) dom0: Dom0,
    /// The kernel and the programs of the guests, and the tools that build modules for that kernel.
    pub(crate) guest: Guest,
    /// Kernels of other releases for guests. A failure to fetch one does not affect the others.
    pub(crate) others: Vec<(Suite, Result<Kernel>)>,
}

/// Describes how the lab makes a cache entry from Debian packages.
struct Recipe<'a> {
    name: &'a str,
    suite: Suite,
    /// Lists of packages; recipes can share a list.
    packages: &'a [&'a [&'a str]],
    contents: Contents,
    /// Changes whenever `finish` produces other contents from the same packages.
    revision: &'static str,
    /// Makes the entry's contents from the root, in the entry's new directory.
    finish: fn(&Path, Root, &Step, &Path) -> Result<()>,
}

impl Recipe<'_> {
    fn key(&self) -> String {
        let parts = [self.suite.name(), root::SETUP, self.revision];
        store::key(parts.into_iter().chain(self.packages.iter().copied().flatten().copied()))
    }

    /// Returns the entry's directory; fetches the packages if the entry does not exist.
    fn entry(&self, cache: &Path, logs: &Path, progress: &Progress) -> Result<std::path::PathBuf> {
        store::entry(cache, self.name, &self.key(), |dir| {
            let step = progress.step(&format!("fetch {}", self.name));
            let log = logs.join(format!("fetch-{}.log", self.name));
            let packages = self.packages.concat();
            let (path, suite) = (dir.join("root"), self.suite);
            let root = Root::fetch(path, suite, &packages, self.contents, &step, &log)?;
            (self.finish)(dir, root, &step, &log)?;
            step.done();
            Ok(())
        })
        .with_context(|| format!("cannot fetch {}", self.name))
    }
}

/// Fetches everything, with the kernels of the releases `others`, in parallel.
pub(crate) fn all(
    others: &[Suite],
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Fetched> {
    thread::scope(|scope| {
        let tools = scope.spawn(|| Tools::fetch(cache, logs, progress));
        let dom0 = scope.spawn(|| Dom0::fetch(cache, logs, progress));
        let others: Vec<_> = others
            .iter()
            .map(|&suite| (suite, scope.spawn(move || Kernel::fetch(suite, cache, logs, progress))))
            .collect();
        let guest = Guest::fetch(cache, logs, progress);
        let others = others.into_iter().map(|(suite, thread)| (suite, join(thread))).collect();
        Ok(Fetched { tools: join(tools)?, dom0: join(dom0)?, guest: guest?, others })
    })
}

/// Waits for a thread and returns its result; a panic of the thread is an error.
pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the lab panicked: see above")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe<'static> = Recipe {
        name: "thing",
        suite: Suite::LAB,
        packages: &[&["one"], &["two"]],
        contents: Contents::Files,
        revision: "1",
        finish: |_, _, _, _| Ok(()),
    };

    #[test]
    fn key_depends_on_release_packages_and_revision() {
        let suite = Recipe { suite: Suite::Sid, ..RECIPE };
        assert_ne!(RECIPE.key(), suite.key());
        let packages = Recipe { packages: &[&["one"]], ..RECIPE };
        let revision = Recipe { revision: "2", ..RECIPE };
        assert_ne!(RECIPE.key(), packages.key());
        assert_ne!(RECIPE.key(), revision.key());
        assert_eq!(RECIPE.key(), Recipe { ..RECIPE }.key());
    }
}
