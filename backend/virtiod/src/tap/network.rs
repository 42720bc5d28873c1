//! A guest's interface in the host's network: a TAP interface, as a port of a bridge or alone.

use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Deserializer, de};

use super::interface::Tap;
use super::name::{InterfaceName, NotAName};
use super::netlink::{LinkSetup, Links, Monitor};
use crate::device::net::interface::{Interface, LinkState, Offload};
use crate::device::{Gather, Source, net::QueuePairs};

/// The bridge that Xen's own tools use unless something else is said.
const USUAL_BRIDGE: &str = "xenbr0";

/// The address of an interface at a bridge, as Xen's scripts set it: the greatest, so that the
/// bridge never takes it for its own, which would change as guests come and go.
const PORT_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// Where an interface belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bridge {
    /// To `xenbr0` if there is such a bridge.
    #[default]
    Usual,
    /// To this one.
    Named(InterfaceName),
    /// To none: `"none"`.
    Alone,
}

/// What is asked of the host's network.
#[derive(Clone, Debug)]
pub struct InterfaceRequest {
    /// The interface's name.
    pub name: InterfaceName,
    /// Where it belongs.
    pub bridge: Bridge,
    /// How many queues for each direction.
    pub pairs: QueuePairs,
}

/// A guest's interface.
pub struct Attached {
    /// What moves the packets. Gone with it is the interface.
    pub interface: Box<dyn Interface>,
    /// The bridge that it is a port of.
    pub bridge: Option<InterfaceName>,
}

/// Why there is no interface for a guest.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The bridge that was named.
    #[error(
        "there is no bridge {0}: make it (ip link add {0} type bridge), or name another in bridge = \"...\""
    )]
    NoBridge(InterfaceName),
    /// Something that is no bridge.
    #[error("the network interface {0} is not a bridge")]
    NotABridge(InterfaceName),
    /// A name that is in use.
    #[error("a network interface {0} is there already")]
    Taken(InterfaceName),
    /// A name that cannot be.
    #[error(transparent)]
    Name(#[from] NotAName),
    /// The TAP interface.
    #[error("cannot make the TAP interface {name} (is the module tun loaded?)")]
    Tap {
        /// Its name.
        name: InterfaceName,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not tell of an interface, or does not set it up.
    #[error("cannot look at or set up the network interface {name}")]
    SetUp {
        /// Its name.
        name: InterfaceName,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A host's network.
pub trait Network: Send + Sync {
    /// Makes an interface for a guest's device, up, with no packet passed to the guest yet.
    ///
    /// # Errors
    /// [`NetworkError`]; no interface is left then.
    fn attach(&self, request: InterfaceRequest) -> Result<Attached, NetworkError>;
}

/// The network of the domain that this process runs in.
#[derive(Clone, Copy, Debug)]
pub struct HostNetwork;

impl Network for HostNetwork {
    fn attach(
        &self,
        InterfaceRequest { name, bridge, pairs }: InterfaceRequest,
    ) -> Result<Attached, NetworkError> {
        let failed = |source| NetworkError::SetUp { name: name.clone(), source };
        let links = Links::open().map_err(failed)?;
        let found = find_bridge(&links, bridge)?;
        if links.find(&name).map_err(failed)?.is_some() {
            return Err(NetworkError::Taken(name));
        }
        let tap = Tap::create(&name, pairs);
        let tap = tap.map_err(|source| NetworkError::Tap { name: name.clone(), source })?;
        let set_up = || -> io::Result<TapInterface> {
            // Before anything is changed, so that no change is missed.
            let monitor = Monitor::open()?;
            let index = links.find(&name)?.ok_or(io::ErrorKind::NotFound)?.index;
            links.set_up(index, found.as_ref().map(|(_, setup)| *setup))?;
            let mtu = links.find(&name)?.ok_or(io::ErrorKind::NotFound)?.mtu;
            // Largest that the configuration space can say.
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            Ok(TapInterface { tap, links, monitor, index, mtu, link: None })
        };
        let interface = Box::new(set_up().map_err(failed)?);
        Ok(Attached { interface, bridge: found.map(|(name, _)| name) })
    }
}

/// The bridge that is meant, if one is, and how its ports are set up.
fn find_bridge(
    links: &Links,
    wanted: Bridge,
) -> Result<Option<(InterfaceName, LinkSetup)>, NetworkError> {
    let (name, required) = match wanted {
        Bridge::Alone => return Ok(None),
        Bridge::Named(name) => (name, true),
        Bridge::Usual => (USUAL_BRIDGE.parse()?, false),
    };
    let found = links.find(&name);
    match found.map_err(|source| NetworkError::SetUp { name: name.clone(), source })? {
        Some(link) if link.is_bridge => {
            let setup = LinkSetup { bridge: link.index, mtu: link.mtu, address: PORT_ADDRESS };
            Ok(Some((name, setup)))
        }
        Some(_) => Err(NetworkError::NotABridge(name)),
        None if required => Err(NetworkError::NoBridge(name)),
        None => Ok(None),
    }
}

/// A TAP interface that is looked after.
struct TapInterface {
    tap: Tap,
    links: Links,
    monitor: Monitor,
    index: u32,
    mtu: u16,
    link: Option<LinkState>,
}

impl Interface for TapInterface {
    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn use_pairs(&mut self, count: usize) -> io::Result<()> {
        self.tap.use_queues(count)
    }

    fn set_offloads(&mut self, offloads: &[Offload]) -> io::Result<()> {
        self.tap.set_offloads(offloads)
    }

    fn receive(&mut self, pair: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        self.tap.receive(pair, into)
    }

    fn send(&mut self, pair: usize, packet: &Gather<'_>) -> io::Result<()> {
        self.tap.send(pair, packet)
    }

    fn messages(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        self.tap.packets(pair)
    }

    fn packets(&self, pair: usize) -> Option<Source<'_>> {
        self.tap.packets(pair).map(Source::readable)
    }

    fn link_changes(&self) -> Source<'_> {
        Source::readable(self.monitor.fd())
    }

    fn take_link_change(&mut self) -> io::Result<Option<LinkState>> {
        let changed = self.monitor.take_changes()?;
        if !changed && self.link.is_some() {
            return Ok(None);
        }
        // An interface that was taken away is as good as down.
        let up = self.links.by_index(self.index)?.is_some_and(|link| link.is_up);
        self.link = Some(if up { LinkState::Up } else { LinkState::Down });
        Ok(self.link)
    }
}

impl<'de> Deserialize<'de> for Bridge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "" | "none" => Ok(Self::Alone),
            name => name.parse().map(Self::Named).map_err(de::Error::custom),
        }
    }
}
