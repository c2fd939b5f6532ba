//! Several schedulers, one for each reader, in a simulated network with virtual time: slow, lossy, lying and departing
//! peers. `P2PFS_SEED` replays one run; each failure names its seed.

use std::cmp::Reverse;

use rand::Rng;

use super::{
    tests::{object, peer},
    *,
};
use crate::content::BLOCK_BYTES;

/// Runs when no seed is given.
const RUNS: u64 = 200;
/// Virtual time after which a run that isn't over has failed.
const LONGEST: Duration = Duration::from_secs(300);
/// How long without progress a reader bears: longer than any hardship of these runs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Peer 0 has everything and is always there.
const SOURCE: usize = 0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Nature {
    Honest,
    /// Its data never verifies.
    Liar,
    /// Goes away at this time and comes back later.
    Departing(Duration),
}

/// A node: it answers others, and reads where it has a scheduler.
struct Node {
    nature: Nature,
    here: bool,
    blocks: BlockSet,
    latency: Duration,
    rate_bytes_per_s: u64,
    /// Answers lost, in percent.
    loss: u32,
    /// When its uplink is free.
    free_at: Duration,
    scheduler: Option<Scheduler>,
    /// The reader's requests, for checking.
    open: BTreeMap<RequestId, (usize, Range<u64>, Option<RequestId>)>,
    blocked: BTreeSet<usize>,
    done: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Up(usize, usize),
    Down(usize, usize),
    Wish(usize, u64, u64, u64),
    AskedHave {
        of: usize,
        by: usize,
    },
    Have {
        of: usize,
        by: usize,
    },
    Asked {
        of: usize,
        by: usize,
        id: u64,
    },
    Answered {
        of: usize,
        by: usize,
        id: u64,
    },
    Announced {
        of: usize,
        to: usize,
        blocks: Vec<(u64, u64)>,
    },
    Leave(usize),
    Return(usize),
}

struct World {
    seed: u64,
    rng: StdRng,
    now: Duration,
    nodes: Vec<Node>,
    file: Object,
    events: std::collections::BinaryHeap<Reverse<(Duration, u64, Event)>>,
    next_event: u64,
    wishes: u64,
    bytes_moved: u64,
    blocked: usize,
    dropped: usize,
    hedges: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let blocks = rng.random_range(1..400);
        let file = object(1, blocks);
        let readers = rng.random_range(1..=4);
        let others = rng.random_range(0..=3);
        let mut nodes = Vec::new();
        for at in 0..1 + readers + others {
            let is_reader = (1..=readers).contains(&at);
            let nature = match rng.random_range(0..4) {
                _ if at == SOURCE || is_reader => Nature::Honest,
                0 => Nature::Liar,
                1 => Nature::Departing(Duration::from_millis(rng.random_range(0..10_000))),
                _ => Nature::Honest,
            };
            let mut held = BlockSet::default();
            if at == SOURCE || nature == Nature::Liar || !is_reader && rng.random_bool(0.5) {
                held.insert(0..blocks);
            } else if !is_reader || rng.random_bool(0.3) {
                let start = rng.random_range(0..blocks);
                held.insert(start..rng.random_range(start..blocks + 1));
            }
            nodes.push(Node {
                nature,
                here: true,
                blocks: held,
                latency: Duration::from_micros(rng.random_range(200..150_000)),
                rate_bytes_per_s: 1 << rng.random_range(18..28),
                loss: match rng.random_range(0..10) {
                    0 if !is_reader => 100,
                    1..3 => rng.random_range(1..20),
                    _ => 0,
                },
                free_at: Duration::ZERO,
                scheduler: is_reader.then(|| Scheduler::new(PATIENCE, rng.random())),
                open: BTreeMap::new(),
                blocked: BTreeSet::new(),
                done: !is_reader,
            });
        }
        // However bad the others are, the source delivers in the end.
        nodes[SOURCE].loss = 0;
        nodes[SOURCE].rate_bytes_per_s = nodes[SOURCE].rate_bytes_per_s.max(1 << 20);
        Self {
            seed,
            rng,
            now: Duration::ZERO,
            nodes,
            file,
            events: std::collections::BinaryHeap::new(),
            next_event: 0,
            wishes: 0,
            bytes_moved: 0,
            blocked: 0,
            dropped: 0,
            hedges: 0,
        }
    }

    fn plan(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, self.next_event, event)));
        self.next_event += 1;
    }

    /// Time for a message from one to the other.
    fn trip(&self, one: usize, other: usize) -> Duration {
        self.nodes[one].latency + self.nodes[other].latency
    }

    fn readers(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|at| self.nodes[*at].scheduler.is_some())
            .collect()
    }

    fn run(&mut self) {
        let all = self.nodes.len();
        let blocks = self.file.blocks();
        for reader in self.readers() {
            for other in (0..all).filter(|other| *other != reader) {
                let at = Duration::from_millis(self.rng.random_range(0..1000));
                self.plan(at, Event::Up(reader, other));
            }
            // A whole read ahead, and some reads within it that somebody waits for.
            self.plan(Duration::ZERO, Event::Wish(reader, 0, blocks, 1));
            for _ in 0..self.rng.random_range(0..6) {
                let start = self.rng.random_range(0..blocks);
                let end = (start + self.rng.random_range(1..20)).min(blocks);
                let at = Duration::from_millis(self.rng.random_range(0..5000));
                self.plan(at, Event::Wish(reader, start, end, 0));
            }
        }
        for at in 0..all {
            if let Nature::Departing(when) = self.nodes[at].nature {
                self.plan(when, Event::Leave(at));
                self.plan(when + Duration::from_secs(8), Event::Return(at));
            }
        }
        while self.nodes.iter().any(|node| !node.done) {
            let event_at = self.events.peek().map(|Reverse((at, ..))| *at);
            let timeout = self
                .readers()
                .into_iter()
                .filter_map(|at| Some((self.nodes[at].scheduler.as_ref()?.poll_timeout()?, at)))
                .min();
            match (event_at, timeout) {
                (event_at, Some((at, reader))) if event_at.is_none_or(|event_at| at < event_at) => {
                    assert!(at >= self.now, "time goes forward");
                    self.now = at;
                    self.with(reader, |scheduler, now| scheduler.handle_timeout(now));
                }
                _ => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else {
                        panic!("seed {}: nothing will happen any more", self.seed);
                    };
                    self.now = at;
                    self.happen(event);
                }
            }
            assert!(self.now < LONGEST, "seed {}: not done in time", self.seed);
        }
    }

    /// Feeds a reader's scheduler and carries out what comes out.
    fn with(&mut self, reader: usize, input: impl FnOnce(&mut Scheduler, Duration)) {
        let now = self.now;
        let Some(scheduler) = self.nodes[reader].scheduler.as_mut() else {
            return;
        };
        input(scheduler, now);
        let outputs: Vec<Output> = std::iter::from_fn(|| scheduler.poll_output()).collect();
        for output in outputs {
            self.carry_out(reader, output);
        }
    }

    fn number(&self, id: PeerId) -> usize {
        (0..self.nodes.len())
            .find(|at| peer(*at as u8) == id)
            .expect("only known peers are named")
    }

    fn carry_out(&mut self, reader: usize, output: Output) {
        match output {
            Output::AskHave { peer, .. } => {
                let of = self.number(peer);
                assert!(!self.nodes[reader].blocked.contains(&of));
                let at = self.now + self.trip(reader, of);
                self.plan(at, Event::AskedHave { of, by: reader });
            }
            Output::AskLoad { .. } | Output::FindHolders { .. } => {}
            Output::Request {
                id,
                peer,
                blocks,
                hedge_of,
                ..
            } => {
                let of = self.number(peer);
                self.hedges += usize::from(hedge_of.is_some());
                self.check_request(reader, of, &blocks, hedge_of);
                self.nodes[reader].open.insert(id, (of, blocks, hedge_of));
                let at = self.now + self.trip(reader, of);
                let id = id.0;
                self.plan(at, Event::Asked { of, by: reader, id });
            }
            Output::Batch { .. } => panic!("seed {}: nothing here is small", self.seed),
            Output::Cancel { id } => {
                let open = self.nodes[reader].open.remove(&id);
                assert!(open.is_some(), "only open requests are cancelled");
            }
            Output::Announce { blocks, .. } => self.announce(reader, &blocks),
            Output::Verdict { peer, verdict, .. } => {
                let of = self.number(peer);
                if verdict == Verdict::Blocked {
                    assert_eq!(self.nodes[of].nature, Nature::Liar, "seed {}", self.seed);
                    assert!(self.nodes[reader].blocked.insert(of), "once");
                    self.blocked += 1;
                } else {
                    self.dropped += 1;
                }
            }
            Output::Done { .. } => {
                let mine = &mut self.nodes[reader];
                if mine.blocks.contains(0..self.file.blocks()) {
                    mine.done = true;
                }
            }
            Output::Failed { error, .. } => panic!("seed {}: {error}", self.seed),
        }
    }

    fn check_request(
        &self,
        reader: usize,
        of: usize,
        blocks: &Range<u64>,
        hedge_of: Option<RequestId>,
    ) {
        let mine = &self.nodes[reader];
        let seed = self.seed;
        assert_ne!(of, reader, "seed {seed}: asks itself");
        assert!(
            !mine.blocked.contains(&of),
            "seed {seed}: asks a liar again"
        );
        assert!(
            !mine.blocks.intersects(blocks),
            "seed {seed}: asks for what is here"
        );
        for (id, (from, open, _)) in &mine.open {
            if open.start < blocks.end && blocks.start < open.end {
                assert_eq!(Some(*id), hedge_of, "seed {seed}: asks twice at a time");
                assert_ne!(*from, of, "seed {seed}: hedges with the same peer");
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up(reader, other) => {
                if self.nodes[other].here && !self.nodes[reader].blocked.contains(&other) {
                    self.with(reader, |scheduler, now| {
                        scheduler.handle_peer_up(now, peer(other as u8), None);
                    });
                }
            }
            Event::Down(reader, other) => self.with(reader, |scheduler, now| {
                scheduler.handle_peer_down(now, peer(other as u8));
            }),
            Event::Wish(reader, start, end, urgency) => {
                let priority = if urgency == 0 {
                    Priority::Demand
                } else {
                    Priority::Prefetch
                };
                let present = self.nodes[reader].blocks.clone();
                let last = self.file.blocks() - 1;
                let proven = present.contains(last..last + 1);
                let (id, file) = (WishId(self.wishes), self.file);
                self.wishes += 1;
                self.with(reader, |scheduler, now| {
                    let wanted = Wanted {
                        object: file,
                        blocks: start..end,
                        priority,
                        to_read: false,
                        present: &present,
                        size_proven: proven,
                    };
                    assert!(scheduler.handle_wish(now, id, wanted));
                });
            }
            Event::AskedHave { of, by } => {
                if self.nodes[of].here {
                    let at = self.now + self.trip(of, by);
                    self.plan(at, Event::Have { of, by });
                }
            }
            Event::Have { of, by } => {
                let theirs = &self.nodes[of].blocks;
                let held = if theirs.contains(0..self.file.blocks()) {
                    Held::Whole
                } else if theirs.is_empty() {
                    Held::No
                } else {
                    Held::Part(theirs.clone())
                };
                let file = self.file;
                self.with(by, |scheduler, now| {
                    scheduler.handle_have(now, peer(of as u8), file, Some(held));
                });
            }
            Event::Asked { of, by, id } => self.serve(of, by, id),
            Event::Answered { of, by, id } => self.answered(of, by, id),
            Event::Announced { of, to, blocks } => {
                let mut news = BlockSet::default();
                blocks
                    .iter()
                    .for_each(|(start, end)| news.insert(*start..*end));
                let file = self.file;
                self.with(to, |scheduler, now| {
                    scheduler.handle_announcement(now, peer(of as u8), file, news);
                });
            }
            Event::Leave(at) => {
                self.nodes[at].here = false;
                for reader in self.readers() {
                    let when = self.now + self.trip(at, reader);
                    self.plan(when, Event::Down(reader, at));
                }
            }
            Event::Return(at) => {
                self.nodes[at].here = true;
                for reader in self.readers() {
                    let when = self.now + self.trip(at, reader);
                    self.plan(when, Event::Up(reader, at));
                }
            }
        }
    }

    /// A request reaches a node: its answer takes its turn on the uplink, or gets lost.
    fn serve(&mut self, of: usize, by: usize, id: u64) {
        let Some((_, blocks, _)) = self.nodes[by].open.get(&RequestId(id)) else {
            return;
        };
        let bytes = (blocks.end - blocks.start) * BLOCK_BYTES;
        let lost = self.rng.random_range(0..100) < self.nodes[of].loss;
        let node = &mut self.nodes[of];
        if !node.here || lost {
            return;
        }
        let start = node.free_at.max(self.now);
        node.free_at = start + Duration::from_micros(bytes * 1_000_000 / node.rate_bytes_per_s);
        let at = node.free_at + self.trip(of, by);
        self.bytes_moved += bytes;
        self.plan(at, Event::Answered { of, by, id });
    }

    fn answered(&mut self, of: usize, by: usize, id: u64) {
        let Some((_, blocks, _)) = self.nodes[by].open.remove(&RequestId(id)) else {
            return;
        };
        let answer = if self.nodes[of].nature == Nature::Liar {
            Answer::Bad("does not hash".to_owned())
        } else if self.nodes[of].blocks.contains(blocks.clone()) {
            self.nodes[by].blocks.insert(blocks);
            Answer::Blocks
        } else {
            Answer::DontHave(Held::Part(self.nodes[of].blocks.clone()))
        };
        self.with(by, |scheduler, now| {
            scheduler.handle_answer(now, RequestId(id), answer);
        });
    }

    /// A reader tells the others what came.
    fn announce(&mut self, of: usize, news: &BlockSet) {
        for to in self.readers().into_iter().filter(|to| *to != of) {
            let at = self.now + self.trip(of, to);
            let blocks = news.clone().into();
            self.plan(at, Event::Announced { of, to, blocks });
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("P2PFS_SEED") {
        Ok(seed) => vec![seed.parse().expect("P2PFS_SEED is a number")],
        Err(_) => (0..RUNS).collect(),
    }
}

#[test]
fn every_reader_gets_everything_whatever_its_peers_do() {
    let seeds = seeds();
    let (mut blocked, mut dropped, mut hedges) = (0, 0, 0);
    for seed in &seeds {
        let mut world = World::new(*seed);
        world.run();
        blocked += world.blocked;
        dropped += world.dropped;
        hedges += world.hedges;
    }
    // The hardships took place.
    assert!(seeds.len() == 1 || blocked > 0 && dropped > 0 && hedges > 0);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in seeds().into_iter().take(3) {
        let trace = || {
            let mut world = World::new(seed);
            world.run();
            (world.now, world.next_event, world.bytes_moved)
        };
        assert_eq!(trace(), trace());
    }
}

#[test]
fn readers_that_start_together_feed_each_other() {
    let mut world = World::new(1);
    let file = object(1, 800);
    let template = || Node {
        nature: Nature::Honest,
        here: true,
        blocks: BlockSet::default(),
        latency: Duration::from_millis(5),
        rate_bytes_per_s: 8 << 20,
        loss: 0,
        free_at: Duration::ZERO,
        scheduler: None,
        open: BTreeMap::new(),
        blocked: BTreeSet::new(),
        done: true,
    };
    world.file = file;
    world.nodes = (0..5).map(|_| template()).collect();
    world.nodes[SOURCE].blocks = BlockSet::of(0..800);
    for reader in 1..5 {
        world.nodes[reader].scheduler = Some(Scheduler::new(PATIENCE, reader as u64));
        world.nodes[reader].done = false;
    }
    world.run();
    // One after the other, the source's uplink would take 25 s; feeding each other at once, somewhat more than 6.
    assert!(world.now < Duration::from_secs(10), "took {:?}", world.now);
}
