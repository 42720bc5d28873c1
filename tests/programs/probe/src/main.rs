//! `probe`: actions of a scenario inside a guest for which there is no shell tool. It is linked
//! statically, because guests have no libraries for it.
#![forbid(unsafe_code)]

mod beside;
mod page;
mod store;
mod stream;
mod trips;

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use uring::block_device;

/// Performs one action for a scenario.
#[derive(Debug, Parser)]
enum Probe {
    /// Writes 11 sectors of letters to a disk with direct I/O, from buffers that share their pages
    /// with SECRET. The first sector comes from the start of a page, the others from the end of a
    /// page, a whole page, and the start of a third.
    WriteBeside {
        /// Path of the disk.
        disk: PathBuf,
        /// The text that must not leave the guest.
        secret: String,
    },
    /// Reads the data of write-beside into buffers at the same page offsets, and checks that it is
    /// right and that SECRET beside it is unchanged.
    ReadBeside {
        /// Path of the disk.
        disk: PathBuf,
        /// The text that must not leave the guest.
        secret: String,
    },
    /// Zeroes a range of a disk as blkdiscard -z does, and keeps the storage allocated.
    ZeroOut {
        /// Path of the disk.
        disk: PathBuf,
        /// Start of the range, in bytes.
        offset: u64,
        /// Length of the range, in bytes.
        length: u64,
    },
    /// Fills a page of its memory from standard input, prints the page's frame number, and keeps
    /// the page until a signal ends the process. The kernel shows frame numbers only to root.
    HoldPage,
    /// Grants pages to domain 0, filled with numbers, prints their references on one line, and
    /// keeps them until a signal ends the process.
    SharePages {
        /// Number of pages.
        count: u16,
    },
    /// Connects to a vsock port. Copies standard input to it, and its data to standard output,
    /// until both end.
    VsockConnect {
        /// Context ID of the other end; the host has 2.
        cid: u32,
        /// Port of the other end.
        port: u32,
    },
    /// Prints the value of a XenStore key.
    StoreRead {
        /// The key; relative to this domain's directory, unless it starts with a slash.
        path: String,
    },
    /// Writes a XenStore key.
    StoreWrite {
        /// The key, as for store-read.
        path: String,
        /// The new value.
        value: String,
    },
    /// Accepts one connection to a vsock port and copies as vsock-connect does. Prints CID:PORT to
    /// standard error when it listens.
    VsockListen {
        /// The port.
        port: u32,
    },
    /// Returns each byte that arrives over TCP to its sender.
    Answer {
        /// The address to listen on, as ADDRESS:PORT.
        address: String,
    },
    /// Counts round trips of a byte over TCP to a server that returns it (see answer), and prints
    /// their number per second.
    RoundTrips {
        /// The server, as ADDRESS:PORT.
        address: String,
        /// Duration of the measurement.
        milliseconds: u64,
    },
}

fn zero_out(disk: &Path, offset: u64, length: u64) -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(disk);
    let opened = opened.with_context(|| format!("cannot open {}", disk.display()))?;
    let done = block_device::zero_out(opened.as_fd(), offset, length);
    done.with_context(|| format!("cannot zero {length} bytes at {offset} of {}", disk.display()))
}

fn main() -> ExitCode {
    let done: Result<()> = match Probe::parse() {
        Probe::WriteBeside { disk, secret } => beside::write(&disk, &secret),
        Probe::ReadBeside { disk, secret } => beside::read(&disk, &secret),
        Probe::ZeroOut { disk, offset, length } => zero_out(&disk, offset, length),
        Probe::HoldPage => page::hold(),
        Probe::SharePages { count } => page::share(count),
        Probe::VsockConnect { cid, port } => stream::connect(cid, port),
        Probe::VsockListen { port } => stream::listen(port),
        Probe::StoreRead { path } => store::read(&path),
        Probe::StoreWrite { path, value } => store::write(&path, &value),
        Probe::Answer { address } => trips::serve(&address),
        Probe::RoundTrips { address, milliseconds } => trips::measure(&address, milliseconds),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}
