//! Limits: never passed, whatever comes, and nothing goes that may not.

use std::collections::HashMap;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

const MIB: u64 = 1024 * 1024;

fn limited(cache_bytes_max: u64) -> (TempDir, Store) {
    let (dir, store) = new_store();
    store.set_limits(Limits {
        cache_bytes_max,
        free_bytes_min: 0,
    });
    (dir, store)
}

/// As `du` counts it, the log and the files of the cluster apart, which a store alone doesn't have.
fn du(store: &Store) -> u64 {
    walkdir::WalkDir::new(store.dir())
        .into_iter()
        // What goes meanwhile takes nothing.
        .filter_map(|entry| entry.ok()?.metadata().ok())
        // One that is being published has two names.
        .map(|file| match file.is_dir() {
            true => file.blocks() * 512,
            false => file.blocks() * 512 / file.nlink().max(1),
        })
        .sum()
}

/// Clears all that may be, as if others kept it.
fn clear_all(store: &Store) {
    for size in [Size::Large, Size::Small] {
        for (candidate, _) in store.oldest(size, None, 10_000).unwrap() {
            store.clear(&candidate, u64::MAX);
        }
    }
}

fn whole(store: &Store, sample: &Sample) -> bool {
    store.presence(&sample.object).unwrap() == Presence::Complete
}

fn read_all(store: &Store, sample: &Sample) -> bool {
    match read_blocks(store, &sample.object, 0..sample.object.blocks()) {
        Ok(data) => {
            assert!(data == sample.data);
            true
        }
        Err(StoreError::Absent(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn under_random_load_the_limit_holds_at_every_moment_and_what_comes_can_be_read() {
    const LIMIT: u64 = 24 * MIB;
    let (_dir, mut store) = limited(LIMIT);
    let mut random = StdRng::seed_from_u64(7);
    let samples: Vec<_> = (0..120)
        .map(|seed| {
            let size = match seed % 4 {
                0 => random.random_range(1..=INLINE_BYTES_MAX),
                1 => random.random_range(INLINE_BYTES_MAX..200_000),
                _ => random.random_range(200_000..3 * MIB),
            };
            Sample::new(size, seed)
        })
        .collect();
    let mut staged = Vec::new();
    let mut peak = 0;
    for step in 0..600 {
        let sample = samples.choose(&mut random).unwrap();
        let blocks = sample.object.blocks();
        match random.random_range(0..20) {
            0 if step > 100 => {
                staged.clear();
                store = reopen(store);
                store.set_limits(Limits {
                    cache_bytes_max: LIMIT,
                    free_bytes_min: 0,
                });
            }
            1 => {
                let (id, file) = store.stage().unwrap();
                let data = vec![step as u8; random.random_range(1..300_000)];
                let write = || file.write_all_at(&data, random.random_range(0..100_000));
                match store.grow(&file, data.len() as u64, write) {
                    Ok(()) => staged.push(id),
                    Err(StoreError::NoRoom { .. }) => store.unstage(id).unwrap(),
                    Err(error) => panic!("{error}"),
                }
            }
            2 if !staged.is_empty() => {
                let id = staged.swap_remove(random.random_range(0..staged.len()));
                store.unstage(id).unwrap();
            }
            3..10 if blocks > 1 => {
                let start = random.random_range(0..blocks);
                let end = random.random_range(start + 1..=blocks);
                store.insert(&sample.range(start..end)).unwrap();
            }
            _ => {
                clear_all(&store);
                store.insert(&sample.all()).unwrap();
                assert!(read_all(&store, sample));
            }
        }
        peak = peak.max(du(&store));
        assert!(peak <= LIMIT, "step {step}: {peak} {:?}", store.room());
    }
    assert!(damage(&store).is_empty());
    assert!(peak > LIMIT / 2, "the limit was never reached: {peak}");
}

#[test]
fn what_may_not_go_stays_and_what_comes_then_passes_through_memory() {
    let (_dir, store) = limited(16 * MIB);
    let samples: Vec<_> = (0..12).map(|seed| Sample::new(2 * MIB, seed)).collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
        assert!(read_all(&store, sample));
    }
    let kept: Vec<_> = samples
        .iter()
        .filter(|sample| whole(&store, sample))
        .collect();
    assert_eq!(kept.len(), 6);
    assert!(store.is_tight() && store.room().full == Some(Shortage::CacheSize));
    let (_, file) = store.stage().unwrap();
    let write = || file.write_all_at(&[1; 2 << 20], 0);
    let refused = store.grow(&file, 2 * MIB, write);
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })));
    assert!(!store.make_room(2 * MIB).unwrap());
    // Of what is cleared, only what may go goes: one is pinned, one promised, one lent.
    clear_all(&store);
    store.count_pinned(&kept[0].object, b"a", true).unwrap();
    assert!(store.promise(&kept[1].object, u64::MAX).unwrap());
    let lent = store.lend(&kept[2].object).unwrap();
    assert!(store.make_room(5 * MIB).unwrap());
    let left = kept.iter().filter(|sample| whole(&store, sample)).count();
    assert!((3..kept.len()).contains(&left));
    assert!(!store.make_room(11 * MIB).unwrap());
    for sample in &kept[..3] {
        assert!(whole(&store, sample) && read_all(&store, sample));
    }
    drop(lent);
}

#[test]
fn what_was_read_last_goes_last() {
    let (_dir, store) = limited(16 * MIB);
    let samples: Vec<_> = (0..6).map(|seed| Sample::new(2 * MIB, seed)).collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    clear_all(&store);
    // A second is how finely uses are told apart.
    thread::sleep(Duration::from_millis(1100));
    assert!(read_all(&store, &samples[0]) && read_all(&store, &samples[3]));
    assert!(store.make_room(8 * MIB).unwrap());
    let left: Vec<_> = (0..6)
        .filter(|&number| whole(&store, &samples[number]))
        .collect();
    assert!(
        left.contains(&0) && left.contains(&3) && left.len() < 6,
        "{left:?}"
    );
}

#[test]
fn what_was_cleared_and_is_written_again_stays() {
    let (_dir, store) = limited(16 * MIB);
    let (large, small) = (Sample::new(4 * MIB, 1), Sample::new(100, 2));
    for sample in [&large, &small] {
        store.insert(&sample.all()).unwrap();
    }
    clear_all(&store);
    for sample in [&large, &small] {
        written(&store, sample);
    }
    assert!(!store.make_room(11 * MIB).unwrap());
    assert!(whole(&store, &large) && whole(&store, &small));
}

#[test]
fn small_contents_turned_over_many_times_stay_within_the_limit() {
    const LIMIT: u64 = 64 * MIB;
    let (_dir, store) = limited(LIMIT);
    let mut peak = 0;
    // Three times the limit, as they come in batches.
    for batch in 0..192 {
        let samples: Vec<_> = (0..256)
            .map(|number| Sample::new(INLINE_BYTES_MAX, batch * 256 + number))
            .collect();
        let ranges: Vec<_> = samples.iter().map(Sample::all).collect();
        store.insert_all(&ranges).unwrap();
        assert!(samples.iter().all(|sample| read_all(&store, sample)));
        clear_all(&store);
        peak = peak.max(du(&store));
        assert!(peak <= LIMIT, "batch {batch}: {peak}");
    }
    let kept = store.usage().unwrap().objects_bytes;
    assert!(kept > LIMIT / 4, "only {kept} bytes are kept");
}

#[test]
fn figures_agree_with_the_disk_after_a_restart() {
    let (_dir, store) = limited(64 * MIB);
    let mut present = HashMap::new();
    for seed in 0..10 {
        let sample = Sample::new(3 * MIB + seed, seed);
        store.insert(&sample.range(seed..seed + 20)).unwrap();
        present.insert(sample.object, sample);
    }
    let on_disk = |store: &Store| -> u64 {
        let paths = present.keys().map(|object| data_path(store, object));
        let files = paths.flat_map(|path| [path.with_extension("tree"), path]);
        files
            .map(|path| fs::metadata(path).unwrap().blocks() * 512)
            .sum()
    };
    let counted = store.room().files_bytes;
    let taken = on_disk(&store);
    assert!(
        (taken..taken + taken / 50).contains(&counted),
        "{counted} {taken}"
    );
    let store = reopen(store);
    let counted = store.room().files_bytes;
    assert!(
        (taken..taken + taken / 20).contains(&counted),
        "{counted} {taken}"
    );
}

#[test]
fn what_was_promised_once_counts_as_written_here() {
    let (_dir, store) = limited(64 * MIB);
    let (large, small) = (Sample::new(MIB, 1), Sample::new(100, 2));
    for (size, sample) in [(Size::Large, &large), (Size::Small, &small)] {
        store.insert(&sample.all()).unwrap();
        let origin = |store: &Store| store.oldest(size, None, 10).unwrap()[0].1;
        assert_eq!(origin(&store), Origin::Fetched);
        // It ended long ago: now others may have dropped it because it is here.
        assert!(store.promise(&sample.object, 1).unwrap());
        assert_eq!(origin(&store), Origin::Written);
    }
    let store = reopen(store);
    assert_eq!(
        store.oldest(Size::Large, None, 10).unwrap()[0].1,
        Origin::Written
    );
}

#[test]
fn small_contents_written_here_leave_room_for_files_and_go_on_once_some_may_go() {
    const LIMIT: u64 = 40 * MIB;
    let (_dir, store) = limited(LIMIT);
    let mut seed = 0;
    let mut write = || {
        seed += 1;
        let sample = Sample::new(INLINE_BYTES_MAX, seed);
        let (id, file) = store.stage().unwrap();
        let act = || file.write_all_at(&sample.data, 0);
        store.grow(&file, INLINE_BYTES_MAX, act).unwrap();
        let imported = store.import(id, INLINE_BYTES_MAX, &Leaves::default());
        store.unstage(id).unwrap();
        imported
    };
    let refused = loop {
        match write() {
            Ok(_) => {}
            Err(error) => break error,
        }
        assert!(du(&store) <= LIMIT);
    };
    assert!(matches!(refused, StoreError::NoRoom { .. }), "{refused}");
    let grow = |bytes: u64| {
        let (id, file) = store.stage().unwrap();
        assert!(store.make_room(bytes).unwrap());
        let act = || file.write_all_at(&vec![1; bytes as usize], 0);
        store.grow(&file, bytes, act).unwrap();
        store.unstage(id).unwrap();
    };
    grow(LIMIT / 5);
    // As many again come in the places of those that others keep.
    for _ in 0..3 {
        clear_all(&store);
        for _ in 0..500 {
            write().unwrap();
        }
        assert!(du(&store) <= LIMIT);
    }
    grow(LIMIT / 5);
}

#[test]
fn those_that_stay_do_not_hide_those_that_may_go() {
    let (_dir, store) = limited(16 * MIB);
    let mut samples: Vec<_> = (0..300).map(|seed| Sample::new(20_000, seed)).collect();
    samples.sort_by_key(|sample| sample.object);
    let ranges: Vec<_> = samples.iter().map(Sample::all).collect();
    store.insert_all(&ranges).unwrap();
    clear_all(&store);
    for sample in &samples[..280] {
        store.count_pinned(&sample.object, b"a", true).unwrap();
    }
    let mut bytes = 6 * MIB;
    while store.make_room(bytes).unwrap() {
        bytes += 16 * 1024;
    }
    let left = samples.iter().filter(|sample| whole(&store, sample));
    assert_eq!(left.count(), 280);
}

#[test]
fn what_can_never_fit_is_refused_at_once_and_nothing_goes_for_it() {
    let (_dir, store) = limited(16 * MIB);
    let sample = Sample::new(2 * MIB, 1);
    store.insert(&sample.all()).unwrap();
    clear_all(&store);
    for bytes in [16 * MIB, 1 << 40, u64::MAX] {
        let refused = store.make_room(bytes);
        assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{bytes}");
    }
    assert!(whole(&store, &sample));
}

#[test]
fn nothing_is_searched_for_that_could_not_be_cleared() {
    let (_dir, store) = limited(16 * MIB);
    for seed in 0..5 {
        store.insert(&Sample::new(2 * MIB, seed).all()).unwrap();
    }
    assert!(store.wants_room() && store.cleared(Size::Large) == Some(0));
    let mut number = 0;
    loop {
        let object = Object {
            content: ContentId([1; 32]),
            size: INLINE_BYTES_MAX + 1 + number,
        };
        let candidate = Candidate {
            last_use: 1,
            object,
            room: 1,
        };
        if !store.clear(&candidate, u64::MAX) {
            break;
        }
        number += 1;
    }
    assert!(!store.wants_room() && store.cleared(Size::Large).is_none());
}

#[test]
fn of_a_content_that_comes_again_while_it_goes_only_that_takes_room() {
    let (_dir, store) = limited(64 * MIB);
    let sample = Sample::new(4 * MIB, 1);
    store.insert(&sample.all()).unwrap();
    clear_all(&store);
    let core = &store.inner.core;
    let gone = core.let_go(&core.room.files, 1);
    gone.outcome.unwrap();
    store.insert(&sample.range(5..6)).unwrap();
    core.remove_files(&gone.contents).unwrap();
    let data = data_path(&store, &sample.object);
    assert_eq!(data.metadata().unwrap().blocks() * 512, BLOCK_BYTES);
    assert_eq!(
        read_blocks(&store, &sample.object, 5..6).unwrap(),
        sample.slice(5..6)
    );
    assert!(store.room().files_bytes < 2 * BLOCK_BYTES);
}

#[test]
fn what_passed_through_memory_is_soon_forgotten() {
    let (_dir, store) = limited(16 * MIB);
    for seed in 0..8 {
        store.insert(&Sample::new(2 * MIB, seed).all()).unwrap();
    }
    assert!(store.inner.core.is_any_passing());
    wait_until("nothing passes any more", || {
        !store.inner.core.is_any_passing()
    });
}

#[test]
fn promises_bind_a_quarter_of_the_limit_what_would_stay_anyway_apart() {
    let (_dir, store) = limited(64 * MIB);
    let own: Vec<_> = (0..6).map(|seed| Sample::new(5 * MIB, seed)).collect();
    for sample in &own {
        written(&store, sample);
        assert!(store.promise(&sample.object, u64::MAX).unwrap());
    }
    let set_limits = |store: &Store| {
        store.set_limits(Limits {
            cache_bytes_max: 64 * MIB,
            free_bytes_min: 0,
        });
    };
    let fetched: Vec<_> = (10..14).map(|seed| Sample::new(5 * MIB, seed)).collect();
    let promised = |store: &Store, end: u64| {
        let promise = |sample: &&Sample| store.promise(&sample.object, end).unwrap();
        fetched.iter().filter(promise).count()
    };
    for sample in &fetched {
        store.insert(&sample.all()).unwrap();
    }
    assert_eq!(promised(&store, 7), 3);
    // Those have ended, and count no more.
    let store = reopen(store);
    set_limits(&store);
    let last = store.promise(&fetched[3].object, u64::MAX).unwrap();
    assert!(last);
}

#[test]
fn what_is_kept_while_it_is_found_out_what_nothing_refers_to_is_not_cleared() {
    let (_dir, store) = limited(u64::MAX);
    let write = |sample: &Sample| {
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        let size = sample.object.size;
        store.import(id, size, &Leaves::default()).unwrap();
        store.unstage(id).unwrap();
    };
    for (size, bytes) in [(Size::Large, 3 * BLOCK_BYTES), (Size::Small, 4000)] {
        let sample = Sample::new(bytes, 1);
        write(&sample);
        let (candidate, _) = store.oldest(size, None, 1).unwrap()[0];
        let clear = || store.clear_unreferenced(&candidate, u64::MAX);
        let is_cleared = || store.oldest(size, None, 1).unwrap().is_empty();
        assert!(!clear(), "nobody looks");
        store.look_begins(size);
        assert!(clear() && is_cleared());
        store.keep(&sample.object);
        assert!(!is_cleared() && !clear());
        store.look_begins(size);
        assert!(clear() && is_cleared());
        // The same content once more.
        write(&sample);
        assert!(!is_cleared() && !clear());
        store.look_begins(size);
        assert!(clear());
        store.look_ends(size);
        assert!(is_cleared());
    }
}

/// What other members promised is known after a restart: nobody may be there to ask.
#[test]
fn what_others_keep_may_go_after_a_restart_and_what_was_written_anew_may_not() {
    const DAY: u64 = 24 * 3600;
    let (_dir, store) = limited(64 * MIB);
    let samples: Vec<_> = (0..5).map(|seed| Sample::new(MIB, seed)).collect();
    for sample in &samples[..4] {
        store.insert(&sample.all()).unwrap();
    }
    publish(&store, &samples[4]);
    let found = store.oldest(Size::Large, None, 10).unwrap();
    assert_eq!(found.len(), 5);
    let now = super::super::cache::now();
    for (candidate, origin) in &found {
        let is_last = candidate.object == samples[3].object;
        let days = if is_last { 40 } else { 10 };
        assert!(store.clear_promised(candidate, now + days * DAY, *origin));
    }
    // Written here since: others were not asked to prove that they have it.
    publish(&store, &samples[1]);
    let store = reopen(store);
    assert!(store.recover_cleared().unwrap());
    let may_go = |store: &Store, sample: &Sample| {
        let oldest = store.oldest(Size::Large, None, 10).unwrap();
        !oldest.iter().any(|(one, _)| one.object == sample.object)
    };
    assert!(may_go(&store, &samples[0]) && may_go(&store, &samples[2]));
    assert!(!may_go(&store, &samples[1]), "it was written here");
    assert!(!may_go(&store, &samples[3]), "nobody promises for so long");
    assert!(may_go(&store, &samples[4]), "it was proven to be there");
    // Promised to somebody since, it is the one to keep.
    let object = samples[2].object;
    assert!(store.promise(&object, now + DAY).unwrap());
    // Nor is what is pinned by now.
    assert!(store.count_pinned(&samples[4].object, b"f", true).unwrap());
    let store = reopen(store);
    assert!(store.recover_cleared().unwrap());
    assert!(may_go(&store, &samples[0]) && !may_go(&store, &samples[4]));
    // Writes take the room of what may go.
    store.set_limits(Limits {
        cache_bytes_max: store.room().files_bytes + store.room().index_bytes,
        free_bytes_min: 0,
    });
    store.insert(&Sample::new(MIB, 9).all()).unwrap();
    assert!(!whole(&store, &samples[0]));
    let here = [1, 2, 3, 4].map(|number| whole(&store, &samples[number]));
    assert_eq!(here, [true; 4]);
}

#[test]
fn a_file_that_becomes_a_content_counts_once() {
    let (_dir, store) = limited(64 * MIB);
    let sample = Sample::new(8 * MIB, 1);
    let (id, file) = store.stage().unwrap();
    let write = || file.write_all_at(&sample.data, 0);
    store.grow(&file, 8 * MIB, write).unwrap();
    let before = store.room();
    assert!(before.staging_bytes >= 8 * MIB, "{before:?}");
    store.import(id, 8 * MIB, &Leaves::default()).unwrap();
    let after = store.room();
    assert!(after.files_bytes >= 8 * MIB, "{after:?}");
    assert!(after.staging_bytes < MIB, "{after:?}");
}
