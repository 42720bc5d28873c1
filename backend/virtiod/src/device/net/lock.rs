//! The addresses that packets of a guest may come from: its own.
//!
//! A guest that lies about its address receives what is meant for others, or speaks in their name.
//! A bridge does not prevent that. A guest that is locked to IP addresses is a host: it sends no
//! router advertisements, and no answers of DHCP servers.
//!
//! The kernel stores a checksum in a packet where its header asks for one. It must not do that in
//! what was looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

use super::MacAddress;
use super::interface::HEADER_SIZE;

/// Number of bytes of a packet that are copied and looked at: headers behind them are refused. A
/// router's advertisement has to be in them as a whole.
pub(super) const LOOKED_AT: usize = 512;

/// Bytes of the addresses of an Ethernet frame, and of a VLAN's tag behind them.
const ADDRESSES: usize = 12;
const TAG: usize = 4;
/// Most tags that are looked behind.
const MOST_TAGS: usize = 2;

/// Types of frames.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// Protocol numbers (IANA, "Assigned Internet Protocol Numbers").
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// Types of ICMPv6 (RFC 4861, RFC 2710, RFC 3810).
const LISTENER_QUERY: u8 = 130;
const LISTENER_REPORT_1: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;

/// UDP ports of servers and clients of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const DHCP_SERVERS: [u16; 2] = [67, 547];
const DHCP_CLIENTS: [u16; 2] = [68, 546];

/// Locks a network device to addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLock {
    mac: MacAddress,
    /// The IP addresses; `None`: any.
    addresses: Option<Vec<IpAddr>>,
}

/// A packet of a network's protocol, and what the kernel will change of it.
#[derive(Clone, Copy)]
struct Packet<'a> {
    bytes: &'a [u8],
    /// Whether the bytes are all there is.
    is_whole: bool,
    /// Where the kernel stores a checksum.
    checksum: Option<usize>,
}

impl Packet<'_> {
    /// Whether the kernel stores a checksum before this offset: it could change what was looked at.
    fn changes_before(&self, offset: usize) -> bool {
        self.checksum.is_some_and(|at| at < offset)
    }
}

impl AddressLock {
    /// Only frames from `mac`, and only ARP and neighbour discovery that tell of `mac`.
    pub fn to_mac(mac: MacAddress) -> Self {
        Self { mac, addresses: None }
    }

    /// As [`AddressLock::to_mac`], and of those only ARP, IPv4 and IPv6 from these addresses and
    /// from the link-local one that belongs to `mac`, and no router advertisements, redirects and
    /// queries of ICMPv6 and no answers of DHCP servers. A client of DHCP, and the detection of
    /// duplicate addresses, need no address.
    pub fn to_addresses(mac: MacAddress, addresses: Vec<IpAddr>) -> Self {
        Self { mac, addresses: Some(addresses) }
    }

    /// Whether a packet may pass that begins with these bytes: a header of [`HEADER_SIZE`] bytes,
    /// and a frame. What is needed and is not in them is refused. `is_whole`: there are no others.
    pub(super) fn permits(&self, packet: &[u8], is_whole: bool) -> bool {
        self.check(packet, is_whole).is_some()
    }

    fn check(&self, packet: &[u8], is_whole: bool) -> Option<()> {
        let (header, frame) = packet.split_at_checked(HEADER_SIZE)?;
        (array::<6>(frame, 6)? == self.mac.bytes()).then_some(())?;
        let (mut kind, mut begin) = (number(frame, ADDRESSES)?, ADDRESSES + 2);
        for _ in 0..MOST_TAGS {
            if self.addresses.is_none() && TAGS.contains(&kind) {
                (kind, begin) = (number(frame, begin + 2)?, begin + TAG);
            }
        }
        let checksum = match checksum(header)? {
            // It would change the frame's addresses or type.
            Some(at) => Some(at.checked_sub(begin)?),
            None => None,
        };
        let packet = Packet { bytes: frame.get(begin..)?, is_whole, checksum };
        match kind {
            ARP => self.check_arp(packet),
            IPV4 => self.check_ipv4(packet),
            IPV6 => self.check_ipv6(packet),
            // A tag behind the others would hide what is in the frame.
            _ if TAGS.contains(&kind) => None,
            _ if self.addresses.is_none() && checksum.is_none() => Some(()),
            _ => None,
        }
    }

    /// Whether packets may tell of this address.
    fn has(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.addresses.as_ref().is_none_or(|addresses| addresses.contains(&address))
    }

    fn has_v6(&self, address: Ipv6Addr) -> bool {
        self.has(address) || address == self.link_local()
    }

    /// RFC 826, for IPv4 over Ethernet and nothing else.
    fn check_arp(&self, packet: Packet<'_>) -> Option<()> {
        let Packet { bytes, checksum, .. } = packet;
        let is_usual = array::<6>(bytes, 0)? == [0, 1, 8, 0, 6, 4] && checksum.is_none();
        let is_own = array::<6>(bytes, 8)? == self.mac.bytes();
        let sender = Ipv4Addr::from(array::<4>(bytes, 14)?);
        let target = Ipv4Addr::from(array::<4>(bytes, 24)?);
        // A probe tells that its sender wants the target's address (RFC 5227).
        let told = if sender.is_unspecified() { target } else { sender };
        (is_usual && is_own && self.has(told)).then_some(())
    }

    fn check_ipv4(&self, packet: Packet<'_>) -> Option<()> {
        if self.addresses.is_none() {
            return (!packet.changes_before(20)).then_some(());
        }
        let Packet { bytes, .. } = packet;
        let source = Ipv4Addr::from(array::<4>(bytes, 12)?);
        let at = Some(4 * usize::from(*bytes.first()? & 15)).filter(|at| *at >= 20)?;
        let (protocol, fragment) = (*bytes.get(9)?, number(bytes, 6)? & 0x3fff);
        let is_first = fragment & 0x1fff == 0;
        if self.has(source) {
            return self.check_transport(packet, protocol, at, is_first);
        }
        // A client of DHCP, in a packet without options or fragments.
        let is_client = protocol == UDP
            && (at, fragment) == (20, 0)
            && [number(bytes, at)?, number(bytes, at + 2)?] == [DHCP_CLIENTS[0], DHCP_SERVERS[0]]
            && !packet.changes_before(at + 4);
        (source.is_unspecified() && is_client).then_some(())
    }

    /// A packet from an address of the guest's, of a protocol whose header is at this offset, if
    /// it `is_first` of its fragments.
    fn check_transport(
        &self,
        packet: Packet<'_>,
        protocol: u8,
        at: usize,
        is_first: bool,
    ) -> Option<()> {
        if protocol == UDP && is_first {
            let (from, to) = (number(packet.bytes, at)?, number(packet.bytes, at + 2)?);
            // Clients do not look at the port that an answer comes from.
            (!DHCP_SERVERS.contains(&from) && !DHCP_CLIENTS.contains(&to)).then_some(())?;
        }
        // Behind the ports.
        let fixed = if matches!(protocol, TCP | UDP) { at + 4 } else { at };
        (!packet.changes_before(fixed)).then_some(())
    }

    fn check_ipv6(&self, packet: Packet<'_>) -> Option<()> {
        let Packet { bytes, .. } = packet;
        let source = Ipv6Addr::from(array::<16>(bytes, 8)?);
        let Last { protocol, at, is_first } = last_header(bytes)?;
        if protocol == ICMPV6 {
            return self.check_icmpv6(packet, source, at);
        }
        self.has_v6(source).then_some(())?;
        match self.addresses {
            Some(_) => self.check_transport(packet, protocol, at, is_first),
            None => (!packet.changes_before(at)).then_some(()),
        }
    }

    fn check_icmpv6(&self, packet: Packet<'_>, source: Ipv6Addr, at: usize) -> Option<()> {
        let Packet { bytes, is_whole, checksum } = packet;
        // The kernel may store the message's own checksum, and nothing else.
        checksum.is_none_or(|stored| stored == at + 2).then_some(())?;
        let kind = *bytes.get(at)?;
        let told = || array::<16>(bytes, at + 8).map(Ipv6Addr::from);
        let options = match kind {
            ROUTER_SOLICITATION => Some(8),
            ROUTER_ADVERTISEMENT => Some(16),
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => Some(24),
            REDIRECT => Some(40),
            _ => None,
        };
        if let Some(offset) = options {
            is_whole.then_some(())?;
            self.check_options(bytes.get(at + offset..)?)?;
        }
        let is_own = self.has_v6(source);
        let is_nobodys = source.is_unspecified();
        let is_permitted = match kind {
            LISTENER_QUERY | ROUTER_ADVERTISEMENT | REDIRECT => self.addresses.is_none(),
            NEIGHBOUR_ADVERTISEMENT => is_own && self.has_v6(told()?),
            // Asked by nobody, it tells that the target's address is wanted (RFC 4862).
            NEIGHBOUR_SOLICITATION => is_own || is_nobodys && self.has_v6(told()?),
            ROUTER_SOLICITATION | LISTENER_REPORT_1 | LISTENER_DONE | LISTENER_REPORT => {
                is_own || is_nobodys
            }
            _ => is_own,
        };
        is_permitted.then_some(())
    }

    /// Options of neighbour discovery: a link-layer address in them is the guest's.
    fn check_options(&self, mut options: &[u8]) -> Option<()> {
        while let [kind, length, ..] = *options {
            let length = 8 * usize::from(length);
            (length > 0).then_some(())?;
            if matches!(kind, 1 | 2) {
                (array::<6>(options, 2)? == self.mac.bytes()).then_some(())?;
            }
            options = options.get(length..).unwrap_or_default();
        }
        Some(())
    }

    /// The address that a host gives itself by its MAC address (RFC 4291, appendix A).
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.bytes().map(u16::from);
        Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
    }
}

/// Where the kernel stores a checksum, from the frame's begin, as the header asks (virtio 1.3
/// section 5.1.6.2); `Some(None)` if it does not.
fn checksum(header: &[u8]) -> Option<Option<usize>> {
    let needs = u32::from(*header.first()?) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let le = |at| array(header, at).map(u16::from_le_bytes).map(usize::from);
    let (start, offset) = (le(6)?, le(8)?);
    Some(needs.then_some(start + offset))
}

/// What is behind the headers of IPv6 that may precede it.
struct Last {
    protocol: u8,
    at: usize,
    is_first: bool,
}

/// `None` if it cannot be seen: a fragment could hide it, or it is behind what is looked at.
fn last_header(packet: &[u8]) -> Option<Last> {
    let (mut protocol, mut at) = (*packet.get(6)?, 40);
    loop {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [next, length] = array(packet, at)?;
                // Each is at least eight bytes, so that this ends with the bytes.
                (protocol, at) = (next, at + 8 * (usize::from(length) + 1));
            }
            FRAGMENT => {
                let hides = [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, FRAGMENT, ICMPV6];
                let next = *packet.get(at)?;
                let is_first = number(packet, at + 2)? & 0xfff8 == 0;
                let last = Last { protocol: next, at: at + 8, is_first };
                return (!hides.contains(&next)).then_some(last);
            }
            _ => return Some(Last { protocol, at, is_first: true }),
        }
    }
}

/// The 16-bit number at an offset, in the network's order.
fn number(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// The bytes from an offset on.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: usize = 14;
    const OWN: [u8; 6] = [0x02, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 8];
    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

    fn permits(lock: &AddressLock, packet: &[u8]) -> bool {
        lock.permits(packet, true)
    }

    fn mac() -> MacAddress {
        "02:00:00:00:00:07".parse().unwrap()
    }

    fn lock() -> AddressLock {
        AddressLock::to_addresses(mac(), vec![V4.into(), V6.into()])
    }

    fn frame(from: [u8; 6], ether_type: u16, rest: &[u8]) -> Vec<u8> {
        let header = [[0; HEADER_SIZE].as_slice(), &[0xff; 6], &from, &ether_type.to_be_bytes()];
        [&header.concat(), rest].concat()
    }

    fn arp(hardware: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
        let target = target.octets();
        let rest = [fixed.as_slice(), &hardware, &sender.octets(), &[0; 6], &target].concat();
        frame(OWN, ARP, &rest)
    }

    /// The packet, with a VLAN's tag.
    fn tagged(packet: &[u8]) -> Vec<u8> {
        let (before, behind) = packet.split_at(HEADER_SIZE + ADDRESSES);
        [before, &[0x81, 0, 0, 0], behind].concat()
    }

    /// The packet, with a checksum for the kernel to store.
    fn with_checksum(packet: &[u8], start: u16, offset: u16) -> Vec<u8> {
        let mut packet = packet.to_vec();
        packet[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        packet[6..8].copy_from_slice(&start.to_le_bytes());
        packet[8..10].copy_from_slice(&offset.to_le_bytes());
        packet
    }

    fn ipv4(source: Ipv4Addr, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        (header[0], header[9]) = (0x45, protocol);
        header[12..16].copy_from_slice(&source.octets());
        frame(OWN, IPV4, &[&header, rest].concat())
    }

    fn ipv6(source: Ipv6Addr, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = [0; 40];
        (header[0], header[6]) = (0x60, protocol);
        header[8..24].copy_from_slice(&source.octets());
        frame(OWN, IPV6, &[&header, rest].concat())
    }

    fn router_advertisement(from: [u8; 6]) -> Vec<u8> {
        [[ROUTER_ADVERTISEMENT; 1].as_slice(), &[0; 15], &[1, 1], &from].concat()
    }

    fn neighbour(kind: u8, told: Ipv6Addr) -> Vec<u8> {
        [[kind, 0, 0, 0, 0, 0, 0, 0].as_slice(), &told.octets()].concat()
    }

    #[test]
    fn lock_to_a_mac_address_permits_frames_and_what_tells_of_it_alone() {
        let lock = AddressLock::to_mac(mac());
        for packet in [
            frame(OWN, 0x88cc, &[]),
            ipv4(Ipv4Addr::new(1, 2, 3, 4), UDP, &[0, 67, 0, 68]),
            ipv6(V6, ICMPV6, &neighbour(NEIGHBOUR_ADVERTISEMENT, V6)),
            ipv6(V6, ICMPV6, &router_advertisement(OWN)),
            arp(OWN, Ipv4Addr::new(1, 2, 3, 4), V4),
        ] {
            assert!(permits(&lock, &packet) && permits(&lock, &tagged(&packet)), "{packet:?}");
            let mut other = packet;
            other[HEADER_SIZE + 11] ^= 1;
            assert!(!permits(&lock, &other), "{other:?}");
        }
        let link_layer = [neighbour(NEIGHBOUR_ADVERTISEMENT, V6), vec![2, 1, 2, 0, 0, 0, 0, 8]];
        for lie in [
            arp(OTHER, V4, V4),
            ipv6(V6, ICMPV6, &link_layer.concat()),
            ipv6(V6, ICMPV6, &router_advertisement(OTHER)),
        ] {
            assert!(!permits(&lock, &lie) && !permits(&lock, &tagged(&lie)), "{lie:?}");
            assert!(!permits(&lock, &tagged(&tagged(&lie))), "{lie:?}");
        }
    }

    #[test]
    fn kernel_changes_nothing_that_was_looked_at() {
        let tcp = ipv4(V4, TCP, &[0; 40]);
        let icmp = ipv6(V6, ICMPV6, &neighbour(128, V6));
        for lock in [lock(), AddressLock::to_mac(mac())] {
            assert!(permits(&lock, &with_checksum(&tcp, 34, 16)));
            assert!(permits(&lock, &with_checksum(&icmp, 54, 2)));
            // The MAC address, the type, the sender of ARP, the type of an echo request.
            for (start, offset) in [(6, 0), (0, 8), (12, 0), (20, 10), (26, 2), (30, 0)] {
                for packet in [&tcp, &icmp, &arp(OWN, V4, V4), &frame(OWN, 0x88cc, &[0; 60])] {
                    let is_permitted = permits(&lock, &with_checksum(packet, start, offset));
                    assert!(!is_permitted, "{start}+{offset}: {packet:?}");
                }
            }
            assert!(!permits(&lock, &with_checksum(&icmp, 54, 0)));
            assert!(!permits(&lock, &with_checksum(&icmp, 54, 8)));
        }
        let udp = ipv4(V4, UDP, &[0; 40]);
        assert!(permits(&lock(), &with_checksum(&udp, 34, 6)));
        assert!(!permits(&lock(), &with_checksum(&udp, 34, 0)), "the source port");
        // Of a packet in a packet.
        assert!(permits(&lock(), &with_checksum(&udp, 84, 16)));
    }

    #[test]
    fn packets_come_from_the_addresses_alone() {
        let lock = lock();
        let stranger = Ipv4Addr::new(192, 0, 2, 8);
        assert!(permits(&lock, &ipv4(V4, 6, &[])) && !permits(&lock, &ipv4(stranger, 6, &[])));
        assert!(permits(&lock, &arp(OWN, V4, stranger)));
        assert!(!permits(&lock, &arp(OWN, stranger, V4)));
        let nobody = Ipv4Addr::UNSPECIFIED;
        assert!(permits(&lock, &arp(OWN, nobody, V4)), "a probe");
        assert!(!permits(&lock, &arp(OWN, nobody, stranger)), "of an address of another");
        let stranger = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8);
        assert!(permits(&lock, &ipv6(V6, 6, &[])) && !permits(&lock, &ipv6(stranger, 6, &[])));
        let (own, others) = ("fe80::ff:fe00:7", "fe80::ff:fe00:8");
        assert!(permits(&lock, &ipv6(own.parse().unwrap(), 6, &[])));
        assert!(!permits(&lock, &ipv6(others.parse().unwrap(), 6, &[])));
        for other in [0x8100, 0x88a8, 0x8035, 0x88cc, 0x0026] {
            assert!(!permits(&lock, &frame(OWN, other, &[0; 60])), "{other:x}");
        }
    }

    #[test]
    fn guest_without_an_address_may_ask_for_one_and_nothing_else() {
        let lock = lock();
        let nobody = Ipv4Addr::UNSPECIFIED;
        assert!(permits(&lock, &ipv4(nobody, UDP, &[0, 68, 0, 67])));
        assert!(!permits(&lock, &ipv4(nobody, UDP, &[0, 67, 0, 68])), "a server");
        assert!(!permits(&lock, &ipv4(nobody, 6, &[0, 68, 0, 67])));
        for (place, bits) in [(6, 0x20), (6, 1), (7, 1)] {
            let mut fragment = ipv4(nobody, UDP, &[0, 68, 0, 67]);
            fragment[HEADER_SIZE + ETHERNET + place] = bits;
            assert!(!permits(&lock, &fragment), "{place} {bits}");
        }
        let nobody = Ipv6Addr::UNSPECIFIED;
        for kind in 0..=255 {
            let may = [131, 132, ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, LISTENER_REPORT];
            let mut packet = ipv6(nobody, ICMPV6, &neighbour(kind, V6));
            if kind == ROUTER_SOLICITATION {
                // It has no address there, but options.
                packet.truncate(packet.len() - 16);
            }
            assert_eq!(permits(&lock, &packet), may.contains(&kind), "{kind}");
        }
        let others = neighbour(NEIGHBOUR_SOLICITATION, "2001:db8::9".parse().unwrap());
        assert!(!permits(&lock, &ipv6(nobody, ICMPV6, &others)), "of an address of another");
    }

    #[test]
    fn neighbours_are_told_of_own_addresses_and_of_no_router() {
        let lock = lock();
        let told = |kind, told| permits(&lock, &ipv6(V6, ICMPV6, &neighbour(kind, told)));
        let long = ipv6(V6, ICMPV6, &neighbour(NEIGHBOUR_ADVERTISEMENT, V6));
        assert!(!lock.permits(&long, false), "options that are not seen");
        assert!(told(NEIGHBOUR_ADVERTISEMENT, V6));
        assert!(!told(NEIGHBOUR_ADVERTISEMENT, "fe80::1".parse().unwrap()));
        for router in [ROUTER_ADVERTISEMENT, REDIRECT, LISTENER_QUERY] {
            assert!(!told(router, V6), "{router}");
        }
        for port in DHCP_SERVERS {
            let server = [port.to_be_bytes(), [0, 68]].concat();
            assert!(!permits(&lock, &ipv4(V4, UDP, &server)), "{port}");
            assert!(!permits(&lock, &ipv6(V6, UDP, &server)), "{port}");
        }
        for port in DHCP_CLIENTS {
            let answer = [[4, 43], port.to_be_bytes()].concat();
            assert!(!permits(&lock, &ipv4(V4, UDP, &answer)), "{port}");
            assert!(!permits(&lock, &ipv6(V6, UDP, &answer)), "{port}");
        }
        assert!(told(128, V6), "an echo request");
    }

    #[test]
    fn headers_before_the_protocol_hide_nothing() {
        let lock = lock();
        let report = neighbour(LISTENER_REPORT, V6);
        let alert = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
        assert!(permits(&lock, &ipv6(V6, HOP_BY_HOP, &[alert.as_slice(), &report].concat())));
        let lie = neighbour(NEIGHBOUR_ADVERTISEMENT, "2001:db8::1".parse().unwrap());
        for header in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
            let behind = [[ICMPV6, 0, 0, 0, 0, 0, 0, 0].as_slice(), &lie].concat();
            assert!(!permits(&lock, &ipv6(V6, header, &behind)), "{header}");
            // Two headers, and one that ends behind the bytes that are looked at.
            let twice = [[header, 0, 0, 0, 0, 0, 0, 0].as_slice(), &behind].concat();
            assert!(!permits(&lock, &ipv6(V6, header, &twice)), "{header}");
            let far = [[ICMPV6, 255, 0, 0, 0, 0, 0, 0].as_slice(), &behind].concat();
            assert!(!permits(&lock, &ipv6(V6, header, &far)), "{header}");
        }
        let fragment = |next: u8| ipv6(V6, FRAGMENT, &[next, 0, 0, 1, 0, 0, 0, 0]);
        assert!(permits(&lock, &fragment(TCP)));
        for hidden in [ICMPV6, HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT] {
            assert!(!permits(&lock, &fragment(hidden)), "{hidden}");
        }
    }

    #[test]
    fn short_packets_are_refused() {
        let lock = lock();
        let whole = [
            arp(OWN, V4, V4),
            ipv4(V4, TCP, &[]),
            ipv4(Ipv4Addr::UNSPECIFIED, UDP, &[0, 68, 0, 67]),
            ipv6(V6, ICMPV6, &neighbour(NEIGHBOUR_ADVERTISEMENT, V6)),
        ];
        for packet in whole {
            assert!(permits(&lock, &packet));
            let needed = (0..packet.len()).filter(|length| permits(&lock, &packet[..*length]));
            // The rest of an IPv4 header is the destination.
            assert!(needed.min().is_none_or(|least| least >= HEADER_SIZE + ETHERNET + 16));
        }
    }
}
