//! From a request to the registry and back to an answer: everything that a peer sent is checked here.

use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use serde_bytes::ByteBuf;

use crate::{
    protocol::{
        ADDRESSES_MAX, Ask, HoldsDigest, PORTS_MAX, Refusal, SealedKey, Told, Topic, WireHead,
        WirePeer, parse_address, parse_peer,
    },
    registry::{Located, Registry, sealed_node, sealed_node_key},
};

/// Reads the record under a key.
pub(super) type ReadRecord<'a> = &'a dyn Fn(&[u8]) -> Result<Option<Vec<u8>>, Refusal>;

/// Who asks: all of it was proven or seen, nothing is claimed.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) peer: PeerId,
    pub(super) topic: Topic,
    /// The addresses that its connections come from.
    pub(super) seen_from: Vec<IpAddr>,
}

/// Answers one request.
pub(super) fn answer(
    registry: &mut Registry,
    records: ReadRecord<'_>,
    now: u64,
    asker: &Asker,
    ask: Ask,
    random: u64,
) -> Told {
    tell(registry, records, now, asker, ask, random).unwrap_or_else(Told::Refused)
}

fn tell(
    registry: &mut Registry,
    records: ReadRecord<'_>,
    now: u64,
    asker: &Asker,
    ask: Ask,
    random: u64,
) -> Result<Told, Refusal> {
    let Asker { peer, topic, .. } = *asker;
    match ask {
        Ask::Announce { addresses, ports } => {
            let addresses = reachable_at(asker, &addresses, &ports)?;
            let holds = registry.announce(now, topic, peer, addresses)?;
            Ok(lease(registry, holds))
        }
        Ask::Renew => {
            let holds = registry.renew(now, topic, &peer)?;
            Ok(lease(registry, holds))
        }
        Ask::HoldsReset => registry.holds_reset(now, topic, &peer).map(|()| Told::Done),
        Ask::Holds { add, remove } => registry
            .holds(now, topic, &peer, &add, &remove)
            .map(|()| Told::Done),
        Ask::Leave => {
            registry.leave(now, topic, &peer);
            Ok(Told::Done)
        }
        Ask::Peers => Ok(Told::Peers(wire(
            &registry.peers(now, &topic, &peer, random),
        ))),
        Ask::Holders { keys } => {
            let found = registry.holders(now, &topic, &peer, &keys, random)?;
            Ok(Told::Holders {
                peers: wire(&found.peers),
                holders: found.holders,
            })
        }
        Ask::PutHead { sealed } => registry
            .put_head(now, topic, peer, sealed.into_vec())
            .map(|()| Told::Done),
        Ask::Heads => {
            let heads = registry.heads(now, &topic).into_iter();
            Ok(Told::Heads(
                heads
                    .map(|head| WireHead {
                        sealed: ByteBuf::from(head.sealed),
                        age_s: head.age_ms / 1000,
                    })
                    .collect(),
            ))
        }
        Ask::Report { peer: reported } => {
            let reported = parse_peer(&reported).ok_or(Refusal::Malformed)?;
            registry.report(now, topic, &peer, &reported);
            Ok(Told::Done)
        }
        Ask::WhereIs { peer: wanted } => {
            let wanted = parse_peer(&wanted).ok_or(Refusal::Malformed)?;
            let found = registry.where_is(now, &topic, &wanted);
            Ok(Told::Peers(wire(found.as_slice())))
        }
        Ask::HaveNodes { keys } => {
            let (have, room) = registry.have_nodes(now, &topic, &keys)?;
            Ok(Told::HaveNodes { have, room })
        }
        Ask::PutNodes { nodes, replace } => {
            let nodes = nodes.into_iter();
            let nodes = nodes.map(|node| (node.key, node.sealed.into_vec()));
            registry
                .put_nodes(now, topic, &peer, nodes.collect(), replace)
                .map(|()| Told::Done)
        }
        Ask::GetNodes { keys } => nodes(registry, records, now, &topic, &keys),
    }
}

fn nodes(
    registry: &mut Registry,
    records: ReadRecord<'_>,
    now: u64,
    topic: &Topic,
    keys: &[SealedKey],
) -> Result<Told, Refusal> {
    let mut nodes = Vec::new();
    for (key, found) in keys.iter().zip(registry.find_nodes(now, topic, keys)?) {
        let mut sealed = Vec::new();
        if let Some(bytes) = found {
            let record = records(&sealed_node_key(topic, key))?;
            match record.as_deref().and_then(sealed_node) {
                Some(there) if there.len() == bytes as usize => sealed = there.to_vec(),
                // A disk that lost it: forgotten, so that it is handed in again.
                _ => registry.drop_node(topic, key),
            }
        }
        nodes.push(ByteBuf::from(sealed));
    }
    Ok(Told::Nodes(nodes))
}

fn lease(registry: &Registry, holds: HoldsDigest) -> Told {
    Told::Lease {
        lease_ms: registry.lease_ms(),
        holds,
    }
}

fn wire(peers: &[Located]) -> Vec<WirePeer> {
    peers
        .iter()
        .map(|located| {
            let addresses = located.addresses.iter();
            WirePeer {
                peer: ByteBuf::from(located.peer.to_bytes()),
                addresses: addresses.map(|a| ByteBuf::from(a.to_vec())).collect(),
            }
        })
        .collect()
}

/// Where the peer is seen, with the ports that it says it listens on, then where it says it is; at most [`ADDRESSES_MAX`].
fn reachable_at(
    asker: &Asker,
    announced: &[ByteBuf],
    ports: &[u16],
) -> Result<Vec<Multiaddr>, Refusal> {
    if announced.len() > ADDRESSES_MAX || ports.len() > PORTS_MAX {
        return Err(Refusal::Malformed);
    }
    let mut addresses: Vec<Multiaddr> = Vec::new();
    for ip in &asker.seen_from {
        for port in ports.iter().filter(|port| **port != 0) {
            addresses.push(Multiaddr::from(*ip).with(Protocol::Tcp(*port)));
        }
    }
    for bytes in announced {
        addresses.push(parse_address(bytes, &asker.peer).ok_or(Refusal::Malformed)?);
    }
    let mut distinct = Vec::new();
    for address in addresses {
        if distinct.len() < ADDRESSES_MAX && !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    Ok(distinct)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Limits;

    fn asker() -> Asker {
        Asker {
            peer: PeerId::random(),
            topic: Topic([1; 32]),
            seen_from: vec!["203.0.113.7".parse().unwrap()],
        }
    }

    fn bytes(address: &str) -> ByteBuf {
        ByteBuf::from(address.parse::<Multiaddr>().unwrap().to_vec())
    }

    #[test]
    fn addresses_are_those_seen_and_those_announced() {
        let asker = asker();
        let announced = [
            bytes("/ip4/10.0.0.2/tcp/4001"),
            bytes(&format!("/ip4/10.0.0.2/tcp/4001/p2p/{}", asker.peer)),
            bytes("/ip4/203.0.113.7/tcp/4001"),
        ];
        let found = reachable_at(&asker, &announced, &[4001, 0]).unwrap();
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["/ip4/203.0.113.7/tcp/4001", "/ip4/10.0.0.2/tcp/4001"]
        );
    }

    #[test]
    fn addresses_that_are_too_many_too_long_or_of_somebody_else_are_refused() {
        let asker = asker();
        let one = bytes("/ip4/10.0.0.2/tcp/4001");
        let many = vec![one.clone(); ADDRESSES_MAX + 1];
        let long = bytes(&format!("/dns4/{}/tcp/1", "a".repeat(255)));
        let other = bytes(&format!("/ip4/10.0.0.2/tcp/1/p2p/{}", PeerId::random()));
        assert!(reachable_at(&asker, &many, &[]).is_err());
        assert!(reachable_at(&asker, &[one], &[1; PORTS_MAX + 1]).is_err());
        for bad in [
            long,
            other,
            ByteBuf::from(vec![0xff; 20]),
            ByteBuf::from(vec![]),
        ] {
            assert!(reachable_at(&asker, &[bad], &[]).is_err());
        }
    }

    #[test]
    fn nodes_come_back_in_the_order_asked_and_one_that_the_disk_lost_is_forgotten() {
        let asker = asker();
        let mut registry = Registry::new(Limits::default(), 1000);
        registry
            .announce(0, asker.topic, asker.peer, Vec::new())
            .unwrap();
        let key = |name| SealedKey([name; 32]);
        let mut disk = std::collections::BTreeMap::new();
        let nodes = vec![(key(1), vec![1; 10]), (key(2), vec![2; 20])];
        registry
            .put_nodes(0, asker.topic, &asker.peer, nodes, false)
            .unwrap();
        for delta in registry.take_deltas() {
            if let crate::registry::Delta::Put { key, value } = delta {
                disk.insert(key, value);
            }
        }
        let mut ask = |disk: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>| {
            let keys = vec![key(2), key(3), key(1)];
            let read = |key: &[u8]| Ok(disk.get(key).cloned());
            match answer(&mut registry, &read, 0, &asker, Ask::GetNodes { keys }, 0) {
                Told::Nodes(nodes) => nodes.into_iter().map(ByteBuf::into_vec).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ask(&disk), [vec![2; 20], vec![], vec![1; 10]]);
        disk.remove(&sealed_node_key(&asker.topic, &key(2)));
        assert_eq!(ask(&disk), [vec![], vec![], vec![1; 10]]);
        let (have, _) = registry
            .have_nodes(0, &asker.topic, &[key(1), key(2)])
            .unwrap();
        assert_eq!(have, [true, false]);
    }

    #[test]
    fn the_largest_answers_fit_their_bound() {
        use crate::{
            framing::encode_frame,
            protocol::{
                ANSWER_BYTES_MAX, Answer, GET_BYTES_MAX, HAVE_NODES_MAX, HEAD_BYTES_MAX, HEADS_MAX,
                HOLDERS_MAX, KEYS_MAX, LOOKUP_KEYS_MAX, NODE_BYTES_MAX, PEERS_MAX, PUT_BYTES_MAX,
                PUT_NODES_MAX, REQUEST_BYTES_MAX, Request, WireNode,
            },
        };
        let asker = asker();
        let mut registry = Registry::new(Limits::default(), 1000);
        let keys: Vec<_> = (0..LOOKUP_KEYS_MAX)
            .map(|i| SealedKey([i as u8; 32]))
            .collect();
        for i in 0..PEERS_MAX + 10 {
            let peer = PeerId::random();
            let name = "a".repeat(240);
            let addresses = (0..ADDRESSES_MAX)
                .map(|port| format!("/dns4/{name}/tcp/{}", 1000 + port).parse().unwrap())
                .collect();
            registry.announce(0, asker.topic, peer, addresses).unwrap();
            let held = keys.get(i..).unwrap();
            registry.holds(0, asker.topic, &peer, held, &[]).unwrap();
            if i < HEADS_MAX {
                let head = vec![i as u8; HEAD_BYTES_MAX];
                registry.put_head(0, asker.topic, peer, head).unwrap();
            }
        }
        for ask in [Ask::Heads, Ask::Peers, Ask::Holders { keys: keys.clone() }] {
            let told = answer(&mut registry, &|_| Ok(None), 0, &asker, ask, 7);
            match &told {
                Told::Heads(heads) => assert_eq!(heads.len(), HEADS_MAX),
                Told::Peers(peers) => assert_eq!(peers.len(), PEERS_MAX),
                Told::Holders { holders, .. } => {
                    assert!(holders.iter().all(|h| h.len() <= HOLDERS_MAX));
                }
                other => panic!("{other:?}"),
            }
            encode_frame(&Answer { id: u64::MAX, told }, ANSWER_BYTES_MAX).unwrap();
        }
        // Whatever its size, a node goes into an answer by itself, and full answers stay below the bound.
        let told = Told::Nodes(vec![ByteBuf::from(vec![1; GET_BYTES_MAX + NODE_BYTES_MAX])]);
        encode_frame(&Answer { id: u64::MAX, told }, ANSWER_BYTES_MAX).unwrap();
        let nodes = (0..PUT_NODES_MAX).map(|_| WireNode {
            key: SealedKey([0xff; 32]),
            sealed: ByteBuf::from(vec![1; PUT_BYTES_MAX / PUT_NODES_MAX]),
        });
        for ask in [
            Ask::PutNodes {
                nodes: nodes.collect(),
                replace: false,
            },
            Ask::HaveNodes {
                keys: vec![SealedKey([0xff; 32]); HAVE_NODES_MAX],
            },
            Ask::Holds {
                add: vec![SealedKey([0xff; 32]); KEYS_MAX],
                remove: Vec::new(),
            },
            Ask::PutHead {
                sealed: ByteBuf::from(vec![0; HEAD_BYTES_MAX]),
            },
            Ask::Holders { keys },
        ] {
            encode_frame(&Request { id: u64::MAX, ask }, REQUEST_BYTES_MAX).unwrap();
        }
    }
}
