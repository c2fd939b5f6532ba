//! Another identity in place of one that is, or may be, used elsewhere.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Arrival, NamespaceError,
    commit::{Signing, Step},
    disk::Disk,
    plan,
    records::Redo,
    replica::{Event, Moment, Replica},
    state::Writer,
};
use crate::manifest::{self, Dot};

impl<D: Disk> Replica<D> {
    /// This store is a copy: the original may live and go on signing, so this one takes another identity at once. What is
    /// in the store was the original's work too and stays as it is.
    pub(super) fn leave_identity_to_the_original(&self) -> Result<(), NamespaceError> {
        let _turn = self.take_turn()?;
        tracing::warn!(
            "this state folder is a copy, or lost a part of its index: a new identity takes the place of the one it had"
        );
        self.take_identity(None)
    }

    /// Another machine signs under this writer's number: takes another identity and has the committer sign again what is
    /// not known to have reached anybody.
    pub(super) fn yield_identity(&self) -> Result<(), NamespaceError> {
        let _turn = self.take_turn()?;
        let redo = {
            let state = self.state.read();
            let Some(writer) = &state.writer else {
                return Ok(());
            };
            let unconfirmed = writer.own.range(writer.confirmed + 1..).next();
            unconfirmed.map(|(_, own)| Redo {
                writer: writer.number,
                above: writer.confirmed,
                base: own.base,
            })
        };
        tracing::warn!(
            "another machine signs under this one's identity (a restored backup, or a clone): a new identity takes its place"
        );
        self.take_identity(redo)
    }

    /// `turn` is held.
    fn take_identity(&self, redo: Option<Redo>) -> Result<(), NamespaceError> {
        let identity = self.new_identity()?;
        let encoded = identity
            .to_protobuf_encoding()
            .map_err(|error| NamespaceError::Failed(error.to_string()))?;
        let writer = Writer::new(&self.keys, &identity)?;
        let mut state = self.state.write();
        // Work that is still to be done again from an earlier time stays to be done first.
        let redo = state.redo.or(redo);
        self.records.save_redo(redo.as_ref())?;
        self.records.save_identity(&encoded)?;
        if let Some(redo) = redo {
            let unwanted = state
                .heads
                .remove_where(|head| head.writer == redo.writer && head.sequence > redo.above);
            for head in unwanted {
                self.records.remove_head(&head)?;
            }
        }
        self.records.flush()?;
        state.identity = identity;
        state.writer = writer;
        state.redo = redo;
        state.join_due = None;
        state.seen_heads.clear();
        let were_shown = !std::mem::take(&mut state.parts).is_empty();
        state.heads.forget_waits();
        state.waits_for_merge = None;
        let root = state.root.filter(|_| were_shown);
        drop(state);
        if let Some(root) = root {
            self.tell(Event::Changed(Arrival {
                root,
                before: None,
                changes: None,
            }));
        }
        self.tell(Event::ToCommit);
        Ok(())
    }

    /// `turn` is held. Gives the work that nobody has new dots, and forgets having seen the former ones: what the other
    /// machine wrote under them is then new.
    pub(super) fn redo_work(&self, now: Moment) -> Result<Step, NamespaceError> {
        let (redo, base, covers, number) = {
            let state = self.state.read();
            let (Some(redo), Some(root), Some(writer)) = (state.redo, state.root, &state.writer)
            else {
                return Ok(Step::Idle);
            };
            (redo, root, state.covers.clone(), writer.number)
        };
        let changes = manifest::diff(&self.nodes, redo.base, base, usize::MAX)?;
        let contested = plan::contested(&changes, redo.writer, redo.above);
        let count = (contested.len() as u64).max(1);
        let dot = self.next_dot(count)?;
        let sequences: BTreeMap<u64, u64> = contested
            .into_iter()
            .zip(dot.sequence - count + 1..)
            .collect();
        let new_dot = |old: Dot| {
            let sequence = sequences.get(&old.sequence)?;
            (old.writer == redo.writer).then_some(Dot {
                writer: number,
                sequence: *sequence,
            })
        };
        let mut edits = plan::renumber(&changes, new_dot);
        self.add_row(base, &mut edits, dot, now)?;
        let applied = manifest::apply(&self.nodes, base, &edits)?;
        let first_contested = Dot {
            writer: redo.writer,
            sequence: redo.above + 1,
        };
        let mut covers = covers.before(&[first_contested]);
        self.state.read().note_own(&mut covers, dot);
        let kept = {
            let state = self.state.read();
            state
                .pending_kept
                .then(|| state.overlay.renumbered(new_dot))
        };
        let signing = Signing {
            applied,
            covers,
            sequence: dot.sequence,
            // All of that work is in it.
            base: redo.base,
            edits: None,
            copied: Vec::new(),
            pending: Vec::new(),
            renames: Vec::new(),
            commits: false,
            kept,
        };
        let published = self.sign(signing, now, |state| {
            state.redo = None;
            state.heads.forget_merges();
            state.overlay.renumber(new_dot);
        })?;
        // Done once more after a crash before this, it would find nothing left to do.
        self.records.save_redo(None)?;
        self.tell(Event::Published(Arc::new(published)));
        self.tell(Event::ToMerge);
        Ok(Step::Done)
    }
}
