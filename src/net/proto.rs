//! Messages between members. Length-prefixed CBOR; every list and blob has the bound that its doc names.

use bytes::Bytes;
use libp2p::StreamProtocol;
use serde::{Deserialize, Serialize};

use crate::{
    content::{BlockSet, Object},
    manifest::NodeHash,
};

/// Membership.
pub const HELLO: StreamProtocol = StreamProtocol::new("/p2pfs/hello/1");
/// Heads, nodes, have-queries, pushes.
pub const SYNC: StreamProtocol = StreamProtocol::new("/p2pfs/sync/1");
/// Block data.
pub const BLOCKS: StreamProtocol = StreamProtocol::new("/p2pfs/blocks/1");
/// Most bytes of one sync answer.
pub const SYNC_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of one question or push.
pub const CALL_BYTES_MAX: usize = 512 * 1024;
/// Most nodes or objects named in one request.
pub const NAMED_MAX: usize = 1024;
/// Most heads in one answer.
pub const HEADS_MAX: usize = 256;
/// Most blocks of one block request (1 MiB).
pub const REQUEST_BLOCKS_MAX: u64 = 16;
/// Most ranges of a have-answer; what is beyond is left out.
pub const HAVE_RANGES_MAX: usize = 1024;

/// The protocol version that [`PeerHello`] carries.
pub const PROTOCOL: u32 = 2;
/// Most addresses told of one member.
pub const ADDRESSES_MAX: usize = 16;
/// Most members told in one status.
pub const MEMBERS_MAX: usize = 64;
/// Most bytes of one block answer's data: 16 blocks and the inner nodes that prove them.
pub const BLOCK_ANSWER_BYTES_MAX: usize = (REQUEST_BLOCKS_MAX as usize + 1) * 64 * 1024;
/// Most bytes of an encoded head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of the changes of one push.
const CHANGES_BYTES_MAX: usize = 256 * 1024;
/// Most changes of one push.
pub const CHANGES_MAX: usize = 8192;

/// What a node says of itself once membership is proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Protocol version; 1.
    pub protocol: u32,
    /// Node name, 1 to 64 bytes, no control characters.
    pub node: String,
    /// Software version, at most 64 bytes.
    pub version: String,
    /// Key epoch.
    pub epoch: u64,
}

/// A request on a sync stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncRequest {
    /// The heads that no other head covers.
    Heads,
    /// Manifest nodes, at most [`NAMED_MAX`].
    Nodes(Vec<NodeHash>),
    /// Which of these objects are there, at most [`NAMED_MAX`].
    Have(Vec<Object>),
    /// Current load, and addresses of other members.
    Status,
}

/// How much of an object a peer has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Have {
    /// Nothing.
    No,
    /// These blocks.
    Part(BlockSet),
    /// All of it.
    Whole,
}

/// An answer on a sync stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncAnswer {
    /// Encoded heads ([`crate::cluster::Head::encode`]), at most [`HEADS_MAX`].
    Heads(Vec<serde_bytes::ByteBuf>),
    /// Encodings in the order asked, empty for a node that isn't there; may stop early where the message would grow past
    /// its bound, and the rest is asked for again.
    Nodes(Vec<serde_bytes::ByteBuf>),
    /// In the order asked.
    Have(Vec<Have>),
    /// Load and members.
    Status {
        /// Block answers being worked on now.
        load: u32,
        /// Members and where they listen: (peer id bytes, multiaddr bytes), at most 64 of 16.
        members: Vec<(serde_bytes::ByteBuf, Vec<serde_bytes::ByteBuf>)>,
    },
    /// Could not be answered; at most 256 bytes.
    Error(String),
}

/// A message that wants no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Push {
    /// MANIFEST_UPDATED.
    Manifest {
        /// The encoded head.
        head: serde_bytes::ByteBuf,
        /// The root that `changes` apply to.
        base: NodeHash,
        /// Changed keys with their encoded versions (empty: deleted); left out when larger than 256 KiB, or more than
        /// [`CHANGES_MAX`].
        changes: Option<Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>>,
    },
    /// Blocks that this peer has newly verified.
    Have(Object, BlockSet),
    /// This peer goes away now.
    Leaving,
}

/// A request on a block stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRequest {
    /// Which content.
    pub object: Object,
    /// First block.
    pub start: u64,
    /// One past the last; at most [`REQUEST_BLOCKS_MAX`] from `start`.
    pub end: u64,
}

/// An answer on a block stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockAnswer {
    /// Proof and bytes, as [`crate::content::encode_range`] writes them.
    Data(Bytes),
    /// These blocks are not here; what is.
    DontHave(Have),
    /// The content has another size: the proof of its last block under that size.
    WrongSize {
        /// The true size.
        size: u64,
        /// Last block under the true size.
        proof: Bytes,
    },
    /// Too much to do at the moment.
    Busy,
}

/// Refuses with a reason.
fn require(holds: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl PeerHello {
    /// Whether it keeps to its bounds and this node can talk to its sender.
    pub fn check(&self) -> Result<(), &'static str> {
        require(
            self.protocol == PROTOCOL,
            "it speaks another version of the protocol",
        )?;
        require(
            (1..=64).contains(&self.node.len()) && !self.node.chars().any(char::is_control),
            "its node name is not 1 to 64 bytes of plain text",
        )?;
        require(
            self.version.len() <= 64 && !self.version.chars().any(char::is_control),
            "its software version is not at most 64 bytes of plain text",
        )
    }
}

impl SyncRequest {
    /// Whether it keeps to its bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        let named = match self {
            Self::Heads | Self::Status => 0,
            Self::Nodes(nodes) => nodes.len(),
            Self::Have(objects) => objects.len(),
        };
        require(named <= NAMED_MAX, "it names too many nodes or objects")
    }
}

impl Have {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Part(blocks) => require(
                blocks.ranges().len() <= HAVE_RANGES_MAX,
                "it names too many ranges",
            ),
            Self::No | Self::Whole => Ok(()),
        }
    }
}

impl SyncAnswer {
    /// Whether it keeps to its bounds and answers this request.
    pub fn check(&self, request: &SyncRequest) -> Result<(), &'static str> {
        match (request, self) {
            (_, Self::Error(reason)) => require(reason.len() <= 256, "its error is too long"),
            (SyncRequest::Heads, Self::Heads(heads)) => {
                require(heads.len() <= HEADS_MAX, "it has too many heads")?;
                require(
                    heads.iter().all(|head| head.len() <= HEAD_BYTES_MAX),
                    "it has a head that is too large",
                )
            }
            (SyncRequest::Nodes(asked), Self::Nodes(nodes)) => require(
                nodes.len() <= asked.len(),
                "it has more nodes than were asked for",
            ),
            (SyncRequest::Have(asked), Self::Have(have)) => {
                require(
                    have.len() == asked.len(),
                    "it has another number of objects than was asked for",
                )?;
                have.iter().try_for_each(Have::check)
            }
            (SyncRequest::Status, Self::Status { members, .. }) => require(
                members.len() <= MEMBERS_MAX
                    && members
                        .iter()
                        .all(|(peer, at)| peer.len() <= 64 && at.len() <= ADDRESSES_MAX),
                "it names too many members or addresses",
            ),
            _ => Err("it answers another question"),
        }
    }
}

impl Push {
    /// Whether it keeps to its bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Manifest { head, changes, .. } => {
                require(head.len() <= HEAD_BYTES_MAX, "its head is too large")?;
                let count = changes.as_ref().map_or(0, Vec::len);
                require(count <= CHANGES_MAX, "it has too many changes")?;
                let bytes: usize = changes
                    .iter()
                    .flatten()
                    .map(|(key, versions)| key.len() + versions.len())
                    .sum();
                require(bytes <= CHANGES_BYTES_MAX, "its changes are too large")
            }
            Self::Have(_, blocks) => require(
                blocks.ranges().len() <= HAVE_RANGES_MAX,
                "it names too many ranges",
            ),
            Self::Leaving => Ok(()),
        }
    }
}

impl BlockRequest {
    /// Whether it names at least one block and no more than allowed.
    pub fn check(&self) -> Result<(), &'static str> {
        let blocks = self.end.checked_sub(self.start);
        require(
            blocks.is_some_and(|blocks| (1..=REQUEST_BLOCKS_MAX).contains(&blocks)),
            "it names no blocks or too many",
        )
    }
}

impl BlockAnswer {
    /// Whether it keeps to its bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Data(bytes) | Self::WrongSize { proof: bytes, .. } => require(
                bytes.len() <= BLOCK_ANSWER_BYTES_MAX,
                "it has more bytes than the blocks asked for",
            ),
            Self::DontHave(have) => have.check(),
            Self::Busy => Ok(()),
        }
    }
}
