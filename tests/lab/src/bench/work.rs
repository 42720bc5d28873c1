//! The works that the bench measures, with all tools.

use super::{block, net, scale, stores};

/// The unit of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Requests, packets, pages or round trips per second.
    Count,
    /// Bytes per second.
    Bytes,
}

impl Unit {
    /// Formats a rate for people.
    pub(crate) fn show(self, rate: f64) -> String {
        match self {
            Unit::Count if rate < 10.0 => format!("{rate:.2}/s"),
            Unit::Count => format!("{rate:.0}/s"),
            Unit::Bytes => {
                let mebibytes = rate / f64::from(1 << 20);
                let digits = usize::from(mebibytes < 10.0);
                format!("{mebibytes:.digits$} MiB/s")
            }
        }
    }
}

/// One kind of work.
#[derive(Debug)]
pub(crate) struct Work {
    /// The name in jobs and in reports for programs.
    pub(crate) key: &'static str,
    /// The name for people.
    pub(crate) name: &'static str,
    /// The unit of its rate.
    pub(crate) unit: Unit,
    /// Whether a quick run includes it.
    pub(crate) quick: bool,
    /// Options of the tool that does it.
    pub(crate) options: &'static [&'static str],
}

/// Reading pages that a guest granted, without a device: see bench-reach/dom0.sh.
const REACH: &[Work] = &[
    Work {
        key: "reach-1",
        name: "one page at a time",
        unit: Unit::Count,
        quick: true,
        options: &[],
    },
    Work {
        key: "reach-32",
        name: "32 pages at a time",
        unit: Unit::Count,
        quick: true,
        options: &[],
    },
];

/// Returns all works.
pub(crate) fn all() -> impl Iterator<Item = &'static Work> {
    block::WORKS.iter().chain([&block::SHELL]).chain(net::WORKS).chain(scale::WORKS).chain(REACH)
}

/// Finds the work `key`.
pub(crate) fn find(key: &str) -> Option<&'static Work> {
    all().find(|work| work.key == key)
}

/// Returns the index of the work `key` among all works; unknown works are sorted last.
pub(crate) fn place(key: &str) -> usize {
    all().position(|work| work.key == key).unwrap_or(usize::MAX)
}

/// Returns a server's name for people.
pub(crate) fn server_name(key: &str) -> &str {
    match key {
        "ours" => "xen-virtiod",
        "cached" => "xen-virtiod, Dom0's page cache",
        "mapped" => "mapped once, as a pool's",
        "blkback" => "xen-blkback",
        "blkback-tuned" => "xen-blkback, raised limits",
        "blkback-netback" => "xen-blkback and xen-netback",
        "qdisk" => "QEMU's qdisk",
        "virtio-pci" => "QEMU's virtio-blk-pci",
        "nvme" => "QEMU's NVMe",
        "ahci" => "QEMU's AHCI",
        "ide" => "QEMU's IDE",
        "per-access" => "vm-memory's grant mapping",
        "pool-0" => "xen-virtiod, no pool",
        "pool-64" => "xen-virtiod, a pool of 256 KiB",
        "pool-512" => "xen-virtiod, a pool of 2 MiB",
        "grant-copy" => "copied by the hypervisor",
        "map" => "mapped each time",
        "floor" => "Dom0 itself",
        "netback" => "xen-netback",
        "e1000" => "QEMU's e1000",
        "rtl8139" => "QEMU's rtl8139",
        other => other,
    }
}

/// Returns the name for people of a backing store, or of another common property of a section.
pub(crate) fn target_name(key: &str) -> &str {
    if let Some(store) = stores::find(key) {
        return store.name;
    }
    match key {
        "file_beside" => "a file in RAM, beside a TCP stream from the guest",
        "bridge" => "a bridge in Dom0",
        "guest" => "another guest",
        "guest_by_domain" => "another guest, both served by a driver domain",
        "pool" => "sizes of the pool",
        "alone" => "ways to map",
        "pages" => "pages read in Dom0",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_formatted_with_their_units() {
        assert_eq!(Unit::Count.show(1234.5), "1234/s");
        assert_eq!(Unit::Count.show(1.25), "1.25/s");
        assert_eq!(Unit::Bytes.show(f64::from(5 << 19)), "2.5 MiB/s");
        assert_eq!(Unit::Bytes.show(f64::from(300 << 20)), "300 MiB/s");
    }

    #[test]
    fn keys_are_unique() {
        assert!(all().all(|work| all().filter(|other| other.key == work.key).count() == 1));
        assert_eq!(find("randread-4k-qd1").unwrap().name, "4 KiB random read, depth 1");
        assert!(find("nosuch").is_none());
    }
}
