//! Manifest nodes as the tree reads them: from the store, decoded once while they are in use.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{disk::Disk, recent::Recent};
use crate::{
    manifest::{Node, NodeHash, NodeSource, TreeError},
    store::StoreError,
};

/// Decoded nodes kept, in bytes of memory: at least; at most twice as much. They average 16 KiB. Tests have hundreds of replicas in one
/// process.
const DECODED_BYTES_MAX: usize = if cfg!(test) { 2 } else { 48 } * 1024 * 1024;
/// Larger nodes are decoded each time they are read, and push no others out.
const DECODED_NODE_BYTES_MAX: usize = 512 * 1024;

/// Names of invalid nodes that are remembered.
const BAD_MAX: usize = 4096;

/// The nodes that are here.
pub(super) struct Nodes<D> {
    disk: D,
    decoded: Mutex<Recent<NodeHash, Arc<Node>>>,
    /// Names of what was fetched and is no valid node.
    bad: Mutex<Recent<NodeHash, ()>>,
    came: Mutex<Came>,
    /// Bytes that were put and not asked for yet.
    grown: AtomicU64,
}

/// What was put since the last generation of nodes began, and in the one before: 32 bytes for each.
#[derive(Default)]
struct Came {
    young: HashSet<NodeHash>,
    older: HashSet<NodeHash>,
    since: Option<Instant>,
}

impl<D: Disk> Nodes<D> {
    pub(super) fn new(disk: D) -> Self {
        Self {
            disk,
            decoded: Mutex::new(Recent::new(DECODED_BYTES_MAX)),
            bad: Mutex::new(Recent::new(BAD_MAX)),
            came: Mutex::default(),
            grown: AtomicU64::new(0),
        }
    }

    /// Begins a generation, unless the last one is younger than that: what was put before that one is old.
    pub(super) fn begin_generation(&self, now: Instant, lasts: Duration) {
        let mut came = self.came.lock();
        let since = *came.since.get_or_insert(now);
        if now >= since + lasts {
            came.older = std::mem::take(&mut came.young);
            came.since = Some(now);
        }
    }

    /// Bytes that were put since this was asked.
    pub(super) fn take_grown(&self) -> u64 {
        self.grown.swap(0, Ordering::Relaxed)
    }

    /// Which nodes are here, in order; those after one, at most `limit`.
    pub(super) fn names(
        &self,
        after: Option<NodeHash>,
        limit: usize,
    ) -> Result<Vec<NodeHash>, StoreError> {
        self.disk.node_names(after, limit)
    }

    /// Removes those of these nodes, told with their bytes, that are old. Returns how many, and the bytes of the others.
    pub(super) fn remove_old(
        &self,
        nodes: Vec<(NodeHash, u64)>,
    ) -> Result<(usize, u64), StoreError> {
        // Held until they are gone: what is put meanwhile is put after that.
        let came = self.came.lock();
        let is_old = |hash: &NodeHash| !came.young.contains(hash) && !came.older.contains(hash);
        let (old, young): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|(hash, _)| is_old(hash));
        let old: Vec<_> = old.into_iter().map(|(hash, _)| hash).collect();
        self.disk.remove_nodes(&old)?;
        let mut decoded = self.decoded.lock();
        old.iter().for_each(|hash| decoded.remove(hash));
        Ok((old.len(), young.iter().map(|(_, bytes)| bytes).sum()))
    }

    fn keep(&self, nodes: &[(NodeHash, Vec<u8>)]) -> Result<(), StoreError> {
        let names = nodes.iter().map(|(hash, _)| *hash);
        self.came.lock().young.extend(names);
        let bytes: usize = nodes.iter().map(|(_, bytes)| bytes.len()).sum();
        self.grown.fetch_add(bytes as u64, Ordering::Relaxed);
        self.disk.put_nodes(nodes)
    }

    /// The encoding, for peers.
    pub(super) fn encoded(&self, hash: &NodeHash) -> Result<Option<Bytes>, StoreError> {
        self.disk.node(hash)
    }

    /// Keeps nodes that are known to be good.
    pub(super) fn put(&self, nodes: &[(NodeHash, Vec<u8>)]) -> Result<(), StoreError> {
        self.keep(nodes)
    }

    /// Keeps those of the fetched encodings that were asked for and are nodes. Returns which.
    pub(super) fn take(
        &self,
        asked: &[NodeHash],
        fetched: Vec<Vec<u8>>,
    ) -> Result<Vec<NodeHash>, StoreError> {
        let asked: std::collections::BTreeSet<_> = asked.iter().collect();
        let (mut good, mut decoded) = (Vec::new(), Vec::new());
        for bytes in fetched {
            let hash = NodeHash::of(&bytes);
            if !asked.contains(&hash) {
                tracing::warn!(%hash, "a peer sent a manifest node that it was not asked for");
                continue;
            }
            match Node::decode(&bytes) {
                Ok(node) => {
                    decoded.push((hash, Arc::new(node)));
                    good.push((hash, bytes));
                }
                Err(error) => {
                    tracing::warn!(%hash, %error, "a manifest node is not valid");
                    self.bad.lock().put(hash, ());
                }
            }
        }
        // First on the disk: what is in memory counts as here, and a state may be made of it.
        self.keep(&good)?;
        for (hash, node) in decoded {
            self.remember(hash, node);
        }
        Ok(good.into_iter().map(|(hash, _)| hash).collect())
    }

    /// Whether what this hash names was seen and is no valid node.
    pub(super) fn is_bad(&self, hash: &NodeHash) -> bool {
        self.bad.lock().get(hash).is_some()
    }

    fn remember(&self, hash: NodeHash, node: Arc<Node>) {
        let bytes = node.memory();
        if bytes <= DECODED_NODE_BYTES_MAX {
            self.decoded.lock().put_weighing(hash, node, bytes);
        }
    }
}

impl<D: Disk> NodeSource for Nodes<D> {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        if let Some(node) = self.decoded.lock().get(hash) {
            return Ok(Some(node));
        }
        let source = |error: &dyn std::fmt::Display| TreeError::Source(error.to_string());
        let Some(bytes) = self.disk.node(hash).map_err(|error| source(&error))? else {
            return Ok(None);
        };
        let node = Arc::new(Node::decode(&bytes).map_err(|error| source(&error))?);
        self.remember(*hash, node.clone());
        Ok(Some(node))
    }
}
