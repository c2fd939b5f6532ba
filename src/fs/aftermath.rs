//! What a crash has left to be published, and where it belongs. Pure.
//!
//! The journal has a record of each staging file, and notes of what became of its name afterwards, each with the head that has
//! that change ([`crate::store::Fate`]). Heads have names and what was published under them. A crash keeps some heads, and so
//! all notes of what these have:
//!
//! - A file whose end is in a head that was kept (published, removed, replaced) is done with, and its record goes.
//! - Others stand where the last rename in such a head took them, or else where their record says: each name is as of one
//!   moment, that of the last head.
//! - A new file has no name in any head before it is published. What it replaces is not done with before that: of the two,
//!   the new one counts if it is there at all.
//! - Of several records for one name the newest counts otherwise. It may stand on those before it.
//! - One whose name another file took while it could not be taken up is neither older nor newer than that: it stays beside it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    manifest::Dot,
    store::{Fate, JournalRecord, Move, StagingId},
};

/// A record that the journal has, and what became of the name.
pub(super) type Left = (StagingId, JournalRecord, Fate);

/// A file that was not published.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unfinished {
    /// Its newest staging file.
    pub(super) id: StagingId,
    /// What the journal says of it, with the name that it has now.
    pub(super) record: JournalRecord,
    /// Staging files that it may stand on.
    pub(super) older: Vec<StagingId>,
    /// Those of files that it replaces.
    pub(super) replaced: Vec<StagingId>,
    /// Another file took its name without having seen it.
    pub(super) is_beside: bool,
}

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Aftermath {
    pub(super) unfinished: Vec<Unfinished>,
    /// What is done with.
    pub(super) ended: Vec<StagingId>,
    /// What is to be noted of the names from now on: dots that no head has yet mean something else in this process.
    pub(super) fates: Vec<(StagingId, Fate)>,
}

/// Sorts out what is left. `is_kept`: whether the crash has kept the head, or a later one.
pub(super) fn sort_out(left: Vec<Left>, is_kept: impl Fn(Dot) -> bool) -> Aftermath {
    let mut aftermath = Aftermath::default();
    let mut over: BTreeMap<StagingId, Vec<StagingId>> = BTreeMap::new();
    // Those that are beside others come after these.
    let mut by_path: BTreeMap<_, BTreeMap<StagingId, JournalRecord>> = BTreeMap::new();
    for (id, mut record, fate) in left {
        if fate.ended.is_some_and(&is_kept) {
            aftermath.ended.push(id);
            continue;
        }
        let place = fate.place(&is_kept).cloned();
        let fate_now = Fate {
            moves: place.clone().into_iter().collect(),
            ended: None,
            beside: fate.beside,
        };
        if fate_now != fate {
            aftermath.fates.push((id, fate_now));
        }
        if let Some(Move {
            path,
            seen,
            over: replaced,
            ..
        }) = place
        {
            record.path = path;
            record.seen.extend(seen);
            record.seen.sort_unstable();
            record.seen.dedup();
            over.insert(id, replaced);
        }
        by_path
            .entry((fate.beside, record.path.clone()))
            .or_default()
            .insert(id, record);
    }
    for ((beside, _), mut same) in by_path {
        let ids: BTreeSet<StagingId> = same.keys().copied().collect();
        let replaced: BTreeSet<StagingId> = ids
            .iter()
            .filter_map(|id| over.get(id))
            .flatten()
            .copied()
            .collect();
        // Should each say that it replaces the other, the newest counts.
        let newest = ids.difference(&replaced).last();
        let Some(id) = newest.or(ids.last()).copied() else {
            continue;
        };
        let Some(record) = same.remove(&id) else {
            continue;
        };
        let (replaced, older) = same.into_keys().partition(|id| replaced.contains(id));
        aftermath.unfinished.push(Unfinished {
            id,
            record,
            older,
            replaced,
            is_beside: beside.is_some(),
        });
    }
    aftermath
}

#[cfg(test)]
#[path = "aftermath/tests.rs"]
mod tests;
