//! Heads: a writer's signed word that a root is the state after what it has seen.

use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey},
};

use super::{Certificate, ClusterKeys, Topic, keys::is_signed, message::Message};
use crate::manifest::{CausalContext, HybridTime, NodeHash, WriterNumber};

/// A head from further in the future than this (5 minutes) is refused.
pub const HEAD_FUTURE_MAX_NS: u64 = 300 * 1_000_000_000;

/// Bytes of an encoded head at most: room for some three thousand writers.
const ENCODED_BYTES_MAX: usize = 64 * 1024;

const CONTEXT: &str = "p2pfs head v1";
const SEQUENCE_ZERO: &str = "sequences count from 1";
const TOO_LARGE: &str = "longer than 64 KiB";

/// A signed head. Its `covers` includes its own (writer, sequence) when it brings changes of its own, and does not when
/// it only merges or is the first, empty one: heads with equal `covers` then have equal roots, and need no merge.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// The cluster.
    pub topic: Topic,
    /// Key epoch.
    pub epoch: u64,
    /// The state.
    pub root: NodeHash,
    /// What the state has seen.
    pub covers: CausalContext,
    /// Who signed.
    pub writer: WriterNumber,
    /// Which of its heads this is, from 1.
    pub sequence: u64,
    /// When.
    pub time: HybridTime,
    /// Its right to sign.
    pub certificate: Certificate,
    /// By the node's own key (Ed25519) over everything above.
    #[serde(with = "serde_bytes")]
    pub signature: [u8; 64],
}

/// Why a head is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeadError {
    /// Malformed or too large.
    #[error("the head is malformed: {0}")]
    Malformed(String),
    /// Another cluster or epoch.
    #[error("the head is of another cluster")]
    Foreign,
    /// Its certificate doesn't hold.
    #[error(transparent)]
    Certificate(#[from] super::CertificateError),
    /// Its signature, or the writer number, doesn't hold.
    #[error("the head's signature is not valid")]
    Signature,
    /// From the future.
    #[error(
        "the head is {seconds} s in the future: check the clocks of this machine and of {peer}"
    )]
    Future {
        /// How far.
        seconds: u64,
        /// Who signed it.
        peer: PeerId,
    },
}

impl WriterNumber {
    /// The number of a node.
    pub fn of(peer: &PeerId) -> Self {
        let hash = blake3::hash(&peer.to_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_be_bytes(first))
    }
}

impl Head {
    /// Signs a head. The sequence must be durable before.
    ///
    /// # Errors
    /// If `verify` would refuse the result on account of the node, the certificate's owner, the sequence or the size.
    #[allow(clippy::too_many_arguments)]
    pub fn sign(
        keys: &ClusterKeys,
        node: &Keypair,
        certificate: &Certificate,
        root: NodeHash,
        covers: CausalContext,
        sequence: u64,
        time: HybridTime,
    ) -> Result<Self, HeadError> {
        let peer = node.public().to_peer_id();
        if certificate.peer() != peer || ed25519_key(&peer).is_none() {
            return Err(HeadError::Signature);
        }
        if sequence == 0 {
            return Err(HeadError::Malformed(SEQUENCE_ZERO.into()));
        }
        let mut head = Self {
            topic: keys.topic(),
            epoch: keys.epoch(),
            root,
            covers,
            writer: WriterNumber::of(&peer),
            sequence,
            time,
            certificate: certificate.clone(),
            signature: [0; 64],
        };
        head.signature = node
            .sign(&head.message(keys))
            .ok()
            .and_then(|signature| signature.try_into().ok())
            .ok_or(HeadError::Signature)?;
        if head.encode().len() > ENCODED_BYTES_MAX {
            return Err(HeadError::Malformed(TOO_LARGE.into()));
        }
        Ok(head)
    }

    /// Checks everything but whether its nodes are good. `now_ns` since 1970.
    pub fn verify(&self, keys: &ClusterKeys, now_ns: u64) -> Result<(), HeadError> {
        if self.topic != keys.topic() || self.epoch != keys.epoch() {
            return Err(HeadError::Foreign);
        }
        if self.sequence == 0 {
            return Err(HeadError::Malformed(SEQUENCE_ZERO.into()));
        }
        self.certificate.verify(keys, now_ns)?;
        let peer = self.certificate.peer();
        let signed = ed25519_key(&peer)
            .is_some_and(|key| is_signed(&key, &self.message(keys), &self.signature));
        if !signed || self.writer != WriterNumber::of(&peer) {
            return Err(HeadError::Signature);
        }
        // Last, so that only a real member's clock is ever complained about.
        let ahead_ns = self.time.0.saturating_sub(now_ns);
        if ahead_ns > HEAD_FUTURE_MAX_NS {
            let seconds = ahead_ns / 1_000_000_000;
            return Err(HeadError::Future { seconds, peer });
        }
        Ok(())
    }

    /// Canonical encoding, at most 64 KiB for any head that was signed or decoded here.
    pub fn encode(&self) -> Vec<u8> {
        cbor4ii::serde::to_vec(Vec::new(), self)
            .expect("encoding into memory fails only when memory runs out")
    }

    /// Decodes, re-encodes and compares.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(HeadError::Malformed(TOO_LARGE.into()));
        }
        let head: Self = cbor4ii::serde::from_slice(bytes)
            .map_err(|error| HeadError::Malformed(error.to_string()))?;
        if head.encode() != bytes {
            return Err(HeadError::Malformed("not in canonical form".into()));
        }
        Ok(head)
    }

    fn message(&self, keys: &ClusterKeys) -> Vec<u8> {
        let covers: Vec<u8> = self
            .covers
            .numbers()
            .flat_map(|(writer, number)| [writer.0.to_le_bytes(), number.to_le_bytes()])
            .flatten()
            .collect();
        Message::new(CONTEXT)
            .bytes(&self.topic.0)
            .number(self.epoch)
            .bytes(&self.root.0)
            .bytes(&covers)
            .number(self.writer.0)
            .number(self.sequence)
            .number(self.time.0)
            .bytes(&self.certificate.signed_bytes(keys))
            .finish()
    }
}

/// The Ed25519 key that such a node's peer id contains; none for ids of other kinds.
fn ed25519_key(peer: &PeerId) -> Option<[u8; 32]> {
    const IDENTITY_HASH: u64 = 0;
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_HASH {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    // Guards against a second encoding of the same key, which would be a second writer.
    if key.to_peer_id() != *peer {
        return None;
    }
    Some(key.try_into_ed25519().ok()?.to_bytes())
}

#[cfg(test)]
mod tests;
