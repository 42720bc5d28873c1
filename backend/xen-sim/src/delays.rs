//! Random delays in the handles, so that tests see orders of events that do not occur on an idle
//! machine.
//!
//! `XEN_VIRTIOD_SIM_DELAYS=SEED` enables them for the whole process and prints the seed. With the
//! same seed each thread draws the same delays, though the interleaving of the threads may differ.

use std::cell::Cell;
use std::env;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const VARIABLE: &str = "XEN_VIRTIOD_SIM_DELAYS";
/// Maximum delay.
const LONGEST: Duration = Duration::from_millis(1);

/// Numbers the threads, in the order of their first call.
static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DRAWN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The seed of this process, if it has one.
fn seed() -> Option<u64> {
    static SEED: OnceLock<Option<u64>> = OnceLock::new();
    *SEED.get_or_init(|| {
        let text = env::var(VARIABLE).ok()?;
        let seed = text.parse().unwrap_or_else(|_| panic!("{VARIABLE}={text} is not a number"));
        // `eprintln` would not work: the harness hides its output if the test passes.
        let line = format!("random delays in the simulated handles: {VARIABLE}={seed}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        Some(seed)
    })
}

/// Sleeps at one call of sixteen and yields at three more, so that other threads go first.
pub(super) fn pause() {
    let Some(seed) = seed() else { return };
    let drawn = DRAWN.get().unwrap_or_else(|| {
        let thread = THREADS.fetch_add(1, Ordering::Relaxed);
        mix(seed.wrapping_add(mix(thread)))
    });
    DRAWN.set(Some(drawn.wrapping_add(GAMMA)));
    match mix(drawn) {
        number if number % 16 == 0 => thread::sleep(LONGEST.mul_f64(part(number))),
        number if number % 4 == 0 => thread::yield_now(),
        _ => {}
    }
}

/// Maps the upper 32 bits to 0..=1.
fn part(number: u64) -> f64 {
    f64::from((number >> 32) as u32) / f64::from(u32::MAX)
}

/// The step of splitmix64, whose output function is `mix`.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}
