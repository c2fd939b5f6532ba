//! What is to be kept: pinned paths, the contents below them, and promises that other members were given, or gave.
//!
//! ```text
//! tree pins       path, as `a/b`                                   → 1 (version)
//! tree pinned     hash (32) ‖ size (8, big-endian)                 → 1 (version) ‖ names (4, little-endian) ‖ one of the paths
//! tree promises   hash (32) ‖ size (8, big-endian)                 → 1 (version) ‖ until, seconds since 1970 (8, little-endian) ‖ bound (1)
//! tree cleared    hash (32) ‖ size (8, big-endian)                 → 1 (version) ‖ until ‖ since (seconds, 8 each, little-endian) ‖ proved (1)
//! ```
//!
//! `pinned` counts under how many names below pinned paths a content stands; it is made anew by every process, and empty
//! until then. [`super::Usage::pinned_bytes`] follows it and the blocks that come and go: both change it under the object's
//! `change`.
//!
//! `promises` has one record for a content, whoever was promised it: the latest end counts. So there are no more of them than
//! there are contents here. `bound` is 0 where the content would have stayed anyway, so that it takes nothing of what may be
//! promised; it is absent in records of earlier versions.
//!
//! `cleared` has what other members promised to keep, so that it may go from here: nobody may be there to ask after the next
//! start. What was written here may go only where its keeper gave a block as well (`proved`).
//!
//! Versions that know nothing of these trees leave them alone, and evict nothing.

use std::sync::atomic::Ordering;

use super::{
    Origin, Pairs, StoreError, all,
    cache::{Core, bytes_in, now},
    policy::{Candidate, small_room},
    record::{ObjectRecord, object_key, parse_object_key},
    room::{Size, estimate, forget},
};
use crate::content::Object;

const VERSION: u8 = 1;
/// Nobody promises to keep something for longer: then a clock is wrong. Seconds.
const CLEARED_FOR_MAX: u64 = 31 * 24 * 3600;
/// What clocks are set back by without being wrong. Seconds.
const CLOCK_SLACK: u64 = 300;
/// One part in so many of the cache is promised at most, what would stay anyway apart.
const PROMISED_DIVISOR: u64 = 4;

/// What another member promised.
#[derive(Clone, Copy)]
struct ClearedRecord {
    until_s: u64,
    since_s: u64,
    proved: bool,
}

fn cleared_of(value: &[u8]) -> Option<ClearedRecord> {
    let (until, rest) = value.strip_prefix(&[VERSION])?.split_first_chunk()?;
    let (since, rest) = rest.split_first_chunk()?;
    Some(ClearedRecord {
        until_s: u64::from_le_bytes(*until),
        since_s: u64::from_le_bytes(*since),
        proved: *rest.first()? == 1,
    })
}

impl Core {
    /// Counts bytes of an object that came (or went).
    pub(super) fn count_came(&self, object: &Object, bytes: u64) -> Result<(), StoreError> {
        self.objects_bytes.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.room.count_small(object, true);
        }
        if self.is_pinned(object)? {
            self.pinned_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The opposite of [`Core::count_came`].
    pub(super) fn count_went(&self, object: &Object, bytes: u64) -> Result<(), StoreError> {
        self.objects_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.room.count_small(object, false);
        }
        if self.is_pinned(object)? {
            self.pinned_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(super) fn pins(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let pins: Pairs = all(&self.pins)?;
        Ok(pins.into_iter().map(|(path, _)| path).collect())
    }

    pub(super) fn set_pin(&self, path: &[u8], pinned: bool) -> Result<(), StoreError> {
        self.index_takes(path.len() as u64)?;
        match pinned {
            true => self.pins.insert(path, &[VERSION])?,
            false => self.pins.remove(path)?,
        };
        self.flush_index()
    }

    pub(super) fn is_pinned(&self, object: &Object) -> Result<bool, StoreError> {
        Ok(!self.pinned.is_empty() && self.pinned.contains_key(object_key(object))?)
    }

    pub(super) fn count_pinned(
        &self,
        object: &Object,
        path: &[u8],
        more: bool,
    ) -> Result<bool, StoreError> {
        if object.size == 0 {
            return Ok(false);
        }
        let hot = self.hot_or_new(object)?;
        let _change = hot.change.lock();
        let key = object_key(object);
        let before = self.pinned.get(key)?;
        let names = before.as_deref().map_or(0, names_of);
        let after = match more {
            true => names.saturating_add(1),
            false => names.saturating_sub(1),
        };
        if after == 0 {
            self.pinned.remove(key)?;
        } else {
            let mut value = vec![VERSION];
            value.extend_from_slice(&after.to_le_bytes());
            value.extend_from_slice(before.as_deref().and_then(path_of).unwrap_or(path));
            self.index_takes(value.len() as u64)?;
            self.pinned.insert(key, value)?;
            if names == 0 {
                self.room.pool(Size::of(object)).lock().take(object);
                self.forget_cleared(object)?;
            }
        }
        let here = bytes_in(object, &hot.state.read().record.present);
        match (names == 0, after == 0) {
            (true, false) => {
                self.pinned_bytes.fetch_add(here, Ordering::Relaxed);
            }
            (false, true) => {
                self.pinned_bytes.fetch_sub(here, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(names == 0 && after == 1)
    }

    pub(super) fn pinned_after(
        &self,
        after: Option<&Object>,
        limit: usize,
    ) -> Result<Vec<(Object, Vec<u8>)>, StoreError> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |object| {
            Bound::Excluded(object_key(object).to_vec())
        });
        let mut pinned = Vec::new();
        for pair in self
            .pinned
            .range((from, Bound::<Vec<u8>>::Unbounded))
            .take(limit)
        {
            let (key, value) = pair?;
            let path = path_of(&value).unwrap_or_default().to_vec();
            pinned.push((parse_object_key(&key)?, path));
        }
        Ok(pinned)
    }

    pub(super) fn forget_pinned(&self) -> Result<(), StoreError> {
        while let Some(pair) = self.pinned.iter().next() {
            let (key, _) = pair?;
            let object = parse_object_key(&key)?;
            let hot = self.hot_or_new(&object)?;
            let _change = hot.change.lock();
            if self.pinned.remove(key)?.is_some() {
                let here = bytes_in(&object, &hot.state.read().record.present);
                self.pinned_bytes.fetch_sub(here, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Seconds since 1970. What makes no sense, of a later version, holds: `None`.
fn promised_until(value: &[u8]) -> Option<u64> {
    let until = value.get(1..9)?.try_into().ok()?;
    (value.first() == Some(&VERSION)).then_some(u64::from_le_bytes(until))
}

/// Whether a promise takes something of what may be promised.
fn is_bound(value: &[u8]) -> bool {
    value.get(9) != Some(&0)
}

fn names_of(value: &[u8]) -> u32 {
    let names = value.get(1..5).and_then(|names| names.try_into().ok());
    names.map_or(0, u32::from_le_bytes)
}

fn path_of(value: &[u8]) -> Option<&[u8]> {
    value.get(5..)
}

impl Core {
    /// See [`super::Store::evict`].
    pub(super) fn evict(&self, object: &Object) -> Result<Option<u64>, StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(Some(0));
        };
        let change = hot.change.lock();
        // Pinned a moment ago: who counted it as pinned has seen it whole.
        if self.is_exempt(&hot)? {
            return Ok(None);
        }
        let freed = forget(&hot);
        self.count_went(object, freed)?;
        self.write_record(&hot, &change)?;
        // No record may claim what is about to go, not even one that a crash brings back.
        self.flush_index()?;
        self.unlink(&hot)?;
        Ok(Some(freed))
    }

    pub(super) fn promise(&self, object: &Object, until_s: u64) -> Result<bool, StoreError> {
        let Some(hot) = self.hot(object)? else {
            return Ok(false);
        };
        // Whoever lets a content go holds it too: none is promised and dropped.
        let change = hot.change.lock();
        let (is_whole, origin) = {
            let state = hot.state.read();
            (state.record.is_complete(object), state.record.origin)
        };
        let key = object_key(object);
        let before = self.promises.get(key)?;
        // What would stay anyway costs nothing.
        let stays = origin == Origin::Written || self.is_pinned(object)?;
        if !is_whole || !(stays || before.is_some() || self.may_promise(object)) {
            return Ok(false);
        }
        let is_bound = before.as_deref().map_or(!stays, is_bound);
        let until_s = before.as_deref().map_or(until_s, |before| {
            promised_until(before).map_or(u64::MAX, |before| before.max(until_s))
        });
        let mut value = vec![VERSION];
        value.extend_from_slice(&until_s.to_le_bytes());
        value.push(u8::from(is_bound));
        self.index_takes(value.len() as u64)?;
        if self.promises.insert(key, value)?.is_none() && is_bound {
            self.promised_bytes
                .fetch_add(object.size, Ordering::Relaxed);
        }
        if origin != Origin::Written {
            // Others drop it because it is here: once the promise has ended, it may be the only copy all the same.
            let mut state = hot.state.write();
            state.record.origin = Origin::Written;
            state.dirty = true;
            drop(state);
            self.write_record(&hot, &change)?;
        }
        Ok(true)
    }

    /// See [`super::Store::make_durable`].
    pub(super) fn make_all_durable(&self, objects: &[Object]) -> Result<Vec<bool>, StoreError> {
        if let Err(error) = self.settle_objects(objects) {
            tracing::warn!(%error, "what is here could not be put on disk");
        }
        self.flush()?;
        // What could not be put there stays loose.
        let objects = objects.iter();
        Ok(objects
            .map(|object| self.make_durable(object).is_ok())
            .collect())
    }

    /// Promises bind room for a month: they get a part of it.
    fn may_promise(&self, object: &Object) -> bool {
        let promised = self.promised_bytes.load(Ordering::Relaxed);
        let limit = self.room.cache_bytes_max();
        promised.saturating_add(object.size) <= limit / PROMISED_DIVISOR
    }

    /// Forgets promises that have ended, and counts the others.
    pub(super) fn recover_promises(&self) -> Result<(), StoreError> {
        let mut bytes = 0;
        for pair in self.promises.iter() {
            let (key, value) = pair?;
            match promised_until(&value) {
                Some(until) if until <= now() => {
                    self.promises.remove(key)?;
                }
                _ if !is_bound(&value) => {}
                _ => bytes += parse_object_key(&key).map_or(0, |object| object.size),
            }
        }
        self.promised_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// See [`super::Store::clear_promised`].
    pub(super) fn clear_promised(
        &self,
        candidate: &Candidate,
        until_s: u64,
        origin: Origin,
    ) -> bool {
        if !self.clear(candidate, until_s) {
            return false;
        }
        let mut value = vec![VERSION];
        value.extend_from_slice(&until_s.to_le_bytes());
        value.extend_from_slice(&now().to_le_bytes());
        value.push(u8::from(origin == Origin::Written));
        let kept = self.index_takes(value.len() as u64).and_then(|()| {
            self.cleared.insert(object_key(&candidate.object), value)?;
            Ok(())
        });
        if let Err(error) = kept {
            tracing::debug!(%error, "the next start will not know that this is kept elsewhere");
        }
        true
    }

    /// A content is not what it was when it was cleared, or is gone.
    pub(super) fn forget_cleared(&self, object: &Object) -> Result<(), StoreError> {
        self.cleared.remove(object_key(object))?;
        Ok(())
    }

    /// See [`super::Store::recover_cleared`].
    pub(super) fn recover_cleared(&self) -> Result<bool, StoreError> {
        let now = now();
        let mut is_any = false;
        let mut records = Vec::new();
        for pair in self.cleared.iter() {
            let (key, value) = pair?;
            match parse_object_key(&key) {
                Ok(object) => records.push((object, cleared_of(&value))),
                Err(_) => drop(self.cleared.remove(key)?),
            }
        }
        let since =
            |record: &(Object, Option<ClearedRecord>)| record.1.map(|record| record.since_s);
        // By a clock that was set back, promises would last longer than they do.
        let is_back = records.iter().filter_map(since).max() > Some(now + CLOCK_SLACK);
        for (object, record) in records {
            let holds = |record: &ClearedRecord| {
                !is_back && record.until_s > now && record.until_s - now <= CLEARED_FOR_MAX
            };
            let candidate = match record.filter(holds) {
                Some(record) => self.cleared_candidate(&object, record)?,
                None => None,
            };
            match candidate {
                Some((candidate, until_s)) => is_any |= self.clear(&candidate, until_s),
                None => self.forget_cleared(&object)?,
            }
        }
        Ok(is_any)
    }

    fn cleared_candidate(
        &self,
        object: &Object,
        record: ClearedRecord,
    ) -> Result<Option<(Candidate, u64)>, StoreError> {
        let Some(value) = self.objects.get(object_key(object))? else {
            return Ok(None);
        };
        let last_use = ObjectRecord::last_use_of(&value);
        let Ok(kept) = ObjectRecord::decode(object, &value) else {
            return Ok(None);
        };
        if kept.origin == Origin::Written && !record.proved {
            return Ok(None);
        }
        let room = match Size::of(object) {
            Size::Small => small_room(object.size),
            Size::Large => estimate(object, &kept.present),
        };
        let candidate = Candidate {
            last_use: last_use.unwrap_or(0),
            object: *object,
            room,
        };
        Ok(Some((candidate, record.until_s)))
    }

    /// Forgets a promise that has ended, on the way.
    pub(super) fn is_promised(&self, object: &Object, now_s: u64) -> Result<bool, StoreError> {
        let key = object_key(object);
        let Some(promise) = self.promises.get(key)? else {
            return Ok(false);
        };
        let holds = promised_until(&promise).is_none_or(|until| until > now_s);
        if !holds && self.promises.remove(key)?.is_some() && is_bound(&promise) {
            self.promised_bytes
                .fetch_sub(object.size, Ordering::Relaxed);
        }
        Ok(holds)
    }
}
