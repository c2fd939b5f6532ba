//! Manifest nodes from members, and from the trackers' copy where members don't give them.
//!
//! Several members are asked at once where the first takes its time, so that one which answers slowly, little or nothing
//! delays a look into a folder by [`PATIENCE`] and not by its whole time. The order is that of merit: who is preferred
//! and who is near first, who was too slow a moment ago last. Trackers are asked once there is nobody else to ask, or
//! after [`COPY_AFTER`]; they store what members hand in, so they come second.
//!
//! An honest member keeps and gives only what it has checked. One that gives something else than the node asked for, or
//! something that is no valid node, is disconnected and blamed, and the node is fetched elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, sleep_until, timeout_at},
};

use super::Late;
use crate::{
    manifest::{Node, NodeHash},
    net::{
        Net, NetEvent,
        proto::{NAMED_MAX, SYNC_BYTES_MAX, SyncAnswer, SyncRequest},
    },
    node::{
        namespace::{Fetched, NodeFetcher},
        run_blocking,
    },
};

/// How long one member is given for one batch of nodes.
const NODES_WITHIN: Duration = Duration::from_secs(5);
/// How long those that were asked are waited for before another one is asked too.
const PATIENCE: Duration = Duration::from_millis(300);
/// Members asked at once: what they answer may be the same nodes.
const ASKED_MAX: usize = 4;
/// How long it is held against a member that it gave no answer in time.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// What such a member is asked for at once: on a slow link that comes in time.
const SLOW_BATCH: usize = 16;
/// Members of which that is remembered.
const SLOW_MAX: usize = 4096;
/// How long members that are asked are waited for before the trackers are asked too.
const COPY_AFTER: Duration = Duration::from_secs(1);
/// Shortest and longest pause before the trackers are asked again.
const COPY_AGAIN_MIN: Duration = Duration::from_secs(1);
const COPY_AGAIN_MAX: Duration = Duration::from_secs(8);
/// An answer of so many bytes may have stopped early because it was full.
const FULL_BYTES: usize = SYNC_BYTES_MAX / 2;

/// Members that lately gave no answer in time, and since when.
#[derive(Default)]
pub(in crate::node) struct Slow(Mutex<BTreeMap<PeerId, Instant>>);

impl Slow {
    fn note(&self, peer: PeerId) {
        let now = Instant::now();
        let mut slow = self.0.lock();
        slow.retain(|_, since| now.duration_since(*since) < SLOW_FOR);
        if slow.len() < SLOW_MAX {
            slow.insert(peer, now);
        }
    }

    fn has(&self, peer: &PeerId) -> bool {
        let slow = self.0.lock();
        slow.get(peer)
            .is_some_and(|since| since.elapsed() < SLOW_FOR)
    }
}

/// Fetches manifest nodes from members and trackers.
pub(in crate::node) struct PeerFetcher {
    pub(in crate::node) late: Arc<Late>,
}

impl NodeFetcher for PeerFetcher {
    fn fetch(
        &self,
        nodes: Vec<NodeHash>,
        prefer: Option<PeerId>,
        within: Duration,
    ) -> BoxFuture<'static, Fetched> {
        let late = self.late.clone();
        async move {
            let Some(net) = late.net.get() else {
                return Fetched::default();
            };
            let events = net.events();
            let members = OfNet {
                net,
                late: &late,
                prefer,
            };
            let mut fetch = Fetch::new(&members, &late.slow, nodes);
            if timeout_at(Instant::now() + within, fetch.run(events))
                .await
                .is_err()
            {
                tracing::debug!("manifest nodes were not to be had in time");
            }
            Fetched {
                nodes: fetch.got,
                denied: fetch.denied,
            }
        }
        .boxed()
    }

    fn offence(&self, peer: PeerId, reason: &str) {
        if let Some(net) = self.late.net.get() {
            net.offence(peer, reason);
        }
    }
}

/// What a member said.
#[derive(Debug)]
enum Said {
    /// Encodings in the order asked, unchecked, empty where it has none.
    Nodes(Vec<Vec<u8>>),
    /// Something else, or it went away.
    Nothing,
    /// Not in time.
    TooLate,
}

/// Whom a fetch can ask.
trait Askable: Sync {
    /// The members that are up, the best first.
    fn members(&self) -> Vec<PeerId>;
    fn ask(&self, peer: PeerId, nodes: Vec<NodeHash>) -> BoxFuture<'_, Said>;
    /// What trackers have of these nodes; checked against their hashes.
    fn ask_trackers(&self, nodes: Vec<NodeHash>) -> BoxFuture<'_, Vec<Vec<u8>>>;
    /// Drops a member for an offence.
    fn blame(&self, peer: PeerId, reason: &str);
}

struct OfNet<'a> {
    net: &'a Net,
    late: &'a Late,
    prefer: Option<PeerId>,
}

impl Askable for OfNet<'_> {
    fn members(&self) -> Vec<PeerId> {
        let mut peers = self.net.peers();
        peers.sort_by_key(|peer| {
            (
                Some(peer.peer) != self.prefer,
                peer.round_trip.unwrap_or(Duration::MAX),
            )
        });
        peers.into_iter().map(|peer| peer.peer).collect()
    }

    fn ask(&self, peer: PeerId, nodes: Vec<NodeHash>) -> BoxFuture<'_, Said> {
        async move {
            let request = SyncRequest::Nodes(nodes);
            match self.net.request(peer, request, NODES_WITHIN).await {
                Ok(SyncAnswer::Nodes(nodes)) => {
                    Said::Nodes(nodes.into_iter().map(|node| node.into_vec()).collect())
                }
                Ok(_) => Said::Nothing,
                Err(error) => {
                    tracing::debug!(%peer, %error, "manifest nodes were not given");
                    match error {
                        crate::net::NetError::TimedOut { .. } => Said::TooLate,
                        _ => Said::Nothing,
                    }
                }
            }
        }
        .boxed()
    }

    fn ask_trackers(&self, nodes: Vec<NodeHash>) -> BoxFuture<'_, Vec<Vec<u8>>> {
        async move {
            match self.late.trackers.get() {
                Some(trackers) => trackers.nodes(&nodes).await,
                None => Vec::new(),
            }
        }
        .boxed()
    }

    fn blame(&self, peer: PeerId, reason: &str) {
        self.net.offence(peer, reason);
    }
}

/// What an answer is worth.
#[derive(Debug, Default)]
struct Judged {
    /// For how many it says whether it has them.
    answered: usize,
    good: Vec<(NodeHash, Vec<u8>)>,
    /// What was asked for and is no valid node: nobody can give anything else under that hash, so whoever asked must know.
    invalid: Vec<(NodeHash, Vec<u8>)>,
    /// What its sender is to be blamed for.
    offence: Option<String>,
}

/// Checks an answer to a request for these nodes.
fn judge(asked: &[NodeHash], nodes: Vec<Vec<u8>>) -> Judged {
    let mut judged = Judged {
        answered: nodes.len(),
        ..Judged::default()
    };
    if nodes.len() > asked.len() {
        judged.offence = Some("it sent more manifest nodes than it was asked for".into());
        return judged;
    }
    for (hash, node) in asked.iter().zip(nodes) {
        if node.is_empty() {
            continue;
        }
        if NodeHash::of(&node) != *hash {
            judged.offence = Some("it sent something else than the manifest node asked for".into());
        } else if let Err(error) = Node::decode(&node) {
            judged.offence = Some(format!(
                "it sent a manifest node that is not valid: {error}"
            ));
            judged.invalid.push((*hash, node));
        } else {
            judged.good.push((*hash, node));
        }
    }
    judged
}

/// One fetch. Whatever came stays in `got` when it is given up.
struct Fetch<'a, A> {
    members: &'a A,
    slow: &'a Slow,
    wanted: BTreeSet<NodeHash>,
    got: Vec<Vec<u8>>,
    /// Somebody had none of what they were asked for.
    denied: bool,
    /// Being asked, or not to be asked again.
    done: BTreeSet<PeerId>,
    /// How often a member was worth asking again: it comes after those that were asked less.
    turns: BTreeMap<PeerId, u32>,
}

impl<'a, A: Askable> Fetch<'a, A> {
    fn new(members: &'a A, slow: &'a Slow, nodes: Vec<NodeHash>) -> Self {
        Self {
            members,
            slow,
            wanted: nodes.into_iter().collect(),
            got: Vec::new(),
            denied: false,
            done: BTreeSet::new(),
            turns: BTreeMap::new(),
        }
    }

    /// Who is asked next.
    fn next(&self) -> Option<PeerId> {
        let members = self.members.members().into_iter();
        let left = members.filter(|peer| !self.done.contains(peer));
        // The first of equals: they come in order.
        left.min_by_key(|peer| {
            let turns = self.turns.get(peer).copied().unwrap_or(0);
            (self.slow.has(peer), turns)
        })
    }

    /// Returns when nothing is wanted any more, when something came and nobody is left to ask for the rest, or when the
    /// network has stopped. The caller bounds the time.
    async fn run(&mut self, mut events: broadcast::Receiver<NetEvent>) {
        let members = self.members;
        let mut asked = FuturesUnordered::new();
        let mut next_at = Instant::now();
        // At most one.
        let mut copy = FuturesUnordered::new();
        let mut copy_at = Instant::now() + COPY_AFTER;
        let mut copy_again = None;
        while !self.wanted.is_empty() {
            let next = if asked.len() < ASKED_MAX {
                self.next()
            } else {
                None
            };
            if let Some(peer) = next
                && (asked.is_empty() || next_at <= Instant::now())
            {
                // A second one starts at the other end, so that both may be of use.
                let most = match self.slow.has(&peer) {
                    true => SLOW_BATCH,
                    false => NAMED_MAX,
                };
                let batch: Vec<NodeHash> = if asked.len() % 2 == 0 {
                    self.wanted.iter().take(most).copied().collect()
                } else {
                    self.wanted.iter().rev().take(most).copied().collect()
                };
                self.done.insert(peer);
                asked.push(async move {
                    let said = members.ask(peer, batch.clone()).await;
                    let said = match said {
                        Said::Nodes(nodes) => {
                            let (of, count) = (batch.clone(), batch.len());
                            Ok((count, run_blocking(move || judge(&of, nodes)).await))
                        }
                        other => Err(other),
                    };
                    (peer, said)
                });
                next_at = Instant::now() + PATIENCE;
                continue;
            }
            let nobody_else = asked.is_empty() && next.is_none();
            if copy.is_empty() {
                if copy_at <= Instant::now() || (nobody_else && copy_again.is_none()) {
                    let batch = self.wanted.iter().take(NAMED_MAX).copied().collect();
                    copy.push(members.ask_trackers(batch));
                } else if nobody_else && !self.got.is_empty() {
                    return;
                }
            }
            tokio::select! {
                Some((peer, said)) = asked.next() => {
                    self.take(peer, said);
                    // Whoever is next need not wait for the others.
                    next_at = Instant::now();
                }
                () = sleep_until(next_at), if next.is_some() => {}
                Some(nodes) = copy.next() => {
                    for node in nodes {
                        if self.wanted.remove(&NodeHash::of(&node)) {
                            self.got.push(node);
                        }
                    }
                    let pause = copy_again.map_or(COPY_AGAIN_MIN, |pause: Duration| pause * 2);
                    let pause = pause.min(COPY_AGAIN_MAX);
                    copy_again = Some(pause);
                    copy_at = Instant::now() + pause;
                }
                () = sleep_until(copy_at), if copy.is_empty() => {}
                event = events.recv() => match event {
                    Ok(NetEvent::Up(peer)) => {
                        self.done.remove(&peer);
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.done.clear(),
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    /// Keeps what is good of what a member gave for so many nodes asked for, and decides whether it is asked again.
    fn take(&mut self, peer: PeerId, said: Result<(usize, Judged), Said>) {
        let (count, judged) = match said {
            Ok(judged) => judged,
            Err(Said::TooLate) => return self.slow.note(peer),
            Err(_) => return,
        };
        let (good, mut bytes) = (judged.good.len(), 0);
        self.denied |= judged.answered > 0 && good == 0 && judged.offence.is_none();
        for (hash, node) in judged.good {
            bytes += node.len();
            // Another one may have given it meanwhile.
            if self.wanted.remove(&hash) {
                self.got.push(node);
            }
        }
        for (hash, node) in judged.invalid {
            if self.wanted.remove(&hash) {
                self.got.push(node);
            }
        }
        if let Some(offence) = judged.offence {
            self.members.blame(peer, &offence);
        } else if 2 * good >= count || bytes >= FULL_BYTES {
            self.done.remove(&peer);
            *self.turns.entry(peer).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests;
