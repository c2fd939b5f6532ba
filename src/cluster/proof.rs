//! Membership proofs, exchanged on every new connection before anything else.

use libp2p::PeerId;

use super::{ClusterKeys, Topic, keys::is_signed, message::Message};

const CONTEXT: &str = "p2pfs membership proof v1";

/// 32 random bytes, used for one proof only.
pub type Nonce = [u8; 32];

/// Which side of the connection proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofRole {
    /// The side that opened the connection's hello stream; it proves first.
    Dialer,
    /// The other side.
    Listener,
}

/// A signature by the member key over (context, role, prover, verifier, prover's nonce, verifier's nonce, topic).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MembershipProof(#[serde(with = "serde_bytes")] pub [u8; 64]);

/// The proof does not hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the peer did not prove that it is a member of this cluster")]
pub struct ProofError;

impl MembershipProof {
    /// Proves membership. The peer ids are those that the transport authenticated.
    pub fn sign(
        keys: &ClusterKeys,
        role: ProofRole,
        prover: &PeerId,
        verifier: &PeerId,
        prover_nonce: &Nonce,
        verifier_nonce: &Nonce,
    ) -> Self {
        let topic = keys.topic();
        let message = message(&topic, role, prover, verifier, prover_nonce, verifier_nonce);
        Self(keys.sign_as_member(&message))
    }

    /// Checks a proof. The peer ids are those that the transport authenticated, `verifier_nonce` is the one that this side
    /// chose for this connection.
    pub fn verify(
        &self,
        topic: &Topic,
        role: ProofRole,
        prover: &PeerId,
        verifier: &PeerId,
        prover_nonce: &Nonce,
        verifier_nonce: &Nonce,
    ) -> Result<(), ProofError> {
        let message = message(topic, role, prover, verifier, prover_nonce, verifier_nonce);
        if is_signed(&topic.0, &message, &self.0) {
            Ok(())
        } else {
            Err(ProofError)
        }
    }
}

fn message(
    topic: &Topic,
    role: ProofRole,
    prover: &PeerId,
    verifier: &PeerId,
    prover_nonce: &Nonce,
    verifier_nonce: &Nonce,
) -> Vec<u8> {
    let role = match role {
        ProofRole::Dialer => 0,
        ProofRole::Listener => 1,
    };
    Message::new(CONTEXT)
        .number(role)
        .bytes(&prover.to_bytes())
        .bytes(&verifier.to_bytes())
        .bytes(prover_nonce)
        .bytes(verifier_nonce)
        .bytes(&topic.0)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    const OURS: Nonce = [1; 32];
    const THEIRS: Nonce = [2; 32];

    #[test]
    fn a_proof_holds_for_its_own_connection_and_for_nothing_else() {
        use ProofRole::{Dialer, Listener};
        let keys = testing::keys();
        let (topic, other) = (keys.topic(), testing::other_keys().topic());
        let (alice, bob, eve) = (testing::peer(1), testing::peer(2), testing::peer(3));
        let proof = MembershipProof::sign(&keys, Dialer, &alice, &bob, &OURS, &THEIRS);
        let check = |topic: &Topic, role, prover: &PeerId, verifier: &PeerId, a, b| {
            proof.verify(topic, role, prover, verifier, a, b)
        };
        assert_eq!(check(&topic, Dialer, &alice, &bob, &OURS, &THEIRS), Ok(()));
        for (case, verdict) in [
            (
                "other topic",
                check(&other, Dialer, &alice, &bob, &OURS, &THEIRS),
            ),
            (
                "other role",
                check(&topic, Listener, &alice, &bob, &OURS, &THEIRS),
            ),
            (
                "reflected",
                check(&topic, Dialer, &bob, &alice, &THEIRS, &OURS),
            ),
            (
                "reflected in the other role",
                check(&topic, Listener, &bob, &alice, &THEIRS, &OURS),
            ),
            (
                "ids swapped",
                check(&topic, Dialer, &bob, &alice, &OURS, &THEIRS),
            ),
            (
                "nonces swapped",
                check(&topic, Dialer, &alice, &bob, &THEIRS, &OURS),
            ),
            (
                "replayed to another nonce",
                check(&topic, Dialer, &alice, &bob, &OURS, &[9; 32]),
            ),
            (
                "other prover's nonce",
                check(&topic, Dialer, &alice, &bob, &[9; 32], &THEIRS),
            ),
            (
                "relayed by another prover",
                check(&topic, Dialer, &eve, &bob, &OURS, &THEIRS),
            ),
            (
                "relayed to another verifier",
                check(&topic, Dialer, &alice, &eve, &OURS, &THEIRS),
            ),
        ] {
            assert_eq!(verdict, Err(ProofError), "{case}");
        }
    }

    #[test]
    fn read_only_members_prove_membership_too() {
        let keys = testing::id().read_only().keys();
        let (alice, bob) = (testing::peer(1), testing::peer(2));
        let role = ProofRole::Listener;
        let proof = MembershipProof::sign(&keys, role, &alice, &bob, &OURS, &THEIRS);
        let topic = testing::keys().topic();
        assert_eq!(
            proof.verify(&topic, role, &alice, &bob, &OURS, &THEIRS),
            Ok(())
        );
    }

    #[test]
    fn a_weak_topic_accepts_no_proof() {
        // The neutral element: under lax verification an all-zero scalar would sign anything for it.
        let mut weak = [0; 32];
        weak[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        let (alice, bob) = (testing::peer(1), testing::peer(2));
        let verdict = MembershipProof(signature).verify(
            &Topic(weak),
            ProofRole::Dialer,
            &alice,
            &bob,
            &OURS,
            &THEIRS,
        );
        assert_eq!(verdict, Err(ProofError));
    }
}
