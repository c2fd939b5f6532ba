//! Renaming. A folder's entries are rewritten under their new paths in one change; no content moves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::RwLockWriteGuard;

use crate::{
    fs::{
        core::{Core, Fail, Need},
        errno::FsError,
        fates::Extent,
        live::Live,
        publish::is_whole,
    },
    manifest::{self, Dot, Entry, Kind, Name, Shown, TreePath},
    node::namespace::Edit,
    store::StagingId,
};

/// What to do about an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    /// It is replaced.
    Yes,
    /// It is an error.
    No,
    /// The two change places.
    Exchange,
}

/// What is to be moved: each entry, parents before children.
type Gathered = Vec<Moved>;

struct Moved {
    from: TreePath,
    to: TreePath,
    entry: Entry,
    /// The versions that the entry stands for.
    seen: Vec<Dot>,
    /// Its first publication is still to come.
    held: bool,
    /// The record of a file with several names, which comes along.
    record: Option<Edit>,
}

/// Keeps others from changing what is below places, until dropped.
struct Moving<'a> {
    core: &'a Core,
    places: Vec<TreePath>,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.core
            .moving
            .lock()
            .retain(|place| !self.places.contains(place));
        self.core.published.send_modify(|ended| *ended += 1);
    }
}

impl Core {
    /// Renames.
    pub(crate) fn rename(
        &self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        replace: Replace,
    ) -> Result<(), Fail> {
        self.writable()?;
        // A large folder takes its time, in which others go on; what is to be moved stays as it is meanwhile.
        let mut order = self.order.write();
        let (from_name, from_path) = self.place(from.0, from.1)?;
        let (to_name, to_path) = self.place(to.0, to.1)?;
        let source = self.shown(&from_path)?.ok_or(FsError::NotFound)?;
        if from_path == to_path {
            return Ok(());
        }
        let source = self.as_written(from.0, &from_name, &from_path, source);
        let target = self.shown(&to_path)?;
        let target = target.map(|target| self.as_written(to.0, &to_name, &to_path, target));
        let nested = to_path.is_within(&from_path)
            || (replace == Replace::Exchange && from_path.is_within(&to_path));
        match (&target, replace) {
            _ if nested => return Err(FsError::Invalid.into()),
            (Some(_), Replace::No) => return Err(FsError::Exists.into()),
            (None, Replace::Exchange) => return Err(FsError::NotFound.into()),
            (Some(target), Replace::Yes) => self.check_replaceable(&source, target, &to_path)?,
            (Some(_), Replace::Exchange) => self.check_known(to.0, &to_name, &to_path)?,
            (None, Replace::Yes | Replace::No) => {}
        }
        self.check_known(from.0, &from_name, &from_path)?;
        let file_of = |shown: &Shown| shown.link.as_ref().map(|link| link.file);
        if let Some(target) = &target
            && file_of(target).is_some()
            && file_of(target) == file_of(&source)
        {
            // Two names of one file: nothing is to be done.
            return Ok(());
        }
        let (others, last) = match &target {
            Some(target) if replace == Replace::Yes => self.without_name(&to_path, target)?,
            _ => (Vec::new(), None),
        };
        let others = match replace {
            Replace::Exchange => others,
            _ => self.others_of_known((to.0, &to_name, &to_path), target.as_ref(), others),
        };
        // A file that no head has yet can't replace anything in one. Until it is published, a crash would find what it replaces
        // there: that may be, but not where that has other names, or gets another one now, and is changed under these.
        if replace == Replace::Exchange || !others.is_empty() {
            self.published_first(&[&from_path, &to_path])?;
        }
        if !self.lives_at(&[&from_path, &to_path]).is_empty() {
            self.store.takes_notes()?;
        }
        let is_new = self.held(&[&from_path]).contains(&from_path);
        let last = last.filter(|_| !is_new);
        let mut edits = self.keep_folder(&from_path)?;
        let mut places = vec![from_path.clone(), to_path.clone()];
        places.extend(last.iter().map(|edit| edit.path.clone()));
        edits.extend(last);
        let moving = self.start_moving(places)?;
        let held = self.held(&[&from_path, &to_path]);
        let target_seen = target
            .as_ref()
            .map_or(Vec::new(), |target| target.seen.clone());
        let source_seen = source.seen.clone();
        let exchanged = target.filter(|_| replace == Replace::Exchange);
        let is_folder = |shown: &Shown| shown.entry.kind == Kind::Directory;
        let is_long = is_folder(&source) || exchanged.as_ref().is_some_and(is_folder);
        let gather = || {
            let there = self.gather(&held, &from_path, &to_path, source)?;
            let back = match exchanged {
                Some(target) => self.gather(&held, &to_path, &from_path, target)?,
                None => Vec::new(),
            };
            edits.extend(moves(there, back, (&to_path, target_seen.clone())));
            // What is below a folder comes before it: a folder's own time holds if nothing in it is later.
            edits.sort_unstable_by(|a, b| b.path.cmp(&a.path));
            Ok::<_, Fail>(edits)
        };
        // Where each is where the other was, there is nowhere to follow to.
        let followed = (replace != Replace::Exchange).then(|| (from_path.clone(), to_path.clone()));
        let _held = if is_long {
            let prepare = || self.tree.prepare(Box::new(gather), followed);
            let make = RwLockWriteGuard::unlocked(&mut order, prepare)?;
            // Until it is made, no head is begun anyway.
            let held = self.tree.hold();
            make();
            held
        } else {
            let edits = gather()?;
            let held = self.tree.hold();
            match followed {
                Some((from, to)) => self.tree.rename(edits, from, to)?,
                None => self.tree.change(edits)?,
            }
            held
        };
        self.note_change();
        self.note_names([(&from_path, Extent::All), (&to_path, Extent::All)]);
        drop(moving);
        let mut over = Vec::new();
        let lost = match replace {
            Replace::Exchange => None,
            Replace::Yes | Replace::No if is_new && others.is_empty() => {
                let lost = self.inodes.lock().child(to.0, &to_name);
                over.extend(
                    lost.into_iter()
                        .flat_map(|lost| self.disinherit(lost, true)),
                );
                lost
            }
            Replace::Yes | Replace::No => self.lose(to.0, &to_name, &others),
        };
        let mut inodes = self.inodes.lock();
        match replace {
            Replace::Exchange => inodes.exchange((from.0, &from_name), (to.0, &to_name)),
            Replace::Yes | Replace::No => inodes.rename((from.0, &from_name), (to.0, &to_name)),
        }
        drop(inodes);
        self.keep_named(lost, &others);
        self.tell_of_copies(from.0, &from_path);
        self.move_lives(
            (&from_path, &source_seen),
            (&to_path, &target_seen),
            over,
            replace,
        );
        Ok(())
    }

    /// What a name is given up with, or moved: what is shown there, unless a file is being written here that another member has
    /// changed meanwhile. Then it is what the writer began with, and what the other made of it stays: whoever goes on writing has
    /// not seen that, and would replace it.
    pub(super) fn as_written(
        &self,
        folder: u64,
        name: &Name,
        path: &TreePath,
        shown: Shown,
    ) -> Shown {
        let known = self.inodes.lock().child(folder, name);
        let live = known.and_then(|number| self.live(number));
        self.as_begun(live.as_deref(), path, shown)
    }

    /// The same, where that file is known.
    fn as_begun(&self, live: Option<&Live>, path: &TreePath, shown: Shown) -> Shown {
        let Some(live) = live else { return shown };
        let state = live.state.lock();
        let is_file = matches!(shown.entry.kind, Kind::File(_));
        let is_single = state.link.is_none() && shown.link.is_none();
        let is_theirs = is_file && shown.entry.kind != Kind::File(state.agreed);
        let is_here = !state.unlinked && !state.done && !state.fresh;
        if !(is_single && is_theirs && is_here) {
            return shown;
        }
        self.tell(path.clone());
        Shown {
            entry: state.entry_with(state.agreed),
            seen: state.seen.clone(),
            ..shown
        }
    }

    fn start_moving(&self, places: Vec<TreePath>) -> Result<Moving<'_>, Fail> {
        let mut moving = self.moving.lock();
        let meets = |there: &TreePath| {
            let mut places = places.iter();
            places.any(|place| place.is_within(there) || there.is_within(place))
        };
        if moving.iter().any(meets) {
            return Err(Fail::Need(Need::Move));
        }
        moving.extend_from_slice(&places);
        Ok(Moving { core: self, places })
    }

    fn check_replaceable(
        &self,
        source: &Shown,
        target: &Shown,
        to_path: &TreePath,
    ) -> Result<(), Fail> {
        let is_folder = |shown: &Shown| shown.entry.kind == Kind::Directory;
        match (is_folder(source), is_folder(target)) {
            (false, false) => Ok(()),
            (true, false) => Err(FsError::NotDirectory.into()),
            (false, true) => Err(FsError::IsDirectory.into()),
            (true, true) => match self.tree.children(to_path)?.is_empty() {
                true => Ok(()),
                false => Err(FsError::NotEmpty.into()),
            },
        }
    }

    /// Files being written that stand at these places or below, or whose place is not known. Others are left alone: their
    /// state may be busy with the disk, and nobody looks up a name meanwhile.
    fn lives_at(&self, places: &[&TreePath]) -> Vec<Arc<Live>> {
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let inodes = self.inodes.lock();
        let concerned = |live: &Arc<Live>| {
            // By any of its names: which of them its state and its journal go by is not known here.
            let paths = inodes.paths(live.number);
            let mut within = paths
                .iter()
                .flat_map(|path| places.iter().map(move |place| (path, place)));
            paths.is_empty() || within.any(|(path, place)| path.is_within(place))
        };
        lives.into_iter().filter(concerned).collect()
    }

    /// Paths whose entries are held back until their first publication.
    fn held(&self, places: &[&TreePath]) -> BTreeSet<TreePath> {
        let mut held = BTreeSet::new();
        for live in self.lives_at(places) {
            let state = live.state.lock();
            if state.fresh && !state.unlinked && !state.done {
                held.insert(state.path.clone());
            }
        }
        held
    }

    /// Has new files at these places published first, where that needs nothing but this machine and did not fail.
    fn published_first(&self, places: &[&TreePath]) -> Result<(), Fail> {
        for live in self.lives_at(places) {
            let mut state = live.state.lock();
            let is_held = state.fresh && !state.unlinked && !state.done;
            let is_there = places.contains(&&state.path);
            if is_held && is_there && state.failures == 0 && is_whole(&state) {
                state.hurry = true;
                self.wake.notify_one();
                return Err(Fail::Need(Need::Entry(live.number)));
            }
        }
        Ok(())
    }

    fn gather(
        &self,
        held: &BTreeSet<TreePath>,
        from: &TreePath,
        to: &TreePath,
        shown: Shown,
    ) -> Result<Gathered, Fail> {
        let below = match shown.entry.kind {
            Kind::Directory => self.tree.below(from)?,
            _ => Vec::new(),
        };
        let mut written = HashMap::new();
        if !below.is_empty() {
            let lives = self.lives_at(&[from]).into_iter();
            written.extend(lives.map(|live| (live.state.lock().path.clone(), live.clone())));
        }
        let mut gathered = Vec::with_capacity(below.len() + 1);
        let below = below.into_iter().map(|(path, shown)| {
            let live = written.get(&path).map(Arc::as_ref);
            let shown = self.as_begun(live, &path, shown);
            (path, shown)
        });
        for (path, mut shown) in std::iter::once((from.clone(), shown)).chain(below) {
            if shown.entry.kind == Kind::Directory {
                // Put anew, the entry tells the folder's time; as it is seen now.
                shown.entry.modified = shown.folder_time(self.tree.folder_newest(&path)?);
            }
            let moved = path.moved(from, to).ok_or(FsError::Invalid)?;
            gathered.push(Moved {
                to: moved.map_err(FsError::from)?,
                record: Edit::bring_record(&path, &shown),
                entry: shown.own_entry(),
                seen: shown.seen,
                held: held.contains(&path),
                from: path,
            });
        }
        Ok(gathered)
    }

    /// Files that are being written move along, from one place to another, where the moved file is to replace, once it is
    /// published, what is in the staging files `over`.
    fn move_lives(
        &self,
        (from, source_seen): (&TreePath, &[Dot]),
        (to, target_seen): (&TreePath, &[Dot]),
        mut over: Vec<StagingId>,
        replace: Replace,
    ) {
        // The table of inodes has the new places already.
        for live in self.lives_at(&[from, to]) {
            let mut state = live.state.lock();
            if state.unlinked || state.done {
                continue;
            }
            let moved = match state.path.moved(from, to) {
                Some(Ok(moved)) => (moved, target_seen, to),
                Some(Err(_)) => continue,
                None if replace == Replace::Exchange => match state.path.moved(to, from) {
                    Some(Ok(moved)) => (moved, source_seen, from),
                    _ => continue,
                },
                None => continue,
            };
            let (path, seen, top) = moved;
            // Below a moved folder nothing was there before; what the move itself writes counts as seen by its content.
            state.seen = if path == *top {
                seen.to_vec()
            } else {
                Vec::new()
            };
            // Where it was, there is nothing any more, or something else: that is in the next head.
            let replaced = std::mem::take(&mut state.replaced);
            self.note_end(&replaced);
            self.settle_soon(replaced);
            let over = match path == *to {
                true => std::mem::take(&mut over),
                false => Vec::new(),
            };
            self.note_move(&mut state, path, over);
        }
        self.note_end(&over);
        self.settle_soon(over);
    }
}

/// The edits of a move there, and of one back where two change places: each path has one.
fn moves(
    there: Gathered,
    back: Gathered,
    (target, target_seen): (&TreePath, Vec<Dot>),
) -> Vec<Edit> {
    // What stands where something is put: it is replaced rather than removed.
    let mut replaced = HashMap::from([(target.clone(), target_seen)]);
    if !back.is_empty() {
        let both = there.iter().chain(&back);
        replaced.extend(both.map(|moved| (moved.from.clone(), moved.seen.clone())));
    }
    let is_exchange = !back.is_empty();
    let mut edits = Vec::with_capacity(2 * (there.len() + back.len()));
    let mut removed = Vec::new();
    // Each once, though several names of a file may be moved.
    let mut records = HashMap::new();
    for mut moved in there.into_iter().chain(back) {
        records.extend(moved.record.take().map(|edit| (edit.path.clone(), edit)));
        edits.push(Edit {
            seen: replaced.remove(&moved.to).unwrap_or_default(),
            path: moved.to,
            entry: Some(moved.entry),
            held: moved.held,
            written: None,
            moved: manifest::Moved::new(moved.from.clone(), &moved.seen).filter(|_| !is_exchange),
        });
        if !is_exchange {
            removed.push((moved.from, moved.seen));
        }
    }
    removed.extend(replaced);
    edits.extend(removed.into_iter().map(|(path, seen)| Edit {
        path,
        entry: None,
        seen,
        held: false,
        written: None,
        moved: None,
    }));
    edits.extend(records.into_values());
    edits
}
