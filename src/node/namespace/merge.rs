//! The merger: brings the heads of others into the state.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio_util::sync::CancellationToken;

use super::{
    FETCH_MAX, NamespaceError, RemoteChanges, Shared, blocking,
    heads::{KnownHead, Way},
    pace::BackOff,
    state::{State, removed_from},
};
use crate::manifest::{self, Change, InternalKey, Key, NodeHash, NodeSource, TreeError, Version};

/// Rounds of fetching for one merge; each brings up to 1024 nodes.
const MERGE_ROUNDS_MAX: usize = 1024;
/// What is fetched at most to tell how a head that was taken over differs: the kernel's caches want it, and can do
/// without.
const DIFFERENCE_ROUNDS_MAX: usize = 16;
const DIFFERENCE_NODES_MAX: usize = 64;
const DIFFERENCE_TIME_MAX: Duration = Duration::from_secs(10);
/// Contents that gave way to others under the same number and are named in the log.
const CONTRADICTED_TOLD_MAX: usize = 64;
/// Changes that are named; more are "all".
const NAMED_CHANGES_MAX: usize = 4096;

/// What an attempt came to.
enum Step {
    /// The state holds the head.
    Done,
    /// It has become the state in place of this root.
    Adopted(NodeHash),
    /// These nodes are needed first.
    Missing(Vec<NodeHash>),
    /// Other work comes first, and will wake the merger.
    Later,
}

/// Merges until `closing`.
pub(super) async fn run(shared: Arc<Shared>, closing: CancellationToken) {
    tokio::select! {
        () = closing.cancelled() => {}
        () = merge_forever(&shared) => {}
    }
}

async fn merge_forever(shared: &Arc<Shared>) {
    let mut back_off = BackOff::default();
    loop {
        let retry = async {
            match back_off.until() {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.merge_wake.notified() => {}
            () = retry => {}
        }
        let heads = shared.state.read().heads.to_merge();
        let mut failed = false;
        for head in heads {
            if let Err(error) = shared.merge(&head).await {
                tracing::info!(writer = head.writer.0, sequence = head.sequence, %error, "a head waits to be merged");
                failed = true;
            }
        }
        if failed {
            back_off.failed(Instant::now());
        } else {
            back_off.reset();
        }
    }
}

impl Shared {
    async fn merge(self: &Arc<Self>, head: &KnownHead) -> Result<(), NamespaceError> {
        let digest = head.digest();
        let from = self.state.write().showed.get(&digest);
        for _ in 0..MERGE_ROUNDS_MAX {
            let shared = self.clone();
            match blocking(move || shared.merge_step(digest)).await? {
                Step::Done | Step::Later => return Ok(()),
                Step::Adopted(old) => {
                    self.tell_difference(old, head, from).await;
                    return Ok(());
                }
                Step::Missing(nodes) => {
                    let count = nodes.len();
                    if self.bring(nodes, from, FETCH_MAX).await? == 0 {
                        return Err(NamespaceError::Unreachable(format!(
                            "nobody gave any of {count} nodes"
                        )));
                    }
                }
            }
        }
        Err(NamespaceError::Unreachable(
            "the merge needs more nodes than are fetched in one go".into(),
        ))
    }

    /// One attempt, with the nodes that are here.
    fn merge_step(&self, digest: [u8; 32]) -> Result<Step, NamespaceError> {
        let _turn = self.turn.lock();
        let (head, way, root, covers) = {
            let state = self.state.read();
            let head = state.heads.iter().find(|head| head.digest() == digest);
            let (Some(root), Some(head)) = (state.root, head) else {
                return Ok(Step::Done);
            };
            if state.redo.is_some() {
                return Ok(Step::Later);
            }
            let Some(way) = state.heads.way(&digest, root, &state.covers) else {
                return Ok(Step::Done);
            };
            (head.clone(), way, root, state.covers.clone())
        };
        let mut joined = covers.clone();
        joined.join(&head.covers);
        let merge = |ours, theirs| manifest::merge(&self.nodes, (root, ours), (head.root, theirs));
        let merged = match &way {
            Way::InState => {
                let mut state = self.state.write();
                state.heads.set_in_state(&digest);
                state.plan_join(Instant::now());
                return Ok(Step::Done);
            }
            Way::Adopt => {
                let empty = manifest::empty_root();
                let at_hand = head.root == empty || self.nodes.node(&head.root)?.is_some();
                if root != empty && !at_hand {
                    // Nobody may have it: what is here stays readable meanwhile.
                    return Ok(Step::Missing(vec![head.root]));
                }
                self.become_state(digest, head.root, joined, None)?;
                return Ok(Step::Adopted(root));
            }
            Way::Merge => merge(&covers, &head.covers),
            Way::Union(ours, theirs) => merge(ours, theirs),
        };
        let merged = match merged {
            Err(TreeError::Missing(nodes)) => return Ok(Step::Missing(nodes)),
            merged => merged?,
        };
        self.nodes.put(&merged.nodes)?;
        tell_contradicted(&merged.contradicted);
        self.become_state(digest, merged.root, joined, Some(&merged.changes))?;
        let _ = self.remote_changes.send(named(&merged.changes));
        Ok(Step::Done)
    }

    /// `turn` is held.
    fn become_state(
        &self,
        digest: [u8; 32],
        root: NodeHash,
        covers: manifest::CausalContext,
        changes: Option<&[Change]>,
    ) -> Result<(), NamespaceError> {
        let mut state = self.state.write();
        let mut record = state.record();
        record.root = Some(root);
        record.covers = covers.clone();
        self.records.save_state(&record)?;
        state.root = Some(root);
        state.covers = covers;
        state.heads.set_in_state(&digest);
        if let Some(changes) = changes {
            note_removals(&mut state, changes);
        }
        state.plan_join(Instant::now());
        drop(state);
        self.commit_wake.notify_one();
        Ok(())
    }

    /// Tells what a head that was taken over changes.
    async fn tell_difference(
        self: &Arc<Self>,
        old: NodeHash,
        head: &KnownHead,
        from: Option<PeerId>,
    ) {
        let looking = self.difference(old, head.root, from);
        let looked = tokio::time::timeout(DIFFERENCE_TIME_MAX, looking).await;
        let difference = looked.unwrap_or_default();
        let changes = match difference {
            Some(changes) => {
                note_removals(&mut self.state.write(), &changes);
                named(&changes)
            }
            None => RemoteChanges::All,
        };
        let _ = self.remote_changes.send(changes);
    }

    /// The changes between two roots; `None` when telling them would take too much.
    async fn difference(
        self: &Arc<Self>,
        old: NodeHash,
        new: NodeHash,
        from: Option<PeerId>,
    ) -> Option<Vec<Change>> {
        if old == manifest::empty_root() {
            return None;
        }
        for _ in 0..DIFFERENCE_ROUNDS_MAX {
            let shared = self.clone();
            let step = blocking(move || {
                Ok(manifest::diff(
                    &shared.nodes,
                    old,
                    new,
                    NAMED_CHANGES_MAX + 1,
                )?)
            });
            match step.await {
                Ok(changes) if changes.len() > NAMED_CHANGES_MAX => return None,
                Ok(changes) => return Some(changes),
                Err(NamespaceError::Missing(nodes)) if nodes.len() <= DIFFERENCE_NODES_MAX => {
                    if self.bring(nodes, from, DIFFERENCE_TIME_MAX).await.ok()? == 0 {
                        return None;
                    }
                }
                Err(NamespaceError::Missing(_)) => return None,
                Err(error) => {
                    tracing::warn!(%error, "the difference to a new head could not be told");
                    return None;
                }
            }
        }
        None
    }
}

fn note_removals(state: &mut State, changes: &[Change]) {
    let time = state.clock;
    let removed = |change: &Change| removed_from(&change.key, change.new.as_ref());
    state.note_removals(changes.iter().filter_map(removed), time);
}

/// What two machines wrote under one number cannot both be kept; what gives way is at least named, with its content.
fn tell_contradicted(contradicted: &[(Key, Version)]) {
    for (key, version) in contradicted.iter().take(CONTRADICTED_TOLD_MAX) {
        // A writer's row says the same on all its machines.
        if let Some(path) = key.path() {
            tracing::warn!(
                %path,
                writer = version.dot.writer.0,
                sequence = version.dot.sequence,
                dropped = ?version.entry.kind,
                "two machines wrote different contents under one number: one of them was dropped"
            );
        }
    }
    if contradicted.len() > CONTRADICTED_TOLD_MAX {
        let more = contradicted.len() - CONTRADICTED_TOLD_MAX;
        tracing::warn!(more, "further contents were dropped for the same reason");
    }
}

/// The paths of changes, as far as they can be named.
fn named(changes: &[Change]) -> RemoteChanges {
    let mut paths = BTreeSet::new();
    if changes.len() > NAMED_CHANGES_MAX {
        return RemoteChanges::All;
    }
    for change in changes {
        match (change.key.path(), change.key.internal()) {
            (Some(path), _) => {
                paths.insert(path);
            }
            (None, Some(InternalKey::Writer(_))) => {}
            // The names that share a file are not known from its record.
            (None, _) => return RemoteChanges::All,
        }
    }
    RemoteChanges::Paths(Arc::new(paths.into_iter().collect()))
}
