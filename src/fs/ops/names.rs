//! Making and removing names.

use crate::{
    fs::{
        core::{Attr, Caller, Core, Fail, now},
        errno::FsError,
        live::plain_entry,
    },
    manifest::{Entry, Kind, Shown, TreePath},
    node::namespace::Edit,
};

/// The longest target of a symbolic link.
const TARGET_BYTES_MAX: usize = 4095;

impl Core {
    /// Makes a name that is not a regular file being written: a folder, a link, a pipe, an empty file.
    pub(crate) fn make(
        &self,
        caller: Caller,
        folder: u64,
        name: &[u8],
        kind: Kind,
        permissions: u32,
    ) -> Result<Attr, Fail> {
        self.writable()?;
        match &kind {
            Kind::Symlink(target) if target.is_empty() => return Err(FsError::NotFound.into()),
            Kind::Symlink(target) if target.len() > TARGET_BYTES_MAX => {
                return Err(FsError::NameTooLong.into());
            }
            _ => {}
        }
        let _order = self.order.write();
        let (name, path) = self.place(folder, name)?;
        if self.shown(&path)?.is_some() {
            return Err(FsError::Exists.into());
        }
        let entry = self.new_entry(caller, folder, kind, permissions)?;
        self.change(vec![Edit {
            path: path.clone(),
            entry: Some(entry.clone()),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: None,
        }])?;
        let facts = self.facts_after(&path, &entry);
        let mut inodes = self.inodes.lock();
        let number = inodes.replace(folder, &name, facts.clone());
        inodes.look(number);
        drop(inodes);
        Ok(self.attr(number, &facts, true))
    }

    /// A new entry in a folder, which must be there. In a folder with the set-group-id bit it belongs to the folder's group.
    pub(super) fn new_entry(
        &self,
        caller: Caller,
        folder: u64,
        kind: Kind,
        permissions: u32,
    ) -> Result<Entry, Fail> {
        let path = self.path(folder)?;
        let parent = self.shown(&path)?.ok_or(FsError::NotFound)?.entry;
        if parent.kind != Kind::Directory {
            return Err(FsError::NotDirectory.into());
        }
        let mut entry = plain_entry(kind, permissions, caller.uid, caller.gid, now());
        if parent.mode & libc::S_ISGID != 0 {
            entry.group = parent.group;
            if entry.kind == Kind::Directory {
                entry.mode |= libc::S_ISGID;
            }
        }
        Ok(entry)
    }

    /// Removes a name that is not a folder's. Whoever has the file open keeps it.
    pub(crate) fn unlink(&self, folder: u64, name: &[u8]) -> Result<(), Fail> {
        self.writable()?;
        let _order = self.order.write();
        let (name, path) = self.place(folder, name)?;
        let shown = self.shown(&path)?.ok_or(FsError::NotFound)?;
        if shown.entry.kind == Kind::Directory {
            return Err(FsError::IsDirectory.into());
        }
        let mut edits = self.keep_folder(&path)?;
        edits.push(removal(path, shown));
        self.change(edits)?;
        let number = self.inodes.lock().child(folder, &name);
        if let Some(number) = number {
            self.disown(number);
        }
        self.inodes.lock().detach(folder, &name);
        Ok(())
    }

    /// Removes an empty folder.
    pub(crate) fn rmdir(&self, folder: u64, name: &[u8]) -> Result<(), Fail> {
        self.writable()?;
        let _order = self.order.write();
        let (name, path) = self.place(folder, name)?;
        let shown = self.shown(&path)?.ok_or(FsError::NotFound)?;
        if shown.entry.kind != Kind::Directory {
            return Err(FsError::NotDirectory.into());
        }
        if !self.tree.children(&path)?.is_empty() {
            return Err(FsError::NotEmpty.into());
        }
        let mut edits = self.keep_folder(&path)?;
        edits.push(removal(path, shown));
        self.change(edits)?;
        self.inodes.lock().detach(folder, &name);
        Ok(())
    }

    /// A file's name was removed or given to another: what is being written to it goes to nobody but its open handles.
    pub(super) fn disown(&self, number: u64) {
        let Some(live) = self.live(number) else {
            return;
        };
        let mut state = live.state.lock();
        if state.done {
            return;
        }
        state.unlinked = true;
        if state.importing {
            // The publication finds out, and cleans up.
            return;
        }
        state.unstage(&self.store);
        if !state.publishing && self.may_end(number, &state) {
            self.end_writing(number, &mut state);
        }
    }

    /// A folder that is there only because something is below it must not vanish with the last of that: an edit that gives
    /// it an entry of its own.
    pub(super) fn keep_folder(&self, below: &TreePath) -> Result<Vec<Edit>, Fail> {
        let Some((folder, _)) = below.split() else {
            return Err(FsError::Invalid.into());
        };
        if folder.names().is_empty() {
            return Ok(Vec::new());
        }
        let shown = self.shown(&folder)?.ok_or(FsError::NotFound)?;
        if !shown.seen.is_empty() || shown.entry.kind != Kind::Directory {
            return Ok(Vec::new());
        }
        Ok(vec![Edit {
            path: folder,
            entry: Some(shown.entry),
            seen: shown.seen,
            held: false,
            written: None,
            moved: None,
        }])
    }
}

/// The edit that removes what is shown at a place.
pub(super) fn removal(path: TreePath, shown: Shown) -> Edit {
    Edit {
        path,
        entry: None,
        seen: shown.seen,
        held: false,
        written: None,
        moved: None,
    }
}
