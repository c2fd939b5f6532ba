//! The journal: what staging files are, so that the next process can publish them.
//!
//! Of a staging file there are up to two records. The *latest* ([`super::latest`]) is written by `close` and, before
//! its durable one, by `fsync`: once written, a killed process leaves it, and nobody waits for the disk. It says nothing about
//! what is on the disk, so it counts only while the machine stays up. The *durable* one stands in the index and was written
//! after the staging file's data, its name and its base had been synced; it counts when the machine went down. What becomes of
//! its name afterwards is noted apart ([`super::fate`]): no record changes, and none goes, before what supersedes it is on disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde_bytes::ByteBuf;

use super::{
    JournalRecord, Presence, StagingId, StoreError,
    cache::{Core, remove_file},
    failed,
    moments::Moment,
    record::{decode_journal, encode_journal, journal_key, parse_journal_key},
    staging::{Staging, new_file, open_existing},
};
use crate::content::{self, Object};

/// Staging files of which nobody knows what they are, kept in `lost` at most: files, and bytes of all.
const ORPHANS_MAX: usize = 1000;
const ORPHANS_BYTES_MAX: u64 = 1024 * 1024 * 1024;

impl Core {
    pub(super) fn journal(
        &self,
        id: StagingId,
        record: &JournalRecord,
        durable: bool,
    ) -> Result<(), StoreError> {
        let whole = self.with_bytes(id, record)?;
        let record = whole.as_ref().unwrap_or(record);
        let encoded = encode_journal(record)?;
        if !durable {
            let taken = self.latest.put(id, &encoded)?;
            self.note_beside(taken);
            return Ok(());
        }
        self.at(Moment::Journal);
        if record.bytes.is_none() {
            let path = self.staging_path(id);
            open_existing(&path)?
                .sync_data()
                .map_err(failed("syncing", &path))?;
            self.sync_staging_name(id)?;
        }
        if let Some(base) = &record.base {
            self.make_durable(base)?;
        }
        self.index_takes(encoded.len() as u64)?;
        {
            let staging = self.staging.lock();
            // Done with meanwhile. A record would bring it back, under a name that is another's by now.
            if !self.is_there(&staging, id)? {
                return Ok(());
            }
            self.journal.insert(journal_key(id), encoded)?;
        }
        self.flush_index()
    }

    /// Whether a file is neither unstaged nor gone.
    fn is_there(&self, staging: &Staging, id: StagingId) -> Result<bool, StoreError> {
        if staging.is_small(id) {
            return Ok(true);
        }
        let path = self.staging_path(id);
        let is_there = path.try_exists().map_err(failed("looking at", &path))?;
        Ok(is_there && !staging.unstaged.contains(&id))
    }

    pub(super) fn journaled(&self) -> Result<Vec<(StagingId, JournalRecord)>, StoreError> {
        let mut records = BTreeMap::new();
        for pair in self.journal.iter() {
            let (key, value) = pair?;
            records.insert(parse_journal_key(&key)?, decode_journal(&value)?);
        }
        for (id, encoded) in self.latest.records()? {
            records.insert(id, decode_journal(&encoded)?);
        }
        for id in &self.staging.lock().unstaged {
            records.remove(id);
        }
        Ok(records.into_iter().collect())
    }

    /// See [`super::Store::journal_bases`].
    pub(super) fn journal_bases(&self) -> Result<HashSet<Object>, StoreError> {
        let mut bases = HashSet::new();
        for pair in self.journal.iter() {
            bases.extend(decode_journal(&pair?.1)?.base);
        }
        for (_, encoded) in self.latest.records()? {
            bases.extend(decode_journal(&encoded)?.base);
        }
        Ok(bases)
    }

    /// Puts on disk what the journal says of all files, as [`Core::journal`] does for one.
    pub(super) fn settle_journal(&self) -> Result<(), StoreError> {
        for (id, record) in self.journaled()? {
            let encoded = encode_journal(&record)?;
            if self
                .journal
                .get(journal_key(id))?
                .is_none_or(|known| known != encoded)
            {
                match self.journal(id, &record, true) {
                    // Published and unlinked since it was listed.
                    Err(_) if !self.is_staged(id) => {}
                    outcome => outcome?,
                }
            }
        }
        Ok(())
    }

    /// Brings journal and staging files in line after a start: of an id both or none remain.
    ///
    /// `rebooted`: latest records may speak of data that never reached the disk. A file that has nothing else is put aside:
    /// it must neither be published with zeros in it nor be thrown away.
    /// `clean`: the store was closed in order, with everything in the durable records. Whatever else is there has come from
    /// somewhere else, an older copy of the file, say.
    pub(super) fn recover_staging(&self, rebooted: bool, clean: bool) -> Result<(), StoreError> {
        if clean {
            self.keep_durable_alone()?;
        }
        let rebooted = rebooted && !clean;
        let mut staged = BTreeMap::new();
        for name in self.staging_names()? {
            match name.id {
                Some(id) => drop(staged.insert(id, name.path)),
                None => {
                    self.take_over(&name.path)?;
                    remove_file(&name.path)?;
                }
            }
        }
        let records = self.latest.records()?.into_iter();
        let records: BTreeMap<_, _> = records
            .map(|(id, encoded)| (id, decode_journal(&encoded)))
            // Of others the file was unlinked after the entry was on disk.
            .filter(|(id, record)| staged.contains_key(id) || holds_bytes(record))
            .collect();
        let mut known = self.recover_durable(&staged)?;
        let ids = staged.keys().chain(records.keys()).chain(known.keys());
        self.staging.lock().used = ids.max().map_or(0, |last| last.0);
        self.recover_fates(|id| {
            staged.contains_key(&id) || records.contains_key(&id) || known.contains_key(&id)
        })?;
        let mut latest = BTreeSet::new();
        for (id, record) in records {
            let path = record.as_ref().map_or("unknown".to_owned(), |record| {
                String::from_utf8_lossy(&record.path).into_owned()
            });
            match record {
                Ok(record) if !rebooted => {
                    latest.insert(id);
                    known.insert(id, record.bytes);
                }
                _ if known.contains_key(&id) => {
                    tracing::warn!(
                        path,
                        "what was not synced of an unpublished file is doubtful: taking its last synced state"
                    );
                }
                // That its record has gone may not have reached the disk.
                Ok(record) if self.is_stored(&record)? => {}
                Ok(record) => {
                    if let Some(bytes) = &record.bytes {
                        self.fold_out(id, bytes)?;
                    }
                    tracing::error!(
                        path,
                        file = id.0,
                        "the machine went down before an unpublished file was synced: it is put aside in `lost`"
                    );
                    self.put_aside(&self.staging_path(id))?;
                }
                Err(error) => {
                    tracing::error!(%error, file = id.0, "a staging file can't be published and is put aside in `lost`");
                    self.put_aside(&self.staging_path(id))?;
                }
            }
        }
        for (id, bytes) in &known {
            if let Some(bytes) = bytes {
                self.fold_out(*id, bytes)?;
            }
        }
        self.latest.keep(|id| latest.contains(&id))?;
        let mut orphans = Vec::new();
        for (id, path) in staged.into_iter().filter(|(id, _)| !known.contains_key(id)) {
            let is_ended = |fate: &super::Fate| fate.ended.is_some();
            // The record of one that is done with went when that was on disk.
            match self.staging.lock().fates.get(&id).is_some_and(is_ended) {
                true => remove_file(&path)?,
                false => orphans.push((id, path)),
            }
        }
        self.keep_orphans(orphans)
    }

    /// Takes out of the latest records what is not durable too.
    fn keep_durable_alone(&self) -> Result<(), StoreError> {
        let mut same = BTreeSet::new();
        for (id, encoded) in self.latest.records()? {
            let durable = self.journal.get(journal_key(id))?;
            if durable.is_some_and(|durable| *durable == *encoded) {
                same.insert(id);
            } else {
                tracing::warn!(
                    file = id.0,
                    "a journal record that is older than the last orderly end is left out"
                );
            }
        }
        self.latest.keep(|id| same.contains(&id))
    }

    /// Makes the file of which a record has all the bytes.
    fn fold_out(&self, id: StagingId, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.staging_path(id);
        // One that is there has grown since, and may be an object by now: not to be written to.
        remove_file(&path)?;
        new_file(&path)?
            .write_all_at(bytes, 0)
            .map_err(failed("writing", &path))?;
        self.staging.lock().unsynced.insert(id);
        Ok(())
    }

    /// Whether what a record has all the bytes of is here as a content.
    fn is_stored(&self, record: &JournalRecord) -> Result<bool, StoreError> {
        let Some(bytes) = &record.bytes else {
            return Ok(false);
        };
        if record.base.is_some() || record.size == 0 || record.size != bytes.len() as u64 {
            return Ok(false);
        }
        let object = Object {
            content: content::hash_bytes(bytes),
            size: record.size,
        };
        Ok(self.presence(&object)? == Presence::Complete)
    }

    /// A latest record used to be a file beside the staging file.
    fn take_over(&self, path: &Path) -> Result<(), StoreError> {
        if path.extension() == Some(OsStr::new("journal"))
            && let Some(id) = id_of(path)
        {
            let record = fs::read(path).map_err(failed("reading", path))?;
            self.latest.put(id, &record)?;
        }
        Ok(())
    }

    /// Looks through the durable records; returns the files that have one, and what those hold that are in memory.
    fn recover_durable(
        &self,
        staged: &BTreeMap<StagingId, PathBuf>,
    ) -> Result<BTreeMap<StagingId, Option<ByteBuf>>, StoreError> {
        let mut known = BTreeMap::new();
        for pair in self.journal.iter() {
            let (key, value) = pair?;
            match parse_journal_key(&key) {
                Ok(id) => match decode_journal(&value) {
                    Ok(record) if record.bytes.is_some() || staged.contains_key(&id) => {
                        known.insert(id, record.bytes);
                        continue;
                    }
                    // Unstaged: unlinked after the entry was on disk, and the record's removal was not.
                    _ if !staged.contains_key(&id) => {}
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(%error, file = id.0, "removing a journal record");
                    }
                },
                Err(error) => tracing::error!(%error, "removing a journal record"),
            }
            self.journal.remove(key)?;
        }
        Ok(known)
    }

    /// Puts staging files aside that no record tells anything of, the newest first and up to a bound; removes others, and
    /// those that have no bytes or are objects by now.
    fn keep_orphans(&self, mut orphans: Vec<(StagingId, PathBuf)>) -> Result<(), StoreError> {
        orphans.sort_unstable_by(|one, other| other.cmp(one));
        let (mut files, mut bytes) = usage_of(&self.dir.join("lost"))?;
        for (id, path) in orphans {
            let about = match fs::symlink_metadata(&path) {
                Ok(about) => about,
                // Put aside already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("looking at", &path)(error)),
            };
            if about.len() == 0 || about.nlink() > 1 {
                remove_file(&path)?;
                continue;
            }
            files += 1;
            bytes = bytes.saturating_add(about.len());
            if files <= ORPHANS_MAX && bytes <= ORPHANS_BYTES_MAX {
                tracing::warn!(
                    file = id.0,
                    "a staging file without journal is put aside in `lost`"
                );
                self.put_aside(&path)?;
            } else {
                tracing::warn!(
                    file = id.0,
                    "removing a staging file without journal: `lost` is full"
                );
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Moves a file that may be the last of its kind to `lost`.
    pub(super) fn put_aside(&self, path: &Path) -> Result<(), StoreError> {
        put_aside_in(&self.dir, path).map(drop)
    }

    fn staging_names(&self) -> Result<Vec<StagingName>, StoreError> {
        let dir = self.staging_dir();
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("listing", &dir))? {
            let path = entry.map_err(failed("listing", &dir))?.path();
            let id = id_of(&path).filter(|_| path.extension().is_none());
            names.push(StagingName { path, id });
        }
        Ok(names)
    }
}

/// Moves a file or folder of a state folder to `lost`; returns what it is called there, `None` if it was gone.
pub(super) fn put_aside_in(state: &Path, path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let lost = state.join("lost");
    fs::create_dir_all(&lost).map_err(failed("making", &lost))?;
    let Some(name) = path.file_name() else {
        return Ok(None);
    };
    // Ids may start anew with a new index: never over one that is there.
    let target = (0..u32::MAX)
        .map(|copy| lost.join(format!("{}.{copy}", name.to_string_lossy())))
        .find(|target| !target.exists());
    let Some(target) = target else {
        return Ok(None);
    };
    match fs::rename(path, &target) {
        Ok(()) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("putting aside", path)(error)),
    }
}

/// Whether a record has all that its file holds.
fn holds_bytes(record: &Result<JournalRecord, StoreError>) -> bool {
    matches!(record, Ok(JournalRecord { bytes: Some(_), .. }))
}

/// A name in the staging folder.
struct StagingName {
    path: PathBuf,
    /// Of a staging file; else it is a temporary one's.
    id: Option<StagingId>,
}

/// The staging file that a file is, or belongs to.
fn id_of(path: &Path) -> Option<StagingId> {
    let stem = path.file_stem().and_then(OsStr::to_str);
    stem.and_then(|stem| stem.parse().ok()).map(StagingId)
}

/// Files in a folder, and their bytes; none if it isn't there.
fn usage_of(dir: &Path) -> Result<(usize, u64), StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(error) => return Err(failed("listing", dir)(error)),
    };
    let (mut files, mut bytes) = (0, 0u64);
    for entry in entries {
        let about = entry.and_then(|entry| entry.metadata());
        files += 1;
        bytes = bytes.saturating_add(about.map_err(failed("listing", dir))?.len());
    }
    Ok((files, bytes))
}
