//! `probe`: what a scenario does inside a guest and no shell tool can do. It is linked statically:
//! guests have no libraries for it.
#![forbid(unsafe_code)]

mod beside;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Does one thing that a scenario needs, and says what went wrong.
#[derive(Debug, Parser)]
enum Probe {
    /// Writes the first 512 bytes of a page to a disk, past the kernel's cache, while SECRET stands in
    /// the same page behind them.
    WriteBeside {
        /// The disk.
        disk: PathBuf,
        /// What must not leave the guest.
        secret: String,
    },
}

fn main() -> ExitCode {
    let done: Result<()> = match Probe::parse() {
        Probe::WriteBeside { disk, secret } => beside::write(&disk, &secret),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}
