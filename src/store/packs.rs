//! Packs: files in which small contents lie one behind the other. The index says where.
//!
//! In the index itself each would take about three times its bytes, for good: sled doesn't become smaller. A pack goes as a
//! whole once nothing in it is wanted, and where too much of one is not wanted any more, the rest moves into another
//! ([`Core::clean_packs`]).
//!
//! ```text
//! packs/<number, 8 hex digits>   contents, one behind the other
//! content                        "p2pc" ‖ size (2, little-endian) ‖ hash (32) ‖ its bytes
//! ```
//! What stands in a pack never changes, and proves itself each time it is read. Each process begins a pack of its own, so
//! nothing is ever written behind a torn end. Bytes come before the record that names them, and are synced before the index is
//! flushed; a pack goes after an index that names nothing in it was.
//!
//! Lock order: `cleaning`, then what [`super`] says; the other locks here are held for a moment, `syncing` while the disk syncs.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::Advice;

use super::{
    Damage, Origin, StoreError,
    cache::{Core, Hot, State, remove_file},
    failed,
    folder::sync_dir,
    objects::is_of_the_block,
    record::{ObjectRecord, object_key},
};
use crate::content::{self, BlockSet, ContentId, INLINE_BYTES_MAX, Object};

/// What a pack has at most, in general and where the cache is small: of that, one part in so many.
const PACK_BYTES: u64 = 1024 * 1024;
const PACK_BYTES_MIN: u64 = 64 * 1024;
const PACK_DIVISOR: u64 = 256;
/// What stands before a content.
pub(super) const HEADER_BYTES: u64 = 38;
const MAGIC: [u8; 4] = *b"p2pc";
/// Packs are cleaned once one part in so many of all is not wanted, and two packs more; when room is needed, one that has so
/// much.
const DEAD_DIVISOR: u64 = 4;
/// Packs that are not synced after which that is done without being asked for, each being an open file; and from so many on,
/// who writes waits for that.
const UNSYNCED_MANY: usize = 16;
const UNSYNCED_MAX: usize = 64;
/// Packs that are cleaned in one go.
const CLEANED_MAX: usize = 16;
/// Number of the first pack that may not be synced (4 bytes, little-endian).
const PACKS_KEY: &str = "packs";
/// What a filesystem gives out at a time.
const PAGE_BYTES: u64 = 4096;

/// Where a content stands: its header, in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) pack: u32,
    pub(super) offset: u32,
}

impl Spot {
    /// No content is there.
    const NOWHERE: Self = Self {
        pack: u32::MAX,
        offset: u32::MAX,
    };
}

/// Contents of a pack, and where they are.
type Contents = Vec<(Object, Spot, Bytes)>;

/// See the module.
pub(super) struct Packs {
    dir: PathBuf,
    known: Mutex<Known>,
    /// One writes at a time, so that `known` is not held while the disk is waited for.
    writing: Mutex<()>,
    /// One syncing at a time: who finds nothing to sync is not to go on before another has synced it.
    syncing: Mutex<()>,
    /// One cleaning at a time.
    cleaning: Mutex<()>,
    /// Syncing failed: the next time it would succeed without proving anything.
    broken: AtomicBool,
    /// What stands in the index under [`PACKS_KEY`].
    noted: AtomicU32,
}

struct Known {
    packs: BTreeMap<u32, Pack>,
    /// The one that is being filled.
    open: Option<(u32, Arc<File>)>,
    next: u32,
    pack_bytes: u64,
    unsynced: BTreeMap<u32, Arc<File>>,
    /// A pack was made since the folder was synced.
    unnamed: bool,
    /// What all of them take.
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pack {
    /// All that was written.
    length: u64,
    /// What records name of it.
    live: u64,
    /// Something that is wanted of it could not be moved.
    stuck: bool,
    /// It may have something that no record names, and could not be read.
    kept: bool,
}

impl Pack {
    fn dead(&self) -> u64 {
        self.length.saturating_sub(self.live)
    }

    /// What its file takes.
    fn bytes(&self) -> u64 {
        self.length.div_ceil(PAGE_BYTES) * PAGE_BYTES
    }
}

/// What a content takes in a pack.
fn bytes_of(object: &Object) -> u64 {
    HEADER_BYTES.saturating_add(object.size)
}

fn header(object: &Object) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    // At most INLINE_BYTES_MAX.
    let size = (object.size as u16).to_le_bytes();
    let parts = MAGIC.iter().chain(&size).chain(&object.content.0);
    header
        .iter_mut()
        .zip(parts)
        .for_each(|(to, from)| *to = *from);
    header
}

/// The content that begins a piece of a pack, if what stands there is one.
fn content_at(bytes: &[u8]) -> Option<(Object, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<{ HEADER_BYTES as usize }>()?;
    let (magic, header) = header.split_first_chunk::<4>()?;
    let (size, hash) = header.split_first_chunk::<2>()?;
    let size = u64::from(u16::from_le_bytes(*size));
    if *magic != MAGIC || size == 0 || size > INLINE_BYTES_MAX {
        return None;
    }
    let object = Object {
        content: ContentId(hash.try_into().ok()?),
        size,
    };
    let content = rest.get(..size as usize)?;
    (content::hash_bytes(content) == object.content).then_some((object, content))
}

impl Packs {
    /// The packs of a state folder. Nothing of them counts as wanted before it was claimed.
    pub(super) fn open(state: &Path) -> Result<Self, StoreError> {
        let dir = state.join("packs");
        if !dir.exists() {
            let made = DirBuilder::new().mode(0o700).create(&dir);
            made.map_err(failed("making", &dir))?;
            sync_dir(state)?;
        }
        let mut packs = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(failed("listing", &dir))? {
            let entry = entry.map_err(failed("listing", &dir))?;
            let name = entry.file_name();
            let number = name.to_str().filter(|name| name.len() == 8);
            let Some(number) = number.and_then(|name| u32::from_str_radix(name, 16).ok()) else {
                tracing::warn!(path = %entry.path().display(), "not a file of ours; left alone");
                continue;
            };
            let file = entry.metadata().map_err(failed("looking at", &dir))?;
            let pack = Pack {
                length: file.len(),
                ..Pack::default()
            };
            packs.insert(number, pack);
        }
        let last = packs.last_key_value().map(|(number, _)| *number);
        let bytes = packs.values().map(Pack::bytes).sum();
        Ok(Self {
            dir,
            known: Mutex::new(Known {
                packs,
                open: None,
                next: last.map_or(0, |last| last.saturating_add(1)),
                pack_bytes: PACK_BYTES,
                unsynced: BTreeMap::new(),
                unnamed: false,
                bytes,
            }),
            writing: Mutex::new(()),
            syncing: Mutex::new(()),
            cleaning: Mutex::new(()),
            broken: AtomicBool::new(false),
            noted: AtomicU32::new(u32::MAX),
        })
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08x}"))
    }

    /// Fits the size of packs to a cache of so many bytes.
    pub(super) fn fit(&self, cache_bytes_max: u64) {
        self.known.lock().pack_bytes =
            (cache_bytes_max / PACK_DIVISOR).clamp(PACK_BYTES_MIN, PACK_BYTES);
    }

    /// What all packs take.
    pub(super) fn bytes(&self) -> u64 {
        self.known.lock().bytes
    }

    /// Counts a content as wanted, which a record names. False if the pack does not reach so far: it did not survive the machine
    /// going down, or is gone.
    pub(super) fn claim(&self, spot: Spot, object: &Object) -> bool {
        let mut known = self.known.lock();
        let Some(pack) = known.packs.get_mut(&spot.pack) else {
            return false;
        };
        let reaches = u64::from(spot.offset).saturating_add(bytes_of(object)) <= pack.length;
        if reaches {
            pack.live = pack.live.saturating_add(bytes_of(object));
        }
        reaches
    }

    /// No record names a content there any more.
    pub(super) fn release(&self, spot: Spot, object: &Object) {
        if let Some(pack) = self.known.lock().packs.get_mut(&spot.pack) {
            pack.live = pack.live.saturating_sub(bytes_of(object));
        }
    }

    /// Writes a small content behind the others. It counts as wanted from then on.
    ///
    /// # Errors
    /// Of the disk; nothing is wanted of what was written then.
    pub(super) fn append(&self, object: &Object, content: &[u8]) -> Result<Spot, StoreError> {
        let bytes = bytes_of(object);
        let _one = self.writing.lock();
        let (number, file, offset) = self.open_pack(bytes)?;
        let written = file.write_all_at(&[&header(object)[..], content].concat(), offset);
        let mut known = self.known.lock();
        if let Err(error) = written {
            // Whatever became of it, nothing is written behind it.
            known.open = None;
            let _ = file.set_len(offset);
            return Err(failed("writing", &self.path(number))(error));
        }
        let pack = known.packs.entry(number).or_default();
        let before = pack.bytes();
        pack.length = offset.saturating_add(bytes);
        pack.live = pack.live.saturating_add(bytes);
        let grown = pack.bytes() - before;
        known.bytes = known.bytes.saturating_add(grown);
        known.unsynced.insert(number, file);
        Ok(Spot {
            pack: number,
            // Below PACK_BYTES.
            offset: offset as u32,
        })
    }

    /// The pack to write so many bytes into, and from where on. With `writing` held.
    fn open_pack(&self, bytes: u64) -> Result<(u32, Arc<File>, u64), StoreError> {
        let mut known = self.known.lock();
        if let Some((number, file)) = &known.open
            && let Some(pack) = known.packs.get(number)
            && pack.length.saturating_add(bytes) <= known.pack_bytes
        {
            return Ok((*number, Arc::clone(file), pack.length));
        }
        let number = known.next;
        let path = self.path(number);
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = Arc::new(made.map_err(failed("making", &path))?);
        known.next = number.checked_add(1).ok_or(StoreError::Full)?;
        known.packs.insert(number, Pack::default());
        known.unnamed = true;
        known.open = Some((number, Arc::clone(&file)));
        Ok((number, file, 0))
    }

    fn file(&self, number: u32) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.known.lock().unsynced.get(&number) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(number);
        File::open(&path)
            .map(Arc::new)
            .map_err(failed("opening", &path))
    }

    /// A content; `None` if what stands there is not it. `from_disk`: as it is there, if the kernel can be had to read it.
    ///
    /// # Errors
    /// When it can't be read now.
    pub(super) fn read(
        &self,
        spot: Spot,
        object: &Object,
        from_disk: bool,
    ) -> Result<Option<Bytes>, StoreError> {
        let mut bytes = vec![0; bytes_of(object) as usize];
        let read = self.file(spot.pack).and_then(|file| {
            if from_disk {
                // It is only advice. Of pages that are asked for in part, nothing would be given up.
                let start = u64::from(spot.offset) / PAGE_BYTES * PAGE_BYTES;
                let end = u64::from(spot.offset) + bytes_of(object) + PAGE_BYTES;
                let length = NonZeroU64::new(end - start);
                let _ = rustix::fs::fadvise(&*file, start, length, Advice::DontNeed);
            }
            file.read_exact_at(&mut bytes, u64::from(spot.offset))
                .map_err(failed("reading", &self.path(spot.pack)))
        });
        match read {
            Ok(()) => {}
            Err(StoreError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let is_it = content_at(&bytes).is_some_and(|(found, _)| found == *object);
        Ok(is_it.then(|| Bytes::from(bytes).slice(HEADER_BYTES as usize..)))
    }

    /// What stands where a content should, as far as that can be read.
    fn rest_of(&self, spot: Spot, object: &Object) -> Vec<u8> {
        let mut rest = Vec::new();
        let start = u64::from(spot.offset).saturating_add(HEADER_BYTES);
        // Nobody else has it: whatever comes is kept, and what does not is lost in any case.
        if let Ok(file) = File::open(self.path(spot.pack)) {
            let mut from = &file;
            let sought = from.seek(SeekFrom::Start(start));
            let _ = sought.and_then(|_| from.take(object.size).read_to_end(&mut rest));
        }
        rest
    }

    /// All that proves itself in a pack, wherever something else stands between.
    /// And whether all of it could be read.
    fn contents(&self, number: u32) -> Result<(Contents, bool), StoreError> {
        let (bytes, is_whole) = self.all_of(number)?;
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Some((object, content)) = content_at(rest) else {
                at += 1;
                continue;
            };
            let spot = Spot {
                pack: number,
                // Below PACK_BYTES.
                offset: at as u32,
            };
            found.push((object, spot, bytes.slice_ref(content)));
            at += bytes_of(&object) as usize;
        }
        Ok((found, is_whole))
    }

    /// The bytes of a pack, zeros where the disk does not give them, and whether it gave all.
    fn all_of(&self, number: u32) -> Result<(Bytes, bool), StoreError> {
        let path = self.path(number);
        let whole = fs::read(&path).map_err(failed("reading", &path));
        match whole {
            Ok(bytes) => return Ok((bytes.into(), true)),
            Err(error) if !is_of_the_block(&error) => return Err(error),
            Err(_) => {}
        }
        let file = self.file(number)?;
        let length = file.metadata().map_err(failed("looking at", &path))?.len();
        let mut bytes = vec![0; length.min(PACK_BYTES) as usize];
        let mut at = 0;
        for page in bytes.chunks_mut(PAGE_BYTES as usize) {
            if file.read_exact_at(page, at).is_err() {
                page.fill(0);
            }
            at += PAGE_BYTES;
        }
        Ok((bytes.into(), false))
    }

    /// What was written is on the disk when this returns. Gives the first pack of which that does not hold for what is written
    /// from now on.
    pub(super) fn sync(&self) -> Result<u32, StoreError> {
        let _one = self.syncing.lock();
        let (files, unnamed, first) = {
            let mut known = self.known.lock();
            let files = std::mem::take(&mut known.unsynced);
            let open = known.open.as_ref().map(|(number, _)| *number);
            let first = open.unwrap_or(known.next);
            (files, std::mem::take(&mut known.unnamed), first)
        };
        if self.broken.load(Ordering::Acquire) {
            let broken = failed("syncing (it failed before)", &self.dir);
            return Err(broken(io::Error::from_raw_os_error(libc::EIO)));
        }
        let synced = files.iter().try_for_each(|(number, file)| {
            file.sync_data()
                .map_err(failed("syncing", &self.path(*number)))
        });
        let synced = synced.and_then(|()| match unnamed {
            true => sync_dir(&self.dir),
            false => Ok(()),
        });
        if synced.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        synced.map(|()| first)
    }

    fn unsynced(&self) -> usize {
        self.known.lock().unsynced.len()
    }

    /// Syncs the packs from a number on: another process wrote them, and may not have come to that. Gives those of which the
    /// disk did not take all.
    pub(super) fn sync_from(&self, first: u32) -> Result<Vec<u32>, StoreError> {
        let mut doubtful = Vec::new();
        let numbers = self.numbers().into_iter();
        for number in numbers.filter(|number| *number >= first) {
            let synced = self.file(number)?.sync_data();
            match synced.map_err(failed("syncing", &self.path(number))) {
                Ok(()) => {}
                Err(error) if is_of_the_block(&error) => doubtful.push(number),
                Err(error) => return Err(error),
            }
        }
        sync_dir(&self.dir)?;
        Ok(doubtful)
    }

    /// Packs in which nothing is wanted.
    fn vacant(&self) -> Vec<u32> {
        let known = self.known.lock();
        let open = known.open.as_ref().map(|(number, _)| *number);
        let packs = known.packs.iter();
        packs
            .filter(|(number, pack)| pack.live == 0 && !pack.kept && Some(**number) != open)
            .map(|(number, _)| *number)
            .collect()
    }

    /// The pack of which most is not wanted, if that is worth its while; less is when so many bytes are needed.
    fn worst(&self, needed: u64) -> Option<u32> {
        // Nobody writes into it any more.
        let _one = self.writing.lock();
        let mut known = self.known.lock();
        let movable = || known.packs.values().filter(|pack| !pack.stuck);
        let sum = |of: fn(&Pack) -> u64| movable().map(of).sum::<u64>();
        let (all, dead) = (sum(|pack| pack.length), sum(Pack::dead));
        let is_much = dead > all / DEAD_DIVISOR + 2 * known.pack_bytes;
        let packs = known.packs.iter();
        let (number, pack) = packs
            .filter(|(_, pack)| !pack.stuck && pack.live > 0)
            .max_by_key(|(_, pack)| pack.dead())?;
        let number = *number;
        let is_most = pack.dead() >= pack.length / DEAD_DIVISOR || dead >= needed;
        let is_worth_it = is_much || needed > 0 && is_most;
        if !is_worth_it || pack.dead() == 0 {
            return None;
        }
        known.open.take_if(|(open, _)| *open == number);
        Some(number)
    }

    /// What is still wanted of a pack that was emptied can't be moved.
    fn note_stuck(&self, number: u32) {
        if let Some(pack) = self.known.lock().packs.get_mut(&number) {
            pack.stuck = pack.live > 0;
        }
    }

    /// Keeps a pack, whatever is wanted of it.
    fn keep(&self, number: u32) {
        if let Some(pack) = self.known.lock().packs.get_mut(&number) {
            pack.kept = true;
        }
    }

    /// Forgets what was claimed.
    pub(super) fn claim_none(&self) {
        let mut known = self.known.lock();
        known.packs.values_mut().for_each(|pack| pack.live = 0);
    }

    fn remove(&self, number: u32) -> Result<(), StoreError> {
        remove_file(&self.path(number))?;
        let mut known = self.known.lock();
        let gone = known.packs.remove(&number).map_or(0, |pack| pack.bytes());
        known.bytes = known.bytes.saturating_sub(gone);
        known.unsynced.remove(&number);
        Ok(())
    }

    /// Numbers of all packs.
    fn numbers(&self) -> Vec<u32> {
        self.known.lock().packs.keys().copied().collect()
    }
}

impl Core {
    /// Puts a small content into a pack.
    pub(super) fn pack(&self, object: &Object, content: &[u8]) -> Result<Spot, StoreError> {
        let spot = self.packs.append(object, content)?;
        self.room.count_packs(&self.packs);
        match self.packs.unsynced() {
            UNSYNCED_MAX.. => {
                if let Err(error) = self.packs.sync() {
                    self.packs.release(spot, object);
                    return Err(error);
                }
            }
            UNSYNCED_MANY.. => self.bell.ring(),
            _ => {}
        }
        Ok(spot)
    }

    /// Syncs the packs, and has the index note which of them are behind that.
    pub(super) fn sync_packs(&self) -> Result<(), StoreError> {
        let first = self.packs.sync()?;
        if self.packs.noted.swap(first, Ordering::Relaxed) != first {
            self.meta.insert(PACKS_KEY, &first.to_le_bytes())?;
        }
        Ok(())
    }

    /// Syncs packs that are in many files.
    pub(super) fn sync_many_packs(&self) -> Result<(), StoreError> {
        match self.packs.unsynced() >= UNSYNCED_MANY {
            true => self.sync_packs(),
            false => Ok(()),
        }
    }

    /// The first pack that the last process may not have synced.
    pub(super) fn first_unsynced(&self) -> Result<u32, StoreError> {
        let first = self.meta.get(PACKS_KEY)?;
        let first = first.and_then(|number| number.as_ref().try_into().ok());
        Ok(first.map_or(0, u32::from_le_bytes))
    }

    /// What the index knows of an object. Of a small one that can't be read, or isn't what it should be, nothing is here, but
    /// the record stays until it is had anew.
    pub(super) fn recorded(&self, object: &Object) -> Result<Option<State>, StoreError> {
        let mut before = None;
        loop {
            let Some(value) = self.objects.get(object_key(object))? else {
                return Ok(None);
            };
            let mut record = ObjectRecord::decode(object, &value)?;
            let Some(spot) = record.packed else {
                return Ok(Some(State::recorded(record)));
            };
            let read = self.packs.read(spot, object, false);
            match read {
                Ok(Some(content)) => {
                    record.inline = Some(content);
                    return Ok(Some(State::recorded(record)));
                }
                Err(error) if !is_of_the_block(&error) => return Err(error),
                // It may have moved since the record was read.
                _ if before != Some(spot) => before = Some(spot),
                _ => {
                    let all = std::mem::take(&mut record.present);
                    let mut state = State::recorded(record);
                    state.withdrawn = all;
                    return Ok(Some(state));
                }
            }
        }
    }

    /// Checks a small content as it is on the disk.
    pub(super) fn check_packed(&self, object: &Object) -> Result<Vec<Damage>, StoreError> {
        let spot = |state: &State| state.record.packed;
        let mut before = None;
        loop {
            let Some(Some(spot)) = self.look(object, spot)? else {
                return Ok(Vec::new());
            };
            match self.packs.read(spot, object, true) {
                Ok(Some(_)) => return Ok(Vec::new()),
                Err(error) if !is_of_the_block(&error) => return Err(error),
                _ if before != Some(spot) => before = Some(spot),
                _ => {
                    return Ok(vec![Damage {
                        object: *object,
                        blocks: 0..object.blocks(),
                    }]);
                }
            }
        }
    }

    /// Looks again at a small content that is said to be damaged. What is in memory was proven, and is written anew; else it is
    /// dropped, where it could be read and is wrong.
    pub(super) fn reprove_packed(&self, hot: &Hot) -> Result<(), StoreError> {
        let object = &hot.object;
        let change = hot.change.lock();
        let Some(spot) = hot.state.read().record.packed else {
            return Ok(());
        };
        let read = self.packs.read(spot, object, false);
        let is_wrong = match read {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => true,
            Err(error) if is_of_the_block(&error) => false,
            Err(error) => return Err(error),
        };
        let mut state = hot.state.write();
        if state.record.inline.is_some() {
            state.unpacked = true;
            state.dirty = true;
            drop(state);
            return self.write_record(hot, &change);
        }
        if !is_wrong {
            return Ok(());
        }
        if state.record.origin == Origin::Written {
            tracing::error!(content = %object.content, "a content that was written here is damaged: what is left of it is put aside in `lost`");
            let path = self.data_path(object);
            let kept = File::create(&path).and_then(|mut file| {
                file.write_all(&self.packs.rest_of(spot, object))?;
                file.sync_all()
            });
            kept.map_err(failed("writing", &path))?;
            self.put_aside(&path)?;
        }
        // Withdrawn already: nothing of it is counted.
        state.withdrawn = BlockSet::default();
        state.drops += 1;
        state.dirty = true;
        drop(state);
        self.write_record(hot, &change)
    }

    /// Tries a small content again that could not be read; true if it is here.
    pub(super) fn restore_packed(&self, hot: &Hot) -> Result<bool, StoreError> {
        let object = &hot.object;
        let _change = hot.change.lock();
        let spot = {
            let state = hot.state.read();
            // Another was first, or it was had anew.
            if state.withdrawn.is_empty() {
                return Ok(!state.record.present.is_empty());
            }
            state.record.packed
        };
        let Some(spot) = spot else { return Ok(false) };
        let Ok(Some(content)) = self.packs.read(spot, object, false) else {
            return Ok(false);
        };
        let mut state = hot.state.write();
        let all = std::mem::take(&mut state.withdrawn);
        state.record.inline = Some(content);
        state.record.present = all;
        drop(state);
        self.count_came(object, object.size)?;
        Ok(true)
    }

    /// Gives back what packs take beside what is wanted of them: where that is much, and else until so many bytes were given back
    /// for which there is need. True if any were.
    pub(super) fn clean_packs(&self, needed: u64) -> Result<bool, StoreError> {
        let _one = self.packs.cleaning.lock();
        let before = self.packs.bytes();
        // First: where that fails, nothing is to be written.
        let mut is_any = self.remove_vacant()?;
        for _ in 0..CLEANED_MAX {
            if self.is_index_short() {
                // Nothing could be noted of what moves.
                break;
            }
            let given_back = before.saturating_sub(self.packs.bytes());
            let Some(number) = self.packs.worst(needed.saturating_sub(given_back)) else {
                break;
            };
            self.empty_pack(number)?;
            is_any |= self.remove_vacant()?;
        }
        Ok(is_any)
    }

    /// Removes the packs in which nothing is wanted; true if there were any.
    fn remove_vacant(&self) -> Result<bool, StoreError> {
        let vacant = self.packs.vacant();
        if vacant.is_empty() {
            return Ok(false);
        }
        // No record may name what is about to go, not even one that a crash brings back.
        self.flush_index()?;
        for number in vacant {
            self.packs.remove(number)?;
        }
        self.room.count_packs(&self.packs);
        Ok(true)
    }

    /// Moves what is wanted of a pack into another one; what can't be moved stays, and the pack with it.
    pub(super) fn empty_pack(&self, number: u32) -> Result<(), StoreError> {
        // Nothing is copied where copies could not be trusted.
        self.packs.sync()?;
        let (contents, _) = self.packs.contents(number)?;
        let mut moves = Vec::new();
        let mut outcome = Ok(());
        for (object, from, content) in contents {
            let is_wanted = |state: &State| state.record.packed == Some(from);
            let copied = match self.look(&object, is_wanted) {
                Ok(Some(true)) => self.pack(&object, &content),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match copied {
                Ok(to) => moves.push((object, from, to)),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        // The index is written at any moment: no record may name a copy that a power cut would take back.
        outcome = outcome.and(self.packs.sync().map(drop));
        for (object, from, to) in moves {
            let is_moved = match &outcome {
                Ok(()) => self.move_packed(&object, from, to),
                Err(_) => Ok(false),
            };
            if !matches!(is_moved, Ok(true)) {
                self.packs.release(to, &object);
            }
            outcome = outcome.and(is_moved.map(drop));
        }
        outcome?;
        // What is left is damaged, or could not be read. Who reads or checks it finds that out.
        self.packs.note_stuck(number);
        Ok(())
    }

    /// Has the record of a content name its copy, if it names where it was; true if so.
    fn move_packed(&self, object: &Object, from: Spot, to: Spot) -> Result<bool, StoreError> {
        // As long as the shard is locked, nobody takes it into use.
        let shard = self.shard(object).lock();
        if let Some(hot) = shard.get(object) {
            drop(shard);
            let change = hot.change.lock();
            let mut state = hot.state.write();
            if state.record.packed != Some(from) || state.unpacked {
                return Ok(false);
            }
            state.record.packed = Some(to);
            state.dirty = true;
            drop(state);
            let written = self.write_record(&hot, &change);
            match &written {
                Ok(()) => self.packs.release(from, object),
                Err(_) => hot.state.write().record.packed = Some(from),
            }
            return written.map(|()| true);
        }
        let key = object_key(object);
        let Some(value) = self.objects.get(key)? else {
            return Ok(false);
        };
        let mut record = ObjectRecord::decode(object, &value)?;
        if record.packed != Some(from) {
            return Ok(false);
        }
        record.packed = Some(to);
        self.insert_record(object, record, false)?;
        self.packs.release(from, object);
        Ok(true)
    }

    /// Has records name what is in packs from a number on and is named by none, or by one that names what is not there: after an
    /// index was made anew, a record of it was damaged, or a kill took it before the index was on disk. False if some could not be
    /// read, and is to be looked for again at the next start.
    pub(super) fn adopt_packed(&self, first: u32) -> Result<bool, StoreError> {
        let (mut adopted, mut is_all) = (0u64, true);
        let numbers = self.packs.numbers().into_iter();
        for number in numbers.filter(|number| *number >= first) {
            let (contents, is_whole) = self.packs.contents(number)?;
            if !is_whole {
                let path = self.packs.path(number);
                tracing::error!(path = %path.display(), "can't be read as a whole: left alone");
                self.packs.keep(number);
                is_all = false;
            }
            for (object, spot, _) in contents {
                let known = self.objects.get(object_key(&object))?;
                // One that is damaged is as good as none.
                let known = known.and_then(|value| ObjectRecord::decode(&object, &value).ok());
                let mut record = known.unwrap_or_else(|| ObjectRecord {
                    present: BlockSet::of(0..object.blocks()),
                    size_proven: true,
                    packed: Some(Spot::NOWHERE),
                    ..State::absent().record
                });
                let is_well = match record.packed {
                    Some(known) if known == spot => true,
                    Some(known) => matches!(self.packs.read(known, &object, false), Ok(Some(_))),
                    // In the index, from the format before.
                    None => true,
                };
                if !is_well {
                    record.packed = Some(spot);
                    self.insert_record(&object, record, false)?;
                    adopted += 1;
                }
            }
        }
        if adopted > 0 {
            tracing::warn!(
                adopted,
                "small contents that the index did not name were found"
            );
        }
        Ok(is_all)
    }
}
