//! The block measurements: the works, and the parser of their results.

use anyhow::{Context, Result};

use super::fio;
use super::sample::{Sample, Task};
use super::stores::FLOOR;
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
        key: "randread-4k-qd1-lean",
        name: "4 KiB random read, depth 1, few clock reads",
        unit: Unit::Count,
        quick: false,
        options: &["rw=randread", "bs=4k", "iodepth=1", "gtod_reduce=1"],
    },
    Work {
        key: "randwrite-4k-qd1",
        name: "4 KiB random write, depth 1",
        unit: Unit::Count,
        quick: false,
        options: &["rw=randwrite", "bs=4k", "iodepth=1"],
    },
    Work {
        key: "randread-4k-qd4",
        name: "4 KiB random read, depth 4",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randread", "bs=4k", "iodepth=4"],
    },
    Work {
        key: "randwrite-4k-qd4",
        name: "4 KiB random write, depth 4",
        unit: Unit::Count,
        quick: false,
        options: &["rw=randwrite", "bs=4k", "iodepth=4"],
    },
    Work {
        key: "randread-4k-qd32",
        name: "4 KiB random read, depth 32",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randread", "bs=4k", "iodepth=32"],
    },
    Work {
        key: "randread-4k-qd32-lean",
        name: "4 KiB random read, depth 32 in batches of 8, few clock reads",
        unit: Unit::Count,
        quick: true,
        options: &[
            "rw=randread",
            "bs=4k",
            "iodepth=32",
            "gtod_reduce=1",
            "iodepth_batch_submit=8",
            "iodepth_batch_complete_min=8",
        ],
    },
    Work {
        key: "randread-4k-qd8",
        name: "4 KiB random read, depth 8",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randread", "bs=4k", "iodepth=8"],
    },
    Work {
        key: "randread-4k-qd8-fsyncs",
        name: "4 KiB random read, depth 8, beside writes with fsync",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randread", "bs=4k", "iodepth=8"],
    },
    Work {
        key: "randwrite-4k-qd32",
        name: "4 KiB random write, depth 32",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randwrite", "bs=4k", "iodepth=32"],
    },
    Work {
        key: "randwrite-4k-qd32-lean",
        name: "4 KiB random write, depth 32 in batches of 8, few clock reads",
        unit: Unit::Count,
        quick: false,
        options: &[
            "rw=randwrite",
            "bs=4k",
            "iodepth=32",
            "gtod_reduce=1",
            "iodepth_batch_submit=8",
            "iodepth_batch_complete_min=8",
        ],
    },
    Work {
        key: "randrw-64k-qd8",
        name: "64 KiB random read and write, depth 8",
        unit: Unit::Bytes,
        quick: false,
        options: &["rw=randrw", "bs=64k", "iodepth=8"],
    },
    Work {
        key: "randrw-mixed-qd16",
        name: "4 KiB to 256 KiB random read and write, depth 16",
        unit: Unit::Bytes,
        quick: true,
        options: &["rw=randrw", "bsrange=4k-256k", "iodepth=16"],
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
    Work {
        key: "fsync8-4k-qd8",
        name: "4 KiB random read and write, depth 8, fsync after each 8",
        unit: Unit::Count,
        quick: true,
        options: &["rw=randrw", "bs=4k", "iodepth=8", "fsync=8"],
    },
];

/// The prefix of fio's jobs that run beside a work, and do not count.
pub(crate) const BESIDE: &str = "beside:";

/// The works that have a job beside them, with its options.
pub(crate) const BESIDES: &[(&str, &[&str])] =
    &[("randread-4k-qd8-fsyncs", &["rw=randwrite", "bs=4k", "iodepth=1", "fsync=1"])];

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
pub(crate) const FEW: &[&str] =
    &["randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "read-1m-qd4"];

/// Parses fio's output of one round.
///
/// # Errors
/// It is no output of fio's, a job failed, or a job's name is unknown.
pub(crate) fn samples(guest: &str, round: usize, output: &str) -> Result<Vec<Sample>> {
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
        let guest = if server == FLOOR { "dom0" } else { guest };
        let (target, work) = (target.to_owned(), work.key.to_owned());
        let task = Task { guest: guest.to_owned(), target, work };
        let server = server.to_owned();
        Ok(Sample { task, server, round, rate, latency: job.latency })
    };
    let jobs = fio::jobs(output)?.into_iter().filter(|job| !job.name.starts_with(BESIDE));
    jobs.map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_has_the_unit_of_its_work() {
        let samples = samples("pv", 1, fio::tests::EXAMPLE).unwrap();
        assert_eq!(samples[0].rate, 500.0);
        assert_eq!(samples[0].server, "ours");
        assert_eq!(samples[0].task.target, "ram");
        assert_eq!(samples[1].rate, 9_830_400.0);
    }

    #[test]
    fn job_beside_a_work_is_no_sample() {
        let beside = fio::tests::EXAMPLE.replace("randrw-64k", "beside:randrw-64k");
        assert_eq!(samples("pv", 1, &beside).unwrap().len(), 1);
    }

    #[test]
    fn unknown_job_error_names_the_job() {
        let strange = fio::tests::EXAMPLE.replace("randread-4k-qd1@", "other@");
        assert!(samples("pv", 1, &strange).unwrap_err().to_string().contains("other@ours-ram"));
    }
}
