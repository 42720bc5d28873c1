//! The socket device (virtio 1.3 section 5.10): streams between ports of the guest and Unix sockets
//! of the backend's domain.

mod connection;
mod credit;
mod header;
mod host;
mod muxer;
mod rx_queue;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tracing::Level;

use self::header::{HEADER_SIZE, ReceivedPacket, VsockHeader};
pub use self::host::HostSocket;
use self::muxer::Muxer;
use super::{DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice, VirtioRequest};
use crate::stats::DeviceStats;

/// Feature bit: streams (section 5.10.3).
pub const VIRTIO_VSOCK_F_STREAM: u32 = 0;
/// The queue for packets to the guest (section 5.10.2).
const RECEIVE: usize = 0;
/// The queue for packets from the guest.
const TRANSMIT: usize = 1;
/// The queue for events.
const EVENT: usize = 2;
/// Number of queues.
const QUEUES: usize = 3;
/// The event that all connections are gone, and that the guest's CID may be another one:
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// Number of entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// Maximum number of bytes of data in a packet from the guest; Linux sends no more.
const MAX_DATA_SIZE: u64 = 64 << 10;

/// A socket device.
#[derive(Debug)]
pub struct Socket {
    cid: u64,
    /// The configuration space: the guest's context id (CID).
    config: [u8; 8],
    muxer: Muxer,
    /// The receive queue is empty; the driver's doorbell announces the next buffer.
    starved: bool,
    /// Packets from the guest stay in the ring until packets to it have left.
    held: bool,
    /// The driver has connections that are gone, and was not told yet.
    owes_reset: bool,
    stats: Arc<DeviceStats>,
}

impl Socket {
    /// The socket device of the guest with this context id.
    pub fn new(cid: u32, host: HostSocket, stats: Arc<DeviceStats>) -> Self {
        let cid = u64::from(cid);
        let muxer = Muxer::new(host, Arc::clone(&stats));
        let (starved, held, owes_reset) = (false, false, false);
        Self { cid, config: cid.to_le_bytes(), muxer, starved, held, owes_reset, stats }
    }

    /// The path of the socket that programs connect to.
    pub fn path(&self) -> &Path {
        self.muxer.host().path()
    }

    /// Sends waiting packets to the guest, at most a batch.
    fn receive<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let waiting = self.muxer.rx_queue.count();
        if waiting == 0 {
            return Ok(());
        }
        let (requests, fault) = queues.take(RECEIVE, waiting);
        if requests.is_empty() && fault.is_none() {
            self.starved = true;
            queues.recycle(requests);
            queues.mark_idle(RECEIVE);
            return Ok(());
        }
        let mut done = Vec::with_capacity(requests.len());
        for request in requests.iter() {
            done.push((request.head, self.fill(request, queues.memory())?));
        }
        DeviceStats::count(&self.stats.reads);
        queues.give_back(RECEIVE, &done)?;
        queues.recycle(requests);
        queues.reschedule(RECEIVE);
        if std::mem::take(&mut self.held) {
            queues.reschedule(TRANSMIT);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Writes the next packet, or a part of it, into a buffer; returns the number of bytes.
    fn fill<M: DeviceMemory>(&mut self, request: &VirtioRequest, memory: &M) -> Result<u32, Fault> {
        if request.readable().length() > 0 {
            return Err(wrong(request, "a device-readable buffer in the receive queue"));
        }
        match self.muxer.rx_queue.next(request.writable().length(), self.cid) {
            Some(bytes) => request.writable().copy_from(memory, &bytes),
            None => Err(wrong(request, "a buffer that no packet fits in")),
        }
    }

    /// Tells the driver that its connections are gone, if it is not told yet and has given a buffer
    /// for that.
    fn send_event<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        if !self.owes_reset {
            return Ok(());
        }
        let owes_reset = &mut self.owes_reset;
        queues.process_some(EVENT, 1, |request, memory| {
            *owes_reset = false;
            request.writable().copy_from(memory, &TRANSPORT_RESET.to_le_bytes())
        })
    }

    /// Handles packets from the guest, at most a batch.
    fn transmit<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let limit = self.muxer.rx_queue.capacity();
        if limit == 0 {
            self.held = true;
            return Ok(());
        }
        let (muxer, stats, cid) = (&mut self.muxer, &self.stats, self.cid);
        queues.process_some(TRANSMIT, limit, |request, memory| {
            take_packet(request, memory, cid, muxer, stats)?;
            DeviceStats::count(&stats.writes);
            Ok(0)
        })
    }
}

/// Copies a packet from the guest and handles it. A packet that makes no sense costs the guest the
/// connection that it names; a chain that holds no packet is a fault.
fn take_packet<M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &M,
    cid: u64,
    muxer: &mut Muxer,
    stats: &DeviceStats,
) -> Result<(), Fault> {
    if request.writable().length() > 0 {
        return Err(wrong(request, "a device-writable buffer in the transmit queue"));
    }
    let mut rest = request.readable();
    let Some(front) = rest.split_front(HEADER_SIZE as u64) else {
        return Err(wrong(request, "less than a packet's header"));
    };
    let mut bytes = [0; HEADER_SIZE];
    front.copy_to(memory, &mut bytes)?;
    match VsockHeader::decode(&bytes, cid) {
        ReceivedPacket::Astray => {
            DeviceStats::count(&stats.failed);
            stats.log.line(Level::WARN, format_args!("dropped packet with wrong CID"));
        }
        ReceivedPacket::OtherType(header) => muxer.refuse(header.ports),
        ReceivedPacket::Stream(header) => {
            let length = u64::from(header.length);
            let data = rest.split_front(length).filter(|_| length <= MAX_DATA_SIZE);
            let data =
                data.ok_or_else(|| wrong(request, "a packet with less data than it says"))?;
            let mut bytes = vec![0; header.length as usize];
            data.copy_to(memory, &mut bytes)?;
            muxer.receive(&header, &bytes);
        }
    }
    Ok(())
}

fn wrong(request: &VirtioRequest, reason: &str) -> Fault {
    Fault::Chain { head: request.head, reason: reason.to_owned() }
}

impl<M: DeviceMemory> VirtioDevice<M> for Socket {
    fn id(&self) -> DeviceId {
        DeviceId::Socket
    }

    fn kind(&self) -> &'static str {
        "vsock"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM
    }

    fn longest_request(&self) -> u64 {
        HEADER_SIZE as u64 + MAX_DATA_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// Ends every connection, since the driver has forgotten them.
    fn reset(&mut self) {
        self.muxer.clear();
        (self.starved, self.held, self.owes_reset) = (false, false, false);
    }

    /// The connections end with the process; a driver that is told so ends its side at once.
    fn can_be_taken_over(&self) -> bool {
        true
    }

    fn note_taken_over(&mut self) {
        self.owes_reset = true;
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        match index {
            RECEIVE => self.starved = false,
            TRANSMIT => self.transmit(queues)?,
            EVENT => return self.send_event(queues),
            _ => return Ok(()),
        }
        if self.starved { Ok(()) } else { self.receive(queues) }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.muxer.sources()
    }

    fn deadline(&self) -> Option<Instant> {
        self.muxer.deadline()
    }

    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        self.muxer.handle_sources().map_err(|error| Fault::Host("sockets", error))?;
        if self.starved { Ok(()) } else { self.receive(queues) }
    }
}
