use proptest::prelude::*;

use super::*;
use crate::manifest::{
    Key, empty_root, get,
    tree::testing::{Edits, Memory, dot, file, key, version},
};

/// A member: its state, and the number of its heads so far.
#[derive(Clone, Debug)]
struct Replica {
    writer: u64,
    sequence: u64,
    root: NodeHash,
    context: CausalContext,
}

impl Replica {
    fn new(writer: u64) -> Self {
        Self {
            writer,
            sequence: 0,
            root: empty_root(),
            context: CausalContext::default(),
        }
    }
    /// One head with several changes; each replaces all versions that are there.
    fn commit(&mut self, memory: &Memory, time: u64, changes: &[(u8, Option<u8>)]) {
        self.sequence += 1;
        let mut edits = Edits::new();
        for (name, content) in changes {
            let key = key_of(*name);
            let existing = get(memory, self.root, &key).unwrap();
            let seen: Vec<_> = list(existing.as_ref()).iter().map(|old| old.dot).collect();
            let new = content.map(|content| {
                let entry = file(u64::from(content));
                version(self.writer, self.sequence, time, entry)
            });
            edits.insert(key, Versions::replace(existing.as_ref(), &seen, new));
        }
        self.root = memory.apply(self.root, &edits);
        self.context.add(dot(self.writer, self.sequence));
    }
    fn state(&self) -> (NodeHash, &CausalContext) {
        (self.root, &self.context)
    }
    fn take(&mut self, memory: &Memory, other: (NodeHash, &CausalContext)) {
        let merged = joined(memory, self.state(), other);
        (self.root, self.context) = merged;
    }
}

fn key_of(name: u8) -> Key {
    key(&format!("d{}/n{name}", name % 3))
}

/// Merges, and checks what the merge says about itself.
fn joined(
    memory: &Memory,
    ours: (NodeHash, &CausalContext),
    theirs: (NodeHash, &CausalContext),
) -> (NodeHash, CausalContext) {
    let merged = merge(memory, ours, theirs).unwrap();
    memory.keep(merged.nodes);
    let changes = diff(memory, ours.0, merged.root, usize::MAX).unwrap();
    assert_eq!(changes, merged.changes);
    (merged.root, merged.context)
}

#[derive(Clone, Debug)]
enum Act {
    Commit(usize, Vec<(u8, Option<u8>)>),
    /// The first takes the second's state.
    Exchange(usize, usize),
    /// The first takes a state that somebody had earlier.
    Replay(usize, prop::sample::Index),
}

fn any_act(replicas: usize) -> impl Strategy<Value = Act> {
    let changes = || {
        let change = (0_u8..40, prop::option::weighted(0.7, 0_u8..6));
        prop::collection::vec(change, 1..8)
    };
    prop_oneof![
        3 => (0..replicas, changes()).prop_map(|(who, changes)| Act::Commit(who, changes)),
        2 => (0..replicas, 0..replicas).prop_map(|(to, from)| Act::Exchange(to, from)),
        1 => (0..replicas, any::<prop::sample::Index>()).prop_map(|(to, at)| Act::Replay(to, at)),
    ]
}

fn any_history() -> impl Strategy<Value = (usize, Vec<Act>)> {
    (3_usize..=8).prop_flat_map(|replicas| {
        let acts = prop::collection::vec(any_act(replicas), 1..50);
        (Just(replicas), acts)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Over random histories of 3 to 8 members: merging is commutative, associative and idempotent, old states change
    /// nothing, a state that covers another is the merge of both, and all end up with one root.
    #[test]
    fn states_form_a_lattice((count, acts) in any_history()) {
        let memory = Memory::default();
        let mut replicas: Vec<_> = (0..count as u64).map(|n| Replica::new(n + 1)).collect();
        let mut past = vec![replicas[0].clone()];
        for (time, act) in acts.iter().enumerate() {
            match act {
                Act::Commit(who, changes) => replicas[*who].commit(&memory, time as u64, changes),
                Act::Exchange(to, from) => {
                    let from = replicas[*from].clone();
                    replicas[*to].take(&memory, from.state());
                }
                Act::Replay(to, at) => {
                    let old = past[at.index(past.len())].clone();
                    let known = replicas[*to].context.includes(&old.context);
                    let before = replicas[*to].root;
                    replicas[*to].take(&memory, old.state());
                    if known {
                        prop_assert_eq!(replicas[*to].root, before);
                    }
                }
            }
            past.push(replicas[match act {
                Act::Commit(who, _) | Act::Exchange(who, _) | Act::Replay(who, _) => *who,
            }].clone());
        }

        let join = |a: &(NodeHash, CausalContext), b: &(NodeHash, CausalContext)| {
            joined(&memory, (a.0, &a.1), (b.0, &b.1))
        };
        let states: Vec<_> = replicas.iter().map(|one| (one.root, one.context.clone())).collect();
        for a in &states {
            prop_assert_eq!(&join(a, a), a);
            for b in &states {
                let both = join(a, b);
                prop_assert_eq!(&both, &join(b, a));
                if a.1.includes(&b.1) {
                    prop_assert_eq!(&both, a);
                }
                prop_assert_eq!(&join(&both, a), &both);
            }
        }
        let [a, b, c] = [&states[0], &states[1], &states[2]];
        prop_assert_eq!(join(&join(a, b), c), join(a, &join(b, c)));

        let forth = states.iter().fold(states[0].clone(), |all, one| join(&all, one));
        let back = states.iter().rev().fold(states[count / 2].clone(), |all, one| join(&all, one));
        prop_assert_eq!(forth, back);
    }
}

fn pair(memory: &Memory) -> (Replica, Replica) {
    let (mut one, mut other) = (Replica::new(1), Replica::new(2));
    one.commit(memory, 1, &[(0, Some(1)), (1, Some(1))]);
    other.take(memory, one.state());
    (one, other)
}
fn contents(memory: &Memory, replica: &Replica, name: u8) -> Vec<u64> {
    let versions = get(memory, replica.root, &key_of(name)).unwrap();
    let versions = list(versions.as_ref()).iter();
    versions.map(|version| version.dot.writer.0).collect()
}

#[test]
fn a_deletion_wins_over_what_it_saw() {
    let memory = Memory::default();
    let (mut one, mut other) = pair(&memory);
    other.commit(&memory, 2, &[(0, None)]);
    one.take(&memory, other.state());
    assert!(contents(&memory, &one, 0).is_empty());
    assert_eq!(contents(&memory, &one, 1), [1]);
}

#[test]
fn a_version_that_the_deletion_did_not_see_survives_it() {
    let memory = Memory::default();
    let (mut one, mut other) = pair(&memory);
    other.commit(&memory, 2, &[(0, None)]);
    one.commit(&memory, 2, &[(0, Some(2))]);
    one.take(&memory, other.state());
    other.take(&memory, one.state());
    assert_eq!(contents(&memory, &one, 0), [1]);
    assert_eq!(one.root, other.root);
}

#[test]
fn concurrent_versions_stay_side_by_side_until_a_write_that_saw_both() {
    let memory = Memory::default();
    let (mut one, mut other) = pair(&memory);
    // Equal contents too: they are shown as one, but kept as two.
    one.commit(&memory, 2, &[(0, Some(5)), (1, Some(7))]);
    other.commit(&memory, 3, &[(0, Some(6)), (1, Some(7))]);
    one.take(&memory, other.state());
    assert_eq!(contents(&memory, &one, 0), [1, 2]);
    assert_eq!(contents(&memory, &one, 1), [1, 2]);
    one.commit(&memory, 4, &[(0, Some(8))]);
    other.take(&memory, one.state());
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
    one.commit(&memory, 1, &[(0, Some(1)), (1, Some(1))]);
    other.commit(&memory, 1, &[(2, Some(1))]);
    memory.reads.set(0);
    let merged = merge(&memory, one.state(), other.state()).unwrap();
    assert_eq!(merged.changes.len(), 1);
    assert!(memory.reads.get() < 40, "{}", memory.reads.get());
}

#[test]
fn what_gives_way_to_another_content_with_the_same_dot_is_named() {
    let memory = Memory::default();
    let mut original = Replica::new(1);
    original.commit(&memory, 1, &[(0, Some(0))]);
    let mut clone = original.clone();
    original.commit(&memory, 2, &[(1, Some(1)), (2, Some(7))]);
    clone.commit(&memory, 3, &[(1, Some(2)), (2, Some(7))]);
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
