//! Settings of disks.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::in_flight::{ByteLimit, RequestLimit};
use crate::device::blk::{ImageFormat, InFlightLimits, Sharing};

/// Settings of all disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskDefaults {
    /// The format of targets.
    pub format: Option<ImageFormat>,
    /// Maximum number of requests that each disk has in flight.
    pub in_flight_requests: Option<RequestLimit>,
    /// Maximum bytes of their data.
    pub in_flight_bytes: Option<ByteLimit>,
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
    /// Maximum number of requests that the disk has in flight.
    pub in_flight_requests: Option<RequestLimit>,
    /// Maximum bytes of their data; a larger request is taken alone.
    pub in_flight_bytes: Option<ByteLimit>,
}

impl DiskSettings {
    /// The limits of the requests in flight.
    pub fn in_flight(&self) -> InFlightLimits {
        let default = InFlightLimits::default();
        InFlightLimits {
            requests: self.in_flight_requests.map_or(default.requests, RequestLimit::requests),
            bytes: self.in_flight_bytes.map_or(default.bytes, ByteLimit::bytes),
        }
    }
}

impl DiskDefaults {
    /// Merges a disk's own settings with these defaults.
    pub(super) fn under(self, own: DiskSettings) -> DiskSettings {
        DiskSettings {
            format: own.format.or(self.format),
            in_flight_requests: own.in_flight_requests.or(self.in_flight_requests),
            in_flight_bytes: own.in_flight_bytes.or(self.in_flight_bytes),
            ..own
        }
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
