//! Random operations, compared with sets of blocks in memory.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::store::record::object_key;

#[derive(Clone, Debug)]
enum Operation {
    Insert(usize, Range<u64>),
    Drop(usize, Range<u64>),
    Read(usize, Range<u64>),
    Encode(usize, Range<u64>),
    Import(usize),
    Settle,
    Reopen,
}

/// Small, one block, several, many.
const SIZES: [u64; 4] = [3000, 50_000, 5 * BLOCK_BYTES + 7, 40 * BLOCK_BYTES];

fn operation() -> impl Strategy<Value = Operation> {
    let target = || {
        (0..SIZES.len()).prop_flat_map(|index| {
            let blocks = SIZES[index].div_ceil(BLOCK_BYTES);
            (Just(index), 0..blocks, 1..=blocks.min(8)).prop_map(move |(index, start, length)| {
                (index, start..(start + length).min(blocks))
            })
        })
    };
    prop_oneof![
        8 => target().prop_map(|(index, blocks)| Operation::Insert(index, blocks)),
        3 => target().prop_map(|(index, blocks)| Operation::Drop(index, blocks)),
        6 => target().prop_map(|(index, blocks)| Operation::Read(index, blocks)),
        3 => target().prop_map(|(index, blocks)| Operation::Encode(index, blocks)),
        1 => (0..SIZES.len()).prop_map(Operation::Import),
        1 => Just(Operation::Settle),
        1 => Just(Operation::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn a_store_holds_what_a_set_of_blocks_holds(operations in vec(operation(), 1..60)) {
        let samples = SIZES.map(|size| Sample::new(size, size));
        let mut model = SIZES.map(|_| BlockSet::default());
        let (_dir, mut store) = new_store();
        for operation in operations {
            match operation {
                Operation::Insert(index, blocks) => {
                    store.insert(&samples[index].range(blocks.clone())).unwrap();
                    model[index].insert(blocks);
                }
                Operation::Drop(index, blocks) => {
                    store.drop_blocks(&samples[index].object, blocks.clone()).unwrap();
                    model[index].remove(blocks);
                }
                Operation::Read(index, blocks) => {
                    let sample = &samples[index];
                    match read_blocks(&store, &sample.object, blocks.clone()) {
                        Ok(bytes) => {
                            prop_assert!(model[index].contains(blocks.clone()));
                            prop_assert!(bytes == sample.slice(blocks));
                        }
                        Err(StoreError::Absent(missing)) => {
                            let expected = model[index].missing(blocks.clone()).next();
                            // Of an object that isn't here at all, everything is missing.
                            prop_assert_eq!(expected, Some(missing));
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Operation::Encode(index, blocks) => {
                    let object = samples[index].object;
                    match store.encode(&object, blocks.clone()) {
                        Ok(encoded) => {
                            prop_assert!(model[index].contains(blocks.clone()));
                            prop_assert!(verify_range(object, blocks, &encoded).is_ok());
                        }
                        Err(StoreError::Absent(_)) => prop_assert!(!model[index].contains(blocks)),
                        Err(error) => panic!("{error}"),
                    }
                }
                Operation::Import(index) => {
                    let sample = &samples[index];
                    let (id, file) = store.stage().unwrap();
                    file.write_all_at(&sample.data, 0).unwrap();
                    prop_assert_eq!(store.import(id, sample.object.size, &Leaves::default()).unwrap(), sample.object);
                    store.unstage(id).unwrap();
                    model[index].insert(0..sample.object.blocks());
                }
                Operation::Settle => store.settle().unwrap(),
                Operation::Reopen => store = reopen(store),
            }
            let mut bytes = 0;
            for (sample, present) in samples.iter().zip(&model) {
                let expected = if present.is_empty() {
                    Presence::Absent
                } else if present.contains(0..sample.object.blocks()) {
                    Presence::Complete
                } else {
                    Presence::Partial(present.clone())
                };
                prop_assert_eq!(store.presence(&sample.object).unwrap(), expected);
                bytes += present
                    .ranges()
                    .iter()
                    .map(|range| sample.slice(range.clone()).len() as u64)
                    .sum::<u64>();
            }
            prop_assert_eq!(store.usage().unwrap().objects_bytes, bytes);
        }
        prop_assert_eq!(damage(&store), []);
    }
}

proptest! {
    #[test]
    fn any_set_of_blocks_survives_its_record(
        ranges in vec((0..500u64, 1..60u64), 0..20),
        loose in vec((0..500u64, 1..60u64), 0..5),
    ) {
        let object = Object { content: ContentId([3; 32]), size: 560 * BLOCK_BYTES };
        let mut present = BlockSet::default();
        for (start, length) in ranges {
            present.insert(start..start + length);
        }
        let mut loose_set = BlockSet::default();
        for (start, length) in loose {
            for range in present.present(start..start + length) {
                loose_set.insert(range);
            }
        }
        let record = ObjectRecord {
            origin: Origin::Written,
            size_proven: false,
            last_use: 1 << 40,
            inline: None,
            packed: None,
            present,
            loose: loose_set,
        };
        let encoded = record.encode(&object);
        prop_assert_eq!(ObjectRecord::decode(&object, &encoded).unwrap(), record);
    }

    #[test]
    fn no_bytes_make_decoding_a_record_panic_or_claim_too_much(
        mut value in vec(any::<u8>(), 0..60),
        size in prop_oneof![Just(0u64), 1..5000u64, Just(9 * BLOCK_BYTES), Just(u64::MAX)],
    ) {
        if let Some(version) = value.first_mut() {
            *version = 1;
        }
        let object = Object { content: ContentId([3; 32]), size };
        prop_assert_eq!(record::parse_object_key(&object_key(&object)).unwrap(), object);
        if let Ok(record) = ObjectRecord::decode(&object, &value) {
            prop_assert!(record.present.ranges().iter().all(|range| range.end <= object.blocks()));
        }
        let _ = record::decode_journal(&value);
    }
}
