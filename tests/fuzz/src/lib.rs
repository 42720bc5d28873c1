//! Fuzz targets: functions that use their bytes as the input of an untrusted party, and panic if
//! the code under test breaks an invariant.
//!
//! `cargo lab fuzz` runs them with libFuzzer, which searches for inputs that reach new code; with
//! `--keep` it adds these to `corpus/TARGET`. The tests of this crate run the inputs in `corpus`,
//! without libFuzzer. README.md describes the targets.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a target reports a failure with a panic"
)]

mod codec;
mod config;
mod device;
mod dma;
mod driver;
mod page;
mod process;
mod xenstore;

use std::fmt;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the target, and of its folder in `corpus`.
    pub name: &'static str,
    /// Whether the target has other threads, so that the same input may behave differently the
    /// next time.
    pub has_threads: bool,
    /// Runs one input; panics if it finds a failure.
    pub run: fn(&[u8]),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All fuzz targets.
pub const TARGETS: &[Target] = &[
    alone("codec", codec::run),
    alone("page", page::run),
    alone("driver", driver::run),
    alone("dma", dma::run),
    alone("xenstore", xenstore::run),
    alone("config", config::run),
    threaded("process", process::run),
    threaded("blk", device::blk),
    threaded("qcow2", device::qcow2),
    threaded("net", device::net),
    threaded("console", device::console),
    threaded("vsock", device::vsock),
    threaded("rng", device::rng),
];

/// The target with this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

const fn alone(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, has_threads: false, run }
}

const fn threaded(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, has_threads: true, run }
}
