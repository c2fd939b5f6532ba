//! The hash tree: building it, proving ranges with it, checking ranges that somebody else proved.
//!
//! On disk the tree is its inner nodes in pre-order, 64 bytes each (the hashes of the left and the right child), without
//! any header; a content of `n` blocks has `n - 1` of them. Nodes below block level are not kept: hashing a block gives
//! them back. A range travels as a pre-order walk over the part of the tree above it: 64 bytes for each inner node on the
//! way, the block's own bytes for each leaf.
//!
//! A content's size is part of the tree's shape and is proven by its last block alone: the way there always turns right,
//! and the last chunk's hash includes its number and its length, so under any other size that way ends at a wrong hash.

mod nodes;

use std::{
    convert::Infallible,
    io::{self, IoSliceMut},
    ops::Range,
    sync::Mutex,
    thread,
};

use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, iter::BaoChunk};
use blake3::hazmat::{self, HasherExt, Mode};
use positioned_io::{ReadAt, WriteAt};

pub use self::nodes::{Nodes, encode_nodes, nodes_bytes};
use super::{BLOCK_BYTES, ContentId, LeafHash, Leaves, Object};
use crate::buffers::Buffer;

/// 64 chunks of 1 KiB make a block.
const GROUP: BlockSize = BlockSize::from_chunk_log(6);
const CHUNKS_PER_BLOCK: u64 = 64;
const _: () = assert!(CHUNKS_PER_BLOCK * 1024 == BLOCK_BYTES);

/// Bytes of an inner node.
const NODE_BYTES: u64 = 64;

/// No file is longer (`off_t`), and below this no sum in the tree's geometry overflows.
const CONTENT_BYTES_MAX: u64 = i64::MAX as u64;

/// Blocks of a subtree that is made in memory and written at once: 256 KiB of nodes, for 256 MiB of data. A power of two, as
/// is the left side of every node above.
const BATCH_BLOCKS: u64 = 4096;
const _: () = assert!(BATCH_BLOCKS.is_power_of_two());

/// Blocks that are read and hashed in one go: 1 MiB.
const RUN_BLOCKS: usize = 16;
/// Threads that hash one content: more than a few gain nothing, as memory is the limit.
const THREADS_MAX: usize = 4;
/// Runs from which on a further thread is worth its start: 8 MiB.
const RUNS_PER_THREAD: usize = 8;

/// The content id of bytes in memory.
pub fn hash_bytes(bytes: &[u8]) -> ContentId {
    ContentId(*blake3::hash(bytes).as_bytes())
}

/// The hash of a block as a leaf of a tree: what [`Leaves`] keeps. `block` is its number in the content.
pub fn leaf_hash(block: u64, bytes: &[u8]) -> LeafHash {
    blake3::Hasher::new()
        .set_input_offset(block * BLOCK_BYTES)
        .update(bytes)
        .finalize_non_root()
}

/// Hashes `size` bytes of `data` and writes the hash tree (pre-order, 64 bytes a node, nothing for a single block) to
/// `tree`. On several threads where it is much; memory doesn't grow with the content.
pub fn hash_into(
    data: &(impl ReadAt + Sync),
    size: u64,
    tree: &mut impl WriteAt,
) -> io::Result<ContentId> {
    hash_over(data, size, &Leaves::default(), tree)
}

/// As [`hash_into`], where the hashes of some whole blocks are known: these blocks aren't read.
///
/// # Errors
/// `UnexpectedEof` if `data` ends early; whatever reading and writing gives.
pub fn hash_over(
    data: &(impl ReadAt + Sync),
    size: u64,
    known: &Leaves,
    tree: &mut impl WriteAt,
) -> io::Result<ContentId> {
    if size > CONTENT_BYTES_MAX {
        return Err(beyond_content());
    }
    let blocks = size.div_ceil(BLOCK_BYTES);
    if blocks <= 1 {
        // At most a block.
        let mut bytes = vec![0; size as usize];
        data.read_exact_at(0, &mut bytes)?;
        return Ok(hash_bytes(&bytes));
    }
    let hasher = Hasher { data, size, known };
    let mut maker = Maker { hasher, tree };
    Ok(ContentId(maker.subtree(0..blocks, 0, true)?))
}

/// The leaf hashes of whole blocks.
///
/// # Errors
/// `UnexpectedEof` if `data` ends early; whatever reading gives.
pub fn hash_blocks(data: &(impl ReadAt + Sync), blocks: Range<u64>) -> io::Result<Vec<LeafHash>> {
    let hasher = Hasher {
        data,
        size: blocks.end * BLOCK_BYTES,
        known: &Leaves::default(),
    };
    hasher.leaves(blocks)
}

/// Makes a tree from its leaves up.
struct Maker<'a, D, T> {
    hasher: Hasher<'a, D>,
    tree: &'a mut T,
}

impl<D: ReadAt + Sync, T: WriteAt> Maker<'_, D, T> {
    /// Makes the part over some blocks, whose nodes begin at `node` in pre-order; returns its hash.
    fn subtree(&mut self, blocks: Range<u64>, node: u64, is_root: bool) -> io::Result<LeafHash> {
        let count = blocks.end - blocks.start;
        if count <= BATCH_BLOCKS {
            let leaves = self.hasher.leaves(blocks)?;
            let mut nodes = Vec::with_capacity(leaves.len() * NODE_BYTES as usize);
            let hash = nodes_over(&leaves, is_root, &mut nodes);
            self.tree.write_all_at(node * NODE_BYTES, &nodes)?;
            return Ok(hash);
        }
        let left = left_of(count);
        let middle = blocks.start + left;
        let left_hash = self.subtree(blocks.start..middle, node + 1, false)?;
        let right_hash = self.subtree(middle..blocks.end, node + left, false)?;
        self.tree
            .write_all_at(node * NODE_BYTES, &[left_hash, right_hash].concat())?;
        Ok(merge(&left_hash, &right_hash, is_root))
    }
}

/// Gives leaf hashes: those that are known, and others from the data.
struct Hasher<'a, D> {
    data: &'a D,
    size: u64,
    known: &'a Leaves,
}

impl<D: ReadAt + Sync> Hasher<'_, D> {
    /// Those of some blocks, all in memory.
    fn leaves(&self, blocks: Range<u64>) -> io::Result<Vec<LeafHash>> {
        let mut leaves = vec![[0; 32]; (blocks.end - blocks.start) as usize];
        let runs = leaves.chunks_mut(RUN_BLOCKS).zip(0..);
        let mut todo: Vec<(u64, &mut [LeafHash])> = Vec::new();
        for (run, index) in runs {
            let first = blocks.start + index * RUN_BLOCKS as u64;
            let mut is_known = true;
            for (hash, block) in run.iter_mut().zip(first..) {
                match self.known.get(block) {
                    Some(known) => *hash = *known,
                    None => is_known = false,
                }
            }
            if !is_known {
                todo.push((first, run));
            }
        }
        let mut threads = THREADS_MAX.min(todo.len() / RUNS_PER_THREAD);
        if threads > 1 {
            // To find out, files are read.
            let processors = thread::available_parallelism().map_or(1, |count| count.get());
            threads = threads.min(processors);
        }
        let todo = Mutex::new(todo.into_iter());
        let work = || -> io::Result<()> {
            loop {
                let next = todo.lock().map_or(None, |mut todo| todo.next());
                let Some((first, run)) = next else {
                    return Ok(());
                };
                self.hash_run(first, run)?;
            }
        };
        if threads < 2 {
            work()?;
            return Ok(leaves);
        }
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut outcome = work();
            for other in others {
                let broken = || io::Error::other("a thread that hashes ended");
                outcome = outcome.and(other.join().unwrap_or_else(|_| Err(broken())));
            }
            outcome
        })?;
        Ok(leaves)
    }

    /// Hashes what is not known of a few blocks.
    fn hash_run(&self, first: u64, run: &mut [LeafHash]) -> io::Result<()> {
        let mut buffer = Buffer::new(run.len() * BLOCK_BYTES as usize);
        let places = run.iter_mut().zip(first..);
        let mut unknown = places
            .filter(|(_, block)| self.known.get(*block).is_none())
            .peekable();
        while let Some((place, block)) = unknown.next() {
            // Neighbours are read together.
            let mut places = vec![place];
            while let Some((place, _)) =
                unknown.next_if(|(_, next)| *next == block + places.len() as u64)
            {
                places.push(place);
            }
            let start = block * BLOCK_BYTES;
            let end = (start + places.len() as u64 * BLOCK_BYTES).min(self.size);
            let bytes = buffer
                .get_mut(..(end - start) as usize)
                .ok_or(io::ErrorKind::InvalidInput)?;
            self.data.read_exact_at(start, bytes)?;
            let blocks = bytes.chunks(BLOCK_BYTES as usize);
            for ((place, bytes), block) in places.into_iter().zip(blocks).zip(block..) {
                *place = leaf_hash(block, bytes);
            }
        }
        Ok(())
    }
}

/// Appends the inner nodes over some leaves in pre-order; returns the hash of the topmost.
fn nodes_over(leaves: &[LeafHash], is_root: bool, nodes: &mut Vec<u8>) -> LeafHash {
    if let [only] = leaves {
        return *only;
    }
    let at = nodes.len();
    nodes.resize(at + NODE_BYTES as usize, 0);
    // At most the number of leaves.
    let (left, right) = leaves.split_at(left_of(leaves.len() as u64) as usize);
    let left_hash = nodes_over(left, false, nodes);
    let right_hash = nodes_over(right, false, nodes);
    if let Some(place) = nodes.get_mut(at..at + NODE_BYTES as usize) {
        place.copy_from_slice(&[left_hash, right_hash].concat());
    }
    merge(&left_hash, &right_hash, is_root)
}

fn merge(left: &LeafHash, right: &LeafHash, is_root: bool) -> LeafHash {
    match is_root {
        true => *hazmat::merge_subtrees_root(left, right, Mode::Hash).as_bytes(),
        false => hazmat::merge_subtrees_non_root(left, right, Mode::Hash),
    }
}

/// The leaf hashes of blocks out of the hash tree of a content of several blocks, proven against its id.
///
/// # Errors
/// `InvalidInput` for a content of a single block and blocks that aren't within it; `InvalidData` if the tree doesn't match;
/// `UnexpectedEof` if it ends early.
pub fn leaves_of(
    tree: &impl ReadAt,
    object: Object,
    blocks: Range<u64>,
) -> io::Result<Vec<LeafHash>> {
    if object.blocks() < 2 {
        return Err(beyond_content());
    }
    let walk = Walk::new(object, &blocks).ok_or_else(beyond_content)?;
    let mismatch = || io::Error::new(io::ErrorKind::InvalidData, RangeError::Mismatch);
    let mut leaves = Vec::new();
    let mut due = vec![object.content.0];
    walk.each(|step| {
        let due_here = due.pop().ok_or_else(mismatch)?;
        match step {
            Step::Node {
                offset,
                root,
                left,
                right,
            } => {
                let mut pair = [0; 64];
                tree.read_exact_at(offset, &mut pair)?;
                let (left_hash, right_hash) = halves(&pair);
                if merge(&left_hash, &right_hash, root) != due_here {
                    return Err(mismatch());
                }
                if right {
                    due.push(right_hash);
                }
                if left {
                    due.push(left_hash);
                }
            }
            Step::Block { .. } => leaves.push(due_here),
        }
        Ok(())
    })?;
    Ok(leaves)
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
    encode_range_with(tree, object, blocks, out, |mut offset, parts| {
        for part in parts {
            data.read_exact_at(offset, part)?;
            offset += part.len() as u64;
        }
        Ok(())
    })
}

/// The same, with what reads bytes of the content from an offset on into several places, one behind the other.
///
/// # Errors
/// As [`encode_range`].
pub fn encode_range_with(
    tree: &impl ReadAt,
    object: Object,
    blocks: Range<u64>,
    out: &mut [u8],
    read: impl FnOnce(u64, &mut [IoSliceMut<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let start = blocks.start;
    let walk = Walk::new(object, &blocks).ok_or_else(beyond_content)?;
    if encoded_bytes(object, blocks) != out.len() as u64 {
        return Err(beyond_content());
    }
    let mut rest = out;
    let mut places = Vec::new();
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
            Step::Node { offset, .. } => tree.read_exact_at(offset, part)?,
            // In order, and none is left out.
            Step::Block { .. } => places.push(IoSliceMut::new(part)),
        }
        io::Result::Ok(())
    })?;
    read(start * BLOCK_BYTES, &mut places)
}

/// Where the tree file of a content has what [`encode_range`] reads of it for these blocks: bytes, in order, as one range where less than
/// `gap` bytes lie between. Empty where the blocks aren't within the content.
pub fn tree_parts(object: Object, blocks: &Range<u64>, gap: u64) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let Some(walk) = Walk::new(object, blocks) else {
        return parts;
    };
    let walked: Result<(), Infallible> = walk.each(|step| {
        // In pre-order, so offsets grow.
        if let Step::Node { offset, .. } = step {
            let end = offset + NODE_BYTES;
            match parts.last_mut() {
                Some(last) if offset < last.end.saturating_add(gap) => last.end = end,
                _ => parts.push(offset..end),
            }
        }
        Ok(())
    });
    let Ok(()) = walked;
    parts
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
                if merge(&left_hash, &right_hash, root) != due_here {
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
                    leaf_hash(offset / BLOCK_BYTES, block)
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
    let left = left_of(leaves);
    let below_left = range.start.min(left)..range.end.min(left);
    let below_right = range.start.max(left) - left..range.end.max(left) - left;
    1 + nodes_above(left, below_left) + nodes_above(leaves - left, below_right)
}

/// How many of two or more leaves are on the left: the largest power of two that leaves something for the right.
fn left_of(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
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

#[cfg(test)]
mod tests;
