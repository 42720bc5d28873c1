//! Ctrl-C: the lab ends at once, and its children with it.
//!
//! What a child leaves is no trouble: QEMU asks the kernel to be ended with the lab (see
//! `Tools::qemu`), an unfinished entry of the cache is made again by the next run, and temporary
//! files are only ever in `target/lab`. Builds and fetches are in the terminal's process group.

use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Ends the process on Ctrl-C, on a hang-up and on a request to terminate.
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
