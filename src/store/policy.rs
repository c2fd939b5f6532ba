//! Who gets room, and what goes first: pure, with times and figures as arguments.
//!
//! [`Limits::lacks`] says what is missing for something that wants room. [`Oldest`] picks, of all that is here, what was not
//! used for longest. [`Pool`] keeps what has been *cleared*: what another member promised to keep, or what nothing refers to
//! any more. Only from there anything is taken, the least recently used first; what was used since it was cleared
//! goes behind all that was not.

use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

use super::packs::HEADER_BYTES;
use crate::content::Object;

/// Room for the 256 folders of the objects (1 MiB), and for what else the index takes before that is seen: it grows into room
/// that it has set aside and that is counted.
const OVERHEAD_BYTES: u64 = 3 * 1024 * 1024 / 2;
/// One part in so many of the limit is left for what a filesystem adds later (extent trees, folders).
const MARGIN_DIVISOR: u64 = 128;
/// What is set aside in the index for the record of a small content. Measured: sled takes 730 bytes for the smallest records.
pub(super) const SMALL_RECORD_BYTES: u64 = 768;
/// Small contents may take the limit without one part in so many, which is left to larger ones…
const FILES_SHARE: u64 = 4;
/// …and without what sled takes however little lives in it (measured: 12 MiB).
const INDEX_IDLE_BYTES: u64 = 16 * 1024 * 1024;
/// They get one part in so many of the limit in any case…
const SMALL_SHARE: u64 = 16;
/// …and this part where they were written here, so that nobody else may have them yet.
const WRITTEN_SHARE: u64 = 4;
/// One part in so many of the limit is left to contents however large the index is.
const INDEX_LEAVES: u64 = 4;
/// Of what is taken, small contents are much from one part in so many on.
const MUCH_SHARE: u64 = 4;

/// What may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// By backing files, staging files and the index together.
    pub cache_bytes_max: u64,
    /// What is left free on the disk.
    pub free_bytes_min: u64,
}

/// What is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// By backing files.
    pub(super) files: u64,
    /// By staging files.
    pub(super) staging: u64,
    /// By packs.
    pub(super) packs: u64,
    /// By what is about to be written.
    pub(super) reserved: u64,
    /// Of the share of small contents, by those that are about to be put into the index.
    pub(super) reserved_small: u64,
    /// By the index, when it was last looked at…
    pub(super) index: u64,
    /// …and what may have been added since.
    pub(super) index_since: u64,
    /// Set aside for small contents, as [`small_room`] counts it.
    pub(super) small: u64,
}

/// Something that wants room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Bytes of files.
    Files(u64),
    /// Room for small contents that were fetched, as [`small_room`] counts it.
    Small(u64),
    /// Room for small contents that were written here. Their staging files are in the cache already, so only the share of
    /// small contents counts.
    Written(u64),
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The cache may not become larger.
    CacheSize,
    /// What is left on the disk is to be left.
    MinFree,
}

/// What has to go before there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// Bytes of files.
    pub(super) files: u64,
    /// Room of small contents.
    pub(super) small: u64,
    pub(super) why: Shortage,
}

/// What a small content takes: in packs, of which a quarter may not be wanted any more, and in the index.
pub(super) fn small_room(size: u64) -> u64 {
    let packed = size.saturating_add(HEADER_BYTES);
    packed
        .saturating_add(packed / 3)
        .saturating_add(SMALL_RECORD_BYTES)
}

impl Want {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Files(bytes) | Self::Small(bytes) | Self::Written(bytes) => bytes,
        }
    }

    /// Bytes of the cache and of the disk, and of the share of small contents.
    fn parts(self) -> (u64, u64) {
        match self {
            Self::Files(bytes) => (bytes, 0),
            Self::Small(bytes) => (bytes, bytes),
            Self::Written(bytes) => (0, bytes),
        }
    }
}

impl Taken {
    /// Sets room aside.
    pub(super) fn reserve(&mut self, want: Want) {
        let (bytes, small) = want.parts();
        self.reserved = self.reserved.saturating_add(bytes);
        self.reserved_small = self.reserved_small.saturating_add(small);
    }

    /// Gives back what was set aside.
    pub(super) fn release(&mut self, want: Want) {
        let (bytes, small) = want.parts();
        self.reserved = self.reserved.saturating_sub(bytes);
        self.reserved_small = self.reserved_small.saturating_sub(small);
    }

    /// All that counts.
    pub(super) fn all(&self, limits: &Limits) -> u64 {
        let index = limits.counted_of_index(self.index.saturating_add(self.index_since));
        [self.files, self.packs, self.staging, self.reserved, index]
            .into_iter()
            .fold(OVERHEAD_BYTES, u64::saturating_add)
    }
}

impl Limits {
    /// How much of what the index takes counts. It can't be let go, and others' changes put more there: a part of the limit is left to
    /// contents however large it is.
    pub fn counted_of_index(&self, index: u64) -> u64 {
        index.min(self.cache_bytes_max - self.cache_bytes_max / INDEX_LEAVES)
    }

    /// What the cache may take, the margin apart.
    fn usable(&self) -> u64 {
        self.cache_bytes_max - self.cache_bytes_max / MARGIN_DIVISOR
    }

    /// What is set aside for small contents at most, as long as all of them were fetched.
    fn small_max(&self) -> u64 {
        self.share_of_small()
            .max(self.cache_bytes_max / SMALL_SHARE)
    }

    /// What is set aside for small contents at most, for the sake of those that were written here.
    fn written_max(&self) -> u64 {
        self.share_of_small()
            .max(self.cache_bytes_max / WRITTEN_SHARE)
    }

    fn share_of_small(&self) -> u64 {
        (self.cache_bytes_max - self.cache_bytes_max / FILES_SHARE).saturating_sub(INDEX_IDLE_BYTES)
    }

    /// Whether so much fits once all has gone but the index, which does not become smaller.
    pub(super) fn ever_fits(&self, taken: &Taken, want: Want) -> bool {
        let left = Taken {
            index: taken.index,
            ..Taken::default()
        };
        self.lacks(&left, u64::MAX, want).is_none()
    }

    /// What has to go before there is room; `None` if there is. `disk_free`: bytes free on the disk now, of which `reserved`
    /// are about to be taken.
    pub(super) fn lacks(&self, taken: &Taken, disk_free: u64, want: Want) -> Option<Lack> {
        let (bytes, small) = want.parts();
        let over = |has: u64, wants: u64, may: u64| has.saturating_add(wants).saturating_sub(may);
        let of_cache = over(taken.all(self), bytes, self.usable());
        let of_disk = over(
            taken.reserved.saturating_add(self.free_bytes_min),
            bytes,
            disk_free,
        );
        let share = taken.small.saturating_add(taken.reserved_small);
        let (of_cache, of_disk, of_share) = match want {
            Want::Files(_) => (of_cache, of_disk, 0),
            Want::Small(_) => (of_cache, of_disk, over(share, small, self.small_max())),
            Want::Written(_) => (0, 0, over(share, small, self.written_max())),
        };
        let why = match of_disk > of_cache.max(of_share) {
            true => Shortage::MinFree,
            false => Shortage::CacheSize,
        };
        (of_cache > 0 || of_disk > 0 || of_share > 0).then_some(Lack {
            files: of_cache.max(of_disk),
            small: of_share,
            why,
        })
    }

    /// Whether so much is taken that it should be known which larger contents, and which small ones, may go.
    pub(super) fn is_pressed(&self, taken: &Taken, disk_free: u64) -> (bool, bool) {
        let quarter = self.cache_bytes_max / 4;
        let files = self.lacks(taken, disk_free, Want::Files(quarter));
        let is_much = taken.small > self.cache_bytes_max / MUCH_SHARE;
        let small = taken.small > self.small_max() / 4 * 3 || files.is_some() && is_much;
        (files.is_some(), small)
    }
}

/// Something that is here, as far as what goes first is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// When it was used last, seconds since 1970.
    pub last_use: u64,
    /// What it is.
    pub object: Object,
    /// Bytes that it takes.
    pub room: u64,
}

/// The least recently used of all that is looked at, at most so many.
pub(super) struct Oldest {
    max: usize,
    after: Option<Candidate>,
    /// The most recently used comes first.
    found: BinaryHeap<Candidate>,
}

impl Oldest {
    /// Of those that come after one, in the order of their last use.
    pub(super) fn after(after: Option<Candidate>, max: usize) -> Self {
        Self {
            max,
            after,
            found: BinaryHeap::new(),
        }
    }

    pub(super) fn look_at(&mut self, candidate: Candidate) {
        if self.after.is_some_and(|after| candidate <= after) {
            return;
        }
        self.found.push(candidate);
        if self.found.len() > self.max {
            self.found.pop();
        }
    }

    /// In the order of their last use.
    pub(super) fn into_sorted(self) -> Vec<Candidate> {
        self.found.into_sorted_vec()
    }
}

/// What may go, the least recently used first.
#[derive(Default)]
pub(super) struct Pool {
    cleared: HashMap<Object, Cleared>,
    order: BTreeSet<(u64, Object)>,
    room: u64,
    /// What was kept since somebody began to find out what nothing refers to.
    kept: Option<Kept>,
}

/// See [`Pool::begin`].
#[derive(Default)]
struct Kept {
    objects: HashSet<Object>,
    /// There were more.
    is_over: bool,
}

#[derive(Clone, Copy)]
struct Cleared {
    last_use: u64,
    room: u64,
    until_s: u64,
    /// As nothing refers to it; otherwise somebody else keeps it.
    is_unreferenced: bool,
}

/// Most contents that are cleared at a time: about 2 MiB of memory.
pub(super) const CLEARED_MAX: usize = 16_384;
/// Most contents of which it is noted that they are kept: 5 MiB of memory.
const KEPT_MAX: usize = 65_536;

impl Pool {
    /// Adds a content that may go until then (seconds since 1970). False, with nothing changed, if there are too many.
    pub(super) fn offer(&mut self, candidate: &Candidate, until_s: u64) -> bool {
        if self.is_full() && !self.cleared.contains_key(&candidate.object) {
            return false;
        }
        self.take(&candidate.object);
        let cleared = Cleared {
            last_use: candidate.last_use,
            room: candidate.room,
            until_s,
            is_unreferenced: false,
        };
        self.put(candidate.object, cleared);
        true
    }

    fn put(&mut self, object: Object, cleared: Cleared) {
        self.room = self.room.saturating_add(cleared.room);
        self.order.insert((cleared.last_use, object));
        self.cleared.insert(object, cleared);
    }

    /// The one that goes first; it stays in the pool until [`Pool::take`]. `last_use` says when a content was used last, as far
    /// as that is known better than from when it was cleared.
    pub(super) fn first(
        &mut self,
        now_s: u64,
        last_use: impl Fn(&Object) -> Option<u64>,
    ) -> Option<Object> {
        // Each is put behind at most once in a call, so this ends.
        for _ in 0..=self.order.len() {
            let &(was_used, object) = self.order.first()?;
            let cleared = *self.cleared.get(&object)?;
            if cleared.until_s <= now_s {
                self.take(&object);
                continue;
            }
            match last_use(&object) {
                Some(last_use) if last_use > was_used => self.put_behind(&object, last_use),
                _ => return Some(object),
            }
        }
        None
    }

    /// Notes a later use.
    pub(super) fn put_behind(&mut self, object: &Object, last_use: u64) {
        if let Some(cleared) = self.cleared.get(object).copied() {
            self.take(object);
            self.put(
                *object,
                Cleared {
                    last_use,
                    ..cleared
                },
            );
        }
    }

    /// Takes a content out; false if it isn't there, and so may not go.
    pub(super) fn take(&mut self, object: &Object) -> bool {
        let Some(cleared) = self.cleared.remove(object) else {
            return false;
        };
        self.order.remove(&(cleared.last_use, *object));
        self.room = self.room.saturating_sub(cleared.room);
        true
    }

    pub(super) fn contains(&self, object: &Object) -> bool {
        self.cleared.contains_key(object)
    }

    /// From now on it is noted what is kept, until [`Pool::end`].
    pub(super) fn begin(&mut self) {
        self.kept = Some(Kept::default());
    }

    pub(super) fn end(&mut self) {
        self.kept = None;
    }

    /// Something refers to a content from now on: takes it out, unless somebody else keeps it.
    pub(super) fn keep(&mut self, object: &Object) {
        let known = self.cleared.get(object);
        if known.is_some_and(|cleared| cleared.is_unreferenced) {
            self.take(object);
        }
        if let Some(kept) = &mut self.kept {
            match kept.objects.len() < KEPT_MAX {
                true => drop(kept.objects.insert(*object)),
                false => kept.is_over = true,
            }
        }
    }

    /// Adds a content as [`Pool::offer`] does, unless it was kept since [`Pool::begin`], or may have been.
    pub(super) fn offer_unless_kept(&mut self, candidate: &Candidate, until_s: u64) -> bool {
        let kept = self.kept.as_ref();
        let is_kept =
            kept.is_none_or(|kept| kept.is_over || kept.objects.contains(&candidate.object));
        let is_cleared = !is_kept && self.offer(candidate, until_s);
        if is_cleared && let Some(cleared) = self.cleared.get_mut(&candidate.object) {
            cleared.is_unreferenced = true;
        }
        is_cleared
    }

    /// Whether no more may be cleared before some of it goes.
    pub(super) fn is_full(&self) -> bool {
        self.cleared.len() >= CLEARED_MAX
    }

    /// What all that may go takes.
    pub(super) fn room(&self) -> u64 {
        self.room
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::ContentId;

    fn object(number: u8) -> Object {
        Object {
            content: ContentId([number; 32]),
            size: 5000,
        }
    }

    fn candidate((number, last_use, room): (u8, u64, u64)) -> Candidate {
        Candidate {
            last_use,
            object: object(number),
            room,
        }
    }

    #[test]
    fn an_index_that_is_larger_than_the_limit_leaves_room_for_contents() {
        let mib = 1024 * 1024;
        let limits = Limits {
            cache_bytes_max: 40 * mib,
            free_bytes_min: 0,
        };
        let taken = Taken {
            index: 500 * mib,
            ..Taken::default()
        };
        let wants = |bytes| limits.lacks(&taken, u64::MAX, Want::Files(bytes));
        assert_eq!(wants(8 * mib), None);
        assert!(wants(9 * mib).is_some());
        assert!(limits.ever_fits(&taken, Want::Files(8 * mib)));
    }

    proptest! {
        #[test]
        fn what_lacks_nothing_stays_within_both_limits(
            max in 0u64..1 << 40,
            min in 0u64..1 << 40,
            parts in prop::array::uniform8(0u64..1 << 38),
            free in 0u64..1 << 41,
            bytes in 0u64..1 << 38,
            kind in 0u8..3,
        ) {
            let limits = Limits { cache_bytes_max: max, free_bytes_min: min };
            let [files, packs, staging, reserved, index, index_since, small, reserved_small] = parts;
            let taken = Taken { files, packs, staging, reserved, reserved_small, index, index_since, small };
            let want = [Want::Files(bytes), Want::Small(bytes), Want::Written(bytes)][usize::from(kind)];
            let fits_files = taken.all(&limits) + bytes <= limits.usable() && reserved + bytes + min <= free;
            let fits = match want {
                Want::Files(_) => fits_files,
                Want::Small(_) => fits_files && small + reserved_small + bytes <= limits.small_max(),
                Want::Written(_) => small + reserved_small + bytes <= limits.written_max(),
            };
            match limits.lacks(&taken, free, want) {
                None => prop_assert!(fits),
                Some(lack) => {
                    prop_assert!(!fits);
                    // Once that much is gone there is room, if there was that much.
                    let after = Taken {
                        files: files.saturating_sub(lack.files),
                        small: small.saturating_sub(lack.small),
                        ..taken
                    };
                    let left = limits.lacks(&after, free + lack.files, want);
                    prop_assert!(left.is_none() || files < lack.files || small < lack.small);
                }
            }
        }

        #[test]
        fn the_oldest_are_those_that_were_not_used_for_longest(
            all in prop::collection::vec((any::<u8>(), 0u64..100, 1u64..9), 0..60),
            max in 1usize..20,
        ) {
            let all: Vec<_> = all.into_iter().map(candidate).collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let mut left = &sorted[..];
            let mut after = None;
            while !left.is_empty() {
                let mut oldest = Oldest::after(after, max);
                sorted.iter().for_each(|candidate| oldest.look_at(*candidate));
                let found = oldest.into_sorted();
                let (first, rest) = left.split_at(left.len().min(max));
                prop_assert_eq!(&found, first);
                (after, left) = (found.last().copied(), rest);
            }
        }

        /// Whatever is offered, used, taken back and let go: only what is cleared goes, while it is, in the order of use.
        #[test]
        fn only_what_is_cleared_goes_and_what_was_used_goes_last(
            steps in prop::collection::vec((0u8..6, 0u8..8, 0u64..50), 0..200),
        ) {
            let mut pool = Pool::default();
            let mut cleared: HashMap<Object, (u64, u64)> = HashMap::new();
            let mut used: HashMap<Object, u64> = HashMap::new();
            let mut now = 100;
            for (step, number, value) in steps {
                let it = object(number);
                match step {
                    0 | 1 => {
                        let candidate = candidate((number, value, 7));
                        prop_assert!(pool.offer(&candidate, now + value));
                        cleared.insert(it, (value, now + value));
                        used.remove(&it);
                    }
                    2 => {
                        let last = used.entry(it).or_insert(0);
                        *last = value.max(*last);
                    }
                    3 => now += value / 10,
                    4 => prop_assert_eq!(pool.take(&it), cleared.remove(&it).is_some()),
                    _ => {
                        let first = pool.first(now, |object| used.get(object).copied());
                        // What had ended may have been found out, or not yet.
                        let later = |object: &Object, since: u64| {
                            used.get(object).map_or(since, |used| since.max(*used))
                        };
                        for (object, (since, _)) in &mut cleared {
                            *since = later(object, *since);
                        }
                        let expected = cleared
                            .iter()
                            .filter(|(_, (_, until))| *until > now)
                            .map(|(object, (since, _))| (*since, *object))
                            .min();
                        prop_assert_eq!(first, expected.map(|(_, object)| object));
                        if let Some(object) = first {
                            prop_assert!(pool.take(&object));
                            prop_assert!(!pool.take(&object));
                            cleared.remove(&object);
                        }
                        cleared.retain(|object, _| pool.contains(object));
                    }
                }
                let held = cleared.keys().filter(|object| pool.contains(object)).count();
                prop_assert_eq!(pool.room(), 7 * held as u64);
            }
        }
    }

    #[test]
    fn the_pool_is_bounded() {
        let mut pool = Pool::default();
        let numbered = |number: usize| Candidate {
            last_use: 1,
            object: Object {
                content: ContentId([0; 32]),
                size: number as u64,
            },
            room: 1,
        };
        for number in 0..CLEARED_MAX {
            assert!(pool.offer(&numbered(number), 2));
        }
        assert!(!pool.offer(&numbered(CLEARED_MAX), 2));
        assert!(pool.offer(&numbered(0), 3));
    }
}
