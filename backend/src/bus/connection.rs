//! A connection with one frontend: the message page, the device behind it, and what is done when either
//! has something to say.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use protocol::binding::RECOMMENDED_MESSAGE_SIZE;
use protocol::message::{Body, Message, Request};
use protocol::page::{Corrupt, SLOT_SIZE};

use super::channel::{Channel, ChannelError, FlushError};
use super::keys::{FrontendKeys, KeyError};
use super::transport::{Served, Transport};
use crate::device::{Source, VirtioDevice};
use crate::platform::PlatformMemory;
use crate::stats::DeviceStats;
use crate::xen::{DomId, EventChannels, EventError, GrantTable, Xen};

/// Messages answered before queues get their turn.
const MESSAGES_A_TURN: usize = 16;

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
    /// A door to Xen could not be opened.
    #[error(transparent)]
    Door(#[from] io::Error),
}

/// A device over the memory of one guest.
pub type Device<X> = Box<dyn VirtioDevice<PlatformMemory<<X as Xen>::Platform>>>;

/// What messages flow through. Readable (poll) while events are pending.
pub struct Connection<X: Xen> {
    events: X::Events,
    channel: Channel<<X::Grants as GrantTable>::Pages>,
    transport: Transport<X::Platform>,
    /// Messages are left that no event will tell of.
    more_messages: bool,
}

impl<X: Xen> AsFd for Connection<X> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl<X: Xen> Connection<X> {
    /// Connects `device`, if there is one, to the frontend with these keys [2.5]. It stays where it is
    /// where that fails.
    ///
    /// # Errors
    /// [`ConnectionError`]; nothing of the guest's is held then.
    pub fn open(
        xen: &X,
        guest: DomId,
        keys: FrontendKeys,
        device: &mut Option<Device<X>>,
        stats: Arc<DeviceStats>,
    ) -> Result<Option<Self>, ConnectionError> {
        let grants = xen.grants(guest)?;
        let platform = xen.platform(guest)?;
        let mut events = xen.events(guest)?;
        let size = RECOMMENDED_MESSAGE_SIZE;
        let channel =
            Channel::open(&grants, &mut events, keys.page, keys.port, size, Arc::clone(&stats))?;
        let Some(device) = device.take() else {
            return Ok(None);
        };
        let memory = PlatformMemory::new(platform, Arc::clone(&stats));
        let transport = Transport::new(device, memory, channel.max_size(), stats);
        Ok(Some(Self { events, channel, transport, more_messages: false }))
    }

    /// Gives back everything of the guest's, and the device.
    pub fn close(mut self) -> Device<X> {
        let device = self.transport.close(&mut self.events);
        self.channel.close(&mut self.events);
        device
    }

    /// What the device waits for besides the driver.
    pub fn sources(&self) -> Vec<Source<'_>> {
        self.transport.sources()
    }

    /// Whether something is left to do that nothing will tell of.
    pub fn has_work(&self) -> bool {
        self.more_messages || self.transport.is_waiting()
    }

    /// Deals with everything that is pending: a turn of each queue and of the messages. `sources`:
    /// one of the device's own is ready.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is over.
    pub fn turn(&mut self, sources: bool) -> Result<(), ConnectionError> {
        let mut rung = Vec::new();
        while let Some(port) = self.events.pending()? {
            rung.push(port);
        }
        // What is left over, then what was signalled.
        if std::mem::take(&mut self.more_messages) {
            self.messages()?;
        }
        if self.transport.is_waiting() {
            let served = self.transport.serve_waiting(&mut self.events);
            self.tell(served);
        }
        if sources {
            let served = self.transport.wake(&mut self.events);
            self.tell(served);
        }
        for port in rung {
            if port == self.channel.port() {
                self.messages()?;
            } else {
                let served = self.transport.ring(port, &mut self.events);
                self.tell(served);
            }
            // Late: the guest's next event arrives only now. A doorbell may have been closed since.
            if let Err(error) = self.events.unmask(port) {
                tracing::debug!(%error, "port closed while its event was pending");
            }
        }
        Ok(self.channel.flush(&mut self.events)?)
    }

    /// Answers messages, up to a turn's worth.
    fn messages(&mut self) -> Result<(), ConnectionError> {
        let (mut buffer, mut scratch) = ([0; SLOT_SIZE], [0; SLOT_SIZE]);
        for _ in 0..MESSAGES_A_TURN {
            let Some(Message { token, body }) = self.channel.receive(&mut buffer)? else {
                return Ok(());
            };
            match body {
                Body::Request(request) => {
                    if request == Request::SetDeviceStatus(0) {
                        self.channel.forget_events();
                    }
                    let response = self.transport.answer(request, &mut self.events, &mut scratch);
                    self.channel.respond(&Message::response(token, response));
                    self.channel.flush(&mut self.events)?;
                }
                Body::Event(event) => {
                    let served = self.transport.hear(event, &mut self.events);
                    self.tell(served);
                }
                Body::Response(_) => self.channel.drop_message(&"a response, which nobody awaits"),
            }
        }
        self.more_messages = true;
        Ok(())
    }

    /// Tells the driver, in band, what serving a queue came to.
    fn tell(&mut self, served: Served) {
        served.used.into_iter().for_each(|index| self.channel.announce_used(index));
        if served.announce {
            let (status, generation) = self.transport.announcement();
            self.channel.announce(status, generation);
        }
    }
}
