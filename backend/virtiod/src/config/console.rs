//! Settings of console devices.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::SocketPath;

/// Maximum number of ports beside the terminal.
pub const MAX_PORTS: usize = 15;
/// Maximum length of a port's name: it is part of a Unix socket's path, which has at most 108
/// bytes.
const MAX_NAME: usize = 48;

/// Settings of one console device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleSettings {
    /// Ports beside the terminal.
    pub ports: Ports,
    /// Directory of the ports' sockets.
    pub directory: Option<SocketPath>,
}

/// Names of ports, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(pub Vec<PortName>);

/// A port's name in the guest and in its socket's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName(String);

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PortName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain) {
            return Ok(Self(name));
        }
        Err(D::Error::custom(format_args!(
            "{name:?} is not the name of a port: up to {MAX_NAME} letters, digits and ._-, as in \
             \"org.example.agent\""
        )))
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ports = Vec::<PortName>::deserialize(deserializer)?;
        if ports.len() > MAX_PORTS {
            return Err(D::Error::custom(format_args!("more than {MAX_PORTS} ports")));
        }
        let mut names = ports.iter().enumerate();
        match names.find(|(at, name)| ports.iter().take(*at).any(|before| before == *name)) {
            Some((_, name)) => {
                Err(D::Error::custom(format_args!("port {name:?} is listed twice", name = name.0)))
            }
            None => Ok(Self(ports)),
        }
    }
}
