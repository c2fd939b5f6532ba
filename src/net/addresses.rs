//! Addresses and what is wrong with them: which to tell others, whether one is free, and errors in plain words.

use std::net::IpAddr;

use libp2p::{Multiaddr, core::transport::TransportError, multiaddr::Protocol, swarm::DialError};

use super::proto::ADDRESSES_MAX;

/// Whether the port is free. libp2p shares its ports with other processes of the same user, and would succeed where another
/// node already listens.
pub(super) fn probe(address: &Multiaddr) -> std::io::Result<()> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => {
            // An IPv6 wildcard would claim the IPv4 port too, which libp2p does not.
            let unspecified_v6 = ip.is_ipv6() && ip.is_unspecified();
            let ip = if unspecified_v6 {
                std::net::Ipv6Addr::LOCALHOST.into()
            } else {
                ip
            };
            std::net::TcpListener::bind((ip, port)).map(drop)
        }
        _ => Ok(()),
    }
}

/// Whether it stands for all addresses that the machine has, or gets.
pub(super) fn is_unspecified(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified(),
        _ => false,
    }
}

/// An error as a person would say it.
pub(super) fn plain(error: &std::io::Error) -> String {
    use std::io::ErrorKind::*;
    match error.kind() {
        AddrInUse => "the port is in use".into(),
        AddrNotAvailable => "this machine does not have that address".into(),
        PermissionDenied => "permission denied (ports below 1024 need privileges)".into(),
        _ => error.to_string(),
    }
}

/// Why a dial failed, in one line.
pub(super) fn explain(error: &DialError) -> String {
    match error {
        DialError::LocalPeerId { .. } => "this is the node itself".into(),
        DialError::NoAddresses => "this is the node's own address, or none at all".into(),
        DialError::WrongPeerId { obtained, .. } => format!("another peer is there: {obtained}"),
        DialError::Denied { cause } => innermost(cause),
        DialError::Transport(attempts) => match attempts.first() {
            Some((_, TransportError::MultiaddrNotSupported(_))) => {
                "only addresses with /tcp/ can be dialed".into()
            }
            Some((_, TransportError::Other(error))) => innermost(error),
            None => "unreachable".into(),
        },
        other => other.to_string(),
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Addresses at which others may find a peer: where it was dialed; its listening ports at the address that it is seen at;
/// and what else it says, unless that makes sense only on its own machine.
pub(super) fn dialable(
    dialed: Option<&Multiaddr>,
    seen: &Multiaddr,
    said: &[Multiaddr],
) -> Vec<Multiaddr> {
    let seen = endpoint(seen).map(|(ip, _)| ip);
    let said: Vec<(IpAddr, u16)> = said.iter().filter_map(endpoint).collect();
    let at_seen = said.iter().filter_map(|(_, port)| Some((seen?, *port)));
    let same_machine = seen.is_some_and(|ip| ip.is_loopback());
    let elsewhere = said
        .iter()
        .filter(|(ip, _)| !ip.is_loopback() || same_machine)
        .copied();
    let found = at_seen
        .chain(elsewhere)
        .filter(|(ip, port)| *port != 0 && !ip.is_unspecified() && !ip.is_multicast())
        .map(|(ip, port)| Multiaddr::from(ip).with(Protocol::Tcp(port)));
    let mut all: Vec<Multiaddr> = Vec::new();
    for address in dialed.cloned().into_iter().chain(found) {
        if all.len() < ADDRESSES_MAX && !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// IP address and TCP port of a plain address.
fn endpoint(address: &Multiaddr) -> Option<(IpAddr, u16)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match (parts.next()?, parts.next()) {
        (Protocol::Tcp(port), None | Some(Protocol::P2p(_))) => Some((ip, port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(addresses: &[&str]) -> Vec<Multiaddr> {
        addresses.iter().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn a_peer_is_told_of_where_it_is_seen_and_not_where_only_itself_can_reach_it() {
        let seen = "/ip4/192.0.2.7/tcp/50000".parse().unwrap();
        let said = list(&[
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/10.0.0.5/tcp/4001",
            "/ip4/0.0.0.0/tcp/4001",
            "/ip4/10.0.0.5/tcp/0",
            "/dns4/example.org/tcp/4001",
        ]);
        assert_eq!(
            dialable(None, &seen, &said),
            list(&["/ip4/192.0.2.7/tcp/4001", "/ip4/10.0.0.5/tcp/4001"])
        );
    }

    #[test]
    fn a_peer_that_was_dialed_is_told_of_with_that_address_first() {
        let dialed: Multiaddr = "/dns4/peer.example.org/tcp/4001".parse().unwrap();
        let told = dialable(Some(&dialed), &dialed, &list(&["/ip4/10.0.0.5/tcp/4001"]));
        assert_eq!(
            told,
            list(&["/dns4/peer.example.org/tcp/4001", "/ip4/10.0.0.5/tcp/4001"])
        );
    }
}
