//! Changing attributes and length.

use parking_lot::MutexGuard;

use crate::{
    fs::{
        core::{Attr, Core, Fail, now, now_hybrid},
        errno::FsError,
        inodes::{Facts, ROOT},
        live::{Live, LiveState},
        overlay::FILE_BYTES_MAX,
    },
    manifest::{Entry, Kind, Timestamp, TreePath},
    store::{JournalRecord, StagingId},
};

/// What to set; the access time is not kept for longer than the inode is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<Timestamp>,
    pub(crate) modified: Option<Timestamp>,
}

impl Core {
    /// Sets attributes. On a file that isn't being written that is a change of its entry and moves no content; on one that
    /// is, it is published together with what is written.
    pub(crate) fn setattr(&self, number: u64, changes: &Changes) -> Result<Attr, Fail> {
        self.writable()?;
        {
            let _order = self.order.read();
            if let Some(size) = changes.size {
                self.resize(number, size, changes.modified)?;
            }
            let rest = Changes {
                size: None,
                ..changes.clone()
            };
            self.change_entry(number, |entry| rest.apply(entry))?;
            if let Some(accessed) = changes.accessed {
                self.inodes.lock().set_accessed(number, accessed);
            }
        }
        self.getattr(number).or_else(|_| self.last_attr(number))
    }

    /// Attributes as they are known without asking the tree: for when something has been changed already, so that the
    /// operation must not be repeated.
    fn last_attr(&self, number: u64) -> Result<Attr, Fail> {
        let facts = self.inodes.lock().facts(number).cloned();
        let facts = facts.ok_or(FsError::Stale)?;
        Ok(self.attr_now(number, &facts, true))
    }

    fn resize(&self, number: u64, size: u64, modified: Option<Timestamp>) -> Result<(), Fail> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooLarge.into());
        }
        let facts = match self.with_live(number, |live| live.facts()) {
            Some(facts) => facts,
            None => {
                let facts = self.inodes.lock().facts(number).cloned();
                facts.ok_or(FsError::Stale)?
            }
        };
        match facts.kind {
            Kind::File(_) => {}
            Kind::Directory => return Err(FsError::IsDirectory.into()),
            Kind::Link(_) => return Err(FsError::Stuck.into()),
            _ => return Err(FsError::Invalid.into()),
        }
        // A writer for as long as it takes: the live state can't end under it.
        self.start_writing(number)?;
        let cut = self.cut(number, size, modified);
        self.closed(number, true);
        cut
    }

    /// Sets the length of a file that is being written.
    fn cut(&self, number: u64, size: u64, modified: Option<Timestamp>) -> Result<(), Fail> {
        let live = self.live(number).ok_or(FsError::BadHandle)?;
        let _syncing = self.forget_cut(&live, size)?;
        self.alter(number, |live| {
            live.unshare(&self.store)?;
            if let Some(staging) = &live.staging
                && size < live.overlay.size()
            {
                if let Some(record) = Self::record_cut(live, size) {
                    self.names_are_settled(number, &live.path)?;
                    self.store.journal(record.0, &record.1, false)?;
                }
                // What is cut off must not show again when the file grows.
                if let Err(error) = staging.file.set_len(size) {
                    // The journal tells of less than there is.
                    live.touch(now_hybrid());
                    return Err(error.into());
                }
            }
            live.overlay.truncate(size);
            live.entry.modified = modified.unwrap_or_else(now);
            drop_set_id(&mut live.entry);
            Ok(())
        })
    }

    /// Has the journal's durable record tell no more of bytes that are about to be cut off a staging file: a crash would find
    /// zeros in their place. Nothing else is synced until the guard is dropped.
    fn forget_cut<'a>(&self, live: &'a Live, size: u64) -> Result<MutexGuard<'a, ()>, Fail> {
        if live.state.lock().importing {
            return Err(Self::after_import(live.number));
        }
        let syncing = live.syncing.lock();
        let state = live.state.lock();
        if state.is_durable
            && size < state.overlay.size()
            && let Some((id, record)) = Self::record_cut(&state, size)
        {
            self.names_are_settled(live.number, &state.path)?;
            drop(state);
            self.store.journal(id, &record, true)?;
        }
        Ok(syncing)
    }

    /// What the journal is to tell of a file before it is cut to a length, if it tells anything of it.
    fn record_cut(state: &LiveState, size: u64) -> Option<(StagingId, JournalRecord)> {
        let id = state.staging.as_ref().and_then(|staging| staging.id);
        let is_told = state.is_durable || state.is_recorded;
        let id = id.filter(|_| is_told && !state.unlinked)?;
        let mut record = state.record();
        record.cut(size);
        Some((id, record))
    }

    /// Changes the entry of an inode, wherever its truth is at the moment.
    pub(in crate::fs) fn change_entry(
        &self,
        number: u64,
        mut change: impl FnMut(&mut Entry),
    ) -> Result<(), Fail> {
        let changed_live = self.with_live(number, |live: &mut LiveState| {
            let mut entry = live.entry.clone();
            change(&mut entry);
            let is_changed = entry != live.entry;
            let takes = live.is_dirty() || live.unlinked || live.importing;
            if takes && is_changed {
                live.entry = entry;
                live.touch(now_hybrid());
            }
            takes || !is_changed
        });
        if changed_live == Some(true) {
            return Ok(());
        }
        if number == ROOT {
            // The root has no entry of its own, so nothing of it can be kept; tools that copy whole trees try to.
            return Ok(());
        }
        if self.inodes.lock().path(number).is_none() {
            return self.change_detached(number, change);
        }
        let (path, shown, facts) = self.stands(number)?.ok_or(FsError::Stale)?;
        if matches!(shown.entry.kind, Kind::Link(_)) {
            // What there is to say of it stands in a record that is nowhere.
            return Err(FsError::Stuck.into());
        }
        let mut entry = shown.entry.clone();
        // A folder's entry, put anew, tells its time: what is seen now, unless that is what changes.
        entry.modified = facts.modified;
        let before = entry.clone();
        change(&mut entry);
        if entry == before {
            return Ok(());
        }
        self.change(Self::edits_for(&path, &shown, entry.clone()))?;
        self.with_live(number, |live| {
            live.entry = entry.clone();
            live.began = Some(entry.clone());
        });
        let facts = self.facts_after(&path, &entry);
        self.inodes.lock().set_facts(number, facts);
        Ok(())
    }

    fn change_detached(&self, number: u64, mut change: impl FnMut(&mut Entry)) -> Result<(), Fail> {
        let mut inodes = self.inodes.lock();
        let facts = inodes.facts(number).ok_or(FsError::Stale)?.clone();
        let changed = facts.changed;
        let mut entry = crate::fs::live::plain_entry(
            facts.kind,
            facts.mode,
            facts.owner,
            facts.group,
            facts.modified,
        );
        change(&mut entry);
        inodes.set_facts(number, Facts::of_entry(&entry, changed));
        Ok(())
    }

    /// Facts of an entry that was just put at a path. Never needs anything: the change is done and must not be repeated.
    pub(in crate::fs) fn facts_after(&self, path: &TreePath, entry: &Entry) -> Facts {
        match self.tree.get(path) {
            Ok(Some(shown)) if shown.entry == *entry => {
                let facts = Facts::of(&shown);
                let links = self.count_names(facts.file).unwrap_or(1);
                Facts { links, ..facts }
            }
            _ => Facts::of_entry(entry, now_hybrid()),
        }
    }
}

impl Changes {
    fn apply(&self, entry: &mut Entry) {
        if self.uid.is_some() || self.gid.is_some() {
            drop_set_id(entry);
        }
        if let Some(mode) = self.mode {
            entry.mode = mode & 0o7777;
        }
        entry.owner = self.uid.unwrap_or(entry.owner);
        entry.group = self.gid.unwrap_or(entry.group);
        entry.modified = self.modified.unwrap_or(entry.modified);
    }
}

/// Set-id bits don't survive a change of content or owner; set-group-id without group execution means something else.
pub(super) fn drop_set_id(entry: &mut Entry) {
    if matches!(entry.kind, Kind::File(_)) {
        entry.mode &= !libc::S_ISUID;
        if entry.mode & libc::S_IXGRP != 0 {
            entry.mode &= !libc::S_ISGID;
        }
    }
}
