use proptest::prelude::*;

use super::*;
use crate::manifest::{
    HybridTime, Key, NodeSource, VERSIONS_MAX, diff, empty_root, get,
    histories::{Edit, Oracle, Replica, State, any_history, content, join, live},
    tree::testing::{Memory, dot, file, key, many, version, versions},
};

/// Merges, and checks what the merge says about itself.
fn joined(memory: &Memory, ours: &State, theirs: &State) -> State {
    let merged = merge(memory, (ours.0, &ours.1), (theirs.0, &theirs.1)).unwrap();
    memory.keep(merged.nodes);
    let changes = diff(memory, ours.0, merged.root, usize::MAX).unwrap();
    assert_eq!(changes, merged.changes);
    (merged.root, merged.context)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Over random histories of 3 to 20 members, with replays: every state holds what was written less what was replaced by
    /// somebody who saw it, by the plainest reckoning; so nothing disappears otherwise. Merging is commutative, associative
    /// and idempotent, old states change nothing, and all end up with one root in whatever order they meet.
    #[test]
    fn states_form_a_lattice((count, acts) in any_history(3..=20, 60)) {
        let memory = Memory::default();
        let lived = live(&memory, count, &acts);
        let states: Vec<_> = lived.replicas.iter().map(Replica::state).collect();
        for (root, context) in &states {
            prop_assert_eq!(content(&memory, *root), lived.oracle.content(context));
        }
        let join = |a: &State, b: &State| joined(&memory, a, b);
        for a in states.iter().take(4) {
            prop_assert_eq!(&join(a, a), a);
            for b in states.iter().take(4) {
                let both = join(a, b);
                prop_assert_eq!(&both, &join(b, a));
                prop_assert_eq!(&join(&both, a), &both);
            }
            for old in lived.past.iter().rev().step_by(3).filter(|old| a.1.includes(&old.1)) {
                prop_assert_eq!(&join(a, old), a);
            }
        }
        let [a, b, c] = [&states[0], &states[1], &states[2]];
        prop_assert_eq!(join(&join(a, b), c), join(a, &join(b, c)));

        let forth = states.iter().fold(states[0].clone(), |all, one| join(&all, one));
        let back = states.iter().rev().fold(states[count / 2].clone(), |all, one| join(&all, one));
        prop_assert_eq!(&forth, &back);
        // Halves that each have met, and then meet.
        let halves = [&states[..count / 2], &states[count / 2..]].map(|half| {
            let (first, others) = half.split_first().unwrap();
            others.iter().fold(first.clone(), |all, one| join(&all, one))
        });
        prop_assert_eq!(&join(&halves[1], &halves[0]), &forth);
        prop_assert_eq!(content(&memory, forth.0), lived.oracle.content(&forth.1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Portions of whatever size come to what merging at once comes to. And a root in between, with the former context,
    /// can be given up or merged with something else at any time: merging theirs again still comes to the same.
    #[test]
    fn portions_come_to_the_same(
        (count, acts) in any_history(3..=6, 50),
        picked in prop::collection::vec(any::<prop::sample::Index>(), 3),
        limits in prop::collection::vec(1_usize..6, 1..8),
    ) {
        let memory = Memory::default();
        let lived = live(&memory, count, &acts);
        let [ours, theirs, third] = [0, 1, 2].map(|at: usize| picked[at].get(&lived.past));
        let whole = merge(&memory, (ours.0, &ours.1), (theirs.0, &theirs.1)).unwrap();
        memory.keep(whole.nodes);
        let all = join(&memory, &(whole.root, whole.context.clone()), third);
        let (mut root, mut rest, mut changes) = (ours.0, None, Vec::new());
        for limit in limits.iter().cycle() {
            let theirs_part = (theirs.0, &theirs.1);
            let (portion, ..) = memory.fetching(|memory| {
                merge_portion(memory, (root, &ours.1), theirs_part, rest.as_ref(), *limit)
            });
            memory.keep(portion.nodes);
            prop_assert!(portion.changes.len() <= *limit);
            changes.extend(portion.changes);
            (root, rest) = (portion.root, portion.rest);
            if rest.is_none() {
                prop_assert_eq!(&portion.context, &whole.context);
                break;
            }
            let between = (root, portion.context);
            prop_assert_eq!(&between.1, &ours.1);
            prop_assert_eq!(join(&memory, &between, theirs).0, whole.root);
            let with_third = join(&memory, &between, third);
            prop_assert_eq!(&join(&memory, &with_third, theirs), &all);
            prop_assert_eq!(&join(&memory, theirs, &with_third), &all);
        }
        prop_assert_eq!(root, whole.root);
        prop_assert_eq!(changes, whole.changes);
    }
}

/// All nodes of a tree.
fn nodes(memory: &Memory, root: NodeHash) -> BTreeSet<NodeHash> {
    let mut found = BTreeSet::new();
    let mut open = vec![root];
    while let Some(hash) = open.pop() {
        if found.insert(hash) {
            let node = memory.node(&hash).unwrap();
            open.extend(node.iter().flat_map(|node| node.children()));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One member wrote several times, things made and removed again among them, and others have seen only the first of it.
    /// What its work did not touch of the state that this was made on is nowhere any more.
    #[test]
    fn own_work_put_on_what_others_made_of_the_rest_merges_to_the_same(
        work in prop::collection::vec(prop::collection::btree_map(0_usize..120, any::<bool>(), 1..12), 1..6),
        seen in any::<prop::sample::Index>(),
        there in prop::collection::btree_map(0_usize..2200, any::<bool>(), 1..100),
    ) {
        let memory = Memory::default();
        let old = many(2000);
        let new = (0..200).map(|n| key(&format!("folder {:03}/new {n}", n % 20)));
        let all: Vec<_> = old.keys().cloned().chain(new).collect();
        // Those that are few: some old, some new, so that they meet often.
        let few = |at: usize| all[at * 18 + 17].clone();
        let base = memory.build(&old);
        let mut context = CausalContext::default();
        context.add(dot(0x0123_4567_89ab_cdef, 7));
        let mut states = vec![(base, context)];
        for (sequence, changes) in (1..).zip(&work) {
            let (root, mut context) = states.last().unwrap().clone();
            let edits = changes.iter().map(|(at, puts)| {
                let put = versions([version(1, sequence, sequence, file(*at as u64 + sequence))]);
                (few(*at), puts.then_some(put))
            });
            let root = memory.apply(root, &edits.collect());
            context.add(dot(1, sequence));
            states.push((root, context));
        }
        let seen = seen.index(states.len());
        let edits = there.iter().map(|(at, puts)| {
            let put = versions([version(2, 1, 100, file(*at as u64 + 5000))]);
            (all[*at].clone(), puts.then_some(put))
        });
        let (root, mut context) = states[seen].clone();
        let theirs = memory.apply(root, &edits.collect());
        context.add(dot(2, 1));
        let theirs = (theirs, context);
        let ours = states.last().unwrap().clone();
        let whole = joined(&memory, &ours, &theirs);

        // Of what never changed here, only the paths to what did are.
        let mut gone = nodes(&memory, base);
        for (root, _) in &states {
            let nodes = nodes(&memory, *root);
            gone.retain(|hash| nodes.contains(hash));
        }
        memory.hidden.borrow_mut().clone_from(&gone);
        for key in work.iter().flat_map(|changes| changes.keys()).map(|at| few(*at)) {
            while let Err(TreeError::Missing(path)) = get(&memory, base, &key) {
                path.iter().for_each(|hash| {
                    gone.remove(hash);
                    memory.hidden.borrow_mut().remove(hash);
                });
            }
        }
        for hash in nodes(&memory, theirs.0) {
            memory.hidden.borrow_mut().remove(&hash);
        }
        let mut grafted = theirs.0;
        for pair in states[seen..].windows(2) {
            let changes = diff(&memory, pair[0].0, pair[1].0, usize::MAX).unwrap();
            let keys = changes.iter().map(|change| &change.key);
            let applied = graft(&memory, ours.0, keys, grafted).unwrap();
            memory.keep(applied.nodes);
            grafted = applied.root;
        }
        let merged = joined(&memory, &theirs, &(grafted, ours.1));
        prop_assert_eq!(merged, whole);
    }
}

#[test]
fn going_on_with_a_merge_costs_the_depth() {
    let memory = Memory::default();
    let all = crate::manifest::tree::testing::many(30_000);
    let root = memory.build(&all);
    let edits = all
        .keys()
        .step_by(100)
        .map(|key| (key.clone(), None))
        .collect();
    let (ours, theirs) = (CausalContext::default(), {
        let mut context = CausalContext::default();
        context.add(dot(0x0123_4567_89ab_cdef, 7));
        context
    });
    let emptied = memory.apply(root, &edits);
    let depth = usize::from(memory.node(&root).unwrap().unwrap().level()) + 1;
    let last = edits.keys().nth(290);
    memory.reads.set(0);
    let portion = merge_portion(&memory, (root, &ours), (emptied, &theirs), last, 2).unwrap();
    assert_eq!(portion.changes.len(), 2);
    assert!(portion.rest.is_some());
    // Down in both trees, on to the next two differences, and down again to edit.
    assert!(memory.reads.get() <= 12 * depth, "{}", memory.reads.get());
}

/// A file of the small world, by a number.
const FILES: [&str; 3] = ["a/x", "b", "c.txt"];

/// One head with several changes, each of a file's content; `None` removes it.
fn commit(memory: &Memory, replica: &mut Replica, time: u64, changes: &[(usize, Option<u64>)]) {
    let edits: Vec<_> = changes
        .iter()
        .map(|(name, content)| match content {
            Some(content) => Edit::Write(FILES[*name], *content),
            None => Edit::Remove(FILES[*name]),
        })
        .collect();
    replica.commit(memory, &mut Oracle::default(), time, &edits);
}
fn key_of(name: usize) -> Key {
    key(FILES[name])
}
fn pair(memory: &Memory) -> (Replica, Replica) {
    let (mut one, mut other) = (Replica::new(1), Replica::new(2));
    commit(memory, &mut one, 1, &[(0, Some(1)), (1, Some(1))]);
    other.take(memory, &one.state());
    (one, other)
}
fn contents(memory: &Memory, replica: &Replica, name: usize) -> Vec<u64> {
    let versions = get(memory, replica.root, &key_of(name)).unwrap();
    let versions = list(versions.as_ref()).iter();
    versions.map(|version| version.dot.writer.0).collect()
}

#[test]
fn a_deletion_wins_over_what_it_saw() {
    let memory = Memory::default();
    let (mut one, mut other) = pair(&memory);
    commit(&memory, &mut other, 2, &[(0, None)]);
    one.take(&memory, &other.state());
    assert!(contents(&memory, &one, 0).is_empty());
    assert_eq!(contents(&memory, &one, 1), [1]);
}

#[test]
fn a_version_that_the_deletion_did_not_see_survives_it() {
    let memory = Memory::default();
    let (mut one, mut other) = pair(&memory);
    commit(&memory, &mut other, 2, &[(0, None)]);
    commit(&memory, &mut one, 2, &[(0, Some(2))]);
    one.take(&memory, &other.state());
    other.take(&memory, &one.state());
    assert_eq!(contents(&memory, &one, 0), [1]);
    assert_eq!(one.root, other.root);
}

#[test]
fn concurrent_versions_stay_side_by_side_until_somebody_replaces_both() {
    let memory = Memory::default();
    let (mut one, mut other) = pair(&memory);
    // Equal contents too: they are shown as one, but kept as two.
    commit(&memory, &mut one, 2, &[(0, Some(5)), (1, Some(7))]);
    commit(&memory, &mut other, 3, &[(0, Some(6)), (1, Some(7))]);
    one.take(&memory, &other.state());
    assert_eq!(contents(&memory, &one, 0), [1, 2]);
    assert_eq!(contents(&memory, &one, 1), [1, 2]);
    let both = [Edit::RemoveCopy("a"), Edit::Write(FILES[0], 8)];
    one.commit(&memory, &mut Oracle::default(), 4, &both);
    other.take(&memory, &one.state());
    assert_eq!(contents(&memory, &other, 0), [1]);
    assert_eq!(one.root, other.root);
}

#[test]
fn a_merge_costs_what_differs() {
    let memory = Memory::default();
    let root = memory.build(&crate::manifest::tree::testing::many(30_000));
    let context: CausalContext = {
        let mut context = CausalContext::default();
        context.add(dot(0x0123_4567_89ab_cdef, 7));
        context
    };
    let at = |writer| Replica {
        writer,
        sequence: 0,
        root,
        context: context.clone(),
    };
    let (mut one, mut other) = (at(1), at(2));
    commit(&memory, &mut one, 1, &[(0, Some(1)), (1, Some(1))]);
    commit(&memory, &mut other, 1, &[(2, Some(1))]);
    memory.reads.set(0);
    let merged = merge(
        &memory,
        (one.root, &one.context),
        (other.root, &other.context),
    )
    .unwrap();
    assert_eq!(merged.changes.len(), 1);
    assert!(memory.reads.get() < 40, "{}", memory.reads.get());
}

#[test]
fn what_gives_way_to_another_content_with_the_same_dot_is_named() {
    let memory = Memory::default();
    let mut original = Replica::new(1);
    commit(&memory, &mut original, 1, &[(0, Some(0))]);
    let mut clone = original.clone();
    commit(&memory, &mut original, 2, &[(1, Some(1)), (2, Some(7))]);
    commit(&memory, &mut clone, 3, &[(1, Some(2)), (2, Some(7))]);
    // Neither context says anything of the write that both made.
    let before = {
        let mut context = CausalContext::default();
        context.add(dot(1, 1));
        context
    };
    for (ours, theirs) in [(&original, &clone), (&clone, &original)] {
        let merged = merge(&memory, (ours.root, &before), (theirs.root, &before)).unwrap();
        let dropped = version(1, 2, 2, file(1));
        assert_eq!(merged.contradicted, [(key_of(1), dropped)]);
        memory.keep(merged.nodes);
        let kept = get(&memory, merged.root, &key_of(1)).unwrap().unwrap();
        assert_eq!(kept.as_slice(), [version(1, 2, 3, file(2))]);
    }
}

/// More versions of one name than fit under a key: the latest stay, in whatever order they are merged.
#[test]
fn of_too_many_versions_the_latest_stay() {
    let memory = Memory::default();
    let at = key("contested");
    let many = VERSIONS_MAX as u64 + 50;
    let states: Vec<State> = (1..=many)
        .map(|writer| {
            let entry = file(writer);
            let version = Version {
                dot: dot(writer, 1),
                time: HybridTime(1_000_000 - writer),
                entry,
                moved: None,
            };
            let edits = [(at.clone(), Versions::new(vec![version]))];
            let made = apply(&memory, empty_root(), &edits.into()).unwrap();
            memory.keep(made.nodes);
            let mut context = CausalContext::default();
            context.add(dot(writer, 1));
            (made.root, context)
        })
        .collect();
    let merged = |order: &mut dyn Iterator<Item = &State>| {
        let mut state = (empty_root(), CausalContext::default());
        for other in order {
            state = joined(&memory, &state, other);
        }
        state
    };
    let forward = merged(&mut states.iter());
    let backward = merged(&mut states.iter().rev());
    let (odd, even): (Vec<_>, Vec<_>) = states.iter().enumerate().partition(|(at, _)| at % 2 == 1);
    let half = |some: Vec<(usize, &State)>| {
        let some: Vec<_> = some.into_iter().map(|(_, state)| state.clone()).collect();
        merged(&mut some.iter())
    };
    let halves = joined(&memory, &half(odd), &half(even));
    assert_eq!(forward, backward);
    assert_eq!(forward, halves);
    let left = get(&memory, forward.0, &at).unwrap().unwrap();
    let mut writers: Vec<_> = left
        .as_slice()
        .iter()
        .map(|left| left.dot.writer.0)
        .collect();
    writers.sort_unstable();
    assert_eq!(writers, (1..=VERSIONS_MAX as u64).collect::<Vec<_>>());
    // What has been left out is no news.
    assert_eq!(
        joined(&memory, &forward, &states[many as usize - 1]),
        forward
    );
}
