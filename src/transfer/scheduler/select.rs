//! Which blocks to ask for next, and whom.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use libp2p::PeerId;
use rand::Rng;

use super::{
    Held, Output, Priority, REQUEST_BLOCKS_MAX, Request, RequestId, Scheduler, WishId,
    crowd::{Crowd, Shared, mix},
    peer::Peer,
    timers::DIRECTORY_AFTER,
    work::{Holder, Said},
};
use crate::{
    bucket::Bucket,
    content::{BLOCK_BYTES, BlockSet, Object},
};

/// Pieces of a wish that are looked at to find one to ask for: a window of 64 MiB.
const PIECES_MAX: usize = 64;
/// The same, where several members share the work in smaller pieces.
const UNITS_MAX: usize = 512;
/// Requests for an object that are made on a guess: its first piece, and the last block, which proves its size.
const GUESSES_MAX: u32 = 2;
/// For so long, after an object is first wanted, what is fetched ahead of it gives way to what somebody waits for.
pub(super) const GIVES_WAY_FOR: Duration = Duration::from_millis(3);
/// Bytes in flight from all peers together; bounds what answers can take in memory. Prefetches stop here, reads that
/// somebody waits for at twice as much.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A peer that may be asked for some of an object.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    id: PeerId,
    pub(super) holder: &'a Holder,
    pub(super) peer: &'a Peer,
    /// It has room for another request.
    is_ready: bool,
}

impl Asking<'_> {
    /// It has all of it.
    fn is_source(&self) -> bool {
        self.holder.held == Held::Whole
    }

    /// It has some of it, the block among that.
    pub(super) fn is_part_with(&self, block: u64) -> bool {
        matches!(&self.holder.held, Held::Part(blocks) if blocks.contains(block..block + 1))
    }

    /// It has some of these, which are in order.
    fn is_of_use(&self, ranges: &[Range<u64>]) -> bool {
        match &self.holder.held {
            Held::No => false,
            Held::Part(blocks) => blocks.intersects_any(ranges),
            Held::Whole => true,
        }
    }
}

/// Whom to ask, for what.
#[derive(Debug)]
struct Choice {
    peer: PeerId,
    blocks: Range<u64>,
    /// The member whose part it was.
    late: Option<PeerId>,
}

impl Scheduler {
    /// Issues all requests that windows allow: what somebody waits for first, then hedges, then prefetches; wishes of the
    /// same priority in turn.
    pub(super) fn schedule(&mut self, now: Duration) {
        let works = self.works.iter();
        let active = works.filter(|(_, work)| !work.wishes.is_empty());
        for object in active.map(|(object, _)| *object).collect::<Vec<_>>() {
            self.renew_crowd(now, &object);
        }
        self.serve(now, Priority::Demand);
        self.hedge(now);
        self.issue_batches(now, Priority::Prefetch);
        self.serve(now, Priority::Prefetch);
    }

    fn serve(&mut self, now: Duration, priority: Priority) {
        let mut waiting: Vec<(WishId, Object)> = self
            .wishes
            .iter()
            .filter(|(id, wish)| wish.priority == priority && !self.waits_for_batch(**id))
            .filter(|(_, wish)| priority == Priority::Demand || !self.gives_way(now, &wish.object))
            .map(|(id, wish)| (*id, wish.object))
            .collect();
        let turn = self.turns.get(&priority).copied();
        let first = waiting.partition_point(|(id, _)| turn.is_some_and(|turn| *id <= turn));
        waiting.rotate_left(first);
        // Those for one object are looked at together.
        let mut objects: Vec<(Object, Vec<WishId>)> = Vec::new();
        let mut places = BTreeMap::new();
        for (id, object) in waiting {
            let place = *places.entry(object).or_insert(objects.len());
            match objects.get_mut(place) {
                Some((_, wishes)) => wishes.push(id),
                None => objects.push((object, vec![id])),
            }
        }
        // A wish that gets nothing now gets nothing later in the same moment: windows only fill.
        while !objects.is_empty() {
            objects.retain_mut(|(object, wishes)| {
                let served = self.issue_one(now, *object, wishes, priority);
                if let Some(at) = served {
                    self.turns.extend(wishes.get(at).map(|id| (priority, *id)));
                    wishes.drain(..at);
                    wishes.rotate_left(1);
                }
                served.is_some()
            });
        }
    }

    /// Whether what is fetched ahead of an object waits for a moment: so that a near peer, and this node, do first what somebody
    /// waits for. To one that is far it makes no difference.
    pub(super) fn gives_way(&self, now: Duration, object: &Object) -> bool {
        let is_new = self
            .works
            .get(object)
            .is_some_and(|work| now < work.since + GIVES_WAY_FOR);
        is_new
            && self.requests.values().any(|request| {
                request.object == *object
                    && request.patience.is_some()
                    && self.is_wanted(object, &request.blocks, Some(Priority::Demand))
            })
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

    /// Issues one request for the first of these wishes for an object for which there is something to ask for and somebody to ask.
    /// Tells which of them.
    fn issue_one(
        &mut self,
        now: Duration,
        object: Object,
        wishes: &[WishId],
        priority: Priority,
    ) -> Option<usize> {
        if !self.limit_allows(now, priority) {
            return None;
        }
        let salt = self.rng.random();
        match self.find_one(now, object, wishes, priority, salt) {
            Ok((at, choice)) => {
                if let Some(late) = choice.late {
                    self.excuse(now, &object, late);
                    self.renew_crowd(now, &object);
                }
                self.send(now, object, choice.peer, choice.blocks, None);
                return Some(at);
            }
            Err(awaited_until) => self.awaited_until = self.awaited_until.min(awaited_until),
        }
        // Most of the time all that remains is to wait.
        let is_unknown = self.works.get(&object).is_some_and(|work| {
            !work.size_proven || work.holders.values().all(|one| one.said == Said::Nothing)
        });
        if !is_unknown {
            return None;
        }
        for (at, id) in wishes.iter().enumerate() {
            let is_proof = self.wishes.get(id).is_some_and(|wish| wish.is_proof);
            if priority != Priority::Demand && !is_proof {
                continue;
            }
            let pieces: Vec<Range<u64>> = self.pieces(*id, priority, salt).collect();
            for piece in pieces {
                if let Some((peer, blocks)) = self.probe(now, object, &piece) {
                    self.send(now, object, peer, blocks, None);
                    return Some(at);
                }
                if !is_proof && let Some((peer, blocks)) = self.guess(now, object, &piece) {
                    let request = self.send(now, object, peer, blocks, None);
                    if let Some(request) = request.and_then(|id| self.requests.get_mut(&id)) {
                        request.guessed = true;
                    }
                    return Some(at);
                }
            }
        }
        None
    }

    /// What to ask for, and whom, for the first of the wishes for which there is anything, and which that is.
    ///
    /// # Errors
    /// When it may be worth trying again, if only time is lacking.
    fn find_one(
        &self,
        now: Duration,
        object: Object,
        wishes: &[WishId],
        priority: Priority,
        salt: u64,
    ) -> Result<(usize, Choice), Duration> {
        let crowd = self.works.get(&object).and_then(|work| work.crowd.as_ref());
        let unit = crowd.map_or(1, Crowd::unit_blocks);
        let asking = self.asking(now, &object, priority, unit);
        let mut awaited_until = Duration::MAX;
        // Most of the time all windows are full.
        if !asking.iter().any(|one| one.is_ready) {
            return Err(awaited_until);
        }
        let request_bytes = self.request_blocks_max(priority) * BLOCK_BYTES;
        let parts = asking.iter().filter(|one| !one.is_source());
        let slowest = parts.map(|one| one.peer.expected(request_bytes)).max();
        for (at, id) in wishes.iter().enumerate() {
            let Some(wish) = self.wishes.get(id) else {
                continue;
            };
            let unasked = wish.unasked.ranges();
            if unasked.is_empty() {
                continue;
            }
            let is_of_use = |one: &&Asking<'_>| one.is_ready && one.is_of_use(unasked);
            let ready: Vec<&Asking<'_>> = asking.iter().filter(is_of_use).collect();
            if ready.is_empty() {
                continue;
            }
            let shared = crowd.map(|crowd| Shared {
                crowd,
                asking: &asking,
                slowest: slowest.unwrap_or_default(),
                waited_since: wish.progress_at,
            });
            for piece in self.pieces(*id, priority, salt) {
                match self.choose(now, object, &piece, priority, &ready, shared, salt) {
                    Ok(choice) => return Ok((at, choice)),
                    Err(at) => awaited_until = awaited_until.min(at),
                }
            }
        }
        Err(awaited_until)
    }

    /// Who has some of the object, and whether they have room for so many blocks more, if requests are that large.
    pub(super) fn asking(
        &self,
        now: Duration,
        object: &Object,
        priority: Priority,
        blocks: u64,
    ) -> Vec<Asking<'_>> {
        let scale = scale_of(priority);
        let holders = self.works.get(object).into_iter();
        let is_shared = holders.clone().any(|work| work.crowd.is_some());
        holders
            .flat_map(|work| &work.holders)
            .filter(|(_, holder)| holder.held != Held::No && holder.shunned_until <= now)
            .filter_map(|(id, holder)| {
                let peer = self.peers.get(id)?;
                if peer.paused_until > now || self.blocked.contains(id) {
                    return None;
                }
                let bytes = peer.request_blocks(blocks) * BLOCK_BYTES;
                Some(Asking {
                    id: *id,
                    holder,
                    peer,
                    is_ready: peer.has_room(bytes, scale, is_shared),
                })
            })
            .collect()
    }

    /// Whether so much more may be asked for. A single request always may.
    pub(super) fn fits_in_flight(&self, bytes: u64, scale: u64) -> bool {
        fits(self.in_flight_bytes, bytes, scale)
    }

    /// Whom to ask for a block although nobody says to have it: who holds the content under another size says "nothing" when
    /// asked what it has, and proves the true size when asked for a block. Each peer is asked so once.
    fn probe(
        &mut self,
        now: Duration,
        object: Object,
        piece: &Range<u64>,
    ) -> Option<(PeerId, Range<u64>)> {
        if !self.fits_in_flight(BLOCK_BYTES, 1) {
            return None;
        }
        let work = self.works.get_mut(&object)?;
        let too_early = work.since + DIRECTORY_AFTER > now
            && work.holders.values().any(|holder| holder.waiting);
        if work.size_proven
            || too_early
            || !work.in_flight.is_empty()
            || work.holders.values().any(|one| one.held.has(piece.start))
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
        Some((*id, piece.start..piece.start + 1))
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
        let (in_flight, scale) = (self.in_flight_bytes, scale_of(Priority::Demand));
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
            .filter(|(_, peer)| {
                let bytes = bytes_of(object, &blocks(peer));
                fits(in_flight, bytes, scale) && peer.has_room(bytes, scale, false)
            })
            .min_by_key(|(id, peer)| (peer.expected(0), *id))
            .map(|(id, peer)| (id, blocks(peer)))?;
        work.guesses += 1;
        work.guessed = Some(peer);
        if let Some(holder) = work.holders.get_mut(&peer) {
            holder.probed = true;
        }
        Some((peer, blocks))
    }

    /// Pieces of the wish that nobody was asked for yet, each within one aligned request, in the order to try.
    fn pieces(
        &self,
        id: WishId,
        priority: Priority,
        salt: u64,
    ) -> Box<dyn Iterator<Item = Range<u64>> + '_> {
        let Some(wish) = self.wishes.get(&id) else {
            return Box::new(std::iter::empty());
        };
        let Some(work) = self.works.get(&wish.object) else {
            return Box::new(std::iter::empty());
        };
        let crowd = work.crowd.as_ref();
        let mut pieces: Vec<Range<u64>> = match crowd {
            None => pieces_of(&wish.unasked).collect(),
            Some(crowd) => {
                let units = units_of(&wish.unasked, crowd.unit_blocks()).take(UNITS_MAX);
                if work.size_proven {
                    return Box::new(units);
                }
                units.collect()
            }
        };
        if crowd.is_none() && priority == Priority::Prefetch && self.is_swarm(&wish.object) {
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
                    (copies, mix(salt ^ piece.start), piece)
                })
                .collect();
            rated.sort_unstable_by_key(|(copies, tie, _)| (*copies, *tie));
            pieces = rated.into_iter().map(|(_, _, piece)| piece).collect();
        }
        if !work.size_proven {
            let last = wish.object.blocks().saturating_sub(1);
            let block = last..last + 1;
            // Part of a piece that comes anyway: take that piece first, else the last block alone.
            if wish.unasked.contains(block.clone()) {
                let whole = pieces
                    .iter()
                    .position(|piece| piece.contains(&block.start))
                    .map(|at| pieces.remove(at));
                pieces.insert(0, whole.unwrap_or(block));
            }
        }
        Box::new(pieces.into_iter())
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
    /// ask it for. Where others share the work a source is asked only when it is time for that.
    ///
    /// # Errors
    /// When it may be worth trying again, if only time is lacking.
    #[allow(clippy::too_many_arguments)]
    fn choose(
        &self,
        now: Duration,
        object: Object,
        piece: &Range<u64>,
        priority: Priority,
        ready: &[&Asking<'_>],
        shared: Option<Shared<'_>>,
        salt: u64,
    ) -> Result<Choice, Duration> {
        let scale = scale_of(priority);
        let blocks_max = self.request_blocks_max(priority);
        let able = |one: &Asking<'_>| {
            let run = one.holder.held.first_run(piece)?;
            let end = run.end.min(run.start + one.peer.request_blocks(blocks_max));
            let bytes = bytes_of(object, &(run.start..end));
            let fits = self.fits_in_flight(bytes, scale);
            (fits && one.peer.has_room(bytes, scale, shared.is_some())).then_some(run.start..end)
        };
        let (mut late, mut again_at, mut with_sources) = (None, Duration::MAX, true);
        let mut sources = ready.iter().filter(|one| one.is_source());
        if let Some(shared) = shared
            && let Some((source, blocks)) = sources.find_map(|one| Some((one, able(one)?)))
        {
            let bytes = bytes_of(object, &blocks);
            match shared.source_at(source.peer, piece, bytes, now) {
                (Some(at), whose) if at <= now => late = whose,
                (at, _) => {
                    again_at = at.unwrap_or(Duration::MAX);
                    with_sources = false;
                }
            }
        }
        let asked = ready.iter().filter(|one| with_sources || !one.is_source());
        // Blocks that nobody can be asked for now don't hold up those behind them.
        let mut start = u64::MAX;
        let mut best: Vec<Choice> = Vec::new();
        let mut least = Duration::MAX;
        for (one, blocks) in asked.filter_map(|one| Some((one, able(one)?))) {
            let expected = one.peer.expected(bytes_of(object, &blocks));
            if blocks.start < start || blocks.start == start && expected < least {
                (start, least) = (blocks.start, expected);
                best.clear();
            }
            if blocks.start == start && expected == least {
                best.push(Choice {
                    peer: one.id,
                    blocks,
                    late,
                });
            }
        }
        let pick = salt % (best.len() as u64).max(1);
        let pick = usize::try_from(pick).unwrap_or_default();
        best.into_iter().nth(pick).ok_or(again_at)
    }

    /// The same for blocks that were asked of a peer, and another one.
    pub(super) fn choose_other(
        &mut self,
        now: Duration,
        id: RequestId,
        priority: Priority,
    ) -> Option<PeerId> {
        let salt = self.rng.random();
        let object = self.requests.get(&id)?.object;
        self.renew_crowd(now, &object);
        let request = self.requests.get(&id)?;
        let mut others = self.asking(now, &object, priority, 1);
        others.retain(|one| one.id != request.peer);
        let parts = others.iter().filter(|one| !one.is_source());
        let slowest = parts.map(|one| one.peer.expected(request.bytes)).max();
        let crowd = self.works.get(&object).and_then(|work| work.crowd.as_ref());
        let shared = crowd.map(|crowd| Shared {
            crowd,
            asking: &others,
            slowest: slowest.unwrap_or_default(),
            waited_since: request.sent.at,
        });
        let ready: Vec<&Asking<'_>> = others.iter().filter(|one| one.is_ready).collect();
        let blocks = &request.blocks;
        let choice = self.choose(now, object, blocks, priority, &ready, shared, salt);
        let choice = choice.ok().filter(|choice| choice.blocks == *blocks)?;
        // Clearly sooner: when many answers share one link, all of them are late, and asking twice makes them later.
        let first = self.peers.get(&request.peer)?;
        let other = self.peers.get(&choice.peer)?;
        let is_worth_it = other.expected(request.bytes) * 2 < first.left(now, request.sent);
        is_worth_it.then_some(choice.peer)
    }

    /// Asks a second peer, once, for what a first one is late with and somebody waits for.
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
            let (object, blocks) = (request.object, request.blocks.clone());
            if self.is_wanted(&object, &blocks, Some(Priority::Demand))
                && let Some(other) = self.choose_other(now, id, Priority::Demand)
            {
                self.send(now, object, other, blocks, Some(id));
            }
        }
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
            .any(|wish| wish.missing.intersects(blocks))
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
        for id in &work.wishes {
            if let Some(wish) = self.wishes.get_mut(id) {
                wish.is_asked_for(&blocks);
            }
        }
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

/// The first pieces of these blocks, each within one aligned request.
pub(super) fn pieces_of(blocks: &BlockSet) -> impl Iterator<Item = Range<u64>> {
    units_of(blocks, REQUEST_BLOCKS_MAX).take(PIECES_MAX)
}

/// These blocks, cut at multiples of so many: wishes that overlap ask for the same pieces.
fn units_of(blocks: &BlockSet, unit: u64) -> impl Iterator<Item = Range<u64>> {
    let cut = move |range: &Range<u64>| {
        let (start, end) = (range.start, range.end);
        let units = start / unit..end.div_ceil(unit);
        units.map(move |at| (at * unit).max(start)..((at + 1) * unit).min(end))
    };
    blocks.ranges().iter().flat_map(cut)
}

/// How many times its window a peer's queue may be: demand may queue behind prefetches that fill it.
pub(super) fn scale_of(priority: Priority) -> u64 {
    match priority {
        Priority::Demand => 2,
        Priority::Prefetch => 1,
    }
}

/// Whether so much more fits what may be asked for.
fn fits(in_flight: u64, bytes: u64, scale: u64) -> bool {
    in_flight == 0 || in_flight + bytes <= IN_FLIGHT_BYTES_MAX * scale
}

/// How many bytes the blocks hold.
fn bytes_of(object: Object, blocks: &Range<u64>) -> u64 {
    let bytes = object.bytes_of(blocks.clone());
    bytes.end - bytes.start
}
