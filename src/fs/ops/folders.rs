//! Listing folders.
//!
//! A folder is listed in the order of a keyed hash of its names, and the position behind a name is that hash, as ext4 does it. So a
//! position says by itself what comes next, whatever has come and gone since: who reads a folder while it changes is told
//! exactly once of what stays. The kernel shares what it caches of a listing among all who read it, drops it when it likes, and then
//! asks by positions that others were given; positions that count lines of a snapshot would not do.
//!
//! So folders need not be opened either: the kernel is told that once (`FUSE_NO_OPENDIR_SUPPORT`), and lists what it has cached
//! without a request. A snapshot of a folder is kept for who reads on, while there is room.

use std::{
    collections::HashMap,
    hash::BuildHasher,
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

/// Positions behind `.` and `..`; those behind names are larger.
const DOT: u64 = 1;
const DOTDOT: u64 = 2;
/// A snapshot of what has changed since is used for so many times the time that it took: reading a large folder that changes all
/// the time must not take one for each few lines.
const USED_FOR: u32 = 8;

/// Entries of snapshots that are kept, beside those that were read a moment ago.
const ENTRIES_MAX: usize = 1 << 18;
/// Somebody who was reading so shortly ago may go on.
const READ_FOR: Duration = Duration::from_secs(10);
/// What wasn't read for so long is forgotten.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// The snapshots of folders that somebody may be reading.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    /// By folder, with the moment in which each was read last.
    taken: HashMap<u64, (Arc<Snapshot>, Instant)>,
    entries: usize,
}

impl Listings {
    fn get(&mut self, folder: u64, now: Instant) -> Option<Arc<Snapshot>> {
        let (snapshot, read) = self.taken.get_mut(&folder)?;
        *read = now;
        Some(snapshot.clone())
    }

    fn put(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        self.remove(snapshot.folder);
        if self.entries > ENTRIES_MAX {
            self.forget(now, READ_FOR);
        }
        self.entries += snapshot.cost();
        self.taken.insert(snapshot.folder, (snapshot, now));
    }

    /// Forgets what nobody reads any more.
    pub(in crate::fs) fn forget_old(&mut self, now: Instant) {
        self.forget(now, KEPT_FOR);
    }

    fn forget(&mut self, now: Instant, unread_for: Duration) {
        self.taken
            .retain(|_, (_, read)| now.saturating_duration_since(*read) < unread_for);
        let costs = self.taken.values().map(|(snapshot, _)| snapshot.cost());
        self.entries = costs.sum();
    }

    fn remove(&mut self, folder: u64) {
        if let Some((snapshot, _)) = self.taken.remove(&folder) {
            self.entries -= snapshot.cost();
        }
    }
}

/// A folder as it was at a moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: u64,
    epoch: u64,
    /// With attributes, which a listing without them does not wait for.
    detailed: bool,
    parent: u64,
    /// In order of the positions behind them.
    entries: Vec<(u64, Name, Facts)>,
    at: Instant,
    took: Duration,
}

impl Snapshot {
    /// In entries. An empty one takes memory too.
    fn cost(&self) -> usize {
        self.entries.len() + 2
    }
}

/// One line of a listing.
#[derive(Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) attr: Attr,
    pub(crate) name: &'a [u8],
    /// The position behind it: where the next one begins.
    pub(crate) next: u64,
    /// Nothing has changed since the snapshot: the kernel may keep the attributes.
    pub(crate) current: bool,
}

impl Core {
    /// What a listing of a folder from a position on is told from.
    pub(crate) fn prepare_listing(
        &self,
        folder: u64,
        offset: u64,
        detailed: bool,
    ) -> Result<Arc<Snapshot>, Fail> {
        if !self.tree.has_head() {
            return Err(Fail::Need(Need::Head));
        }
        let begun = Instant::now();
        let _order = self.order.read();
        let epoch = self.epoch.load(Ordering::Acquire);
        let is_usable = |snapshot: &Arc<Snapshot>| {
            // From the beginning means: as it is now (rewinddir).
            let still = offset > 0 && begun < snapshot.at + snapshot.took * USED_FOR;
            (snapshot.epoch == epoch || still) && (snapshot.detailed || !detailed)
        };
        let taken = self.listings.lock().get(folder, begun);
        if let Some(taken) = taken.filter(is_usable) {
            return Ok(taken);
        }
        {
            let inodes = self.inodes.lock();
            let facts = inodes.facts(folder).ok_or(FsError::Stale)?;
            if facts.kind != Kind::Directory {
                return Err(FsError::NotDirectory.into());
            }
        }
        let path = self.path(folder)?;
        let children = self.tree.children(&path)?;
        let entries = match detailed {
            true => self.details(&path, children)?,
            false => {
                let plain = |(name, shown): (Name, Shown)| (name, Facts::from(shown));
                children.into_iter().map(plain).collect()
            }
        };
        let entries = self.in_order(entries);
        let parent = self.inodes.lock().parent(folder).unwrap_or(ROOT);
        let now = Instant::now();
        let snapshot = Arc::new(Snapshot {
            folder,
            epoch,
            detailed,
            parent,
            entries,
            at: now,
            took: now - begun,
        });
        self.listings.lock().put(snapshot.clone(), now);
        Ok(snapshot)
    }

    /// The position behind a name.
    pub(in crate::fs) fn position(&self, name: &Name) -> u64 {
        // The kernel's positions have a sign.
        (self.listing_order.hash_one(name.as_bytes()) >> 2) + DOTDOT + 1
    }

    fn in_order(&self, entries: Vec<(Name, Facts)>) -> Vec<(u64, Name, Facts)> {
        let placed = entries.into_iter();
        let placed = placed.map(|(name, facts)| (self.position(&name), name, facts));
        let mut placed: Vec<_> = placed.collect();
        placed.sort_unstable_by(|(a, name_a, _), (b, name_b, _)| (a, name_a).cmp(&(b, name_b)));
        // One in ten million folders of a million names has two of the same.
        let mut last = 0;
        for (position, ..) in &mut placed {
            *position = (*position).max(last + 1);
            last = *position;
        }
        placed
    }

    /// Hands the listing from a position on to `take` until that says it is full; `take` must not call back. With `count`, every entry that was taken
    /// counts as looked up by the kernel (`.` and `..` never do).
    pub(crate) fn list(
        &self,
        snapshot: &Snapshot,
        offset: u64,
        count: bool,
        take: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), Fail> {
        let folder = snapshot.folder;
        let _order = self.order.read();
        let current = self.epoch.load(Ordering::Acquire) == snapshot.epoch;
        for (at, name, number) in [
            (DOT, b".".as_slice(), folder),
            (DOTDOT, b"..", snapshot.parent),
        ] {
            if offset >= at {
                continue;
            }
            let facts = self.inodes.lock().facts(number).cloned();
            let facts = facts.ok_or(FsError::Stale)?;
            let listed = Listed {
                attr: self.attr_now(number, &facts, true),
                name,
                next: at,
                current: false,
            };
            if take(listed) {
                return Ok(());
            }
        }
        // Nearly always nothing is being written, and then nobody need be asked about it for each entry.
        let is_quiet = self.lives.lock().is_empty();
        let mut inodes = self.inodes.lock();
        let first = snapshot.entries.partition_point(|entry| entry.0 <= offset);
        if first == snapshot.entries.len() && offset >= DOTDOT {
            // Who asks behind the last name has read all of it.
            drop(inodes);
            self.listings.lock().remove(folder);
            return Ok(());
        }
        for (position, name, facts) in snapshot.entries.iter().skip(first) {
            let mut known = inodes.child(folder, name);
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
                    known = inodes.child(folder, name);
                }
            }
            let number = match known {
                Some(number) if live.is_some() => number,
                _ if !count => inodes.number_for(folder, name, facts),
                // An old snapshot must not take the name from an inode that is newer than it.
                Some(number) if !current => number,
                _ => self.resolve(&mut inodes, (folder, name), facts.clone()),
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
                next: *position,
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
    use crate::manifest::Shown;

    fn snapshot(folder: u64, entries: usize) -> Arc<Snapshot> {
        let now = Instant::now();
        let name = Name::new("x").unwrap();
        let facts = Facts::from(Shown::implied_directory());
        Arc::new(Snapshot {
            folder,
            epoch: 1,
            detailed: true,
            parent: ROOT,
            entries: vec![(DOTDOT + 1, name, facts); entries],
            at: now,
            took: Duration::ZERO,
        })
    }

    #[test]
    fn what_is_being_read_stays_however_large_and_the_rest_goes() {
        let mut listings = Listings::default();
        let begun = Instant::now();
        let at = |second: u64| begun + Duration::from_secs(second);
        // Two large ones are read in turn, and small ones beside them.
        for folder in [1, 2] {
            listings.put(snapshot(folder, ENTRIES_MAX + 1), at(0));
        }
        for second in 1..100 {
            assert!(listings.get(1 + second % 2, at(second)).is_some());
            listings.put(snapshot(100 + second, 1000), at(second));
            assert!(listings.entries <= 2 * ENTRIES_MAX + 12 * 1002);
        }
        listings.put(snapshot(1000, 1), at(120));
        assert!(listings.get(1, at(120)).is_none() && listings.get(2, at(120)).is_none());
        listings.forget_old(at(179));
        assert!(listings.get(1000, at(121)).is_some());
        listings.forget_old(at(121 + 60));
        assert_eq!((listings.taken.len(), listings.entries), (0, 0));
    }
}
