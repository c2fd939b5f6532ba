//! Files that were written but not published when the process ended: taken up again from the journal.

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
    time::Duration,
};

use super::{
    aftermath::{Unfinished, sort_out},
    core::{Core, Fail, now_hybrid},
    errno::FsError,
    inodes::{Facts, ROOT},
    live::{Live, Staging, plain_entry},
    overlay::Overlay,
};
use crate::{
    content::Object,
    manifest::{FileId, HybridTime, Kind, Timestamp, TreePath},
    node::namespace::Edit,
    store::{JournalRecord, StoreError},
};

/// How long to wait for a first head before asking again.
const HEAD_WAIT: Duration = Duration::from_secs(60);
/// Permission bits of folders that have to be made anew.
const FOLDER_MODE: u32 = 0o755;

fn not_taken_up(record: &JournalRecord, error: FsError) {
    let path = String::from_utf8_lossy(&record.path).into_owned();
    tracing::error!(path, %error, "an unpublished file could not be taken up; its data stays in the state folder");
}

impl Core {
    /// Makes the files of the journal live files without writers, which the publisher then publishes, as far as that needs
    /// nobody else. Done before anybody looks into the folder, so that what was written is there from the first look on.
    /// Returns the others.
    pub(super) fn recover_here(&self, unfinished: Vec<Unfinished>) -> Vec<Unfinished> {
        let mut later = Vec::new();
        for file in self.newest_of_each(unfinished) {
            match self.revive(&file) {
                Ok(()) => {}
                Err(Fail::Need(_)) => later.push(file),
                Err(Fail::Error(error)) => not_taken_up(&file.record, error),
            }
        }
        later
    }

    /// Of several records of one file, under the names that it has, the newest counts, as of those under one name: it may stand
    /// on the others.
    fn newest_of_each(&self, unfinished: Vec<Unfinished>) -> Vec<Unfinished> {
        let mut newest: BTreeMap<FileId, Unfinished> = BTreeMap::new();
        let mut all = Vec::new();
        for file in unfinished {
            let id = self.file_of(&file.record);
            let Some(id) = id.filter(|_| !file.is_beside) else {
                all.push(file);
                continue;
            };
            match newest.entry(id) {
                btree_map::Entry::Vacant(place) => {
                    place.insert(file);
                }
                btree_map::Entry::Occupied(mut place) => {
                    let known = place.get_mut();
                    let mut older = file;
                    if older.id > known.id {
                        std::mem::swap(&mut older, known);
                    }
                    known.older.append(&mut older.older);
                    known.older.push(older.id);
                    known.replaced.append(&mut older.replaced);
                }
            }
        }
        all.extend(newest.into_values());
        // What stands beside others comes after them.
        all.sort_by_key(|file| file.is_beside);
        all
    }

    /// Which file a record is of, where that has several names and the nodes that say so are here.
    fn file_of(&self, record: &JournalRecord) -> Option<FileId> {
        let path = TreePath::parse(&record.path).ok()?;
        let shown = self.shown(&path).ok().flatten()?;
        shown.link.filter(|_| !record.is_new).map(|link| link.file)
    }

    /// Sorts out what the last process has left in the journal. To be called before anything is changed, whether it is taken
    /// up or not: what was noted of heads holds for those of the last process.
    pub(super) fn aftermath(&self) -> Result<Vec<Unfinished>, StoreError> {
        let is_kept = |by| self.tree.was_committed(by);
        let mut left = Vec::new();
        for (id, record) in self.store.journaled()? {
            let fate = self.store.fate(id);
            let path = String::from_utf8_lossy(&record.path);
            let place = fate.place(is_kept).map(|place| place.by);
            let is_ended = fate.ended.is_some_and(is_kept);
            tracing::debug!(
                file = id.0,
                %path,
                record.size,
                ?fate,
                ?place,
                is_ended,
                "left by the last process"
            );
            left.push((id, record, fate));
        }
        let aftermath = sort_out(left, is_kept);
        for id in aftermath.ended {
            if let Err(error) = self.store.unstage(id) {
                tracing::warn!(%error, "a staging file could not be removed");
            }
        }
        for (id, fate) in aftermath.fates {
            if let Err(error) = self.store.note_fate(id, |known| *known = fate) {
                tracing::warn!(%error, "where an unpublished file stands could not be noted");
            }
        }
        Ok(aftermath.unfinished)
    }

    /// Takes up the others. Retries while the folder's state can't be had; meanwhile the journal keeps them.
    pub(super) async fn recover(self: Arc<Self>, later: Vec<Unfinished>) -> Result<(), FsError> {
        for file in later {
            self.recover_one(file).await?;
        }
        Ok(())
    }

    async fn recover_one(self: &Arc<Self>, file: Unfinished) -> Result<(), FsError> {
        let file = Arc::new(file);
        loop {
            let (core, with) = (self.clone(), file.clone());
            let done = tokio::task::spawn_blocking(move || core.revive(&with)).await;
            match done.map_err(|_| FsError::Stopping)? {
                Ok(()) => return Ok(()),
                Err(Fail::Need(super::core::Need::Head)) => {
                    self.tree.wait_head(HEAD_WAIT).await;
                }
                Err(Fail::Need(need)) => {
                    if self.provide(need).await.is_err() {
                        tokio::time::sleep(HEAD_WAIT).await;
                    }
                }
                Err(Fail::Error(error)) => {
                    not_taken_up(&file.record, error);
                    return Ok(());
                }
            }
        }
    }

    fn revive(&self, unfinished: &Unfinished) -> Result<(), Fail> {
        let Unfinished {
            id,
            record,
            older,
            replaced,
            is_beside,
        } = unfinished;
        let id = *id;
        let damaged = || StoreError::Damaged(format!("journal record {}", id.0));
        let path = TreePath::parse(&record.path).map_err(|_| damaged())?;
        let base_bytes = record
            .base
            .map_or(0, |base| record.base_bytes.min(base.size));
        let overlay =
            Overlay::restore(base_bytes, record.size, &record.written).ok_or_else(damaged)?;
        let Some((_, leaf)) = path.split() else {
            return Err(damaged().into());
        };
        let _order = self.order.write();
        let folder = self.folder_inode(&path)?;
        let current = self.shown(&path)?;
        let base = record.base.unwrap_or_else(Object::empty);
        let mut entry = plain_entry(
            Kind::File(base),
            record.mode,
            record.owner,
            record.group,
            Timestamp(record.modified),
        );
        let attributes = record.attributes.iter();
        let attributes = attributes.map(|(name, value)| (name.to_vec(), value.to_vec()));
        entry.attributes = attributes.collect();
        // A new file replaces what has the name, be that one of several of a file.
        let linked = current.as_ref().and_then(|current| current.link.clone());
        let (linked, other_than) = match linked {
            Some(link) if record.is_new => (None, Some(link.file)),
            linked => (linked, None),
        };
        let mut seen = record.seen.clone();
        if let Some(current) = &current {
            // What this machine itself had there before, whoever wrote the file has seen, also where no head had it then.
            let own = current.seen.iter().filter(|_| !is_beside);
            seen.extend(own.filter(|dot| self.tree.was_committed(**dot)));
            seen.sort_unstable();
            seen.dedup();
            entry.unknown.clone_from(&current.entry.unknown);
        }
        let file = Arc::new(self.store.staged(id)?);
        let there = {
            let inodes = self.inodes.lock();
            let of_file = || inodes.of_file(&linked.as_ref()?.file);
            inodes.child(folder, leaf).or_else(of_file)
        };
        if there.is_some_and(|number| self.lives.lock().contains_key(&number)) {
            // Somebody is writing a new one already, without having seen this one. That one wins the name; this one comes
            // with the next start, beside it.
            for one in older.iter().chain(replaced).chain([&id]) {
                self.store
                    .note_fate(*one, |fate| fate.beside = Some(id))
                    .map_err(FsError::from)?;
            }
            return Ok(());
        }
        // What others changed since is the later of the two: this may be the work of long ago, out of a backup.
        let now = now_hybrid();
        let changed = record.changed.map_or(now, |changed| changed.min(now));
        let is_listed = current.is_some();
        if !is_listed {
            // Seen by everybody here until it is published, as a file is that was made just now.
            self.change(vec![Edit {
                path: path.clone(),
                entry: Some(entry.clone()),
                seen: Vec::new(),
                held: true,
                written: Some(changed),
                moved: None,
            }])?;
        }
        let mut lives = self.lives.lock();
        let mut inodes = self.inodes.lock();
        // One of several names of a file: what is found under the others is to be the same inode.
        let shared = current.filter(|there| {
            // What it was before, or on the way from there; another content is somebody else's.
            let is_own = there.entry.kind == entry.kind || !older.is_empty();
            there.link.is_some() && is_own && other_than.is_none()
        });
        let facts = match &shared {
            Some(there) => Facts::of(there),
            None => Facts::of_entry(&entry, changed),
        };
        // Somebody may have looked at the name before.
        self.tell(path.clone());
        let number = inodes.replace(folder, leaf, facts);
        inodes.pin(number);
        let mut live = Live::new(number, base, entry, changed, seen, path);
        let state = live.state.get_mut();
        state.overlay = overlay;
        state.staging = Some(Staging {
            id: Some(id),
            file,
            is_small: false,
            is_shared: false,
        });
        state.imported.clone_from(older);
        state.replaced.clone_from(replaced);
        state.began = None;
        state.link = linked.map(|mut link| {
            link.seen
                .retain(|dot| !is_beside && self.tree.was_committed(*dot));
            link
        });
        state.other_than = other_than;
        state.fresh = !is_listed;
        state.version = 1;
        state.journaled = 1;
        state.is_durable = true;
        lives.insert(number, Arc::new(live));
        self.wake.notify_one();
        Ok(())
    }

    /// The inode of the folder that a path stands in; folders that are gone are taken as plain ones.
    pub(super) fn folder_inode(&self, path: &TreePath) -> Result<u64, Fail> {
        let Some((folder, _)) = path.split() else {
            return Ok(ROOT);
        };
        let mut at = TreePath::root();
        let mut steps = Vec::new();
        for name in folder.names() {
            at = at.join(name).map_err(FsError::from)?;
            let facts = match self.shown(&at)? {
                Some(shown) => Facts::of(&shown),
                None => Facts::of_entry(
                    &plain_entry(Kind::Directory, FOLDER_MODE, 0, 0, Timestamp(0)),
                    HybridTime(0),
                ),
            };
            steps.push((name, facts));
        }
        let mut inodes = self.inodes.lock();
        let mut number = ROOT;
        for (name, facts) in steps {
            number = inodes.resolve(number, name, facts);
        }
        Ok(number)
    }
}
