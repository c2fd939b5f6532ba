//! `/p2pfs/sync/1`: questions about heads, nodes and objects, and pushes.
//!
//! Each side keeps one stream open to the other for its own questions and pushes; answers come back on it in any order, tied
//! to their questions by number. Everything is bounded:
//!
//! - asking: at most [`ASKED_MAX`] questions are on their way; further ones wait, within their deadline. A push finds room
//!   among [`PUSHES_MAX`] or is dropped for that peer, so a stopped peer delays nobody else.
//! - answering: at most [`ANSWERING_MAX`] questions are worked on for one peer; meanwhile nothing more is read from it.
//!   One that finds no room among the answers to all peers within [`ROOM_WITHIN`] is answered with an error. Pushes are
//!   handed on in order; while [`HANDED_ON_MAX`] of them wait, nothing more is read either.
//!
//! A message that is too large, malformed or not due is answered with an error, and the peer is disconnected and blocked.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    framing::{self, FrameError},
    peers::{Note, Peer, Shared},
    proto::{
        CALL_BYTES_MAX, Push, SYNC, SYNC_BYTES_MAX, SyncAnswer, SyncCall, SyncReply, SyncRequest,
    },
    streams,
};

/// Questions to one peer that wait for an answer.
const ASKED_MAX: usize = 64;
/// Pushes that wait to be sent to one peer; they share their bytes with those to the others.
const PUSHES_MAX: usize = 64;
/// Pushes that wait to be handed on from one peer.
const HANDED_ON_MAX: usize = 8;
/// Questions of one peer that are worked on at once; an answer may have 4 MiB.
pub(super) const ANSWERING_MAX: usize = 8;
/// Longest wait for room among the answers to all peers.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
/// Longest time for the service to answer, and for an answer to make any progress on the line.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Pauses before a broken stream is opened again.
const REOPEN_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// The number that no question has; its answer says why the stream ends.
const FAREWELL: u64 = 0;

/// A question on its way.
struct Question {
    number: u64,
    request: SyncRequest,
    answer: oneshot::Sender<SyncAnswer>,
    /// Held until the answer came or the stream ended.
    place: OwnedSemaphorePermit,
}

/// A push on its way.
struct Outgoing {
    frame: Bytes,
    /// Told when it has been written.
    written: Option<oneshot::Sender<()>>,
}

/// The asking side of one peer.
pub(super) struct SyncClient {
    next: AtomicU64,
    places: Arc<Semaphore>,
    questions: mpsc::Sender<Question>,
    pushes: mpsc::Sender<Outgoing>,
}

impl SyncClient {
    /// Asks; `None` when the stream ended first. The caller bounds the time.
    pub(super) async fn ask(&self, request: SyncRequest) -> Option<SyncAnswer> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        let (answer, answered) = oneshot::channel();
        let question = Question {
            number: self.next.fetch_add(1, Relaxed),
            request,
            answer,
            place,
        };
        self.questions.send(question).await.ok()?;
        answered.await.ok()
    }

    /// Queues a push; one that finds no room is dropped.
    pub(super) fn push(&self, frame: Bytes) {
        let outgoing = Outgoing {
            frame,
            written: None,
        };
        if self.pushes.try_send(outgoing).is_err() {
            debug!("a push dropped: the peer does not keep up");
        }
    }

    /// Sends a push and returns when it has been written, or can't be. The caller bounds the time.
    pub(super) async fn push_and_flush(&self, frame: Bytes) {
        let (written, done) = oneshot::channel();
        let outgoing = Outgoing {
            frame,
            written: Some(written),
        };
        if self.pushes.send(outgoing).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// A push as it goes to every peer.
pub(super) fn encode_push(push: Push) -> Result<Bytes, FrameError> {
    push.check()
        .map_err(|reason| FrameError::Malformed(reason.into()))?;
    Ok(framing::encode(&SyncCall::Push(push), CALL_BYTES_MAX)?.into())
}

/// Starts the asking side of a peer; it ends with `gone`.
pub(super) fn start(shared: &Arc<Shared>, peer: PeerId, gone: &CancellationToken) -> SyncClient {
    let (questions, mut asked) = mpsc::channel(ASKED_MAX);
    let (pushes, mut pushed) = mpsc::channel(PUSHES_MAX);
    let (shared, gone) = (shared.clone(), gone.clone());
    tokio::spawn(async move {
        let client = async {
            let [mut pause, pause_max] = REOPEN_PAUSES;
            loop {
                let ended = match streams::open(&shared, peer, SYNC).await {
                    Ok(stream) => {
                        pause = REOPEN_PAUSES[0];
                        run(&shared, stream, &mut asked, &mut pushed).await
                    }
                    Err(error) => FrameError::Io(io::Error::other(error.to_string())),
                };
                debug!(%peer, %ended, "no sync stream");
                streams::blame(&shared, peer, &ended).await;
                sleep(pause).await;
                pause = (pause * 2).min(pause_max);
            }
        };
        gone.run_until_cancelled(client).await;
    });
    SyncClient {
        next: AtomicU64::new(FAREWELL + 1),
        places: Arc::new(Semaphore::new(ASKED_MAX)),
        questions,
        pushes,
    }
}

type Waiting = Mutex<BTreeMap<u64, Question>>;

/// Uses one stream until it ends; tells why it did.
async fn run(
    shared: &Shared,
    stream: Stream,
    asked: &mut mpsc::Receiver<Question>,
    pushed: &mut mpsc::Receiver<Outgoing>,
) -> FrameError {
    let (mut reader, mut writer) = stream.split();
    let waiting = Waiting::default();
    let sending = async {
        loop {
            tokio::select! {
                Some(question) = asked.recv() => {
                    if question.answer.is_closed() {
                        continue;
                    }
                    let call = SyncCall::Request(question.number, question.request.clone());
                    let frame = framing::encode(&call, CALL_BYTES_MAX)?;
                    waiting.lock().insert(question.number, question);
                    writer.write_all(&frame).await?;
                }
                Some(outgoing) = pushed.recv() => {
                    writer.write_all(&outgoing.frame).await?;
                    writer.flush().await?;
                    if let Some(written) = outgoing.written {
                        let _ = written.send(());
                    }
                }
                else => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
            }
            writer.flush().await?;
        }
    };
    let receiving = async {
        loop {
            let bytes = framing::read_bytes(&mut reader, SYNC_BYTES_MAX).await?;
            let counter = &shared.counters.manifest_received;
            counter.fetch_add(bytes.len() as u64, Relaxed);
            let SyncReply(number, answer) = framing::decode(&bytes)?;
            if let (FAREWELL, SyncAnswer::Error(reason)) = (number, &answer) {
                return Err(io::Error::other(format!("refused: {reason:.256}")).into());
            }
            let Some(question) = waiting.lock().remove(&number) else {
                return Err(FrameError::Malformed("an answer to no question".into()));
            };
            answer
                .check(&question.request)
                .map_err(|reason| FrameError::Malformed(reason.into()))?;
            // Whoever asked may have given up; the answer then goes nowhere.
            let _ = question.answer.send(answer);
            drop(question.place);
        }
    };
    let ended: Result<(), FrameError> = tokio::select! {
        ended = sending => ended,
        ended = receiving => ended,
    };
    match ended {
        Err(error) => error,
        Ok(()) => FrameError::Io(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What an answer holds until it is written.
type Held = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

/// Answers on a stream that a proven peer opened.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    stream: Stream,
) -> Result<(), FrameError> {
    let (mut reader, mut writer) = stream.split();
    let (answers, mut answered) = mpsc::channel::<(Vec<u8>, Held)>(ANSWERING_MAX);
    let (pushes, mut pushed) = mpsc::channel::<Push>(HANDED_ON_MAX);
    let mut tasks = JoinSet::new();

    let reading = async {
        loop {
            let place = peer.sync_answers.clone().acquire_owned().await;
            let place = place.map_err(io::Error::other)?;
            let bytes = framing::read_bytes(&mut reader, CALL_BYTES_MAX).await?;
            match framing::decode(&bytes)? {
                SyncCall::Request(number, request) => {
                    let unfit = request.check().err();
                    let unfit = unfit.or((number == FAREWELL).then_some("it has no number"));
                    if let Some(reason) = unfit {
                        return Err(FrameError::Malformed(reason.into()));
                    }
                    while tasks.try_join_next().is_some() {}
                    let (shared, answers) = (shared.clone(), answers.clone());
                    let id = peer.id;
                    tasks.spawn(async move {
                        let room = shared.sync_answers.clone().acquire_owned();
                        let room = timeout(ROOM_WITHIN, room).await.ok().and_then(Result::ok);
                        let answer = if room.is_some() {
                            let service = shared.service.clone();
                            let answer = timeout(ANSWER_WITHIN, service.answer(id, request)).await;
                            answer.unwrap_or_else(|_| SyncAnswer::Error("no time".into()))
                        } else {
                            SyncAnswer::Error("busy".into())
                        };
                        let frame = encode_answer(number, answer);
                        let _ = answers.send((frame, (place, room))).await;
                    });
                }
                SyncCall::Push(push) => {
                    let counter = &shared.counters.manifest_received;
                    counter.fetch_add(bytes.len() as u64, Relaxed);
                    push.check()
                        .map_err(|reason| FrameError::Malformed(reason.into()))?;
                    if pushes.send(push).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    };
    let writing = async {
        while let Some((frame, held)) = answered.recv().await {
            let write = async {
                writer.write_all(&frame).await?;
                writer.flush().await
            };
            timeout(ANSWER_WITHIN, write)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            drop(held);
        }
        Ok(())
    };
    let handing_on = async {
        while let Some(push) = pushed.recv().await {
            let leaving = push == Push::Leaving;
            shared.service.clone().pushed(peer.id, push).await;
            if leaving {
                shared.note(Note::Leaving(peer.id)).await;
            }
        }
        Ok(())
    };
    let ended: Result<(), FrameError> = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
        ended = handing_on => ended,
    };
    if let Err(FrameError::Malformed(reason)) = &ended {
        let farewell = encode_answer(FAREWELL, SyncAnswer::Error(shorten(reason)));
        let write = async {
            writer.write_all(&farewell).await?;
            writer.close().await
        };
        // It is disconnected right after, whether it has heard or not.
        let _ = timeout(Duration::from_secs(1), write).await;
    }
    ended
}

fn encode_answer(number: u64, answer: SyncAnswer) -> Vec<u8> {
    framing::encode(&SyncReply(number, answer), SYNC_BYTES_MAX).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer that cannot be sent");
        let excuse = SyncAnswer::Error("the answer is too large".into());
        framing::encode(&SyncReply(number, excuse), SYNC_BYTES_MAX).unwrap_or_default()
    })
}

/// At most 256 bytes of a reason.
fn shorten(reason: &str) -> String {
    reason.chars().take(64).collect()
}
