//! What an open store is made of, and the objects in use with their open files and their records.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, MutexGuard, RwLock};
use positioned_io::ReadAt;

use super::{
    Origin, Presence, StoreError, Usage,
    check::CLEAN_KEY,
    failed,
    index::IndexFiles,
    latest::Latest,
    packs::{Packs, Spot},
    proving::{Found, Proven},
    record::{ObjectRecord, object_key},
    rescue,
    room::{Room, estimate},
    settle::WholeDisk,
    staging::Staging,
    worker::Bell,
};
use crate::content::{BlockSet, Object};

/// Shards of the cache of objects in use, so that looking up one object doesn't wait for the record of another.
pub(super) const SHARDS: usize = 16;
/// Objects per shard that are kept with open files (up to two each) when nobody uses them: 256 in all.
const SHARD_OBJECTS_MAX: usize = 16;
/// What the record of a small content takes at most.
const RECORD_BYTES: u64 = 32;

/// All of an open store but its lock and its thread.
pub(super) struct Core {
    pub(super) dir: PathBuf,
    pub(super) db: sled::Db,
    pub(super) index_files: IndexFiles,
    pub(super) meta: sled::Tree,
    pub(super) settings: sled::Tree,
    pub(super) nodes: sled::Tree,
    pub(super) heads: sled::Tree,
    pub(super) roots: sled::Tree,
    pub(super) peers: sled::Tree,
    pub(super) objects: sled::Tree,
    pub(super) journal: sled::Tree,
    pub(super) fates: sled::Tree,
    pub(super) pins: sled::Tree,
    pub(super) pinned: sled::Tree,
    pub(super) promises: sled::Tree,
    pub(super) cleared: sled::Tree,
    pub(super) restored_copy: AtomicBool,
    /// Closed in order, though somebody still has it.
    pub(super) closed: AtomicBool,
    pub(super) objects_bytes: AtomicU64,
    pub(super) pinned_bytes: AtomicU64,
    pub(super) promised_bytes: AtomicU64,
    pub(super) room: Room,
    pub(super) packs: Packs,
    pub(super) found: Found,
    pub(super) bell: Bell,
    pub(super) staging: Mutex<Staging>,
    pub(super) latest: Latest,
    pub(super) disk: WholeDisk,
    shards: [Mutex<Shard>; SHARDS],
    /// When contents were last read or written through here, in seconds since 1970.
    pub(super) used_at: AtomicU64,
    /// Objects whose record is behind.
    dirty: Mutex<HashSet<Object>>,
    /// Objects with loose blocks.
    pub(super) loose: Mutex<HashSet<Object>>,
    /// Those that could not be synced: a second try would succeed without proving anything.
    pub(super) unsettled: Mutex<HashSet<Object>>,
    /// A test has the disk sync nothing of them.
    #[cfg(test)]
    pub(super) fails_to_sync: AtomicBool,
    /// One writing of all records at a time.
    recording: Mutex<()>,
    /// One settling at a time.
    pub(super) settling: Mutex<()>,
    #[cfg(test)]
    pub(super) moments: super::moments::Moments,
}

#[derive(Default)]
pub(super) struct Shard {
    tick: u64,
    objects: HashMap<Object, (Arc<Hot>, u64)>,
}

impl Shard {
    pub(super) fn get(&self, object: &Object) -> Option<Arc<Hot>> {
        self.objects.get(object).map(|(hot, _)| Arc::clone(hot))
    }

    /// Gets an object and notes that it is used.
    fn touch(&mut self, object: &Object) -> Option<Arc<Hot>> {
        self.tick += 1;
        let (hot, used) = self.objects.get_mut(object)?;
        *used = self.tick;
        Some(Arc::clone(hot))
    }
}

/// An object in use. There is never more than one of these for an object.
pub(super) struct Hot {
    pub(super) object: Object,
    /// Held by whoever changes files or record of the object.
    pub(super) change: Mutex<()>,
    pub(super) state: RwLock<State>,
    /// Newer than the one in the record…
    pub(super) last_use: AtomicU64,
    /// …which is this one.
    pub(super) noted_use: AtomicU64,
    /// How often its backing file is lent out.
    pub(super) lent: AtomicU64,
}

/// What is known of an object. `present` is right at any time; the record in the index follows.
pub(super) struct State {
    pub(super) record: ObjectRecord,
    /// Loose blocks that are being synced right now.
    pub(super) settling: BlockSet,
    /// Blocks that the disk did not give: absent for everybody, but their bytes are left alone and the record lists them.
    pub(super) withdrawn: BlockSet,
    pub(super) files: Option<Files>,
    /// What the files take, as it is counted.
    pub(super) room: u64,
    /// Counts drops: a read that sees it change looks again.
    pub(super) drops: u64,
    /// Whether the record in the index is behind.
    pub(super) dirty: bool,
    /// Whether the content, a small one, is to be put into a pack with it.
    pub(super) unpacked: bool,
    /// What was proven a short while ago.
    pub(super) proven: Proven,
    /// Blocks added since it was written.
    pub(super) unrecorded: u64,
    /// Whether there is one.
    pub(super) recorded: bool,
}

/// The backing file and, for more than one block, the hash tree.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) data: Arc<File>,
    pub(super) tree: TreeFile,
}

/// A hash tree to read: of a single block it has no bytes.
#[derive(Clone)]
pub(super) struct TreeFile(pub(super) Option<Arc<File>>);

impl ReadAt for TreeFile {
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Some(file) => FileExt::read_at(&**file, buf, pos),
            None => Ok(0),
        }
    }
}

impl State {
    pub(super) fn absent() -> Self {
        Self {
            record: ObjectRecord {
                origin: Origin::Fetched,
                size_proven: false,
                last_use: now(),
                inline: None,
                packed: None,
                present: BlockSet::default(),
                loose: BlockSet::default(),
            },
            settling: BlockSet::default(),
            withdrawn: BlockSet::default(),
            files: None,
            room: 0,
            drops: 0,
            dirty: false,
            unpacked: false,
            proven: Proven::default(),
            unrecorded: 0,
            recorded: false,
        }
    }

    pub(super) fn recorded(record: ObjectRecord) -> Self {
        Self {
            record,
            recorded: true,
            ..Self::absent()
        }
    }

    pub(super) fn presence(&self, object: &Object) -> Presence {
        if self.record.is_complete(object) {
            Presence::Complete
        } else if self.record.present.is_empty() {
            Presence::Absent
        } else {
            Presence::Partial(self.record.present.clone())
        }
    }

    /// Whether the files hold nothing that anybody wants.
    pub(super) fn is_vacant(&self) -> bool {
        self.record.present.is_empty() && self.withdrawn.is_empty()
    }

    /// [`StoreError::Absent`] unless all the blocks are here.
    pub(super) fn require(&self, blocks: &Range<u64>) -> Result<(), StoreError> {
        match self.record.present.missing(blocks.clone()).next() {
            None => Ok(()),
            Some(missing) => Err(StoreError::Absent(missing)),
        }
    }
}

/// Which shard an object is in; always below [`SHARDS`].
pub(super) fn shard_of(object: &Object) -> usize {
    // The first byte names the folder; any other is as good.
    usize::from(object.content.0[31]) % SHARDS
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How many bytes these blocks of the object have.
pub(super) fn bytes_in(object: &Object, blocks: &BlockSet) -> u64 {
    blocks
        .ranges()
        .iter()
        .map(|range| object.bytes_of(range.clone()))
        .map(|bytes| bytes.end - bytes.start)
        .sum()
}

impl Core {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let index = dir.join("index");
        let db = rescue::open_sound(dir)?;
        // Before anything is put into it.
        let index_files = IndexFiles::open(&index)?;
        let disk = WholeDisk::open(dir)?;
        let packs = Packs::open(dir)?;
        let (latest, is_damaged) = Latest::open(dir.join("journal"))?;
        let meta = db.open_tree("meta")?;
        // If it was closed in order, the index has all of it.
        if is_damaged && !meta.contains_key(CLEAN_KEY)? {
            tracing::error!(
                "the journal of unpublished files was damaged: an older state of some may be taken, or they are put aside in `lost`"
            );
        }
        // What an earlier process counted may not hold any more.
        db.drop_tree("pinned")?;
        Ok(Self {
            meta,
            settings: db.open_tree("settings")?,
            nodes: db.open_tree("nodes")?,
            heads: db.open_tree("heads")?,
            roots: db.open_tree("roots")?,
            peers: db.open_tree("peers")?,
            objects: db.open_tree("objects")?,
            journal: db.open_tree("journal")?,
            fates: db.open_tree("fates")?,
            pins: db.open_tree("pins")?,
            pinned: db.open_tree("pinned")?,
            promises: db.open_tree("promises")?,
            cleared: db.open_tree("cleared")?,
            index_files,
            db,
            dir: dir.to_owned(),
            restored_copy: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            objects_bytes: AtomicU64::new(0),
            pinned_bytes: AtomicU64::new(0),
            promised_bytes: AtomicU64::new(0),
            room: Room::default(),
            packs,
            found: Found::default(),
            bell: Bell::default(),
            staging: Mutex::default(),
            latest,
            disk,
            shards: Default::default(),
            used_at: AtomicU64::new(now()),
            dirty: Mutex::default(),
            loose: Mutex::default(),
            unsettled: Mutex::default(),
            #[cfg(test)]
            fails_to_sync: AtomicBool::new(false),
            recording: Mutex::new(()),
            settling: Mutex::new(()),
            #[cfg(test)]
            moments: Default::default(),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn data_path(&self, object: &Object) -> PathBuf {
        self.dir.join("objects").join(format!(
            "{:02x}/{}-{}",
            object.content.0[0], object.content, object.size
        ))
    }

    pub(super) fn tree_path(&self, object: &Object) -> PathBuf {
        self.data_path(object).with_extension("tree")
    }

    pub(super) fn shard(&self, object: &Object) -> &Mutex<Shard> {
        &self.shards[shard_of(object)]
    }

    /// The object as it is in use, loaded from its record if need be; `None` without a record.
    pub(super) fn hot(&self, object: &Object) -> Result<Option<Arc<Hot>>, StoreError> {
        let mut shard = self.shard(object).lock();
        if let Some(hot) = shard.touch(object) {
            return Ok(Some(hot));
        }
        let state = self.recorded(object)?;
        let hot = state.map(|state| self.take_into_use(&mut shard, object, state));
        hot.transpose()
    }

    /// As [`Core::hot`], with none of its blocks if there is no record.
    pub(super) fn hot_or_new(&self, object: &Object) -> Result<Arc<Hot>, StoreError> {
        let mut shard = self.shard(object).lock();
        if let Some(hot) = shard.touch(object) {
            return Ok(hot);
        }
        let state = self.recorded(object)?.unwrap_or_else(State::absent);
        self.take_into_use(&mut shard, object, state)
    }

    fn take_into_use(
        &self,
        shard: &mut Shard,
        object: &Object,
        mut state: State,
    ) -> Result<Arc<Hot>, StoreError> {
        self.forget_idle(shard);
        if !state.withdrawn.is_empty() {
            self.count_went(object, bytes_in(object, &state.withdrawn))?;
            self.tell_of_packed(object);
        }
        // As it was counted while only its record was known.
        state.room = estimate(object, &state.record.present);
        let hot = Arc::new(Hot {
            object: *object,
            change: Mutex::new(()),
            last_use: AtomicU64::new(state.record.last_use),
            noted_use: AtomicU64::new(state.record.last_use),
            lent: AtomicU64::new(0),
            state: RwLock::new(state),
        });
        shard
            .objects
            .insert(*object, (Arc::clone(&hot), shard.tick));
        Ok(hot)
    }

    /// Forgets the least recently used objects that nobody holds. More than the maximum remain only while that many are
    /// being worked on.
    fn forget_idle(&self, shard: &mut Shard) {
        while shard.objects.len() >= SHARD_OBJECTS_MAX {
            // Only this map holds it, and the shard is locked: nobody can get at it meanwhile.
            let idle = shard
                .objects
                .values()
                .filter(|(hot, _)| Arc::strong_count(hot) == 1)
                .min_by_key(|(_, used)| *used)
                .map(|(hot, _)| Arc::clone(hot));
            let Some(idle) = idle else { break };
            if self.write_record(&idle, &idle.change.lock()).is_err() {
                // It must stay then. The worker meets the same error and reports it.
                break;
            }
            // From its record it comes back with all of its blocks.
            self.count_estimated(&idle.object, &mut idle.state.write());
            let withdrawn = bytes_in(&idle.object, &idle.state.read().withdrawn);
            if self.count_came(&idle.object, withdrawn).is_err() {
                break;
            }
            shard.objects.remove(&idle.object);
        }
    }

    /// Looks at an object without taking it into use: lists of many objects leave the cache alone. What is here is what its
    /// record says, and of a small one the content is not read.
    pub(super) fn look<R>(
        &self,
        object: &Object,
        at: impl FnOnce(&State) -> R,
    ) -> Result<Option<R>, StoreError> {
        let hot = self.shard(object).lock().get(object);
        if let Some(hot) = hot {
            return Ok(Some(at(&hot.state.read())));
        }
        let Some(value) = self.objects.get(object_key(object))? else {
            return Ok(None);
        };
        let record = ObjectRecord::decode(object, &value)?;
        Ok(Some(at(&State::recorded(record))))
    }

    /// Brings the record in the index up to date; if that fails, the worker tries again.
    pub(super) fn write_record(
        &self,
        hot: &Hot,
        _change: &MutexGuard<'_, ()>,
    ) -> Result<(), StoreError> {
        let mut state = hot.state.write();
        if !state.dirty {
            return Ok(());
        }
        state.record.last_use = hot.last_use.load(Ordering::Relaxed);
        let key = object_key(&hot.object);
        let present = !state.is_vacant();
        let written = if present {
            // Blocks that are being synced are loose until that is done.
            let mut record = state.record.clone();
            record.loose.union(&state.settling);
            record.present.union(&state.withdrawn);
            self.insert_record(&hot.object, record, state.unpacked)
        } else {
            let removed = self.objects.remove(key).map_err(StoreError::from);
            removed.map(|_| None)
        };
        match written {
            Ok(packed) => {
                let before = std::mem::replace(&mut state.record.packed, packed);
                if let Some(before) = before.filter(|_| packed != before) {
                    self.packs.release(before, &hot.object);
                }
                state.recorded = present;
                state.unpacked = false;
                state.dirty = false;
                state.unrecorded = 0;
                Ok(())
            }
            Err(error) => {
                drop(state);
                self.record_later(&hot.object);
                Err(error)
            }
        }
    }

    /// Puts a record into the index, and first, if it is `unpacked`, its content into a pack. Returns where that is.
    pub(super) fn insert_record(
        &self,
        object: &Object,
        mut record: ObjectRecord,
        unpacked: bool,
    ) -> Result<Option<Spot>, StoreError> {
        let is_new = unpacked && record.inline.is_some();
        // What it will name is no longer than that.
        self.index_takes(RECORD_BYTES.max(record.encode(object).len() as u64))?;
        if let Some(content) = record.inline.as_ref().filter(|_| is_new) {
            let before = record.packed.replace(self.pack(object, content)?);
            if before.is_some() {
                // The index is written at any moment: it is not to forget what is on the disk for what is not.
                if let Err(error) = self.packs.sync() {
                    if let Some(spot) = record.packed {
                        self.packs.release(spot, object);
                    }
                    return Err(error);
                }
            }
        }
        let value = record.encode(object);
        self.room.count_index(value.len() as u64);
        let inserted = self.objects.insert(object_key(object), value);
        if let Some(spot) = record.packed.filter(|_| is_new && inserted.is_err()) {
            self.packs.release(spot, object);
        }
        inserted?;
        Ok(record.packed)
    }

    /// Has the worker write the record soon.
    pub(super) fn record_later(&self, object: &Object) {
        self.dirty.lock().insert(*object);
        self.bell.ring();
    }

    /// Writes all records that are behind.
    pub(super) fn write_records(&self) -> Result<(), StoreError> {
        // One at a time, so that nobody returns while another still holds what it took out.
        let _one = self.recording.lock();
        let objects = std::mem::take(&mut *self.dirty.lock());
        let mut outcome = Ok(());
        for object in objects {
            let hot = self.shard(&object).lock().get(&object);
            // One that is no longer in use had its record written when it went.
            let Some(hot) = hot else { continue };
            outcome = outcome.and(self.write_record(&hot, &hot.change.lock()));
        }
        outcome
    }

    /// What the worker does.
    pub(super) fn catch_up(&self) -> Result<(), StoreError> {
        // Each whatever became of the others: on a full disk, records wait for the room that the others give back.
        let written = self.write_records();
        let unlinked = self.unlink_unstaged();
        let counted = self.count_now_and_then();
        let synced = self.sync_many_packs();
        let cleaned = self.clean_packs(0).map(drop);
        written.and(unlinked).and(counted).and(synced).and(cleaned)
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.write_records()?;
        self.flush_index()
    }

    /// The files of an object, opened if they aren't; `make` creates them.
    pub(super) fn files(&self, hot: &Hot, make: bool) -> Result<Files, StoreError> {
        if let Some(files) = &hot.state.read().files {
            return Ok(files.clone());
        }
        // Under the lock, so that nobody unlinks the files between opening and keeping them.
        let mut state = hot.state.write();
        if let Some(files) = &state.files {
            return Ok(files.clone());
        }
        if !make && state.is_vacant() {
            return Err(StoreError::Absent(0..hot.object.blocks()));
        }
        let files = self.open_files(&hot.object, make)?;
        state.files = Some(files.clone());
        Ok(files)
    }

    pub(super) fn open_files(&self, object: &Object, make: bool) -> Result<Files, StoreError> {
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(make)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map(Arc::new)
                .map_err(failed("opening", path))
        };
        let path = self.data_path(object);
        let data = open(&path)?;
        let length = data.metadata().map_err(failed("looking at", &path))?.len();
        if make && length < object.size {
            data.set_len(object.size)
                .map_err(failed("extending", &path))?;
        }
        let tree = (object.blocks() > 1)
            .then(|| open(&self.tree_path(object)))
            .transpose()?;
        Ok(Files {
            data,
            tree: TreeFile(tree),
        })
    }

    pub(super) fn usage(&self) -> Result<Usage, StoreError> {
        Ok(Usage {
            objects_bytes: self.objects_bytes.load(Ordering::Relaxed),
            pinned_bytes: self.pinned_bytes.load(Ordering::Relaxed),
            staging_bytes: self.staging_bytes()?,
            index_bytes: self.db.size_on_disk()?,
        })
    }
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removing", path)(error))
        }
        _ => Ok(()),
    }
}
