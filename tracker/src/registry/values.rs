//! What goes into the registry and comes out of it.

use libp2p::{Multiaddr, PeerId};

use crate::protocol::Topic;

/// Hard limits, against many peers and against hostile ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clusters.
    pub topics: usize,
    /// Peers of one cluster.
    pub topic_peers: usize,
    /// Contents of one peer.
    pub peer_keys: u64,
    /// Contents of all peers; one costs about 100 bytes of memory.
    pub keys: u64,
    /// Bytes of all heads.
    pub head_bytes: u64,
    /// Bytes of all manifest nodes, each with [`NODE_OVERHEAD_BYTES`](crate::protocol::NODE_OVERHEAD_BYTES). They lie on
    /// disk, which may take several times as much of it; in memory a node costs about 200 bytes.
    pub node_bytes: u64,
    /// The same of one cluster.
    pub topic_node_bytes: u64,
    /// What a cluster with peers may have of that whatever others do; smaller ones lose nothing to others.
    pub topic_node_bytes_kept: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            topics: 10_000,
            topic_peers: 4096,
            peer_keys: 1_000_000,
            keys: 5_000_000,
            head_bytes: 256 * 1024 * 1024,
            node_bytes: 2048 * 1024 * 1024,
            topic_node_bytes: 256 * 1024 * 1024,
            topic_node_bytes_kept: 16 * 1024 * 1024,
        }
    }
}

/// A peer and where it can be dialed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Its id.
    pub peer: PeerId,
    /// Without `/p2p`.
    pub addresses: Vec<Multiaddr>,
}

/// Holders for several keys: each peer is described once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The peers that `holders` names.
    pub peers: Vec<Located>,
    /// For each key indexes into `peers`.
    pub holders: Vec<Vec<u16>>,
}

/// A sealed head and its age in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgedHead {
    /// As it was handed in.
    pub sealed: Vec<u8>,
    /// Since it was handed in last.
    pub age_ms: u64,
}

/// What the shell is to do: dial this peer, expect its id, and call [`super::Registry::handle_dialed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialBack {
    /// Its cluster.
    pub topic: Topic,
    /// Whom, and where.
    pub located: Located,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clusters.
    pub topics: usize,
    /// Peers of all clusters.
    pub peers: usize,
    /// Contents of all peers.
    pub keys: u64,
    /// Bytes of all heads.
    pub head_bytes: u64,
    /// Manifest nodes of all clusters.
    pub nodes: u64,
    /// Their bytes, each with its overhead.
    pub node_bytes: u64,
}
