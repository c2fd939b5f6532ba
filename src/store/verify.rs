//! Checking all that is here against its hashes: at once, as fast as disk and processors go, or a little at a time.
//!
//! What is checked is read from the disk: pages of it that the kernel has are given up before.

use std::{
    num::NonZeroU64,
    ops::{Bound, Range},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use parking_lot::Mutex;
use rustix::fs::Advice;

use super::{
    Damage, Presence, StoreError,
    cache::{Core, bytes_in},
    check::steps,
    objects::is_of_the_block,
    record::{object_key, parse_object_key},
};
use crate::content::{self, BlockSet, INLINE_BYTES_MAX, Object};

/// Blocks that one thread checks at a time: 16 MiB.
const PIECE_BLOCKS: u64 = 256;
/// Threads at most: more than this many don't make a disk faster.
const THREADS_MAX: usize = 8;
/// Damage that waits for who takes it.
const FOUND_MAX: usize = 256;

/// How far a verification is. All of it grows.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Contents begun.
    pub objects: AtomicU64,
    /// Bytes checked.
    pub bytes: AtomicU64,
    /// Set by whoever wants it to end early.
    pub stop: AtomicBool,
}

/// What a content of a step costs beside its bytes: its record is read, and its files are opened.
const OBJECT_COST_BYTES: u64 = 16 * 1024;

/// How far a check that goes a little at a time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The content. It need not be here any more.
    pub object: Object,
    /// Its first block that was not checked.
    pub block: u64,
}

/// What a step of such a check did.
#[derive(Debug, Default)]
pub struct Step {
    /// Where to go on; `None` when it has come to the end.
    pub next: Option<Place>,
    /// Bytes that were checked.
    pub bytes: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// All pieces, in the order of the records.
struct Pieces<'a> {
    core: &'a Core,
    keys: Box<dyn Iterator<Item = sled::Result<sled::IVec>> + Send>,
    /// What is left of the present object.
    object: Option<(Object, Vec<Range<u64>>)>,
}

impl Pieces<'_> {
    fn next(
        &mut self,
        progress: &VerifyProgress,
    ) -> Option<Result<(Object, Range<u64>), StoreError>> {
        loop {
            if let Some((object, pieces)) = &mut self.object
                && let Some(piece) = pieces.pop()
            {
                return Some(Ok((*object, piece)));
            }
            let found = match self.keys.next()? {
                Ok(key) => parse_object_key(&key),
                Err(error) => return Some(Err(error.into())),
            };
            let present = found.and_then(|object| Ok((object, self.core.present(&object)?)));
            let (object, present) = match present {
                Ok((object, Some(present))) => (object, present),
                Ok((_, None)) => continue,
                Err(error) => return Some(Err(error)),
            };
            progress.objects.fetch_add(1, Ordering::Relaxed);
            let mut pieces: Vec<_> = present.ranges().iter().flat_map(pieces).collect();
            pieces.reverse();
            self.object = Some((object, pieces));
        }
    }
}

/// Cuts a range into pieces.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    range
        .clone()
        .step_by(PIECE_BLOCKS as usize)
        .map(move |start| start..(start + PIECE_BLOCKS).min(end))
}

impl Core {
    /// The blocks of an object that are here, if it is at all.
    fn present(&self, object: &Object) -> Result<Option<BlockSet>, StoreError> {
        if object.size <= INLINE_BYTES_MAX {
            // What could not be read is to be looked at all the more.
            let is_any = self.look(object, |state| !state.is_vacant())?;
            return Ok(is_any
                .filter(|is_any| *is_any)
                .map(|_| BlockSet::of(0..object.blocks())));
        }
        Ok(match self.presence(object)? {
            Presence::Absent => None,
            Presence::Partial(blocks) => Some(blocks),
            Presence::Complete => Some(BlockSet::of(0..object.blocks())),
        })
    }

    /// See [`super::Store::verify`].
    pub(super) fn verify(
        &self,
        progress: &VerifyProgress,
        damaged: &mut dyn FnMut(Damage),
    ) -> Result<(u64, u64), StoreError> {
        self.write_records()?;
        let pieces = Mutex::new(Pieces {
            core: self,
            keys: Box::new(self.objects.iter().keys()),
            object: None,
        });
        let (found, take) = std::sync::mpsc::sync_channel(FOUND_MAX);
        let check = |found: std::sync::mpsc::SyncSender<Damage>| -> Result<(), StoreError> {
            while !progress.stop.load(Ordering::Relaxed) {
                let Some(piece) = pieces.lock().next(progress) else {
                    return Ok(());
                };
                let (object, piece) = piece?;
                for damage in self.check_piece(&object, &piece)? {
                    // Whoever takes it lives as long as this.
                    let _ = found.send(damage);
                }
                let bytes = bytes_in(&object, &BlockSet::of(piece));
                progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads =
            thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
        let outcome = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    let found = found.clone();
                    let check = &check;
                    scope.spawn(move || {
                        let outcome = check(found);
                        if outcome.is_err() {
                            progress.stop.store(true, Ordering::Relaxed);
                        }
                        outcome
                    })
                })
                .collect();
            drop(found);
            while let Ok(damage) = take.recv() {
                damaged(damage);
            }
            let outcomes = workers.into_iter().map(|worker| match worker.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            outcomes.fold(Ok(()), Result::and)
        });
        outcome?;
        Ok((
            progress.objects.load(Ordering::Relaxed),
            progress.bytes.load(Ordering::Relaxed),
        ))
    }

    /// See [`super::Store::verify_step`].
    pub(super) fn verify_step(
        &self,
        from: Option<Place>,
        bytes_max: u64,
    ) -> Result<Step, StoreError> {
        let mut step = Step::default();
        let mut cost = 0;
        let start = from.map_or(Bound::Unbounded, |place| {
            Bound::Included(object_key(&place.object).to_vec())
        });
        for key in self.objects.range((start, Bound::Unbounded)).keys() {
            let object = parse_object_key(&key?)?;
            let Some(mut present) = self.present(&object)? else {
                continue;
            };
            if let Some(place) = from.filter(|place| place.object == object) {
                present.remove(0..place.block);
            }
            for piece in present.ranges().iter().flat_map(steps) {
                if cost >= bytes_max {
                    let block = piece.start;
                    step.next = Some(Place { object, block });
                    return Ok(step);
                }
                step.damage.extend(self.check_piece(&object, &piece)?);
                let bytes = bytes_in(&object, &BlockSet::of(piece));
                step.bytes += bytes;
                cost += bytes;
            }
            cost += OBJECT_COST_BYTES;
        }
        Ok(step)
    }

    /// Checks blocks that are here as they are on the disk. A hash tree that is damaged beside sound data of a complete object
    /// is made anew, and is no damage.
    fn check_piece(&self, object: &Object, piece: &Range<u64>) -> Result<Vec<Damage>, StoreError> {
        if object.size <= INLINE_BYTES_MAX {
            return self.check_packed(object);
        }
        self.forget_pages(object, piece)?;
        let mut found = self.damage_of(object, piece)?;
        if !found.is_empty() && self.presence(object)? == Presence::Complete {
            if self.repair_tree(object, piece)? {
                tracing::warn!(content = %object.content, "the hash tree was damaged and has been made anew");
            }
            // By this thread, or by another meanwhile.
            found = self.damage_of(object, piece)?;
        }
        let damage = found.ranges().iter().map(|blocks| Damage {
            object: *object,
            blocks: blocks.clone(),
        });
        Ok(damage.collect())
    }

    /// Has the kernel read the bytes of some blocks from the disk the next time. What it doesn't give up (it is mapped, or not written yet)
    /// is read from memory all the same.
    fn forget_pages(&self, object: &Object, blocks: &Range<u64>) -> Result<(), StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(());
        };
        let files = match self.files(&hot, false) {
            Err(StoreError::Absent(_)) => return Ok(()),
            // The check itself finds out what that means.
            Err(error) if is_of_the_block(&error) => return Ok(()),
            files => files?,
        };
        let bytes = object.bytes_of(blocks.clone());
        let length = NonZeroU64::new(bytes.end - bytes.start);
        // It is only advice.
        let _ = rustix::fs::fadvise(&*files.data, bytes.start, length, Advice::DontNeed);
        if let Some(tree) = &files.tree.0 {
            let _ = rustix::fs::fadvise(&**tree, 0, None, Advice::DontNeed);
        }
        Ok(())
    }

    /// Which of these blocks do not prove. Blocks that went meanwhile are no damage.
    fn damage_of(&self, object: &Object, blocks: &Range<u64>) -> Result<BlockSet, StoreError> {
        let mut damage = BlockSet::default();
        for step in steps(blocks) {
            if self.proves(object, step.clone())? {
                continue;
            }
            for block in step {
                if !self.proves(object, block..block + 1)? {
                    damage.insert(block..block + 1);
                }
            }
        }
        Ok(damage)
    }

    fn proves(&self, object: &Object, blocks: Range<u64>) -> Result<bool, StoreError> {
        match self.peek(object, blocks.clone()) {
            Ok(encoded) => Ok(content::verify_range(*object, blocks, &encoded).is_ok()),
            // One of several may have gone: then each is asked for by itself.
            Err(StoreError::Absent(_)) => Ok(blocks.end - blocks.start == 1),
            Err(error) if is_of_the_block(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
