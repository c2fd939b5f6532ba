//! The index on the disk: opening sled, and making what it wrote survive the machine going down.
//!
//! sled hands its buffers to the log file and waits for these pages, by `sync_file_range`: that flushes neither the drive's
//! cache nor what the filesystem has to know to find the pages again, and not the files at all into which sled puts what is
//! larger than 128 KiB. It takes what was handed over so for durable, and writes over what stood elsewhere until then: by the
//! next real sync a machine that goes down may have lost either, whatever was synced before. So this program has a
//! `sync_file_range` of its own, in place of the C library's, which syncs the log and those files ([`sync_file_range`]).
//!
//! sled doesn't survive a full disk: once it could not write it never writes again, and whoever waits for it may wait for ever.
//! So room is set aside behind the end of its log (`fallocate`, which leaves the length alone): that is what it grows into. What
//! would make it grow is refused, as on a full disk, before that room is used up; then there is still enough for what lets
//! contents go, and all is well again once the disk has room. Filesystems that can't set room aside do without.
//!
//! sled's batches and transactions are not used: one waits until nobody is in the index, and then nobody gets in. Where a write
//! failed, sled does not always wake who waits for it; the next one to flush does, who must be let in for that.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{BorrowedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{fs::FallocateFlags, io::Errno};

use super::{
    StoreError, cache::Core, failed, folder::sync_dir, is_full, staging::STAT_BLOCK_BYTES,
};

/// Bounds sled's page cache; it would take a third of a gigabyte for a million records with its default.
const INDEX_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How often sled syncs by itself.
const INDEX_FLUSH_MS: u64 = 500;
/// What is set aside behind the end of the log…
const AHEAD_BYTES: u64 = 2 * 1024 * 1024;
/// …in steps of so much at least…
const AHEAD_STEP_BYTES: u64 = 256 * 1024;
/// …and what of it is left to what can't be refused: two of the segments that sled writes.
const AHEAD_LEFT_BYTES: u64 = 1024 * 1024;
/// What putting something into the index makes sled write: so many times its bytes, and so much for each.
const WRITTEN_FACTOR: u64 = 3;
const WRITTEN_EACH: u64 = 512;
/// So long after the disk had no room it is not tried again, unless that would refuse something.
const NO_ROOM_FOR: Duration = Duration::from_secs(1);
/// From this size on a value may get a file of its own.
const BLOB_BYTES_MIN: u64 = 64 * 1024;
/// How long an index that this process has just closed may take to let go of its file.
const INDEX_REOPEN_MAX: Duration = Duration::from_secs(5);

/// The files that sled writes, to sync them.
pub(super) struct IndexFiles {
    /// A descriptor of our own: an error of the disk is told to each one once.
    pub(super) log: File,
    log_path: PathBuf,
    pub(super) blobs: Arc<Blobs>,
    /// Syncing failed: the next time it would succeed without proving anything.
    broken: AtomicBool,
    /// The filesystem can't set room aside.
    without: AtomicBool,
    /// When the disk had no room to set aside.
    had_none: Mutex<Option<Instant>>,
    /// What was last to be put into the index was refused.
    short: AtomicBool,
    /// A test has all refused.
    #[cfg(test)]
    pub(super) refuses: AtomicBool,
}

/// The files of large values, which sled writes before the log names them.
pub(super) struct Blobs {
    dir: PathBuf,
    /// Device and inode of the log.
    log: (u64, u64),
    /// Those that are on disk, and how much of each: one may be written just now. sled never changes what it has written.
    pub(super) synced: Mutex<HashMap<OsString, u64>>,
    /// How often sled had its log synced.
    #[cfg(test)]
    syncs: std::sync::atomic::AtomicU64,
}

/// Of the indexes that are open.
static BLOBS: Mutex<Vec<Arc<Blobs>>> = Mutex::new(Vec::new());

/// Takes the place of the C library's function of this name, which only sled calls: what it was to hand to the disk is on the
/// disk when this returns, with all that is needed to find it there.
///
/// # Safety
/// `log` is an open file descriptor.
#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(
    log: RawFd,
    _offset: libc::off64_t,
    _length: libc::off64_t,
    _flags: libc::c_uint,
) -> libc::c_int {
    // SAFETY: whoever calls this has it open meanwhile.
    let log = unsafe { BorrowedFd::borrow_raw(log) };
    match sync_log(log) {
        Ok(()) => 0,
        Err(errno) => {
            // SAFETY: the thread's own.
            unsafe { *libc::__errno_location() = errno.raw_os_error() };
            -1
        }
    }
}

fn sync_log(log: BorrowedFd<'_>) -> Result<(), Errno> {
    let about = rustix::fs::fstat(log)?;
    let is_of = |blobs: &&Arc<Blobs>| blobs.log == (about.st_dev, about.st_ino);
    let blobs = BLOBS.lock().iter().find(is_of).cloned();
    if let Some(blobs) = blobs {
        #[cfg(test)]
        blobs.syncs.fetch_add(1, Ordering::Relaxed);
        blobs.sync().map_err(|error| match error {
            StoreError::Full => Errno::NOSPC,
            _ => Errno::IO,
        })?;
    }
    rustix::fs::fdatasync(log)
}

impl Blobs {
    fn sync(&self) -> Result<(), StoreError> {
        let dir = &self.dir;
        let mut synced = self.synced.lock();
        let mut present = HashMap::new();
        let mut is_any = false;
        for entry in fs::read_dir(dir).map_err(failed("listing", dir))? {
            let name = entry.map_err(failed("listing", dir))?.file_name();
            let path = dir.join(&name);
            let mut sync = || {
                let file = File::open(&path)?;
                // Looked at first: what is written after that is synced the next time.
                let bytes = file.metadata()?.len();
                if synced.get(&name) != Some(&bytes) {
                    file.sync_data()?;
                    is_any = true;
                }
                io::Result::Ok(bytes)
            };
            match sync() {
                Ok(bytes) => drop(present.insert(name, bytes)),
                // Replaced by a newer value meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("syncing", &path)(error)),
            }
        }
        if is_any {
            sync_dir(dir)?;
        }
        *synced = present;
        Ok(())
    }
}

impl Drop for IndexFiles {
    fn drop(&mut self) {
        BLOBS
            .lock()
            .retain(|blobs| !Arc::ptr_eq(blobs, &self.blobs));
    }
}

impl IndexFiles {
    /// Of an index that is open.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let log_path = dir.join("db");
        let opened = OpenOptions::new().read(true).write(true).open(&log_path);
        let log = opened.map_err(failed("opening", &log_path))?;
        let about = log.metadata().map_err(failed("looking at", &log_path))?;
        let blobs = Arc::new(Blobs {
            dir: dir.join("blobs"),
            log: (about.dev(), about.ino()),
            synced: Mutex::default(),
            #[cfg(test)]
            syncs: Default::default(),
        });
        BLOBS.lock().push(blobs.clone());
        let files = Self {
            log,
            log_path,
            blobs,
            broken: AtomicBool::new(false),
            without: AtomicBool::new(false),
            had_none: Mutex::new(None),
            short: AtomicBool::new(false),
            #[cfg(test)]
            refuses: AtomicBool::new(false),
        };
        // Nor may sled meet a hole where it never wrote. What there is no room for is seen below.
        let length = files.log.metadata().map_or(0, |file| file.len()).max(1);
        let _ = rustix::fs::fallocate(&files.log, FallocateFlags::KEEP_SIZE, 0, length);
        files.set_aside(0)?;
        // sled may just have made them, and its settings.
        let settings = dir.join("conf");
        File::open(&settings)
            .and_then(|file| file.sync_all())
            .map_err(failed("syncing", &settings))?;
        sync_dir(dir)?;
        Ok(files)
    }

    /// To be called before something of so many bytes is put into the index. Bytes that the index takes more than before.
    ///
    /// It looks each time what is set aside: where the end of its log is free, sled makes the file shorter, and with that what was
    /// set aside behind its end is gone as well.
    ///
    /// # Errors
    /// [`StoreError::Full`], when it is not to be put there.
    fn takes(&self, bytes: u64) -> Result<u64, StoreError> {
        #[cfg(test)]
        if self.refuses.load(Ordering::Relaxed) {
            return Err(StoreError::Full);
        }
        let writes = bytes
            .saturating_mul(WRITTEN_FACTOR)
            .saturating_add(WRITTEN_EACH);
        let outcome = self.set_aside(writes).and_then(|grown| match bytes {
            BLOB_BYTES_MIN.. => self.has_room_for_blobs(writes).map(|()| grown),
            _ => Ok(grown),
        });
        self.short.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    /// Sets room aside behind the end of the log, for `writes` bytes and as much as is always there. Bytes that it takes more
    /// than before.
    fn set_aside(&self, writes: u64) -> Result<u64, StoreError> {
        let wanted = writes.saturating_add(AHEAD_BYTES);
        let look = || {
            let file = self.log.metadata();
            let file = file.map_err(failed("looking at", &self.log_path))?;
            Ok::<_, StoreError>((file.len(), file.blocks() * STAT_BLOCK_BYTES))
        };
        // All of the log has its place on disk, so what the file takes beyond its length lies ahead.
        let (length, before) = look()?;
        let ahead = before.saturating_sub(length);
        if ahead.saturating_add(AHEAD_STEP_BYTES) >= wanted || self.without.load(Ordering::Relaxed)
        {
            return Ok(0);
        }
        let is_enough = |ahead| match ahead < writes.saturating_add(AHEAD_LEFT_BYTES) {
            true => Err(StoreError::Full),
            false => Ok(()),
        };
        let mut had_none = self.had_none.lock();
        if had_none.is_some_and(|at| at.elapsed() < NO_ROOM_FOR) && is_enough(ahead).is_ok() {
            return Ok(0);
        }
        // From the start of it: sled may make it shorter meanwhile.
        let all = length.saturating_add(wanted);
        let set = rustix::fs::fallocate(&self.log, FallocateFlags::KEEP_SIZE, 0, all);
        let (length, after) = look()?;
        *had_none = None;
        match set {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.without.store(true, Ordering::Relaxed),
            Err(Errno::NOSPC | Errno::DQUOT | Errno::INTR) => {
                *had_none = Some(Instant::now());
                is_enough(after.saturating_sub(length))?;
            }
            Err(error) => {
                return Err(failed("setting room aside in", &self.log_path)(
                    error.into(),
                ));
            }
        }
        Ok(after.saturating_sub(before))
    }

    /// Large values get files of their own, for which no room can be set aside.
    fn has_room_for_blobs(&self, bytes: u64) -> Result<(), StoreError> {
        match rustix::fs::statvfs(&self.blobs.dir) {
            Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < bytes => {
                Err(StoreError::Full)
            }
            _ => Ok(()),
        }
    }

    /// Puts on disk what sled has written.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Acquire) {
            let broken = failed("syncing (it failed before)", &self.log_path);
            return Err(broken(io::Error::from_raw_os_error(libc::EIO)));
        }
        let synced = self.blobs.sync().and_then(|()| {
            self.log
                .sync_data()
                .map_err(failed("syncing", &self.log_path))
        });
        if synced.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        synced
    }
}

impl Core {
    /// To be called before something of so many bytes is put into the index, unless it is what can't be refused: what removes
    /// something, and a few bytes at a start and an end.
    ///
    /// # Errors
    /// [`StoreError::Full`], when it is not to be put there.
    pub(super) fn index_takes(&self, bytes: u64) -> Result<(), StoreError> {
        let grown = self.index_files.takes(bytes)?;
        self.count_index_grown(grown);
        Ok(())
    }

    /// Sees to it that room is set aside, also while nothing is put into the index: what removes something can't be refused.
    pub(super) fn keep_index_room(&self) -> Result<(), StoreError> {
        match self.index_files.set_aside(0) {
            Ok(grown) => self.count_index_grown(grown),
            Err(StoreError::Full) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the index takes nothing at present that can be refused.
    pub(super) fn is_index_short(&self) -> bool {
        self.index_files.short.load(Ordering::Relaxed)
    }

    /// Everything that was put into the index is on disk, whatever happens to the machine, when this returns.
    pub(super) fn flush_index(&self) -> Result<(), StoreError> {
        // What it names comes first.
        self.sync_packs()?;
        self.db.flush()?;
        self.index_files.sync()
    }
}

/// Opens sled. An index that this process closed a moment ago may still be held by sled's own threads; no other process
/// can have it, since the folder's lock is ours.
pub(super) fn open_index(path: &Path) -> Result<sled::Db, StoreError> {
    let deadline = Instant::now() + INDEX_REOPEN_MAX;
    let mut given_back = false;
    loop {
        let opened = sled::Config::new()
            .path(path)
            .cache_capacity(INDEX_CACHE_BYTES)
            .flush_every_ms(Some(INDEX_FLUSH_MS))
            .open();
        match opened {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock")
                    && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            // sled writes a file when it opens: for that, what was set aside for it may go.
            Err(sled::Error::Io(error)) if is_full(&error) && !given_back => {
                give_back(&path.join("db"))?;
                given_back = true;
            }
            other => return Ok(other?),
        }
    }
}

/// Gives back what was set aside behind the end of the log.
fn give_back(log: &Path) -> Result<(), StoreError> {
    let file = OpenOptions::new().write(true).open(log);
    file.and_then(|file| file.set_len(file.metadata()?.len()))
        .map_err(failed("giving back room behind", log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_sled_writes_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let db = open_index(&path).unwrap();
        let files = IndexFiles::open(&path).unwrap();
        let syncs = || files.blobs.syncs.load(Ordering::Relaxed);
        let before = syncs();
        db.insert("large", vec![7; 1024 * 1024]).unwrap();
        db.flush().unwrap();
        assert!(syncs() > before);
        let blobs = fs::read_dir(path.join("blobs")).unwrap();
        let blobs = blobs.map(|blob| {
            let blob = blob.unwrap();
            (blob.file_name(), blob.metadata().unwrap().len())
        });
        let blobs: HashMap<_, _> = blobs.collect();
        assert!(!blobs.is_empty());
        assert_eq!(*files.blobs.synced.lock(), blobs);
        // One that grows is synced anew.
        let (name, bytes) = blobs.iter().next().unwrap();
        let grown = OpenOptions::new()
            .append(true)
            .open(path.join("blobs").join(name));
        io::Write::write_all(&mut grown.unwrap(), b"more").unwrap();
        files.sync().unwrap();
        assert_eq!(files.blobs.synced.lock()[name], bytes + 4);
        // Without anybody's asking, too.
        let before = syncs();
        db.insert("small", "value").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while syncs() == before {
            assert!(Instant::now() < deadline, "sled's own flush is not synced");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_sled_gives_back_behind_the_end_of_its_log_is_set_aside_before_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let _db = open_index(&path).unwrap();
        let files = IndexFiles::open(&path).unwrap();
        let ahead = || {
            let log = files.log.metadata().unwrap();
            log.blocks() * STAT_BLOCK_BYTES - log.len() / 4096 * 4096
        };
        files.takes(100).unwrap();
        assert!(ahead() >= AHEAD_BYTES, "{} bytes", ahead());
        // As sled does with the free end of it.
        give_back(&path.join("db")).unwrap();
        assert!(ahead() < AHEAD_STEP_BYTES, "{} bytes", ahead());
        files.takes(100).unwrap();
        assert!(ahead() >= AHEAD_BYTES, "{} bytes", ahead());
    }
}
