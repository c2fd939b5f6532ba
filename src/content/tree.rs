//! The hash tree: building it, proving ranges with it, checking ranges that somebody else proved.
//!
//! On disk the tree is its inner nodes in pre-order, 64 bytes each (the hashes of the left and the right child), without
//! any header; a content of `n` blocks has `n - 1` of them. Nodes below block level are not kept: hashing a block gives
//! them back. A range travels as a pre-order walk over the part of the tree above it: 64 bytes for each inner node on the
//! way, the block's own bytes for each leaf.
//!
//! A content's size is part of the tree's shape and is proven by its last block alone: the way there always turns right,
//! and the last chunk's hash includes its number and its length, so under any other size that way ends at a wrong hash.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    ops::Range,
};

use bao_tree::{
    BaoTree, BlockSize, ChunkNum, ChunkRanges, TreeNode, blake3::Hash, io::sync::OutboardMut,
    iter::BaoChunk,
};
use blake3::hazmat::{self, HasherExt, Mode};
use positioned_io::{ReadAt, WriteAt};

use super::{BLOCK_BYTES, ContentId, Object};

/// 64 chunks of 1 KiB make a block.
const GROUP: BlockSize = BlockSize::from_chunk_log(6);
const CHUNKS_PER_BLOCK: u64 = 64;
const _: () = assert!(CHUNKS_PER_BLOCK * 1024 == BLOCK_BYTES);

/// Bytes of an inner node.
const NODE_BYTES: u64 = 64;

/// No file is longer (`off_t`), and below this no sum in the tree's geometry overflows.
const CONTENT_BYTES_MAX: u64 = i64::MAX as u64;

/// Nodes that are collected before they are written (256 KiB of them, for 256 MiB of data): nodes that are neighbours on
/// disk come at different times, and a write for each would cost more than hashing its block.
const NODES_BUFFERED_MAX: usize = 4096;

/// The content id of bytes in memory.
pub fn hash_bytes(bytes: &[u8]) -> ContentId {
    ContentId(*blake3::hash(bytes).as_bytes())
}

/// Hashes `size` bytes of `data` and writes the hash tree (pre-order, 64 bytes a node, nothing for a single block) to
/// `tree`. Reads block by block, in order; memory doesn't grow with the content.
pub fn hash_into(data: &impl ReadAt, size: u64, tree: &mut impl WriteAt) -> io::Result<ContentId> {
    if size == 0 {
        return Ok(hash_bytes(&[]));
    }
    let geometry = geometry(size).ok_or_else(beyond_content)?;
    let mut nodes = NodeWriter {
        geometry,
        tree,
        pending: BTreeMap::new(),
    };
    let mut reader = Sequential { data, position: 0 };
    let root = bao_tree::io::sync::outboard(&mut reader, geometry, &mut nodes)?;
    nodes.sync()?;
    Ok(ContentId(*root.as_bytes()))
}

/// Fills `out`, which must have [`encoded_bytes`], with the proof and the bytes of `blocks`. Doesn't validate `data` against
/// the tree: the receiver does.
///
/// # Errors
/// `InvalidInput` if `blocks` is empty or not within the content or `out` is not as long as they take, and whatever reading
/// gives; `UnexpectedEof` if data or tree end early. What is in `out` then is of no use.
pub fn encode_range(
    data: &impl ReadAt,
    tree: &impl ReadAt,
    object: Object,
    blocks: Range<u64>,
    out: &mut [u8],
) -> io::Result<()> {
    let walk = Walk::new(object, &blocks).ok_or_else(beyond_content)?;
    if encoded_bytes(object, blocks) != out.len() as u64 {
        return Err(beyond_content());
    }
    let mut rest = out;
    walk.each(|step| {
        let length = match step {
            Step::Node { .. } => NODE_BYTES as usize,
            Step::Block { length, .. } => length,
        };
        let (part, behind) = std::mem::take(&mut rest)
            .split_at_mut_checked(length)
            .ok_or_else(beyond_content)?;
        rest = behind;
        match step {
            Step::Node { offset, .. } => tree.read_exact_at(offset, part),
            Step::Block { offset, .. } => data.read_exact_at(offset, part),
        }
    })
}

/// A range of blocks that has been proven to belong to a content. Its bytes stay in the answer that they came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRange<'a> {
    /// The content.
    pub object: Object,
    /// The proven blocks.
    pub blocks: Range<u64>,
    /// Their bytes, block by block.
    pub data: Vec<&'a [u8]>,
    /// The inner nodes that came with them: byte offset in the hash tree, and the pair of hashes to store there.
    pub nodes: Vec<(u64, [u8; 64])>,
}

/// Why an answer does not prove what was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The bytes or the inner nodes do not hash to the content id.
    #[error("the answer does not match the content's hash")]
    Mismatch,
    /// The answer ends too early or has bytes left over.
    #[error("the answer has {actual} bytes where {expected} were due")]
    Length {
        /// Bytes that the range takes.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// The asked range is empty or beyond the content.
    #[error("the range is not within the content")]
    Range,
}

/// How many bytes [`encode_range`] writes for these blocks; blocks beyond the content count as absent.
/// Takes logarithmic time whatever the size, so that a claim from elsewhere can be judged by it.
pub fn encoded_bytes(object: Object, blocks: Range<u64>) -> u64 {
    let end = blocks.end.min(object.blocks());
    let blocks = blocks.start.min(end)..end;
    let bytes = object.bytes_of(blocks.clone());
    let nodes = nodes_above(object.blocks(), blocks);
    (bytes.end - bytes.start).saturating_add(nodes.saturating_mul(NODE_BYTES))
}

/// Checks an answer against the content id: every byte and every inner node that came, and that none is left over.
///
/// If `blocks` includes the content's last block, success proves `object.size` as well; if it doesn't, the size is only a
/// claim. (A claim of size 0 has no blocks; it holds if the object equals [`Object::empty`].)
pub fn verify_range(
    object: Object,
    blocks: Range<u64>,
    encoded: &[u8],
) -> Result<VerifiedRange<'_>, RangeError> {
    let walk = Walk::new(object, &blocks).ok_or(RangeError::Range)?;
    let expected = encoded_bytes(object, blocks.clone());
    let actual = encoded.len() as u64;
    if expected != actual {
        return Err(RangeError::Length { expected, actual });
    }
    // From here on memory and time are bounded by what came.
    let bytes = object.bytes_of(blocks.clone());
    let data_bytes = usize::try_from(bytes.end - bytes.start).map_err(|_| RangeError::Range)?;
    let mut data = Vec::new();
    let mut nodes = Vec::with_capacity((encoded.len() - data_bytes) / NODE_BYTES as usize);
    // Hashes that are still to be matched, the next one last.
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
                let hash = if root {
                    *hazmat::merge_subtrees_root(&left_hash, &right_hash, Mode::Hash).as_bytes()
                } else {
                    hazmat::merge_subtrees_non_root(&left_hash, &right_hash, Mode::Hash)
                };
                if hash != due_here {
                    return Err(RangeError::Mismatch);
                }
                if right {
                    due.push(right_hash);
                }
                if left {
                    due.push(left_hash);
                }
                nodes.push((offset, *pair));
                rest = behind;
            }
            Step::Block {
                offset,
                length,
                root,
            } => {
                let (block, behind) = rest.split_at_checked(length).ok_or(RangeError::Mismatch)?;
                let hash = if root {
                    *blake3::hash(block).as_bytes()
                } else {
                    blake3::Hasher::new()
                        .set_input_offset(offset)
                        .update(block)
                        .finalize_non_root()
                };
                if hash != due_here {
                    return Err(RangeError::Mismatch);
                }
                data.push(block);
                rest = behind;
            }
        }
        Ok(())
    })?;
    let got: usize = data.iter().map(|block| block.len()).sum();
    if !rest.is_empty() || !due.is_empty() || got != data_bytes {
        return Err(RangeError::Mismatch);
    }
    Ok(VerifiedRange {
        object,
        blocks,
        data,
        nodes,
    })
}

/// What comes next on the way over the tree, in the order of the encoding.
enum Step {
    /// An inner node.
    Node {
        /// Where the tree file has it, in bytes.
        offset: u64,
        root: bool,
        /// Whether blocks below its left, and its right, are in the range.
        left: bool,
        right: bool,
    },
    /// A block.
    Block {
        /// Where the content has it, in bytes.
        offset: u64,
        length: usize,
        root: bool,
    },
}

/// The walk over the part of a content's tree that leads to a range of blocks.
struct Walk {
    geometry: BaoTree,
    chunks: ChunkRanges,
}

impl Walk {
    /// `None` if the range is empty or not within the content.
    fn new(object: Object, blocks: &Range<u64>) -> Option<Self> {
        if blocks.is_empty() || blocks.end > object.blocks() {
            return None;
        }
        let geometry = geometry(object.size)?;
        let start = ChunkNum(blocks.start * CHUNKS_PER_BLOCK);
        let end = ChunkNum(blocks.end * CHUNKS_PER_BLOCK);
        Some(Self {
            geometry,
            chunks: ChunkRanges::from(start..end),
        })
    }

    fn each<E>(&self, mut take: impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
        for item in self
            .geometry
            .ranges_pre_order_chunks_iter_ref(&self.chunks, 0)
        {
            take(match item {
                BaoChunk::Parent {
                    node,
                    is_root,
                    left,
                    right,
                    ..
                } => {
                    // The walk stops at block level, and all nodes above it have an offset.
                    let Some(index) = self.geometry.pre_order_offset(node) else {
                        continue;
                    };
                    Step::Node {
                        offset: index * NODE_BYTES,
                        root: is_root,
                        left,
                        right,
                    }
                }
                BaoChunk::Leaf {
                    start_chunk,
                    size,
                    is_root,
                    ..
                } => Step::Block {
                    offset: start_chunk.to_bytes(),
                    length: size,
                    root: is_root,
                },
            })?;
        }
        Ok(())
    }
}

fn geometry(size: u64) -> Option<BaoTree> {
    (size <= CONTENT_BYTES_MAX).then(|| BaoTree::new(size, GROUP))
}

/// Inner nodes of a subtree of `leaves` blocks that have any of `range` (relative to its first block) below them.
fn nodes_above(leaves: u64, range: Range<u64>) -> u64 {
    if range.is_empty() || leaves <= 1 {
        return 0;
    }
    if range.start == 0 && range.end == leaves {
        return leaves - 1;
    }
    // BLAKE3's rule: the left side is the largest power of two that leaves something for the right.
    let left = 1 << (leaves - 1).ilog2();
    let below_left = range.start.min(left)..range.end.min(left);
    let below_right = range.start.max(left) - left..range.end.max(left) - left;
    1 + nodes_above(left, below_left) + nodes_above(leaves - left, below_right)
}

fn halves(pair: &[u8; 64]) -> ([u8; 32], [u8; 32]) {
    let (mut left, mut right) = ([0; 32], [0; 32]);
    left.copy_from_slice(&pair[..32]);
    right.copy_from_slice(&pair[32..]);
    (left, right)
}

fn beyond_content() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, RangeError::Range)
}

/// A positioned reader read from its beginning.
struct Sequential<'a, R> {
    data: &'a R,
    position: u64,
}

impl<R: ReadAt> Read for Sequential<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.data.read_at(self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Writes nodes to their places in a tree file, neighbours together.
struct NodeWriter<'a, W> {
    geometry: BaoTree,
    tree: &'a mut W,
    /// By index in pre-order.
    pending: BTreeMap<u64, [u8; 64]>,
}

impl<W: WriteAt> NodeWriter<'_, W> {
    fn flush(&mut self) -> io::Result<()> {
        let mut run = Vec::new();
        let mut run_start = 0;
        for (index, pair) in std::mem::take(&mut self.pending) {
            let offset = index * NODE_BYTES;
            if run_start + run.len() as u64 != offset {
                self.tree.write_all_at(run_start, &run)?;
                run.clear();
                run_start = offset;
            }
            run.extend_from_slice(&pair);
        }
        self.tree.write_all_at(run_start, &run)
    }
}

impl<W: WriteAt> OutboardMut for NodeWriter<'_, W> {
    fn save(&mut self, node: TreeNode, (left, right): &(Hash, Hash)) -> io::Result<()> {
        let Some(index) = self.geometry.pre_order_offset(node) else {
            return Ok(());
        };
        let mut pair = [0; 64];
        pair[..32].copy_from_slice(left.as_bytes());
        pair[32..].copy_from_slice(right.as_bytes());
        self.pending.insert(index, pair);
        if self.pending.len() >= NODES_BUFFERED_MAX {
            self.flush()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests;
