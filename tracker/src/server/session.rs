//! One session: the challenge, then requests and answers in turn.

use std::{net::IpAddr, time::Duration};

use futures::io::{AsyncRead, AsyncWrite};
use libp2p::PeerId;
use serde_bytes::ByteArray;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::{answer::Asker, keeper::Command};
use crate::{
    framing::{FrameError, decode, read_frame, read_frame_bytes, write_frame},
    protocol::{
        ANSWER_BYTES_MAX, Answer, Ask, Challenge, HANDSHAKE_BYTES_MAX, Prove, REQUEST_BYTES_MAX,
        Refusal, Request, RequestId, Told, Topic, Verdict, proof_holds,
    },
};

/// How long each side of the handshake may take.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// How long a peer may take to accept an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Requests that a session may send at once: what a peer with a million contents needs to tell them all, and some more.
const BURST: u32 = 300;
/// Time after which a session may send one more: 50 requests a second.
const REFILL: Duration = Duration::from_millis(20);
/// So many bytes of manifest nodes, handed in or out, count as a request: a burst of 18 MiB, then 3 MiB a second.
const BYTES_OF_A_REQUEST: usize = 64 * 1024;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the peer took too long")]
    TimedOut,
    #[error("the peer did not prove that it may speak about its topic")]
    NoMember,
    #[error("the tracker is stopping")]
    Stopping,
}

/// What a session needs to know of its surroundings.
pub(super) struct Session<F> {
    pub(super) tracker: PeerId,
    pub(super) peer: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
    /// Where the peer's connections come from at the moment.
    pub(super) seen_from: F,
    /// How long a session may be silent.
    pub(super) idle: Duration,
}

impl<F: Fn() -> Vec<IpAddr>> Session<F> {
    /// Serves the peer until it closes the stream or breaks the protocol.
    pub(super) async fn serve<S>(&self, mut stream: S) -> Result<(), SessionEnd>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let topic = within(HANDSHAKE_WAIT, self.handshake(&mut stream)).await?;
        let mut pace = Pace::new(Instant::now());
        loop {
            let read = read_frame_bytes(&mut stream, REQUEST_BYTES_MAX);
            let bytes = match timeout(self.idle, read).await {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(FrameError::Closed)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(SessionEnd::TimedOut),
            };
            sleep_until(pace.next(Instant::now())).await;
            let answer = match decode::<Request>(&bytes) {
                Ok(Request { id, ask }) => {
                    let asker = Asker {
                        peer: self.peer,
                        topic,
                        seen_from: (self.seen_from)(),
                    };
                    if let Ask::PutNodes { .. } = ask {
                        pace.spend(bytes.len());
                    }
                    let (told, answer) = oneshot::channel();
                    let command = Command::Ask { asker, ask, told };
                    let sent = self.commands.send(command).await;
                    sent.map_err(|_| SessionEnd::Stopping)?;
                    let told = answer.await.map_err(|_| SessionEnd::Stopping)?;
                    if let Told::Nodes(nodes) = &told {
                        pace.spend(nodes.iter().map(|node| node.len()).sum());
                    }
                    Answer { id, told }
                }
                // A request of a newer version, or no request at all.
                Err(_) => Answer {
                    id: decode::<RequestId>(&bytes)?.id,
                    told: Told::Refused(Refusal::NotUnderstood),
                },
            };
            let write = write_frame(&mut stream, &answer, ANSWER_BYTES_MAX);
            within(ANSWER_WAIT, async { Ok(write.await?) }).await?;
        }
    }

    async fn handshake<S>(&self, stream: &mut S) -> Result<Topic, SessionEnd>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let nonce: [u8; 32] = rand::random();
        let challenge = Challenge {
            nonce: ByteArray::new(nonce),
        };
        write_frame(stream, &challenge, HANDSHAKE_BYTES_MAX).await?;
        let prove: Prove = read_frame(stream, HANDSHAKE_BYTES_MAX).await?;
        if !proof_holds(&prove, &self.peer, &self.tracker, &nonce) {
            write_frame(stream, &Verdict::NoMember, HANDSHAKE_BYTES_MAX).await?;
            return Err(SessionEnd::NoMember);
        }
        write_frame(stream, &Verdict::Welcome, HANDSHAKE_BYTES_MAX).await?;
        Ok(Topic(prove.topic.into_array()))
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, SessionEnd>>,
) -> Result<T, SessionEnd> {
    timeout(limit, work)
        .await
        .unwrap_or(Err(SessionEnd::TimedOut))
}

/// Spaces requests out: [`BURST`] at once, then one each [`REFILL`].
struct Pace {
    /// When the burst would be whole again.
    whole: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { whole: now }
    }

    /// When the next request may be served.
    fn next(&mut self, now: Instant) -> Instant {
        self.whole = self.whole.max(now) + REFILL;
        let ahead = self.whole.saturating_duration_since(now);
        now + ahead.saturating_sub(REFILL * BURST)
    }

    /// Counts bytes of nodes that the last request moved.
    fn spend(&mut self, bytes: usize) {
        // A request moves a few MiB at most.
        self.whole += REFILL * (bytes / BYTES_OF_A_REQUEST) as u32;
    }
}

#[cfg(test)]
mod tests;
