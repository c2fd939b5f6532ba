//! Publishing a change of a file of which only a part is here, without fetching the rest.
//!
//! Nothing may refer to a content that nobody has whole. So before such a change is published another member, who has the old version whole,
//! is asked to make the new one: it takes over what is equal ([`super::kin`]), fetches the changed blocks from here,
//! and promises to keep the whole for as long as for an eviction; its promise is on its disk, with the content, before it answers.
//! From then on what is here of the new version is a part of a content that another member holds, as if it had been fetched.
//! Where nobody does so, the rest is fetched, and all of it published from here.
//!
//! Who is asked does no more than the asker gains: it fetches at most as much as it takes from the old version (and 64 MiB), into
//! room that is free, or held by what others promised to keep.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{TransferError, Transfers, kin::Wait};
use crate::{
    content::{BlockSet, Leaves, Object, verify_range},
    net::proto::{BlockAnswer, BlockRequest, Have, TREE_BLOCKS_MAX},
    store::{Presence, Store, StoreError},
};

/// For how long members are asked to keep what may be nowhere else.
pub const LEASE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Contents that are made for others at a time.
const MADE_MAX: usize = 4;
/// For how long one that could not be made is not tried again, and how many of these are remembered.
const FAILED_FOR: Duration = Duration::from_secs(600);
const FAILED_MAX: usize = 256;
/// Blocks that may be fetched beyond as many as are taken over.
const FETCHED_FREE: u64 = 1024;
/// Longest wait for an answer that takes no work.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for a promise: content and promise go to the disk first.
const PROMISED_WITHIN: Duration = Duration::from_secs(30);
/// How long one member is given for all of it, and for each byte of the content on top: 20 MB a second.
const MADE_WITHIN: Duration = Duration::from_secs(20);
const BYTES_PER_MS: u64 = 20_000;
/// Pauses between looks at how far it is: the first, and the longest.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Members that are asked, one after the other.
const TRIED_MAX: usize = 2;
/// What reports call it.
const LABEL: &str = "a new version, for who changed it";

/// Contents that are made for others.
#[derive(Default)]
pub(super) struct Made {
    under_way: BTreeSet<Object>,
    /// Those that could not be, and when that was.
    failed: BTreeMap<Object, Instant>,
}

/// Takes its content out of those under way at the end.
struct Making {
    made: Arc<Mutex<Made>>,
    object: Object,
    is_made: bool,
}

impl Making {
    fn ends_well(mut self) {
        self.is_made = true;
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut made = self.made.lock();
        made.under_way.remove(&self.object);
        if !self.is_made {
            if made.failed.len() >= FAILED_MAX {
                made.failed.pop_first();
            }
            made.failed.insert(self.object, Instant::now());
        }
    }
}

impl Transfers {
    /// Begins to make a content out of an older version that is whole here, and what differs. Whether it has begun, or is
    /// whole: asked again, it tells whether it goes on.
    ///
    /// # Errors
    /// Of the store.
    pub fn make(&self, new: Object, old: Object) -> Result<bool, StoreError> {
        if self.store.presence(&new)? == Presence::Complete {
            return Ok(true);
        }
        {
            let mut made = self.made.lock();
            made.failed.retain(|_, since| since.elapsed() < FAILED_FOR);
            if made.under_way.contains(&new) {
                return Ok(true);
            }
            let is_whole = self.store.presence(&old)? == Presence::Complete;
            let is_busy = made.under_way.len() >= MADE_MAX || made.failed.contains_key(&new);
            if is_busy || !is_whole || !has_room(&self.store, new.size) {
                return Ok(false);
            }
            made.under_way.insert(new);
        }
        let making = Making {
            made: self.made.clone(),
            object: new,
            is_made: false,
        };
        self.kin.note(new, old);
        let engine = self.clone();
        self.kin.runtime.spawn(async move {
            match engine.make_all(new).await {
                Ok(()) => making.ends_well(),
                Err(error) => {
                    tracing::debug!(content = %new.content, %error, "a new version was not made for who changed it");
                }
            }
        });
        Ok(true)
    }

    async fn make_all(&self, new: Object) -> Result<(), TransferError> {
        let store = |error: StoreError| TransferError::Store(error.to_string());
        let (mut taken, mut fetched) = (0, 0);
        let mut start = 0;
        while start < new.blocks() {
            // A part of the tree.
            let window = start..(start + TREE_BLOCKS_MAX).min(new.blocks());
            start = window.end;
            let before = lacking(&self.store, new, window.clone()).map_err(store)?;
            self.kin.take(new, window.clone(), Wait::Long).await;
            let after = lacking(&self.store, new, window.clone()).map_err(store)?;
            taken += before.saturating_sub(after);
            fetched += after;
            if fetched > taken + FETCHED_FREE {
                return Err(TransferError::Store(
                    "it has too little in common with the old one".into(),
                ));
            }
            self.ensure_behind(new, new.bytes_of(window.clone()), LABEL)
                .await?;
            if lacking(&self.store, new, window).map_err(store)? > 0 {
                return Err(TransferError::Store("there is no room for it".into()));
            }
        }
        Ok(())
    }

    /// Has another member make a content of which only what differs from an older one is here. True once one has it whole, and
    /// has promised to keep it for [`LEASE`].
    pub async fn entrust(&self, new: Object, old: Object) -> bool {
        let within = MADE_WITHIN + Duration::from_millis(new.size / BYTES_PER_MS);
        self.entrust_within(new, old, within).await
    }

    pub(super) async fn entrust_within(&self, new: Object, old: Object, within: Duration) -> bool {
        self.kin.note(new, old);
        let mut holders = self.kin.holders(old, Have::is_whole);
        let mut tried = 0;
        while let Some(peer) = holders.next().await {
            if self.entrust_to(peer, new, old, within).await {
                return true;
            }
            tried += 1;
            if tried == TRIED_MAX {
                break;
            }
        }
        false
    }

    async fn entrust_to(&self, peer: PeerId, new: Object, old: Object, within: Duration) -> bool {
        let source = &self.kin.source;
        let deadline = Instant::now() + within;
        let mut pause = LOOK_FIRST;
        loop {
            match source.make(peer, new, old, ANSWER_WITHIN).await {
                Ok(true) => {}
                _ => return false,
            }
            match source.keep(peer, new, LEASE, PROMISED_WITHIN).await {
                Ok(true) => break,
                Ok(false) if Instant::now() < deadline => {}
                _ => return false,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
        // A word is not enough for what may be the only copy.
        let start = rand::random_range(0..new.blocks().max(1));
        let request = BlockRequest {
            object: new,
            start,
            end: start + 1,
        };
        match source.blocks(peer, request, ANSWER_WITHIN).await {
            Ok(BlockAnswer::Data(encoded)) => verify_range(new, start..start + 1, &encoded).is_ok(),
            _ => false,
        }
    }

    /// The hashes of blocks of a content, whether these are here or not; `None` where not all could be had.
    pub async fn leaves(&self, object: Object, blocks: &BlockSet) -> Option<Leaves> {
        self.kin.leaves(object, blocks).await
    }
}

/// How many of the blocks are lacking.
fn lacking(store: &Store, object: Object, blocks: Range<u64>) -> Result<u64, StoreError> {
    Ok(match store.presence(&object)? {
        Presence::Complete => 0,
        Presence::Absent => blocks.end - blocks.start,
        Presence::Partial(here) => {
            let lacking = here.missing(blocks);
            lacking.map(|range| range.end - range.start).sum()
        }
    })
}

/// Whether so much fits, into what is free or may go.
fn has_room(store: &Store, bytes: u64) -> bool {
    let room = store.room();
    let fits = room.limits.is_none_or(|limits| {
        let index = limits.counted_of_index(room.index_bytes);
        let taken = [room.files_bytes, room.staging_bytes, index, bytes];
        let taken = taken.into_iter().fold(0, u64::saturating_add);
        taken.saturating_sub(room.cleared_bytes) <= limits.cache_bytes_max
    });
    fits && !store.is_tight()
}
