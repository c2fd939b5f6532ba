//! How many connections that proved nothing may come from one place at a time, so that a stranger with one address cannot
//! take all the room that there is for those under way.
//!
//! A place is an IPv4 address or a /64 of IPv6, which is what one customer gets. Connections of proven peers do not count:
//! any number of members may be behind one address.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// Unproven connections from one place; members behind one address that start at once find room.
const PER_SOURCE_MAX: usize = 32;

/// The place is full.
#[derive(Debug, thiserror::Error)]
#[error("too many connections from {0} that have proven nothing")]
struct TooMany(IpAddr);

struct Unproven {
    source: IpAddr,
    /// Known once its handshake ended.
    peer: Option<PeerId>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Sources {
    unproven: HashMap<ConnectionId, Unproven>,
}

impl Sources {
    /// A peer has proven its membership: its connections count no longer.
    pub(super) fn proven(&mut self, peer: &PeerId) {
        self.unproven
            .retain(|_, one| one.peer.as_ref() != Some(peer));
    }
}

/// Where a connection comes from; all that name no IP address are one.
fn source(address: &Multiaddr) -> IpAddr {
    let ip = address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    });
    match ip {
        Some(IpAddr::V6(ip)) => {
            let network = ip.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        Some(ip) => ip,
        None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

impl NetworkBehaviour for Sources {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let source = source(remote);
        let there = self.unproven.values().filter(|one| one.source == source);
        if there.count() >= PER_SOURCE_MAX {
            return Err(ConnectionDenied::new(TooMany(source)));
        }
        self.unproven.insert(id, Unproven { source, peer: None });
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(there) => {
                if let Some(one) = self.unproven.get_mut(&there.connection_id) {
                    one.peer = Some(there.peer_id);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.unproven.remove(&closed.connection_id);
            }
            FromSwarm::ListenFailure(failed) => {
                self.unproven.remove(&failed.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{
        core::ConnectedPoint,
        swarm::behaviour::{ConnectionClosed, ConnectionEstablished},
    };

    use super::*;

    fn at(address: &str) -> Multiaddr {
        format!("{address}/tcp/1").parse().unwrap()
    }

    fn comes(sources: &mut Sources, id: usize, from: &str) -> bool {
        let id = ConnectionId::new_unchecked(id);
        let pending =
            sources.handle_pending_inbound_connection(id, &at("/ip4/127.0.0.1"), &at(from));
        pending.is_ok()
    }

    fn endpoint() -> ConnectedPoint {
        ConnectedPoint::Listener {
            local_addr: at("/ip4/127.0.0.1"),
            send_back_addr: at("/ip4/127.0.0.1"),
        }
    }

    fn is_there(sources: &mut Sources, id: usize, peer: PeerId) {
        sources.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(id),
            endpoint: &endpoint(),
            failed_addresses: &[],
            other_established: 0,
        }));
    }

    #[test]
    fn one_place_takes_its_share_of_the_room_and_no_more() {
        let mut sources = Sources::default();
        let mut ids = 0..;
        let mut id = || ids.next().unwrap();
        for from in ["/ip4/10.0.0.1", "/ip6/2001:db8:0:1::1"] {
            for _ in 0..PER_SOURCE_MAX {
                assert!(comes(&mut sources, id(), from));
            }
            assert!(!comes(&mut sources, id(), from));
        }
        assert!(!comes(&mut sources, id(), "/ip6/2001:db8:0:1:ffff::2"));
        assert!(!comes(&mut sources, id(), "/ip6/::ffff:10.0.0.1"));
        assert!(comes(&mut sources, id(), "/ip6/2001:db8:0:2::1"));
        assert!(comes(&mut sources, id(), "/ip4/10.0.0.2"));
    }

    #[test]
    fn proven_peers_and_closed_connections_do_not_count() {
        let mut sources = Sources::default();
        let from = "/ip4/10.0.0.1";
        let (member, stranger) = (PeerId::random(), PeerId::random());
        for id in 0..PER_SOURCE_MAX {
            assert!(comes(&mut sources, id, from));
            is_there(&mut sources, id, if id == 0 { stranger } else { member });
        }
        sources.proven(&member);
        for id in 100..100 + PER_SOURCE_MAX - 1 {
            assert!(comes(&mut sources, id, from));
        }
        assert!(!comes(&mut sources, 200, from));
        sources.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: stranger,
            connection_id: ConnectionId::new_unchecked(0),
            endpoint: &endpoint(),
            cause: None,
            remaining_established: 0,
        }));
        assert!(comes(&mut sources, 201, from));
    }
}
