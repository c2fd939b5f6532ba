//! Small contents: fetched in batches, without asking first who has them.
//!
//! A content of one block is first tried so, whether somebody waits for it or not: the peer that is expected to answer soonest
//! is sent a list, and says of each content "here" or "I don't have it". That takes one round trip where a question before it
//! would make it two, and one answer for 256 files where each would take one.
//!
//! Invariants:
//! - A content is tried in one batch at a time; whoever wants one that is on its way joins.
//! - What somebody waits for has one try. Then, or when the batch is late, it goes the ordinary way, which asks everybody. What
//!   nobody waits for is tried at up to [`TRIES_MAX`] peers and then let go.
//! - Batches for what somebody waits for are formed first, and take no more than the windows of peers allow.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use libp2p::PeerId;
use rand::Rng;

use super::{
    Answer, Held, Output, Priority, RequestId, Scheduler, WishId,
    peer::{Peer, Sent},
    select::scale_of,
    work::Said,
};
use crate::{
    content::{BLOCK_BYTES, Object},
    transfer::TransferError,
};

/// Most contents of one batch; the same as the wire's bound.
pub const BATCH_OBJECTS_MAX: usize = 256;
/// Most bytes of one batch; the same as the wire's bound.
pub const BATCH_BYTES_MAX: u64 = 1024 * 1024;
/// Contents that nobody waits for and that wait to be asked for; more are passed over.
const AHEAD_MAX: usize = 4096;
/// Peers at which a content that nobody waits for is tried.
const TRIES_MAX: usize = 3;

/// A content that is to come in a batch.
#[derive(Debug, Default)]
struct Want {
    /// Somebody waits for it.
    is_demand: bool,
    /// Peers that did not bring it.
    tried: Vec<PeerId>,
    /// The batch that it is in.
    flight: Option<RequestId>,
}

/// A batch on its way.
#[derive(Debug)]
struct Flight {
    peer: PeerId,
    objects: Vec<Object>,
    bytes: u64,
    sent: Sent,
    /// When others are asked for what somebody waits for; `None` once that was done.
    late_at: Option<Duration>,
    /// How long its peer may be silent; `None` once the answer is here and being verified.
    patience: Option<Duration>,
}

impl Flight {
    fn expires_at(&self, peers: &BTreeMap<PeerId, Peer>) -> Option<Duration> {
        let heard_at = peers
            .get(&self.peer)
            .map_or(self.sent.at, |peer| peer.heard_since(self.sent));
        Some(heard_at + self.patience?)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batches {
    wants: BTreeMap<Object, Want>,
    /// In the order to ask. What was asked for, or became urgent, since it was put in is passed over.
    demand: VecDeque<Object>,
    ahead: VecDeque<Object>,
    flights: BTreeMap<RequestId, Flight>,
}

impl Batches {
    fn queue(&mut self, priority: Priority) -> &mut VecDeque<Object> {
        match priority {
            Priority::Demand => &mut self.demand,
            Priority::Prefetch => &mut self.ahead,
        }
    }

    /// The next content to ask for; stays in the queue.
    fn first(&mut self, priority: Priority) -> Option<Object> {
        let is_demand = priority == Priority::Demand;
        while let Some(object) = self.queue(priority).front().copied() {
            let want = self.wants.get(&object);
            if want.is_some_and(|want| want.flight.is_none() && want.is_demand == is_demand) {
                return Some(object);
            }
            self.queue(priority).pop_front();
        }
        None
    }

    fn was_tried(&self, object: &Object, peer: &PeerId) -> bool {
        let want = self.wants.get(object);
        want.is_some_and(|want| want.tried.contains(peer))
    }

    /// When something is due.
    pub(super) fn wakes(&self, peers: &BTreeMap<PeerId, Peer>) -> impl Iterator<Item = Duration> {
        self.flights
            .values()
            .flat_map(|flight| [flight.late_at, flight.expires_at(peers)])
            .flatten()
    }
}

impl Scheduler {
    /// Contents of one block, each lacking here, that are worth having soon. What has more blocks, or is on its way, is passed
    /// over, as is what comes while too much waits already.
    pub fn handle_ahead(&mut self, now: Duration, objects: &[Object]) {
        for object in objects {
            if object.blocks() != 1 || self.is_active(object) {
                continue;
            }
            if self.batches.ahead.len() >= AHEAD_MAX {
                break;
            }
            if !self.batches.wants.contains_key(object) {
                self.batches.wants.insert(*object, Want::default());
                self.batches.ahead.push_back(*object);
            }
        }
        self.undecided = Some(now);
    }

    /// A wish for a content of one block came, which is not fetched in the ordinary way yet.
    pub(super) fn try_batch(&mut self, object: Object, priority: Priority) {
        let is_new = !self.batches.wants.contains_key(&object);
        let want = self.batches.wants.entry(object).or_default();
        if priority == Priority::Demand && !want.is_demand {
            want.is_demand = true;
            if want.flight.is_none() {
                self.batches.demand.push_back(object);
            }
        } else if is_new {
            self.batches.ahead.push_back(object);
        }
    }

    /// Nobody wishes for the content any more: it is not asked for. What is under way comes.
    pub(super) fn forget_want(&mut self, object: &Object) {
        let wants = &mut self.batches.wants;
        match wants.get_mut(object) {
            Some(want) if want.flight.is_some() => want.is_demand = false,
            Some(_) => _ = wants.remove(object),
            None => {}
        }
    }

    /// Forms batches as far as there is room at peers.
    pub(super) fn issue_batches(&mut self, now: Duration, priority: Priority) {
        while let Some(first) = self.batches.first(priority) {
            if !self.limit_allows(now, priority) {
                return;
            }
            match self.choose_for_batch(now, &first, priority) {
                Chosen::Peer(peer) => self.send_batch(now, peer, priority),
                Chosen::Later => return,
                Chosen::Nobody => self.end_try(now, &first),
            }
        }
    }

    fn choose_for_batch(&mut self, now: Duration, object: &Object, priority: Priority) -> Chosen {
        let mut best: Vec<PeerId> = Vec::new();
        let mut least = Duration::MAX;
        let mut is_any = false;
        for (id, peer) in &self.peers {
            let may_ask = peer.paused_until <= now
                && !self.blocked.contains(id)
                && !self.batches.was_tried(object, id);
            is_any |= may_ask;
            let fits = peer.has_room(object.size, scale_of(priority), false)
                && self.fits_in_flight(object.size, scale_of(priority));
            if !may_ask || !fits {
                continue;
            }
            let expected = peer.expected_unasked(object.size);
            if expected < least {
                least = expected;
                best.clear();
            }
            if expected == least {
                best.push(*id);
            }
        }
        match best.len() {
            0 if is_any => Chosen::Later,
            0 => Chosen::Nobody,
            count => Chosen::Peer(best.swap_remove(self.rng.random_range(0..count))),
        }
    }

    /// Sends a peer as much from the front of the queue as fits one batch, and its window.
    fn send_batch(&mut self, now: Duration, to: PeerId, priority: Priority) {
        let id = RequestId(self.next_request);
        let (mut objects, mut bytes) = (Vec::new(), 0);
        while let Some(object) = self.batches.first(priority) {
            let Some(peer) = self.peers.get(&to) else {
                return;
            };
            let with = bytes + object.size;
            // A slow peer gets what it can send in about a second.
            let bytes_max = peer.request_blocks(self.request_blocks_max(priority)) * BLOCK_BYTES;
            let bytes_max = bytes_max.min(BATCH_BYTES_MAX);
            let fits = objects.len() < BATCH_OBJECTS_MAX
                && with <= bytes_max
                && peer.has_room(with, scale_of(priority), false)
                && self.fits_in_flight(with, scale_of(priority));
            // The first one was chosen for the peer.
            if !objects.is_empty() && (!fits || self.batches.was_tried(&object, &to)) {
                break;
            }
            self.batches.queue(priority).pop_front();
            // One content under two sizes can't be had in one batch.
            let is_twice = |one: &Object| one.content == object.content;
            if objects.iter().any(is_twice) {
                self.end_try(now, &object);
                continue;
            }
            if let Some(want) = self.batches.wants.get_mut(&object) {
                want.flight = Some(id);
            }
            objects.push(object);
            bytes = with;
        }
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        self.next_request += 1;
        let sent = peer.on_sent(now, bytes);
        if let Some(limit) = &mut self.limit {
            limit.take(now, bytes);
        }
        let flight = Flight {
            peer: to,
            objects: objects.clone(),
            bytes,
            sent,
            late_at: Some(now + peer.late_after()),
            patience: Some(peer.time_out()),
        };
        self.in_flight_bytes += bytes;
        self.batches.flights.insert(id, flight);
        self.outputs.push_back(Output::Batch {
            id,
            peer: to,
            objects,
        });
    }

    /// The contents of a batch were verified and are in the store, as far as `here` says so (in the order asked), or it ended
    /// otherwise. Answers to batches that were cancelled are passed over.
    pub fn handle_batch(&mut self, now: Duration, id: RequestId, answer: Result<&[bool], &Answer>) {
        let Some(flight) = self.end_flight(id) else {
            return;
        };
        match answer {
            Ok(here) => self.judge_batch(now, flight, here),
            Err(answer) => self.judge_failed_batch(now, flight, answer.clone()),
        }
        self.undecided = Some(now);
    }

    fn judge_batch(&mut self, now: Duration, flight: Flight, here: &[bool]) {
        let sent = flight.objects.iter().zip(here).filter(|(_, here)| **here);
        let bytes = sent.map(|(object, _)| object.size).sum();
        self.give_back(flight.bytes.saturating_sub(bytes));
        if let Some(peer) = self.peers.get_mut(&flight.peer) {
            if bytes > 0 {
                peer.on_data(now, flight.sent, bytes);
            } else {
                peer.on_alive();
                peer.on_round_trip(now.saturating_sub(flight.sent.at));
            }
            peer.on_unasked(bytes > 0);
        }
        for (at, object) in flight.objects.iter().enumerate() {
            if here.get(at) == Some(&true) {
                self.batches.wants.remove(object);
                self.note_unasked(now, object, flight.peer, Held::Whole);
                // What nobody asked for by name is announced to nobody: whoever wants it asks for it in a batch as well.
                if self.is_active(object) {
                    self.note_news(now, object, 0..1, None);
                }
                self.arrived(now, *object, 0..1);
                if let Some(work) = self.works.get_mut(object) {
                    work.in_batch = false;
                }
            } else {
                self.note_unasked(now, object, flight.peer, Held::No);
                self.try_again(now, object, flight.peer);
            }
        }
    }

    /// What a peer has of an object that somebody waits for is known now, without asking.
    fn note_unasked(&mut self, now: Duration, object: &Object, peer: PeerId, held: Held) {
        if let Some(work) = self.works.get_mut(object) {
            let holder = work.holders.entry(peer).or_insert_with(super::Holder::new);
            holder.asked_at = Some(now);
            holder.tells(held);
        }
    }

    fn judge_failed_batch(&mut self, now: Duration, flight: Flight, answer: Answer) {
        let Some(first) = flight.objects.first().copied() else {
            return;
        };
        for object in &flight.objects {
            self.try_again(now, object, flight.peer);
        }
        match answer {
            Answer::Busy => {
                self.give_back(flight.bytes);
                if let Some(peer) = self.peers.get_mut(&flight.peer) {
                    peer.on_busy(now);
                }
            }
            Answer::Bad(reason) => self.condemn(now, flight.peer, &first, 0..1, &reason),
            Answer::NotStored(reason) => {
                for object in &flight.objects {
                    self.fail_all(now, object, &TransferError::Store(reason.clone()));
                }
            }
            Answer::TimedOut => self.fault_of(now, flight.peer, flight.sent, Said::TimedOut),
            Answer::Failed(reason) => {
                self.fault_of(now, flight.peer, flight.sent, Said::failed(&reason));
            }
            Answer::Blocks | Answer::DontHave(_) | Answer::WrongSize { .. } => {
                self.fault_of(now, flight.peer, flight.sent, Said::failed("no batch"));
            }
        }
    }

    /// A peer did not bring a content.
    fn try_again(&mut self, now: Duration, object: &Object, peer: PeerId) {
        let Some(want) = self.batches.wants.get_mut(object) else {
            return;
        };
        want.flight = None;
        want.tried.push(peer);
        if want.is_demand || want.tried.len() >= TRIES_MAX {
            self.end_try(now, object);
        } else {
            self.batches.ahead.push_back(*object);
        }
    }

    /// Batches are over for a content: who wishes for it gets it in the ordinary way.
    fn end_try(&mut self, now: Duration, object: &Object) {
        self.batches.wants.remove(object);
        if let Some(work) = self.works.get_mut(object).filter(|work| work.in_batch) {
            work.in_batch = false;
            work.since = now;
        }
    }

    /// Takes a batch out of the books.
    /// Whether a batch is under way.
    pub(super) fn is_batch(&self, id: RequestId) -> bool {
        self.batches.flights.contains_key(&id)
    }

    fn end_flight(&mut self, id: RequestId) -> Option<Flight> {
        let flight = self.batches.flights.remove(&id)?;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(flight.bytes);
        if let Some(peer) = self.peers.get_mut(&flight.peer) {
            peer.on_ended(flight.bytes);
        }
        Some(flight)
    }

    /// Takes back all that a peer was asked for; others are asked.
    pub(super) fn cancel_batches_of(&mut self, now: Duration, peer: PeerId) {
        let flights = self.batches.flights.iter();
        let ids: Vec<RequestId> = flights
            .filter(|(_, flight)| flight.peer == peer)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(flight) = self.end_flight(id) {
                self.outputs.push_back(Output::Cancel { id });
                for object in &flight.objects {
                    self.try_again(now, object, peer);
                }
            }
        }
    }

    /// The answer is here and will be verified: no time-out applies to it any more.
    pub(super) fn batch_received(&mut self, id: RequestId) {
        if let Some(flight) = self.batches.flights.get_mut(&id) {
            flight.patience = None;
            flight.late_at = None;
        }
    }

    /// Gives up batches that are too late, and asks others for what somebody waits for in late ones.
    pub(super) fn expire_batches(&mut self, now: Duration) {
        let is_over = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let flights = self.batches.flights.iter();
        let due: Vec<(RequestId, bool)> = flights
            .map(|(id, flight)| (id, flight, is_over(flight.expires_at(&self.peers))))
            .filter(|(_, flight, is_expired)| is_over(flight.late_at) || *is_expired)
            .map(|(id, _, is_expired)| (*id, is_expired))
            .collect();
        for (id, is_expired) in due {
            if is_expired {
                if let Some(flight) = self.end_flight(id) {
                    self.outputs.push_back(Output::Cancel { id });
                    self.judge_failed_batch(now, flight, Answer::TimedOut);
                }
                continue;
            }
            let Some(flight) = self.batches.flights.get_mut(&id) else {
                continue;
            };
            flight.late_at = None;
            // With nobody else to ask, asking again would only make it later.
            if self.peers.len() < 2 {
                continue;
            }
            for object in flight.objects.clone() {
                let wants = &self.batches.wants;
                if wants.get(&object).is_some_and(|want| want.is_demand) {
                    self.end_try(now, &object);
                }
            }
        }
    }

    /// Whether the wish waits for a batch: the ordinary way then leaves it alone.
    pub(super) fn waits_for_batch(&self, id: WishId) -> bool {
        let wish = self.wishes.get(&id);
        let work = wish.and_then(|wish| self.works.get(&wish.object));
        work.is_some_and(|work| work.in_batch)
    }
}

/// Whom to ask.
enum Chosen {
    Peer(PeerId),
    /// Somebody has no room now.
    Later,
    /// Nobody is left.
    Nobody,
}
