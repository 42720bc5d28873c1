//! The driver's end of the message page (SPEC sections 4 and 5): one request at a time, its
//! response, and the device's events and PINGs.
//!
//! The transport decodes messages from a private copy, and checks a response against its request
//! before it returns it to the caller. An impossible index in the page breaks the transport for
//! good [4.4].

mod answer;
mod pending_queues;
#[cfg(test)]
mod tests;

use protocol::binding::Negotiated;
use protocol::message::{Body, Event, HEADER_SIZE, Message, Request, Response};
use protocol::page::{Consumer, PageWords, Popped, Producer, PushError, QueueDirection, SLOT_SIZE};

use pending_queues::PendingQueues;
pub use pending_queues::{MAX_ENTRIES, MAX_QUEUES, ring_size};

/// Size in bytes of the fields before the data of GET_CONFIG's response and of SET_CONFIG:
/// generation, offset, size.
const CONFIG_FIELDS: usize = 12;

/// The reason why the transport did not send a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The caller has not taken the answer to the earlier request [5.4].
    Busy,
    /// The queue in the page is full. The device signals after it has freed a slot [4.5].
    Full,
    /// The message is longer than the negotiated maximum.
    TooLong,
    /// The queue number is not below [`MAX_QUEUES`].
    NoSuchQueue,
    /// The range is not within the device's configuration space [6.6].
    OutsideConfig,
    /// The page is corrupt, or the driver gave the device up.
    Broken,
}

/// The result of [`Transport::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The page holds no more messages.
    Drained {
        /// Whether the caller must signal the event channel: the device may wait for a free slot,
        /// or the transport has sent delayed messages [4.5].
        signal: bool,
    },
    /// The transport dropped and counted a message [5.3, 5.4, 5.9].
    Dropped,
    /// The outstanding request has its answer, which [`Transport::take_answer`] returns.
    Answer,
    /// The device's status or configuration changed.
    ConfigChanged {
        /// The current status byte.
        status: u32,
    },
    /// The device sent PING. The transport answers when the page is drained [5.9].
    Pinged,
    /// A queue without a doorbell has used buffers.
    Used {
        /// Queue number, which may be one that the device does not have.
        index: u32,
    },
    /// The page is corrupt, or the driver gave the device up: the transport receives no more.
    Broken,
}

/// The device's answer does not match the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch;

/// Numbers of messages from the device that the transport dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Malformed messages, and those of a kind that a device does not send [5.3].
    pub malformed: u64,
    /// Responses without an outstanding request [5.4], and PINGs that came before the transport
    /// had answered the first one [5.9].
    pub unexpected: u64,
}

/// State of the one request that may be outstanding [5.4].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exchange {
    Idle,
    /// The request is sent; `request` keeps its `size` bytes to check the answer against.
    Waiting {
        token: u16,
        size: usize,
    },
    /// `answer` holds `size` bytes that match the request.
    Answered {
        size: usize,
    },
    /// The answer did not match the request.
    Mismatched,
}

/// A PING of the device that the transport has yet to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ping {
    token: u16,
    number: u32,
}

/// The driver's end of a message page.
#[derive(Debug)]
pub struct Transport {
    to_device: Producer,
    from_device: Consumer,
    max_size: usize,
    token: u16,
    exchange: Exchange,
    generation: u32,
    /// Size of the configuration space in bytes, once GET_DEVICE_INFO has returned it.
    config_size: Option<u32>,
    ping: Option<Ping>,
    delayed: PendingQueues,
    counters: Counters,
    broken: bool,
    request: [u8; SLOT_SIZE],
    inbox: [u8; SLOT_SIZE],
    answer: [u8; SLOT_SIZE],
}

impl Transport {
    /// Creates the driver's end of a zeroed page.
    pub const fn new(negotiated: Negotiated) -> Self {
        Self {
            to_device: Producer::new(QueueDirection::DriverToDevice),
            from_device: Consumer::new(QueueDirection::DeviceToDriver),
            max_size: negotiated.max_message_size as usize,
            token: 0,
            exchange: Exchange::Idle,
            generation: 0,
            config_size: None,
            ping: None,
            delayed: PendingQueues::EMPTY,
            counters: Counters { malformed: 0, unexpected: 0 },
            broken: false,
            request: [0; SLOT_SIZE],
            inbox: [0; SLOT_SIZE],
            answer: [0; SLOT_SIZE],
        }
    }

    /// Sends a request. The caller then signals the event channel, calls [`Transport::receive`] on
    /// each signal from the device until it returns [`Received::Answer`], and takes the answer.
    ///
    /// # Errors
    /// [`SendError`] if the transport sent nothing.
    pub fn send(&mut self, page: &PageWords, request: Request<'_>) -> Result<(), SendError> {
        if self.broken {
            return Err(SendError::Broken);
        }
        if self.exchange != Exchange::Idle {
            return Err(SendError::Busy);
        }
        if self.is_outside_config(&request) {
            return Err(SendError::OutsideConfig);
        }
        let token = self.token.wrapping_add(1);
        let size = Message::request(token, request)
            .encode(front_mut(&mut self.request, self.max_size))
            .map_err(|_| SendError::TooLong)?;
        let pushed = self.to_device.push(page, front(&self.request, size));
        self.check(pushed)?;
        self.token = token;
        self.exchange = Exchange::Waiting { token, size };
        Ok(())
    }

    /// Notifies the device in band that a queue has available buffers [5.6, 5.10]; returns whether
    /// the caller must signal the event channel. If the page is full, [`Transport::receive`] sends
    /// the event once the device has freed a slot; it sends one for each queue [4.5].
    ///
    /// # Errors
    /// [`SendError::NoSuchQueue`] and [`SendError::Broken`].
    pub fn event_avail(&mut self, page: &PageWords, index: u32) -> Result<bool, SendError> {
        if self.broken {
            return Err(SendError::Broken);
        }
        match self.push_avail(page, index) {
            Err(SendError::Full) if self.delayed.insert(index) => Ok(false),
            Err(SendError::Full) => Err(SendError::NoSuchQueue),
            pushed => pushed.map(|()| true),
        }
    }

    /// Takes one message out of the page. On each signal, callers repeat this until it returns
    /// [`Received::Drained`] or [`Received::Broken`].
    pub fn receive(&mut self, page: &PageWords) -> Received {
        if self.broken {
            return Received::Broken;
        }
        match self.from_device.pop(page, self.max_size, &mut self.inbox) {
            Ok(Popped::Message { size }) => self.accept(size),
            Ok(Popped::Malformed { .. }) => self.drop_malformed(),
            Ok(Popped::Empty) => self.end_drain(page),
            Err(_) => self.fail(),
        }
    }

    /// Returns the answer to the outstanding request once; `None` before it arrives. The answer
    /// matches the request in every field that the request determines.
    pub fn take_answer(&mut self) -> Option<Result<Response<'_>, Mismatch>> {
        let size = match self.exchange {
            Exchange::Idle | Exchange::Waiting { .. } => return None,
            Exchange::Answered { size } => Some(size),
            Exchange::Mismatched => None,
        };
        self.exchange = Exchange::Idle;
        Some(size.map_or(Err(Mismatch), |size| {
            answer::response(front(&self.answer, size)).ok_or(Mismatch)
        }))
    }

    /// Gives the device up: from now on the transport sends and receives nothing.
    pub fn give_up(&mut self) {
        self.broken = true;
    }

    /// Whether the transport sends and receives nothing any more.
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// The configuration generation in the device's last message that carried one.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The numbers of messages that the transport has dropped.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The maximum number of configuration bytes in one GET_CONFIG response or SET_CONFIG [5.5].
    pub const fn max_config_bytes(&self) -> u32 {
        self.max_size.saturating_sub(HEADER_SIZE + CONFIG_FIELDS) as u32
    }

    /// Whether a request exceeds the configuration space; `false` while its size is unknown.
    fn is_outside_config(&self, request: &Request<'_>) -> bool {
        let (offset, size) = match *request {
            Request::GetConfig { offset, size } => (offset, size),
            Request::SetConfig(config) => (config.offset, config.data.len() as u32),
            _ => return false,
        };
        let end = u64::from(offset) + u64::from(size);
        self.config_size.is_some_and(|known| end > u64::from(known))
    }

    fn push_pong(&mut self, page: &PageWords, ping: Ping) -> Result<(), SendError> {
        let mut bytes = [0; HEADER_SIZE + 4];
        let pong = Message::response(ping.token, Response::Ping(ping.number));
        let size = pong.encode(&mut bytes).map_err(|_| SendError::TooLong)?;
        let pushed = self.to_device.push(page, front(&bytes, size));
        self.check(pushed)
    }

    fn push_avail(&mut self, page: &PageWords, index: u32) -> Result<(), SendError> {
        let mut bytes = [0; HEADER_SIZE + 8];
        let event = Event::Avail { index, next_offset_wrap: 0 };
        let size = Message::event(event).encode(&mut bytes).map_err(|_| SendError::TooLong)?;
        let pushed = self.to_device.push(page, front(&bytes, size));
        self.check(pushed)
    }

    /// Breaks the transport on a corrupt page [4.4].
    fn check(&mut self, pushed: Result<(), PushError>) -> Result<(), SendError> {
        pushed.map_err(|error| match error {
            PushError::Full => SendError::Full,
            PushError::TooLong => SendError::TooLong,
            PushError::Corrupt(_) => {
                self.broken = true;
                SendError::Broken
            }
        })
    }

    fn fail(&mut self) -> Received {
        self.broken = true;
        Received::Broken
    }

    fn drop_malformed(&mut self) -> Received {
        self.counters.malformed = self.counters.malformed.saturating_add(1);
        Received::Dropped
    }

    /// Ends a drain of the page: sends delayed messages, and decides whether to signal the device.
    fn end_drain(&mut self, page: &PageWords) -> Received {
        let mut signal = self.from_device.take_saw_full();
        if let Some(ping) = self.ping {
            match self.push_pong(page, ping) {
                Ok(()) => (self.ping, signal) = (None, true),
                Err(SendError::Broken) => return Received::Broken,
                // The page is full; the next drain tries again.
                Err(_) => {}
            }
        }
        while let Some(index) = self.delayed.first() {
            match self.push_avail(page, index) {
                Ok(()) => self.delayed.remove(index),
                Err(SendError::Broken) => return Received::Broken,
                Err(_) => break,
            }
            signal = true;
        }
        Received::Drained { signal }
    }

    /// Acts on the message in the inbox.
    fn accept(&mut self, size: usize) -> Received {
        let Ok(message) = Message::decode(front(&self.inbox, size)) else {
            return self.drop_malformed();
        };
        match message.body {
            Body::Event(Event::Config { status, config }) => {
                self.generation = config.generation;
                Received::ConfigChanged { status }
            }
            Body::Event(Event::Used { index }) => Received::Used { index },
            Body::Request(Request::Ping(number)) => {
                self.accept_ping(Ping { token: message.token, number })
            }
            // Only a driver sends these.
            Body::Event(Event::Avail { .. }) | Body::Request(_) => self.drop_malformed(),
            Body::Response(_) => self.accept_response(message.token, size),
        }
    }

    /// Keeps one PING to answer, and drops others that arrive before the answer is sent [5.9].
    fn accept_ping(&mut self, ping: Ping) -> Received {
        if self.ping.is_some() {
            return self.drop_unexpected();
        }
        self.ping = Some(ping);
        Received::Pinged
    }

    fn drop_unexpected(&mut self) -> Received {
        self.counters.unexpected = self.counters.unexpected.saturating_add(1);
        Received::Dropped
    }

    /// Acts on the response in the inbox.
    fn accept_response(&mut self, token: u16, size: usize) -> Received {
        let asked = match self.exchange {
            Exchange::Waiting { token: sent, size } if sent == token => size,
            _ => return self.drop_unexpected(),
        };
        let request = front(&self.request, asked);
        let response = front(&self.inbox, size);
        self.exchange = match answer::check(request, response) {
            Ok(learnt) => {
                self.generation = learnt.generation.unwrap_or(self.generation);
                self.config_size = learnt.config_size.or(self.config_size);
                self.answer = self.inbox;
                Exchange::Answered { size }
            }
            Err(Mismatch) => Exchange::Mismatched,
        };
        Received::Answer
    }
}

/// The first `size` bytes, or all bytes if there are fewer.
fn front(bytes: &[u8], size: usize) -> &[u8] {
    bytes.get(..size).unwrap_or(bytes)
}

/// The first `size` bytes, or all bytes if there are fewer.
fn front_mut(bytes: &mut [u8], size: usize) -> &mut [u8] {
    let size = size.min(bytes.len());
    bytes.get_mut(..size).unwrap_or(&mut [])
}
