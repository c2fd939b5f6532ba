//! The scheduler: decides which blocks to ask whom for, when to give up, and whom to blame.
//!
//! Pure: time comes in as the [`Duration`] since some fixed moment, randomness as a seed, and everything to be done goes
//! out as [`Output`]s. After one or more inputs the caller drains [`Scheduler::poll_output`], which decides once for all of them,
//! and calls [`Scheduler::handle_timeout`] at [`Scheduler::poll_timeout`]. It iterates over ordered maps only: a seed and a
//! sequence of inputs replay exactly.
//!
//! Invariants:
//! - A block that a wish lacks is either unasked or in flight; it is in flight from one peer, or from two when the
//!   second request is the hedge of the first.
//! - With a limit on what comes in, nothing is asked for that would exceed it, and no wish fails for having waited for that.
//! - A peer whose answer didn't verify is never asked for blocks again.
//! - A wish ends: it is done, fails, or is given up. It fails when it made no progress for the time-out. Part of an answer is
//!   progress; so is any answer of a peer that has too much to send to be asked for more.
//! - A peer from which bytes come fails no request, however slow it is. It is asked for less at once, and others are asked in its
//!   place where they are clearly faster.
//! - A wish for an object whose size isn't proven includes the object's last block, so it isn't done before the proof.

mod batches;
mod crowd;
mod news;
mod peer;
mod select;
mod timers;
mod types;
mod work;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod swarm;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    time::Duration,
};

use libp2p::PeerId;
use rand::{SeedableRng, rngs::StdRng};

pub use self::batches::{BATCH_BYTES_MAX, BATCH_OBJECTS_MAX};
pub use self::types::{Answer, Held, Output, Priority, RequestId, Verdict, Wanted, WishId};
use self::{
    batches::Batches,
    news::News,
    peer::{Peer, Sent},
    work::{Holder, Said, Work},
};
use super::TransferError;
use crate::{
    bucket::Bucket,
    content::{BlockSet, Object},
};

/// Most blocks of one request (1 MiB); the same as the wire's bound.
pub const REQUEST_BLOCKS_MAX: u64 = 16;
/// A peer that lacked something is asked again after this, when somebody waits for blocks that nobody is known to have.
const RETRY_LACKING: Duration = Duration::from_secs(2);
/// What is known of an object's holders is kept this long after its last wish, so that a reader who goes on reading
/// needn't ask again.
const LINGER: Duration = Duration::from_secs(60);
/// Objects without wishes that are remembered.
const LINGERING_MAX: usize = 1024;
/// Wishes to fetch ahead that are kept at a time; more are refused.
const PREFETCHES_MAX: usize = 1024;
/// Sizes that are being proven behind reads at a time; behind further reads nothing is proven.
const PROOFS_MAX: usize = 64;
/// Longest time for that.
const PROOF_WITHIN: Duration = Duration::from_secs(20);
/// Longest time-out; longer ones come to the same.
const READ_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Ranges kept of what one peer has of one object.
const HELD_RANGES_MAX: usize = 4096;

#[derive(Debug)]
struct Wish {
    object: Object,
    priority: Priority,
    /// See [`Wanted::to_read`].
    to_read: bool,
    /// What it still lacks; with the object's last block where that is waited for to prove the size.
    missing: BlockSet,
    /// What of that nobody is asked for: kept, because it is looked at far more often than it changes.
    unasked: BlockSet,
    /// Nobody waits for it: it has the size proven of an object of which somebody has read other blocks.
    is_proof: bool,
    /// When one of its blocks came last, or when it was made.
    progress_at: Duration,
}

#[derive(Debug)]
struct Request {
    peer: PeerId,
    object: Object,
    blocks: Range<u64>,
    bytes: u64,
    sent: Sent,
    late_at: Duration,
    /// How long its peer may be silent; `None` once the answer is here and being verified: from then on it isn't the peer that
    /// is slow.
    patience: Option<Duration>,
    /// Has or is a hedge: at most one at a time.
    hedged: bool,
    /// The other request for the same blocks, while both are under way.
    partner: Option<RequestId>,
    /// Asked of a peer that has not said what it has.
    guessed: bool,
}

impl Wish {
    /// Blocks are here.
    fn has(&mut self, blocks: &Range<u64>) {
        self.missing.remove(blocks.clone());
        self.unasked.remove(blocks.clone());
    }

    /// Somebody is asked for blocks.
    fn is_asked_for(&mut self, blocks: &Range<u64>) {
        self.unasked.remove(blocks.clone());
    }

    /// Nobody is asked for blocks any more.
    fn is_not_asked_for(&mut self, blocks: &Range<u64>) {
        for lacked in self.missing.present(blocks.clone()) {
            self.unasked.insert(lacked);
        }
    }
}

/// What of these blocks nobody is asked for.
fn unasked_of(missing: &BlockSet, in_flight: &BlockSet) -> BlockSet {
    let mut unasked = BlockSet::default();
    let ranges = missing.ranges().iter();
    for range in ranges.flat_map(|range| in_flight.missing(range.clone())) {
        unasked.insert(range);
    }
    unasked
}

/// The scheduler of one mount.
#[derive(Debug)]
pub struct Scheduler {
    read_timeout: Duration,
    rng: StdRng,
    /// This member's number among those who share the work, where it takes part in that.
    local_key: Option<u64>,
    peers: BTreeMap<PeerId, Peer>,
    blocked: BTreeSet<PeerId>,
    wishes: BTreeMap<WishId, Wish>,
    works: BTreeMap<Object, Work>,
    requests: BTreeMap<RequestId, Request>,
    batches: Batches,
    news: News,
    next_request: u64,
    in_flight_bytes: u64,
    /// The limit on what comes in.
    limit: Option<Bucket>,
    /// When what another member was to fetch may be fetched from a source.
    awaited_until: Duration,
    /// When something that waits for the limit may be asked for.
    limited_until: Option<Duration>,
    /// The wish of each priority that was served last.
    turns: BTreeMap<Priority, WishId>,
    /// Peers that are to be asked what they have.
    questions: BTreeSet<(Object, PeerId)>,
    outputs: VecDeque<Output>,
    /// When the last input came, where nothing was decided since.
    undecided: Option<Duration>,
    wake_at: Option<Duration>,
    rejected: u64,
}

impl Scheduler {
    /// A scheduler that knows nobody. `read_timeout` is how long a wish may be without progress; `seed` decides random ties.
    pub fn new(read_timeout: Duration, seed: u64) -> Self {
        Self {
            read_timeout: read_timeout.min(READ_TIMEOUT_MAX),
            rng: StdRng::seed_from_u64(seed),
            local_key: None,
            peers: BTreeMap::new(),
            blocked: BTreeSet::new(),
            wishes: BTreeMap::new(),
            works: BTreeMap::new(),
            requests: BTreeMap::new(),
            batches: Batches::default(),
            news: News::default(),
            next_request: 0,
            in_flight_bytes: 0,
            limit: None,
            awaited_until: Duration::MAX,
            limited_until: None,
            turns: BTreeMap::new(),
            questions: BTreeSet::new(),
            outputs: VecDeque::new(),
            undecided: None,
            wake_at: None,
            rejected: 0,
        }
    }

    /// From now on asks for no more than so many bytes in a second, from all peers together; with a little more at a time.
    pub fn limit(&mut self, bytes_per_s: u64) {
        self.limit = Some(Bucket::new(bytes_per_s));
    }

    /// Says who this is: from now on it shares the work with others that fetch the same object.
    pub fn take_part(&mut self, local: PeerId) {
        self.local_key = Some(crowd::key_of(&local));
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(now) = self.undecided.take() {
            self.decide(now);
        }
        self.outputs.pop_front()
    }

    /// When to call [`Scheduler::handle_timeout`], if nothing else happens before; once there is no output left.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.undecided.or(self.wake_at)
    }

    /// Blocks of answers that failed verification.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Whether anything is asked of anybody now: what comes is to be counted.
    pub fn is_busy(&self) -> bool {
        self.in_flight_bytes > 0
    }

    /// Bytes of blocks that are asked for and haven't come.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// As many may be at most.
    pub fn in_flight_bytes_max() -> u64 {
        select::IN_FLIGHT_BYTES_MAX * select::scale_of(Priority::Demand)
    }

    /// Whether wishes for the object are unfinished.
    pub fn is_active(&self, object: &Object) -> bool {
        let work = self.works.get(object).into_iter();
        let mut wishes = work
            .flat_map(|work| &work.wishes)
            .filter_map(|id| self.wishes.get(id));
        wishes.any(|wish| !wish.is_proof)
    }

    /// Who was asked for the object and what they said, in words.
    pub fn summary(&self, object: &Object) -> String {
        self.works.get(object).map_or_else(String::new, |work| {
            work.summary(self.peers.len().saturating_sub(self.blocked_peers()))
        })
    }

    fn blocked_peers(&self) -> usize {
        self.peers
            .keys()
            .filter(|peer| self.blocked.contains(peer))
            .count()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.undecided = Some(now);
    }

    /// Somebody wants blocks. False when there are too many wishes of that priority; the wish is then not taken.
    pub fn handle_wish(&mut self, now: Duration, id: WishId, wanted: Wanted<'_>) -> bool {
        let Wanted {
            object,
            blocks,
            priority,
            to_read,
            present,
            size_proven,
        } = wanted;
        if priority == Priority::Prefetch
            && self
                .wishes
                .values()
                .filter(|wish| wish.priority == Priority::Prefetch && !wish.is_proof)
                .count()
                >= PREFETCHES_MAX
        {
            return false;
        }
        let all = object.blocks();
        let mut missing = BlockSet::default();
        for range in present.missing(blocks.start.min(all)..blocks.end.min(all)) {
            missing.insert(range);
        }
        if !size_proven && !to_read && all > 0 {
            missing.insert(all - 1..all);
        }
        if missing.is_empty() {
            self.outputs.push_back(Output::Done { wish: id });
            return true;
        }
        self.forget_idle(now);
        let work = self
            .works
            .entry(object)
            .or_insert_with(|| Work::new(now, size_proven));
        work.size_proven = size_proven;
        let is_first = work.wishes.is_empty();
        if is_first {
            work.since = now;
            // Where a holder is known, one round trip is enough anyway.
            let is_known = work.holders.values().any(|one| one.held == Held::Whole);
            work.in_batch = all == 1 && !is_known;
        }
        let in_batch = work.in_batch;
        let unasked = unasked_of(&missing, &work.in_flight);
        work.wishes.insert(id);
        self.wishes.insert(
            id,
            Wish {
                object,
                priority,
                to_read,
                missing,
                unasked,
                is_proof: false,
                progress_at: now,
            },
        );
        if in_batch {
            self.try_batch(object, priority);
        }
        self.undecided = Some(now);
        true
    }

    /// Nobody waits for the wish any more.
    pub fn handle_give_up(&mut self, now: Duration, id: WishId) {
        if let Some(wish) = self.remove_wish(now, id) {
            self.cancel_unwanted(&wish.object);
            self.undecided = Some(now);
        }
    }

    /// A peer is there. `round_trip` where it has been measured already.
    pub fn handle_peer_up(&mut self, now: Duration, id: PeerId, round_trip: Option<Duration>) {
        let peer = self.peers.entry(id).or_insert_with_key(Peer::new);
        if let Some(round_trip) = round_trip {
            peer.on_round_trip(round_trip);
        }
        for work in self.works.values_mut() {
            work.holders.remove(&id);
        }
        self.undecided = Some(now);
    }

    /// A peer went away. What it was asked for is asked of others.
    pub fn handle_peer_down(&mut self, now: Duration, id: PeerId) {
        self.cancel_requests_of(now, id);
        self.peers.remove(&id);
        for work in self.works.values_mut() {
            let Some(holder) = work.holders.get_mut(&id) else {
                continue;
            };
            if holder.held != Held::No {
                // Where nobody else is left, it is asked anew at once: trackers may know where the peer has gone.
                work.directory.asked_at = None;
            }
            holder.held = Held::No;
            holder.waiting = false;
            holder.asked_at = None;
            if holder.said != Said::Bad {
                holder.said = Said::Left;
            }
        }
        self.undecided = Some(now);
    }

    /// The peers that are there, after events were missed.
    pub fn handle_peers(&mut self, now: Duration, present: &[(PeerId, Option<Duration>)]) {
        let present: BTreeMap<PeerId, Option<Duration>> = present.iter().copied().collect();
        let gone: Vec<PeerId> = self
            .peers
            .keys()
            .filter(|peer| !present.contains_key(peer))
            .copied()
            .collect();
        for peer in gone {
            self.handle_peer_down(now, peer);
        }
        for (peer, round_trip) in present {
            if !self.peers.contains_key(&peer) {
                self.handle_peer_up(now, peer, round_trip);
            }
        }
    }

    /// A peer answered [`Output::AskHave`], or (`None`) could not be asked.
    pub fn handle_have(&mut self, now: Duration, id: PeerId, object: Object, held: Option<Held>) {
        let Some(holder) = self
            .works
            .get_mut(&object)
            .and_then(|work| work.holders.get_mut(&id))
            .filter(|holder| holder.waiting)
        else {
            return;
        };
        holder.waiting = false;
        match held {
            Some(held) => {
                holder.tells(bounded(held, object));
                if let (Some(asked_at), Some(peer)) = (holder.asked_at, self.peers.get_mut(&id)) {
                    peer.on_round_trip(now.saturating_sub(asked_at));
                }
            }
            None => holder.said = Said::NoHaveAnswer,
        }
        self.undecided = Some(now);
    }

    /// A peer told its load: how many block answers it is working on.
    pub fn handle_load(&mut self, _now: Duration, id: PeerId, load: u32) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.on_load(load);
        }
    }

    /// So many bytes of answers have come from a peer so far, over its present connection, those that nobody wants any more
    /// included. To be told often while the peer is asked for anything: with that, who is slow is told from who is gone.
    pub fn handle_progress(&mut self, now: Duration, id: PeerId, bytes: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if !peer.on_progress(now, bytes) {
            return;
        }
        let coming = self.requests.values().filter(|request| request.peer == id);
        for request in coming {
            let Some(work) = self.works.get(&request.object) else {
                continue;
            };
            for wish in &work.wishes {
                if let Some(wish) = self.wishes.get_mut(wish)
                    && wish.missing.intersects(&request.blocks)
                {
                    wish.progress_at = now;
                }
            }
        }
        self.undecided = Some(now);
    }

    /// The peers that are asked for something now.
    pub fn busy_peers(&self) -> Vec<PeerId> {
        let busy = self.peers.iter().filter(|(_, peer)| peer.queued_bytes > 0);
        busy.map(|(id, _)| *id).collect()
    }

    /// A peer announced blocks by itself. Of interest only for objects that are or lately were wanted.
    pub fn handle_announcement(
        &mut self,
        now: Duration,
        id: PeerId,
        object: Object,
        blocks: BlockSet,
    ) {
        if !self.peers.contains_key(&id) || blocks.is_empty() {
            return;
        }
        let Some(work) = self.works.get_mut(&object) else {
            return;
        };
        let holder = work.holders.entry(id).or_insert_with(Holder::new);
        holder.fetches_at = Some(now);
        let mut held = std::mem::replace(&mut holder.held, Held::No);
        held.add(&blocks);
        holder.tells(bounded(held, object));
        holder.shunned_until = Duration::ZERO;
        self.undecided = Some(now);
    }

    /// A peer asked what is here of the object: most likely it fetches it. Of interest as an announcement is.
    pub fn handle_interest(&mut self, now: Duration, id: PeerId, object: &Object) {
        if !self.peers.contains_key(&id) {
            return;
        }
        if let Some(work) = self.works.get_mut(object) {
            let holder = work.holders.entry(id).or_insert_with(Holder::new);
            if holder.fetches_at.is_none() && !holder.waiting && !work.wishes.is_empty() {
                // Who began later doesn't know that this one fetches it as well, until it is asked.
                holder.asked_at = None;
                self.undecided = Some(now);
            }
            holder.fetches_at = Some(now);
        }
    }

    /// The directory answered [`Output::FindHolders`] (with nobody, or an error, as an empty list).
    pub fn handle_holders(&mut self, now: Duration, object: Object, found: &[PeerId]) {
        let Some(work) = self.works.get_mut(&object) else {
            return;
        };
        work.directory.named = Some(found.len());
        for id in found.iter().filter(|id| self.peers.contains_key(id)) {
            // Worth asking again at once: the directory says it has it.
            if let Some(holder) = work.holders.get_mut(id).filter(|holder| {
                !holder.waiting && matches!(holder.held, Held::No) && now >= holder.shunned_until
            }) {
                holder.asked_at = None;
            }
        }
        self.undecided = Some(now);
    }

    /// Blocks are in the store, whoever brought them.
    pub fn handle_arrived(&mut self, now: Duration, object: Object, blocks: Range<u64>) {
        self.note_news(now, &object, blocks.clone(), None);
        self.arrived(now, object, blocks);
        self.undecided = Some(now);
    }

    /// Whether a request, or a batch, is under way: it has not ended and was not cancelled.
    pub fn is_open(&self, id: RequestId) -> bool {
        self.requests.contains_key(&id) || self.is_batch(id)
    }

    /// The answer to a request is here and will be verified: no time-out applies to it any more.
    pub fn handle_received(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.patience = None;
            request.hedged = true;
        }
        self.batch_received(id);
    }

    /// The answer to a request is here, was verified and can be read, but is not in the store yet: who waits for it need not wait
    /// for that. The request stays under way until then, so nobody asks for the same again.
    pub fn handle_readable(&mut self, now: Duration, id: RequestId) {
        self.handle_received(id);
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (object, blocks) = (request.object, request.blocks.clone());
        self.satisfy(now, &object, &blocks, |wish| wish.to_read);
        self.undecided = Some(now);
    }

    /// A request ended. Answers to cancelled requests are passed over.
    pub fn handle_answer(&mut self, now: Duration, id: RequestId, answer: Answer) {
        if let Some(request) = self.end_request(id) {
            self.judge(now, request, answer);
            self.undecided = Some(now);
        }
    }

    /// The answer to a request that was cancelled meanwhile came after all, and doesn't verify.
    pub fn handle_bad_answer(
        &mut self,
        now: Duration,
        id: PeerId,
        object: Object,
        blocks: Range<u64>,
        reason: &str,
    ) {
        self.condemn(now, id, &object, blocks, reason);
        self.undecided = Some(now);
    }

    fn judge(&mut self, now: Duration, request: Request, answer: Answer) {
        if matches!(answer, Answer::DontHave(_) | Answer::Busy) {
            self.give_back(request.bytes);
        }
        let (id, object) = (request.peer, request.object);
        let round_trip = now.saturating_sub(request.sent.at);
        match answer {
            Answer::Blocks => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.on_data(now, request.sent, request.bytes);
                }
                self.note(&object, id, Said::Sent);
                self.note_news(now, &object, request.blocks.clone(), Some(id));
                self.arrived(now, object, request.blocks);
            }
            Answer::DontHave(held) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.on_alive();
                    peer.on_round_trip(round_trip);
                }
                if let Some(holder) = self.holder(&object, id) {
                    // Whatever it claims to have now, it isn't these.
                    let mut held = bounded(held, object);
                    held.remove(request.blocks, object.blocks());
                    if request.guessed {
                        // It was asked before it could say so. What it said meanwhile stands.
                        if holder.said == Said::Nothing {
                            holder.tells(held);
                        }
                        return;
                    }
                    holder.tells(held);
                    holder.shunned_until = now + RETRY_LACKING;
                    holder.said = Said::DoesNotHave;
                }
            }
            Answer::Busy => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.on_busy(now);
                }
                self.note(&object, id, Said::Busy);
            }
            Answer::WrongSize { actual } => {
                let error = TransferError::WrongSize {
                    claimed: object.size,
                    actual,
                };
                self.fail_all(now, &object, &error);
            }
            Answer::Bad(reason) => self.condemn(now, id, &object, request.blocks, &reason),
            Answer::Failed(reason) => self.fault(now, &request, Said::failed(&reason)),
            Answer::TimedOut => self.fault(now, &request, Said::TimedOut),
            Answer::NotStored(reason) => {
                let wanting: Vec<WishId> = self
                    .wishes
                    .iter()
                    .filter(|(_, wish)| {
                        wish.object == object && wish.missing.intersects(&request.blocks)
                    })
                    .map(|(id, _)| *id)
                    .collect();
                for wish in wanting {
                    self.fail(now, wish, TransferError::Store(reason.clone()));
                }
                self.cancel_unwanted(&object);
            }
        }
    }

    /// A request failed or timed out: the third in a row drops the peer.
    fn fault(&mut self, now: Duration, request: &Request, said: Said) {
        self.note(&request.object, request.peer, said.clone());
        self.fault_of(now, request.peer, request.sent, said);
    }

    fn fault_of(&mut self, now: Duration, id: PeerId, sent: Sent, said: Said) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.on_failure(now, sent, said == Said::TimedOut) {
            let reason = format!("three requests in a row failed, the last one: {said}");
            self.cancel_requests_of(now, id);
            self.outputs.push_back(Output::Verdict {
                peer: id,
                verdict: Verdict::Dropped,
                reason,
            });
        }
    }

    /// A peer sent something that doesn't verify: it is never asked again.
    fn condemn(
        &mut self,
        now: Duration,
        id: PeerId,
        object: &Object,
        blocks: Range<u64>,
        reason: &str,
    ) {
        self.rejected += blocks.end - blocks.start;
        self.note(object, id, Said::Bad);
        if self.blocked.insert(id) {
            self.cancel_requests_of(now, id);
            self.outputs.push_back(Output::Verdict {
                peer: id,
                verdict: Verdict::Blocked,
                reason: work::cut(reason).to_owned(),
            });
        }
    }

    fn holder(&mut self, object: &Object, id: PeerId) -> Option<&mut Holder> {
        self.works.get_mut(object)?.holders.get_mut(&id)
    }

    fn note(&mut self, object: &Object, id: PeerId, said: Said) {
        if let Some(holder) = self.holder(object, id) {
            holder.said = said;
        }
    }

    fn arrived(&mut self, now: Duration, object: Object, blocks: Range<u64>) {
        let Some(work) = self.works.get_mut(&object) else {
            return;
        };
        let last = object.blocks().saturating_sub(1);
        work.size_proven |= blocks.contains(&last);
        self.satisfy(now, &object, &blocks, |_| true);
        let overlapping: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, request)| {
                request.object == object
                    && request.blocks.start < blocks.end
                    && blocks.start < request.blocks.end
            })
            .map(|(id, _)| *id)
            .collect();
        self.cancel_of(overlapping);
    }

    /// Some of the wishes for the object lack these blocks no longer.
    fn satisfy(
        &mut self,
        now: Duration,
        object: &Object,
        blocks: &Range<u64>,
        which: impl Fn(&Wish) -> bool,
    ) {
        let Some(work) = self.works.get(object) else {
            return;
        };
        let mut done = Vec::new();
        for id in &work.wishes {
            let wish = self.wishes.get_mut(id);
            let Some(wish) = wish.filter(|wish| which(wish)) else {
                continue;
            };
            if wish.missing.intersects(blocks) {
                wish.progress_at = now;
                wish.has(blocks);
                if wish.missing.is_empty() {
                    done.push(*id);
                }
            }
        }
        for id in done {
            let wish = self.remove_wish(now, id);
            let Some(wish) = wish.filter(|wish| !wish.is_proof) else {
                continue;
            };
            self.outputs.push_back(Output::Done { wish: id });
            if wish.to_read {
                self.prove(now, id, wish.object);
            }
        }
    }

    /// Has the size of an object proven, behind a read of other blocks than its last: under the name of the wish that is done. A
    /// block that matches the content's hash stands where it was asked for, whatever the size: its place is part of what is
    /// hashed. So a wrong size gives nobody wrong bytes, but an end where there is none, and the last block tells.
    fn prove(&mut self, now: Duration, id: WishId, object: Object) {
        let Some(work) = self.works.get_mut(&object) else {
            return;
        };
        let wishes = &self.wishes;
        let mut open = work.wishes.iter().filter_map(|id| wishes.get(id));
        let is_full = || wishes.values().filter(|wish| wish.is_proof).count() >= PROOFS_MAX;
        if work.size_proven || open.any(|wish| wish.is_proof) || is_full() {
            return;
        }
        let last = object.blocks().saturating_sub(1);
        let missing = BlockSet::of(last..last + 1);
        let unasked = unasked_of(&missing, &work.in_flight);
        work.wishes.insert(id);
        let proof = Wish {
            object,
            priority: Priority::Prefetch,
            to_read: false,
            missing,
            unasked,
            is_proof: true,
            progress_at: now,
        };
        self.wishes.insert(id, proof);
    }

    fn fail(&mut self, now: Duration, id: WishId, error: TransferError) {
        if self.remove_wish(now, id).is_some_and(|wish| !wish.is_proof) {
            self.outputs.push_back(Output::Failed { wish: id, error });
        }
    }

    fn fail_all(&mut self, now: Duration, object: &Object, error: &TransferError) {
        let wishes: Vec<WishId> = self
            .works
            .get(object)
            .map(|work| work.wishes.iter().copied().collect())
            .unwrap_or_default();
        for wish in wishes {
            self.fail(now, wish, error.clone());
        }
        self.cancel_unwanted(object);
    }

    fn remove_wish(&mut self, now: Duration, id: WishId) -> Option<Wish> {
        let wish = self.wishes.remove(&id)?;
        if let Some(work) = self.works.get_mut(&wish.object) {
            work.wishes.remove(&id);
            if work.wishes.is_empty() {
                work.since = now;
                if std::mem::take(&mut work.in_batch) {
                    self.forget_want(&wish.object);
                }
            }
        }
        Some(wish)
    }

    /// Takes a request out of the books. Its blocks can be asked for again, unless its partner is still under way.
    fn end_request(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(request.bytes);
        if let Some(peer) = self.peers.get_mut(&request.peer) {
            peer.on_ended(request.bytes);
        }
        match request
            .partner
            .and_then(|partner| self.requests.get_mut(&partner))
        {
            Some(partner) => {
                partner.partner = None;
                // As late as before, unless it is here by now: a third may be asked.
                partner.hedged &= partner.patience.is_none();
            }
            None => {
                if let Some(work) = self.works.get_mut(&request.object) {
                    work.in_flight.remove(request.blocks.clone());
                    for id in &work.wishes {
                        if let Some(wish) = self.wishes.get_mut(id) {
                            wish.is_not_asked_for(&request.blocks);
                        }
                    }
                }
            }
        }
        Some(request)
    }

    fn cancel(&mut self, id: RequestId) {
        if self.end_request(id).is_some() {
            self.outputs.push_back(Output::Cancel { id });
        }
    }

    fn cancel_requests_of(&mut self, now: Duration, peer: PeerId) {
        self.cancel_batches_of(now, peer);
        let requests: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, request)| request.peer == peer)
            .map(|(id, _)| *id)
            .collect();
        for id in requests {
            self.cancel(id);
        }
    }

    /// Cancels the requests for the object that no wish needs any more.
    fn cancel_unwanted(&mut self, object: &Object) {
        let requests = self
            .requests
            .iter()
            .filter(|(_, request)| request.object == *object)
            .map(|(id, _)| *id)
            .collect();
        self.cancel_of(requests);
    }

    /// Cancels those of the requests that no wish needs any more.
    fn cancel_of(&mut self, requests: Vec<RequestId>) {
        for id in requests {
            let unwanted = self
                .requests
                .get(&id)
                .is_some_and(|request| !self.is_wanted(&request.object, &request.blocks, None));
            if unwanted {
                self.cancel(id);
            }
        }
    }

    /// Forgets objects that nobody wanted for a while.
    fn forget_idle(&mut self, now: Duration) {
        let mut idle: Vec<(Duration, Object)> = self
            .works
            .iter()
            .filter(|(_, work)| work.wishes.is_empty())
            .map(|(object, work)| (work.since, *object))
            .collect();
        idle.sort_unstable();
        let surplus = idle.len().saturating_sub(LINGERING_MAX);
        for (at, (since, object)) in idle.into_iter().enumerate() {
            if at < surplus || since + LINGER <= now {
                self.works.remove(&object);
            }
        }
    }

    /// Does what is due, then issues what can be issued.
    fn decide(&mut self, now: Duration) {
        self.expire_requests(now);
        self.trim_queues();
        self.expire_batches(now);
        self.expire_wishes(now);
        self.limited_until = None;
        self.awaited_until = Duration::MAX;
        self.tell(now);
        self.issue_batches(now, Priority::Demand);
        self.renew(now);
        self.schedule(now);
        self.ask(now);
        self.wake_at = self.next_wake(now);
    }
}

/// Cuts what a peer claims to the object, and to a bounded number of ranges.
fn bounded(held: Held, object: Object) -> Held {
    let Held::Part(mut blocks) = held else {
        return held;
    };
    blocks.remove(object.blocks()..u64::MAX);
    if let Some(surplus) = blocks.ranges().get(HELD_RANGES_MAX).cloned() {
        blocks.remove(surplus.start..u64::MAX);
    }
    if blocks.is_empty() {
        Held::No
    } else if blocks.contains(0..object.blocks()) {
        Held::Whole
    } else {
        Held::Part(blocks)
    }
}
