//! Settings of disks.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use crate::device::blk::{ImageFormat, Sharing};

/// Settings of all disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskDefaults {
    /// The format of targets.
    pub format: Option<ImageFormat>,
}

/// Settings of one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskSettings {
    /// The format of the target; `None`: the target's name decides.
    pub format: Option<ImageFormat>,
    /// Whether others may use the target at the same time.
    #[serde(deserialize_with = "sharing")]
    pub force_share: Sharing,
}

impl DiskDefaults {
    /// Merges a disk's own settings with these defaults.
    pub(super) fn under(self, own: DiskSettings) -> DiskSettings {
        DiskSettings { format: own.format.or(self.format), ..own }
    }
}

/// A disk's name in the guest's configuration, xl's `vdev`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DiskName(String);

impl std::borrow::Borrow<str> for DiskName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for DiskName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
        if begins && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Ok(Self(name));
        }
        Err(D::Error::custom(format_args!("{name:?} is not the vdev of a disk, such as \"xvda\"")))
    }
}

fn sharing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sharing, D::Error> {
    Ok(if bool::deserialize(deserializer)? { Sharing::Forced } else { Sharing::Safe })
}
