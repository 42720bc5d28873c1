//! `hostile-driver`: a process without privilege that was given a disk to drive, as vfio gives
//! devices to programs, and has the disk read memory that is not its own, or does what harms
//! others. It does by hand what drivers do, so that it can do it wrongly. It is linked statically:
//! guests have no libraries for it.
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

/// Has a disk write a page of memory to its first sectors, reads them back, and copies them to
/// standard output.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The frontend's directory, as in device/virtio_disk/51712. No other driver may have it.
    device: String,
    /// The page's frame; all that needs to be known of it.
    #[arg(required_unless_present = "attack")]
    frame: Option<u64>,
    /// Accept VIRTIO_F_ACCESS_PLATFORM, as drivers do, and give the page's raw address all the
    /// same.
    #[arg(long)]
    accept_platform: bool,
    /// Instead of that, do what harms the domain that serves the disk and its other guests, for so
    /// many seconds.
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
    let address = address.context("there is no such frame")?;
    let platform = if *accept_platform { 1 << F_ACCESS_PLATFORM } else { 0 };
    let mut disk = Disk::open(device, 1 << F_VERSION_1 | platform)?;
    disk.request(Data::Written { address }).context("the disk does not write the page")?;
    disk.request(Data::Read).context("the disk cannot be read")?;
    io::stdout().write_all(&disk.data()?).context("cannot write to standard output")
}
