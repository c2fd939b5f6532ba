//! The table of inode numbers: which number stands where. Pure.
//!
//! An inode has one link, a (folder, name) pair, or none once its name was removed or given to another file. A rename moves
//! the link. A path is found by walking the links up, so renaming a folder renames all below it at once.
//!
//! Invariants: the root is number 1 and is always there. An inode is kept exactly as long as the kernel knows it
//! (`lookups`), something here needs it (`pins`), or inodes linked below it are kept; so memory follows what the kernel holds.
//! A number is a hash of the path at which the inode first appeared (the next free one on a collision), so that numbers are
//! mostly the same after a remount.

use std::collections::{BTreeMap, HashMap};

use crate::manifest::{Entry, HybridTime, Kind, Name, Shown, Timestamp, TreePath, may_be_copy};

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
}

impl Facts {
    pub(crate) fn of(shown: &Shown) -> Self {
        Self::of_entry(&shown.entry, shown.time)
    }

    pub(crate) fn of_entry(entry: &Entry, changed: HybridTime) -> Self {
        Self {
            kind: entry.kind.clone(),
            mode: entry.mode,
            owner: entry.owner,
            group: entry.group,
            modified: entry.modified,
            changed,
        }
    }

    /// Whether an entry can still be the same inode. The kernel keeps pages, size and modification time of a file that it
    /// knows, so a file with others is another inode; a folder stays the same one whatever its attributes.
    fn is_same_inode(&self, other: &Self) -> bool {
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
    link: Option<(u64, Name)>,
    facts: Facts,
    lookups: u64,
    pins: u64,
    children: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inodes {
    by_number: HashMap<u64, Inode>,
    links: HashMap<(u64, Name), u64>,
}

impl Inodes {
    pub(crate) fn new() -> Self {
        let root = Inode {
            link: None,
            facts: Facts {
                kind: Kind::Directory,
                mode: 0o755,
                owner: 0,
                group: 0,
                modified: Timestamp(0),
                changed: HybridTime(0),
            },
            lookups: 0,
            pins: 0,
            children: 0,
        };
        Self {
            by_number: HashMap::from([(ROOT, root)]),
            links: HashMap::new(),
        }
    }

    /// Where an inode stands; `None` when it is not known or has no name any more.
    pub(crate) fn path(&self, number: u64) -> Option<TreePath> {
        let mut names = Vec::new();
        let mut at = number;
        while at != ROOT {
            let (folder, name) = self.by_number.get(&at)?.link.as_ref()?;
            names.push(name);
            at = *folder;
        }
        names
            .into_iter()
            .rev()
            .try_fold(TreePath::root(), |path, name| path.join(name).ok())
    }

    /// The inode that a name stands for, if it is known.
    pub(crate) fn child(&self, folder: u64, name: &Name) -> Option<u64> {
        self.links.get(&(folder, name.clone())).copied()
    }

    /// The number to show for a name in a plain listing, without keeping anything for it.
    pub(crate) fn number_for(&self, folder: u64, name: &Name) -> u64 {
        self.child(folder, name)
            .unwrap_or_else(|| self.first_number(folder, name))
    }

    /// The folder that an inode stands in.
    pub(crate) fn parent(&self, number: u64) -> Option<u64> {
        let inode = self.by_number.get(&number)?;
        inode.link.as_ref().map(|(folder, _)| *folder)
    }

    pub(crate) fn facts(&self, number: u64) -> Option<&Facts> {
        self.by_number.get(&number).map(|inode| &inode.facts)
    }

    /// Notes a change made here: the inode stays, whatever it is now.
    pub(crate) fn set_facts(&mut self, number: u64, facts: Facts) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.facts = facts;
        }
    }

    /// Whether what is shown at the inode's place is still this inode; notes newer facts if so.
    pub(crate) fn refresh(&mut self, number: u64, facts: Facts) -> bool {
        match self.by_number.get_mut(&number) {
            Some(inode) if number == ROOT || inode.facts.is_same_inode(&facts) => {
                inode.facts = facts;
                true
            }
            _ => false,
        }
    }

    /// The inode for what a folder shows under a name. The one that was known keeps the name if it can still be that;
    /// otherwise it loses it to a new one.
    pub(crate) fn resolve(&mut self, folder: u64, name: &Name, facts: Facts) -> u64 {
        if let Some(number) = self.child(folder, name) {
            if self.refresh(number, facts.clone()) {
                return number;
            }
            return self.replace(folder, name, facts);
        }
        self.link(folder, name, facts)
    }

    /// A new inode under a name, which the one that had it loses.
    pub(crate) fn replace(&mut self, folder: u64, name: &Name, facts: Facts) -> u64 {
        // Between the two the folder may have nothing else that keeps it.
        self.pin(folder);
        self.detach(folder, name);
        let number = self.link(folder, name, facts);
        self.unpin(folder);
        number
    }

    /// A new inode under a name that no inode has.
    pub(crate) fn link(&mut self, folder: u64, name: &Name, facts: Facts) -> u64 {
        let mut number = self.first_number(folder, name);
        while number <= ROOT || self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.by_number.insert(
            number,
            Inode {
                link: Some((folder, name.clone())),
                facts,
                lookups: 0,
                pins: 0,
                children: 0,
            },
        );
        self.links.insert((folder, name.clone()), number);
        if let Some(folder) = self.by_number.get_mut(&folder) {
            folder.children += 1;
        }
        number
    }

    /// Takes the name from an inode; whoever has it open keeps it.
    pub(crate) fn detach(&mut self, folder: u64, name: &Name) -> Option<u64> {
        let number = self.links.remove(&(folder, name.clone()))?;
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.link = None;
        }
        self.drop_child(folder);
        self.sweep(number);
        Some(number)
    }

    /// Moves the inode of a name, if it is known, to another name, whose inode loses it.
    pub(crate) fn rename(&mut self, from: (u64, &Name), to: (u64, &Name)) {
        if from == to {
            return;
        }
        self.detach(to.0, to.1);
        if let Some(number) = self.links.remove(&(from.0, from.1.clone())) {
            self.links.insert((to.0, to.1.clone()), number);
            if let Some(inode) = self.by_number.get_mut(&number) {
                inode.link = Some((to.0, to.1.clone()));
            }
            if let Some(folder) = self.by_number.get_mut(&to.0) {
                folder.children += 1;
            }
            self.drop_child(from.0);
        }
    }

    /// Lets two names change their inodes.
    pub(crate) fn exchange(&mut self, a: (u64, &Name), b: (u64, &Name)) {
        let (at_a, at_b) = (self.child(a.0, a.1), self.child(b.0, b.1));
        for (from, to, number) in [(a, b, at_a), (b, a, at_b)] {
            let Some(number) = number else { continue };
            if self.links.get(&(from.0, from.1.clone())) == Some(&number) {
                self.links.remove(&(from.0, from.1.clone()));
            }
            self.links.insert((to.0, to.1.clone()), number);
            if let Some(inode) = self.by_number.get_mut(&number) {
                inode.link = Some((to.0, to.1.clone()));
            }
            if let Some(folder) = self.by_number.get_mut(&to.0) {
                folder.children += 1;
            }
            if let Some(folder) = self.by_number.get_mut(&from.0) {
                folder.children = folder.children.saturating_sub(1);
            }
        }
        self.sweep(a.0);
        self.sweep(b.0);
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
    pub(crate) fn pins(&self, number: u64) -> u64 {
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
        for (folder, name) in self.links.keys() {
            all.entry(*folder).or_default().push(name.clone());
        }
        all
    }

    /// The names in use that may be those of conflict copies.
    pub(crate) fn copies(&self) -> BTreeMap<u64, Vec<Name>> {
        let mut copies: BTreeMap<u64, Vec<Name>> = BTreeMap::new();
        for (folder, name) in self.links.keys().filter(|(_, name)| may_be_copy(name)) {
            copies.entry(*folder).or_default().push(name.clone());
        }
        copies
    }

    fn drop_child(&mut self, folder: u64) {
        if let Some(inode) = self.by_number.get_mut(&folder) {
            inode.children = inode.children.saturating_sub(1);
        }
        self.sweep(folder);
    }

    /// Removes an inode that nobody needs, and folders above it that were kept for it alone.
    fn sweep(&mut self, number: u64) {
        let mut at = number;
        while at != ROOT {
            match self.by_number.get(&at) {
                Some(inode) if inode.lookups == 0 && inode.pins == 0 && inode.children == 0 => {}
                _ => return,
            }
            let Some(inode) = self.by_number.remove(&at) else {
                return;
            };
            let Some((folder, name)) = inode.link else {
                return;
            };
            self.links.remove(&(folder, name));
            if let Some(folder) = self.by_number.get_mut(&folder) {
                folder.children = folder.children.saturating_sub(1);
            }
            at = folder;
        }
    }

    fn first_number(&self, folder: u64, name: &Name) -> u64 {
        let mut hasher = blake3::Hasher::new();
        if let Some(path) = self.path(folder) {
            for step in path.names() {
                hasher.update(step.as_bytes());
                hasher.update(b"/");
            }
        }
        hasher.update(name.as_bytes());
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Panics when an invariant doesn't hold.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for (number, inode) in &self.by_number {
            if let Some((folder, name)) = &inode.link {
                assert_eq!(self.links.get(&(*folder, name.clone())), Some(number));
                assert!(self.by_number.contains_key(folder), "parents are kept");
            }
            let below = self.links.keys().filter(|(folder, _)| folder == number);
            assert_eq!(inode.children, below.count() as u64, "children are counted");
            assert!(
                *number == ROOT || inode.lookups + inode.pins + inode.children > 0,
                "nothing is kept for nobody"
            );
        }
        for ((_, name), number) in &self.links {
            let inode = &self.by_number[number];
            assert_eq!(inode.link.as_ref().map(|(_, name)| name), Some(name));
        }
    }
}

#[cfg(test)]
#[path = "inodes/tests.rs"]
mod tests;
