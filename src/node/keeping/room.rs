//! Finds out what may go when the cache needs room, ahead of the need.
//!
//! The store lets go only what was cleared, the least recently used first (`store::policy`). Cleared is
//! - what another member durably promised to keep for [`LEASE`]: asked for as for `p2pfs evict`. Of what was written here it must
//!   give a block as well: a word is not enough for what may be the only copy;
//! - what no entry of the folder, no open file and nothing that is being written refers to any more: earlier versions. That is
//!   looked for only when nobody promises enough, since it takes a way through the whole manifest. Every version of every
//!   entry counts, shown or not. What changed meanwhile is gone through as well, until nothing did while all that is beside
//!   the manifest was looked at, with all heads that are known shown.
//!
//! Everything else stays: what is pinned, promised to others, unpublished, lent to the kernel, or nobody else's.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::evict::{Evictions, LEASE, Running, held_elsewhere, now_s};
use crate::{
    content::Object,
    control::ControlError,
    fs::InUse,
    manifest::{self, Key, Kind, NodeHash},
    net::proto::KEPT_MAX,
    node::{Node, namespace::NamespaceError, run_blocking},
    store::{Candidate, Origin, Size, StoreError},
};

/// How much shorter than a promise what it clears stays cleared: clocks differ.
const LEASE_SLACK: Duration = Duration::from_secs(24 * 3600);
/// Contents that are looked at with one pass over the records.
const OLDEST_MAX: usize = 4096;
/// Contents that are looked for in the folder at a time: 5 MiB of memory.
const LOOKED_FOR_MAX: usize = 65_536;
/// What is cleared at a time at most: a part of the limit.
const CLEARED_DIVISOR: u64 = 4;
/// Longest search among contents of one kind; what it found until then counts.
const SEARCHED_WITHIN: Duration = Duration::from_secs(10);
/// How long one member is given to promise.
const PROMISED_WITHIN: Duration = Duration::from_secs(4);
/// Longest look for what nothing refers to, after that.
const LOOKED_WITHIN: Duration = Duration::from_secs(15);
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
/// It must have been so for a moment: another member, whose head is on its way, may have copied it by reference.
const UNREFERENCED_SINCE: Duration = Duration::from_secs(2);
/// How often it is looked: again where there was another head meanwhile, of which only what that changed is gone through.
const LOOKS_MAX: u32 = 16;
/// How much longer each time it is waited where it can't be looked now.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Entries that are gone through at a time.
const ROWS_MAX: usize = 4096;

/// Finds out what may go whenever there is a need; ends with the node.
pub(in crate::node) async fn keep_room(node: Arc<Node>) {
    // From now on it may be waited for.
    node.store.search_begins();
    node.store.search_ends(false);
    let (mut pause, mut next) = (FRUITLESS_PAUSE, Next::default());
    loop {
        let asked = tokio::time::timeout(LOOK_EVERY, node.store.room_wanted()).await;
        if asked.is_err() && !node.store.wants_room() {
            give_back(&node).await;
            continue;
        }
        node.store.search_begins();
        let begun = Instant::now();
        let found = match search(&node, &mut next).await {
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

/// Where the next look for what nothing refers to goes on.
#[derive(Default)]
struct Next {
    /// What earlier processes were promised is known.
    is_recovered: bool,
    large: Option<Candidate>,
    small: Option<Candidate>,
}

/// True if anything was cleared.
async fn search(node: &Arc<Node>, next: &mut Next) -> Result<bool, StoreError> {
    if !node.pins.wait_counted(COUNTED_WITHIN).await {
        tracing::warn!("nothing goes from the cache: it is not known yet what is pinned");
        return Ok(false);
    }
    if !next.is_recovered {
        let store = node.store.clone();
        next.is_recovered = true;
        match run_blocking(move || store.recover_cleared()).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "what others promised to keep before the start is not known");
            }
        }
    }
    let large = search_among(node, Size::Large, &mut next.large).await?;
    let small = search_among(node, Size::Small, &mut next.small).await?;
    Ok(large || small)
}

/// `next`: see [`clear_unreferenced`].
async fn search_among(
    node: &Arc<Node>,
    size: Size,
    next: &mut Option<Candidate>,
) -> Result<bool, StoreError> {
    let limits = node.store.room().limits;
    let limit = limits.map_or(u64::MAX, |limits| limits.cache_bytes_max);
    let deadline = Instant::now() + SEARCHED_WITHIN;
    let is_over = || {
        let cleared = node.store.cleared(size);
        cleared.is_none_or(|cleared| cleared >= limit / CLEARED_DIVISOR)
            || Instant::now() >= deadline
    };
    let (mut found, mut after) = (false, None);
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
            found |= asked?;
        }
        after = page.last().map(|(candidate, _)| *candidate);
        if page.len() < OLDEST_MAX {
            break;
        }
    }
    if !found && node.store.cleared(size).is_some() {
        found = clear_unreferenced(node, size, next).await?;
    }
    Ok(found)
}

/// Clears those that another member promises to keep; returns whether there were any.
async fn clear_promised(
    node: &Arc<Node>,
    batch: &[(Candidate, Origin)],
) -> Result<bool, StoreError> {
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
    let mut is_any = false;
    for (candidate, origin) in batch {
        let object = &candidate.object;
        // Whoever was promised it meanwhile relies on this node.
        let may_go = held.contains(object) && evictions.commit(object);
        is_any |= may_go && node.store.clear_promised(candidate, until_s, *origin);
    }
    Ok(is_any)
}

/// Clears those of a kind that nothing refers to any more, the least recently used first; returns whether there were any.
/// `after`: where to go on, as so many can't be looked for at a time, and those may all be referred to.
async fn clear_unreferenced(
    node: &Arc<Node>,
    size: Size,
    after: &mut Option<Candidate>,
) -> Result<bool, StoreError> {
    let (store, start) = (node.store.clone(), *after);
    let page = run_blocking(move || store.oldest(size, start, LOOKED_FOR_MAX)).await?;
    // Behind the last of all it begins anew.
    let last = page
        .get(LOOKED_FOR_MAX - 1)
        .map(|(candidate, _)| *candidate);
    let wanted = page.into_iter();
    let wanted = wanted.map(|(candidate, _)| (candidate.object, candidate));
    node.store.look_begins(size);
    let looked = unreferenced(node, wanted.collect());
    let looked = tokio::time::timeout(LOOKED_WITHIN, looked).await;
    let mut is_any = false;
    if let Ok(Ok(found)) = &looked {
        for candidate in found.values() {
            is_any |= node
                .store
                .clear_unreferenced(candidate, now_s() + UNREFERENCED_FOR);
        }
    }
    node.store.look_ends(size);
    if !is_any {
        *after = last;
    }
    match looked {
        Ok(outcome) => outcome.map(|_| is_any),
        Err(_) => Ok(false),
    }
}

/// Those of the contents that nothing refers to, nor did a moment ago; none where that can't be told.
async fn unreferenced(
    node: &Arc<Node>,
    mut wanted: BTreeMap<Object, Candidate>,
) -> Result<BTreeMap<Object, Candidate>, StoreError> {
    let begun = Instant::now();
    // Trees that were gone through: of those that follow on from them only what differs is.
    let mut seen: Vec<NodeHash> = Vec::new();
    for look in 0..LOOKS_MAX {
        if wanted.is_empty() {
            break;
        }
        let looking = node.clone();
        let at = match run_blocking(move || look_at_rest(&looking)).await {
            Ok(Some(at)) => at,
            Ok(None) => {
                tokio::time::sleep(LOOK_PAUSE * look).await;
                continue;
            }
            Err(error) => {
                // What can't be read may refer to anything.
                tracing::warn!(%error, "it can't be told what nothing refers to");
                return Ok(BTreeMap::new());
            }
        };
        wanted.retain(|object, _| !at.refers_to(object));
        // The merged state last: what comes next differs least from that.
        let new = at.roots.into_iter().rev();
        let new: Vec<_> = new.filter(|root| !seen.contains(root)).collect();
        if new.is_empty() && begun.elapsed() >= UNREFERENCED_SINCE {
            return Ok(wanted);
        }
        for root in new {
            let from = seen.last().copied().unwrap_or_else(manifest::empty_root);
            if let Err(error) = spare_mentioned(node, from, root, &mut wanted).await {
                // What can't be looked at may refer to anything.
                tracing::debug!(%error, "it can't be told what nothing refers to");
                return Ok(BTreeMap::new());
            }
            seen.push(root);
        }
        tokio::time::sleep(UNREFERENCED_SINCE.saturating_sub(begun.elapsed())).await;
    }
    Ok(BTreeMap::new())
}

/// What refers to contents at one moment.
struct References {
    /// Of the trees, whose entries do.
    roots: Vec<NodeHash>,
    pending: HashSet<Object>,
    in_use: InUse,
    /// What files that the last process had not published are based on.
    unpublished: HashSet<Object>,
}

impl References {
    /// But for the trees.
    fn refers_to(&self, object: &Object) -> bool {
        let sets = [&self.pending, &self.unpublished];
        self.in_use.has(object) || sets.iter().any(|set| set.contains(object))
    }
}

/// `None` while that can't be told: somebody is busy, or a head has come that is shown in a moment.
fn look_at_rest(node: &Node) -> Result<Option<References>, NamespaceError> {
    let unpublished = node.store.journal_bases();
    let unpublished = unpublished.map_err(|error| NamespaceError::Failed(error.to_string()))?;
    let Some(mounted) = node.mounted() else {
        return Ok(None);
    };
    let looked = mounted.at_rest(|in_use| (in_use, node.namespace.made_of()));
    let Some((in_use, made_of)) = looked else {
        return Ok(None);
    };
    Ok(made_of?.map(|made_of| References {
        roots: made_of.roots,
        pending: made_of.pending,
        in_use,
        unpublished,
    }))
}

/// Takes out what any version of an entry mentions, shown or not, that one tree has and the other has not.
async fn spare_mentioned(
    node: &Arc<Node>,
    from: NodeHash,
    to: NodeHash,
    wanted: &mut BTreeMap<Object, Candidate>,
) -> Result<(), ControlError> {
    let mut after: Option<Key> = None;
    loop {
        let start = after.clone();
        let changes = node
            .with_nodes(move |namespace| {
                namespace.changes_after(from, to, start.as_ref(), ROWS_MAX)
            })
            .await?;
        for versions in changes.iter().filter_map(|change| change.new.as_ref()) {
            for version in versions.as_slice() {
                if let Kind::File(object) = &version.entry.kind {
                    wanted.remove(object);
                }
            }
        }
        if changes.len() < ROWS_MAX {
            return Ok(());
        }
        after = changes.into_iter().last().map(|change| change.key);
    }
}
