use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use proptest::prelude::*;

use super::{testing::*, *};
use crate::manifest::{
    Entry, HybridTime, InternalKey, Kind, Timestamp, TreePath, View, folder_newest,
    node::levels_started,
};

type Model = BTreeMap<Key, Versions>;

fn everything() -> Range<Vec<u8>> {
    vec![0]..vec![0xff]
}

/// A small world of keys, so that edits meet, in which those that start nodes of high levels are as frequent as others, so
/// that few rows make deep trees, with chains of single children in them.
fn any_key() -> impl Strategy<Value = Key> {
    static WORLD: LazyLock<Vec<Key>> = LazyLock::new(|| {
        let names = (0..200_000).map(|n| match n % 5 {
            0 => key(&format!("n{n}")),
            folder => key(&format!("d{folder}/n{n}")),
        });
        let mut wanted = [300, 200, 40, 3];
        let mut world = Vec::new();
        for key in names {
            if let Some(left) = wanted.get_mut(levels_started(&key) as usize)
                && *left > 0
            {
                *left -= 1;
                world.push(key);
            }
        }
        assert_eq!(wanted[..3], [0; 3]);
        world
    });
    prop::sample::select(WORLD.as_slice())
}
/// Every eighth is of more than 2 KiB, and so starts a leaf by itself.
fn any_value() -> impl Strategy<Value = Versions> {
    (0_u64..1000).prop_map(|content| {
        if content % 8 == 0 {
            let mut entry = file(content);
            entry
                .attributes
                .insert(b"large".to_vec(), vec![1; 2100 + content as usize]);
            versions([version(1, 1, 1, entry)])
        } else {
            one(content)
        }
    })
}
fn any_edits(max: usize) -> impl Strategy<Value = Edits> {
    prop::collection::btree_map(any_key(), prop::option::weighted(0.6, any_value()), 0..max)
}
fn change_model(model: &mut Model, edits: &Edits) {
    for (key, value) in edits {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}
fn model_diff(old: &Model, new: &Model) -> Vec<Change> {
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changes = keys.into_iter().map(|key| Change {
        key: key.clone(),
        old: old.get(key).cloned(),
        new: new.get(key).cloned(),
    });
    changes.filter(|change| change.old != change.new).collect()
}
fn reachable(memory: &Memory, root: NodeHash) -> BTreeSet<NodeHash> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root];
    while let Some(hash) = pending.pop() {
        found.insert(hash);
        if let Some(node) = load(memory, &hash).unwrap() {
            pending.extend(node.children());
        }
    }
    found
}
fn as_edits(model: &Model) -> Edits {
    let rows = model.iter();
    rows.map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the order of edits: the same map has the same root, look-ups and scans give what a `BTreeMap` gives, and
    /// differences between any two states are exactly theirs.
    #[test]
    fn behaves_as_a_map_and_does_not_remember_its_history(
        batches in prop::collection::vec(any_edits(250), 1..6),
        range in (any_key(), any_key()),
        limit in 0_usize..300,
    ) {
        let memory = Memory::default();
        let mut model = Model::new();
        let mut root = empty_root();
        let mut states = vec![(root, model.clone())];
        for edits in &batches {
            let (applied, ..) = memory.fetching(|memory| apply(memory, root, edits));
            memory.keep(applied.nodes.clone());
            let reachable = reachable(&memory, applied.root);
            prop_assert!(applied.nodes.iter().all(|(hash, _)| reachable.contains(hash)));
            root = applied.root;
            change_model(&mut model, edits);
            states.push((root, model.clone()));
            prop_assert_eq!(root, Memory::default().build(&as_edits(&model)));
        }
        // One by one, backwards, with a detour for each key.
        let mut slow = empty_root();
        for (key, value) in model.iter().rev().take(60) {
            let detour = Edits::from([(key.clone(), Some(one(77)))]);
            slow = memory.apply(slow, &detour);
            slow = memory.apply(slow, &Edits::from([(key.clone(), Some(value.clone()))]));
        }
        slow = memory.apply(slow, &as_edits(&model));
        prop_assert_eq!(slow, root);

        let whole = scan(&memory, root, everything(), usize::MAX).unwrap();
        prop_assert!(whole.iter().map(|(key, value)| (key, value)).eq(model.iter()));
        let range = range.0.as_bytes().to_vec()..range.1.as_bytes().to_vec();
        let expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| range.contains(&key.as_bytes().to_vec()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut sum = Summary::default();
        expected.iter().for_each(|(key, value)| sum.add(&Summary::of_row(key, value)));
        prop_assert_eq!(range_summary(&memory, root, &range).unwrap(), sum);
        prop_assert_eq!(any_in(&memory, root, &range).unwrap(), !expected.is_empty());
        let (scanned, ..) = memory.fetching(|memory| scan(memory, root, range.clone(), limit));
        prop_assert_eq!(scanned, &expected[..limit.min(expected.len())]);
        for key in batches.iter().flat_map(Edits::keys).take(50) {
            prop_assert_eq!(get(&memory, root, key).unwrap(), model.get(key).cloned());
        }
        for (old, old_model) in &states {
            let expected = model_diff(old_model, &model);
            prop_assert_eq!(&diff(&memory, *old, root, usize::MAX).unwrap(), &expected);
            let step = expected.len() / 4 + 1;
            let afters = expected.iter().step_by(step).map(|change| &change.key);
            for after in afters.chain(model.keys().take(2)) {
                let rest: Vec<_> = expected.iter().filter(|change| change.key > *after).collect();
                let found = diff_after(&memory, *old, root, Some(after), limit.max(1)).unwrap();
                prop_assert!(found.iter().eq(rest.into_iter().take(limit.max(1))));
            }
            let (changes, ..) = memory.fetching(|memory| diff(memory, *old, root, limit));
            prop_assert_eq!(&changes, &expected[..limit.min(expected.len())]);
        }
        // And back to nothing.
        let gone = model.keys().map(|key| (key.clone(), None)).collect();
        prop_assert_eq!(memory.apply(root, &gone), empty_root());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Few changes, one by one and all at once.
    #[test]
    fn any_way_to_a_map_gives_its_root(
        edits in prop::collection::vec((any_key(), prop::option::weighted(0.6, any_value())), 1..16),
    ) {
        let memory = Memory::default();
        let mut model = Model::new();
        let mut root = empty_root();
        for edit in &edits {
            let edit = Edits::from([edit.clone()]);
            change_model(&mut model, &edit);
            root = memory.apply(root, &edit);
        }
        prop_assert_eq!(memory.build(&as_edits(&model)), root);
        prop_assert_eq!(memory.build(&edits.into_iter().collect()), root);
    }
}

/// Brings what is outdated until nothing is; how many nodes.
fn bring_up(memory: &Memory, old: NodeHash, new: NodeHash, additions: bool) -> usize {
    let mut brought = 0;
    loop {
        let missing = outdated(memory, old, new, additions).unwrap();
        if missing.is_empty() {
            return brought;
        }
        for hash in missing {
            let was_hidden = memory.hidden.borrow_mut().remove(&hash);
            assert!(was_hidden, "asked for what is here");
            brought += 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_could_be_read_can_be_read_once_what_is_outdated_was_brought(
        start in any_edits(200),
        edits in any_edits(60),
        looked_at in prop::collection::vec(any_key(), 0..20),
        all in any::<bool>(),
    ) {
        let memory = Memory::default();
        let old = memory.build(&start);
        let here = reachable(&memory, old);
        let new = memory.apply(old, &edits);
        memory.hide_all();
        if all {
            memory.hidden.borrow_mut().retain(|hash| !here.contains(hash));
        }
        for key in &looked_at {
            while let Err(TreeError::Missing(hashes)) = get(&memory, old, key) {
                memory.hidden.borrow_mut().retain(|hash| !hashes.contains(hash));
            }
        }
        let can = |root, key: &Key| get(&memory, root, key).is_ok();
        let rows = start.iter().filter(|(_, value)| value.is_some());
        let readable: Vec<_> = rows.map(|(key, _)| key).filter(|key| can(old, key)).collect();
        bring_up(&memory, old, new, false);
        for key in readable {
            prop_assert!(can(new, key), "{key:?}");
        }
        bring_up(&memory, old, new, true);
        if all {
            prop_assert!(scan(&memory, new, everything(), usize::MAX).is_ok());
        }
    }
}

#[test]
fn a_large_folder_that_is_new_is_not_brought_for_what_stands_around_it() {
    let memory = Memory::default();
    let old = memory.build(&many(2000));
    let here = reachable(&memory, old);
    let added = (0..30_000).map(|n| (key(&format!("folder 010a/{n}")), Some(one(n))));
    let new = memory.apply(old, &added.collect());
    memory.hide_all();
    memory
        .hidden
        .borrow_mut()
        .retain(|hash| !here.contains(hash));
    let brought = bring_up(&memory, old, new, false);
    assert!(brought < 16, "{brought}");
    assert!(
        get(&memory, new, &key("folder 010/file 000010.dat"))
            .unwrap()
            .is_some()
    );
    assert!(bring_up(&memory, old, new, true) > 100);
}

/// From every set of six keys to every other: ordinary ones, and ones that start nodes of the first and second level.
#[test]
fn every_step_between_small_maps_gives_the_root_of_the_map() {
    let memory = Memory::default();
    let mut wanted = [3, 2, 1];
    let world: Vec<_> = (0..)
        .map(|n| key(&format!("n{n}")))
        .filter(|key| {
            let left = wanted.get_mut(levels_started(key) as usize);
            left.is_some_and(|left| {
                let wanted = *left > 0;
                *left -= usize::from(wanted);
                wanted
            })
        })
        .take(6)
        .collect();
    let of = |set: usize| {
        let world = world.iter().enumerate();
        world.map(move |(index, key)| (key.clone(), (set >> index & 1 == 1).then(|| one(1))))
    };
    let roots: Vec<_> = (0..64)
        .map(|set| memory.build(&of(set).collect()))
        .collect();
    for (from, to) in (0..64).flat_map(|from| (0..64).map(move |to| (from, to))) {
        let changed = from ^ to;
        let edits = of(to)
            .enumerate()
            .filter(|(index, _)| changed >> index & 1 == 1);
        let edits = edits.map(|(_, edit)| edit).collect();
        assert_eq!(
            memory.apply(roots[from], &edits),
            roots[to],
            "{from:b} to {to:b}"
        );
    }
}

#[test]
fn the_root_counts_the_paths_that_show_conflict_copies() {
    let memory = Memory::default();
    let mut edits = many(200);
    let both = versions([version(1, 1, 1, file(1)), version(2, 1, 1, file(2))]);
    edits.insert(key("a"), Some(both.clone()));
    edits.insert(key("folder 001/b"), Some(both.clone()));
    // Equal contents are one file; and a record of a file with several names is no path.
    let equal = versions([version(1, 1, 1, file(1)), version(2, 1, 1, file(1))]);
    edits.insert(key("c"), Some(equal));
    let record = Key::of_internal(&InternalKey::File([7; 16]));
    edits.insert(record, Some(both));
    let root = memory.build(&edits);
    let counted = summary(&memory, root).unwrap();
    assert_eq!((counted.keys, counted.conflicts), (204, 2));
    let folder = Key::children_of(&path("folder 001"));
    assert_eq!(range_summary(&memory, root, &folder).unwrap().conflicts, 1);
}

#[test]
fn the_empty_map_needs_no_source() {
    struct Nothing;
    impl NodeSource for Nothing {
        fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
            panic!("{hash} was asked for");
        }
    }
    let root = empty_root();
    assert_eq!(get(&Nothing, root, &key("a")).unwrap(), None);
    assert!(scan(&Nothing, root, everything(), 9).unwrap().is_empty());
    assert!(diff(&Nothing, root, root, 9).unwrap().is_empty());
    assert_eq!(summary(&Nothing, root).unwrap(), Summary::default());
    let applied = apply(&Nothing, root, &Edits::from([(key("a"), None)])).unwrap();
    assert_eq!(applied.root, root);
    assert!(applied.nodes.is_empty());
}

#[test]
fn an_edit_touches_only_its_path_and_nodes_average_8_kib() {
    let memory = Memory::default();
    let all = many(30_000);
    let applied = apply(&memory, empty_root(), &all).unwrap();
    let bytes: usize = applied.nodes.iter().map(|(_, bytes)| bytes.len()).sum();
    let average = bytes / applied.nodes.len();
    assert!((4096..12_288).contains(&average), "{average}");
    assert_eq!(memory.reads.get(), 0);
    let root = applied.root;
    memory.keep(applied.nodes);
    let depth = usize::from(memory.node(&root).unwrap().unwrap().level()) + 1;

    let summary = summary(&memory, root).unwrap();
    assert_eq!((summary.keys, summary.files), (30_000, 30_000));
    assert_eq!(summary.bytes, (0..30_000).map(|n| n % 10_000).sum::<u64>());
    assert_eq!(summary.newest, HybridTime(1_700_000_000_000_029_999));

    let (existing, _) = all.iter().nth(12_345).unwrap();
    for edit in [
        (existing.clone(), Some(one(5))),
        (existing.clone(), None),
        (key("folder 007/new"), Some(one(5))),
    ] {
        memory.reads.set(0);
        let edits = Edits::from([edit]);
        let applied = apply(&memory, root, &edits).unwrap();
        assert!(memory.reads.get() <= depth, "{}", memory.reads.get());
        assert!(applied.nodes.len() <= depth + 1);
        memory.keep(applied.nodes);
        memory.reads.set(0);
        let changes = diff(&memory, root, applied.root, usize::MAX).unwrap();
        assert_eq!(changes.len(), 1);
        assert!(memory.reads.get() <= 2 * depth + 2);
    }
    memory.reads.set(0);
    let same = Edits::from([(existing.clone(), all[existing].clone())]);
    let applied = apply(&memory, root, &same).unwrap();
    assert_eq!((applied.root, applied.nodes.len()), (root, 0));

    // A folder of 100 among 300 is a few nodes; its newest change not many more.
    let folder = TreePath::parse(b"folder 123").unwrap();
    memory.reads.set(0);
    let rows = scan(&memory, root, Key::children_of(&folder), usize::MAX).unwrap();
    assert_eq!(rows.len(), 100);
    assert!(memory.reads.get() < 12, "{}", memory.reads.get());
    let newest = folder_newest(&memory, &View::of(root), &folder).unwrap();
    assert_eq!(newest, Some(HybridTime(1_700_000_000_000_029_823)));
    assert_eq!(
        folder_newest(&memory, &View::of(root), &TreePath::root()).unwrap(),
        None
    );
}

#[test]
fn missing_nodes_are_named_together() {
    let memory = Memory::default();
    let root = memory.build(&many(20_000));
    let levels = usize::from(memory.node(&root).unwrap().unwrap().level()) + 1;

    let (rows, rounds, _) = memory.fetching(|memory| scan(memory, root, everything(), usize::MAX));
    assert_eq!(rows.len(), 20_000);
    assert!(rounds <= levels, "{rounds} rounds for {levels} levels");

    // Not more is fetched than the limit asks for.
    let (rows, _, fetched) = memory.fetching(|memory| scan(memory, root, everything(), 100));
    assert_eq!(rows.len(), 100);
    assert!(fetched < 10, "{fetched}");

    // Changes all over the tree arrive a level a round, and bring only nodes that differ.
    let edits: Edits = many(20_000)
        .into_iter()
        .step_by(400)
        .map(|(key, _)| (key, None))
        .collect();
    let (applied, rounds, _) = memory.fetching(|memory| apply(memory, root, &edits));
    assert!(rounds <= levels + 2, "{rounds} rounds for {levels} levels");
    let new = applied.root;
    let new_nodes = applied.nodes.len();
    memory.keep(applied.nodes);
    let (changes, rounds, fetched) = memory.fetching(|memory| diff(memory, root, new, usize::MAX));
    assert_eq!(changes.len(), edits.len());
    assert!(rounds <= levels + 3, "{rounds} rounds for {levels} levels");
    assert!(fetched <= 2 * new_nodes + 20, "{fetched} of {new_nodes}");
}

#[test]
fn edits_beyond_the_bounds_are_refused_by_name() {
    let memory = Memory::default();
    let mut entry = file(1);
    entry.mode = 0o10000;
    let writer = Entry::new(
        Kind::Writer {
            peer: vec![1],
            node: "n".into(),
        },
        0o644,
        0,
        0,
        Timestamp(0),
    );
    let crowd: Vec<_> = (1..400).map(|n| version(n, 1, 1, file(n))).collect();
    for bad in [
        versions([version(1, 1, 1, entry)]),
        versions([version(1, 0, 1, file(1))]),
        versions([version(1, 1, 1, writer)]),
        versions(crowd),
    ] {
        let edits = Edits::from([(key("a/b"), Some(bad))]);
        match apply(&memory, empty_root(), &edits) {
            Err(TreeError::Bounds(path, _)) => assert_eq!(path, "/a/b"),
            other => panic!("{other:?}"),
        }
    }
}

/// Every node of a valid tree, put in a place where another belongs, is found out; no damage panics.
#[test]
fn forged_trees_are_refused() {
    let memory = Memory::default();
    let root = memory.build(&many(600));
    let top = memory.node(&root).unwrap().unwrap();
    assert_eq!(top.level(), 1);
    let rows = Child::of_node(&top);
    type Rows = Vec<(Key, Child)>;
    let forge = |change: &dyn Fn(&mut Rows)| {
        let mut rows = rows.to_vec();
        change(&mut rows);
        let bytes = Child::into_node(top.level(), rows).encode();
        let hash = NodeHash::of(&bytes);
        memory.keep(vec![(hash, bytes)]);
        hash
    };
    let swapped = forge(&|rows| {
        let (first, second) = (rows[0].1.clone(), rows[1].1.clone());
        rows[0].1 = second;
        rows[1].1 = first;
    });
    let counted = forge(&|rows| rows[1].1.summary.keys += 1);
    let uncut = forge(&|rows| {
        let child = Node::decode(&memory.nodes.borrow()[&rows[1].1.hash]).unwrap();
        // A leaf whose first row is not a boundary, in the middle.
        let leaf = Versions::of_node(&child);
        let cut = Versions::into_node(0, leaf[1..].to_vec());
        let bytes = cut.encode();
        let hash = NodeHash::of(&bytes);
        let summary = cut.summary();
        rows[1] = (leaf[1].0.clone(), Child { hash, summary });
        memory.keep(vec![(hash, bytes)]);
    });
    for forged in [swapped, counted, uncut] {
        let misplaced = |result: Result<(), TreeError>| {
            assert!(matches!(result, Err(TreeError::Misplaced(_))), "{result:?}");
        };
        misplaced(scan(&memory, forged, everything(), usize::MAX).map(drop));
        // A comparison doesn't read, and so doesn't judge, what has equal hashes.
        if forged != counted {
            misplaced(diff(&memory, root, forged, usize::MAX).map(drop));
        }
    }
    // A chain of one child is no root.
    let (key, child) = rows[0].clone();
    let chain = Child::into_node(top.level(), vec![(key.clone(), child)]).encode();
    let hash = NodeHash::of(&chain);
    memory.keep(vec![(hash, chain)]);
    assert!(matches!(
        get(&memory, hash, &key),
        Err(TreeError::Misplaced(_))
    ));
}
