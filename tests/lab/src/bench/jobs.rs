//! fio's jobs.

use std::fmt::Write;

use super::block::{BESIDE, BESIDES, FEW, WORKS};
use super::selection::Selection;
use super::stores::STORES;
use super::work::Work;

/// A disk: its server and its store.
type Disk = (&'static str, &'static str);

/// The options of a job on a cold disk. The guest sets `AREA` to the offset of the round's area,
/// and fio uses other random offsets in each round.
const COLD: &str = "offset=${AREA}\nsize=512m\nrandrepeat=0\n";

/// One pass over all works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The first pass, whose results the bench discards: the emulator translates code, and drivers
    /// and backends allocate memory.
    WarmUp,
    /// A round with the disks in the order of their list.
    Forward,
    /// A round with the disks in reverse order. Rounds alternate.
    Backward,
}

impl Pass {
    /// All passes.
    pub(crate) const ALL: [Pass; 3] = [Pass::WarmUp, Pass::Forward, Pass::Backward];

    /// Returns the name of its job file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pass::WarmUp => "warm-up",
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }

    /// Returns the times to begin with and to measure, in milliseconds.
    fn times(self, selection: &Selection) -> (u32, u32) {
        match self {
            Pass::WarmUp => (0, 300),
            Pass::Forward | Pass::Backward => (200, selection.runtime()),
        }
    }
}

/// Returns the job file of one pass: for each work, all disks one after the other.
pub(crate) fn pass(disks: &[Disk], selection: &Selection, pass: Pass) -> String {
    let (ramp, runtime) = pass.times(selection);
    let mut jobs = format!(
        "[global]\nioengine=libaio\ndirect=1\nthread=1\ntime_based=1\nruntime={runtime}ms\n\
         ramp_time={ramp}ms\nsize=64m\n"
    );
    for store in STORES {
        let on_store = |work: &&Work| store.works.contains(&work.key);
        for work in WORKS.iter().filter(on_store).filter(|work| selection.has(work)) {
            let mut servers: Vec<_> =
                disks.iter().filter(|(_, of)| *of == store.key).map(|(server, _)| server).collect();
            if pass == Pass::Backward {
                servers.reverse();
            }
            for server in servers {
                let disk = format!("{server}-{}", store.key);
                let start = if store.is_cold() { COLD } else { "" };
                let start = format!("stonewall\n{start}");
                add(&mut jobs, &format!("{}@{disk}", work.key), &disk, &start, work.options);
                for (_, options) in BESIDES.iter().filter(|(key, _)| *key == work.key) {
                    // Without stonewall it starts together with the job before it.
                    add(&mut jobs, &format!("{BESIDE}{}@{disk}", work.key), &disk, "", options);
                }
            }
        }
    }
    jobs
}

/// Adds the job `name` on a disk.
fn add(jobs: &mut String, name: &str, disk: &str, start: &str, options: &[&str]) {
    let options = options.join("\n");
    // Writing to a string cannot fail.
    let _ = write!(jobs, "\n[{name}]\n{start}filename=/dev/bench/{disk}\n{options}\n");
}

/// Returns a line for each of the few works: the key, and fio's options.
pub(crate) fn few(selection: &Selection) -> String {
    let works = WORKS.iter().filter(|work| FEW.contains(&work.key));
    let line = |work: &Work| {
        let options: String = work.options.iter().map(|option| format!(" --{option}")).collect();
        format!("{}{options} --runtime={}ms\n", work.key, selection.runtime())
    };
    works.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::selection::Extent;
    use crate::bench::stores::disks;

    fn of(extent: Extent) -> Selection {
        Selection { extent, ..Selection::default() }
    }

    #[test]
    fn servers_alternate_within_each_work() {
        let disks = disks("bench-block", "pvh");
        let jobs = pass(disks, &of(Extent::Full), Pass::Forward);
        let at = |name: &str| jobs.find(&format!("[{name}]")).unwrap();
        assert!(at("randread-4k-qd1@ours-file") < at("randread-4k-qd1@blkback-file"));
        assert!(at("randread-4k-qd1@qdisk-file") < at("randwrite-4k-qd1@ours-file"));
        let back = pass(disks, &of(Extent::Full), Pass::Backward);
        let at = |name: &str| back.find(&format!("[{name}]")).unwrap();
        assert!(at("randread-4k-qd1@blkback-file") < at("randread-4k-qd1@ours-file"));
    }

    #[test]
    fn all_passes_have_the_same_jobs_one_at_a_time() {
        let disks = disks("bench-slow", "pvh");
        let count = |pass_| pass(disks, &of(Extent::Full), pass_).matches("filename=").count();
        let expected: usize =
            disks.iter().map(|(_, key)| crate::bench::stores::find(key).unwrap().works.len()).sum();
        let jobs = pass(disks, &of(Extent::Full), Pass::Forward);
        let beside = jobs.matches("[beside:").count();
        assert!(beside > 0);
        assert_eq!(Pass::ALL.map(count), [expected + beside; 3]);
        assert_eq!(jobs.matches("\nstonewall\n").count(), expected);
    }

    #[test]
    fn jobs_on_cold_disks_alone_use_the_area_of_their_round() {
        let jobs = pass(disks("bench-direct", "pvh"), &of(Extent::Full), Pass::Forward);
        let (cold, others): (Vec<_>, Vec<_>) = jobs
            .split("\n\n")
            .filter(|job| job.contains('@'))
            .partition(|job| job.contains("_cold"));
        assert!(!cold.is_empty() && cold.iter().all(|job| job.contains("offset=${AREA}")));
        assert!(!others.is_empty() && others.iter().all(|job| !job.contains("AREA")));
    }

    #[test]
    fn selected_works_alone_have_jobs() {
        let selection = Selection { works: vec!["qd32".into()], ..Selection::default() };
        let jobs = pass(disks("bench-slow", "pvh"), &selection, Pass::Forward);
        assert_eq!(jobs.matches("\n[").count(), jobs.matches("-4k-qd32@").count());
    }

    #[test]
    fn few_works_have_a_line_each() {
        let few = few(&of(Extent::Full));
        assert_eq!(few.lines().count(), FEW.len());
        assert!(few.contains("read-1m-qd4 --rw=read --bs=1m --iodepth=4 --runtime=800ms\n"));
    }
}
