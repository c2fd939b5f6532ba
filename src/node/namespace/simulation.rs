//! Many replicas under everything that happens to them: partitions, messages that are lost, doubled and late, old heads shown
//! again, crashes, years offline, clocks that differ, restored backups and clones. Virtual time, one seed.
//!
//! `P2PFS_SEED` replays one run, `P2PFS_RUNS` sets how many are made; each failure names its seed.

mod disk;
mod oracle;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    panic::RefUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{PeerId, identity::Keypair};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use self::{
    disk::MemoryDisk,
    oracle::{Deed, Oracle},
};
use super::{
    Edit, NamespaceError, RemoteChanges,
    commit::{Extent, Step as Commit},
    disk::Disk,
    merge::{Eagerness, Effort, Step as Merge, named},
    replica::{Event, Moment, Replica},
};
use crate::{
    cluster::{Certificate, ClusterId, ClusterKeys, Head},
    content::{ContentId, Object},
    manifest::{
        self, CausalContext, Dot, Entry, HybridTime, Key, Kind, Moved, Name, NodeHash, Shown,
        Timestamp, TreePath, WriterNumber,
    },
    net::proto::Push,
};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
/// 2026.
const START_NS: u64 = 1_767_225_600 * SECOND;
/// Rounds of everybody meeting somebody in which all must agree.
const SETTLING_ROUNDS_MAX: usize = 60;

#[derive(Clone, Copy)]
struct Plan {
    peers: usize,
    steps: usize,
    /// Whether machines are cloned, and rolled back, without a sign of it: what they had published in between may be gone.
    clones: bool,
}

struct Peer {
    disk: MemoryDisk,
    /// `None` while it is down.
    replica: Option<Replica<MemoryDisk>>,
    events: Arc<Mutex<VecDeque<Event>>>,
    identity: Keypair,
    skew_ns: i64,
    /// Peers in the same cell reach each other.
    cell: u8,
    /// Done here, and not known to be on the disk.
    open: Vec<Deed>,
    backup: Option<MemoryDisk>,
    /// What it has written since that was taken.
    since_backup: Vec<u64>,
    /// What is told of changes from elsewhere, where that is looked at.
    listener: Listener,
}

/// Somebody who keeps what a peer shows, as the kernel does, and hears what changes about it.
#[derive(Default)]
struct Listener {
    /// `None` where it is not known.
    kept: Option<BTreeMap<TreePath, Kind>>,
    /// What was named since it was looked at.
    named: BTreeSet<TreePath>,
    /// Something changed that was not named.
    all: bool,
    /// What was changed here, and what has not been signed yet: who changes it looks at it.
    own: BTreeSet<TreePath>,
}

impl Listener {
    fn hear(&mut self, event: &Event) {
        let Event::Changed(arrival) = event else {
            return;
        };
        match arrival.changes.as_deref().map(named) {
            Some(RemoteChanges::Paths(paths)) => self.named.extend(paths.iter().cloned()),
            _ => self.all = true,
        }
    }

    /// Whether it knows better than to go on with what it keeps of a place: the same rules as the mount's.
    fn looks_at(&self, path: &TreePath, shown: [&BTreeMap<TreePath, Kind>; 2]) -> bool {
        let is_folder = |path: &TreePath| {
            let mut shown = shown.iter();
            shown.all(|shown| shown.get(path) == Some(&Kind::Directory))
        };
        let (folder, name) = path.split().expect("not the root");
        self.named.union(&self.own).any(|named| {
            // Up to the first thing on the way that is no folder, which goes with all below, and with the copies beside.
            let mut at = TreePath::root();
            for name_there in named.names() {
                let beside = at.clone();
                at = at.join(name_there).unwrap();
                let is_beside = beside == folder && manifest::may_be_copy(name);
                if !is_folder(&at) {
                    return path.is_within(&at) || is_beside;
                }
                if at == *named {
                    return *path == at || is_beside;
                }
                if at == *path {
                    return true;
                }
            }
            false
        })
    }
}

#[derive(Clone)]
enum Message {
    Push(PeerId, Push),
    Heads(PeerId, Vec<Vec<u8>>),
}

struct World {
    plan: Plan,
    random: StdRng,
    keys: ClusterKeys,
    origin: Instant,
    now_ns: u64,
    peers: Vec<Peer>,
    /// By time of arrival.
    flights: BTreeMap<(u64, u64), (usize, Message)>,
    sent: u64,
    old_heads: Vec<Vec<u8>>,
    contents: u64,
    signed: usize,
    oracle: Oracle,
    quiet: bool,
    /// Nobody fetches anything to merge, as in a large cluster: heads are shown beside each other for long.
    lazy: bool,
    /// Changes that were made while heads were shown that were not merged, and those that had to wait for that.
    beside: usize,
    waited: usize,
    /// Nodes that were let go.
    collected: usize,
    /// Whether what is told of changes is looked at, and how often something had changed.
    listens: bool,
    heard: usize,
}

fn file(content: u64) -> Entry {
    let object = Object {
        content: ContentId(*blake3::hash(&content.to_le_bytes()).as_bytes()),
        size: content,
    };
    Entry::new(Kind::File(object), 0o644, 0, 0, Timestamp(1))
}

fn content_of(entry: &Entry) -> Option<u64> {
    match &entry.kind {
        Kind::File(object) => Some(object.size),
        _ => None,
    }
}

fn at(path: &str) -> TreePath {
    TreePath::parse(path.as_bytes()).unwrap()
}

/// What came of it, unless the disk was full.
#[track_caller]
fn bear<T>(result: Result<T, NamespaceError>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(error) if error.to_string().contains("the disk is full") => None,
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn may_be_refused(reason: &str) {
    let may = ["in the future", "the disk is full"];
    assert!(may.iter().any(|why| reason.contains(why)), "{reason}");
}

impl World {
    fn new(plan: Plan, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let peers = (0..plan.peers).map(|_| Peer {
            disk: MemoryDisk::default(),
            replica: None,
            events: Arc::default(),
            identity: Keypair::ed25519_from_bytes(random.random::<[u8; 32]>()).unwrap(),
            skew_ns: 0,
            cell: 0,
            open: Vec::new(),
            backup: None,
            since_backup: Vec::new(),
            listener: Listener::default(),
        });
        let mut world = Self {
            plan,
            peers: peers.collect(),
            random,
            keys: ClusterId::generate([7; 32]).keys(),
            origin: Instant::now(),
            now_ns: START_NS,
            flights: BTreeMap::new(),
            sent: 0,
            old_heads: Vec::new(),
            contents: 0,
            signed: 0,
            oracle: Oracle::default(),
            quiet: false,
            lazy: seed % 2 == 1,
            beside: 0,
            waited: 0,
            collected: 0,
            listens: false,
            heard: 0,
        };
        for number in 0..plan.peers {
            world.start(number, false);
        }
        let now = world.moment(0);
        world.peers[0]
            .replica
            .as_ref()
            .unwrap()
            .create(now)
            .unwrap();
        // Enough for a tree of several nodes.
        for n in 0..200 {
            world.contents += 1;
            let folder = ["", "d/", "d/e/", "f/"][n % 4];
            let edit = Edit {
                path: at(&format!("{folder}{n}.txt")),
                entry: Some(file(world.contents)),
                seen: Vec::new(),
                held: false,
                written: None,
                moved: None,
            };
            let replica = world.peers[0].replica.as_ref().unwrap();
            replica.change(vec![edit], now).unwrap();
            let deed = Deed {
                writes: Some(world.contents),
                ..Deed::default()
            };
            world.oracle.done(&deed);
            world.peers[0].open.push(deed);
        }
        world.run(0);
        let first = world.peers[0].replica.as_ref().unwrap().heads();
        for number in 1..plan.peers {
            world.arrive(number, Message::Heads(world.peer_id(0), first.clone()));
        }
        world
    }

    fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }
    fn pick(&mut self) -> usize {
        self.random.random_range(0..self.plan.peers)
    }
    fn moment(&self, number: usize) -> Moment {
        Moment {
            at: self.origin + Duration::from_nanos(self.now_ns - START_NS),
            wall_ns: self
                .now_ns
                .saturating_add_signed(self.peers[number].skew_ns),
        }
    }
    fn peer_id(&self, number: usize) -> PeerId {
        match &self.peers[number].replica {
            Some(replica) => replica.state.read().identity.public().to_peer_id(),
            None => self.peers[number].identity.public().to_peer_id(),
        }
    }
    fn reach(&self, one: usize, other: usize) -> bool {
        self.peers[one].cell == self.peers[other].cell
            && self.peers[one].replica.is_some()
            && self.peers[other].replica.is_some()
    }

    fn start(&mut self, number: usize, is_copy: bool) {
        let seed = self.random.random();
        let peer = &mut self.peers[number];
        peer.events.lock().clear();
        peer.listener = Listener::default();
        let events = peer.events.clone();
        let mut replica = Replica::open(
            peer.disk.clone(),
            self.keys.clone(),
            peer.identity.clone(),
            format!("node {number}"),
            seed,
            move |event| events.lock().push_back(event),
        )
        .unwrap();
        if self.lazy {
            replica.eagerness = Eagerness {
                others: 0,
                authors: 0,
            };
        }
        if is_copy {
            replica.leave_identity_to_the_original().unwrap();
        }
        peer.replica = Some(replica);
    }

    fn crash(&mut self, number: usize) {
        if self.chance(0.5) {
            // Amid what it is about to do.
            self.peers[number].disk.cut_off();
            let now = self.moment(number);
            self.settle_merges(number, now);
            self.commit(number, now);
        }
        let unflushed = self.peers[number].disk.unflushed();
        let kept = self.random.random_range(0..=unflushed);
        let peer = &mut self.peers[number];
        peer.replica = None;
        peer.disk.crash(kept);
        // What was not acknowledged may be there or not.
        peer.open.clear();
    }

    /// Brings nodes from whoever can be reached and has them. Whether any came.
    fn fetch(&self, number: usize, nodes: &[NodeHash]) -> bool {
        self.fetch_or_denied(number, nodes).0
    }

    /// The same, and whether there was somebody to ask who had none.
    fn fetch_or_denied(&self, number: usize, nodes: &[NodeHash]) -> (bool, bool) {
        let Some(replica) = &self.peers[number].replica else {
            return (false, false);
        };
        let others =
            (0..self.plan.peers).filter(|&other| other != number && self.reach(number, other));
        let others: Vec<_> = others
            .filter_map(|other| self.peers[other].replica.as_ref())
            .collect();
        let found = nodes.iter().filter_map(|hash| {
            let mut given = others
                .iter()
                .filter_map(|other| other.nodes.encoded(hash).unwrap());
            given.next().map(|bytes| bytes.to_vec())
        });
        let taken = replica.nodes.take(nodes, found.collect());
        let taken = bear(taken.map_err(NamespaceError::from)).unwrap_or_default();
        (!taken.is_empty(), taken.is_empty() && !others.is_empty())
    }

    /// Asks a replica until it has what it needs; `None` where that can't be had.
    fn ask<T>(
        &self,
        number: usize,
        ask: impl Fn(&Replica<MemoryDisk>) -> Result<T, NamespaceError>,
    ) -> Option<T> {
        loop {
            match ask(self.peers[number].replica.as_ref()?) {
                Ok(answer) => return Some(answer),
                Err(NamespaceError::Missing(nodes)) if self.fetch(number, &nodes) => {}
                Err(NamespaceError::Missing(_) | NamespaceError::NoHead) => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Runs a peer's committer and merger as far as they get now.
    fn run(&mut self, number: usize) {
        for _ in 0..8 {
            let now = self.moment(number);
            let Some(replica) = &self.peers[number].replica else {
                return;
            };
            self.settle_merges(number, now);
            let due = replica.commit_due(now.at).is_some_and(|due| due <= now.at);
            let committed = due && self.commit(number, now);
            self.waited += usize::from(replica.state.read().waits_for_merge.is_some());
            if committed {
                self.acknowledge(number);
            }
            let happened = self.pass_on(number);
            if self.listens {
                self.listen(number);
            }
            if !happened && !committed {
                return;
            }
        }
    }

    /// What a peer shows has changed in no place that nobody was told of.
    fn listen(&mut self, number: usize) {
        let shown = self.ask(number, |replica| replica.below(&TreePath::root()));
        let waits = |replica: &Replica<_>| replica.state.read().overlay.waits(u64::MAX);
        let waits = self.peers[number].replica.as_ref().is_some_and(waits);
        let listener = &mut self.peers[number].listener;
        let kinds = |shown: Vec<(TreePath, Shown)>| {
            let shown = shown.into_iter();
            shown
                .map(|(path, shown)| (path, shown.entry.kind))
                .collect()
        };
        let shown: Option<BTreeMap<TreePath, Kind>> = shown.map(kinds);
        if let (Some(before), Some(after), false) = (&listener.kept, &shown, listener.all) {
            let paths: BTreeSet<&TreePath> = before.keys().chain(after.keys()).collect();
            let changed = paths
                .into_iter()
                .filter(|path| before.get(path) != after.get(path));
            for path in changed {
                assert!(
                    listener.looks_at(path, [before, after]),
                    "{path} was {:?} and is {:?}, but what was told is {:?}, beside {:?}",
                    before.get(path),
                    after.get(path),
                    listener.named,
                    listener.own,
                );
                self.heard += 1;
            }
        }
        listener.kept = shown;
        listener.named.clear();
        listener.all = false;
        if !waits {
            listener.own.clear();
        }
    }

    fn acknowledge(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        let Some(replica) = &peer.replica else { return };
        if !replica.state.read().overlay.waits(u64::MAX) {
            for deed in peer.open.drain(..) {
                self.oracle.acknowledged(&deed);
            }
        }
    }

    fn commit(&self, number: usize, now: Moment) -> bool {
        let Some(replica) = &self.peers[number].replica else {
            return false;
        };
        let mut extent = Extent::All;
        loop {
            match bear(replica.commit(extent, now)).unwrap_or(Commit::Idle) {
                Commit::Done => return true,
                Commit::Idle | Commit::Waiting(_) => return false,
                Commit::Missing(nodes) | Commit::MissingExtras(nodes) => {
                    if !self.fetch(number, &nodes) {
                        if extent == Extent::Here {
                            return false;
                        }
                        extent = Extent::Here;
                    }
                }
            }
        }
    }

    fn settle_merges(&self, number: usize, now: Moment) {
        let Some(replica) = &self.peers[number].replica else {
            return;
        };
        while let Some(Merge::Missing(nodes)) = bear(replica.prove_first(false, now)) {
            let (came, denied) = self.fetch_or_denied(number, &nodes);
            if !came {
                if denied {
                    bear(replica.prove_first(true, now));
                }
                break;
            }
        }
        let events = self.peers[number].events.lock();
        let all = events
            .iter()
            .any(|event| matches!(event, Event::ToMergeAll));
        drop(events);
        if all {
            replica.need_all();
        }
        let heads = replica.state.read().heads.to_merge(now.at);
        for head in heads {
            let mut effort = Effort::default();
            let digest = head.digest();
            while let Some(Merge::Missing(nodes)) = bear(replica.merge(&digest, &effort, now)) {
                if effort.was_in_vain(&nodes) {
                    bear(replica.was_in_vain(&digest, &effort, &nodes, now));
                    break;
                }
                effort.rounds += 1;
                effort.nodes += nodes.len();
                let (came, denied) = self.fetch_or_denied(number, &nodes);
                if came {
                    let mut state = replica.state.write();
                    state.heads.given(&digest, head.writer);
                }
                effort.unreachable = !came;
                effort.denied = denied;
                effort.wanted = nodes;
            }
        }
    }

    /// Sends what was published. Whether anything happened.
    fn pass_on(&mut self, number: usize) -> bool {
        let events: Vec<_> = self.peers[number].events.lock().drain(..).collect();
        let from = self.peer_id(number);
        for event in &events {
            self.peers[number].listener.hear(event);
            match event {
                Event::Published(published) => {
                    self.signed += 1;
                    self.old_heads.push(published.head.encode());
                    for other in 0..self.plan.peers {
                        // Not everybody is connected to everybody.
                        let connected =
                            self.plan.peers <= 8 || self.chance(8.0 / self.plan.peers as f64);
                        if other != number && connected && self.reach(number, other) {
                            self.send(other, Message::Push(from, published.push.clone()));
                        }
                    }
                }
                Event::Offence(peer, reason) => panic!("{peer} was blamed: {reason}"),
                _ => {}
            }
        }
        !events.is_empty()
    }

    fn send(&mut self, to: usize, message: Message) {
        let copies = match self.random.random_range(0..10) {
            0 if !self.quiet => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = self.random.random_range(1_000_000..3 * SECOND);
            self.sent += 1;
            self.flights
                .insert((self.now_ns + delay, self.sent), (to, message.clone()));
        }
    }

    fn arrive(&mut self, to: usize, message: Message) {
        let now = self.moment(to);
        let Some(replica) = &self.peers[to].replica else {
            return;
        };
        match message {
            Message::Push(
                from,
                Push::Manifest {
                    head,
                    base,
                    changes,
                },
            ) => {
                let taken = replica.admit_push(from, head.into_vec(), base, changes, now);
                // One from too far ahead is refused; nothing else is.
                if let Err(reason) = taken {
                    may_be_refused(&reason.to_string());
                }
            }
            Message::Push(..) => {}
            Message::Heads(from, heads) => {
                if let (_, Err(reason)) = replica.admit(Some(from), heads, now) {
                    may_be_refused(&reason);
                }
            }
        }
        self.run(to);
    }

    fn meet(&mut self, one: usize, other: usize) {
        if one == other || !self.reach(one, other) {
            return;
        }
        for (from, to) in [(one, other), (other, one)] {
            let heads = self.peers[from].replica.as_ref().map(Replica::heads);
            let heads = Message::Heads(self.peer_id(from), heads.unwrap_or_default());
            self.arrive(to, heads);
        }
    }

    fn pass_time(&mut self, by_ns: u64) {
        let until = self.now_ns + by_ns;
        while let Some(flight) = self
            .flights
            .first_entry()
            .filter(|next| next.key().0 <= until)
        {
            self.now_ns = self.now_ns.max(flight.key().0);
            let (to, message) = flight.remove();
            self.arrive(to, message);
        }
        self.now_ns = until;
    }

    fn step(&mut self) {
        let number = self.pick();
        match self.random.random_range(0..1012) {
            1000.. => {
                let from = self.random.random_range(0..8);
                let to = from + self.random.random_range(0..30);
                self.peers[number].disk.fail(from..to);
            }
            0..20 => self.rename_folder(number),
            20..50 => self.file_or_folder(number),
            50..65 => self.collect(number),
            65..500 => self.edit(number),
            500..700 => {
                let other = self.pick();
                self.meet(number, other);
            }
            700..900 => {
                let time = self.random.random_range(10_000_000..4 * SECOND);
                self.pass_time(time);
                self.run(number);
            }
            900..920 => {
                self.crash(number);
                if self.chance(0.8) {
                    self.start(number, false);
                }
            }
            920..940 if self.peers[number].replica.is_none() => self.start(number, false),
            940..955 => self.peers[number].cell = self.random.random_range(0..3),
            955..965 => self.peers.iter_mut().for_each(|peer| peer.cell = 0),
            965..975 => {
                let minutes = if self.chance(0.8) { 4 } else { 60 };
                let limit = (minutes * 60 * SECOND) as i64;
                self.peers[number].skew_ns = self.random.random_range(-limit..=limit);
            }
            975..982 => {
                if let Some(old) = self.old_heads.choose(&mut self.random).cloned() {
                    let from = self.peer_id(0);
                    self.arrive(number, Message::Heads(from, vec![old]));
                }
            }
            982..985 => self.pass_time(90 * 60 * SECOND),
            985..988 => self.pass_time(2 * 365 * 24 * HOUR),
            988..992 => {
                // What is synced without a head.
                let replica = self.peers[number].replica.as_ref();
                if replica.is_some_and(|replica| bear(replica.keep_pending()).is_some()) {
                    let peer = &mut self.peers[number];
                    for deed in peer.open.drain(..) {
                        self.oracle.acknowledged(&deed);
                    }
                }
            }
            992..996 => {
                let peer = &mut self.peers[number];
                peer.backup = Some(peer.disk.copy());
                peer.since_backup.clear();
                // What is not in it yet may never be on the disk that goes on.
                let open = peer.open.iter().filter_map(|deed| deed.writes);
                peer.since_backup.extend(open);
            }
            996..1000 if self.plan.clones => {
                if let Some(backup) = self.peers[number].backup.take() {
                    let noticed = self.chance(0.5);
                    self.crash(number);
                    let gone = std::mem::take(&mut self.peers[number].since_backup);
                    self.oracle.rolled_back(&gone);
                    self.peers[number].disk = backup;
                    self.start(number, noticed);
                }
            }
            _ => {}
        }
    }

    /// Lets go of all nodes that a peer does not need for what it shows, whenever they came.
    fn collect(&mut self, number: usize) {
        let now = self.moment(number);
        if let Some(replica) = &self.peers[number].replica {
            self.collected += bear(replica.collect_all(now)).unwrap_or_default() as usize;
        }
    }

    fn edit(&mut self, peer: usize) {
        let folders = ["", "d", "d/e", "f", "moved 0", "moved 1"];
        let folder = at(folders.choose(&mut self.random).unwrap());
        let shown = self.ask(peer, |replica| replica.get(&folder));
        let is_folder = |shown: &Shown| shown.entry.kind == Kind::Directory;
        if folder != at("d") && !shown.flatten().as_ref().is_some_and(is_folder) {
            return;
        }
        let Some(listed) = self.ask(peer, |replica| replica.children(&folder)) else {
            return;
        };
        let files: Vec<(Name, Shown)> = listed
            .into_iter()
            .filter(|(_, shown)| content_of(&shown.entry).is_some())
            .collect();
        let number = if self.chance(0.6) { 6 } else { 200 };
        let number = self.random.random_range(0..number);
        let name = Name::new(format!("{number}.txt")).unwrap();
        let fresh = folder.join(&name).unwrap();
        let there = files.choose(&mut self.random).cloned();
        let mut deed = Deed::default();
        let mut edits = Vec::new();
        let mut rename = None;
        let edit = |path: TreePath, entry, seen| Edit {
            path,
            entry,
            seen,
            held: false,
            written: None,
            moved: None,
        };
        match (self.random.random_range(0..10), there) {
            (0..2, Some((name, shown))) => {
                deed.replaces = content_of(&shown.entry);
                edits.push(edit(folder.join(&name).unwrap(), None, shown.seen));
            }
            (2..4, Some((name, shown))) => {
                // Over whatever has the name.
                let Some(over) = self.ask(peer, |replica| replica.get(&fresh)) else {
                    return;
                };
                let from = folder.join(&name).unwrap();
                if from == fresh
                    || over
                        .as_ref()
                        .is_some_and(|over| content_of(&over.entry).is_none())
                {
                    return;
                }
                let content = content_of(&shown.entry);
                deed.renames = content
                    .map(|content| (content, from.clone()))
                    .into_iter()
                    .collect();
                deed.replaces = over.as_ref().and_then(|over| content_of(&over.entry));
                let seen = over.map(|over| over.seen).unwrap_or_default();
                let mut put = edit(fresh.clone(), Some(shown.entry.clone()), seen);
                put.moved = Moved::new(from.clone(), &shown.seen);
                edits.push(put);
                rename = Some((from.clone(), fresh));
                edits.push(edit(from, None, shown.seen));
            }
            (4..7, Some((name, shown))) => {
                self.contents += 1;
                deed.at = folder.join(&name).ok();
                deed.writes = Some(self.contents);
                deed.replaces = content_of(&shown.entry);
                let entry = Some(file(self.contents));
                edits.push(edit(folder.join(&name).unwrap(), entry, shown.seen));
            }
            _ => {
                let Some(over) = self.ask(peer, |replica| replica.get(&fresh)) else {
                    return;
                };
                self.contents += 1;
                deed.at = Some(fresh.clone());
                deed.writes = Some(self.contents);
                deed.replaces = over.as_ref().and_then(|over| content_of(&over.entry));
                let seen = over.map(|over| over.seen).unwrap_or_default();
                edits.push(edit(fresh, Some(file(self.contents)), seen));
            }
        }
        self.make(peer, deed, edits, rename);
    }

    /// Writes to a file, gives it another name, or renames or removes one, as the filesystem does: a few names, and all at
    /// once.
    fn names(&mut self, peer: usize) {
        let mut choose = || at(["a", "b", "d/a"].choose(&mut self.random).unwrap());
        let (path, other) = (choose(), choose());
        let what = self.random.random_range(0..5);
        let Some(shown) = self.ask(peer, |replica| replica.get(&path)) else {
            return;
        };
        let Some(over) = self.ask(peer, |replica| replica.get(&other)) else {
            return;
        };
        let edit = |path: &TreePath, entry, seen: &[Dot]| Edit {
            path: path.clone(),
            entry,
            seen: seen.to_vec(),
            held: false,
            written: None,
            moved: None,
        };
        let content = shown.as_ref().and_then(|shown| content_of(&shown.entry));
        let mut deed = Deed::default();
        let mut edits = Vec::new();
        let mut rename = None;
        match (what, shown) {
            (0, shown) => {
                self.contents += 1;
                deed.writes = Some(self.contents);
                deed.replaces = content;
                let entry = Some(file(self.contents));
                match shown {
                    Some(Shown {
                        link: Some(link),
                        seen,
                        ..
                    }) => {
                        let record = TreePath::of_record(&link.file);
                        edits.push(edit(&record, entry, &link.seen));
                        edits.push(edit(&path, Some(Entry::link(link.file)), &seen));
                    }
                    shown => {
                        let seen = shown.map_or(Vec::new(), |shown| shown.seen);
                        edits.push(edit(&path, entry, &seen));
                    }
                }
            }
            (1, Some(shown)) => {
                let Some(last) = self.without_name(peer, &path, &shown) else {
                    return;
                };
                deed.replaces = content;
                edits.extend(last);
                edits.push(edit(&path, None, &shown.seen));
            }
            (2, Some(shown)) => {
                let file_of = |shown: &Shown| shown.link.as_ref().map(|link| link.file);
                let is_same =
                    |over: &Shown| file_of(over).is_some() && file_of(over) == file_of(&shown);
                if path == other || over.as_ref().is_some_and(is_same) {
                    return;
                }
                edits.extend(Edit::bring_record(&path, &shown));
                let mut seen = Vec::new();
                if let Some(over) = over {
                    let Some(last) = self.without_name(peer, &other, &over) else {
                        return;
                    };
                    deed.replaces = content_of(&over.entry);
                    edits.extend(last);
                    seen = over.seen;
                }
                let mut put = edit(&other, Some(shown.own_entry()), &seen);
                put.moved = Moved::new(path.clone(), &shown.seen);
                edits.push(put);
                edits.push(edit(&path, None, &shown.seen));
                rename = Some((path, other));
            }
            (_, Some(shown)) if over.is_none() => {
                let file = match &shown.link {
                    Some(link) => link.file,
                    None => self.random.random(),
                };
                if let Some(link) = &shown.link {
                    let record = TreePath::of_record(&link.file);
                    let put = edit(&record, Some(shown.entry.clone()), &link.seen);
                    edits.push(Edit::bring_record(&path, &shown).unwrap_or(put));
                } else {
                    edits.push(edit(
                        &TreePath::of_record(&file),
                        Some(shown.entry.clone()),
                        &[],
                    ));
                    edits.push(edit(&path, Some(Entry::link(file)), &shown.seen));
                }
                edits.push(edit(&other, Some(Entry::link(file)), &[]));
            }
            _ => return,
        }
        self.make(peer, deed, edits, rename);
    }

    /// What becomes of the last name that is left, where one of several of a file goes.
    fn without_name(&self, peer: usize, path: &TreePath, shown: &Shown) -> Option<Vec<Edit>> {
        let Some(link) = &shown.link else {
            return Some(Vec::new());
        };
        let mut others = self.ask(peer, |replica| replica.names_of(link.file))?;
        others.remove(path);
        let others: Vec<_> = others.into_iter().collect();
        let [only] = others.as_slice() else {
            return Some(Vec::new());
        };
        let last = self.ask(peer, |replica| replica.get(only))?;
        let edit = Edit::last_name(only, last, shown);
        Some(edit.into_iter().collect())
    }

    /// Renames a folder with all that is in it.
    fn rename_folder(&mut self, peer: usize) {
        let folders = ["d/e", "f", "moved 0", "moved 1", "d/moved"];
        let from = at(folders.choose(&mut self.random).unwrap());
        let to = at(["moved 0", "moved 1", "d/moved"]
            .choose(&mut self.random)
            .unwrap());
        let (Some(Some(shown)), Some(None)) = (
            self.ask(peer, |replica| replica.get(&from)),
            self.ask(peer, |replica| replica.get(&to)),
        ) else {
            return;
        };
        let below = self.ask(peer, |replica| replica.below(&from));
        let (Kind::Directory, Some(below)) = (&shown.entry.kind, below) else {
            return;
        };
        let mut deed = Deed {
            folder: Some(from.clone()),
            ..Deed::default()
        };
        let mut edits = Vec::new();
        for (path, shown) in std::iter::once((from.clone(), shown)).chain(below) {
            if let Some(content) = content_of(&shown.entry) {
                deed.renames.push((content, path.clone()));
            }
            edits.push(Edit {
                path: path.moved(&from, &to).unwrap().unwrap(),
                entry: Some(shown.entry),
                seen: Vec::new(),
                held: false,
                written: None,
                moved: Moved::new(path.clone(), &shown.seen),
            });
            edits.push(Edit {
                path,
                entry: None,
                seen: shown.seen,
                held: false,
                written: None,
                moved: None,
            });
        }
        edits.sort_unstable_by(|a, b| b.path.cmp(&a.path));
        self.make(peer, deed, edits, Some((from, to)));
    }

    /// Uses one name for a file, or for a folder.
    fn file_or_folder(&mut self, peer: usize) {
        let name = at("either");
        let Some(shown) = self.ask(peer, |replica| replica.get(&name)) else {
            return;
        };
        let is_folder = match &shown {
            Some(shown) => shown.entry.kind == Kind::Directory,
            None => self.chance(0.5),
        };
        let path = match is_folder {
            true => at(["either/1", "either/2"].choose(&mut self.random).unwrap()),
            false => name,
        };
        let Some(over) = self.ask(peer, |replica| replica.get(&path)) else {
            return;
        };
        let replaces = over.as_ref().and_then(|over| content_of(&over.entry));
        let removes = replaces.is_some() && self.chance(0.5);
        let mut deed = Deed {
            replaces,
            ..Deed::default()
        };
        if !removes {
            self.contents += 1;
            deed.writes = Some(self.contents);
            deed.at = Some(path.clone());
        }
        let edit = Edit {
            path,
            entry: (!removes).then(|| file(self.contents)),
            seen: over.map(|over| over.seen).unwrap_or_default(),
            held: false,
            written: None,
            moved: None,
        };
        self.make(peer, deed, vec![edit], None);
    }

    fn make(
        &mut self,
        peer: usize,
        deed: Deed,
        edits: Vec<Edit>,
        rename: Option<(TreePath, TreePath)>,
    ) {
        let now = self.moment(peer);
        let Some(replica) = &self.peers[peer].replica else {
            return;
        };
        self.beside += usize::from(!replica.state.read().parts.is_empty());
        let own: Vec<_> = edits.iter().map(|edit| edit.path.clone()).collect();
        replica.apply(edits, rename, now).unwrap();
        self.peers[peer].listener.own.extend(own);
        self.oracle.done(&deed);
        self.peers[peer].since_backup.extend(deed.writes);
        self.peers[peer].open.push(deed);
        if self.chance(0.5) {
            self.run(peer);
        }
    }

    /// Everybody comes up, reaches everybody and has the right time, until all agree.
    fn settle(&mut self) {
        self.quiet = true;
        for number in 0..self.plan.peers {
            self.peers[number].cell = 0;
            self.peers[number].skew_ns = 0;
            self.peers[number].disk.fail(0..0);
            if self.peers[number].replica.is_none() {
                self.start(number, false);
            }
        }
        // Heads from ahead are acceptable by now.
        self.pass_time(2 * HOUR);
        let before = self.signed;
        for round in 0..SETTLING_ROUNDS_MAX {
            for number in 0..self.plan.peers {
                self.run(number);
                for _ in 0..3 {
                    let other = self.pick();
                    self.meet(number, other);
                }
            }
            // Sooner or later a head that was lost with its tree, by a roll-back, is given up.
            let time = if round % 8 == 7 { 2 * HOUR } else { 5 * SECOND };
            self.pass_time(time);
            if self.agree() {
                let signed = self.signed - before;
                let bound = 4 * self.plan.peers + 20;
                assert!(signed <= bound, "merge heads storm: {signed}");
                return;
            }
        }
        for number in 0..self.plan.peers {
            let replica = self.peers[number].replica.as_ref().unwrap();
            let state = replica.state.read();
            println!(
                "{number}: root {:?} covers {:?} heads {} to merge {} redo {:?} waits {}",
                state.root,
                state.covers,
                state.heads.iter().count(),
                state.heads.unmerged().count(),
                state.redo,
                state.overlay.waits(u64::MAX),
            );
        }
        panic!("they do not come to agree");
    }

    fn agree(&self) -> bool {
        let mut first = None;
        self.peers.iter().all(|peer| {
            let Some(replica) = &peer.replica else {
                return false;
            };
            let state = replica.state.read();
            let mine = (state.root, state.covers.clone());
            let same = *first.get_or_insert_with(|| mine.clone()) == mine;
            same && state.heads.unmerged().count() == 0
                && state.heads.iter().count() == 1
                && state.redo.is_none()
                && !state.overlay.waits(u64::MAX)
        })
    }

    /// All contents that the state of a peer holds, conflict copies and those of files with several names included.
    fn contents(&self, number: usize) -> BTreeSet<u64> {
        let rows = self.ask(number, |replica| {
            let root = replica.state.read().root.ok_or(NamespaceError::NoHead)?;
            let [near, far] = Key::below(&TreePath::root());
            let mut rows = manifest::scan(&replica.nodes, root, near, usize::MAX)?;
            rows.extend(manifest::scan(&replica.nodes, root, far, usize::MAX)?);
            let records = manifest::scan(&replica.nodes, root, Key::files(), usize::MAX)?;
            rows.extend(records);
            Ok(rows)
        });
        let rows = rows.expect("everybody reaches everybody");
        rows.iter()
            .flat_map(|(_, versions)| versions.as_slice())
            .filter_map(|version| content_of(&version.entry))
            .collect()
    }
}

impl World {
    /// No name shows a file that is nowhere.
    fn check_names(&self, peer: usize) {
        for name in ["a", "b", "d/a"] {
            let shown = self.ask(peer, |replica| replica.get(&at(name))).flatten();
            let is_nowhere = shown.is_some_and(|shown| matches!(shown.entry.kind, Kind::Link(_)));
            assert!(!is_nowhere, "{name} at {peer}");
        }
    }
}

/// What took place: changes beside unmerged heads, those that waited for them, and nodes that were let go.
fn simulate(plan: Plan, seed: u64) -> [usize; 3] {
    let mut world = World::new(plan, seed);
    for _ in 0..plan.steps {
        world.step();
    }
    world.settle();
    let there = world.contents(0);
    assert_eq!(
        world.oracle.lost(&there),
        Vec::<u64>::new(),
        "acknowledged writes are gone"
    );
    // What removed something may have been rolled back.
    if !plan.clones {
        assert_eq!(
            world.oracle.risen(&there),
            Vec::<u64>::new(),
            "deleted contents are back"
        );
    }
    [world.beside, world.waited, world.collected]
}

/// As often as it is run, something is looked at that others changed.
#[test]
fn whatever_changes_elsewhere_is_told() {
    let plan = Plan {
        peers: 4,
        steps: 300,
        clones: true,
    };
    run_with(6, |seed| {
        let mut world = World::new(plan, seed);
        world.listens = true;
        for _ in 0..plan.steps {
            world.step();
        }
        world.settle();
        assert!(world.heard > 0);
        [world.heard, world.beside]
    });
}

/// Names of one file are given, renamed and removed at several members at once, and merged in stages.
#[test]
fn each_name_of_a_file_keeps_it_whoever_removes_the_others() {
    let plan = Plan {
        peers: 3,
        steps: 400,
        clones: false,
    };
    run_with(20, |seed| {
        let mut world = World::new(plan, seed);
        for _ in 0..plan.steps {
            let peer = world.pick();
            match world.random.random_range(0..10) {
                0..5 => world.names(peer),
                5..7 => {
                    let other = world.pick();
                    world.meet(peer, other);
                }
                7..9 => {
                    let time = world.random.random_range(1_000_000..SECOND);
                    world.pass_time(time);
                    world.run(peer);
                }
                _ => world.step(),
            }
            for peer in 0..plan.peers {
                world.check_names(peer);
            }
        }
        world.settle();
        for peer in 0..plan.peers {
            world.check_names(peer);
        }
        let there = world.contents(0);
        assert_eq!(
            world.oracle.lost(&there),
            Vec::<u64>::new(),
            "acknowledged writes are gone"
        );
        [world.beside, world.waited]
    });
}

fn run(plan: Plan, runs: u64) {
    run_with(runs, |seed| simulate(plan, seed));
}

fn run_with<const N: usize>(runs: u64, simulate: impl Fn(u64) -> [usize; N] + RefUnwindSafe) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|value: String| value.parse().expect("a number"))
    };
    let seeds = match (number("P2PFS_SEED"), number("P2PFS_RUNS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, runs_wanted) => 0..runs_wanted.unwrap_or(runs),
    };
    let mut total = [0; N];
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| simulate(seed)) {
            Ok(took_place) => {
                for (total, one) in total.iter_mut().zip(took_place) {
                    *total += one;
                }
            }
            Err(panic) => {
                eprintln!("replay with P2PFS_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // The hardships took place.
    assert!(
        seeds.end - seeds.start < 10 || total.iter().all(|count| *count > 0),
        "{total:?}"
    );
}

#[test]
fn a_clock_that_is_set_back_after_a_crash_leaves_no_entry_newer_than_its_head() {
    let disk = MemoryDisk::default();
    let identity = Keypair::ed25519_from_bytes([1; 32]).unwrap();
    let open = || {
        let keys = ClusterId::generate([7; 32]).keys();
        let name = "a".to_owned();
        Replica::open(disk.clone(), keys, identity.clone(), name, [2; 32], |_| {}).unwrap()
    };
    let now = |wall_ns| Moment {
        at: Instant::now(),
        wall_ns,
    };
    let replica = open();
    replica.create(now(START_NS)).unwrap();
    let edit = Edit {
        path: at("x"),
        entry: Some(file(1)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    replica.change(vec![edit], now(START_NS + HOUR)).unwrap();
    replica.keep_pending().unwrap();
    drop(replica);
    disk.crash(0);
    let replica = open();
    replica.commit(Extent::All, now(START_NS + SECOND)).unwrap();
    let state = replica.state.read();
    let head = state.heads.iter().next().unwrap();
    let newest = manifest::summary(&replica.nodes, head.root).unwrap().newest;
    assert_eq!(
        manifest::summary(&replica.nodes, head.root).unwrap().files,
        1
    );
    assert!(newest <= head.time);
}

#[test]
fn a_crash_amid_what_is_put_for_a_head_finds_its_changes_where_it_tells_of_them() {
    for kept in [Kept::Nothing, Kept::Earlier, Kept::WithOneThatWaits] {
        let found: Vec<_> = (0..)
            .map_while(|puts| crash_amid_a_head(kept, puts))
            .collect();
        assert!(found.first() == Some(&false) && found.last() == Some(&true));
    }
}

#[test]
fn an_error_amid_what_is_put_for_a_head_has_it_neither_lost_nor_published_twice() {
    for kept in [Kept::Nothing, Kept::Earlier, Kept::WithOneThatWaits] {
        for failing in [1, usize::MAX] {
            for is_killed in [false, true] {
                let failed = (0..)
                    .take_while(|&first| {
                        fail_amid_a_head(kept, first..first.saturating_add(failing), is_killed)
                    })
                    .count();
                assert!(failed >= 5, "{kept:?}: {failed}");
            }
        }
    }
}

/// What of the changes for a head the disk has before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Nothing,
    /// An earlier state of the file.
    Earlier,
    /// The file, and another one that lacks nodes.
    WithOneThatWaits,
}

/// A member that is about to publish `y`.
struct AboutToPublish {
    disk: MemoryDisk,
    replica: Replica<MemoryDisk>,
    kept: Kept,
    /// What the disk had and has not.
    lost: BTreeMap<NodeHash, Vec<u8>>,
}

impl AboutToPublish {
    fn now(seconds: u64) -> Moment {
        Moment {
            at: Instant::now(),
            wall_ns: START_NS + seconds * SECOND,
        }
    }

    fn open(disk: &MemoryDisk) -> Replica<MemoryDisk> {
        let keys = ClusterId::generate([7; 32]).keys();
        let identity = Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let name = "a".to_owned();
        Replica::open(disk.clone(), keys, identity, name, [2; 32], |_| {}).unwrap()
    }

    fn new(kept: Kept) -> Self {
        let put = |path: &str, content| Edit {
            path: at(path),
            entry: Some(file(content)),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: None,
        };
        let disk = MemoryDisk::default();
        let mut lost = BTreeMap::new();
        let mut replica = Self::open(&disk);
        replica.create(Self::now(0)).unwrap();
        let mut edits = vec![put("x", 1)];
        if kept == Kept::WithOneThatWaits {
            edits.extend((0..2000).map(|number| put(&format!("far{number:04}"), 1)));
        }
        replica.change(edits, Self::now(1)).unwrap();
        replica.commit(Extent::All, Self::now(1)).unwrap();
        if kept == Kept::WithOneThatWaits {
            let names = disk.node_names(None, usize::MAX).unwrap();
            let node = |name: &NodeHash| (*name, disk.node(name).unwrap().unwrap().to_vec());
            lost = names.iter().map(node).collect();
            disk.remove_nodes(&names).unwrap();
            replica = Self::open(&disk);
            replica.change(vec![put("z", 1)], Self::now(1)).unwrap();
            while let Commit::Missing(missing) | Commit::MissingExtras(missing) =
                replica.commit(Extent::All, Self::now(1)).unwrap()
            {
                let back = missing.iter().map(|name| (*name, lost[name].clone()));
                disk.put_nodes(&back.collect::<Vec<_>>()).unwrap();
            }
            replica
                .change(vec![put("far1000 too", 1)], Self::now(2))
                .unwrap();
        }
        if kept != Kept::Nothing {
            replica.change(vec![put("y", 1)], Self::now(2)).unwrap();
            replica.keep_pending().unwrap();
        }
        replica.change(vec![put("y", 2)], Self::now(2)).unwrap();
        Self {
            disk,
            replica,
            kept,
            lost,
        }
    }

    fn restart(&mut self, puts: usize) {
        self.disk.crash(puts);
        self.replica = Self::open(&self.disk);
    }

    fn merge_all(&self) {
        let heads = self.replica.state.read().heads.to_merge(Self::now(3).at);
        for head in heads {
            let effort = Effort::default();
            let step = self.replica.merge(&head.digest(), &effort, Self::now(3));
            step.unwrap();
        }
    }

    /// Whether what was written last is there.
    fn is_there(&self) -> bool {
        let shown = self.replica.get(&at("y")).unwrap();
        shown.is_some_and(|shown| shown.entry.kind == file(2).kind)
    }

    /// All is well in the end, also after one more start.
    fn check(&mut self, why: &str) {
        self.check_now(why);
        self.restart(usize::MAX);
        self.check_now(why);
        let kept = self.replica.records.pending().unwrap();
        assert!(kept.is_empty(), "{why}");
    }

    fn check_now(&self, why: &str) {
        self.merge_all();
        let lost: Vec<_> = self.lost.clone().into_iter().collect();
        self.disk.put_nodes(&lost).unwrap();
        self.replica.commit(Extent::All, Self::now(4)).unwrap();
        let state = self.replica.state.read();
        let versions = |path: &str| {
            let key = manifest::Key::of_path(&at(path)).unwrap();
            let root = state.root.unwrap();
            let versions = manifest::get(&self.replica.nodes, root, &key).unwrap();
            versions.map_or(0, |versions| versions.as_slice().len())
        };
        assert_eq!(versions("x"), 1, "{why}");
        let is_lost = self.kept == Kept::Nothing && versions("y") == 0;
        assert!(is_lost || versions("y") == 1, "{why}: {}", versions("y"));
        let waited = usize::from(self.kept == Kept::WithOneThatWaits);
        assert_eq!(versions("far1000 too"), waited, "{why}");
        assert_eq!(state.overlay.len(), 0, "{why}");
        let heads = self.disk.heads().unwrap();
        let is_head = |(key, _): &&(Vec<u8>, Vec<u8>)| key[0] == b'h';
        assert_eq!(heads.iter().filter(is_head).count(), 1, "{why}");
        assert!(self.replica.records.signed().unwrap().is_none(), "{why}");
    }
}

#[test]
fn a_crash_amid_a_commit_that_makes_no_head_has_no_removal_undone() {
    for kept in [Kept::Earlier, Kept::WithOneThatWaits] {
        for puts in 0.. {
            let mut member = AboutToPublish::new(kept);
            let removal = Edit {
                path: at("y"),
                entry: None,
                seen: Vec::new(),
                held: false,
                written: None,
                moved: None,
            };
            let now = AboutToPublish::now(2);
            member.replica.change(vec![removal], now).unwrap();
            let by = member.replica.committed_by().unwrap();
            member.disk.cut_off();
            member.replica.commit(Extent::Here, now).unwrap();
            if puts > member.disk.unflushed() {
                break;
            }
            member.restart(puts);
            let why = format!("{kept:?}, {puts} of the puts");
            let is_gone = member.replica.get(&at("y")).unwrap().is_none();
            assert!(is_gone || !member.replica.was_committed(by), "{why}");
            member.restart(usize::MAX);
            assert_eq!(
                member.replica.get(&at("y")).unwrap().is_none(),
                is_gone,
                "{why}"
            );
        }
    }
}

#[test]
fn what_a_read_only_start_finds_half_done_leaves_what_was_kept() {
    for puts in 0.. {
        let mut member = AboutToPublish::new(Kept::WithOneThatWaits);
        member.disk.cut_off();
        let now = AboutToPublish::now(2);
        member.replica.commit(Extent::Here, now).unwrap();
        if puts > member.disk.unflushed() {
            break;
        }
        member.disk.crash(puts);
        let keys = ClusterId::generate([7; 32]).read_only().keys();
        let identity = Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let name = "a".to_owned();
        let disk = member.disk.clone();
        let reader = Replica::open(disk, keys, identity, name, [2; 32], |_| {}).unwrap();
        reader.prove_first(false, now).unwrap();
        drop(reader);
        member.restart(usize::MAX);
        let is_pending = member
            .replica
            .state
            .read()
            .overlay
            .is_pending(&at("far1000 too"));
        assert!(is_pending, "{puts} of the puts");
        member.check(&format!("{puts} of the puts"));
    }
}

/// Whether the change of a head is there after a crash that has so many of its puts reach the disk; `None` if there are fewer.
fn crash_amid_a_head(kept: Kept, puts: usize) -> Option<bool> {
    let mut member = AboutToPublish::new(kept);
    let by = member.replica.committed_by().unwrap();
    member.disk.cut_off();
    let now = AboutToPublish::now(2);
    member.replica.commit(Extent::Here, now).unwrap();
    let waiting = member.replica.state.read().overlay.len();
    assert_eq!(waiting, usize::from(kept == Kept::WithOneThatWaits));
    if puts > member.disk.unflushed() {
        return None;
    }
    member.restart(puts);
    let why = format!("{kept:?}, {puts} of the puts");
    let is_there = member.is_there();
    if kept != Kept::WithOneThatWaits {
        // From the first look on.
        assert_eq!(is_there, member.replica.was_committed(by), "{why}");
        member.merge_all();
        assert_eq!(member.is_there(), member.replica.was_committed(by), "{why}");
    }
    member.check(&why);
    assert_eq!(member.is_there(), is_there, "{why}");
    Some(is_there)
}

/// Whether something failed; `failing` are the puts and flushes that do.
fn fail_amid_a_head(kept: Kept, failing: Range<usize>, is_killed: bool) -> bool {
    let mut member = AboutToPublish::new(kept);
    let why = format!("{kept:?}, {failing:?}, killed: {is_killed}");
    member.disk.fail(failing);
    let now = AboutToPublish::now(2);
    let is_published = member.replica.commit(Extent::Here, now).is_ok();
    let has_failed = member.disk.has_failed();
    member.disk.fail(0..0);
    assert!(member.is_there(), "{why}");
    // What is left to be put is, and does not keep others from going.
    let now = AboutToPublish::now(3);
    let is_unfinished = member.replica.state.read().unfinished.is_some();
    assert!(!is_unfinished || member.replica.commit_due(now.at).is_some());
    assert!(member.replica.made_of().unwrap().is_some(), "{why}");
    if is_killed {
        member.restart(usize::MAX);
        assert!(member.is_there() || !is_published, "{why}");
    }
    member.check(&why);
    assert!(member.is_there() || is_killed && !is_published, "{why}");
    has_failed
}

#[test]
fn heads_beside_each_other_and_writers_of_a_head_are_bounded() {
    let keys = ClusterId::generate([7; 32]).keys();
    let identity = |number: u16| {
        let mut secret = [9; 32];
        secret[..2].copy_from_slice(&number.to_be_bytes());
        Keypair::ed25519_from_bytes(&mut secret).unwrap()
    };
    let now = Moment {
        at: Instant::now(),
        wall_ns: START_NS,
    };
    let head = |number: u16, covers: CausalContext| {
        let identity = identity(number);
        let certificate = Certificate::issue(&keys, &identity.public().to_peer_id()).unwrap();
        let root = manifest::empty_root();
        let time = HybridTime(START_NS);
        let head = Head::sign(&keys, &identity, &certificate, root, covers, 1, time);
        head.unwrap().encode()
    };
    let dot = |number: u16| Dot {
        writer: WriterNumber::of(&identity(number).public().to_peer_id()),
        sequence: 1,
    };
    let fresh = || {
        let keys = ClusterId::generate([7; 32]).keys();
        let disk = MemoryDisk::default();
        Replica::open(disk, keys, identity(0), "a".to_owned(), [2; 32], |_| {}).unwrap()
    };
    let replica = fresh();
    let own = |number| {
        let mut covers = CausalContext::default();
        covers.add(dot(number));
        head(number, covers)
    };
    for number in 1..=1024 {
        replica.admit(None, vec![own(number)], now).1.unwrap();
    }
    let (news, refused) = replica.admit(None, vec![own(1025)], now);
    assert!(!news && refused.unwrap_err().contains("beside each other"));
    // One that joins others is taken: once it is in the state, they go.
    let mut covers = CausalContext::default();
    (1..=1025).for_each(|number| covers.add(dot(number)));
    assert!(replica.admit(None, vec![head(1025, covers)], now).0);
    // Those, too, are bounded: all of these have seen the first.
    let joining = |number: u16| {
        let mut covers = CausalContext::default();
        covers.add(dot(1));
        covers.add(dot(number));
        head(number, covers)
    };
    let taken = (2000..3500).take_while(|number| {
        let taken = replica.admit(None, vec![joining(*number)], now);
        taken.0
    });
    assert_eq!(taken.count(), 1023);

    let many = |writers: u64| {
        let mut covers = CausalContext::default();
        (1..=writers).for_each(|writer| {
            covers.add(Dot {
                writer: WriterNumber(writer),
                sequence: 1,
            });
        });
        covers
    };
    let replica = fresh();
    assert!(replica.admit(None, vec![head(2000, many(2048))], now).0);
    let (news, refused) = replica.admit(None, vec![head(2001, many(2049))], now);
    assert!(!news && refused.unwrap_err().contains("more writers"));

    // Of heads that are large together, others are told as many as a message takes.
    let replica = fresh();
    let mut wide = CausalContext::default();
    (1..=2000).for_each(|writer| {
        wide.add(Dot {
            writer: WriterNumber(u64::MAX - writer),
            sequence: 1,
        });
    });
    for number in 1..=200 {
        let mut covers = wide.clone();
        covers.add(dot(number));
        let head = head(number, covers);
        replica.admit(None, vec![head], now).1.unwrap();
    }
    let told = replica.heads();
    let bytes: usize = told.iter().map(Vec::len).sum();
    assert!((100..200).contains(&told.len()), "{} heads", told.len());
    assert!(bytes <= 3 << 20, "{bytes} bytes");
}

#[test]
fn a_head_that_only_completes_a_rename_does_not_pass_for_one_with_later_changes() {
    let plan = Plan {
        peers: 2,
        steps: 0,
        clones: false,
    };
    let mut world = World::new(plan, 0);
    let edit = |path: &str, content: Option<u64>, seen: Vec<Dot>| Edit {
        path: at(path),
        entry: content.map(file),
        seen,
        held: false,
        written: None,
        moved: None,
    };
    let seen = |world: &World, number: usize| {
        let shown = world.ask(number, |replica| replica.get(&at("0.txt")));
        shown.unwrap().unwrap().seen
    };
    let (now, old) = (world.moment(0), seen(&world, 0));
    let mut put = edit("new.txt", Some(1), Vec::new());
    put.moved = Moved::new(at("0.txt"), &old);
    let edits = vec![put, edit("0.txt", None, old)];
    let rename = Some((at("0.txt"), at("new.txt")));
    let replica = world.peers[0].replica.as_ref().unwrap();
    replica.apply(edits, rename, now).unwrap();
    assert!(world.commit(0, now));
    let old = seen(&world, 1);
    let replica = world.peers[1].replica.as_ref().unwrap();
    replica
        .change(vec![edit("0.txt", Some(1000), old)], now)
        .unwrap();
    assert!(world.commit(1, now));

    let replica = world.peers[1].replica.as_ref().unwrap();
    replica
        .change(vec![edit("later", Some(1001), Vec::new())], now)
        .unwrap();
    let by = replica.committed_by().unwrap();
    let heads = world.peers[0].replica.as_ref().unwrap().heads();
    replica.admit(None, heads, now).1.unwrap();
    world.settle_merges(1, now);
    let shown = world.ask(1, |replica| replica.get(&at("new.txt"))).unwrap();
    assert_eq!(shown.and_then(|shown| content_of(&shown.entry)), Some(1000));
    let unflushed = world.peers[1].disk.unflushed();
    world.peers[1].replica = None;
    world.peers[1].disk.crash(unflushed);
    world.start(1, false);
    let replica = world.peers[1].replica.as_ref().unwrap();
    assert_eq!(replica.get(&at("later")).unwrap(), None);
    assert!(!replica.was_committed(by));
}

#[test]
fn what_is_made_under_the_old_name_of_a_folder_follows_a_rename_that_was_kept_without_a_head() {
    let plan = Plan {
        peers: 2,
        steps: 0,
        clones: false,
    };
    let mut world = World::new(plan, 0);
    // No head of either is heard by the other so far.
    for number in 0..2 {
        world.peers[number].cell = number as u8;
    }
    let edit = Edit {
        path: at("f/made elsewhere"),
        entry: Some(file(1000)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let changed = world.ask(0, |replica| replica.get(&at("f/3.txt"))).unwrap();
    let changed = Edit {
        path: at("f/3.txt"),
        entry: Some(file(1001)),
        seen: changed.unwrap().seen,
        ..edit.clone()
    };
    let now = world.moment(0);
    let replica = world.peers[0].replica.as_ref().unwrap();
    replica.change(vec![edit, changed], now).unwrap();
    assert!(world.commit(0, now));

    // It can fetch, and has heard nothing.
    world.peers[0].cell = 1;
    let now = world.moment(1);
    let (from, to) = (at("f"), at("moved 0"));
    let below = world.ask(1, |replica| replica.below(&from)).unwrap();
    let mut edits = Vec::new();
    for (path, shown) in below {
        let put = Edit {
            path: path.moved(&from, &to).unwrap().unwrap(),
            entry: Some(shown.entry),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: Moved::new(path.clone(), &shown.seen),
        };
        let removed = Edit {
            path,
            entry: None,
            seen: shown.seen,
            moved: None,
            ..put.clone()
        };
        edits.extend([put, removed]);
    }
    edits.sort_unstable_by(|a, b| b.path.cmp(&a.path));
    let replica = world.peers[1].replica.as_ref().unwrap();
    replica.apply(edits, Some((from, to)), now).unwrap();
    replica.keep_pending().unwrap();
    world.peers[1].replica = None;
    world.peers[1].disk.crash(0);
    world.start(1, false);
    world.settle();
    for number in 0..2 {
        let shown = |path| {
            let shown = world.ask(number, |replica| replica.get(&at(path))).unwrap();
            shown.and_then(|shown| content_of(&shown.entry))
        };
        assert_eq!(shown("moved 0/made elsewhere"), Some(1000));
        assert_eq!(shown("moved 0/3.txt"), Some(1001));
        assert_eq!(shown("f/made elsewhere"), None);
    }
}

#[test]
fn a_clock_that_was_ahead_when_something_was_published_is_noticed() {
    let plan = Plan {
        peers: 1,
        steps: 0,
        clones: false,
    };
    let mut world = World::new(plan, 0);
    world.run(0);
    let now = world.moment(0);
    let replica = world.peers[0].replica.as_ref().unwrap();
    assert_eq!(replica.clock_ahead(now), None);
    let ahead = Moment {
        wall_ns: now.wall_ns + HOUR,
        ..now
    };
    let made = Edit {
        path: at("made"),
        entry: Some(file(1000)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    replica.change(vec![made], ahead).unwrap();
    assert!(world.commit(0, ahead));
    let minutes = replica.clock_ahead(now).unwrap().as_secs() / 60;
    assert!((54..=55).contains(&minutes), "{minutes}");
    assert_eq!(replica.clock_ahead(ahead), None);
}

/// Three peers of which the first has signed a head that no other could fetch the nodes of.
fn with_a_head_that_nobody_has() -> (World, Vec<Vec<u8>>) {
    let plan = Plan {
        peers: 3,
        steps: 0,
        clones: false,
    };
    let mut world = World::new(plan, 0);
    for number in 0..3 {
        world.run(number);
        // Looks at everything.
        world.contents(number);
    }
    world.peers[0].cell = 1;
    let now = world.moment(0);
    let made = Edit {
        path: at("made"),
        entry: Some(file(1000)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let replica = world.peers[0].replica.as_ref().unwrap();
    replica.change(vec![made], now).unwrap();
    assert!(world.commit(0, now));
    let heads = world.peers[0].replica.as_ref().unwrap().heads();
    (world, heads)
}

fn shows(world: &World, number: usize, path: &str) -> Option<u64> {
    let shown = world.ask(number, |replica| replica.get(&at(path)))?;
    shown.and_then(|shown| content_of(&shown.entry))
}

#[test]
fn a_head_that_nobody_has_is_given_up_and_taken_when_somebody_has_it_again() {
    let (mut world, lost) = with_a_head_that_nobody_has();
    let from = world.peer_id(0);
    let known = |world: &World, number: usize| {
        let replica = world.peers[number].replica.as_ref().unwrap();
        let state = replica.state.read();
        (state.heads.iter().count(), state.heads.unmerged().count())
    };
    world.arrive(1, Message::Heads(from, lost.clone()));
    assert_eq!(known(&world, 1), (2, 1));
    let told = world.peers[1].replica.as_ref().unwrap().heads();
    assert!(!told.contains(&lost[0]), "others are not told of it");
    // What another one writes meanwhile is not held up by it.
    let now = world.moment(2);
    let other = Edit {
        path: at("other"),
        entry: Some(file(1001)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let replica = world.peers[2].replica.as_ref().unwrap();
    replica.change(vec![other], now).unwrap();
    assert!(world.commit(2, now));
    world.meet(1, 2);
    assert_eq!(shows(&world, 1, "other"), Some(1001));
    assert_eq!(known(&world, 1), (2, 1));

    world.pass_time(30 * 60 * SECOND);
    world.run(1);
    assert_eq!(known(&world, 1), (2, 1));
    world.pass_time(31 * 60 * SECOND);
    world.run(1);
    assert_eq!(known(&world, 1), (1, 0), "it was given up");
    // Others than its writer are not believed soon, and it is no news for anybody when they are.
    let other = world.peer_id(2);
    let tells = |world: &World, from: PeerId| {
        let replica = world.peers[1].replica.as_ref().unwrap();
        let (is_news, taken) = replica.admit(Some(from), lost.clone(), world.moment(1));
        taken.unwrap();
        assert!(!is_news);
        assert!(!replica.heads().contains(&lost[0]));
        let state = replica.state.read();
        state.heads.iter().count()
    };
    assert_eq!(tells(&world, other), 1);
    world.pass_time(11 * 60 * SECOND);
    assert_eq!(tells(&world, other), 2);
    world.run(1);
    assert_eq!(known(&world, 1), (1, 0), "it is tried once");
    assert_eq!(tells(&world, other), 1);
    assert_eq!(tells(&world, from), 2);
    world.run(1);
    assert_eq!(known(&world, 1), (1, 0));
    assert_eq!(shows(&world, 1, "made"), None);

    world.peers[0].cell = 0;
    world.settle();
    for number in 0..3 {
        assert_eq!(shows(&world, number, "made"), Some(1000));
        assert_eq!(shows(&world, number, "other"), Some(1001));
    }
}

#[test]
fn a_head_that_came_while_the_disk_was_full_is_shown_as_soon_as_it_is_not() {
    for is_new in [true, false] {
        for restarts in [false, true] {
            for puts in 0.. {
                let (mut world, made) = with_a_head_that_nobody_has();
                world.peers[0].cell = 0;
                let from = world.peer_id(0);
                if is_new {
                    world.peers[1].disk = MemoryDisk::default();
                    world.start(1, false);
                }
                let disk = world.peers[1].disk.clone();
                disk.fail(puts..puts + 1);
                world.arrive(1, Message::Heads(from, made.clone()));
                let has_failed = disk.has_failed();
                disk.fail(0..0);
                let mut kept = disk.heads().unwrap().into_iter();
                let is_kept = kept.any(|(_, head)| made.contains(&head));
                if restarts && is_kept {
                    world.start(1, false);
                } else {
                    // Who was told that it could not be kept shows it again.
                    world.arrive(1, Message::Heads(from, made));
                }
                // What it could not fetch is tried again some time later.
                world.pass_time(HOUR);
                world.run(1);
                assert_eq!(
                    shows(&world, 1, "made"),
                    Some(1000),
                    "new: {is_new}, restarts: {restarts}, put {puts} fails"
                );
                if !has_failed {
                    break;
                }
            }
        }
    }
}

#[test]
fn nobody_waits_for_a_first_head_that_nobody_has() {
    let (mut world, lost) = with_a_head_that_nobody_has();
    let from = world.peer_id(0);
    world.peers[1].disk = MemoryDisk::default();
    world.start(1, false);
    world.arrive(1, Message::Heads(from, lost.clone()));
    assert_eq!(shows(&world, 1, "0.txt"), None);
    // The first one has seen all that this one has.
    world.meet(1, 2);
    world.run(1);
    assert_eq!(shows(&world, 1, "0.txt"), Some(1));
    // The same for who starts again in between.
    world.start(1, false);
    world.meet(1, 2);
    world.run(1);
    assert_eq!(shows(&world, 1, "0.txt"), Some(1));
    assert_eq!(shows(&world, 1, "made"), None);
    world.peers[0].cell = 0;
    world.settle();
    assert_eq!(shows(&world, 1, "made"), Some(1000));
}

#[test]
fn what_a_first_head_that_nobody_has_looked_at_has_seen_is_not_taken_for_seen() {
    let (mut world, lost) = with_a_head_that_nobody_has();
    let from = world.peer_id(0);
    world.peers[1].disk = MemoryDisk::default();
    world.start(1, false);
    let now = world.moment(1);
    let replica = world.peers[1].replica.as_ref().unwrap();
    replica.admit(Some(from), lost.clone(), now).1.unwrap();
    // Those who were asked for the first one say that they have none of it…
    assert!(matches!(
        replica.prove_first(true, now).unwrap(),
        Merge::Missing(_)
    ));
    assert!(replica.heads().is_empty(), "nobody is told of it");
    let good = world.peers[2].replica.as_ref().unwrap().heads();
    replica.admit(None, good, now).1.unwrap();
    // …and while it is fetched for again, the other one is looked at.
    let heads = replica.state.read().heads.to_merge(now.at);
    assert!(!heads.is_empty());
    for head in heads {
        let effort = Effort::default();
        let step = replica.merge(&head.digest(), &effort, now).unwrap();
        assert!(matches!(step, Merge::Later), "{step:?}");
    }
    assert!(replica.state.read().another_first().is_some());
    assert!(matches!(
        replica.prove_first(false, now).unwrap(),
        Merge::Done
    ));
    world.run(1);
    assert_eq!(shows(&world, 1, "0.txt"), Some(1));
}

#[test]
fn a_state_that_is_here_whole_does_not_give_way_to_one_that_is_there_in_part() {
    let (mut world, lost) = with_a_head_that_nobody_has();
    let from = world.peer_id(0);
    // Its root alone has reached the others.
    let root = {
        let replica = world.peers[0].replica.as_ref().unwrap();
        let root = replica.state.read().root.unwrap();
        (
            root,
            replica.nodes.encoded(&root).unwrap().unwrap().to_vec(),
        )
    };
    for number in [1, 2] {
        let replica = world.peers[number].replica.as_ref().unwrap();
        replica.nodes.put(std::slice::from_ref(&root)).unwrap();
    }
    world.arrive(1, Message::Heads(from, lost.clone()));
    let names = |world: &World, number: usize| {
        let list = |replica: &Replica<_>| replica.children(&TreePath::root());
        world.ask(number, list).map(|names| names.len())
    };
    let before = names(&world, 2).unwrap();
    assert_eq!(names(&world, 1), Some(before));
    world.pass_time(2 * HOUR);
    world.run(1);
    assert_eq!(names(&world, 1), Some(before));
    // Not when it was given up and is shown again, either.
    let replica = world.peers[1].replica.as_ref().unwrap();
    assert_eq!(replica.state.read().heads.iter().count(), 1);
    world.arrive(1, Message::Heads(from, lost.clone()));
    assert_eq!(names(&world, 1), Some(before));
    world.peers[0].cell = 0;
    world.settle();
    assert_eq!(names(&world, 1), Some(before + 1));
}

#[test]
fn replicas_agree_and_lose_nothing() {
    let plan = Plan {
        peers: 4,
        steps: 300,
        clones: false,
    };
    run(plan, 20);
}

#[test]
fn many_writers_agree_and_settle_on_one_head() {
    let plan = Plan {
        peers: 24,
        steps: 300,
        clones: false,
    };
    run(plan, 2);
}

#[test]
fn restored_backups_and_clones_come_to_agree() {
    let plan = Plan {
        peers: 4,
        steps: 300,
        clones: true,
    };
    run(plan, 20);
}

#[test]
#[ignore = "takes minutes: run it with --release"]
fn two_hundred_writers_agree_and_settle_on_one_head() {
    let plan = Plan {
        peers: 200,
        steps: 1500,
        clones: false,
    };
    run(plan, 1);
}
