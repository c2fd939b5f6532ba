//! One flipped bit, anywhere in a state folder: nothing that is read is wrong, and what is lost is said and kept aside.
//!
//! `P2PFS_SEED` chooses the places, `P2PFS_RUNS` how many of each file.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::manifest::NodeHash;

/// What lies in a state folder.
struct Contents {
    samples: Vec<Sample>,
    partial: Sample,
    nodes: Vec<(NodeHash, Vec<u8>)>,
    heads: BTreeMap<Vec<u8>, Vec<u8>>,
    journaled: Vec<(StagingId, JournalRecord)>,
}

fn value(seed: u64, length: usize) -> Vec<u8> {
    Sample::new(length as u64, seed).data
}

/// A folder in memory, where there is one: the tests open stores by the hundred, and each syncs.
fn memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

impl Contents {
    /// Fills a store with some of everything, over two processes, so that sled has both a page table and a log after it.
    fn make(dir: &Path) -> Self {
        let sizes = [30, 3000, 4096, 9000, 70_000, 5 * BLOCK_BYTES + 7];
        let samples: Vec<_> = (0..60)
            .map(|number| {
                Sample::new(
                    sizes[number % sizes.len()] + number as u64 / 6,
                    number as u64,
                )
            })
            .collect();
        let nodes: Vec<_> = (0..300)
            .map(|number| value(1000 + number, 100 + 37 * number as usize))
            .chain([value(7, 200_000)])
            .map(|encoded| (NodeHash::of(&encoded), encoded))
            .collect();
        let heads: BTreeMap<_, _> = (0..40)
            .map(|number| (value(2000 + number, 9), value(3000 + number, 300)))
            .collect();
        let partial = Sample::new(20 * BLOCK_BYTES, 99);
        let mut journaled = Vec::new();
        for half in 0..2 {
            let store = open(dir).unwrap();
            for (number, sample) in samples
                .iter()
                .enumerate()
                .filter(|(number, _)| number % 2 == half)
            {
                match number % 3 {
                    0 => store.insert(&sample.all()).unwrap(),
                    _ => publish(&store, sample),
                }
            }
            for nodes in nodes[150 * half..].chunks(50).take(3 + half) {
                store.put_nodes(nodes).unwrap();
            }
            for (key, head) in heads.iter().skip(half).step_by(2) {
                store.put_head(key, head).unwrap();
            }
            store
                .insert(&partial.range(half as u64 * 9..half as u64 * 9 + 5))
                .unwrap();
            let (id, file) = store.stage().unwrap();
            file.write_all_at(&value(id.0, 10_000), 0).unwrap();
            let record = entry(10_000 + id.0);
            store.journal(id, &record, false).unwrap();
            store.journal(id, &record, true).unwrap();
            journaled.push((id, record));
            store.set_setting("some", Some(b"setting")).unwrap();
            store.settle().unwrap();
        }
        Self {
            samples,
            partial,
            nodes,
            heads,
            journaled,
        }
    }

    /// Compares what a store has; returns how many things are missing. A wrong byte is a panic.
    fn compare(&self, store: &Store) -> usize {
        let mut missing = 0;
        for sample in &self.samples {
            missing += usize::from(!reads_well(store, sample, 0..sample.object.blocks()));
        }
        for blocks in [0..5, 9..14] {
            missing += usize::from(!reads_well(store, &self.partial, blocks));
        }
        for (hash, encoded) in &self.nodes {
            match store.node(hash).unwrap() {
                Some(node) => assert!(node == encoded, "a wrong node"),
                None => missing += 1,
            }
        }
        let heads: BTreeMap<_, _> = store.heads().unwrap().into_iter().collect();
        for (key, head) in &heads {
            assert_eq!(self.heads.get(key), Some(head), "a wrong head");
        }
        missing += self.heads.len() - heads.len();
        match store.setting("some").unwrap() {
            Some(setting) => assert_eq!(setting, b"setting"),
            None => missing += 1,
        }
        let journaled = store.journaled().unwrap();
        for known in &journaled {
            assert!(
                self.journaled.contains(known),
                "a wrong journal record: {known:?}"
            );
        }
        missing + self.journaled.len() - journaled.len()
    }
}

/// Whether blocks can be read, each by itself, after a second look where the first fails; and offered to a peer.
fn reads_well(store: &Store, sample: &Sample, blocks: Range<u64>) -> bool {
    let mut well = true;
    for block in blocks {
        let range = block..block + 1;
        match read_blocks(store, &sample.object, range.clone()) {
            Ok(bytes) => assert!(bytes == sample.slice(range.clone()), "wrong bytes"),
            Err(StoreError::Absent(_)) => well = false,
            Err(error) => panic!("{error}"),
        }
        match store.encode(&sample.object, range.clone()) {
            Ok(encoded) => drop(verify_range(sample.object, range, &encoded).unwrap()),
            Err(StoreError::Absent(_)) => well = false,
            Err(error) => panic!("{error}"),
        }
    }
    well
}

/// Places in a file where a bit is to be flipped: near both ends, and some of those that hold anything.
fn places(bytes: &[u8], random: &mut StdRng, count: usize) -> Vec<usize> {
    let held: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let mut places: Vec<usize> = [held.first(), held.last(), held.get(held.len() / 2)]
        .into_iter()
        .flatten()
        .copied()
        .collect();
    places.extend((0..count.min(held.len())).map(|_| held[random.random_range(0..held.len())]));
    places.truncate(count);
    places
}

/// Flips bits of files of a folder, one at a time, and tries each.
fn flip_bits(state: &Path, contents: &Contents, share: impl Fn(&Path) -> usize) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let mut random = StdRng::seed_from_u64(number("P2PFS_SEED").unwrap_or(1));
    let factor = number("P2PFS_RUNS").unwrap_or(1) as usize;
    let scratch = memory();
    let files = walkdir::WalkDir::new(state).sort_by_file_name();
    for file in files {
        let file = file.unwrap();
        let name = file.path().strip_prefix(state).unwrap().to_owned();
        let count = share(&name) * factor;
        if !file.file_type().is_file() || count == 0 {
            continue;
        }
        let bytes = fs::read(file.path()).unwrap();
        for place in places(&bytes, &mut random, count) {
            let bit = random.random_range(0..8);
            println!("{}: byte {place}, bit {bit}", name.display());
            let copy = scratch.path().join("copy");
            copy_folder(state, &copy);
            let flipped = OpenOptions::new()
                .write(true)
                .open(copy.join(&name))
                .unwrap();
            flipped
                .write_all_at(&[bytes[place] ^ (1 << bit)], place as u64)
                .unwrap();
            match open(&copy) {
                Ok(store) => {
                    let missing = contents.compare(&store);
                    let may_be_fetched = name.starts_with("objects") || name.starts_with("packs");
                    // Where a flip hides where records begin, some are lost: that is said, and a new identity taken.
                    let is_told = store.is_restored_copy();
                    println!("missing: {missing}, told: {is_told}");
                    assert!(
                        missing == 0 || may_be_fetched || is_told,
                        "{missing} are missing"
                    );
                    // What it found is repaired: the next start finds nothing.
                    drop(store);
                    let store = open(&copy).unwrap();
                    assert_eq!(contents.compare(&store), missing);
                }
                Err(error) => {
                    assert_eq!(name, Path::new("format"), "{error}");
                    println!("{error}");
                }
            }
            fs::remove_dir_all(&copy).unwrap();
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_after_a_clean_end_is_found() {
    let dir = memory();
    let state = dir.path().join("state");
    let contents = Contents::make(&state);
    {
        let store = open(&state).unwrap();
        assert_eq!(contents.compare(&store), 0);
    }
    flip_bits(&state, &contents, |name| match name.to_string_lossy() {
        name if name.starts_with("index/db") => 16,
        name if name.starts_with("index") => 4,
        // What is written and not published has no hash.
        name if name.starts_with("staging") => 0,
        name if name.starts_with("journal") => 4,
        name if name.starts_with("format") => 2,
        name if name.starts_with("packs") => 8,
        // Of many files of a kind, some.
        name if name.starts_with("objects") && name.contains("/3") => 2,
        _ => 0,
    });
}

#[test]
fn a_flipped_bit_in_an_index_that_was_not_closed_is_found() {
    let dir = memory();
    let state = dir.path().join("state");
    let contents = Contents::make(&state);
    let store = open(&state).unwrap();
    for number in 0..600 {
        store
            .set_setting("other", Some(&value(number, 2000)))
            .unwrap();
    }
    store.flush().unwrap();
    // As a kill leaves it, at one moment: the index writes by itself now and then.
    let crashed = dir.path().join("crashed");
    let is_one_moment = || {
        copy_folder(&state, &crashed);
        let mut differs = Command::new("diff");
        differs.arg("-rq").args([&state, &crashed]);
        differs.output().unwrap().status.success() || fs::remove_dir_all(&crashed).is_err()
    };
    assert!((0..50).any(|_| is_one_moment()), "it never stands still");
    drop(store);
    flip_bits(&crashed, &contents, |name| match name.to_string_lossy() {
        name if name.starts_with("index/db") => 10,
        name if name.starts_with("index") => 2,
        _ => 0,
    });
}

#[test]
fn a_lost_index_takes_nothing_with_it_that_backing_files_have() {
    let dir = memory();
    let state = dir.path().join("state");
    let contents = Contents::make(&state);
    fs::remove_dir_all(state.join("index")).unwrap();
    let store = open(&state).unwrap();
    for sample in contents
        .samples
        .iter()
        .filter(|sample| sample.object.size > INLINE_BYTES_MAX)
    {
        assert!(reads_well(&store, sample, 0..sample.object.blocks()));
    }
    // Of what was being written nobody knows any more what it is: it is kept, and ids are not given out again.
    let (id, _) = store.stage().unwrap();
    assert!(contents.journaled.iter().all(|(known, _)| *known != id));
    assert_eq!(lost(&store).len(), contents.journaled.len());
}

#[test]
fn a_hole_in_the_index_loses_no_more_than_what_stood_there() {
    let dir = memory();
    let state = dir.path().join("state");
    let contents = Contents::make(&state);
    let db = state.join("index/db");
    let length = fs::metadata(&db).unwrap().len();
    let file = OpenOptions::new().write(true).open(&db).unwrap();
    file.write_all_at(&[0x55; 300], length / 2).unwrap();
    let store = open(&state).unwrap();
    let missing = contents.compare(&store);
    assert!(missing < 40, "{missing} are missing");
    // It may have forgotten what it signed.
    assert!(store.is_restored_copy());
    store.settle_here().unwrap();
    assert!(state.join("lost/index.0").is_dir());
    drop(store);
    let store = open(&state).unwrap();
    assert!(!store.is_restored_copy());
    assert_eq!(contents.compare(&store), missing);
}
