//! What reports and events ask of the namespace: conflicts, who wrote what, what the heads of others brought. And the one
//! change that they make: the end of a conflict.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::broadcast;

use super::{Edit, Namespace, NamespaceError, RemoteChanges, merge::NAMED_CHANGES_MAX};
use crate::manifest::{
    self, Change, Conflict, ConflictVersion, Dot, Entry, Key, Name, NodeHash, Shown, TreeError,
    TreePath, View, WriterNumber,
};

/// What the heads of others have changed.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The root that it led to.
    pub root: NodeHash,
    /// The root before; `None` where it is not the state that moved on.
    pub before: Option<NodeHash>,
    /// The changes; `None` when there are too many to tell, or nobody gave the nodes that tell them.
    pub changes: Option<Vec<Change>>,
}

impl Namespace {
    /// What others bring, as it is merged. A listener that falls behind misses some.
    pub fn arrivals(&self) -> broadcast::Receiver<Arc<Arrival>> {
        self.shared.signals.arrivals.subscribe()
    }

    /// The root of the merged state.
    pub fn root(&self) -> Result<NodeHash, NamespaceError> {
        self.shared
            .replica
            .state
            .read()
            .root
            .ok_or(NamespaceError::NoHead)
    }

    /// The number that this node writes under.
    pub fn own_number(&self) -> WriterNumber {
        WriterNumber::of(&self.writer_identity().public().to_peer_id())
    }

    /// The changes from one root to another; `None` when they are more than 4096, or nodes are missing.
    pub fn changes(
        &self,
        from: NodeHash,
        to: NodeHash,
    ) -> Result<Option<Vec<Change>>, NamespaceError> {
        match manifest::diff(&self.shared.replica.nodes, from, to, NAMED_CHANGES_MAX + 1) {
            Ok(changes) => Ok((changes.len() <= NAMED_CHANGES_MAX).then_some(changes)),
            Err(TreeError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The changes from one root to another that concern conflicts which the second has; of at most `limit` of these, and
    /// whether there may be more. Costs what the conflicts do, however much else was changed.
    pub fn conflict_changes(
        &self,
        from: NodeHash,
        to: NodeHash,
        limit: usize,
    ) -> Result<(Vec<Change>, bool), NamespaceError> {
        let nodes = &self.shared.replica.nodes;
        let all = TreePath::root();
        let found = manifest::conflicts(nodes, to, &all, None, limit)?;
        let more = found.len() >= limit;
        let mut changes = Vec::new();
        let mut missing = BTreeSet::new();
        for key in found.iter().filter_map(|found| Key::of_path(&found.path)) {
            let old = match manifest::get(nodes, from, &key) {
                Err(TreeError::Missing(needed)) => {
                    missing.extend(needed);
                    continue;
                }
                old => old?,
            };
            let new = manifest::get(nodes, to, &key)?;
            if old != new {
                changes.push(Change { key, old, new });
            }
        }
        if missing.is_empty() {
            return Ok((changes, more));
        }
        Err(NamespaceError::Missing(missing.into_iter().collect()))
    }

    /// The changes from one root to another after a key, in order of keys; at most `limit` of them.
    pub fn changes_after(
        &self,
        from: NodeHash,
        to: NodeHash,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Change>, NamespaceError> {
        let nodes = &self.shared.replica.nodes;
        Ok(manifest::diff_after(nodes, from, to, after, limit)?)
    }

    /// What stood under a path in the state of that root; `None` when nothing.
    pub fn get_at(&self, root: NodeHash, path: &TreePath) -> Result<Option<Shown>, NamespaceError> {
        let nodes = &self.shared.replica.nodes;
        let view = View::of(root);
        let found = manifest::lookup(nodes, &view, path)?;
        let found = found.map(|shown| manifest::resolve(nodes, &view, shown));
        Ok(found.transpose()?)
    }

    /// The direct children that a folder had in the state of that root.
    pub fn children_at(
        &self,
        root: NodeHash,
        folder: &TreePath,
    ) -> Result<Vec<(Name, Shown)>, NamespaceError> {
        let nodes = &self.shared.replica.nodes;
        let view = View::of(root);
        let children = manifest::children(nodes, &view, folder)?.into_iter();
        let resolve = |(name, shown)| Ok((name, manifest::resolve(nodes, &view, shown)?));
        children.map(resolve).collect()
    }

    /// The node name of a writer, as the table of writers of this root has it.
    pub fn node_name(
        &self,
        root: NodeHash,
        writer: WriterNumber,
    ) -> Result<Option<String>, NamespaceError> {
        let view = View::of(root);
        Ok(manifest::node_name(
            &self.shared.replica.nodes,
            &view,
            writer,
        )?)
    }

    /// See [`manifest::conflicts`]: those of the merged state.
    pub fn conflicts(
        &self,
        under: &TreePath,
        after: Option<&TreePath>,
        limit: usize,
    ) -> Result<Vec<Conflict>, NamespaceError> {
        let nodes = &self.shared.replica.nodes;
        Ok(manifest::conflicts(
            nodes,
            self.root()?,
            under,
            after,
            limit,
        )?)
    }

    /// See [`manifest::conflict_at`].
    pub fn conflict_at(
        &self,
        root: NodeHash,
        path: &TreePath,
    ) -> Result<Option<Conflict>, NamespaceError> {
        let view = View::of(root);
        Ok(manifest::conflict_at(
            &self.shared.replica.nodes,
            &view,
            path,
        )?)
    }

    /// Makes one version of a conflict the only one under its name, as a change that saw them all: a version that this
    /// node has not seen stays. Where a version of it is one of several names of a file, it stays one, and the file becomes
    /// what is kept. Returns whether the change is in a signed head; else it is on disk, to be published later.
    ///
    /// # Errors
    /// A directory that has something in it stays whatever is chosen, so it cannot give way to a file.
    pub async fn resolve(
        &self,
        conflict: &Conflict,
        keep: &ConflictVersion,
    ) -> Result<bool, NamespaceError> {
        let is_directory =
            |version: &ConflictVersion| version.shown.entry.kind == manifest::Kind::Directory;
        if is_directory(&conflict.shown)
            && !is_directory(keep)
            && !self.children(&conflict.path)?.is_empty()
        {
            return Err(NamespaceError::Failed(
                "the folder of that name has something in it, which must be moved or removed first"
                    .into(),
            ));
        }
        let dots = conflict.versions().flat_map(|version| &version.shown.seen);
        let seen: Vec<Dot> = dots.copied().collect();
        // A directory that nobody made has no version to write: it is there without.
        let mut entry = keep.writer.map(|_| keep.shown.own_entry());
        let put = |path: TreePath, entry, seen| Edit {
            path,
            entry,
            seen,
            held: false,
            written: None,
            moved: None,
        };
        let mut edits = Vec::new();
        let mut links = conflict
            .versions()
            .filter_map(|version| version.shown.link.as_ref());
        let file = links.next().filter(|_| !is_directory(keep));
        if let Some(link) = file
            && keep.shown.link.is_none()
        {
            let record = TreePath::of_record(&link.file);
            edits.push(put(record, entry, link.seen.clone()));
            entry = Some(Entry::link(link.file));
        }
        edits.extend(Edit::bring_record(&conflict.path, &keep.shown));
        edits.push(put(conflict.path.clone(), entry, seen));
        self.change(edits)?;
        let up_to = self.shared.replica.state.read().overlay.generation();
        let flushed = self.flush().await;
        // The filesystem has not made this change: to it and to the kernel it is like one of somebody else.
        let paths = conflict
            .versions()
            .filter_map(|version| version.path.clone());
        let file = file.map(|link| TreePath::of_record(&link.file));
        let changed = RemoteChanges::Paths(Arc::new(paths.chain(file).collect()));
        let _ = self.shared.signals.remote_changes.send(changed);
        flushed?;
        Ok(!self.shared.replica.state.read().overlay.waits(up_to))
    }
}
