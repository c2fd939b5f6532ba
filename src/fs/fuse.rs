//! The kernel's side: translates requests into operations of the core and answers into replies. Decides nothing.
//!
//! A callback tries the operation on what is here; if something is missing, it hands the reply to a task and returns.

use std::{
    any::Any,
    cell::RefCell,
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use tracing::Instrument;

use super::{
    absent::ABSENT_FOR,
    convert::{file_attr, file_type, from_system_time, no_attr},
    core::{Attr, Caller, Core, Fail, now},
    drive::drive,
    errno::FsError,
    ops::{Changes, Found, Mode, Place, Replace},
};
use crate::buffers::Buffer;
use crate::manifest::Kind;

/// How long the kernel keeps names and attributes: changes elsewhere are told to it as they come.
const KEEP: Duration = Duration::from_secs(3600);
/// The largest write (and, by the same number of pages, read) request. So much at a time, too, `cp` and `cat` are told to write to a
/// file that they make, which takes an eighth of the requests: who opens a file to read is told less ([`file_attr`]), as programs
/// fetch that for each byte.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;
/// What one request copies by reference at most: the answer has 32 bits, and programs ask again.
const COPY_BYTES_MAX: u64 = 1 << 31;
/// Readahead and write-back requests that the kernel may have waiting here at a time.
const BACKGROUND_MAX: u16 = 64;

/// How many filesystems may lie above each other, this one included: backing files stand on one that isn't stacked.
const STACK_DEPTH: u32 = 1;

/// What the kernel is asked for, where it has it.
const CAPABILITIES: [InitFlags; 8] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Spares a look at `security.capability` before each write; set-id bits are dropped here then.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_MAX_PAGES,
];

thread_local! {
    /// Each callback thread's buffer for reads, so that it is paged in once.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(crate) struct Shell {
    pub(crate) core: Arc<Core>,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Whether this process is privileged to give the kernel files to read by itself.
    pub(crate) may_pass: bool,
    /// Small writes reach us in pages, and the kernel is the one who knows size and modification time of a file while it is in
    /// its memory. Never together with passing through.
    pub(crate) writeback: bool,
    /// The kernel is one that asks to open each folder.
    pub(crate) opens_folders: bool,
}

impl Shell {
    /// Answers with what the operation gives, at once if it can.
    fn serve<T: Send + 'static>(
        &self,
        req: &Request,
        what: &'static str,
        mut operation: impl FnMut(&Arc<Core>) -> Result<T, Fail> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        match operation(&self.core) {
            Ok(done) => answer(Ok(done)),
            Err(Fail::Error(error)) => answer(Err(errno(what, &error))),
            Err(Fail::Need(need)) => {
                let (core, pid) = (self.core.clone(), req.pid());
                let span = tracing::debug_span!("fuse", what, pid, request = req.unique().0);
                let waiting = async move {
                    let outcome = drive(&core, pid, need, operation).await;
                    answer(outcome.map_err(|error| errno(what, &error)));
                };
                self.runtime.spawn(waiting.instrument(span));
            }
        }
    }

    fn serve_entry(
        &self,
        req: &Request,
        what: &'static str,
        operation: impl FnMut(&Arc<Core>) -> Result<Attr, Fail> + Send + 'static,
        reply: ReplyEntry,
    ) {
        self.serve(req, what, operation, |answer| match answer {
            Ok(attr) => reply.entry(&KEEP, &file_attr(&attr), Generation(0)),
            Err(error) => reply.error(error),
        });
    }

    fn serve_empty(
        &self,
        req: &Request,
        what: &'static str,
        operation: impl FnMut(&Arc<Core>) -> Result<(), Fail> + Send + 'static,
        reply: ReplyEmpty,
    ) {
        self.serve(req, what, operation, |answer| match answer {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }

    /// Has a task do what touches the disk for long.
    fn serve_sync(&self, what: &'static str, number: Option<u64>, pid: u32, reply: ReplyEmpty) {
        let core = self.core.clone();
        self.runtime.spawn(async move {
            match core.sync(number, pid).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(what, &error)),
            }
        });
    }

    fn serve_value(
        &self,
        req: &Request,
        what: &'static str,
        size: u32,
        operation: impl FnMut(&Arc<Core>) -> Result<Vec<u8>, Fail> + Send + 'static,
        reply: ReplyXattr,
    ) {
        self.serve(req, what, operation, move |answer| match answer {
            Ok(value) => match u32::try_from(value.len()) {
                Ok(len) if size == 0 => reply.size(len),
                Ok(len) if len <= size => reply.data(&value),
                _ => reply.error(Errno::ERANGE),
            },
            Err(error) => reply.error(error),
        });
    }

    /// Attributes of the root may change with the first head.
    fn keep(&self) -> Duration {
        match self.core.tree.has_head() {
            true => KEEP,
            false => Duration::ZERO,
        }
    }
}

impl Filesystem for Shell {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel doesn't have it");
            }
        }
        let passes = self.may_pass
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.core.may_pass.store(passes, Ordering::Relaxed);
        let writeback = InitFlags::FUSE_WRITEBACK_CACHE;
        self.writeback = !passes && config.add_capabilities(writeback).is_ok();
        tracing::debug!(
            passes,
            writeback = self.writeback,
            "how files are read and written"
        );
        let unopened = InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.opens_folders = config.add_capabilities(unopened).is_err();
        // Each takes the nearest value where it can't have this one.
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_MAX) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.serve(
            req,
            "lookup",
            move |core| core.find(parent.0, &name),
            |answer| match answer {
                Ok(Found::Something(attr)) => {
                    reply.entry(&KEEP, &file_attr(&attr), Generation(0));
                }
                // By the kernel's protocol.
                Ok(Found::Nothing { kept: true }) => {
                    reply.entry(&ABSENT_FOR, &no_attr(), Generation(0));
                }
                Ok(Found::Nothing { kept: false }) => reply.error(Errno::ENOENT),
                Err(error) => reply.error(error),
            },
        );
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.core.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let keep = self.keep();
        self.serve(
            req,
            "getattr",
            move |core| core.getattr(ino.0),
            move |answer| match answer {
                Ok(attr) => reply.attr(&keep, &file_attr(&attr)),
                Err(error) => reply.error(error),
            },
        );
    }

    fn setattr(
        &self,
        req: &Request,
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
        let timestamp = |time| match time {
            TimeOrNow::Now => now(),
            TimeOrNow::SpecificTime(time) => from_system_time(time),
        };
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            accessed: atime.map(timestamp),
            modified: mtime.map(timestamp),
        };
        let keep = self.keep();
        self.serve(
            req,
            "setattr",
            move |core| core.setattr(ino.0, &changes),
            move |answer| match answer {
                Ok(attr) => {
                    let mut attr = file_attr(&attr);
                    if size == Some(0) {
                        // About to be written anew.
                        attr.blksize = REQUEST_BYTES_MAX;
                    }
                    reply.attr(&keep, &attr);
                }
                Err(error) => reply.error(error),
            },
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(
            req,
            "readlink",
            move |core| core.readlink(ino.0),
            |answer| match answer {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(error),
            },
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File(crate::content::Object::empty()),
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::Device {
                block: false,
                number: rdev,
            },
            libc::S_IFBLK => Kind::Device {
                block: true,
                number: rdev,
            },
            _ => return reply.error(Errno::EINVAL),
        };
        let (caller, name) = (caller(req), name.as_bytes().to_vec());
        let make = move |core: &Arc<Core>| core.make(caller, parent.0, &name, kind.clone(), mode);
        self.serve_entry(req, "mknod", make, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(req), name.as_bytes().to_vec());
        let make =
            move |core: &Arc<Core>| core.make(caller, parent.0, &name, Kind::Directory, mode);
        self.serve_entry(req, "mkdir", make, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.serve_empty(
            req,
            "unlink",
            move |core| core.unlink(parent.0, &name),
            reply,
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.serve_empty(req, "rmdir", move |core| core.rmdir(parent.0, &name), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(req), link_name.as_bytes().to_vec());
        let kind = Kind::Symlink(target.as_os_str().as_bytes().to_vec());
        let make = move |core: &Arc<Core>| core.make(caller, parent.0, &name, kind.clone(), 0o777);
        self.serve_entry(req, "symlink", make, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = match flags {
            flags if flags.is_empty() => Replace::Yes,
            RenameFlags::RENAME_NOREPLACE => Replace::No,
            RenameFlags::RENAME_EXCHANGE => Replace::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let rename =
            move |core: &Arc<Core>| core.rename((parent.0, &from), (newparent.0, &to), replace);
        self.serve_empty(req, "rename", rename, reply);
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = newname.as_bytes().to_vec();
        let link = move |core: &Arc<Core>| core.link(ino.0, newparent.0, &name);
        self.serve_entry(req, "link", link, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = Mode::of(flags.0);
        let core = self.core.clone();
        self.serve(
            req,
            "open",
            move |core| core.open(ino.0, mode),
            move |answer| {
                let handle = match answer {
                    Ok(handle) => handle,
                    Err(error) => return reply.error(error),
                };
                // The content of an inode changes through the kernel only; a change from elsewhere is another inode.
                let mut how = FopenFlags::FOPEN_KEEP_CACHE;
                if !mode.write {
                    how |= FopenFlags::FOPEN_NOFLUSH;
                }
                match backing(&core, handle, |file| reply.open_backing(file)) {
                    // The kernel refuses what speaks of its own cache here.
                    Some(id) => {
                        how.remove(FopenFlags::FOPEN_KEEP_CACHE);
                        reply.opened_passthrough(FileHandle(handle), how, &id);
                    }
                    None => reply.opened(FileHandle(handle), how),
                }
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (caller(req), name.as_bytes().to_vec());
        let how = Mode::of(flags);
        let core = self.core.clone();
        self.serve(
            req,
            "create",
            move |core| core.create(caller, parent.0, &name, mode, how),
            move |answer| {
                let (attr, handle) = match answer {
                    Ok(created) => created,
                    Err(error) => return reply.error(error),
                };
                let (mut attr, none) = (file_attr(&attr), Generation(0));
                if how.only_write {
                    attr.blksize = REQUEST_BYTES_MAX;
                }
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                // It may have been there: made elsewhere a moment ago.
                match backing(&core, handle, |file| reply.open_backing(file)) {
                    Some(id) => {
                        let (handle, flags) = (FileHandle(handle), FopenFlags::empty());
                        reply.created_passthrough(&KEEP, &attr, none, handle, flags, &id);
                    }
                    None => reply.created(&KEEP, &attr, none, FileHandle(handle), flags),
                }
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        let read = BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let buf = buffer.get_mut(..size).unwrap_or_default();
            match self.core.read(fh.0, offset, buf, true) {
                Ok(read) => {
                    reply.data(buf.get(..read).unwrap_or_default());
                    Ok(())
                }
                Err(fail) => Err((fail, reply)),
            }
        });
        let (need, reply) = match read {
            Ok(()) => return,
            Err((Fail::Error(error), reply)) => return reply.error(errno("read", &error)),
            Err((Fail::Need(need), reply)) => (need, reply),
        };
        let mut first = Some(need);
        let again = move |core: &Arc<Core>| match first.take() {
            Some(need) => Err(Fail::Need(need)),
            None => {
                let mut buf = Buffer::new(size);
                let read = core.read(fh.0, offset, &mut buf, false)?;
                buf.truncate(read);
                Ok(buf)
            }
        };
        self.serve(req, "read", again, |answer| match answer {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let cached = self.writeback && write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let drops = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Never more than a request holds, which is far below 4 GiB.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let need = match self.core.write(fh.0, offset, data, cached, drops) {
            Ok(()) => return reply.written(len),
            Err(Fail::Error(error)) => return reply.error(errno("write", &error)),
            Err(Fail::Need(need)) => need,
        };
        let (mut first, data) = (Some(need), data.to_vec());
        let again = move |core: &Arc<Core>| match first.take() {
            Some(need) => Err(Fail::Need(need)),
            None => core.write(fh.0, offset, &data, cached, drops),
        };
        self.serve(req, "write", again, move |answer| match answer {
            Ok(()) => reply.written(len),
            Err(error) => reply.error(error),
        });
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.serve_empty(req, "flush", move |core| core.flush(fh.0), reply);
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
        self.core.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_sync("fsync", Some(ino.0), req.pid(), reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_folders {
            let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            return reply.opened(FileHandle(0), flags);
        }
        // Not asked again.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let core = self.core.clone();
        self.serve(
            req,
            "readdir",
            move |core| core.prepare_listing(ino.0, offset, false),
            move |answer| {
                let listed = answer.and_then(|snapshot| {
                    let mut add = |line: super::ops::Listed<'_>| {
                        let (number, name) = (line.attr.number, OsStr::from_bytes(line.name));
                        reply.add(INodeNo(number), line.next, file_type(&line.attr.kind), name)
                    };
                    core.list(&snapshot, offset, false, &mut add)
                        .map_err(|fail| fail_errno("readdir", &fail))
                });
                match listed {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(error),
                }
            },
        );
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let core = self.core.clone();
        self.serve(
            req,
            "readdirplus",
            move |core| core.prepare_listing(ino.0, offset, true),
            move |answer| {
                let listed = answer.and_then(|snapshot| {
                    let mut add = |line: super::ops::Listed<'_>| {
                        let keep = if line.current { KEEP } else { Duration::ZERO };
                        let attr = file_attr(&line.attr);
                        let name = OsStr::from_bytes(line.name);
                        reply.add(attr.ino, line.next, name, &keep, &attr, Generation(0))
                    };
                    core.list(&snapshot, offset, true, &mut add)
                        .map_err(|fail| fail_errno("readdirplus", &fail))
                });
                match listed {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(error),
                }
            },
        );
    }

    fn fsyncdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_sync("fsyncdir", None, req.pid(), reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(
            req,
            "statfs",
            |core| core.space(),
            |answer| match answer {
                Ok(space) => reply.statfs(
                    space.blocks,
                    space.free,
                    space.available,
                    // Entries are limited by nothing but the disk.
                    space.files.saturating_add(u64::from(u32::MAX)),
                    u64::from(u32::MAX),
                    space.block_bytes,
                    255,
                    space.block_bytes,
                ),
                Err(error) => reply.error(error),
            },
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let set = move |core: &Arc<Core>| core.setxattr(ino.0, &name, &value, flags);
        self.serve_empty(req, "setxattr", set, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        let mut rounds = 0;
        let get = move |core: &Arc<Core>| {
            rounds += 1;
            core.getxattr(ino.0, &name, rounds > 1)
        };
        self.serve_value(req, "getxattr", size, get, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve_value(
            req,
            "listxattr",
            size,
            move |core| core.listxattr(ino.0),
            reply,
        );
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.serve_empty(
            req,
            "removexattr",
            move |core| core.removexattr(ino.0, &name),
            reply,
        );
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let range = offset..offset.saturating_add(length);
        let allocate = move |core: &Arc<Core>| core.fallocate(fh.0, range.clone(), mode);
        self.serve_empty(req, "fallocate", allocate, reply);
    }

    /// There is none, which programs ask for all the time (whether a file is a terminal).
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let seek = move |core: &Arc<Core>| core.seek(fh.0, offset, data);
        self.serve(req, "lseek", seek, |answer| match answer {
            // Within a file, whose size fits.
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(error),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = (
            Place {
                handle: fh_in.0,
                offset: offset_in,
            },
            Place {
                handle: fh_out.0,
                offset: offset_out,
            },
        );
        let len = len.min(COPY_BYTES_MAX);
        let copy = move |core: &Arc<Core>| core.copy_range(from, to, len);
        self.serve(req, "copy_file_range", copy, |answer| match answer {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        });
    }
}

/// Decides how a handle that was just opened gets at its bytes: what the kernel knows the backing file by, where it reads that
/// by itself.
fn backing(
    core: &Core,
    handle: u64,
    open: impl FnOnce(&File) -> std::io::Result<BackingId>,
) -> Option<Arc<BackingId>> {
    let register = |file: &File| match open(file) {
        Ok(id) => Some(Arc::new(id) as Arc<dyn Any + Send + Sync>),
        Err(error) => {
            tracing::debug!(%error, "the kernel doesn't take a backing file: reads come here");
            // No right to, or on a filesystem that can't be under this one: others fare no better.
            if let Some(libc::EPERM | libc::ELOOP | libc::EOPNOTSUPP) = error.raw_os_error() {
                core.may_pass.store(false, Ordering::Relaxed);
            }
            None
        }
    };
    let passed = core.pass_through(handle, register).ok().flatten()?;
    passed.downcast().ok()
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

fn errno(what: &'static str, error: &FsError) -> Errno {
    if error.is_trouble() {
        tracing::warn!(what, %error, "an operation failed");
    }
    Errno::from_i32(error.errno())
}

fn fail_errno(what: &'static str, fail: &Fail) -> Errno {
    match fail {
        Fail::Error(error) => errno(what, error),
        Fail::Need(_) => Errno::EIO,
    }
}
