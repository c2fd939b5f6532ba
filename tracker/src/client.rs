//! A peer's end of a tracker session, over any stream.
//!
//! The caller opens the stream (through its own swarm) and decides when ([`crate::policy`]); a [`Session`] proves membership,
//! then carries any number of concurrent requests. It never reconnects: once the stream breaks, every waiting request fails,
//! and so does each later one. Every request has a deadline; at most [`IN_FLIGHT_MAX`] are under way at a time, others wait
//! for their turn within their deadline.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Multiaddr, PeerId};
use serde_bytes::{ByteArray, ByteBuf};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

pub use crate::registry::Located;
use crate::{
    framing::{FrameError, encode_frame, read_frame, write_frame},
    protocol::{
        ADDRESSES_MAX, ANSWER_BYTES_MAX, Answer, Ask, Challenge, GET_NODES_MAX,
        HANDSHAKE_BYTES_MAX, HAVE_NODES_MAX, HEADS_MAX, HoldsDigest, KEYS_MAX, LOOKUP_KEYS_MAX,
        NODE_BYTES_MAX, PEERS_MAX, PUT_BYTES_MAX, PUT_NODES_MAX, Prove, REQUEST_BYTES_MAX, Refusal,
        Request, SealedKey, Told, Verdict, WireNode, WirePeer, challenge_message, parse_address,
        parse_peer,
    },
};

/// How long to wait for the tracker's first message. A stream that got lost on the tracker's side shows by this alone.
pub const CHALLENGE_WAIT: Duration = Duration::from_secs(2);
/// How long a request may take, waiting for its turn included.
pub const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Most requests under way in one session.
pub const IN_FLIGHT_MAX: usize = 32;
/// How many streams [`Session::open`] tries.
const OPEN_TRIES: u32 = 3;

/// Why a session could not begin, or a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream could not be opened.
    #[error("could not open a stream to the tracker: {0}")]
    Open(String),
    /// The tracker didn't take the stream: open another.
    #[error("the tracker did not take the stream within {} s", CHALLENGE_WAIT.as_secs())]
    NoChallenge,
    /// The tracker doesn't accept the proof.
    #[error("the tracker did not accept the proof of membership")]
    NoMember,
    /// Refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer in time.
    #[error("the tracker did not answer within {} s", REQUEST_WAIT.as_secs())]
    TimedOut,
    /// The tracker sent something that breaks the protocol.
    #[error("the tracker broke the protocol: {0}")]
    Protocol(String),
    /// The session is over.
    #[error("the session with the tracker ended: {0}")]
    Lost(String),
}

/// A lease, as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How long it runs without being renewed.
    pub lease: Duration,
    /// What the tracker knows this peer to hold.
    pub holds: HoldsDigest,
}

/// A sealed head that a tracker keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedHead {
    /// As it was handed in.
    pub sealed: Vec<u8>,
    /// How long ago that was, by the tracker's clock.
    pub age: Duration,
}

/// Which nodes a tracker keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptNodes {
    /// For each key, in the order asked.
    pub have: Vec<bool>,
    /// Bytes that the cluster's nodes may take there at present, each charged with
    /// [`NODE_OVERHEAD_BYTES`](crate::protocol::NODE_OVERHEAD_BYTES) more than it has.
    pub room: u64,
}

#[derive(Default)]
struct Waiting {
    answers: BTreeMap<u64, oneshot::Sender<Told>>,
    next_id: u64,
    /// Why the session is over.
    ended: Option<String>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    ended: watch::Sender<bool>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding it, and what it guards is sound after every statement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails whatever waits, and whatever comes; the first reason stays.
    fn end(&self, reason: &dyn Display) {
        let mut waiting = self.waiting();
        waiting.ended.get_or_insert_with(|| reason.to_string());
        waiting.answers.clear();
        drop(waiting);
        self.ended.send_replace(true);
    }

    fn lost(&self) -> SessionError {
        let reason = self.waiting().ended.clone();
        SessionError::Lost(reason.unwrap_or_else(|| "it was closed".into()))
    }
}

/// Takes a request out of the waiting ones, however it ends.
struct Ticket<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.waiting().answers.remove(&self.id);
    }
}

/// A session with a tracker about one topic. Dropping it closes the stream; the lease then runs out by itself.
pub struct Session {
    shared: Arc<Shared>,
    frames: mpsc::Sender<Vec<u8>>,
    permits: Semaphore,
    tasks: [AbortHandle; 2],
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Session {
    /// Begins a session on a fresh stream; to be called within a tokio runtime.
    ///
    /// `tracker` and `me` are the peer ids that the transport authenticated, `sign` signs with the member key, whose public
    /// half is `topic`. On [`SessionError::NoChallenge`] it is worth trying another stream ([`Session::open`] does).
    pub async fn establish<S>(
        mut stream: S,
        tracker: PeerId,
        me: PeerId,
        topic: [u8; 32],
        sign: &(dyn Fn(&[u8]) -> [u8; 64] + Sync),
    ) -> Result<Self, SessionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let challenge: Challenge =
            match timeout(CHALLENGE_WAIT, read_frame(&mut stream, HANDSHAKE_BYTES_MAX)).await {
                Ok(Ok(challenge)) => challenge,
                // A dropped stream shows as silence or as an end, depending on the multiplexer.
                Err(_) | Ok(Err(FrameError::Closed | FrameError::Io(_))) => {
                    return Err(SessionError::NoChallenge);
                }
                Ok(Err(error)) => return Err(SessionError::Protocol(error.to_string())),
            };
        let signature = sign(&challenge_message(&topic, &me, &tracker, &challenge.nonce));
        let prove = Prove {
            topic: ByteArray::new(topic),
            signature: ByteArray::new(signature),
        };
        let prove_and_wait = async {
            write_frame(&mut stream, &prove, HANDSHAKE_BYTES_MAX).await?;
            read_frame(&mut stream, HANDSHAKE_BYTES_MAX).await
        };
        match timeout(REQUEST_WAIT, prove_and_wait).await {
            Ok(Ok(Verdict::Welcome)) => {}
            Ok(Ok(Verdict::NoMember)) => return Err(SessionError::NoMember),
            Ok(Err(error)) => return Err(SessionError::Lost(error.to_string())),
            Err(_) => return Err(SessionError::TimedOut),
        }
        let (mut reader, mut writer) = stream.split();
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(IN_FLIGHT_MAX);
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            ended: watch::Sender::new(false),
        });
        let told = Arc::clone(&shared);
        let reading = tokio::spawn(async move {
            loop {
                match read_frame::<Answer, _>(&mut reader, ANSWER_BYTES_MAX).await {
                    Ok(answer) => {
                        // No taker: the request was given up meanwhile.
                        if let Some(taker) = told.waiting().answers.remove(&answer.id) {
                            let _ = taker.send(answer.told);
                        }
                    }
                    Err(error) => return told.end(&error),
                }
            }
        });
        let sent = Arc::clone(&shared);
        let writing = tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                let write = async {
                    writer.write_all(&frame).await?;
                    writer.flush().await
                };
                match timeout(REQUEST_WAIT, write).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return sent.end(&error),
                    Err(_) => return sent.end(&SessionError::TimedOut),
                }
            }
        });
        Ok(Self {
            shared,
            frames,
            permits: Semaphore::new(IN_FLIGHT_MAX),
            tasks: [reading.abort_handle(), writing.abort_handle()],
        })
    }

    /// Opens streams with `open` until the tracker takes one, three at most, and begins a session on it.
    pub async fn open<S, E, F>(
        mut open: impl FnMut() -> F,
        tracker: PeerId,
        me: PeerId,
        topic: [u8; 32],
        sign: &(dyn Fn(&[u8]) -> [u8; 64] + Sync),
    ) -> Result<Self, SessionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        E: Display,
        F: Future<Output = Result<S, E>>,
    {
        for _ in 1..OPEN_TRIES {
            let stream = open()
                .await
                .map_err(|e| SessionError::Open(e.to_string()))?;
            match Self::establish(stream, tracker, me, topic, sign).await {
                Err(SessionError::NoChallenge) => {}
                outcome => return outcome,
            }
        }
        let stream = open()
            .await
            .map_err(|e| SessionError::Open(e.to_string()))?;
        Self::establish(stream, tracker, me, topic, sign).await
    }

    /// Waits until the session is over; tells why.
    pub async fn ended(&self) -> SessionError {
        // The sender lives in `shared`.
        let _ = self.shared.ended.subscribe().wait_for(|over| *over).await;
        self.shared.lost()
    }

    /// Begins or renews the lease under these addresses, at most 16; more are cut off. `ports` are the TCP ports listened on,
    /// which the tracker joins with the address that it sees; at most 4.
    pub async fn announce(
        &self,
        addresses: &[Multiaddr],
        ports: &[u16],
    ) -> Result<Lease, SessionError> {
        let addresses = addresses.iter().take(ADDRESSES_MAX);
        let ask = Ask::Announce {
            addresses: addresses.map(|a| ByteBuf::from(a.to_vec())).collect(),
            ports: ports.to_vec(),
        };
        lease(self.request(ask).await?)
    }

    /// Renews the lease.
    pub async fn renew(&self) -> Result<Lease, SessionError> {
        lease(self.request(Ask::Renew).await?)
    }

    /// Tells anew all that is held, in as many messages as it takes.
    pub async fn replace_holds(&self, keys: &[SealedKey]) -> Result<(), SessionError> {
        done(self.request(Ask::HoldsReset).await?)?;
        self.update_holds(keys, &[]).await
    }

    /// Tells what is held from now on and what isn't any more, in as many messages as it takes.
    pub async fn update_holds(
        &self,
        add: &[SealedKey],
        remove: &[SealedKey],
    ) -> Result<(), SessionError> {
        for removed in remove.chunks(KEYS_MAX) {
            let ask = Ask::Holds {
                add: Vec::new(),
                remove: removed.to_vec(),
            };
            done(self.request(ask).await?)?;
        }
        for added in add.chunks(KEYS_MAX) {
            let ask = Ask::Holds {
                add: added.to_vec(),
                remove: Vec::new(),
            };
            done(self.request(ask).await?)?;
        }
        Ok(())
    }

    /// Ends the lease; the tracker deletes everything of this peer.
    pub async fn leave(&self) -> Result<(), SessionError> {
        done(self.request(Ask::Leave).await?)
    }

    /// Some other peers, at most 128, another choice each time.
    pub async fn peers(&self) -> Result<Vec<Located>, SessionError> {
        peers(self.request(Ask::Peers).await?)
    }

    /// Holders of each of at most 256 keys, in their order, at most 16 of each.
    pub async fn holders(&self, keys: &[SealedKey]) -> Result<Vec<Vec<Located>>, SessionError> {
        if keys.len() > LOOKUP_KEYS_MAX {
            return Err(Refusal::Malformed.into());
        }
        let ask = Ask::Holders {
            keys: keys.to_vec(),
        };
        let (wire, holders) = match self.request(ask).await? {
            Told::Holders { peers, holders } => (peers, holders),
            other => return Err(unexpected(&other)),
        };
        let peers = located(wire)?;
        if holders.len() != keys.len() {
            return Err(SessionError::Protocol(
                "holders for other keys than asked".into(),
            ));
        }
        let resolve = |slots: Vec<u16>| -> Option<Vec<Located>> {
            let named = slots.iter().take(crate::protocol::HOLDERS_MAX);
            named
                .map(|slot| peers.get(usize::from(*slot)).cloned())
                .collect()
        };
        let resolved: Option<Vec<_>> = holders.into_iter().map(resolve).collect();
        resolved.ok_or_else(|| SessionError::Protocol("a holder without description".into()))
    }

    /// Hands in a sealed head of at most 65 KiB, in place of this peer's last one.
    pub async fn put_head(&self, sealed: &[u8]) -> Result<(), SessionError> {
        let ask = Ask::PutHead {
            sealed: ByteBuf::from(sealed),
        };
        done(self.request(ask).await?)
    }

    /// The newest sealed heads, at most 16, newest first.
    pub async fn heads(&self) -> Result<Vec<TrackedHead>, SessionError> {
        let heads = match self.request(Ask::Heads).await? {
            Told::Heads(heads) => heads,
            other => return Err(unexpected(&other)),
        };
        let heads = heads.into_iter().take(HEADS_MAX);
        Ok(heads
            .map(|head| TrackedHead {
                sealed: head.sealed.into_vec(),
                age: Duration::from_secs(head.age_s),
            })
            .collect())
    }

    /// Reports a peer that doesn't answer.
    pub async fn report(&self, peer: &PeerId) -> Result<(), SessionError> {
        let peer = ByteBuf::from(peer.to_bytes());
        done(self.request(Ask::Report { peer }).await?)
    }

    /// Where a peer is.
    pub async fn where_is(&self, peer: &PeerId) -> Result<Option<Located>, SessionError> {
        let wire = ByteBuf::from(peer.to_bytes());
        let found = peers(self.request(Ask::WhereIs { peer: wire }).await?)?;
        Ok(found.into_iter().find(|located| located.peer == *peer))
    }

    /// Which of at most 1024 nodes the tracker keeps; those count as new again.
    pub async fn have_nodes(&self, keys: &[SealedKey]) -> Result<KeptNodes, SessionError> {
        if keys.len() > HAVE_NODES_MAX {
            return Err(Refusal::Malformed.into());
        }
        let ask = Ask::HaveNodes {
            keys: keys.to_vec(),
        };
        match self.request(ask).await? {
            Told::HaveNodes { have, room } if have.len() == keys.len() => {
                Ok(KeptNodes { have, room })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Hands in sealed nodes: 64 at most, with 448 KiB together, each of 1 byte to 256 KiB. `replace`: in place of those
    /// that the tracker keeps under the same keys.
    pub async fn put_nodes(
        &self,
        nodes: Vec<(SealedKey, Vec<u8>)>,
        replace: bool,
    ) -> Result<(), SessionError> {
        let total: usize = nodes.iter().map(|(_, sealed)| sealed.len()).sum();
        if nodes.len() > PUT_NODES_MAX || total > PUT_BYTES_MAX {
            return Err(Refusal::Malformed.into());
        }
        let nodes = nodes.into_iter().map(|(key, sealed)| WireNode {
            key,
            sealed: ByteBuf::from(sealed),
        });
        let ask = Ask::PutNodes {
            nodes: nodes.collect(),
            replace,
        };
        done(self.request(ask).await?)
    }

    /// Sealed nodes of at most 256 keys, in their order, empty where the tracker keeps none. The answer may stop early: those
    /// that it doesn't cover are to be asked for again.
    pub async fn nodes(&self, keys: &[SealedKey]) -> Result<Vec<Vec<u8>>, SessionError> {
        if keys.len() > GET_NODES_MAX {
            return Err(Refusal::Malformed.into());
        }
        let ask = Ask::GetNodes {
            keys: keys.to_vec(),
        };
        match self.request(ask).await? {
            Told::Nodes(nodes)
                if nodes.len() <= keys.len()
                    && nodes.is_empty() == keys.is_empty()
                    && nodes.iter().all(|node| node.len() <= NODE_BYTES_MAX) =>
            {
                Ok(nodes.into_iter().map(ByteBuf::into_vec).collect())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn request(&self, ask: Ask) -> Result<Told, SessionError> {
        let deadline = Instant::now() + REQUEST_WAIT;
        let _permit = match timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(self.shared.lost()),
            Err(_) => return Err(SessionError::TimedOut),
        };
        let (taker, answer) = oneshot::channel();
        let id = {
            let mut waiting = self.shared.waiting();
            if waiting.ended.is_some() {
                drop(waiting);
                return Err(self.shared.lost());
            }
            let id = waiting.next_id;
            waiting.next_id = id.wrapping_add(1);
            waiting.answers.insert(id, taker);
            id
        };
        let _ticket = Ticket {
            shared: &self.shared,
            id,
        };
        let frame = encode_frame(&Request { id, ask }, REQUEST_BYTES_MAX)
            .map_err(|error| SessionError::Protocol(error.to_string()))?;
        let ask_and_wait = async {
            self.frames.send(frame).await.map_err(|_| ())?;
            answer.await.map_err(|_| ())
        };
        match timeout_at(deadline, ask_and_wait).await {
            Ok(Ok(Told::Refused(refusal))) => Err(refusal.into()),
            Ok(Ok(told)) => Ok(told),
            Ok(Err(())) => Err(self.shared.lost()),
            Err(_) => Err(SessionError::TimedOut),
        }
    }
}

fn unexpected(told: &Told) -> SessionError {
    let kind = match told {
        Told::Done => "an acknowledgement",
        Told::Lease { .. } => "a lease",
        Told::Peers(_) => "peers",
        Told::Holders { .. } => "holders",
        Told::Heads(_) => "heads",
        Told::HaveNodes { .. } => "a list of nodes",
        Told::Nodes(_) => "nodes",
        Told::Refused(_) => "a refusal",
    };
    SessionError::Protocol(format!("{kind} came as the answer to something else"))
}

fn done(told: Told) -> Result<(), SessionError> {
    match told {
        Told::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn lease(told: Told) -> Result<Lease, SessionError> {
    match told {
        Told::Lease { lease_ms, holds } => Ok(Lease {
            lease: Duration::from_millis(lease_ms),
            holds,
        }),
        other => Err(unexpected(&other)),
    }
}

fn peers(told: Told) -> Result<Vec<Located>, SessionError> {
    match told {
        Told::Peers(wire) => located(wire),
        other => Err(unexpected(&other)),
    }
}

/// Reads peers; an address that can't be read (of a newer kind, perhaps) is left out, a peer id that can't is an error.
fn located(wire: Vec<WirePeer>) -> Result<Vec<Located>, SessionError> {
    wire.into_iter()
        .take(PEERS_MAX)
        .map(|wire| {
            let peer = parse_peer(&wire.peer)
                .ok_or_else(|| SessionError::Protocol("a peer id that is none".into()))?;
            let addresses = wire.addresses.iter().take(ADDRESSES_MAX);
            Ok(Located {
                peer,
                addresses: addresses
                    .filter_map(|bytes| parse_address(bytes, &peer))
                    .collect(),
            })
        })
        .collect()
}
