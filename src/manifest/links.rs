//! Files with several names (hard links).
//!
//! Each name holds a link to the file's id, and the **record**, what a single name's entry would be, stands once under an
//! internal key. An index under further internal keys tells the names of a file. Three rules keep all that whole through every
//! merge, in which versions are only ever kept or dropped, key by key:
//!
//! - A name's row in the index has the versions of the name that link to the file, by the same dots. So what a merge keeps of
//!   the one it keeps of the other.
//! - Who puts a name puts the record anew, in the same write. So whoever removes the record, with the last name that is known
//!   there, leaves a version of it to every name that is not. Who gives or renames a name brings the record along as it is
//!   seen then: it may be removed before that is written.
//! - Who changes the record puts the name through which that was done anew, so that a removal of all names at the same
//!   time loses nothing: that name stays. (This one is for those who change it to keep.)
//!
//! A record that is put for the sake of a name says nothing new. So it tells of what it is a copy ([`Moved`], with the versions
//! that say it first), and gives way to whatever is concurrent with it: to others it is shown behind every real change, and who
//! merges the two drops it where the other side has written over what it is a copy of. One that is brought along is put only
//! where there is no record any more; else what is there is put anew.
//!
//! A record that was really changed on two sides at once would hide one of the two. So the first writer that has both puts
//! each but the one that is shown beside a name of the file, as a concurrent version of that name: a conflict like any other.
//! It tells whose it is in the same way. Where that would hide the file under all of its names, it becomes a plain file with the
//! name of a conflict copy.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CausalContext, Change, Dot, Entry, FileId, InternalKey, Key, Kind, Linked, Moved, NodeHash,
    NodeSource, Shown, TreeError, TreePath, Version, Versions, View, WriterNumber, get,
    merge::list,
    node_name,
    parts::{complete, gather, rows_up_to, versions},
    range_summary, scan,
    tree::any_in,
    view::{EQUAL_NAMES_MAX, Group, copy_name, groups, groups_by, in_a_name, shown},
};

/// Names of a file that are told; who writes makes no more than 65,000.
const NAMES_MAX: usize = 65_536;
/// Names that are looked at for a place for a version.
const PLACES_MAX: usize = 16;

/// Edits of a tree: the new versions under keys; `None` where nothing is left.
type Edits = BTreeMap<Key, Option<Versions>>;

/// The names of a file that has several, in order of their bytes: the first 65,536.
pub fn names(
    source: &impl NodeSource,
    view: &View,
    file: &FileId,
) -> Result<Vec<TreePath>, TreeError> {
    let rows = rows_up_to(source, view, &Key::names_of(file), NAMES_MAX)?;
    let rows = rows.into_iter();
    Ok(rows.filter_map(|(key, _)| named_by(&key)).collect())
}

/// How many names a file has that has several. Two descents where there is a single part; else at most 65,536.
pub fn count_names(source: &impl NodeSource, view: &View, file: &FileId) -> Result<u64, TreeError> {
    let mut roots = view.roots();
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(range_summary(source, root, &Key::names_of(file))?.keys),
        _ => Ok(names(source, view, file)?.len() as u64),
    }
}

/// What is shown where a name may be a link: the file's record then. A link whose record is nowhere stays as it is.
pub fn resolve(source: &impl NodeSource, view: &View, name: Shown) -> Result<Shown, TreeError> {
    let Kind::Link(file) = name.entry.kind else {
        return Ok(name);
    };
    Ok(match record(source, view, &file)? {
        Some((record, _)) => name.with_record(file, record),
        None => name,
    })
}

/// What a file with several names is, and who wrote that.
pub(super) fn record(
    source: &impl NodeSource,
    view: &View,
    file: &FileId,
) -> Result<Option<(Shown, WriterNumber)>, TreeError> {
    let key = Key::of_internal(&InternalKey::File(*file));
    let versions = versions(source, view, &key)?;
    Ok(versions.and_then(|versions| {
        let first = record_groups(&versions).into_iter().next()?;
        Some((first.shown(), author(first.newest)))
    }))
}

/// The versions of a record by what they hold, the one that is shown first: copies come behind real changes.
fn record_groups(record: &Versions) -> Vec<Group<'_>> {
    groups_by(record, |version| (version.moved.is_none(), version.rank()))
}

/// Who wrote what a version of a record says.
fn author(version: &Version) -> WriterNumber {
    originals(version).last().unwrap_or(&version.dot).writer
}

/// The versions which say first what a version of a record says.
fn originals(version: &Version) -> &[Dot] {
    match &version.moved {
        Some(copied) => copied.dots(),
        None => std::slice::from_ref(&version.dot),
    }
}

impl Shown {
    /// Whether it is a name of that file.
    pub(crate) fn is_of(&self, file: Option<FileId>) -> bool {
        self.link.as_ref().map(|link| link.file) == file
    }

    /// What is put with a name for which one of several names of a file is given or renamed: the place of the file's record,
    /// which may be removed before that is written, and of what versions it is a copy. `None` where nobody but this node knows
    /// of the record, or it says nothing.
    pub(crate) fn record_copy(&self, name: &TreePath) -> Option<(TreePath, Moved)> {
        let link = self.link.as_ref()?;
        let copied = Moved::new(name.clone(), &link.seen)?;
        Some((TreePath::of_record(&link.file), copied))
    }

    /// A name that links to a file, with that file's record.
    pub(crate) fn with_record(self, file: FileId, record: Shown) -> Self {
        Self {
            entry: record.entry,
            seen: self.seen,
            time: record.time,
            link: Some(Linked {
                file,
                seen: record.seen,
            }),
        }
    }
}

/// Of the changes that a merge makes: the files that have to be looked at, whose records have versions that did not see each
/// other, or which have lost a name that may have been the last; and those whose records are new, of which all names may have
/// been removed here.
pub fn contested_files(changes: &[Change]) -> BTreeSet<FileId> {
    let contested =
        changes
            .iter()
            .filter_map(|change| match (change.key.internal()?, &change.new) {
                (InternalKey::File(file), Some(record))
                    if change.old.is_none() || groups(record).len() > 1 =>
                {
                    Some(file)
                }
                (InternalKey::Name(file, _), None) => Some(file),
                _ => None,
            });
    contested.collect()
}

/// Adds to edits of a tree, which are the write `dot`, what keeps the rules: rows of the index, records that names need,
/// places for versions of contested records; those of `contested`, too. A record that is left without a name goes. `merged`:
/// the states that the tree was merged of, where it was.
pub fn complete_links(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &mut Edits,
    contested: BTreeSet<FileId>,
    merged: &[(NodeHash, &CausalContext)],
    dot: Dot,
) -> Result<(), TreeError> {
    if edits.is_empty() && contested.is_empty() {
        return Ok(());
    }
    let are_linked =
        |versions: &Versions| versions.as_slice().iter().any(|one| linked(one).is_some());
    let concerns = !contested.is_empty()
        || edits.values().flatten().any(are_linked)
        || any_files(source, root)?;
    if !concerns {
        return Ok(());
    }
    let mut completion = Completion {
        source,
        root,
        edits,
        merged,
        dot,
        missing: BTreeSet::new(),
    };
    let mut files = contested;
    completion.index(&mut files)?;
    for file in files {
        completion.keep(file)?;
    }
    complete(completion.missing)
}

/// Whether there are records of files with several names, which every write looks at.
pub fn any_files(source: &impl NodeSource, root: NodeHash) -> Result<bool, TreeError> {
    any_in(source, root, &Key::files())
}

fn linked(version: &Version) -> Option<FileId> {
    match version.entry.kind {
        Kind::Link(file) => Some(file),
        _ => None,
    }
}

fn named_by(row: &Key) -> Option<TreePath> {
    match row.internal()? {
        InternalKey::Name(_, path) => Some(path),
        _ => None,
    }
}

/// The row of the index for a name with these versions.
fn row(name: Option<&Versions>, file: &FileId) -> Option<Versions> {
    let links = list(name).iter().filter(|one| linked(one) == Some(*file));
    let row = links.map(|link| Version {
        dot: link.dot,
        time: link.time,
        entry: Entry::new(Kind::Record(Vec::new()), 0o644, 0, 0, Default::default()),
        moved: None,
    });
    Versions::new(row.collect())
}

struct Completion<'a, S> {
    source: &'a S,
    root: NodeHash,
    edits: &'a mut Edits,
    merged: &'a [(NodeHash, &'a CausalContext)],
    dot: Dot,
    missing: BTreeSet<NodeHash>,
}

impl<S: NodeSource> Completion<'_, S> {
    /// Makes the rows of all names that are edited; notes their files.
    fn index(&mut self, files: &mut BTreeSet<FileId>) -> Result<(), TreeError> {
        let mut index = Edits::new();
        for (key, new) in &*self.edits {
            let Some(path) = key.path() else {
                if let Some(InternalKey::File(file)) = key.internal() {
                    files.insert(file);
                }
                continue;
            };
            let old = gather(&mut self.missing, get(self.source, self.root, key))?.flatten();
            let both = list(old.as_ref()).iter().chain(list(new.as_ref()));
            for file in both.filter_map(linked).collect::<BTreeSet<_>>() {
                let key = Key::of_internal(&InternalKey::Name(file, path.clone()));
                index.insert(key, row(new.as_ref(), &file));
                files.insert(file);
            }
        }
        self.edits.extend(index);
        Ok(())
    }

    /// Sees to the record of a file.
    fn keep(&mut self, file: FileId) -> Result<(), TreeError> {
        let key = Key::of_internal(&InternalKey::File(file));
        let Some(record) = self.current(&key)? else {
            return Ok(());
        };
        let record = self.without_copy(&key, record)?;
        let names = self.first_names(&file)?;
        let Some(first) = names.first() else {
            self.edits.insert(key, None);
            return Ok(());
        };
        let record = self.with_copy_told(&key, record, first)?;
        let given_up = self.given_up(&key, &record)?;
        let kept = Versions::replace(Some(&record), &given_up, None).unwrap_or(record);
        let mut groups = record_groups(&kept).into_iter();
        let Some(shown) = groups.next() else {
            return Ok(());
        };
        let others: Vec<_> = groups.map(|group| group.newest.clone()).collect();
        let own = self.dot;
        let is_own = |version: &Version| version.dot == own;
        let has_own = kept.as_slice().iter().any(is_own);
        let is_put = !has_own && self.puts_name(&file);
        if others.is_empty() && given_up.is_empty() && !is_put {
            if has_own {
                self.edits.insert(key, Some(kept));
            }
            return Ok(());
        }
        let mut anew = shown.newest.clone();
        if !is_own(&anew) {
            anew.moved = Moved::new(first.clone(), originals(&anew));
            anew.dot = self.dot;
        }
        let mut left = vec![anew];
        for other in others {
            if self.set_aside(&file, &names, &other)? {
                continue;
            }
            if is_own(&other) {
                // One write has one version: all stays as it is.
                return Ok(());
            }
            // What has no place anywhere stays where it is.
            left.push(other);
        }
        if left.len() > 1
            && let Some(anew) = left.first_mut()
        {
            // A copy would be shown behind it.
            anew.moved = None;
        }
        self.edits.insert(key, Versions::new(left));
        Ok(())
    }

    /// The record as it was before this write, where that brings a copy along and there is one.
    fn without_copy(&mut self, key: &Key, record: Versions) -> Result<Versions, TreeError> {
        let own = self.dot;
        let is_copy = |version: &Version| version.dot == own && version.moved.is_some();
        if !record.as_slice().iter().any(is_copy) {
            return Ok(record);
        }
        let there = gather(&mut self.missing, get(self.source, self.root, key))?.flatten();
        let Some(there) = there else {
            return Ok(record);
        };
        self.edits.remove(key);
        Ok(there)
    }

    /// The record, in which the version of this write tells of what it is a copy, where it is one.
    fn with_copy_told(
        &mut self,
        key: &Key,
        record: Versions,
        name: &TreePath,
    ) -> Result<Versions, TreeError> {
        let mut versions = record.as_slice().to_vec();
        let mut own = versions.iter_mut();
        let Some(own) = own.find(|version| version.dot == self.dot) else {
            return Ok(record);
        };
        let before = gather(&mut self.missing, get(self.source, self.root, key))?.flatten();
        let stays = |old: &Version| record.as_slice().iter().any(|one| one.dot == old.dot);
        let mut replaced = list(before.as_ref()).iter().filter(|old| !stays(old));
        if let Some(old) = replaced.find(|old| old.entry == own.entry) {
            own.moved = Moved::new(name.clone(), originals(old));
        }
        Ok(Versions::new(versions).unwrap_or(record))
    }

    /// Whether the write puts a name of the file.
    fn puts_name(&self, file: &FileId) -> bool {
        let is_put = |version: &Version| version.dot == self.dot;
        let mut rows = self.edits_of(file).filter_map(|(_, new)| new.as_ref());
        rows.any(|row| row.as_slice().iter().any(is_put))
    }

    /// The edits of a file's rows in the index.
    fn edits_of(&self, file: &FileId) -> impl Iterator<Item = (&Key, &Option<Versions>)> {
        let range = Key::names_of(file);
        let first = Key::of_internal(&InternalKey::Name(*file, TreePath::root()));
        let behind = self.edits.range(first..);
        behind.take_while(move |(key, _)| key.as_bytes() < range.end.as_slice())
    }

    /// Some names of a file after the edits, the first ones in order of their bytes; none only where it has none.
    fn first_names(&mut self, file: &FileId) -> Result<Vec<TreePath>, TreeError> {
        let edited: BTreeMap<_, _> = self
            .edits_of(file)
            .map(|(key, new)| (key.clone(), new.is_some()))
            .collect();
        let removed = edited.values().filter(|is_put| !**is_put).count();
        let limit = removed + PLACES_MAX;
        let there = scan(self.source, self.root, Key::names_of(file), limit);
        let there = gather(&mut self.missing, there)?.unwrap_or_default();
        let kept = there.into_iter().map(|(key, _)| key);
        let kept = kept.filter(|key| !edited.contains_key(key));
        let put = edited.iter().filter(|(_, is_put)| **is_put);
        let keys: BTreeSet<_> = kept.chain(put.map(|(key, _)| key.clone())).collect();
        let names = keys.iter().filter_map(named_by);
        Ok(names.take(PLACES_MAX).collect())
    }

    /// Versions of a record that are copies of what the side which does not know them has written over. Never all.
    fn given_up(&mut self, key: &Key, record: &Versions) -> Result<Vec<Dot>, TreeError> {
        let mut given_up = Vec::new();
        for (root, context) in self.merged {
            let unknown = record.as_slice().iter().filter(|version| {
                let is_copy = version.moved.is_some() && !context.covers(version.dot);
                is_copy && originals(version).iter().all(|dot| context.covers(*dot))
            });
            let unknown: Vec<_> = unknown.collect();
            if unknown.is_empty() {
                continue;
            }
            let there = gather(&mut self.missing, get(self.source, *root, key))?.flatten();
            let said: BTreeSet<_> = list(there.as_ref()).iter().flat_map(originals).collect();
            let over = unknown.into_iter().filter(|version| {
                let mut dots = originals(version).iter();
                !dots.any(|dot| said.contains(dot))
            });
            given_up.extend(over.map(|version| version.dot));
        }
        if record
            .as_slice()
            .iter()
            .all(|version| given_up.contains(&version.dot))
        {
            given_up.clear();
        }
        Ok(given_up)
    }

    /// Finds a place for a version of a record that others have to see beside the one that is shown. False where there is none.
    fn set_aside(
        &mut self,
        file: &FileId,
        names: &[TreePath],
        version: &Version,
    ) -> Result<bool, TreeError> {
        for name in names {
            if self.put_beside(file, name, version)? {
                return Ok(true);
            }
        }
        for name in names {
            if self.put_as_copy(name, version)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts it under a name as a concurrent version, if the name goes on showing the file then.
    fn put_beside(
        &mut self,
        file: &FileId,
        name: &TreePath,
        version: &Version,
    ) -> Result<bool, TreeError> {
        let Some(key) = Key::of_path(name) else {
            return Ok(false);
        };
        let Some(there) = self.current(&key)? else {
            return Ok(false);
        };
        let groups = groups(&there);
        // Somebody else has done it.
        if groups
            .iter()
            .any(|group| group.newest.entry == version.entry)
        {
            return Ok(true);
        }
        let shows_file = groups.first().is_some_and(|first| {
            linked(first.newest) == Some(*file) && first.newest.time > version.time
        });
        let own = self.dot;
        let is_own = |one: &Version| one.dot == own;
        if !shows_file || there.as_slice().iter().any(is_own) {
            return Ok(false);
        }
        let aside = Version {
            dot: self.dot,
            moved: Moved::new(name.clone(), originals(version)),
            ..version.clone()
        };
        let with = Versions::replace(Some(&there), &[], Some(aside));
        // Of more than fit, this one may not.
        if !list(with.as_ref()).iter().any(is_own) {
            return Ok(false);
        }
        self.edits.insert(key, with);
        Ok(true)
    }

    /// Makes a plain file of it, beside a name and with the name of a conflict copy.
    fn put_as_copy(&mut self, beside: &TreePath, version: &Version) -> Result<bool, TreeError> {
        let Some((folder, name)) = beside.split() else {
            return Ok(false);
        };
        let writer = author(version);
        let node = node_name(self.source, &View::of(self.root), writer);
        let node = gather(&mut self.missing, node)?.flatten();
        let node = in_a_name(node.as_deref(), writer);
        for nth in 1..=EQUAL_NAMES_MAX {
            let path = copy_name(name, &node, version.time, nth).map(|name| folder.join(&name));
            // Further ones are longer still.
            let Some(Ok(path)) = path else { break };
            let Some(key) = Key::of_path(&path) else {
                break;
            };
            match self.current(&key)? {
                // Somebody else has done it.
                Some(there) if shown(&there).0.entry == version.entry => return Ok(true),
                Some(_) => {}
                None => {
                    let copy = Version {
                        dot: self.dot,
                        moved: None,
                        ..version.clone()
                    };
                    self.edits.insert(key, Versions::new(vec![copy]));
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The versions under a key, with the edits so far.
    fn current(&mut self, key: &Key) -> Result<Option<Versions>, TreeError> {
        match self.edits.get(key) {
            Some(edited) => Ok(edited.clone()),
            None => {
                let there = get(self.source, self.root, key);
                Ok(gather(&mut self.missing, there)?.flatten())
            }
        }
    }
}

#[cfg(test)]
mod tests;
