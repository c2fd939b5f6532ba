//! Blocks of objects: added, read, proven, dropped.

use super::*;

#[test]
fn the_empty_object_is_always_complete_and_no_other_of_size_zero_is() {
    let (_dir, store) = new_store();
    let empty = Object::empty();
    assert_eq!(store.presence(&empty).unwrap(), Presence::Complete);
    assert!(store.size_proven(&empty).unwrap());
    assert_eq!(store.read(&empty, 0, &mut [0; 8]).unwrap(), 0);
    assert_eq!(store.sizes_of(&empty.content).unwrap(), [0]);
    let false_one = Object {
        content: ContentId([1; 32]),
        size: 0,
    };
    assert_eq!(store.presence(&false_one).unwrap(), Presence::Absent);
}

#[test]
fn contents_of_all_interesting_sizes_come_in_pieces_and_stay() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = INTERESTING_SIZES
        .iter()
        .filter(|&&size| size > 0)
        .map(|&size| Sample::new(size, 0))
        .collect();
    for sample in &samples {
        let object = &sample.object;
        assert_eq!(store.presence(object).unwrap(), Presence::Absent);
        // The odd pieces first, so that all have holes for a while.
        for parity in [1, 0] {
            let pieces = (0..object.blocks().div_ceil(3)).filter(|piece| piece % 2 == parity);
            for piece in pieces {
                let blocks = piece * 3..(piece * 3 + 3).min(object.blocks());
                assert!(matches!(
                    read_blocks(&store, object, blocks.clone()),
                    Err(StoreError::Absent(missing)) if missing == blocks
                ));
                store.insert(&sample.range(blocks.clone())).unwrap();
                assert_eq!(
                    read_blocks(&store, object, blocks.clone()).unwrap(),
                    sample.slice(blocks)
                );
            }
        }
        assert!(store.size_proven(object).unwrap());
    }
    let store = reopen(store);
    for sample in &samples {
        let object = &sample.object;
        assert_eq!(store.presence(object).unwrap(), Presence::Complete);
        assert_eq!(
            read_blocks(&store, object, 0..object.blocks()).unwrap(),
            sample.data
        );
        for blocks in [
            0..1,
            0..object.blocks(),
            object.blocks() - 1..object.blocks(),
        ] {
            let encoded = store.encode(object, blocks.clone()).unwrap();
            assert_eq!(
                verify_range(*object, blocks.clone(), &encoded)
                    .unwrap()
                    .data
                    .concat(),
                sample.slice(blocks)
            );
        }
        assert_eq!(store.sizes_of(&object.content).unwrap(), [object.size]);
    }
    let bytes: u64 = samples.iter().map(|sample| sample.object.size).sum();
    assert_eq!(store.usage().unwrap().objects_bytes, bytes);
    let progress = VerifyProgress::default();
    let all = (samples.len() as u64, bytes);
    assert_eq!(verified(&store, &progress).unwrap(), (all, vec![]));
    let told = [&progress.objects, &progress.bytes].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(told, [all.0, all.1]);
}

#[test]
fn the_size_is_proven_by_the_last_block_only() {
    let (_dir, store) = new_store();
    let sample = Sample::new(5 * BLOCK_BYTES, 0);
    store.insert(&sample.range(0..4)).unwrap();
    assert!(!store.size_proven(&sample.object).unwrap());
    store.insert(&sample.range(4..5)).unwrap();
    assert!(store.size_proven(&sample.object).unwrap());
}

#[test]
fn ranges_beyond_the_object_are_refused() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 0);
    let mut range = sample.range(1..3);
    range.blocks = 2..4;
    assert!(matches!(store.insert(&range), Err(StoreError::Io { .. })));
    range.blocks = 0..1;
    assert!(matches!(store.insert(&range), Err(StoreError::Io { .. })));
    store.insert(&sample.all()).unwrap();
    for blocks in [0..0, 2..4, 3..4] {
        assert!(matches!(
            store.encode(&sample.object, blocks),
            Err(StoreError::Absent(_))
        ));
    }
    assert_eq!(
        store
            .read(&sample.object, 3 * BLOCK_BYTES, &mut [0; 9])
            .unwrap(),
        0
    );
    assert_eq!(
        store
            .read(&sample.object, 3 * BLOCK_BYTES - 4, &mut [0; 9])
            .unwrap(),
        4
    );
}

#[test]
fn an_insert_that_fails_leaves_nothing_behind_but_what_passes_through_memory() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    // A hash tree that can't be opened.
    let tree = store.inner.core.tree_path(&sample.object);
    std::os::unix::fs::symlink("/nonexistent/tree", &tree).unwrap();
    store.insert(&sample.all()).unwrap();
    let read = read_blocks(&store, &sample.object, 0..3).unwrap();
    assert!(read == sample.data);
    assert_eq!(store.leaves(&sample.object, 0..3).unwrap(), None);
    assert!(!data_path(&store, &sample.object).exists());
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
    store.insert(&sample.all()).unwrap();
    assert_eq!(damage(&store), []);
}

#[test]
fn damage_is_found_to_the_block_and_repaired_by_fetching_again() {
    let (_dir, store) = new_store();
    let sample = Sample::new(40 * BLOCK_BYTES, 4);
    store.insert(&sample.range(1..30)).unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(data_path(&store, &sample.object))
        .unwrap();
    for block in [7, 8, 20] {
        file.write_all_at(b"rot", block * BLOCK_BYTES + 5).unwrap();
    }
    let object = sample.object;
    let found = damage(&store);
    assert_eq!(
        found,
        [7..9, 20..21].map(|blocks| Damage { object, blocks })
    );
    for Damage { object, blocks } in found {
        store.drop_blocks(&object, blocks.clone()).unwrap();
        assert!(matches!(
            read_blocks(&store, &object, blocks.clone()),
            Err(StoreError::Absent(_))
        ));
        store.insert(&sample.range(blocks)).unwrap();
    }
    assert_eq!(damage(&store), []);
    assert_eq!(
        read_blocks(&store, &object, 1..30).unwrap(),
        sample.slice(1..30)
    );
}

#[test]
fn a_large_content_is_verified_in_pieces_and_ends_when_told_to() {
    let (_dir, store) = new_store();
    // Three pieces, and a small content beside.
    let (large, small) = (Sample::new(600 * BLOCK_BYTES + 1, 4), Sample::new(100, 5));
    store.insert(&large.all()).unwrap();
    store.insert(&small.all()).unwrap();
    let object = large.object;
    let file = OpenOptions::new()
        .write(true)
        .open(data_path(&store, &object))
        .unwrap();
    for block in [3, 255, 256, 599] {
        file.write_all_at(b"rot", block * BLOCK_BYTES).unwrap();
    }
    let (all, found) = verified(&store, &VerifyProgress::default()).unwrap();
    assert_eq!(all, (2, object.size + 100));
    assert_eq!(
        found,
        [3..4, 255..256, 256..257, 599..600].map(|blocks| Damage { object, blocks })
    );
    let told = VerifyProgress::default();
    told.stop.store(true, Ordering::Relaxed);
    assert_eq!(verified(&store, &told).unwrap(), ((0, 0), vec![]));
}

#[test]
fn all_that_is_here_is_verified_a_step_at_a_time_too() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = INTERESTING_SIZES
        .iter()
        .filter(|&&size| size > 0)
        .chain(&[70 * BLOCK_BYTES])
        .map(|&size| Sample::new(size, 1))
        .collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    let [.., going, large] = &samples[..] else {
        unreachable!();
    };
    let file = OpenOptions::new()
        .write(true)
        .open(data_path(&store, &large.object))
        .unwrap();
    file.write_all_at(b"rot", 40 * BLOCK_BYTES).unwrap();
    let (mut from, mut bytes, mut found, mut steps) = (None, 0, Vec::new(), 0);
    loop {
        let step = store.verify_step(from, 3 * BLOCK_BYTES).unwrap();
        bytes += step.bytes;
        found.extend(step.damage);
        steps += 1;
        from = step.next;
        match from {
            None => break,
            // What goes meanwhile stops nobody.
            Some(place) if place.object == going.object => {
                let blocks = 0..going.object.blocks();
                store.drop_blocks(&place.object, blocks).unwrap();
            }
            Some(_) => {}
        }
    }
    assert!(steps > 10, "{steps}");
    let all: u64 = samples.iter().map(|sample| sample.object.size).sum();
    let gone = all - bytes;
    assert!((1..=going.object.size).contains(&gone), "{gone}");
    let object = large.object;
    assert_eq!(
        found,
        [Damage {
            object,
            blocks: 40..41
        }]
    );
}

#[test]
fn to_be_verified_is_no_use() {
    let (_dir, store) = new_store();
    let samples = [Sample::new(9 * BLOCK_BYTES, 4), Sample::new(100, 5)];
    let used = |sample: &Sample| {
        let hot = store.inner.core.hot(&sample.object).unwrap().unwrap();
        hot.last_use.load(Ordering::Relaxed)
    };
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
        let hot = store.inner.core.hot(&sample.object).unwrap().unwrap();
        hot.last_use.store(5, Ordering::Relaxed);
    }
    assert_eq!(damage(&store), []);
    assert_eq!(samples.each_ref().map(used), [5, 5]);
    store.encode(&samples[0].object, 0..1).unwrap();
    assert!(used(&samples[0]) > 5);
}

#[test]
fn where_data_is_damaged_a_sound_hash_tree_is_left_alone() {
    let (_dir, store) = new_store();
    let sample = Sample::new(9 * BLOCK_BYTES, 4);
    store.insert(&sample.all()).unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(data_path(&store, &sample.object))
        .unwrap();
    file.write_all_at(b"rot", 3 * BLOCK_BYTES).unwrap();
    let core = &store.inner.core;
    assert!(!core.repair_tree(&sample.object, &(3..4)).unwrap());
    // It would have been looked at if the hash tree had not proven the block's hash.
    file.write_all_at(&sample.slice(3..4)[..3], 3 * BLOCK_BYTES)
        .unwrap();
    assert!(!core.repair_tree(&sample.object, &(3..4)).unwrap());
    fs::write(core.tree_path(&sample.object), [0; 64]).unwrap();
    assert!(core.repair_tree(&sample.object, &(3..4)).unwrap());
}

#[test]
fn a_damaged_hash_tree_over_sound_data_is_made_anew() {
    let (_dir, store) = new_store();
    let sample = Sample::new(9 * BLOCK_BYTES, 4);
    store.insert(&sample.all()).unwrap();
    let path = store.inner.core.tree_path(&sample.object);
    fs::write(&path, [0; 64]).unwrap();
    assert_eq!(damage(&store), []);
    assert_eq!(fs::read(&path).unwrap(), sample.tree[..8 * 64]);
    store.encode(&sample.object, 0..9).unwrap();
}

#[test]
fn a_truncated_or_missing_backing_file_is_an_error_and_not_zeros() {
    let (_dir, store) = new_store();
    let sample = Sample::new(9 * BLOCK_BYTES, 4);
    store.insert(&sample.all()).unwrap();
    let object = sample.object;
    let path = data_path(&store, &object);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5 * BLOCK_BYTES)
        .unwrap();
    assert!(matches!(
        read_blocks(&store, &object, 4..6),
        Err(StoreError::Io { .. })
    ));
    assert!(matches!(
        store.encode(&object, 4..6),
        Err(StoreError::Io { .. })
    ));
    assert_eq!(
        damage(&store),
        [Damage {
            object,
            blocks: 5..9
        }]
    );
    let store = {
        let dir = store.dir().to_owned();
        drop(store);
        fs::remove_file(path).unwrap();
        Store::open(&dir).unwrap()
    };
    // Nothing was proven of it since the start, so it is looked at first: what is gone is absent.
    assert!(matches!(
        read_blocks(&store, &object, 0..1),
        Err(StoreError::Absent(_))
    ));
    assert_eq!(store.presence(&object).unwrap(), Presence::Absent);
    assert_eq!(damage(&store), []);
    store.insert(&sample.all()).unwrap();
    assert_eq!(read_blocks(&store, &object, 0..9).unwrap(), sample.data);
}

#[test]
fn dropping_all_blocks_gives_the_room_back() {
    let (_dir, store) = new_store();
    for size in [100, 10 * BLOCK_BYTES] {
        let sample = Sample::new(size, 5);
        store.insert(&sample.all()).unwrap();
        assert_eq!(store.usage().unwrap().objects_bytes, size);
        store.drop_blocks(&sample.object, 0..u64::MAX).unwrap();
        assert_eq!(store.usage().unwrap().objects_bytes, 0);
        assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
        assert!(store.sizes_of(&sample.object.content).unwrap().is_empty());
        assert!(!data_path(&store, &sample.object).exists());
        store.insert(&sample.all()).unwrap();
        assert_eq!(
            read_blocks(&store, &sample.object, 0..sample.object.blocks()).unwrap(),
            sample.data
        );
        store
            .drop_blocks(&sample.object, 0..sample.object.blocks())
            .unwrap();
    }
}

#[test]
fn dropping_some_blocks_punches_holes() {
    let (_dir, store) = new_store();
    let sample = Sample::new(32 * BLOCK_BYTES, 5);
    store.insert(&sample.all()).unwrap();
    store.settle().unwrap();
    let allocated = || {
        fs::metadata(data_path(&store, &sample.object))
            .unwrap()
            .blocks()
            * 512
    };
    let before = allocated();
    store.drop_blocks(&sample.object, 4..28).unwrap();
    assert!(allocated() <= before - 24 * BLOCK_BYTES);
    assert_eq!(store.usage().unwrap().objects_bytes, 8 * BLOCK_BYTES);
    assert_eq!(
        read_blocks(&store, &sample.object, 0..4).unwrap(),
        sample.slice(0..4)
    );
    assert_eq!(damage(&store), []);
}

#[test]
fn more_objects_than_stay_open_are_served() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = (0..600)
        .map(|seed| Sample::new(INLINE_BYTES_MAX + 1 + seed, seed))
        .collect();
    for sample in &samples {
        store.insert(&sample.all()).unwrap();
    }
    for sample in &samples {
        assert_eq!(
            read_blocks(&store, &sample.object, 0..1).unwrap(),
            sample.data
        );
    }
    let mut visited = 0;
    store
        .each_object(&mut |_, presence, origin| {
            assert_eq!((presence, origin), (Presence::Complete, Origin::Fetched));
            visited += 1;
            visited < 500
        })
        .unwrap();
    assert_eq!(visited, 500);
    let open = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(store.dir().join("objects")))
        .count();
    assert!(open <= 256, "{open} backing files are open");
}

#[test]
fn inserts_reads_and_drops_from_many_threads_never_show_wrong_bytes() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = (0..3)
        .map(|seed| Sample::new(24 * BLOCK_BYTES - 1, seed))
        .collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for turn in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let sample = &samples[turn % samples.len()];
                    let start = (turn as u64 * 5) % 20;
                    let blocks = start..start + 3;
                    match read_blocks(&store, &sample.object, blocks.clone()) {
                        Ok(bytes) => assert!(bytes == sample.slice(blocks), "wrong bytes"),
                        Err(StoreError::Absent(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let changers: Vec<_> = (0..4u64)
            .map(|seed| {
                let (store, samples) = (&store, &samples);
                scope.spawn(move || {
                    for turn in 0..120u64 {
                        let sample = &samples[(turn % 3) as usize];
                        let start = (turn * 7 + seed * 11) % 22;
                        match (turn + seed) % 5 {
                            0 => store.drop_blocks(&sample.object, start..start + 2).unwrap(),
                            1 if turn % 20 == 1 => store.settle().unwrap(),
                            _ => store.insert(&sample.range(start..start + 2)).unwrap(),
                        }
                    }
                })
            })
            .collect();
        for changer in changers {
            changer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(damage(&store), []);
    let counted = store.usage().unwrap().objects_bytes;
    let store = reopen(store);
    assert_eq!(store.usage().unwrap().objects_bytes, counted);
    assert_eq!(damage(&store), []);
}

#[test]
fn many_small_contents_come_and_go_at_once_whatever_was_there_before() {
    let (_dir, store) = new_store();
    let samples: Vec<_> = (0..400u64)
        .map(|seed| Sample::new([40, 100, 4096, 4097, 65_536][(seed % 5) as usize], seed))
        .collect();
    // Some are here and in use, one was dropped and is in use still.
    for sample in &samples[..20] {
        store.insert(&sample.all()).unwrap();
    }
    store.drop_blocks(&samples[0].object, 0..1).unwrap();
    assert_eq!(store.small(&samples[0].object).unwrap(), None);
    let all: Vec<VerifiedRange<'_>> = samples.iter().map(Sample::all).collect();
    store.insert_all(&all).unwrap();
    store.insert_all(&all).unwrap();
    let bytes: u64 = samples.iter().map(|sample| sample.object.size).sum();
    let mut store = store;
    for _ in 0..2 {
        assert_eq!(store.usage().unwrap().objects_bytes, bytes);
        for sample in &samples {
            let object = &sample.object;
            assert!(store.size_proven(object).unwrap());
            assert_eq!(store.small(object).unwrap().unwrap(), sample.data);
            assert_eq!(read_blocks(&store, object, 0..1).unwrap(), sample.data);
        }
        store = reopen(store);
    }
    let large = Sample::new(65_537, 1);
    let (_dir, store) = new_store();
    store.insert_all(&[large.all()]).unwrap();
    assert_eq!(store.small(&large.object).unwrap(), None);
    assert_eq!(store.presence(&large.object).unwrap(), Presence::Complete);
}

#[test]
fn what_is_lent_keeps_its_bytes_whatever_is_dropped() {
    let (_dir, store) = new_store();
    let small = Sample::new(INLINE_BYTES_MAX, 1);
    store.insert(&small.all()).unwrap();
    assert!(store.lend(&small.object).unwrap().is_none());
    let sample = Sample::new(5 * BLOCK_BYTES + 1, 0);
    let object = &sample.object;
    assert!(store.lend(object).unwrap().is_none());
    store.insert(&sample.range(0..5)).unwrap();
    assert!(store.lend(object).unwrap().is_none(), "it is not complete");
    store.insert(&sample.range(5..6)).unwrap();
    let lent = store.lend(object).unwrap().unwrap();
    assert_eq!(lent.origin(), Origin::Fetched);
    let holds_all = |lent: &Lent| {
        let mut data = vec![0; sample.data.len()];
        lent.file().read_exact_at(&mut data, 0).unwrap();
        data == sample.data && lent.file().metadata().unwrap().len() == object.size
    };
    assert!(holds_all(&lent));
    store.drop_blocks(object, 1..3).unwrap();
    assert!(holds_all(&lent), "no hole");
    assert!(store.lend(object).unwrap().is_none(), "it is not complete");
    store.insert(&sample.range(1..3)).unwrap();
    assert!(holds_all(&lent));
    store.drop_blocks(object, 0..6).unwrap();
    assert_eq!(store.presence(object).unwrap(), Presence::Absent);
    assert!(holds_all(&lent));
    store.insert(&sample.all()).unwrap();
    drop(lent);
    // Nobody has it any more: holes are punched again.
    store.drop_blocks(object, 1..3).unwrap();
    let mut block = vec![1; BLOCK_BYTES as usize];
    let file = fs::File::open(data_path(&store, object)).unwrap();
    file.read_exact_at(&mut block, BLOCK_BYTES).unwrap();
    assert!(block.iter().all(|byte| *byte == 0));
}

#[test]
fn what_was_pinned_a_moment_ago_is_not_evicted() {
    let (_dir, store) = new_store();
    let sample = Sample::new(200_000, 0);
    let object = &sample.object;
    store.insert(&sample.range(0..object.blocks())).unwrap();
    store.count_pinned(object, b"a/file", true).unwrap();
    assert_eq!(store.evict(object).unwrap(), None);
    assert_eq!(store.presence(object).unwrap(), Presence::Complete);
    store.count_pinned(object, b"a/file", false).unwrap();
    assert_eq!(store.evict(object).unwrap(), Some(200_000));
    assert_eq!(store.presence(object).unwrap(), Presence::Absent);
}

#[test]
fn what_is_being_kept_is_read_from_memory_until_it_is() {
    let (_dir, store) = new_store();
    let sample = Sample::new(10 * BLOCK_BYTES, 0);
    let object = &sample.object;
    store.insert(&sample.range(3..4)).unwrap();
    let mut buf = vec![0; 2 * BLOCK_BYTES as usize];
    let shown = store.show(&sample.range(4..6), &bytes::Bytes::new());
    {
        let mut reads = |blocks: Range<u64>, shift: u64| {
            let bytes = object.bytes_of(blocks);
            let (start, length) = (
                bytes.start + shift,
                (bytes.end - bytes.start - shift) as usize,
            );
            let read = store.read(object, start, &mut buf[..length])?;
            assert_eq!(buf[..read], sample.data[start as usize..][..length]);
            Ok::<_, StoreError>(())
        };
        reads(4..6, 100).unwrap();
        // Some of it is here already, some is not at all.
        reads(3..5, 5).unwrap();
        assert!(matches!(reads(5..7, 0), Err(StoreError::Absent(_))));
        let presence = store.presence(object).unwrap();
        assert_eq!(presence, Presence::Partial(BlockSet::of(3..4)));
        assert!(
            store.encode(object, 4..5).is_err(),
            "peers get what is kept"
        );
        assert!(store.is_shown(object, object.bytes_of(4..6)));
        assert!(!store.is_shown(object, object.bytes_of(3..5)));
    }
    store.insert_shown(shown).unwrap();
    assert!(store.inner.core.room.arriving.is_empty());
    let presence = store.presence(object).unwrap();
    assert_eq!(presence, Presence::Partial(BlockSet::of(3..6)));
    assert_eq!(
        read_blocks(&store, object, 4..6).unwrap(),
        sample.slice(4..6)
    );
}
