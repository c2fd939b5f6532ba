//! The committer: signs heads for local changes, and heads that join what several heads say.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_bytes::ByteBuf;

use super::{
    NamespaceError, Published,
    disk::Disk,
    heads::{KnownHead, Offered},
    overlay::{Changes, PORTION_MAX},
    plan::{self, Edits},
    records::OwnHead,
    replica::{Event, Moment, Replica},
    state::{State, known, removed_from},
};
use crate::{
    cluster::Head,
    manifest::{self, Applied, CausalContext, Dot, HybridTime, NodeHash, TreeError, Version},
    net::proto::{CHANGES_MAX, Push},
};

/// Pushes name the changed entries up to this size.
pub(super) const PUSHED_CHANGES_BYTES_MAX: usize = 256 * 1024;
/// Sequences made durable ahead, so that a commit waits for the disk once. A crash skips those that were not used.
const SEQUENCES_AHEAD: u64 = 32;

/// How often old hints of renames are looked for, and how many are dropped at a time.
const HINTS_LOOKED_AFTER: Duration = Duration::from_secs(3600);
const HINTS_DROPPED_MAX: usize = 256;

/// What an attempt came to.
pub(super) enum Step {
    /// There was nothing to do.
    Idle,
    /// Something was committed.
    Done,
    /// These nodes are needed first.
    Missing(Vec<NodeHash>),
}

/// What a new head says.
pub(super) struct Signing {
    pub(super) applied: Applied,
    pub(super) covers: CausalContext,
    pub(super) sequence: u64,
    /// The state that it was made on.
    pub(super) base: NodeHash,
    /// The changed entries, for the push.
    pub(super) edits: Option<Edits>,
    /// The pending changes that are in it.
    pub(super) pending: Changes,
    /// Whether these are all that were made here before.
    pub(super) commits: bool,
}

impl<D: Disk> Replica<D> {
    /// When the next commit is wanted: now for local changes.
    pub(super) fn commit_due(&self, now: Instant) -> Option<Instant> {
        let state = self.state.read();
        state.writer.as_ref()?;
        if state.redo.is_some() || (state.overlay.waits(u64::MAX) && !state.waits_for_merge) {
            return Some(now);
        }
        state.join_due
    }

    /// One attempt to commit what is pending, or to sign a head that joins others.
    pub(super) fn commit(&self, now: Moment) -> Result<Step, NamespaceError> {
        let _turn = self.turn.lock();
        let result = if self.state.read().redo.is_some() {
            self.redo_work(now)
        } else {
            self.commit_pending(now)
        };
        match result {
            Err(NamespaceError::Missing(nodes)) => Ok(Step::Missing(nodes)),
            result => result,
        }
    }

    /// `turn` is held.
    fn commit_pending(&self, now: Moment) -> Result<Step, NamespaceError> {
        let (base, covers, pending, renames, joins, contradicted) = {
            let state = self.state.read();
            let Some(root) = state.root else {
                return Ok(Step::Idle);
            };
            let joins = state.join_due.is_some_and(|due| due <= now.at)
                && !state.heads.represents(root, &state.covers);
            let contradicted = state.heads.contradicts(root, &state.covers);
            let pending = state.overlay.ready();
            let renames = state.overlay.renames();
            let covers = state.covers.clone();
            (root, covers, pending, renames, joins, contradicted)
        };
        if pending.is_empty() && !joins {
            self.plan_join(&mut self.state.write(), now.at);
            return Ok(Step::Idle);
        }
        if self.follows_unmerged(&pending) {
            return Ok(Step::Idle);
        }
        let dot = self.next_dot(1)?;
        let mut edits = plan::plan(&self.nodes, base, &pending, dot)?;
        if !edits.is_empty() {
            plan::add_hints(&self.nodes, base, &mut edits, &renames, &covers, dot)?;
            self.drop_old_hints(base, &mut edits, now)?;
            self.add_row(base, &mut edits, dot, now)?;
        }
        let applied = manifest::apply(&self.nodes, base, &edits)?;
        if applied.root == base && !joins {
            // Deletions of what was never committed, or is gone already.
            self.forget_pending(&pending, dot)?;
            return Ok(Step::Done);
        }
        let mut covers = covers;
        if applied.root != base || contradicted {
            covers.add(dot);
        }
        let removed = edits.iter();
        let removals: BTreeSet<_> = removed
            .filter_map(|(key, new)| removed_from(key, new.as_ref()))
            .collect();
        let published = self.sign(
            Signing {
                applied,
                covers,
                sequence: dot.sequence,
                base,
                edits: Some(edits),
                pending,
                commits: true,
            },
            now,
            |state| {
                state.overlay.renames_told(&renames);
                let time = state.clock;
                state.note_removals(removals, time);
            },
        )?;
        self.tell(Event::Published(Arc::new(published)));
        Ok(Step::Done)
    }

    /// Has old hints of renames removed with this commit, if that was not looked after for a while.
    fn drop_old_hints(
        &self,
        base: NodeHash,
        edits: &mut Edits,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        let looked = self.state.read().hints_looked_after;
        if looked.is_some_and(|looked| now.at.duration_since(looked) < HINTS_LOOKED_AFTER) {
            return Ok(());
        }
        let before = HybridTime(now.wall_ns.saturating_sub(manifest::HINT_AGE_MAX_NS));
        match manifest::without_old_hints(&self.nodes, base, before, HINTS_DROPPED_MAX) {
            Ok(old) => {
                for (key, left) in old {
                    edits.entry(key).or_insert(left);
                }
            }
            // It is not worth fetching for.
            Err(TreeError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.state.write().hints_looked_after = Some(now.at);
        Ok(())
    }

    /// Whether changes follow on from what is shown of a head that is not merged yet: they replace what it brought, or were
    /// made where it has changed what is there, a removal included. A head that is signed now would not have seen that: it
    /// waits until that is merged, all of it, since changes may belong together.
    fn follows_unmerged(&self, pending: &Changes) -> bool {
        let (view, root, covers) = {
            let state = self.state.read();
            let view = state.view().filter(|_| !state.parts.is_empty());
            (view, state.root, state.covers.clone())
        };
        let seen = pending.iter().flat_map(|(_, pending)| &pending.seen);
        let unseen: BTreeSet<Dot> = seen.copied().filter(|dot| !covers.covers(*dot)).collect();
        let differs = |path: &manifest::TreePath| {
            let (Some(view), Some(root), Some(key)) = (&view, root, manifest::Key::of_path(path))
            else {
                return false;
            };
            let shown = manifest::versions(&self.nodes, view, &key);
            match (shown, manifest::get(&self.nodes, root, &key)) {
                (Ok(shown), Ok(merged)) => shown != merged,
                // It can't be told: the merge will.
                _ => true,
            }
        };
        let all = pending.iter().any(|(path, _)| differs(path));
        if !all && unseen.is_empty() {
            return false;
        }
        let mut state = self.state.write();
        let brings = |head: &KnownHead| all || unseen.iter().any(|dot| head.covers.covers(*dot));
        state.waits_for_merge = state.heads.need(brings);
        let waits = state.waits_for_merge;
        drop(state);
        if waits {
            self.tell(Event::ToMerge);
        }
        waits
    }

    /// `turn` is held. Adds this writer's row to the table of writers, unless it is there.
    pub(super) fn add_row(
        &self,
        base: NodeHash,
        edits: &mut Edits,
        dot: Dot,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        let (peer, time) = {
            let mut state = self.state.write();
            let peer = state.identity.public().to_peer_id().to_bytes();
            (peer, state.tick(now.wall_ns))
        };
        let row = Version {
            dot,
            time,
            entry: plan::writer_row(peer, self.node_name.clone()),
            moved: None,
        };
        Ok(plan::add_writer_row(&self.nodes, base, edits, row)?)
    }

    /// `turn` is held. The dot of the next head, or of the last of the next `count`; durable as used.
    pub(super) fn next_dot(&self, count: u64) -> Result<Dot, NamespaceError> {
        let (number, next, reserved) = {
            let state = self.state.read();
            let writer = state.writer.as_ref().ok_or(NamespaceError::ReadOnly)?;
            (writer.number, writer.last + count, writer.reserved)
        };
        if next > reserved {
            let reserved = next + SEQUENCES_AHEAD;
            self.records.save_sequence(number, reserved)?;
            self.records.flush()?;
            if let Some(writer) = &mut self.state.write().writer {
                writer.reserved = reserved;
            }
        }
        Ok(Dot {
            writer: number,
            sequence: next,
        })
    }

    /// `turn` is held. Signs a head, keeps it on disk with the state it stands for, and only then makes it the state;
    /// `and_then` does what else changes in the same moment.
    pub(super) fn sign(
        &self,
        signing: Signing,
        now: Moment,
        and_then: impl FnOnce(&mut State),
    ) -> Result<Published, NamespaceError> {
        let Signing {
            applied,
            covers,
            sequence,
            base,
            edits,
            pending,
            commits,
        } = signing;
        let (identity, number, certificate, time) = {
            let mut state = self.state.write();
            let time = state.tick(now.wall_ns);
            let identity = state.identity.clone();
            let writer = state.writer.as_mut().ok_or(NamespaceError::ReadOnly)?;
            // Whatever happens below, this sequence is used up.
            writer.last = sequence;
            (identity, writer.number, writer.certificate.clone(), time)
        };
        let head = Head::sign(
            &self.keys,
            &identity,
            &certificate,
            applied.root,
            covers,
            sequence,
            time,
        )
        .map_err(|error| NamespaceError::Failed(error.to_string()))?;
        let bytes = head.encode();
        let own = OwnHead {
            root: head.root,
            base,
            time,
            commits,
        };
        let dot = Dot {
            writer: number,
            sequence,
        };
        self.nodes.put(&applied.nodes)?;
        let head_known = known(&head, bytes.clone());
        self.records.put_head(&head_known)?;
        self.records.put_own_head(dot, &own)?;
        let mut record = self.state.read().record();
        record.root = Some(head.root);
        record.covers = head.covers.clone();
        record.clock = time;
        self.records.save_state(&record)?;
        self.records.note_root(now.wall_ns, head.root)?;
        if commits && self.state.read().pending_kept {
            // All that was kept is in this head; after a crash it must not come again.
            self.records.save_pending(&Vec::new())?;
        }
        self.records.flush()?;
        {
            let mut state = self.state.write();
            state.set_state(head.root, head.covers.clone());
            if let Some(writer) = &mut state.writer {
                writer.own.insert(sequence, own);
            }
            state.seen_heads.put(head_known.digest(), ());
            let dropped = match state.heads.offer(head_known, true) {
                Offered::Taken { dropped, .. } => dropped,
                Offered::Covered => Vec::new(),
            };
            and_then(&mut state);
            state.join_due = None;
            self.plan_join(&mut state, now.at);
            // What follows only tidies up: the store is right without it, and a restart does it again.
            self.drop_heads(&dropped)?;
        }
        self.forget_pending(&pending, dot)?;
        let push = Push::Manifest {
            head: ByteBuf::from(bytes),
            base,
            changes: edits.and_then(|edits| pushed(&edits)),
        };
        Ok(Published { head, push })
    }

    /// `turn` is held. Changes that are in the tree, as this write or as if, are pending no more. Of many, those that still
    /// are hide in between what is the same.
    fn forget_pending(&self, pending: &Changes, dot: Dot) -> Result<(), NamespaceError> {
        for portion in pending.chunks(PORTION_MAX) {
            self.state.write().overlay.committed(portion, dot);
        }
        let mut state = self.state.write();
        if state.pending_kept {
            state.pending_kept = state.overlay.waits(u64::MAX);
            self.records.save_pending(&state.overlay.ready())?;
        }
        Ok(())
    }

    /// Signs the first, empty head.
    pub(super) fn create(&self, now: Moment) -> Result<Head, NamespaceError> {
        let _turn = self.turn.lock();
        if self.state.read().has_head() {
            return Err(NamespaceError::Failed(
                "a head is known already: the cluster exists".into(),
            ));
        }
        let dot = self.next_dot(1)?;
        let root = manifest::empty_root();
        let published = self.sign(
            Signing {
                applied: Applied {
                    root,
                    nodes: Vec::new(),
                },
                covers: CausalContext::default(),
                sequence: dot.sequence,
                base: root,
                edits: None,
                pending: Vec::new(),
                commits: true,
            },
            now,
            |_| {},
        )?;
        let head = published.head.clone();
        self.tell(Event::Published(Arc::new(published)));
        self.tell(Event::HeadKnown(true));
        Ok(head)
    }
}

/// The changed entries as they travel in a push; `None` when they are too large for it, or too many.
fn pushed(edits: &Edits) -> Option<Vec<(ByteBuf, ByteBuf)>> {
    if edits.len() > CHANGES_MAX {
        return None;
    }
    let mut bytes = 0;
    let mut changes = Vec::with_capacity(edits.len());
    for (key, versions) in edits {
        let versions = versions
            .as_ref()
            .map_or_else(Vec::new, |versions| versions.encode());
        bytes += key.as_bytes().len() + versions.len();
        if bytes >= PUSHED_CHANGES_BYTES_MAX {
            return None;
        }
        changes.push((ByteBuf::from(key.as_bytes()), ByteBuf::from(versions)));
    }
    Some(changes)
}
