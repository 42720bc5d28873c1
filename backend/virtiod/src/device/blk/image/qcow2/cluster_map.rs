//! Where the data of a qcow2 image lies, as far as it was looked up, and who uses it.
//!
//! With it, a transfer needs none of the library's locks, which the library holds while it reads
//! and writes tables.

use std::collections::BTreeMap;
use std::ops::Range;

/// Maximum number of extents that are remembered: about 4 MiB.
const MOST_EXTENTS: usize = 1 << 16;

/// Where a part of the disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// From this offset of a file on.
    File {
        /// The number of the file in the image's chain.
        file: usize,
        offset: u64,
        /// Whether it may be written there.
        writable: bool,
    },
    /// Nowhere: it reads as zeros.
    Zeros,
}

impl Stored {
    /// The place of what follows after `bytes`.
    pub(super) fn skipped(self, bytes: u64) -> Self {
        match self {
            Self::File { file, offset, writable } => {
                Self::File { file, offset: offset + bytes, writable }
            }
            Self::Zeros => Self::Zeros,
        }
    }

    pub(super) fn is_writable(self) -> bool {
        matches!(self, Self::File { writable: true, .. })
    }
}

/// A part of a transfer: its bytes on the disk, and where they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) place: Stored,
}

/// What is known of an image's clusters. All ranges are of the disk, in bytes.
#[derive(Debug, Default)]
pub(super) struct ClusterMap {
    /// Places by the start of their range, with its end.
    extents: BTreeMap<u64, (u64, Stored)>,
    /// Counts the changes of the image's tables: what was looked up before one may be wrong.
    changes: u64,
    /// The ranges of transfers in progress, each with its number.
    users: Vec<(u64, Range<u64>)>,
    next_user: u64,
    /// The range whose clusters are given back or marked just now.
    changing: Option<Range<u64>>,
    /// Ranges whose entries in the tables may not be in the file yet.
    unwritten: Vec<Range<u64>>,
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl ClusterMap {
    /// The places of a range, if all of it is known.
    pub(super) fn places(&self, range: Range<u64>) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (start, (end, place)) = self.extents.range(..=at).next_back()?;
            if *end <= at {
                return None;
            }
            let end = range.end.min(*end);
            pieces.push(Piece { range: at..end, place: place.skipped(at - start) });
            at = end;
        }
        Some(pieces)
    }

    /// The place of a range, if all of it is known to be in one.
    pub(super) fn place(&self, range: &Range<u64>) -> Option<Stored> {
        let (start, (end, place)) = self.extents.range(..=range.start).next_back()?;
        (range.end <= *end).then(|| place.skipped(range.start - start))
    }

    /// The number of changes so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Remembers a piece that was looked up after this number of changes.
    pub(super) fn learn(&mut self, piece: &Piece, changes: u64) {
        if changes != self.changes || piece.range.is_empty() {
            return;
        }
        if self.extents.len() >= MOST_EXTENTS {
            self.extents.clear();
        }
        self.cut(&piece.range);
        let Range { start, end } = piece.range;
        // One extent with what is before it, if the file goes on there.
        let before = self.extents.range_mut(..start).next_back();
        let before = before.filter(|(from, (before_end, place))| {
            *before_end == start && place.skipped(start - **from) == piece.place
        });
        match before {
            Some((_, extent)) => extent.0 = end,
            None => drop(self.extents.insert(start, (end, piece.place))),
        }
    }

    /// Forgets the places of a range, and what is being looked up.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        self.changes += 1;
        self.cut(range);
    }

    /// Removes a range from the extents.
    fn cut(&mut self, range: &Range<u64>) {
        let before = self.extents.range(..range.start).next_back().map(|(start, _)| *start);
        let inside = self.extents.range(range.clone()).map(|(start, _)| *start);
        let starts: Vec<u64> = before.into_iter().chain(inside).collect();
        for start in starts {
            let Some((end, place)) = self.extents.remove(&start) else { continue };
            if start < range.start {
                self.extents.insert(start, (end.min(range.start), place));
            }
            if end > range.end {
                self.extents.insert(range.end, (end, place.skipped(range.end - start)));
            }
        }
    }

    /// Notes a transfer; returns its number, or `None` while its range is changing.
    pub(super) fn enter(&mut self, range: &Range<u64>) -> Option<u64> {
        if self.changing.as_ref().is_some_and(|changing| overlap(changing, range)) {
            return None;
        }
        self.next_user += 1;
        self.users.push((self.next_user, range.clone()));
        Some(self.next_user)
    }

    /// Notes the end of a transfer.
    pub(super) fn leave(&mut self, user: u64) {
        self.users.retain(|(number, _)| *number != user);
    }

    /// Keeps further transfers out of a range.
    pub(super) fn begin_change(&mut self, range: &Range<u64>) {
        self.changing = Some(range.clone());
    }

    #[cfg(test)]
    pub(super) fn is_changing(&self) -> bool {
        self.changing.is_some()
    }

    /// Whether a transfer in progress uses a range.
    pub(super) fn is_used(&self, range: &Range<u64>) -> bool {
        self.users.iter().any(|(_, used)| overlap(used, range))
    }

    pub(super) fn end_change(&mut self, range: &Range<u64>) {
        self.changing = None;
        self.forget(range);
    }

    /// Notes that the tables' entries of a range are about to change in memory.
    pub(super) fn note_unwritten(&mut self, range: &Range<u64>) {
        match self.unwritten.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.unwritten.push(range.clone()),
        }
    }

    /// Notes that all tables are written.
    pub(super) fn note_written(&mut self) {
        self.unwritten.clear();
    }

    /// Whether the file may lack the entries of a range: data that is written there is lost with
    /// this program.
    pub(super) fn is_unwritten(&self, range: &Range<u64>) -> bool {
        self.unwritten.iter().any(|unwritten| overlap(unwritten, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(offset: u64) -> Stored {
        Stored::File { file: 1, offset, writable: true }
    }

    fn learned(pieces: &[(Range<u64>, Stored)]) -> ClusterMap {
        let mut map = ClusterMap::default();
        for (range, place) in pieces {
            map.learn(&Piece { range: range.clone(), place: *place }, 0);
        }
        map
    }

    #[test]
    fn range_is_found_only_if_all_of_it_is_known() {
        let map = learned(&[(0..10, file(100)), (10..20, Stored::Zeros), (30..40, file(500))]);
        let piece = |range, place| Piece { range, place };
        assert_eq!(map.places(5..8), Some(vec![piece(5..8, file(105))]));
        let both = vec![piece(9..10, file(109)), piece(10..11, Stored::Zeros)];
        assert_eq!(map.places(9..11), Some(both));
        for unknown in [15..25, 20..21, 25..35, 39..41, 40..41] {
            assert_eq!(map.places(unknown.clone()), None, "{unknown:?}");
        }
    }

    #[test]
    fn adjacent_extents_of_one_file_are_one() {
        let map = learned(&[(0..10, file(100)), (10..20, file(110)), (20..30, file(500))]);
        assert_eq!(map.extents.len(), 2);
        assert_eq!(map.place(&(5..15)), Some(file(105)));
        assert_eq!(map.place(&(15..25)), None);
        assert_eq!(map.place(&(20..30)), Some(file(500)));
        assert_eq!((map.place(&(29..31)), map.place(&(30..31))), (None, None));
    }

    #[test]
    fn forgotten_range_leaves_what_is_around_it() {
        let mut map = learned(&[(0..10, file(100)), (10..20, file(300))]);
        map.forget(&(4..14));
        assert_eq!(map.places(0..4).unwrap()[0].place, file(100));
        assert_eq!(map.places(14..20).unwrap()[0].place, file(304));
        assert_eq!((map.places(3..5), map.places(13..14)), (None, None));
        map.forget(&(1..2));
        assert_eq!(map.places(2..4).unwrap()[0].place, file(102));
    }

    #[test]
    fn lookup_that_a_change_overtook_is_not_learned() {
        let mut map = ClusterMap::default();
        let (piece, before) = (Piece { range: 0..10, place: Stored::Zeros }, map.changes());
        map.forget(&(0..10));
        map.learn(&piece, before);
        assert_eq!(map.places(0..10), None);
        map.learn(&piece, map.changes());
        assert!(map.places(0..10).is_some());
    }

    #[test]
    fn changing_range_has_no_users() {
        let mut map = learned(&[(0..100, file(0))]);
        let user = map.enter(&(0..10)).unwrap();
        map.begin_change(&(5..20));
        assert!(map.is_used(&(5..20)));
        assert_eq!(map.enter(&(19..30)), None);
        let other = map.enter(&(20..30)).unwrap();
        map.leave(user);
        assert!(!map.is_used(&(5..20)));
        map.end_change(&(5..20));
        assert_eq!(
            (map.places(5..6), map.places(20..30).map(|pieces| pieces.len())),
            (None, Some(1))
        );
        assert!(map.enter(&(19..30)).is_some());
        map.leave(other);
    }

    #[test]
    fn number_of_extents_is_bounded() {
        let mut map = ClusterMap::default();
        for number in 0..3 * MOST_EXTENTS as u64 {
            map.learn(&Piece { range: number * 2..number * 2 + 1, place: Stored::Zeros }, 0);
            assert!(map.extents.len() <= MOST_EXTENTS);
        }
    }

    #[test]
    fn unwritten_ranges_are_known_until_the_tables_are_written() {
        let mut map = ClusterMap::default();
        [0..10, 10..20, 30..40].iter().for_each(|range| map.note_unwritten(range));
        assert_eq!(map.unwritten, [0..20, 30..40]);
        assert!(map.is_unwritten(&(15..16)) && !map.is_unwritten(&(20..30)));
        map.note_written();
        assert!(!map.is_unwritten(&(15..16)));
    }
}
