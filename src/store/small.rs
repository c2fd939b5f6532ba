//! Many small contents at a time: those of a batch that came from a peer, and those of one that goes to a peer.
//!
//! They go into packs and the index together for each shard of the object cache, and are not taken into use:
//! a batch of 256 would push everything else out of the cache. While a shard is locked nobody takes one of its objects into
//! use, so there is still never more than one state of an object.

use bytes::Bytes;

use super::{
    Origin, Presence, StoreError,
    cache::{Core, SHARDS, State, now, shard_of},
    policy::{Want, small_room},
    record::{ObjectRecord, object_key},
};
use crate::content::{BlockSet, INLINE_BYTES_MAX, Object, VerifiedRange};

impl Core {
    /// See [`super::Store::insert_all`].
    pub(super) fn insert_all(&self, ranges: &[VerifiedRange<'_>]) -> Result<(), StoreError> {
        let mut inline: [Vec<&VerifiedRange<'_>>; SHARDS] = Default::default();
        for range in ranges {
            let object = &range.object;
            let is_whole = object.size <= INLINE_BYTES_MAX
                && range.blocks == (0..object.blocks())
                && range.data.iter().map(|block| block.len()).sum::<usize>() as u64 == object.size;
            match inline.get_mut(shard_of(object)).filter(|_| is_whole) {
                Some(shard) => shard.push(range),
                None => self.insert(range)?,
            }
        }
        for ranges in inline {
            let room = ranges.iter().map(|range| small_room(range.object.size));
            let kept = match self.reserve(Want::Small(room.sum())) {
                Ok(_reserved) => self.insert_inline(&ranges),
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                ranges.iter().for_each(|range| self.pass(range, &error));
            }
        }
        self.note_index_if_grown()
    }

    /// Inline contents of one shard.
    fn insert_inline(&self, ranges: &[&VerifiedRange<'_>]) -> Result<(), StoreError> {
        let Some(first) = ranges.first() else {
            return Ok(());
        };
        let mut new = Vec::new();
        let mut in_use = Vec::new();
        let shard = self.shard(&first.object).lock();
        for range in ranges {
            let object = &range.object;
            if shard.get(object).is_some() || self.objects.contains_key(object_key(object))? {
                in_use.push(*range);
                continue;
            }
            let record = ObjectRecord {
                origin: Origin::Fetched,
                size_proven: true,
                last_use: now(),
                inline: Some(range.data.concat().into()),
                packed: None,
                present: BlockSet::of(0..object.blocks()),
                loose: BlockSet::default(),
            };
            new.push((*object, record));
        }
        for (object, record) in new {
            // Counted under the shard's lock, without which nobody counts it as pinned.
            self.insert_record(&object, record, true)?;
            self.count_came(&object, object.size)?;
        }
        drop(shard);
        for range in in_use {
            self.insert(range)?;
        }
        Ok(())
    }

    /// See [`super::Store::small`].
    pub(super) fn small(&self, object: &Object) -> Result<Option<Bytes>, StoreError> {
        if object.blocks() != 1 {
            return Ok(None);
        }
        let look = |state: &State| (state.record.inline.clone(), state.presence(object));
        let hot = self.shard(object).lock().get(object);
        let found = match hot {
            Some(hot) => Some(look(&hot.state.read())),
            None => self.recorded(object)?.map(|state| {
                if !state.withdrawn.is_empty() {
                    self.tell_of_packed(object);
                }
                look(&state)
            }),
        };
        match found {
            Some((Some(content), _)) => Ok(Some(content)),
            Some((None, Presence::Complete)) => match self.encode_proven(object, 0..1) {
                // The proof of a single block is the block.
                Ok(content) => Ok(Some(content.into())),
                Err(StoreError::Absent(_)) => Ok(None),
                Err(error) => Err(error),
            },
            _ => Ok(None),
        }
    }
}
