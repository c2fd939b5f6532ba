//! Manifest nodes from members.
//!
//! Several members are asked at once where the first takes its time, so that one which answers slowly, little or nothing
//! delays a look into a folder by [`PATIENCE`] and not by its whole time. The order is that of merit: who is preferred
//! and who is near first, who was too slow a moment ago last.

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
    manifest::NodeHash,
    net::{
        Net, NetEvent,
        proto::{NAMED_MAX, SYNC_BYTES_MAX, SyncAnswer, SyncRequest},
    },
    node::namespace::NodeFetcher,
};

/// How long one member is given for one batch of nodes.
const NODES_WITHIN: Duration = Duration::from_secs(5);
/// How long those that were asked are waited for before another one is asked too.
const PATIENCE: Duration = Duration::from_millis(300);
/// Members asked at once: what they answer may be the same nodes.
const ASKED_MAX: usize = 4;
/// How long it is held against a member that it gave no answer in time.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// Members of which that is remembered.
const SLOW_MAX: usize = 4096;
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

/// Fetches manifest nodes from members.
pub(in crate::node) struct PeerFetcher {
    pub(in crate::node) late: Arc<Late>,
}

impl NodeFetcher for PeerFetcher {
    fn fetch(
        &self,
        nodes: Vec<NodeHash>,
        prefer: Option<PeerId>,
        within: Duration,
    ) -> BoxFuture<'static, Vec<Vec<u8>>> {
        let late = self.late.clone();
        async move {
            let Some(net) = late.net.get() else {
                return Vec::new();
            };
            let events = net.events();
            let members = OfNet { net, prefer };
            let mut fetch = Fetch::new(&members, &late.slow, nodes);
            if timeout_at(Instant::now() + within, fetch.run(events))
                .await
                .is_err()
            {
                tracing::debug!("manifest nodes were not to be had in time");
            }
            fetch.got
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
}

struct OfNet<'a> {
    net: &'a Net,
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
}

/// One fetch. Whatever came stays in `got` when it is given up.
struct Fetch<'a, A> {
    members: &'a A,
    slow: &'a Slow,
    wanted: BTreeSet<NodeHash>,
    got: Vec<Vec<u8>>,
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

    /// Returns when nothing is wanted any more, or the network has stopped. The caller bounds the time.
    async fn run(&mut self, mut events: broadcast::Receiver<NetEvent>) {
        let members = self.members;
        let mut asked = FuturesUnordered::new();
        let mut next_at = Instant::now();
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
                let batch: Vec<NodeHash> = if asked.len() % 2 == 0 {
                    self.wanted.iter().take(NAMED_MAX).copied().collect()
                } else {
                    self.wanted.iter().rev().take(NAMED_MAX).copied().collect()
                };
                self.done.insert(peer);
                asked.push(async move {
                    let said = members.ask(peer, batch.clone()).await;
                    (peer, batch, said)
                });
                next_at = Instant::now() + PATIENCE;
                continue;
            }
            tokio::select! {
                Some((peer, batch, said)) = asked.next() => {
                    self.take(peer, &batch, said);
                    // Whoever is next need not wait for the others.
                    next_at = Instant::now();
                }
                () = sleep_until(next_at), if next.is_some() => {}
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

    /// Keeps what a member gave, and decides whether it is asked again.
    fn take(&mut self, peer: PeerId, batch: &[NodeHash], said: Said) {
        let nodes = match said {
            Said::Nodes(nodes) => nodes,
            Said::Nothing => return,
            Said::TooLate => return self.slow.note(peer),
        };
        let (mut good, mut bytes) = (0, 0);
        for (hash, node) in batch.iter().zip(nodes) {
            // A blob that is not what was asked for is as good as none.
            if node.is_empty() || NodeHash::of(&node) != *hash {
                continue;
            }
            good += 1;
            bytes += node.len();
            // Another one may have given it meanwhile.
            if self.wanted.remove(hash) {
                self.got.push(node);
            }
        }
        if 2 * good >= batch.len() || bytes >= FULL_BYTES {
            self.done.remove(&peer);
            *self.turns.entry(peer).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Manner {
        All,
        /// One node of those asked for.
        One,
        Silent,
        Busy,
    }

    /// Members with their manners, and whom was asked.
    struct Company {
        members: Vec<(PeerId, Manner)>,
        asked: Mutex<Vec<PeerId>>,
    }

    impl Company {
        fn new(manners: &[Manner]) -> Self {
            let manners = manners.iter();
            Self {
                members: manners.map(|manner| (PeerId::random(), *manner)).collect(),
                asked: Mutex::default(),
            }
        }

        fn times_asked(&self, number: usize) -> usize {
            let peer = self.members[number].0;
            let asked = self.asked.lock();
            asked.iter().filter(|asked| **asked == peer).count()
        }
    }

    fn node(number: u8) -> Vec<u8> {
        vec![number; 100]
    }

    fn hashes(count: u8) -> Vec<NodeHash> {
        (1..=count).map(|n| NodeHash::of(&node(n))).collect()
    }

    impl Askable for Company {
        fn members(&self) -> Vec<PeerId> {
            self.members.iter().map(|(peer, _)| *peer).collect()
        }

        fn ask(&self, peer: PeerId, nodes: Vec<NodeHash>) -> BoxFuture<'_, Said> {
            self.asked.lock().push(peer);
            let manner = self.members.iter().find(|member| member.0 == peer);
            let manner = manner.unwrap().1;
            async move {
                let limit = match manner {
                    Manner::All => usize::MAX,
                    Manner::One => 1,
                    Manner::Busy => return Said::Nothing,
                    Manner::Silent => std::future::pending().await,
                };
                let known: BTreeMap<_, _> = (1..=100)
                    .map(|n| (NodeHash::of(&node(n)), node(n)))
                    .collect();
                let given = nodes.iter().take(limit);
                Said::Nodes(given.map(|hash| known[hash].clone()).collect())
            }
            .boxed()
        }
    }

    async fn fetched(company: &Company, slow: &Slow, count: u8) -> (usize, Duration) {
        let events = broadcast::Sender::new(1);
        let start = Instant::now();
        let mut fetch = Fetch::new(company, slow, hashes(count));
        let run = fetch.run(events.subscribe());
        let _ = tokio::time::timeout(Duration::from_secs(10), run).await;
        (fetch.got.len(), start.elapsed())
    }

    #[tokio::test]
    async fn members_that_say_nothing_delay_a_fetch_by_moments() {
        let company = Company::new(&[Manner::Silent, Manner::Busy, Manner::Silent, Manner::All]);
        let (got, took) = fetched(&company, &Slow::default(), 20).await;
        assert_eq!(got, 20);
        assert!((PATIENCE..NODES_WITHIN).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn a_member_that_gives_one_node_at_a_time_is_not_asked_again() {
        let company = Company::new(&[Manner::One, Manner::All]);
        let (got, _) = fetched(&company, &Slow::default(), 50).await;
        assert_eq!(got, 50);
        assert_eq!(company.times_asked(0), 1);
    }

    #[tokio::test]
    async fn who_was_too_slow_is_asked_last() {
        let company = Company::new(&[Manner::All, Manner::All]);
        let slow = Slow::default();
        slow.note(company.members[0].0);
        fetched(&company, &slow, 10).await;
        assert_eq!((company.times_asked(0), company.times_asked(1)), (0, 1));
    }

    #[tokio::test]
    async fn who_gives_what_it_is_asked_for_is_asked_again_after_the_others() {
        let company = Company::new(&[Manner::All, Manner::All]);
        let slow = Slow::default();
        let mut fetch = Fetch::new(&company, &slow, hashes(10));
        let first = company.members[0].0;
        fetch.take(first, &hashes(4), Said::Nodes((1..=4).map(node).collect()));
        assert_eq!(fetch.next(), Some(company.members[1].0));
        fetch.done.insert(company.members[1].0);
        assert_eq!(fetch.next(), Some(first));
    }
}
