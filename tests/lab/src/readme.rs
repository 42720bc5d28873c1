//! Reads the commands that install the daemon in Dom0 from README. The lab runs the same commands.

use std::path::Path;

use anyhow::{Context, Result};

/// The beginning of the paragraph before the commands.
const PARAGRAPH: &str = "Dom0, or a driver domain, ";

/// The indentation of the lines of commands.
const INDENTATION: &str = "    ";

/// The commands from a clone to a running daemon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dom0Commands {
    /// The Debian packages that the build needs.
    pub(crate) packages: Vec<String>,
    /// The command that builds the daemon.
    pub(crate) build: String,
    /// The commands that install and start it.
    pub(crate) install: Vec<String>,
}

impl Dom0Commands {
    /// Reads the commands from the README of `project`.
    ///
    /// # Errors
    /// README cannot be read, or its first commands are not `apt install` and `cargo`.
    pub(crate) fn read(project: &Path) -> Result<Dom0Commands> {
        let path = project.join("README.md");
        let readme = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Dom0Commands::of(&readme).with_context(|| format!("in {}", path.display()))
    }

    fn of(readme: &str) -> Result<Dom0Commands> {
        let mut lines = block(readme).map(without_comment);
        let packages =
            lines.next().and_then(|line| line.strip_prefix("apt install ")).with_context(|| {
                format!("the first command below {PARAGRAPH:?} is no `apt install`")
            })?;
        let build = lines
            .next()
            .filter(|line| line.starts_with("cargo "))
            .with_context(|| format!("the second command below {PARAGRAPH:?} is no `cargo`"))?;
        Ok(Dom0Commands {
            packages: packages.split_whitespace().map(str::to_owned).collect(),
            build: build.to_owned(),
            install: lines.map(str::to_owned).collect(),
        })
    }
}

/// Returns the indented lines below the paragraph, without their indentation.
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
    fn commands_are_read_below_their_paragraph() {
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
    fn missing_command_error_names_the_command() {
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
    fn projects_readme_has_the_commands() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let commands = Dom0Commands::read(&project).unwrap();
        assert!(commands.install.iter().any(|line| line.starts_with("install ")), "{commands:?}");
        assert!(commands.install.iter().any(|line| line.starts_with("systemctl ")), "{commands:?}");
    }
}
