//! The known heads: which are needed, which are still to be merged, which contradict each other. Pure.
//!
//! Invariant: no head of the set is covered by another one of it that is in the state. A head that is covered by one which
//! is still to be merged stays beside it, since that one may turn out to be nothing that can be merged; of one writer's heads
//! the last one counts.

use std::time::{Duration, Instant};

use super::pace::BackOff;
use crate::manifest::{CausalContext, Dot, HybridTime, NodeHash, WriterNumber};

/// What of a verified head matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownHead {
    /// The head as it travels.
    pub(super) bytes: Vec<u8>,
    pub(super) root: NodeHash,
    pub(super) covers: CausalContext,
    pub(super) writer: WriterNumber,
    pub(super) sequence: u64,
    pub(super) time: HybridTime,
}

impl KnownHead {
    /// The name of the head: the hash of its encoding.
    pub(super) fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }

    /// Which head of its writer it is.
    pub(super) fn dot(&self) -> Dot {
        Dot {
            writer: self.writer,
            sequence: self.sequence,
        }
    }

    /// Two heads that one writer's number and sequence were given to: a machine and its clone.
    fn clashes_with(&self, other: &Self) -> bool {
        self.dot() == other.dot() && self.root != other.root
    }

    /// Whether this head adds nothing beside `other`. Heads that contradict each other add to each other whatever their
    /// contexts say.
    pub(super) fn covered_by(&self, other: &Self) -> bool {
        other.covers.includes(&self.covers)
            && !self.clashes_with(other)
            && (other.covers != self.covers || other.root == self.root)
    }
}

/// How a head gets into a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is in the state already.
    InState,
    /// It has seen everything that the state has: its root simply becomes the state.
    Adopt,
    /// Neither has seen all of the other.
    Merge,
    /// The two contradict each other (a clone wrote under the same number): what one lacks was not deleted there. These
    /// are the contexts to merge with, the state's and the head's.
    Union(CausalContext, CausalContext),
}

/// A head of the set.
#[derive(Clone, Debug)]
struct Held {
    head: KnownHead,
    in_state: bool,
    /// Merging it would fetch much, and can wait until then: what of it is looked at is shown all the same.
    later: Option<Instant>,
    /// Since when it, or an earlier head of its writer, can wait: a busy writer is not put off for ever.
    waits_since: Option<Instant>,
    /// It is needed now, whatever that takes.
    urgent: bool,
    /// Whether anybody gave nodes for it, or an earlier head of its writer, and since when it is tried with that.
    tried_since: Option<Instant>,
    given: bool,
    /// Attempts to merge it that failed.
    tries: BackOff,
    /// Since when those who could be asked have lacked nodes of it.
    denied_since: Option<Instant>,
    /// The writes that other heads contradict.
    clashes: Vec<Dot>,
}

impl Held {
    /// Until when it can be put off, if it can.
    fn later_at(&self, now: Instant, how_long: Duration) -> Option<Instant> {
        let until = self.waits_since.unwrap_or(now) + how_long;
        (!self.urgent && self.later.is_none() && until > now).then_some(until)
    }

    /// When it is to be merged; `None` for now.
    fn due(&self) -> Option<Instant> {
        let later = self.later.filter(|_| !self.urgent);
        later.into_iter().chain(self.tries.until()).max()
    }
}

/// The known heads that are needed, in order of (writer, sequence).
#[derive(Clone, Debug, Default)]
pub(super) struct HeadSet(Vec<Held>);

/// What became of a head that was offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It adds nothing to those that are known.
    Covered,
    /// It is in the set now.
    Taken {
        /// Those that it covers and that are not needed beside it have left the set.
        dropped: Vec<KnownHead>,
        /// Whether another head has the same writer and sequence, and another root.
        clash: bool,
    },
}

impl HeadSet {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownHead> {
        self.0.iter().map(|held| &held.head)
    }

    /// Whether a head adds nothing to those that are known. What one says that nobody has counts for nothing.
    pub(super) fn covers(&self, head: &KnownHead) -> bool {
        self.0.iter().any(|held| {
            held.head == *head || (held.denied_since.is_none() && head.covered_by(&held.head))
        })
    }

    /// Adds a verified head unless it is covered. `in_state`: the state holds it already.
    pub(super) fn offer(&mut self, head: KnownHead, in_state: bool) -> Offered {
        if self.covers(&head) {
            return Offered::Covered;
        }
        let mut clash = false;
        for held in &mut self.0 {
            if held.head.clashes_with(&head) {
                clash = true;
                held.clashes.push(head.dot());
            }
        }
        let stays = |held: &Held| {
            !held.head.covered_by(&head)
                || (!in_state && (held.in_state || held.head.writer != head.writer))
        };
        let (kept, dropped): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.0).into_iter().partition(stays);
        self.0 = kept;
        let clashes = if clash { vec![head.dot()] } else { Vec::new() };
        let before = dropped
            .iter()
            .filter(|held| held.head.writer == head.writer);
        let waits_since = before.clone().filter_map(|held| held.waits_since).min();
        let urgent = before.clone().any(|held| held.urgent);
        let tried_since = before.clone().filter(|held| !held.in_state);
        let given = tried_since.clone().any(|held| held.given);
        let tried_since = tried_since.filter_map(|held| held.tried_since).min();
        self.0.push(Held {
            head,
            in_state,
            later: None,
            waits_since,
            urgent,
            tried_since,
            given,
            tries: BackOff::default(),
            denied_since: None,
            clashes,
        });
        self.0.sort_by_key(|held| (held.head.dot(), held.head.root));
        Offered::Taken {
            dropped: dropped.into_iter().map(|held| held.head).collect(),
            clash,
        }
    }

    /// Takes heads out, whatever they cover.
    pub(super) fn remove_where(&mut self, unwanted: impl Fn(&KnownHead) -> bool) -> Vec<KnownHead> {
        let (kept, removed): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|held| !unwanted(&held.head));
        self.0 = kept;
        removed.into_iter().map(|held| held.head).collect()
    }

    /// Those that the state lacks and that are to be merged now, the most knowing first: once it is in, the others may be
    /// too.
    pub(super) fn to_merge(&self, now: Instant) -> Vec<KnownHead> {
        let is_due = |held: &&Held| !held.in_state && held.due().is_none_or(|due| due <= now);
        let mut due: Vec<_> = self.0.iter().filter(is_due).collect();
        // Those that failed come last, whatever time they claim.
        due.sort_by_key(|held| (held.tries.failures(), std::cmp::Reverse(held.head.time)));
        due.into_iter().map(|held| held.head.clone()).collect()
    }

    /// Those that the state lacks.
    pub(super) fn unmerged(&self) -> impl Iterator<Item = &KnownHead> {
        let unmerged = self.0.iter().filter(|held| !held.in_state);
        unmerged.map(|held| &held.head)
    }

    /// When the next of those that wait is due, after a moment at which all that were due were tried.
    pub(super) fn next_due(&self, tried: Instant) -> Option<Instant> {
        let waiting = self.0.iter().filter(|held| !held.in_state);
        waiting
            .filter_map(Held::due)
            .filter(|due| *due > tried)
            .min()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts a head off that was not merged yet, for so long since its writer's work was first put off. Not if it waited
    /// already, or is needed. Whether it is put off.
    pub(super) fn put_off(&mut self, digest: &[u8; 32], now: Instant, how_long: Duration) -> bool {
        let mut held = self.0.iter_mut();
        let Some(held) = held.find(|held| held.head.digest() == *digest) else {
            return false;
        };
        let Some(until) = held.later_at(now, how_long) else {
            return false;
        };
        held.waits_since.get_or_insert(now);
        held.later = Some(until);
        true
    }

    /// Whether a head would be put off.
    pub(super) fn may_put_off(&self, digest: &[u8; 32], now: Instant, how_long: Duration) -> bool {
        let mut held = self.0.iter();
        let held = held.find(|held| held.head.digest() == *digest);
        held.is_some_and(|held| held.later_at(now, how_long).is_some())
    }

    /// Notes that a head could not be merged; it is tried again ever more rarely.
    pub(super) fn failed(&mut self, digest: &[u8; 32], now: Instant) {
        for held in &mut self.0 {
            if held.head.digest() == *digest {
                held.tries.failed(now);
                // Whoever gave nodes is gone, perhaps.
                held.given = false;
                held.tried_since = None;
            }
        }
    }

    /// Notes that those who could be asked lack nodes of a head. Since when that has been so, and whether that is new; `None`
    /// where it has left the set.
    pub(super) fn denied(&mut self, digest: &[u8; 32], now: Instant) -> Option<(Instant, bool)> {
        let mut held = self.0.iter_mut();
        let held = held.find(|held| held.head.digest() == *digest)?;
        let is_new = held.denied_since.is_none();
        Some((*held.denied_since.get_or_insert(now), is_new))
    }

    /// Whether those who could be asked lack nodes of a head.
    pub(super) fn is_denied(&self, digest: &[u8; 32]) -> bool {
        let mut denied = self.0.iter().filter(|held| held.denied_since.is_some());
        denied.any(|held| held.head.digest() == *digest)
    }

    /// Notes that somebody gave nodes of a head. A later one of its writer may have taken its place meanwhile.
    pub(super) fn given(&mut self, digest: &[u8; 32], writer: WriterNumber) {
        for held in &mut self.0 {
            if held.head.digest() == *digest {
                held.denied_since = None;
                held.given = true;
            }
            held.given |= held.head.writer == writer && !held.in_state;
        }
    }

    /// Notes that a head is tried. Since when somebody has given nodes for it, or for an earlier one of its writer, if anybody has.
    pub(super) fn tried(&mut self, digest: &[u8; 32], now: Instant) -> (Instant, bool) {
        let mut held = self.0.iter_mut();
        match held.find(|held| held.head.digest() == *digest) {
            Some(held) if held.given => (*held.tried_since.get_or_insert(now), true),
            Some(_) => (now, false),
            None => (now, false),
        }
    }

    /// The newest of the others that nobody lacked nodes of.
    pub(super) fn next_first(&self, first: &[u8; 32]) -> Option<&KnownHead> {
        let hopeful = self.0.iter().filter(|held| held.denied_since.is_none());
        let others = hopeful.filter(|held| held.head.digest() != *first);
        let newest = others.max_by_key(|held| held.head.time);
        newest.map(|held| &held.head)
    }

    /// Somebody showed a head that is known: whoever it is may give what was missing. Whether that is worth a try.
    pub(super) fn shown_again(&mut self, digest: &[u8; 32]) -> bool {
        let mut worth = false;
        for held in &mut self.0 {
            if held.head.digest() == *digest && !held.in_state && held.tries.until().is_some() {
                held.tries.reset();
                worth = true;
            }
        }
        worth
    }

    /// Has those that are not merged yet and fit merged now. Whether there are any.
    pub(super) fn need(&mut self, fits: impl Fn(&KnownHead) -> bool) -> bool {
        let mut any = false;
        for held in &mut self.0 {
            if !held.in_state && fits(&held.head) {
                held.urgent = true;
                any = true;
            }
        }
        any
    }

    /// Whether a writer's own last word is among those that stand beside others.
    pub(super) fn has_of(&self, writer: WriterNumber) -> bool {
        self.iter().any(|head| head.writer == writer)
    }

    /// Those that others are told of, the best first: what the state has seen, then by time. Not those that nobody whom this
    /// member knows can give: who has one tells of it, and one that nobody has is heard of no more.
    pub(super) fn for_others(&self) -> Vec<&KnownHead> {
        let can_be_had = |held: &&Held| held.denied_since.is_none();
        let mut told: Vec<_> = self.0.iter().filter(can_be_had).collect();
        told.sort_by_key(|held| std::cmp::Reverse((held.in_state, held.head.time)));
        told.into_iter().map(|held| &held.head).collect()
    }

    /// The head of this name.
    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<&KnownHead> {
        self.iter().find(|head| head.digest() == *digest)
    }

    /// How a head of the set gets into the state; `None` when it has left the set.
    pub(super) fn way(
        &self,
        digest: &[u8; 32],
        root: NodeHash,
        covers: &CausalContext,
    ) -> Option<Way> {
        let held = self.0.iter().find(|held| held.head.digest() == *digest)?;
        let head = &held.head;
        let same = head.root == root && head.covers == *covers;
        Some(if held.in_state || same {
            Way::InState
        } else if !held.clashes.is_empty() {
            Way::Union(
                covers.before(&held.clashes),
                head.covers.before(&held.clashes),
            )
        } else if head.covers == *covers {
            Way::Union(CausalContext::default(), CausalContext::default())
        } else if head.covers.includes(covers) {
            Way::Adopt
        } else if covers.includes(&head.covers) {
            Way::InState
        } else {
            Way::Merge
        })
    }

    /// Notes that the state holds a head now. Those that it covers leave the set.
    pub(super) fn set_in_state(&mut self, digest: &[u8; 32]) -> Vec<KnownHead> {
        let mut covering = None;
        for held in &mut self.0 {
            if held.head.digest() == *digest {
                held.in_state = true;
                held.denied_since = None;
                covering = Some(held.head.clone());
            }
        }
        match covering {
            Some(by) => self.remove_where(|head| *head != by && head.covered_by(&by)),
            None => Vec::new(),
        }
    }

    /// Has those that were put off tried anew.
    pub(super) fn forget_waits(&mut self) {
        for held in &mut self.0 {
            held.later = None;
        }
    }

    /// Notes that nothing is known to be in the state.
    pub(super) fn forget_merges(&mut self) {
        for held in &mut self.0 {
            held.in_state = false;
        }
    }

    /// Whether one head says all that the state says.
    pub(super) fn represents(&self, root: NodeHash, covers: &CausalContext) -> bool {
        let hopeful = |held: &&Held| held.in_state || held.denied_since.is_none();
        self.0.iter().filter(hopeful).any(|held| {
            held.head.covers.includes(covers)
                && (held.head.root == root || held.head.covers != *covers)
        })
    }

    /// Whether a head has this context and another root: a head for the state must then cover more, or the two would
    /// stand beside each other for ever.
    pub(super) fn contradicts(&self, root: NodeHash, covers: &CausalContext) -> bool {
        self.0
            .iter()
            .any(|held| held.head.root != root && held.head.covers == *covers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(of: &[(u64, u64)]) -> CausalContext {
        let mut context = CausalContext::default();
        for &(writer, sequence) in of {
            context.add(Dot {
                writer: WriterNumber(writer),
                sequence,
            });
        }
        context
    }

    fn head(writer: u64, sequence: u64, root: u8, seen: &[(u64, u64)]) -> KnownHead {
        KnownHead {
            bytes: format!("{writer} {sequence} {root}").into_bytes(),
            root: NodeHash([root; 32]),
            covers: covers(seen),
            writer: WriterNumber(writer),
            sequence,
            time: HybridTime(sequence),
        }
    }

    fn taken(offered: Offered) -> (usize, bool) {
        match offered {
            Offered::Taken { dropped, clash } => (dropped.len(), clash),
            Offered::Covered => panic!("should have been taken"),
        }
    }

    #[test]
    fn a_head_that_covers_others_takes_their_place() {
        let mut set = HeadSet::default();
        assert_eq!(taken(set.offer(head(9, 1, 0, &[]), true)), (0, false));
        let first = head(1, 1, 1, &[(1, 1)]);
        assert_eq!(taken(set.offer(first.clone(), false)), (0, false));
        assert_eq!(set.set_in_state(&first.digest()).len(), 1);
        assert_eq!(
            taken(set.offer(head(2, 1, 2, &[(2, 1)]), false)),
            (0, false)
        );
        let merge = head(3, 1, 3, &[(1, 1), (2, 1)]);
        assert_eq!(taken(set.offer(merge, true)), (2, false));
        assert_eq!(set.iter().count(), 1);
    }

    #[test]
    fn covered_heads_stay_until_the_one_that_covers_them_is_merged() {
        let mut set = HeadSet::default();
        let (mine, theirs) = (head(1, 1, 1, &[(1, 1)]), head(2, 1, 2, &[(2, 1)]));
        set.offer(mine, true);
        set.offer(theirs, false);
        let covering = head(3, 1, 3, &[(1, 1), (2, 1)]);
        assert_eq!(taken(set.offer(covering.clone(), false)), (0, false));
        // A writer answers for its own.
        let next = head(3, 2, 4, &[(1, 1), (2, 1), (3, 2)]);
        assert_eq!(taken(set.offer(next.clone(), false)), (1, false));
        assert_eq!(set.offer(covering, false), Offered::Covered);
        let order: Vec<_> = set
            .to_merge(Instant::now())
            .iter()
            .map(|head| head.root.0[0])
            .collect();
        assert_eq!(order, [4, 2]);
        let mut refused = set.clone();
        refused.remove_where(|head| *head == next);
        assert_eq!(refused.unmerged().count(), 1);
        assert_eq!(set.set_in_state(&next.digest()).len(), 2);
        assert_eq!(set.iter().count(), 1);
    }

    #[test]
    fn a_writer_that_goes_on_writing_is_not_put_off_for_ever() {
        let mut set = HeadSet::default();
        let (start, long) = (Instant::now(), Duration::from_secs(30));
        for second in 0..40 {
            let now = start + Duration::from_secs(second);
            let next = head(1, second + 1, 1, &[(1, second + 1)]);
            set.offer(next.clone(), false);
            assert_eq!(set.to_merge(now), vec![next.clone()], "each is looked at");
            assert_eq!(set.put_off(&next.digest(), now, long), second < 30);
        }
        let due = start + Duration::from_secs(39);
        assert_eq!(set.to_merge(due).len(), 1);
        assert_eq!(set.next_due(due), None);
    }

    #[test]
    fn what_was_given_for_a_head_counts_for_the_next_of_its_writer_until_an_attempt_fails() {
        let mut set = HeadSet::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let of = |sequence| head(1, sequence, sequence as u8, &[(1, sequence)]);
        set.offer(of(1), false);
        assert_eq!(set.tried(&of(1).digest(), at(0)), (at(0), false));
        assert_eq!(set.tried(&of(1).digest(), at(1)), (at(1), false));
        set.given(&of(1).digest(), of(1).writer);
        assert_eq!(set.tried(&of(1).digest(), at(2)), (at(2), true));
        set.offer(of(2), false);
        assert_eq!(set.tried(&of(2).digest(), at(3)), (at(2), true));
        set.failed(&of(2).digest(), at(4));
        assert_eq!(set.tried(&of(2).digest(), at(9)), (at(9), false));
    }

    #[test]
    fn what_is_given_for_a_head_that_was_replaced_meanwhile_counts_for_the_later_one() {
        let mut set = HeadSet::default();
        let of = |sequence: u64| head(1, sequence, sequence as u8, &[(1, sequence)]);
        let now = Instant::now();
        set.offer(of(1), false);
        set.offer(head(2, 1, 9, &[(2, 1)]), false);
        set.offer(of(2), false);
        set.given(&of(1).digest(), of(1).writer);
        assert!(set.tried(&of(2).digest(), now).1);
        let other = head(2, 1, 9, &[(2, 1)]).digest();
        assert!(!set.tried(&other, now).1);
    }

    #[test]
    fn an_old_head_shown_again_is_covered() {
        let mut set = HeadSet::default();
        let old = head(1, 1, 1, &[(1, 1)]);
        set.offer(old.clone(), false);
        set.offer(head(1, 2, 2, &[(1, 2)]), false);
        assert_eq!(set.offer(old, false), Offered::Covered);
    }

    #[test]
    fn heads_with_equal_contexts_and_roots_are_needed_once() {
        let mut set = HeadSet::default();
        set.offer(head(1, 5, 7, &[(1, 1), (2, 1)]), false);
        let same = head(2, 6, 7, &[(1, 1), (2, 1)]);
        assert_eq!(set.offer(same, false), Offered::Covered);
    }

    #[test]
    fn a_clones_head_is_kept_beside_the_one_that_it_contradicts() {
        let mut set = HeadSet::default();
        set.offer(head(1, 5, 1, &[(1, 5)]), true);
        let clone = head(1, 5, 2, &[(1, 5), (2, 1)]);
        assert_eq!(taken(set.offer(clone.clone(), false)), (0, true));
        let way = set.way(&clone.digest(), NodeHash([1; 32]), &covers(&[(1, 5)]));
        assert_eq!(
            way,
            Some(Way::Union(covers(&[(1, 4)]), covers(&[(1, 4), (2, 1)])))
        );
    }

    #[test]
    fn the_way_of_a_head_follows_from_the_contexts() {
        let state = (NodeHash([9; 32]), covers(&[(1, 2), (2, 2)]));
        let way = |head: KnownHead| {
            let mut set = HeadSet::default();
            set.offer(head.clone(), false);
            set.way(&head.digest(), state.0, &state.1).unwrap()
        };
        assert_eq!(way(head(1, 3, 3, &[(1, 3), (2, 2)])), Way::Adopt);
        assert_eq!(way(head(1, 3, 3, &[(1, 3), (2, 1)])), Way::Merge);
        assert_eq!(way(head(1, 2, 3, &[(1, 2), (2, 1)])), Way::InState);
        assert_eq!(way(head(3, 1, 9, &[(1, 2), (2, 2)])), Way::InState);
        assert!(matches!(
            way(head(3, 1, 8, &[(1, 2), (2, 2)])),
            Way::Union(..)
        ));
    }
}
