//! Writer certificates: the write key's word that a node may sign heads.

use libp2p::PeerId;

use super::{ClusterKeys, message::Message};

const CONTEXT: &str = "p2pfs writer certificate v1";

/// The one role that certificates grant today.
const ROLE_WRITER: u8 = 1;

/// The write key's signature over (context, topic, epoch, peer id, role, validity).
///
/// The topic is not part of the encoding: it is that of the cluster in which the certificate is shown.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    epoch: u64,
    #[serde(with = "peer_bytes")]
    peer: PeerId,
    role: u8,
    /// First and last nanosecond since 1970 at which it holds.
    not_before_ns: u64,
    not_after_ns: u64,
    #[serde(with = "serde_bytes")]
    signature: [u8; 64],
}

/// Why a certificate does not hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CertificateError {
    /// The read-only id cannot issue one.
    #[error("a read-only cluster id grants no writing")]
    ReadOnly,
    /// Signature, topic or epoch do not match.
    #[error("the writer's certificate is not valid for this cluster")]
    Invalid,
    /// Outside of its validity.
    #[error("the writer's certificate has expired")]
    Expired,
}

impl Certificate {
    /// Issues a certificate without end of validity to a node.
    pub fn issue(keys: &ClusterKeys, peer: &PeerId) -> Result<Self, CertificateError> {
        Self::issue_for(keys, peer, 0, u64::MAX)
    }

    fn issue_for(
        keys: &ClusterKeys,
        peer: &PeerId,
        not_before_ns: u64,
        not_after_ns: u64,
    ) -> Result<Self, CertificateError> {
        let mut certificate = Self {
            epoch: keys.epoch(),
            peer: *peer,
            role: ROLE_WRITER,
            not_before_ns,
            not_after_ns,
            signature: [0; 64],
        };
        certificate.signature = keys
            .sign_as_owner(&certificate.message(keys))
            .ok_or(CertificateError::ReadOnly)?;
        Ok(certificate)
    }

    /// Whom it is for.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Checks it; `now_ns` since 1970.
    pub fn verify(&self, keys: &ClusterKeys, now_ns: u64) -> Result<(), CertificateError> {
        if self.epoch != keys.epoch()
            || self.role != ROLE_WRITER
            || !keys.is_signed_by_owner(&self.message(keys), &self.signature)
        {
            return Err(CertificateError::Invalid);
        }
        if !(self.not_before_ns..=self.not_after_ns).contains(&now_ns) {
            return Err(CertificateError::Expired);
        }
        Ok(())
    }

    /// Its part in the signature of a head: everything in it.
    pub(super) fn signed_bytes(&self, keys: &ClusterKeys) -> Vec<u8> {
        [&self.message(keys)[..], &self.signature].concat()
    }

    fn message(&self, keys: &ClusterKeys) -> Vec<u8> {
        Message::new(CONTEXT)
            .bytes(&keys.topic().0)
            .number(self.epoch)
            .bytes(&self.peer.to_bytes())
            .bytes(&[self.role])
            .number(self.not_before_ns)
            .number(self.not_after_ns)
            .finish()
    }
}

/// Peer ids as their bytes.
mod peer_bytes {
    use libp2p::PeerId;
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(peer: &PeerId, to: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&peer.to_bytes(), to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PeerId, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(from)?;
        PeerId::from_bytes(&bytes).map_err(|_| D::Error::custom("not a peer id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    #[test]
    fn every_member_accepts_what_the_write_key_issued() {
        let certificate = Certificate::issue(&testing::keys(), &testing::peer(1)).unwrap();
        assert_eq!(certificate.peer(), testing::peer(1));
        for keys in [testing::keys(), testing::id().read_only().keys()] {
            for now_ns in [0, 1, u64::MAX] {
                assert_eq!(certificate.verify(&keys, now_ns), Ok(()));
            }
        }
    }

    #[test]
    fn a_read_only_id_issues_none() {
        let reader = testing::id().read_only().keys();
        assert_eq!(
            Certificate::issue(&reader, &testing::peer(1)),
            Err(CertificateError::ReadOnly)
        );
    }

    #[test]
    fn what_the_write_key_did_not_sign_is_refused() {
        let keys = testing::keys();
        let foreign = Certificate::issue(&testing::other_keys(), &testing::peer(1)).unwrap();
        assert_eq!(foreign.verify(&keys, 1), Err(CertificateError::Invalid));
        // Every member has the member key: it must not do.
        let mut forged = foreign.clone();
        forged.signature = keys.sign_as_member(&forged.message(&keys));
        assert_eq!(forged.verify(&keys, 1), Err(CertificateError::Invalid));
    }

    #[test]
    fn every_field_is_covered_by_the_signature() {
        let keys = testing::keys();
        let good = Certificate::issue(&keys, &testing::peer(1)).unwrap();
        let mutations: [fn(&mut Certificate); 6] = [
            |it| it.epoch += 1,
            |it| it.peer = testing::peer(2),
            |it| it.role ^= 2,
            |it| it.not_before_ns += 1,
            |it| it.not_after_ns -= 1,
            |it| it.signature[63] ^= 1,
        ];
        for (index, mutate) in mutations.into_iter().enumerate() {
            let mut bad = good.clone();
            mutate(&mut bad);
            assert_eq!(
                bad.verify(&keys, 9),
                Err(CertificateError::Invalid),
                "{index}"
            );
        }
    }

    #[test]
    fn it_holds_within_its_validity_only() {
        let keys = testing::keys();
        let certificate = Certificate::issue_for(&keys, &testing::peer(1), 10, 20).unwrap();
        assert_eq!(certificate.verify(&keys, 9), Err(CertificateError::Expired));
        assert_eq!(certificate.verify(&keys, 10), Ok(()));
        assert_eq!(certificate.verify(&keys, 20), Ok(()));
        assert_eq!(
            certificate.verify(&keys, 21),
            Err(CertificateError::Expired)
        );
    }
}
