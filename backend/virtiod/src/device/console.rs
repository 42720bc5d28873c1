//! The console device (virtio 1.3 section 5.3): a pseudo-terminal, and further ports with names.

mod control;
mod input;
mod named;
mod output;
mod pty;
mod size;
mod terminal;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use self::control::{CONTROL_RECEIVE, CONTROL_TRANSMIT, ControlQueue, FromDriver, ToDriver};
use self::named::{NamedPort, PortQueues};
use self::pty::Size;
use self::size::SizeWatch;
use self::terminal::{MAX_REQUEST_BYTES, Terminal};
use super::{BATCH, DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice};
use crate::listener::ListenError;
use crate::stats::DeviceStats;

/// Feature bit: the configuration space has the terminal's size (section 5.3.3).
pub const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Feature bit: there is more than one port, and the queues for control messages.
pub const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// The queue for what is typed (section 5.3.2).
const RECEIVE: usize = 0;
/// The queue for what is printed.
const TRANSMIT: usize = 1;
/// Queues of a console that has no further port.
const QUEUES: usize = 2;
/// The first queue of the first further port; every port has two.
const NAMED_QUEUES: usize = 4;
/// Entries in each.
const QUEUE_SIZE: u16 = 64;
/// Bytes of the configuration space (section 5.3.4): columns, rows, ports, and a field that counts
/// only with a feature that is not offered.
const CONFIG_SIZE: usize = 12;
/// The port that is the console proper.
const TERMINAL: u32 = 0;

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The terminal.
    #[error("cannot make a pseudo-terminal")]
    Terminal(#[source] io::Error),
    /// The timer.
    #[error("cannot make a timer")]
    Timer(#[from] nix::Error),
    /// A port's socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A console.
#[derive(Debug)]
pub struct Console {
    terminal: Terminal,
    size: SizeWatch,
    named: Vec<NamedPort>,
    control: ControlQueue,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_SIZE],
    /// The configuration space changed since that was asked last.
    changed: bool,
    /// The driver is to be told of the size by a control message.
    resized: bool,
    /// What the driver accepted.
    features: u64,
}

impl Console {
    /// A console on a pseudo-terminal of its own, with further ports: the name and socket of each.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn open(
        ports: &[(String, PathBuf)],
        stats: &Arc<DeviceStats>,
    ) -> Result<Self, ConsoleError> {
        let named = ports.iter().map(|(name, path)| NamedPort::open(name, path, Arc::clone(stats)));
        let named = named.collect::<Result<Vec<_>, _>>()?;
        let queues = if named.is_empty() { QUEUES } else { NAMED_QUEUES + 2 * named.len() };
        let mut console = Self {
            terminal: Terminal::open(Arc::clone(stats))?,
            size: SizeWatch::new()?,
            named,
            control: ControlQueue::default(),
            queue_sizes: vec![QUEUE_SIZE; queues],
            config: [0; CONFIG_SIZE],
            changed: false,
            resized: false,
            features: 0,
        };
        console.write_config();
        Ok(console)
    }

    /// What a terminal program opens.
    pub fn path(&self) -> &Path {
        self.terminal.path()
    }

    /// The further ports: name and socket of each.
    pub fn ports(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.named.iter().map(|port| (port.name(), port.path()))
    }

    fn write_config(&mut self) {
        let Size { columns, rows } = self.size.known();
        let ports = 1 + self.named.len() as u32;
        let fields: [&[u8]; 3] =
            [&columns.to_le_bytes(), &rows.to_le_bytes(), &ports.to_le_bytes()];
        let bytes = fields.into_iter().flatten();
        self.config.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Looks whether the terminal's window changed, and has the driver told.
    fn update_size(&mut self) -> Result<(), Fault> {
        let size = self.terminal.size()?;
        let changed = self.size.update(size).map_err(|errno| Fault::Host("timer", errno.into()))?;
        if changed.is_some() {
            self.write_config();
            self.changed = true;
            self.resized = self.has(VIRTIO_CONSOLE_F_MULTIPORT);
        }
        Ok(())
    }

    /// The port of queue `index`, if it is one of a further port's, with its number among these.
    fn named_at(&self, index: usize) -> Option<usize> {
        let position = index.checked_sub(NAMED_QUEUES)? / 2;
        (position < self.named.len()).then_some(position)
    }

    /// Takes the driver's control messages, a turn's worth, as long as there is capacity for the
    /// answers.
    fn handle_control_messages<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        for _ in 0..BATCH {
            let Some(message) = self.control.next(queues)? else { break };
            if self.answers(message) > self.control.capacity() {
                self.control.put_back(message);
                break;
            }
            self.handle_message(message);
        }
        Ok(())
    }

    /// How many messages [`Console::handle_message`] answers with, at most.
    fn answers(&self, message: FromDriver) -> usize {
        match message {
            FromDriver::DeviceReady => 1 + self.named.len(),
            FromDriver::PortReady(TERMINAL) => 3,
            FromDriver::PortReady(_) => 1,
            FromDriver::PortOpen(..) | FromDriver::Unknown => 0,
        }
    }

    /// Does what a control message of the driver's asks for.
    fn handle_message(&mut self, message: FromDriver) {
        match message {
            FromDriver::DeviceReady => {
                let ports = 0..=self.named.len() as u32;
                ports.for_each(|port| self.control.queue(port, ToDriver::PortAdd));
            }
            FromDriver::PortReady(TERMINAL) => {
                self.control.queue(TERMINAL, ToDriver::ConsolePort);
                self.control.queue(TERMINAL, ToDriver::PortOpen(true));
                if self.size.known() != Size::default() {
                    self.control.queue(TERMINAL, ToDriver::Resize(self.size.known()));
                }
            }
            FromDriver::PortReady(number) => {
                if let Some(port) = named(&mut self.named, number) {
                    port.set_ready();
                    self.control.queue(number, ToDriver::PortName(port.name()));
                }
            }
            FromDriver::PortOpen(number, open) => {
                if let Some(port) = named(&mut self.named, number) {
                    port.set_guest_open(open);
                }
            }
            FromDriver::Unknown => {}
        }
    }

    /// Tells the driver of programs that came and went, and of the size; later, and of how it is
    /// then, where no more messages may wait.
    fn send_port_events<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        for (port, number) in self.named.iter_mut().zip(1..) {
            if self.control.capacity() == 0 {
                break;
            }
            if let Some(open) = port.take_open_change() {
                self.control.queue(number, ToDriver::PortOpen(open));
            }
        }
        if self.resized && self.control.capacity() > 0 {
            self.control.queue(TERMINAL, ToDriver::Resize(self.size.known()));
            self.resized = false;
        }
        self.control.send(queues)
    }
}

/// The further port with this number, from 1.
fn named(ports: &mut [NamedPort], number: u32) -> Option<&mut NamedPort> {
    ports.get_mut((number as usize).checked_sub(1)?)
}

/// The queues of the further port at this position, from 0.
fn queues_of(position: usize) -> PortQueues {
    let receive = NAMED_QUEUES + 2 * position;
    PortQueues { receive, transmit: receive + 1 }
}

/// A queue that the device does not have cannot be enabled.
const NO_PORT: Fault = Fault::Internal("a console's queue belongs to no port");

impl<M: DeviceMemory> VirtioDevice<M> for Console {
    fn id(&self) -> DeviceId {
        DeviceId::Console
    }

    fn kind(&self) -> &'static str {
        "console"
    }

    fn features(&self) -> u64 {
        let multiport = u64::from(!self.named.is_empty());
        1 << VIRTIO_CONSOLE_F_SIZE | multiport << VIRTIO_CONSOLE_F_MULTIPORT
    }

    fn longest_request(&self) -> u64 {
        MAX_REQUEST_BYTES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, features: u64) -> Result<(), Fault> {
        self.features = features;
        Ok(())
    }

    /// What was typed and what was printed stay: neither is the driver's any more. So do programs.
    fn reset(&mut self) {
        (self.features, self.resized) = (0, false);
        self.terminal.reset();
        self.control.reset();
        self.named.iter_mut().for_each(NamedPort::reset);
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        match index {
            RECEIVE => self.terminal.refill(queues)?,
            TRANSMIT => self.terminal.transmit(queues)?,
            CONTROL_RECEIVE => self.control.refill(queues)?,
            CONTROL_TRANSMIT => self.handle_control_messages(queues)?,
            _ => {
                let position = self.named_at(index).ok_or(NO_PORT)?;
                let port = self.named.get_mut(position).ok_or(NO_PORT)?;
                let at = queues_of(position);
                if index == at.receive {
                    port.refill(at, queues)?;
                } else {
                    port.transmit(at, queues)?;
                }
            }
        }
        self.send_port_events(queues)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let size = self.has(VIRTIO_CONSOLE_F_SIZE).then(|| self.size.source());
        let named = self.named.iter().filter_map(NamedPort::source);
        self.terminal.sources().chain(size).chain(named).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        self.named.iter().filter_map(NamedPort::deadline).min()
    }

    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        if self.has(VIRTIO_CONSOLE_F_SIZE) {
            self.update_size()?;
        }
        self.terminal.handle_source(queues)?;
        for (position, port) in self.named.iter_mut().enumerate() {
            port.handle_source(queues_of(position), queues)?;
        }
        self.send_port_events(queues)
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}
