//! What the registry leaves on disk, so that a restart forgets nothing.
//!
//! ```text
//! key                                          value
//! 1 │ topic (32) │ number (4, big-endian)       1 │ CBOR {peer, addresses, withheld}
//! 2 │ topic (32) │ number (4) │ sealed key (32) empty: the record is its key
//! 3 │ topic (32) │ peer id                      1 │ CBOR {at_ms, sealed}
//! 4 │ topic (32) │ sealed key (32)              1 │ CBOR {at_ms, bytes}
//! 5 │ topic (32) │ sealed key (32)              1 │ sealed manifest node
//! ```
//!
//! Peers sort before what they hold, so that a single pass in key order can check that each key's holder exists. What is
//! told of a node (4) is written and deleted together with its bytes (5), which come last because they are not read at the
//! start; where a crash separates them, the bytes are gone. That a node was asked for again is not written down: after a
//! restart the members ask for all of theirs again. The first byte of a value is the format's version; a record of another
//! version is refused like a damaged one: peers tell everything again, and a head or node that was lost is handed in again
//! by whoever has it.

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::topic::{HeadState, PeerNo, PeerState};
use crate::protocol::{
    ADDRESSES_MAX, HEAD_BYTES_MAX, NODE_BYTES_MAX, SealedKey, Topic, parse_address, parse_peer,
};

const PEER: u8 = 1;
const KEY: u8 = 2;
const HEAD: u8 = 3;
const NODE: u8 = 4;
const SEALED_NODE: u8 = 5;
const VERSION: u8 = 1;

/// A change of the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// Write a record.
    Put {
        /// Its key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Delete a record.
    Delete {
        /// Its key.
        key: Vec<u8>,
    },
    /// Delete all records whose keys begin so.
    DeletePrefix {
        /// With what.
        prefix: Vec<u8>,
    },
}

/// Why a record was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It can't be read, or contradicts another.
    #[error("the record is damaged or of another version")]
    Damaged,
    /// Its peer isn't there.
    #[error("the record belongs to a peer that is not there")]
    Orphan,
    /// A limit is lower than it was.
    #[error("the record exceeds a limit")]
    Full,
}

#[derive(Serialize, Deserialize)]
struct PeerRecord {
    peer: ByteBuf,
    addresses: Vec<ByteBuf>,
    withheld: bool,
}

#[derive(Serialize, Deserialize)]
struct HeadRecord {
    at_ms: u64,
    sealed: ByteBuf,
}

#[derive(Serialize, Deserialize)]
struct NodeRecord {
    at_ms: u64,
    bytes: u32,
}

/// A record that was read.
pub(super) enum Record {
    Peer {
        topic: Topic,
        no: PeerNo,
        entry: PeerState,
    },
    Key {
        topic: Topic,
        no: PeerNo,
        key: SealedKey,
    },
    Head {
        topic: Topic,
        peer: PeerId,
        head: HeadState,
    },
    Node {
        topic: Topic,
        key: SealedKey,
        at_ms: u64,
        bytes: u32,
    },
}

fn key_of(tag: u8, topic: &Topic, rest: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend(topic.0);
    for part in rest {
        key.extend(*part);
    }
    key
}

fn value_of<T: Serialize>(record: &T) -> Vec<u8> {
    // Encoding these plain structs into memory has no way to fail; an empty value would be refused when read.
    cbor4ii::serde::to_vec(vec![VERSION], record).unwrap_or_default()
}

pub(super) fn put_peer(topic: &Topic, no: PeerNo, entry: &PeerState) -> Delta {
    let addresses = entry.addresses.iter().map(|a| ByteBuf::from(a.to_vec()));
    Delta::Put {
        key: key_of(PEER, topic, &[&no.to_be_bytes()]),
        value: value_of(&PeerRecord {
            peer: ByteBuf::from(entry.peer.to_bytes()),
            addresses: addresses.collect(),
            withheld: entry.dial_due_ms.is_some(),
        }),
    }
}

pub(super) fn delete_peer(topic: &Topic, no: PeerNo) -> Delta {
    Delta::Delete {
        key: key_of(PEER, topic, &[&no.to_be_bytes()]),
    }
}

pub(super) fn put_key(topic: &Topic, no: PeerNo, key: &SealedKey) -> Delta {
    Delta::Put {
        key: key_of(KEY, topic, &[&no.to_be_bytes(), &key.0]),
        value: Vec::new(),
    }
}

pub(super) fn delete_key(topic: &Topic, no: PeerNo, key: &SealedKey) -> Delta {
    Delta::Delete {
        key: key_of(KEY, topic, &[&no.to_be_bytes(), &key.0]),
    }
}

pub(super) fn delete_keys(topic: &Topic, no: PeerNo) -> Delta {
    Delta::DeletePrefix {
        prefix: key_of(KEY, topic, &[&no.to_be_bytes()]),
    }
}

pub(super) fn put_head(topic: &Topic, peer: &PeerId, head: &HeadState) -> Delta {
    Delta::Put {
        key: key_of(HEAD, topic, &[&peer.to_bytes()]),
        value: value_of(&HeadRecord {
            at_ms: head.at_ms,
            sealed: ByteBuf::from(head.sealed.clone()),
        }),
    }
}

pub(super) fn delete_head(topic: &Topic, peer: &PeerId) -> Delta {
    Delta::Delete {
        key: key_of(HEAD, topic, &[&peer.to_bytes()]),
    }
}

pub(super) fn delete_heads(topic: &Topic) -> Delta {
    Delta::DeletePrefix {
        prefix: key_of(HEAD, topic, &[]),
    }
}

/// The key of the record that has a manifest node's bytes.
pub fn sealed_node_key(topic: &Topic, key: &SealedKey) -> Vec<u8> {
    key_of(SEALED_NODE, topic, &[&key.0])
}

/// The first byte of the keys of all such records: [`super::Registry::load`] takes those before it.
pub fn sealed_nodes_prefix() -> [u8; 1] {
    [SEALED_NODE]
}

/// The bytes in such a record.
pub fn sealed_node(value: &[u8]) -> Option<&[u8]> {
    let (&version, sealed) = value.split_first()?;
    (version == VERSION).then_some(sealed)
}

/// The other record that is deleted with one that was refused.
pub fn companion(key: &[u8]) -> Option<Vec<u8>> {
    let (&tag, rest) = key.split_first()?;
    (tag == NODE).then(|| [&[SEALED_NODE], rest].concat())
}

pub(super) fn put_node(topic: &Topic, key: &SealedKey, at_ms: u64, sealed: &[u8]) -> [Delta; 2] {
    let about = NodeRecord {
        at_ms,
        bytes: u32::try_from(sealed.len()).unwrap_or(u32::MAX),
    };
    [
        Delta::Put {
            key: key_of(NODE, topic, &[&key.0]),
            value: value_of(&about),
        },
        Delta::Put {
            key: sealed_node_key(topic, key),
            value: [&[VERSION], sealed].concat(),
        },
    ]
}

pub(super) fn delete_node(topic: &Topic, key: &SealedKey) -> [Delta; 2] {
    [
        Delta::Delete {
            key: key_of(NODE, topic, &[&key.0]),
        },
        Delta::Delete {
            key: sealed_node_key(topic, key),
        },
    ]
}

pub(super) fn delete_nodes(topic: &Topic) -> [Delta; 2] {
    [SEALED_NODE, NODE].map(|tag| Delta::DeletePrefix {
        prefix: key_of(tag, topic, &[]),
    })
}

/// Reads a record.
pub(super) fn parse(key: &[u8], value: &[u8]) -> Result<Record, RecordError> {
    parse_any(key, value).ok_or(RecordError::Damaged)
}

fn parse_any(key: &[u8], value: &[u8]) -> Option<Record> {
    let (&tag, key) = key.split_first()?;
    let (topic, key) = key.split_first_chunk::<32>()?;
    let topic = Topic(*topic);
    match tag {
        PEER => {
            let no = PeerNo::from_be_bytes(key.try_into().ok()?);
            let record: PeerRecord = decode(value)?;
            let mut entry = PeerState::new(parse_peer(&record.peer)?);
            if record.addresses.len() > ADDRESSES_MAX {
                return None;
            }
            let addresses: Option<Vec<Multiaddr>> = record
                .addresses
                .iter()
                .map(|bytes| parse_address(bytes, &entry.peer))
                .collect();
            entry.addresses = addresses?;
            // Which moment is the loader's to say.
            entry.dial_due_ms = record.withheld.then_some(0);
            Some(Record::Peer { topic, no, entry })
        }
        KEY => {
            let (no, key) = key.split_first_chunk::<4>()?;
            Some(Record::Key {
                topic,
                no: PeerNo::from_be_bytes(*no),
                key: SealedKey(key.try_into().ok()?),
            })
        }
        HEAD => {
            let peer = parse_peer(key)?;
            let record: HeadRecord = decode(value)?;
            let sealed = record.sealed.into_vec();
            (sealed.len() <= HEAD_BYTES_MAX).then_some(Record::Head {
                topic,
                peer,
                head: HeadState {
                    sealed,
                    at_ms: record.at_ms,
                },
            })
        }
        NODE => {
            let record: NodeRecord = decode(value)?;
            let fits = (1..=NODE_BYTES_MAX).contains(&(record.bytes as usize));
            fits.then_some(Record::Node {
                topic,
                key: SealedKey(key.try_into().ok()?),
                at_ms: record.at_ms,
                bytes: record.bytes,
            })
        }
        _ => None,
    }
}

fn decode<T: serde::de::DeserializeOwned>(value: &[u8]) -> Option<T> {
    let (&version, body) = value.split_first()?;
    (version == VERSION).then_some(())?;
    crate::framing::decode(body).ok()
}
