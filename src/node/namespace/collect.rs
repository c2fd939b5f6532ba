//! Letting go of manifest nodes that no state needs any more.
//!
//! What stays: what the state, the heads that are known and the remembered roots are made of; what may lie below a node of the
//! first two that is not here (`manifest::Reach`), for this member may be the only one who has it; what this node's own work was
//! made on that not all heads have seen, where there is no such node the first of it; and what came within the last one or two minutes, which
//! somebody may be working with.
//!
//! A member who comes back after long may have made its work on a state that nobody has in full any more. It merges that itself
//! (`Replica::merge_own_work`).

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    NamespaceError, Shared, blocking,
    disk::Disk,
    replica::{Moment, Replica},
};
use crate::{
    idle,
    manifest::{self, Node, NodeHash, NodeSource, Reach, TreeError},
};

/// How often it is looked whether enough has come, and when first: a mount may be one of many short ones.
const LOOKED_EVERY: Duration = Duration::from_secs(30);
const LOOKED_FIRST: Duration = Duration::from_secs(20);
/// A collection takes as long as reading all nodes, so it waits for so many bytes of new ones, and for as many as stayed. Where several
/// members change one folder, a few states a second leave some hundred KiB a second that nobody needs any more.
const GROWN_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// What was put is young for so long at least: somebody may be working with it, or fetching it from here.
const YOUNG_FOR: Duration = Duration::from_secs(60);
/// Nodes that are looked at at a time, and the pause after them.
const STEP_NODES: usize = 256;
const NAMES_STEP: usize = 4096;
const STEP_PAUSE: Duration = Duration::from_millis(20);
/// Of own work that others are not known to have seen, so many states stay in any case, the first: it takes a moment before it is known
/// what they have seen, and who goes away may have seen that much more.
const UNTOLD_MAX: usize = 128;
/// Of the remembered roots, each minute's stays for so long; of older ones each hour's.
const MINUTES_KEPT: u64 = 24 * 60;
const HOUR_MINUTES: u64 = 60;

/// Looks from time to time, until `closing`.
pub(super) async fn run(shared: Arc<Shared>, closing: CancellationToken) {
    tokio::select! {
        () = closing.cancelled() => {}
        () = collect_forever(&shared) => {}
    }
    // What came since the last look counts for the next mount: many are short.
    if let Err(error) = blocking(move || shared.replica.collection_due()).await {
        tracing::warn!(%error, "how much came since manifest nodes were let go could not be noted");
    }
}

async fn collect_forever(shared: &Arc<Shared>) {
    let mut pause = LOOKED_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        pause = LOOKED_EVERY;
        if let Err(error) = collect(shared).await {
            tracing::warn!(%error, "manifest nodes that nobody needs could not be let go");
        }
    }
}

async fn collect(shared: &Arc<Shared>) -> Result<(), NamespaceError> {
    let here = shared.clone();
    let look = move || {
        here.replica.let_grow_old(Moment::now());
        here.replica.collection_due()
    };
    let due = blocking(look).await?;
    if !due {
        return Ok(());
    }
    let here = shared.clone();
    let begin = move || idle::run(|| here.replica.begin_collection(Moment::now()));
    let mut collection = blocking(begin).await?;
    loop {
        let here = shared.clone();
        let step = move || {
            let looked_at = idle::run(|| here.replica.look_at_some(&mut collection))?;
            let Some(unneeded) = looked_at else {
                return Ok((collection, true));
            };
            here.replica.let_go(&mut collection, unneeded)?;
            Ok((collection, false))
        };
        let (next, done) = blocking(step).await?;
        if done {
            tracing::info!(
                removed = next.removed,
                young_bytes = next.young_bytes,
                stay_bytes = next.stay_bytes,
                "manifest nodes that nobody needs any more were let go"
            );
            return Ok(());
        }
        collection = next;
        tokio::time::sleep(STEP_PAUSE).await;
    }
}

/// A collection on its way.
pub(super) struct Collection {
    reach: Reach,
    /// Up to this node all were looked at.
    after: Option<NodeHash>,
    removed: u64,
    stay_bytes: u64,
    /// What nothing needs and is young: the next one's.
    young_bytes: u64,
}

impl Collection {
    fn needs(&self, hash: &NodeHash, node: &Node) -> bool {
        self.reach.needs(hash) || self.reach.may_need(node)
    }
}

/// A node that nothing is known to need, and its bytes.
type Unneeded = (NodeHash, Node, u64);

/// Nodes as they are on the disk, without the memory of those that were used last: most are read once.
struct OnDisk<'a, D>(&'a Replica<D>);

impl<D: Disk> NodeSource for OnDisk<'_, D> {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        let failed = |error: &dyn std::fmt::Display| TreeError::Source(error.to_string());
        let bytes = self.0.nodes.encoded(hash).map_err(|error| failed(&error))?;
        let node = bytes.map(|bytes| Node::decode(&bytes)).transpose();
        Ok(node.map_err(|error| failed(&error))?.map(Arc::new))
    }
}

impl<D: Disk> Replica<D> {
    /// Whether enough nodes came since the last collection, in this process and before.
    pub(super) fn collection_due(&self) -> Result<bool, NamespaceError> {
        let Some((grown, stayed)) = self.records.nodes_grown()? else {
            return Ok(true);
        };
        let new = self.nodes.take_grown();
        let grown = grown.saturating_add(new);
        if new > 0 {
            self.records.save_nodes_grown(grown, stayed)?;
        }
        Ok(grown >= GROWN_BYTES_MIN.max(stayed))
    }

    /// Ends the youth of nodes, where that is due.
    pub(super) fn let_grow_old(&self, now: Moment) {
        // Nobody is about to make a state of nodes that were put before this moment.
        let _turn = self.turn.lock();
        self.nodes.begin_generation(now.at, YOUNG_FOR);
    }

    /// The roots of what is shown, and of the heads that are known.
    fn present_roots(&self) -> Vec<NodeHash> {
        let state = self.state.read();
        let heads = state.heads.iter().map(|head| head.root);
        let parts = state.parts.iter().map(|part| part.root);
        state.root.into_iter().chain(heads).chain(parts).collect()
    }

    /// Before and after each head of this node that not all known heads have seen, as far as that is remembered.
    fn roots_of_unseen_work(&self) -> Vec<NodeHash> {
        let state = self.state.read();
        let Some(writer) = &state.writer else {
            return Vec::new();
        };
        let seen = state.heads.iter();
        let seen = seen.map(|head| head.covers.sequence(writer.number));
        let seen = seen.min().unwrap_or(0).min(writer.confirmed);
        let work = writer.work_after(seen);
        let work = work.or_else(|| writer.work_after(writer.confirmed));
        let work = work.into_iter().flatten();
        work.flat_map(|own| [own.base, own.root]).collect()
    }

    /// Whether all these nodes are here.
    fn has_all(&self, nodes: &HashSet<NodeHash>) -> Result<bool, NamespaceError> {
        let mut wanted = nodes.len() - usize::from(nodes.contains(&manifest::empty_root()));
        let mut after = None;
        loop {
            let names = self.nodes.names(after, NAMES_STEP)?;
            let Some(last) = names.last() else {
                return Ok(wanted == 0);
            };
            after = Some(*last);
            let of_them = names.iter().filter(|name| nodes.contains(name)).count();
            wanted = wanted.saturating_sub(of_them);
        }
    }

    /// Finds out what is needed.
    pub(super) fn begin_collection(&self, now: Moment) -> Result<Collection, NamespaceError> {
        let redo = {
            let _turn = self.turn.lock();
            // What came before is looked at.
            self.nodes.take_grown();
            self.state.read().redo.map(|redo| redo.base)
        };
        let mut reach = Reach::default();
        let source = OnDisk(self);
        for root in self.present_roots() {
            reach.add(&source, root, true)?;
        }
        let mut others = self.roots_of_unseen_work();
        if !others.is_empty() && self.has_all(reach.of_whole_trees())? {
            // Whatever comes to be merged with what is here, this side of it is. But what several others make of a state of this node's
            // has nodes of that which they know only by name, and none of them can tell its own work from the others'.
            others.truncate(UNTOLD_MAX);
        }
        others.extend(redo);
        let outdated = self.state.read().outdated.as_ref().map(|it| it.kept.root);
        others.extend(outdated);
        let roots = self.records.thin_roots(now.wall_ns, too_many)?;
        for root in others.into_iter().chain(roots) {
            reach.add(&source, root, false)?;
        }
        Ok(Collection {
            reach,
            after: None,
            removed: 0,
            stay_bytes: 0,
            young_bytes: 0,
        })
    }

    /// Looks at the next nodes, and gives those that seem to be needed no more; `None` after the last.
    pub(super) fn look_at_some(
        &self,
        collection: &mut Collection,
    ) -> Result<Option<Vec<Unneeded>>, NamespaceError> {
        let names = self.nodes.names(collection.after, STEP_NODES)?;
        let Some(last) = names.last() else {
            // What came meanwhile and was looked at counts twice: the next one comes a little early.
            let grown = self.nodes.take_grown() + collection.young_bytes;
            self.records
                .save_nodes_grown(grown, collection.stay_bytes)?;
            return Ok(None);
        };
        collection.after = Some(*last);
        let mut unneeded = Vec::new();
        for hash in names {
            let Some(bytes) = self.nodes.encoded(&hash)? else {
                continue;
            };
            // What is damaged is left to whoever reads it.
            match Node::decode(&bytes) {
                Ok(node) if !collection.needs(&hash, &node) => {
                    unneeded.push((hash, node, bytes.len() as u64));
                }
                _ => collection.stay_bytes += bytes.len() as u64,
            }
        }
        Ok(Some(unneeded))
    }

    /// Lets go of what is still needed by nothing. Holds `turn`, so it does not run in the idle class.
    pub(super) fn let_go(
        &self,
        collection: &mut Collection,
        mut unneeded: Vec<Unneeded>,
    ) -> Result<(), NamespaceError> {
        if unneeded.is_empty() {
            return Ok(());
        }
        // A state that came since may need again what was of none: the tree that is left when a name was made and removed is the
        // one of before. It stays the state until these are gone.
        let _turn = self.turn.lock();
        for root in self.present_roots() {
            collection.reach.add(&OnDisk(self), root, true)?;
        }
        unneeded.retain(|(hash, node, _)| !collection.needs(hash, node));
        let nodes = unneeded.into_iter().map(|(hash, _, bytes)| (hash, bytes));
        let (removed, young_bytes) = self.nodes.remove_old(nodes.collect())?;
        collection.removed += removed as u64;
        collection.young_bytes += young_bytes;
        Ok(())
    }

    /// The whole of a collection, at once.
    #[cfg(test)]
    pub(super) fn collect_rest(&self, mut collection: Collection) -> Result<u64, NamespaceError> {
        while let Some(unneeded) = self.look_at_some(&mut collection)? {
            self.let_go(&mut collection, unneeded)?;
        }
        Ok(collection.removed)
    }

    /// Lets go of all nodes that the present does not need, whenever they came. Returns how many.
    #[cfg(test)]
    pub(super) fn collect_all(&self, now: Moment) -> Result<u64, NamespaceError> {
        let all = |minutes: &[u64], _| minutes.to_vec();
        self.records.thin_roots(now.wall_ns, all)?;
        for _ in 0..2 {
            self.nodes.begin_generation(now.at, Duration::ZERO);
        }
        self.collect_rest(self.begin_collection(now)?)
    }
}

/// Which of the minutes with a root, in order, need not be remembered one by one any more.
fn too_many(minutes: &[u64], now: u64) -> Vec<u64> {
    let old = |minute: u64| minute < now.saturating_sub(MINUTES_KEPT);
    let pairs = minutes.iter().zip(minutes.iter().skip(1));
    pairs
        .filter(|(minute, next)| old(**minute) && **minute / HOUR_MINUTES == **next / HOUR_MINUTES)
        .map(|(minute, _)| *minute)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_a_day_are_remembered_by_minutes_and_older_ones_by_hours() {
        let now = 100 * MINUTES_KEPT;
        let minutes: Vec<u64> = (now - 2 * MINUTES_KEPT..=now).collect();
        let gone = too_many(&minutes, now);
        let left: Vec<_> = minutes
            .iter()
            .filter(|minute| !gone.contains(minute))
            .collect();
        assert_eq!(left.len() as u64, 24 + MINUTES_KEPT + 1);
        assert_eq!(
            left[..2],
            [
                &(now - 2 * MINUTES_KEPT + 59),
                &(now - 2 * MINUTES_KEPT + 119)
            ]
        );
        assert_eq!(
            too_many(&[5, 70, 140], now),
            Vec::<u64>::new(),
            "one an hour stays"
        );
        assert_eq!(too_many(&[], now), Vec::<u64>::new());
    }
}
