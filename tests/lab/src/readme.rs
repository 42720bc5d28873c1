//! The commands that README has a user type in Dom0. The lab types the same.

use std::path::Path;

use anyhow::{Context, Result};

/// What the paragraph before the commands begins with.
const PARAGRAPH: &str = "Dom0, or a driver domain, ";

/// What the lines of commands begin with.
const INDENTATION: &str = "    ";

/// From a clone to a running daemon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dom0Commands {
    /// The Debian packages that have to be installed first.
    pub(crate) packages: Vec<String>,
    /// What builds the daemon.
    pub(crate) build: String,
    /// What installs and starts it.
    pub(crate) install: Vec<String>,
}

impl Dom0Commands {
    /// Those of the README of `project`.
    pub(crate) fn read(project: &Path) -> Result<Dom0Commands> {
        let path = project.join("README.md");
        let readme = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Dom0Commands::of(&readme).with_context(|| format!("in {}", path.display()))
    }

    fn of(readme: &str) -> Result<Dom0Commands> {
        let mut lines = block(readme).map(without_comment);
        let packages = lines
            .next()
            .and_then(|line| line.strip_prefix("apt install "))
            .with_context(|| format!("no `apt install` first below {PARAGRAPH:?}"))?;
        let build = lines
            .next()
            .filter(|line| line.starts_with("cargo "))
            .with_context(|| format!("no `cargo` second below {PARAGRAPH:?}"))?;
        Ok(Dom0Commands {
            packages: packages.split_whitespace().map(str::to_owned).collect(),
            build: build.to_owned(),
            install: lines.map(str::to_owned).collect(),
        })
    }
}

/// The indented lines below the paragraph.
fn block(readme: &str) -> impl Iterator<Item = &str> {
    readme
        .lines()
        .skip_while(|line| !line.starts_with(PARAGRAPH))
        .skip_while(|line| !line.starts_with(INDENTATION))
        .map_while(|line| line.strip_prefix(INDENTATION))
}

fn without_comment(line: &str) -> &str {
    line.split_once(" #").map_or(line, |(command, _)| command).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_below_their_paragraph() {
        let readme = "Guest:\n\n    make install\n\n\
                      Dom0, or a driver domain, with Debian:\n\n\
                      \x20   apt install one two   # both\n\
                      \x20   cargo build\n\
                      \x20   install a b\n\
                      \x20   start it\n\n\
                      Text.\n\n    other\n";
        let commands = Dom0Commands::of(readme).unwrap();
        assert_eq!(commands.packages, ["one", "two"]);
        assert_eq!(commands.build, "cargo build");
        assert_eq!(commands.install, ["install a b", "start it"]);
    }

    #[test]
    fn a_readme_without_them_is_an_error_that_says_what_is_missing() {
        for (readme, missing) in [
            ("", "apt install"),
            ("Dom0, or a driver domain, so:\n\n    cargo build\n", "apt install"),
            ("Dom0, or a driver domain, so:\n\n    apt install x\n    make\n", "cargo"),
        ] {
            let error = Dom0Commands::of(readme).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn the_projects_own_readme_has_them() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let commands = Dom0Commands::read(&project).unwrap();
        assert!(commands.install.iter().any(|line| line.starts_with("install ")), "{commands:?}");
        assert!(commands.install.iter().any(|line| line.starts_with("systemctl ")), "{commands:?}");
    }
}
