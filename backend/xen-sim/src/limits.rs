//! Limits of the handles, with the defaults of a real Dom0.

/// The limits of this domain and of the process that uses its handles. The default is an
/// unconfigured Dom0's.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of pages in one map call: gntdev's parameter `limit`.
    pub pages_a_map: usize,
    /// Maximum number of pages mapped at the same time; a page counts once for each of its
    /// mappings. Xen's map tracking, with `gnttab_max_maptrack_frames` of 1024.
    pub tracked_pages: usize,
    /// Maximum number of mappings of the process: the kernel's `vm.max_map_count`, including the
    /// process's other mappings.
    pub mappings: usize,
    /// Maximum number of event channels bound at the same time.
    pub ports: usize,
    /// xenstored's quotas for this domain; `None` for Dom0.
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

/// xenstored's quotas for an unprivileged domain, such as a driver domain.
#[derive(Clone, Copy, Debug)]
pub struct StoreQuota {
    /// Maximum number of nodes in the domain's own directory.
    pub nodes: usize,
    /// Maximum number of watches of all the domain's connections.
    pub watches: usize,
    /// Maximum size of a node's value in bytes, exclusive.
    pub node_size: usize,
}

impl Default for StoreQuota {
    fn default() -> Self {
        Self { nodes: 1000, watches: 128, node_size: 2048 }
    }
}
