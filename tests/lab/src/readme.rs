//! Reads the commands that install the packages from README. The lab runs the same commands.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The beginnings of the paragraphs before the commands.
const PARAGRAPHS: [&str; 2] = ["Dom0, or a driver domain", "Guest"];

/// The indentation of the lines of commands.
const INDENTATION: &str = "    ";

/// The commands for Dom0, then those for a guest, without those of the lab.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InstallCommands([Vec<String>; 2]);

impl InstallCommands {
    /// Reads the commands from the README of `project`.
    ///
    /// # Errors
    /// README cannot be read, or has no `apt install` in a paragraph.
    pub(crate) fn read(project: &Path) -> Result<InstallCommands> {
        let path = project.join("README.md");
        let readme = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        InstallCommands::of(&readme).with_context(|| format!("in {}", path.display()))
    }

    fn of(readme: &str) -> Result<InstallCommands> {
        let mut both = PARAGRAPHS.map(|paragraph| {
            let ours = block(readme, paragraph).map(without_comment);
            ours.filter(|line| !line.starts_with("cargo lab ")).map(str::to_owned).collect()
        });
        for (commands, paragraph) in both.iter_mut().zip(PARAGRAPHS) {
            let commands: &Vec<String> = commands;
            let installs = commands.iter().any(|line| line.starts_with("apt install "));
            ensure!(installs, "there is no `apt install` below {paragraph:?}");
        }
        Ok(InstallCommands(both))
    }

    /// Returns the commands as a script, for the packages of `suite`.
    pub(crate) fn script(&self, suite: &str) -> String {
        self.0.concat().join("\n").replace("/packages/trixie/", &format!("/packages/{suite}/"))
    }
}

/// Returns the indented lines below the paragraph, without their indentation.
fn block<'a>(readme: &'a str, paragraph: &str) -> impl Iterator<Item = &'a str> {
    readme
        .lines()
        .skip_while(move |line| !line.starts_with(paragraph))
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
    fn commands_are_read_below_their_paragraphs() {
        let readme = "Guest:\n\n    apt install ./b.deb\n\n\
                      Dom0, or a driver domain, with Debian:\n\n\
                      \x20   cargo lab packages\n\
                      \x20   apt install ./target/lab/packages/trixie/a.deb   # the daemon\n\
                      \x20   start it\n\n\
                      Text.\n\n    other\n";
        let script = InstallCommands::of(readme).unwrap().script("sid");
        let lines =
            ["apt install ./target/lab/packages/sid/a.deb", "start it", "apt install ./b.deb"];
        assert_eq!(script, lines.join("\n"));
    }

    #[test]
    fn missing_command_error_names_the_paragraph() {
        let dom0 = "Dom0, or a driver domain, so:\n\n    apt install a\n\n";
        for (readme, missing) in [("", "Dom0"), (dom0, "Guest")] {
            let error = InstallCommands::of(readme).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn projects_readme_has_the_commands() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        InstallCommands::read(&project).unwrap();
    }
}
