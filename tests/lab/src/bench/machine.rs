//! Describes the machine of a run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::Result;

use crate::boot::{MachineKind, accel_line};
use crate::command;
use crate::debian::Arch;
use crate::fetch::Tools;

/// The file among a scenario's results with facts about Dom0 and the guest: lines `WHAT: WHICH`.
pub(crate) const FACTS: &str = "machine";

/// Where the recorded reports are: a run that follows another one finds them changed.
const REPORTS: &str = "tests/bench/report.";

/// Returns facts about the host and QEMU.
pub(crate) fn host(tools: &Tools) -> Result<Vec<(String, String)>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let version = command::output(tools.qemu().arg("--version"), "asking QEMU's version")?;
    let version = version.lines().next().unwrap_or_default().to_owned();
    let processor = format!("{processors} of {}", processor(&cpuinfo));
    let facts = [
        ("host's processors", processor),
        ("QEMU", version),
        ("acceleration", accel_line(Arch::default()).to_owned()),
    ];
    Ok(facts.map(|(what, which)| (what.to_owned(), which)).to_vec())
}

/// Returns the fact about the emulated machine of a scenario; those that are not the default one
/// are named by it.
pub(crate) fn emulated(kind: MachineKind, scenario: &str) -> (String, String) {
    let (all, dom0) = (kind.processors(), kind.dom0_processors());
    let name = match kind {
        MachineKind::Default => "machine".to_owned(),
        _ => format!("machine of {scenario}"),
    };
    (
        name,
        format!(
            "QEMU's q35 with {all} processors: {dom0} for Dom0, {} for guests that are not pinned",
            all - dom0
        ),
    )
}

/// Returns the version of the project, if git knows it: the date and the name of the last commit,
/// and whether files differ from it.
pub(crate) fn version(project: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(arguments).current_dir(project);
        command::output(&mut git, "asking for the version").ok()
    };
    let commit = git(&["log", "-1", "--format=%cs, %h"])?;
    let is_changed = git(&["status", "--porcelain"])?.lines().any(|line| !line.contains(REPORTS));
    let changed = if is_changed { ", changed" } else { "" };
    Some(format!("{}{changed}", commit.trim())).filter(|version| version != changed)
}

/// Returns the model name in `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("a processor without a name", |rest| rest.trim_start_matches([' ', '\t', ':']))
}

/// Adds the facts of the scenario `name` about its machine, Dom0 and the guest to `facts`, each
/// only once.
pub(crate) fn add(
    facts: &mut Vec<(String, String)>,
    kind: MachineKind,
    name: &str,
    results: &Path,
) {
    let text = fs::read_to_string(results.join(FACTS)).unwrap_or_default();
    let reported = text.lines().filter_map(|line| line.split_once(": ")).map(|(what, which)| {
        // Guests of one kind differ: in memory, processors and kernels.
        let what = if what == "guest" { format!("guest of {name}") } else { what.to_owned() };
        (what, which.trim().to_owned())
    });
    for fact in [emulated(kind, name)].into_iter().chain(reported) {
        if !facts.contains(&fact) {
            facts.push(fact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_model_is_found() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Fast 3000\nflags\t: fpu\n";
        assert_eq!(processor(cpuinfo), "Fast 3000");
        assert_eq!(processor(""), "a processor without a name");
    }

    #[test]
    fn repeated_fact_is_added_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FACTS), "Xen: 4.20\nguest: Linux 6.12\n").unwrap();
        let mut facts = Vec::new();
        add(&mut facts, MachineKind::Default, "pv/a", dir.path());
        add(&mut facts, MachineKind::Default, "pv/a", dir.path());
        add(&mut facts, MachineKind::TwoForDom0, "pv/b", dir.path());
        let facts: Vec<_> = facts.iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
        let expected = [
            "machine: QEMU's q35 with 2 processors: 1 for Dom0, 1 for guests that are not pinned",
            "Xen: 4.20",
            "guest of pv/a: Linux 6.12",
            "machine of pv/b: QEMU's q35 with 3 processors: 2 for Dom0, 1 for guests that are not pinned",
            "guest of pv/b: Linux 6.12",
        ];
        assert_eq!(facts, expected);
    }
}
