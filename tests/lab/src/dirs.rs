//! The directories that the lab reads and writes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::Arch;

/// The lab's three directories: sources, build products and the cache of fetched packages.
pub(crate) struct Dirs {
    /// The workspace's root. The lab writes to the sources only on request: `bench --record` and
    /// `fuzz --keep`.
    pub(crate) project: PathBuf,
    /// `target/lab`: build products and logs.
    pub(crate) lab: PathBuf,
    /// The user's cache: fetched Debian packages, shared by all clones of the project.
    pub(crate) cache: PathBuf,
}

impl Dirs {
    /// Finds the directories, and creates `lab` and `cache`.
    ///
    /// # Errors
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set, or a directory cannot be created.
    pub(crate) fn find() -> Result<Dirs> {
        Dirs::for_arch(Arch::default())
    }

    /// Does the same as [`Dirs::find`] for machines of `arch`, whose build products are apart.
    pub(crate) fn for_arch(arch: Arch) -> Result<Dirs> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("cannot find the workspace: it is not two folders above the lab's crate")?
            .to_path_buf();
        let dirs = Dirs {
            lab: match arch {
                Arch::X86_64 => project.join("target/lab"),
                other => project.join("target/lab").join(other.name()),
            },
            cache: cache_home(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))?
                .join("virtio-msg-xen"),
            project,
        };
        for dir in [&dirs.lab, &dirs.cache] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(dirs)
    }

    /// Returns `tests/`, which has the scripts for Dom0, for guests and of the scenarios.
    pub(crate) fn tests(&self) -> PathBuf {
        self.project.join("tests")
    }

    /// Creates an empty directory for the logs of the command `name`, and removes those of its last
    /// run.
    pub(crate) fn fresh_logs(&self, name: &str) -> Result<PathBuf> {
        let dir = self.lab.join("logs").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)
                .with_context(|| format!("cannot remove the old logs in {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }
}

/// Applies the XDG rule: `XDG_CACHE_HOME` if it is an absolute path, else `~/.cache`.
fn cache_home(
    xdg: Option<std::ffi::OsString>,
    home: Option<std::ffi::OsString>,
) -> Result<PathBuf> {
    if let Some(xdg) = xdg.map(PathBuf::from).filter(|path| path.is_absolute()) {
        return Ok(xdg);
    }
    let home = home.context("neither XDG_CACHE_HOME nor HOME is set: set one of them")?;
    Ok(PathBuf::from(home).join(".cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_xdg_cache_home_has_precedence() {
        let found = cache_home(Some("/xdg".into()), Some("/home/me".into())).unwrap();
        assert_eq!(found, Path::new("/xdg"));
    }

    #[test]
    fn relative_or_missing_xdg_cache_home_is_ignored() {
        for xdg in [None, Some("relative".into())] {
            let found = cache_home(xdg, Some("/home/me".into())).unwrap();
            assert_eq!(found, Path::new("/home/me/.cache"));
        }
    }

    #[test]
    fn missing_home_error_names_the_variables_to_set() {
        let error = cache_home(None, None).unwrap_err().to_string();
        assert!(error.contains("XDG_CACHE_HOME"), "{error}");
    }
}
