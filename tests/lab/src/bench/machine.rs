//! Describes the machine of a run.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::Result;

use crate::boot::accel_line;
use crate::command;
use crate::fetch::Tools;

/// The file among a scenario's results with facts about Dom0 and the guest: lines `WHAT: WHICH`.
pub(crate) const FACTS: &str = "machine";

/// Returns facts about the host and QEMU.
pub(crate) fn host(tools: &Tools) -> Result<Vec<(String, String)>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let version = command::output(tools.qemu().arg("--version"), "asking QEMU's version")?;
    let version = version.lines().next().unwrap_or_default().to_owned();
    let processor = format!("{processors} of {}", processor(&cpuinfo));
    let facts = [
        ("host's processors", processor),
        (
            "machine",
            "QEMU's q35 with 2 processors: the first is Dom0's, the other the guests'".to_owned(),
        ),
        ("QEMU", version),
        ("acceleration", accel_line().to_owned()),
    ];
    Ok(facts.map(|(what, which)| (what.to_owned(), which)).to_vec())
}

/// Returns the model name in `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("a processor without a name", |rest| rest.trim_start_matches([' ', '\t', ':']))
}

/// Adds the facts of the scenario `name` about Dom0 and the guest to `facts`, each only once.
pub(crate) fn add(facts: &mut Vec<(String, String)>, name: &str, results: &Path) {
    let text = fs::read_to_string(results.join(FACTS)).unwrap_or_default();
    for (what, which) in text.lines().filter_map(|line| line.split_once(": ")) {
        // Guests of one kind differ: in memory, processors and kernels.
        let what = if what == "guest" { format!("guest of {name}") } else { what.to_owned() };
        let fact = (what, which.trim().to_owned());
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
        add(&mut facts, "pv/a", dir.path());
        add(&mut facts, "pv/a", dir.path());
        add(&mut facts, "pv/b", dir.path());
        let facts: Vec<_> = facts.iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
        assert_eq!(facts, ["Xen: 4.20", "guest of pv/a: Linux 6.12", "guest of pv/b: Linux 6.12"]);
    }
}
