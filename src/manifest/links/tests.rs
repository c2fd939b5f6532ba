use proptest::prelude::*;

use super::*;
use crate::{
    content::{ContentId, Object},
    manifest::{
        CausalContext, HybridTime, Timestamp, WriterNumber, apply, complete_moves, conflict_at,
        empty_root, lookup, merge, move_hint, summary, tree::testing::Memory,
    },
};

const PATHS: [&str; 6] = ["a", "b", "c", "d/a", "d/b", "e"];
const FILE: FileId = [9; 16];

fn at(path: &str) -> TreePath {
    TreePath::parse(path.as_bytes()).unwrap()
}

fn file(content: u64) -> Entry {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&content.to_le_bytes());
    let object = Object {
        content: ContentId(id),
        size: content,
    };
    Entry::new(Kind::File(object), 0o644, 0, 0, Timestamp(1))
}

fn content(entry: &Entry) -> Option<u64> {
    match &entry.kind {
        Kind::File(object) => Some(object.size),
        _ => None,
    }
}

/// What is put with a name of a file that has several: its record as it is seen.
fn record_of(name: &TreePath, shown: &Shown) -> Vec<Put> {
    let copy = shown.record_copy(name).into_iter();
    let seen = shown.link.as_ref().map(|link| link.seen.clone());
    let seen = seen.unwrap_or_default();
    copy.map(|(record, moved)| (record, Some(shown.entry.clone()), seen.clone(), Some(moved)))
        .collect()
}

/// A replica that changes names as the filesystem does.
struct Replica {
    writer: u64,
    sequence: u64,
    root: NodeHash,
    covers: CausalContext,
}

/// Entries in place of what was seen, `None` to remove, and where a rename brings an entry from.
type Put = (TreePath, Option<Entry>, Vec<Dot>, Option<Moved>);

fn put(path: TreePath, entry: Option<Entry>, seen: Vec<Dot>) -> Put {
    (path, entry, seen, None)
}

/// What was changed and is in no state so far, with the paths of a rename.
type Waiting = (Vec<Put>, Option<(TreePath, TreePath)>);

struct World {
    memory: Memory,
    replicas: Vec<Replica>,
    /// What each has still to commit, on what it has merged by then.
    waiting: Vec<Option<Waiting>>,
    /// Whether changes wait from now on.
    holds: bool,
    clock: u64,
    /// Contents that somebody saw and overwrote or removed.
    removed: BTreeSet<u64>,
    written: BTreeSet<u64>,
}

impl World {
    fn new(replicas: u64) -> Self {
        let memory = Memory::default();
        let replicas = (1..=replicas).map(|writer| Replica {
            writer,
            sequence: 0,
            root: empty_root(),
            covers: CausalContext::default(),
        });
        let replicas: Vec<_> = replicas.collect();
        Self {
            waiting: replicas.iter().map(|_| None).collect(),
            holds: false,
            replicas,
            memory,
            clock: 0,
            removed: BTreeSet::new(),
            written: BTreeSet::new(),
        }
    }

    fn view(&self, at: usize) -> View {
        View::of(self.replicas[at].root)
    }

    fn shown(&self, by: usize, path: &TreePath) -> Option<Shown> {
        let view = self.view(by);
        let name = lookup(&self.memory, &view, path).unwrap()?;
        Some(resolve(&self.memory, &view, name).unwrap())
    }

    fn commit(&mut self, by: usize, edits: Vec<Put>) {
        self.commit_renamed(by, edits, None);
    }

    /// The same, where it renames something.
    fn commit_renamed(
        &mut self,
        by: usize,
        edits: Vec<Put>,
        renamed: Option<(TreePath, TreePath)>,
    ) {
        match self.holds {
            true => self.waiting[by] = Some((edits, renamed)),
            false => self.commit_now(by, edits, renamed),
        }
    }

    /// Commits what waits: before anything else is changed there.
    fn release(&mut self, by: usize) {
        if let Some((edits, renamed)) = self.waiting[by].take() {
            self.commit_now(by, edits, renamed);
        }
    }

    fn commit_now(&mut self, by: usize, edits: Vec<Put>, renamed: Option<(TreePath, TreePath)>) {
        let before = self.places(by);
        let replica = &mut self.replicas[by];
        replica.sequence += 1;
        let dot = Dot {
            writer: WriterNumber(replica.writer),
            sequence: replica.sequence,
        };
        let root = replica.root;
        let mut new = Edits::new();
        for (path, entry, mut seen, moved) in edits {
            self.clock += 1;
            let key = Key::of_path(&path).unwrap();
            let there = match new.get(&key) {
                Some(there) => Option::clone(there),
                None => get(&self.memory, root, &key).unwrap(),
            };
            if path.record().is_some() {
                let copies = list(there.as_ref()).iter().filter(|copy| {
                    let copied = copy.moved.as_ref();
                    copied.is_some_and(|copied| copied.dots().iter().all(|dot| seen.contains(dot)))
                });
                let copies: Vec<_> = copies.map(|copy| copy.dot).collect();
                seen.extend(copies);
            }
            let version = entry.map(|entry| Version {
                dot,
                time: HybridTime(self.clock),
                entry,
                moved,
            });
            new.insert(key, Versions::replace(there.as_ref(), &seen, version));
        }
        complete_links(&self.memory, root, &mut new, BTreeSet::new(), &[], dot).unwrap();
        if let Some((from, to)) = &renamed {
            let (key, entry) = move_hint(from, to, &self.replicas[by].covers).unwrap();
            let there = get(&self.memory, root, &key).unwrap();
            let seen: Vec<_> = list(there.as_ref()).iter().map(|one| one.dot).collect();
            let hint = Version {
                dot,
                time: HybridTime(self.clock),
                entry,
                moved: None,
            };
            new.insert(key, Versions::replace(there.as_ref(), &seen, Some(hint)));
        }
        let applied = apply(&self.memory, root, &new).unwrap();
        self.memory.keep(applied.nodes);
        let replica = &mut self.replicas[by];
        replica.root = applied.root;
        replica.covers.add(dot);
        let after = self.places(by);
        // Somebody else may remove it from the other places.
        let fewer = before
            .iter()
            .filter(|(content, places)| after.get(content).is_none_or(|left| left < places));
        self.removed.extend(fewer.map(|(content, _)| *content));
        self.check(by);
    }

    fn put(&mut self, by: usize, path: &str, written: u64) {
        self.release(by);
        let path = at(path);
        self.written.insert(written);
        let shown = self.shown(by, &path);
        let edits = match shown.map(|shown| (shown.link, shown.seen)) {
            Some((Some(link), seen)) => vec![
                put(
                    TreePath::of_record(&link.file),
                    Some(file(written)),
                    link.seen,
                ),
                put(path, Some(Entry::link(link.file)), seen),
            ],
            Some((None, seen)) => vec![put(path, Some(file(written)), seen)],
            None => vec![put(path, Some(file(written)), Vec::new())],
        };
        self.commit(by, edits);
    }

    fn link(&mut self, by: usize, from: &str, to: &str) {
        self.release(by);
        let (from, to) = (at(from), at(to));
        let (Some(shown), None) = (self.shown(by, &from), self.shown(by, &to)) else {
            return;
        };
        let id = match &shown.link {
            Some(link) => link.file,
            None => {
                let mut id = FileId::default();
                id[..8].copy_from_slice(&self.clock.to_le_bytes());
                id
            }
        };
        let mut edits = record_of(&from, &shown);
        if shown.link.is_none() {
            let record = TreePath::of_record(&id);
            edits.push(put(record, Some(shown.entry), Vec::new()));
            edits.push(put(from, Some(Entry::link(id)), shown.seen));
        }
        edits.push(put(to, Some(Entry::link(id)), Vec::new()));
        self.commit(by, edits);
    }

    /// What becomes of the last name that is left, where one of several goes.
    fn without_name(&mut self, by: usize, path: &TreePath, shown: &Shown) -> Vec<Put> {
        let Some(link) = &shown.link else {
            return Vec::new();
        };
        let mut others = names(&self.memory, &self.view(by), &link.file).unwrap();
        others.retain(|other| other != path);
        if let [only] = others.as_slice()
            && let Some(last) = self.shown(by, only)
            && last.is_of(Some(link.file))
        {
            return vec![put(only.clone(), Some(shown.entry.clone()), last.seen)];
        }
        // Others may remove the others.
        self.removed.extend(content(&shown.entry));
        Vec::new()
    }

    fn unlink(&mut self, by: usize, path: &str) {
        self.release(by);
        let path = at(path);
        let Some(shown) = self.shown(by, &path) else {
            return;
        };
        let mut edits = self.without_name(by, &path, &shown);
        edits.push(put(path, None, shown.seen));
        self.commit(by, edits);
    }

    fn rename(&mut self, by: usize, from: &str, to: &str) {
        self.release(by);
        let (from, to) = (at(from), at(to));
        let Some(shown) = self.shown(by, &from) else {
            return;
        };
        let over = self.shown(by, &to);
        let file_of = |shown: &Shown| shown.link.as_ref().map(|link| link.file);
        let is_same = |over: &Shown| file_of(over).is_some() && over.is_of(file_of(&shown));
        if from == to || over.as_ref().is_some_and(is_same) {
            return;
        }
        let mut edits = record_of(&from, &shown);
        let mut seen = Vec::new();
        if let Some(over) = over {
            edits.extend(self.without_name(by, &to, &over));
            seen = over.seen;
        }
        let moved = Moved::new(from.clone(), &shown.seen);
        edits.push((to.clone(), Some(shown.own_entry()), seen, moved));
        edits.push(put(from.clone(), None, shown.seen));
        self.commit_renamed(by, edits, Some((from, to)));
    }

    fn chmod(&mut self, by: usize, path: &str, mode: u32) {
        let path = at(path);
        let shown = self.shown(by, &path).unwrap();
        let link = shown.link.unwrap();
        let entry = Entry {
            mode,
            ..shown.entry
        };
        let edits = vec![
            put(TreePath::of_record(&link.file), Some(entry), link.seen),
            put(path, Some(Entry::link(link.file)), shown.seen),
        ];
        self.commit(by, edits);
    }

    /// Changes the record alone, which the third rule forbids.
    fn write_record(&mut self, by: usize, path: &str, written: u64) {
        let link = self.shown(by, &at(path)).unwrap().link.unwrap();
        let record = TreePath::of_record(&link.file);
        self.commit(by, vec![put(record, Some(file(written)), link.seen)]);
    }

    fn record(&self, by: usize, path: &str) -> Vec<Version> {
        let file = self.shown(by, &at(path)).unwrap().link.unwrap().file;
        let key = Key::of_internal(&InternalKey::File(file));
        let record = get(&self.memory, self.replicas[by].root, &key).unwrap();
        record.unwrap().as_slice().to_vec()
    }

    fn conflicts(&self, by: usize) -> u64 {
        let summary = summary(&self.memory, self.replicas[by].root);
        summary.unwrap().conflicts
    }

    fn paths(&self, by: usize) -> Vec<TreePath> {
        let rows = self.rows(by).into_iter();
        rows.filter_map(|(key, _)| key.path()).collect()
    }

    /// One takes over what the other has.
    fn sync(&mut self, by: usize, from: usize) {
        self.merge(by, from);
        self.check(by);
    }

    fn merge(&mut self, by: usize, from: usize) {
        let visible = self.visible(by).into_iter().chain(self.visible(from));
        let visible: BTreeSet<_> = visible.collect();
        let theirs = (self.replicas[from].root, self.replicas[from].covers.clone());
        let ours = (self.replicas[by].root, self.replicas[by].covers.clone());
        let merged = merge(&self.memory, (ours.0, &ours.1), (theirs.0, &theirs.1)).unwrap();
        self.memory.keep(merged.nodes);
        let replica = &mut self.replicas[by];
        let dot = Dot {
            writer: WriterNumber(replica.writer),
            sequence: replica.sequence + 1,
        };
        replica.covers = merged.context;
        let mut edits = complete_moves(
            &self.memory,
            merged.root,
            (ours.0, &ours.1),
            (theirs.0, &theirs.1),
            &merged.changes,
            dot,
        )
        .unwrap();
        let contested = contested_files(&merged.changes);
        let sides = [(ours.0, &ours.1), (theirs.0, &theirs.1)];
        complete_links(
            &self.memory,
            merged.root,
            &mut edits,
            contested,
            &sides,
            dot,
        )
        .unwrap();
        replica.root = merged.root;
        if !edits.is_empty() {
            let applied = apply(&self.memory, merged.root, &edits).unwrap();
            self.memory.keep(applied.nodes);
            replica.root = applied.root;
            replica.sequence += 1;
            replica.covers.add(dot);
        }
        let left = self.visible(by);
        for lost in visible.difference(&left) {
            assert!(self.removed.contains(lost), "{lost} is lost by a merge");
        }
    }

    /// All contents that are shown, under names or as copies.
    fn visible(&self, at: usize) -> BTreeSet<u64> {
        let mut visible = BTreeSet::new();
        for (key, versions) in self.rows(at) {
            if key.path().is_none() {
                continue;
            }
            for version in versions.as_slice() {
                match linked(version) {
                    None => visible.extend(content(&version.entry)),
                    Some(id) => {
                        let record = Key::of_internal(&InternalKey::File(id));
                        let record = get(&self.memory, self.replicas[at].root, &record).unwrap();
                        let record = record.expect("each name has its record");
                        visible.extend(
                            record
                                .as_slice()
                                .iter()
                                .filter_map(|one| content(&one.entry)),
                        );
                    }
                }
            }
        }
        visible
    }

    /// In how many places each content stands, as a file with one name or as one with several.
    fn places(&self, at: usize) -> BTreeMap<u64, usize> {
        let mut places = BTreeMap::new();
        for (key, versions) in self.rows(at) {
            let is_record = matches!(key.internal(), Some(InternalKey::File(_)));
            if key.path().is_some() || is_record {
                let contents = versions.as_slice().iter();
                for content in contents.filter_map(|version| content(&version.entry)) {
                    *places.entry(content).or_default() += 1;
                }
            }
        }
        places
    }

    fn rows(&self, at: usize) -> Vec<(Key, Versions)> {
        scan(
            &self.memory,
            self.replicas[at].root,
            Vec::new()..vec![255],
            usize::MAX,
        )
        .unwrap()
    }

    /// The rules hold.
    fn check(&self, at: usize) {
        let rows: BTreeMap<_, _> = self.rows(at).into_iter().collect();
        let mut expected = BTreeMap::new();
        for (key, versions) in &rows {
            if let Some(path) = key.path() {
                for id in versions.as_slice().iter().filter_map(linked) {
                    let key = Key::of_internal(&InternalKey::Name(id, path.clone()));
                    expected.insert(key, row(Some(versions), &id).unwrap());
                }
            }
        }
        let index = rows.iter().filter(|(key, _)| named_by(key).is_some());
        let index: BTreeMap<_, _> = index.map(|(key, row)| (key.clone(), row.clone())).collect();
        assert_eq!(index, expected, "the index is what the names are");
        for (key, versions) in &rows {
            if let Some(InternalKey::File(id)) = key.internal() {
                assert!(
                    !names(&self.memory, &self.view(at), &id).unwrap().is_empty(),
                    "no record without a name"
                );
                assert_eq!(groups(versions).len(), 1, "what was contested is set aside");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    Link(usize, usize, usize),
    Unlink(usize, usize),
    Rename(usize, usize, usize),
    Sync(usize, usize),
    /// Whether changes wait from now on.
    Hold(bool),
    Release(usize),
}

fn step(paths: usize) -> impl Strategy<Value = Step> {
    let (by, path) = (|| 0..3usize, move || 0..paths);
    prop_oneof![
        3 => (by(), path()).prop_map(|(r, p)| Step::Put(r, p)),
        4 => (by(), path(), path()).prop_map(|(r, a, b)| Step::Link(r, a, b)),
        2 => (by(), path()).prop_map(|(r, p)| Step::Unlink(r, p)),
        1 => (by(), path(), path()).prop_map(|(r, a, b)| Step::Rename(r, a, b)),
        4 => (by(), by()).prop_map(|(a, b)| Step::Sync(a, b)),
        1 => any::<bool>().prop_map(Step::Hold),
        1 => by().prop_map(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_meets_each_name_has_its_record_and_no_content_is_lost(
        steps in prop_oneof![Just(2), Just(PATHS.len())]
            .prop_flat_map(|paths| proptest::collection::vec(step(paths), 1..40)),
    ) {
        let mut world = World::new(3);
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Put(by, path) => world.put(by, PATHS[path], number),
                Step::Link(by, from, to) => world.link(by, PATHS[from], PATHS[to]),
                Step::Unlink(by, path) => world.unlink(by, PATHS[path]),
                Step::Rename(by, from, to) => world.rename(by, PATHS[from], PATHS[to]),
                Step::Sync(by, from) if by != from => world.sync(by, from),
                Step::Sync(..) => {}
                Step::Hold(holds) => world.holds = holds,
                Step::Release(by) => world.release(by),
            }
        }
        (0..3).for_each(|by| world.release(by));
        // Each takes over the others' until nothing is new.
        for _ in 0..3 {
            for (by, from) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
                world.sync(by, from);
            }
        }
        prop_assert_eq!(world.replicas[0].root, world.replicas[1].root);
        prop_assert_eq!(world.replicas[0].root, world.replicas[2].root);
        let left = world.visible(0);
        for written in world.written.difference(&world.removed) {
            prop_assert!(left.contains(written), "{} is lost", written);
        }
    }
}

#[test]
fn a_write_through_one_name_is_seen_through_all_of_them() {
    let mut world = World::new(2);
    world.put(0, "a", 5);
    world.link(0, "a", "d/b");
    world.sync(1, 0);
    world.put(1, "d/b", 6);
    world.sync(0, 1);
    for path in ["a", "d/b"] {
        let shown = world.shown(0, &at(path)).unwrap();
        assert_eq!(content(&shown.entry), Some(6));
    }
}

#[test]
fn the_last_name_is_a_plain_file_again() {
    let mut world = World::new(1);
    world.put(0, "a", 5);
    world.link(0, "a", "b");
    world.link(0, "b", "c");
    world.unlink(0, "a");
    assert!(world.shown(0, &at("c")).unwrap().link.is_some());
    world.unlink(0, "b");
    let rows = world.rows(0);
    assert_eq!(rows.len(), 1);
    assert_eq!(content(&rows[0].1.as_slice()[0].entry), Some(5));
}

#[test]
fn a_file_that_was_changed_through_two_names_at_once_is_kept_in_both_versions() {
    let mut world = World::new(2);
    world.put(0, "a.txt", 5);
    world.link(0, "a.txt", "b");
    world.sync(1, 0);
    world.put(0, "a.txt", 6);
    world.put(1, "b", 7);
    world.sync(0, 1);
    world.sync(1, 0);
    assert_eq!(world.replicas[0].root, world.replicas[1].root);
    for path in ["a.txt", "b"] {
        assert_eq!(content(&world.shown(0, &at(path)).unwrap().entry), Some(7));
    }
    // By the name of who wrote it, whoever has merged the two.
    let copy = at("a (conflict, 0000000000000001, 1970-01-01 00.00.00).txt");
    assert_eq!(content(&world.shown(0, &copy).unwrap().entry), Some(6));
    let root = world.replicas[0].root;
    assert_eq!(summary(&world.memory, root).unwrap().conflicts, 1);
    let conflict = conflict_at(&world.memory, &View::of(root), &at("a.txt"));
    let conflict = conflict.unwrap().unwrap();
    let told = conflict.versions().map(|version| {
        let content = content(&version.shown.entry);
        (content, version.writer, version.path.clone())
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (Some(7), Some(WriterNumber(2)), Some(at("a.txt"))),
            (Some(6), Some(WriterNumber(1)), Some(copy.clone())),
        ]
    );
    // Written to, it is a file like any other, and the conflict has ended.
    let shown = world.shown(0, &copy).unwrap();
    let row = at("a.txt");
    world.commit(
        0,
        vec![
            put(row, None, shown.seen),
            put(copy.clone(), Some(file(8)), Vec::new()),
        ],
    );
    assert_eq!(world.conflicts(0), 0);
    assert_eq!(content(&world.shown(0, &copy).unwrap().entry), Some(8));
    assert!(world.shown(0, &at("a.txt")).unwrap().link.is_some());
}

#[test]
fn a_name_given_or_renamed_undoes_no_change_made_at_the_same_time() {
    for given in [false, true] {
        for mode in [false, true] {
            let mut world = World::new(2);
            world.put(0, "a", 5);
            world.link(0, "a", "b");
            world.sync(1, 0);
            match mode {
                true => world.chmod(0, "a", 0o600),
                false => world.put(0, "a", 6),
            }
            match given {
                true => world.link(1, "b", "c"),
                false => world.rename(1, "b", "c"),
            }
            // Seen together, and merged.
            let view = View::new(
                world
                    .replicas
                    .iter()
                    .map(|one| (one.root, one.covers.clone())),
            );
            let together = lookup(&world.memory, &view, &at("c")).unwrap().unwrap();
            let together = resolve(&world.memory, &view, together).unwrap();
            world.sync(0, 1);
            world.sync(1, 0);
            assert_eq!(world.replicas[0].root, world.replicas[1].root);
            let expected = match mode {
                true => (Some(5), 0o600),
                false => (Some(6), 0o644),
            };
            let told = |shown: &Shown| (content(&shown.entry), shown.entry.mode);
            assert_eq!(told(&together), expected, "{given} {mode}");
            for path in ["a", "c"] {
                let shown = world.shown(1, &at(path)).unwrap();
                assert_eq!(told(&shown), expected, "{given} {mode} {path}");
            }
            assert_eq!(world.conflicts(0), 0, "{given} {mode}");
            assert_eq!(world.paths(0).len(), if given { 3 } else { 2 });
        }
    }
}

#[test]
fn the_record_goes_with_the_last_name_though_three_have_removed_one_each() {
    let mut world = World::new(3);
    world.put(0, "a", 5);
    world.link(0, "a", "b");
    world.link(0, "a", "c");
    world.sync(1, 0);
    world.sync(2, 0);
    for (by, path) in [(0, "a"), (1, "b"), (2, "c")] {
        world.unlink(by, path);
    }
    world.sync(0, 1);
    world.sync(0, 2);
    assert_eq!(world.rows(0), []);
}

#[test]
fn a_version_for_which_no_name_is_short_enough_stays_with_the_file() {
    let mut world = World::new(2);
    let long = |last: &str| [&vec!["x".repeat(250); 16].join("/"), "/", &last.repeat(75)].concat();
    let (a, b) = (long("a"), long("b"));
    world.put(0, &a, 5);
    world.link(0, &a, &b);
    world.sync(1, 0);
    // Put before it was written, so that no name can show it beside the file.
    world.write_record(0, &a, 6);
    world.write_record(1, &b, 7);
    world.merge(0, 1);
    let record = world.record(0, &a);
    let mut kept: Vec<_> = record
        .iter()
        .filter_map(|one| content(&one.entry))
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, [6, 7]);
    assert_eq!(content(&world.shown(0, &at(&a)).unwrap().entry), Some(7));
}

#[test]
fn a_name_that_is_given_while_the_others_are_removed_keeps_the_file() {
    let mut world = World::new(2);
    world.put(0, "a", 5);
    world.link(0, "a", "b");
    world.sync(1, 0);
    world.unlink(0, "a");
    world.unlink(0, "b");
    world.link(1, "a", "c");
    world.sync(0, 1);
    world.sync(1, 0);
    assert_eq!(content(&world.shown(0, &at("c")).unwrap().entry), Some(5));
}

#[test]
fn a_name_that_is_given_or_renamed_before_all_names_are_removed_and_committed_after_keeps_the_file()
{
    for is_renamed in [true, false] {
        let mut world = World::new(3);
        world.put(0, "a", 5);
        world.link(0, "a", "b");
        world.sync(1, 0);
        world.sync(2, 0);
        world.holds = true;
        match is_renamed {
            true => world.rename(0, "a", "c"),
            false => world.link(0, "a", "c"),
        }
        world.holds = false;
        world.unlink(1, "a");
        world.unlink(1, "b");
        world.put(2, "e", 6);
        world.sync(2, 1);
        world.sync(0, 2);
        world.release(0);
        world.sync(1, 0);
        world.sync(2, 1);
        for by in 0..3 {
            let shown = world.shown(by, &at("c")).unwrap();
            assert_eq!(content(&shown.entry), Some(5), "{by}");
        }
        // What is left is removed like any.
        world.unlink(2, "c");
        assert_eq!(world.paths(2), [at("e")]);
    }
}

#[test]
fn a_name_that_is_given_or_renamed_before_a_change_and_committed_after_undoes_nothing() {
    for is_renamed in [true, false] {
        let mut world = World::new(2);
        world.put(0, "a", 5);
        world.link(0, "a", "b");
        world.sync(1, 0);
        world.holds = true;
        match is_renamed {
            true => world.rename(0, "a", "c"),
            false => world.link(0, "a", "c"),
        }
        world.holds = false;
        world.put(1, "b", 6);
        world.sync(0, 1);
        world.release(0);
        world.sync(1, 0);
        for path in ["b", "c"] {
            let shown = world.shown(1, &at(path)).unwrap();
            assert_eq!(content(&shown.entry), Some(6), "{path}");
        }
        assert_eq!(world.conflicts(1), 0);
    }
}

#[test]
fn a_record_goes_with_the_names_though_it_was_put_anew_while_they_were_removed() {
    let mut world = World::new(2);
    world.put(1, "b", 5);
    world.link(1, "b", "a");
    world.sync(0, 1);
    world.put(0, "a", 6);
    world.put(1, "a", 7);
    world.holds = true;
    world.unlink(1, "a");
    world.unlink(0, "a");
    // Of two changes of the record one is put anew, and no name with it.
    world.sync(1, 0);
    (0..2).for_each(|by| world.release(by));
    for (by, from) in [(0, 1), (1, 0), (0, 1)] {
        world.sync(by, from);
    }
    assert_eq!(world.replicas[0].root, world.replicas[1].root);
}

#[test]
fn the_stand_in_of_a_record_is_read_back_and_is_no_path() {
    let place = TreePath::of_record(&FILE);
    assert_eq!(place.record(), Some(FILE));
    assert_eq!(TreePath::restore(&place.to_bytes()), Ok(place.clone()));
    let key = Key::of_path(&place).unwrap();
    assert_eq!(key.internal(), Some(InternalKey::File(FILE)));
    assert_eq!(at("a").record(), None);
    assert!(TreePath::restore(b"\0zz").is_err());
}
