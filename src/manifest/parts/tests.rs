use proptest::prelude::*;

use super::*;
use crate::manifest::{
    Entry, InternalKey, Kind, Shown, Timestamp, WriterNumber, children, empty_root, find_copy,
    histories::{State, WORLD, any_history, content, folders, join, live},
    lookup, record_folders,
    tree::testing::{Edits, Memory, directory, dot, file, key, many, one, path, version, versions},
};

fn nothing_yet() -> State {
    (empty_root(), CausalContext::default())
}
/// A member's changes on top of a state, as one head.
fn changed(memory: &Memory, base: &State, writer: u64, edits: Edits) -> State {
    let mut context = base.1.clone();
    context.add(dot(writer, context.sequence(WriterNumber(writer)) + 1));
    (memory.apply(base.0, &edits), context)
}
fn put(writer: u64, sequence: u64, name: &str, entry: Entry) -> (Key, Option<Versions>) {
    (
        key(name),
        Some(versions([version(writer, sequence, 1, entry)])),
    )
}
fn gone(name: &str) -> (Key, Option<Versions>) {
    (key(name), None)
}
fn names(memory: &Memory, view: &View, folder: &str) -> Vec<String> {
    let listed = children(memory, view, &path(folder)).unwrap().into_iter();
    listed
        .map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).unwrap())
        .collect()
}
fn merged(memory: &Memory, states: &[State]) -> State {
    let (first, others) = states.split_first().unwrap();
    let others = others.iter();
    others.fold(first.clone(), |all, one| join(memory, &all, one))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Two to five states of a random history, looked at together, show what the merged state shows, in every folder.
    #[test]
    fn a_view_of_parts_is_the_view_of_their_merge(
        (count, acts) in any_history(3..=6, 40),
        picked in prop::collection::vec(any::<prop::sample::Index>(), 2..=5),
    ) {
        let memory = Memory::default();
        let lived = live(&memory, count, &acts);
        let states: Vec<_> = picked.iter().map(|at| at.get(&lived.past).clone()).collect();
        let view = View::new(states.clone());
        let (root, _) = merged(&memory, &states);
        let whole = View::of(root);
        for folder in folders() {
            let listed = children(&memory, &whole, &folder).unwrap();
            let (viewed, ..) = memory.fetching(|memory| children(memory, &view, &folder));
            prop_assert_eq!(&viewed, &listed, "{}", folder);
            for (name, shown) in &listed {
                let at = folder.join(name).unwrap();
                let found = lookup(&memory, &view, &at).unwrap();
                prop_assert_eq!(found.as_ref(), Some(shown));
                let copies = [&view, &whole].map(|view| find_copy(&memory, view, &at).unwrap());
                prop_assert_eq!(&copies[0], &copies[1]);
            }
            let newest = [&view, &whole].map(|view| folder_newest(&memory, view, &folder).unwrap());
            prop_assert!(newest[0] >= newest[1], "{:?}", newest);
        }
        for at in WORLD.map(path) {
            let (viewed, ..) = memory.fetching(|memory| lookup(memory, &view, &at));
            prop_assert_eq!(viewed, lookup(&memory, &whole, &at).unwrap());
        }
        for (key, there) in content(&memory, root) {
            prop_assert_eq!(super::versions(&memory, &view, &key).unwrap(), Some(there));
        }
    }
}

/// A folder with an entry of its own and files, removed on one side.
struct Removed {
    memory: Memory,
    base: State,
    removed: State,
}

fn removed(files: usize) -> Removed {
    let memory = Memory::default();
    let file_names: Vec<_> = (0..files).map(|n| format!("d/sub/n{n:04}")).collect();
    let mut edits = Edits::from([put(1, 1, "d", directory()), put(1, 1, "other", file(1))]);
    edits.extend(file_names.iter().map(|name| put(1, 1, name, file(1))));
    let base = changed(&memory, &nothing_yet(), 1, edits);
    let gone = file_names.iter().map(|name| gone(name)).chain([gone("d")]);
    let removed = changed(&memory, &base, 2, gone.collect());
    Removed {
        memory,
        base,
        removed,
    }
}

#[test]
fn what_one_part_removed_is_gone_with_all_below_it() {
    let Removed {
        memory,
        base,
        removed,
    } = removed(500);
    for states in [[base.clone(), removed.clone()], [removed, base]] {
        let view = View::new(states);
        assert_eq!(names(&memory, &view, ""), ["other"]);
        for nothing in ["d", "d/sub", "d/sub/n0007"] {
            assert_eq!(
                lookup(&memory, &view, &path(nothing)).unwrap(),
                None,
                "{nothing}"
            );
        }
        assert!(children(&memory, &view, &path("d")).unwrap().is_empty());
    }
}

/// Of a cluster in which one part has removed nearly everything and the other has changed something else.
#[test]
fn what_one_part_removed_is_told_by_the_records_of_its_folders() {
    let memory = Memory::default();
    let written = |base: &State, writer: u64, sequence: u64, mut edits: Edits| {
        let own = dot(writer, sequence);
        record_folders(&memory, base.0, &mut edits, own, |_| HybridTime(sequence)).unwrap();
        changed(&memory, base, writer, edits)
    };
    let files = (0..20_000).map(|n| format!("big/{:02}/n{n:05}", n / 500));
    let files: Vec<_> = files.collect();
    let edits = files.iter().map(|name| put(1, 1, name, file(1)));
    let edits = edits.chain([put(1, 1, "big", directory()), put(1, 1, "x/y", file(1))]);
    let base = written(&nothing_yet(), 1, 1, edits.collect());
    let gone = files.iter().map(|name| gone(name)).chain([gone("big")]);
    let removed = written(&base, 2, 1, gone.collect());
    let other = written(&base, 3, 1, Edits::from([put(3, 1, "x/z", file(2))]));
    let view = View::new([removed.clone(), other]);
    let (listed, rounds, nodes) =
        memory.fetching(|memory| children(memory, &view, &TreePath::root()));
    let listed: Vec<_> = listed.iter().map(|(name, _)| name.as_bytes()).collect();
    assert_eq!(listed, [b"x"]);
    assert!(
        nodes < 30 && rounds < 10,
        "{nodes} nodes in {rounds} rounds"
    );
    // What was made in it at the same time is found.
    let late = written(
        &base,
        3,
        1,
        Edits::from([put(3, 1, "big/new/late", file(2))]),
    );
    let view = View::new([removed, late]);
    assert_eq!(names(&memory, &view, ""), ["big", "x"]);
    assert_eq!(names(&memory, &view, "big"), ["new"]);
}

/// The last of many rows is the only one that lives: it is found however far away it is.
#[test]
fn a_folder_lives_by_a_single_file_that_its_removal_did_not_see() {
    let Removed {
        memory,
        base,
        removed,
    } = removed(500);
    let late = changed(
        &memory,
        &base,
        3,
        Edits::from([put(3, 1, "d/sub/z/late", file(2))]),
    );
    let view = View::new([late, removed]);
    assert_eq!(names(&memory, &view, ""), ["d", "other"]);
    assert_eq!(names(&memory, &view, "d"), ["sub"]);
    assert_eq!(names(&memory, &view, "d/sub"), ["z"]);
    for implied in ["d", "d/sub", "d/sub/z"] {
        // The removed entry of `d` itself is not shown any more.
        let shown = lookup(&memory, &view, &path(implied)).unwrap();
        assert_eq!(shown, Some(Shown::implied_directory()), "{implied}");
    }
    assert_eq!(lookup(&memory, &view, &path("d/sub/n0007")).unwrap(), None);
    let late = lookup(&memory, &view, &path("d/sub/z/late")).unwrap();
    assert_eq!(late.unwrap().entry, file(2));
}

#[test]
fn a_file_of_one_part_stands_beside_what_lives_below_it_in_another() {
    let memory = Memory::default();
    let empty = nothing_yet();
    let as_file = changed(&memory, &empty, 1, Edits::from([put(1, 1, "d", file(1))]));
    let below = changed(&memory, &empty, 2, Edits::from([put(2, 1, "d/x", file(2))]));
    let emptied = changed(&memory, &below, 2, Edits::from([gone("d/x")]));
    let both = View::new([as_file.clone(), below.clone()]);
    let copy = "d (conflict, 0000000000000001, 1970-01-01 00.00.00)";
    assert_eq!(names(&memory, &both, ""), ["d", copy]);
    let shown = lookup(&memory, &both, &path("d")).unwrap();
    assert_eq!(shown, Some(Shown::implied_directory()));
    let found = find_copy(&memory, &both, &path(copy)).unwrap().unwrap();
    assert_eq!(found.1.entry, file(1));
    // Once nothing lives below it, it has its name again.
    let alone = View::new([as_file, below, emptied]);
    assert_eq!(names(&memory, &alone, ""), ["d"]);
    assert_eq!(
        lookup(&memory, &alone, &path("d")).unwrap().unwrap().entry,
        file(1)
    );
    assert_eq!(lookup(&memory, &alone, &path(copy)).unwrap(), None);
}

#[test]
fn copies_are_named_by_the_table_of_writers_of_all_parts() {
    let memory = Memory::default();
    let empty = nothing_yet();
    let states = [(1, "attic"), (2, "cellar")].map(|(writer, node)| {
        let kind = Kind::Writer {
            peer: vec![1],
            node: node.into(),
        };
        let row = Entry::new(kind, 0o644, 0, 0, Timestamp(0));
        let row_key = Key::of_internal(&InternalKey::Writer(WriterNumber(writer)));
        let row = (row_key, Some(versions([version(writer, 1, 1, row)])));
        changed(
            &memory,
            &empty,
            writer,
            Edits::from([row, put(writer, 1, "n", file(writer))]),
        )
    });
    let view = View::new(states);
    assert_eq!(
        names(&memory, &view, ""),
        ["n", "n (conflict, attic, 1970-01-01 00.00.00)"]
    );
}

/// Three heads that have diverged in a cluster of 10,000 folders: who looks at one of them reads a few nodes of each, in few
/// rounds.
#[test]
fn looking_at_one_folder_reads_a_handful_of_nodes_of_each_part() {
    let memory = Memory::default();
    let edits: Edits = (0..40_000)
        .map(|n| {
            (
                key(&format!("folder {:04}/n{n:05}", n % 10_000)),
                Some(one(n)),
            )
        })
        .collect();
    let mut context = CausalContext::default();
    context.add(dot(0x0123_4567_89ab_cdef, 7));
    let base = (memory.build(&edits), context);
    let states = [1, 2, 3].map(|writer| {
        let edits = (0..50).map(|n| {
            let name = format!("folder {:04}/new {writer}", n * 200 + writer * 7);
            put(writer, 1, &name, file(writer))
        });
        let own = format!("folder 5000/of {writer}");
        let edits = edits.chain([put(writer, 1, &own, file(writer))]);
        changed(&memory, &base, writer, edits.collect())
    });
    let view = View::new(states.clone());
    let depth = usize::from(memory.node(&states[0].0).unwrap().unwrap().level()) + 1;
    let folder = path("folder 5000");
    let file_at = path("folder 5000/of 2");

    memory.reads.set(0);
    assert_eq!(children(&memory, &view, &folder).unwrap().len(), 7);
    let listing = memory.reads.get();
    assert!(listing <= 3 * (3 * depth + 3), "{listing}");
    memory.reads.set(0);
    assert!(lookup(&memory, &view, &file_at).unwrap().is_some());
    assert!(lookup(&memory, &view, &folder).unwrap().is_some());
    let looking = memory.reads.get();
    assert!(looking <= 3 * 8 * depth, "{looking}");
    let (_, rounds, fetched) = memory.fetching(|memory| children(memory, &view, &folder));
    assert!(rounds <= depth, "{rounds} rounds for {depth} levels");
    assert!(fetched <= 3 * (depth + 2), "{fetched}");

    // The folder above lists its 10,000 children, none of which has an entry of its own, without looking into each.
    memory.reads.set(0);
    let listed = children(&memory, &view, &TreePath::root()).unwrap();
    assert_eq!(listed.len(), 10_000);
    let all = memory.nodes.borrow().len();
    assert!(
        memory.reads.get() < 4 * all,
        "{} of {all}",
        memory.reads.get()
    );
}

#[test]
fn all_that_the_parts_lack_is_named_together() {
    let memory = Memory::default();
    let empty = nothing_yet();
    let base = changed(&memory, &empty, 9, many(5_000));
    let states = [1, 2, 3].map(|writer| {
        let edits = Edits::from([put(
            writer,
            1,
            &format!("folder 012/of {writer}"),
            file(writer),
        )]);
        changed(&memory, &base, writer, edits)
    });
    let view = View::new(states.clone());
    memory.hide_all();
    match children(&memory, &view, &path("folder 012")) {
        Err(TreeError::Missing(nodes)) => {
            assert_eq!(nodes.len(), 3);
            assert!(states.iter().all(|(root, _)| nodes.contains(root)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_view_of_nothing_is_empty_and_equal_roots_are_one_part() {
    let memory = Memory::default();
    let nothing = View::new([]);
    assert!(
        children(&memory, &nothing, &TreePath::root())
            .unwrap()
            .is_empty()
    );
    assert_eq!(lookup(&memory, &nothing, &path("a")).unwrap(), None);
    assert_eq!(
        folder_newest(&memory, &nothing, &TreePath::root()).unwrap(),
        None
    );

    // Two that saw different deletions, and hold the same: what either saw removed is gone.
    let empty = nothing_yet();
    let base = changed(&memory, &empty, 1, Edits::from([put(1, 1, "a", file(1))]));
    let other = changed(&memory, &empty, 2, Edits::from([put(2, 1, "b", file(1))]));
    let emptied = changed(&memory, &base, 1, Edits::from([gone("a")]));
    let other_emptied = changed(&memory, &other, 2, Edits::from([gone("b")]));
    let view = View::new([emptied, other_emptied, base, other]);
    assert_eq!(view.roots().count(), 3);
    assert!(names(&memory, &view, "").is_empty());
}
