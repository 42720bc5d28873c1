//! What the lab takes from the distribution, made once and kept in the user's cache.

mod dom0;
mod guest;
mod modules;
mod tools;

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::debian::mirror;
use crate::debian::root::{self, Root};
use crate::progress::{Progress, Step};
use crate::store;

pub(crate) use dom0::Dom0;
pub(crate) use guest::Guest;
pub(crate) use tools::Tools;

/// Everything that is fetched.
pub(crate) struct Fetched {
    /// QEMU.
    pub(crate) tools: Tools,
    /// The hypervisor and the system of Dom0.
    pub(crate) dom0: Dom0,
    /// The kernel and the programs of the guests, and what builds modules for that kernel.
    pub(crate) guest: Guest,
}

/// How an entry of the cache is made from Debian packages.
struct Recipe {
    name: &'static str,
    packages: &'static [&'static str],
    /// To be raised when `finish` makes something else of the same packages.
    revision: &'static str,
    /// Turns the root `root` of the new entry's directory into what the entry holds.
    finish: fn(&Path, Root, &Step, &Path) -> Result<()>,
}

impl Recipe {
    fn key(&self) -> String {
        let parts = [mirror::SUITE, root::SETUP, self.revision];
        store::key(parts.into_iter().chain(self.packages.iter().copied()))
    }

    /// The entry's directory, made if it is not there yet.
    fn entry(&self, cache: &Path, logs: &Path, progress: &Progress) -> Result<std::path::PathBuf> {
        store::entry(cache, self.name, &self.key(), |dir| {
            let step = progress.step(&format!("fetch {}", self.name));
            let log = logs.join(format!("fetch-{}.log", self.name));
            let root = Root::fetch(dir.join("root"), self.packages, &step, &log)?;
            (self.finish)(dir, root, &step, &log)?;
            step.done();
            Ok(())
        })
        .with_context(|| format!("fetching {}", self.name))
    }
}

/// Gets everything, side by side.
pub(crate) fn all(cache: &Path, logs: &Path, progress: &Progress) -> Result<Fetched> {
    thread::scope(|scope| {
        let tools = scope.spawn(|| Tools::fetch(cache, logs, progress));
        let dom0 = scope.spawn(|| Dom0::fetch(cache, logs, progress));
        let guest = Guest::fetch(cache, logs, progress);
        Ok(Fetched { tools: join(tools)?, dom0: join(dom0)?, guest: guest? })
    })
}

/// The result of a thread; a panic of its is an error.
pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the lab panicked: see above")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe = Recipe {
        name: "thing",
        packages: &["one", "two"],
        revision: "1",
        finish: |_, _, _, _| Ok(()),
    };

    #[test]
    fn the_key_follows_packages_and_revision() {
        let packages = Recipe { packages: &["one"], ..RECIPE };
        let revision = Recipe { revision: "2", ..RECIPE };
        assert_ne!(RECIPE.key(), packages.key());
        assert_ne!(RECIPE.key(), revision.key());
        assert_eq!(RECIPE.key(), Recipe { ..RECIPE }.key());
    }
}
