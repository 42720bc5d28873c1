//! `cargo lab`: runs this project on Xen in a nested machine.
//!
//! It fetches what the distribution has (QEMU, Xen, Debian), builds what the project has
//! (xen-virtiod, the guest module), boots Xen in QEMU and works in its Dom0. See `cargo lab
//! --help`.

mod bench;
mod boot;
mod build;
mod cargo_test;
mod command;
mod commands;
mod cpio;
mod debian;
mod dirs;
mod e2e;
mod fetch;
mod fuzz;
mod host;
mod lab;
mod lint;
mod lock;
mod matrix;
mod minutes;
mod progress;
mod readme;
mod scenario;
mod signals;
mod stat;
mod store;
mod stress;
mod table;
mod tally;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::bench::block;
use crate::boot::MachineKind;
use crate::commands::{Busyness, Extent, Keep, Record};
use crate::fuzz::Sanitizer;

/// Runs this project on Xen, in a nested machine
///
/// Fetches QEMU, Xen and Debian 13 into ~/.cache/virtio-msg-xen (once), builds xen-virtiod and the
/// guest module into target/lab, boots Xen and its Dom0 in QEMU and starts xen-virtiod there.
/// Needs no hardware virtualisation. Logs of the last run of each command are kept in
/// target/lab/logs/COMMAND: console.log (Xen and Dom0), xen-virtiod.log, and those of the builds.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the whole at work: a PV and a PVH guest with a virtio disk, and a table of the facts
    ///
    /// Each guest is started by stock xl with xen-configs/blk-pv.cfg or blk-pvh.cfg. In it the
    /// stock virtio_blk driver finds /dev/vda; the guest makes a file system, copies files, reads
    /// them back from the disk and compares, and hashes a second disk. When the guest is gone Dom0
    /// checks the images by itself. The exit status is 0 only if all held.
    Demo,
    /// Checks everything: formatting, clippy, linters, unit tests, fuzz targets, compilers,
    /// end-to-end scenarios
    ///
    /// FILTER selects by part of a name: fmt, clippy, doc, lint/WHICH, unit, fuzz/TARGET,
    /// compiler/WHICH, e2e/GUEST/SCENARIO, where GUEST is pv, pvh or hvm and SCENARIO a folder of
    /// tests/scenarios. So `cargo lab test lint/` runs all linters, `cargo lab test e2e/pv/` all
    /// scenarios with a PV guest, and `cargo lab test files` one scenario with each kind. Guests
    /// have Debian 13's kernel; GUEST is pv-bookworm, pvh-sid and so on where they have that of
    /// another release. All scenarios share one machine. What each left is in
    /// target/lab/logs/test/GUEST/SCENARIO.
    #[command(verbatim_doc_comment)]
    Test(Tested),
    /// Checks everything that `test` does, fuzz targets for longer, and the scenarios that take too
    /// long for it
    ///
    /// Takes one or two hours. `test` names at its end what it has left to this.
    Soak(Tested),
    /// Looks for what is not dealt with: libFuzzer tries what guests, backends and others may say
    ///
    /// TARGET is a folder of tests/fuzz/corpus, whose inputs it starts from. What it finds worth
    /// keeping goes to target/lab/fuzz/found, what fails to target/lab/fuzz/crashes: an input given
    /// as FILE is tried once more. Needs a C++ compiler beside Rust, and installs it if run as
    /// root. tests/fuzz/README.md tells more.
    #[command(verbatim_doc_comment)]
    Fuzz {
        /// The target; without it all run, one after another
        target: Option<String>,
        /// Inputs to try once more
        files: Vec<PathBuf>,
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        time: u64,
        /// Has AddressSanitizer look after memory: several times slower
        #[arg(long)]
        address_sanitizer: bool,
        /// Adds what leads to code not reached before to tests/fuzz/corpus
        #[arg(long, conflicts_with = "files")]
        keep: bool,
    },
    /// Shows the three types of virtio host on Xen: what each comes to, and what was seen
    ///
    /// Boots one machine after another, with and without an IOMMU, and on each runs the scenarios
    /// that make the table's cells: hosts of all types, served by xen-virtiod, by QEMU and by peers
    /// that bypass grants, in Dom0 and in a driver domain, to guests of all kinds. Prints the table
    /// and the evidence, writes both to target/lab/matrix.md, and fails if a cell came to something
    /// else than tests/matrix/README.md says. FILTER runs only the scenarios that have it in their
    /// name, as `cargo lab test` does.
    #[command(verbatim_doc_comment)]
    Matrix {
        /// Part of the names of the scenarios to run; without it all run
        #[arg(default_value = "", hide_default_value = true)]
        filter: String,
    },
    /// Measures ours beside others, in turns in the same guest, and writes a report
    ///
    /// Each FILTER selects by part of GUEST/SCENARIO, where SCENARIO is a folder of
    /// tests/bench/scenarios. The report is target/lab/bench/report.md, with a picture in
    /// report.svg, and report.json for programs. At the end stands what differs from the report of
    /// record in tests/bench.
    #[command(verbatim_doc_comment)]
    Bench {
        /// Parts of the names of the measurements to make; without any all are made
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
        /// Fewer rounds of fewer works, to see where things are going
        #[arg(long)]
        quick: bool,
        /// Keeps what was measured in tests/bench, in the place of what it is anew: later runs say
        /// what they differ in
        #[arg(long, conflicts_with = "quick")]
        record: bool,
    },
    /// Runs a script of yours in Dom0
    ///
    /// The script runs as root in /lab/files, where the files stand too; its output is shown as it
    /// comes, and its exit status is the command's. xen-virtiod runs. Dom0 starts afresh each time
    /// and has:
    ///
    ///   /lab/guest/vmlinuz        a guest's kernel: Debian's, unchanged
    ///   /lab/guest/initrd         its initrd: busybox, mke2fs, virtio_msg_xen.ko
    ///   /lab/guest/driver-domain.cpio
    ///                             xen-virtiod and its libraries: behind that initrd, a driver
    ///                             domain's
    ///   /lab/xen-configs/         the example configurations
    ///   /lab/dom0/lib.sh          shell functions that start guests and wait for them
    ///   /var/log/xen-virtiod.log  the daemon's log
    ///   /var/log/xen/console/     what guests printed
    #[command(verbatim_doc_comment)]
    Run {
        /// A shell script, or a program that Debian 13 can run
        script: PathBuf,
        /// Files and directories to copy to /lab/files
        files: Vec<PathBuf>,
        /// Seconds the script may take
        #[arg(long, default_value_t = 1800)]
        limit: u64,
        /// The machine: default, three-processors, systemd, disk-platform, intel-iommu or amd-iommu
        #[arg(long, default_value_t)]
        machine: MachineKind,
    },
    /// Opens a console in Dom0, with all that `run` describes
    Shell {
        /// The machine, as with `run`
        #[arg(long, default_value_t)]
        machine: MachineKind,
    },
}

/// What is tested, and how.
#[derive(clap::Args)]
struct Tested {
    /// Part of the names of the checks to run; without it all run
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
    /// Keeps all processors busy meanwhile, and has the simulated hypervisor answer late at random:
    /// tests that pass only on a quiet machine fail. SEED repeats the delays of another run
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    stress: Option<u64>,
    /// How often to run the unit tests, and each scenario
    #[arg(long, default_value_t = 1)]
    runs: u32,
}

impl Tested {
    fn run(self, extent: Extent) -> anyhow::Result<i32> {
        let Tested { filter, stress, runs } = self;
        commands::test(&filter, extent, Busyness { stress, runs })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = signals::end_with_children().and_then(|()| match arguments.command {
        Command::Demo => commands::demo(),
        Command::Test(tested) => tested.run(Extent::Test),
        Command::Soak(tested) => tested.run(Extent::Soak),
        Command::Fuzz { target, files, time, address_sanitizer, keep } => {
            let sanitizer = if address_sanitizer { Sanitizer::Address } else { Sanitizer::None };
            let keep = if keep { Keep::Yes } else { Keep::No };
            let time = Duration::from_secs(time);
            commands::fuzz(target.as_deref(), &files, time, sanitizer, keep)
        }
        Command::Matrix { filter } => commands::matrix(&filter),
        Command::Bench { filters, quick, record } => {
            let extent = if quick { block::Extent::Quick } else { block::Extent::Full };
            let record = if record { Record::Yes } else { Record::No };
            commands::bench(&filters, extent, record)
        }
        Command::Run { script, files, limit, machine } => {
            commands::run(machine, script, files, Duration::from_secs(limit))
        }
        Command::Shell { machine } => commands::shell(machine),
    });
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("cargo lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
