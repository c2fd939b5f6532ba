//! Proven blocks that are about to be kept: who waits for them gets them without waiting for the disk, which takes longer than a
//! short way through the network where a new file has to be made.
//!
//! They are shown until the guard is dropped, which its owner does once they are kept, or are not going to be. Callers bound
//! what is shown: little at a time. Nothing of it is in a record, or offered to other members.

use std::{collections::HashMap, ops::Range};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::content::{BLOCK_BYTES, BlockSet, Object, VerifiedRange};

/// The blocks, each with how many show it.
#[derive(Default)]
pub(super) struct Shown(Mutex<HashMap<(Object, u64), (Bytes, u32)>>);

impl Shown {
    pub(super) fn add(&self, range: &VerifiedRange<'_>) {
        let mut shown = self.0.lock();
        for (block, data) in range.blocks.clone().zip(&range.data) {
            shown
                .entry((range.object, block))
                .or_insert_with(|| (Bytes::copy_from_slice(data), 0))
                .1 += 1;
        }
    }

    pub(super) fn remove(&self, object: &Object, blocks: Range<u64>) {
        let mut shown = self.0.lock();
        for block in blocks {
            let key = (*object, block);
            if let Some((_, users)) = shown.get_mut(&key) {
                *users -= 1;
                if *users == 0 {
                    shown.remove(&key);
                }
            }
        }
    }

    pub(super) fn get(&self, object: &Object, block: u64) -> Option<Bytes> {
        let shown = self.0.lock();
        shown.get(&(*object, block)).map(|(data, _)| data.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// What is shown of an object.
    pub(super) fn blocks(&self, object: &Object) -> BlockSet {
        let mut blocks = BlockSet::default();
        for (of, block) in self.0.lock().keys() {
            if of == object {
                blocks.insert(*block..*block + 1);
            }
        }
        blocks
    }

    /// Fills `buf` from `offset` if all of it is shown.
    pub(super) fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> bool {
        let shown = self.0.lock();
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset + filled as u64;
            let Some((data, _)) = shown.get(&(*object, at / BLOCK_BYTES)) else {
                return false;
            };
            // Below the length of a block.
            let Some(rest) = data.get((at % BLOCK_BYTES) as usize..) else {
                return false;
            };
            let len = rest.len().min(buf.len() - filled);
            if len == 0 {
                return false;
            }
            buf[filled..filled + len].copy_from_slice(&rest[..len]);
            filled += len;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentId;

    #[test]
    fn what_is_shown_is_read_whole_or_not_at_all_until_the_last_who_shows_it_is_done() {
        let object = Object {
            content: ContentId([3; 32]),
            size: 3 * BLOCK_BYTES - 10,
        };
        let data: Vec<u8> = (0..object.size).map(|at| (at % 251) as u8).collect();
        let block = |at: u64| {
            let bytes = object.bytes_of(at..at + 1);
            &data[bytes.start as usize..bytes.end as usize]
        };
        let range = VerifiedRange {
            object,
            blocks: 1..3,
            data: vec![block(1), block(2)],
            nodes: Vec::new(),
        };
        let shown = Shown::default();
        shown.add(&range);
        shown.add(&range);
        let mut buf = vec![0; BLOCK_BYTES as usize];
        let offset = 2 * BLOCK_BYTES - 100;
        for _ in 0..2 {
            let part = &mut buf[..1000];
            assert!(shown.read(&object, offset, part));
            assert_eq!(part, &data[offset as usize..][..1000]);
            assert!(!shown.read(&object, BLOCK_BYTES - 1, part), "block 0");
            assert!(!shown.read(&object, object.size - 999, part), "the end");
            assert_eq!(shown.blocks(&object), BlockSet::of(1..3));
            shown.remove(&object, 1..3);
        }
        assert!(!shown.read(&object, offset, &mut buf[..1000]));
        assert!(shown.is_empty());
    }
}
