//! The index on the disk: opening sled, and making what it wrote survive the machine going down.
//!
//! sled's flush hands its buffer to the log file and waits for these pages, by `sync_file_range`: that flushes neither the
//! drive's cache nor what the filesystem has to know to find the pages again, and not the files at all into which sled puts
//! what is larger than 128 KiB. Here both are synced as well.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{StoreError, cache::Core, failed, folder::sync_dir};

/// Bounds sled's page cache; it would take a third of a gigabyte for a million records with its default.
const INDEX_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How often sled syncs by itself.
const INDEX_FLUSH_MS: u64 = 500;
/// How long an index that this process has just closed may take to let go of its file.
const INDEX_REOPEN_MAX: Duration = Duration::from_secs(5);

/// The files that sled writes, to sync them.
pub(super) struct IndexFiles {
    /// A descriptor of our own: an error of the disk is told to each one once.
    pub(super) log: File,
    log_path: PathBuf,
    blobs_dir: PathBuf,
    /// Names of large values that are on disk. sled never changes one.
    pub(super) blobs: Mutex<HashSet<OsString>>,
    /// Syncing failed: the next time it would succeed without proving anything.
    broken: AtomicBool,
}

impl IndexFiles {
    /// Of an index that is open.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let log_path = dir.join("db");
        let files = Self {
            log: File::open(&log_path).map_err(failed("opening", &log_path))?,
            log_path,
            blobs_dir: dir.join("blobs"),
            blobs: Mutex::default(),
            broken: AtomicBool::new(false),
        };
        // The names of the files above, which sled may just have made.
        sync_dir(dir)?;
        Ok(files)
    }

    fn sync(&self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Acquire) {
            let broken = failed("syncing (it failed before)", &self.log_path);
            return Err(broken(io::Error::from_raw_os_error(libc::EIO)));
        }
        let synced = self.sync_blobs().and_then(|()| {
            self.log
                .sync_data()
                .map_err(failed("syncing", &self.log_path))
        });
        if synced.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        synced
    }

    fn sync_blobs(&self) -> Result<(), StoreError> {
        let dir = &self.blobs_dir;
        let mut present = HashSet::new();
        for entry in fs::read_dir(dir).map_err(failed("listing", dir))? {
            present.insert(entry.map_err(failed("listing", dir))?.file_name());
        }
        let mut synced = self.blobs.lock();
        let mut is_any = false;
        for name in present.difference(&synced) {
            let path = dir.join(name);
            match File::open(&path).and_then(|file| file.sync_data()) {
                Ok(()) => is_any = true,
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

impl Core {
    /// Everything that was put into the index is on disk, whatever happens to the machine, when this returns.
    pub(super) fn flush_index(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        self.index_files.sync()
    }
}

/// Opens sled. An index that this process closed a moment ago may still be held by sled's own threads; no other process
/// can have it, since the folder's lock is ours.
pub(super) fn open_index(path: &Path) -> Result<sled::Db, StoreError> {
    let deadline = Instant::now() + INDEX_REOPEN_MAX;
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
            other => return Ok(other?),
        }
    }
}
