//! The devices that watches which fired concern.

use std::collections::BTreeSet;

use protocol::binding::backend_key::RETARGET;

use crate::bus::DevicePath;
use crate::setup::CLASSES;
use xen::{DomId, Fired};

/// A part of XenStore in which something changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// The directories of all devices.
    Everywhere,
    /// The directory of a guest's devices of one class.
    Guest(&'static str, DomId),
    /// A device's directory.
    Device(DevicePath),
    /// The key by which the toolstack gives a device another target.
    Target(DevicePath),
}

/// The changes at these paths, each once, so that a toolstack that writes a device's keys one by
/// one costs one visit.
pub(super) fn changes(fired: &Fired) -> BTreeSet<Change> {
    let found: BTreeSet<_> = match fired {
        Fired::Nowhere => return BTreeSet::new(),
        Fired::Anywhere => return BTreeSet::from([Change::Everywhere]),
        Fired::At(paths) => paths.iter().filter_map(|path| change(path)).collect(),
    };
    match found.contains(&Change::Everywhere) {
        true => BTreeSet::from([Change::Everywhere]),
        false => found,
    }
}

/// The change at a path; `None` if it is in the directory of no device.
fn change(path: &str) -> Option<Change> {
    let mut names = path.split('/');
    let mut name = || names.next();
    let (Some("backend"), Some(class)) = (name(), name()) else { return Some(Change::Everywhere) };
    let class = CLASSES.into_iter().find(|known| *known == class)?;
    let Some(guest) = name() else { return Some(Change::Everywhere) };
    let guest = DomId(guest.parse().ok()?);
    let Some(number) = name() else { return Some(Change::Guest(class, guest)) };
    let number = number.parse().ok()?;
    let device = DevicePath { class: class.to_owned(), guest, number };
    Some(if name() == Some(RETARGET) { Change::Target(device) } else { Change::Device(device) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(paths: &[&str]) -> Vec<Change> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        changes(&Fired::At(paths)).into_iter().collect()
    }

    fn disk(guest: u16, number: u32) -> Change {
        let class = "virtio_disk".to_owned();
        Change::Device(DevicePath { class, guest: DomId(guest), number })
    }

    #[test]
    fn keys_of_a_device_are_one_change() {
        let keys =
            ["online", "state", "frontend/x", ""].map(|key| format!("virtio_disk/1/7/{key}"));
        let paths: Vec<_> = keys.iter().map(|key| format!("backend/{key}")).collect();
        let mut paths: Vec<_> = paths.iter().map(String::as_str).collect();
        paths.extend(["backend/virtio_disk/1/7", "backend/virtio_disk/2/7"]);
        assert_eq!(at(&paths), [disk(1, 7), disk(2, 7)]);
        let Change::Device(device) = disk(1, 7) else { unreachable!() };
        assert_eq!(at(&["backend/virtio_disk/1/7/retarget"]), [Change::Target(device)]);
    }

    #[test]
    fn directories_above_are_all_that_is_below_them() {
        let guest = Change::Guest("virtio", DomId(3));
        assert_eq!(at(&["backend/virtio/3", "backend/virtio_disk/1/7"]), [guest, disk(1, 7)]);
        for above in ["backend/virtio", "backend", "", "/local/domain/0/backend/virtio/3"] {
            let changes = at(&[above, "backend/virtio/3", "backend/virtio_disk/1/7"]);
            assert_eq!(changes, [Change::Everywhere], "{above:?}");
        }
        assert_eq!(changes(&Fired::Anywhere), BTreeSet::from([Change::Everywhere]));
    }

    #[test]
    fn names_that_no_device_has_are_no_change() {
        for path in ["backend/vbd/1/7", "backend/virtio/x", "backend/virtio/1/x/state"] {
            assert_eq!(at(&[path]), [], "{path}");
        }
        assert_eq!(changes(&Fired::Nowhere), BTreeSet::new());
    }
}
