//! The yardstick of `benches/metadata/run`: what a filesystem through `fuser` costs at least. It shows another folder, asks the
//! kernel for the same as p2pfs does, and keeps nothing but the names of the inodes that the kernel knows.
//!
//!     cargo run --release --example mirror -- SOURCE MOUNTPOINT [--writeback | --attributes]
//!
//! Without `--attributes` it has no extended ones and says so once; with it, it shows the source's, so that the kernel asks it for
//! `security.capability` as it asks p2pfs: before the first write to each file, and before each change of an owner.
//!
//! Runs until it is unmounted. A yardstick, not a filesystem to use: a file with two names is two files, everything belongs to
//! who runs it, and changes of the source behind its back may be shown late.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

// As in p2pfs.
const KEEP: Duration = Duration::from_secs(3600);
const THREADS: usize = 4;
const REQUEST_BYTES_MAX: u32 = 1 << 20;
const BACKGROUND_MAX: u16 = 64;
const CAPABILITIES: [InitFlags; 8] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_MAX_PAGES,
];

/// What the kernel knows: each inode by its one name.
#[derive(Default)]
struct Inodes {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<(u64, OsString), u64>,
    last: u64,
}

struct Node {
    parent: u64,
    name: OsString,
    lookups: u64,
}

impl Inodes {
    /// The inode of a name, counted as looked up.
    fn look(&mut self, parent: u64, name: &OsStr) -> u64 {
        let key = (parent, name.to_owned());
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => {
                self.last += 1;
                // 1 is the root.
                let number = self.last + 1;
                let (parent, name) = key.clone();
                let lookups = 0;
                let node = Node {
                    parent,
                    name,
                    lookups,
                };
                self.nodes.insert(number, node);
                self.numbers.insert(key, number);
                number
            }
        };
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups += 1;
        }
        number
    }

    fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0
            && let Some(node) = self.nodes.remove(&number)
        {
            self.unname(node.parent, &node.name, Some(number));
        }
    }

    /// Takes a name from an inode, or from the given one only.
    fn unname(&mut self, parent: u64, name: &OsStr, of: Option<u64>) -> Option<u64> {
        let key = (parent, name.to_owned());
        match self.numbers.get(&key) {
            Some(number) if of.is_none_or(|of| of == *number) => self.numbers.remove(&key),
            _ => None,
        }
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) {
        self.unname(to.0, to.1, None);
        if let Some(number) = self.unname(from.0, from.1, None) {
            self.numbers.insert((to.0, to.1.to_owned()), number);
            if let Some(node) = self.nodes.get_mut(&number) {
                (node.parent, node.name) = (to.0, to.1.to_owned());
            }
        }
    }

    fn path(&self, source: &Path, number: u64) -> PathBuf {
        let mut names = Vec::new();
        let mut at = number;
        while let Some(node) = self.nodes.get(&at) {
            names.push(node.name.as_os_str());
            at = node.parent;
        }
        let mut path = source.to_owned();
        path.extend(names.into_iter().rev());
        path
    }
}

type Listing = Vec<(OsString, FileType)>;

struct Mirror {
    source: PathBuf,
    writeback: bool,
    attributes: bool,
    inodes: RwLock<Inodes>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    folders: Mutex<HashMap<u64, Arc<Listing>>>,
    handles: AtomicU64,
}

impl Mirror {
    fn path(&self, number: INodeNo) -> PathBuf {
        self.inodes.read().path(&self.source, number.0)
    }

    fn below(&self, parent: INodeNo, name: &OsStr) -> PathBuf {
        let mut path = self.path(parent);
        path.push(name);
        path
    }

    /// The attributes of a name, which counts as looked up.
    fn entry(&self, parent: INodeNo, name: &OsStr, path: &Path) -> io::Result<FileAttr> {
        let metadata = path.symlink_metadata()?;
        let number = self.inodes.write().look(parent.0, name);
        Ok(attributes(number, &metadata))
    }

    fn handle(&self, file: File) -> FileHandle {
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.files.lock().insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let files = self.files.lock();
        let file = files.get(&handle.0).cloned();
        file.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn options(&self, flags: i32) -> OpenOptions {
        let mut options = OpenOptions::new();
        let access = flags & libc::O_ACCMODE;
        // Where the kernel writes pages back, it reads what is around them.
        options.read(self.writeback || access != libc::O_WRONLY);
        options.write(access != libc::O_RDONLY);
        options.truncate(flags & libc::O_TRUNC != 0);
        options
    }

    fn list(&self, number: INodeNo) -> io::Result<FileHandle> {
        let mut listing = Vec::new();
        for entry in fs::read_dir(self.path(number))? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            listing.push((entry.file_name(), kind));
        }
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.folders.lock().insert(handle, Arc::new(listing));
        Ok(FileHandle(handle))
    }

    fn listing(&self, handle: FileHandle) -> Arc<Listing> {
        let folders = self.folders.lock();
        folders.get(&handle.0).cloned().unwrap_or_default()
    }

    fn set(
        &self,
        number: INodeNo,
        (mode, uid, gid): (Option<u32>, Option<u32>, Option<u32>),
        size: Option<u64>,
        (accessed, modified): (Option<TimeOrNow>, Option<TimeOrNow>),
    ) -> io::Result<FileAttr> {
        let path = self.path(number);
        if uid.is_some() || gid.is_some() {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some(size) = size {
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        if accessed.is_some() || modified.is_some() {
            let times = Timestamps {
                last_access: timespec(accessed),
                last_modification: timespec(modified),
            };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(attributes(number.0, &path.symlink_metadata()?))
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match time {
        None => special(UTIME_OMIT),
        Some(TimeOrNow::Now) => special(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}

fn attributes(number: u64, metadata: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanoseconds: i64| -> SystemTime {
        let part = |number: i64| u64::try_from(number).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(part(seconds)) + Duration::from_nanos(part(nanoseconds))
    };
    FileAttr {
        ino: INodeNo(number),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
        perm: u16::try_from(metadata.mode() & 0o7777).unwrap_or(0),
        nlink: u32::try_from(metadata.nlink()).unwrap_or(1),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn answer_entry(entry: io::Result<FileAttr>, reply: ReplyEntry) {
    match entry {
        Ok(attr) => reply.entry(&KEEP, &attr, Generation(0)),
        Err(error) => reply.error(error.into()),
    }
}

fn answer_empty(done: io::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn answer_attr(attr: io::Result<FileAttr>, reply: ReplyAttr) {
    match attr {
        Ok(attr) => reply.attr(&KEEP, &attr),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for Mirror {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let writeback = self.writeback.then_some(InitFlags::FUSE_WRITEBACK_CACHE);
        for capability in CAPABILITIES.into_iter().chain(writeback) {
            if config.add_capabilities(capability).is_err() {
                eprintln!("the kernel has no {capability:?}");
            }
        }
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_readahead(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.below(parent, name);
        answer_entry(self.entry(parent, name, &path), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.inodes.write().forget(ino.0, nlookup);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.attributes {
            return reply.error(Errno::ENOSYS);
        }
        let mut value = vec![0; size as usize];
        match rustix::fs::lgetxattr(self.path(ino), name, &mut value) {
            Ok(length) if size == 0 => reply.size(u32::try_from(length).unwrap_or(u32::MAX)),
            Ok(length) => reply.data(value.get(..length).unwrap_or_default()),
            Err(error) => reply.error(io::Error::from(error).into()),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let metadata = self.path(ino).symlink_metadata();
        answer_attr(metadata.map(|found| attributes(ino.0, &found)), reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attr = self.set(ino, (mode, uid, gid), size, (atime, mtime));
        answer_attr(attr, reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match fs::read_link(self.path(ino)) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let path = self.below(parent, name);
        let made = rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(mode));
        let made = made.map_err(io::Error::from);
        answer_entry(made.and_then(|()| self.entry(parent, name, &path)), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = fs::remove_file(self.below(parent, name));
        if removed.is_ok() {
            self.inodes.write().unname(parent.0, name, None);
        }
        answer_empty(removed, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = fs::remove_dir(self.below(parent, name));
        if removed.is_ok() {
            self.inodes.write().unname(parent.0, name, None);
        }
        answer_empty(removed, reply);
    }

    fn symlink(
        &self,
        _req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let path = self.below(parent, link_name);
        let made = symlink(target, &path);
        answer_entry(
            made.and_then(|()| self.entry(parent, link_name, &path)),
            reply,
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let moved = fs::rename(self.below(parent, name), self.below(newparent, newname));
        if moved.is_ok() {
            let (from, to) = ((parent.0, name), (newparent.0, newname));
            self.inodes.write().rename(from, to);
        }
        answer_empty(moved, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.options(flags.0).open(self.path(ino)) {
            Ok(file) => {
                let mut how = FopenFlags::FOPEN_KEEP_CACHE;
                if flags.0 & libc::O_ACCMODE == libc::O_RDONLY {
                    how |= FopenFlags::FOPEN_NOFLUSH;
                }
                reply.opened(self.handle(file), how);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let path = self.below(parent, name);
        let mut options = self.options(flags);
        options.create(true).write(true).mode(mode);
        let made = options.open(&path).and_then(|file| {
            let attr = attributes(0, &file.metadata()?);
            let ino = INodeNo(self.inodes.write().look(parent.0, name));
            Ok((file, FileAttr { ino, ..attr }))
        });
        match made {
            Ok((file, attr)) => {
                let how = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&KEEP, &attr, Generation(0), self.handle(file), how);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buf = vec![0; size as usize];
        match self
            .file(fh)
            .and_then(|file| file.read_at(&mut buf, offset))
        {
            Ok(read) => reply.data(buf.get(..read).unwrap_or_default()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.file(fh).and_then(|file| file.write_at(data, offset));
        match written {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let file = self.files.lock().remove(&fh.0);
        drop(file);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer_empty(self.file(fh).and_then(|file| file.sync_all()), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let how = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        match self.list(ino) {
            Ok(handle) => reply.opened(handle, how),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, kind)) in self.listing(fh).iter().enumerate().skip(first) {
            let known = self
                .inodes
                .read()
                .numbers
                .get(&(ino.0, name.clone()))
                .copied();
            // The number of one that the kernel doesn't know: no program here compares it.
            let number = INodeNo(known.unwrap_or(u64::MAX));
            if reply.add(number, at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let folder = self.path(ino);
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, _)) in self.listing(fh).iter().enumerate().skip(first) {
            let Ok(attr) = self.entry(ino, name, &folder.join(name)) else {
                continue;
            };
            if reply.add(attr.ino, at as u64 + 1, name, &KEEP, &attr, Generation(0)) {
                self.inodes.write().forget(attr.ino.0, 1);
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.folders.lock().remove(&fh.0);
        reply.ok();
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (source, mountpoint, option) = match arguments.as_slice() {
        [source, mountpoint] => (source, mountpoint, None),
        [source, mountpoint, option] if option == "--writeback" || option == "--attributes" => {
            (source, mountpoint, option.to_str())
        }
        _ => {
            return Err(io::Error::other(
                "usage: mirror SOURCE MOUNTPOINT [--writeback | --attributes]",
            ));
        }
    };
    let mirror = Mirror {
        source: fs::canonicalize(source)?,
        writeback: option == Some("--writeback"),
        attributes: option == Some("--attributes"),
        inodes: RwLock::default(),
        files: Mutex::default(),
        folders: Mutex::default(),
        handles: AtomicU64::new(1),
    };
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName("mirror".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    config.acl = SessionACL::Owner;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    rustix::process::umask(rustix::fs::Mode::empty());
    Session::new(mirror, mountpoint, &config)?.run()
}
