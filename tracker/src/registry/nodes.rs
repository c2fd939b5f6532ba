//! The sealed manifest nodes of all clusters: which are kept, and which go when room is needed.
//!
//! This is their index; the bytes are in the records alone. A node is charged with its bytes and [`NODE_OVERHEAD_BYTES`],
//! so that the bound on bytes bounds their number, and the memory for them, too.
//!
//! Within a cluster the one that was stored, or asked for, longest ago goes first. Between clusters, when all room is
//! taken: the largest one, if it has more than its share (an equal part of all, or
//! [`Limits::topic_node_bytes_kept`] if that is more); else the one that is without peers for longest; else there is no
//! room. So whoever fills a tracker with many clusters gets an equal part at most, and takes nothing from those that have
//! peers and are small.

use std::collections::{BTreeMap, BTreeSet};

use super::Limits;
use crate::protocol::{Limit, NODE_OVERHEAD_BYTES, Refusal, SealedKey, Topic};

/// The nodes of all clusters.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    topics: BTreeMap<Topic, OfTopic>,
    /// Clusters that have nodes, by what they are charged with.
    by_size: BTreeSet<(u64, Topic)>,
    count: u64,
    charged: u64,
}

/// The nodes of one cluster.
#[derive(Debug, Default)]
struct OfTopic {
    kept: BTreeMap<SealedKey, Kept>,
    by_age: BTreeSet<(u64, SealedKey)>,
    charged: u64,
}

/// A node.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Bytes, sealed.
    bytes: u32,
    /// When it was stored or asked for last.
    at_ms: u64,
}

impl Kept {
    fn charge(self) -> u64 {
        u64::from(self.bytes) + NODE_OVERHEAD_BYTES
    }
}

impl Nodes {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all nodes, with what each costs beyond.
    pub(super) fn charged(&self) -> u64 {
        self.charged
    }

    fn charged_to(&self, topic: &Topic) -> u64 {
        self.topics.get(topic).map_or(0, |nodes| nodes.charged)
    }

    /// How many bytes it has, if it is kept.
    pub(super) fn bytes(&self, topic: &Topic, key: &SealedKey) -> Option<u32> {
        Some(self.topics.get(topic)?.kept.get(key)?.bytes)
    }

    /// Whether it is kept; then it counts as new again.
    pub(super) fn refresh(&mut self, now: u64, topic: &Topic, key: &SealedKey) -> bool {
        let Some(nodes) = self.topics.get_mut(topic) else {
            return false;
        };
        let Some(kept) = nodes.kept.get_mut(key) else {
            return false;
        };
        nodes.by_age.remove(&(kept.at_ms, *key));
        kept.at_ms = now;
        nodes.by_age.insert((now, *key));
        true
    }

    /// What a cluster's nodes may be charged with at present.
    pub(super) fn room(&self, topic: &Topic, limits: &Limits) -> u64 {
        let free = limits.node_bytes.saturating_sub(self.charged);
        let undisputed = self.charged_to(topic).saturating_add(free);
        self.share(topic, limits)
            .max(undisputed)
            .min(limits.topic_node_bytes)
    }

    /// What a cluster may have when all room is taken.
    fn share(&self, topic: &Topic, limits: &Limits) -> u64 {
        let newcomer = usize::from(!self.topics.contains_key(topic));
        let topics = (self.topics.len() + newcomer).max(1) as u64;
        (limits.node_bytes / topics).max(limits.topic_node_bytes_kept)
    }

    /// Drops nodes until one of `bytes` more fits; `idle` are the clusters without peers, the one that is so for longest
    /// first. What was dropped is in `dropped`, also when there is no room in the end.
    pub(super) fn make_room(
        &mut self,
        topic: &Topic,
        bytes: u32,
        limits: &Limits,
        idle: &BTreeSet<(u64, Topic)>,
        dropped: &mut Vec<(Topic, SealedKey)>,
    ) -> Result<(), Refusal> {
        let charge = u64::from(bytes) + NODE_OVERHEAD_BYTES;
        while self.charged_to(topic).saturating_add(charge) > limits.topic_node_bytes {
            self.drop_oldest(topic, dropped)?;
        }
        while self.charged.saturating_add(charge) > limits.node_bytes {
            let loser = self.loser(topic, charge, limits, idle)?;
            self.drop_oldest(&loser, dropped)?;
        }
        Ok(())
    }

    /// The cluster that makes room for a node of this one.
    fn loser(
        &self,
        topic: &Topic,
        charge: u64,
        limits: &Limits,
        idle: &BTreeSet<(u64, Topic)>,
    ) -> Result<Topic, Refusal> {
        let own = (self.charged_to(topic).saturating_add(charge), *topic);
        let (size, largest) = self.by_size.last().map_or(own, |last| own.max(*last));
        if size > self.share(topic, limits) {
            return Ok(largest);
        }
        let mut idle = idle.iter().map(|(_, idle)| idle);
        idle.find(|idle| self.topics.contains_key(idle))
            .copied()
            .ok_or(Refusal::Full(Limit::NodeBytes))
    }

    fn drop_oldest(
        &mut self,
        topic: &Topic,
        dropped: &mut Vec<(Topic, SealedKey)>,
    ) -> Result<(), Refusal> {
        let nodes = self.topics.get(topic);
        let &(_, oldest) = nodes
            .and_then(|nodes| nodes.by_age.first())
            .ok_or(Refusal::Full(Limit::NodeBytes))?;
        self.remove(topic, &oldest);
        dropped.push((*topic, oldest));
        Ok(())
    }

    /// Takes in a node that isn't kept, for which there is room.
    pub(super) fn insert(&mut self, at_ms: u64, topic: Topic, key: SealedKey, bytes: u32) {
        let kept = Kept { bytes, at_ms };
        let nodes = self.topics.entry(topic).or_default();
        self.by_size.remove(&(nodes.charged, topic));
        nodes.kept.insert(key, kept);
        nodes.by_age.insert((at_ms, key));
        nodes.charged += kept.charge();
        self.by_size.insert((nodes.charged, topic));
        self.count += 1;
        self.charged += kept.charge();
    }

    /// Whether it was kept.
    pub(super) fn remove(&mut self, topic: &Topic, key: &SealedKey) -> bool {
        let Some(nodes) = self.topics.get_mut(topic) else {
            return false;
        };
        let Some(kept) = nodes.kept.remove(key) else {
            return false;
        };
        nodes.by_age.remove(&(kept.at_ms, *key));
        self.by_size.remove(&(nodes.charged, *topic));
        nodes.charged -= kept.charge();
        self.count -= 1;
        self.charged -= kept.charge();
        if nodes.kept.is_empty() {
            self.topics.remove(topic);
        } else {
            self.by_size.insert((nodes.charged, *topic));
        }
        true
    }

    /// Forgets a cluster's nodes; whether there were any.
    pub(super) fn remove_topic(&mut self, topic: &Topic) -> bool {
        let Some(nodes) = self.topics.remove(topic) else {
            return false;
        };
        self.by_size.remove(&(nodes.charged, *topic));
        self.count -= nodes.kept.len() as u64;
        self.charged -= nodes.charged;
        true
    }
}
