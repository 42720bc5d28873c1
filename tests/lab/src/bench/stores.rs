//! The backing stores of disks, and the disks of each scenario's guest.

/// What a disk's data is stored in.
#[derive(Debug)]
pub(crate) struct Store {
    /// The name in scenarios and in reports for programs: KIND or KIND_SETTING. It has no hyphen.
    pub(crate) key: &'static str,
    /// The name for people.
    pub(crate) name: &'static str,
    /// The keys of the works on it.
    pub(crate) works: &'static [&'static str],
    /// Whether a quick run includes it.
    pub(crate) quick: bool,
}

impl Store {
    /// Returns whether each round uses an area of the disk that no round before it has used: reads
    /// find nothing of it in Dom0's page cache.
    pub(crate) fn is_cold(&self) -> bool {
        self.key.ends_with("_cold")
    }
}

/// All works for an image file.
const ON_FILE: &[&str] = &[
    "randread-4k-qd1",
    "randread-4k-qd1-lean",
    "randwrite-4k-qd1",
    "randread-4k-qd4",
    "randread-4k-qd32",
    "randread-4k-qd32-lean",
    "randwrite-4k-qd32",
    "randwrite-4k-qd32-lean",
    "randrw-64k-qd8",
    "randrw-mixed-qd16",
    "fsync-4k",
    "fsync8-4k-qd8",
    "read-1m-qd4",
    "write-1m-qd4",
];

/// The works for stores that answer at once, and for settings in which only a few matter.
const USUAL: &[&str] = &[
    "randread-4k-qd1",
    "randread-4k-qd32",
    "randwrite-4k-qd32",
    "randrw-mixed-qd16",
    "read-1m-qd4",
    "write-1m-qd4",
];

/// The works for stores that take time.
const ON_SLOW: &[&str] = &[
    "randread-4k-qd1",
    "randread-4k-qd4",
    "randread-4k-qd32",
    "randwrite-4k-qd32",
    "randrw-mixed-qd16",
    "fsync8-4k-qd8",
    "read-1m-qd4",
    "write-1m-qd4",
];

/// The works for a disk with and without Dom0's page cache.
const ON_DIRECT: &[&str] = &[
    "randread-4k-qd1",
    "randwrite-4k-qd1",
    "randread-4k-qd4",
    "randwrite-4k-qd4",
    "randread-4k-qd32",
    "randwrite-4k-qd32",
    "randrw-mixed-qd16",
    "fsync8-4k-qd8",
    "read-1m-qd4",
    "write-1m-qd4",
];

/// The works for a store whose flushes take time.
const ON_FLUSH: &[&str] =
    &["randread-4k-qd8", "randread-4k-qd8-fsyncs", "fsync-4k", "fsync8-4k-qd8"];

/// The works for a file system on a store that takes time.
const ON_EXT4: &[&str] = &[
    "randread-4k-qd1",
    "randread-4k-qd8",
    "randread-4k-qd8-fsyncs",
    "randread-4k-qd32",
    "randwrite-4k-qd32",
    "randrw-mixed-qd16",
    "fsync8-4k-qd8",
    "read-1m-qd4",
    "write-1m-qd4",
];

/// All stores. `make_store` in bench-block/servers.sh makes them.
pub(crate) const STORES: &[Store] = &[
    Store { key: "file", name: "a file in RAM", works: ON_FILE, quick: true },
    Store { key: "ram", name: "a RAM disk", works: USUAL, quick: false },
    Store { key: "null", name: "a disk that moves no data", works: USUAL, quick: false },
    Store {
        key: "null100us",
        name: "a disk that takes 0.1 ms (direct-io-safe)",
        works: ON_SLOW,
        quick: false,
    },
    Store {
        key: "null1ms",
        name: "a disk that takes 1 ms (direct-io-safe)",
        works: ON_SLOW,
        quick: true,
    },
    Store {
        key: "null4ms",
        name: "a disk that takes 4 ms (direct-io-safe)",
        works: ON_SLOW,
        quick: true,
    },
    Store {
        key: "flush10ms",
        name: "a disk that takes 1 ms, and 10 ms to flush (direct-io-safe)",
        works: ON_FLUSH,
        quick: false,
    },
    Store { key: "ext4ram", name: "a file on ext4, on a RAM disk", works: ON_EXT4, quick: false },
    Store {
        key: "ext4slow",
        name: "a file on ext4, on a disk that takes 1 ms, and 10 ms to flush",
        works: ON_EXT4,
        quick: false,
    },
    Store {
        key: "ext4direct",
        name: "a file on ext4, on a disk that takes 1 ms, and 10 ms to flush (direct-io-safe)",
        works: ON_EXT4,
        quick: false,
    },
    Store {
        key: "file_tuned",
        name: "a file in RAM, raised limits of xen-blkfront",
        works: USUAL,
        quick: false,
    },
    Store {
        key: "null1ms_tuned",
        name: "a disk that takes 1 ms (direct-io-safe), raised limits of xen-blkfront",
        works: USUAL,
        quick: false,
    },
    Store {
        key: "file_shared",
        name: "a file in RAM, one processor for Dom0 and guest",
        works: USUAL,
        quick: true,
    },
    Store {
        key: "file_dom0x2",
        name: "a file in RAM, two processors for Dom0",
        works: USUAL,
        quick: false,
    },
    Store {
        key: "null1ms_dom0x2",
        name: "a disk that takes 1 ms (direct-io-safe), two processors for Dom0",
        works: USUAL,
        quick: false,
    },
    Store { key: "ram_direct", name: "a RAM disk, direct I/O", works: ON_DIRECT, quick: false },
    Store {
        key: "null_cold",
        name: "a disk that moves no data, direct I/O, nothing cached",
        works: ON_DIRECT,
        quick: false,
    },
    Store {
        key: "null100us_cold",
        name: "a disk that takes 0.1 ms, direct I/O, nothing cached",
        works: ON_DIRECT,
        quick: false,
    },
    Store {
        key: "null1ms_cold",
        name: "a disk that takes 1 ms, direct I/O, nothing cached",
        works: ON_DIRECT,
        quick: false,
    },
    Store {
        key: "null4ms_cold",
        name: "a disk that takes 4 ms, direct I/O, nothing cached",
        works: ON_DIRECT,
        quick: false,
    },
    Store {
        key: "null1ms_hot",
        name: "a disk that takes 1 ms, direct I/O, all that is read cached",
        works: ON_DIRECT,
        quick: false,
    },
];

/// xen-virtiod, as a server.
pub(crate) const OURS: &str = "ours";

/// xen-virtiod through Dom0's page cache, beside [`OURS`] without it.
pub(crate) const CACHED: &str = "cached";

/// No server: fio runs in Dom0, directly on the backing store.
pub(crate) const FLOOR: &str = "floor";

/// Finds the store `key`.
pub(crate) fn find(key: &str) -> Option<&'static Store> {
    STORES.iter().find(|store| store.key == key)
}

/// Returns the compared disks of a scenario's guest, as server and store. A disk's node is
/// `/dev/bench/SERVER-STORE`.
pub(crate) fn disks(scenario: &str, guest: &str) -> &'static [(&'static str, &'static str)] {
    match (scenario, guest) {
        ("bench-block", "hvm") => &[
            (OURS, "file"),
            ("blkback", "file"),
            ("virtio-pci", "file"),
            ("nvme", "file"),
            ("ahci", "file"),
            ("ide", "file"),
        ],
        ("bench-block", _) => &[
            (OURS, "file"),
            ("blkback", "file"),
            ("qdisk", "file"),
            (OURS, "ram"),
            ("blkback", "ram"),
            (OURS, "null"),
            ("blkback", "null"),
        ],
        ("bench-slow", _) => &[
            (OURS, "null100us"),
            ("blkback", "null100us"),
            (OURS, "null1ms"),
            ("blkback", "null1ms"),
            (OURS, "null4ms"),
            ("blkback", "null4ms"),
            (OURS, "flush10ms"),
            ("blkback", "flush10ms"),
        ],
        ("bench-ext4", _) => &[
            (OURS, "ext4ram"),
            ("blkback", "ext4ram"),
            (OURS, "ext4slow"),
            ("blkback", "ext4slow"),
            (OURS, "ext4direct"),
            ("blkback", "ext4direct"),
        ],
        ("bench-tuned", _) => &[
            (OURS, "file_tuned"),
            ("blkback-tuned", "file_tuned"),
            (OURS, "null1ms_tuned"),
            ("blkback-tuned", "null1ms_tuned"),
        ],
        ("bench-one-processor", _) => &[(OURS, "file_shared"), ("blkback", "file_shared")],
        ("bench-two-for-dom0", _) => &[
            (OURS, "file_dom0x2"),
            ("blkback", "file_dom0x2"),
            (OURS, "null1ms_dom0x2"),
            ("blkback", "null1ms_dom0x2"),
        ],
        ("bench-direct", _) => &[
            (OURS, "ram_direct"),
            (CACHED, "ram_direct"),
            (OURS, "null_cold"),
            (CACHED, "null_cold"),
            (OURS, "null100us_cold"),
            (CACHED, "null100us_cold"),
            (OURS, "null1ms_cold"),
            (CACHED, "null1ms_cold"),
            (OURS, "null4ms_cold"),
            (CACHED, "null4ms_cold"),
            (OURS, "null1ms_hot"),
            (CACHED, "null1ms_hot"),
        ],
        ("bench-floor", _) => &[(FLOOR, "file"), (FLOOR, "ram"), (FLOOR, "null")],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::work;
    use crate::dirs::Dirs;
    use crate::scenario;

    #[test]
    fn stores_have_known_works_and_keys_without_hyphen() {
        for store in STORES {
            assert!(!store.key.contains('-'), "{}", store.key);
            for key in store.works {
                assert!(work::find(key).is_some(), "{key} on {}", store.key);
            }
        }
    }

    #[test]
    fn each_store_has_a_scenario_and_each_disk_a_store() {
        let used = |store: &Store| {
            let scenarios = scenario::all(&Dirs::find().unwrap().tests().join("bench/scenarios"));
            let scenarios = scenarios.unwrap();
            scenarios.iter().any(|scenario| {
                let disks = disks(&scenario.name, scenario.guest);
                disks.iter().any(|(_, key)| *key == store.key)
            })
        };
        for store in STORES {
            assert!(used(store), "{}", store.key);
        }
        for (scenario, guest) in
            [("bench-block", "hvm"), ("bench-slow", "pvh"), ("bench-floor", "pv")]
        {
            let disks = disks(scenario, guest);
            assert!(!disks.is_empty() && disks.iter().all(|(_, store)| find(store).is_some()));
        }
    }
}
