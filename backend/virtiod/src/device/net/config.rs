//! The network device's configuration space (virtio 1.3 section 5.1.4, `struct virtio_net_config`).

use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};

use super::{LinkState, MacAddress, QueuePairs};

/// Bytes up to and including `duplex`, the last field that belongs to an offered feature.
pub(super) const SIZE: usize = 17;
/// The speed in Mbit/s that Linux reports for the TAP interfaces at the other end. Packets pass as
/// fast as processors move them; bonds in guests want a number.
const SPEED: u32 = 10_000;
/// Both directions at the same time.
const FULL_DUPLEX: u8 = 1;

/// The values of the fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) mac: MacAddress,
    pub(super) link: LinkState,
    /// Whether the guest is asked to announce itself to the network.
    pub(super) announce: bool,
    pub(super) pairs: QueuePairs,
    pub(super) mtu: u16,
}

impl Fields {
    /// The fields as the driver reads them.
    pub(super) fn bytes(self) -> [u8; SIZE] {
        let link = match self.link {
            LinkState::Down => 0,
            LinkState::Up => VIRTIO_NET_S_LINK_UP as u16,
        };
        let status = link | if self.announce { VIRTIO_NET_S_ANNOUNCE as u16 } else { 0 };
        let [m0, m1, m2, m3, m4, m5] = self.mac.bytes();
        let [s0, s1] = status.to_le_bytes();
        let [p0, p1] = self.pairs.count().to_le_bytes();
        let [u0, u1] = self.mtu.to_le_bytes();
        let [v0, v1, v2, v3] = SPEED.to_le_bytes();
        let duplex = FULL_DUPLEX;
        [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, u0, u1, v0, v1, v2, v3, duplex]
    }
}
