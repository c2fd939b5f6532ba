//! Messages between members. Length-prefixed CBOR; every list and blob has the bound that its doc names.

use std::{collections::BTreeSet, fmt, marker::PhantomData};

use bytes::Bytes;
use libp2p::StreamProtocol;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_bytes::ByteBuf;

use crate::{
    cluster::{Certificate, MembershipProof, Nonce},
    content::{BLOCK_BYTES, BlockSet, Object, nodes_bytes},
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
/// Most objects that one request asks to be kept.
pub const KEPT_MAX: usize = 256;
/// Most heads in one answer.
pub const HEADS_MAX: usize = 256;
/// Most blocks of one block request (1 MiB).
pub const REQUEST_BLOCKS_MAX: u64 = 16;
/// Most blocks whose hashes are asked for at a time: 64 KiB of them, for 64 MiB.
pub const TREE_BLOCKS_MAX: u64 = 1024;
/// Most contents of one batch.
pub const BATCH_OBJECTS_MAX: usize = 256;
/// Most bytes of the contents of one batch together.
pub const BATCH_BYTES_MAX: u64 = 1024 * 1024;
/// Most ranges of a have-answer; what is beyond is left out.
pub const HAVE_RANGES_MAX: usize = 1024;

/// The protocol version that [`PeerHello`] carries.
pub const PROTOCOL: u32 = 4;
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

/// The listener's first message of the handshake: nothing of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Random.
    #[serde(with = "serde_bytes")]
    pub nonce: Nonce,
}

/// The dialer's answer: it proves first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialerProof {
    /// Random.
    #[serde(with = "serde_bytes")]
    pub nonce: Nonce,
    /// Of the dialer's membership.
    pub proof: MembershipProof,
}

/// What the listener says only to a proven member; [`PeerHello`] is the dialer's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerProof {
    /// Of the listener's membership.
    pub proof: MembershipProof,
    /// Of itself.
    pub hello: PeerHello,
}

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
    /// It keeps every content. Peers that don't know this pass over it, and say nothing of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_all: bool,
    /// It understands [`SyncRequest::Keep`]; no other peer is to be asked that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub promises: bool,
    /// It understands [`SyncRequest::Tree`] and [`SyncRequest::Make`]; no other peer is to be asked that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trees: bool,
    /// It knows of no other connection between the two: what the other side may still take for one is dead. Said by who dials.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sole: bool,
}

/// From the side that opened a sync stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncCall {
    /// A question, with the number that its answer will carry; not 0.
    Request(u64, SyncRequest),
    /// No question.
    Push(Push),
}

/// From the other side of a sync stream: the answer to the question of this number. The number 0 says why the stream ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReply(pub u64, pub SyncAnswer);

/// A request on a sync stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncRequest {
    /// The heads that no other head covers.
    Heads,
    /// Manifest nodes, at most [`NAMED_MAX`].
    Nodes(#[serde(deserialize_with = "at_most::<_, _, NAMED_MAX>")] Vec<NodeHash>),
    /// Which of these objects are there, at most [`NAMED_MAX`].
    Have(#[serde(deserialize_with = "at_most::<_, _, NAMED_MAX>")] Vec<Object>),
    /// Current load, and addresses of other members.
    Status,
    /// Promise to keep these objects so long, at most [`KEPT_MAX`]: the one who asks is about to drop them.
    Keep {
        /// Which.
        #[serde(deserialize_with = "at_most::<_, _, KEPT_MAX>")]
        objects: Vec<Object>,
        /// For how many seconds.
        for_s: u64,
    },
    /// The inner nodes above these blocks, at most [`TREE_BLOCKS_MAX`].
    Tree {
        /// Of which object.
        object: Object,
        /// The first block.
        start: u64,
        /// The block after the last.
        end: u64,
    },
    /// Make a content out of an older version, whole there, and what differs, from who asks.
    Make {
        /// The content.
        new: Object,
        /// The older version.
        old: Object,
        /// That who asks may write.
        certificate: Certificate,
    },
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
    Heads(#[serde(deserialize_with = "at_most::<_, _, HEADS_MAX>")] Vec<ByteBuf>),
    /// Encodings in the order asked, empty for a node that isn't there; may stop early where the message would grow past
    /// its bound, and the rest is asked for again.
    Nodes(#[serde(deserialize_with = "at_most::<_, _, NAMED_MAX>")] Vec<ByteBuf>),
    /// In the order asked.
    Have(#[serde(deserialize_with = "at_most::<_, _, NAMED_MAX>")] Vec<Have>),
    /// Load and members.
    Status {
        /// Block answers being worked on now.
        load: u32,
        /// Members and where they listen: (peer id bytes, multiaddr bytes), at most 64 of 16.
        #[serde(deserialize_with = "members")]
        members: Vec<(ByteBuf, Vec<ByteBuf>)>,
    },
    /// For each object asked for, in order, whether it is whole here and the promise is on disk.
    Keep(#[serde(deserialize_with = "at_most::<_, _, KEPT_MAX>")] Vec<bool>),
    /// The nodes in pre-order ([`crate::content::encode_nodes`]); nothing where they aren't all there.
    Tree(ByteBuf),
    /// Whether the content is being made, or whole.
    Make(bool),
    /// Could not be answered; at most 256 bytes.
    Error(String),
}

/// A message that wants no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Push {
    /// MANIFEST_UPDATED.
    Manifest {
        /// The encoded head.
        head: ByteBuf,
        /// The root that `changes` apply to.
        base: NodeHash,
        /// Changed keys with their encoded versions (empty: deleted); left out when larger than 256 KiB, or more than
        /// [`CHANGES_MAX`].
        changes: Option<Vec<(ByteBuf, ByteBuf)>>,
    },
    /// Blocks that this peer has newly verified.
    Have(Object, BlockSet),
    /// This peer goes away now.
    Leaving,
}

/// From the side that opened a block stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockCall {
    /// A request, with the number that its answer will carry.
    Request(u64, BlockRequest),
    /// Whole small contents, with the number that their answer will carry.
    Batch(u64, BatchRequest),
    /// The answer is no longer wanted. Comes too late more often than not, which does no harm.
    Cancel(u64),
}

/// From the other side of a block stream: what comes before the bytes of an answer, if there are any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockHead {
    /// [`BlockAnswer::Data`]: the bytes follow.
    Data {
        /// Of the request.
        number: u64,
        /// Bytes that follow, at most [`BLOCK_ANSWER_BYTES_MAX`].
        length: u32,
    },
    /// [`BlockAnswer::WrongSize`]: the proof follows.
    WrongSize {
        /// Of the request.
        number: u64,
        /// The true size.
        size: u64,
        /// Bytes that follow, at most [`BLOCK_ANSWER_BYTES_MAX`].
        length: u32,
    },
    /// [`BlockAnswer::Batch`]: the contents that are there follow, one after the other.
    Batch {
        /// Of the request.
        number: u64,
        /// A byte for each content in the order asked: 1 where it follows, 0 where it isn't there.
        here: ByteBuf,
    },
    /// [`BlockAnswer::DontHave`].
    DontHave {
        /// Of the request.
        number: u64,
        /// What is there.
        have: Have,
    },
    /// [`BlockAnswer::Busy`].
    Busy {
        /// Of the request.
        number: u64,
    },
    /// The request was taken back in time.
    Cancelled {
        /// Of the request.
        number: u64,
    },
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

/// Whole small contents, asked for without asking first whether they are there: at most [`BATCH_OBJECTS_MAX`] of one block
/// each, none twice, at most [`BATCH_BYTES_MAX`] together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRequest(
    #[serde(deserialize_with = "at_most::<_, _, BATCH_OBJECTS_MAX>")] pub Vec<Object>,
);

/// An answer on a block stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockAnswer {
    /// Proof and bytes, as [`crate::content::encode_range`] writes them.
    Data(Bytes),
    /// Answers a [`BatchRequest`].
    Batch {
        /// Which of the contents are there, in the order asked.
        here: Vec<bool>,
        /// The bytes of those, one after the other. A content of one block proves itself.
        data: Bytes,
    },
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

/// A list that is refused as soon as it has more than `N` items: an empty byte string takes one byte on the wire and 24 in
/// memory, so a bound on the bytes of a message is none on what it unfolds to.
struct AtMost<T, const N: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> de::Visitor<'de> for Items<T, N> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {N} items")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() >= N {
                        return Err(de::Error::invalid_length(N + 1, &self));
                    }
                    items.push(item);
                }
                Ok(items)
            }
        }
        deserializer
            .deserialize_seq(Items::<T, N>(PhantomData))
            .map(Self)
    }
}

fn at_most<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    AtMost::<T, N>::deserialize(deserializer).map(|list| list.0)
}

/// A list of peers with their addresses, both bounded.
fn members<'de, D>(deserializer: D) -> Result<Vec<(ByteBuf, Vec<ByteBuf>)>, D::Error>
where
    D: Deserializer<'de>,
{
    type Member = (ByteBuf, AtMost<ByteBuf, ADDRESSES_MAX>);
    let members = AtMost::<Member, MEMBERS_MAX>::deserialize(deserializer)?.0;
    let plain = |(peer, addresses): Member| (peer, addresses.0);
    Ok(members.into_iter().map(plain).collect())
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
            Self::Tree { object, start, end } => {
                let fits = start < end && *end <= object.blocks() && end - start <= TREE_BLOCKS_MAX;
                return require(fits, "it asks for hashes of blocks that can't be");
            }
            Self::Make { .. } => 2,
            Self::Have(objects) => objects.len(),
            Self::Keep { objects, .. } => {
                return require(
                    objects.len() <= KEPT_MAX,
                    "it asks for too many objects to be kept",
                );
            }
        };
        require(named <= NAMED_MAX, "it names too many nodes or objects")
    }
}

impl Have {
    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }

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
            (SyncRequest::Tree { object, start, end }, Self::Tree(nodes)) => require(
                nodes.is_empty() || nodes.len() as u64 == nodes_bytes(*object, *start..*end),
                "it has another number of hashes than was asked for",
            ),
            (SyncRequest::Make { .. }, Self::Make(_)) => Ok(()),
            (SyncRequest::Keep { objects, .. }, Self::Keep(promised)) => require(
                promised.len() == objects.len(),
                "it has another number of objects than was asked for",
            ),
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

impl BatchRequest {
    /// Whether it keeps to its bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        let objects = &self.0;
        require(
            (1..=BATCH_OBJECTS_MAX).contains(&objects.len()),
            "it names no contents or too many",
        )?;
        require(
            objects
                .iter()
                .all(|object| (1..=BLOCK_BYTES).contains(&object.size)),
            "it names a content that is empty or has more than one block",
        )?;
        require(
            objects.iter().map(|object| object.size).sum::<u64>() <= BATCH_BYTES_MAX,
            "its contents are too large together",
        )?;
        let mut named = BTreeSet::new();
        require(
            objects.iter().all(|object| named.insert(object.content)),
            "it names a content twice",
        )
    }

    /// How many bytes follow a head that says so; an error if it answers another number of contents, or says anything
    /// but yes and no.
    pub fn bytes_of(&self, here: &[u8]) -> Result<u64, &'static str> {
        require(
            here.len() == self.0.len() && here.iter().all(|said| *said <= 1),
            "it answers another number of contents than was asked for",
        )?;
        let sent = self.0.iter().zip(here).filter(|(_, said)| **said == 1);
        Ok(sent.map(|(object, _)| object.size).sum())
    }
}

impl BlockAnswer {
    /// Whether it keeps to its bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Batch { here, data } => require(
                here.len() <= BATCH_OBJECTS_MAX && data.len() as u64 <= BATCH_BYTES_MAX,
                "it has more contents than a batch may have",
            ),
            Self::Data(bytes) | Self::WrongSize { proof: bytes, .. } => require(
                bytes.len() <= BLOCK_ANSWER_BYTES_MAX,
                "it has more bytes than the blocks asked for",
            ),
            Self::DontHave(have) => have.check(),
            Self::Busy => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply with a list of `count` empty items, encoded.
    fn reply(variant: &str, count: u32) -> Vec<u8> {
        let mut bytes = vec![0x82, 1, 0xa1, 0x60 | variant.len() as u8];
        bytes.extend(variant.as_bytes());
        bytes.push(0x9a);
        bytes.extend(count.to_be_bytes());
        bytes.extend(vec![0x40; count as usize]);
        bytes
    }

    #[test]
    fn a_message_of_many_small_items_is_refused_before_it_unfolds() {
        let decode = |bytes: &[u8]| cbor4ii::serde::from_slice::<SyncReply>(bytes);
        for (variant, max) in [("Heads", HEADS_MAX), ("Nodes", NAMED_MAX)] {
            assert!(decode(&reply(variant, max as u32)).is_ok());
            let error = decode(&reply(variant, 4_000_000)).unwrap_err();
            assert!(error.to_string().contains("at most"), "{error}");
        }
    }

    #[test]
    fn hashes_are_asked_for_within_the_content_and_answered_in_full_or_not_at_all() {
        let object = Object {
            content: crate::content::ContentId([1; 32]),
            size: 5000 * BLOCK_BYTES + 1,
        };
        let ask = |start, end| SyncRequest::Tree { object, start, end };
        assert_eq!(ask(5000, 5001).check(), Ok(()));
        assert_eq!(ask(7, 7 + TREE_BLOCKS_MAX).check(), Ok(()));
        for (start, end) in [(5000, 5002), (7, 7), (9, 3), (7, 8 + TREE_BLOCKS_MAX)] {
            assert!(ask(start, end).check().is_err(), "{start}..{end}");
        }
        let endless = SyncRequest::Tree {
            object: Object {
                size: u64::MAX,
                ..object
            },
            start: u64::MAX / BLOCK_BYTES,
            end: u64::MAX / BLOCK_BYTES + 1,
        };
        assert_eq!(endless.check(), Ok(()));
        let answer = |length: u64| SyncAnswer::Tree(ByteBuf::from(vec![0; length as usize]));
        let due = nodes_bytes(object, 7..10);
        for (length, holds) in [(0, true), (due, true), (due - 1, false), (due + 64, false)] {
            let checked = answer(length).check(&ask(7, 10));
            assert_eq!(checked.is_ok(), holds, "{length}");
        }
        assert!(answer(0).check(&SyncRequest::Heads).is_err());
        assert!(answer(64).check(&endless).is_err());
    }

    #[test]
    fn batches_are_bounded_and_so_are_their_answers() {
        let object = |number: usize, size: u64| {
            let mut content = [0; 32];
            content[..8].copy_from_slice(&(number as u64).to_le_bytes());
            Object {
                content: crate::content::ContentId(content),
                size,
            }
        };
        let batch = |count: usize, size: u64| {
            BatchRequest((0..count).map(|number| object(number, size)).collect())
        };
        assert_eq!(batch(256, 4096).check(), Ok(()));
        for refused in [
            batch(0, 1),
            batch(257, 1),
            batch(1, 0),
            batch(1, BLOCK_BYTES + 1),
            batch(17, BLOCK_BYTES),
            BatchRequest(vec![object(1, 1), object(1, 2)]),
        ] {
            assert!(refused.check().is_err(), "{} named", refused.0.len());
        }
        let encoded = cbor4ii::serde::to_vec(Vec::new(), &batch(257, 1)).unwrap();
        assert!(cbor4ii::serde::from_slice::<BatchRequest>(&encoded).is_err());
        let asked = batch(3, 100);
        assert_eq!(asked.bytes_of(&[1, 0, 1]), Ok(200));
        for answer in [&[1, 1][..], &[1, 1, 1, 1], &[1, 2, 0]] {
            assert!(asked.bytes_of(answer).is_err());
        }
    }

    #[test]
    fn addresses_of_a_member_are_bounded_while_they_are_read() {
        let status = |addresses: usize| SyncAnswer::Status {
            load: 1,
            members: vec![(ByteBuf::new(), vec![ByteBuf::new(); addresses])],
        };
        let decode = |answer: &SyncAnswer| {
            let bytes = cbor4ii::serde::to_vec(Vec::new(), answer).unwrap();
            cbor4ii::serde::from_slice::<SyncAnswer>(&bytes)
        };
        assert_eq!(decode(&status(16)).unwrap(), status(16));
        assert!(decode(&status(17)).is_err());
    }
}
