//! Finds out what may go when the cache needs room, ahead of the need.
//!
//! The store lets go only what was cleared, the least recently used first (`store::policy`). Cleared is
//! - what another member durably promised to keep for [`LEASE`]: asked for as for `p2pfs evict`. Of what was written here it must
//!   give a block as well: a word is not enough for what may be the only copy;
//! - what no name of the folder, no open file and nothing that is being written refers to any more: earlier versions. That is
//!   looked for only when nobody promises enough, since it takes a walk through the whole folder, and counts only if nothing
//!   changed meanwhile, all heads that are known are shown, and there are no hard links: of a file with several names a version
//!   may stand that none of them shows.
//!
//! Everything else stays: what is pinned, promised to others, unpublished, lent to the kernel, or nobody else's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    evict::{Evictions, LEASE, Running, held_elsewhere, now_s},
    walk::{Step, Walk},
};
use crate::{
    content::Object,
    manifest::{NodeHash, TreePath},
    net::proto::KEPT_MAX,
    node::{Node, run_blocking},
    store::{Candidate, Origin, Size, StoreError},
};

/// How much shorter than a promise what it clears stays cleared: clocks differ.
const LEASE_SLACK: Duration = Duration::from_secs(24 * 3600);
/// Contents that are looked at with one pass over the records.
const OLDEST_MAX: usize = 4096;
/// Contents, the oldest of those that nobody promises to keep, that are looked for in the folder: 5 MiB of memory.
const LEFT_MAX: usize = 65_536;
/// What is cleared at a time at most: a part of the limit.
const CLEARED_DIVISOR: u64 = 4;
/// Longest search among contents of one kind; what it found until then counts.
const SEARCHED_WITHIN: Duration = Duration::from_secs(10);
/// How long one member is given to promise.
const PROMISED_WITHIN: Duration = Duration::from_secs(4);
/// Longest look for what nothing refers to, after that.
const WALKED_WITHIN: Duration = Duration::from_secs(15);
/// How long the count of what is pinned is waited for.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether there is a need, unasked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause after a search that found nothing, and after many of them: whoever waits for room waits for that as well. At least as
/// long as the search took.
const FRUITLESS_PAUSE: Duration = Duration::from_millis(500);
const FRUITLESS_PAUSE_MAX: Duration = Duration::from_secs(4);
/// What nothing refers to stays cleared for so long. Seconds.
const UNREFERENCED_FOR: u64 = 10;
/// It must have been so for a moment: what was just written may be about to get its name. Seconds.
const UNREFERENCED_SINCE: u64 = 2;
/// How often a walk is repeated because something changed meanwhile: what was just removed is published a moment later, and who
/// waits for room may just have made the file that it is for.
const WALKS_MAX: u32 = 8;
/// How much longer what changes is left alone each time, so that it may come to rest.
const WALK_PAUSE: Duration = Duration::from_millis(250);

/// Finds out what may go whenever there is a need; ends with the node.
pub(in crate::node) async fn keep_room(node: Arc<Node>) {
    // From now on it may be waited for.
    node.store.search_begins();
    node.store.search_ends(false);
    let mut pause = FRUITLESS_PAUSE;
    loop {
        let asked = tokio::time::timeout(LOOK_EVERY, node.store.room_wanted()).await;
        if asked.is_err() && !node.store.wants_room() {
            give_back(&node).await;
            continue;
        }
        node.store.search_begins();
        let begun = Instant::now();
        let found = match search(&node).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "it could not be found out what may go from the cache");
                false
            }
        };
        node.store.search_ends(found);
        give_back(&node).await;
        if found {
            pause = FRUITLESS_PAUSE;
        } else {
            let took = begun.elapsed();
            tokio::time::sleep(pause.max(took)).await;
            pause = (pause * 2).min(FRUITLESS_PAUSE_MAX);
        }
    }
}

/// Lets go what is beyond the limits: after they were lowered, or when others filled the disk.
async fn give_back(node: &Arc<Node>) {
    let store = node.store.clone();
    if let Err(error) = run_blocking(move || store.make_room(0)).await {
        tracing::warn!(%error, "room could not be made");
    }
}

/// True if anything was cleared.
async fn search(node: &Arc<Node>) -> Result<bool, StoreError> {
    if !node.pins.wait_counted(COUNTED_WITHIN).await {
        tracing::warn!("nothing goes from the cache: it is not known yet what is pinned");
        return Ok(false);
    }
    let large = search_among(node, Size::Large).await?;
    let small = search_among(node, Size::Small).await?;
    Ok(large || small)
}

async fn search_among(node: &Arc<Node>, size: Size) -> Result<bool, StoreError> {
    let limits = node.store.room().limits;
    let limit = limits.map_or(u64::MAX, |limits| limits.cache_bytes_max);
    let deadline = Instant::now() + SEARCHED_WITHIN;
    let is_over = || {
        let cleared = node.store.cleared(size);
        cleared.is_none_or(|cleared| cleared >= limit / CLEARED_DIVISOR)
            || Instant::now() >= deadline
    };
    let (mut found, mut after) = (false, None);
    let mut left = Vec::new();
    // Nobody may promise the oldest of all: then it is one of those that were used later.
    'pages: while !is_over() {
        let store = node.store.clone();
        let page = run_blocking(move || store.oldest(size, after, OLDEST_MAX)).await?;
        for batch in page.chunks(KEPT_MAX) {
            if is_over() {
                break;
            }
            // Members that are silent are waited for as long as there is time.
            let asked = clear_promised(node, batch);
            let Ok(asked) = tokio::time::timeout_at(deadline, asked).await else {
                break 'pages;
            };
            let (is_any, kept) = asked?;
            found |= is_any;
            left.extend(kept);
        }
        left.truncate(LEFT_MAX);
        after = page.last().map(|(candidate, _)| *candidate);
        if page.len() < OLDEST_MAX {
            break;
        }
    }
    if !found && !left.is_empty() && node.store.cleared(size).is_some() {
        let looked = clear_unreferenced(node, &left);
        found = tokio::time::timeout(WALKED_WITHIN, looked)
            .await
            .unwrap_or(false);
    }
    Ok(found)
}

/// Clears those that another member promises to keep; returns whether there were any, and the others.
async fn clear_promised(
    node: &Arc<Node>,
    batch: &[(Candidate, Origin)],
) -> Result<(bool, Vec<Candidate>), StoreError> {
    let evictions: &Evictions = &node.evictions;
    let mut running = Running {
        evictions,
        objects: Vec::new(),
    };
    for (candidate, _) in batch {
        if evictions.begin(candidate.object)? {
            running.objects.push(candidate.object);
        }
    }
    let written: BTreeSet<Object> = batch
        .iter()
        .filter(|(_, origin)| *origin == Origin::Written)
        .map(|(candidate, _)| candidate.object)
        .collect();
    let needs_proof = |object: &Object| written.contains(object);
    let held = held_elsewhere(node, &running.objects, PROMISED_WITHIN, &needs_proof).await;
    let held: BTreeSet<Object> = held.into_iter().collect();
    let until_s = now_s() + LEASE.saturating_sub(LEASE_SLACK).as_secs();
    let (mut is_any, mut left) = (false, Vec::new());
    for (candidate, _) in batch {
        let object = &candidate.object;
        // Whoever was promised it meanwhile relies on this node.
        let may_go = held.contains(object) && evictions.commit(object);
        if may_go && node.store.clear(candidate, until_s) {
            is_any = true;
        } else if running.objects.contains(object) {
            left.push(*candidate);
        }
    }
    Ok((is_any, left))
}

/// Clears those that nothing refers to any more; returns whether there were any.
async fn clear_unreferenced(node: &Arc<Node>, candidates: &[Candidate]) -> bool {
    for walks in 0..WALKS_MAX {
        tokio::time::sleep(WALK_PAUSE * walks).await;
        let young = |candidate: &&Candidate| candidate.last_use + UNREFERENCED_SINCE > now_s();
        let mut wanted: BTreeMap<Object, Candidate> = candidates
            .iter()
            .filter(|candidate| !young(candidate))
            .map(|candidate| (candidate.object, *candidate))
            .collect();
        let Some(before) = state_of(node) else {
            continue;
        };
        let (Some(in_use), Ok(mut walk)) = (
            in_use(node),
            Walk::start(node.clone(), &[TreePath::root()]).await,
        ) else {
            continue;
        };
        wanted.retain(|object, _| !in_use.contains(object));
        let whole = loop {
            match walk.next().await {
                Some(Step::File(_, object)) => {
                    wanted.remove(&object);
                }
                // What can't be looked at may refer to anything.
                Some(Step::Failed(..)) => break false,
                None => break !walk.met_links(),
            }
        };
        if !whole {
            return false;
        }
        if wanted.is_empty() {
            if !candidates.iter().any(|candidate| young(&candidate)) {
                return false;
            }
            tokio::time::sleep(Duration::from_secs(UNREFERENCED_SINCE)).await;
            continue;
        }
        let Some(in_use) = self::in_use(node) else {
            continue;
        };
        wanted.retain(|object, _| !in_use.contains(object));
        if state_of(node) != Some(before) {
            continue;
        }
        let until_s = now_s() + UNREFERENCED_FOR;
        let cleared = wanted.values();
        let cleared = cleared.filter(|candidate| node.store.clear(candidate, until_s));
        return cleared.count() > 0;
    }
    false
}

/// Changes with every change of the folder, here or elsewhere; `None` while there are changes that can't be seen: they may
/// refer to anything.
fn state_of(node: &Node) -> Option<(Option<NodeHash>, Option<u64>)> {
    let changes = node.mounted().map(|mounted| mounted.changes());
    let status = node.namespace.status();
    (status.unseen_heads == 0).then_some((status.root, changes))
}

/// What open files show, and what is being written; `None` while that can't be said.
fn in_use(node: &Node) -> Option<std::collections::HashSet<Object>> {
    node.mounted()?.contents_in_use()
}
