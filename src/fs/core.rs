//! The filesystem's state and the ground rules of its operations.
//!
//! Operations (in `ops/`) are methods of [`Core`]. They never wait for the network and never call the kernel. One that lacks
//! something answers [`Fail::Need`], having changed nothing, and is called again once that is there.
//!
//! Lock order, outermost first: `order`, `modes`, a [`Live`]'s `syncing`, its state, `lives`, `inodes`, `files`/`listings`/`absent`/`following`. `order` is held
//! shared by operations that look at names and exclusively by those that change them, so that the tree and the table of inodes
//! agree. Who changes names has the tree hold ([`super::parts::Tree::hold`]) next after `order`, until the journal agrees as well. Nobody waits for a disk to sync while holding any of them but `syncing`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::RandomState},
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::SyncSender,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    OwnerMode,
    absent::Absent,
    ahead::Following,
    errno::FsError,
    fates::Unsettled,
    inodes::{Facts, Inodes},
    live::{Live, LiveState},
    modes::Modes,
    notify::LeftPages,
    ops::{Listings, OpenFile},
    parts::{Bring, Tree},
    publish::AT_ONCE,
};
use crate::{
    content::{BLOCK_BYTES, Object},
    manifest::{Dot, Entry, FileId, HybridTime, Kind, Name, NodeHash, Shown, Timestamp, TreePath},
    node::namespace::{Edit, NamespaceError},
    store::{Shortage, StagingId, Store, StoreError},
};

/// What an operation must have before it can be done.
#[derive(Debug)]
pub(crate) enum Need {
    /// Any head at all.
    Head,
    /// Nodes of the manifest.
    Nodes(Vec<NodeHash>),
    /// Bytes of a content; the path is for reports.
    Bytes(Object, Range<u64>, TreePath),
    /// That no folder is being moved where something is to change.
    Move,
    /// That a file's staging file is not being made an object.
    Import(u64),
    /// That the name of a new file is published.
    Entry(u64),
    /// Room for what is to be written.
    Room(Shortage, u64),
    /// That the changes of names made so far are on disk.
    Names,
    /// That all of a file is published; gives up after a while.
    Publication(u64, Duration),
}

/// Why an operation did not answer.
#[derive(Debug)]
pub(crate) enum Fail {
    Need(Need),
    Error(FsError),
}

impl<E: Into<FsError>> From<E> for Fail {
    fn from(error: E) -> Self {
        match error.into() {
            FsError::Namespace(NamespaceError::Missing(nodes)) => Self::Need(Need::Nodes(nodes)),
            FsError::Namespace(NamespaceError::NoHead) => Self::Need(Need::Head),
            FsError::Store(StoreError::NoRoom { why, bytes }) => Self::Need(Need::Room(why, bytes)),
            error => Self::Error(error),
        }
    }
}

/// What the filesystem was told when it was made.
pub(crate) struct Options {
    pub(crate) read_only: bool,
    pub(crate) owner: OwnerMode,
    /// The mounting user.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) wait: Duration,
    pub(crate) state_dir: PathBuf,
    /// Whether what stands at a path is pinned.
    pub(crate) pinned: Arc<dyn Fn(&TreePath) -> bool + Send + Sync>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attr {
    pub(crate) number: u64,
    pub(crate) size: u64,
    /// Bytes that it takes.
    pub(crate) taken: u64,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) accessed_ns: i64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
    pub(crate) links: u32,
    pub(crate) device: u32,
}

impl Attr {
    /// With the access time that a program has set, if one has: no other is known.
    pub(super) fn accessed(self, accessed: Option<Timestamp>) -> Self {
        Self {
            accessed_ns: accessed.map_or(self.modified_ns, |time| time.0),
            ..self
        }
    }
}

/// See the module.
pub(crate) struct Core {
    pub(crate) tree: Arc<dyn Tree>,
    pub(crate) store: Store,
    pub(crate) bring: Arc<dyn Bring>,
    /// How many peers are known to hold all of an object.
    pub(crate) holders: Arc<dyn Fn(Object) -> u64 + Send + Sync>,
    pub(crate) options: Options,
    pub(crate) order: RwLock<()>,
    /// Whether the kernel can be given backing files to read by itself.
    pub(super) may_pass: AtomicBool,
    /// Where pages go that nobody needs any more; see [`super::behind`]. Not set without a mount.
    pub(super) left: OnceLock<SyncSender<LeftPages>>,
    pub(super) modes: Mutex<Modes>,
    pub(super) lives: Mutex<HashMap<u64, Arc<Live>>>,
    pub(super) inodes: Mutex<Inodes>,
    pub(super) files: Mutex<HashMap<u64, Arc<OpenFile>>>,
    pub(super) listings: Mutex<Listings>,
    /// What the kernel keeps of names that nothing has.
    pub(super) absent: Mutex<Absent>,
    /// The key of the order in which names are listed, until the mount ends.
    pub(super) listing_order: RandomState,
    /// Places whose contents are being moved, or moved to: nothing changes there until that is done.
    pub(super) moving: Mutex<Vec<TreePath>>,
    /// Whose files are read one after the other.
    pub(super) following: Following,
    next_handle: AtomicU64,
    /// Counts changes of names and entries, here and elsewhere: what was listed before is old after.
    pub(super) epoch: AtomicU64,
    /// Since when it is known that there is no room.
    pub(super) no_room: Mutex<Option<Instant>>,
    /// As many files may be published at a time.
    pub(super) publications: Semaphore,
    /// Files that are being written of which something is to be hashed.
    pub(super) ripe: Mutex<BTreeSet<u64>>,
    pub(super) ripened: Notify,
    /// Rung when there may be something to publish.
    pub(super) wake: Notify,
    /// Names that no head on disk has yet.
    pub(super) unsettled_names: Mutex<Unsettled>,
    /// Staging files that were published, removed or replaced, which is not on disk yet.
    pub(super) settling: Mutex<Vec<StagingId>>,
    /// Names at which something else may show than here, once a head has what was changed: a version that was beside it, or
    /// that others have made since. The kernel hears of it then.
    pub(super) unsure: Mutex<BTreeSet<TreePath>>,
    pub(super) unsettled: Notify,
    /// Places where a publication here met a change from elsewhere: the kernel has yet to hear.
    pub(super) stirred: Mutex<BTreeSet<TreePath>>,
    /// What stands, by changes from elsewhere, where the kernel has forgotten what stood: the next change follows on from it.
    pub(super) heirs: Mutex<BTreeMap<TreePath, Object>>,
    pub(super) stir: Notify,
    /// Counts ended publications and moves, and steps of them that somebody may wait for.
    pub(super) published: watch::Sender<u64>,
}

/// How long those who are busy with files are waited for, all together, while everybody else waits.
const BUSY_MAX: Duration = Duration::from_millis(5);

/// What is in use whatever the folder shows.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// What open files show, and what is below what is being written.
    pub contents: HashSet<Object>,
    /// Sizes of the files of which contents are being made.
    pub making: HashSet<u64>,
}

impl InUse {
    /// Whether a content is in use, or may be one that is being made.
    pub fn has(&self, object: &Object) -> bool {
        self.contents.contains(object) || self.making.contains(&object.size)
    }
}

impl Core {
    pub(crate) fn new(
        tree: Arc<dyn Tree>,
        store: Store,
        bring: Arc<dyn Bring>,
        holders: Arc<dyn Fn(Object) -> u64 + Send + Sync>,
        options: Options,
    ) -> Self {
        Self {
            tree,
            store,
            bring,
            holders,
            options,
            order: RwLock::new(()),
            may_pass: AtomicBool::new(false),
            left: OnceLock::new(),
            modes: Mutex::default(),
            lives: Mutex::new(HashMap::new()),
            inodes: Mutex::new(Inodes::new()),
            files: Mutex::new(HashMap::new()),
            listings: Mutex::default(),
            absent: Mutex::default(),
            listing_order: RandomState::new(),
            moving: Mutex::new(Vec::new()),
            following: Following::default(),
            next_handle: AtomicU64::new(1),
            epoch: AtomicU64::new(0),
            no_room: Mutex::default(),
            publications: Semaphore::new(AT_ONCE),
            ripe: Mutex::default(),
            ripened: Notify::new(),
            wake: Notify::new(),
            unsettled_names: Mutex::default(),
            settling: Mutex::new(Vec::new()),
            unsure: Mutex::new(BTreeSet::new()),
            unsettled: Notify::new(),
            stirred: Mutex::new(BTreeSet::new()),
            heirs: Mutex::default(),
            stir: Notify::new(),
            published: watch::Sender::new(0),
        }
    }

    pub(super) fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn file(&self, handle: u64) -> Result<Arc<OpenFile>, Fail> {
        let files = self.files.lock();
        Ok(files.get(&handle).cloned().ok_or(FsError::BadHandle)?)
    }

    pub(super) fn writable(&self) -> Result<(), Fail> {
        match self.options.read_only {
            true => Err(FsError::ReadOnly.into()),
            false => Ok(()),
        }
    }

    /// Where an inode stands; an error when it has no name any more.
    pub(super) fn path(&self, number: u64) -> Result<TreePath, Fail> {
        Ok(self.inodes.lock().path(number).ok_or(FsError::Stale)?)
    }

    /// A name in a folder: where it is.
    pub(super) fn place(&self, folder: u64, name: &[u8]) -> Result<(Name, TreePath), Fail> {
        let name = Name::new(name).map_err(FsError::from)?;
        let path = self.path(folder)?.join(&name).map_err(FsError::from)?;
        Ok((name, path))
    }

    /// What the tree shows at a place.
    pub(super) fn shown(&self, path: &TreePath) -> Result<Option<Shown>, Fail> {
        Ok(self.tree.get(path)?)
    }

    /// What the tree shows at a place, and what it is as an inode.
    pub(super) fn look_at(&self, path: &TreePath) -> Result<Option<(Shown, Facts)>, Fail> {
        let shown = match self.tree.get(path) {
            Ok(Some(shown)) => shown,
            Ok(None) => return Ok(None),
            Err(NamespaceError::Missing(mut nodes)) => {
                // Should it turn out to be a folder, its time needs others: a round trip is worth more than they are.
                if let Err(NamespaceError::Missing(more)) = self.tree.folder_newest(path) {
                    nodes.extend(more);
                    nodes.sort_unstable();
                    nodes.dedup();
                }
                return Err(Fail::Need(Need::Nodes(nodes)));
            }
            Err(error) => return Err(error.into()),
        };
        let facts = self.facts(path, &shown)?;
        Ok(Some((shown, facts)))
    }

    pub(super) fn live(&self, number: u64) -> Option<Arc<Live>> {
        self.lives.lock().get(&number).cloned()
    }

    /// Does something with the live state of an inode, if it has one.
    pub(super) fn with_live<T>(
        &self,
        number: u64,
        act: impl FnOnce(&mut LiveState) -> T,
    ) -> Option<T> {
        loop {
            let live = self.live(number)?;
            let mut state = live.state.lock();
            if !state.done {
                return Some(act(&mut state));
            }
        }
    }

    /// What open files show, and what is being written; `None` where somebody is busy with one of those.
    fn in_use(&self) -> Option<InUse> {
        let mut in_use = InUse::default();
        // What a handle shows may be below what is written next, so handles come first.
        let open: Vec<_> = self.files.lock().values().map(|file| file.number).collect();
        {
            let inodes = self.inodes.lock();
            for number in open {
                if let Some(Kind::File(object)) = inodes.facts(number).map(|facts| &facts.kind) {
                    in_use.contents.insert(*object);
                }
            }
        }
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let patience = Instant::now() + BUSY_MAX;
        for live in lives {
            let state = live.state.try_lock_until(patience)?;
            if state.importing {
                in_use.making.insert(state.overlay.size());
            }
            in_use.contents.extend([state.base, state.agreed]);
        }
        Some(in_use)
    }

    /// Looks while nothing in the folder changes its name or is opened, with what is in use then. `None` where that can't be
    /// now: a folder is being renamed, or somebody is busy with a file.
    pub(super) fn at_rest<T>(&self, look: impl FnOnce(InUse) -> T) -> Option<T> {
        let _order = self.order.write();
        if !self.moving.lock().is_empty() {
            return None;
        }
        self.in_use().map(look)
    }

    /// Applies edits: visible here at once. Where a folder is being moved, they wait.
    pub(super) fn change(&self, edits: Vec<Edit>) -> Result<(), Fail> {
        let meets = |place: &TreePath| {
            let mut paths = edits.iter().map(|edit| &edit.path);
            paths.any(|path| path.is_within(place) || place.is_within(path))
        };
        if self.moving.lock().iter().any(meets) {
            return Err(Fail::Need(Need::Move));
        }
        if edits.iter().any(|edit| edit.entry.is_none()) {
            // That may make room.
            *self.no_room.lock() = None;
        }
        for edit in &edits {
            if let Some(Kind::File(object)) = edit.entry.as_ref().map(|entry| &entry.kind) {
                self.store.keep(object);
            }
        }
        self.tree.change(edits)?;
        self.note_change();
        Ok(())
    }

    /// Notes that something changed, here or elsewhere.
    pub(super) fn note_change(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Has the kernel look anew at what stands at a place.
    pub(super) fn tell(&self, path: TreePath) {
        self.stirred.lock().insert(path);
        self.stir.notify_one();
    }

    /// The attributes of an inode, with the access time that was set. Takes the lock of the inodes.
    pub(super) fn attr_now(&self, number: u64, facts: &Facts, linked: bool) -> Attr {
        let accessed = self.inodes.lock().accessed(number);
        self.attr(number, facts, linked).accessed(accessed)
    }

    /// The attributes of an inode. `linked`: it still has a name.
    pub(super) fn attr(&self, number: u64, facts: &Facts, linked: bool) -> Attr {
        let size = match &facts.kind {
            Kind::File(object) => object.size,
            Kind::Symlink(target) => target.len() as u64,
            Kind::Directory => 4096,
            _ => 0,
        };
        let (uid, gid) = match self.options.owner {
            OwnerMode::Mounter => (self.options.uid, self.options.gid),
            OwnerMode::Stored => (facts.owner, facts.group),
        };
        Attr {
            number,
            size,
            taken: size,
            mode: facts.mode & 0o7777,
            uid,
            gid,
            accessed_ns: facts.modified.0,
            modified_ns: facts.modified.0,
            changed_ns: i64::try_from(facts.changed.0).unwrap_or(i64::MAX),
            // One of a folder says, by custom, that its subfolders are not counted.
            links: if linked { facts.links } else { 0 },
            device: match facts.kind {
                Kind::Device { number, .. } => number,
                _ => 0,
            },
            kind: facts.kind.clone(),
        }
    }

    /// Facts of what is shown at a path. A folder's time is the one that was set, until a direct entry changes after that.
    pub(super) fn facts(&self, path: &TreePath, shown: &Shown) -> Result<Facts, Fail> {
        let mut facts = Facts::of(shown);
        match facts.kind {
            Kind::Directory => {
                let newest = self.tree.folder_newest(path)?;
                facts.modified = shown.folder_time(newest);
                facts.changed = shown.time.max(newest);
            }
            // A link whose record is nowhere has no content: it can be seen, renamed, replaced and removed.
            _ => facts.links = self.count_names(facts.file)?,
        }
        Ok(facts)
    }

    /// How many names a file has.
    pub(super) fn count_names(&self, file: Option<FileId>) -> Result<u32, Fail> {
        let Some(file) = file else { return Ok(1) };
        let names = self.tree.count_names(file)?;
        Ok(u32::try_from(names).unwrap_or(u32::MAX).max(1))
    }

    /// The content that an inode was last seen to have.
    pub(super) fn content_of(&self, number: u64) -> Option<Object> {
        match self.inodes.lock().facts(number)?.kind {
            Kind::File(object) => Some(object),
            _ => None,
        }
    }

    /// Where an inode stands, and what the tree shows there: of several names the first that still is it. `None` when none is.
    pub(super) fn stands(&self, number: u64) -> Result<Option<(TreePath, Shown, Facts)>, Fail> {
        let paths = self.inodes.lock().paths(number);
        for path in paths {
            if let Some((shown, facts)) = self.look_at(&path)?
                && self.inodes.lock().refresh(number, facts.clone())
            {
                return Ok(Some((path, shown, facts)));
            }
        }
        Ok(None)
    }

    /// What a file that is being written is, whether it has a name, and how many bytes it takes.
    pub(super) fn look_live(&self, number: u64) -> Result<Option<(Facts, bool, u64)>, Fail> {
        let live = self.with_live(number, |live| {
            (live.facts(), !live.unlinked, live.overlay.taken())
        });
        let Some((mut facts, linked, taken)) = live else {
            return Ok(None);
        };
        facts.file = self.inodes.lock().file(number);
        if linked {
            facts.links = self.count_names(facts.file)?;
        }
        Ok(Some((facts, linked, taken)))
    }

    /// The edits that put an entry in place of what is shown at a path: of a file with several names, of its record.
    pub(super) fn edits_for(path: &TreePath, shown: &Shown, entry: Entry) -> Vec<Edit> {
        let edit = |path: TreePath, entry, seen: &[Dot]| Edit {
            path,
            entry: Some(entry),
            seen: seen.to_vec(),
            held: false,
            written: None,
            moved: None,
        };
        match &shown.link {
            None => vec![edit(path.clone(), entry, &shown.seen)],
            // The name, too, so that it stays where somebody else removes it at the same time.
            Some(link) => vec![
                edit(TreePath::of_record(&link.file), entry, &link.seen),
                edit(path.clone(), Entry::link(link.file), &shown.seen),
            ],
        }
    }

    /// Reads a content from the store. What is missing or damaged here becomes a need. Only what proves to be damaged is
    /// dropped; an error that says nothing of the content, like a lack of file descriptors, is answered as it is.
    pub(super) fn read_object(
        &self,
        object: &Object,
        offset: u64,
        buf: &mut [u8],
        path: impl FnOnce() -> TreePath,
    ) -> Result<usize, Fail> {
        match self.store.read(object, offset, buf) {
            Ok(read) => Ok(read),
            Err(StoreError::Absent(_)) => {
                let bytes = offset..offset.saturating_add(buf.len() as u64).min(object.size);
                Err(Fail::Need(Need::Bytes(*object, bytes, path())))
            }
            Err(error @ (StoreError::Io { .. } | StoreError::Damaged(_))) => {
                let bytes = offset..offset.saturating_add(buf.len() as u64).min(object.size);
                let path = path();
                tracing::warn!(%path, ?bytes, %error, "cached content can't be read: looking at it again");
                self.store
                    .reprove(object, object.blocks_of(bytes.clone()))?;
                Err(Fail::Need(Need::Bytes(*object, bytes, path)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| {
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }))
}

/// The same as [`now`], as a version's time.
pub(crate) fn now_hybrid() -> HybridTime {
    HybridTime(u64::try_from(now().0).unwrap_or(0))
}

/// What `st_blksize` suggests to programs.
pub(crate) const SUGGESTED_IO_BYTES: u32 = BLOCK_BYTES as u32;
