//! Making a cluster: the first, empty head, kept here and handed to the trackers that answer.

use std::{sync::Arc, time::Duration};

use libp2p::Multiaddr;

use super::{
    NodeError,
    keeping::Evictions,
    listen_on,
    members::{KnownHolders, Late, Members, PeerFetcher},
    namespace::Namespace,
    run_blocking,
    state::SavedCluster,
    trackers::Trackers,
};
use crate::{
    net::{
        Net, NetConfig,
        proto::{PROTOCOL, PeerHello},
    },
    store::Store,
};

/// Signs the first head of a saved cluster. Trackers that did not take it within `within` are returned, with the reason.
pub async fn create(
    saved: &SavedCluster,
    trackers: &[(String, Multiaddr)],
    within: Duration,
) -> Result<Vec<(String, String)>, NodeError> {
    let dir = saved.dir.clone();
    let store = run_blocking(move || Store::open(&dir)).await?;
    let keys = saved.id.keys();
    let late = Arc::new(Late::default());
    let fetcher = Arc::new(PeerFetcher { late: late.clone() });
    let identity = saved.identity()?;
    let node_name = super::address::host_name();
    let namespace = Namespace::open(
        store.clone(),
        keys.clone(),
        identity.clone(),
        node_name.clone(),
        fetcher,
    )?;
    namespace.create()?;
    namespace.flush().await?;
    store.flush()?;
    if trackers.is_empty() {
        return Ok(Vec::new());
    }
    let hello = PeerHello {
        protocol: PROTOCOL,
        node: node_name,
        version: env!("CARGO_PKG_VERSION").into(),
        epoch: keys.epoch(),
        keeps_all: false,
        promises: false,
        trees: false,
        sole: false,
    };
    let service = Arc::new(Members {
        store: store.clone(),
        late,
        holders: Arc::new(KnownHolders::default()),
        evictions: Arc::new(Evictions::new(store.clone())),
    });
    let config = NetConfig {
        identity,
        keys: keys.clone(),
        hello,
        listen: listen_on(0),
        upload_limit: None,
    };
    let net = Net::start(config, service).await?;
    let trackers = Trackers::start(trackers, &keys, &net, &namespace, &store);
    let unreached = match tokio::time::timeout(within, trackers.all_have_head()).await {
        Ok(()) => Vec::new(),
        Err(_) => trackers.without_head(),
    };
    // The lease is given up at once: nobody is behind this address in a moment.
    let _ = tokio::time::timeout(Duration::from_secs(2), trackers.leave()).await;
    net.stop().await;
    Ok(unreached)
}
