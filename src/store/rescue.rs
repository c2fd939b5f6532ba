//! An index that is damaged or gone: found out before sled opens it, and made anew from what can still be read.
//!
//! What can be read of a damaged index goes into a new one; the old one is put aside in `lost/`, as it was. What is in
//! neither is had again as far as possible: backing files and packs are proven and indexed, nodes and heads come from other members.
//! Only changes that nobody else has, and small contents from before there were packs, are gone then, and the log says that something was lost. Where just one
//! bit of a record is wrong, its checksum tells which, and nothing is lost. A node that
//! may have forgotten what it signed takes a new identity, as a restored copy does ([`super::Store::is_restored_copy`]).
//!
//! ```text
//! index.end     where sled's log ended when the store was closed: LSN (8, little-endian) ‖ CRC-32 of it (4)
//! index.new/    an index in the making, in place of a damaged one; it is whole once `index/` is gone
//! ```

mod log;

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use self::log::{Findings, IndexFolder, Pair};
use super::{
    StoreError,
    check::{ANEW_KEY, CLEAN_KEY, ORIGIN_KEY},
    failed,
    folder::sync_dir,
    index::{IndexFiles, open_index},
    journal::put_aside_in,
    record::{ObjectRecord, parse_object_key},
};
use crate::{content, manifest::NodeHash};

/// Opens the index of a state folder, after looking it through.
pub(super) fn open_sound(dir: &Path) -> Result<sled::Db, StoreError> {
    let index = dir.join("index");
    let new = dir.join("index.new");
    if !index.exists() && new.exists() {
        fs::rename(&new, &index).map_err(failed("placing", &index))?;
        sync_dir(dir)?;
    }
    let end = take_end(dir)?;
    let looked = failed("reading", &index);
    let why = match IndexFolder::open(&index).and_then(|folder| look(folder, end)) {
        Ok(why) => why,
        Err(error) => return Err(looked(error)),
    };
    let why = match why {
        Some(why) => why,
        None => match open_guarded(&index) {
            // A disk that fails is no damage, and another try may work.
            Err(error @ (StoreError::Full | StoreError::Io { .. })) => return Err(error),
            Err(error @ StoreError::Index(sled::Error::Io(_))) => return Err(error),
            Err(error) => Harm {
                what: error.to_string(),
                is_lossy: true,
            },
            opened => return opened,
        },
    };
    make_anew(dir, &why, end)?;
    open_guarded(&index)
}

/// Notes where the log ends, once everything is in it.
pub(super) fn note_end(dir: &Path) -> Result<(), StoreError> {
    let index = dir.join("index");
    let folder = IndexFolder::open(&index).map_err(failed("reading", &index))?;
    let Some(folder) = folder else { return Ok(()) };
    let end = folder.end().map_err(failed("reading", &index))?;
    let mut note = end.to_le_bytes().to_vec();
    note.extend(crc32fast::hash(&note).to_le_bytes());
    let path = end_path(dir);
    fs::write(&path, note).map_err(failed("writing", &path))
}

/// Why an index is not used as it is.
struct Harm {
    what: String,
    /// Whether something may be lost.
    is_lossy: bool,
}

fn look(folder: Option<IndexFolder>, end: Option<u64>) -> io::Result<Option<Harm>> {
    let Some(folder) = folder else {
        return Ok(None);
    };
    let findings = folder.look(end, false)?;
    if findings.bad_settings {
        tracing::warn!("sled's settings are damaged; they are made anew");
        folder.remove_settings()?;
    }
    if !findings.is_sound() {
        return Ok(Some(Harm {
            what: findings.damage.join("; "),
            // Seen when it is read for the new one.
            is_lossy: false,
        }));
    }
    Ok(findings.bad_snapshot.then(|| Harm {
        what: "its page table is damaged".to_owned(),
        is_lossy: false,
    }))
}

/// As [`open_index`]; a panic of sled's is an error.
fn open_guarded(index: &Path) -> Result<sled::Db, StoreError> {
    catch_unwind(AssertUnwindSafe(|| open_index(index)))
        .unwrap_or_else(|_| Err(StoreError::Damaged("sled can't open it".to_owned())))
}

/// Makes an index of what can be read of the present one, and puts that one aside.
fn make_anew(dir: &Path, why: &Harm, end: Option<u64>) -> Result<(), StoreError> {
    tracing::error!(
        damage = why.what,
        "the index is damaged: a new one is made of what can be read"
    );
    let (index, new) = (dir.join("index"), dir.join("index.new"));
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing", &new)(error));
        }
        _ => {}
    }
    let failed_to_read = |error| failed("reading", &index)(error);
    let folder = IndexFolder::open(&index).map_err(failed_to_read)?;
    let db = open_index(&new)?;
    let mut read = 0;
    let mut is_lossy = why.is_lossy;
    if let Some(folder) = folder {
        let findings: Findings = folder.look(end, true).map_err(failed_to_read)?;
        is_lossy |= findings.is_lossy;
        folder.pairs(&findings, &mut |tree, pair| {
            read += u64::from(keep(&db, tree, pair)?);
            Ok(())
        })?;
    }
    let meta = db.open_tree("meta")?;
    // The next start, which this one is, looks for what is not in it.
    meta.remove(CLEAN_KEY)?;
    meta.insert(ANEW_KEY, &[])?;
    if is_lossy {
        meta.insert(ORIGIN_KEY, &[])?;
    }
    db.flush()?;
    IndexFiles::open(&new)?.sync()?;
    drop((meta, db));
    let aside = put_aside_in(dir, &index)?;
    fs::rename(&new, &index).map_err(failed("placing", &index))?;
    sync_dir(dir)?;
    let aside = aside.unwrap_or_default();
    let aside = aside.display();
    match is_lossy {
        true => tracing::error!(
            records = read,
            %aside,
            "the new index is in place, the damaged one is kept; small files and changes that only stood where it is \
             damaged are lost unless another member has them"
        ),
        false => tracing::warn!(
            records = read,
            %aside,
            "the new index is in place, and has all that was in the damaged one, which is kept"
        ),
    }
    Ok(())
}

/// Puts a pair into its tree; one whose tree isn't known only if it tells by itself what it is.
fn keep(db: &sled::Db, tree: &[u8], (key, value): Pair) -> Result<bool, StoreError> {
    let tree = match tree {
        b"" if is_small_content(&key, &value) => b"objects",
        b"" if key == NodeHash::of(&value).0 => &b"nodes"[..],
        b"" | b"pinned" | b"cleared" | b"__sled__default" => return Ok(false),
        tree => tree,
    };
    db.open_tree(tree)?.insert(key, value)?;
    Ok(true)
}

fn is_small_content(key: &[u8], value: &[u8]) -> bool {
    let Ok(object) = parse_object_key(key) else {
        return false;
    };
    ObjectRecord::decode(&object, value)
        .ok()
        .and_then(|record| record.inline)
        .is_some_and(|content| content::hash_bytes(&content) == object.content)
}

fn end_path(dir: &Path) -> PathBuf {
    dir.join("index.end")
}

/// Where the log ended when the store was closed; `None` if it was not, or if that can't be read.
fn take_end(dir: &Path) -> Result<Option<u64>, StoreError> {
    let path = end_path(dir);
    let note = match fs::read(&path) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("reading", &path)(error)),
    };
    fs::remove_file(&path).map_err(failed("removing", &path))?;
    let end = note.split_first_chunk::<8>().and_then(|(end, crc)| {
        let sound = crc == crc32fast::hash(end).to_le_bytes();
        sound.then_some(u64::from_le_bytes(*end))
    });
    Ok(end)
}
