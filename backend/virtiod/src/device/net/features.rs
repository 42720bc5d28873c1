//! Feature bits of the network device (virtio 1.3 section 5.1.3), and their effects.
//!
//! The device does not offer filters of addresses and VLANs (`VIRTIO_NET_F_CTRL_RX`, `_CTRL_VLAN`):
//! a guest receives the frames that its bridge sends to its port, as on a switch. Linux does not
//! repeat the VLANs after a restore, so that a filter would drop the frames of those that it had
//! before. A guest may send from any address, unless an [`AddressLock`](super::AddressLock) says
//! otherwise.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS,
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
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_SPEED_DUPLEX,
];

/// The features that are offloads of the guest's, in the order of the bits of [`OffloadsOff`].
const OFFLOADS: [u32; 4] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
];

/// Offloads that the driver has negotiated and turned off, for a process that takes over: a bit for
/// each of [`OFFLOADS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OffloadsOff(pub(super) u16);

impl OffloadsOff {
    /// Those that a command leaves out, which lists what stays on (section 5.1.6.5.7.1); `None` if
    /// it lists others than offloads that were negotiated.
    pub(super) fn of_command(on: u64, features: u64) -> Option<Self> {
        let known = OFFLOADS.iter().fold(0, |bits, number| bits | 1 << number);
        if on & !(features & known) != 0 {
            return None;
        }
        let off = OFFLOADS.iter().enumerate().filter(|(_, number)| !has(on, **number));
        Some(Self(off.fold(0, |bits, (index, _)| bits | 1 << index)))
    }

    /// `features` without them.
    pub(super) fn remove_from(self, features: u64) -> u64 {
        let off = OFFLOADS.iter().enumerate().filter(|(index, _)| self.0 & 1 << index != 0);
        off.fold(features, |features, (_, number)| features & !(1 << number))
    }
}

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
    fn driver_turns_negotiated_offloads_off_and_on() {
        let features = bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MAC]);
        let left = |on: &[u32]| {
            let off = OffloadsOff::of_command(bits(on), features)?;
            Some(offloads(off.remove_from(features)))
        };
        let (csum, tso4) = (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4);
        assert_eq!(left(&[]), Some(vec![]));
        assert_eq!(left(&[csum]), Some(vec![Offload::Checksum]));
        assert_eq!(left(&[tso4]), Some(vec![]), "segmentation needs checksums");
        assert_eq!(left(&[csum, tso4]), Some(vec![Offload::Checksum, Offload::Tso4]));
        assert_eq!(left(&[csum, VIRTIO_NET_F_GUEST_TSO6]), None, "not negotiated");
        assert_eq!(left(&[csum, VIRTIO_NET_F_MAC]), None, "no offload");
        assert_eq!(OffloadsOff::default().remove_from(features), features);
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
