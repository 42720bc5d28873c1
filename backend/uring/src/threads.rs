//! A few threads that carry out operations where io_uring is missing or disabled.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::operation::Operation;

/// Maximum number of threads of one engine.
const MOST_THREADS: usize = 4;

/// Operations for the threads, and their results.
#[derive(Default)]
struct Work {
    waiting: VecDeque<(u32, Operation)>,
    done: Vec<(u32, i32)>,
    threads: usize,
    /// Number of threads that wait for an operation.
    idle: usize,
    over: bool,
}

struct Shared {
    work: Mutex<Work>,
    /// Signalled for each operation, and at the end.
    news: Condvar,
    /// Whether `Work::done` has results. A look in passing: who acts on it takes the lock. Relaxed.
    has_results: AtomicBool,
    /// Readable while `Work::done` has results.
    results: EventFd,
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Carries out operations until the engine ends.
    fn run(&self) {
        let mut work = self.work();
        loop {
            if let Some((index, operation)) = work.waiting.pop_front() {
                drop(work);
                let result = operation.call();
                // The engine may drop the memory as soon as it has the result.
                drop(operation);
                work = self.work();
                work.done.push((index, result));
                self.has_results.store(true, Ordering::Relaxed);
                if work.done.len() == 1 {
                    // The counter cannot overflow: it is written once for each time it is read.
                    let _ = self.results.write(1);
                }
            } else if work.over {
                return;
            } else {
                work.idle += 1;
                work = self.news.wait(work).unwrap_or_else(|poisoned| poisoned.into_inner());
                work.idle -= 1;
            }
        }
    }
}

/// The threads of one engine, which are started when there is work for them.
pub(crate) struct Threads(Arc<Shared>);

impl Threads {
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let results = EventFd::from_flags(flags)?;
        let (work, has_results) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self(Arc::new(Shared { work, news: Condvar::new(), has_results, results })))
    }

    /// Readable while results wait.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.results.as_fd()
    }

    /// Hands an operation to a thread. If none can be started, does it here.
    pub(crate) fn submit(&self, index: u32, operation: &Operation) {
        let mut work = self.0.work();
        work.waiting.push_back((index, operation.clone()));
        if work.waiting.len() > work.idle && work.threads < MOST_THREADS {
            let shared = Arc::clone(&self.0);
            let name = "storage".to_owned();
            match thread::Builder::new().name(name).spawn(move || shared.run()) {
                Ok(_) => work.threads += 1,
                Err(_) if work.threads > 0 => {}
                Err(_) => {
                    work.waiting.pop_back();
                    work.done.push((index, operation.call()));
                    self.0.has_results.store(true, Ordering::Relaxed);
                    let _ = self.0.results.write(1);
                }
            }
        }
        self.0.news.notify_one();
    }

    /// Whether results wait.
    pub(crate) fn has_results(&self) -> bool {
        self.0.has_results.load(Ordering::Relaxed)
    }

    /// Takes the results that wait.
    pub(crate) fn take(&self) -> Vec<(u32, i32)> {
        let mut work = self.0.work();
        if !work.done.is_empty() {
            // It was written, and only this reads it.
            let _ = self.0.results.read();
            self.0.has_results.store(false, Ordering::Relaxed);
        }
        std::mem::take(&mut work.done)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.work().over = true;
        self.0.news.notify_all();
    }
}
