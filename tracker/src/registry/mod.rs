//! What a tracker knows, and every decision about it. Pure: no clock, no I/O, ordered maps, randomness as an argument.
//!
//! Times are milliseconds since the Unix epoch, so that the age of a head survives a restart; they never decrease from call
//! to call. The shell calls [`Registry::handle_timeout`] by [`Registry::poll_timeout`], executes what
//! [`Registry::poll_output`] asks for, and writes down what [`Registry::take_deltas`] gives, in that order, before it answers.
//! From those records [`Registry::load`] builds the same state again, every lease running anew.
//!
//! Invariants:
//! * a peer is listed exactly while its lease runs; with it go its addresses and all that it holds;
//! * a withheld peer (reported, not reached since) is in no answer, and a dial-back is due for it;
//! * a look-up costs in proportion to its answer, the withheld peers that it passes over, and the logarithm of the index;
//! * heads and manifest nodes belong to the cluster: they outlive the peer that handed them in, and a topic without peers
//!   is kept for their sake for [`IDLE_TOPIC_MS`], or until room is needed;
//! * the bytes of a manifest node are in the records alone, its place in memory;
//! * no [`Limits`] is ever exceeded.

mod nodes;
mod record;
mod topic;
mod values;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use libp2p::{Multiaddr, PeerId};

use crate::protocol::{
    GET_BYTES_MAX, GET_NODES_MAX, HAVE_NODES_MAX, HEAD_BYTES_MAX, HEADS_MAX, HoldsDigest, KEYS_MAX,
    LOOKUP_KEYS_MAX, Limit, NODE_BYTES_MAX, PUT_BYTES_MAX, PUT_NODES_MAX, Refusal, SealedKey,
    Topic,
};
use nodes::Nodes;
pub use record::{
    Delta, RecordError, companion as companion_of_record, sealed_node, sealed_node_key,
    sealed_nodes_prefix,
};
use topic::{PeerNo, PeerState, Suspect, TopicState};
pub use values::{AgedHead, Counts, DialBack, Found, Limits, Located};

/// How long the heads and nodes of a topic without peers are kept: a month of holidays.
pub const IDLE_TOPIC_MS: u64 = 30 * 24 * 3600 * 1000;
/// A peer that was reached this short a time ago isn't withheld for another report: reports cost the tracker a dial each.
const REACHED_MS: u64 = 10_000;
/// How long the tracker remembers that a peer could not be reached; if it announces itself meanwhile, it starts withheld.
const SUSPECT_MS: u64 = 600_000;
/// Least time between two dial-backs of one peer, so that a tracker is no tool to flood an address with connections.
const REDIAL_MS: u64 = 10_000;
/// A dial-back without outcome for so long is asked for again; the shell's own deadline is far shorter.
const DIAL_LOST_MS: u64 = 30_000;

/// The registry.
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    lease_ms: u64,
    topics: BTreeMap<Topic, TopicState>,
    /// When each lease ends.
    leases: BTreeSet<(u64, Topic, PeerNo)>,
    /// When each withheld peer is to be dialed.
    dials: BTreeSet<(u64, Topic, PeerNo)>,
    /// Topics without peers, by when they lost the last one.
    idle: BTreeSet<(u64, Topic)>,
    keys: u64,
    head_bytes: u64,
    nodes: Nodes,
    deltas: Vec<Delta>,
}

impl Registry {
    /// An empty registry that grants leases of `lease_ms`.
    pub fn new(limits: Limits, lease_ms: u64) -> Self {
        Self {
            limits,
            lease_ms,
            topics: BTreeMap::new(),
            leases: BTreeSet::new(),
            dials: BTreeSet::new(),
            idle: BTreeSet::new(),
            keys: 0,
            head_bytes: 0,
            nodes: Nodes::default(),
            deltas: Vec::new(),
        }
    }

    /// The length of a lease in milliseconds.
    pub fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            topics: self.topics.len(),
            peers: self.leases.len(),
            keys: self.keys,
            head_bytes: self.head_bytes,
            nodes: self.nodes.count(),
            node_bytes: self.nodes.charged(),
        }
    }

    /// Changes since the last call, to be written in this order.
    pub fn take_deltas(&mut self) -> Vec<Delta> {
        std::mem::take(&mut self.deltas)
    }

    /// Begins or renews a lease and sets the addresses; answers with what the peer is known to hold.
    pub fn announce(
        &mut self,
        now: u64,
        topic: Topic,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Result<HoldsDigest, Refusal> {
        self.handle_timeout(now);
        let known = self
            .topics
            .get(&topic)
            .and_then(|state| state.number(&peer));
        let no = match known {
            Some(no) => no,
            None => {
                let topic_peers = self.limits.topic_peers;
                let state = self.topic_or_new(topic)?;
                if state.peers.len() >= topic_peers {
                    return Err(Refusal::Full(Limit::PeersOfTopic));
                }
                let no = state.free_number();
                let mut entry = PeerState::new(peer);
                let suspect = state.suspects.remove(&peer);
                entry.dial_due_ms = suspect
                    .filter(|suspect| suspect.until_ms > now)
                    .map(|suspect| suspect.dial_from_ms.max(now));
                let dial_due = entry.dial_due_ms;
                state.insert(no, entry);
                if let Some(since) = state.idle_since_ms.take() {
                    self.idle.remove(&(since, topic));
                }
                self.dials.extend(dial_due.map(|due| (due, topic, no)));
                no
            }
        };
        let ends = now.saturating_add(self.lease_ms);
        let Some(entry) = self
            .topics
            .get_mut(&topic)
            .and_then(|state| state.peers.get_mut(&no))
        else {
            return Err(Refusal::NotAnnounced);
        };
        if known.is_none() || entry.addresses != addresses {
            entry.addresses = addresses;
            self.deltas.push(record::put_peer(&topic, no, entry));
        }
        self.leases.remove(&(entry.lease_ends_ms, topic, no));
        entry.lease_ends_ms = ends;
        self.leases.insert((ends, topic, no));
        Ok(entry.digest)
    }

    /// Renews a lease; answers with what the peer is known to hold.
    pub fn renew(&mut self, now: u64, topic: Topic, peer: &PeerId) -> Result<HoldsDigest, Refusal> {
        self.handle_timeout(now);
        let ends = now.saturating_add(self.lease_ms);
        let (no, entry) = self.entry(&topic, peer).ok_or(Refusal::NotAnnounced)?;
        let (before, digest) = (entry.lease_ends_ms, entry.digest);
        entry.lease_ends_ms = ends;
        self.leases.remove(&(before, topic, no));
        self.leases.insert((ends, topic, no));
        Ok(digest)
    }

    /// Ends a lease and deletes everything of the peer but the heads, which are the cluster's.
    pub fn leave(&mut self, now: u64, topic: Topic, peer: &PeerId) {
        self.handle_timeout(now);
        if let Some(no) = self.topics.get(&topic).and_then(|state| state.number(peer)) {
            self.remove_peer(now, topic, no);
        }
    }

    /// Forgets what a peer holds.
    pub fn holds_reset(&mut self, now: u64, topic: Topic, peer: &PeerId) -> Result<(), Refusal> {
        self.handle_timeout(now);
        let no = self.entry(&topic, peer).ok_or(Refusal::NotAnnounced)?.0;
        if let Some(state) = self.topics.get_mut(&topic) {
            let forgotten = state.forget_keys(no);
            self.keys = self.keys.saturating_sub(forgotten);
            if forgotten > 0 {
                self.deltas.push(record::delete_keys(&topic, no));
            }
        }
        Ok(())
    }

    /// Changes what a peer holds: first removes, then adds. Where a limit stops it, what fitted stays.
    pub fn holds(
        &mut self,
        now: u64,
        topic: Topic,
        peer: &PeerId,
        add: &[SealedKey],
        remove: &[SealedKey],
    ) -> Result<(), Refusal> {
        self.handle_timeout(now);
        if add.len().saturating_add(remove.len()) > KEYS_MAX {
            return Err(Refusal::Malformed);
        }
        let no = self.entry(&topic, peer).ok_or(Refusal::NotAnnounced)?.0;
        let state = self.topics.get_mut(&topic).ok_or(Refusal::NotAnnounced)?;
        for key in remove {
            if state.remove_key(no, key) {
                self.keys = self.keys.saturating_sub(1);
                self.deltas.push(record::delete_key(&topic, no, key));
            }
        }
        for key in add {
            if state.holds(no, key) {
                continue;
            }
            if self.keys >= self.limits.keys {
                return Err(Refusal::Full(Limit::Keys));
            }
            if state.held_count(no) >= self.limits.peer_keys {
                return Err(Refusal::Full(Limit::KeysOfPeer));
            }
            state.add_key(no, key);
            self.keys = self.keys.saturating_add(1);
            self.deltas.push(record::put_key(&topic, no, key));
        }
        Ok(())
    }

    /// Some peers other than the asker, beginning at a random one.
    pub fn peers(&mut self, now: u64, topic: &Topic, asker: &PeerId, random: u64) -> Vec<Located> {
        self.handle_timeout(now);
        self.topics
            .get(topic)
            .map(|state| state.some_peers(asker, random))
            .unwrap_or_default()
    }

    /// Holders of each key other than the asker, beginning at a random one; keys beyond [`LOOKUP_KEYS_MAX`] are refused.
    pub fn holders(
        &mut self,
        now: u64,
        topic: &Topic,
        asker: &PeerId,
        keys: &[SealedKey],
        random: u64,
    ) -> Result<Found, Refusal> {
        self.handle_timeout(now);
        if keys.len() > LOOKUP_KEYS_MAX {
            return Err(Refusal::Malformed);
        }
        Ok(match self.topics.get(topic) {
            Some(state) => state.find(asker, keys, random),
            None => Found {
                peers: Vec::new(),
                holders: vec![Vec::new(); keys.len()],
            },
        })
    }

    /// Where a peer is, if it may be handed out.
    pub fn where_is(&mut self, now: u64, topic: &Topic, peer: &PeerId) -> Option<Located> {
        self.handle_timeout(now);
        self.entry(topic, peer)
            .filter(|(_, entry)| entry.dial_due_ms.is_none())
            .map(|(_, entry)| entry.located())
    }

    /// Keeps a head in place of this peer's last one; it needs no lease.
    pub fn put_head(
        &mut self,
        now: u64,
        topic: Topic,
        peer: PeerId,
        sealed: Vec<u8>,
    ) -> Result<(), Refusal> {
        self.handle_timeout(now);
        if sealed.len() > HEAD_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        // What this head pushes out: the peer's last one, the same one handed in by another, the oldest of too many.
        let mut displaced = BTreeSet::new();
        if let Some(state) = self.topics.get(&topic) {
            for (by, head) in &state.heads {
                if *by == peer || head.sealed == sealed {
                    displaced.insert(*by);
                }
            }
            if displaced.is_empty() && state.heads.len() >= HEADS_MAX {
                let oldest = state
                    .heads
                    .iter()
                    .min_by_key(|(by, head)| (head.at_ms, **by));
                displaced.extend(oldest.map(|(by, _)| *by));
            }
        }
        self.make_room_for_head(&topic, sealed.len() as u64, &displaced)?;
        let state = self.topic_or_new(topic)?;
        let mut freed = 0;
        let mut deleted = Vec::new();
        for by in displaced {
            if let Some(head) = state.heads.remove(&by) {
                freed += head.sealed.len() as u64;
            }
            if by != peer {
                deleted.push(record::delete_head(&topic, &by));
            }
        }
        let size = sealed.len() as u64;
        let head = topic::HeadState { sealed, at_ms: now };
        let put = record::put_head(&topic, &peer, &head);
        state.heads.insert(peer, head);
        if state.peers.is_empty() {
            if let Some(before) = state.idle_since_ms.replace(now) {
                self.idle.remove(&(before, topic));
            }
            self.idle.insert((now, topic));
        }
        self.head_bytes = self.head_bytes.saturating_sub(freed).saturating_add(size);
        self.deltas.extend(deleted);
        self.deltas.push(put);
        Ok(())
    }

    /// The kept heads, newest first.
    pub fn heads(&mut self, now: u64, topic: &Topic) -> Vec<AgedHead> {
        self.handle_timeout(now);
        let Some(state) = self.topics.get(topic) else {
            return Vec::new();
        };
        let mut heads: Vec<_> = state.heads.iter().collect();
        heads.sort_by_key(|(by, head)| (Reverse(head.at_ms), **by));
        heads
            .into_iter()
            .map(|(_, head)| AgedHead {
                sealed: head.sealed.clone(),
                age_ms: now.saturating_sub(head.at_ms),
            })
            .collect()
    }

    /// Which manifest nodes are kept, and how many bytes the cluster's may take at present. Those that are kept count as
    /// new again.
    pub fn have_nodes(
        &mut self,
        now: u64,
        topic: &Topic,
        keys: &[SealedKey],
    ) -> Result<(Vec<bool>, u64), Refusal> {
        self.handle_timeout(now);
        if keys.len() > HAVE_NODES_MAX {
            return Err(Refusal::Malformed);
        }
        let have = keys.iter().map(|key| self.nodes.refresh(now, topic, key));
        let have = have.collect();
        Ok((have, self.nodes.room(topic, &self.limits)))
    }

    /// Keeps sealed nodes of a cluster in which the peer has a lease; those that are kept already count as new again, or
    /// are replaced. Where a limit stops it, what fitted stays.
    pub fn put_nodes(
        &mut self,
        now: u64,
        topic: Topic,
        peer: &PeerId,
        nodes: Vec<(SealedKey, Vec<u8>)>,
        replace: bool,
    ) -> Result<(), Refusal> {
        self.handle_timeout(now);
        let fits = |sealed: &Vec<u8>| (1..=NODE_BYTES_MAX).contains(&sealed.len());
        let total: usize = nodes.iter().map(|(_, sealed)| sealed.len()).sum();
        let well_formed = nodes.len() <= PUT_NODES_MAX
            && total <= PUT_BYTES_MAX
            && nodes.iter().all(|(_, sealed)| fits(sealed));
        if !well_formed {
            return Err(Refusal::Malformed);
        }
        self.entry(&topic, peer).ok_or(Refusal::NotAnnounced)?;
        for (key, sealed) in nodes {
            if replace {
                self.drop_node(&topic, &key);
            } else if self.nodes.refresh(now, &topic, &key) {
                continue;
            }
            let bytes = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
            let mut dropped = Vec::new();
            let room = self
                .nodes
                .make_room(&topic, bytes, &self.limits, &self.idle, &mut dropped);
            for (topic, key) in dropped {
                self.deltas.extend(record::delete_node(&topic, &key));
            }
            room?;
            self.nodes.insert(now, topic, key, bytes);
            self.deltas
                .extend(record::put_node(&topic, &key, now, &sealed));
        }
        Ok(())
    }

    /// For each key, in order, how many bytes its node has, if one is kept; as many as go into one answer. The shell takes
    /// the bytes from the record under [`sealed_node_key`].
    pub fn find_nodes(
        &mut self,
        now: u64,
        topic: &Topic,
        keys: &[SealedKey],
    ) -> Result<Vec<Option<u32>>, Refusal> {
        self.handle_timeout(now);
        if keys.len() > GET_NODES_MAX {
            return Err(Refusal::Malformed);
        }
        let mut found = Vec::new();
        let mut total = 0;
        for key in keys {
            let bytes = self.nodes.bytes(topic, key);
            total += bytes.unwrap_or(0) as usize;
            if total > GET_BYTES_MAX && !found.is_empty() {
                break;
            }
            self.nodes.refresh(now, topic, key);
            found.push(bytes);
        }
        Ok(found)
    }

    /// Forgets a node: its record turned out to be gone, or it is to be replaced.
    pub fn drop_node(&mut self, topic: &Topic, key: &SealedKey) {
        if self.nodes.remove(topic, key) {
            self.deltas.extend(record::delete_node(topic, key));
        }
    }

    /// Withholds a peer until it was reached. Unknown peers and the reporter itself are passed over.
    pub fn report(&mut self, now: u64, topic: Topic, reporter: &PeerId, peer: &PeerId) {
        self.handle_timeout(now);
        if reporter == peer {
            return;
        }
        let Some((no, entry)) = self.entry(&topic, peer) else {
            return;
        };
        let reached_lately = entry
            .reached_ms
            .is_some_and(|at| now.saturating_sub(at) < REACHED_MS);
        if entry.dial_due_ms.is_some() || reached_lately {
            return;
        }
        entry.dial_due_ms = Some(now);
        let put = record::put_peer(&topic, no, entry);
        self.deltas.push(put);
        self.dials.insert((now, topic, no));
    }

    /// The outcome of a dial-back: a reachable peer is handed out again, another is dropped.
    pub fn handle_dialed(&mut self, now: u64, topic: Topic, peer: &PeerId, reachable: bool) {
        self.handle_timeout(now);
        let Some((no, entry)) = self.entry(&topic, peer) else {
            return;
        };
        let Some(due) = entry.dial_due_ms else {
            return;
        };
        if reachable {
            entry.dial_due_ms = None;
            entry.reached_ms = Some(now);
            let put = record::put_peer(&topic, no, entry);
            self.deltas.push(put);
            self.dials.remove(&(due, topic, no));
        } else {
            self.remove_peer(now, topic, no);
        }
    }

    /// The next dial-back that is due. Take one only when it can be begun.
    pub fn poll_output(&mut self, now: u64) -> Option<DialBack> {
        let &(due, topic, no) = self.dials.first().filter(|(due, ..)| *due <= now)?;
        self.dials.remove(&(due, topic, no));
        let entry = self.topics.get_mut(&topic)?.peers.get_mut(&no)?;
        let again = now.saturating_add(DIAL_LOST_MS);
        entry.dial_due_ms = Some(again);
        self.dials.insert((again, topic, no));
        Some(DialBack {
            topic,
            located: entry.located(),
        })
    }

    /// Ends what has run out.
    pub fn handle_timeout(&mut self, now: u64) {
        // Each is taken out before it is acted upon, so that this ends whatever the rest does.
        while let Some(&lease) = self.leases.first().filter(|(ends, ..)| *ends <= now) {
            self.leases.remove(&lease);
            self.remove_peer(now, lease.1, lease.2);
        }
        while let Some(&idle) = self
            .idle
            .first()
            .filter(|(since, _)| since.saturating_add(IDLE_TOPIC_MS) <= now)
        {
            self.idle.remove(&idle);
            self.remove_topic(idle.1);
        }
    }

    /// When [`Registry::handle_timeout`] or [`Registry::poll_output`] next have something to do.
    pub fn poll_timeout(&self) -> Option<u64> {
        let lease = self.leases.first().map(|(at, ..)| *at);
        let dial = self.dials.first().map(|(at, ..)| *at);
        let idle = self
            .idle
            .first()
            .map(|(at, _)| at.saturating_add(IDLE_TOPIC_MS));
        [lease, dial, idle].into_iter().flatten().min()
    }

    /// Takes in a record of an earlier run; call it for all of them, in the order of their keys, before anything else.
    /// Every lease runs anew from `now`. A record that is refused is to be deleted.
    pub fn load(&mut self, now: u64, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
        match record::parse(key, value)? {
            record::Record::Peer {
                topic,
                no,
                mut entry,
            } => {
                let ends = now.saturating_add(self.lease_ms);
                let topic_peers = self.limits.topic_peers;
                let state = self.topic_or_new(topic).map_err(|_| RecordError::Full)?;
                if state.peers.len() >= topic_peers {
                    return Err(RecordError::Full);
                }
                if state.peers.contains_key(&no) || state.number(&entry.peer).is_some() {
                    return Err(RecordError::Damaged);
                }
                entry.lease_ends_ms = ends;
                entry.dial_due_ms = entry.dial_due_ms.map(|_| now);
                let dial_due = entry.dial_due_ms;
                state.insert(no, entry);
                if let Some(since) = state.idle_since_ms.take() {
                    self.idle.remove(&(since, topic));
                }
                self.leases.insert((ends, topic, no));
                self.dials.extend(dial_due.map(|due| (due, topic, no)));
            }
            record::Record::Key { topic, no, key } => {
                let state = self.topics.get_mut(&topic).ok_or(RecordError::Orphan)?;
                if !state.peers.contains_key(&no) {
                    return Err(RecordError::Orphan);
                }
                if self.keys >= self.limits.keys || state.held_count(no) >= self.limits.peer_keys {
                    return Err(RecordError::Full);
                }
                if !state.holds(no, &key) {
                    state.add_key(no, &key);
                    self.keys += 1;
                }
            }
            record::Record::Head { topic, peer, head } => {
                let size = head.sealed.len() as u64;
                if self.head_bytes.saturating_add(size) > self.limits.head_bytes {
                    return Err(RecordError::Full);
                }
                let state = self.topic_or_new(topic).map_err(|_| RecordError::Full)?;
                if state.heads.len() >= HEADS_MAX || state.heads.contains_key(&peer) {
                    return Err(RecordError::Damaged);
                }
                let at_ms = head.at_ms;
                state.heads.insert(peer, head);
                if state.peers.is_empty() && state.idle_since_ms.is_none_or(|since| since < at_ms) {
                    if let Some(before) = state.idle_since_ms.replace(at_ms) {
                        self.idle.remove(&(before, topic));
                    }
                    self.idle.insert((at_ms, topic));
                }
                self.head_bytes += size;
            }
            record::Record::Node {
                topic,
                key,
                at_ms,
                bytes,
            } => {
                if !self.topics.contains_key(&topic) {
                    return Err(RecordError::Orphan);
                }
                let mut dropped = Vec::new();
                // With limits that are lower than they were, what was read first goes: no matter, it comes again.
                let nowhere = BTreeSet::new();
                let room =
                    self.nodes
                        .make_room(&topic, bytes, &self.limits, &nowhere, &mut dropped);
                for (topic, key) in dropped {
                    self.deltas.extend(record::delete_node(&topic, &key));
                }
                room.map_err(|_| RecordError::Full)?;
                self.nodes.insert(at_ms.min(now), topic, key, bytes);
            }
        }
        Ok(())
    }

    fn entry(&mut self, topic: &Topic, peer: &PeerId) -> Option<(PeerNo, &mut PeerState)> {
        let state = self.topics.get_mut(topic)?;
        let no = state.number(peer)?;
        Some((no, state.peers.get_mut(&no)?))
    }

    /// The topic; a new one may push out the one that has been without peers for longest.
    fn topic_or_new(&mut self, topic: Topic) -> Result<&mut TopicState, Refusal> {
        if !self.topics.contains_key(&topic) && self.topics.len() >= self.limits.topics {
            let &(_, oldest) = self.idle.first().ok_or(Refusal::Full(Limit::Topics))?;
            self.remove_topic(oldest);
        }
        Ok(self.topics.entry(topic).or_default())
    }

    /// Drops other topics without peers, oldest first, until a head of `size` fits once `displaced` are gone.
    fn make_room_for_head(
        &mut self,
        topic: &Topic,
        size: u64,
        displaced: &BTreeSet<PeerId>,
    ) -> Result<(), Refusal> {
        let freed: u64 = self
            .topics
            .get(topic)
            .map(|state| {
                let heads = displaced.iter().filter_map(|by| state.heads.get(by));
                heads.map(|head| head.sealed.len() as u64).sum()
            })
            .unwrap_or(0);
        while self.head_bytes.saturating_sub(freed).saturating_add(size) > self.limits.head_bytes {
            let other = self.idle.iter().find(|(_, other)| other != topic);
            let &(_, other) = other.ok_or(Refusal::Full(Limit::HeadBytes))?;
            self.remove_topic(other);
        }
        Ok(())
    }

    /// Removes a peer and all that hangs on it; what remains of its topic are heads, or nothing.
    fn remove_peer(&mut self, now: u64, topic: Topic, no: PeerNo) {
        let suspects_max = self.limits.topic_peers;
        let Some(state) = self.topics.get_mut(&topic) else {
            return;
        };
        let forgotten = state.forget_keys(no);
        self.keys = self.keys.saturating_sub(forgotten);
        if forgotten > 0 {
            self.deltas.push(record::delete_keys(&topic, no));
        }
        let Some(entry) = state.remove(no) else {
            return;
        };
        self.deltas.push(record::delete_peer(&topic, no));
        self.leases.remove(&(entry.lease_ends_ms, topic, no));
        if let Some(due) = entry.dial_due_ms {
            self.dials.remove(&(due, topic, no));
            let suspect = Suspect {
                until_ms: now.saturating_add(SUSPECT_MS),
                dial_from_ms: now.saturating_add(REDIAL_MS),
            };
            state.remember_suspect(now, entry.peer, suspect, suspects_max);
        }
        if state.peers.is_empty() {
            if state.heads.is_empty() {
                // Without a head nobody finds the nodes.
                self.topics.remove(&topic);
                self.remove_nodes(&topic);
            } else {
                state.idle_since_ms = Some(now);
                self.idle.insert((now, topic));
            }
        }
    }

    /// Removes a topic that has no peers.
    fn remove_topic(&mut self, topic: Topic) {
        let Some(state) = self.topics.remove(&topic) else {
            return;
        };
        if let Some(since) = state.idle_since_ms {
            self.idle.remove(&(since, topic));
        }
        let freed: u64 = state.heads.values().map(|h| h.sealed.len() as u64).sum();
        self.head_bytes = self.head_bytes.saturating_sub(freed);
        if !state.heads.is_empty() {
            self.deltas.push(record::delete_heads(&topic));
        }
        self.remove_nodes(&topic);
    }

    fn remove_nodes(&mut self, topic: &Topic) {
        if self.nodes.remove_topic(topic) {
            self.deltas.extend(record::delete_nodes(topic));
        }
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod tests;
