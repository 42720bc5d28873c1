//! `cargo lab`: runs this project on Xen in a nested machine.
//!
//! The lab fetches QEMU, Xen and Debian, builds xen-virtiod and the guest module, boots Xen in
//! QEMU, and runs tests and measurements in its Dom0. See `cargo lab --help`.

mod bench;
mod boot;
mod build;
mod cargo_test;
mod command;
mod commands;
mod cpio;
mod crates;
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
mod summary;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Parser, Subcommand};

use crate::bench::selection::{self, Selection};
use crate::boot::MachineKind;
use crate::commands::{Busyness, Extent, Keep, Record};
use crate::debian::{Arch, Suite};
use crate::fuzz::Sanitizer;

/// Runs this project on Xen, in a nested machine
///
/// Fetches QEMU, Xen and Debian 13 into ~/.cache/virtio-msg-xen (once), builds xen-virtiod and the
/// guest module into target/lab, boots Xen and its Dom0 in QEMU, and starts xen-virtiod there.
/// Needs no hardware virtualisation. target/lab/logs/COMMAND keeps the logs of a command's last
/// run: console.log (Xen and Dom0), xen-virtiod.log, and the logs of the builds.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The architecture of the machine: x86_64 or, for demo, test, soak, run and shell, aarch64,
    /// which QEMU emulates. What is built and logged for that is in target/lab/aarch64, its guests
    /// are of one kind, called pvh, test and soak run scenarios alone, and the machine is the
    /// default one
    #[arg(long, global = true, default_value_t)]
    arch: Arch,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a PV and a PVH guest with virtio disks, and prints a table of the results
    ///
    /// Stock xl starts each guest with xen-configs/blk-pv.cfg or blk-pvh.cfg. The stock virtio_blk
    /// driver finds /dev/vda; the guest makes a file system, copies files, reads them back from the
    /// disk and compares them, and hashes a second disk. When the guest has ended, Dom0 checks the
    /// images. The exit status is 0 only if all checks passed.
    Demo,
    /// Checks everything: formatting, clippy, documentation, linters, unit tests, counted
    /// instructions, killed processes, fuzz targets, packages, compilers, end-to-end scenarios
    ///
    /// FILTER selects checks by part of their name: fmt, clippy, doc, lint/WHICH, unit,
    /// instructions, kills, fuzz/TARGET, packages/SUITE, compiler/WHICH, e2e/GUEST/SCENARIO. GUEST
    /// is pv, pvh or hvm, and SCENARIO is a folder of tests/scenarios: `cargo lab test e2e/pv/`
    /// runs all scenarios with a PV guest, and `cargo lab test files` runs one scenario with each
    /// kind of guest. Guests have Debian 13's kernel; with the kernel of another release, GUEST is
    /// pv-bookworm, pvh-sid and so on. Scenarios that need the same machine share one boot.
    /// target/lab/logs/test/GUEST/SCENARIO has each scenario's output and logs.
    #[command(verbatim_doc_comment)]
    Test(Tested),
    /// Checks everything that `test` does, fuzzes for longer, kills more processes, builds packages
    /// twice and for more releases, and runs the scenarios that take too long for `test`
    ///
    /// Takes several hours. `test` ends with a list of the checks that it leaves to `soak`.
    Soak(Tested),
    /// Fuzzes the project with libFuzzer: messages, rings, XenStore values, images, configurations
    ///
    /// TARGET is a folder of tests/fuzz/corpus; its files are the first inputs. libFuzzer writes
    /// inputs that reach new code to target/lab/fuzz/found, and inputs that fail to
    /// target/lab/fuzz/crashes. With FILE, the target runs once on each of these inputs instead.
    /// Needs a C++ compiler beside Rust, and installs it if run as root. See tests/fuzz/README.md.
    #[command(verbatim_doc_comment)]
    Fuzz {
        /// The target; without it all targets run, one after another
        target: Option<String>,
        /// Inputs to run once
        files: Vec<PathBuf>,
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        time: u64,
        /// Checks memory accesses with AddressSanitizer: several times slower
        #[arg(long)]
        address_sanitizer: bool,
        /// Adds inputs that reach new code to tests/fuzz/corpus
        #[arg(long, conflicts_with = "files")]
        keep: bool,
    },
    /// Runs the experiments with the three types of virtio host on Xen
    ///
    /// Boots machines with and without an IOMMU, and runs on each the scenarios behind the rows of
    /// the table: virtio hosts of all types, which are xen-virtiod, QEMU and helper programs that
    /// bypass grants, in Dom0 and in a driver domain, with guests of all kinds. Prints the table
    /// and the evidence, writes both to target/lab/matrix.md, and fails if a result differs from
    /// tests/matrix/README.md. FILTER selects scenarios by part of their name, as with
    /// `cargo lab test`.
    #[command(verbatim_doc_comment)]
    Matrix {
        /// Part of the names of the scenarios to run; without it all run
        #[arg(default_value = "", hide_default_value = true)]
        filter: String,
    },
    /// Measures xen-virtiod and other backends alternately in the same guest, and writes a report
    ///
    /// Each FILTER selects by part of GUEST/SCENARIO, where SCENARIO is a folder of
    /// tests/bench/scenarios. The report is target/lab/bench/report.md, with a chart in report.svg,
    /// and report.json for programs. The output ends with the ratios that differ from the baseline
    /// report in tests/bench.
    #[command(verbatim_doc_comment)]
    Bench {
        /// Parts of the names of the measurements to make; without any, all are made
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
        /// Runs few rounds of some works on some stores, and without FILTER some measurements, for
        /// a first impression in less than 12 minutes; the output ends with those left out
        #[arg(long)]
        quick: bool,
        /// Does only works of disks and networks whose key contains PART, such as qd32 or read-1m;
        /// can be repeated
        #[arg(long = "work", value_name = "PART")]
        works: Vec<String>,
        /// Uses only the backing store KEY, such as file or null1ms; can be repeated
        #[arg(long = "store", value_name = "KEY")]
        stores: Vec<String>,
        /// The number of rounds, rounded up to an even number; none follows where it is close, and
        /// fewer than 6 give no interval
        #[arg(long)]
        rounds: Option<usize>,
        /// Updates the baseline report in tests/bench with the results; later runs are compared
        /// with it
        #[arg(long, conflicts_with_all = ["quick", "rounds"])]
        record: bool,
    },
    /// Builds the Debian packages xen-virtiod and virtio-msg-xen-dkms, into
    /// target/lab/packages/SUITE
    ///
    /// Prints their paths; README says how to install them. They are built in a root of the
    /// release, which is fetched once, with Debian's own Rust compiler.
    Packages {
        /// The release of Debian: bookworm or trixie
        #[arg(long, default_value = "trixie")]
        suite: Suite,
    },
    /// Makes a release of the commit: sources, packages for Debian 12 and 13, a bill of materials
    /// and checksums, in target/lab/release
    ///
    /// The bill, in CycloneDX's format, lists the crates in the daemon and in the module. The
    /// commit has all that git knows: the command refuses a tree with changes.
    Release,
    /// Runs a script of yours in Dom0
    ///
    /// The script runs as root in /lab/files, which also has the files. The lab prints the script's
    /// output as it arrives, and exits with the script's status. xen-virtiod is running. Every run
    /// boots a fresh Dom0, which has:
    ///
    ///   /lab/guest/vmlinuz        a guest's kernel: Debian's, unchanged
    ///   /lab/guest/vmlinux        the same, unpacked: xl starts it seconds sooner
    ///   /lab/guest/initrd         its initrd: busybox, mke2fs, virtio_msg_xen.ko
    ///   /lab/guest/driver-domain.cpio
    ///                             xen-virtiod and its libraries; appended to that initrd, it makes
    ///                             a driver domain's
    ///   /lab/xen-configs/         the example configurations
    ///   /lab/dom0/lib.sh          shell functions that start guests and wait for them
    ///   /var/log/xen-virtiod.log  the daemon's log
    ///   /var/log/xen/console/     the guests' consoles
    #[command(verbatim_doc_comment)]
    Run {
        /// A shell script, or a program that Debian 13 can run
        script: PathBuf,
        /// Files and directories to copy to /lab/files
        files: Vec<PathBuf>,
        /// Seconds after which the lab stops the machine if the script still runs
        #[arg(long, default_value_t = 1800)]
        limit: u64,
        /// The machine: default, three-processors, two-for-dom0, systemd, disk-platform,
        /// intel-iommu or amd-iommu
        #[arg(long, default_value_t)]
        machine: MachineKind,
    },
    /// Opens a console in a Dom0 as `run` describes it
    Shell {
        /// The machine, as with `run`
        #[arg(long, default_value_t)]
        machine: MachineKind,
    },
}

/// The arguments of `test` and `soak`.
#[derive(clap::Args)]
struct Tested {
    /// Part of the names of the checks to run; without it all run
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
    /// Keeps all processors busy, and delays the simulated hypervisor's answers at random: tests
    /// that pass only on a quiet machine fail. SEED repeats the delays of another run
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    stress: Option<u64>,
    /// The number of times to run the unit tests and each scenario
    #[arg(long, default_value_t = 1)]
    runs: u32,
}

impl Tested {
    fn run(self, arch: Arch, extent: Extent) -> anyhow::Result<i32> {
        let Tested { filter, stress, runs } = self;
        commands::test(arch, &filter, extent, Busyness { stress, runs })
    }
}

fn main() -> ExitCode {
    let Arguments { command, arch } = Arguments::parse();
    let result = signals::end_with_children().and_then(|()| match command {
        Command::Demo => commands::demo(arch),
        Command::Test(tested) => tested.run(arch, Extent::Test),
        Command::Soak(tested) => tested.run(arch, Extent::Soak),
        Command::Run { script, files, limit, machine } => {
            commands::run(arch, machine, script, files, Duration::from_secs(limit))
        }
        Command::Shell { machine } => commands::shell(arch, machine),
        _ if arch != Arch::default() => bail!("this command is for x86_64 alone: leave --arch out"),
        Command::Fuzz { target, files, time, address_sanitizer, keep } => {
            let sanitizer = if address_sanitizer { Sanitizer::Address } else { Sanitizer::None };
            let keep = if keep { Keep::Yes } else { Keep::No };
            let time = Duration::from_secs(time);
            commands::fuzz(target.as_deref(), &files, time, sanitizer, keep)
        }
        Command::Matrix { filter } => commands::matrix(&filter),
        Command::Bench { filters, quick, works, stores, rounds, record } => {
            let extent = if quick { selection::Extent::Quick } else { selection::Extent::Full };
            let record = if record { Record::Yes } else { Record::No };
            commands::bench(&filters, &Selection { extent, works, stores, rounds }, record)
        }
        Command::Release => commands::release(),
        Command::Packages { suite } => commands::packages(suite),
    });
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("cargo lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
