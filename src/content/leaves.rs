//! Hashes of blocks that are known before a tree is made of them.

use std::{collections::BTreeMap, ops::Range};

/// The hash of a block as a leaf of the tree of a content with several blocks: of its bytes and of where it stands, whatever
/// else is in the content.
pub type LeafHash = [u8; 32];

/// Blocks whose hashes are kept together: 4 MiB of content.
const PORTION_BLOCKS: u64 = 64;
/// Portions that are kept: hashes for 64 GiB, 32 MiB of memory. Blocks beyond are hashed when the tree is made.
const PORTIONS_MAX: usize = 16_384;

/// Leaf hashes of some whole blocks (64 KiB) of a content.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    portions: BTreeMap<u64, Portion>,
}

#[derive(Clone, Debug)]
struct Portion {
    /// A bit for each block that is known.
    known: u64,
    /// A bit for each of those whose bytes nobody has hashed here.
    unseen: u64,
    hashes: Box<[LeafHash; PORTION_BLOCKS as usize]>,
}

impl Leaves {
    /// The hash of a block, if it is known.
    pub fn get(&self, block: u64) -> Option<&LeafHash> {
        let portion = self.portions.get(&(block / PORTION_BLOCKS))?;
        let at = block % PORTION_BLOCKS;
        if portion.known >> at & 1 == 0 {
            return None;
        }
        portion.hashes.get(at as usize)
    }

    /// Notes the hash of a block; forgotten where that would be more than is kept.
    pub fn put(&mut self, block: u64, hash: LeafHash) {
        let is_full = self.portions.len() >= PORTIONS_MAX;
        let index = block / PORTION_BLOCKS;
        if is_full && !self.portions.contains_key(&index) {
            return;
        }
        let portion = self.portions.entry(index).or_insert_with(|| Portion {
            known: 0,
            unseen: 0,
            hashes: Box::new([[0; 32]; PORTION_BLOCKS as usize]),
        });
        let at = block % PORTION_BLOCKS;
        if let Some(place) = portion.hashes.get_mut(at as usize) {
            *place = hash;
            portion.known |= 1 << at;
            portion.unseen &= !(1 << at);
        }
    }

    /// The same where the hash is known from elsewhere, and the bytes may be others.
    pub fn put_unseen(&mut self, block: u64, hash: LeafHash) {
        self.put(block, hash);
        if let Some(portion) = self.portions.get_mut(&(block / PORTION_BLOCKS)) {
            portion.unseen |= 1 << (block % PORTION_BLOCKS);
        }
    }

    /// Whether the hash of a block is known from elsewhere.
    pub fn is_unseen(&self, block: u64) -> bool {
        let portion = self.portions.get(&(block / PORTION_BLOCKS));
        portion.is_some_and(|portion| {
            (portion.known & portion.unseen) >> (block % PORTION_BLOCKS) & 1 == 1
        })
    }

    /// Forgets the hashes of these blocks: their bytes have changed.
    pub fn forget(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let touched = blocks.start / PORTION_BLOCKS..=(blocks.end - 1) / PORTION_BLOCKS;
        let mut empty = Vec::new();
        for (index, portion) in self.portions.range_mut(touched) {
            let first = index * PORTION_BLOCKS;
            let start = blocks.start.saturating_sub(first);
            let end = (blocks.end - first).min(PORTION_BLOCKS);
            portion.known &= !(bits_below(end) & !bits_below(start));
            if portion.known == 0 {
                empty.push(*index);
            }
        }
        for index in empty {
            self.portions.remove(&index);
        }
    }
}

/// A word with its lowest `count` bits set.
fn bits_below(count: u64) -> u64 {
    match count {
        0..64 => (1 << count) - 1,
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in proptest::collection::vec((0..200u64, 0..200u64, any::<bool>()), 0..40)) {
            let mut leaves = Leaves::default();
            let mut model = BTreeMap::new();
            for (number, (start, length, puts)) in steps.into_iter().enumerate() {
                if puts {
                    leaves.put(start, [number as u8; 32]);
                    model.insert(start, [number as u8; 32]);
                } else {
                    leaves.forget(start..start + length);
                    model.retain(|block, _| !(start..start + length).contains(block));
                }
                for block in 0..400 {
                    prop_assert_eq!(leaves.get(block), model.get(&block));
                }
            }
            leaves.forget(100..u64::MAX);
            prop_assert!((100..400).all(|block| leaves.get(block).is_none()));
            leaves.forget(0..u64::MAX);
            prop_assert!(leaves.portions.is_empty());
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut leaves = Leaves::default();
        for portion in 0..2 * PORTIONS_MAX as u64 {
            leaves.put(portion * PORTION_BLOCKS, [1; 32]);
        }
        assert_eq!(leaves.portions.len(), PORTIONS_MAX);
        leaves.put(1, [2; 32]);
        assert_eq!(leaves.get(1), Some(&[2; 32]));
    }
}
