//! Kills the process that serves a disk at chosen instructions, and checks that the next ones go on
//! with it: `cargo bench -p xen-virtiod --bench kills -- COUNT`.
//!
//! A driver in a simulated guest puts requests into the ring of a disk: reads, writes, zeroing and
//! flushes of few sectors, so that most of them overlap others. A process takes the device over
//! from its record and serves it, and is killed at an instruction of either. The driver takes the
//! answers that the process gave, submits further requests now and then, and another process
//! follows, which may die too. The last one for a batch lives. Then each request must be answered
//! once, with data that a [model](model) of the disk permits, the driver must be notified, and the
//! image must be as the model says.
//!
//! The instructions are those of processes that this program has [stepped](trace) before. Half of
//! the deaths walk through the lives of single requests, from the mark in the record to the last
//! word that follows their return, until each instruction was hit. The other ones are random, in
//! batches of up to 32 requests: while a process takes the device over, takes chains, moves data,
//! gives chains back, or does something else. A hardware breakpoint stops the process there, so
//! that it runs at full speed before.
//!
//! The image is a file in memory: the kernel has nothing to do for a process that is dead. The seed
//! chooses all of this. `--seed SEED --case CASE` repeats one case.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic fails the check"
)]

#[cfg(target_arch = "x86_64")]
mod case;
#[cfg(target_arch = "x86_64")]
mod model;
#[cfg(target_arch = "x86_64")]
mod random;
#[cfg(target_arch = "x86_64")]
mod setting;
#[cfg(target_arch = "x86_64")]
#[path = "../simulated/mod.rs"]
mod simulated;
#[cfg(target_arch = "x86_64")]
mod trace;
#[cfg(target_arch = "x86_64")]
mod tracer;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    case::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: processes are stopped by the breakpoints of x86-64");
}
