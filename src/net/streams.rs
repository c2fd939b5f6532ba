//! Opening and accepting streams.
//!
//! `libp2p-stream` hands incoming streams over through a queue without capacity and drops them silently when nobody takes
//! them at that moment. So whoever accepts a stream says so with one byte, whoever opens one waits for it and tries again,
//! and the accepting loops do nothing but start tasks.
//!
//! Streams for sync and blocks from a peer that has not proven its membership wait for the handshake that may be under way,
//! then are closed without a byte.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::{IncomingStreams, OpenStreamError};
use parking_lot::Mutex;
use rand::Rng;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{
    blocks,
    book::Target,
    framing::FrameError,
    hello::{HelloError, Party},
    peers::{Note, Shared},
    proto::{BLOCKS, HELLO, PeerHello, SYNC},
    sync,
};

/// What an accepting side says first.
const ACCEPTED: u8 = 1;
/// Longest wait for a stream to be negotiated.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long a stream of an unproven peer waits for its handshake.
const GRACE: Duration = Duration::from_secs(2);
/// Longest wait for [`ACCEPTED`]: the other side's grace and a slow line.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(4);
/// How often a stream is opened before it is reported as failed.
const TRIES: u32 = 5;
/// Longest handshake.
pub(super) const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Streams that one peer may have open or waiting for hello and for blocks, each. It uses one and two; old ones may linger
/// while a peer comes back.
const STREAMS_PER_PEER_MAX: usize = 8;
/// The same for sync, where it uses one, and each may hold some answers of 4 MiB.
const SYNC_STREAMS_PER_PEER_MAX: usize = 2;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("it does not speak {0}")]
    NotSpoken(StreamProtocol),
    #[error("{0}")]
    Broken(String),
}

/// Opens a stream, once.
pub(super) async fn open_raw(
    shared: &Shared,
    peer: PeerId,
    protocol: StreamProtocol,
) -> Result<Stream, OpenError> {
    if !shared.connected.read().contains(&peer) {
        return Err(OpenError::Broken("not connected".into()));
    }
    let mut control = shared.control.clone();
    match timeout(OPEN_WITHIN, control.open_stream(peer, protocol)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(OpenStreamError::UnsupportedProtocol(name))) => Err(OpenError::NotSpoken(name)),
        Ok(Err(error)) => Err(OpenError::Broken(error.to_string())),
        Err(_) => Err(OpenError::Broken("no stream in time".into())),
    }
}

/// Opens a stream that the other side's application has taken.
pub(super) async fn open(
    shared: &Shared,
    peer: PeerId,
    protocol: StreamProtocol,
) -> Result<Stream, OpenError> {
    let mut last = OpenError::Broken("not tried".into());
    for attempt in 0..TRIES {
        sleep(Duration::from_millis(20) * attempt * attempt).await;
        let mut stream = match open_raw(shared, peer, protocol.clone()).await {
            Ok(stream) => stream,
            Err(error @ OpenError::NotSpoken(_)) => return Err(error),
            Err(error) => {
                last = error;
                continue;
            }
        };
        let mut byte = [0];
        match timeout(ACCEPTED_WITHIN, stream.read_exact(&mut byte)).await {
            Ok(Ok(())) if byte == [ACCEPTED] => return Ok(stream),
            Ok(Ok(())) => last = OpenError::Broken("an answer that makes no sense".into()),
            Ok(Err(error)) => last = OpenError::Broken(error.to_string()),
            Err(_) => last = OpenError::Broken("not accepted in time".into()),
        }
    }
    Err(last)
}

async fn accept(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(&[ACCEPTED]).await?;
    stream.flush().await
}

/// Proves membership to a peer that was dialed, and has it prove its own; tells the swarm's owner.
///
/// `sole` tells that there is no other connection to the peer.
pub(super) async fn say_hello(shared: Arc<Shared>, peer: PeerId, target: Target, sole: bool) {
    let hello = PeerHello {
        sole,
        ..shared.hello.clone()
    };
    let handshake = async {
        let mut stream = open(&shared, peer, HELLO)
            .await
            .map_err(|error| match error {
                OpenError::NotSpoken(_) => HelloError::NotSpoken,
                OpenError::Broken(reason) => HelloError::Broken(reason),
            })?;
        party(&shared, peer, &hello).dial(&mut stream).await
    };
    let outcome = bounded(handshake).await;
    let target = Some(target);
    shared
        .note(Note::Hello {
            peer,
            target,
            outcome,
        })
        .await;
}

async fn hear_hello(shared: Arc<Shared>, peer: PeerId, mut stream: Stream) {
    let handshake = async {
        accept(&mut stream).await.map_err(FrameError::from)?;
        party(&shared, peer, &shared.hello)
            .listen(&mut stream)
            .await
    };
    let outcome = bounded(handshake).await;
    shared
        .note(Note::Hello {
            peer,
            target: None,
            outcome,
        })
        .await;
}

fn party<'a>(shared: &'a Shared, remote: PeerId, hello: &'a PeerHello) -> Party<'a> {
    Party {
        keys: &shared.keys,
        local: shared.local,
        remote,
        hello,
        nonce: rand::rng().random(),
    }
}

async fn bounded<T>(
    handshake: impl Future<Output = Result<T, HelloError>>,
) -> Result<T, HelloError> {
    timeout(HELLO_WITHIN, handshake)
        .await
        .unwrap_or_else(|_| Err(HelloError::Broken("no handshake in time".into())))
}

/// Takes all incoming streams until the network stops.
pub(super) fn take_all(shared: &Arc<Shared>, incoming: Vec<(StreamProtocol, IncomingStreams)>) {
    let open = Arc::new(Open::default());
    for (protocol, mut streams) in incoming {
        let shared = shared.clone();
        let open = open.clone();
        tokio::spawn(async move {
            while let Some(Some((peer, stream))) =
                shared.stop.run_until_cancelled(streams.next()).await
            {
                let Some(place) = Place::take(&open, peer, &protocol) else {
                    debug!(%peer, %protocol, "too many streams: refused");
                    continue;
                };
                let shared = shared.clone();
                let protocol = protocol.clone();
                tokio::spawn(async move {
                    let stop = shared.stop.clone();
                    let served = serve(shared, peer, protocol, stream);
                    stop.run_until_cancelled(served).await;
                    drop(place);
                });
            }
        });
    }
}

async fn serve(shared: Arc<Shared>, id: PeerId, protocol: StreamProtocol, mut stream: Stream) {
    if protocol == HELLO {
        return hear_hello(shared, id, stream).await;
    }
    let Some(peer) = shared.peer_within(&id, GRACE).await else {
        debug!(peer = %id, %protocol, "a stream of a peer that has not proven its membership: refused");
        return;
    };
    let served = async {
        accept(&mut stream).await?;
        if protocol == SYNC {
            sync::serve(&shared, &peer, stream).await
        } else {
            debug_assert_eq!(protocol, BLOCKS);
            blocks::serve(&shared, &peer, stream).await
        }
    };
    match peer.gone.run_until_cancelled(served).await {
        Some(Err(FrameError::Malformed(reason))) => {
            shared.note(Note::Offence { peer: id, reason }).await;
        }
        Some(Err(FrameError::Io(error))) => debug!(peer = %id, %protocol, %error, "stream ended"),
        Some(Ok(())) | None => {}
    }
}

/// Streams that peers have open.
type Open = Mutex<BTreeMap<(PeerId, String), usize>>;

/// A place among the streams that one peer may have.
struct Place {
    open: Arc<Open>,
    key: (PeerId, String),
}

impl Place {
    fn take(open: &Arc<Open>, peer: PeerId, protocol: &StreamProtocol) -> Option<Self> {
        let key = (peer, protocol.to_string());
        let most = match *protocol == SYNC {
            true => SYNC_STREAMS_PER_PEER_MAX,
            false => STREAMS_PER_PEER_MAX,
        };
        let mut counts = open.lock();
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Self {
            open: open.clone(),
            key,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Tells the swarm's owner what ended a client's stream, where the peer is to blame.
pub(super) async fn blame(shared: &Shared, peer: PeerId, ended: &FrameError) {
    if let FrameError::Malformed(reason) = ended {
        let reason = reason.clone();
        shared.note(Note::Offence { peer, reason }).await;
    }
}
