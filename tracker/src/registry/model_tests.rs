//! The registry against a naive model, over random interleavings of everything that can happen.

use proptest::prelude::*;

use super::{
    tests::{Records, key, peer},
    *,
};

const LEASE: u64 = 1000;
const TOPICS: u8 = 2;
const PEERS: u8 = 4;
const KEYS: u8 = 5;

#[derive(Clone, Debug)]
enum Step {
    Announce(u8, u8),
    Renew(u8, u8),
    Leave(u8, u8),
    Reset(u8, u8),
    Holds(u8, u8, Vec<u8>, Vec<u8>),
    Report(u8, u8, u8),
    Dialed(u8, u8, bool),
    Head(u8, u8, u8),
    Wait(u64),
    TakeOutputs,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (t, p) = (0..TOPICS, 0..PEERS);
    let keys = || proptest::collection::vec(0..KEYS, 0..4);
    let who = (t.clone(), p.clone());
    let step = prop_oneof![
        3 => who.clone().prop_map(|(t, p)| Step::Announce(t, p)),
        2 => who.clone().prop_map(|(t, p)| Step::Renew(t, p)),
        1 => who.clone().prop_map(|(t, p)| Step::Leave(t, p)),
        1 => who.clone().prop_map(|(t, p)| Step::Reset(t, p)),
        4 => (t.clone(), p.clone(), keys(), keys()).prop_map(|(t, p, a, r)| Step::Holds(t, p, a, r)),
        2 => (t.clone(), p.clone(), p.clone()).prop_map(|(t, p, o)| Step::Report(t, p, o)),
        2 => (t.clone(), p.clone(), any::<bool>()).prop_map(|(t, p, ok)| Step::Dialed(t, p, ok)),
        1 => (t, p, any::<u8>()).prop_map(|(t, p, h)| Step::Head(t, p, h)),
        2 => (1u64..15_000).prop_map(Step::Wait),
        2 => (1u64..400).prop_map(Step::Wait),
        1 => Just(Step::TakeOutputs),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

fn topic(name: u8) -> Topic {
    Topic([name; 32])
}

#[derive(Clone, Default)]
struct ModelPeer {
    ends: u64,
    keys: BTreeSet<u8>,
    withheld: bool,
    reached: Option<u64>,
}

/// Everything by scanning, nothing by index.
#[derive(Default)]
struct Model {
    peers: BTreeMap<(u8, u8), ModelPeer>,
    /// Until when a peer that announces itself is withheld.
    suspects: BTreeMap<(u8, u8), u64>,
    heads: BTreeMap<(u8, u8), (u64, u8)>,
}

impl Model {
    fn remove(&mut self, now: u64, who: (u8, u8)) {
        if self.peers.remove(&who).is_some_and(|gone| gone.withheld) {
            self.suspects.insert(who, now + SUSPECT_MS);
        }
        self.forget_empty_topic(who.0);
    }

    /// With the last peer of a topic without heads goes the topic, and with it what was remembered there.
    fn forget_empty_topic(&mut self, t: u8) {
        let lives = self.peers.keys().any(|who| who.0 == t) || self.heads.keys().any(|w| w.0 == t);
        if !lives {
            self.suspects.retain(|who, _| who.0 != t);
        }
    }

    fn expire(&mut self, now: u64) {
        let gone: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.ends <= now)
            .map(|(who, _)| *who)
            .collect();
        for who in gone {
            self.remove(now, who);
        }
    }
}

/// Both hand out the same peers, addresses aside, for everything that can be asked.
fn compare(registry: &mut Registry, model: &Model, now: u64) {
    let stranger = peer(200);
    for t in 0..TOPICS {
        let shown = |filter: &dyn Fn(&ModelPeer) -> bool| -> BTreeSet<PeerId> {
            let peers = model.peers.iter();
            peers
                .filter(|(who, state)| who.0 == t && !state.withheld && filter(state))
                .map(|(who, _)| peer(who.1))
                .collect()
        };
        let listed = registry.peers(now, &topic(t), &stranger, now);
        let listed: BTreeSet<_> = listed.into_iter().map(|located| located.peer).collect();
        assert_eq!(listed, shown(&|_| true));
        let keys: Vec<_> = (0..KEYS).map(key).collect();
        let found = registry
            .holders(now, &topic(t), &stranger, &keys, now)
            .unwrap();
        for k in 0..KEYS {
            let slots = &found.holders[usize::from(k)];
            let named: Vec<_> = slots
                .iter()
                .map(|slot| found.peers[usize::from(*slot)].peer)
                .collect();
            let distinct: BTreeSet<_> = named.iter().copied().collect();
            assert_eq!(named.len(), distinct.len());
            assert_eq!(distinct, shown(&|state| state.keys.contains(&k)));
        }
        for p in 0..PEERS {
            let shown = model
                .peers
                .get(&(t, p))
                .is_some_and(|state| !state.withheld);
            let found = registry.where_is(now, &topic(t), &peer(p));
            assert_eq!(found.is_some(), shown);
        }
        let heads = registry.heads(now, &topic(t));
        let mut ages: Vec<_> = heads.iter().map(|h| (h.sealed.clone(), h.age_ms)).collect();
        let mut expected: Vec<_> = model
            .heads
            .iter()
            .filter(|(who, _)| who.0 == t)
            .map(|(_, (at, head))| (vec![*head], now - at))
            .collect();
        ages.sort();
        expected.sort();
        assert_eq!(ages, expected);
    }
    assert_eq!(registry.counts().peers, model.peers.len());
    let keys: usize = model.peers.values().map(|state| state.keys.len()).sum();
    assert_eq!(registry.counts().keys, keys as u64);
    assert_eq!(registry.counts().head_bytes, model.heads.len() as u64);
}

fn play(steps: Vec<Step>) {
    let limits = Limits::default();
    let mut registry = Registry::new(limits, LEASE);
    let mut records = Records::default();
    let mut model = Model::default();
    let mut now = 0;
    for step in steps {
        model.expire(now);
        match step {
            Step::Announce(t, p) => {
                let digest = registry
                    .announce(now, topic(t), peer(p), Vec::new())
                    .unwrap();
                let suspect = model
                    .suspects
                    .get(&(t, p))
                    .is_some_and(|until| *until > now);
                let state = model.peers.entry((t, p)).or_insert_with(|| ModelPeer {
                    withheld: suspect,
                    ..ModelPeer::default()
                });
                model.suspects.remove(&(t, p));
                state.ends = now + LEASE;
                let mut expected = HoldsDigest::default();
                state.keys.iter().for_each(|k| expected.add(&key(*k)));
                assert_eq!(digest, expected);
            }
            Step::Renew(t, p) => {
                let renewed = registry.renew(now, topic(t), &peer(p));
                let state = model.peers.get_mut(&(t, p));
                assert_eq!(renewed.is_ok(), state.is_some());
                if let Some(state) = state {
                    state.ends = now + LEASE;
                }
            }
            Step::Leave(t, p) => {
                registry.leave(now, topic(t), &peer(p));
                model.remove(now, (t, p));
            }
            Step::Reset(t, p) => {
                let done = registry.holds_reset(now, topic(t), &peer(p));
                let state = model.peers.get_mut(&(t, p));
                assert_eq!(done.is_ok(), state.is_some());
                if let Some(state) = state {
                    state.keys.clear();
                }
            }
            Step::Holds(t, p, add, remove) => {
                let added: Vec<_> = add.iter().copied().map(key).collect();
                let removed: Vec<_> = remove.iter().copied().map(key).collect();
                let done = registry.holds(now, topic(t), &peer(p), &added, &removed);
                let state = model.peers.get_mut(&(t, p));
                assert_eq!(done.is_ok(), state.is_some());
                if let Some(state) = state {
                    state.keys.retain(|k| !remove.contains(k));
                    state.keys.extend(add);
                }
            }
            Step::Report(t, p, other) => {
                registry.report(now, topic(t), &peer(p), &peer(other));
                if let Some(state) = model.peers.get_mut(&(t, other))
                    && p != other
                    && state.reached.is_none_or(|at| now - at >= REACHED_MS)
                {
                    state.withheld = true;
                }
            }
            Step::Dialed(t, p, ok) => {
                registry.handle_dialed(now, topic(t), &peer(p), ok);
                match model.peers.get_mut(&(t, p)) {
                    Some(state) if state.withheld && ok => {
                        state.withheld = false;
                        state.reached = Some(now);
                    }
                    Some(state) if state.withheld => model.remove(now, (t, p)),
                    _ => {}
                }
            }
            Step::Head(t, p, head) => {
                registry
                    .put_head(now, topic(t), peer(p), vec![head])
                    .unwrap();
                model.heads.retain(|who, (_, h)| who.0 != t || *h != head);
                model.heads.insert((t, p), (now, head));
            }
            Step::Wait(ms) => {
                // As a shell would: at every moment that was asked for.
                let end = now + ms;
                while let Some(due) = registry.poll_timeout().filter(|due| *due <= end) {
                    now = now.max(due);
                    registry.handle_timeout(now);
                    model.expire(now);
                    while registry.poll_output(now).is_some() {}
                }
                now = end;
            }
            Step::TakeOutputs => {
                while let Some(DialBack { topic: t, located }) = registry.poll_output(now) {
                    let state = model
                        .peers
                        .iter()
                        .find(|(who, _)| topic(who.0) == t && peer(who.1) == located.peer);
                    assert!(state.is_some_and(|(_, state)| state.withheld));
                }
            }
            Step::Restart => {
                records.write(&mut registry);
                registry = records.restart(now, limits, LEASE);
                for state in model.peers.values_mut() {
                    state.ends = now + LEASE;
                    state.reached = None;
                }
                model.suspects.clear();
            }
        }
        model.expire(now);
        compare(&mut registry, &model, now);
        records.write(&mut registry);
        let mut again = records.restart(now, limits, LEASE);
        assert_eq!(again.counts(), registry.counts());
        assert_eq!(
            again.poll_output(now).is_some(),
            model.peers.values().any(|s| s.withheld)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_registry_does_what_a_naive_model_does(steps in steps()) {
        play(steps);
    }
}
