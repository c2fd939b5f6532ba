//! The node's standing tasks: passing on what was published, comparing heads with members, remembering members,
//! settling the store, telling what happens.

use std::{sync::Arc, time::Duration};

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use super::{
    Node, events,
    keeping::{pins, repair, room, scrub},
    run_blocking,
};
use crate::{
    awake,
    net::{
        NetEvent,
        proto::{SyncAnswer, SyncRequest},
    },
    store::StoreError,
};

/// How often heads are compared with every member, so that a lost push is made good.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// How long a member is given to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often imported contents are put on disk.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
/// Members remembered across restarts are dialed again then.
const REMEMBERED_MAX: usize = 64;

/// A member as it is remembered in the store.
#[derive(Serialize, Deserialize)]
struct Remembered {
    version: u32,
    /// When it was last seen, seconds since 1970.
    seen_s: u64,
    addresses: Vec<Vec<u8>>,
}

/// Starts the tasks; each ends with the node.
pub(super) fn start(node: &Arc<Node>) {
    dial_remembered(node);
    for task in [
        tokio::spawn(pass_on(node.clone())),
        tokio::spawn(meet(node.clone())),
        tokio::spawn(compare(node.clone())),
        tokio::spawn(settle(node.clone())),
        tokio::spawn(wake(node.clone())),
        tokio::spawn(events::tell(node.clone())),
        tokio::spawn(pins::follow(node.clone())),
        tokio::spawn(pins::bring_pinned(node.clone())),
        tokio::spawn(room::keep_room(node.clone())),
        tokio::spawn(repair::repair_found(node.clone())),
        tokio::spawn(scrub::scrub(node.clone())),
    ] {
        let mut ended = node.ended.subscribe();
        tokio::spawn(async move {
            let _ = ended.wait_for(|ended| *ended).await;
            task.abort();
        });
    }
}

fn dial_remembered(node: &Node) {
    match remembered(node) {
        Ok(known) => {
            for (record, peer) in known {
                for address in record.addresses {
                    if let Ok(address) = Multiaddr::try_from(address)
                        && let Ok(address) = address.with_p2p(peer)
                    {
                        node.net.add_peer(address, false);
                    }
                }
            }
        }
        Err(error) => tracing::warn!(%error, "remembered members could not be read"),
    }
}

/// What this node signs goes to members and trackers.
async fn pass_on(node: Arc<Node>) {
    let mut published = node.namespace.published();
    loop {
        match published.recv().await {
            Ok(published) => {
                node.net.push(published.push.clone(), None);
                node.trackers.head_changed();
            }
            // Members miss a push and make it good by comparing.
            Err(RecvError::Lagged(_)) => node.trackers.head_changed(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Greets members as they appear.
async fn meet(node: Arc<Node>) {
    let mut events = node.net.events();
    loop {
        match events.recv().await {
            Ok(NetEvent::Up(peer) | NetEvent::Missed(peer)) => {
                let node = node.clone();
                tokio::spawn(async move { greet(&node, peer).await });
            }
            Ok(NetEvent::Down(peer)) => {
                node.loads.lock().remove(&peer);
                node.holders.forget(&peer);
            }
            Ok(NetEvent::Addresses(_)) => node.trackers.addresses_changed(),
            Err(RecvError::Lagged(_)) => greet_all(&node).await,
            Err(RecvError::Closed) => return,
        }
    }
}

async fn compare(node: Arc<Node>) {
    loop {
        let jitter = rand::random_range(0.8..1.2);
        tokio::time::sleep(COMPARE_EVERY.mul_f64(jitter)).await;
        greet_all(&node).await;
    }
}

async fn greet_all(node: &Node) {
    let peers = node.net.peers();
    futures::future::join_all(peers.iter().map(|peer| greet(node, peer.peer))).await;
}

/// Compares heads with a member, and learns of its load and of the members that it knows.
async fn greet(node: &Node, peer: PeerId) {
    match node
        .net
        .request(peer, SyncRequest::Heads, ANSWER_WITHIN)
        .await
    {
        Ok(SyncAnswer::Heads(heads)) => {
            let heads = heads.into_iter().map(|head| head.into_vec()).collect();
            if let Err(reason) = node.namespace.take_heads(Some(peer), heads).await {
                tracing::warn!(%peer, %reason, "a head was refused");
            }
        }
        Ok(_) => tracing::debug!(%peer, "no heads were told"),
        Err(error) => tracing::debug!(%peer, %error, "heads could not be compared"),
    }
    refresh_status(node, peer, ANSWER_WITHIN).await;
    remember(node, peer);
}

async fn refresh_status(node: &Node, peer: PeerId, within: Duration) {
    let Ok(SyncAnswer::Status { load, members }) =
        node.net.request(peer, SyncRequest::Status, within).await
    else {
        return;
    };
    node.loads.lock().insert(peer, load);
    for (member, addresses) in members {
        let Ok(member) = PeerId::from_bytes(&member) else {
            continue;
        };
        for address in addresses {
            if let Ok(address) = Multiaddr::try_from(address.into_vec())
                && let Ok(address) = address.with_p2p(member)
            {
                node.net.add_peer(address, false);
            }
        }
    }
}

/// Asks all members for their load now.
pub(super) async fn refresh_loads(node: &Node) {
    let peers = node.net.peers();
    let within = Duration::from_secs(2);
    futures::future::join_all(
        peers
            .iter()
            .map(|peer| refresh_status(node, peer.peer, within)),
    )
    .await;
}

/// Keeps where a member is for the next start; the one not seen for the longest makes room.
fn remember(node: &Node, peer: PeerId) {
    let Some(info) = node.net.peers().into_iter().find(|info| info.peer == peer) else {
        return;
    };
    let addresses = info.listen.iter().take(16).map(Multiaddr::to_vec).collect();
    if let Err(error) = try_remember(node, peer, addresses) {
        tracing::warn!(%peer, %error, "a member could not be remembered");
    }
}

fn try_remember(
    node: &Node,
    peer: PeerId,
    addresses: Vec<Vec<u8>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut known = remembered(node)?;
    known.retain(|(_, other)| *other != peer);
    for (_, oldest) in known.iter().skip(REMEMBERED_MAX - 1) {
        node.store.remove_peer(&oldest.to_bytes())?;
    }
    let seen_s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let record = Remembered {
        version: 1,
        seen_s,
        addresses,
    };
    node.store.put_peer(
        &peer.to_bytes(),
        &cbor4ii::serde::to_vec(Vec::new(), &record)?,
    )?;
    Ok(())
}

/// Remembered members, the one seen last first. What doesn't decode is passed over.
fn remembered(node: &Node) -> Result<Vec<(Remembered, PeerId)>, StoreError> {
    let mut known: Vec<(Remembered, PeerId)> = node
        .store
        .peers()?
        .into_iter()
        .filter_map(|(peer, record)| {
            Some((
                cbor4ii::serde::from_slice(&record).ok()?,
                PeerId::from_bytes(&peer).ok()?,
            ))
        })
        .collect();
    known.sort_by_key(|(record, peer)| (std::cmp::Reverse(record.seen_s), *peer));
    Ok(known)
}

/// Connections and leases may be gone after a sleep.
async fn wake(node: Arc<Node>) {
    loop {
        awake::woken().await;
        tracing::info!("this process was asleep; connections are tried, trackers are told");
        node.net.doubt();
        node.trackers.addresses_changed();
    }
}

async fn settle(node: Arc<Node>) {
    loop {
        tokio::time::sleep(SETTLE_EVERY).await;
        let store = node.store.clone();
        if let Err(error) = run_blocking(move || store.settle()).await {
            tracing::error!(%error, "contents could not be put on disk");
        }
    }
}
