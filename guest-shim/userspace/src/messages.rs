//! Messages to the device, and its events (SPEC sections 4 and 5).

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use guest_shim::transport::{Received, SendError, Transport};
use protocol::binding::Negotiated;
use protocol::message::{BindOutcome, Request, Response};
use protocol::page::PageWords;
use protocol::status::DEVICE_NEEDS_RESET;
use xen::{EventChannels, EventError, Evtchn, LocalPort, SharedPages};

use crate::wait::wait;

/// How long the device may take for a response [5.4], and for a reset [6.4].
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait before the device is asked whether its reset is complete: the first time, and
/// at most. It tells of that by no event.
const RESET_PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// Why the device did not answer.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The message could not be sent.
    #[error("the device cannot be asked: {0:?}")]
    Send(SendError),
    /// The device broke the message page, or took too long before.
    #[error("the device is broken: it corrupted the message page, or did not answer")]
    Broken,
    /// It took too long.
    #[error("waited {0} s for the device to answer")]
    Late(u64),
    /// It did not complete a reset.
    #[error("waited {0} s for the device to complete its reset")]
    ResetLate(u64),
    /// It answered something else.
    #[error("the device's answer does not fit what it was asked")]
    Mismatch,
    /// An event channel.
    #[error(transparent)]
    Event(#[from] EventError),
    /// Events cannot be waited for.
    #[error("cannot wait for events")]
    Poll(#[from] nix::Error),
}

/// What the device told beside answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// A queue has used buffers.
    pub(crate) used: bool,
    /// The configuration, or the status, changed.
    pub(crate) config: bool,
}

/// The message page and the doorbells of one device.
pub(crate) struct MessageChannel {
    page: SharedPages,
    events: Evtchn,
    port: LocalPort,
    transport: Transport,
    /// By queue.
    doorbells: BTreeMap<u16, LocalPort>,
    told: Told,
    /// The device told DEVICE_NEEDS_RESET, in whatever message.
    needs_reset: bool,
}

impl MessageChannel {
    /// Over a zeroed page that is granted, and a port for the backend.
    pub(crate) fn new(
        page: SharedPages,
        events: Evtchn,
        port: LocalPort,
        negotiated: Negotiated,
    ) -> Self {
        let transport = Transport::new(negotiated);
        let (doorbells, told) = (BTreeMap::new(), Told::default());
        Self { page, events, port, transport, doorbells, told, needs_reset: false }
    }

    /// Asks, and gives what `take` makes of the answer; `None` is an answer that does not fit.
    pub(crate) fn ask<R>(
        &mut self,
        request: Request<'_>,
        take: impl FnOnce(Response<'_>) -> Option<R>,
    ) -> Result<R, MessageError> {
        let page = words(&self.page)?;
        self.transport.send(page, request).map_err(MessageError::Send)?;
        self.events.notify(self.port)?;
        let end = Instant::now() + RESPONSE_LIMIT;
        while !self.receive()? {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.transport.give_up();
                return Err(MessageError::Late(RESPONSE_LIMIT.as_secs()));
            }
            wait(&self.events, left)?;
            self.take_signals()?;
        }
        match self.transport.take_answer() {
            Some(Ok(answer)) => {
                if let Response::GetDeviceStatus(status) | Response::SetDeviceStatus(status) =
                    answer
                {
                    self.needs_reset |= status & DEVICE_NEEDS_RESET != 0;
                }
                take(answer).ok_or(MessageError::Mismatch)
            }
            Some(Err(_)) | None => Err(MessageError::Mismatch),
        }
    }

    /// Resets the device, and waits until it has let go of everything [6.4].
    pub(crate) fn reset(&mut self) -> Result<(), MessageError> {
        let [mut pause, longest] = RESET_PAUSES;
        let end = Instant::now() + RESPONSE_LIMIT;
        let mut status = self.ask(Request::SetDeviceStatus(0), status_of)?;
        while status != 0 {
            if Instant::now() >= end {
                self.transport.give_up();
                return Err(MessageError::ResetLate(RESPONSE_LIMIT.as_secs()));
            }
            thread::sleep(pause);
            pause = longest.min(2 * pause);
            status = self.ask(Request::GetDeviceStatus, status_of)?;
        }
        self.needs_reset = false;
        for (_, port) in std::mem::take(&mut self.doorbells) {
            self.events.unbind(port);
        }
        Ok(())
    }

    /// Whether the device told that only a reset helps it.
    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset
    }

    /// Takes what is in the page, up to an answer; whether there was one.
    fn receive(&mut self) -> Result<bool, MessageError> {
        loop {
            match self.transport.receive(words(&self.page)?) {
                Received::Answer => return Ok(true),
                Received::Drained { signal } => {
                    if signal {
                        self.events.notify(self.port)?;
                    }
                    return Ok(false);
                }
                Received::ConfigChanged { status } => {
                    self.told.config = true;
                    self.needs_reset |= status & DEVICE_NEEDS_RESET != 0;
                }
                Received::Used { .. } => self.told.used = true,
                Received::Dropped | Received::Pinged => {}
                Received::Broken => return Err(MessageError::Broken),
            }
        }
    }

    /// Takes the signals that came.
    fn take_signals(&mut self) -> Result<(), EventError> {
        while let Some(port) = self.events.pending()? {
            self.told.used |= port != self.port;
            self.events.unmask(port)?;
        }
        Ok(())
    }

    /// Takes everything that the device told since the last time.
    pub(crate) fn take_told(&mut self) -> Result<Told, MessageError> {
        self.take_signals()?;
        // Nothing was asked, so there is no answer.
        self.receive()?;
        Ok(std::mem::take(&mut self.told))
    }

    /// Gives a queue its doorbell [5.6]. Without, its events go in band.
    pub(crate) fn bind(&mut self, queue: u16) -> Result<(), MessageError> {
        let port = self.events.allocate()?;
        let request = Request::BindQueue { index: queue.into(), port: port.0 };
        let outcome = self.ask(request, |answer| match answer {
            Response::BindQueue { outcome, .. } => Some(outcome),
            _ => None,
        });
        match outcome {
            Ok(BindOutcome::Bound) => {
                self.doorbells.insert(queue, port);
                Ok(())
            }
            Ok(BindOutcome::Refused) => {
                self.events.unbind(port);
                Ok(())
            }
            Err(error) => {
                self.events.unbind(port);
                Err(error)
            }
        }
    }

    /// Closes a queue's doorbell.
    pub(crate) fn unbind(&mut self, queue: u16) {
        if let Some(port) = self.doorbells.remove(&queue) {
            self.events.unbind(port);
        }
    }

    /// Tells the device that a queue has available buffers.
    pub(crate) fn ring(&mut self, queue: u16) -> Result<(), MessageError> {
        if let Some(port) = self.doorbells.get(&queue) {
            return Ok(self.events.notify(*port)?);
        }
        let page = words(&self.page)?;
        if self.transport.event_avail(page, queue.into()).map_err(MessageError::Send)? {
            self.events.notify(self.port)?;
        }
        Ok(())
    }

    /// The configuration's generation, as the device last told it.
    pub(crate) fn generation(&self) -> u32 {
        self.transport.generation()
    }

    /// Bytes of configuration that fit into a message.
    pub(crate) fn max_config_bytes(&self) -> usize {
        self.transport.max_config_bytes() as usize
    }
}

/// The status in an answer.
pub(crate) fn status_of(answer: Response<'_>) -> Option<u32> {
    match answer {
        Response::GetDeviceStatus(status) | Response::SetDeviceStatus(status) => Some(status),
        _ => None,
    }
}

fn words(page: &SharedPages) -> Result<&PageWords, MessageError> {
    // A whole page that can be written, or there would be no `MessageChannel`.
    page.as_ref().page_words().ok_or(MessageError::Broken)
}
