use proptest::prelude::*;

use super::*;
use crate::content::sizes::INTERESTING_SIZES;

/// Bytes without a period that a block or a chunk could hide.
fn bytes(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new()
        .update(b"p2pfs test content")
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn hashed(data: &[u8]) -> (Object, Vec<u8>) {
    let mut tree = Vec::new();
    let content = hash_into(&data, data.len() as u64, &mut tree).unwrap();
    let size = data.len() as u64;
    (Object { content, size }, tree)
}

fn encoded(data: &[u8], tree: &[u8], object: Object, blocks: Range<u64>) -> Vec<u8> {
    let mut out = vec![7; encoded_bytes(object, blocks.clone()) as usize];
    encode_range(&data, &tree, object, blocks, &mut out).unwrap();
    out
}

/// All ranges for few blocks, those at the edges and in the middle for many.
fn ranges(blocks: u64) -> Vec<Range<u64>> {
    let points: Vec<u64> = if blocks <= 8 {
        (0..=blocks).collect()
    } else {
        vec![0, 1, 2, blocks / 2, blocks - 2, blocks - 1, blocks]
    };
    let starts = points.iter();
    starts
        .flat_map(|&start| points.iter().map(move |&end| start..end))
        .filter(|range| !range.is_empty())
        .collect()
}

#[test]
fn content_ids_are_blake3_and_trees_have_a_node_less_than_blocks() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        assert_eq!(object.content.0, *blake3::hash(&data).as_bytes(), "{size}");
        assert_eq!(object.content, hash_bytes(&data), "{size}");
        let nodes = object.blocks().saturating_sub(1);
        assert_eq!(tree.len() as u64, nodes * NODE_BYTES, "{size}");
    }
}

#[test]
fn the_tree_is_the_preorder_outboard_of_the_bao_format() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let reference = bao_tree::io::outboard::PreOrderMemOutboard::create(&data, GROUP);
        assert_eq!(hashed(&data).1, reference.data, "{size}");
    }
}

#[test]
fn nodes_reach_their_places_when_they_are_written_in_several_batches() {
    let size = 2 * BATCH_BLOCKS * BLOCK_BYTES + 3 * BLOCK_BYTES + 1;
    let zeros = Zeros(size);
    let mut tree = Vec::new();
    let content = hash_into(&zeros, size, &mut tree).unwrap();
    let object = Object { content, size };
    assert_eq!(tree.len() as u64, (object.blocks() - 1) * NODE_BYTES);
    for start in [0, 1, 4095, 4096, 8191, object.blocks() - 1] {
        let blocks = start..start + 1;
        let mut out = vec![0; encoded_bytes(object, blocks.clone()) as usize];
        encode_range(&zeros, &tree, object, blocks, &mut out).unwrap();
        verify_range(object, start..start + 1, &out).unwrap();
    }
}

struct Zeros(u64);

impl ReadAt for Zeros {
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min((self.0 - position) as usize);
        buffer[..count].fill(0);
        Ok(count)
    }
}

#[test]
fn every_range_is_proven_with_exactly_the_predicted_bytes() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        for blocks in ranges(object.blocks()) {
            let answer = encoded(&data, &tree, object, blocks.clone());
            let predicted = encoded_bytes(object, blocks.clone());
            assert_eq!(answer.len() as u64, predicted, "{size} {blocks:?}");
            let verified = verify_range(object, blocks.clone(), &answer).unwrap();
            let span = object.bytes_of(blocks.clone());
            assert_eq!(
                verified.data.concat(),
                data[span.start as usize..span.end as usize]
            );
            assert_eq!((verified.object, verified.blocks), (object, blocks));
            for (offset, pair) in verified.nodes {
                assert_eq!(tree[offset as usize..][..64], pair, "{size} {offset}");
            }
        }
    }
}

#[test]
fn the_encoding_is_that_of_the_bao_format() {
    for &size in INTERESTING_SIZES.iter().filter(|&&size| size > 0) {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        let outboard = bao_tree::io::outboard::PreOrderMemOutboard::create(&data, GROUP);
        for blocks in ranges(object.blocks()) {
            let start = ChunkNum(blocks.start * CHUNKS_PER_BLOCK);
            let end = ChunkNum(blocks.end * CHUNKS_PER_BLOCK);
            let mut reference = Vec::new();
            bao_tree::io::sync::encode_ranges_validated(
                &data[..],
                &outboard,
                &ChunkRanges::from(start..end),
                &mut reference,
            )
            .unwrap();
            assert!(
                encoded(&data, &tree, object, blocks.clone()) == reference,
                "{size} {blocks:?}"
            );
        }
    }
}

#[test]
fn the_parts_of_a_tree_that_lead_to_a_range_are_those_that_its_proof_is_read_from() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        for blocks in ranges(object.blocks()) {
            let answer = encoded(&data, &tree, object, blocks.clone());
            let verified = verify_range(object, blocks.clone(), &answer).unwrap();
            let needed = verified.nodes.iter().map(|(offset, _)| *offset);
            let exact = tree_parts(object, &blocks, 0);
            let nodes = exact.iter().flat_map(|part| part.clone().step_by(64));
            assert!(nodes.eq(needed.clone()), "{size}: {blocks:?}");
            for part in tree_parts(object, &blocks, 128) {
                assert!(needed.clone().any(|offset| offset == part.start));
                assert!(needed.clone().any(|offset| offset + 64 == part.end));
            }
            let whole = tree_parts(object, &blocks, u64::MAX);
            assert_eq!(whole.len(), usize::from(!exact.is_empty()));
        }
        assert_eq!(tree_parts(object, &(0..object.blocks() + 1), 0), []);
    }
}

#[test]
fn ranges_that_are_empty_or_beyond_the_content_are_refused() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        let end = object.blocks();
        for blocks in [0..0, end..end, end..end + 1, 0..end + 1, 0..u64::MAX] {
            let mut out = [7];
            assert!(encode_range(&&data[..], &tree, object, blocks.clone(), &mut out).is_err());
            assert_eq!(
                verify_range(object, blocks, &[]).unwrap_err(),
                RangeError::Range
            );
        }
    }
}

#[test]
fn absurd_claims_are_refused_at_once() {
    let content = hash_bytes(b"x");
    for size in [CONTENT_BYTES_MAX, CONTENT_BYTES_MAX + 1, u64::MAX] {
        let object = Object { content, size };
        let last = object.blocks() - 1;
        for blocks in [0..1, 0..last + 1, last..last + 1] {
            assert!(encoded_bytes(object, blocks.clone()) > 1);
            assert!(verify_range(object, blocks, &[1]).is_err());
        }
    }
}

#[test]
fn data_or_tree_that_end_early_and_room_of_another_length_give_an_error() {
    let data = bytes(3 * BLOCK_BYTES);
    let (object, tree) = hashed(&data);
    let mut out = vec![7; encoded_bytes(object, 0..3) as usize];
    let short = &data[..data.len() - 1];
    let error = encode_range(&short, &tree, object, 0..3, &mut out).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(encode_range(&&data[..], &&tree[..127], object, 0..3, &mut out).is_err());
    out.push(7);
    let error = encode_range(&&data[..], &tree, object, 0..3, &mut out).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(hash_into(&short, object.size, &mut Vec::new()).is_err());
}

#[test]
fn who_holds_a_part_proves_that_part_to_others() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        for blocks in ranges(object.blocks()) {
            // The partial holder's files are sparse: holes read as zeros.
            let mut partial_data = vec![0; data.len()];
            let mut partial_tree = vec![0; tree.len()];
            let answer = encoded(&data, &tree, object, blocks.clone());
            let verified = verify_range(object, blocks.clone(), &answer).unwrap();
            let start = object.bytes_of(blocks.clone()).start as usize;
            let proven = verified.data.concat();
            partial_data[start..][..proven.len()].copy_from_slice(&proven);
            for (offset, pair) in &verified.nodes {
                partial_tree[*offset as usize..][..64].copy_from_slice(pair);
            }
            for part in [
                blocks.clone(),
                blocks.start..blocks.start + 1,
                blocks.end - 1..blocks.end,
            ] {
                let again = encoded(&partial_data, &partial_tree, object, part.clone());
                assert!(verify_range(object, part, &again).is_ok(), "{size}");
            }
            // What it doesn't hold, it cannot prove.
            if blocks.start > 0 {
                let lie = encoded(&partial_data, &partial_tree, object, 0..1);
                assert_eq!(
                    verify_range(object, 0..1, &lie).unwrap_err(),
                    RangeError::Mismatch
                );
            }
        }
    }
}

#[test]
fn the_last_block_proves_the_size_and_no_other_size() {
    for &size in INTERESTING_SIZES.iter().filter(|&&size| size > 0) {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        let last = object.blocks() - 1;
        let honest = encoded(&data, &tree, object, last..last + 1);
        assert!(verify_range(object, last..last + 1, &honest).is_ok());
        for &claim in INTERESTING_SIZES.iter().filter(|&&claim| claim != size) {
            let wrong = Object {
                size: claim,
                ..object
            };
            let Some(wrong_last) = wrong.blocks().checked_sub(1) else {
                continue;
            };
            // Each way of making an answer of the claimed length: the honest bytes under another geometry, cut or padded.
            let mut padded_data = data.clone();
            padded_data.resize(claim as usize, 0);
            let mut padded_tree = tree.clone();
            padded_tree.resize(wrong_last as usize * 64, 0);
            for start in [0, wrong_last] {
                let blocks = start..wrong_last + 1;
                let forged = encoded(&padded_data, &padded_tree, wrong, blocks.clone());
                assert!(
                    verify_range(wrong, blocks.clone(), &forged).is_err(),
                    "{size} as {claim}"
                );
                assert!(verify_range(wrong, blocks, &honest).is_err());
            }
        }
    }
}

#[test]
fn an_answer_that_is_longer_or_shorter_is_refused() {
    let data = bytes(5 * BLOCK_BYTES + 1);
    let (object, tree) = hashed(&data);
    let mut answer = encoded(&data, &tree, object, 1..6);
    let expected = answer.len() as u64;
    answer.push(0);
    let actual = expected + 1;
    assert_eq!(
        verify_range(object, 1..6, &answer).unwrap_err(),
        RangeError::Length { expected, actual }
    );
    answer.truncate(expected as usize - 1);
    assert!(verify_range(object, 1..6, &answer).is_err());
    assert!(verify_range(object, 1..6, &[]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_flipped_bit_is_refused(
        size in proptest::sample::select(INTERESTING_SIZES),
        start: prop::sample::Index,
        end: prop::sample::Index,
        place: prop::sample::Index,
        bit in 0..8u32,
    ) {
        prop_assume!(size > 0);
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        let start = start.index(object.blocks() as usize) as u64;
        let blocks = start..start + 1 + end.index((object.blocks() - start) as usize) as u64;
        let mut answer = encoded(&data, &tree, object, blocks.clone());
        let place = place.index(answer.len());
        answer[place] ^= 1 << bit;
        prop_assert_eq!(verify_range(object, blocks, &answer).unwrap_err(), RangeError::Mismatch);
    }

    #[test]
    fn an_answer_for_other_blocks_is_refused(from in 0..16u64, to in 0..16u64) {
        prop_assume!(from != to);
        let data = bytes(16 * BLOCK_BYTES);
        let (object, tree) = hashed(&data);
        let answer = encoded(&data, &tree, object, from..from + 1);
        prop_assert_eq!(verify_range(object, to..to + 1, &answer).unwrap_err(), RangeError::Mismatch);
    }
}

#[test]
fn what_is_known_of_blocks_is_taken_and_not_read() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, tree) = hashed(&data);
        let whole = size / BLOCK_BYTES;
        for step in 1..4 {
            let mut known = Leaves::default();
            let mut unreadable = data.clone();
            for block in (0..whole).step_by(step).filter(|_| object.blocks() > 1) {
                let span = object.bytes_of(block..block + 1);
                let span = span.start as usize..span.end as usize;
                known.put(block, leaf_hash(block, &data[span.clone()]));
                unreadable[span].fill(0);
            }
            let mut made = Vec::new();
            let content = hash_over(&unreadable, size, &known, &mut made).unwrap();
            assert_eq!(
                (content, made),
                (object.content, tree.clone()),
                "{size} {step}"
            );
        }
    }
}

#[test]
fn leaves_of_a_tree_are_proven_and_those_of_the_blocks() {
    for &size in INTERESTING_SIZES {
        let data = bytes(size);
        let (object, mut tree) = hashed(&data);
        if object.blocks() < 2 {
            assert!(leaves_of(&tree, object, 0..object.blocks()).is_err());
            continue;
        }
        for blocks in ranges(object.blocks()) {
            let leaves = leaves_of(&tree, object, blocks.clone()).unwrap();
            let expected: Vec<_> = blocks
                .map(|block| {
                    let span = object.bytes_of(block..block + 1);
                    leaf_hash(block, &data[span.start as usize..span.end as usize])
                })
                .collect();
            assert_eq!(leaves, expected, "{size}");
        }
        assert!(leaves_of(&tree, object, 0..object.blocks() + 1).is_err());
        let last = tree.len() - 1;
        tree[last] ^= 1;
        let error = leaves_of(&tree, object, 0..object.blocks()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
