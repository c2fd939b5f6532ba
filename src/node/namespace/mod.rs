//! The namespace: the manifest as this node sees it now, with local changes that are not committed yet on top.
//!
//! - Readers see a consistent pair of merged root and pending changes; they never touch the network. What is not here is
//!   named, the caller fetches it and asks again.
//! - Local changes are visible at once. The committer groups them into heads: it makes a sequence durable, signs, keeps
//!   the head, and only then forgets that they were pending.
//! - Heads of others are checked before anything is done with them, and merged in the background. Nothing they bring is
//!   fetched but what a merge compares; a head that has seen all of this state becomes the state with its root node alone.
//! - A writer number is used by one machine. When it turns out that another uses it too (a restored backup, a clone), a
//!   new identity takes its place, and work that is not known to have reached anybody is signed again under it.
//!
//! Two tasks, the committer and the merger, move the state, one at a time (`turn`); neither holds `turn` while it waits
//! for the network, so local changes are published whether or not anybody answers.
//!
//! Lock order: `turn`, then `state`.

mod admit;
mod commit;
mod heads;
mod identity;
mod merge;
mod nodes;
mod overlay;
mod pace;
mod plan;
mod recent;
mod records;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use libp2p::{PeerId, identity::Keypair};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{nodes::Nodes, records::Records, state::State};
use crate::{
    cluster::{ClusterKeys, Head},
    manifest::{self, Dot, Entry, Name, NodeHash, Shown, Summary, Timestamp, TreeError, TreePath},
    net::proto::{HEADS_MAX, NAMED_MAX, Push},
    store::Store,
};

/// How long [`Namespace::flush`] waits for a head before it makes the pending changes durable without one.
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// How long the background tasks wait for nodes at a time.
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Announcements that a slow listener may be behind.
const ANNOUNCED_MAX: usize = 256;

/// Why the namespace could not answer.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Nodes are missing: call [`Namespace::fetch`] and ask again.
    #[error("{} manifest nodes are not here yet", .0.len())]
    Missing(Vec<NodeHash>),
    /// No head has ever been seen: nothing is known of the folder, not even that it is empty.
    #[error("no state of the cluster has been seen yet")]
    NoHead,
    /// This member may not write.
    #[error("the cluster id is read-only")]
    ReadOnly,
    /// Nobody could give the missing nodes in time.
    #[error("manifest nodes could not be fetched: {0}")]
    Unreachable(String),
    /// Damaged state or a failing disk.
    #[error("{0}")]
    Failed(String),
}

/// Brings manifest nodes: asks peers.
pub trait NodeFetcher: Send + Sync + 'static {
    /// Fetches encodings of these nodes (unchecked); those that could not be had are left out. Bounded by `within`.
    fn fetch(
        &self,
        nodes: Vec<NodeHash>,
        prefer: Option<PeerId>,
        within: Duration,
    ) -> BoxFuture<'static, Vec<Vec<u8>>>;
}

/// A local change.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Where.
    pub path: TreePath,
    /// The new entry; `None` deletes.
    pub entry: Option<Entry>,
    /// The versions it replaces. Others under the same key stay, as concurrent versions.
    pub seen: Vec<Dot>,
    /// Visible here, but not committed until an edit of the same path comes with `held` false: a file that is being
    /// written for the first time.
    pub held: bool,
}

/// A state that this node has just signed.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its head.
    pub head: Head,
    /// The push for the peers.
    pub push: Push,
}

/// Paths whose entries changed by a remote head; `All` when there are too many to name.
#[derive(Clone, Debug)]
pub enum RemoteChanges {
    /// These.
    Paths(Arc<Vec<TreePath>>),
    /// Anything may have changed.
    All,
}

/// What a push brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Nothing new.
    Known,
    /// A head that is to be passed on.
    News {
        /// Whether the changes that came with it were found to lead to its root. Others are not to be passed on with it:
        /// whoever passes them on answers for them.
        changes_hold: bool,
    },
}

/// Why a push was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedPush {
    /// Its sender could have known better.
    #[error("{0}")]
    Offence(String),
    /// Clocks that differ, a certificate out of its time, trouble on this machine.
    #[error("{0}")]
    Other(String),
}

/// Figures for `status`.
#[derive(Clone, Debug, Default)]
pub struct NamespaceStatus {
    /// Root of the merged state; `None` before the first head.
    pub root: Option<NodeHash>,
    /// What it holds.
    pub summary: Option<Summary>,
    /// Local changes that no head has yet.
    pub unpublished: u64,
    /// Paths that show conflict copies.
    pub conflicts: u64,
}

/// What the parts of the namespace share.
struct Shared {
    records: Records,
    nodes: Nodes,
    keys: ClusterKeys,
    node_name: String,
    fetcher: Arc<dyn NodeFetcher>,
    /// Held by whoever moves root, context, sequence or identity.
    turn: Mutex<()>,
    state: RwLock<State>,
    /// The last own head that was on disk when this was opened.
    found: Option<Dot>,
    /// There may be something to commit.
    commit_wake: Notify,
    /// There may be something to merge.
    merge_wake: Notify,
    /// Somebody waits in [`Namespace::flush`].
    hurry: AtomicBool,
    head_known: watch::Sender<bool>,
    progress: watch::Sender<Progress>,
    published: broadcast::Sender<Arc<Published>>,
    remote_changes: broadcast::Sender<RemoteChanges>,
}

/// What the committer's last attempt came to.
#[derive(Clone, Debug, Default)]
enum Progress {
    /// A commit, or nothing to do.
    #[default]
    Well,
    /// Nodes are missing and nobody gives them.
    Unreachable,
    /// The disk or the state fails.
    Failed(String),
}

/// The namespace. Cheap to clone.
#[derive(Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
    /// Ends the background tasks with the last clone.
    _running: Arc<DropGuard>,
}

impl Namespace {
    /// Opens the state kept in the store; `identity` signs heads unless another has taken its place, now (the store turns
    /// out to be a restored copy) or earlier: see [`Namespace::writer_identity`]. Starts the background tasks on the
    /// current runtime.
    pub fn open(
        store: Store,
        keys: ClusterKeys,
        identity: Keypair,
        node_name: String,
        fetcher: Arc<dyn NodeFetcher>,
    ) -> Result<Self, NamespaceError> {
        let restored = store.is_restored_copy();
        let records = Records::new(store.clone());
        let state = State::load(&records, &keys, identity)?;
        let found = state.last_signed();
        let shared = Arc::new(Shared {
            found,
            records,
            nodes: Nodes::new(store.clone()),
            keys,
            node_name,
            fetcher,
            turn: Mutex::new(()),
            head_known: watch::Sender::new(state.has_head()),
            state: RwLock::new(state),
            commit_wake: Notify::new(),
            merge_wake: Notify::new(),
            hurry: AtomicBool::new(false),
            progress: watch::Sender::new(Progress::Well),
            published: broadcast::Sender::new(ANNOUNCED_MAX),
            remote_changes: broadcast::Sender::new(ANNOUNCED_MAX),
        });
        if restored {
            shared.leave_identity_to_the_original()?;
            store.settle_here()?;
        }
        let closing = CancellationToken::new();
        tokio::spawn(commit::run(shared.clone(), closing.clone()));
        tokio::spawn(merge::run(shared.clone(), closing.clone()));
        shared.commit_wake.notify_one();
        shared.merge_wake.notify_one();
        Ok(Self {
            shared,
            _running: Arc::new(closing.drop_guard()),
        })
    }

    /// The identity in use: the one given to [`Namespace::open`], or the one that took its place and is kept here. The
    /// node goes by it on the network from its next start on.
    pub fn writer_identity(&self) -> Keypair {
        self.shared.state.read().identity.clone()
    }

    /// Signs and keeps the first, empty head; only when no head is known.
    pub fn create(&self) -> Result<Head, NamespaceError> {
        let head = self.shared.create()?;
        self.shared.head_known.send_replace(true);
        Ok(head)
    }

    /// Whether any head is known.
    pub fn has_head(&self) -> bool {
        *self.shared.head_known.borrow()
    }

    /// Returns true as soon as a head is known, false after `within`.
    pub async fn wait_head(&self, within: Duration) -> bool {
        let mut known = self.shared.head_known.subscribe();
        tokio::time::timeout(within, known.wait_for(|known| *known))
            .await
            .is_ok_and(|known| known.is_ok())
    }

    /// What is under a path, conflict copies included; `None` when nothing. The root is a directory.
    pub fn get(&self, path: &TreePath) -> Result<Option<Shown>, NamespaceError> {
        let state = self.shared.state.read();
        let root = state.root.ok_or(NamespaceError::NoHead)?;
        if path.names().is_empty() {
            return Ok(Some(Shown::implied_directory()));
        }
        if let Some(shown) = state.overlay.entry(path) {
            return Ok(Some(shown));
        }
        let tree = manifest::lookup(&self.shared.nodes, root, path)?;
        Ok(state.overlay.over(path, tree))
    }

    /// The direct children of a folder in byte order of their names.
    pub fn children(&self, folder: &TreePath) -> Result<Vec<(Name, Shown)>, NamespaceError> {
        let state = self.shared.state.read();
        let root = state.root.ok_or(NamespaceError::NoHead)?;
        let tree = manifest::children(&self.shared.nodes, root, folder)?;
        Ok(state.overlay.over_children(folder, tree))
    }

    /// Everything below a folder, parents before children.
    pub fn below(&self, folder: &TreePath) -> Result<Vec<(TreePath, Shown)>, NamespaceError> {
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

    /// When a direct entry of the folder last changed, or the time that was set for the folder since.
    pub fn folder_modified(&self, folder: &TreePath) -> Result<Timestamp, NamespaceError> {
        let own = self.get(folder)?;
        let state = self.shared.state.read();
        let root = state.root.ok_or(NamespaceError::NoHead)?;
        let newest = manifest::folder_newest(&self.shared.nodes, root, folder)?
            .unwrap_or_default()
            .max(state.overlay.folder_modified(folder).unwrap_or_default())
            .max(state.removals.get(folder).copied().unwrap_or_default());
        Ok(match own {
            Some(own) if own.time >= newest && !folder.names().is_empty() => own.entry.modified,
            _ => Timestamp(i64::try_from(newest.0).unwrap_or(i64::MAX)),
        })
    }

    /// Fetches missing nodes. Returns once some of them are here: asking again tells what else is needed.
    pub async fn fetch(
        &self,
        missing: Vec<NodeHash>,
        within: Duration,
    ) -> Result<(), NamespaceError> {
        let count = missing.len();
        if count == 0 || self.shared.bring(missing, None, within).await? > 0 {
            return Ok(());
        }
        Err(NamespaceError::Unreachable(format!(
            "nobody gave any of {count} nodes within {} s",
            within.as_secs()
        )))
    }

    /// Applies local changes at once and wakes the committer. Those of one call are committed together.
    pub fn change(&self, edits: Vec<Edit>) -> Result<(), NamespaceError> {
        for edit in &edits {
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
        {
            let mut state = self.shared.state.write();
            if state.writer.is_none() {
                return Err(NamespaceError::ReadOnly);
            }
            if state.root.is_none() {
                return Err(NamespaceError::NoHead);
            }
            for edit in edits {
                let time = state.tick(wall_ns());
                state.overlay.change(edit, time);
            }
        }
        self.shared.commit_wake.notify_one();
        Ok(())
    }

    /// A head of this node's by which all changes made so far, but for what is held, are committed: it or any later one has
    /// them. `None` when that can't be told now.
    pub fn committed_by(&self) -> Option<Dot> {
        // One that is being made right now may have been begun before the last change.
        let is_quiet = self.shared.turn.try_lock().is_some();
        let state = self.shared.state.read();
        if state.redo.is_some() {
            return None;
        }
        let writer = state.writer.as_ref()?;
        Some(Dot {
            writer: writer.number,
            sequence: writer.last + if is_quiet { 1 } else { 2 },
        })
    }

    /// Whether an earlier process has put a head on disk by which what [`Namespace::committed_by`] said there is committed.
    /// Heads of this process don't count, since it goes on behind the sequences that the earlier one may have used.
    pub fn was_committed(&self, by: Dot) -> bool {
        self.shared
            .found
            .is_some_and(|found| found.writer == by.writer && found.sequence >= by.sequence)
    }

    /// Returns when everything changed before, but for what is held, is in a signed head and on disk. Where no head can be
    /// made of it within 10 s (nodes that nobody gives), it is on disk to be committed later, after a restart too.
    pub async fn flush(&self) -> Result<(), NamespaceError> {
        let shared = &self.shared;
        let up_to = shared.state.read().overlay.generation();
        let mut progress = shared.progress.subscribe();
        let deadline = tokio::time::Instant::now() + FLUSH_MAX;
        while shared.state.read().overlay.waits(up_to) {
            shared.hurry.store(true, Ordering::Release);
            shared.commit_wake.notify_one();
            let unreachable = match tokio::time::timeout_at(deadline, progress.changed()).await {
                Err(_) | Ok(Err(_)) => true,
                Ok(Ok(())) => match &*progress.borrow_and_update() {
                    Progress::Well => false,
                    Progress::Unreachable => true,
                    Progress::Failed(reason) => return Err(NamespaceError::Failed(reason.clone())),
                },
            };
            if unreachable {
                let shared = shared.clone();
                return blocking(move || shared.keep_pending()).await;
            }
        }
        Ok(())
    }

    /// Heads that no other known head covers, encoded; at most 256, the newest.
    pub fn heads(&self) -> Vec<Vec<u8>> {
        let state = self.shared.state.read();
        let mut heads: Vec<_> = state.heads.iter().collect();
        heads.sort_by_key(|head| std::cmp::Reverse(head.time));
        heads
            .into_iter()
            .take(HEADS_MAX)
            .map(|head| head.bytes.clone())
            .collect()
    }

    /// The encoding of a node that is here, for peers.
    pub fn node(&self, hash: &NodeHash) -> Option<bytes::Bytes> {
        self.shared.nodes.encoded(hash).unwrap_or_else(|error| {
            tracing::warn!(%error, "a manifest node could not be read for a peer");
            None
        })
    }

    /// Takes heads that a peer or tracker showed; bad ones are refused with the reason, good ones merged in the background.
    pub async fn take_heads(
        &self,
        from: Option<PeerId>,
        heads: Vec<Vec<u8>>,
    ) -> Result<(), String> {
        if heads.len() > HEADS_MAX {
            return Err(format!("{} heads at once are too many", heads.len()));
        }
        let shared = self.shared.clone();
        blocking(move || Ok(shared.admit(from, heads)))
            .await
            .map_err(|error| error.to_string())?
            .1
    }

    /// Takes a MANIFEST_UPDATED push.
    pub async fn take_push(&self, from: PeerId, push: Push) -> Result<Pushed, RefusedPush> {
        let Push::Manifest {
            head,
            base,
            changes,
        } = push
        else {
            return Err(RefusedPush::Other("not a push of a head".into()));
        };
        let shared = self.shared.clone();
        blocking(move || Ok(shared.admit_push(from, head.into_vec(), base, changes)))
            .await
            .map_err(|error| RefusedPush::Other(error.to_string()))?
    }

    /// Newly signed heads.
    pub fn published(&self) -> broadcast::Receiver<Arc<Published>> {
        self.shared.published.subscribe()
    }

    /// Remote changes, for the kernel's caches. A listener that falls behind is to take it for [`RemoteChanges::All`].
    pub fn remote_changes(&self) -> broadcast::Receiver<RemoteChanges> {
        self.shared.remote_changes.subscribe()
    }

    /// Figures.
    pub fn status(&self) -> NamespaceStatus {
        let state = self.shared.state.read();
        let summary = |root| manifest::summary(&self.shared.nodes, root).ok();
        let summary = state.root.and_then(summary);
        NamespaceStatus {
            root: state.root,
            summary,
            unpublished: state.overlay.len() as u64,
            conflicts: summary.map_or(0, |summary| summary.conflicts),
        }
    }
}

impl Shared {
    /// Fetches nodes, keeps the good ones, and returns how many those are.
    async fn bring(
        self: &Arc<Self>,
        missing: Vec<NodeHash>,
        prefer: Option<PeerId>,
        within: Duration,
    ) -> Result<usize, NamespaceError> {
        let deadline = tokio::time::Instant::now() + within;
        let mut brought = 0;
        for nodes in missing.chunks(NAMED_MAX) {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let fetching = self.fetcher.fetch(nodes.to_vec(), prefer, left);
            let Ok(fetched) = tokio::time::timeout_at(deadline, fetching).await else {
                break;
            };
            let (shared, asked) = (self.clone(), nodes.to_vec());
            brought += blocking(move || Ok(shared.nodes.take(&asked, fetched)?))
                .await?
                .len();
        }
        Ok(brought)
    }

    /// Makes what is pending durable without a head.
    fn keep_pending(&self) -> Result<(), NamespaceError> {
        let _turn = self.turn.lock();
        let pending = {
            let mut state = self.state.write();
            state.pending_kept = true;
            state.overlay.ready()
        };
        self.records.save_pending(&pending)?;
        self.records.flush()
    }
}

impl From<TreeError> for NamespaceError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Missing(nodes) => Self::Missing(nodes),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Runs what blocks on the disk, or computes for long, beside the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NamespaceError> + Send + 'static,
) -> Result<T, NamespaceError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| NamespaceError::Failed(format!("the namespace stopped: {error}")))?
}

/// Nanoseconds since 1970.
fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}
