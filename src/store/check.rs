//! Checking what is on disk: after a crash, on demand, and to make an index from backing files.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use rustix::fs::SeekFrom;

use super::{
    Origin, Presence, StoreError,
    cache::{Core, Files, TreeFile, bytes_in, remove_file},
    failed, folder,
    policy::small_room,
    record::{ObjectRecord, object_key, parse_object_key},
    rescue,
    room::estimate,
    staging::STAT_BLOCK_BYTES,
};
use crate::buffers::Buffer;
use crate::content::{self, BLOCK_BYTES, BlockSet, INLINE_BYTES_MAX, Object};

/// Blocks that are read and proven at a time: 1 MiB.
const STEP_BLOCKS: u64 = 16;

/// In which boot of the machine the index was last opened.
const BOOT_KEY: &str = "boot";
/// There when the store was closed in order.
pub(super) const CLEAN_KEY: &str = "clean";
/// Identity of the folder, from [`folder::identity`].
pub(super) const ORIGIN_KEY: &str = "origin";
/// There when the index was made anew: packs may have contents that it does not name.
pub(super) const ANEW_KEY: &str = "anew";

/// When backing files are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// At the start: nobody else uses the store.
    Opening {
        /// In another boot: what can be read comes from the disk, not from memory.
        rebooted: bool,
    },
    /// At any time.
    Running,
}

impl Core {
    /// Makes the store consistent, whatever ended the last process.
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        let boot = folder::boot().unwrap_or_default();
        let known_boot = self.meta.get(BOOT_KEY)?;
        let is_same = |known: &sled::IVec| known == boot.as_bytes();
        let rebooted = boot.is_empty() || !known_boot.as_ref().is_some_and(is_same);
        let clean = self.meta.contains_key(CLEAN_KEY)?;

        // What the last process did not come to sync, or prove to be there.
        let first = self.first_unsynced()?;
        let doubtful = match clean {
            true => Vec::new(),
            false => self.packs.sync_from(first)?,
        };
        let mut is_all_found = true;
        if known_boot.is_none() || self.meta.contains_key(ANEW_KEY)? {
            is_all_found = self.adopt_packed(0)?;
        } else if !clean {
            // The journal's records may refer to them.
            is_all_found = self.adopt_packed(first)?;
            if !is_all_found {
                self.meta.insert(ANEW_KEY, &[])?;
            }
        }
        let unproven = if rebooted { first } else { u32::MAX };
        let sound = self.recover_records(rebooted, unproven)?;
        if !sound {
            is_all_found &= self.adopt_packed(0)?;
            self.packs.claim_none();
            self.recover_records(rebooted, unproven)?;
        }
        for number in doubtful {
            tracing::error!(
                number,
                "a pack could not be synced; what is in it is written anew"
            );
            self.empty_pack(number)?;
        }
        self.room.count_packs(&self.packs);
        if let Err(error) = self.clean_packs(0) {
            tracing::warn!(%error, "small contents that are not wanted any more stay for now");
        }
        if !clean || !sound {
            self.adopt_orphans(Moment::Opening { rebooted })?;
        }
        self.recover_staging(rebooted, clean)?;
        self.recover_unsettled()?;
        self.recover_origin()?;
        self.recover_promises()?;
        self.count_now_and_then()?;

        self.meta.insert(BOOT_KEY, boot.as_bytes())?;
        self.meta.remove(CLEAN_KEY)?;
        if is_all_found {
            self.meta.remove(ANEW_KEY)?;
        }
        self.flush_index()
    }

    /// Syncs everything and notes that nothing needs looking at.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        self.settle()?;
        self.settle_journal()?;
        self.unlink_unstaged()?;
        self.sync_packs()?;
        self.meta.insert(CLEAN_KEY, &[])?;
        self.flush_index()?;
        rescue::note_end(&self.dir)?;
        // What is out of date is not to be found should the rest be damaged.
        self.latest.keep(|_| true)
    }

    fn recover_origin(&self) -> Result<(), StoreError> {
        let identity = folder::identity(&self.dir)?;
        match self.meta.get(ORIGIN_KEY)? {
            Some(known) if known != identity => {
                self.restored_copy.store(true, Ordering::Relaxed);
                // Whoever promised may have this one's place by now.
                self.cleared.clear()?;
            }
            Some(_) => self.restored_copy.store(false, Ordering::Relaxed),
            None => {
                self.meta.insert(ORIGIN_KEY, &identity)?;
            }
        }
        Ok(())
    }

    pub(super) fn is_restored_copy(&self) -> bool {
        self.restored_copy.load(Ordering::Relaxed)
    }

    pub(super) fn settle_here(&self) -> Result<(), StoreError> {
        self.meta
            .insert(ORIGIN_KEY, &folder::identity(&self.dir)?)?;
        self.flush_index()?;
        self.restored_copy.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Counts what is here and, after a reboot, proves what is loose. False if a record was damaged and has been removed.
    /// Small contents in packs from `unproven` on are read, since a pack may be as long as it should and lack what did not reach the disk.
    fn recover_records(&self, rebooted: bool, unproven: u32) -> Result<bool, StoreError> {
        let mut sound = true;
        let (mut bytes, mut files, mut small) = (0, 0, 0);
        for pair in self.objects.iter() {
            let (key, value) = pair?;
            let decoded = parse_object_key(&key)
                .and_then(|object| Ok((object, ObjectRecord::decode(&object, &value)?)));
            let (object, mut record) = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    tracing::warn!(%error, "removing a record; its blocks are proven and indexed again");
                    // Not to be forgotten, should this not come to its end.
                    self.meta.insert(ANEW_KEY, &[])?;
                    self.objects.remove(key)?;
                    sound = false;
                    continue;
                }
            };
            if !record.loose.is_empty() {
                if rebooted {
                    self.prove_loose(&object, &mut record)?;
                } else {
                    self.loose.lock().insert(object);
                }
            }
            if let Some(spot) = record.packed
                && (spot.pack >= unproven
                    && matches!(self.packs.read(spot, &object, false), Ok(None))
                    || !self.packs.claim(spot, &object))
            {
                tracing::warn!(content = %object.content, "did not survive the machine going down");
                self.objects.remove(key)?;
                continue;
            }
            bytes += bytes_in(&object, &record.present);
            files += estimate(&object, &record.present);
            if object.size <= INLINE_BYTES_MAX {
                small += small_room(object.size);
            }
        }
        self.room.set_counted(files, small);
        self.objects_bytes.store(bytes, Ordering::Relaxed);
        Ok(sound)
    }

    /// Forgets loose blocks that do not prove. Those that do were read from the disk, and so are on it.
    fn prove_loose(&self, object: &Object, record: &mut ObjectRecord) -> Result<(), StoreError> {
        let loose = std::mem::take(&mut record.loose);
        let proven = match self.open_files(object, false) {
            Ok(files) => proven(&files, object, loose.ranges()).0,
            // Forgotten, not removed: what can't be opened now may be found again.
            Err(_) => BlockSet::default(),
        };
        for range in loose.ranges() {
            for lost in proven.missing(range.clone()) {
                tracing::warn!(content = %object.content, blocks = ?lost, "did not survive the machine going down");
                record.present.remove(lost);
            }
        }
        if record.present.is_empty() {
            self.objects.remove(object_key(object))?;
        } else {
            self.objects
                .insert(object_key(object), record.encode(object))?;
        }
        Ok(())
    }

    /// Indexes backing files that have no record, by proving their blocks; removes those that prove nothing. Returns how
    /// many objects were found.
    pub(super) fn adopt_orphans(&self, moment: Moment) -> Result<u64, StoreError> {
        let mut adopted = 0;
        let objects = self.dir.join("objects");
        for first in 0..=u8::MAX {
            let dir = objects.join(format!("{first:02x}"));
            for entry in fs::read_dir(&dir).map_err(failed("listing", &dir))? {
                let path = entry.map_err(failed("listing", &dir))?.path();
                if path.extension() == Some(OsStr::new("new")) {
                    if moment != Moment::Running {
                        remove_file(&path)?;
                    }
                    continue;
                }
                let Some(object) = parse_file_name(&path) else {
                    tracing::warn!(path = %path.display(), "not a file of ours; left alone");
                    continue;
                };
                match self.presence(&object)? {
                    Presence::Absent => {}
                    Presence::Partial(present) if moment != Moment::Running => {
                        self.trim_unrecorded(&object, &present, &path)?;
                        continue;
                    }
                    _ => continue,
                }
                let hot = self.hot_or_new(&object)?;
                let change = hot.change.lock();
                if !hot.state.read().is_vacant() {
                    continue;
                }
                let Some(present) = self.prove_file(&object) else {
                    tracing::error!(path = %path.display(), "can't be read now: left alone");
                    continue;
                };
                if present.is_empty() {
                    if is_whole(&self.data_path(&object), &object) {
                        // It may have been written here, and be the only one.
                        tracing::error!(path = %path.display(), "a content is damaged: what is left of it is put aside in `lost`");
                        self.put_aside(&self.data_path(&object))?;
                    }
                    remove_file(&self.data_path(&object))?;
                    remove_file(&self.tree_path(&object))?;
                    continue;
                }
                let mut state = hot.state.write();
                self.count_came(&object, bytes_in(&object, &present))?;
                state.record.origin = Origin::Fetched;
                state.record.size_proven =
                    present.contains(object.blocks().saturating_sub(1)..object.blocks());
                if moment != (Moment::Opening { rebooted: true }) {
                    state.record.loose = present.clone();
                    self.loose.lock().insert(object);
                }
                state.record.present = present;
                state.dirty = true;
                self.count_estimated(&object, &mut state);
                drop(state);
                self.write_record(&hot, &change)?;
                adopted += 1;
            }
        }
        Ok(adopted)
    }

    /// Gives back what a killed process had put into a file and no record names: it would take room that nobody counts.
    fn trim_unrecorded(
        &self,
        object: &Object,
        present: &BlockSet,
        path: &Path,
    ) -> Result<(), StoreError> {
        let taken = fs::metadata(path).map_or(0, |file| file.blocks() * STAT_BLOCK_BYTES);
        if path != self.data_path(object) || taken <= estimate(object, present) + BLOCK_BYTES {
            return Ok(());
        }
        let Some(hot) = self.hot(object)? else {
            return Ok(());
        };
        let _change = hot.change.lock();
        // Of what was written here the bytes may be the only ones there are.
        let is_written = hot.state.read().record.origin == Origin::Written;
        if is_written { Ok(()) } else { self.trim(&hot) }
    }

    /// Which blocks of a backing file prove themselves. A hash tree that is missing or damaged is made anew if the file is
    /// whole. `None` if nothing proves and the reason may be that the disk or the system doesn't give it now.
    fn prove_file(&self, object: &Object) -> Option<BlockSet> {
        let open = |path: &Path| match File::open(path) {
            Ok(file) => Some(Some(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(None),
            Err(_) => None,
        };
        let Some(data) = open(&self.data_path(object))? else {
            return Some(BlockSet::default());
        };
        let tree = open(&self.tree_path(object))?;
        let files = Files {
            data,
            tree: TreeFile(tree),
        };
        let mut ranges = allocated(&files.data, object);
        let all = 0..object.blocks();
        let whole = ranges == [all.clone()];
        ranges.extend(known_holes(&files, object, &ranges));
        let (found, readable) = proven(&files, object, &ranges);
        if whole && !found.contains(all.clone()) {
            match self.remake_tree(object, &files.data) {
                Ok(true) => return Some(BlockSet::of(all)),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "a hash tree could not be made");
                    return None;
                }
            }
        }
        (readable || !found.is_empty()).then_some(found)
    }

    /// Makes the hash tree of a complete file anew; false, with nothing changed, if the file isn't the content.
    fn remake_tree(&self, object: &Object, data: &File) -> Result<bool, StoreError> {
        if object.blocks() < 2 {
            return Ok(false);
        }
        let target = self.tree_path(object);
        let partial = self.data_path(object).with_extension("new");
        let mut tree = File::create(&partial).map_err(failed("making", &partial))?;
        let hashed = content::hash_into(data, object.size, &mut tree)
            .and_then(|content| tree.sync_data().map(|()| content));
        match hashed {
            Ok(content) if content == object.content => {
                fs::rename(&partial, &target).map_err(failed("placing", &target))?;
                Ok(true)
            }
            _ => remove_file(&partial).map(|()| false),
        }
    }

    /// Makes the hash tree of a complete object anew, where it doesn't prove the hashes of some blocks: what was wrong is to
    /// be looked at again then. False if it does, so that looking for what is wrong in a large content doesn't read all of
    /// it, or if the data isn't the content.
    pub(super) fn repair_tree(
        &self,
        object: &Object,
        blocks: &Range<u64>,
    ) -> Result<bool, StoreError> {
        if object.size <= INLINE_BYTES_MAX {
            return Ok(false);
        }
        let path = self.data_path(object);
        let Ok(data) = File::open(&path) else {
            return Ok(false);
        };
        let Some(hot) = self.hot(object)? else {
            return Ok(false);
        };
        let _change = hot.change.lock();
        let proves = |tree| content::leaves_of(&tree, *object, blocks.clone()).is_ok();
        if File::open(self.tree_path(object)).is_ok_and(proves) {
            return Ok(false);
        }
        let remade = self.remake_tree(object, &data)?;
        if remade {
            // Opened again at the next use.
            hot.state.write().files = None;
        }
        Ok(remade)
    }
}

/// The object that a path among the objects belongs to.
fn parse_file_name(path: &Path) -> Option<Object> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".tree").unwrap_or(name);
    let (content, size) = name.split_once('-')?;
    let object = Object {
        content: content.parse().ok()?,
        size: size.parse().ok()?,
    };
    let in_place = path.parent()?.file_name()? == format!("{:02x}", object.content.0[0]).as_str();
    (in_place && object.size > INLINE_BYTES_MAX && object.size.to_string() == size)
        .then_some(object)
}

/// The blocks that have bytes on disk, at least in part.
pub(super) fn allocated(data: &File, object: &Object) -> Vec<Range<u64>> {
    let mut blocks = BlockSet::default();
    let mut at = 0;
    while at < object.size {
        // Fails with ENXIO behind the last data; a filesystem without holes has data everywhere.
        let Ok(start) = rustix::fs::seek(data, SeekFrom::Data(at)) else {
            break;
        };
        let end = rustix::fs::seek(data, SeekFrom::Hole(start)).unwrap_or(object.size);
        blocks.insert(start / BLOCK_BYTES..end.min(object.size).div_ceil(BLOCK_BYTES));
        at = end.max(start + 1);
    }
    blocks.ranges().to_vec()
}

/// The other blocks whose hashes are here: zeros, unless they are not here.
fn known_holes(files: &Files, object: &Object, allocated: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut holes = BlockSet::of(0..object.blocks());
    allocated
        .iter()
        .for_each(|range| holes.remove(range.clone()));
    // A single block has no tree: its hash is the content's.
    let is_known = |blocks: &Range<u64>| {
        object.blocks() == 1 || content::leaves_of(&files.tree, *object, blocks.clone()).is_ok()
    };
    let mut known = BlockSet::default();
    for step in holes.ranges().iter().flat_map(steps) {
        if is_known(&step) {
            known.insert(step);
            continue;
        }
        let blocks = step.map(|block| block..block + 1);
        blocks
            .filter(is_known)
            .for_each(|block| known.insert(block));
    }
    known.ranges().to_vec()
}

/// Whether a backing file has all its bytes, be they right or wrong.
fn is_whole(path: &Path, object: &Object) -> bool {
    let all = 0..object.blocks();
    File::open(path).is_ok_and(|data| allocated(&data, object) == [all])
}

/// Cuts a range into pieces of at most [`STEP_BLOCKS`].
pub(super) fn steps(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    range
        .clone()
        .step_by(STEP_BLOCKS as usize)
        .map(move |start| start..(start + STEP_BLOCKS).min(end))
}

/// Which of these blocks match their hashes, and whether all could be read.
fn proven(files: &Files, object: &Object, ranges: &[Range<u64>]) -> (BlockSet, bool) {
    let mut readable = true;
    let mut proves = |blocks: Range<u64>| {
        // Steps are short.
        let length = content::encoded_bytes(*object, blocks.clone());
        let mut encoded = Buffer::new(usize::try_from(length).unwrap_or_default());
        let read = content::encode_range(
            &*files.data,
            &files.tree,
            *object,
            blocks.clone(),
            &mut encoded,
        );
        // An error of the system; others say that the bytes are not there, or not the right ones.
        readable &= !read
            .as_ref()
            .is_err_and(|error| error.raw_os_error().is_some());
        read.is_ok() && content::verify_range(*object, blocks, &encoded).is_ok()
    };
    let mut found = BlockSet::default();
    for step in ranges.iter().flat_map(steps) {
        if proves(step.clone()) {
            found.insert(step);
            continue;
        }
        for block in step {
            if proves(block..block + 1) {
                found.insert(block..block + 1);
            }
        }
    }
    (found, readable)
}
