//! Notes what becomes of names of files that have something in the journal, and knows which changes of names no head on disk
//! has yet.
//!
//! Everything here is done while the tree is held ([`super::parts::Tree::hold`]), together with the change it is about.

use std::collections::{BTreeMap, VecDeque};

use super::{
    core::{Core, Fail, Need},
    errno::FsError,
    live::LiveState,
};
use crate::{
    manifest::{Dot, TreePath},
    store::{Move, StagingId, StoreError},
};

/// Names that were changed of late, by the head that will have the change. Pure.
///
/// A journal record is as durable as it is by itself, and tells a name. Were it written for a file whose name no head on disk
/// has, a crash would find it where, by the heads, something else stands. So names come first.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// In the order in which heads are made; with each path how far it is changed.
    by_head: VecDeque<(Dot, BTreeMap<TreePath, Extent>)>,
}

/// What is concerned when a name was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    /// What is below: the name was that of something that had nothing below it, and whatever has it now replaces that.
    Below,
    /// The name, and what is below.
    All,
}

impl Unsettled {
    pub(super) fn note(&mut self, by: Dot, path: TreePath, extent: Extent) {
        if self.by_head.back().is_none_or(|(last, _)| *last != by) {
            self.by_head.push_back((by, BTreeMap::new()));
        }
        if let Some((_, paths)) = self.by_head.back_mut() {
            let known = paths.entry(path).or_insert(extent);
            *known = extent.max(*known);
        }
    }

    /// Whether no head on disk has the place of what stands at a path.
    pub(super) fn concerns(&mut self, path: &TreePath, is_committed: impl Fn(Dot) -> bool) -> bool {
        self.settled(is_committed);
        if self.by_head.is_empty() {
            return false;
        }
        let all = self.by_head.iter();
        let is_at = |at: &TreePath, least: Extent| {
            let mut all = all.clone();
            all.any(|(_, paths)| paths.get(at).is_some_and(|extent| *extent >= least))
        };
        if is_at(path, Extent::All) {
            return true;
        }
        let mut above = path.split().map(|(folder, _)| folder);
        while let Some(folder) = above {
            if is_at(&folder, Extent::Below) {
                return true;
            }
            above = folder.split().map(|(folder, _)| folder);
        }
        false
    }

    /// Whether all names have a head on disk.
    fn is_empty(&mut self, is_committed: impl Fn(Dot) -> bool) -> bool {
        self.settled(is_committed);
        self.by_head.is_empty()
    }

    /// Forgets what is on disk.
    fn settled(&mut self, is_committed: impl Fn(Dot) -> bool) {
        while let Some((by, _)) = self.by_head.front()
            && is_committed(*by)
        {
            self.by_head.pop_front();
        }
    }

    /// The last head that is waited for.
    fn last(&self) -> Option<Dot> {
        self.by_head.back().map(|(by, _)| *by)
    }
}

impl Core {
    /// What was in these staging files is done with: the change that was made just now published, removed or replaced it.
    /// They go once that is on disk.
    pub(super) fn note_end(&self, ids: &[StagingId]) {
        let by = self.tree.committed_by();
        for id in ids {
            let Some(by) = by else { break };
            if let Err(error) = self.store.note_fate(*id, |fate| fate.ended = Some(by)) {
                // Then it may show again, if the process is killed before the staging file goes.
                tracing::warn!(%error, "it could not be noted that a file is done with");
            }
        }
    }

    /// What is being written stands elsewhere by the change that was made just now, where it replaces what is in the staging
    /// files `over` once it is published.
    pub(super) fn note_move(&self, state: &mut LiveState, path: TreePath, over: Vec<StagingId>) {
        let staging = state.staging.as_ref().and_then(|staging| staging.id);
        let ids: Vec<_> = state.imported.iter().copied().chain(staging).collect();
        if let (Some(by), false) = (self.tree.committed_by(), ids.is_empty()) {
            let last = Move {
                by,
                path: path.to_bytes(),
                seen: state.seen.clone(),
                over: over.clone(),
            };
            for id in ids {
                let known = self.store.fate(id).moves.into_iter().map(|known| known.by);
                let committed: Vec<Dot> = known.filter(|by| self.tree.is_committed(*by)).collect();
                let noted = self.store.note_fate(id, |fate| {
                    fate.moved(last.clone(), |by| committed.contains(&by));
                });
                if let Err(error) = noted {
                    tracing::warn!(%path, %error, "a rename of an unpublished file could not be noted");
                }
            }
        }
        state.path = path;
        state.replaced.extend(over);
    }

    /// Notes that names were changed just now.
    pub(super) fn note_names<'a>(&self, paths: impl IntoIterator<Item = (&'a TreePath, Extent)>) {
        if let Some(by) = self.tree.committed_by() {
            let mut unsettled = self.unsettled_names.lock();
            unsettled.settled(|by| self.tree.is_committed(by));
            for (path, extent) in paths {
                unsettled.note(by, path.clone(), extent);
            }
        }
    }

    /// Fails with [`Need::Names`] where no head on disk has a name of a file that is being written.
    pub(super) fn names_are_settled(&self, number: u64, path: &TreePath) -> Result<(), Fail> {
        let is_committed = |by| self.tree.is_committed(by);
        if self.unsettled_names.lock().is_empty(is_committed) {
            return Ok(());
        }
        let mut paths = self.inodes.lock().paths(number);
        paths.push(path.clone());
        let mut unsettled = self.unsettled_names.lock();
        match paths
            .iter()
            .any(|path| unsettled.concerns(path, is_committed))
        {
            true => Err(Fail::Need(Need::Names)),
            false => Ok(()),
        }
    }

    /// Writes the journal record of a file where the journal lacks something; syncs nothing. What it says, its name included,
    /// outlasts this process then.
    pub(super) fn journal(&self, number: u64, state: &mut LiveState) -> Result<(), Fail> {
        // What was changed and is published already has no head yet, perhaps: its name is kept all the same.
        if (state.is_dirty() || state.version > 0) && !state.unlinked {
            self.names_are_settled(number, &state.path)?;
            if state.lacks_record() {
                // Records are of staging files, also where nothing was written: it may have another length, or be new.
                state.staging_to(&self.store, 0)?;
            }
            state.journal(&self.store)?;
        }
        Ok(())
    }

    /// The same, where it is tried again by itself: without names that are on disk there is no record yet.
    pub(super) fn journal_soon(
        &self,
        number: u64,
        state: &mut LiveState,
    ) -> Result<(), StoreError> {
        match state.lacks_record() && self.names_are_settled(number, &state.path).is_ok() {
            true => state.journal(&self.store),
            false => Ok(()),
        }
    }

    /// Puts all changes of names that were made so far on disk.
    pub(super) async fn settle_names(&self) -> Result<(), FsError> {
        let last = self.unsettled_names.lock().last();
        self.tree.flush().await?;
        if let Some(last) = last
            && !self.tree.is_committed(last)
        {
            // In a head that lacks something else, which waits for nodes.
            self.tree.keep().await?;
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

    fn at(path: &str) -> TreePath {
        TreePath::parse(path.as_bytes()).unwrap()
    }

    #[test]
    fn names_are_unsettled_until_the_head_that_has_the_change_is_on_disk() {
        let mut names = Unsettled::default();
        names.note(dot(3), at("d/x"), Extent::All);
        names.note(dot(4), at("e"), Extent::Below);
        let mut concerned =
            |path: &str, committed: u64| names.concerns(&at(path), |by| by.sequence <= committed);
        for path in ["d/x", "d/x/y/z", "e/f"] {
            assert!(concerned(path, 2), "{path}");
        }
        for path in ["d", "d/y", "e", "x"] {
            assert!(!concerned(path, 2), "{path}");
        }
        assert!(!concerned("d/x", 3));
        assert!(concerned("e/f", 3));
        assert!(!concerned("e/f", 4));
    }
}
