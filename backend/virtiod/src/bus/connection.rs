//! A connection with one frontend: messages between the page and the device, and the steps that the
//! scheduler names.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use protocol::message::{Body, Message, Request};
use protocol::page::{Corrupt, SLOT_SIZE};

use super::channel::{Channel, ChannelError, FlushError, ReceivedMessage};
use super::keys::{FrontendKeys, KeyError};
use super::scheduler::clock::KernelClock;
use super::scheduler::{Ready, Step};
use super::session::Context;
use super::transport::{Answered, Effects, Transport};
use crate::device::{Source, VirtioDevice};
use crate::dma::DmaMemory;
use crate::domain::Domain;
use crate::guest::Guest;
use crate::stats::DeviceStats;
use xen::{EventChannels, EventError, GrantTable, LocalPort};

/// Messages answered before queues get their turn.
const MESSAGE_BUDGET: usize = 16;

/// What ends a connection; the frontend may start again [2.9].
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// What the frontend wrote into XenStore.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The message page or its event channel, at the start.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The message page, later.
    #[error(transparent)]
    Page(#[from] Corrupt),
    /// The driver could not be told something.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// An event channel.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A handle to Xen could not be opened.
    #[error(transparent)]
    Door(#[from] io::Error),
}

/// A device over the memory of one guest.
pub type BoxedDevice<X> = Box<dyn VirtioDevice<DmaMemory<<X as Domain>::Platform>>>;

/// A connection. Readable (poll) while events are pending.
pub struct Connection<X: Domain> {
    events: X::Events,
    channel: Channel<<X::Grants as GrantTable>::Pages>,
    transport: Transport<X::Platform>,
    /// Messages are left that no event will tell of.
    more_messages: bool,
    /// Ports whose events were dealt with and that are not unmasked yet.
    masked: Vec<LocalPort>,
    stats: Arc<DeviceStats>,
}

/// A device that could not be connected, and why.
pub struct OpenError<X: Domain> {
    /// Why.
    pub error: ConnectionError,
    /// The device.
    pub device: BoxedDevice<X>,
}

/// What a connection is made of, besides the device.
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

    fn connect(self, context: &Context, device: BoxedDevice<X>) -> Connection<X> {
        let Context { guest: Guest { budget, .. }, service, stats, .. } = context;
        let mut memory = DmaMemory::new(self.platform, Arc::clone(stats), Arc::clone(budget));
        memory.limit_pool(service.pool.pages());
        let max_size = self.channel.max_size();
        let transport = Transport::new(device, memory, service.poll, max_size, Arc::clone(stats));
        Connection {
            events: self.events,
            channel: self.channel,
            transport,
            more_messages: false,
            masked: Vec::new(),
            stats: Arc::clone(stats),
        }
    }
}

/// What a connection's thread woke up for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Woken {
    /// Events are pending.
    pub events: bool,
    /// One of the device's own sources is ready.
    pub sources: bool,
}

impl<X: Domain> AsFd for Connection<X> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl<X: Domain> Connection<X> {
    /// Connects `device` to the frontend with these keys [2.5].
    ///
    /// # Errors
    /// [`OpenError`], with the device; nothing of the guest's is held then.
    pub fn open(
        xen: &X,
        context: &Context,
        keys: FrontendKeys,
        device: BoxedDevice<X>,
    ) -> Result<Self, OpenError<X>> {
        match ConnectionParts::open(xen, context, keys) {
            Ok(parts) => Ok(parts.connect(context, device)),
            Err(error) => Err(OpenError { error, device }),
        }
    }

    /// Gives back everything of the guest's, and the device.
    pub fn close(mut self) -> BoxedDevice<X> {
        let device = self.transport.close(&mut self.events);
        self.channel.close(&mut self.events);
        device
    }

    /// What the device waits for besides the driver.
    pub fn sources(&self) -> Vec<Source<'_>> {
        self.transport.sources()
    }

    /// How long the thread may sleep unless something happens; `None` for ever.
    pub fn longest_sleep(&self) -> Option<Duration> {
        match self.more_messages {
            true => Some(Duration::ZERO),
            false => self.transport.longest_sleep(&KernelClock),
        }
    }

    /// Deals with everything that is pending: messages, and queues until they are found empty, for
    /// a while. Messages are answered between batches: a driver whose queues are never empty asks
    /// for more pages of its pool, which processing them waits for.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is over.
    pub fn iterate(&mut self, woken: Woken) -> Result<(), ConnectionError> {
        let deadline = self.transport.deadline().is_some_and(|at| at <= Instant::now());
        let ready = Ready { events: woken.events, sources: woken.sources, deadline };
        self.transport.scheduler().begin_iteration(ready, &KernelClock);
        let signalled = woken.events && self.take_events()?;
        if std::mem::take(&mut self.more_messages) || signalled {
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
            let effects = self.transport.carry_out(step, &mut self.events, &KernelClock);
            self.send(effects);
        }
        self.unmask()?;
        Ok(self.channel.flush(&mut self.events)?)
    }

    /// Takes the events that are pending; whether one says that there are messages.
    fn take_events(&mut self) -> Result<bool, EventError> {
        let (mut messages, mut doorbells, mut count) = (false, false, 0);
        while let Some(port) = self.events.pending()? {
            count += 1;
            self.masked.push(port);
            if port == self.channel.port() {
                messages = true;
            } else {
                doorbells = true;
                self.transport.handle_doorbell(port);
            }
        }
        self.stats.events_received.fetch_add(count, Ordering::Relaxed);
        if count > 0 {
            self.transport.scheduler().woken_by_events(doorbells, &KernelClock);
        }
        Ok(messages)
    }

    /// Unmasks ports whose events were dealt with. Late: the guest's next events arrive only now,
    /// and later still if those brought nothing.
    ///
    /// # Errors
    /// [`EventError`]: a port stays masked, and nobody would notice.
    fn unmask(&mut self) -> Result<(), EventError> {
        if !self.transport.scheduler().may_unmask(&KernelClock) {
            return Ok(());
        }
        for port in self.masked.drain(..) {
            // A doorbell may have been closed since.
            if port == self.channel.port() || self.transport.has_doorbell(port) {
                self.events.unmask(port)?;
            }
        }
        Ok(())
    }

    /// Answers messages, up to a budget.
    fn answer_messages(&mut self) -> Result<(), ConnectionError> {
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
                    if request == Request::SetDeviceStatus(0) {
                        self.channel.drop_events();
                    }
                    let Answered { response, effects } =
                        self.transport.answer(request, &mut self.events, &mut scratch);
                    self.channel.respond(&Message::response(token, response));
                    if let Request::ResetVqueue { index } = request {
                        self.forget_reset_queue(index);
                    }
                    self.send(effects);
                    self.channel.flush(&mut self.events)?;
                }
                Body::Event(event) => {
                    if let Err(why) = self.transport.handle_event(event) {
                        self.channel.note_dropped(&why);
                    }
                }
                Body::Response(_) => self.channel.note_dropped(&"a response, which nobody awaits"),
            }
        }
        self.more_messages = true;
        Ok(())
    }

    /// The driver of a queue that was reset is not notified of buffers used before.
    fn forget_reset_queue(&mut self, index: u32) {
        if !self.transport.is_enabled(index as usize) {
            self.channel.drop_used_event(index);
        }
    }

    /// Sends events to the driver, in band.
    fn send(&mut self, effects: Effects) {
        effects.used.into_iter().for_each(|index| self.channel.queue_used_event(index));
        if effects.config {
            let (status, generation) = self.transport.status_and_generation();
            self.channel.queue_config_event(status, generation);
        }
    }
}
