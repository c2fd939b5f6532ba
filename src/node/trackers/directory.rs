//! The trackers as the transfer engine asks them: who holds a content.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use libp2p::PeerId;

use super::{ASK_WITHIN, Trackers};
use crate::{content::Object, net::Net, transfer::Holders};

/// Finds holders for the transfer engine.
pub(in crate::node) struct Directory {
    pub(in crate::node) trackers: Arc<Trackers>,
    pub(in crate::node) net: Net,
}

impl Holders for Directory {
    fn find(&self, object: Object) -> BoxFuture<'static, Vec<PeerId>> {
        let trackers = self.trackers.clone();
        let net = self.net.clone();
        async move {
            let mut events = net.events();
            let objects = [object];
            let find = async {
                let (mut holders, _) =
                    tokio::join!(trackers.holders(&objects), trackers.find_fresh_peers());
                let mut named: BTreeSet<PeerId> = holders
                    .remove(&object)
                    .unwrap_or_default()
                    .into_iter()
                    .collect();
                named.remove(&net.local_peer());
                // Those that are named are being dialed: return once they are members in good standing.
                loop {
                    let connected: Vec<PeerId> = net
                        .peers()
                        .into_iter()
                        .map(|peer| peer.peer)
                        .filter(|peer| named.contains(peer))
                        .collect();
                    if connected.len() == named.len() || events.recv().await.is_err() {
                        break connected;
                    }
                }
            };
            match tokio::time::timeout(ASK_WITHIN, find).await {
                Ok(connected) => connected,
                Err(_) => net.peers().into_iter().map(|peer| peer.peer).collect(),
            }
        }
        .boxed()
    }

    fn report(&self, peer: PeerId, reason: &str) {
        let trackers = self.trackers.clone();
        let reason = reason.to_owned();
        tokio::spawn(async move {
            if let Err(error) = trackers.report(peer).await {
                tracing::debug!(%peer, %reason, %error, "a dropped peer was not reported");
            }
        });
    }
}
