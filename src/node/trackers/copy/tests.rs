use std::collections::BTreeMap;

use super::*;
use crate::{
    cluster::ClusterId,
    manifest::{
        Applied, Dot, Entry, HybridTime, Key, Kind, NodeSource, Timestamp, TreeError, TreePath,
        Version, Versions, WriterNumber, apply, empty_root,
    },
};

/// A manifest in memory.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<NodeHash, bytes::Bytes>,
    root: Option<NodeHash>,
}

impl NodeSource for Tree {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        let bytes = self.nodes.get(hash);
        Ok(bytes.map(|bytes| Arc::new(Node::decode(bytes).unwrap())))
    }
}

impl Tree {
    /// With so many folders.
    fn of(count: u32) -> Self {
        let mut tree = Self::default();
        tree.change(0..count, 1);
        tree
    }

    fn change(&mut self, numbers: impl IntoIterator<Item = u32>, sequence: u64) {
        let edits = numbers.into_iter().map(|n| {
            let path = TreePath::parse(format!("folder {n}").as_bytes()).unwrap();
            let version = Version {
                dot: Dot {
                    writer: WriterNumber(1),
                    sequence,
                },
                time: HybridTime(sequence),
                entry: Entry::new(Kind::Directory, 0o700, 0, 0, Timestamp(5)),
                moved: None,
            };
            (Key::of_path(&path).unwrap(), Versions::new(vec![version]))
        });
        let base = self.root.unwrap_or_else(empty_root);
        let Applied { root, nodes } = apply(self, base, &edits.collect()).unwrap();
        let nodes = nodes.into_iter();
        self.nodes
            .extend(nodes.map(|(hash, node)| (hash, node.into())));
        self.root = Some(root);
    }

    fn root(&self) -> NodeHash {
        self.root.unwrap()
    }

    /// Everything below the root.
    fn below(&self) -> BTreeSet<NodeHash> {
        let mut found = BTreeSet::new();
        let mut left = vec![self.root()];
        while let Some(hash) = left.pop() {
            found.insert(hash);
            left.extend(Node::decode(&self.nodes[&hash]).unwrap().children());
        }
        found
    }
}

/// Carries out a plan until nothing is left; the nodes handed in, in order, with their levels.
fn carry_out(
    plan: &mut Plan,
    tree: &Tree,
    there: &mut BTreeSet<NodeHash>,
    room: u64,
) -> Vec<(u8, NodeHash)> {
    let mut handed_in = Vec::new();
    while !plan.is_done() {
        for place in plan.take() {
            let look = Look {
                have: there.contains(&place.hash),
                place,
                read_back: false,
            };
            let Some(found) = find(&look, |hash| tree.nodes.get(hash).cloned()) else {
                continue;
            };
            if !plan.admit(room, &look.place, &found, !look.have) {
                break;
            }
            if !look.have {
                handed_in.push((found.level, look.place.hash));
                there.insert(look.place.hash);
            }
        }
    }
    handed_in
}

fn plan(root: NodeHash) -> Plan {
    let mut plan = Plan::default();
    plan.begin_round(root);
    plan
}

#[test]
fn everything_is_handed_in_once_the_highest_levels_first() {
    let tree = Tree::of(10_000);
    let mut there = BTreeSet::new();
    let mut plan = plan(tree.root());
    let handed_in = carry_out(&mut plan, &tree, &mut there, u64::MAX);
    assert_eq!(there, tree.below());
    assert_eq!(handed_in.len(), there.len());
    assert!(handed_in.is_sorted_by_key(|(level, _)| Reverse(*level)));
    assert_eq!(handed_in[0].1, tree.root());
    assert!(handed_in.len() > 100, "{}", handed_in.len());
}

#[test]
fn a_change_costs_the_nodes_that_it_made() {
    let mut tree = Tree::of(10_000);
    let mut there = BTreeSet::new();
    let mut plan = plan(tree.root());
    carry_out(&mut plan, &tree, &mut there, u64::MAX);
    let before = there.clone();
    tree.change([77], 2);
    plan.add(Level::Root, tree.root());
    let handed_in = carry_out(&mut plan, &tree, &mut there, u64::MAX);
    assert!(handed_in.len() <= 4, "{}", handed_in.len());
    assert!(tree.below().is_subset(&there));
    assert!(before.is_subset(&there));
}

#[test]
fn a_new_root_comes_before_the_leaves_that_are_left() {
    let mut tree = Tree::of(10_000);
    let mut plan = plan(tree.root());
    let old = plan.take().pop().unwrap();
    let look = Look {
        place: old,
        have: false,
        read_back: false,
    };
    let found = find(&look, |hash| tree.nodes.get(hash).cloned()).unwrap();
    assert!(plan.admit(u64::MAX, &old, &found, true));
    tree.change([77], 2);
    plan.add(Level::Root, tree.root());
    let next = plan.take();
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].hash, tree.root());
}

#[test]
fn nodes_that_are_not_here_are_passed_over() {
    let mut tree = Tree::of(10_000);
    let all = tree.below();
    let gone = Node::decode(&tree.nodes[&tree.root()]).unwrap().children()[1];
    tree.nodes.remove(&gone);
    let mut there = BTreeSet::new();
    let handed_in = carry_out(&mut plan(tree.root()), &tree, &mut there, u64::MAX);
    assert!(!there.contains(&gone));
    assert!(handed_in.len() > 1 && handed_in.len() < all.len());
    // Of a folder that was never looked at nothing is here.
    let nothing = Tree::default();
    let handed_in = carry_out(&mut plan(tree.root()), &nothing, &mut there, u64::MAX);
    assert!(handed_in.is_empty());
}

#[test]
fn no_more_is_handed_in_than_there_is_room_for() {
    let tree = Tree::of(10_000);
    let size =
        |hash: &NodeHash| (tree.nodes[hash].len() + SEALING_BYTES) as u64 + NODE_OVERHEAD_BYTES;
    let all: u64 = tree.below().iter().map(size).sum();
    let mut there = BTreeSet::new();
    let mut plan = plan(tree.root());
    let handed_in = carry_out(&mut plan, &tree, &mut there, all / 2);
    let given: u64 = there.iter().map(size).sum();
    assert!(given <= all / 2 / 4 * 3);
    assert!(given > all / 4);
    // What there is room for is of use: the way from the root to it is there.
    assert!(handed_in.is_sorted_by_key(|(level, _)| Reverse(*level)));
    // The next state's way finds room too, below what is kept free for it.
    let mut changed = tree;
    changed.change([77], 2);
    plan.add(Level::Root, changed.root());
    carry_out(&mut plan, &changed, &mut there, all / 2);
    assert!(there.contains(&changed.root()));
}

#[test]
fn after_many_changes_everything_is_gone_through_anew() {
    let mut tree = Tree::of(3_000);
    let mut there = BTreeSet::new();
    let mut plan = plan(tree.root());
    let room = 4_000_000;
    carry_out(&mut plan, &tree, &mut there, room);
    assert!(!plan.wants_round(room));
    let mut sequence = 1;
    while !plan.wants_round(room) {
        sequence += 1;
        assert!(sequence < 1000);
        tree.change([sequence as u32 * 7 % 3000], sequence);
        plan.add(Level::Root, tree.root());
        carry_out(&mut plan, &tree, &mut there, room);
    }
    assert!(sequence > 10);
    plan.begin_round(tree.root());
    // A node that the tracker dropped meanwhile comes again.
    let lost = *tree.below().last().unwrap();
    there.remove(&lost);
    let handed_in = carry_out(&mut plan, &tree, &mut there, room);
    assert_eq!(handed_in.len(), 1);
    assert_eq!(handed_in[0].1, lost);
}

#[test]
fn a_tree_larger_than_the_room_keeps_up_with_its_changes() {
    let mut tree = Tree::of(10_000);
    let size = |(_, bytes): (_, &bytes::Bytes)| bytes.len() as u64 + NODE_OVERHEAD_BYTES;
    let room = tree.nodes.iter().map(size).sum::<u64>() / 2;
    let mut there = BTreeSet::new();
    let mut plan = plan(tree.root());
    carry_out(&mut plan, &tree, &mut there, room);
    let mut rounds = 0;
    for sequence in 2..300 {
        tree.change([sequence as u32 * 7], sequence);
        if plan.wants_round(room) {
            rounds += 1;
            plan.begin_round(tree.root());
        } else {
            plan.add(Level::Root, tree.root());
        }
        carry_out(&mut plan, &tree, &mut there, room);
        assert!(there.contains(&tree.root()), "state {sequence}");
    }
    assert!((2..200).contains(&rounds), "{rounds}");
    // Where the room shrinks, the next round makes do with it.
    tree.change([1], 300);
    plan.add(Level::Root, tree.root());
    carry_out(&mut plan, &tree, &mut there, room / 2);
    assert!(!there.contains(&tree.root()));
    assert!(plan.wants_round(room / 2));
    plan.begin_round(tree.root());
    carry_out(&mut plan, &tree, &mut there, room / 2);
    assert!(there.contains(&tree.root()));
}

#[test]
fn batches_are_within_what_a_request_takes() {
    let node = |n: u32, size| (NodeHash([n as u8; 32]), bytes::Bytes::from(vec![1; size]));
    let mut nodes: VecDeque<_> = (0..200).map(|n| node(n, 4000)).collect();
    nodes.push_back(node(200, NODE_BYTES_MAX - SEALING_BYTES));
    nodes.push_back(node(201, NODE_BYTES_MAX - SEALING_BYTES));
    let mut count = 0;
    while !nodes.is_empty() {
        let batch = next_batch(&mut nodes);
        let sealed = batch.iter().map(|(_, bytes)| bytes.len() + SEALING_BYTES);
        assert!(sealed.sum::<usize>() <= PUT_BYTES_MAX);
        assert!((1..=PUT_NODES_MAX).contains(&batch.len()));
        count += batch.len();
    }
    assert_eq!(count, 202);
}

#[test]
fn only_the_node_asked_for_is_opened() {
    let keys = ClusterId::generate([7; 32]).keys();
    let (node, other) = (b"a node".as_slice(), b"another".as_slice());
    let (hash, other_hash) = (NodeHash::of(node), NodeHash::of(other));
    let (key, sealed) = seal(&keys, &hash, node);
    assert_eq!(sealed.len(), node.len() + SEALING_BYTES);
    assert_eq!(open(&keys, &hash, &sealed).as_deref(), Some(node));
    assert_eq!(open(&keys, &other_hash, &sealed), None);
    // A member can seal anything under any key; the hash tells.
    let forged = keys.seal(SealKind::Node, &key.0, [1; 24], other);
    assert_eq!(open(&keys, &hash, &forged), None);
    let strangers = ClusterId::generate([8; 32]).keys();
    assert_eq!(open(&strangers, &hash, &sealed), None);
    assert_ne!(strangers.sealed_node_key(&hash), key.0);
    let content = crate::content::ContentId(hash.0);
    assert_ne!(keys.sealed_content_key(&content), key.0);
}
