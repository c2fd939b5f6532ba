//! Open files: opening, creating, reading, writing, closing.

use std::{
    any::Any,
    collections::VecDeque,
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    content::Object,
    fs::{
        behind::Behind,
        core::{Attr, Caller, Core, Fail, Need, now, now_hybrid},
        errno::FsError,
        inodes::Facts,
        live::{Live, LiveState, Staging, plain_entry},
        modes::Through,
        notify::LeftPages,
        overlay::{FILE_BYTES_MAX, Source},
    },
    linux,
    manifest::{Kind, TreePath},
    node::namespace::Edit,
    store::{Lent, Origin, StoreError},
    transfer::{Prefetch, Readahead, STREAMS},
};

/// An open file. What it reads is decided by its inode: the live state if there is one, the inode's content otherwise.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) number: u64,
    pub(super) write: bool,
    /// It is counted in [`Core::modes`].
    counted: OnceLock<()>,
    ahead: Mutex<Ahead>,
    /// It is open cached, and later opens will most likely be passed through.
    is_passing: AtomicBool,
    behind: Mutex<Behind>,
}

/// Whether the kernel may read a content by itself.
enum Lending {
    /// From this file: it is all here, isn't being written, and is not likely to be soon.
    Now(Lent),
    /// Not all of it is here yet.
    Later,
    No,
}

/// What is fetched ahead for a handle, by the streams in which it is read. It goes with the stream, or the handle.
#[derive(Debug, Default)]
struct Ahead {
    readahead: Readahead,
    wishes: [VecDeque<Prefetch>; STREAMS],
}

/// Windows kept of a stream: a new one is asked for when half of the last one is read, so those before are here.
const WINDOWS_MAX: usize = 3;

impl Ahead {
    /// Notes a read; fetches what is worth it.
    fn on_read(
        &mut self,
        offset: u64,
        len: u64,
        size: u64,
        fetch: impl FnOnce(Range<u64>) -> Option<Prefetch>,
    ) {
        let advice = self.readahead.on_read(offset, len, size);
        let Some(wishes) = self.wishes.get_mut(advice.stream) else {
            return;
        };
        if advice.is_new {
            wishes.clear();
        }
        if !advice.fetch.is_empty() {
            wishes.extend(fetch(advice.fetch));
            if wishes.len() > WINDOWS_MAX {
                wishes.pop_front();
            }
        }
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) write: bool,
    /// It is for writing alone.
    pub(crate) only_write: bool,
    pub(crate) truncate: bool,
    pub(crate) exclusive: bool,
}

impl Mode {
    /// From the flags of `open(2)`.
    pub(crate) fn of(flags: i32) -> Self {
        Self {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            only_write: flags & libc::O_ACCMODE == libc::O_WRONLY,
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
        }
    }
}

/// A content that was written here is read through the kernel's cache for so long after its last change: it may well be
/// changed again, and programs that have it open (`tail -f`) are to see that.
const MAY_CHANGE: Duration = Duration::from_secs(3600);

impl Core {
    /// Opens an existing file. How a reader gets at the bytes is decided by [`Core::pass_through`].
    pub(crate) fn open(&self, number: u64, mode: Mode) -> Result<u64, Fail> {
        let _order = self.order.read();
        let is_outdated = self.inodes.lock().is_outdated(number);
        if is_outdated && self.live(number).is_none() {
            // The kernel looks the name up again, and comes back with what it stands for now.
            return Err(FsError::Stale.into());
        }
        let object = match self.inodes.lock().facts(number).map(|facts| &facts.kind) {
            Some(Kind::File(object)) => *object,
            Some(Kind::Directory) => return Err(FsError::IsDirectory.into()),
            // What it holds is nowhere.
            Some(Kind::Link(_)) => return Err(FsError::Stuck.into()),
            Some(_) => return Err(FsError::Invalid.into()),
            None => return Err(FsError::Stale.into()),
        };
        // Of a file that is no more: what was found out about it before counts no longer.
        self.store.keep(&object);
        if mode.write {
            self.writable()?;
            self.open_cached(number)?;
            if let Err(fail) = self.start_writing(number) {
                self.modes.lock().close(number);
                return Err(fail);
            }
        } else {
            self.note_open(number, &object);
        }
        Ok(self.opened(number, mode))
    }

    /// One more cached open of an inode. Where it is passed through, the name gets another inode, which the kernel finds when
    /// it looks the name up again; whoever reads the old one goes on reading what it was.
    fn open_cached(&self, number: u64) -> Result<(), Fail> {
        match self.modes.lock().cache(number) {
            true => Ok(()),
            false => Err(self.renew(number)),
        }
    }

    /// Takes the name from an inode that is passed through.
    fn renew(&self, number: u64) -> Fail {
        let mut inodes = self.inodes.lock();
        inodes
            .paths(number)
            .into_iter()
            .for_each(|path| self.tell(path));
        inodes.unname(number);
        FsError::Stale.into()
    }

    /// Decides for a reader that was just opened: the kernel reads the backing file itself (then this returns what `register`
    /// made of it), or asks here. To be called before the open is answered, once.
    pub(crate) fn pass_through(
        &self,
        handle: u64,
        register: impl FnOnce(&File) -> Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Option<Arc<dyn Any + Send + Sync>>, Fail> {
        let file = self.file(handle)?;
        if file.counted.set(()).is_err() {
            return Ok(None);
        }
        let mut modes = self.modes.lock();
        let through = modes.pass(file.number, || match self.lend(file.number) {
            Lending::Now(lent) => {
                let token = register(lent.file())?;
                Some(Through::new(lent, token))
            }
            Lending::Later => {
                file.is_passing.store(true, Ordering::Relaxed);
                None
            }
            Lending::No => None,
        });
        match through {
            Some(through) => Ok(Some(through.token)),
            None => {
                // It is not passed through, so it can be cached.
                modes.cache(file.number);
                Ok(None)
            }
        }
    }

    /// Whether the kernel may read a file's content by itself.
    fn lend(&self, number: u64) -> Lending {
        if !self.may_pass.load(Ordering::Relaxed) || self.live(number).is_some() {
            return Lending::No;
        }
        let (object, changed) = {
            let inodes = self.inodes.lock();
            match inodes
                .facts(number)
                .map(|facts| (&facts.kind, facts.changed))
            {
                Some((Kind::File(object), changed)) => (*object, changed),
                _ => return Lending::No,
            }
        };
        let lent = match self.store.lend(&object) {
            Ok(Some(lent)) => lent,
            Ok(None) => return Lending::Later,
            Err(error) => {
                tracing::debug!(%error, "a content can't be lent to the kernel");
                return Lending::No;
            }
        };
        let age = Duration::from_nanos(now_hybrid().0.saturating_sub(changed.0));
        match lent.origin() == Origin::Fetched || age >= MAY_CHANGE {
            true => Lending::Now(lent),
            false => Lending::No,
        }
    }

    /// Notes how far the only user of a file has come, and has the kernel give up the pages that are left behind.
    fn leave_behind(&self, file: &OpenFile, done: Range<u64>) {
        if !file.is_passing.load(Ordering::Relaxed) {
            return;
        }
        let Some(range) = file.behind.lock().on(done) else {
            return;
        };
        if self.modes.lock().is_alone(file.number)
            && let Some(left) = self.left.get()
        {
            let number = file.number;
            // Where it is full, the pages stay: that is but a waste.
            let _ = left.try_send(LeftPages { number, range });
        }
    }

    fn opened(&self, number: u64, mode: Mode) -> u64 {
        let write = mode.write;
        self.inodes.lock().pin(number);
        let handle = self.handle();
        let counted = OnceLock::new();
        if write {
            // The only kind of writers there is.
            let _ = counted.set(());
        }
        let file = OpenFile {
            number,
            write,
            counted,
            ahead: Mutex::default(),
            is_passing: AtomicBool::new(write && self.may_pass.load(Ordering::Relaxed)),
            behind: Mutex::new(Behind::of(mode.only_write)),
        };
        self.files.lock().insert(handle, Arc::new(file));
        handle
    }

    /// One more writer of a file, whose live state is made where there is none and lasts until [`Core::closed`].
    pub(in crate::fs) fn start_writing(&self, number: u64) -> Result<(), Fail> {
        // Held until it is there: no reader is passed through to what is being written.
        let modes = self.modes.lock();
        if modes.is_passed(number) {
            return Err(self.renew(number));
        }
        let mut lives = loop {
            if self.with_live(number, |live| live.writers += 1).is_some() {
                return Ok(());
            }
            let lives = self.lives.lock();
            if !lives.contains_key(&number) {
                break lives;
            }
        };
        let (named, facts) = {
            let inodes = self.inodes.lock();
            let facts = inodes.facts(number).ok_or(FsError::Stale)?.clone();
            (inodes.path(number).is_some(), facts)
        };
        let mut live = match named {
            true => {
                // Else it was replaced elsewhere a moment ago: the kernel looks the name up again and comes back with the
                // new inode.
                let (path, shown, _) = self.stands(number)?.ok_or(FsError::Stale)?;
                let Kind::File(base) = shown.entry.kind else {
                    return Err(FsError::Invalid.into());
                };
                let mut live = Live::new(number, base, shown.entry, shown.time, shown.seen, path);
                live.state.get_mut().link = shown.link;
                live
            }
            false => {
                let Kind::File(base) = facts.kind else {
                    return Err(FsError::Invalid.into());
                };
                let (owner, group, modified) = (facts.owner, facts.group, facts.modified);
                let entry = plain_entry(facts.kind, facts.mode, owner, group, modified);
                let nowhere = TreePath::root();
                let mut live = Live::new(number, base, entry, facts.changed, Vec::new(), nowhere);
                live.state.get_mut().unlinked = true;
                live
            }
        };
        live.state.get_mut().writers = 1;
        self.insert_live(&mut lives, live);
        Ok(())
    }

    /// Changes what a file holds that somebody is writing; the only way to. Where the staging file is being made an object,
    /// this needs to wait.
    pub(in crate::fs) fn alter<T>(
        &self,
        number: u64,
        change: impl FnOnce(&mut LiveState) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        let altered = self.with_live(number, |live| {
            if live.importing {
                return Err(Self::after_import(number));
            }
            let answer = change(live)?;
            live.touch(now_hybrid());
            Ok(answer)
        });
        altered.unwrap_or(Err(FsError::BadHandle.into()))
    }

    /// The staging file is being made an object: what would change it waits.
    pub(in crate::fs) fn after_import(number: u64) -> Fail {
        Fail::Need(Need::Import(number))
    }

    fn insert_live(&self, lives: &mut std::collections::HashMap<u64, Arc<Live>>, live: Live) {
        self.inodes.lock().pin(live.number);
        lives.insert(live.number, Arc::new(live));
    }

    /// Ends the live state of a file: from now on it is its content. Removes what is left of the staging.
    pub(in crate::fs) fn end_writing(&self, number: u64, state: &mut LiveState) {
        state.done = true;
        self.lives.lock().remove(&number);
        self.tell_end(number, state);
        if state.unlinked && (state.is_recorded || state.is_durable) {
            // It was being made an object when its name went, which came to nothing. The record is needed until the change
            // of the name is on disk, or is with what replaces it.
            let id = state.staging.as_mut().and_then(|staging| staging.id.take());
            if !state.is_replaced {
                self.settle_soon(id.into_iter().collect());
            }
        }
        state.unstage(&self.store);
        state.staging = None;
        self.inodes.lock().unpin(number);
    }

    /// While a file is written the kernel is told its live state, whatever comes from elsewhere. Where the name shows
    /// something else from now on, the kernel must hear of it.
    fn tell_end(&self, number: u64, state: &LiveState) {
        if state.unlinked {
            return;
        }
        let linked = self.inodes.lock().path(number);
        let path = linked.unwrap_or_else(|| state.path.clone());
        let told = state.facts();
        let is_told = match self.tree.get(&path) {
            Ok(Some(shown)) => {
                let changed = told.changed;
                told == Facts::of_entry(&shown.entry, changed)
            }
            _ => false,
        };
        if !is_told {
            self.tell(path);
        }
    }

    /// Makes and opens a new file. It is visible here at once and published when it is closed.
    pub(crate) fn create(
        &self,
        caller: Caller,
        folder: u64,
        name: &[u8],
        permissions: u32,
        mode: Mode,
    ) -> Result<(Attr, u64), Fail> {
        self.writable()?;
        let order = self.order.write();
        let (name, path) = self.place(folder, name)?;
        if self.shown(&path)?.is_some() {
            drop(order);
            if mode.exclusive {
                return Err(FsError::Exists.into());
            }
            return self.open_existing(folder, name.as_bytes(), mode);
        }
        let kind = Kind::File(Object::empty());
        let entry = self.new_entry(caller, folder, kind, permissions)?;
        self.change(vec![Edit {
            path: path.clone(),
            entry: Some(entry.clone()),
            seen: Vec::new(),
            held: mode.write,
            written: None,
            moved: None,
        }])?;
        let changed = self.facts_after(&path, &entry).changed;
        let mut live = Live::new(0, Object::empty(), entry, changed, Vec::new(), path);
        let facts = live.state.get_mut().facts();
        let mut modes = self.modes.lock();
        let mut lives = self.lives.lock();
        let mut inodes = self.inodes.lock();
        let number = inodes.replace(folder, &name, facts.clone());
        inodes.look(number);
        drop(inodes);
        if mode.write {
            live.number = number;
            let state = live.state.get_mut();
            state.fresh = true;
            state.writers = 1;
            self.insert_live(&mut lives, live);
            modes.cache(number);
        }
        drop((lives, modes));
        let handle = self.opened(number, mode);
        Ok((self.attr(number, &facts, true), handle))
    }

    fn open_existing(&self, folder: u64, name: &[u8], mode: Mode) -> Result<(Attr, u64), Fail> {
        let attr = self.lookup(folder, name)?;
        let opened = self.open(attr.number, mode).and_then(|handle| {
            if mode.truncate {
                let cut = super::Changes {
                    size: Some(0),
                    ..Default::default()
                };
                if let Err(fail) = self.setattr(attr.number, &cut) {
                    self.release(handle);
                    return Err(fail);
                }
            }
            Ok(handle)
        });
        match opened {
            Ok(handle) => Ok((self.getattr(attr.number)?, handle)),
            Err(fail) => {
                // The kernel won't hear of it, so it won't be forgotten either.
                self.forget(attr.number, 1);
                Err(fail)
            }
        }
    }

    /// Fills `buf` from `offset`, cut to the end of the file. `first`: not a repetition of the same read.
    pub(crate) fn read(
        &self,
        handle: u64,
        offset: u64,
        buf: &mut [u8],
        first: bool,
    ) -> Result<usize, Fail> {
        let file = self.file(handle)?;
        let live = self.with_live(file.number, |live| self.read_live(live, offset, &mut *buf));
        if let Some(answer) = live {
            return answer;
        }
        let object = self.object(file.number)?;
        // For reports; nearly no read needs it.
        let path = || self.inodes.lock().path(file.number).unwrap_or_default();
        // Without room, what is fetched ahead would push out of memory what is being read.
        if first && !self.store.is_tight() {
            let len = buf.len() as u64;
            let fetch = |range| self.bring.prefetch(object, range, &path().to_string());
            file.ahead.lock().on_read(offset, len, object.size, fetch);
            self.leave_behind(&file, offset..offset.saturating_add(len));
        }
        if offset >= object.size {
            return Ok(0);
        }
        self.read_object(&object, offset, buf, path)
    }

    /// The content of a file that isn't being written.
    fn object(&self, number: u64) -> Result<Object, Fail> {
        match self.inodes.lock().facts(number).map(|facts| &facts.kind) {
            Some(Kind::File(object)) => Ok(*object),
            Some(_) => Err(FsError::Invalid.into()),
            None => Err(FsError::Stale.into()),
        }
    }

    /// The content of a file that isn't being written, and where it stands (for reports).
    pub(in crate::fs) fn content(&self, number: u64) -> Result<(Object, TreePath), Fail> {
        let object = self.object(number)?;
        Ok((object, self.inodes.lock().path(number).unwrap_or_default()))
    }

    fn read_live(&self, live: &mut LiveState, offset: u64, buf: &mut [u8]) -> Result<usize, Fail> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        let mut filled = 0_usize;
        for (piece, source) in live.overlay.pieces(range) {
            let len = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
            let Some(part) = buf.get_mut(filled..filled.saturating_add(len)) else {
                break;
            };
            match (source, &live.staging) {
                (Source::Base, _) => {
                    let path = || live.path.clone();
                    if self.read_object(&live.base, piece.start, part, path)? < len {
                        return Err(FsError::Stuck.into());
                    }
                }
                (Source::Staging, Some(staging)) => read_staged(&staging.file, piece.start, part)?,
                (Source::Staging | Source::Zero, _) => part.fill(0),
            }
            filled += len;
        }
        Ok(filled)
    }

    /// Writes. `cached`: the kernel wrote back pages, and tells the modification time itself. `drop_privileges`: set-id bits
    /// go, as a write by somebody without the right to keep them demands.
    pub(crate) fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        cached: bool,
        drop_privileges: bool,
    ) -> Result<(), Fail> {
        let file = self.file(handle)?;
        if !file.write {
            return Err(FsError::BadHandle.into());
        }
        let end = offset.saturating_add(data.len() as u64);
        if end > FILE_BYTES_MAX {
            return Err(FsError::TooLarge.into());
        }
        let written = self.alter(file.number, |live| {
            let staging = live.staging_to(&self.store, end)?;
            // It may come half-way.
            live.overlay.hashed.spoil(&(offset..end));
            let write = || linux::write_all_at(&staging, data, offset);
            match self.store.grow(&staging, data.len() as u64, write) {
                Ok(()) => {}
                Err(error @ StoreError::NoRoom { .. }) => return Err(error.into()),
                Err(error) => {
                    live.take_back(&staging, offset..end);
                    return Err(error.into());
                }
            }
            live.overlay.write(offset..end);
            if !cached {
                live.entry.modified = now();
            }
            if drop_privileges {
                live.entry.mode &= !0o6000;
            }
            Ok(live.overlay.hashed.is_ripe())
        });
        self.leave_behind(&file, offset..end);
        if written? {
            self.ripe.lock().insert(file.number);
            self.ripened.notify_one();
        }
        Ok(())
    }

    /// Sets aside room, or makes a range zeros; what `fallocate(2)` does.
    pub(crate) fn fallocate(&self, handle: u64, range: Range<u64>, mode: i32) -> Result<(), Fail> {
        let file = self.file(handle)?;
        if !file.write {
            return Err(FsError::BadHandle.into());
        }
        if range.end > FILE_BYTES_MAX {
            return Err(FsError::TooLarge.into());
        }
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let clears = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return Err(FsError::NotSupported.into()),
        };
        self.alter(file.number, |live| {
            let staging = live.staging(&self.store)?;
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            let (start, len) = (range.start, range.end - range.start);
            if clears {
                let flags = flags | rustix::fs::FallocateFlags::PUNCH_HOLE;
                rustix::fs::fallocate(&*staging, flags, start, len)
                    .map_err(std::io::Error::from)?;
                live.overlay.punch(range.clone());
            } else {
                let allocate = || Ok(rustix::fs::fallocate(&*staging, flags, start, len)?);
                self.store.grow(&staging, len, allocate)?;
            }
            if !keep_size && range.end > live.overlay.size() {
                live.overlay.truncate(range.end);
            }
            live.entry.modified = now();
            Ok(())
        })
    }

    /// Where the next data begin, or the next hole; what `lseek(2)` does with `SEEK_DATA` and `SEEK_HOLE`. While somebody has
    /// the file open for writing it has no holes: a mapping may have filled them with pages that the kernel still keeps.
    pub(crate) fn seek(&self, handle: u64, offset: u64, data: bool) -> Result<u64, Fail> {
        let number = self.file(handle)?.number;
        let live = self.with_live(number, |live| match live.writers {
            0 => live.overlay.seek(offset, data),
            _ => dense(live.overlay.size(), offset, data),
        });
        let found = match live {
            Some(found) => found,
            None => {
                let object = self.object(number)?;
                match self.store.lend(&object)? {
                    Some(lent) => holes(lent.file(), offset, data)?,
                    None => dense(object.size, offset, data),
                }
            }
        };
        Ok(found.ok_or(FsError::BeyondEnd)?)
    }

    /// A handle is being closed, perhaps one of several copies: the last moment to report an error.
    pub(crate) fn flush(&self, handle: u64) -> Result<(), Fail> {
        let file = self.file(handle)?;
        if file.write {
            self.with_live(file.number, |live| self.journal(file.number, live))
                .unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// Puts a file that is being written on disk, journal record and all. False when it isn't being written, or has nothing
    /// to put: then what is left to do is to make the folder's state durable.
    pub(crate) fn fsync_live(&self, number: u64) -> Result<bool, Fail> {
        let Some(live) = self.live(number) else {
            return Ok(false);
        };
        if live.state.lock().importing {
            return Err(Self::after_import(number));
        }
        let _syncing = live.syncing.lock();
        let (id, record) = {
            let mut state = live.state.lock();
            if state.done || !state.is_dirty() || state.unlinked {
                return Ok(false);
            }
            self.names_are_settled(number, &state.path)?;
            state.make_staging(&self.store, 0)?;
            let staging = state.staging.as_ref().and_then(|staging| staging.id);
            let id = staging.ok_or(FsError::Stuck)?;
            // Before the durable record, and under the lock as by everybody else: the latest is never the older one.
            state.journal(&self.store)?;
            // On its way. Whatever becomes of the file meanwhile has to see to it.
            state.is_recorded = true;
            (id, state.record())
        };
        // What takes long happens while others go on.
        let journaled = self.store.journal(id, &record, true);
        let mut state = live.state.lock();
        let is_still = |staging: &Staging| staging.id == Some(id);
        if !state.staging.as_ref().is_some_and(is_still) {
            // Published or unlinked meanwhile: no record must stay behind, once that is on disk. What replaces it sees to that by
            // itself, and until then this is what is on disk.
            if state.is_replaced || !state.unlinked {
                journaled?;
            }
            if !state.is_replaced {
                self.settle_soon(vec![id]);
            }
            return Ok(false);
        }
        journaled?;
        state.is_durable = true;
        Ok(true)
    }

    /// The last copy of a handle is closed.
    pub(crate) fn release(&self, handle: u64) {
        let Some(file) = self.files.lock().remove(&handle) else {
            return;
        };
        if file.counted.get().is_some() {
            let through = self.modes.lock().close(file.number);
            drop(through);
        }
        self.inodes.lock().unpin(file.number);
        self.closed(file.number, file.write);
    }

    /// Whether nobody needs the live state any more: there are no writers, and what was written is published; or it never
    /// will be, as the name is gone, and nobody has it open (but for the live state itself).
    pub(in crate::fs) fn may_end(&self, number: u64, state: &LiveState) -> bool {
        let unread = || state.unlinked && self.inodes.lock().pins(number) <= 1;
        state.writers == 0 && (!state.is_dirty() || unread())
    }

    /// A user of a file is gone, who `wrote` if it was a writer.
    pub(in crate::fs) fn closed(&self, number: u64, wrote: bool) {
        let Some(live) = self.live(number) else {
            return;
        };
        let mut state = live.state.lock();
        if state.done {
            // A reader's: nobody ends what has a writer.
            return;
        }
        if wrote {
            state.writers = state.writers.saturating_sub(1);
        }
        if state.publishing {
            // Whoever publishes looks at this at the end.
            return;
        }
        if self.may_end(number, &state) {
            self.end_writing(number, &mut state);
            return;
        }
        if state.writers > 0 || state.unlinked {
            return;
        }
        if let Err(error) = self.journal_soon(number, &mut state) {
            tracing::warn!(path = %state.path, %error, "the journal could not be written");
        }
        drop(state);
        self.wake.notify_one();
    }
}

/// Reads from a staging file; what lies beyond its end are zeros that were never written.
fn read_staged(staging: &File, mut offset: u64, mut buf: &mut [u8]) -> Result<(), Fail> {
    while !buf.is_empty() {
        let read = staging.read_at(buf, offset)?;
        if read == 0 {
            buf.fill(0);
            break;
        }
        offset += read as u64;
        buf = buf.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}

/// Where data, or a hole, begins in a file that has no holes but the end.
fn dense(size: u64, offset: u64, data: bool) -> Option<u64> {
    (offset < size).then_some(if data { offset } else { size })
}

/// The same in a file on the disk.
fn holes(file: &File, offset: u64, data: bool) -> Result<Option<u64>, Fail> {
    use rustix::fs::SeekFrom;
    let to = match data {
        true => SeekFrom::Data(offset),
        false => SeekFrom::Hole(offset),
    };
    match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}
