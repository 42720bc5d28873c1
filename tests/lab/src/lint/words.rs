//! Retired identifiers: the glossary of `.github/CONTRIBUTING.md` names them, and no code uses
//! them.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Project, Verdict, files};

/// The file with the glossary.
const GLOSSARY: &str = ".github/CONTRIBUTING.md";
/// Heads of the glossary's table: the words, their meaning, the identifiers that they replace.
const HEAD: &str = "| word | meaning | retired identifiers |";

/// Searches Rust and C for whole words that the glossary retires. Comments and texts do not count:
/// an English sentence may look at a thing.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let root = &project.dirs.project;
    let glossary = files::text(root, GLOSSARY)?.context(GLOSSARY)?;
    let retired = retired(&glossary);
    ensure!(!retired.is_empty(), "{GLOSSARY} has no line {HEAD:?} with identifiers below it");
    let (mut found, mut checked) = (Vec::new(), 0);
    for path in files::all(root)?.into_iter().filter(|path| is_code(path)) {
        let text = files::text(root, &path)?.unwrap_or_default();
        checked += 1;
        for (number, line) in text.lines().enumerate() {
            for word in uses(line, &retired) {
                found.push(format!("{path}:{}: {word} is retired", number + 1));
            }
        }
        let stem = Path::new(&path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if retired.contains(format!("mod {stem}").as_str()) {
            found.push(format!("{path}: the module's name is retired"));
        }
    }
    Ok(Verdict::of(found, format!("{} identifiers in {checked} files", retired.len())))
}

fn is_code(path: &str) -> bool {
    [".rs", ".c", ".h"].iter().any(|suffix| path.ends_with(suffix))
}

/// The identifiers in the last column: `Name`, `NAME`, `fn name` or `mod name`, each in backticks.
fn retired(glossary: &str) -> BTreeSet<&str> {
    let rows = glossary.lines().skip_while(|line| *line != HEAD).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let last = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    last.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// The retired identifiers that a line of code uses.
fn uses<'t>(line: &'t str, retired: &BTreeSet<&'t str>) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let code = without_texts(code.split("/*").next().unwrap_or_default());
    if code.trim_start().starts_with('*') {
        return Vec::new();
    }
    let words: Vec<_> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let single = words.iter().filter(|word| retired.contains(**word)).map(ToString::to_string);
    let pairs = words.windows(2).map(|pair| pair.join(" "));
    single.chain(pairs.filter(|pair| retired.contains(pair.as_str()))).collect()
}

/// The line without what stands between quotation marks.
fn without_texts(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "text `Other`\n| word | meaning | retired identifiers |\n|---|---|---|\n\
                         | poll | `Poll` | `Retired`, `fn retire` |\n| tap | TAP | `mod retire` |\n\nend";

    #[test]
    fn the_last_column_names_retired_identifiers() {
        let expected = BTreeSet::from(["Retired", "fn retire", "mod retire"]);
        assert_eq!(retired(TABLE), expected);
        assert!(retired("no table").is_empty());
    }

    #[test]
    fn code_is_searched_for_whole_words_and_comments_are_not() {
        let retired = retired(TABLE);
        assert_eq!(
            uses("    pub fn retire(&self) -> Retired {", &retired),
            ["Retired", "fn retire"]
        );
        for line in [
            "// Retired",
            "/* Retired",
            " * Retired",
            "let retire = 1;",
            "\"Retired\"",
            "RetiredToo",
            "fn retires()",
        ] {
            assert!(uses(line, &retired).is_empty(), "{line}");
        }
    }
}
