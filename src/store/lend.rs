//! Backing files that are lent out: somebody (the kernel) reads them without asking the store.

use std::{
    fs::File,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Origin, StoreError,
    cache::{Core, Hot},
};
use crate::content::Object;

/// A complete content's backing file. Its bytes stay as they are until this is dropped, whatever happens to the content.
pub struct Lent {
    hot: Arc<Hot>,
    data: Arc<File>,
    origin: Origin,
}

impl Lent {
    /// The file: the content and nothing else. Not to be written to.
    pub fn file(&self) -> &File {
        &self.data
    }

    /// Where the content came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lent").field(&self.hot.object).finish()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.hot.lent.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Core {
    pub(super) fn lend(&self, object: &Object) -> Result<Option<Lent>, StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(None);
        };
        if hot.state.read().record.inline.is_some() {
            return Ok(None);
        }
        // Opened before it is looked at once more: the files are those of a complete content then.
        let files = match self.files(&hot, false) {
            Ok(files) => files,
            Err(StoreError::Absent(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = hot.state.read();
        let is_same = |kept: &super::cache::Files| Arc::ptr_eq(&kept.data, &files.data);
        if !state.record.is_complete(object) || !state.files.as_ref().is_some_and(is_same) {
            return Ok(None);
        }
        // Under the lock: who drops blocks has not been here yet, and will see it, or has, and it is not complete.
        hot.lent.fetch_add(1, Ordering::AcqRel);
        let origin = state.record.origin;
        drop(state);
        self.touch(&hot);
        Ok(Some(Lent {
            hot,
            data: files.data,
            origin,
        }))
    }
}
