//! The project's files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// What a tarball's tree may hold beside the sources.
const NOT_SOURCES: [&str; 2] = [".git", "target"];

/// The paths of all files below `project`, relative to it, in order: those that git tracks or
/// would, or all of them where git has no list.
pub(super) fn all(project: &Path) -> Result<Vec<String>> {
    let mut files = listed(project).or_else(|_| walked(project))?;
    files.sort_unstable();
    Ok(files)
}

/// The text of the file `path`, or none if it is not UTF-8 or holds a zero byte.
pub(super) fn text(project: &Path, path: &str) -> Result<Option<String>> {
    let bytes = fs::read(project.join(path)).with_context(|| format!("cannot read {path}"))?;
    Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
}

fn listed(project: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = command::output(git.current_dir(project), "listing the project's files")?;
    let files = list.split_terminator('\0').map(str::to_owned);
    // Git lists a file that was removed until that is committed.
    Ok(files.filter(|path| project.join(path).is_file()).collect())
}

fn walked(project: &Path) -> Result<Vec<String>> {
    let (mut files, mut directories) = (Vec::new(), vec![project.to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let relative = path.strip_prefix(project)?.to_string_lossy().into_owned();
            if path.is_symlink() || NOT_SOURCES.contains(&relative.as_str()) {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(relative);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_without_git_is_walked_past_what_is_built() {
        let project = tempfile::tempdir().unwrap();
        for directory in [".git", "target", "src/target"] {
            fs::create_dir_all(project.path().join(directory)).unwrap();
            fs::write(project.path().join(directory).join("file"), "x").unwrap();
        }
        assert_eq!(walked(project.path()).unwrap(), ["src/target/file"]);
    }

    #[test]
    fn a_file_with_a_zero_byte_is_no_text() {
        let project = tempfile::tempdir().unwrap();
        for (name, bytes) in [("text", "ä\n".as_bytes()), ("zero", b"\0"), ("latin", b"\xe4")] {
            fs::write(project.path().join(name), bytes).unwrap();
        }
        assert_eq!(text(project.path(), "text").unwrap().as_deref(), Some("ä\n"));
        assert_eq!(text(project.path(), "zero").unwrap(), None);
        assert_eq!(text(project.path(), "latin").unwrap(), None);
    }
}
