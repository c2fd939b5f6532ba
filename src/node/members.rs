//! What members ask of this node, and what it asks of them: answers on sync and block streams, manifest nodes on demand
//! (`fetch`), who holds what.

mod fetch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::PeerId;
use parking_lot::Mutex;
use serde_bytes::ByteBuf;

pub(super) use fetch::PeerFetcher;

use super::{
    keeping::Evictions,
    namespace::{Namespace, Pushed, RefusedPush},
    trackers::Trackers,
};
use crate::{
    cluster::Certificate,
    content::{BlockSet, Object},
    manifest::NodeHash,
    net::{
        Net, Place, Service,
        proto::{
            BatchRequest, BlockAnswer, BlockRequest, HAVE_RANGES_MAX, Have, NAMED_MAX, Push,
            REQUEST_BLOCKS_MAX, SYNC_BYTES_MAX, SyncAnswer, SyncRequest,
        },
    },
    store::{Presence, Store, StoreError},
    transfer::Transfers,
};

/// Most bytes of nodes in one answer: leaves room for the frame around them.
const NODES_BYTES_MAX: usize = SYNC_BYTES_MAX - 64 * 1024;
/// Members told of in a status answer, and addresses of each.
const MEMBERS_MAX: usize = 64;
const ADDRESSES_MAX: usize = 16;
/// How many objects, each as often as there are holders of it, the table of known holders remembers before it starts anew.
const KNOWN_HOLDERS_MAX: usize = 100_000;

/// Parts that exist only once the network runs; the service and the fetcher are made before it.
#[derive(Default)]
pub(super) struct Late {
    pub(super) net: OnceLock<Net>,
    pub(super) transfers: OnceLock<Transfers>,
    pub(super) namespace: OnceLock<Namespace>,
    pub(super) trackers: OnceLock<Arc<Trackers>>,
    pub(super) slow: fetch::Slow,
}

/// Which peers are known to hold an object whole, as far as they said so.
#[derive(Default)]
pub(super) struct KnownHolders(Mutex<Known>);

/// Peers have numbers here, as each is told of with very many objects: some 70 bytes for an object and a peer.
#[derive(Default)]
struct Known {
    holders: BTreeSet<(Object, u32)>,
    peers: BTreeMap<PeerId, u32>,
    next: u32,
}

impl KnownHolders {
    pub(super) fn note(&self, peer: PeerId, object: Object, whole: bool) {
        let mut known = self.0.lock();
        let known = &mut *known;
        if !whole {
            if let Some(number) = known.peers.get(&peer) {
                known.holders.remove(&(object, *number));
            }
            return;
        }
        if known.holders.len() >= KNOWN_HOLDERS_MAX {
            *known = Known::default();
        }
        let number = *known.peers.entry(peer).or_insert_with(|| {
            known.next += 1;
            known.next
        });
        known.holders.insert((object, number));
    }

    pub(super) fn forget(&self, peer: &PeerId) {
        let mut known = self.0.lock();
        if let Some(number) = known.peers.remove(peer) {
            known.holders.retain(|(_, holder)| *holder != number);
        }
    }

    pub(super) fn count(&self, object: &Object) -> u64 {
        let all = (*object, 0)..=(*object, u32::MAX);
        self.0.lock().holders.range(all).count() as u64
    }
}

/// Answers members.
pub(super) struct Members {
    pub(super) store: Store,
    pub(super) late: Arc<Late>,
    pub(super) holders: Arc<KnownHolders>,
    pub(super) evictions: Arc<Evictions>,
}

impl Members {
    fn nodes(&self, hashes: &[NodeHash]) -> SyncAnswer {
        let namespace = self.late.namespace.get();
        // Not that there are none.
        let nodes = namespace.map_or_else(Vec::new, |namespace| {
            found_nodes(hashes, |hash| namespace.node(hash))
        });
        SyncAnswer::Nodes(nodes)
    }

    fn promise(&self, peer: PeerId, objects: &[Object], for_s: u64) -> SyncAnswer {
        let Some(net) = self.late.net.get() else {
            return SyncAnswer::Error("starting".into());
        };
        let own = net.local_peer();
        match self.evictions.promise(own, peer, objects, for_s) {
            Ok(promised) => SyncAnswer::Keep(promised),
            Err(error) => {
                tracing::error!(%peer, %error, "a promise could not be recorded");
                SyncAnswer::Error("the disk fails".into())
            }
        }
    }

    fn make(
        &self,
        peer: PeerId,
        new: Object,
        old: Object,
        certificate: &Certificate,
    ) -> SyncAnswer {
        let (Some(transfers), Some(net)) = (self.late.transfers.get(), self.late.net.get()) else {
            return SyncAnswer::Error("starting".into());
        };
        // Who can't publish it has no need of it.
        if !net.may_write(&peer, certificate) {
            return SyncAnswer::Make(false);
        }
        SyncAnswer::Make(transfers.make(new, old).unwrap_or_else(|error| {
            tracing::warn!(%peer, %error, "a content could not be looked at for a peer");
            false
        }))
    }

    fn status(&self) -> SyncAnswer {
        let Some(net) = self.late.net.get() else {
            return SyncAnswer::Error("starting".into());
        };
        let members = net
            .peers()
            .into_iter()
            .take(MEMBERS_MAX)
            .map(|peer| {
                let addresses = peer.listen.iter().take(ADDRESSES_MAX);
                let addresses = addresses.map(|address| ByteBuf::from(address.to_vec()));
                (ByteBuf::from(peer.peer.to_bytes()), addresses.collect())
            })
            .collect();
        SyncAnswer::Status {
            load: net.load(),
            members,
        }
    }
}

/// What a peer is told of an object.
fn have(store: &Store, object: &Object) -> Result<Have, StoreError> {
    Ok(match store.presence(object)? {
        Presence::Absent => Have::No,
        Presence::Complete => Have::Whole,
        Presence::Partial(blocks) => {
            let mut told = BlockSet::default();
            for range in blocks.ranges().iter().take(HAVE_RANGES_MAX) {
                told.insert(range.clone());
            }
            Have::Part(told)
        }
    })
}

fn answer_blocks(store: &Store, request: &BlockRequest) -> Result<BlockAnswer, StoreError> {
    let BlockRequest { object, start, end } = *request;
    let within = start < end && end <= object.blocks() && end - start <= REQUEST_BLOCKS_MAX;
    if !within {
        return Ok(BlockAnswer::DontHave(Have::No));
    }
    match store.encode(&object, start..end) {
        Ok(encoded) => Ok(BlockAnswer::Data(encoded.into())),
        Err(StoreError::Absent(_)) => {
            let here = have(store, &object)?;
            if here == Have::No {
                for size in store.sizes_of(&object.content)? {
                    let other = Object {
                        content: object.content,
                        size,
                    };
                    let Some(last) = other.blocks().checked_sub(1) else {
                        continue;
                    };
                    if size != object.size && store.size_proven(&other)? {
                        match store.encode(&other, last..last + 1) {
                            Ok(proof) => {
                                return Ok(BlockAnswer::WrongSize {
                                    size,
                                    proof: proof.into(),
                                });
                            }
                            Err(StoreError::Absent(_)) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            Ok(BlockAnswer::DontHave(here))
        }
        Err(error) => Err(error),
    }
}

/// The encodings of nodes, in their order; nothing in place of what isn't here. It ends where it would become too long, or where it
/// can't be told whether a node is here: that is not the same as having none.
fn found_nodes(
    hashes: &[NodeHash],
    read: impl Fn(&NodeHash) -> Result<Option<Bytes>, StoreError>,
) -> Vec<ByteBuf> {
    let mut total = 0;
    let mut encodings = Vec::new();
    // Nobody needs a node twice in one answer.
    let mut named = BTreeSet::new();
    for hash in hashes.iter().take(NAMED_MAX) {
        let found = match named.insert(hash) {
            true => read(hash),
            false => Ok(None),
        };
        let encoding = match found {
            Ok(encoding) => encoding.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%hash, %error, "a manifest node could not be read for a peer");
                break;
            }
        };
        total += encoding.len() + 16;
        if total > NODES_BYTES_MAX && !encodings.is_empty() {
            break;
        }
        encodings.push(ByteBuf::from(encoding.to_vec()));
    }
    encodings
}

/// The small contents that are here. One that can't be read isn't: whoever asks asks others.
fn answer_batch(store: &Store, objects: &[Object]) -> BlockAnswer {
    let mut here = Vec::with_capacity(objects.len());
    // Bounded by the request's check.
    let mut data = Vec::with_capacity(objects.iter().map(|object| object.size as usize).sum());
    for object in objects {
        let bytes = match store.small(object) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(content = %object.content, %error, "a content could not be read for a peer");
                None
            }
        };
        here.push(bytes.is_some());
        data.extend_from_slice(&bytes.unwrap_or_default());
    }
    BlockAnswer::Batch {
        here,
        data: data.into(),
    }
}

/// A push as it goes to the others: whoever cannot vouch for its changes leaves them out.
fn passed_on(mut push: Push, changes_hold: bool) -> Push {
    if let Push::Manifest { changes, .. } = &mut push
        && !changes_hold
    {
        *changes = None;
    }
    push
}

impl Service for Members {
    fn answer(
        self: Arc<Self>,
        peer: PeerId,
        request: SyncRequest,
    ) -> BoxFuture<'static, SyncAnswer> {
        async move {
            match request {
                SyncRequest::Heads => {
                    let heads = self
                        .late
                        .namespace
                        .get()
                        .map(Namespace::heads)
                        .unwrap_or_default();
                    let heads = heads.into_iter().take(crate::net::proto::HEADS_MAX);
                    SyncAnswer::Heads(heads.map(ByteBuf::from).collect())
                }
                SyncRequest::Status => self.status(),
                SyncRequest::Nodes(_)
                | SyncRequest::Have(_)
                | SyncRequest::Keep { .. }
                | SyncRequest::Tree { .. }
                | SyncRequest::Make { .. } => {
                    if let (SyncRequest::Have(objects), Some(transfers)) =
                        (&request, self.late.transfers.get())
                    {
                        transfers.peer_asks(peer, objects);
                    }
                    let work = tokio::task::spawn_blocking(move || match request {
                        SyncRequest::Nodes(hashes) => self.nodes(&hashes),
                        SyncRequest::Have(objects) => objects
                            .iter()
                            .take(NAMED_MAX)
                            .map(|object| have(&self.store, object))
                            .collect::<Result<_, _>>()
                            .map_or_else(
                                |error| SyncAnswer::Error(error.to_string()),
                                SyncAnswer::Have,
                            ),
                        SyncRequest::Keep { objects, for_s } => self.promise(peer, &objects, for_s),
                        SyncRequest::Tree { object, start, end } => {
                            // What isn't here, or can't be read, is told by somebody else.
                            let nodes = self.store.nodes_above(&object, start..end);
                            let nodes = nodes.ok().flatten().unwrap_or_default();
                            SyncAnswer::Tree(nodes.into())
                        }
                        SyncRequest::Make {
                            new,
                            old,
                            certificate,
                        } => self.make(peer, new, old, &certificate),
                        SyncRequest::Heads | SyncRequest::Status => {
                            SyncAnswer::Error("unexpected".into())
                        }
                    });
                    work.await
                        .unwrap_or_else(|_| SyncAnswer::Error("the answer failed".into()))
                }
            }
        }
        .boxed()
    }

    fn pushed(self: Arc<Self>, peer: PeerId, push: Push) -> BoxFuture<'static, ()> {
        async move {
            match push {
                Push::Have(object, blocks) => {
                    if let Some(transfers) = self.late.transfers.get() {
                        transfers.peer_has(peer, object, &blocks);
                    }
                    if blocks.contains(0..object.blocks()) {
                        self.holders.note(peer, object, true);
                    }
                }
                Push::Manifest { .. } => {
                    let (Some(namespace), Some(net)) =
                        (self.late.namespace.get(), self.late.net.get())
                    else {
                        return;
                    };
                    match namespace.take_push(peer, push.clone()).await {
                        Ok(Pushed::News { changes_hold }) => {
                            net.push(passed_on(push, changes_hold), Some(peer));
                        }
                        Ok(Pushed::Known) => {}
                        Err(RefusedPush::Offence(reason)) => {
                            let reason = format!("a pushed manifest update was refused: {reason}");
                            net.offence(peer, &reason);
                        }
                        Err(RefusedPush::Other(reason)) => {
                            tracing::warn!(%peer, reason, "a pushed manifest update was refused");
                        }
                    }
                }
                Push::Leaving => self.holders.forget(&peer),
            }
        }
        .boxed()
    }

    fn blocks(
        self: Arc<Self>,
        peer: PeerId,
        request: BlockRequest,
        place: Place,
    ) -> BoxFuture<'static, BlockAnswer> {
        async move {
            let object = request.object;
            let work = tokio::task::spawn_blocking(move || {
                let _place = place;
                answer_blocks(&self.store, &request)
            });
            match work.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    tracing::warn!(%peer, content = %object.content, %error, "blocks could not be read for a peer");
                    BlockAnswer::DontHave(Have::No)
                }
                Err(_) => BlockAnswer::Busy,
            }
        }
        .boxed()
    }

    fn batch(
        self: Arc<Self>,
        _peer: PeerId,
        request: BatchRequest,
        place: Place,
    ) -> BoxFuture<'static, BlockAnswer> {
        async move {
            let work = tokio::task::spawn_blocking(move || {
                let _place = place;
                answer_batch(&self.store, &request.0)
            });
            work.await.unwrap_or(BlockAnswer::Busy)
        }
        .boxed()
    }
}

/// How long members are waited for when they are asked what they hold.
const HAVE_WITHIN: Duration = Duration::from_secs(2);

/// Which connected members hold each of these objects whole, and which members did not answer in time. All members are
/// asked at once.
pub(super) async fn whole_holders(
    net: &Net,
    known: &KnownHolders,
    objects: &[Object],
) -> (BTreeMap<Object, Vec<PeerId>>, Vec<PeerId>) {
    let asked = net.peers().into_iter().map(|peer| {
        let peer = peer.peer;
        async move {
            let ask = async {
                let mut whole = Vec::new();
                for batch in objects.chunks(NAMED_MAX) {
                    match net
                        .request(peer, SyncRequest::Have(batch.to_vec()), HAVE_WITHIN)
                        .await
                    {
                        Ok(SyncAnswer::Have(answers)) if answers.len() == batch.len() => {
                            for (object, answer) in batch.iter().zip(answers) {
                                whole.push((*object, answer == Have::Whole));
                            }
                        }
                        _ => return None,
                    }
                }
                Some(whole)
            };
            let answer = tokio::time::timeout(HAVE_WITHIN, ask).await;
            (peer, answer.ok().flatten())
        }
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut holders: BTreeMap<Object, Vec<PeerId>> = BTreeMap::new();
    let mut silent = Vec::new();
    while let Some((peer, answer)) = asked.next().await {
        match answer {
            None => silent.push(peer),
            Some(answers) => {
                for (object, whole) in answers {
                    known.note(peer, object, whole);
                    if whole {
                        holders.entry(object).or_default().push(peer);
                    }
                }
            }
        }
    }
    (holders, silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_could_not_be_checked_are_not_passed_on() {
        let push = Push::Manifest {
            head: ByteBuf::from(vec![1]),
            base: NodeHash([2; 32]),
            changes: Some(vec![(ByteBuf::new(), ByteBuf::new())]),
        };
        assert_eq!(passed_on(push.clone(), true), push);
        assert!(matches!(
            passed_on(push, false),
            Push::Manifest { changes: None, .. }
        ));
    }

    #[test]
    fn a_node_that_could_not_be_read_is_not_said_to_be_none() {
        let hashes = [1, 2, 3].map(|number| NodeHash([number; 32]));
        let read = |hash: &NodeHash| match hash.0[0] {
            1 => Ok(None),
            2 => Err(StoreError::Absent(0..1)),
            _ => Ok(Some(Bytes::from_static(b"node"))),
        };
        assert_eq!(found_nodes(&hashes, read), [ByteBuf::new()]);
        assert_eq!(found_nodes(&hashes[2..], read), [ByteBuf::from(*b"node")]);
    }

    #[test]
    fn who_holds_what_is_known_within_a_bound() {
        let object = |number: u64| Object {
            content: crate::content::ContentId([7; 32]),
            size: number,
        };
        let known = KnownHolders::default();
        let (one, other) = (PeerId::random(), PeerId::random());
        for peer in [one, other] {
            known.note(peer, object(1), true);
            known.note(peer, object(1), true);
        }
        known.note(one, object(2), true);
        assert_eq!((known.count(&object(1)), known.count(&object(2))), (2, 1));
        known.note(other, object(1), false);
        known.note(other, object(2), false);
        assert_eq!((known.count(&object(1)), known.count(&object(2))), (1, 1));
        known.note(other, object(1), true);
        known.forget(&one);
        assert_eq!((known.count(&object(1)), known.count(&object(2))), (1, 0));
        for number in 0..2 * KNOWN_HOLDERS_MAX as u64 {
            known.note(one, object(number), true);
        }
        assert!(known.0.lock().holders.len() <= KNOWN_HOLDERS_MAX);
        assert_eq!(known.count(&object(2 * KNOWN_HOLDERS_MAX as u64 - 1)), 1);
    }
}
