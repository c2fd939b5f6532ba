//! Files that were written but not published when the process ended: taken up again from the journal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    core::{Core, Fail, now_hybrid},
    errno::FsError,
    inodes::{Facts, ROOT},
    live::{Live, Staging, plain_entry},
    overlay::Overlay,
};
use crate::{
    content::Object,
    manifest::{HybridTime, Kind, Timestamp, TreePath},
    store::{JournalRecord, StagingId, StoreError},
};

/// How long to wait for a first head before asking again.
const HEAD_WAIT: Duration = Duration::from_secs(60);
/// Permission bits of folders that have to be made anew.
const FOLDER_MODE: u32 = 0o755;

/// A file that was not published: its newest staging file, what the journal says of it, and staging files that it stands on.
pub(super) type Unfinished = (StagingId, JournalRecord, Vec<StagingId>);

fn not_taken_up(record: &JournalRecord, error: FsError) {
    let path = String::from_utf8_lossy(&record.path).into_owned();
    tracing::error!(path, %error, "an unpublished file could not be taken up; its data stays in the state folder");
}

impl Core {
    /// Makes the files of the journal live files without writers, which the publisher then publishes, as far as that needs
    /// nobody else. Done before anybody looks into the folder, so that what was written is there from the first look on.
    /// Returns the others.
    pub(super) fn recover_here(&self, records: Vec<(StagingId, JournalRecord)>) -> Vec<Unfinished> {
        let records = self.without_published(records);
        // Of several records for one path the newest counts; it stands on the ones before it.
        let mut newest: BTreeMap<Vec<u8>, Vec<(StagingId, JournalRecord)>> = BTreeMap::new();
        for (id, record) in records {
            newest
                .entry(record.path.clone())
                .or_default()
                .push((id, record));
        }
        let mut later = Vec::new();
        for mut same in newest.into_values() {
            let Some((id, record)) = same.pop() else {
                continue;
            };
            let older: Vec<StagingId> = same.into_iter().map(|(id, _)| id).collect();
            match self.revive(id, &record, older.clone()) {
                Ok(()) => {}
                Err(Fail::Need(_)) => later.push((id, record, older)),
                Err(Fail::Error(error)) => not_taken_up(&record, error),
            }
        }
        later
    }

    /// Notes by which head the entry of these staging files is committed. While `order` is held for the change, so that
    /// the note is there before the name can be removed or renamed.
    pub(super) fn note_published(&self, imported: &[StagingId]) {
        let Some(by) = self.tree.committed_by() else {
            return;
        };
        for id in imported {
            if let Err(error) = self.store.note_published(*id, by) {
                // Then a kill before the staging file goes publishes it once more.
                tracing::warn!(%error, "a publication could not be noted");
            }
        }
    }

    /// Leaves out what was published by a head that is on disk: its name may have been removed or renamed since.
    fn without_published(
        &self,
        mut records: Vec<(StagingId, JournalRecord)>,
    ) -> Vec<(StagingId, JournalRecord)> {
        records.retain(|(id, _)| {
            let by = self.store.published_by(*id);
            let is_published = by.is_some_and(|by| self.tree.was_committed(by));
            if is_published && let Err(error) = self.store.unstage(*id) {
                tracing::warn!(%error, "a staging file could not be removed");
            }
            !is_published
        });
        records
    }

    /// Takes up the others. Retries while the folder's state can't be had; meanwhile the journal keeps them.
    pub(super) async fn recover(self: Arc<Self>, later: Vec<Unfinished>) -> Result<(), FsError> {
        for (id, record, older) in later {
            self.recover_one(id, record, older).await?;
        }
        Ok(())
    }

    async fn recover_one(
        self: &Arc<Self>,
        id: StagingId,
        record: JournalRecord,
        older: Vec<StagingId>,
    ) -> Result<(), FsError> {
        let record = Arc::new(record);
        loop {
            let (core, with, older) = (self.clone(), record.clone(), older.clone());
            let done = tokio::task::spawn_blocking(move || core.revive(id, &with, older)).await;
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
                    not_taken_up(&record, error);
                    return Ok(());
                }
            }
        }
    }

    fn revive(
        &self,
        id: StagingId,
        record: &JournalRecord,
        older: Vec<StagingId>,
    ) -> Result<(), Fail> {
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
        let mut seen = record.seen.clone();
        if let Some(current) = &current {
            // What this machine itself had there before, whoever wrote the file has seen, also where no head had it then.
            let own = current.seen.iter();
            seen.extend(own.filter(|dot| self.tree.was_committed(**dot)));
            seen.sort_unstable();
            seen.dedup();
            entry.unknown.clone_from(&current.entry.unknown);
        }
        let file = Arc::new(self.store.staged(id)?);
        let mut lives = self.lives.lock();
        let mut inodes = self.inodes.lock();
        if let Some(number) = inodes.child(folder, leaf)
            && lives.contains_key(&number)
        {
            // Somebody is writing a new one already: that one wins the name, this one comes with the next start.
            return Ok(());
        }
        // One of several names of a file: what is found under the others is to be the same inode.
        let shared = current.filter(|there| there.link.is_some() && there.entry.kind == entry.kind);
        let facts = match &shared {
            Some(there) => Facts::of(there),
            None => Facts::of_entry(&entry, now_hybrid()),
        };
        // Somebody may have looked at the name before.
        self.tell(path.clone());
        let number = inodes.replace(folder, leaf, facts);
        inodes.pin(number);
        let mut live = Live::new(number, base, entry, now_hybrid(), seen, path);
        let state = live.state.get_mut();
        state.overlay = overlay;
        state.staging = Some(Staging { id: Some(id), file });
        state.imported = older;
        state.began = None;
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
