//! Counts the instructions that the daemon executes for a request, and fails if they exceed their
//! limits: `cargo bench -p xen-virtiod --bench instructions`.
//!
//! The counted code is everything that the device's thread executes in user space between a
//! doorbell and its next sleep: the scheduler, the rings, the access to the guest's memory, the
//! block device and the file engine, with the C library below them. A system call counts as one
//! instruction, whatever the kernel does, and so does a read of the clock in the vDSO, whose code
//! depends on the machine's clock. The event channels are a stub, the scheduler's clock stands
//! still, and the rings are not polled. The guest's side is not counted.
//!
//! The requests are what Linux' driver makes of a read of a page: an indirect table of three
//! descriptors, a header, data and a status byte, all in the pool. So the simulated hypervisor does
//! nothing while instructions are counted. The disk is a file in memory, which a read never waits
//! for, so that the device's thread answers each request at once.
//!
//! Packets to the guest have 64 bytes, and a buffer of a page each, also in the pool. They are
//! there before the count begins, as messages of a socket that the kernel has received.
//!
//! A count depends on the compiler and the C library, not on the machine, but for some 15
//! instructions: the C library copies memory by what the processor has.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic fails the check"
)]

#[cfg(target_arch = "x86_64")]
mod events;
#[cfg(target_arch = "x86_64")]
mod reader;
#[cfg(target_arch = "x86_64")]
mod receiver;
#[cfg(target_arch = "x86_64")]
#[path = "../simulated/mod.rs"]
mod simulated;
#[cfg(target_arch = "x86_64")]
mod stepper;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    counted::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the limits are those of x86-64");
}

#[cfg(target_arch = "x86_64")]
mod counted {
    use std::process::ExitCode;

    use crate::reader::{BATCH, Reader, Store};
    use crate::receiver::Receiver;
    use crate::simulated::mark::section;
    use crate::stepper;

    /// The limits, in instructions for a request: one of a full batch, and one that is alone.
    const BATCHED: u64 = 900;
    const ALONE: u64 = 3500;
    /// For a request that is alone, from its completion by storage on.
    const ANSWERED: u64 = 3500;
    /// For a packet of a full batch that is delivered to the guest.
    const RECEIVED: u64 = 900;
    /// A count may exceed its limit by one of so many parts.
    const TOLERANCE: u64 = 10;

    /// Number of counted sections of each kind.
    const SECTIONS: usize = 2;

    pub(super) fn main() -> ExitCode {
        let Some(counts) = stepper::counts() else {
            run();
            return ExitCode::SUCCESS;
        };
        let (alone, rest) = counts.split_at(SECTIONS);
        let (batched, rest) = rest.split_at(SECTIONS);
        let (received, answered) = rest.split_at(SECTIONS);
        let mean = |counts: &[u64]| counts.iter().sum::<u64>() / counts.len().max(1) as u64;
        let (alone, batched) = (mean(alone), mean(batched) / u64::from(BATCH));
        println!(
            "instructions for a request: {batched} in a batch (limit {BATCHED}), {alone} alone \
             (limit {ALONE})"
        );
        let received = mean(received) / u64::from(BATCH);
        println!("instructions for a packet to the guest: {received} (limit {RECEIVED})");
        let is_counted = !answered.is_empty();
        let answered = mean(answered);
        if is_counted {
            println!("instructions for an answer of storage: {answered} (limit {ANSWERED})");
        } else {
            println!("skipped: instructions for an answer of storage; the page cache gave it");
        }
        let exceeds = |count, limit| count > limit + limit / TOLERANCE;
        let counts =
            [(batched, BATCHED), (alone, ALONE), (received, RECEIVED), (answered, ANSWERED)];
        if counts.into_iter().any(|(count, limit)| exceeds(count, limit)) {
            eprintln!("a limit is exceeded by more than a tenth");
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }

    /// The process that is counted.
    fn run() {
        answer_at_once();
        receive();
        answer_after_storage();
    }

    fn answer_at_once() {
        let mut reader = Reader::start(Store::Memory);
        // The first requests allocate memory.
        for requests in [1, BATCH, 1, BATCH] {
            reader.submit(requests);
            reader.serve();
            reader.wait();
            reader.check();
        }
        for requests in [1, BATCH] {
            for _ in 0..SECTIONS {
                reader.submit(requests);
                section(|| reader.serve());
                reader.check();
            }
        }
    }

    fn receive() {
        let mut receiver = Receiver::start();
        for round in 0..2 + SECTIONS {
            receiver.send(BATCH);
            // The first packets allocate memory.
            if round < 2 {
                receiver.serve();
            } else {
                section(|| receiver.serve());
            }
            receiver.check();
        }
    }

    fn answer_after_storage() {
        let mut reader = Reader::start(Store::Slow);
        for is_counted in [false, false, true, true] {
            reader.submit(1);
            reader.serve();
            let is_slow = reader.wait_for_sources();
            if is_counted && is_slow {
                section(|| reader.serve_sources());
            }
            reader.wait();
            reader.check();
        }
    }
}
