//! `foreign-map`: what a backend does that needs no grants. It maps a page of another domain by its
//! frame number and writes the page to standard output. It has nothing to do with xen-virtiod,
//! which has no code for this: scenarios use it to show to whom the hypervisor allows it. It is
//! linked statically: guests have no libraries for it.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use foreign_map::Privcmd;

/// Maps a page of another domain without a grant, and writes it to standard output.
#[derive(Debug, Parser)]
struct Arguments {
    /// The domain whose page it is.
    domid: u16,
    /// The page: of a PV guest the machine's frame number, of others the guest's.
    frame: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match show(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("foreign-map: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(Arguments { domid, frame }: &Arguments) -> Result<()> {
    let page = Privcmd::open()?.read_page(*domid, *frame)?;
    io::stdout().write_all(&page).context("cannot write to standard output")
}
