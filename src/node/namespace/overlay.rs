//! Local changes that no head has yet, laid over what the tree shows. Pure.
//!
//! A pending entry hides what the tree shows under its name; a pending deletion hides the versions it has seen. Conflict
//! copies that were not seen stay visible.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use super::{Edit, recent::Recent};
use crate::manifest::{Dot, Entry, HybridTime, Name, Shown, TreePath};

/// Paths whose last local write is remembered.
const LINEAGE_MAX: usize = 65_536;
/// Versions that the memory of one path goes back.
const ANCESTORS_MAX: usize = 16;

/// A local change that waits for its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// `None` deletes.
    pub(super) entry: Option<Entry>,
    /// The versions it replaces.
    pub(super) seen: BTreeSet<Dot>,
    /// Not to be committed yet.
    pub(super) held: bool,
    /// Number of the change, to tell whether another came meanwhile.
    pub(super) generation: u64,
    /// Number of the earliest change of the path that no head has; for what is held, of the latest.
    pub(super) since: u64,
    /// When it was made.
    pub(super) time: HybridTime,
}

/// What a path's last committed local write replaced.
#[derive(Clone, Debug)]
struct Lineage {
    own: Dot,
    ancestors: BTreeSet<Dot>,
    from_nothing: bool,
}

/// The pending changes, and what lets later ones follow on from committed ones.
///
/// Whoever changes a file names the versions it saw when it opened the file. A commit in between gives the file a version
/// that it has not seen, though it is its own: the lineage adds it.
pub(super) struct Overlay {
    edits: BTreeMap<TreePath, Pending>,
    generation: u64,
    lineage: Recent<TreePath, Lineage>,
}

impl Overlay {
    pub(super) fn new() -> Self {
        Self {
            edits: BTreeMap::new(),
            generation: 0,
            lineage: Recent::new(LINEAGE_MAX),
        }
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
        self.edits
            .values()
            .any(|pending| !pending.held && pending.since <= up_to)
    }

    /// What is to be committed, as it is now.
    pub(super) fn ready(&self) -> Vec<(TreePath, Pending)> {
        self.edits
            .iter()
            .filter(|(_, pending)| !pending.held)
            .map(|(path, pending)| (path.clone(), pending.clone()))
            .collect()
    }

    /// Takes a local change.
    pub(super) fn change(&mut self, edit: Edit, time: HybridTime) {
        self.generation += 1;
        let mut seen: BTreeSet<Dot> = edit.seen.into_iter().collect();
        if let Some(line) = self.lineage.get(&edit.path) {
            let follows = if seen.is_empty() {
                line.from_nothing
            } else {
                !seen.is_disjoint(&line.ancestors)
            };
            if follows {
                seen.insert(line.own);
            }
        }
        let mut since = self.generation;
        if let Some(earlier) = self.edits.get(&edit.path) {
            seen.extend(&earlier.seen);
            if !edit.held && !earlier.held {
                since = earlier.since;
            }
        }
        let pending = Pending {
            entry: edit.entry,
            seen,
            held: edit.held,
            generation: self.generation,
            since,
            time,
        };
        self.edits.insert(edit.path, pending);
    }

    /// Takes back what was pending when the process ended.
    pub(super) fn restore(&mut self, edits: Vec<(TreePath, Pending)>) {
        for (path, mut pending) in edits {
            self.generation += 1;
            pending.generation = self.generation;
            pending.since = self.generation;
            self.edits.insert(path, pending);
        }
    }

    /// Notes that these changes are in the tree as `own`. Those that have changed since stay, and follow on from it.
    pub(super) fn committed(&mut self, edits: &[(TreePath, Pending)], own: Dot) {
        for (path, done) in edits {
            let line = done.entry.is_some().then(|| {
                let earlier = self
                    .lineage
                    .get(path)
                    .filter(|earlier| done.seen.contains(&earlier.own));
                let from_nothing = match &earlier {
                    Some(earlier) => earlier.from_nothing,
                    None => done.seen.is_empty(),
                };
                let mut ancestors = earlier.map(|line| line.ancestors).unwrap_or_default();
                ancestors.extend(&done.seen);
                ancestors.insert(own);
                while ancestors.len() > ANCESTORS_MAX {
                    ancestors.pop_first();
                }
                Lineage {
                    own,
                    ancestors,
                    from_nothing,
                }
            });
            match self.edits.get_mut(path) {
                Some(current) if current.generation == done.generation => {
                    self.edits.remove(path);
                }
                Some(current) => {
                    current.since = current.generation;
                    if line.is_some() {
                        current.seen.insert(own);
                    }
                }
                None => {}
            }
            match line {
                Some(line) => self.lineage.put(path.clone(), line),
                None => self.lineage.remove(path),
            }
        }
    }

    /// Follows the versions of a writer into their new dots: this node took another identity.
    pub(super) fn renumber(&mut self, new_dot: impl Fn(Dot) -> Option<Dot>) {
        self.lineage.clear();
        for pending in self.edits.values_mut() {
            let renamed: Vec<_> = pending
                .seen
                .iter()
                .filter_map(|&dot| new_dot(dot))
                .collect();
            pending.seen.extend(renamed);
        }
    }

    /// The pending entry under a path, which hides whatever the tree has there.
    pub(super) fn entry(&self, path: &TreePath) -> Option<Shown> {
        self.edits.get(path).and_then(Pending::shown)
    }

    /// What is shown under a path where the tree shows `tree`.
    pub(super) fn over(&self, path: &TreePath, tree: Option<Shown>) -> Option<Shown> {
        let shown = match self.edits.get(path) {
            Some(pending) => pending.over(tree),
            None => tree,
        };
        shown.or_else(|| self.holds_below(path).then(Shown::implied_directory))
    }

    /// What a folder's children are where the tree shows these.
    pub(super) fn over_children(
        &self,
        folder: &TreePath,
        tree: Vec<(Name, Shown)>,
    ) -> Vec<(Name, Shown)> {
        let mut below = self.below(folder).peekable();
        if below.peek().is_none() {
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

    /// When a direct entry of the folder was last changed by a pending change.
    pub(super) fn folder_modified(&self, folder: &TreePath) -> Option<HybridTime> {
        let depth = folder.names().len() + 1;
        self.below(folder)
            .filter(|(path, _)| path.names().len() == depth)
            .map(|(_, pending)| pending.time)
            .max()
    }

    fn below(&self, folder: &TreePath) -> impl Iterator<Item = (&TreePath, &Pending)> {
        self.edits
            .range((Bound::Excluded(folder.clone()), Bound::Unbounded))
            .take_while(move |(path, _)| path.is_within(folder))
    }

    fn holds_below(&self, folder: &TreePath) -> bool {
        self.below(folder)
            .any(|(_, pending)| pending.entry.is_some())
    }
}

impl Pending {
    fn shown(&self) -> Option<Shown> {
        self.entry.as_ref().map(|entry| Shown {
            entry: entry.clone(),
            seen: self.seen.iter().copied().collect(),
            time: self.time,
        })
    }

    fn over(&self, tree: Option<Shown>) -> Option<Shown> {
        self.shown()
            .or_else(|| tree.filter(|shown| shown.seen.iter().any(|dot| !self.seen.contains(dot))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Kind, Timestamp, WriterNumber};

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
        };
        overlay.change(edit, HybridTime(100));
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
        let left = overlay.over_children(&TreePath::root(), tree);
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
            let children = overlay.over_children(&folder, Vec::new());
            children
                .into_iter()
                .map(|child| child.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&overlay, TreePath::root()), [Name::new("d").unwrap()]);
        assert_eq!(names(&overlay, at("d")), [Name::new("e").unwrap()]);
        assert!(names(&overlay, at("da")).is_empty());
        change(&mut overlay, "d/e/f", false, &[]);
        assert_eq!(overlay.over(&at("d"), Some(shown(1))), None);
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
        assert_eq!(left[0].1.seen, [dot(1), dot(7)].into());
        overlay.committed(&left, dot(8));
        assert_eq!(overlay.len(), 0);
        // Whoever opened the file before any of this follows on too.
        change(&mut overlay, "x", true, &[1]);
        assert_eq!(overlay.ready()[0].1.seen, [dot(1), dot(8)].into());
    }

    #[test]
    fn a_flush_waits_for_the_first_of_several_changes_of_a_path() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[]);
        let up_to = overlay.generation();
        change(&mut overlay, "x", true, &[]);
        assert!(overlay.waits(up_to));
        let committing = overlay.ready();
        overlay.committed(&committing, dot(1));
        assert!(!overlay.waits(up_to));
    }

    #[test]
    fn a_write_that_saw_something_else_does_not_replace_the_last_local_one() {
        let mut overlay = Overlay::new();
        change(&mut overlay, "x", true, &[1]);
        let committing = overlay.ready();
        overlay.committed(&committing, dot(7));
        change(&mut overlay, "x", true, &[5]);
        assert_eq!(overlay.ready()[0].1.seen, [dot(5)].into());
    }
}
