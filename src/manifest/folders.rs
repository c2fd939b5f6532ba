//! What is remembered of folders beside their contents: that something was changed directly in them, and when that last was.
//!
//! Keys are ordered so that all of what is in a subfolder lies between it and the next one. Telling which subfolders a folder
//! has, and when each last changed, from that alone takes a leaf or two of each. So under an internal key of its path a
//! folder has a **record**, whose versions have the time at which a name last came, went or was renamed directly in it: the
//! records of a folder's subfolders stand side by side. Nobody's records are more than a hint where they are: whether something lives in a folder
//! is looked up. What counts is that none is lacking.
//!
//! - Every write that changes something directly in a folder replaces the versions of its record that it knows with one of
//!   its own, that has its dot. It removes the record only where it leaves the folder without an entry, and nothing in it.
//! - So merging, which knows nothing of this, keeps a record for every folder with something directly in it. Take a version
//!   that lives in the merged state, and of the record's versions that come from its write, or follow on from those, one
//!   that nothing else follows on from: who removed that without replacing it had seen the entry, and so had found the folder
//!   not empty. The side that has it keeps it, and the other has not seen it.
//! - Only a tree whose every write kept to this says so: by the root folder's record. A write on the
//!   empty map makes it, others keep it, and where it isn't, no records are made and folders are looked at themselves.
//! - The record of a folder that others emptied and removed at the same time may stay behind.
//! - Of more than 256 versions of a record (so many members who change one folder apart from each other) the latest stay, as
//!   of every row; should one of those that went have been the only one to outlive a removal, the folder is not listed until
//!   something in it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    Dot, Entry, HybridTime, InternalKey, Key, Kind, Name, NodeHash, NodeSource, Timestamp,
    TreeError, TreePath, Version, Versions, empty_root, get,
    key::after_prefix,
    merge::list,
    node::Child,
    parts::{complete, gather},
    tree::{Step, Visitor, any_in, walk},
};

type Edits = BTreeMap<Key, Option<Versions>>;

/// The key of a folder's record.
pub(super) fn key(folder: &TreePath) -> Key {
    Key::of_internal(&InternalKey::Folder(folder.clone()))
}

/// The ranges of raw key bytes that hold the records of a folder, and of all folders below it.
pub(super) fn records_from(folder: &TreePath) -> Vec<Range<Vec<u8>>> {
    let own = key(folder).as_bytes().to_vec();
    let behind = [own.as_slice(), &[0]].concat();
    let prefix = Key::folders_prefix(folder);
    let below = after_prefix(&prefix).map(|end| prefix.max(behind.clone())..end);
    std::iter::once(own..behind).chain(below).collect()
}

/// Whether every folder of a tree with something directly in it has a record.
pub fn are_recorded(source: &impl NodeSource, root: NodeHash) -> Result<bool, TreeError> {
    Ok(root == empty_root() || get(source, root, &key(&TreePath::root()))?.is_some())
}

/// Names, starting with `start`, of the subfolders that have a record, or below which something has.
pub(super) fn recorded(
    source: &impl NodeSource,
    root: NodeHash,
    folder: &TreePath,
    start: &[u8],
) -> Result<BTreeSet<Name>, TreeError> {
    let prefix = Key::folders_prefix(folder);
    let first = [prefix.as_slice(), start].concat();
    let Some(end) = after_prefix(&first) else {
        return Ok(BTreeSet::new());
    };
    let range = first..end;
    let mut subfolders = Subfolders {
        prefix: prefix.len(),
        start: &range.start,
        found: BTreeSet::new(),
    };
    walk(source, root, &range, &mut subfolders)?;
    Ok(subfolders.found)
}

/// A walk over the records below a folder.
struct Subfolders<'a> {
    /// How much of a key comes before the subfolder's name.
    prefix: usize,
    /// Where the range starts.
    start: &'a [u8],
    found: BTreeSet<Name>,
}

impl Subfolders<'_> {
    /// Notes the subfolder that a key is of. What the keys below it start with, if this is one of them.
    fn note<'k>(&mut self, key: &'k [u8]) -> Option<&'k [u8]> {
        let rest = key.get(self.prefix..)?;
        let slash = rest.iter().position(|byte| *byte == b'/');
        // The record of the folder itself, which the root's stands at the edge of, has no name here.
        if let Ok(name) = Name::new(rest.get(..slash.unwrap_or(rest.len()))?) {
            self.found.insert(name);
        }
        key.get(..=self.prefix + slash?)
    }
}

impl Visitor for Subfolders<'_> {
    fn child(&mut self, first: &Key, upper: Option<&Key>, _child: &Child) -> Step {
        let first = first.as_bytes();
        if first < self.start {
            return Step::Enter;
        }
        // A child whose keys are all below one subfolder tells nothing more than its first key does.
        let end = self.note(first).and_then(after_prefix);
        match (end, upper) {
            (Some(end), Some(upper)) if upper.as_bytes() <= end.as_slice() => Step::Skip,
            _ => Step::Enter,
        }
    }
    fn row(&mut self, key: &Key, _versions: &Versions) -> Step {
        self.note(key.as_bytes());
        Step::Enter
    }
}

/// Adds to the edits of one write what they do to the records of folders. `time_of` says when something was changed in a
/// folder, where the written versions don't say it: removals.
pub fn record_folders(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &mut BTreeMap<Key, Option<Versions>>,
    dot: Dot,
    time_of: impl Fn(&TreePath) -> HybridTime,
) -> Result<(), TreeError> {
    let mut missing = BTreeSet::new();
    let recorded = gather(&mut missing, are_recorded(source, root))?;
    if edits.is_empty() || recorded == Some(false) {
        return Ok(());
    }
    // Where that can't be told yet, what else is needed is named at once.
    let mut changed = changed(source, root, edits, dot, &mut missing)?;
    if root == empty_root() {
        changed.entry(TreePath::root()).or_default();
    }
    let mut records = Edits::new();
    for (folder, own) in &changed {
        let time = own.time.max(time_of(folder));
        let record = record(source, root, edits, folder, own.puts, (time, dot));
        records.extend(gather(&mut missing, record)?);
    }
    for (key, new) in edits.iter() {
        let Some(path) = key.path().filter(|_| new.is_none()) else {
            continue;
        };
        if changed.contains_key(&path) {
            continue;
        }
        let removed = removed_record(source, root, key, &path);
        records.extend(gather(&mut missing, removed)?.flatten());
    }
    complete(missing)?;
    edits.extend(records);
    Ok(())
}

/// What edits do directly in a folder.
#[derive(Default)]
struct Changed {
    /// The time of the newest version that is written under a name that was not there, or is renamed to.
    time: HybridTime,
    /// Something is left there.
    puts: bool,
}

fn changed(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &Edits,
    dot: Dot,
    missing: &mut BTreeSet<NodeHash>,
) -> Result<BTreeMap<TreePath, Changed>, TreeError> {
    let mut changed: BTreeMap<TreePath, Changed> = BTreeMap::new();
    for (key, new) in edits {
        let path = key.path();
        let Some((folder, _)) = path.as_ref().and_then(TreePath::split) else {
            continue;
        };
        let folder = changed.entry(folder).or_default();
        folder.puts |= new.is_some();
        let mut written = list(new.as_ref()).iter();
        if let Some(written) = written.find(|version| version.dot == dot)
            && (written.moved.is_some()
                || gather(missing, get(source, root, key))?.is_some_and(|there| there.is_none()))
        {
            folder.time = folder.time.max(written.time);
        }
    }
    Ok(changed)
}

/// The record of a folder in which something is changed.
fn record(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &Edits,
    folder: &TreePath,
    puts: bool,
    (time, dot): (HybridTime, Dot),
) -> Result<(Key, Option<Versions>), TreeError> {
    let mut missing = BTreeSet::new();
    let key = key(folder);
    let there = gather(&mut missing, get(source, root, &key))?.flatten();
    let stays = puts || gather(&mut missing, stays(source, root, edits, folder))? == Some(true);
    complete(missing)?;
    let seen: Vec<_> = list(there.as_ref()).iter().map(|old| old.dot).collect();
    let new = stays.then(|| Version {
        dot,
        time: there
            .as_ref()
            .map_or(time, |there| there.newest().max(time)),
        entry: Entry::new(Kind::Record(Vec::new()), 0o644, 0, 0, Timestamp::default()),
        moved: None,
    });
    Ok((key, Versions::replace(there.as_ref(), &seen, new)))
}

/// Whether a folder has an entry, or something directly in it, once edits are made.
fn stays(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &Edits,
    folder: &TreePath,
) -> Result<bool, TreeError> {
    let Some(own) = Key::of_path(folder) else {
        return Ok(true);
    };
    let has_entry = match edits.get(&own) {
        Some(new) => new.is_some(),
        None => get(source, root, &own)?.is_some(),
    };
    Ok(has_entry || leaves_any(source, root, edits, &Key::children_of(folder))?)
}

/// Whether a range holds a row that edits don't remove.
fn leaves_any(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &Edits,
    range: &Range<Vec<u8>>,
) -> Result<bool, TreeError> {
    struct Left<'a>(&'a Edits, bool);
    impl Visitor for Left<'_> {
        fn child(&mut self, _first: &Key, _upper: Option<&Key>, _child: &Child) -> Step {
            Step::Enter
        }
        fn row(&mut self, key: &Key, _versions: &Versions) -> Step {
            if matches!(self.0.get(key), Some(None)) {
                return Step::Enter;
            }
            self.1 = true;
            Step::Stop
        }
    }
    let mut left = Left(edits, false);
    match walk(source, root, range, &mut left) {
        Err(TreeError::Missing(_)) if left.1 => Ok(true),
        result => result.map(|()| left.1),
    }
}

/// The removal of the record of a folder whose own entry goes, and in which nothing else is changed; `None` where there is
/// nothing to remove.
fn removed_record(
    source: &impl NodeSource,
    root: NodeHash,
    entry: &Key,
    path: &TreePath,
) -> Result<Option<(Key, Option<Versions>)>, TreeError> {
    let old = get(source, root, entry)?;
    let mut kinds = list(old.as_ref()).iter().map(|version| &version.entry.kind);
    if !kinds.any(|kind| *kind == Kind::Directory) {
        return Ok(None);
    }
    let record = key(path);
    if get(source, root, &record)?.is_none() || any_in(source, root, &Key::children_of(path))? {
        return Ok(None);
    }
    Ok(Some((record, None)))
}

#[cfg(test)]
mod tests;
