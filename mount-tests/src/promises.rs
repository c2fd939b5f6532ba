//! What programs were promised of their files, and whether a folder keeps it after a crash.
//!
//! [`Promises`] is told of every operation before it is made and after it returned, and so knows which states of each name and
//! each file may be seen when the process, or the machine, goes down at any moment: none older than what `close` or `fsync`
//! confirmed (docs/semantics.md), none that never was. [`Work`] makes the operations in a real folder and looks at it.
//!
//! Files consist of cells of 4 KiB, each filled with a number that tells of which file and which write it is. A cell with
//! anything else in it is torn. What is written to different cells may survive apart, as on any disk.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::CString,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

/// Bytes of a cell.
const CELL: usize = 4096;
/// Where a symlink points: made of its name.
const TARGET: &str = "where nothing is: ";

/// An operation on names of a folder, `a` or `folder/a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opens a file, which is made if it isn't there, and writes so many cells from one on; it stays open.
    Write(Name, usize, usize),
    /// Cuts or extends a file to so many cells.
    Truncate(Name, usize),
    /// Sets its permissions.
    Chmod(Name, u32),
    /// Closes what [`Op::Write`] opened.
    Close(Name),
    /// `fsync` of a file or a folder; the root is `""`.
    Fsync(Name),
    /// Makes a folder.
    Mkdir(Name),
    /// Removes an empty folder.
    Rmdir(Name),
    /// Removes a file or symlink.
    Unlink(Name),
    /// Makes a symlink.
    Symlink(Name),
    /// Gives a file another name.
    Link(Name, Name),
    /// Renames a file, over another one too, or a folder.
    Rename(Name, Name),
}

/// A path in the folder.
pub type Name = &'static str;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing: all is as the last operation left it.
    Nothing,
    /// The process was killed.
    Kill,
    /// The machine went down.
    PowerLoss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    Symlink(Name),
    File(usize),
}

type Tree = BTreeMap<Name, Node>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    cells: Vec<u64>,
    mode: u32,
}

/// The oldest state that may still be seen, for each kind of crash.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    kill: usize,
    power: usize,
}

impl Floor {
    fn after(self, after: After, last: usize) -> usize {
        match after {
            After::Nothing => last,
            After::Kill => self.kill,
            After::PowerLoss => self.power,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct FileStates {
    states: Vec<Content>,
    floor: Floor,
    /// The last state that a write has made.
    written: usize,
    /// It got a second name, for which a file is published that is being written. What only its permissions are after that is
    /// a change of attributes like any other, which `close` does not confirm.
    was_linked: bool,
    /// In which tree it was when that was confirmed; from then on it is somewhere.
    linked: Option<Floor>,
    /// It was written to since its content was last confirmed.
    is_dirty: bool,
    /// It is known to be published, and was not written to since.
    is_published: bool,
    /// A write failed: nobody knows what of it was done.
    is_doubtful: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Promises {
    /// After each operation.
    trees: Vec<Tree>,
    floors: BTreeMap<Name, Floor>,
    files: Vec<FileStates>,
    writes: u64,
    /// The last tree that certainly was, before an operation on names failed.
    certain: Option<usize>,
}

/// What a folder shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A folder.
    Folder,
    /// A symlink to there.
    Symlink(PathBuf),
    /// A file: its bytes, or why they can't be read, and its permissions.
    File(Result<Vec<u8>, String>, u32),
}

impl Default for Promises {
    fn default() -> Self {
        Self {
            trees: vec![Tree::new()],
            floors: BTreeMap::new(),
            files: Vec::new(),
            writes: 0,
            certain: None,
        }
    }
}

impl Promises {
    fn tree(&self) -> &Tree {
        self.trees.last().expect("there is always one")
    }

    fn file(&self, name: Name) -> Option<usize> {
        match self.tree().get(name) {
            Some(Node::File(file)) => Some(*file),
            _ => None,
        }
    }

    fn has_folder_for(&self, name: Name) -> bool {
        match name.rsplit_once('/') {
            Some((folder, _)) => self.tree().get(folder) == Some(&Node::Folder),
            None => true,
        }
    }

    fn below(&self, folder: Name) -> Vec<Name> {
        let names = self.tree().keys().copied();
        names.filter(|name| is_below(name, folder)).collect()
    }

    /// Whether the operation makes sense now.
    pub fn can(&self, op: Op, names: &[Name]) -> bool {
        let tree = self.tree();
        let is_free = |name: Name| !tree.contains_key(name) && self.has_folder_for(name);
        match op {
            Op::Write(name, ..) => self.file(name).is_some() || is_free(name),
            Op::Truncate(name, _) | Op::Chmod(name, _) | Op::Close(name) => {
                self.file(name).is_some()
            }
            Op::Fsync("") => true,
            Op::Fsync(name) => matches!(tree.get(name), Some(Node::File(_) | Node::Folder)),
            Op::Mkdir(name) | Op::Symlink(name) => is_free(name),
            Op::Rmdir(name) => tree.get(name) == Some(&Node::Folder) && self.below(name).is_empty(),
            Op::Unlink(name) => matches!(tree.get(name), Some(Node::File(_) | Node::Symlink(_))),
            Op::Link(from, to) => self.file(from).is_some() && is_free(to),
            Op::Rename(from, to) => match tree.get(from) {
                None => false,
                Some(Node::Folder) => {
                    // Every name below it needs one in the new place.
                    is_free(to)
                        && !to.starts_with(&format!("{from}/"))
                        && self
                            .below(from)
                            .iter()
                            .all(|name| moved(name, from, to, names).is_some())
                }
                // Over another name of the same file it does nothing.
                Some(node) => {
                    from != to
                        && (is_free(to)
                            || matches!(tree.get(to), Some(Node::File(_) | Node::Symlink(_)))
                                && tree.get(to) != Some(node))
                }
            },
        }
    }

    /// Thinks of an operation as made, if it makes sense.
    pub fn try_out(&mut self, op: Op, names: &[Name]) -> bool {
        let can = self.can(op, names);
        if can {
            self.begin(op, names);
        }
        can
    }

    /// The operation is about to be made; it [`Promises::can`] be.
    fn begin(&mut self, op: Op, names: &[Name]) {
        let mut tree = self.tree().clone();
        match op {
            Op::Write(name, at, cells) => {
                let file = self.file(name).unwrap_or_else(|| {
                    self.files.push(FileStates {
                        states: vec![Content {
                            cells: Vec::new(),
                            mode: 0o644,
                        }],
                        ..FileStates::default()
                    });
                    self.files.len() - 1
                });
                tree.insert(name, Node::File(file));
                self.writes += 1;
                let number = (file as u64 + 1) << 32 | self.writes;
                self.change(file, true, |content| {
                    let end = content.cells.len().max(at + cells);
                    content.cells.resize(end, 0);
                    content.cells[at..at + cells].fill(number);
                });
            }
            Op::Truncate(name, cells) => {
                if let Some(file) = self.file(name) {
                    self.change(file, true, |content| content.cells.resize(cells, 0));
                }
            }
            Op::Chmod(name, mode) => {
                if let Some(file) = self.file(name) {
                    self.change(file, false, |content| content.mode = mode);
                }
            }
            Op::Close(_) | Op::Fsync(_) => {}
            Op::Mkdir(name) => {
                tree.insert(name, Node::Folder);
            }
            Op::Symlink(name) => {
                tree.insert(name, Node::Symlink(name));
            }
            Op::Rmdir(name) | Op::Unlink(name) => {
                tree.remove(name);
            }
            Op::Link(from, to) => {
                let node = tree[from];
                if let Node::File(file) = node {
                    self.files[file].was_linked = true;
                }
                tree.insert(to, node);
            }
            Op::Rename(from, to) => {
                let mut moves = vec![(from, to)];
                for name in self.below(from) {
                    moves.extend(moved(name, from, to, names).map(|target| (name, target)));
                }
                for (from, to) in moves {
                    if let Some(node) = tree.remove(from) {
                        tree.insert(to, node);
                    }
                }
            }
        }
        self.trees.push(tree);
    }

    fn change(&mut self, file: usize, is_written: bool, change: impl FnOnce(&mut Content)) {
        let file = &mut self.files[file];
        let mut content = file.states.last().cloned().unwrap_or_default();
        change(&mut content);
        file.states.push(content);
        if is_written {
            file.written = file.states.len() - 1;
            file.is_dirty = true;
            file.is_published = false;
        }
    }

    /// It returned without an error.
    fn confirm(&mut self, op: Op) {
        match op {
            Op::Close(name) => self.confirm_file(name, false),
            Op::Fsync(name) => match self.file(name) {
                Some(_) => self.confirm_file(name, true),
                None => self.confirm_names(),
            },
            _ => {}
        }
    }

    /// The content of a file is kept, under the name that it has.
    fn confirm_file(&mut self, name: Name, is_on_disk: bool) {
        let tree = self.trees.len() - 1;
        let Some(file) = self.file(name).map(|file| &mut self.files[file]) else {
            return;
        };
        if file.is_doubtful {
            return;
        }
        let last = file.states.len() - 1;
        let floor = self.floors.entry(name).or_default();
        let linked = file.linked.get_or_insert(Floor {
            kill: tree,
            power: usize::MAX,
        });
        linked.kill = tree;
        let kept = match file.was_linked && !is_on_disk {
            true => file.written,
            false => last,
        };
        file.floor.kill = file.floor.kill.max(kept);
        floor.kill = tree;
        if is_on_disk {
            linked.power = tree;
            file.floor.power = last;
            floor.power = tree;
            file.is_dirty = false;
        }
    }

    /// All names are kept, but for those of files that have something unpublished in them; so are the attributes of files that
    /// have nothing.
    fn confirm_names(&mut self) {
        let tree = self.trees.len() - 1;
        let names: BTreeSet<Name> = self
            .trees
            .iter()
            .flat_map(|tree| tree.keys())
            .copied()
            .collect();
        for name in names {
            if let Some(file) = self.file(name).map(|file| &mut self.files[file]) {
                if file.is_dirty {
                    continue;
                }
                if file.is_published && !file.is_doubtful {
                    let last = file.states.len() - 1;
                    file.floor = Floor {
                        kill: last,
                        power: last,
                    };
                }
            }
            let floor = Floor {
                kill: tree,
                power: tree,
            };
            self.floors.insert(name, floor);
        }
    }

    /// Everything is published and on disk.
    pub fn all_is_kept(&mut self) {
        let tree = self.trees.len() - 1;
        for file in &mut self.files {
            let last = file.states.len() - 1;
            file.floor = Floor {
                kill: last,
                power: last,
            };
            file.linked = Some(Floor {
                kill: tree,
                power: tree,
            });
            file.is_dirty = false;
            file.is_published = true;
        }
        self.confirm_names();
    }

    /// It failed, and may have been done, in part or not at all.
    fn doubt(&mut self, op: Op) {
        match op {
            Op::Write(name, ..) | Op::Truncate(name, _) | Op::Chmod(name, _) => {
                if let Some(file) = self.file(name) {
                    self.files[file].is_doubtful = true;
                }
            }
            Op::Close(_) | Op::Fsync(_) => {}
            _ => {
                let before = self.trees.len() - 2;
                self.certain.get_or_insert(before);
            }
        }
    }

    /// What of all that is seen should not be, one sentence each.
    pub fn broken(&self, seen: &BTreeMap<String, Seen>, after: After) -> Vec<String> {
        let mut broken = Vec::new();
        let names = self.trees.iter().flat_map(|tree| tree.keys().copied());
        let mut names: BTreeSet<&str> = names.collect();
        names.extend(seen.keys().map(String::as_str));
        for name in names {
            let last = self.trees.len() - 1;
            let floor = self.floors.get(name).copied().unwrap_or_default();
            let is_doubtful =
                |node: &Node| matches!(node, Node::File(file) if self.files[*file].is_doubtful);
            let floor = match after {
                After::Nothing if self.tree().get(name).is_some_and(is_doubtful) => 0,
                After::Nothing => self.certain.unwrap_or(last),
                _ => floor.after(after, last),
            };
            let mut trees = self.trees[floor..].iter().rev();
            let there = seen.get(name);
            if !trees.any(|tree| self.is_so(tree.get(name), there, after).is_ok()) {
                let trees = self.trees[floor..].iter();
                let mut why: Vec<_> = trees
                    .filter_map(|tree| self.is_so(tree.get(name), there, after).err())
                    .collect();
                why.dedup();
                let there = there.map(Seen::short);
                broken.push(format!("{name}: {there:?}: {}", why.join(" or ")));
            }
        }
        for (number, file) in self.files.iter().enumerate() {
            let last = self.trees.len() - 1;
            let Some(from) = file.linked.map(|linked| linked.after(after, last)) else {
                continue;
            };
            let is_linked = |tree: &Tree| tree.values().any(|node| *node == Node::File(number));
            let Some(trees) = self.trees.get(from..) else {
                continue;
            };
            let is_there = || {
                seen.values()
                    .any(|seen| self.is_file(number, seen, after).is_ok())
            };
            if trees.iter().all(is_linked) && !is_there() {
                broken.push(format!(
                    "file {number}, which was never removed, is nowhere"
                ));
            }
        }
        broken
    }

    fn is_so(&self, node: Option<&Node>, seen: Option<&Seen>, after: After) -> Result<(), String> {
        match (node, seen) {
            (None, None) | (Some(Node::Folder), Some(Seen::Folder)) => Ok(()),
            (Some(Node::Symlink(name)), Some(Seen::Symlink(to)))
                if *to == Path::new(&format!("{TARGET}{name}")) =>
            {
                Ok(())
            }
            (Some(Node::File(file)), Some(seen)) => self.is_file(*file, seen, after),
            (Some(node), None) => Err(format!("{node:?} is lost")),
            (None, Some(seen)) => Err(format!("should not be there: {}", seen.short())),
            (Some(node), Some(seen)) => Err(format!("{node:?} shows as {}", seen.short())),
        }
    }

    /// Whether this is a state of the file that may be seen.
    fn is_file(&self, number: usize, seen: &Seen, after: After) -> Result<(), String> {
        let Seen::File(bytes, mode) = seen else {
            return Err(format!("file {number} shows as {}", seen.short()));
        };
        let bytes = bytes
            .as_ref()
            .map_err(|why| format!("file {number} is unreadable: {why}"))?;
        let file = &self.files[number];
        let last = file.states.len() - 1;
        let floor = match after {
            After::Nothing if file.is_doubtful => 0,
            _ => file.floor.after(after, last),
        };
        let states = &file.states[floor..];
        if bytes.len() % CELL != 0
            || !states
                .iter()
                .any(|state| state.cells.len() == bytes.len() / CELL)
        {
            // What was written in part may be so long.
            if !file.is_doubtful {
                let lengths: Vec<_> = states
                    .iter()
                    .map(|state| state.cells.len() * CELL)
                    .collect();
                return Err(format!(
                    "file {number} has {} bytes, not one of {lengths:?}",
                    bytes.len()
                ));
            }
        }
        if !states.iter().any(|state| state.mode == *mode) {
            return Err(format!("file {number} has mode {mode:o}"));
        }
        for (at, cell) in bytes.chunks(CELL).enumerate() {
            let Some(there) = number_of(cell) else {
                return Err(format!("cell {at} of file {number} is torn"));
            };
            let allowed = |state: &Content| state.cells.get(at) == Some(&there);
            let may_be_empty = file.is_doubtful && there == 0;
            if !may_be_empty && !states.iter().any(allowed) {
                let known: Vec<_> = states.iter().map(|state| state.cells.get(at)).collect();
                return Err(format!(
                    "cell {at} of file {number} has {there:x}, not one of {known:x?}"
                ));
            }
        }
        Ok(())
    }
}

fn is_below(name: &str, folder: &str) -> bool {
    let rest = name.strip_prefix(folder);
    rest.is_some_and(|rest| rest.starts_with('/'))
}

/// Where a name below a folder is when that was renamed, if there is such a name.
fn moved(name: Name, from: Name, to: Name, names: &[Name]) -> Option<Name> {
    let target = format!("{to}{}", name.strip_prefix(from)?);
    names.iter().copied().find(|name| *name == target)
}

/// What a cell is filled with.
fn cell_of(number: u64) -> [u8; CELL] {
    let mut cell = [0; CELL];
    for part in cell.chunks_mut(8) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    cell
}

/// The number of a cell; `None` if it is torn.
fn number_of(cell: &[u8]) -> Option<u64> {
    let (first, _) = cell.split_first_chunk()?;
    let is_whole = cell.chunks(8).all(|part| part == &first[..part.len()]);
    is_whole.then_some(u64::from_le_bytes(*first))
}

impl Seen {
    fn short(&self) -> String {
        match self {
            Self::File(Ok(bytes), mode) => {
                let cells: Vec<_> = bytes.chunks(CELL).map(number_of).collect();
                format!("a file of {} bytes {cells:x?}, mode {mode:o}", bytes.len())
            }
            other => format!("{other:?}"),
        }
    }
}

/// Everything below a folder. What is gone while it is looked at is not there.
pub fn look(root: &Path) -> io::Result<BTreeMap<String, Seen>> {
    let mut seen = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let below = folder.join(entry.file_name());
            let path = entry.path();
            let about = path.symlink_metadata()?;
            let shown = if about.is_dir() {
                folders.push(below.clone());
                Seen::Folder
            } else if about.is_symlink() {
                Seen::Symlink(fs::read_link(&path)?)
            } else {
                let bytes = fs::read(&path).map_err(|error| error.to_string());
                Seen::File(bytes, about.permissions().mode() & 0o7777)
            };
            seen.insert(below.to_string_lossy().into_owned(), shown);
        }
    }
    Ok(seen)
}

/// Operations in a folder, and what they promise.
pub struct Work {
    root: PathBuf,
    names: &'static [Name],
    open: BTreeMap<usize, File>,
    done: Vec<Op>,
    /// What was promised so far.
    pub promises: Promises,
}

impl Work {
    /// In an empty folder, with no other names than these.
    pub fn new(root: PathBuf, names: &'static [Name]) -> Self {
        Self {
            root,
            names,
            open: BTreeMap::new(),
            done: Vec::new(),
            promises: Promises::default(),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the operation makes sense now.
    pub fn can(&self, op: Op) -> bool {
        let is_open = |name: Name| {
            let file = self.promises.file(name);
            file.is_some_and(|file| self.open.contains_key(&file))
        };
        self.promises.can(op, self.names)
            && (!matches!(op, Op::Close(_)) || matches!(op, Op::Close(name) if is_open(name)))
    }

    /// An operation that makes sense now; `pick` gives a number below another.
    pub fn random(&self, pick: &mut dyn FnMut(usize) -> usize) -> Op {
        loop {
            let mut name = || self.names[pick(self.names.len())];
            let (one, other) = (name(), name());
            let op = match pick(16) {
                0..3 => Op::Write(one, pick(6), 1 + pick(3)),
                3 => Op::Write(one, pick(40), 20),
                4 => Op::Truncate(one, pick(8)),
                5 => Op::Chmod(one, [0o600, 0o640, 0o755][pick(3)]),
                6..8 => Op::Close(one),
                8 => Op::Fsync(one),
                9 => Op::Fsync(""),
                10 => Op::Mkdir(one),
                11 => Op::Rmdir(one),
                12 => Op::Unlink(one),
                13 => Op::Symlink(one),
                14 => Op::Link(one, other),
                _ => Op::Rename(one, other),
            };
            if self.can(op) {
                return op;
            }
        }
    }

    /// Makes an operation that [`Work::can`] be made.
    pub fn act(&mut self, op: Op) -> io::Result<()> {
        let file = match op {
            Op::Close(name) | Op::Fsync(name) => self.promises.file(name),
            _ => None,
        };
        self.promises.begin(op, self.names);
        self.done.push(op);
        let outcome = self.make(op, file);
        match &outcome {
            Ok(()) => self.promises.confirm(op),
            Err(_) => self.promises.doubt(op),
        }
        outcome
    }

    fn make(&mut self, op: Op, file: Option<usize>) -> io::Result<()> {
        let path = |name: Name| self.root.join(name);
        match op {
            Op::Write(name, at, cells) => {
                let number = self.promises.file(name).expect("it has just begun");
                if let Entry::Vacant(place) = self.open.entry(number) {
                    let mut how = OpenOptions::new();
                    how.read(true)
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .mode(0o644);
                    let file = how.open(path(name))?;
                    place.insert(file);
                }
                let state = self.promises.files[number].states.last();
                let filled = state.expect("it has just begun").cells[at];
                let bytes = cell_of(filled).repeat(cells);
                self.open[&number].write_all_at(&bytes, (at * CELL) as u64)
            }
            Op::Truncate(name, cells) => truncate(&path(name), (cells * CELL) as i64),
            Op::Chmod(name, mode) => fs::set_permissions(path(name), Permissions::from_mode(mode)),
            Op::Close(_) => match file.and_then(|file| self.open.remove(&file)) {
                Some(file) => close(file),
                None => Ok(()),
            },
            Op::Fsync(name) => match file.and_then(|file| self.open.get(&file)) {
                Some(file) => file.sync_all(),
                None => File::open(path(name))?.sync_all(),
            },
            Op::Mkdir(name) => fs::create_dir(path(name)),
            Op::Rmdir(name) => fs::remove_dir(path(name)),
            Op::Unlink(name) => fs::remove_file(path(name)),
            Op::Symlink(name) => symlink(format!("{TARGET}{name}"), path(name)),
            Op::Link(from, to) => fs::hard_link(path(from), path(to)),
            Op::Rename(from, to) => fs::rename(path(from), path(to)),
        }
    }

    /// Lets go of all files without asking how that went, as a program does that ends.
    pub fn abandon(&mut self) {
        self.open.clear();
    }

    /// Which promises are broken, with what was done; nothing if all is well.
    pub fn broken(&self, after: After) -> Vec<String> {
        let mut broken = match look(&self.root) {
            Ok(seen) => self.promises.broken(&seen, after),
            Err(error) => vec![format!("it can't be looked at: {error}")],
        };
        if !broken.is_empty() {
            broken.insert(
                0,
                format!("{} after {after:?}, {:?}", self.root.display(), self.done),
            );
        }
        broken
    }
}

/// By path: nothing is opened.
fn truncate(path: &Path, length: i64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a string that ends in NUL.
    match unsafe { libc::truncate(path.as_ptr(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes a file, and tells what that says of writes before.
fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: it is ours, and nobody uses it afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[Name] = &["a", "b", "d", "d/a", "e", "e/a"];

    /// A folder on this machine's disk, which loses nothing.
    fn work(name: &str) -> Work {
        let root =
            std::env::temp_dir().join(format!("p2pfs-promises-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).unwrap();
        Work::new(root, NAMES)
    }

    fn do_all(work: &mut Work, ops: &[Op]) {
        for op in ops {
            assert!(work.can(*op), "{op:?}");
            work.act(*op).unwrap();
        }
    }

    #[test]
    fn a_folder_that_loses_nothing_breaks_nothing() {
        let mut work = work("random");
        let mut number = 7u64;
        let mut pick = |below: usize| {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (number >> 33) as usize % below
        };
        for _ in 0..2000 {
            let op = work.random(&mut pick);
            work.act(op).unwrap();
            assert_eq!(work.broken(After::Nothing), [""; 0]);
        }
        for after in [After::Kill, After::PowerLoss] {
            assert_eq!(work.broken(after), [""; 0]);
        }
        fs::remove_dir_all(work.root()).unwrap();
    }

    #[test]
    fn what_was_confirmed_may_not_be_lost_and_what_was_not_may() {
        let mut work = work("lost");
        do_all(
            &mut work,
            &[
                Op::Write("a", 0, 2),
                Op::Close("a"),
                Op::Write("b", 0, 1),
                Op::Fsync("b"),
            ],
        );
        fs::remove_file(work.root().join("a")).unwrap();
        assert_eq!(work.broken(After::PowerLoss), [""; 0]);
        assert_eq!(
            work.broken(After::Kill).len(),
            3,
            "{:?}",
            work.broken(After::Kill)
        );
        fs::remove_file(work.root().join("b")).unwrap();
        assert_ne!(work.broken(After::PowerLoss), [""; 0]);
        fs::remove_dir_all(work.root()).unwrap();
    }

    #[test]
    fn close_confirms_permissions_with_what_was_written_and_not_by_themselves() {
        for is_linked in [false, true] {
            let mut work = work("permissions");
            do_all(&mut work, &[Op::Write("a", 0, 1)]);
            if is_linked {
                do_all(&mut work, &[Op::Link("a", "b")]);
            }
            do_all(&mut work, &[Op::Chmod("a", 0o600), Op::Close("a")]);
            let path = work.root().join("a");
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            let broken = work.broken(After::Kill);
            assert_eq!(broken.is_empty(), is_linked, "{broken:?}");
            fs::remove_dir_all(work.root()).unwrap();
        }
    }

    #[test]
    fn old_cells_may_show_until_they_are_synced_and_torn_ones_never() {
        let mut work = work("cells");
        do_all(&mut work, &[Op::Write("a", 0, 3), Op::Fsync("a")]);
        let before = fs::read(work.root().join("a")).unwrap();
        do_all(&mut work, &[Op::Write("a", 1, 1)]);
        let mut bytes = fs::read(work.root().join("a")).unwrap();
        assert_ne!(before, bytes);
        fs::write(work.root().join("a"), &before).unwrap();
        assert_eq!(work.broken(After::PowerLoss), [""; 0]);
        bytes[CELL + 9] ^= 1;
        fs::write(work.root().join("a"), &bytes).unwrap();
        assert_ne!(work.broken(After::PowerLoss), [""; 0]);
        fs::write(work.root().join("a"), &before).unwrap();
        work.promises.confirm(Op::Fsync("a"));
        assert_ne!(work.broken(After::PowerLoss), [""; 0]);
        fs::remove_dir_all(work.root()).unwrap();
    }

    #[test]
    fn a_file_that_is_renamed_is_under_one_of_its_names() {
        let mut work = work("renamed");
        do_all(
            &mut work,
            &[
                Op::Mkdir("d"),
                Op::Write("d/a", 0, 1),
                Op::Fsync("d/a"),
                Op::Fsync(""),
                Op::Rename("d", "e"),
            ],
        );
        assert_eq!(work.broken(After::PowerLoss), [""; 0]);
        fs::rename(work.root().join("e"), work.root().join("d")).unwrap();
        assert_eq!(work.broken(After::PowerLoss), [""; 0]);
        fs::remove_file(work.root().join("d/a")).unwrap();
        assert_ne!(work.broken(After::PowerLoss), [""; 0]);
        fs::remove_dir_all(work.root()).unwrap();
    }
}
