//! Many members and the links between them, in virtual time: what a swarm of schedulers makes of them.
//!
//! Every member's link is shaped in both directions, as `tc` does it. What a member sends is taken from its connections in turn,
//! piece by piece, and each connection is a queue: an answer waits behind the answers before it, and so does a small
//! message. At the receiver pieces wait again, in the order in which they come. Members read the file from its start to its end as a
//! mount does for `dd`, with its read-ahead, and tell each other what they have as the executor does.
//!
//! Everything is decided by the seed: a run replays exactly. The unit tests run it small; `benches/swarm.rs` runs it large.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    ops::Range,
    time::Duration,
};

use libp2p::PeerId;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    content::{BLOCK_BYTES, BlockSet, ContentId, Object},
    transfer::{
        Readahead,
        scheduler::{
            Answer, Held, Output, Priority, RequestId, Scheduler, Verdict, Wanted, WishId,
        },
    },
};

/// What goes over a link at a time.
const PIECE_BYTES: u64 = 32 * 1024;
/// Bytes of a message that is no answer with data.
const MESSAGE_BYTES: u64 = 200;
/// The executor's rhythm.
const TICK: Duration = Duration::from_millis(100);
/// One `read(2)`.
const READ_BYTES: u64 = 1024 * 1024;
/// Windows of read-ahead that an open file keeps.
const WINDOWS_MAX: usize = 3;
/// Longest wait of a read without progress.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// One direction of a link, in bytes a second; it may change once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// From the start.
    pub(crate) first: u64,
    /// From this moment on, that.
    pub(crate) then: Option<(Duration, u64)>,
}

impl Rate {
    /// Always the same, in Mbit/s.
    pub(crate) fn megabits(megabits: u64) -> Self {
        Self {
            first: megabits * 125_000,
            then: None,
        }
    }

    fn at(&self, now: Duration) -> u64 {
        match self.then {
            Some((from, rate)) if now >= from => rate,
            _ => self.first,
        }
    }
}

/// What a member is like.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// What it sends at.
    pub(crate) up: Rate,
    /// What it receives at.
    pub(crate) down: Rate,
    /// One way to or from the middle of the network.
    pub(crate) latency: Duration,
    /// It has everything from the start. Others have nothing.
    pub(crate) is_source: bool,
    /// When it starts to read, if it does.
    pub(crate) reads_at: Option<Duration>,
    /// It answers with data that doesn't verify.
    pub(crate) lies: bool,
    /// It is gone for this time.
    pub(crate) gone: Option<Range<Duration>>,
}

impl Member {
    /// A member that has nothing and wants nothing, with the same rate in both directions.
    pub(crate) fn with(rate: Rate) -> Self {
        Self {
            up: rate,
            down: rate,
            latency: Duration::from_micros(200),
            is_source: false,
            reads_at: None,
            lies: false,
            gone: None,
        }
    }

    /// One that has everything.
    pub(crate) fn source(rate: Rate) -> Self {
        Self {
            is_source: true,
            ..Self::with(rate)
        }
    }

    /// One that reads from the start.
    pub(crate) fn reader(rate: Rate) -> Self {
        Self {
            reads_at: Some(Duration::ZERO),
            ..Self::with(rate)
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// When each reader had read everything, in order.
    pub(crate) done_at: Vec<Duration>,
    /// Readers that failed, and why.
    pub(crate) failed: Vec<String>,
    /// Bytes that the sources sent, by the size of the file.
    pub(crate) source_copies: f64,
    /// Bytes that all readers together received, by those that they lacked.
    pub(crate) received: f64,
    /// Verdicts passed on honest members that were there all the time.
    pub(crate) dropped: usize,
    /// Requests that were made twice.
    pub(crate) hedges: usize,
    /// Messages that told somebody what has come.
    pub(crate) told: usize,
}

impl Outcome {
    /// When the last reader had everything.
    pub(crate) fn took(&self) -> Duration {
        self.done_at.last().copied().unwrap_or_default()
    }
}

/// The least time in which a file of so many bytes can get from the sources to all readers (Kumar and Ross 2006), in a network in
/// which nothing changes.
pub(crate) fn bound(members: &[Member], bytes: u64) -> Duration {
    let readers = || members.iter().filter(|member| member.reads_at.is_some());
    let sources = members.iter().filter(|member| member.is_source);
    let source_up: u64 = sources.map(|member| member.up.first).sum();
    let reader_up: u64 = readers().map(|member| member.up.first).sum();
    let slowest_down = readers().map(|member| member.down.first).min().unwrap_or(1);
    let count = readers().count() as f64;
    let bytes = bytes as f64;
    let seconds = (bytes / source_up as f64)
        .max(bytes / slowest_down as f64)
        .max(count * bytes / (source_up + reader_up) as f64);
    Duration::from_secs_f64(seconds)
}

#[derive(Clone, Debug)]
enum Message {
    AskHave,
    Have(Held),
    Request(RequestId, Range<u64>),
    Cancel(RequestId),
    Answer(RequestId, Sent),
    News(Vec<Range<u64>>),
}

#[derive(Clone, Debug)]
enum Sent {
    Data(Range<u64>),
    DontHave(Held),
}

/// Something in a connection's queue.
struct Queued {
    message: Message,
    left: u64,
}

/// A piece under way.
struct Piece {
    from: usize,
    bytes: u64,
    /// The message that it ends.
    message: Option<Message>,
}

enum Event {
    Up(usize, usize),
    Down(usize, usize),
    Start(usize),
    /// The uplink has sent a piece.
    Uplink(usize),
    /// A piece reaches a member's downlink.
    Reaches(usize, Piece),
    /// The downlink has passed a piece on.
    Passed(usize),
    Tick(usize),
}

struct Request {
    of: usize,
    is_cancelled: bool,
}

struct Node {
    about: Member,
    scheduler: Scheduler,
    blocks: BlockSet,
    /// By receiver.
    queues: BTreeMap<usize, VecDeque<Queued>>,
    turns: VecDeque<usize>,
    sending: Option<(usize, u64)>,
    arriving: VecDeque<Piece>,
    is_receiving: bool,
    received: BTreeMap<usize, u64>,
    data_received: u64,
    data_sent: u64,
    requests: BTreeMap<RequestId, Request>,
    readahead: Readahead,
    ahead: VecDeque<WishId>,
    reading: Option<WishId>,
    position: u64,
    done: bool,
}

impl Node {
    fn is_here(&self, now: Duration) -> bool {
        !self
            .about
            .gone
            .as_ref()
            .is_some_and(|gone| gone.contains(&now))
    }

    fn held(&self, all: u64) -> Held {
        if self.blocks.contains(0..all) || self.about.lies {
            Held::Whole
        } else if self.blocks.is_empty() {
            Held::No
        } else {
            Held::Part(self.blocks.clone())
        }
    }
}

/// An event and when it happens.
struct Planned {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// See the module.
pub(crate) struct Swarm {
    now: Duration,
    nodes: Vec<Node>,
    ids: BTreeMap<PeerId, usize>,
    file: Object,
    events: BinaryHeap<Reverse<Planned>>,
    /// When each scheduler wants to be woken.
    wakes: BinaryHeap<Reverse<(Duration, usize)>>,
    next: u64,
    outcome: Outcome,
}

fn id_of(number: usize) -> PeerId {
    let mut bytes = vec![0, 8];
    bytes.extend((number as u64 + 1).to_be_bytes());
    PeerId::from_bytes(&bytes).expect("identity hashes are peer ids")
}

impl Swarm {
    /// A file of so many blocks, and who is there.
    pub(crate) fn new(seed: u64, blocks: u64, members: &[Member]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let file = Object {
            content: ContentId([7; 32]),
            size: blocks * BLOCK_BYTES,
        };
        let nodes: Vec<Node> = members
            .iter()
            .enumerate()
            .map(|(number, about)| {
                let mut scheduler = Scheduler::new(READ_TIMEOUT, rng.random());
                scheduler.take_part(id_of(number));
                let mut had = BlockSet::default();
                if about.is_source {
                    had.insert(0..blocks);
                }
                Node {
                    about: about.clone(),
                    scheduler,
                    blocks: had,
                    queues: BTreeMap::new(),
                    turns: VecDeque::new(),
                    sending: None,
                    arriving: VecDeque::new(),
                    is_receiving: false,
                    received: BTreeMap::new(),
                    data_received: 0,
                    data_sent: 0,
                    requests: BTreeMap::new(),
                    readahead: Readahead::default(),
                    ahead: VecDeque::new(),
                    reading: None,
                    position: 0,
                    done: about.reads_at.is_none(),
                }
            })
            .collect();
        let ids = (0..nodes.len()).map(|number| (id_of(number), number));
        let mut swarm = Self {
            now: Duration::ZERO,
            ids: ids.collect(),
            nodes,
            file,
            events: BinaryHeap::new(),
            wakes: BinaryHeap::new(),
            next: 0,
            outcome: Outcome::default(),
        };
        swarm.begin(&mut rng);
        swarm
    }

    fn begin(&mut self, rng: &mut StdRng) {
        for reader in 0..self.nodes.len() {
            let Some(start) = self.nodes[reader].about.reads_at else {
                continue;
            };
            for other in (0..self.nodes.len()).filter(|other| *other != reader) {
                self.plan(Duration::ZERO, Event::Up(reader, other));
            }
            let start = start + Duration::from_millis(rng.random_range(0..30));
            self.plan(start, Event::Start(reader));
            let tick = start + Duration::from_micros(rng.random_range(0..100_000));
            self.plan(tick, Event::Tick(reader));
        }
        for at in 0..self.nodes.len() {
            if let Some(gone) = self.nodes[at].about.gone.clone() {
                for reader in 0..self.nodes.len() {
                    if reader != at && self.nodes[reader].about.reads_at.is_some() {
                        self.plan(gone.start, Event::Down(reader, at));
                        self.plan(gone.end, Event::Up(reader, at));
                    }
                }
            }
        }
    }

    fn plan(&mut self, at: Duration, event: Event) {
        let number = self.next;
        self.next += 1;
        self.events.push(Reverse(Planned { at, number, event }));
    }

    /// Runs until every reader is done or has failed, or the time is over.
    pub(crate) fn run(mut self, longest: Duration) -> Outcome {
        while self.nodes.iter().any(|node| !node.done) {
            let event_at = self.events.peek().map(|Reverse(planned)| planned.at);
            let wake_at = self.wakes.peek().map(|Reverse((at, _))| *at);
            let Some(at) = event_at.into_iter().chain(wake_at).min() else {
                break;
            };
            self.now = at;
            if at > longest {
                break;
            }
            if wake_at == Some(at) {
                if let Some(Reverse((_, node))) = self.wakes.pop()
                    && self.nodes[node].scheduler.poll_timeout() == Some(at)
                {
                    self.with(node, |scheduler, now| scheduler.handle_timeout(now));
                }
            } else if let Some(Reverse(planned)) = self.events.pop() {
                self.happen(planned.event);
            }
        }
        let size = self.file.size as f64;
        let mut outcome = self.outcome;
        let (mut received, mut lacked) = (0, 0);
        for node in &self.nodes {
            if node.about.is_source {
                outcome.source_copies += node.data_sent as f64 / size;
            }
            if node.about.reads_at.is_some() && !node.about.is_source {
                received += node.data_received;
                lacked += self.file.size;
            }
            if !node.done {
                outcome.failed.push("not done in time".to_owned());
            }
        }
        outcome.received = received as f64 / lacked as f64;
        outcome
    }

    /// Feeds a member's scheduler and carries out what comes out.
    fn with(&mut self, node: usize, input: impl FnOnce(&mut Scheduler, Duration)) {
        let now = self.now;
        let scheduler = &mut self.nodes[node].scheduler;
        input(scheduler, now);
        let outputs: Vec<Output> = std::iter::from_fn(|| scheduler.poll_output()).collect();
        for output in outputs {
            self.carry_out(node, output);
        }
        if let Some(at) = self.nodes[node].scheduler.poll_timeout() {
            self.wakes.push(Reverse((at, node)));
        }
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        match output {
            Output::AskHave { peer, .. } => {
                self.send(node, self.ids[&peer], Message::AskHave, MESSAGE_BYTES);
            }
            Output::Request {
                id,
                peer,
                blocks,
                hedge_of,
                ..
            } => {
                self.outcome.hedges += usize::from(hedge_of.is_some());
                let of = self.ids[&peer];
                let open = Request {
                    of,
                    is_cancelled: false,
                };
                self.nodes[node].requests.insert(id, open);
                self.send(node, of, Message::Request(id, blocks), MESSAGE_BYTES);
            }
            Output::Cancel { id } => {
                if let Some(request) = self.nodes[node].requests.get_mut(&id) {
                    request.is_cancelled = true;
                    let of = request.of;
                    self.send(node, of, Message::Cancel(id), MESSAGE_BYTES);
                }
            }
            Output::Announce { blocks, .. } => self.tell(node, blocks.ranges()),
            Output::Verdict { peer, verdict, .. } => {
                let about = &self.nodes[self.ids[&peer]].about;
                let is_unjust = !about.lies && about.gone.is_none();
                assert!(verdict != Verdict::Blocked || about.lies);
                self.outcome.dropped += usize::from(is_unjust);
            }
            Output::Done { wish } => {
                if self.nodes[node].reading == Some(wish) {
                    self.nodes[node].reading = None;
                    self.nodes[node].position += READ_BYTES;
                    self.read(node);
                }
            }
            Output::Failed { wish, error } => {
                if self.nodes[node].reading == Some(wish) {
                    self.nodes[node].done = true;
                    self.outcome.failed.push(error.to_string());
                }
            }
            Output::AskLoad { .. } | Output::FindHolders { .. } | Output::Batch { .. } => {}
        }
    }

    /// The reader's next read, as a mount has it done: what is worth having soon is wished for first.
    fn read(&mut self, node: usize) {
        let size = self.file.size;
        loop {
            let reader = &mut self.nodes[node];
            let position = reader.position;
            if position >= size {
                reader.done = true;
                self.outcome.done_at.push(self.now);
                return;
            }
            let advice = reader.readahead.on_read(position, READ_BYTES, size);
            if !advice.fetch.is_empty() {
                let wish = self.wish(node, advice.fetch, Priority::Prefetch);
                let reader = &mut self.nodes[node];
                reader.ahead.push_back(wish);
                if reader.ahead.len() > WINDOWS_MAX
                    && let Some(oldest) = reader.ahead.pop_front()
                {
                    self.with(node, |scheduler, now| scheduler.handle_give_up(now, oldest));
                }
            }
            let end = (position + READ_BYTES).min(size);
            let blocks = self.file.blocks_of(position..end);
            if !self.nodes[node].blocks.contains(blocks) {
                let number = WishId(self.next);
                self.nodes[node].reading = Some(number);
                self.wish(node, position..end, Priority::Demand);
                return;
            }
            self.nodes[node].position += READ_BYTES;
        }
    }

    fn wish(&mut self, node: usize, bytes: Range<u64>, priority: Priority) -> WishId {
        let id = WishId(self.next);
        self.next += 1;
        let file = self.file;
        let present = self.nodes[node].blocks.clone();
        let last = file.blocks() - 1;
        self.with(node, |scheduler, now| {
            let wanted = Wanted {
                object: file,
                blocks: file.blocks_of(bytes),
                priority,
                to_read: false,
                present: &present,
                size_proven: present.contains(last..last + 1),
            };
            scheduler.handle_wish(now, id, wanted);
        });
        id
    }

    /// Puts a message into the queue of a connection.
    fn send(&mut self, from: usize, to: usize, message: Message, bytes: u64) {
        let queue = self.nodes[from].queues.entry(to).or_default();
        let was_empty = queue.is_empty();
        queue.push_back(Queued {
            message,
            left: bytes,
        });
        if was_empty {
            self.nodes[from].turns.push_back(to);
        }
        self.send_next(from);
    }

    /// Has the uplink send the next piece, if it is free.
    fn send_next(&mut self, from: usize) {
        let now = self.now;
        let node = &mut self.nodes[from];
        if node.sending.is_some() {
            return;
        }
        let Some(to) = node.turns.pop_front() else {
            return;
        };
        let Some(first) = node.queues.get(&to).and_then(VecDeque::front) else {
            return;
        };
        let bytes = first.left.min(PIECE_BYTES);
        node.sending = Some((to, bytes));
        let at = now + time_for(bytes, node.about.up.at(now));
        self.plan(at, Event::Uplink(from));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up(node, other) => {
                if self.nodes[other].is_here(self.now) {
                    let latency = self.nodes[node].about.latency + self.nodes[other].about.latency;
                    self.nodes[node].received.remove(&other);
                    self.with(node, |scheduler, now| {
                        scheduler.handle_peer_up(now, id_of(other), Some(latency * 2));
                    });
                }
            }
            Event::Down(node, other) => {
                self.nodes[other].queues.remove(&node);
                self.nodes[other].turns.retain(|to| *to != node);
                self.with(node, |scheduler, now| {
                    scheduler.handle_peer_down(now, id_of(other));
                });
            }
            Event::Start(node) => self.read(node),
            Event::Uplink(from) => self.sent(from),
            Event::Reaches(to, piece) => {
                self.nodes[to].arriving.push_back(piece);
                self.receive_next(to);
            }
            Event::Passed(to) => self.passed(to),
            Event::Tick(node) => {
                if self.nodes[node].done {
                    return;
                }
                for peer in self.nodes[node].scheduler.busy_peers() {
                    let of = self.ids[&peer];
                    let bytes = self.nodes[node].received.get(&of).copied().unwrap_or(0);
                    self.with(node, |scheduler, now| {
                        scheduler.handle_progress(now, peer, bytes);
                    });
                }
                self.plan(self.now + TICK, Event::Tick(node));
            }
        }
    }

    fn sent(&mut self, from: usize) {
        let Some((to, bytes)) = self.nodes[from].sending.take() else {
            return;
        };
        let node = &mut self.nodes[from];
        let mut message = None;
        let mut is_data = false;
        if let Some(queue) = node.queues.get_mut(&to)
            && let Some(first) = queue.front_mut()
        {
            is_data = matches!(first.message, Message::Answer(_, Sent::Data(_)));
            first.left = first.left.saturating_sub(bytes);
            if first.left == 0 {
                message = queue.pop_front().map(|queued| queued.message);
            }
            if !queue.is_empty() {
                node.turns.push_back(to);
            }
        }
        if is_data {
            node.data_sent += bytes;
        }
        let at = self.now + node.about.latency + self.nodes[to].about.latency;
        let piece = Piece {
            from,
            bytes,
            message,
        };
        if self.nodes[from].is_here(self.now) && self.nodes[to].is_here(self.now) {
            self.plan(at, Event::Reaches(to, piece));
        }
        self.send_next(from);
    }

    fn receive_next(&mut self, to: usize) {
        let node = &mut self.nodes[to];
        if node.is_receiving {
            return;
        }
        let Some(first) = node.arriving.front() else {
            return;
        };
        node.is_receiving = true;
        let at = self.now + time_for(first.bytes, node.about.down.at(self.now));
        self.plan(at, Event::Passed(to));
    }

    fn passed(&mut self, to: usize) {
        let node = &mut self.nodes[to];
        node.is_receiving = false;
        if let Some(piece) = node.arriving.pop_front() {
            if piece.bytes > MESSAGE_BYTES {
                *node.received.entry(piece.from).or_default() += piece.bytes;
                node.data_received += piece.bytes;
            }
            if let Some(message) = piece.message {
                self.receive(piece.from, to, message);
            }
        }
        self.receive_next(to);
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        let file = self.file;
        let all = file.blocks();
        match message {
            Message::AskHave => {
                self.with(to, |scheduler, now| {
                    scheduler.handle_interest(now, id_of(from), &file);
                });
                let held = self.nodes[to].held(all);
                self.send(to, from, Message::Have(held), MESSAGE_BYTES);
            }
            Message::Have(held) => self.with(to, |scheduler, now| {
                scheduler.handle_have(now, id_of(from), file, Some(held));
            }),
            Message::News(ranges) => {
                let mut news = BlockSet::default();
                ranges.into_iter().for_each(|range| news.insert(range));
                self.with(to, |scheduler, now| {
                    scheduler.handle_announcement(now, id_of(from), file, news);
                });
            }
            Message::Request(id, blocks) => {
                let node = &self.nodes[to];
                if node.blocks.contains(blocks.clone()) || node.about.lies {
                    let bytes = (blocks.end - blocks.start) * BLOCK_BYTES;
                    let answer = Message::Answer(id, Sent::Data(blocks));
                    self.send(to, from, answer, bytes);
                } else {
                    let held = node.held(all);
                    let answer = Message::Answer(id, Sent::DontHave(held));
                    self.send(to, from, answer, MESSAGE_BYTES);
                }
            }
            Message::Cancel(id) => {
                // What is being sent goes on.
                let node = &mut self.nodes[to];
                let sending = node.sending.is_some_and(|(to, _)| to == from);
                if let Some(queue) = node.queues.get_mut(&from) {
                    let mut at = 0;
                    queue.retain(|queued| {
                        at += 1;
                        let begun = at == 1
                            && (sending
                                || matches!(&queued.message, Message::Answer(_, Sent::Data(blocks))
                                    if queued.left < (blocks.end - blocks.start) * BLOCK_BYTES));
                        begun || !matches!(queued.message, Message::Answer(other, _) if other == id)
                    });
                    if queue.is_empty() {
                        node.turns.retain(|to| *to != from);
                    }
                }
            }
            Message::Answer(id, sent) => self.answered(from, to, id, sent),
        }
    }

    fn answered(&mut self, from: usize, to: usize, id: RequestId, sent: Sent) {
        let Some(request) = self.nodes[to].requests.remove(&id) else {
            return;
        };
        let bytes = self.nodes[to].received.get(&from).copied().unwrap_or(0);
        self.with(to, |scheduler, now| {
            scheduler.handle_progress(now, id_of(from), bytes);
        });
        // What comes although it was cancelled is thrown away unread.
        if request.is_cancelled {
            return;
        }
        let answer = match sent {
            Sent::DontHave(held) => Answer::DontHave(held),
            Sent::Data(_) if self.nodes[from].about.lies => Answer::Bad("does not hash".to_owned()),
            Sent::Data(blocks) => {
                let node = &mut self.nodes[to];
                node.blocks.insert(blocks);
                Answer::Blocks
            }
        };
        self.with(to, |scheduler, now| {
            scheduler.handle_answer(now, id, answer)
        });
    }

    /// Tells all others what came.
    fn tell(&mut self, node: usize, ranges: &[Range<u64>]) {
        for other in 0..self.nodes.len() {
            let wants = self.nodes[other].about.reads_at.is_some() && !self.nodes[other].done;
            if other != node && wants {
                let bytes = MESSAGE_BYTES / 2 + 10 * ranges.len() as u64;
                self.outcome.told += 1;
                self.send(node, other, Message::News(ranges.to_vec()), bytes);
            }
        }
    }
}

fn time_for(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}
