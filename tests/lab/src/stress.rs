//! A machine on which everything takes its time: all processors are busy, and the simulated
//! hypervisor answers late at random. Tests that pass only where nothing else runs fail here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

/// What has the simulated hypervisor answer late: see `backend/virtiod/src/xen/sim/delays.rs`.
pub(crate) const DELAYS: &str = "XEN_VIRTIOD_SIM_DELAYS";

/// How many times longer than usual a scenario may take, and all that it waits for.
pub(crate) const PATIENCE: u32 = 4;

/// Threads that spin, for each processor: what is tested gets a third.
const SPINNERS: usize = 2;

/// Keeps all processors busy until it is dropped.
pub(crate) struct Stress {
    seed: u64,
    stop: Arc<AtomicBool>,
    spinners: Vec<JoinHandle<()>>,
}

impl Stress {
    /// Begins. The seed is for the delays; with 0 it is one that was not used before.
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

    /// The seed of the run with this number, from 0.
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
    fn a_seed_is_kept_and_every_run_has_one_of_its_own() {
        let stress = Stress::start(41);
        assert_eq!((stress.seed(0), stress.seed(1)), (41, 42));
        assert!(stress.spinners.len() >= SPINNERS);
        drop(stress);
        assert_ne!(Stress::start(0).seed(0), 0);
    }
}
