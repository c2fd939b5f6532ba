//! `/p2pfs/tracker/1`: what a peer and a tracker say to each other.
//!
//! One stream is one session about one topic. The tracker speaks first ([`Challenge`]), which also tells the peer that its
//! stream was taken. The peer proves with the member key that it may speak about the topic ([`Prove`]), the tracker answers
//! with a [`Verdict`], and from then on the peer sends [`Request`]s, as many as it likes without waiting, and gets an
//! [`Answer`] to each. Every message is one frame ([`crate::framing`]).
//!
//! The topic *is* the public member key, so a tracker can check a proof without knowing any cluster. The signature covers both
//! peer ids (those that the transport authenticated) and the tracker's nonce: it is good for this peer, at this tracker, once.
//!
//! New kinds of request may be added: a tracker answers those that it does not know with [`Refusal::NotUnderstood`], and the
//! session goes on.

use std::fmt;

use ed25519_dalek::{Signature, VerifyingKey};
use libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr::Protocol};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

/// The protocol's name.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/p2pfs/tracker/1");
/// Most bytes of [`Challenge`], [`Prove`] and [`Verdict`].
pub const HANDSHAKE_BYTES_MAX: usize = 1024;
/// Most bytes of a [`Request`]: [`PUT_BYTES_MAX`] of sealed nodes with their keys, and some room.
pub const REQUEST_BYTES_MAX: usize = 512 * 1024;
/// Most bytes of an [`Answer`]: [`HEADS_MAX`] sealed heads, or [`PEERS_MAX`] peers with all their addresses, or sealed nodes,
/// and some room.
pub const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most addresses of one peer.
pub const ADDRESSES_MAX: usize = 16;
/// Most bytes of one address.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Most listening ports in an announcement.
pub const PORTS_MAX: usize = 4;
/// Most bytes of a peer id (a SHA-256 or identity multihash).
pub const PEER_ID_BYTES_MAX: usize = 64;
/// Most keys, added and removed together, of one [`Ask::Holds`].
pub const KEYS_MAX: usize = 4096;
/// Most keys of one [`Ask::Holders`].
pub const LOOKUP_KEYS_MAX: usize = 256;
/// Most holders told for one key.
pub const HOLDERS_MAX: usize = 16;
/// Most peers named in one answer.
pub const PEERS_MAX: usize = 128;
/// Most bytes of a sealed head: 64 KiB and what the sealing adds.
pub const HEAD_BYTES_MAX: usize = 65 * 1024;
/// Most heads kept for a topic, at most one of each peer.
pub const HEADS_MAX: usize = 16;
/// Most bytes of a sealed manifest node. They have 8 KiB on average; the rare larger one is kept by members alone.
pub const NODE_BYTES_MAX: usize = 256 * 1024;
/// Most nodes of one [`Ask::PutNodes`].
pub const PUT_NODES_MAX: usize = 64;
/// Most bytes of all nodes of one [`Ask::PutNodes`].
pub const PUT_BYTES_MAX: usize = 448 * 1024;
/// Most keys of one [`Ask::HaveNodes`].
pub const HAVE_NODES_MAX: usize = 1024;
/// Most keys of one [`Ask::GetNodes`].
pub const GET_NODES_MAX: usize = 256;
/// An answer to [`Ask::GetNodes`] stops before the node that would take it beyond so many bytes.
pub const GET_BYTES_MAX: usize = 1024 * 1024;
/// What keeping a node is charged with beyond its bytes: its place in the index and on disk.
pub const NODE_OVERHEAD_BYTES: u64 = 2048;

/// The public member key of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(pub [u8; 32]);

/// What a content is indexed under, or a manifest node kept: a keyed hash of its id, which tells a tracker nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedKey(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

/// The first bytes are enough to tell keys apart in a log.
fn hex(bytes: &[u8; 32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().take(6).try_for_each(|b| write!(f, "{b:02x}"))
}

/// The tracker's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// 32 random bytes, used for this session only.
    pub nonce: ByteArray<32>,
}

/// The peer's answer to the challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prove {
    /// What the session is about.
    pub topic: ByteArray<32>,
    /// By the member key, over [`challenge_message`].
    pub signature: ByteArray<64>,
}

/// Whether the session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It does.
    Welcome,
    /// The proof doesn't hold; the tracker closes the stream.
    NoMember,
}

/// A request with the number that its answer will carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the peer, unique among those that wait.
    pub id: u64,
    /// What is asked.
    pub ask: Ask,
}

/// The number alone, for requests of a kind that this version doesn't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// As in [`Request`].
    pub id: u64,
}

/// What a peer asks of a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Begins a lease, or renews it with these addresses. Answer: [`Told::Lease`].
    Announce {
        /// Multiaddrs, at most [`ADDRESSES_MAX`] of [`ADDRESS_BYTES_MAX`].
        addresses: Vec<ByteBuf>,
        /// TCP ports that the peer listens on, at most [`PORTS_MAX`]: joined with the IP address that the tracker sees.
        ports: Vec<u16>,
    },
    /// Renews the lease. Answer: [`Told::Lease`].
    Renew,
    /// Forgets all that this peer was said to hold. Answer: [`Told::Done`].
    HoldsReset,
    /// Changes what this peer holds, at most [`KEYS_MAX`] in both lists. Answer: [`Told::Done`].
    Holds {
        /// Held from now on.
        add: Vec<SealedKey>,
        /// No longer held.
        remove: Vec<SealedKey>,
    },
    /// Ends the lease at once and deletes everything of this peer. Answer: [`Told::Done`].
    Leave,
    /// Some other peers of the topic, a different choice each time. Answer: [`Told::Peers`].
    Peers,
    /// Who holds these, at most [`LOOKUP_KEYS_MAX`]. Answer: [`Told::Holders`].
    Holders {
        /// Which contents.
        keys: Vec<SealedKey>,
    },
    /// Keeps a sealed head of at most [`HEAD_BYTES_MAX`] in place of this peer's last one. Answer: [`Told::Done`].
    PutHead {
        /// The sealed head.
        sealed: ByteBuf,
    },
    /// The newest sealed heads. Answer: [`Told::Heads`].
    Heads,
    /// That peer doesn't answer: it is not handed out until the tracker reached it. Answer: [`Told::Done`].
    Report {
        /// Its id, at most [`PEER_ID_BYTES_MAX`].
        peer: ByteBuf,
    },
    /// Where a peer is. Answer: [`Told::Peers`] with one or none.
    WhereIs {
        /// Its id, at most [`PEER_ID_BYTES_MAX`].
        peer: ByteBuf,
    },
    /// Which of these nodes are kept, at most [`HAVE_NODES_MAX`]; those count as new again. Answer: [`Told::HaveNodes`].
    HaveNodes {
        /// Which nodes.
        keys: Vec<SealedKey>,
    },
    /// Keeps sealed nodes, at most [`PUT_NODES_MAX`] with [`PUT_BYTES_MAX`] together; the oldest of the cluster make room.
    /// Answer: [`Told::Done`].
    PutNodes {
        /// The nodes.
        nodes: Vec<WireNode>,
        /// Whether they take the place of those kept under the same keys, which turned out to be bad.
        replace: bool,
    },
    /// Sealed nodes, at most [`GET_NODES_MAX`]. Answer: [`Told::Nodes`].
    GetNodes {
        /// Which nodes.
        keys: Vec<SealedKey>,
    },
}

/// A sealed manifest node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireNode {
    /// What it is kept under.
    pub key: SealedKey,
    /// 1 to [`NODE_BYTES_MAX`] bytes.
    pub sealed: ByteBuf,
}

/// The answer to the request with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// As in the [`Request`].
    pub id: u64,
    /// What is told.
    pub told: Told,
}

/// What a tracker tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// It is done.
    Done,
    /// The lease runs from now.
    Lease {
        /// How long, in milliseconds.
        lease_ms: u64,
        /// What the tracker has of this peer; where it differs from the peer's own [`HoldsDigest`], the peer tells all anew.
        holds: HoldsDigest,
    },
    /// At most [`PEERS_MAX`].
    Peers(Vec<WirePeer>),
    /// Holders for each key, in the order asked.
    Holders {
        /// Those named below, at most [`PEERS_MAX`].
        peers: Vec<WirePeer>,
        /// For each key indexes into `peers`, at most [`HOLDERS_MAX`].
        holders: Vec<Vec<u16>>,
    },
    /// At most [`HEADS_MAX`], newest first.
    Heads(Vec<WireHead>),
    /// Which nodes are kept.
    HaveNodes {
        /// For each key, in the order asked.
        have: Vec<bool>,
        /// Bytes that this cluster's nodes may take at present, each with [`NODE_OVERHEAD_BYTES`].
        room: u64,
    },
    /// Nodes in the order asked, empty where there is none; may stop early, after one at least.
    Nodes(Vec<ByteBuf>),
    /// Refused.
    Refused(Refusal),
}

/// A peer and where to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WirePeer {
    /// Its id.
    pub peer: ByteBuf,
    /// Multiaddrs without `/p2p`, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<ByteBuf>,
}

/// A sealed head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireHead {
    /// As it was handed in.
    pub sealed: ByteBuf,
    /// Seconds since the tracker got it.
    pub age_s: u64,
}

/// A fingerprint of the set of keys that a peer holds, for both ends to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldsDigest {
    /// How many.
    pub count: u64,
    /// All of them, combined by exclusive or. The keys are keyed hashes already, and a peer could cheat only itself.
    pub xor: ByteArray<32>,
}

impl HoldsDigest {
    /// The digest after a key, which the set did not contain, was added.
    pub fn add(&mut self, key: &SealedKey) {
        self.count = self.count.saturating_add(1);
        self.fold(key);
    }

    /// The digest after a key, which the set contained, was removed.
    pub fn remove(&mut self, key: &SealedKey) {
        self.count = self.count.saturating_sub(1);
        self.fold(key);
    }

    fn fold(&mut self, key: &SealedKey) {
        for (mine, theirs) in self.xor.iter_mut().zip(key.0) {
            *mine ^= theirs;
        }
    }
}

/// Why a tracker refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is no lease: announce first, then tell all that is held.
    #[error("the tracker doesn't know this peer (any more)")]
    NotAnnounced,
    /// A hard limit is reached.
    #[error("the tracker is full: {0}")]
    Full(Limit),
    /// More than the protocol allows, or an address or id that is none.
    #[error("the tracker refused a request that breaks the protocol")]
    Malformed,
    /// A kind of request that this tracker doesn't know.
    #[error("the tracker is too old for this request")]
    NotUnderstood,
    /// The tracker is stopping, or its disk failed.
    #[error("the tracker can't answer at the moment")]
    Unavailable,
}

/// The hard limits of a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Limit {
    /// Clusters.
    #[error("it has no room for another cluster")]
    Topics,
    /// Peers of one cluster.
    #[error("it has no room for another peer of this cluster")]
    PeersOfTopic,
    /// Contents of one peer.
    #[error("this peer holds more contents than it may list")]
    KeysOfPeer,
    /// Contents of all.
    #[error("it has no room for more contents")]
    Keys,
    /// Bytes of heads of all.
    #[error("it has no room for more heads")]
    HeadBytes,
    /// Bytes of manifest nodes of all.
    #[error("it has no room for more manifest nodes")]
    NodeBytes,
}

/// What a peer signs with the member key to begin a session.
///
/// The context ends in a zero byte, and each part is preceded by its length (big-endian `u32`): no two different tuples give
/// the same bytes.
pub fn challenge_message(
    topic: &[u8; 32],
    peer: &PeerId,
    tracker: &PeerId,
    nonce: &[u8; 32],
) -> Vec<u8> {
    let mut message = b"p2pfs tracker session v1\0".to_vec();
    let (peer, tracker) = (peer.to_bytes(), tracker.to_bytes());
    for part in [topic.as_slice(), &peer, &tracker, nonce] {
        // Every part is shorter than 100 bytes.
        message.extend((part.len() as u32).to_be_bytes());
        message.extend(part);
    }
    message
}

/// Whether a proof holds for this peer, at this tracker, with this nonce.
pub fn proof_holds(prove: &Prove, peer: &PeerId, tracker: &PeerId, nonce: &[u8; 32]) -> bool {
    let message = challenge_message(&prove.topic, peer, tracker, nonce);
    let signature = Signature::from_bytes(&prove.signature);
    VerifyingKey::from_bytes(&prove.topic)
        .is_ok_and(|key| key.verify_strict(&message, &signature).is_ok())
}

/// Reads a peer id of at most [`PEER_ID_BYTES_MAX`].
pub(crate) fn parse_peer(bytes: &[u8]) -> Option<PeerId> {
    if bytes.len() > PEER_ID_BYTES_MAX {
        return None;
    }
    PeerId::from_bytes(bytes).ok()
}

/// Reads an address of `peer`: bounded, not empty, and without a closing `/p2p/<peer>`. None where it names somebody else.
pub(crate) fn parse_address(bytes: &[u8], peer: &PeerId) -> Option<Multiaddr> {
    if bytes.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    let mut address = Multiaddr::try_from(bytes.to_vec()).ok()?;
    if let Some(Protocol::P2p(named)) = address.iter().last() {
        if named != *peer {
            return None;
        }
        address.pop();
    }
    (!address.is_empty()).then_some(address)
}

#[cfg(test)]
mod tests;
