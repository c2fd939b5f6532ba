//! Names of trackers and peers as people write them.

use std::net::{IpAddr, ToSocketAddrs};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// The port of a tracker that is named without one.
pub const TRACKER_PORT: u16 = 7474;

/// Bytes of a node name in hello.
const NODE_NAME_BYTES_MAX: usize = 64;

/// Why a word is no address.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no {what}: use {usage}")]
pub struct AddressError {
    text: String,
    what: &'static str,
    usage: &'static str,
}

/// A tracker: `host`, `host:port`, or a multiaddr.
pub fn tracker(text: &str) -> Result<Multiaddr, AddressError> {
    let wrong = || AddressError {
        text: text.into(),
        what: "tracker",
        usage: "host, host:port, or a multiaddr such as /ip4/192.0.2.1/tcp/7474",
    };
    if text.starts_with('/') {
        return text.parse().map_err(|_| wrong());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
        None => (text, TRACKER_PORT),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || port == 0 || !host.chars().all(plain) {
        return Err(wrong());
    }
    let host = match host.parse() {
        Ok(IpAddr::V4(ip)) => Protocol::Ip4(ip),
        Ok(IpAddr::V6(ip)) => Protocol::Ip6(ip),
        // `localhost` needs no name server, and there may be none.
        Err(_) if host == "localhost" => Protocol::Ip4([127, 0, 0, 1].into()),
        Err(_) => Protocol::Dns(host.to_owned().into()),
    };
    Ok(Multiaddr::empty().with(host).with(Protocol::Tcp(port)))
}

/// A peer or a place to listen: a multiaddr with a TCP part.
pub fn peer(text: &str) -> Result<Multiaddr, AddressError> {
    let wrong = || AddressError {
        text: text.into(),
        what: "address",
        usage: "a multiaddr such as /ip4/192.0.2.1/tcp/4001",
    };
    let address: Multiaddr = text.parse().map_err(|_| wrong())?;
    if address.iter().any(|part| matches!(part, Protocol::Tcp(_))) {
        Ok(address)
    } else {
        Err(wrong())
    }
}

/// The name of this machine, cut to what a hello may carry.
pub fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let mut name: String = name.chars().filter(|c| !c.is_control()).collect();
    name.truncate(name.floor_char_boundary(NODE_NAME_BYTES_MAX));
    if name.is_empty() { "node".into() } else { name }
}

/// `ADDR:PORT` of a server's socket.
pub fn socket(text: &str) -> Result<std::net::SocketAddr, AddressError> {
    let wrong = || AddressError {
        text: text.into(),
        what: "address to listen on",
        usage: "ADDR:PORT such as 0.0.0.0:7474",
    };
    let mut found = text.to_socket_addrs().map_err(|_| wrong())?;
    found.next().ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trackers_are_hosts_with_a_default_port_or_multiaddrs() {
        for (text, address) in [
            ("tracker.example.org", "/dns/tracker.example.org/tcp/7474"),
            ("192.0.2.1", "/ip4/192.0.2.1/tcp/7474"),
            ("192.0.2.1:80", "/ip4/192.0.2.1/tcp/80"),
            ("localhost:99", "/ip4/127.0.0.1/tcp/99"),
            ("/ip6/::1/tcp/7474", "/ip6/::1/tcp/7474"),
        ] {
            assert_eq!(tracker(text).unwrap().to_string(), address, "{text}");
        }
        for text in [
            "",
            ":80",
            "host:",
            "host:0",
            "host:99999",
            "a b",
            "/tcp",
            "::1",
        ] {
            assert!(tracker(text).is_err(), "{text}");
        }
    }

    #[test]
    fn peers_need_a_port() {
        assert!(peer("/ip4/192.0.2.1/tcp/4001").is_ok());
        for text in ["", "192.0.2.1:4001", "/ip4/192.0.2.1"] {
            assert!(peer(text).is_err(), "{text}");
        }
    }
}
