//! A file that is being written: one state for all its handles.
//!
//! It begins when the file is opened for writing (or truncated by path) and ends when its last writer has closed it and what
//! was written is published. Bytes go to a staging file, made at the first write, on the disk where it grows beyond 4 KiB;
//! [`Overlay`] knows which of them count.

use std::{collections::BTreeSet, fs::File, ops::Range, sync::Arc, time::Instant};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use super::{
    inodes::Facts,
    overlay::{Overlay, Source},
};
use crate::{
    content::{INLINE_BYTES_MAX, Object},
    linux,
    manifest::{Dot, Entry, Few, FileId, HybridTime, Kind, Linked, TreePath},
    store::{JournalRecord, StagingId, Store, StoreError},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    /// Its inode number; pinned while this exists.
    pub(crate) number: u64,
    pub(crate) state: Mutex<LiveState>,
    /// Held while the staging file is synced, or made an object: of several durable journal records the last is the newest,
    /// and none is written for a file that has become an object.
    pub(crate) syncing: Mutex<()>,
}

/// A staging file.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    /// In the store; `None` once it was removed there, when only open handles still use it.
    pub(crate) id: Option<StagingId>,
    pub(crate) file: Arc<File>,
    /// It is in memory, and holds [`INLINE_BYTES_MAX`] bytes at most.
    pub(crate) is_small: bool,
    /// It may be an object's file as well by now, so that it must not change.
    pub(crate) is_shared: bool,
}

/// What changes about it. Invariant: `base` and `overlay` (and the staging file for written ranges) give every byte.
#[derive(Debug)]
pub(crate) struct LiveState {
    pub(crate) overlay: Overlay,
    /// The content below what is written.
    pub(crate) base: Object,
    /// The content that the entry had when this began, or that was published last.
    pub(crate) agreed: Object,
    pub(crate) staging: Option<Staging>,
    /// Staging files that became objects which no entry names yet.
    pub(crate) imported: Vec<StagingId>,
    /// Staging files of what had the name before: no head replaces it before this file is published.
    pub(crate) replaced: Vec<StagingId>,
    /// The entry that this began with, or that was published last; what differs from it was changed here. `None` when that
    /// is not known, and all of it counts as changed.
    pub(crate) began: Option<Entry>,
    /// Kind aside: mode, owner, times, attributes.
    pub(crate) entry: Entry,
    /// When mode, owner or content last changed.
    pub(crate) changed: HybridTime,
    /// The versions that the writer saw and replaces.
    pub(crate) seen: Vec<Dot>,
    /// Of the record, where the file has several names: which it is, and the versions that the writer saw.
    pub(crate) link: Option<Linked>,
    /// Its name may still be one of this file, which it replaces there.
    pub(crate) other_than: Option<FileId>,
    /// Its entry is held back until the first publication.
    pub(crate) fresh: bool,
    /// Somebody waits for that publication.
    pub(crate) hurry: bool,
    /// Handles that can write.
    pub(crate) writers: u32,
    /// Counts changes of content and attributes.
    pub(crate) version: u64,
    /// The version that was last published.
    pub(crate) published: u64,
    /// The version that the journal has.
    pub(crate) journaled: u64,
    /// There is a journal record of the staging file, or one is on its way.
    pub(crate) is_recorded: bool,
    /// A journal record of it was put on disk since it was last published.
    pub(crate) is_durable: bool,
    /// The last change.
    pub(crate) quiet_since: Instant,
    /// Its name was removed here: it is never published.
    pub(crate) unlinked: bool,
    /// What replaced it sees to its staging files.
    pub(crate) is_replaced: bool,
    /// The staging file is being turned into an object: writers wait.
    pub(crate) importing: bool,
    /// It has left the table; whoever still holds it asks the table again.
    pub(crate) done: bool,
    /// A task publishes it.
    pub(crate) publishing: bool,
    /// Where it stood last, for when the folder above was removed elsewhere.
    pub(crate) path: TreePath,
    /// Publications that failed in a row, and when to try again.
    pub(crate) failures: u32,
    pub(crate) retry_at: Option<Instant>,
}

impl Live {
    /// Over an existing content; `entry` as it is shown.
    pub(crate) fn new(
        number: u64,
        base: Object,
        entry: Entry,
        changed: HybridTime,
        seen: Vec<Dot>,
        path: TreePath,
    ) -> Self {
        Self {
            number,
            syncing: Mutex::new(()),
            state: Mutex::new(LiveState {
                overlay: Overlay::over(base.size),
                base,
                agreed: base,
                staging: None,
                imported: Vec::new(),
                replaced: Vec::new(),
                began: Some(entry.clone()),
                entry,
                changed,
                seen,
                link: None,
                other_than: None,
                fresh: false,
                hurry: false,
                writers: 0,
                version: 0,
                published: 0,
                journaled: 0,
                is_recorded: false,
                is_durable: false,
                quiet_since: Instant::now(),
                unlinked: false,
                is_replaced: false,
                importing: false,
                done: false,
                publishing: false,
                path,
                failures: 0,
                retry_at: None,
            }),
        }
    }
}

impl LiveState {
    /// Whether something is not published yet.
    pub(crate) fn is_dirty(&self) -> bool {
        self.version != self.published || self.fresh
    }

    /// Notes a change.
    pub(crate) fn touch(&mut self, changed: HybridTime) {
        self.version += 1;
        self.changed = changed;
        self.quiet_since = Instant::now();
        self.retry_at = None;
    }

    /// As the kernel is to see it.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            kind: Kind::File(Object {
                size: self.overlay.size(),
                ..self.base
            }),
            ..Facts::of_entry(&self.entry, self.changed)
        }
    }

    /// The staging file, made where there is none yet.
    pub(crate) fn staging(&mut self, store: &Store) -> Result<Arc<File>, StoreError> {
        let (id, file) = match &self.staging {
            Some(Staging {
                id: Some(id),
                is_shared: true,
                ..
            }) => (*id, store.staged(*id)?),
            Some(staging) if !staging.is_small && !staging.is_shared => {
                return Ok(staging.file.clone());
            }
            Some(Staging { id: Some(id), .. }) => (*id, store.unfold(*id)?),
            Some(Staging { id: None, file, .. }) => {
                // Its name was removed: nothing is known of it any more but here.
                let (id, larger) = store.stage()?;
                if let Err(error) = linux::copy_over(file, &larger) {
                    store.unstage(id)?;
                    return Err(StoreError::Io {
                        what: "making a staging file".into(),
                        source: error,
                    });
                }
                (id, larger)
            }
            None => store.stage()?,
        };
        let file = Arc::new(file);
        self.staging = Some(Staging {
            id: Some(id),
            file: file.clone(),
            is_small: false,
            is_shared: false,
        });
        Ok(file)
    }

    /// Makes the staging file where there is none yet that a file of this size can be in; changes nothing else.
    pub(crate) fn make_staging(&mut self, store: &Store, size: u64) -> Result<(), StoreError> {
        match &self.staging {
            Some(staging) if !staging.is_small || size <= INLINE_BYTES_MAX => Ok(()),
            _ => self.staging_to(store, size).map(drop),
        }
    }

    /// Has what is in the staging file be nobody else's, before it changes.
    pub(crate) fn unshare(&mut self, store: &Store) -> Result<(), StoreError> {
        match &self.staging {
            Some(staging) if staging.is_shared => self.staging(store).map(drop),
            _ => Ok(()),
        }
    }

    /// The staging file, where it is to hold nothing from `end` on so far.
    pub(crate) fn staging_to(&mut self, store: &Store, end: u64) -> Result<Arc<File>, StoreError> {
        if end > INLINE_BYTES_MAX {
            return self.staging(store);
        }
        if let Some(staging) = self.staging.as_ref().filter(|staging| !staging.is_shared) {
            return Ok(staging.file.clone());
        }
        if self.staging.is_some() {
            return self.staging(store);
        }
        let Some((id, file)) = store.stage_small()? else {
            return self.staging(store);
        };
        self.staging = Some(Staging {
            id: Some(id),
            file: file.clone(),
            is_small: true,
            is_shared: false,
        });
        Ok(file)
    }

    /// Has a range, to which something may have been written in the staging file that was not all of it, show what it showed. What
    /// stands in the staging file already may be either.
    pub(crate) fn take_back(&mut self, staging: &File, range: Range<u64>) {
        let size = self.overlay.size();
        let within = range.start.min(size)..range.end.min(size);
        for (piece, source) in self.overlay.pieces(within) {
            let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
            let length = piece.end - piece.start;
            if source == Source::Zero
                && rustix::fs::fallocate(staging, flags, piece.start, length).is_err()
            {
                // Then that shows, now as later.
                self.overlay.write(piece);
            }
        }
        let is_longer = staging.metadata().is_ok_and(|file| file.len() > size);
        if is_longer && staging.set_len(size).is_err() {
            self.overlay.write(size..range.end);
        }
        self.touch(self.changed);
    }

    /// Whether the journal lacks something.
    pub(crate) fn lacks_record(&self) -> bool {
        let is_unknown = self.fresh && !self.is_recorded && self.imported.is_empty();
        let is_changed = self.is_dirty() && self.journaled != self.version;
        !self.unlinked && (is_changed || is_unknown)
    }

    /// Writes the journal record where the journal lacks something and there is a staging file; syncs nothing.
    pub(crate) fn journal(&mut self, store: &Store) -> Result<(), StoreError> {
        if let (true, Some(Staging { id: Some(id), .. })) = (self.lacks_record(), &self.staging) {
            store.journal(*id, &self.record(), false)?;
            self.journaled = self.version;
            self.is_recorded = true;
        }
        Ok(())
    }

    /// Takes the staging file away, which has become an object or shows nothing.
    pub(crate) fn take_imported(&mut self) {
        let id = self.staging.take().and_then(|staging| staging.id);
        self.imported.extend(id);
        self.is_recorded = false;
    }

    /// Takes what the journal tells anything of, since that is done with.
    pub(crate) fn take_journaled(&mut self) -> Vec<StagingId> {
        let mut ids = std::mem::take(&mut self.imported);
        ids.append(&mut self.replaced);
        if (self.is_recorded || self.is_durable)
            && let Some(staging) = &mut self.staging
        {
            ids.extend(staging.id.take());
            (self.is_recorded, self.is_durable) = (false, false);
        }
        ids
    }

    /// Removes the staging file from the store, and so what a restart would find; open handles keep its bytes.
    pub(crate) fn unstage(&mut self, store: &Store) {
        if let Some(staging) = &mut self.staging
            && let Some(id) = staging.id.take()
            && let Err(error) = store.unstage(id)
        {
            tracing::warn!(path = %self.path, %error, "a staging file could not be removed");
        }
    }

    pub(crate) fn record(&self) -> JournalRecord {
        let attributes = self.entry.attributes.iter();
        let attributes = attributes.map(|(name, value)| {
            let of = |bytes: &Vec<u8>| serde_bytes::ByteBuf::from(bytes.clone());
            (of(name), of(value))
        });
        JournalRecord {
            path: self.path.to_bytes(),
            seen: self.seen.clone(),
            base: (self.base.size > 0).then_some(self.base),
            base_bytes: self.overlay.base_bytes(),
            size: self.overlay.size(),
            written: self.overlay.written(),
            mode: self.entry.mode,
            owner: self.entry.owner,
            group: self.entry.group,
            modified: self.entry.modified.0,
            attributes: attributes.collect(),
            changed: Some(self.changed),
            is_new: self.fresh || self.other_than.is_some(),
            bytes: None,
        }
    }

    /// Takes from an entry that somebody else has changed, content aside, what was not changed here.
    pub(crate) fn adopt(&mut self, theirs: &Entry) {
        fn newer<T: PartialEq + Clone>(mine: &mut T, began: &T, theirs: &T) {
            if mine == began {
                mine.clone_from(theirs);
            }
        }
        let Some(began) = &self.began else { return };
        let mine = &mut self.entry;
        newer(&mut mine.mode, &began.mode, &theirs.mode);
        newer(&mut mine.owner, &began.owner, &theirs.owner);
        newer(&mut mine.group, &began.group, &theirs.group);
        newer(&mut mine.modified, &began.modified, &theirs.modified);
        newer(&mut mine.unknown, &began.unknown, &theirs.unknown);
        let names: BTreeSet<_> = began
            .attributes
            .keys()
            .chain(theirs.attributes.keys())
            .collect();
        for name in names {
            if mine.attributes.get(name) == began.attributes.get(name) {
                match theirs.attributes.get(name) {
                    Some(value) => mine.attributes.insert(name.clone(), value.clone()),
                    None => mine.attributes.remove(name),
                };
            }
        }
    }

    /// The entry to publish for a content.
    pub(crate) fn entry_with(&self, object: Object) -> Entry {
        Entry {
            kind: Kind::File(object),
            ..self.entry.clone()
        }
    }
}

/// An entry of the given kind with nothing special about it.
pub(crate) fn plain_entry(
    kind: Kind,
    mode: u32,
    owner: u32,
    group: u32,
    modified: crate::manifest::Timestamp,
) -> Entry {
    Entry {
        kind,
        mode: mode & 0o7777,
        owner,
        group,
        modified,
        attributes: Few::default(),
        unknown: Few::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::manifest::Timestamp;

    #[test]
    fn of_a_write_that_came_half_way_nothing_shows_where_nothing_was() {
        let file = tempfile::tempfile().unwrap();
        let kind = Kind::File(Object::empty());
        let entry = plain_entry(kind, 0o644, 0, 0, Timestamp(0));
        let live = Live::new(
            2,
            Object::empty(),
            entry,
            HybridTime(1),
            Vec::new(),
            TreePath::root(),
        );
        let mut live = live.state.into_inner();
        // Ten bytes, a hole, and an end of it.
        file.write_all_at(&[1; 10], 0).unwrap();
        live.overlay.write(0..10);
        live.overlay.truncate(9_000);
        let version = live.version;

        file.write_all_at(&[7; 4_000], 5).unwrap();
        live.take_back(&file, 5..20_000);
        file.write_all_at(&[7; 10_000], 8_000).unwrap();
        live.take_back(&file, 8_000..20_000);

        assert_eq!(live.overlay.written(), [(0, 10)]);
        assert_eq!(live.overlay.size(), 9_000);
        assert_ne!(live.version, version);
        assert_eq!(file.metadata().unwrap().len(), 9_000);
        let mut bytes = vec![0; 9_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[10..], vec![0; 8_990]);
    }
}
