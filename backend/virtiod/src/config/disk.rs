//! Settings of disks.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::in_flight::{ByteLimit, RequestLimit};
use super::limits::LimitSettings;
use crate::device::blk::{
    Caching, DetectZeroes, ErrorPolicy, ImageFormat, InFlightLimits, LogicalBlockSize, QUEUES,
    SERIAL_SIZE, Sharing,
};

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
    /// Limits of their rate.
    pub limits: LimitSettings,
    /// How this domain caches them.
    pub cache: Option<CacheMode>,
    /// What they do when their storage fails.
    pub on_error: Option<ErrorPolicy>,
    /// What they do with data that is zeros.
    pub detect_zeroes: Option<DetectZeroes>,
    /// Maximum number of queues.
    queues: Option<QueueCount>,
}

/// Settings of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
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
    /// Limits of the disk's rate.
    pub limits: LimitSettings,
    /// How this domain caches the disk; `None`: as the disk's line says.
    pub cache: Option<CacheMode>,
    /// What it does when its storage fails.
    pub on_error: Option<ErrorPolicy>,
    /// What it does with data that is zeros.
    pub detect_zeroes: Option<DetectZeroes>,
    /// Maximum number of queues.
    queues: Option<QueueCount>,
    /// The unit of addresses that the guest sees; `None`: that of the storage.
    pub logical_block_size: Option<LogicalBlockSize>,
    /// The disk's identity in the guest; `None`: its name.
    pub serial: Option<Serial>,
    /// Whether the guest may only read, whatever the disk's line says.
    pub read_only: bool,
    /// The group of disks of the same guest whose limits, together, it has instead.
    pub group: Option<String>,
}

impl DiskSettings {
    /// Number of queues that the disk offers.
    pub fn queues(&self) -> u16 {
        self.queues.map_or(QUEUES, |QueueCount(count)| count)
    }

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
            limits: own.limits.or(self.limits),
            cache: own.cache.or(self.cache),
            on_error: own.on_error.or(self.on_error),
            detect_zeroes: own.detect_zeroes.or(self.detect_zeroes),
            queues: own.queues.or(self.queues),
            ..own
        }
    }
}

/// How this domain caches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// In the page cache, until the guest flushes.
    Writeback,
    /// In the page cache, but writes are answered when they are in the storage.
    Writethrough,
    /// Not at all, as with `direct-io-safe`.
    None,
}

impl CacheMode {
    /// The caching of the target.
    pub fn caching(self) -> Caching {
        match self {
            Self::Writeback => Caching::PageCache,
            Self::Writethrough => Caching::WriteThrough,
            Self::None => Caching::Direct,
        }
    }
}

/// A number of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QueueCount(u16);

impl<'de> Deserialize<'de> for QueueCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let count = u16::try_from(number).ok().filter(|count| (1..=QUEUES).contains(count));
        count.map(Self).ok_or_else(|| {
            D::Error::custom(format_args!("{number} is not a number of queues, 1 to {QUEUES}"))
        })
    }
}

/// The identity of a disk, at most 20 printable characters of ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serial(pub String);

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if is_plain && (1..=SERIAL_SIZE).contains(&text.len()) {
            return Ok(Self(text));
        }
        Err(D::Error::custom(format_args!(
            "{text:?} is not a serial number: 1 to {SERIAL_SIZE} characters of ASCII"
        )))
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
