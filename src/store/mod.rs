//! The store: backing files for payloads, sled for everything else, staging for what is not published yet.
//!
//! It keeps what it is given. It takes the word of its callers that blocks were proven, hands out none that isn't here,
//! never fetches, decides nothing about what is worth keeping, and blocks on the disk only, never on the network.
//!
//! ```text
//! <state folder>/              mode 0700
//!   lock                       flock held while open; the pid of the holder
//!   format                     format version of everything here, in decimal; checked before anything is touched
//!   origin                     marker whose inode and birth time tell the original folder from a restored copy
//!   index/                     sled: one record per object, journal, nodes, heads, peers, settings
//!   index.end                  where sled's log ended, when the store was closed in order
//!   objects/<2 hex>/           the first byte of the hash, all 256 of them
//!     <64 hex>-<size>          a content of more than 4 KiB; sparse where blocks are absent
//!     <64 hex>-<size>.tree     its hash tree, sparse as well; none for a single block
//!   staging/<id>               contents in the making; `.tree` and `.copy` are temporary
//!   journal                    what each of them is, as of the last `close` or `fsync`
//!   lost/                      files that nothing else may be left of: staging files that can't be published, contents
//!                              written here that were damaged, and an index that was
//! ```
//!
//! Invariants
//! - *Data, then index.* A block is in a record only after its bytes and the inner nodes that prove it were written. A
//!   crash may forget blocks that arrived a moment ago; it never claims one that isn't there.
//! - A killed process loses nothing that `write` returned from, so its records hold. After the machine went down they hold
//!   for what had been synced: a record lists blocks that were not yet as *loose*, [`Store::settle`] syncs them, and
//!   opening in another boot proves the loose ones and forgets those that fail.
//! - Before bytes go (a hole is punched, a file is unlinked), the record that no longer claims them is on disk.
//! - While the process runs, memory is right about presence; the records of objects follow at most about 200 ms or 64 MiB
//!   later. Everything else goes to the index at once.
//!
//! Lock order: a shard of the object cache, an object's `change`, an object's `state`, the small sets. The first one is
//! held only to look an object up; nothing waits for the disk under `state` but opening a file.

mod arriving;
mod cache;
mod check;
mod fate;
mod folder;
mod index;
mod journal;
mod keep;
mod latest;
mod lend;
mod moments;
mod objects;
mod packs;
mod passing;
mod policy;
mod proving;
mod record;
mod rescue;
mod room;
mod settle;
mod small;
mod staging;
#[cfg(test)]
mod tests;
mod verify;
mod worker;

use std::{
    collections::HashSet,
    io,
    ops::Bound,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

pub use self::arriving::Shown;
pub use self::fate::{Fate, Move};
#[cfg(test)]
pub(crate) use self::moments::Moment;
use self::{cache::Core, worker::Worker};
pub use self::{
    lend::Lent,
    policy::{Candidate, Limits, Shortage},
    room::{RoomReport, Size},
    verify::{Place, Step, VerifyProgress},
};
use crate::{
    buffers::Buffer,
    content::{BlockSet, ContentId, LeafHash, Leaves, Object, VerifiedRange},
    manifest::{Dot, HybridTime, NodeHash},
};

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the state folder.
    #[error("{} is in use by another p2pfs process (pid {pid})", dir.display())]
    Locked {
        /// The state folder.
        dir: PathBuf,
        /// Who has it; 0 when unknown.
        pid: u32,
    },
    /// Written by a version with other formats.
    #[error("{} has format {found}, this version reads {known} only: {}", dir.display(), advice(*found, *known))]
    Format {
        /// The state folder.
        dir: PathBuf,
        /// What it has.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Blocks that are not here.
    #[error("blocks {}..{} are not here", .0.start, .0.end)]
    Absent(Range<u64>),
    /// The disk has no room.
    #[error("the disk is full")]
    Full,
    /// The limits leave no room, and nothing that is here may go.
    #[error("{why}, and nothing that is here may go")]
    NoRoom {
        /// Which limit.
        why: Shortage,
        /// For how many bytes there is no room.
        bytes: u64,
    },
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The index failed.
    #[error("the index failed: {0}")]
    Index(#[source] sled::Error),
    /// A record doesn't decode, or a file doesn't hold what it should.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// What to do about a folder of another format.
fn advice(found: u32, known: u32) -> &'static str {
    if found > known {
        "use the version of p2pfs that wrote it, or a later one (or the file `format` in it is damaged: this version writes 2)"
    } else {
        "formats were not final then; mount the cluster with a new state folder, and copy what only this one has with the \
         version that wrote it"
    }
}

impl StoreError {
    /// Whether a look-up failed because of the index: once it could not write, it does not find everything any more.
    pub(crate) fn is_of_the_index(&self) -> bool {
        // Looking up takes no room: it is sled that was refused some before.
        matches!(self, Self::Index(_) | Self::Full)
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(source) if is_full(&source) => Self::Full,
            other => Self::Index(other),
        }
    }
}

/// Whether an error of the disk means that there is no room: on the disk, or in the user's quota.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Turns an error of the disk into one of the store: `file.sync_data().map_err(failed("syncing", path))`.
fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| {
        if is_full(&source) {
            return StoreError::Full;
        }
        StoreError::Io {
            what: format!("{doing} {}", path.display()),
            source,
        }
    }
}

/// How much of an object is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// These blocks.
    Partial(BlockSet),
    /// All of it.
    Complete,
}

/// Where an object came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Origin {
    /// Written through this mount.
    Written,
    /// Fetched from peers.
    Fetched,
}

/// Number of a staging file.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct StagingId(pub u64);

/// What the journal knows of a staging file: enough to publish it after a crash.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JournalRecord {
    /// Path in the cluster, as [`crate::manifest::TreePath`] prints its bytes (`a/b`).
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Versions that the writer saw and replaces.
    pub seen: Vec<Dot>,
    /// The content below the written ranges.
    pub base: Option<Object>,
    /// How many bytes of the base still show (a truncation lowers it for good).
    pub base_bytes: u64,
    /// Length of the file.
    pub size: u64,
    /// Byte ranges that stand in the staging file; everything else is the base or zero.
    pub written: Vec<(u64, u64)>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: u32,
    /// Group.
    pub group: u32,
    /// Modification time, nanoseconds since 1970.
    pub modified: i64,
    /// Extended attributes: names and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
    /// When it was last changed, on this machine's clock; `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<HybridTime>,
    /// No head has ever had it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_new: bool,
    /// What it holds, where it has no file: see [`Store::stage_small`]. The store sees to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<serde_bytes::ByteBuf>,
}

impl JournalRecord {
    /// Makes the file shorter: what is beyond is gone.
    pub fn cut(&mut self, size: u64) {
        self.size = self.size.min(size);
        self.base_bytes = self.base_bytes.min(size);
        self.written.retain(|(start, _)| *start < size);
        for (_, end) in &mut self.written {
            *end = (*end).min(size);
        }
    }
}

/// Keys and values of small things that the caller encodes.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// How much room is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By blocks of objects, inline ones included.
    pub objects_bytes: u64,
    /// By those of them that are pinned.
    pub pinned_bytes: u64,
    /// By staging files (allocated).
    pub staging_bytes: u64,
    /// By the index.
    pub index_bytes: u64,
}

/// A block range that did not match its hash, or could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub object: Object,
    /// The blocks.
    pub blocks: Range<u64>,
}

/// The store of one state folder. Cheap to clone; closed when the last clone is dropped, which syncs what is loose.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Dropped in this order: the worker ends, the index closes, the lock is released.
struct Inner {
    worker: Worker,
    core: Arc<Core>,
    _lock: folder::Lock,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.worker.stop();
        if self.core.closed.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.core.close() {
            tracing::warn!(%error, "the store was not closed cleanly; the next start looks through it");
        }
    }
}

impl Store {
    /// Opens or makes the state folder (mode 0700), takes its lock, checks its format, and repairs what a crash left:
    /// one pass over the object records; after a crash, a look at the names of all backing files; after the machine went
    /// down, reading and hashing what had not been synced.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it; [`StoreError::Format`], with nothing touched, when a
    /// version with other formats wrote it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        folder::check_format(dir)?;
        folder::make(dir)?;
        let lock = folder::Lock::take(dir)?;
        folder::check_format(dir)?;
        folder::make_layout(dir)?;
        let core = Arc::new(Core::open(dir)?);
        core.recover()?;
        let worker =
            Worker::start(Arc::clone(&core)).map_err(failed("starting a thread for", dir))?;
        Ok(Self {
            inner: Arc::new(Inner {
                worker,
                core,
                _lock: lock,
            }),
        })
    }

    /// The state folder.
    pub fn dir(&self) -> &Path {
        self.inner.core.dir()
    }

    /// Closes it in order, as dropping the last clone does: for a process that ends while others still have one. Nothing
    /// that matters is to be put into it any more.
    ///
    /// # Errors
    /// What could not be put on disk; the next start looks through it then.
    pub fn close(&self) -> Result<(), StoreError> {
        self.inner.core.close()?;
        self.inner.core.closed.store(true, Ordering::Release);
        Ok(())
    }

    /// Everything that was put into the index is on disk when this returns.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.inner.core.flush()
    }

    /// Whether this state folder is a copy: restored from a backup, or cloned to another machine. A copy must not go on
    /// writing under the identity of the original. True until [`Store::settle_here`]. Snapshots of a whole disk that are
    /// rolled back can't be told apart here.
    pub fn is_restored_copy(&self) -> bool {
        self.inner.core.is_restored_copy()
    }

    /// Takes this folder for the original from now on; to be called once a new writer identity has been taken. On disk
    /// when it returns.
    pub fn settle_here(&self) -> Result<(), StoreError> {
        self.inner.core.settle_here()
    }

    /// A setting; not flushed by itself.
    pub fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .inner
            .core
            .settings
            .get(name)?
            .map(|value| value.to_vec()))
    }

    /// Sets or, with `None`, removes it.
    pub fn set_setting(&self, name: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        let core = &self.inner.core;
        match value {
            Some(value) => {
                core.index_takes(value.len() as u64)?;
                core.settings.insert(name, value)?
            }
            None => core.settings.remove(name)?,
        };
        Ok(())
    }

    /// The encoding of a manifest node.
    pub fn node(&self, hash: &NodeHash) -> Result<Option<Bytes>, StoreError> {
        let found = self.inner.core.nodes.get(hash.0)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Keeps nodes (already validated by the caller); after a crash, or an error, the first ones or none.
    pub fn put_nodes(&self, nodes: &[(NodeHash, Vec<u8>)]) -> Result<(), StoreError> {
        let bytes = nodes.iter().map(|(_, encoded)| encoded.len() as u64).sum();
        self.inner.core.make_room_in_index(bytes)?;
        self.inner.core.index_takes(bytes)?;
        for (hash, encoded) in nodes {
            self.inner.core.nodes.insert(hash.0, encoded.as_slice())?;
        }
        Ok(())
    }

    /// The names of the manifest nodes that are here, in order: those after one, at most `limit`.
    pub fn node_names(
        &self,
        after: Option<NodeHash>,
        limit: usize,
    ) -> Result<Vec<NodeHash>, StoreError> {
        let nodes = &self.inner.core.nodes;
        let rest = match after {
            Some(after) => nodes.range((Bound::Excluded(after.0), Bound::Unbounded)),
            None => nodes.iter(),
        };
        let names = rest.keys().take(limit).map(|name| {
            let name = name?;
            Ok(<[u8; 32]>::try_from(name.as_ref()).ok().map(NodeHash))
        });
        let names: Result<Vec<_>, StoreError> = names.collect();
        Ok(names?.into_iter().flatten().collect())
    }

    /// Lets go of manifest nodes.
    pub fn remove_nodes(&self, nodes: &[NodeHash]) -> Result<(), StoreError> {
        // sled writes the pages anew in which they are.
        self.inner.core.index_takes(nodes.len() as u64 * 512)?;
        for hash in nodes {
            self.inner.core.nodes.remove(hash.0)?;
        }
        Ok(())
    }

    /// Known heads, encoded, by an arbitrary key; ordered by it.
    pub fn heads(&self) -> Result<Pairs, StoreError> {
        all(&self.inner.core.heads)
    }

    /// Keeps a head.
    pub fn put_head(&self, key: &[u8], head: &[u8]) -> Result<(), StoreError> {
        self.inner.core.index_takes(head.len() as u64)?;
        self.inner.core.heads.insert(key, head)?;
        Ok(())
    }

    /// Drops a head.
    pub fn remove_head(&self, key: &[u8]) -> Result<(), StoreError> {
        self.inner.core.heads.remove(key)?;
        Ok(())
    }

    /// Keeps the root of a minute (since 1970), in place of an earlier one of the same minute. Of those from before `oldest`
    /// a few are dropped each time, so that they become no more.
    pub fn put_root(&self, minute: u64, record: &[u8], oldest: u64) -> Result<(), StoreError> {
        let roots = &self.inner.core.roots;
        self.inner.core.index_takes(record.len() as u64)?;
        roots.insert(minute.to_be_bytes(), record)?;
        for old in roots.range(..oldest.to_be_bytes()).take(ROOTS_DROPPED_MAX) {
            roots.remove(old?.0)?;
        }
        Ok(())
    }

    /// Forgets the roots of these minutes.
    pub fn remove_roots(&self, minutes: &[u64]) -> Result<(), StoreError> {
        for minute in minutes {
            self.inner.core.roots.remove(minute.to_be_bytes())?;
        }
        Ok(())
    }

    /// The roots that are kept, by their minutes.
    pub fn roots(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut roots = Vec::new();
        for (minute, record) in all(&self.inner.core.roots)? {
            let minute = minute.as_slice().try_into().map_or(0, u64::from_be_bytes);
            roots.push((minute, record));
        }
        Ok(roots)
    }

    /// Known peers: peer id bytes and a record that the caller encodes.
    pub fn peers(&self) -> Result<Pairs, StoreError> {
        all(&self.inner.core.peers)
    }

    /// Remembers a peer.
    pub fn put_peer(&self, peer: &[u8], record: &[u8]) -> Result<(), StoreError> {
        self.inner.core.index_takes(record.len() as u64)?;
        self.inner.core.peers.insert(peer, record)?;
        Ok(())
    }

    /// Forgets a peer.
    pub fn remove_peer(&self, peer: &[u8]) -> Result<(), StoreError> {
        self.inner.core.peers.remove(peer)?;
        Ok(())
    }

    /// What of an object is here. The empty object is always complete.
    pub fn presence(&self, object: &Object) -> Result<Presence, StoreError> {
        self.inner.core.presence(object)
    }

    /// Whether the object's size has been proven by its last block.
    pub fn size_proven(&self, object: &Object) -> Result<bool, StoreError> {
        self.inner.core.size_proven(object)
    }

    /// Adds proven blocks. Blocks that are here already are not written again. Where they can't be kept, they pass through
    /// memory: who waits for them gets them.
    ///
    /// # Errors
    /// When the range doesn't fit the object.
    pub fn insert(&self, range: &VerifiedRange<'_>) -> Result<(), StoreError> {
        self.inner.core.insert(range)
    }

    /// Has proven blocks, of which there are few, read from memory until they are kept, or what this returns is dropped: from the
    /// answer that they came in.
    pub fn show(&self, range: &VerifiedRange<'_>, answer: &Bytes) -> Shown {
        self.inner.core.room.arriving.show(range, answer)
    }

    /// As [`Store::insert`], for blocks that are shown.
    ///
    /// # Errors
    /// As [`Store::insert`].
    pub fn insert_shown(&self, shown: Shown) -> Result<(), StoreError> {
        let inserted = self.insert(&shown.range());
        // Where they could not be kept, they are in passing now.
        drop(shown);
        inserted
    }

    /// Whether all of these bytes are in blocks that are shown: who reads them does not wait for the disk.
    pub fn is_shown(&self, object: &Object, bytes: Range<u64>) -> bool {
        let blocks = object.blocks_of(bytes);
        self.inner.core.room.arriving.has(object, blocks)
    }

    /// Adds proven blocks of many contents, none named twice: small ones go into the index together, without a write for each. What is here
    /// already is not written again.
    ///
    /// # Errors
    /// Some may have been kept then.
    pub fn insert_all(&self, ranges: &[VerifiedRange<'_>]) -> Result<(), StoreError> {
        self.inner.core.insert_all(ranges)
    }

    /// The bytes of a content of one block, for a peer; `None` if it isn't here or has another number of blocks. It is not
    /// used by this: what others fetch does not keep it here longer.
    pub fn small(&self, object: &Object) -> Result<Option<Bytes>, StoreError> {
        self.inner.core.small(object)
    }

    /// Fills `buf` from `offset`, cut to the object's end; all blocks must be here. Returns the bytes read. Blocks that were not
    /// proven a short while ago are, and are dropped if they are damaged.
    ///
    /// # Errors
    /// [`StoreError::Absent`] with the first blocks that are not here.
    pub fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        self.inner.core.read(object, offset, buf)
    }

    /// Proof and bytes of blocks for a peer, proven here too unless they were a short while ago. The caller bounds the range: the answer is made in memory.
    ///
    /// # Errors
    /// [`StoreError::Absent`] for blocks that are not here, an empty range, or blocks beyond the object's end.
    pub fn encode(&self, object: &Object, blocks: Range<u64>) -> Result<Buffer, StoreError> {
        self.inner.core.encode_proven(object, blocks)
    }

    /// The backing file of a content that is all here, for somebody who reads it without asking the store; `None` for others,
    /// small ones included. While it is lent its bytes stay: what the store drops, it forgets, but punches no hole for.
    pub fn lend(&self, object: &Object) -> Result<Option<Lent>, StoreError> {
        self.inner.core.lend(object)
    }

    /// Copies bytes of a content, all of which must be here, to the same offset of a file; shares them where the filesystem
    /// can.
    ///
    /// # Errors
    /// [`StoreError::Absent`] with the first blocks that are not here.
    pub fn copy_to(
        &self,
        object: &Object,
        bytes: Range<u64>,
        to: &std::fs::File,
    ) -> Result<(), StoreError> {
        self.inner.core.copy_to(object, bytes, to)
    }

    /// Leaf hashes of blocks that are here, proven against the content id; `None` where they can't be had: of a content of
    /// one block, of blocks that only pass through memory, or if the hash tree is damaged.
    ///
    /// # Errors
    /// [`StoreError::Absent`] for blocks that are not here.
    pub fn leaves(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<Option<Vec<LeafHash>>, StoreError> {
        self.inner.core.leaves(object, blocks)
    }

    /// The inner nodes above blocks, as [`crate::content::encode_nodes`] has them, proven; `None` where they aren't all here, or
    /// are damaged. The caller bounds the range: the answer is made in memory.
    ///
    /// # Errors
    /// Of the index and the disk.
    pub fn nodes_above(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.core.nodes_above(object, blocks)
    }

    /// Waits for damage that was found while something was read, and that nobody has repaired yet: the blocks were dropped.
    /// For one task at a time.
    pub async fn damage_found(&self) -> Damage {
        self.inner.core.found.next().await
    }

    /// Looks again at blocks that could not be read or did not match, and draws the consequences of what it proves now.
    /// Blocks that match stay. Blocks that were read and do not match are dropped, as are those whose file is gone. Blocks
    /// that the disk doesn't give count as absent, so that they are fetched, while their bytes stay where they are: they
    /// are tried again when they are read and absent still, and after a restart.
    ///
    /// # Errors
    /// When nothing could be found out, as with too many open files: then nothing has changed.
    pub fn reprove(&self, object: &Object, blocks: Range<u64>) -> Result<(), StoreError> {
        self.inner.core.reprove(object, blocks)
    }

    /// Drops blocks. Reads that run meanwhile get the bytes or [`StoreError::Absent`]. Of a content that was written here
    /// the bytes may be the only ones there are: they stay in the file until they are had anew, and with the last block
    /// the file is put aside in `lost/`.
    pub fn drop_blocks(&self, object: &Object, blocks: Range<u64>) -> Result<(), StoreError> {
        self.inner.core.drop_blocks(object, blocks)
    }

    /// Paths that are pinned, as they were given.
    pub fn pins(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        self.inner.core.pins()
    }

    /// Pins a path, or unpins it; on disk when it returns.
    pub fn set_pin(&self, path: &[u8], pinned: bool) -> Result<(), StoreError> {
        self.inner.core.set_pin(path, pinned)
    }

    /// Counts one name more (or less) under which a content stands below pinned paths. True when it is the first. What is
    /// counted is forgotten when the store is closed.
    pub fn count_pinned(
        &self,
        object: &Object,
        path: &[u8],
        more: bool,
    ) -> Result<bool, StoreError> {
        self.inner.core.count_pinned(object, path, more)
    }

    /// Whether a content stands below pinned paths, as far as was counted.
    pub fn is_pinned(&self, object: &Object) -> Result<bool, StoreError> {
        self.inner.core.is_pinned(object)
    }

    /// Contents that are counted as pinned, each with a path, in the order of their ids: those after `after`.
    pub fn pinned_after(
        &self,
        after: Option<&Object>,
        limit: usize,
    ) -> Result<Vec<(Object, Vec<u8>)>, StoreError> {
        self.inner.core.pinned_after(after, limit)
    }

    /// Drops all that is here of a content, whoever wrote it; on disk when it returns. The bytes that were here, or `None`
    /// where it is pinned, promised to others, lent, or something unpublished has the same content: then it stays. Whether another copy is left is up to the caller.
    pub fn evict(&self, object: &Object) -> Result<Option<u64>, StoreError> {
        self.inner.core.evict(object)
    }

    /// Records that members were promised to find a content here until then (seconds since 1970), or longer where that was
    /// promised before; not on disk before [`Store::make_durable`]. False, with nothing recorded, where it isn't whole here. From now on the content counts as written
    /// here: it may be the only copy once the promise has ended.
    pub fn promise(&self, object: &Object, until_s: u64) -> Result<bool, StoreError> {
        self.inner.core.promise(object, until_s)
    }

    /// Puts what is here of these contents on disk, records, promises and all else that the index has along with it. Of which
    /// that is true.
    ///
    /// # Errors
    /// Of the index: of none.
    pub fn make_durable(&self, objects: &[Object]) -> Result<Vec<bool>, StoreError> {
        self.inner.core.make_all_durable(objects)
    }

    /// Whether anybody was promised to find a content here beyond now.
    pub fn is_promised(&self, object: &Object, now_s: u64) -> Result<bool, StoreError> {
        self.inner.core.is_promised(object, now_s)
    }

    /// Forgets what was counted, to count anew.
    pub fn forget_pinned(&self) -> Result<(), StoreError> {
        self.inner.core.forget_pinned()
    }

    /// Sizes under which this content id is here, at least in part.
    pub fn sizes_of(&self, content: &ContentId) -> Result<Vec<u64>, StoreError> {
        self.inner.core.sizes_of(content)
    }

    /// Calls back for every object with its presence and origin; stops when the callback says false.
    pub fn each_object(
        &self,
        visit: &mut dyn FnMut(Object, Presence, Origin) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.core.each_object(visit)
    }

    /// Checks every present block against its hash, as it is on the disk, with several threads, calling back for each damaged
    /// range from this one; returns (objects, bytes) checked. `progress` tells how far it is, and ends it.
    /// Drops nothing: that is up to the caller ([`Store::reprove`], then fetch again). A damaged hash tree over sound
    /// data of a complete object is made anew and is no damage.
    pub fn verify(
        &self,
        progress: &VerifyProgress,
        damaged: &mut dyn FnMut(Damage),
    ) -> Result<(u64, u64), StoreError> {
        self.inner.core.verify(progress, damaged)
    }

    /// Checks some of what is here as [`Store::verify`] does, on this thread: from a place on, or from the beginning, about
    /// `bytes_max`. What comes meanwhile before the place is left to the next round.
    pub fn verify_step(&self, from: Option<Place>, bytes_max: u64) -> Result<Step, StoreError> {
        self.inner.core.verify_step(from, bytes_max)
    }

    /// When contents were last read or written here, in seconds since 1970; what the kernel reads by itself isn't seen, but for
    /// its being lent out. A store that was just opened counts as used.
    pub fn used_at(&self) -> u64 {
        self.inner.core.used_at.load(Ordering::Relaxed)
    }

    /// Makes index records for all backing files that have none, by proving their blocks; returns how many objects were
    /// found. [`Store::open`] does it by itself after a crash and when the index is gone (so a folder whose index fails to
    /// open comes back after `index/` is removed). Inline contents live in the index alone and can't be found again.
    pub fn rebuild(&self) -> Result<u64, StoreError> {
        self.inner.core.adopt_orphans(check::Moment::Running)
    }

    /// A new, empty staging file, opened for reading and writing. It survives a crash once it has a journal record; without
    /// one, what a crash leaves of it is put aside in `lost/`.
    pub fn stage(&self) -> Result<(StagingId, std::fs::File), StoreError> {
        self.inner.core.stage()
    }

    /// The same for [`INLINE_BYTES_MAX`] bytes at most: it is in memory, and each journal record has all of it; `None` where too many
    /// are. Without a record a killed process leaves nothing of it.
    ///
    /// [`INLINE_BYTES_MAX`]: crate::content::INLINE_BYTES_MAX
    pub fn stage_small(&self) -> Result<Option<(StagingId, Arc<std::fs::File>)>, StoreError> {
        self.inner.core.stage_small()
    }

    /// Gives one of those a file on the disk, because it grows. What was opened before is no longer it.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`], with nothing done.
    pub fn unfold(&self, id: StagingId) -> Result<std::fs::File, StoreError> {
        self.inner.core.unfold(id)
    }

    /// Opens an existing one for reading and writing. If it was imported already (before a crash, say), it is detached
    /// from the object first, at the cost of a copy.
    pub fn staged(&self, id: StagingId) -> Result<std::fs::File, StoreError> {
        self.inner.core.staged(id)
    }

    /// Removes a staging file and its journal record; to be called once the entry that names the imported object was put
    /// into this store. The file itself goes after the index is on disk, so a crash finds it or the entry. If it was
    /// promised to survive power loss, its object is synced first ([`Store::settle`] before many of these is cheaper).
    pub fn unstage(&self, id: StagingId) -> Result<(), StoreError> {
        self.inner.core.unstage(id)
    }

    /// Writes the journal record; `durable` puts data (fdatasync), what is here of the base, and record on disk before
    /// returning. What is made durable goes in with `durable` false before, one call for a file at a time; the durable one may
    /// then take its time beside newer ones.
    ///
    /// A killed process leaves what was written last. The last durable record is kept until the next one: if the machine
    /// goes down, it is what [`Store::journaled`] returns, not a later one whose data may not have reached the disk. A
    /// staging file that has no durable one is put aside in `lost/` then.
    pub fn journal(
        &self,
        id: StagingId,
        record: &JournalRecord,
        durable: bool,
    ) -> Result<(), StoreError> {
        self.inner.core.journal(id, record, durable)
    }

    /// The index takes nothing any more, or does again.
    #[cfg(test)]
    pub(crate) fn refuse(&self, all: bool) {
        let refuses = &self.inner.core.index_files.refuses;
        refuses.store(all, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whoever comes there waits until what this returns is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self, moment: moments::Moment) -> moments::Held<'_> {
        self.inner.core.hold(moment)
    }

    /// Notes what becomes of the name of a staging file. To be called in the moment in which the name changes: before the head
    /// is begun that has the change ([`crate::node::namespace::Namespace::hold`]).
    /// It is taken where the index takes nothing else.
    pub fn note_fate(&self, id: StagingId, note: impl FnOnce(&mut Fate)) -> Result<(), StoreError> {
        self.inner.core.note_fate(id, note)
    }

    /// Whether there is room for another note, before a name is changed that can as well stay.
    ///
    /// # Errors
    /// [`StoreError::Full`], where there is none.
    pub fn takes_notes(&self) -> Result<(), StoreError> {
        self.inner.core.takes_notes()
    }

    /// What is noted of the name of a staging file, by an earlier process too.
    pub fn fate(&self, id: StagingId) -> Fate {
        let staging = self.inner.core.staging.lock();
        staging.fates.get(&id).cloned().unwrap_or_default()
    }

    /// All journal records, for recovery, in the order in which their files were made.
    pub fn journaled(&self) -> Result<Vec<(StagingId, JournalRecord)>, StoreError> {
        self.inner.core.journaled()
    }

    /// Hashes a complete staging file, cut or extended with zeros to `size` bytes, and makes it an object: small ones go
    /// into the index, larger ones are linked into place. Not durable by itself; made so by [`Store::settle`].
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] for a small one, with nothing done, when small ones take all that is set aside for them.
    ///
    /// Published bytes are never overwritten: from this call on nobody may write through a descriptor of the staging file.
    /// Whoever goes on writing uses [`Store::import_copy`].
    ///
    /// A crash finds, after each step:
    /// 1. hash tree made in `staging/<id>.tree`: the staging file and its journal record; the tree is removed at open.
    /// 2. hash tree renamed into place: as before; a tree over blocks that were here already proves them just as well.
    /// 3. data linked into place (a second name of the staging file): staging file and journal record, and a backing file
    ///    that is proven and indexed at open, or that replaced one whose record still holds.
    /// 4. object record made: object and journal record, until [`Store::unstage`]. Publishing it again gives equal content.
    ///
    /// `known`: hashes of whole blocks as they stand in the file now; these blocks aren't read. They are believed.
    pub fn import(&self, id: StagingId, size: u64, known: &Leaves) -> Result<Object, StoreError> {
        self.inner.core.import(id, size, known)
    }

    /// Makes an object of a staging file, cut or extended with zeros to `size` bytes, in which some blocks, not the last one, are absent: of these
    /// `known` has the hashes, and the object lacks them. It counts as fetched: nobody has it whole by this. Its hash tree is all here.
    /// The staging file stays what it is; [`Store::note_imported`] tells that it is not needed any more.
    ///
    /// # Errors
    /// `InvalidInput` if a hash is unknown; [`StoreError::Absent`] where there is no room. Some blocks may be here then, proven like
    /// others.
    pub fn import_part(
        &self,
        id: StagingId,
        size: u64,
        known: &Leaves,
        absent: &BlockSet,
    ) -> Result<Object, StoreError> {
        self.inner.core.import_part(id, size, known, absent)
    }

    /// Notes that an object has taken the place of a staging file, as [`Store::import`] does by itself.
    pub fn note_imported(&self, id: StagingId, object: Object) {
        self.inner.core.staging.lock().imported.insert(id, object);
    }

    /// As [`Store::import`], from a copy (a shared one where the filesystem can), so that the staging file stays as it is
    /// and may be written meanwhile: the object is what the copy caught.
    pub fn import_copy(&self, id: StagingId, size: u64) -> Result<Object, StoreError> {
        self.inner.core.import_copy(id, size)
    }

    /// Puts the data of objects that came since on disk, marks them durable, and flushes the index. For a periodic caller.
    ///
    /// # Errors
    /// What could not be synced stays marked as doubtful, to be proven after the next boot.
    pub fn settle(&self) -> Result<(), StoreError> {
        self.inner.core.settle()
    }

    /// Puts the data of contents on disk that were written here. Before an entry that names one is on disk: else the machine
    /// going down would leave an entry without its content, in place of the one before it.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub fn settle_written(&self) -> Result<(), StoreError> {
        self.inner.core.settle_written()
    }

    /// Bounds what is taken from now on. Before, everything fits.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.core.packs.fit(limits.cache_bytes_max);
        self.inner.core.room.set_limits(limits);
    }

    /// What is taken, and what may be.
    pub fn room(&self) -> RoomReport {
        self.inner.core.room_report()
    }

    /// Whether something found no room a moment ago: what is fetched ahead then is fetched for nothing.
    pub fn is_tight(&self) -> bool {
        self.inner.core.room.is_tight()
    }

    /// Has a staging file grow by at most `bytes`, if there is room for them. It waits for nothing but `act`.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`], with nothing done, when there is too little: [`Store::make_room`] may help.
    pub fn grow<T>(
        &self,
        file: &std::fs::File,
        bytes: u64,
        act: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        self.inner.core.grow(file, bytes, act)
    }

    /// Lets go what may go, until there is room for `bytes`; false if that doesn't suffice: [`Store::search_room`] may find more.
    /// Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when there can't be so much room, whatever goes.
    pub fn make_room(&self, bytes: u64) -> Result<bool, StoreError> {
        self.inner.core.make_room_for(bytes)
    }

    /// Contents of a kind that were used least recently, in that order, with who wrote them: at most so many, those after one.
    /// Without those that may not go (pinned, promised to others) or were cleared already. It reads all records.
    pub fn oldest(
        &self,
        size: Size,
        after: Option<Candidate>,
        max: usize,
    ) -> Result<Vec<(Candidate, Origin)>, StoreError> {
        self.inner.core.oldest(size, after, max)
    }

    /// Lets a content go, when room is needed, until then (seconds since 1970). The caller knows that another copy is
    /// left, or that none is needed. Writing the same content here takes it back. False if too many are cleared.
    pub fn clear(&self, candidate: &Candidate, until_s: u64) -> bool {
        self.inner.core.clear(candidate, until_s)
    }

    /// As [`Store::clear`], where another member promised to keep it: known after a restart, too. `origin`: as it was when that
    /// was asked for; what was written here was proven to be there.
    pub fn clear_promised(&self, candidate: &Candidate, until_s: u64, origin: Origin) -> bool {
        self.inner.core.clear_promised(candidate, until_s, origin)
    }

    /// Clears what earlier processes were promised by others; whether there was any. Once it is known what is pinned.
    pub fn recover_cleared(&self) -> Result<bool, StoreError> {
        self.inner.core.recover_cleared()
    }

    /// It begins to be found out what nothing refers to: from now on it is noted what [`Store::keep`] keeps.
    pub fn look_begins(&self, size: Size) {
        self.inner.core.note_kept(size, true);
    }

    /// It was found out.
    pub fn look_ends(&self, size: Size) {
        self.inner.core.note_kept(size, false);
    }

    /// As [`Store::clear`], for what nothing refers to; false, too, if it was kept since [`Store::look_begins`].
    pub fn clear_unreferenced(&self, candidate: &Candidate, until_s: u64) -> bool {
        self.inner.core.clear_unreferenced(candidate, until_s)
    }

    /// Something refers to a content from now on: it stays, unless another member keeps it.
    pub fn keep(&self, object: &Object) {
        self.inner.core.room.keep(object);
    }

    /// The contents below what was written and not published, as the journal has it: of all records there are.
    pub fn journal_bases(&self) -> Result<HashSet<Object>, StoreError> {
        self.inner.core.journal_bases()
    }

    /// Room of what of a kind goes when room is needed; `None` if no more may be cleared.
    pub fn cleared(&self, size: Size) -> Option<u64> {
        self.inner.core.cleared(size)
    }

    /// Returns when it should be found out what may go.
    pub async fn room_wanted(&self) {
        let wanted = self.inner.core.room.wanted.clone();
        wanted.notified().await;
    }

    /// Whether so much is taken, and so little cleared, that it should be found out what may go.
    pub fn wants_room(&self) -> bool {
        self.inner.core.wants_victims()
    }

    /// Notes that somebody finds out now what may go.
    pub fn search_begins(&self) {
        let searches = &self.inner.core.room.searches;
        searches.send_modify(|searches| searches.begun += 1);
    }

    /// Notes that this ended, and whether anything was found.
    pub fn search_ends(&self, found: bool) {
        self.inner.core.room.searches.send_modify(|searches| {
            searches.ended = searches.begun;
            searches.found = found;
        });
    }

    /// Has what may go be found out, by whoever said with [`Store::search_begins`] that he does; true if something was found.
    /// Bounded by whoever searches.
    pub async fn search_room(&self) -> bool {
        let room = &self.inner.core.room;
        let mut searches = room.searches.subscribe();
        let before = *searches.borrow_and_update();
        if before.begun == 0 {
            return false;
        }
        room.wanted.notify_one();
        // One that has begun already may have passed by what is to be found.
        let ended = searches.wait_for(|searches| searches.ended > before.begun);
        ended.await.is_ok_and(|searches| searches.found)
    }

    /// Room taken. Objects are counted as they come and go; staging files are looked at, so not for every operation.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.core.usage()
    }
}

/// Old roots dropped when one is put: more than come in.
const ROOTS_DROPPED_MAX: usize = 16;

/// All pairs of a small tree.
fn all(tree: &sled::Tree) -> Result<Pairs, StoreError> {
    tree.iter()
        .map(|pair| {
            let (key, value) = pair?;
            Ok((key.to_vec(), value.to_vec()))
        })
        .collect()
}
