//! Local changes that no head has yet, laid over what the tree shows. Pure.
//!
//! A pending entry hides what the tree shows under its name; a pending deletion hides the versions it has seen. Conflict
//! copies that were not seen stay visible.
//!
//! A renamed folder is pending with everything below it at once. So paths and changes are shared rather than copied, and
//! nothing that is done while nobody else can look takes long: many changes are worked out in portions, put in at once, and
//! forgotten in portions when they are committed.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map},
    ops::Bound,
    sync::Arc,
};

use super::{Edit, plan::Copied, recent::Recent, records::Kept};
use crate::content::Object;
use crate::manifest::{Dot, Entry, FileId, HybridTime, Kind, Moved, Name, Shown, TreePath};

/// Paths whose last local write is remembered.
const LINEAGE_MAX: usize = 65_536;
/// Versions that the memory of one path goes back.
const ANCESTORS_MAX: usize = 16;
/// Folders of which it is remembered when something went that no head ever had; up to twice as many.
const GONE_MAX: usize = 4096;

/// Changes that are worked out, or forgotten, while nobody else can look.
pub(super) const PORTION_MAX: usize = 1024;

/// Pending changes in order of their paths.
pub(super) type Changes = Vec<(Arc<TreePath>, Arc<Pending>)>;

/// A local change that waits for its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// `None` deletes.
    pub(super) entry: Option<Entry>,
    /// The versions it replaces, ascending.
    pub(super) seen: Vec<Dot>,
    /// Not to be committed yet.
    pub(super) held: bool,
    /// What it follows on from here and is to be committed, where this itself is held.
    pub(super) under: Option<Arc<Pending>>,
    /// Number of the change, to tell whether another came meanwhile.
    pub(super) generation: u64,
    /// Number of a change not later than the earliest one of the path that no head has; for what is held, than the latest.
    pub(super) since: u64,
    /// When it was made.
    pub(super) time: HybridTime,
    /// Where a rename brought it from, since which it is unchanged.
    pub(super) moved: Option<Moved>,
    /// The calls of several changes that it, or what it follows on from, was made by: what they changed belongs together.
    /// `None` for one that was made alone.
    pub(super) calls: Option<Arc<[u64]>>,
}

/// A rename whose hint no head has yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rename {
    pub(super) from: TreePath,
    pub(super) to: TreePath,
    pub(super) time: HybridTime,
    /// Number of the change.
    pub(super) generation: u64,
}

impl Rename {
    /// Whether a path is one of the two.
    pub(super) fn is_of(&self, path: &TreePath) -> bool {
        self.from == *path || self.to == *path
    }
}

/// What a path's last committed local write replaced.
#[derive(Clone, Debug)]
struct Lineage {
    own: Dot,
    /// Ascending.
    ancestors: Vec<Dot>,
    from_nothing: bool,
}

/// The pending changes, and what lets later ones follow on from committed ones.
///
/// Whoever changes a file names the versions it saw when it opened the file. A commit in between gives the file a version
/// that it has not seen, though it is its own: the lineage adds it.
pub(super) struct Overlay {
    edits: BTreeMap<Arc<TreePath>, Arc<Pending>>,
    generation: u64,
    lineage: Recent<Arc<TreePath>, Lineage>,
    renames: Vec<Rename>,
    /// When a name that no head ever had last went from a folder, so that no record of the folder tells of it.
    gone: Recent<TreePath, HybridTime>,
    /// Paths that were changed, a few at a time, since the last commit was begun, or that hold something back behind it.
    later: BTreeSet<Arc<TreePath>>,
    /// Number of the latest change when the last commit was begun, and the dot as which its changes show in the tree, once
    /// they do.
    begun: u64,
    shows_as: Option<Dot>,
}

impl Overlay {
    pub(super) fn new() -> Self {
        Self {
            edits: BTreeMap::new(),
            generation: 0,
            lineage: Recent::new(LINEAGE_MAX),
            renames: Vec::new(),
            gone: Recent::new(GONE_MAX),
            later: BTreeSet::new(),
            begun: 0,
            shows_as: None,
        }
    }

    /// What is to be committed, as it is now. See [`Overlay::follow`].
    pub(super) fn begin_commit(&mut self) -> Changes {
        // What is held follows on from what is committed below it.
        let held = self.edits.iter();
        let held = held.filter(|(_, pending)| pending.under.is_some());
        self.later = held.map(|(path, _)| path.clone()).collect();
        (self.begun, self.shows_as) = (self.generation, None);
        self.ready()
    }

    /// These changes, in order of their paths, are about to show in the tree as `own`. What was changed since the commit was
    /// begun follows on from that: to be called in the same moment, or what was removed meanwhile shows again until
    /// [`Overlay::committed`].
    pub(super) fn follow(&mut self, edits: &[(Arc<TreePath>, Arc<Pending>)], own: Dot) {
        self.shows_as = Some(own);
        for path in &self.later {
            let done = edits.binary_search_by(|(done, _)| done.cmp(path)).ok();
            if let Some((_, done)) = done.and_then(|index| edits.get(index))
                && done.entry.is_some()
                && !done.is_brought(path)
                && let Some(current) = self.edits.get_mut(path)
                && current.generation != done.generation
            {
                add(&mut Arc::make_mut(current).seen, &[own]);
            }
        }
    }

    /// The write `own` has put these records anew, which is about to show in the tree. What is pending of them, or will be,
    /// and has seen what was there before follows on from that.
    pub(super) fn follow_copies(&mut self, copied: &[Copied], own: Dot) {
        for Copied { record, replaced } in copied {
            let has_seen = |seen: &[Dot]| replaced.iter().any(|dot| seen.contains(dot));
            if let Some(current) = self.edits.get_mut(record)
                && has_seen(&current.seen)
            {
                add(&mut Arc::make_mut(current).seen, &[own]);
            }
            self.succeed(record, replaced, own);
        }
    }

    /// Notes that versions of a path were replaced by a write of this node's, so that who has seen any of them follows on from
    /// that.
    fn succeed(&mut self, path: &Arc<TreePath>, replaced: &[Dot], own: Dot) {
        let earlier = self.lineage.get(path);
        let earlier = earlier.filter(|earlier| replaced.contains(&earlier.own));
        let from_nothing = match &earlier {
            Some(earlier) => earlier.from_nothing,
            None => replaced.is_empty(),
        };
        let mut ancestors = earlier.map(|line| line.ancestors).unwrap_or_default();
        add(&mut ancestors, replaced);
        add(&mut ancestors, &[own]);
        ancestors.drain(..ancestors.len().saturating_sub(ANCESTORS_MAX));
        let line = Lineage {
            own,
            ancestors,
            from_nothing,
        };
        self.lineage.put(path.clone(), line);
    }

    /// Number of the latest change.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Number of pending changes, those that are held included.
    pub(super) fn len(&self) -> usize {
        self.edits.len()
    }

    /// Whether changes up to this one wait to be committed.
    pub(super) fn waits(&self, up_to: u64) -> bool {
        let ready = |pending| Pending::ready(pending).is_some_and(|ready| ready.since <= up_to);
        self.edits.values().any(ready)
    }

    /// What is to be committed, as it is now.
    pub(super) fn ready(&self) -> Changes {
        let ready = self.edits.iter();
        ready
            .filter_map(|(path, pending)| Some((path.clone(), Pending::ready(pending)?.clone())))
            .collect()
    }

    /// Takes local changes; `tick` gives each its time.
    pub(super) fn change(&mut self, mut edits: Vec<Edit>, mut tick: impl FnMut() -> HybridTime) {
        for edit in &mut edits {
            edit.moved = self.copied(edit);
        }
        let call = (edits.len() > 1).then(|| self.call());
        for edit in edits {
            let (path, pending) = self.pending(edit, call.as_ref(), tick());
            self.later.insert(path.clone());
            let pending = match self.edits.get(&path) {
                Some(there) => pending.over_earlier(there, &path),
                None => pending,
            };
            self.edits.insert(path, pending);
        }
    }

    /// A call that makes several changes.
    pub(super) fn call(&mut self) -> Arc<[u64]> {
        self.generation += 1;
        Arc::new([self.generation])
    }

    /// Works out local changes of one call, of different paths, without making them: until [`Overlay::put`] nothing may be
    /// changed at these paths, or where a rename brings them from, and nothing be committed; but for records that are brought
    /// along, which may be.
    pub(super) fn prepare(
        &mut self,
        edits: Vec<Edit>,
        call: &Arc<[u64]>,
        mut tick: impl FnMut() -> HybridTime,
    ) -> Changes {
        let prepared = edits.into_iter().map(|mut edit| {
            edit.moved = self.copied(&edit);
            self.pending(edit, Some(call), tick())
        });
        prepared.collect()
    }

    /// Makes the changes that were worked out. Costs what the fewer are: these or those that are pending.
    pub(super) fn put(&mut self, mut prepared: BTreeMap<Arc<TreePath>, Arc<Pending>>) {
        if prepared.len() < self.edits.len() {
            for (path, pending) in prepared {
                let pending = match self.edits.get(&path) {
                    Some(there) => pending.over_earlier(there, &path),
                    None => pending,
                };
                self.edits.insert(path, pending);
            }
            return;
        }
        for (path, there) in std::mem::take(&mut self.edits) {
            match prepared.get_mut(&path) {
                Some(pending) => *pending = pending.clone().over_earlier(&there, &path),
                None => {
                    prepared.insert(path, there);
                }
            }
        }
        self.edits = prepared;
    }

    /// What a rename has copied, which may be newer than what it saw; or who brings a record along.
    fn copied(&mut self, edit: &Edit) -> Option<Moved> {
        let moved = edit.moved.as_ref()?;
        let is_record = edit.path.record().is_some();
        let source = if is_record { &edit.path } else { moved.from() };
        if let Some(source) = self.edits.get(source)
            && source.entry.is_some()
            && !is_record
        {
            // What nobody else has seen yet is no copy of what they have.
            return source.moved.clone();
        }
        let mut dots = moved.dots().to_vec();
        if let Some(line) = self.lineage.get(source)
            && line.ancestors.iter().any(|dot| dots.contains(dot))
        {
            // It was pending a moment ago.
            dots.push(line.own);
        }
        Moved::new(moved.from().clone(), &dots)
    }

    fn pending(
        &mut self,
        edit: Edit,
        call: Option<&Arc<[u64]>>,
        time: HybridTime,
    ) -> (Arc<TreePath>, Arc<Pending>) {
        self.generation += 1;
        let mut seen = edit.seen;
        seen.sort_unstable();
        if let Some(line) = self.lineage.get(&edit.path) {
            let follows = if seen.is_empty() {
                line.from_nothing
            } else {
                line.ancestors.iter().any(|dot| seen.contains(dot))
            };
            if follows {
                add(&mut seen, &[line.own]);
            }
            if edit.entry.is_none() {
                // What is made there next is another file, and goes on with nothing: what was made there first may still be
                // there, beside what is removed.
                let ended = Lineage {
                    from_nothing: false,
                    ..line
                };
                self.lineage.put(Arc::new(edit.path.clone()), ended);
            }
        }
        let mut since = self.generation;
        let mut time = edit.written.map_or(time, |written| written.min(time));
        let mut calls = call.cloned();
        let mut under = None;
        if let Some(earlier) = self.edits.get(&edit.path) {
            add(&mut seen, &earlier.seen);
            // It shows in the tree already, and is not noted as committed yet.
            let shows = |ready: &Arc<Pending>| {
                let is_put = ready.entry.is_some() && !ready.is_brought(&edit.path);
                ready.generation <= self.begun && is_put
            };
            if let Some(own) = self.shows_as
                && Pending::ready(earlier).is_some_and(shows)
            {
                add(&mut seen, &[own]);
            }
            time = time.max(earlier.time);
            calls = all_calls(calls, earlier.calls.as_ref());
            match (edit.held, Pending::ready(earlier)) {
                (true, ready) => under = ready.cloned(),
                (false, Some(ready)) => since = ready.since,
                (false, None) => {}
            }
        }
        let pending = Pending {
            entry: edit.entry,
            seen,
            held: edit.held,
            under,
            generation: self.generation,
            since,
            time,
            moved: edit.moved,
            calls,
        };
        (Arc::new(edit.path), Arc::new(pending))
    }

    /// Notes that what was changed last was a rename.
    pub(super) fn renamed(&mut self, from: TreePath, to: TreePath, time: HybridTime) {
        self.generation += 1;
        self.renames.push(Rename {
            from,
            to,
            time,
            generation: self.generation,
        });
    }

    /// Renames that no head tells of yet.
    pub(super) fn renames(&self) -> Vec<Rename> {
        self.renames.clone()
    }

    /// Notes that a head tells of these.
    pub(super) fn renames_told(&mut self, told: &[Rename]) {
        self.renames.retain(|rename| !told.contains(rename));
    }

    /// Takes back what was pending when the process ended.
    pub(super) fn restore(&mut self, kept: &Kept) {
        // Which of them belong together is not known any more.
        let call = self.call();
        for (path, pending) in &kept.pending {
            self.generation += 1;
            let pending = Pending {
                generation: self.generation,
                since: self.generation,
                calls: Some(call.clone()),
                ..(**pending).clone()
            };
            self.edits.insert(path.clone(), Arc::new(pending));
        }
        for rename in kept.renames.iter().cloned() {
            self.renamed(rename.from, rename.to, rename.time);
        }
    }

    /// Notes that these changes, as [`Overlay::ready`] gave them, are in the tree as `own`. Those that have changed since
    /// stay, and follow on from it.
    pub(super) fn committed(&mut self, edits: &[(Arc<TreePath>, Arc<Pending>)], own: Dot) {
        self.note_gone(edits);
        // Of what was changed more than once since, and renamed perhaps, the first change may be any from there on.
        let since = self.begun + 1;
        for (path, done) in edits {
            // What became of a record that was brought along is told by [`Overlay::follow_copies`].
            let is_put = done.entry.is_some() && !done.is_brought(path);
            match self.edits.get_mut(path) {
                Some(current) if current.generation != done.generation => {
                    let current = Arc::make_mut(current);
                    let is_done = |under: &Arc<Pending>| under.generation == done.generation;
                    if current.under.as_ref().is_some_and(is_done) {
                        current.under = None;
                    }
                    if let Some(under) = &mut current.under {
                        let under = Arc::make_mut(under);
                        under.since = since.min(under.generation);
                        if is_put {
                            add(&mut under.seen, &[own]);
                        }
                    }
                    current.since = since.min(current.generation);
                    if is_put {
                        add(&mut current.seen, &[own]);
                    }
                }
                _ => {
                    self.edits.remove(path);
                }
            }
            if done.entry.is_none() {
                self.lineage.remove(path);
                continue;
            }
            if is_put {
                self.succeed(path, &done.seen, own);
            }
        }
    }

    /// Notes when names went that no head ever had, in folders of which these changes tell nothing else.
    fn note_gone(&mut self, edits: &[(Arc<TreePath>, Arc<Pending>)]) {
        let is_gone = |pending: &Pending| pending.entry.is_none() && pending.seen.is_empty();
        let gone = edits.iter().filter(|(_, pending)| is_gone(pending));
        let gone = gone.filter_map(|(path, pending)| Some((path.split()?.0, pending.time)));
        let mut gone: BTreeMap<TreePath, HybridTime> = gone.collect();
        if gone.is_empty() {
            return;
        }
        let told = edits.iter().filter(|(_, pending)| {
            let is_old = pending.entry.is_some() && !pending.seen.is_empty();
            !is_gone(pending) && (!is_old || pending.moved.is_some())
        });
        for (folder, _) in told.filter_map(|(path, _)| path.split()) {
            gone.remove(&folder);
        }
        for (folder, time) in gone {
            let earlier = self.gone.get(&folder).unwrap_or_default();
            self.gone.put(folder, earlier.max(time));
        }
    }

    /// What is to be committed and the renames that no head tells of, to be kept for the next start; with what
    /// [`Overlay::renumber`] will make of it.
    pub(super) fn renumbered(&self, new_dot: impl Fn(Dot) -> Option<Dot>) -> Kept {
        let mut pending = self.ready();
        for (_, pending) in &mut pending {
            follow(pending, &new_dot);
        }
        Kept {
            pending,
            renames: self.renames(),
        }
    }

    /// Follows the versions of a writer into their new dots: this node took another identity.
    pub(super) fn renumber(&mut self, new_dot: impl Fn(Dot) -> Option<Dot>) {
        self.lineage.clear();
        for pending in self.edits.values_mut() {
            follow(pending, &new_dot);
        }
    }

    /// The pending entry under a path, which hides whatever the tree has there.
    pub(super) fn entry(&self, path: &TreePath) -> Option<Shown> {
        self.edits.get(path).and_then(|pending| pending.shown())
    }

    /// What is shown under a path where the tree shows `tree`.
    pub(super) fn over(&self, path: &TreePath, tree: Option<Shown>) -> Option<Shown> {
        let shown = match self.edits.get(path) {
            Some(pending) => pending.over(tree),
            None => tree,
        };
        shown.or_else(|| self.holds_below(path).then(Shown::implied_directory))
    }

    /// What is pending below a folder, for [`over_children`].
    pub(super) fn changes_below(&self, folder: &TreePath) -> Changes {
        self.below(folder)
            .map(|(path, pending)| (path.clone(), pending.clone()))
            .collect()
    }

    /// Whether there is a change at the path or below it.
    pub(super) fn is_pending(&self, path: &TreePath) -> bool {
        self.edits.contains_key(path) || self.below(path).next().is_some()
    }

    /// When a name directly in the folder last came, went or was renamed by a pending change, or went without a head of it.
    pub(super) fn folder_newest(&self, folder: &TreePath) -> Option<HybridTime> {
        let mut newest = self.gone.peek(folder).copied();
        let mut changes = self.behind(folder);
        while let Some((path, pending)) = changes.next() {
            if !path.is_within(folder) {
                break;
            }
            if path.record().is_some() {
                continue;
            }
            match path.names().get(folder.names().len()..) {
                Some([_]) => {
                    let is_old = pending.entry.is_some() && !pending.seen.is_empty();
                    if !is_old || pending.moved.is_some() {
                        newest = newest.max(Some(pending.time));
                    }
                }
                // What is deeper is passed over, a child folder at a time.
                Some([child, ..]) => changes = self.behind(&folder.behind_all_below(child)),
                _ => break,
            }
        }
        newest
    }

    /// Changes of what comes after a path.
    fn behind(&self, path: &TreePath) -> btree_map::Range<'_, Arc<TreePath>, Arc<Pending>> {
        let behind = (Bound::Excluded(path), Bound::Unbounded);
        self.edits.range::<TreePath, _>(behind)
    }

    fn below(&self, folder: &TreePath) -> impl Iterator<Item = (&Arc<TreePath>, &Arc<Pending>)> {
        self.behind(folder)
            .take_while(move |(path, _)| path.is_within(folder))
            .filter(|(path, _)| path.record().is_none())
    }

    /// Contents that pending changes put.
    pub(super) fn contents(&self) -> HashSet<Object> {
        let pending = self.edits.values();
        pending.flat_map(|pending| pending.contents()).collect()
    }

    /// Records of files with several names that are pending, and whether each is only brought along: what the tree has is
    /// shown before that.
    pub(super) fn records(&self) -> BTreeMap<FileId, (Shown, bool)> {
        let root = TreePath::root();
        let pending = self
            .edits
            .range::<TreePath, _>((Bound::Excluded(&root), Bound::Unbounded))
            .map_while(|(path, pending)| Some((path, path.record()?, pending)));
        pending
            .filter_map(|(path, file, pending)| {
                Some((file, (pending.shown()?, pending.is_brought(path))))
            })
            .collect()
    }

    /// The names of a file, of which the tree has these.
    pub(super) fn names(&self, file: FileId, tree: Vec<TreePath>) -> BTreeSet<TreePath> {
        let is_link = |pending: &Pending| {
            let entry = pending.entry.as_ref();
            entry.is_some_and(|entry| entry.kind == Kind::Link(file))
        };
        let mut names: BTreeSet<_> = tree.into_iter().collect();
        names.retain(|name| self.edits.get(name).is_none_or(|pending| is_link(pending)));
        let put = self.edits.iter().filter(|(_, pending)| is_link(pending));
        names.extend(put.map(|(path, _)| (**path).clone()));
        names
    }

    fn holds_below(&self, folder: &TreePath) -> bool {
        self.below(folder)
            .any(|(_, pending)| pending.entry.is_some())
    }
}

impl Pending {
    /// The contents that it puts, and what it follows on from.
    pub(super) fn contents(&self) -> impl Iterator<Item = Object> + '_ {
        let all = std::iter::successors(Some(self), |pending| pending.under.as_deref());
        all.filter_map(|pending| match &pending.entry.as_ref()?.kind {
            Kind::File(object) => Some(*object),
            _ => None,
        })
    }

    /// Whether it is a file's record that was brought along with one of the names, at this path: it says nothing new, and is
    /// put only where there is none.
    pub(super) fn is_brought(&self, path: &TreePath) -> bool {
        path.record().is_some() && self.moved.is_some()
    }

    /// What is pending with this, where something is already. A change of a record stays what it is when the record is only
    /// brought along, and is committed with what that is brought along for.
    fn over_earlier(self: Arc<Self>, earlier: &Arc<Self>, path: &TreePath) -> Arc<Self> {
        if !self.is_brought(path) || earlier.is_brought(path) {
            return self;
        }
        Arc::new(Self {
            generation: self.generation,
            calls: all_calls(self.calls.clone(), earlier.calls.as_ref()),
            ..(**earlier).clone()
        })
    }

    /// What of it is to be committed.
    fn ready(pending: &Arc<Self>) -> Option<&Arc<Self>> {
        match pending.held {
            true => pending.under.as_ref(),
            false => Some(pending),
        }
    }

    fn shown(&self) -> Option<Shown> {
        self.entry.as_ref().map(|entry| Shown {
            entry: entry.clone(),
            seen: self.seen.clone(),
            time: self.time,
            link: None,
        })
    }

    fn over(&self, tree: Option<Shown>) -> Option<Shown> {
        self.shown()
            .or_else(|| tree.filter(|shown| shown.seen.iter().any(|dot| !self.seen.contains(dot))))
    }
}

/// What a folder's children are where the tree shows these and this is pending below it.
pub(super) fn over_children(
    folder: &TreePath,
    tree: Vec<(Name, Shown)>,
    below: &Changes,
) -> Vec<(Name, Shown)> {
    if below.is_empty() {
        return tree;
    }
    let mut children: BTreeMap<Name, Shown> = tree.into_iter().collect();
    let depth = folder.names().len();
    for (path, pending) in below {
        let Some(name) = path.names().get(depth) else {
            continue;
        };
        if path.names().len() == depth + 1 {
            match pending.over(children.remove(name)) {
                Some(shown) => children.insert(name.clone(), shown),
                None => None,
            };
        } else if pending.entry.is_some() && !children.contains_key(name) {
            children.insert(name.clone(), Shown::implied_directory());
        }
    }
    children.into_iter().collect()
}

/// The calls of a change and of what it follows on from.
fn all_calls(own: Option<Arc<[u64]>>, earlier: Option<&Arc<[u64]>>) -> Option<Arc<[u64]>> {
    match (own, earlier) {
        (Some(own), Some(earlier)) => {
            let both: BTreeSet<_> = own.iter().chain(earlier.iter()).copied().collect();
            Some(both.into_iter().collect())
        }
        (own, earlier) => own.or_else(|| earlier.cloned()),
    }
}

/// Adds the new dots of those that a change has seen.
fn follow(pending: &mut Arc<Pending>, new_dot: &impl Fn(Dot) -> Option<Dot>) {
    let renamed = pending.seen.iter().filter_map(|&dot| new_dot(dot));
    let renamed: Vec<_> = renamed.collect();
    if !renamed.is_empty() {
        add(&mut Arc::make_mut(pending).seen, &renamed);
    }
    if pending.under.is_some()
        && let Some(under) = &mut Arc::make_mut(pending).under
    {
        follow(under, new_dot);
    }
}

/// Adds dots to an ascending list.
fn add(dots: &mut Vec<Dot>, more: &[Dot]) {
    if more.iter().all(|dot| dots.contains(dot)) {
        return;
    }
    dots.extend(more);
    dots.sort_unstable();
    dots.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manifest::{self, Kind, Memory, Timestamp, WriterNumber},
        node::namespace::plan,
    };

    fn dot(sequence: u64) -> Dot {
        Dot {
            writer: WriterNumber(1),
            sequence,
        }
    }

    fn shown(sequence: u64) -> Shown {
        Shown {
            entry: Entry::new(Kind::Fifo, 0o600, 0, 0, Timestamp(0)),
            seen: vec![dot(sequence)],
            time: HybridTime(sequence),
            link: None,
        }
    }

    fn at(path: &str) -> TreePath {
        TreePath::parse(path.as_bytes()).unwrap()
    }

    fn change(overlay: &mut Overlay, path: &str, lives: bool, seen: &[u64]) {
        let edit = Edit {
            path: at(path),
            entry: lives.then(Entry::implied_directory),
            seen: seen.iter().map(|sequence| dot(*sequence)).collect(),
            held: false,
            written: None,
            moved: None,
        };
        overlay.change(vec![edit], || HybridTime(100));
    }

    fn children(
        overlay: &Overlay,
        folder: &TreePath,
        tree: Vec<(Name, Shown)>,
    ) -> Vec<(Name, Shown)> {
        over_children(folder, tree, &overlay.changes_below(folder))
    }

    #[test]
    fn a_deletion_hides_what_it_saw_and_no_more() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", false, &[1]);
        assert_eq!(overlay.over(&at("x"), Some(shown(1))), None);
        assert_eq!(overlay.over(&at("x"), Some(shown(2))), Some(shown(2)));
        let copy = Name::new("x (conflict, b, then)").unwrap();
        let tree = vec![
            (Name::new("x").unwrap(), shown(1)),
            (copy.clone(), shown(2)),
        ];
        let left = children(&overlay, &TreePath::root(), tree);
        assert_eq!(left, [(copy, shown(2))]);
    }

    #[test]
    fn folders_are_there_while_something_pending_lives_below_them() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "d", false, &[1]);
        change(&mut overlay, "d/e/f", true, &[]);
        let implied = Some(Shown::implied_directory());
        assert_eq!(overlay.over(&at("d"), Some(shown(1))), implied);
        assert_eq!(overlay.over(&at("d/e"), None), implied);
        let names = |overlay: &Overlay, folder| {
            let shown = children(overlay, &folder, Vec::new());
            shown.into_iter().map(|child| child.0).collect::<Vec<_>>()
        };
        assert_eq!(names(&overlay, TreePath::root()), [Name::new("d").unwrap()]);
        assert_eq!(names(&overlay, at("d")), [Name::new("e").unwrap()]);
        assert!(names(&overlay, at("da")).is_empty());
        change(&mut overlay, "d/e/f", false, &[]);
        assert_eq!(overlay.over(&at("d"), Some(shown(1))), None);
    }

    #[test]
    fn a_folders_time_is_that_of_what_is_directly_in_it_whatever_lies_between() {
        let mut overlay = Overlay::new();
        let mut moment = 0;
        let mut put = |path: TreePath, lives: bool, seen: &[u64]| {
            moment += 1;
            let edit = Edit {
                path,
                entry: lives.then(Entry::implied_directory),
                seen: seen.iter().map(|sequence| dot(*sequence)).collect(),
                held: false,
                written: None,
                moved: None,
            };
            overlay.change(vec![edit], || HybridTime(moment));
        };
        put(at("d/b"), true, &[]);
        put(at("d/a/x"), true, &[]);
        put(at("d/c"), false, &[1]);
        put(at("d/c/y/z"), true, &[]);
        put(at("d/c/y"), true, &[]);
        // Changed, not new.
        put(at("d/d"), true, &[1]);
        put(at("da"), true, &[]);
        put(at("d"), true, &[]);
        put(TreePath::of_record(&[5; 16]), true, &[]);
        let newest = |path: &str| overlay.folder_newest(&at(path)).map(|time| time.0);
        assert_eq!(newest("d"), Some(3));
        assert_eq!(newest("d/a"), Some(2));
        assert_eq!(newest("d/c"), Some(5));
        assert_eq!(newest("d/c/y"), Some(4));
        assert_eq!(newest("d/d"), None);
        assert_eq!(newest("x"), None);
        assert_eq!(newest(""), Some(8));
    }

    #[test]
    fn a_folders_time_stays_when_what_no_head_had_is_gone() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "d/a", true, &[]);
        change(&mut overlay, "d/a", false, &[]);
        change(&mut overlay, "d/b", false, &[1]);
        let newest = |overlay: &Overlay| overlay.folder_newest(&at("d"));
        let before = newest(&overlay);
        assert!(before.is_some());
        let (gone, removed): (Vec<_>, Vec<_>) = overlay
            .ready()
            .into_iter()
            .partition(|(path, _)| **path == at("d/a"));
        overlay.committed(&removed, dot(2));
        overlay.committed(&gone, dot(2));
        assert_eq!(overlay.len(), 0);
        assert!(newest(&overlay).is_some_and(|newest| newest <= before.unwrap()));
        assert_eq!(overlay.folder_newest(&at("")), None);
        // What a head says of the folder is what all say of it.
        change(&mut overlay, "e/new", false, &[]);
        change(&mut overlay, "e/old", true, &[]);
        let saved = overlay.ready();
        overlay.committed(&saved, dot(3));
        assert_eq!(overlay.folder_newest(&at("e")), None);
    }

    #[test]
    fn a_change_during_the_commit_stays_and_replaces_what_was_committed() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[1]);
        let committing = overlay.ready();
        change(&mut overlay, "x", true, &[1]);
        let up_to = overlay.generation();
        overlay.committed(&committing, dot(7));
        assert!(overlay.waits(up_to));
        let left = overlay.ready();
        assert_eq!(left[0].1.seen, [dot(1), dot(7)]);
        overlay.committed(&left, dot(8));
        assert_eq!(overlay.len(), 0);
        // Whoever opened the file before any of this follows on too.
        change(&mut overlay, "x", true, &[1]);
        assert_eq!(overlay.ready()[0].1.seen, [dot(1), dot(8)]);
    }

    #[test]
    fn a_change_of_a_record_follows_on_from_a_copy_that_is_made_meanwhile() {
        let copied = |replaced| Copied {
            record: Arc::new(at("x")),
            replaced,
        };
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[3]);
        overlay.follow_copies(&[copied(vec![dot(3)])], dot(7));
        assert_eq!(overlay.ready()[0].1.seen, [dot(3), dot(7)]);
        // Also where it is made later, by somebody who looked before.
        let mut overlay = Overlay::new();
        overlay.follow_copies(&[copied(vec![dot(3)])], dot(7));
        change(&mut overlay, "x", true, &[3]);
        assert_eq!(overlay.ready()[0].1.seen, [dot(3), dot(7)]);
        // What was not seen stays.
        overlay.follow_copies(&[copied(vec![dot(5)])], dot(8));
        assert_eq!(overlay.ready()[0].1.seen, [dot(3), dot(7)]);
    }

    #[test]
    fn what_is_written_to_a_file_while_one_of_its_names_is_renamed_is_no_conflict() {
        let (nodes, file, mut overlay) = (Memory::default(), [9; 16], Overlay::new());
        let put = |overlay: &mut Overlay, path: TreePath, entry: Option<Entry>, seen: &[u64]| {
            let edit = Edit {
                path,
                entry,
                seen: seen.iter().map(|sequence| dot(*sequence)).collect(),
                held: false,
                written: None,
                moved: None,
            };
            overlay.change(vec![edit], || HybridTime(100));
        };
        let content = |mode| Some(Entry::new(Kind::Fifo, mode, 0, 0, Timestamp(1)));
        let (record, link) = (TreePath::of_record(&file), Some(Entry::link(file)));
        let commit = |overlay: &mut Overlay, root, committing: &Changes, own| {
            let edits = plan::plan(&nodes, root, committing, own).unwrap();
            let copied = plan::copied_records(&nodes, root, &edits, own).unwrap();
            overlay.follow(committing, own);
            overlay.follow_copies(&copied, own);
            overlay.committed(committing, own);
            nodes.apply(root, &edits)
        };
        put(&mut overlay, record.clone(), content(0o600), &[]);
        put(&mut overlay, at("a"), link.clone(), &[]);
        put(&mut overlay, at("b"), link.clone(), &[]);
        let committing = overlay.begin_commit();
        let root = commit(&mut overlay, manifest::empty_root(), &committing, dot(1));
        put(&mut overlay, at("b"), None, &[1]);
        put(&mut overlay, at("c"), link.clone(), &[]);
        let committing = overlay.begin_commit();
        put(&mut overlay, record.clone(), content(0o640), &[1]);
        put(&mut overlay, at("a"), link, &[1]);
        let root = commit(&mut overlay, root, &committing, dot(2));
        let committing = overlay.begin_commit();
        let root = commit(&mut overlay, root, &committing, dot(3));
        for name in [record, at("a"), at("c")] {
            let key = manifest::Key::of_path(&name).unwrap();
            let there = manifest::get(&nodes, root, &key).unwrap().unwrap();
            assert_eq!(there.as_slice().len(), 1, "{name}: {there:?}");
        }
    }

    #[test]
    fn a_record_that_is_brought_along_undoes_no_change_of_it() {
        let record = TreePath::of_record(&[5; 16]);
        let edit = |entry: Entry, brings: bool| Edit {
            path: record.clone(),
            entry: Some(entry),
            seen: vec![dot(1)],
            held: false,
            written: None,
            moved: Moved::new(at("a"), &[dot(1)]).filter(|_| brings),
        };
        let changed = || edit(Entry::implied_directory(), false);
        let brought = || edit(shown(1).entry, true);
        let time = || HybridTime(100);
        for many in [0, 5] {
            let mut overlay = Overlay::new();
            (0..many).for_each(|number| change(&mut overlay, &number.to_string(), true, &[]));
            let call = overlay.call();
            let prepared = overlay.prepare(vec![brought()], &call, time);
            overlay.change(vec![changed()], time);
            overlay.put(prepared.into_iter().collect());
            overlay.change(vec![brought()], time);
            let ready = overlay.ready();
            let (_, pending) = ready.iter().find(|(path, _)| **path == record).unwrap();
            assert_eq!(pending.entry, changed().entry);
            assert_eq!(pending.moved, None);
            assert_eq!(pending.calls, Some(call), "they are committed together");
        }
        // What is brought along twice is as it is seen then, and gives way to a change.
        let mut overlay = Overlay::new();
        overlay.change(vec![brought()], time);
        overlay.change(vec![brought()], time);
        assert!(overlay.records()[&[5; 16]].1);
        overlay.change(vec![changed()], time);
        assert!(!overlay.records()[&[5; 16]].1);
        // Nobody follows on from what it was put as.
        let mut overlay = Overlay::new();
        overlay.change(vec![brought()], time);
        let committing = overlay.begin_commit();
        overlay.change(vec![changed()], time);
        overlay.follow(&committing, dot(7));
        overlay.committed(&committing, dot(7));
        assert_eq!(overlay.ready()[0].1.seen, [dot(1)]);
    }

    #[test]
    fn what_is_made_under_a_name_that_was_removed_does_not_replace_what_stands_beside_that() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[]);
        let committing = overlay.begin_commit();
        overlay.follow(&committing, dot(7));
        overlay.committed(&committing, dot(7));
        // Somebody else has made one, too, which is shown.
        change(&mut overlay, "x", false, &[3]);
        change(&mut overlay, "x", true, &[]);
        change(&mut overlay, "x", true, &[]);
        assert_eq!(overlay.ready()[0].1.seen, [dot(3)]);
    }

    #[test]
    fn a_rename_copies_what_was_committed_since_it_looked() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "f", true, &[1]);
        let rename = |overlay: &mut Overlay| {
            let edit = Edit {
                path: at("g"),
                entry: Some(Entry::implied_directory()),
                seen: Vec::new(),
                held: false,
                written: None,
                moved: Moved::new(at("f"), &[dot(1)]),
            };
            overlay.change(vec![edit], || HybridTime(100));
            let moved = overlay.edits[&at("g")].moved.clone();
            moved.map(|moved| moved.dots().to_vec())
        };
        assert_eq!(rename(&mut overlay), None, "nobody has seen it");
        let committing = overlay.ready();
        overlay.committed(&committing, dot(7));
        assert_eq!(rename(&mut overlay), Some(vec![dot(1), dot(7)]));
    }

    #[test]
    fn what_was_removed_while_it_was_committed_never_shows_again() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "a", true, &[]);
        change(&mut overlay, "x", true, &[]);
        let committing = overlay.begin_commit();
        change(&mut overlay, "x", false, &[]);
        overlay.follow(&committing, dot(7));
        assert_eq!(overlay.over(&at("x"), Some(shown(7))), None);
        overlay.committed(&committing, dot(7));
        assert_eq!(overlay.over(&at("x"), Some(shown(7))), None);
        assert_eq!(overlay.ready()[0].1.seen, [dot(7)]);
    }

    #[test]
    fn what_was_changed_before_a_new_file_took_the_name_is_committed_before_that_is() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[1]);
        change(&mut overlay, "x", false, &[1]);
        let removed = overlay.generation();
        let hold = |overlay: &mut Overlay, held| {
            let edit = Edit {
                path: at("x"),
                entry: Some(Entry::implied_directory()),
                seen: Vec::new(),
                held,
                written: None,
                moved: None,
            };
            overlay.change(vec![edit], || HybridTime(100));
        };
        hold(&mut overlay, true);
        hold(&mut overlay, true);
        assert!(overlay.waits(removed));
        let committing = overlay.begin_commit();
        assert_eq!(committing.len(), 1);
        assert_eq!(committing[0].1.entry, None);
        assert_eq!(committing[0].1.seen, [dot(1)]);
        overlay.follow(&committing, dot(7));
        overlay.committed(&committing, dot(7));
        assert!(!overlay.waits(u64::MAX));
        assert!(overlay.entry(&at("x")).is_some());
        hold(&mut overlay, false);
        assert_eq!(overlay.ready()[0].1.seen, [dot(1)]);
    }

    #[test]
    fn what_is_removed_once_it_shows_in_the_tree_but_is_not_noted_as_committed_stays_away() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[]);
        let committing = overlay.begin_commit();
        overlay.follow(&committing, dot(7));
        change(&mut overlay, "x", false, &[]);
        assert_eq!(overlay.over(&at("x"), Some(shown(7))), None);
        overlay.committed(&committing, dot(7));
        assert_eq!(overlay.over(&at("x"), Some(shown(7))), None);
    }

    #[test]
    fn what_a_new_file_replaces_shows_no_more_when_that_is_removed_in_turn() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[]);
        let edit = Edit {
            path: at("x"),
            entry: Some(Entry::implied_directory()),
            seen: Vec::new(),
            held: true,
            written: None,
            moved: None,
        };
        overlay.change(vec![edit], || HybridTime(100));
        let committing = overlay.begin_commit();
        overlay.follow(&committing, dot(7));
        let seen = overlay.entry(&at("x")).unwrap().seen;
        assert_eq!(seen, [dot(7)]);
        change(&mut overlay, "x", false, &[7]);
        assert_eq!(overlay.over(&at("x"), Some(shown(7))), None);
        overlay.committed(&committing, dot(7));
        assert_eq!(overlay.over(&at("x"), Some(shown(7))), None);
    }

    #[test]
    fn a_flush_waits_for_the_first_of_several_changes_of_a_path() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[]);
        let up_to = overlay.generation();
        change(&mut overlay, "x", true, &[]);
        assert!(overlay.waits(up_to));
        let committing = overlay.begin_commit();
        overlay.committed(&committing, dot(1));
        assert!(!overlay.waits(up_to));
    }

    #[test]
    fn a_flush_waits_for_what_was_changed_and_renamed_while_a_head_was_made() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "a", true, &[]);
        let committing = overlay.begin_commit();
        change(&mut overlay, "a", true, &[]);
        let up_to = overlay.generation();
        change(&mut overlay, "b", true, &[]);
        change(&mut overlay, "a", false, &[]);
        overlay.follow(&committing, dot(7));
        overlay.committed(&committing, dot(7));
        assert!(overlay.waits(up_to));
        let committing = overlay.begin_commit();
        overlay.committed(&committing, dot(8));
        assert!(!overlay.waits(u64::MAX));
    }

    #[test]
    fn many_changes_at_once_are_as_one_by_one() {
        let mut paths: Vec<_> = (0..1000).map(|number| format!("d/{number:05}")).collect();
        paths.reverse();
        let edits = |seen: &[u64]| -> Vec<Edit> {
            let edit = |path: &String| Edit {
                path: at(path),
                entry: Some(Entry::implied_directory()),
                seen: seen.iter().map(|sequence| dot(*sequence)).collect(),
                held: false,
                written: None,
                moved: None,
            };
            paths.iter().map(edit).collect()
        };
        let (mut whole, mut single) = (Overlay::new(), Overlay::new());
        for overlay in [&mut whole, &mut single] {
            change(overlay, "a", true, &[]);
            change(overlay, "d/00500", true, &[3]);
        }
        let mut clock = 0;
        let call = whole.call();
        let prepared = whole.prepare(edits(&[1]), &call, || {
            clock += 1;
            HybridTime(clock)
        });
        assert_eq!(whole.len(), 2, "nothing is changed by it");
        whole.put(prepared.into_iter().collect());
        single.change(edits(&[1]), || {
            clock += 1;
            HybridTime(clock - 1000)
        });
        assert_eq!(whole.ready(), single.ready());
        assert_eq!(whole.generation(), single.generation());
        for overlay in [&mut whole, &mut single] {
            let mut committing = overlay.ready();
            change(overlay, "d/00007", false, &[]);
            // A head may have left some of them out.
            committing.remove(20);
            overlay.committed(&committing, dot(9));
        }
        assert_eq!(whole.ready(), single.ready());
        assert_eq!(whole.len(), 2);
    }

    #[test]
    fn a_folder_is_as_new_as_its_newest_direct_entry() {
        let mut overlay = Overlay::new();
        let paths = [
            "a", "d", "d/x", "d/x/y", "d/x/y/z", "d/xa", "d/z/deep", "da",
        ];
        for (time, path) in (1..).zip(paths) {
            let edit = Edit {
                path: at(path),
                entry: None,
                seen: Vec::new(),
                held: false,
                written: None,
                moved: None,
            };
            overlay.change(vec![edit], || HybridTime(time));
        }
        let newest = |path| overlay.folder_newest(&at(path)).map(|time| time.0);
        assert_eq!(newest(""), Some(8));
        assert_eq!(newest("d"), Some(6));
        assert_eq!(newest("d/x"), Some(4));
        assert_eq!(newest("d/z"), Some(7));
        assert_eq!(newest("d/z/deep"), None);
        assert_eq!(newest("da"), None);
    }

    #[test]
    fn a_write_that_saw_something_else_does_not_replace_the_last_local_one() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[1]);
        let committing = overlay.ready();
        overlay.committed(&committing, dot(7));
        change(&mut overlay, "x", true, &[5]);
        assert_eq!(overlay.ready()[0].1.seen, [dot(5)]);
    }
}
