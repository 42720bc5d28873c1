//! A disk's own thread, which does what may wait for storage and is no transfer to a known place:
//! it opens, checks and closes the image, changes ranges, and allocates storage for data.
//!
//! The device hands over jobs and takes reports. A long job is done in parts, and other jobs in
//! between, so that it holds none of them up for longer than a part. Where an image permits it,
//! threads beside the worker read, and write what changes no metadata: such a request waits neither
//! for the worker nor for the storage of another one, as long as a thread is free.

mod mailbox;
mod queue;
mod transfers;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use self::mailbox::Mailbox;
use self::queue::JobQueue;
use self::transfers::TransferThreads;
use super::WriteMode;
use super::facts::DiskFacts;
use super::progress::{Deadline, Progress};
use super::request::Task;
use super::target::{Target, TargetError};
use crate::stats::StorageUse;

/// The time after which a job yields to others.
const PART: Duration = Duration::from_millis(10);
/// Maximum number of jobs that are done before their reports are made.
const MOST_REPORTS: usize = 32;
/// Maximum time for which the end of a device waits for its worker.
const END_LIMIT: Duration = Duration::from_secs(1);

/// The number of a part of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartNumber(usize);

/// A request for the worker.
#[derive(Debug)]
pub(super) struct RequestJob {
    /// The part of the device that the request belongs to.
    pub(super) part: PartNumber,
    /// Identifies the request.
    pub(super) slot: usize,
    /// The queue that the request belongs to.
    pub(super) queue: usize,
    pub(super) task: Task,
    /// The data to write, or as many bytes as are read.
    pub(super) data: Vec<u8>,
}

/// Something for the worker to do.
#[derive(Debug)]
pub(super) enum Job {
    /// A driver starts to use the disk.
    Start(WriteMode),
    /// The driver is gone.
    Stop,
    /// The size may have changed.
    Refresh,
    /// A request.
    Request(RequestJob),
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Report {
    /// Of [`Job::Start`].
    Started(Result<(), TargetError>),
    /// Of [`Job::Stop`].
    Stopped(Result<(), TargetError>),
    /// Of [`Job::Refresh`]; `true` if the number of sectors changed.
    Refreshed(Result<bool, TargetError>),
    /// Of [`Job::Request`].
    Done(RequestJob, Result<(), TargetError>),
    /// A failure that belongs to no job: cached data cannot be written.
    Unwritten(TargetError),
}

impl Report {
    /// The part of the device that the report is for.
    fn part(&self) -> PartNumber {
        match self {
            Self::Done(job, _) => job.part,
            Self::Started(_) | Self::Stopped(_) | Self::Refreshed(_) | Self::Unwritten(_) => {
                PartNumber(0)
            }
        }
    }
}

/// Reports, with the facts after them.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) list: Vec<Report>,
    pub(super) facts: Option<DiskFacts>,
}

impl Reports {
    fn is_empty(&self) -> bool {
        self.list.is_empty() && self.facts.is_none()
    }
}

/// The handle of a part of a device to the disk's worker.
pub(super) struct Worker {
    jobs: Arc<JobQueue>,
    part: PartNumber,
    mailbox: Arc<Mailbox>,
}

impl Worker {
    /// Starts the worker of a target.
    ///
    /// # Errors
    /// The kernel's, which starts no thread or gives no descriptor.
    pub(super) fn start(target: Target, storage: Arc<StorageUse>) -> io::Result<Self> {
        let queue = Arc::new(JobQueue::new());
        let worker = Self::of(&queue)?;
        let body = move || work(target, storage, &queue);
        thread::Builder::new().name("disk".to_owned()).spawn(body)?;
        Ok(worker)
    }

    fn of(jobs: &Arc<JobQueue>) -> io::Result<Self> {
        let (part, mailbox) = jobs.add_mailbox()?;
        Ok(Self { jobs: Arc::clone(jobs), part, mailbox })
    }

    /// A handle for another part of the device.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn share(&self) -> io::Result<Self> {
        Self::of(&self.jobs)
    }

    /// The number of the part that the handle is for.
    pub(super) fn part(&self) -> PartNumber {
        self.part
    }

    /// Hands a job over.
    pub(super) fn add(&self, job: Job) {
        self.add_all([job]);
    }

    /// Hands jobs over together.
    pub(super) fn add_all(&self, jobs: impl IntoIterator<Item = Job>) {
        self.jobs.add(jobs);
    }

    /// Drops the requests of a queue, or all of this part of the device: those that have not begun,
    /// or that are between two steps. Returns their slots; the others are reported.
    pub(super) fn cancel(&self, queue: Option<usize>) -> Vec<usize> {
        self.jobs.cancel(self.part, queue)
    }

    /// Readable while reports wait.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.ready().as_fd()
    }

    /// Whether reports wait, without a system call.
    pub(super) fn has_reports(&self) -> bool {
        self.mailbox.has_reports()
    }

    /// Whether the worker has ended: no report follows those that wait.
    pub(super) fn has_ended(&self) -> bool {
        self.jobs.has_ended() && self.mailbox.is_empty()
    }

    /// Whether a sync must be left to the worker, which writes the image's metadata before.
    pub(super) fn has_unwritten(&self) -> bool {
        self.jobs.has_unwritten()
    }

    /// Takes the reports that wait.
    pub(super) fn take(&self) -> Reports {
        self.mailbox.take()
    }

    /// Ends the worker, which closes the target, and waits for it up to a second: storage may hold
    /// it up for ever.
    pub(super) fn end(&self) {
        self.jobs.end();
        self.jobs.wait_for_end(END_LIMIT);
    }
}

/// The worker's thread.
fn work(target: Target, storage: Arc<StorageUse>, jobs: &JobQueue) {
    // Dropped last, also if the image's driver panics: the device must not wait for ever.
    let _end = EndNote(jobs);
    // Dropped when the target is closed, which releases the image.
    let _storage = storage;
    let mut target = target;
    // The target is closed after all threads have let go of it.
    thread::scope(|scope| {
        let _stop = transfers::Stop(jobs);
        let mut threads = TransferThreads::new(scope, jobs);
        let mut reports = Vec::new();
        while let Some(job) = jobs.next() {
            carry_out(&mut target, job, jobs, &mut reports);
            if !reports.is_empty() && (reports.len() >= MOST_REPORTS || !jobs.has_fresh()) {
                report(&mut target, jobs, &mut threads, &mut reports);
            }
        }
    });
}

/// Makes reports, with the image consistent in its file.
fn report(
    target: &mut Target,
    jobs: &JobQueue,
    threads: &mut TransferThreads<'_, '_>,
    reports: &mut Vec<Report>,
) {
    if reports.iter().any(|report| matches!(report, Report::Done(..))) {
        let finished = target.finish_batch();
        jobs.note_unwritten(finished.is_err());
        reports.extend(finished.err().map(Report::Unwritten));
    }
    let facts = target.take_new_facts();
    if facts.is_some() {
        threads.set_target(target.in_place());
    }
    jobs.report(reports, facts.as_ref());
}

struct EndNote<'j>(&'j JobQueue);

impl Drop for EndNote<'_> {
    fn drop(&mut self) {
        self.0.note_end();
    }
}

/// Does a job, or a part of it.
fn carry_out(target: &mut Target, job: Job, jobs: &JobQueue, reports: &mut Vec<Report>) {
    let report = match job {
        Job::Start(mode) => Report::Started(target.start(mode)),
        Job::Stop => Report::Stopped(target.stop()),
        Job::Refresh => Report::Refreshed(target.refresh()),
        Job::Request(mut job) => {
            match target.execute(&mut job.task, &mut job.data, &Deadline::after(PART)) {
                Ok(Progress::Unfinished) => match jobs.put_back(job) {
                    Some(cancelled) => Report::Done(cancelled, Ok(())),
                    None => return,
                },
                outcome => Report::Done(job, outcome.map(drop)),
            }
        }
    };
    reports.push(report);
}
