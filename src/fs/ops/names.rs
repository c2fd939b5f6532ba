//! Making and removing names.

use crate::{
    fs::{
        core::{Attr, Caller, Core, Fail, Need, now, now_hybrid},
        errno::FsError,
        fates::Extent,
        inodes::Facts,
        live::plain_entry,
    },
    manifest::{Dot, Entry, FileId, Kind, Name, Shown, TreePath},
    node::namespace::Edit,
    store::StagingId,
};

/// The longest target of a symbolic link.
const TARGET_BYTES_MAX: usize = 4095;
/// The most names that a file may have, as on ext4.
const LINKS_MAX: u32 = 65_000;

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

    /// Gives a file one more name. A new one that is being written is published first, as it is by then.
    pub(crate) fn link(&self, number: u64, folder: u64, name: &[u8]) -> Result<Attr, Fail> {
        self.writable()?;
        let is_published = self.with_live(number, |live| {
            let is_new = live.fresh && !live.unlinked;
            match is_new && live.failures > 0 {
                true => Err(FsError::Stuck),
                false => {
                    live.hurry |= is_new;
                    Ok(!is_new)
                }
            }
        });
        if !is_published.unwrap_or(Ok(true))? {
            self.wake.notify_one();
            return Err(Fail::Need(Need::Entry(number)));
        }
        let _order = self.order.write();
        let (name, path) = self.place(folder, name)?;
        if self.shown(&path)?.is_some() {
            return Err(FsError::Exists.into());
        }
        let (from, shown, facts) = self.stands(number)?.ok_or(FsError::NotFound)?;
        if facts.kind == Kind::Directory {
            return Err(FsError::NotPermitted.into());
        }
        if matches!(facts.kind, Kind::Link(_)) {
            // There is nothing that a second name could show.
            return Err(FsError::Stuck.into());
        }
        if facts.links >= LINKS_MAX {
            return Err(FsError::TooManyLinks.into());
        }
        let place = self.path(folder)?;
        let there = self.shown(&place)?.ok_or(FsError::NotFound)?;
        if there.entry.kind != Kind::Directory {
            return Err(FsError::NotDirectory.into());
        }
        let file = match &shown.link {
            Some(link) => link.file,
            None => new_file_id(number),
        };
        let put = |path: TreePath, entry: Entry, seen: Vec<Dot>| Edit {
            path,
            entry: Some(entry),
            seen,
            held: false,
            written: None,
            moved: None,
        };
        let mut edits = Vec::new();
        match &shown.link {
            // One that no head has yet is put anew, so that the two are committed together.
            Some(link) => edits.push(Edit::bring_record(&from, &shown).unwrap_or_else(|| {
                let record = TreePath::of_record(&link.file);
                put(record, shown.entry.clone(), link.seen.clone())
            })),
            None => {
                let record = TreePath::of_record(&file);
                edits.push(put(record, shown.entry.clone(), Vec::new()));
                edits.push(put(from.clone(), Entry::link(file), shown.seen.clone()));
            }
        }
        edits.push(put(path.clone(), Entry::link(file), Vec::new()));
        let _held = self.tree.hold();
        self.change(edits)?;
        self.note_names([(&path, Extent::All)]);
        let linked = Facts {
            file: Some(file),
            links: facts.links + 1,
            ..self.facts_after(&path, &shown.entry)
        };
        {
            let mut inodes = self.inodes.lock();
            inodes.set_facts(number, linked.clone());
            inodes.add_link(number, folder, &name);
            inodes.look(number);
        }
        let live = self.with_live(number, |live| {
            live.changed = linked.changed;
            live.facts()
        });
        let facts = Facts {
            file: linked.file,
            links: linked.links,
            ..live.unwrap_or(linked)
        };
        Ok(self.attr_now(number, &facts, true))
    }

    /// What becomes of a file that has several names when it loses one of them: the others, and an edit that makes a plain file
    /// of it again where one is left.
    pub(super) fn without_name(
        &self,
        path: &TreePath,
        shown: &Shown,
    ) -> Result<(Vec<TreePath>, Option<Edit>), Fail> {
        let Some(link) = &shown.link else {
            return Ok((Vec::new(), None));
        };
        let mut others = self.tree.names_of(link.file)?;
        others.remove(path);
        let others: Vec<_> = others.into_iter().collect();
        let [only] = others.as_slice() else {
            return Ok((others, None));
        };
        let edit = Edit::last_name(only, self.shown(only)?, shown);
        Ok((others, edit))
    }

    /// The other names of the inode that the kernel knows at a place: `others` are those of the file that is shown there, which
    /// may be somebody else's by now, or gone, before the kernel has heard of it.
    pub(super) fn others_of_known(
        &self,
        (folder, name, path): (u64, &Name, &TreePath),
        shown: Option<&Shown>,
        others: Vec<TreePath>,
    ) -> Vec<TreePath> {
        let (own, known) = {
            let inodes = self.inodes.lock();
            let number = inodes.child(folder, name);
            let own = number.and_then(|number| inodes.file(number));
            (
                own,
                number.map_or(Vec::new(), |number| inodes.paths(number)),
            )
        };
        let link = shown.and_then(|shown| shown.link.as_ref());
        match own {
            Some(own) if link.is_none_or(|link| link.file != own) => {
                // Where the nodes for all of them are not here, those that the kernel knows.
                let names = self.tree.names_of(own);
                let names = names.map_or(known, |names| names.into_iter().collect());
                names.into_iter().filter(|other| other != path).collect()
            }
            _ => others,
        }
    }

    /// Notes that a file has lost one of several names: it goes on under the others.
    pub(super) fn lost_name(&self, number: u64, others: &[TreePath]) {
        let Some(other) = others.first() else {
            return;
        };
        let mut inodes = self.inodes.lock();
        if let Some(facts) = inodes.facts(number).cloned() {
            let links = u32::try_from(others.len()).unwrap_or(u32::MAX);
            let file = facts.file.filter(|_| links > 1);
            let changed = now_hybrid();
            inodes.set_facts(
                number,
                Facts {
                    links,
                    file,
                    changed,
                    ..facts
                },
            );
        }
        drop(inodes);
        self.with_live(number, |live| {
            live.changed = now_hybrid();
            self.note_move(live, other.clone(), Vec::new());
        });
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
        let shown = self.as_written(folder, &name, &path, shown);
        let (others, last) = self.without_name(&path, &shown)?;
        let others = self.others_of_known((folder, &name, &path), Some(&shown), others);
        let mut edits = self.keep_folder(&path)?;
        edits.push(removal(path.clone(), shown));
        edits.extend(last);
        let _held = self.tree.hold();
        self.change(edits)?;
        // A new file under one of several names is to be no name of the old one.
        let extent = match others.is_empty() {
            true => Extent::Below,
            false => Extent::All,
        };
        self.note_names([(&path, extent)]);
        let number = self.lose(folder, &name, &others);
        self.inodes.lock().detach(folder, &name);
        self.keep_named(number, &others);
        self.tell_of_copies(folder, &path);
        Ok(())
    }

    /// A version went from a name of which a folder may list another one, as a conflict copy: that has the name then.
    pub(super) fn tell_of_copies(&self, folder: u64, path: &TreePath) {
        if self.inodes.lock().copies(folder).next().is_some() {
            self.tell_settled(path);
        }
    }

    /// A name goes; the file has these others, or none. Returns its inode, if that is known.
    pub(super) fn lose(&self, folder: u64, name: &Name, others: &[TreePath]) -> Option<u64> {
        let number = self.inodes.lock().child(folder, name)?;
        match others {
            [] => self.disown(number),
            _ => self.lost_name(number, others),
        }
        Some(number)
    }

    /// An inode that has lost the only name it was known by stands under another one from now on, if it has any: whoever
    /// has it open goes on with the file.
    pub(super) fn keep_named(&self, number: Option<u64>, others: &[TreePath]) {
        let (Some(number), Some(other)) = (number, others.first()) else {
            return;
        };
        if !self.inodes.lock().links(number).is_empty() {
            return;
        }
        // Where the folder's nodes are not here it does without.
        if let Some((_, name)) = other.split()
            && let Ok(folder) = self.folder_inode(other)
        {
            self.inodes.lock().add_link(number, folder, name);
        }
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
        edits.push(removal(path.clone(), shown));
        let _held = self.tree.hold();
        self.change(edits)?;
        self.note_names([(&path, Extent::All)]);
        self.inodes.lock().detach(folder, &name);
        Ok(())
    }

    /// A file's name was removed or given to another: what is being written to it goes to nobody but its open handles. What
    /// the journal has of it stays until that is on disk.
    pub(super) fn disown(&self, number: u64) {
        let ids = self.disinherit(number, false);
        self.note_end(&ids);
        self.settle_soon(ids);
    }

    /// The same, but for what the journal has of it, which is returned. `is_replaced`: what replaces it sees to that.
    pub(super) fn disinherit(&self, number: u64, is_replaced: bool) -> Vec<StagingId> {
        let Some(live) = self.live(number) else {
            return Vec::new();
        };
        let mut state = live.state.lock();
        if state.done {
            return Vec::new();
        }
        state.unlinked = true;
        // That may make room.
        *self.no_room.lock() = None;
        state.is_replaced = is_replaced;
        if state.importing {
            // The publication finds out, and cleans up.
            let importing = state.staging.as_ref().and_then(|staging| staging.id);
            let mut ids = std::mem::take(&mut state.imported);
            ids.append(&mut state.replaced);
            match is_replaced {
                true => ids.extend(importing),
                false => self.note_end(importing.as_slice()),
            }
            return ids;
        }
        let ids = state.take_journaled();
        state.unstage(&self.store);
        if !state.publishing && self.may_end(number, &state) {
            self.end_writing(number, &mut state);
        }
        ids
    }

    /// A folder that is there only because something is below it must not vanish with the last of that: an edit that gives
    /// it an entry of its own, with the time of now, as something in it goes now.
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
        let mut entry = shown.entry;
        entry.modified = now();
        Ok(vec![Edit {
            path: folder,
            entry: Some(entry),
            seen: shown.seen,
            held: false,
            written: None,
            moved: None,
        }])
    }
}

/// The id of a file that gets its second name: it begins with its number, which it so keeps after a remount.
fn new_file_id(number: u64) -> FileId {
    let mut file = FileId::default();
    let random: u64 = rand::random();
    let bytes = number.to_le_bytes().into_iter().chain(random.to_le_bytes());
    for (to, from) in file.iter_mut().zip(bytes) {
        *to = from;
    }
    file
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
