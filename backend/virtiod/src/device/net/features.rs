//! Feature bits of the network device (virtio 1.3 section 5.1.3), and their effects.
//!
//! The device does not offer filters of addresses and VLANs (`VIRTIO_NET_F_CTRL_RX`, `_CTRL_VLAN`):
//! a guest receives the frames that its bridge sends to its port, as on a switch. Nor can the guest
//! turn offloads off (`_CTRL_GUEST_OFFLOADS`). Linux does not repeat these commands after a
//! restore: VLANs that it had before would be silent, and programs (XDP) get packets that they
//! drop. A guest may send from any address, unless an [`AddressLock`](super::AddressLock) says
//! otherwise.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};

use super::QueuePairs;
use super::interface::Offload;

const ALWAYS: &[u32] = &[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_SPEED_DUPLEX,
];

/// Whether bit `number` is set.
pub(super) fn has(features: u64, number: u32) -> bool {
    features & 1 << number != 0
}

/// The features that a device with this number of queue pairs offers.
pub(super) fn offered(pairs: QueuePairs) -> u64 {
    let several: &[u32] = if pairs.count() > 1 { &[VIRTIO_NET_F_MQ] } else { &[] };
    ALWAYS.iter().chain(several).fold(0, |bits, number| bits | 1 << number)
}

/// The offloads that a driver with these features handles. Without checksums it handles none, since
/// segmentation needs them (section 5.1.3.1).
pub(super) fn offloads(features: u64) -> Vec<Offload> {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return Vec::new();
    }
    let segments = [
        (VIRTIO_NET_F_GUEST_TSO4, Offload::Tso4),
        (VIRTIO_NET_F_GUEST_TSO6, Offload::Tso6),
        (VIRTIO_NET_F_GUEST_ECN, Offload::TsoEcn),
    ];
    let accepted = segments.into_iter().filter(|(number, _)| has(features, *number));
    [Offload::Checksum].into_iter().chain(accepted.map(|(_, offload)| offload)).collect()
}

/// The index of the control queue, which follows the pairs that the driver knows (section 5.1.2).
pub(super) fn control_queue(features: u64, pairs: QueuePairs) -> Option<usize> {
    let known = if has(features, VIRTIO_NET_F_MQ) { pairs.count() } else { 1 };
    has(features, VIRTIO_NET_F_CTRL_VQ).then_some(2 * usize::from(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(numbers: &[u32]) -> u64 {
        numbers.iter().fold(0, |bits, number| bits | 1 << number)
    }

    #[test]
    fn offloads_follow_features_and_need_checksums() {
        let csum = VIRTIO_NET_F_GUEST_CSUM;
        assert_eq!(offloads(0), []);
        assert_eq!(offloads(bits(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6])), []);
        assert_eq!(offloads(bits(&[csum])), [Offload::Checksum]);
        let tso6 = bits(&[csum, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4]);
        assert_eq!(offloads(tso6), [Offload::Checksum, Offload::Tso6]);
        let all = [Offload::Checksum, Offload::Tso4, Offload::Tso6, Offload::TsoEcn];
        assert_eq!(offloads(offered(QueuePairs::default())), all);
    }

    #[test]
    fn offered_features_have_names() {
        let pairs = QueuePairs::try_from(2).unwrap();
        let names = crate::features::names(offered(pairs), crate::device::DeviceId::Network);
        assert!(names.iter().all(|name| name.starts_with("VIRTIO_NET_F_")), "{names:?}");
    }

    #[test]
    fn control_queue_follows_the_pairs_that_the_driver_knows() {
        let pairs = QueuePairs::try_from(3).unwrap();
        let with = |numbers| control_queue(bits(numbers), pairs);
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[VIRTIO_NET_F_CTRL_VQ]), Some(2));
        assert_eq!(with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]), Some(6));
    }
}
