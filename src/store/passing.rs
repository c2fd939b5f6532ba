//! What there is no room for: proven blocks that pass through memory, so that who waits for them gets them all the same.
//!
//! Bounded, first in, first out. Nothing of it is in a record, or offered to other members.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::content::Object;

/// Bytes that are in passing at most.
const PASSING_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The blocks, each with its number.
pub(super) struct Passing {
    bytes_max: u64,
    bytes: u64,
    blocks: HashMap<(Object, u64), Bytes>,
    order: VecDeque<(Object, u64)>,
}

impl Default for Passing {
    fn default() -> Self {
        Self::new(PASSING_BYTES_MAX)
    }
}

impl Passing {
    fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            blocks: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Adds a block; those that came first make room.
    pub(super) fn put(&mut self, object: Object, block: u64, data: &[u8]) {
        let key = (object, block);
        if self.blocks.contains_key(&key) {
            return;
        }
        self.bytes += data.len() as u64;
        self.blocks.insert(key, Bytes::copy_from_slice(data));
        self.order.push_back(key);
        while self.bytes > self.bytes_max {
            let Some(first) = self.order.pop_front() else {
                break;
            };
            if let Some(data) = self.blocks.remove(&first) {
                self.bytes -= data.len() as u64;
            }
        }
    }

    pub(super) fn get(&self, object: &Object, block: u64) -> Option<Bytes> {
        self.blocks.get(&(*object, block)).cloned()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentId;

    #[test]
    fn what_came_first_goes_first_and_no_more_than_the_maximum_is_kept() {
        let object = Object {
            content: ContentId([1; 32]),
            size: 1 << 30,
        };
        let mut passing = Passing::new(30);
        for block in 0..5 {
            passing.put(object, block, &[block as u8; 10]);
            passing.put(object, block, &[9; 10]);
        }
        let there: Vec<_> = (0..5)
            .filter_map(|block| passing.get(&object, block))
            .collect();
        assert_eq!(there, [&[2; 10][..], &[3; 10], &[4; 10]]);
        passing.clear();
        assert!(passing.is_empty() && passing.get(&object, 4).is_none());
    }
}
