//! What a run ran on.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::Result;

use crate::boot::accel_line;
use crate::command;
use crate::fetch::Tools;

/// What a scenario leaves beside its figures: lines `WHAT: WHICH` of Dom0 and its guest.
pub(crate) const FACTS: &str = "machine";

/// The host's part.
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

/// The model that `/proc/cpuinfo` names.
fn processor(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("a processor without a name", |rest| rest.trim_start_matches([' ', '\t', ':']))
}

/// Adds what a scenario says of Dom0 and its guest, each fact once.
pub(crate) fn add(facts: &mut Vec<(String, String)>, results: &Path) {
    let text = fs::read_to_string(results.join(FACTS)).unwrap_or_default();
    for (what, which) in text.lines().filter_map(|line| line.split_once(": ")) {
        let fact = (what.to_owned(), which.trim().to_owned());
        if !facts.contains(&fact) {
            facts.push(fact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_model_is_found() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Fast 3000\nflags\t: fpu\n";
        assert_eq!(processor(cpuinfo), "Fast 3000");
        assert_eq!(processor(""), "a processor without a name");
    }

    #[test]
    fn a_fact_that_several_scenarios_say_stands_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FACTS), "Xen: 4.20\nDom0's kernel: 6.12\n").unwrap();
        let mut facts = Vec::new();
        add(&mut facts, dir.path());
        add(&mut facts, dir.path());
        assert_eq!(facts.len(), 2);
        assert_eq!(facts[0], ("Xen".to_owned(), "4.20".to_owned()));
    }
}
