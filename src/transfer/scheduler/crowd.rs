//! Several members that fetch the same object at the same time share the work.
//!
//! Each unit of the object has one among them that fetches it from a source; the others have it from that one. Who it is
//! follows from the unit and their ids alone (rendezvous hashing), so nobody needs to agree on anything with anybody: a source sends
//! one copy, and every member passes its part on to all others, which is what uses all uplinks best (Kumar and Ross 2006).
//! Members that see different crowds ask a source for a few units twice, no more.
//!
//! It is a preference and no promise: what somebody waits for is fetched from a source after all when it doesn't come in the time
//! that its member should take, or where a source answers so fast that waiting is not worth it. That member is excused for a while,
//! and its part falls to others. Only who fetches ahead shares the work: who reads here and there waits for no
//! other member.

use std::{cell::RefCell, collections::BTreeMap, ops::Range, time::Duration};

use libp2p::PeerId;

use super::{Held, Priority, Scheduler, peer::Peer, select::Asking};
use crate::content::Object;

/// Who was not heard of for this long fetches no more. Members ask what others have every five seconds.
pub(super) const FETCHES_FOR: Duration = Duration::from_secs(6);
/// How long a member that was late has no part. One that reads here and there never fetches its part.
const EXCUSED_FOR: Duration = Duration::from_secs(2);
/// Units of an object, at most twice as many, as long as they are no smaller than a block.
const UNITS: u64 = 1024;
/// Units that are shared out evenly.
const GROUP_UNITS: u64 = 64;
/// Most blocks of a unit: one request.
const UNIT_BLOCKS_MAX: u64 = super::REQUEST_BLOCKS_MAX;
/// Bounds of the time that somebody else's part may take.
const GRACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// A source is asked for what others have too only where it is so many times faster: its uplink is everybody's.
const SOURCE_COST: u32 = 16;

/// Groups of units of which it is kept whose they are.
const GROUPS_MAX: usize = 64;

/// The members that fetch an object, as one of them sees it.
#[derive(Debug)]
pub(super) struct Crowd {
    /// With this member itself, which has no id here.
    members: Vec<(u64, Option<PeerId>)>,
    unit: u64,
    /// Whose the units of a group are, for groups that were asked about: places among the members.
    groups: RefCell<BTreeMap<u64, Vec<usize>>>,
}

impl Crowd {
    /// Blocks of a unit; an aligned range.
    pub(super) fn unit_blocks(&self) -> u64 {
        self.unit
    }

    /// Whose part a block is: `None` for this member's own.
    fn whose(&self, block: u64) -> Option<PeerId> {
        let unit = block / self.unit;
        let mut groups = self.groups.borrow_mut();
        if groups.len() > GROUPS_MAX {
            groups.clear();
        }
        let group = groups
            .entry(unit / GROUP_UNITS)
            .or_insert_with_key(|group| self.share_out(*group));
        let at = usize::try_from(unit % GROUP_UNITS).unwrap_or_default();
        let (_, whose) = self.members.get(*group.get(at)?)?;
        *whose
    }

    /// Each unit goes to the member whose number, mixed with the unit's, is the largest, among those that have not yet had as many
    /// as all others.
    fn share_out(&self, group: u64) -> Vec<usize> {
        let each = GROUP_UNITS.div_ceil(self.members.len() as u64);
        let mut left = vec![each; self.members.len()];
        let units = group * GROUP_UNITS..(group + 1) * GROUP_UNITS;
        units
            .filter_map(|unit| {
                let ranked = self.members.iter().zip(&mut left).enumerate();
                let (at, (_, left)) = ranked
                    .filter(|(_, (_, left))| **left > 0)
                    .max_by_key(|(_, ((key, _), _))| mix(key ^ unit))?;
                *left -= 1;
                Some(at)
            })
            .collect()
    }

    /// How a piece of so many bytes stands, as far as those go who may be asked.
    fn turn(&self, piece: &Range<u64>, bytes: u64, asking: &[Asking<'_>]) -> Turn {
        let others = asking
            .iter()
            .filter(|one| one.is_part_with(piece.start))
            .map(|one| one.peer.expected(bytes));
        match others.min() {
            Some(soonest) => Turn::Theirs(soonest),
            None => self.whose(piece.start).map_or(Turn::Mine, Turn::Awaited),
        }
    }

    fn len(&self) -> u32 {
        u32::try_from(self.members.len() - 1).unwrap_or(u32::MAX)
    }
}

/// Spreads what differs in one bit over all bits (splitmix64's finisher).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A number for a member, the same everywhere (FNV-1a).
pub(super) fn key_of(id: &PeerId) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(id.to_bytes().into_iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// What several members share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a> {
    pub(super) crowd: &'a Crowd,
    /// Those who may be asked.
    pub(super) asking: &'a [Asking<'a>],
    /// How soon the slowest of them that has a part would bring a request's bytes, if there is one.
    pub(super) slowest: Duration,
    /// Since when the wish has had no progress.
    pub(super) waited_since: Duration,
}

/// Whether a source may be asked for a piece of a crowd's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It is this member's part, or nobody shares the work.
    Mine,
    /// Others have it, and this is how soon the best of them would bring it.
    Theirs(Duration),
    /// It is that member's part, which doesn't have it yet.
    Awaited(PeerId),
}

impl Scheduler {
    /// Looks who else fetches the object now: nobody, as long as nothing of it is fetched ahead here.
    pub(super) fn renew_crowd(&mut self, now: Duration, object: &Object) {
        let members = self.members(now, object).unwrap_or_default();
        let Some(work) = self.works.get_mut(object) else {
            return;
        };
        if members.is_empty() {
            work.crowd = None;
        } else if work
            .crowd
            .as_ref()
            .is_none_or(|crowd| crowd.members != members)
        {
            let unit = (object.blocks() / UNITS).clamp(1, UNIT_BLOCKS_MAX);
            work.crowd = Some(Crowd {
                members,
                unit: 1 << unit.ilog2(),
                groups: RefCell::default(),
            });
        }
    }

    fn members(&self, now: Duration, object: &Object) -> Option<Vec<(u64, Option<PeerId>)>> {
        let local = self.local_key?;
        let work = self.works.get(object)?;
        let mut wishes = work.wishes.iter().filter_map(|id| self.wishes.get(id));
        if !wishes.any(|wish| wish.priority == Priority::Prefetch && !wish.is_proof) {
            return None;
        }
        let mut members: Vec<(u64, Option<PeerId>)> = work
            .holders
            .iter()
            .filter(|(id, holder)| {
                holder.fetches_at.is_some_and(|at| at + FETCHES_FOR > now)
                    && holder.excused_until <= now
                    && holder.held != Held::Whole
                    && !self.blocked.contains(id)
            })
            .filter_map(|(id, _)| {
                let peer = self.peers.get(id).filter(|peer| !peer.is_dropped(now))?;
                Some((peer.key(), Some(*id)))
            })
            .collect();
        if !members.is_empty() {
            members.push((local, None));
        }
        Some(members)
    }

    /// Somebody's part had to be fetched by others.
    pub(super) fn excuse(&mut self, now: Duration, object: &Object, id: PeerId) {
        if let Some(holder) = self.holder(object, id) {
            holder.excused_until = now + EXCUSED_FOR;
        }
    }
}

impl Shared<'_> {
    /// When a source may be asked for a piece of so many bytes, if it may be at all; and whose part it is, where that member is
    /// waited for.
    pub(super) fn source_at(
        &self,
        source: &Peer,
        piece: &Range<u64>,
        bytes: u64,
        now: Duration,
    ) -> (Option<Duration>, Option<PeerId>) {
        let is_faster = |than: Duration| source.expected(bytes) * SOURCE_COST < than;
        let awaited_until = || self.waited_since + grace(source, bytes, self.crowd);
        // Looking whether others have it takes long, and most of the time makes no difference.
        if !is_faster(self.slowest)
            && let Some(whose) = self.crowd.whose(piece.start)
            && let at = awaited_until()
            && at > now
        {
            return (Some(at), Some(whose));
        }
        match self.crowd.turn(piece, bytes, self.asking) {
            Turn::Mine => (Some(Duration::ZERO), None),
            Turn::Theirs(soonest) => (is_faster(soonest).then_some(Duration::ZERO), None),
            Turn::Awaited(whose) => (Some(awaited_until()), Some(whose)),
        }
    }
}

/// How long another member may take to fetch a piece and to pass it on to all others.
fn grace(source: &Peer, bytes: u64, crowd: &Crowd) -> Duration {
    let passing_on = source.transfer_time(bytes) * crowd.len();
    ((source.expected(bytes) + passing_on) * 2).clamp(GRACE.0, GRACE.1)
}
