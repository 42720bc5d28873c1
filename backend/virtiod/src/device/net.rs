//! The network device (virtio 1.3 section 5.1).

mod arrivals;
mod config;
mod control;
mod features;
pub mod interface;
mod lock;
mod mac;
mod pairs;
mod receive;
mod transmit;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Level;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF,
};

use self::arrivals::Arrivals;
use self::config::Fields;
use self::control::{Ack, ControlCommand};
use self::interface::MAX_PACKET;
pub use self::interface::{Interface, LinkState};
pub use self::lock::AddressLock;
pub use self::mac::MacAddress;
pub use self::pairs::QueuePairs;
use self::receive::{HeaderFlags, PacketBuffers, PacketFormat, Receiver};
use self::transmit::{PacketSink, Transmitter};
use super::rate::{Limiter, SharedRate};
use super::{
    AwaitedFd, DeviceId, DeviceMemory, Fault, IoEngine, QueueContext, QueueSet, Source,
    VirtioDevice, WorkSource,
};
use crate::Causes;
use crate::record::DeviceNote;
use crate::stats::DeviceStats;

/// Number of entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// The role of a queue (section 5.1.2); receive and transmit queues carry their pair's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

/// A network device.
pub struct Net {
    /// Dropped before the interface, of whose files it knows the numbers.
    arrivals: Arrivals,
    interface: Box<dyn Interface>,
    /// The guest's address, until its driver sets another.
    mac: MacAddress,
    fields: Fields,
    config: [u8; config::SIZE],
    config_changed: bool,
    queue_sizes: Vec<u16>,
    /// The features that the driver negotiated; 0 while it is not ready.
    features: u64,
    /// Number of queue pairs that the driver uses; 0 while it is not ready.
    active: usize,
    receivers: Vec<Receiver>,
    transmitter: Transmitter,
    engine: IoEngine,
    /// Where the next process finds the number of pairs that the driver uses.
    note: Option<DeviceNote>,
    /// The number of an earlier process.
    noted: u32,
    limits: NetLimits,
    /// The addresses that the guest's packets may come from.
    lock: Option<AddressLock>,
    /// Transmit queues whose packets wait for the limit.
    limited: QueueSet,
    stats: Arc<DeviceStats>,
}

/// Limits of an interface's rate, in bytes of packets.
#[derive(Debug, Default)]
pub struct NetLimits {
    /// Of packets to the guest.
    to_guest: Limiter,
    /// Of packets from the guest.
    from_guest: Limiter,
}

impl NetLimits {
    /// Limits of these rates.
    pub fn new(to_guest: Arc<SharedRate>, from_guest: Arc<SharedRate>) -> Self {
        Self { to_guest: Limiter::new(to_guest), from_guest: Limiter::new(from_guest) }
    }
}

/// Whether packets may pass; if not, the limiter's source tells when.
fn is_open(limiter: &mut Limiter, stats: &DeviceStats) -> Result<bool, Fault> {
    let waited = limiter.is_waiting();
    let open = limiter.is_open().map_err(|errno| Fault::Host("timer", errno.into()))?;
    if !open && !waited {
        DeviceStats::count(&stats.waits);
    }
    Ok(open)
}

impl Net {
    /// A device at `interface`, with `pairs` queue pairs and limits of its rate.
    pub fn new(
        interface: Box<dyn Interface>,
        mac: MacAddress,
        pairs: QueuePairs,
        limits: NetLimits,
        stats: Arc<DeviceStats>,
    ) -> Self {
        let link = LinkState::Down;
        let fields = Fields { mac, link, announce: false, pairs, mtu: interface.mtu() };
        let count = usize::from(pairs.count());
        Self {
            interface,
            mac,
            fields,
            config: fields.bytes(),
            config_changed: false,
            queue_sizes: vec![QUEUE_SIZE; 2 * count + 1],
            features: 0,
            active: 0,
            receivers: (0..count).map(Receiver::new).collect(),
            arrivals: Arrivals::new(pairs),
            transmitter: Transmitter::default(),
            engine: IoEngine::default(),
            note: None,
            noted: 0,
            limits,
            lock: None,
            limited: QueueSet::default(),
            stats,
        }
    }

    /// Sends only packets of the guest's that come from these addresses.
    #[must_use]
    pub fn locked(self, lock: Option<AddressLock>) -> Self {
        Self { lock, ..self }
    }

    fn role(&self, index: usize) -> Role {
        if features::control_queue(self.features, self.fields.pairs) == Some(index) {
            return Role::Control;
        }
        if index.is_multiple_of(2) { Role::Receive(index / 2) } else { Role::Transmit(index / 2) }
    }

    fn format(&self) -> PacketFormat {
        let has = |number| features::has(self.features, number);
        PacketFormat {
            buffers: if has(VIRTIO_NET_F_MRG_RXBUF) {
                PacketBuffers::Mergeable
            } else {
                PacketBuffers::One
            },
            flags: if has(VIRTIO_NET_F_GUEST_CSUM) {
                HeaderFlags::Checksum
            } else {
                HeaderFlags::Zero
            },
        }
    }

    /// Delivers packets of the interface to the guest, as many as one iteration takes. Returns
    /// whether there were any.
    fn receive<M: DeviceMemory>(
        &mut self,
        pair: usize,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<bool, Fault> {
        let format = self.format();
        let waited = self.limits.to_guest.is_waiting();
        if !is_open(&mut self.limits.to_guest, &self.stats)? {
            return Ok(false);
        }
        if waited {
            // Other pairs may have packets that waited too.
            (0..self.active).for_each(|pair| queues.reschedule(2 * pair));
        }
        let earlier = self.stats.bytes_read.load(Ordering::Relaxed);
        let receiver = self.receivers.get_mut(pair).filter(|_| pair < self.active);
        let Some(receiver) = receiver else { return Ok(false) };
        let (interface, arrivals) = (self.interface.as_mut(), &mut self.arrivals);
        let found = arrivals.fill(interface, pair, &mut self.engine).map_err(interface_fault)?;
        receiver.deliver(arrivals, queues, format, &self.stats)?;
        self.limits.to_guest.spend(self.stats.bytes_read.load(Ordering::Relaxed) - earlier);
        self.look_after_pairs(queues);
        Ok(found)
    }

    /// Has the kernel receive packets for all pairs, and pairs processed that have packets: left
    /// ones, or those that were found with another's.
    fn look_after_pairs<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) {
        for (pair, receiver) in self.receivers.iter().enumerate().take(self.active) {
            self.arrivals.listen(self.interface.as_ref(), pair);
            if !receiver.is_starved() && !self.arrivals.is_empty(pair) {
                queues.reschedule(2 * pair);
            }
        }
    }

    fn transmit<M: DeviceMemory>(
        &mut self,
        index: usize,
        pair: usize,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        if !is_open(&mut self.limits.from_guest, &self.stats)? {
            self.limited.insert(index);
            return Ok(());
        }
        self.limited.take().iter().for_each(|index| queues.reschedule(index));
        let earlier = self.stats.bytes_written.load(Ordering::Relaxed);
        // Packets in a queue that the driver no longer uses are still sent.
        let pair = pair.min(self.active.saturating_sub(1));
        let (interface, engine) = (self.interface.as_mut(), &mut self.engine);
        let sink = PacketSink { interface, pair, engine, lock: self.lock.as_ref() };
        self.transmitter.transmit(index, queues, sink, &self.stats)?;
        self.limits.from_guest.spend(self.stats.bytes_written.load(Ordering::Relaxed) - earlier);
        Ok(())
    }

    fn control<M: DeviceMemory>(
        &mut self,
        index: usize,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        queues.process_each(index, |request, memory| {
            let status = match ControlCommand::parse(request, memory)? {
                ControlCommand::UsePairs(count) => self.use_pairs(count),
                ControlCommand::SetMac(bytes) => self.set_mac(bytes),
                ControlCommand::Announced => {
                    self.set_announce(false);
                    Ack::Done
                }
                ControlCommand::Unsupported => Ack::Refused,
            };
            request.writable().copy_from(memory, &[status as u8])
        })?;
        // Pairs may be new.
        self.look_after_pairs(queues);
        Ok(())
    }

    /// Uses the first `count` pairs, as the driver asks (section 5.1.6.5.6).
    fn use_pairs(&mut self, count: u16) -> Ack {
        if !(1..=self.fields.pairs.count()).contains(&count) {
            return Ack::Refused;
        }
        let count = usize::from(count);
        if let Err(error) = self.interface.use_pairs(count) {
            let what = format_args!("{count} queue pair(s) refused: {}", Causes(&error));
            self.stats.log.line(Level::WARN, what);
            return Ack::Refused;
        }
        self.set_active(count);
        // The files of others get no packets any more.
        let unused = self.receivers.iter_mut().skip(count);
        unused.for_each(|receiver| receiver.drop_packets(&mut self.arrivals));
        Ack::Done
    }

    /// The guest sends from this address from now on, if it may (section 5.1.6.5.2).
    fn set_mac(&mut self, bytes: [u8; 6]) -> Ack {
        let mac = MacAddress::of_station(bytes);
        let Some(mac) = mac.filter(|mac| self.lock.is_none() || *mac == self.mac) else {
            return Ack::Refused;
        };
        self.fields.mac = mac;
        self.config = self.fields.bytes();
        Ack::Done
    }

    /// Has the interface outlive this process, or not.
    fn keep_interface(&mut self, is_kept: bool) {
        if let Err(error) = self.interface.keep(is_kept) {
            let what = format_args!("cannot keep or give up the interface: {}", Causes(&error));
            self.stats.log.line(Level::WARN, what);
        }
    }

    fn set_active(&mut self, pairs: usize) {
        self.active = pairs;
        // At most a few hundred.
        self.note.iter().for_each(|note| note.set(pairs as u32));
    }

    /// Asks the guest to announce itself to the network, or not any more (section 5.1.6.5.4).
    fn set_announce(&mut self, is_asked: bool) {
        self.fields.announce = is_asked;
        self.config = self.fields.bytes();
        self.config_changed |= is_asked;
    }

    fn check_link(&mut self) -> io::Result<()> {
        let now = self.interface.take_link_change()?.unwrap_or(self.fields.link);
        if std::mem::replace(&mut self.fields.link, now) != now {
            self.config = self.fields.bytes();
            self.config_changed = true;
            self.stats.log.line(Level::INFO, format_args!("link is {now}"));
        }
        Ok(())
    }
}

fn interface_fault(error: io::Error) -> Fault {
    Fault::Host("network interface", error)
}

impl<M: DeviceMemory> VirtioDevice<M> for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Network
    }

    fn kind(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> u64 {
        features::offered(self.fields.pairs)
    }

    fn longest_request(&self) -> u64 {
        MAX_PACKET as u64
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// The host hands over packets with the offloads that this driver accepted, from its first
    /// packet on.
    fn start(&mut self, features: u64) -> Result<(), Fault> {
        self.features = features;
        self.check_link().map_err(interface_fault)?;
        let offloads = features::offloads(features);
        self.interface.set_offloads(&offloads).map_err(interface_fault)?;
        self.interface.use_pairs(1).map_err(interface_fault)?;
        self.set_active(1);
        // The guest may have moved: switches learn where it is now.
        self.set_announce(features::has(features, VIRTIO_NET_F_GUEST_ANNOUNCE));
        Ok(())
    }

    /// Packets that were under way are lost or doubled, as in any network.
    fn can_be_taken_over(&self) -> bool {
        true
    }

    /// It gives buffers back in order.
    fn outlives_its_domain(&self) -> bool {
        true
    }

    fn keep_note(&mut self, note: DeviceNote) {
        self.noted = note.get();
        self.note = Some(note);
        self.keep_interface(true);
    }

    fn leave_note(&mut self) {
        self.note = None;
    }

    /// The driver has chosen a number of queue pairs, and does not choose again.
    fn note_taken_over(&mut self) {
        if let Ok(pairs) = u16::try_from(self.noted)
            && pairs > 1
        {
            self.use_pairs(pairs);
        }
    }

    fn keep_no_more(&mut self) {
        self.note = None;
        self.keep_interface(false);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.fields.mac = self.mac;
        self.limited = QueueSet::default();
        self.set_active(0);
        self.set_announce(false);
        if let Err(error) = self.interface.use_pairs(0) {
            self.stats
                .log
                .line(Level::WARN, format_args!("interface still in use: {}", Causes(&error)));
        }
        // Behind that no more arrive.
        self.receivers.iter_mut().for_each(|receiver| receiver.reset(&mut self.arrivals));
        self.arrivals.stop_polling();
    }

    /// The device keeps no requests of transmit queues and of the control queue over iterations.
    fn reset_queue(&mut self, index: usize) {
        self.limited.remove(index);
        if let Role::Receive(pair) = self.role(index) {
            self.receivers.get_mut(pair).into_iter().for_each(Receiver::return_buffers);
        }
    }

    fn can_delay_notification(&self, index: usize) -> bool {
        matches!(self.role(index), Role::Transmit(_))
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        match self.role(index) {
            Role::Receive(pair) => {
                let receiver = self.receivers.get_mut(pair);
                receiver.ok_or(Fault::Internal("a receive queue belongs to no pair"))?.refill();
                self.receive(pair, queues).map(drop)
            }
            Role::Transmit(pair) => self.transmit(index, pair, queues),
            Role::Control => self.control(index, queues),
        }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let pairs = self.receivers.iter().take(self.active).enumerate();
        let hungry = pairs.filter(|(_, receiver)| !receiver.is_starved());
        let waits = self.limits.to_guest.is_waiting();
        let mut to_guest = None;
        let packets = hungry.filter_map(|(pair, _)| {
            if waits {
                to_guest = self.limits.to_guest.source();
                return None;
            }
            self.arrivals.source(self.interface.as_ref(), pair)
        });
        let mut sources: Vec<_> = packets.chain([self.interface.link_changes()]).collect();
        sources.extend(self.arrivals.common_source());
        // Only where somebody waits: a timer that nobody heeds stays ready.
        let from_guest = self.limits.from_guest.source().filter(|_| !self.limited.is_empty());
        sources.extend(to_guest.into_iter().chain(from_guest));
        sources
    }

    fn work_source(&self) -> WorkSource {
        if self.arrivals.show_in_memory() { WorkSource::DriverAndPeer } else { WorkSource::Both }
    }

    fn has_completions(&self) -> bool {
        self.arrivals.has_new()
    }

    fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        self.arrivals.wait(fds, limit)
    }

    fn forget_descriptors(&mut self) {
        self.arrivals.stop_polling();
    }

    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        // Or their source would stay ready.
        self.arrivals.collect();
        let mut found = false;
        if !self.limited.is_empty() && is_open(&mut self.limits.from_guest, &self.stats)? {
            self.limited.take().iter().for_each(|index| queues.reschedule(index));
            found = true;
        }
        for pair in 0..self.active {
            if self.receivers.get(pair).is_some_and(|receiver| !receiver.is_starved()) {
                found |= self.receive(pair, queues)?;
            }
        }
        // If there were packets, they made the source ready; a change of the link stays pending
        // until the next call.
        if !found {
            self.check_link().map_err(interface_fault)?;
        }
        Ok(())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }
}
