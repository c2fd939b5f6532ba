//! Listing folders.
//!
//! A folder is listed in the order of a keyed hash of its names, and the position behind a name is that hash, as ext4 does it. So a
//! position says by itself what comes next, whatever has come and gone since: who reads a folder while it changes is told
//! exactly once of what stays. The kernel shares what it caches of a listing among all who read it, drops it when it likes, and then
//! asks by positions that others were given; positions that count lines of a snapshot would not do.

use std::{
    hash::BuildHasher,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

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

/// An open folder.
#[derive(Debug)]
pub(crate) struct OpenFolder {
    number: u64,
    /// What was read last, for who reads on.
    snapshot: Mutex<Option<Arc<Snapshot>>>,
}

#[derive(Debug)]
struct Snapshot {
    epoch: u64,
    /// With attributes, which a listing without them does not wait for.
    detailed: bool,
    parent: u64,
    /// In order of the positions behind them.
    entries: Vec<(u64, Name, Facts)>,
    at: Instant,
    took: Duration,
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
    /// Opens a folder.
    pub(crate) fn opendir(&self, number: u64) -> Result<u64, Fail> {
        if !self.tree.has_head() {
            return Err(Fail::Need(Need::Head));
        }
        let mut inodes = self.inodes.lock();
        let facts = inodes.facts(number).ok_or(FsError::Stale)?;
        if facts.kind != Kind::Directory {
            return Err(FsError::NotDirectory.into());
        }
        inodes.pin(number);
        drop(inodes);
        let handle = self.handle();
        let folder = OpenFolder {
            number,
            snapshot: Mutex::new(None),
        };
        self.folders.lock().insert(handle, Arc::new(folder));
        Ok(handle)
    }

    /// Closes a folder.
    pub(crate) fn releasedir(&self, handle: u64) {
        let folder = self.folders.lock().remove(&handle);
        if let Some(folder) = folder {
            self.inodes.lock().unpin(folder.number);
        }
    }

    /// Makes sure that a listing from a position on can be given: takes a snapshot.
    pub(crate) fn prepare_listing(
        &self,
        handle: u64,
        offset: u64,
        detailed: bool,
    ) -> Result<(), Fail> {
        let folder = self.folder(handle)?;
        let begun = Instant::now();
        let _order = self.order.read();
        let epoch = self.epoch.load(Ordering::Acquire);
        let is_usable = |snapshot: &Snapshot| {
            // From the beginning means: as it is now (rewinddir).
            let still = offset > 0 && begun < snapshot.at + snapshot.took * USED_FOR;
            (snapshot.epoch == epoch || still) && (snapshot.detailed || !detailed)
        };
        if folder.snapshot.lock().as_deref().is_some_and(is_usable) {
            return Ok(());
        }
        let path = self.path(folder.number)?;
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
        let entries = self.in_order(entries);
        let parent = self.inodes.lock().parent(folder.number).unwrap_or(ROOT);
        let now = Instant::now();
        *folder.snapshot.lock() = Some(Arc::new(Snapshot {
            epoch,
            detailed,
            parent,
            entries,
            at: now,
            took: now - begun,
        }));
        Ok(())
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
        handle: u64,
        offset: u64,
        count: bool,
        take: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), Fail> {
        let folder = self.folder(handle)?;
        let taken = folder.snapshot.lock().clone();
        let snapshot = taken.ok_or(FsError::BadHandle)?;
        let _order = self.order.read();
        let current = self.epoch.load(Ordering::Acquire) == snapshot.epoch;
        for (at, name, number) in [
            (DOT, b".".as_slice(), folder.number),
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
        for (position, name, facts) in snapshot.entries.iter().skip(first) {
            let mut known = inodes.child(folder.number, name);
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
                    known = inodes.child(folder.number, name);
                }
            }
            let number = match known {
                Some(number) if live.is_some() => number,
                _ if !count => inodes.number_for(folder.number, name, facts),
                // An old snapshot must not take the name from an inode that is newer than it.
                Some(number) if !current => number,
                _ => inodes.resolve(folder.number, name, facts.clone()),
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

    fn folder(&self, handle: u64) -> Result<Arc<OpenFolder>, Fail> {
        let folders = self.folders.lock();
        Ok(folders.get(&handle).cloned().ok_or(FsError::BadHandle)?)
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
