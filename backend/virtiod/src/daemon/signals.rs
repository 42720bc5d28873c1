//! The signals that stop the daemon.

use std::io;
use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::Causes;
use crate::bus::{Ending, StopSignal};

/// A signal that SIGTERM and SIGINT give: sessions leave their devices to the next process. Call
/// this before any thread starts, so that no other one gets them.
///
/// # Errors
/// The kernel's.
pub fn stop_on_signals() -> io::Result<Arc<StopSignal>> {
    let signals = block_stop_signals()?;
    let stop = Arc::new(StopSignal::new()?);
    let given = Arc::clone(&stop);
    let wait = move || {
        let outcome = signals.wait().map_err(io::Error::from);
        if let Err(error) = outcome.and_then(|_| given.give(Ending::Leave)) {
            tracing::error!("cannot stop after a signal: {}", Causes(&error));
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(stop)
}

/// Ignores the signals that stop the daemon. Call this before any thread starts.
///
/// # Errors
/// The kernel's.
pub fn ignore_stop_signals() -> io::Result<()> {
    block_stop_signals().map(drop)
}

fn block_stop_signals() -> io::Result<SigSet> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    Ok(signals)
}
