//! The thread of a queue group other than a device's first.
//!
//! The group, with its event channels, is in one of two places: with the device's own thread, which
//! sets it up and resets it, or with its own thread, which processes its queues. Either hands it to
//! the other as a value, so that no lock is needed.

use std::io;
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::doorbells::Doorbells;
use super::queue_group::{QueueGroup, StepResult};
use super::scheduler::clock::KernelClock;
use super::scheduler::{Step, Woken};
use crate::device::{AwaitedFd, Source};
use crate::dma::AccessPlatform;
use xen::{EventChannels, EventError, LocalPort, RemotePort};

/// A group with its event channels.
struct Unit<P: AccessPlatform, E> {
    group: QueueGroup<P>,
    /// Opened for the first doorbell.
    doorbells: Option<Doorbells<E>>,
}

/// Opens event channels with the guest.
pub type OpenChannels<E> = Arc<dyn Fn() -> io::Result<E> + Send + Sync>;

impl<P: AccessPlatform, E: EventChannels> Unit<P, E> {
    /// Opens the group's event channels, if they are not yet.
    fn open(&mut self, open: &OpenChannels<E>) -> io::Result<()> {
        if self.doorbells.is_none() {
            self.doorbells = Some(Doorbells::new(open()?, None));
        }
        Ok(())
    }
}

/// What a group's thread tells the device's.
enum Note<P: AccessPlatform, E> {
    Result(StepResult),
    /// The reset of a queue has ended.
    ResetEnded,
    /// The group is back: it was called, or its event channels fail.
    Back(Box<Unit<P, E>>, Result<(), EventError>),
    /// The thread panicked, and ends when storage has let go of the group.
    Lost,
}

/// What a group's thread told.
#[derive(Debug, Default)]
pub struct News {
    /// The results of its steps.
    pub results: Vec<StepResult>,
    /// The reason why its event channels cannot be used any more.
    pub error: Option<EventError>,
}

/// The two ends of a running thread.
struct Ends<P: AccessPlatform, E> {
    /// Calls the group back.
    call: Arc<EventFd>,
    groups: Sender<Box<Unit<P, E>>>,
    notes: Receiver<Note<P, E>>,
}

/// A queue group that has a thread of its own while it is [`GroupThread::run`].
pub struct GroupThread<P: AccessPlatform, E> {
    /// The group, unless its thread has it.
    here: Option<Box<Unit<P, E>>>,
    thread: Option<Ends<P, E>>,
    /// Whether the thread panicked, until another group is here.
    is_lost: bool,
    news: News,
    /// Readable when a group's thread has told something.
    signal: Arc<EventFd>,
    open: OpenChannels<E>,
    /// The thread's name.
    name: String,
}

impl<P: AccessPlatform, E: EventChannels> GroupThread<P, E> {
    /// The device's group `number`, without a thread. `signal` becomes readable when its thread
    /// tells something; `open` opens its event channels.
    pub fn new(
        number: usize,
        group: QueueGroup<P>,
        signal: Arc<EventFd>,
        open: OpenChannels<E>,
    ) -> Self {
        let here = Some(Box::new(Unit { group, doorbells: None }));
        // Beside that of the device's thread.
        let name = format!("{}.{number}", thread::current().name().unwrap_or("queues"));
        let news = News::default();
        Self { here, thread: None, is_lost: false, news, signal, open, name }
    }

    /// Lets the group's thread have the group, and starts that thread the first time.
    ///
    /// # Errors
    /// The kernel starts no thread; the group stays here.
    pub fn run(&mut self) -> io::Result<()> {
        let ends = match self.thread.take() {
            Some(ends) => ends,
            None => self.start()?,
        };
        if let Err(error) = self.here.as_mut().map_or(Ok(()), |unit| unit.open(&self.open)) {
            self.thread = Some(ends);
            return Err(error);
        }
        // A call that came too late was for an earlier run.
        let _ = ends.call.read();
        if let Some(unit) = self.here.take()
            && let Err(mpsc::SendError(unit)) = ends.groups.send(unit)
        {
            self.here = Some(unit);
        }
        self.thread = Some(ends);
        Ok(())
    }

    fn start(&self) -> io::Result<Ends<P, E>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let call = Arc::new(EventFd::from_flags(flags)?);
        let ((groups, taken), (told, notes)) =
            (mpsc::channel::<Box<Unit<P, E>>>(), mpsc::channel());
        let sender: NoteSender<P, E> =
            NoteSender { notes: told, signal: EndSignal(Arc::clone(&self.signal)) };
        let called = Arc::clone(&call);
        // It is never joined: the kernel lets it not end before storage has answered it.
        thread::Builder::new().name(self.name.clone()).spawn(move || {
            while let Ok(mut unit) = taken.recv() {
                let serve = || serve(&mut unit, &called, &sender);
                match panic::catch_unwind(AssertUnwindSafe(serve)) {
                    // Who called waits for it.
                    Ok(Ok(())) => sender.send(Note::Back(unit, Ok(()))),
                    Ok(Err(error)) => sender.send_and_signal(Note::Back(unit, Err(error))),
                    Err(panic) => {
                        // The end of the group may wait for storage, and nobody waits for that.
                        sender.send_and_signal(Note::Lost);
                        drop(unit);
                        drop(sender);
                        panic::resume_unwind(panic);
                    }
                }
            }
        })?;
        Ok(Ends { call, groups, notes })
    }

    /// Calls the group back and waits for it, at most for an iteration of its thread. `None` if the
    /// thread panicked, which loses the group.
    pub fn halt(&mut self) -> Option<&mut QueueGroup<P>> {
        if let (None, Some(ends)) = (&self.here, &self.thread) {
            // The counter cannot overflow: it is written once for each run.
            let _ = ends.call.write(1);
            while self.here.is_none() && !self.is_lost {
                let Some(Ends { notes, .. }) = &self.thread else { break };
                match notes.recv() {
                    Ok(note) => self.take(note),
                    Err(mpsc::RecvError) => self.thread = None,
                }
            }
        }
        self.group()
    }

    /// Has another group instead of one that is lost.
    pub fn replace(&mut self, group: QueueGroup<P>) {
        self.here = Some(Box::new(Unit { group, doorbells: None }));
        self.is_lost = false;
    }

    /// Whether a group that is lost may still use buffers of the driver.
    pub fn is_ending(&mut self) -> bool {
        self.collect();
        self.here.is_none() && self.thread.is_some()
    }

    /// The group, if it is here.
    pub fn group(&mut self) -> Option<&mut QueueGroup<P>> {
        self.here.as_mut().map(|unit| &mut unit.group)
    }

    /// As [`GroupThread::group`], to look at.
    pub fn group_ref(&self) -> Option<&QueueGroup<P>> {
        self.here.as_ref().map(|unit| &unit.group)
    }

    /// Takes what the thread has told.
    pub fn take_news(&mut self) -> News {
        self.collect();
        std::mem::take(&mut self.news)
    }

    fn collect(&mut self) {
        while let Some(Ends { notes, .. }) = &self.thread {
            match notes.try_recv() {
                Ok(note) => self.take(note),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => self.thread = None,
            }
        }
    }

    /// Notes that the thread panicked; its signal follows.
    fn note_loss(&mut self) {
        self.is_lost = true;
        let fault = Some("internal error: a thread ended; please report it".into());
        self.news.results.push(StepResult { fault, used: Vec::new() });
    }

    /// Drops what a halted thread has told of its steps, for a queue that was reset or for all.
    pub fn forget(&mut self, queue: Option<usize>) {
        match queue {
            Some(queue) => self.news.results.iter_mut().for_each(|result| {
                result.used.retain(|used| *used as usize != queue);
            }),
            None => self.news.results.clear(),
        }
    }

    fn take(&mut self, note: Note<P, E>) {
        match note {
            Note::Result(result) => self.news.results.push(result),
            Note::ResetEnded => {}
            Note::Lost => self.note_loss(),
            Note::Back(unit, outcome) => {
                self.here = Some(unit);
                self.news.error = outcome.err().or(self.news.error.take());
            }
        }
    }

    /// Binds a doorbell, while the group is here.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError> {
        let failed = |source| EventError { operation: "bind", port: port.0, source };
        let lost = || failed(io::ErrorKind::NotConnected.into());
        let unit = self.here.as_mut().ok_or_else(lost)?;
        unit.open(&self.open).map_err(failed)?;
        unit.doorbells.as_mut().ok_or_else(lost)?.channels.bind(port)
    }

    /// Notifies the driver through a doorbell, while the group is here.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn notify(&mut self, port: LocalPort) -> Result<(), EventError> {
        let doorbells = self.here.as_mut().and_then(|unit| unit.doorbells.as_mut());
        doorbells.map_or(Ok(()), |doorbells| doorbells.channels.notify(port))
    }

    /// Closes a doorbell, while the group is here.
    pub fn unbind(&mut self, port: LocalPort) {
        let doorbells = self.here.as_mut().and_then(|unit| unit.doorbells.as_mut());
        doorbells.into_iter().for_each(|doorbells| doorbells.channels.unbind(port));
    }

    /// Takes the group out, halted.
    pub fn into_group(mut self) -> Option<QueueGroup<P>> {
        self.halt();
        self.here.map(|unit| unit.group)
    }
}

/// Tells the device's thread something.
struct NoteSender<P: AccessPlatform, E> {
    notes: Sender<Note<P, E>>,
    /// Dropped after the sender, so that who is signalled finds the channel closed.
    signal: EndSignal,
}

/// Signals the end of a thread, however it ends.
struct EndSignal(Arc<EventFd>);

impl Drop for EndSignal {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

impl<P: AccessPlatform, E> NoteSender<P, E> {
    /// Tells a thread that waits for a note.
    fn send(&self, note: Note<P, E>) {
        // A device that is gone wants to know nothing.
        let _ = self.notes.send(note);
    }

    fn send_and_signal(&self, note: Note<P, E>) {
        // A device that is gone wants to know nothing.
        if self.notes.send(note).is_ok() {
            let _ = self.signal.0.write(1);
        }
    }
}

/// Processes a group's queues until it is called.
fn serve<P: AccessPlatform, E: EventChannels>(
    unit: &mut Unit<P, E>,
    call: &EventFd,
    sender: &NoteSender<P, E>,
) -> Result<(), EventError> {
    let mut woken = Woken::default();
    loop {
        let result = iterate(unit, woken)?;
        if result != StepResult::default() {
            sender.send_and_signal(Note::Result(result));
        }
        if unit.group.note_ended_resets() {
            sender.send_and_signal(Note::ResetEnded);
        }
        let failed = |source| EventError { operation: "wait for", port: 0, source };
        match wait(unit, call).map_err(failed)? {
            Polled::Called => return Ok(()),
            Polled::Woken(next) => woken = next,
        }
    }
}

fn iterate<P: AccessPlatform, E: EventChannels>(
    unit: &mut Unit<P, E>,
    woken: Woken,
) -> Result<StepResult, EventError> {
    let mut all = StepResult::default();
    let Unit { group, doorbells: Some(doorbells), .. } = unit else { return Ok(all) };
    let deadline = group.deadline().is_some_and(|at| at <= Instant::now());
    group.scheduler.begin_iteration(Woken { deadline, ..woken }, &KernelClock);
    if woken.events {
        doorbells.take(group)?;
    }
    loop {
        match group.scheduler.next(&KernelClock) {
            Step::Sleep => break,
            step => all.add(group.carry_out(step, &mut doorbells.channels, &KernelClock)),
        }
    }
    doorbells.unmask(group)?;
    Ok(all)
}

/// What ended a wait.
enum Polled {
    Called,
    Woken(Woken),
}

fn wait<P: AccessPlatform, E: EventChannels>(
    unit: &mut Unit<P, E>,
    call: &EventFd,
) -> io::Result<Polled> {
    let Unit { group, doorbells, .. } = unit;
    let mut fds = vec![AwaitedFd::readable(call.as_fd())];
    let channels = doorbells.as_ref().map(|doorbells| doorbells.channels.as_fd());
    fds.extend(channels.map(AwaitedFd::readable));
    fds.extend(group.sources().iter().map(Source::awaited));
    group.wait(&mut fds, group.longest_sleep(&KernelClock).unwrap_or(Duration::MAX))?;
    let mut ready = fds.iter().map(|fd| fd.is_ready);
    if ready.next() == Some(true) {
        return Ok(Polled::Called);
    }
    let events = channels.and_then(|_| ready.next()).unwrap_or(false);
    let sources = ready.any(|ready| ready);
    Ok(Polled::Woken(Woken { events, sources, deadline: false }))
}
