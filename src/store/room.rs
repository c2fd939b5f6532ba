//! Room: what the store takes, the limits on that, and making room within them.
//!
//! Whatever is about to grow reserves its room first: if there is too little, what was cleared goes ([`super::policy`]), and
//! only then bytes are written. So the limits hold at any time, not after the fact. What was reserved is given back
//! against what the filesystem says the files take (`st_blocks`, as `du` counts), which is less or as much.
//!
//! Counted are backing files with their hash trees, packs, staging files, what lies in `lost`, and the index. Never refused are what the index takes for
//! the manifest and for records, journal records, and the making of an object of a staging file (its hash tree is
//! 0.1 % of it): they are counted, and whoever comes next has less.
//!
//! Lock order: `evicting`, then what [`super`] says; `taken`, the pools and what is passing are held for a moment only.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
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
use rustix::{fs::FallocateFlags, io::Errno};
use tokio::sync::{Notify, watch};

use super::{
    Origin, StoreError,
    arriving::Arriving,
    cache::{Core, Files, Hot, State, now, remove_file},
    failed,
    packs::Packs,
    passing::Passing,
    policy::{
        Candidate, Lack, Limits, Oldest, Pool, SMALL_RECORD_BYTES, Shortage, Taken, Want,
        small_room,
    },
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
/// For so long the disk isn't asked again what is free, where that is so much more than `--min-free`: what is taken here is known,
/// and nobody else writes as much meanwhile.
const FREE_FOR: Duration = Duration::from_millis(10);
const FREE_PLENTY: u64 = 4 * 1024 * 1024 * 1024;
/// How many times its bytes something put into the index may take.
const INDEX_FACTOR: u64 = 3;
/// Additions to the index after which it is looked at again.
const INDEX_SINCE_MAX: u64 = 1024 * 1024;
/// For so long after nothing was found that may go, that is not looked for again: whoever writes into a full cache, or has what
/// is read pass by it, waits for the disk each time otherwise.
const BARREN_FOR: Duration = Duration::from_millis(100);
/// Counting staging files takes at most one part in so many of the time, and while there is too little room.
const RECOUNT_PART: u32 = 20;
const RECOUNT_PART_SOON: u32 = 5;
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
    pub(super) files: Mutex<Pool>,
    small: Mutex<Pool>,
    /// One makes room at a time.
    evicting: Mutex<()>,
    /// Held by those who make staging files grow; by who counts them anew, alone.
    staging: RwLock<()>,
    counted: Mutex<Option<Counted>>,
    free: Mutex<Option<Free>>,
    /// Until when it need not be looked for what may go.
    barren_until: Mutex<Option<Instant>>,
    passing: Mutex<Passing>,
    /// What is being kept right now.
    pub(super) arriving: Arc<Arriving>,
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

/// What was free on the disk the last time that it was asked, less all that was set aside since.
struct Free {
    at: Instant,
    free: u64,
}

/// The last count of staging files.
struct Counted {
    at: Instant,
    took: Duration,
}

/// How far the searches for what may go are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Searches {
    pub(super) begun: u64,
    pub(super) ended: u64,
    pub(super) found: bool,
}

/// Contents that were let go.
pub(super) struct Gone {
    pub(super) contents: Vec<Arc<Hot>>,
    /// Whether any was looked at: then there may be more.
    is_any: bool,
    pub(super) outcome: Result<(), StoreError>,
}

/// What became of a content that might have gone.
enum One {
    Stays,
    /// With the room that it had.
    Goes(Arc<Hot>, u64),
}

/// Room that was set aside for what is about to be written; given back when dropped.
pub(super) struct Reserved<'a> {
    room: &'a Room,
    want: Want,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.room.taken.lock().release(self.want);
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
    let files = walkdir::WalkDir::new(dir)
        .min_depth(1)
        .into_iter()
        .flatten();
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
fn room_to_add(object: &Object, blocks: Range<u64>) -> u64 {
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
        *self.barren_until.lock() = None;
        self.wanted.notify_one();
    }

    /// Notes that the store holds `small` bytes of small contents more (or less).
    pub(super) fn count_small(&self, object: &Object, came: bool) {
        if object.size > INLINE_BYTES_MAX {
            return;
        }
        let room = small_room(object.size);
        let mut taken = self.taken.lock();
        taken.small = match came {
            true => taken.small.saturating_add(room),
            false => taken.small.saturating_sub(room),
        };
        // Either writes what is near it in the index anew.
        taken.index_since = taken.index_since.saturating_add(SMALL_RECORD_BYTES);
    }

    /// Notes what the packs take.
    pub(super) fn count_packs(&self, packs: &Packs) {
        // Asked under the lock: who is last has the last word.
        let mut taken = self.taken.lock();
        taken.packs = packs.bytes();
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

    /// So many bytes are no staging file's any more. Not while staging files are counted.
    pub(super) fn no_staging(&self, bytes: u64) {
        let mut taken = self.taken.lock();
        taken.staging = taken.staging.saturating_sub(bytes);
    }

    /// Something refers to the content from now on.
    pub(super) fn keep(&self, object: &Object) {
        self.pool(Size::of(object)).lock().keep(object);
    }

    /// The content is not what it was when it was cleared: it was written here again.
    fn take_back(&self, object: &Object) {
        let mut pool = self.pool(Size::of(object)).lock();
        pool.take(object);
        pool.keep(object);
    }

    pub(super) fn pool(&self, size: Size) -> &Mutex<Pool> {
        match size {
            Size::Small => &self.small,
            Size::Large => &self.files,
        }
    }

    pub(super) fn is_tight(&self) -> bool {
        now() < self.tight_until.load(Ordering::Relaxed)
    }
}

impl Core {
    /// What is free on the disk, or less, where `bytes` more are about to be set aside.
    fn disk_free(&self, bytes: u64) -> u64 {
        let mut free = self.room.free.lock();
        let is_plenty = |at_least: u64| {
            let limits = *self.room.limits.read();
            limits.is_none_or(|limits| at_least > limits.free_bytes_min.saturating_add(FREE_PLENTY))
        };
        if let Some(known) = &mut *free {
            known.free = known.free.saturating_sub(bytes);
            if known.at.elapsed() < FREE_FOR && is_plenty(known.free) {
                return known.free;
            }
        }
        // What can't be found out is no reason to refuse: the write itself says.
        let disk = rustix::fs::statvfs(&self.dir);
        let now = disk.map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        *free = Some(Free {
            at: Instant::now(),
            free: now,
        });
        now
    }

    /// Sets room aside, or says what is lacking.
    fn try_reserve(&self, want: Want) -> Result<Reserved<'_>, Lack> {
        let limits = *self.room.limits.read();
        let mut taken = self.room.taken.lock();
        let mut pressed = (false, false);
        if let Some(limits) = limits {
            // Under the lock: what others took of the disk before is either reserved or not free any more.
            let disk_free = self.disk_free(want.bytes());
            if let Some(lack) = limits.lacks(&taken, disk_free, want) {
                return Err(lack);
            }
            pressed = limits.is_pressed(&taken, disk_free);
        }
        taken.reserve(want);
        let after = *taken;
        drop(taken);
        if self.knows_few(&after, pressed) {
            self.room.wanted.notify_one();
        }
        Ok(Reserved {
            room: &self.room,
            want,
        })
    }

    /// Whether so much is taken, and so little known that may go, that it should be searched for.
    pub(super) fn wants_victims(&self) -> bool {
        let Some(limits) = *self.room.limits.read() else {
            return false;
        };
        let taken = *self.room.taken.lock();
        self.knows_few(&taken, limits.is_pressed(&taken, self.disk_free(0)))
    }

    /// Whether too little is known that may go, of those kinds that take much.
    fn knows_few(&self, taken: &Taken, (files, small): (bool, bool)) -> bool {
        let few = |pool: &Mutex<Pool>, part: u64| {
            let pool = pool.lock();
            !pool.is_full() && pool.room() < part
        };
        let eighth = self.room.cache_bytes_max() / 8;
        files && few(&self.room.files, eighth.min(taken.files / 4))
            || small && few(&self.room.small, taken.small / 4)
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
        let mut lack = match self.try_reserve(want) {
            Ok(reserved) => return Ok(reserved),
            Err(lack) => lack,
        };
        let is_barren = |until: Instant| Instant::now() < until;
        if self.room.barren_until.lock().is_some_and(is_barren) || !self.ever_fits(want) {
            // Nothing is to go for what won't fit anyway.
            return Err(lack.error(want));
        }
        self.note_index();
        self.recount_staging(RECOUNT_SOON, RECOUNT_PART_SOON)?;
        for _ in 0..ROUNDS_MAX {
            lack = match self.try_reserve(want) {
                Ok(reserved) => return Ok(reserved),
                Err(lack) => lack,
            };
            if !self.make_room(&lack)? {
                break;
            }
            // Letting contents go counts as written to the index.
            if self.room.taken.lock().index_since > INDEX_SINCE_MAX {
                self.note_index();
            }
        }
        *self.room.barren_until.lock() = Some(Instant::now() + BARREN_FOR);
        self.room.wanted.notify_one();
        self.note_full(lack.why);
        Err(lack.error(want))
    }

    /// Whether there can be so much room at all.
    fn ever_fits(&self, want: Want) -> bool {
        let taken = *self.room.taken.lock();
        let limits = *self.room.limits.read();
        want.bytes() == 0 || limits.is_none_or(|limits| limits.ever_fits(&taken, want))
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
            "no room: {why}, and nothing more is known that may go: the rest is the index's, pinned, unpublished, promised to \
             others, open, or no other member promised to keep it"
        );
    }

    /// Lets go what may go; false if there was nothing.
    fn make_room(&self, lack: &Lack) -> Result<bool, StoreError> {
        let batch = (self.room.cache_bytes_max() / BATCH_DIVISOR).min(BATCH_BYTES_MAX);
        let mut is_any = false;
        if lack.files > 0 {
            let gone = self.let_go(&self.room.files, lack.files.max(batch));
            is_any |= gone.is_any;
            self.remove_files(&gone.contents)?;
            gone.outcome?;
        }
        // Where of larger ones none may go, small ones do for their sake, after what packs take for nothing.
        let for_files = lack.files > 0 && !is_any;
        if for_files && self.clean_packs(lack.files)? {
            return Ok(true);
        }
        let (small, batch) = match for_files {
            true => (lack.small.max(lack.files), batch / 2),
            false => (lack.small, batch / 4),
        };
        if small > 0 {
            let gone = self.let_go(&self.room.small, small.max(batch));
            is_any |= gone.is_any;
            gone.outcome?;
        }
        Ok(is_any)
    }

    fn last_use(&self, object: &Object) -> Option<u64> {
        let hot = self.shard(object).lock().get(object);
        hot.map(|hot| hot.last_use.load(Ordering::Relaxed))
    }

    /// Lets contents of a pool go, from memory and from the index, until they had so much room.
    pub(super) fn let_go(&self, pool: &Mutex<Pool>, bytes: u64) -> Gone {
        let mut gone = Gone {
            contents: Vec::new(),
            is_any: false,
            outcome: Ok(()),
        };
        let mut room = 0;
        for _ in 0..BATCH_MAX {
            if room >= bytes {
                break;
            }
            match self.let_one_go(pool) {
                Ok(None) => break,
                Ok(Some(One::Stays)) => gone.is_any = true,
                Ok(Some(One::Goes(hot, its_room))) => {
                    gone.is_any = true;
                    room += its_room;
                    gone.contents.push(hot);
                }
                Err(error) => {
                    gone.outcome = Err(error);
                    break;
                }
            }
        }
        gone
    }

    /// Lets the first of a pool go, unless it is to stay by now; `None` if the pool is empty.
    fn let_one_go(&self, pool: &Mutex<Pool>) -> Result<Option<One>, StoreError> {
        let first = pool.lock().first(now(), |object| self.last_use(object));
        let Some(object) = first else { return Ok(None) };
        let Some(hot) = self.hot(&object)? else {
            pool.lock().take(&object);
            return Ok(Some(One::Stays));
        };
        let Some(change) = hot.change.try_lock() else {
            // Somebody is at it.
            pool.lock().put_behind(&object, now());
            return Ok(Some(One::Stays));
        };
        let cleared = pool.lock().take(&object);
        if !cleared || self.is_exempt(&hot)? {
            return Ok(Some(One::Stays));
        }
        let room = match object.size <= INLINE_BYTES_MAX {
            true => small_room(object.size),
            false => hot.state.read().room,
        };
        self.forget_cleared(&object)?;
        let freed = forget(&hot);
        self.count_went(&object, freed)?;
        self.write_record(&hot, &change)?;
        drop(change);
        Ok(Some(One::Goes(hot, room)))
    }

    /// Removes the files of contents that were let go.
    pub(super) fn remove_files(&self, going: &[Arc<Hot>]) -> Result<(), StoreError> {
        if going.is_empty() {
            return Ok(());
        }
        // No record may claim what is about to go, not even one that a crash brings back.
        self.flush_index()?;
        let mut outcome = Ok(());
        for hot in going {
            let _change = hot.change.lock();
            let is_vacant = hot.state.read().is_vacant();
            // Fetched again meanwhile, into the same files: then they stay, but not what else is in them.
            outcome = outcome.and(match is_vacant {
                true => self.unlink(hot),
                false => self.trim(hot),
            });
        }
        outcome
    }

    /// Gives back what is in the backing file of an object beside the blocks that are here. With its `change` held, and no
    /// record that claims more on disk.
    pub(super) fn trim(&self, hot: &Hot) -> Result<(), StoreError> {
        let files = self.files(hot, false)?;
        let mut wanted = hot.state.read().record.present.clone();
        wanted.union(&hot.state.read().withdrawn);
        let is_shared = files.data.metadata().is_ok_and(|file| file.nlink() > 1);
        if hot.lent.load(Ordering::Acquire) == 0 && !is_shared {
            let rest: Vec<Range<u64>> = wanted.missing(0..hot.object.blocks()).collect();
            self.punch(&hot.object, &files, &rest)?;
        }
        self.measure(hot, &files);
        Ok(())
    }

    /// Makes holes of blocks that nobody wants; where holes can't be punched, their room is given back with the last block.
    pub(super) fn punch(
        &self,
        object: &Object,
        files: &Files,
        blocks: &[Range<u64>],
    ) -> Result<(), StoreError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for blocks in blocks {
            let bytes = object.bytes_of(blocks.clone());
            match rustix::fs::fallocate(&*files.data, flags, bytes.start, bytes.end - bytes.start) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => {
                    return Err(failed("punching", &self.data_path(object))(error.into()));
                }
            }
        }
        Ok(())
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
        self.room.take_back(&hot.object);
        if let Err(error) = self.forget_cleared(&hot.object) {
            tracing::warn!(content = %hot.object.content, %error, "it could not be noted that this stays");
        }
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
                want,
            });
        }
        self.reserve(want)
    }

    /// See [`super::Store::make_room`].
    pub(super) fn make_room_for(&self, bytes: u64) -> Result<bool, StoreError> {
        let want = Want::Files(bytes);
        match self.reserve(want) {
            Ok(_reserved) => Ok(true),
            Err(StoreError::NoRoom { .. }) if self.ever_fits(want) => Ok(false),
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
        self.used_at.store(now(), Ordering::Relaxed);
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
        outcome.map_err(|error| failed("writing", &self.staging_dir())(error))
    }

    /// Counts what the journal takes, which is never refused.
    pub(super) fn note_beside(&self, bytes: u64) {
        let mut taken = self.room.taken.lock();
        taken.staging = taken.staging.saturating_add(bytes);
    }

    /// Counts staging files anew if that was last done so long ago: those that were unlinked, or became objects, are still in
    /// the count. Nor is it done for more than one part in `part` of the time: nobody writes meanwhile.
    pub(super) fn recount_staging(&self, after: Duration, part: u32) -> Result<(), StoreError> {
        let mut counted = self.room.counted.lock();
        let is_new = |last: &Counted| last.at.elapsed() < after.max(last.took * part);
        if counted.as_ref().is_some_and(is_new) {
            return Ok(());
        }
        let begun = Instant::now();
        let _nobody_writes = self.room.staging.write();
        let bytes =
            self.staging_bytes()? + self.latest.bytes() + folder_bytes(&self.dir.join("lost"));
        self.room.taken.lock().staging = bytes;
        let at = Instant::now();
        let took = at - begun;
        *counted = Some(Counted { at, took });
        Ok(())
    }

    /// Counts what the index took meanwhile, until it is looked at.
    pub(super) fn count_index_grown(&self, bytes: u64) {
        let mut taken = self.room.taken.lock();
        taken.index = taken.index.saturating_add(bytes);
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
        let bytes = folder_bytes(&dir);
        let mut taken = self.room.taken.lock();
        taken.index = bytes;
        taken.index_since = 0;
    }

    /// What the worker does now and then.
    pub(super) fn count_now_and_then(&self) -> Result<(), StoreError> {
        self.keep_index_room()?;
        self.note_index();
        self.make_room_for(0)?;
        let mut passing = self.room.passing.lock();
        match self.room.is_tight() {
            // To be looked at once more: memory is not to be held for long.
            true if !passing.is_empty() => self.bell.ring(),
            true => {}
            false => passing.clear(),
        }
        drop(passing);
        self.recount_staging(RECOUNT_AFTER, RECOUNT_PART)
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
        // Not behind somebody who waits to count: he may wait for one who writes and, since the bytes come from this object, for
        // its `change`, which is held here.
        self.room.staging.read_recursive()
    }

    /// Lets blocks pass that there is no room for.
    pub(super) fn pass(&self, range: &VerifiedRange<'_>, why: &StoreError) {
        if !matches!(why, StoreError::NoRoom { .. }) && !self.room.is_tight() {
            tracing::warn!("what is read from other members now is not kept: {why}");
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
        let arriving = self.room.arriving.get(object, block);
        arriving.or_else(|| self.room.passing.lock().get(object, block))
    }

    pub(super) fn is_any_passing(&self) -> bool {
        !self.room.arriving.is_empty() || !self.room.passing.lock().is_empty()
    }

    /// See [`super::Store::oldest`].
    pub(super) fn oldest(
        &self,
        size: Size,
        after: Option<Candidate>,
        max: usize,
    ) -> Result<Vec<(Candidate, Origin)>, StoreError> {
        self.write_records()?;
        let pool = self.room.pool(size);
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
        let candidates = oldest.into_sorted();
        // In the order in which they lie in the index, so that each of its pages is read once.
        let mut objects: Vec<_> = candidates.iter().map(|found| found.object).collect();
        objects.sort_unstable();
        let mut origins = HashMap::new();
        for object in objects {
            let origin = self.look(&object, |state| state.record.origin)?;
            origins.extend(origin.map(|origin| (object, origin)));
        }
        let found = candidates.into_iter();
        let found = found.filter_map(|found| Some((found, *origins.get(&found.object)?)));
        Ok(found.collect())
    }

    /// Lets a content go when room is needed, until then (seconds since 1970). False if too many may go already.
    pub(super) fn clear(&self, candidate: &Candidate, until_s: u64) -> bool {
        let pool = self.room.pool(Size::of(&candidate.object));
        let is_cleared = pool.lock().offer(candidate, until_s);
        if is_cleared {
            *self.room.barren_until.lock() = None;
        }
        is_cleared
    }

    /// See [`super::Store::look_begins`].
    pub(super) fn note_kept(&self, size: Size, is_noted: bool) {
        let mut pool = self.room.pool(size).lock();
        match is_noted {
            true => pool.begin(),
            false => pool.end(),
        }
    }

    /// See [`super::Store::clear_unreferenced`].
    pub(super) fn clear_unreferenced(&self, candidate: &Candidate, until_s: u64) -> bool {
        let pool = self.room.pool(Size::of(&candidate.object));
        let is_cleared = pool.lock().offer_unless_kept(candidate, until_s);
        if is_cleared {
            *self.room.barren_until.lock() = None;
        }
        is_cleared
    }

    /// Room of what may go of a kind; `None` if no more may be cleared.
    pub(super) fn cleared(&self, size: Size) -> Option<u64> {
        let pool = self.room.pool(size).lock();
        (!pool.is_full()).then(|| pool.room())
    }

    /// What is taken, what may be, and what of it may go.
    pub(super) fn room_report(&self) -> RoomReport {
        let taken = *self.room.taken.lock();
        let full = self.room.full.lock();
        RoomReport {
            limits: *self.room.limits.read(),
            files_bytes: taken.files.saturating_add(taken.packs),
            staging_bytes: taken.staging,
            index_bytes: taken.index,
            small_bytes: taken.small,
            cleared_bytes: self.room.files.lock().room(),
            full: full.why.filter(|_| now() < full.until),
        }
    }
}

/// Small contents are in packs, others have files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// In packs.
    Small,
    /// In files.
    Large,
}

impl Size {
    pub(super) fn of(object: &Object) -> Self {
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
    /// By backing files with their hash trees, and by packs.
    pub files_bytes: u64,
    /// By staging files.
    pub staging_bytes: u64,
    /// By the index.
    pub index_bytes: u64,
    /// What is set aside for small contents.
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
