//! What becomes of contents that can't be put on the disk.

use std::{io::Write, sync::atomic::Ordering};

use super::*;
use crate::store::cache::State;

fn fails_to_sync(store: &Store, fails: bool) {
    let core = &store.inner.core;
    core.fails_to_sync.store(fails, Ordering::Relaxed);
}

fn is_loose(store: &Store, object: &Object) -> bool {
    let loose = |state: &State| !state.record.loose.is_empty();
    store.inner.core.look(object, loose).unwrap().unwrap()
}

#[test]
fn what_could_not_be_synced_is_not_said_to_be_on_disk_before_it_was_written_anew() {
    let (_dir, store) = new_store();
    let sample = Sample::new(20 * BLOCK_BYTES + 7, 1);
    let object = sample.object;
    publish(&store, &sample);
    fails_to_sync(&store, true);
    store.settle().unwrap_err();
    // Nor by who asks next, for something else.
    store.settle_written().unwrap_err();
    store.settle().unwrap_err();
    assert!(is_loose(&store, &object));

    assert!(store.make_durable(&[object]).unwrap() == [false]);
    fails_to_sync(&store, false);
    store.settle_written().unwrap();
    assert!(!is_loose(&store, &object));
    assert!(store.inner.core.unsettled.lock().is_empty());
    assert_eq!(
        read_blocks(&store, &object, 0..object.blocks()).unwrap(),
        sample.data
    );
    let store = reopen(store);
    assert_eq!(store.presence(&object).unwrap(), Presence::Complete);
    assert_eq!(
        read_blocks(&store, &object, 0..object.blocks()).unwrap(),
        sample.data
    );
    assert_eq!(damage(&store), []);
}

#[test]
fn what_the_kernel_has_given_up_is_found_to_be_damaged() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    let object = sample.object;
    publish(&store, &sample);
    fails_to_sync(&store, true);
    store.settle().unwrap_err();
    let file = OpenOptions::new()
        .write(true)
        .open(data_path(&store, &object));
    file.unwrap().write_all(b"old").unwrap();
    fails_to_sync(&store, false);

    // What is left of it is put on the disk, and others go on.
    store.settle().unwrap();
    let rest = BlockSet::of(1..3);
    assert_eq!(store.presence(&object).unwrap(), Presence::Partial(rest));
    assert!(!is_loose(&store, &object));
}

#[test]
fn what_the_kernel_has_dropped_is_no_zeros() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    publish(&store, &sample);
    fails_to_sync(&store, true);
    store.settle().unwrap_err();
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE | rustix::fs::FallocateFlags::PUNCH_HOLE;
    let file = OpenOptions::new()
        .write(true)
        .open(data_path(&store, &sample.object))
        .unwrap();
    rustix::fs::fallocate(file, flags, BLOCK_BYTES, BLOCK_BYTES).unwrap();
    fails_to_sync(&store, false);
    store.settle().unwrap();
    let mut rest = BlockSet::of(0..3);
    rest.remove(1..2);
    let presence = store.presence(&sample.object).unwrap();
    assert_eq!(presence, Presence::Partial(rest));
}

#[test]
fn what_could_not_be_synced_is_written_once_more_by_the_next_process() {
    let (dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    publish(&store, &sample);
    fails_to_sync(&store, true);
    store.settle().unwrap_err();
    store.flush().unwrap();
    let copy = dir.path().join("killed");
    copy_folder(store.dir(), &copy);
    drop(store);
    let store = open(&copy).unwrap();
    assert!(store.inner.core.unsettled.lock().contains(&sample.object));
    store.settle().unwrap();
    assert!(store.inner.core.unsettled.lock().is_empty());
    let store = reopen(store);
    assert!(store.inner.core.unsettled.lock().is_empty());
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
}

#[test]
fn what_was_almost_a_content_and_is_written_on_is_none() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    let object = sample.object;
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    store.refuse(true);
    let size = object.size;
    let imported = store.import(id, size, &Leaves::default());
    assert!(matches!(imported, Err(StoreError::Full)), "{imported:?}");
    store.refuse(false);
    drop(file);
    // What is to be written on is had anew.
    let file = store.staged(id).unwrap();
    file.write_all_at(b"something else", 9).unwrap();

    publish(&store, &sample);
    assert_eq!(
        read_blocks(&store, &object, 0..object.blocks()).unwrap(),
        sample.data
    );
    let other = store.import(id, size, &Leaves::default()).unwrap();
    assert_ne!(other, object);
    assert_eq!(
        read_blocks(&store, &object, 0..object.blocks()).unwrap(),
        sample.data
    );
    assert_eq!(damage(&store), []);
}

#[test]
fn blocks_of_which_only_the_hash_came_along_are_proven_before_they_are_read() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    let leaves = crate::content::leaves_of(&&sample.tree[..], sample.object, 0..3).unwrap();
    let mut known = Leaves::default();
    known.put_unseen(0, leaves[0]);
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    // The base was spoiled on the disk.
    file.write_all_at(b"rot", 9).unwrap();
    let imported = store.import(id, sample.object.size, &known).unwrap();
    assert_eq!(imported, sample.object);
    store.unstage(id).unwrap();
    let mut read = vec![0; 100];
    store.read(&imported, 0, &mut read).unwrap_err();
    let rest = read_blocks(&store, &imported, 1..3).unwrap();
    assert_eq!(rest, sample.slice(1..3));
}

#[test]
fn a_content_that_is_spoiled_is_replaced_when_it_is_written_again() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    written(&store, &sample);
    let hot = store.inner.core.hot(&sample.object).unwrap().unwrap();
    hot.state.write().proven.forget(0..3);
    let path = data_path(&store, &sample.object);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"rot", 9).unwrap();

    publish(&store, &sample);
    let read = read_blocks(&store, &sample.object, 0..3).unwrap();
    assert_eq!(read, sample.data);
    assert_eq!(damage(&store), []);
}

#[test]
fn a_content_with_holes_is_whole_after_the_index_was_lost() {
    let (dir, store) = new_store();
    let mut data = vec![0; 16 * BLOCK_BYTES as usize];
    blake3::Hasher::new()
        .finalize_xof()
        .fill(&mut data[..5 * BLOCK_BYTES as usize]);
    data[12 * BLOCK_BYTES as usize] = 1;
    let mut imported = Vec::new();
    for size in [data.len() as u64, BLOCK_BYTES / 2] {
        let bytes = if size == BLOCK_BYTES / 2 {
            &[][..]
        } else {
            &data[..]
        };
        let (id, file) = store.stage().unwrap();
        for (at, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at as u64 * BLOCK_BYTES).unwrap();
            }
        }
        imported.push(store.import(id, size, &Leaves::default()).unwrap());
        store.unstage(id).unwrap();
    }
    let fetched = Sample::new(40 * BLOCK_BYTES, 3);
    store.insert(&fetched.range(3..7)).unwrap();
    store.settle().unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("state/index")).unwrap();

    let store = open(&dir.path().join("state")).unwrap();
    for object in &imported {
        assert_eq!(store.presence(object).unwrap(), Presence::Complete);
    }
    let read = read_blocks(&store, &imported[0], 0..16).unwrap();
    assert!(read == data);
    let some = Presence::Partial(BlockSet::of(3..7));
    assert_eq!(store.presence(&fetched.object).unwrap(), some);
}
