//! What the scheduler does because time has passed.

use std::time::Duration;

use libp2p::PeerId;

use super::{
    Answer, Held, Object, Output, PROOF_WITHIN, Priority, RETRY_LACKING, RequestId, Scheduler,
    Wish, WishId,
    peer::Peer,
    select::{GIVES_WAY_FOR, pieces_of, scale_of},
    work::Holder,
};
use crate::{
    content::{BLOCK_BYTES, BlockSet},
    transfer::TransferError,
};

/// Holders are asked again this often while a wish is unfinished.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// The directory is asked when no connected peer told within this that it has what is wanted.
pub(super) const DIRECTORY_AFTER: Duration = Duration::from_millis(300);
/// A late request is looked at again after this, as long as nobody else is clearly faster.
const LATE_AGAIN: Duration = Duration::from_millis(100);

impl Scheduler {
    /// Gives up requests whose peers are silent, and those that take long where another peer is clearly faster.
    pub(super) fn expire_requests(&mut self, now: Duration) {
        let mut expired = Vec::new();
        let mut slow = Vec::new();
        for (id, request) in &self.requests {
            let (Some(patience), Some(peer)) = (request.patience, self.peers.get(&request.peer))
            else {
                continue;
            };
            let is_old = request.sent.at + patience <= now;
            let is_silent = peer.heard_since(request.sent) + patience <= now;
            // Answers come in any order: what waits for the disk comes after what was read already. That alone means nothing.
            if is_silent || is_old && peer.passed_over(request.sent) {
                expired.push(*id);
            } else if is_old && request.partner.is_none() {
                slow.push(*id);
            }
        }
        for id in expired {
            // Judging one may have cancelled another.
            if let Some(request) = self.end_request(id) {
                self.outputs.push_back(Output::Cancel { id });
                self.judge(now, request, Answer::TimedOut);
            }
        }
        for id in slow {
            if self.choose_other(now, id, Priority::Prefetch).is_some() {
                self.cancel(id);
            }
        }
    }

    /// Takes back what nobody waits for where a peer has become so slow that it would be in the way for long. What was asked for
    /// last goes first.
    pub(super) fn trim_queues(&mut self) {
        let overfull: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_overfull())
            .map(|(id, _)| *id)
            .collect();
        for id in overfull {
            let requests: Vec<RequestId> = self
                .requests
                .iter()
                .filter(|(_, request)| request.peer == id && request.patience.is_some())
                .map(|(id, _)| *id)
                .collect();
            for request in requests.into_iter().rev() {
                if !self.peers.get(&id).is_some_and(Peer::is_overfull) {
                    break;
                }
                let is_demand = self.requests.get(&request).is_some_and(|request| {
                    self.is_wanted(&request.object, &request.blocks, Some(Priority::Demand))
                });
                if !is_demand {
                    self.cancel(request);
                }
            }
        }
    }

    pub(super) fn expire_wishes(&mut self, now: Duration) {
        let expired: Vec<(WishId, Object)> = self
            .wishes
            .iter()
            .filter(|(_, wish)| wish.progress_at + self.patience(wish) <= now)
            .map(|(id, wish)| (*id, wish.object))
            .collect();
        for (id, object) in expired {
            if self.wishes.get(&id).is_some_and(|wish| wish.is_proof) {
                // The next read of what is not here tries again.
                self.remove_wish(now, id);
                self.cancel_unwanted(&object);
                continue;
            }
            let since = match self.waits_for_limit(id) {
                true => Some(now),
                false => self.waits_for_room(now, id),
            };
            if let Some(since) = since.filter(|since| *since + self.read_timeout > now) {
                if let Some(wish) = self.wishes.get_mut(&id) {
                    wish.progress_at = since;
                }
                continue;
            }
            let error = TransferError::Stalled {
                waited: self.read_timeout,
                asked: self.summary(&object),
            };
            self.fail(now, id, error);
            self.cancel_unwanted(&object);
        }
    }

    /// How long a wish may be without progress.
    fn patience(&self, wish: &Wish) -> Duration {
        match wish.is_proof {
            true => self.read_timeout.min(PROOF_WITHIN),
            false => self.read_timeout,
        }
    }

    /// Whether it is the limit that holds a wish up: there is something to ask for, and somebody to ask.
    fn waits_for_limit(&self, id: WishId) -> bool {
        let wish = self
            .wishes
            .get(&id)
            .filter(|_| self.limited_until.is_some());
        let Some((wish, work)) = wish.and_then(|wish| Some((wish, self.works.get(&wish.object)?)))
        else {
            return false;
        };
        let has_holder = work.holders.iter().any(|(id, holder)| {
            holder.held != Held::No && self.peers.contains_key(id) && !self.blocked.contains(id)
        });
        !wish.unasked.is_empty() && (has_holder || work.in_batch && !self.peers.is_empty())
    }

    /// Whether a wish has to wait until a peer has sent what others asked it for: when such a one was heard of last.
    fn waits_for_room(&self, now: Duration, id: WishId) -> Option<Duration> {
        let wish = self.wishes.get(&id)?;
        let work = self.works.get(&wish.object)?;
        let piece = pieces_of(&wish.unasked).next()?;
        let is_shared = work.crowd.is_some();
        let holders = work.holders.iter().filter(|(id, holder)| {
            !self.blocked.contains(id)
                && holder.shunned_until <= now
                && holder.held.first_run(&piece).is_some()
        });
        holders
            .filter_map(|(id, _)| self.peers.get(id))
            .filter(|peer| !peer.has_room(BLOCK_BYTES, scale_of(wish.priority), is_shared))
            .filter_map(Peer::heard_at)
            .max()
    }

    /// Finds which peers are to be asked what they have, and asks the directory who else there is, where that is due.
    pub(super) fn renew(&mut self, now: Duration) {
        let active: Vec<Object> = self
            .works
            .iter()
            .filter(|(_, work)| !work.wishes.is_empty() && !work.in_batch)
            .map(|(object, _)| *object)
            .collect();
        for object in active {
            // For the proof of a size alone nobody is looked for.
            let is_active = self.is_active(&object);
            let lacking = is_active && self.is_lacking(now, &object, Priority::Prefetch);
            let waiting = lacking && self.is_lacking(now, &object, Priority::Demand);
            let Some(work) = self.works.get_mut(&object) else {
                continue;
            };
            let mut open = false;
            for (id, peer) in &self.peers {
                if self.blocked.contains(id) || peer.is_dropped(now) {
                    continue;
                }
                let holder = work.holders.entry(*id).or_insert_with(Holder::new);
                let every = if waiting && !holder.waiting && !matches!(holder.held, Held::Whole) {
                    RETRY_LACKING
                } else {
                    RENEW_EVERY
                };
                if holder.asked_at.is_none_or(|at| at + every <= now) {
                    holder.asked_at = Some(now);
                    holder.waiting = true;
                    self.questions.insert((object, *id));
                }
                open |= holder.waiting;
            }
            let due = match work.directory.asked_at {
                // Who was lost may be somewhere else by now.
                Some(at) if waiting => at + RETRY_LACKING <= now,
                Some(at) => at + RENEW_EVERY <= now,
                None => {
                    work.since + RENEW_EVERY <= now
                        || lacking && (!open || work.since + DIRECTORY_AFTER <= now)
                }
            };
            if due && is_active && (lacking || work.since + RENEW_EVERY <= now) {
                work.directory.asked_at = Some(now);
                self.outputs.push_back(Output::FindHolders { object });
            }
        }
    }

    /// Asks peers what they have of what [`Scheduler::renew`] found, and what they have to do. Who was asked for blocks on a guess is
    /// left alone with that for a moment: the questions would cost both sides time that a reader waits for.
    pub(super) fn ask(&mut self, now: Duration) {
        for (object, id) in std::mem::take(&mut self.questions) {
            let Some(work) = self.works.get(&object) else {
                continue;
            };
            if work.guessed == Some(id) && self.gives_way(now, &object) {
                self.questions.insert((object, id));
                continue;
            }
            // It may have been found out meanwhile.
            let peer = self.peers.get(&id).filter(|_| !self.blocked.contains(&id));
            let is_asked = peer.is_some_and(|peer| !peer.is_dropped(now));
            let holder = self.holder(&object, id).filter(|holder| holder.waiting);
            let Some(holder) = holder else {
                continue;
            };
            holder.waiting = is_asked;
            holder.asked_at = is_asked.then_some(now);
            if !is_asked {
                continue;
            }
            self.outputs.push_back(Output::AskHave { peer: id, object });
            let is_due = |peer: &&mut Peer| {
                let asked_at = peer.load_asked_at;
                asked_at.is_none_or(|at| at + RENEW_EVERY <= now)
            };
            if let Some(peer) = self.peers.get_mut(&id).filter(is_due) {
                peer.load_asked_at = Some(now);
                self.outputs.push_back(Output::AskLoad { peer: id });
            }
        }
    }

    /// Whether a wish of at least that priority lacks a block, among those to be asked for next, that is neither in
    /// flight nor held by a peer that can be asked.
    fn is_lacking(&self, now: Duration, object: &Object, least: Priority) -> bool {
        let Some(work) = self.works.get(object) else {
            return false;
        };
        let mut parts = Vec::new();
        for (id, holder) in &work.holders {
            let usable = !self.blocked.contains(id)
                && self.peers.get(id).is_some_and(|peer| !peer.is_dropped(now));
            match &holder.held {
                Held::Whole if usable => return false,
                Held::Part(blocks) if usable => parts.push(blocks),
                _ => {}
            }
        }
        // What was asked for on a guess may come from nobody.
        let is_guessed = work.guessed.is_some() && parts.is_empty();
        work.wishes
            .iter()
            .filter_map(|id| self.wishes.get(id))
            .filter(|wish| wish.priority <= least)
            .flat_map(|wish| {
                pieces_of(match is_guessed {
                    true => &wish.missing,
                    false => &wish.unasked,
                })
            })
            .any(|piece| {
                let mut nowhere = BlockSet::of(piece.clone());
                for held in parts.iter().flat_map(|part| part.present(piece.clone())) {
                    nowhere.remove(held);
                }
                !nowhere.is_empty()
            })
    }

    /// The next moment at which something may be due. What is due already waits for an input, not for time.
    pub(super) fn next_wake(&self, now: Duration) -> Option<Duration> {
        let wishes = self
            .wishes
            .values()
            .map(|wish| wish.progress_at + self.patience(wish));
        let requests = self.requests.values().flat_map(|request| {
            // While it is late others are thought of now and then.
            let late_at = (!request.hedged).then(|| match request.late_at > now {
                true => request.late_at,
                false => now + LATE_AGAIN,
            });
            let heard_at = self
                .peers
                .get(&request.peer)
                .map_or(request.sent.at, |peer| peer.heard_since(request.sent));
            let patience = request.patience.into_iter();
            late_at.into_iter().chain(
                patience
                    .flat_map(move |patience| [heard_at + patience, request.sent.at + patience]),
            )
        });
        let active = || {
            let works = self.works.values();
            works.filter(|work| !work.wishes.is_empty() && !work.in_batch)
        };
        let works = active().flat_map(|work| {
            let asked_at = work.directory.asked_at.unwrap_or(work.since);
            [
                work.since + GIVES_WAY_FOR,
                work.since + DIRECTORY_AFTER,
                asked_at + RETRY_LACKING,
                asked_at + RENEW_EVERY,
            ]
        });
        let holders = active()
            .flat_map(|work| work.holders.values())
            .flat_map(|holder| {
                let asked_at = holder.asked_at.unwrap_or(now);
                [
                    holder.shunned_until,
                    asked_at + RETRY_LACKING,
                    asked_at + RENEW_EVERY,
                ]
            });
        let pauses = self
            .peers
            .values()
            .map(|peer| peer.paused_until)
            .filter(|_| !self.wishes.is_empty());
        wishes
            .chain(requests)
            .chain(works)
            .chain(holders)
            .chain(pauses)
            .chain(self.limited_until)
            .chain(
                [self.awaited_until]
                    .into_iter()
                    .filter(|at| *at < Duration::MAX),
            )
            .chain(self.batches.wakes(&self.peers))
            .chain(self.news.due_at())
            .filter(|at| *at > now)
            .min()
    }
}
