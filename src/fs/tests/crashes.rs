//! Names and journal records after a crash: both as of one moment.

mod held;

use std::{collections::BTreeMap, process::Command};

use super::{cases::power_loss, *};
use crate::{
    fs::{
        live::Live,
        ops::{Changes, Place, Replace},
    },
    manifest::Kind,
};

/// What is done. Files are published with a first content; `Write` gives one another, which is confirmed but not published.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Writes it and keeps it open, confirmed by `flush` (what `close` does).
    Write(&'static str, &'static [u8]),
    /// The same with `fsync`.
    Sync(&'static str, &'static [u8]),
    /// Makes it, or gives it that length, writes nothing, and keeps it open, confirmed by `flush`.
    Cut(&'static str, u64),
    /// Closes it, so that it is published.
    Close(&'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    Unlink(&'static str),
}

type State = &'static [(&'static str, &'static [u8])];

/// What must be seen.
struct Case {
    ops: &'static [Op],
    /// Where the process is killed before a head has the names…
    killed_before: State,
    /// …and after; also where the machine goes down then, if nothing else is said.
    after: State,
    down_after: Option<State>,
}

const CASES: &[Case] = &[
    Case {
        ops: &[Op::Write("b", b"T"), Op::Rename("a", "b")],
        killed_before: &[("a", b"a"), ("b", b"T")],
        after: &[("b", b"a")],
        down_after: None,
    },
    Case {
        ops: &[Op::Sync("a", b"S"), Op::Rename("a", "b")],
        killed_before: &[("a", b"S"), ("b", b"b")],
        after: &[("b", b"S")],
        down_after: None,
    },
    Case {
        ops: &[
            Op::Sync("a", b"S"),
            Op::Sync("b", b"T"),
            Op::Rename("a", "b"),
        ],
        killed_before: &[("a", b"S"), ("b", b"T")],
        after: &[("b", b"S")],
        down_after: None,
    },
    // A new file replaces nothing before it is on disk itself.
    Case {
        ops: &[
            Op::Write("new", b"N"),
            Op::Sync("b", b"T"),
            Op::Rename("new", "b"),
        ],
        killed_before: &[("a", b"a"), ("b", b"T"), ("new", b"N")],
        after: &[("a", b"a"), ("b", b"N")],
        down_after: Some(&[("a", b"a"), ("b", b"T")]),
    },
    Case {
        ops: &[
            Op::Sync("new", b"N"),
            Op::Sync("b", b"T"),
            Op::Rename("new", "b"),
            Op::Rename("b", "a"),
        ],
        killed_before: &[("a", b"a"), ("b", b"T"), ("new", b"N")],
        after: &[("a", b"N")],
        down_after: None,
    },
    Case {
        ops: &[
            Op::Sync("new", b"N"),
            Op::Close("new"),
            Op::Sync("b", b"T"),
            Op::Rename("new", "b"),
        ],
        killed_before: &[("a", b"a"), ("b", b"T"), ("new", b"N")],
        after: &[("a", b"a"), ("b", b"N")],
        down_after: None,
    },
    Case {
        ops: &[
            Op::Sync("a", b"S"),
            Op::Rename("a", "b"),
            Op::Rename("b", "c"),
            Op::Rename("c", "d/c"),
        ],
        killed_before: &[("a", b"S"), ("b", b"b")],
        after: &[("d/c", b"S")],
        down_after: None,
    },
    Case {
        ops: &[
            Op::Sync("a", b"S"),
            Op::Sync("b", b"T"),
            Op::Exchange("a", "b"),
        ],
        killed_before: &[("a", b"S"), ("b", b"T")],
        after: &[("a", b"T"), ("b", b"S")],
        down_after: None,
    },
    Case {
        ops: &[Op::Sync("a", b"S"), Op::Unlink("a")],
        killed_before: &[("a", b"S"), ("b", b"b")],
        after: &[("b", b"b")],
        down_after: None,
    },
    Case {
        ops: &[
            Op::Sync("a", b"S"),
            Op::Close("a"),
            Op::Unlink("a"),
            Op::Write("a", b"N"),
        ],
        killed_before: &[("a", b"N"), ("b", b"b")],
        after: &[("a", b"N"), ("b", b"b")],
        down_after: Some(&[("b", b"b")]),
    },
    // Nothing was written to them.
    Case {
        ops: &[Op::Cut("a", 3), Op::Cut("b", 0), Op::Cut("new", 0)],
        killed_before: &[("a", b"a\0\0"), ("b", b""), ("new", b"")],
        after: &[("a", b"a\0\0"), ("b", b""), ("new", b"")],
        down_after: Some(&[("a", b"a"), ("b", b"b")]),
    },
    Case {
        ops: &[
            Op::Write("new", b"N"),
            Op::Write("newer", b"M"),
            Op::Exchange("new", "newer"),
        ],
        killed_before: &[("a", b"a"), ("b", b"b"), ("new", b"N"), ("newer", b"M")],
        after: &[("a", b"a"), ("b", b"b"), ("new", b"M"), ("newer", b"N")],
        down_after: None,
    },
];

impl Fixture {
    fn does(&self, op: Op, open: &mut BTreeMap<&'static str, u64>) {
        let rename = |from: &str, to: &str, replace| {
            let (from, to) = (self.place(from).unwrap(), self.place(to).unwrap());
            self.act(move |core| core.rename((from.0, &from.1), (to.0, &to.1), replace))
                .unwrap();
        };
        match op {
            Op::Write(path, data) | Op::Sync(path, data) => {
                let handle = self
                    .create(path)
                    .or_else(|_| self.open_file(path, libc::O_RDWR))
                    .unwrap();
                self.write_at(handle, 0, data).unwrap();
                self.act(move |core| core.flush(handle)).unwrap();
                if matches!(op, Op::Sync(..)) {
                    let number = self.walk(path).unwrap();
                    let synced = self.act(move |core| core.fsync_live(number));
                    assert!(synced.unwrap());
                }
                open.insert(path, handle);
            }
            Op::Cut(path, size) => {
                let handle = self
                    .create(path)
                    .or_else(|_| self.open_file(path, libc::O_RDWR))
                    .unwrap();
                let number = self.walk(path).unwrap();
                let size = Changes {
                    size: Some(size),
                    ..Changes::default()
                };
                self.act(move |core| core.setattr(number, &size)).unwrap();
                self.act(move |core| core.flush(handle)).unwrap();
                open.insert(path, handle);
            }
            Op::Close(path) => {
                let number = self.walk(path).unwrap();
                self.core.release(open.remove(path).unwrap());
                let is_published = |live: &Arc<Live>| !live.state.lock().is_dirty();
                wait_until("it is published", || {
                    self.core.live(number).as_ref().is_none_or(is_published)
                });
            }
            Op::Rename(from, to) => rename(from, to, Replace::Yes),
            Op::Exchange(from, to) => rename(from, to, Replace::Exchange),
            Op::Unlink(path) => {
                let (folder, name) = self.place(path).unwrap();
                self.act(move |core| core.unlink(folder, &name)).unwrap();
            }
        }
    }

    /// Opens a file and writes to it, which nothing confirms yet.
    fn changed(&self, path: &str) -> (u64, Arc<Live>) {
        let handle = self.open_file(path, libc::O_RDWR).unwrap();
        self.write_at(handle, 0, b"T").unwrap();
        let number = self.walk(path).unwrap();
        (handle, self.core.live(number).unwrap())
    }

    /// All files and what is in them.
    fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        for folder in ["", "d", "e"] {
            for name in self.names(folder).unwrap_or_default() {
                let path = match folder {
                    "" => name,
                    folder => format!("{folder}/{name}"),
                };
                if let Ok(content) = self.content(&path) {
                    all.insert(path, content);
                }
            }
        }
        all
    }

    /// What a kill leaves right now.
    fn killed(&self) -> TempDir {
        let copy = folder();
        // Staging files go meanwhile.
        wait_until("it is copied", || {
            let mut copying = Command::new("cp");
            copying.arg("-aT").arg(self.store.dir());
            copying.arg(copy.path().join("state"));
            copying.status().unwrap().success()
        });
        copy
    }

    /// A process that is started after a crash right now.
    fn started_after_crash(&self, is_down: bool) -> Fixture {
        let copy = match is_down {
            true => power_loss(self),
            false => self.killed(),
        };
        let again = Fixture::open(Arc::new(copy));
        taken_up(&again);
        again
    }

    /// What it finds once everything is published.
    fn after_crash(&self, is_down: bool) -> BTreeMap<String, Vec<u8>> {
        let again = self.started_after_crash(is_down);
        again.settle();
        again.all()
    }
}

fn seen(state: State) -> BTreeMap<String, Vec<u8>> {
    let state = state.iter();
    state
        .map(|(path, content)| ((*path).to_owned(), content.to_vec()))
        .collect()
}

#[test]
fn what_stands_on_a_small_content_that_was_just_published_survives_a_kill() {
    let fixture = Fixture::new();
    fixture.put("a", b"before").unwrap();
    fixture.settle();
    let (mut open, _paused) = (BTreeMap::new(), fixture.namespace.pause());
    for op in [Op::Write("a", b"first "), Op::Close("a")] {
        fixture.does(op, &mut open);
    }
    let appended = fixture.open_file("a", libc::O_RDWR).unwrap();
    fixture.write_at(appended, 6, b", second").unwrap();
    fixture.act(move |core| core.flush(appended)).unwrap();

    for op in [Op::Write("b", b"copied"), Op::Close("b")] {
        fixture.does(op, &mut open);
    }
    let from = fixture.open_file("b", libc::O_RDONLY).unwrap();
    let to = fixture.create("c").unwrap();
    let at = |handle| Place { handle, offset: 0 };
    let copied = fixture.act(move |core| core.copy_range(at(from), at(to), 6));
    assert_eq!(copied, Ok(6));
    fixture.act(move |core| core.flush(to)).unwrap();
    for op in [Op::Write("b", b"else"), Op::Close("b")] {
        fixture.does(op, &mut open);
    }
    // No head was made, and the index is not on disk yet.
    let expected = seen(&[("a", b"first , second"), ("b", b"elseed"), ("c", b"copied")]);
    assert_eq!(fixture.after_crash(false), expected);
}

#[test]
fn what_becomes_of_names_while_the_index_takes_nothing_is_known_after_a_crash() {
    for is_down in [false, true] {
        let fixture = Fixture::new();
        for path in ["a", "b"] {
            fixture.put(path, path.as_bytes()).unwrap();
        }
        let linked = fixture.walk("b").unwrap();
        fixture
            .act(move |core| core.link(linked, ROOT, b"b too"))
            .unwrap();
        fixture.settle();
        let mut open = BTreeMap::new();
        for path in ["a", "b", "new"] {
            fixture.does(Op::Sync(path, b"S"), &mut open);
        }
        let flush = || fixture.runtime.block_on(fixture.namespace.flush()).unwrap();
        flush();
        fixture.store.refuse(true);
        let renamed = fixture.act(|core| core.rename((ROOT, b"a"), (ROOT, b"c"), Replace::Yes));
        // What takes something away is not refused.
        for path in ["b", "new"] {
            fixture.does(Op::Unlink(path), &mut open);
        }
        fixture.store.refuse(false);
        flush();
        assert_eq!(renamed, Err(libc::ENOSPC));
        let expected = seen(&[("a", b"S"), ("b too", b"S")]);
        assert_eq!(fixture.after_crash(is_down), expected, "down: {is_down}");
    }
}

#[test]
fn what_is_written_on_after_it_was_almost_published_changes_no_other_file() {
    let fixture = Fixture::new();
    let content = vec![7; 200_000];
    for cut in [false, true] {
        let (name, other) = (format!("one{cut}"), format!("other{cut}"));
        let handle = fixture.create(&name).unwrap();
        fixture.write_at(handle, 0, &content).unwrap();
        let number = fixture.walk(&name).unwrap();
        fixture.store.refuse(true);
        fixture.core.publish_now(number);
        fixture.store.refuse(false);
        let failed = |live: &Arc<Live>| live.state.lock().failures > 0;
        assert!(fixture.core.live(number).as_ref().is_some_and(failed));
        if cut {
            let size = Changes {
                size: Some(100_000),
                ..Changes::default()
            };
            fixture
                .act(move |core| core.setattr(number, &size))
                .unwrap();
        }
        fixture.write_at(handle, 9, b"something else").unwrap();
        fixture.put(&other, &content).unwrap();
        fixture.core.release(handle);
        fixture.settle();
        assert!(fixture.content(&other).unwrap() == content);
        let mut changed = content.clone();
        changed[9..23].copy_from_slice(b"something else");
        changed.truncate(if cut { 100_000 } else { 200_000 });
        assert!(fixture.content(&name).unwrap() == changed);
    }
}

#[test]
fn a_crash_finds_names_and_unpublished_files_as_of_one_moment() {
    for case in CASES {
        let fixture = Fixture::new();
        for name in ["a", "b"] {
            fixture.put(name, name.as_bytes()).unwrap();
        }
        let (folder, name) = fixture.place("d").unwrap();
        fixture
            .act(move |core| core.make(CALLER, folder, &name, Kind::Directory, 0o755))
            .unwrap();
        fixture.settle();
        let mut open = BTreeMap::new();
        let paused = fixture.namespace.pause();
        for op in case.ops {
            fixture.does(*op, &mut open);
        }
        fixture.store.flush().unwrap();
        assert_eq!(
            fixture.after_crash(false),
            seen(case.killed_before),
            "{:?}",
            case.ops
        );
        drop(paused);
        let flush = fixture.namespace.flush();
        fixture.runtime.block_on(flush).unwrap();
        assert_eq!(
            fixture.after_crash(false),
            seen(case.after),
            "{:?}",
            case.ops
        );
        let down = fixture.after_crash(true);
        // By now it may have been published, as a file is to which nothing was written for some seconds.
        let may_be = |state| down == seen(state);
        assert!(
            may_be(case.after) || case.down_after.is_some_and(may_be),
            "{:?}: {down:?}",
            case.ops
        );
    }
}

#[test]
fn a_new_file_takes_one_of_several_names_in_the_head_in_which_the_file_keeps_the_others() {
    let fixture = Fixture::new();
    fixture.put("a", b"a").unwrap();
    let number = fixture.walk("a").unwrap();
    let (folder, name) = fixture.place("b").unwrap();
    fixture
        .act(move |core| core.link(number, folder, &name))
        .unwrap();
    fixture.settle();
    let mut open = BTreeMap::new();
    fixture.does(Op::Write("b", b"T"), &mut open);
    // Nothing is promised of this one: it is neither closed nor synced.
    let new = fixture.create("new").unwrap();
    fixture.write_at(new, 0, b"N").unwrap();
    fixture.does(Op::Rename("new", "a"), &mut open);
    fixture.does(Op::Unlink("b"), &mut open);
    let flush = fixture.namespace.flush();
    fixture.runtime.block_on(flush).unwrap();
    // By no name is the file as it was before it was confirmed.
    assert_eq!(fixture.after_crash(false), seen(&[("a", b"N")]));
}

#[test]
fn a_crash_finds_the_newest_of_what_was_written_through_several_names() {
    let fixture = Fixture::new();
    fixture.put("b", b"b").unwrap();
    fixture.put("c", b"c").unwrap();
    let number = fixture.walk("b").unwrap();
    let (folder, name) = fixture.place("a").unwrap();
    fixture
        .act(move |core| core.link(number, folder, &name))
        .unwrap();
    fixture.settle();
    let mut open = BTreeMap::new();
    let paused = fixture.namespace.pause();
    for op in [
        // Two records of the file, which no head has, under the one name and under the other.
        Op::Write("b", b"older"),
        Op::Close("b"),
        Op::Write("b", b"newer"),
        Op::Rename("c", "b"),
        Op::Write("a", b"newest"),
    ] {
        fixture.does(op, &mut open);
    }
    fixture.store.flush().unwrap();
    let all = seen(&[("a", b"newest"), ("b", b"newest"), ("c", b"c")]);
    for _ in 0..8 {
        let again = fixture.started_after_crash(false);
        assert_eq!(again.all(), all);
        again.settle();
        assert_eq!(again.all(), all);
    }
    drop(paused);
    let flush = fixture.namespace.flush();
    fixture.runtime.block_on(flush).unwrap();
    let all = seen(&[("a", b"newest"), ("b", b"c")]);
    assert_eq!(fixture.after_crash(false), all);
}

#[test]
fn new_files_are_listed_after_a_crash_before_they_are_published() {
    let fixture = Fixture::new();
    let mut open = BTreeMap::new();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for name in names {
        fixture.does(Op::Write(name, b"N"), &mut open);
    }
    fixture.store.flush().unwrap();
    let again = fixture.started_after_crash(false);
    assert_eq!(again.names("").unwrap(), names);
}

#[test]
fn closing_a_file_keeps_the_name_that_it_was_given_while_it_was_open() {
    let fixture = Fixture::new();
    let handle = fixture.create("a").unwrap();
    fixture.write_at(handle, 0, b"N").unwrap();
    let number = fixture.walk("a").unwrap();
    let (folder, name) = fixture.place("b").unwrap();
    // That publishes it.
    fixture
        .act(move |core| core.link(number, folder, &name))
        .unwrap();
    fixture.act(move |core| core.flush(handle)).unwrap();
    assert_eq!(
        fixture.after_crash(false),
        seen(&[("a", b"N"), ("b", b"N")])
    );
}

/// A file that could not be taken up at once, as a node of the folder's state was not here, while somebody wrote its name.
#[test]
fn what_was_written_while_a_file_waited_to_be_taken_up_is_not_replaced_by_that() {
    let fixture = Fixture::new();
    fixture.put("a", b"base").expect("put");
    fixture.settle();
    let handle = fixture.open_file("a", libc::O_RDWR).expect("opened");
    fixture.write_at(handle, 0, b"crashed").expect("written");
    let number = fixture.walk("a").expect("there");
    fixture
        .runtime
        .block_on(fixture.core.sync(Some(number), 0))
        .expect("synced");
    let again = Fixture::open(Arc::new(fixture.killed()));
    let unfinished = again.core.aftermath().expect("sorted out");
    assert_eq!(unfinished.len(), 1);
    let handle = again.open_file("a", libc::O_RDWR).expect("opened");
    again.write_at(handle, 0, b"since").expect("written");
    assert_eq!(again.core.recover_here(unfinished), []);
    again.core.release(handle);
    again.settle();
    assert_eq!(again.content("a").expect("read"), b"since");
    let last = again.started_after_crash(false);
    last.settle();
    let names = last.names("").expect("listed");
    let contents = names.iter().map(|name| last.content(name).expect("read"));
    let contents: std::collections::BTreeSet<Vec<u8>> = contents.collect();
    let both = [b"crashed".to_vec(), b"since".to_vec()];
    assert_eq!(contents, both.into(), "{names:?}");
}

#[test]
fn what_is_cut_off_after_it_was_synced_while_the_file_was_published_shows_no_zeros() {
    let fixture = Fixture::new();
    fixture.put("a", b"a").unwrap();
    fixture.settle();
    let _paused = fixture.namespace.pause();
    let (handle, live) = fixture.changed("a");
    let ordered = fixture.core.order.read();
    live.state.lock().hurry = true;
    fixture.core.wake.notify_one();
    wait_until("it is an object", || !live.state.lock().imported.is_empty());
    fixture.write_at(handle, 0, &[b'U'; 8192]).unwrap();
    assert!(matches!(fixture.core.fsync_live(live.number), Ok(true)));
    drop(ordered);
    wait_until("it is published", || live.state.lock().imported.is_empty());
    let size = Changes {
        size: Some(4),
        ..Changes::default()
    };
    fixture
        .act(move |core| core.setattr(live.number, &size))
        .unwrap();
    assert_eq!(fixture.after_crash(true), seen(&[("a", b"UUUU")]));
}

#[test]
fn what_was_synced_on_its_way_to_be_published_is_kept_when_the_machine_goes_down_before_a_head_has_it()
 {
    let fixture = Fixture::new();
    fixture.put("a", b"a").unwrap();
    fixture.settle();
    let paused = fixture.namespace.pause();
    let (handle, live) = fixture.changed("a");
    // Its bytes become an object, and the entry can't be changed yet.
    let ordered = fixture.core.order.read();
    fixture.core.release(handle);
    wait_until("it is an object", || !live.state.lock().imported.is_empty());
    assert!(matches!(fixture.core.fsync_live(live.number), Ok(true)));
    drop(ordered);
    wait_until("it is published", || {
        fixture.core.live(live.number).is_none()
    });
    // Whatever is done with goes.
    fixture.store.settle().unwrap();
    assert_eq!(fixture.after_crash(true), seen(&[("a", b"T")]));
    drop(paused);
    let flush = fixture.namespace.flush();
    fixture.runtime.block_on(flush).unwrap();
    assert_eq!(fixture.after_crash(true), seen(&[("a", b"T")]));
    // What the journal has of it tells nothing any more.
    fixture.does(Op::Unlink("a"), &mut BTreeMap::new());
    let flush = fixture.namespace.flush();
    fixture.runtime.block_on(flush).unwrap();
    assert_eq!(fixture.after_crash(false), seen(&[]));
}
