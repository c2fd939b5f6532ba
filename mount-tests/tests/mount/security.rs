//! Strangers, forgers and read-only members who want more. The attackers speak the protocol themselves, over libp2p, from
//! a host of the lab.

use std::time::Duration;

use p2pfs::{
    cluster::{Certificate, ClusterId, ClusterKeys, Head, ParsedCluster, ProofRole},
    content::{ContentId, Object},
    manifest::{CausalContext, HybridTime, NodeHash},
    net::proto::{BLOCKS, BlockRequest, Push, SYNC, SyncAnswer, SyncRequest},
};
use p2pfs_mount_tests::{Mount, SOON, noise, until};
use serde_bytes::ByteBuf;

use super::{
    attacker::{self, Attacker, now_ns},
    pair,
};

pub(super) fn keys(id: &str) -> ClusterKeys {
    id.parse::<ParsedCluster>().unwrap().id.keys()
}

fn strange_keys() -> ClusterKeys {
    ClusterId::generate(rand::random()).keys()
}

fn object(bytes: &[u8]) -> Object {
    Object {
        content: ContentId(*blake3::hash(bytes).as_bytes()),
        size: bytes.len() as u64,
    }
}

/// Waits until a sentence stands in the log of a mount.
pub(super) fn logs(mount: &Mount, text: &str) {
    until(
        SOON,
        &format!("{} logs {text:?}", mount.host().name()),
        || {
            let mut logs = mount.host().logs().into_iter();
            logs.any(|log| std::fs::read_to_string(log).is_ok_and(|log| log.contains(text)))
        },
    );
}

#[test]
fn a_stranger_who_knows_everything_but_the_keys_gets_no_head_node_or_block() {
    let pair = pair();
    let bytes = noise(1, 100_000);
    pair.a.write("file", &bytes);
    pair.b.shows("file", &bytes);
    let root: [u8; 32] = attacker::unhex(pair.a.status()["manifest"]["hash"].as_str().unwrap());
    let (member, address) = (keys(&pair.read_only), pair.a.multiaddr());
    let object = object(&bytes);
    let e = pair.lab.host("e");
    e.inside(move || {
        attacker::run(async move {
            let sync = [
                SyncRequest::Heads,
                SyncRequest::Nodes(vec![NodeHash(root)]),
                SyncRequest::Have(vec![object]),
                SyncRequest::Status,
            ];
            let block = BlockRequest {
                object,
                start: 0,
                end: 1,
            };
            // The same questions by a member are answered: what is refused below is refused for lack of membership.
            let mut honest = Attacker::connect(&address).await;
            honest.prove(&member).await.expect("a member is let in");
            for request in &sync {
                assert!(honest.ask(request.clone()).await.is_some(), "{request:?}");
            }
            assert!(honest.ask_block(block.clone()).await);

            // Without a proof, and with that of a member of another cluster.
            for keys in [None, Some(strange_keys())] {
                let mut stranger = Attacker::connect(&address).await;
                if let Some(keys) = keys {
                    assert!(stranger.prove(&keys).await.is_none());
                    stranger = Attacker::connect_as(stranger.identity(), &address).await;
                }
                for request in &sync {
                    assert!(stranger.ask(request.clone()).await.is_none(), "{request:?}");
                }
                assert!(!stranger.ask_block(block.clone()).await);
            }
        });
    });
    until(Duration::from_secs(30), "strangers are no peers", || {
        pair.a.status()["peers"].as_array().unwrap().len() == 1
    });
}

#[test]
fn membership_proofs_cannot_be_replayed_reflected_relayed_or_used_in_the_other_role() {
    let pair = pair();
    let (member, address) = (keys(&pair.id), pair.a.multiaddr());
    let target = address.clone();
    let e = pair.lab.host("e");
    e.inside(move || {
        attacker::run(async move {
            // Recorded from an honest handshake of the same node, sent again.
            let mut honest = Attacker::connect(&address).await;
            let challenge = honest.challenge().await;
            let recorded = honest.proof(&member, ProofRole::Dialer, &challenge);
            assert!(honest.answer(&recorded).await.is_some());
            let mut replayer = Attacker::connect_as(honest.identity(), &address).await;
            replayer.challenge().await;
            assert!(replayer.answer(&recorded).await.is_none(), "replayed");

            // Sent by another node than the one that it names.
            let mut thief = Attacker::connect(&address).await;
            let challenge = thief.challenge().await;
            let stolen =
                Attacker::connect(&address)
                    .await
                    .proof(&member, ProofRole::Dialer, &challenge);
            assert!(thief.answer(&stolen).await.is_none(), "relayed");

            // Made for the other role.
            let mut crossed = Attacker::connect(&address).await;
            let challenge = crossed.challenge().await;
            let listener = crossed.proof(&member, ProofRole::Listener, &challenge);
            assert!(
                crossed.answer(&listener).await.is_none(),
                "used in the other role"
            );
        });
    });

    // A hostile listener: a member dials it, proves itself, and gets its own proof back; meanwhile the listener has the
    // proof pass for its own at the member itself and at another one.
    let f = pair.lab.host("f");
    let listen = format!("/ip4/{}/tcp/4001", f.address());
    let victims = [target, pair.b.multiaddr()];
    let (ready, listening) = std::sync::mpsc::channel();
    let trap = std::thread::spawn(move || {
        f.inside(move || attacker::run(attacker::trap(listen, victims, ready)))
    });
    let trap_address: String = listening.recv_timeout(SOON).unwrap();
    let c = pair.another("c", &format!("--peer {trap_address}"));
    let trapped = trap.join().unwrap();
    assert!(trapped.proofs_seen > 0, "the member dialed the trap");
    assert_eq!(trapped.let_in, 0, "a proof was good for another connection");
    c.meets(2);
    let peers = c.status()["peers"].to_string();
    assert!(
        !peers.contains(trap_address.rsplit('/').next().unwrap()),
        "the trap is no peer: {peers}"
    );
}

#[test]
fn a_head_without_a_writers_certificate_is_refused_by_everybody() {
    let pair = pair();
    pair.a.write("file", "as it is");
    pair.b.shows("file", "as it is");
    until(SOON, "both agree", || {
        pair.a.status()["manifest"]["hash"] == pair.b.status()["manifest"]["hash"]
    });
    let state = pair.a.status()["manifest"]["hash"].clone();
    let (reader, address) = (keys(&pair.read_only), pair.a.multiaddr());
    let e = pair.lab.host("e");
    e.inside(move || {
        attacker::run(async move {
            let mut member = Attacker::connect(&address).await;
            member
                .prove(&reader)
                .await
                .expect("a read-only member is let in");
            let Some(SyncAnswer::Heads(heads)) = member.ask(SyncRequest::Heads).await else {
                panic!("no heads")
            };
            let genuine = Head::decode(&heads[0]).unwrap();
            let identity = member.identity();
            // Issued by the write key of another cluster.
            let certificate =
                Certificate::issue(&strange_keys(), &identity.public().to_peer_id()).unwrap();
            let empty = NodeHash(*blake3::hash(b"nothing").as_bytes());
            let time = HybridTime(now_ns());
            let covers: CausalContext = genuine.covers.clone();
            let forged =
                Head::sign(&reader, &identity, &certificate, empty, covers, 1, time).unwrap();
            // A genuine one that was changed, and one whose certificate was replaced.
            let changed = Head {
                root: empty,
                sequence: genuine.sequence + 1,
                ..genuine.clone()
            };
            let swapped = Head {
                certificate: genuine.certificate.clone(),
                ..forged.clone()
            };
            for head in [forged, changed, swapped] {
                let push = Push::Manifest {
                    head: ByteBuf::from(head.encode()),
                    base: genuine.root,
                    changes: Some(Vec::new()),
                };
                // A refusal may cost the connection.
                let mut sender = Attacker::connect(&address).await;
                sender
                    .prove(&reader)
                    .await
                    .expect("a read-only member is let in");
                sender.push(push).await;
            }
        });
    });
    logs(&pair.a, "refused");
    assert_eq!(pair.a.read("file").unwrap(), b"as it is");
    pair.a.write("next", "life goes on");
    pair.b.shows("next", "life goes on");
    assert_eq!(pair.b.read("file").unwrap(), b"as it is");
    assert_ne!(pair.a.status()["manifest"]["hash"], state);
    assert_eq!(pair.a.status()["manifest"]["files"], 2);
}

#[test]
fn members_who_break_the_protocol_are_cut_off_and_harm_nobody() {
    let pair = pair();
    pair.a.write("file", "x");
    pair.b.shows("file", "x");
    let (member, address) = (keys(&pair.id), pair.a.multiaddr());
    let e = pair.lab.host("e");
    e.inside(move || {
        attacker::run(async move {
            for protocol in [SYNC, BLOCKS] {
                for garbage in [vec![0xff; 64], vec![0, 0, 0, 3, 1, 2, 3], vec![0, 0, 0, 0]] {
                    let mut member_node = Attacker::connect(&address).await;
                    member_node
                        .prove(&member)
                        .await
                        .expect("a member is let in");
                    assert!(
                        member_node.babble(protocol.clone(), &garbage).await,
                        "{garbage:?} was taken"
                    );
                }
            }
        });
    });
    assert_eq!(pair.a.read("file").unwrap(), b"x");
    pair.b.write("file", "y");
    pair.a.shows("file", "y");
    until(
        Duration::from_secs(30),
        "only the honest peer is left",
        || pair.a.status()["peers"].as_array().unwrap().len() == 1,
    );
}
