//! Contents: what a file's bytes are called, how they are cut into blocks, and how a range of them is proven.
//!
//! A content id is the BLAKE3 hash of the bytes. A *block* is 64 KiB, a subtree of that hash's own tree; the inner nodes
//! down to block level are the *hash tree* (pre-order, 64 bytes a node). A range travels as the few inner nodes that
//! prove it and its blocks (verified streaming, BLAKE3 paper section 6.4; the `bao-tree` crate with 64-chunk groups).
//!
//! Pure: no clock, no I/O beyond the positioned readers that the caller hands in.

mod leaves;
mod object;
mod ranges;
#[cfg(test)]
pub(crate) mod sizes;
mod tree;

pub use leaves::{LeafHash, Leaves};
pub use object::{BLOCK_BYTES, ContentId, INLINE_BYTES_MAX, Object, ParseContentIdError};
pub use ranges::BlockSet;
pub use tree::{
    Nodes, RangeError, VerifiedRange, encode_nodes, encode_range, encode_range_with, encoded_bytes,
    hash_blocks, hash_bytes, hash_into, hash_over, leaf_hash, leaves_of, nodes_bytes, tree_parts,
    verify_range,
};
