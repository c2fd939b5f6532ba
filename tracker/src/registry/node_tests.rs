//! Manifest nodes: rules one by one, then against a naive model with limits that are reached all the time.

use proptest::prelude::*;

use super::{
    tests::{Records, key, peer},
    *,
};
use crate::protocol::NODE_OVERHEAD_BYTES;

const LEASE: u64 = 1000;
/// What a node of `size` bytes is charged with.
const fn charge(size: usize) -> u64 {
    size as u64 + NODE_OVERHEAD_BYTES
}

fn topic(name: u8) -> Topic {
    Topic([name; 32])
}

/// Room for so many nodes of 100 bytes: of all, of one cluster, of one whatever others do.
fn limits(all: u64, topic: u64, kept: u64) -> Limits {
    Limits {
        node_bytes: all * charge(100),
        topic_node_bytes: topic * charge(100),
        topic_node_bytes_kept: kept * charge(100),
        ..Limits::default()
    }
}

/// A registry with peer 1 in each of these clusters.
fn registry(limits: Limits, topics: &[u8]) -> Registry {
    let mut registry = Registry::new(limits, LEASE);
    for name in topics {
        announce(&mut registry, 0, *name);
    }
    registry
}

fn announce(registry: &mut Registry, now: u64, t: u8) {
    registry
        .announce(now, topic(t), peer(1), Vec::new())
        .unwrap();
}

fn put(registry: &mut Registry, now: u64, t: u8, name: u8) -> Result<(), Refusal> {
    let nodes = vec![(key(name), vec![name; 100])];
    registry.put_nodes(now, topic(t), &peer(1), nodes, false)
}

fn kept(registry: &mut Registry, now: u64, t: u8) -> Vec<u8> {
    let keys: Vec<_> = (0..=255).map(key).collect();
    let find = |registry: &mut Registry, keys: &[SealedKey]| {
        // Looked up without refreshing.
        let found = keys.iter().map(|key| registry.nodes.bytes(&topic(t), key));
        found.map(|bytes| bytes.is_some()).collect::<Vec<_>>()
    };
    registry.handle_timeout(now);
    let found = find(registry, &keys);
    (0..=255u8).filter(|n| found[usize::from(*n)]).collect()
}

#[test]
fn nodes_are_kept_for_their_cluster_alone_and_survive_a_restart() {
    let mut registry = registry(limits(100, 100, 10), &[1, 2]);
    let mut records = Records::default();
    put(&mut registry, 0, 1, 7).unwrap();
    let (have, room) = registry
        .have_nodes(0, &topic(1), &[key(8), key(7)])
        .unwrap();
    assert_eq!(have, [false, true]);
    assert_eq!(room, 100 * charge(100));
    let found = registry.find_nodes(0, &topic(1), &[key(7), key(8)]);
    assert_eq!(found.unwrap(), [Some(100), None]);
    let found = registry.find_nodes(0, &topic(2), &[key(7)]).unwrap();
    assert_eq!(found, [None]);
    records.write(&mut registry);
    assert_eq!(
        sealed_node(&records.0[&sealed_node_key(&topic(1), &key(7))]),
        Some(&[7; 100][..])
    );
    let mut again = records.restart(500, limits(100, 100, 10), LEASE);
    assert_eq!(kept(&mut again, 500, 1), [7]);
    assert_eq!(again.counts(), registry.counts());
}

#[test]
fn nodes_need_a_lease_and_must_be_well_formed() {
    let mut registry = registry(Limits::default(), &[1]);
    assert_eq!(
        put(&mut registry, 0, 2, 1),
        Err(Refusal::NotAnnounced),
        "nobody is listed there"
    );
    let mut refused = |nodes: Vec<(SealedKey, Vec<u8>)>| {
        let outcome = registry.put_nodes(0, topic(1), &peer(1), nodes, false);
        assert_eq!(outcome, Err(Refusal::Malformed));
    };
    refused(vec![(key(1), Vec::new())]);
    refused(vec![(key(1), vec![1; NODE_BYTES_MAX + 1])]);
    refused(vec![(key(1), vec![1; 1]); PUT_NODES_MAX + 1]);
    refused(vec![(key(1), vec![1; NODE_BYTES_MAX]); 2]);
    assert_eq!(registry.counts().nodes, 0);
    let too_many = vec![key(1); HAVE_NODES_MAX + 1];
    assert!(registry.have_nodes(0, &topic(1), &too_many).is_err());
    assert!(registry.find_nodes(0, &topic(1), &too_many).is_err());
}

#[test]
fn what_is_there_already_stays_unless_it_is_replaced() {
    let mut registry = registry(Limits::default(), &[1]);
    let mut records = Records::default();
    let mut put = |registry: &mut Registry, byte: u8, replace| {
        let nodes = vec![(key(1), vec![byte; 50])];
        registry
            .put_nodes(0, topic(1), &peer(1), nodes, replace)
            .unwrap();
        records.write(registry);
        records.0[&sealed_node_key(&topic(1), &key(1))].clone()
    };
    let first = put(&mut registry, 1, false);
    assert_eq!(sealed_node(&first), Some(&[1; 50][..]));
    assert_eq!(put(&mut registry, 2, false), first);
    let replaced = put(&mut registry, 3, true);
    assert_eq!(sealed_node(&replaced), Some(&[3; 50][..]));
    assert_eq!(registry.counts().nodes, 1);
    assert_eq!(registry.counts().node_bytes, charge(50));
}

#[test]
fn within_a_cluster_the_node_that_nobody_asked_for_longest_goes_first() {
    let mut registry = registry(limits(100, 3, 3), &[1]);
    for name in 1..=3 {
        put(&mut registry, u64::from(name), 1, name).unwrap();
    }
    registry.have_nodes(4, &topic(1), &[key(1)]).unwrap();
    put(&mut registry, 5, 1, 4).unwrap();
    assert_eq!(kept(&mut registry, 5, 1), [1, 3, 4]);
    // Handed in once more: as good as asked for.
    put(&mut registry, 6, 1, 3).unwrap();
    put(&mut registry, 7, 1, 5).unwrap();
    assert_eq!(kept(&mut registry, 7, 1), [3, 4, 5]);
}

#[test]
fn when_all_is_full_the_largest_cluster_gives_way() {
    let mut registry = registry(limits(10, 10, 1), &[1, 2, 3]);
    for name in 0..9 {
        put(&mut registry, 0, 1, name).unwrap();
    }
    for name in 0..9 {
        put(&mut registry, 1, 2, name).unwrap();
    }
    assert_eq!(kept(&mut registry, 1, 1).len(), 5);
    assert_eq!(kept(&mut registry, 1, 2).len(), 5);
    let (_, room) = registry.have_nodes(1, &topic(1), &[]).unwrap();
    assert_eq!(room, 5 * charge(100), "an equal part");
    let (_, room) = registry.have_nodes(1, &topic(3), &[]).unwrap();
    assert_eq!(room, 10 * charge(100) / 3);
}

#[test]
fn a_stranger_with_many_clusters_takes_nothing_from_a_small_one_that_has_peers() {
    let names: Vec<u8> = (0..50).collect();
    let mut registry = registry(limits(20, 20, 4), &names);
    for name in 0..4 {
        put(&mut registry, 0, 0, name).unwrap();
    }
    let mut refused = 0;
    for t in 1..50 {
        for name in 0..10 {
            if put(&mut registry, 1, t, name) == Err(Refusal::Full(Limit::NodeBytes)) {
                refused += 1;
            }
        }
    }
    assert_eq!(kept(&mut registry, 1, 0), [0, 1, 2, 3]);
    assert!(refused > 0);
    assert!(registry.counts().node_bytes <= 20 * charge(100));
}

#[test]
fn when_no_cluster_is_over_its_share_those_without_peers_go_longest_first() {
    let mut registry = registry(limits(4, 4, 2), &[1, 2, 3]);
    for t in [1, 2] {
        registry.put_head(0, topic(t), peer(1), vec![t]).unwrap();
        put(&mut registry, 0, t, 1).unwrap();
        put(&mut registry, 0, t, 2).unwrap();
    }
    registry.leave(10, topic(2), &peer(1));
    registry.leave(20, topic(1), &peer(1));
    put(&mut registry, 30, 3, 1).unwrap();
    assert_eq!(kept(&mut registry, 30, 2), [2]);
    put(&mut registry, 31, 3, 2).unwrap();
    assert_eq!(kept(&mut registry, 31, 2), []);
    assert_eq!(kept(&mut registry, 31, 1), [1, 2]);
    assert_eq!(registry.heads(31, &topic(2)).len(), 1, "its head stays");
}

#[test]
fn nodes_go_with_their_topic() {
    let mut registry = registry(Limits::default(), &[1, 2]);
    let mut records = Records::default();
    registry.put_head(0, topic(1), peer(1), vec![1]).unwrap();
    for t in [1, 2] {
        put(&mut registry, 0, t, 1).unwrap();
        registry.leave(0, topic(t), &peer(1));
    }
    assert_eq!(kept(&mut registry, 0, 1), [1], "a head leads to it");
    assert_eq!(kept(&mut registry, 0, 2), [], "nothing leads to it");
    registry.handle_timeout(IDLE_TOPIC_MS);
    assert_eq!(registry.counts(), Counts::default());
    records.write(&mut registry);
    assert!(records.0.is_empty());
}

#[test]
fn a_record_of_a_node_without_its_topic_is_refused_with_its_bytes() {
    let mut registry = registry(Limits::default(), &[1]);
    put(&mut registry, 0, 1, 1).unwrap();
    let mut records = Records::default();
    records.write(&mut registry);
    let mut fresh = Registry::new(Limits::default(), LEASE);
    let (about, value) = records.0.iter().find(|(key, _)| key[0] == 4).unwrap();
    assert_eq!(fresh.load(0, about, value), Err(RecordError::Orphan));
    assert_eq!(
        companion_of_record(about),
        Some(sealed_node_key(&topic(1), &key(1)))
    );
    assert_eq!(companion_of_record(&[1, 2, 3]), None);
}

#[derive(Clone, Debug)]
enum Step {
    Announce(u8),
    Leave(u8),
    Put(u8, Vec<(u8, u16)>, bool),
    Have(u8, Vec<u8>),
    Find(u8, Vec<u8>),
    Wait(u64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let t = 0..4u8;
    let names = || proptest::collection::vec(0..12u8, 0..6);
    let nodes = proptest::collection::vec((0..12u8, 1..3000u16), 0..6);
    let step = prop_oneof![
        2 => t.clone().prop_map(Step::Announce),
        1 => t.clone().prop_map(Step::Leave),
        6 => (t.clone(), nodes, any::<bool>()).prop_map(|(t, n, r)| Step::Put(t, n, r)),
        2 => (t.clone(), names()).prop_map(|(t, n)| Step::Have(t, n)),
        2 => (t, names()).prop_map(|(t, n)| Step::Find(t, n)),
        2 => (1..400u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A list, and every question answered by looking through all of it.
#[derive(Default)]
struct Model {
    /// Cluster, name, bytes, last asked for, stored.
    nodes: Vec<(u8, u8, usize, u64, u64)>,
    /// Leases of the clusters' one peer.
    ends: BTreeMap<u8, u64>,
    /// All have a head, so their nodes outlive the peer.
    idle_since: BTreeMap<u8, u64>,
}

impl Model {
    fn charged(&self, of: Option<u8>) -> u64 {
        let nodes = self.nodes.iter();
        let of = nodes.filter(|node| of.is_none_or(|t| t == node.0));
        of.map(|node| charge(node.2)).sum()
    }

    fn drop_oldest(&mut self, t: u8) -> bool {
        let nodes = self.nodes.iter().filter(|node| node.0 == t);
        let oldest = nodes.min_by_key(|node| (node.3, node.1)).map(|node| node.1);
        self.nodes
            .retain(|node| node.0 != t || Some(node.1) != oldest);
        oldest.is_some()
    }

    fn put(
        &mut self,
        now: u64,
        t: u8,
        (name, size): (u8, u16),
        replace: bool,
        limits: &Limits,
    ) -> bool {
        if replace {
            self.nodes.retain(|node| (node.0, node.1) != (t, name));
        } else if self.refresh(now, t, name) {
            return true;
        }
        let size = usize::from(size);
        while self.charged(Some(t)) + charge(size) > limits.topic_node_bytes {
            assert!(self.drop_oldest(t));
        }
        while self.charged(None) + charge(size) > limits.node_bytes {
            let with_nodes: BTreeSet<u8> =
                self.nodes.iter().map(|node| node.0).chain([t]).collect();
            let share = limits.node_bytes / with_nodes.len() as u64;
            let share = share.max(limits.topic_node_bytes_kept);
            let size_of =
                |of: &u8| self.charged(Some(*of)) + if *of == t { charge(size) } else { 0 };
            let largest = *with_nodes
                .iter()
                .max_by_key(|of| (size_of(of), **of))
                .unwrap();
            let idle = self
                .idle_since
                .iter()
                .filter(|(of, _)| self.charged(Some(**of)) > 0);
            let idle = idle
                .min_by_key(|(of, since)| (**since, **of))
                .map(|(of, _)| *of);
            let loser = if size_of(&largest) > share {
                Some(largest)
            } else {
                idle
            };
            if !loser.is_some_and(|loser| self.drop_oldest(loser)) {
                return false;
            }
        }
        self.nodes.push((t, name, size, now, now));
        true
    }

    fn refresh(&mut self, now: u64, t: u8, name: u8) -> bool {
        let mut nodes = self.nodes.iter_mut();
        let node = nodes.find(|node| (node.0, node.1) == (t, name));
        node.map(|node| node.3 = now).is_some()
    }

    fn expire(&mut self, now: u64) {
        let over: Vec<_> = self
            .ends
            .iter()
            .filter(|(_, ends)| **ends <= now)
            .map(|(t, _)| *t)
            .collect();
        for t in over {
            self.ends.remove(&t);
            self.idle_since.insert(t, now);
        }
    }
}

fn play(steps: Vec<Step>) {
    let limits = Limits {
        node_bytes: 30_000,
        topic_node_bytes: 16_000,
        topic_node_bytes_kept: 9_000,
        ..Limits::default()
    };
    let mut registry = Registry::new(limits, LEASE);
    let mut records = Records::default();
    let mut model = Model::default();
    let mut now = 0;
    for t in 0..4 {
        registry.put_head(0, topic(t), peer(1), vec![t]).unwrap();
        model.idle_since.insert(t, 0);
    }
    for step in steps {
        match step {
            Step::Announce(t) => {
                announce(&mut registry, now, t);
                model.ends.insert(t, now + LEASE);
                model.idle_since.remove(&t);
            }
            Step::Leave(t) => {
                registry.leave(now, topic(t), &peer(1));
                if model.ends.remove(&t).is_some() {
                    model.idle_since.insert(t, now);
                }
            }
            Step::Put(t, nodes, replace) => {
                let sealed = nodes
                    .iter()
                    .map(|(n, size)| (key(*n), vec![*n; usize::from(*size)]));
                let outcome =
                    registry.put_nodes(now, topic(t), &peer(1), sealed.collect(), replace);
                if model.ends.contains_key(&t) {
                    let all = nodes
                        .into_iter()
                        .all(|node| model.put(now, t, node, replace, &limits));
                    assert_eq!(outcome.is_ok(), all);
                } else {
                    assert_eq!(outcome, Err(Refusal::NotAnnounced));
                }
            }
            Step::Have(t, names) => {
                let keys: Vec<_> = names.iter().copied().map(key).collect();
                let (have, room) = registry.have_nodes(now, &topic(t), &keys).unwrap();
                let expected: Vec<_> = names.iter().map(|n| model.refresh(now, t, *n)).collect();
                assert_eq!(have, expected);
                assert!(room <= limits.topic_node_bytes);
                assert!(room >= limits.topic_node_bytes_kept);
            }
            Step::Find(t, names) => {
                let keys: Vec<_> = names.iter().copied().map(key).collect();
                let found = registry.find_nodes(now, &topic(t), &keys).unwrap();
                for (n, found) in names.iter().zip(found) {
                    model.refresh(now, t, *n);
                    let mut nodes = model.nodes.iter();
                    let node = nodes.find(|node| (node.0, node.1) == (t, *n));
                    assert_eq!(found, node.map(|node| node.2 as u32));
                }
            }
            Step::Wait(ms) => {
                for _ in 0..ms {
                    now += 1;
                    model.expire(now);
                    registry.handle_timeout(now);
                }
            }
            Step::Restart => {
                records.write(&mut registry);
                registry = records.restart(now, limits, LEASE);
                for ends in model.ends.values_mut() {
                    *ends = now + LEASE;
                }
                // Since when a topic is without peers is told by its newest head.
                model.idle_since.values_mut().for_each(|since| *since = 0);
                model.nodes.iter_mut().for_each(|node| node.3 = node.4);
            }
        }
        let mut nodes: Vec<_> = model.nodes.iter().map(|node| (node.0, node.1)).collect();
        nodes.sort_unstable();
        let there =
            (0..4).flat_map(|t| kept(&mut registry, now, t).into_iter().map(move |n| (t, n)));
        assert_eq!(there.collect::<Vec<_>>(), nodes);
        let counts = registry.counts();
        assert_eq!(
            (counts.nodes, counts.node_bytes),
            (nodes.len() as u64, model.charged(None))
        );
        assert!(counts.node_bytes <= limits.node_bytes);
        assert!((0..4).all(|t| model.charged(Some(t)) <= limits.topic_node_bytes));
        records.write(&mut registry);
        // What is on disk is what is kept.
        let on_disk = records
            .0
            .keys()
            .filter(|key| key.starts_with(&sealed_nodes_prefix()));
        assert_eq!(on_disk.count(), nodes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn nodes_are_kept_as_a_naive_model_keeps_them_and_within_all_bounds(steps in steps()) {
        play(steps);
    }
}
