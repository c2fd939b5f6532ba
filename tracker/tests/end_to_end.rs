//! A tracker as it runs, and peers with swarms of their own, on the loopback interface.

// The exemption for tests reaches test functions, not what they share.
#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use ed25519_dalek::{Signer, SigningKey};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, SwarmBuilder,
    multiaddr::Protocol,
    noise,
    swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
    tcp, tls, yamux,
};
use p2pfs_tracker::{
    client::{Session, SessionError},
    protocol::{PROTOCOL, Refusal, SealedKey},
    server::{ServerConfig, ServerError, run},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const LEASE: Duration = Duration::from_secs(60);
/// Nothing here takes as long.
const DEADLINE: Duration = Duration::from_secs(15);

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

struct Tracker {
    address: Multiaddr,
    peer: PeerId,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServerError>>,
}

impl Tracker {
    async fn start_at(
        dir: &Path,
        lease: Duration,
        listen: SocketAddr,
    ) -> Result<Self, ServerError> {
        let config = ServerConfig {
            listen: vec![listen],
            state_dir: dir.to_owned(),
            lease,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, mut ready) = oneshot::channel();
        let mut task = tokio::spawn(run(
            config,
            move |addresses| tell.send(addresses).unwrap(),
            async move {
                let _ = stopped.await;
            },
        ));
        let addresses = tokio::select! {
            Ok(addresses) = &mut ready => addresses,
            outcome = &mut task => return Err(outcome.unwrap().unwrap_err()),
        };
        let here = |address: &&Multiaddr| address.to_string().starts_with("/ip4/127.0.0.1/tcp/");
        let mut address = addresses.iter().find(here).unwrap().clone();
        let Some(Protocol::P2p(peer)) = address.pop() else {
            panic!("{address} names no peer");
        };
        Ok(Self {
            address,
            peer,
            stop,
            task,
        })
    }

    async fn start(dir: &Path, lease: Duration) -> Self {
        Self::start_at(dir, lease, loopback()).await.unwrap()
    }

    fn socket(&self) -> SocketAddr {
        let port = self.address.iter().find_map(|part| match part {
            Protocol::Tcp(port) => Some(port),
            _ => None,
        });
        (Ipv4Addr::LOCALHOST, port.unwrap()).into()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    streams: libp2p_stream::Behaviour,
}

/// A peer's swarm, driven by a task that ends with it.
struct Peer {
    id: PeerId,
    port: u16,
    control: libp2p_stream::Control,
    dials: mpsc::Sender<(PeerId, Multiaddr)>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    async fn start() -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                (tls::Config::new, noise::Config::new),
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|_| Behaviour {
                streams: libp2p_stream::Behaviour::new(),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE))
            .build();
        swarm
            .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
            .unwrap();
        let port = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await
                && let Some(Protocol::Tcp(port)) = address.iter().last()
            {
                break port;
            }
        };
        let id = *swarm.local_peer_id();
        let control = swarm.behaviour().streams.new_control();
        let (dials, mut wanted) = mpsc::channel::<(PeerId, Multiaddr)>(4);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = swarm.select_next_some() => {}
                    Some((peer, address)) = wanted.recv() => {
                        let dial = DialOpts::peer_id(peer).addresses(vec![address]).build();
                        // Fails where it is connected already.
                        let _ = swarm.dial(dial);
                    }
                }
            }
        });
        Self {
            id,
            port,
            control,
            dials,
            task,
        }
    }

    async fn session_with(
        &self,
        tracker: &Tracker,
        cluster: u8,
        key: u8,
    ) -> Result<Session, SessionError> {
        let topic = SigningKey::from_bytes(&[cluster; 32])
            .verifying_key()
            .to_bytes();
        let key = SigningKey::from_bytes(&[key; 32]);
        let open = || async {
            let dial = (tracker.peer, tracker.address.clone());
            self.dials.send(dial).await.unwrap();
            let deadline = Instant::now() + DEADLINE;
            loop {
                match self
                    .control
                    .clone()
                    .open_stream(tracker.peer, PROTOCOL)
                    .await
                {
                    Ok(stream) => return Ok(stream),
                    Err(error) if Instant::now() > deadline => return Err(error),
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let sign = move |message: &[u8]| key.sign(message).to_bytes();
        let session = Session::open(open, tracker.peer, self.id, topic, &sign);
        timeout(DEADLINE, session).await.unwrap()
    }

    async fn session(&self, tracker: &Tracker, cluster: u8) -> Session {
        self.session_with(tracker, cluster, cluster).await.unwrap()
    }

    /// Where the tracker sees it.
    fn address(&self) -> Multiaddr {
        Multiaddr::from(Ipv4Addr::LOCALHOST).with(Protocol::Tcp(self.port))
    }

    async fn announced(&self, tracker: &Tracker, keys: &[SealedKey]) -> Session {
        let session = self.session(tracker, 1).await;
        session.announce(&[], &[self.port]).await.unwrap();
        session.replace_holds(keys).await.unwrap();
        session
    }
}

fn key(name: u8) -> SealedKey {
    SealedKey([name; 32])
}

async fn holders(session: &Session, of: SealedKey) -> Vec<PeerId> {
    let found = session.holders(&[of]).await.unwrap();
    found[0].iter().map(|located| located.peer).collect()
}

/// Asks until the holders are these.
async fn until_holders(session: &Session, of: SealedKey, expected: &[PeerId]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = holders(session, of).await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} are not {expected:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_find_each_other_and_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), LEASE).await;
    let (one, two) = (Peer::start().await, Peer::start().await);
    let first = one.announced(&tracker, &[key(1), key(2)]).await;
    let second = two.announced(&tracker, &[key(2)]).await;
    let seen = second.peers().await.unwrap();
    assert_eq!(seen[0].peer, one.id);
    assert_eq!(seen[0].addresses, [one.address()]);
    assert_eq!(holders(&second, key(1)).await, [one.id]);
    assert_eq!(holders(&first, key(2)).await, [two.id]);
    assert_eq!(first.where_is(&two.id).await.unwrap().unwrap().peer, two.id);
    first.put_head(b"sealed").await.unwrap();
    let heads = second.heads().await.unwrap();
    assert_eq!(heads[0].sealed, b"sealed");
    assert!(heads[0].age < DEADLINE);
    // What one stops holding, nobody is told any more.
    first.update_holds(&[key(3)], &[key(1)]).await.unwrap();
    assert_eq!(holders(&second, key(1)).await, []);
    assert_eq!(holders(&second, key(3)).await, [one.id]);
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_deletes_and_silence_expires() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), Duration::from_secs(2)).await;
    let peers = [
        Peer::start().await,
        Peer::start().await,
        Peer::start().await,
    ];
    let watcher = peers[0].announced(&tracker, &[]).await;
    let leaves = peers[1].announced(&tracker, &[key(1)]).await;
    assert_eq!(holders(&watcher, key(1)).await, [peers[1].id]);
    leaves.leave().await.unwrap();
    assert_eq!(holders(&watcher, key(1)).await, []);
    let falls_silent = peers[2].announced(&tracker, &[key(2)]).await;
    assert_eq!(holders(&watcher, key(2)).await, [peers[2].id]);
    drop(falls_silent);
    until_holders(&watcher, key(2), &[]).await;
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_its_state_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let before = Tracker::start(dir.path(), LEASE).await;
    let (one, two) = (Peer::start().await, Peer::start().await);
    let first = one.announced(&before, &[key(1), key(2)]).await;
    first.update_holds(&[], &[key(2)]).await.unwrap();
    first.put_head(b"sealed").await.unwrap();
    let (identity, socket) = (before.peer, before.socket());
    before.stop().await;
    assert!(matches!(first.ended().await, SessionError::Lost(_)));

    let after = Tracker::start_at(dir.path(), LEASE, socket).await.unwrap();
    assert_eq!(after.peer, identity);
    // The first peer is silent, and yet it is found.
    let second = two.session(&after, 1).await;
    assert_eq!(holders(&second, key(1)).await, [one.id]);
    assert_eq!(holders(&second, key(2)).await, []);
    assert_eq!(second.peers().await.unwrap()[0].addresses, [one.address()]);
    assert_eq!(second.heads().await.unwrap()[0].sealed, b"sealed");
    // It comes back, and needs not tell again what it holds.
    let again = one.session(&after, 1).await;
    assert_eq!(again.renew().await.unwrap().holds.count, 1);
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_nodes_are_kept_for_the_cluster_alone_and_through_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let before = Tracker::start(dir.path(), LEASE).await;
    let (one, two) = (Peer::start().await, Peer::start().await);
    let first = one.announced(&before, &[]).await;
    first.put_head(b"sealed").await.unwrap();
    let nodes: Vec<_> = (1..=60).map(|n| (key(n), vec![n; 7000])).collect();
    first.put_nodes(nodes.clone(), false).await.unwrap();
    let bad = vec![(key(5), b"bad".to_vec())];
    first.put_nodes(bad.clone(), false).await.unwrap();
    let socket = before.socket();
    before.stop().await;

    let after = Tracker::start_at(dir.path(), LEASE, socket).await.unwrap();
    // Nobody who is up has handed them in.
    let second = two.session(&after, 1).await;
    let kept = second.have_nodes(&[key(61), key(60)]).await.unwrap();
    assert_eq!(kept.have, [false, true]);
    assert!(kept.room > 1 << 20);
    let keys: Vec<_> = (1..=61).map(key).collect();
    let found = second.nodes(&keys).await.unwrap();
    let given: Vec<_> = nodes.into_iter().map(|(_, node)| node).collect();
    assert_eq!(found[..60], given);
    assert!(found[60].is_empty());
    // Replaced where that is asked for.
    two.announced(&after, &[])
        .await
        .put_nodes(bad, true)
        .await
        .unwrap();
    assert_eq!(second.nodes(&[key(5)]).await.unwrap(), [b"bad"]);
    // Another cluster sees none of it, and hands in nothing without a lease.
    let elsewhere = two.session(&after, 2).await;
    assert_eq!(elsewhere.have_nodes(&[key(1)]).await.unwrap().have, [false]);
    assert!(elsewhere.nodes(&[key(1)]).await.unwrap()[0].is_empty());
    assert!(matches!(
        elsewhere.put_nodes(vec![(key(1), vec![1])], false).await,
        Err(SessionError::Refused(Refusal::NotAnnounced))
    ));
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_large_nodes_stops_early_and_the_rest_is_had_by_asking_again() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), LEASE).await;
    let peer = Peer::start().await;
    let session = peer.announced(&tracker, &[]).await;
    let keys: Vec<_> = (1..=20).map(key).collect();
    for n in 1..=20 {
        let node = vec![(key(n), vec![n; 200_000])];
        session.put_nodes(node, false).await.unwrap();
    }
    let mut found = Vec::new();
    let mut answers = 0;
    while found.len() < keys.len() {
        let some = session.nodes(&keys[found.len()..]).await.unwrap();
        assert!(!some.is_empty());
        found.extend(some);
        answers += 1;
    }
    assert!(answers > 1);
    assert!(
        found
            .iter()
            .zip(1..)
            .all(|(node, n)| *node == vec![n; 200_000])
    );
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_lost_its_state_is_told_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let before = Tracker::start(dir.path(), LEASE).await;
    let (one, two) = (Peer::start().await, Peer::start().await);
    let _first = one.announced(&before, &[key(1)]).await;
    let (identity, socket) = (before.peer, before.socket());
    before.stop().await;
    std::fs::remove_dir_all(dir.path()).unwrap();

    let after = Tracker::start_at(dir.path(), LEASE, socket).await.unwrap();
    assert_ne!(after.peer, identity);
    let second = two.session(&after, 1).await;
    assert_eq!(holders(&second, key(1)).await, []);
    let first = one.session(&after, 1).await;
    assert!(matches!(
        first.renew().await,
        Err(SessionError::Refused(Refusal::NotAnnounced))
    ));
    let lease = first.announce(&[], &[one.port]).await.unwrap();
    assert_eq!(lease.holds.count, 0);
    first.replace_holds(&[key(1)]).await.unwrap();
    assert_eq!(holders(&second, key(1)).await, [one.id]);
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reported_peer_vanishes_if_dead_and_comes_back_if_alive() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), LEASE).await;
    let (one, alive, dead) = (
        Peer::start().await,
        Peer::start().await,
        Peer::start().await,
    );
    let session = one.announced(&tracker, &[]).await;
    let alive_session = alive.announced(&tracker, &[key(1)]).await;
    let dead_session = dead.announced(&tracker, &[key(2)]).await;
    let dead_id = dead.id;
    drop(dead_session);
    drop(dead);
    assert_eq!(holders(&session, key(2)).await, [dead_id]);

    session.report(&dead_id).await.unwrap();
    assert_eq!(holders(&session, key(2)).await, []);
    session.report(&alive.id).await.unwrap();
    until_holders(&session, key(1), &[alive.id]).await;
    assert_eq!(session.where_is(&dead_id).await.unwrap(), None);
    // Reached over a connection of its own, which is gone again: the session isn't disturbed.
    alive_session.renew().await.unwrap();
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_learns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), LEASE).await;
    let (member, stranger) = (Peer::start().await, Peer::start().await);
    let session = member.announced(&tracker, &[key(1)]).await;
    let refused = stranger.session_with(&tracker, 1, 2).await;
    assert!(matches!(refused, Err(SessionError::NoMember)));
    // A member of another cluster sees only that.
    let elsewhere = stranger.session(&tracker, 2).await;
    elsewhere.announce(&[], &[stranger.port]).await.unwrap();
    assert_eq!(elsewhere.peers().await.unwrap(), []);
    assert_eq!(holders(&elsewhere, key(1)).await, []);
    assert_eq!(session.peers().await.unwrap(), []);
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_peers_at_once_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), LEASE).await;
    let peers: Vec<Peer> = futures::future::join_all((0..12).map(|_| Peer::start())).await;
    let announced = peers.iter().map(|peer| peer.announced(&tracker, &[]));
    let sessions = futures::future::join_all(announced).await;
    for session in &sessions {
        assert_eq!(session.peers().await.unwrap().len(), 11);
    }
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_everywhere_names_real_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let everywhere = (Ipv4Addr::UNSPECIFIED, 0).into();
    let tracker = Tracker::start_at(dir.path(), LEASE, everywhere)
        .await
        .unwrap();
    Peer::start().await.announced(&tracker, &[key(1)]).await;
    tracker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_taken_state_folder_are_said_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(dir.path(), LEASE).await;
    let taken = Tracker::start_at(other.path(), LEASE, tracker.socket()).await;
    assert_eq!(
        taken.err().unwrap().to_string(),
        format!(
            "{} is already in use; is another tracker running?",
            tracker.socket()
        )
    );
    let locked = Tracker::start_at(dir.path(), LEASE, loopback()).await;
    assert_eq!(
        locked.err().unwrap().to_string(),
        format!(
            "the tracker's state folder {} is in use by another process",
            dir.path().display()
        )
    );
    // Neither has disturbed the one that runs.
    Peer::start().await.announced(&tracker, &[key(1)]).await;
    tracker.stop().await;
}
