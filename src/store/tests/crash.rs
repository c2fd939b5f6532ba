//! What is left when a process is killed, the machine goes down, or the index is lost.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
};

use super::*;

/// Tells a test process that it is the one to be killed, and where to write.
const DIR_VARIABLE: &str = "P2PFS_TEST_CRASH_DIR";
/// From which number on it writes.
const START_VARIABLE: &str = "P2PFS_TEST_CRASH_START";
const CONFIRMED: &str = "confirmed";

/// What an open store has on disk right now, as a killed process leaves it: in a copy, whose lock nobody holds.
fn crashed_copy(dir: &TempDir, store: &Store) -> PathBuf {
    let copy = dir.path().join("crashed");
    copy_folder(store.dir(), &copy);
    copy
}

fn relative_path(object: &Object) -> PathBuf {
    let first = object.content.0[0];
    format!("objects/{first:02x}/{}-{}", object.content, object.size).into()
}

/// Makes the index believe that it was last open before a reboot.
pub(super) fn reboot(state: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let db = loop {
        match sled::open(state.join("index")) {
            Ok(db) => break db,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    let meta = db.open_tree("meta").unwrap();
    meta.insert("boot", "another boot").unwrap();
    db.flush().unwrap();
}

#[test]
fn after_a_reboot_blocks_that_were_not_synced_are_proven_or_forgotten() {
    let (dir, store) = new_store();
    let sample = Sample::new(30 * BLOCK_BYTES, 1);
    let object = sample.object;
    store.insert(&sample.range(0..10)).unwrap();
    store.settle().unwrap();
    store.insert(&sample.range(10..20)).unwrap();
    let torn = Sample::new(3 * BLOCK_BYTES, 2);
    store.insert(&torn.all()).unwrap();
    store.flush().unwrap();
    let crashed = crashed_copy(&dir, &store);
    drop(store);

    // Not all of what was not synced reached the disk, and a synced block has rotted as well.
    let file = OpenOptions::new()
        .write(true)
        .open(crashed.join(relative_path(&object)))
        .unwrap();
    for block in [3, 12, 19] {
        file.write_all_at(&[0; 4096], block * BLOCK_BYTES).unwrap();
    }
    fs::remove_file(crashed.join(relative_path(&torn.object))).unwrap();
    reboot(&crashed);

    let store = Store::open(&crashed).unwrap();
    let mut expected = BlockSet::of(0..20);
    expected.remove(12..13);
    expected.remove(19..20);
    assert_eq!(
        store.presence(&object).unwrap(),
        Presence::Partial(expected)
    );
    assert_eq!(store.presence(&torn.object).unwrap(), Presence::Absent);
    assert_eq!(
        damage(&store),
        [Damage {
            object,
            blocks: 3..4
        }],
        "synced blocks are not read at a start"
    );
    assert_eq!(store.usage().unwrap().objects_bytes, 18 * BLOCK_BYTES);
}

#[test]
fn after_a_kill_nothing_is_read_again() {
    let (dir, store) = new_store();
    let sample = Sample::new(30 * BLOCK_BYTES, 1);
    store.insert(&sample.range(0..10)).unwrap();
    store.flush().unwrap();
    let crashed = crashed_copy(&dir, &store);
    drop(store);
    let store = Store::open(&crashed).unwrap();
    assert_eq!(
        store.presence(&sample.object).unwrap(),
        Presence::Partial(BlockSet::of(0..10))
    );
    // Still to be synced: a later reboot must find it loose or settled.
    assert!(store.inner.core.loose.lock().contains(&sample.object));
    store.settle().unwrap();
    assert!(store.inner.core.loose.lock().is_empty());
}

#[test]
fn what_a_killed_process_wrote_and_did_not_record_takes_no_room() {
    let (dir, store) = new_store();
    let sample = Sample::new(100 * BLOCK_BYTES, 1);
    store.insert(&sample.range(3..10)).unwrap();
    store.flush().unwrap();
    let crashed = crashed_copy(&dir, &store);
    drop(store);
    let path = crashed.join(relative_path(&sample.object));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(sample.slice(20..80), 20 * BLOCK_BYTES)
        .unwrap();
    let store = Store::open(&crashed).unwrap();
    let taken = path.metadata().unwrap().blocks() * 512;
    assert!(taken < 8 * BLOCK_BYTES, "{taken}");
    assert!((taken..taken + BLOCK_BYTES).contains(&store.room().files_bytes));
    assert_eq!(
        read_blocks(&store, &sample.object, 3..10).unwrap(),
        sample.slice(3..10)
    );
}

#[test]
fn what_others_rely_on_is_on_disk() {
    let (dir, store) = new_store();
    let (large, small) = (Sample::new(3 * BLOCK_BYTES, 1), Sample::new(100, 2));
    let objects = [large.object, small.object];
    for sample in [&large, &small] {
        store.insert(&sample.all()).unwrap();
        assert!(store.promise(&sample.object, u64::MAX).unwrap());
    }
    assert_eq!(store.make_durable(&objects).unwrap(), [true, true]);
    let crashed = crashed_copy(&dir, &store);
    drop(store);
    // Not proven again, since it was synced.
    fs::write(crashed.join(relative_path(&large.object)), [0; 9]).unwrap();
    reboot(&crashed);
    let store = Store::open(&crashed).unwrap();
    for object in objects {
        assert_eq!(store.presence(&object).unwrap(), Presence::Complete);
        assert!(store.is_promised(&object, 0).unwrap());
    }
}

#[test]
fn after_a_reboot_the_journal_says_what_was_durable() {
    let (dir, store) = new_store();
    let (synced, file) = store.stage().unwrap();
    file.write_all_at(&[1; 10], 0).unwrap();
    store.journal(synced, &entry(10), true).unwrap();
    store.journal(synced, &entry(20), false).unwrap();
    let (never_synced, file) = store.stage().unwrap();
    file.write_all_at(b"never synced", 0).unwrap();
    store.journal(never_synced, &entry(30), false).unwrap();
    store.flush().unwrap();
    let crashed = crashed_copy(&dir, &store);
    drop(store);
    reboot(&crashed);
    let store = Store::open(&crashed).unwrap();
    assert_eq!(store.journaled().unwrap(), [(synced, entry(10))]);
    // It may have zeros where its data did not reach the disk: not published, and not thrown away.
    assert!(store.staged(never_synced).is_err());
    assert_eq!(lost(&store), [b"never synced"]);
}

/// A staging file in memory that holds these bytes.
fn small(store: &Store, bytes: &[u8]) -> (StagingId, std::sync::Arc<fs::File>) {
    let (id, file) = store.stage_small().unwrap().expect("few are there");
    file.write_all_at(bytes, 0).unwrap();
    (id, file)
}

/// What a staging file holds.
fn holds(store: &Store, id: StagingId) -> Vec<u8> {
    let file = store.staged(id).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_small_file_is_in_its_records_and_as_they_say_after_a_crash() {
    for rebooted in [false, true] {
        let (dir, store) = new_store();
        // Closed; synced, and closed again; never closed; published; synced, then grown, and published as an object.
        let (closed, _) = small(&store, b"closed");
        store.journal(closed, &entry(6), false).unwrap();
        let (synced, file) = small(&store, b"synced");
        store.journal(synced, &entry(6), true).unwrap();
        file.write_all_at(b"closed again", 0).unwrap();
        store.journal(synced, &entry(12), false).unwrap();
        file.write_all_at(b"not any more", 0).unwrap();
        let (open, _) = small(&store, b"open");
        let (published, _) = small(&store, b"published");
        store.journal(published, &entry(9), false).unwrap();
        store.import(published, 9, &Leaves::default()).unwrap();
        let (grown, _) = small(&store, b"grown");
        store.journal(grown, &entry(5), true).unwrap();
        let file = store.unfold(grown).unwrap();
        let sample = Sample::new(10_000, 7);
        file.write_all_at(&sample.data, 0).unwrap();
        store.journal(grown, &entry(10_000), false).unwrap();
        store.import(grown, 10_000, &Leaves::default()).unwrap();
        store.settle().unwrap();
        let crashed = crashed_copy(&dir, &store);
        drop(store);
        if rebooted {
            reboot(&crashed);
        }
        let store = Store::open(&crashed).unwrap();
        let (synced_to, grown_to) = match rebooted {
            true => (&b"synced"[..], &b"grown"[..]),
            false => (&b"closed again"[..], &sample.data[..]),
        };
        let journaled = store.journaled().unwrap();
        let ids: Vec<_> = journaled.iter().map(|(id, _)| *id).collect();
        match rebooted {
            true => assert_eq!(ids, [synced, grown]),
            false => assert_eq!(ids, [closed, synced, published, grown]),
        }
        for (id, record) in journaled {
            assert_eq!(record.size, holds(&store, id).len() as u64);
        }
        assert_eq!(holds(&store, synced), synced_to);
        assert_eq!(holds(&store, grown), grown_to);
        assert!(store.staged(open).is_err());
        match rebooted {
            // What is here as a content is not lost.
            true => assert_eq!(lost(&store), [b"closed"]),
            false => {
                assert_eq!(holds(&store, closed), b"closed");
                assert_eq!(holds(&store, published), b"published");
                assert_eq!(lost(&store), [[0; 0]; 0]);
            }
        }
        assert_eq!(
            read_blocks(&store, &sample.object, 0..1).unwrap(),
            sample.data,
            "an object is not written to"
        );
        // No id is given out twice.
        let (next, _) = small(&store, b"next");
        assert!(next > grown);
    }
}

#[test]
fn a_small_file_that_is_done_with_is_forgotten() {
    let (dir, store) = new_store();
    let (published, _) = small(&store, b"published");
    store.journal(published, &entry(9), true).unwrap();
    store.import(published, 9, &Leaves::default()).unwrap();
    let (removed, _) = small(&store, b"removed");
    store.journal(removed, &entry(7), true).unwrap();
    for id in [published, removed] {
        store.unstage(id).unwrap();
    }
    wait_until("the records are gone", || {
        store.inner.core.latest.records().unwrap().is_empty()
            && store.inner.core.staging.lock().unstaged.is_empty()
    });
    let crashed = crashed_copy(&dir, &store);
    drop(store);
    let store = Store::open(&crashed).unwrap();
    assert_eq!(store.journaled().unwrap(), []);
    assert_eq!(lost(&store), [[0; 0]; 0]);
    assert_eq!(fs::read_dir(crashed.join("staging")).unwrap().count(), 0);
}

#[test]
fn only_so_many_small_files_are_in_memory() {
    let (_dir, store) = new_store();
    let mut small = Vec::new();
    while let Some((id, _)) = store.stage_small().unwrap() {
        small.push(id);
        assert!(small.len() <= 1024);
    }
    store.unfold(small[0]).unwrap();
    assert!(store.stage_small().unwrap().is_some());
    assert!(store.stage_small().unwrap().is_none());
}

#[test]
fn a_store_that_was_closed_in_order_comes_back_whole_after_a_reboot() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    store.insert(&sample.all()).unwrap();
    let (id, _) = store.stage().unwrap();
    store.journal(id, &entry(10), true).unwrap();
    store.journal(id, &entry(20), false).unwrap();
    let state = store.dir().to_owned();
    drop(store);
    reboot(&state);
    // Synced when it was closed, so nothing is read again: the damage is still to be found.
    fs::write(state.join(relative_path(&sample.object)), [0; 9]).unwrap();
    let store = Store::open(&state).unwrap();
    assert_eq!(store.journaled().unwrap(), [(id, entry(20))]);
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
}

#[test]
fn an_index_that_is_gone_is_made_from_the_backing_files() {
    let (_dir, store) = new_store();
    let whole = Sample::new(20 * BLOCK_BYTES + 9, 1);
    let part = Sample::new(50 * BLOCK_BYTES, 2);
    let single = Sample::new(9000, 3);
    let bare = Sample::new(7 * BLOCK_BYTES, 4);
    let rotten = Sample::new(8000, 5);
    for sample in [&whole, &single, &bare, &rotten] {
        store.insert(&sample.all()).unwrap();
    }
    store.insert(&part.range(17..23)).unwrap();
    store.insert(&part.range(49..50)).unwrap();
    let (id, file) = store.stage().unwrap();
    file.write_all_at(b"not published yet", 0).unwrap();
    store.journal(id, &entry(17), true).unwrap();

    let state = store.dir().to_owned();
    let bare_tree = store.inner.core.tree_path(&bare.object);
    let rotten_data = data_path(&store, &rotten.object);
    drop(store);
    fs::remove_dir_all(state.join("index")).unwrap();
    fs::remove_file(bare_tree).unwrap();
    fs::write(&rotten_data, [0; 8000]).unwrap();

    let store = Store::open(&state).unwrap();
    for sample in [&whole, &single, &bare] {
        assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
        assert!(store.size_proven(&sample.object).unwrap());
    }
    let mut present = BlockSet::of(17..23);
    present.insert(49..50);
    assert_eq!(
        store.presence(&part.object).unwrap(),
        Presence::Partial(present)
    );
    assert_eq!(store.presence(&rotten.object).unwrap(), Presence::Absent);
    assert!(!rotten_data.exists());
    assert_eq!(damage(&store), []);
    let lost: Vec<_> = fs::read_dir(state.join("lost")).unwrap().collect();
    assert_eq!(
        fs::read(lost[0].as_ref().unwrap().path()).unwrap(),
        b"not published yet"
    );
    // All is indexed: there is nothing more to find.
    assert_eq!(store.rebuild().unwrap(), 0);
}

#[test]
fn a_file_without_a_record_is_found_by_rebuilding() {
    let (_dir, store) = new_store();
    let sample = Sample::new(3 * BLOCK_BYTES, 1);
    let path = data_path(&store, &sample.object);
    fs::write(path, &sample.data).unwrap();
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Absent);
    assert_eq!(store.rebuild().unwrap(), 1);
    assert_eq!(store.presence(&sample.object).unwrap(), Presence::Complete);
    assert_eq!(
        read_blocks(&store, &sample.object, 0..3).unwrap(),
        sample.data
    );
}

/// The content that the killed process writes under a number; everything from inline to several blocks.
fn sample_of(number: u64) -> Sample {
    Sample::new(1 + (number * 7919 * 13) % (4 * BLOCK_BYTES), number)
}

fn fetched_sample_of(number: u64) -> Sample {
    Sample::new(10 * BLOCK_BYTES, number << 32)
}

/// Not a test by itself: the process that is killed. Writes, and says what it was told.
#[test]
fn process_that_is_killed() {
    let (Ok(dir), Ok(start)) = (std::env::var(DIR_VARIABLE), std::env::var(START_VARIABLE)) else {
        return;
    };
    let store = Store::open(Path::new(&dir)).unwrap();
    let mut unsettled = Vec::new();
    for number in start.parse::<u64>().unwrap().. {
        let sample = sample_of(number);
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        let mut record = entry(sample.object.size);
        record.path = number.to_string().into_bytes();
        store.journal(id, &record, true).unwrap();
        println!("\n{CONFIRMED} journaled {number}");
        let object = store
            .import(id, sample.object.size, &Leaves::default())
            .unwrap();
        store
            .put_head(&number.to_be_bytes(), &record::object_key(&object))
            .unwrap();
        if number % 3 == 0 {
            store.unstage(id).unwrap();
        }
        let fetched = fetched_sample_of(number);
        store
            .insert(&fetched.range(number % 5..number % 5 + 3))
            .unwrap();
        unsettled.push(number);
        if number % 4 == 0 {
            store.settle().unwrap();
            for number in unsettled.drain(..) {
                println!("\n{CONFIRMED} settled {number}");
            }
        }
    }
}

/// Not a test by itself: publishes files that were never synced and ends abruptly once their staging files are gone.
#[test]
fn process_that_aborts() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else {
        return;
    };
    let store = Store::open(Path::new(&dir)).unwrap();
    for number in 0..20 {
        let sample = sample_of(number);
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        store
            .journal(id, &entry(sample.object.size), false)
            .unwrap();
        store
            .import(id, sample.object.size, &Leaves::default())
            .unwrap();
        store.put_head(&number.to_be_bytes(), b"entry").unwrap();
        store.unstage(id).unwrap();
    }
    wait_until("staging files are unlinked", || {
        fs::read_dir(store.dir().join("staging")).unwrap().count() == 0
    });
    std::process::abort();
}

#[test]
fn nothing_counts_as_durable_that_the_index_could_not_sync() {
    let (_dir, store) = new_store();
    let state = store.dir().to_owned();
    let (id, _) = store.stage().unwrap();
    drop(store);
    fs::write(state.join("staging").join(id.0.to_string()), b"bytes").unwrap();
    let mut core = Core::open(&state).unwrap();
    core.journal(id, &entry(5), true).unwrap();
    core.flush().unwrap();
    // Something that can't be synced.
    let (pipe, _) = io::pipe().unwrap();
    core.index_files.log = std::os::fd::OwnedFd::from(pipe).into();
    let failed = |outcome: Result<(), StoreError>| assert!(outcome.is_err());
    failed(core.flush());
    // Once lost, it stays lost: another try would only seem to succeed.
    core.index_files.log = fs::File::open(state.join("index/db")).unwrap();
    failed(core.flush());
    failed(core.journal(id, &entry(5), true));
    failed(core.settle());
    failed(core.settle_here());
    core.unstage(id).unwrap();
    failed(core.unlink_unstaged());
    assert!(state.join("staging").join(id.0.to_string()).exists());
}

#[test]
fn large_values_of_the_index_are_synced() {
    let (_dir, store) = new_store();
    let large = (NodeHash([1; 32]), vec![7; 1024 * 1024]);
    store.put_nodes(std::slice::from_ref(&large)).unwrap();
    store.flush().unwrap();
    let blobs = fs::read_dir(store.dir().join("index/blobs")).unwrap();
    let names: BTreeSet<_> = blobs.map(|blob| blob.unwrap().file_name()).collect();
    assert!(!names.is_empty());
    let synced = store.inner.core.index_files.blobs.synced.lock().clone();
    assert!(names.iter().all(|name| synced.contains_key(name)));
}

/// Not a test by itself: closes files, and ends abruptly right after.
#[test]
fn process_that_closes_and_aborts() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else {
        return;
    };
    let store = Store::open(Path::new(&dir)).unwrap();
    for number in 0..50 {
        let sample = sample_of(number);
        let (id, file) = store.stage().unwrap();
        file.write_all_at(&sample.data, 0).unwrap();
        let record = JournalRecord {
            path: number.to_string().into_bytes(),
            ..entry(sample.object.size)
        };
        store.journal(id, &record, number % 10 == 0).unwrap();
        if number % 2 == 0 {
            let renamed = JournalRecord {
                path: format!("{number} renamed").into_bytes(),
                ..record
            };
            store.journal(id, &renamed, false).unwrap();
        }
        if number % 5 == 1 {
            store.unstage(id).unwrap();
        }
    }
    let (_, file) = store.stage().unwrap();
    file.write_all_at(b"never closed", 0).unwrap();
    std::process::abort();
}

#[test]
fn a_kill_right_after_a_close_loses_nothing_and_brings_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let ended = test_process("process_that_closes_and_aborts", &state)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(ended.signal(), Some(libc::SIGABRT));
    let store = Store::open(&state).unwrap();
    let mut expected: Vec<_> = (0..50).filter(|number| number % 5 != 1).collect();
    for (id, record) in store.journaled().unwrap() {
        let number = expected.remove(0);
        let path = match number % 2 {
            0 => format!("{number} renamed"),
            _ => number.to_string(),
        };
        assert_eq!(record.path, path.as_bytes());
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut store.staged(id).unwrap(), &mut bytes).unwrap();
        assert!(bytes == sample_of(number).data, "{number}");
    }
    assert!(expected.is_empty(), "{expected:?}");
    assert_eq!(lost(&store), [b"never closed"]);
}

fn test_process(name: &str, state: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            &format!("store::tests::crash::{name}"),
            "--nocapture",
        ])
        .env(DIR_VARIABLE, state)
        .stderr(Stdio::null());
    command
}

#[test]
fn a_staging_file_goes_only_after_what_replaces_it_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let ended = test_process("process_that_aborts", &state)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(ended.signal(), Some(libc::SIGABRT));
    let store = Store::open(&state).unwrap();
    assert_eq!(store.heads().unwrap().len(), 20);
    assert_eq!(store.journaled().unwrap(), []);
    for number in 0..20 {
        let object = sample_of(number).object;
        assert_eq!(store.presence(&object).unwrap(), Presence::Complete);
    }
    assert_eq!(damage(&store), []);
}

/// Ends the process even when an assertion fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_confirmed_survives_a_kill_and_what_is_claimed_proves() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (mut journaled, mut settled) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..4u64 {
        let mut child = Killed(
            test_process("process_that_is_killed", &state)
                .env(START_VARIABLE, (round * 100_000).to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let output = BufReader::new(child.0.stdout.take().unwrap());
        // Killed after a number of confirmations and, from another thread, at any moment of the operation that follows.
        let confirmations = 5 + rand::random_range(0..40);
        let mut killer = None;
        let mut seen = 0;
        for line in output.lines() {
            let line = line.unwrap();
            let words: Vec<_> = line.split(' ').collect();
            let [CONFIRMED, what, number] = words[..] else {
                continue;
            };
            let number: u64 = number.parse().unwrap();
            match what {
                "journaled" => journaled.insert(number),
                _ => settled.insert(number),
            };
            seen += 1;
            if seen == confirmations {
                let pid = rustix::process::Pid::from_child(&child.0);
                killer = Some(thread::spawn(move || {
                    thread::sleep(Duration::from_micros(rand::random_range(0..20_000)));
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                }));
            }
        }
        killer
            .expect("it confirmed enough to be killed")
            .join()
            .unwrap();
        drop(child);

        let store = Store::open(&state).unwrap();
        assert_eq!(damage(&store), []);
        let recovered = store.journaled().unwrap();
        for number in &journaled {
            let sample = sample_of(*number);
            let path = number.to_string().into_bytes();
            match recovered.iter().find(|(_, record)| record.path == path) {
                Some((id, _)) => {
                    let mut bytes = vec![0; sample.data.len()];
                    store
                        .staged(*id)
                        .unwrap()
                        .read_exact_at(&mut bytes, 0)
                        .unwrap();
                    assert!(bytes == sample.data, "{number} is staged with other bytes");
                }
                None => {
                    let object = sample.object;
                    assert_eq!(
                        store.presence(&object).unwrap(),
                        Presence::Complete,
                        "{number} is lost"
                    );
                    let head = (
                        number.to_be_bytes().to_vec(),
                        record::object_key(&object).to_vec(),
                    );
                    assert!(
                        store.heads().unwrap().contains(&head),
                        "the entry of {number} is lost"
                    );
                }
            }
        }
        for number in &settled {
            let fetched = fetched_sample_of(*number);
            let start = number % 5;
            let bytes = read_blocks(&store, &fetched.object, start..start + 3).unwrap();
            assert!(
                bytes == fetched.slice(start..start + 3),
                "{number} has other bytes"
            );
        }
        // Everything of a start is done by the time it returns: nothing lies around.
        let names = fs::read_dir(state.join("staging")).unwrap();
        assert_eq!(names.count(), recovered.len());
    }
}
