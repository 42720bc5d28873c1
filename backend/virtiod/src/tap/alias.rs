//! The alias of a guest's interface, as `ip link` shows it: whose it is, also when the process that
//! created it is gone.

use std::fmt;

use super::script::ScriptPath;

/// Begins the alias of each interface of a guest; the device follows.
const BEGIN: &str = "xen-virtiod ";
/// Follows the device, where a script attached the interface.
const BY: &str = " by ";

/// Whose an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The device, as its record is named.
    pub device: String,
    /// The script that attached the interface.
    pub script: Option<ScriptPath>,
}

impl Alias {
    /// Reads an alias; `None` if the interface is no guest's.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(BEGIN)?;
        let (device, script) = match rest.split_once(BY) {
            Some((device, path)) => (device, Some(path.parse().ok()?)),
            None => (rest, None),
        };
        Some(Self { device: device.to_owned(), script })
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BEGIN}{}", self.device)?;
        self.script.as_ref().map_or(Ok(()), |script| write!(f, "{BY}{script}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alias_is_read_as_it_was_written() {
        for script in [None, Some("/etc/my scripts/by-route".parse().unwrap())] {
            let alias = Alias { device: "virtio-1-0".to_owned(), script };
            let text = alias.to_string();
            assert_eq!(Alias::parse(&text), Some(alias));
        }
        assert_eq!(Alias::parse("uplink"), None);
        assert_eq!(Alias::parse("xen-virtiod virtio-1-0 by ../script"), None);
    }
}
