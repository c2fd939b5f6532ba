//! Small contents in their packs.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::store::policy::{Want, small_room};

/// Small contents of many sizes.
fn small(seed: u64) -> Sample {
    Sample::new(1 + seed * 977 % INLINE_BYTES_MAX, seed)
}

fn packs(store: &Store) -> Vec<PathBuf> {
    let names = fs::read_dir(store.dir().join("packs")).unwrap();
    let mut packs: Vec<_> = names.map(|name| name.unwrap().path()).collect();
    packs.sort();
    packs
}

fn packed_bytes(store: &Store) -> u64 {
    let files = packs(store).into_iter();
    files.map(|pack| fs::metadata(pack).unwrap().len()).sum()
}

/// Reads a content, after a second look where the first fails.
fn reads(store: &Store, sample: &Sample) -> bool {
    match read_blocks(store, &sample.object, 0..1) {
        Ok(bytes) => bytes == sample.data,
        Err(StoreError::Absent(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Where in which pack a content begins.
fn place(store: &Store, sample: &Sample) -> (PathBuf, u64) {
    let found = packs(store).into_iter().find_map(|pack| {
        let bytes = fs::read(&pack).unwrap();
        let mut windows = bytes.windows(sample.data.len());
        Some((
            pack,
            windows.position(|window| window == sample.data)? as u64,
        ))
    });
    found.expect("it is in a pack")
}

/// A store that is closed, twenty contents of 3000 bytes in it, and the pack that they are in.
fn twenty_in_a_pack() -> (TempDir, PathBuf, Vec<Sample>, fs::File) {
    let (guard, store) = new_store();
    let samples: Vec<_> = (0..20).map(|seed| Sample::new(3000, seed)).collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    let dir = store.dir().to_owned();
    drop(store);
    let pack = dir.join("packs/00000000");
    let file = OpenOptions::new().write(true).open(pack).unwrap();
    (guard, dir, samples, file)
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn small_contents_lie_in_packs_and_are_there_after_a_restart() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = (0..2000).map(small).collect();
    let (fetched, written) = samples.split_at(1000);
    let ranges: Vec<_> = fetched.iter().map(Sample::all).collect();
    store.insert_all(&ranges).unwrap();
    written.iter().for_each(|sample| publish(&store, sample));
    let bytes: u64 = samples.iter().map(|sample| sample.object.size + 38).sum();
    wait_until("all is in packs", || packed_bytes(&store) == bytes);
    assert!(samples.iter().all(|sample| reads(&store, sample)));
    let store = reopen(store);
    assert!(samples.iter().all(|sample| reads(&store, sample)));
    assert!(damage(&store).is_empty());
}

#[test]
fn packs_become_smaller_as_contents_go_and_all_that_stays_is_right() {
    let (_dir, store) = new_store();
    let mut random = StdRng::seed_from_u64(1);
    let mut there: Vec<Sample> = Vec::new();
    for round in 0..30 {
        for seed in 0..200 {
            let sample = Sample::new(INLINE_BYTES_MAX, round * 200 + seed);
            store.insert(&sample.all()).unwrap();
            there.push(sample);
        }
        while there.len() > 600 {
            let gone = there.swap_remove(random.random_range(0..there.len()));
            let hot = store.inner.core.hot(&gone.object).unwrap().unwrap();
            let change = hot.change.lock();
            let freed = crate::store::room::forget(&hot);
            store.inner.core.count_went(&gone.object, freed).unwrap();
            store.inner.core.write_record(&hot, &change).unwrap();
        }
        store.inner.core.clean_packs(0).unwrap();
        let wanted: u64 = there.iter().map(|sample| sample.object.size + 38).sum();
        // A third more than what is wanted, and two packs beside them.
        let most = wanted / 3 * 4 + 3 * 1024 * 1024;
        assert!(packed_bytes(&store) <= most, "round {round}");
        assert!(there.iter().all(|sample| reads(&store, sample)));
    }
    for sample in &there {
        assert!(store.evict(&sample.object).unwrap().is_some());
    }
    store.inner.core.clean_packs(u64::MAX).unwrap();
    assert!(packed_bytes(&store) < 1024 * 1024);
    let store = reopen(store);
    assert_eq!(packed_bytes(&store), 0);
    assert!(!there.iter().any(|sample| reads(&store, sample)));
}

#[test]
fn what_moves_while_it_is_read_is_read_right() {
    let (_dir, store) = new_store();
    store.set_limits(Limits {
        cache_bytes_max: 64 * 1024 * 1024,
        free_bytes_min: 0,
    });
    let kept: Vec<_> = (0..400).map(small).collect();
    let passing: Vec<_> = (400..800).map(small).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in 0..3 {
            let (store, kept, stop) = (&store, &kept, &stop);
            kept.iter()
                .for_each(|sample| store.insert(&sample.all()).unwrap());
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(reader);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let sample = &kept[random.random_range(0..kept.len())];
                    assert!(reads(store, sample));
                    assert!(store.small(&sample.object).unwrap().is_some());
                }
            });
        }
        let mut is_any = false;
        for _ in 0..20 {
            for sample in &passing {
                store.insert(&sample.all()).unwrap();
            }
            for sample in &passing {
                assert!(store.evict(&sample.object).unwrap().is_some());
            }
            is_any |= store.inner.core.clean_packs(u64::MAX).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(is_any, "nothing was cleaned");
    });
    let store = reopen(store);
    assert!(kept.iter().all(|sample| reads(&store, sample)));
}

#[test]
fn a_kill_while_packs_are_cleaned_loses_nothing() {
    let (dir, store) = new_store();
    let samples: Vec<_> = (0..900)
        .map(|seed| Sample::new(INLINE_BYTES_MAX, seed))
        .collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    let (gone, stays): (Vec<_>, Vec<_>) = samples.iter().enumerate().partition(|(n, _)| n % 3 > 0);
    for (_, sample) in gone {
        store.evict(&sample.object).unwrap();
    }
    store.inner.core.clean_packs(u64::MAX).unwrap();
    // As a kill leaves it.
    let copy = dir.path().join("copy");
    copy_folder(store.dir(), &copy);
    let copy = open(&copy).unwrap();
    assert!(stays.iter().all(|(_, sample)| reads(&copy, sample)));
    assert!(damage(&copy).is_empty());
}

#[test]
fn one_that_is_damaged_is_found_dropped_and_had_anew_and_its_neighbours_are_well() {
    for is_header in [false, true] {
        let (_dir, store) = new_store();
        let samples: Vec<_> = (0..40).map(|seed| Sample::new(3000 + seed, seed)).collect();
        for sample in &samples {
            store.insert(&sample.all()).unwrap();
        }
        store.flush().unwrap();
        let store = reopen(store);
        let (pack, at) = place(&store, &samples[7]);
        flip(&pack, if is_header { at - 30 } else { at + 1000 });
        let found = damage(&store);
        assert_eq!(
            found,
            [Damage {
                object: samples[7].object,
                blocks: 0..1
            }]
        );
        for (number, sample) in samples.iter().enumerate() {
            assert_eq!(reads(&store, sample), number != 7);
        }
        store.reprove(&samples[7].object, 0..1).unwrap();
        assert_eq!(
            store.presence(&samples[7].object).unwrap(),
            Presence::Absent
        );
        let usage = store.usage().unwrap().objects_bytes;
        assert_eq!(
            usage,
            samples.iter().map(|sample| sample.object.size).sum::<u64>() - 3007
        );
        store.insert(&samples[7].all()).unwrap();
        let store = reopen(store);
        assert!(damage(&store).is_empty());
        assert!(samples.iter().all(|sample| reads(&store, sample)));
    }
}

#[test]
fn one_that_is_damaged_comes_back_from_a_member_without_being_dropped_first() {
    let (_dir, store) = new_store();
    let sample = Sample::new(2000, 1);
    store.insert(&sample.all()).unwrap();
    let store = reopen(store);
    let (pack, at) = place(&store, &sample);
    flip(&pack, at);
    assert!(!reads(&store, &sample));
    store.insert(&sample.all()).unwrap();
    assert!(reads(&store, &sample));
    let store = reopen(store);
    assert!(reads(&store, &sample));
    assert_eq!(store.usage().unwrap().objects_bytes, 2000);
    assert!(damage(&store).is_empty());
}

#[test]
fn one_that_is_damaged_on_the_disk_and_in_memory_as_well_is_written_anew() {
    let (_dir, store) = new_store();
    let sample = Sample::new(2000, 1);
    publish(&store, &sample);
    store.settle().unwrap();
    let (pack, at) = place(&store, &sample);
    flip(&pack, at);
    assert_eq!(damage(&store).len(), 1);
    store.reprove(&sample.object, 0..1).unwrap();
    assert!(damage(&store).is_empty());
    let store = reopen(store);
    assert!(reads(&store, &sample));
}

#[test]
fn what_is_left_of_one_that_was_written_here_is_put_aside() {
    let (_dir, store) = new_store();
    let sample = Sample::new(2000, 1);
    publish(&store, &sample);
    let store = reopen(store);
    let (pack, at) = place(&store, &sample);
    flip(&pack, at + 5);
    store.reprove(&sample.object, 0..1).unwrap();
    let lost = lost(&store);
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].len(), 2000);
    assert_eq!(lost[0][6..], sample.data[6..]);
    assert!(!data_path(&store, &sample.object).exists());
}

#[test]
fn the_end_of_a_pack_that_did_not_reach_the_disk_is_forgotten_and_the_rest_is_there() {
    let (_dir, dir, samples, file) = twenty_in_a_pack();
    file.set_len(15 * 3038 + 100).unwrap();
    let store = open(&dir).unwrap();
    assert!(damage(&store).is_empty());
    for (number, sample) in samples.iter().enumerate() {
        assert_eq!(reads(&store, sample), number < 15);
    }
    assert_eq!(store.usage().unwrap().objects_bytes, 15 * 3000);
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    let store = reopen(store);
    assert!(samples.iter().all(|sample| reads(&store, sample)));
}

#[test]
fn small_contents_are_found_again_without_the_index() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = (0..300).map(small).collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    let dir = store.dir().to_owned();
    drop(store);
    fs::remove_dir_all(dir.join("index")).unwrap();
    let store = open(&dir).unwrap();
    assert!(samples.iter().all(|sample| reads(&store, sample)));
    let bytes = samples.iter().map(|sample| sample.object.size).sum::<u64>();
    assert_eq!(store.usage().unwrap().objects_bytes, bytes);
    // And only then: what was let go stays away.
    store.evict(&samples[0].object).unwrap();
    let store = reopen(store);
    assert!(!reads(&store, &samples[0]));
}

#[test]
fn contents_of_the_format_before_are_read_and_stay_where_they_are() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = (0..50).map(small).collect();
    for sample in &samples {
        let record = ObjectRecord {
            origin: Origin::Written,
            size_proven: true,
            last_use: 7,
            inline: Some(Bytes::copy_from_slice(&sample.data)),
            packed: None,
            present: BlockSet::of(0..1),
            loose: BlockSet::default(),
        };
        let key = record::object_key(&sample.object);
        let value = record.encode(&sample.object);
        store.inner.core.objects.insert(key, value).unwrap();
    }
    let dir = store.dir().to_owned();
    drop(store);
    fs::write(dir.join("format"), "2\n").unwrap();
    let store = open(&dir).unwrap();
    assert_eq!(fs::read_to_string(dir.join("format")).unwrap(), "3\n");
    assert!(damage(&store).is_empty());
    assert!(samples.iter().all(|sample| reads(&store, sample)));
    // What would move could be lost by a power cut before it is synced.
    for sample in &samples {
        assert!(store.promise(&sample.object, u64::MAX).unwrap());
    }
    let store = reopen(store);
    assert!(samples.iter().all(|sample| reads(&store, sample)));
    assert_eq!(packed_bytes(&store), 0);
}

#[test]
fn small_contents_make_room_where_no_larger_ones_may() {
    const LIMIT: u64 = 48 * 1024 * 1024;
    let (_dir, store) = new_store();
    store.set_limits(Limits {
        cache_bytes_max: LIMIT,
        free_bytes_min: 0,
    });
    let samples: Vec<_> = (0..3000)
        .map(|seed| Sample::new(INLINE_BYTES_MAX, seed))
        .collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
        let candidate = Candidate {
            last_use: 1,
            object: sample.object,
            room: small_room(sample.object.size),
        };
        assert!(store.clear(&candidate, u64::MAX));
    }
    let before = packed_bytes(&store);
    let want = LIMIT - 10 * 1024 * 1024;
    let reserved = store.inner.core.reserve(Want::Files(want)).map(drop);
    assert!(
        reserved.is_ok(),
        "{:?} {}",
        store.room(),
        packed_bytes(&store)
    );
    assert!(packed_bytes(&store) < before / 2);
}

#[test]
fn what_the_disk_has_as_zeros_after_a_power_cut_is_forgotten() {
    let (_dir, dir, samples, file) = twenty_in_a_pack();
    file.write_all_at(&[0; 3038], 19 * 3038).unwrap();
    crash::reboot(&dir);
    let store = open(&dir).unwrap();
    assert_eq!(
        store.presence(&samples[19].object).unwrap(),
        Presence::Absent
    );
    assert_eq!(store.usage().unwrap().objects_bytes, 19 * 3000);
    assert!(samples[..19].iter().all(|sample| reads(&store, sample)));
    assert!(damage(&store).is_empty());
}
