//! The block measurements: the works, the servers of a guest's disks, and fio's jobs.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::fio;
use super::sample::{Sample, Task};
use super::work::{Unit, Work};

/// All works that fio does.
pub(crate) const WORKS: &[Work] = &[
    Work {
        key: "randread-4k-qd1",
        name: "4 KiB random read, depth 1",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randread", "bs=4k", "iodepth=1"],
    },
    Work {
        key: "randwrite-4k-qd1",
        name: "4 KiB random write, depth 1",
        unit: Unit::Count,
        quick: false,
        options: &["rw=randwrite", "bs=4k", "iodepth=1"],
    },
    Work {
        key: "randread-4k-qd32",
        name: "4 KiB random read, depth 32",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randread", "bs=4k", "iodepth=32"],
    },
    Work {
        key: "randwrite-4k-qd32",
        name: "4 KiB random write, depth 32",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randwrite", "bs=4k", "iodepth=32"],
    },
    Work {
        key: "randrw-64k-qd8",
        name: "64 KiB random read and write, depth 8",
        unit: Unit::Bytes,
        quick: false,
        options: &["rw=randrw", "bs=64k", "iodepth=8"],
    },
    Work {
        key: "read-1m-qd4",
        name: "1 MiB sequential read, depth 4",
        unit: Unit::Bytes,
        quick: true,
        options: &["rw=read", "bs=1m", "iodepth=4"],
    },
    Work {
        key: "write-1m-qd4",
        name: "1 MiB sequential write, depth 4",
        unit: Unit::Bytes,
        quick: true,
        options: &["rw=write", "bs=1m", "iodepth=4"],
    },
    Work {
        key: "fsync-4k",
        name: "4 KiB write, each with fsync",
        unit: Unit::Count,
        quick: false,
        options: &["rw=randwrite", "bs=4k", "iodepth=1", "fsync=1"],
    },
];

/// Shell commands on a file system, timed together: see `shell_work` in bench-block/guest.sh.
pub(crate) const SHELL: Work = Work {
    key: "shell",
    name: "make a file system, untar, find, dd and remove",
    unit: Unit::Count,
    quick: false,
    options: &[],
};

/// The works for comparisons of pools and of ways to map, instead of disks: see `do_works` in
/// bench-block/disks.sh.
const FEW: &[&str] = &["randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "read-1m-qd4"];

/// The backing store: a file in Dom0's RAM, a RAM disk of Dom0's, or null_blk, which moves no data.
pub(crate) const FILE: &str = "file";
pub(crate) const RAM: &str = "ram";
pub(crate) const NULL: &str = "null";

/// xen-virtiod, as a server.
pub(crate) const OURS: &str = "ours";

/// No server: fio runs in Dom0, directly on the backing store.
const FLOOR: &str = "floor";
pub(crate) const DOM0: &str = "dom0";

/// The extent of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All works, with the rounds that a baseline report needs.
    Full,
    /// Some works, with fewer rounds.
    Quick,
}

impl Extent {
    /// Returns the number of times that each server does each work.
    pub(crate) fn rounds(self) -> usize {
        match self {
            Extent::Full => 5,
            Extent::Quick => 2,
        }
    }

    /// Returns the time of one measurement in milliseconds.
    pub(crate) fn runtime(self) -> u32 {
        match self {
            Extent::Full => 800,
            Extent::Quick => 600,
        }
    }

    /// Returns whether a run of this extent includes `work`.
    pub(crate) fn has(self, work: &Work) -> bool {
        self == Extent::Full || work.quick
    }
}

/// Returns the disks of a kind of guest, as server and target. A disk's node is
/// `/dev/bench/SERVER-TARGET`.
pub(crate) fn disks(guest: &str) -> &'static [(&'static str, &'static str)] {
    match guest {
        "hvm" => &[
            (OURS, FILE),
            ("blkback", FILE),
            ("virtio-pci", FILE),
            ("nvme", FILE),
            ("ahci", FILE),
            ("ide", FILE),
        ],
        DOM0 => &[(FLOOR, FILE), (FLOOR, RAM), (FLOOR, NULL)],
        _ => &[
            (OURS, FILE),
            ("blkback", FILE),
            ("qdisk", FILE),
            (OURS, RAM),
            ("blkback", RAM),
            (OURS, NULL),
            ("blkback", NULL),
        ],
    }
}

/// The order of the servers within a round. It alternates from round to round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The order of [`disks`].
    Forward,
    /// The reverse order.
    Backward,
}

/// Returns fio's jobs for one round: for each work, all servers one after the other.
pub(crate) fn round(guest: &str, extent: Extent, order: Order) -> String {
    let mut jobs = format!(
        "[global]\nioengine=libaio\ndirect=1\nthread=1\nstonewall\ntime_based=1\nruntime={}ms\n\
         ramp_time=200ms\nsize=64m\n",
        extent.runtime()
    );
    for target in [FILE, RAM, NULL] {
        // A disk's image is usually a file. For the other stores the works of a quick run suffice.
        let wanted = if target == FILE { extent } else { Extent::Quick };
        for work in WORKS.iter().filter(|work| wanted.has(work)) {
            let mut servers: Vec<_> = disks(guest).iter().filter(|(_, of)| *of == target).collect();
            if order == Order::Backward {
                servers.reverse();
            }
            for (server, _) in servers {
                let (key, options) = (work.key, work.options.join("\n"));
                // Writing to a string cannot fail.
                let _ = write!(
                    jobs,
                    "\n[{key}@{server}-{target}]\nfilename=/dev/bench/{server}-{target}\n{options}\n"
                );
            }
        }
    }
    jobs
}

/// Returns a line for each of the few works: the key, and fio's options.
pub(crate) fn few(extent: Extent) -> String {
    let works = WORKS.iter().filter(|work| FEW.contains(&work.key));
    let line = |work: &Work| {
        let options: String = work.options.iter().map(|option| format!(" --{option}")).collect();
        format!("{}{options} --runtime={}ms\n", work.key, extent.runtime())
    };
    works.map(line).collect()
}

/// Parses fio's output of one round.
///
/// # Errors
/// It is no output of fio's, a job failed, or a job's name is unknown.
pub(crate) fn samples(guest: &str, output: &str) -> Result<Vec<Sample>> {
    let sample = |job: fio::JobRate| -> Result<Sample> {
        let parts = job.name.split_once('@').and_then(|(key, disk)| {
            let work = WORKS.iter().find(|work| work.key == key)?;
            Some((work, disk.rsplit_once('-')?))
        });
        let (work, (server, target)) =
            parts.with_context(|| format!("fio reports an unknown job: {}", job.name))?;
        let rate = match work.unit {
            Unit::Count => job.requests,
            Unit::Bytes => job.bytes,
        };
        let guest = if server == FLOOR { DOM0 } else { guest };
        let (target, work) = (target.to_owned(), work.key.to_owned());
        let task = Task { guest: guest.to_owned(), target, work };
        Ok(Sample { task, server: server.to_owned(), rate })
    };
    fio::jobs(output)?.into_iter().map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_alternate_within_each_work() {
        let jobs = round("pvh", Extent::Full, Order::Forward);
        let at = |name: &str| jobs.find(&format!("[{name}]")).unwrap();
        assert!(at("randread-4k-qd1@ours-file") < at("randread-4k-qd1@blkback-file"));
        assert!(at("randread-4k-qd1@qdisk-file") < at("randwrite-4k-qd1@ours-file"));
        let back = round("pvh", Extent::Full, Order::Backward);
        let at = |name: &str| back.find(&format!("[{name}]")).unwrap();
        assert!(at("randread-4k-qd1@blkback-file") < at("randread-4k-qd1@ours-file"));
    }

    #[test]
    fn both_orders_have_the_same_jobs_one_at_a_time() {
        let count = |order| round("pv", Extent::Full, order).matches("filename=").count();
        let of = |target| disks("pv").iter().filter(|(_, of)| *of == target).count();
        let quick = WORKS.iter().filter(|work| work.quick).count();
        assert_eq!(count(Order::Forward), WORKS.len() * of(FILE) + quick * (of(RAM) + of(NULL)));
        assert_eq!(count(Order::Forward), count(Order::Backward));
        assert!(round("pv", Extent::Quick, Order::Forward).contains("\nstonewall\n"));
    }

    #[test]
    fn few_works_have_a_line_each() {
        let few = few(Extent::Full);
        assert_eq!(few.lines().count(), FEW.len());
        assert!(few.contains("read-1m-qd4 --rw=read --bs=1m --iodepth=4 --runtime=800ms\n"));
    }

    #[test]
    fn sample_has_the_unit_of_its_work() {
        let samples = samples("pv", fio::tests::EXAMPLE).unwrap();
        assert_eq!(samples[0].rate, 500.0);
        assert_eq!(samples[0].server, "ours");
        assert_eq!(samples[0].task.target, "ram");
        assert_eq!(samples[1].rate, 9_830_400.0);
    }

    #[test]
    fn unknown_job_error_names_the_job() {
        let strange = fio::tests::EXAMPLE.replace("randread-4k-qd1@", "other@");
        assert!(samples("pv", &strange).unwrap_err().to_string().contains("other@ours-ram"));
    }
}
