//! One member's replica of the manifest: what it knows, and every decision about it.
//!
//! No clock, no network and no randomness of its own: the moment comes with each call, the random source when it is opened,
//! heads and nodes of others are brought by the caller, and what a call leads to is told as [`Event`]s. The namespace around
//! it runs it on a real disk and network, the simulation on simulated ones.
//!
//! Lock order: `turn`, then `state`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use libp2p::{PeerId, identity::Keypair};
use parking_lot::{Mutex, RwLock};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Arrival, Edit, MadeOf, NamespaceError, NamespaceStatus, Published,
    disk::Disk,
    heads::KnownHead,
    looked::Looked,
    merge::Eagerness,
    nodes::Nodes,
    overlay::{Changes, PORTION_MAX, over_children},
    records::{Kept, Records},
    state::{State, Writer},
};
use crate::{
    cluster::{ClusterKeys, HEAD_FUTURE_MAX_NS},
    manifest::{self, Dot, FileId, HybridTime, Kind, Name, Shown, TreeError, TreePath, View},
    net::proto::{HEADS_MAX, NAMED_MAX},
};

/// How far apart the sequences of two processes are at most: so many that two which go on from the same state hardly sign the same.
const SEQUENCES_APART_MAX: u64 = 1 << 20;
/// Most bytes of the heads that others are told of at once: they fit one message.
const HEADS_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// For waits.
    pub(super) at: Instant,
    /// Nanoseconds since 1970, for what is written.
    pub(super) wall_ns: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            at: Instant::now(),
            wall_ns: since.map_or(0, |since| {
                u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
            }),
        }
    }
}

/// What a call led to.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A head was signed.
    Published(Arc<Published>),
    /// What is shown has changed by a head of another.
    Changed(Arrival),
    /// Whether a head is known has changed, or may have.
    HeadKnown(bool),
    /// There may be something to commit.
    ToCommit,
    /// There may be something to merge.
    ToMerge,
    /// What is shown of a head that is not merged yet turned out to be bad: [`Replica::need_all`] is to be called.
    ToMergeAll,
    /// What was here of an earlier state may be brought up to the present one now.
    ToBringUp,
    /// A peer showed a head of its own making that is not what a head must be.
    Offence(PeerId, String),
}

/// See the module.
pub(super) struct Replica<D> {
    pub(super) records: Records<D>,
    pub(super) nodes: Nodes<D>,
    looked: Looked,
    pub(super) keys: ClusterKeys,
    pub(super) node_name: String,
    /// Held by whoever moves root, context, sequence or identity.
    pub(super) turn: Mutex<()>,
    /// Held for writing in the moment in which it is decided what the next head has.
    pub(super) choosing: RwLock<()>,
    pub(super) state: RwLock<State>,
    /// The last sequence with which local changes were on disk when this was opened.
    found: Option<Dot>,
    random: Mutex<StdRng>,
    pub(super) eagerness: Eagerness,
    tell: Box<dyn Fn(Event) + Send + Sync>,
}

impl<D: Disk> Replica<D> {
    /// Opens the state kept on the disk; `identity` signs heads unless another has taken its place. `seed` is where all its
    /// randomness comes from, new identities included.
    pub(super) fn open(
        disk: D,
        keys: ClusterKeys,
        identity: Keypair,
        node_name: String,
        seed: [u8; 32],
        tell: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, NamespaceError> {
        let records = Records::new(disk.clone());
        let mut state = State::load(&records, &keys, identity)?;
        let mut random = StdRng::from_seed(seed);
        let found = state.last_commit();
        if let Some(writer) = state.writer.as_mut().filter(|writer| writer.last > 0) {
            writer.begin(random.random_range(1..=SEQUENCES_APART_MAX));
        }
        Ok(Self {
            found,
            records,
            nodes: Nodes::new(disk),
            looked: Looked::default(),
            keys,
            node_name,
            turn: Mutex::new(()),
            choosing: RwLock::new(()),
            state: RwLock::new(state),
            random: Mutex::new(random),
            eagerness: Eagerness::default(),
            tell: Box::new(tell),
        })
    }

    pub(super) fn tell(&self, event: Event) {
        (self.tell)(event);
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.random.lock())
    }

    /// A fresh network identity.
    pub(super) fn new_identity(&self) -> Result<Keypair, NamespaceError> {
        let mut secret: [u8; 32] = self.random(|random| random.random());
        // Wipes `secret`.
        Keypair::ed25519_from_bytes(&mut secret)
            .map_err(|error| NamespaceError::Failed(error.to_string()))
    }

    /// Reads what is shown. Where a tree is not what it must be, the heads that are shown and not merged are merged now: the
    /// one whose tree it is will be refused.
    fn look<T>(
        &self,
        view: &View,
        read: impl Fn(&View) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        let read = read(view);
        if matches!(read, Err(TreeError::Misplaced(_))) && view.roots().count() > 1 {
            self.tell(Event::ToMergeAll);
        }
        read
    }

    /// Has all heads merged, whatever that takes.
    pub(super) fn need_all(&self) {
        if self.state.write().heads.need(|_| true) {
            self.tell(Event::ToMerge);
        }
    }

    /// See [`super::Namespace::get`].
    pub(super) fn get(&self, path: &TreePath) -> Result<Option<Shown>, NamespaceError> {
        let state = self.state.read();
        if state.root.is_none() {
            return Err(NamespaceError::NoHead);
        }
        if path.names().is_empty() {
            return Ok(Some(Shown::implied_directory()));
        }
        let shown = match state.overlay.entry(path) {
            Some(shown) => Some(shown),
            None => {
                let look = |view: &View| manifest::lookup(&self.nodes, view, path);
                let tree = match state.only_root() {
                    Some(root) => {
                        let look = || look(&View::of(root));
                        self.looked.shown(root, path, look)?
                    }
                    None => self.look(&state.view().ok_or(NamespaceError::NoHead)?, look)?,
                };
                state.overlay.over(path, tree)
            }
        };
        match shown {
            Some(shown) if matches!(shown.entry.kind, Kind::Link(_)) => {
                let view = state.view().ok_or(NamespaceError::NoHead)?;
                self.resolve(&view, &state.overlay.records(), shown)
                    .map(Some)
            }
            shown => Ok(shown),
        }
    }

    /// A name that may be one of several of a file, with what the file is.
    fn resolve(
        &self,
        view: &View,
        pending: &BTreeMap<FileId, (Shown, bool)>,
        shown: Shown,
    ) -> Result<Shown, NamespaceError> {
        let Kind::Link(file) = shown.entry.kind else {
            return Ok(shown);
        };
        let pending = pending.get(&file);
        if let Some((record, false)) = pending {
            return Ok(shown.with_record(file, record.clone()));
        }
        let resolve = |view: &View| manifest::resolve(&self.nodes, view, shown.clone());
        let resolved = self.look(view, resolve)?;
        Ok(match pending {
            Some((record, _)) if resolved.link.is_none() => {
                resolved.with_record(file, record.clone())
            }
            _ => resolved,
        })
    }

    /// See [`super::Namespace::names_of`].
    pub(super) fn names_of(&self, file: FileId) -> Result<BTreeSet<TreePath>, NamespaceError> {
        let state = self.state.read();
        let view = state.view().ok_or(NamespaceError::NoHead)?;
        let tree = self.look(&view, |view| manifest::names(&self.nodes, view, &file))?;
        Ok(state.overlay.names(file, tree))
    }

    /// See [`super::Namespace::count_names`].
    pub(super) fn count_names(&self, file: FileId) -> Result<u64, NamespaceError> {
        {
            let state = self.state.read();
            let view = state.view().ok_or(NamespaceError::NoHead)?;
            if state.overlay.len() == 0 {
                return Ok(self.look(&view, |view| {
                    manifest::count_names(&self.nodes, view, &file)
                })?);
            }
        }
        Ok(self.names_of(file)?.len() as u64)
    }

    /// The direct children of a folder in byte order of their names.
    pub(super) fn children(&self, folder: &TreePath) -> Result<Vec<(Name, Shown)>, NamespaceError> {
        // Read together, they show one moment; a large folder takes its time.
        let (view, pending) = {
            let state = self.state.read();
            let pending = (state.overlay.changes_below(folder), state.overlay.records());
            (state.view(), pending)
        };
        let (pending, records) = pending;
        let view = view.ok_or(NamespaceError::NoHead)?;
        let tree = self.look(&view, |view| manifest::children(&self.nodes, view, folder))?;
        let mut children = over_children(folder, tree, &pending);
        let mut missing = BTreeSet::new();
        for (_, shown) in &mut children {
            if matches!(shown.entry.kind, Kind::Link(_)) {
                match self.resolve(&view, &records, shown.clone()) {
                    Ok(resolved) => *shown = resolved,
                    Err(NamespaceError::Missing(nodes)) => missing.extend(nodes),
                    Err(error) => return Err(error),
                }
            }
        }
        if missing.is_empty() {
            Ok(children)
        } else {
            let missing = missing.into_iter().take(NAMED_MAX);
            Err(NamespaceError::Missing(missing.collect()))
        }
    }

    /// Everything below a folder, parents before children.
    pub(super) fn below(
        &self,
        folder: &TreePath,
    ) -> Result<Vec<(TreePath, Shown)>, NamespaceError> {
        let mut found: Vec<(TreePath, Shown)> = Vec::new();
        let mut missing = BTreeSet::new();
        let mut folders = vec![folder.clone()];
        while !folders.is_empty() {
            let mut deeper = Vec::new();
            for folder in &folders {
                let children = match self.children(folder) {
                    Err(NamespaceError::Missing(nodes)) => {
                        missing.extend(nodes);
                        continue;
                    }
                    children => children?,
                };
                for (name, shown) in children {
                    // A longer path than is allowed cannot stand in a valid tree.
                    let Ok(path) = folder.join(&name) else {
                        continue;
                    };
                    if shown.entry.kind == manifest::Kind::Directory {
                        deeper.push(path.clone());
                    }
                    found.push((path, shown));
                }
            }
            folders = deeper;
        }
        if missing.is_empty() {
            Ok(found)
        } else {
            Err(NamespaceError::Missing(
                missing.into_iter().take(NAMED_MAX).collect(),
            ))
        }
    }

    /// See [`super::Namespace::folder_newest`].
    pub(super) fn folder_newest(&self, folder: &TreePath) -> Result<HybridTime, NamespaceError> {
        let state = self.state.read();
        let look = |view: &View| manifest::folder_newest(&self.nodes, view, folder);
        let newest = match state.only_root() {
            Some(root) => {
                let look = || look(&View::of(root));
                self.looked.newest(root, folder, look)?
            }
            None => self.look(&state.view().ok_or(NamespaceError::NoHead)?, look)?,
        };
        Ok(newest
            .unwrap_or_default()
            .max(state.overlay.folder_newest(folder).unwrap_or_default()))
    }

    /// Applies local changes at once, to be committed together.
    pub(super) fn change(&self, edits: Vec<Edit>, now: Moment) -> Result<(), NamespaceError> {
        self.apply(edits, None, now)
    }

    /// The same, where they rename one path to another.
    pub(super) fn apply(
        &self,
        edits: Vec<Edit>,
        rename: Option<(TreePath, TreePath)>,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        check(&edits)?;
        {
            let mut state = self.state.write();
            state.check_writable()?;
            let rename = rename.filter(|_| are_known(&edits));
            state.change(edits, now.wall_ns);
            state.note_rename(rename, now.wall_ns);
        }
        self.tell(Event::ToCommit);
        Ok(())
    }

    /// The same for many changes, in two steps: they are gathered and worked out now, in which others go on looking and
    /// changing, and what this returns makes all of them at once, in a moment. Until then nothing is committed or merged,
    /// so they are of what is there. The edits are of different paths; until they are made, or given up, the caller keeps
    /// others from changing what they are of.
    pub(super) fn prepare<E: From<NamespaceError>>(
        &self,
        gather: impl FnOnce() -> Result<Vec<Edit>, E>,
        rename: Option<(TreePath, TreePath)>,
        now: Moment,
    ) -> Result<Box<dyn FnOnce() + '_>, E> {
        let turn = self.turn.lock();
        self.state.read().check_writable()?;
        let edits = gather()?;
        check(&edits)?;
        let rename = rename.filter(|_| are_known(&edits));
        let call = self.state.write().overlay.call();
        let mut prepared = Changes::with_capacity(edits.len());
        let mut edits = edits.into_iter();
        loop {
            let portion: Vec<_> = edits.by_ref().take(PORTION_MAX).collect();
            if portion.is_empty() {
                break;
            }
            prepared.extend(self.state.write().prepare(portion, &call, now.wall_ns));
        }
        let prepared = prepared.into_iter().collect();
        Ok(Box::new(move || {
            {
                let mut state = self.state.write();
                state.overlay.put(prepared);
                state.note_rename(rename, now.wall_ns);
            }
            drop(turn);
            self.tell(Event::ToCommit);
        }))
    }

    /// See [`super::Namespace::committed_by`].
    pub(super) fn committed_by(&self) -> Option<Dot> {
        let state = self.state.read();
        if state.redo.is_some() {
            return None;
        }
        let writer = state.writer.as_ref()?;
        Some(Dot {
            writer: writer.number,
            // One that is being made was begun before.
            sequence: state.committing.unwrap_or(writer.last) + 1,
        })
    }

    /// See [`super::Namespace::was_committed`].
    pub(super) fn was_committed(&self, by: Dot) -> bool {
        self.found
            .is_some_and(|found| found.writer == by.writer && found.sequence >= by.sequence)
    }

    /// See [`super::Namespace::is_committed`].
    pub(super) fn is_committed(&self, by: Dot) -> bool {
        let state = self.state.read();
        let is_own = |writer: &Writer| writer.number == by.writer;
        !state.writer.as_ref().is_some_and(is_own)
            || state
                .last_commit()
                .is_some_and(|last| last.sequence >= by.sequence)
    }

    /// Makes what is pending durable without a head.
    pub(super) fn keep_pending(&self) -> Result<(), NamespaceError> {
        let _turn = self.take_turn()?;
        // By itself: a `match` on it would hold the lock that a new reservation takes.
        let is_writer = self.state.read().writer.is_some();
        let kept = match is_writer {
            true => Some(self.next_dot(1)?),
            false => None,
        };
        let pending = {
            let _choosing = self.choosing.write();
            let mut state = self.state.write();
            state.pending_kept = true;
            state.kept_made = state.overlay.generation();
            // What is changed from now on is not in it, so the sequence is used up.
            if let (Some(kept), Some(writer)) = (kept, &mut state.writer) {
                writer.last = kept.sequence;
            }
            Kept {
                pending: state.overlay.ready(),
                renames: state.overlay.renames(),
            }
        };
        self.records.save_pending(&pending)?;
        match kept {
            Some(kept) => self.note_kept(kept),
            None => self.records.flush(),
        }
    }

    /// `turn` is held. Notes on disk that all local changes made before this sequence are there, though no head has it.
    pub(super) fn note_kept(&self, kept: Dot) -> Result<(), NamespaceError> {
        self.records.save_kept(kept)?;
        self.records.flush()?;
        self.state.write().kept = Some(kept);
        Ok(())
    }

    /// Heads for others, encoded; at most 256, the newest.
    pub(super) fn heads(&self) -> Vec<Vec<u8>> {
        let state = self.state.read();
        let mut left = HEADS_BYTES_MAX;
        let fits = |head: &&KnownHead| {
            left = left.saturating_sub(head.bytes.len());
            left > 0
        };
        let heads = state.heads.for_others().into_iter().take(HEADS_MAX);
        heads
            .take_while(fits)
            .map(|head| head.bytes.clone())
            .collect()
    }

    pub(super) fn made_of(&self) -> Result<Option<MadeOf>, NamespaceError> {
        let state = self.state.read();
        let Some(root) = state.root.filter(|_| state.unseen_heads() == 0) else {
            return Ok(None);
        };
        let parts = state.parts.iter().map(|part| part.root);
        let mut pending = state.overlay.contents();
        // The disk may have earlier ones, which a crash brings back.
        let unfinished = state.unfinished.clone();
        let signed = unfinished.as_ref().and_then(|it| it.signed.kept.as_ref());
        let found = match signed {
            None if state.pending_kept => Some(self.records.pending()?),
            _ => None,
        };
        let kept = signed.or(found.as_ref());
        let kept = kept.into_iter().flat_map(|kept| &kept.pending);
        pending.extend(kept.flat_map(|(_, kept)| kept.contents()));
        Ok(Some(MadeOf {
            roots: std::iter::once(root).chain(parts).collect(),
            pending,
        }))
    }

    /// For how long others, whose clocks are right, refuse what is signed here, as it is later than now by more than they allow.
    pub(super) fn clock_ahead(&self, now: Moment) -> Option<Duration> {
        let clock = self.state.read().clock;
        let refused_ns = clock
            .0
            .checked_sub(now.wall_ns.saturating_add(HEAD_FUTURE_MAX_NS))?;
        (refused_ns > 0).then(|| Duration::from_nanos(refused_ns))
    }

    pub(super) fn status(&self) -> NamespaceStatus {
        let state = self.state.read();
        let summary = |root| manifest::summary(&self.nodes, root).ok();
        let summary = state.root.and_then(summary);
        NamespaceStatus {
            root: state.root,
            summary,
            unpublished: state.overlay.len() as u64,
            conflicts: summary.map_or(0, |summary| summary.conflicts),
        }
    }
}

/// What an edit may say.
fn check(edits: &[Edit]) -> Result<(), NamespaceError> {
    for edit in edits {
        if edit.path.names().is_empty() {
            return Err(NamespaceError::Failed(
                "the root folder has no entry of its own".into(),
            ));
        }
        if let Some(entry) = &edit.entry {
            entry
                .check()
                .map_err(|error| NamespaceError::Failed(format!("{}: {error}", edit.path)))?;
        }
    }
    Ok(())
}

/// Whether a rename moves what others may have seen: nothing else needs a hint of where it went.
fn are_known(edits: &[Edit]) -> bool {
    let mut edits = edits.iter();
    edits.any(|edit| edit.entry.is_none() && !edit.seen.is_empty())
}
