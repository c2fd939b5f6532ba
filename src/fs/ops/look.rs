//! Looking: names to inodes, attributes, link targets, room.

use std::{sync::atomic::Ordering, time::Instant};

use crate::{
    fs::{
        core::{Attr, Core, Fail},
        errno::FsError,
        inodes::{Facts, Inodes, ROOT},
    },
    manifest::{Kind, Name, TreePath},
};

/// What `statfs` tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) blocks: u64,
    pub(crate) free: u64,
    pub(crate) available: u64,
    pub(crate) files: u64,
    pub(crate) block_bytes: u32,
}

/// What a name was found to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    Something(Attr),
    /// Nothing has it. `kept`: the kernel may keep that for [`crate::fs::absent::ABSENT_FOR`].
    Nothing {
        kept: bool,
    },
}

impl Core {
    /// What is under a name, for the kernel; it is told where that changes.
    pub(crate) fn find(&self, folder: u64, name: &[u8]) -> Result<Found, Fail> {
        let epoch = self.epoch.load(Ordering::Acquire);
        match self.lookup(folder, name) {
            Ok(attr) => Ok(Found::Something(attr)),
            Err(Fail::Error(FsError::NotFound)) => {
                let name = Name::new(name).map_err(FsError::from)?;
                let kept = self.absent.lock().note(folder, &name, Instant::now());
                // Should something have changed meanwhile that is of unknown extent, it may have missed the list.
                let kept = kept && self.epoch.load(Ordering::Acquire) == epoch;
                Ok(Found::Nothing { kept })
            }
            Err(fail) => Err(fail),
        }
    }

    /// The inode under a name, counted as known to the kernel.
    pub(crate) fn lookup(&self, folder: u64, name: &[u8]) -> Result<Attr, Fail> {
        let _order = self.order.read();
        let (name, path) = self.place(folder, name)?;
        let known = self.inodes.lock().child(folder, &name);
        let shared = known.and_then(|number| self.inodes.lock().file(number));
        if let Some(number) = known
            // Of several names one may be another file's by now.
            && (shared.is_none() || self.shown(&path)?.is_some_and(|shown| shown.is_of(shared)))
            && let Some((facts, _, _)) = self.look_live(number)?
        {
            self.inodes.lock().look(number);
            return Ok(self.attr_now(number, &facts, true));
        }
        let Some((_, facts)) = self.look_at(&path)? else {
            self.inodes.lock().outdate(folder, &name);
            return Err(FsError::NotFound.into());
        };
        if let Kind::File(new) = facts.kind
            && let Some(old) = known.and_then(|number| self.content_of(number))
        {
            self.bring.replaced(new, old);
        }
        let mut inodes = self.inodes.lock();
        let number = self.resolve(&mut inodes, (folder, &name), facts.clone());
        inodes.look(number);
        drop(inodes);
        // It may be another name of a file that is being written.
        let facts = match self.look_live(number) {
            Ok(Some((live, _, _))) if facts.file.is_some() => live,
            // Nothing is needed for that now that was not needed before.
            _ => facts,
        };
        Ok(self.attr_now(number, &facts, true))
    }

    /// The inode for what a folder shows under a name ([`Inodes::resolve`]). Where another one had the name, or was the file, the
    /// kernel is to look at what that is still known under: what changed it may not name all of these.
    pub(super) fn resolve(
        &self,
        inodes: &mut Inodes,
        (folder, name): (u64, &Name),
        facts: Facts,
    ) -> u64 {
        let of_file = facts.file.and_then(|file| inodes.of_file(&file));
        let before = [inodes.child(folder, name), of_file];
        let number = inodes.resolve(folder, name, facts);
        for old in before.into_iter().flatten().filter(|old| *old != number) {
            inodes
                .paths(old)
                .into_iter()
                .for_each(|path| self.tell(path));
        }
        number
    }

    /// Fails where the kernel takes a name for something else than what is shown there, as another member has changed it a moment
    /// ago: it moves what it knows along with the name, and would not hear of it any more. It looks the name up again then, and
    /// comes back.
    pub(super) fn check_known(
        &self,
        folder: u64,
        name: &Name,
        path: &TreePath,
    ) -> Result<(), Fail> {
        let known = self.inodes.lock().child(folder, name);
        // What is being written here is what it is.
        let is_live = known.is_some_and(|number| self.live(number).is_some());
        if known.is_none() || is_live {
            return Ok(());
        }
        match self.look_at(path)? {
            Some((_, facts)) if !self.inodes.lock().is_as_told(folder, name, &facts) => {
                Err(FsError::Stale.into())
            }
            _ => Ok(()),
        }
    }

    /// The kernel has forgotten an inode so many times.
    pub(crate) fn forget(&self, number: u64, times: u64) {
        self.inodes.lock().forget(number, times);
    }

    /// Attributes of an inode; of one without a name, what they were.
    pub(crate) fn getattr(&self, number: u64) -> Result<Attr, Fail> {
        let _order = self.order.read();
        if let Some((facts, linked, taken)) = self.look_live(number)? {
            return Ok(Attr {
                taken,
                ..self.attr_now(number, &facts, linked)
            });
        }
        // The root's attributes say nothing about what is in it, so they are there even before any head is.
        let unknown = number == ROOT && !self.tree.has_head();
        if !unknown && let Some((_, _, facts)) = self.stands(number)? {
            return Ok(self.attr_now(number, &facts, true));
        }
        let inodes = self.inodes.lock();
        let facts = inodes.facts(number).ok_or(FsError::Stale)?.clone();
        drop(inodes);
        Ok(self.attr_now(number, &facts, number == ROOT))
    }

    /// Where a symbolic link points.
    pub(crate) fn readlink(&self, number: u64) -> Result<Vec<u8>, Fail> {
        match self.inodes.lock().facts(number).map(|facts| &facts.kind) {
            Some(Kind::Symlink(target)) => Ok(target.clone()),
            Some(_) => Err(FsError::Invalid.into()),
            None => Err(FsError::Stale.into()),
        }
    }

    /// Room on the disk that holds the state folder, and the number of files in the cluster.
    pub(crate) fn space(&self) -> Result<Space, Fail> {
        let disk = rustix::fs::statvfs(&self.options.state_dir).map_err(std::io::Error::from)?;
        Ok(Space {
            blocks: disk.f_blocks,
            free: disk.f_bfree,
            available: disk.f_bavail,
            files: self.tree.files(),
            block_bytes: u32::try_from(disk.f_frsize).unwrap_or(4096),
        })
    }
}
