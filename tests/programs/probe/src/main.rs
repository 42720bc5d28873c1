//! `probe`: what a scenario does inside a guest and no shell tool can do. It is linked statically:
//! guests have no libraries for it.
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

/// Does one thing that a scenario needs, and says what went wrong.
#[derive(Debug, Parser)]
enum Probe {
    /// Writes 11 sectors of letters to a disk, past the kernel's cache, from buffers that share
    /// their pages with SECRET: the first sector from the beginning of a page, the others from the
    /// end of a page, a whole page, and the beginning of a third.
    WriteBeside {
        /// The disk.
        disk: PathBuf,
        /// What must not leave the guest.
        secret: String,
    },
    /// Reads what write-beside wrote into buffers that lie the same way, and checks it and that
    /// SECRET is still beside it.
    ReadBeside {
        /// The disk.
        disk: PathBuf,
        /// What must not leave the guest.
        secret: String,
    },
    /// Zeroes a part of a disk as blkdiscard -z does, with its storage kept.
    ZeroOut {
        /// The disk.
        disk: PathBuf,
        /// Where the part begins, in bytes.
        offset: u64,
        /// How many bytes it has.
        length: u64,
    },
    /// Fills a page of its memory from standard input, writes the number of the page's frame to
    /// standard output, and keeps the page until it is killed. Only root is told frames.
    HoldPage,
    /// Grants pages to domain 0, filled with numbers, writes their references to standard output, a
    /// line of words, and keeps them until it is killed.
    SharePages {
        /// How many.
        count: u16,
    },
    /// Connects to a vsock port and copies standard input to it, and it to standard output, each to
    /// its end.
    VsockConnect {
        /// Context id of the other end; the host's is 2.
        cid: u32,
        /// Its port.
        port: u32,
    },
    /// Prints what stands in XenStore.
    StoreRead {
        /// Where; relative to this domain's directory, unless it starts with a slash.
        path: String,
    },
    /// Writes to XenStore.
    StoreWrite {
        /// Where, as for store-read.
        path: String,
        /// What.
        value: String,
    },
    /// Takes one connection to a vsock port and copies as vsock-connect does. Says on standard
    /// error when it listens, as CID:PORT.
    VsockListen {
        /// The port.
        port: u32,
    },
    /// Answers TCP requests of a byte with that byte.
    Answer {
        /// Where to listen, as ADDRESS:PORT.
        address: String,
    },
    /// Counts the round trips of a byte over TCP to what answers, and prints how many a second
    /// there were.
    RoundTrips {
        /// Who answers, as ADDRESS:PORT.
        address: String,
        /// How long to count.
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
