//! Control messages: which ports there are, and which are open (virtio 1.3 section 5.3.6.2).

use std::collections::VecDeque;

use super::input::{fill, wrong};
use super::pty::Size;
use crate::device::{DeviceMemory, Fault, QueueContext, VirtioRequest};

/// The queue for messages to the driver.
pub const CONTROL_RECEIVE: usize = 2;
/// The queue for messages from the driver.
pub const CONTROL_TRANSMIT: usize = 3;
/// Messages to the driver that may wait for a buffer (SPEC section 7).
const MOST_WAITING: usize = 64;

/// What happens to a port, as numbers.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const RESIZE: u16 = 5;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// A message of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromDriver {
    /// It is ready for events of ports.
    DeviceReady,
    /// It is ready to use a port.
    PortReady(u32),
    /// An application opened a port, or closed it.
    PortOpen(u32, bool),
    /// Something else; ignored.
    Unknown,
}

impl FromDriver {
    fn parse(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, event_low, event_high, value_low, value_high] = bytes;
        let port = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([value_low, value_high]) != 0;
        match (u16::from_le_bytes([event_low, event_high]), value) {
            (event::DEVICE_READY, true) => Self::DeviceReady,
            (event::PORT_READY, true) => Self::PortReady(port),
            (event::PORT_OPEN, open) => Self::PortOpen(port, open),
            _ => Self::Unknown,
        }
    }
}

/// A message to the driver, about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToDriver<'a> {
    /// The port is there.
    PortAdd,
    /// It is a console.
    ConsolePort,
    /// The console has this size.
    Resize(Size),
    /// The host's end is open, or not.
    PortOpen(bool),
    /// The port has a name.
    PortName(&'a str),
}

impl ToDriver<'_> {
    fn encode(self, port: u32) -> Vec<u8> {
        let (event, value) = match self {
            Self::PortAdd => (event::PORT_ADD, 1),
            Self::ConsolePort => (event::CONSOLE_PORT, 1),
            Self::Resize(_) => (event::RESIZE, 0),
            Self::PortOpen(open) => (event::PORT_OPEN, u16::from(open)),
            Self::PortName(_) => (event::PORT_NAME, 1),
        };
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(u16::to_le_bytes(value));
        match self {
            // Columns first, as the specification has it; Linux once took the rows first.
            Self::Resize(size) => {
                bytes.extend(size.columns.to_le_bytes());
                bytes.extend(size.rows.to_le_bytes());
            }
            Self::PortName(name) => bytes.extend(name.as_bytes()),
            Self::PortAdd | Self::ConsolePort | Self::PortOpen(_) => {}
        }
        bytes
    }
}

/// Messages on their way to the driver.
#[derive(Debug, Default)]
pub struct ControlQueue {
    /// At most [`MOST_WAITING`].
    waiting: VecDeque<Vec<u8>>,
    /// A message of the driver's that was taken from the ring, and whose answers have found no
    /// capacity.
    heard: Option<FromDriver>,
    /// The driver gave no buffer; its doorbell tells of the next.
    starved: bool,
    /// Messages of the driver's stay in the ring until some to it have left.
    held: bool,
}

impl ControlQueue {
    /// Forgets all.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// How many messages more may wait.
    pub fn capacity(&self) -> usize {
        MOST_WAITING.saturating_sub(self.waiting.len())
    }

    /// Has the driver told. To be called only while there is capacity: what finds none is lost.
    pub fn queue(&mut self, port: u32, what: ToDriver<'_>) {
        if self.capacity() > 0 {
            self.waiting.push_back(what.encode(port));
        }
    }

    /// The doorbell of the receive queue rang.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn refill<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        self.starved = false;
        self.send(queues)
    }

    /// Gives the driver what waits for it: a batch.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn send<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        if self.waiting.is_empty() || self.starved {
            return Ok(());
        }
        let (requests, fault) = queues.take(CONTROL_RECEIVE, self.waiting.len());
        if requests.is_empty() && fault.is_none() {
            self.starved = true;
            queues.mark_idle(CONTROL_RECEIVE);
            return Ok(());
        }
        let mut done = Vec::with_capacity(requests.len());
        for request in &requests {
            let message = self.waiting.pop_front().unwrap_or_default();
            let count = fill(request, queues.memory(), &message)?;
            if count as usize != message.len() {
                return Err(wrong(request, "a buffer that no control message fits in"));
            }
            done.push((request.head, count));
        }
        queues.give_back(CONTROL_RECEIVE, &done)?;
        queues.reschedule(CONTROL_RECEIVE);
        if std::mem::take(&mut self.held) {
            queues.reschedule(CONTROL_TRANSMIT);
        }
        fault.map_or(Ok(()), Err)
    }

    /// The driver's next message, if there is one and there is capacity for an answer.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn next<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<Option<FromDriver>, Fault> {
        if self.capacity() == 0 {
            self.held = true;
            return Ok(None);
        }
        let mut heard = self.heard.take();
        if heard.is_none() {
            queues.process_some(CONTROL_TRANSMIT, 1, |request, memory| {
                heard = Some(take(request, memory)?);
                Ok(0)
            })?;
        }
        Ok(heard)
    }

    /// Keeps a message until there is more capacity.
    pub fn put_back(&mut self, message: FromDriver) {
        (self.heard, self.held) = (Some(message), true);
    }
}

fn take<M: DeviceMemory>(request: &VirtioRequest, memory: &M) -> Result<FromDriver, Fault> {
    let mut bytes = [0; 8];
    let front = request.readable().split_front(bytes.len() as u64);
    let front = front.ok_or_else(|| wrong(request, "less than a control message"))?;
    front.copy_to(memory, &mut bytes)?;
    Ok(FromDriver::parse(bytes))
}
