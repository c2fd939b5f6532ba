use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::manifest::{
    Shown, View, children, empty_root,
    histories::{State, content},
    lookup, merge,
    tree::testing::{Edits, Memory, directory, dot, file, path, version},
};

/// Everything that a test's members share: nodes, time, and which content was replaced or removed by somebody who saw it.
#[derive(Default)]
struct World {
    memory: Memory,
    time: Cell<u64>,
}

/// A writer: every change is a head of its own, and merges complete moves.
#[derive(Clone, Debug)]
struct Member {
    writer: u64,
    sequence: u64,
    state: State,
}

impl Member {
    fn new(writer: u64, state: &State) -> Self {
        Self {
            writer,
            sequence: 0,
            state: state.clone(),
        }
    }
    fn head(&mut self, world: &World, edits: &Edits) {
        let dot = self.next_dot();
        self.sequence = dot.sequence;
        self.state.0 = world.memory.apply(self.state.0, edits);
        self.state.1.add(dot);
    }
    fn next_dot(&self) -> Dot {
        dot(self.writer, self.sequence + 1)
    }
    fn shown(&self, world: &World, at: &TreePath) -> Option<Shown> {
        lookup(&world.memory, &View::of(self.state.0), at).unwrap()
    }
    fn versions(&self, world: &World, key: &Key) -> Option<Versions> {
        get(&world.memory, self.state.0, key).unwrap()
    }
    fn tick(world: &World) -> u64 {
        world.time.set(world.time.get() + 1);
        world.time.get()
    }
    fn write(&mut self, world: &World, at: &str, entry: Entry) {
        let key = Key::of_path(&path(at)).unwrap();
        let seen = self
            .shown(world, &path(at))
            .map_or(Vec::new(), |shown| shown.seen);
        let dot = self.next_dot();
        let new = version(self.writer, dot.sequence, Self::tick(world), entry);
        let versions = Versions::replace(self.versions(world, &key).as_ref(), &seen, Some(new));
        self.head(world, &Edits::from([(key, versions)]));
    }
    /// What is shown under a path and all below it, without conflict copies.
    fn tree(&self, world: &World, at: &TreePath) -> Vec<(TreePath, Shown)> {
        let mut found = Vec::new();
        let rows = Key::below(at).map(|range| scan(&world.memory, self.state.0, range, 999));
        let below = rows.into_iter().flat_map(Result::unwrap);
        let paths = below.filter_map(|(key, _)| key.path());
        for at in paths.chain([at.clone()]) {
            if let Some(shown) = self
                .shown(world, &at)
                .filter(|shown| !shown.seen.is_empty())
            {
                found.push((at, shown));
            }
        }
        found
    }
    fn remove(&mut self, world: &World, at: &str) {
        let edits = self.tree(world, &path(at)).into_iter().map(|(at, shown)| {
            let key = Key::of_path(&at).unwrap();
            let left = Versions::replace(self.versions(world, &key).as_ref(), &shown.seen, None);
            (key, left)
        });
        let edits = edits.collect();
        self.head(world, &edits);
    }
    /// As the planner of renames does it: all in one head, with a hint.
    fn rename(&mut self, world: &World, from: &str, to: &str) {
        let (from, to) = (path(from), path(to));
        if to.is_within(&from) || from.is_within(&to) {
            return;
        }
        let dot = self.next_dot();
        let moved = self.tree(world, &from);
        if moved.is_empty() {
            return;
        }
        let mut edits = Edits::new();
        for (old, shown) in self.tree(world, &to) {
            let key = Key::of_path(&old).unwrap();
            let left = Versions::replace(self.versions(world, &key).as_ref(), &shown.seen, None);
            edits.insert(key, left);
        }
        for (old, shown) in moved {
            let new = old.moved(&from, &to).unwrap().unwrap();
            let [old_key, new_key] = [&old, &new].map(|at| Key::of_path(at).unwrap());
            let there = edits.get(&new_key).cloned();
            let there = there.unwrap_or_else(|| self.versions(world, &new_key));
            let copy = Version {
                moved: Moved::new(old, &shown.seen),
                ..version(self.writer, dot.sequence, shown.time.0, shown.entry)
            };
            edits.insert(new_key, Versions::replace(there.as_ref(), &[], Some(copy)));
            let left =
                Versions::replace(self.versions(world, &old_key).as_ref(), &shown.seen, None);
            edits.insert(old_key, left);
        }
        let (key, entry) = move_hint(&from, &to, &self.state.1).unwrap();
        let old = self.versions(world, &key);
        let seen: Vec<_> = list(old.as_ref()).iter().map(|hint| hint.dot).collect();
        let hint = version(self.writer, dot.sequence, Self::tick(world), entry);
        edits.insert(key, Versions::replace(old.as_ref(), &seen, Some(hint)));
        self.head(world, &edits);
    }
    /// Merges, and completes moves in a head of its own. Returns whether there were any.
    fn take(&mut self, world: &World, other: &State) -> bool {
        let (ours, theirs) = ((self.state.0, &self.state.1), (other.0, &other.1));
        let merged = merge(&world.memory, ours, theirs).unwrap();
        world.memory.keep(merged.nodes);
        let edits = complete_moves(
            &world.memory,
            merged.root,
            ours,
            theirs,
            &merged.changes,
            self.next_dot(),
        )
        .unwrap();
        self.state = (merged.root, merged.context);
        if edits.is_empty() {
            return false;
        }
        self.head(world, &edits);
        true
    }
    /// Names of all files, with contents; conflict copies by their names.
    fn files(&self, world: &World) -> Vec<(String, Kind)> {
        let mut found = Vec::new();
        let mut folders = vec![TreePath::root()];
        while let Some(folder) = folders.pop() {
            let listed = children(&world.memory, &View::of(self.state.0), &folder).unwrap();
            for (name, shown) in listed {
                let at = folder.join(&name).unwrap();
                if shown.entry.kind == Kind::Directory {
                    folders.push(at);
                } else {
                    found.push((without_writer(&at.to_string()), shown.entry.kind));
                }
            }
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }
}

/// The name of a conflict copy has the number of its writer in it: of one of those who completed a move.
fn without_writer(name: &str) -> String {
    match name.split_once("(conflict, ") {
        Some((stem, rest)) => format!("{stem}(conflict, {}", &rest[16..]),
        None => name.to_owned(),
    }
}

/// Two writers that have what `base` makes, change it apart from each other, and meet at two others, who complete on their
/// own and then meet as well.
fn apart(
    base: impl Fn(&World, &mut Member),
    one: impl Fn(&World, &mut Member),
    other: impl Fn(&World, &mut Member),
) -> Vec<(String, Kind)> {
    let world = World::default();
    let nothing = (empty_root(), CausalContext::default());
    let mut first = Member::new(9, &nothing);
    base(&world, &mut first);
    let [mut a, mut b] = [1, 2].map(|writer| Member::new(writer, &first.state));
    one(&world, &mut a);
    other(&world, &mut b);
    let mut thirds = [(3, [&a, &b]), (4, [&b, &a])].map(|(writer, order)| {
        let mut third = Member::new(writer, &first.state);
        for member in order {
            third.take(&world, &member.state);
        }
        third
    });
    let files = thirds[0].files(&world);
    assert_eq!(thirds[1].files(&world), files, "both complete alike");
    // The changers themselves come to the same.
    let (mut a, mut b) = (a, b);
    let (a_state, b_state) = (a.state.clone(), b.state.clone());
    a.take(&world, &b_state);
    b.take(&world, &a_state);
    assert_eq!(a.files(&world), files);
    assert_eq!(b.files(&world), files);
    // All meet: nothing more happens, and the folder is the same.
    let states = [a.state.clone(), b.state.clone(), thirds[0].state.clone()];
    for state in &states {
        assert!(!thirds[1].take(&world, state));
    }
    assert_eq!(thirds[1].files(&world), files);
    let last = thirds[1].state.clone();
    thirds[0].take(&world, &last);
    assert_eq!(thirds[0].state, last);
    files
}

fn expect(files: &[(String, Kind)], expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, content)| (format!("/{name}"), file(*content).kind))
        .collect();
    assert_eq!(files, expected);
}

fn base(world: &World, member: &mut Member) {
    member.write(world, "f", file(1));
    member.write(world, "d", directory());
    member.write(world, "d/x", file(2));
    member.write(world, "d/s/y", file(3));
}

#[test]
fn an_edit_follows_the_renamed_file() {
    let files = apart(
        base,
        |world, a| a.write(world, "f", file(11)),
        |world, b| b.rename(world, "f", "g"),
    );
    expect(&files, &[("d/s/y", 3), ("d/x", 2), ("g", 11)]);
}

#[test]
fn edits_and_new_files_follow_the_renamed_folder() {
    let files = apart(
        base,
        |world, a| {
            a.write(world, "d/x", file(12));
            a.write(world, "d/s/y", file(13));
            a.write(world, "d/new", file(14));
            a.write(world, "d/t/new", file(15));
        },
        |world, b| b.rename(world, "d", "e/d"),
    );
    expect(
        &files,
        &[
            ("e/d/new", 14),
            ("e/d/s/y", 13),
            ("e/d/t/new", 15),
            ("e/d/x", 12),
            ("f", 1),
        ],
    );
}

#[test]
fn a_file_made_under_the_old_name_by_who_knows_of_the_rename_stays() {
    let files = apart(
        base,
        |world, a| a.write(world, "other", file(10)),
        |world, b| {
            b.rename(world, "f", "g");
            b.write(world, "f", file(21));
            b.rename(world, "d", "e");
            b.write(world, "d/x", file(22));
        },
    );
    let expected = [
        ("d/x", 22),
        ("e/s/y", 3),
        ("e/x", 2),
        ("f", 21),
        ("g", 1),
        ("other", 10),
    ];
    expect(&files, &expected);
}

#[test]
fn an_edit_stays_where_the_old_name_is_in_use_again() {
    let files = apart(
        base,
        |world, a| a.write(world, "f", file(11)),
        |world, b| {
            b.rename(world, "f", "g");
            b.write(world, "f", file(21));
        },
    );
    let copy = "f (conflict, , 1970-01-01 00.00.00)";
    let shown = [("d/s/y", 3), ("d/x", 2), ("f", 21), (copy, 11), ("g", 1)];
    expect(&files, &shown);
}

/// Whether before the rename or after it: what the renaming side wrote stays beside the other edit.
#[test]
fn an_edit_on_the_renaming_side_is_never_lost() {
    let before = |world: &World, b: &mut Member| {
        b.write(world, "f", file(21));
        b.rename(world, "f", "g");
    };
    let after = |world: &World, b: &mut Member| {
        b.rename(world, "f", "g");
        b.write(world, "g", file(21));
    };
    for is_before in [true, false] {
        let change = |world: &World, b: &mut Member| match is_before {
            true => before(world, b),
            false => after(world, b),
        };
        let files = apart(base, |world, a| a.write(world, "f", file(11)), change);
        let contents: BTreeSet<_> = files
            .iter()
            .filter(|(name, _)| name.starts_with("/g"))
            .map(|(_, kind)| format!("{kind:?}"))
            .collect();
        let expected = [11, 21].map(|content| format!("{:?}", file(content).kind));
        assert_eq!(contents, BTreeSet::from(expected));
        assert_eq!(files.len(), 4);
    }
}

/// A file put over the copy in the renamed folder is not the rename's copy, whatever the dots say.
#[test]
fn what_was_moved_over_the_copy_is_not_taken_for_it() {
    let files = apart(
        |world, member| {
            base(world, member);
            member.write(world, "tmp", file(4));
        },
        |world, a| a.write(world, "d/x", file(12)),
        |world, b| {
            b.rename(world, "d", "e");
            b.rename(world, "tmp", "e/x");
        },
    );
    let contents: Vec<_> = files.iter().map(|(_, kind)| kind.clone()).collect();
    for content in [1, 3, 4, 12] {
        assert!(contents.contains(&file(content).kind), "{content}");
    }
    assert_eq!(files.len(), 4);
}

/// Both rename a log away and begin a new one: none takes the place of another.
#[test]
fn what_both_renamed_and_began_anew_is_all_there() {
    let files = apart(
        base,
        |world, a| {
            a.rename(world, "f", "f.a");
            a.write(world, "f", file(11));
        },
        |world, b| {
            b.rename(world, "f", "f.b");
            b.write(world, "f", file(21));
        },
    );
    for content in [1, 11, 21] {
        let there = files.iter().any(|(_, kind)| *kind == file(content).kind);
        assert!(there, "{content} in {files:?}");
    }
}

/// The copy that a version is moved beside is its own side's: that one was known when the version was written.
#[test]
fn a_copy_that_the_versions_side_made_itself_stays() {
    let files = apart(
        base,
        |world, a| {
            a.rename(world, "f", "g");
            a.write(world, "f", file(11));
        },
        |world, b| b.rename(world, "f", "g"),
    );
    for content in [1, 11] {
        let there = files.iter().any(|(_, kind)| *kind == file(content).kind);
        assert!(there, "{content} in {files:?}");
    }
}

#[test]
fn a_removal_beside_a_rename_is_left_as_it_falls() {
    let files = apart(
        base,
        |world, a| {
            a.remove(world, "f");
            a.remove(world, "d");
        },
        |world, b| {
            b.rename(world, "f", "g");
            b.rename(world, "d", "e");
        },
    );
    expect(&files, &[("e/s/y", 3), ("e/x", 2), ("g", 1)]);
}

#[test]
fn chains_are_followed() {
    let files = apart(
        base,
        |world, a| a.write(world, "d/new", file(14)),
        |world, b| {
            b.rename(world, "d", "e");
            b.rename(world, "e", "g/e");
        },
    );
    expect(
        &files,
        &[("f", 1), ("g/e/new", 14), ("g/e/s/y", 3), ("g/e/x", 2)],
    );
    // A folder in the folder first, then the folder itself.
    let files = apart(
        base,
        |world, a| a.write(world, "d/s/new", file(14)),
        |world, b| {
            b.rename(world, "d/s", "d/t");
            b.rename(world, "d", "e");
        },
    );
    expect(
        &files,
        &[("e/t/new", 14), ("e/t/y", 3), ("e/x", 2), ("f", 1)],
    );
}

#[test]
fn cycles_are_left_alone() {
    let files = apart(
        base,
        |world, a| a.write(world, "d/new", file(14)),
        |world, b| {
            b.rename(world, "d", "e");
            b.rename(world, "e", "d");
        },
    );
    expect(&files, &[("d/new", 14), ("d/s/y", 3), ("d/x", 2), ("f", 1)]);
}

#[test]
fn an_edit_that_comes_in_two_heads_follows_twice() {
    let world = World::default();
    let mut first = Member::new(9, &(empty_root(), CausalContext::default()));
    base(&world, &mut first);
    let [mut a, mut b, mut c] = [1, 2, 3].map(|writer| Member::new(writer, &first.state));
    b.rename(&world, "f", "g");
    c.take(&world, &b.state);
    for content in [11, 12, 13] {
        a.write(&world, "f", file(content));
        assert!(c.take(&world, &a.state));
        expect(
            &c.files(&world),
            &[("d/s/y", 3), ("d/x", 2), ("g", content)],
        );
    }
}

#[test]
fn a_hint_of_a_bad_path_moves_nothing() {
    // The new path of what is below would be too long.
    let world = World::default();
    let mut first = Member::new(9, &(empty_root(), CausalContext::default()));
    let deep = ["n".repeat(250).as_str(); 8].join("/");
    first.write(&world, "d/x", file(1));
    let [mut a, mut b] = [1, 2].map(|writer| Member::new(writer, &first.state));
    a.write(&world, &format!("d/{deep}/x"), file(2));
    b.rename(&world, "d", &format!("e/{deep}/{}", "n".repeat(200)));
    b.take(&world, &a.state);
    let files = b.files(&world);
    assert_eq!(files.len(), 2);
    assert!(files.iter().any(|(name, _)| name.starts_with("/d/n")));
    assert_eq!(
        move_hint(&TreePath::root(), &path("a"), &first.state.1),
        None
    );
    assert_eq!(
        move_hint(&path("a"), &TreePath::root(), &first.state.1),
        None
    );
}

#[test]
fn old_hints_are_removed() {
    let world = World::default();
    let mut member = Member::new(1, &(empty_root(), CausalContext::default()));
    base(&world, &mut member);
    member.rename(&world, "f", "g");
    let between = HybridTime(world.time.get() + 1);
    member.rename(&world, "d", "e");
    let hints = |member: &Member| {
        let all = content(&world.memory, member.state.0).into_keys();
        all.filter(|key| matches!(key.internal(), Some(InternalKey::Move(_))))
            .count()
    };
    assert_eq!(hints(&member), 2);
    let old =
        |before, limit| without_old_hints(&world.memory, member.state.0, before, limit).unwrap();
    assert_eq!(old(HybridTime(0), 9).len(), 0);
    assert_eq!(old(HybridTime(u64::MAX), 1).len(), 1);
    let edits = old(between, 9);
    member.head(&world, &edits);
    assert_eq!(hints(&member), 1);
}

/// Everything is named at once, and a completion reads what it needs and no more.
#[test]
fn completing_reads_hints_and_what_they_name() {
    let world = World::default();
    let mut first = Member::new(9, &(empty_root(), CausalContext::default()));
    let many = crate::manifest::tree::testing::many(5_000);
    first.state.1.add(dot(0x0123_4567_89ab_cdef, 7));
    first.head(&world, &many);
    let [mut a, mut b] = [1, 2].map(|writer| Member::new(writer, &first.state));
    a.write(&world, "folder 012/new", file(1));
    b.rename(&world, "folder 012", "elsewhere");
    for [ours, theirs] in [[&a, &b], [&b, &a]].map(|pair| pair.map(|member| &member.state)) {
        let (ours, theirs) = ((ours.0, &ours.1), (theirs.0, &theirs.1));
        let merged = merge(&world.memory, ours, theirs).unwrap();
        world.memory.keep(merged.nodes);
        world.memory.reads.set(0);
        let (edits, rounds, fetched) = world.memory.fetching(|memory| {
            complete_moves(
                memory,
                merged.root,
                ours,
                theirs,
                &merged.changes,
                dot(3, 1),
            )
        });
        assert_eq!(edits.len(), 2);
        assert!(rounds < 16 && fetched < 40, "{rounds} {fetched}");
    }
}

const NAMES: [&str; 7] = ["a", "a/x", "a/y", "b", "b/x", "c", "c/a/x"];

#[derive(Clone, Debug)]
enum Act {
    Write(usize, &'static str),
    Remove(usize, &'static str),
    Rename(usize, &'static str, &'static str),
    Exchange(usize, usize),
}

fn any_act(members: usize) -> impl Strategy<Value = Act> {
    let name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        4 => (0..members, name()).prop_map(|(who, at)| Act::Write(who, at)),
        1 => (0..members, name()).prop_map(|(who, at)| Act::Remove(who, at)),
        3 => (0..members, name(), name()).prop_map(|(who, from, to)| Act::Rename(who, from, to)),
        3 => (0..members, 0..members).prop_map(|(to, from)| Act::Exchange(to, from)),
    ]
}

/// The contents of files at and below a path as it is shown.
fn contents(world: &World, member: &Member, at: &str) -> Vec<Kind> {
    let tree = member.tree(world, &path(at)).into_iter();
    tree.map(|(_, shown)| shown.entry.kind)
        .filter(|kind| matches!(kind, Kind::File(_)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Over random histories with renames, edits, removals and exchanges: all come to one root in a few rounds, and every
    /// content is there unless somebody who was shown it removed it or wrote over it.
    #[test]
    fn all_converge_and_no_content_is_lost(
        (count, acts) in (2_usize..=5).prop_flat_map(|count| {
            (Just(count), prop::collection::vec(any_act(count), 1..30))
        }),
    ) {
        let world = World::default();
        let nothing = (empty_root(), CausalContext::default());
        let mut members: Vec<_> = (1..=count as u64).map(|writer| Member::new(writer, &nothing)).collect();
        let (mut written, mut given_up) = (Vec::new(), Vec::new());
        for act in &acts {
            match act {
                Act::Write(who, at) => {
                    let entry = file(written.len() as u64 + 1);
                    let old = members[*who].shown(&world, &path(at)).map(|shown| shown.entry.kind);
                    given_up.extend(old);
                    written.push(entry.kind.clone());
                    members[*who].write(&world, at, entry);
                }
                Act::Remove(who, at) => {
                    given_up.extend(contents(&world, &members[*who], at));
                    members[*who].remove(&world, at);
                }
                Act::Rename(who, from, to) => {
                    let [from_path, to_path] = [path(from), path(to)];
                    let nested = from_path.is_within(&to_path) || to_path.is_within(&from_path);
                    if !nested && !members[*who].tree(&world, &from_path).is_empty() {
                        given_up.extend(contents(&world, &members[*who], to));
                        members[*who].rename(&world, from, to);
                    }
                }
                Act::Exchange(to, from) => {
                    let from = members[*from].state.clone();
                    members[*to].take(&world, &from);
                }
            }
        }
        let mut rounds = 0;
        while members.iter().any(|member| member.state != members[0].state) {
            rounds += 1;
            prop_assert!(rounds < 6, "no end");
            for to in 0..count {
                for from in 0..count {
                    let from = members[from].state.clone();
                    members[to].take(&world, &from);
                }
            }
        }
        let there: Vec<_> = content(&world.memory, members[0].state.0)
            .into_values()
            .flat_map(|versions| versions.as_slice().to_vec())
            .map(|version| version.entry.kind)
            .collect();
        for kind in &written {
            prop_assert!(there.contains(kind) || given_up.contains(kind), "{:?}", kind);
        }
    }
}

/// Every pair of small changes, one on each side: both who complete on their own agree, and no content that nobody gave up is
/// lost.
#[test]
fn every_pair_of_small_changes_agrees() {
    type Change = (&'static str, fn(&World, &mut Member), &'static [u64]);
    // What it is, how it is made, and which contents of the base it gives up.
    const CHANGES: [Change; 12] = [
        ("nothing", |_, _| (), &[]),
        (
            "edit",
            |world, member| member.write(world, "d/x", file(member.writer * 10)),
            &[2],
        ),
        (
            "edit outside",
            |world, member| member.write(world, "f", file(member.writer * 10)),
            &[1],
        ),
        (
            "new",
            |world, member| member.write(world, "d/new", file(member.writer * 10)),
            &[],
        ),
        ("remove", |world, member| member.remove(world, "d/x"), &[2]),
        (
            "remove all",
            |world, member| member.remove(world, "d"),
            &[2, 3],
        ),
        (
            "rename file",
            |world, member| member.rename(world, "d/x", "d/z"),
            &[],
        ),
        (
            "rename out",
            |world, member| member.rename(world, "d/x", "z"),
            &[],
        ),
        (
            "rename over",
            |world, member| member.rename(world, "d/x", "f"),
            &[1],
        ),
        (
            "rename folder",
            |world, member| member.rename(world, "d", "e"),
            &[],
        ),
        (
            "rename twice",
            |world, member| {
                member.rename(world, "d", "e");
                member.rename(world, "e/x", "f");
            },
            &[1],
        ),
        (
            "swap",
            |world, member| {
                member.rename(world, "f", "t");
                member.rename(world, "d/x", "f");
                member.rename(world, "t", "d/x");
            },
            &[],
        ),
    ];
    for (one_name, one, one_gives) in CHANGES {
        for (other_name, other, other_gives) in CHANGES {
            let files = apart(base, one, other);
            let contents: Vec<_> = files.iter().map(|(_, kind)| kind.clone()).collect();
            for content in [1, 2, 3] {
                let given_up = one_gives.contains(&content) || other_gives.contains(&content);
                let there = contents.contains(&file(content).kind);
                assert!(
                    there || given_up,
                    "{one_name}, {other_name}: {content} in {files:?}"
                );
            }
        }
    }
}
