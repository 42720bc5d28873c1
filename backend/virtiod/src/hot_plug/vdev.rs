//! Names of virtual disks, as in xl's disk lines (xen-vbd-interface(7)).

use std::fmt;

/// Maximum number of disks with names: as many as the numbers have bits for.
const DISKS: u32 = 1 << 20;
/// Number of disks whose number has the form of Linux' block devices 202:0 to 202:255.
const SHORT: u32 = 16;

/// A disk's name, `xvda` or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vdev(u32);

impl Vdev {
    /// The disk with this place, counted from 0.
    pub fn nth(place: u32) -> Option<Self> {
        (place < DISKS).then_some(Self(place))
    }

    /// Parses a name: `xvd` and letters.
    pub fn parse(name: &str) -> Option<Self> {
        let letters = name.strip_prefix("xvd").filter(|letters| !letters.is_empty())?;
        let place = letters.bytes().try_fold(0u32, |place, letter| {
            let letter = letter.is_ascii_lowercase().then(|| u32::from(letter - b'a') + 1)?;
            place.checked_mul(26)?.checked_add(letter)
        })?;
        Self::nth(place - 1)
    }

    /// The disk's number in XenStore.
    pub fn number(self) -> u32 {
        if self.0 < SHORT { (202 << 8) | (self.0 << 4) } else { (1 << 28) | (self.0 << 8) }
    }

    /// The disk with this number in XenStore; `None` if it is a partition, or not named xvd.
    pub fn of_number(number: u32) -> Option<Self> {
        let place =
            if number >> 28 == 1 { (number & 0x0fff_ffff) >> 8 } else { (number & 0xff) >> 4 };
        Self::nth(place).filter(|vdev| vdev.number() == number)
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut letters, mut rest) = (Vec::new(), self.0 + 1);
        while rest > 0 {
            letters.push(char::from(b'a' + ((rest - 1) % 26) as u8));
            rest = (rest - 1) / 26;
        }
        write!(f, "xvd{}", letters.iter().rev().collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_xl() {
        for (name, number) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvdp", 51952),
            ("xvdq", (1 << 28) | (16 << 8)),
            ("xvdz", (1 << 28) | (25 << 8)),
            ("xvdaa", (1 << 28) | (26 << 8)),
        ] {
            let vdev = Vdev::parse(name).unwrap();
            assert_eq!((vdev.number(), vdev.to_string()), (number, name.to_owned()));
            assert_eq!(Vdev::of_number(number), Some(vdev));
        }
        for wrong in ["", "xvd", "xvda1", "xvdA", "sda", "xvdzzzzzzzzz", "xvdé"] {
            assert_eq!(Vdev::parse(wrong), None, "{wrong}");
        }
        for wrong in [0, 51713, 768, (1 << 28) | (3 << 8), (1 << 28) | (16 << 8) | 1] {
            assert_eq!(Vdev::of_number(wrong), None, "{wrong}");
        }
    }
}
