//! Parts of a hash tree without the blocks below: enough to tell which blocks of two contents are equal, and to prove those that
//! are.

use std::{collections::BTreeMap, io, ops::Range};

use positioned_io::ReadAt;

use super::{
    LeafHash, NODE_BYTES, Object, RangeError, Step, Walk, beyond_content, halves, merge,
    nodes_above,
};

/// How many bytes [`encode_nodes`] gives for these blocks, which are within the content.
pub fn nodes_bytes(object: Object, blocks: Range<u64>) -> u64 {
    nodes_above(object.blocks(), blocks).saturating_mul(NODE_BYTES)
}

/// The inner nodes above some blocks, in pre-order.
///
/// # Errors
/// `InvalidInput` if `blocks` is empty or not within the content; `UnexpectedEof` if the tree ends early.
pub fn encode_nodes(tree: &impl ReadAt, object: Object, blocks: Range<u64>) -> io::Result<Vec<u8>> {
    let walk = Walk::new(object, &blocks).ok_or_else(beyond_content)?;
    let mut out = Vec::new();
    walk.each(|step| {
        if let Step::Node { offset, .. } = step {
            let mut pair = [0; NODE_BYTES as usize];
            tree.read_exact_at(offset, &mut pair)?;
            out.extend_from_slice(&pair);
        }
        io::Result::Ok(())
    })?;
    Ok(out)
}

/// Inner nodes of a content above a range of its blocks, proven against its id. To be read like the tree that they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    first: u64,
    leaves: Vec<LeafHash>,
    nodes: BTreeMap<u64, [u8; NODE_BYTES as usize]>,
}

impl Nodes {
    /// Checks what [`encode_nodes`] gave elsewhere. It takes no more memory than that.
    ///
    /// # Errors
    /// [`RangeError`] if it doesn't prove these blocks' hashes.
    pub fn verify(object: Object, blocks: Range<u64>, encoded: &[u8]) -> Result<Self, RangeError> {
        let walk = Walk::new(object, &blocks).ok_or(RangeError::Range)?;
        let (expected, actual) = (nodes_bytes(object, blocks.clone()), encoded.len() as u64);
        if expected != actual || object.blocks() < 2 {
            return Err(RangeError::Length { expected, actual });
        }
        let mut leaves = Vec::new();
        let mut nodes = BTreeMap::new();
        let mut due = vec![object.content.0];
        let mut rest = encoded;
        walk.each(|step| {
            let due_here = due.pop().ok_or(RangeError::Mismatch)?;
            match step {
                Step::Node {
                    offset,
                    root,
                    left,
                    right,
                } => {
                    let (pair, behind) = rest.split_first_chunk().ok_or(RangeError::Mismatch)?;
                    let (left_hash, right_hash) = halves(pair);
                    if merge(&left_hash, &right_hash, root) != due_here {
                        return Err(RangeError::Mismatch);
                    }
                    if right {
                        due.push(right_hash);
                    }
                    if left {
                        due.push(left_hash);
                    }
                    nodes.insert(offset, *pair);
                    rest = behind;
                }
                Step::Block { .. } => leaves.push(due_here),
            }
            Ok(())
        })?;
        match rest.is_empty() && due.is_empty() {
            true => Ok(Self {
                first: blocks.start,
                leaves,
                nodes,
            }),
            false => Err(RangeError::Mismatch),
        }
    }

    /// The hash of a block, if it is among them.
    pub fn leaf(&self, block: u64) -> Option<&LeafHash> {
        let at = usize::try_from(block.checked_sub(self.first)?).ok()?;
        self.leaves.get(at)
    }
}

impl ReadAt for Nodes {
    /// Whole nodes only. One that isn't among them reads as the end of the file.
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(node) = self.nodes.get(&pos) else {
            return Ok(0);
        };
        let Some(place) = buf.get_mut(..node.len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        place.copy_from_slice(node);
        Ok(node.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::{
        BLOCK_BYTES, encode_range, encoded_bytes, hash_into, leaves_of, verify_range,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn nodes_prove_the_blocks_below_them_and_nothing_else(
            blocks in 2u64..40,
            tail in 1u64..=BLOCK_BYTES,
            range in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            flip in any::<prop::sample::Index>(),
        ) {
            let size = (blocks - 1) * BLOCK_BYTES + tail;
            let data: Vec<u8> = (0..size).map(|at| (at * 7 + at / 4099) as u8).collect();
            let mut tree = vec![0; (blocks as usize - 1) * 64];
            let content = hash_into(&&data[..], size, &mut &mut tree[..]).unwrap();
            let object = Object { content, size };
            let (start, end) = (range.0.index(blocks as usize), range.1.index(blocks as usize));
            let range = start.min(end) as u64..start.max(end) as u64 + 1;
            let mut encoded = encode_nodes(&&tree[..], object, range.clone()).unwrap();
            prop_assert_eq!(encoded.len() as u64, nodes_bytes(object, range.clone()));
            let nodes = Nodes::verify(object, range.clone(), &encoded).unwrap();
            let leaves = leaves_of(&&tree[..], object, range.clone()).unwrap();
            for (block, leaf) in range.clone().zip(&leaves) {
                prop_assert_eq!(nodes.leaf(block), Some(leaf));
            }
            prop_assert_eq!(nodes.leaf(range.end), None);
            // They serve as the tree where the blocks are.
            let mut out = vec![0; encoded_bytes(object, range.clone()) as usize];
            encode_range(&&data[..], &nodes, object, range.clone(), &mut out).unwrap();
            prop_assert!(verify_range(object, range.clone(), &out).is_ok());
            let at = flip.index(encoded.len());
            encoded[at] ^= 1;
            prop_assert!(Nodes::verify(object, range.clone(), &encoded).is_err());
            encoded.pop();
            prop_assert!(Nodes::verify(object, range, &encoded).is_err());
        }
    }
}
