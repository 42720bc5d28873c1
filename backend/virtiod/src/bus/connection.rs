//! A connection with one frontend: the message page, the device behind it, and what is done when either
//! has something to say.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use protocol::message::{Body, Message, Request};
use protocol::page::{Corrupt, SLOT_SIZE};

use super::brake::{Brake, Progress};
use super::channel::{Channel, ChannelError, FlushError};
use super::deadline::Deadline;
use super::keys::{FrontendKeys, KeyError};
use super::looks::Looks;
use super::pace::Pace;
use super::patience::Patience;
use super::session::Context;
use super::transport::{Answered, Effects, Transport};
use crate::device::{BATCH_BYTES, Source, VirtioDevice};
use crate::dma::DmaMemory;
use crate::domain::Domain;
use crate::guest::Guest;
use crate::stats::DeviceStats;
use xen::{EventChannels, EventError, GrantTable, LocalPort};

/// Messages answered before queues get their turn.
const MESSAGE_BUDGET: usize = 16;
/// How long queues are served before XenStore, the end of the daemon and the device's own sources get
/// their turn.
const ITERATION: Duration = Duration::from_millis(20);
/// How long the driver is not told of what nothing seems to wait for.
const DEFERRED: Duration = Duration::from_millis(1);

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
pub type Device<X> = Box<dyn VirtioDevice<DmaMemory<<X as Domain>::Platform>>>;

/// What messages flow through. Readable (poll) while events are pending.
pub struct Connection<X: Domain> {
    events: X::Events,
    channel: Channel<<X::Grants as GrantTable>::Pages>,
    transport: Transport<X::Platform>,
    /// Messages are left that no event will tell of.
    more_messages: bool,
    /// A request was answered since ports were opened last.
    has_answered: bool,
    patience: Patience,
    pace: Pace,
    looks: Looks,
    /// When the queues were last found empty, for the signal that comes next.
    empty_since: Option<Instant>,
    /// How long after that a doorbell rang of which it is not known yet whether it brought something.
    woken_after: Option<Duration>,
    /// Ports that were signalled and not dealt with yet.
    rung: Vec<LocalPort>,
    brake: Brake,
    stats: Arc<DeviceStats>,
}

/// What a connection's thread woke up for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
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
    /// Connects `device`, if there is one, to the frontend with these keys [2.5]. It stays where it is
    /// where that fails.
    ///
    /// # Errors
    /// [`ConnectionError`]; nothing of the guest's is held then.
    pub fn open(
        xen: &X,
        context: &Context,
        keys: FrontendKeys,
        device: &mut Option<Device<X>>,
    ) -> Result<Option<Self>, ConnectionError> {
        let Context { path, guest: Guest { budget, .. }, service, stats } = context;
        let guest = path.guest;
        let grants = xen.grants(guest)?;
        let platform = xen.platform(guest)?;
        let mut events = xen.events(guest)?;
        let channel = Channel::open(&grants, &mut events, keys, budget, Arc::clone(stats))?;
        let Some(device) = device.take() else {
            return Ok(None);
        };
        let mut memory = DmaMemory::new(platform, Arc::clone(stats), Arc::clone(budget));
        memory.limit_pool(service.pool.pages());
        let transport = Transport::new(device, memory, channel.max_size(), Arc::clone(stats));
        Ok(Some(Self {
            events,
            channel,
            transport,
            more_messages: false,
            has_answered: false,
            patience: Patience::new(service.poll),
            pace: Pace::default(),
            looks: Looks::default(),
            empty_since: None,
            woken_after: None,
            rung: Vec::new(),
            brake: Brake::default(),
            stats: Arc::clone(stats),
        }))
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

    /// How long there is nothing to do unless something happens; `None` for ever.
    pub fn idle_time(&self) -> Option<Duration> {
        if self.more_messages || self.transport.is_waiting() {
            return Some(Duration::ZERO);
        }
        let deferred = self.transport.has_deferred().then_some(DEFERRED);
        let closed = self.brake.until_open(Instant::now);
        let deadline = self.transport.deadline();
        let deadline = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        [deferred, closed, deadline].into_iter().flatten().min()
    }

    /// Deals with everything that is pending: messages, and queues until they are found empty, for a
    /// while.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is over.
    pub fn turn(&mut self, ready: Ready) -> Result<(), ConnectionError> {
        self.rung.clear();
        let idle = !ready.events && !ready.sources;
        let served = self.transport.begin_turn(idle, &mut self.events);
        self.tell(served);
        if ready.events {
            self.take_events()?;
        }
        // What is left over, then what was signalled.
        if std::mem::take(&mut self.more_messages) {
            self.messages()?;
        }
        let is_due = self.transport.deadline().is_some_and(|at| at <= Instant::now());
        if ready.sources || is_due {
            let served = self.transport.wake(&mut self.events);
            self.tell(served);
        }
        for position in 0..self.rung.len() {
            let Some(port) = self.rung.get(position).copied() else { break };
            if port == self.channel.port() {
                self.messages()?;
            } else {
                let served = self.transport.ring(port, &mut self.events);
                self.tell(served);
            }
        }
        self.judge_doorbells();
        self.serve()?;
        self.open_ports(ready)?;
        Ok(self.channel.flush(&mut self.events)?)
    }

    /// Learns from doorbells that were answered whether it is worth while to look for what follows them.
    fn judge_doorbells(&mut self) {
        let Some(after) = self.woken_after.take() else { return };
        match self.transport.has_progressed() {
            true => self.patience.woken(after),
            false => self.patience.in_vain(),
        }
    }

    /// Lets ports signal again whose events were dealt with. Late: the guest's next events arrive only
    /// now, and later still if those brought nothing.
    ///
    /// # Errors
    /// [`EventError`]: a port stays deaf, and nobody would notice.
    fn open_ports(&mut self, ready: Ready) -> Result<(), EventError> {
        let worked = self.transport.take_progress() || std::mem::take(&mut self.has_answered);
        let progress = if worked || ready.sources { Progress::Some } else { Progress::None };
        self.brake.pass(&mut self.rung, progress, Instant::now);
        for port in &self.rung {
            // A doorbell may have been closed since.
            if *port == self.channel.port() || self.transport.has_doorbell(*port) {
                self.events.unmask(*port)?;
            }
        }
        Ok(())
    }

    /// Takes the events that are pending.
    fn take_events(&mut self) -> Result<(), EventError> {
        while let Some(port) = self.events.pending()? {
            self.rung.push(port);
        }
        self.stats.events_received.fetch_add(self.rung.len() as u64, Ordering::Relaxed);
        let doorbell = self.rung.iter().any(|port| *port != self.channel.port());
        self.woken_after = self.empty_since.take_if(|_| doorbell).map(|since| since.elapsed());
        Ok(())
    }

    /// Serves queues until they are found empty and stay so as long as it is worth looking; only then
    /// does the driver have to signal again. Messages are answered between: a driver whose queues are never empty asks
    /// for more pages of its pool, which serving them waits for.
    fn serve(&mut self) -> Result<(), ConnectionError> {
        let end = Deadline::within(ITERATION);
        loop {
            if self.channel.has_news() {
                self.messages()?;
            }
            if !self.transport.is_waiting() && !self.look() {
                break;
            }
            let served = self.transport.serve_waiting(&mut self.events);
            self.tell(served);
            self.announce_if_due();
            if end.has_come() {
                break;
            }
        }
        self.announce();
        if !self.transport.is_waiting() {
            let served = self.transport.settle();
            self.tell(served);
        }
        Ok(())
    }

    /// Looks at empty queues for a while; whether something came. Tells the driver of what was held back
    /// when it seems to have no more.
    fn look(&mut self) -> bool {
        if !self.transport.has_empty() {
            return false;
        }
        let alone = self.transport.serves_driver_alone();
        let window = if alone { self.looks.within(self.patience.window()) } else { 0 };
        let hold = self.looks.within(self.pace.patience()).min(window);
        for looks in 0..=window {
            if self.transport.look() {
                let took = self.looks.time(looks);
                self.pace.came(took);
                self.patience.looked(took);
                self.patience.came();
                return true;
            }
            if looks == hold && self.transport.held().requests > 0 {
                if window > 0 {
                    self.pace.alone(self.transport.held().requests);
                }
                self.announce();
            }
            std::hint::spin_loop();
        }
        self.patience.looked(self.looks.time(window));
        if alone && self.patience.is_ever() {
            let transport = &mut self.transport;
            if window > 0 && self.looks.measure(|| transport.look()) {
                return true;
            }
            self.empty_since = Some(Instant::now());
        }
        false
    }

    /// Tells the driver of used buffers if they are as many, or as much, as it should hear of at once.
    fn announce_if_due(&mut self) {
        let held = self.transport.held();
        if held.requests == 0 {
            return;
        }
        if self.pace.is_due(held.requests) {
            self.pace.full();
            self.announce();
        } else if held.bytes >= BATCH_BYTES {
            self.announce();
        }
    }

    /// Tells the driver of used buffers.
    fn announce(&mut self) {
        let served = self.transport.announce(&mut self.events);
        if let Some(took) = self.transport.take_signal_time() {
            self.patience.signalled(took);
        }
        self.tell(served);
    }

    /// Completions messages, up to a turn's worth.
    fn messages(&mut self) -> Result<(), ConnectionError> {
        let (mut buffer, mut scratch) = ([0; SLOT_SIZE], [0; SLOT_SIZE]);
        for _ in 0..MESSAGE_BUDGET {
            let Some(Message { token, body }) = self.channel.receive(&mut buffer)? else {
                return Ok(());
            };
            match body {
                Body::Request(request) => {
                    self.has_answered = true;
                    if request == Request::SetDeviceStatus(0) {
                        self.channel.forget_events();
                    }
                    let Answered { response, served } =
                        self.transport.answer(request, &mut self.events, &mut scratch);
                    self.channel.respond(&Message::response(token, response));
                    if let Request::ResetVqueue { index } = request {
                        self.forget_reset_queue(index);
                    }
                    self.tell(served);
                    self.channel.flush(&mut self.events)?;
                }
                Body::Event(event) => match self.transport.hear(event, &mut self.events) {
                    Ok(served) => self.tell(served),
                    Err(why) => self.channel.drop_message(&why),
                },
                Body::Response(_) => self.channel.drop_message(&"a response, which nobody awaits"),
            }
        }
        self.more_messages = true;
        Ok(())
    }

    /// What was used in a queue that was reset is nobody's news any more.
    fn forget_reset_queue(&mut self, index: u32) {
        if !self.transport.is_enabled(index as usize) {
            self.channel.forget_used(index);
        }
    }

    /// Tells the driver, in band, what serving a queue came to.
    fn tell(&mut self, served: Effects) {
        served.used.into_iter().for_each(|index| self.channel.announce_used(index));
        if served.announce {
            let (status, generation) = self.transport.announcement();
            self.channel.announce(status, generation);
        }
    }
}
