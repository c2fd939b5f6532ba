//! What the engine needs of the network, and how [`Net`] gives it.

use std::{ops::Range, time::Duration};

use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::sync::broadcast;

use crate::{
    content::Object,
    net::{
        Net, NetError, NetEvent,
        proto::{BatchRequest, BlockAnswer, BlockRequest, Have, Push, SyncAnswer, SyncRequest},
    },
};

/// Where blocks come from: the proven peers.
pub(super) trait BlockSource: Send + Sync + 'static {
    /// Who this is.
    fn local(&self) -> PeerId;
    /// Those that are connected, with their round trips where measured.
    fn peers(&self) -> Vec<(PeerId, Option<Duration>)>;
    /// Bytes that have come from a peer over its present connections, as they come, answers among them.
    fn received(&self, peer: &PeerId) -> Option<u64>;
    /// Follows who comes and goes; after a gap [`BlockSource::peers`] is read anew.
    fn events(&self) -> broadcast::Receiver<NetEvent>;
    /// Asks a peer what it has of these objects; the answers are in their order.
    fn have(
        &self,
        peer: PeerId,
        objects: Vec<Object>,
        within: Duration,
    ) -> BoxFuture<'static, Result<Vec<Have>, NetError>>;
    /// Those of [`BlockSource::peers`] that understand [`BlockSource::tree`]; no other is to be asked that.
    fn tree_peers(&self) -> Vec<(PeerId, Option<Duration>)>;
    /// Asks a peer for the inner nodes above blocks; nothing where it doesn't have them all.
    fn tree(
        &self,
        peer: PeerId,
        object: Object,
        blocks: Range<u64>,
        within: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, NetError>>;
    /// Asks a peer to make a content out of an older version that it has whole; whether it does so, or has. For those that
    /// [`BlockSource::tree_peers`] names.
    fn make(
        &self,
        peer: PeerId,
        new: Object,
        old: Object,
        within: Duration,
    ) -> BoxFuture<'static, Result<bool, NetError>>;
    /// Asks a peer to promise to keep a content for so long.
    fn keep(
        &self,
        peer: PeerId,
        object: Object,
        lease: Duration,
        within: Duration,
    ) -> BoxFuture<'static, Result<bool, NetError>>;
    /// Asks a peer how many block answers it is working on.
    fn load(&self, peer: PeerId, within: Duration) -> BoxFuture<'static, Result<u32, NetError>>;
    /// Asks a peer for blocks. Dropping the future cancels.
    fn blocks(
        &self,
        peer: PeerId,
        request: BlockRequest,
        within: Duration,
    ) -> BoxFuture<'static, Result<BlockAnswer, NetError>>;
    /// Asks a peer for whole small contents. Dropping the future cancels.
    fn batch(
        &self,
        peer: PeerId,
        request: BatchRequest,
        within: Duration,
    ) -> BoxFuture<'static, Result<BlockAnswer, NetError>>;
    /// Tells all peers; those with full queues miss it.
    fn push(&self, push: Push);
    /// Disconnects a peer and refuses it for a while.
    fn block_peer(&self, peer: PeerId, for_how_long: Duration, reason: &str);
}

impl BlockSource for Net {
    fn local(&self) -> PeerId {
        self.local_peer()
    }

    fn peers(&self) -> Vec<(PeerId, Option<Duration>)> {
        Net::peers(self)
            .into_iter()
            .map(|peer| (peer.peer, peer.round_trip))
            .collect()
    }

    fn received(&self, peer: &PeerId) -> Option<u64> {
        Net::bytes_received(self, peer)
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        Net::events(self)
    }

    fn have(
        &self,
        peer: PeerId,
        objects: Vec<Object>,
        within: Duration,
    ) -> BoxFuture<'static, Result<Vec<Have>, NetError>> {
        let net = self.clone();
        Box::pin(async move {
            match net
                .request(peer, SyncRequest::Have(objects), within)
                .await?
            {
                SyncAnswer::Have(answers) => Ok(answers),
                other => Err(unexpected(peer, other)),
            }
        })
    }

    fn tree_peers(&self) -> Vec<(PeerId, Option<Duration>)> {
        Net::peers(self)
            .into_iter()
            .filter(|peer| peer.hello.trees && peer.hello.promises)
            .map(|peer| (peer.peer, peer.round_trip))
            .collect()
    }

    fn tree(
        &self,
        peer: PeerId,
        object: Object,
        blocks: Range<u64>,
        within: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, NetError>> {
        let net = self.clone();
        Box::pin(async move {
            let Range { start, end } = blocks;
            let request = SyncRequest::Tree { object, start, end };
            match net.request(peer, request, within).await? {
                SyncAnswer::Tree(nodes) => Ok(nodes.into_vec()),
                other => Err(unexpected(peer, other)),
            }
        })
    }

    fn make(
        &self,
        peer: PeerId,
        new: Object,
        old: Object,
        within: Duration,
    ) -> BoxFuture<'static, Result<bool, NetError>> {
        let net = self.clone();
        Box::pin(async move {
            let Some(certificate) = net.certificate() else {
                return Ok(false);
            };
            let request = SyncRequest::Make {
                new,
                old,
                certificate,
            };
            match net.request(peer, request, within).await? {
                SyncAnswer::Make(begun) => Ok(begun),
                other => Err(unexpected(peer, other)),
            }
        })
    }

    fn keep(
        &self,
        peer: PeerId,
        object: Object,
        lease: Duration,
        within: Duration,
    ) -> BoxFuture<'static, Result<bool, NetError>> {
        let net = self.clone();
        Box::pin(async move {
            let request = SyncRequest::Keep {
                objects: vec![object],
                for_s: lease.as_secs(),
            };
            match net.request(peer, request, within).await? {
                SyncAnswer::Keep(promised) => Ok(promised == [true]),
                other => Err(unexpected(peer, other)),
            }
        })
    }

    fn load(&self, peer: PeerId, within: Duration) -> BoxFuture<'static, Result<u32, NetError>> {
        let net = self.clone();
        Box::pin(async move {
            match net.request(peer, SyncRequest::Status, within).await? {
                SyncAnswer::Status { load, .. } => Ok(load),
                other => Err(unexpected(peer, other)),
            }
        })
    }

    fn blocks(
        &self,
        peer: PeerId,
        request: BlockRequest,
        within: Duration,
    ) -> BoxFuture<'static, Result<BlockAnswer, NetError>> {
        let net = self.clone();
        Box::pin(async move { net.blocks(peer, request, within).await })
    }

    fn batch(
        &self,
        peer: PeerId,
        request: BatchRequest,
        within: Duration,
    ) -> BoxFuture<'static, Result<BlockAnswer, NetError>> {
        let net = self.clone();
        Box::pin(async move { net.batch(peer, request, within).await })
    }

    fn push(&self, push: Push) {
        Net::push(self, push, None);
    }

    fn block_peer(&self, peer: PeerId, for_how_long: Duration, reason: &str) {
        Net::block(self, peer, for_how_long, reason);
    }
}

/// An answer of another kind than was asked for.
fn unexpected(peer: PeerId, answer: SyncAnswer) -> NetError {
    let reason = match answer {
        SyncAnswer::Error(reason) => reason,
        _ => "answered something else than was asked".to_owned(),
    };
    NetError::Protocol { peer, reason }
}
