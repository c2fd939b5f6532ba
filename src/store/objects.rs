//! Objects: what of them is here; adding, reading, proving and dropping blocks.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    num::NonZero,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use parking_lot::MutexGuard;
use rustix::io::{Errno, ReadWriteFlags};

use super::{
    Origin, Presence, StoreError,
    cache::{Core, Files, Hot, State, TreeFile, bytes_in, now, remove_file},
    failed,
    record::{ObjectRecord, parse_object_key},
};
use crate::buffers::Buffer;
use crate::content::{
    self, BLOCK_BYTES, BlockSet, ContentId, INLINE_BYTES_MAX, LeafHash, Leaves, Nodes, Object,
    VerifiedRange,
};
use crate::linux::PIECE_BYTES;

/// Blocks that may be missing in a record before it is written at once: 64 MiB.
const UNRECORDED_BLOCKS_MAX: u64 = 1024;
/// How coarse "last use" is; finer would write a record for every read.
const LAST_USE_SECONDS: u64 = 60;
/// How often a read starts over when blocks of the object are dropped meanwhile.
const READ_TRIES: usize = 8;
/// So few bytes are asked for by who waits for them.
const AWAITED_BYTES_MAX: u64 = 4 * BLOCK_BYTES;
/// Parts of a hash tree with less between them are read together: to ask the disk once more takes as long as to read this.
const TREE_GAP_BYTES: u64 = 64 * 1024;
/// What is copied at a time where the kernel doesn't do it.
const COPY_BYTES: u64 = 1024 * 1024;

impl Core {
    pub(super) fn presence(&self, object: &Object) -> Result<Presence, StoreError> {
        if is_empty_object(object) {
            return Ok(Presence::Complete);
        }
        let found = self.look(object, |state| state.presence(object))?;
        Ok(found.unwrap_or(Presence::Absent))
    }

    pub(super) fn size_proven(&self, object: &Object) -> Result<bool, StoreError> {
        if is_empty_object(object) {
            return Ok(true);
        }
        let found = self.look(object, |state| state.record.size_proven)?;
        Ok(found.unwrap_or(false))
    }

    pub(super) fn sizes_of(&self, content: &ContentId) -> Result<Vec<u64>, StoreError> {
        let mut sizes = Vec::new();
        if Object::empty().content == *content {
            sizes.push(0);
        }
        for key in self.objects.scan_prefix(content.0).keys() {
            let object = parse_object_key(&key?)?;
            // The record of one whose blocks were dropped a moment ago may still stand.
            if self.presence(&object)? != Presence::Absent {
                sizes.push(object.size);
            }
        }
        Ok(sizes)
    }

    pub(super) fn each_object(
        &self,
        visit: &mut dyn FnMut(Object, Presence, Origin) -> bool,
    ) -> Result<(), StoreError> {
        self.write_records()?;
        for pair in self.objects.iter() {
            let (key, value) = pair?;
            let object = parse_object_key(&key)?;
            let state = State::recorded(ObjectRecord::decode(&object, &value)?);
            if !visit(object, state.presence(&object), state.record.origin) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn insert(&self, range: &VerifiedRange<'_>) -> Result<(), StoreError> {
        let object = range.object;
        let bytes = object.bytes_of(range.blocks.clone());
        let fits = !range.blocks.is_empty()
            && range.blocks.end <= object.blocks()
            && range.data.len() as u64 == range.blocks.end - range.blocks.start
            && range
                .data
                .iter()
                .map(|block| block.len() as u64)
                .sum::<u64>()
                == bytes.end - bytes.start;
        if !fits {
            return Err(StoreError::Io {
                what: format!("inserting blocks {:?} of {}", range.blocks, object.content),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        self.used_at.store(now(), Ordering::Relaxed);
        let kept = match self.reserve_blocks(range) {
            Ok(_reserved) => self.keep_blocks(range),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            self.pass(range, &error);
        }
        Ok(())
    }

    /// Keeps proven blocks, for which there is room.
    fn keep_blocks(&self, range: &VerifiedRange<'_>) -> Result<(), StoreError> {
        let object = range.object;
        if object.size <= INLINE_BYTES_MAX {
            self.put_inline(&object, &range.data.concat(), Origin::Fetched)?;
            return self.note_index_if_grown();
        }
        let hot = self.hot_or_new(&object)?;
        let change = hot.change.lock();
        let proves_size = range.blocks.end == object.blocks();
        let missing: Vec<Range<u64>> = {
            let state = hot.state.read();
            state.record.present.missing(range.blocks.clone()).collect()
        };
        if !missing.is_empty() {
            // A file that should be there and isn't is an error, not a reason to make one full of holes.
            let new = hot.state.read().is_vacant();
            let written = self.files(&hot, new).and_then(|files| {
                let written = write_range(&files, range, &missing)
                    .map_err(|error| failed("writing", &self.data_path(&object))(error));
                self.measure(&hot, &files);
                written
            });
            if let Err(error) = written {
                // On a full disk, what nobody knows of must not take room.
                if new && let Err(error) = self.unlink(&hot) {
                    tracing::warn!(%error, "what was written in vain could not be removed");
                }
                return Err(error);
            }
        }

        let mut state = hot.state.write();
        if missing.is_empty() && (!proves_size || state.record.size_proven) {
            return Ok(());
        }
        for blocks in &missing {
            state.record.present.insert(blocks.clone());
            state.record.loose.insert(blocks.clone());
            state.withdrawn.remove(blocks.clone());
            state.proven.note(blocks.clone(), Instant::now());
            state.unrecorded += blocks.end - blocks.start;
            let bytes = object.bytes_of(blocks.clone());
            self.count_came(&object, bytes.end - bytes.start)?;
        }
        state.record.size_proven |= proves_size;
        state.dirty = true;
        let at_once = !state.recorded || state.unrecorded >= UNRECORDED_BLOCKS_MAX;
        drop(state);
        self.loose.lock().insert(object);
        if at_once {
            return self.write_record(&hot, &change);
        }
        self.record_later(&object);
        Ok(())
    }

    /// Keeps a small content, which the caller has proven.
    pub(super) fn put_inline(
        &self,
        object: &Object,
        content: &[u8],
        origin: Origin,
    ) -> Result<(), StoreError> {
        let hot = self.hot_or_new(object)?;
        let change = hot.change.lock();
        let mut state = hot.state.write();
        if origin == Origin::Written {
            self.keep_written(&hot, &mut state);
        }
        if !state.record.is_complete(object) {
            self.count_came(object, object.size)?;
            state.unpacked = true;
            state.withdrawn = BlockSet::default();
            state.record.inline = Some(Bytes::copy_from_slice(content));
            state.record.present = BlockSet::of(0..object.blocks());
            state.record.size_proven = true;
            if origin == Origin::Written {
                state.record.origin = origin;
            }
            state.dirty = true;
        } else if origin == Origin::Written && state.record.origin != origin {
            state.record.origin = origin;
            state.dirty = true;
        }
        drop(state);
        self.write_record(&hot, &change)
    }

    pub(super) fn read(
        &self,
        object: &Object,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, StoreError> {
        let end = offset.saturating_add(buf.len() as u64).min(object.size);
        if offset >= end {
            return Ok(0);
        }
        let blocks = object.blocks_of(offset..end);
        // At most the length of `buf`, so it fits.
        let length = (end - offset) as usize;
        let buf = &mut buf[..length];
        // Before anything waits for who is keeping them.
        if self.room.arriving.read(object, offset, &blocks, buf) {
            return Ok(length);
        }
        match self.read_kept(object, offset..end, buf) {
            Ok(()) => {}
            // What the index can't find any more may pass, too.
            Err(error) if error.is_of_the_index() || matches!(error, StoreError::Absent(_)) => {
                let passed = self.read_passing(object, offset, &blocks, buf);
                let absent = match error {
                    StoreError::Absent(missing) => missing,
                    _ => blocks,
                };
                passed.ok_or(StoreError::Absent(absent))?;
            }
            Err(error) => return Err(error),
        }
        Ok(length)
    }

    /// Reads block by block, where some of them may only be passing through.
    fn read_passing(
        &self,
        object: &Object,
        offset: u64,
        blocks: &Range<u64>,
        buf: &mut [u8],
    ) -> Option<()> {
        if !self.is_any_passing() {
            return None;
        }
        let end = offset + buf.len() as u64;
        for block in blocks.clone() {
            let bytes = object.bytes_of(block..block + 1);
            let wanted = bytes.start.max(offset)..bytes.end.min(end);
            let part = buf.get_mut(
                usize::try_from(wanted.start - offset).ok()?
                    ..usize::try_from(wanted.end - offset).ok()?,
            )?;
            if self.read_kept(object, wanted.clone(), part).is_ok() {
                continue;
            }
            let data = self.passing(object, block)?;
            let from = usize::try_from(wanted.start - bytes.start).ok()?;
            part.copy_from_slice(data.get(from..from + part.len())?);
        }
        Some(())
    }

    /// Fills `buf` with bytes that are kept here.
    fn read_kept(
        &self,
        object: &Object,
        bytes: Range<u64>,
        buf: &mut [u8],
    ) -> Result<(), StoreError> {
        let Range { start: offset, end } = bytes;
        let blocks = object.blocks_of(offset..end);
        self.prove(object, &blocks)?;
        self.with_blocks(object, &blocks, |source| match source {
            Source::Inline(content) => {
                let from = content.get(offset as usize..end as usize);
                buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Source::Files(files) => FileExt::read_exact_at(&*files.data, buf, offset),
        })
    }

    /// Blocks as they are on the disk, with what is to prove them.
    pub(super) fn encode(&self, object: &Object, blocks: Range<u64>) -> Result<Buffer, StoreError> {
        let (encoded, hot) = self.encoded(object, blocks)?;
        self.touch(&hot);
        Ok(encoded)
    }

    /// The same for whoever only looks whether they are sound: that is no use, and keeps nothing here for longer.
    pub(super) fn peek(&self, object: &Object, blocks: Range<u64>) -> Result<Buffer, StoreError> {
        Ok(self.encoded(object, blocks)?.0)
    }

    fn encoded(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<(Buffer, Arc<Hot>), StoreError> {
        let absent = || StoreError::Absent(blocks.clone());
        if blocks.is_empty() || blocks.end > object.blocks() {
            return Err(absent());
        }
        let length = content::encoded_bytes(*object, blocks.clone());
        let mut out = None;
        let hot = self.see_blocks(object, &blocks, |source| {
            // Only now: the blocks are here, and callers stay near 1 MiB.
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let out = out.get_or_insert_with(|| Buffer::new(length));
            match source {
                Source::Inline(bytes) => {
                    let tree = TreeFile(None);
                    content::encode_range(&&bytes[..], &tree, *object, blocks.clone(), out)
                }
                Source::Files(files) => {
                    hint_at(files, object, &blocks);
                    let read = |offset, parts: &mut [IoSliceMut<'_>]| {
                        read_parts(&files.data, offset, parts)
                    };
                    content::encode_range_with(&files.tree, *object, blocks.clone(), out, read)
                }
            }
        })?;
        Ok((out.ok_or_else(absent)?, hot))
    }

    /// See [`super::Store::copy_to`].
    pub(super) fn copy_to(
        &self,
        object: &Object,
        bytes: Range<u64>,
        to: &File,
    ) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let blocks = object.blocks_of(bytes.clone());
        if bytes.end > object.size {
            return Err(StoreError::Absent(blocks));
        }
        // They become part of a content that nobody else has: damage would be there for good, and in a block that is copied in
        // part nothing would tell of it any more.
        let whole = bytes.start.div_ceil(BLOCK_BYTES)..bytes.end / BLOCK_BYTES;
        match whole.is_empty() {
            true => self.prove_anew(object, &blocks)?,
            false => {
                self.prove_anew(object, &(blocks.start..whole.start))?;
                self.prove(object, &whole)?;
                self.prove_anew(object, &(whole.end..blocks.end))?;
            }
        }
        let copied = self.with_blocks(object, &blocks, |source| match source {
            Source::Inline(content) => {
                let from = content.get(bytes.start as usize..bytes.end as usize);
                to.write_all_at(from.ok_or(io::ErrorKind::UnexpectedEof)?, bytes.start)
            }
            Source::Files(files) => copy_bytes(&files.data, to, bytes.clone()),
        });
        match copied {
            Err(StoreError::Absent(_)) if self.is_any_passing() => {
                let mut buffer = Vec::new();
                let mut at = bytes.start;
                while at < bytes.end {
                    buffer.resize((bytes.end - at).min(COPY_BYTES) as usize, 0);
                    self.read(object, at, &mut buffer)?;
                    to.write_all_at(&buffer, at)
                        .map_err(failed("writing", &self.staging_dir()))?;
                    at += buffer.len() as u64;
                }
                Ok(())
            }
            copied => copied,
        }
    }

    /// See [`super::Store::leaves`].
    pub(super) fn leaves(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<Option<Vec<LeafHash>>, StoreError> {
        if object.blocks() < 2 {
            return Ok(None);
        }
        let mut leaves = None;
        self.with_blocks(object, &blocks, |source| {
            if let Source::Files(files) = source {
                leaves = content::leaves_of(&files.tree, *object, blocks.clone()).ok();
            }
            Ok(())
        })
        .or_else(|error| match error {
            // They may be passing, which leaves no hashes behind. If not, who reads them will hear of it.
            StoreError::Absent(_) if self.is_any_passing() => Ok(()),
            error => Err(error),
        })?;
        Ok(leaves)
    }

    /// See [`super::Store::nodes_above`].
    pub(super) fn nodes_above(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if object.blocks() < 2 {
            return Ok(None);
        }
        let Some(hot) = self.hot(object)? else {
            return Ok(None);
        };
        let files = match self.files(&hot, false) {
            Err(StoreError::Absent(_)) => return Ok(None),
            files => files?,
        };
        // They prove themselves, whatever is here of the blocks, and a part of the file that nobody wrote proves nothing.
        let nodes = content::encode_nodes(&files.tree, *object, blocks.clone()).ok();
        Ok(nodes.filter(|nodes| Nodes::verify(*object, blocks, nodes).is_ok()))
    }

    /// As [`Core::see_blocks`], and counts it as a use.
    fn with_blocks(
        &self,
        object: &Object,
        blocks: &Range<u64>,
        read: impl FnMut(Source<'_>) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let hot = self.see_blocks(object, blocks, read)?;
        self.touch(&hot);
        Ok(())
    }

    /// Runs `read` with the bytes of blocks that are here, again if blocks were dropped meanwhile: it may have seen a hole.
    fn see_blocks(
        &self,
        object: &Object,
        blocks: &Range<u64>,
        mut read: impl FnMut(Source<'_>) -> io::Result<()>,
    ) -> Result<Arc<Hot>, StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Err(StoreError::Absent(blocks.clone()));
        };
        for _ in 0..READ_TRIES {
            let required = {
                let state = hot.state.read();
                state
                    .require(blocks)
                    .map(|()| (state.drops, state.record.inline.clone()))
            };
            let (drops, inline) = match required {
                Ok(required) => required,
                Err(absent) => match self.restore(&hot, blocks) {
                    Ok(true) => continue,
                    _ => return Err(absent),
                },
            };
            let outcome = match &inline {
                Some(content) => read(Source::Inline(content)),
                None => read(Source::Files(&self.files(&hot, false)?)),
            };
            if hot.state.read().drops == drops {
                outcome.map_err(|error| failed("reading", &self.data_path(object))(error))?;
                return Ok(hot);
            }
        }
        Err(StoreError::Absent(blocks.clone()))
    }

    pub(super) fn touch(&self, hot: &Hot) {
        let now = now();
        self.used_at.store(now, Ordering::Relaxed);
        hot.last_use.store(now, Ordering::Relaxed);
        let noted = hot.noted_use.load(Ordering::Relaxed);
        // One whose record can't be written stays in use: nothing is to wait for that because it was read.
        if now.saturating_sub(noted) >= LAST_USE_SECONDS && !self.is_index_short() {
            hot.noted_use.store(now, Ordering::Relaxed);
            hot.state.write().dirty = true;
            self.record_later(&hot.object);
        }
    }

    pub(super) fn drop_blocks(
        &self,
        object: &Object,
        blocks: Range<u64>,
    ) -> Result<(), StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(());
        };
        let change = hot.change.lock();
        let mut state = hot.state.write();
        let dropped: Vec<Range<u64>> = state.record.present.present(blocks.clone()).collect();
        if dropped.is_empty() && !state.withdrawn.intersects(&blocks) {
            return Ok(());
        }
        state.record.present.remove(blocks.clone());
        state.record.loose.remove(blocks.clone());
        state.withdrawn.remove(blocks.clone());
        state.proven.forget(blocks.clone());
        state.settling.remove(blocks);
        state.drops += 1;
        state.dirty = true;
        state.record.inline = None;
        let all = state.is_vacant();
        let is_written = state.record.origin == Origin::Written;
        let files = if all {
            state.files.take()
        } else {
            state.files.clone()
        };
        drop(state);
        for blocks in &dropped {
            let bytes = object.bytes_of(blocks.clone());
            self.count_went(object, bytes.end - bytes.start)?;
        }
        self.write_record(&hot, &change)?;
        if object.size <= INLINE_BYTES_MAX {
            return Ok(());
        }
        // No record may claim what is about to go, not even one that a crash brings back.
        self.flush_index()?;
        if all {
            let path = self.data_path(object);
            if is_written {
                tracing::error!(path = %path.display(), "a content that was written here is damaged: what is left of it is put aside in `lost`");
                self.put_aside(&path)?;
            } else {
                remove_file(&path)?;
            }
            return self.unlink(&hot);
        }
        if is_written || hot.lent.load(Ordering::Acquire) > 0 {
            // Some of it may be the only copy, or is being read by others: better bytes come over it.
            return Ok(());
        }
        let files = match files {
            Some(files) => files,
            None => self.files(&hot, false)?,
        };
        let names = files.data.metadata().map(|file| file.nlink());
        if names.map_err(failed("looking at", &self.data_path(object)))? > 1 {
            // A staging file that isn't published yet has the same bytes.
            return Ok(());
        }
        self.punch(object, &files, &dropped)?;
        self.measure(&hot, &files);
        Ok(())
    }

    /// See [`super::Store::reprove`].
    pub(super) fn reprove(&self, object: &Object, blocks: Range<u64>) -> Result<(), StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(());
        };
        if object.size <= INLINE_BYTES_MAX {
            return self.reprove_packed(&hot);
        }
        let mut may_repair = true;
        // Each by itself: one that can't be read says nothing of its neighbours.
        for block in blocks.start..blocks.end.min(object.blocks()) {
            let range = block..block + 1;
            let mut proof = self.proof(&hot, range.clone())?;
            if proof != Proof::Sound && std::mem::take(&mut may_repair) {
                let is_complete = hot.state.read().record.is_complete(object);
                // Then it was the hash tree.
                if is_complete && self.repair_tree(object, &range)? {
                    proof = self.proof(&hot, range.clone())?;
                }
            }
            match proof {
                Proof::Sound => {}
                Proof::Damaged => self.drop_blocks(object, range)?,
                Proof::Gone => {
                    tracing::error!(content = %object.content, "the files of a content are gone");
                    return self.drop_blocks(object, 0..object.blocks());
                }
                Proof::Unreadable => self.withdraw(&hot, &range)?,
            }
        }
        Ok(())
    }

    /// What can be said of one block now.
    fn proof(&self, hot: &Hot, block: Range<u64>) -> Result<Proof, StoreError> {
        match self.encode(&hot.object, block.clone()) {
            Ok(encoded) => Ok(match content::verify_range(hot.object, block, &encoded) {
                Ok(_) => Proof::Sound,
                Err(_) => Proof::Damaged,
            }),
            Err(StoreError::Absent(_)) => Ok(Proof::Sound),
            Err(error) => {
                let Some(proof) = Proof::of(&error) else {
                    return Err(error);
                };
                // A file that lacks its end has no such bytes, one whose tree lacks them may be whole.
                if proof == Proof::Damaged
                    && self
                        .files(hot, false)?
                        .data
                        .metadata()
                        .is_ok_and(|file| file.len() >= hot.object.bytes_of(block.clone()).end)
                {
                    return Ok(Proof::Unreadable);
                }
                Ok(proof)
            }
        }
    }

    /// Takes blocks that the disk does not give for absent, and leaves their bytes alone.
    pub(super) fn withdraw(&self, hot: &Hot, blocks: &Range<u64>) -> Result<(), StoreError> {
        let _change = hot.change.lock();
        let mut state = hot.state.write();
        let present: Vec<Range<u64>> = state.record.present.present(blocks.clone()).collect();
        for blocks in present {
            state.record.present.remove(blocks.clone());
            state.record.loose.remove(blocks.clone());
            state.proven.forget(blocks.clone());
            let bytes = hot.object.bytes_of(blocks.clone());
            self.count_went(&hot.object, bytes.end - bytes.start)?;
            state.withdrawn.insert(blocks);
        }
        // Opened anew for the next try.
        state.files = None;
        Ok(())
    }

    /// Tries withdrawn blocks again; true if some are back.
    fn restore(&self, hot: &Hot, blocks: &Range<u64>) -> Result<bool, StoreError> {
        if hot.state.read().withdrawn.is_empty() {
            return Ok(false);
        }
        if hot.object.size <= INLINE_BYTES_MAX {
            return self.restore_packed(hot);
        }
        let _change = hot.change.lock();
        let withdrawn: Vec<u64> = {
            let state = hot.state.read();
            state.withdrawn.present(blocks.clone()).flatten().collect()
        };
        let mut is_any = false;
        for block in withdrawn {
            let range = block..block + 1;
            let files = self.files(hot, false)?;
            // One block.
            let length = content::encoded_bytes(hot.object, range.clone());
            let mut encoded = Buffer::new(usize::try_from(length).unwrap_or_default());
            let (data, tree) = (&*files.data, &files.tree);
            let proves = content::encode_range(data, tree, hot.object, range.clone(), &mut encoded)
                .is_ok()
                && content::verify_range(hot.object, range.clone(), &encoded).is_ok();
            if proves {
                let mut state = hot.state.write();
                state.withdrawn.remove(range.clone());
                let bytes = hot.object.bytes_of(range.clone());
                self.count_came(&hot.object, bytes.end - bytes.start)?;
                state.record.loose.insert(range.clone());
                state.record.present.insert(range);
                state.dirty = true;
                is_any = true;
            }
        }
        if is_any {
            self.loose.lock().insert(hot.object);
            self.record_later(&hot.object);
        }
        Ok(is_any)
    }

    /// Makes an object complete from files that were put in place, and writes its record. Of its hashes those in `known` were not
    /// made now.
    pub(super) fn complete(
        &self,
        hot: &Hot,
        change: &MutexGuard<'_, ()>,
        files: Files,
        known: &Leaves,
    ) -> Result<(), StoreError> {
        let object = &hot.object;
        let all = BlockSet::of(0..object.blocks());
        let mut state = hot.state.write();
        let had = bytes_in(object, &state.record.present);
        state.record.present = all.clone();
        state.record.loose = all;
        state.settling = BlockSet::default();
        state.withdrawn = BlockSet::default();
        state.proven.note(0..object.blocks(), Instant::now());
        let unseen = (0..object.blocks()).filter(|block| known.is_unseen(*block));
        unseen.for_each(|block| state.proven.forget(block..block + 1));
        state.record.size_proven = true;
        state.record.origin = Origin::Written;
        state.files = Some(files.clone());
        state.dirty = true;
        drop(state);
        self.measure(hot, &files);
        self.count_came(object, object.size - had)?;
        self.loose.lock().insert(*object);
        self.write_record(hot, change)
    }
}

/// Whether it is the one object that needs no bytes.
fn is_empty_object(object: &Object) -> bool {
    object.size == 0 && *object == Object::empty()
}

/// What a second look at a block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It matches, or isn't here any more.
    Sound,
    /// It was read, or isn't in the file, and does not match.
    Damaged,
    /// There is no file.
    Gone,
    /// The disk did not give it.
    Unreadable,
}

impl Proof {
    /// What an error proves; `None` if it has nothing to do with the block, like a lack of file descriptors or memory.
    fn of(error: &StoreError) -> Option<Self> {
        let StoreError::Io { source, .. } = error else {
            return None;
        };
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => Some(Self::Gone),
            (io::ErrorKind::UnexpectedEof, _) => Some(Self::Damaged),
            (_, Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG)) => Some(Self::Unreadable),
            _ => None,
        }
    }
}

/// Whether an error says something about a block, rather than about the state of the system.
pub(super) fn is_of_the_block(error: &StoreError) -> bool {
    Proof::of(error).is_some()
}

/// Where bytes of an object come from.
enum Source<'a> {
    Inline(&'a Bytes),
    Files(&'a Files),
}

/// Copies bytes from one file to the same place in another within the kernel, which shares them where the filesystem can;
/// through this process where the kernel doesn't.
fn copy_bytes(from: &File, to: &File, bytes: Range<u64>) -> io::Result<()> {
    let (mut source, mut target) = (bytes.start, bytes.start);
    while source < bytes.end {
        let length = usize::try_from(bytes.end - source).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = Vec::new();
    while source < bytes.end {
        buffer.resize((bytes.end - source).min(COPY_BYTES) as usize, 0);
        from.read_exact_at(&mut buffer, source)?;
        to.write_all_at(&buffer, source)?;
        source += buffer.len() as u64;
    }
    Ok(())
}

/// Has the disk begin with all that an answer takes for which somebody waits: what leads to its blocks in the hash tree, and their
/// data. One after the other, each would be waited for.
fn hint_at(files: &Files, object: &Object, blocks: &Range<u64>) {
    let bytes = object.bytes_of(blocks.clone());
    let Some(tree) = &files.tree.0 else {
        return;
    };
    if bytes.end.saturating_sub(bytes.start) > AWAITED_BYTES_MAX || is_in_memory(files, &bytes) {
        return;
    }
    // A hint: where it fails, it takes longer.
    let will_need = |file: &File, bytes: Range<u64>| {
        let length = NonZero::new(bytes.end.saturating_sub(bytes.start));
        let _ = rustix::fs::fadvise(file, bytes.start, length, rustix::fs::Advice::WillNeed);
    };
    for part in content::tree_parts(*object, blocks, TREE_GAP_BYTES) {
        will_need(tree, part);
    }
    will_need(&files.data, bytes);
}

/// Whether the page cache has the last of these bytes; what was used lately, it has all of.
fn is_in_memory(files: &Files, bytes: &Range<u64>) -> bool {
    let mut last = [0];
    let mut last = [IoSliceMut::new(&mut last)];
    let at = bytes.end.saturating_sub(1);
    rustix::io::preadv2(&files.data, &mut last, at, ReadWriteFlags::NOWAIT) == Ok(1)
}

/// Fills the parts, one behind the other, with a file's bytes from an offset on. In one go where possible: the disk then has one
/// thing to do.
fn read_parts(file: &File, mut offset: u64, mut parts: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    while !parts.is_empty() {
        match rustix::io::preadv(file, parts, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                IoSliceMut::advance_slices(&mut parts, read);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes bytes one behind the other, as many in one go as [`PIECE_BYTES`] allows: the filesystem then takes its pages together.
fn write_all_at(file: &File, mut data: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        let mut bytes = 0;
        let piece = data.iter().take_while(|next| {
            bytes += next.len();
            bytes <= PIECE_BYTES
        });
        let count = piece.count().max(1);
        match rustix::io::pwritev(file, data.get(..count).unwrap_or_default(), offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut data, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes the missing blocks of a range, and its inner nodes, neighbours of these in one go.
fn write_range(files: &Files, range: &VerifiedRange<'_>, missing: &[Range<u64>]) -> io::Result<()> {
    for blocks in missing {
        let skipped = blocks.start.saturating_sub(range.blocks.start);
        let data = range
            .data
            .iter()
            .skip(usize::try_from(skipped).unwrap_or(usize::MAX));
        let count = usize::try_from(blocks.end - blocks.start).unwrap_or_default();
        let mut data: Vec<IoSlice<'_>> = data.take(count).map(|data| IoSlice::new(data)).collect();
        let start = range.object.bytes_of(blocks.clone()).start;
        write_all_at(&files.data, &mut data, start)?;
    }
    let Some(tree) = &files.tree.0 else {
        return Ok(());
    };
    let mut nodes = range.nodes.clone();
    nodes.sort_unstable_by_key(|(offset, _)| *offset);
    let mut run: Vec<u8> = Vec::new();
    let mut run_start = 0;
    for (offset, node) in nodes {
        if offset != run_start + run.len() as u64 {
            tree.write_all_at(&run, run_start)?;
            run.clear();
        }
        if run.is_empty() {
            run_start = offset;
        }
        run.extend_from_slice(&node);
    }
    tree.write_all_at(&run, run_start)
}
