//! Names of feature bits, for people.

use protocol::status::{F_ACCESS_PLATFORM, F_RING_RESET, F_VERSION_1};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::DeviceId;
use crate::device::console::{VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_F_SIZE};
use crate::device::vsock::VIRTIO_VSOCK_F_STREAM;

/// Bits with the same meaning on every device.
const COMMON: &[(u32, &str)] = &[
    (VIRTIO_RING_F_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC"),
    (VIRTIO_RING_F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
    (F_VERSION_1, "VIRTIO_F_VERSION_1"),
    (F_ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM"),
    (F_RING_RESET, "VIRTIO_F_RING_RESET"),
];

const BLOCK: &[(u32, &str)] = &[
    (VIRTIO_BLK_F_SEG_MAX, "VIRTIO_BLK_F_SEG_MAX"),
    (VIRTIO_BLK_F_RO, "VIRTIO_BLK_F_RO"),
    (VIRTIO_BLK_F_BLK_SIZE, "VIRTIO_BLK_F_BLK_SIZE"),
    (VIRTIO_BLK_F_FLUSH, "VIRTIO_BLK_F_FLUSH"),
    (VIRTIO_BLK_F_TOPOLOGY, "VIRTIO_BLK_F_TOPOLOGY"),
    (VIRTIO_BLK_F_MQ, "VIRTIO_BLK_F_MQ"),
    (VIRTIO_BLK_F_DISCARD, "VIRTIO_BLK_F_DISCARD"),
    (VIRTIO_BLK_F_WRITE_ZEROES, "VIRTIO_BLK_F_WRITE_ZEROES"),
];

const NETWORK: &[(u32, &str)] = &[
    (VIRTIO_NET_F_CSUM, "VIRTIO_NET_F_CSUM"),
    (VIRTIO_NET_F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_CSUM"),
    (VIRTIO_NET_F_MTU, "VIRTIO_NET_F_MTU"),
    (VIRTIO_NET_F_MAC, "VIRTIO_NET_F_MAC"),
    (VIRTIO_NET_F_GUEST_TSO4, "VIRTIO_NET_F_GUEST_TSO4"),
    (VIRTIO_NET_F_GUEST_TSO6, "VIRTIO_NET_F_GUEST_TSO6"),
    (VIRTIO_NET_F_GUEST_ECN, "VIRTIO_NET_F_GUEST_ECN"),
    (VIRTIO_NET_F_HOST_TSO4, "VIRTIO_NET_F_HOST_TSO4"),
    (VIRTIO_NET_F_HOST_TSO6, "VIRTIO_NET_F_HOST_TSO6"),
    (VIRTIO_NET_F_HOST_ECN, "VIRTIO_NET_F_HOST_ECN"),
    (VIRTIO_NET_F_MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF"),
    (VIRTIO_NET_F_STATUS, "VIRTIO_NET_F_STATUS"),
    (VIRTIO_NET_F_CTRL_VQ, "VIRTIO_NET_F_CTRL_VQ"),
    (VIRTIO_NET_F_GUEST_ANNOUNCE, "VIRTIO_NET_F_GUEST_ANNOUNCE"),
    (VIRTIO_NET_F_MQ, "VIRTIO_NET_F_MQ"),
    (VIRTIO_NET_F_CTRL_MAC_ADDR, "VIRTIO_NET_F_CTRL_MAC_ADDR"),
    (VIRTIO_NET_F_SPEED_DUPLEX, "VIRTIO_NET_F_SPEED_DUPLEX"),
];

const CONSOLE: &[(u32, &str)] = &[
    (VIRTIO_CONSOLE_F_SIZE, "VIRTIO_CONSOLE_F_SIZE"),
    (VIRTIO_CONSOLE_F_MULTIPORT, "VIRTIO_CONSOLE_F_MULTIPORT"),
];

const SOCKET: &[(u32, &str)] = &[(VIRTIO_VSOCK_F_STREAM, "VIRTIO_VSOCK_F_STREAM")];

/// Returns the names of the set bits, lowest first; a bit without a name is `bit N`.
pub fn names(bits: u64, device: DeviceId) -> Vec<String> {
    let own = match device {
        DeviceId::Network => NETWORK,
        DeviceId::Block => BLOCK,
        DeviceId::Console => CONSOLE,
        // The device has no feature bits (virtio 1.3 section 5.4.3).
        DeviceId::Entropy => &[],
        DeviceId::Socket => SOCKET,
    };
    let name = |bit| {
        let known = own.iter().chain(COMMON).find(|(number, _)| *number == bit);
        known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    };
    (0..u64::BITS).filter(|bit| bits & 1 << bit != 0).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_the_specification() {
        let bits = 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM | 1 << VIRTIO_BLK_F_RO | 1 << 50;
        let expected =
            ["VIRTIO_BLK_F_RO", "VIRTIO_F_VERSION_1", "VIRTIO_F_ACCESS_PLATFORM", "bit 50"];
        assert_eq!(names(bits, DeviceId::Block), expected);
        assert_eq!(names(1 << 5 | 1 << F_VERSION_1, DeviceId::Entropy), ["bit 5", expected[1]]);
    }
}
