//! Reading several states as the one that merging them would give, without making it: peers that know several uncovered
//! heads merge folder by folder as they are looked at.
//!
//! A version is in the merged state if every part has it or has not seen it. That is what merging one part after the other
//! comes to, in whatever order ([`merge_versions`]), and needs each part's own context alone. So a key is read in each part,
//! and nothing else is.
//!
//! [`merge_versions`]: super::merge_versions

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    CausalContext, Dot, HybridTime, InternalKey, Key, Name, NodeHash, NodeSource, TreeError,
    TreePath, Versions, folders, get,
    key::after_prefix,
    merge::list,
    node::Child,
    range_summary, scan,
    tree::{MISSING_MAX, Step, Visitor, any_in, walk},
};

/// Rows that are read of each part at first, and at most at a time, in search of one that survives.
const SEARCH_ROWS_MIN: usize = 64;
const SEARCH_ROWS_MAX: usize = 16_384;

/// What is looked at: one state, or several as if they were merged.
#[derive(Clone, Debug)]
pub struct View(Vec<Part>);

#[derive(Clone, Debug)]
struct Part {
    root: NodeHash,
    context: CausalContext,
}

/// The versions under one key in each part.
type Row = Vec<Option<Versions>>;

impl View {
    /// A single state; what it has seen does not matter then.
    pub fn of(root: NodeHash) -> Self {
        Self::new([(root, CausalContext::default())])
    }

    /// Several states: roots, and what they have seen. Without any it is the empty folder. What a state shows is read in
    /// each of them, so those that another one includes are best left out.
    pub fn new(states: impl IntoIterator<Item = (NodeHash, CausalContext)>) -> Self {
        let mut parts: Vec<Part> = Vec::new();
        for (root, context) in states {
            match parts.iter_mut().find(|part| part.root == root) {
                Some(part) => part.context.join(&context),
                None => parts.push(Part { root, context }),
            }
        }
        Self(parts)
    }

    /// The roots, each once.
    pub fn roots(&self) -> impl Iterator<Item = NodeHash> + '_ {
        self.0.iter().map(|part| part.root)
    }

    /// Does the same in all parts; what any of them lacks is named together.
    fn each<T>(&self, run: impl Fn(NodeHash) -> Result<T, TreeError>) -> Result<Vec<T>, TreeError> {
        let mut missing = BTreeSet::new();
        let mut results = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            results.extend(gather(&mut missing, run(part.root))?);
        }
        complete(missing)?;
        Ok(results)
    }

    fn merged(&self, row: Row) -> Option<Versions> {
        if let [_] = self.0.as_slice() {
            return row.into_iter().flatten().next();
        }
        let survivors = row.iter().flat_map(|versions| list(versions.as_ref()));
        let survivors = survivors.filter(|version| {
            self.0.iter().zip(&row).all(|(part, versions)| {
                let mut there = list(versions.as_ref()).iter();
                !part.context.covers(version.dot) || there.any(|other| other.dot == version.dot)
            })
        });
        Versions::fitting(survivors.cloned().collect())
    }

    /// Puts the rows of the parts together.
    fn zipped(&self, parts: Vec<Vec<(Key, Versions)>>) -> BTreeMap<Key, Row> {
        let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
        for (index, part) in parts.into_iter().enumerate() {
            for (key, versions) in part {
                let row = rows.entry(key).or_insert_with(|| vec![None; self.0.len()]);
                if let Some(place) = row.get_mut(index) {
                    *place = Some(versions);
                }
            }
        }
        rows
    }
}

/// The versions under a key.
pub fn versions(
    source: &impl NodeSource,
    view: &View,
    key: &Key,
) -> Result<Option<Versions>, TreeError> {
    Ok(view.merged(view.each(|root| get(source, root, key))?))
}

/// When a name last came, went or was renamed directly in a folder; `None` where nothing ever was in it. In a tree that does not
/// record it (see the module `folders`) it is when the newest entry was written, which takes two nodes of each part.
pub fn folder_newest(
    source: &impl NodeSource,
    view: &View,
    folder: &TreePath,
) -> Result<Option<HybridTime>, TreeError> {
    let mut missing = BTreeSet::new();
    let recorded = gather(&mut missing, are_recorded(source, view))?;
    if recorded == Some(false) {
        let range = Key::children_of(folder);
        let sums = view.each(|root| range_summary(source, root, &range))?;
        let times = sums.iter().filter(|sum| sum.keys > 0);
        return Ok(times.map(|sum| sum.newest).max());
    }
    let record = gather(&mut missing, versions(source, view, &folders::key(folder)))?;
    complete(missing)?;
    Ok(record.flatten().map(|record| record.newest()))
}

/// Whether all parts record their folders.
fn are_recorded(source: &impl NodeSource, view: &View) -> Result<bool, TreeError> {
    let parts = view.each(|root| folders::are_recorded(source, root))?;
    Ok(parts.into_iter().all(|recorded| recorded))
}

/// The rows of a range of raw key bytes, in order.
pub(super) fn rows(
    source: &impl NodeSource,
    view: &View,
    range: &Range<Vec<u8>>,
) -> Result<Vec<(Key, Versions)>, TreeError> {
    rows_up_to(source, view, range, usize::MAX)
}

/// The same, of at most `limit` rows of each part.
pub(super) fn rows_up_to(
    source: &impl NodeSource,
    view: &View,
    range: &Range<Vec<u8>>,
    limit: usize,
) -> Result<Vec<(Key, Versions)>, TreeError> {
    let parts = view.each(|root| scan(source, root, range.clone(), limit))?;
    let rows = view.zipped(parts).into_iter();
    Ok(rows
        .filter_map(|(key, row)| Some((key, view.merged(row)?)))
        .collect())
}

/// Whether anything lives below a path. One descent where there is a single part. With several it costs as many records of
/// folders as come before the first that something lives in: all of them, where one part has removed what another still
/// has; where not all parts record their folders, as many rows.
pub(super) fn lives_below(
    source: &impl NodeSource,
    view: &View,
    path: &TreePath,
) -> Result<bool, TreeError> {
    let mut missing = BTreeSet::new();
    let is_single = view.0.len() == 1;
    if !is_single && gather(&mut missing, are_recorded(source, view))? != Some(false) {
        // What lives directly in a folder has a record of it that lives.
        for range in folders::records_from(path) {
            let found = any_survives(source, view, range, |key| match key.internal() {
                Some(InternalKey::Folder(folder)) => {
                    any_survives(source, view, Key::children_of(&folder), |_| Ok(true))
                }
                _ => Ok(false),
            });
            if gather(&mut missing, found)? == Some(true) {
                return Ok(true);
            }
        }
        complete(missing)?;
        return Ok(false);
    }
    for range in Key::below(path) {
        let found = match view.0.as_slice() {
            [part] => any_in(source, part.root, &range),
            _ => any_survives(source, view, range, |_| Ok(true)),
        };
        if gather(&mut missing, found)? == Some(true) {
            return Ok(true);
        }
    }
    complete(missing)?;
    Ok(false)
}

/// Whether a row of a range survives that is wanted.
fn any_survives(
    source: &impl NodeSource,
    view: &View,
    mut range: Range<Vec<u8>>,
    is_wanted: impl Fn(&Key) -> Result<bool, TreeError>,
) -> Result<bool, TreeError> {
    let mut limit = SEARCH_ROWS_MIN;
    let mut missing = BTreeSet::new();
    loop {
        let parts = view.each(|root| scan(source, root, range.clone(), limit))?;
        // Beyond the last row that was read of a part, nothing is known of it.
        let ends = parts.iter().filter(|rows| rows.len() >= limit);
        let known = ends.filter_map(|rows| Some(rows.last()?.0.clone())).min();
        let rows = view.zipped(parts).into_iter();
        let is_known = |key: &Key| known.as_ref().is_none_or(|known| key <= known);
        let rows = rows.take_while(|(key, _)| is_known(key));
        for (key, row) in rows {
            if view.merged(row).is_some() && gather(&mut missing, is_wanted(&key))? == Some(true) {
                return Ok(true);
            }
            if missing.len() >= MISSING_MAX {
                break;
            }
        }
        let Some(known) = known.filter(|_| missing.len() < MISSING_MAX) else {
            complete(missing)?;
            return Ok(false);
        };
        range.start = known.as_bytes().to_vec();
        range.start.push(0);
        limit = (limit * 2).min(SEARCH_ROWS_MAX);
    }
}

/// Names, starting with `start`, of the folder's direct children that may have something below them: all that have it in
/// some part. And whether it is known that something of it survives.
pub(super) fn child_folders(
    source: &impl NodeSource,
    view: &View,
    folder: &TreePath,
    start: &[u8],
) -> Result<BTreeMap<Name, bool>, TreeError> {
    let mut missing = BTreeSet::new();
    let recorded = gather(&mut missing, are_recorded(source, view))?;
    if recorded == Some(false) {
        return unrecorded_child_folders(source, view, folder, start);
    }
    // What lives in the merged state lives in some part, which has a record of it.
    let parts = view.each(|root| folders::recorded(source, root, folder, start));
    let parts = gather(&mut missing, parts)?;
    complete(missing)?;
    let names = parts.into_iter().flatten().flatten();
    Ok(names.map(|name| (name, false)).collect())
}

/// The same where there are no records of folders: found by looking at the edges of what is below each, not inside. With a
/// single part it always survives.
fn unrecorded_child_folders(
    source: &impl NodeSource,
    view: &View,
    folder: &TreePath,
    start: &[u8],
) -> Result<BTreeMap<Name, bool>, TreeError> {
    let [_, deeper] = Key::below(folder);
    let prefix = if folder.names().is_empty() {
        // The deeper keys of the root are those that don't have the 0 right after the first `/`.
        1
    } else {
        deeper.start.len()
    };
    let range = if start.is_empty() {
        deeper
    } else {
        starting(&deeper, prefix, start)
    };
    let parts = view.each(|root| {
        let mut folders = Folders {
            prefix,
            start: &range.start,
            inside: root,
            last: None,
            found: BTreeMap::new(),
        };
        walk(source, root, &range, &mut folders)?;
        Ok(folders.found)
    })?;
    let names: BTreeSet<_> = parts.iter().flat_map(BTreeMap::keys).cloned().collect();
    // What all parts have survives.
    let survives = |name: &Name| {
        let (first, others) = parts.split_first()?;
        let has = |part: &BTreeMap<_, BTreeSet<_>>, below| {
            let found = part.get(name);
            found.is_some_and(|found| found.contains(below))
        };
        let mut below = first.get(name)?.iter();
        below.find(|below| others.iter().all(|part| has(part, below)))
    };
    let known = names.into_iter().map(|name| {
        let survives = survives(&name).is_some();
        (name, survives)
    });
    Ok(known.collect())
}

/// Something below a child folder.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Below {
    /// A version.
    Version(Key, Dot),
    /// What a node holds, whose first row is below the folder.
    Node(NodeHash),
}

/// A walk over what is deeper than a folder's direct children.
struct Folders<'a> {
    /// How much of a key comes before the child's name.
    prefix: usize,
    /// Where the range starts.
    start: &'a [u8],
    /// The node whose rows come next.
    inside: NodeHash,
    /// What came before: the branch, and in which node.
    last: Option<(Vec<u8>, NodeHash)>,
    /// Names of child folders, each with something that is below it.
    found: BTreeMap<Name, BTreeSet<Below>>,
}

impl Folders<'_> {
    /// What the keys below one child folder start with, as this key does: up to the byte after the child's name.
    fn branch<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        let rest = key.get(self.prefix..)?;
        let length = rest.iter().position(|byte| matches!(byte, 0 | b'/'))?;
        key.get(..=self.prefix + length)
    }
    fn note(&mut self, branch: &[u8], below: impl IntoIterator<Item = Below>) {
        let name = branch.get(self.prefix..branch.len() - 1);
        if let Some(Ok(name)) = name.map(Name::new) {
            self.found.entry(name).or_default().extend(below);
        }
    }
}

impl Visitor for Folders<'_> {
    fn child(&mut self, first: &Key, upper: Option<&Key>, child: &Child) -> Step {
        self.inside = child.hash;
        let first = first.as_bytes();
        let Some(branch) = self.branch(first).filter(|_| first >= self.start) else {
            return Step::Enter;
        };
        self.note(branch, [Below::Node(child.hash)]);
        // A child node whose keys all lie in one branch tells nothing more than its first key does.
        let end = after_prefix(branch);
        match (end, upper) {
            (Some(end), Some(upper)) if upper.as_bytes() <= end.as_slice() => Step::Skip,
            _ => Step::Enter,
        }
    }
    fn row(&mut self, key: &Key, versions: &Versions) -> Step {
        let Some(branch) = self.branch(key.as_bytes()) else {
            return Step::Enter;
        };
        // The first row of a branch in a node says enough.
        let last = self.last.as_ref();
        if last.is_none_or(|(last, node)| last != branch || *node != self.inside) {
            self.last = Some((branch.to_vec(), self.inside));
            let dots = versions.as_slice().iter().map(|version| version.dot);
            self.note(branch, dots.map(|dot| Below::Version(key.clone(), dot)));
        }
        Step::Enter
    }
}

/// The part of the range where the bytes after the first `prefix` ones start with `start`.
fn starting(range: &Range<Vec<u8>>, prefix: usize, start: &[u8]) -> Range<Vec<u8>> {
    let first = [range.start.get(..prefix).unwrap_or_default(), start].concat();
    let end = after_prefix(&first).unwrap_or_else(|| range.end.clone());
    first..end
}

/// Takes a result, or notes what it lacks.
pub(super) fn gather<T>(
    missing: &mut BTreeSet<NodeHash>,
    result: Result<T, TreeError>,
) -> Result<Option<T>, TreeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(TreeError::Missing(nodes)) => {
            missing.extend(nodes);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Nothing may be missing.
pub(super) fn complete(missing: BTreeSet<NodeHash>) -> Result<(), TreeError> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(TreeError::Missing(
        missing.into_iter().take(MISSING_MAX).collect(),
    ))
}

#[cfg(test)]
mod tests;
