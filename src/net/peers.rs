//! What the parts of the network share: the proven peers, the counters, and the way to tell the swarm's owner something.
//!
//! Only the swarm's owner ([`super::swarm`]) puts peers in and takes them out; everybody else reads. A peer is in the map
//! exactly while its membership is proven and at least one connection to it is up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, PeerId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Blame, NetEvent, PeerInfo, Service,
    blocks::{self, BlockClient, Patience},
    book::{Book, Target},
    counters::Counters,
    hello::HelloError,
    limits::Upload,
    proto::PeerHello,
    sync::{self, SyncClient},
    transport::Sockets,
};
use crate::cluster::ClusterKeys;

/// Block answers of one peer that are worked on at once; further requests of that peer wait unread.
const ANSWERS_PER_PEER_MAX: usize = 16;
/// Block answers that are worked on at once for all peers, about 140 MiB; further requests are answered
/// [`super::proto::BlockAnswer::Busy`].
const ANSWERS_MAX: usize = 128;
/// Sync answers that are worked on or written at once for all peers, at most 4 MiB each.
const SYNC_ANSWERS_MAX: usize = 32;
/// Notes that wait for the swarm's owner. When full, whoever has one waits.
const NOTES_MAX: usize = 256;
/// Members whose blame is remembered; the oldest goes first.
const BLAMES_MAX: usize = 256;
/// Events that a slow reader may be behind.
const EVENTS_MAX: usize = 1024;

/// What the tasks tell the swarm's owner.
pub(super) enum Note {
    /// A handshake ended. `target` is what was dialed for it.
    Hello {
        peer: PeerId,
        target: Option<Target>,
        outcome: Result<PeerHello, HelloError>,
    },
    /// A peer broke the protocol.
    Offence { peer: PeerId, reason: String },
    /// A peer said that it goes away.
    Leaving(PeerId),
}

/// See the module.
pub(super) struct Shared {
    pub(super) local: PeerId,
    pub(super) keys: ClusterKeys,
    pub(super) hello: PeerHello,
    pub(super) service: Arc<dyn Service>,
    pub(super) counters: Arc<Counters>,
    /// Whoever knows that a line is dead severs it.
    pub(super) sockets: Arc<Sockets>,
    pub(super) control: libp2p_stream::Control,
    pub(super) events: broadcast::Sender<NetEvent>,
    pub(super) addresses: RwLock<Vec<Multiaddr>>,
    /// Whom there is any connection to, proven or not.
    pub(super) connected: RwLock<BTreeSet<PeerId>>,
    pub(super) book: Mutex<Book>,
    /// What members were last blamed for.
    pub(super) blames: Mutex<BTreeMap<PeerId, Blame>>,
    /// Wakes the swarm's owner after a change of the book.
    pub(super) book_changed: Notify,
    pub(super) notes: mpsc::Sender<Note>,
    /// Room for block answers, all peers together.
    pub(super) answers: Arc<Semaphore>,
    /// Room for sync answers, all peers together.
    pub(super) sync_answers: Arc<Semaphore>,
    pub(super) load: AtomicU32,
    /// The limit on what is sent.
    pub(super) upload: Upload,
    /// Ends every task of the network.
    pub(super) stop: CancellationToken,
    peers: RwLock<BTreeMap<PeerId, Arc<Peer>>>,
    /// Counts changes of `peers`.
    changes: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(
        config: super::NetConfig,
        service: Arc<dyn Service>,
        counters: Arc<Counters>,
        sockets: Arc<Sockets>,
        control: libp2p_stream::Control,
    ) -> (Arc<Self>, mpsc::Receiver<Note>) {
        let (notes, incoming) = mpsc::channel(NOTES_MAX);
        let local = config.identity.public().to_peer_id();
        let shared = Self {
            local,
            keys: config.keys,
            hello: config.hello,
            service,
            counters,
            sockets,
            control,
            events: broadcast::Sender::new(EVENTS_MAX),
            addresses: RwLock::default(),
            connected: RwLock::default(),
            book: Mutex::new(Book::new(local)),
            blames: Mutex::default(),
            book_changed: Notify::new(),
            notes,
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            sync_answers: Arc::new(Semaphore::new(SYNC_ANSWERS_MAX)),
            load: AtomicU32::new(0),
            upload: Upload::new(config.upload_limit),
            stop: CancellationToken::new(),
            peers: RwLock::default(),
            changes: watch::Sender::new(0),
        };
        (Arc::new(shared), incoming)
    }

    /// Block answers that are worked on, and how many may be at most.
    pub(super) fn answering(&self) -> (usize, usize) {
        let free = self.answers.available_permits();
        (ANSWERS_MAX.saturating_sub(free), ANSWERS_MAX)
    }

    /// A proven peer.
    pub(super) fn peer(&self, peer: &PeerId) -> Option<Arc<Peer>> {
        self.peers.read().get(peer).cloned()
    }

    pub(super) fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    /// A peer, if it is proven within this time.
    pub(super) async fn peer_within(&self, peer: &PeerId, within: Duration) -> Option<Arc<Peer>> {
        let mut changes = self.changes.subscribe();
        let proven = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = self.peer(peer) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(within, proven).await.ok().flatten()
    }

    /// Takes a peer in that proved itself, or notes what its newest hello says. Tells whether it is new.
    pub(super) fn admit(self: &Arc<Self>, id: PeerId, hello: PeerHello, at: Whereabouts) -> bool {
        if let Some(known) = self.peer(&id) {
            known.about.lock().hello = hello;
            return false;
        }
        let gone = self.stop.child_token();
        let traffic = Arc::new(Traffic::default());
        let peer = Arc::new(Peer {
            id,
            about: Mutex::new(About {
                hello,
                at,
                round_trip: None,
            }),
            sync: sync::start(self, id, &gone),
            blocks: blocks::start(self, id, &gone, &traffic),
            traffic,
            answers: Arc::new(Semaphore::new(ANSWERS_PER_PEER_MAX)),
            patience: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            sync_answers: Arc::new(Semaphore::new(sync::ANSWERING_MAX)),
            gone,
        });
        self.peers.write().insert(id, peer);
        self.changes.send_modify(|count| *count += 1);
        true
    }

    /// Takes a peer out and ends its tasks.
    pub(super) fn dismiss(&self, peer: &PeerId) -> Option<Arc<Peer>> {
        let peer = self.peers.write().remove(peer)?;
        self.changes.send_modify(|count| *count += 1);
        peer.gone.cancel();
        Some(peer)
    }

    /// Waits until no proven peer is left. The caller bounds the time.
    pub(super) async fn alone(&self) {
        let mut changes = self.changes.subscribe();
        while !self.peers.read().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Blocks a peer for an offence; the swarm's owner disconnects it when it next looks at the book.
    pub(super) fn offence(&self, peer: PeerId, reason: &str) {
        // Strangers come and go: only what members did is remembered.
        if self.peer(&peer).is_some() {
            let mut blames = self.blames.lock();
            if blames.len() >= BLAMES_MAX && !blames.contains_key(&peer) {
                let oldest = blames.iter().min_by_key(|(_, blame)| blame.at);
                if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                    blames.remove(&oldest);
                }
            }
            let blame = Blame {
                peer,
                reason: reason.to_owned(),
                at: SystemTime::now(),
            };
            blames.insert(peer, blame);
        }
        let duration = self.book.lock().offence(Instant::now(), peer);
        let seconds = duration.as_secs();
        tracing::warn!(%peer, reason, seconds, "disconnected and blocked for a while");
    }

    /// Tells the swarm's owner; waits while its queue is full.
    pub(super) async fn note(&self, note: Note) {
        // It fails only when the network has stopped, and then there is nobody left to care.
        let _ = self.notes.send(note).await;
    }
}

/// Where a peer is.
#[derive(Clone, Debug)]
pub(super) struct Whereabouts {
    /// Address of the connection.
    pub(super) address: Multiaddr,
    /// Where it can be dialed.
    pub(super) listen: Vec<Multiaddr>,
}

/// What is known of a proven peer.
pub(super) struct About {
    pub(super) hello: PeerHello,
    pub(super) at: Whereabouts,
    pub(super) round_trip: Option<Duration>,
}

/// Bytes to and from one peer.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) block_received: AtomicU64,
    pub(super) block_sent: AtomicU64,
}

/// A proven peer.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) about: Mutex<About>,
    pub(super) sync: SyncClient,
    pub(super) blocks: BlockClient,
    pub(super) traffic: Arc<Traffic>,
    /// Room for block answers to this peer.
    pub(super) answers: Arc<Semaphore>,
    /// How well it takes them.
    pub(super) patience: Mutex<Patience>,
    /// Its answers wait for the limit one at a time, however many streams it has: peers take turns.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Room for sync answers to this peer.
    pub(super) sync_answers: Arc<Semaphore>,
    /// Cancelled when the last connection is gone.
    pub(super) gone: CancellationToken,
}

impl Peer {
    pub(super) fn info(&self) -> PeerInfo {
        let about = self.about.lock();
        PeerInfo {
            peer: self.id,
            hello: about.hello.clone(),
            address: about.at.address.clone(),
            listen: about.at.listen.clone(),
            round_trip: about.round_trip,
            block_bytes_received: self.traffic.block_received.load(Relaxed),
            block_bytes_sent: self.traffic.block_sent.load(Relaxed),
        }
    }
}
