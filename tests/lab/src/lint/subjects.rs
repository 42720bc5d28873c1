//! The subjects of commits.

use std::process::Command;

use anyhow::Result;

use super::{Project, Verdict};
use crate::command;

/// How many of the last commits are checked. A shallow clone may have fewer.
const COMMITS: usize = 50;

/// The longest subject, in characters.
const LONGEST: usize = 72;

/// Imperatives that end as a past tense or a gerund does.
const IMPERATIVES: [&str; 13] = [
    "bring", "embed", "exceed", "feed", "need", "ping", "proceed", "ring", "seed", "shed", "speed",
    "spring", "string",
];

/// Checks the last commits.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let mut git = Command::new("git");
    git.args(["log", "--no-merges", "--format=%h %s", &format!("-{COMMITS}")]);
    let log = match command::output(git.current_dir(&project.dirs.project), "reading the history") {
        Ok(log) => log,
        Err(error) => return Ok(Verdict::Skipped(format!("there is no history: {error:#}"))),
    };
    let found = log.lines().filter_map(finding).collect();
    Ok(Verdict::of(found, format!("{} commits", log.lines().count())))
}

/// What is wrong with the commit of this line, `HASH SUBJECT`.
fn finding(line: &str) -> Option<String> {
    let subject = line.split_once(' ').map_or("", |(_, subject)| subject);
    Some(format!("{line}: {}", fault(subject)?))
}

fn fault(subject: &str) -> Option<String> {
    // Git's own words for a commit that undoes another, which may be as long as may be.
    if subject.starts_with("Revert \"") {
        return None;
    }
    let length = subject.chars().count();
    if length > LONGEST {
        return Some(format!("{length} characters, more than {LONGEST}"));
    }
    if subject.ends_with('.') {
        return Some("a full stop at the end".to_owned());
    }
    let Some((_, rest)) = subject.split_once(": ").filter(|(area, _)| is_area(area)) else {
        return Some("not `area: verb object`".to_owned());
    };
    // Without an object is what needs none: "tests: format".
    let verb = rest.split(' ').next().unwrap_or_default();
    let inflected = verb.ends_with("ed") || verb.ends_with("ing");
    (inflected && !IMPERATIVES.contains(&verb)).then(|| format!("{verb:?} is no imperative"))
}

/// Whether `area` is one or several names of what the project has, as `blk` or `virtiod, uring`.
fn is_area(area: &str) -> bool {
    let is_name = |name: &str| {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(c);
        !name.is_empty() && name.chars().all(known)
    };
    area.split(", ").all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_an_area_and_an_imperative() {
        for subject in [
            "blk: report the image's own name",
            "virtiod, uring: move file I/O out",
            "guest-shim/linux: bring back the pool",
            "tests: format",
            "Revert \"blk: a subject which was as long as it may be, so that this one is longer\"",
        ] {
            assert_eq!(fault(subject), None);
        }
    }

    #[test]
    fn other_subjects_are_refused_with_a_reason() {
        let long = format!("blk: {}", "report ".repeat(12));
        for (subject, why) in [
            (long.trim_end(), "88 characters"),
            ("blk: report the name.", "full stop"),
            ("report the name", "area"),
            ("Blk: report the name", "area"),
            (": report the name", "area"),
            ("blk: reported the name", "imperative"),
            ("blk: reporting the name", "imperative"),
        ] {
            assert!(fault(subject).is_some_and(|fault| fault.contains(why)), "{subject}");
        }
        assert_eq!(finding("12ab cleanup").unwrap(), "12ab cleanup: not `area: verb object`");
    }
}
