//! Versions of one file: what a new one has in common with the one that is here is not fetched.
//!
//! Equal subtrees of two hash trees at equal places are equal data. Where a content took the place of another, whoever holds some of
//! it is asked for the hashes of its blocks, 0.1 % of the bytes, and what is equal is copied from the older content's file. A
//! copied block is checked against the new content's id as one that comes from a peer is, so a damaged file, or a wrong
//! relation, costs no more than fetching.
//!
//! All of it is help that may fail: what was not taken is fetched. A read of few blocks never waits for hashes, another one
//! [`BRIEFLY`], and what is fetched ahead [`PATIENCE`]; where they came late, nothing waits for a while. Everything kept is bounded, and forgotten at the end.

use std::{
    collections::{BTreeMap, VecDeque},
    future::ready,
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use libp2p::PeerId;
use parking_lot::Mutex;
use positioned_io::ReadAt;

use super::source::BlockSource;
use crate::{
    buffers::Buffer,
    content::{
        BlockSet, Leaves, Nodes, Object, RangeError, encode_range, encoded_bytes, verify_range,
    },
    net::proto::{Have, REQUEST_BLOCKS_MAX, TREE_BLOCKS_MAX},
    store::{Presence, Store, StoreError},
};

/// Smaller contents are fetched: that takes no longer than asking.
const BLOCKS_MIN: u64 = 8;
/// Relations remembered; the oldest makes room.
const RELATIONS_MAX: usize = 256;
/// Parts of trees that are remembered, of up to 64 MiB of content and about 150 KiB in memory each.
const PARTS_MAX: usize = 64;
/// Peers that are asked whether they have some of the new content, and those of them that are asked for its hashes.
const ASKED_MAX: usize = 8;
const TRIED_MAX: usize = 3;
/// Longest wait for each of these answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long what is fetched ahead waits for hashes. They may still come after that.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a read waits for them that would fetch so many blocks, all of which are here of the older content: fetching takes as many round
/// trips, and more bytes.
const BRIEFLY: Duration = Duration::from_millis(100);
const BRIEFLY_BLOCKS_MIN: u64 = 8;
/// Where nobody told the hashes of a content, nobody is asked again for so long; where they came late, nobody waits.
const QUIET_FOR: Duration = Duration::from_secs(30);
/// How long a peer that sent wrong hashes is refused.
const BLOCKED_FOR: Duration = Duration::from_secs(60 * 60);

/// See the module.
pub(super) struct Kin {
    store: Store,
    pub(super) source: Arc<dyn BlockSource>,
    pub(super) runtime: tokio::runtime::Handle,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Which content each took the place of.
    relations: BTreeMap<Object, Object>,
    /// In the order in which they were told.
    order: VecDeque<Object>,
    /// Hashes by content and number of the part, those that are being asked for included.
    parts: BTreeMap<(Object, u64), Part>,
    /// Contents whose hashes nobody told: nobody is asked.
    quiet: Lately,
    /// Contents whose hashes a read, and something fetched ahead, has waited for in vain: none waits.
    late: Lately,
    late_ahead: Lately,
}

/// A part of a tree, known or being asked for.
type Part = Shared<BoxFuture<'static, Option<Arc<Nodes>>>>;

/// Contents of which something is to be remembered for [`QUIET_FOR`].
#[derive(Default)]
struct Lately(BTreeMap<Object, Instant>);

impl Lately {
    fn note(&mut self, object: Object) {
        if self.0.len() >= RELATIONS_MAX {
            self.0.pop_first();
        }
        self.0.insert(object, Instant::now());
    }

    fn has(&mut self, object: &Object) -> bool {
        self.0.retain(|_, since| since.elapsed() < QUIET_FOR);
        self.0.contains_key(object)
    }
}

/// How a wish waits for hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// [`BRIEFLY`], where all of several blocks are here of the older content; else not at all: they are there the next time.
    Briefly,
    /// [`PATIENCE`].
    Shortly,
    /// Until they are there, or nobody has told them: some seconds at most.
    Long,
}

impl Known {
    fn relate(&mut self, new: Object, old: Object) {
        if self.relations.insert(new, old).is_some() {
            return;
        }
        self.order.push_back(new);
        if self.order.len() > RELATIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.relations.remove(&oldest);
            self.parts.retain(|(object, _), _| *object != oldest);
        }
    }
}

impl Kin {
    pub(super) fn new(store: Store, source: Arc<dyn BlockSource>) -> Self {
        Self {
            store,
            source,
            runtime: tokio::runtime::Handle::current(),
            known: Mutex::default(),
        }
    }

    /// Notes that one content took the place of another.
    pub(super) fn note(&self, new: Object, old: Object) {
        if new == old || new.blocks() < BLOCKS_MIN || old.blocks() < 2 {
            return;
        }
        let is_absent = matches!(self.store.presence(&old), Ok(Presence::Absent));
        let mut known = self.known.lock();
        // Of a version that nobody read here there is nothing to take; of the one before it there may be.
        let old = match known.relations.get(&old) {
            Some(before) if is_absent => *before,
            _ => old,
        };
        if old != new {
            known.relate(new, old);
        }
    }

    /// Whether the content took the place of another.
    pub(super) fn knows(&self, new: &Object) -> bool {
        self.known.lock().relations.contains_key(new)
    }

    /// Copies what of the blocks is lacking and equal to what is here of the older content.
    pub(super) async fn take(self: &Arc<Self>, new: Object, blocks: Range<u64>, wait: Wait) {
        let old = self.known.lock().relations.get(&new).copied();
        // What there is no room for would come through memory, for nothing.
        let Some(old) = old.filter(|_| !self.store.is_tight()) else {
            return;
        };
        for part in blocks.start / TREE_BLOCKS_MAX..blocks.end.div_ceil(TREE_BLOCKS_MAX) {
            let of_part = range_of(&new, part);
            let wanted = of_part.start.max(blocks.start)..of_part.end.min(blocks.end);
            let length = wanted.end - wanted.start;
            // Nobody is asked in vain.
            let useful = match useful(&self.store, old, new, wanted) {
                Ok(useful) => useful,
                Err(error) => {
                    tracing::debug!(content = %new.content, %error, "an older version is of no use");
                    return;
                }
            };
            if useful.is_empty() {
                continue;
            }
            let many = lengths(&useful);
            if wait == Wait::Briefly && (many < BRIEFLY_BLOCKS_MIN || many < length) {
                // Fetched in no more time.
                let known = self.part(new, part).peek().cloned().flatten();
                let Some(nodes) = known else { continue };
                self.take_runs(old, new, useful, nodes).await;
                continue;
            }
            let Some(nodes) = self.nodes(new, part, wait).await else {
                continue;
            };
            self.take_runs(old, new, useful, nodes).await;
        }
    }

    /// Copies what of these blocks, which are here of the older content, is equal.
    async fn take_runs(&self, old: Object, new: Object, runs: Vec<Range<u64>>, nodes: Arc<Nodes>) {
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let portion = at..(at + REQUEST_BLOCKS_MAX).min(run.end);
                at = portion.end;
                let (store, nodes) = (self.store.clone(), nodes.clone());
                let taken = tokio::task::spawn_blocking(move || {
                    take_equal(&store, old, new, &nodes, portion)
                });
                if let Ok(Err(error)) = taken.await {
                    tracing::debug!(content = %new.content, %error, "blocks of an older version are of no use");
                }
            }
        }
    }

    /// The hashes of a part of the content's blocks.
    async fn nodes(self: &Arc<Self>, new: Object, part: u64, wait: Wait) -> Option<Arc<Nodes>> {
        let part = self.part(new, part);
        if let Some(told) = part.peek() {
            return told.clone();
        }
        let (late, patience): (fn(&mut Known) -> &mut Lately, _) = match wait {
            Wait::Briefly => (|known| &mut known.late, BRIEFLY),
            Wait::Shortly => (|known| &mut known.late_ahead, PATIENCE),
            Wait::Long => return part.await,
        };
        if late(&mut self.known.lock()).has(&new) {
            return None;
        }
        let Ok(told) = tokio::time::timeout(patience, part).await else {
            late(&mut self.known.lock()).note(new);
            return None;
        };
        told
    }

    /// A part of a tree: what is known, or has begun to be asked for.
    fn part(self: &Arc<Self>, new: Object, part: u64) -> Part {
        let mut known = self.known.lock();
        if let Some(part) = known.parts.get(&(new, part))
            && !matches!(part.peek(), Some(None))
        {
            return part.clone();
        }
        let asked = match known.quiet.has(&new) {
            true => ready(None).boxed(),
            false => {
                let kin = self.clone();
                async move { kin.learn(new, part).await }.boxed()
            }
        };
        let asked = asked.shared();
        if known.parts.len() >= PARTS_MAX {
            // Any will do.
            known.parts.pop_first();
        }
        known.parts.insert((new, part), asked.clone());
        // Whoever waits may go away meanwhile.
        self.runtime.spawn(asked.clone());
        asked
    }

    async fn learn(&self, new: Object, part: u64) -> Option<Arc<Nodes>> {
        let nodes = self.ask(new, range_of(&new, part)).await;
        if nodes.is_none() {
            self.known.lock().quiet.note(new);
        }
        nodes.map(Arc::new)
    }

    /// Asks who is near and holds any of the content for hashes, one after the other.
    async fn ask(&self, new: Object, blocks: Range<u64>) -> Option<Nodes> {
        let holders = self.holders(new, |have| !matches!(have, Have::No));
        let mut holders = holders.take(TRIED_MAX);
        while let Some(peer) = holders.next().await {
            let nodes = self.ask_peer(peer, new, blocks.clone()).await;
            if nodes.is_some() {
                return nodes;
            }
        }
        None
    }

    /// Who of the nearest holds as much of a content as `holds` wants, in the order of their answers.
    pub(super) fn holders(
        &self,
        object: Object,
        holds: fn(&Have) -> bool,
    ) -> impl Stream<Item = PeerId> + Unpin + '_ {
        let mut peers = self.source.tree_peers();
        peers.sort_by_key(|(_, round_trip)| round_trip.unwrap_or(Duration::MAX));
        let asked = peers
            .into_iter()
            .take(ASKED_MAX)
            .map(move |(peer, _)| async move {
                let have = self.source.have(peer, vec![object], ANSWER_WITHIN).await;
                matches!(have.as_deref(), Ok([have]) if holds(have)).then_some(peer)
            });
        asked.collect::<FuturesUnordered<_>>().filter_map(ready)
    }

    /// The hashes of blocks of a content; `None` where not all could be had.
    pub(super) async fn leaves(self: &Arc<Self>, of: Object, blocks: &BlockSet) -> Option<Leaves> {
        let mut leaves = Leaves::default();
        for part in 0..of.blocks().div_ceil(TREE_BLOCKS_MAX) {
            let range = range_of(&of, part);
            let wanted: Vec<Range<u64>> = blocks.present(range.clone()).collect();
            if wanted.is_empty() {
                continue;
            }
            let store = self.store.clone();
            let here = tokio::task::spawn_blocking(move || {
                let encoded = store.nodes_above(&of, range.clone()).ok().flatten()?;
                Nodes::verify(of, range, &encoded).ok()
            });
            let nodes = match here.await.ok().flatten() {
                Some(nodes) => Arc::new(nodes),
                None => self.nodes(of, part, Wait::Long).await?,
            };
            for block in wanted.into_iter().flatten() {
                leaves.put(block, *nodes.leaf(block)?);
                // No more are kept than that.
                leaves.get(block)?;
            }
        }
        Some(leaves)
    }

    async fn ask_peer(&self, peer: PeerId, new: Object, blocks: Range<u64>) -> Option<Nodes> {
        let tree = self.source.tree(peer, new, blocks.clone(), ANSWER_WITHIN);
        let encoded = match tree.await {
            Ok(encoded) if encoded.is_empty() => return None,
            Ok(encoded) => encoded,
            Err(error) => {
                tracing::debug!(%peer, %error, "did not tell hashes");
                return None;
            }
        };
        match Nodes::verify(new, blocks, &encoded) {
            Ok(nodes) => Some(nodes),
            Err(error) => {
                // Honest members check them before they send them.
                let reason = format!("sent hashes that prove nothing: {error}");
                self.source.block_peer(peer, BLOCKED_FOR, &reason);
                None
            }
        }
    }
}

/// The blocks of a part of a tree.
fn range_of(object: &Object, part: u64) -> Range<u64> {
    let start = part * TREE_BLOCKS_MAX;
    start..(start + TREE_BLOCKS_MAX).min(object.blocks())
}

/// How many blocks these are.
fn lengths(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// Why nothing could be taken.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Range(#[from] RangeError),
}

/// Those of the blocks that are lacking, and here of the older content.
fn useful(
    store: &Store,
    old: Object,
    new: Object,
    blocks: Range<u64>,
) -> Result<Vec<Range<u64>>, StoreError> {
    let lacking = match store.presence(&new)? {
        Presence::Complete => return Ok(Vec::new()),
        Presence::Partial(here) => here.missing(blocks).collect(),
        Presence::Absent => vec![blocks],
    };
    let here = match store.presence(&old)? {
        Presence::Complete => BlockSet::of(0..old.blocks()),
        Presence::Partial(here) => here,
        Presence::Absent => return Ok(Vec::new()),
    };
    let useful = lacking.into_iter().flat_map(|range| here.present(range));
    Ok(useful.collect())
}

/// Copies what of a few blocks, which are here of the older content, is equal.
fn take_equal(
    store: &Store,
    old: Object,
    new: Object,
    nodes: &Nodes,
    blocks: Range<u64>,
) -> Result<(), TakeError> {
    let Some(leaves) = store.leaves(&old, blocks.clone())? else {
        return Ok(());
    };
    let mut equal = BlockSet::default();
    for (block, leaf) in blocks.zip(&leaves) {
        if nodes.leaf(block) == Some(leaf) {
            equal.insert(block..block + 1);
        }
    }
    for range in equal.ranges() {
        let length = encoded_bytes(new, range.clone());
        let mut encoded = Buffer::new(usize::try_from(length).map_err(io::Error::other)?);
        let data = Stored { store, object: old };
        encode_range(&data, nodes, new, range.clone(), &mut encoded)?;
        store.insert(&verify_range(new, range.clone(), &encoded)?)?;
    }
    Ok(())
}

/// A content of the store, to read.
struct Stored<'a> {
    store: &'a Store,
    object: Object,
}

impl ReadAt for Stored<'_> {
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.store.read(&self.object, pos, buf);
        read.map_err(io::Error::other)
    }
}
