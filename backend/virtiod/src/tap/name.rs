//! Valid names of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use xen::DomId;

/// Maximum length of a name: `IFNAMSIZ` without the terminating NUL.
const MOST: usize = 15;

/// An interface name that Linux accepts and does not expand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

/// Text that is not a valid interface name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network interface's name: 1 to {MOST} letters, digits, '.', '_' and '-'")]
pub struct NotAName(String);

impl InterfaceName {
    /// Returns the default name of a guest's device: `virtioDOMID.INDEX`, after Xen's own
    /// `vifDOMID.INDEX`.
    ///
    /// # Errors
    /// [`NotAName`] if the name would be too long: an index of more than three digits may be.
    pub fn of_device(guest: DomId, index: u32) -> Result<Self, NotAName> {
        format!("virtio{}.{index}", guest.0).parse()
    }

    /// The name as text.
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
        // Linux accepts more: but it expands '%' to a number, and shells interpret other
        // characters.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=MOST).contains(&text.len()) && text.bytes().all(plain);
        if fits && text != "." && text != ".." {
            return Ok(Self(text.to_owned()));
        }
        Err(NotAName(text.to_owned()))
    }
}

impl Serialize for InterfaceName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
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
    fn default_name_fits_for_every_domain() {
        let name = |guest, index| InterfaceName::of_device(DomId(guest), index);
        assert_eq!(name(5, 0).unwrap().as_str(), "virtio5.0");
        assert_eq!(name(32751, 99).unwrap().as_str(), "virtio32751.99");
        assert!(name(32751, 1000).is_err());
    }

    #[test]
    fn names_unsafe_for_linux_or_a_shell_are_refused() {
        for text in ["", ".", "..", "a/b", "a b", "tap%d", "eth0:1", "sixteen-letters-", "täp"] {
            assert!(text.parse::<InterfaceName>().is_err(), "{text}");
        }
        assert_eq!("web1-net.0_x".parse::<InterfaceName>().unwrap().as_str(), "web1-net.0_x");
    }
}
