//! What is done about bytes that can't be read or do not match: nothing that can't be undone, unless it is proven.

use super::*;

/// Makes a file impossible to open while it lives, the way a lack of descriptors does, and no matter who asks.
struct Barred {
    path: PathBuf,
    aside: PathBuf,
}

impl Barred {
    fn new(path: PathBuf) -> Self {
        let aside = path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        Self { path, aside }
    }
}

impl Drop for Barred {
    fn drop(&mut self) {
        fs::rename(&self.aside, &self.path).unwrap();
    }
}

fn spoil(path: &Path, block: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xee; 100], block * BLOCK_BYTES)
        .unwrap();
}

#[test]
fn a_file_that_cannot_be_opened_is_not_taken_for_damaged() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    written(&store, &sample);
    let store = reopen(store);
    let barred = Barred::new(data_path(&store, &sample.object));
    let error = store.reprove(&sample.object, 0..3).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(verified(&store, &VerifyProgress::default()).is_err());
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
    drop(barred);
    assert_eq!(
        read_blocks(&store, &sample.object, 0..3).unwrap(),
        sample.data
    );
}

#[test]
fn a_start_that_cannot_open_a_file_leaves_it_alone() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    written(&store, &sample);
    let path = data_path(&store, &sample.object);
    let state = store.dir().to_owned();
    drop(store);
    fs::remove_dir_all(state.join("index")).unwrap();
    let barred = Barred::new(path);
    let store = Store::open(&state).unwrap();
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
    drop(barred);
    assert_eq!(store.rebuild().unwrap(), 1);
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
}

#[test]
fn what_is_copied_is_proven_and_what_is_copied_in_part_is_so_anew() {
    let (dir, store) = new_store();
    let sample = Sample::new(5 * BLOCK_BYTES, 1);
    written(&store, &sample);
    let store = reopen(store);
    let to = fs::File::create(dir.path().join("to")).unwrap();
    let copy = |bytes: Range<u64>| store.copy_to(&sample.object, bytes, &to);
    let is_absent = |copied| matches!(copied, Err(StoreError::Absent(_)));
    spoil(&data_path(&store, &sample.object), 3);
    copy(0..3 * BLOCK_BYTES).unwrap();
    assert!(is_absent(copy(2 * BLOCK_BYTES..4 * BLOCK_BYTES)));
    spoil(&data_path(&store, &sample.object), 0);
    assert!(is_absent(copy(0..BLOCK_BYTES + 1)) || is_absent(copy(10_000..20_000)));
}

#[test]
fn only_blocks_that_prove_to_be_damaged_go() {
    let (_dir, store) = new_store();
    let sample = Sample::new(5 * BLOCK_BYTES, 1);
    written(&store, &sample);
    spoil(&data_path(&store, &sample.object), 3);
    store.reprove(&sample.object, 0..5).unwrap();
    let mut sound = BlockSet::of(0..5);
    sound.remove(3..4);
    assert_eq!(
        store.presence(&sample.object).unwrap(),
        Presence::Partial(sound)
    );
    // The rest of what was written here is not thrown away before there is something better.
    let mut spoilt = sample.data.clone();
    spoilt[3 * BLOCK_BYTES as usize..][..100].fill(0xee);
    assert!(fs::read(data_path(&store, &sample.object)).unwrap() == spoilt);
    store.insert(&sample.range(3..4)).unwrap();
    assert_eq!(
        read_blocks(&store, &sample.object, 0..5).unwrap(),
        sample.data
    );
    assert_eq!(damage(&store), []);
}

#[test]
fn what_is_left_of_a_content_written_here_is_put_aside() {
    let (_dir, store) = new_store();
    let sample = Sample::new(9000, 1);
    written(&store, &sample);
    let path = data_path(&store, &sample.object);
    spoil(&path, 0);
    store.reprove(&sample.object, 0..1).unwrap();
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
    assert!(!path.exists());
    let lost = lost(&store);
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0][100..], sample.data[100..]);
}

#[test]
fn a_damaged_hash_tree_costs_no_data() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    written(&store, &sample);
    let tree = store.inner.core.tree_path(&sample.object);
    for harm in [
        |tree: &Path| spoil(tree, 0),
        |tree: &Path| fs::remove_file(tree).unwrap(),
    ] {
        harm(&tree);
        let store = store.clone();
        store.reprove(&sample.object, 0..3).unwrap();
        assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
        assert_eq!(damage(&store), []);
    }
}

#[test]
fn blocks_that_the_disk_does_not_give_are_absent_until_they_prove_again() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    written(&store, &sample);
    let core = &store.inner.core;
    let hot = core.hot(&sample.object).unwrap().unwrap();
    let path = data_path(&store, &sample.object);
    spoil(&path, 1);
    core.withdraw(&hot, &(0..2)).unwrap();
    assert_eq!(
        store.presence(&sample.object).unwrap(),
        Presence::Partial(BlockSet::of(2..3))
    );
    assert_eq!(store.usage().unwrap().objects_bytes, BLOCK_BYTES);
    // The first one reads well again, the other one doesn't.
    assert_eq!(
        read_blocks(&store, &sample.object, 0..1).unwrap(),
        sample.slice(0..1)
    );
    assert!(matches!(
        read_blocks(&store, &sample.object, 1..2),
        Err(StoreError::Absent(_))
    ));
    assert_eq!(fs::metadata(&path).unwrap().len(), sample.object.size);
    store.insert(&sample.range(1..2)).unwrap();
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
    assert_eq!(store.usage().unwrap().objects_bytes, sample.object.size);
    drop(hot);
    let store = reopen(store);
    assert_eq!(damage(&store), []);
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
}
