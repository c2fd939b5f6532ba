//! Proven blocks that are being kept right now: who reads them meanwhile has them from memory, and doesn't wait for the disk.
//!
//! As many as those who insert bring along, a few blocks each. Nothing of it is in a record, or offered to other members.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::content::{Object, VerifiedRange};

/// See the module.
#[derive(Default)]
pub(super) struct Arriving {
    /// How many there are, so that reads need not take the lock where there are none.
    count: AtomicUsize,
    blocks: Mutex<HashMap<(Object, u64), Bytes>>,
}

/// Shows blocks until it is dropped.
pub struct Shown {
    arriving: Arc<Arriving>,
    object: Object,
    blocks: Range<u64>,
    data: Vec<Bytes>,
    nodes: Vec<(u64, [u8; 64])>,
}

impl Shown {
    /// What is shown.
    pub(super) fn range(&self) -> VerifiedRange<'_> {
        VerifiedRange {
            object: self.object,
            blocks: self.blocks.clone(),
            data: self.data.iter().map(|data| &data[..]).collect(),
            nodes: self.nodes.clone(),
        }
    }
}

impl Arriving {
    /// `answer` is what the range came in, and is kept for as long.
    pub(super) fn show(self: &Arc<Self>, range: &VerifiedRange<'_>, answer: &Bytes) -> Shown {
        let data: Vec<Bytes> = range
            .data
            .iter()
            .map(|data| part_of(answer, data))
            .collect();
        let mut blocks = self.blocks.lock();
        for (block, data) in (range.blocks.start..).zip(&data) {
            blocks.insert((range.object, block), data.clone());
        }
        self.count.store(blocks.len(), Ordering::Release);
        Shown {
            arriving: self.clone(),
            object: range.object,
            blocks: range.blocks.clone(),
            data,
            nodes: range.nodes.clone(),
        }
    }

    /// Whether all of these blocks are arriving.
    pub(super) fn has(&self, object: &Object, mut blocks: Range<u64>) -> bool {
        if self.is_empty() {
            return false;
        }
        let arriving = self.blocks.lock();
        blocks.all(|block| arriving.contains_key(&(*object, block)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(super) fn get(&self, object: &Object, block: u64) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        self.blocks.lock().get(&(*object, block)).cloned()
    }

    /// Fills `buf`, which begins at `offset` and lies in those blocks. False, and nothing is of use, unless all are arriving.
    pub(super) fn read(
        &self,
        object: &Object,
        offset: u64,
        blocks: &Range<u64>,
        buf: &mut [u8],
    ) -> bool {
        if self.is_empty() {
            return false;
        }
        let end = offset + buf.len() as u64;
        blocks.clone().all(|block| {
            let bytes = object.bytes_of(block..block + 1);
            let wanted = bytes.start.max(offset)..bytes.end.min(end);
            let within = |range: &Range<u64>, start: u64| {
                let from = usize::try_from(range.start.checked_sub(start)?).ok()?;
                Some(from..usize::try_from(range.end.checked_sub(start)?).ok()?)
            };
            let mut copied = || {
                let data = self.get(object, block)?;
                let from = data.get(within(&wanted, bytes.start)?)?;
                buf.get_mut(within(&wanted, offset)?)?.copy_from_slice(from);
                Some(())
            };
            copied().is_some()
        })
    }
}

/// Part of an answer without a copy, if it is.
fn part_of(answer: &Bytes, part: &[u8]) -> Bytes {
    let (whole, part_at) = (answer.as_ptr_range(), part.as_ptr_range());
    match whole.start <= part_at.start && part_at.end <= whole.end {
        true => answer.slice_ref(part),
        false => Bytes::copy_from_slice(part),
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut blocks = self.arriving.blocks.lock();
        for block in self.blocks.clone() {
            blocks.remove(&(self.object, block));
        }
        self.arriving.count.store(blocks.len(), Ordering::Release);
    }
}
