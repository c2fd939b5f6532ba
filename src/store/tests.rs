//! The folder, small records and formats; and what all tests of the store share.

mod bits;
mod crash;
mod damage;
mod model;
mod objects;
mod packs;
mod room;
mod settle;
mod staging;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{record::ObjectRecord, *};
use crate::{
    content::{
        BLOCK_BYTES, INLINE_BYTES_MAX, encode_range, encoded_bytes, hash_into,
        sizes::INTERESTING_SIZES, verify_range,
    },
    manifest::WriterNumber,
};

/// A content in memory with its hash tree.
struct Sample {
    object: Object,
    data: Vec<u8>,
    tree: Vec<u8>,
}

impl Sample {
    /// Bytes that depend on nothing but size and seed.
    fn new(size: u64, seed: u64) -> Self {
        let mut data = vec![0; size as usize];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut data);
        let mut tree = vec![0; size.div_ceil(BLOCK_BYTES) as usize * 64];
        let content = hash_into(&&data[..], size, &mut &mut tree[..]).unwrap();
        Self {
            object: Object { content, size },
            data,
            tree,
        }
    }

    /// The answer that it lies in stays for as long as the tests run.
    fn range(&self, blocks: Range<u64>) -> VerifiedRange<'static> {
        let mut encoded = vec![0; encoded_bytes(self.object, blocks.clone()) as usize];
        let (data, tree) = (&self.data[..], &self.tree[..]);
        encode_range(&data, &tree, self.object, blocks.clone(), &mut encoded).unwrap();
        verify_range(self.object, blocks, encoded.leak()).unwrap()
    }

    fn all(&self) -> VerifiedRange<'static> {
        self.range(0..self.object.blocks())
    }

    fn slice(&self, blocks: Range<u64>) -> &[u8] {
        let bytes = self.object.bytes_of(blocks);
        &self.data[bytes.start as usize..bytes.end as usize]
    }
}

fn new_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

fn reopen(store: Store) -> Store {
    let dir = store.dir().to_owned();
    drop(store);
    open(&dir).unwrap()
}

/// Opens a store. Commands that another test starts may hold its lock for a moment, which they had from this process.
fn open(dir: &Path) -> Result<Store, StoreError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(dir) {
            Err(StoreError::Locked { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

fn read_blocks(store: &Store, object: &Object, blocks: Range<u64>) -> Result<Vec<u8>, StoreError> {
    let bytes = object.bytes_of(blocks);
    let mut buf = vec![0; (bytes.end - bytes.start) as usize];
    let length = store.read(object, bytes.start, &mut buf)?;
    assert_eq!(length, buf.len());
    Ok(buf)
}

fn damage(store: &Store) -> Vec<Damage> {
    verified(store, &VerifyProgress::default()).unwrap().1
}

/// Contents and bytes that a verification went over, and what it found, in order.
fn verified(
    store: &Store,
    progress: &VerifyProgress,
) -> Result<((u64, u64), Vec<Damage>), StoreError> {
    let mut found = Vec::new();
    let checked = store.verify(progress, &mut |damage| found.push(damage))?;
    found.sort_by_key(|damage| (damage.object, damage.blocks.start));
    Ok((checked, found))
}

fn data_path(store: &Store, object: &Object) -> PathBuf {
    store.inner.core.data_path(object)
}

/// Writes a content and imports it; others may be staged meanwhile.
fn publish(store: &Store, sample: &Sample) {
    let (id, file) = store.stage().unwrap();
    file.write_all_at(&sample.data, 0).unwrap();
    store
        .import(id, sample.object.size, &Leaves::default())
        .unwrap();
    store.unstage(id).unwrap();
}

/// A content that was written here and is settled.
fn written(store: &Store, sample: &Sample) {
    publish(store, sample);
    store.settle().unwrap();
    wait_until("the staging file is gone", || {
        fs::read_dir(store.dir().join("staging")).unwrap().count() == 0
    });
}

/// What lies in `lost`.
fn lost(store: &Store) -> Vec<Vec<u8>> {
    let Ok(names) = fs::read_dir(store.dir().join("lost")) else {
        return Vec::new();
    };
    names
        .map(|name| fs::read(name.unwrap().path()).unwrap())
        .collect()
}

fn entry(size: u64) -> JournalRecord {
    JournalRecord {
        path: b"a/b".to_vec(),
        seen: vec![Dot {
            writer: WriterNumber(1),
            sequence: 2,
        }],
        base: None,
        base_bytes: 0,
        size,
        written: vec![(0, size)],
        mode: 0o644,
        owner: 1000,
        group: 1000,
        modified: -5,
        attributes: Vec::new(),
        changed: None,
        is_new: false,
        bytes: None,
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Copies a state folder as it is, the way a backup program does.
fn copy_folder(from: &Path, to: &Path) {
    let done = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(done.success());
}

#[test]
fn a_second_open_is_refused_and_names_the_process() {
    let (_dir, store) = new_store();
    match Store::open(store.dir()) {
        Err(StoreError::Locked { dir, pid }) => {
            assert_eq!(dir, store.dir());
            assert_eq!(pid, std::process::id());
        }
        other => panic!("{:?}", other.err()),
    }
    // Closed, it opens again.
    drop(reopen(store));
}

#[test]
fn a_folder_of_another_format_is_refused_and_left_untouched() {
    for (other, advice) in [
        (1, "a new state folder"),
        (4, "the version of p2pfs that wrote"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), format!("{other}\n")).unwrap();
        let before = fs::metadata(dir.path()).unwrap();
        let error = Store::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains(advice), "{error}");
        match error {
            StoreError::Format { found, known, .. } => assert_eq!((found, known), (other, 3)),
            error => panic!("{error:?}"),
        }
        let after = fs::metadata(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(before.ctime_nsec(), after.ctime_nsec());
        assert_eq!(before.mode(), after.mode());
    }
}

#[test]
fn only_the_owner_gets_into_the_folder() {
    let (_dir, store) = new_store();
    let mode = fs::metadata(store.dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn small_records_are_kept_across_a_restart() {
    let (_dir, store) = new_store();
    let node = (NodeHash([7; 32]), b"node".to_vec());
    store.put_nodes(std::slice::from_ref(&node)).unwrap();
    store.put_head(b"k1", b"head").unwrap();
    store.put_head(b"k2", b"gone").unwrap();
    store.remove_head(b"k2").unwrap();
    store.put_peer(b"peer", b"record").unwrap();
    store.set_setting("a", Some(b"1")).unwrap();
    store.set_setting("b", Some(b"2")).unwrap();
    store.set_setting("b", None).unwrap();
    let store = reopen(store);
    assert_eq!(store.node(&node.0).unwrap().unwrap(), node.1);
    assert_eq!(store.node(&NodeHash([8; 32])).unwrap(), None);
    assert_eq!(store.heads().unwrap(), [(b"k1".to_vec(), b"head".to_vec())]);
    assert_eq!(
        store.peers().unwrap(),
        [(b"peer".to_vec(), b"record".to_vec())]
    );
    assert_eq!(store.setting("a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(store.setting("b").unwrap(), None);
}

#[test]
fn a_copied_folder_is_noticed_until_it_is_settled() {
    let (dir, store) = new_store();
    assert!(!store.is_restored_copy());
    let store = reopen(store);
    assert!(!store.is_restored_copy());
    let original = store.dir().to_owned();
    drop(store);
    let copy = dir.path().join("copy");
    copy_folder(&original, &copy);

    let store = Store::open(&copy).unwrap();
    assert!(store.is_restored_copy());
    let store = reopen(store);
    assert!(store.is_restored_copy());
    store.settle_here().unwrap();
    assert!(!store.is_restored_copy());
    assert!(!reopen(store).is_restored_copy());
    assert!(!Store::open(&original).unwrap().is_restored_copy());
}

#[test]
fn a_full_disk_is_told_apart_from_a_failing_one() {
    let path = Path::new("/x");
    let error = |code| failed("writing", path)(io::Error::from_raw_os_error(code));
    assert!(matches!(error(libc::ENOSPC), StoreError::Full));
    assert!(matches!(error(libc::EDQUOT), StoreError::Full));
    assert_eq!(
        error(libc::EIO).to_string().split(':').next(),
        Some("writing /x")
    );
    let full = sled::Error::Io(io::Error::from_raw_os_error(libc::ENOSPC));
    assert!(matches!(StoreError::from(full), StoreError::Full));
}

#[test]
fn records_have_the_documented_bytes() {
    let object = Object {
        content: ContentId([0xaa; 32]),
        size: 300 * BLOCK_BYTES,
    };
    let mut key = vec![0xaa; 32];
    key.extend([0, 0, 0, 0, 0x01, 0x2c, 0, 0]);
    assert_eq!(record::object_key(&object)[..], key);
    assert_eq!(record::parse_object_key(&key).unwrap(), object);

    let mut record = ObjectRecord {
        origin: Origin::Fetched,
        size_proven: true,
        last_use: 0x0102,
        inline: None,
        packed: None,
        present: BlockSet::of(2..202),
        loose: BlockSet::of(5..6),
    };
    record.present.insert(210..211);
    let bytes = [1, 4, 2, 1, 0, 0, 0, 0, 0, 0, 2, 2, 0xc8, 1, 8, 1, 1, 5, 1];
    assert_eq!(record.encode(&object), bytes);
    assert_eq!(ObjectRecord::decode(&object, &bytes).unwrap(), record);

    let small = Object { size: 3, ..object };
    let record = ObjectRecord {
        origin: Origin::Written,
        inline: Some(Bytes::from_static(b"abc")),
        packed: None,
        present: BlockSet::of(0..1),
        loose: BlockSet::default(),
        ..record
    };
    let packed = ObjectRecord {
        inline: None,
        packed: Some(crate::store::packs::Spot {
            pack: 300,
            offset: 5,
        }),
        ..record.clone()
    };
    let bytes = [1, 30, 2, 1, 0, 0, 0, 0, 0, 0, 0xac, 2, 5];
    assert_eq!(packed.encode(&small), bytes);
    assert_eq!(ObjectRecord::decode(&small, &bytes).unwrap(), packed);
    let bytes = [1, 15, 2, 1, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c'];
    assert_eq!(record.encode(&small), bytes);
    assert_eq!(ObjectRecord::decode(&small, &bytes).unwrap(), record);

    let encoded = record::encode_journal(&entry(7)).unwrap();
    assert_eq!(
        blake3::hash(&encoded).to_hex()[..16],
        *"89f16085190f28db",
        "the encoding of journal records changed: {encoded:02x?}"
    );
    assert_eq!(record::decode_journal(&encoded).unwrap(), entry(7));
    assert!(record::decode_journal(&encoded[..encoded.len() - 1]).is_err());
    for at in 1..encoded.len() {
        let mut flipped = encoded.clone();
        flipped[at] ^= 1;
        assert!(record::decode_journal(&flipped).is_err(), "{at}");
    }
    // As it was before it had a checksum.
    let before = [&[1], &encoded[9..]].concat();
    assert_eq!(record::decode_journal(&before).unwrap(), entry(7));
}
