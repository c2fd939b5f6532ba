//! The tracker's protocol in both directions, and the records that it keeps on disk.

use futures::executor::block_on;
use libp2p::{PeerId, identity::Keypair};
use p2pfs_tracker::{
    framing,
    protocol::{
        Answer, Ask, Challenge, HoldsDigest, Prove, REQUEST_BYTES_MAX, Refusal, Request, RequestId,
        SealedKey, Told, Topic, Verdict, WireHead, WirePeer, proof_holds,
    },
    registry::{Delta, Limits, Registry},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_bytes::{ByteArray, ByteBuf};

use crate::{run_chosen, seed};

pub(crate) fn run(data: &[u8]) {
    run_chosen(
        data,
        &[
            |bytes| _ = decoded::<Challenge>(bytes),
            prove,
            |bytes| _ = decoded::<Verdict>(bytes),
            request,
            |bytes| _ = decoded::<Answer>(bytes),
            frames,
            records,
        ],
    );
}

fn peer() -> PeerId {
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes are a key");
    key.public().to_peer_id()
}

/// What the bytes say; it must survive its own encoding.
fn decoded<T>(bytes: &[u8]) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let message = framing::decode::<T>(bytes).ok()?;
    let back = framing::decode::<T>(&encoded(&message)).expect("what was encoded here decodes");
    assert_eq!(back, message);
    Some(message)
}

fn encoded(message: &impl Serialize) -> Vec<u8> {
    let mut frame = framing::encode_frame(message, usize::MAX).expect("it fits into memory");
    frame.split_off(4)
}

fn prove(bytes: &[u8]) {
    if let Some(prove) = decoded::<Prove>(bytes) {
        let _ = proof_holds(&prove, &peer(), &peer(), &[1; 32]);
    }
}

fn request(bytes: &[u8]) {
    // A kind that is not known here must still tell its number.
    if let Some(request) = decoded::<Request>(bytes) {
        let id = framing::decode::<RequestId>(bytes)
            .map(|known| known.id)
            .ok();
        assert_eq!(id, Some(request.id));
    }
    let _ = framing::decode::<RequestId>(bytes);
}

fn frames(bytes: &[u8]) {
    let mut stream = bytes;
    while let Ok(message) = block_on(framing::read_frame_bytes(&mut stream, REQUEST_BYTES_MAX)) {
        assert!(message.len() <= REQUEST_BYTES_MAX);
    }
}

fn registry() -> Registry {
    Registry::new(Limits::default(), 90_000)
}

/// Records as the tracker reads them when it starts: each a key and a value, with their lengths (a byte, and two).
fn records(mut bytes: &[u8]) {
    let mut registry = registry();
    while let Some(([key, high, low], rest)) = bytes.split_first_chunk() {
        let lengths = (
            usize::from(*key),
            usize::from(u16::from_be_bytes([*high, *low])),
        );
        let Some((key, rest)) = rest.split_at_checked(lengths.0) else {
            break;
        };
        let Some((value, rest)) = rest.split_at_checked(lengths.1) else {
            break;
        };
        let _ = registry.load(1000, key, value);
        bytes = rest;
    }
    let _ = registry.counts();
    while registry.poll_output(1000).is_some() {}
    // Nobody renews: everything ends, in steps that lead on.
    let mut now = 1000;
    while let Some(due) = registry.poll_timeout() {
        now = due.max(now + 1);
        registry.handle_timeout(now);
        while registry.poll_output(now).is_some() {}
        let _ = registry.take_deltas();
    }
}

/// What a registry with one peer, a key and a head would find on its disk.
fn some_records() -> Vec<u8> {
    let (mut registry, topic) = (registry(), Topic([3; 32]));
    let address = "/ip4/192.0.2.1/tcp/4001".parse().expect("an address");
    let _ = registry.announce(1000, topic, peer(), vec![address]);
    let _ = registry.holds(1000, topic, &peer(), &[SealedKey([4; 32])], &[]);
    let _ = registry.put_head(1000, topic, peer(), vec![5; 60]);
    let mut records = Vec::new();
    for delta in registry.take_deltas() {
        if let Delta::Put { key, value } = delta {
            records.push(key.len() as u8);
            records.extend((value.len() as u16).to_be_bytes());
            records.extend([key, value].concat());
        }
    }
    records
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let bytes = |length| ByteBuf::from(vec![3; length]);
    let prove = Prove {
        topic: ByteArray::new([1; 32]),
        signature: ByteArray::new([2; 64]),
    };
    let wire_peer = WirePeer {
        peer: ByteBuf::from(peer().to_bytes()),
        addresses: vec![bytes(8)],
    };
    let asks = [
        Ask::Announce {
            addresses: vec![bytes(8)],
            ports: vec![4001],
        },
        Ask::Renew,
        Ask::Holds {
            add: vec![SealedKey([4; 32])],
            remove: vec![SealedKey([5; 32])],
        },
        Ask::Holders {
            keys: vec![SealedKey([4; 32])],
        },
        Ask::PutHead { sealed: bytes(60) },
        Ask::Report { peer: bytes(38) },
    ];
    let tells = [
        Told::Lease {
            lease_ms: 90_000,
            holds: HoldsDigest::default(),
        },
        Told::Peers(vec![wire_peer.clone()]),
        Told::Holders {
            peers: vec![wire_peer],
            holders: vec![vec![0], vec![]],
        },
        Told::Heads(vec![WireHead {
            sealed: bytes(60),
            age_s: 5,
        }]),
        Told::Refused(Refusal::NotUnderstood),
    ];
    let mut seeds = vec![
        seed(
            0,
            &encoded(&Challenge {
                nonce: ByteArray::new([1; 32]),
            }),
        ),
        seed(1, &encoded(&prove)),
        seed(2, &encoded(&Verdict::Welcome)),
        seed(6, &some_records()),
    ];
    for ask in asks {
        let request = Request { id: 1, ask };
        seeds.push(seed(
            5,
            &framing::encode_frame(&request, REQUEST_BYTES_MAX).unwrap_or_default(),
        ));
        seeds.push(seed(3, &encoded(&request)));
    }
    seeds.extend(tells.map(|told| seed(4, &encoded(&Answer { id: 1, told }))));
    seeds
}
