//! Staging: contents in the making, and their way to becoming objects.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Fate, JournalRecord, Origin, Presence, StagingId, StoreError,
    cache::{Core, Files, TreeFile, remove_file},
    failed,
    folder::sync_dir,
    moments::Moment,
    policy::{Want, small_room},
    record::journal_key,
};
use crate::{
    buffers::Buffer,
    content::{self, BLOCK_BYTES, BlockSet, INLINE_BYTES_MAX, Leaves, Object},
    linux,
};

/// Ids are taken from the index this many at a time, with one flush: no id is given out twice, whatever crashes.
const IDS_RESERVED: u64 = 1024;
/// Files in memory at most, each of which takes a descriptor, and this part of those at most that the process may have; others get
/// one on the disk.
const SMALL_MAX: u64 = 1024;
const SMALL_PART: u64 = 8;
/// Where the end of the reserved ids is kept.
const RESERVED_KEY: &str = "staging ids";
/// Size of the unit of `st_blocks`, whatever the filesystem.
pub(super) const STAT_BLOCK_BYTES: u64 = 512;

/// Blocks that are proven at a time: 1 MiB.
const PART_BLOCKS: u64 = 16;

/// What is known of staging files while the process runs.
#[derive(Default)]
pub(super) struct Staging {
    /// Ids from here on are free…
    next: u64,
    /// …up to here, exclusively.
    reserved: u64,
    /// The highest id of a file that was there at the start: an index that was lost has forgotten that it was given out.
    pub(super) used: u64,
    /// Those that are in memory.
    small: HashMap<StagingId, Arc<File>>,
    /// Files whose name may not be on disk.
    pub(super) unsynced: HashSet<StagingId>,
    /// The latest object that each imported file became.
    pub(super) imported: HashMap<StagingId, Object>,
    /// What became of the names of files, by the last process too.
    pub(super) fates: HashMap<StagingId, Fate>,
    /// Files that are done, to be unlinked with their journal record once the index is on disk.
    pub(super) unstaged: HashSet<StagingId>,
}

impl Staging {
    /// Whether a file is in memory.
    pub(super) fn is_small(&self, id: StagingId) -> bool {
        self.small.contains_key(&id)
    }
}

/// How an imported file gets its place among the objects.
enum Placing {
    /// As a second name.
    Link,
    /// By moving it.
    Move,
}

impl Core {
    pub(super) fn staging_dir(&self) -> PathBuf {
        self.dir.join("staging")
    }

    pub(super) fn staging_path(&self, id: StagingId) -> PathBuf {
        self.staging_dir().join(id.0.to_string())
    }

    /// A path for another file that belongs to a staging file; temporary ones are removed at open.
    pub(super) fn temporary_path(&self, id: StagingId, extension: &str) -> PathBuf {
        self.staging_path(id).with_extension(extension)
    }

    fn next_staging_id(&self, staging: &mut Staging) -> Result<StagingId, StoreError> {
        if staging.next == staging.reserved {
            let start = match self.meta.get(RESERVED_KEY)? {
                Some(value) => u64::from_be_bytes(
                    value
                        .as_ref()
                        .try_into()
                        .map_err(|_| StoreError::Damaged(RESERVED_KEY.to_owned()))?,
                ),
                None => 1,
            };
            let start = start.max(staging.used.saturating_add(1));
            let end = start.saturating_add(IDS_RESERVED);
            self.index_takes(0)?;
            self.meta.insert(RESERVED_KEY, &end.to_be_bytes())?;
            self.flush_index()?;
            staging.next = start;
            staging.reserved = end;
        }
        let id = StagingId(staging.next);
        staging.next += 1;
        Ok(id)
    }

    pub(super) fn stage(&self) -> Result<(StagingId, File), StoreError> {
        let id = self.next_staging_id(&mut self.staging.lock())?;
        let path = self.staging_path(id);
        let file = new_file(&path)?;
        self.staging.lock().unsynced.insert(id);
        Ok((id, file))
    }

    /// See [`super::Store::stage_small`]. The disk's filesystem looks long for an inode where many were freed just now, so
    /// files that live for a moment are dear.
    pub(super) fn stage_small(&self) -> Result<Option<(StagingId, Arc<File>)>, StoreError> {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let max = descriptors.map_or(SMALL_MAX, |all| SMALL_MAX.min(all / SMALL_PART));
        if self.staging.lock().small.len() as u64 >= max {
            return Ok(None);
        }
        let Ok(file) = rustix::fs::memfd_create("p2pfs", rustix::fs::MemfdFlags::CLOEXEC) else {
            return Ok(None);
        };
        let file = Arc::new(File::from(file));
        let mut staging = self.staging.lock();
        let id = self.next_staging_id(&mut staging)?;
        staging.small.insert(id, file.clone());
        Ok(Some((id, file)))
    }

    /// See [`super::Store::unfold`].
    pub(super) fn unfold(&self, id: StagingId) -> Result<File, StoreError> {
        let path = self.staging_path(id);
        let Some(small) = self.staging.lock().small.get(&id).cloned() else {
            return open_existing(&path);
        };
        let bytes = bytes_of(&small, u64::MAX).map_err(failed("reading", &path))?;
        let file = new_file(&path)?;
        let written = self.grow(&file, bytes.len() as u64, || file.write_all_at(&bytes, 0));
        if let Err(error) = written {
            remove_file(&path)?;
            return Err(error);
        }
        let mut staging = self.staging.lock();
        staging.unsynced.insert(id);
        staging.small.remove(&id);
        Ok(file)
    }

    /// Whether a file is there, in memory or on the disk.
    pub(super) fn is_staged(&self, id: StagingId) -> bool {
        self.staging.lock().small.contains_key(&id) || self.staging_path(id).exists()
    }

    /// The record with what the file holds, where that is in memory.
    pub(super) fn with_bytes(
        &self,
        id: StagingId,
        record: &JournalRecord,
    ) -> Result<Option<JournalRecord>, StoreError> {
        let Some(small) = self.staging.lock().small.get(&id).cloned() else {
            return Ok(None);
        };
        let bytes = bytes_of(&small, record.size);
        let bytes = bytes.map_err(|error| failed("reading", &self.staging_path(id))(error))?;
        Ok(Some(JournalRecord {
            bytes: Some(serde_bytes::ByteBuf::from(bytes)),
            ..record.clone()
        }))
    }

    pub(super) fn staged(&self, id: StagingId) -> Result<File, StoreError> {
        let path = self.staging_path(id);
        let file = open_existing(&path)?;
        let names = file
            .metadata()
            .map_err(failed("looking at", &path))?
            .nlink();
        if names < 2 {
            return Ok(file);
        }
        // An object has the same bytes: they must not change under it. What is unpublished is not refused for lack of room.
        let length = file.metadata().map_or(0, |file| file.len());
        let _reserved = match self.reserve(Want::Files(length)) {
            Err(error) if !matches!(error, StoreError::NoRoom { .. }) => return Err(error),
            reserved => reserved.ok(),
        };
        let copy_path = self.temporary_path(id, "copy");
        let copy = copy_file(&file, u64::MAX, &copy_path)?;
        if let Err(error) = copy.sync_data() {
            remove_file(&copy_path)?;
            return Err(failed("syncing", &copy_path)(error));
        }
        fs::rename(&copy_path, &path).map_err(failed("replacing", &path))?;
        self.staging.lock().unsynced.insert(id);
        Ok(copy)
    }

    pub(super) fn unstage(&self, id: StagingId) -> Result<(), StoreError> {
        let imported = self.staging.lock().imported.get(&id).copied();
        let is_durable = self.journal.contains_key(journal_key(id))?;
        match imported {
            Some(object) if is_durable => self.make_durable(&object)?,
            Some(_) => {}
            None => {
                // Nothing replaces it: somebody removed the file, and that is on disk.
                self.latest.forget(&[id])?;
                if !is_durable {
                    remove_file(&self.staging_path(id))?;
                }
            }
        }
        let mut staging = self.staging.lock();
        // With the lock: no record of it comes from here on.
        self.journal.remove(journal_key(id))?;
        staging.imported.remove(&id);
        staging.unsynced.remove(&id);
        staging.small.remove(&id);
        staging.unstaged.insert(id);
        drop(staging);
        self.bell.ring();
        Ok(())
    }

    /// Unlinks what was unstaged, after what replaces it is on disk.
    pub(super) fn unlink_unstaged(&self) -> Result<(), StoreError> {
        // They are listed to the end: nobody takes one for a file that is there.
        let ids = self.staging.lock().unstaged.clone();
        if ids.is_empty() {
            return Ok(());
        }
        self.at(Moment::Unlink);
        self.flush_index()?;
        ids.iter()
            .try_for_each(|id| remove_file(&self.staging_path(*id)))?;
        // The record goes last: a file without one is taken for something that was lost.
        let ids: Vec<_> = ids.into_iter().collect();
        self.latest.forget(&ids)?;
        ids.iter().try_for_each(|id| self.forget_fate(*id))?;
        let mut staging = self.staging.lock();
        for id in &ids {
            staging.unstaged.remove(id);
        }
        Ok(())
    }

    /// Puts the file's name on disk, along with all others that are new.
    pub(super) fn sync_staging_name(&self, id: StagingId) -> Result<(), StoreError> {
        let fresh: Vec<_> = {
            let staging = self.staging.lock();
            if !staging.unsynced.contains(&id) {
                return Ok(());
            }
            staging.unsynced.iter().copied().collect()
        };
        sync_dir(&self.staging_dir())?;
        let mut staging = self.staging.lock();
        for id in fresh {
            staging.unsynced.remove(&id);
        }
        Ok(())
    }

    pub(super) fn import(
        &self,
        id: StagingId,
        size: u64,
        known: &Leaves,
    ) -> Result<Object, StoreError> {
        self.at(Moment::Import);
        let path = self.staging_path(id);
        let small = self.staging.lock().small.get(&id).cloned();
        if let Some(small) = small.filter(|_| size <= INLINE_BYTES_MAX) {
            let mut bytes = bytes_of(&small, size).map_err(failed("reading", &path))?;
            bytes.resize(size as usize, 0);
            let object = self.import_small(&bytes)?;
            // It stays: records may still be written until it is unstaged.
            self.staging.lock().imported.insert(id, object);
            return Ok(object);
        }
        let file = open_existing(&path)?;
        if file.metadata().map_err(failed("looking at", &path))?.len() != size {
            file.set_len(size).map_err(failed("resizing", &path))?;
        }
        let object = self.import_file(id, file, &path, size, known, &Placing::Link)?;
        self.staging.lock().imported.insert(id, object);
        Ok(object)
    }

    pub(super) fn import_copy(&self, id: StagingId, size: u64) -> Result<Object, StoreError> {
        let path = self.temporary_path(id, "copy");
        let _reserved = self.reserve(Want::Files(size))?;
        let copy = copy_file(&open_existing(&self.staging_path(id))?, size, &path)?;
        let imported = self.import_file(id, copy, &path, size, &Leaves::default(), &Placing::Move);
        // Still there unless it became the object.
        remove_file(&path)?;
        let object = imported?;
        self.staging.lock().imported.insert(id, object);
        Ok(object)
    }

    /// See [`super::Store::import_part`].
    pub(super) fn import_part(
        &self,
        id: StagingId,
        size: u64,
        known: &Leaves,
        absent: &BlockSet,
    ) -> Result<Object, StoreError> {
        let path = self.staging_path(id);
        let last = size.saturating_sub(1) / BLOCK_BYTES;
        // A hole would be hashed as zeros.
        let mut absent_blocks = absent.ranges().iter().cloned().flatten();
        if last == 0 || !absent_blocks.all(|block| block < last && known.get(block).is_some()) {
            return Err(failed("making a part of", &path)(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        let file = open_existing(&path)?;
        if file.metadata().map_err(failed("looking at", &path))?.len() != size {
            file.set_len(size).map_err(failed("resizing", &path))?;
        }
        let tree_path = self.temporary_path(id, "tree");
        let mut tree = new_file(&tree_path)?;
        let made = content::hash_over(&file, size, known, &mut tree)
            .map_err(failed("hashing", &path))
            .and_then(|content| {
                let object = Object { content, size };
                self.put_part(&object, &file, &tree, absent)?;
                Ok(object)
            });
        remove_file(&tree_path)?;
        made
    }

    /// Adds the blocks of a file but for some, and the whole hash tree.
    fn put_part(
        &self,
        object: &Object,
        data: &File,
        tree: &File,
        absent: &BlockSet,
    ) -> Result<(), StoreError> {
        for run in absent.missing(0..object.blocks()) {
            let mut at = run.start;
            while at < run.end {
                let part = at..(at + PART_BLOCKS).min(run.end);
                at = part.end;
                let length = content::encoded_bytes(*object, part.clone());
                // At most a MiB and its nodes.
                let mut encoded = Buffer::new(length as usize);
                let proven = content::encode_range(data, tree, *object, part.clone(), &mut encoded);
                proven.map_err(failed("reading", &self.staging_dir()))?;
                let range = content::verify_range(*object, part.clone(), &encoded);
                let range = range.map_err(|error| StoreError::Damaged(error.to_string()))?;
                self.insert(&range)?;
                // What there is no room for only passes.
                let is_kept = self.look(object, |state| state.require(&part).is_ok())?;
                if is_kept != Some(true) {
                    return Err(StoreError::Absent(part));
                }
            }
        }
        let Some(hot) = self.hot(object)? else {
            return Err(StoreError::Absent(0..object.blocks()));
        };
        let bytes = tree
            .metadata()
            .map_err(failed("looking at", &self.staging_dir()))?
            .len();
        let _reserved = self.reserve(Want::Files(bytes))?;
        let _change = hot.change.lock();
        if hot.state.read().record.is_complete(object) {
            return Ok(());
        }
        let files = self.files(&hot, false)?;
        if let TreeFile(Some(target)) = &files.tree {
            linux::copy_over(tree, target).map_err(failed("writing", &self.tree_path(object)))?;
        }
        self.measure(&hot, &files);
        Ok(())
    }

    /// See [`super::Store::import`] for what a crash finds.
    fn import_file(
        &self,
        id: StagingId,
        file: File,
        path: &Path,
        size: u64,
        known: &Leaves,
        placing: &Placing,
    ) -> Result<Object, StoreError> {
        if size <= INLINE_BYTES_MAX {
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, 0)
                .map_err(failed("reading", path))?;
            return self.import_small(&bytes);
        }
        let tree_path = self.temporary_path(id, "tree");
        // A single block has none: one file less to make and remove for each of many small ones.
        let mut tree = match size > BLOCK_BYTES {
            true => Some(new_file(&tree_path)?),
            false => None,
        };
        let content = match &mut tree {
            Some(tree) => content::hash_over(&file, size, known, tree),
            None => content::hash_over(&file, size, known, &mut Vec::new()),
        }
        .map_err(failed("hashing", path))?;
        let object = Object { content, size };
        let is_made = tree.is_some();
        let placed = self.place(&object, file, path, (tree, &tree_path), known, placing);
        if is_made {
            // Still there unless it became the object's.
            remove_file(&tree_path)?;
        }
        placed?;
        Ok(object)
    }

    /// Puts a small content into the index.
    fn import_small(&self, bytes: &[u8]) -> Result<Object, StoreError> {
        if bytes.is_empty() {
            return Ok(Object::empty());
        }
        let object = Object {
            content: content::hash_bytes(bytes),
            size: bytes.len() as u64,
        };
        let _reserved = match self.presence(&object)? {
            Presence::Complete => None,
            _ => Some(self.reserve(Want::Written(small_room(object.size)))?),
        };
        self.put_inline(&object, bytes, Origin::Written)?;
        self.note_index_if_grown()?;
        Ok(object)
    }

    /// Makes an object of `data`; `tree` is there if it has more than one block.
    fn place(
        &self,
        object: &Object,
        data: File,
        path: &Path,
        (tree, tree_path): (Option<File>, &Path),
        known: &Leaves,
        placing: &Placing,
    ) -> Result<(), StoreError> {
        let hot = self.hot_or_new(object)?;
        if hot.state.read().record.is_complete(object) {
            // Where the disk has spoiled it, the new one is to take its place.
            self.prove(object, &(0..object.blocks()))?;
        }
        let change = hot.change.lock();
        {
            let mut state = hot.state.write();
            if state.record.is_complete(object) {
                self.keep_written(&hot, &mut state);
                if state.record.origin != Origin::Written {
                    state.record.origin = Origin::Written;
                    state.dirty = true;
                }
                drop(state);
                return self.write_record(&hot, &change);
            }
        }
        if !hot.state.read().record.present.is_empty() {
            // Some blocks may be durable, and must be so in the files that replace theirs.
            data.sync_data().map_err(failed("syncing", path))?;
            if let Some(tree) = &tree {
                tree.sync_data().map_err(failed("syncing", tree_path))?;
            }
        }
        if tree.is_some() {
            let target = self.tree_path(object);
            fs::rename(tree_path, &target).map_err(failed("placing", &target))?;
        }
        let _uncounted = self.while_uncounted();
        let target = self.data_path(object);
        let was_staging = match (placing, data.metadata()) {
            (Placing::Link, Ok(file)) if file.nlink() < 2 => file.blocks() * STAT_BLOCK_BYTES,
            _ => 0,
        };
        let data = match placing {
            Placing::Move => fs::rename(path, &target).map(|()| data),
            Placing::Link => link_over(path, &target, data),
        }
        .map_err(failed("placing", &target))?;
        // From here on it is counted as the object's.
        self.room.no_staging(was_staging);
        let files = Files {
            data: Arc::new(data),
            tree: TreeFile(tree.map(Arc::new)),
        };
        self.complete(&hot, &change, files, known)
    }

    /// Room taken by staging files; those that are objects by now are counted there.
    pub(super) fn staging_bytes(&self) -> Result<u64, StoreError> {
        let dir = self.staging_dir();
        let mut bytes = 0;
        for entry in fs::read_dir(&dir).map_err(failed("listing", &dir))? {
            let entry = entry.map_err(failed("listing", &dir))?;
            match entry.metadata() {
                Ok(file) if file.nlink() < 2 => bytes += file.blocks() * STAT_BLOCK_BYTES,
                // An object's as well, or gone since it was listed.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("looking at", &entry.path())(error)),
            }
        }
        Ok(bytes)
    }
}

/// What a file in memory holds, up to a length.
fn bytes_of(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; INLINE_BYTES_MAX.min(length) as usize];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

pub(super) fn new_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("making", path))
}

pub(super) fn open_existing(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed("opening", path))
}

/// Copies a file to a new one of at most `size` bytes, or exactly `size` when it is not `u64::MAX`; shares the extents
/// where the filesystem can.
fn copy_file(from: &File, size: u64, path: &Path) -> Result<File, StoreError> {
    let copy = new_file(path)?;
    let copied = (|| {
        if rustix::fs::ioctl_ficlone(&copy, from).is_err() {
            // Copies within the kernel where it can.
            let mut source = from.try_clone()?;
            io::Seek::seek(&mut source, io::SeekFrom::Start(0))?;
            io::copy(&mut source.take(size), &mut &copy)?;
        }
        if size != u64::MAX {
            copy.set_len(size)?;
        }
        io::Result::Ok(())
    })();
    if let Err(error) = copied {
        remove_file(path)?;
        return Err(failed("copying to", path)(error));
    }
    Ok(copy)
}

/// Gives a file a second name, replacing what has it; on filesystems without hard links, a copy gets the name. Returns the
/// file that has the name now.
fn link_over(path: &Path, target: &Path, file: File) -> io::Result<File> {
    // Most contents are new.
    if fs::hard_link(path, target).is_ok() {
        return Ok(file);
    }
    let partial = target.with_extension("new");
    if let Err(error) = fs::remove_file(&partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let placed = match fs::hard_link(path, &partial) {
        Ok(()) => file,
        Err(_) => {
            let mut copy = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&partial)?;
            if let Err(error) = io::copy(&mut &file, &mut copy) {
                fs::remove_file(&partial)?;
                return Err(error);
            }
            copy
        }
    };
    fs::rename(&partial, target)?;
    // Renaming does nothing when both are names of one file already.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(placed),
    }
}
