//! Sets of blocks.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// An ordered set of block numbers, kept as disjoint, non-adjacent, non-empty ranges.
///
/// The block `u64::MAX` cannot be a member (no content reaches it): ranges are half-open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct BlockSet {
    ranges: Vec<Range<u64>>,
}

impl BlockSet {
    /// The blocks of one range; none for an empty one.
    pub fn of(range: Range<u64>) -> Self {
        let mut set = Self::default();
        set.insert(range);
        set
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Ranges that merely touch the new one count too: neighbours become one.
        let first = self.ranges.partition_point(|had| had.end < range.start);
        let behind = self.ranges.partition_point(|had| had.start <= range.end);
        let joined = match self.ranges.get(first..behind) {
            Some([only]) => range.start.min(only.start)..range.end.max(only.end),
            Some([left, .., right]) => range.start.min(left.start)..range.end.max(right.end),
            _ => range,
        };
        self.ranges.splice(first..behind, [joined]);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        let overlapping = self.overlapping(&range);
        let Some((left, right)) = self
            .ranges
            .get(overlapping.clone())
            .and_then(|hit| Some((hit.first()?.start, hit.last()?.end)))
        else {
            return;
        };
        let rest = [left..range.start, range.end..right];
        self.ranges.splice(
            overlapping,
            rest.into_iter().filter(|part| !part.is_empty()),
        );
    }

    /// Adds all of another set.
    pub fn union(&mut self, other: &BlockSet) {
        for range in &other.ranges {
            self.insert(range.clone());
        }
    }

    /// Whether every block of the range is in the set; true for an empty range.
    pub fn contains(&self, range: Range<u64>) -> bool {
        let at = self.ranges.partition_point(|had| had.end <= range.start);
        range.is_empty()
            || self
                .ranges
                .get(at)
                .is_some_and(|had| had.start <= range.start && range.end <= had.end)
    }

    /// Whether any block of the range is in the set.
    pub fn intersects(&self, range: &Range<u64>) -> bool {
        !self.overlapping(range).is_empty()
    }

    /// Whether any block of these ranges is in the set; they are in order, and none is empty.
    pub fn intersects_any(&self, ranges: &[Range<u64>]) -> bool {
        let Some(first) = ranges.first() else {
            return false;
        };
        let (mut mine, mut theirs) = (self.overlapping(&(first.start..u64::MAX)).start, 0);
        while let (Some(one), Some(other)) = (self.ranges.get(mine), ranges.get(theirs)) {
            if one.end <= other.start {
                mine += 1;
            } else if other.end <= one.start {
                theirs += 1;
            } else {
                return true;
            }
        }
        false
    }

    /// What of the range is not in the set, in order.
    pub fn missing(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        // An empty range at the end stands for what is behind the last one that is there.
        let ends = std::iter::once(range.end..range.end);
        let mut next = range.start;
        self.present(range).chain(ends).filter_map(move |had| {
            let gap = next..had.start;
            next = had.end;
            (!gap.is_empty()).then_some(gap)
        })
    }

    /// What of the range is in the set, in order.
    pub fn present(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges[self.overlapping(&range)]
            .iter()
            .map(move |had| had.start.max(range.start)..had.end.min(range.end))
    }

    /// The ranges in order.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Number of blocks in the set.
    pub fn len(&self) -> u64 {
        // Disjoint half-open ranges of u64 cannot add up to more than u64::MAX.
        self.ranges.iter().map(|had| had.end - had.start).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Indexes of the ranges that share at least a block with `range`; always within bounds.
    fn overlapping(&self, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let first = self.ranges.partition_point(|had| had.end <= range.start);
        let behind = self.ranges.partition_point(|had| had.start < range.end);
        first..behind
    }
}

impl TryFrom<Vec<(u64, u64)>> for BlockSet {
    type Error = &'static str;

    /// Takes the canonical form only, so that a set has one encoding.
    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, Self::Error> {
        let mut end_before = None;
        for &(start, end) in &pairs {
            if start >= end {
                return Err("a block range is empty");
            }
            if end_before.is_some_and(|before| start <= before) {
                return Err("block ranges overlap, touch or are out of order");
            }
            end_before = Some(end);
        }
        Ok(Self {
            ranges: pairs.into_iter().map(|(start, end)| start..end).collect(),
        })
    }
}

impl From<BlockSet> for Vec<(u64, u64)> {
    fn from(set: BlockSet) -> Self {
        set.ranges
            .into_iter()
            .map(|range| (range.start, range.end))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Range<u64>),
        Remove(Range<u64>),
        Union(Vec<Range<u64>>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..40u64, 0..12u64).prop_map(|(start, length)| start..start + length)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            range().prop_map(Step::Insert),
            range().prop_map(Step::Remove),
            proptest::collection::vec(range(), 0..4).prop_map(Step::Union),
        ]
    }

    fn flat(ranges: &[Range<u64>]) -> Vec<u64> {
        ranges.iter().cloned().flatten().collect()
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(steps in proptest::collection::vec(step(), 0..24), probe in range()) {
            let mut set = BlockSet::default();
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(range) => {
                        set.insert(range.clone());
                        model.extend(range);
                    }
                    Step::Remove(range) => {
                        set.remove(range.clone());
                        model.retain(|block| !range.contains(block));
                    }
                    Step::Union(ranges) => {
                        let mut other = BlockSet::default();
                        for range in ranges {
                            other.insert(range.clone());
                            model.extend(range);
                        }
                        set.union(&other);
                    }
                }
                prop_assert_eq!(flat(set.ranges()), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.is_empty(), model.is_empty());
                // The canonical form survives its own encoding, so every operation keeps it.
                prop_assert_eq!(BlockSet::try_from(Vec::from(set.clone())), Ok(set.clone()));
            }
            let (present, missing): (Vec<_>, Vec<_>) = probe.clone().partition(|block| model.contains(block));
            prop_assert_eq!(set.contains(probe.clone()), missing.is_empty());
            prop_assert_eq!(set.intersects(&probe), !present.is_empty());
            let (middle, half) = (probe.start + 3, probe.end.max(probe.start + 3));
            let mut parts = vec![probe.start..middle.min(probe.end), middle..half];
            parts.retain(|part| !part.is_empty());
            prop_assert_eq!(set.intersects_any(&parts), parts.iter().any(|part| set.intersects(part)));
            prop_assert_eq!(set.present(probe.clone()).flatten().collect::<Vec<_>>(), present);
            prop_assert_eq!(set.missing(probe).flatten().collect::<Vec<_>>(), missing);
        }
    }

    #[test]
    fn the_set_of_an_empty_range_is_empty() {
        assert!(BlockSet::of(7..7).is_empty());
        assert_eq!(BlockSet::of(7..7), BlockSet::default());
    }

    #[test]
    fn whatever_is_not_canonical_is_refused() {
        for pairs in [
            vec![(3, 3)],
            vec![(4, 3)],
            vec![(0, 2), (1, 3)],
            vec![(0, 2), (2, 3)],
            vec![(5, 6), (0, 2)],
            vec![(0, 2), (0, 2)],
        ] {
            assert!(BlockSet::try_from(pairs.clone()).is_err(), "{pairs:?}");
        }
        assert!(BlockSet::try_from(vec![(0, 2), (3, u64::MAX)]).is_ok());
    }
}
