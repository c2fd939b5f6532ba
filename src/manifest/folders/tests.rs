use proptest::prelude::*;

use super::*;
use crate::manifest::{
    View, children, folder_newest,
    histories::{State, any_history, content, folders, join, live},
    tree::{
        range_summary,
        testing::{Memory, directory, dot, file, key as key_of, one, path, version, versions},
    },
};

/// The same without records: it is looked at folder by folder.
fn without_records(memory: &Memory, root: NodeHash) -> NodeHash {
    let records = content(memory, root).into_keys();
    let records = records.filter(|key| matches!(key.internal(), Some(InternalKey::Folder(_))));
    memory.apply(root, &records.map(|key| (key, None)).collect())
}

/// What one head comes to.
fn written(memory: &Memory, root: NodeHash, time: u64, mut edits: Edits) -> NodeHash {
    let own = dot(1, time);
    let removes = edits.values().any(Option::is_none);
    let removed = |_: &_| HybridTime(if removes { time } else { 0 });
    record_folders(memory, root, &mut edits, own, removed).unwrap();
    memory.apply(root, &edits)
}

fn put(time: u64, name: &str, entry: Entry) -> (Key, Option<Versions>) {
    (
        key_of(name),
        Some(versions([version(1, time, time, entry)])),
    )
}

fn records(memory: &Memory, root: NodeHash) -> Vec<(String, u64)> {
    let rows = content(memory, root).into_iter();
    rows.filter_map(|(key, versions)| match key.internal() {
        Some(InternalKey::Folder(folder)) => Some((folder.to_string(), versions.newest().0)),
        _ => None,
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// After random histories, with merges and replays of old states, a listing that skips from record to record is the
    /// listing that looks at everything, in every folder of every state, and of several states looked at together.
    #[test]
    fn a_listing_by_records_is_the_listing_by_contents(
        (count, acts) in any_history(2..=6, 50),
        picked in prop::collection::vec(any::<prop::sample::Index>(), 2..=4),
    ) {
        let memory = Memory::default();
        let lived = live(&memory, count, &acts);
        let picked: Vec<&State> = picked.iter().map(|at| at.get(&lived.past)).collect();
        let together = picked.iter().map(|state| (*state).clone());
        let merged = picked.iter().fold(picked[0].clone(), |all, one| join(&memory, &all, one));
        let last = lived.replicas.iter().map(|replica| replica.root);
        let single: Vec<_> = last.chain(picked.iter().map(|state| state.0)).collect();
        let views = single.iter().map(|root| View::of(*root));
        let views = views.chain([View::of(merged.0), View::new(together.clone())]);
        let slow = single.iter().map(|root| View::of(without_records(&memory, *root)));
        let slow = slow.chain([
            View::of(without_records(&memory, merged.0)),
            View::new(together.map(|(root, context)| (without_records(&memory, root), context))),
        ]);
        for (view, slow) in views.zip(slow) {
            for folder in folders() {
                let listed = children(&memory, &view, &folder).unwrap();
                prop_assert_eq!(listed, children(&memory, &slow, &folder).unwrap(), "{}", folder);
            }
        }
    }

    /// Every folder with something directly in it has a record, in whatever order states were merged.
    #[test]
    fn no_record_is_lacking((count, acts) in any_history(2..=8, 60)) {
        let memory = Memory::default();
        for (root, _) in live(&memory, count, &acts).past {
            let rows = content(&memory, root);
            for folder in rows.keys().filter_map(Key::path).filter_map(|path| Some(path.split()?.0)) {
                prop_assert!(rows.contains_key(&key(&folder)), "{}", folder);
            }
        }
    }
}

#[test]
fn a_record_has_the_time_at_which_names_last_changed_and_lives_as_long_as_the_folder() {
    let memory = Memory::default();
    let root = written(
        &memory,
        empty_root(),
        1,
        Edits::from([put(1, "d/x", file(1))]),
    );
    let at = |name: &str, time| (name.to_owned(), time);
    assert_eq!(records(&memory, root), [at("/", 0), at("/d", 1)]);
    let edited = written(&memory, root, 2, Edits::from([put(2, "d/x", file(2))]));
    assert_eq!(
        records(&memory, edited),
        [at("/", 0), at("/d", 1)],
        "the names are the same"
    );
    let root = written(&memory, root, 2, Edits::from([put(2, "d", directory())]));
    assert_eq!(records(&memory, root), [at("/", 2), at("/d", 1)]);
    let root = written(&memory, root, 3, Edits::from([put(3, "d/e/y", file(1))]));
    let root = written(&memory, root, 4, Edits::from([(key_of("d/x"), None)]));
    let all = [at("/", 2), at("/d", 4), at("/d/e", 3)];
    assert_eq!(records(&memory, root), all, "a removal counts");
    assert_eq!(
        folder_newest(&memory, &View::of(root), &path("d")).unwrap(),
        Some(HybridTime(4))
    );
    let emptied = written(&memory, root, 5, Edits::from([(key_of("d/e/y"), None)]));
    assert_eq!(
        records(&memory, emptied),
        [at("/", 2), at("/d", 4)],
        "nothing is left of e"
    );
    let removed = written(&memory, emptied, 6, Edits::from([(key_of("d"), None)]));
    assert_eq!(records(&memory, removed), [at("/", 6)]);
    // What is still below it is found without it.
    let hidden = written(&memory, root, 6, Edits::from([(key_of("d"), None)]));
    assert_eq!(records(&memory, hidden), [at("/", 6), at("/d/e", 3)]);
    let listed = children(&memory, &View::of(hidden), &TreePath::root()).unwrap();
    assert_eq!(listed.len(), 1);
}

#[test]
fn a_tree_of_an_earlier_version_gets_no_records() {
    let memory = Memory::default();
    let root = memory.build(&Edits::from([(key_of("old/x"), Some(one(1)))]));
    let root = written(&memory, root, 2, Edits::from([put(2, "new/y", file(1))]));
    assert_eq!(records(&memory, root), []);
    let listed = children(&memory, &View::of(root), &TreePath::root()).unwrap();
    assert_eq!(listed.len(), 2);
}

#[test]
fn listing_many_folders_reads_none_of_them() {
    let memory = Memory::default();
    let files = (0..2000_u64).flat_map(|folder| {
        (0..20).map(move |n| put(1, &format!("all/{folder:05}/{n:03}"), file(n)))
    });
    let folders = (0..2000_u64).map(|folder| put(1, &format!("all/{folder:05}"), directory()));
    let root = written(&memory, empty_root(), 1, files.chain(folders).collect());
    let view = View::of(root);
    let (listed, rounds, nodes) = memory.fetching(|memory| {
        let listed = children(memory, &view, &path("all"))?;
        for (name, _) in &listed {
            folder_newest(memory, &view, &path("all").join(name).unwrap())?;
        }
        Ok(listed)
    });
    assert_eq!(listed.len(), 2000);
    // 2000 entries and as many records, 64 in a leaf; their files are in 600 leaves.
    assert!(
        nodes < 100 && rounds <= 5,
        "{nodes} nodes in {rounds} rounds"
    );
    let slow = View::of(without_records(&memory, root));
    let (_, _, nodes) = memory.fetching(|memory| children(memory, &slow, &path("all")));
    assert!(nodes > 500, "{nodes} nodes");
    let range = Key::children_of(&path("all/00007"));
    let newest = range_summary(&memory, root, &range).unwrap().newest;
    let record = folder_newest(&memory, &view, &path("all/00007")).unwrap();
    assert_eq!(record, Some(newest));
}
