//! What becomes of a staging file's name after its journal record was written: renames, and the end.
//!
//! Names are as durable as the heads that have them, journal records are so by themselves. So that a crash finds both as of one
//! moment, a change of a name never touches the record: it is noted here, with the head that will have the change, and
//! counts only once that head is on disk. The note goes into the index before that head is begun, and so reaches the disk
//! with it or before.
//!
//! A name that has changed without its note is another file's after a crash. So a note is not refused where the index takes nothing
//! else (there is room left for what can't be refused), and what makes notes without end, renames, is asked for first
//! ([`super::Store::takes_notes`]).

use serde::{Deserialize, Serialize};

use super::{
    StagingId, StoreError,
    cache::Core,
    record::{decode_fate, encode_fate},
};
use crate::manifest::Dot;

/// Moves that are remembered of a file, of which no two came by one head. More are pending only while heads can't be made of
/// all changes.
const MOVES_MAX: usize = 16;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// In the order in which they were made.
    pub moves: Vec<Move>,
    /// By which head it was published, removed or replaced: its record tells nothing any more.
    pub ended: Option<Dot>,
    /// Another file took its name without having seen it and what it stands on or replaces, of which this is the newest: what
    /// was published there since isn't replaced by any of them.
    #[serde(default)]
    pub beside: Option<StagingId>,
}

/// A rename of what a staging file is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The first head that has it.
    pub by: Dot,
    /// Where to, as in [`super::JournalRecord`].
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The versions that it replaces there.
    pub seen: Vec<Dot>,
    /// Staging files of what it replaces there, where no head has it in that place before this file is published.
    pub over: Vec<StagingId>,
}

impl Fate {
    /// Adds a move. Of those that are on disk, and of those by one head, only the last counts.
    pub fn moved(&mut self, last: Move, is_committed: impl Fn(Dot) -> bool) {
        let committed = self.moves.iter().rposition(|known| is_committed(known.by));
        self.moves.drain(..committed.unwrap_or(0));
        self.moves.retain(|known| known.by != last.by);
        if self.moves.len() >= MOVES_MAX {
            // The first may be where it stands.
            self.moves.remove(1);
        }
        self.moves.push(last);
    }

    /// Where it stands if these heads are on disk, `None` if where its record says.
    pub fn place(&self, is_committed: impl Fn(Dot) -> bool) -> Option<&Move> {
        self.moves.iter().rfind(|known| is_committed(known.by))
    }
}

/// More than a note takes, but for very long paths.
const NOTE_BYTES: u64 = 8 * 1024;

impl Core {
    /// See [`super::Store::takes_notes`].
    pub(super) fn takes_notes(&self) -> Result<(), StoreError> {
        self.index_takes(NOTE_BYTES)
    }

    /// Changes what is known of a staging file's name.
    pub(super) fn note_fate(
        &self,
        id: StagingId,
        note: impl FnOnce(&mut Fate),
    ) -> Result<(), StoreError> {
        // Until it is in the index: of two notes of one file the later is the one that stays.
        let mut staging = self.staging.lock();
        let mut fate = staging.fates.get(&id).cloned().unwrap_or_default();
        note(&mut fate);
        let encoded = encode_fate(&fate)?;
        match self.index_takes(encoded.len() as u64) {
            Ok(()) | Err(StoreError::Full) => {}
            Err(error) => return Err(error),
        }
        self.fates.insert(id.0.to_be_bytes(), encoded)?;
        staging.fates.insert(id, fate);
        Ok(())
    }

    /// What the index knows of a staging file's name goes, once the file has gone.
    pub(super) fn forget_fate(&self, id: StagingId) -> Result<(), StoreError> {
        let mut staging = self.staging.lock();
        if staging.fates.remove(&id).is_some() {
            self.fates.remove(id.0.to_be_bytes())?;
        }
        Ok(())
    }

    /// Reads what the last process noted of files that are still there; forgets the others.
    pub(super) fn recover_fates(
        &self,
        is_there: impl Fn(StagingId) -> bool,
    ) -> Result<(), StoreError> {
        for pair in self.fates.iter() {
            let (key, value) = pair?;
            let id = key.as_ref().try_into().ok();
            let id = id.map(|id| StagingId(u64::from_be_bytes(id)));
            if let Some(id) = id.filter(|id| is_there(*id)) {
                match decode_fate(&value) {
                    Ok(fate) => {
                        self.staging.lock().fates.insert(id, fate);
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(%error, file = id.0, "removing a note of a rename");
                    }
                }
            }
            self.fates.remove(key)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::WriterNumber;

    fn dot(sequence: u64) -> Dot {
        Dot {
            writer: WriterNumber(1),
            sequence,
        }
    }

    fn step(by: u64, path: &str) -> Move {
        Move {
            by: dot(by),
            path: path.into(),
            seen: Vec::new(),
            over: Vec::new(),
        }
    }

    #[test]
    fn a_file_stands_where_the_heads_on_disk_have_it_however_often_it_is_renamed() {
        for committed in 0..40 {
            let mut fate = Fate::default();
            let mut steps = Vec::new();
            for number in 0..60u64 {
                // Three renames to a head; each head is on disk when the one after the next is begun.
                let by = number / 3 + 1;
                let last = step(by, &format!("{number}"));
                steps.push(last.clone());
                fate.moved(last, |known| known.sequence + 1 < by);
                if by > committed + 2 {
                    continue;
                }
                let is_on_disk = |known: Dot| known.sequence <= committed;
                let expected = steps.iter().rfind(|known| is_on_disk(known.by));
                assert_eq!(fate.place(is_on_disk), expected, "{number}");
            }
            assert!(fate.moves.len() <= 3, "{fate:?}");
        }
    }

    #[test]
    fn no_more_moves_are_kept_than_the_bound() {
        let mut fate = Fate::default();
        for by in 1..100 {
            fate.moved(step(by, "x"), |_| false);
            assert!(fate.moves.len() <= MOVES_MAX);
        }
        assert_eq!(fate.place(|by| by == dot(1)), Some(&step(1, "x")));
        assert_eq!(fate.place(|_| true), Some(&step(99, "x")));
    }
}
