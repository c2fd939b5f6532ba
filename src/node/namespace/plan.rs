//! What local changes do to the tree. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::overlay::{Changes, Pending, Rename};
use crate::manifest::{
    self, CausalContext, Change, Dot, Entry, HybridTime, InternalKey, Key, Kind, MISSING_MAX, Name,
    NodeHash, NodeSource, Timestamp, TreeError, TreePath, Version, Versions, View, WriterNumber,
};

/// New versions under keys; `None` where nothing is left.
pub(super) type Edits = BTreeMap<Key, Option<Versions>>;

/// Works out the new versions that pending changes lead to, as the write `dot`.
///
/// A change through the name of a conflict copy puts the entry under that name and takes the version that it was from the
/// file it was a copy of.
pub(super) fn plan(
    source: &impl NodeSource,
    root: NodeHash,
    pending: &Changes,
    dot: Dot,
) -> Result<Edits, TreeError> {
    let mut edits = Edits::new();
    let mut missing = BTreeSet::new();
    let mut times: BTreeMap<TreePath, HybridTime> = BTreeMap::new();
    for (path, change) in pending {
        // A record of a file stands in no folder. What is put says by itself when.
        let is_told = path.record().is_some() || change.entry.is_some();
        if let Some((folder, _)) = path.split().filter(|_| !is_told) {
            let time = times.entry(folder).or_default();
            *time = change.time.max(*time);
        }
        match put(source, root, &mut edits, path, change, dot) {
            Err(TreeError::Missing(nodes)) => missing.extend(nodes),
            result => result?,
        }
        if missing.len() >= MISSING_MAX {
            break;
        }
    }
    match manifest::complete_links(source, root, &mut edits, BTreeSet::new(), &[], dot) {
        Err(TreeError::Missing(nodes)) => missing.extend(nodes),
        result => result?,
    }
    let time_of = |folder: &TreePath| times.get(folder).copied().unwrap_or_default();
    match manifest::record_folders(source, root, &mut edits, dot, time_of) {
        Err(TreeError::Missing(nodes)) => missing.extend(nodes),
        result => result?,
    }
    if missing.is_empty() {
        Ok(edits)
    } else {
        Err(TreeError::Missing(
            missing.into_iter().take(MISSING_MAX).collect(),
        ))
    }
}

/// A file's record that a write puts anew, as it was, for the sake of a name. No change here is about that, and whoever
/// changes the record meanwhile has seen what it is a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) record: Arc<TreePath>,
    /// The versions that say the same and are there no more.
    pub(super) replaced: Vec<Dot>,
}

/// The records that edits of a tree, which are the write `dot`, put anew as they were.
pub(super) fn copied_records(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &Edits,
    dot: Dot,
) -> Result<Vec<Copied>, TreeError> {
    let mut copied = Vec::new();
    for (key, new) in edits {
        let (Some(InternalKey::File(file)), Some(new)) = (key.internal(), new) else {
            continue;
        };
        let new = new.as_slice();
        let own = new.iter().find(|version| version.dot == dot);
        let Some(original) = own.and_then(|own| own.moved.as_ref()) else {
            continue;
        };
        let says_the_same = |version: &Version| match &version.moved {
            Some(moved) => moved.dots() == original.dots(),
            None => [version.dot] == original.dots(),
        };
        let before = manifest::get(source, root, key)?;
        let before = before.iter().flat_map(Versions::as_slice);
        let before =
            before.filter(|old| says_the_same(old) && new.iter().all(|new| new.dot != old.dot));
        let replaced: Vec<Dot> = before.map(|version| version.dot).collect();
        if !replaced.is_empty() {
            copied.push(Copied {
                record: Arc::new(TreePath::of_record(&file)),
                replaced,
            });
        }
    }
    Ok(copied)
}

/// What became of pending changes that could not all be applied.
pub(super) struct Fitting {
    /// Those that can be.
    pub(super) fits: Changes,
    /// Those that can't.
    pub(super) others: Changes,
    /// Why not, of one of them.
    pub(super) why: Option<String>,
}

/// Finds the changes that can be applied without those that can't be; what belongs together is applied together.
/// `attempt` applies some. It is asked about all of them a few times for each that can't be.
pub(super) fn fitting(
    pending: Changes,
    attempt: impl Fn(&Changes) -> Result<(), TreeError>,
) -> Result<Fitting, TreeError> {
    let mut found = Fitting {
        fits: Changes::new(),
        others: Changes::new(),
        why: None,
    };
    let mut left = vec![parts(pending)];
    while let Some(mut some) = left.pop() {
        let together = joined(some.iter().flatten().cloned());
        match attempt(&together) {
            Ok(()) => found.fits.extend(together),
            Err(error @ (TreeError::Missing(_) | TreeError::Bounds(..))) if some.len() <= 1 => {
                let path = together.first().map(|(path, _)| format!("{path}: {error}"));
                found.why = found.why.or(path);
                found.others.extend(together);
            }
            Err(TreeError::Missing(_) | TreeError::Bounds(..)) => {
                left.push(some.split_off(some.len() / 2));
                left.push(some);
            }
            Err(error) => return Err(error),
        }
    }
    found.fits = joined(found.fits);
    Ok(found)
}

/// Parts changes into those that may go ahead and those that wait: each of which `waits` says so, and what belongs together
/// with it.
pub(super) fn split(
    pending: Changes,
    waits: impl Fn(&(Arc<TreePath>, Arc<Pending>)) -> bool,
) -> (Changes, Changes) {
    let parts = parts(pending).into_iter();
    let (waiting, others): (Vec<_>, Vec<_>) = parts.partition(|part| part.iter().any(&waits));
    let all = |parts: Vec<Changes>| joined(parts.into_iter().flatten());
    (all(others), all(waiting))
}

/// Changes by what belongs together: what one call has changed, and what followed on from that.
fn parts(pending: Changes) -> Vec<Changes> {
    // Each call leads to another that it has to do with, or to itself.
    let mut calls: BTreeMap<u64, u64> = BTreeMap::new();
    let first = |calls: &BTreeMap<u64, u64>, mut call: u64| {
        while let Some(&next) = calls.get(&call).filter(|next| **next != call) {
            call = next;
        }
        call
    };
    for (_, change) in &pending {
        let mut of_change = change.calls.iter().flat_map(|calls| calls.iter());
        let Some(&one) = of_change.next() else {
            continue;
        };
        let one = first(&calls, one);
        calls.insert(one, one);
        for &other in of_change {
            let other = first(&calls, other);
            calls.insert(other, one);
        }
    }
    // Calls and changes are numbered together.
    let mut parts: BTreeMap<u64, Changes> = BTreeMap::new();
    for (path, change) in pending {
        let call = change.calls.iter().flat_map(|calls| calls.iter()).next();
        let part = call.map_or(change.generation, |call| first(&calls, *call));
        parts.entry(part).or_default().push((path, change));
    }
    parts.into_values().collect()
}

/// In order of their paths.
fn joined(changes: impl IntoIterator<Item = (Arc<TreePath>, Arc<Pending>)>) -> Changes {
    let mut changes: Changes = changes.into_iter().collect();
    changes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    changes
}

fn put(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &mut Edits,
    path: &TreePath,
    change: &Pending,
    dot: Dot,
) -> Result<(), TreeError> {
    let Some(key) = Key::of_path(path) else {
        return Ok(());
    };
    let there = current(source, root, edits, &key)?;
    let mut elsewhere: BTreeSet<_> = change.seen.iter().copied().collect();
    for version in there.iter().flat_map(Versions::as_slice) {
        elsewhere.remove(&version.dot);
    }
    // All that one head brought has the same dot. So where the path has something of its own, that is what was seen there.
    if there.is_none()
        && !elsewhere.is_empty()
        && let Some(origin) = origin(source, root, path, &elsewhere)?
    {
        let seen: Vec<_> = elsewhere.into_iter().collect();
        let versions = current(source, root, edits, &origin)?;
        edits.insert(origin, Versions::replace(versions.as_ref(), &seen, None));
    }
    let new = change.entry.clone().map(|entry| Version {
        dot,
        time: change.time,
        entry,
        moved: change.moved.clone(),
    });
    let mut seen = change.seen.clone();
    if path.record().is_some() {
        // A copy that was put meanwhile, for the sake of a name, says nothing that its originals don't.
        let copies = there.iter().flat_map(Versions::as_slice).filter(|copy| {
            let originals = copy.moved.as_ref().map(manifest::Moved::dots);
            originals.is_some_and(|dots| dots.iter().all(|dot| change.seen.contains(dot)))
        });
        seen.extend(copies.map(|copy| copy.dot));
    }
    let versions = Versions::replace(there.as_ref(), &seen, new);
    if versions != there || edits.contains_key(&key) {
        edits.insert(key, versions);
    }
    Ok(())
}

fn current(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &Edits,
    key: &Key,
) -> Result<Option<Versions>, TreeError> {
    match edits.get(key) {
        Some(versions) => Ok(versions.clone()),
        None => manifest::get(source, root, key),
    }
}

/// The key that holds the versions which a path showed as a conflict copy.
fn origin(
    source: &impl NodeSource,
    root: NodeHash,
    path: &TreePath,
    dots: &BTreeSet<Dot>,
) -> Result<Option<Key>, TreeError> {
    let Some((folder, name)) = path.split() else {
        return Ok(None);
    };
    let found = manifest::find_copy(source, &View::of(root), path)?;
    let found = found.filter(|(_, copy)| copy.seen.iter().any(|dot| dots.contains(dot)));
    let is_shown = found.is_some();
    let original = found.map(|(original, _)| original);
    let original = original.or_else(|| original_name(name));
    let original = original.and_then(|original| folder.join(&original).ok());
    let Some((original, key)) =
        original.and_then(|path| Some((path.clone(), Key::of_path(&path)?)))
    else {
        return Ok(None);
    };
    let versions = manifest::get(source, root, &key)?;
    let there = versions.iter().flat_map(Versions::as_slice);
    for version in there.filter(|version| dots.contains(&version.dot)) {
        let view = View::of(root);
        if is_shown || manifest::may_be_shown_as(source, &view, (&original, version), name)? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// What a conflict copy of this name may be a copy of: its original may be gone by now, so that the copy has got the name.
fn original_name(copy: &Name) -> Option<Name> {
    let bytes = copy.as_bytes();
    let marker = b" (conflict";
    let start = bytes
        .windows(marker.len())
        .position(|window| window == marker)?;
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let original = [bytes.get(..start)?, bytes.get(end + 1..)?].concat();
    Name::new(original).ok()
}

/// Adds the hints of renames, made on a state that has seen `covers`.
pub(super) fn add_hints(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &mut Edits,
    renames: &[Rename],
    covers: &CausalContext,
    dot: Dot,
) -> Result<(), TreeError> {
    for rename in renames {
        let Some((key, entry)) = manifest::move_hint(&rename.from, &rename.to, covers) else {
            continue;
        };
        let there = current(source, root, edits, &key)?;
        let seen = there.iter().flat_map(Versions::as_slice);
        let seen: Vec<_> = seen.map(|version| version.dot).collect();
        let hint = Version {
            dot,
            time: rename.time,
            entry,
            moved: None,
        };
        edits.insert(key, Versions::replace(there.as_ref(), &seen, Some(hint)));
    }
    Ok(())
}

/// Adds the writer's row to the table of writers, unless it is there.
pub(super) fn add_writer_row(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &mut Edits,
    version: Version,
) -> Result<(), TreeError> {
    let key = Key::of_internal(&InternalKey::Writer(version.dot.writer));
    let there = manifest::get(source, root, &key)?;
    let rows = there.iter().flat_map(Versions::as_slice);
    if rows.clone().any(|row| row.entry.kind == version.entry.kind) {
        return Ok(());
    }
    let seen: Vec<_> = rows.map(|row| row.dot).collect();
    edits.insert(key, Versions::replace(there.as_ref(), &seen, Some(version)));
    Ok(())
}

/// A writer's row.
pub(super) fn writer_row(peer: Vec<u8>, node: String) -> Entry {
    Entry::new(Kind::Writer { peer, node }, 0, 0, 0, Timestamp::default())
}

/// The sequences above `above` of the writer `old` under which versions stand in the new state.
pub(super) fn contested(changes: &[Change], old: WriterNumber, above: u64) -> BTreeSet<u64> {
    let versions = changes.iter().filter_map(|change| change.new.as_ref());
    versions
        .flat_map(Versions::as_slice)
        .filter(|version| version.dot.writer == old && version.dot.sequence > above)
        .map(|version| version.dot.sequence)
        .collect()
}

/// Gives versions of the new state other dots, where there is another.
pub(super) fn renumber(changes: &[Change], new_dot: impl Fn(Dot) -> Option<Dot>) -> Edits {
    let mut edits = Edits::new();
    for change in changes {
        let Some(versions) = &change.new else {
            continue;
        };
        let renamed = versions.as_slice().iter().cloned().map(|mut version| {
            version.dot = new_dot(version.dot).unwrap_or(version.dot);
            version
        });
        let renamed = Versions::new(renamed.collect());
        if renamed.as_ref() != Some(versions) {
            edits.insert(change.key.clone(), renamed);
        }
    }
    edits
}
