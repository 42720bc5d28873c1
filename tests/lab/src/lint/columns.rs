//! How wide comments are. rustfmt and checkpatch see to the width of code.

use std::path::Path;

use anyhow::Result;

use super::{Project, Verdict, files, script};

/// The widest line, in characters.
const WIDEST: usize = 100;

/// How wide the kernel's style makes a tab.
const TAB: &str = "        ";

/// Checks the comments of Rust, C and shell that have lines of their own.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let root = &project.dirs.project;
    let (mut found, mut checked) = (Vec::new(), 0);
    for (path, begins) in sources(root)? {
        let text = files::text(root, &path)?.unwrap_or_default();
        checked += 1;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| begins(line.trim_start()))
        {
            let width = width(line);
            if width > WIDEST {
                found.push(format!("{path}:{}: a comment {width} columns wide", number + 1));
            }
        }
    }
    Ok(Verdict::of(found, format!("{checked} files")))
}

/// How a comment begins.
type Begins = fn(&str) -> bool;

/// The files with comments, and how those begin.
fn sources(project: &Path) -> Result<Vec<(String, Begins)>> {
    let mut sources = Vec::new();
    for path in files::all(project)? {
        if let Some(begins) = by_suffix(&path) {
            sources.push((path, begins));
        }
    }
    let scripts = script::all(project)?.into_iter();
    sources.extend(scripts.map(|script| (script.path, begins_in_shell as Begins)));
    Ok(sources)
}

fn by_suffix(path: &str) -> Option<Begins> {
    match Path::new(path).extension()?.to_str()? {
        "rs" => Some(|line| line.starts_with("//")),
        "c" | "h" => Some(|line| ["/*", "*", "//"].iter().any(|begin| line.starts_with(begin))),
        _ => None,
    }
}

fn begins_in_shell(line: &str) -> bool {
    line.starts_with('#')
}

fn width(line: &str) -> usize {
    line.replace('\t', TAB).chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_told_from_code() {
        let (rust, c) = (by_suffix("main.rs").unwrap(), by_suffix("shim.h").unwrap());
        assert!(rust("/// Text.") && rust("//! Text.") && !rust("let a = 1; // text"));
        assert!(c("/* Text") && c("* text") && !c("int a;"));
        assert!(by_suffix("README.md").is_none() && by_suffix("Makefile").is_none());
    }

    #[test]
    fn a_character_is_a_column_and_a_tab_eight() {
        assert_eq!(width("\t// ä …"), 14);
    }
}
