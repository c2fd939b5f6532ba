//! Renaming. A folder's entries are rewritten under their new paths in one change; no content moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    fs::{
        core::{Core, Fail},
        errno::FsError,
        live::Live,
    },
    manifest::{Dot, Entry, Kind, Shown, TreePath},
    node::namespace::Edit,
};

/// What to do about an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    /// It is replaced.
    Yes,
    /// It is an error.
    No,
    /// The two change places.
    Exchange,
}

/// Edits of a move, gathered so that each path has one.
#[derive(Default)]
struct Moves {
    /// What is replaced, by path.
    old: BTreeMap<TreePath, Vec<Dot>>,
    /// What comes, by path, and whether it is held back.
    new: BTreeMap<TreePath, (Entry, bool)>,
}

impl Core {
    /// Renames.
    pub(crate) fn rename(
        &self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        replace: Replace,
    ) -> Result<(), Fail> {
        self.writable()?;
        let _order = self.order.write();
        let (from_name, from_path) = self.place(from.0, from.1)?;
        let (to_name, to_path) = self.place(to.0, to.1)?;
        let source = self.shown(&from_path)?.ok_or(FsError::NotFound)?;
        if from_path == to_path {
            return Ok(());
        }
        let target = self.shown(&to_path)?;
        let nested = to_path.is_within(&from_path)
            || (replace == Replace::Exchange && from_path.is_within(&to_path));
        match (&target, replace) {
            _ if nested => return Err(FsError::Invalid.into()),
            (Some(_), Replace::No) => return Err(FsError::Exists.into()),
            (None, Replace::Exchange) => return Err(FsError::NotFound.into()),
            (Some(target), Replace::Yes) => self.check_replaceable(&source, target, &to_path)?,
            (Some(_), Replace::Exchange) | (None, Replace::Yes | Replace::No) => {}
        }
        let mut edits = self.keep_folder(&from_path)?;
        let held = self.held(&[&from_path, &to_path]);
        let mut moves = Moves::default();
        let target_seen = target
            .as_ref()
            .map_or(Vec::new(), |target| target.seen.clone());
        moves.old.insert(to_path.clone(), target_seen.clone());
        let source_seen = source.seen.clone();
        self.gather(&mut moves, &held, &from_path, &to_path, source)?;
        if let (Some(target), Replace::Exchange) = (target, replace) {
            self.gather(&mut moves, &held, &to_path, &from_path, target)?;
        }
        edits.extend(moves.into_edits());
        self.change(edits)?;
        if replace != Replace::Exchange {
            let replaced = self.inodes.lock().child(to.0, &to_name);
            if let Some(number) = replaced {
                self.disown(number);
            }
        }
        let mut inodes = self.inodes.lock();
        match replace {
            Replace::Exchange => inodes.exchange((from.0, &from_name), (to.0, &to_name)),
            Replace::Yes | Replace::No => inodes.rename((from.0, &from_name), (to.0, &to_name)),
        }
        drop(inodes);
        self.move_lives(&from_path, &to_path, &target_seen, &source_seen, replace);
        Ok(())
    }

    fn check_replaceable(
        &self,
        source: &Shown,
        target: &Shown,
        to_path: &TreePath,
    ) -> Result<(), Fail> {
        let is_folder = |shown: &Shown| shown.entry.kind == Kind::Directory;
        match (is_folder(source), is_folder(target)) {
            (false, false) => Ok(()),
            (true, false) => Err(FsError::NotDirectory.into()),
            (false, true) => Err(FsError::IsDirectory.into()),
            (true, true) => match self.tree.children(to_path)?.is_empty() {
                true => Ok(()),
                false => Err(FsError::NotEmpty.into()),
            },
        }
    }

    /// Files being written that stand at these places or below, or whose place is not known. Others are left alone: their
    /// state may be busy with the disk, and nobody looks up a name meanwhile.
    fn lives_at(&self, places: &[&TreePath]) -> Vec<Arc<Live>> {
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let inodes = self.inodes.lock();
        let concerned = |live: &Arc<Live>| match inodes.path(live.number) {
            Some(path) => places.iter().any(|place| path.is_within(place)),
            None => true,
        };
        lives.into_iter().filter(concerned).collect()
    }

    /// Paths whose entries are held back until their first publication.
    fn held(&self, places: &[&TreePath]) -> BTreeSet<TreePath> {
        let mut held = BTreeSet::new();
        for live in self.lives_at(places) {
            let state = live.state.lock();
            if state.fresh && !state.unlinked && !state.done {
                held.insert(state.path.clone());
            }
        }
        held
    }

    fn gather(
        &self,
        moves: &mut Moves,
        held: &BTreeSet<TreePath>,
        from: &TreePath,
        to: &TreePath,
        shown: Shown,
    ) -> Result<(), Fail> {
        let below = match shown.entry.kind {
            Kind::Directory => self.tree.below(from)?,
            _ => Vec::new(),
        };
        for (path, mut shown) in std::iter::once((from.clone(), shown)).chain(below) {
            if shown.entry.kind == Kind::Directory {
                // Put anew, the entry tells the folder's time; as it is seen now.
                shown.entry.modified = self.tree.folder_modified(&path)?;
            }
            let moved = path.moved(from, to).ok_or(FsError::Invalid)?;
            let is_held = held.contains(&path);
            moves
                .new
                .insert(moved.map_err(FsError::from)?, (shown.entry, is_held));
            moves.old.insert(path, shown.seen);
        }
        Ok(())
    }

    /// Files that are being written move along.
    fn move_lives(
        &self,
        from: &TreePath,
        to: &TreePath,
        target_seen: &[Dot],
        source_seen: &[Dot],
        replace: Replace,
    ) {
        // The table of inodes has the new places already.
        for live in self.lives_at(&[from, to]) {
            let mut state = live.state.lock();
            if state.unlinked || state.done {
                continue;
            }
            let moved = match state.path.moved(from, to) {
                Some(Ok(moved)) => (moved, target_seen, to),
                Some(Err(_)) => continue,
                None if replace == Replace::Exchange => match state.path.moved(to, from) {
                    Some(Ok(moved)) => (moved, source_seen, from),
                    _ => continue,
                },
                None => continue,
            };
            let (path, seen, top) = moved;
            // Below a moved folder nothing was there before; what the move itself writes counts as seen by its content.
            state.seen = if path == *top {
                seen.to_vec()
            } else {
                Vec::new()
            };
            state.path = path;
            state.is_moved = state.is_durable;
            state.journaled = u64::MAX;
            if state.staging.is_some()
                && let Err(error) = state.journal(&self.store)
            {
                tracing::warn!(path = %state.path, %error, "the journal could not be written");
            }
        }
    }
}

impl Moves {
    fn into_edits(mut self) -> Vec<Edit> {
        let paths: BTreeSet<TreePath> = self.old.keys().chain(self.new.keys()).cloned().collect();
        let mut edits = Vec::with_capacity(paths.len());
        for path in paths {
            let seen = self.old.remove(&path).unwrap_or_default();
            let (entry, held) = match self.new.remove(&path) {
                Some((entry, held)) => (Some(entry), held),
                None => (None, false),
            };
            edits.push(Edit {
                path,
                entry,
                seen,
                held,
            });
        }
        // What is below a folder comes before it: a folder's own time holds if nothing in it is later.
        edits.reverse();
        edits
    }
}
