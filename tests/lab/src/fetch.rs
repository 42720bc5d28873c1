//! Fetches Debian packages, and keeps everything made of them in the user's cache.

mod bzimage;
mod dom0;
mod guest;
mod kernel;
mod lint;
mod modules;
mod packaging;
mod programs;
mod tools;

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::debian::root::{self, Contents, Root};
use crate::debian::{Arch, Suite};
use crate::progress::{Progress, Step};
use crate::store;

pub(crate) use dom0::Dom0;
pub(crate) use guest::Guest;
pub(crate) use kernel::Kernel;
pub(crate) use lint::root as lint_root;
pub(crate) use packaging::{build_root, storage_root, system_root};
pub(crate) use programs::Programs;
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

/// The architecture of a root, and the helper whose programs work on it.
#[derive(Clone, Copy)]
pub(crate) struct Platform<'a> {
    arch: Arch,
    helper: Option<&'a Path>,
}

impl Platform<'static> {
    /// This host's own.
    const HOST: Self = Self { arch: Arch::X86_64, helper: None };
}

impl<'a> Platform<'a> {
    /// The architecture of a machine whose tools are these.
    fn of(tools: &'a Tools) -> Self {
        let arch = tools.arch();
        Self { arch, helper: (arch != Arch::default()).then(|| tools.root().path()) }
    }

    /// The recipe for this architecture.
    fn recipe(self, x86_64: Recipe<'static>, aarch64: Recipe<'static>) -> Recipe<'a> {
        let recipe = match self.arch {
            Arch::X86_64 => x86_64,
            Arch::Aarch64 => aarch64,
        };
        Recipe { platform: self, ..recipe }
    }

    /// The name of a cache entry.
    fn name(self, name: &str) -> String {
        match self.arch {
            Arch::X86_64 => name.to_owned(),
            other => format!("{name}-{}", other.debian()),
        }
    }
}

/// Describes how the lab makes a cache entry from Debian packages.
struct Recipe<'a> {
    name: &'a str,
    suite: Suite,
    platform: Platform<'a>,
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
        let arch = (self.platform.arch != Arch::default()).then(|| self.platform.arch.name());
        let parts = parts.into_iter().chain(arch);
        store::key(parts.chain(self.packages.iter().copied().flatten().copied()))
    }

    /// Returns the entry's directory; fetches the packages if the entry does not exist.
    fn entry(&self, cache: &Path, logs: &Path, progress: &Progress) -> Result<std::path::PathBuf> {
        let name = self.platform.name(self.name);
        store::entry(cache, &name, &self.key(), |dir| {
            let step = progress.step(&format!("fetch {name}"));
            let log = logs.join(format!("fetch-{name}.log"));
            let packages = self.packages.concat();
            let root = self.root_at(dir);
            let root = root.fetch(self.suite, &packages, self.contents, &step, &log)?;
            (self.finish)(dir, root, &step, &log)?;
            step.done();
            Ok(())
        })
        .with_context(|| format!("cannot fetch {name}"))
    }

    /// Returns the root in the directory of an entry.
    fn root_at(&self, entry: &Path) -> Root {
        Root::of(entry.join("root"), self.platform.arch, self.platform.helper)
    }
}

/// Fetches everything for machines of `arch`, with the kernels of the releases `others`, in
/// parallel.
pub(crate) fn all(
    arch: Arch,
    others: &[Suite],
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Fetched> {
    if arch != Arch::default() {
        // The others are made with their programs.
        let tools = Tools::fetch(arch, cache, logs, progress)?;
        return systems(Platform::of(&tools), others, cache, logs, progress).map(|all| all(tools));
    }
    thread::scope(|scope| {
        let tools = scope.spawn(|| Tools::fetch(arch, cache, logs, progress));
        let systems = systems(Platform::HOST, others, cache, logs, progress);
        Ok(systems?(join(tools)?))
    })
}

/// Fetches the systems of Dom0 and of guests; the result waits for the tools.
fn systems(
    platform: Platform<'_>,
    others: &[Suite],
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<impl FnOnce(Tools) -> Fetched + use<>> {
    thread::scope(|scope| {
        let dom0 = scope.spawn(move || Dom0::fetch(platform, cache, logs, progress));
        let fetch = |suite| move || Kernel::fetch(suite, platform, cache, logs, progress);
        let others: Vec<_> =
            others.iter().map(|&suite| (suite, scope.spawn(fetch(suite)))).collect();
        let guest = Guest::fetch(platform, cache, logs, progress);
        let others = others.into_iter().map(|(suite, thread)| (suite, join(thread))).collect();
        let (dom0, guest) = (join(dom0)?, guest?);
        Ok(move |tools| Fetched { tools, dom0, guest, others })
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
        platform: Platform::HOST,
        packages: &[&["one"], &["two"]],
        contents: Contents::Files,
        revision: "1",
        finish: |_, _, _, _| Ok(()),
    };

    #[test]
    fn key_depends_on_release_packages_and_revision() {
        let suite = Recipe { suite: Suite::Sid, ..RECIPE };
        assert_ne!(RECIPE.key(), suite.key());
        let arch = Platform { arch: Arch::Aarch64, ..Platform::HOST };
        assert_ne!(RECIPE.key(), Recipe { platform: arch, ..RECIPE }.key());
        let packages = Recipe { packages: &[&["one"]], ..RECIPE };
        let revision = Recipe { revision: "2", ..RECIPE };
        assert_ne!(RECIPE.key(), packages.key());
        assert_ne!(RECIPE.key(), revision.key());
        assert_eq!(RECIPE.key(), Recipe { ..RECIPE }.key());
    }
}
