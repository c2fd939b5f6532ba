//! Heads that are not merged: which of them are shown all the same, and which are done without.
//!
//! A head whose merging can wait is shown beside the state; what can't be merged for want of nodes is not. One that is not what
//! it must be is refused; one that nobody has had for long is given up, until somebody shows it again.

use std::time::Duration;

use super::{
    Arrival, NamespaceError,
    disk::Disk,
    heads::KnownHead,
    merge::{Effort, Step},
    replica::{Event, Moment, Replica},
    state::ShownPart,
};
use crate::manifest::{self, CausalContext, NodeHash, NodeSource as _, TreeError, WriterNumber};

/// How long a head is shown before it is merged.
const LATER: Duration = Duration::from_secs(30);
/// A head of which those who can be asked have lacked nodes for so long is given up. Its author may be away, and shows it
/// again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3600);

impl<D: Disk> Replica<D> {
    /// Whether merging a head would fetch so many nodes that it had better wait.
    pub(super) fn may_put_off(&self, head: &KnownHead, nodes: usize, now: Moment) -> bool {
        let state = self.state.read();
        let own = state.writer.as_ref().map(|writer| writer.number);
        let enough = match own {
            Some(own) if state.heads.has_of(own) => self.eagerness.authors,
            _ => self.eagerness.others,
        };
        nodes > enough && state.heads.may_put_off(&head.digest(), now.at, LATER)
    }

    /// `turn` is held. Shows a head without merging it.
    pub(super) fn put_off(&self, head: &KnownHead, now: Moment) {
        let mut state = self.state.write();
        state.heads.put_off(&head.digest(), now.at, LATER);
        state
            .parts
            .retain(|part| !head.covers.includes(&part.covers));
        state.parts.push(ShownPart {
            root: head.root,
            covers: head.covers.clone(),
        });
        drop(state);
        self.tell(Event::Changed(Arrival {
            root: head.root,
            before: None,
            changes: None,
        }));
    }

    /// What can't be merged for want of nodes is not shown either.
    pub(super) fn hide(&self, head: &KnownHead) {
        let mut state = self.state.write();
        let before = state.parts.len();
        state.parts.retain(|part| part.root != head.root);
        let root = state.root.filter(|_| state.parts.len() < before);
        drop(state);
        if let Some(root) = root {
            self.tell(Event::Changed(Arrival {
                root,
                before: None,
                changes: None,
            }));
        }
    }

    /// Looks at the root node of the first head that was seen, whose state is shown since. One that is not what it must be
    /// gives way to another head, where there is one; so does one whose root node those who were asked lack (`denied`).
    pub(super) fn prove_first(&self, denied: bool, now: Moment) -> Result<Step, NamespaceError> {
        let _turn = self.take_turn()?;
        // The disk was full, or the process ended, before one was shown.
        self.show_any(now)?;
        let first = {
            let state = self.state.read();
            let head = state.first.and_then(|digest| state.heads.get(&digest));
            head.cloned()
        };
        let reason = match first.as_ref().map(|head| self.check_root(head)) {
            Some(Err(NamespaceError::Missing(nodes))) => {
                if !nodes.iter().any(|node| self.nodes.is_bad(node)) {
                    return match self.another_first(denied, now)? {
                        true => Ok(Step::Done),
                        false => Ok(Step::Missing(nodes)),
                    };
                }
                Some("its root is not a valid manifest node".into())
            }
            Some(checked) => checked?,
            None => None,
        };
        {
            let mut state = self.state.write();
            if let Some(digest) = state.first.take() {
                if let Some(writer) = first.as_ref().map(|head| head.writer) {
                    state.heads.given(&digest, writer);
                }
                // What it has seen is in the state now.
                self.tell(Event::ToMerge);
            }
        }
        if let (Some(head), Some(reason)) = (first, reason) {
            let mut state = self.state.write();
            state.root = None;
            state.covers = CausalContext::default();
            drop(state);
            self.refuse(&head, &reason, now)?;
            if !self.show_any(now)? {
                self.records.save_state(&self.state.read().record())?;
                self.tell(Event::HeadKnown(false));
            }
        }
        Ok(Step::Done)
    }

    /// `turn` is held. Shows the newest head that is known where nothing is shown yet. Whether there is one.
    fn show_any(&self, now: Moment) -> Result<bool, NamespaceError> {
        let newest = {
            let state = self.state.read();
            let unmerged = state.heads.unmerged().filter(|_| state.root.is_none());
            unmerged.max_by_key(|head| head.time).cloned()
        };
        match newest {
            Some(newest) => self.show_first(&newest, now).map(|()| true),
            None => Ok(false),
        }
    }

    /// `turn` is held. Shows another head than the first one, which nobody has; it is merged once somebody gives it. Whether
    /// there is one.
    fn another_first(&self, denied: bool, now: Moment) -> Result<bool, NamespaceError> {
        let next = {
            let mut state = self.state.write();
            if let Some(first) = state.first.filter(|_| denied) {
                state.denied(&first, now.at);
            }
            let Some(next) = state.another_first().cloned() else {
                return Ok(false);
            };
            state.heads.forget_merges();
            state.root = None;
            state.covers = CausalContext::default();
            next
        };
        self.show_first(&next, now)?;
        Ok(true)
    }

    /// Notes that an attempt for a head ended for want of these nodes. One that nobody has had for long is given up: its author's
    /// disk may have been set back to what it was before. What waits for it goes on without.
    pub(super) fn was_in_vain(
        &self,
        digest: &[u8; 32],
        effort: &Effort,
        missing: &[NodeHash],
        now: Moment,
    ) -> Result<(), NamespaceError> {
        self.state.write().heads.failed(digest, now.at);
        let _turn = self.take_turn()?;
        let (head, root, is_own) = {
            let state = self.state.read();
            let (Some(head), Some(root)) = (state.heads.get(digest).cloned(), state.root) else {
                return Ok(());
            };
            let own = state.writer.as_ref().map(|writer| writer.number);
            let is_own = own == Some(head.writer);
            (head, root, is_own)
        };
        // Where it is the state that lacks nodes, the head is none the worse.
        let looked = self.compared(root, head.root);
        if missing.iter().any(|node| looked.is_theirs(node)) {
            self.hide(&head);
        }
        if !effort.denied || is_own {
            return Ok(());
        }
        let mut lacking = Vec::new();
        for node in missing {
            // Somebody who looked there may have brought it meanwhile.
            if self.nodes.node(node)?.is_none() {
                lacking.push(node);
            }
        }
        if !lacking.iter().any(|node| looked.is_theirs(node)) {
            return Ok(());
        }
        {
            let mut state = self.state.write();
            let denied_for = state.denied(digest, now.at);
            if denied_for < GIVE_UP_AFTER && state.given_up.get(digest).is_none() {
                return Ok(());
            }
            state.given_up.put(*digest, (head.writer, now.at));
        }
        tracing::warn!(
            writer = format_args!("{:016x}", head.writer.0),
            sequence = head.sequence,
            "a head was given up, since nobody has the manifest nodes that it takes: what it changed will be seen when \
             somebody shows it again who has them"
        );
        self.drop_head(&head, now)
    }

    /// Shows the state that a head stands for, where nothing is shown yet.
    pub(super) fn show_first(&self, head: &KnownHead, now: Moment) -> Result<(), NamespaceError> {
        let mut state = self.state.write();
        if state.root.is_some() {
            // Another one was first.
            return Ok(());
        }
        let mut record = state.record();
        record.root = Some(head.root);
        record.covers = head.covers.clone();
        self.records.save_state(&record)?;
        state.root = record.root;
        state.covers = record.covers;
        state.first = Some(head.digest());
        let dropped = state.heads.set_in_state(&head.digest());
        self.plan_join(&mut state, now.at);
        drop(state);
        self.tell(Event::Changed(Arrival {
            root: head.root,
            before: None,
            changes: None,
        }));
        self.tell(Event::ToMerge);
        self.drop_heads(&dropped)
    }

    /// Why the root of a head is not what it must be; `None` when it is. Entries must not be newer than their head.
    pub(super) fn check_root(&self, head: &KnownHead) -> Result<Option<String>, NamespaceError> {
        match manifest::summary(&self.nodes, head.root) {
            Ok(summary) if summary.newest > head.time => {
                Ok(Some("it has entries that are newer than it is".into()))
            }
            Ok(_) => Ok(None),
            Err(error @ TreeError::Misplaced(_)) => Ok(Some(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn refuse_or_fail(
        &self,
        head: &KnownHead,
        error: TreeError,
        now: Moment,
    ) -> Result<Step, NamespaceError> {
        match error {
            TreeError::Misplaced(_) => {
                self.refuse(head, &error.to_string(), now)?;
                Ok(Step::Done)
            }
            error => Err(error.into()),
        }
    }

    /// `turn` is held. A head that is not what it must be goes, and is held against whoever made it.
    pub(super) fn refuse(
        &self,
        head: &KnownHead,
        reason: &str,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        self.drop_head(head, now)?;
        let from = {
            let mut state = self.state.write();
            // What seemed to add nothing to it may be shown again.
            state.seen_heads.clear();
            state.seen_heads.put(head.digest(), ());
            state.showed.get(&head.digest())
        };
        tracing::warn!(
            writer = format_args!("{:016x}", head.writer.0),
            sequence = head.sequence,
            reason,
            "a head was refused"
        );
        // Who passes a head on can't have looked at all of its tree.
        if let Some(from) = from.filter(|from| WriterNumber::of(from) == head.writer) {
            self.tell(Event::Offence(
                from,
                format!("its head was refused: {reason}"),
            ));
        }
        Ok(())
    }

    /// `turn` is held. Goes on without a head that is not merged.
    pub(super) fn drop_head(&self, head: &KnownHead, now: Moment) -> Result<(), NamespaceError> {
        let digest = head.digest();
        let mut state = self.state.write();
        state.heads.remove_where(|known| known.digest() == digest);
        let parts = state.parts.len();
        state.parts.retain(|part| part.root != head.root);
        let was_shown = state.parts.len() < parts;
        state.waits_for_merge = None;
        state.seen_heads.remove(&digest);
        self.records.remove_head(head)?;
        self.plan_join(&mut state, now.at);
        let root = state.root;
        drop(state);
        if let Some(root) = root.filter(|_| was_shown) {
            self.tell(Event::Changed(Arrival {
                root,
                before: None,
                changes: None,
            }));
        }
        self.tell(Event::ToMerge);
        self.tell(Event::ToCommit);
        Ok(())
    }
}
