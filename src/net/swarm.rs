//! The owner of the swarm: one task that dials, keeps count of connections, and decides who counts as a peer.
//!
//! It waits for one thing at a time (an event, a command, a note from a task, a deadline), handles it without waiting for
//! anybody, and then restores what must always hold: dials that are due are under way, blocked peers are disconnected, and
//! no connection stays unproven for longer than [`UNPROVEN_MAX`], those to trackers excepted.

use std::{
    collections::{BTreeSet, HashMap},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures::{Stream as _, StreamExt};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{
    Multiaddr, PeerId, Swarm, allow_block_list,
    connection_limits::{self, ConnectionLimits},
    core::{
        ConnectedPoint,
        transport::{ListenerId, TransportError},
    },
    identify, ping,
    swarm::{
        ConnectionId, DialError, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use rand::Rng;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::{
    NetError, NetEvent,
    addresses::{dialable, explain, is_unspecified, plain, probe},
    book::Target,
    hello::HelloError,
    peers::{Note, Shared, Whereabouts},
    proto::ADDRESSES_MAX,
    sources::Sources,
    streams::{self, HELLO_WITHIN},
    transport::{Line, without_peer},
};

/// Longest life of a connection to a peer that proves nothing: the handshake's time and a little for closing.
const UNPROVEN_MAX: Duration = HELLO_WITHIN.saturating_add(Duration::from_secs(1));
/// Pause between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(1500);
/// A connection is closed when no ping was answered, and nothing moved over its line, for this long: pings queue behind the data on a
/// slow one. The longer packets are lost, the longer TCP waits before it sends them again, as long again as they were lost; a new
/// connection is there sooner. (libp2p reports only the second failure in a row, which takes longer.)
const SILENT_MAX: Duration = Duration::from_secs(8);
/// The same where there is reason to believe that a connection broke: an address of this machine went, it slept, or the
/// other side made a new one. What had come before and is read only then proves nothing.
const DOUBTED_MAX: Duration = Duration::from_secs(2);
/// How often it is looked whether anything moves, where a ping is overdue.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// When a ping is overdue.
const OVERDUE: Duration = PING_INTERVAL.saturating_mul(2);
/// A connection that is older than a new one by this much is dead where the other side says that it knows of the new one only. Of
/// one that is hardly older it may not know yet.
const ELDER_MIN: Duration = Duration::from_secs(1);
/// The system tells of an address that goes a moment before it stops to send from it.
const ADDRESS_GOES_WITHIN: Duration = Duration::from_millis(100);
/// After an upset of the network those who were lost by it are dialed at once.
const UPSET_FOR: Duration = Duration::from_secs(5);
/// libp2p closes a connection without streams after this. Those that should end sooner are ended here.
const IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Connections, all together; a peer keeps some dozens.
const CONNECTIONS_MAX: u32 = 512;
/// Connections that others opened.
const INCOMING_MAX: u32 = 384;
/// Connections whose handshakes are under way: those that others opened, and those that this node opened.
const PENDING_INCOMING_MAX: u32 = 512;
const PENDING_OUTGOING_MAX: u32 = 64;
/// Connections to one peer: both sides may dial at once, at several addresses.
const PER_PEER_MAX: u32 = 6;
/// Longest wait for the listeners to report their addresses.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);
/// The same where any address will do: a machine that has none now may get one later.
const NAMED_WITHIN: Duration = Duration::from_secs(1);
/// Longest wait for all connections to close.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// What the swarm speaks. Ping and identify reveal nothing of the cluster.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    sources: Sources,
    blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) streams: libp2p_stream::Behaviour,
}

impl Behaviour {
    pub(super) fn new(identity: &libp2p::identity::Keypair) -> Self {
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_INCOMING_MAX))
            .with_max_pending_outgoing(Some(PENDING_OUTGOING_MAX))
            .with_max_established_incoming(Some(INCOMING_MAX))
            .with_max_established(Some(CONNECTIONS_MAX))
            .with_max_established_per_peer(Some(PER_PEER_MAX));
        // Without its cache identify dials nobody: whom to dial is decided here.
        let identify = identify::Config::new("p2pfs/1".into(), identity.public())
            .with_agent_version("p2pfs".into())
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let ping = ping::Config::new()
            .with_interval(PING_INTERVAL)
            .with_timeout(SILENT_MAX);
        Self {
            limits: connection_limits::Behaviour::new(limits),
            sources: Sources::default(),
            blocked: allow_block_list::Behaviour::default(),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            streams: libp2p_stream::Behaviour::new(),
        }
    }
}

/// How libp2p runs the swarm.
pub(super) fn swarm_config() -> libp2p::swarm::Config {
    libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE_MAX)
}

/// What [`super::Net`] asks for.
pub(super) enum Command {
    Connect {
        address: Multiaddr,
        reply: oneshot::Sender<Result<PeerId, String>>,
    },
    /// Connections may have broken, and whoever could not be reached may be reachable now.
    Doubt,
    /// Closes everything; replies when it is closed, or by dropping the reply.
    Stop { closed: oneshot::Sender<()> },
}

/// What a dial is for.
enum Dial {
    Member(Target),
    Other(Target, Vec<oneshot::Sender<Result<PeerId, String>>>),
}

struct Connection {
    peer: PeerId,
    since: Instant,
    /// Where the other side is.
    address: Multiaddr,
    /// What was dialed, if it was.
    dialed: Option<Target>,
    /// Wanted without proof.
    to_tracker: bool,
    /// When a ping was last answered; nothing where it does not speak ping.
    answered: Option<Instant>,
    /// How much had moved over its line, and when that was looked at.
    looked: Option<(Instant, u64)>,
    /// Something moved after this.
    moved: Option<Instant>,
    /// Since when it has to prove that it is alive.
    doubted: Option<Instant>,
}

impl Connection {
    /// When it must have proven itself. One to a peer that does not speak ping can't.
    fn doubt_ends(&self) -> Option<Instant> {
        self.answered?;
        Some(self.doubted? + DOUBTED_MAX)
    }

    /// Whether a line is this connection's.
    fn is_over(&self, line: &Line) -> bool {
        self.address == line.remote && line.since <= self.since
    }

    /// When it is to be looked whether anything moves.
    fn look_due(&self) -> Option<Instant> {
        let overdue = self.answered? + OVERDUE;
        let first = self.doubted.map_or(overdue, |since| since.min(overdue));
        Some(
            self.looked
                .map_or(first, |(last, _)| first.max(last + LOOK_EVERY)),
        )
    }

    /// So much has moved over its line by now.
    fn look(&mut self, now: Instant, moved: u64) {
        if let Some((last, before)) = self.looked
            && moved > before
        {
            self.moved = Some(last);
        }
        self.looked = Some((now, moved));
    }

    /// Whether it is to be taken for dead; ends a doubt.
    fn is_dead(&mut self, now: Instant) -> bool {
        let Some(answered) = self.answered else {
            return false;
        };
        let alive = self.moved.map_or(answered, |moved| moved.max(answered));
        let is_due = self.doubt_ends().is_some_and(|at| now >= at);
        let since = self.doubted.take_if(|_| is_due);
        since.is_some_and(|since| alive <= since) || now >= alive + SILENT_MAX
    }
}

/// See the module.
pub(super) struct Owner {
    shared: Arc<Shared>,
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    notes: mpsc::Receiver<Note>,
    dials: HashMap<ConnectionId, Dial>,
    connections: HashMap<ConnectionId, Connection>,
    /// What identify said.
    listens: HashMap<PeerId, Vec<Multiaddr>>,
    /// Peers that said goodbye.
    leaving: BTreeSet<PeerId>,
    /// Which addresses this machine has; nothing where the system doesn't tell.
    interfaces: Option<IfWatcher>,
    /// When the network last became another one; dials make sense from then on.
    upset: Option<Instant>,
    /// When nothing is sent any more from an address that went: dials that began before are made again then.
    settles: Option<Instant>,
}

impl Owner {
    /// Binds all listen addresses.
    pub(super) async fn bind(
        shared: Arc<Shared>,
        mut swarm: Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        notes: mpsc::Receiver<Note>,
        listen: Vec<Multiaddr>,
    ) -> Result<Self, NetError> {
        let mut unbound: HashMap<ListenerId, Multiaddr> = HashMap::new();
        for address in listen {
            let failed = |reason: String| NetError::Listen {
                address: address.clone(),
                reason,
            };
            probe(&address).map_err(|error| failed(plain(&error)))?;
            let listener = swarm.listen_on(address.clone()).map_err(|error| {
                failed(match error {
                    TransportError::MultiaddrNotSupported(_) => {
                        "only /ip4/…/tcp/… and /ip6/…/tcp/… can be listened on".into()
                    }
                    TransportError::Other(error) => plain(&error),
                })
            })?;
            unbound.insert(listener, address);
        }
        let mut owner = Self {
            shared,
            swarm,
            commands,
            notes,
            dials: HashMap::new(),
            connections: HashMap::new(),
            listens: HashMap::new(),
            leaving: BTreeSet::new(),
            interfaces: IfWatcher::new()
                .inspect_err(|error| warn!(%error, "changes of addresses are noticed late"))
                .ok(),
            upset: None,
            settles: None,
        };
        let begun = tokio::time::Instant::now();
        while let Some(address) = unbound.values().next() {
            let may_be_none = unbound.values().all(is_unspecified);
            let deadline = begun
                + if may_be_none {
                    NAMED_WITHIN
                } else {
                    LISTEN_WITHIN
                };
            let event = tokio::time::timeout_at(deadline, owner.swarm.select_next_some()).await;
            let Ok(event) = event else {
                if may_be_none {
                    warn!(
                        "this machine has no network address: nobody reaches it before it has one"
                    );
                    break;
                }
                return Err(NetError::Listen {
                    address: address.clone(),
                    reason: "the system named no address for it".into(),
                });
            };
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    unbound.remove(listener_id);
                }
                SwarmEvent::ListenerError { listener_id, error } => {
                    if let Some(address) = unbound.remove(listener_id) {
                        let reason = plain(error);
                        return Err(NetError::Listen { address, reason });
                    }
                }
                SwarmEvent::ListenerClosed {
                    listener_id,
                    reason,
                    ..
                } => {
                    if let Some(address) = unbound.remove(listener_id) {
                        let reason = reason.as_ref().err().map_or("closed".into(), plain);
                        return Err(NetError::Listen { address, reason });
                    }
                }
                _ => {}
            }
            owner.on_event(event);
        }
        // The other interfaces of an unspecified address are reported one by one, right away.
        while let Poll::Ready(Some(event)) =
            poll_fn(|cx| Poll::Ready(Pin::new(&mut owner.swarm).poll_next(cx))).await
        {
            owner.on_event(event);
        }
        Ok(owner)
    }

    /// Runs until told to stop, or until nobody is left to tell.
    pub(super) async fn run(mut self) {
        loop {
            self.maintain();
            let shared = self.shared.clone();
            let next = self.next_deadline();
            let deadline = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                event = changes(&mut self.interfaces) => self.on_address(event),
                Some(note) = self.notes.recv() => self.on_note(note),
                command = self.commands.recv() => match command {
                    Some(Command::Connect { address, reply }) => self.connect(address, reply),
                    Some(Command::Doubt) => self.doubt(Duration::ZERO),
                    Some(Command::Stop { closed }) => {
                        self.close().await;
                        let _ = closed.send(());
                        break;
                    }
                    None => break,
                },
                () = shared.book_changed.notified() => {}
                () = deadline => {}
            }
        }
        self.shared.stop.cancel();
        for peer in self.shared.all_peers() {
            self.shared.dismiss(&peer.id);
        }
        self.shared.connected.write().clear();
    }

    async fn close(&mut self) {
        for id in self.connections.keys() {
            self.swarm.close_connection(*id);
        }
        let closed = async {
            while !self.connections.is_empty() {
                let event = self.swarm.select_next_some().await;
                self.on_event(event);
            }
        };
        if tokio::time::timeout(CLOSE_WITHIN, closed).await.is_err() {
            debug!("some connections did not close in time");
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let connected = self.shared.connected.read();
        let book = self
            .shared
            .book
            .lock()
            .next(|peer| connected.contains(peer));
        let unproven = self
            .unwanted()
            .map(|(_, connection)| connection.since + UNPROVEN_MAX);
        let looked = self.connections.values().filter_map(Connection::look_due);
        let doubted = self.connections.values().filter_map(Connection::doubt_ends);
        let deadlines = unproven.chain(looked).chain(doubted).chain(book);
        deadlines.chain(self.settles).min()
    }

    /// Connections to peers that are neither proven nor trackers.
    fn unwanted(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        let trackers: BTreeSet<PeerId> = self
            .connections
            .values()
            .filter(|connection| connection.to_tracker)
            .map(|connection| connection.peer)
            .collect();
        self.connections
            .iter()
            .filter(move |(_, one)| !trackers.contains(&one.peer))
            .filter(|(_, one)| self.shared.peer(&one.peer).is_none())
            .map(|(id, one)| (*id, one))
    }

    fn maintain(&mut self) {
        let now = Instant::now();
        if self.settles.take_if(|at| now >= *at).is_some() {
            self.shared.sockets.interrupt_dials();
        }
        let (blocked, unblocked, due) = {
            let connected = self.shared.connected.read();
            let mut book = self.shared.book.lock();
            let blocked = book.take_newly_blocked();
            let unblocked = book.unblocked(now);
            let due = book.due(now, |peer| connected.contains(peer));
            (blocked, unblocked, due)
        };
        for peer in blocked {
            self.swarm.behaviour_mut().blocked.block_peer(peer);
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        for peer in unblocked {
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
        for target in due {
            let options = dial_options(&target);
            let id = options.connection_id();
            self.dials.insert(id, Dial::Member(target));
            if let Err(error) = self.swarm.dial(options) {
                self.on_dial_failed(id, &error);
            }
        }
        let overdue: Vec<ConnectionId> = self
            .unwanted()
            .filter(|(_, one)| now >= one.since + UNPROVEN_MAX)
            .map(|(id, _)| id)
            .collect();
        for id in overdue {
            self.swarm.close_connection(id);
            if let Some(connection) = self.connections.get_mut(&id) {
                debug!(peer = %connection.peer, "closing a connection that proved nothing");
                // Closing may take a moment; it is not asked for again at once.
                connection.since = now;
            }
        }
        let mut dead = Vec::new();
        for (id, connection) in &mut self.connections {
            if connection.look_due().is_some_and(|at| now >= at) {
                let moved = self.shared.sockets.moved(|line| connection.is_over(line));
                connection.look(now, moved.unwrap_or_default());
            }
            if connection.is_dead(now) {
                debug!(peer = %connection.peer, "no sign of life: closing the connection");
                dead.push(*id);
                // Closing may take a moment; it is not asked for again at once.
                connection.answered = Some(now);
            }
        }
        for id in dead {
            self.sever(id);
        }
    }

    /// An address of this machine came or went.
    fn on_address(&mut self, event: std::io::Result<IfEvent>) {
        match event {
            Ok(IfEvent::Up(_)) => self.hurry(Duration::ZERO),
            Ok(IfEvent::Down(gone)) => {
                debug!(address = %gone.addr(), "an address went: its connections end");
                let sockets = &self.shared.sockets;
                sockets.sever(|line| line.local.ip() == gone.addr());
                self.doubt(ADDRESS_GOES_WITHIN);
            }
            Err(error) => {
                warn!(%error, "changes of addresses are noticed late from now on");
                self.interfaces = None;
            }
        }
    }

    /// Ends a connection that is taken for dead, without a last word.
    fn sever(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(&id) {
            self.shared.sockets.sever(|line| connection.is_over(line));
        }
        self.swarm.close_connection(id);
    }

    /// Ends the connections to a peer that it no longer knows of. Young ones it may not know of yet.
    fn drop_elders(&mut self, peer: PeerId) {
        let theirs = || self.connections.iter().filter(|(_, one)| one.peer == peer);
        let newest = theirs().map(|(_, one)| one.since).max();
        let elders: Vec<ConnectionId> = theirs()
            .filter(|(_, one)| newest.is_some_and(|newest| one.since + ELDER_MIN <= newest))
            .map(|(id, _)| *id)
            .collect();
        for id in elders {
            debug!(%peer, "the peer knows of one connection only: closing an older one");
            self.sever(id);
        }
    }

    /// Gives each connection a moment to prove itself, and dials anew, after so long.
    fn doubt(&mut self, pause: Duration) {
        let now = Instant::now();
        for connection in self.connections.values_mut() {
            connection.doubted.get_or_insert(now);
        }
        self.hurry(pause);
        self.shared.sockets.interrupt_dials();
        if !pause.is_zero() {
            self.settles = Some(now + pause);
        }
    }

    /// The network became another one: who would be dialed later is dialed after so long.
    fn hurry(&mut self, pause: Duration) {
        let when = Instant::now() + pause;
        self.upset = Some(when);
        self.shared.book.lock().hurry(when);
    }

    fn connect(&mut self, address: Multiaddr, reply: oneshot::Sender<Result<PeerId, String>>) {
        let target = Target::new(address);
        let there = self.connections.values_mut().find(|connection| {
            target.peer == Some(connection.peer)
                || target.peer.is_none() && connection.dialed.as_ref() == Some(&target)
        });
        if let Some(connection) = there {
            connection.to_tracker = true;
            let _ = reply.send(Ok(connection.peer));
            return;
        }
        for dial in self.dials.values_mut() {
            if let Dial::Other(other, replies) = dial
                && *other == target
            {
                replies.retain(|reply| !reply.is_closed());
                replies.push(reply);
                return;
            }
        }
        let options = dial_options(&target);
        let id = options.connection_id();
        self.dials.insert(id, Dial::Other(target, vec![reply]));
        if let Err(error) = self.swarm.dial(options) {
            self.on_dial_failed(id, &error);
        }
    }

    fn on_dial_failed(&mut self, id: ConnectionId, error: &DialError) {
        match self.dials.remove(&id) {
            None => {}
            Some(Dial::Other(_, replies)) => {
                for reply in replies {
                    let _ = reply.send(Err(explain(error)));
                }
            }
            Some(Dial::Member(target)) => {
                let (address, reason) = (&target.address, explain(error));
                let mut book = self.shared.book.lock();
                if let DialError::LocalPeerId { .. } = error {
                    book.is_self(&target);
                } else if book.failed(Instant::now(), &target, jitter()) {
                    info!(%address, reason, "could not connect: it is tried again and again");
                } else {
                    debug!(%address, reason, "could not connect");
                }
            }
        }
    }

    fn on_note(&mut self, note: Note) {
        match note {
            Note::Leaving(peer) => {
                if self.shared.peer(&peer).is_some() {
                    self.leaving.insert(peer);
                    // Closing tells it that it was heard.
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            Note::Offence { peer, reason } => self.shared.offence(peer, &reason),
            Note::Hello {
                peer,
                target,
                outcome,
            } => self.on_hello(peer, target, outcome),
        }
    }

    fn on_hello(
        &mut self,
        peer: PeerId,
        target: Option<Target>,
        outcome: Result<super::proto::PeerHello, HelloError>,
    ) {
        let now = Instant::now();
        let whereabouts = self.whereabouts(&peer);
        let blocked = self.shared.book.lock().is_blocked(now, &peer);
        match (outcome, whereabouts) {
            (Ok(mut hello), Some(at)) if !blocked => {
                if std::mem::take(&mut hello.sole) && target.is_none() {
                    self.drop_elders(peer);
                }
                if let Some(target) = &target {
                    self.shared.book.lock().reached(target);
                }
                self.leaving.remove(&peer);
                self.swarm.behaviour_mut().sources.proven(&peer);
                let node = hello.node.clone();
                if self.shared.admit(peer, hello, at) {
                    info!(%peer, node, "peer is up");
                    self.shared.book.lock().settle(peer);
                    let _ = self.shared.events.send(NetEvent::Up(peer));
                }
            }
            (outcome, _) => {
                if let Some(target) = &target {
                    self.shared.book.lock().failed(now, target, jitter());
                    self.drop_unproven(peer, target);
                }
                match outcome {
                    Err(HelloError::Refused(reason)) => self.shared.offence(peer, &reason),
                    Err(error) => debug!(%peer, %error, "no handshake"),
                    Ok(_) => {}
                }
            }
        }
    }

    /// Closes what was dialed for a handshake that failed.
    fn drop_unproven(&mut self, peer: PeerId, target: &Target) {
        let unwanted: Vec<ConnectionId> = self
            .unwanted()
            .filter(|(_, one)| one.peer == peer && one.dialed.as_ref() == Some(target))
            .map(|(id, _)| id)
            .collect();
        for id in unwanted {
            self.swarm.close_connection(id);
        }
    }

    /// Where a connected peer is; a connection that this side dialed says it best.
    fn whereabouts(&self, peer: &PeerId) -> Option<Whereabouts> {
        let connection = self
            .connections
            .values()
            .filter(|connection| connection.peer == *peer)
            .max_by_key(|connection| connection.dialed.is_some())?;
        let dialed = connection.dialed.as_ref().map(|dialed| &dialed.address);
        let said = self.listens.get(peer).map_or(&[][..], Vec::as_slice);
        Some(Whereabouts {
            address: connection.address.clone(),
            listen: dialable(dialed, &connection.address, said),
        })
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => self.on_connected(peer_id, connection_id, &endpoint),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                debug!(peer = %peer_id, ?cause, "connection closed");
                self.on_closed(peer_id, connection_id, num_established);
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => self.on_dial_failed(connection_id, &error),
            event @ (SwarmEvent::NewListenAddr { .. }
            | SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ListenerClosed { .. }) => {
                if matches!(event, SwarmEvent::ExpiredListenAddr { .. }) {
                    self.doubt(ADDRESS_GOES_WITHIN);
                }
                let addresses: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
                *self.shared.addresses.write() = addresses.clone();
                let _ = self.shared.events.send(NetEvent::Addresses(addresses));
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "trouble while listening"),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => self.on_identified(peer_id, info.listen_addrs),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping)) => self.on_ping(ping),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        self.shared.connected.write().insert(peer);
        if self.shared.peer(&peer).is_some() {
            self.swarm.behaviour_mut().sources.proven(&peer);
        }
        let mut connection = Connection {
            peer,
            since: Instant::now(),
            address: without_peer(endpoint.get_remote_address().clone()),
            dialed: None,
            to_tracker: false,
            answered: Some(Instant::now()),
            looked: None,
            moved: None,
            doubted: None,
        };
        match self.dials.remove(&id) {
            None => {}
            Some(Dial::Member(target)) => {
                self.shared.book.lock().found(&target, peer);
                connection.dialed = Some(target.clone());
                let sole = self.connections.values().all(|other| other.peer != peer);
                let hello = streams::say_hello(self.shared.clone(), peer, target, sole);
                tokio::spawn(hello);
            }
            Some(Dial::Other(target, replies)) => {
                connection.dialed = Some(target);
                connection.to_tracker = true;
                for reply in replies {
                    let _ = reply.send(Ok(peer));
                }
            }
        }
        // A second one may be there because the first one broke, which the other side has noticed first.
        for other in self.connections.values_mut() {
            if other.peer == peer {
                other.doubted.get_or_insert(connection.since);
            }
        }
        self.connections.insert(id, connection);
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId, remaining: u32) {
        // Taken before the connection is forgotten.
        let last_at = self.whereabouts(&peer);
        self.connections.remove(&id);
        if remaining > 0 {
            if self.shared.peer(&peer).is_some() {
                let _ = self.shared.events.send(NetEvent::Missed(peer));
            }
            return;
        }
        self.shared.connected.write().remove(&peer);
        self.listens.remove(&peer);
        let left = self.leaving.remove(&peer);
        if self.shared.dismiss(&peer).is_some() {
            info!(%peer, left, "peer is down");
            let addresses = last_at.map(|at| at.listen).unwrap_or_default();
            let mut book = self.shared.book.lock();
            let now = Instant::now();
            book.lost(now, peer, addresses, left, jitter());
            if let Some(at) = self.upset.filter(|at| now < *at + UPSET_FOR) {
                book.hurry(now.max(at));
            }
            drop(book);
            let _ = self.shared.events.send(NetEvent::Down(peer));
        }
    }

    fn on_identified(&mut self, peer: PeerId, mut said: Vec<Multiaddr>) {
        if !self.shared.connected.read().contains(&peer) {
            return;
        }
        said.truncate(ADDRESSES_MAX);
        self.listens.insert(peer, said);
        if let (Some(known), Some(at)) = (self.shared.peer(&peer), self.whereabouts(&peer)) {
            known.about.lock().at = at;
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let answered = match &event.result {
            Ok(_) => Some(Instant::now()),
            Err(ping::Failure::Unsupported) => None,
            // What counts is that none succeeds for too long.
            Err(_) => return,
        };
        if let Some(connection) = self.connections.get_mut(&event.connection) {
            connection.answered = answered;
        }
        if let (Ok(round_trip), Some(known)) = (event.result, self.shared.peer(&event.peer)) {
            known.about.lock().round_trip = Some(round_trip);
        }
    }
}

/// The next change of this machine's addresses.
async fn changes(interfaces: &mut Option<IfWatcher>) -> std::io::Result<IfEvent> {
    match interfaces {
        Some(interfaces) => interfaces.select_next_some().await,
        None => std::future::pending().await,
    }
}

fn jitter() -> f64 {
    rand::rng().random()
}

/// Dials from a port of its own: sharing the listening port makes two nodes that dial each other collide.
fn dial_options(target: &Target) -> DialOpts {
    match target.peer {
        Some(peer) => DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![target.address.clone()])
            .allocate_new_port()
            .build(),
        None => DialOpts::unknown_peer_id()
            .address(target.address.clone())
            .allocate_new_port()
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(now: Instant) -> Connection {
        Connection {
            peer: PeerId::random(),
            since: now,
            address: Multiaddr::empty(),
            dialed: None,
            to_tracker: false,
            answered: Some(now),
            looked: None,
            moved: None,
            doubted: None,
        }
    }

    #[test]
    fn a_doubt_about_a_peer_that_does_not_speak_ping_is_never_due() {
        let now = Instant::now();
        let mut connection = connection(now);
        connection.doubted = Some(now);
        assert_eq!(connection.doubt_ends(), Some(now + DOUBTED_MAX));
        // Else the swarm's owner would wake up for it again and again, at once.
        connection.answered = None;
        assert_eq!(connection.doubt_ends(), None);
        assert_eq!(connection.look_due(), None);
    }

    /// Looks whenever that is due, until it is dead, a minute at most; `moved` tells how much has moved by then.
    fn dies_after(
        connection: &mut Connection,
        moved: impl Fn(Duration) -> u64,
    ) -> Option<Duration> {
        let begun = connection.since;
        let mut now = begun;
        while now < begun + Duration::from_secs(60) {
            let due = connection.look_due().into_iter();
            now = due.chain(connection.doubt_ends()).min()?.max(now);
            if connection.look_due().is_some_and(|at| now >= at) {
                connection.look(now, moved(now - begun));
            }
            if connection.is_dead(now) {
                return Some(now - begun);
            }
        }
        None
    }

    #[test]
    fn a_line_over_which_something_moves_is_alive_though_no_ping_comes_back() {
        let now = Instant::now();
        let slowly = |since: Duration| since.as_millis() as u64;
        for doubted in [None, Some(now)] {
            let mut connection = connection(now);
            connection.doubted = doubted;
            assert_eq!(dies_after(&mut connection, slowly), None);
        }
    }

    #[test]
    fn a_line_over_which_nothing_moves_is_dead_after_a_while_and_soon_if_it_is_doubted() {
        let now = Instant::now();
        assert_eq!(dies_after(&mut connection(now), |_| 7), Some(SILENT_MAX));
        let until = Duration::from_secs(20);
        let stops = |since: Duration| since.min(until).as_millis() as u64;
        let after = dies_after(&mut connection(now), stops).unwrap();
        let latest = until + SILENT_MAX + LOOK_EVERY;
        assert!((until + SILENT_MAX - LOOK_EVERY..=latest).contains(&after));
        // What was there already is read in the first moment.
        let was_there = |since: Duration| u64::from(since > Duration::from_millis(100));
        let mut doubted = connection(now);
        doubted.doubted = Some(now);
        assert_eq!(dies_after(&mut doubted, was_there), Some(DOUBTED_MAX));
    }
}
