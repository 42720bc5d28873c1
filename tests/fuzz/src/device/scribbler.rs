//! A thread that overwrites the guest's memory all the time, as a second processor could.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use vm_memory::Bytes;
use xen::Access;
use xen_sim::SimFrames;

/// The handle of the thread; its drop ends the thread.
pub(super) struct Scribbler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scribbler {
    /// Starts to write pseudorandom words, from `seed`, into pages `first` to `last` of the memory.
    pub(super) fn start(memory: &SimFrames, first: u64, last: u64, seed: u32) -> Self {
        let pages: Vec<_> = (first..=last).collect();
        let mapped = memory.map(&pages, Access::ReadWrite);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let range = mapped.as_ref();
            let mut state = seed | 1;
            while !stopped.load(Ordering::Relaxed) {
                // xorshift32 selects the word and its value: mostly a small one, which is a
                // plausible index, length or flag.
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                let at = state as usize / 4 * 4 % range.length();
                let value = if state & 3 == 0 { state } else { state >> 20 };
                range.slice(at, 4).expect("the word is in range").write_obj(value, 0).unwrap();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}
