//! Making objects durable.

use std::{collections::HashSet, io, path::Path};

use super::{
    Origin, StoreError,
    cache::{Core, Hot, State},
    failed,
    folder::sync_dir,
};
use crate::content::{BlockSet, Object};

/// Objects that are in hand at a time: bounds open files.
const OBJECTS_MAX: usize = 64;

impl Core {
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        let objects: Vec<_> = self.loose.lock().iter().copied().collect();
        self.settle_objects(&objects)
    }

    /// Returns when what is here of one object is on disk.
    ///
    /// # Errors
    /// Also when syncing it failed before: a second try would succeed without proving anything.
    pub(super) fn make_durable(&self, object: &Object) -> Result<(), StoreError> {
        let is_loose = |state: &State| {
            let loose = !state.record.loose.is_empty() || !state.settling.is_empty();
            (loose, state.record.is_complete(object))
        };
        if !matches!(self.look(object, is_loose)?, Some((true, _))) {
            return Ok(());
        }
        self.settle_objects(&[*object])?;
        match self.look(object, is_loose)? {
            // Of a partial one, more blocks may have come meanwhile.
            Some((true, true)) => Err(StoreError::Io {
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
        let loose: Vec<_> = self.loose.lock().iter().copied().collect();
        let mut written = Vec::new();
        for object in loose {
            let origin = self.look(&object, |state| state.record.origin)?;
            if origin == Some(Origin::Written) {
                written.push(object);
            }
        }
        self.settle_files(&written)
    }

    fn settle_files(&self, objects: &[Object]) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for batch in objects.chunks(OBJECTS_MAX) {
            // Given away in between: who has little to settle doesn't wait for who has much.
            let _one = self.settling.lock();
            outcome = outcome.and(self.settle_batch(batch));
        }
        outcome
    }

    fn settle_batch(&self, objects: &[Object]) -> Result<(), StoreError> {
        let mut folders = HashSet::new();
        let mut synced = Vec::new();
        let mut outcome = Ok(());
        for object in objects {
            // Taken out first: blocks that come while syncing put it in again. One that fails is not tried again, since a
            // second fdatasync may succeed without having written anything: its blocks stay loose, to be proven after the
            // next boot.
            if !self.loose.lock().remove(object) {
                continue;
            }
            let hot = match self.hot(object) {
                Ok(Some(hot)) => hot,
                Ok(None) => continue,
                Err(error) => {
                    outcome = Err(error);
                    continue;
                }
            };
            {
                let _change = hot.change.lock();
                let mut state = hot.state.write();
                state.settling = std::mem::take(&mut state.record.loose);
                if state.settling.is_empty() {
                    continue;
                }
            }
            let data_path = self.data_path(object);
            let sync = self.files(&hot, false).and_then(|files| {
                files
                    .data
                    .sync_data()
                    .map_err(failed("syncing", &data_path))?;
                match &files.tree.0 {
                    Some(tree) => tree.sync_data().map_err(failed("syncing", &data_path)),
                    None => Ok(()),
                }
            });
            match sync {
                Ok(()) => {
                    folders.extend(data_path.parent().map(Path::to_owned));
                    synced.push(hot);
                }
                Err(error) => {
                    unsettle(&hot);
                    outcome = Err(error);
                }
            }
        }
        let named = folders.iter().try_for_each(|folder| sync_dir(folder));
        for hot in synced {
            let change = hot.change.lock();
            if named.is_err() {
                unsettle(&hot);
            } else {
                let mut state = hot.state.write();
                state.settling = BlockSet::default();
                state.dirty = true;
                drop(state);
                outcome = outcome.and(self.write_record(&hot, &change));
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
