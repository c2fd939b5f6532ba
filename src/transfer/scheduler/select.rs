//! Which blocks to ask for next, and whom.

use std::{ops::Range, time::Duration};

use libp2p::PeerId;
use rand::Rng;

use super::{
    Held, Output, Priority, REQUEST_BLOCKS_MAX, Request, RequestId, Scheduler, WishId, peer::Peer,
    timers::DIRECTORY_AFTER, work::Said,
};
use crate::{
    bucket::Bucket,
    content::{BLOCK_BYTES, BlockSet, Object},
};

/// Pieces of a wish that are looked at to find one to ask for: a window of 64 MiB.
const PIECES_MAX: usize = 64;
/// Requests for an object that are made on a guess: its first piece, and the last block, which proves its size.
const GUESSES_MAX: u32 = 2;
/// Bytes in flight from all peers together; bounds what answers can take in memory. Prefetches stop here, reads that
/// somebody waits for at twice as much.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 64 * 1024 * 1024;

impl Scheduler {
    /// Issues all requests that windows allow: what somebody waits for first, then hedges, then prefetches; wishes of the
    /// same priority in turn.
    pub(super) fn schedule(&mut self, now: Duration) {
        self.serve(now, Priority::Demand);
        self.hedge(now);
        self.issue_batches(now, Priority::Prefetch);
        self.serve(now, Priority::Prefetch);
    }

    fn serve(&mut self, now: Duration, priority: Priority) {
        let mut waiting: Vec<WishId> = self
            .wishes
            .iter()
            .filter(|(id, wish)| wish.priority == priority && !self.waits_for_batch(**id))
            .map(|(id, _)| *id)
            .collect();
        let turn = self.turns.get(&priority).copied();
        let first = waiting.partition_point(|id| turn.is_some_and(|turn| *id <= turn));
        waiting.rotate_left(first);
        // A wish that gets nothing now gets nothing later in the same moment: windows only fill.
        while !waiting.is_empty() {
            waiting.retain(|id| {
                let issued = self.issue_one(now, *id, priority);
                if issued {
                    self.turns.insert(priority, *id);
                }
                issued
            });
        }
    }

    /// Whether anything more may be asked for now. What nobody waits for leaves some room to what somebody may wait for.
    pub(super) fn limit_allows(&mut self, now: Duration, priority: Priority) -> bool {
        let Some(limit) = &mut self.limit else {
            return true;
        };
        let (is_allowed, again_at) = match priority {
            Priority::Demand => (limit.is_open(now), limit.opens_at()),
            Priority::Prefetch => (limit.is_at_ease(now), limit.at_ease_at()),
        };
        if !is_allowed {
            let earliest = self.limited_until.unwrap_or(Duration::MAX);
            self.limited_until = Some(earliest.min(again_at));
        }
        is_allowed
    }

    /// Most blocks of one request: with a low limit few, so that those who wait take turns.
    pub(super) fn request_blocks_max(&self, priority: Priority) -> u64 {
        let parts = match priority {
            Priority::Demand => 1,
            Priority::Prefetch => 2,
        };
        let share = |limit: &Bucket| (limit.share_bytes() / parts / BLOCK_BYTES).max(1);
        self.limit
            .as_ref()
            .map_or(REQUEST_BLOCKS_MAX, share)
            .min(REQUEST_BLOCKS_MAX)
    }

    /// What was asked for does not come.
    pub(super) fn give_back(&mut self, bytes: u64) {
        if let Some(limit) = &mut self.limit {
            limit.give_back(bytes);
        }
    }

    /// Issues one request for a wish, if there is something to ask for and somebody to ask.
    fn issue_one(&mut self, now: Duration, id: WishId, priority: Priority) -> bool {
        let Some(wish) = self.wishes.get(&id) else {
            return false;
        };
        let object = wish.object;
        if !self.limit_allows(now, priority) {
            return false;
        }
        for piece in self.pieces(id, priority) {
            if let Some((peer, blocks)) = self.choose(now, object, &piece, priority, None) {
                self.send(now, object, peer, blocks, None);
                return true;
            }
            if priority == Priority::Demand {
                if let Some((peer, blocks)) = self.probe(now, object, &piece) {
                    self.send(now, object, peer, blocks, None);
                    return true;
                }
                if let Some((peer, blocks)) = self.guess(now, object, &piece) {
                    let request = self.send(now, object, peer, blocks, None);
                    if let Some(request) = request.and_then(|id| self.requests.get_mut(&id)) {
                        request.guessed = true;
                    }
                    return true;
                }
            }
        }
        false
    }

    /// Whom to ask for the last block although nobody says to have any: who holds the content under another size says
    /// "nothing" when asked what it has, and proves the true size when asked for a block. Each peer is asked so once.
    fn probe(
        &mut self,
        now: Duration,
        object: Object,
        piece: &Range<u64>,
    ) -> Option<(PeerId, Range<u64>)> {
        let last = object.blocks().checked_sub(1)?;
        let work = self.works.get_mut(&object)?;
        let too_early = work.since + DIRECTORY_AFTER > now
            && work.holders.values().any(|holder| holder.waiting);
        if work.size_proven
            || too_early
            || !piece.contains(&last)
            || work.holders.values().any(|holder| holder.held != Held::No)
        {
            return None;
        }
        let (id, holder) = work.holders.iter_mut().find(|(id, holder)| {
            !holder.probed
                && holder.said == Said::HasNone
                && !self.blocked.contains(id)
                && self
                    .peers
                    .get(id)
                    .is_some_and(|peer| peer.paused_until <= now)
        })?;
        holder.probed = true;
        Some((*id, last..last + 1))
    }

    /// Whom to ask for the first blocks while nobody has said yet what it has: with a peer that turns out to hold them, the
    /// reader waits for one round trip and not for two, and with another one for no more than without the guess.
    fn guess(
        &mut self,
        now: Duration,
        object: Object,
        piece: &Range<u64>,
    ) -> Option<(PeerId, Range<u64>)> {
        let blocks_max = self.request_blocks_max(Priority::Demand);
        let work = self.works.get_mut(&object)?;
        // Contents of one block are asked for in batches, on a guess as well.
        if work.guesses >= GUESSES_MAX
            || object.blocks() < 2
            || work
                .holders
                .values()
                .any(|holder| holder.said != Said::Nothing)
        {
            return None;
        }
        let blocks =
            |peer: &Peer| piece.start..piece.end.min(piece.start + peer.request_blocks(blocks_max));
        let asked = work.holders.iter().filter(|(_, holder)| holder.waiting);
        let (peer, blocks) = asked
            .filter(|(id, _)| work.guessed.is_none_or(|guessed| guessed == **id))
            .filter_map(|(id, _)| Some((*id, self.peers.get(id)?)))
            .filter(|(id, peer)| peer.paused_until <= now && !self.blocked.contains(id))
            .filter(|(_, peer)| peer.has_room(bytes_of(object, &blocks(peer)), 2))
            .min_by_key(|(id, peer)| (peer.expected(0), *id))
            .map(|(id, peer)| (id, blocks(peer)))?;
        work.guesses += 1;
        work.guessed = Some(peer);
        if let Some(holder) = work.holders.get_mut(&peer) {
            holder.probed |= blocks.end == object.blocks();
        }
        Some((peer, blocks))
    }

    /// Pieces of the wish that nobody was asked for yet, each within one aligned request, in the order to try.
    fn pieces(&mut self, id: WishId, priority: Priority) -> Vec<Range<u64>> {
        let Some(wish) = self.wishes.get(&id) else {
            return Vec::new();
        };
        let Some(work) = self.works.get(&wish.object) else {
            return Vec::new();
        };
        let mut pieces: Vec<Range<u64>> = unasked_pieces(&wish.missing, &work.in_flight).collect();
        if priority == Priority::Prefetch && self.is_swarm(&wish.object) {
            // Rarest first, so that everybody soon has something that others lack; random ties, so that readers who
            // start together ask the source for different parts. With nobody else fetching, order serves the reader.
            let mut rated: Vec<(usize, u64, Range<u64>)> = pieces
                .into_iter()
                .map(|piece| {
                    let copies = work
                        .holders
                        .values()
                        .filter(|holder| holder.held.has(piece.start))
                        .count();
                    (copies, self.rng.random(), piece)
                })
                .collect();
            rated.sort_unstable_by_key(|(copies, tie, _)| (*copies, *tie));
            pieces = rated.into_iter().map(|(_, _, piece)| piece).collect();
        }
        if !work.size_proven {
            let last = wish.object.blocks().saturating_sub(1);
            let proof: Vec<Range<u64>> = work
                .in_flight
                .missing(last..last + 1)
                .into_iter()
                .filter(|proof| wish.missing.contains(proof.clone()))
                .collect();
            // Part of a piece that comes anyway: take that piece first, else the last block alone.
            for block in proof {
                let whole = pieces
                    .iter()
                    .position(|piece| piece.contains(&block.start))
                    .map(|at| pieces.remove(at));
                pieces.insert(0, whole.unwrap_or(block));
            }
        }
        pieces
    }

    /// Whether somebody else is fetching this object too.
    fn is_swarm(&self, object: &Object) -> bool {
        self.works.get(object).is_some_and(|work| {
            work.holders
                .values()
                .any(|holder| matches!(holder.held, Held::Part(_)))
        })
    }

    /// The peer that is expected to bring the first blocks of the piece that can be had soonest, and what of the piece to
    /// ask it for.
    pub(super) fn choose(
        &mut self,
        now: Duration,
        object: Object,
        piece: &Range<u64>,
        priority: Priority,
        not: Option<PeerId>,
    ) -> Option<(PeerId, Range<u64>)> {
        let scale = scale_of(priority);
        let blocks_max = self.request_blocks_max(priority);
        let work = self.works.get(&object)?;
        let ready: Vec<(PeerId, &Peer, Range<u64>)> = work
            .holders
            .iter()
            .filter(|(id, holder)| {
                Some(**id) != not && holder.shunned_until <= now && !self.blocked.contains(id)
            })
            .filter_map(|(id, holder)| {
                let peer = self.peers.get(id).filter(|peer| peer.paused_until <= now)?;
                let run = holder.held.first_run(piece)?;
                let end = run.end.min(run.start + peer.request_blocks(blocks_max));
                let bytes = bytes_of(object, &(run.start..end));
                let fits = self.in_flight_bytes == 0
                    || self.in_flight_bytes + bytes <= IN_FLIGHT_BYTES_MAX * scale;
                (fits && peer.has_room(bytes, scale)).then_some((*id, peer, run.start..end))
            })
            .collect();
        // Blocks that nobody can be asked for now don't hold up those behind them.
        let start = ready.iter().map(|(_, _, blocks)| blocks.start).min()?;
        let mut best: Vec<(PeerId, Range<u64>)> = Vec::new();
        let mut least = Duration::MAX;
        for (id, peer, blocks) in ready {
            if blocks.start > start {
                continue;
            }
            let expected = peer.expected(bytes_of(object, &blocks));
            if expected < least {
                least = expected;
                best.clear();
            }
            if expected == least {
                best.push((id, blocks));
            }
        }
        if best.is_empty() {
            return None;
        }
        let pick = self.rng.random_range(0..best.len());
        Some(best.swap_remove(pick))
    }

    /// Asks a second peer, once, for what a first one is late with and somebody waits for, if that is expected to bring it clearly
    /// sooner: when many answers share one link, all of them are late, and asking twice makes them later.
    fn hedge(&mut self, now: Duration) {
        let late: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, request)| !request.hedged && request.late_at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(request) = self.requests.get(&id) else {
                continue;
            };
            let (object, blocks, first) = (request.object, request.blocks.clone(), request.peer);
            if !self.is_wanted(&object, &blocks, Some(Priority::Demand)) {
                continue;
            }
            match self.choose(now, object, &blocks, Priority::Demand, Some(first)) {
                Some((peer, chosen)) if chosen == blocks && self.is_worth_it(now, id, peer) => {
                    self.send(now, object, peer, blocks, Some(id));
                }
                _ => {}
            }
        }
    }

    /// Whether another peer is expected to answer in less than half of the time that a request has left.
    pub(super) fn is_worth_it(&self, now: Duration, id: RequestId, other: PeerId) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let (Some(first), Some(other)) = (self.peers.get(&request.peer), self.peers.get(&other))
        else {
            return false;
        };
        other.expected(request.bytes) * 2 < first.left(now, request.sent)
    }

    /// Whether a wish (of that priority, or any) still lacks one of these blocks.
    pub(super) fn is_wanted(
        &self,
        object: &Object,
        blocks: &Range<u64>,
        priority: Option<Priority>,
    ) -> bool {
        let Some(work) = self.works.get(object) else {
            return false;
        };
        work.wishes
            .iter()
            .filter_map(|id| self.wishes.get(id))
            .filter(|wish| priority.is_none_or(|priority| wish.priority == priority))
            .any(|wish| !wish.missing.present(blocks.clone()).is_empty())
    }

    fn send(
        &mut self,
        now: Duration,
        object: Object,
        to: PeerId,
        blocks: Range<u64>,
        hedge_of: Option<RequestId>,
    ) -> Option<RequestId> {
        let (Some(peer), Some(work)) = (self.peers.get_mut(&to), self.works.get_mut(&object))
        else {
            return None;
        };
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let bytes = bytes_of(object, &blocks);
        let sent = peer.on_sent(now, bytes);
        if let Some(limit) = &mut self.limit {
            limit.take(now, bytes);
        }
        let request = Request {
            peer: to,
            object,
            blocks: blocks.clone(),
            bytes,
            sent,
            late_at: now + peer.late_after(),
            patience: Some(peer.time_out()),
            hedged: hedge_of.is_some(),
            partner: hedge_of,
            guessed: false,
        };
        work.in_flight.insert(blocks.clone());
        self.in_flight_bytes += bytes;
        self.requests.insert(id, request);
        if let Some(first) = hedge_of.and_then(|first| self.requests.get_mut(&first)) {
            first.hedged = true;
            first.partner = Some(id);
        }
        self.outputs.push_back(Output::Request {
            id,
            peer: to,
            object,
            blocks,
            hedge_of,
        });
        Some(id)
    }
}

/// The first pieces of what is missing and not in flight, each within one aligned request.
pub(super) fn unasked_pieces<'a>(
    missing: &'a BlockSet,
    in_flight: &'a BlockSet,
) -> impl Iterator<Item = Range<u64>> + 'a {
    missing
        .ranges()
        .iter()
        .flat_map(|range| in_flight.missing(range.clone()))
        .flat_map(aligned_pieces)
        .take(PIECES_MAX)
}

/// Cuts a range at multiples of the largest request, so that wishes that overlap ask for the same pieces.
fn aligned_pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = range.start / REQUEST_BLOCKS_MAX;
    let end = range.end.div_ceil(REQUEST_BLOCKS_MAX);
    (first..end).map(move |piece| {
        (piece * REQUEST_BLOCKS_MAX).max(range.start)
            ..((piece + 1) * REQUEST_BLOCKS_MAX).min(range.end)
    })
}

/// How many times its window a peer's queue may be: demand may queue behind prefetches that fill it.
pub(super) fn scale_of(priority: Priority) -> u64 {
    match priority {
        Priority::Demand => 2,
        Priority::Prefetch => 1,
    }
}

/// How many bytes the blocks hold.
fn bytes_of(object: Object, blocks: &Range<u64>) -> u64 {
    let bytes = object.bytes_of(blocks.clone());
    bytes.end - bytes.start
}
