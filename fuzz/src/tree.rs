//! What is done with nodes that somebody else made: valid each by itself, forged for the places where they stand.
//!
//! An input is a list of nodes, each with its length (two bytes, big-endian) in front. A child's hash counts by its first byte
//! alone: that is the number of the node, modulo one more than there are, and the last number is of a node that is not
//! here. A real source checks hashes, so it knows no cycles; this one does, which makes it only worse. The first two nodes
//! are the roots.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use p2pfs::manifest::{
    CausalContext, Change, Entry, HybridTime, InternalKey, Key, Kind, Node, NodeHash, NodeSource,
    Timestamp, TreeError, TreePath, Version, Versions, View, apply, children, complete_links,
    complete_moves, conflicts, contested_files, diff, empty_root, folder_newest, get, lookup,
    merge, move_hint, names, range_summary, record_folders, resolve, scan, without_old_hints,
};
use p2pfs::manifest::{Dot, WriterNumber};

/// Most nodes of an input; more are passed over.
const NODES_MAX: usize = 64;

struct Forged(Vec<Arc<Node>>);

impl NodeSource for Forged {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        let index = usize::from(hash.0[0]) % (self.0.len() + 1);
        Ok(self.0.get(index).cloned())
    }
}

pub(crate) fn run(mut data: &[u8]) {
    let mut nodes = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        let Some((node, rest)) = rest.split_at_checked(length) else {
            break;
        };
        data = rest;
        if let Ok(node) = Node::decode(node)
            && nodes.len() < NODES_MAX
        {
            nodes.push(Arc::new(node));
        }
    }
    let source = Forged(nodes);
    let (one, other) = (NodeHash([0; 32]), NodeHash([1; 32]));
    let (mut ours, mut theirs) = (CausalContext::default(), CausalContext::default());
    ours.add(dot(1, 5));
    theirs.add(dot(2, 5));
    // One state, and two that are looked at as if they were merged.
    let both = [(one, ours.clone()), (other, theirs.clone())];
    let states = [View::of(one), View::new(both)];
    let everything = Range {
        start: Vec::new(),
        end: vec![0xff],
    };
    let found = scan(&source, one, everything.clone(), usize::MAX).unwrap_or_default();
    // Whatever the nodes claim, keys come in order and once.
    assert!(found.is_sorted_by(|(a, _), (b, _)| a < b));
    let first = scan(&source, one, everything.clone(), 3).unwrap_or_default();
    assert!(first.len() <= 3);
    let _ = range_summary(&source, one, &everything);

    let ends = [found.first(), found.get(found.len() / 2), found.last()];
    for (key, versions) in ends.into_iter().flatten() {
        // What a walk found, a descent finds too.
        assert_eq!(
            get(&source, one, key).ok().flatten().as_ref(),
            Some(versions)
        );
        look_at(&source, &states, key);
        edit(&source, one, key, versions);
    }
    look_around(&source, &states, &TreePath::root());

    for (old, new) in [
        (one, other),
        (other, one),
        (empty_root(), one),
        (one, empty_root()),
    ] {
        if let Ok(changes) = diff(&source, old, new, usize::MAX) {
            assert!(changes.is_sorted_by(|a, b| a.key < b.key));
            assert!(changes.iter().all(|change| change.old != change.new));
        }
    }
    for [mine, yours] in [
        [(one, &ours), (other, &theirs)],
        [(other, &theirs), (one, &ours)],
    ] {
        if let Ok(merged) = merge(&source, mine, yours) {
            complete(&source, mine, yours, &merged.changes);
        }
    }
    let _ = conflicts(&source, one, &TreePath::root(), None, 16);
    let _ = without_old_hints(&source, one, HybridTime(u64::MAX), 16);
}

/// What a writer does after a merge: renames, files with several names, records of folders. The merged tree is not there; a
/// forged one stands for it.
fn complete(
    source: &Forged,
    ours: (NodeHash, &CausalContext),
    theirs: (NodeHash, &CausalContext),
    changes: &[Change],
) {
    let own = dot(5, 1);
    for root in [ours.0, theirs.0] {
        let Ok(mut edits) = complete_moves(source, root, ours, theirs, changes, own) else {
            continue;
        };
        let contested = contested_files(changes);
        if complete_links(source, root, &mut edits, contested, &[ours, theirs], own).is_ok() {
            let _ = record_folders(source, root, &mut edits, own, |_| HybridTime(1));
            let _ = apply(source, root, &edits);
        }
    }
}

fn look_at(source: &Forged, states: &[View], key: &Key) {
    if let Some(InternalKey::File(file) | InternalKey::Name(file, _)) = key.internal() {
        for view in states {
            let _ = names(source, view, &file);
        }
    }
    let Some(path) = key.path() else {
        return;
    };
    for view in states {
        if let Ok(Some(shown)) = lookup(source, view, &path) {
            let _ = resolve(source, view, shown);
        }
    }
    if let Some((folder, _)) = path.split() {
        look_around(source, states, &folder);
    }
}

fn look_around(source: &Forged, states: &[View], folder: &TreePath) {
    for view in states {
        let _ = folder_newest(source, view, folder);
        if let Ok(children) = children(source, view, folder) {
            assert!(children.is_sorted_by(|(a, _), (b, _)| a < b));
        }
    }
}

fn edit(source: &Forged, root: NodeHash, key: &Key, versions: &Versions) {
    for edits in [
        BTreeMap::from([(key.clone(), None)]),
        BTreeMap::from([(
            key.clone(),
            Versions::new([versions.as_slice(), &[new(1)]].concat()),
        )]),
    ] {
        if let Ok(applied) = apply(source, root, &edits) {
            for (hash, bytes) in &applied.nodes {
                assert_eq!(NodeHash::of(bytes), *hash);
                assert!(
                    Node::decode(bytes).is_ok(),
                    "a new node that others would refuse"
                );
            }
        }
    }
}

fn dot(writer: u64, sequence: u64) -> Dot {
    let writer = WriterNumber(writer);
    Dot { writer, sequence }
}

fn new(sequence: u64) -> Version {
    Version {
        dot: dot(5, sequence),
        time: HybridTime(1_700_000_000_000_000_000 + sequence),
        entry: Entry::new(Kind::Directory, 0o755, 0, 0, Timestamp(0)),
        moved: None,
    }
}

/// A file with two names, a rename and a folder, under internal keys.
fn internal_rows() -> Vec<(Key, Option<Versions>)> {
    let file = [4; 16];
    let at = |text: &str| TreePath::parse(text.as_bytes()).unwrap_or_default();
    let put = |entry: Entry| {
        let version = Version { entry, ..new(1) };
        Versions::new(vec![version])
    };
    let plain = |kind| Entry::new(kind, 0o644, 0, 0, Timestamp(0));
    let internal = |key, entry| (Key::of_internal(&key), put(entry));
    let mut rows = vec![
        internal(InternalKey::File(file), plain(Kind::Fifo)),
        internal(
            InternalKey::Folder(at("d1")),
            plain(Kind::Record(Vec::new())),
        ),
    ];
    for name in ["d1/one", "two"] {
        rows.extend(Key::of_path(&at(name)).map(|key| (key, put(Entry::link(file)))));
        let key = InternalKey::Name(file, at(name));
        rows.push(internal(key, plain(Kind::Record(Vec::new()))));
    }
    let mut seen = CausalContext::default();
    seen.add(dot(5, 1));
    if let Some((key, hint)) = move_hint(&at("d2"), &at("d9"), &seen) {
        rows.push((key, put(hint)));
    }
    rows
}

/// The nodes of a tree of some small entries, and of the same tree after a few changes; the two roots first.
fn real() -> Vec<(NodeHash, Vec<u8>)> {
    struct Memory(BTreeMap<NodeHash, Vec<u8>>);
    impl NodeSource for Memory {
        fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
            let decode = |bytes: &Vec<u8>| Node::decode(bytes).map(Arc::new);
            let node = self.0.get(hash).map(decode).transpose();
            node.map_err(|error| TreeError::Source(error.to_string()))
        }
    }
    let row = |number: u64, versions| {
        let path = TreePath::parse(format!("d{}/f{number}", number % 7).as_bytes()).ok()?;
        Some((Key::of_path(&path)?, versions))
    };
    let all = (0..200).filter_map(|number| row(number, Versions::new(vec![new(1)])));
    let all = all.chain(internal_rows());
    let changed = (0..200).step_by(50).filter_map(|number| {
        let versions = (number > 0).then(|| Versions::new(vec![new(2)])).flatten();
        row(number, versions)
    });
    let mut memory = Memory(BTreeMap::new());
    let mut roots = vec![empty_root()];
    for edits in [all.collect(), changed.collect::<BTreeMap<_, _>>()] {
        let root = roots.last().copied().unwrap_or(empty_root());
        let applied = apply(&memory, root, &edits).expect("small entries fit");
        memory.0.extend(applied.nodes);
        roots.push(applied.root);
    }
    let mut nodes = Vec::new();
    for root in roots.into_iter().rev() {
        nodes.extend(memory.0.remove_entry(&root));
    }
    nodes.extend(memory.0);
    nodes
}

/// Encodings of real nodes.
pub(crate) fn real_nodes() -> Vec<Vec<u8>> {
    real().into_iter().map(|(_, bytes)| bytes).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let nodes = real();
    let number_of = |hash: &[u8]| nodes.iter().position(|(known, _)| known.0 == *hash);
    let mut all = Vec::new();
    for (_, bytes) in &nodes {
        let mut bytes = bytes.clone();
        for start in 0..bytes.len().saturating_sub(31) {
            if let Some(number) = number_of(&bytes[start..start + 32]) {
                bytes[start..start + 32].fill(number as u8);
            }
        }
        let length = u16::try_from(bytes.len()).expect("small nodes");
        all.extend(length.to_be_bytes());
        all.extend(bytes);
    }
    vec![all]
}
