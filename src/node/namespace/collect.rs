//! Letting go of manifest nodes that no state needs any more.
//!
//! What stays: what the state, the heads that are known, the remembered roots and work that may have to be signed again are made of;
//! what may lie below a node of the first two that is not here (`manifest::Reach`), for this member may be the only one who has
//! it; and what came since the collection before this one, which somebody may be working with.
//!
//! A member who comes back after long may have made its work on a state that nobody has in full any more. It merges that itself,
//! around what lacks (`merge`).

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    NamespaceError, Shared, blocking,
    disk::Disk,
    replica::{Moment, Replica},
};
use crate::{
    idle,
    manifest::{Node, NodeHash, NodeSource, Reach, TreeError},
};

/// How often it is looked whether enough has come.
const LOOKED_EVERY: Duration = Duration::from_secs(5 * 60);
/// A collection takes as long as reading all nodes, so it waits for so many bytes of new ones, and half of what stayed.
const GROWN_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Nodes that are looked at at a time, and the pause after them.
const STEP_NODES: usize = 256;
const STEP_PAUSE: Duration = Duration::from_millis(20);
/// Of the remembered roots, each minute's stays for so long; of older ones each hour's.
const MINUTES_KEPT: u64 = 24 * 60;
const HOUR_MINUTES: u64 = 60;

/// Looks from time to time, until `closing`.
pub(super) async fn run(shared: Arc<Shared>, closing: CancellationToken) {
    tokio::select! {
        () = closing.cancelled() => {}
        () = collect_forever(&shared) => {}
    }
}

async fn collect_forever(shared: &Arc<Shared>) {
    loop {
        tokio::time::sleep(LOOKED_EVERY).await;
        if let Err(error) = collect(shared).await {
            tracing::warn!(%error, "manifest nodes that nobody needs could not be let go");
        }
    }
}

async fn collect(shared: &Arc<Shared>) -> Result<(), NamespaceError> {
    let here = shared.clone();
    let due = blocking(move || here.replica.collection_due()).await?;
    if !due {
        return Ok(());
    }
    let here = shared.clone();
    let begin = move || idle::run(|| here.replica.begin_collection(Moment::now()));
    let mut collection = blocking(begin).await?;
    loop {
        let here = shared.clone();
        let step = move || {
            idle::run(|| {
                let done = here.replica.collect_some(&mut collection)?;
                Ok((collection, done))
            })
        };
        let (next, done) = blocking(step).await?;
        if done {
            tracing::info!(
                removed = next.removed,
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
}

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
        Ok(grown >= GROWN_BYTES_MIN.max(stayed / 2))
    }

    /// Finds out what is needed.
    pub(super) fn begin_collection(&self, now: Moment) -> Result<Collection, NamespaceError> {
        let (whole, others) = {
            // Nobody is about to make a state of nodes that were put before this moment.
            let _turn = self.turn.lock();
            self.nodes.begin_generation();
            let state = self.state.read();
            let heads = state.heads.iter().map(|head| head.root);
            let parts = state.parts.iter().map(|part| part.root);
            let whole: Vec<_> = state.root.into_iter().chain(heads).chain(parts).collect();
            let redo = state.redo.map(|redo| redo.base);
            let unconfirmed = state.writer.as_ref().and_then(|writer| {
                let first = writer.own.range(writer.confirmed + 1..).next();
                first.map(|(_, own)| own.base)
            });
            (whole, redo.into_iter().chain(unconfirmed))
        };
        let mut reach = Reach::default();
        let source = OnDisk(self);
        for root in whole {
            reach.add(&source, root, true)?;
        }
        let roots = self.records.thin_roots(now.wall_ns, too_many)?;
        for root in others.chain(roots) {
            reach.add(&source, root, false)?;
        }
        Ok(Collection {
            reach,
            after: None,
            removed: 0,
            stay_bytes: 0,
        })
    }

    /// Looks at the next nodes. Whether that were all.
    pub(super) fn collect_some(&self, collection: &mut Collection) -> Result<bool, NamespaceError> {
        let names = self.nodes.names(collection.after, STEP_NODES)?;
        let Some(last) = names.last() else {
            self.nodes.take_grown();
            self.records.save_nodes_grown(0, collection.stay_bytes)?;
            return Ok(true);
        };
        collection.after = Some(*last);
        let mut unneeded = Vec::new();
        for hash in names {
            let Some(bytes) = self.nodes.encoded(&hash)? else {
                continue;
            };
            let reach = &collection.reach;
            // What is damaged is left to whoever reads it.
            let goes = !reach.needs(&hash)
                && Node::decode(&bytes).is_ok_and(|node| !reach.may_need(&node));
            if goes {
                unneeded.push(hash);
            } else {
                collection.stay_bytes += bytes.len() as u64;
            }
        }
        collection.removed += self.nodes.remove_old(unneeded)? as u64;
        Ok(false)
    }

    /// Lets go of all nodes that the present does not need, whenever they came. Returns how many.
    #[cfg(test)]
    pub(super) fn collect_all(&self, now: Moment) -> Result<u64, NamespaceError> {
        let all = |minutes: &[u64], _| minutes.to_vec();
        self.records.thin_roots(now.wall_ns, all)?;
        self.nodes.begin_generation();
        let mut collection = self.begin_collection(now)?;
        while !self.collect_some(&mut collection)? {}
        Ok(collection.removed)
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
