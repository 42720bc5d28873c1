//! Reads and changes the host's network interfaces through rtnetlink.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::name::InterfaceName;
use super::vlan::{Tagging, VlanId, Vlans};

/// Maximum number of notifications that one call reads; others keep the socket readable.
const NOTICE_BUDGET: usize = 64;

/// The current state of an interface.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mtu: u32,
    /// The interface is administratively up (`IFF_UP`); this says nothing about carrier.
    pub(super) is_up: bool,
    /// The interface index of the bridge that it is a port of.
    pub(super) bridge: Option<u32>,
    /// A bridge's; `None` if it is no bridge.
    pub(super) filter: Option<VlanFilter>,
    /// The text that says whose it is (`ip link` shows it as alias).
    pub(super) alias: Option<String>,
}

impl Link {
    /// Its MTU, as the configuration space has it, with 16 bits.
    pub(super) fn mtu(&self) -> u16 {
        u16::try_from(self.mtu).unwrap_or(u16::MAX)
    }
}

/// Whether a bridge keeps VLANs of customers (IEEE 802.1Q, not 802.1ad) apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VlanFilter {
    On,
    Off,
}

/// The settings of a guest's interface.
#[derive(Clone, Debug)]
pub(super) enum LinkSetup {
    /// A bridge's port, which is up.
    Port {
        /// Interface index of the bridge.
        bridge: u32,
        mtu: u32,
        address: [u8; 6],
        /// Those that it is in; without it, the bridge's default.
        vlans: Option<Vlans>,
    },
    /// Up.
    Alone,
    /// Down: a script does the rest.
    ByScript,
}

/// An rtnetlink socket for requests.
pub(super) struct Links(Socket);

impl Links {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Finds the interface with this name; `None` if it does not exist.
    pub(super) fn find(&self, name: &InterfaceName) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
        self.get(message)
    }

    /// Finds the interface with this index; `None` if it does not exist.
    pub(super) fn by_index(&self, index: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get(message)
    }

    fn get(&self, message: LinkMessage) -> io::Result<Option<Link>> {
        match self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST) {
            Ok(answer) => Ok(answer.map(|message| link(&message))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives an interface an alias and these settings.
    pub(super) fn set_up(&self, index: u32, alias: &str, setup: LinkSetup) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        match setup {
            LinkSetup::ByScript => self.set(message),
            LinkSetup::Alone => {
                message.header.flags = LinkFlags::Up;
                self.set(message)
            }
            LinkSetup::Port { bridge, mtu, address, vlans } => {
                message.attributes.push(LinkAttribute::Address(address.to_vec()));
                message.attributes.push(LinkAttribute::Mtu(mtu));
                message.attributes.push(LinkAttribute::Controller(bridge));
                if let Some(vlans) = vlans {
                    // Down until it is in its own VLANs alone.
                    self.set(message.clone())?;
                    self.join_vlans(index, &vlans)?;
                    message.attributes.clear();
                }
                message.header.flags = LinkFlags::Up;
                self.set(message)
            }
        }
    }

    /// Puts a bridge's port into these VLANs, and takes it out of all others: a new one is in the
    /// bridge's default VLAN.
    pub(super) fn join_vlans(&self, port: u32, vlans: &Vlans) -> io::Result<()> {
        let own = |(id, tagging): (VlanId, Tagging)| {
            let flags = match tagging {
                Tagging::Tagged => BridgeVlanInfoFlags::empty(),
                Tagging::Untagged => BridgeVlanInfoFlags::Untagged,
                Tagging::Own => BridgeVlanInfoFlags::Untagged | BridgeVlanInfoFlags::Pvid,
            };
            (id.get(), flags)
        };
        self.set(vlan_message(port, vlans.iter().map(own)))?;
        let ends = |others: RangeInclusive<u16>| match (*others.start(), *others.end()) {
            (only, last) if only == last => vec![(only, BridgeVlanInfoFlags::empty())],
            (first, last) => vec![
                (first, BridgeVlanInfoFlags::RangeBegin),
                (last, BridgeVlanInfoFlags::RangeEnd),
            ],
        };
        let others = vlan_message(port, vlans.others().flat_map(ends));
        let delete = RouteNetlinkMessage::DelLink(others);
        self.ask(delete, NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    fn set(&self, message: LinkMessage) -> io::Result<()> {
        self.ask(RouteNetlinkMessage::SetLink(message), NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    /// The indices and aliases of all interfaces that have one.
    pub(super) fn aliases(&self) -> io::Result<Vec<(u32, String)>> {
        let get = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.send(get, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
                let message = message.map_err(io::Error::other)?;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                        let link = link(&message);
                        found.extend(link.alias.map(|alias| (link.index, alias)));
                    }
                    _ => {}
                }
                // Each begins at a multiple of 4 bytes.
                let length = (message.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    /// Removes an interface.
    pub(super) fn remove(&self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(message), NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    /// Sends a request and reads the answer. The kernel queues the answer before `send` returns.
    fn ask(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<LinkMessage>> {
        self.send(request, flags)?;
        let (answer, _) = self.0.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer);
        match answer.map_err(io::Error::other)?.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(None),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn send(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }
}

/// A message about the VLANs of a bridge's port.
fn vlan_message(
    port: u32,
    vlans: impl IntoIterator<Item = (u16, BridgeVlanInfoFlags)>,
) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    let vlans =
        vlans.into_iter().map(|(vid, flags)| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }));
    message.attributes.push(LinkAttribute::AfSpecBridge(vlans.collect()));
    message
}

fn link(message: &LinkMessage) -> Link {
    let attributes = || message.attributes.iter();
    let mtu = attributes().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let filter = attributes().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => vlan_filter(infos),
        _ => None,
    });
    let bridge = attributes().find_map(|attribute| match attribute {
        LinkAttribute::Controller(bridge) => Some(*bridge),
        _ => None,
    });
    let alias = attributes().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.clone()),
        _ => None,
    });
    Link {
        index: message.header.index,
        mtu: mtu.unwrap_or(0),
        is_up: message.header.flags.contains(LinkFlags::Up),
        bridge,
        filter,
        alias,
    }
}

/// A bridge's filter; `None` if this describes no bridge.
fn vlan_filter(infos: &[LinkInfo]) -> Option<VlanFilter> {
    if !infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
        return None;
    }
    let is_on = infos.iter().any(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => {
            data.contains(&InfoBridge::VlanFiltering(true))
                && data.contains(&InfoBridge::VlanProtocol(VlanProtocol::Ieee8021Q))
        }
        _ => false,
    });
    Some(if is_on { VlanFilter::On } else { VlanFilter::Off })
}

/// Reports that interfaces changed, not how. The caller reads the state of the interfaces that it
/// depends on, so piled-up or lost notifications cost one read.
pub(super) struct Monitor(Socket);

impl Monitor {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(libc::RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// A descriptor that is readable after an interface changed.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes pending notifications; returns whether there were any.
    pub(super) fn take_changes(&self) -> io::Result<bool> {
        for taken in 0..NOTICE_BUDGET {
            // The kernel truncates the notification to one byte, which nobody reads.
            let mut first = [0; 1];
            match self.0.recv(&mut first.as_mut_slice(), 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken > 0),
                // The kernel dropped some.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
