//! Watches that fired.

use std::collections::BTreeSet;

/// Maximum number of paths that are kept, and maximum length of each: a peer that changes many
/// nodes costs bounded memory. A device has about a dozen keys.
const MOST: usize = 1024;
const LONGEST: usize = 128;

/// The paths at which watches fired, each once however often it fired (XSA-349).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fired {
    /// No watch fired.
    #[default]
    Nowhere,
    /// Watches fired at these paths, which begin as the watch does.
    At(BTreeSet<String>),
    /// Watches fired at more or longer paths than are kept: anything may have changed.
    Anywhere,
}

impl Fired {
    /// Adds a path.
    pub fn add(&mut self, path: String) {
        match self {
            _ if path.len() > LONGEST => *self = Self::Anywhere,
            Self::Nowhere => *self = Self::At(BTreeSet::from([path])),
            Self::At(paths) if paths.len() < MOST || paths.contains(&path) => {
                paths.insert(path);
            }
            Self::At(_) => *self = Self::Anywhere,
            Self::Anywhere => {}
        }
    }

    /// Whether a watch fired.
    pub fn is_any(&self) -> bool {
        *self != Self::Nowhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_kept_once_and_up_to_a_limit() {
        let mut fired = Fired::default();
        assert!(!fired.is_any());
        (0..3).for_each(|_| fired.add("a".to_owned()));
        assert_eq!(fired, Fired::At(BTreeSet::from(["a".to_owned()])));
        (0..MOST).for_each(|number| fired.add(number.to_string()));
        assert_eq!(fired, Fired::Anywhere);
        fired.add("b".to_owned());
        assert_eq!(fired, Fired::Anywhere);
        let mut long = Fired::default();
        long.add("x".repeat(LONGEST));
        assert_ne!(long, Fired::Anywhere);
        long.add("x".repeat(LONGEST + 1));
        assert_eq!(long, Fired::Anywhere);
    }
}
