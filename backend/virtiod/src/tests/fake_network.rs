//! A simulated host network. A test holds the other ends of its cables.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};
use uring::waiting::{AwaitedFd, wait_by_poll};

use crate::device::net::interface::{Interface, LinkState, MAX_PACKET, Offload};
use crate::device::{Gather, Source};
use crate::tap::name::InterfaceName;
use crate::tap::network::{
    Attached, Attachment, Bridge, Exported, InterfaceRequest, LinkMonitor, Network, NetworkError,
};

/// Maximum number of packets that wait in a cable for the guest.
pub(super) const LINK_CAPACITY: usize = 256;

/// Cables by interface name. The host has the bridge `xenbr0` and no other.
#[derive(Clone, Default)]
pub(super) struct FakeNetwork(Arc<Mutex<BTreeMap<String, Arc<FakeLink>>>>);

/// A cable, shared by a test and the device.
pub(super) struct FakeLink {
    state: Mutex<State>,
    sent: Condvar,
    link_changed: EventFd,
    arrived: Vec<EventFd>,
    /// A file of messages for each pair of queues, which replaces the simulated cable.
    messages: OnceLock<Vec<MessageFile>>,
    /// Whether the kernel may receive these by itself.
    arrive_unasked: AtomicBool,
}

/// Both ends of a file whose messages are packets, as those of a TAP interface are.
struct MessageFile {
    device: OwnedFd,
    test: OwnedFd,
}

impl MessageFile {
    fn new() -> Self {
        // The peer gets whole packets, and the socket holds some hundred.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (device, test) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        Self { device, test }
    }

    /// Takes the next packet for the guest.
    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.device, into, RecvFlags::empty())?.0)
    }

    /// Takes the guest's next packet.
    fn sent(&self) -> Vec<u8> {
        let mut packet = vec![0; MAX_PACKET];
        let (length, _) = recv(&self.test, &mut packet[..], RecvFlags::empty()).unwrap();
        packet.truncate(length);
        packet
    }
}

fn send_message(file: &OwnedFd, packet: &[u8]) -> io::Result<()> {
    Ok(send(file, packet, SendFlags::NOSIGNAL).map(drop)?)
}

#[derive(Default)]
struct State {
    to_guest: Vec<VecDeque<Vec<u8>>>,
    from_guest: VecDeque<(usize, Vec<u8>)>,
    pairs: usize,
    offloads: Vec<Offload>,
    is_down: bool,
    is_broken: bool,
    owner: String,
    vlans: Option<String>,
    is_kept: bool,
}

fn event_fd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

impl FakeNetwork {
    /// Returns the cable of the interface `name`.
    pub(super) fn link(&self, name: &str) -> Arc<FakeLink> {
        Arc::clone(self.0.lock().unwrap().get(name).expect(name))
    }

    /// Removes an interface; returns whether it was there.
    pub(super) fn pull_out(&self, name: &str) -> bool {
        let Some(cable) = self.0.lock().unwrap().remove(name) else { return false };
        cable.link_changed.write(1).unwrap();
        true
    }

    /// Names of all interfaces.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

impl Network for FakeNetwork {
    fn attach(&self, request: InterfaceRequest) -> Result<Attached, NetworkError> {
        let (bridge, vlans) = match request.attachment {
            Attachment::Script(_) => (Bridge::Alone, None),
            Attachment::Bridge { bridge, vlans } => (bridge, vlans.map(|vlans| vlans.to_string())),
        };
        let bridge = match bridge {
            Bridge::Alone => None,
            Bridge::Usual => Some("xenbr0".parse().unwrap()),
            Bridge::Named(name) if name.as_str() == "xenbr0" => Some(name),
            Bridge::Named(name) => return Err(NetworkError::NoBridge(name)),
        };
        let name = request.name.to_string();
        let left = self.0.lock().unwrap().get(&name).cloned();
        if let Some(cable) = left.filter(|cable| cable.state().owner == request.device) {
            let interface = Box::new(Plug { network: self.clone(), name, cable });
            return Ok(Attached { interface, bridge });
        }
        let pairs = usize::from(request.pairs.count());
        let to_guest = (0..pairs).map(|_| VecDeque::new()).collect();
        let cable = Arc::new(FakeLink {
            state: Mutex::new(State { to_guest, vlans, owner: request.device, ..State::default() }),
            sent: Condvar::new(),
            link_changed: event_fd(),
            arrived: (0..pairs).map(|_| event_fd()).collect(),
            messages: OnceLock::new(),
            arrive_unasked: AtomicBool::new(true),
        });
        cable.link_changed.write(1).unwrap();
        self.0.lock().unwrap().insert(name.clone(), Arc::clone(&cable));
        let interface = Box::new(Plug { network: self.clone(), name, cable });
        Ok(Attached { interface, bridge })
    }

    fn attach_for_process(&self, request: InterfaceRequest) -> Result<Exported, NetworkError> {
        let pairs = request.pairs.count();
        let name = request.name.to_string();
        let is_left = self.0.lock().unwrap().contains_key(&name);
        let Attached { mut interface, bridge } = self.attach(request)?;
        // The kernel keeps the interface as long as the queues.
        interface.keep(true).unwrap();
        let queues = (0..pairs).map(|_| UnixDatagram::unbound().unwrap().into()).collect();
        let link = Box::new(PluggedLink(self.link(&name)));
        Ok(Exported { queues, mtu: interface.mtu(), bridge, link, is_left })
    }

    fn mtu_of(&self, name: &InterfaceName, device: &str) -> io::Result<Option<u16>> {
        let cable = self.0.lock().unwrap().get(name.as_str()).cloned();
        Ok(cable.filter(|cable| cable.state().owner == device).map(|_| 1500))
    }

    fn remove_left(&self, devices: &BTreeSet<String>) -> io::Result<()> {
        let is_left = |cable: &FakeLink| {
            let state = cable.state();
            state.is_kept && !devices.contains(&state.owner)
        };
        self.0.lock().unwrap().retain(|_, cable| !is_left(cable));
        Ok(())
    }
}

/// The test's end.
impl FakeLink {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sends a packet to the guest through a pair of queues; returns whether the cable keeps it.
    pub(super) fn send(&self, pair: usize, packet: &[u8]) -> bool {
        self.send_together(pair, &[packet.to_vec()])
    }

    /// Sends packets to the guest at once; returns whether the cable keeps them.
    pub(super) fn send_together(&self, pair: usize, packets: &[Vec<u8>]) -> bool {
        let mut state = self.state();
        if let Some(messages) = self.messages.get().filter(|_| pair < state.pairs) {
            return packets.iter().all(|packet| send_message(&messages[pair].test, packet).is_ok());
        }
        if pair >= state.pairs || state.to_guest[pair].len() + packets.len() > LINK_CAPACITY {
            return false;
        }
        state.to_guest[pair].extend(packets.iter().cloned());
        self.arrived[pair].write(1).unwrap();
        true
    }

    /// Waits for the guest's next packet; returns it with the pair that it used. Fails the test
    /// after ten seconds.
    pub(super) fn next(&self) -> (usize, Vec<u8>) {
        if let Some(messages) = self.messages.get() {
            let all = messages.iter().map(|messages| AwaitedFd::readable(messages.test.as_fd()));
            let mut all: Vec<_> = all.collect();
            wait_by_poll(&mut all, Duration::from_secs(10)).unwrap();
            let pair = all.iter().position(|fd| fd.is_ready);
            let pair = pair.expect("waited 10 s for a packet of the guest's");
            return (pair, messages[pair].sent());
        }
        let wait = Duration::from_secs(10);
        let empty = |state: &mut State| state.from_guest.is_empty();
        let (mut state, waited) = self.sent.wait_timeout_while(self.state(), wait, empty).unwrap();
        assert!(!waited.timed_out(), "waited 10 s for a packet of the guest's");
        state.from_guest.pop_front().unwrap()
    }

    /// Makes packets messages of a file for each pair, as a TAP interface's are.
    pub(super) fn use_messages(&self) {
        let files = self.arrived.iter().map(|_| MessageFile::new()).collect();
        assert!(self.messages.set(files).is_ok(), "only once");
    }

    /// Has packets of files asked for, as before Linux 6.7.
    pub(super) fn have_asked(&self) {
        self.arrive_unasked.store(false, Ordering::Relaxed);
    }

    /// Sets the link up or down.
    pub(super) fn set_link(&self, link: LinkState) {
        self.state().is_down = link == LinkState::Down;
        self.link_changed.write(1).unwrap();
    }

    /// Makes every use of the interface fail from now on, as if it had been removed.
    pub(super) fn tear(&self) {
        self.state().is_broken = true;
        for messages in self.messages.get().into_iter().flatten() {
            shutdown(&messages.test, Shutdown::Both).unwrap();
        }
        for arrived in &self.arrived {
            arrived.write(1).unwrap();
        }
    }

    /// Its VLANs, as xl writes them.
    pub(super) fn vlans(&self) -> Option<String> {
        self.state().vlans.clone()
    }

    /// The offloads that the guest handles.
    pub(super) fn offloads(&self) -> Vec<Offload> {
        self.state().offloads.clone()
    }

    /// Number of attached queue pairs.
    pub(super) fn pairs(&self) -> usize {
        self.state().pairs
    }
}

/// The device's end.
struct Plug {
    network: FakeNetwork,
    name: String,
    cable: Arc<FakeLink>,
}

impl Plug {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.cable.state();
        if state.is_broken { Err(io::Error::other("torn")) } else { Ok(state) }
    }
}

impl Interface for Plug {
    fn mtu(&self) -> u16 {
        1500
    }

    fn use_pairs(&mut self, count: usize) -> io::Result<()> {
        let mut state = self.state()?;
        state.pairs = count;
        state.to_guest.iter_mut().skip(count).for_each(VecDeque::clear);
        for messages in self.cable.messages.get().into_iter().flatten().skip(count) {
            while messages.receive(&mut [0]).is_ok() {}
        }
        Ok(())
    }

    fn keep(&mut self, is_kept: bool) -> io::Result<()> {
        self.cable.state().is_kept = is_kept;
        Ok(())
    }

    fn set_offloads(&mut self, offloads: &[Offload]) -> io::Result<()> {
        self.state()?.offloads = offloads.to_vec();
        Ok(())
    }

    fn receive(&mut self, pair: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        if let Some(messages) = self.cable.messages.get() {
            drop(self.state()?);
            return Ok(messages[pair].receive(into).ok());
        }
        let mut state = self.state()?;
        let Some(packet) = state.to_guest[pair].pop_front() else {
            let _ = self.cable.arrived[pair].read();
            return Ok(None);
        };
        into[..packet.len()].copy_from_slice(&packet);
        Ok(Some(packet.len()))
    }

    fn send(&mut self, pair: usize, packet: &Gather<'_>) -> io::Result<()> {
        let mut state = self.state()?;
        if state.is_down {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut bytes = vec![0; packet.length()];
        packet.copy_to(&mut bytes);
        if let Some(messages) = self.cable.messages.get() {
            return send_message(&messages[pair].device, &bytes);
        }
        state.from_guest.push_back((pair, bytes));
        self.cable.sent.notify_all();
        Ok(())
    }

    fn messages(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        self.cable.messages.get().map(|messages| messages[pair].device.as_fd())
    }

    fn arrives_unasked(&self) -> bool {
        self.cable.arrive_unasked.load(Ordering::Relaxed)
    }

    fn packets(&self, pair: usize) -> Option<Source<'_>> {
        let arrived = || self.cable.arrived[pair].as_fd();
        Some(Source::readable(self.messages(pair).unwrap_or_else(arrived)))
    }

    fn link_changes(&self) -> Source<'_> {
        Source::readable(self.cable.link_changed.as_fd())
    }

    fn take_link_change(&mut self) -> io::Result<Option<LinkState>> {
        let link = if self.state()?.is_down { LinkState::Down } else { LinkState::Up };
        Ok(self.cable.link_changed.read().is_ok().then_some(link))
    }
}

/// The supervisor's view of a cable.
struct PluggedLink(Arc<FakeLink>);

impl LinkMonitor for PluggedLink {
    fn changes(&self) -> BorrowedFd<'_> {
        self.0.link_changed.as_fd()
    }

    fn take_change(&mut self) -> io::Result<Option<LinkState>> {
        let link = if self.0.state().is_down { LinkState::Down } else { LinkState::Up };
        Ok(self.0.link_changed.read().is_ok().then_some(link))
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        // It waits for the next process.
        if !self.cable.state().is_kept {
            self.network.0.lock().unwrap().remove(&self.name);
        }
    }
}
