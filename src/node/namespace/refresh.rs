//! Brings up what was here of an earlier state: a head that differs by much becomes the state before all of its nodes came,
//! and what could be read while nobody is reached is to stay so. Behind that, what every write takes: nobody may be there to give
//! it when it is needed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Brought, NamespaceError,
    disk::Disk,
    merge::{Effort, Step},
    replica::{Event, Moment, Replica},
};
use crate::manifest::{self, InternalKey, Key, NodeHash, TreeError};

/// Most nodes that are brought in place of those of one earlier state; and so many at most of what it had not.
const NODES_MAX: usize = 4096;
const ADDED_NODES_MAX: usize = 1024;
/// And of all of them together, in bytes.
const BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Nodes that are asked for at once: what somebody waits for comes behind their answer.
pub(super) const NODES_AT_ONCE: usize = 32;
/// It is given up once nobody has given any for so long.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3600);

/// An earlier state, some of whose nodes are here and not yet what took their place.
#[derive(Clone, Debug)]
pub(super) struct Outdated {
    pub(super) kept: OutdatedRecord,
    /// What was asked for last is what the earlier state had not.
    adds: bool,
    in_vain_since: Option<std::time::Instant>,
}

/// What the disk has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutdatedRecord {
    pub(super) root: NodeHash,
    /// What was brought in its place.
    nodes: usize,
    added: usize,
    bytes: u64,
}

impl Outdated {
    pub(super) fn new(root: NodeHash) -> Self {
        Self::from(OutdatedRecord {
            root,
            nodes: 0,
            added: 0,
            bytes: 0,
        })
    }
}

impl From<OutdatedRecord> for Outdated {
    fn from(kept: OutdatedRecord) -> Self {
        Self {
            kept,
            adds: false,
            in_vain_since: None,
        }
    }
}

impl<D: Disk> Replica<D> {
    /// Whether there is something to bring up.
    pub(super) fn is_outdated(&self) -> bool {
        let state = self.state.read();
        state.outdated.is_some() || (state.writer.is_some() && state.writes_looked_at != state.root)
    }

    /// One attempt with the nodes that are here.
    ///
    /// # Errors
    /// Of the disk; it is to be tried again.
    pub(super) fn bring_up(&self, effort: &Effort) -> Result<Step, NamespaceError> {
        if effort.not_kept {
            return Err(NamespaceError::Full);
        }
        let (outdated, root) = {
            let state = self.state.read();
            let Some(root) = state.root else {
                return Ok(Step::Done);
            };
            (state.outdated.clone(), root)
        };
        let Some(outdated) = outdated else {
            return self.bring_for_writes(root);
        };
        // With what was brought since.
        self.records.save_outdated(Some(&outdated.kept))?;
        let old = outdated.kept.root;
        for adds in [false, true] {
            let nodes = self.lacking(&outdated.kept, root, adds)?;
            if nodes.is_empty() {
                continue;
            }
            if let Some(outdated) = &mut self.state.write().outdated {
                outdated.adds = adds;
            }
            return Ok(Step::Missing(nodes));
        }
        let mut state = self.state.write();
        let is_it = state
            .outdated
            .as_ref()
            .is_some_and(|it| it.kept.root == old);
        if is_it && state.root == Some(root) {
            state.outdated = None;
            drop(state);
            self.records.save_outdated(None)?;
        }
        // Something else is left to do, or the state has gone on meanwhile.
        self.tell(Event::ToMerge);
        Ok(Step::Done)
    }

    /// This node's row in the table of writers, and where records of files with several names would be. Only where somebody has
    /// looked at the folder.
    fn bring_for_writes(&self, root: NodeHash) -> Result<Step, NamespaceError> {
        let Some(writer) = self
            .state
            .read()
            .writer
            .as_ref()
            .map(|writer| writer.number)
        else {
            return Ok(Step::Done);
        };
        let row = Key::of_internal(&InternalKey::Writer(writer));
        let mut nodes = Vec::new();
        if manifest::are_recorded(&self.nodes, root).is_ok() {
            let row = manifest::get(&self.nodes, root, &row).map(|_| ());
            let files = manifest::any_files(&self.nodes, root).map(|_| ());
            for looked in [row, files] {
                match looked {
                    Err(TreeError::Missing(missing)) => nodes.extend(missing),
                    looked => looked?,
                }
            }
        }
        nodes.retain(|node| !self.nodes.is_bad(node));
        if !nodes.is_empty() {
            return Ok(Step::Missing(nodes));
        }
        self.state.write().writes_looked_at = Some(root);
        Ok(Step::Done)
    }

    /// Somebody looked at something that was not here before.
    pub(super) fn looked_further(&self) {
        let mut state = self.state.write();
        if state.writer.is_some() && state.writes_looked_at.take().is_some() {
            self.tell(Event::ToBringUp);
        }
    }

    fn lacking(
        &self,
        kept: &OutdatedRecord,
        root: NodeHash,
        adds: bool,
    ) -> Result<Vec<NodeHash>, TreeError> {
        let left = match adds {
            false => NODES_MAX.saturating_sub(kept.nodes),
            true => ADDED_NODES_MAX.saturating_sub(kept.added),
        };
        if left == 0 || kept.bytes >= BYTES_MAX {
            return Ok(Vec::new());
        }
        let mut nodes = self.outdated_nodes(kept.root, root, adds)?;
        nodes.truncate(left);
        Ok(nodes)
    }

    /// What is to be asked for next, so that what is here of one tree is here of another.
    pub(super) fn outdated_nodes(
        &self,
        old: NodeHash,
        new: NodeHash,
        adds: bool,
    ) -> Result<Vec<NodeHash>, TreeError> {
        let mut nodes = match manifest::outdated(&self.nodes, old, new, adds) {
            // Whoever looks at it is told.
            Err(TreeError::Misplaced(_)) => return Ok(Vec::new()),
            nodes => nodes?,
        };
        nodes.retain(|node| !self.nodes.is_bad(node));
        nodes.truncate(NODES_AT_ONCE);
        Ok(nodes)
    }

    /// Notes what came of an attempt to bring some of it.
    pub(super) fn note_brought_up(
        &self,
        brought: &Brought,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        let mut state = self.state.write();
        let Some(outdated) = &mut state.outdated else {
            return Ok(());
        };
        if brought.nodes > 0 {
            let count = match outdated.adds {
                true => &mut outdated.kept.added,
                false => &mut outdated.kept.nodes,
            };
            *count = count.saturating_add(brought.nodes);
            outdated.kept.bytes = outdated.kept.bytes.saturating_add(brought.bytes);
            outdated.in_vain_since = None;
            return Ok(());
        }
        let since = *outdated.in_vain_since.get_or_insert(now.at);
        if now.at.duration_since(since) >= GIVE_UP_AFTER {
            state.outdated = None;
            drop(state);
            return self.records.save_outdated(None);
        }
        Ok(())
    }

    /// `turn` is held. Notes that the state gave way to another of which not all was looked at. `before`: what it was.
    pub(super) fn note_outdated(&self, before: Option<NodeHash>) -> Result<(), NamespaceError> {
        let mut state = self.state.write();
        let before = before.filter(|root| *root != manifest::empty_root());
        if let (None, Some(root)) = (&state.outdated, before) {
            let outdated = Outdated::new(root);
            let kept = outdated.kept;
            state.outdated = Some(outdated);
            drop(state);
            self.records.save_outdated(Some(&kept))?;
        }
        self.tell(Event::ToBringUp);
        Ok(())
    }
}
