//! The namespace: the manifest as this node sees it now, with local changes that are not committed yet on top.
//!
//! - Readers see a consistent pair of merged root and pending changes; they never touch the network. What is not here is
//!   named, the caller fetches it and asks again.
//! - Local changes are visible at once. The committer groups them into heads: it makes a sequence durable, signs, keeps
//!   the head, and only then forgets that they were pending.
//! - Heads of others are checked before anything is done with them, and merged in the background. Of what
//!   they bring no more is fetched than a merge compares; a head that has seen all of this state becomes the state once it was
//!   compared with it, as far as that takes few nodes. What stands where nodes of the state before are here follows behind that.
//! - A writer number is used by one machine. When it turns out that another uses it too (a restored backup, a clone), a
//!   new identity takes its place, and work that is not known to have reached anybody is signed again under it.
//!
//! Two tasks, the committer and the merger, move the state, one at a time (`turn`); neither holds `turn` while it waits
//! for the network, so local changes are published whether or not anybody answers.
//!
//! Lock order: `turn`, `choosing`, `state`.

mod admit;
mod collect;
mod commit;
mod committer;
mod conflicts;
mod disk;
mod heads;
mod identity;
mod looked;
mod merge;
mod merger;
mod nodes;
mod overlay;
mod pace;
mod plan;
mod recent;
mod records;
mod refresh;
mod replica;
mod shown;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use libp2p::{PeerId, identity::Keypair};
use parking_lot::RwLockReadGuard;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::conflicts::Arrival;
use self::{
    merge::named,
    replica::{Event, Moment, Replica},
};
use crate::{
    cluster::{ClusterKeys, Head},
    content::Object,
    manifest::{
        Dot, Entry, FileId, HybridTime, Moved, Name, NodeHash, Shown, Summary, TreeError, TreePath,
    },
    net::proto::{HEADS_MAX, NAMED_MAX, Push},
    store::Store,
};

/// How long [`Namespace::flush`] waits for a head before it makes the pending changes durable without one.
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// How long the background tasks wait for nodes at a time.
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Announcements that a slow listener may be behind.
const ANNOUNCED_MAX: usize = 256;
/// Arrivals that one may be behind: they come with the changed entries.
const ARRIVALS_MAX: usize = 16;

/// Why the namespace could not answer.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// The disk has no room for what is to be kept.
    #[error("the disk is full")]
    Full,
    /// Damaged state or a failing disk.
    #[error("{0}")]
    Failed(String),
}

/// What asking for manifest nodes brought.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Encodings, unchecked.
    pub nodes: Vec<Vec<u8>>,
    /// Somebody who was asked said that they have none of what they were asked for.
    pub denied: bool,
}

/// Brings manifest nodes: asks peers.
pub trait NodeFetcher: Send + Sync + 'static {
    /// Fetches these nodes; those that could not be had are left out. Bounded by `within`.
    fn fetch(
        &self,
        nodes: Vec<NodeHash>,
        prefer: Option<PeerId>,
        within: Duration,
    ) -> BoxFuture<'static, Fetched>;

    /// Holds against a peer what it did.
    fn offence(&self, peer: PeerId, reason: &str);
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
    /// When what it says was written, where that is earlier than now: a file is published some time after its last write.
    pub written: Option<HybridTime>,
    /// Where a rename brings the entry from, unchanged; of a file's record, of what it is a copy.
    pub moved: Option<Moved>,
}

impl Edit {
    /// Brings along the record of a file with several names, as it is seen, where one of them, `name`, is given to it or put
    /// under another path: by then that the edit is committed, others may have removed all names that they know.
    pub(crate) fn bring_record(name: &TreePath, shown: &Shown) -> Option<Self> {
        let (path, copied) = shown.record_copy(name)?;
        Some(Self {
            path,
            entry: Some(shown.entry.clone()),
            seen: copied.dots().to_vec(),
            held: false,
            written: Some(shown.time),
            moved: Some(copied),
        })
    }

    /// Makes a plain file again of one of which a single name is left where another one goes: `removed` is what that showed, `last`
    /// what the one that is left, `name`, does.
    pub(crate) fn last_name(name: &TreePath, last: Option<Shown>, removed: &Shown) -> Option<Self> {
        let file = removed.link.as_ref()?.file;
        let last = last.filter(|last| last.is_of(Some(file)))?;
        Some(Self {
            path: name.clone(),
            entry: Some(removed.entry.clone()),
            seen: last.seen,
            held: false,
            written: None,
            moved: None,
        })
    }
}

/// A state that this node has just signed.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its head.
    pub head: Head,
    /// The push for the peers.
    pub push: Push,
}

/// Paths whose entries changed by a remote head, the stand-ins of files with several names included
/// ([`TreePath::of_record`]); `All` when there are too many to name.
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

/// What the folder is made of at one moment.
#[derive(Clone, Debug)]
pub struct MadeOf {
    /// Roots of the trees that are shown together, the merged state first.
    pub roots: Vec<NodeHash>,
    /// Contents that local changes put which no head has yet.
    pub pending: HashSet<Object>,
}

/// What the parts of the namespace share: the replica, and what wakes and announces.
struct Shared {
    replica: Replica<Store>,
    fetcher: Arc<dyn NodeFetcher>,
    signals: Arc<Signals>,
    /// Somebody waits in [`Namespace::flush`].
    hurry: AtomicBool,
    progress: watch::Sender<Progress>,
}

/// Where the replica's events go.
struct Signals {
    /// There may be something to commit.
    commit_wake: Notify,
    /// The committer waits for its pace alone, and looks for itself after that.
    commit_paced: AtomicBool,
    /// There may be something to merge.
    merge_wake: Notify,
    /// All of it, those included that could wait.
    merge_all: AtomicBool,
    /// Somebody may give what is to be brought up.
    bring_up: AtomicBool,
    head_known: watch::Sender<bool>,
    published: broadcast::Sender<Arc<Published>>,
    remote_changes: broadcast::Sender<RemoteChanges>,
    arrivals: broadcast::Sender<Arc<Arrival>>,
    fetcher: Arc<dyn NodeFetcher>,
}

impl Signals {
    fn take(&self, event: Event) {
        // Nobody may be listening: that is no failure.
        match event {
            Event::Published(published) => {
                let _ = self.published.send(published);
            }
            Event::Changed(arrival) => {
                let paths = arrival.changes.as_deref().map(named);
                let _ = self
                    .remote_changes
                    .send(paths.unwrap_or(RemoteChanges::All));
                let _ = self.arrivals.send(Arc::new(arrival));
            }
            Event::HeadKnown(known) => {
                self.head_known.send_replace(known);
            }
            Event::ToCommit => {
                // Whatever leads here was done under the lock of the state that the committer looks at after its wait.
                if !self.commit_paced.load(Ordering::Acquire) {
                    self.commit_wake.notify_one();
                }
            }
            Event::ToMerge => self.merge_wake.notify_one(),
            Event::ToMergeAll => {
                self.merge_all.store(true, Ordering::Release);
                self.merge_wake.notify_one();
            }
            Event::ToBringUp => {
                self.bring_up.store(true, Ordering::Release);
                self.merge_wake.notify_one();
            }
            Event::Offence(peer, reason) => self.fetcher.offence(peer, &reason),
        }
    }
}

/// What the committer's last attempt came to.
#[derive(Clone, Debug, Default)]
enum Progress {
    /// A commit, or nothing to do.
    #[default]
    Well,
    /// Some changes wait, for nodes that nobody gives or since no node can hold them; the others were committed.
    Unreachable(String),
    /// The disk or the state fails.
    Failed(NamespaceError),
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
        let signals = Arc::new(Signals {
            commit_wake: Notify::new(),
            commit_paced: AtomicBool::new(false),
            merge_wake: Notify::new(),
            merge_all: AtomicBool::new(false),
            bring_up: AtomicBool::new(false),
            head_known: watch::Sender::new(false),
            published: broadcast::Sender::new(ANNOUNCED_MAX),
            remote_changes: broadcast::Sender::new(ANNOUNCED_MAX),
            arrivals: broadcast::Sender::new(ARRIVALS_MAX),
            fetcher: fetcher.clone(),
        });
        let sink = signals.clone();
        let replica = Replica::open(
            store.clone(),
            keys,
            identity,
            node_name,
            rand::random(),
            move |event| sink.take(event),
        )?;
        signals
            .head_known
            .send_replace(replica.state.read().has_head());
        let shared = Arc::new(Shared {
            replica,
            fetcher,
            signals,
            hurry: AtomicBool::new(false),
            progress: watch::Sender::new(Progress::Well),
        });
        if restored {
            shared.replica.leave_identity_to_the_original()?;
            store.settle_here()?;
        }
        let closing = CancellationToken::new();
        tokio::spawn(committer::run(shared.clone(), closing.clone()));
        tokio::spawn(merger::run(shared.clone(), closing.clone()));
        tokio::spawn(collect::run(shared.clone(), closing.clone()));
        shared.signals.commit_wake.notify_one();
        shared.signals.merge_wake.notify_one();
        Ok(Self {
            shared,
            _running: Arc::new(closing.drop_guard()),
        })
    }

    /// The identity in use: the one given to [`Namespace::open`], or the one that took its place and is kept here. The
    /// node goes by it on the network from its next start on.
    pub fn writer_identity(&self) -> Keypair {
        self.shared.replica.state.read().identity.clone()
    }

    /// Signs and keeps the first, empty head; only when no head is known.
    pub fn create(&self) -> Result<Head, NamespaceError> {
        self.shared.replica.create(Moment::now())
    }

    /// Number of the latest change that was made here.
    pub fn made(&self) -> u64 {
        self.shared.replica.state.read().overlay.generation()
    }

    /// Whether any head is known.
    pub fn has_head(&self) -> bool {
        *self.shared.signals.head_known.borrow()
    }

    /// Returns true as soon as a head is known, false after `within`.
    pub async fn wait_head(&self, within: Duration) -> bool {
        let mut known = self.shared.signals.head_known.subscribe();
        tokio::time::timeout(within, known.wait_for(|known| *known))
            .await
            .is_ok_and(|known| known.is_ok())
    }

    /// What is under a path, conflict copies included; `None` when nothing. The root is a directory.
    pub fn get(&self, path: &TreePath) -> Result<Option<Shown>, NamespaceError> {
        self.shared.replica.get(path)
    }

    /// The direct children of a folder in byte order of their names.
    pub fn children(&self, folder: &TreePath) -> Result<Vec<(Name, Shown)>, NamespaceError> {
        self.shared.replica.children(folder)
    }

    /// The names of a file that has several.
    pub fn names_of(&self, file: FileId) -> Result<BTreeSet<TreePath>, NamespaceError> {
        self.shared.replica.names_of(file)
    }

    /// How many names a file has that has several.
    pub fn count_names(&self, file: FileId) -> Result<u64, NamespaceError> {
        self.shared.replica.count_names(file)
    }

    /// Everything below a folder, parents before children.
    pub fn below(&self, folder: &TreePath) -> Result<Vec<(TreePath, Shown)>, NamespaceError> {
        self.shared.replica.below(folder)
    }

    /// Whether a local change at or below the path is in no head yet.
    pub fn is_pending(&self, path: &TreePath) -> bool {
        let state = self.shared.replica.state.read();
        state.overlay.is_pending(path)
    }

    /// When a direct entry of the folder last changed or was removed, as far as is known; [`Shown::folder_time`] makes the
    /// folder's time of it.
    pub fn folder_newest(&self, folder: &TreePath) -> Result<HybridTime, NamespaceError> {
        self.shared.replica.folder_newest(folder)
    }

    /// Fetches missing nodes. Returns once some of them are here: asking again tells what else is needed.
    pub async fn fetch(
        &self,
        missing: Vec<NodeHash>,
        within: Duration,
    ) -> Result<(), NamespaceError> {
        let count = missing.len();
        if count == 0 {
            return Ok(());
        }
        if self.shared.bring(missing, None, within).await?.nodes > 0 {
            self.shared.replica.looked_further();
            return Ok(());
        }
        Err(NamespaceError::Unreachable(format!(
            "nobody gave any of {count} nodes within {} s",
            within.as_secs()
        )))
    }

    /// Applies local changes at once and wakes the committer. Those of one call are committed together.
    pub fn change(&self, edits: Vec<Edit>) -> Result<(), NamespaceError> {
        self.shared.replica.change(edits, Moment::now())
    }

    /// Renames: as [`Namespace::change`], and whatever others change under the old path at the same time follows to the new
    /// one.
    pub fn rename(
        &self,
        edits: Vec<Edit>,
        from: TreePath,
        to: TreePath,
    ) -> Result<(), NamespaceError> {
        let rename = Some((from, to));
        self.shared.replica.apply(edits, rename, Moment::now())
    }

    /// As [`Namespace::rename`], or [`Namespace::change`] without `rename`, of many entries, in two steps: others go on
    /// while `gather` tells the changes and this works them out, and what it returns makes them in a moment. Until then
    /// the caller keeps others from changing what the edits, of different paths, are of; nothing is committed or merged.
    pub fn prepare<E: From<NamespaceError>>(
        &self,
        gather: impl FnOnce() -> Result<Vec<Edit>, E>,
        rename: Option<(TreePath, TreePath)>,
    ) -> Result<Box<dyn FnOnce() + '_>, E> {
        self.shared.replica.prepare(gather, rename, Moment::now())
    }

    /// Until it is dropped, no head is begun: what is changed meanwhile, and what is noted of that beside, comes in one.
    /// Nothing that waits for heads may be done under it.
    pub fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.shared.replica.choosing.read()
    }

    /// Until it is dropped, no head is made.
    #[cfg(test)]
    pub(crate) fn pause(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.shared.replica.turn.lock()
    }

    /// A head of this node's by which all changes made so far, but for what is held, are committed: it or any later one has
    /// them, and while [`Namespace::hold`] is held no earlier one. `None` when that can't be told now.
    pub fn committed_by(&self) -> Option<Dot> {
        self.shared.replica.committed_by()
    }

    /// Whether an earlier process has put a head on disk by which what [`Namespace::committed_by`] said there is committed.
    /// Heads of this process don't count, since it goes on behind the sequences that the earlier one may have used.
    pub fn was_committed(&self, by: Dot) -> bool {
        self.shared.replica.was_committed(by)
    }

    /// Whether what [`Namespace::committed_by`] has said in this process is on disk; true as well where another identity has
    /// taken the place of the one that it spoke of.
    pub fn is_committed(&self, by: Dot) -> bool {
        self.shared.replica.is_committed(by)
    }

    /// Returns when everything changed before, but for what is held, is in a signed head and on disk. Where no head can be
    /// made of it within 10 s (nodes that nobody gives), it is on disk to be committed later, after a restart too.
    pub async fn flush(&self) -> Result<(), NamespaceError> {
        self.committed(true).await
    }

    /// The same without hurrying the next head: many changes go into one, as they would if nobody waited.
    pub async fn settled(&self) -> Result<(), NamespaceError> {
        self.committed(false).await
    }

    /// Returns when everything changed before, but for what is held, is on disk by itself, to be committed after a restart.
    pub async fn keep(&self) -> Result<(), NamespaceError> {
        let shared = self.shared.clone();
        blocking(move || shared.replica.keep_pending()).await
    }

    async fn committed(&self, hurry: bool) -> Result<(), NamespaceError> {
        let shared = &self.shared;
        let up_to = shared.replica.state.read().overlay.generation();
        let mut progress = shared.progress.subscribe();
        let deadline = tokio::time::Instant::now() + FLUSH_MAX;
        while shared.replica.state.read().overlay.waits(up_to) {
            if hurry {
                shared.hurry.store(true, Ordering::Release);
                shared.signals.commit_wake.notify_one();
            }
            let why = match tokio::time::timeout_at(deadline, progress.changed()).await {
                Err(_) | Ok(Err(_)) => Some("no head was made of it in time".into()),
                Ok(Ok(())) => match &*progress.borrow_and_update() {
                    Progress::Well => None,
                    Progress::Unreachable(reason) => Some(reason.clone()),
                    Progress::Failed(error) => return Err(error.clone()),
                },
            };
            if !shared.replica.state.read().overlay.waits(up_to) {
                break;
            }
            if let Some(reason) = why {
                tracing::warn!(reason, "what was to be published is only kept on this disk");
                return self.keep().await;
            }
        }
        Ok(())
    }

    /// Heads that no other known head covers, encoded; at most 256, the newest.
    pub fn heads(&self) -> Vec<Vec<u8>> {
        self.shared.replica.heads()
    }

    /// The encoding of a node that is here, for peers.
    ///
    /// # Errors
    /// When it can't be told whether it is here.
    pub fn node(&self, hash: &NodeHash) -> Result<Option<bytes::Bytes>, crate::store::StoreError> {
        self.shared.replica.nodes.encoded(hash)
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
        blocking(move || Ok(shared.replica.admit(from, heads, Moment::now())))
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
        blocking(move || {
            let replica = &shared.replica;
            Ok(replica.admit_push(from, head.into_vec(), base, changes, Moment::now()))
        })
        .await
        .map_err(|error| RefusedPush::Other(error.to_string()))?
    }

    /// Roots of the last 30 days with their times (nanoseconds since 1970), oldest first: the last one of each minute.
    pub fn roots(&self) -> Result<Vec<(u64, NodeHash)>, NamespaceError> {
        self.shared.replica.records.roots()
    }

    /// Newly signed heads.
    pub fn published(&self) -> broadcast::Receiver<Arc<Published>> {
        self.shared.signals.published.subscribe()
    }

    /// Remote changes, for the kernel's caches. A listener that falls behind is to take it for [`RemoteChanges::All`].
    pub fn remote_changes(&self) -> broadcast::Receiver<RemoteChanges> {
        self.shared.signals.remote_changes.subscribe()
    }

    /// What the folder is made of now. A content that no version of any entry in these trees has, nor a pending change, is not
    /// in it under any name. `None` before the first head, and while heads are known whose trees are neither merged nor shown.
    pub fn made_of(&self) -> Result<Option<MadeOf>, NamespaceError> {
        self.shared.replica.made_of()
    }

    /// Figures.
    pub fn status(&self) -> NamespaceStatus {
        self.shared.replica.status()
    }
}

/// What fetching nodes came to.
#[derive(Clone, Copy, Debug, Default)]
struct Brought {
    nodes: usize,
    bytes: u64,
    /// See [`Fetched::denied`].
    denied: bool,
}

impl Shared {
    /// Fetches nodes and keeps the good ones.
    async fn bring(
        self: &Arc<Self>,
        missing: Vec<NodeHash>,
        prefer: Option<PeerId>,
        within: Duration,
    ) -> Result<Brought, NamespaceError> {
        let deadline = tokio::time::Instant::now() + within;
        let mut brought = Brought::default();
        for nodes in missing.chunks(NAMED_MAX) {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let fetching = self.fetcher.fetch(nodes.to_vec(), prefer, left);
            let Ok(fetched) = tokio::time::timeout_at(deadline, fetching).await else {
                break;
            };
            let (shared, asked) = (self.clone(), nodes.to_vec());
            brought.denied |= fetched.denied;
            let bytes: usize = fetched.nodes.iter().map(Vec::len).sum();
            brought.bytes += bytes as u64;
            let take = move || Ok(shared.replica.nodes.take(&asked, fetched.nodes)?);
            brought.nodes += blocking(take).await?.len();
        }
        Ok(brought)
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
