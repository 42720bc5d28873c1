//! `user-driver`: drives a disk from an unprivileged process without a kernel module, as programs
//! do with vfio on a machine with an IOMMU. It can expose only pages that it granted. It is linked
//! statically, because guests have no libraries for it.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};
use userspace::{Frontend, GrantHal, XenTransport};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

/// Number of pages in the pool that the program grants.
const POOL: u16 = 64;
/// Number of sectors in a request. A larger one would leave too little space for queues in the
/// pool.
const BATCH: usize = 64;

/// Reads or writes a whole disk from userspace.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The frontend's directory, for example device/virtio_disk/51712. No other driver may use it.
    device: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Action {
    /// Copies the disk to standard output.
    Read,
    /// Copies standard input, which must be whole sectors, to the start of the disk.
    Write,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("user-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

type Disk = VirtIOBlk<GrantHal, XenTransport>;

fn run(CommandLine { device, action }: &CommandLine) -> Result<()> {
    let frontend = Frontend::open(device).with_context(|| format!("cannot connect {device}"))?;
    GrantHal::init(frontend.backend(), POOL).context("cannot grant pages")?;
    let transport = XenTransport::new(frontend)?;
    let mut disk =
        Disk::new(transport).map_err(|error| anyhow!("cannot start the disk: {error}"))?;
    match action {
        Action::Read => read(&mut disk),
        Action::Write => write(&mut disk),
    }
}

fn read(disk: &mut Disk) -> Result<()> {
    let (mut buffer, mut output) = (vec![0; BATCH * SECTOR_SIZE], io::stdout().lock());
    let sectors = usize::try_from(disk.capacity())?;
    for first in (0..sectors).step_by(BATCH) {
        let count = BATCH.min(sectors - first);
        let part =
            buffer.get_mut(..count * SECTOR_SIZE).context("a batch is longer than the buffer")?;
        disk.read_blocks(first, part)
            .map_err(|error| anyhow!("cannot read {count} sectors at {first}: {error}"))?;
        output.write_all(part).context("cannot write to standard output")?;
    }
    Ok(())
}

fn write(disk: &mut Disk) -> Result<()> {
    let mut data = Vec::new();
    io::stdin().lock().read_to_end(&mut data).context("cannot read standard input")?;
    for (batch, part) in data.chunks(BATCH * SECTOR_SIZE).enumerate() {
        let first = batch * BATCH;
        disk.write_blocks(first, part)
            .map_err(|error| anyhow!("cannot write the sectors at {first}: {error}"))?;
    }
    disk.flush().map_err(|error| anyhow!("cannot flush the disk: {error}"))
}
