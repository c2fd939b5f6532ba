//! The trackers' copy of the manifest: sealed nodes, so that a newcomer sees the folder when no member is up.
//!
//! After a tracker took this node's head, the nodes below its root that are here and that the tracker lacks are handed in,
//! higher levels first: without the way to it a leaf is of no use. What was handed in once in a session is passed over with
//! all below it, so a change costs the nodes that it made; from time to time everything is gone through anew, so that the
//! tracker, which drops what nobody asked for longest, keeps what is needed. It is asked first what it has, and never given
//! more than the room it grants. Nothing waits for any of this, but the end of a mount, a little.
//!
//! Any member can put something else under the key of a node. It opens nothing and forges nothing (the seal and the node's
//! hash are checked), but keeps the node from who needs it. Writers therefore read some nodes back, every inner one as they
//! go through everything, and hand in anew those that turn out bad.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use p2pfs_tracker::{
    client::{Session, SessionError},
    protocol::{
        GET_NODES_MAX, NODE_BYTES_MAX, NODE_OVERHEAD_BYTES, PUT_BYTES_MAX, PUT_NODES_MAX, Refusal,
        SealedKey,
    },
};
use tokio::time::{Instant, sleep, timeout};

use super::{Copied, Shared, Tracker};
use crate::{
    cluster::{ClusterKeys, Role, SealKind},
    manifest::{Node, NodeHash},
    node::run_blocking,
};

/// How long one tracker is given for the nodes that somebody waits for.
const NODES_WITHIN: Duration = Duration::from_secs(5);
/// Least time between two rounds through everything, and pause after a tracker refused nodes.
const ROUND_EVERY: Duration = Duration::from_secs(60);
/// After each batch the line is left alone for as long as it took, at most so long.
const REST_MAX: Duration = Duration::from_secs(1);
/// What a leaf that the tracker has already is taken to have: its average.
const LEAF_BYTES: u64 = 8 * 1024;
/// One of so many leaves is read back.
const READ_BACK_ONE_OF: u32 = 64;
/// Nodes dealt with at a time (the protocol takes more): a new head need not wait long.
const BATCH: usize = 256;
/// Bytes that sealing adds.
const SEALING_BYTES: usize = 40;

/// What of the manifest was, and is to be, handed in at one tracker in one session. Pure.
///
/// Invariant: of every node in `done`, the children are in `done` or `queue`, unless the tracker has no room for them.
#[derive(Debug, Default)]
struct Plan {
    queue: BTreeSet<Place>,
    done: BTreeSet<NodeHash>,
    /// What the nodes in `done` are charged with, about.
    charged: u64,
    /// What was handed in since the last round through everything ended; `None` within one.
    since_round: Option<u64>,
    /// There was no room for something since then.
    overflowed: bool,
}

/// A node to be looked at; the highest level comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    level: Reverse<Level>,
    hash: NodeHash,
}

/// The level of a node, 0 for leaves. Of a root it isn't known before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Of(u8),
    Root,
}

impl Place {
    fn is_leaf(&self) -> bool {
        self.level.0 == Level::Of(0)
    }
}

impl Plan {
    fn add(&mut self, level: Level, hash: NodeHash) {
        if !self.done.contains(&hash) {
            let level = Reverse(level);
            self.queue.insert(Place { level, hash });
        }
    }

    /// Begins a round through everything below a root.
    fn begin_round(&mut self, root: NodeHash) {
        *self = Self::default();
        self.add(Level::Root, root);
    }

    /// Whether so much has changed since the last round that the tracker may drop what is needed, or has no room for more.
    fn wants_round(&self, room: u64) -> bool {
        // Before the room for changes is used up.
        self.since_round
            .is_some_and(|bytes| bytes > room / 16 || self.overflowed)
    }

    /// The next places, of one level: what is above others is handed in before them.
    fn take(&mut self) -> Vec<Place> {
        let mut places = Vec::new();
        let level = self.queue.first().map(|place| place.level);
        while places.len() < BATCH
            && let Some(place) = self.queue.pop_first()
        {
            if Some(place.level) != level {
                self.queue.insert(place);
                break;
            }
            places.push(place);
        }
        places
    }

    /// Counts a node that the tracker has, or is given now (`new`), and queues its children. False where that is beyond the
    /// tracker's room: then nothing more is to be handed in.
    fn admit(&mut self, room: u64, place: &Place, found: &Found, new: bool) -> bool {
        let bytes = found
            .bytes
            .as_ref()
            .map_or(LEAF_BYTES, |bytes| (bytes.len() + SEALING_BYTES) as u64);
        let charge = bytes + NODE_OVERHEAD_BYTES;
        // Some is left for other members' states, and after a round for changes.
        let limit = match self.since_round {
            None => room / 4 * 3,
            Some(_) => room / 8 * 7,
        };
        if self.charged + charge > limit {
            self.queue.clear();
            self.overflowed = self.since_round.is_some();
            return false;
        }
        self.charged += charge;
        self.done.insert(place.hash);
        if new && let Some(since) = &mut self.since_round {
            *since += charge;
        }
        for child in &found.children {
            self.add(Level::Of(found.level.saturating_sub(1)), *child);
        }
        true
    }

    /// Whether all is done; then the round, if this was one, is over.
    fn is_done(&mut self) -> bool {
        let done = self.queue.is_empty();
        if done {
            self.since_round.get_or_insert(0);
        }
        done
    }
}

/// A node as it is here.
#[derive(Debug, Default)]
struct Found {
    /// Its encoding, where it was needed.
    bytes: Option<bytes::Bytes>,
    level: u8,
    children: Vec<NodeHash>,
}

/// One tracker's task: hands in what the tracker lacks, as long as the mount runs.
pub(super) async fn keep(tracker: Arc<Tracker>, shared: Shared) {
    let mut roots = tracker.root.subscribe();
    let mut hand_in: Option<HandIn> = None;
    loop {
        let root = *roots.borrow_and_update();
        let work = match (root, tracker.session()) {
            (Some(root), Some(session)) if tracker.keeps_nodes() => {
                let same = hand_in.take();
                let same = same.filter(|hand_in| Arc::ptr_eq(&hand_in.session, &session));
                let current = hand_in.insert(same.unwrap_or_else(|| HandIn::new(session, root)));
                current.want(root);
                Some(current)
            }
            _ => None,
        };
        let pause = match work {
            None => {
                hand_in = None;
                None
            }
            Some(work) => match work.step(&shared).await {
                Ok(false) => continue,
                Ok(true) => {
                    tracker.copied.send_replace(Copied::All(work.root));
                    None
                }
                Err(SessionError::Refused(Refusal::NotUnderstood)) => {
                    tracker.copied.send_replace(Copied::NotKept);
                    None
                }
                Err(error) => {
                    tracing::debug!(tracker = %tracker.name, %error, "manifest nodes were not handed in");
                    // Which of them the tracker took isn't known: it is asked again.
                    hand_in = None;
                    Some(ROUND_EVERY)
                }
            },
        };
        tokio::select! {
            changed = roots.changed() => if changed.is_err() { return },
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Handing in to one tracker, in one session.
struct HandIn {
    session: Arc<Session>,
    plan: Plan,
    root: NodeHash,
    round_at: Instant,
    /// As the tracker last said.
    room: u64,
}

impl HandIn {
    fn new(session: Arc<Session>, root: NodeHash) -> Self {
        let mut plan = Plan::default();
        plan.begin_round(root);
        Self {
            session,
            plan,
            root,
            round_at: Instant::now(),
            room: u64::MAX,
        }
    }

    fn want(&mut self, root: NodeHash) {
        if root == self.root {
            return;
        }
        self.root = root;
        if self.plan.wants_round(self.room) && self.round_at.elapsed() > ROUND_EVERY {
            self.round_at = Instant::now();
            self.plan.begin_round(root);
        } else {
            self.plan.add(Level::Root, root);
        }
    }

    /// Deals with some nodes; true when nothing is left to do.
    async fn step(&mut self, shared: &Shared) -> Result<bool, SessionError> {
        let places = self.plan.take();
        if places.is_empty() {
            return Ok(self.plan.is_done());
        }
        let keys: Vec<_> = places
            .iter()
            .map(|place| SealedKey(shared.keys.sealed_node_key(&place.hash)))
            .collect();
        let kept = self.session.have_nodes(&keys).await?;
        self.room = kept.room;
        let verifies = shared.keys.role() == Role::ReadWrite && self.plan.since_round.is_none();
        let looked_at: Vec<_> = places
            .into_iter()
            .zip(kept.have)
            .map(|(place, have)| Look {
                place,
                have,
                read_back: have
                    && verifies
                    && (!place.is_leaf() || rand::random_ratio(1, READ_BACK_ONE_OF)),
            })
            .collect();
        let namespace = shared.namespace.clone();
        let looked_at = run_blocking(move || {
            let mut found = Vec::new();
            for look in looked_at {
                if let Some(node) = find(&look, |hash| read(&namespace, hash)) {
                    found.push((look, node));
                }
            }
            found
        })
        .await;
        let (mut missing, mut doubtful) = (VecDeque::new(), Vec::new());
        for (look, found) in looked_at {
            if !self.plan.admit(kept.room, &look.place, &found, !look.have) {
                break;
            }
            let Some(bytes) = found.bytes else { continue };
            if look.read_back {
                doubtful.push((look.place.hash, bytes));
            } else if !look.have && bytes.len() + SEALING_BYTES <= NODE_BYTES_MAX {
                missing.push_back((look.place.hash, bytes));
            }
        }
        self.put(shared, missing, false).await?;
        let bad = self.read_back(shared, doubtful).await?;
        self.put(shared, bad, true).await?;
        Ok(self.plan.is_done())
    }

    async fn put(
        &self,
        shared: &Shared,
        mut nodes: VecDeque<(NodeHash, bytes::Bytes)>,
        replace: bool,
    ) -> Result<(), SessionError> {
        while !nodes.is_empty() {
            let begun = Instant::now();
            let batch = next_batch(&mut nodes);
            let keys = shared.keys.clone();
            let sealed = run_blocking(move || {
                let sealed = batch.iter().map(|(hash, bytes)| seal(&keys, hash, bytes));
                sealed.collect()
            })
            .await;
            self.session.put_nodes(sealed, replace).await?;
            sleep(begun.elapsed().min(REST_MAX)).await;
        }
        Ok(())
    }

    /// Which of these nodes the tracker shows as something else.
    async fn read_back(
        &self,
        shared: &Shared,
        nodes: Vec<(NodeHash, bytes::Bytes)>,
    ) -> Result<VecDeque<(NodeHash, bytes::Bytes)>, SessionError> {
        let mut bad = VecDeque::new();
        let hashes: Vec<_> = nodes.iter().map(|(hash, _)| *hash).collect();
        let mut good = BTreeSet::new();
        take_all(&self.session, shared, &hashes, &mut |hash, opened| {
            if opened.is_some() {
                good.insert(hash);
            }
        })
        .await?;
        for (hash, bytes) in nodes {
            if !good.contains(&hash) {
                tracing::warn!(%hash, "a tracker's copy of a manifest node was bad and is replaced");
                bad.push_back((hash, bytes));
            }
        }
        Ok(bad)
    }
}

/// A place, whether the tracker has its node, and whether that is to be checked.
#[derive(Debug)]
struct Look {
    place: Place,
    have: bool,
    read_back: bool,
}

/// The encoding of a node; `None` when it isn't here.
fn read(namespace: &crate::node::namespace::Namespace, hash: &NodeHash) -> Option<bytes::Bytes> {
    namespace.node(hash).unwrap_or_else(|error| {
        tracing::warn!(%hash, %error, "a manifest node could not be read for a tracker");
        None
    })
}

/// Reads a node where its bytes or its children are needed. `None` when it isn't here.
fn find(look: &Look, read: impl Fn(&NodeHash) -> Option<bytes::Bytes>) -> Option<Found> {
    if look.place.is_leaf() && look.have && !look.read_back {
        return Some(Found::default());
    }
    let bytes = read(&look.place.hash)?;
    let mut found = Found::default();
    if !look.place.is_leaf() {
        match Node::decode(&bytes) {
            Ok(node) => (found.level, found.children) = (node.level(), node.children()),
            Err(error) => {
                // It was checked when it came here: the disk has changed it.
                tracing::warn!(hash = %look.place.hash, %error, "a manifest node here is damaged");
                return None;
            }
        }
    }
    found.bytes = Some(bytes);
    Some(found)
}

/// As many as go into one request.
fn next_batch(nodes: &mut VecDeque<(NodeHash, bytes::Bytes)>) -> Vec<(NodeHash, bytes::Bytes)> {
    let mut batch = Vec::new();
    let mut total = 0;
    while let Some((_, bytes)) = nodes.front() {
        total += bytes.len() + SEALING_BYTES;
        if batch.len() >= PUT_NODES_MAX || (total > PUT_BYTES_MAX && !batch.is_empty()) {
            break;
        }
        batch.extend(nodes.pop_front());
    }
    batch
}

fn seal(keys: &ClusterKeys, hash: &NodeHash, bytes: &[u8]) -> (SealedKey, Vec<u8>) {
    let key = keys.sealed_node_key(hash);
    let sealed = keys.seal(SealKind::Node, &key, rand::random(), bytes);
    (SealedKey(key), sealed)
}

/// Opens what a tracker gave for a node; `None` where it is something else.
fn open(keys: &ClusterKeys, hash: &NodeHash, sealed: &[u8]) -> Option<Vec<u8>> {
    let key = keys.sealed_node_key(hash);
    let bytes = keys.open(SealKind::Node, &key, sealed).ok()?;
    (NodeHash::of(&bytes) == *hash).then_some(bytes)
}

/// Takes nodes from a tracker in as many requests as it takes; tells of each that the tracker has, `None` for a bad one.
async fn take_all(
    session: &Session,
    shared: &Shared,
    hashes: &[NodeHash],
    each: &mut (dyn FnMut(NodeHash, Option<Vec<u8>>) + Send),
) -> Result<(), SessionError> {
    let mut left = hashes;
    while !left.is_empty() {
        let asked = left.get(..left.len().min(GET_NODES_MAX)).unwrap_or(left);
        let keys: Vec<_> = asked
            .iter()
            .map(|hash| SealedKey(shared.keys.sealed_node_key(hash)))
            .collect();
        let sealed = session.nodes(&keys).await?;
        // At least one, or the client would have refused the answer.
        let (told, rest) = left.split_at(sealed.len().clamp(1, left.len()));
        left = rest;
        let keys = shared.keys.clone();
        let given: Vec<_> = told.iter().copied().zip(sealed).collect();
        let given = given.into_iter().filter(|(_, sealed)| !sealed.is_empty());
        let given: Vec<_> = given.collect();
        let opened = run_blocking(move || {
            let opened = given.into_iter();
            let opened = opened.map(|(hash, sealed)| (hash, open(&keys, &hash, &sealed)));
            opened.collect::<Vec<_>>()
        })
        .await;
        for (hash, opened) in opened {
            each(hash, opened);
        }
    }
    Ok(())
}

/// Nodes from the trackers, opened and checked against their hashes; each tracker is asked for what those before it lack.
pub(super) async fn fetch(
    trackers: &[Arc<Tracker>],
    shared: &Shared,
    wanted: &[NodeHash],
) -> Vec<Vec<u8>> {
    let mut missing: BTreeSet<NodeHash> = wanted.iter().copied().collect();
    let mut got = Vec::new();
    for tracker in trackers {
        let Some(session) = tracker.session().filter(|_| tracker.keeps_nodes()) else {
            continue;
        };
        let ask: Vec<_> = missing.iter().copied().collect();
        let mut bad = 0;
        let outcome = timeout(NODES_WITHIN, async {
            // Only so many at once: the tracker spaces them out, and renewals wait behind them.
            let _turn = tracker.turns.acquire().await;
            take_all(&session, shared, &ask, &mut |hash, opened| match opened {
                Some(node) if missing.remove(&hash) => got.push(node),
                Some(_) => {}
                None => bad += 1,
            })
            .await
        })
        .await;
        if bad > 0 {
            tracing::warn!(tracker = %tracker.name, bad, "the tracker's copy has nodes that are not those of this cluster");
        }
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(SessionError::Refused(Refusal::NotUnderstood))) => {
                tracker.copied.send_replace(Copied::NotKept);
            }
            Ok(Err(error)) => {
                tracing::debug!(tracker = %tracker.name, %error, "manifest nodes were not given");
            }
            Err(_) => {
                tracing::debug!(tracker = %tracker.name, "manifest nodes did not come in time");
            }
        }
        if missing.is_empty() {
            break;
        }
    }
    got
}

#[cfg(test)]
mod tests;
