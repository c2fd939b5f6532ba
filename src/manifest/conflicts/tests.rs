use proptest::prelude::*;

use super::*;
use crate::manifest::{
    Entry, InternalKey, Kind, Timestamp, children,
    tree::testing::{Edits, Memory, directory, file, key, many, path, version, versions},
};

/// 2024-03-01 12:34:56.789 UTC.
const TIME: u64 = 1_709_296_496_789_000_000;

fn writer(number: u64, node: &str) -> (Key, Option<Versions>) {
    let key = Key::of_internal(&InternalKey::Writer(WriterNumber(number)));
    let kind = Kind::Writer {
        peer: vec![1],
        node: node.to_owned(),
    };
    let entry = Entry::new(kind, 0o644, 0, 0, Timestamp(0));
    (key, Some(versions([version(number, 1, 1, entry)])))
}

fn both() -> Option<Versions> {
    let list = [
        version(1, 1, TIME, file(1)),
        version(2, 1, TIME + 1, file(2)),
    ];
    Some(versions(list))
}

fn all(memory: &Memory, root: NodeHash) -> Vec<Conflict> {
    conflicts(memory, root, &TreePath::root(), None, usize::MAX).unwrap()
}

fn paths(found: &[Conflict]) -> Vec<String> {
    let found = found.iter();
    found.map(|conflict| conflict.path.to_string()).collect()
}

#[test]
fn a_conflict_says_who_wrote_what_and_where_it_shows() {
    let memory = Memory::default();
    let root = memory.build(&Edits::from([
        writer(1, "attic"),
        writer(2, "cellar"),
        (key("d/notes.txt"), both()),
        (key("d/other"), Some(versions([version(1, 1, 1, file(9))]))),
    ]));
    let found = all(&memory, root);
    assert_eq!(paths(&found), ["/d/notes.txt"]);
    let Conflict { shown, copies, .. } = &found[0];
    assert_eq!(shown.shown.entry, file(2));
    assert_eq!(shown.path.as_ref(), Some(&found[0].path));
    assert_eq!(
        (shown.node.as_deref(), shown.writer),
        (Some("cellar"), Some(WriterNumber(2)))
    );
    let copy = path("d/notes (conflict, attic, 2024-03-01 12.34.56).txt");
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].shown.entry, file(1));
    assert_eq!(copies[0].node.as_deref(), Some("attic"));
    assert_eq!(copies[0].path.as_ref(), Some(&copy));
    // The name and its copies' names lead to it, and no other.
    for of_it in [path("d/notes.txt"), copy] {
        assert_eq!(
            conflict_at(&memory, &View::of(root), &of_it)
                .unwrap()
                .as_ref(),
            Some(&found[0])
        );
    }
    for other in ["d/other", "d", "", "d/nothing", "d/notes (conflict, b, c)"] {
        assert_eq!(
            conflict_at(&memory, &View::of(root), &path(other)).unwrap(),
            None
        );
    }
}

#[test]
fn a_file_beside_a_folder_that_nobody_made_is_found_by_its_name() {
    let memory = Memory::default();
    let one = Some(versions([version(1, 1, TIME, file(1))]));
    let root = memory.build(&Edits::from([
        (key("both"), one.clone()),
        (key("both/file"), one),
    ]));
    assert!(all(&memory, root).is_empty());
    let conflict = conflict_at(&memory, &View::of(root), &path("both"))
        .unwrap()
        .unwrap();
    assert_eq!(conflict.shown.shown, Shown::implied_directory());
    assert_eq!(conflict.shown.writer, None);
    assert_eq!(conflict.copies[0].shown.entry, file(1));
}

#[test]
fn what_has_no_conflict_is_not_read() {
    let memory = Memory::default();
    let mut edits = many(30_000);
    for name in ["folder 007/x", "folder 150/y", "z"] {
        edits.insert(key(name), both());
    }
    let root = memory.build(&edits);
    let (found, rounds, fetched) =
        memory.fetching(|memory| conflicts(memory, root, &TreePath::root(), None, usize::MAX));
    assert_eq!(paths(&found), ["/z", "/folder 007/x", "/folder 150/y"]);
    assert!(rounds < 16 && fetched < 60, "{rounds} {fetched}");
    let (found, ..) =
        memory.fetching(|memory| conflicts(memory, root, &path("folder 150"), None, usize::MAX));
    assert_eq!(paths(&found), ["/folder 150/y"]);
    let (found, ..) =
        memory.fetching(|memory| conflicts(memory, root, &path("folder 150/y"), None, usize::MAX));
    assert_eq!(paths(&found), ["/folder 150/y"]);
}

#[test]
fn a_page_of_a_folder_full_of_conflicts_costs_what_is_on_it() {
    let memory = Memory::default();
    let rows = (0..20_000).map(|number| (key(&format!("d/n{number:05}")), both()));
    let root = memory.build(&rows.collect());
    let at = path("d/n10000");
    memory.reads.set(0);
    let page = conflicts(&memory, root, &path("d"), Some(&at), 20).unwrap();
    assert_eq!(page.len(), 20);
    assert_eq!(page[0].path, path("d/n10001"));
    assert!(memory.reads.get() < 1000, "{}", memory.reads.get());
}

fn any_name() -> impl Strategy<Value = String> {
    let long = "x".repeat(230);
    let names = [
        "a".to_owned(),
        "a b".to_owned(),
        "a.txt".to_owned(),
        "a (conflict, one, 2024-03-01 12.34.56)".to_owned(),
        "a (conflict, one, 2024-03-01 12.34.56).txt".to_owned(),
        format!("{long}1"),
        format!("{long}2"),
        format!("{long}12345.txt"),
    ];
    prop::sample::select(names.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every copy that a listing shows belongs to one conflict, under the name that it has there, and no other copy does;
    /// pages are the same as all at once.
    #[test]
    fn conflicts_are_the_copies_that_listings_show(
        files in prop::collection::btree_map(
            prop::collection::vec(any_name(), 1..3),
            prop::collection::vec((1_u64..4, 1_u64..3, 0_u64..3, any::<bool>()), 1..5),
            0..20,
        ),
        page in 1_usize..5,
    ) {
        let memory = Memory::default();
        let mut edits = Edits::from([writer(1, "one"), writer(2, "one")]);
        edits.extend(files.iter().map(|(names, list)| {
            let list = list.iter().map(|&(writer, sequence, content, folder)| {
                let entry = if folder { directory() } else { file(content) };
                version(writer, sequence, TIME + content * 1_000_000_000 / 2, entry)
            });
            (key(&names.join("/")), Versions::new(list.collect()))
        }));
        let root = memory.build(&edits);
        let mut folders = BTreeSet::from([TreePath::root()]);
        for path in edits.keys().filter_map(Key::path) {
            folders.insert(path.split().unwrap().0);
        }
        let mut expected = BTreeSet::new();
        for folder in &folders {
            for (name, shown) in children(&memory, &View::of(root), folder).unwrap() {
                let at = folder.join(&name).unwrap();
                let Some((original, _)) = find_copy(&memory, &View::of(root), &at).unwrap() else {
                    continue;
                };
                let original = folder.join(&original).unwrap();
                let conflict = conflict_at(&memory, &View::of(root), &at).unwrap().unwrap();
                prop_assert_eq!(&conflict.path, &original);
                let again = conflict_at(&memory, &View::of(root), &original).unwrap();
                prop_assert_eq!(again.as_ref(), Some(&conflict));
                let versions = versions_at(&memory, &View::of(root), &original).unwrap().unwrap();
                if groups(&versions).len() > 1 {
                    expected.insert((original, at, shown.seen));
                }
            }
        }
        let found = all(&memory, root);
        let mut there = BTreeSet::new();
        for conflict in &found {
            for copy in &conflict.copies {
                let at = copy.path.clone().unwrap();
                there.insert((conflict.path.clone(), at, copy.shown.seen.clone()));
            }
        }
        prop_assert_eq!(there, expected);
        let mut paged: Vec<Conflict> = Vec::new();
        loop {
            let after = paged.last().map(|conflict| conflict.path.clone());
            let next =
                conflicts(&memory, root, &TreePath::root(), after.as_ref(), page).unwrap();
            prop_assert!(next.len() <= page);
            if next.is_empty() {
                break;
            }
            paged.extend(next);
        }
        prop_assert_eq!(paged, found);
    }
}
