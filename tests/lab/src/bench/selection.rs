//! The part of the bench that a run includes.

use super::stores::Store;
use super::work::Work;

/// The number of rounds of comparisons whose ratio is close to 1: see close.awk.
const ROUNDS_IF_CLOSE: usize = 16;

/// The measurements of a quick run, unless the user names others. Together with the selection of
/// works and stores they take less than 12 minutes.
pub(crate) const QUICK: &[&str] = &[
    "pv/bench-block",
    "pvh/bench-block",
    "pvh/bench-slow",
    "pvh/bench-net",
    "pv/bench-one-processor",
];

/// The extent of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All works, with the rounds that a baseline report needs.
    #[default]
    Full,
    /// Some works on some stores, with fewer rounds.
    Quick,
}

/// The works, stores and rounds of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// The extent.
    pub(crate) extent: Extent,
    /// Parts of the keys of works; empty for all.
    pub(crate) works: Vec<String>,
    /// The keys of stores; empty for all.
    pub(crate) stores: Vec<String>,
    /// The number of rounds, if not the extent's.
    pub(crate) rounds: Option<usize>,
}

impl Selection {
    /// Returns the number of times that each server does each work: an even number, because the
    /// order of the servers alternates.
    pub(crate) fn rounds(&self) -> usize {
        let usual = match self.extent {
            Extent::Full => 6,
            Extent::Quick => 2,
        };
        self.rounds.unwrap_or(usual).next_multiple_of(2).max(2)
    }

    /// Returns the number of further rounds of the comparisons that are close after these: none if
    /// the user chose the number.
    pub(crate) fn more_rounds(&self) -> usize {
        match (self.extent, self.rounds) {
            (Extent::Full, None) => ROUNDS_IF_CLOSE.saturating_sub(self.rounds()),
            _ => 0,
        }
    }

    /// Returns whether the run includes the measurement `name`, if the user named `filters`.
    pub(crate) fn has_measurement(&self, name: &str, filters: &[String]) -> bool {
        match (filters, self.extent) {
            ([], Extent::Full) => true,
            ([], Extent::Quick) => QUICK.contains(&name),
            _ => filters.iter().any(|filter| name.contains(filter.as_str())),
        }
    }

    /// Returns the time of one measurement in milliseconds.
    pub(crate) fn runtime(&self) -> u32 {
        match self.extent {
            Extent::Full => 800,
            Extent::Quick => 600,
        }
    }

    /// Returns whether the run includes `work`.
    pub(crate) fn has(&self, work: &Work) -> bool {
        let named = |part: &String| work.key.contains(part.as_str());
        if self.works.is_empty() {
            self.extent == Extent::Full || work.quick
        } else {
            self.works.iter().any(named)
        }
    }

    /// Returns whether the run includes disks on `store`.
    pub(crate) fn has_store(&self, store: &Store) -> bool {
        if self.stores.is_empty() {
            self.extent == Extent::Full || store.quick
        } else {
            self.stores.iter().any(|key| key == store.key)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{stores, work};
    use crate::dirs::Dirs;
    use crate::scenario;

    #[test]
    fn rounds_are_even() {
        let rounds = |rounds| Selection { rounds, ..Selection::default() }.rounds();
        assert_eq!(
            [rounds(None), rounds(Some(0)), rounds(Some(3)), rounds(Some(16))],
            [6, 2, 4, 16]
        );
    }

    #[test]
    fn quick_run_without_filters_has_the_quick_measurements() {
        let scenarios = Dirs::find().unwrap().tests().join("bench/scenarios");
        let names = scenario::all(&scenarios).unwrap();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let chosen = |extent, filters: &[String]| {
            let selection = Selection { extent, ..Selection::default() };
            names.iter().filter(|name| selection.has_measurement(name, filters)).count()
        };
        assert_eq!(chosen(Extent::Full, &[]), names.len());
        assert_eq!(chosen(Extent::Quick, &[]), QUICK.len());
        assert_eq!(chosen(Extent::Quick, &["pvh/bench-scale".into()]), 0);
        assert_eq!(chosen(Extent::Quick, &["bench-slow".into()]), 2);
    }

    #[test]
    fn named_works_replace_those_of_the_extent() {
        let slow = work::find("randread-4k-qd4").unwrap();
        let quick = Selection { extent: Extent::Quick, ..Selection::default() };
        let named = Selection { works: vec!["qd4".into()], ..quick.clone() };
        assert!(named.has(slow) && !named.has(work::find("fsync-4k").unwrap()));
        assert!(Selection::default().has(slow));
    }

    #[test]
    fn named_stores_replace_those_of_the_extent() {
        let named = Selection { stores: vec!["null1ms".into()], ..Selection::default() };
        let chosen: Vec<_> =
            stores::STORES.iter().filter(|store| named.has_store(store)).map(|s| s.key).collect();
        assert_eq!(chosen, ["null1ms"]);
    }
}
