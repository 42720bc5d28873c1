//! The VLANs of a bridge's port, in the words of xl's key `vlan` (xl-network-configuration(5)).

use std::collections::BTreeMap;
use std::fmt;
use std::num::ParseIntError;
use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, de};

/// The VLANs that exist (IEEE 802.1Q).
const IDS: RangeInclusive<u16> = 1..=4094;

/// The identifier of a VLAN, 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = NotVlans;

    fn try_from(id: u16) -> Result<Self, NotVlans> {
        IDS.contains(&id).then_some(Self(id)).ok_or_else(|| NotVlans::Id(id.to_string()))
    }
}

/// How the frames of a VLAN pass a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tagging {
    /// With a tag both ways.
    Tagged,
    /// Those from the bridge lose their tag.
    Untagged,
    /// As [`Tagging::Untagged`], and frames without a tag from the port belong to it.
    Own,
}

/// The VLANs that a port is in, one of which has [`Tagging::Own`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans(BTreeMap<VlanId, Tagging>);

/// The setting of a port's VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortVlans {
    /// The bridge's default: `"none"`.
    Usual,
    /// These.
    Named(Vlans),
}

/// A text that names no VLANs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotVlans {
    /// A number that no VLAN has.
    #[error("a VLAN has a number from 1 to 4094, not {0}")]
    Id(String),
    /// A term of another form.
    #[error(
        "{0:?} names no VLANs: write terms as 10, 10p, 20u, 30-39 or 100+10x4, with / in between"
    )]
    Term(String),
    /// A VLAN has two terms.
    #[error("VLAN {0} is named twice")]
    Twice(u16),
    /// Not one VLAN is for frames without a tag.
    #[error("one VLAN must be that of the guest's frames without a tag: append p to its number")]
    NoOwn,
    /// Several VLANs are.
    #[error("only one VLAN can be that of the guest's frames without a tag, with p behind it")]
    ManyOwn,
}

impl Vlans {
    /// The ranges of all other VLANs.
    pub(super) fn others(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        let mut next = *IDS.start();
        let ends = self.0.keys().map(|id| id.get()).chain([IDS.end() + 1]);
        ends.filter_map(move |own| {
            let others = next..=own - 1;
            next = own + 1;
            (!others.is_empty()).then_some(others)
        })
    }

    /// The VLANs, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (VlanId, Tagging)> + '_ {
        self.0.iter().map(|(id, tagging)| (*id, *tagging))
    }

    /// # Errors
    /// [`NotVlans`].
    fn parse(text: &str) -> Result<Self, NotVlans> {
        let mut vlans = BTreeMap::new();
        for term in text.split('/') {
            let (ids, tagging) = parse_term(term)?;
            for id in ids {
                if vlans.insert(id, tagging).is_some() {
                    return Err(NotVlans::Twice(id.get()));
                }
            }
        }
        if let (1, Some(only)) = (vlans.len(), vlans.values_mut().next()) {
            *only = Tagging::Own;
        }
        match vlans.values().filter(|tagging| **tagging == Tagging::Own).count() {
            0 => Err(NotVlans::NoOwn),
            1 => Ok(Self(vlans)),
            _ => Err(NotVlans::ManyOwn),
        }
    }
}

/// Parses `VLAN[p|u]`, `VLAN-VLAN[u]` or `VLAN+OFFSETxCOUNT[u]`, which has COUNT further VLANs.
fn parse_term(term: &str) -> Result<(Vec<VlanId>, Tagging), NotVlans> {
    let wrong = || NotVlans::Term(term.to_owned());
    let (numbers, tagging) = match (term.strip_suffix('p'), term.strip_suffix('u')) {
        (Some(numbers), _) => (numbers, Tagging::Own),
        (None, Some(numbers)) => (numbers, Tagging::Untagged),
        (None, None) => (term, Tagging::Tagged),
    };
    let number = |text: &str| -> Result<u16, NotVlans> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_number.then(|| text.parse()).ok_or_else(wrong)?;
        number.map_err(|_: ParseIntError| NotVlans::Id(text.to_owned()))
    };
    let ids: Vec<u16> = if let Some((first, last)) = numbers.split_once('-') {
        let (first, last) = (number(first)?, number(last)?);
        VlanId::try_from(last)?;
        (first..=last).collect()
    } else if let Some((first, rest)) = numbers.split_once('+') {
        let (offset, count) = rest.split_once('x').ok_or_else(wrong)?;
        let (first, offset, count) = (number(first)?, number(offset)?, number(count)?);
        if !IDS.contains(&offset) || !IDS.contains(&count) {
            return Err(wrong());
        }
        (0..=count).map(|index| first.saturating_add(offset.saturating_mul(index))).collect()
    } else {
        vec![number(numbers)?]
    };
    if ids.is_empty() || (tagging == Tagging::Own && ids.len() > 1) {
        return Err(wrong());
    }
    let ids = ids.into_iter().map(VlanId::try_from).collect::<Result<_, _>>()?;
    Ok((ids, tagging))
}

impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (id, tagging)) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { "/" };
            let suffix = match tagging {
                Tagging::Tagged => "",
                Tagging::Untagged => "u",
                Tagging::Own => "p",
            };
            write!(f, "{separator}{}{suffix}", id.get())?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PortVlans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "none" => Ok(Self::Usual),
            text => Vlans::parse(text).map(Self::Named).map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, NotVlans> {
        Vlans::parse(text).map(|vlans| vlans.to_string())
    }

    #[test]
    fn terms_are_those_of_xl() {
        assert_eq!(shown("10").unwrap(), "10p");
        assert_eq!(shown("10p/20").unwrap(), "10p/20");
        assert_eq!(shown("30-32u/7p").unwrap(), "7p/30u/31u/32u");
        assert_eq!(shown("10p/100+10x4").unwrap(), "10p/100/110/120/130/140");
        assert_eq!(Vlans::parse("1p/2-4094").unwrap().iter().count(), 4094);
    }

    #[test]
    fn what_names_no_vlans_is_refused() {
        for text in [
            "", "ten", "10q", "+10", "10-", "10-12p", "9+1", "12-10/5p", "10p/", "-5", "1+1x0",
            "1+0x3",
        ] {
            assert_eq!(shown(text).unwrap_err(), NotVlans::Term(term_of(text)), "{text}");
        }
        for text in ["0", "4095", "70000", "1p/2-4095", "1p/4000+1000x1"] {
            assert!(matches!(shown(text), Err(NotVlans::Id(_))), "{text}");
        }
        assert_eq!(shown("10/20"), Err(NotVlans::NoOwn));
        assert_eq!(shown("10p/20p"), Err(NotVlans::ManyOwn));
        assert_eq!(shown("10p/10"), Err(NotVlans::Twice(10)));
    }

    #[test]
    fn others_are_all_but_these() {
        let others = |text: &str| Vlans::parse(text).unwrap().others().collect::<Vec<_>>();
        assert_eq!(others("10"), [1..=9, 11..=4094]);
        assert_eq!(others("1p/3-4/4094"), [2..=2, 5..=4093]);
        assert_eq!(others("1p/2-4094"), []);
    }

    /// The term of these lists that is wrong.
    fn term_of(text: &str) -> String {
        match text {
            "12-10/5p" => "12-10".to_owned(),
            "10p/" => String::new(),
            other => other.to_owned(),
        }
    }
}
