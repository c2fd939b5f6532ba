//! Renames that meet concurrent work under the old name.
//!
//! Paths are the keys, so a rename takes entries away under one path and puts them under another. What somebody else did
//! meanwhile under the old path (an edit, a new file in a renamed folder) would stay behind. So a rename leaves a **move
//! hint** under an internal key of the old path: where to, and what it saw. The first writer whose merge brings the two
//! together completes the move ([`complete_moves`]) as an ordinary change; writers who do so independently write equal entries.
//!
//! - Only what is concurrent with the rename moves: one of the merged states has the version and not the hint, the other has
//!   the hint and not the version. Who makes a file under the old name later knows of the rename, and the file stays.
//! - Nothing is lost: a moved version replaces the entry under the new name only where that is the rename's own, untouched
//!   copy ([`Moved`] says of what), which the version's side does not know, of versions that this side has written over or
//!   removed, and not renamed itself. Otherwise both stay, as concurrent versions.
//! - A name that is in use again on the renaming side keeps what others do under it.
//! - What cannot be moved stays where it is: cycles, moves to itself, chains of more than 8, paths that would be too long,
//!   all but the shown one of several concurrent versions, and all but the first of several that would get one path.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CausalContext, Change, Dot, Entry, HybridTime, InternalKey, Key, Kind, MOVE_WRITERS_MAX, Moved,
    NodeHash, NodeSource, Timestamp, TreeError, TreePath, Version, Versions, get,
    merge::list,
    parts::{complete, gather},
    scan,
    tree::{MISSING_MAX, any_in},
    view::groups,
};

/// Hints older than four weeks say nothing any more: writers remove them.
pub const HINT_AGE_MAX_NS: u64 = 28 * 24 * 3600 * 1_000_000_000;

/// Most renames that one version follows at a time.
const CHAIN_MAX: usize = 8;

/// What a rename of a path, with all that is below it, leaves under an internal key: `seen` is the context of the state
/// that it was made on. `None` where there can be no hint: for the root, or after more than 4096 writers.
pub fn move_hint(from: &TreePath, to: &TreePath, seen: &CausalContext) -> Option<(Key, Entry)> {
    let is_root = from.names().is_empty() || to.names().is_empty();
    let fits = !is_root && seen.ranges().count() <= MOVE_WRITERS_MAX;
    fits.then(|| {
        let kind = Kind::Move {
            to: to.clone(),
            seen: seen.clone(),
        };
        let key = Key::of_internal(&InternalKey::Move(from.clone()));
        (key, Entry::new(kind, 0o644, 0, 0, Timestamp(0)))
    })
}

/// Removals of hints that were written before a moment, of at most `limit` keys, for the next commit.
pub fn without_old_hints(
    source: &impl NodeSource,
    root: NodeHash,
    before: HybridTime,
    limit: usize,
) -> Result<BTreeMap<Key, Option<Versions>>, TreeError> {
    let rows = scan(source, root, Key::moves(), usize::MAX)?.into_iter();
    let edits = rows.filter_map(|(key, versions)| {
        let old = versions.as_slice().iter();
        let old: Vec<_> = old
            .filter(|version| version.time < before)
            .map(|version| version.dot)
            .collect();
        let left = Versions::replace(Some(&versions), &old, None);
        (!old.is_empty()).then_some((key, left))
    });
    Ok(edits.take(limit).collect())
}

/// Completes moves where a merge has brought versions and hints together that had not met: the edits that do it, as the
/// write `dot`, on the merged root. `changes` is how the merge differs from ours ([`super::Merged::changes`]). There are none
/// where one side includes the other.
///
/// Changes may also come in portions, on the root that the former portion's edits gave.
///
/// Reads the hints of changed paths and of the folders they are in; below paths that a new hint names, everything.
pub fn complete_moves(
    source: &impl NodeSource,
    merged: NodeHash,
    ours: (NodeHash, &CausalContext),
    theirs: (NodeHash, &CausalContext),
    changes: &[Change],
    dot: Dot,
) -> Result<BTreeMap<Key, Option<Versions>>, TreeError> {
    if !any_in(source, merged, &Key::moves())? {
        return Ok(BTreeMap::new());
    }
    let mut completion = Completion {
        source,
        merged,
        states: [ours, theirs],
        dot,
        hints: BTreeMap::new(),
        edits: BTreeMap::new(),
        missing: BTreeSet::new(),
    };
    let candidates = completion.candidates(changes)?;
    for (key, versions) in &candidates {
        if completion.missing.len() >= MISSING_MAX {
            break;
        }
        completion.consider(key, versions)?;
    }
    complete(completion.missing)?;
    Ok(completion.edits)
}

#[derive(Clone)]
struct Hint {
    to: TreePath,
    seen: CausalContext,
    dot: Dot,
    rank: (HybridTime, Dot),
}

struct Completion<'a, S> {
    source: &'a S,
    merged: NodeHash,
    states: [(NodeHash, &'a CausalContext); 2],
    dot: Dot,
    /// Hints by the path they are about, as far as they were looked up.
    hints: BTreeMap<TreePath, Vec<Hint>>,
    edits: BTreeMap<Key, Option<Versions>>,
    missing: BTreeSet<NodeHash>,
}

impl<S: NodeSource> Completion<'_, S> {
    /// Which of the two states a write came with, when the other has not seen it.
    fn side(&self, dot: Dot) -> Option<usize> {
        match self.states.map(|(_, context)| context.covers(dot)) {
            [true, false] => Some(0),
            [false, true] => Some(1),
            _ => None,
        }
    }

    /// Rows of the merged map that may hold something to be moved: what has changed, and what is under new hints.
    fn candidates(&mut self, changes: &[Change]) -> Result<BTreeMap<Key, Versions>, TreeError> {
        let mut rows = BTreeMap::new();
        for change in changes {
            let Some(versions) = &change.new else {
                continue;
            };
            match change.key.internal() {
                None => {
                    rows.insert(change.key.clone(), versions.clone());
                }
                Some(InternalKey::Move(path)) => {
                    let mut hints = versions.as_slice().iter();
                    if hints.any(|hint| self.side(hint.dot) == Some(1)) {
                        rows.extend(self.under(&path)?);
                    }
                }
                Some(_) => {}
            }
        }
        Ok(rows)
    }

    /// What stands under a path in the merged map, and below it.
    fn under(&mut self, path: &TreePath) -> Result<Vec<(Key, Versions)>, TreeError> {
        let mut rows = Vec::new();
        if let Some(key) = Key::of_path(path) {
            let own = gather(&mut self.missing, get(self.source, self.merged, &key))?;
            rows.extend(own.flatten().map(|versions| (key, versions)));
        }
        for range in Key::below(path) {
            let below = scan(self.source, self.merged, range, usize::MAX);
            rows.extend(gather(&mut self.missing, below)?.unwrap_or_default());
        }
        Ok(rows)
    }

    /// Moves the shown one of the versions under a key that are to be moved.
    fn consider(&mut self, key: &Key, versions: &Versions) -> Result<(), TreeError> {
        let Some(from) = key.path() else {
            return Ok(());
        };
        let mut movable = Vec::new();
        for version in versions.as_slice() {
            if let Some(to) = self.destination(&from, version.dot)? {
                movable.push((version.clone(), to));
            }
        }
        let Some(shown) = Versions::new(movable.iter().map(|(one, _)| one.clone()).collect())
        else {
            return Ok(());
        };
        let groups = groups(&shown);
        let Some(group) = groups.first() else {
            return Ok(());
        };
        let newest = group.newest;
        let destination = movable.iter().find(|(one, _)| one.dot == newest.dot);
        let (Some((_, to)), Some(side)) = (destination, self.side(newest.dot)) else {
            return Ok(());
        };
        // Of equal ones, those that go the same way.
        let together = movable.iter().filter(|(one, other_to)| {
            let equal = one.entry.kind == newest.entry.kind && self.side(one.dot) == Some(side);
            equal && other_to == to
        });
        let dots: Vec<_> = together.map(|(one, _)| one.dot).collect();
        let Some(moved) = Moved::new(from.clone(), &dots) else {
            return Ok(());
        };
        self.put(key, to, side, newest, moved)
    }

    /// Where a version under a path is to be moved: along the hints that it has not met before.
    fn destination(&mut self, from: &TreePath, dot: Dot) -> Result<Option<TreePath>, TreeError> {
        if self.side(dot).is_none() {
            return Ok(None);
        }
        let mut been = vec![from.clone()];
        let mut at = from.clone();
        while let Some(next) = self.step(&at, dot)? {
            let Ok(next) = next else {
                return Ok(None);
            };
            if been.contains(&next) || been.len() > CHAIN_MAX {
                return Ok(None);
            }
            been.push(next.clone());
            at = next;
        }
        Ok((at != *from).then_some(at))
    }

    /// One step along the hint of the path itself, or else of the nearest folder above it.
    fn step(
        &mut self,
        at: &TreePath,
        dot: Dot,
    ) -> Result<Option<Result<TreePath, super::NameError>>, TreeError> {
        let mut above = at.clone();
        while let Some((parent, _)) = above.clone().split() {
            let hints = self.hints(&above)?.into_iter();
            let unmet = hints.filter(|hint| {
                let sides = (self.side(dot), self.side(hint.dot));
                let apart = matches!(sides, (Some(version), Some(hint)) if version != hint);
                apart && !hint.seen.covers(dot)
            });
            if let Some(hint) = unmet.max_by_key(|hint| hint.rank)
                && !self.is_in_use(&above, hint.dot)?
            {
                return Ok(at.moved(&above, &hint.to));
            }
            above = parent;
        }
        Ok(None)
    }

    /// Whether the side of a rename has something else under the old name by now, as after an editor has moved the former
    /// version aside: what others do under the name is meant for that.
    fn is_in_use(&mut self, path: &TreePath, hint: Dot) -> Result<bool, TreeError> {
        let (Some(side), Some(key)) = (self.side(hint), Key::of_path(path)) else {
            return Ok(false);
        };
        let (root, _) = self.states[side];
        let there = gather(&mut self.missing, get(self.source, root, &key))?;
        Ok(there.flatten().is_some())
    }

    fn hints(&mut self, path: &TreePath) -> Result<Vec<Hint>, TreeError> {
        if let Some(hints) = self.hints.get(path) {
            return Ok(hints.clone());
        }
        let key = Key::of_internal(&InternalKey::Move(path.clone()));
        let versions = gather(&mut self.missing, get(self.source, self.merged, &key))?.flatten();
        let hints = list(versions.as_ref()).iter();
        let hints: Vec<_> = hints
            .filter_map(|version| match &version.entry.kind {
                Kind::Move { to, seen } => Some(Hint {
                    to: to.clone(),
                    seen: seen.clone(),
                    dot: version.dot,
                    rank: (version.time, version.dot),
                }),
                _ => None,
            })
            .collect();
        self.hints.insert(path.clone(), hints.clone());
        Ok(hints)
    }

    fn put(
        &mut self,
        key: &Key,
        to: &TreePath,
        side: usize,
        version: &Version,
        moved: Moved,
    ) -> Result<(), TreeError> {
        let Some(to_key) = Key::of_path(to) else {
            return Ok(());
        };
        let (root, context) = self.states[side];
        let there = self.current(&to_key)?;
        let before = gather(&mut self.missing, get(self.source, root, key))?.flatten();
        let taken = self.current(key)?;
        // One write has one version under a key.
        if list(there.as_ref())
            .iter()
            .any(|other| other.dot == self.dot)
        {
            return Ok(());
        }
        let renamed = self.has_renamed(side, moved.from())?;
        let alive: BTreeSet<_> = list(before.as_ref())
            .iter()
            .map(|other| other.dot)
            .collect();
        let is_given_up = |other: &&Version| {
            let Some(copied) = &other.moved else {
                return false;
            };
            let mut dots = copied.dots().iter();
            copied.from() == moved.from()
                && self.side(other.dot) == Some(1 - side)
                && !renamed
                && dots.all(|dot| context.covers(*dot) && !alive.contains(dot))
        };
        let replaced = list(there.as_ref()).iter().filter(is_given_up);
        let replaced: Vec<_> = replaced.map(|other| other.dot).collect();
        let left = Versions::replace(taken.as_ref(), moved.dots(), None);
        let new = Version {
            dot: self.dot,
            time: version.time,
            entry: version.entry.clone(),
            moved: Some(moved),
        };
        let put = Versions::replace(there.as_ref(), &replaced, Some(new));
        self.edits.insert(key.clone(), left);
        self.edits.insert(to_key, put);
        Ok(())
    }

    /// Whether one side has a rename of a path, or of a folder above it, that the other doesn't know.
    fn has_renamed(&mut self, side: usize, path: &TreePath) -> Result<bool, TreeError> {
        let mut at = path.clone();
        while let Some((parent, _)) = at.clone().split() {
            let hints = self.hints(&at)?;
            if hints.iter().any(|hint| self.side(hint.dot) == Some(side)) {
                return Ok(true);
            }
            at = parent;
        }
        Ok(false)
    }

    /// The versions under a key, with the edits so far.
    fn current(&mut self, key: &Key) -> Result<Option<Versions>, TreeError> {
        match self.edits.get(key) {
            Some(edited) => Ok(edited.clone()),
            None => {
                let there = get(self.source, self.merged, key);
                Ok(gather(&mut self.missing, there)?.flatten())
            }
        }
    }
}

#[cfg(test)]
mod tests;
