//! Which blocks of a file that is being written are hashed already. Pure.
//!
//! What is written is hashed in the background, a portion (4 MiB) at a time, once all of that stands in the staging file and
//! as many bytes were written there since it was hashed last: what is written over again and again costs no more than twice
//! the hashing. A hash is forgotten as soon as its block changes, also while it is being made.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::content::{BLOCK_BYTES, BlockSet, LeafHash, Leaves};

/// What is hashed at a time.
const PORTION_BYTES: u64 = 4 * 1024 * 1024;
const PORTION_BLOCKS: u64 = PORTION_BYTES / BLOCK_BYTES;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hashed {
    leaves: Leaves,
    /// By portion, the bytes written there since it was ripe.
    fresh: BTreeMap<u64, u64>,
    /// Portions that are to be hashed.
    ripe: BTreeSet<u64>,
    /// The blocks that are being hashed, and which of them have changed since that began.
    taken: Option<(Range<u64>, BlockSet)>,
}

impl Hashed {
    /// Bytes were written.
    pub(super) fn wrote(&mut self, range: &Range<u64>) {
        self.spoil(range);
        let mut at = range.start;
        while at < range.end {
            let portion = at / PORTION_BYTES;
            let end = range.end.min((portion + 1).saturating_mul(PORTION_BYTES));
            let fresh = self.fresh.entry(portion).or_default();
            *fresh += end - at;
            if *fresh >= PORTION_BYTES {
                self.fresh.remove(&portion);
                self.ripe.insert(portion);
            }
            at = end;
        }
    }

    /// Bytes are others now.
    pub(crate) fn spoil(&mut self, range: &Range<u64>) {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        self.leaves.forget(blocks.clone());
        if let Some((_, changed)) = &mut self.taken {
            changed.insert(blocks);
        }
    }

    /// Whether something is to be hashed.
    pub(crate) fn is_ripe(&self) -> bool {
        !self.ripe.is_empty()
    }

    /// The next whole blocks to hash; `is_written` tells whether bytes stand in the staging file. Then comes [`Hashed::put`].
    pub(super) fn take(&mut self, is_written: impl Fn(Range<u64>) -> bool) -> Option<Range<u64>> {
        while let Some(portion) = self.ripe.pop_first() {
            let bytes = portion * PORTION_BYTES..portion.saturating_add(1) * PORTION_BYTES;
            let mut blocks = portion * PORTION_BLOCKS..(portion + 1) * PORTION_BLOCKS;
            let is_known = blocks.all(|block| self.leaves.get(block).is_some());
            if !is_known && is_written(bytes) {
                let blocks = portion * PORTION_BLOCKS..(portion + 1) * PORTION_BLOCKS;
                self.taken = Some((blocks.clone(), BlockSet::default()));
                return Some(blocks);
            }
        }
        None
    }

    /// The hashes of the blocks that were taken.
    pub(crate) fn put(&mut self, hashes: &[LeafHash]) {
        let Some((blocks, changed)) = self.taken.take() else {
            return;
        };
        for (block, hash) in blocks.zip(hashes) {
            if !changed.contains(block..block + 1) {
                self.leaves.put(block, *hash);
            }
        }
    }

    /// The hash of a whole block that is known from elsewhere.
    pub(crate) fn know(&mut self, block: u64, hash: LeafHash) {
        self.leaves.put_unseen(block, hash);
    }

    /// What is known.
    pub(crate) fn into_leaves(self) -> Leaves {
        self.leaves
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::leaf_hash;

    /// A file of four portions and a bit; a byte stands for each block of it.
    const BLOCKS: u64 = 4 * PORTION_BLOCKS + 3;

    #[derive(Clone, Debug)]
    enum Step {
        Write(Range<u64>),
        Spoil(Range<u64>),
        Take,
        Put,
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = BLOCKS * BLOCK_BYTES;
        let blocks = (0..BLOCKS, 1..2 * PORTION_BLOCKS).prop_map(move |(start, length)| {
            start * BLOCK_BYTES..((start + length) * BLOCK_BYTES).min(bytes)
        });
        let any = (0..bytes, 1..3 * BLOCK_BYTES)
            .prop_map(move |(start, length)| start..(start + length).min(bytes));
        prop_oneof![
            4 => blocks.prop_map(Step::Write),
            1 => any.clone().prop_map(Step::Write),
            1 => any.prop_map(Step::Spoil),
            4 => Just(Step::Take),
            4 => Just(Step::Put),
        ]
    }

    proptest! {
        #[test]
        fn no_hash_is_known_but_that_of_what_stands_there(steps in proptest::collection::vec(step(), 0..60)) {
            let mut hashed = Hashed::default();
            let mut bytes = vec![0u8; BLOCKS as usize];
            let mut taken = None;
            for (number, step) in steps.into_iter().enumerate() {
                let mut change = |range: &Range<u64>| {
                    let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
                    for block in blocks {
                        bytes[block as usize] = number as u8 + 1;
                    }
                };
                match step {
                    Step::Write(range) => {
                        change(&range);
                        hashed.wrote(&range);
                    }
                    Step::Spoil(range) => {
                        change(&range);
                        hashed.spoil(&range);
                    }
                    Step::Take if taken.is_none() => {
                        taken = hashed.take(|_| true).map(|blocks| {
                            let hashes: Vec<_> = blocks
                                .map(|block| leaf_hash(block, &[bytes[block as usize]]))
                                .collect();
                            hashes
                        });
                    }
                    Step::Take => {}
                    Step::Put => {
                        if let Some(hashes) = taken.take() {
                            hashed.put(&hashes);
                        }
                    }
                }
                for block in 0..BLOCKS {
                    if let Some(hash) = hashed.leaves.get(block) {
                        prop_assert_eq!(*hash, leaf_hash(block, &[bytes[block as usize]]));
                    }
                }
            }
        }
    }

    #[test]
    fn a_portion_is_hashed_once_it_is_written_and_again_when_as_much_was_written_over() {
        let mut hashed = Hashed::default();
        let half = PORTION_BYTES / 2;
        hashed.wrote(&(half..PORTION_BYTES));
        assert!(!hashed.is_ripe());
        hashed.wrote(&(0..half));
        assert!(hashed.is_ripe());
        assert_eq!(hashed.take(|_| true), Some(0..PORTION_BLOCKS));
        hashed.wrote(&(5..6));
        hashed.put(&[[1; 32]; PORTION_BLOCKS as usize]);
        assert_eq!(hashed.leaves.get(0), None);
        assert_eq!(hashed.leaves.get(1), Some(&[1; 32]));
        assert_eq!(hashed.take(|_| true), None);
        for _ in 0..2 {
            hashed.wrote(&(1..half + 1));
        }
        assert_eq!(hashed.take(|_| false), None, "a part is not there");
        hashed.wrote(&(0..PORTION_BYTES));
        assert_eq!(hashed.take(|_| true), Some(0..PORTION_BLOCKS));
        hashed.put(&[[2; 32]; PORTION_BLOCKS as usize]);
        hashed.spoil(&(BLOCK_BYTES * 2 + 1..u64::MAX));
        assert_eq!(hashed.leaves.get(1), Some(&[2; 32]));
        assert_eq!(hashed.leaves.get(2), None);
        assert!(
            (0..PORTION_BLOCKS)
                .filter(|block| hashed.leaves.get(*block).is_some())
                .eq(0..2)
        );
    }
}
