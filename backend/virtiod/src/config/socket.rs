//! What can be said of a socket device.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Context ids that mean something else: hypervisor, local, host (virtio 1.3 section 5.10.4).
const RESERVED: u32 = 3;

/// What can be said of a socket device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketSettings {
    /// The guest's context id.
    pub cid: Option<Cid>,
    /// The Unix socket that programs of this domain's connect to.
    pub path: Option<SocketPath>,
}

/// A guest's context id: its address, as an application in the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cid(u32);

impl Cid {
    /// The id of a guest for which the file names none: its domain's number and 2, which no other
    /// guest of this host has.
    pub fn of_domain(number: u16) -> Self {
        Self(u32::from(number).max(1) + RESERVED - 1)
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Where a socket is made: from the root on, since the daemon's own directory is nobody's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(pub PathBuf);

impl<'de> Deserialize<'de> for Cid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let cid = u32::try_from(number).ok().filter(|cid| (RESERVED..u32::MAX).contains(cid));
        cid.map(Self).ok_or_else(|| {
            D::Error::custom(format_args!("{number} is no guest's context id: 3 to 4294967294"))
        })
    }
}

impl<'de> Deserialize<'de> for SocketPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        if path.is_absolute() && path.file_name().is_some() {
            return Ok(Self(path));
        }
        Err(D::Error::custom(format_args!("{path:?} is not the path of a socket, from / on")))
    }
}
