//! `p2pfs why`: where each part of a file would come from right now, and what is waited for.
//!
//! Every connected member is asked, and the trackers; nothing is remembered or estimated.

use std::{ops::Range, time::Duration};

use futures::future::join_all;
use libp2p::PeerId;

use super::bring::here;
use crate::{
    content::{BlockSet, Object},
    control::{
        ControlError,
        keeping::{PartReport, WhyReport},
        types::{HolderReport, TransferReport},
    },
    manifest::{Kind, TreePath},
    net::{
        PeerInfo,
        proto::{Have, SyncAnswer, SyncRequest},
    },
    node::{Node, conflicts::path_text},
};

/// How long members are waited for.
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// Most parts that are told.
const PARTS_MAX: usize = 1000;

/// Where a part would come from: from here, or from these members, by their places in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Here,
    Members(Vec<usize>),
}

/// Makes the report.
///
/// # Errors
/// Where no file stands at the path.
pub(in crate::node) async fn why(node: &Node, path: TreePath) -> Result<WhyReport, ControlError> {
    let at = path.clone();
    let shown = node.with_nodes(move |namespace| namespace.get(&at)).await?;
    let object = match shown.map(|shown| shown.entry.kind) {
        Some(Kind::File(object)) => object,
        Some(_) => return Err(ControlError::new(format_args!("{path} is no file"))),
        None => {
            return Err(ControlError::new(format_args!(
                "nothing is called {path} in the folder"
            )));
        }
    };
    let peers = node.net.peers();
    let asked = join_all(peers.iter().map(|peer| have(node, peer.peer, object)));
    let trackers = node.trackers.holders(std::slice::from_ref(&object));
    let (said, told) = tokio::join!(asked, trackers);
    let members: Vec<BlockSet> = said
        .iter()
        .map(|said| said.clone().unwrap_or_default())
        .collect();
    let here = here(node, &object).map_err(ControlError::new)?;
    let unpublished = node.is_unpublished(&path);
    let mut parts = match unpublished {
        true => vec![(0..object.blocks(), Source::Here)],
        false => parts(&object, &here, &members),
    };
    let more = parts.len() > PARTS_MAX;
    parts.truncate(PARTS_MAX);
    let silent = peers.iter().zip(&said).filter(|(_, said)| said.is_none());
    let connected = |id: &PeerId| peers.iter().any(|peer| peer.peer == *id);
    let elsewhere = told.into_values().flatten();
    let elsewhere = elsewhere.filter(|id| *id != node.net.local_peer() && !connected(id));
    let (path, path_hex) = path_text(&path);
    let transfers = node.transfers.status().into_iter();
    let transfers = transfers.filter(|transfer| transfer.object == object);
    Ok(WhyReport {
        path,
        path_hex,
        size: object.size,
        hash: object.content.to_string(),
        unpublished,
        parts: parts
            .into_iter()
            .map(|(blocks, source)| part(&object, blocks, &source, &peers))
            .collect(),
        more,
        silent: silent.map(|(peer, _)| peer.hello.node.clone()).collect(),
        elsewhere: elsewhere.map(|id| id.to_string()).collect(),
        transfers: transfers.map(TransferReport::from).collect(),
    })
}

/// What a member has; `None` when it does not answer.
async fn have(node: &Node, peer: PeerId, object: Object) -> Option<BlockSet> {
    let request = SyncRequest::Have(vec![object]);
    match node.net.request(peer, request, ASKED_WITHIN).await {
        Ok(SyncAnswer::Have(answers)) => match answers.into_iter().next()? {
            Have::No => Some(BlockSet::default()),
            Have::Part(blocks) => Some(blocks),
            Have::Whole => Some(BlockSet::of(0..object.blocks())),
        },
        _ => None,
    }
}

fn part(object: &Object, blocks: Range<u64>, source: &Source, peers: &[PeerInfo]) -> PartReport {
    let bytes = object.bytes_of(blocks);
    let members = match source {
        Source::Here => &[][..],
        Source::Members(members) => members,
    };
    PartReport {
        offset: bytes.start,
        length: bytes.end - bytes.start,
        here: *source == Source::Here,
        peers: members
            .iter()
            .filter_map(|member| peers.get(*member))
            .map(|peer| HolderReport {
                id: peer.peer.to_string(),
                node: peer.hello.node.clone(),
            })
            .collect(),
    }
}

/// The content cut where its sources change; a little more than [`PARTS_MAX`] parts at most.
fn parts(object: &Object, here: &BlockSet, members: &[BlockSet]) -> Vec<(Range<u64>, Source)> {
    let all = object.blocks();
    let mut edges: Vec<u64> = members
        .iter()
        .chain([here])
        .flat_map(BlockSet::ranges)
        .flat_map(|range| [range.start, range.end])
        .filter(|edge| *edge < all)
        .chain([0, all])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let mut parts: Vec<(Range<u64>, Source)> = Vec::new();
    for (start, end) in edges.iter().zip(edges.iter().skip(1)) {
        let blocks = *start..*end;
        let source = match here.contains(blocks.clone()) {
            true => Source::Here,
            false => Source::Members(
                (0..members.len())
                    .filter(|member| members[*member].contains(blocks.clone()))
                    .collect(),
            ),
        };
        match parts.last_mut() {
            Some((before, same)) if *same == source => before.end = *end,
            _ => parts.push((blocks, source)),
        }
        if parts.len() > PARTS_MAX {
            break;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{BLOCK_BYTES, ContentId};

    fn object(blocks: u64) -> Object {
        Object {
            content: ContentId([1; 32]),
            size: blocks * BLOCK_BYTES,
        }
    }

    #[test]
    fn a_file_is_cut_where_its_sources_change() {
        let members = [BlockSet::of(0..10), BlockSet::of(6..8)];
        let from = |members: &[usize]| Source::Members(members.to_vec());
        assert_eq!(
            parts(&object(12), &BlockSet::of(2..5), &members),
            [
                (0..2, from(&[0])),
                (2..5, Source::Here),
                (5..6, from(&[0])),
                (6..8, from(&[0, 1])),
                (8..10, from(&[0])),
                (10..12, from(&[])),
            ]
        );
        // What is here is one part, whoever else has pieces of it.
        let whole = parts(&object(12), &BlockSet::of(0..12), &members);
        assert_eq!(whole, [(0..12, Source::Here)]);
        assert_eq!(parts(&object(0), &BlockSet::default(), &[]), []);
    }

    #[test]
    fn the_parts_are_bounded() {
        let mut every_other = BlockSet::default();
        for block in 0..5000 {
            every_other.insert(2 * block..2 * block + 1);
        }
        let parts = parts(&object(10_000), &every_other, &[]);
        assert_eq!(parts.len(), PARTS_MAX + 1);
    }
}
