//! A further port, with a name, for a program such as an agent: a Unix socket that accepts one
//! program at a time.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::PollFlags;

use super::input::Input;
use super::terminal::take_output;
use crate::acceptor::Acceptor;
use crate::device::{DeviceMemory, Fault, QueueContext, Source};
use crate::listener::{Listener, would_wait};
use crate::stats::DeviceStats;

/// The indices of a port's two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortQueues {
    /// The queue to the guest.
    pub receive: usize,
    /// The queue from the guest.
    pub transmit: usize,
}

/// A named port.
#[derive(Debug)]
pub struct NamedPort {
    name: String,
    acceptor: Acceptor,
    program: Option<Program>,
    input: Input,
    /// Bytes that the guest sent and the program has not read yet.
    output: Vec<u8>,
    guest: GuestEnd,
    stats: Arc<DeviceStats>,
}

/// The connected program.
#[derive(Debug)]
struct Program {
    socket: UnixStream,
    /// The program sends no more bytes; it may still read.
    silent: bool,
}

/// The state of the guest's end.
#[derive(Debug, Default)]
struct GuestEnd {
    /// The driver is ready to use the port.
    ready: bool,
    /// The driver knows that the host's end is open.
    told_open: bool,
    /// An application in the guest has the port open.
    open: bool,
}

impl NamedPort {
    /// Creates a port with this socket.
    pub fn new(name: &str, socket: Listener, stats: Arc<DeviceStats>) -> Self {
        Self {
            name: name.to_owned(),
            acceptor: Acceptor::new(socket),
            program: None,
            input: Input::default(),
            output: Vec::new(),
            guest: GuestEnd::default(),
            stats,
        }
    }

    /// The name that the guest sees.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of the socket that a program connects to.
    pub fn path(&self) -> &Path {
        self.acceptor.path()
    }

    /// Resets the guest's end: the driver is gone. The program stays connected.
    pub fn reset(&mut self) {
        self.guest = GuestEnd::default();
        self.input.refill();
    }

    /// Notes that the driver is ready to use the port.
    pub fn set_ready(&mut self) {
        self.guest.ready = true;
        self.guest.told_open = false;
    }

    /// Notes that an application in the guest opened or closed the port.
    pub fn set_guest_open(&mut self, open: bool) {
        self.guest.open = open;
    }

    /// Whether an application in the guest has the port open.
    pub fn is_guest_open(&self) -> bool {
        self.guest.open
    }

    /// Returns whether the host's end is open, if the driver does not know that yet.
    pub fn take_open_change(&mut self) -> Option<bool> {
        let open = self.program.is_some();
        if !self.guest.ready || open == self.guest.told_open {
            return None;
        }
        self.guest.told_open = open;
        Some(open)
    }

    /// The source to poll: the listening socket, or the connected program. `None` while the
    /// program's bytes wait for the guest.
    pub fn source(&self) -> Option<Source<'_>> {
        let Some(program) = &self.program else {
            return self.acceptor.source();
        };
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.reads());
        events.set(PollFlags::POLLOUT, !self.output.is_empty());
        // poll() reports a hang-up even if no event is requested.
        let wanted = !events.is_empty() || !self.may_notify_guest();
        wanted.then(|| Source { fd: program.socket.as_fd(), events })
    }

    /// When the port accepts a program again, after accepting failed.
    pub fn deadline(&self) -> Option<Instant> {
        if self.program.is_none() { self.acceptor.deadline() } else { None }
    }

    /// Whether the program can still send bytes to the guest.
    fn may_notify_guest(&self) -> bool {
        self.guest.open && self.program.as_ref().is_some_and(|program| !program.silent)
    }

    fn reads(&self) -> bool {
        self.may_notify_guest() && self.input.is_wanted() && self.input.is_empty()
    }

    /// Handles the doorbell of the receive queue: buffers may be available.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn refill<M: DeviceMemory>(
        &mut self,
        at: PortQueues,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        self.input.refill();
        self.receive(at, queues)
    }

    fn receive<M: DeviceMemory>(
        &mut self,
        at: PortQueues,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        if self.reads() {
            self.read();
        }
        self.input.give(at.receive, queues, &self.stats)
    }

    /// Reads bytes from the program.
    fn read(&mut self) {
        let Some(program) = &mut self.program else { return };
        let read = self.input.take(|bytes| match program.socket.read(bytes) {
            Err(error) if would_wait(&error) => Ok(None),
            count => count.map(Some),
        });
        program.silent = matches!(read, Ok(Some(0)) | Err(_));
    }

    /// Passes the guest's bytes on to the program: one request, once the previous one is written.
    /// Without a program the bytes are dropped; Linux does not send then.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn transmit<M: DeviceMemory>(
        &mut self,
        at: PortQueues,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        self.flush();
        if !self.output.is_empty() {
            return Ok(());
        }
        let (output, stats) = (&mut self.output, &self.stats);
        queues.process_some(at.transmit, 1, |request, memory| {
            output.extend(take_output(request, memory, stats)?);
            Ok(0)
        })?;
        self.flush();
        Ok(())
    }

    fn flush(&mut self) {
        let Some(program) = &mut self.program else { return self.output.clear() };
        while !self.output.is_empty() {
            match program.socket.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count.min(self.output.len()))),
                Err(error) if would_wait(&error) => return,
                // It reads no more; its earlier bytes may still be for the guest.
                Err(_) => return self.output.clear(),
            }
        }
    }

    /// Handles the sources: accepts a program, transfers bytes, notices a program that left.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn handle_source<M: DeviceMemory>(
        &mut self,
        at: PortQueues,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        if self.program.is_none() {
            let accepted = self.acceptor.accept();
            self.program = accepted.map(|socket| Program { socket, silent: false });
        }
        if !self.may_notify_guest() && self.has_left() {
            // The guest has its bytes, unless no application in the guest read them.
            self.program = None;
            self.input = Input::default();
            self.output.clear();
        }
        self.receive(at, queues)?;
        self.transmit(at, queues)
    }

    /// Whether the program closed its end.
    fn has_left(&self) -> bool {
        use nix::poll::{PollFd, PollTimeout, poll};
        let Some(program) = &self.program else { return false };
        let mut fds = [PollFd::new(program.socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
