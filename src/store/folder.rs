//! The state folder itself: its lock, its format number, and the marker that tells it from a copy.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::UNIX_EPOCH,
};

use rustix::fs::FlockOperation;

use super::{StoreError, failed};

/// The format that this version writes. The one before, which had small contents in the index, is read, too.
const FORMAT: u32 = 3;
const FORMAT_BEFORE: u32 = 2;

/// Bytes read at most from the small files of the folder.
const SMALL_FILE_BYTES_MAX: u64 = 64;

/// Refuses a folder of another format; touches nothing. A folder without a format is a new one.
pub(super) fn check_format(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("format");
    let text = match read_small(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("reading", &path)(error)),
    };
    let found = text
        .trim()
        .parse()
        .map_err(|_| {
            StoreError::Damaged(format!(
                "{} holds no version; if this version of p2pfs has written the folder, write {FORMAT} into it",
                path.display()
            ))
        })?;
    if found != FORMAT && found != FORMAT_BEFORE {
        return Err(StoreError::Format {
            dir: dir.to_owned(),
            found,
            known: FORMAT,
        });
    }
    Ok(())
}

/// Makes the folder, readable by its owner alone: it holds contents in the clear, and keys.
pub(super) fn make(dir: &Path) -> Result<(), StoreError> {
    make_dir(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed("restricting", dir))
}

/// Makes the folders inside and, last, the format file. Needs the lock.
pub(super) fn make_layout(dir: &Path) -> Result<(), StoreError> {
    let format = dir.join("format");
    if format.exists() {
        // From now on there is what the version before does not know.
        let is_new = read_small(&format).is_ok_and(|text| text.trim() == FORMAT.to_string());
        return if is_new {
            Ok(())
        } else {
            note_format(dir, &format)
        };
    }
    let objects = dir.join("objects");
    make_dir(&dir.join("staging"))?;
    // All at once, so that adding an object never has to sync more than one folder.
    for first in 0..=u8::MAX {
        make_dir(&objects.join(format!("{first:02x}")))?;
    }
    sync_dir(&objects)?;
    sync_dir(dir)?;
    note_format(dir, &format)
}

fn note_format(dir: &Path, format: &Path) -> Result<(), StoreError> {
    let partial = dir.join("format.new");
    write_small(&partial, &format!("{FORMAT}\n"))?;
    fs::rename(&partial, format).map_err(failed("making", format))?;
    sync_dir(dir)
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("making", dir))
}

/// Puts the names in a folder on disk.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("syncing", dir))
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(SMALL_FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn write_small(path: &Path, text: &str) -> Result<(), StoreError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(failed("writing", path))
}

/// The lock of a state folder: held while this lives, gone with the process whatever ends it.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("opening", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::Locked {
                    dir: dir.to_owned(),
                    pid: read_small(&path)
                        .ok()
                        .and_then(|text| text.trim().parse().ok())
                        .unwrap_or(0),
                });
            }
            Err(error) => return Err(failed("locking", &path)(error.into())),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("writing", &path))?;
        Ok(Self { _file: file })
    }
}

/// What is true of a folder as long as it is neither copied nor moved to another machine: inode number and birth time of
/// its marker file, and a hash of the machine's id. 32 bytes. The device number is left out, since it changes when disks
/// are found in another order.
///
/// The marker is made if it is missing, which also makes a new identity.
pub(super) fn identity(dir: &Path) -> Result<[u8; 32], StoreError> {
    let path = dir.join("origin");
    if !path.exists() {
        let text = "Tells this state folder from copies of it. Do not touch.\n";
        write_small(&path, text)?;
        sync_dir(dir)?;
    }
    let marker = fs::metadata(&path).map_err(failed("looking at", &path))?;
    let born = marker
        .created()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos());
    // Absent in some containers: then a copy is told by the marker alone.
    let machine = read_small(Path::new("/etc/machine-id")).unwrap_or_default();
    let mut hasher = blake3::Hasher::new_derive_key("p2pfs state folder origin v1");
    hasher.update(&marker.ino().to_le_bytes());
    hasher.update(&born.to_le_bytes());
    hasher.update(machine.trim().as_bytes());
    Ok(*hasher.finalize().as_bytes())
}

/// Names the boot of the machine; `None` when the kernel doesn't tell, and then every boot counts as another one.
pub(super) fn boot() -> Option<String> {
    read_small(Path::new("/proc/sys/kernel/random/boot_id"))
        .ok()
        .map(|text| text.trim().to_owned())
}
