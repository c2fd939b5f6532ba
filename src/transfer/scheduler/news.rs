//! Telling others what has come: with that, members that fetch the same object feed each other from its first blocks on.
//!
//! What came from a source nobody else has yet, so the others wait for it. What came from another member that fetches it, too,
//! they hear of from that one, or have themselves: it goes along, or is told later. That is most of it where many members fetch the same object, and each
//! message costs every one of them as much processor time as a few blocks do.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use libp2p::PeerId;

use super::{Held, Output, Scheduler, crowd::FETCHES_FOR};
use crate::content::{BlockSet, Object};

/// Least time between two announcements, for this many peers.
const TELL_EVERY: Duration = Duration::from_millis(20);
const TELL_PEERS: usize = 16;
const TELL_EVERY_MAX: Duration = Duration::from_millis(200);
/// How long what others have, too, may wait.
const TELL_WITHIN: Duration = Duration::from_millis(250);
/// Most objects told of at a time.
const TOLD_MAX: usize = 64;
/// Most objects of which there is something to tell; news of more is dropped, peers can ask.
const NEWS_MAX: usize = 1024;

/// What came and wasn't told yet.
#[derive(Debug, Default)]
pub(super) struct News {
    blocks: BTreeMap<Object, BlockSet>,
    /// When to tell it; `None` while there is nothing.
    due_at: Option<Duration>,
    told_at: Option<Duration>,
}

impl News {
    /// When something is to be told.
    pub(super) fn due_at(&self) -> Option<Duration> {
        self.due_at
    }
}

impl Scheduler {
    /// Blocks have come, from a peer where that is known.
    pub(super) fn note_news(
        &mut self,
        now: Duration,
        object: &Object,
        blocks: Range<u64>,
        from: Option<PeerId>,
    ) {
        let is_relayed = from
            .and_then(|from| self.works.get(object)?.holders.get(&from))
            .is_some_and(|holder| {
                let fetches = holder.fetches_at.is_some_and(|at| at + FETCHES_FOR > now);
                fetches && matches!(holder.held, Held::Part(_))
            });
        let crowds = u32::try_from(self.peers.len() / TELL_PEERS).unwrap_or(u32::MAX);
        let every = (TELL_EVERY * crowds.max(1)).min(TELL_EVERY_MAX);
        let news = &mut self.news;
        if news.blocks.len() >= NEWS_MAX && !news.blocks.contains_key(object) {
            return;
        }
        news.blocks.entry(*object).or_default().insert(blocks);
        let at = match is_relayed {
            true => now + TELL_WITHIN,
            false => news.told_at.map_or(now, |told_at| now.max(told_at + every)),
        };
        news.due_at = Some(news.due_at.map_or(at, |due_at| due_at.min(at)));
    }

    /// Tells what is due, and all else with it.
    pub(super) fn tell(&mut self, now: Duration) {
        let news = &mut self.news;
        if news.due_at.is_none_or(|due_at| due_at > now) {
            return;
        }
        news.told_at = Some(now);
        for _ in 0..TOLD_MAX {
            let Some((object, blocks)) = news.blocks.pop_first() else {
                break;
            };
            self.outputs.push_back(Output::Announce { object, blocks });
        }
        news.due_at = (!news.blocks.is_empty()).then_some(now + TELL_EVERY);
    }
}
