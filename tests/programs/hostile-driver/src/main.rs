//! `hostile-driver`: an unprivileged process that drives a disk, as programs do with vfio. It makes
//! the disk read memory that does not belong to the process, or attacks the domain that serves the
//! disk. It uses its own driver, which can break the rules. It is linked statically, because guests
//! have no libraries for it.
#![forbid(unsafe_code)]

mod attack;
mod disk;
mod ring;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use protocol::grant::PAGE_SIZE;
use protocol::status::{F_ACCESS_PLATFORM, F_VERSION_1};

use crate::disk::Disk;
use crate::ring::Data;

/// Makes a disk write a page of memory to its first sectors, reads these back, and copies them to
/// standard output.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The frontend's directory, for example device/virtio_disk/51712. No other driver may use it.
    device: String,
    /// Frame number of the page.
    #[arg(required_unless_present = "attack")]
    frame: Option<u64>,
    /// Accept VIRTIO_F_ACCESS_PLATFORM, as drivers do, but use the page's raw address.
    #[arg(long)]
    accept_platform: bool,
    /// Attack the domain that serves the disk, and with it its other guests, for this time instead.
    #[arg(long, value_name = "SECONDS")]
    attack: Option<u64>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(CommandLine { device, frame, accept_platform, attack }: &CommandLine) -> Result<()> {
    if let Some(seconds) = attack {
        return attack::run(device, Duration::from_secs(*seconds));
    }
    let address = frame.and_then(|frame| frame.checked_mul(PAGE_SIZE));
    let address = address.context("the frame number is too large")?;
    let platform = if *accept_platform { 1 << F_ACCESS_PLATFORM } else { 0 };
    let mut disk = Disk::open(device, 1 << F_VERSION_1 | platform)?;
    disk.request(Data::Written { address }).context("cannot make the disk write the page")?;
    disk.request(Data::Read).context("cannot read the disk")?;
    io::stdout().write_all(&disk.data()?).context("cannot write to standard output")
}
