//! Identities and membership: cluster ids, the keys that derive from them, proofs, certificates, heads, sealing.
//!
//! Pure: no clock, no I/O; randomness comes in as an argument.

mod certificate;
mod head;
mod id;
mod keys;
mod message;
mod proof;
mod seal;
#[cfg(test)]
pub(crate) mod testing;

pub use certificate::{Certificate, CertificateError};
pub use head::{HEAD_FUTURE_MAX_NS, Head, HeadError};
pub use id::{ClusterId, ClusterName, IdError, ParsedCluster};
pub use keys::{ClusterKeys, Role, Topic};
pub use proof::{MembershipProof, Nonce, ProofError, ProofRole};
pub use seal::{SealError, SealKind};
