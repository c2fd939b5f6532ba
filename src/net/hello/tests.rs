//! The handshake between members, and against everybody who tries without being one.

use futures::executor::block_on;
use futures::future::join;
use rand::Rng;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::*;
use crate::{cluster::ClusterId, net::proto::PROTOCOL};

type Line = Compat<tokio::io::DuplexStream>;

fn line() -> (Line, Line) {
    let (one, other) = tokio::io::duplex(64 * 1024);
    (one.compat(), other.compat())
}

fn cluster() -> ClusterKeys {
    ClusterId::generate(rand::rng().random()).keys()
}

fn hello(node: &str) -> PeerHello {
    PeerHello {
        protocol: PROTOCOL,
        node: node.into(),
        version: "test".into(),
        epoch: 0,
        keeps_all: false,
        promises: false,
        trees: false,
        sole: false,
    }
}

fn party<'a>(
    keys: &'a ClusterKeys,
    local: PeerId,
    remote: PeerId,
    hello: &'a PeerHello,
) -> Party<'a> {
    Party {
        keys,
        local,
        remote,
        hello,
        nonce: rand::rng().random(),
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, HelloError>) {
    assert!(
        matches!(outcome, Err(HelloError::Refused(_))),
        "{outcome:?}"
    );
}

/// What was written to a line and not read, once its other end is gone.
fn rest(mut line: Line) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(futures::AsyncReadExt::read_to_end(&mut line, &mut bytes)).unwrap();
    bytes
}

#[test]
fn two_members_learn_of_each_other() {
    let keys = cluster();
    let (a, b) = (PeerId::random(), PeerId::random());
    let (says_a, says_b) = (hello("anna"), hello("bert"));
    let (mut at_a, mut at_b) = line();
    let dialer = party(&keys, a, b, &says_a);
    let listener = party(&keys, b, a, &says_b);
    let (heard_a, heard_b) = block_on(join(dialer.dial(&mut at_a), listener.listen(&mut at_b)));
    assert_eq!(heard_a.unwrap(), says_b);
    assert_eq!(heard_b.unwrap(), says_a);
}

#[test]
fn a_reader_and_a_writer_are_members_of_the_same_cluster() {
    let writer = ClusterId::generate([7; 32]);
    let reader = writer.read_only().keys();
    let writer = writer.keys();
    let (a, b) = (PeerId::random(), PeerId::random());
    let says = hello("x");
    let (mut at_a, mut at_b) = line();
    let dialer = party(&writer, a, b, &says);
    let listener = party(&reader, b, a, &says);
    let (one, other) = block_on(join(dialer.dial(&mut at_a), listener.listen(&mut at_b)));
    assert!(one.is_ok() && other.is_ok());
}

#[test]
fn a_stranger_gets_a_nonce_and_nothing_else() {
    let (ours, theirs) = (cluster(), cluster());
    let (v, s) = (PeerId::random(), PeerId::random());
    let says = hello("victim");
    let (mut at_victim, mut at_stranger) = line();
    let outcome = block_on(async {
        let attack = async {
            let challenge: Challenge = framing::read(&mut at_stranger, 4096).await.unwrap();
            let stranger = party(&theirs, s, v, &says);
            let proof = DialerProof {
                nonce: stranger.nonce,
                proof: stranger.prove(ProofRole::Dialer, &challenge.nonce),
            };
            framing::write(&mut at_stranger, &proof, 4096)
                .await
                .unwrap();
        };
        join(party(&ours, v, s, &says).listen(&mut at_victim), attack)
            .await
            .0
    });
    refused(outcome);
    drop(at_victim);
    assert!(rest(at_stranger).is_empty());
}

#[test]
fn a_listener_that_is_no_member_is_refused() {
    let (ours, theirs) = (cluster(), cluster());
    let (v, s) = (PeerId::random(), PeerId::random());
    let (says, lies) = (hello("victim"), hello("stranger"));
    let (mut at_victim, mut at_stranger) = line();
    let stranger = party(&theirs, s, v, &lies);
    let attack = async {
        let challenge = Challenge {
            nonce: stranger.nonce,
        };
        framing::write(&mut at_stranger, &challenge, 4096)
            .await
            .unwrap();
        let theirs: DialerProof = framing::read(&mut at_stranger, 4096).await.unwrap();
        let answer = ListenerProof {
            proof: stranger.prove(ProofRole::Listener, &theirs.nonce),
            hello: lies.clone(),
        };
        framing::write(&mut at_stranger, &answer, 4096)
            .await
            .unwrap();
    };
    let victim = party(&ours, v, s, &says);
    let (outcome, ()) = block_on(join(victim.dial(&mut at_victim), attack));
    refused(outcome);
    drop(at_victim);
    // Not even the name of the node.
    assert!(rest(at_stranger).is_empty());
}

#[test]
fn a_proof_that_was_seen_before_is_worth_nothing() {
    let keys = cluster();
    let (v, m) = (PeerId::random(), PeerId::random());
    let says = hello("x");
    let mut recorded = None;
    for round in 0..2 {
        let (mut at_victim, mut at_member) = line();
        let outcome = block_on(async {
            let member = party(&keys, m, v, &says);
            let dial = async {
                let challenge: Challenge = framing::read(&mut at_member, 4096).await.unwrap();
                let proof = recorded.get_or_insert_with(|| DialerProof {
                    nonce: member.nonce,
                    proof: member.prove(ProofRole::Dialer, &challenge.nonce),
                });
                framing::write(&mut at_member, proof, 4096).await.unwrap();
                framing::write(&mut at_member, &says, 4096).await.unwrap();
            };
            join(party(&keys, v, m, &says).listen(&mut at_victim), dial)
                .await
                .0
        });
        match round {
            0 => assert!(outcome.is_ok()),
            _ => refused(outcome),
        }
    }
}

#[test]
fn a_proof_sent_back_to_its_prover_is_worth_nothing() {
    let keys = cluster();
    let (v, s) = (PeerId::random(), PeerId::random());
    let says = hello("victim");
    // The stranger has the victim dial it, and plays the victim's proof to the victim's listening side, with the
    // nonces of that side in both handshakes.
    let (mut dialing, mut from_dialing) = line();
    let (mut listening, mut from_listening) = line();
    let outcome = block_on(async {
        let (dialer, listener) = (party(&keys, v, s, &says), party(&keys, v, s, &says));
        let attack = async {
            let challenge: Challenge = framing::read(&mut from_listening, 4096).await.unwrap();
            framing::write(&mut from_dialing, &challenge, 4096)
                .await
                .unwrap();
            let proof: DialerProof = framing::read(&mut from_dialing, 4096).await.unwrap();
            framing::write(&mut from_listening, &proof, 4096)
                .await
                .unwrap();
            drop(from_dialing);
        };
        let (outcome, _) = join(
            listener.listen(&mut listening),
            join(dialer.dial(&mut dialing), attack),
        )
        .await;
        outcome
    });
    refused(outcome);
}

#[test]
fn a_proof_relayed_by_somebody_in_the_middle_is_worth_nothing() {
    let keys = cluster();
    let (member, victim, middle) = (PeerId::random(), PeerId::random(), PeerId::random());
    let says = hello("x");
    let (mut at_member, mut from_member) = line();
    let (mut at_victim, mut from_victim) = line();
    let outcome = block_on(async {
        let (dialer, listener) = (
            party(&keys, member, middle, &says),
            party(&keys, victim, middle, &says),
        );
        let attack = async {
            let challenge: Challenge = framing::read(&mut from_victim, 4096).await.unwrap();
            framing::write(&mut from_member, &challenge, 4096)
                .await
                .unwrap();
            let proof: DialerProof = framing::read(&mut from_member, 4096).await.unwrap();
            framing::write(&mut from_victim, &proof, 4096)
                .await
                .unwrap();
            drop(from_member);
        };
        let member_side = join(dialer.dial(&mut at_member), attack);
        join(listener.listen(&mut at_victim), member_side).await.0
    });
    refused(outcome);
}

#[test]
fn a_proof_made_in_one_role_is_worth_nothing_in_the_other() {
    let keys = cluster();
    let (v, m) = (PeerId::random(), PeerId::random());
    let says = hello("x");
    let (mut at_victim, mut at_member) = line();
    let outcome = block_on(async {
        let member = party(&keys, m, v, &says);
        let attack = async {
            let challenge: Challenge = framing::read(&mut at_member, 4096).await.unwrap();
            let proof = DialerProof {
                nonce: member.nonce,
                proof: member.prove(ProofRole::Listener, &challenge.nonce),
            };
            framing::write(&mut at_member, &proof, 4096).await.unwrap();
        };
        join(party(&keys, v, m, &says).listen(&mut at_victim), attack)
            .await
            .0
    });
    refused(outcome);
}

#[test]
fn hellos_that_make_no_sense_are_refused() {
    let keys = cluster();
    let bad = [
        hello(""),
        hello(&"n".repeat(65)),
        hello("new\nline"),
        PeerHello {
            protocol: PROTOCOL + 1,
            ..hello("x")
        },
        PeerHello {
            epoch: 1,
            ..hello("x")
        },
        PeerHello {
            version: "v".repeat(65),
            ..hello("x")
        },
    ];
    for lies in bad {
        let (v, m) = (PeerId::random(), PeerId::random());
        let says = hello("victim");
        let (mut at_victim, mut at_member) = line();
        let member = party(&keys, m, v, &lies);
        let victim = party(&keys, v, m, &says);
        let both = join(victim.listen(&mut at_victim), member.dial(&mut at_member));
        refused(block_on(both).0);
    }
}
