//! The chain of keys: write secret → read secret → member key → topic.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

/// Contexts of BLAKE3's key derivation; the material is the read secret and the key epoch (u64, little-endian).
const MEMBER_KEY_CONTEXT: &str = "p2pfs member key v1";
const SEALING_KEY_CONTEXT: &str = "p2pfs sealing key v1";
const CONTENT_INDEX_KEY_CONTEXT: &str = "p2pfs content index key v1";
const NODE_INDEX_KEY_CONTEXT: &str = "p2pfs node index key v1";

/// The only key epoch so far; removing members will raise it.
const EPOCH: u64 = 0;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads and writes.
    ReadWrite,
    /// Reads only.
    ReadOnly,
}

/// Public key of the member key: what trackers see of a cluster. `Display` is hex.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Topic(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// All that a member holds. Wiped from memory when dropped; `Debug` prints the topic and role alone.
#[derive(Clone)]
pub struct ClusterKeys {
    /// Only a read-write id has it.
    write: Option<SigningKey>,
    /// Public key of `write`, known to members only.
    read_secret: Zeroizing<[u8; 32]>,
    member: SigningKey,
    sealing: Zeroizing<[u8; 32]>,
    content_index: Zeroizing<[u8; 32]>,
    node_index: Zeroizing<[u8; 32]>,
}

impl ClusterKeys {
    /// Derives all keys from the secret of an id: the write secret or the read secret, by role.
    pub(super) fn derive(role: Role, secret: &[u8; 32]) -> Self {
        let write = match role {
            Role::ReadWrite => Some(SigningKey::from_bytes(secret)),
            Role::ReadOnly => None,
        };
        let read_secret = Zeroizing::new(match &write {
            Some(key) => key.verifying_key().to_bytes(),
            None => *secret,
        });
        let mut material = Zeroizing::new([0; 40]);
        material[..32].copy_from_slice(&*read_secret);
        material[32..].copy_from_slice(&EPOCH.to_le_bytes());
        let derive = |context| Zeroizing::new(blake3::derive_key(context, &*material));
        Self {
            write,
            read_secret,
            member: SigningKey::from_bytes(&derive(MEMBER_KEY_CONTEXT)),
            sealing: derive(SEALING_KEY_CONTEXT),
            content_index: derive(CONTENT_INDEX_KEY_CONTEXT),
            node_index: derive(NODE_INDEX_KEY_CONTEXT),
        }
    }

    /// What the holder may do.
    pub fn role(&self) -> Role {
        match self.write {
            Some(_) => Role::ReadWrite,
            None => Role::ReadOnly,
        }
    }

    /// The topic.
    pub fn topic(&self) -> Topic {
        Topic(self.member.verifying_key().to_bytes())
    }

    /// Key epoch; 0 today.
    pub fn epoch(&self) -> u64 {
        EPOCH
    }

    /// Signs with the member key (for trackers' challenges and membership proofs; the callers build the contexts).
    ///
    /// Every message must start with a context string of its purpose that is no prefix of another purpose's, or a
    /// signature given for one could pass for the other. Taken: `p2pfs membership proof v1`.
    pub fn sign_as_member(&self, message: &[u8]) -> [u8; 64] {
        self.member.sign(message).to_bytes()
    }

    /// The keyed hash under which trackers index a content.
    pub fn sealed_content_key(&self, content: &crate::content::ContentId) -> [u8; 32] {
        *blake3::keyed_hash(&self.content_index, &content.0).as_bytes()
    }

    /// The keyed hash under which trackers keep a manifest node.
    pub fn sealed_node_key(&self, node: &crate::manifest::NodeHash) -> [u8; 32] {
        *blake3::keyed_hash(&self.node_index, &node.0).as_bytes()
    }

    /// Signs with the write key, if the holder may write.
    pub(super) fn sign_as_owner(&self, message: &[u8]) -> Option<[u8; 64]> {
        Some(self.write.as_ref()?.sign(message).to_bytes())
    }

    /// Whether the write key signed this. Every member can tell: its public key is the read secret.
    pub(super) fn is_signed_by_owner(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        is_signed(&self.read_secret, message, signature)
    }

    pub(super) fn read_secret(&self) -> &Zeroizing<[u8; 32]> {
        &self.read_secret
    }

    pub(super) fn sealing_key(&self) -> &[u8; 32] {
        &self.sealing
    }
}

impl fmt::Debug for ClusterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterKeys")
            .field("topic", &format_args!("{}", self.topic()))
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}

/// Strict Ed25519 verification: refuses weak keys and all but one encoding of a signature.
pub(super) fn is_signed(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(public)
        .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
        .is_ok()
}
