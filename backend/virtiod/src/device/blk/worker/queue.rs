//! Jobs and reports between the parts of a device and its worker, with its transfer threads.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use super::mailbox::Mailbox;
use super::{Job, PartNumber, Report, RequestJob};
use crate::device::blk::facts::DiskFacts;
use crate::device::blk::target::InPlaceTarget;

/// What all threads share.
#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Requests at the end of `waiting` that are between two parts.
    begun: usize,
    /// Requests for the transfer threads.
    transfers: VecDeque<RequestJob>,
    /// The target for them; without it, the worker does everything.
    in_place: Option<InPlaceTarget>,
    /// The part and the queue of the request that the worker does, unless that was cancelled.
    running: Option<(PartNumber, usize)>,
    /// Those of the device's parts, some of which may be gone.
    mailboxes: Vec<(PartNumber, Weak<Mailbox>)>,
    /// The number of the next part.
    next: usize,
    end: End,
}

#[derive(Default)]
enum End {
    #[default]
    NotYet,
    /// The device is gone.
    Wanted,
    /// The worker has ended.
    Done,
}

/// The jobs of one worker, and its reports.
pub(super) struct JobQueue {
    state: Mutex<State>,
    /// Signalled for each job of the worker, and at both ends.
    news: Condvar,
    /// Signalled for each request of the transfer threads, and at the end.
    transfer_news: Condvar,
    /// Whether the image has changes that could not be written to its file. Relaxed: it is set
    /// before the reports of these changes, under the lock.
    has_unwritten: AtomicBool,
}

impl State {
    /// Adds a job for the worker, before those that have begun.
    fn add(&mut self, job: Job) {
        let place = self.waiting.len() - self.begun.min(self.waiting.len());
        self.waiting.insert(place, job);
    }

    /// Whether the size will be read anyway: one look finds all changes before it.
    fn has_refresh(&self) -> bool {
        self.waiting.iter().any(|job| matches!(job, Job::Refresh))
    }

    fn is_transfer(&self, job: &RequestJob) -> bool {
        self.in_place.is_some() && InPlaceTarget::takes(&job.task.command)
    }
}

/// The part and the queue that a job belongs to.
fn owner_of(job: &Job) -> Option<(PartNumber, usize)> {
    match job {
        Job::Request(job) => Some((job.part, job.queue)),
        Job::Start(_) | Job::Stop | Job::Refresh => None,
    }
}

impl JobQueue {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            news: Condvar::new(),
            transfer_news: Condvar::new(),
            has_unwritten: AtomicBool::new(false),
        }
    }

    /// Adds a mailbox for another part of the device.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn add_mailbox(&self) -> io::Result<(PartNumber, Arc<Mailbox>)> {
        let mailbox = Arc::new(Mailbox::new()?);
        let mut state = self.state();
        let part = PartNumber(state.next);
        state.next += 1;
        state.mailboxes.retain(|(_, mailbox)| mailbox.strong_count() > 0);
        state.mailboxes.push((part, Arc::downgrade(&mailbox)));
        Ok((part, mailbox))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds jobs, before those that have begun.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = self.state();
        for job in jobs {
            match job {
                Job::Request(job) if state.is_transfer(&job) => {
                    state.transfers.push_back(job);
                    self.transfer_news.notify_one();
                }
                Job::Refresh if state.has_refresh() => {}
                job => {
                    state.add(job);
                    self.news.notify_one();
                }
            }
        }
    }

    /// Leaves a request to the worker that a transfer thread cannot carry out.
    pub(super) fn leave_to_worker(&self, job: RequestJob) {
        self.state().add(Job::Request(job));
        self.news.notify_one();
    }

    /// Sets the target for the transfer threads.
    pub(super) fn set_in_place(&self, target: Option<InPlaceTarget>) {
        let mut state = self.state();
        if target.is_none() {
            let left = std::mem::take(&mut state.transfers);
            left.into_iter().for_each(|job| state.add(Job::Request(job)));
        }
        state.in_place = target;
    }

    /// Waits for the next request of a transfer thread; `None` at the end.
    pub(super) fn next_transfer(&self) -> Option<(InPlaceTarget, RequestJob)> {
        let mut state = self.state();
        loop {
            if !matches!(state.end, End::NotYet) {
                return None;
            }
            if let Some(target) = state.in_place.clone()
                && let Some(job) = state.transfers.pop_front()
            {
                return Some((target, job));
            }
            let waited = self.transfer_news.wait(state);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Notes whether the image has changes that could not be written to its file.
    pub(super) fn note_unwritten(&self, has_unwritten: bool) {
        self.has_unwritten.store(has_unwritten, Ordering::Relaxed);
    }

    pub(super) fn has_unwritten(&self) -> bool {
        self.has_unwritten.load(Ordering::Relaxed)
    }

    /// Puts a job back of which a part is left; returns it if it was cancelled meanwhile.
    pub(super) fn put_back(&self, job: RequestJob) -> Option<RequestJob> {
        let mut state = self.state();
        if state.running.take().is_none() {
            return Some(job);
        }
        state.waiting.push_back(Job::Request(job));
        state.begun += 1;
        None
    }

    /// Waits for the next job; `None` at the end.
    pub(super) fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if matches!(state.end, End::Wanted) {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                state.begun = state.begun.min(state.waiting.len());
                state.running = owner_of(&job);
                return Some(job);
            }
            state = self.news.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Whether jobs wait that have not begun.
    pub(super) fn has_fresh(&self) -> bool {
        let state = self.state();
        state.waiting.len() > state.begun
    }

    /// Removes requests of a part of the device that wait, of a queue or of all; returns their
    /// slots. The request that the worker does just now ends after its step.
    pub(super) fn cancel(&self, part: PartNumber, queue: Option<usize>) -> Vec<usize> {
        let mut state = self.state();
        let is_meant = |(of, number)| part == of && queue.is_none_or(|queue| queue == number);
        state.running.take_if(|running| is_meant(*running));
        let (mut slots, mut begun) = (Vec::new(), 0);
        let first_begun = state.waiting.len() - state.begun.min(state.waiting.len());
        let waiting = std::mem::take(&mut state.waiting);
        for (position, job) in waiting.into_iter().enumerate() {
            match &job {
                Job::Request(request) if is_meant((request.part, request.queue)) => {
                    slots.push(request.slot);
                }
                _ => {
                    begun += usize::from(position >= first_begun);
                    state.waiting.push_back(job);
                }
            }
        }
        state.begun = begun;
        state.transfers.retain(|job| {
            let is_meant = is_meant((job.part, job.queue));
            slots.extend(is_meant.then_some(job.slot));
            !is_meant
        });
        slots
    }

    /// Hands reports to the parts of the device that they belong to, and facts to all.
    pub(super) fn report(&self, reports: &mut Vec<Report>, facts: Option<&DiskFacts>) {
        // The first part goes last: the driver learns from it that the facts have changed.
        for (part, mailbox) in self.mailboxes().into_iter().rev() {
            mailbox.add(reports.extract_if(.., |report| report.part() == part), facts);
        }
        // The others are for parts that are gone.
        reports.clear();
    }

    fn mailboxes(&self) -> Vec<(PartNumber, Arc<Mailbox>)> {
        let state = self.state();
        let with_part = |(part, mailbox): &(_, Weak<_>)| Some((*part, mailbox.upgrade()?));
        state.mailboxes.iter().filter_map(with_part).collect()
    }

    /// Whether the worker has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state().end, End::Done)
    }

    /// Requests the end: jobs that have not begun are dropped.
    pub(super) fn end(&self) {
        let mut state = self.state();
        if matches!(state.end, End::NotYet) {
            state.end = End::Wanted;
        }
        self.news.notify_all();
        self.transfer_news.notify_all();
    }

    /// Notes that the target is closed.
    pub(super) fn note_end(&self) {
        self.state().end = End::Done;
        self.news.notify_all();
        self.mailboxes().iter().for_each(|(_, mailbox)| mailbox.signal());
    }

    /// Waits until the target is closed, up to `limit`.
    pub(super) fn wait_for_end(&self, limit: Duration) {
        let is_open = |state: &mut State| !matches!(state.end, End::Done);
        // After the limit, the worker ends by itself when storage lets it.
        drop(self.news.wait_timeout_while(self.state(), limit, is_open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::blk::request::{BlockCommand, Task};

    const FIRST: PartNumber = PartNumber(0);

    fn request(slot: usize, queue: usize) -> Job {
        let task = Task { command: BlockCommand::Flush, done: 0 };
        Job::Request(RequestJob { part: FIRST, slot, queue, task, data: Vec::new() })
    }

    fn next(jobs: &JobQueue) -> RequestJob {
        match jobs.next() {
            Some(Job::Request(job)) => job,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_that_has_begun_waits_behind_the_others() {
        let jobs = JobQueue::new();
        jobs.add([request(1, 0)]);
        let long = next(&jobs);
        assert!(jobs.put_back(long).is_none());
        jobs.add([request(2, 0)]);
        assert!(jobs.has_fresh());
        assert_eq!(next(&jobs).slot, 2);
        assert!(!jobs.has_fresh());
        assert_eq!(next(&jobs).slot, 1);
    }

    #[test]
    fn one_look_at_the_size_waits_behind_a_job_that_hangs() {
        let jobs = JobQueue::new();
        jobs.add([request(1, 0)]);
        assert_eq!(next(&jobs).slot, 1);
        (0..3).for_each(|_| jobs.add([Job::Refresh, Job::Refresh]));
        jobs.add([request(2, 0)]);
        assert!(matches!(jobs.next(), Some(Job::Refresh)));
        // The one that has begun may be too early for another change.
        jobs.add([Job::Refresh]);
        assert_eq!(next(&jobs).slot, 2);
        assert!(matches!(jobs.next(), Some(Job::Refresh)));
        assert!(!jobs.has_fresh());
    }

    #[test]
    fn parts_that_are_gone_leave_nothing_behind() {
        let jobs = JobQueue::new();
        let (_, first) = jobs.add_mailbox().unwrap();
        for number in 1..100 {
            let (part, mailbox) = jobs.add_mailbox().unwrap();
            assert_eq!(part, PartNumber(number), "no part has the number of an earlier one");
            assert_eq!(jobs.mailboxes().len(), 2);
            let Job::Request(own) = request(1, 0) else { panic!() };
            let own = RequestJob { part, ..own };
            jobs.report(&mut vec![Report::Done(own, Ok(()))], None);
            assert_eq!((mailbox.take().list.len(), first.take().list.len()), (1, 0));
        }
    }

    #[test]
    fn cancelled_requests_are_not_begun_and_not_continued() {
        let jobs = JobQueue::new();
        jobs.add([(1, 0), (2, 1), (3, 0)].map(|(slot, of)| request(slot, of)));
        jobs.add([Job::Refresh]);
        let running = next(&jobs);
        assert_eq!(running.slot, 1);
        assert_eq!(jobs.cancel(FIRST, Some(0)), [3]);
        assert_eq!(jobs.put_back(running).unwrap().slot, 1, "it was cancelled in between");
        assert!(jobs.put_back(next(&jobs)).is_none());
        assert_eq!(jobs.cancel(FIRST, None), [2], "a request between two parts");
        assert!(matches!(jobs.next(), Some(Job::Refresh)));
        jobs.end();
        assert!(jobs.next().is_none());
    }
}
