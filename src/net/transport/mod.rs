//! From a TCP socket to an authenticated, multiplexed connection.
//!
//! TCP without Nagle, counted; then libp2p TLS (or Noise, for those who speak nothing else); then yamux with large frames.
//! All of it is wire-compatible with what other libp2p nodes speak. The upgrades for TLS and yamux are p2pfs's own because
//! libp2p's keep their settings private: AES first and frames of 256 KiB make the transport 2.4 times as fast for 0.4 of
//! the processor time (`docs/performance.md`).
//!
//! Invariant: a connection that was dialed with a `/p2p/<id>` at the end of its address exists only if the other side
//! proved that id; libp2p's swarm compares once more above.

mod mux;
mod severable;
mod tls;

#[cfg(test)]
mod tests;

use std::{io, os::fd::AsRawFd, sync::Arc, time::Duration};

use futures::{
    AsyncRead, AsyncWrite,
    future::{Either, FutureExt},
};
use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::{
        ConnectedPoint, Endpoint,
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    dns,
    identity::Keypair,
    multiaddr::Protocol,
    noise, tcp,
};
use multistream_select::{
    Negotiated, NegotiationError, Version, dialer_select_proto, listener_select_proto,
};
use tracing::warn;

pub(super) use self::severable::{Line, Sockets};
use super::counters::{Counted, Counters};

/// Longest time from the first TCP packet to a multiplexed connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Why a connection could not be made on top of TCP.
#[derive(Debug, thiserror::Error)]
enum UpgradeError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("negotiation failed: {0}")]
    Negotiation(#[from] NegotiationError),
    #[error("TLS: {0}")]
    Tls(#[from] tls::TlsError),
    #[error("Noise: {0}")]
    Noise(#[from] noise::Error),
    #[error("expected peer {expected}, found {found}")]
    OtherPeer { expected: PeerId, found: PeerId },
}

/// The transport of the swarm.
pub(super) fn build(
    identity: &Keypair,
    counters: Arc<Counters>,
    open: Arc<Sockets>,
) -> io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let security = Security::new(identity)?;
    let sockets = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let sockets = match dns::tokio::Transport::system(sockets()) {
        Ok(with_names) => with_names.boxed(),
        Err(error) => {
            warn!(%error, "no name resolution: addresses with host names cannot be dialed");
            sockets().boxed()
        }
    };
    let sockets = severable::Interruptible {
        inner: sockets,
        sockets: open.clone(),
    };
    let connections = sockets.and_then(move |socket, endpoint| {
        async move {
            let local = socket.0.local_addr()?;
            let remote = without_peer(endpoint.get_remote_address().clone());
            let system = socket.0.as_raw_fd();
            let socket = open.hold(socket, Some(system), local, remote);
            let line = socket.line();
            let socket = Counted::new(socket, counters);
            let (role, expected) = role(&endpoint);
            let (peer, channel) = security.secure(socket, role, expected).await?;
            line.is_to(peer);
            drop(line);
            let (_, channel) = negotiate(channel, role, [mux::NAME]).await?;
            let muxer = mux::Muxer::new(channel, role);
            Ok::<_, UpgradeError>((peer, StreamMuxerBox::new(muxer)))
        }
        .boxed()
    });
    Ok(TransportTimeout::new(connections, CONNECT_WITHIN).boxed())
}

/// Which side of the handshake to play, and whom the dialed address names.
fn role(endpoint: &ConnectedPoint) -> (Endpoint, Option<PeerId>) {
    match endpoint {
        ConnectedPoint::Dialer {
            address,
            role_override,
            ..
        } => (*role_override, peer_of(address)),
        ConnectedPoint::Listener { .. } => (Endpoint::Listener, None),
    }
}

/// Agrees on one of the protocols, the first that both know.
async fn negotiate<S, const N: usize>(
    socket: S,
    role: Endpoint,
    protocols: [&'static str; N],
) -> Result<(&'static str, Negotiated<S>), NegotiationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match role {
        Endpoint::Dialer => dialer_select_proto(socket, protocols, Version::V1).await,
        Endpoint::Listener => listener_select_proto(socket, protocols).await,
    }
}

/// The peer id at the end of an address.
pub(super) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// An address without the peer id at its end.
pub(super) fn without_peer(mut address: Multiaddr) -> Multiaddr {
    if peer_of(&address).is_some() {
        address.pop();
    }
    address
}

/// TLS, or else Noise.
#[derive(Clone)]
struct Security {
    tls: tls::Tls,
    noise: noise::Config,
}

/// Name of Noise in protocol negotiation.
const NOISE_NAME: &str = "/noise";

type Channel<S> = Either<tls::TlsChannel<S>, noise::Output<S>>;

impl Security {
    fn new(identity: &Keypair) -> io::Result<Self> {
        Ok(Self {
            tls: tls::Tls::new(identity).map_err(io::Error::other)?,
            noise: noise::Config::new(identity).map_err(io::Error::other)?,
        })
    }

    /// Encrypts, and tells who is at the other end: the expected peer, if one is named.
    async fn secure<S>(
        self,
        socket: S,
        role: Endpoint,
        expected: Option<PeerId>,
    ) -> Result<(PeerId, Channel<Negotiated<S>>), UpgradeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (name, socket) = negotiate(socket, role, [tls::NAME, NOISE_NAME]).await?;
        let (found, channel) = match (name == tls::NAME, role) {
            (true, Endpoint::Dialer) => {
                let (peer, channel) = self.tls.connect(socket, expected).await?;
                (peer, Either::Left(channel))
            }
            (true, Endpoint::Listener) => {
                let (peer, channel) = self.tls.accept(socket).await?;
                (peer, Either::Left(channel))
            }
            (false, Endpoint::Dialer) => {
                let (peer, channel) = self.noise.upgrade_outbound(socket, NOISE_NAME).await?;
                (peer, Either::Right(channel))
            }
            (false, Endpoint::Listener) => {
                let (peer, channel) = self.noise.upgrade_inbound(socket, NOISE_NAME).await?;
                (peer, Either::Right(channel))
            }
        };
        match expected {
            Some(expected) if expected != found => Err(UpgradeError::OtherPeer { expected, found }),
            _ => Ok((found, channel)),
        }
    }
}
