//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use xen::DomId;

/// Most bytes of a name, `IFNAMSIZ` without the zero at its end.
const MOST: usize = 15;

/// A name that Linux takes for an interface as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

/// Text that cannot be an interface's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network interface's name: 1 to {MOST} letters, digits, '.', '_' and '-'")]
pub struct NotAName(String);

impl InterfaceName {
    /// The name of a guest's device that was given none: `virtioDOMID.INDEX`, after Xen's own
    /// `vifDOMID.INDEX`.
    ///
    /// # Errors
    /// [`NotAName`] for a name that would be too long: an index of more than three digits.
    pub fn of_device(guest: DomId, index: u32) -> Result<Self, NotAName> {
        format!("virtio{}.{index}", guest.0).parse()
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        // Of what Linux takes, '%' would be replaced by a number, and others are trouble in shells.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=MOST).contains(&text.len()) && text.bytes().all(plain);
        if fits && text != "." && text != ".." {
            return Ok(Self(text.to_owned()));
        }
        Err(NotAName(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for InterfaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_name_fits_for_every_domain() {
        let name = |guest, index| InterfaceName::of_device(DomId(guest), index);
        assert_eq!(name(5, 0).unwrap().as_str(), "virtio5.0");
        assert_eq!(name(32751, 99).unwrap().as_str(), "virtio32751.99");
        assert!(name(32751, 1000).is_err());
    }

    #[test]
    fn names_that_linux_or_a_shell_would_stumble_over_are_refused() {
        for text in ["", ".", "..", "a/b", "a b", "tap%d", "eth0:1", "sixteen-letters-", "täp"] {
            assert!(text.parse::<InterfaceName>().is_err(), "{text}");
        }
        assert_eq!("web1-net.0_x".parse::<InterfaceName>().unwrap().as_str(), "web1-net.0_x");
    }
}
