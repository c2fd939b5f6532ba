//! Staging, journal, import.

use super::*;
use crate::store::Moment;

#[test]
fn imported_files_become_objects() {
    let (_dir, store) = new_store();
    let mut imported = Vec::new();
    for &size in INTERESTING_SIZES {
        let sample = Sample::new(size, 1);
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        assert_eq!(
            store.import(id, size, &Leaves::default()).unwrap(),
            sample.object
        );
        store.unstage(id).unwrap();
        imported.push((id, sample));
    }
    wait_until("unstaged files are gone", || {
        fs::read_dir(store.dir().join("staging")).unwrap().count() == 0
    });
    let store = reopen(store);
    for (id, sample) in &imported {
        assert!(store.staged(*id).is_err());
        assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
        assert_eq!(
            read_blocks(&store, &sample.object, 0..sample.object.blocks()).unwrap(),
            sample.data
        );
    }
    assert_eq!(damage(&store), []);
    store
        .each_object(&mut |_, presence, origin| {
            assert_eq!((presence, origin), (Presence::Complete, Origin::Written));
            true
        })
        .unwrap();
}

#[test]
fn an_import_completes_what_was_partly_fetched() {
    let (_dir, store) = new_store();
    let sample = Sample::new(20 * BLOCK_BYTES, 1);
    store.insert(&sample.range(3..5)).unwrap();
    for _ in 0..2 {
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        assert_eq!(
            store
                .import(id, sample.object.size, &Leaves::default())
                .unwrap(),
            sample.object
        );
        store.unstage(id).unwrap();
        assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
        assert_eq!(store.usage().unwrap().objects_bytes, sample.object.size);
    }
    assert_eq!(damage(&store), []);
}

#[test]
fn a_copy_is_imported_while_the_file_is_written_on() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES + 1, 2);
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    assert_eq!(
        store.import_copy(id, sample.object.size).unwrap(),
        sample.object
    );
    file.write_all_at(&[0xff; 1000], 70_000).unwrap();
    assert_eq!(damage(&store), []);
    let mut seen = [0; 1000];
    store
        .staged(id)
        .unwrap()
        .read_exact_at(&mut seen, 70_000)
        .unwrap();
    assert_eq!(seen, [0xff; 1000]);
}

#[test]
fn what_was_promised_to_survive_power_loss_is_synced_before_its_staging_file_goes() {
    let (_dir, store) = new_store();
    for copied in [false, true] {
        let sample = Sample::new(3 * BLOCK_BYTES, 10 + u64::from(copied));
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        store.journal(id, &entry(sample.object.size), true).unwrap();
        if copied {
            store.import_copy(id, sample.object.size).unwrap();
        } else {
            store
                .import(id, sample.object.size, &Leaves::default())
                .unwrap();
        }
        let loose = || store.inner.core.loose.lock().contains(&sample.object);
        assert!(loose());
        store.unstage(id).unwrap();
        assert!(!loose());
    }
}

#[test]
fn a_durable_record_has_a_durable_base() {
    let (_dir, store) = new_store();
    let base = Sample::new(3 * BLOCK_BYTES, 1);
    store.insert(&base.all()).unwrap();
    let (id, _) = store.stage().unwrap();
    let record = JournalRecord {
        base: Some(base.object),
        ..entry(1)
    };
    let loose = || store.inner.core.loose.lock().contains(&base.object);
    store.journal(id, &record, false).unwrap();
    assert!(loose());
    store.journal(id, &record, true).unwrap();
    assert!(!loose());
}

#[test]
fn dropping_blocks_of_an_object_leaves_a_staging_file_with_the_same_bytes_alone() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    store
        .import(id, sample.object.size, &Leaves::default())
        .unwrap();
    store.drop_blocks(&sample.object, 0..2).unwrap();
    store.drop_blocks(&sample.object, 2..3).unwrap();
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
    let mut bytes = vec![0; sample.data.len()];
    store
        .staged(id)
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    assert_eq!(bytes, sample.data);
}

#[test]
fn a_staging_file_that_was_imported_is_detached_before_it_is_written_again() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 3);
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    store
        .import(id, sample.object.size, &Leaves::default())
        .unwrap();
    drop(file);
    let again = store.staged(id).unwrap();
    let mut seen = vec![0; sample.data.len()];
    again.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, sample.data);
    again.set_len(0).unwrap();
    assert_eq!(damage(&store), []);
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
}

#[test]
fn staging_ids_are_never_given_out_twice() {
    let (_dir, store) = new_store();
    let (first, _) = store.stage().unwrap();
    let (second, _) = store.stage().unwrap();
    let store = reopen(store);
    let (third, _) = store.stage().unwrap();
    assert!(first < second && second < third);
}

#[test]
fn the_journal_keeps_the_latest_record_of_a_file() {
    let (_dir, store) = new_store();
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&[1; 10], 0).unwrap();
    store.journal(id, &entry(10), true).unwrap();
    store.journal(id, &entry(20), false).unwrap();
    let (unknown, _) = store.stage().unwrap();
    assert_eq!(store.journaled().unwrap(), [(id, entry(20))]);
    let store = reopen(store);
    assert_eq!(store.journaled().unwrap(), [(id, entry(20))]);
    assert!(store.staged(id).is_ok());
    assert!(
        store.staged(unknown).is_err(),
        "nobody could tell what it was"
    );
    store.unstage(id).unwrap();
    assert_eq!(store.journaled().unwrap(), []);
}

#[test]
fn a_record_that_was_on_its_way_when_its_file_was_done_with_does_not_bring_it_back() {
    let (_dir, store) = new_store();
    let (large, _) = store.stage().unwrap();
    let (small, _memory) = store.stage_small().unwrap().unwrap();
    let (unfolded, _memory) = store.stage_small().unwrap().unwrap();
    store.unfold(unfolded).unwrap();
    for id in [large, small, unfolded] {
        // As it was when the writing of it began.
        let bytes = (id != large).then(serde_bytes::ByteBuf::new);
        let record = JournalRecord { bytes, ..entry(0) };
        store.unstage(id).unwrap();
        // Its file may have gone by now.
        let _ = store.journal(id, &record, true);
    }
    store.flush().unwrap();
    assert_eq!(reopen(store).journaled().unwrap(), []);
}

#[test]
fn no_record_is_taken_for_a_file_that_is_about_to_go() {
    let (_dir, store) = new_store();
    let (id, _memory) = store.stage_small().unwrap().unwrap();
    store.unfold(id).unwrap();
    let record = JournalRecord {
        bytes: Some(serde_bytes::ByteBuf::new()),
        ..entry(0)
    };
    // So it stays until the index is on the disk.
    store.journal(id, &record, true).unwrap();
    let held = store.hold(Moment::Unlink);
    store.unstage(id).unwrap();
    held.is_reached();
    store.journal(id, &record, true).unwrap();
    drop(held);
    store.flush().unwrap();
    assert_eq!(reopen(store).journaled().unwrap(), []);
}

#[test]
fn what_becomes_of_a_name_is_known_after_a_crash_and_forgotten_with_the_file() {
    let (dir, store) = new_store();
    let by = |sequence| Dot {
        writer: WriterNumber(7),
        sequence,
    };
    let renamed = Move {
        by: by(3),
        path: b"there".to_vec(),
        seen: vec![by(1)],
        over: vec![StagingId(9)],
    };
    let mut made = Vec::new();
    for _ in 0..2 {
        let (id, _) = store.stage().unwrap();
        store.journal(id, &entry(0), false).unwrap();
        store
            .note_fate(id, |fate| fate.moved(renamed.clone(), |_| false))
            .unwrap();
        store
            .note_fate(id, |fate| fate.ended = Some(by(4)))
            .unwrap();
        made.push(id);
    }
    store.flush().unwrap();
    let crashed = dir.path().join("crashed");
    copy_folder(store.dir(), &crashed);
    let found = Store::open(&crashed).unwrap();
    let fate = Fate {
        moves: vec![renamed],
        ended: Some(by(4)),
        beside: None,
    };
    for id in &made {
        assert_eq!(found.fate(*id), fate);
    }
    found.unstage(made[0]).unwrap();
    wait_until("the file is gone", || {
        found.fate(made[0]) == Fate::default()
    });
    assert_eq!(found.fate(made[1]), fate);
    drop(found);
    // Nothing is noted of a file that is not there.
    fs::remove_file(crashed.join(format!("staging/{}", made[1].0))).unwrap();
    let found = Store::open(&crashed).unwrap();
    assert_eq!(found.fate(made[1]), Fate::default());
}

#[test]
fn a_part_of_a_staging_file_becomes_an_object_that_lacks_the_rest_but_not_its_tree() {
    let (_dir, store) = new_store();
    let sample = Sample::new(5000 * BLOCK_BYTES + 9, 1);
    let absent = BlockSet::of(3..4990);
    let (id, file) = store.stage().unwrap();
    for run in absent.missing(0..sample.object.blocks()) {
        let start = run.start * BLOCK_BYTES;
        file.write_all_at(sample.slice(run), start).unwrap();
    }
    let mut known = Leaves::default();
    for block in 3..4990 {
        known.put(
            block,
            crate::content::leaf_hash(block, sample.slice(block..block + 1)),
        );
    }
    let size = sample.object.size;
    let made = store.import_part(id, size, &known, &absent).unwrap();
    assert_eq!(made, sample.object);
    let mut here = BlockSet::of(0..3);
    here.insert(4990..5001);
    assert_eq!(store.presence(&made).unwrap(), Presence::Partial(here));
    assert!(store.size_proven(&made).unwrap());
    let nodes = store.nodes_above(&made, 100..1100).unwrap().unwrap();
    assert!(crate::content::Nodes::verify(made, 100..1100, &nodes).is_ok());
    // The staging file is what it was, and what is lacking can come from elsewhere.
    assert_eq!(store.staged(id).unwrap().metadata().unwrap().nlink(), 1);
    for start in (3..4990).step_by(16) {
        store
            .insert(&sample.range(start..(start + 16).min(4990)))
            .unwrap();
    }
    assert_eq!(store.presence(&made).unwrap(), Presence::Complete);
    assert_eq!(damage(&store), []);
    store
        .each_object(&mut |_, _, origin| {
            assert_eq!(origin, Origin::Fetched);
            true
        })
        .unwrap();
}

#[test]
fn a_part_whose_hashes_are_not_all_known_is_no_object() {
    let (_dir, store) = new_store();
    let sample = Sample::new(20 * BLOCK_BYTES, 1);
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    let mut known = Leaves::default();
    known.put(3, [0; 32]);
    for absent in [3..5, 19..20, 20..21] {
        let made = store.import_part(id, sample.object.size, &known, &BlockSet::of(absent));
        assert!(made.is_err());
    }
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
}
