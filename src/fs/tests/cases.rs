//! One promise each.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::*;
use crate::{
    fs::{
        core::{Need, now},
        notify::Notice,
        ops::{Changes, Found, Replace},
    },
    manifest::{Entry, Kind, Name, Timestamp},
    store::Presence,
};

fn flags(write: bool) -> i32 {
    if write { libc::O_RDWR } else { libc::O_RDONLY }
}

#[test]
fn before_any_head_the_root_is_an_error_and_never_an_empty_listing() {
    let fixture = Fixture::open(Arc::new(folder()));
    assert_eq!(fixture.names(""), Err(libc::EIO));
    assert_eq!(fixture.walk("a"), Err(libc::EIO));
    assert_eq!(
        fixture.attr("").expect("the root has attributes").kind,
        Kind::Directory
    );
}

#[test]
fn a_new_file_is_here_at_once_and_in_the_cluster_when_it_is_closed() {
    let fixture = Fixture::new();
    let handle = fixture.create("a").expect("created");
    fixture.write_at(handle, 0, b"hello").expect("written");
    assert_eq!(fixture.names("").expect("listed"), ["a"]);
    assert_eq!(fixture.attr("a").expect("there").size, 5);
    assert_eq!(fixture.content("a").expect("read"), b"hello");
    fixture.core.release(handle);
    let object = Object {
        content: content::hash_bytes(b"hello"),
        size: 5,
    };
    let path = TreePath::parse(b"a").expect("path");
    wait_until("published", || {
        let shown = fixture.namespace.get(&path).expect("known").expect("there");
        shown.entry.kind == Kind::File(object) && !shown.seen.is_empty()
    });
    assert_eq!(fixture.content("a").expect("read"), b"hello");
    fixture.settle();
    wait_until("the staging is gone", || {
        fixture.store.journaled().expect("journal").is_empty()
    });
}

/// As an archive is unpacked: each file is published when it is closed, and all of them in few heads.
#[test]
fn a_burst_of_files_becomes_four_heads_a_second() {
    let fixture = Fixture::new();
    let mut published = fixture.namespace.published();
    let begun = Instant::now();
    let mut number = 0;
    while number < 100 || begun.elapsed() < Duration::from_secs(2) {
        let handle = fixture.create(&format!("f{number}")).expect("created");
        fixture.write_at(handle, 0, b"content").expect("written");
        fixture.core.release(handle);
        number += 1;
    }
    wait_until("all is published", || {
        let status = fixture.namespace.status();
        status.unpublished == 0
            && status
                .summary
                .is_some_and(|summary| summary.files == number)
    });
    let seconds = begun.elapsed().as_secs_f64();
    let heads = std::iter::from_fn(|| published.try_recv().ok()).count();
    // Four a second, and a few more at first.
    let enough = 17 + (4.0 * seconds).ceil() as usize;
    assert!(heads <= enough, "{heads} heads in {seconds} s");
}

#[test]
fn an_open_file_that_is_quiet_is_published_and_goes_on() {
    let fixture = Fixture::new();
    let handle = fixture.create("log").expect("created");
    fixture.write_at(handle, 0, b"one ").expect("written");
    fixture.runtime.block_on(fixture.core.publish_all());
    let number = fixture.walk("log").expect("there");
    let hash = move |core: &Arc<Core>| core.getxattr(number, b"user.p2pfs.hash", true);
    let expected = content::hash_bytes(b"one ").to_string().into_bytes();
    assert_eq!(fixture.act(hash), Ok(expected));
    fixture.write_at(handle, 4, b"two").expect("written");
    assert_eq!(fixture.act(hash), Err(libc::ENODATA));
    assert_eq!(fixture.read_at(handle, 0, 10).expect("read"), b"one two");
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.content("log").expect("read"), b"one two");
    assert_eq!(
        fixture.names("").expect("listed"),
        ["log"],
        "no conflict with itself"
    );
}

#[test]
fn writing_into_a_remote_file_fetches_only_for_reads_and_publication() {
    let fixture = Fixture::new();
    let mut data: Vec<u8> = (0..400_000u32).map(|at| (at % 251) as u8).collect();
    fixture.change_behind("big", &data);
    let handle = fixture.open_file("big", flags(true)).expect("opened");
    fixture
        .write_at(handle, 100_000, b"patch")
        .expect("written");
    assert_eq!(
        *fixture.elsewhere.brought.lock(),
        0,
        "a write needs nothing"
    );
    data[100_000..100_005].copy_from_slice(b"patch");
    assert_eq!(
        fixture.read_at(handle, 99_990, 30).expect("read"),
        &data[99_990..100_020]
    );
    assert_eq!(*fixture.elsewhere.brought.lock(), BLOCK_BYTES);
    fixture.core.release(handle);
    fixture.settle();
    let number = fixture.walk("big").expect("there");
    let hash = fixture.act(move |core| core.getxattr(number, b"user.p2pfs.hash", false));
    assert_eq!(
        hash,
        Ok(content::hash_bytes(&data).to_string().into_bytes())
    );
}

#[test]
fn an_open_handle_keeps_what_it_opened_when_the_file_changes_elsewhere() {
    let fixture = Fixture::new();
    fixture.change_behind("a", b"first");
    let handle = fixture.open_file("a", flags(false)).expect("opened");
    let number = fixture.walk("a").expect("there");
    fixture.change_behind("a", b"second one");
    assert_ne!(fixture.walk("a").expect("there"), number, "a new inode");
    assert_eq!(fixture.content("a").expect("read"), b"second one");
    assert_eq!(fixture.read_at(handle, 0, 100).expect("read"), b"first");
    assert_eq!(
        fixture
            .act(move |core| core.getattr(number))
            .expect("attr")
            .size,
        5
    );
    assert_eq!(
        fixture
            .act(move |core| core.open(number, Mode::of(libc::O_RDWR)))
            .map(|_| ()),
        Err(libc::ESTALE),
        "what would be written to an inode that lost its name elsewhere is for nobody"
    );
}

#[test]
fn a_removed_file_stays_readable_and_writable_while_open_and_is_not_published() {
    let fixture = Fixture::new();
    let handle = fixture.create("tmp").expect("created");
    fixture.write_at(handle, 0, b"secret").expect("written");
    fixture
        .act(move |core| core.fsync_live(core.file(handle)?.number))
        .expect("synced");
    fixture
        .act(|core| core.unlink(ROOT, b"tmp"))
        .expect("removed");
    wait_until("a crash does not bring it back", || {
        fixture.store.journaled().expect("journal").is_empty()
    });
    fixture.write_at(handle, 6, b"!").expect("written");
    assert_eq!(fixture.read_at(handle, 0, 10).expect("read"), b"secret!");
    // Too much to be kept in memory.
    let more = [b'?'; 10_000];
    fixture.write_at(handle, 7, &more).expect("written");
    let all = [b"secret!".as_slice(), &more].concat();
    assert_eq!(fixture.read_at(handle, 0, 20_000).expect("read"), all);
    assert!(fixture.store.journaled().expect("journal").is_empty());
    fixture.core.release(handle);
    fixture.settle();
    assert!(fixture.names("").expect("listed").is_empty());
}

#[test]
fn a_removed_file_keeps_what_was_written_last_for_those_who_only_read_it() {
    let fixture = Fixture::new();
    fixture.change_behind("a", b"old");
    let writer = fixture.open_file("a", flags(true)).expect("opened");
    fixture.write_at(writer, 3, b" and new").expect("written");
    let reader = fixture.open_file("a", flags(false)).expect("opened");
    fixture
        .act(|core| core.unlink(ROOT, b"a"))
        .expect("removed");
    fixture.core.release(writer);
    assert_eq!(
        fixture.read_at(reader, 0, 20).expect("read"),
        b"old and new"
    );
    fixture.core.release(reader);
    fixture.settle();
}

#[test]
fn a_remote_change_meanwhile_becomes_a_concurrent_version() {
    // The namespace lets a local change of the same member follow on by itself, so "elsewhere" can't be played by it here;
    // what counts is that the versions named are those that the writer saw.
    let fixture = Fixture::new();
    fixture.change_behind("a", b"first");
    fixture
        .runtime
        .block_on(fixture.namespace.flush())
        .expect("flushed");
    let path = TreePath::parse(b"a").expect("path");
    let seen = fixture
        .namespace
        .get(&path)
        .expect("known")
        .expect("there")
        .seen;
    let handle = fixture.open_file("a", flags(true)).expect("opened");
    fixture.write_at(handle, 0, b"mine").expect("written");
    let number = fixture.walk("a").expect("there");
    fixture.change_behind("a", b"theirs");
    assert_eq!(
        fixture.walk("a").expect("there"),
        number,
        "the writer is left alone"
    );
    assert_eq!(fixture.content("a").expect("read"), b"minet");
    let live = fixture.core.live(number).expect("live");
    assert_eq!(live.state.lock().seen, seen);
    drop(live);
    fixture.core.release(handle);
    fixture.settle();
}

#[test]
fn what_fsync_put_on_disk_comes_back_after_a_crash() {
    let mut fixture = Fixture::new();
    fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made");
    fixture.put("old", &[3; 100_000]).expect("put");
    fixture.settle();
    let handle = fixture.create("d/new").expect("created");
    fixture.write_at(handle, 10, b"data").expect("written");
    let number = fixture.walk("d/new").expect("there");
    fixture
        .runtime
        .block_on(fixture.core.sync(Some(number), 0))
        .expect("synced");
    let patched = fixture.open_file("old", flags(true)).expect("opened");
    fixture
        .write_at(patched, 50_000, b"patch")
        .expect("written");
    let number = fixture.walk("old").expect("there");
    fixture
        .runtime
        .block_on(fixture.core.sync(Some(number), 0))
        .expect("synced");
    // The process ends without closing anything.
    let dir = fixture.dir.clone();
    std::mem::replace(&mut fixture.runtime, idle())
        .shutdown_timeout(std::time::Duration::from_secs(5));
    drop(fixture);
    let again = Fixture::open(dir);
    assert_eq!(again.store.journaled().expect("journal").len(), 2);
    let later = again
        .core
        .recover_here(again.core.aftermath().expect("sorted out"));
    again
        .runtime
        .block_on(again.core.clone().recover(later))
        .expect("recovered");
    again.settle();
    let mut expected = vec![0; 10];
    expected.extend_from_slice(b"data");
    assert_eq!(again.content("d/new").expect("read"), expected);
    let mut expected = vec![3; 100_000];
    expected[50_000..50_005].copy_from_slice(b"patch");
    assert_eq!(again.content("old").expect("read"), expected);
    assert_eq!(again.names("").expect("listed"), ["d", "old"]);
    wait_until("the journal is empty", || {
        again.store.journaled().expect("journal").is_empty()
    });
}

#[test]
fn a_crash_in_the_middle_of_a_truncation_leaves_no_zeros_in_what_was_synced() {
    for is_synced in [false, true] {
        let fixture = Fixture::new();
        let handle = fixture.create("file").expect("created");
        fixture.write_at(handle, 0, &[7; 9000]).expect("written");
        let number = fixture.walk("file").expect("there");
        match is_synced {
            true => fixture
                .runtime
                .block_on(fixture.core.sync(Some(number), 0))
                .expect("synced"),
            false => fixture
                .act(move |core| core.flush(handle))
                .expect("journaled"),
        }
        let cut = Changes {
            size: Some(1000),
            ..Changes::default()
        };
        fixture
            .act(move |core| core.setattr(number, &cut))
            .expect("cut");
        // The handle is open, so nothing was journaled since but by the truncation itself. After a kill the last record
        // counts, after a power loss the last one that was synced.
        let records = fixture.store.journaled().expect("journal");
        let (id, record) = records.first().expect("a record");
        let length = fixture.store.staged(*id).and_then(|file| {
            let about = file.metadata();
            about.map_err(|source| crate::store::StoreError::Io {
                what: "looking".into(),
                source,
            })
        });
        let length = length.expect("there").len();
        assert!(
            record.written.iter().all(|(_, end)| *end <= length),
            "{record:?}, {length} bytes"
        );
        if is_synced {
            let copy = folder();
            let done = std::process::Command::new("cp")
                .arg("-a")
                .arg(fixture.dir.path().join("state"))
                .arg(copy.path())
                .status();
            assert!(done.expect("copied").success());
            let state = copy.path().join("state");
            std::fs::remove_file(state.join("journal")).expect("removed");
            let records = Store::open(&state).expect("a store").journaled();
            let records = records.expect("journal");
            assert_eq!(records[0].1.size, 1000, "the one that was synced");
        }
        fixture.core.release(handle);
        fixture.settle();
        assert_eq!(fixture.content("file").expect("read"), [7; 1000]);
    }
}

#[test]
fn a_kill_brings_back_no_name_that_was_removed_after_its_publication() {
    let fixture = Fixture::new();
    fixture.put("base", b"base").expect("put");
    fixture.settle();
    for name in ["removed", "renamed", "kept", "unpublished"] {
        let handle = fixture.create(name).expect("created");
        fixture.write_at(handle, 0, &[1; 5000]).expect("written");
        fixture
            .act(move |core| core.flush(handle))
            .expect("journaled");
    }
    // What the publisher does up to the moment before it lets go of the staging files.
    let journal = fixture.store.journaled().expect("journal");
    let mut ids = Vec::new();
    for (id, record) in &journal {
        if record.path == b"unpublished" {
            continue;
        }
        fixture
            .store
            .import(*id, record.size, &content::Leaves::default())
            .expect("imported");
        ids.push(*id);
        let entry = super::super::live::plain_entry(
            Kind::File(Object {
                content: content::hash_bytes(&[1; 5000]),
                size: 5000,
            }),
            record.mode,
            record.owner,
            record.group,
            Timestamp(record.modified),
        );
        let path = TreePath::parse(&record.path).expect("a path");
        fixture
            .core
            .change(vec![Edit {
                path,
                entry: Some(entry),
                seen: Vec::new(),
                held: false,
                written: None,
                moved: None,
            }])
            .expect("changed");
    }
    fixture.core.note_end(&ids);
    let flush = || fixture.runtime.block_on(fixture.namespace.flush());
    flush().expect("flushed");
    let get = |path: &str| {
        let path = TreePath::parse(path.as_bytes()).expect("a path");
        let shown = fixture.namespace.get(&path).expect("known").expect("there");
        (path, shown)
    };
    let mut edits = Vec::new();
    for (name, target) in [("removed", None), ("renamed", Some("moved"))] {
        let (path, shown) = get(name);
        edits.extend(target.map(|target| Edit {
            path: TreePath::parse(target.as_bytes()).expect("a path"),
            entry: Some(shown.entry.clone()),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: None,
        }));
        edits.push(Edit {
            path,
            entry: None,
            seen: shown.seen,
            held: false,
            written: None,
            moved: None,
        });
    }
    fixture.namespace.change(edits).expect("changed");
    flush().expect("flushed");
    fixture.store.flush().expect("flushed");

    // As a killed process leaves it: a copy, under an identity that is its own.
    let copy = Arc::new(folder());
    let done = std::process::Command::new("cp")
        .arg("-a")
        .arg(fixture.dir.path().join("state"))
        .arg(copy.path())
        .status()
        .expect("copied");
    assert!(done.success());
    drop(fixture);
    let store = Store::open(&copy.path().join("state")).expect("a store");
    store.settle_here().expect("settled");
    drop(store);
    let again = Fixture::open(copy);
    assert!(again.store.journaled().expect("journal").len() >= 4);
    taken_up(&again);
    again.settle();
    assert_eq!(
        again.names("").expect("listed"),
        ["base", "kept", "moved", "unpublished"]
    );
    wait_until("the journal is empty", || {
        again.store.journaled().expect("journal").is_empty()
    });
}

#[test]
fn a_content_that_cannot_be_opened_for_a_while_is_kept() {
    let fixture = Fixture::new();
    let data = vec![5; 200_000];
    fixture.put("a", &data).expect("put");
    fixture.settle();
    let dir = fixture.dir.clone();
    drop(fixture);
    let again = Fixture::open(dir);
    let object = Object {
        content: content::hash_bytes(&data),
        size: data.len() as u64,
    };
    let path = again.store.dir().join(format!(
        "objects/{:02x}/{}-{}",
        object.content.0[0], object.content, object.size
    ));
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside).expect("renamed");
    std::os::unix::fs::symlink(&path, &path).expect("a link to itself");
    assert!(again.content("a").is_err());
    std::fs::rename(&aside, &path).expect("renamed back");
    assert_eq!(again.content("a"), Ok(data));
}

#[test]
fn attributes_of_a_closed_file_change_without_its_content() {
    let fixture = Fixture::new();
    fixture.change_behind("a", b"remote");
    let number = fixture.walk("a").expect("there");
    let changes = Changes {
        mode: Some(0o600),
        uid: Some(5),
        modified: Some(Timestamp(1_234_567_890_123_456_789)),
        ..Changes::default()
    };
    let attr = fixture
        .act(move |core| core.setattr(number, &changes))
        .expect("set");
    assert_eq!(
        (attr.mode, attr.uid, attr.modified_ns),
        (0o600, 5, 1_234_567_890_123_456_789)
    );
    assert_eq!(fixture.walk("a").expect("there"), number, "the same inode");
    assert_eq!(*fixture.elsewhere.brought.lock(), 0);
    let state = fixture.act(move |core| core.getxattr(number, b"user.p2pfs.state", false));
    assert_eq!(state, Ok(b"remote".to_vec()));
}

#[test]
fn a_time_that_was_set_on_a_folder_survives_the_publication_of_what_was_written_before() {
    let fixture = Fixture::new();
    fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made");
    let handle = fixture.create("d/a").expect("created");
    fixture.write_at(handle, 0, b"x").expect("written");
    let number = fixture.walk("d").expect("there");
    let changes = Changes {
        modified: Some(Timestamp(77)),
        ..Changes::default()
    };
    fixture
        .act(move |core| core.setattr(number, &changes))
        .expect("set");
    fixture.core.release(handle);
    fixture.settle();
    fixture
        .runtime
        .block_on(fixture.namespace.flush())
        .expect("flushed");
    assert_eq!(fixture.attr("d").expect("there").modified_ns, 77);
    fixture.put("d/b", b"later").expect("put");
    assert!(fixture.attr("d").expect("there").modified_ns > 77);
}

/// As `rsync` does, before and after it has filled a folder.
#[test]
fn a_folders_time_is_set_to_what_it_had_been_set_to_before() {
    let fixture = Fixture::new();
    let folder = fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made")
        .number;
    let time = Changes {
        modified: Some(Timestamp(1_577_836_800_000_000_000)),
        ..Changes::default()
    };
    for name in ["d/a", "d/b"] {
        fixture.put(name, b"x").expect("put");
        fixture
            .act({
                let time = time.clone();
                move |core| core.setattr(folder, &time)
            })
            .expect("set");
        let seen = || fixture.attr("d").expect("there").modified_ns;
        assert_eq!(Some(Timestamp(seen())), time.modified);
        fixture.settle();
        assert_eq!(Some(Timestamp(seen())), time.modified);
    }
}

#[test]
fn a_folder_has_the_time_of_its_last_rename_or_removal_also_of_what_no_head_ever_had() {
    for has_head in [false, true] {
        a_folder_has_the_time_of_its_last_change(has_head);
    }
}

fn a_folder_has_the_time_of_its_last_change(has_head: bool) {
    let fixture = Fixture::new();
    fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made");
    if has_head {
        fixture.settle();
    }
    let folder = fixture.walk("d").expect("there");
    let handle = fixture.create("d/a").expect("created");
    fixture.write_at(handle, 0, b"x").expect("written");
    fixture.core.release(handle);
    let before = now().0;
    fixture
        .act(move |core| core.rename((folder, b"a"), (folder, b"b"), Replace::Yes))
        .expect("renamed");
    assert!(fixture.attr("d").expect("there").modified_ns >= before);
    let before = now().0;
    fixture
        .act(move |core| core.unlink(folder, b"b"))
        .expect("removed");
    assert!(fixture.attr("d").expect("there").modified_ns >= before);
    fixture.settle();
    assert!(fixture.attr("d").expect("there").modified_ns >= before);
}

#[test]
fn a_name_is_not_moved_with_another_file_than_the_kernel_takes_it_for() {
    let fixture = Fixture::new();
    for name in ["a", "b"] {
        fixture.put(name, b"first").expect("put");
    }
    fixture.settle();
    let known = fixture.walk("a").expect("there");
    // The kernel has not heard of it yet.
    fixture.change_behind("a", b"second");
    let rename =
        |replace| fixture.act(move |core| core.rename((ROOT, b"a"), (ROOT, b"b"), replace));
    assert_eq!(rename(Replace::Exchange), Err(libc::ESTALE));
    assert_eq!(rename(Replace::Yes), Err(libc::ESTALE));
    let found = fixture.walk("a").expect("there");
    assert_ne!(found, known);
    assert_eq!(rename(Replace::Yes), Ok(()));
    assert_eq!(fixture.walk("b"), Ok(found));
    assert_eq!(fixture.content("b"), Ok(b"second".to_vec()));
    // Nobody finds it by a name any more.
    let mode = Mode::of(libc::O_RDONLY);
    assert_eq!(
        fixture.act(move |core| core.open(known, mode)),
        Err(libc::ESTALE)
    );
}

#[test]
fn extended_attributes_are_kept_and_bounded() {
    let fixture = Fixture::new();
    fixture.put("a", b"x").expect("put");
    fixture.settle();
    let number = fixture.walk("a").expect("there");
    let set = |name: &'static [u8], value: Vec<u8>, flags: i32| {
        fixture.act(move |core| core.setxattr(number, name, &value, flags))
    };
    assert_eq!(
        set(b"user.k", b"v".to_vec(), libc::XATTR_REPLACE),
        Err(libc::ENODATA)
    );
    assert_eq!(set(b"user.k", b"v".to_vec(), libc::XATTR_CREATE), Ok(()));
    assert_eq!(
        set(b"user.k", b"v".to_vec(), libc::XATTR_CREATE),
        Err(libc::EEXIST)
    );
    assert_eq!(set(b"user.k", vec![0; 5000], 0), Err(libc::E2BIG));
    assert_eq!(set(b"user.l", vec![0; 4096], 0), Err(libc::ENOSPC));
    assert_eq!(set(b"user.p2pfs.hash", b"v".to_vec(), 0), Err(libc::EPERM));
    assert_eq!(set(b"security.x", b"v".to_vec(), 0), Err(libc::EOPNOTSUPP));
    assert_eq!(
        fixture.act(move |core| core.listxattr(number)),
        Ok(b"user.k\0".to_vec())
    );
    assert_eq!(
        fixture.act(move |core| core.getxattr(number, b"user.k", false)),
        Ok(b"v".to_vec())
    );
    assert_eq!(
        fixture.act(move |core| core.removexattr(number, b"user.k")),
        Ok(())
    );
    assert_eq!(
        fixture.act(move |core| core.getxattr(number, b"user.k", false)),
        Err(libc::ENODATA)
    );
    let dir = fixture.dir.path().as_os_str().as_encoded_bytes().to_vec();
    assert_eq!(
        fixture.act(|core| core.getxattr(ROOT, b"user.p2pfs.state-dir", false)),
        Ok(dir)
    );
}

#[test]
fn a_file_that_is_being_written_moves_along_with_its_folder() {
    let fixture = Fixture::new();
    fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made");
    fixture
        .act(|core| core.make(CALLER, ROOT, b"e", Kind::Directory, 0o755))
        .expect("made");
    fixture.put("d/old", b"base").expect("put");
    fixture.settle();
    let new = fixture.create("d/new").expect("created");
    fixture.write_at(new, 0, b"half").expect("written");
    let old = fixture.open_file("d/old", flags(true)).expect("opened");
    fixture.write_at(old, 4, b" more").expect("written");
    fixture
        .act(|core| core.rename((ROOT, b"d"), (ROOT, b"e"), Replace::Yes))
        .expect("renamed");
    fixture.write_at(new, 4, b" and half").expect("written");
    fixture.core.release(new);
    fixture.core.release(old);
    fixture.settle();
    fixture
        .runtime
        .block_on(fixture.namespace.flush())
        .expect("flushed");
    assert_eq!(fixture.names("").expect("listed"), ["e"]);
    assert_eq!(fixture.names("e").expect("listed"), ["new", "old"]);
    assert_eq!(fixture.content("e/new").expect("read"), b"half and half");
    assert_eq!(fixture.content("e/old").expect("read"), b"base more");
}

#[test]
fn a_read_that_nobody_can_serve_is_an_error() {
    let fixture = Fixture::new();
    fixture.change_behind("a", b"gone");
    fixture.elsewhere.contents.lock().clear();
    let handle = fixture.open_file("a", flags(false)).expect("opened");
    assert_eq!(fixture.read_at(handle, 0, 4), Err(libc::EIO));
    assert_eq!(
        fixture.read_at(handle, 4, 4),
        Ok(Vec::new()),
        "the end needs no bytes"
    );
}

#[test]
fn what_is_cached_is_told() {
    let fixture = Fixture::new();
    let data = vec![9; 3 * BLOCK_BYTES as usize];
    fixture.change_behind("a", &data);
    let handle = fixture.open_file("a", flags(false)).expect("opened");
    fixture.read_at(handle, 0, 10).expect("read");
    let number = fixture.walk("a").expect("there");
    let get = |name: &'static [u8]| fixture.act(move |core| core.getxattr(number, name, false));
    assert_eq!(get(b"user.p2pfs.state"), Ok(b"partial".to_vec()));
    assert_eq!(
        get(b"user.p2pfs.cached"),
        Ok(BLOCK_BYTES.to_string().into_bytes())
    );
    assert_eq!(get(b"user.p2pfs.holders"), Ok(b"0".to_vec()));
    let object = Object {
        content: content::hash_bytes(&data),
        size: data.len() as u64,
    };
    assert_ne!(
        fixture.store.presence(&object).expect("known"),
        Presence::Complete
    );
}

#[test]
fn fallocate_makes_room_and_holes() {
    let fixture = Fixture::new();
    fixture.put("a", &[7; 1000]).expect("put");
    fixture.settle();
    let handle = fixture.open_file("a", flags(true)).expect("opened");
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fixture
        .act(move |core| core.fallocate(handle, 100..200, punch))
        .expect("punched");
    fixture
        .act(move |core| core.fallocate(handle, 900..1100, 0))
        .expect("extended");
    assert_eq!(
        fixture.act(move |core| core.fallocate(handle, 0..1, 0x20)),
        Err(libc::EOPNOTSUPP)
    );
    fixture.core.release(handle);
    fixture.settle();
    let mut expected = vec![7; 1000];
    expected[100..200].fill(0);
    expected.resize(1100, 0);
    assert_eq!(fixture.content("a").expect("read"), expected);
}

#[test]
fn holes_are_found_once_nobody_writes_any_more() {
    const MIB: u64 = 1024 * 1024;
    let fixture = Fixture::new();
    let handle = fixture.create("a").expect("created");
    fixture.write_at(handle, 0, &[1; 5000]).expect("written");
    fixture
        .write_at(handle, 4 * MIB, &[2; 5000])
        .expect("written");
    let seek = |handle, offset, data| fixture.act(move |core| core.seek(handle, offset, data));
    let end = 4 * MIB + 5000;
    assert_eq!(
        seek(handle, 0, false),
        Ok(end),
        "somebody may have mapped it"
    );
    let taken = fixture.attr("a").expect("there").taken;
    assert_eq!(taken, 10_000);
    fixture.core.release(handle);
    fixture.settle();
    let handle = fixture.open_file("a", flags(false)).expect("opened");
    let hole = seek(handle, 0, false).expect("there is one");
    assert!((5000..MIB).contains(&hole), "{hole}");
    let data = seek(handle, hole, true).expect("there are some");
    assert!((2 * MIB..=4 * MIB).contains(&data), "{data}");
    assert_eq!(seek(handle, data, false), Ok(end));
    assert_eq!(seek(handle, end, true), Err(libc::ENXIO));
    fixture.core.release(handle);
}

#[test]
fn publication_changes_no_time() {
    let fixture = Fixture::new();
    let handle = fixture.create("a").expect("created");
    fixture.write_at(handle, 0, b"text").expect("written");
    let number = fixture.walk("a").expect("there");
    let accessed = Changes {
        accessed: Some(Timestamp(77)),
        ..Changes::default()
    };
    fixture
        .act(move |core| core.setattr(number, &accessed))
        .expect("set");
    let before = fixture.attr("a").expect("there");
    assert_eq!(before.accessed_ns, 77);
    fixture.core.release(handle);
    fixture.settle();
    let published = fixture.attr("a").expect("there");
    let kind = published.kind.clone();
    assert_eq!(published, Attr { kind, ..before });
}

#[test]
fn names_that_can_not_be_are_refused() {
    let fixture = Fixture::new();
    let make = |name: Vec<u8>| {
        fixture
            .act(move |core| core.make(CALLER, ROOT, &name, Kind::Directory, 0o755))
            .map(|_| ())
    };
    assert_eq!(make(vec![b'x'; 256]), Err(libc::ENAMETOOLONG));
    assert_eq!(make(b"..".to_vec()), Err(libc::EINVAL));
    assert_eq!(make(vec![b'x'; 255]), Ok(()));
    assert_eq!(make(vec![b'x'; 255]), Err(libc::EEXIST));
}

#[test]
fn a_truncation_meets_a_state_that_lives_and_is_not_hashed() {
    let fixture = Fixture::new();
    fixture.put("a", b"0123456789").expect("written");
    fixture.settle();
    let number = fixture.walk("a").expect("there");
    let core = &fixture.core;
    core.start_writing(number).expect("begun");
    // Nothing was written yet, but somebody is about to.
    assert!(core.due(false).is_empty());
    assert!(core.with_live(number, |_| ()).is_some(), "it lasts");
    let cut = |core: &Core| {
        let changes = Changes {
            size: Some(3),
            ..Changes::default()
        };
        core.setattr(number, &changes).map(|attr| attr.size)
    };
    core.with_live(number, |live| live.importing = true);
    assert!(matches!(cut(core), Err(Fail::Need(Need::Import(_)))));
    let size = core.with_live(number, |live| live.overlay.size());
    assert_eq!(size, Some(10), "nothing happened yet");
    core.with_live(number, |live| live.importing = false);
    core.closed(number, true);
    assert!(core.lives.lock().is_empty(), "and ends");
    assert_eq!(cut(core).expect("cut"), 3);
    fixture.settle();
    assert_eq!(fixture.content("a").expect("read"), b"012");
}

#[test]
fn a_file_that_is_busy_with_the_disk_holds_up_nobody_else() {
    let fixture = Fixture::new();
    fixture.put("other", b"x").expect("written");
    let handle = fixture.create("busy").expect("created");
    fixture.write_at(handle, 0, b"one").expect("written");
    let number = fixture.walk("busy").expect("there");
    let live = fixture.core.live(number).expect("live");

    let fixture = Arc::new(fixture);
    let others = |what: &'static str| {
        let (fixture, (done, is_done)) = (fixture.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for live in fixture.core.due(false) {
                live.state.lock().publishing = false;
            }
            fixture.put(what, b"new").expect("written");
            let handle = fixture.open_file("other", flags(true)).expect("opened");
            fixture.core.release(handle);
            let renamed = format!("{what} renamed").into_bytes();
            let from = what.as_bytes();
            fixture
                .core
                .rename((ROOT, from), (ROOT, &renamed), Replace::Yes)
                .expect("renamed");
            done.send(()).expect("somebody waits");
        });
        is_done.recv_timeout(Duration::from_secs(10)).expect(what);
    };
    {
        let _writing = live.state.lock();
        others("while it is written");
    }
    {
        let _syncing = live.syncing.lock();
        others("while it is synced");
        fixture.write_at(handle, 3, b"two").expect("written");
        assert_eq!(fixture.read_at(handle, 0, 9).expect("read"), b"onetwo");
        assert_eq!(fixture.walk("busy"), Ok(number));
    }
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.content("busy").expect("read"), b"onetwo");
}

#[test]
fn what_is_journaled_while_a_file_is_synced_is_not_taken_back() {
    let fixture = Fixture::new();
    let handle = fixture.create("a").expect("created");
    fixture.write_at(handle, 0, b"one").expect("written");
    let number = fixture.walk("a").expect("there");
    let (core, stop) = (fixture.core.clone(), Arc::new(AtomicBool::new(false)));
    let syncing = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                core.fsync_live(number).expect("synced");
            }
        })
    };
    for at in 1..200_u64 {
        fixture.write_at(handle, at * 3, b"two").expect("written");
        fixture
            .act(move |core| core.flush(handle))
            .expect("flushed");
    }
    stop.store(true, Ordering::Relaxed);
    syncing.join().expect("ended");
    let journal = fixture.store.journaled().expect("journal");
    let sizes: Vec<_> = journal.iter().map(|(_, record)| record.size).collect();
    assert_eq!(sizes, [600]);
    let (folder, name) = fixture.place("a").expect("there");
    fixture
        .act(move |core| core.unlink(folder, &name))
        .expect("removed");
    wait_until("its record has gone", || {
        fixture.store.journaled().expect("journal").is_empty()
    });
    fixture.core.release(handle);
}

#[test]
fn what_is_written_without_pause_is_journaled_all_the_same() {
    let fixture = Fixture::new();
    let handle = fixture.create("recording").expect("created");
    let mut at = 0;
    wait_until("there is a record", || {
        fixture.write_at(handle, at, b"more").expect("written");
        at += 4;
        !fixture.store.journaled().expect("journal").is_empty()
    });
    fixture.core.release(handle);
}

#[test]
fn a_synced_file_that_is_renamed_keeps_its_new_name_when_the_machine_goes_down() {
    let fixture = Fixture::new();
    fixture.put("target", b"old").expect("put");
    fixture.settle();
    let handle = fixture.create("tmp").expect("created");
    fixture.write_at(handle, 0, b"new").expect("written");
    let number = fixture.walk("tmp").expect("there");
    let sync = |number| fixture.runtime.block_on(fixture.core.sync(number, 0));
    sync(Some(number)).expect("synced");
    fixture
        .act(|core| core.rename((ROOT, b"tmp"), (ROOT, b"target"), Replace::Yes))
        .expect("renamed");
    sync(None).expect("synced");
    let dir = Arc::new(power_loss(&fixture));
    fixture.core.release(handle);
    drop(fixture);
    let again = Fixture::open(dir);
    assert_eq!(again.store.journaled().expect("journal").len(), 1);
    taken_up(&again);
    again.settle();
    assert_eq!(again.content("target").expect("read"), b"new");
    assert_eq!(again.names("").expect("listed"), ["target"]);
}

/// A copy of the state as it is on disk, which believes that the machine was down.
pub(super) fn power_loss(fixture: &Fixture) -> TempDir {
    let dir = folder();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(fixture.store.dir())
        .arg(dir.path().join("state"))
        .status();
    assert!(copied.expect("cp runs").success());
    let index = sled::open(dir.path().join("state/index")).expect("an index");
    let meta = index.open_tree("meta").expect("opens");
    meta.insert("boot", "another boot").expect("set");
    index.flush().expect("flushed");
    drop((meta, index));
    dir
}

#[test]
fn when_a_file_is_closed_the_kernel_hears_of_what_came_meanwhile() {
    let fixture = Fixture::new();
    fixture.put("same", b"first").expect("put");
    fixture.put("changed", b"first").expect("put");
    fixture.settle();
    let stirred = || std::mem::take(&mut *fixture.core.stirred.lock());
    for name in ["same", "changed"] {
        let handle = fixture.open_file(name, libc::O_WRONLY).expect("opened");
        if name == "changed" {
            fixture.change_behind(name, b"second one");
        }
        assert_eq!(fixture.attr(name).expect("there").size, 5);
        assert!(stirred().is_empty());
        fixture.core.release(handle);
        let path = TreePath::parse(name.as_bytes()).expect("path");
        assert_eq!(stirred().contains(&path), name == "changed", "{name}");
    }
    assert_eq!(fixture.content("changed").expect("read"), b"second one");
}

#[test]
fn a_change_of_a_name_invalidates_the_copies_beside_it() {
    let fixture = Fixture::new();
    let copy = "n (conflict, attic, 2024-03-01 12.34.56)";
    for name in ["n", "other", copy] {
        fixture.put(name, b"x").expect("put");
    }
    fixture.settle();
    for name in ["n", "other", copy] {
        fixture.walk(name).expect("there");
    }
    let path = TreePath::parse(b"n").expect("path");
    let notices = fixture.core.notices_for(&[path].into());
    let name = |name: &str| Notice::Name(ROOT, Name::new(name.as_bytes()).expect("a name"));
    assert!(notices.contains(&name("n")));
    assert!(notices.contains(&name(copy)));
    assert!(!notices.contains(&name("other")));
}

#[test]
fn a_change_of_unknown_extent_names_what_the_kernel_keeps_as_absent() {
    let fixture = Fixture::new();
    fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made");
    fixture.settle();
    let folder = fixture.walk("d").expect("there");
    let find = |folder: u64, name: &str| fixture.core.find(folder, name.as_bytes());
    for name in ["a", "b"] {
        let found = find(folder, name).expect("looked at");
        assert_eq!(found, Found::Nothing { kept: true });
    }
    let copy = "a (conflict, attic, 2024-03-01 12.34.56)";
    let found = find(ROOT, copy).expect("looked at");
    assert_eq!(found, Found::Nothing { kept: false });
    // Found under the next name, it is told of as anything else.
    fixture.put("d/b", b"x").expect("put");
    assert!(matches!(find(folder, "b"), Ok(Found::Something(_))));
    let notices = fixture.core.notices_for_all();
    let name = |name: &str| Notice::Name(folder, Name::new(name.as_bytes()).expect("a name"));
    assert!(notices.contains(&name("a")));
    assert!(!notices.contains(&Notice::Name(
        ROOT,
        Name::new(copy.as_bytes()).expect("a name")
    )));
}

#[test]
fn what_the_kernel_holds_to_be_absent_is_named_though_it_is_known_here() {
    let fixture = Fixture::new();
    let found = fixture.core.find(ROOT, b"d").expect("looked at");
    assert_eq!(found, Found::Nothing { kept: true });
    // As somebody else would: past the kernel.
    let path = TreePath::parse(b"d/x").expect("path");
    let folder = TreePath::parse(b"d").expect("path");
    let entry = |kind| {
        let entry = super::super::live::plain_entry(kind, 0o755, 0, 0, now());
        Some(entry)
    };
    let edit = |path: &TreePath, kind| Edit {
        path: path.clone(),
        entry: entry(kind),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let edits = vec![
        edit(&folder, Kind::Directory),
        edit(&path, Kind::File(Object::empty())),
    ];
    fixture.namespace.change(edits).expect("changed");
    // Something here stands below it.
    let number = fixture.core.folder_inode(&path).expect("a folder");
    fixture.core.inodes.lock().pin(number);
    let name = Notice::Name(ROOT, Name::new(b"d".as_slice()).expect("a name"));
    for at in [&folder, &path] {
        let notices = fixture.core.notices_for(&[at.clone()].into());
        assert!(notices.contains(&name), "{at:?}");
        let listing = Notice::Folder(ROOT);
        assert!(
            notices.contains(&listing),
            "{at:?}: it may have one without it"
        );
    }
    assert!(fixture.core.notices_for_all().contains(&name));
    // From the moment that the kernel has it, whoever works in it must not lose the ground.
    assert_eq!(fixture.walk("d"), Ok(number));
    for at in [&folder, &path] {
        let notices = fixture.core.notices_for(&[at.clone()].into());
        assert!(!notices.contains(&name), "{at:?}");
    }
    assert!(!fixture.core.notices_for_all().contains(&name));
}

#[test]
fn a_file_in_whose_place_there_is_a_folder_now_is_named() {
    let fixture = Fixture::new();
    fixture.put("either", b"a file").expect("put");
    fixture.settle();
    fixture.walk("either").expect("there");
    fixture.change_behind("either/1", b"in a folder");
    let either = TreePath::parse(b"either").expect("path");
    wait_until("it is committed", || {
        let shown = fixture.namespace.get(&either).expect("known");
        shown.expect("there").entry.kind == Kind::Directory
    });
    let path = TreePath::parse(b"either/1").expect("path");
    let notices = fixture.core.notices_for(&[path].into());
    let name = Name::new(b"either".as_slice()).expect("a name");
    let expected = [Notice::Name(ROOT, name), Notice::Folder(ROOT)];
    assert_eq!(notices, expected.into());
}

#[test]
fn a_name_that_a_writer_brings_back_is_told_to_the_kernel() {
    let fixture = Fixture::new();
    fixture.put("a", b"first").expect("put");
    fixture.settle();
    let handle = fixture.open_file("a", flags(true)).expect("opened");
    fixture.write_at(handle, 0, b"later").expect("written");
    let path = TreePath::parse(b"a").expect("path");
    let shown = fixture.namespace.get(&path).expect("known").expect("there");
    let removal = Edit {
        path: path.clone(),
        entry: None,
        seen: shown.seen,
        held: false,
        written: None,
        moved: None,
    };
    fixture.namespace.change(vec![removal]).expect("changed");
    assert!(fixture.core.stirred.lock().is_empty());
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.content("a").expect("read"), b"later");
    assert!(fixture.core.stirred.lock().contains(&path));
}

#[test]
fn attributes_that_somebody_else_sets_while_a_file_is_written_stay() {
    let fixture = Fixture::new();
    fixture.put("a", b"first").expect("put");
    fixture.settle();
    let handle = fixture.open_file("a", flags(true)).expect("opened");
    let number = fixture.walk("a").expect("there");
    let path = TreePath::parse(b"a").expect("path");
    fixture.write_at(handle, 0, b"later").expect("written");
    fixture
        .act(move |core| core.setxattr(number, b"user.mine", b"1", 0))
        .expect("set");
    let shown = fixture.namespace.get(&path).expect("known").expect("there");
    let mut entry = shown.entry;
    entry.mode = 0o600;
    entry.attributes.insert(b"theirs".to_vec(), b"2".to_vec());
    fixture
        .namespace
        .change(vec![Edit {
            path: path.clone(),
            entry: Some(entry),
            seen: shown.seen,
            held: false,
            written: None,
            moved: None,
        }])
        .expect("changed");
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.content("a").expect("read"), b"later");
    let entry = fixture
        .namespace
        .get(&path)
        .expect("known")
        .expect("there")
        .entry;
    assert_eq!(entry.mode, 0o600);
    let names: Vec<_> = entry.attributes.keys().map(Vec::as_slice).collect();
    assert_eq!(names, [b"mine".as_slice(), b"theirs"]);
}

#[test]
fn what_can_not_be_published_at_the_end_is_kept_with_its_attributes() {
    let fixture = Fixture::new();
    // Somebody else's, whose content nobody has.
    fixture.change_behind("a", &[7; 200_000]);
    fixture.elsewhere.contents.lock().clear();
    let handle = fixture.open_file("a", flags(true)).expect("opened");
    fixture.write_at(handle, 0, b"patch").expect("written");
    let number = fixture.walk("a").expect("there");
    fixture
        .act(move |core| core.setxattr(number, b"user.note", b"kept", 0))
        .expect("set");
    fixture.runtime.block_on(fixture.core.publish_all());
    let kept = fixture.runtime.block_on(fixture.core.keep_unpublished());
    kept.expect("kept");
    let dir = Arc::new(power_loss(&fixture));
    fixture.core.release(handle);
    drop(fixture);
    let again = Fixture::open(dir);
    assert_eq!(again.store.journaled().expect("journal").len(), 1);
    taken_up(&again);
    let handle = again.open_file("a", flags(false)).expect("opened");
    assert_eq!(again.read_at(handle, 0, 5).expect("read"), b"patch");
    let number = again.walk("a").expect("there");
    let note = again.act(move |core| core.getxattr(number, b"user.note", true));
    assert_eq!(note, Ok(b"kept".to_vec()));
    again.core.release(handle);
}

/// Gives a file another name.
fn link(fixture: &Fixture, from: &str, to: &str) -> Result<Attr, i32> {
    let number = fixture.walk(from)?;
    let (folder, name) = fixture.place(to)?;
    fixture.act(move |core| core.link(number, folder, &name))
}

fn unlink(fixture: &Fixture, path: &str) -> Result<(), i32> {
    let (folder, name) = fixture.place(path)?;
    fixture.act(move |core| core.unlink(folder, &name))
}

#[test]
fn all_names_of_a_file_are_one_inode() {
    let fixture = Fixture::new();
    fixture.put("a", b"one").expect("put");
    let before = fixture.attr("a").expect("there");
    let linked = link(&fixture, "a", "b").expect("linked");
    assert_eq!((linked.number, linked.links), (before.number, 2));
    assert_eq!(link(&fixture, "a", "b").map(|_| ()), Err(libc::EEXIST));
    link(&fixture, "b", "c").expect("linked");
    let handle = fixture.open_file("c", flags(true)).expect("opened");
    fixture.write_at(handle, 0, b"two").expect("written");
    for path in ["a", "b", "c"] {
        let attr = fixture.attr(path).expect("there");
        assert_eq!((attr.number, attr.links), (before.number, 3));
        assert_eq!(fixture.content(path).expect("read"), b"two");
    }
    fixture.core.release(handle);
    fixture.settle();
    let mode = Changes {
        mode: Some(0o600),
        ..Changes::default()
    };
    let number = before.number;
    fixture
        .act(move |core| core.setattr(number, &mode))
        .expect("set");
    fixture
        .runtime
        .block_on(fixture.namespace.flush())
        .expect("flushed");
    for path in ["a", "b", "c"] {
        assert_eq!(fixture.attr(path).expect("there").mode, 0o600);
        assert_eq!(fixture.content(path).expect("read"), b"two");
    }
    unlink(&fixture, "a").expect("removed");
    assert_eq!(fixture.attr("b").expect("there").links, 2);
    unlink(&fixture, "b").expect("removed");
    let last = fixture.attr("c").expect("there");
    assert_eq!((last.number, last.links, last.mode), (number, 1, 0o600));
    assert_eq!(fixture.content("c").expect("read"), b"two");
    fixture.core.inodes.lock().check();
}

#[test]
fn a_file_that_is_being_written_gets_another_name_and_loses_the_first() {
    let fixture = Fixture::new();
    let handle = fixture.create("a").expect("created");
    fixture.write_at(handle, 0, b"half").expect("written");
    link(&fixture, "a", "b").expect("linked");
    fixture.write_at(handle, 4, b" and half").expect("written");
    unlink(&fixture, "a").expect("removed");
    assert_eq!(fixture.attr("b").expect("there").size, 13);
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.names("").expect("listed"), ["b"]);
    assert_eq!(fixture.content("b").expect("read"), b"half and half");
    assert_eq!(fixture.attr("b").expect("there").links, 1);
}

#[test]
fn a_name_of_a_file_that_is_nowhere_is_seen_renamed_replaced_and_removed() {
    let fixture = Fixture::new();
    let make = |name: &'static [u8]| {
        fixture
            .act(move |core| core.make(CALLER, ROOT, name, Kind::Directory, 0o755))
            .expect("made");
    };
    make(b"d");
    fixture.put("new", b"new").expect("put");
    let names = ["d/a", "d/b", "d/c"];
    let edit = |name: &&str| Edit {
        path: TreePath::parse(name.as_bytes()).expect("a path"),
        entry: Some(Entry::link([7; 16])),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let edits = names.iter().map(edit).collect();
    fixture.namespace.change(edits).expect("changed");
    fixture.settle();

    assert_eq!(fixture.names("d").expect("listed"), ["a", "b", "c"]);
    assert_eq!(fixture.attr("d/a").expect("there").size, 0);
    for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC] {
        assert_eq!(fixture.open_file("d/a", flags), Err(libc::EIO));
    }
    assert_eq!(
        link(&fixture, "d/a", "e").map(|_| ()),
        Err(libc::EIO),
        "there is nothing to give a name"
    );
    let number = fixture.walk("d/a").expect("there");
    let mode = Changes {
        mode: Some(0o600),
        ..Default::default()
    };
    let changed = fixture.act(move |core| core.setattr(number, &mode));
    assert_eq!(changed.map(|_| ()), Err(libc::EIO));

    let rename = |from: &'static str, to: &'static str| {
        let ((from, name), (to, new)) = (
            fixture.place(from).expect("a folder"),
            fixture.place(to).expect("a folder"),
        );
        fixture
            .act(move |core| core.rename((from, &name), (to, &new), Replace::Yes))
            .expect("renamed");
    };
    rename("d/a", "d/moved");
    rename("new", "d/b");
    assert_eq!(fixture.content("d/b").expect("read"), b"new");
    fixture.settle();
    for name in ["moved", "b", "c"] {
        unlink(&fixture, &format!("d/{name}")).expect("removed");
    }
    fixture
        .act(|core| core.rmdir(ROOT, b"d"))
        .expect("removed, as it is empty");
    assert!(fixture.names("").expect("listed").is_empty());
    fixture.core.inodes.lock().check();
}

#[test]
fn what_replaces_one_name_leaves_the_others() {
    let fixture = Fixture::new();
    fixture.put("a", b"old").expect("put");
    link(&fixture, "a", "b").expect("linked");
    link(&fixture, "a", "c").expect("linked");
    fixture.put("new", b"new").expect("put");
    let rename = |from: &'static [u8], to: &'static [u8]| {
        fixture
            .act(move |core| core.rename((ROOT, from), (ROOT, to), Replace::Yes))
            .expect("renamed");
    };
    fixture.walk("a").expect("known");
    rename(b"new", b"a");
    fixture.settle();
    assert_eq!(fixture.content("a").expect("read"), b"new");
    assert_eq!(fixture.attr("a").expect("there").links, 1);
    assert_eq!(fixture.attr("b").expect("there").links, 2);
    // Two names of one file: nothing happens.
    rename(b"b", b"c");
    assert_eq!(fixture.names("").expect("listed"), ["a", "b", "c"]);
    rename(b"b", b"moved");
    assert_eq!(fixture.attr("moved").expect("there").links, 2);
    assert_eq!(fixture.content("moved").expect("read"), b"old");
    // And one that somebody else replaces is a file of its own.
    fixture
        .runtime
        .block_on(fixture.namespace.flush())
        .expect("flushed");
    fixture.change_behind("c", b"theirs");
    assert_eq!(fixture.content("c").expect("read"), b"theirs");
    assert_eq!(fixture.content("moved").expect("read"), b"old");
    assert_ne!(
        fixture.attr("c").expect("there").number,
        fixture.attr("moved").expect("there").number
    );
    fixture.core.inodes.lock().check();
}

#[test]
fn a_file_being_written_is_journaled_under_a_name_that_it_has() {
    let fixture = Fixture::new();
    fixture.put("a", b"old").expect("put");
    link(&fixture, "a", "b").expect("linked");
    fixture.settle();
    let number = fixture.walk("a").expect("there");
    let handle = fixture.open_file("a", libc::O_WRONLY).expect("opened");
    fixture.write_at(handle, 0, b"new").expect("written");
    fixture
        .runtime
        .block_on(fixture.core.sync(Some(number), 0))
        .expect("synced");
    let journaled = || {
        let journal = fixture.store.journaled().expect("journal");
        let (id, _) = journal.last().expect("journaled");
        let last = fixture.store.fate(*id).moves.pop();
        last.expect("renamed").path
    };
    for (from, to) in [("a", "c"), ("c", "d")] {
        fixture
            .act(move |core| {
                let (from, to) = (from.as_bytes(), to.as_bytes());
                core.rename((ROOT, from), (ROOT, to), Replace::Yes)
            })
            .expect("renamed");
        assert_eq!(journaled(), to.as_bytes());
    }
    unlink(&fixture, "d").expect("removed");
    assert_eq!(journaled(), b"b");
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.names("").expect("listed"), ["b"]);
    assert_eq!(fixture.content("b").expect("read"), b"new");
}

#[test]
fn an_open_file_goes_on_under_a_name_that_nobody_has_looked_at() {
    let fixture = Fixture::new();
    fixture.put("a", b"old").expect("put");
    fixture
        .act(|core| core.make(CALLER, ROOT, b"d", Kind::Directory, 0o755))
        .expect("made");
    link(&fixture, "a", "d/b").expect("linked");
    fixture.settle();
    let dir = Arc::new(power_loss(&fixture));
    drop(fixture);
    let again = Fixture::open(dir);
    let handle = again.open_file("a", libc::O_RDONLY).expect("opened");
    let number = again.walk("a").expect("there");
    unlink(&again, "a").expect("removed");
    let attr = again.act(move |core| core.getattr(number)).expect("there");
    assert_eq!(attr.links, 1);
    let mode = Changes {
        mode: Some(0o600),
        ..Changes::default()
    };
    again
        .act(move |core| core.setattr(number, &mode))
        .expect("set");
    let other = again.attr("d/b").expect("there");
    assert_eq!((other.number, other.mode), (number, 0o600));
    again.core.release(handle);
    again.core.inodes.lock().check();
}

#[test]
fn a_file_with_several_names_is_taken_up_as_one() {
    let fixture = Fixture::new();
    fixture.put("a", b"old").expect("put");
    link(&fixture, "a", "b").expect("linked");
    fixture.settle();
    let handle = fixture.open_file("b", libc::O_WRONLY).expect("opened");
    fixture.write_at(handle, 0, b"new").expect("written");
    let number = fixture.walk("b").expect("there");
    fixture
        .runtime
        .block_on(fixture.core.sync(Some(number), 0))
        .expect("synced");
    let dir = Arc::new(power_loss(&fixture));
    fixture.core.release(handle);
    drop(fixture);
    let again = Fixture::open(dir);
    taken_up(&again);
    for path in ["a", "b"] {
        let attr = again.attr(path).expect("there");
        assert_eq!((attr.number, attr.links), (number, 2), "{path}");
    }
    again.settle();
    for path in ["a", "b"] {
        assert_eq!(again.content(path).expect("read"), b"new", "{path}");
    }
    again.core.inodes.lock().check();
}

#[test]
fn a_change_by_one_name_stays_with_the_file_when_another_name_becomes_somebody_elses() {
    let fixture = Fixture::new();
    fixture.put("a", b"one").expect("put");
    link(&fixture, "a", "b").expect("linked");
    fixture.settle();
    let handle = fixture.open_file("b", flags(true)).expect("opened");
    fixture.write_at(handle, 0, b"changed").expect("written");
    // Nobody looks it up before the change is published.
    fixture.change_behind("a", b"theirs");
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(fixture.content("a").expect("read"), b"theirs");
    assert_eq!(fixture.content("b").expect("read"), b"changed");
    assert_eq!(fixture.names("").expect("listed"), ["a", "b"]);
}

#[test]
fn removing_or_replacing_a_name_that_is_somebody_elses_by_now_leaves_the_file_its_other_name() {
    for is_replaced in [false, true] {
        let fixture = Fixture::new();
        fixture.put("a", b"one").expect("put");
        fixture.put("other", b"other").expect("put");
        link(&fixture, "a", "b").expect("linked");
        fixture.settle();
        let handle = fixture.open_file("a", flags(true)).expect("opened");
        fixture.change_behind("b", b"theirs");
        match is_replaced {
            true => fixture
                .act(|core| core.rename((ROOT, b"other"), (ROOT, b"b"), Replace::Yes))
                .expect("renamed"),
            false => unlink(&fixture, "b").expect("removed"),
        }
        fixture.write_at(handle, 0, b"changed").expect("written");
        assert_eq!(fixture.attr("a").expect("there").links, 1);
        fixture.core.release(handle);
        fixture.settle();
        assert_eq!(fixture.content("a").expect("read"), b"changed");
    }
}

#[test]
fn what_is_removed_while_it_is_being_published_stays_away() {
    let fixture = Fixture::new();
    let namespace = fixture.namespace.clone();
    let publishing = fixture.runtime.spawn(async move {
        while namespace.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for number in 0..200 {
        let name = format!("s{number}");
        let (folder, name) = fixture.place(&name).expect("a place");
        let kind = Kind::Symlink(b"target".to_vec());
        let with = name.clone();
        fixture
            .act(move |core| core.make(CALLER, folder, &with, kind.clone(), 0o755))
            .expect("made");
        // At some moment of its publication.
        std::thread::sleep(Duration::from_micros(150 * (number % 40)));
        fixture
            .act(move |core| core.unlink(folder, &name))
            .expect("removed");
        for _ in 0..10 {
            assert_eq!(fixture.names("").expect("listed"), [""; 0], "{number}");
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    publishing.abort();
}

#[test]
fn who_reads_on_is_told_the_rest_whatever_came_and_went() {
    let fixture = Fixture::new();
    for number in 0..100 {
        fixture.put(&format!("{number:02}"), b"x").expect("put");
    }
    let read = |from: u64, count: usize| {
        // Whether or not what was read before is still known.
        *fixture.core.listings.lock() = Default::default();
        let taken = fixture.act(move |core| core.prepare_listing(ROOT, from, true));
        let taken = taken.expect("taken");
        let mut lines = Vec::new();
        let mut add = |line: crate::fs::ops::Listed<'_>| {
            if lines.len() == count {
                return true;
            }
            lines.push((String::from_utf8_lossy(line.name).into_owned(), line.next));
            false
        };
        assert!(fixture.core.list(&taken, from, false, &mut add).is_ok());
        lines
    };
    let mut told: Vec<String> = Vec::new();
    let mut position = 0;
    loop {
        let lines = read(position, 7);
        let Some((last, next)) = lines.last().cloned() else {
            break;
        };
        assert!(next > position && i64::try_from(next).is_ok());
        position = next;
        told.extend(lines.into_iter().map(|(name, _)| name));
        // Each time the name that was told last goes, and another one comes.
        if last != ".." {
            let removed = fixture.act(move |core| core.unlink(ROOT, last.as_bytes()));
            removed.expect("removed");
        }
        fixture.put(&format!("new {position}"), b"x").expect("put");
    }
    assert_eq!(told[..2], [".", ".."]);
    let is_old = |name: &&String| name.parse::<u32>().is_ok();
    let mut old: Vec<_> = told.iter().filter(is_old).cloned().collect();
    old.sort();
    let all = (0..100).map(|number| format!("{number:02}"));
    assert_eq!(old, all.collect::<Vec<_>>());
    let mut once = told.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), told.len());
}
