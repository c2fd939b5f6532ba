//! Names and journal records after a crash: both as of one moment.

use std::{collections::BTreeMap, process::Command};

use super::{cases::power_loss, *};
use crate::{
    fs::{live::Live, ops::Replace},
    manifest::Kind,
};

/// What is done. Files are published with a first content; `Write` gives one another, which is confirmed but not published.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Writes it and keeps it open, confirmed by `flush` (what `close` does).
    Write(&'static str, &'static [u8]),
    /// The same with `fsync`.
    Sync(&'static str, &'static [u8]),
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

    /// What a process finds that is started after a crash right now.
    fn after_crash(&self, is_down: bool) -> BTreeMap<String, Vec<u8>> {
        let copy = match is_down {
            true => power_loss(self),
            false => {
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
        };
        let again = Fixture::open(Arc::new(copy));
        taken_up(&again);
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
