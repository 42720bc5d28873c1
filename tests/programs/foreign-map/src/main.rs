//! `foreign-map`: maps a page of another domain by its frame number, without a grant, and writes
//! the page to standard output. xen-virtiod has no code for foreign mappings. Scenarios use this
//! program to show which domains the hypervisor allows to make them. It is linked statically,
//! because guests have no libraries for it.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use foreign_map::Privcmd;

/// Maps a page of another domain without a grant, and writes it to standard output.
#[derive(Debug, Parser)]
struct Arguments {
    /// Domain ID of the page's owner.
    domid: u16,
    /// Frame number of the page: the machine's for a PV guest, the guest's own for others.
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
