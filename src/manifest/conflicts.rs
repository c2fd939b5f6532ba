//! Conflicts: names under which versions stand that did not see each other, and the names that show them.
//!
//! They are found by descending only where the summaries count some, and named one by one, so that a page of them costs
//! what is on it and not what the folder holds. The names are those of a listing ([`super::children`]).

use std::collections::BTreeSet;

use super::{
    Key, Kind, Name, NodeHash, NodeSource, Shown, Summary, TreeError, TreePath, Versions, View,
    WriterNumber,
    links::record,
    node::Child,
    parts::lives_below,
    tree::{Step, Visitor, walk},
    view::{
        EQUAL_NAMES_MAX, Group, before_marker, copy_name, find_copy, groups, in_a_name, listing,
        node_name, stem_and_extension,
    },
};

/// A name that has concurrent versions of different kind or content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The name that they stand under.
    pub path: TreePath,
    /// What the name shows.
    pub shown: ConflictVersion,
    /// The other versions, the latest first; at least one.
    pub copies: Vec<ConflictVersion>,
}

/// One of the versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictVersion {
    /// The name that shows it; `None` when all that it could have are taken.
    pub path: Option<TreePath>,
    /// What it is.
    pub shown: Shown,
    /// Who wrote it; `None` for a directory that exists only because something lives below it.
    pub writer: Option<WriterNumber>,
    /// The writer's node name, when the table of writers has it.
    pub node: Option<String>,
}

impl Conflict {
    /// All versions, the shown one first.
    pub fn versions(&self) -> impl Iterator<Item = &ConflictVersion> {
        std::iter::once(&self.shown).chain(&self.copies)
    }
}

/// Up to `limit` conflicts at `under` and below it, in order of their keys, beginning behind the one of the path `after`.
///
/// A file beside a directory that exists only because something lives below it is not among them: no summary can count
/// it. It shows as a conflict copy all the same.
pub fn conflicts(
    source: &impl NodeSource,
    root: NodeHash,
    under: &TreePath,
    after: Option<&TreePath>,
    limit: usize,
) -> Result<Vec<Conflict>, TreeError> {
    let behind = after.and_then(Key::of_path).map(next_key);
    let own = Key::of_path(under).map(|key| key.as_bytes().to_vec()..next_key(key));
    let mut finder = Finder {
        found: Vec::new(),
        beyond_reach: 0,
        limit,
    };
    for range in own.into_iter().chain(Key::below(under)) {
        let start = behind.clone().unwrap_or_default().max(range.start);
        if finder.step() == Step::Enter {
            walk(source, root, &(start..range.end), &mut finder)?;
        }
    }
    let view = View::of(root);
    let mut missing = BTreeSet::new();
    let mut named = Vec::with_capacity(finder.found.len());
    for (path, versions) in finder.found {
        match name(source, &view, path, &versions) {
            Ok(conflict) => named.push(conflict),
            Err(TreeError::Missing(nodes)) => missing.extend(nodes),
            Err(error) => return Err(error),
        }
    }
    if missing.is_empty() {
        Ok(named)
    } else {
        let named = missing.into_iter().take(super::MISSING_MAX);
        Err(TreeError::Missing(named.collect()))
    }
}

/// The conflict that a path, or the conflict copy that it shows, belongs to; `None` when it belongs to none.
pub fn conflict_at(
    source: &impl NodeSource,
    view: &View,
    path: &TreePath,
) -> Result<Option<Conflict>, TreeError> {
    let Some((folder, own)) = path.split() else {
        return Ok(None);
    };
    let mut original = own.clone();
    if versions_at(source, view, path)?.is_none() {
        match find_copy(source, view, path)? {
            Some((name, _)) => original = name,
            None => return Ok(None),
        }
    }
    let Ok(path) = folder.join(&original) else {
        return Ok(None);
    };
    let Some(versions) = versions_at(source, view, &path)? else {
        return Ok(None);
    };
    let conflict = name(source, view, path, &versions)?;
    Ok((!conflict.copies.is_empty()).then_some(conflict))
}

fn versions_at(
    source: &impl NodeSource,
    view: &View,
    path: &TreePath,
) -> Result<Option<Versions>, TreeError> {
    match Key::of_path(path) {
        Some(key) => super::versions(source, view, &key),
        None => Ok(None),
    }
}

/// The least bytes above a key.
fn next_key(key: Key) -> Vec<u8> {
    [key.as_bytes(), &[0]].concat()
}

struct Finder {
    found: Vec<(TreePath, Versions)>,
    /// Conflicts of the range that are certainly in nodes that are missing.
    beyond_reach: u64,
    limit: usize,
}

impl Finder {
    fn step(&self) -> Step {
        let seen = (self.found.len() as u64).saturating_add(self.beyond_reach);
        if seen < self.limit as u64 {
            Step::Enter
        } else {
            Step::Stop
        }
    }
}

impl Visitor for Finder {
    fn child(&mut self, _first: &Key, _upper: Option<&Key>, child: &Child) -> Step {
        if child.summary.conflicts == 0 {
            return Step::Skip;
        }
        self.step()
    }
    fn row(&mut self, key: &Key, versions: &Versions) -> Step {
        if groups(versions).len() > 1
            && let Some(path) = key.path()
        {
            self.found.push((path, versions.clone()));
        }
        self.step()
    }
    fn missing(&mut self, summary: &Summary, inside_range: bool) {
        if inside_range {
            self.beyond_reach = self.beyond_reach.saturating_add(summary.conflicts);
        }
    }
}

/// Tells who wrote the versions under a path, and which names show them.
fn name(
    source: &impl NodeSource,
    view: &View,
    path: TreePath,
    versions: &Versions,
) -> Result<Conflict, TreeError> {
    let mut groups = groups(versions).into_iter().peekable();
    let is_directory = groups.peek().is_some_and(Group::is_directory);
    let own = is_directory || !lives_below(source, view, &path)?;
    let mut shown = ConflictVersion {
        path: Some(path.clone()),
        shown: Shown::implied_directory(),
        writer: None,
        node: None,
    };
    if own && let Some(first) = groups.next() {
        let (what, writer) = said(source, view, &path, &first)?;
        shown.shown = what;
        shown.writer = Some(writer);
        shown.node = node_name(source, view, writer)?;
    }
    let mut taken = BTreeSet::new();
    let mut copies = Vec::new();
    for group in groups {
        let author = group.newest.author(&path);
        let named = node_name(source, view, author)?;
        let named = in_a_name(named.as_deref(), author);
        let at = name_of_copy(source, view, &path, &group, &named, &mut taken)?;
        let (what, writer) = said(source, view, &path, &group)?;
        let node = node_name(source, view, writer)?;
        copies.push(ConflictVersion {
            path: at,
            shown: what,
            writer: Some(writer),
            node,
        });
    }
    Ok(Conflict {
        path,
        shown,
        copies,
    })
}

/// What versions say, and who wrote that: of one of several names of a file, what the file is.
fn said(
    source: &impl NodeSource,
    view: &View,
    path: &TreePath,
    group: &Group<'_>,
) -> Result<(Shown, WriterNumber), TreeError> {
    let own = group.shown();
    if let Kind::Link(file) = own.entry.kind
        && let Some((record, writer)) = record(source, view, &file)?
    {
        return Ok((own.with_record(file, record), writer));
    }
    Ok((own, group.newest.author(path)))
}

/// The path that shows a copy; `taken` are those that earlier copies of the same name have got.
///
/// Where the name isn't cut, only copies of the same name, and real names, can be in its way: no other name makes an equal
/// one, since an extension is too short to hold a note. A cut one is looked up among all that start alike.
fn name_of_copy(
    source: &impl NodeSource,
    view: &View,
    original: &TreePath,
    copy: &Group<'_>,
    node: &str,
    taken: &mut BTreeSet<Name>,
) -> Result<Option<TreePath>, TreeError> {
    let Some((folder, name)) = original.split() else {
        return Ok(None);
    };
    let (stem, _) = stem_and_extension(name);
    let nth_name = |nth| copy_name(name, node, copy.newest.time, nth);
    for nth in 1..=EQUAL_NAMES_MAX {
        let Some(candidate) = nth_name(nth) else {
            continue;
        };
        if !candidate.as_bytes().starts_with(stem) {
            // The longest note leaves the shortest start.
            let shortest = nth_name(EQUAL_NAMES_MAX).unwrap_or(candidate);
            let start = before_marker(&shortest).unwrap_or_default();
            let listed = listing(source, view, &folder, start)?;
            let seen = copy.shown().seen;
            let mut listed = listed.into_iter();
            let found = listed
                .find(|(_, item)| item.copy_of.as_ref() == Some(name) && item.shown.seen == seen);
            return Ok(found.and_then(|(name, _)| folder.join(&name).ok()));
        }
        // A path that would be too long cannot be looked up, and shows nothing.
        let Ok(path) = folder.join(&candidate) else {
            return Ok(None);
        };
        if !taken.contains(&candidate)
            && versions_at(source, view, &path)?.is_none()
            && !lives_below(source, view, &path)?
        {
            taken.insert(candidate);
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
