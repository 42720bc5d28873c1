//! The message channel: requests to the device, its events, and doorbells (SPEC sections 4 and 5).

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

/// How long the device may take for a response [5.4], and for a reset [6.4] (SPEC 7.24).
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);
/// First and longest pause before the driver asks whether a reset is complete: no event reports
/// that [6.4].
const RESET_PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// The reason why a message exchange with the device failed.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The driver could not send the message.
    #[error("cannot send a message to the device: {0:?}")]
    Send(SendError),
    /// The device corrupted the message page, or exceeded a time limit before.
    #[error(
        "the device is broken, it corrupted the message page or did not answer; connect it again"
    )]
    Broken,
    /// The device did not answer within the limit, in seconds.
    #[error("the device did not answer within {0} s; check the backend's log")]
    Late(u64),
    /// The device did not complete a reset within the limit, in seconds.
    #[error("the device did not complete its reset within {0} s; check the backend's log")]
    ResetLate(u64),
    /// The device's answer does not match the request, or the driver cannot use it.
    #[error("the device's answer does not match the request")]
    Mismatch,
    /// An operation on an event channel failed.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The wait for an event failed.
    #[error("cannot wait for events")]
    Poll(#[from] nix::Error),
}

/// Notifications from the device since the last [`MessageChannel::take_told`].
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
    /// The port of each queue that has a doorbell.
    doorbells: BTreeMap<u16, LocalPort>,
    told: Told,
    /// A response or an event has had DEVICE_NEEDS_RESET in its status since the last reset.
    needs_reset: bool,
}

impl MessageChannel {
    /// Creates the channel over a zeroed and granted page and a port that the backend may bind.
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

    /// Sends a request, waits for the answer, and returns the result of `take` for it. `None` from
    /// `take` is a mismatch.
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

    /// Resets the device, and waits until the reset is complete [6.4].
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

    /// Whether the device has reported DEVICE_NEEDS_RESET since the last reset.
    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset
    }

    /// Receives messages from the page up to an answer; returns whether an answer arrived.
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

    /// Takes all pending events of the event channels.
    fn take_signals(&mut self) -> Result<(), EventError> {
        while let Some(port) = self.events.pending()? {
            self.told.used |= port != self.port;
            self.events.unmask(port)?;
        }
        Ok(())
    }

    /// Returns the device's notifications since the last call.
    pub(crate) fn take_told(&mut self) -> Result<Told, MessageError> {
        self.take_signals()?;
        // No request is outstanding, so that no answer arrives.
        self.receive()?;
        Ok(std::mem::take(&mut self.told))
    }

    /// Binds a doorbell to a queue [5.6]. If the device refuses, the queue's events go in band.
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

    /// Closes a queue's doorbell, if it has one.
    pub(crate) fn unbind(&mut self, queue: u16) {
        if let Some(port) = self.doorbells.remove(&queue) {
            self.events.unbind(port);
        }
    }

    /// Notifies the device that a queue has available buffers: through its doorbell, else in band.
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

    /// The configuration generation in the device's last message that carried one.
    pub(crate) fn generation(&self) -> u32 {
        self.transport.generation()
    }

    /// The maximum number of configuration bytes in one message.
    pub(crate) fn max_config_bytes(&self) -> usize {
        self.transport.max_config_bytes() as usize
    }
}

/// The status byte in an answer; `None` if the answer has none.
pub(crate) fn status_of(answer: Response<'_>) -> Option<u32> {
    match answer {
        Response::GetDeviceStatus(status) | Response::SetDeviceStatus(status) => Some(status),
        _ => None,
    }
}

fn words(page: &SharedPages) -> Result<&PageWords, MessageError> {
    // `Frontend::open` shares one whole writable page, so that this does not fail.
    page.as_ref().page_words().ok_or(MessageError::Broken)
}
