//! The message page and its event channel: receives messages, sends responses and events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::binding::RECOMMENDED_MESSAGE_SIZE;
use protocol::message::{Body, ConfigChange, Event, Message};
use protocol::page::{Consumer, Corrupt, Popped, Producer, PushError, QueueDirection, SLOT_SIZE};

use super::keys::FrontendKeys;
use crate::dma::budget::{BudgetError, GuestBudget, Purpose, Reservation};
use crate::record::{Answered, MessageMark};
use crate::stats::DeviceStats;
use xen::mapped::MappedRange;
use xen::{Access, EventChannels, EventError, GrantTable, LocalPort, MapError};

/// A channel that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The page cannot be mapped.
    #[error("cannot map the message page")]
    Page(#[from] MapError),
    /// The event channel cannot be bound.
    #[error("cannot bind the message page's event channel")]
    Event(#[from] EventError),
    /// The mapping would exceed a budget.
    #[error("no capacity for the message page")]
    Budget(#[from] BudgetError),
}

/// Messages that wait for a free slot in the queue to the driver. Bounded: at most one of each
/// kind, and one used event for each queue [4.5].
#[derive(Debug, Default)]
struct Waiting {
    response: Option<Vec<u8>>,
    config: Option<(u32, u32)>,
    used: BTreeSet<u32>,
}

/// The result of [`Channel::receive`].
#[derive(Debug)]
pub enum ReceivedMessage<'b> {
    /// The queue is empty, or a response still waits for a slot.
    Nothing,
    /// A malformed message, which gets no answer [5.3].
    Dropped,
    /// A well-formed message.
    Message(Message<'b>),
}

/// The device's end of the message page.
pub struct Channel<P> {
    page: P,
    _reservation: Reservation,
    port: LocalPort,
    from_driver: Consumer,
    to_driver: Producer,
    /// A request is in its slot until its response is in the page: if this process dies, another
    /// one answers it.
    holds_request: bool,
    max_size: usize,
    waiting: Waiting,
    stats: Arc<DeviceStats>,
}

impl<P: AsRef<MappedRange>> Channel<P> {
    /// Maps the page and binds the event channel [2.5].
    ///
    /// # Errors
    /// [`ChannelError`]; then no page is mapped and no port is bound.
    pub fn open<G: GrantTable<Pages = P>>(
        grants: &G,
        events: &mut impl EventChannels,
        keys: FrontendKeys,
        budget: &Arc<GuestBudget>,
        stats: Arc<DeviceStats>,
    ) -> Result<Self, ChannelError> {
        let reservation = budget.reserve(1, Purpose::Rings)?;
        let page = grants.map(&[keys.page], Access::ReadWrite)?;
        let port = events.bind(keys.port)?;
        stats.grants_mapped.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            page,
            _reservation: reservation,
            port,
            from_driver: Consumer::new(QueueDirection::DriverToDevice),
            to_driver: Producer::new(QueueDirection::DeviceToDriver),
            holds_request: false,
            max_size: (RECOMMENDED_MESSAGE_SIZE as usize).min(SLOT_SIZE),
            waiting: Waiting::default(),
            stats,
        })
    }

    /// Goes on where an earlier process stopped. `answered` is the latest answer of its that its
    /// record has.
    pub fn take_over(&mut self, mark: MessageMark, answered: Option<&Answered>) {
        let Some(words) = self.page.as_ref().page_words() else { return };
        self.from_driver = Consumer::take_over(QueueDirection::DriverToDevice, words);
        self.to_driver = Producer::take_over(QueueDirection::DeviceToDriver, words);
        if mark.message != self.from_driver.index() {
            return;
        }
        if mark.response != self.to_driver.index() {
            // The response has left.
            self.from_driver.free(words);
        } else if let Some(answered) = answered.filter(|it| it.message == mark.message) {
            self.waiting.response = Some(answered.response.clone());
            self.holds_request = true;
        }
    }

    /// The mark of the request that is being answered.
    pub fn mark(&self) -> MessageMark {
        MessageMark { message: self.from_driver.index(), response: self.to_driver.index() }
    }

    /// Frees the slot of a request before its response is sent.
    pub fn free_request(&mut self) {
        if let Some(words) = self.page.as_ref().page_words()
            && std::mem::take(&mut self.holds_request)
        {
            self.from_driver.free(words);
        }
    }

    /// The response that waits for a slot.
    pub fn response(&self) -> Option<&[u8]> {
        self.waiting.response.as_deref()
    }

    /// The local port of the event channel.
    pub fn port(&self) -> LocalPort {
        self.port
    }

    /// Maximum message size in bytes.
    pub fn max_size(&self) -> usize {
        self.max_size
    }

    /// Closes the event channel; dropping the channel unmaps the page.
    pub fn close(self, events: &mut impl EventChannels) {
        events.unbind(self.port);
    }

    /// Whether [`Channel::receive`] would find a message.
    pub fn has_news(&self) -> bool {
        let words = self.page.as_ref().page_words();
        self.waiting.response.is_none()
            && words.is_some_and(|words| self.from_driver.has_news(words))
    }

    /// Copies the next message out of the page. Returns none while a response waits for a slot:
    /// then the driver's queue fills up, and not this process's memory.
    ///
    /// # Errors
    /// [`Corrupt`]: the device must not read the page any more [4.4].
    pub fn receive<'b>(
        &mut self,
        buffer: &'b mut [u8; SLOT_SIZE],
    ) -> Result<ReceivedMessage<'b>, Corrupt> {
        let words = self.page.as_ref().page_words();
        let Some(words) = words.filter(|_| self.waiting.response.is_none()) else {
            return Ok(ReceivedMessage::Nothing);
        };
        let popped = self.from_driver.peek(words, self.max_size, buffer)?;
        if popped != Popped::Empty {
            DeviceStats::count(&self.stats.messages);
        }
        let size = match popped {
            Popped::Empty => return Ok(ReceivedMessage::Nothing),
            Popped::Message { size } => size,
            Popped::Malformed { size } => {
                self.from_driver.free(words);
                self.note_dropped(&format_args!("its header gives {size} bytes"));
                return Ok(ReceivedMessage::Dropped);
            }
        };
        // A size beyond the buffer yields an empty slice, which does not decode and is dropped.
        match Message::decode(buffer.get(..size).unwrap_or(&[])) {
            Ok(message) => {
                self.holds_request = matches!(message.body, Body::Request(_));
                if !self.holds_request {
                    self.from_driver.free(words);
                }
                Ok(ReceivedMessage::Message(message))
            }
            Err(error) => {
                self.from_driver.free(words);
                self.note_dropped(&error);
                Ok(ReceivedMessage::Dropped)
            }
        }
    }

    /// Counts and logs a message that gets no answer [5.3].
    pub fn note_dropped(&self, why: &dyn std::fmt::Display) {
        DeviceStats::count(&self.stats.malformed_messages);
        tracing::debug!("message dropped: {why}");
    }

    /// Whether a response waits for a slot.
    pub fn has_response(&self) -> bool {
        self.waiting.response.is_some()
    }

    /// Queues a response for the next [`Channel::flush`]; none may wait.
    pub fn respond(&mut self, message: &Message<'_>) {
        let mut buffer = [0; SLOT_SIZE];
        let (message_buffer, _) = buffer.split_at_mut(self.max_size.min(SLOT_SIZE));
        match message.encode(message_buffer) {
            Ok(size) => self.waiting.response = buffer.get(..size).map(<[u8]>::to_vec),
            Err(error) => {
                tracing::error!(%error, "internal error: response lost");
                self.free_request();
            }
        }
    }

    /// Queues EVENT_CONFIG with the status and the configuration's generation, in place of an
    /// earlier one that is not sent yet.
    pub fn queue_config_event(&mut self, status: u32, generation: u32) {
        self.waiting.config = Some((status, generation));
    }

    /// Queues EVENT_USED for a queue without a doorbell.
    pub fn queue_used_event(&mut self, index: u32) {
        self.waiting.used.insert(index);
    }

    /// Drops the queued events of a device that was reset.
    pub fn drop_events(&mut self) {
        (self.waiting.config, self.waiting.used) = (None, BTreeSet::new());
    }

    /// Drops the queued event of a queue that was reset.
    pub fn drop_used_event(&mut self, index: u32) {
        self.waiting.used.remove(&index);
    }

    /// Sends queued messages while slots are free. Notifies the driver if it sent one, or if the
    /// driver waits for a slot that the device has freed.
    ///
    /// # Errors
    /// [`FlushError`]: the page is corrupt or the event channel fails.
    pub fn flush(&mut self, events: &mut impl EventChannels) -> Result<(), FlushError> {
        let mut signal = false;
        let outcome = loop {
            match self.send_one() {
                Ok(true) => signal = true,
                Ok(false) => break Ok(()),
                Err(corrupt) => break Err(corrupt),
            }
        };
        signal |= self.from_driver.take_saw_full();
        if signal {
            DeviceStats::count(&self.stats.events_sent);
            events.notify(self.port)?;
        }
        Ok(outcome?)
    }

    /// Sends the most urgent queued message; `false` if none is queued or no slot is free.
    fn send_one(&mut self) -> Result<bool, Corrupt> {
        if let Some(response) = &self.waiting.response {
            let sent = push(&mut self.to_driver, &self.page, response)?;
            if sent {
                self.waiting.response = None;
                self.free_request();
            }
            return Ok(sent);
        }
        if let Some((status, generation)) = self.waiting.config {
            // Without a range, since one event may replace several [4.5].
            let config = ConfigChange::anywhere(generation);
            let sent = self.send_event(Event::Config { status, config })?;
            if sent {
                self.waiting.config = None;
            }
            return Ok(sent);
        }
        let Some(index) = self.waiting.used.first().copied() else {
            return Ok(false);
        };
        let sent = self.send_event(Event::Used { index })?;
        if sent {
            self.waiting.used.remove(&index);
        }
        Ok(sent)
    }

    fn send_event(&mut self, event: Event<'_>) -> Result<bool, Corrupt> {
        let mut buffer = [0; SLOT_SIZE];
        let encoded = Message::event(event).encode(&mut buffer);
        match encoded.map(|size| buffer.get(..size)) {
            Ok(Some(bytes)) => push(&mut self.to_driver, &self.page, bytes),
            Ok(None) | Err(_) => {
                tracing::error!(?event, "internal error: event lost");
                Ok(true)
            }
        }
    }
}

impl<P> Drop for Channel<P> {
    fn drop(&mut self) {
        self.stats.grants_mapped.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A failure to send messages to the driver.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The page is corrupt.
    #[error(transparent)]
    Page(#[from] Corrupt),
    /// The event channel cannot be notified.
    #[error(transparent)]
    Event(#[from] EventError),
}

fn push(
    to_driver: &mut Producer,
    page: &impl AsRef<MappedRange>,
    message: &[u8],
) -> Result<bool, Corrupt> {
    let Some(words) = page.as_ref().page_words() else {
        return Ok(false);
    };
    match to_driver.push(words, message) {
        Ok(()) => Ok(true),
        Err(PushError::Full | PushError::TooLong) => Ok(false),
        Err(PushError::Corrupt(corrupt)) => Err(corrupt),
    }
}
