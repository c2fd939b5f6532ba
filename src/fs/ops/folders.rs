//! Listing folders.
//!
//! The kernel is told once that folders are not opened (`FUSE_NO_OPENDIR_SUPPORT`): what it has cached of a folder is then listed
//! without a request. So nothing says who reads a folder, or that it is done: a position names the snapshot of the folder
//! that it is in. Snapshots stay for a while after they were used.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;

use crate::{
    fs::{
        core::{Attr, Core, Fail, Need},
        errno::FsError,
        inodes::{Facts, ROOT},
    },
    manifest::{Kind, Name, NodeHash, PATH_BYTES_MAX, Shown, TreePath},
};

/// Entries of snapshots, together: with more, those go first that were read to their end, or not used for so long…
const ENTRIES_KEPT: usize = 65_536;
const IDLE: Duration = Duration::from_secs(60);
/// …and with more than these whichever were not used for longest. What is read now comes on top.
const ENTRIES_MAX: usize = 1 << 20;
/// Places of a snapshot before its entries: `.` and `..`.
const DOTS: u64 = 2;

/// A folder as it was when somebody began to read it, so that positions stay valid while it changes.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: u64,
    epoch: u64,
    /// With attributes, which a listing without them does not wait for.
    detailed: bool,
    parent: u64,
    /// In order of their names.
    entries: Vec<(Name, Facts)>,
}

impl Snapshot {
    /// In entries. An empty one takes memory too.
    fn cost(&self) -> usize {
        self.entries.len() + DOTS as usize
    }
}

/// Where a listing goes on.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    number: u32,
    snapshot: Arc<Snapshot>,
    /// Of its lines, `.` and `..` first.
    line: u64,
}

impl Place {
    /// The name of the last line before it, if that was an entry.
    fn last_name(&self) -> Option<&Name> {
        let before = self.line.checked_sub(DOTS + 1)?;
        let (name, _) = self.snapshot.entries.get(usize::try_from(before).ok()?)?;
        Some(name)
    }
}

/// The snapshots that somebody may be reading.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    taken: BTreeMap<u32, Taken>,
    /// The latest of each folder.
    latest: HashMap<u64, u32>,
    last: u32,
    entries: usize,
}

#[derive(Debug)]
struct Taken {
    snapshot: Arc<Snapshot>,
    used: Instant,
    read_to_its_end: bool,
}

impl Listings {
    /// The snapshot of a folder that a position is in, and the line there.
    fn at(&mut self, folder: u64, position: u64, now: Instant) -> Option<Place> {
        let number = u32::try_from(position >> u32::BITS).ok()?;
        let taken = self.taken.get_mut(&number)?;
        if taken.snapshot.folder != folder {
            return None;
        }
        taken.used = now;
        Some(Place {
            number,
            snapshot: taken.snapshot.clone(),
            line: position & u64::from(u32::MAX),
        })
    }

    /// A snapshot of a folder as it still is, from its first line.
    fn current(&mut self, folder: u64, epoch: u64, detailed: bool, now: Instant) -> Option<Place> {
        let fits = |snapshot: &Snapshot| {
            snapshot.folder == folder && snapshot.epoch == epoch && (snapshot.detailed || !detailed)
        };
        let number = *self.latest.get(&folder)?;
        let taken = self.taken.get_mut(&number)?;
        if !fits(&taken.snapshot) {
            return None;
        }
        taken.used = now;
        Some(Place {
            number,
            snapshot: taken.snapshot.clone(),
            line: 0,
        })
    }

    /// Keeps a snapshot, in place of others if need be.
    fn take(&mut self, snapshot: Snapshot, line: u64, now: Instant) -> Place {
        let snapshot = Arc::new(snapshot);
        self.entries += snapshot.cost();
        self.make_room(now);
        // No position is 0.
        self.last = self.last.checked_add(1).unwrap_or(1);
        // In case all numbers were used once.
        self.forget(self.last);
        let taken = Taken {
            snapshot: snapshot.clone(),
            used: now,
            read_to_its_end: false,
        };
        self.latest.insert(snapshot.folder, self.last);
        self.taken.insert(self.last, taken);
        Place {
            number: self.last,
            snapshot,
            line,
        }
    }

    /// Forgets what goes first, some at a time.
    fn make_room(&mut self, now: Instant) {
        if self.entries <= ENTRIES_KEPT {
            return;
        }
        let by_use = |(number, taken): (&u32, &Taken)| {
            let idle = now.saturating_duration_since(taken.used) > IDLE;
            (!taken.read_to_its_end && !idle, taken.used, *number)
        };
        let mut all: Vec<_> = self.taken.iter().map(by_use).collect();
        all.sort_unstable();
        for (may_be_read, _, number) in all {
            let enough = if may_be_read {
                ENTRIES_MAX
            } else {
                ENTRIES_KEPT / 4 * 3
            };
            if self.entries <= enough {
                break;
            }
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u32) {
        if let Some(taken) = self.taken.remove(&number) {
            self.entries -= taken.snapshot.cost();
            let folder = taken.snapshot.folder;
            if self.latest.get(&folder) == Some(&number) {
                self.latest.remove(&folder);
            }
        }
    }

    fn is_read_to_its_end(&mut self, number: u32) {
        if let Some(taken) = self.taken.get_mut(&number) {
            taken.read_to_its_end = true;
        }
    }
}

/// One line of a listing.
#[derive(Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) attr: Attr,
    pub(crate) name: &'a [u8],
    /// The position where the next one begins.
    pub(crate) next: u64,
    /// Nothing has changed since the snapshot: the kernel may keep the attributes.
    pub(crate) current: bool,
}

impl Core {
    /// Makes sure that a listing of a folder can be given from a position on, which is 0 or came with a line: takes a
    /// snapshot, from the beginning or where the one is gone that the position was in. Then all is told again.
    pub(crate) fn prepare_listing(
        &self,
        folder: u64,
        position: u64,
        detailed: bool,
    ) -> Result<Place, Fail> {
        let now = Instant::now();
        // From the beginning means: as it is now (rewinddir).
        let place = (position > 0).then(|| self.listings.lock().at(folder, position, now));
        let place = place.flatten();
        if let Some(place) = &place
            && (place.snapshot.detailed || !detailed)
        {
            return Ok(place.clone());
        }
        let _order = self.order.read();
        let epoch = self.epoch.load(Ordering::Acquire);
        let after = match &place {
            Some(place) => place.last_name(),
            None if position > 0 => {
                tracing::debug!(folder, "a listing begins again: it was paused for long");
                None
            }
            None => {
                let current = self.listings.lock().current(folder, epoch, detailed, now);
                if let Some(current) = current {
                    return Ok(current);
                }
                None
            }
        };
        let path = {
            let inodes = self.inodes.lock();
            let facts = inodes.facts(folder).ok_or(FsError::Stale)?;
            if facts.kind != Kind::Directory {
                return Err(FsError::NotDirectory.into());
            }
            drop(inodes);
            self.path(folder)?
        };
        let children = self.tree.children(&path)?;
        let entries = match detailed {
            true => self.details(&path, children)?,
            false => {
                let plain = |(name, shown): (Name, Shown)| {
                    let hidden = matches!(shown.entry.kind, Kind::Link(_));
                    (!hidden).then(|| (name, Facts::from(shown)))
                };
                children.into_iter().filter_map(plain).collect()
            }
        };
        let parent = self.inodes.lock().parent(folder).unwrap_or(ROOT);
        let line = match (&after, &place) {
            (Some(after), _) => DOTS + entries.partition_point(|(name, _)| name <= after) as u64,
            (None, Some(place)) => place.line,
            (None, None) => 0,
        };
        let snapshot = Snapshot {
            folder,
            epoch,
            detailed,
            parent,
            entries,
        };
        Ok(self.listings.lock().take(snapshot, line, now))
    }

    /// Hands the lines from a place on to `take` until that says it is full; `take` must not call back. With `count`, every entry
    /// that was taken counts as looked up by the kernel (`.` and `..` never do).
    pub(crate) fn list(
        &self,
        place: &Place,
        count: bool,
        take: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), Fail> {
        let snapshot = &place.snapshot;
        let position = |line: u64| u64::from(place.number) << u32::BITS | line;
        let _order = self.order.read();
        let current = self.epoch.load(Ordering::Acquire) == snapshot.epoch;
        for (at, name, number) in [
            (0, b".".as_slice(), snapshot.folder),
            (1, b"..", snapshot.parent),
        ] {
            if place.line > at {
                continue;
            }
            let facts = self.inodes.lock().facts(number).cloned();
            let facts = facts.ok_or(FsError::Stale)?;
            let listed = Listed {
                attr: self.attr_now(number, &facts, true),
                name,
                next: position(at + 1),
                current: false,
            };
            if take(listed) {
                return Ok(());
            }
        }
        let first = usize::try_from(place.line.saturating_sub(DOTS)).unwrap_or(usize::MAX);
        // Nearly always nothing is being written, and then nobody need be asked about it for each entry.
        let is_quiet = self.lives.lock().is_empty();
        let mut inodes = self.inodes.lock();
        for (index, (name, facts)) in snapshot.entries.iter().enumerate().skip(first) {
            let mut known = inodes.child(snapshot.folder, name);
            let mut live = None;
            if let Some(number) = known
                && !is_quiet
                && inodes
                    .file(number)
                    .is_none_or(|file| facts.file == Some(file))
            {
                live = MutexGuard::unlocked(&mut inodes, || {
                    self.with_live(number, |live| Facts {
                        file: facts.file,
                        links: facts.links,
                        ..live.facts()
                    })
                });
                if live.is_none() {
                    known = inodes.child(snapshot.folder, name);
                }
            }
            let number = match known {
                Some(number) if live.is_some() => number,
                _ if !count => inodes.number_for(snapshot.folder, name, facts),
                // An old snapshot must not take the name from an inode that is newer than it.
                Some(number) if !current => number,
                _ => inodes.resolve(snapshot.folder, name, facts.clone()),
            };
            if facts.file.is_some() && live.is_none() && !is_quiet {
                // Another name of it may have been known.
                live = MutexGuard::unlocked(&mut inodes, || {
                    self.with_live(number, |live| Facts {
                        file: facts.file,
                        links: facts.links,
                        ..live.facts()
                    })
                });
            }
            let facts = match &live {
                Some(facts) => facts,
                None if count => inodes.facts(number).unwrap_or(facts),
                None => facts,
            };
            let listed = Listed {
                attr: self
                    .attr(number, facts, true)
                    .accessed(inodes.accessed(number)),
                name: name.as_bytes(),
                next: position(DOTS + index as u64 + 1),
                current,
            };
            if count {
                // In advance, so that the inode is there while it is told.
                inodes.look(number);
            }
            if take(listed) {
                if count {
                    inodes.forget(number, 1);
                }
                return Ok(());
            }
        }
        drop(inodes);
        self.listings.lock().is_read_to_its_end(place.number);
        Ok(())
    }

    /// Attributes of all entries. What is missing for any of them is asked for at once.
    fn details(
        &self,
        path: &TreePath,
        children: Vec<(Name, Shown)>,
    ) -> Result<Vec<(Name, Facts)>, Fail> {
        let mut missing: Vec<NodeHash> = Vec::new();
        let mut entries = Vec::with_capacity(children.len());
        // A path that is too long to be named can't be reached either: left out.
        let room = PATH_BYTES_MAX.saturating_sub(path.to_bytes().len() + 1);
        for (name, shown) in children {
            if name.as_bytes().len() > room {
                continue;
            }
            let facts = match shown.entry.kind {
                Kind::Directory => {
                    let path = path.join(&name).map_err(FsError::from)?;
                    self.facts(&path, &shown)
                }
                // Its record is nowhere.
                Kind::Link(_) => continue,
                _ if shown.link.is_some() => self.facts(path, &shown),
                _ => Ok(Facts::from(shown)),
            };
            match facts {
                Ok(facts) => entries.push((name, facts)),
                Err(Fail::Need(Need::Nodes(nodes))) => missing.extend(nodes),
                Err(fail) => return Err(fail),
            }
        }
        if missing.is_empty() {
            return Ok(entries);
        }
        missing.sort_unstable();
        missing.dedup();
        Err(Fail::Need(Need::Nodes(missing)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn snapshot(folder: u64, entries: usize) -> Snapshot {
        let facts = |number: usize| {
            let name = Name::new(format!("{number:08}")).unwrap();
            (name, Facts::from(Shown::implied_directory()))
        };
        Snapshot {
            folder,
            epoch: 1,
            detailed: true,
            parent: ROOT,
            entries: (0..entries).map(facts).collect(),
        }
    }

    fn position(place: &Place, line: u64) -> u64 {
        u64::from(place.number) << u32::BITS | line
    }

    #[test]
    fn a_position_leads_to_its_snapshot_while_others_are_taken() {
        let mut listings = Listings::default();
        let now = Instant::now();
        let old = listings.take(snapshot(7, 3), 0, now);
        let new = listings.take(snapshot(7, 4), 0, now);
        let found = listings.at(7, position(&old, 4), now).unwrap();
        assert!(Arc::ptr_eq(&found.snapshot, &old.snapshot));
        assert_eq!(found.line, 4);
        assert_eq!(found.last_name().unwrap().as_bytes(), b"00000001");
        assert!(
            listings.at(8, position(&old, 4), now).is_none(),
            "of another folder"
        );
        let current = listings.current(7, 1, true, now).unwrap();
        assert!(Arc::ptr_eq(&current.snapshot, &new.snapshot));
        assert!(
            listings.current(7, 2, true, now).is_none(),
            "it has changed"
        );
    }

    #[test]
    fn what_may_still_be_read_stays_longest_and_all_is_bounded() {
        let mut listings = Listings::default();
        let now = Instant::now();
        let paused = listings.take(snapshot(1, 1000), 0, now);
        for folder in 2..5000 {
            let place = listings.take(snapshot(folder, 100), 0, now);
            listings.is_read_to_its_end(place.number);
            assert!(listings.entries <= ENTRIES_KEPT);
        }
        assert!(listings.at(1, position(&paused, 50), now).is_some());
        assert_eq!(listings.latest.len(), listings.taken.len());
        // Nobody is done with these.
        for folder in 0..1100 {
            listings.take(snapshot(10_000 + folder, 1000), 0, now + IDLE / 2);
            assert!(listings.entries <= ENTRIES_MAX + 1002);
        }
        assert!(listings.entries > ENTRIES_KEPT);
        assert!(listings.at(1, position(&paused, 50), now).is_none());
        listings.take(snapshot(1, 1), 0, now + 2 * IDLE);
        assert!(listings.entries <= ENTRIES_KEPT);
    }
}
