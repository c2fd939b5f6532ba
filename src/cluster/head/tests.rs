use super::*;
use crate::{cluster::testing, manifest::Dot};

const NOW_NS: u64 = 1_700_000_000_000_000_000;

fn certificate() -> Certificate {
    Certificate::issue(&testing::keys(), &testing::peer(1)).unwrap()
}

fn covers() -> CausalContext {
    let mut covers = CausalContext::default();
    for (writer, sequence) in [(3, 7), (u64::MAX, 1)] {
        let writer = WriterNumber(writer);
        covers.add(Dot { writer, sequence });
    }
    covers
}

fn head_at(time_ns: u64) -> Head {
    Head::sign(
        &testing::keys(),
        &testing::node(1),
        &certificate(),
        NodeHash([9; 32]),
        covers(),
        4,
        HybridTime(time_ns),
    )
    .unwrap()
}

#[test]
fn every_member_accepts_a_writers_head() {
    let head = head_at(NOW_NS);
    assert_eq!(head.writer, WriterNumber::of(&testing::peer(1)));
    assert_eq!(head.verify(&testing::keys(), NOW_NS), Ok(()));
    let reader = testing::id().read_only().keys();
    assert_eq!(head.verify(&reader, NOW_NS), Ok(()));
    assert_eq!(Head::decode(&head.encode()), Ok(head));
}

#[test]
fn every_field_is_covered_by_the_signature() {
    let mutations: [fn(&mut Head); 12] = [
        |head| head.topic.0[0] ^= 1,
        |head| head.epoch += 1,
        |head| head.root.0[31] ^= 1,
        |head| {
            head.covers.add(Dot {
                writer: WriterNumber(5),
                sequence: 1,
            })
        },
        |head| {
            head.covers.add(Dot {
                writer: WriterNumber(3),
                sequence: 8,
            })
        },
        |head| head.covers = CausalContext::default(),
        |head| head.writer.0 ^= 1,
        |head| head.sequence += 1,
        |head| head.time.0 -= 1,
        // As good a certificate, for somebody else.
        |head| {
            head.certificate = Certificate::issue(&testing::keys(), &testing::peer(2)).unwrap();
        },
        |head| {
            let other = testing::other_keys();
            head.certificate = Certificate::issue(&other, &testing::peer(1)).unwrap();
        },
        |head| head.signature[0] ^= 1,
    ];
    for (index, mutate) in mutations.into_iter().enumerate() {
        let mut head = head_at(NOW_NS);
        mutate(&mut head);
        let keys = testing::keys();
        assert!(head.verify(&keys, NOW_NS).is_err(), "{index}");
        // Not only because of other checks: the signed message itself is another.
        let good = head_at(NOW_NS);
        let same_message = head.message(&keys) == good.message(&keys);
        assert_eq!(same_message, head.signature != good.signature, "{index}");
    }
}

#[test]
fn a_head_of_another_cluster_or_epoch_is_foreign() {
    let head = head_at(NOW_NS);
    let other = testing::other_keys();
    assert_eq!(head.verify(&other, NOW_NS), Err(HeadError::Foreign));
    let next = Head { epoch: 1, ..head };
    let verdict = next.verify(&testing::keys(), NOW_NS);
    assert_eq!(verdict, Err(HeadError::Foreign));
}

#[test]
fn a_writer_number_that_is_not_the_signers_is_refused_even_if_signed() {
    let keys = testing::keys();
    let mut head = head_at(NOW_NS);
    head.writer = WriterNumber::of(&testing::peer(2));
    let signature = testing::node(1).sign(&head.message(&keys)).unwrap();
    head.signature = signature.try_into().unwrap();
    assert_eq!(head.verify(&keys, NOW_NS), Err(HeadError::Signature));
}

#[test]
fn only_a_peer_id_that_contains_an_ed25519_key_can_sign() {
    let keys = testing::keys();
    // A hash of a key instead of the key, and an id that contains no key at all.
    let hashed = [&[0x12, 32][..], &[7; 32]].concat();
    let keyless = [&[0x00, 4][..], &[7; 4]].concat();
    for bytes in [hashed, keyless] {
        let peer = PeerId::from_bytes(&bytes).unwrap();
        let mut head = head_at(NOW_NS);
        head.certificate = Certificate::issue(&keys, &peer).unwrap();
        head.writer = WriterNumber::of(&peer);
        assert_eq!(head.verify(&keys, NOW_NS), Err(HeadError::Signature));
    }
}

#[test]
fn a_head_without_sequence_is_refused_even_if_signed() {
    let keys = testing::keys();
    let mut head = head_at(NOW_NS);
    head.sequence = 0;
    let signature = testing::node(1).sign(&head.message(&keys)).unwrap();
    head.signature = signature.try_into().unwrap();
    let verdict = head.verify(&keys, NOW_NS);
    assert!(matches!(verdict, Err(HeadError::Malformed(_))));
}

#[test]
fn a_node_signs_with_its_own_certificate_only() {
    let keys = testing::keys();
    let sign = |node: u8, sequence, covers| {
        let (root, time) = (NodeHash([9; 32]), HybridTime(NOW_NS));
        let node = testing::node(node);
        Head::sign(&keys, &node, &certificate(), root, covers, sequence, time)
    };
    assert_eq!(sign(2, 1, covers()), Err(HeadError::Signature));
    assert!(matches!(sign(1, 0, covers()), Err(HeadError::Malformed(_))));
    let mut crowd = CausalContext::default();
    for writer in 0..7000 {
        let writer = WriterNumber(u64::MAX - writer);
        crowd.add(Dot {
            writer,
            sequence: 1,
        });
    }
    assert!(matches!(sign(1, 1, crowd), Err(HeadError::Malformed(_))));
}

#[test]
fn a_head_from_more_than_five_minutes_ahead_is_refused_with_a_word_about_clocks() {
    let keys = testing::keys();
    let limit = head_at(NOW_NS + HEAD_FUTURE_MAX_NS);
    assert_eq!(limit.verify(&keys, NOW_NS), Ok(()));
    let beyond = head_at(NOW_NS + HEAD_FUTURE_MAX_NS + 60_000_000_000);
    let error = beyond.verify(&keys, NOW_NS).unwrap_err();
    let peer = testing::peer(1);
    let seconds = 360;
    assert_eq!(error, HeadError::Future { seconds, peer });
    assert!(error.to_string().contains("360 s in the future"));
    // Time passes, and it is fine.
    assert_eq!(beyond.verify(&keys, NOW_NS + 60_000_000_000), Ok(()));
}

#[test]
fn only_the_canonical_encoding_decodes() {
    let good = head_at(NOW_NS).encode();
    let mut longer = good.clone();
    longer.push(0);
    assert!(Head::decode(&longer).is_err());
    for cut in 0..good.len() {
        assert!(Head::decode(&good[..cut]).is_err());
    }
    // A field more than there should be, and the field count to match.
    let mut more = good.clone();
    more[0] += 1;
    more.extend_from_slice(&[0x61, b'x', 0]);
    assert!(Head::decode(&more).is_err());
    // The epoch, 0, in two bytes where one does.
    let epoch = good
        .windows(7)
        .position(|part| part == b"\x65epoch\x00")
        .unwrap();
    let mut long_number = good.clone();
    long_number.splice(epoch + 6..epoch + 7, [0x18, 0]);
    assert!(Head::decode(&long_number).is_err());
}

#[test]
fn large_or_deeply_nested_input_is_refused() {
    assert!(Head::decode(&vec![0; ENCODED_BYTES_MAX + 1]).is_err());
    assert!(Head::decode(&vec![0x81; ENCODED_BYTES_MAX]).is_err());
    let mut nested = vec![0xa1, 0x61, b'x'];
    nested.resize(ENCODED_BYTES_MAX, 0x81);
    assert!(Head::decode(&nested).is_err());
    // A map, a byte string and an array that claim to be huge.
    for claim in [0xbb, 0x5b, 0x9b] {
        let mut bytes = vec![claim];
        bytes.extend_from_slice(&u64::MAX.to_be_bytes());
        assert!(Head::decode(&bytes).is_err());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What travels and is signed is part of the format: these bytes must never change.
#[test]
fn golden_bytes() {
    let head = head_at(NOW_NS);
    let expected = "a9 \
         65746f706963 5820cac81182dcc4266d4dd404b22d25d767b37c01ec3e6ab221aa5296dc9d4db4b1 \
         6565706f6368 00 \
         64726f6f74 58200909090909090909090909090909090909090909090909090909090909090909 \
         66636f76657273 a203071bffffffffffffffff01 \
         66777269746572 1b833bb8b1cb5eb6c4 \
         6873657175656e6365 04 \
         6474696d65 1b17979cfe362a0000 \
         6b6365727469666963617465 a6 \
         6565706f6368 00 \
         6470656572 58260024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c \
         64726f6c65 01 \
         6d6e6f745f6265666f72655f6e73 00 \
         6c6e6f745f61667465725f6e73 1bffffffffffffffff \
         697369676e6174757265 58400650f2290c32da982adab7933cdc23f991ff3dd3c0aad281aad12d2ad30e281348244339ef8 \
         0abee8ed1715df632f7d97684e1dd727d6ca06bc783626ecd5100 \
         697369676e6174757265 584035621eefa291b6e0fcd1b8b5ad5ab29310a8a0368ab03cfbcf11a6480a1e7ffec3d8e027635 \
         e1d57a52f8664dc2aa414bd19f36cbb9f2d67d9754050b03df408".replace(' ', "");
    assert_eq!(hex(&head.encode()), expected);
    let expected = "70327066732068656164207631 \
         2000000000000000cac81182dcc4266d4dd404b22d25d767b37c01ec3e6ab221aa5296dc9d4db4b1 \
         08000000000000000000000000000000 \
         20000000000000000909090909090909090909090909090909090909090909090909090909090909 \
         200000000000000003000000000000000700000000000000ffffffffffffffff0100000000000000 \
         0800000000000000c4b65ecbb1b83b83 \
         08000000000000000400000000000000 \
         080000000000000000002a36fe9c9717 \
         ea00000000000000 \
         703270667320777269746572206365727469666963617465207631 \
         2000000000000000cac81182dcc4266d4dd404b22d25d767b37c01ec3e6ab221aa5296dc9d4db4b1 \
         08000000000000000000000000000000 \
         26000000000000000024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c \
         010000000000000001 \
         08000000000000000000000000000000 \
         0800000000000000ffffffffffffffff \
         0650f2290c32da982adab7933cdc23f991ff3dd3c0aad281aad12d2ad30e281348244339ef80abee8ed1715df632f7d97684 \
         e1dd727d6ca06bc783626ecd5100".replace(' ', "");
    assert_eq!(hex(&head.message(&testing::keys())), expected);
}
