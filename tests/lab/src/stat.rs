//! Parses the output of `xen-virtiod stat --json`: counters of each device.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The counters of the daemon's devices, including those that have ended.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Stat {
    /// The devices, present ones first.
    pub(crate) devices: Vec<Device>,
}

/// The counters of one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Device {
    /// The guest's domain.
    pub(crate) domid: u32,
    /// The device's name in XenStore, such as `virtio_disk/51712`.
    pub(crate) device: String,
    /// The negotiated features.
    pub(crate) features: Vec<String>,
    /// Requests by kind.
    pub(crate) requests: Requests,
    /// Bytes by direction.
    pub(crate) bytes: Bytes,
    /// Addresses in the driver's descriptors, by kind.
    pub(crate) addresses: Addresses,
    /// The number of grants that the daemon has mapped.
    pub(crate) grants_mapped: u64,
    /// The reason if the device needs a reset.
    pub(crate) needs_reset: Option<String>,
}

/// Requests by kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Requests {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) flush: u64,
    pub(crate) failed: u64,
}

/// Bytes by direction.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Bytes {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

/// The number of addresses by kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Addresses {
    /// Grant addresses.
    pub(crate) grant: u64,
    /// Addresses in the pool.
    pub(crate) pool: u64,
    /// Addresses that the daemon refused.
    pub(crate) refused: u64,
}

impl Stat {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is no output of `stat --json`.
    pub(crate) fn read(path: &Path) -> Result<Stat> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no output of `stat --json`", path.display()))
    }

    /// Returns the devices of the domain `domid`.
    pub(crate) fn of_domain(&self, domid: u32) -> Vec<Device> {
        let of_domain = self.devices.iter().filter(|device| device.domid == domid);
        of_domain.cloned().collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two devices of domain 1, and one of domain 2.
    pub(crate) const EXAMPLE: &str = r#"{"devices":[
        {"domid":1,"device":"virtio_disk/51712","kind":"blk","state":"closed",
         "features":["VIRTIO_F_VERSION_1","VIRTIO_F_ACCESS_PLATFORM"],
         "requests":{"read":10,"write":20,"flush":3,"get_id":1,"failed":0},
         "bytes":{"read":4096,"written":1048576},"addresses":{"grant":90,"pool":9,"refused":0},
         "grants_mapped":0,"messages":{"received":50,"malformed":0},"needs_reset":null},
        {"domid":1,"device":"virtio_disk/51728","features":["VIRTIO_F_VERSION_1",
         "VIRTIO_F_ACCESS_PLATFORM"],"requests":{"read":1},"addresses":{"grant":3}},
        {"domid":2,"device":"virtio_disk/51712","needs_reset":"descriptor 5: no grant"}]}"#;

    #[test]
    fn devices_of_a_domain_are_found_with_their_counters() {
        let stat: Stat = serde_json::from_str(EXAMPLE).unwrap();
        let devices = stat.of_domain(1);
        assert_eq!(devices.len(), 2);
        assert_eq!(devices[0].requests.write, 20);
        assert_eq!(devices[0].bytes.written, 1_048_576);
        assert_eq!(devices[0].needs_reset, None);
        assert_eq!(stat.of_domain(2)[0].needs_reset.as_deref(), Some("descriptor 5: no grant"));
        assert!(stat.of_domain(3).is_empty());
    }

    #[test]
    fn malformed_stat_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat.json");
        fs::write(&path, "the daemon does not run").unwrap();
        let error = Stat::read(&path).unwrap_err().to_string();
        assert!(error.contains("stat.json"), "{error}");
    }
}
