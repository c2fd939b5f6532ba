//! Copying by reference: a range of a content becomes part of what another file stands on. Nothing is read, fetched or
//! written, wherever the bytes are; the whole of a content keeps its id.

use crate::{
    content::Object,
    fs::{
        core::{Core, Fail, now},
        errno::FsError,
        overlay::Source,
    },
};

use super::set::drop_set_id;

/// An open file, and an offset in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) handle: u64,
    pub(crate) offset: u64,
}

impl Core {
    /// Copies up to `len` bytes from one open file to the same offset of another. Returns how many; 0 at the end of the
    /// source. [`FsError::NotSupported`] where it can't be done by reference: the kernel then copies bytes.
    pub(crate) fn copy_range(&self, from: Place, to: Place, len: u64) -> Result<u64, Fail> {
        let (source, target) = (self.file(from.handle)?, self.file(to.handle)?);
        if !target.write {
            return Err(FsError::BadHandle.into());
        }
        if from.offset != to.offset || source.number == target.number {
            return Err(FsError::NotSupported.into());
        }
        let start = from.offset;
        let (object, end) = self.untouched(source.number, start, start.saturating_add(len))?;
        if end <= start {
            return Ok(0);
        }
        self.alter(target.number, |live| {
            let stands_on_other = live.overlay.base_bytes() > 0 && live.base != object;
            if stands_on_other || !live.overlay.may_take_from(start) {
                return Err(FsError::NotSupported.into());
            }
            // What the journal's record of it belongs to.
            live.staging_to(&self.store, 0)?;
            live.base = object;
            live.overlay.take(start..end);
            live.entry.modified = now();
            drop_set_id(&mut live.entry);
            Ok(())
        })?;
        Ok(end - start)
    }

    /// The content that shows in a file from `start` on, and up to where, at most `end`.
    fn untouched(&self, number: u64, start: u64, end: u64) -> Result<(Object, u64), Fail> {
        let live = self.with_live(number, |live| {
            (
                live.base,
                live.overlay.pieces(start..end).into_iter().next(),
            )
        });
        match live {
            Some((base, Some((piece, Source::Base)))) => Ok((base, piece.end)),
            Some((base, None)) => Ok((base, start)),
            Some(_) => Err(FsError::NotSupported.into()),
            None => {
                let (object, _) = self.content(number)?;
                Ok((object, end.min(object.size)))
            }
        }
    }
}
