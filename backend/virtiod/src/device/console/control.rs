//! Control messages, which announce ports and whether they are open (virtio 1.3 section 5.3.6.2).

use std::collections::VecDeque;

use super::input::{fill, wrong};
use super::pty::Size;
use crate::device::{DeviceMemory, Fault, QueueContext, VirtioRequest};

/// The queue for messages to the driver.
pub const CONTROL_RECEIVE: usize = 2;
/// The queue for messages from the driver.
pub const CONTROL_TRANSMIT: usize = 3;
/// Maximum number of messages to the driver that wait for a buffer (SPEC section 7).
const MOST_WAITING: usize = 64;

/// Numbers of port events.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const RESIZE: u16 = 5;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// A message from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromDriver {
    /// The driver is ready for port events.
    DeviceReady,
    /// The driver is ready to use a port.
    PortReady(u32),
    /// An application in the guest opened a port, or closed it.
    PortOpen(u32, bool),
    /// Any other message, which the device ignores.
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
    /// The port exists.
    PortAdd,
    /// The port is a console.
    ConsolePort,
    /// The console has this size.
    Resize(Size),
    /// The host's end is open, or closed.
    PortOpen(bool),
    /// The port has this name.
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
            // Columns first, as the specification says; Linux once read the rows first.
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

/// The queue of control messages in both directions.
#[derive(Debug, Default)]
pub struct ControlQueue {
    /// At most [`MOST_WAITING`].
    waiting: VecDeque<Vec<u8>>,
    /// A message from the driver that was taken from the ring, and for whose answers there was no
    /// capacity.
    heard: Option<FromDriver>,
    /// The receive queue is empty; the driver's doorbell announces the next buffer.
    starved: bool,
    /// Messages from the driver stay in the ring until messages to it have left.
    held: bool,
}

impl ControlQueue {
    /// Forgets all messages.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Number of further messages that may wait.
    pub fn capacity(&self) -> usize {
        MOST_WAITING.saturating_sub(self.waiting.len())
    }

    /// Queues a message to the driver. The caller checks [`ControlQueue::capacity`] before: a
    /// message beyond it is lost.
    pub fn queue(&mut self, port: u32, what: ToDriver<'_>) {
        if self.capacity() > 0 {
            self.waiting.push_back(what.encode(port));
        }
    }

    /// Handles the doorbell of the receive queue: buffers may be available.
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

    /// Sends waiting messages to the driver, at most a batch.
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
            queues.recycle(requests);
            queues.mark_idle(CONTROL_RECEIVE);
            return Ok(());
        }
        let mut done = Vec::with_capacity(requests.len());
        for request in requests.iter() {
            let message = self.waiting.pop_front().unwrap_or_default();
            let count = fill(request, queues.memory(), &message)?;
            if count as usize != message.len() {
                return Err(wrong(request, "a buffer that is too short for the control message"));
            }
            done.push((request.head, count));
        }
        queues.give_back(CONTROL_RECEIVE, &done)?;
        queues.recycle(requests);
        queues.reschedule(CONTROL_RECEIVE);
        if std::mem::take(&mut self.held) {
            queues.reschedule(CONTROL_TRANSMIT);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Takes the driver's next message, if there is one and capacity for an answer.
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

    /// Keeps a message until there is capacity for its answers.
    pub fn put_back(&mut self, message: FromDriver) {
        (self.heard, self.held) = (Some(message), true);
    }
}

fn take<M: DeviceMemory>(request: &VirtioRequest, memory: &M) -> Result<FromDriver, Fault> {
    let mut bytes = [0; 8];
    let front = request.readable().split_front(bytes.len() as u64);
    let front = front.ok_or_else(|| wrong(request, "less than a control message of 8 bytes"))?;
    front.copy_to(memory, &mut bytes)?;
    Ok(FromDriver::parse(bytes))
}
