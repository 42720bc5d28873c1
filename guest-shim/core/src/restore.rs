//! Whether a driver can go on with the device that its guest finds after it was restored or moved
//! (SPEC 2.14).
//!
//! A driver reads most of the configuration once, when it is bound. The device that it finds later
//! must keep what the driver was told: it may have more, but not less.

/// Bytes of configuration that [`Traits`] hold.
pub const CONFIG_SIZE: usize = 64;

/// What a driver knows of its device. `repr(C)`: `struct shim_traits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Traits {
    /// Virtio device ID.
    pub device_id: u32,
    /// Whether the device keeps pages mapped that the driver shares (not 0).
    pub pool: u32,
    /// The features that the driver accepted, or those that the device offers.
    pub features: u64,
    /// The configuration, of [`config_size`] bytes; zeros where the device has less.
    pub config: [u8; CONFIG_SIZE],
}

/// The first difference that the driver cannot cope with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is a device of another type.
    DeviceId,
    /// It lacks a feature that the driver accepted.
    Features,
    /// It maps no pages in advance any more, so that requests can be smaller only.
    Pool,
    /// The disk is smaller.
    Capacity,
    /// The disk has blocks of another size.
    BlockSize,
    /// It has fewer queues.
    QueueCount,
    /// A request or packet may be smaller only.
    Limits,
    /// The interface has another address.
    Address,
    /// The console has fewer ports.
    Ports,
    /// The disk is read-only.
    ReadOnly,
}

/// How a field of the configuration may differ.
#[derive(Clone, Copy)]
enum Rule {
    /// Not at all.
    Same,
    /// It may be larger.
    NotLess,
}

/// A field of a configuration, which is there if the driver accepted a feature.
struct Field {
    offset: usize,
    bytes: usize,
    feature: Option<u32>,
    rule: Rule,
    difference: Difference,
}

const fn field(
    offset: usize,
    bytes: usize,
    feature: Option<u32>,
    rule: Rule,
    difference: Difference,
) -> Field {
    Field { offset, bytes, feature, rule, difference }
}

/// The device ID of a disk, and its feature VIRTIO_BLK_F_RO (virtio 1.3 section 5.2).
const BLOCK: u32 = 2;
const READ_ONLY: u32 = 5;

/// Virtio 1.3 section 5.2.4. The driver reads the rest again, or does not use it.
const BLOCK_FIELDS: [Field; 8] = [
    field(0, 8, None, Rule::NotLess, Difference::Capacity),
    field(8, 4, Some(1), Rule::NotLess, Difference::Limits),
    field(12, 4, Some(2), Rule::NotLess, Difference::Limits),
    field(20, 4, Some(6), Rule::Same, Difference::BlockSize),
    field(34, 2, Some(12), Rule::NotLess, Difference::QueueCount),
    field(36, 4, Some(13), Rule::NotLess, Difference::Limits),
    field(40, 4, Some(13), Rule::NotLess, Difference::Limits),
    field(48, 4, Some(14), Rule::NotLess, Difference::Limits),
];

/// Virtio 1.3 section 5.1.4.
const NETWORK_FIELDS: [Field; 3] = [
    field(0, 6, Some(5), Rule::Same, Difference::Address),
    field(8, 2, Some(22), Rule::NotLess, Difference::QueueCount),
    field(10, 2, Some(3), Rule::NotLess, Difference::Limits),
];

/// Virtio 1.3 section 5.3.4.
const CONSOLE_FIELDS: [Field; 1] = [field(4, 4, Some(1), Rule::NotLess, Difference::Ports)];

/// The fields of a type of device, and the bytes of configuration that have them.
const fn fields(device_id: u32) -> (&'static [Field], usize) {
    match device_id {
        1 => (&NETWORK_FIELDS, 12),
        2 => (&BLOCK_FIELDS, 60),
        3 => (&CONSOLE_FIELDS, 12),
        _ => (&[], 0),
    }
}

/// The bytes of configuration to compare, for a type of device; a multiple of 4.
pub const fn config_size(device_id: u32) -> usize {
    fields(device_id).1
}

/// The first difference that the driver cannot cope with, between the device that it has had and
/// the one that it finds.
pub fn difference(had: &Traits, found: &Traits) -> Option<Difference> {
    if had.device_id != found.device_id {
        return Some(Difference::DeviceId);
    }
    if had.features & !found.features != 0 {
        return Some(Difference::Features);
    }
    let is_new = |feature: u32| found.features & !had.features & 1 << feature != 0;
    if had.device_id == BLOCK && is_new(READ_ONLY) {
        return Some(Difference::ReadOnly);
    }
    if had.pool != 0 && found.pool == 0 {
        return Some(Difference::Pool);
    }
    let accepted = |field: &&Field| field.feature.is_none_or(|bit| had.features >> bit & 1 != 0);
    let differs = |field: &&Field| {
        let (had, found) = (value(&had.config, field), value(&found.config, field));
        match field.rule {
            Rule::Same => had != found,
            Rule::NotLess => found < had,
        }
    };
    let known = fields(had.device_id).0.iter();
    known.filter(accepted).find(differs).map(|field| field.difference)
}

/// The value of a field, as a number.
fn value(config: &[u8; CONFIG_SIZE], field: &Field) -> u64 {
    let bytes = config.iter().skip(field.offset).take(field.bytes);
    bytes.rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(device_id: u32, fields: &[(usize, &[u8])]) -> Traits {
        let mut config = [0; CONFIG_SIZE];
        for (offset, bytes) in fields {
            config[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Traits { device_id, pool: 1, features: 1 << 32 | 0xffff_ffff, config }
    }

    #[test]
    fn spec_2_14_same_or_larger_device_can_go_on() {
        for device_id in [0, 1, 2, 3, 4, 19, 77] {
            let had = traits(device_id, &[(0, &[9, 9, 9, 9, 9, 9]), (20, &[0, 2]), (34, &[4])]);
            assert_eq!(difference(&had, &had), None);
            let more = Traits { features: u64::MAX, pool: 2, ..had };
            assert_eq!(difference(&had, &more), None);
            assert!(config_size(device_id) <= CONFIG_SIZE && config_size(device_id) % 4 == 0);
        }
        let had = traits(2, &[(0, &[0, 1]), (34, &[1])]);
        let larger = traits(2, &[(0, &[0, 0, 1]), (34, &[4])]);
        assert_eq!(difference(&had, &larger), None);
    }

    #[test]
    fn spec_2_14_driver_cannot_go_on_with_less() {
        let had = traits(2, &[(0, &[0, 1]), (12, &[126]), (20, &[0, 2]), (34, &[4])]);
        let found = |offset, bytes: &[u8]| {
            let mut found = had;
            found.config[offset..offset + bytes.len()].copy_from_slice(bytes);
            difference(&had, &found)
        };
        assert_eq!(found(0, &[255, 0]), Some(Difference::Capacity));
        assert_eq!(found(12, &[62]), Some(Difference::Limits));
        assert_eq!(found(20, &[0, 16]), Some(Difference::BlockSize));
        assert_eq!(found(34, &[1]), Some(Difference::QueueCount));
        let without = Traits { features: had.features & !(1 << 13), ..had };
        assert_eq!(difference(&had, &without), Some(Difference::Features));
        assert_eq!(difference(&had, &Traits { pool: 0, ..had }), Some(Difference::Pool));
        let other = Traits { device_id: 1, ..had };
        assert_eq!(difference(&had, &other), Some(Difference::DeviceId));
        // The driver does not know of its queues without the feature.
        let (had, mut fewer) = (Traits { features: 1 << 32, ..had }, had);
        (fewer.config[34], fewer.features) = (1, fewer.features & !(1 << READ_ONLY));
        assert_eq!(difference(&had, &fewer), None);
        // It would write to it.
        let read_only = Traits { features: had.features | 1 << READ_ONLY, ..had };
        assert_eq!(difference(&had, &read_only), Some(Difference::ReadOnly));
    }

    #[test]
    fn spec_2_14_interface_keeps_its_address_and_a_console_its_ports() {
        let had = traits(1, &[(0, &[2, 0, 0, 0, 0, 1]), (8, &[2])]);
        let other = traits(1, &[(0, &[2, 0, 0, 0, 0, 2]), (8, &[2])]);
        let fewer = traits(1, &[(0, &[2, 0, 0, 0, 0, 1]), (8, &[1])]);
        assert_eq!(difference(&had, &other), Some(Difference::Address));
        assert_eq!(difference(&had, &fewer), Some(Difference::QueueCount));
        let (had, fewer) = (traits(3, &[(4, &[4])]), traits(3, &[(4, &[3])]));
        assert_eq!(difference(&had, &fewer), Some(Difference::Ports));
    }
}
