//! The signals that stop the daemon, or have it reload its configuration.

use std::io;
use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::reload::Reloads;
use crate::Causes;
use crate::bus::{Ending, StopSignal};

/// A signal that SIGTERM and SIGINT give: sessions leave their devices to the next process. SIGHUP
/// asks for a reload, if that is possible. Call this before any thread starts, so that no other one
/// gets them.
///
/// # Errors
/// The kernel's.
pub fn stop_on_signals(reloads: Option<Arc<Reloads>>) -> io::Result<Arc<StopSignal>> {
    let mut signals = stop_signals();
    if reloads.is_some() {
        signals.add(Signal::SIGHUP);
    }
    signals.thread_block()?;
    let stop = Arc::new(StopSignal::new()?);
    let given = Arc::clone(&stop);
    let wait = move || {
        loop {
            match (signals.wait().map_err(io::Error::from), &reloads) {
                // The server logs what came of it.
                (Ok(Signal::SIGHUP), Some(reloads)) => drop(reloads.ask()),
                (outcome, _) => {
                    if let Err(error) = outcome.and_then(|_| given.give(Ending::Leave)) {
                        tracing::error!("cannot stop after a signal: {}", Causes(&error));
                    }
                    return;
                }
            }
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
    Ok(stop_signals().thread_block()?)
}

fn stop_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}
