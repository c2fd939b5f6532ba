//! The journal: what staging files are, so that the next process can publish them.
//!
//! Of a staging file there are up to two records. The *latest* is a small file beside it, replaced as a whole by `close`,
//! renames and, before its durable one, by `fsync`: once written, a killed process leaves it, and nobody waits for the disk. It says nothing about what
//! is on the disk, so it counts only while the machine stays up. The *durable* one stands in the index and was written
//! after the staging file's data, its name and its base had been synced; it counts when the machine went down.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::manifest::{Dot, WriterNumber};

use super::{
    JournalRecord, StagingId, StoreError,
    cache::{Core, remove_file},
    failed,
    record::{check_of, decode_journal, encode_journal, journal_key, parse_journal_key},
    staging::{new_file, open_existing},
};

/// Extension of the latest record of a staging file.
const LATEST: &str = "journal";
/// Extension of the note by which head a staging file is published: writer and sequence, 8 bytes each, big-endian, and their
/// checksum.
const PUBLISHED: &str = "published";
/// Staging files of which nobody knows what they are, kept in `lost` at most: files, and bytes of all.
const ORPHANS_MAX: usize = 1000;
const ORPHANS_BYTES_MAX: u64 = 1024 * 1024 * 1024;

impl Core {
    pub(super) fn latest_path(&self, id: StagingId) -> PathBuf {
        self.temporary_path(id, LATEST)
    }

    pub(super) fn journal(
        &self,
        id: StagingId,
        record: &JournalRecord,
        durable: bool,
    ) -> Result<(), StoreError> {
        let encoded = encode_journal(record)?;
        if !durable {
            return self.write_latest(id, &encoded);
        }
        let path = self.staging_path(id);
        open_existing(&path)?
            .sync_data()
            .map_err(failed("syncing", &path))?;
        self.sync_staging_name(id)?;
        if let Some(base) = &record.base {
            self.make_durable(base)?;
        }
        self.index_takes(encoded.len() as u64)?;
        self.journal.insert(journal_key(id), encoded)?;
        self.flush_index()
    }

    pub(super) fn published_path(&self, id: StagingId) -> PathBuf {
        self.temporary_path(id, PUBLISHED)
    }

    /// Many files are published by one head: their notes are names of one file, which no note is ever written into again.
    pub(super) fn note_published(&self, id: StagingId, by: Dot) -> Result<(), StoreError> {
        let path = self.published_path(id);
        let mut last = self.last_note.lock();
        if let Some((_, last)) = last.as_ref().filter(|(known, _)| *known == by)
            && fs::hard_link(last, &path).is_ok()
        {
            return Ok(());
        }
        *last = None;
        let mut note = by.writer.0.to_be_bytes().to_vec();
        note.extend(by.sequence.to_be_bytes());
        note.extend(check_of(&note));
        // An earlier note of this file may be others' note as well.
        remove_file(&path)?;
        new_file(&path)?
            .write_all(&note)
            .map_err(failed("writing", &path))?;
        *last = Some((by, path));
        Ok(())
    }

    /// Takes a note out of the folder.
    fn take_note(&self, id: StagingId, path: &Path) -> Result<(), StoreError> {
        let note = read_record(path)?.unwrap_or_default();
        // One without its checksum was not finished, or is damaged: the file is published once more.
        let numbers = note
            .split_last_chunk()
            .filter(|(numbers, check)| **check == check_of(numbers))
            .and_then(|(numbers, _)| numbers.split_first_chunk())
            .and_then(|(writer, sequence)| Some((writer, sequence.try_into().ok()?)));
        if let Some((writer, sequence)) = numbers {
            let by = Dot {
                writer: WriterNumber(u64::from_be_bytes(*writer)),
                sequence: u64::from_be_bytes(sequence),
            };
            self.staging.lock().published.insert(id, by);
        }
        remove_file(path)
    }

    fn write_latest(&self, id: StagingId, encoded: &[u8]) -> Result<(), StoreError> {
        let partial = self.temporary_path(id, "journal-new");
        let path = self.latest_path(id);
        self.note_beside();
        new_file(&partial)?
            .write_all(encoded)
            .map_err(failed("writing", &partial))?;
        fs::rename(&partial, &path).map_err(failed("placing", &path))
    }

    pub(super) fn journaled(&self) -> Result<Vec<(StagingId, JournalRecord)>, StoreError> {
        let mut records = BTreeMap::new();
        for pair in self.journal.iter() {
            let (key, value) = pair?;
            records.insert(parse_journal_key(&key)?, decode_journal(&value)?);
        }
        for name in self.staging_names()? {
            if let Named::Latest(id) = name.kind
                && let Some(encoded) = read_record(&name.path)?
            {
                records.insert(id, decode_journal(&encoded)?);
            }
        }
        for id in &self.staging.lock().unstaged {
            records.remove(id);
        }
        Ok(records.into_iter().collect())
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
                    Err(_) if !self.staging_path(id).exists() => {}
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
    pub(super) fn recover_staging(&self, rebooted: bool) -> Result<(), StoreError> {
        let names = self.staging_names()?;
        let staged: BTreeSet<StagingId> = names
            .iter()
            .filter_map(|name| match name.kind {
                Named::File(id) => Some(id),
                _ => None,
            })
            .collect();
        self.staging.lock().used = staged.last().map_or(0, |last| last.0);
        let mut known = self.recover_durable(&staged)?;
        for name in &names {
            let Named::Latest(id) = name.kind else {
                continue;
            };
            if !staged.contains(&id) {
                // Unlinked after the entry was on disk.
                remove_file(&name.path)?;
                continue;
            }
            let record = read_record(&name.path)?
                .ok_or_else(|| StoreError::Damaged("journal record".to_owned()))
                .and_then(|encoded| decode_journal(&encoded));
            let path = record.as_ref().map_or("unknown".to_owned(), |record| {
                String::from_utf8_lossy(&record.path).into_owned()
            });
            match record {
                Ok(_) if !rebooted => {
                    known.insert(id);
                    continue;
                }
                _ if known.contains(&id) => {
                    tracing::warn!(
                        path,
                        "what was not synced of an unpublished file is doubtful: taking its last synced state"
                    );
                }
                Ok(_) => {
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
            remove_file(&name.path)?;
        }
        let mut orphans = Vec::new();
        for name in names {
            match name.kind {
                Named::File(id) if !known.contains(&id) => orphans.push((id, name.path)),
                Named::Published(id) if known.contains(&id) && !rebooted => {
                    self.take_note(id, &name.path)?;
                }
                Named::File(_) | Named::Latest(_) => {}
                Named::Published(_) | Named::Other => remove_file(&name.path)?,
            }
        }
        self.keep_orphans(orphans)
    }

    /// Looks through the durable records; returns the files that have one.
    fn recover_durable(
        &self,
        staged: &BTreeSet<StagingId>,
    ) -> Result<BTreeSet<StagingId>, StoreError> {
        let mut known = BTreeSet::new();
        for pair in self.journal.iter() {
            let (key, value) = pair?;
            match parse_journal_key(&key) {
                // Else unstaged: unlinked after the entry was on disk, and the record's removal was not.
                Ok(id) if staged.contains(&id) => match decode_journal(&value) {
                    Ok(_) => {
                        known.insert(id);
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(%error, file = id.0, "removing a journal record");
                    }
                },
                Ok(_) => {}
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
            let id = path
                .file_stem()
                .and_then(OsStr::to_str)
                .and_then(|stem| stem.parse().ok())
                .map(StagingId);
            let kind = match (id, path.extension()) {
                (Some(id), None) => Named::File(id),
                (Some(id), Some(extension)) if extension == LATEST => Named::Latest(id),
                (Some(id), Some(extension)) if extension == PUBLISHED => Named::Published(id),
                _ => Named::Other,
            };
            names.push(StagingName { path, kind });
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

/// A name in the staging folder.
struct StagingName {
    path: PathBuf,
    kind: Named,
}

/// What it stands for.
enum Named {
    File(StagingId),
    Latest(StagingId),
    Published(StagingId),
    Other,
}

/// The bytes of a latest record; `None` if it has gone.
fn read_record(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(encoded) => Ok(Some(encoded)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
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
