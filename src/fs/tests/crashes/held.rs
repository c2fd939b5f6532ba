//! What others do while the disk is in the middle of something.

use std::{fs, path::PathBuf, thread};

use super::*;
use crate::store::Moment;

impl Fixture {
    /// Opens a file and writes to it, confirmed by `flush`.
    fn writes(&self, path: &str, data: &[u8]) -> u64 {
        let handle = self
            .create(path)
            .or_else(|_| self.open_file(path, libc::O_RDWR))
            .unwrap();
        self.write_at(handle, 0, data).unwrap();
        self.act(move |core| core.flush(handle)).unwrap();
        handle
    }

    /// Where the staging file of a file that is being written is on the disk.
    fn staging_path(&self, number: u64) -> PathBuf {
        let live = self.core.live(number).unwrap();
        let state = live.state.lock();
        let id = state.staging.as_ref().and_then(|staging| staging.id);
        let path = self.store.dir().join("staging");
        path.join(id.unwrap().0.to_string())
    }

    /// Lets the folder's state go on to the disk, and what is done with go.
    fn goes_on(&self) {
        self.runtime.block_on(self.namespace.flush()).unwrap();
        self.runtime.block_on(self.core.settle(true)).unwrap();
        self.store.settle().unwrap();
        self.store.flush().unwrap();
    }
}

#[test]
fn what_was_synced_while_its_file_was_replaced_is_there_until_what_replaces_it_is_on_the_disk() {
    let fixture = Fixture::new();
    fixture.put("b", b"b").unwrap();
    fixture.settle();
    fixture.writes("new", b"N");
    fixture.writes("b", b"T");
    let number = fixture.walk("b").unwrap();
    let held = fixture.store.hold(Moment::Journal);
    thread::scope(|scope| {
        let syncing = scope.spawn(|| fixture.core.fsync_live(number));
        held.is_reached();
        fixture.does(Op::Rename("new", "b"), &mut BTreeMap::new());
        drop(held);
        assert!(matches!(syncing.join(), Ok(Ok(false))));
    });
    fixture.goes_on();
    assert_eq!(fixture.after_crash(true), seen(&[("b", b"T")]));
}

#[test]
fn a_disk_that_fails_while_a_file_is_synced_and_replaced_is_told() {
    let fixture = Fixture::new();
    fixture.put("b", b"b").unwrap();
    fixture.settle();
    fixture.writes("new", b"N");
    fixture.writes("b", &[b'T'; 8192]);
    let number = fixture.walk("b").unwrap();
    let path = fixture.staging_path(number);
    let held = fixture.store.hold(Moment::Journal);
    thread::scope(|scope| {
        let syncing = scope.spawn(|| fixture.core.fsync_live(number));
        held.is_reached();
        fixture.does(Op::Rename("new", "b"), &mut BTreeMap::new());
        fs::rename(&path, path.with_extension("away")).unwrap();
        drop(held);
        assert!(matches!(syncing.join(), Ok(Err(Fail::Error(_)))));
    });
    fs::rename(path.with_extension("away"), &path).unwrap();
}

#[test]
fn what_was_confirmed_of_a_file_whose_name_goes_while_it_fails_to_be_published_is_there_until_that_is_on_the_disk()
 {
    let fixture = Fixture::new();
    fixture.put("a", b"a").unwrap();
    fixture.settle();
    let paused = fixture.namespace.pause();
    let handle = fixture.writes("a", &[b'T'; 8192]);
    let number = fixture.walk("a").unwrap();
    let path = fixture.staging_path(number);
    let held = fixture.store.hold(Moment::Import);
    fixture.core.release(handle);
    held.is_reached();
    fixture.does(Op::Unlink("a"), &mut BTreeMap::new());
    fs::rename(&path, path.with_extension("away")).unwrap();
    drop(held);
    wait_until("it is over", || fixture.core.live(number).is_none());
    fs::rename(path.with_extension("away"), &path).unwrap();
    fixture.store.flush().unwrap();
    assert_eq!(fixture.after_crash(false), seen(&[("a", &[b'T'; 8192])]));
    drop(paused);
    fixture.goes_on();
    assert_eq!(fixture.after_crash(false), seen(&[]));
}

#[test]
fn what_is_written_is_journaled_however_long_a_lot_of_others_takes_to_be_published() {
    let fixture = Fixture::new();
    let held = fixture.store.hold(Moment::Import);
    fixture.put("small", b"S").unwrap();
    held.is_reached();
    let handle = fixture.create("open").unwrap();
    fixture.write_at(handle, 0, b"W").unwrap();
    let is_open = |path: &[u8]| path == TreePath::parse(b"open").unwrap().to_bytes();
    wait_until("it is journaled", || {
        let records = fixture.store.journaled().unwrap();
        records.iter().any(|(_, record)| is_open(&record.path))
    });
    drop(held);
}
