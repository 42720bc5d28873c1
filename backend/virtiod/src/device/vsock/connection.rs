//! One connection: a stream between a port of the guest's and a Unix socket.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;

use super::credit::{Allowance, Window};
use super::header::{Header, Operation, Ports, Room, Shutdown};
use super::outbox::{Outbox, Packet};
use super::stage::{Answer, Happening, Stage};
use crate::device::Source;
use crate::listener::would_wait;

/// Most bytes that are read from a program at once.
const CHUNK: usize = 16 << 10;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    socket: UnixStream,
    stage: Stage,
    allowance: Allowance,
    /// The guest was asked for room, since it had none.
    asked: bool,
    window: Window,
    /// What the guest sent and the program has not taken yet; as much as the window lets in.
    pending: VecDeque<u8>,
}

impl Connection {
    /// A connection that a program asks for: asks the guest.
    pub fn request(ports: Ports, socket: UnixStream, outbox: &mut Outbox) -> Self {
        let no_room = Room { buf_alloc: 0, fwd_cnt: 0 };
        let mut connection = Self::new(ports, socket, Stage::Requested, no_room);
        connection.tell(Operation::Request, 0, outbox);
        connection
    }

    /// A connection that the guest asked for: grants it.
    pub fn grant(ports: Ports, socket: UnixStream, room: Room, outbox: &mut Outbox) -> Self {
        let mut connection = Self::new(ports, socket, Stage::Open, room);
        connection.tell(Operation::Response, 0, outbox);
        connection
    }

    fn new(ports: Ports, socket: UnixStream, stage: Stage, room: Room) -> Self {
        Self {
            ports,
            socket,
            stage,
            allowance: Allowance::new(room),
            asked: false,
            window: Window::default(),
            pending: VecDeque::new(),
        }
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// What to wait for: nothing while neither end can be served.
    pub fn source(&self, outbox: &Outbox) -> Option<Source<'_>> {
        let reads = self.stage.reads_host();
        let mut events = PollFlags::empty();
        let wanted = reads && outbox.takes_data() && self.allowance.available() > 0;
        events.set(PollFlags::POLLIN, wanted);
        events.set(PollFlags::POLLOUT, !self.pending.is_empty());
        // A hang-up is told even if nothing is asked for. While something may be left to read it is not
        // yet of interest, and would be told without end.
        (!events.is_empty() || !reads).then(|| Source { fd: self.socket.as_fd(), events })
    }

    /// Takes a packet of the guest's; gives the bytes of data that were for the program.
    pub fn hear(&mut self, header: &Header, data: &[u8], outbox: &mut Outbox) -> u64 {
        self.allowance.update(header.room);
        self.asked &= self.allowance.available() == 0;
        let Some(operation) = header.operation else {
            self.reset(outbox);
            return 0;
        };
        let before = self.stage;
        self.follow(Happening::Packet(operation, Shutdown(header.flags)), outbox);
        let mut taken = 0;
        match operation {
            _ if self.is_closed() => {}
            Operation::Response => self.greet(before, outbox),
            // Fails only for a program that is gone, which is noticed otherwise.
            Operation::Shutdown if header.flags & Shutdown::RECEIVE != 0 => {
                let _ = self.socket.shutdown(net::Shutdown::Read);
            }
            Operation::CreditRequest => self.tell(Operation::CreditUpdate, 0, outbox),
            Operation::Data if self.window.receive(data.len() as u32) => {
                self.pending.extend(data);
                taken = data.len() as u64;
            }
            // More than it was allowed to send.
            Operation::Data => self.reset(outbox),
            _ => {}
        }
        self.flush(outbox);
        taken
    }

    /// Tells the program that the guest took its connection.
    fn greet(&mut self, before: Stage, outbox: &mut Outbox) {
        if before != Stage::Requested {
            return;
        }
        let line = format!("OK {}\n", self.ports.host);
        // Nothing was written before, so there is room for a line.
        if !matches!(self.socket.write(line.as_bytes()), Ok(count) if count == line.len()) {
            self.follow(Happening::HostGone, outbox);
        }
    }

    /// Does what the socket is ready for; gives the bytes of data that were for the guest.
    pub fn wake(&mut self, events: PollFlags, outbox: &mut Outbox) -> u64 {
        if events.contains(PollFlags::POLLOUT) {
            self.flush(outbox);
        }
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        if !self.stage.reads_host() {
            if events.intersects(ended) {
                self.follow(Happening::HostGone, outbox);
            }
            return 0;
        }
        if events.intersects(PollFlags::POLLIN | ended) { self.read(outbox) } else { 0 }
    }

    /// Reads what the program sends, as far as the guest has room.
    fn read(&mut self, outbox: &mut Outbox) -> u64 {
        let room = (self.allowance.available() as usize).min(CHUNK);
        if room == 0 || !outbox.takes_data() {
            return 0;
        }
        let mut data = vec![0; room];
        match self.socket.read(&mut data) {
            Ok(0) => {
                self.follow(Happening::HostEnded, outbox);
                self.flush(outbox);
                0
            }
            Ok(count) => {
                data.truncate(count);
                self.allowance.spend(count as u32);
                let header = self.header(Operation::Data, 0);
                outbox.push(Packet { header, data });
                self.ask_for_room(outbox);
                count as u64
            }
            Err(error) if would_wait(&error) => 0,
            Err(_) => {
                self.follow(Happening::HostGone, outbox);
                0
            }
        }
    }

    /// Asks the guest how much room it has, once, when it has none by what is known.
    fn ask_for_room(&mut self, outbox: &mut Outbox) {
        if self.allowance.available() == 0 && !self.asked {
            self.asked = true;
            self.tell(Operation::CreditRequest, 0, outbox);
        }
    }

    /// Gives the program what it takes of what the guest sent.
    fn flush(&mut self, outbox: &mut Outbox) {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let count = match self.socket.write(front) {
                Ok(count) => count.min(self.pending.len()),
                Err(error) if would_wait(&error) => break,
                // It takes nothing any more; what it sent before may still be for the guest.
                Err(_) => self.pending.len(),
            };
            self.pending.drain(..count);
            self.window.forward(count as u32);
        }
        if self.is_closed() {
            return;
        }
        if self.window.is_stale() && self.stage.feeds_host() {
            self.tell(Operation::CreditUpdate, 0, outbox);
        }
        if self.pending.is_empty() {
            if !self.stage.feeds_host() {
                // As above.
                let _ = self.socket.shutdown(net::Shutdown::Write);
            }
            self.follow(Happening::Delivered, outbox);
        }
    }

    fn follow(&mut self, happening: Happening, outbox: &mut Outbox) {
        let (stage, answer) = self.stage.next(happening);
        self.stage = stage;
        match answer {
            Answer::Nothing => {}
            Answer::Shutdown => self.tell(Operation::Shutdown, Shutdown::SEND, outbox),
            Answer::Reset => self.tell(Operation::Reset, 0, outbox),
        }
    }

    fn reset(&mut self, outbox: &mut Outbox) {
        self.stage = Stage::Closed;
        self.tell(Operation::Reset, 0, outbox);
    }

    fn tell(&mut self, operation: Operation, flags: u32, outbox: &mut Outbox) {
        let header = self.header(operation, flags);
        outbox.push(Packet { header, data: Vec::new() });
    }

    fn header(&mut self, operation: Operation, flags: u32) -> Header {
        let room = self.window.tell();
        Header { ports: self.ports, operation: Some(operation), length: 0, flags, room }
    }
}
