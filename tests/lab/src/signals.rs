//! Ctrl-C: the lab and its children end at once.
//!
//! The lab needs no clean-up. The kernel kills QEMU when the lab ends (see `Tools::qemu`), the next
//! run replaces an unfinished cache entry, and all temporary files are in `target/lab`. Builds and
//! fetches belong to the terminal's process group, so they get the signal themselves.

use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Ends the process on SIGINT, SIGHUP and SIGTERM, with status 128 plus the signal's number.
pub(crate) fn end_with_children() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot handle signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\ncargo lab: stopped by signal {signal}");
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
