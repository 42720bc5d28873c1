//! Where the lab reads and writes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The three places the lab knows: the project, what it builds, what it fetched.
pub(crate) struct Dirs {
    /// The workspace: sources, never written to.
    pub(crate) project: PathBuf,
    /// `target/lab`: what is built from the project, and the logs.
    pub(crate) lab: PathBuf,
    /// The user's cache: what came from the distribution, shared by all clones.
    pub(crate) cache: PathBuf,
}

impl Dirs {
    /// Finds the places and creates those that are written to.
    pub(crate) fn find() -> Result<Dirs> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("the lab's crate stands in no workspace")?
            .to_path_buf();
        let dirs = Dirs {
            lab: project.join("target/lab"),
            cache: cache_home(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))?
                .join("virtio-msg-xen"),
            project,
        };
        for dir in [&dirs.lab, &dirs.cache] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(dirs)
    }

    /// `tests/`, where the scripts of Dom0, of the guest and of the scenarios stand.
    pub(crate) fn tests(&self) -> PathBuf {
        self.project.join("tests")
    }

    /// An empty directory for the logs of the command `name`, in place of those of its last run.
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

/// The XDG rule: `XDG_CACHE_HOME` if it is an absolute path, else `~/.cache`.
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
    fn an_absolute_xdg_cache_home_wins() {
        let found = cache_home(Some("/xdg".into()), Some("/home/me".into())).unwrap();
        assert_eq!(found, Path::new("/xdg"));
    }

    #[test]
    fn a_relative_or_missing_xdg_cache_home_is_ignored() {
        for xdg in [None, Some("relative".into())] {
            let found = cache_home(xdg, Some("/home/me".into())).unwrap();
            assert_eq!(found, Path::new("/home/me/.cache"));
        }
    }

    #[test]
    fn without_a_home_the_error_says_what_to_set() {
        let error = cache_home(None, None).unwrap_err().to_string();
        assert!(error.contains("XDG_CACHE_HOME"), "{error}");
    }
}
