//! This node's dealings with its trackers: what [`TrackerPolicy`] says is done here, one task for each tracker.
//!
//! Nothing waits for a tracker but who asks one directly, and that is bounded: without trackers everything between peers that
//! know each other goes on.

mod copy;
mod directory;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use p2pfs_tracker::{
    client::{Lease, Located, Session, SessionError},
    policy::{Action, TrackerPolicy},
    protocol::{HoldsDigest, LOOKUP_KEYS_MAX, PROTOCOL, Refusal, SealedKey},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

pub(super) use directory::Directory;

use super::{namespace::Namespace, run_blocking};
use crate::{
    cluster::{ClusterKeys, Head, SealKind},
    content::Object,
    control::types::{TrackerReport, TrackerState},
    manifest::{NodeHash, empty_root},
    net::Net,
    store::{Presence, Store},
};

/// How long connecting to a tracker may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long somebody who asks the trackers waits.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// What is held is looked through this often, or twenty times as long as that takes, where that is longer.
const SCAN_EVERY: Duration = Duration::from_secs(2);
/// Requests for nodes of one tracker at a time.
const TURNS: usize = 4;
/// Heads are kept sealed under this key; there is one of each peer.
const HEAD_KEY: &[u8] = b"";

/// All trackers of a mount.
pub(super) struct Trackers {
    trackers: Vec<Arc<Tracker>>,
    held: Arc<Held>,
    shared: Shared,
}

/// What every tracker's task needs.
#[derive(Clone)]
struct Shared {
    keys: ClusterKeys,
    net: Net,
    namespace: Namespace,
    held: Arc<Held>,
}

/// Sealed keys of all that is here, whole or in part.
#[derive(Default)]
struct Held(Mutex<BTreeSet<SealedKey>>);

struct Tracker {
    name: String,
    address: Multiaddr,
    state: Mutex<State>,
    /// What happened since the task last looked.
    news: Mutex<News>,
    woken: Notify,
    /// The root of the head of this node's that it took in the present session.
    root: watch::Sender<Option<NodeHash>>,
    copied: watch::Sender<Copied>,
    /// For who asks it for manifest nodes.
    turns: Semaphore,
}

/// What of the manifest a tracker was given in the present session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    /// Not all that is here.
    Part,
    /// What is here below this root, as far as it has room.
    All(NodeHash),
    /// Nothing: it is too old to keep manifest nodes.
    NotKept,
}

struct State {
    state: TrackerState,
    reason: Option<String>,
    /// Age of the newest head that it showed and that verified, and when that was.
    head_age: Option<(Duration, Instant)>,
    session: Option<Arc<Session>>,
}

#[derive(Clone, Copy, Default)]
struct News {
    holds: bool,
    addresses: bool,
    head: bool,
}

impl Tracker {
    fn tell(&self, news: impl Fn(&mut News)) {
        news(&mut self.news.lock());
        self.woken.notify_one();
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.state.lock().session.clone()
    }

    fn registered(&self) {
        let mut state = self.state.lock();
        state.state = TrackerState::Registered;
        state.reason = None;
    }

    fn lost(&self, error: &SessionError) {
        let reason = error.to_string();
        let mut state = self.state.lock();
        // Tries go on for as long as the tracker is down; one line tells it.
        if state.reason.as_ref() != Some(&reason) {
            tracing::info!(tracker = %self.name, %reason, "the tracker is not reached");
        }
        state.state = TrackerState::Unreachable;
        state.reason = Some(reason);
        state.session = None;
        drop(state);
        self.copied.send_replace(Copied::Part);
        self.root.send_replace(None);
    }

    fn has_head(&self) -> bool {
        self.root.borrow().is_some()
    }

    fn keeps_nodes(&self) -> bool {
        *self.copied.borrow() != Copied::NotKept
    }
}

impl Trackers {
    /// Starts a task for each tracker, and one that looks through what is held.
    pub(super) fn start(
        trackers: &[(String, Multiaddr)],
        keys: &ClusterKeys,
        net: &Net,
        namespace: &Namespace,
        store: &Store,
    ) -> Arc<Self> {
        let held = Arc::new(Held::default());
        let shared = Shared {
            keys: keys.clone(),
            net: net.clone(),
            namespace: namespace.clone(),
            held: held.clone(),
        };
        let trackers: Vec<_> = trackers
            .iter()
            .map(|(name, address)| {
                Arc::new(Tracker {
                    name: name.clone(),
                    address: address.clone(),
                    state: Mutex::new(State {
                        state: TrackerState::Connecting,
                        reason: None,
                        head_age: None,
                        session: None,
                    }),
                    news: Mutex::default(),
                    woken: Notify::new(),
                    root: watch::Sender::new(None),
                    copied: watch::Sender::new(Copied::Part),
                    turns: Semaphore::new(TURNS),
                })
            })
            .collect();
        for tracker in &trackers {
            tokio::spawn(attend(tracker.clone(), shared.clone()));
            tokio::spawn(copy::keep(tracker.clone(), shared.clone()));
        }
        let all = Arc::new(Self {
            trackers,
            held,
            shared,
        });
        if !all.trackers.is_empty() {
            tokio::spawn(look_through(all.clone(), store.clone()));
        }
        all
    }

    pub(super) fn head_changed(&self) {
        self.tell_all(|news| news.head = true);
    }

    pub(super) fn addresses_changed(&self) {
        self.tell_all(|news| news.addresses = true);
    }

    fn tell_all(&self, news: impl Fn(&mut News)) {
        for tracker in &self.trackers {
            tracker.tell(&news);
        }
    }

    /// Whether every tracker failed at its last try; true where there is none.
    pub(super) fn all_unreachable(&self) -> bool {
        self.trackers
            .iter()
            .all(|tracker| tracker.state.lock().state == TrackerState::Unreachable)
    }

    /// Why the first unreachable tracker is so.
    pub(super) fn failure(&self) -> Option<String> {
        self.trackers.iter().find_map(|tracker| {
            let reason = tracker.state.lock().reason.clone()?;
            Some(format!("tracker {}: {reason}", tracker.name))
        })
    }

    pub(super) fn reports(&self) -> Vec<TrackerReport> {
        let reports = self.trackers.iter().map(|tracker| {
            let state = tracker.state.lock();
            TrackerReport {
                address: tracker.name.clone(),
                state: state.state,
                reason: state.reason.clone(),
                head_age_s: state
                    .head_age
                    .map(|(age, at)| age.saturating_add(at.elapsed()).as_secs_f64()),
            }
        });
        reports.collect()
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.trackers
            .iter()
            .filter_map(|tracker| tracker.session())
            .collect()
    }

    /// Who the trackers say holds these objects. Whoever is named is dialed.
    pub(super) async fn holders(&self, objects: &[Object]) -> BTreeMap<Object, Vec<PeerId>> {
        let keys: Vec<(Object, SealedKey)> = objects
            .iter()
            .map(|object| (*object, self.shared.sealed_key(object)))
            .collect();
        let asked = self.sessions().into_iter().map(|session| {
            let keys = &keys;
            async move {
                let mut found = Vec::new();
                for batch in keys.chunks(LOOKUP_KEYS_MAX) {
                    let sealed: Vec<_> = batch.iter().map(|(_, key)| *key).collect();
                    match session.holders(&sealed).await {
                        Ok(holders) => {
                            found.extend(batch.iter().map(|(object, _)| *object).zip(holders))
                        }
                        Err(error) => {
                            tracing::debug!(%error, "a tracker did not tell holders");
                            break;
                        }
                    }
                }
                found
            }
        });
        let answers =
            futures::future::join_all(asked.map(|ask| tokio::time::timeout(ASK_WITHIN, ask))).await;
        let mut holders: BTreeMap<Object, Vec<PeerId>> = BTreeMap::new();
        for (object, located) in answers.into_iter().flatten().flatten() {
            let known = holders.entry(object).or_default();
            for peer in located {
                self.shared.dial(&peer);
                if !known.contains(&peer.peer) {
                    known.push(peer.peer);
                }
            }
        }
        holders
    }

    /// Reports a peer to every tracker. Fails when none took it.
    pub(super) async fn report(&self, peer: PeerId) -> Result<(), String> {
        let sessions = self.sessions();
        if sessions.is_empty() {
            return Err("no tracker is connected".into());
        }
        let reports = sessions.iter().map(|session| session.report(&peer));
        let mut refused = None;
        for outcome in futures::future::join_all(reports).await {
            match outcome {
                Ok(()) => return self.find_fresh_peers().await,
                Err(error) => refused = Some(error.to_string()),
            }
        }
        Err(refused.unwrap_or_default())
    }

    /// A peer was dropped: others may take its place.
    async fn find_fresh_peers(&self) -> Result<(), String> {
        for session in self.sessions() {
            if let Ok(peers) = session.peers().await {
                for peer in &peers {
                    self.shared.dial(peer);
                }
            }
        }
        Ok(())
    }

    /// Returns when every tracker has this node's head.
    pub(super) async fn all_have_head(&self) {
        for tracker in &self.trackers {
            // The sender lives in `tracker`.
            let _ = tracker.root.subscribe().wait_for(Option::is_some).await;
        }
    }

    /// Trackers that don't have it yet, and why.
    pub(super) fn without_head(&self) -> Vec<(String, String)> {
        let without = self.trackers.iter().filter(|tracker| !tracker.has_head());
        without
            .map(|tracker| {
                let reason = tracker.state.lock().reason.clone();
                (
                    tracker.name.clone(),
                    reason.unwrap_or_else(|| "it is slow".into()),
                )
            })
            .collect()
    }

    /// Returns when every tracker that is connected has this node's newest head and its copy of what is here of the
    /// manifest, as far as it keeps one.
    pub(super) async fn all_have_copy(&self) {
        let shared = self.shared.clone();
        let Some((_, root)) = run_blocking(move || shared.own_head()).await else {
            return;
        };
        self.head_changed();
        for tracker in &self.trackers {
            if tracker.session().is_some() {
                let mut copied = tracker.copied.subscribe();
                let whole = |copied: &Copied| match copied {
                    Copied::Part => tracker.session().is_none(),
                    Copied::All(of) => *of == root,
                    Copied::NotKept => true,
                };
                // The sender lives in `tracker`.
                let _ = copied.wait_for(whole).await;
            }
        }
    }

    /// Manifest nodes from the trackers' copies, checked; those that no tracker has are left out. The caller bounds the
    /// time.
    pub(super) async fn nodes(&self, wanted: &[NodeHash]) -> Vec<Vec<u8>> {
        copy::fetch(&self.trackers, &self.shared, wanted).await
    }

    /// Gives up the leases.
    pub(super) async fn leave(&self) {
        let sessions = self.sessions();
        let left = futures::future::join_all(sessions.iter().map(|session| session.leave())).await;
        for error in left.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "a lease was not given up; it runs out by itself");
        }
    }
}

impl Shared {
    fn sealed_key(&self, object: &Object) -> SealedKey {
        SealedKey(self.keys.sealed_content_key(&object.content))
    }

    /// Whether a head verifies.
    fn is_good(&self, head: &[u8]) -> bool {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ns = since.map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        });
        Head::decode(head).is_ok_and(|head| head.verify(&self.keys, now_ns).is_ok())
    }

    /// The head to hand in, and its root: of several that no other covers one whose root node is here, so that a newcomer who takes
    /// it finds something below it: the one that says what the folder shows here, else the newest.
    fn own_head(&self) -> Option<(Vec<u8>, NodeHash)> {
        let heads = self.namespace.heads().into_iter();
        let heads = heads.filter_map(|head| {
            let root = Head::decode(&head).ok()?.root;
            Some((head, root))
        });
        let shown = self.namespace.status().root;
        heads.min_by_key(|(_, root)| {
            // The first of equals is the newest.
            let is_here =
                || matches!(self.namespace.node(root), Ok(Some(_))) || *root == empty_root();
            (!is_here(), Some(*root) != shown)
        })
    }

    fn dial(&self, peer: &Located) {
        for address in &peer.addresses {
            if let Ok(address) = address.clone().with_p2p(peer.peer) {
                self.net.add_peer(address, false);
            }
        }
    }

    /// Addresses and ports to announce. Loopback ones are of use on this machine alone, where the tracker may be too.
    fn addresses(&self) -> (Vec<Multiaddr>, Vec<u16>) {
        let addresses = self.net.addresses();
        let ports: BTreeSet<u16> = addresses
            .iter()
            .flat_map(|address| address.iter())
            .filter_map(|part| match part {
                Protocol::Tcp(port) => Some(port),
                _ => None,
            })
            .collect();
        (addresses, ports.into_iter().take(4).collect())
    }
}

/// One tracker's task: runs as long as the mount.
async fn attend(tracker: Arc<Tracker>, shared: Shared) {
    let begun = Instant::now();
    let now = || begun.elapsed().as_millis() as u64;
    let mut policy = TrackerPolicy::new(now());
    let mut told = Told::default();
    loop {
        while let Some(action) = policy.poll_action(now()) {
            match perform(action, &tracker, &shared, &mut policy, &mut told, &now).await {
                Ok(()) => {}
                // The tracker was restarted, or the lease ran out: everything is told again.
                Err(SessionError::Refused(Refusal::NotAnnounced)) => {
                    told = Told::default();
                    policy.handle_forgotten(now());
                }
                // Others find this member, if not what it has. It is told again with the next renewal.
                Err(SessionError::Refused(refusal @ Refusal::Full(_))) if action.is_of_holds() => {
                    tracing::debug!(tracker = %tracker.name, %refusal, "what is held here is not listed there");
                    policy.handle_holds_told();
                }
                Err(error) => {
                    tracker.lost(&error);
                    policy.handle_disconnected(now(), rand::random());
                }
            }
        }
        let sleep = policy
            .poll_timeout()
            .map(|at| Duration::from_millis(at.saturating_sub(now())))
            .unwrap_or(Duration::from_secs(1));
        let session = tracker.session();
        let ended = async {
            match &session {
                Some(session) => session.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            error = ended => {
                tracker.lost(&error);
                policy.handle_disconnected(now(), rand::random());
            }
            () = tracker.woken.notified() => {
                let news = std::mem::take(&mut *tracker.news.lock());
                if news.addresses {
                    policy.handle_addresses_changed(now());
                }
                if news.holds {
                    policy.handle_holds_changed(now());
                }
                if news.head && policy.is_registered() {
                    put_head(&tracker, &shared, &mut told).await;
                }
            }
        }
    }
}

/// What a tracker was told in the present session.
#[derive(Default)]
struct Told {
    keys: BTreeSet<SealedKey>,
    digest: HoldsDigest,
    head: Option<Vec<u8>>,
}

async fn perform(
    action: Action,
    tracker: &Tracker,
    shared: &Shared,
    policy: &mut TrackerPolicy,
    told: &mut Told,
    now: &impl Fn() -> u64,
) -> Result<(), SessionError> {
    let session = || {
        tracker
            .session()
            .ok_or_else(|| SessionError::Lost("it was closed".into()))
    };
    match action {
        Action::Connect => {
            let session = connect(tracker, shared).await?;
            *told = Told::default();
            tracker.state.lock().session = Some(Arc::new(session));
            policy.handle_connected(now());
        }
        Action::Announce => {
            let (addresses, ports) = shared.addresses();
            let session = session()?;
            let lease = session.announce(&addresses, &ports).await?;
            policy.handle_announced(now(), lease.lease.as_millis() as u64, matches(&lease, told));
            tracker.registered();
            policy.handle_holds_changed(now());
            find_peers(&session, shared).await;
            put_head(tracker, shared, told).await;
        }
        Action::Renew => {
            let lease = session()?.renew().await?;
            policy.handle_renewed(now(), lease.lease.as_millis() as u64, matches(&lease, told));
        }
        Action::ReplaceHolds | Action::UpdateHolds => {
            let held = shared.held.0.lock().clone();
            let session = session()?;
            if action == Action::ReplaceHolds {
                let keys: Vec<_> = held.iter().copied().collect();
                session.replace_holds(&keys).await?;
            } else {
                let add: Vec<_> = held.difference(&told.keys).copied().collect();
                let remove: Vec<_> = told.keys.difference(&held).copied().collect();
                session.update_holds(&add, &remove).await?;
            }
            let mut digest = HoldsDigest::default();
            held.iter().for_each(|key| digest.add(key));
            told.digest = digest;
            told.keys = held;
            policy.handle_holds_told();
        }
        Action::PollHeads => {
            let session = session()?;
            let heads = session.heads().await?;
            let opened: Vec<(Vec<u8>, Duration)> = heads
                .iter()
                .filter_map(|head| {
                    let opened = shared.keys.open(SealKind::Head, HEAD_KEY, &head.sealed);
                    Some((opened.ok()?, head.age))
                })
                .collect();
            // What is shown is the age of something that can be used.
            let good = opened.iter().filter(|(head, _)| shared.is_good(head));
            let youngest = good.map(|(_, age)| *age).min();
            tracker.state.lock().head_age = youngest.map(|age| (age, Instant::now()));
            let opened: Vec<Vec<u8>> = opened.into_iter().map(|(head, _)| head).collect();
            // Others may have pushed this node's head out of the tracker's few places.
            if told
                .head
                .as_ref()
                .is_some_and(|head| !opened.contains(head))
            {
                told.head = None;
                put_head(tracker, shared, told).await;
            }
            if opened.len() < heads.len() {
                tracing::warn!(tracker = %tracker.name, "the tracker showed heads that this cluster didn't seal");
            }
            if let Err(reason) = shared.namespace.take_heads(None, opened).await {
                tracing::warn!(tracker = %tracker.name, %reason, "a head from the tracker was refused");
            }
            find_peers(&session, shared).await;
            policy.handle_heads_polled(now());
        }
    }
    Ok(())
}

fn matches(lease: &Lease, told: &Told) -> bool {
    lease.holds == told.digest
}

async fn connect(tracker: &Tracker, shared: &Shared) -> Result<Session, SessionError> {
    let peer = shared
        .net
        .connect(tracker.address.clone(), CONNECT_WITHIN)
        .await
        .map_err(|error| SessionError::Open(error.to_string()))?;
    let topic = shared.keys.topic().0;
    let sign = |message: &[u8]| shared.keys.sign_as_member(message);
    let open = || shared.net.open(peer, PROTOCOL, CONNECT_WITHIN);
    Session::open(open, peer, shared.net.local_peer(), topic, &sign).await
}

/// Dials the members that the tracker knows.
async fn find_peers(session: &Session, shared: &Shared) {
    match session.peers().await {
        Ok(peers) => peers.iter().for_each(|peer| shared.dial(peer)),
        Err(error) => tracing::debug!(%error, "a tracker did not tell peers"),
    }
}

/// Hands in the head that stands for this node's state, sealed, unless the tracker has it.
async fn put_head(tracker: &Tracker, shared: &Shared, told: &mut Told) {
    let looking = shared.clone();
    let (Some(session), Some((head, root))) = (
        tracker.session(),
        run_blocking(move || looking.own_head()).await,
    ) else {
        return;
    };
    if told.head.as_ref() == Some(&head) {
        return;
    }
    let sealed = shared
        .keys
        .seal(SealKind::Head, HEAD_KEY, rand::random(), &head);
    match session.put_head(&sealed).await {
        Ok(()) => {
            told.head = Some(head);
            tracker.root.send_replace(Some(root));
        }
        Err(error) => {
            tracing::debug!(tracker = %tracker.name, %error, "the head was not handed in")
        }
    }
}

/// Looks through what is here, so that trackers learn of it as downloads finish and files are written.
async fn look_through(trackers: Arc<Trackers>, store: Store) {
    let mut used = None;
    loop {
        let begun = Instant::now();
        match store.usage() {
            Ok(usage) if used == Some(usage.objects_bytes) => {}
            Ok(usage) => {
                let shared = trackers.shared.clone();
                let look = store.clone();
                let found = run_blocking(move || {
                    let mut keys = BTreeSet::new();
                    look.each_object(&mut |object, presence, _| {
                        if presence != Presence::Absent {
                            keys.insert(shared.sealed_key(&object));
                        }
                        true
                    })
                    .map(|()| keys)
                })
                .await;
                match found {
                    Ok(keys) => {
                        used = Some(usage.objects_bytes);
                        let changed = {
                            let mut held = trackers.held.0.lock();
                            let changed = *held != keys;
                            *held = keys;
                            changed
                        };
                        if changed {
                            trackers.tell_all(|news| news.holds = true);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "what is held could not be looked through")
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "what is held could not be looked through"),
        }
        tokio::time::sleep(SCAN_EVERY.max(begun.elapsed() * 20)).await;
    }
}
