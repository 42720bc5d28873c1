//! Checks that every clause of SPEC.md has a test, and that tests name only existing clauses.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Clauses without a unit test: terms and principles, and clauses that C code of the module
/// implements: 2.12 (`suspend.c`; scenario save) and 3.6 (`grant.c`).
const WITHOUT_TEST: [&str; 7] = ["1.1", "1.2", "1.3", "1.4", "1.6", "2.12", "3.6"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The clause that a line's test name refers to: 3.2 for `fn spec_3_2_words`.
fn clause_of(line: &str) -> Option<String> {
    let mut parts = line.trim_start().strip_prefix("fn spec_")?.split('_');
    let (section, number) = (parts.next()?, parts.next()?);
    let numbers = section.parse::<u32>().is_ok() && number.parse::<u32>().is_ok();
    numbers.then(|| format!("{section}.{number}"))
}

#[test]
fn clauses_and_tests_match() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(here.join("SPEC.md")).unwrap();
    let clauses: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("* **[")?.split_once(']'))
        .map(|(clause, _)| clause.to_owned())
        .collect();
    assert!(clauses.len() > 30, "SPEC.md has too few lines `* **[n.m]**`: {clauses:?}");

    let mut files = Vec::new();
    for folder in ["src", "../core/src", "../../backend/virtiod/src"] {
        sources(&here.join(folder), &mut files);
    }
    let lines: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let tested: BTreeSet<String> =
        lines.iter().flat_map(|text| text.lines()).filter_map(clause_of).collect();

    let limits = text.lines().filter_map(|line| line.strip_prefix("| 7.")?.split_once(' '));
    let limits: BTreeSet<String> = limits.map(|(number, _)| format!("7.{number}")).collect();
    assert!(limits.len() > 25, "SPEC.md has too few lines `| 7.n |`: {limits:?}");

    let unknown = tested.difference(&clauses).filter(|clause| !limits.contains(*clause));
    let unknown: Vec<_> = unknown.collect();
    assert!(unknown.is_empty(), "tests name clauses that do not exist: {unknown:?}");
    let untested = clauses.difference(&tested).filter(|c| !WITHOUT_TEST.contains(&c.as_str()));
    let untested: Vec<_> = untested.collect();
    assert!(untested.is_empty(), "clauses without a test: {untested:?}");
}
