use super::*;
use crate::protocol::{HOLDERS_MAX, PEERS_MAX};

const LEASE: u64 = 90_000;
const A: Topic = Topic([0xa; 32]);
const B: Topic = Topic([0xb; 32]);

/// Distinct peers with stable names.
pub(super) fn peer(name: u8) -> PeerId {
    let mut seed = [name; 32];
    let secret = libp2p::identity::Keypair::ed25519_from_bytes(&mut seed).unwrap();
    secret.public().to_peer_id()
}

pub(super) fn key(name: u8) -> SealedKey {
    SealedKey([name; 32])
}

fn at(port: u16) -> Vec<Multiaddr> {
    vec![format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()]
}

fn registry() -> Registry {
    Registry::new(Limits::default(), LEASE)
}

/// Announced peers with these names, each at the port of its name.
fn with_peers(names: &[u8]) -> Registry {
    let mut registry = registry();
    for name in names {
        registry
            .announce(0, A, peer(*name), at((*name).into()))
            .unwrap();
    }
    registry
}

fn listed(registry: &mut Registry, now: u64, topic: Topic) -> BTreeSet<PeerId> {
    // Nobody is called 255.
    let peers = registry.peers(now, &topic, &peer(255), 0);
    peers.into_iter().map(|located| located.peer).collect()
}

fn holders(registry: &mut Registry, now: u64, topic: Topic, of: SealedKey) -> BTreeSet<PeerId> {
    let found = registry.holders(now, &topic, &peer(255), &[of], 0).unwrap();
    let slots = found.holders.first().unwrap();
    slots
        .iter()
        .map(|slot| found.peers.get(usize::from(*slot)).unwrap().peer)
        .collect()
}

fn set(names: &[u8]) -> BTreeSet<PeerId> {
    names.iter().map(|name| peer(*name)).collect()
}

/// What the deltas leave behind when written down.
#[derive(Clone, Default)]
pub(super) struct Records(pub(super) BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    pub(super) fn write(&mut self, registry: &mut Registry) {
        for delta in registry.take_deltas() {
            match delta {
                Delta::Put { key, value } => {
                    self.0.insert(key, value);
                }
                Delta::Delete { key } => {
                    self.0.remove(&key);
                }
                Delta::DeletePrefix { prefix } => self.0.retain(|key, _| !key.starts_with(&prefix)),
            }
        }
    }

    pub(super) fn restart(&self, now: u64, limits: Limits, lease_ms: u64) -> Registry {
        let mut registry = Registry::new(limits, lease_ms);
        for (key, value) in self.0.range(..sealed_nodes_prefix().to_vec()) {
            registry.load(now, key, value).unwrap();
        }
        assert_eq!(registry.take_deltas(), []);
        registry
    }
}

#[test]
fn peers_of_a_topic_see_each_other_and_nobody_else() {
    let mut registry = with_peers(&[1, 2]);
    registry.announce(0, B, peer(3), at(3)).unwrap();
    assert_eq!(listed(&mut registry, 0, A), set(&[1, 2]));
    assert_eq!(listed(&mut registry, 0, B), set(&[3]));
    let others = registry.peers(0, &A, &peer(1), 5);
    assert_eq!(
        others,
        [Located {
            peer: peer(2),
            addresses: at(2)
        }]
    );
    assert_eq!(registry.where_is(0, &A, &peer(3)), None);
    assert_eq!(registry.where_is(0, &B, &peer(3)).unwrap().addresses, at(3));
}

#[test]
fn an_answer_names_a_bounded_choice_that_begins_anywhere() {
    let names: Vec<u8> = (0..200).collect();
    let mut registry = with_peers(&names);
    let mut seen = BTreeSet::new();
    for random in 0..200 {
        let some = registry.peers(0, &A, &peer(255), random * 7919);
        assert_eq!(some.len(), PEERS_MAX);
        seen.extend(some.into_iter().map(|located| located.peer));
    }
    assert_eq!(seen.len(), 200);
    for name in &names {
        registry.holds(0, A, &peer(*name), &[key(1)], &[]).unwrap();
    }
    let mut seen = BTreeSet::new();
    for random in 0..200 {
        let found = registry
            .holders(0, &A, &peer(255), &[key(1)], random)
            .unwrap();
        assert_eq!(found.holders.first().unwrap().len(), HOLDERS_MAX);
        seen.extend(found.peers.into_iter().map(|located| located.peer));
    }
    assert_eq!(seen.len(), 200);
}

#[test]
fn a_lease_runs_out_unless_renewed_and_takes_everything_along() {
    let mut registry = with_peers(&[1, 2]);
    for name in [1, 2] {
        registry.holds(0, A, &peer(name), &[key(7)], &[]).unwrap();
    }
    registry.renew(60_000, A, &peer(2)).unwrap();
    assert_eq!(registry.poll_timeout(), Some(LEASE));
    assert_eq!(holders(&mut registry, LEASE - 1, A, key(7)), set(&[1, 2]));
    assert_eq!(holders(&mut registry, LEASE, A, key(7)), set(&[2]));
    assert_eq!(
        registry.renew(LEASE, A, &peer(1)),
        Err(Refusal::NotAnnounced)
    );
    assert_eq!(listed(&mut registry, 60_000 + LEASE, A), set(&[]));
    assert_eq!(registry.counts(), Counts::default());
    assert_eq!(registry.poll_timeout(), None);
}

#[test]
fn announcing_again_moves_a_peer_and_keeps_what_it_holds() {
    let mut registry = with_peers(&[1]);
    registry.holds(0, A, &peer(1), &[key(7)], &[]).unwrap();
    let digest = registry.announce(10, A, peer(1), at(99)).unwrap();
    assert_eq!(digest.count, 1);
    assert_eq!(
        registry.where_is(10, &A, &peer(1)).unwrap().addresses,
        at(99)
    );
    assert_eq!(holders(&mut registry, LEASE + 9, A, key(7)), set(&[1]));
}

#[test]
fn what_is_held_changes_step_by_step_and_the_digest_follows() {
    let mut registry = with_peers(&[1]);
    let me = peer(1);
    registry
        .holds(0, A, &me, &[key(1), key(2), key(1)], &[])
        .unwrap();
    registry
        .holds(0, A, &me, &[key(3)], &[key(1), key(9)])
        .unwrap();
    let mut expected = HoldsDigest::default();
    expected.add(&key(2));
    expected.add(&key(3));
    assert_eq!(registry.renew(0, A, &me), Ok(expected));
    assert_eq!(holders(&mut registry, 0, A, key(1)), set(&[]));
    assert_eq!(holders(&mut registry, 0, A, key(2)), set(&[1]));
    registry.holds_reset(0, A, &me).unwrap();
    assert_eq!(registry.renew(0, A, &me), Ok(HoldsDigest::default()));
    assert_eq!(holders(&mut registry, 0, A, key(2)), set(&[]));
    assert_eq!(registry.counts().keys, 0);
}

#[test]
fn one_who_has_not_announced_lists_nothing() {
    let mut registry = registry();
    let refused = Err(Refusal::NotAnnounced);
    assert_eq!(registry.holds(0, A, &peer(1), &[key(1)], &[]), refused);
    assert_eq!(registry.holds_reset(0, A, &peer(1)), refused);
    registry.leave(0, A, &peer(1));
    assert_eq!(registry.counts(), Counts::default());
}

#[test]
fn the_asker_is_not_told_about_itself() {
    let mut registry = with_peers(&[1, 2]);
    for name in [1, 2] {
        registry.holds(0, A, &peer(name), &[key(7)], &[]).unwrap();
    }
    let found = registry
        .holders(0, &A, &peer(1), &[key(8), key(7)], 0)
        .unwrap();
    assert_eq!(found.holders, [vec![], vec![0]]);
    assert_eq!(found.peers.first().unwrap().peer, peer(2));
}

#[test]
fn leaving_deletes_everything_of_the_peer_but_its_head() {
    let mut registry = with_peers(&[1, 2]);
    let mut records = Records::default();
    registry.holds(0, A, &peer(1), &[key(7)], &[]).unwrap();
    registry.put_head(0, A, peer(1), vec![1]).unwrap();
    records.write(&mut registry);
    registry.leave(5, A, &peer(1));
    records.write(&mut registry);
    assert_eq!(listed(&mut registry, 5, A), set(&[2]));
    assert_eq!(holders(&mut registry, 5, A, key(7)), set(&[]));
    assert_eq!(registry.heads(5, &A).len(), 1);
    assert_eq!(records.0.len(), 2, "one peer and one head");
}

#[test]
fn a_reported_peer_is_withheld_at_once_and_comes_back_when_reached() {
    let mut registry = with_peers(&[1, 2]);
    registry.holds(0, A, &peer(2), &[key(7)], &[]).unwrap();
    registry.report(10, A, &peer(1), &peer(2));
    assert_eq!(listed(&mut registry, 10, A), set(&[1]));
    assert_eq!(holders(&mut registry, 10, A, key(7)), set(&[]));
    assert_eq!(registry.where_is(10, &A, &peer(2)), None);
    assert_eq!(
        registry.poll_output(10),
        Some(DialBack {
            topic: A,
            located: Located {
                peer: peer(2),
                addresses: at(2)
            }
        })
    );
    registry.report(11, A, &peer(1), &peer(2));
    assert_eq!(registry.poll_output(11), None, "one dial at a time");
    registry.handle_dialed(12, A, &peer(2), true);
    assert_eq!(listed(&mut registry, 12, A), set(&[1, 2]));
    assert_eq!(holders(&mut registry, 12, A, key(7)), set(&[2]));
    // Reports of a peer that was just reached cost neither it nor the tracker anything.
    registry.report(13, A, &peer(1), &peer(2));
    assert_eq!(listed(&mut registry, 13, A), set(&[1, 2]));
    registry.report(12 + REACHED_MS, A, &peer(1), &peer(2));
    assert_eq!(listed(&mut registry, 12 + REACHED_MS, A), set(&[1]));
}

#[test]
fn a_reported_peer_that_is_not_reached_vanishes() {
    let mut registry = with_peers(&[1, 2]);
    registry.holds(0, A, &peer(2), &[key(7)], &[]).unwrap();
    registry.report(10, A, &peer(1), &peer(2));
    assert!(registry.poll_output(10).is_some());
    registry.handle_dialed(20, A, &peer(2), false);
    assert_eq!(registry.counts().peers, 1);
    assert_eq!(registry.counts().keys, 0);
    assert_eq!(
        registry.renew(20, A, &peer(2)),
        Err(Refusal::NotAnnounced),
        "it learns that it was dropped"
    );
}

#[test]
fn a_dropped_peer_that_announces_itself_waits_until_it_is_reached() {
    for leaves in [false, true] {
        let mut registry = with_peers(&[1, 2]);
        registry.report(10, A, &peer(1), &peer(2));
        assert!(registry.poll_output(10).is_some());
        if leaves {
            registry.leave(20, A, &peer(2));
        } else {
            registry.handle_dialed(20, A, &peer(2), false);
        }
        assert_eq!(registry.poll_timeout(), Some(LEASE), "no dial is left");
        registry.announce(30, A, peer(2), at(2)).unwrap();
        assert_eq!(listed(&mut registry, 30, A), set(&[1]));
        assert_eq!(registry.poll_output(30), None, "not dialed in a hurry");
        assert_eq!(registry.poll_timeout(), Some(20 + REDIAL_MS));
        assert!(registry.poll_output(20 + REDIAL_MS).is_some());
        registry.handle_dialed(20 + REDIAL_MS, A, &peer(2), true);
        assert_eq!(listed(&mut registry, 20 + REDIAL_MS, A), set(&[1, 2]));
    }
}

#[test]
fn suspicion_ends_after_a_while() {
    let mut registry = with_peers(&[2]);
    registry.announce(0, A, peer(1), at(1)).unwrap();
    registry.report(10, A, &peer(1), &peer(2));
    registry.handle_dialed(20, A, &peer(2), false);
    for now in (0..=700_000).step_by(60_000) {
        registry.renew(now.max(20), A, &peer(1)).unwrap();
    }
    registry
        .announce(20 + SUSPECT_MS + 60_000, A, peer(2), at(2))
        .unwrap();
    assert_eq!(
        listed(&mut registry, 20 + SUSPECT_MS + 60_000, A),
        set(&[1, 2])
    );
}

#[test]
fn a_dial_back_whose_outcome_got_lost_is_asked_for_again() {
    let mut registry = with_peers(&[1, 2]);
    registry.report(10, A, &peer(1), &peer(2));
    assert!(registry.poll_output(10).is_some());
    assert_eq!(registry.poll_output(10 + DIAL_LOST_MS - 1), None);
    assert_eq!(registry.poll_timeout(), Some(10 + DIAL_LOST_MS));
    assert!(registry.poll_output(10 + DIAL_LOST_MS).is_some());
}

#[test]
fn reports_of_oneself_and_of_strangers_change_nothing() {
    let mut registry = with_peers(&[1]);
    registry.take_deltas();
    registry.report(0, A, &peer(1), &peer(1));
    registry.report(0, A, &peer(1), &peer(9));
    registry.report(0, B, &peer(1), &peer(1));
    registry.handle_dialed(0, A, &peer(9), false);
    registry.handle_dialed(0, A, &peer(1), false);
    assert_eq!(registry.poll_output(0), None);
    assert_eq!(listed(&mut registry, 0, A), set(&[1]));
    assert_eq!(registry.take_deltas(), []);
}

#[test]
fn heads_are_one_a_peer_newest_first_with_their_age() {
    let mut registry = registry();
    registry.put_head(1000, A, peer(1), vec![1]).unwrap();
    registry.put_head(2000, A, peer(2), vec![2]).unwrap();
    registry.put_head(3000, A, peer(1), vec![3]).unwrap();
    let heads = registry.heads(5000, &A);
    let heads: Vec<_> = heads.iter().map(|h| (h.sealed[0], h.age_ms)).collect();
    assert_eq!(heads, [(3, 2000), (2, 3000)]);
    assert_eq!(registry.heads(5000, &B), []);
    // The same head from another peer is not kept twice.
    registry.put_head(6000, A, peer(3), vec![3]).unwrap();
    assert_eq!(registry.heads(6000, &A).len(), 2);
}

#[test]
fn only_the_newest_heads_are_kept() {
    let mut registry = registry();
    for name in 0..HEADS_MAX as u8 + 3 {
        let now = u64::from(name);
        registry.put_head(now, A, peer(name), vec![name]).unwrap();
    }
    let heads = registry.heads(100, &A);
    assert_eq!(heads.len(), HEADS_MAX);
    assert!(heads.iter().all(|head| head.sealed[0] >= 3));
    assert_eq!(registry.counts().head_bytes, HEADS_MAX as u64);
    let too_long = vec![0; HEAD_BYTES_MAX + 1];
    assert_eq!(
        registry.put_head(100, A, peer(1), too_long),
        Err(Refusal::Malformed)
    );
}

#[test]
fn heads_outlive_all_peers_for_a_month() {
    let mut registry = with_peers(&[1]);
    registry.put_head(0, A, peer(1), vec![1]).unwrap();
    let last = LEASE + IDLE_TOPIC_MS;
    // The lease ends when somebody looks.
    registry.handle_timeout(LEASE);
    assert_eq!(registry.poll_timeout(), Some(last));
    assert_eq!(registry.heads(last - 1, &A).len(), 1);
    assert_eq!(registry.heads(last, &A), []);
    assert_eq!(registry.counts(), Counts::default());
}

#[test]
fn every_limit_refuses_and_says_which() {
    let limits = Limits {
        topics: 2,
        topic_peers: 2,
        peer_keys: 2,
        keys: 3,
        head_bytes: 10,
        ..Limits::default()
    };
    let full = |limit| Err(Refusal::Full(limit));
    let mut registry = Registry::new(limits, LEASE);
    for name in [1, 2] {
        registry.announce(0, A, peer(name), at(1)).unwrap();
    }
    let third = registry.announce(0, A, peer(3), at(1));
    assert_eq!(third, Err(Refusal::Full(Limit::PeersOfTopic)));
    assert!(registry.announce(0, A, peer(2), at(2)).is_ok());
    let keys = [key(1), key(2), key(3)];
    assert_eq!(
        registry.holds(0, A, &peer(1), &keys, &[]),
        full(Limit::KeysOfPeer)
    );
    assert_eq!(registry.holds(0, A, &peer(1), &keys[..2], &[]), Ok(()));
    assert_eq!(
        registry.holds(0, A, &peer(2), &keys[..2], &[]),
        full(Limit::Keys)
    );
    assert_eq!(registry.counts().keys, 3, "what fitted stays");
    assert_eq!(
        registry.holds(0, A, &peer(2), &keys[1..2], &keys[..1]),
        Ok(()),
        "room is made first"
    );
    let many = vec![key(1); KEYS_MAX];
    assert_eq!(
        registry.holds(0, A, &peer(2), &many, &keys),
        Err(Refusal::Malformed)
    );
    let many = vec![key(1); LOOKUP_KEYS_MAX + 1];
    assert_eq!(
        registry.holders(0, &A, &peer(2), &many, 0),
        Err(Refusal::Malformed)
    );
    registry.put_head(0, A, peer(1), vec![0; 8]).unwrap();
    registry.put_head(0, A, peer(1), vec![1; 10]).unwrap();
    assert_eq!(
        registry.put_head(0, A, peer(2), vec![2; 1]),
        full(Limit::HeadBytes)
    );
    registry.announce(0, B, peer(1), at(1)).unwrap();
    let another = registry.announce(0, Topic([0xc; 32]), peer(1), at(1));
    assert_eq!(another, Err(Refusal::Full(Limit::Topics)));
}

#[test]
fn topics_without_peers_make_room_oldest_first() {
    let limits = Limits {
        topics: 2,
        head_bytes: 10,
        ..Limits::default()
    };
    let mut registry = Registry::new(limits, LEASE);
    let mut records = Records::default();
    registry.put_head(1, A, peer(1), vec![0; 4]).unwrap();
    registry.put_head(2, B, peer(1), vec![1; 4]).unwrap();
    registry.put_head(3, A, peer(1), vec![2; 5]).unwrap();
    // B is the one without news for longest by now.
    let c = Topic([0xc; 32]);
    registry.announce(4, c, peer(1), at(1)).unwrap();
    assert_eq!(registry.heads(4, &B), []);
    registry.put_head(5, c, peer(1), vec![3; 6]).unwrap();
    assert_eq!(registry.heads(5, &A), []);
    assert_eq!(registry.counts().head_bytes, 6);
    records.write(&mut registry);
    assert_eq!(records.0.len(), 2);
}

#[test]
fn a_restart_forgets_nothing_and_grants_each_lease_anew() {
    let mut registry = with_peers(&[1, 2, 3]);
    let mut records = Records::default();
    for name in [1, 2, 3] {
        registry
            .holds(0, A, &peer(name), &[key(7), key(name)], &[])
            .unwrap();
    }
    registry.put_head(500, A, peer(1), vec![5]).unwrap();
    registry.put_head(600, B, peer(1), vec![6]).unwrap();
    registry.report(1000, A, &peer(1), &peer(3));
    records.write(&mut registry);
    // Long after every lease would have ended.
    let now = 10 * LEASE;
    let mut again = records.restart(now, Limits::default(), LEASE);
    assert_eq!(again.counts(), registry.counts());
    assert_eq!(listed(&mut again, now, A), set(&[1, 2]));
    assert_eq!(holders(&mut again, now, A, key(7)), set(&[1, 2]));
    assert_eq!(again.where_is(now, &A, &peer(2)).unwrap().addresses, at(2));
    assert_eq!(again.heads(now, &A)[0].age_ms, now - 500);
    assert_eq!(again.heads(now, &B)[0].age_ms, now - 600);
    assert!(again.poll_output(now).is_some(), "still to be dialed back");
    let digest = registry.renew(1000, A, &peer(2));
    assert_eq!(again.renew(now, A, &peer(2)), digest);
    assert_eq!(listed(&mut again, now + LEASE, A), set(&[]));
}

#[test]
fn damaged_and_orphaned_records_are_refused_one_by_one() {
    let mut registry = with_peers(&[1]);
    let mut records = Records::default();
    registry.holds(0, A, &peer(1), &[key(7)], &[]).unwrap();
    registry.put_head(0, A, peer(1), vec![1]).unwrap();
    records.write(&mut registry);
    assert_eq!(records.0.len(), 3);
    for (record, value) in &records.0 {
        for cut in 0..record.len() {
            let outcome = Registry::new(Limits::default(), LEASE).load(0, &record[..cut], value);
            assert!(outcome.is_err());
        }
        for cut in 0..value.len() {
            let outcome = Registry::new(Limits::default(), LEASE).load(0, record, &value[..cut]);
            assert_eq!(outcome, Err(RecordError::Damaged));
        }
        if let Some((_, body)) = value.split_first() {
            let newer = [&[2], body].concat();
            let outcome = Registry::new(Limits::default(), LEASE).load(0, record, &newer);
            assert_eq!(outcome, Err(RecordError::Damaged));
        }
    }
    let held = records
        .0
        .iter()
        .find(|(_, value)| value.is_empty())
        .unwrap();
    let orphan = Registry::new(Limits::default(), LEASE).load(0, held.0, held.1);
    assert_eq!(orphan, Err(RecordError::Orphan));
    let small = Limits {
        topics: 0,
        ..Limits::default()
    };
    for (record, value) in &records.0 {
        assert!(Registry::new(small, LEASE).load(0, record, value).is_err());
    }
}

#[test]
fn the_format_of_records_is_pinned() {
    let mut registry = Registry::new(Limits::default(), LEASE);
    let mut records = Records::default();
    registry.announce(0, A, peer(1), at(1)).unwrap();
    registry.holds(0, A, &peer(1), &[key(7)], &[]).unwrap();
    registry.put_head(5, A, peer(1), vec![9]).unwrap();
    records.write(&mut registry);
    let mut all = blake3::Hasher::new();
    for (key, value) in &records.0 {
        all.update(&(key.len() as u64).to_be_bytes()).update(key);
        all.update(&(value.len() as u64).to_be_bytes())
            .update(value);
    }
    assert_eq!(
        all.finalize().to_hex().as_str(),
        "4961b946139dafc1cd87c7a126968adc5aac9d8e998cc8e5aa0d3466bf4fed80"
    );
}
