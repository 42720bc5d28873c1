//! What the handles have room for, as those of a real domain do.

/// The limits of this domain and of the process that uses its handles. Those of a Dom0 as it comes,
/// at first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pages of one map call: gntdev's parameter `limit`.
    pub pages_a_map: usize,
    /// Pages mapped at once, a page counting as often as it is mapped: Xen's map tracking, with
    /// `gnttab_max_maptrack_frames` of 1024.
    pub tracked_pages: usize,
    /// Mappings that the process has at once: the kernel's `vm.max_map_count`, of which others take
    /// some.
    pub mappings: usize,
    /// Event channels that are bound at once.
    pub ports: usize,
    /// xenstored's quotas for this domain; none for Dom0.
    pub store: Option<StoreQuota>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pages_a_map: 64 << 10,
            tracked_pages: 1024 * 256,
            mappings: 65_530,
            ports: 128 << 10,
            store: None,
        }
    }
}

/// What xenstored lets a domain have that is not privileged, as a driver domain is.
#[derive(Clone, Copy, Debug)]
pub struct StoreQuota {
    /// Nodes in its own directory.
    pub nodes: usize,
    /// Watches of all its connections.
    pub watches: usize,
    /// Bytes of a node.
    pub node_size: usize,
}

impl Default for StoreQuota {
    fn default() -> Self {
        Self { nodes: 1000, watches: 128, node_size: 2048 }
    }
}
