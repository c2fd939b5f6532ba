use proptest::prelude::*;

use super::*;
use crate::manifest::{
    NodeHash, Timestamp,
    tree::testing::{Edits, Memory, directory, dot, file, key, many, path, version, versions},
};

/// 2024-03-01 12:34:56.789 UTC.
const TIME: u64 = 1_709_296_496_789_000_000;

fn names(listed: &[(Name, Shown)]) -> Vec<String> {
    let names = listed.iter();
    names
        .map(|(name, _)| String::from_utf8_lossy(name.as_bytes()).into_owned())
        .collect()
}
fn writer(number: u64, node: &str) -> (Key, Option<Versions>) {
    let key = Key::of_internal(&InternalKey::Writer(WriterNumber(number)));
    let kind = Kind::Writer {
        peer: vec![1],
        node: node.to_owned(),
    };
    let entry = Entry::new(kind, 0o644, 0, 0, Timestamp(0));
    (key, Some(versions([version(number, 1, 1, entry)])))
}
fn put(name: &str, list: impl Into<Vec<Version>>) -> (Key, Option<Versions>) {
    (key(name), Some(versions(list)))
}
/// Every name that a listing shows is found by itself, and says the same.
fn check_lookups(memory: &Memory, root: NodeHash, folder: &TreePath) -> Vec<(Name, Shown)> {
    let (listed, ..) = memory.fetching(|memory| children(memory, &View::of(root), folder));
    for (name, shown) in &listed {
        let found = lookup(memory, &View::of(root), &folder.join(name).unwrap()).unwrap();
        assert_eq!(found.as_ref(), Some(shown), "{name:?}");
    }
    listed
}

#[test]
fn the_later_version_keeps_the_name() {
    let list = [
        version(1, 1, 10, file(1)),
        version(2, 1, 30, file(2)),
        version(3, 1, 20, file(3)),
    ];
    let (first, others) = shown(&versions(list));
    assert_eq!((first.entry, first.time), (file(2), HybridTime(30)));
    assert_eq!(first.seen, [dot(2, 1)]);
    let others: Vec<_> = others.into_iter().map(|copy| copy.seen[0]).collect();
    assert_eq!(others, [dot(3, 1), dot(1, 1)]);

    let tie = [version(1, 1, 10, file(1)), version(2, 1, 10, file(2))];
    assert_eq!(shown(&versions(tie)).0.seen, [dot(2, 1)]);
}

#[test]
fn equal_contents_are_one() {
    let mut touched = file(1);
    touched.mode = 0o600;
    let list = [
        version(1, 1, 10, file(1)),
        version(2, 1, 30, touched.clone()),
        version(3, 1, 20, file(2)),
    ];
    let (first, others) = shown(&versions(list));
    assert_eq!(first.entry, touched);
    assert_eq!(first.seen, [dot(1, 1), dot(2, 1)]);
    assert_eq!(others.len(), 1);
}

#[test]
fn a_directory_keeps_the_name() {
    let list = [version(1, 1, 10, directory()), version(2, 1, 30, file(2))];
    let (first, others) = shown(&versions(list));
    assert_eq!(first.entry, directory());
    assert_eq!(others[0].entry, file(2));
}

#[test]
fn a_conflict_copy_is_named_after_node_and_time_and_found_by_that_name() {
    let memory = Memory::default();
    let list = [
        version(1, 4, TIME, file(1)),
        version(2, 4, TIME + 1, file(2)),
        version(3, 4, TIME - 1, file(3)),
    ];
    let root = memory.build(&Edits::from([
        writer(1, "attic"),
        put("notes.tar.gz", list),
        put("other", [version(1, 1, 1, file(9))]),
    ]));
    let listed = check_lookups(&memory, root, &TreePath::root());
    assert_eq!(
        names(&listed),
        [
            "notes.tar (conflict, 0000000000000003, 2024-03-01 12.34.56).gz",
            "notes.tar (conflict, attic, 2024-03-01 12.34.56).gz",
            "notes.tar.gz",
            "other",
        ]
    );
    assert_eq!(listed[1].1.seen, [dot(1, 4)]);
    let copy = path("notes.tar (conflict, attic, 2024-03-01 12.34.56).gz");
    let (original, shown) = find_copy(&memory, &View::of(root), &copy).unwrap().unwrap();
    assert_eq!(
        (original.as_bytes(), shown.entry),
        (&b"notes.tar.gz"[..], file(1))
    );
    assert_eq!(
        find_copy(&memory, &View::of(root), &path("other")).unwrap(),
        None
    );
    let never = path("other (conflict, attic, 2024-03-01 12.34.56)");
    assert_eq!(lookup(&memory, &View::of(root), &never).unwrap(), None);
}

#[test]
fn copies_get_out_of_the_way_of_real_names_and_of_each_other() {
    let memory = Memory::default();
    let list = [
        version(1, 1, TIME, file(1)),
        version(1, 2, TIME + 1, file(2)),
        version(2, 1, TIME + 2, file(3)),
    ];
    let name = "n (conflict, attic, 2024-03-01 12.34.56)";
    let root = memory.build(&Edits::from([
        writer(1, "attic"),
        put("n", list),
        put(name, [version(1, 1, 1, file(9))]),
    ]));
    let listed = check_lookups(&memory, root, &TreePath::root());
    assert_eq!(
        names(&listed),
        [
            "n",
            name,
            "n (conflict, attic, 2024-03-01 12.34.56, 2)",
            "n (conflict, attic, 2024-03-01 12.34.56, 3)",
        ]
    );
    let dots: Vec<_> = listed.iter().map(|(_, shown)| shown.seen[0]).collect();
    assert_eq!(dots, [dot(2, 1), dot(1, 1), dot(1, 2), dot(1, 1)]);
}

#[test]
fn long_names_are_cut_between_characters() {
    let memory = Memory::default();
    let long = format!("{}.txt", "é".repeat(125));
    let like = format!("{}ö.txt", "é".repeat(124));
    let list = || [version(1, 1, TIME, file(1)), version(2, 1, TIME, file(2))];
    let root = memory.build(&Edits::from([
        writer(1, "attic"),
        put(&format!("d/{long}"), list()),
        put(&format!("d/{like}"), list()),
    ]));
    let listed = check_lookups(&memory, root, &path("d"));
    assert_eq!(listed.len(), 4);
    for (name, shown) in &listed {
        assert!(name.as_bytes().len() <= 255);
        let text = std::str::from_utf8(name.as_bytes()).unwrap();
        assert!(text.ends_with(".txt"));
        assert_eq!(text.contains(MARKER), shown.seen == [dot(1, 1)]);
    }
}

#[test]
fn very_many_copies_with_one_cut_name_are_numbered_one_after_the_other() {
    const COPIES: usize = 1500;
    let memory = Memory::default();
    let long = "x".repeat(240);
    let list = || [version(1, 1, TIME, file(1)), version(2, 1, TIME, file(2))];
    let rows = (0..COPIES).map(|number| put(&format!("{long}{number:04}"), list()));
    let root = memory.build(&Edits::from_iter(rows.chain([writer(1, "attic")])));
    let (listed, ..) =
        memory.fetching(|memory| children(memory, &View::of(root), &TreePath::root()));
    let listed: BTreeSet<String> = names(&listed).into_iter().collect();
    assert_eq!(listed.len(), 2 * COPIES);
    let note = "(conflict, attic, 2024-03-01 12.34.56";
    for number in 2..=COPIES {
        let end = format!("{note}, {number})");
        let start = "x".repeat(255 - 1 - end.len());
        assert!(listed.contains(&format!("{start} {end}")), "{number}");
    }
}

#[test]
fn a_folder_exists_while_something_lives_below_it() {
    let memory = Memory::default();
    let list = [version(1, 1, 1, file(1))];
    let root = memory.build(&Edits::from([
        put("a/b/c/file", list.clone()),
        put("a b/file", list.clone()),
        put("a!/b/file", list.clone()),
        put("own", [version(1, 1, 1, directory())]),
        put("own/file", list.clone()),
        // Removed by one as a file, while another wrote below it.
        put("both", list.clone()),
        put("both/file", list.clone()),
    ]));
    let listed = check_lookups(&memory, root, &TreePath::root());
    assert_eq!(
        names(&listed),
        [
            "a",
            "a b",
            "a!",
            "both",
            "both (conflict, 0000000000000001, 1970-01-01 00.00.00)",
            "own"
        ]
    );
    assert_eq!(listed[0].1, Shown::implied_directory());
    assert_eq!(listed[3].1, Shown::implied_directory());
    assert_eq!(listed[4].1.entry, file(1));
    assert_eq!(listed[5].1.entry, directory());
    let deep = check_lookups(&memory, root, &path("a/b"));
    assert_eq!(names(&deep), ["c"]);
    assert_eq!(names(&check_lookups(&memory, root, &path("a!"))), ["b"]);
    for nothing in ["a/c", "a/b/c/d", "b", "a/b/c/file/x"] {
        assert_eq!(
            lookup(&memory, &View::of(root), &path(nothing)).unwrap(),
            None
        );
    }
    let (top, ..) = memory.fetching(|memory| lookup(memory, &View::of(root), &TreePath::root()));
    assert_eq!(top, Some(Shown::implied_directory()));
}

#[test]
fn listing_folders_does_not_read_what_is_in_them() {
    let memory = Memory::default();
    // Three folders of 10,000 files each, none with an entry of its own.
    let edits: Edits = (0..30_000)
        .map(|n| {
            put(
                &format!("d{}/n{n}", n / 10_000),
                [version(1, 1, 1, file(n))],
            )
        })
        .collect();
    let root = memory.build(&edits);
    memory.reads.set(0);
    let listed = children(&memory, &View::of(root), &TreePath::root()).unwrap();
    assert_eq!(names(&listed), ["d0", "d1", "d2"]);
    assert!(memory.reads.get() < 20, "{}", memory.reads.get());
    memory.reads.set(0);
    assert!(
        lookup(&memory, &View::of(root), &path("d1/n12345"))
            .unwrap()
            .is_some()
    );
    assert!(memory.reads.get() < 14, "{}", memory.reads.get());
    let root = memory.build(&many(5_000));
    let (listed, rounds, _) =
        memory.fetching(|memory| children(memory, &View::of(root), &path("folder 012")));
    assert_eq!(listed.len(), 100);
    assert!(rounds <= 4, "{rounds}");
}

fn any_name() -> impl Strategy<Value = String> {
    let names = ["a", "a b", "a!", "b", "b.txt", "c", "\u{1}"];
    prop::sample::select(names.to_vec()).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Against the simple way: every path's ancestors are folders, every other entry shows under its name.
    #[test]
    fn shows_what_the_simple_way_shows(
        files in prop::collection::btree_map(
            prop::collection::vec(any_name(), 1..4),
            prop::collection::vec((1_u64..4, 0_u64..3, any::<bool>()), 1..4),
            0..25,
        ),
    ) {
        let memory = Memory::default();
        let edits: Edits = files
            .iter()
            .map(|(names, list)| {
                let list: Vec<_> = list
                    .iter()
                    .map(|&(writer, content, folder)| {
                        let entry = if folder { directory() } else { file(content) };
                        version(writer, 1, TIME + content, entry)
                    })
                    .collect();
                put(&names.join("/"), list)
            })
            .collect();
        let root = memory.build(&edits);
        let mut folders = BTreeSet::from([TreePath::root()]);
        for key in edits.keys() {
            let mut path = key.path().unwrap();
            while let Some((parent, _)) = path.split() {
                path = parent.clone();
                folders.insert(parent);
            }
        }
        for folder in &folders {
            let listed = check_lookups(&memory, root, folder);
            let mut copies = 0;
            let mut expected = BTreeMap::new();
            for path in folders.iter().filter(|path| path.names().len() > folder.names().len()) {
                if path.split().unwrap().0 == *folder {
                    expected.insert(path.split().unwrap().1.clone(), true);
                }
            }
            for (key, versions) in &edits {
                let path = key.path().unwrap();
                let (parent, name) = path.split().unwrap();
                if parent != *folder {
                    continue;
                }
                let (first, others) = shown(versions.as_ref().unwrap());
                copies += others.len();
                let is_folder = first.entry.kind == Kind::Directory;
                let implied = expected.insert(name.clone(), is_folder || folders.contains(&path));
                copies += usize::from(implied.is_some() && !is_folder);
            }
            prop_assert_eq!(listed.len(), expected.len() + copies);
            for (name, is_folder) in expected {
                let (_, shown) = listed.iter().find(|(listed, _)| *listed == name).unwrap();
                prop_assert_eq!(shown.entry.kind == Kind::Directory, is_folder);
            }
        }
    }
}

#[test]
fn times_are_utc() {
    for (seconds, text) in [
        (0, "1970-01-01 00.00.00"),
        (951_782_399, "2000-02-28 23.59.59"),
        (951_782_400, "2000-02-29 00.00.00"),
        (4_107_542_400, "2100-03-01 00.00.00"),
        (1_735_689_599, "2024-12-31 23.59.59"),
        (u64::MAX / 1_000_000_000, "2554-07-21 23.34.33"),
    ] {
        assert_eq!(utc(HybridTime(seconds * 1_000_000_000)), text);
    }
}

/// What lives below a directory may be here while the directory's own entry is not.
#[test]
fn a_directory_whose_own_entry_is_not_here_yet_is_asked_for() {
    let memory = Memory::default();
    let mut edits = many(5_000);
    edits.insert(
        key("folder 012"),
        Some(versions([version(1, 1, 1, directory())])),
    );
    let root = memory.build(&edits);
    let view = View::of(root);
    let folder = path("folder 012");
    memory.hide_all();
    // Looking at the folder's files brings their nodes and no others.
    while let Err(TreeError::Missing(nodes)) = children(&memory, &view, &folder) {
        let mut hidden = memory.hidden.borrow_mut();
        nodes.iter().for_each(|node| {
            hidden.remove(node);
        });
    }
    match lookup(&memory, &view, &folder) {
        Err(TreeError::Missing(_)) => {}
        other => panic!("{other:?}"),
    }
    let (found, ..) = memory.fetching(|memory| lookup(memory, &view, &folder));
    assert_eq!(found.unwrap().entry, directory());
}

#[test]
fn the_note_of_a_conflict_goes_before_an_extension_and_never_into_the_time_of_another_note() {
    for (name, stem, extension) in [
        ("report.txt", "report", ".txt"),
        ("archive.tar.gz", "archive.tar", ".gz"),
        (".profile", ".profile", ""),
        ("plain", "plain", ""),
        (
            "a (conflict, b, 2026-01-02 03.04.05)",
            "a (conflict, b, 2026-01-02 03.04.05)",
            "",
        ),
        ("photo (1.2)", "photo (1.2)", ""),
    ] {
        let name = Name::new(name).unwrap();
        let parts = stem_and_extension(&name);
        assert_eq!(parts, (stem.as_bytes(), extension.as_bytes()));
    }
}
