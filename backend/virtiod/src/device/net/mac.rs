//! Ethernet addresses of network devices.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Deserializer, de};
use sha2::{Digest, Sha256};

/// Bit of the first byte: the address is that of a group of stations.
const GROUP: u8 = 0x01;
/// Bit of the first byte: the address is locally administered, not a manufacturer's.
const LOCAL: u8 = 0x02;

/// The address of one station, neither a group nor all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// The given text is not the address of one station.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the MAC address of a station: give six bytes in hexadecimal with colons, the \
     first one even"
)]
pub struct NotAMacAddress(String);

impl MacAddress {
    /// The default address of a guest's device: the first six bytes of SHA-256("UUID/INDEX"), made
    /// a locally administered address of one station.
    ///
    /// It has 46 free bits. With the 24 bits behind Xen's own 00:16:3e, two of 600 guests would
    /// have the same address with a probability of 1 %, and vifs have their addresses there too.
    pub fn of_device(guest_uuid: &str, index: u32) -> Self {
        let digest = Sha256::digest(format!("{guest_uuid}/{index}"));
        let mut bytes = [0; 6];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self::local(bytes)
    }

    /// A random, locally administered address of one station.
    ///
    /// # Errors
    /// The kernel's, if its generator cannot be read.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        if getrandom(&mut bytes, GetRandomFlags::empty())? < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::local(bytes))
    }

    fn local([first, rest @ ..]: [u8; 6]) -> Self {
        let [b, c, d, e, f] = rest;
        Self([first & !GROUP | LOCAL, b, c, d, e, f])
    }

    /// The address with these bytes, if it is one station's.
    pub fn of_station(bytes: [u8; 6]) -> Option<Self> {
        let [first, ..] = bytes;
        (first & GROUP == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The six bytes, in the order of a frame.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    fn from_str(text: &str) -> Result<Self, NotAMacAddress> {
        let byte = |part: &str| {
            let plain = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(part, 16).ok().filter(|_| plain)
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.and_then(Self::of_station).ok_or_else(|| NotAMacAddress(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "3b6a5f0c-9d52-4a3f-8d55-1e2f4c6b7a89";

    #[test]
    fn derived_address_is_the_documented_hash() {
        // printf %s UUID/0 | sha256sum prints 3583cbec5dab…; as a local station's, the first byte
        // is 36.
        assert_eq!(MacAddress::of_device(UUID, 0).to_string(), "36:83:cb:ec:5d:ab");
        assert_ne!(MacAddress::of_device(UUID, 0), MacAddress::of_device(UUID, 1));
        assert_eq!(MacAddress::of_device(UUID, 1), MacAddress::of_device(UUID, 1));
    }

    #[test]
    fn generated_addresses_are_local_unicast() {
        let derived = (0..100).map(|index| MacAddress::of_device(UUID, index));
        for address in derived.chain([MacAddress::random().unwrap()]) {
            assert_eq!(address.bytes()[0] & (GROUP | LOCAL), LOCAL, "{address}");
        }
    }

    #[test]
    fn address_text_round_trips() {
        let text = "00:16:3e:0a:fF:01";
        assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text.to_lowercase());
    }

    #[test]
    fn text_that_is_no_station_address_is_refused() {
        for text in [
            "",
            "00:16:3e:00:00",
            "00:16:3e:00:00:01:02",
            "00-16-3e-00-00-01",
            "0:16:3e:00:00:01",
            "+0:16:3e:00:00:01",
            "0g:16:3e:00:00:01",
            "01:16:3e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
