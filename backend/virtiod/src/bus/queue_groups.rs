//! All queue groups of a device: the first, which the device's own thread serves, and those with
//! threads of their own.
//!
//! Queue `i` of a device with `n` groups belongs to group `i` modulo `n`. What changes a group
//! first halts it; [`QueueGroups::resume`] lets all go on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::grant::GrantRef;
use protocol::pool::PoolPage;

use super::group_thread::{GroupThread, News, OpenChannels};
use super::queue_group::{Activity, QueueGroup, StepResult};
use super::scheduler::Step;
use super::scheduler::clock::Clock;
use super::virtqueue::Virtqueue;
use crate::config::ServiceSettings;
use crate::device::{Fault, Source, VirtioDevice};
use crate::dma::{AccessPlatform, DmaMemory, ShareError, UnshareError};
use crate::stats::DeviceStats;
use xen::{EventChannels, EventError, LocalPort, RemotePort};

/// The time after which groups go on that could not for lack of a thread or a descriptor.
const RESUME_RETRY: Duration = Duration::from_millis(100);

/// A device whose connection is closed.
pub struct ClosedDevice<M> {
    /// The device, for the next connection.
    pub device: Box<dyn VirtioDevice<M>>,
    /// Parts of it that still use buffers of the driver.
    pub draining: Vec<Box<dyn VirtioDevice<M>>>,
}

/// The queue groups of a device.
pub struct QueueGroups<P: AccessPlatform, E> {
    /// The group that the device's own thread serves.
    pub first: QueueGroup<P>,
    others: Vec<GroupThread<P, E>>,
    /// Readable when another group's thread has told something.
    signal: Option<Arc<EventFd>>,
    /// When groups go on that could not for lack of a thread or a descriptor.
    resume_at: Option<Instant>,
}

impl<P: AccessPlatform, E: EventChannels> QueueGroups<P, E> {
    /// Divides a device that was just reset, as its settings say and as it permits. `open` opens
    /// event channels for another group.
    pub fn new(
        mut device: Box<dyn VirtioDevice<DmaMemory<P>>>,
        memory: DmaMemory<P>,
        service: &ServiceSettings,
        open: OpenChannels<E>,
        stats: &Arc<DeviceStats>,
    ) -> Self {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        // Without a descriptor for the signal, one thread serves all.
        let signal = EventFd::from_flags(flags).ok().map(Arc::new);
        let mut parts = Vec::new();
        let most = service.threads.count().min(device.queue_sizes().len());
        let mut part = || signal.as_ref().and_then(|signal| Some((signal, device.part()?)));
        while parts.len() + 1 < most
            && let Some((signal, part)) = part()
        {
            parts.push((part, Arc::clone(signal)));
        }
        let first = QueueGroup::new(device, memory, service.poll, Arc::clone(stats));
        if !parts.is_empty() {
            stats.note("threads", &(1 + parts.len()).to_string());
        }
        let others = (1..).zip(parts).map(|(number, (part, signal))| {
            GroupThread::new(number, first.beside(part), signal, Arc::clone(&open))
        });
        let others: Vec<_> = others.collect();
        let signal = signal.filter(|_| !others.is_empty());
        Self { first, signal, others, resume_at: None }
    }

    /// The position of a queue's group among the others; `None` for the first group.
    fn other_of(&self, index: usize) -> Option<usize> {
        (index % (1 + self.others.len())).checked_sub(1)
    }

    /// The group of a queue, halted; `None` if there is no such queue or the group's thread is
    /// lost.
    pub fn of_queue(&mut self, index: usize) -> Option<&mut QueueGroup<P>> {
        if index >= self.first.queues.len() {
            return None;
        }
        match self.other_of(index) {
            None => Some(&mut self.first),
            Some(other) => self.others.get_mut(other)?.halt(),
        }
    }

    /// As [`QueueGroups::of_queue`]: the queue with its group.
    pub fn queue(&mut self, index: usize) -> Option<&mut Virtqueue<P>> {
        self.of_queue(index)?.queues.get_mut(index)
    }

    /// All groups, halted.
    fn all(&mut self) -> impl Iterator<Item = &mut QueueGroup<P>> {
        let others = self.others.iter_mut().filter_map(GroupThread::halt);
        std::iter::once(&mut self.first).chain(others)
    }

    /// Lets the threads of halted groups go on.
    ///
    /// # Errors
    /// The kernel starts no thread, or opens no event channels. The caller calls this again at the
    /// [`QueueGroups::deadline`].
    pub fn resume(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        for other in &mut self.others {
            let is_busy = |group: &mut QueueGroup<P>| {
                group.activity() == Activity::Running && !group.enabled().is_empty()
            };
            if other.group().is_some_and(is_busy) {
                outcome = outcome.and(other.run());
            }
        }
        self.resume_at = outcome.is_err().then(|| Instant::now() + RESUME_RETRY);
        outcome
    }

    /// Lets the groups that have enabled queues process them: the driver is ready.
    pub fn run(&mut self) {
        self.set_shares();
        self.first.run();
        let is_used = |group: &&mut QueueGroup<P>| !group.enabled().is_empty();
        self.all().skip(1).filter(is_used).for_each(QueueGroup::run);
    }

    /// Divides the limits of the device between the groups that have enabled queues.
    fn set_shares(&mut self) {
        let used = self.all().filter(|group| !group.enabled().is_empty()).count();
        self.all().for_each(|group| group.device.set_shares(used.max(1)));
    }

    /// A queue was enabled after [`QueueGroups::run`].
    pub fn enabled_late(&mut self, index: usize) {
        self.set_shares();
        self.of_queue(index).into_iter().for_each(|group| group.run_queue(index));
    }

    /// Starts the parts of the device besides the first, which is started.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn start_parts(&mut self, features: u64) -> Result<(), Fault> {
        self.all().skip(1).try_for_each(|group| group.device.start(features))
    }

    /// Stops all groups: the device needs a reset.
    pub fn stop(&mut self) {
        self.all().for_each(QueueGroup::stop);
    }

    /// Resets all queues and the device, and closes the doorbells. The first part goes last: it
    /// gives up what all use.
    pub fn reset(&mut self, events: &mut E) {
        for other in &mut self.others {
            // None is here if its thread panicked.
            let doorbells = other.halt().map(QueueGroup::reset).into_iter().flatten();
            doorbells.for_each(|port| other.unbind(port));
            other.forget(None);
        }
        self.first.reset().into_iter().for_each(|port| events.unbind(port));
    }

    /// Whether a part of the device still uses buffers after a reset.
    pub fn is_draining(&mut self) -> bool {
        let (mut is_draining, first) = (false, &mut self.first);
        // Every part is asked: each gives up what it can.
        for other in &mut self.others {
            if let Some(group) = other.group() {
                is_draining |= group.is_draining();
            } else if other.is_ending() {
                is_draining = true;
            } else if let Some(part) = first.device.part() {
                let mut group = first.beside(part);
                group.memory.unshare_all();
                other.replace(group);
            }
        }
        first.is_draining() || is_draining
    }

    /// Ends all groups after a reset.
    pub fn close(self) -> ClosedDevice<DmaMemory<P>> {
        let others = self.others.into_iter().filter_map(GroupThread::into_group);
        let draining = others.filter_map(|mut group| group.is_draining().then_some(group.device));
        ClosedDevice { draining: draining.collect(), device: self.first.device }
    }

    /// Binds a doorbell in the queue's group.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn bind(
        &mut self,
        index: usize,
        port: RemotePort,
        events: &mut E,
    ) -> Result<LocalPort, EventError> {
        match self.other(index) {
            Some(other) => other.bind(port),
            None => events.bind(port),
        }
    }

    /// Notifies the driver through a doorbell of the queue's group.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn notify(
        &mut self,
        index: usize,
        port: LocalPort,
        events: &mut E,
    ) -> Result<(), EventError> {
        match self.other(index) {
            Some(other) => other.notify(port),
            None => events.notify(port),
        }
    }

    /// Closes a doorbell of the queue's group.
    pub fn unbind(&mut self, index: usize, port: LocalPort, events: &mut E) {
        match self.other(index) {
            Some(other) => other.unbind(port),
            None => events.unbind(port),
        }
    }

    fn other(&mut self, index: usize) -> Option<&mut GroupThread<P, E>> {
        let other = self.other_of(index)?;
        let other = self.others.get_mut(other)?;
        other.halt();
        Some(other)
    }

    /// Drops notifications of a queue that was reset: the driver must not receive one for buffers
    /// used before.
    pub fn forget(&mut self, index: usize) {
        self.other(index).into_iter().for_each(|other| other.forget(Some(index)));
    }

    /// Adds pages to the pool of all groups.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn share(
        &mut self,
        first: PoolPage,
        count: u32,
        reference: GrantRef,
    ) -> Result<(), ShareError> {
        self.first.memory.share(first, count, reference)?;
        self.share_pool();
        Ok(())
    }

    /// Takes pages out of the pool of all groups.
    ///
    /// # Errors
    /// [`UnshareError`]; then the pages stay in the pool.
    pub fn unshare(&mut self, first: PoolPage, count: u32) -> Result<(), UnshareError> {
        let others = self.others.iter_mut().filter_map(GroupThread::halt);
        others.for_each(|other| other.memory.unshare_all());
        let mut unshared = self.first.memory.unshare(first, count);
        if unshared == Err(UnshareError::InUse) {
            self.all().for_each(|group| group.device.forget_regions());
            unshared = self.first.memory.unshare(first, count);
        }
        self.share_pool();
        unshared
    }

    /// Gives the pool of the first group to the others.
    fn share_pool(&mut self) {
        for other in self.others.iter_mut().filter_map(GroupThread::halt) {
            other.memory.share_with(&self.first.memory);
        }
    }

    /// Handles the sources of the other groups that no thread has, because they have no queue, and
    /// notes which resets of queues have ended. The first group's scheduler handles its sources.
    pub fn handle_sources(&mut self, events: &mut E, clock: &impl Clock) -> Vec<StepResult> {
        self.first.note_ended_resets();
        let here = self.others.iter_mut().filter_map(GroupThread::group);
        let handled = here.map(|group| {
            let result = group.carry_out(Step::HandleSources, events, clock);
            group.note_ended_resets();
            result
        });
        handled.collect()
    }

    /// The event sources of the device's parts that are here.
    pub fn sources(&self) -> Vec<Source<'_>> {
        let mut sources = self.first.sources();
        let here = self.others.iter().filter_map(GroupThread::group_ref);
        here.for_each(|group| sources.extend(group.sources()));
        sources
    }

    /// Readable when another group's thread has told something.
    pub fn signal(&self) -> Option<BorrowedFd<'_>> {
        self.signal.as_ref().map(|signal| signal.as_fd())
    }

    /// The time at which a part of the device here must run even if none of its sources is ready,
    /// or groups go on that could not.
    pub fn deadline(&self) -> Option<Instant> {
        let here = self.others.iter().filter_map(GroupThread::group_ref);
        let deadlines = here.filter_map(QueueGroup::deadline).chain(self.first.deadline());
        deadlines.chain(self.resume_at).min()
    }

    /// Takes what the other groups' threads have told.
    pub fn take_news(&mut self) -> Vec<News> {
        // It may have been read before.
        let _ = self.signal.as_ref().map(|signal| signal.read());
        self.others.iter_mut().map(GroupThread::take_news).collect()
    }
}
