//! A connection with one frontend: passes messages between the page and the device, and carries out
//! the scheduler's steps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::message::{Body, Message, Request, Response};
use protocol::page::{Corrupt, SLOT_SIZE};

use super::channel::{Channel, ChannelError, FlushError, ReceivedMessage};
use super::doorbells::Doorbells;
use super::keys::{FrontendKeys, KeyError};
use super::queue_groups::ClosedDevice;
use super::scheduler::clock::KernelClock;
use super::scheduler::{Step, Woken};
use super::session::Context;
use super::transport::{Answered, Effects, Transport};
use crate::device::{AwaitedFd, Source, VirtioDevice};
use crate::dma::DmaMemory;
use crate::domain::Domain;
use crate::guest::Guest;
use xen::{EventError, GrantTable};

/// Maximum number of resets of queues that wait for storage.
const MOST_QUEUE_RESETS: usize = 4;
/// Maximum number of messages that are answered before queues are processed.
const MESSAGE_BUDGET: usize = 16;

/// An error that ends a connection; the frontend may start again [2.9].
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The frontend's keys in XenStore cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The message page or its event channel cannot be set up.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The frontend corrupted the message page.
    #[error(transparent)]
    Page(#[from] Corrupt),
    /// A message cannot be sent to the driver.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// An event channel fails.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A handle to Xen could not be opened.
    #[error(transparent)]
    Handle(#[from] io::Error),
}

/// A device over the memory of one guest.
pub type BoxedDevice<X> = Box<dyn VirtioDevice<DmaMemory<<X as Domain>::Platform>>>;

/// A connection with one frontend. The descriptor is readable (poll) while events are pending.
pub struct Connection<X: Domain> {
    doorbells: Doorbells<X::Events>,
    channel: Channel<<X::Grants as GrantTable>::Pages>,
    transport: Transport<X::Platform, X::Events>,
    /// Messages remain for which no further event arrives.
    more_messages: bool,
    /// Tokens and queues of resets that wait until the device uses no buffer of the queue [6.7].
    queue_resets: Vec<(u16, u32)>,
}

/// A failed connection, with the device.
pub struct OpenError<X: Domain> {
    /// The reason.
    pub error: ConnectionError,
    /// The device, for another attempt.
    pub device: BoxedDevice<X>,
}

/// The handles of a connection, without the device.
struct ConnectionParts<X: Domain> {
    platform: X::Platform,
    events: X::Events,
    channel: Channel<<X::Grants as GrantTable>::Pages>,
}

impl<X: Domain> ConnectionParts<X> {
    fn open(xen: &X, context: &Context, keys: FrontendKeys) -> Result<Self, ConnectionError> {
        let guest = context.path.guest;
        let grants = xen.grants(guest)?;
        let platform = xen.platform(guest)?;
        let mut events = xen.events(guest)?;
        let (budget, stats) = (&context.guest.budget, Arc::clone(&context.stats));
        let channel = Channel::open(&grants, &mut events, keys, budget, stats)?;
        Ok(Self { platform, events, channel })
    }

    fn connect(self, xen: &X, context: &Context, device: BoxedDevice<X>) -> Connection<X> {
        let Context { path, guest: Guest { budget, .. }, service, stats } = context;
        let mut memory = DmaMemory::new(self.platform, Arc::clone(stats), Arc::clone(budget));
        memory.limit_pool(service.pool.pages());
        let max_size = self.channel.max_size();
        let (xen, guest) = (xen.clone(), path.guest);
        let open = Arc::new(move || xen.events(guest));
        let stats = Arc::clone(stats);
        Connection {
            doorbells: Doorbells::new(self.events, Some(self.channel.port())),
            channel: self.channel,
            transport: Transport::new(device, memory, service, max_size, open, stats),
            more_messages: false,
            queue_resets: Vec::new(),
        }
    }
}

impl<X: Domain> AsFd for Connection<X> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbells.channels.as_fd()
    }
}

impl<X: Domain> Connection<X> {
    /// Connects `device` to the frontend with these keys [2.5].
    ///
    /// # Errors
    /// [`OpenError`], with the device; then no page of the guest's is mapped and no port is bound.
    pub fn open(
        xen: &X,
        context: &Context,
        keys: FrontendKeys,
        device: BoxedDevice<X>,
    ) -> Result<Self, OpenError<X>> {
        match ConnectionParts::open(xen, context, keys) {
            Ok(parts) => Ok(parts.connect(xen, context, device)),
            Err(error) => Err(OpenError { error, device }),
        }
    }

    /// Unmaps the guest's pages, closes its event channels and returns the device.
    pub fn close(mut self) -> ClosedDevice<DmaMemory<X::Platform>> {
        let device = self.transport.close(&mut self.doorbells.channels);
        self.channel.close(&mut self.doorbells.channels);
        device
    }

    /// Readable when [`Connection::take_news`] has news; `None` if the device has one thread.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.transport.news()
    }

    /// The event sources of the device besides the driver.
    pub fn sources(&self) -> Vec<Source<'_>> {
        self.transport.sources()
    }

    /// Waits until one of `fds` is ready, for at most `limit` and the longest time that the thread
    /// may sleep.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        let limit = self.longest_sleep().map_or(limit, |longest| longest.min(limit));
        self.transport.wait(fds, limit)
    }

    /// Forgets what was learnt of descriptors to wait for: some may be other files now.
    pub fn forget_descriptors(&mut self) {
        self.transport.forget_descriptors();
    }

    /// The longest time that the thread may sleep without an event; `None` for ever.
    fn longest_sleep(&self) -> Option<Duration> {
        match self.more_messages {
            true => Some(Duration::ZERO),
            false => self.transport.longest_sleep(&KernelClock),
        }
    }

    /// Takes what other threads of the device's have told.
    ///
    /// # Errors
    /// As [`Connection::iterate`].
    pub fn take_news(&mut self) -> Result<(), ConnectionError> {
        let effects = self.transport.take_news()?;
        self.send(effects);
        Ok(())
    }

    /// Handles everything that is pending: messages, and queues until they are empty, for a limited
    /// time. Messages are answered between batches: a driver whose queues never become empty
    /// requests more pages for its pool, and their processing waits for these.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection has ended.
    pub fn iterate(&mut self, woken: Woken) -> Result<(), ConnectionError> {
        let deadline = self.transport.deadline().is_some_and(|at| at <= Instant::now());
        let woken = Woken { deadline, ..woken };
        self.transport.end_reset();
        if woken.sources || woken.deadline {
            let events = &mut self.doorbells.channels;
            let effects = self.transport.handle_sources(events, &KernelClock);
            self.send(effects);
        }
        self.transport.scheduler().begin_iteration(woken, &KernelClock);
        let signalled = woken.events && self.doorbells.take(self.transport.first_group())?;
        if std::mem::take(&mut self.more_messages) || signalled {
            // A response that waits for a slot keeps the messages behind it in the page.
            self.channel.flush(&mut self.doorbells.channels)?;
            self.answer_messages()?;
        }
        loop {
            if self.channel.has_news() {
                self.answer_messages()?;
            }
            let step = self.transport.scheduler().next(&KernelClock);
            if step == Step::Sleep {
                break;
            }
            let effects =
                self.transport.carry_out(step, &mut self.doorbells.channels, &KernelClock);
            self.send(effects);
        }
        self.answer_queue_resets()?;
        self.send_config_change();
        self.doorbells.unmask(self.transport.first_group())?;
        Ok(self.channel.flush(&mut self.doorbells.channels)?)
    }

    /// Answers messages, and lets the threads go on that these have halted.
    fn answer_messages(&mut self) -> Result<(), ConnectionError> {
        self.answer_some()?;
        self.transport.resume();
        Ok(())
    }

    /// Answers at most [`MESSAGE_BUDGET`] messages.
    fn answer_some(&mut self) -> Result<(), ConnectionError> {
        let (mut buffer, mut scratch) = ([0; SLOT_SIZE], [0; SLOT_SIZE]);
        for _ in 0..MESSAGE_BUDGET {
            let Message { token, body } = match self.channel.receive(&mut buffer)? {
                ReceivedMessage::Nothing => return Ok(()),
                ReceivedMessage::Dropped => continue,
                ReceivedMessage::Message(message) => message,
            };
            match body {
                Body::Request(request) => {
                    self.transport.scheduler().answered();
                    // The response has the generation of the configuration that it shows.
                    self.send_config_change();
                    if request == Request::SetDeviceStatus(0) {
                        self.channel.drop_events();
                    }
                    let Answered { response, effects } =
                        self.transport.answer(request, &mut self.doorbells.channels, &mut scratch);
                    match request {
                        Request::ResetVqueue { index } => {
                            self.forget_reset_queue(index);
                            // A driver waits for each response before its next request.
                            if self.queue_resets.len() < MOST_QUEUE_RESETS {
                                self.queue_resets.push((token, index));
                            }
                            self.answer_queue_resets()?;
                        }
                        _ => self.channel.respond(&Message::response(token, response)),
                    }
                    self.send(effects);
                    self.channel.flush(&mut self.doorbells.channels)?;
                }
                Body::Event(event) => {
                    if let Err(why) = self.transport.handle_event(event) {
                        self.channel.note_dropped(&why);
                    }
                }
                Body::Response(_) => self.channel.note_dropped(&"unexpected response"),
            }
        }
        self.more_messages = true;
        Ok(())
    }

    /// Answers resets of queues of which the device uses no buffer any more [6.7].
    fn answer_queue_resets(&mut self) -> Result<(), FlushError> {
        if self.queue_resets.is_empty() {
            return Ok(());
        }
        while !self.channel.has_response() {
            let transport = &mut self.transport;
            let is_over = |(_, index): &(u16, u32)| !transport.is_queue_draining(*index);
            let Some(position) = self.queue_resets.iter().position(is_over) else { break };
            let (token, _) = self.queue_resets.remove(position);
            self.channel.respond(&Message::response(token, Response::ResetVqueue));
            self.channel.flush(&mut self.doorbells.channels)?;
        }
        self.transport.resume();
        Ok(())
    }

    /// Drops the pending notification of a queue that was reset: the driver must not receive one
    /// for buffers used before.
    fn forget_reset_queue(&mut self, index: u32) {
        if !self.transport.is_enabled(index as usize) {
            self.channel.drop_used_event(index);
        }
    }

    /// Queues the event for a change of the configuration, if there was one.
    fn send_config_change(&mut self) {
        let effects = self.transport.take_config_event();
        self.send(effects);
    }

    /// Queues events for the driver on the message page.
    fn send(&mut self, effects: Effects) {
        effects.used.into_iter().for_each(|index| self.channel.queue_used_event(index));
        if effects.config {
            let (status, generation) = self.transport.status_and_generation();
            self.channel.queue_config_event(status, generation);
        }
    }
}
