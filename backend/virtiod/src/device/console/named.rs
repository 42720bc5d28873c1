//! A further port, with a name, for a program such as an agent: a Unix socket that one program at a
//! time connects to.

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
use crate::listener::{ListenError, would_wait};
use crate::stats::DeviceStats;

/// Where a port's two queues are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortQueues {
    /// To the guest.
    pub receive: usize,
    /// From the guest.
    pub transmit: usize,
}

/// A port with a name.
#[derive(Debug)]
pub struct NamedPort {
    name: String,
    acceptor: Acceptor,
    program: Option<Program>,
    input: Input,
    /// What the guest sent and the program has not taken yet.
    output: Vec<u8>,
    guest: GuestEnd,
    stats: Arc<DeviceStats>,
}

/// The program that is connected.
#[derive(Debug)]
struct Program {
    socket: UnixStream,
    /// It says nothing more, and may still listen.
    silent: bool,
}

/// What the guest knows and does.
#[derive(Debug, Default)]
struct GuestEnd {
    /// It can be told of the port.
    ready: bool,
    /// It was told that the host's end is open.
    told_open: bool,
    /// An application has the port open.
    open: bool,
}

impl NamedPort {
    /// A port whose socket lies at `path`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(name: &str, path: &Path, stats: Arc<DeviceStats>) -> Result<Self, ListenError> {
        Ok(Self {
            name: name.to_owned(),
            acceptor: Acceptor::listen(path)?,
            program: None,
            input: Input::default(),
            output: Vec::new(),
            guest: GuestEnd::default(),
            stats,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a program connects to.
    pub fn path(&self) -> &Path {
        self.acceptor.path()
    }

    /// The driver is gone. The program stays.
    pub fn reset(&mut self) {
        self.guest = GuestEnd::default();
        self.input.refill();
    }

    /// The driver can be told of the port.
    pub fn set_ready(&mut self) {
        self.guest.ready = true;
        self.guest.told_open = false;
    }

    /// An application in the guest opened or closed the port.
    pub fn set_guest_open(&mut self, open: bool) {
        self.guest.open = open;
    }

    /// Whether the host's end is open now, if the driver is yet to be told.
    pub fn take_open_change(&mut self) -> Option<bool> {
        let open = self.program.is_some();
        if !self.guest.ready || open == self.guest.told_open {
            return None;
        }
        self.guest.told_open = open;
        Some(open)
    }

    /// What to wait for: a program, or what the one that is there sends or takes. None for a
    /// program whose words wait for the guest.
    pub fn source(&self) -> Option<Source<'_>> {
        let Some(program) = &self.program else {
            return self.acceptor.source();
        };
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.reads());
        events.set(PollFlags::POLLOUT, !self.output.is_empty());
        // A hang-up is told even if nothing is asked for.
        let wanted = !events.is_empty() || !self.may_notify_guest();
        wanted.then(|| Source { fd: program.socket.as_fd(), events })
    }

    /// When a program may be accepted again, after that failed.
    pub fn deadline(&self) -> Option<Instant> {
        if self.program.is_none() { self.acceptor.deadline() } else { None }
    }

    /// Whether the program may have something for the guest, now or later.
    fn may_notify_guest(&self) -> bool {
        self.guest.open && self.program.as_ref().is_some_and(|program| !program.silent)
    }

    fn reads(&self) -> bool {
        self.may_notify_guest() && self.input.is_wanted() && self.input.is_empty()
    }

    /// The doorbell of the receive queue rang.
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

    /// Takes what the program says.
    fn read(&mut self) {
        let Some(program) = &mut self.program else { return };
        let read = self.input.take(|bytes| match program.socket.read(bytes) {
            Err(error) if would_wait(&error) => Ok(None),
            count => count.map(Some),
        });
        program.silent = matches!(read, Ok(Some(0)) | Err(_));
    }

    /// Hands on what the guest sends: a request, if what was taken before has left. Where no
    /// program is there it is dropped; Linux does not send then.
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
                // It takes nothing any more; what it said before may still be for the guest.
                Err(_) => return self.output.clear(),
            }
        }
    }

    /// Does what can be done now.
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
            // What it said is with the guest, unless no application there listened.
            self.program = None;
            self.input = Input::default();
            self.output.clear();
        }
        self.receive(at, queues)?;
        self.transmit(at, queues)
    }

    /// Whether the program is gone.
    fn has_left(&self) -> bool {
        use nix::poll::{PollFd, PollTimeout, poll};
        let Some(program) = &self.program else { return false };
        let mut fds = [PollFd::new(program.socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
