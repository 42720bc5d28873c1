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
pub use self::pty::{LocalTerminals, Pty, Terminals};
use self::size::SizeWatch;
use self::terminal::{MAX_REQUEST_BYTES, Terminal};
use super::{BATCH, DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice};
use crate::listener::{ListenError, SocketDirectory, Sockets};
use crate::record::DeviceNote;
use crate::stats::DeviceStats;

/// Feature bit: the configuration space has the terminal's size (section 5.3.3).
pub const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Feature bit: the device has several ports, and queues for control messages.
pub const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// The queue for input to the guest (section 5.3.2).
const RECEIVE: usize = 0;
/// The queue for output of the guest.
const TRANSMIT: usize = 1;
/// Number of queues of a console without further ports.
const QUEUES: usize = 2;
/// The first queue of the first further port. Every port has two queues.
const NAMED_QUEUES: usize = 4;
/// Number of entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes of the configuration space (section 5.3.4): columns, rows, number of ports, and a field
/// whose feature the device does not offer.
const CONFIG_SIZE: usize = 12;
/// The port that is the console proper.
const TERMINAL: u32 = 0;

/// An error that prevents a console from being opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The pseudo-terminal cannot be created.
    #[error("cannot create a pseudo-terminal")]
    Terminal(#[source] io::Error),
    /// A timer cannot be created.
    #[error("cannot create a timer for the console")]
    Timer(#[from] nix::Error),
    /// The socket of a port cannot be created.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A console device.
#[derive(Debug)]
pub struct Console {
    terminal: Terminal,
    size: SizeWatch,
    named: Vec<NamedPort>,
    control: ControlQueue,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_SIZE],
    /// The configuration space changed since the bus last asked.
    changed: bool,
    /// The device must send the size to the driver in a control message.
    resized: bool,
    /// The features that the driver negotiated.
    features: u64,
    /// Where the next process finds which ports the guest has open, a bit for each further port.
    note: Option<DeviceNote>,
    /// The note of an earlier process.
    noted: u32,
}

impl Console {
    /// Opens a console on one of these terminals. `ports`: name and socket path of each further
    /// port, whose sockets are in the daemon's own directory.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn open(
        terminals: &dyn Terminals,
        sockets: &dyn Sockets,
        ports: &[(String, PathBuf)],
        stats: &Arc<DeviceStats>,
    ) -> Result<Self, ConsoleError> {
        let pty = terminals.open().map_err(ConsoleError::Terminal)?;
        let open = |(name, path): &(String, PathBuf)| {
            let socket = sockets.listen(path, SocketDirectory::Own)?;
            Ok::<_, ListenError>(NamedPort::new(name, socket, Arc::clone(stats)))
        };
        let named = ports.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let queues = if named.is_empty() { QUEUES } else { NAMED_QUEUES + 2 * named.len() };
        let mut console = Self {
            terminal: Terminal::new(pty, Arc::clone(stats))?,
            size: SizeWatch::new()?,
            named,
            control: ControlQueue::default(),
            queue_sizes: vec![QUEUE_SIZE; queues],
            config: [0; CONFIG_SIZE],
            changed: false,
            resized: false,
            features: 0,
            note: None,
            noted: 0,
        };
        console.write_config();
        Ok(console)
    }

    /// The path of the device that a terminal program opens.
    pub fn path(&self) -> &Path {
        self.terminal.path()
    }

    /// Name and socket path of each further port.
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

    /// Checks whether the size of the terminal's window changed, and prepares to notify the driver.
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

    /// The index among the further ports of the one that queue `index` belongs to.
    fn named_at(&self, index: usize) -> Option<usize> {
        let position = index.checked_sub(NAMED_QUEUES)? / 2;
        (position < self.named.len()).then_some(position)
    }

    /// Handles the driver's control messages, at most a batch, while there is capacity for the
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

    /// Maximum number of messages with which [`Console::handle_message`] answers.
    fn answers(&self, message: FromDriver) -> usize {
        match message {
            FromDriver::DeviceReady => 1 + self.named.len(),
            FromDriver::PortReady(TERMINAL) => 3,
            FromDriver::PortReady(_) => 1,
            FromDriver::PortOpen(..) | FromDriver::Unknown => 0,
        }
    }

    /// Handles a control message of the driver.
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
                self.write_note();
            }
            FromDriver::Unknown => {}
        }
    }

    fn write_note(&self) {
        let open = self.named.iter().enumerate().filter(|(_, port)| port.is_guest_open());
        let bits = open.fold(0, |bits, (position, _)| bits | 1 << position);
        self.note.iter().for_each(|note| note.set(bits));
    }

    /// Sends port events to the driver: programs that connected or left, and the size. Where the
    /// queue of messages is full, a later call sends the state of that time.
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

/// The further port with this port number; the first has number 1.
fn named(ports: &mut [NamedPort], number: u32) -> Option<&mut NamedPort> {
    ports.get_mut((number as usize).checked_sub(1)?)
}

/// The queues of the further port with this index, from 0.
fn queues_of(position: usize) -> PortQueues {
    let receive = NAMED_QUEUES + 2 * position;
    PortQueues { receive, transmit: receive + 1 }
}

/// The bus does not enable queues that the device does not have.
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

    /// What an earlier process had read of the terminal, and not passed on, is lost, and programs
    /// at the ports have to connect again.
    fn can_be_taken_over(&self) -> bool {
        true
    }

    fn keep_note(&mut self, note: DeviceNote) {
        self.noted = note.get();
        self.note = Some(note);
    }

    fn keep_no_more(&mut self) {
        self.note = None;
    }

    fn leave_note(&mut self) {
        self.note = None;
    }

    /// Announces the ports once more, since messages about them may be lost: a driver answers that
    /// it is ready for those that it has. Programs are gone.
    fn note_taken_over(&mut self) {
        if !self.has(VIRTIO_CONSOLE_F_MULTIPORT) {
            return;
        }
        self.control.queue(TERMINAL, ToDriver::PortAdd);
        for (position, port) in self.named.iter_mut().enumerate() {
            port.set_guest_open(self.noted >> position & 1 != 0);
            let number = position as u32 + 1;
            self.control.queue(number, ToDriver::PortAdd);
            self.control.queue(number, ToDriver::PortOpen(false));
        }
        self.write_note();
    }

    /// Input and output that were read already stay, since the driver does not own them any more,
    /// and programs stay connected.
    fn reset(&mut self) {
        (self.features, self.resized) = (0, false);
        self.terminal.reset();
        self.control.reset();
        self.named.iter_mut().for_each(NamedPort::reset);
        self.write_note();
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
