//! Messages between members, and their frames.

use futures::executor::block_on;
use p2pfs::{
    cluster::{ClusterId, MembershipProof, ProofRole},
    content::{BlockSet, ContentId, Object},
    manifest::empty_root,
    net::{
        framing,
        proto::{
            BATCH_BYTES_MAX, BatchRequest, BlockCall, BlockHead, BlockRequest, CALL_BYTES_MAX,
            Challenge, DialerProof, Have, ListenerProof, PROTOCOL, PeerHello, Push, SYNC_BYTES_MAX,
            SyncAnswer, SyncCall, SyncReply, SyncRequest,
        },
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;

use crate::{run_chosen, seed};

pub(crate) fn run(data: &[u8]) {
    run_chosen(
        data,
        &[
            |bytes| _ = decoded::<Challenge>(bytes),
            |bytes| _ = decoded::<DialerProof>(bytes),
            |bytes| _ = decoded::<ListenerProof>(bytes).map(|proof| proof.hello.check()),
            |bytes| _ = decoded::<PeerHello>(bytes).map(|hello| hello.check()),
            |bytes| _ = decoded::<SyncCall>(bytes).map(|call| check_call(&call)),
            |bytes| _ = decoded::<SyncReply>(bytes).map(|reply| check_reply(&reply)),
            |bytes| _ = decoded::<BlockCall>(bytes).map(|call| check_request(&call)),
            |bytes| _ = decoded::<BlockHead>(bytes),
            frames,
        ],
    );
}

/// What the bytes say; it must survive its own encoding.
fn decoded<T>(bytes: &[u8]) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let message = framing::decode::<T>(bytes).ok()?;
    survives(&message);
    Some(message)
}

/// Encodes, decodes and compares.
pub(crate) fn survives<T>(message: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let back = framing::decode::<T>(&encoded(message)).expect("what was encoded here decodes");
    assert_eq!(&back, message);
}

/// The encoding without the length.
pub(crate) fn encoded(message: &impl Serialize) -> Vec<u8> {
    let mut frame = framing::encode(message, usize::MAX).expect("it fits into memory");
    frame.split_off(4)
}

fn check_call(call: &SyncCall) {
    let _ = match call {
        SyncCall::Request(_, request) => request.check(),
        SyncCall::Push(push) => push.check(),
    };
}

fn check_reply(SyncReply(_, answer): &SyncReply) {
    let fitting = match answer {
        SyncAnswer::Heads(_) => SyncRequest::Heads,
        SyncAnswer::Nodes(nodes) => SyncRequest::Nodes(vec![empty_root(); nodes.len()]),
        SyncAnswer::Have(have) => SyncRequest::Have(vec![Object::empty(); have.len()]),
        SyncAnswer::Keep(kept) => SyncRequest::Keep {
            objects: vec![Object::empty(); kept.len()],
            for_s: 1,
        },
        SyncAnswer::Tree(_) => SyncRequest::Tree {
            object: Object {
                size: 1 << 24,
                ..Object::empty()
            },
            start: 3,
            end: 9,
        },
        // What `Make` asks has a certificate, which no answer depends on.
        SyncAnswer::Status { .. } | SyncAnswer::Error(_) | SyncAnswer::Make(_) => {
            SyncRequest::Status
        }
    };
    let _ = answer.check(&fitting);
    let other = SyncRequest::Have(Vec::new());
    let fits_other = matches!(answer, SyncAnswer::Error(_) | SyncAnswer::Have(_));
    assert!(answer.check(&other).is_err() || fits_other);
}

fn check_request(call: &BlockCall) {
    match call {
        BlockCall::Request(_, request) => _ = request.check(),
        BlockCall::Batch(_, request) => {
            let fits = request.check().is_ok();
            let bytes = request.bytes_of(&vec![1; request.0.len()]);
            assert!(!fits || bytes.is_ok_and(|bytes| bytes <= BATCH_BYTES_MAX));
        }
        BlockCall::Cancel(_) => {}
    }
}

/// A stream of frames, with both bounds.
fn frames(bytes: &[u8]) {
    for bytes_max in [CALL_BYTES_MAX, SYNC_BYTES_MAX] {
        let mut stream = bytes;
        while let Ok(message) = block_on(framing::read_bytes(&mut stream, bytes_max)) {
            assert!(message.len() <= bytes_max);
            let _ = framing::decode::<SyncCall>(&message);
        }
    }
}

fn object() -> Object {
    Object {
        content: ContentId([5; 32]),
        size: 1_000_000,
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let keys = ClusterId::generate([7; 32]).keys();
    let peer = libp2p::PeerId::from_multihash(Default::default()).ok();
    let peer = peer.unwrap_or_else(libp2p::PeerId::random);
    let proof = MembershipProof::sign(&keys, ProofRole::Dialer, &peer, &peer, &[1; 32], &[2; 32]);
    let hello = PeerHello {
        protocol: PROTOCOL,
        node: "attic".into(),
        version: "0.1.0".into(),
        epoch: 0,
        keeps_all: false,
        promises: false,
        trees: false,
        sole: false,
    };
    let mut blocks = BlockSet::of(0..3);
    blocks.insert(7..200);
    let bytes = |length| ByteBuf::from(vec![3; length]);
    let push = Push::Manifest {
        head: bytes(40),
        base: empty_root(),
        changes: Some(vec![(bytes(12), bytes(30)), (bytes(9), bytes(0))]),
    };
    let request = BlockRequest {
        object: object(),
        start: 2,
        end: 9,
    };
    let call = SyncCall::Request(1, SyncRequest::Have(vec![object()]));
    let mut stream = framing::encode(&call, CALL_BYTES_MAX).unwrap_or_default();
    stream.extend(stream.clone());
    let dialer = DialerProof {
        nonce: [1; 32],
        proof: proof.clone(),
    };
    let listener = ListenerProof {
        proof,
        hello: hello.clone(),
    };
    let status = SyncAnswer::Status {
        load: 3,
        members: vec![(bytes(38), vec![bytes(8), bytes(20)])],
    };
    let have = vec![Have::No, Have::Part(blocks.clone()), Have::Whole];
    let dont_have = BlockHead::DontHave {
        number: 7,
        have: Have::Part(blocks.clone()),
    };
    let wrong_size = BlockHead::WrongSize {
        number: 8,
        size: 12,
        length: 12,
    };
    vec![
        seed(0, &encoded(&Challenge { nonce: [1; 32] })),
        seed(1, &encoded(&dialer)),
        seed(2, &encoded(&listener)),
        seed(3, &encoded(&hello)),
        seed(4, &encoded(&SyncCall::Request(2, SyncRequest::Heads))),
        seed(
            4,
            &encoded(&SyncCall::Request(
                3,
                SyncRequest::Nodes(vec![empty_root(); 3]),
            )),
        ),
        seed(4, &encoded(&call)),
        seed(4, &encoded(&SyncCall::Push(push))),
        seed(4, &encoded(&SyncCall::Push(Push::Have(object(), blocks)))),
        seed(
            5,
            &encoded(&SyncReply(1, SyncAnswer::Heads(vec![bytes(50)]))),
        ),
        seed(
            5,
            &encoded(&SyncReply(1, SyncAnswer::Nodes(vec![bytes(50), bytes(0)]))),
        ),
        seed(5, &encoded(&SyncReply(1, SyncAnswer::Have(have)))),
        seed(5, &encoded(&SyncReply(1, status))),
        seed(5, &encoded(&SyncReply(0, SyncAnswer::Error("busy".into())))),
        seed(6, &encoded(&BlockCall::Request(1, request))),
        seed(
            6,
            &encoded(&BlockCall::Batch(2, BatchRequest(vec![object(); 2]))),
        ),
        seed(6, &encoded(&BlockCall::Cancel(1))),
        seed(
            7,
            &encoded(&BlockHead::Data {
                number: 6,
                length: 70_000,
            }),
        ),
        seed(7, &encoded(&dont_have)),
        seed(
            7,
            &encoded(&BlockHead::Batch {
                number: 9,
                here: bytes(3),
            }),
        ),
        seed(7, &encoded(&wrong_size)),
        seed(8, &stream),
    ]
}
