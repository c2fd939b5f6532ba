//! The executor: carries out what the scheduler decides.
//!
//! One task owns the scheduler. Each request, question and search is a task of its own that reports back over a bounded
//! channel; how many there are at a time is bounded by the scheduler's windows. Verification of all but a few blocks, and storing, run
//! on blocking threads, as many at a time as there are processors. It decides nothing itself.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Blame, Holders, Stalls, TransferError,
    board::Board,
    scheduler::{
        self, Answer, Held, Output, Priority, RequestId, Scheduler, Verdict, Wanted, WishId,
    },
    small,
    source::BlockSource,
};
use crate::{
    awake::AwakeClock,
    content::{BlockSet, Object, verify_range},
    net::{
        NetError, NetEvent,
        proto::{
            BATCH_BYTES_MAX, BATCH_OBJECTS_MAX, BatchRequest, BlockAnswer, BlockRequest,
            HAVE_RANGES_MAX, Have, NAMED_MAX, Push, REQUEST_BLOCKS_MAX,
        },
    },
    store::{Presence, Store, StoreError},
};

// The scheduler knows nothing of the wire, but keeps to its bounds.
const _: () = assert!(scheduler::REQUEST_BLOCKS_MAX <= REQUEST_BLOCKS_MAX);
const _: () = assert!(scheduler::BATCH_OBJECTS_MAX <= BATCH_OBJECTS_MAX);
const _: () = assert!(scheduler::BATCH_BYTES_MAX <= BATCH_BYTES_MAX);

/// Reports of tasks that wait to be taken; tasks wait when it is full.
const REPORTS_MAX: usize = 256;
/// Longest wait for the answer to a question about what a peer has, or its load.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// Longest search of the directory, which bounds itself to two seconds.
const FIND_WITHIN: Duration = Duration::from_secs(3);
/// Longest wait for the answer to a request. The scheduler decides when one is given up, as long as bytes come; this is a safety
/// net. No honest peer takes longer: a mebibyte at 4 KiB/s.
const ANSWER_WITHIN: Duration = Duration::from_secs(256);
/// How long a peer that sent a bad block is refused.
const BLOCKED_FOR: Duration = Duration::from_secs(60 * 60);
/// What comes is counted this often, and who went away looked for.
const TICK: Duration = Duration::from_millis(100);
/// Answers of at most so many blocks can be read before they are stored: to who waits for few bytes, making the files of a
/// content takes as long as the bytes. What is larger has been asked for ahead of its reader, or keeps him waiting for long anyway.
const SHOWN_BLOCKS_MAX: u64 = 4;
/// Most reports, and most commands, that are taken before something is decided.
const TAKEN_MAX: usize = 64;

/// Where a caller waits for its wish.
type Reply = oneshot::Sender<Result<(), TransferError>>;

/// What a caller wants of the engine.
pub(super) enum Command {
    /// Blocks are wanted.
    Wish {
        id: WishId,
        object: Object,
        blocks: Range<u64>,
        priority: Priority,
        to_read: bool,
        label: String,
        done: Option<Reply>,
    },
    /// Small contents are worth having soon.
    Ahead(Vec<Object>),
    /// Nobody waits any more.
    GiveUp(WishId),
    /// A peer asked what is here.
    Asks { peer: PeerId, objects: Vec<Object> },
    /// A peer told what it has.
    Announced {
        peer: PeerId,
        object: Object,
        blocks: BlockSet,
    },
}

/// What a task found.
enum Report {
    Have {
        peer: PeerId,
        answers: Vec<(Object, Option<Held>)>,
    },
    Load {
        peer: PeerId,
        load: u32,
    },
    Holders {
        object: Object,
        found: Vec<PeerId>,
    },
    /// What of small contents isn't here.
    Ahead(Vec<Object>),
    /// How a batch ended: for each content whether it came.
    Batch {
        id: RequestId,
        peer: PeerId,
        objects: Vec<Object>,
        answer: Result<Vec<bool>, Answer>,
    },
    /// An answer has come and is being verified.
    Received(RequestId),
    /// It was, and can be read while it is being stored.
    Readable(RequestId),
    Answer {
        id: RequestId,
        peer: PeerId,
        object: Object,
        blocks: Range<u64>,
        answer: Answer,
    },
}

/// What happens next.
enum Turn {
    Report(Report),
    Event(Result<NetEvent, broadcast::error::RecvError>),
    Command(Option<Command>),
    Time,
    Tick,
}

/// What the store has of an object, and whether it has the proof of its size. What an index that failed can't tell counts as not
/// here: others may give it, and it passes through memory.
pub(super) fn here(store: &Store, object: &Object) -> Result<(BlockSet, bool), StoreError> {
    let present = match store.presence(object) {
        Ok(Presence::Absent) => BlockSet::default(),
        Ok(Presence::Partial(blocks)) => blocks,
        Ok(Presence::Complete) => BlockSet::of(0..object.blocks()),
        Err(error) if error.is_of_the_index() => return Ok((BlockSet::default(), false)),
        Err(error) => return Err(error),
    };
    Ok((present, store.size_proven(object)?))
}

/// What the executor is made of.
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) source: Arc<dyn BlockSource>,
    pub(super) holders: Arc<dyn Holders>,
    pub(super) board: Arc<Mutex<Board>>,
    pub(super) stalls: Arc<Stalls>,
    pub(super) clock: Arc<AwakeClock>,
    pub(super) stop: CancellationToken,
}

/// What the scheduler is told at the start.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// How long a wish may be without progress.
    pub(super) read_timeout: Duration,
    /// How much may come in, if that is limited.
    pub(super) download_bytes_per_s: Option<u64>,
}

/// The task that owns the scheduler.
pub(super) struct Executor {
    parts: Parts,
    scheduler: Scheduler,
    waiting: BTreeMap<WishId, (Object, Option<Reply>)>,
    running: BTreeMap<RequestId, CancellationToken>,
    reports: mpsc::Sender<Report>,
    verifiers: Arc<Semaphore>,
}

impl Executor {
    /// Runs until told to stop, or until no handle to the engine is left.
    pub(super) async fn run(
        parts: Parts,
        limits: Limits,
        seed: u64,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let stop = parts.stop.clone();
        // Subscribed before the first look, so that nobody is missed in between.
        let mut events = parts.source.events();
        let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut scheduler = Scheduler::new(limits.read_timeout, seed);
        scheduler.take_part(parts.source.local());
        if let Some(bytes_per_s) = limits.download_bytes_per_s {
            scheduler.limit(bytes_per_s);
        }
        let mut executor = Self {
            parts,
            scheduler,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            reports,
            verifiers: Arc::new(Semaphore::new(processors)),
        };
        executor.recount_peers();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut noted = Instant::now();
        loop {
            executor.carry_out();
            let wake_at = executor.scheduler.poll_timeout();
            let wake = async {
                match wake_at {
                    Some(at) => {
                        tokio::time::sleep_until(executor.parts.clock.instant(at).into()).await
                    }
                    None => std::future::pending().await,
                }
            };
            let ticking = !executor.waiting.is_empty() || executor.scheduler.is_busy();
            let turn = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(report) = reported.recv() => Turn::Report(report),
                event = events.recv() => Turn::Event(event),
                command = commands.recv() => Turn::Command(command),
                () = wake => Turn::Time,
                _ = tick.tick(), if ticking => Turn::Tick,
            };
            // Before anything asks what time it is. While nobody waits for anything there are no ticks, and time just passes.
            // The last turn counts: a process may be stopped in the middle of it.
            if ticking {
                executor.parts.clock.note(noted.elapsed());
            }
            noted = Instant::now();
            match turn {
                Turn::Report(report) => executor.on_report(report),
                Turn::Event(Ok(event)) => executor.on_event(&event),
                Turn::Event(Err(broadcast::error::RecvError::Lagged(_))) => {
                    executor.recount_peers();
                }
                Turn::Event(Err(broadcast::error::RecvError::Closed)) => break,
                Turn::Command(Some(command)) => executor.on_command(command),
                Turn::Command(None) => break,
                Turn::Time => executor.scheduler.handle_timeout(executor.now()),
                Turn::Tick => executor.on_tick(),
            }
            // What has come meanwhile is decided about together.
            for _ in 0..TAKEN_MAX {
                match (reported.try_recv(), commands.try_recv()) {
                    (Err(_), Err(_)) => break,
                    (report, command) => {
                        report
                            .into_iter()
                            .for_each(|report| executor.on_report(report));
                        command
                            .into_iter()
                            .for_each(|command| executor.on_command(command));
                    }
                }
            }
        }
        stop.cancel();
        for (_, done) in executor.waiting.into_values() {
            answer(done, Err(TransferError::Stopping));
        }
    }

    fn now(&self) -> Duration {
        self.parts.clock.now()
    }

    fn recount_peers(&mut self) {
        let present = self.parts.source.peers();
        self.scheduler.handle_peers(self.now(), &present);
    }

    fn on_event(&mut self, event: &NetEvent) {
        match event {
            NetEvent::Up(peer) | NetEvent::Missed(peer) => {
                self.parts.stalls.forget(None);
                // Missed: one of its connections broke, with what was asked over it, and that was held against the peer.
                if matches!(event, NetEvent::Missed(_)) {
                    self.scheduler.handle_peer_down(self.now(), *peer);
                }
                let round_trip = self
                    .parts
                    .source
                    .peers()
                    .into_iter()
                    .find_map(|(id, round_trip)| (id == *peer).then_some(round_trip))
                    .flatten();
                self.scheduler.handle_peer_up(self.now(), *peer, round_trip);
            }
            NetEvent::Down(peer) => self.scheduler.handle_peer_down(self.now(), *peer),
            NetEvent::Addresses(_) => {}
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Wish {
                id,
                object,
                blocks,
                priority,
                to_read,
                label,
                done,
            } => {
                // Looked up here and not by the caller: whatever arrived since then has been reported or is here.
                let (present, size_proven) = match here(&self.parts.store, &object) {
                    Ok(here) => here,
                    Err(error) => {
                        answer(done, Err(TransferError::Store(error.to_string())));
                        return;
                    }
                };
                let now = self.now();
                let wanted = Wanted {
                    object,
                    blocks,
                    priority,
                    to_read,
                    present: &present,
                    size_proven,
                };
                if self.scheduler.handle_wish(now, id, wanted) {
                    self.waiting.insert(id, (object, done));
                    self.parts.board.lock().on_wish(now, object, label, present);
                } else {
                    tracing::debug!(%label, "too many prefetches, one is passed over");
                }
            }
            Command::Ahead(objects) => self.look_ahead(objects),
            Command::GiveUp(id) => self.give_up(id),
            Command::Asks { peer, objects } => {
                for object in &objects {
                    self.scheduler.handle_interest(self.now(), peer, object);
                }
            }
            Command::Announced {
                peer,
                object,
                blocks,
            } => self
                .scheduler
                .handle_announcement(self.now(), peer, object, blocks),
        }
    }

    /// Tells the scheduler how much has come from a peer.
    fn count(&mut self, peer: PeerId) {
        if let Some(bytes) = self.parts.source.received(&peer) {
            self.scheduler.handle_progress(self.now(), peer, bytes);
        }
    }

    fn give_up(&mut self, id: WishId) {
        self.scheduler.handle_give_up(self.now(), id);
        if let Some((object, _)) = self.waiting.remove(&id) {
            // Not to be taken for one that is done.
            self.note_end(&object, Some("nobody waits for it any more".into()));
        }
    }

    fn on_report(&mut self, report: Report) {
        let now = self.now();
        match report {
            Report::Have { peer, answers } => {
                for (object, held) in answers {
                    if held.as_ref().is_some_and(|held| *held != Held::No) {
                        self.parts.stalls.forget(Some(&object));
                    }
                    self.scheduler.handle_have(now, peer, object, held);
                }
            }
            Report::Load { peer, load } => self.scheduler.handle_load(now, peer, load),
            Report::Holders { object, found } => {
                self.scheduler.handle_holders(now, object, &found);
            }
            Report::Ahead(objects) => self.scheduler.handle_ahead(now, &objects),
            Report::Batch {
                id,
                peer,
                objects,
                answer,
            } => self.on_batch(id, peer, &objects, answer),
            Report::Received(id) => self.scheduler.handle_received(id),
            Report::Readable(id) => self.scheduler.handle_readable(now, id),
            Report::Answer {
                id,
                peer,
                object,
                blocks,
                answer,
            } => {
                self.count(peer);
                if answer == Answer::Blocks {
                    self.parts
                        .board
                        .lock()
                        .on_blocks(now, object, blocks.clone(), peer);
                }
                self.running.remove(&id);
                if let Answer::WrongSize { actual } = answer {
                    // Who began to read it may have read on.
                    tracing::warn!(%peer, content = %object.content, claimed = object.size, actual, "an entry claims a wrong size");
                }
                match (self.scheduler.is_open(id), answer) {
                    (true, answer) => self.scheduler.handle_answer(now, id, answer),
                    // Cancelled while it was being verified: what it brought, or did, counts all the same.
                    (false, Answer::Blocks) => self.scheduler.handle_arrived(now, object, blocks),
                    (false, Answer::Bad(reason)) => self
                        .scheduler
                        .handle_bad_answer(now, peer, object, blocks, &reason),
                    (false, _) => {}
                }
            }
        }
    }

    fn on_batch(
        &mut self,
        id: RequestId,
        peer: PeerId,
        objects: &[Object],
        answer: Result<Vec<bool>, Answer>,
    ) {
        let now = self.now();
        self.running.remove(&id);
        let is_open = self.scheduler.is_open(id);
        for (object, here) in objects.iter().zip(answer.iter().flatten()) {
            if !here || !self.scheduler.is_active(object) {
                continue;
            }
            self.parts.board.lock().on_blocks(now, *object, 0..1, peer);
            if !is_open {
                self.scheduler.handle_arrived(now, *object, 0..1);
            }
        }
        match (is_open, answer, objects.first()) {
            (true, answer, _) => self.scheduler.handle_batch(now, id, answer.as_deref()),
            (false, Err(Answer::Bad(reason)), Some(first)) => {
                self.scheduler
                    .handle_bad_answer(now, peer, *first, 0..1, &reason)
            }
            (false, ..) => {}
        }
    }

    /// Tells all peers what is here.
    fn announce(&self, object: Object, blocks: &BlockSet) {
        for part in blocks.ranges().chunks(HAVE_RANGES_MAX) {
            let mut news = BlockSet::default();
            part.iter().for_each(|range| news.insert(range.clone()));
            self.parts.source.push(Push::Have(object, news));
        }
    }

    /// Counts what comes; notes what makes no progress; gives up wishes whose callers went away unheard.
    fn on_tick(&mut self) {
        for peer in self.scheduler.busy_peers() {
            self.count(peer);
        }
        let now = self.now();
        let mut board = self.parts.board.lock();
        for object in board.without_progress(now) {
            board.on_trouble(&object, self.scheduler.summary(&object));
        }
        drop(board);
        let gone: Vec<WishId> = self
            .waiting
            .iter()
            .filter(|(_, (_, done))| done.as_ref().is_some_and(oneshot::Sender::is_closed))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.give_up(id);
        }
    }

    fn carry_out(&mut self) {
        let mut questions: BTreeMap<PeerId, Vec<Object>> = BTreeMap::new();
        let mut requests = Vec::new();
        while let Some(output) = self.scheduler.poll_output() {
            match output {
                Output::AskHave { peer, object } => {
                    questions.entry(peer).or_default().push(object);
                }
                Output::AskLoad { peer } => self.ask_load(peer),
                Output::FindHolders { object } => self.find_holders(object),
                Output::Request {
                    id,
                    peer,
                    object,
                    blocks,
                    ..
                } => requests.push((id, peer, object, blocks)),
                Output::Batch { id, peer, objects } => self.batch(id, peer, objects),
                Output::Cancel { id } => {
                    requests.retain(|request| request.0 != id);
                    if let Some(running) = self.running.remove(&id) {
                        running.cancel();
                    }
                }
                Output::Announce { object, blocks } => self.announce(object, &blocks),
                Output::Verdict {
                    peer,
                    verdict,
                    reason,
                } => self.pass_on(peer, verdict, reason),
                Output::Done { wish } => self.end(wish, Ok(())),
                Output::Failed { wish, error } => self.end(wish, Err(error)),
            }
        }
        for (peer, objects) in questions {
            for objects in objects.chunks(NAMED_MAX) {
                self.ask_have(peer, objects.to_vec());
            }
        }
        // The task that was spawned last runs first, and somebody may wait for what was requested first.
        if !requests.is_empty() {
            requests.rotate_left(1);
        }
        for (id, peer, object, blocks) in requests {
            self.request(id, peer, object, blocks);
        }
        let mut board = self.parts.board.lock();
        board.rejected = self.scheduler.rejected();
        board.requested = self.scheduler.in_flight_bytes();
    }

    fn end(&mut self, wish: WishId, result: Result<(), TransferError>) {
        let Some((object, done)) = self.waiting.remove(&wish) else {
            return;
        };
        let error = result.as_ref().err().map(ToString::to_string);
        if let Some(error) = &error {
            // Whoever waits for it tells of it, with the path.
            let is_awaited = done.is_some();
            tracing::debug!(object = %object.content, is_awaited, "a transfer failed: {error}");
        }
        answer(done, result);
        self.note_end(&object, error);
    }

    fn note_end(&self, object: &Object, error: Option<String>) {
        if !self.scheduler.is_active(object) {
            self.parts.board.lock().on_end(self.now(), object, error);
        }
    }

    fn pass_on(&self, peer: PeerId, verdict: Verdict, reason: String) {
        tracing::warn!(%peer, ?verdict, "{reason}");
        if verdict == Verdict::Blocked {
            self.parts.source.block_peer(peer, BLOCKED_FOR, &reason);
        }
        self.parts.holders.report(peer, &reason);
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.parts.board.lock().on_blame(Blame {
            peer,
            reason,
            at_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
        });
    }

    /// Runs a task that ends with a report; dropped when the engine stops.
    fn spawn(&self, task: impl Future<Output = Option<Report>> + Send + 'static) {
        let reports = self.reports.clone();
        let stop = self.parts.stop.clone();
        tokio::spawn(async move {
            let report = tokio::select! {
                () = stop.cancelled() => None,
                report = task => report,
            };
            if let Some(report) = report {
                // The receiver is gone only once the engine has stopped.
                let _ = reports.send(report).await;
            }
        });
    }

    fn ask_have(&self, peer: PeerId, objects: Vec<Object>) {
        let question = self.parts.source.have(peer, objects.clone(), ASK_WITHIN);
        self.spawn(async move {
            let answers: Vec<Option<Held>> = match question.await {
                Ok(answers) if answers.len() == objects.len() => {
                    answers.into_iter().map(|have| Some(held(have))).collect()
                }
                Ok(_) => vec![None; objects.len()],
                Err(error) => {
                    tracing::debug!(%peer, "did not tell what it has: {error}");
                    vec![None; objects.len()]
                }
            };
            Some(Report::Have {
                peer,
                answers: objects.into_iter().zip(answers).collect(),
            })
        });
    }

    fn ask_load(&self, peer: PeerId) {
        let question = self.parts.source.load(peer, ASK_WITHIN);
        self.spawn(async move {
            // Without an answer the last known load stands.
            let load = question.await.ok()?;
            Some(Report::Load { peer, load })
        });
    }

    fn find_holders(&self, object: Object) {
        let search = self.parts.holders.find(object);
        self.spawn(async move {
            let found = tokio::time::timeout(FIND_WITHIN, search)
                .await
                .unwrap_or_default();
            Some(Report::Holders { object, found })
        });
    }

    fn request(&mut self, id: RequestId, peer: PeerId, object: Object, blocks: Range<u64>) {
        let request = BlockRequest {
            object,
            start: blocks.start,
            end: blocks.end,
        };
        let asked = self.parts.source.blocks(peer, request, ANSWER_WITHIN);
        let cancelled = self.parts.stop.child_token();
        self.running.insert(id, cancelled.clone());
        let store = self.parts.store.clone();
        let verifiers = self.verifiers.clone();
        let reports = self.reports.clone();
        self.spawn(async move {
            let result = tokio::select! {
                () = cancelled.cancelled() => return None,
                result = asked => result,
            };
            let is_shown = blocks.end.saturating_sub(blocks.start) <= SHOWN_BLOCKS_MAX
                && matches!(result, Ok(BlockAnswer::Data(_)));
            // What can be read at once is told at once.
            if !is_shown {
                // The receiver is gone only once the engine has stopped.
                let _ = reports.send(Report::Received(id)).await;
            }
            let readable = async || {
                let _ = reports.send(Report::Readable(id)).await;
            };
            // From here on it can't be cancelled: what has come is worth keeping.
            let answer = settle(store, &verifiers, object, blocks.clone(), result, readable).await;
            Some(Report::Answer {
                id,
                peer,
                object,
                blocks,
                answer,
            })
        });
    }
}

impl Executor {
    /// Leaves out what is here, where the disk may be waited for.
    fn look_ahead(&self, objects: Vec<Object>) {
        let store = self.parts.store.clone();
        self.spawn(async move {
            let lacking = move || {
                let lacks = |object: &Object| {
                    matches!(store.presence(object), Ok(presence) if presence != Presence::Complete)
                };
                objects.into_iter().filter(lacks).collect()
            };
            let objects: Vec<Object> = tokio::task::spawn_blocking(lacking).await.ok()?;
            (!objects.is_empty()).then_some(Report::Ahead(objects))
        });
    }

    fn batch(&mut self, id: RequestId, peer: PeerId, objects: Vec<Object>) {
        let request = BatchRequest(objects.clone());
        let asked = self.parts.source.batch(peer, request, ANSWER_WITHIN);
        let cancelled = self.parts.stop.child_token();
        self.running.insert(id, cancelled.clone());
        let store = self.parts.store.clone();
        let verifiers = self.verifiers.clone();
        let reports = self.reports.clone();
        self.spawn(async move {
            let result = cancelled.run_until_cancelled(asked).await?;
            // The receiver is gone only once the engine has stopped.
            let _ = reports.send(Report::Received(id)).await;
            // From here on it can't be cancelled: what has come is worth keeping.
            let answer = small::settle(store, &verifiers, objects.clone(), result).await;
            Some(Report::Batch {
                id,
                peer,
                objects,
                answer,
            })
        });
    }
}

/// Answers a caller, if there is one. One that went away doesn't care.
fn answer(done: Option<Reply>, result: Result<(), TransferError>) {
    if let Some(done) = done {
        let _ = done.send(result);
    }
}

fn held(have: Have) -> Held {
    match have {
        Have::No => Held::No,
        Have::Part(blocks) => Held::Part(blocks),
        Have::Whole => Held::Whole,
    }
}

/// Verifies and stores what came. `readable` is called where it can be read before it is stored.
async fn settle(
    store: Store,
    verifiers: &Semaphore,
    object: Object,
    blocks: Range<u64>,
    result: Result<BlockAnswer, NetError>,
    readable: impl AsyncFnOnce(),
) -> Answer {
    let stored = |stored: Result<(), StoreError>| match stored {
        Ok(()) => Answer::Blocks,
        Err(error) => Answer::NotStored(error.to_string()),
    };
    let work: Box<dyn FnOnce() -> Answer + Send> = match result {
        Ok(BlockAnswer::Data(encoded))
            if blocks.end.saturating_sub(blocks.start) <= SHOWN_BLOCKS_MAX =>
        {
            // To hash so few takes no longer than to wake another thread for it.
            let shown = match verify_range(object, blocks, &encoded) {
                Ok(range) => store.show(&range, &encoded),
                Err(error) => return Answer::Bad(error.to_string()),
            };
            readable().await;
            // Who waits for it is answered first, by what is to run on this thread next.
            tokio::task::yield_now().await;
            Box::new(move || stored(store.insert_shown(shown)))
        }
        Ok(BlockAnswer::Data(encoded)) => {
            Box::new(move || match verify_range(object, blocks, &encoded) {
                Ok(range) => stored(store.insert(&range)),
                Err(error) => Answer::Bad(error.to_string()),
            })
        }
        Ok(BlockAnswer::WrongSize { size, proof }) => {
            Box::new(move || check_size(object, size, &proof))
        }
        Ok(BlockAnswer::DontHave(have)) => return Answer::DontHave(held(have)),
        Ok(BlockAnswer::Busy) => return Answer::Busy,
        Ok(BlockAnswer::Batch { .. }) => {
            return Answer::Bad("answered another question".to_owned());
        }
        Err(NetError::TimedOut { .. }) => return Answer::TimedOut,
        Err(error) => return Answer::Failed(error.to_string()),
    };
    let Ok(_permit) = verifiers.acquire().await else {
        return Answer::NotStored("the mount is stopping".to_owned());
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Answer::NotStored(error.to_string()),
    }
}

/// Checks the claim that the content has another size: its last block, proven under that size, condemns the entry and
/// blames nobody; anything else blames who claimed it.
fn check_size(object: Object, actual: u64, proof: &[u8]) -> Answer {
    let other = Object {
        content: object.content,
        size: actual,
    };
    let proven = match other.blocks() {
        _ if actual == object.size => false,
        0 => other == Object::empty(),
        blocks => verify_range(other, blocks - 1..blocks, proof).is_ok(),
    };
    if proven {
        Answer::WrongSize { actual }
    } else {
        Answer::Bad("claimed another size without proof".to_owned())
    }
}
