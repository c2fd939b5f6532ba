//! The latest records of staging files: one file that is only added to.
//!
//! What is written here is the kernel's when a call returns, so a killed process leaves it; nothing is synced, so it says
//! nothing once the machine went down. Each entry is one write, and has a checksum: half of one ends the file. When most of
//! the file is out of date it is written anew and renamed into place; when all of it is, it is emptied. (A file for each record cost more than all else about a
//! small file: the disk's filesystem looks long for an inode where many were just freed.)
//!
//! ```text
//! entry  mark (4) ‖ kind (1) ‖ staging id (8, big-endian) ‖ length (4, big-endian) ‖ value ‖
//!        first 8 bytes of the BLAKE3 hash of all before
//! kinds  1 record: as in the index · 3 gone: no value
//! ```
//! Of an id the last record counts, up to its being gone.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use parking_lot::Mutex;

use super::{StagingId, StoreError, failed, record::check_of};

/// Where an entry may begin; finds the next one after damage.
const MARK: [u8; 4] = *b"p2je";
const RECORD: u8 = 1;
const GONE: u8 = 3;
/// Bytes of an entry before its value, and after it.
const HEAD_BYTES: usize = 4 + 1 + 8 + 4;
const CHECK_BYTES: usize = 8;
/// The file is not written anew before it has so many bytes.
const REWRITE_BYTES: u64 = 1024 * 1024;

/// See the module.
pub(super) struct Latest {
    path: PathBuf,
    log: Mutex<Log>,
}

struct Log {
    file: File,
    /// Where the next entry goes.
    end: u64,
    /// When it is written anew next, in bytes.
    rewrite_at: u64,
    /// Where the record of each file stands, and its length.
    known: BTreeMap<StagingId, Place>,
}

type Place = (u64, usize);

/// What [`scan`] found.
#[derive(Default)]
struct Scanned {
    known: BTreeMap<StagingId, Place>,
    /// Bytes that are no entry, though they were written to their end.
    damaged: bool,
}

impl Latest {
    /// Opens the file, made if it isn't there. `true` beside it if something in it was damaged: what it says of any file may
    /// not be the latest then.
    pub(super) fn open(path: PathBuf) -> Result<(Self, bool), StoreError> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        let found = scan(&bytes);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("opening", &path))?;
        let log = Log {
            file,
            end: bytes.len() as u64,
            rewrite_at: REWRITE_BYTES,
            known: found.known,
        };
        let latest = Self {
            path,
            log: Mutex::new(log),
        };
        Ok((latest, found.damaged))
    }

    /// How long the file is.
    pub(super) fn bytes(&self) -> u64 {
        self.log.lock().end
    }

    /// Adds the record of a file; returns the bytes that this took.
    pub(super) fn put(&self, id: StagingId, record: &[u8]) -> Result<u64, StoreError> {
        let mut log = self.log.lock();
        let place = (log.end + HEAD_BYTES as u64, record.len());
        let taken = self.add(&mut log, &entry(RECORD, id, record)?)?;
        log.known.insert(id, place);
        self.rewrite_if_due(&mut log);
        Ok(taken)
    }

    /// Takes out what is known of files.
    pub(super) fn forget(&self, ids: &[StagingId]) -> Result<(), StoreError> {
        let mut log = self.log.lock();
        let mut entries = Vec::new();
        for id in ids.iter().filter(|id| log.known.contains_key(id)) {
            entries.extend(entry(GONE, *id, &[])?);
        }
        if entries.is_empty() {
            return Ok(());
        }
        if log.known.keys().all(|id| ids.contains(id)) {
            return self.empty(&mut log);
        }
        self.add(&mut log, &entries)?;
        for id in ids {
            log.known.remove(id);
        }
        self.rewrite_if_due(&mut log);
        Ok(())
    }

    /// Nothing of it is left that damage could bring back.
    fn empty(&self, log: &mut Log) -> Result<(), StoreError> {
        log.file
            .set_len(0)
            .map_err(failed("emptying", &self.path))?;
        log.known.clear();
        (log.end, log.rewrite_at) = (0, REWRITE_BYTES);
        Ok(())
    }

    /// Keeps the records of these files alone.
    pub(super) fn keep(&self, is_kept: impl Fn(StagingId) -> bool) -> Result<(), StoreError> {
        let mut log = self.log.lock();
        log.known.retain(|id, _| is_kept(*id));
        match log.known.is_empty() && log.end == 0 {
            true => Ok(()),
            false => self.rewrite(&mut log),
        }
    }

    /// The record of each file that has one.
    pub(super) fn records(&self) -> Result<Vec<(StagingId, Vec<u8>)>, StoreError> {
        let log = self.log.lock();
        let places = log.known.iter();
        places
            .map(|(id, place)| Ok((*id, self.read(&log, *place)?)))
            .collect()
    }

    fn read(&self, log: &Log, (at, length): (u64, usize)) -> Result<Vec<u8>, StoreError> {
        let mut record = vec![0; length];
        log.file
            .read_exact_at(&mut record, at)
            .map_err(failed("reading", &self.path))?;
        Ok(record)
    }

    /// What a write leaves that failed half-way is written over by the next one.
    fn add(&self, log: &mut Log, entries: &[u8]) -> Result<u64, StoreError> {
        log.file
            .write_all_at(entries, log.end)
            .map_err(failed("writing", &self.path))?;
        log.end += entries.len() as u64;
        Ok(entries.len() as u64)
    }

    fn rewrite_if_due(&self, log: &mut Log) {
        if log.end < log.rewrite_at {
            return;
        }
        if let Err(error) = self.rewrite(log) {
            tracing::warn!(%error, "the journal could not be made smaller; trying again when it has grown");
        }
        log.rewrite_at = (2 * log.end).max(REWRITE_BYTES);
    }

    /// Writes what counts to a new file that takes the place of the old one.
    fn rewrite(&self, log: &mut Log) -> Result<(), StoreError> {
        let (mut bytes, mut known) = (Vec::new(), BTreeMap::new());
        for (id, place) in &log.known {
            known.insert(*id, ((bytes.len() + HEAD_BYTES) as u64, place.1));
            bytes.extend(entry(RECORD, *id, &self.read(log, *place)?)?);
        }
        let partial = self.path.with_extension("new");
        let file = super::staging::new_file(&partial)?;
        file.write_all_at(&bytes, 0)
            .map_err(failed("writing", &partial))?;
        fs::rename(&partial, &self.path).map_err(failed("placing", &self.path))?;
        (log.file, log.end, log.known) = (file, bytes.len() as u64, known);
        Ok(())
    }
}

fn entry(kind: u8, id: StagingId, value: &[u8]) -> Result<Vec<u8>, StoreError> {
    let length = u32::try_from(value.len())
        .map_err(|_| StoreError::Damaged("journal record: it is too large".to_owned()))?;
    let mut out = [
        &MARK[..],
        &[kind],
        &id.0.to_be_bytes(),
        &length.to_be_bytes(),
        value,
    ]
    .concat();
    let check = check_of(&out);
    out.extend(check);
    Ok(out)
}

/// Reads all entries. After bytes that are none it goes on at the next one.
fn scan(bytes: &[u8]) -> Scanned {
    let mut found = Scanned::default();
    let mut at = 0;
    while at < bytes.len() {
        match take(&bytes[at..]) {
            Taken::Entry(kind, id, value) => {
                let place = (at + HEAD_BYTES) as u64;
                at += HEAD_BYTES + value.len() + CHECK_BYTES;
                note(&mut found, kind, id, (place, value));
            }
            // The process was killed while it wrote this.
            Taken::Half => match next_mark(&bytes[at + 1..]) {
                Some(next) => (at, found.damaged) = (at + 1 + next, true),
                None => break,
            },
            Taken::Nothing => {
                found.damaged = true;
                match next_mark(&bytes[at + 1..]) {
                    Some(next) => at += 1 + next,
                    None => break,
                }
            }
        }
    }
    found
}

fn note(found: &mut Scanned, kind: u8, id: StagingId, (place, value): (u64, &[u8])) {
    match kind {
        RECORD => drop(found.known.insert(id, (place, value.len()))),
        GONE => drop(found.known.remove(&id)),
        _ => found.damaged = true,
    }
}

enum Taken<'a> {
    Entry(u8, StagingId, &'a [u8]),
    /// The bytes end before the entry does.
    Half,
    Nothing,
}

fn take(bytes: &[u8]) -> Taken<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return match MARK.starts_with(&bytes[..bytes.len().min(MARK.len())])
            || bytes.starts_with(&MARK)
        {
            true => Taken::Half,
            false => Taken::Nothing,
        };
    };
    if !head.starts_with(&MARK) {
        return Taken::Nothing;
    }
    let number = |range: std::ops::Range<usize>| {
        let bytes = head[range].iter();
        bytes.fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let length = number(13..17) as usize;
    let Some((value, rest)) = rest.split_at_checked(length) else {
        return Taken::Half;
    };
    let Some((check, _)) = rest.split_first_chunk::<CHECK_BYTES>() else {
        return Taken::Half;
    };
    match *check == check_of(&bytes[..HEAD_BYTES + length]) {
        true => Taken::Entry(head[4], StagingId(number(5..13)), value),
        false => Taken::Nothing,
    }
}

fn next_mark(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MARK.len()).position(|window| window == MARK)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn open(dir: &Path) -> (Latest, bool) {
        Latest::open(dir.join("journal")).unwrap()
    }

    /// What somebody does with it.
    #[derive(Clone, Debug)]
    enum Act {
        Put(u64, Vec<u8>),
        Forget(Vec<u64>),
        Rewrite,
        Reopen,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        let act = prop_oneof![
            4 => (0..5u64, bytes).prop_map(|(id, bytes)| Act::Put(id, bytes)),
            2 => prop::collection::vec(0..5u64, 1..3).prop_map(Act::Forget),
            1 => Just(Act::Rewrite),
            1 => Just(Act::Reopen),
        ];
        prop::collection::vec(act, 0..40)
    }

    proptest! {
        #[test]
        fn of_each_file_the_last_record_counts(acts in acts()) {
            let dir = tempfile::tempdir().unwrap();
            let (mut log, _) = open(dir.path());
            let mut model = Model::new();
            for act in acts {
                match act {
                    Act::Put(id, bytes) => {
                        log.put(StagingId(id), &bytes).unwrap();
                        model.insert(id, bytes);
                    }
                    Act::Forget(ids) => {
                        let gone: Vec<_> = ids.iter().copied().map(StagingId).collect();
                        log.forget(&gone).unwrap();
                        model.retain(|id, _| !ids.contains(id));
                    }
                    Act::Rewrite => log.rewrite(&mut log.log.lock()).unwrap(),
                    Act::Reopen => {
                        let (again, damaged) = open(dir.path());
                        prop_assert!(!damaged);
                        log = again;
                    }
                }
                prop_assert_eq!(&shown(&log), &model);
            }
        }
    }

    #[test]
    fn of_an_entry_that_was_not_written_to_its_end_nothing_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (log, _) = open(dir.path());
        log.put(StagingId(1), b"one").unwrap();
        let before = log.log.lock().end as usize;
        log.put(StagingId(1), b"another").unwrap();
        let whole = fs::read(&path).unwrap();
        for end in before..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let (log, damaged) = open(dir.path());
            assert!(!damaged, "{end}");
            assert_eq!(log.records().unwrap(), [(StagingId(1), b"one".to_vec())]);
            // What comes next may be shorter.
            log.keep(|_| true).unwrap();
            log.forget(&[StagingId(1)]).unwrap();
            let (log, damaged) = open(dir.path());
            assert!(!damaged && log.records().unwrap().is_empty(), "{end}");
        }
    }

    /// The record of each id.
    type Model = BTreeMap<u64, Vec<u8>>;

    fn shown(log: &Latest) -> Model {
        let records = log.records().unwrap().into_iter();
        records.map(|(id, record)| (id.0, record)).collect()
    }

    #[test]
    fn one_flipped_bit_is_noticed_and_takes_nothing_but_its_own_entry() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        for id in 0..4 {
            log.put(StagingId(id), &[id as u8; 30]).unwrap();
        }
        drop(log);
        let path = dir.path().join("journal");
        let sound = fs::read(&path).unwrap();
        for bit in 0..sound.len() * 8 {
            let mut flipped = sound.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            let (log, damaged) = open(dir.path());
            let entry = (bit / 8 / (sound.len() / 4)) as u64;
            let expected: Vec<_> = (0..4)
                .filter(|id| *id != entry)
                .map(|id| (StagingId(id), vec![id as u8; 30]))
                .collect();
            assert_eq!(log.records().unwrap(), expected, "bit {bit}");
            // A length that leads past the end may be a killed process's.
            assert!(damaged || entry == 3, "bit {bit}");
        }
    }

    #[test]
    fn nothing_is_left_of_it_once_nothing_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        for id in 0..3 {
            log.put(StagingId(id), b"record").unwrap();
        }
        log.forget(&[StagingId(1), StagingId(7)]).unwrap();
        assert!(log.bytes() > 0);
        log.forget(&[StagingId(0), StagingId(2)]).unwrap();
        assert!(fs::read(dir.path().join("journal")).unwrap().is_empty());
        log.put(StagingId(3), b"another").unwrap();
        drop(log);
        let (log, is_damaged) = open(dir.path());
        assert_eq!(
            log.records().unwrap(),
            [(StagingId(3), b"another".to_vec())]
        );
        assert!(!is_damaged);
    }

    #[test]
    fn it_stays_small_however_much_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        for round in 0..2000 {
            log.put(StagingId(round), &[1; 2000]).unwrap();
            if round >= 10 {
                log.forget(&[StagingId(round - 10)]).unwrap();
            }
            assert!(log.log.lock().end < REWRITE_BYTES + 5000);
        }
        assert_eq!(log.records().unwrap().len(), 10);
    }
}
