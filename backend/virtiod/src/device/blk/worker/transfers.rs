//! Threads beside a disk's worker that carry out requests in place, each one request at a time.

use std::thread::{Builder, Scope};

use super::queue::JobQueue;
use super::{Report, RequestJob};
use crate::device::blk::target::InPlaceTarget;

/// Number of threads, and so of requests that may wait for storage at once.
const THREADS: usize = 8;

/// Ends the threads of a worker, and the worker, when it is dropped.
pub(super) struct Stop<'j>(pub(super) &'j JobQueue);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.end();
        // The queue outlives the target, whose files have to be closed.
        self.0.set_in_place(None);
    }
}

/// The threads of a worker, once its image can use them.
pub(super) struct TransferThreads<'scope, 'j> {
    scope: &'scope Scope<'scope, 'j>,
    jobs: &'j JobQueue,
    count: usize,
}

impl<'scope, 'j> TransferThreads<'scope, 'j> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'j>, jobs: &'j JobQueue) -> Self {
        Self { scope, jobs, count: 0 }
    }

    /// Sets the target of the threads, and starts them if there are none. Without threads, the
    /// worker carries out all requests.
    pub(super) fn set_target(&mut self, target: Option<InPlaceTarget>) {
        while target.is_some() && self.count < THREADS {
            let jobs = self.jobs;
            let thread = Builder::new().name("disk-data".to_owned());
            if thread.spawn_scoped(self.scope, move || carry_out_all(jobs)).is_err() {
                break;
            }
            self.count += 1;
        }
        self.jobs.set_in_place(target.filter(|_| self.count > 0));
    }
}

/// A thread.
fn carry_out_all(jobs: &JobQueue) {
    // If the image's driver panics, a request stays without an answer: the disk fails.
    let _stop = Stop(jobs);
    while let Some((target, job)) = jobs.next_transfer() {
        carry_out(&target, job, jobs);
    }
}

fn carry_out(target: &InPlaceTarget, mut job: RequestJob, jobs: &JobQueue) {
    match target.execute(&mut job.task, &mut job.data) {
        Ok(false) => jobs.leave_to_worker(job),
        outcome => jobs.report(&mut vec![Report::Done(job, outcome.map(drop))], None),
    }
}
