//! Room: what the store takes, the limits on that, and making room within them.
//!
//! Whatever is about to grow reserves its room first: if there is too little, what was cleared goes ([`super::policy`]), and
//! only then bytes are written. So the limits hold at any time, not after the fact. What was reserved is given back
//! against what the filesystem says the files take (`st_blocks`, as `du` counts), which is less or as much.
//!
//! Counted are backing files with their hash trees, staging files, what lies in `lost`, and the index. Never refused are what the index takes for
//! the manifest and for records, journal records, and the making of an object of a staging file (its hash tree is
//! 0.1 % of it): they are counted, and whoever comes next has less.
//!
//! Lock order: `evicting`, then what [`super`] says; `taken`, the pools and what is passing are held for a moment only.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{Notify, watch};

use super::{
    Origin, StoreError,
    cache::{Core, Files, Hot, State, now, remove_file},
    failed,
    passing::Passing,
    policy::{Candidate, Lack, Limits, Oldest, Pool, Shortage, Taken, Want, small_room},
    record::{ObjectRecord, parse_object_key},
    staging::STAT_BLOCK_BYTES,
};
use crate::content::{BLOCK_BYTES, BlockSet, INLINE_BYTES_MAX, Object, VerifiedRange};

/// What a filesystem gives out at a time.
const PAGE_BYTES: u64 = 4096;
/// What a file's name and its notes take.
const NAME_BYTES: u64 = 512;
/// Contents that go in one go, with one flush of the index.
const BATCH_MAX: usize = 256;
/// What goes in one go at least, if there is that much: a part of the limit, and at most so many bytes.
const BATCH_DIVISOR: u64 = 64;
const BATCH_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Rounds of making room for one reservation.
const ROUNDS_MAX: usize = 64;
/// How old the count of staging files may be, in general and when there is too little room.
const RECOUNT_AFTER: Duration = Duration::from_secs(1);
const RECOUNT_SOON: Duration = Duration::from_millis(50);
/// How many times its bytes something put into the index may take.
const INDEX_FACTOR: u64 = 3;
/// Additions to the index after which it is looked at again.
const INDEX_SINCE_MAX: u64 = 1024 * 1024;
/// How long reports say that something found no room, and how often the log does. Seconds.
const FULL_FOR: u64 = 30;
const SAID_EVERY: u64 = 60;
/// For so long after something found no room, nothing is fetched ahead. Seconds.
const TIGHT_FOR: u64 = 3;

/// See the module.
#[derive(Default)]
pub(super) struct Room {
    /// None before [`super::Store::set_limits`]: then everything fits.
    limits: RwLock<Option<Limits>>,
    taken: Mutex<Taken>,
    files: Mutex<Pool>,
    small: Mutex<Pool>,
    /// One makes room at a time.
    evicting: Mutex<()>,
    /// Held by those who make staging files grow; by who counts them anew, alone.
    staging: RwLock<()>,
    counted_at: Mutex<Option<Instant>>,
    passing: Mutex<Passing>,
    tight_until: AtomicU64,
    /// Why, for how long (seconds since 1970), and when it was last said.
    full: Mutex<Full>,
    /// Rung when it should be known what may go.
    pub(super) wanted: Arc<Notify>,
    /// Searches for what may go that have begun, that have ended, and whether the last one found something.
    pub(super) searches: watch::Sender<Searches>,
}

/// The last time that something found no room.
#[derive(Default)]
struct Full {
    why: Option<Shortage>,
    until: u64,
    said: u64,
}

/// How far the searches for what may go are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Searches {
    pub(super) begun: u64,
    pub(super) ended: u64,
    pub(super) found: bool,
}

/// Room that was set aside for what is about to be written; given back when dropped.
pub(super) struct Reserved<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock();
        taken.reserved = taken.reserved.saturating_sub(self.bytes);
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// What a file takes on its disk.
fn taken_by(file: &File) -> u64 {
    file.metadata()
        .map_or(0, |file| file.blocks() * STAT_BLOCK_BYTES)
}

/// What the files in a folder take; nothing if there is none.
fn folder_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    // One that went meanwhile takes nothing.
    files
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.blocks() * STAT_BLOCK_BYTES)
        .sum()
}

/// What the files of an object take, as far as its record tells.
pub(super) fn estimate(object: &Object, present: &BlockSet) -> u64 {
    if object.size <= INLINE_BYTES_MAX || present.is_empty() {
        return 0;
    }
    let data: u64 = present
        .ranges()
        .iter()
        .map(|range| object.bytes_of(range.clone()))
        .map(|bytes| pages(bytes.end) - bytes.start)
        .sum();
    data + tree_room(object, present) + NAME_BYTES
}

/// What the hash tree takes with these blocks: all of it at most, else for each range its own nodes and, on the way
/// there, a page a level.
fn tree_room(object: &Object, blocks: &BlockSet) -> u64 {
    let nodes = object.blocks().saturating_sub(1);
    let levels = u64::from(u64::BITS - object.blocks().leading_zeros());
    let ranges = blocks.ranges().iter();
    let some: u64 = ranges
        .map(|range| pages((range.end - range.start) * 64) + (levels + 1) * PAGE_BYTES)
        .sum();
    some.min(pages(nodes * 64))
}

/// The most that adding these blocks takes.
fn room_to_add(object: &Object, blocks: std::ops::Range<u64>) -> u64 {
    let data = (blocks.end - blocks.start) * BLOCK_BYTES;
    // A tree extent block of the filesystem for each of the files.
    data + tree_room(object, &BlockSet::of(blocks)) + NAME_BYTES + 2 * PAGE_BYTES
}

/// The most that writing so many bytes anywhere takes: two pages that are there in part, and one for the filesystem's notes.
fn room_to_grow(bytes: u64) -> u64 {
    pages(bytes) + 2 * PAGE_BYTES
}

impl Lack {
    fn error(&self, want: Want) -> StoreError {
        StoreError::NoRoom {
            why: self.why,
            bytes: want.bytes(),
        }
    }
}

impl Room {
    pub(super) fn set_limits(&self, limits: Limits) {
        *self.limits.write() = Some(limits);
        self.wanted.notify_one();
    }

    /// Notes that the store holds `small` bytes of small contents more (or less).
    pub(super) fn count_small(&self, object: &Object, came: bool) {
        if object.size > INLINE_BYTES_MAX {
            return;
        }
        let room = small_room(object.size);
        let mut taken = self.taken.lock();
        if came {
            taken.small = taken.small.saturating_add(room);
            taken.index_since = taken.index_since.saturating_add(room);
        } else {
            taken.small = taken.small.saturating_sub(room);
            // What is near it in the index is written anew.
            taken.index_since = taken.index_since.saturating_add(room);
        }
    }

    /// Notes that so much is put into the index, which may take more than that.
    pub(super) fn count_index(&self, bytes: u64) {
        let mut taken = self.taken.lock();
        taken.index_since = taken
            .index_since
            .saturating_add(bytes.saturating_mul(INDEX_FACTOR));
    }

    pub(super) fn set_counted(&self, files: u64, small: u64) {
        let mut taken = self.taken.lock();
        taken.files = files;
        taken.small = small;
    }

    /// No end of it where nothing was said.
    pub(super) fn cache_bytes_max(&self) -> u64 {
        let limits = *self.limits.read();
        limits.map_or(u64::MAX, |limits| limits.cache_bytes_max)
    }

    fn replace(&self, before: u64, after: u64) {
        let mut taken = self.taken.lock();
        taken.files = taken.files.saturating_add(after).saturating_sub(before);
    }

    /// The content is not what it was when it was cleared: it was written here again.
    pub(super) fn keep(&self, object: &Object) {
        let pool = match object.size <= INLINE_BYTES_MAX {
            true => &self.small,
            false => &self.files,
        };
        pool.lock().take(object);
    }

    pub(super) fn is_tight(&self) -> bool {
        now() < self.tight_until.load(Ordering::Relaxed)
    }
}

impl Core {
    fn disk_free(&self) -> u64 {
        // What can't be found out is no reason to refuse: the write itself says.
        rustix::fs::statvfs(&self.dir)
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Sets room aside, or says what is lacking.
    fn try_reserve(&self, want: Want) -> Result<Reserved<'_>, Lack> {
        let bytes = want.bytes();
        if let Some(limits) = *self.room.limits.read() {
            let disk_free = self.disk_free();
            let mut taken = self.room.taken.lock();
            if let Some(lack) = limits.lacks(&taken, disk_free, want) {
                return Err(lack);
            }
            taken.reserved = taken.reserved.saturating_add(bytes);
            if limits.is_pressed(&taken, disk_free) {
                drop(taken);
                self.search_if_few();
            }
        } else {
            let mut taken = self.room.taken.lock();
            taken.reserved = taken.reserved.saturating_add(bytes);
        }
        Ok(Reserved {
            room: &self.room,
            bytes,
        })
    }

    fn search_if_few(&self) {
        if self.wants_victims() {
            self.room.wanted.notify_one();
        }
    }

    /// Whether so much is taken, and so little known that may go, that it should be searched for.
    pub(super) fn wants_victims(&self) -> bool {
        let Some(limits) = *self.room.limits.read() else {
            return false;
        };
        let taken = *self.room.taken.lock();
        let few = |pool: &Mutex<Pool>, part: u64| pool.lock().room() < part;
        let eighth = limits.cache_bytes_max / 8;
        limits.is_pressed(&taken, self.disk_free())
            && (few(&self.room.files, eighth.min(taken.files / 4))
                || few(&self.room.small, taken.small / 4))
    }

    /// Sets room aside, after what may go went. Not to be called with anything of an object locked.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when nothing that may go is known.
    pub(super) fn reserve(&self, want: Want) -> Result<Reserved<'_>, StoreError> {
        if let Ok(reserved) = self.try_reserve(want) {
            return Ok(reserved);
        }
        let _one = self.room.evicting.lock();
        self.note_index();
        self.recount_staging(RECOUNT_SOON)?;
        let mut lack = match self.try_reserve(want) {
            Ok(reserved) => return Ok(reserved),
            Err(lack) => lack,
        };
        if want.bytes() > self.room.cache_bytes_max() {
            // Nothing is to go for what won't fit anyway.
            return Err(lack.error(want));
        }
        for _ in 0..ROUNDS_MAX {
            if !self.make_room(&lack)? {
                break;
            }
            lack = match self.try_reserve(want) {
                Ok(reserved) => return Ok(reserved),
                Err(lack) => lack,
            };
        }
        self.room.wanted.notify_one();
        self.note_full(lack.why);
        Err(lack.error(want))
    }

    /// Remembers that there is no room, for reports, and says so now and then.
    fn note_full(&self, why: Shortage) {
        let mut full = self.room.full.lock();
        full.why = Some(why);
        full.until = now() + FULL_FOR;
        if now() < full.said + SAID_EVERY {
            return;
        }
        full.said = now();
        drop(full);
        let taken = *self.room.taken.lock();
        tracing::warn!(
            files_bytes = taken.files,
            staging_bytes = taken.staging,
            index_bytes = taken.index,
            "no room: {why}, and nothing more is known that may go: the rest is pinned, unpublished, promised to others, open, or \
             no other member promised to keep it"
        );
    }

    /// Lets go what may go; false if there was nothing.
    fn make_room(&self, lack: &Lack) -> Result<bool, StoreError> {
        let batch = (self.room.cache_bytes_max() / BATCH_DIVISOR).min(BATCH_BYTES_MAX);
        let mut gone = false;
        if lack.small > 0 {
            gone |= self.drop_small(lack.small.max(batch / 4))?;
        }
        if lack.files > 0 {
            gone |= self.drop_files(lack.files.max(batch))?;
        }
        Ok(gone)
    }

    fn last_use(&self, object: &Object) -> Option<u64> {
        let hot = self.shard(object).lock().get(object);
        hot.map(|hot| hot.last_use.load(Ordering::Relaxed))
    }

    /// Drops small contents that may go. In the index they make room for others: its file does not become smaller.
    fn drop_small(&self, bytes: u64) -> Result<bool, StoreError> {
        let mut dropped = 0;
        let mut count = 0;
        while dropped < bytes && count < BATCH_MAX {
            let first = self
                .room
                .small
                .lock()
                .first(now(), |object| self.last_use(object));
            let Some(object) = first else { break };
            count += 1;
            let Some(hot) = self.hot(&object)? else {
                self.room.small.lock().take(&object);
                continue;
            };
            let Some(change) = hot.change.try_lock() else {
                self.room.small.lock().put_behind(&object, now());
                continue;
            };
            let cleared = self.room.small.lock().take(&object);
            if !cleared || self.is_exempt(&hot)? {
                continue;
            }
            let freed = forget(&hot);
            self.count_went(&object, freed)?;
            self.write_record(&hot, &change)?;
            dropped += small_room(object.size);
        }
        Ok(dropped > 0)
    }

    /// Drops larger contents that may go.
    fn drop_files(&self, bytes: u64) -> Result<bool, StoreError> {
        let mut going: Vec<Arc<Hot>> = Vec::new();
        let mut room = 0;
        let mut looked = 0;
        while room < bytes && looked < BATCH_MAX {
            let first = self
                .room
                .files
                .lock()
                .first(now(), |object| self.last_use(object));
            let Some(object) = first else { break };
            looked += 1;
            let Some(hot) = self.hot(&object)? else {
                self.room.files.lock().take(&object);
                continue;
            };
            let Some(change) = hot.change.try_lock() else {
                // Somebody is at it.
                self.room.files.lock().put_behind(&object, now());
                continue;
            };
            let cleared = self.room.files.lock().take(&object);
            if !cleared || self.is_exempt(&hot)? {
                continue;
            }
            room += hot.state.read().room;
            let freed = forget(&hot);
            self.count_went(&object, freed)?;
            self.write_record(&hot, &change)?;
            drop(change);
            going.push(hot);
        }
        if going.is_empty() {
            return Ok(false);
        }
        // No record may claim what is about to go, not even one that a crash brings back.
        self.flush_index()?;
        for hot in going {
            let _change = hot.change.lock();
            // Fetched again meanwhile, into the same files: then they stay.
            if hot.state.read().is_vacant() {
                self.unlink(&hot)?;
            }
        }
        Ok(true)
    }

    /// Removes the files of an object of which nothing is here. With its `change` held.
    pub(super) fn unlink(&self, hot: &Hot) -> Result<(), StoreError> {
        let before = {
            let mut state = hot.state.write();
            state.files = None;
            std::mem::take(&mut state.room)
        };
        remove_file(&self.data_path(&hot.object))?;
        remove_file(&self.tree_path(&hot.object))?;
        self.room.replace(before, 0);
        Ok(())
    }

    /// What is here and was written once more is not what it was when it was cleared: it may not go now, nor soon. With its
    /// `change` held.
    pub(super) fn keep_written(&self, hot: &Hot, state: &mut State) {
        self.room.keep(&hot.object);
        hot.last_use.store(now(), Ordering::Relaxed);
        state.dirty = true;
    }

    /// Whether a content stays, whatever was found out before. With its `change` held, so that it stays true.
    pub(super) fn is_exempt(&self, hot: &Hot) -> Result<bool, StoreError> {
        let object = &hot.object;
        if hot.lent.load(Ordering::Acquire) > 0
            || self.is_pinned(object)?
            || self.is_promised(object, now())?
        {
            return Ok(true);
        }
        // A staging file that isn't published yet has the same bytes.
        let in_files = hot.state.read().record.inline.is_none();
        let names = || self.data_path(object).metadata().map(|file| file.nlink());
        Ok(in_files && names().is_ok_and(|names| names > 1))
    }

    /// Counts what the files of an object take now. With its `change` held.
    pub(super) fn measure(&self, hot: &Hot, files: &Files) {
        let tree = files.tree.0.as_deref().map_or(0, taken_by);
        let after = taken_by(&files.data) + tree + NAME_BYTES;
        let before = std::mem::replace(&mut hot.state.write().room, after);
        self.room.replace(before, after);
    }

    /// Takes an object as its record tells it from now on.
    pub(super) fn count_estimated(&self, object: &Object, state: &mut State) {
        let mut present = state.record.present.clone();
        present.union(&state.withdrawn);
        let after = estimate(object, &present);
        let before = std::mem::replace(&mut state.room, after);
        self.room.replace(before, after);
    }

    /// Room for proven blocks that came, if they are not here.
    pub(super) fn reserve_blocks(
        &self,
        range: &VerifiedRange<'_>,
    ) -> Result<Reserved<'_>, StoreError> {
        let object = &range.object;
        let is_here = |state: &State| state.require(&range.blocks).is_ok();
        let want = match self.look(object, is_here)? {
            Some(true) => Want::Files(0),
            _ if object.size <= INLINE_BYTES_MAX => Want::Small(small_room(object.size)),
            _ => Want::Files(room_to_add(object, range.blocks.clone())),
        };
        if want == Want::Files(0) {
            return Ok(Reserved {
                room: &self.room,
                bytes: 0,
            });
        }
        self.reserve(want)
    }

    /// See [`super::Store::make_room`].
    pub(super) fn make_room_for(&self, bytes: u64) -> Result<bool, StoreError> {
        match self.reserve(Want::Files(bytes)) {
            Ok(_reserved) => Ok(true),
            Err(StoreError::NoRoom { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has a staging file grow by at most `bytes`, which need not be whole pages.
    pub(super) fn grow<T>(
        &self,
        file: &File,
        bytes: u64,
        act: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let want = Want::Files(room_to_grow(bytes));
        let reserved = self.try_reserve(want).map_err(|lack| lack.error(want))?;
        let _counted = self.room.staging.read();
        let before = taken_by(file);
        let outcome = act();
        let after = taken_by(file);
        let mut taken = self.room.taken.lock();
        taken.staging = taken.staging.saturating_add(after).saturating_sub(before);
        drop(taken);
        drop(reserved);
        outcome.map_err(failed("writing", &self.staging_dir()))
    }

    /// Counts a small file beside a staging file, which is never refused.
    pub(super) fn note_beside(&self) {
        let mut taken = self.room.taken.lock();
        taken.staging = taken.staging.saturating_add(PAGE_BYTES);
    }

    /// Counts staging files anew if that was last done so long ago: those that were unlinked, or became objects, are still in
    /// the count.
    pub(super) fn recount_staging(&self, after: Duration) -> Result<(), StoreError> {
        let mut counted_at = self.room.counted_at.lock();
        if counted_at.is_some_and(|at| at.elapsed() < after) {
            return Ok(());
        }
        let _nobody_writes = self.room.staging.write();
        let bytes = self.staging_bytes()? + folder_bytes(&self.dir.join("lost"));
        self.room.taken.lock().staging = bytes;
        *counted_at = Some(Instant::now());
        Ok(())
    }

    /// Looks at what the index takes.
    pub(super) fn note_index(&self) {
        if self.room.taken.lock().index_since > 0
            && let Err(error) = self.db.flush()
        {
            // What sled has in its buffers stays counted.
            tracing::warn!(%error, "the index could not be written");
            return;
        }
        let dir = self.dir.join("index");
        let bytes = folder_bytes(&dir) + folder_bytes(&dir.join("blobs"));
        let mut taken = self.room.taken.lock();
        taken.index = bytes;
        taken.index_since = 0;
    }

    /// What the worker does now and then.
    pub(super) fn count_now_and_then(&self) -> Result<(), StoreError> {
        self.note_index();
        self.make_room_for(0)?;
        let mut passing = self.room.passing.lock();
        if !passing.is_empty() && !self.room.is_tight() {
            passing.clear();
        }
        drop(passing);
        self.recount_staging(RECOUNT_AFTER)
    }

    /// Makes room for what is put into the index, as far as that is possible: it is put there in any case.
    pub(super) fn make_room_in_index(&self, bytes: u64) -> Result<(), StoreError> {
        match self.reserve(Want::Files(bytes.saturating_mul(INDEX_FACTOR))) {
            Ok(_) | Err(StoreError::NoRoom { .. }) => {
                self.room.count_index(bytes);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Looks at the index when much was put into it, and makes up for it elsewhere.
    pub(super) fn note_index_if_grown(&self) -> Result<(), StoreError> {
        if self.room.taken.lock().index_since > INDEX_SINCE_MAX {
            self.note_index();
            self.make_room_for(0)?;
        }
        Ok(())
    }

    /// Until it is dropped no staging files are counted: one may have become an object that is not counted yet.
    pub(super) fn while_uncounted(&self) -> RwLockReadGuard<'_, ()> {
        self.room.staging.read()
    }

    /// Lets blocks pass that there is no room for.
    pub(super) fn pass(&self, range: &VerifiedRange<'_>, why: &StoreError) {
        if matches!(why, StoreError::Full) && !self.room.is_tight() {
            tracing::warn!("the disk is full: what is read from other members now is not kept");
        }
        self.room
            .tight_until
            .store(now() + TIGHT_FOR, Ordering::Relaxed);
        let mut passing = self.room.passing.lock();
        for (block, data) in (range.blocks.start..).zip(&range.data) {
            passing.put(range.object, block, data);
        }
        drop(passing);
        // So that it is forgotten in time.
        self.bell.ring();
    }

    pub(super) fn passing(&self, object: &Object, block: u64) -> Option<Bytes> {
        self.room.passing.lock().get(object, block)
    }

    pub(super) fn is_any_passing(&self) -> bool {
        !self.room.passing.lock().is_empty()
    }

    /// See [`super::Store::oldest`].
    pub(super) fn oldest(
        &self,
        size: Size,
        after: Option<Candidate>,
        max: usize,
    ) -> Result<Vec<(Candidate, Origin)>, StoreError> {
        self.write_records()?;
        let pool = match size {
            Size::Small => &self.room.small,
            Size::Large => &self.room.files,
        };
        let mut oldest = Oldest::after(after, max);
        for pair in self.objects.iter() {
            let (key, value) = pair?;
            let object = parse_object_key(&key)?;
            if Size::of(&object) != size
                || pool.lock().contains(&object)
                || self.is_pinned(&object)?
                || self.is_promised(&object, now())?
            {
                continue;
            }
            let Some(last_use) = ObjectRecord::last_use_of(&value) else {
                continue;
            };
            let room = match size {
                Size::Small => small_room(object.size),
                Size::Large => {
                    let record = ObjectRecord::decode(&object, &value)?;
                    estimate(&object, &record.present)
                }
            };
            oldest.look_at(Candidate {
                last_use,
                object,
                room,
            });
        }
        let mut found = Vec::new();
        for candidate in oldest.into_sorted() {
            let origin = self.look(&candidate.object, |state| state.record.origin)?;
            found.extend(origin.map(|origin| (candidate, origin)));
        }
        Ok(found)
    }

    /// Lets a content go when room is needed, until then (seconds since 1970). False if too many may go already.
    pub(super) fn clear(&self, candidate: &Candidate, until_s: u64) -> bool {
        let pool = match candidate.object.size <= INLINE_BYTES_MAX {
            true => &self.room.small,
            false => &self.room.files,
        };
        pool.lock().offer(candidate, until_s)
    }

    /// What is taken, what may be, and what of it may go.
    pub(super) fn room_report(&self) -> RoomReport {
        let taken = *self.room.taken.lock();
        let full = self.room.full.lock();
        RoomReport {
            limits: *self.room.limits.read(),
            files_bytes: taken.files,
            staging_bytes: taken.staging,
            index_bytes: taken.index,
            small_bytes: taken.small,
            cleared_bytes: self.room.files.lock().room(),
            full: full.why.filter(|_| now() < full.until),
        }
    }
}

/// Small contents are in the index, others have files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// In the index.
    Small,
    /// In files.
    Large,
}

impl Size {
    fn of(object: &Object) -> Self {
        match object.size <= INLINE_BYTES_MAX {
            true => Self::Small,
            false => Self::Large,
        }
    }
}

/// What is taken, and what may be.
#[derive(Clone, Copy, Debug)]
pub struct RoomReport {
    /// What may be taken.
    pub limits: Option<Limits>,
    /// By backing files with their hash trees.
    pub files_bytes: u64,
    /// By staging files.
    pub staging_bytes: u64,
    /// By the index, small contents included.
    pub index_bytes: u64,
    /// What of the index is set aside for small contents.
    pub small_bytes: u64,
    /// By backing files that go when room is needed, as far as was found out.
    pub cleared_bytes: u64,
    /// Why something found no room a moment ago.
    pub full: Option<Shortage>,
}

/// Forgets all that is here of an object, in memory; returns how many bytes that was. With its `change` held; the record is
/// to be written then.
pub(super) fn forget(hot: &Hot) -> u64 {
    let mut state = hot.state.write();
    let freed = super::cache::bytes_in(&hot.object, &state.record.present);
    state.record.present = BlockSet::default();
    state.record.loose = BlockSet::default();
    state.record.inline = None;
    state.record.size_proven = false;
    state.record.origin = Origin::Fetched;
    state.withdrawn = BlockSet::default();
    state.settling = BlockSet::default();
    state.files = None;
    state.drops += 1;
    state.dirty = true;
    freed
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CacheSize => "the limit of the cache (--cache-size) is reached",
            Self::MinFree => "the disk has no more free than is to be left (--min-free)",
        })
    }
}
