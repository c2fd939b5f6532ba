//! Random histories of several members for the tests of merging, and what each of them must come to.
//!
//! [`Oracle`] is the definition of merging in its plainest form: it remembers every write with all that the write replaced.
//! A state that has seen certain writes holds what these wrote, less what these replaced.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    CausalContext, Dot, Entry, HybridTime, Key, NodeHash, Shown, TreePath, Version, Versions, View,
    children, diff, empty_root, find_copy, get, lookup, merge,
    merge::list,
    record_folders, scan,
    tree::testing::{Edits, Memory, directory, dot, file, path, version},
};

/// Paths of a small world: names that files and folders have at once, folders in folders, neighbours in the order of keys.
pub(super) const WORLD: [&str; 14] = [
    "a",
    "a b/x",
    "a/x",
    "a/x/1",
    "a/x/2",
    "a/y",
    "b",
    "b/x",
    "b/x/1",
    "b/x/1/deep",
    "c",
    "c/x",
    "c.txt",
    "d",
];

/// The folders that paths of the world may make.
pub(super) fn folders() -> BTreeSet<TreePath> {
    let mut folders = BTreeSet::from([TreePath::root()]);
    for name in WORLD {
        let mut at = path(name);
        while let Some((parent, _)) = at.clone().split() {
            folders.insert(at);
            at = parent;
        }
    }
    folders
}

/// A state, as it travels.
pub(super) type State = (NodeHash, CausalContext);

/// A member.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) writer: u64,
    /// The last of its heads.
    pub(super) sequence: u64,
    pub(super) root: NodeHash,
    pub(super) context: CausalContext,
}

/// A change that somebody makes to what is shown to them.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    /// Writes a file; the content is told by a number.
    Write(&'static str, u64),
    /// Makes a directory, or changes its attributes.
    Directory(&'static str),
    /// Removes a file, or a directory with everything in it.
    Remove(&'static str),
    /// Writes through the name of a conflict copy, if the folder shows one: the copy becomes a file of that name.
    WriteCopy(&'static str, u64),
    /// Removes a conflict copy.
    RemoveCopy(&'static str),
}

/// What was written and replaced by each head.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle(BTreeMap<Dot, Event>);

#[derive(Clone, Debug, Default)]
struct Event {
    wrote: BTreeMap<Key, Version>,
    replaced: BTreeSet<(Key, Dot)>,
}

impl Oracle {
    /// What a state that has seen this holds.
    pub(super) fn content(&self, context: &CausalContext) -> BTreeMap<Key, Versions> {
        let seen = || self.0.iter().filter(|(dot, _)| context.covers(**dot));
        let replaced: BTreeSet<_> = seen().flat_map(|(_, event)| &event.replaced).collect();
        let mut content: BTreeMap<Key, Vec<Version>> = BTreeMap::new();
        for (dot, event) in seen() {
            for (key, version) in &event.wrote {
                if !replaced.contains(&(key.clone(), *dot)) {
                    content
                        .entry(key.clone())
                        .or_default()
                        .push(version.clone());
                }
            }
        }
        let content = content.into_iter();
        content
            .filter_map(|(key, list)| Some((key, Versions::new(list)?)))
            .collect()
    }
}

impl Replica {
    pub(super) fn new(writer: u64) -> Self {
        Self {
            writer,
            sequence: 0,
            root: empty_root(),
            context: CausalContext::default(),
        }
    }
    pub(super) fn state(&self) -> State {
        (self.root, self.context.clone())
    }
    /// One head with several changes, one after the other.
    pub(super) fn commit(
        &mut self,
        memory: &Memory,
        oracle: &mut Oracle,
        time: u64,
        edits: &[Edit],
    ) {
        self.sequence += 1;
        let base = self.root;
        for edit in edits {
            match edit {
                Edit::Write(at, content) => {
                    self.write(memory, oracle, &path(at), time, file(*content))
                }
                Edit::Directory(at) => {
                    let mut entry = directory();
                    entry.mode = 0o700 + (time % 8) as u32;
                    self.write(memory, oracle, &path(at), time, entry);
                }
                Edit::Remove(at) => {
                    let at = path(at);
                    let rows = Key::below(&at).map(|range| scan(memory, self.root, range, 999));
                    for (key, versions) in rows.into_iter().flat_map(Result::unwrap) {
                        let all: Vec<_> = versions.as_slice().iter().map(|old| old.dot).collect();
                        self.replace(memory, oracle, &key, &all, None);
                    }
                    if let Some(shown) = self.shown(memory, &at) {
                        self.replace(
                            memory,
                            oracle,
                            &Key::of_path(&at).unwrap(),
                            &shown.seen,
                            None,
                        );
                    }
                }
                Edit::WriteCopy(folder, content) => {
                    if let Some((copy, original, shown)) = self.copy(memory, &path(folder)) {
                        self.replace(memory, oracle, &original, &shown.seen, None);
                        self.write(memory, oracle, &copy, time, file(*content));
                    }
                }
                Edit::RemoveCopy(folder) => {
                    if let Some((_, original, shown)) = self.copy(memory, &path(folder)) {
                        self.replace(memory, oracle, &original, &shown.seen, None);
                    }
                }
            }
        }
        self.record_folders(memory, oracle, time, base);
        self.context.add(dot(self.writer, self.sequence));
    }
    /// What a head that was made on `base` does to the records of folders.
    fn record_folders(&mut self, memory: &Memory, oracle: &mut Oracle, time: u64, base: NodeHash) {
        let own = dot(self.writer, self.sequence);
        let changes = diff(memory, base, self.root, usize::MAX).unwrap();
        let mut edits: Edits = changes
            .into_iter()
            .map(|change| (change.key, change.new))
            .collect();
        record_folders(memory, base, &mut edits, own, |_| HybridTime(time)).unwrap();
        for (key, new) in edits.iter().filter(|(key, _)| key.path().is_none()) {
            let there = get(memory, self.root, key).unwrap();
            let seen: Vec<_> = list(there.as_ref()).iter().map(|old| old.dot).collect();
            let new = list(new.as_ref()).first().cloned();
            self.replace(memory, oracle, key, &seen, new);
        }
    }
    fn shown(&self, memory: &Memory, at: &TreePath) -> Option<Shown> {
        lookup(memory, &View::of(self.root), at).unwrap()
    }
    /// The first conflict copy that a folder shows: its path, the key of its versions, and what it is.
    fn copy(&self, memory: &Memory, folder: &TreePath) -> Option<(TreePath, Key, Shown)> {
        let view = View::of(self.root);
        let listed = children(memory, &view, folder).unwrap();
        listed.into_iter().find_map(|(name, shown)| {
            let at = folder.join(&name).unwrap();
            let (original, _) = find_copy(memory, &view, &at).unwrap()?;
            let original = Key::of_path(&folder.join(&original).unwrap()).unwrap();
            Some((at, original, shown))
        })
    }
    fn write(
        &mut self,
        memory: &Memory,
        oracle: &mut Oracle,
        at: &TreePath,
        time: u64,
        entry: Entry,
    ) {
        let seen = self
            .shown(memory, at)
            .map_or(Vec::new(), |shown| shown.seen);
        let new = version(self.writer, self.sequence, time, entry);
        self.replace(memory, oracle, &Key::of_path(at).unwrap(), &seen, Some(new));
    }
    fn replace(
        &mut self,
        memory: &Memory,
        oracle: &mut Oracle,
        key: &Key,
        seen: &[Dot],
        new: Option<Version>,
    ) {
        let own = dot(self.writer, self.sequence);
        let event = oracle.0.entry(own).or_default();
        let mut seen = seen.to_vec();
        // One head has one version under a key; what it wrote there before was never seen by anybody.
        if new.is_some() {
            seen.push(own);
        }
        if seen.contains(&own) {
            event.wrote.remove(key);
        }
        let others = seen.iter().filter(|dot| **dot != own);
        event.replaced.extend(others.map(|dot| (key.clone(), *dot)));
        if let Some(new) = &new {
            event.wrote.insert(key.clone(), new.clone());
        }
        let existing = get(memory, self.root, key).unwrap();
        let edits = Edits::from([(
            key.clone(),
            Versions::replace(existing.as_ref(), &seen, new),
        )]);
        self.root = memory.apply(self.root, &edits);
    }
    pub(super) fn take(&mut self, memory: &Memory, other: &State) {
        (self.root, self.context) = join(memory, &self.state(), other);
    }
}

pub(super) fn join(memory: &Memory, ours: &State, theirs: &State) -> State {
    let merged = merge(memory, (ours.0, &ours.1), (theirs.0, &theirs.1)).unwrap();
    memory.keep(merged.nodes);
    (merged.root, merged.context)
}

/// Everything in a tree.
pub(super) fn content(memory: &Memory, root: NodeHash) -> BTreeMap<Key, Versions> {
    let rows = scan(memory, root, vec![0]..vec![0xff], usize::MAX).unwrap();
    rows.into_iter().collect()
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Commit(usize, Vec<Edit>),
    /// The first takes the second's state.
    Exchange(usize, usize),
    /// The first takes a state that somebody had earlier.
    Replay(usize, prop::sample::Index),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let at = || prop::sample::select(&WORLD[..]);
    let folder = || prop::sample::select(&["", "a", "a/x", "b/x"][..]);
    let content = || 0_u64..5;
    prop_oneof![
        6 => (at(), content()).prop_map(|(at, content)| Edit::Write(at, content)),
        2 => at().prop_map(Edit::Directory),
        4 => at().prop_map(Edit::Remove),
        1 => (folder(), content()).prop_map(|(folder, content)| Edit::WriteCopy(folder, content)),
        1 => folder().prop_map(Edit::RemoveCopy),
    ]
}

fn any_act(replicas: usize) -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..replicas, prop::collection::vec(any_edit(), 1..6))
            .prop_map(|(who, edits)| Act::Commit(who, edits)),
        2 => (0..replicas, 0..replicas).prop_map(|(to, from)| Act::Exchange(to, from)),
        1 => (0..replicas, any::<prop::sample::Index>()).prop_map(|(to, at)| Act::Replay(to, at)),
    ]
}

/// Some members, and what happens to them.
pub(super) fn any_history(
    replicas: std::ops::RangeInclusive<usize>,
    acts: usize,
) -> impl Strategy<Value = (usize, Vec<Act>)> {
    replicas.prop_flat_map(move |replicas| {
        (
            Just(replicas),
            prop::collection::vec(any_act(replicas), 1..acts),
        )
    })
}

/// What a history has come to.
pub(super) struct Lived {
    pub(super) replicas: Vec<Replica>,
    /// Every state that somebody had.
    pub(super) past: Vec<State>,
    pub(super) oracle: Oracle,
}

pub(super) fn live(memory: &Memory, count: usize, acts: &[Act]) -> Lived {
    let mut replicas: Vec<_> = (1..=count as u64).map(Replica::new).collect();
    let mut past = vec![replicas[0].state()];
    let mut oracle = Oracle::default();
    for (index, act) in acts.iter().enumerate() {
        // Clocks that differ, and run together at times.
        let time = |who: usize| (index / 2 * 3 + who) as u64;
        let who = match act {
            Act::Commit(who, edits) => {
                replicas[*who].commit(memory, &mut oracle, time(*who), edits);
                who
            }
            Act::Exchange(to, from) => {
                let from = replicas[*from].state();
                replicas[*to].take(memory, &from);
                to
            }
            Act::Replay(to, at) => {
                replicas[*to].take(memory, &past[at.index(past.len())]);
                to
            }
        };
        past.push(replicas[*who].state());
    }
    Lived {
        replicas,
        past,
        oracle,
    }
}
