//! A connection with one frontend: passes messages between the page and the device, and carries out
//! the scheduler's steps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::message::{Body, Message, Request, Response};
use protocol::page::{Corrupt, SLOT_SIZE};
use tracing::Level;

use super::channel::{Channel, ChannelError, FlushError, ReceivedMessage};
use super::doorbells::Doorbells;
use super::keeper::{Keeper, remove_record};
use super::keys::{FrontendKeys, KeyError};
use super::queue_groups::ClosedDevice;
use super::scheduler::clock::KernelClock;
use super::scheduler::{Step, Woken};
use super::session::Context;
use super::transport::{Answered, Effects, TakeOverError, Transport};
use crate::Causes;
use crate::device::{AwaitedFd, Source, VirtioDevice};
use crate::dma::DmaMemory;
use crate::domain::Domain;
use crate::guest::Guest;
use crate::record::{self, ConnectionId, DriverSetup, MessageMark, OwedReset, Record, RecordError};
use crate::stats::DeviceStats;
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
    /// The connection of an earlier process cannot be taken over.
    #[error("cannot go on where an earlier process stopped")]
    TakeOver(#[from] TakeOverError),
    /// The record of an earlier process cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
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
    queue_resets: Vec<OwedReset>,
    /// The record for another process; `None` if none can take the device over.
    keeper: Option<Keeper>,
    /// The answer to the last request that changed what the driver has set up.
    answered: Option<record::Answered>,
    stats: Arc<DeviceStats>,
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
        let Context { path, guest: Guest { budget, .. }, service, stats, .. } = context;
        let mut memory = DmaMemory::new(self.platform, Arc::clone(stats), Arc::clone(budget));
        memory.limit_pool(service.pool.pages());
        let max_size = self.channel.max_size();
        let (xen, guest) = (xen.clone(), path.guest);
        let open = Arc::new(move || xen.events(guest));
        let transport = Transport::new(device, memory, service, max_size, open, Arc::clone(stats));
        Connection {
            doorbells: Doorbells::new(self.events, Some(self.channel.port())),
            channel: self.channel,
            transport,
            more_messages: false,
            queue_resets: Vec::new(),
            keeper: None,
            answered: None,
            stats: Arc::clone(stats),
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

    /// Connects `device` where an earlier process stopped, which wrote `record`.
    ///
    /// # Errors
    /// As for [`Connection::open`].
    pub fn take_over(
        xen: &X,
        context: &Context,
        keys: FrontendKeys,
        device: BoxedDevice<X>,
        (record, id): (Record, ConnectionId),
    ) -> Result<Self, OpenError<X>> {
        let mut connection = Self::open(xen, context, keys, device)?;
        match connection.go_on(context, record, id) {
            Ok(()) => Ok(connection),
            // The record stays, for another attempt.
            Err(error) => {
                // Where this fails for good, nobody needs what was to outlive the process.
                if !error.may_pass() {
                    connection.transport.keep_no_more();
                }
                Err(OpenError { error, device: connection.close().device })
            }
        }
    }

    fn go_on(
        &mut self,
        context: &Context,
        mut record: Record,
        id: ConnectionId,
    ) -> Result<(), ConnectionError> {
        let setup = record.setup()?;
        if !self.transport.can_be_taken_over() {
            return Err(TakeOverError::NotAgain.into());
        }
        let fault = context.fault.as_deref();
        self.transport.take_over(&setup, &record, fault, &mut self.doorbells.channels)?;
        self.channel.take_over(record.mark(), setup.answered.as_ref());
        if !self.channel.has_response() {
            // The request is done again. What is sent before its response is not the response.
            record.set_mark(MessageMark::NONE);
        }
        self.answered = setup.answered;
        self.queue_resets = setup.owed_resets;
        let records = context.records.as_ref();
        self.keeper = records.map(|records| Keeper::of(records, &context.path, id, record));
        // The earlier process may have owed the driver any notification.
        let used = self.transport.queues_without_doorbell();
        self.send(Effects { used, config: true });
        self.more_messages = true;
        self.save();
        Ok(())
    }

    /// Keeps a record from now on, if another process could go on with the device.
    pub fn keep(&mut self, context: &Context, id: ConnectionId) {
        let Some(records) = &context.records else { return };
        if !self.transport.can_be_taken_over() {
            // One of an earlier connection.
            return remove_record(&**records, &context.path.record_name(), &self.stats);
        }
        match Keeper::create(records, &context.path, id, self.transport.queue_sizes()) {
            Ok(keeper) => {
                self.transport.keep(keeper.record());
                self.keeper = Some(keeper);
                self.save();
            }
            Err(error) => self.give_record_up(&error),
        }
    }

    /// Saves what the driver has set up.
    fn save(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let owed_resets = self.queue_resets.clone();
        let mut setup = DriverSetup { owed_resets, ..DriverSetup::default() };
        self.transport.record(&mut setup);
        let saved = match self.transport.is_recorded() {
            true => keeper.save(setup, self.answered.clone()),
            false => Err(RecordError::NoQueue),
        };
        if let Err(error) = saved {
            self.give_record_up(&error);
        }
        // All groups were halted.
        self.transport.resume();
    }

    /// Goes on without a record.
    fn give_record_up(&mut self, error: &RecordError) {
        let what = format_args!("the device will end with this process: {}", Causes(error));
        self.stats.log.line(Level::WARN, what);
        self.remove_record();
    }

    fn remove_record(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.remove(&self.stats);
            self.transport.keep_no_more();
        }
    }

    /// Whether another process can go on with the connection.
    pub fn can_be_taken_over(&self) -> bool {
        self.keeper.is_some()
    }

    /// As [`Connection::close`], for another process to go on with the connection.
    pub fn leave(mut self) -> ClosedDevice<DmaMemory<X::Platform>> {
        self.keeper = None;
        self.transport.leave_note();
        self.close()
    }

    /// Unmaps the guest's pages, closes its event channels and returns the device.
    pub fn close(mut self) -> ClosedDevice<DmaMemory<X::Platform>> {
        self.remove_record();
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
                    if let (Request::SetVqueue(update), Some(keeper)) = (&request, &self.keeper) {
                        self.transport.keep_queue(update.index as usize, keeper.record());
                    }
                    let Answered { response, effects } =
                        self.transport.answer(request, &mut self.doorbells.channels, &mut scratch);
                    match request {
                        Request::ResetVqueue { index } => self.owe_reset(token, index)?,
                        _ => self.respond(&Message::response(token, response), changes(&request)),
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

    /// Sends the response to a request. If that changed what the driver has set up, the record has
    /// both before: whoever finds the request in its slot knows whether it was carried out.
    fn respond(&mut self, message: &Message<'_>, changes: Changes) {
        self.channel.respond(message);
        let mark = self.channel.mark();
        self.keeper.iter_mut().for_each(|keeper| keeper.set_mark(mark));
        if changes == Changes::Setup {
            let answered = |response: &[u8]| {
                let response = response.to_vec();
                record::Answered { message: mark.message, response }
            };
            self.answered = self.channel.response().map(answered);
            self.save();
        }
    }

    /// Answers the reset of a queue as soon as the device uses no buffer of the queue.
    fn owe_reset(&mut self, token: u16, queue: u32) -> Result<(), FlushError> {
        self.forget_reset_queue(queue);
        // A driver waits for each response before its next request.
        if self.queue_resets.len() < MOST_QUEUE_RESETS {
            self.queue_resets.push(OwedReset { token, queue });
        }
        self.save();
        self.channel.free_request();
        self.answer_queue_resets()
    }

    /// Answers resets of queues of which the device uses no buffer any more [6.7].
    fn answer_queue_resets(&mut self) -> Result<(), FlushError> {
        if self.queue_resets.is_empty() {
            return Ok(());
        }
        while !self.channel.has_response() {
            let transport = &mut self.transport;
            let is_over = |reset: &OwedReset| !transport.is_queue_draining(reset.queue);
            let Some(position) = self.queue_resets.iter().position(is_over) else { break };
            let OwedReset { token, .. } = self.queue_resets.remove(position);
            self.channel.respond(&Message::response(token, Response::ResetVqueue));
            self.channel.flush(&mut self.doorbells.channels)?;
            // A response that is sent twice has a token that the driver does not expect.
            self.save();
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
            // A fault changes the status too.
            self.save();
            let (status, generation) = self.transport.status_and_generation();
            self.channel.queue_config_event(status, generation);
        }
    }
}

impl ConnectionError {
    /// Whether the same may succeed soon: a resource is missing, or the earlier process has not let
    /// go of it yet.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Channel(_) | Self::Event(_) | Self::Handle(_) => true,
            Self::TakeOver(error) => error.may_pass(),
            Self::Keys(_) | Self::Page(_) | Self::Flush(_) | Self::Record(_) => false,
        }
    }
}

/// Whether a request changes what the driver has set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    Setup,
    Nothing,
}

fn changes(request: &Request<'_>) -> Changes {
    match request {
        Request::SetDriverFeatures(_)
        | Request::SetConfig(_)
        | Request::SetDeviceStatus(_)
        | Request::SetVqueue(_)
        | Request::ResetVqueue { .. }
        | Request::BindQueue { .. }
        | Request::SharePages { .. }
        | Request::UnsharePages { .. } => Changes::Setup,
        Request::GetDeviceInfo
        | Request::GetDeviceFeatures { .. }
        | Request::GetConfig { .. }
        | Request::GetDeviceStatus
        | Request::GetVqueue { .. }
        | Request::GetShm { .. }
        | Request::Ping(_) => Changes::Nothing,
    }
}
