//! The committer: signs heads for local changes, and heads that join what several heads say.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;
use serde_bytes::ByteBuf;

use super::{
    NamespaceError, Published,
    admit::HEAD_WRITERS_MAX,
    disk::Disk,
    heads::{KnownHead, Offered},
    overlay::{Changes, PORTION_MAX, Rename},
    plan::{self, Copied, Edits},
    records::{Kept, OwnHead, Signed},
    replica::{Event, Moment, Replica},
    state::{State, Unfinished, known},
};
use crate::{
    cluster::Head,
    manifest::{
        self, Applied, CausalContext, Dot, HybridTime, InternalKey, Key, NodeHash, TreeError,
        Version,
    },
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
    /// These nodes are needed for what belongs to the head beside the changes; it can do without.
    MissingExtras(Vec<NodeHash>),
    /// What can be was committed. The rest waits, for this reason.
    Waiting(String),
}

/// What an attempt is to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All that is pending, whatever nodes that needs.
    All,
    /// What can be committed with the nodes that are here.
    Here,
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
    /// Records of files that it puts anew, beside those of which a change was pending.
    pub(super) copied: Vec<Copied>,
    /// The pending changes that are in it.
    pub(super) pending: Changes,
    /// The renames that it tells of, or does without.
    pub(super) renames: Vec<Rename>,
    /// Whether all changes made here before are in it.
    pub(super) commits: bool,
    /// What the record of pending changes has from then on, where that has some of what is in the head.
    pub(super) kept: Option<Kept>,
}

impl<D: Disk> Replica<D> {
    /// When the next commit is wanted: now for local changes.
    pub(super) fn commit_due(&self, now: Instant) -> Option<Instant> {
        let state = self.state.read();
        if state.unfinished.is_some() {
            return Some(now);
        }
        state.writer.as_ref()?;
        let is_new = |waiting: u64| state.overlay.generation() > waiting;
        let ready = || state.overlay.waits(u64::MAX) && state.waits_for_merge.is_none_or(is_new);
        if state.redo.is_some() || ready() {
            return Some(now);
        }
        state.join_due
    }

    /// One attempt to commit what is pending, or to sign a head that joins others.
    pub(super) fn commit(&self, extent: Extent, now: Moment) -> Result<Step, NamespaceError> {
        let _turn = self.take_turn()?;
        let result = if self.state.read().redo.is_some() {
            self.redo_work(now)
        } else {
            let result = self.commit_pending(extent, now);
            self.state.write().end_commit();
            result
        };
        match result {
            Err(NamespaceError::Missing(nodes)) => Ok(Step::Missing(nodes)),
            result => result,
        }
    }

    /// `turn` is held.
    fn commit_pending(&self, extent: Extent, now: Moment) -> Result<Step, NamespaceError> {
        let (base, covers, pending, renames, joins, contradicted, made) = {
            let _choosing = self.choosing.write();
            let mut state = self.state.write();
            let Some(root) = state.root else {
                return Ok(Step::Idle);
            };
            state.committing = state.writer.as_ref().map(|writer| writer.last + 1);
            let joins = state.join_due.is_some_and(|due| due <= now.at)
                && !state.heads.represents(root, &state.covers);
            let contradicted = state.heads.contradicts(root, &state.covers);
            let pending = state.overlay.begin_commit();
            let renames = state.overlay.renames();
            let covers = state.covers.clone();
            let made = state.overlay.generation();
            (root, covers, pending, renames, joins, contradicted, made)
        };
        if pending.is_empty() && !joins {
            self.plan_join(&mut self.state.write(), now.at);
            return Ok(Step::Idle);
        }
        let (mut pending, mut left) = self.apart_from_unmerged(pending, made);
        if pending.is_empty() && !left.is_empty() {
            return Ok(Step::Idle);
        }
        let dot = self.next_dot(1)?;
        let mut step = Step::Done;
        let attempt = |pending: &Changes| {
            let edits = plan::plan(&self.nodes, base, pending, dot)?;
            let applied = manifest::apply(&self.nodes, base, &edits)?;
            Ok((edits, applied))
        };
        let (mut planned, mut attempted) = match attempt(&pending) {
            Ok((edits, applied)) => (edits, Some(applied)),
            Err(TreeError::Missing(nodes)) if extent == Extent::All => {
                return Ok(Step::Missing(nodes));
            }
            // The others need not wait for what nobody gives, or what no node can hold.
            Err(TreeError::Missing(_) | TreeError::Bounds(..)) => {
                let fitting = plan::fitting(pending, |some| attempt(some).map(|_| ()))?;
                step = fitting.why.map_or(Step::Done, Step::Waiting);
                pending = fitting.fits;
                left.extend(fitting.others);
                if pending.is_empty() && !joins {
                    return Ok(step);
                }
                (plan::plan(&self.nodes, base, &pending, dot)?, None)
            }
            Err(error) => return Err(error.into()),
        };
        let is_left = |rename: &Rename| left.iter().any(|(path, _)| rename.is_of(path));
        let (left_renames, renames): (Vec<_>, Vec<_>) = renames.into_iter().partition(is_left);
        let mut copied = plan::copied_records(&self.nodes, base, &planned, dot)?;
        let has_extras = !planned.is_empty() && (!renames.is_empty() || !self.has_row(base)?);
        let whole = match has_extras {
            true => planned.clone(),
            false => std::mem::take(&mut planned),
        };
        let (edits, applied) =
            match self.with_extras(base, whole, &mut attempted, (&renames, &covers), dot, now) {
                Err(NamespaceError::Missing(nodes)) if has_extras => {
                    if extent == Extent::All {
                        return Ok(Step::MissingExtras(nodes));
                    }
                    let applied = match attempted {
                        Some(applied) => applied,
                        None => manifest::apply(&self.nodes, base, &planned)?,
                    };
                    (planned, applied)
                }
                built => built?,
            };
        copied.retain(|copied| {
            let place = pending.binary_search_by(|(path, _)| path.cmp(&copied.record));
            let there = place.ok().and_then(|place| pending.get(place));
            there.is_none_or(|(path, pending)| pending.is_brought(path))
        });
        let commits = left.is_empty();
        let kept = self.is_kept(&pending, &renames).then_some(Kept {
            pending: left,
            renames: left_renames,
        });
        if applied.root == base && !joins {
            // Deletions of what was never committed, or is gone already: no head tells of them. What was kept must not come
            // again after a crash.
            if let Some(kept) = &kept {
                // Whether or not all of it gets there.
                self.state.write().keeps_up_to_now();
                self.records.save_pending(kept)?;
                self.state.write().now_kept(kept);
            }
            if commits {
                self.note_kept(dot)?;
            }
            self.forget_pending(&pending, dot);
            return Ok(step);
        }
        let mut covers = covers;
        if applied.root != base || contradicted {
            self.state.read().note_own(&mut covers, dot);
        }
        let published = self.sign(
            Signing {
                applied,
                covers,
                sequence: dot.sequence,
                base,
                edits: Some(edits),
                copied,
                pending,
                renames,
                commits,
                kept,
            },
            now,
            |_| {},
        )?;
        self.tell(Event::Published(Arc::new(published)));
        Ok(step)
    }

    /// Adds what belongs to a head beside the changes, and applies all of it. Nodes that it takes may be missing, and then it can
    /// be done without: this node's row in the table of writers comes with a later head, and where no hint tells of a rename,
    /// what others do under the old name at the same time stays there.
    ///
    /// `attempted` is what comes of the changes alone, if that is known; it is taken where nothing is added.
    fn with_extras(
        &self,
        base: NodeHash,
        mut edits: Edits,
        attempted: &mut Option<Applied>,
        (renames, covers): (&[Rename], &CausalContext),
        dot: Dot,
        now: Moment,
    ) -> Result<(Edits, Applied), NamespaceError> {
        let planned = edits.len();
        if !edits.is_empty() {
            plan::add_hints(&self.nodes, base, &mut edits, renames, covers, dot)?;
            self.drop_old_hints(base, &mut edits, now)?;
            self.add_row(base, &mut edits, dot, now)?;
        }
        // What was added has keys of its own, but for hints.
        let is_as_planned = renames.is_empty() && edits.len() == planned;
        let applied = match is_as_planned.then(|| attempted.take()).flatten() {
            Some(applied) => applied,
            None => manifest::apply(&self.nodes, base, &edits)?,
        };
        Ok((edits, applied))
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

    /// Parts the changes that may be committed now from those that follow on from what is shown of a head that is not merged
    /// yet: they replace what it brought, or were made where it has changed what is there, a removal included. A head that is
    /// signed now would not have seen that: they wait until that is merged, with what belongs together with them.
    fn apart_from_unmerged(&self, pending: Changes, made: u64) -> (Changes, Changes) {
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
        let differing = pending.iter().filter(|(path, _)| differs(path));
        let differing: BTreeSet<_> = differing.map(|(path, _)| path.clone()).collect();
        if differing.is_empty() && unseen.is_empty() {
            return (pending, Changes::new());
        }
        let mut state = self.state.write();
        let all = !differing.is_empty();
        let brings = |head: &KnownHead| all || unseen.iter().any(|dot| head.covers.covers(*dot));
        let waits = state.heads.need(brings);
        state.waits_for_merge = waits.then_some(made);
        drop(state);
        if !waits {
            return (pending, Changes::new());
        }
        self.tell(Event::ToMerge);
        plan::split(pending, |(path, pending)| {
            differing.contains(path) || pending.seen.iter().any(|dot| unseen.contains(dot))
        })
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

    /// Takes the turn, and puts first what the last head left to be put.
    pub(super) fn take_turn(&self) -> Result<MutexGuard<'_, ()>, NamespaceError> {
        let turn = self.turn.lock();
        self.finish_head()?;
        Ok(turn)
    }

    /// `turn` is held. Signs a head, keeps it on disk, and only then makes what it stands for the state; `and_then` does what
    /// else changes in the same moment.
    ///
    /// On the disk there is one record first, of the head and all that changes with it: after a crash, or an error, there is all of
    /// it or nothing. What it says is put where it belongs after that, now or when there is room.
    pub(super) fn sign(
        &self,
        signing: Signing,
        now: Moment,
        and_then: impl FnOnce(&mut State),
    ) -> Result<Published, NamespaceError> {
        let Signing {
            applied,
            mut covers,
            sequence,
            base,
            edits,
            copied,
            pending,
            renames,
            commits,
            kept,
        } = signing;
        // Contents before the entries that name them, which may reach the disk from the first record on.
        self.records.settle()?;
        let (identity, number, certificate, time) = {
            let mut state = self.state.write();
            let time = state.tick(now.wall_ns);
            let identity = state.identity.clone();
            let writer = state.writer.as_mut().ok_or(NamespaceError::ReadOnly)?;
            // Whatever happens below, this sequence is used up.
            writer.last = sequence;
            (identity, writer.number, writer.certificate.clone(), time)
        };
        if covers.ranges().count() > HEAD_WRITERS_MAX {
            covers.close_gaps();
        }
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
        let signed = Signed {
            head: known(&head, bytes.clone()),
            own,
            wall_ns: now.wall_ns,
            kept,
        };
        let put = self.records.save_signed(&signed);
        if let Err(error) = put.and_then(|()| self.records.flush()) {
            // Another one comes in its place.
            self.records.forget_signed()?;
            return Err(error);
        }
        {
            let mut state = self.state.write();
            state.set_state(head.root, head.covers.clone());
            state.overlay.follow(&pending, dot);
            state.overlay.follow_copies(&copied, dot);
            if let Some(writer) = &mut state.writer {
                writer.own.insert(sequence, own);
            }
            state.seen_heads.put(signed.head.digest(), ());
            let dropped = match state.heads.offer(signed.head.clone(), true) {
                Offered::Taken { dropped, .. } => dropped,
                Offered::Covered => Vec::new(),
            };
            if let Some(kept) = &signed.kept {
                state.now_kept(kept);
            }
            state.unfinished = Some(Arc::new(Unfinished { signed, dropped }));
            state.overlay.renames_told(&renames);
            and_then(&mut state);
            state.join_due = None;
            self.plan_join(&mut state, now.at);
        }
        self.forget_pending(&pending, dot);
        // The head is there: what follows only tidies up.
        if let Err(error) = self.finish_head() {
            tracing::warn!(%error, "what changes with a new head could not all be put on the disk yet");
        }
        let push = Push::Manifest {
            head: ByteBuf::from(bytes),
            base,
            changes: edits.and_then(|edits| pushed(&edits)),
        };
        Ok(Published { head, push })
    }

    /// `turn` is held. Puts where it belongs what changed with the last head, if that is not done.
    fn finish_head(&self) -> Result<(), NamespaceError> {
        let (unfinished, state, is_needed) = {
            let state = self.state.read();
            let Some(unfinished) = state.unfinished.clone() else {
                return Ok(());
            };
            let is_needed = state.heads.get(&unfinished.signed.head.digest()).is_some();
            (unfinished, state.record(), is_needed)
        };
        let signed = &unfinished.signed;
        // First what may take much room.
        if let Some(kept) = &signed.kept {
            self.records.save_pending(kept)?;
        }
        match is_needed {
            true => self.records.put_head(&signed.head)?,
            false => self.records.remove_head(&signed.head)?,
        }
        self.records.save_state(&state)?;
        self.records.put_own_head(signed.head.dot(), &signed.own)?;
        self.records.note_root(signed.wall_ns, signed.head.root)?;
        self.drop_heads(&unfinished.dropped)?;
        self.records.forget_signed()?;
        self.state.write().unfinished = None;
        Ok(())
    }

    /// `turn` is held. Changes that are in the tree, as this write or as if, are pending no more. Of many, those that still
    /// are hide in between what is the same.
    fn forget_pending(&self, pending: &Changes, dot: Dot) {
        for portion in pending.chunks(PORTION_MAX) {
            self.state.write().overlay.committed(portion, dot);
        }
    }

    /// Whether some of this is in the record of pending changes, which would bring it back after a crash.
    fn is_kept(&self, pending: &Changes, renames: &[Rename]) -> bool {
        let state = self.state.read();
        let is_in = |made: u64| made <= state.kept_made;
        let mut pending = pending.iter().map(|(_, pending)| pending.since);
        let mut renames = renames.iter().map(|rename| rename.generation);
        state.pending_kept && (pending.any(is_in) || renames.any(is_in))
    }

    /// Whether this node's row is in the table of writers, as far as that is here.
    fn has_row(&self, base: NodeHash) -> Result<bool, NamespaceError> {
        let number = self
            .state
            .read()
            .writer
            .as_ref()
            .map(|writer| writer.number);
        let Some(number) = number else {
            return Ok(false);
        };
        let row = Key::of_internal(&InternalKey::Writer(number));
        match manifest::get(&self.nodes, base, &row) {
            Ok(row) => Ok(row.is_some()),
            Err(TreeError::Missing(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Signs the first, empty head.
    pub(super) fn create(&self, now: Moment) -> Result<Head, NamespaceError> {
        let _turn = self.take_turn()?;
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
                copied: Vec::new(),
                pending: Changes::new(),
                renames: Vec::new(),
                commits: true,
                kept: None,
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
