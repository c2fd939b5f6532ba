//! The network: one libp2p swarm, membership before anything else, sync and block streams with bounds.
//!
//! `transport` secures and multiplexes TCP; `swarm` owns the swarm, dials (`book`) and counts connections (`sources`); `hello`
//! proves membership; `sync` and `blocks` carry questions and answers over long-lived streams (`streams`, `framing`); `limits` limits rates; `peers`
//! is what they share.
//!
//! It decides nothing about manifests or contents: whatever members ask is answered by the [`Service`].
//!
//! Invariants: nothing of the cluster leaves this node before the other side's proof held; every message is bounded before
//! it is read, every queue is bounded, every wait has a deadline; a peer that breaks the protocol is disconnected and
//! blocked for a time that grows.

mod addresses;
mod blocks;
mod book;
mod counters;
pub mod framing;
mod hello;
mod limits;
mod peers;
pub mod proto;
mod sources;
mod streams;
mod swarm;
mod sync;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::{BoxFuture, join_all};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, identity::Keypair};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};
use tracing::{error, warn};

use crate::cluster::{Certificate, ClusterKeys};
use blocks::Asked;
use peers::{Peer, Shared};
use proto::{
    BLOCKS, BatchRequest, BlockAnswer, BlockRequest, HELLO, PeerHello, Push, SYNC, SyncAnswer,
    SyncRequest,
};
use swarm::{Behaviour, Command, Owner};

/// Commands that wait for the swarm's owner. When full, [`Net::connect`] waits.
const COMMANDS_MAX: usize = 64;
/// Longest time for saying goodbye to all peers.
const GOODBYE_WITHIN: Duration = Duration::from_millis(1000);
/// Longest time for closing all connections after that.
const CLOSE_WITHIN: Duration = Duration::from_millis(800);

/// What the swarm needs to start.
pub struct NetConfig {
    /// This node's identity.
    pub identity: Keypair,
    /// The cluster.
    pub keys: ClusterKeys,
    /// What hello says of this node.
    pub hello: PeerHello,
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// Bytes of contents that may be sent in a second, to all peers together.
    pub upload_limit: Option<u64>,
}

/// Why something on the network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Nobody there, or not a proven member.
    #[error("no connection to peer {0}")]
    NotConnected(PeerId),
    /// Could not be reached.
    #[error("could not connect to {address}: {reason}")]
    Dial {
        /// Whom.
        address: Multiaddr,
        /// Why.
        reason: String,
    },
    /// Could not listen.
    #[error("could not listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: Multiaddr,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer from {peer} within {} s", after.as_secs_f32())]
    TimedOut {
        /// Who.
        peer: PeerId,
        /// How long.
        after: Duration,
    },
    /// The peer broke the protocol; it has been disconnected.
    #[error("peer {peer} broke the protocol: {reason}")]
    Protocol {
        /// Who.
        peer: PeerId,
        /// How.
        reason: String,
    },
    /// The connection went away, or the node is stopping.
    #[error("the connection to {0} was lost")]
    Lost(PeerId),
}

/// What answers other members. Methods must not block; long work belongs into the futures.
pub trait Service: Send + Sync + 'static {
    /// Answers a request on a sync stream.
    fn answer(
        self: Arc<Self>,
        peer: PeerId,
        request: SyncRequest,
    ) -> BoxFuture<'static, SyncAnswer>;
    /// Takes a push.
    fn pushed(self: Arc<Self>, peer: PeerId, push: Push) -> BoxFuture<'static, ()>;
    /// Answers a request on a block stream. `place` is to be kept until all work for it has ended, work that goes on when the
    /// future is dropped included.
    fn blocks(
        self: Arc<Self>,
        peer: PeerId,
        request: BlockRequest,
        place: Place,
    ) -> BoxFuture<'static, BlockAnswer>;
    /// Answers a request for whole small contents on a block stream, with [`BlockAnswer::Batch`] or
    /// [`BlockAnswer::Busy`]. `place` as above.
    fn batch(
        self: Arc<Self>,
        peer: PeerId,
        request: BatchRequest,
        place: Place,
    ) -> BoxFuture<'static, BlockAnswer>;
}

/// One of the answers that may be made at a time, until it is dropped.
pub type Place = Arc<dyn Send + Sync>;

/// A proven peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its id.
    pub peer: PeerId,
    /// What its hello said.
    pub hello: PeerHello,
    /// Address of the connection.
    pub address: Multiaddr,
    /// Addresses it can be dialed at (identify), for telling others.
    pub listen: Vec<Multiaddr>,
    /// Measured by ping.
    pub round_trip: Option<Duration>,
    /// Bytes of block answers received from it.
    pub block_bytes_received: u64,
    /// Bytes of block answers sent to it.
    pub block_bytes_sent: u64,
}

/// What a member was last disconnected and blocked for.
#[derive(Clone, Debug)]
pub struct Blame {
    /// Who.
    pub peer: PeerId,
    /// For what.
    pub reason: String,
    /// When.
    pub at: SystemTime,
}

/// What happens on the network.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// A peer proved its membership.
    Up(PeerId),
    /// The last connection to a proven peer went away.
    Down(PeerId),
    /// One of several connections to a proven peer went away: what was under way on it is lost.
    Missed(PeerId),
    /// The addresses of this node changed.
    Addresses(Vec<Multiaddr>),
}

/// Byte counts since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetCounters {
    /// Everything received above TCP.
    pub received_bytes: u64,
    /// Everything sent above TCP.
    pub sent_bytes: u64,
    /// Block answers received.
    pub block_bytes_received: u64,
    /// Block answers sent.
    pub block_bytes_sent: u64,
    /// Sync answers and pushes received.
    pub manifest_bytes_received: u64,
}

/// The network of one mount. Cheap to clone; the network stops with [`Net::stop`], or when the last clone is dropped.
#[derive(Clone)]
pub struct Net {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Net {
    /// Starts the swarm on the current tokio runtime; returns when all listen addresses are bound.
    ///
    /// # Errors
    /// [`NetError::Listen`] with a plain reason, such as that the port is in use.
    pub async fn start(config: NetConfig, service: Arc<dyn Service>) -> Result<Self, NetError> {
        let listen = config.listen.clone();
        let counters = Arc::new(counters::Counters::default());
        let sockets = Arc::new(transport::Sockets::default());
        let transport = transport::build(&config.identity, counters.clone(), sockets.clone());
        let transport = transport.map_err(|error| NetError::Listen {
            address: listen.first().cloned().unwrap_or_else(Multiaddr::empty),
            reason: error.to_string(),
        })?;
        let behaviour = Behaviour::new(&config.identity);
        let mut control = behaviour.streams.new_control();
        let mut incoming = Vec::new();
        for protocol in [HELLO, SYNC, BLOCKS] {
            match control.accept(protocol.clone()) {
                Ok(streams) => incoming.push((protocol, streams)),
                Err(taken) => error!(%taken, %protocol, "cannot accept streams"),
            }
        }
        let local = config.identity.public().to_peer_id();
        let swarm = Swarm::new(transport, behaviour, local, swarm::swarm_config());
        let (shared, notes) = Shared::new(config, service, counters, sockets, control);
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let owner = Owner::bind(shared.clone(), swarm, receiver, notes, listen).await?;
        streams::take_all(&shared, incoming);
        tokio::spawn(owner.run());
        Ok(Self { shared, commands })
    }

    /// This node.
    pub fn local_peer(&self) -> PeerId {
        self.shared.local
    }

    /// The cluster's word that this node may write; `None` with a read-only id.
    pub(crate) fn certificate(&self) -> Option<Certificate> {
        Certificate::issue(&self.shared.keys, &self.shared.local).ok()
    }

    /// Whether a certificate says now that this peer may write.
    pub(crate) fn may_write(&self, peer: &PeerId, certificate: &Certificate) -> bool {
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ns = now_ns.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        certificate.peer() == *peer && certificate.verify(&self.shared.keys, now_ns).is_ok()
    }

    /// Addresses that others may dial, without `/p2p`.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.shared.addresses.read().clone()
    }

    /// Follows what happens; a slow reader misses the oldest events and reads [`Net::peers`] anew.
    pub fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.shared.events.subscribe()
    }

    /// Proven peers.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let peers = self.shared.all_peers();
        peers.iter().map(|peer| peer.info()).collect()
    }

    /// Tells where a peer may be. Permanent ones (`--peer`) are dialed again, with growing pauses of at most 30 s, whenever
    /// they are not connected; others are given up after some tries. Dialing oneself or a blocked peer is passed over.
    pub fn add_peer(&self, address: Multiaddr, permanent: bool) {
        let mut book = self.shared.book.lock();
        book.add(Instant::now(), address, permanent);
        drop(book);
        self.shared.book_changed.notify_one();
    }

    /// Connects to something that is not a member (a tracker) and tells its id. No hello. The connection is kept until the
    /// other side closes it; asking again for the same address gives the same connection while it is up.
    ///
    /// # Errors
    /// [`NetError::Dial`] with a plain reason.
    pub async fn connect(&self, address: Multiaddr, within: Duration) -> Result<PeerId, NetError> {
        let asked = address.clone();
        let connected = async {
            let (reply, connected) = oneshot::channel();
            let command = Command::Connect {
                address: asked,
                reply,
            };
            self.commands.send(command).await.ok()?;
            connected.await.ok()
        };
        let reason = match timeout(within, connected).await {
            Ok(Some(Ok(peer))) => return Ok(peer),
            Ok(Some(Err(reason))) => reason,
            Ok(None) => "the network has stopped".into(),
            Err(_) => format!("no answer within {} s", within.as_secs_f32()),
        };
        Err(NetError::Dial { address, reason })
    }

    /// A raw stream to a connected peer, for protocols that live elsewhere (the tracker's).
    ///
    /// # Errors
    /// [`NetError::NotConnected`], [`NetError::TimedOut`], or [`NetError::Protocol`] when the peer doesn't speak it.
    pub async fn open(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
        within: Duration,
    ) -> Result<libp2p::Stream, NetError> {
        if !self.shared.connected.read().contains(&peer) {
            return Err(NetError::NotConnected(peer));
        }
        match timeout(within, streams::open_raw(&self.shared, peer, protocol)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error @ streams::OpenError::NotSpoken(_))) => Err(NetError::Protocol {
                peer,
                reason: error.to_string(),
            }),
            Ok(Err(streams::OpenError::Broken(_))) => Err(NetError::Lost(peer)),
            Err(_) => Err(NetError::TimedOut {
                peer,
                after: within,
            }),
        }
    }

    /// Asks a proven peer.
    ///
    /// # Errors
    /// [`NetError::NotConnected`], [`NetError::TimedOut`], [`NetError::Lost`].
    pub async fn request(
        &self,
        peer: PeerId,
        request: SyncRequest,
        within: Duration,
    ) -> Result<SyncAnswer, NetError> {
        let there = self.proven(peer)?;
        let ask = || there.sync.ask(request.clone());
        answered(&there, within, once_more(ask)).await
    }

    /// Pushes to all proven peers but one; a peer whose queue is full misses it (the 30 s comparison makes it good).
    pub fn push(&self, push: Push, except: Option<PeerId>) {
        let frame = match sync::encode_push(push) {
            Ok(frame) => frame,
            Err(error) => return error!(%error, "a push that cannot be sent"),
        };
        for peer in self.shared.all_peers() {
            if Some(peer.id) != except {
                peer.sync.push(frame.clone());
            }
        }
    }

    /// Fetches blocks from a proven peer. Dropping the future cancels.
    ///
    /// # Errors
    /// [`NetError::NotConnected`], [`NetError::TimedOut`], [`NetError::Lost`].
    pub async fn blocks(
        &self,
        peer: PeerId,
        request: BlockRequest,
        within: Duration,
    ) -> Result<BlockAnswer, NetError> {
        let there = self.proven(peer)?;
        let ask = || there.blocks.fetch(Asked::Blocks(request.clone()));
        answered(&there, within, once_more(ask)).await
    }

    /// Fetches whole small contents from a proven peer, without asking first whether it has them: [`BlockAnswer::Batch`] or
    /// [`BlockAnswer::Busy`]. Dropping the future cancels.
    ///
    /// # Errors
    /// [`NetError::NotConnected`], [`NetError::TimedOut`], [`NetError::Lost`].
    pub async fn batch(
        &self,
        peer: PeerId,
        request: BatchRequest,
        within: Duration,
    ) -> Result<BlockAnswer, NetError> {
        let there = self.proven(peer)?;
        let ask = || there.blocks.fetch(Asked::Batch(request.clone()));
        answered(&there, within, once_more(ask)).await
    }

    /// Bytes that have come from a proven peer over the connections that it has now, of whatever kind, as they come: over a slow line
    /// a frame of an answer takes seconds, and is seen above only when it is whole.
    pub fn bytes_received(&self, peer: &PeerId) -> Option<u64> {
        self.shared.peer(peer)?;
        Some(self.shared.sockets.received_from(peer))
    }

    /// Block answers that are being worked on now, for all peers.
    pub fn load(&self) -> u32 {
        self.shared.load.load(Relaxed)
    }

    /// Disconnects a peer and refuses it for a while.
    pub fn block(&self, peer: PeerId, for_how_long: Duration, reason: &str) {
        let seconds = for_how_long.as_secs();
        warn!(%peer, reason, seconds, "blocked");
        let mut book = self.shared.book.lock();
        book.block(Instant::now(), peer, for_how_long);
        drop(book);
        self.shared.book_changed.notify_one();
    }

    /// Has connections prove themselves at once, and unreachable peers dialed: this process slept, or the network changed.
    pub fn doubt(&self) {
        if self.commands.try_send(Command::Doubt).is_err() {
            tracing::debug!("too much to do to doubt connections; pings find out");
        }
    }

    /// Disconnects a peer that broke a rule which is not the network's own, and refuses it for a while that grows.
    pub fn offence(&self, peer: PeerId, reason: &str) {
        self.shared.offence(peer, reason);
        self.shared.book_changed.notify_one();
    }

    /// What members were last blamed for here, those of the last 256 that were.
    pub fn blames(&self) -> Vec<Blame> {
        self.shared.blames.lock().values().cloned().collect()
    }

    /// Answers with blocks that are being made, and how many may be at most.
    pub fn answering(&self) -> (usize, usize) {
        self.shared.answering()
    }

    /// Counters.
    pub fn counters(&self) -> NetCounters {
        self.shared.counters.snapshot()
    }

    /// Tells the peers that this one leaves, closes all connections; bounded by two seconds.
    pub async fn stop(&self) {
        if let Ok(frame) = sync::encode_push(Push::Leaving) {
            let peers = self.shared.all_peers();
            let goodbyes = peers
                .iter()
                .map(|peer| peer.sync.push_and_flush(frame.clone()));
            let heard = async {
                join_all(goodbyes).await;
                // Each closes the connection once it has heard.
                self.shared.alone().await;
            };
            // Whoever does not hear it in time notices by itself.
            let _ = timeout(GOODBYE_WITHIN, heard).await;
        }
        let (closed, done) = oneshot::channel();
        let close = async {
            if self.commands.send(Command::Stop { closed }).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = timeout(CLOSE_WITHIN, close).await;
        self.shared.stop.cancel();
    }

    fn proven(&self, peer: PeerId) -> Result<Arc<Peer>, NetError> {
        self.shared.peer(&peer).ok_or(NetError::NotConnected(peer))
    }
}

/// Asks again where the stream broke: of several connections to a peer one may have ended, and all questions may be repeated.
async fn once_more<T, F: Future<Output = Option<T>>>(ask: impl Fn() -> F) -> Option<T> {
    match ask().await {
        None => ask().await,
        answer => answer,
    }
}

/// Waits for an answer as long as there is time and a connection.
async fn answered<T>(
    peer: &Peer,
    within: Duration,
    answer: impl Future<Output = Option<T>>,
) -> Result<T, NetError> {
    match timeout(within, peer.gone.run_until_cancelled(answer)).await {
        Ok(Some(Some(answer))) => Ok(answer),
        Ok(Some(None) | None) => Err(NetError::Lost(peer.id)),
        Err(_) => Err(NetError::TimedOut {
            peer: peer.id,
            after: within,
        }),
    }
}
