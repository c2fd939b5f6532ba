//! Proofs of ranges, and sets of blocks.

use std::ops::Range;

use p2pfs::content::{
    BLOCK_BYTES, BlockSet, ContentId, Object, encode_range, encoded_bytes, hash_bytes, hash_into,
    verify_range,
};

use crate::{run_chosen, seed};

/// Largest content that is really there.
const REAL_BYTES_MAX: u64 = 3 * BLOCK_BYTES + 1000;

pub(crate) fn run(data: &[u8]) {
    run_chosen(data, &[claimed, damaged, blocks]);
}

/// Takes a number off the front.
fn number(bytes: &mut &[u8]) -> u64 {
    let (number, rest) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
    *bytes = rest;
    u64::from_be_bytes(*number)
}

/// An answer about whatever object and range.
fn claimed(mut bytes: &[u8]) {
    let size = number(&mut bytes);
    let blocks = number(&mut bytes)..number(&mut bytes);
    let content = match size {
        0..=BLOCK_BYTES => hash_bytes(bytes),
        _ => ContentId([1; 32]),
    };
    let object = Object { content, size };
    let _ = encoded_bytes(object, blocks.clone());
    if let Ok(verified) = verify_range(object, blocks, bytes) {
        assert_eq!(&verified.data.concat()[..], bytes);
        assert_eq!(size, bytes.len() as u64);
    }
}

/// An answer that was right before somebody changed it.
fn damaged(mut bytes: &[u8]) {
    let size = number(&mut bytes) % REAL_BYTES_MAX + 1;
    let data: Vec<u8> = (0..size).map(|at| (at / 1000 % 251) as u8).collect();
    let mut tree = Vec::new();
    let content = hash_into(&data, size, &mut tree).expect("memory can be read and written");
    let object = Object { content, size };
    let count = object.blocks();
    let start = number(&mut bytes) % count;
    let blocks = start..start + 1 + number(&mut bytes) % (count - start);
    let length = encoded_bytes(object, blocks.clone());
    let mut encoded = vec![0; usize::try_from(length).expect("some megabytes")];
    encode_range(&data, &tree, object, blocks.clone(), &mut encoded).expect("all of it is here");
    let right = encoded.clone();
    while let Some(([high, middle, low, change], rest)) = bytes.split_first_chunk() {
        let place = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        if let Some(byte) = encoded.get_mut(place) {
            *byte ^= change;
        } else {
            encoded.truncate(place % (encoded.len() + 1));
        }
        bytes = rest;
    }
    match verify_range(object, blocks.clone(), &encoded) {
        Ok(verified) => {
            let at = object.bytes_of(blocks);
            assert_eq!(
                &verified.data.concat()[..],
                &data[at.start as usize..at.end as usize]
            );
            assert_eq!(encoded, right);
        }
        Err(_) => assert_ne!(encoded, right),
    }
}

fn blocks(mut bytes: &[u8]) {
    let probe = number(&mut bytes)..number(&mut bytes);
    let mut pairs = Vec::new();
    while !bytes.is_empty() {
        pairs.push((number(&mut bytes), number(&mut bytes)));
    }
    let ranges = |set: &BlockSet| -> u64 { set.ranges().iter().map(length).sum() };
    if let Ok(set) = BlockSet::try_from(pairs.clone()) {
        assert_eq!(Vec::from(set.clone()), pairs);
        assert_eq!(set.len(), ranges(&set));
    }
    let mut set = BlockSet::default();
    for (start, end) in pairs {
        set.insert(start..end);
        let present: Vec<_> = set.present(probe.clone()).collect();
        let missing: Vec<_> = set.missing(probe.clone()).collect();
        let sum = |parts: &[Range<u64>]| -> u64 { parts.iter().map(length).sum() };
        assert_eq!(sum(&present) + sum(&missing), length(&probe));
        assert_eq!(set.contains(probe.clone()), missing.is_empty());
    }
    set.remove(probe.clone());
    assert!(!set.intersects(&probe));
    assert_eq!(BlockSet::try_from(Vec::from(set.clone())), Ok(set));
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let numbers = |numbers: &[u64]| {
        numbers
            .iter()
            .flat_map(|n| n.to_be_bytes())
            .collect::<Vec<_>>()
    };
    vec![
        seed(0, &[numbers(&[5, 0, 1]).as_slice(), b"abcde"].concat()),
        seed(0, &numbers(&[1 << 62, (1 << 46) - 3, 1 << 46])),
        seed(1, &numbers(&[10, 0, 0])),
        seed(
            1,
            &[numbers(&[3 * BLOCK_BYTES, 1, 1]).as_slice(), &[0, 0, 7, 1]].concat(),
        ),
        seed(2, &numbers(&[2, 9, 1, 4, 6, 7, 8, u64::MAX])),
    ]
}
