//! Debian's linters, and `checkpatch` out of the kernel's sources: no smaller package has it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Contents, Platform, Recipe};
use crate::command;
use crate::debian::Suite;
use crate::debian::inside::Inside;
use crate::debian::root::Root;
use crate::progress::{Progress, Step};

const RECIPE: Recipe<'static> = Recipe {
    name: "lint",
    suite: Suite::LAB,
    platform: Platform::HOST,
    packages: &[
        // What runs the linters,
        &["base-files", "coreutils", "dash", "diffutils", "perl", "tar", "xz-utils"],
        // and themselves.
        &["codespell", "linux-source", "shellcheck"],
    ],
    contents: Contents::Files,
    revision: "1",
    finish: |_, root, step, log| finish(&root, step, log),
};

/// Where the project is mounted while a linter runs.
const PROJECT: &str = "project";

/// Takes `checkpatch.pl`, and what it reads, out of the kernel's sources, and removes them. The
/// first file of each name ends the search: there are no others.
const TAKE_CHECKPATCH: &str = "mkdir -p /opt/checkpatch
cd /opt/checkpatch
for file in checkpatch.pl const_structs.checkpatch spelling.txt; do
    set -- \"$@\" \"*/scripts/$file\"
done
tar -xf /usr/src/linux-source-*.tar.xz --wildcards --occurrence=1 --strip-components=2 \"$@\"
rm -r /usr/src";

/// Fetches the root that has `shellcheck`, `codespell` and `/opt/checkpatch/checkpatch.pl`.
pub(crate) fn root(cache: &Path, logs: &Path, progress: &Progress) -> Result<Root> {
    Ok(Root::at(RECIPE.entry(cache, logs, progress)?.join("root")))
}

fn finish(root: &Root, step: &Step, log: &Path) -> Result<()> {
    step.at("taking checkpatch out of the kernel's sources");
    command::run(&mut Inside::new(root).shell(TAKE_CHECKPATCH), "unpacking checkpatch", log)?;
    let project = root.file(PROJECT);
    fs::create_dir(&project).with_context(|| format!("cannot create {}", project.display()))
}
