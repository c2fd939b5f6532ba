//! What the namespace knows, in memory.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{PeerId, identity::Keypair};

use super::{
    Edit, NamespaceError,
    disk::Disk,
    heads::{HeadSet, KnownHead},
    overlay::{Changes, Overlay},
    recent::Recent,
    records::{Kept, OwnHead, Records, Redo, Signed, StateRecord},
    refresh::Outdated,
};
use crate::{
    cluster::{Certificate, ClusterKeys, Head, Role},
    manifest::{CausalContext, Dot, HybridTime, NodeHash, TreePath, View, WriterNumber},
};

/// Heads that were looked at and need not be again.
const SEEN_HEADS_MAX: usize = 4096;
/// Own heads remembered beyond those that may not have reached anybody.
const OWN_HEADS_MAX: usize = 4096;

/// This node as a writer.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) number: WriterNumber,
    pub(super) certificate: Certificate,
    /// The last sequence that was signed, or may have been.
    pub(super) last: u64,
    /// The first sequence that this process may sign.
    pub(super) began: u64,
    /// Sequences up to this one may be signed: the store remembers them as used.
    pub(super) reserved: u64,
    /// What the heads of this number stood for: all after `confirmed`, and some thousands before.
    pub(super) own: BTreeMap<u64, OwnHead>,
    /// Up to this sequence the work is known to have reached somebody.
    pub(super) confirmed: u64,
}

/// A head that is shown without being merged.
#[derive(Clone)]
pub(super) struct ShownPart {
    pub(super) root: NodeHash,
    pub(super) covers: CausalContext,
}

/// The last head that was signed here, while not everything that changed with it is where it belongs on the disk.
pub(super) struct Unfinished {
    pub(super) signed: Signed,
    /// The heads that it takes the place of.
    pub(super) dropped: Vec<KnownHead>,
}

pub(super) struct State {
    /// The merged state; `None` before the first head.
    pub(super) root: Option<NodeHash>,
    /// What it has seen.
    pub(super) covers: CausalContext,
    /// What is shown beside it: the heads whose merging can wait. They stay until the state has seen what they have.
    pub(super) parts: Vec<ShownPart>,
    /// Of the pending changes up to this one, those that are left follow on from what a head brought that is not merged yet.
    pub(super) waits_for_merge: Option<u64>,
    /// The state of which what every write takes is here, or nobody has looked at the folder.
    pub(super) writes_looked_at: Option<NodeHash>,
    /// See [`Outdated`].
    pub(super) outdated: Option<Outdated>,
    /// When old hints of renames were last looked for.
    pub(super) hints_looked_after: Option<Instant>,
    /// The head whose state is shown since the start, and whose root node was not looked at yet.
    pub(super) first: Option<[u8; 32]>,
    /// Later than everything seen or written.
    pub(super) clock: HybridTime,
    pub(super) heads: HeadSet,
    /// Digests of heads that were looked at.
    pub(super) seen_heads: Recent<[u8; 32], ()>,
    /// Heads that were given up, whose they are, and when they were tried last: when one is shown again it is tried once, and
    /// not soon again.
    pub(super) given_up: Recent<[u8; 32], (WriterNumber, Instant)>,
    /// Who showed a head: the first to ask for its nodes.
    pub(super) showed: Recent<[u8; 32], PeerId>,
    pub(super) overlay: Overlay,
    /// Whether the store has a record of pending changes.
    pub(super) pending_kept: bool,
    /// It has no later changes than this one.
    pub(super) kept_made: u64,
    /// The sequence with which all changes made before were put there last; no head has it.
    pub(super) kept: Option<Dot>,
    pub(super) unfinished: Option<Arc<Unfinished>>,
    /// The sequence of the head that is being made of the changes before this moment.
    pub(super) committing: Option<u64>,
    pub(super) identity: Keypair,
    /// `None` for a read-only member.
    pub(super) writer: Option<Writer>,
    /// Whether others have told their heads since the start: what this node has signed and forgotten would have shown.
    pub(super) has_heard: bool,
    /// Nothing is signed or merged before this is done.
    pub(super) redo: Option<Redo>,
    /// When a head that joins the known ones is to be signed.
    pub(super) join_due: Option<Instant>,
}

impl Writer {
    /// The writer that an identity makes, with nothing signed yet; `None` for a read-only member.
    pub(super) fn new(
        keys: &ClusterKeys,
        identity: &Keypair,
    ) -> Result<Option<Self>, NamespaceError> {
        if keys.role() != Role::ReadWrite {
            return Ok(None);
        }
        let peer = identity.public().to_peer_id();
        let certificate = Certificate::issue(keys, &peer)
            .map_err(|error| NamespaceError::Failed(error.to_string()))?;
        Ok(Some(Self {
            number: WriterNumber::of(&peer),
            certificate,
            last: 0,
            began: 1,
            reserved: 0,
            own: BTreeMap::new(),
            confirmed: 0,
        }))
    }

    /// Whether a head shows that this writer's number is used by another machine: it is, or covers, a head under the
    /// number that was not signed here.
    pub(super) fn is_used_elsewhere(&self, head: &KnownHead) -> bool {
        let is_old = |sequence: u64| {
            let first = self.own.first_key_value();
            first.is_some_and(|(&first, _)| sequence < first)
        };
        if head.writer == self.number {
            return match self.own.get(&head.sequence) {
                Some(own) => own.root != head.root,
                None => !is_old(head.sequence),
            };
        }
        let mut covered = head.covers.last_of(self.number);
        covered.any(|covered| match self.own.get(&covered) {
            // A head is later than everything that it has seen.
            Some(own) => head.time <= own.time,
            None => !is_old(covered),
        })
    }

    /// Goes on at a distance from the sequences that were signed before: where the disk was set back unseen, they are others
    /// than those that were signed and forgotten, and whoever has seen these shows it.
    pub(super) fn begin(&mut self, distance: u64) {
        self.last = self.last.saturating_add(distance);
        self.began = self.last.saturating_add(1);
    }

    /// What this node's heads after a sequence stood for; `None` where not all may be remembered.
    pub(super) fn work_after(&self, sequence: u64) -> Option<Vec<OwnHead>> {
        let first = self.own.first_key_value().map(|(first, _)| *first);
        let all = self.own.len() < OWN_HEADS_MAX || first.is_some_and(|first| first <= sequence);
        all.then(|| {
            self.own
                .range(sequence + 1..)
                .map(|(_, own)| *own)
                .collect()
        })
    }

    /// Notes that work up to a sequence has reached somebody. Returns the own heads that need not be remembered longer.
    pub(super) fn confirm(&mut self, sequence: u64) -> Vec<Dot> {
        let sequence = sequence.min(self.last);
        if sequence <= self.confirmed {
            return Vec::new();
        }
        self.confirmed = sequence;
        let mut forgotten = Vec::new();
        while self.own.len() > OWN_HEADS_MAX {
            match self.own.first_entry() {
                Some(first) if *first.key() < sequence => {
                    forgotten.push(Dot {
                        writer: self.number,
                        sequence: *first.key(),
                    });
                    first.remove();
                }
                _ => break,
            }
        }
        forgotten
    }
}

impl State {
    /// Notes a write of this node's in the context of a state. Before others have told what they know it does not say that
    /// all that this node wrote earlier was seen: of a machine that was set back unseen, that would have others remove it.
    pub(super) fn note_own(&self, covers: &mut CausalContext, own: Dot) {
        match &self.writer {
            Some(writer) if !self.has_heard => covers.add_apart(own, writer.began),
            _ => covers.add(own),
        }
    }

    /// Reads what the store has. `identity` is used unless another took its place.
    pub(super) fn load(
        records: &Records<impl Disk>,
        keys: &ClusterKeys,
        identity: Keypair,
    ) -> Result<Self, NamespaceError> {
        let identity = match records.identity()? {
            None => identity,
            Some(bytes) => Keypair::from_protobuf_encoding(&bytes).map_err(|error| {
                NamespaceError::Failed(format!("the kept identity is damaged: {error}"))
            })?,
        };
        let mut writer = Writer::new(keys, &identity)?;
        if let Some(writer) = &mut writer {
            writer.own = records.own_heads(writer.number)?.into_iter().collect();
            writer.confirmed = records.confirmed(writer.number)?;
            writer.last = records.sequence(writer.number)?;
            writer.reserved = writer.last;
        }
        let StateRecord {
            root,
            covers,
            clock,
        } = records.state()?;
        let mut state = Self {
            root,
            covers,
            parts: Vec::new(),
            waits_for_merge: None,
            writes_looked_at: None,
            outdated: records.outdated()?.map(Outdated::from),
            hints_looked_after: None,
            first: None,
            clock,
            heads: HeadSet::default(),
            seen_heads: Recent::new(SEEN_HEADS_MAX),
            given_up: Recent::new(SEEN_HEADS_MAX),
            showed: Recent::new(SEEN_HEADS_MAX),
            overlay: Overlay::new(),
            pending_kept: false,
            kept_made: 0,
            kept: None,
            unfinished: None,
            committing: None,
            identity,
            writer,
            has_heard: false,
            redo: records.redo()?,
            join_due: None,
        };
        // The process ended before all of it was where it belongs. It comes before the others: one of them may cover it.
        let signed = records.signed()?;
        if let Some(Signed { head, own, .. }) = &signed {
            state.saw(head.time);
            (state.root, state.covers) = (Some(head.root), head.covers.clone());
            if let Some(writer) = &mut state.writer
                && writer.number == head.writer
            {
                writer.own.insert(head.sequence, *own);
            }
            state.seen_heads.put(head.digest(), ());
            state.heads.offer(head.clone(), true);
        }
        let mut on_disk = Vec::new();
        for bytes in records.heads()? {
            let head = Head::decode(&bytes)
                .map_err(|error| NamespaceError::Failed(format!("a kept head: {error}")))?;
            let head = known(&head, bytes);
            let digest = head.digest();
            state.saw(head.time);
            on_disk.push(head.clone());
            state.heads.offer(head, false);
            state.seen_heads.put(digest, ());
        }
        if let Some(signed) = signed {
            let head = &signed.head;
            let is_dropped = |other: &KnownHead| other != head && other.covered_by(head);
            state.unfinished = Some(Arc::new(Unfinished {
                dropped: on_disk.into_iter().filter(is_dropped).collect(),
                signed,
            }));
        }
        // Its root may not have been looked at yet.
        let first = state
            .heads
            .iter()
            .find(|head| Some(head.root) == state.root);
        state.first = first.map(KnownHead::digest);
        let unfinished = state.unfinished.clone();
        let changed = unfinished.as_ref().and_then(|it| it.signed.kept.as_ref());
        let found = match changed {
            Some(_) => None,
            None => Some(records.pending()?),
        };
        let kept = changed.or(found.as_ref());
        state.pending_kept = kept.is_some_and(|kept| !kept.is_empty());
        if let Some(writer) = &state.writer {
            state.kept = records.kept(writer.number)?;
        }
        if let Some(kept) = kept.filter(|_| state.writer.is_some()) {
            // Kept without the clock, which may have been set back since.
            let times = kept.pending.iter().map(|(_, pending)| pending.time);
            let times = times.chain(kept.renames.iter().map(|rename| rename.time));
            state.saw(times.max().unwrap_or_default());
            state.overlay.restore(kept);
            state.kept_made = state.overlay.generation();
        }
        Ok(state)
    }

    /// The last sequence with which all local changes made before are on disk: in an own head, or kept without one.
    pub(super) fn last_commit(&self) -> Option<Dot> {
        let writer = self.writer.as_ref()?;
        let head = writer.own.iter().rev().find(|(_, head)| head.commits);
        let head = head.map(|(&sequence, _)| Dot {
            writer: writer.number,
            sequence,
        });
        let kept = self.kept.filter(|kept| kept.writer == writer.number);
        head.max(kept)
    }

    /// What the next head has is not decided any more. The sequence that was thought of is used up, with or without a head:
    /// what was changed meanwhile was told that it comes later.
    pub(super) fn end_commit(&mut self) {
        if let (Some(thought_of), Some(writer)) = (self.committing.take(), &mut self.writer) {
            writer.last = writer.last.max(thought_of);
        }
    }

    pub(super) fn record(&self) -> StateRecord {
        StateRecord {
            root: self.root,
            covers: self.covers.clone(),
            clock: self.clock,
        }
    }

    /// The record of pending changes has these from now on, and no later ones than there are.
    pub(super) fn now_kept(&mut self, kept: &Kept) {
        self.pending_kept = !kept.is_empty();
        self.keeps_up_to_now();
    }

    /// The record of pending changes may have any that were made until now.
    pub(super) fn keeps_up_to_now(&mut self) {
        self.kept_made = self.overlay.generation();
    }

    /// Heads that are neither merged nor shown yet.
    pub(super) fn unseen_heads(&self) -> usize {
        let is_shown = |head: &&KnownHead| self.parts.iter().any(|part| part.root == head.root);
        self.heads.unmerged().filter(|head| !is_shown(head)).count()
    }

    /// What is shown: the merged state, and heads whose merging can wait, as if they were merged.
    pub(super) fn view(&self) -> Option<View> {
        let state = (self.root?, self.covers.clone());
        let parts = self.parts.iter();
        let parts = parts.map(|part| (part.root, part.covers.clone()));
        Some(View::new(std::iter::once(state).chain(parts)))
    }

    /// The root of what is shown, where that is the merged state alone.
    pub(super) fn only_root(&self) -> Option<NodeHash> {
        self.root.filter(|_| self.parts.is_empty())
    }

    /// The state moves on; parts that it includes now need not be shown beside it.
    pub(super) fn set_state(&mut self, root: NodeHash, covers: CausalContext) {
        self.root = Some(root);
        self.covers = covers;
        let covers = &self.covers;
        self.parts.retain(|part| !covers.includes(&part.covers));
        self.waits_for_merge = None;
    }

    pub(super) fn has_head(&self) -> bool {
        self.root.is_some() || !self.heads.is_empty()
    }

    /// The next moment of the hybrid clock.
    pub(super) fn tick(&mut self, wall_ns: u64) -> HybridTime {
        self.clock = after(self.clock, wall_ns);
        self.clock
    }

    /// Takes local changes.
    pub(super) fn change(&mut self, edits: Vec<Edit>, wall_ns: u64) {
        let clock = &mut self.clock;
        self.overlay.change(edits, || {
            *clock = after(*clock, wall_ns);
            *clock
        });
    }

    /// Works out local changes: see [`Overlay::prepare`].
    pub(super) fn prepare(&mut self, edits: Vec<Edit>, call: &Arc<[u64]>, wall_ns: u64) -> Changes {
        let clock = &mut self.clock;
        self.overlay.prepare(edits, call, || {
            *clock = after(*clock, wall_ns);
            *clock
        })
    }

    /// Whether changes can be made at all.
    pub(super) fn check_writable(&self) -> Result<(), NamespaceError> {
        match (&self.writer, self.root) {
            (None, _) => Err(NamespaceError::ReadOnly),
            (_, None) => Err(NamespaceError::NoHead),
            _ => Ok(()),
        }
    }

    /// Notes that what was changed last was a rename from one path to another, if it was.
    pub(super) fn note_rename(&mut self, rename: Option<(TreePath, TreePath)>, wall_ns: u64) {
        if let Some((from, to)) = rename {
            let time = self.tick(wall_ns);
            self.overlay.renamed(from, to, time);
        }
    }

    /// Notes that those who could be asked lack nodes of a head. How long that has been so.
    pub(super) fn denied(&mut self, digest: &[u8; 32], now: Instant) -> Duration {
        match self.heads.denied(digest, now) {
            Some((since, is_new)) => {
                if is_new {
                    // What seemed to add nothing to it may be shown again.
                    self.seen_heads.clear();
                }
                now.duration_since(since)
            }
            None => Duration::ZERO,
        }
    }

    /// Another head to show than the first one, where those who could be asked lack that.
    pub(super) fn another_first(&self) -> Option<&KnownHead> {
        let first = self.first.filter(|_| self.redo.is_none())?;
        let is_denied = self.heads.is_denied(&first);
        is_denied.then(|| self.heads.next_first(&first)).flatten()
    }

    /// Notes a moment that somebody else wrote at; verified heads are at most five minutes ahead.
    pub(super) fn saw(&mut self, time: HybridTime) {
        self.clock = self.clock.max(time);
    }

    /// Sees to it that a state which no single head stands for gets one: from this node, if no other does so in a while.
    pub(super) fn plan_join(&mut self, now: Instant, delay: impl FnOnce() -> Duration) {
        let needed = match self.root {
            Some(root) if self.writer.is_some() && self.redo.is_none() => {
                !self.heads.represents(root, &self.covers)
            }
            _ => false,
        };
        if !needed {
            self.join_due = None;
        } else if self.join_due.is_none() {
            self.join_due = Some(now + delay());
        }
    }
}

/// The moment after another: what the clock on the wall says, if that goes forward.
fn after(last: HybridTime, wall_ns: u64) -> HybridTime {
    HybridTime(wall_ns.max(last.0.saturating_add(1)))
}

/// What matters here of a head.
pub(super) fn known(head: &Head, bytes: Vec<u8>) -> KnownHead {
    KnownHead {
        bytes,
        root: head.root,
        covers: head.covers.clone(),
        writer: head.writer,
        sequence: head.sequence,
        time: head.time,
    }
}
