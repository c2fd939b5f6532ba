//! Membership before anything else: the handshake on `/p2pfs/hello/1`.
//!
//! ```text
//! dialer                                         listener
//!    ←  Challenge { nonce }                          random bytes, nothing of the cluster
//!    →  DialerProof { nonce, proof }                 the dialer proves first
//!    ←  ListenerProof { proof, hello }               only after that proof held
//!    →  PeerHello
//! ```
//!
//! Each proof names both peer ids, as the transport authenticated them, both nonces and the prover's role, so it cannot be
//! replayed, relayed, reflected or used in the other role. Whoever is not a member learns nothing but that this is a p2pfs
//! node: the listener goes silent and closes.
//!
//! This module speaks over any byte stream and knows neither swarm nor clock; the caller bounds the time.

use futures::{AsyncRead, AsyncWrite};
use libp2p::PeerId;

use super::{
    framing::{self, FrameError},
    proto::{Challenge, DialerProof, ListenerProof, PeerHello},
};
use crate::cluster::{ClusterKeys, MembershipProof, Nonce, ProofRole};

/// Most bytes of one message of the handshake.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Why a handshake did not end in two proven members.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// The stream broke or time ran out. The other side may have refused, or merely gone away.
    #[error("{0}")]
    Broken(String),
    /// The other side does not speak the protocol.
    #[error("it is not a p2pfs node")]
    NotSpoken,
    /// The other side did what no member does.
    #[error("{0}")]
    Refused(String),
}

impl From<FrameError> for HelloError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Broken(error.to_string()),
            FrameError::Malformed(reason) => Self::Refused(reason),
        }
    }
}

/// What one side brings to the handshake.
pub(super) struct Party<'a> {
    /// Keys of the cluster.
    pub(super) keys: &'a ClusterKeys,
    /// This node.
    pub(super) local: PeerId,
    /// The other, as the transport authenticated it.
    pub(super) remote: PeerId,
    /// What to say of this node.
    pub(super) hello: &'a PeerHello,
    /// Fresh random bytes.
    pub(super) nonce: Nonce,
}

impl Party<'_> {
    /// Plays the side that opened the stream.
    pub(super) async fn dial<S>(&self, stream: &mut S) -> Result<PeerHello, HelloError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let challenge: Challenge = framing::read(stream, MESSAGE_BYTES_MAX).await?;
        let proof = DialerProof {
            nonce: self.nonce,
            proof: self.prove(ProofRole::Dialer, &challenge.nonce),
        };
        framing::write(stream, &proof, MESSAGE_BYTES_MAX).await?;
        let answer: ListenerProof = framing::read(stream, MESSAGE_BYTES_MAX).await?;
        self.verify(&answer.proof, ProofRole::Listener, &challenge.nonce)?;
        let hello = self.check(answer.hello)?;
        framing::write(stream, self.hello, MESSAGE_BYTES_MAX).await?;
        Ok(hello)
    }

    /// Plays the side that the stream came to.
    pub(super) async fn listen<S>(&self, stream: &mut S) -> Result<PeerHello, HelloError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let challenge = Challenge { nonce: self.nonce };
        framing::write(stream, &challenge, MESSAGE_BYTES_MAX).await?;
        let theirs: DialerProof = framing::read(stream, MESSAGE_BYTES_MAX).await?;
        self.verify(&theirs.proof, ProofRole::Dialer, &theirs.nonce)?;
        let answer = ListenerProof {
            proof: self.prove(ProofRole::Listener, &theirs.nonce),
            hello: self.hello.clone(),
        };
        framing::write(stream, &answer, MESSAGE_BYTES_MAX).await?;
        self.check(framing::read(stream, MESSAGE_BYTES_MAX).await?)
    }

    fn prove(&self, role: ProofRole, their_nonce: &Nonce) -> MembershipProof {
        MembershipProof::sign(
            self.keys,
            role,
            &self.local,
            &self.remote,
            &self.nonce,
            their_nonce,
        )
    }

    fn verify(
        &self,
        proof: &MembershipProof,
        role: ProofRole,
        their_nonce: &Nonce,
    ) -> Result<(), HelloError> {
        proof
            .verify(
                &self.keys.topic(),
                role,
                &self.remote,
                &self.local,
                their_nonce,
                &self.nonce,
            )
            .map_err(|error| HelloError::Refused(error.to_string()))
    }

    fn check(&self, hello: PeerHello) -> Result<PeerHello, HelloError> {
        hello
            .check()
            .map_err(|reason| HelloError::Refused(reason.into()))?;
        if hello.epoch != self.keys.epoch() {
            return Err(HelloError::Refused(format!(
                "its keys are of epoch {}, ours of epoch {}",
                hello.epoch,
                self.keys.epoch()
            )));
        }
        Ok(hello)
    }
}

#[cfg(test)]
mod tests;
