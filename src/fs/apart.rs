//! Publishing a changed file of which much is not here, without fetching that.
//!
//! Of whole blocks that show nothing but the content below only the hashes are needed. The new content is made here of what was
//! written, and another member, who has the content below, takes over the rest and promises to keep the whole
//! ([`Transfers::entrust`](crate::transfer::Transfers::entrust)); only then it is published. Whatever goes wrong before that
//! leaves the file as it was, and all of it is fetched and published from here.

use std::{ops::Range, sync::Arc};

use super::{
    core::Core,
    errno::FsError,
    live::{Live, LiveState},
    overlay::{Overlay, Source},
    publish::{blocking, fill_range},
};
use crate::{
    content::{BLOCK_BYTES, BlockSet, Leaves, Object},
    manifest::TreePath,
    store::{Presence, StoreError},
};

/// So many blocks must be lacking, 8 MiB: less is fetched.
const LACKING_MIN: u64 = 128;

/// What became of an attempt.
pub(super) enum Outcome {
    /// The content is the file's from now on, and to be published as this version.
    Made(Object, u64),
    /// The file has changed meanwhile: it is due again.
    Later,
    /// All of the file is needed here.
    No,
}

/// A changed file and what of it need not be here.
struct Plan {
    base: Object,
    /// Whole blocks of the base.
    kept: BlockSet,
}

impl Plan {
    /// `None` where little need not be here.
    fn of(state: &LiveState) -> Option<Self> {
        if state.unlinked || state.done || state.base.blocks() < LACKING_MIN {
            return None;
        }
        let (base, kept) = (state.base, state.overlay.untouched());
        let is_news = !state.overlay.is_base(base.size);
        (is_news && kept.len() >= LACKING_MIN).then_some(Self { base, kept })
    }
}

impl Core {
    /// Makes the content of a changed file without what of the content below is neither here nor changed.
    pub(super) async fn make_apart(self: &Arc<Self>, live: &Arc<Live>) -> Result<Outcome, FsError> {
        // Most files are small, and nothing is asked about these.
        let plan = Plan::of(&live.state.lock()).map(Arc::new);
        let Some(plan) = plan else {
            return Ok(Outcome::No);
        };
        let (core, with) = (self.clone(), plan.clone());
        if !blocking(move || core.lacks_much(&with)).await?? {
            return Ok(Outcome::No);
        }
        // Blocks that are the base's in part.
        loop {
            let hole = next_hole(&live.state.lock(), &plan.kept);
            let Some((base, hole, path)) = hole else {
                break;
            };
            self.fill_hole(live, base, hole, &path).await?;
        }
        let Some(leaves) = self.bring.leaves(plan.base, &plan.kept).await else {
            return Ok(Outcome::No);
        };
        let (core, of, with) = (self.clone(), live.clone(), plan.clone());
        let imported = blocking(move || core.import_apart(&of, &with, &leaves)).await?;
        let Outcome::Made(object, version) = imported else {
            return Ok(imported);
        };
        if !self.bring.entrust(object, plan.base).await {
            return Ok(Outcome::No);
        }
        let (core, of) = (self.clone(), live.clone());
        let adopted = blocking(move || core.adopt_apart(&of, &plan, object, version)).await?;
        Ok(match adopted {
            true => Outcome::Made(object, version),
            false => Outcome::Later,
        })
    }

    /// Whether so much of what need not be here is not that it is worth it.
    fn lacks_much(&self, plan: &Plan) -> Result<bool, StoreError> {
        let here = match self.store.presence(&plan.base)? {
            Presence::Complete => return Ok(false),
            Presence::Partial(here) => here,
            Presence::Absent => BlockSet::default(),
        };
        let kept = plan.kept.ranges().iter();
        let lacking = kept.flat_map(|run| here.missing(run.clone()));
        let lacking: u64 = lacking.map(|run| run.end - run.start).sum();
        Ok(lacking >= LACKING_MIN)
    }

    /// Makes an object of the staging file and the hashes of what is not in it. Writers wait meanwhile. The file stays as it is.
    fn import_apart(&self, live: &Live, plan: &Plan, rest: &Leaves) -> Outcome {
        let _syncing = live.syncing.lock();
        let mut state = live.state.lock();
        let is_same = state.base == plan.base && !state.unlinked && !state.done;
        // What was written since is no rest any more, and must be in the staging file.
        let untouched = state.overlay.untouched();
        let still = |run: &Range<u64>| untouched.contains(run.clone());
        if !is_same
            || !plan.kept.ranges().iter().all(still)
            || next_hole(&state, &plan.kept).is_some()
        {
            return Outcome::Later;
        }
        let (version, size) = (state.version, state.overlay.size());
        let mut known = state.overlay.hashed.clone().into_leaves();
        for block in plan.kept.ranges().iter().cloned().flatten() {
            let Some(hash) = rest.get(block) else {
                return Outcome::No;
            };
            known.put(block, *hash);
        }
        // From here on a kill finds all of it, whatever becomes of this.
        let journaled = state.staging(&self.store);
        if let Err(error) = journaled.and_then(|_| state.journal(&self.store)) {
            tracing::debug!(path = %state.path, %error, "a change could not be journaled");
            return Outcome::No;
        }
        let Some(id) = state.staging.as_ref().and_then(|staging| staging.id) else {
            return Outcome::No;
        };
        state.importing = true;
        drop(state);
        let imported = self.store.import_part(id, size, &known, &plan.kept);
        let mut state = live.state.lock();
        state.importing = false;
        self.published.send_modify(|steps| *steps += 1);
        match imported {
            Ok(object) => Outcome::Made(object, version),
            Err(error) => {
                tracing::debug!(path = %state.path, %error, "a part of a file could not be made an object");
                Outcome::No
            }
        }
    }

    /// Has the file be the content that another member has whole by now; false if it has changed since that was made.
    fn adopt_apart(&self, live: &Live, plan: &Plan, object: Object, version: u64) -> bool {
        let _syncing = live.syncing.lock();
        let mut state = live.state.lock();
        if state.unlinked || state.done || state.base != plan.base || state.version != version {
            return false;
        }
        state.base = object;
        state.overlay = Overlay::over(object.size);
        if let Some(id) = state.staging.as_ref().and_then(|staging| staging.id) {
            self.store.note_imported(id, object);
        }
        state.take_imported();
        true
    }
}

/// The first bytes that must come from the base, but for those in these whole blocks.
pub(super) fn next_hole(
    state: &LiveState,
    but: &BlockSet,
) -> Option<(Object, Range<u64>, TreePath)> {
    if state.unlinked || state.overlay.is_base(state.base.size) {
        return None;
    }
    let pieces = state.overlay.pieces(0..state.overlay.size());
    let base = pieces
        .into_iter()
        .filter(|(_, source)| *source == Source::Base);
    let mut holes = base.filter_map(|(piece, _)| outside(&piece, but));
    Some((state.base, fill_range(holes.next()?), state.path.clone()))
}

/// The first part of a piece that is not in these blocks.
fn outside(piece: &Range<u64>, but: &BlockSet) -> Option<Range<u64>> {
    let blocks = piece.start / BLOCK_BYTES..piece.end.div_ceil(BLOCK_BYTES);
    let run = but.missing(blocks).next()?;
    let (start, end) = (run.start * BLOCK_BYTES, run.end.saturating_mul(BLOCK_BYTES));
    Some(piece.start.max(start)..piece.end.min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_around_blocks_that_need_not_be_here() {
        let b = BLOCK_BYTES;
        let mut but = BlockSet::of(2..4);
        but.insert(6..7);
        for (piece, hole) in [
            (0..10 * b, Some(0..2 * b)),
            (b + 5..10 * b, Some(b + 5..2 * b)),
            (2 * b..10 * b, Some(4 * b..6 * b)),
            (2 * b..4 * b, None),
            (6 * b..7 * b, None),
            (6 * b..7 * b + 1, Some(7 * b..7 * b + 1)),
        ] {
            assert_eq!(outside(&piece, &but), hole, "{piece:?}");
        }
    }
}
