//! Fuzz targets: a function each that does with any bytes what somebody who is not trusted could,
//! and panics if that is not dealt with as it should be.
//!
//! `cargo lab fuzz` runs them with libFuzzer, which looks for bytes that lead to code not seen
//! before, and keeps them in `corpus/TARGET`. The tests of this crate run what is kept there,
//! without libFuzzer. README.md says more.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is what a target has to say"
)]

mod codec;
mod config;
mod device;
mod dma;
mod driver;
mod page;
mod xenstore;

use std::fmt;

/// What is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Whether it is more than a function of its input: other threads take part, so that the same
    /// input may do something else the next time.
    pub has_threads: bool,
    /// Tries some bytes.
    pub run: fn(&[u8]),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All there are.
pub const TARGETS: &[Target] = &[
    alone("codec", codec::run),
    alone("page", page::run),
    alone("driver", driver::run),
    alone("dma", dma::run),
    alone("xenstore", xenstore::run),
    alone("config", config::run),
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
