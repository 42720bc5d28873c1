//! Simulates a slow machine: spinning threads keep all processors busy, and the simulated
//! hypervisor delays its answers at random. Tests that pass only on an idle machine fail here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

/// The environment variable with the seed of the simulated hypervisor's delays: see
/// `backend/xen-sim/src/delays.rs`.
pub(crate) const DELAYS: &str = "XEN_VIRTIOD_SIM_DELAYS";

/// The factor by which the limits of scenarios are multiplied.
pub(crate) const LIMIT_FACTOR: u32 = 4;

/// Spinning threads for each processor: they leave a third of it to the tests.
const SPINNERS: usize = 2;

/// Keeps all processors busy until it is dropped.
pub(crate) struct Stress {
    seed: u64,
    stop: Arc<AtomicBool>,
    spinners: Vec<JoinHandle<()>>,
}

impl Stress {
    /// Starts the spinning threads. `seed` is the seed of the delays; for 0, the current time.
    pub(crate) fn start(seed: u64) -> Stress {
        let fresh =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
        let seed = if seed == 0 { fresh() } else { seed };
        let stop = Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let spinner = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let spinners: Vec<_> = (0..SPINNERS * processors).map(spinner).collect();
        println!("stress: {} spinning threads; --stress={seed} repeats the delays", spinners.len());
        Stress { seed, stop, spinners }
    }

    /// Returns the seed of the run with this number, counted from 0.
    pub(crate) fn seed(&self, run: u32) -> u64 {
        self.seed.wrapping_add(run.into())
    }
}

impl Drop for Stress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.spinners.drain(..).for_each(|spinner| drop(spinner.join()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_is_kept_and_differs_for_each_run() {
        let stress = Stress::start(41);
        assert_eq!((stress.seed(0), stress.seed(1)), (41, 42));
        assert!(stress.spinners.len() >= SPINNERS);
        drop(stress);
        assert_ne!(Stress::start(0).seed(0), 0);
    }
}
