//! A connection: a stream between a port of the guest and a Unix socket.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;

use super::credit::{PeerCredit, RxWindow};
use super::header::{Credit, Operation, PortPair, Shutdown, VsockHeader};
use super::rx_queue::{RxQueue, VsockPacket};
use super::state::{ConnEvent, ConnState, Reply};
use crate::device::Source;
use crate::listener::would_wait;

/// Maximum number of bytes of one read from a program.
const CHUNK: usize = 16 << 10;

/// A connection between a port of the guest and a program of the host.
#[derive(Debug)]
pub struct VsockConnection {
    ports: PortPair,
    socket: UnixStream,
    state: ConnState,
    peer_credit: PeerCredit,
    /// The device sent a credit request, since the guest had no credit left.
    asked: bool,
    window: RxWindow,
    /// Data that the guest sent and the program has not taken yet; the window bounds it.
    pending: VecDeque<u8>,
}

impl VsockConnection {
    /// Creates a connection that a program requests, and sends the request to the guest.
    pub fn request(ports: PortPair, socket: UnixStream, rx_queue: &mut RxQueue) -> Self {
        let no_room = Credit { buf_alloc: 0, fwd_cnt: 0 };
        let mut connection = Self::new(ports, socket, ConnState::Requested, no_room);
        connection.send(Operation::Request, 0, rx_queue);
        connection
    }

    /// Creates a connection that the guest requested, and sends the response.
    pub fn accept(
        ports: PortPair,
        socket: UnixStream,
        credit: Credit,
        rx_queue: &mut RxQueue,
    ) -> Self {
        let mut connection = Self::new(ports, socket, ConnState::Open, credit);
        connection.send(Operation::Response, 0, rx_queue);
        connection
    }

    fn new(ports: PortPair, socket: UnixStream, state: ConnState, credit: Credit) -> Self {
        Self {
            ports,
            socket,
            state,
            peer_credit: PeerCredit::new(credit),
            asked: false,
            window: RxWindow::default(),
            pending: VecDeque::new(),
        }
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.state == ConnState::Closed
    }

    /// The source to poll; `None` while neither direction can make progress.
    pub fn source(&self, rx_queue: &RxQueue) -> Option<Source<'_>> {
        let reads = self.state.reads_host();
        let mut events = PollFlags::empty();
        let wanted = reads && rx_queue.takes_data() && self.peer_credit.available() > 0;
        events.set(PollFlags::POLLIN, wanted);
        events.set(PollFlags::POLLOUT, !self.pending.is_empty());
        // poll() reports a hang-up even if no event is requested. While there may be data to read,
        // a hang-up is not yet of interest, and poll() would report it without end.
        (!events.is_empty() || !reads).then(|| Source { fd: self.socket.as_fd(), events })
    }

    /// Handles a packet from the guest; returns the number of data bytes for the program.
    pub fn handle_packet(
        &mut self,
        header: &VsockHeader,
        data: &[u8],
        rx_queue: &mut RxQueue,
    ) -> u64 {
        self.peer_credit.update(header.credit);
        self.asked &= self.peer_credit.available() == 0;
        let Some(operation) = header.operation else {
            self.reset(rx_queue);
            return 0;
        };
        let before = self.state;
        self.apply(ConnEvent::VsockPacket(operation, Shutdown(header.flags)), rx_queue);
        let mut taken = 0;
        match operation {
            _ if self.is_closed() => {}
            Operation::Response => self.confirm_handshake(before, rx_queue),
            // Fails only if the program is gone, which a hang-up shows.
            Operation::Shutdown if header.flags & Shutdown::RECEIVE != 0 => {
                let _ = self.socket.shutdown(net::Shutdown::Read);
            }
            Operation::CreditRequest => self.send(Operation::CreditUpdate, 0, rx_queue),
            Operation::Data if self.window.receive(data.len() as u32) => {
                self.pending.extend(data);
                taken = data.len() as u64;
            }
            // The guest sent more than its credit.
            Operation::Data => self.reset(rx_queue),
            _ => {}
        }
        self.flush(rx_queue);
        taken
    }

    /// Confirms to the program that the guest accepted its connection.
    fn confirm_handshake(&mut self, before: ConnState, rx_queue: &mut RxQueue) {
        if before != ConnState::Requested {
            return;
        }
        let line = format!("OK {}\n", self.ports.host);
        // The first write to the socket: its buffer has space for a line.
        if !matches!(self.socket.write(line.as_bytes()), Ok(count) if count == line.len()) {
            self.apply(ConnEvent::HostGone, rx_queue);
        }
    }

    /// Handles the socket's events; returns the number of data bytes for the guest.
    pub fn handle_socket(&mut self, events: PollFlags, rx_queue: &mut RxQueue) -> u64 {
        if events.contains(PollFlags::POLLOUT) {
            self.flush(rx_queue);
        }
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        if !self.state.reads_host() {
            if events.intersects(ended) {
                self.apply(ConnEvent::HostGone, rx_queue);
            }
            return 0;
        }
        if events.intersects(PollFlags::POLLIN | ended) { self.read(rx_queue) } else { 0 }
    }

    /// Reads data from the program, as far as the guest has credit.
    fn read(&mut self, rx_queue: &mut RxQueue) -> u64 {
        let limit = (self.peer_credit.available() as usize).min(CHUNK);
        if limit == 0 || !rx_queue.takes_data() {
            return 0;
        }
        let mut data = vec![0; limit];
        match self.socket.read(&mut data) {
            Ok(0) => {
                self.apply(ConnEvent::HostEnded, rx_queue);
                self.flush(rx_queue);
                0
            }
            Ok(count) => {
                data.truncate(count);
                self.peer_credit.spend(count as u32);
                let header = self.header(Operation::Data, 0);
                rx_queue.push(VsockPacket { header, data });
                self.request_credit(rx_queue);
                count as u64
            }
            Err(error) if would_wait(&error) => 0,
            Err(_) => {
                self.apply(ConnEvent::HostGone, rx_queue);
                0
            }
        }
    }

    /// Sends one credit request when the guest has no credit left, as far as is known.
    fn request_credit(&mut self, rx_queue: &mut RxQueue) {
        if self.peer_credit.available() == 0 && !self.asked {
            self.asked = true;
            self.send(Operation::CreditRequest, 0, rx_queue);
        }
    }

    /// Writes the guest's data to the program, as much as it accepts.
    fn flush(&mut self, rx_queue: &mut RxQueue) {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let count = match self.socket.write(front) {
                Ok(count) => count.min(self.pending.len()),
                Err(error) if would_wait(&error) => break,
                // The program reads no more; its earlier data may still be for the guest.
                Err(_) => self.pending.len(),
            };
            self.pending.drain(..count);
            self.window.forward(count as u32);
        }
        if self.is_closed() {
            return;
        }
        if self.window.is_stale() && self.state.feeds_host() {
            self.send(Operation::CreditUpdate, 0, rx_queue);
        }
        if self.pending.is_empty() {
            if !self.state.feeds_host() {
                // As above.
                let _ = self.socket.shutdown(net::Shutdown::Write);
            }
            self.apply(ConnEvent::Delivered, rx_queue);
        }
    }

    fn apply(&mut self, event: ConnEvent, rx_queue: &mut RxQueue) {
        let (state, answer) = self.state.next(event);
        self.state = state;
        match answer {
            Reply::Nothing => {}
            Reply::Shutdown => self.send(Operation::Shutdown, Shutdown::SEND, rx_queue),
            Reply::Reset => self.send(Operation::Reset, 0, rx_queue),
        }
    }

    fn reset(&mut self, rx_queue: &mut RxQueue) {
        self.state = ConnState::Closed;
        self.send(Operation::Reset, 0, rx_queue);
    }

    fn send(&mut self, operation: Operation, flags: u32, rx_queue: &mut RxQueue) {
        let header = self.header(operation, flags);
        rx_queue.push(VsockPacket { header, data: Vec::new() });
    }

    fn header(&mut self, operation: Operation, flags: u32) -> VsockHeader {
        let credit = self.window.advertise();
        VsockHeader { ports: self.ports, operation: Some(operation), length: 0, flags, credit }
    }
}
