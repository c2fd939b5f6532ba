//! Files with several names (hard links).
//!
//! Each name holds a link to the file's id, and the **record**, what a single name's entry would be, stands once under an
//! internal key. An index under further internal keys tells the names of a file. Three rules keep all that whole through every
//! merge, in which versions are only ever kept or dropped, key by key:
//!
//! - A name's row in the index has the versions of the name that link to the file, by the same dots. So what a merge keeps of
//!   the one it keeps of the other.
//! - Who puts a name puts the record anew, in the same write. So whoever removes the record, with the last name that is known
//!   there, leaves a version of it to every name that is not.
//! - Who changes the record puts the name through which that was done anew, so that a removal of all names at the same
//!   time loses nothing: that name stays. (This one is for those who change it to keep.)
//!
//! A record that was changed on two sides at once would hide one of the two. So the first writer that has both makes a plain
//! file of each but the newest, beside the file's first name and with the name of a conflict copy.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Change, Dot, Entry, FileId, InternalKey, Key, Kind, Linked, NodeHash, NodeSource, Shown,
    TreeError, TreePath, Version, Versions, View, get,
    merge::list,
    node_name,
    parts::{complete, gather, rows, versions},
    scan,
    tree::any_in,
    view::{EQUAL_NAMES_MAX, copy_name, groups, in_a_name, shown},
};

/// Edits of a tree: the new versions under keys; `None` where nothing is left.
type Edits = BTreeMap<Key, Option<Versions>>;

/// The names of a file that has several, in order of their bytes.
pub fn names(
    source: &impl NodeSource,
    view: &View,
    file: &FileId,
) -> Result<Vec<TreePath>, TreeError> {
    let rows = rows(source, view, &Key::names_of(file))?.into_iter();
    Ok(rows.filter_map(|(key, _)| named_by(&key)).collect())
}

/// What is shown where a name may be a link: the file's record then. A link whose record is nowhere stays as it is.
pub fn resolve(source: &impl NodeSource, view: &View, name: Shown) -> Result<Shown, TreeError> {
    let Kind::Link(file) = name.entry.kind else {
        return Ok(name);
    };
    let key = Key::of_internal(&InternalKey::File(file));
    Ok(match versions(source, view, &key)? {
        Some(versions) => name.with_record(file, shown(&versions).0),
        None => name,
    })
}

impl Shown {
    /// Whether it is a name of that file.
    pub(crate) fn is_of(&self, file: Option<FileId>) -> bool {
        self.link.as_ref().map(|link| link.file) == file
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

/// Of the changes that a merge makes: the files whose records have versions that did not see each other.
pub fn contested_files(changes: &[Change]) -> BTreeSet<FileId> {
    let contested = changes.iter().filter_map(|change| {
        let versions = change.new.as_ref()?;
        match change.key.internal()? {
            InternalKey::File(file) if groups(versions).len() > 1 => Some(file),
            _ => None,
        }
    });
    contested.collect()
}

/// Adds to edits of a tree, which are the write `dot`, what keeps the rules: rows of the index, records that names need,
/// copies of contested records; those of `contested`, too. A record that is left without a name goes.
pub fn complete_links(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &mut Edits,
    contested: BTreeSet<FileId>,
    dot: Dot,
) -> Result<(), TreeError> {
    if edits.is_empty() && contested.is_empty() {
        return Ok(());
    }
    let are_linked =
        |versions: &Versions| versions.as_slice().iter().any(|one| linked(one).is_some());
    let concerns = !contested.is_empty()
        || edits.values().flatten().any(are_linked)
        || any_in(source, root, &Key::files())?;
    if !concerns {
        return Ok(());
    }
    let mut completion = Completion {
        source,
        root,
        edits,
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
        let names = self.names(&file)?;
        let Some(first) = names.first() else {
            self.edits.insert(key, None);
            return Ok(());
        };
        let own = |versions: &Versions| versions.as_slice().iter().any(|one| one.dot == self.dot);
        let is_put = names.iter().filter_map(Key::of_path).any(|name| {
            let put = self.edits.get(&name).and_then(Option::as_ref);
            put.is_some_and(|put| {
                let mut versions = put.as_slice().iter();
                versions.any(|one| one.dot == self.dot && linked(one) == Some(file))
            })
        });
        let mut groups = groups(&record).into_iter();
        let Some(newest) = groups.next() else {
            return Ok(());
        };
        let others: Vec<_> = groups.map(|group| group.newest.clone()).collect();
        if others.is_empty() && (!is_put || own(&record)) {
            return Ok(());
        }
        let anew = Version {
            dot: self.dot,
            moved: None,
            ..newest.newest.clone()
        };
        for other in others {
            self.set_aside(first, other)?;
        }
        self.edits.insert(key, Versions::new(vec![anew]));
        Ok(())
    }

    /// The names of a file after the edits.
    fn names(&mut self, file: &FileId) -> Result<Vec<TreePath>, TreeError> {
        let range = Key::names_of(file);
        let there = scan(self.source, self.root, range.clone(), usize::MAX);
        let there = gather(&mut self.missing, there)?.unwrap_or_default();
        let kept = there.iter().map(|(key, _)| key);
        let kept = kept.filter(|key| !self.edits.contains_key(key));
        let in_range = |key: &&Key| range.contains(&key.as_bytes().to_vec());
        let put = self.edits.iter().filter(|(_, new)| new.is_some());
        let put = put.map(|(key, _)| key).filter(in_range);
        let keys: BTreeSet<_> = kept.chain(put).cloned().collect();
        Ok(keys.iter().filter_map(named_by).collect())
    }

    /// Makes a plain file of a version of a record, beside a name and with the name of a conflict copy.
    fn set_aside(&mut self, beside: &TreePath, version: Version) -> Result<(), TreeError> {
        let Some((folder, name)) = beside.split() else {
            return Ok(());
        };
        let writer = version.dot.writer;
        let node = node_name(self.source, &View::of(self.root), writer);
        let node = gather(&mut self.missing, node)?.flatten();
        let node = in_a_name(node.as_deref(), writer);
        for nth in 1..=EQUAL_NAMES_MAX {
            let path = copy_name(name, &node, version.time, nth).map(|name| folder.join(&name));
            let Some(Ok(path)) = path else { continue };
            let Some(key) = Key::of_path(&path) else {
                continue;
            };
            match self.current(&key)? {
                // Somebody else has done it.
                Some(there) if shown(&there).0.entry == version.entry => return Ok(()),
                Some(_) => {}
                None => {
                    let copy = Version {
                        dot: self.dot,
                        moved: None,
                        ..version
                    };
                    self.edits.insert(key, Versions::new(vec![copy]));
                    return Ok(());
                }
            }
        }
        Ok(())
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
