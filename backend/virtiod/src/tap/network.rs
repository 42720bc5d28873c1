//! Attaches a guest's interface to the host's network: a TAP interface, as a bridge's port or
//! alone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Deserializer, de};

use super::interface::Tap;
use super::name::{InterfaceName, NotAName};
use super::netlink::{Link, LinkSetup, Links, Monitor, VlanFilter};
use super::script::{Script, ScriptError};
use super::vlan::Vlans;
use crate::device::net::interface::{Interface, LinkState, Offload};
use crate::device::{Gather, Source, net::QueuePairs};

/// The default bridge of Xen's own tools.
pub(crate) const USUAL_BRIDGE: &str = "xenbr0";

/// The MAC address of a bridge's port, as Xen's scripts set it: the highest, so that the bridge
/// never adopts it as its own, which would change as guests start and stop.
const PORT_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The bridge to attach an interface to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bridge {
    /// `xenbr0` if that bridge exists.
    #[default]
    Usual,
    /// The bridge of this name, which must exist.
    Named(InterfaceName),
    /// No bridge: `"none"`.
    Alone,
}

/// Who attaches an interface to the host's network.
#[derive(Clone, Debug)]
pub enum Attachment {
    /// The daemon.
    Bridge {
        /// To this bridge.
        bridge: Bridge,
        /// As a port in these VLANs; without it, in the bridge's default.
        vlans: Option<Vlans>,
    },
    /// A script, which also sets the interface up.
    Script(Script),
}

/// A request for a guest's interface.
#[derive(Clone, Debug)]
pub struct InterfaceRequest {
    /// The interface's name.
    pub name: InterfaceName,
    /// Who attaches it, and to what.
    pub attachment: Attachment,
    /// Number of queue pairs.
    pub pairs: QueuePairs,
    /// The device that it is for, as its record is named: an interface that an earlier process of
    /// the device left is taken over.
    pub device: String,
}

/// A guest's interface, attached to the host's network.
pub struct Attached {
    /// Moves the packets. Dropping it removes the interface.
    pub interface: Box<dyn Interface>,
    /// The bridge that the interface is a port of.
    pub bridge: Option<InterfaceName>,
}

/// A guest's interface for another process.
pub struct Exported {
    /// The descriptors of its queues. The interface lasts as long as copies of them.
    pub queues: Vec<OwnedFd>,
    /// Maximum payload in bytes of a frame.
    pub mtu: u16,
    /// The bridge that the interface is a port of.
    pub bridge: Option<InterfaceName>,
    /// The state of its link.
    pub link: Box<dyn LinkMonitor>,
    /// Whether an earlier process left it.
    pub is_left: bool,
}

/// Monitors the link of an interface.
pub trait LinkMonitor: Send {
    /// A descriptor that is readable when the link may have changed.
    fn changes(&self) -> BorrowedFd<'_>;

    /// The link's state; `None` if it cannot have changed since the previous call.
    ///
    /// # Errors
    /// The kernel's.
    fn take_change(&mut self) -> io::Result<Option<LinkState>>;
}

/// A failed attachment of a guest's interface.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configured bridge does not exist.
    #[error(
        "there is no bridge {0}: create it (ip link add {0} type bridge), or name \
         another in bridge = \"...\""
    )]
    NoBridge(InterfaceName),
    /// The configured interface is not a bridge.
    #[error("network interface {0} is not a bridge: name a bridge in bridge = \"...\"")]
    NotABridge(InterfaceName),
    /// VLANs are configured, and the bridge does not keep them apart.
    #[error(
        "bridge {0} does not filter VLANs, as vlan = \"...\" needs: ip link set {0} type bridge \
         vlan_filtering 1 vlan_protocol 802.1Q"
    )]
    NoFilter(InterfaceName),
    /// The interface's name is in use.
    #[error(
        "network interface {0} already exists: remove it, or set another name in tap = \"...\""
    )]
    Taken(InterfaceName),
    /// The timer of a rate limit cannot be created.
    #[error("cannot create the timer of the interface's rate limit")]
    Timer(#[source] nix::Error),
    /// The interface's name is not valid.
    #[error(transparent)]
    Name(#[from] NotAName),
    /// The TAP interface cannot be created.
    #[error("cannot create the TAP interface {name} (is the module tun loaded?)")]
    Tap {
        /// The interface's name.
        name: InterfaceName,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel does not return an interface's state, or does not set it up.
    #[error("cannot query or set up the network interface {name}")]
    SetUp {
        /// The interface's name.
        name: InterfaceName,
        /// The kernel's error.
        source: io::Error,
    },
    /// The script did not attach the interface.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The supervisor reports a failure.
    #[error("{0}")]
    Supervisor(String),
}

/// The network of a host.
pub trait Network: Send + Sync {
    /// Creates an interface for a guest's device and sets it up. It passes no packet to the guest
    /// yet.
    ///
    /// # Errors
    /// [`NetworkError`]; then no interface remains.
    fn attach(&self, request: InterfaceRequest) -> Result<Attached, NetworkError>;

    /// As [`Network::attach`], for a device in another process, if there are such.
    ///
    /// # Errors
    /// [`NetworkError`].
    fn attach_for_process(&self, request: InterfaceRequest) -> Result<Exported, NetworkError> {
        let why = format!("{} is not for another process", request.name);
        Err(NetworkError::Supervisor(why))
    }

    /// The MTU of the interface of a device in another process, if it exists.
    ///
    /// # Errors
    /// The kernel's.
    fn mtu_of(&self, name: &InterfaceName, device: &str) -> io::Result<Option<u16>> {
        let _ = (name, device);
        Ok(None)
    }

    /// Removes interfaces that earlier processes left for devices other than these.
    ///
    /// # Errors
    /// The kernel's.
    fn remove_left(&self, devices: &BTreeSet<String>) -> io::Result<()>;
}

/// Begins the alias of each interface of a guest; the device follows.
const ALIAS: &str = "xen-virtiod ";

/// The alias of a device's interface.
fn alias_of(device: &str) -> String {
    format!("{ALIAS}{device}")
}

/// The network of the domain that this process runs in.
#[derive(Clone, Copy, Debug)]
pub struct HostNetwork;

/// An interface that was opened and set up.
struct Opened {
    tap: Tap,
    link: NetlinkMonitor,
    mtu: u16,
    bridge: Option<InterfaceName>,
    is_left: bool,
}

impl Opened {
    fn open(
        InterfaceRequest { name, attachment, pairs, device }: InterfaceRequest,
    ) -> Result<Self, NetworkError> {
        let alias = alias_of(&device);
        let failed = |source| NetworkError::SetUp { name: name.clone(), source };
        let links = Links::open().map_err(failed)?;
        let (bridge, setup) = match attachment {
            Attachment::Bridge { bridge, vlans } => match find_bridge(&links, bridge, vlans)? {
                Some((bridge, setup)) => (Some(bridge), setup),
                None => (None, LinkSetup::Alone),
            },
            Attachment::Script(_) => (None, LinkSetup::ByScript),
        };
        let left = links.find(&name).map_err(failed)?;
        if left.as_ref().is_some_and(|link| link.alias.as_ref() != Some(&alias)) {
            return Err(NetworkError::Taken(name));
        }
        let is_left = left.is_some();
        let tap = Tap::open(&name, pairs, is_left);
        let tap = tap.map_err(|source| NetworkError::Tap { name: name.clone(), source })?;
        let set_up = || -> io::Result<(NetlinkMonitor, u16)> {
            // Opened before the first change, so that it misses none.
            let monitor = Monitor::open()?;
            let index = links.find(&name)?.ok_or(io::ErrorKind::NotFound)?.index;
            match (setup, left) {
                (setup, None) => links.set_up(index, &alias, setup)?,
                // What an administrator changed of one that was left stays so, unless it would not
                // be in the VLANs that the configuration has by now.
                (LinkSetup::Port { bridge, vlans: Some(vlans), .. }, Some(left))
                    if left.bridge == Some(bridge) =>
                {
                    links.join_vlans(index, &vlans)?;
                }
                (setup @ LinkSetup::Port { vlans: Some(_), .. }, Some(_)) => {
                    links.set_up(index, &alias, setup)?;
                }
                _ => {}
            }
            let mtu = links.find(&name)?.ok_or(io::ErrorKind::NotFound)?.mtu();
            Ok((NetlinkMonitor { links, monitor, index, link: None }, mtu))
        };
        let (link, mtu) = set_up().map_err(failed)?;
        Ok(Self { tap, link, mtu, bridge, is_left })
    }
}

impl Network for HostNetwork {
    fn attach(&self, request: InterfaceRequest) -> Result<Attached, NetworkError> {
        let Opened { tap, link, mtu, bridge, .. } = Opened::open(request)?;
        Ok(Attached { interface: Box::new(TapInterface { tap, link, mtu }), bridge })
    }

    fn attach_for_process(&self, request: InterfaceRequest) -> Result<Exported, NetworkError> {
        let Opened { tap, link, mtu, bridge, is_left } = Opened::open(request)?;
        Ok(Exported { queues: tap.into_queues(), mtu, bridge, link: Box::new(link), is_left })
    }

    fn mtu_of(&self, name: &InterfaceName, device: &str) -> io::Result<Option<u16>> {
        let link = Links::open()?.find(name)?;
        let own = link.filter(|link| link.alias.as_ref() == Some(&alias_of(device)));
        Ok(own.map(|link| link.mtu()))
    }

    fn remove_left(&self, devices: &BTreeSet<String>) -> io::Result<()> {
        let links = Links::open()?;
        for (index, alias) in links.aliases()? {
            if alias.strip_prefix(ALIAS).is_some_and(|device| !devices.contains(device)) {
                tracing::info!("removing the interface that was left of {alias:?}");
                if let Err(error) = links.remove(index) {
                    tracing::warn!(%error, "cannot remove it");
                }
            }
        }
        Ok(())
    }
}

/// Finds the bridge to use, if any, and the settings of its ports.
fn find_bridge(
    links: &Links,
    wanted: Bridge,
    vlans: Option<Vlans>,
) -> Result<Option<(InterfaceName, LinkSetup)>, NetworkError> {
    let (name, required) = match wanted {
        Bridge::Alone => return Ok(None),
        Bridge::Named(name) => (name, true),
        Bridge::Usual => (USUAL_BRIDGE.parse()?, false),
    };
    let found = links.find(&name);
    match found.map_err(|source| NetworkError::SetUp { name: name.clone(), source })? {
        Some(Link { filter: Some(VlanFilter::Off), .. }) if vlans.is_some() => {
            Err(NetworkError::NoFilter(name))
        }
        Some(Link { index: bridge, mtu, filter: Some(_), .. }) => {
            let setup = LinkSetup::Port { bridge, mtu, address: PORT_ADDRESS, vlans };
            Ok(Some((name, setup)))
        }
        Some(_) => Err(NetworkError::NotABridge(name)),
        None if required || vlans.is_some() => Err(NetworkError::NoBridge(name)),
        None => Ok(None),
    }
}

/// Monitors the link of an interface by netlink.
struct NetlinkMonitor {
    links: Links,
    monitor: Monitor,
    index: u32,
    link: Option<LinkState>,
}

impl LinkMonitor for NetlinkMonitor {
    fn changes(&self) -> BorrowedFd<'_> {
        self.monitor.fd()
    }

    fn take_change(&mut self) -> io::Result<Option<LinkState>> {
        let changed = self.monitor.take_changes()?;
        if !changed && self.link.is_some() {
            return Ok(None);
        }
        // A removed interface counts as down.
        let up = self.links.by_index(self.index)?.is_some_and(|link| link.is_up);
        self.link = Some(if up { LinkState::Up } else { LinkState::Down });
        Ok(self.link)
    }
}

/// A TAP interface whose link is monitored.
pub struct TapInterface<L> {
    tap: Tap,
    link: L,
    mtu: u16,
}

impl<L: LinkMonitor> TapInterface<L> {
    /// The interface with these queues, all of them detached, which another process opened.
    pub fn of(queues: Vec<OwnedFd>, mtu: u16, link: L) -> Self {
        Self { tap: Tap::of(queues), link, mtu }
    }
}

impl<L: LinkMonitor> Interface for TapInterface<L> {
    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn use_pairs(&mut self, count: usize) -> io::Result<()> {
        self.tap.use_queues(count)
    }

    fn set_offloads(&mut self, offloads: &[Offload]) -> io::Result<()> {
        self.tap.set_offloads(offloads)
    }

    fn keep(&mut self, is_kept: bool) -> io::Result<()> {
        self.tap.keep(is_kept)
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
        Source::readable(self.link.changes())
    }

    fn take_link_change(&mut self) -> io::Result<Option<LinkState>> {
        self.link.take_change()
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
