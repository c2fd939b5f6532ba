//! The reports that the control socket serves: each figure is read or asked for, none is estimated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::PeerId;

use super::{
    Node,
    keeping::{Running, take_kept_elsewhere},
    members::whole_holders,
    namespace::{Namespace, NamespaceError},
    run_blocking,
};
use crate::{
    content::{Object, verify_range},
    control::{
        ControlError,
        types::{
            BlameReport, CacheReport, FindMatch, FindReport, HolderReport, ManifestReport,
            MemoryReport, NetworkReport, OnlyHereReport, PeerReport, SelfReport, StatusReport,
            TransferReport,
        },
    },
    manifest::{Kind, Shown, TreePath},
    net::proto::{BlockAnswer, BlockRequest},
    store::{Limits, Origin, Presence, Store, Usage},
    transfer::{TransferState, TransferStatus},
};

/// How long a report waits for manifest nodes that are not here.
const NODES_WITHIN: Duration = Duration::from_secs(20);
/// How long members are given to prove, or to promise, what they hold, all together, and for each block.
const PROOF_WITHIN: Duration = Duration::from_secs(60);
const BLOCK_WITHIN: Duration = Duration::from_secs(5);
/// Proofs asked for at once.
const PROOFS_AT_ONCE: usize = 16;
/// Contents with a path at which they stand, where one is known.
pub(super) type Named = BTreeMap<Object, Option<TreePath>>;

/// How much that is.
pub(super) fn totals(named: &Named) -> OnlyHereReport {
    OnlyHereReport {
        files: named.len() as u64,
        bytes: named.keys().map(|object| object.size).sum(),
    }
}

impl Node {
    pub(super) async fn status_report(&self) -> Result<StatusReport, ControlError> {
        let namespace = self.namespace.status();
        let summary = namespace.summary.unwrap_or_default();
        let usage = self.store.usage().map_err(ControlError::new)?;
        let counters = self.net.counters();
        let only_here = totals(&self.only_here(false).await?);
        let live = self
            .mounted()
            .map(|mounted| mounted.status())
            .unwrap_or_default();
        Ok(StatusReport {
            name: self.saved.name.to_string(),
            topic: self.keys.topic().to_string(),
            mountpoint: self.config.mountpoint.display().to_string(),
            role: self.role(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            state_dir: self.saved.dir.display().to_string(),
            this: SelfReport {
                id: self.net.local_peer().to_string(),
                node: self.config.node_name.clone(),
                addresses: self
                    .net
                    .addresses()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            },
            manifest: ManifestReport {
                hash: namespace
                    .root
                    .map(|root| root.to_string())
                    .unwrap_or_default(),
                files: summary.files,
                bytes: summary.bytes,
                unpublished: namespace.unpublished.max(live.unpublished_files),
                conflicts: namespace.conflicts,
                history_bytes: 0,
            },
            peers: self
                .peer_reports()
                .into_iter()
                .filter(|peer| peer.connected)
                .collect(),
            trackers: self.trackers.reports(),
            cache: self.cache_report(&usage, only_here.bytes),
            network: NetworkReport {
                received_bytes: counters.received_bytes,
                sent_bytes: counters.sent_bytes,
                block_bytes_received: counters.block_bytes_received,
                block_bytes_sent: counters.block_bytes_sent,
                manifest_bytes_received: counters.manifest_bytes_received,
                blocks_rejected: self.transfers.rejected(),
            },
            memory: self.memory_report(),
            transfers: self.transfer_reports(),
            only_here,
        })
    }

    fn memory_report(&self) -> MemoryReport {
        let (requested_bytes, requested_max_bytes) = self.transfers.requested();
        let (answers, answers_max) = self.net.answering();
        MemoryReport {
            resident_bytes: resident_bytes().unwrap_or(0),
            requested_bytes,
            requested_max_bytes,
            answers: answers as u64,
            answers_max: answers_max as u64,
        }
    }

    fn cache_report(&self, usage: &Usage, only_here_bytes: u64) -> CacheReport {
        let room = self.store.room();
        let limits = room.limits.unwrap_or(Limits {
            cache_bytes_max: 0,
            free_bytes_min: 0,
        });
        CacheReport {
            used_bytes: room.files_bytes + room.staging_bytes + room.index_bytes,
            files_bytes: room.files_bytes,
            staging_bytes: room.staging_bytes,
            index_bytes: room.index_bytes,
            limit_bytes: limits.cache_bytes_max,
            min_free_bytes: limits.free_bytes_min,
            evictable_bytes: room.cleared_bytes,
            full: room.full.map(|why| why.to_string()),
            scrub: self.scrub.lock().clone(),
            pinned_bytes: usage.pinned_bytes,
            only_here_bytes,
        }
    }

    pub(super) fn transfer_reports(&self) -> Vec<TransferReport> {
        let transfers = self.transfers.status();
        transfers.into_iter().map(TransferReport::from).collect()
    }

    /// Connected members, and those that are gone but were blamed for something.
    pub(super) fn peer_reports(&self) -> Vec<PeerReport> {
        let mut blames: BTreeMap<PeerId, BlameReport> = BTreeMap::new();
        for blame in self.transfers.blames() {
            let report = BlameReport {
                reason: blame.reason,
                at_s: blame.at_ns as f64 / 1e9,
            };
            blames.insert(blame.peer, report);
        }
        for blame in self.net.blames() {
            let since = blame.at.duration_since(std::time::UNIX_EPOCH);
            let report = BlameReport {
                reason: blame.reason,
                at_s: since.map_or(0.0, |since| since.as_secs_f64()),
            };
            let known = blames.get(&blame.peer);
            if known.is_none_or(|known| known.at_s <= report.at_s) {
                blames.insert(blame.peer, report);
            }
        }
        let loads = self.loads.lock();
        let mut reports: Vec<PeerReport> = self
            .net
            .peers()
            .into_iter()
            .map(|peer| PeerReport {
                id: peer.peer.to_string(),
                node: peer.hello.node,
                version: peer.hello.version,
                address: peer.address.to_string(),
                connected: true,
                direct: true,
                keeps_all: peer.hello.keeps_all,
                rtt_s: peer.round_trip.map(|time| time.as_secs_f64()),
                load: loads.get(&peer.peer).copied().unwrap_or(0),
                received_bytes: peer.block_bytes_received,
                sent_bytes: peer.block_bytes_sent,
                blamed: blames.remove(&peer.peer),
            })
            .collect();
        reports.extend(blames.into_iter().map(|(peer, blame)| PeerReport {
            id: peer.to_string(),
            node: String::new(),
            version: String::new(),
            address: String::new(),
            connected: false,
            direct: false,
            keeps_all: false,
            rtt_s: None,
            load: 0,
            received_bytes: 0,
            sent_bytes: 0,
            blamed: Some(blame),
        }));
        reports
    }

    /// Every path of the folder with what stands there, its nodes fetched where they are not here.
    async fn everything(&self) -> Result<Vec<(TreePath, Shown)>, ControlError> {
        loop {
            let namespace = self.namespace.clone();
            match run_blocking(move || namespace.below(&TreePath::root())).await {
                Ok(paths) => return Ok(paths),
                Err(NamespaceError::NoHead) => return Ok(Vec::new()),
                Err(NamespaceError::Missing(nodes)) => self
                    .namespace
                    .fetch(nodes, NODES_WITHIN)
                    .await
                    .map_err(ControlError::new)?,
                Err(error) => return Err(ControlError::new(error)),
            }
        }
    }

    /// Contents that are whole here. Those of the folder's present state come with a path; without it (nodes that nobody can
    /// give) everything that was written here counts.
    async fn all_here(&self) -> Result<Named, ControlError> {
        let (store, namespace) = (self.store.clone(), self.namespace.clone());
        let mut named = run_blocking(move || whole_here(&store, &namespace)).await?;
        named.retain(|object, _| object.size > 0);
        Ok(named)
    }

    /// Those that no connected member says to hold whole.
    ///
    /// With `proof`, before data is given up for good, a member's word is not enough: it must give a block chosen at random.
    pub(super) async fn only_here(&self, proof: bool) -> Result<Named, ControlError> {
        let mut named = self.all_here().await?;
        let objects: Vec<Object> = named.keys().copied().collect();
        let (mut elsewhere, _) = whole_holders(&self.net, &self.holders, &objects).await;
        if proof {
            elsewhere = self.proven(elsewhere).await;
        }
        named.retain(|object, _| !elsewhere.contains_key(object));
        Ok(named)
    }

    /// Those of the objects of which a claimed holder gave a random block within [`PROOF_WITHIN`].
    async fn proven(
        &self,
        claimed: BTreeMap<Object, Vec<PeerId>>,
    ) -> BTreeMap<Object, Vec<PeerId>> {
        let proofs = futures::stream::iter(claimed.into_iter().map(|(object, peers)| async move {
            for peer in peers {
                if self.gives_a_block(peer, object).await {
                    return Some((object, vec![peer]));
                }
            }
            None
        }));
        let mut proven = BTreeMap::new();
        let collect = async {
            let mut outcomes = proofs.buffer_unordered(PROOFS_AT_ONCE);
            while let Some(outcome) = outcomes.next().await {
                proven.extend(outcome);
            }
        };
        if tokio::time::timeout(PROOF_WITHIN, collect).await.is_err() {
            tracing::warn!("not all holders proved in time what they hold");
        }
        proven
    }

    /// Those that no other member promises to keep. Who promises is bound for a month: to be asked by who goes.
    pub(super) async fn kept_by_nobody(
        self: &Arc<Self>,
        running: &mut Running<'_>,
    ) -> Result<Named, ControlError> {
        let mut named = self.all_here().await?;
        let mut alone: BTreeSet<Object> = named.keys().copied().collect();
        let asked = take_kept_elsewhere(self, &mut alone, running);
        if tokio::time::timeout(PROOF_WITHIN, asked).await.is_err() {
            tracing::warn!("not all members promised in time what they keep");
        }
        named.retain(|object, _| alone.contains(object));
        Ok(named)
    }

    pub(super) async fn gives_a_block(&self, peer: PeerId, object: Object) -> bool {
        let start = rand::random_range(0..object.blocks().max(1));
        let request = BlockRequest {
            object,
            start,
            end: start + 1,
        };
        match self.net.blocks(peer, request, BLOCK_WITHIN).await {
            Ok(BlockAnswer::Data(encoded)) => {
                verify_range(object, start..start + 1, &encoded).is_ok()
            }
            _ => false,
        }
    }

    pub(super) async fn find_report(&self, pattern: &str) -> Result<FindReport, ControlError> {
        let glob = globset::GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .map_err(|error| ControlError::new(format_args!("{pattern:?} is no pattern: {error}")))?
            .compile_matcher();
        if !self.namespace.has_head() {
            return Err(ControlError::new(NamespaceError::NoHead));
        }
        let whole_path = pattern.contains('/');
        let mut matches = Vec::new();
        for (path, shown) in self.everything().await? {
            let text = path.to_string();
            let text = text.trim_start_matches('/');
            let name = text.rsplit('/').next().unwrap_or(text);
            let subject = if whole_path { text } else { name };
            if subject == pattern.trim_start_matches('/') || glob.is_match(subject) {
                matches.push((text.to_owned(), shown));
            }
        }
        let objects: BTreeSet<Object> = matches
            .iter()
            .filter_map(|(_, shown)| match shown.entry.kind {
                Kind::File(object) => Some(object),
                _ => None,
            })
            .collect();
        let objects: Vec<Object> = objects.into_iter().collect();
        let ((mut holders, silent), elsewhere) = tokio::join!(
            whole_holders(&self.net, &self.holders, &objects),
            self.trackers.holders(&objects),
        );
        for (object, peers) in elsewhere {
            // A tracker's word is a hint: only who was not asked directly is taken from it.
            let known = holders.entry(object).or_default();
            for peer in peers {
                let connected = self.net.peers().iter().any(|info| info.peer == peer);
                if !connected && peer != self.net.local_peer() && !known.contains(&peer) {
                    known.push(peer);
                }
            }
        }
        let nodes: BTreeMap<PeerId, String> = self
            .net
            .peers()
            .into_iter()
            .map(|peer| (peer.peer, peer.hello.node))
            .collect();
        let mut report = FindReport {
            matches: Vec::new(),
            silent: silent
                .iter()
                .map(|peer| nodes.get(peer).cloned().unwrap_or_else(|| peer.to_string()))
                .collect(),
        };
        for (path, shown) in matches {
            let object = match shown.entry.kind {
                Kind::File(object) => Some(object),
                _ => None,
            };
            let mut held = Vec::new();
            if let Some(object) = object {
                if self.store.presence(&object).map_err(ControlError::new)? == Presence::Complete {
                    held.push(HolderReport {
                        id: self.net.local_peer().to_string(),
                        node: self.config.node_name.clone(),
                    });
                }
                held.extend(
                    holders
                        .get(&object)
                        .into_iter()
                        .flatten()
                        .map(|peer| HolderReport {
                            id: peer.to_string(),
                            node: nodes.get(peer).cloned().unwrap_or_default(),
                        }),
                );
            }
            report.matches.push(FindMatch {
                path,
                size: object.map_or(0, |object| object.size),
                hash: object.map(|object| object.content.to_string()),
                holders: held,
            });
        }
        Ok(report)
    }
}

impl From<TransferStatus> for TransferReport {
    fn from(transfer: TransferStatus) -> Self {
        Self {
            path: transfer.label.trim_start_matches('/').to_owned(),
            state: match transfer.state {
                TransferState::Requesting => "requesting".into(),
                TransferState::Downloading => "downloading".into(),
                TransferState::Finished => "finished".into(),
                TransferState::Stalled(reason) => format!("stalled: {reason}"),
            },
            done_bytes: transfer.done_bytes,
            total_bytes: transfer.object.size,
            rate_bytes_per_s: transfer.rate_bytes_per_s,
            sources: transfer.sources,
        }
    }
}

/// Contents that are whole here, with a path of the folder's present state that names each.
fn whole_here(
    store: &Store,
    namespace: &Namespace,
) -> Result<BTreeMap<Object, Option<TreePath>>, ControlError> {
    let mut here = BTreeSet::new();
    let mut written = BTreeMap::new();
    store
        .each_object(&mut |object, presence, origin| {
            if presence == Presence::Complete {
                here.insert(object);
                if origin == Origin::Written {
                    written.insert(object, None);
                }
            }
            true
        })
        .map_err(ControlError::new)?;
    let paths = match namespace.below(&TreePath::root()) {
        Ok(paths) => paths,
        Err(NamespaceError::NoHead) => Vec::new(),
        Err(NamespaceError::Missing(_)) => return Ok(written),
        Err(error) => return Err(ControlError::new(error)),
    };
    let mut named = BTreeMap::new();
    for (path, shown) in paths {
        if let Kind::File(object) = shown.entry.kind
            && here.contains(&object)
        {
            named.entry(object).or_insert(Some(path));
        }
    }
    Ok(named)
}

/// What of this process is in RAM; `None` where the system doesn't tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
