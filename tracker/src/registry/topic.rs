//! One cluster's peers, its index of contents both ways, and its heads.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::{Multiaddr, PeerId};

use super::{Found, Located};
use crate::protocol::{HOLDERS_MAX, HoldsDigest, PEERS_MAX, SealedKey};

/// Stands for a peer within its topic: the index holds millions of these, and a peer id has 80 bytes.
pub(super) type PeerNo = u32;

/// A listed peer.
#[derive(Clone, Debug)]
pub(super) struct PeerState {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) lease_ends_ms: u64,
    /// What it holds.
    pub(super) digest: HoldsDigest,
    /// Set while the peer is withheld: when to dial it next.
    pub(super) dial_due_ms: Option<u64>,
    /// When a dial-back last reached it.
    pub(super) reached_ms: Option<u64>,
}

impl PeerState {
    pub(super) fn new(peer: PeerId) -> Self {
        Self {
            peer,
            addresses: Vec::new(),
            lease_ends_ms: 0,
            digest: HoldsDigest::default(),
            dial_due_ms: None,
            reached_ms: None,
        }
    }

    pub(super) fn located(&self) -> Located {
        Located {
            peer: self.peer,
            addresses: self.addresses.clone(),
        }
    }
}

/// A peer that could not be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    pub(super) until_ms: u64,
    pub(super) dial_from_ms: u64,
}

/// A kept head.
#[derive(Clone, Debug)]
pub(super) struct HeadState {
    pub(super) sealed: Vec<u8>,
    pub(super) at_ms: u64,
}

/// One cluster.
#[derive(Debug, Default)]
pub(super) struct TopicState {
    pub(super) peers: BTreeMap<PeerNo, PeerState>,
    numbers: BTreeMap<PeerId, PeerNo>,
    /// The index, content to holders.
    holders: BTreeSet<(SealedKey, PeerNo)>,
    /// The same pairs, peer to contents.
    held: BTreeSet<(PeerNo, SealedKey)>,
    pub(super) heads: BTreeMap<PeerId, HeadState>,
    pub(super) suspects: BTreeMap<PeerId, Suspect>,
    /// Set exactly while there are no peers.
    pub(super) idle_since_ms: Option<u64>,
}

impl TopicState {
    pub(super) fn number(&self, peer: &PeerId) -> Option<PeerNo> {
        self.numbers.get(peer).copied()
    }

    /// A number that no listed peer has.
    pub(super) fn free_number(&self) -> PeerNo {
        let next = match self.peers.last_key_value() {
            Some((last, _)) => last.checked_add(1),
            None => Some(0),
        };
        // Gaps are looked for only after four thousand million joins.
        next.or_else(|| (0..PeerNo::MAX).find(|no| !self.peers.contains_key(no)))
            .unwrap_or(PeerNo::MAX)
    }

    pub(super) fn insert(&mut self, no: PeerNo, entry: PeerState) {
        self.numbers.insert(entry.peer, no);
        self.peers.insert(no, entry);
    }

    pub(super) fn remove(&mut self, no: PeerNo) -> Option<PeerState> {
        let entry = self.peers.remove(&no)?;
        self.numbers.remove(&entry.peer);
        Some(entry)
    }

    pub(super) fn holds(&self, no: PeerNo, key: &SealedKey) -> bool {
        self.held.contains(&(no, *key))
    }

    pub(super) fn held_count(&self, no: PeerNo) -> u64 {
        self.peers.get(&no).map_or(0, |entry| entry.digest.count)
    }

    pub(super) fn add_key(&mut self, no: PeerNo, key: &SealedKey) {
        if let Some(entry) = self.peers.get_mut(&no)
            && self.held.insert((no, *key))
        {
            self.holders.insert((*key, no));
            entry.digest.add(key);
        }
    }

    pub(super) fn remove_key(&mut self, no: PeerNo, key: &SealedKey) -> bool {
        let was_held = self.held.remove(&(no, *key));
        if was_held {
            self.holders.remove(&(*key, no));
            if let Some(entry) = self.peers.get_mut(&no) {
                entry.digest.remove(key);
            }
        }
        was_held
    }

    /// Forgets all keys of a peer; how many those were.
    pub(super) fn forget_keys(&mut self, no: PeerNo) -> u64 {
        let first = (no, SealedKey([0; 32]));
        let last = (no, SealedKey([0xff; 32]));
        let mut forgotten = 0;
        while let Some(&(_, key)) = self.held.range(first..=last).next() {
            self.held.remove(&(no, key));
            self.holders.remove(&(key, no));
            forgotten += 1;
        }
        if let Some(entry) = self.peers.get_mut(&no) {
            entry.digest = HoldsDigest::default();
        }
        forgotten
    }

    /// Remembers an unreachable peer, in place of the one that is forgotten soonest when there are `max`.
    pub(super) fn remember_suspect(
        &mut self,
        now: u64,
        peer: PeerId,
        suspect: Suspect,
        max: usize,
    ) {
        self.suspects.retain(|_, other| other.until_ms > now);
        if self.suspects.len() >= max {
            let soonest = self.suspects.iter().min_by_key(|(_, s)| s.until_ms);
            if let Some(peer) = soonest.map(|(peer, _)| *peer) {
                self.suspects.remove(&peer);
            }
        }
        self.suspects.insert(peer, suspect);
    }

    /// A number somewhere in the range of those in use.
    fn random_number(&self, random: u64) -> PeerNo {
        let last = self.peers.last_key_value().map_or(0, |(no, _)| *no);
        u32::try_from(random % (u64::from(last) + 1)).unwrap_or(0)
    }

    pub(super) fn some_peers(&self, asker: &PeerId, random: u64) -> Vec<Located> {
        let from = self.random_number(random);
        self.peers
            .range(from..)
            .chain(self.peers.range(..from))
            .map(|(_, entry)| entry)
            .filter(|entry| entry.dial_due_ms.is_none() && entry.peer != *asker)
            .take(PEERS_MAX)
            .map(PeerState::located)
            .collect()
    }

    pub(super) fn find(&self, asker: &PeerId, keys: &[SealedKey], random: u64) -> Found {
        let from = self.random_number(random);
        let mut found = Found::default();
        let mut slots: BTreeMap<PeerNo, u16> = BTreeMap::new();
        for key in keys {
            let mut indexes = Vec::new();
            let tail = self.holders.range((*key, from)..=(*key, PeerNo::MAX));
            let front = self.holders.range((*key, 0)..(*key, from));
            for (_, no) in tail.chain(front) {
                if indexes.len() >= HOLDERS_MAX {
                    break;
                }
                if let Some(slot) = slots.get(no) {
                    indexes.push(*slot);
                    continue;
                }
                let Some(entry) = self.peers.get(no) else {
                    continue;
                };
                if entry.dial_due_ms.is_some()
                    || entry.peer == *asker
                    || found.peers.len() >= PEERS_MAX
                {
                    continue;
                }
                // At most PEERS_MAX, far below 2^16.
                let slot = found.peers.len() as u16;
                found.peers.push(entry.located());
                slots.insert(*no, slot);
                indexes.push(slot);
            }
            found.holders.push(indexes);
        }
        found
    }
}
