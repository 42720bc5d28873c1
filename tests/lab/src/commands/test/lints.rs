//! The checks of the project's text.

use crate::lint::{CHECKS, Project, Verdict};
use crate::summary::Summary;

/// What the display of minutes calls them.
const PART: &str = "lint";

/// How many lines of one check are shown.
const SHOWN: usize = 60;

/// Runs the checks whose names contain `filter`.
pub(super) fn run(filter: &str, project: &Project, summary: &mut Summary) {
    for check in CHECKS.iter().filter(|check| check.name.contains(filter)) {
        let step = project.progress.step(check.name);
        let verdict = project.progress.minutes().part(PART, || (check.run)(project));
        match verdict {
            Ok(Verdict::Clean(checked)) => summary.pass(&format!("{}: {checked}", check.name), 1),
            Ok(Verdict::Skipped(why)) => summary.skip(&format!("{}: {why}", check.name)),
            Ok(Verdict::Findings(lines)) => {
                summary.fail(check.name, &shown(&lines));
                continue;
            }
            Err(error) => {
                summary.fail(check.name, &format!("not run: {error:#}"));
                continue;
            }
        }
        step.done();
    }
}

/// The first of `lines`, and how many there are beside them.
fn shown(lines: &[String]) -> String {
    let mut shown: Vec<String> = lines.iter().take(SHOWN).cloned().collect();
    if lines.len() > SHOWN {
        shown.push(format!("… and {} more", lines.len() - SHOWN));
    }
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lines_are_counted_and_not_shown() {
        let lines = vec!["wrong".to_owned(); SHOWN + 2];
        assert!(shown(&lines).ends_with("wrong\n… and 2 more"));
        assert_eq!(shown(&lines[..2]), "wrong\nwrong");
    }
}
