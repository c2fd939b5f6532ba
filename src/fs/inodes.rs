//! The table of inode numbers: which number stands where. Pure.
//!
//! An inode has a link for each of its names that is known, a (folder, name) pair, or none once they were removed or given to
//! other files. A rename moves the link. A path is found by walking the links up, so renaming a folder renames all below it at
//! once. Names of one file (hard links) are found to be so by its id.
//!
//! Invariants: the root is number 1 and is always there. An inode is kept exactly as long as the kernel knows it
//! (`lookups`), something here needs it (`pins`), or inodes linked below it are kept; so memory follows what the kernel holds.
//! A number is a hash of the folder's number and the name under which the inode first appeared, or the start of the file's id
//! (the next free one on a collision), so that numbers are mostly the same after a remount.
//!
//! A name stands here once, in its inode: the table of links has numbers and hashes alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
};

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::manifest::{
    Entry, FileId, HybridTime, Kind, NAME_BYTES_MAX, Name, Shown, Timestamp, TreePath, may_be_copy,
};

/// Most paths have no more names, and so take one block of memory.
const DEPTH_MOSTLY: usize = 8;

/// The root's number, fixed by the kernel's protocol.
pub(crate) const ROOT: u64 = 1;

/// What an inode was last seen to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    pub(crate) modified: Timestamp,
    /// When any of this was last changed.
    pub(crate) changed: HybridTime,
    /// Which file, where that has several names, or had.
    pub(crate) file: Option<FileId>,
    /// How many names there are.
    pub(crate) links: u32,
}

impl From<Shown> for Facts {
    fn from(shown: Shown) -> Self {
        Self {
            kind: shown.entry.kind,
            mode: shown.entry.mode,
            owner: shown.entry.owner,
            group: shown.entry.group,
            modified: shown.entry.modified,
            changed: shown.time,
            file: shown.link.map(|link| link.file),
            links: 1,
        }
    }
}

impl Facts {
    pub(crate) fn of(shown: &Shown) -> Self {
        Self {
            file: shown.link.as_ref().map(|link| link.file),
            ..Self::of_entry(&shown.entry, shown.time)
        }
    }

    pub(crate) fn of_entry(entry: &Entry, changed: HybridTime) -> Self {
        Self {
            kind: entry.kind.clone(),
            mode: entry.mode,
            owner: entry.owner,
            group: entry.group,
            modified: entry.modified,
            changed,
            file: None,
            links: 1,
        }
    }

    /// Whether an entry can still be the same inode. The kernel keeps pages, size and modification time of a file that it
    /// knows, so a file with others is another inode; a folder stays the same one whatever its attributes.
    fn is_same_inode(&self, other: &Self) -> bool {
        if let (Some(mine), Some(theirs)) = (self.file, other.file)
            && mine != theirs
        {
            return false;
        }
        match (&self.kind, &other.kind) {
            (Kind::File(mine), Kind::File(theirs)) => {
                mine == theirs && self.modified == other.modified
            }
            (mine, theirs) => mine == theirs,
        }
    }
}

#[derive(Debug)]
struct Inode {
    /// Mostly one, which is in its place then.
    links: SmallVec<[(u64, Name); 1]>,
    facts: Facts,
    /// The access time that a program has set; nothing else is remembered of it.
    accessed: Option<Timestamp>,
    lookups: u64,
    pins: u32,
    children: u32,
    /// It lost its last name to something else that is shown there, which the kernel may not have heard yet.
    is_outdated: bool,
}

impl Inode {
    fn is_at(&self, folder: u64, name: &Name) -> bool {
        let mut links = self.links.iter();
        links.any(|(there, named)| *there == folder && named == name)
    }

    /// Whether what a name shows can still be this inode, which has the name already.
    fn stays(&self, facts: &Facts) -> bool {
        // One that is a file of its own by now shares its inode with no other name.
        let is_apart = facts.file.is_none() && self.links.len() > 1;
        !is_apart && self.facts.is_same_inode(facts)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inodes {
    /// Boxed: a table keeps room free for as many again, and more.
    by_number: HashMap<u64, Box<Inode>>,
    /// Numbers of inodes, and hashes of their links, by these.
    links: HashTable<(u64, u64)>,
    /// Inodes of files that have several names.
    by_file: HashMap<FileId, u64>,
    /// The names in use that may be those of conflict copies: every change elsewhere asks for them.
    copies: BTreeMap<u64, BTreeSet<Name>>,
    hasher: RandomState,
}

impl Inodes {
    pub(crate) fn new() -> Self {
        let root = Inode {
            links: SmallVec::new(),
            facts: Facts {
                kind: Kind::Directory,
                mode: 0o755,
                owner: 0,
                group: 0,
                modified: Timestamp(0),
                changed: HybridTime(0),
                file: None,
                links: 1,
            },
            accessed: None,
            lookups: 0,
            pins: 0,
            children: 0,
            is_outdated: false,
        };
        Self {
            by_number: HashMap::from([(ROOT, Box::new(root))]),
            links: HashTable::new(),
            by_file: HashMap::new(),
            copies: BTreeMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Where an inode stands, by one of its names; `None` when it is not known or has no name any more.
    pub(crate) fn path(&self, number: u64) -> Option<TreePath> {
        if number == ROOT {
            return Some(TreePath::root());
        }
        let inode = self.by_number.get(&number)?;
        inode.links.iter().find_map(|link| self.path_of(link))
    }

    /// All places where an inode is known to stand.
    pub(crate) fn paths(&self, number: u64) -> Vec<TreePath> {
        if number == ROOT {
            return vec![TreePath::root()];
        }
        let links = self.by_number.get(&number).map(|inode| &inode.links);
        let links = links.into_iter().flatten();
        links.filter_map(|link| self.path_of(link)).collect()
    }

    fn path_of(&self, link: &(u64, Name)) -> Option<TreePath> {
        let mut names = Vec::with_capacity(DEPTH_MOSTLY);
        names.push(link.1.clone());
        let mut at = link.0;
        while at != ROOT {
            // Folders have one name.
            let (folder, name) = self.by_number.get(&at)?.links.first()?;
            names.push(name.clone());
            at = *folder;
        }
        names.reverse();
        TreePath::of_names(names).ok()
    }

    /// The links of the inode that has a name, or of that of a file.
    pub(crate) fn links(&self, number: u64) -> Vec<(u64, Name)> {
        let inode = self.by_number.get(&number);
        inode.map_or(Vec::new(), |inode| inode.links.to_vec())
    }

    /// Which file with several names an inode is.
    pub(crate) fn file(&self, number: u64) -> Option<FileId> {
        let inode = self.by_number.get(&number)?;
        inode.facts.file
    }

    /// The inode of a file with several names, if it is known.
    pub(crate) fn of_file(&self, file: &FileId) -> Option<u64> {
        self.by_file.get(file).copied()
    }

    /// The inode that a name stands for, if it is known.
    pub(crate) fn child(&self, folder: u64, name: &Name) -> Option<u64> {
        let hash = self.hasher.hash_one((folder, name));
        let found = self.links.find(hash, |(number, _)| {
            let inode = self.by_number.get(number);
            inode.is_some_and(|inode| inode.is_at(folder, name))
        });
        found.map(|(number, _)| *number)
    }

    /// The number to show for a name in a plain listing, without keeping anything for it.
    pub(crate) fn number_for(&self, folder: u64, name: &Name, facts: &Facts) -> u64 {
        let known = self.child(folder, name);
        let of_file = || facts.file.and_then(|file| self.of_file(&file));
        known
            .or_else(of_file)
            .unwrap_or_else(|| first_number(folder, name, facts))
    }

    /// The folder that an inode stands in.
    pub(crate) fn parent(&self, number: u64) -> Option<u64> {
        let inode = self.by_number.get(&number)?;
        inode.links.first().map(|(folder, _)| *folder)
    }

    /// Whether the kernel was told of an inode and hasn't forgotten it. Otherwise it may hold that its names are absent.
    pub(crate) fn is_told(&self, number: u64) -> bool {
        let inode = self.by_number.get(&number);
        inode.is_some_and(|inode| inode.lookups > 0)
    }

    pub(crate) fn facts(&self, number: u64) -> Option<&Facts> {
        self.by_number.get(&number).map(|inode| &inode.facts)
    }

    /// The access time that was set, if one was.
    pub(crate) fn accessed(&self, number: u64) -> Option<Timestamp> {
        self.by_number.get(&number).and_then(|inode| inode.accessed)
    }

    /// Notes an access time that was set; it lasts as long as the inode is known.
    pub(crate) fn set_accessed(&mut self, number: u64, accessed: Timestamp) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.accessed = Some(accessed);
        }
    }

    /// Notes a change made here: the inode stays, whatever it is now.
    pub(crate) fn set_facts(&mut self, number: u64, facts: Facts) {
        self.forget_file(number);
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.facts = facts;
            self.note_file(number);
        }
    }

    /// Has an inode found by the id of its file.
    fn note_file(&mut self, number: u64) {
        let file = self.file(number);
        if let Some(file) = file {
            self.by_file.entry(file).or_insert(number);
        }
    }

    /// An inode is not to be found by the id of its file any more.
    fn forget_file(&mut self, number: u64) {
        let file = self.file(number);
        if let Some(file) = file
            && self.by_file.get(&file) == Some(&number)
        {
            self.by_file.remove(&file);
        }
    }

    /// Whether what a name shows, as these facts, is what the kernel takes for it, as far as it was told.
    pub(crate) fn is_as_told(&self, folder: u64, name: &Name, facts: &Facts) -> bool {
        let number = self.child(folder, name);
        let inode = number.and_then(|number| self.by_number.get(&number));
        inode.is_none_or(|inode| inode.lookups == 0 || inode.stays(facts))
    }

    /// Whether an inode has no name any more, and the kernel may still take it for what one stands for.
    pub(crate) fn is_outdated(&self, number: u64) -> bool {
        let inode = self.by_number.get(&number);
        inode.is_some_and(|inode| inode.is_outdated && inode.links.is_empty())
    }

    /// Takes from an inode a name under which something else is shown by now, or nothing.
    pub(crate) fn outdate(&mut self, folder: u64, name: &Name) {
        let number = self.child(folder, name);
        if let Some(inode) = number.and_then(|number| self.by_number.get_mut(&number)) {
            inode.is_outdated = true;
        }
        self.detach(folder, name);
    }

    /// Whether what is shown at the inode's place is still this inode; notes newer facts if so.
    pub(crate) fn refresh(&mut self, number: u64, facts: Facts) -> bool {
        match self.by_number.get_mut(&number) {
            Some(inode) if number == ROOT || inode.stays(&facts) => {
                self.set_facts(number, facts);
                true
            }
            _ => false,
        }
    }

    /// The inode for what a folder shows under a name. The one that was known keeps the name if it can still be that;
    /// otherwise it loses it, to the inode of the file that it is a name of, or to a new one.
    pub(crate) fn resolve(&mut self, folder: u64, name: &Name, facts: Facts) -> u64 {
        let child = self.child(folder, name);
        let shared = facts.file.and_then(|file| self.of_file(&file));
        if let Some(number) = shared.filter(|shared| Some(*shared) != child) {
            let inode = self.by_number.get(&number);
            if inode.is_some_and(|inode| inode.facts.is_same_inode(&facts)) {
                self.pin(folder);
                self.pin(number);
                self.outdate(folder, name);
                self.attach(number, folder, name.clone());
                self.set_facts(number, facts);
                self.unpin(number);
                self.unpin(folder);
                return number;
            }
            // Its other names find the new one in turn.
            self.forget_file(number);
        }
        let Some(number) = child else {
            return self.link(folder, name, facts);
        };
        match self.by_number.get(&number) {
            Some(inode) if inode.stays(&facts) => {
                self.set_facts(number, facts);
                number
            }
            _ => {
                self.forget_file(number);
                self.replace(folder, name, facts)
            }
        }
    }

    /// One more name of an inode, which no inode has.
    pub(crate) fn add_link(&mut self, number: u64, folder: u64, name: &Name) {
        self.detach(folder, name);
        if self.by_number.contains_key(&number) {
            self.attach(number, folder, name.clone());
        }
    }

    /// A new inode under a name, which the one that had it loses.
    pub(crate) fn replace(&mut self, folder: u64, name: &Name, facts: Facts) -> u64 {
        // Between the two the folder may have nothing else that keeps it.
        self.pin(folder);
        self.outdate(folder, name);
        let number = self.link(folder, name, facts);
        self.unpin(folder);
        number
    }

    /// Takes its names from an inode that keeps them no longer: the next look at one of them makes a new one.
    pub(crate) fn unname(&mut self, number: u64) {
        self.forget_file(number);
        for (folder, name) in self.links(number) {
            self.outdate(folder, &name);
        }
    }

    /// A new inode under a name that no inode has.
    pub(crate) fn link(&mut self, folder: u64, name: &Name, facts: Facts) -> u64 {
        let mut number = first_number(folder, name, &facts);
        while number <= ROOT || self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        let inode = Inode {
            links: SmallVec::new(),
            facts,
            accessed: None,
            lookups: 0,
            pins: 0,
            children: 0,
            is_outdated: false,
        };
        self.by_number.insert(number, Box::new(inode));
        self.note_file(number);
        self.attach(number, folder, name.clone());
        number
    }

    /// Takes the name from an inode; whoever has it open keeps it.
    pub(crate) fn detach(&mut self, folder: u64, name: &Name) -> Option<u64> {
        let number = self.loosen(folder, name)?;
        self.sweep(folder);
        self.sweep(number);
        Some(number)
    }

    /// Moves the inode of a name, if it is known, to another name, whose inode loses it.
    pub(crate) fn rename(&mut self, from: (u64, &Name), to: (u64, &Name)) {
        if from == to {
            return;
        }
        self.detach(to.0, to.1);
        if let Some(number) = self.loosen(from.0, from.1) {
            self.attach(number, to.0, to.1.clone());
            self.sweep(from.0);
        }
    }

    /// Lets two names change their inodes.
    pub(crate) fn exchange(&mut self, a: (u64, &Name), b: (u64, &Name)) {
        let (at_a, at_b) = (self.loosen(a.0, a.1), self.loosen(b.0, b.1));
        for (number, (folder, name)) in [(at_a, b), (at_b, a)] {
            if let Some(number) = number {
                self.attach(number, folder, name.clone());
            }
        }
        self.sweep(a.0);
        self.sweep(b.0);
    }

    /// Gives an inode a link.
    fn attach(&mut self, number: u64, folder: u64, name: Name) {
        let hash = self.hasher.hash_one((folder, &name));
        if may_be_copy(&name) {
            self.copies.entry(folder).or_default().insert(name.clone());
        }
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.links.push((folder, name));
            inode.is_outdated = false;
        }
        self.links
            .insert_unique(hash, (number, hash), |(_, hash)| *hash);
        if let Some(folder) = self.by_number.get_mut(&folder) {
            folder.children += 1;
        }
    }

    /// Takes a link from its inode; keeps both inode and folder, needed or not.
    fn loosen(&mut self, folder: u64, name: &Name) -> Option<u64> {
        let hash = self.hasher.hash_one((folder, name));
        let by_number = &mut self.by_number;
        let entry = self.links.find_entry(hash, |(number, _)| {
            let inode = by_number.get(number);
            inode.is_some_and(|inode| inode.is_at(folder, name))
        });
        let ((number, _), _) = entry.ok()?.remove();
        if let Some(names) = self.copies.get_mut(&folder)
            && names.remove(name)
            && names.is_empty()
        {
            self.copies.remove(&folder);
        }
        if let Some(inode) = by_number.get_mut(&number) {
            inode
                .links
                .retain(|link| link.0 != folder || link.1 != *name);
        }
        if let Some(folder) = by_number.get_mut(&folder) {
            folder.children = folder.children.saturating_sub(1);
        }
        Some(number)
    }

    /// The kernel was told the number once more.
    pub(crate) fn look(&mut self, number: u64) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.lookups += 1;
        }
    }

    /// The kernel has forgotten the number so many times.
    pub(crate) fn forget(&mut self, number: u64, times: u64) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.lookups = inode.lookups.saturating_sub(times);
        }
        self.sweep(number);
    }

    /// Something here needs the inode until it is unpinned.
    pub(crate) fn pin(&mut self, number: u64) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.pins += 1;
        }
    }

    /// How many need it here.
    pub(crate) fn pins(&self, number: u64) -> u32 {
        self.by_number.get(&number).map_or(0, |inode| inode.pins)
    }

    pub(crate) fn unpin(&mut self, number: u64) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.pins = inode.pins.saturating_sub(1);
        }
        self.sweep(number);
    }

    /// Every inode with its children: what a change of unknown extent may concern.
    pub(crate) fn all_links(&self) -> BTreeMap<u64, Vec<Name>> {
        let mut all: BTreeMap<u64, Vec<Name>> = BTreeMap::new();
        let links = self.by_number.values().flat_map(|inode| &inode.links);
        for (folder, name) in links {
            all.entry(*folder).or_default().push(name.clone());
        }
        all
    }

    /// The names in use in a folder that may be those of conflict copies.
    pub(crate) fn copies(&self, folder: u64) -> impl Iterator<Item = &Name> {
        self.copies.get(&folder).into_iter().flatten()
    }

    /// Removes an inode that nobody needs, and folders above it that were kept for it alone.
    fn sweep(&mut self, number: u64) {
        let mut left = vec![number];
        while let Some(at) = left.pop() {
            let Some(inode) = self.by_number.get(&at).filter(|_| at != ROOT) else {
                continue;
            };
            if inode.lookups > 0 || inode.pins > 0 || inode.children > 0 {
                continue;
            }
            self.forget_file(at);
            for (folder, name) in self.links(at) {
                self.loosen(folder, &name);
                left.push(folder);
            }
            self.by_number.remove(&at);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Panics when an invariant doesn't hold.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for (number, inode) in &self.by_number {
            for (folder, name) in &inode.links {
                assert_eq!(self.child(*folder, name), Some(*number));
                assert!(self.by_number.contains_key(folder), "parents are kept");
            }
            let links = self.by_number.values().flat_map(|inode| &inode.links);
            let below = links.filter(|(folder, _)| folder == number);
            assert_eq!(
                inode.children as usize,
                below.count(),
                "children are counted"
            );
            assert!(
                *number == ROOT || inode.lookups > 0 || inode.pins + inode.children > 0,
                "nothing is kept for nobody"
            );
        }
        let links = self.by_number.values().map(|inode| inode.links.len());
        assert_eq!(links.sum::<usize>(), self.links.len());
        let links = self.by_number.values().flat_map(|inode| &inode.links);
        let copies: BTreeSet<_> = links.filter(|(_, name)| may_be_copy(name)).collect();
        let known = self.copies.values().map(BTreeSet::len);
        assert_eq!(known.sum::<usize>(), copies.len());
        for (folder, name) in copies {
            assert!(self.copies(*folder).any(|copy| copy == name));
        }
        for (file, number) in &self.by_file {
            let facts = self.facts(*number).expect("it is kept");
            assert_eq!(facts.file.as_ref(), Some(file));
        }
    }
}

/// The number to try first for a new inode.
fn first_number(folder: u64, name: &Name, facts: &Facts) -> u64 {
    if let Some(start) = facts.file.as_ref().and_then(|file| file.first_chunk()) {
        return u64::from_le_bytes(*start);
    }
    let mut bytes = [0; 8 + NAME_BYTES_MAX];
    let length = 8 + name.as_bytes().len();
    let (number, rest) = bytes.split_at_mut(8);
    number.copy_from_slice(&folder.to_le_bytes());
    for (to, from) in rest.iter_mut().zip(name.as_bytes()) {
        *to = *from;
    }
    let hash = blake3::hash(bytes.get(..length).unwrap_or_default());
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    u64::from_le_bytes(first)
}

#[cfg(test)]
#[path = "inodes/tests.rs"]
mod tests;
