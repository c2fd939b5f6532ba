//! Making objects durable.

use std::{
    collections::HashSet,
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Origin, StoreError,
    cache::{Core, Files, Hot, State},
    check::{allocated, steps},
    failed,
    folder::sync_dir,
    objects::is_of_the_block,
};
use crate::{
    buffers::Buffer,
    content::{self, BlockSet, Object},
    linux,
};

/// There while some objects could not be synced.
const UNSETTLED_KEY: &str = "unsettled";

/// Objects that are in hand at a time: bounds open files.
const OBJECTS_MAX: usize = 64;
/// From so many objects on they are synced together, with all else on the disk, and so many at a time. Each small file by
/// itself takes a commit of the disk's filesystem.
const TOGETHER_MIN: usize = 24;
const TOGETHER_MAX: usize = 4096;
/// Where `syncfs` does what `fsync` of every file would: ext2 to ext4, XFS, Btrfs, F2FS.
const TRUSTED_DISKS: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
/// Since when `syncfs` tells of writes that failed: Linux 5.8.
const TRUSTED_KERNEL: (u32, u32) = (5, 8);

/// Syncs the filesystem of a state folder as a whole.
pub(super) struct WholeDisk {
    /// Open since before anything was written: a failure is told to it, whenever it was.
    folder: File,
    is_trusted: AtomicBool,
}

impl WholeDisk {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let folder = File::open(dir).map_err(failed("opening", dir))?;
        let kind = rustix::fs::fstatfs(&folder).map_or(0, |disk| disk.f_type as u64);
        let is_trusted = TRUSTED_DISKS.contains(&kind) && linux::version() >= TRUSTED_KERNEL;
        Ok(Self {
            folder,
            is_trusted: AtomicBool::new(is_trusted),
        })
    }

    /// True if everything that was written before is on the disk. Once it has failed it isn't tried again: a failure is told
    /// once, and whose write it was isn't.
    fn sync(&self) -> bool {
        if !self.is_trusted.load(Ordering::Relaxed) {
            return false;
        }
        let outcome = rustix::fs::syncfs(&self.folder);
        if let Err(error) = outcome {
            self.is_trusted.store(false, Ordering::Relaxed);
            tracing::warn!(%error, "the disk could not be synced as a whole; syncing file by file from now on");
        }
        outcome.is_ok()
    }
}

impl Core {
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        let renewed = self.renew_unsettled(|_| true);
        renewed.and(self.settle_objects(&self.loose_objects()))
    }

    /// Objects with loose blocks that nobody is syncing: for those that somebody is, this waits.
    fn loose_objects(&self) -> Vec<Object> {
        let _one = self.settling.lock();
        self.loose.lock().iter().copied().collect()
    }

    /// Returns when what is here of one object is on disk.
    ///
    /// # Errors
    /// Also when it could not be synced, now or before, nor written once more.
    pub(super) fn make_durable(&self, object: &Object) -> Result<(), StoreError> {
        let is_loose = |state: &State| {
            let loose = !state.record.loose.is_empty() || !state.settling.is_empty();
            (loose, state.record.is_complete(object))
        };
        if !matches!(self.look(object, is_loose)?, Some((true, _))) {
            return Ok(());
        }
        self.renew_unsettled(|unsettled| unsettled == object)?;
        self.settle_objects(&[*object])?;
        let is_unsettled = self.unsettled.lock().contains(object);
        match self.look(object, is_loose)? {
            // Of a partial one, more blocks may have come meanwhile.
            Some((true, is_whole)) if is_whole || is_unsettled => Err(StoreError::Io {
                what: format!("syncing {}", self.data_path(object).display()),
                source: io::Error::from_raw_os_error(libc::EIO),
            }),
            _ => Ok(()),
        }
    }

    /// Syncs the loose blocks of these objects and their names, marks them durable, and flushes the index.
    pub(super) fn settle_objects(&self, objects: &[Object]) -> Result<(), StoreError> {
        let settled = self.settle_files(objects);
        self.flush()?;
        settled
    }

    /// Puts the bytes of contents on disk that were written here; that they are, the index says once it is flushed.
    pub(super) fn settle_written(&self) -> Result<(), StoreError> {
        let is_written = |object: &Object| {
            let origin = self.look(object, |state| state.record.origin);
            origin.map(|origin| origin == Some(Origin::Written))
        };
        let renewed = self.renew_unsettled(|object| is_written(object).unwrap_or(true));
        let mut written = Vec::new();
        for object in self.loose_objects() {
            if is_written(&object)? {
                written.push(object);
            }
        }
        // Small ones are in packs, and never loose.
        let packed = self.sync_packs();
        renewed.and(self.settle_files(&written)).and(packed)
    }

    /// Puts on disk those of the objects that could not be synced. Of what could not be written the kernel may have given up the
    /// pages or keep them for written, so all that is here is written once more, after it was proven.
    fn renew_unsettled(&self, is_due: impl Fn(&Object) -> bool) -> Result<(), StoreError> {
        let unsettled: Vec<_> = self.unsettled.lock().iter().copied().collect();
        let mut outcome = Ok(());
        for object in unsettled.into_iter().filter(is_due) {
            let _one = self.settling.lock();
            let mut renewed = self.renew(&object);
            if let Err(error) = &renewed
                && (matches!(error, StoreError::Damaged(_)) || is_of_the_block(error))
            {
                // What is wrong of it, or can't be read, is here no more; the rest is.
                let reproven = self.reprove(&object, 0..object.blocks());
                renewed = reproven.and_then(|()| self.renew(&object));
            }
            let origin = self.look(&object, |state| state.record.origin);
            match renewed {
                Ok(()) => outcome = outcome.and(self.note_unsettled(&object, false)),
                // Others have it, or it is proven after the next boot: nobody's confirmation depends on that.
                Err(error) if matches!(origin, Ok(Some(Origin::Fetched))) => {
                    tracing::warn!(content = %object.content, %error, "what was fetched can't be put on the disk");
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// See [`Core::renew_unsettled`].
    fn renew(&self, object: &Object) -> Result<(), StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(());
        };
        let change = hot.change.lock();
        let present = {
            let state = hot.state.read();
            if state.record.loose.is_empty() {
                // Gone.
                return Ok(());
            }
            state.record.present.clone()
        };
        let path = self.data_path(object);
        let files = self.files(&hot, false)?;
        let allocated = allocated(&files.data, object);
        for step in present.ranges().iter().flat_map(steps) {
            let length = content::encoded_bytes(*object, step.clone());
            // At most a MiB and its nodes.
            let mut encoded = Buffer::new(length as usize);
            content::encode_range(
                &*files.data,
                &files.tree,
                *object,
                step.clone(),
                &mut encoded,
            )
            .map_err(failed("reading", &path))?;
            let range = content::verify_range(*object, step.clone(), &encoded)
                .map_err(|error| StoreError::Damaged(error.to_string()))?;
            let meets = |run: &Range<u64>| run.start < step.end && step.start < run.end;
            // Zeros that are a hole stay one.
            if allocated.iter().any(meets) {
                let at = object.bytes_of(step).start;
                linux::write_all_at(&files.data, &range.data.concat(), at)
                    .map_err(failed("writing", &path))?;
            }
        }
        if let Some(tree) = &files.tree.0 {
            linux::copy_over(tree, tree).map_err(failed("writing", &self.tree_path(object)))?;
        }
        self.sync_data(&files).map_err(failed("syncing", &path))?;
        if let Some(folder) = path.parent() {
            sync_dir(folder)?;
        }
        {
            let mut state = hot.state.write();
            state.record.loose = BlockSet::default();
            state.dirty = true;
        }
        self.loose.lock().remove(object);
        self.write_record(&hot, &change)
    }

    fn sync_data(&self, files: &Files) -> io::Result<()> {
        #[cfg(test)]
        if self.fails_to_sync.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        files.data.sync_data()?;
        files.tree.0.iter().try_for_each(|tree| tree.sync_data())
    }

    /// Notes an object that could not be synced, which its caller tells of. This process knows of it whatever the index takes.
    fn remember_unsettled(&self, object: &Object) {
        if let Err(error) = self.note_unsettled(object, true) {
            tracing::error!(content = %object.content, %error, "the next mount can't be told that this is not on the disk");
        }
    }

    /// Notes an object that could not be synced, or that it is on the disk now; the next process is told that there are any.
    fn note_unsettled(&self, object: &Object, is_so: bool) -> Result<(), StoreError> {
        let mut unsettled = self.unsettled.lock();
        let had_any = !unsettled.is_empty();
        if is_so {
            unsettled.insert(*object);
        } else {
            unsettled.remove(object);
        }
        match (had_any, !unsettled.is_empty()) {
            (false, true) => {
                self.meta.insert(UNSETTLED_KEY, &[])?;
                self.flush_index()?;
            }
            (true, false) => drop(self.meta.remove(UNSETTLED_KEY)?),
            _ => {}
        }
        Ok(())
    }

    /// Takes all that is loose for what could not be synced, where the last process left any of that.
    pub(super) fn recover_unsettled(&self) -> Result<(), StoreError> {
        if self.meta.contains_key(UNSETTLED_KEY)? {
            let loose: Vec<_> = self.loose.lock().iter().copied().collect();
            self.unsettled.lock().extend(&loose);
            if loose.is_empty() {
                self.meta.remove(UNSETTLED_KEY)?;
            }
        }
        Ok(())
    }

    fn settle_files(&self, objects: &[Object]) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        let mut alone = Vec::new();
        for batch in objects.chunks(TOGETHER_MAX) {
            if batch.len() >= TOGETHER_MIN {
                let _one = self.settling.lock();
                outcome = outcome.and(self.settle_together(batch, &mut alone));
            } else {
                alone.extend(batch);
            }
        }
        for batch in alone.chunks(OBJECTS_MAX) {
            // Given away in between: who has little to settle doesn't wait for who has much.
            let _one = self.settling.lock();
            outcome = outcome.and(self.settle_batch(batch));
        }
        outcome
    }

    /// Settles many; those that can't be settled so go to `alone`.
    fn settle_together(
        &self,
        objects: &[Object],
        alone: &mut Vec<Object>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        let mut taken = Vec::new();
        for object in objects {
            match self.take_loose(object) {
                Ok(hot) => taken.extend(hot),
                Err(error) => outcome = Err(error),
            }
        }
        if !taken.is_empty() && !self.disk.sync() {
            for hot in taken {
                unsettle(&hot);
                self.loose.lock().insert(hot.object);
                alone.push(hot.object);
            }
            return outcome;
        }
        for hot in taken {
            outcome = outcome.and(self.note_settled(&hot));
        }
        outcome
    }

    /// Takes an object whose blocks are to be synced; `None` if nothing of it is loose. Taken out first: blocks that come
    /// while syncing put it in again.
    fn take_loose(&self, object: &Object) -> Result<Option<Arc<Hot>>, StoreError> {
        if self.unsettled.lock().contains(object) {
            // It takes more than that.
            return Ok(None);
        }
        if !self.loose.lock().remove(object) {
            return Ok(None);
        }
        let Some(hot) = self.hot(object)? else {
            return Ok(None);
        };
        {
            let _change = hot.change.lock();
            let mut state = hot.state.write();
            state.settling = std::mem::take(&mut state.record.loose);
            if state.settling.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(hot))
    }

    /// Notes that what was taken is on the disk.
    fn note_settled(&self, hot: &Hot) -> Result<(), StoreError> {
        let change = hot.change.lock();
        let mut state = hot.state.write();
        state.settling = BlockSet::default();
        state.dirty = true;
        drop(state);
        self.write_record(hot, &change)
    }

    fn settle_batch(&self, objects: &[Object]) -> Result<(), StoreError> {
        let mut folders = HashSet::new();
        let mut synced = Vec::new();
        let mut outcome = Ok(());
        for object in objects {
            // One that fails is not synced again, since a second fdatasync may succeed without having written anything: its
            // blocks stay loose until it is written once more, or proven after the next boot.
            let hot = match self.take_loose(object) {
                Ok(Some(hot)) => hot,
                Ok(None) => continue,
                Err(error) => {
                    outcome = Err(error);
                    continue;
                }
            };
            let data_path = self.data_path(object);
            let sync = self.files(&hot, false).and_then(|files| {
                self.sync_data(&files)
                    .map_err(failed("syncing", &data_path))
            });
            match sync {
                Ok(()) => {
                    folders.extend(data_path.parent().map(Path::to_owned));
                    synced.push(hot);
                }
                Err(error) => {
                    unsettle(&hot);
                    outcome = Err(error);
                    self.remember_unsettled(object);
                }
            }
        }
        let named = folders.iter().try_for_each(|folder| sync_dir(folder));
        for hot in synced {
            if named.is_err() {
                let _change = hot.change.lock();
                unsettle(&hot);
                self.remember_unsettled(&hot.object);
            } else {
                outcome = outcome.and(self.note_settled(&hot));
            }
        }
        outcome.and(named)
    }
}

/// Makes the blocks that could not be synced loose again.
fn unsettle(hot: &Hot) {
    let mut state = hot.state.write();
    let settling = std::mem::take(&mut state.settling);
    state.record.loose.union(&settling);
}
