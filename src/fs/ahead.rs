//! Reading the files of a folder one after the other (tar, grep, cp, a compiler): their contents are fetched ahead, many in
//! one round trip.
//!
//! [`Ahead`] is pure: told which files are opened and what is in their folders, it answers with the small contents that are worth
//! fetching. Three files in a row, in the order of names, of listings or of inode numbers (programs read in each of these), are followed by a
//! window of [`WINDOW_MIN`] files, which doubles with each that is half read. One file at random fetches nothing but itself.
//! Who has read a folder to its end and begins the next one at its beginning has made the point already.
//!
//! A folder is listed by a task of its own ([`follow`]) and not by who opens the file: that takes time in a large one.

use std::{collections::HashMap, ops::Range, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{core::Core, inodes::Facts};
use crate::{content::Object, manifest::Kind};

/// First window, in files.
const WINDOW_MIN: usize = 16;
/// Largest window: two batches are on their way while two are read.
const WINDOW_MAX: usize = 1024;
/// Files in a row, after the first, before anything is fetched.
const HITS_MIN: u32 = 2;
/// Files that may be passed over, or opened out of order by several threads, within a run.
const SKIPPED_MAX: usize = 8;
/// Folders that are followed; the one that was used least lately goes first.
const FOLDERS_MAX: usize = 64;
/// Small files in all of them together, at about 90 bytes each. A folder that has more is not followed.
const FILES_MAX: usize = 200_000;
/// Files opened that are not in a folder's listing, beyond a sixteenth of it, after which it is made anew.
const MISSES_MIN: usize = 16;
/// Opened files of a folder that are remembered until it is listed.
const RECENT_MAX: usize = 8;

/// One reader's way through a folder in one of its orders.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    last: Option<usize>,
    hits: u32,
    window: usize,
    /// Everything of the run before this was asked for.
    asked_until: usize,
}

impl Run {
    /// The file at this place is opened, of so many. Which are worth having soon.
    fn on_open(&mut self, at: usize, count: usize) -> Range<usize> {
        let none = 0..0;
        match self.last {
            Some(last) if at > last && at - last <= SKIPPED_MAX => self.hits += 1,
            // Again, or by a second thread of the same reader.
            Some(last) if at <= last && last - at <= SKIPPED_MAX => return none,
            _ => {
                *self = Self {
                    last: Some(at),
                    ..Self::default()
                };
                return none;
            }
        }
        self.last = Some(at);
        self.advance(at, count)
    }

    fn advance(&mut self, at: usize, count: usize) -> Range<usize> {
        let is_enough = self.window > 0 && at + self.window / 2 < self.asked_until;
        if self.hits < HITS_MIN || is_enough {
            return 0..0;
        }
        self.window = (self.window * 2).clamp(WINDOW_MIN, WINDOW_MAX);
        let start = self.asked_until.max(at + 1).min(count);
        self.asked_until = (start + self.window).min(count);
        start..self.asked_until
    }

    /// Begins as a run that has shown itself before.
    fn begin(&mut self, window: usize, count: usize) -> Range<usize> {
        *self = Self {
            last: Some(0),
            hits: HITS_MIN,
            window: window / 2,
            asked_until: 0,
        };
        self.advance(0, count)
    }

    /// The window of a run that is at its folder's end.
    fn at_end(&self, count: usize) -> Option<usize> {
        let is_end = self.last.is_some_and(|last| last + SKIPPED_MAX >= count);
        (is_end && self.hits >= HITS_MIN.min(count.saturating_sub(1) as u32))
            .then_some(self.window.max(WINDOW_MIN))
    }
}

/// A small file of a folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small {
    /// Its inode number.
    pub(crate) number: u64,
    /// Its position in listings.
    pub(crate) position: u64,
    pub(crate) object: Object,
}

/// The small files of a folder.
#[derive(Debug)]
pub(crate) struct Listing {
    /// In the order of names.
    files: Vec<(u64, Object)>,
    /// Places in `files` in the order of inode numbers.
    by_number: Vec<u32>,
    /// The same in the order of listings, and where each file stands there.
    by_position: Vec<u32>,
    ranks: Vec<u32>,
    runs: [Run; 3],
    /// Files that were opened and are not in it.
    misses: usize,
}

impl Listing {
    /// `None` for more files than are remembered. Sorts them: not to be done while others wait for what is remembered.
    pub(crate) fn new(files: Vec<Small>) -> Option<Self> {
        if files.len() > FILES_MAX {
            return None;
        }
        let in_order_of = |key: fn(&Small) -> u64| {
            let mut places: Vec<u32> = (0..u32::try_from(files.len()).unwrap_or(0)).collect();
            places.sort_unstable_by_key(|at| files.get(*at as usize).map(key));
            places
        };
        let by_number = in_order_of(|file| file.number);
        let by_position = in_order_of(|file| file.position);
        let mut ranks = vec![0; files.len()];
        for (rank, place) in (0..).zip(&by_position) {
            if let Some(of) = ranks.get_mut(*place as usize) {
                *of = rank;
            }
        }
        let files = files.into_iter();
        Some(Self {
            files: files.map(|file| (file.number, file.object)).collect(),
            by_number,
            by_position,
            ranks,
            runs: Default::default(),
            misses: 0,
        })
    }

    fn number_at(&self, place: u32) -> u64 {
        self.files
            .get(place as usize)
            .map_or(0, |(number, _)| *number)
    }

    /// Where a file stands in each order.
    fn places(&self, number: u64) -> Option<[usize; 3]> {
        let found = self
            .by_number
            .binary_search_by_key(&number, |place| self.number_at(*place));
        let second = found.ok()?;
        let first = *self.by_number.get(second)?;
        let third = *self.ranks.get(first as usize)?;
        Some([first as usize, second, third as usize])
    }

    /// Whether so many files were opened that came after it was made that it is worth making anew.
    fn is_old(&self) -> bool {
        self.misses > MISSES_MIN + self.files.len() / 16
    }

    fn on_open(&mut self, number: u64, streak: usize) -> Vec<Object> {
        let Some(places) = self.places(number) else {
            self.misses += 1;
            return Vec::new();
        };
        let count = self.files.len();
        let mut wanted = Vec::new();
        for (order, (run, at)) in self.runs.iter_mut().zip(places).enumerate() {
            let range = match (run.last, at) {
                (None, 0) if streak > 0 => run.begin(streak, count),
                _ => run.on_open(at, count),
            };
            wanted.extend(range.filter_map(|at| {
                let place = match order {
                    0 => at,
                    1 => *self.by_number.get(at)? as usize,
                    _ => *self.by_position.get(at)? as usize,
                };
                self.files.get(place).map(|(_, object)| *object)
            }));
        }
        wanted
    }
}

#[derive(Debug)]
struct Folder {
    used: u64,
    listing: Option<Listing>,
    /// Files that were opened before it was listed.
    recent: Vec<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    tick: u64,
    folders: HashMap<u64, Folder>,
    /// The window of a run that has come to the end of its folder; 0 while there is none.
    streak: usize,
    /// Folders to be listed.
    unlisted: Vec<u64>,
}

/// What follows from a file being opened.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Worth {
    /// Small contents to be fetched.
    pub(crate) objects: Vec<Object>,
    /// There is a folder to be listed.
    pub(crate) list: bool,
}

impl Ahead {
    /// A small file is opened for reading.
    pub(crate) fn on_open(&mut self, folder: u64, number: u64) -> Worth {
        self.tick += 1;
        let tick = self.tick;
        let streak = self.streak;
        let entry = self.folders.entry(folder).or_insert_with(|| Folder {
            used: tick,
            listing: None,
            recent: Vec::new(),
        });
        entry.used = tick;
        let Some(listing) = &mut entry.listing else {
            let is_new = !entry.recent.contains(&number);
            if is_new && entry.recent.len() < RECENT_MAX {
                entry.recent.push(number);
            }
            // One file says nothing yet, but after a folder that was read to its end.
            let list = is_new && (entry.recent.len() == 2 || streak > 0 && entry.recent.len() == 1);
            if list && !self.unlisted.contains(&folder) {
                self.unlisted.push(folder);
            }
            self.make_room(0);
            return Worth {
                objects: Vec::new(),
                list,
            };
        };
        let objects = listing.on_open(number, streak);
        if listing.is_old() {
            entry.listing = None;
        }
        self.note_streak(folder);
        Worth {
            objects,
            list: false,
        }
    }

    /// A folder was listed. Tells what is worth fetching after what was opened meanwhile.
    pub(crate) fn on_listed(&mut self, folder: u64, listing: Option<Listing>) -> Vec<Object> {
        let Some(mut listing) = listing else {
            return Vec::new();
        };
        self.make_room(listing.files.len());
        let streak = self.streak;
        let Some(entry) = self.folders.get_mut(&folder) else {
            return Vec::new();
        };
        let mut worth = Vec::new();
        for number in std::mem::take(&mut entry.recent) {
            worth.extend(listing.on_open(number, streak));
        }
        entry.listing = Some(listing);
        self.note_streak(folder);
        worth
    }

    /// The next folder to be listed.
    pub(crate) fn unlisted(&mut self) -> Option<u64> {
        self.unlisted.pop()
    }

    /// The folder could not be listed.
    pub(crate) fn forget(&mut self, folder: u64) {
        self.folders.remove(&folder);
    }

    fn note_streak(&mut self, folder: u64) {
        let listing = self.folders.get(&folder).and_then(|it| it.listing.as_ref());
        let Some(listing) = listing else { return };
        let ends = listing
            .runs
            .iter()
            .filter_map(|run| run.at_end(listing.files.len()));
        match ends.max() {
            Some(window) => self.streak = window,
            // Somewhere in the middle of a folder: nobody goes through them all.
            None if listing.runs.iter().all(|run| run.hits == 0) => self.streak = 0,
            None => {}
        }
    }

    /// Forgets folders until there is room for so many files.
    fn make_room(&mut self, files: usize) {
        let count = |folder: &Folder| folder.listing.as_ref().map_or(0, |it| it.files.len());
        loop {
            let kept: usize = self.folders.values().map(count).sum();
            if self.folders.len() <= FOLDERS_MAX && kept + files <= FILES_MAX {
                return;
            }
            let newest = self.tick;
            let oldest = self
                .folders
                .iter()
                .filter(|(_, folder)| folder.used < newest)
                .min_by_key(|(_, folder)| folder.used)
                .map(|(number, _)| *number);
            match oldest {
                Some(oldest) => _ = self.folders.remove(&oldest),
                None => return,
            }
        }
    }
}

/// What [`Core`] has of this.
#[derive(Default)]
pub(super) struct Following {
    ahead: Mutex<Ahead>,
    /// Rung when a folder is to be listed.
    listing: Notify,
}

impl Core {
    /// A file is opened for reading.
    pub(super) fn note_open(&self, number: u64, object: &Object) {
        if object.blocks() != 1 || self.store.is_tight() {
            return;
        }
        let Some(folder) = self.inodes.lock().parent(number) else {
            return;
        };
        let worth = self.following.ahead.lock().on_open(folder, number);
        if worth.list {
            self.following.listing.notify_one();
        }
        if !worth.objects.is_empty() {
            self.bring.ahead(worth.objects);
        }
    }

    /// The small files of a folder by number, as far as they can be told without asking anybody.
    fn small_files(&self, folder: u64) -> Option<Vec<Small>> {
        let path = self.inodes.lock().path(folder)?;
        let children = self.tree.children(&path).ok()?;
        let mut files = Vec::new();
        for part in children.chunks(256) {
            let inodes = self.inodes.lock();
            for (name, shown) in part {
                if let Kind::File(object) = shown.entry.kind
                    && object.blocks() == 1
                {
                    files.push(Small {
                        number: inodes.number_for(folder, name, &Facts::of(shown)),
                        position: self.position(name),
                        object,
                    });
                }
            }
        }
        Some(files)
    }
}

/// Lists folders whose files are being read. Runs until it is aborted.
pub(super) async fn follow(core: Arc<Core>) {
    loop {
        core.following.listing.notified().await;
        loop {
            let Some(folder) = core.following.ahead.lock().unlisted() else {
                break;
            };
            let with = core.clone();
            let list = move || with.small_files(folder).map(Listing::new);
            let listed = tokio::task::spawn_blocking(list).await;
            let mut ahead = core.following.ahead.lock();
            let objects = match listed {
                Ok(Some(listing)) => ahead.on_listed(folder, listing),
                _ => {
                    ahead.forget(folder);
                    Vec::new()
                }
            };
            drop(ahead);
            if !objects.is_empty() {
                core.bring.ahead(objects);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentId;

    fn object(number: u64) -> Object {
        let mut content = [0; 32];
        content[..8].copy_from_slice(&number.to_le_bytes());
        Object {
            content: ContentId(content),
            size: 4096,
        }
    }

    /// Files of a folder, whose numbers come in an order of their own, as their positions do.
    fn files(folder: u64, count: u64) -> Vec<Small> {
        (0..count)
            .map(|at| Small {
                number: (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ folder) | 1,
                position: at.wrapping_mul(0xd1b5_4a32_d192_ed03),
                object: object(folder << 32 | at),
            })
            .collect()
    }

    /// Opens files in this order, listing when told to; what was asked for after each.
    fn read(ahead: &mut Ahead, folder: u64, all: &[Small], order: &[usize]) -> Vec<Vec<Object>> {
        let mut asked = Vec::new();
        for at in order {
            let mut worth = ahead.on_open(folder, all[*at].number);
            if worth.list {
                let folder = ahead.unlisted().expect("one is to be listed");
                worth.objects = ahead.on_listed(folder, Listing::new(all.to_vec()));
            }
            asked.push(worth.objects);
        }
        asked
    }

    #[test]
    fn a_folder_read_in_order_is_fetched_in_windows_that_double_each_file_once() {
        let orders: [fn(&Small, usize) -> u64; 3] = [
            |_, at| at as u64,
            |file, _| file.number,
            |file, _| file.position,
        ];
        for key in orders {
            let mut ahead = Ahead::default();
            let all = files(1, 5000);
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by_key(|at| key(&all[*at], *at));
            let asked = read(&mut ahead, 1, &all, &order);
            assert!(asked[0].is_empty() && asked[1].is_empty());
            let windows: Vec<usize> = asked
                .iter()
                .map(Vec::len)
                .filter(|count| *count > 0)
                .collect();
            assert_eq!(windows[..7], [16, 32, 64, 128, 256, 512, 1024]);
            let fetched: Vec<Object> = asked.concat();
            let expected: Vec<Object> = order[3..].iter().map(|at| all[*at].object).collect();
            assert_eq!(fetched, expected);
        }
    }

    #[test]
    fn what_is_read_next_was_always_asked_for_before() {
        let mut ahead = Ahead::default();
        let all = files(1, 3000);
        let mut fetched = std::collections::BTreeSet::new();
        for at in 0..all.len() {
            assert!(at < 3 || fetched.contains(&all[at].object), "{at}");
            fetched.extend(read(&mut ahead, 1, &all, &[at]).concat());
        }
    }

    #[test]
    fn one_file_or_some_at_random_fetch_nothing() {
        let mut ahead = Ahead::default();
        let all = files(1, 1000);
        let order: Vec<usize> = (0..200).map(|turn| turn * 379 % 1000).collect();
        let asked = read(&mut ahead, 1, &all, &order).concat();
        assert!(asked.is_empty(), "{}", asked.len());
        let mut other = Ahead::default();
        assert!(read(&mut other, 1, &all, &[5, 5, 5, 5]).concat().is_empty());
    }

    #[test]
    fn some_files_may_be_passed_over_and_two_readers_share_a_run() {
        let mut ahead = Ahead::default();
        let all = files(1, 1000);
        let order: Vec<usize> = (0..300).map(|at| (at * 3) ^ 1).collect();
        let asked = read(&mut ahead, 1, &all, &order).concat();
        assert!(asked.len() > 800, "{}", asked.len());
    }

    #[test]
    fn the_next_folder_is_fetched_from_its_first_file_on() {
        let mut ahead = Ahead::default();
        let order: Vec<usize> = (0..100).collect();
        for folder in 1..200 {
            let all = files(folder, 100);
            let asked = read(&mut ahead, folder, &all, &order);
            if folder > 1 {
                assert!(asked[0].len() >= 64, "{folder}: {}", asked[0].len());
            }
        }
        assert!(ahead.folders.len() <= FOLDERS_MAX + 1);
        // A file in the middle of another one ends that.
        read(&mut ahead, 1000, &files(1000, 100), &[50, 20]);
        assert!(
            read(&mut ahead, 1001, &files(1001, 100), &[0])
                .concat()
                .is_empty()
        );
    }

    #[test]
    fn folders_take_turns() {
        let mut ahead = Ahead::default();
        let (a, b) = (files(1, 200), files(2, 200));
        let mut asked = 0;
        for at in 0..200 {
            asked += read(&mut ahead, 1, &a, &[at]).concat().len();
            asked += read(&mut ahead, 2, &b, &[at]).concat().len();
        }
        assert_eq!(asked, 2 * 197);
    }

    #[test]
    fn a_folder_that_has_many_new_files_is_listed_anew() {
        let mut ahead = Ahead::default();
        let all = files(1, 100);
        read(&mut ahead, 1, &all[..40], &[0, 1]);
        let lists = (40..70).filter(|at| ahead.on_open(1, all[*at].number).list);
        assert_eq!(lists.count(), 1);
    }

    #[test]
    fn files_that_are_kept_are_bounded() {
        let mut ahead = Ahead::default();
        for folder in 0..10 {
            let all = files(folder, 50_000);
            read(&mut ahead, folder, &all, &[0, 1, 2]);
            let kept: usize = ahead
                .folders
                .values()
                .filter_map(|it| it.listing.as_ref())
                .map(|listing| listing.files.len())
                .sum();
            assert!(kept <= FILES_MAX);
        }
        assert!(
            ahead
                .on_listed(1, Listing::new(files(1, 200_001)))
                .is_empty()
        );
    }
}
