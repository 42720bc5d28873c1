//! `codespell` over every text file.

use anyhow::Result;

use super::{Project, Verdict, files, tool};

/// The settings have the words and files that are left out, with reasons.
const COMMAND: &str = "codespell --config .github/codespellrc --check-hidden -- \"$@\"";

/// Checks all files that are text.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let mut texts = Vec::new();
    for path in files::all(&project.dirs.project)? {
        if files::text(&project.dirs.project, &path)?.is_some() {
            texts.push(path);
        }
    }
    let paths: Vec<_> = texts.iter().map(String::as_str).collect();
    let found = tool::findings(project, "codespell", ".", COMMAND, &paths)?;
    Ok(Verdict::of(found, format!("{} files", paths.len())))
}
