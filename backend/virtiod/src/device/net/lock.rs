//! The addresses that packets of a guest may come from: its own.
//!
//! A guest that lies about its address receives what is meant for others, or speaks in their name.
//! A bridge does not prevent that. The checks are those of a guest that is a host: what only a
//! router sends is refused too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::MacAddress;
use super::interface::HEADER_SIZE;

/// Number of bytes of a packet that are copied and looked at: headers behind them are refused.
pub(super) const LOOKED_AT: usize = 128;

/// Offset of an Ethernet frame's type, and of what is behind its header.
const ETHER_TYPE: usize = 12;
const ETHERNET: usize = 14;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// Protocol numbers (IANA, "Assigned Internet Protocol Numbers").
const HOP_BY_HOP: u8 = 0;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// Types of ICMPv6 (RFC 4861, RFC 3810).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;

/// Locks a network device to addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLock {
    mac: MacAddress,
    /// The IP addresses; `None`: any.
    addresses: Option<Vec<IpAddr>>,
}

impl AddressLock {
    /// Only frames from `mac`, and only ARP that tells of `mac`.
    pub fn to_mac(mac: MacAddress) -> Self {
        Self { mac, addresses: None }
    }

    /// As [`AddressLock::to_mac`], and of those only ARP, IPv4 and IPv6 from these addresses and
    /// from the link-local one that belongs to `mac`. DHCP, and the detection of duplicate
    /// addresses, work without an address.
    pub fn to_addresses(mac: MacAddress, addresses: Vec<IpAddr>) -> Self {
        Self { mac, addresses: Some(addresses) }
    }

    /// Whether a packet may pass that begins with these bytes: a header of [`HEADER_SIZE`] bytes,
    /// and a frame. What is needed and is not in them is refused.
    pub(super) fn permits(&self, packet: &[u8]) -> bool {
        self.check(packet).is_some()
    }

    fn check(&self, packet: &[u8]) -> Option<()> {
        let frame = packet.get(HEADER_SIZE..)?;
        (array::<6>(frame, 6)? == self.mac.bytes()).then_some(())?;
        let behind = frame.get(ETHERNET..)?;
        match (u16::from_be_bytes(array(frame, ETHER_TYPE)?), &self.addresses) {
            (ARP, _) => self.check_arp(behind),
            (_, None) => Some(()),
            (IPV4, Some(_)) => self.check_ipv4(behind),
            (IPV6, Some(_)) => self.check_ipv6(behind),
            (_, Some(_)) => None,
        }
    }

    fn has(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.addresses.as_ref().is_none_or(|addresses| addresses.contains(&address))
    }

    /// RFC 826, for IPv4 over Ethernet and nothing else.
    fn check_arp(&self, packet: &[u8]) -> Option<()> {
        let is_usual = array::<6>(packet, 0)? == [0, 1, 8, 0, 6, 4];
        let sender = Ipv4Addr::from(array::<4>(packet, 14)?);
        let is_own = array::<6>(packet, 8)? == self.mac.bytes();
        // Without an address: a probe (RFC 5227).
        (is_usual && is_own && (sender.is_unspecified() || self.has(sender))).then_some(())
    }

    fn check_ipv4(&self, packet: &[u8]) -> Option<()> {
        let source = Ipv4Addr::from(array::<4>(packet, 12)?);
        if self.has(source) {
            return Some(());
        }
        // A DHCP client without an address (RFC 2131), in a packet without options or fragments.
        let is_plain = *packet.first()? == 0x45 && array::<2>(packet, 6)?[0] & 0x3f == 0;
        let is_dhcp = *packet.get(9)? == UDP && array::<4>(packet, 20)? == [0, 68, 0, 67];
        (source.is_unspecified() && is_plain && is_dhcp).then_some(())
    }

    fn check_ipv6(&self, packet: &[u8]) -> Option<()> {
        let source = Ipv6Addr::from(array::<16>(packet, 8)?);
        let (protocol, at) = last_header(packet)?;
        let is_own = self.has(source) || source == self.link_local();
        if protocol != ICMPV6 {
            return is_own.then_some(());
        }
        let kind = *packet.get(at)?;
        let may_be_nobodys = [ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, LISTENER_REPORT];
        let is_nobodys = source.is_unspecified() && may_be_nobodys.contains(&kind);
        match kind {
            ROUTER_ADVERTISEMENT | REDIRECT => None,
            NEIGHBOUR_ADVERTISEMENT => {
                let told = Ipv6Addr::from(array::<16>(packet, at + 8)?);
                (is_own && (self.has(told) || told == self.link_local())).then_some(())
            }
            _ => (is_own || is_nobodys).then_some(()),
        }
    }

    /// The address that a host gives itself by its MAC address (RFC 4291, appendix A).
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.bytes().map(u16::from);
        Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
    }
}

/// The protocol behind the headers of IPv6 that may precede it, and its offset. `None` if it cannot
/// be seen: a fragment could hide it.
fn last_header(packet: &[u8]) -> Option<(u8, usize)> {
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
                return (!hides.contains(&next)).then_some((next, at + 8));
            }
            _ => return Some((protocol, at)),
        }
    }
}

/// The bytes from an offset on.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [0x02, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 8];
    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

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

    fn arp(hardware: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
        let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
        let rest = [fixed.as_slice(), &hardware, &sender.octets(), &[0; 10]].concat();
        frame(OWN, ARP, &rest)
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

    fn neighbour(kind: u8, told: Ipv6Addr) -> Vec<u8> {
        [[kind, 0, 0, 0, 0, 0, 0, 0].as_slice(), &told.octets()].concat()
    }

    #[test]
    fn lock_to_a_mac_address_permits_frames_and_arp_of_it_alone() {
        let lock = AddressLock::to_mac(mac());
        for ether_type in [IPV4, IPV6, 0x8100, 0x88cc] {
            assert!(lock.permits(&frame(OWN, ether_type, &[])), "{ether_type:x}");
            assert!(!lock.permits(&frame(OTHER, ether_type, &[])), "{ether_type:x}");
        }
        assert!(lock.permits(&arp(OWN, Ipv4Addr::new(1, 2, 3, 4))));
        assert!(!lock.permits(&arp(OTHER, V4)));
    }

    #[test]
    fn packets_come_from_the_addresses_alone() {
        let lock = lock();
        let stranger = Ipv4Addr::new(192, 0, 2, 8);
        assert!(lock.permits(&ipv4(V4, 6, &[])) && !lock.permits(&ipv4(stranger, 6, &[])));
        assert!(lock.permits(&arp(OWN, V4)) && !lock.permits(&arp(OWN, stranger)));
        assert!(lock.permits(&arp(OWN, Ipv4Addr::UNSPECIFIED)), "a probe");
        let stranger = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8);
        assert!(lock.permits(&ipv6(V6, 6, &[])) && !lock.permits(&ipv6(stranger, 6, &[])));
        let (own, others) = ("fe80::ff:fe00:7", "fe80::ff:fe00:8");
        assert!(lock.permits(&ipv6(own.parse().unwrap(), 6, &[])));
        assert!(!lock.permits(&ipv6(others.parse().unwrap(), 6, &[])));
        for other in [0x8100, 0x88a8, 0x8035, 0x88cc, 0x0026] {
            assert!(!lock.permits(&frame(OWN, other, &[0; 60])), "{other:x}");
        }
    }

    #[test]
    fn guest_without_an_address_may_ask_for_one_and_nothing_else() {
        let lock = lock();
        let nobody = Ipv4Addr::UNSPECIFIED;
        assert!(lock.permits(&ipv4(nobody, UDP, &[0, 68, 0, 67])));
        assert!(!lock.permits(&ipv4(nobody, UDP, &[0, 67, 0, 68])), "a server");
        assert!(!lock.permits(&ipv4(nobody, 6, &[0, 68, 0, 67])));
        let mut fragment = ipv4(nobody, UDP, &[0, 68, 0, 67]);
        fragment[HEADER_SIZE + ETHERNET + 6] = 0x20;
        assert!(!lock.permits(&fragment));
        let nobody = Ipv6Addr::UNSPECIFIED;
        for kind in 0..=255 {
            let may = [ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, LISTENER_REPORT];
            let packet = ipv6(nobody, ICMPV6, &neighbour(kind, V6));
            assert_eq!(lock.permits(&packet), may.contains(&kind), "{kind}");
        }
    }

    #[test]
    fn neighbours_are_told_of_own_addresses_and_of_no_router() {
        let lock = lock();
        let told = |kind, told| lock.permits(&ipv6(V6, ICMPV6, &neighbour(kind, told)));
        assert!(told(NEIGHBOUR_ADVERTISEMENT, V6));
        assert!(!told(NEIGHBOUR_ADVERTISEMENT, "fe80::1".parse().unwrap()));
        assert!(!told(ROUTER_ADVERTISEMENT, V6) && !told(REDIRECT, V6));
        assert!(told(128, V6), "an echo request");
    }

    #[test]
    fn headers_before_the_protocol_hide_nothing() {
        let lock = lock();
        let report = neighbour(LISTENER_REPORT, V6);
        let alert = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
        assert!(lock.permits(&ipv6(V6, HOP_BY_HOP, &[alert.as_slice(), &report].concat())));
        let lie = neighbour(NEIGHBOUR_ADVERTISEMENT, "2001:db8::1".parse().unwrap());
        for header in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
            let behind = [[ICMPV6, 0, 0, 0, 0, 0, 0, 0].as_slice(), &lie].concat();
            assert!(!lock.permits(&ipv6(V6, header, &behind)), "{header}");
            // Two headers, and one that ends behind the bytes that are looked at.
            let twice = [[header, 0, 0, 0, 0, 0, 0, 0].as_slice(), &behind].concat();
            assert!(!lock.permits(&ipv6(V6, header, &twice)), "{header}");
            let far = [[ICMPV6, 255, 0, 0, 0, 0, 0, 0].as_slice(), &behind].concat();
            assert!(!lock.permits(&ipv6(V6, header, &far)), "{header}");
        }
        let fragment = |next: u8| ipv6(V6, FRAGMENT, &[next, 0, 0, 1, 0, 0, 0, 0]);
        assert!(lock.permits(&fragment(UDP)));
        for hidden in [ICMPV6, HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT] {
            assert!(!lock.permits(&fragment(hidden)), "{hidden}");
        }
    }

    #[test]
    fn short_packets_are_refused() {
        let lock = lock();
        let whole = [
            arp(OWN, V4),
            ipv4(V4, 6, &[]),
            ipv4(Ipv4Addr::UNSPECIFIED, UDP, &[0, 68, 0, 67]),
            ipv6(V6, ICMPV6, &neighbour(NEIGHBOUR_ADVERTISEMENT, V6)),
        ];
        for packet in whole {
            assert!(lock.permits(&packet));
            let needed = (0..packet.len()).filter(|length| lock.permits(&packet[..*length]));
            // The rest of an ARP packet is the target, and of an IPv4 header the destination.
            assert!(needed.min().is_none_or(|least| least >= HEADER_SIZE + ETHERNET + 16));
        }
    }
}
