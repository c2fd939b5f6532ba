//! What `p2pfs events` tells: gathers what the parts of the node announce, and puts it into the log that readers follow.
//!
//! One task does so. It waits for nobody who reads, and the parts wait for it neither: of what it could not take in time
//! the log says that it is missing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use libp2p::PeerId;
use tokio::sync::broadcast::error::RecvError;

use super::{
    Node,
    conflicts::{conflict_report, path_text},
    namespace::{Arrival, Namespace, Published},
    run_blocking,
};
use crate::{
    content::Object,
    control::types::{ChangeKind, ChangeReport, Event, Happened, TransferReport},
    manifest::{
        Change, ConflictVersion, InternalKey, NodeHash, Shown, TreePath, Versions, WriterNumber,
        empty_root, shown,
    },
    net::{NetEvent, proto::Push},
    transfer::TransferState,
};

/// Paths that one event names, and bytes of them together.
const PATHS_MAX: usize = 1000;
const PATHS_BYTES_MAX: usize = 64 * 1024;
/// Conflicts told one by one of those that came at once; `p2pfs conflicts` lists all.
const CONFLICTS_MAX: usize = 256;
/// How often the board of transfers is looked at; it shows ended ones for longer.
const TRANSFERS_EVERY: Duration = Duration::from_secs(1);

/// Tells until the task is ended.
pub(super) async fn tell(node: Arc<Node>) {
    let mut published = node.namespace.published();
    let mut arrivals = node.namespace.arrivals();
    let mut network = node.net.events();
    let mut look = tokio::time::interval(TRANSFERS_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut known = Known::default();
    loop {
        let lagged = tokio::select! {
            head = published.recv() => match head {
                Ok(head) => { node.tell_published(&head).await; 0 }
                Err(RecvError::Lagged(missed)) => missed,
                Err(RecvError::Closed) => return,
            },
            arrival = arrivals.recv() => match arrival {
                Ok(arrival) => { node.tell_arrival(&arrival).await; 0 }
                Err(RecvError::Lagged(missed)) => missed,
                Err(RecvError::Closed) => return,
            },
            event = network.recv() => match event {
                Ok(event) => { node.tell_network(&mut known, &event); 0 }
                Err(RecvError::Lagged(missed)) => missed,
                Err(RecvError::Closed) => return,
            },
            _ = look.tick() => { node.tell_transfers(&mut known); 0 }
        };
        if lagged > 0 {
            node.happened(Happened::Lagged { missed: lagged });
        }
    }
}

/// What was told of things that go on.
#[derive(Default)]
struct Known {
    peers: BTreeMap<PeerId, String>,
    transfers: BTreeMap<Object, TransferState>,
}

impl Node {
    pub(super) fn happened(&self, what: Happened) {
        self.events.put(&Event::now(what));
    }

    async fn tell_published(&self, published: &Published) {
        let Push::Manifest { base, .. } = &published.push else {
            return;
        };
        let (namespace, from, to) = (self.namespace.clone(), *base, published.head.root);
        let changes = run_blocking(move || namespace.changes(from, to)).await;
        let changes = changes.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a head changes could not be told");
            None
        });
        let (told, all) = self.named(to, changes.as_deref()).await;
        self.happened(Happened::Published {
            root: to.to_string(),
            changes: told,
            all,
        });
        self.tell_conflicts(to, changes.as_deref().unwrap_or_default())
            .await;
    }

    async fn tell_arrival(&self, arrival: &Arrival) {
        let (told, all) = self.named(arrival.root, arrival.changes.as_deref()).await;
        self.happened(Happened::Changed {
            root: arrival.root.to_string(),
            changes: told,
            all,
        });
        match (&arrival.changes, arrival.before) {
            (Some(changes), _) => self.tell_conflicts(arrival.root, changes).await,
            // Nothing that this node wrote can be in conflict where nothing was.
            (None, Some(before)) if before != empty_root() => {
                self.tell_conflicts_of_many(before, arrival.root).await;
            }
            (None, _) => {}
        }
    }

    /// The same for more changes than are named: the conflicts are looked for by themselves.
    async fn tell_conflicts_of_many(&self, before: NodeHash, root: NodeHash) {
        let found = self
            .with_nodes(move |namespace| {
                namespace.conflict_changes(before, root, CONFLICTS_MAX + 1)
            })
            .await;
        match found {
            Ok((changes, more)) => {
                self.tell_conflicts(root, &changes).await;
                if more {
                    self.happened(Happened::Lagged { missed: 0 });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the conflicts that a head brought could not be told");
                self.happened(Happened::Lagged { missed: 1 });
            }
        }
    }

    /// The paths of changes with who wrote them, and whether there are more.
    async fn named(&self, root: NodeHash, changes: Option<&[Change]>) -> (Vec<ChangeReport>, bool) {
        let Some(changes) = changes else {
            return (Vec::new(), true);
        };
        let mut told = Vec::new();
        let (mut bytes, mut all) = (0, false);
        for change in changes {
            let Some(path) = change.key.path() else {
                // The names that share a file are not known from its record.
                all |= matches!(change.key.internal(), Some(InternalKey::File(_)));
                continue;
            };
            let (path, path_hex) = path_text(&path);
            bytes += path.len() + path_hex.as_ref().map_or(0, String::len);
            if told.len() >= PATHS_MAX || bytes > PATHS_BYTES_MAX {
                all = true;
                break;
            }
            let writer = new_writer(change);
            told.push((path, path_hex, kind_of(change), writer));
        }
        let names = self
            .node_names(root, told.iter().filter_map(|told| told.3))
            .await;
        let told = told.into_iter().map(|(path, path_hex, change, writer)| {
            let node = writer.and_then(|writer| names.get(&writer).cloned());
            ChangeReport {
                path,
                path_hex,
                change,
                node: node.flatten(),
            }
        });
        (told.collect(), all)
    }

    /// Node names, as far as they can be told without asking anybody.
    async fn node_names(
        &self,
        root: NodeHash,
        writers: impl Iterator<Item = WriterNumber>,
    ) -> BTreeMap<WriterNumber, Option<String>> {
        let mut names: BTreeMap<_, _> = writers.map(|writer| (writer, None)).collect();
        for peer in self.net.peers() {
            if let Some(name) = names.get_mut(&WriterNumber::of(&peer.peer)) {
                *name = Some(peer.hello.node);
            }
        }
        let namespace = self.namespace.clone();
        run_blocking(move || {
            fill_in(&namespace, root, &mut names);
            names
        })
        .await
    }

    /// Announces files that turned out to be changed on two sides at once, above all to the side whose version isn't the
    /// one shown.
    async fn tell_conflicts(&self, root: NodeHash, changes: &[Change]) {
        let mut told = 0;
        for change in changes {
            let Some(path) = change.key.path() else {
                continue;
            };
            let (before, now) = (copies(change.old.as_ref()), copies(change.new.as_ref()));
            if !before.is_empty() && now.is_empty() {
                let (path, path_hex) = path_text(&path);
                self.happened(Happened::Settled { path, path_hex });
            }
            let is_new =
                |copy: &&Shown| !before.iter().any(|was| was.entry.kind == copy.entry.kind);
            let new: Vec<&Shown> = now.iter().filter(is_new).collect();
            if new.is_empty() {
                continue;
            }
            told += 1;
            if told > CONFLICTS_MAX {
                self.happened(Happened::Lagged { missed: 0 });
                return;
            }
            self.tell_conflict(root, path, &new).await;
        }
    }

    /// `new`: the copies that were not there before.
    async fn tell_conflict(&self, root: NodeHash, path: TreePath, new: &[&Shown]) {
        let at = path.clone();
        let found = self
            .with_nodes(move |namespace| namespace.conflict_at(root, &at))
            .await;
        match found {
            Ok(Some(conflict)) => {
                let own = self.namespace.own_number();
                let is_new =
                    |copy: &&ConflictVersion| new.iter().any(|new| new.seen == copy.shown.seen);
                let mut copies = conflict.copies.iter().filter(is_new);
                // Of several who wrote the same, one is named.
                let wrote = |copy: &ConflictVersion| {
                    let seen = &copy.shown.seen;
                    copy.writer == Some(own)
                        || (seen.len() > 1 && seen.iter().any(|dot| dot.writer == own))
                };
                let lost_here = copies.any(wrote);
                if lost_here {
                    tracing::warn!(%path, "another version than the one written here is shown; p2pfs conflicts lists both");
                }
                self.happened(Happened::Conflict {
                    conflict: conflict_report(&conflict, own),
                    lost_here,
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%path, %error, "a conflict could not be told in full");
                self.happened(Happened::Lagged { missed: 1 });
            }
        }
    }

    fn tell_network(&self, known: &mut Known, event: &NetEvent) {
        match event {
            NetEvent::Up(peer) => {
                let info = self.net.peers().into_iter().find(|info| info.peer == *peer);
                let (node, address) = info.map_or_else(Default::default, |info| {
                    (info.hello.node, info.address.to_string())
                });
                known.peers.insert(*peer, node.clone());
                self.happened(Happened::PeerUp {
                    id: peer.to_string(),
                    node,
                    address,
                });
            }
            NetEvent::Down(peer) => self.happened(Happened::PeerDown {
                id: peer.to_string(),
                node: known.peers.remove(peer).unwrap_or_default(),
            }),
            NetEvent::Missed(_) | NetEvent::Addresses(_) => {}
        }
    }

    fn tell_transfers(&self, known: &mut Known) {
        let mut now = BTreeMap::new();
        for transfer in self.transfers.status() {
            let ended = matches!(
                transfer.state,
                TransferState::Finished | TransferState::Stalled(_)
            );
            let before = known.transfers.get(&transfer.object);
            now.insert(transfer.object, transfer.state.clone());
            if ended && before != Some(&transfer.state) {
                let hash = transfer.object.content.to_string();
                self.happened(Happened::Transfer {
                    transfer: TransferReport::from(transfer),
                    hash,
                });
            }
        }
        known.transfers = now;
    }
}

fn fill_in(
    namespace: &Namespace,
    root: NodeHash,
    names: &mut BTreeMap<WriterNumber, Option<String>>,
) {
    for (writer, name) in names {
        // Missing nodes are as good as a writer that has no row: the name is told another time.
        if name.is_none() {
            *name = namespace.node_name(root, *writer).ok().flatten();
        }
    }
}

fn copies(versions: Option<&Versions>) -> Vec<Shown> {
    versions.map_or_else(Vec::new, |versions| shown(versions).1)
}

fn kind_of(change: &Change) -> ChangeKind {
    match (&change.old, &change.new) {
        (None, _) => ChangeKind::Created,
        (_, None) => ChangeKind::Removed,
        _ => ChangeKind::Changed,
    }
}

/// Who wrote the newest version that is new.
fn new_writer(change: &Change) -> Option<WriterNumber> {
    let old = change.old.as_ref().map_or(&[][..], Versions::as_slice);
    let was = |dot| old.iter().any(|version| version.dot == dot);
    let new = change.new.as_ref().map_or(&[][..], Versions::as_slice);
    let new = new.iter().filter(|version| !was(version.dot));
    let newest = new.max_by_key(|version| version.time)?;
    Some(newest.dot.writer)
}
