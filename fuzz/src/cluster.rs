//! Heads, certificates, causal contexts, cluster ids as text, sealed records.

use std::sync::LazyLock;

use libp2p::identity::Keypair;
use p2pfs::{
    cluster::{Certificate, ClusterId, ClusterKeys, ClusterName, Head, ParsedCluster, SealKind},
    manifest::{CausalContext, Dot, HybridTime, WriterNumber, empty_root},
    net::framing,
};

use crate::{run_chosen, seed};

const NOW_NS: u64 = 1_700_000_000_000_000_000;

static KEYS: LazyLock<ClusterKeys> = LazyLock::new(|| id().keys());

fn id() -> ClusterId {
    ClusterId::generate([7; 32])
}

pub(crate) fn run(data: &[u8]) {
    run_chosen(data, &[head, context, text, sealed, certificate]);
}

fn head(bytes: &[u8]) {
    if let Ok(head) = Head::decode(bytes) {
        assert_eq!(head.encode(), bytes);
        // Nobody else has the keys.
        assert!(head.verify(&KEYS, NOW_NS).is_err() || head == signed());
    }
}

fn context(bytes: &[u8]) {
    if let Ok(context) = framing::decode::<CausalContext>(bytes) {
        let mut joined = context.clone();
        joined.join(&context);
        assert_eq!(joined, context);
        for (writer, first, last) in context.ranges() {
            let covers = |sequence| context.covers(Dot { writer, sequence });
            assert!(covers(first) && covers(last));
        }
        crate::messages::survives(&context);
    }
}

fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = text.parse::<ClusterId>() {
        assert_eq!(id.to_string(), text.trim().to_ascii_lowercase());
        let _ = id.read_only().keys().topic();
    }
    if let Ok(parsed) = text.parse::<ParsedCluster>() {
        assert!(parsed.trackers.iter().all(|tracker| !tracker.is_empty()));
    }
    if let Ok(name) = text.parse::<ClusterName>() {
        assert_eq!(name.as_str(), text);
        assert!(text.parse::<ClusterId>().is_err());
    }
}

fn sealed(bytes: &[u8]) {
    let (key, sealed) = bytes.split_at(bytes.len().min(32));
    for kind in [SealKind::Head, SealKind::Node] {
        if let Ok(plain) = KEYS.open(kind, key, sealed) {
            assert_eq!(plain.len() + 40, sealed.len());
        }
    }
}

fn certificate(bytes: &[u8]) {
    if let Ok(certificate) = framing::decode::<Certificate>(bytes) {
        let _ = certificate.verify(&KEYS, NOW_NS);
        crate::messages::survives(&certificate);
    }
}

fn some_context() -> CausalContext {
    let mut context = CausalContext::default();
    for (writer, sequence) in [(3, 1), (500, 70_000), (u64::MAX, 4)] {
        let writer = WriterNumber(writer);
        context.add(Dot { writer, sequence });
    }
    let (writer, sequence) = (WriterNumber(500), 90_000);
    context.add_apart(Dot { writer, sequence }, 80_000);
    context
}

fn node() -> Keypair {
    Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes are a key")
}

fn issued() -> Certificate {
    let peer = node().public().to_peer_id();
    Certificate::issue(&KEYS, &peer).expect("the id grants writing")
}

fn signed() -> Head {
    let time = HybridTime(NOW_NS);
    let signed = Head::sign(
        &KEYS,
        &node(),
        &issued(),
        empty_root(),
        some_context(),
        4,
        time,
    );
    signed.expect("certificate, node and sequence fit")
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let id = id();
    let with_trackers = format!("{}@tracker.example.org,192.0.2.1:7474", id.read_only());
    let sealed = KEYS.seal(SealKind::Node, &[1; 32], [2; 24], b"a node");
    vec![
        seed(0, &signed().encode()),
        seed(1, &crate::messages::encoded(&some_context())),
        seed(2, id.to_string().as_bytes()),
        seed(2, with_trackers.as_bytes()),
        seed(2, b"photos-2026"),
        seed(3, &[&[1; 32], sealed.as_slice()].concat()),
        seed(4, &crate::messages::encoded(&issued())),
    ]
}
