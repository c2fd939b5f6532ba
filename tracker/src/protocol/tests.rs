use std::collections::BTreeSet;

use super::*;
use crate::{
    framing::{decode, encode_frame},
    test_stream::{member, signer},
};

fn peer(name: u8) -> PeerId {
    let mut seed = [name; 32];
    let secret = libp2p::identity::Keypair::ed25519_from_bytes(&mut seed).unwrap();
    secret.public().to_peer_id()
}

fn proof(signed_for: u8, topic: u8, me: &PeerId, tracker: &PeerId, nonce: &[u8; 32]) -> Prove {
    let topic = member(topic).verifying_key().to_bytes();
    let sign = signer(member(signed_for));
    Prove {
        topic: ByteArray::new(topic),
        signature: ByteArray::new(sign(&challenge_message(&topic, me, tracker, nonce))),
    }
}

#[test]
fn a_proof_holds_for_its_peer_tracker_nonce_and_topic_alone() {
    let (me, tracker, nonce) = (peer(1), peer(2), [3; 32]);
    let good = proof(9, 9, &me, &tracker, &nonce);
    assert!(proof_holds(&good, &me, &tracker, &nonce));
    assert!(!proof_holds(&good, &peer(4), &tracker, &nonce));
    assert!(!proof_holds(&good, &me, &peer(4), &nonce));
    assert!(!proof_holds(&good, &tracker, &me, &nonce));
    assert!(!proof_holds(&good, &me, &tracker, &[4; 32]));
    let other_topic = Prove {
        topic: ByteArray::new(member(8).verifying_key().to_bytes()),
        ..good.clone()
    };
    assert!(!proof_holds(&other_topic, &me, &tracker, &nonce));
    let not_the_member_key = proof(8, 9, &me, &tracker, &nonce);
    assert!(!proof_holds(&not_the_member_key, &me, &tracker, &nonce));
    for i in 0..64 {
        let mut bent = good.clone();
        bent.signature[i] ^= 1;
        assert!(!proof_holds(&bent, &me, &tracker, &nonce));
    }
}

#[test]
fn a_topic_that_is_a_weak_key_proves_nothing() {
    // The neutral point verifies any message under the lax rules of the signature scheme.
    let mut topic = [0; 32];
    topic[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let prove = Prove {
        topic: ByteArray::new(topic),
        signature: ByteArray::new(signature),
    };
    assert!(!proof_holds(&prove, &peer(1), &peer(2), &[3; 32]));
}

#[test]
fn what_is_signed_is_pinned() {
    let message = challenge_message(&[7; 32], &peer(1), &peer(2), &[3; 32]);
    assert_eq!(message.len(), 25 + 4 * 4 + 32 + 38 + 38 + 32);
    assert!(message.starts_with(b"p2pfs tracker session v1\0\0\0\0\x20\x07\x07"));
}

fn bytes<T: Serialize>(message: &T) -> Vec<u8> {
    encode_frame(message, 1 << 20).unwrap().split_off(4)
}

/// One of each, so that a change of the format shows.
fn every_ask() -> Vec<Ask> {
    vec![
        Ask::Announce {
            addresses: vec![ByteBuf::from(vec![4, 127, 0, 0, 1])],
            ports: vec![4001],
        },
        Ask::Renew,
        Ask::HoldsReset,
        Ask::Holds {
            add: vec![SealedKey([1; 32])],
            remove: vec![SealedKey([2; 32])],
        },
        Ask::Leave,
        Ask::Peers,
        Ask::Holders {
            keys: vec![SealedKey([3; 32])],
        },
        Ask::PutHead {
            sealed: ByteBuf::from(vec![5; 40]),
        },
        Ask::Heads,
        Ask::Report {
            peer: ByteBuf::from(peer(1).to_bytes()),
        },
        Ask::WhereIs {
            peer: ByteBuf::from(peer(1).to_bytes()),
        },
        Ask::HaveNodes {
            keys: vec![SealedKey([6; 32])],
        },
        Ask::PutNodes {
            nodes: vec![WireNode {
                key: SealedKey([7; 32]),
                sealed: ByteBuf::from(vec![8; 50]),
            }],
            replace: true,
        },
        Ask::GetNodes {
            keys: vec![SealedKey([9; 32])],
        },
    ]
}

fn every_told() -> Vec<Told> {
    let located = WirePeer {
        peer: ByteBuf::from(peer(1).to_bytes()),
        addresses: vec![ByteBuf::from(vec![4, 127, 0, 0, 1])],
    };
    vec![
        Told::Done,
        Told::Lease {
            lease_ms: 90_000,
            holds: HoldsDigest {
                count: 2,
                xor: ByteArray::new([9; 32]),
            },
        },
        Told::Peers(vec![located.clone()]),
        Told::Holders {
            peers: vec![located],
            holders: vec![vec![0], vec![]],
        },
        Told::Heads(vec![WireHead {
            sealed: ByteBuf::from(vec![5; 40]),
            age_s: 30,
        }]),
        Told::HaveNodes {
            have: vec![true, false],
            room: 1 << 28,
        },
        Told::Nodes(vec![ByteBuf::from(vec![8; 50]), ByteBuf::new()]),
        Told::Refused(Refusal::Full(Limit::Keys)),
        Told::Refused(Refusal::NotAnnounced),
    ]
}

#[test]
fn every_message_reads_back_as_itself_and_its_bytes_are_pinned() {
    let mut all = blake3::Hasher::new();
    for (id, ask) in every_ask().into_iter().enumerate() {
        let request = Request { id: id as u64, ask };
        let encoded = bytes(&request);
        assert_eq!(decode::<Request>(&encoded).unwrap(), request);
        all.update(&encoded);
    }
    for (id, told) in every_told().into_iter().enumerate() {
        let answer = Answer {
            id: id as u64,
            told,
        };
        let encoded = bytes(&answer);
        assert_eq!(decode::<Answer>(&encoded).unwrap(), answer);
        all.update(&encoded);
    }
    assert_eq!(
        all.finalize().to_hex().as_str(),
        "3f9ab0eed9b724f61e9eec0404a353ab60829d9b3e2ceb5e969dd963fca1173c"
    );
}

#[test]
fn the_number_of_a_request_of_another_version_can_still_be_read() {
    #[derive(Serialize)]
    enum NewerAsk {
        Dance { steps: Vec<ByteBuf> },
        Wave,
    }
    #[derive(Serialize)]
    struct NewerRequest {
        id: u64,
        ask: NewerAsk,
    }
    let steps = vec![ByteBuf::from(vec![1; 100])];
    for ask in [NewerAsk::Dance { steps }, NewerAsk::Wave] {
        let newer = bytes(&NewerRequest { id: 77, ask });
        assert!(decode::<Request>(&newer).is_err());
        assert_eq!(decode::<RequestId>(&newer).unwrap().id, 77);
    }
}

#[test]
fn the_digest_depends_on_the_set_and_not_on_the_way_there() {
    let keys: BTreeSet<_> = (1..20).map(|i| SealedKey([i; 32])).collect();
    let mut forward = HoldsDigest::default();
    let mut back = HoldsDigest::default();
    keys.iter().for_each(|key| forward.add(key));
    back.add(&SealedKey([99; 32]));
    keys.iter().rev().for_each(|key| back.add(key));
    assert_ne!(forward, back);
    back.remove(&SealedKey([99; 32]));
    assert_eq!(forward, back);
}

#[test]
fn addresses_and_ids_of_peers_are_validated() {
    let me = peer(1);
    let parse = |text: &str| parse_address(&text.parse::<Multiaddr>().unwrap().to_vec(), &me);
    let plain = "/ip4/192.0.2.1/tcp/4001";
    assert_eq!(parse(plain).unwrap().to_string(), plain);
    assert_eq!(
        parse(&format!("{plain}/p2p/{me}")).unwrap().to_string(),
        plain
    );
    assert_eq!(parse(&format!("{plain}/p2p/{}", peer(2))), None);
    assert_eq!(parse(&format!("/p2p/{me}")), None);
    let relayed = format!("{plain}/p2p/{}/p2p-circuit", peer(2));
    assert_eq!(
        parse(&format!("{relayed}/p2p/{me}")).unwrap().to_string(),
        relayed
    );
    assert_eq!(parse_peer(&me.to_bytes()), Some(me));
    assert_eq!(parse_peer(&[0; PEER_ID_BYTES_MAX + 1]), None);
    assert_eq!(parse_peer(b"nobody"), None);
}
