//! Brings a content here, behind what reads wait for: in windows, a few at a time, within what all that is brought may take.
//!
//! What came stays: whoever brings a content again goes on where it stopped.

use std::{ops::Range, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use tokio::sync::Semaphore;

use crate::{
    content::{BLOCK_BYTES, BlockSet, Object},
    node::{Node, members::whole_holders},
    store::{Presence, StoreError},
    transfer::TransferError,
};

/// Bytes of a content that are asked for as one.
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Windows of one content under way at a time.
const WINDOWS_AT_ONCE: usize = 4;
/// Blocks that all that is brought for one purpose may have under way: 64 MiB.
const BLOCKS_AT_ONCE: usize = 1024;
/// How often it is looked how much of a window is here, which on a slow link takes a while.
const LOOKED_EVERY: Duration = Duration::from_millis(500);
/// How often a window is tried while a member is there that has it: what reads wait for may have taken all there was.
const TRIES: usize = 5;

/// The room that all contents brought for one purpose share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BLOCKS_AT_ONCE)))
    }
}

/// The blocks of a content that are here.
pub(super) fn here(node: &Node, object: &Object) -> Result<BlockSet, StoreError> {
    Ok(match node.store.presence(object)? {
        Presence::Absent => BlockSet::default(),
        Presence::Partial(blocks) => blocks,
        Presence::Complete => BlockSet::of(0..object.blocks()),
    })
}

/// Bytes of these blocks.
pub(super) fn bytes_in(object: &Object, blocks: &BlockSet) -> u64 {
    let ranges = blocks.ranges().iter();
    let bytes = ranges.map(|range| object.bytes_of(range.clone()));
    bytes.map(|bytes| bytes.end - bytes.start).sum()
}

/// Brings what is missing; `came` is told of bytes as they come.
pub(super) async fn bring(
    node: &Node,
    object: Object,
    label: &str,
    room: &Room,
    came: &(dyn Fn(u64) + Sync),
) -> Result<(), TransferError> {
    let present = here(node, &object).map_err(|error| TransferError::Store(error.to_string()))?;
    let brought = windows(&object, &present).map(|(window, missing_bytes)| async move {
        let blocks = object.blocks_of(window.clone());
        // A window has far fewer blocks than fit a u32.
        let permits = u32::try_from(blocks.end - blocks.start).unwrap_or(u32::MAX);
        let Ok(_room) = room.0.acquire_many(permits).await else {
            return Err(TransferError::Stopping);
        };
        let mut told_bytes = 0;
        let mut bringing = pin!(try_window(node, object, window, label));
        loop {
            if let Ok(outcome) = tokio::time::timeout(LOOKED_EVERY, &mut bringing).await {
                outcome?;
                came(missing_bytes - told_bytes);
                return Ok(());
            }
            if let Ok(present) = here(node, &object) {
                let left_bytes = missing_in(&object, &present, blocks.clone());
                let come_bytes = missing_bytes.saturating_sub(left_bytes);
                came(come_bytes.saturating_sub(told_bytes));
                told_bytes = told_bytes.max(come_bytes);
            }
        }
    });
    let brought = stream::iter(brought);
    let mut brought = brought.buffer_unordered(WINDOWS_AT_ONCE);
    while let Some(outcome) = brought.next().await {
        outcome?;
    }
    Ok(())
}

async fn try_window(
    node: &Node,
    object: Object,
    window: Range<u64>,
    label: &str,
) -> Result<(), TransferError> {
    let mut tries = 1;
    loop {
        let outcome = node
            .transfers
            .ensure_behind(object, window.clone(), label)
            .await;
        match outcome {
            Err(TransferError::Stalled { .. }) if tries < TRIES => {
                let (holders, _) = whole_holders(&node.net, &node.holders, &[object]).await;
                if holders.is_empty() {
                    return outcome;
                }
                tries += 1;
            }
            Ok(()) => return is_kept(node, &object, window),
            outcome => return outcome,
        }
    }
}

/// What there is no room for comes, but does not stay.
fn is_kept(node: &Node, object: &Object, window: Range<u64>) -> Result<(), TransferError> {
    match here(node, object) {
        Ok(here) if here.contains(object.blocks_of(window)) => Ok(()),
        Ok(_) => Err(TransferError::Store(
            "the cache has no room for it, and nothing in it may go".to_owned(),
        )),
        Err(error) => Err(TransferError::Store(error.to_string())),
    }
}

/// The windows of a content in which something is missing, with how many bytes that is. One after the other: an entry may
/// say of a content that it has any size.
fn windows(object: &Object, present: &BlockSet) -> impl Iterator<Item = (Range<u64>, u64)> {
    let blocks_each = WINDOW_BYTES / BLOCK_BYTES;
    let starts = (0..object.blocks().div_ceil(blocks_each)).map(move |at| at * blocks_each);
    starts.filter_map(move |start| {
        let end = (start + blocks_each).min(object.blocks());
        match missing_in(object, present, start..end) {
            0 => None,
            bytes => Some((object.bytes_of(start..end), bytes)),
        }
    })
}

/// Bytes of these blocks that are not here.
fn missing_in(object: &Object, present: &BlockSet, blocks: Range<u64>) -> u64 {
    let missing = present.missing(blocks);
    let bytes = missing.map(|range| object.bytes_of(range));
    bytes.map(|bytes| bytes.end - bytes.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentId;

    #[test]
    fn windows_cover_what_is_missing_and_count_it() {
        let object = Object {
            content: ContentId([1; 32]),
            size: 2 * WINDOW_BYTES + 5,
        };
        let of = |present: &BlockSet| windows(&object, present).collect::<Vec<_>>();
        let all = [
            (0..WINDOW_BYTES, WINDOW_BYTES),
            (WINDOW_BYTES..2 * WINDOW_BYTES, WINDOW_BYTES),
            (2 * WINDOW_BYTES..object.size, 5),
        ];
        assert_eq!(of(&BlockSet::default()), all);
        let mut present = BlockSet::of(0..WINDOW_BYTES / BLOCK_BYTES + 1);
        let rest = (all[1].0.clone(), WINDOW_BYTES - BLOCK_BYTES);
        assert_eq!(of(&present), [rest, all[2].clone()]);
        present.insert(0..object.blocks());
        assert_eq!(of(&present), []);
    }

    #[test]
    fn of_a_content_as_large_as_can_be_said_the_first_windows_are_there_at_once() {
        let object = Object {
            content: ContentId([1; 32]),
            size: i64::MAX as u64,
        };
        let present = BlockSet::default();
        let mut windows = windows(&object, &present);
        assert_eq!(windows.next(), Some((0..WINDOW_BYTES, WINDOW_BYTES)));
        let second = WINDOW_BYTES..2 * WINDOW_BYTES;
        assert_eq!(windows.next(), Some((second, WINDOW_BYTES)));
    }
}
