//! The swarm, and who may have a session.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm, SwarmBuilder,
    connection_limits::{self, ConnectionLimits},
    core::{ConnectedPoint, transport::ListenerId},
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, tls, yamux,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info};

use super::{ServerConfig, ServerError, keeper::Command, session::Session};
use crate::{
    protocol::{ADDRESSES_MAX, PROTOCOL, Topic},
    registry::{DialBack, Located},
};

/// Most connections that were dialed by peers; each costs some tens of kilobytes.
const CONNECTIONS_MAX: u32 = 4096;
/// Most connections that are still being set up, in either direction.
const PENDING_MAX: u32 = 256;
/// Most connections of one peer.
const PEER_CONNECTIONS_MAX: u32 = 8;
/// Most streams of one connection.
const STREAMS_MAX: usize = 16;
/// Most sessions.
const SESSIONS_MAX: usize = 8192;
/// Most sessions of one peer: several clusters share one identity rarely, and a broken session lingers for a while.
const PEER_SESSIONS_MAX: usize = 8;
/// A connection without streams is closed after this.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// How long a dial-back may take.
const DIAL_WAIT: Duration = Duration::from_secs(5);
/// A listener on all interfaces tells its addresses one by one: so long after the last one they are taken to be complete.
const ADDRESSES_SETTLE: Duration = Duration::from_millis(100);
/// How long listening may take.
const LISTEN_WAIT: Duration = Duration::from_secs(10);
/// A session is closed when it was silent for this many leases.
const IDLE_LEASES: u32 = 2;

#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// A dial-back under way.
struct Dial {
    topic: Topic,
    peer: PeerId,
    deadline: Instant,
}

/// Where connections come from, by peer.
type Seen = Arc<Mutex<HashMap<PeerId, Vec<(ConnectionId, IpAddr)>>>>;

/// The swarm and the sessions.
pub(super) struct Network {
    swarm: Swarm<Behaviour>,
    listeners: HashMap<ListenerId, SocketAddr>,
    seen: Seen,
    commands: mpsc::Sender<Command>,
    dials_due: mpsc::Receiver<DialBack>,
    dials: HashMap<ConnectionId, Dial>,
    sessions: tokio::task::JoinHandle<()>,
}

impl Network {
    /// Binds all addresses and begins to take sessions.
    pub(super) fn start(
        config: &ServerConfig,
        identity: Keypair,
        commands: mpsc::Sender<Command>,
        dials_due: mpsc::Receiver<DialBack>,
    ) -> Result<Self, ServerError> {
        let mut swarm = build(identity).map_err(ServerError::Network)?;
        let mut listeners = HashMap::new();
        for address in &config.listen {
            let multiaddr = Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
            let listener = swarm.listen_on(multiaddr);
            let listener = listener.map_err(|error| ServerError::Listen {
                address: *address,
                reason: error.to_string(),
            })?;
            listeners.insert(listener, *address);
        }
        let seen = Seen::default();
        let mut control = swarm.behaviour().streams.new_control();
        let incoming = control
            .accept(PROTOCOL)
            .map_err(|error| ServerError::Network(error.to_string()))?;
        let host = SessionHost {
            tracker: *swarm.local_peer_id(),
            commands: commands.clone(),
            seen: Arc::clone(&seen),
            idle: config.lease * IDLE_LEASES,
        };
        Ok(Self {
            swarm,
            listeners,
            seen,
            commands,
            dials_due,
            dials: HashMap::new(),
            sessions: tokio::spawn(host.take_sessions(incoming)),
        })
    }

    /// Calls `ready` when all listeners have addresses, then works until it is dropped. Ends only with an error.
    pub(super) async fn run(
        &mut self,
        ready: impl FnOnce(Vec<Multiaddr>),
    ) -> Result<(), ServerError> {
        let addresses = self.listen_addresses().await?;
        info!(?addresses, "listening");
        ready(addresses);
        loop {
            let first_deadline = self.dials.values().map(|dial| dial.deadline).min();
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event).await?,
                Some(DialBack { topic, located }) = self.dials_due.recv(),
                    if self.dials.len() < super::DIALS_MAX => self.dial_back(topic, located).await,
                () = sleep_until(first_deadline.unwrap_or_else(Instant::now)), if first_deadline.is_some() => {
                    self.give_up_dials().await;
                }
            }
        }
    }

    /// Ends all sessions and closes the listeners.
    pub(super) async fn stop(self) {
        self.sessions.abort();
        // The outcome is the abort; waited for, because the sessions hold senders of commands.
        let _ = self.sessions.await;
    }

    async fn listen_addresses(&mut self) -> Result<Vec<Multiaddr>, ServerError> {
        let me = *self.swarm.local_peer_id();
        let deadline = Instant::now() + LISTEN_WAIT;
        let mut silent: HashSet<ListenerId> = self.listeners.keys().copied().collect();
        let mut addresses = Vec::new();
        loop {
            let event = tokio::select! {
                event = self.swarm.select_next_some() => event,
                () = sleep(ADDRESSES_SETTLE), if silent.is_empty() => return Ok(addresses),
                () = sleep_until(deadline) => break,
            };
            if let SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } = &event
            {
                silent.remove(listener_id);
                addresses.push(address.clone().with(Protocol::P2p(me)));
            }
            self.handle(event).await?;
        }
        match silent.iter().find_map(|id| self.listeners.get(id)) {
            None => Ok(addresses),
            Some(address) => Err(ServerError::Listen {
                address: *address,
                reason: "the system named no address for it".into(),
            }),
        }
    }

    async fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) -> Result<(), ServerError> {
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => match endpoint {
                ConnectedPoint::Listener { send_back_addr, .. } => {
                    if let Some(ip) = ip_of(&send_back_addr) {
                        let mut seen = lock(&self.seen);
                        seen.entry(peer_id).or_default().push((connection_id, ip));
                    }
                }
                ConnectedPoint::Dialer { .. } => {
                    // The tracker dials only to see whether it can.
                    self.swarm.close_connection(connection_id);
                    self.dialed(connection_id, true).await;
                }
            },
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => {
                debug!(%error, "dial-back failed");
                self.dialed(connection_id, false).await;
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                ..
            } => {
                let mut seen = lock(&self.seen);
                if let Some(from) = seen.get_mut(&peer_id) {
                    from.retain(|(id, _)| *id != connection_id);
                    if from.is_empty() {
                        seen.remove(&peer_id);
                    }
                }
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason: Err(error),
                ..
            } => {
                if let Some(address) = self.listeners.get(&listener_id) {
                    return Err(ServerError::Listen {
                        address: *address,
                        reason: error.to_string(),
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn dial_back(&mut self, topic: Topic, located: Located) {
        let Located { peer, addresses } = located;
        // All addresses at once, so that one that swallows packets doesn't use up the time of the others. From a port of
        // its own: from the listening port, an address that the peer is connected from would count as taken.
        let dial = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .override_dial_concurrency_factor(
                NonZeroU8::new(ADDRESSES_MAX as u8).unwrap_or(NonZeroU8::MIN),
            )
            .addresses(addresses)
            .allocate_new_port()
            .build();
        let id = dial.connection_id();
        let deadline = Instant::now() + DIAL_WAIT;
        let pending = Dial {
            topic,
            peer,
            deadline,
        };
        self.dials.insert(id, pending);
        if let Err(error) = self.swarm.dial(dial) {
            debug!(%peer, %error, "a peer can't be dialed back");
            self.dialed(id, false).await;
        }
    }

    /// Passes the outcome of a dial-back on, once: what comes after its deadline isn't known any more.
    async fn dialed(&mut self, id: ConnectionId, reachable: bool) {
        if let Some(Dial { topic, peer, .. }) = self.dials.remove(&id) {
            info!(%peer, reachable, "a reported peer was dialed back");
            let command = Command::Dialed {
                topic,
                peer,
                reachable,
            };
            // Fails only when the keeper is gone, which ends the tracker elsewhere.
            let _ = self.commands.send(command).await;
        }
    }

    async fn give_up_dials(&mut self) {
        let now = Instant::now();
        let late = self.dials.iter().filter(|(_, dial)| dial.deadline <= now);
        let late: Vec<ConnectionId> = late.map(|(id, _)| *id).collect();
        for id in late {
            self.dialed(id, false).await;
        }
    }
}

fn build(identity: Keypair) -> Result<Swarm<Behaviour>, String> {
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_MAX))
        .with_max_pending_outgoing(Some(PENDING_MAX))
        .with_max_established_incoming(Some(CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(PEER_CONNECTIONS_MAX));
    let multiplexer = || {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS_MAX);
        config
    };
    let swarm = SwarmBuilder::with_existing_identity(identity)
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            (tls::Config::new, noise::Config::new),
            multiplexer,
        )
        .map_err(|error| error.to_string())?
        .with_dns()
        .map_err(|error| error.to_string())?
        .with_behaviour(|key| Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(
                identify::Config::new(PROTOCOL.to_string(), key.public()).with_agent_version(
                    concat!("p2pfs-tracker/", env!("CARGO_PKG_VERSION")).into(),
                ),
            ),
            ping: ping::Behaviour::default(),
            streams: libp2p_stream::Behaviour::new(),
        })
        .map_err(|error| error.to_string())?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_CONNECTION))
        .with_connection_timeout(DIAL_WAIT)
        .build();
    Ok(swarm)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these, and what they guard is sound after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a connection comes from; nothing for one through a relay, whose address is the relay's.
fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
    match address.iter().next()? {
        _ if relayed => None,
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Counts the sessions of each peer.
#[derive(Clone, Default)]
struct Admission {
    sessions: Arc<Mutex<BTreeMap<PeerId, usize>>>,
}

/// A place for one session, given back when dropped.
struct Place {
    admission: Admission,
    peer: PeerId,
}

impl Admission {
    /// A place, if the peer has one left.
    fn admit(&self, peer: PeerId) -> Option<Place> {
        let mut sessions = lock(&self.sessions);
        let count = sessions.entry(peer).or_default();
        if *count >= PEER_SESSIONS_MAX {
            return None;
        }
        *count += 1;
        drop(sessions);
        Some(Place {
            admission: self.clone(),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = lock(&self.admission.sessions);
        if let Some(count) = sessions.get_mut(&self.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sessions.remove(&self.peer);
            }
        }
    }
}

/// Takes incoming streams and gives each a task.
struct SessionHost {
    tracker: PeerId,
    commands: mpsc::Sender<Command>,
    seen: Seen,
    idle: Duration,
}

impl SessionHost {
    /// In a task of its own, because the queue of incoming streams has a single place and drops what doesn't fit. A stream
    /// beyond a limit is dropped as well: the peer sees that nothing challenges it, and tries again later.
    async fn take_sessions(self, mut incoming: libp2p_stream::IncomingStreams) {
        let admission = Admission::default();
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                next = incoming.next() => {
                    let Some((peer, stream)) = next else { return };
                    if running.len() >= SESSIONS_MAX {
                        debug!(%peer, "no room for another session");
                    } else if let Some(place) = admission.admit(peer) {
                        running.spawn(self.session(peer, stream, place));
                    } else {
                        debug!(%peer, "a peer has too many sessions");
                    }
                }
                Some(_) = running.join_next() => {}
            }
        }
    }

    fn session(
        &self,
        peer: PeerId,
        stream: Stream,
        place: Place,
    ) -> impl Future<Output = ()> + Send + use<> {
        let seen = Arc::clone(&self.seen);
        let session = Session {
            tracker: self.tracker,
            peer,
            commands: self.commands.clone(),
            seen_from: move || {
                let seen = lock(&seen);
                let mut from: Vec<IpAddr> = Vec::new();
                for (_, ip) in seen.get(&peer).into_iter().flatten() {
                    if !from.contains(ip) {
                        from.push(*ip);
                    }
                }
                from
            },
            idle: self.idle,
        };
        async move {
            let _place = place;
            match session.serve(stream).await {
                Ok(()) => debug!(%peer, "session closed"),
                Err(error) => debug!(%peer, %error, "session ended"),
            }
        }
    }
}
