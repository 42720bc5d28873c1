//! A second processor of the guest's, which writes over its memory without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use vm_memory::Bytes;
use xen::Access;
use xen_sim::SimFrames;

/// The thread; it ends when this is dropped.
pub(super) struct Scribbler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scribbler {
    /// Writes into pages `first` to `last` of the memory, what `seed` says.
    pub(super) fn start(memory: &SimFrames, first: u64, last: u64, seed: u32) -> Self {
        let pages: Vec<_> = (first..=last).collect();
        let mapped = memory.map(&pages, Access::ReadWrite);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let range = mapped.as_ref();
            let mut state = seed | 1;
            while !stopped.load(Ordering::Relaxed) {
                // xorshift32: any of the words, and mostly one that looks like an index, a length
                // or a flag.
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                let at = state as usize / 4 * 4 % range.length();
                let value = if state & 3 == 0 { state } else { state >> 20 };
                range.slice(at, 4).expect("a word of it").write_obj(value, 0).unwrap();
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
