//! Sealing: what trackers keep for a cluster is XChaCha20-Poly1305 under a key derived from the read secret.
//!
//! A sealed record is the 24-byte nonce, the ciphertext and the 16-byte tag. Associated data: topic, kind, key.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};

use super::ClusterKeys;

const NONCE_BYTES: usize = 24;

/// What is sealed; part of the associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealKind {
    /// A head.
    Head,
    /// A manifest node.
    Node,
}

/// Not sealed by this cluster, or tampered with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the sealed record was not made by this cluster or is damaged")]
pub struct SealError;

impl ClusterKeys {
    /// Seals; `key` is what the record is stored under, `nonce` is random. The nonce is in front of the result.
    pub fn seal(&self, kind: SealKind, key: &[u8], nonce: [u8; 24], plain: &[u8]) -> Vec<u8> {
        let payload = Payload {
            msg: plain,
            aad: &self.associated_data(kind, key),
        };
        let sealed = XChaCha20Poly1305::new(self.sealing_key().into())
            .encrypt(&nonce.into(), payload)
            .expect("the cipher takes any record below 256 GiB");
        [&nonce[..], &sealed].concat()
    }

    /// Opens.
    pub fn open(&self, kind: SealKind, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError)?;
        let payload = Payload {
            msg: sealed,
            aad: &self.associated_data(kind, key),
        };
        XChaCha20Poly1305::new(self.sealing_key().into())
            .decrypt(nonce.into(), payload)
            .map_err(|_| SealError)
    }

    /// Unambiguous: all but the last part have fixed lengths.
    fn associated_data(&self, kind: SealKind, key: &[u8]) -> Vec<u8> {
        let kind = match kind {
            SealKind::Head => 0,
            SealKind::Node => 1,
        };
        [&self.topic().0[..], &[kind], key].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    #[test]
    fn every_member_opens_what_a_member_sealed() {
        let sealed = testing::keys().seal(SealKind::Head, b"key", [5; 24], b"plain");
        assert_eq!(sealed[..24], [5; 24]);
        let reader = testing::id().read_only().keys();
        assert_eq!(
            reader.open(SealKind::Head, b"key", &sealed).unwrap(),
            b"plain"
        );
    }

    #[test]
    fn another_kind_key_or_cluster_opens_nothing() {
        let keys = testing::keys();
        let sealed = keys.seal(SealKind::Node, b"key", [5; 24], b"plain");
        assert_eq!(keys.open(SealKind::Head, b"key", &sealed), Err(SealError));
        assert_eq!(keys.open(SealKind::Node, b"kez", &sealed), Err(SealError));
        let other = testing::other_keys();
        assert_eq!(other.open(SealKind::Node, b"key", &sealed), Err(SealError));
    }

    #[test]
    fn damaged_or_short_records_are_refused() {
        let keys = testing::keys();
        let sealed = keys.seal(SealKind::Node, b"key", [5; 24], b"plain");
        for place in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[place] ^= 1;
            assert!(keys.open(SealKind::Node, b"key", &damaged).is_err());
            assert!(keys.open(SealKind::Node, b"key", &sealed[..place]).is_err());
        }
    }
}
