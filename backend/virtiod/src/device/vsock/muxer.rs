//! The muxer, which owns all connections of a guest.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use tracing::Level;

use super::connection::VsockConnection;
use super::header::{Credit, Operation, PortPair, VsockHeader};
use super::host::{Handshake, HandshakeState, HostSocket};
use super::rx_queue::{RxQueue, VsockPacket};
use crate::device::Source;
use crate::stats::DeviceStats;
use uring::waiting::wait_for;

/// Maximum number of a guest's connections.
pub const MAX_CONNECTIONS: usize = 128;
/// Maximum number of programs that have connected and not yet sent their `CONNECT` line. Others
/// wait in the socket's backlog.
pub const MAX_HANDSHAKES: usize = 32;
/// The first of the host's ports for connections that programs open.
const FIRST_PORT: u32 = 1 << 30;

/// All connections of a guest, and the packets that wait for it.
#[derive(Debug)]
pub struct Muxer {
    host: HostSocket,
    handshakes: Vec<Handshake>,
    connections: BTreeMap<PortPair, VsockConnection>,
    /// The connection that was read last; the next iteration begins behind it.
    after: PortPair,
    next_port: u32,
    /// The packets that wait for the guest's buffers.
    pub rx_queue: RxQueue,
    stats: Arc<DeviceStats>,
}

/// A source that is ready.
enum Ready {
    HostSocket,
    Handshake,
    VsockConnection(PortPair, PollFlags),
}

impl Muxer {
    /// A muxer without connections.
    pub fn new(host: HostSocket, stats: Arc<DeviceStats>) -> Self {
        Self {
            host,
            handshakes: Vec::new(),
            connections: BTreeMap::new(),
            after: PortPair { host: 0, guest: 0 },
            next_port: FIRST_PORT,
            rx_queue: RxQueue::default(),
            stats,
        }
    }

    /// The socket that programs connect to.
    pub fn host(&self) -> &HostSocket {
        &self.host
    }

    /// Ends all connections without a packet to the guest.
    pub fn clear(&mut self) {
        self.handshakes.clear();
        self.connections.clear();
        self.rx_queue.clear();
        self.count();
    }

    fn has_capacity(&self) -> bool {
        self.connections.len() < MAX_CONNECTIONS
    }

    /// Handles a packet from the guest.
    pub fn receive(&mut self, header: &VsockHeader, data: &[u8]) {
        let ports = header.ports;
        match (self.connections.get_mut(&ports), header.operation) {
            (Some(connection), _) => {
                let bytes = connection.handle_packet(header, data, &mut self.rx_queue);
                self.stats.bytes_written.fetch_add(bytes, Ordering::Relaxed);
                if connection.is_closed() {
                    self.connections.remove(&ports);
                }
            }
            (None, Some(Operation::Request)) => self.admit(header),
            // The reset crossed with the end of the connection.
            (None, Some(Operation::Reset)) => {}
            (None, _) => self.refuse(ports),
        }
        self.count();
    }

    /// Opens the connection that the guest requests.
    fn admit(&mut self, header: &VsockHeader) {
        let ports = header.ports;
        if !self.has_capacity() {
            self.warn_of_limit();
            return self.refuse(ports);
        }
        match self.host.connect(ports.host) {
            Ok(socket) => {
                let connection =
                    VsockConnection::accept(ports, socket, header.credit, &mut self.rx_queue);
                self.insert(ports, connection);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "no program listens on this port");
                self.refuse(ports);
            }
        }
    }

    fn warn_of_limit(&self) {
        let limit =
            format_args!("connection refused: the guest has {MAX_CONNECTIONS}, the maximum");
        self.stats.log.line(Level::WARN, limit);
    }

    /// Sends a reset in reply to a packet that belongs to no connection.
    pub fn refuse(&mut self, ports: PortPair) {
        DeviceStats::count(&self.stats.failed);
        let credit = Credit { buf_alloc: 0, fwd_cnt: 0 };
        let operation = Some(Operation::Reset);
        let header = VsockHeader { ports, operation, length: 0, flags: 0, credit };
        self.rx_queue.push(VsockPacket { header, data: Vec::new() });
    }

    fn insert(&mut self, ports: PortPair, connection: VsockConnection) {
        DeviceStats::count(&self.stats.connections);
        self.connections.insert(ports, connection);
    }

    /// The sources to poll.
    pub fn sources(&self) -> Vec<Source<'_>> {
        self.watched().into_iter().map(|(_, source)| source).collect()
    }

    /// The sources to poll, each with its owner; the events of connections are empty yet.
    fn watched(&self) -> Vec<(Ready, Source<'_>)> {
        let mut watched = Vec::new();
        if self.rx_queue.is_full() {
            return watched;
        }
        if self.handshakes.len() < MAX_HANDSHAKES && self.rx_queue.takes_data() {
            watched.extend(self.host.source().map(|source| (Ready::HostSocket, source)));
        }
        let handshakes = self.handshakes.iter().map(Handshake::source);
        watched.extend(handshakes.map(|source| (Ready::Handshake, source)));
        let (before, behind) =
            self.connections.iter().partition::<Vec<_>, _>(|(ports, _)| **ports <= self.after);
        for (ports, connection) in behind.into_iter().chain(before) {
            let ready = Ready::VsockConnection(*ports, PollFlags::empty());
            watched.extend(connection.source(&self.rx_queue).map(|source| (ready, source)));
        }
        watched
    }

    /// When [`Muxer::handle_sources`] must be called even if no source is ready.
    pub fn deadline(&self) -> Option<Instant> {
        let handshakes = self.handshakes.iter().map(Handshake::deadline);
        handshakes.chain(self.host.deadline()).min()
    }

    /// Handles ready sources, and handshakes whose time is over.
    ///
    /// # Errors
    /// The kernel's.
    pub fn handle_sources(&mut self) -> io::Result<()> {
        if self.deadline().is_some_and(|at| at <= Instant::now()) {
            self.accept_handshakes();
        }
        for ready in self.ready()? {
            // The other sources are still ready when the guest has taken packets.
            if self.rx_queue.is_full() {
                break;
            }
            match ready {
                Ready::HostSocket => self.handshakes.extend(self.host.accept()),
                Ready::Handshake => self.accept_handshakes(),
                Ready::VsockConnection(ports, events) => self.handle_connection(ports, events),
            }
        }
        self.count();
        Ok(())
    }

    fn ready(&mut self) -> io::Result<Vec<Ready>> {
        let watched = self.watched();
        let mut fds: Vec<_> =
            watched.iter().map(|(_, source)| PollFd::new(source.fd, source.events)).collect();
        wait_for(&mut fds, Duration::ZERO)?;
        let events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let ready = watched.into_iter().zip(events).filter(|(_, events)| !events.is_empty());
        Ok(ready
            .map(|((whose, _), events)| match whose {
                Ready::VsockConnection(ports, _) => Ready::VsockConnection(ports, events),
                other => other,
            })
            .collect())
    }

    /// Continues the handshakes of programs that have connected.
    fn accept_handshakes(&mut self) {
        for handshake in std::mem::take(&mut self.handshakes) {
            if self.rx_queue.is_full() {
                self.handshakes.push(handshake);
                continue;
            }
            match handshake.proceed() {
                HandshakeState::NotYet(handshake) => self.handshakes.push(handshake),
                HandshakeState::Nothing => {
                    tracing::debug!("handshake failed: no line \"CONNECT PORT\" in time")
                }
                HandshakeState::Wants(..) if !self.has_capacity() => self.warn_of_limit(),
                HandshakeState::Wants(port, socket) => {
                    let ports = PortPair { host: self.free_port(port), guest: port };
                    let connection = VsockConnection::request(ports, socket, &mut self.rx_queue);
                    self.insert(ports, connection);
                }
            }
        }
    }

    /// A port of the host without a connection to this port of the guest.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.connections.contains_key(&PortPair { host, guest }) {
                return host;
            }
        }
    }

    fn handle_connection(&mut self, ports: PortPair, events: PollFlags) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        let bytes = connection.handle_socket(events, &mut self.rx_queue);
        self.stats.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        if connection.is_closed() {
            self.connections.remove(&ports);
        }
        if bytes > 0 {
            self.after = ports;
        }
    }

    fn count(&self) {
        self.stats.connections_open.store(self.connections.len() as u64, Ordering::Relaxed);
    }
}
