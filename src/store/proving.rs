//! Proving what is read: blocks that were not proven a short while ago are checked against the hash tree before their bytes
//! leave the store, for readers and for peers alike. Damaged ones are dropped, so that who reads gets them from others.
//!
//! What the kernel reads by itself from a backing file that was lent to it is not seen here; `verify` and the scrub find
//! damage there. The kernel's page cache keeps what programs read through p2pfs, so most re-reads don't come here at all.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Damage, StoreError,
    cache::{Core, Hot},
    check::steps,
    objects::is_of_the_block,
};
use crate::{
    buffers::Buffer,
    content::{self, BlockSet, Object},
};

/// How long blocks that were proven are taken to be what they were. What changes on a disk while the pages are in memory is not seen
/// before they are read from the disk again.
const PROVEN_FOR: Duration = Duration::from_secs(600);
/// Ranges of an object that are remembered as proven; with more it starts anew. Random readers make many.
const RANGES_MAX: usize = 1024;
/// Damage that waits for somebody to repair it; of more nothing is known until it is read again, or verified.
const FOUND_MAX: usize = 4096;

/// Which blocks of an object were proven a short while ago.
#[derive(Default)]
pub(super) struct Proven {
    since: Option<Instant>,
    blocks: BlockSet,
}

impl Proven {
    /// Those of some blocks that are to be proven.
    fn missing(&self, blocks: Range<u64>, now: Instant) -> Vec<Range<u64>> {
        match self.since {
            Some(since) if now.saturating_duration_since(since) < PROVEN_FOR => {
                self.blocks.missing(blocks).collect()
            }
            _ => vec![blocks],
        }
    }

    /// Notes blocks that were proven now.
    pub(super) fn note(&mut self, blocks: Range<u64>, now: Instant) {
        let is_old = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= PROVEN_FOR);
        if is_old || self.blocks.ranges().len() >= RANGES_MAX {
            self.since = Some(now);
            self.blocks = BlockSet::default();
        }
        self.blocks.insert(blocks);
    }

    /// Nothing is known of some blocks any more.
    pub(super) fn forget(&mut self, blocks: Range<u64>) {
        self.blocks.remove(blocks);
    }
}

/// Damage that was found while something was read, for whoever repairs it.
#[derive(Default)]
pub(super) struct Found {
    waiting: Mutex<VecDeque<Damage>>,
    came: Notify,
}

impl Found {
    fn put(&self, damage: Damage) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < FOUND_MAX && !waiting.contains(&damage) {
            waiting.push_back(damage);
        }
        drop(waiting);
        self.came.notify_one();
    }

    /// Waits for some. For one task at a time.
    pub(super) async fn next(&self) -> Damage {
        loop {
            let damage = self.waiting.lock().pop_front();
            match damage {
                Some(damage) => return damage,
                None => self.came.notified().await,
            }
        }
    }
}

impl Hot {
    /// Those of some blocks that are to be proven before they are read.
    fn unproven(&self, blocks: &Range<u64>) -> Vec<Range<u64>> {
        let state = self.state.read();
        match state.record.inline {
            // It was proven when it was taken into use.
            Some(_) => Vec::new(),
            None => state.proven.missing(blocks.clone(), Instant::now()),
        }
    }

    /// Notes blocks that were proven, unless some were dropped since there were so many drops.
    fn note_proven(&self, blocks: Range<u64>, drops: u64) {
        let mut state = self.state.write();
        if state.drops == drops {
            state.proven.note(blocks, Instant::now());
        }
    }
}

impl Core {
    /// Proves those of the blocks that are here and were not proven a short while ago. Damaged ones are dropped, and told to
    /// who repairs. That some are not here is no error.
    ///
    /// # Errors
    /// Of the disk, where that says nothing of the bytes or could not be found out.
    pub(super) fn prove(&self, object: &Object, blocks: &Range<u64>) -> Result<(), StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(());
        };
        let unproven = hot.unproven(blocks);
        for step in unproven.iter().flat_map(steps) {
            let drops = hot.state.read().drops;
            let is_sound = match self.encode(object, step.clone()) {
                Ok(encoded) => content::verify_range(*object, step.clone(), &encoded).is_ok(),
                // Whoever reads finds out by himself what is missing.
                Err(StoreError::Absent(_)) => continue,
                Err(error) if is_of_the_block(&error) => false,
                Err(error) => return Err(error),
            };
            if is_sound {
                hot.note_proven(step, drops);
                continue;
            }
            let path = self.data_path(object);
            tracing::error!(path = %path.display(), blocks = ?step, "damaged on the disk: what is wrong of it is dropped and had anew");
            self.reprove(object, step.clone())?;
            self.tell_of_damage(object, step)?;
        }
        Ok(())
    }

    /// As [`Core::prove`], whenever they were proven last.
    pub(super) fn prove_anew(
        &self,
        object: &Object,
        blocks: &Range<u64>,
    ) -> Result<(), StoreError> {
        if let Some(hot) = self.hot(object)? {
            hot.state.write().proven.forget(blocks.clone());
        }
        self.prove(object, blocks)
    }

    /// See [`super::Store::encode`]. What proves the blocks to a peer proves them here as well, so they are read once.
    pub(super) fn encode_proven(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<Buffer, StoreError> {
        if let Some(hot) = self.hot(object)?
            && !hot.unproven(&blocks).is_empty()
        {
            let drops = hot.state.read().drops;
            if let Ok(encoded) = self.encode(object, blocks.clone())
                && content::verify_range(*object, blocks.clone(), &encoded).is_ok()
            {
                hot.note_proven(blocks, drops);
                return Ok(encoded);
            }
            // What is wrong, and with which of them, is found out next.
            self.prove(object, &blocks)?;
        }
        self.encode(object, blocks)
    }

    /// Has a small content repaired that can't be read, or isn't what it should be.
    pub(super) fn tell_of_packed(&self, object: &Object) {
        tracing::error!(content = %object.content, "damaged on the disk, or not to be read: had anew");
        self.found.put(Damage {
            object: *object,
            blocks: 0..object.blocks(),
        });
    }

    /// Has those of the blocks repaired that are not here any more.
    fn tell_of_damage(&self, object: &Object, blocks: Range<u64>) -> Result<(), StoreError> {
        let missing: Option<Vec<Range<u64>>> = self.look(object, |state| {
            state.record.present.missing(blocks.clone()).collect()
        })?;
        for blocks in missing.unwrap_or_else(|| vec![blocks]) {
            self.found.put(Damage {
                object: *object,
                blocks,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proven_counts_for_a_while_and_until_it_is_dropped() {
        let begun = Instant::now();
        let mut proven = Proven::default();
        assert_eq!(proven.missing(0..4, begun), [0..4]);
        proven.note(0..3, begun);
        assert_eq!(proven.missing(0..4, begun), [3..4]);
        proven.forget(1..2);
        assert_eq!(proven.missing(0..3, begun), [1..2]);
        let later = begun + PROVEN_FOR;
        assert_eq!(proven.missing(0..3, later), [0..3]);
        proven.note(2..3, later);
        assert_eq!(proven.missing(0..3, later), [0..2]);
    }

    #[test]
    fn no_more_ranges_are_remembered_than_the_maximum() {
        let now = Instant::now();
        let mut proven = Proven::default();
        for block in 0..10 * RANGES_MAX as u64 {
            proven.note(2 * block..2 * block + 1, now);
            assert!(proven.blocks.ranges().len() <= RANGES_MAX);
        }
    }
}
