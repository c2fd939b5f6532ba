//! Brings up what was here of an earlier state: a head that differs by much becomes the state, or is shown, before all of
//! its nodes came, and what could be read while nobody is reached is to stay so.

use super::{
    NamespaceError, disk::Disk, merge::Effort, merge::Step, replica::Event, replica::Replica,
};
use crate::manifest::{self, NodeHash, TreeError};

/// Most nodes that are brought for one state, some 40 MB; and so many of them at most for what the earlier state had not.
const NODES_MAX: usize = 4096;
const ADDED_NODES_MAX: usize = 1024;

/// A tree that nodes are brought for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// The one whose nodes are here.
    old: NodeHash,
    new: NodeHash,
}

impl<D: Disk> Replica<D> {
    /// Whether there is something to bring up.
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated().is_some()
    }

    fn outdated(&self) -> Option<Target> {
        let state = self.state.read();
        let root = state.root?;
        let of_state = state.outdated.map(|old| Target { old, new: root });
        let part = state.parts.iter().find(|part| !part.is_brought_up);
        of_state.or_else(|| {
            let new = part?.root;
            Some(Target { old: root, new })
        })
    }

    /// One attempt with the nodes that are here.
    pub(super) fn bring_up(&self, effort: &Effort) -> Result<Step, NamespaceError> {
        let Some(target) = self.outdated() else {
            return Ok(Step::Done);
        };
        match self.lacking(target, effort.nodes) {
            Ok(nodes) if !nodes.is_empty() => Ok(Step::Missing(nodes)),
            Ok(_) => {
                self.is_brought_up(target);
                Ok(Step::Done)
            }
            Err(error) => {
                // Whoever looks there is told.
                self.is_brought_up(target);
                Err(error.into())
            }
        }
    }

    fn lacking(&self, target: Target, brought: usize) -> Result<Vec<NodeHash>, TreeError> {
        for (additions, nodes_max) in [(false, NODES_MAX), (true, ADDED_NODES_MAX)] {
            if brought >= nodes_max {
                continue;
            }
            let mut nodes = manifest::outdated(&self.nodes, target.old, target.new, additions)?;
            nodes.retain(|node| !self.nodes.is_bad(node));
            nodes.truncate(nodes_max - brought);
            if !nodes.is_empty() {
                return Ok(nodes);
            }
        }
        Ok(Vec::new())
    }

    fn is_brought_up(&self, target: Target) {
        let mut state = self.state.write();
        // The state may have gone on meanwhile: then there is more to bring.
        if state.outdated == Some(target.old) && state.root == Some(target.new) {
            state.outdated = None;
        }
        for part in &mut state.parts {
            part.is_brought_up |= part.root == target.new;
        }
        drop(state);
        self.tell(Event::ToMerge);
    }
}
