//! Settings of socket devices.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Number of reserved context ids: hypervisor, local, host (virtio 1.3 section 5.10.4).
const RESERVED: u32 = 3;

/// Settings of one socket device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketSettings {
    /// The guest's context id.
    pub cid: Option<Cid>,
    /// Path of the Unix socket that programs in this domain connect to.
    pub path: Option<SocketPath>,
}

/// A guest's context id: its vsock address, as applications in the guest see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cid(u32);

impl Cid {
    /// Returns the default id of a guest: its domain's number plus 2, which no other guest of this
    /// host has by default.
    pub fn of_domain(number: u16) -> Self {
        Self(u32::from(number).max(1) + RESERVED - 1)
    }

    /// The id as a number.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// The absolute path of a socket or of a directory for sockets. Relative paths would depend on the
/// daemon's working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(pub PathBuf);

impl<'de> Deserialize<'de> for Cid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let cid = u32::try_from(number).ok().filter(|cid| (RESERVED..u32::MAX).contains(cid));
        cid.map(Self).ok_or_else(|| {
            D::Error::custom(format_args!("{number} is not a guest's context id: 3 to 4294967294"))
        })
    }
}

impl<'de> Deserialize<'de> for SocketPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        if path.is_absolute() && path.file_name().is_some() {
            return Ok(Self(path));
        }
        Err(D::Error::custom(format_args!("{path:?} is not an absolute path")))
    }
}
