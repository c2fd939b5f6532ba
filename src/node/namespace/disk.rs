//! What a replica needs of a disk; the store is one. A simulated one loses, at a crash, what was not flushed.

use bytes::Bytes;

use crate::{
    manifest::NodeHash,
    store::{Store, StoreError},
};

/// Key and value pairs.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Where a replica keeps its state. What was put is read back at once; after a crash a prefix of what was put since the last
/// [`Disk::flush`] is there, and everything before it.
pub(super) trait Disk: Clone + Send + Sync + 'static {
    /// A setting.
    fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Sets or, with `None`, removes it.
    fn set_setting(&self, name: &str, value: Option<&[u8]>) -> Result<(), StoreError>;
    /// Records of heads, in order of their keys.
    fn heads(&self) -> Result<Pairs, StoreError>;
    /// Keeps a record of a head.
    fn put_head(&self, key: &[u8], record: &[u8]) -> Result<(), StoreError>;
    /// Drops a record of a head.
    fn remove_head(&self, key: &[u8]) -> Result<(), StoreError>;
    /// The encoding of a manifest node.
    fn node(&self, hash: &NodeHash) -> Result<Option<Bytes>, StoreError>;
    /// Keeps nodes, in their order: after an error the first ones may be there.
    fn put_nodes(&self, nodes: &[(NodeHash, Vec<u8>)]) -> Result<(), StoreError>;
    /// The names of the nodes that are here, in order: those after one, at most `limit`.
    fn node_names(
        &self,
        after: Option<NodeHash>,
        limit: usize,
    ) -> Result<Vec<NodeHash>, StoreError>;
    /// Lets go of nodes.
    fn remove_nodes(&self, nodes: &[NodeHash]) -> Result<(), StoreError>;
    /// Keeps the root of a moment, in place of one of the same minute; drops those that are too old.
    fn put_root(&self, minute: u64, record: &[u8], oldest: u64) -> Result<(), StoreError>;
    /// The remembered roots, in order of their minutes.
    fn roots(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
    /// Forgets the roots of these minutes.
    fn remove_roots(&self, minutes: &[u64]) -> Result<(), StoreError>;
    /// The contents that were written here are on disk when this returns.
    fn settle(&self) -> Result<(), StoreError>;
    /// All that was put is on disk when this returns.
    fn flush(&self) -> Result<(), StoreError>;
}

impl Disk for Store {
    fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.setting(name)
    }
    fn set_setting(&self, name: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        self.set_setting(name, value)
    }
    fn heads(&self) -> Result<Pairs, StoreError> {
        self.heads()
    }
    fn put_head(&self, key: &[u8], record: &[u8]) -> Result<(), StoreError> {
        self.put_head(key, record)
    }
    fn remove_head(&self, key: &[u8]) -> Result<(), StoreError> {
        self.remove_head(key)
    }
    fn node(&self, hash: &NodeHash) -> Result<Option<Bytes>, StoreError> {
        self.node(hash)
    }
    fn put_nodes(&self, nodes: &[(NodeHash, Vec<u8>)]) -> Result<(), StoreError> {
        self.put_nodes(nodes)
    }
    fn node_names(
        &self,
        after: Option<NodeHash>,
        limit: usize,
    ) -> Result<Vec<NodeHash>, StoreError> {
        self.node_names(after, limit)
    }
    fn remove_nodes(&self, nodes: &[NodeHash]) -> Result<(), StoreError> {
        self.remove_nodes(nodes)
    }
    fn put_root(&self, minute: u64, record: &[u8], oldest: u64) -> Result<(), StoreError> {
        self.put_root(minute, record, oldest)
    }
    fn roots(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.roots()
    }
    fn remove_roots(&self, minutes: &[u64]) -> Result<(), StoreError> {
        self.remove_roots(minutes)
    }
    fn settle(&self) -> Result<(), StoreError> {
        self.settle_written()
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.flush()
    }
}
